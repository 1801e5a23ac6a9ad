"""verify: the online store held against the offline tables, entity by entity; what differs is counted and named.

    newest row per entity at `now` -> packed as a load would -> held against what is stored -> a verdict, counted

A sample is chosen by a hash of the keys, so a run again looks at the same entities; another --seed at others. With
`--sample all` every entity is held against, and what is online without an offline row is found, too. Nothing is
written, and it may run beside loads: a newer value online is counted, not a fault.

Exit code 7: online and offline do not agree. Examples name keys, times and features, never a feature's value.
"""

from __future__ import annotations

import argparse
import datetime
import heapq
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from connectors import codec
from connectors.redis_online import RedisAddress, RedisOnlineStore, open_redis
from connectors.registry import Snapshot
from connectors.spark_errors import data_errors, online_errors
from feature_defs.errors import EXIT_DONE, OnlineStoreError, UsageError, listed
from feature_defs.join_plan import group_join
from feature_defs.model import EVENT_TIME, Entity, FeatureGroup
from jobs import arguments
from jobs.online_address import at_store, in_generation, online_address
from jobs.place import Place, now_us, online_groups, time_of
from jobs.report import step, table
from jobs.settings import MAIN_STORE
from jobs.transforms.as_of import latest_rows
from jobs.transforms.sampling import entity_count, sampled, share
from jobs.verdicts import (
    AHEAD,
    DIFFERS,
    FAULTS,
    MISSING,
    NEWER,
    SAME,
    STALE,
    SURPLUS,
    UNREADABLE,
    VERDICTS,
    Judged,
    Terms,
    judged,
    judged_alone,
)

SAMPLE, SEED, EXAMPLES = 10_000, 7, 3
# A window of reads: so many keys, fewer where values are large.
_KEYS_PER_READ, _BYTES_PER_READ = 5000, 16 * 1024 * 1024
# Keys of differing buckets alone are looked at one by one. More than so many at once go to Spark in several jobs.
_BUCKETS, _CANDIDATES = 1024, 200_000
_FOUND = (
    "what string, name string, key binary, offline_time bigint, online_time bigint, features array<string>, "
    "number bigint, checksum bigint"
)
_VERDICT, _FEATURE, _EXAMPLE, _BUCKET = "verdict", "feature", "example", "bucket"

_REPAIRS = {
    (MISSING, STALE, DIFFERS, UNREADABLE): "to repair {verdicts}: `tidemark materialize --full --group {group}{store}`",
    (AHEAD,): "no load replaces what is {verdicts}: remove it (HDEL), or choose another key_prefix for a new registry",
    (SURPLUS,): "no load knows of what is {verdicts}: remove it (HDEL)",
}


@dataclass(frozen=True)
class AuditExample:
    """An entity by its online key, and the event_times of both sides."""

    verdict: str
    key: str
    offline: datetime.datetime | None
    online: datetime.datetime | None
    features: tuple[str, ...]


@dataclass(frozen=True)
class AuditedGroup:
    """One group. `one_of` 1 is every entity; `surplus` is null where only a sample was looked at.

    `expired` and `newer` also count online values without an offline row at `now`.
    """

    group: str
    version: int
    table_version: int
    one_of: int
    entities: int
    same: int
    expired: int
    newer: int
    missing: int
    stale: int
    differs: int
    unreadable: int
    ahead: int
    surplus: int | None
    features: dict[str, int]
    examples: tuple[AuditExample, ...]
    agrees: bool
    seconds: float

    @property
    def told_faults(self) -> str:
        return ", ".join(f"{getattr(self, verdict):,} {verdict}" for verdict in FAULTS if getattr(self, verdict))


