"""The partition function of a load: Arrow batches -> encode, send, read a sample back -> one batch of counts.

    (keys, event_time, features, limit)   a row without an event_time is an entity to remove

Every row is acknowledged as one of written, kept_newer, expired, removed, absent; Spark counts the rows besides, before
they leave it. Every hundredth value is read back from the store and compared.
"""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame, Observation
from pyspark.sql import functions as F

from connectors import codec
from connectors.redis_online import RedisAddress, RedisOnlineStore, open_redis
from connectors.spark_errors import online_errors
from feature_defs.errors import OnlineStoreError
from feature_defs.model import EVENT_TIME, Entity, FeatureGroup
from jobs.transforms.latest import LIMIT

Batches = Iterator[pa.RecordBatch]
_A_TASK = 50_000.0  # entities a second that one task manages on any machine
_SAMPLED = 100  # every so many rows one is read back
_LEAST = np.iinfo(np.int64).min
_SECOND_US = 1_000_000
_AGAIN = "run the load again: a repeated load is harmless"


@dataclass(frozen=True)
class LoadCounts:
    """What became of the entities, the bytes written, and the sample: its size, its CRC-32s' sum, how many differ."""

    entities: int = 0
    written: int = 0
    kept_newer: int = 0
    expired: int = 0
    removed: int = 0
    absent: int = 0
    bytes: int = 0
    sampled: int = 0
    checksum: int = 0
    mismatched: int = 0

    def __add__(self, other: LoadCounts) -> LoadCounts:
        return LoadCounts(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(self)))


def writers_for(rate: float) -> int:
    """How many tasks share a rate of entities a second: few, since one that waits for a core uses none of it."""
    return math.ceil(rate / _A_TASK)


def load_rows(rows: DataFrame, load: Callable[[Batches], Batches], subject: str, *, least: int = 0) -> LoadCounts:
    """Run the partition function over all partitions; an OnlineStoreError unless every row arrived, and at least so
    many as were counted before."""
    names, told = [one.name for one in fields(LoadCounts)], Observation()
    with online_errors():
        counted = rows.observe(told, F.count(F.lit(1)).alias("rows")).mapInArrow(
            load, ", ".join(f"{name} bigint" for name in names)
        )
        sums = counted.agg(*(F.coalesce(F.sum(name), F.lit(0)).alias(name) for name in names)).collect()[0]
    counts = checked(LoadCounts(**sums.asDict()), told.get["rows"], subject)
    if counts.entities < least:
        problem = f"{counts.entities:,} entities were sent, and {least:,} were found before"
        raise OnlineStoreError(subject, problem, hint=_AGAIN)
    return counts


def checked(counts: LoadCounts, rows: int, subject: str) -> LoadCounts:
    """The counts of so many rows; an OnlineStoreError unless every one of them was sent, acknowledged and kept."""
    handled = counts.written + counts.kept_newer + counts.expired + counts.removed + counts.absent
    if not rows == counts.entities == handled:
        problem = f"{rows:,} entities, {counts.entities:,} sent, {handled:,} acknowledged"
        raise OnlineStoreError(subject, problem, hint=_AGAIN)
    if counts.mismatched:
        problem = f"{counts.mismatched:,} of {counts.sampled:,} values that were read back are not those that were sent"
        raise OnlineStoreError(
            subject, problem, hint=f"look whether the store evicts keys (maxmemory-policy); {_AGAIN}"
        )
    return counts


def partition_load(
    group: FeatureGroup,
    entity: Entity,
    address: RedisAddress,
    *,
    definition: int,
    now_us: int,
    rate: float | None = None,
) -> Callable[[Batches], Batches]:
    """What a task does with its rows, at most `rate` a second. It is sent to executors: it holds plain data only."""
    schema = codec.ValueSchema.of_group(group)
    encoded = codec.key_encoder(entity, address.key_prefix)
    sending = _Sending(codec.field_name(group.name, group.version), definition, group.ttl_us, now_us)

    def load(batches: Batches) -> Batches:
        total, sample = LoadCounts(), _Sample(sending)
        with open_redis(address, rate=rate) as store:
            for batch in batches:
                total += sending.sent(store, batch, encoded, schema, sample)
            total += sample.compared(store)
        told = {one.name: pa.array([getattr(total, one.name)], pa.int64()) for one in fields(total)}
        yield pa.RecordBatch.from_pydict(told)

    return load


