"""The verbs in a notebook: `store = open_store("conf/databricks.toml"); store.training_set(spine, service="churn")`."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from feature_defs.join_plan import TimeRules
from feature_defs.model import EVENT_TIME
from jobs.apply import ApplyReport, apply
from jobs.check import CheckReport, check
from jobs.deprecate import DeprecateReport, deprecate
from jobs.history import HistoryReport, history
from jobs.list import Criteria, ListReport, list_definitions
from jobs.place import Place, find_service, open_place
from jobs.plan import PlanReport, plan
from jobs.settings import MAIN_STORE
from jobs.show import ShowReport, show

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

    from connectors.online_client import AsyncOnlineClient, OnlineClient
    from jobs.compare import CompareReport
    from jobs.compute import ComputeReport
    from jobs.datasets import Dataset
    from jobs.diff import DiffReport
    from jobs.generate import GenerateReport
    from jobs.maintain import MaintainReport
    from jobs.materialize import MaterializeReport
    from jobs.online import GenerationsReport, OnlineReport
    from jobs.replay import ReplayReport
    from jobs.replicate import ReplicateReport
    from jobs.testing import CasesReport
    from jobs.training_set import TrainingSetReport
    from jobs.verify import VerifyReport
    from jobs.why import WhyReport


class Store:
    """A place with its verbs as methods; each is the function that the command line runs."""

    def __init__(self, place: Place) -> None:
        self.place = place

    def generate(self, *, customers: int = 1000, seed: int = 7) -> GenerateReport:
        from jobs.generate import generate

        return generate(self.place, customers=customers, seed=seed)

    def check(self) -> CheckReport:
        return check(self.place)

    def test(self, *names: str) -> CasesReport:
        from jobs.testing import run_cases

        return run_cases(self.place, names)

    def plan(self) -> PlanReport:
        return plan(self.place)

    def apply(self, message: str = "") -> ApplyReport:
        return apply(self.place, message=message)

    def list(self, text: str = "", **criteria: str) -> ListReport:
        return list_definitions(self.place, Criteria(text, **criteria))

    def show(self, name: str) -> ShowReport:
        return show(self.place, name)

    def history(self, name: str = "") -> HistoryReport:
        return history(self.place, name)

    def deprecate(self, group: str, message: str = "") -> DeprecateReport:
        return deprecate(self.place, group, message=message)

    def compute(self, *groups: str, now: datetime.datetime | None = None, **options: Any) -> ComputeReport:
        """`options` are those of `jobs.compute.compute`: full, start, end, chunk, added_features."""
        from jobs.compute import compute

        return compute(self.place, groups, now=now, **options)

    def replay(self, group: str, *, now: datetime.datetime | None = None) -> ReplayReport:
        from jobs.replay import replay

        return replay(self.place, group, now=now)

    def training_set(
        self,
        spine: object,
        *,
        service: str,
        keys: Mapping[str, str] | None = None,
        event_time: str = EVENT_TIME,
        labels: Sequence[str] = (),
        allow_future: bool = False,
        prefix: bool = False,
        strict: bool = False,
        known_by: str = "event",
    ) -> DataFrame:
        """The joined rows as a DataFrame, to go on with; `write_training_set` makes a pinned dataset of them.

        The spine is a lake path, a Spark or pandas DataFrame, or a pyarrow Table. Nothing is kept on the way, so one of
        any size goes in line (docs/training-sets.md); for a large one `write_training_set` is faster.
        """
        from jobs.joining import ANY, join_spine, not_kept
        from jobs.spines import SpineWords, open_spine
        from jobs.training_set import plan_dataset

        snapshot, found = find_service(self.place, service)
        words = SpineWords("", keys or {}, event_time, labels, allow_future)
        given = open_spine(self.place, spine, found, snapshot.definitions, words=words)
        rules = TimeRules(strict=strict, known_by=known_by)
        planned = plan_dataset(self.place, given.rows, snapshot, found, prefix=prefix, rules=rules)
        return given.restored(
            join_spine(given.rows, planned.tables, planned.plan, keep=not_kept, few=ANY).rows(), planned.plan.outputs
        )

    def write_training_set(self, spine: object, *, service: str, out: str, **options: Any) -> TrainingSetReport:
        """`options` are those of `jobs.training_set.training_set`: out_format, keys, labels, splits, gap, ..."""
        from jobs.training_set import training_set

        return training_set(self.place, spine, service=service, out=out, **options)

    def open_dataset(self, path: str, *, split: str | None = None, version: int | None = None) -> Dataset:
        """A training set to read: .spark(), .pandas(), .arrow(), .batches(), .numpy_batches(), .torch()."""
        from jobs.datasets import open_dataset

        return open_dataset(self.place, path, split=split, version=version)

    def replay_training_set(self, path: str, *, out: str, out_format: str = "parquet") -> TrainingSetReport:
        from jobs.rebuild import rebuild

        return rebuild(self.place, path, out=out, out_format=out_format)

    def diff(self, left: str, right: str, *, examples: int = 3, values: bool = False) -> DiffReport:
        from jobs.diff import diff

        return diff(self.place, left, right, examples=examples, values=values)

    def why(self, dataset: str, feature: str, row: dict[str, str], *, at: datetime.datetime | None = None) -> WhyReport:
        from jobs.why import why

        return why(self.place, dataset, feature, row, at=at)

    def materialize(self, *groups: str, now: datetime.datetime | None = None, **options: Any) -> MaterializeReport:
        """`options` are those of `jobs.materialize.materialize`: full, rate, stores."""
        from jobs.materialize import materialize

        return materialize(self.place, groups, now=now, **options)

    def materialize_generation(self, *, now: datetime.datetime | None = None, **options: Any) -> MaterializeReport:
        """`options` are those of `jobs.materialize.materialize_generation`: rate, stores."""
        from jobs.materialize import materialize_generation

        return materialize_generation(self.place, now=now, **options)

    def verify(
        self, *groups: str, sample: int | None = 10_000, now: datetime.datetime | None = None, **options: Any
    ) -> VerifyReport:
        """`sample` None is every entity; `options` are those of `jobs.verify.verify`: seed, store, ..."""
        from jobs.verify import verify

        return verify(self.place, groups, sample=sample, now=now, **options)

    def online(self, entity: dict[str, str], **options: Any) -> OnlineReport:
        """`options` are those of `jobs.online.online_get`: service or group, check, now, store."""
        from jobs.online import online_get

        return online_get(self.place, entity, **options)

    def online_generations(self, *, store: str = MAIN_STORE) -> GenerationsReport:
        from jobs.online import online_generations

        return online_generations(self.place, store=store)

    def online_rollback(self, *, store: str = MAIN_STORE) -> GenerationsReport:
        from jobs.online import online_rollback

        return online_rollback(self.place, store=store)

    def online_client(self, service: str, *, store: str = MAIN_STORE, **options: Any) -> OnlineClient:
        """What an application reads a service with, without Spark: docs/online-client.md.

        `options` are those of `OnlineClient.open`: prefix, fallback, connections.
        """
        from connectors.online_client import OnlineClient
        from jobs.online_address import at_store, online_address

        return OnlineClient.open(self.place.registry, service, online_address(at_store(self.place, store)), **options)

    def async_online_client(self, service: str, *, store: str = MAIN_STORE, **options: Any) -> AsyncOnlineClient:
        """The same for asyncio."""
        from connectors.online_client import AsyncOnlineClient
        from jobs.online_address import at_store, online_address

        address = online_address(at_store(self.place, store))
        return AsyncOnlineClient.open(self.place.registry, service, address, **options)

    def maintain(self, *groups: str, retention: str = "7d", dry_run: bool = False) -> MaintainReport:
        from jobs.maintain import maintain

        return maintain(self.place, groups, retention=retention, dry_run=dry_run)

    def replicate(self, *groups: str, to: str, **options: Any) -> ReplicateReport:
        """Bring groups from this place to that of the profile `to`. `options` are those of `jobs.replicate.replicate`:
        rate, check, parallel, registry, allow_vacuumed, dry_run."""
        from jobs.replicate import replicate

        return replicate(self.place, groups, to=open_place(to), **options)

    def compare(self, *groups: str, right: str, **options: Any) -> CompareReport:
        """Hold groups here against those in the place of the profile `right`. `options`: version, every_version,
        examples, values."""
        from jobs.compare import compare

        return compare(self.place, groups, right=open_place(right), **options)


def open_store(profile: str | None = None) -> Store:
    """The store of a profile: a path, or the NAME of conf/NAME.toml."""
    return Store(open_place(profile))
