"""materialize: offline tables -> the online store, the latest row of every entity.

    newest row per entity at `now` -> Arrow batches -> partition function: encode, send -> counts, checked

The store keeps the value of the newer definition, then of the newer event_time, so a load can be repeated, or run
beside another, without harm.
"""

from __future__ import annotations

import argparse
import datetime
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from connectors import codec
from connectors.redis_online import RedisAddress, open_redis
from connectors.registry import Snapshot
from connectors.spark_errors import data_errors
from feature_defs import data_types, durations
from feature_defs.errors import OnlineStoreError, UsageError
from feature_defs.join_plan import group_join
from feature_defs.model import Entity, FeatureGroup
from jobs import arguments
from jobs.online_address import online_address
from jobs.place import Place, chosen_groups, new_run, now_us
from jobs.report import counted, step, table
from jobs.transforms.as_of import latest_rows

_COUNTS = ("written", "kept_newer", "expired", "bytes")


@dataclass(frozen=True)
class LoadedGroup:
    """One group's load. Each of `rows` entities was written, left alone for a newer value, or past its ttl."""

    group: str
    version: int
    table_version: int
    rows: int
    written: int
    kept_newer: int
    expired: int
    bytes: int
    seconds: float


@dataclass(frozen=True)
class MaterializeReport:
    run: str
    snapshot: int
    groups: tuple[LoadedGroup, ...]
    rows: int
    seconds: float
    exit_code: int = 0

    def text(self) -> str:
        lines = [
            (f"{g.group} v{g.version}", g.rows, g.written, g.kept_newer, g.expired, g.bytes, g.table_version, g.seconds)
            for g in self.groups
        ]
        headers = ["group", "entities", "written", "kept newer", "expired", "bytes", "table version", "seconds"]
        total = f"{counted(self.rows, 'value')} loaded, {self.seconds:.1f} s"
        return f"{table(headers, lines)}\n{total} (run {self.run}, registry snapshot {self.snapshot})"


def materialize(place: Place, groups: Sequence[str] = (), *, now: datetime.datetime | None = None) -> MaterializeReport:
    """Load these groups (none: every online group that is not deprecated) as they are at `now`."""
    started = time.monotonic()
    run = new_run()
    snapshot = place.applied()
    chosen = _online_groups(snapshot, groups)
    address = online_address(place)
    with open_redis(address):  # refuses clearly before any Spark job runs
        pass
    found = []
    for group in chosen:
        with step(f"materialize {group.name}"), data_errors(f"FeatureGroup '{group.name}'"):
            found.append(_load(place, snapshot, group, address, now_us(now)))
    return MaterializeReport(
        run=run,
        snapshot=snapshot.number,
        groups=tuple(found),
        rows=sum(group.rows for group in found),
        seconds=round(time.monotonic() - started, 3),
    )


def _online_groups(snapshot: Snapshot, names: Sequence[str]) -> list[FeatureGroup]:
    chosen = chosen_groups(snapshot, names)
    offline = [group.name for group in chosen if not group.online]
    if names and offline:
        hint = "set online=True in its definition and apply it"
        raise UsageError(f"FeatureGroup '{offline[0]}'", "is not online", hint=hint)
    return [group for group in chosen if group.online]


def _load(place: Place, snapshot: Snapshot, group: FeatureGroup, address: RedisAddress, now: int) -> LoadedGroup:
    started = time.monotonic()
    entity = snapshot.definitions.entity_of(group)
    source, version = place.computed(snapshot, group)
    latest = latest_rows(source.read(version), group_join(group, snapshot.definitions, group.features), now_us=now)
    counts = _sent(latest, partition_load(group, entity, address, definition=snapshot.since[group.name], now_us=now))
    handled = counts["written"] + counts["kept_newer"] + counts["expired"]
    if handled != counts["rows"]:
        problem = f"group '{group.name}': {counts['rows']:,} entities sent, {handled:,} acknowledged"
        raise OnlineStoreError("Online store", problem, hint="run the load again; a repeated load is harmless")
    return LoadedGroup(
        group=group.name,
        version=group.version,
        table_version=version,
        seconds=round(time.monotonic() - started, 3),
        **counts,
    )


def _sent(latest: DataFrame, load: Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]) -> dict[str, int]:
    """Run the partition function over all partitions and add up what they counted."""
    columns = ("rows", *_COUNTS)
    try:
        sums = latest.mapInArrow(load, ", ".join(f"{name} bigint" for name in columns)).agg(
            *(F.coalesce(F.sum(name), F.lit(0)).alias(name) for name in columns)
        )
        return sums.collect()[0].asDict()
    except Exception as error:
        raise _told(error) or error from error


def _told(error: Exception) -> OnlineStoreError | None:
    """The online store's own words, from inside the traceback that Spark gives for a failed task."""
    marker = f"{OnlineStoreError.__name__}: "
    text = str(error)
    if marker not in text:
        return None
    problem, _, rest = text.split(marker, 1)[1].partition("\nHint: ")
    subject, _, problem = problem.partition(": ")
    return OnlineStoreError(subject, problem, hint=rest.split("\n")[0] or "run the load again once it is back")


def partition_load(
    group: FeatureGroup, entity: Entity, address: RedisAddress, *, definition: int, now_us: int
) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """The partition function: Arrow batches of (keys, event_time, features) -> one batch of counts."""
    schema = codec.ValueSchema.of([(feature.name, feature.type) for feature in group.features])
    field = codec.field_name(group.name, group.version)
    keys, types = tuple(entity.keys), [data_types.parse(kind) for kind in entity.keys.values()]
    entity_name = entity.name
    ttl_us = durations.microseconds(group.ttl) if group.ttl else None

    def load(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        totals = dict.fromkeys(("rows", *_COUNTS), 0)
        with open_redis(address) as store:
            for batch in batches:
                names = codec.encode_keys(
                    batch, entity_name, key_names=keys, key_types=types, prefix=address.key_prefix
                )
                values = codec.encode(batch, schema, definition=definition)
                counts = store.write(names, values, field=field, ttl_us=ttl_us, now_us=now_us)
                totals["rows"] += batch.num_rows
                for name in _COUNTS:
                    totals[name] += getattr(counts, name)
        yield pa.RecordBatch.from_pydict({name: pa.array([total], pa.int64()) for name, total in totals.items()})

    return load


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_groups(parser)
    arguments.add_now(parser, "load values as they are at this time (default: the clock)")


def run(place: Place, args: argparse.Namespace) -> MaterializeReport:
    return materialize(place, args.groups, now=args.now)


if __name__ == "__main__":
    from jobs.command_line import run_verb

    run_verb("materialize")