@dataclass(frozen=True)
class _Sending:
    field: bytes
    definition: int
    ttl_us: int | None
    now_us: int

    def sent(
        self,
        store: RedisOnlineStore,
        batch: pa.RecordBatch,
        encoded: Callable[[pa.RecordBatch], pa.Array],
        schema: codec.ValueSchema,
        sample: _Sample,
    ) -> LoadCounts:
        """One batch: values for the entities that have a row, removals for the others."""
        total = LoadCounts(entities=batch.num_rows)
        for rows, is_gone in _parted(batch):
            names, limits = encoded(rows), _numbers(rows.column(LIMIT), _LEAST)
            if is_gone:
                values = codec.removal(self.definition, limits)
            else:
                values = codec.encode(rows, schema, definition=self.definition)
            found = store.write(
                names,
                values,
                field=self.field,
                ttl_us=None if is_gone else self.ttl_us,
                now_us=self.now_us,
                limits=pa.array(limits),
            )
            times = _numbers(rows.column(EVENT_TIME).cast(pa.timestamp("us", "UTC")).cast(pa.int64()), _LEAST)
            sample.take(names, values, np.maximum(times, limits), is_gone=is_gone)
            total += LoadCounts(
                written=found.written,
                kept_newer=found.kept_newer,
                expired=found.expired,
                removed=found.removed,
                absent=found.absent,
                bytes=found.bytes,
            )
        return total


def _parted(batch: pa.RecordBatch) -> Iterator[tuple[pa.RecordBatch, bool]]:
    """The entities that have a row, and those that are gone."""
    missing = batch.column(EVENT_TIME).null_count
    if not missing:
        yield batch, False
    else:
        gone = batch.column(EVENT_TIME).is_null()
        if missing < batch.num_rows:
            yield batch.filter(pc.invert(gone)), False
        yield batch.filter(gone), True


class _Sample:
    """Some of what was sent, to be read back when all is sent."""

    def __init__(self, sending: _Sending) -> None:
        self.sending = sending
        self.taken: list[tuple[bytes, bytes | None, int]] = []

    def take(self, names: pa.Array, values: pa.Array, times: npt.NDArray[np.int64], *, is_gone: bool) -> None:
        chosen = pa.array(np.arange(0, len(names), _SAMPLED))
        expected: Sequence[bytes | None] = [None] * len(chosen) if is_gone else values.take(chosen).to_pylist()
        self.taken += zip(names.take(chosen).to_pylist(), expected, times[::_SAMPLED].tolist(), strict=True)

    def compared(self, store: RedisOnlineStore) -> LoadCounts:
        """A value is right when it is the one sent, or another writer's that is newer; one past its ttl proves nothing:
        it is not kept, or was not sent at all."""
        found = store.read([key for key, _, _ in self.taken], [self.sending.field])
        checksum = mismatched = 0
        for (_, expected, time_us), (stored,) in zip(self.taken, found, strict=True):
            if stored == expected:
                checksum += zlib.crc32(stored or b"")
            elif not (self._is_newer(stored, time_us) or self._is_past(expected)):
                mismatched += 1
        return LoadCounts(sampled=len(self.taken), checksum=checksum, mismatched=mismatched)

    def _is_newer(self, stored: bytes | None, time_us: int) -> bool:
        if stored is None:
            return False
        definition = codec.definition_of(stored)
        newer = codec.event_time_of(stored) > time_us
        return definition > self.sending.definition or (definition == self.sending.definition and newer)

    def _is_past(self, expected: bytes | None) -> bool:
        """Whether a value is past its ttl, by the clock or by the time of the load."""
        ttl_us = self.sending.ttl_us
        if expected is None or ttl_us is None:
            return False
        clock = max(self.sending.now_us, time.time_ns() // 1000 + _SECOND_US)
        return codec.event_time_of(expected) + ttl_us < clock


def _numbers(column: pa.Array, absent: int) -> npt.NDArray[np.int64]:
    found: npt.NDArray[np.int64] = column.fill_null(absent).to_numpy(zero_copy_only=False)
    return found
