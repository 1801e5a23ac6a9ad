"""A load straight from a table's Parquet files: tasks read columns, find the latest rows and send them, in one job.

    files of a version, the newest first
      keys and event_time of all rows    ->  the newest row of each entity: a maximum in numpy, no sort
      created_time of the rows that tie  ->  the one that was created last
      features of the rows that won      ->  batches for the partition function of online_load

    files that came and went  ->  the entities touched, as transforms/latest.py tells them  ->  the same for these

Spark's rows cost several times what reading columns does: here no row becomes one. Where values decide between rows
that are alike in both clocks, and where there is more than a worker should hold, a task hands the load back before it
has sent anything, and all of it goes Spark's way.

A task holds a slice of the entities, told by their keys; of most tables all. What the newest eighth of a
table answers, nearly all, is found there alone and sent by two tasks, one packing while Redis stores what the other has
sent; a third looks meanwhile for entities that have older rows only. Few entities the driver sends itself, by the same
partition function.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import SparkSession

from connectors.dataset_files import rebatched
from connectors.file_rows import FileRows, RowGroup
from connectors.offline_tables import Span
from connectors.plain_files import PlainFiles
from connectors.spark_errors import online_errors
from connectors.table_stats import micros
from feature_defs.join_plan import GroupJoin
from feature_defs.model import CREATED_TIME, EVENT_TIME, REJECTED
from jobs.online_load import LoadCounts, checked
from jobs.transforms.arrays import GREATEST, LEAST, encoded, in_tasks, micros_of
from jobs.transforms.latest import FIRST, LIMIT

Batches = Iterator[pa.RecordBatch]
Numbers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
_MOST = 1600 << 20  # bytes of keys and times, which one task reads: some 100 M rows
_A_SLICE = 160 << 20  # bytes of them that a task holds, and on its way two or three times as much
_SHARED = 2 << 20  # bytes of them that are worth a second task
_MOST_SLICES = 8  # for each the keys of all rows are read
_UNEVEN = 3  # slices may be so much larger, and keys than they are stored
_TOGETHER = 25_000  # rows that are packed and sent at once
_FEW = 20_000  # entities that the driver sends in less time than a job takes to begin
_FEW_ROWS, _FEW_BYTES = 500_000, 16 << 20  # of keys and times that it looks through for them
_ENTITIES = 2_500_000  # of a slice, where keys are their numbers
_SPARSE = 4  # whole numbers stand for themselves where one of so many is there
_ODD = np.uint64(0x9E3779B97F4A7C15)  # spreads numbers over 64 bits
_NONE = np.zeros(0, np.int64)


class HandedBackError(Exception):
    """What Spark's way has to load."""


# what a task does