@dataclass(frozen=True)
class VerifyReport:
    snapshot: int
    now: datetime.datetime
    store: str
    seed: int
    groups: tuple[AuditedGroup, ...]
    agrees: bool
    seconds: float

    @property
    def exit_code(self) -> int:
        return EXIT_DONE if self.agrees else OnlineStoreError.exit_code

    def text(self) -> str:
        # Those that occur; a zero of what was looked for only in a full audit says something, too.
        shown = [
            verdict
            for verdict in VERDICTS
            if verdict in (SAME, MISSING) or any(getattr(g, verdict) for g in self.groups)
            or (verdict == SURPLUS and any(g.surplus is not None for g in self.groups))
        ]  # fmt: skip
        lines = [
            [f"{g.group} v{g.version}", "all" if g.one_of == 1 else f"1 of {g.one_of:,}", g.entities]
            + [getattr(g, verdict) for verdict in shown]
            for g in self.groups
        ]
        told = [table(["group", "looked at", "entities", *shown], lines)]
        told += [
            f"  {group.group}: differs in {', '.join(f'{name} ({n:,})' for name, n in group.features.items())}"
            for group in self.groups
            if group.features
        ]
        examples = [
            [
                one.verdict,
                one.key,
                _shown(one.offline),
                _shown(one.online),
                listed(one.features, 3) if one.features else "",
            ]
            for group in self.groups
            for one in group.examples
        ]
        if examples:
            told.append(table(["for example", "key", "offline (UTC)", "online (UTC)", "features"], examples))
        store = "" if self.store == MAIN_STORE else f" --store {self.store}"
        for group in self.groups:
            for verdicts, hint in _REPAIRS.items():
                if there := [verdict for verdict in verdicts if getattr(group, verdict)]:
                    told.append(
                        f"  {group.group}: {hint.format(verdicts=', '.join(there), group=group.group, store=store)}"
                    )
        total = "online and offline agree" if self.agrees else "online and offline DIFFER"
        return "\n".join([*told, f"{total}, {self.seconds:.1f} s (registry snapshot {self.snapshot})"])


def _shown(at: datetime.datetime | None) -> str:
    return at.strftime("%Y-%m-%d %H:%M:%S.%f").removesuffix(".000000") if at else "-"


def verify(
    place: Place,
    groups: Sequence[str] = (),
    *,
    sample: int | None = SAMPLE,
    seed: int = SEED,
    examples: int = EXAMPLES,
    no_newer: bool = False,
    now: datetime.datetime | None = None,
    store: str = MAIN_STORE,
) -> VerifyReport:
    """Audit these groups (none: every online group that is not deprecated); `sample` None is every entity."""
    if sample is not None and sample < 1:
        raise UsageError("Option --sample", f"{sample} is less than one entity", hint="write 1 or more, or all")
    if examples < 0:
        raise UsageError("Option --examples", f"{examples} is less than none", hint="write 0 or more")
    snapshot, there = place.applied(), in_generation(at_store(place, store))
    return audited(
        there,
        snapshot,
        online_groups(snapshot, groups),
        now_us=now_us(now),
        sample=sample,
        seed=seed,
        examples=examples,
        no_newer=no_newer,
        store=store,
    )


def audited(
    place: Place,
    snapshot: Snapshot,
    groups: Sequence[FeatureGroup],
    *,
    now_us: int,
    versions: Mapping[str, int] | None = None,
    sample: int | None = SAMPLE,
    seed: int = SEED,
    examples: int = EXAMPLES,
    no_newer: bool = False,
    store: str = MAIN_STORE,
) -> VerifyReport:
    """The place's online store held against these groups' tables, at their newest or at these versions."""
    started, at = time.monotonic(), now_us
    audits = [
        _Audit.of(place, snapshot, group, (versions or {}).get(group.name), examples=examples, now=at)
        for group in groups
    ]
    for audit in audits:
        with step(f"verify {audit.group.name}"), data_errors(f"FeatureGroup '{audit.group.name}'"), online_errors():
            _look_at_entities(audit, sample=sample, seed=seed)
    if sample is None:
        for entity in dict.fromkeys(audit.entity.name for audit in audits):
            with step(f"verify keys of {entity}"), online_errors():
                _look_for_surplus([audit for audit in audits if audit.entity.name == entity])
    faults = (*FAULTS, *([NEWER] if no_newer else []))
    found = tuple(audit.report(faults, whole=sample is None) for audit in audits)
    return VerifyReport(
        snapshot=snapshot.number,
        now=time_of(at),
        store=store,
        seed=seed,
        groups=found,
        agrees=all(group.agrees for group in found),
        seconds=round(time.monotonic() - started, 3),
    )


