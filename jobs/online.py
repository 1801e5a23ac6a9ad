"""online: read an entity's features of a service, or of a group, from the online store.

    tidemark online get --service churn --entity customer_id=CUST001

A missing or expired entity is an answer, not an error. With `--check` the offline tables are asked for the same and the
command fails when the two disagree.

    tidemark online generations | rollback

tell which generation of keys clients read, and let them read the one before again, at once.
"""

from __future__ import annotations

import argparse
import datetime
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from connectors import embedded_redis
from connectors.generations import generations, roll_back
from connectors.online_answer import PRESENT, GroupRows
from connectors.online_client import OnlineClient
from connectors.online_service import Part, service_plan
from connectors.redis_online import RedisOnlineStore, open_redis
from connectors.registry import Snapshot
from feature_defs.errors import OnlineStoreError, UsageError
from feature_defs.join_plan import group_join
from jobs import arguments
from jobs.online_address import at_store, online_address
from jobs.place import Place, chosen_groups, find_service, now_us, time_of
from jobs.report import table
from jobs.settings import MAIN_STORE
from jobs.values import same, shown, typed_keys


@dataclass(frozen=True)
class OnlineGroup:
    """One group's answer. A value is null unless its status is present; what they mean: connectors/online_answer.py."""

    group: str
    status: str
    event_time: datetime.datetime | None
    values: dict[str, Any]
    statuses: dict[str, str]


@dataclass(frozen=True)
class OnlineReport:
    """`offline` holds the offline values by group.feature when they were asked for."""

    entity: dict[str, str]
    groups: tuple[OnlineGroup, ...]
    offline: dict[str, Any] | None
    agrees: bool | None
    seconds: float

    @property
    def exit_code(self) -> int:
        return OnlineStoreError.exit_code if self.agrees is False else 0

    def text(self) -> str:
        lines = []
        for group in self.groups:
            at = group.event_time.strftime("%Y-%m-%d %H:%M:%S") if group.event_time else "-"
            for name, value in group.values.items():
                line = [f"{group.group}.{name}", shown(value), group.statuses[name], at]
                lines.append(
                    [*line, shown(self.offline[f"{group.group}.{name}"])] if self.offline is not None else line
                )
        headers = [
            "feature",
            "online",
            "status",
            "event time (UTC)",
            *(["offline"] if self.offline is not None else []),
        ]
        told = [f"  {', '.join(f'{k}={v}' for k, v in self.entity.items())}", table(headers, lines)]
        if self.agrees is not None:
            told.append("online and offline agree" if self.agrees else "online and offline DIFFER")
        return "\n".join(told)


def online_get(
    place: Place,
    entity: Mapping[str, str],
    *,
    service: str = "",
    group: str = "",
    check: bool = False,
    now: datetime.datetime | None = None,
    store: str = MAIN_STORE,
) -> OnlineReport:
    """The features of one entity; keys are given as text and read as the entity's types."""
    started = time.monotonic()
    place = at_store(place, store)
    snapshot, parts = _parts(place, service, group)
    at = now_us(now)
    keys = list(dict.fromkeys(key for part, _ in parts for key in snapshot.definitions.entity_of(part).keys))
    given = arguments.key_values([f"{name}={value}" for name, value in entity.items()], keys)
    groups = _read(place, snapshot, parts, given, at)
    offline, there = _offline(place, snapshot, parts, given, at) if check else (None, set())
    return OnlineReport(
        entity=dict(given),
        groups=groups,
        offline=offline,
        agrees=_agrees(groups, offline, there) if offline is not None else None,
        seconds=round(time.monotonic() - started, 3),
    )


def _parts(place: Place, service: str, group: str) -> tuple[Snapshot, Sequence[Part]]:
    if bool(service) == bool(group):
        raise UsageError(
            "`tidemark online get`", "expected --service or --group, one of them", hint="name what to read"
        )
    if group:
        snapshot = place.applied()
        found = chosen_groups(snapshot, [group])[0]
        parts: Sequence[Part] = [(found, found.features)]
    else:
        snapshot, chosen = find_service(place, service)
        parts = snapshot.definitions.features_of(chosen)
    return snapshot, parts


def _read(
    place: Place, snapshot: Snapshot, parts: Sequence[Part], given: Mapping[str, str], at: int
) -> tuple[OnlineGroup, ...]:
    address, definitions = online_address(place), snapshot.definitions
    plan = service_plan(
        "`tidemark online get`", definitions, parts, key_prefix=address.key_prefix, prefix=True
    )  # two groups may have one name for a feature
    keys: dict[str, Any] = {}
    for group, _ in parts:
        types = definitions.entity_of(group).keys
        keys |= zip(types, typed_keys(types, given), strict=True)
    with OnlineClient(plan, address, registry=place.registry) as client:
        answer = client.get(keys, now=time_of(at))
    return tuple(_group(part) for part in answer.parts)


