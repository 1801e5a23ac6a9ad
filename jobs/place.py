"""One place to run in: the settings of a profile and what they open, each opened once and only when asked for."""

from __future__ import annotations

import datetime
import getpass
import time
import uuid
from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from connectors.file_store import open_file_store
from connectors.fitted_values import FittedValues
from connectors.lakes import Lakes, joined
from connectors.registry import Registry, Snapshot
from feature_defs.errors import DataError, UsageError, listed, near_miss
from feature_defs.loading import load
from feature_defs.model import Definitions, FeatureGroup, Service
from jobs.lake_access import use_lakes
from jobs.settings import OnlineSettings, Settings, is_in_catalog, load_settings

if TYPE_CHECKING:  # Spark is imported when a session is opened: check, plan and list never need it
    from pyspark.sql import SparkSession

    from connectors.offline_tables import OfflineTable

LOAD_WORK = "_work."  # what a load sets aside beside its receipts begins so
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)


class Place:
    """Settings, lakes, registry, Spark. Verbs take a Place first."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.lakes = Lakes(settings.lakes)
        use_lakes(settings)

    @cached_property
    def registry(self) -> Registry:
        root = self.lakes.uri(self.settings.registry)
        return Registry(open_file_store(root), root)

    @cached_property
    def spark(self) -> SparkSession:
        from jobs.session import open_session

        return open_session(self.settings)

    def with_online(self, online: OnlineSettings) -> Place:
        """The same place with another online store; what is open is shared."""
        other = copy(self)
        other.settings = replace(self.settings, online=online)
        return other

    def written(self) -> Definitions:
        """The definitions as their files say now."""
        return load(Path(self.settings.definitions))

    def applied(self) -> Snapshot:
        """The definitions in force; LakeError before the first apply."""
        return self.registry.applied()

    def table(self, group: FeatureGroup) -> OfflineTable:
        """The offline table of a group's version."""
        return self.table_in(self.spark, group)

    def table_in(self, spark: SparkSession, group: FeatureGroup) -> OfflineTable:
        """The same, read by another session than the place's own."""
        from connectors.offline_tables import catalog_table, open_table

        path = self.table_path(group)
        if is_in_catalog(path):
            return catalog_table(spark, path, beside=self.lakes.uri(self.files_path(group)))
        return open_table(spark, self.lakes.uri(path), group.offline)

    def computed(self, snapshot: Snapshot, group: FeatureGroup) -> tuple[OfflineTable, int]:
        """The group's table and its newest version, which must have been computed by the snapshot's definitions.

        Values of other definitions would train a model, or answer it, on something else.
        """
        subject, again = f"FeatureGroup '{group.name}'", f"run `tidemark compute --group {group.name}`"
        table = self.table(group)
        version = table.version()
        if version is None:
            raise DataError(subject, f"has no offline table yet (version {group.version})", hint=again)
        found, registered = table.note(version).get("fingerprint"), snapshot.fingerprint(group.name)
        if found != registered:
            problem = f"its table was computed with definitions {found}, registered are {registered}"
            raise DataError(subject, problem, hint=again)
        return table, version

    def quarantine(self, group: FeatureGroup) -> OfflineTable:
        """The rows that did not become feature rows, beside the group's table."""
        from connectors.offline_tables import open_table

        return open_table(self.spark, self.quarantine_uri(group), "parquet")

    def quarantine_uri(self, group: FeatureGroup) -> str:
        return self.lakes.uri(self.files_path(group)) + "_quarantine"

    def fitted(self, group: FeatureGroup) -> FittedValues:
        """What cleaning and scaling have learned for a group's version, beside its table."""
        root = self.lakes.uri(self.files_path(group)) + "_fitted"
        return FittedValues(open_file_store(root), root)

    def table_path(self, group: FeatureGroup) -> str:
        """The lake path of a group's table, or its name in a catalog: `main.features.clicks_v1`."""
        base = self._base(group)
        if not is_in_catalog(base):
            return joined(base, group.name, f"v{group.version}")
        name = base if base.count(".") == 2 else f"{base}.{group.name}"
        return f"{name}_v{group.version}"

    def files_path(self, group: FeatureGroup) -> str:
        """The lake path that what is beside a group's table begins with; the table's own, unless a catalog has it."""
        base = self._base(group)
        return joined(self.settings.beside if is_in_catalog(base) else base, group.name, f"v{group.version}")

    def _base(self, group: FeatureGroup) -> str:
        """A table in Parquet is files, and stays in a lake where the others are in a catalog."""
        base = self.settings.tables.get(group.name)
        if base is not None and is_in_catalog(base) and group.offline != "delta":
            problem = f"its offline tables are in {group.offline}, and a catalog keeps Delta: [tables] says '{base}'"
            hint = (
                f'name a lake path there, or set offline="delta" in its definition: {group.name} = "lake://NAME/path"'
            )
            raise UsageError(f"FeatureGroup '{group.name}'", problem, hint=hint)
        elsewhere = is_in_catalog(self.settings.offline) and group.offline != "delta"
        return base or (self.settings.beside if elsewhere else self.settings.offline)


def open_place(profile: str | None = None) -> Place:
    """The place of a profile: a path, or the NAME of conf/NAME.toml."""
    return Place(load_settings(profile))


def chosen_groups(snapshot: Snapshot, names: Sequence[str]) -> list[FeatureGroup]:
    """The named groups, or with no name all that are not deprecated."""
    groups = snapshot.definitions.groups
    for name in names:
        if name not in groups:
            problem = f"is not in registry snapshot {snapshot.number} ({listed(groups)})"
            raise UsageError(
                f"FeatureGroup '{name}'", problem, hint=near_miss(name, groups) + "or run `tidemark apply`"
            )
    return [groups[name] for name in names] if names else [g for g in groups.values() if not g.is_deprecated]


def online_groups(snapshot: Snapshot, names: Sequence[str]) -> list[FeatureGroup]:
    """The named groups, which must be online, or with no name all online ones that are not deprecated."""
    chosen = chosen_groups(snapshot, names)
    offline = [group.name for group in chosen if not group.online]
    if names and offline:
        hint = "set online=True in its definition and apply it"
        raise UsageError(f"FeatureGroup '{offline[0]}'", "is not online", hint=hint)
    return [group for group in chosen if group.online]


def online_folder(place: Place, group: FeatureGroup) -> str:
    """Where the receipts of a group's loads are: beside its table."""
    return place.lakes.uri(place.files_path(group)) + "_online"


def find_service(place: Place, name: str) -> tuple[Snapshot, Service]:
    """`churn` as it is now, or `churn@1` from the newest snapshot in which the service had version 1."""
    return place.registry.find_service(name)


def now_us(now: datetime.datetime | None) -> int:
    """A time in microseconds UTC; None is the clock, a naive time is UTC."""
    if now is None:
        return time.time_ns() // 1000
    aware = now if now.tzinfo else now.replace(tzinfo=datetime.timezone.utc)
    return (aware - _EPOCH) // datetime.timedelta(microseconds=1)


def time_of(microseconds: int) -> datetime.datetime:
    """A number of microseconds UTC as a time: the other way of `now_us`."""
    return _EPOCH + datetime.timedelta(microseconds=microseconds)


def new_run() -> str:
    """A name for one run, in the order of time: 20260131T120000123-1f9e2c."""
    started = datetime.datetime.now(datetime.timezone.utc)
    return f"{started:%Y%m%dT%H%M%S}{started.microsecond // 1000:03d}-{uuid.uuid4().hex[:6]}"


def user_name() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container without a user database
        return "unknown"