@dataclass
class _Audit:
    """One group while it is looked at: what it is, and what was found so far."""

    group: FeatureGroup
    entity: Entity
    address: RedisAddress
    rows: DataFrame
    table_version: int
    latest: Callable[[DataFrame], DataFrame]
    terms: Terms
    most: int
    one_of: int = 1
    counts: Counter[str] = field(default_factory=Counter)
    features: Counter[str] = field(default_factory=Counter)
    examples: list[AuditExample] = field(default_factory=list)
    buckets: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros((2, _BUCKETS), np.int64))
    entities: int = 0
    seconds: float = 0.0

    @classmethod
    def of(
        cls, place: Place, snapshot: Snapshot, group: FeatureGroup, at: int | None, *, examples: int, now: int
    ) -> _Audit:
        source, newest = place.computed(snapshot, group)
        version = newest if at is None else at
        join = group_join(group, snapshot.definitions, group.features)
        schema = codec.ValueSchema.of_group(group)
        ttl_us = group.ttl_us
        return cls(
            group=group,
            entity=snapshot.definitions.entity_of(group),
            address=online_address(place),
            rows=source.read(version),
            table_version=version,
            latest=lambda rows: latest_rows(rows, join, now_us=now),
            terms=Terms(schema, snapshot.since[group.name], ttl_us, now),
            most=examples,
        )

    @property
    def field(self) -> bytes:
        return codec.field_name(self.group.name, self.group.version)

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(self.entity.keys)

    def rows_until_now(self) -> DataFrame:
        return self.rows.where(F.col(EVENT_TIME) <= F.timestamp_micros(F.lit(self.terms.now_us)))

    def take(self, found: DataFrame) -> None:
        """Run the partition function of `found` and add what it found."""
        started = time.monotonic()
        by = [name for name in found.columns if name not in ("number", "checksum")]
        sums = found.groupBy(*by).agg(*(F.sum(name).alias(name) for name in ("number", "checksum")))
        for row in sums.toArrow().to_pylist():
            name, number = row["name"], row["number"]
            if row["what"] == _VERDICT:
                self.counts[name] += number
            elif row["what"] == _FEATURE:
                self.features[name] += number
            elif row["what"] == _BUCKET:
                self.buckets[:, int(name)] += (number, row["checksum"])
            else:
                key = row["key"].decode(errors="backslashreplace")
                offline, online = _time(row["offline_time"]), _time(row["online_time"])
                self.examples.append(AuditExample(name, key, offline, online, tuple(row["features"])))
        self.seconds += time.monotonic() - started

    def report(self, faults: Sequence[str], *, whole: bool) -> AuditedGroup:
        shown = [
            one
            for verdict in VERDICTS
            for one in sorted((e for e in self.examples if e.verdict == verdict), key=lambda e: e.key)[: self.most]
        ]
        counts: dict[str, Any] = {verdict: self.counts[verdict] for verdict in VERDICTS}
        if not whole:
            counts[SURPLUS] = None
        order = {name: number for number, name in enumerate(self.terms.schema.names)}
        return AuditedGroup(
            group=self.group.name,
            version=self.group.version,
            table_version=self.table_version,
            one_of=self.one_of,
            entities=self.entities,
            **counts,
            features=dict(sorted(self.features.items(), key=lambda item: order[item[0]])),
            examples=tuple(shown),
            agrees=not any(self.counts[verdict] for verdict in faults),
            seconds=round(self.seconds, 3),
        )


def _time(microseconds: int | None) -> datetime.datetime | None:
    try:
        return time_of(microseconds) if microseconds is not None else None
    except OverflowError:  # a damaged value's, or none
        return None


# each entity of the offline table


def _look_at_entities(audit: _Audit, *, sample: int | None, seed: int) -> None:
    rows = audit.rows
    if sample is not None:
        counting = entity_count(audit.rows_until_now(), audit.keys)
        audit.one_of = share(counting.toArrow()["entities"][0].as_py(), sample)
        rows = sampled(rows, audit.keys, one_of=audit.one_of, seed=seed)
    function = partition_audit(
        audit.group, audit.entity, audit.address, audit.terms, examples=audit.most, with_buckets=sample is None
    )
    audit.take(audit.latest(rows).mapInArrow(function, _FOUND))
    audit.entities = sum(audit.counts.values())