def _group(found: GroupRows) -> OnlineGroup:
    at = found.event_times[0]
    return OnlineGroup(
        group=found.group,
        status=found.found[0],
        event_time=None if at is None else time_of(at),
        values={name: column[0] for name, column in zip(found.features, found.columns, strict=True)},
        statuses=dict(zip(found.features, found.statuses[0], strict=True)),
    )


# the same question, asked of the offline tables


def _offline(
    place: Place, snapshot: Snapshot, parts: Sequence[Part], given: Mapping[str, str], at: int
) -> tuple[dict[str, Any], set[str]]:
    """The offline values by group.feature, null without a row, and the groups that have one."""
    from pyspark.sql import functions as F

    from jobs.transforms.as_of import latest_rows

    found: dict[str, Any] = {}
    there: set[str] = set()
    for group, features in parts:
        source, version = place.computed(snapshot, group)
        entity = snapshot.definitions.entity_of(group)
        rows = source.read(version)
        for name, value in zip(entity.keys, typed_keys(entity.keys, given), strict=True):
            rows = rows.where(F.col(name) == F.lit(value))
        if group.ttl_us is not None:
            oldest = at - group.ttl_us
            rows = rows.where(F.unix_micros("event_time") >= F.lit(oldest))
        # the answer travels as Arrow: a Row would bring timestamps in this machine's zone
        wanted = group_join(group, snapshot.definitions, group.features)
        latest = latest_rows(rows, wanted, now_us=at).toArrow().to_pylist()
        there.update([group.name] if latest else [])
        for feature in features:
            answer: Any = latest[0][feature.name] if latest else None
            # Arrow tells a map as a list of pairs
            is_map = answer is not None and feature.name in wanted.maps
            found[f"{group.name}.{feature.name}"] = dict(answer) if is_map else answer
    return found, there


def _agrees(groups: Sequence[OnlineGroup], offline: Mapping[str, Any], there: set[str]) -> bool:
    """The same groups have an answer, and it is the same."""
    if {group.group for group in groups if group.status == PRESENT} != there:
        return False
    online = {f"{group.group}.{name}": value for group in groups for name, value in group.values.items()}
    return all(same(online[name], offline[name]) for name in offline)


# generations


@dataclass(frozen=True)
class GenerationsReport:
    """`now` is what clients read, `before` what `rollback` would let them read, `loading` what a load has begun."""

    store: str
    now: int
    before: int | None
    loading: int | None
    exit_code: int = 0

    def text(self) -> str:
        told = [f"{self.store}: clients read generation {self.now}"]
        told += [f"generation {self.before} is kept to go back to"] if self.before is not None else []
        told += [f"generation {self.loading} was begun"] if self.loading is not None else []
        return "; ".join(told)


def online_generations(place: Place, *, store: str = MAIN_STORE) -> GenerationsReport:
    with open_redis(online_address(at_store(place, store))) as opened:
        return _generations(opened, store)


def online_rollback(place: Place, *, store: str = MAIN_STORE) -> GenerationsReport:
    """Let clients read the generation before. The next load brings it up to date."""
    with open_redis(online_address(at_store(place, store))) as opened:
        roll_back(opened)
        return _generations(opened, store)


def _generations(opened: RedisOnlineStore, store: str) -> GenerationsReport:
    found = generations(opened)
    return GenerationsReport(store, found.now or 0, found.before, found.loading)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action",
        choices=("get", "generations", "rollback", "stop"),
        help="get: read an entity; generations: tell which is read; rollback: read the one before again; "
        "stop: stop the embedded Redis",
    )
    parser.add_argument("--service", default="", metavar="NAME[@VERSION]", help="the service whose features to read")
    parser.add_argument("--group", default="", metavar="NAME", help="a feature group instead of a service")
    parser.add_argument(
        "--entity", action="append", default=[], metavar="KEY=VALUE", help="the entity's key, each column"
    )
    parser.add_argument("--check", action="store_true", help="also read offline, fail when the two differ")
    arguments.add_store(parser)
    arguments.add_now(parser, "judge ttl at this time (default: the clock)")


@dataclass(frozen=True)
class StopReport:
    stopped: bool
    exit_code: int = 0

    def text(self) -> str:
        return "the embedded Redis is stopped" if self.stopped else "no embedded Redis is running"


def run(place: Place, args: argparse.Namespace) -> OnlineReport | GenerationsReport | StopReport:
    if args.action == "stop":
        return StopReport(embedded_redis.stop(Path(at_store(place, args.store).settings.online.folder)))
    if args.action == "generations":
        return online_generations(place, store=args.store)
    if args.action == "rollback":
        return online_rollback(place, store=args.store)
    malformed = [pair for pair in args.entity if "=" not in pair]
    if malformed:
        hint = "write --entity customer_id=CUST001"
        raise UsageError("Option --entity", f"'{malformed[0]}' is not KEY=VALUE", hint=hint)
    given = dict(pair.split("=", 1) for pair in args.entity)
    return online_get(
        place,
        given,
        service=args.service,
        group=args.group,
        check=args.check,
        now=args.now,
        store=args.store,
    )


if __name__ == "__main__":
    from jobs.command_line import run_verb

    run_verb("online")