@dataclass(frozen=True)
class Part:
    """What one task sends: of the latest rows of the slice of this number a share of those in (after, until]."""

    number: int
    after_us: int
    until_us: int
    share: int = 0
    shares: int = 1

    def of(self, count: int) -> slice:
        """Its share of so many."""
        return slice(count * self.share // self.shares, count * (self.share + 1) // self.shares)


@dataclass(frozen=True)
class LatestOfFiles:
    """The latest rows at a time, of all entities in these files or of those that are touched: (keys, limit). Plain
    data: a task gets it as it is.

    `numbers` are the least and the greatest key, where a key is one whole number that can stand for its entity.
    """

    rows: FileRows
    keys: tuple[str, ...]
    features: tuple[str, ...]
    now_us: int
    slices: int
    parts: tuple[Part, ...]
    numbers: tuple[int, int] | None
    touched: pa.Table | None
    together: int  # rows of a batch
    are_few: bool  # so that the driver sends them itself

    def located(self, part: Part) -> Located:
        """The rows that one task sends."""
        touched = self.touched
        if touched is not None:
            touched = touched.filter(pa.array(self._is_of(touched, part.number)))
        candidates = (self._by_number if self.numbers else self._by_key)(part, touched)
        codes, places = self._winners(candidates, part.until_us)
        if touched is None or candidates.of_touched is None:
            return Located(self, np.sort(places)[part.of(len(places))])
        winners = np.full(candidates.size, -1)
        winners[codes] = places
        winners = winners[candidates.of_touched]
        order = np.argsort(winners, kind="stable")[part.of(len(winners))]
        touched, winners = touched.take(pa.array(order)), winners[order]
        first = int(np.searchsorted(winners, 0))
        gone, limits = touched.slice(0, first), touched[LIMIT].slice(first)
        if gone[LIMIT].null_count:  # rows came, and are not there
            raise HandedBackError
        return Located(self, winners[first:], limits, gone)

    def _by_number(self, part: Part, touched: pa.Table | None) -> _Candidates:
        """Rows of which the key is the entity's number: of older files nearly all lose without a look at their time."""
        (key,), (least, greatest) = self.keys, self._span(part.number)
        newest = np.full(greatest - least, LEAST)  # of each entity so far
        of_touched = None
        if touched is not None:
            of_touched = touched[key].to_numpy().astype(np.int64) - least
            newest[_others_than(of_touched, len(newest))] = GREATEST
        found = _Candidates(len(newest), of_touched, newest)
        for group, until_us in self._groups(part):
            bounds = group.bounds(key)
            if bounds is not None and (bounds[1] < least or bounds[0] >= greatest):
                continue
            column = group.read([key])[key]
            codes = (column.fill_null(least) if column.null_count else column).to_numpy().astype(np.int64) - least
            if self.slices == 1:
                places = np.flatnonzero(newest[codes] <= until_us)
            else:
                places = np.flatnonzero((codes >= 0) & (codes < len(newest)))
                places = places[newest[codes[places]] <= until_us]
            if len(places):
                times, good = self._times(group, part)
                if len(places) < len(codes) or not good.all():
                    places = places[good[places]]
                if column.null_count and column.take(pa.array(places)).null_count:
                    raise HandedBackError
                codes, times = codes[places], times[places]
                np.maximum.at(newest, codes, times)
                best = np.flatnonzero(newest[codes] == times)
                found.add(codes[best], times[best], places[best] + group.start)
        return found

    def _by_key(self, part: Part, touched: pa.Table | None) -> _Candidates:
        """All rows, whatever their keys are."""
        keys = [] if touched is None else [touched.select(self.keys)]
        found, first = _Candidates(0, None), sum(map(len, keys))
        for group, _ in self._groups(part):
            key = group.read(self.keys)
            times, good = self._times(group, part)
            places = np.flatnonzero(good & self._is_of(key, part.number))
            keys.append(key if len(places) == len(key) else key.take(pa.array(places)))
            if any(column.null_count for column in keys[-1].columns):
                raise HandedBackError
            found.add(_NONE, times[places], places + group.start, more=keys[-1].nbytes)
        if not sum(map(len, keys)):
            return found
        codes, entities = encoded([column.combine_chunks() for column in pa.concat_tables(keys).columns])
        ends = first + np.cumsum([0, *map(len, found.times)])
        found.size, found.codes = len(entities[0]), [codes[low:high] for low, high in pairwise(ends)]
        found.of_touched = None if touched is None else codes[:first]
        return found

    def _groups(self, part: Part) -> Iterator[tuple[RowGroup, int]]:
        """Those that may hold rows of the part, and until when."""
        for group in self.rows.row_groups():
            bounds = group.bounds(EVENT_TIME)
            until_us = self.now_us if bounds is None else min(micros(bounds[1]), self.now_us)
            if until_us > part.after_us:
                yield group, until_us

    def _times(self, group: RowGroup, part: Part) -> tuple[Numbers, Flags]:
        """The times of its rows, and which rows are feature rows that have come, later than the part begins."""
        hidden = [REJECTED] if REJECTED in self.rows.schema.names else []
        found = group.read([EVENT_TIME, *hidden])
        times = micros_of(found[EVENT_TIME])
        good = (times > part.after_us) & (times <= self.now_us)
        return times, good & found[REJECTED].is_null().to_numpy() if hidden else good

    def _span(self, number: int) -> tuple[int, int]:
        """The keys of a slice, from the first to before the second, where they stand for their entities."""
        assert self.numbers is not None
        least, size = self.numbers[0], self.numbers[1] - self.numbers[0] + 1
        return least + size * number // self.slices, least + size * (number + 1) // self.slices

    def _is_of(self, rows: pa.Table, number: int) -> Flags:
        if self.slices == 1:
            return np.ones(len(rows), np.bool_)
        if self.numbers:
            low, high = self._span(number)
            key = rows[self.keys[0]].to_numpy()
            return np.asarray((key >= low) & (key < high))
        return slices_of([_spread(rows[key].combine_chunks()) for key in self.keys], self.slices) == number

    def _winners(self, found: _Candidates, until_us: int) -> tuple[Numbers, Numbers]:
        """Entities, and the place of each one's latest row; not those that have none, or a later one."""
        newest = found.newest
        if newest is None:
            newest = _greatest(zip(found.codes, found.times, strict=True), found.size)
            if found.of_touched is not None:
                newest[_others_than(found.of_touched, found.size)] = GREATEST
        kept = [(_NONE, _NONE)]
        for codes, times, places in zip(found.codes, found.times, found.places, strict=True):
            latest = np.flatnonzero((newest[codes] == times) & (times <= until_us))
            kept.append((codes[latest], places[latest]))
        codes, places = (np.concatenate(parts) for parts in zip(*kept, strict=True))
        once = np.zeros(found.size, np.bool_)
        once[codes] = True
        if np.count_nonzero(once) == len(codes):
            return codes, places
        is_tied = np.bincount(codes, minlength=found.size)[codes] > 1
        order = np.argsort(places[is_tied])
        tied, at = codes[is_tied][order], places[is_tied][order]
        created = np.concatenate([micros_of(rows[CREATED_TIME]) for rows in self.at(at, [CREATED_TIME])])
        latest = np.flatnonzero(_greatest([(tied, created)], found.size)[tied] == created)
        tied, at = tied[latest], at[latest]
        if len(np.unique(tied)) < len(tied):
            raise HandedBackError
        return np.concatenate([codes[~is_tied], tied]), np.concatenate([places[~is_tied], at])

    def at(self, places: Numbers, columns: Sequence[str]) -> Iterator[pa.Table]:
        """The rows at these places, which ascend."""
        for group in self.rows.row_groups():
            low, high = np.searchsorted(places, [group.start, group.start + group.rows])
            if low < high:
                found = group.read(columns)
                yield found if high - low == len(found) else found.take(pa.array(places[low:high] - group.start))


@dataclass
class _Candidates:
    """Rows that may be the latest of their entities: number of the entity, time, and place among all rows."""

    size: int  # numbers of entities that there may be
    of_touched: Numbers | None
    newest: Numbers | None = None  # time of each entity, where it is known already
    codes: list[Numbers] = field(default_factory=list)
    times: list[Numbers] = field(default_factory=list)
    places: list[Numbers] = field(default_factory=list)
    held: int = 0

    def add(self, codes: Numbers, times: Numbers, places: Numbers, *, more: int = 0) -> None:
        self.codes.append(codes)
        self.times.append(times)
        self.places.append(places)
        self.held += codes.nbytes + times.nbytes + more
        if self.held > _UNEVEN * _A_SLICE:
            raise HandedBackError


@dataclass(frozen=True)
class Located:
    """The places of rows to send, which ascend, with each one's limit if they have any; and entities without a row."""

    latest: LatestOfFiles
    places: Numbers
    limits: pa.ChunkedArray | None = None
    gone: pa.Table | None = None

    @property
    def count(self) -> int:
        return len(self.places) + (len(self.gone) if self.gone else 0)

    def batches(self) -> Batches:
        """(keys, event_time, features, limit), as the partition function takes them."""
        if self.gone:
            no_times = pa.nulls(len(self.gone), pa.timestamp("us", "UTC"))
            yield from self.gone.append_column(EVENT_TIME, no_times).combine_chunks().to_batches()
        yield from rebatched(self._rows(), self.latest.together)

    def _rows(self) -> Batches:
        start, latest = 0, self.latest
        for found in latest.at(self.places, [*latest.keys, EVENT_TIME, *latest.features]):
            limits = pa.nulls(len(found), pa.int64()) if self.limits is None else self.limits.slice(start, len(found))
            yield from found.append_column(LIMIT, limits).combine_chunks().to_batches()
            start += len(found)


def _greatest(parts: Iterable[tuple[Numbers, Numbers]], size: int) -> Numbers:
    """The greatest time of each entity, of parts of rows: entities and times."""
    found = np.full(size, LEAST)
    for codes, times in parts:
        np.maximum.at(found, codes, times)
    return found


def _others_than(touched: Numbers, size: int) -> Flags:
    """The entities that no one asks for: with a time later than all, none of their rows is the latest."""
    found = np.ones(size, np.bool_)
    found[touched] = False
    return found


def slices_of(keys: Sequence[Numbers], slices: int) -> Numbers:
    """In which slice each row's entity is: a function of its keys alone, in whatever file they are."""
    spread = np.zeros(len(keys[0]), np.uint64)
    for key in keys:
        spread = (spread ^ key.view(np.uint64)) * _ODD
    return ((spread >> np.uint64(32)) % np.uint64(slices)).view(np.int64)


def _spread(column: pa.Array) -> Numbers:
    """A number of each value: of a text the sum of its bytes, each times its place."""
    if pa.types.is_string(column.type) or pa.types.is_binary(column.type):
        return _of_bytes(column)
    if pa.types.is_decimal(column.type):
        words = np.frombuffer(column.buffers()[1], np.int64).reshape(-1, 2)[column.offset :][: len(column)]
        return np.bitwise_xor(words[:, 0], words[:, 1])
    narrow = {pa.bool_(): pa.uint8(), pa.date32(): pa.int32()}.get(column.type, column.type)
    return np.asarray(column.cast(narrow).cast(pa.int64()).fill_null(0).to_numpy())


def _of_bytes(column: pa.Array) -> Numbers:
    _, offsets, data = column.cast(pa.large_binary()).buffers()
    starts = np.frombuffer(offsets, np.int64)[column.offset :][: len(column) + 1]
    bytes_ = (np.frombuffer(data, np.uint8) if data else _NONE)[starts[0] : starts[-1]].astype(np.int64)
    starts = starts - starts[0]
    plain, placed = np.zeros((2, len(bytes_) + 1), np.int64)
    np.cumsum(bytes_, out=plain[1:])
    np.cumsum(bytes_ * np.arange(1, len(bytes_) + 1), out=placed[1:])
    low, high = starts[:-1], starts[1:]
    return (placed[high] - placed[low]) - (plain[high] - plain[low]) * low


# what the driver does


def latest_of_files(
    files: PlainFiles, group: GroupJoin, *, now_us: int, touched: pa.Table | None = None
) -> LatestOfFiles | None:
    """The latest rows in these files, of all entities or of those that are touched; None for what only Spark's way
    can load."""
    rows = columns_of(files, group)
    if rows is None:
        return None
    held, numbers = rows.bytes_of([*group.keys, EVENT_TIME]), _numbers(rows, group.keys, touched)
    if held > _MOST:
        return None
    slices = math.ceil((numbers[1] - numbers[0] + 1) / _ENTITIES if numbers else held / _A_SLICE) or 1
    if slices > _MOST_SLICES:
        return None
    shares = 2 if slices == 1 and held > _SHARED else 1
    recent_us = files.recent_after() if touched is None and held > _SHARED else None
    parts: list[Part] = []
    for number in range(slices):
        if recent_us is not None:
            parts.append(Part(number, LEAST, recent_us))
        after_us = LEAST if recent_us is None else recent_us
        parts += [Part(number, after_us, now_us, share, shares) for share in range(shares)]
    most = _FEW if touched is None or len(touched) > _FEW else _FEW_ROWS
    are_few = held <= _FEW_BYTES and sum(rows.counts()) <= most  # many files are not opened once more
    return LatestOfFiles(
        rows, group.keys, group.features, now_us, slices, tuple(parts), numbers, touched, _TOGETHER, are_few
    )


def _numbers(rows: FileRows, keys: Sequence[str], touched: pa.Table | None) -> tuple[int, int] | None:
    """The least and the greatest key, if it is one whole number and they are not too many to stand for entities."""
    if len(keys) > 1 or not pa.types.is_integer(rows.schema.field(keys[0]).type):
        return None
    count, bounds = 0, list[int]()
    for group in rows.row_groups():
        if (found := group.bounds(keys[0])) is None:
            return None
        count += group.rows
        bounds += found
    if touched is not None:
        bounds += pc.min_max(touched[keys[0]]).as_py().values()
    span = max(bounds, default=0) - min(bounds, default=0) + 1
    return (min(bounds), max(bounds)) if bounds and span <= min(_SPARSE * count, _MOST_SLICES * _ENTITIES) else None


def columns_of(files: PlainFiles, group: GroupJoin) -> FileRows | None:
    """What a load reads of files; None where it is Spark's to read them, or values decide what is latest."""
    if group.skip_nulls or group.maps:
        return None
    return files.newest_first.columns([*group.keys, EVENT_TIME, CREATED_TIME, *group.features])


def touched_in(
    came: FileRows, went: FileRows, coming: FileRows, keys: Sequence[str], *, span: Span, now_us: int
) -> pa.Table:
    """(keys, first, limit) of the entities whose latest row may have changed: see transforms/latest.py."""
    parts = []
    for rows, after_us, until_us, gone in (
        (came, LEAST, now_us, False),
        (went, LEAST, now_us, True),
        (coming, span.after_us, min(span.until_us, now_us), False),
    ):
        hidden = [REJECTED] if REJECTED in rows.schema.names else []
        found = rows.read([*keys, EVENT_TIME, *hidden])
        time = micros_of(found[EVENT_TIME])
        chosen = (time > after_us) & (time <= until_us)
        if hidden:
            chosen &= found[REJECTED].is_null().to_numpy()
        times, none = pa.array(time), pa.nulls(len(time), pa.int64())
        told = found.select(keys).append_column(FIRST, none if gone else times)
        parts.append(told.append_column(LIMIT, times if gone else none).filter(pa.array(chosen)))
    grouped = pa.concat_tables(parts).group_by(list(keys), use_threads=False)
    return grouped.aggregate([(FIRST, "max"), (LIMIT, "max")]).rename_columns([*keys, FIRST, LIMIT])


def load_files(
    spark: SparkSession,
    latest: LatestOfFiles,
    load: Callable[[Batches], Batches],
    subject: str,
    *,
    writers: int | None = None,
) -> LoadCounts | None:
    """Find and send the latest rows of all parts, in so many tasks at once, or here if they are few; None where a task
    hands them back. An OnlineStoreError unless every row arrived that was found."""
    names = [one.name for one in fields(LoadCounts)]

    def sent(part: Part) -> Batches:
        try:
            located = latest.located(part)
        except HandedBackError:
            yield pa.RecordBatch.from_pydict({name: pa.nulls(1, pa.int64()) for name in [*names, "found"]})
            return
        for counts in load(located.batches()):
            yield counts.append_column("found", pa.array([located.count]))

    told: list[Mapping[str, Any]]
    if writers is None and latest.are_few:
        told = [row for part in latest.parts for batch in sent(part) for row in batch.to_pylist()]
    else:
        rows = in_tasks(spark, latest.parts, sent, ", ".join(f"{name} bigint" for name in [*names, "found"]))
        with online_errors():
            told = [row.asDict() for row in (rows if writers is None else rows.coalesce(writers)).collect()]
    if any(row["found"] is None for row in told):
        return None
    counts = LoadCounts(*(sum(row[name] for row in told) for name in names))
    return checked(counts, sum(row["found"] for row in told), subject)