def partition_audit(
    group: FeatureGroup,
    entity: Entity,
    address: RedisAddress,
    terms: Terms,
    *,
    examples: int,
    with_buckets: bool,
) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """The partition function: Arrow batches of (keys, event_time, features) -> one batch of what was found."""
    encoded = codec.key_encoder(entity, address.key_prefix)
    stored_in = codec.field_name(group.name, group.version)

    def audit(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        found = _Findings(examples)
        with open_redis(address) as store:
            for batch in batches:
                names = encoded(batch)
                values = codec.encode(batch, terms.schema, definition=terms.definition)
                for start, count in _windows(values):
                    some, offline = names.slice(start, count), values.slice(start, count)
                    online = _stored(store, some, stored_in)
                    verdicts = judged(offline, online, terms, clock_us=time.time_ns() // 1000)
                    found.add(verdicts, some, codec.event_times(offline))
                    if with_buckets:
                        found.buckets += _in_buckets(some.filter(online.is_valid()).to_pylist())
        yield found.batch()

    return audit


def _windows(values: pa.Array) -> Iterator[tuple[int, int]]:
    """(start, count): so many as are read in one round trip, stored values being about as long as offline ones."""
    longest = max(pc.max(pc.binary_length(values)).as_py() or 0, 1)
    count = max(1, min(_KEYS_PER_READ, _BYTES_PER_READ // longest))
    for start in range(0, len(values), count):
        yield start, min(count, len(values) - start)


def _stored(store: RedisOnlineStore, keys: pa.Array, stored_in: bytes) -> pa.Array:
    return pa.array([value for (value,) in store.read(keys.to_pylist(), [stored_in])], pa.large_binary())


class _Findings:
    """What a partition has found so far."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.counts: Counter[str] = Counter()
        self.features: Counter[str] = Counter()
        self.examples: dict[str, list[tuple[Any, ...]]] = {}
        self.buckets = np.zeros((2, _BUCKETS), np.int64)

    def add(self, verdicts: Judged, keys: pa.Array, offline_times: npt.NDArray[np.int64] | None) -> None:
        for verdict in VERDICTS:
            rows = verdicts.rows(verdict)
            self.counts[verdict] += len(rows)
            if len(rows) and verdict in (NEWER, *FAULTS) and self.most:
                # Those first by key: the same ones in every run, whatever the order of the rows.
                names = keys.take(pa.array(rows)).to_pylist()
                first = heapq.nsmallest(self.most, zip(names, rows.tolist(), strict=True))
                shown = [
                    (
                        key,
                        int(offline_times[row]) if offline_times is not None else None,
                        int(verdicts.online_times[row]) if verdict != UNREADABLE else None,
                        list(verdicts.features.get(row, ())),
                    )
                    for key, row in first
                ]
                kept = [*self.examples.get(verdict, []), *shown]
                self.examples[verdict] = heapq.nsmallest(self.most, kept, key=lambda one: one[0])
        for names_of_row in verdicts.features.values():
            self.features.update(names_of_row)

    def batch(self) -> pa.RecordBatch:
        none: tuple[Any, ...] = (None, None, None, [])
        rows: list[tuple[Any, ...]] = [
            (_VERDICT, name, *none, count, 0) for name, count in self.counts.items() if count
        ]
        rows += [(_FEATURE, name, *none, count, 0) for name, count in self.features.items()]
        rows += [(_EXAMPLE, name, *one, 1, 0) for name, some in self.examples.items() for one in some]
        rows += [
            (_BUCKET, str(number), *none, int(self.buckets[0, number]), int(self.buckets[1, number]))
            for number in np.flatnonzero(self.buckets[0])
        ]
        kinds = [
            pa.string(),
            pa.string(),
            pa.binary(),
            pa.int64(),
            pa.int64(),
            pa.list_(pa.string()),
            *[pa.int64()] * 2,
        ]
        names = [column.split()[0] for column in _FOUND.split(", ")]
        columns = zip(*rows, strict=True) if rows else [[] for _ in kinds]
        return pa.record_batch([pa.array(c, k) for c, k in zip(columns, kinds, strict=True)], names)


# what is online without an offline row
#
# A count and a sum of digests tell of each bucket of keys whether the store holds more than the audit has seen, so that
# no list of all keys is kept or moved. Only keys of buckets that differ are looked for in the offline table by name.


def _in_buckets(keys: Sequence[bytes]) -> npt.NDArray[np.int64]:
    """How many keys fall into each bucket, and the sum of their digests."""
    found = np.zeros((2, _BUCKETS), np.int64)
    digests = _digests(keys)
    np.add.at(found[0], digests % _BUCKETS, 1)
    np.add.at(found[1], digests % _BUCKETS, digests)
    return found


def _digests(keys: Sequence[bytes]) -> npt.NDArray[np.int64]:
    return np.fromiter(map(zlib.crc32, keys), np.int64, len(keys))


def _look_for_surplus(audits: Sequence[_Audit]) -> None:
    """All groups of one entity: their fields lie under the same keys."""
    online = [np.zeros((2, _BUCKETS), np.int64) for _ in audits]
    with open_redis(audits[0].address) as store:
        for keys, held in _held(store, audits):
            for number in range(len(audits)):
                online[number] += _in_buckets([key for key, has in zip(keys, held, strict=True) if has[number]])
        suspect = [(one != audit.buckets).any(axis=0) for one, audit in zip(online, audits, strict=True)]
        if not any(buckets.any() for buckets in suspect):
            return
        candidates: list[set[bytes]] = [set() for _ in audits]
        for keys, held in _held(store, audits):
            buckets = _digests(keys) % _BUCKETS
            for number, audit in enumerate(audits):
                looked_for = suspect[number][buckets]
                some = candidates[number]
                some.update(
                    key for key, has, is_in in zip(keys, held, looked_for, strict=True) if is_in and has[number]
                )
                if len(some) >= _CANDIDATES:
                    _look_at_names(audit, some, suspect[number])
                    some.clear()
    for number, audit in enumerate(audits):
        if candidates[number]:
            _look_at_names(audit, candidates[number], suspect[number])


def _held(store: RedisOnlineStore, audits: Sequence[_Audit]) -> Iterator[tuple[list[bytes], list[list[bool]]]]:
    fields = [audit.field for audit in audits]
    for keys in store.scan(audits[0].entity.name):
        yield keys, store.holds(keys, fields)


def _look_at_names(audit: _Audit, candidates: set[bytes], suspect: npt.NDArray[np.bool_]) -> None:
    """Those of these online keys that no offline row has."""
    spark = audit.rows.sparkSession
    online = spark.createDataFrame(pa.table({"key": pa.array(sorted(candidates), pa.binary())}))
    names = audit.rows_until_now().select(*audit.keys).dropna().distinct()
    offline = names.mapInArrow(_partition_keys(audit.entity, audit.address.key_prefix, suspect), "key binary")
    alone = online.join(offline, "key", "left_anti")
    audit.take(alone.mapInArrow(_partition_alone(audit.field, audit.address, audit.terms, examples=audit.most), _FOUND))


def _partition_keys(
    entity: Entity, prefix: str, suspect: npt.NDArray[np.bool_]
) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """Arrow batches of keys -> those online keys that fall into a suspect bucket."""
    encoded = codec.key_encoder(entity, prefix)

    def keys(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            names = encoded(batch).cast(pa.binary())
            kept = names.filter(pa.array(suspect[_digests(names.to_pylist()) % _BUCKETS]))
            yield pa.record_batch([kept], ["key"])

    return keys


def _partition_alone(
    stored_in: bytes, address: RedisAddress, terms: Terms, *, examples: int
) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    def alone(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        found = _Findings(examples)
        with open_redis(address) as store:
            for batch in batches:
                keys = batch.column(0)
                for start in range(0, len(keys), _KEYS_PER_READ):
                    some = keys.slice(start, _KEYS_PER_READ)
                    online = _stored(store, some, stored_in)
                    found.add(judged_alone(online, terms, clock_us=time.time_ns() // 1000), some, None)
        yield found.batch()

    return alone


def _sample(text: str) -> int | None:
    if text == "all":
        return None
    if not text.isdigit():
        raise UsageError("Option --sample", f"'{text}' is no number of entities", hint="write 10000, or all")
    return int(text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_groups(parser)
    parser.add_argument(
        "--sample", default=SAMPLE, type=_sample, metavar="N|all",
        help=f"at least about so many entities of each group, or all (default: {SAMPLE})",
    )  # fmt: skip
    parser.add_argument(
        "--seed", default=SEED, type=int, metavar="N", help=f"another seed, another sample (default: {SEED})"
    )
    parser.add_argument(
        "--examples", default=EXAMPLES, type=int, metavar="N",
        help=f"entities to name of each verdict and group (default: {EXAMPLES})",
    )  # fmt: skip
    parser.add_argument("--no-newer", action="store_true", help="nothing else writes: a newer value is a fault, too")
    arguments.add_store(parser)
    arguments.add_now(parser, "judge by the rows and ttl of this time (default: the clock)")


def run(place: Place, args: argparse.Namespace) -> VerifyReport:
    return verify(
        place,
        args.groups,
        sample=args.sample,
        seed=args.seed,
        examples=args.examples,
        no_newer=args.no_newer,
        now=args.now,
        store=args.store,
    )


if __name__ == "__main__":
    from jobs.command_line import run_verb

    run_verb("verify")
