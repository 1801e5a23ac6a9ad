"""The as-of by the tables' files: a task searches one group's files for all spine rows. No row is shuffled.

    a group's files, keys and clocks  +  the spine's files, keys and times
         -> `locate_kernel` -> for each spine row the number of a row in the files
         -> the features of those rows, row group by row group -> files of answers, row for row as the spine's
    spine | answers of each group                              -> `pieces`

A task holds keys and clocks of one group and of the spine as numbers, some 100 bytes a row, and of the rows that
answer up to 16 features at a time. So it is for what one task can hold; `jobs/joining.py` decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import SparkSession
from pyspark.sql.types import StructType

from connectors.file_rows import FileRows, RowGroup, made_whole
from connectors.table_stats import may_hold, micros
from feature_defs.join_plan import GroupJoin, TimeRules
from feature_defs.model import CREATED_TIME, EVENT_TIME, REJECTED
from jobs.transforms.arrays import LEAST, Array, micros_of, told_by_tasks
from jobs.transforms.locate_kernel import TAGS, Search, answers, in_order, tag_of

PIECE = 100_000  # spine rows of a task that puts answers beside them
_AT_ONCE = 16  # columns of features that a task holds at a time
_IN_CACHES = 65_536  # rows whose numbers stay in a processor's caches
_SPARSE = 8  # whole numbers are close where one of so many is there
_Span = tuple[Any, Any]
_FARTHEST = 2**63 // TAGS  # microseconds: a time and a tag are one number


@dataclass(frozen=True)
class GroupFiles:
    """A group, the files that may hold rows of (after, until], and its table's columns as Spark knows them."""

    group: GroupJoin
    files: FileRows
    after_us: int | None
    until_us: int
    schema: StructType


@dataclass(frozen=True)
class Block:
    """Some features of a group, and the folder of their answers: a file for each file of the spine, its rows in
    batches of `PIECE`."""

    columns: tuple[tuple[str, str], ...]
    folder: str

    def file(self, number: int) -> Path:
        return Path(self.folder, f"{number}.arrow")


@dataclass(frozen=True)
class Told:
    """What the search of a group came to: of each feature the cells that the other rule of `known_by` would fill
    otherwise; or that it is for Spark, since rows are alike in their clocks, or values are too long for one array."""

    handed_back: bool
    leaks: tuple[int, ...]


@dataclass(frozen=True)
class _Searching:
    """A task: one group and the spine, of whose files the rows are told, and how many answers make a batch."""

    part: GroupFiles
    blocks: tuple[Block, ...]
    spine: FileRows
    counts: tuple[int, ...]
    rules: TimeRules
    piece: int


def searched(
    spark: SparkSession, spine: FileRows, parts: Sequence[GroupFiles], rules: TimeRules, folder: str
) -> list[Told]:
    """Search the groups' files, and keep the answers below a folder."""
    counts = spine.counts()
    tasks = [_Searching(part, blocks_of(part, folder), spine, counts, rules, PIECE) for part in parts]
    for block in (block for task in tasks for block in task.blocks):
        Path(block.folder).mkdir(parents=True, exist_ok=True)
    return [Told(one is None, tuple(one or ())) for one in told_by_tasks(spark, tasks, _search)]


def blocks_of(part: GroupFiles, folder: str) -> tuple[Block, ...]:
    columns = part.group.columns
    starts = range(0, len(columns), _AT_ONCE)
    return tuple(Block(columns[start : start + _AT_ONCE], f"{folder}/{part.group.group}/{start}") for start in starts)


# in a task: the search


def _search(task: _Searching) -> list[int] | None:
    """How many cells would differ, a feature each; None to hand the group back."""
    found = _found(task.spine.read([*task.part.group.keys, EVENT_TIME]), task)
    if found is None:
        return None
    try:
        return _write_answers(task, found)
    except (pa.ArrowInvalid, pa.ArrowCapacityError):
        return None


class _Found(NamedTuple):
    """Of each spine row the number of the row that answers, -1 for none, of the one that would by the other rule of
    `known_by`, and whether they differ."""

    chosen: Array
    would: Array
    differ: Array


def _found(points: pa.Table, task: _Searching) -> _Found | None:
    """None where an answer has a twin."""
    group = task.part.group
    keys = [points.column(key).cast(task.part.files.schema.field(key).type) for key in group.keys]
    codes, coded = _coder(keys)
    at = micros_of(points.column(EVENT_TIME))
    asking = np.flatnonzero((codes >= 0) & (at > LEAST))
    search = Search(len(group.keys), (group.ttl_us,), task.rules.strict, task.rules.known_by == "spine", ())
    slim = _slim(task.part, _span_of(keys[0]), coded, int(codes.max(initial=0)) + 1)
    slim.put(codes[asking], _packed(at[asking], search.point), np.zeros(len(asking), np.int64), asking)
    found = _Found(np.full(len(points), -1), np.full(len(points), -1), np.zeros(len(points), bool))
    for entity, packed, created, numbers in slim.by_entities():
        rows = in_order(entity, packed, created, search)
        is_point, number = rows.tag == search.point, numbers[rows.order]
        told = answers(rows, np.flatnonzero(is_point), np.flatnonzero(~is_point), group.ttl_us, search)
        if told.twin.any():
            return None
        asked = number[is_point]
        for result, of in ((found.chosen, told.chosen), (found.would, told.would)):
            result[asked[of.there]] = number[of.place[of.there]]
        found.differ[asked] = told.differ
    return found


class _Slim:
    """Rows and points: entity, time and tag, created_time, and each one's number among all of its kind.

    They come in parts, and are given back by entities: so few at a time that no step leaves the processor's caches.
    """

    def __init__(self, entities: int) -> None:
        self._shift = max(entities.bit_length() - 8, 0)
        self._parts: list[tuple[Array, ...]] = []
        self._ends: list[Array] = []

    def put(self, entity: Array, packed: Array, created: Array, number: Array) -> None:
        """Keep a part, ordered by 256 ranges of entities: bytes are sorted the fastest."""
        ranges = (entity >> self._shift).astype(np.uint8)
        order = np.argsort(ranges, kind="stable")
        columns = (entity.astype(np.int32), packed, created, number.astype(np.int32))
        self._parts.append(tuple(values[order] for values in columns))
        self._ends.append(np.cumsum(np.bincount(ranges, minlength=256)))

    def by_entities(self) -> Iterator[tuple[Array, ...]]:
        ends = np.array(self._ends)
        starts = np.hstack([np.zeros((len(ends), 1), np.int64), ends[:, :-1]])
        filled = np.cumsum((ends - starts).sum(axis=0)) // _IN_CACHES
        last = np.flatnonzero(np.diff(filled, append=-1))
        for first, until in zip(starts.T[[0, *(last[:-1] + 1)]], ends.T[last], strict=True):
            spans = zip(self._parts, first.tolist(), until.tolist(), strict=True)
            found = [[values[low:high] for values in part] for part, low, high in spans if low < high]
            if found:
                yield tuple(np.concatenate(column) for column in zip(*found, strict=True))


def _slim(
    part: GroupFiles,
    first_key: _Span | None,
    coded: Callable[[Sequence[pa.ChunkedArray]], Array],
    entities: int,
) -> _Slim:
    """The rows that may answer, read row group by row group."""
    group, schema = part.group, part.files.schema
    hidden = [REJECTED] if REJECTED in schema.names else []
    slim = _Slim(entities)
    for rows in part.files.row_groups():
        if not _may_hold(rows, part, first_key):
            continue
        found = rows.read([*group.keys, EVENT_TIME, CREATED_TIME, *hidden])
        entity, time = coded([found.column(key) for key in group.keys]), micros_of(found.column(EVENT_TIME))
        may = (entity >= 0) & (time > LEAST) & (time <= part.until_us)
        if part.after_us is not None:
            may &= time > part.after_us
        if hidden:
            may &= found.column(REJECTED).is_null().to_numpy()
        kept = np.flatnonzero(may)
        created = micros_of(found.column(CREATED_TIME))[kept]
        slim.put(entity[kept], _packed(time[kept], tag_of(0)), created, kept + rows.start)
    return slim


def _packed(time: Array, tag: int) -> Array:
    if len(time) and max(-int(time.min()), int(time.max())) >= _FARTHEST:
        raise OverflowError(f"a time beyond {_FARTHEST} microseconds from 1970")
    return time * TAGS + tag


def _span_of(keys: pa.ChunkedArray) -> _Span | None:
    """The least and the greatest key; None of a type whose bounds in a file are not those of its values."""
    if not (pa.types.is_integer(keys.type) or pa.types.is_string(keys.type)):
        return None
    try:
        found = pc.min_max(keys).as_py()
    except UnicodeDecodeError:  # bytes that Spark takes for text
        return None
    return None if found["min"] is None else (found["min"], found["max"])


def _may_hold(rows: RowGroup, part: GroupFiles, first_key: _Span | None) -> bool:
    times, keys = rows.bounds(EVENT_TIME), rows.bounds(part.group.keys[0]) if first_key else None
    if keys is not None and first_key is not None and (keys[0] > first_key[1] or keys[1] < first_key[0]):
        return False
    return times is None or may_hold(*map(micros, times), after_us=part.after_us, until_us=part.until_us)


def _coder(columns: Sequence[pa.ChunkedArray]) -> tuple[Array, Callable[[Sequence[pa.ChunkedArray]], Array]]:
    """Numbers of these rows' entities, and what gives other rows' entities the same; -1 is none of them."""
    first, *others = columns
    look_up_first, look_ups = _look_up(pc.unique(first).drop_null()), []
    own = look_up_first(first)
    for column in others:
        values = pc.unique(column).drop_null()
        look_up, count = _look_up(values), len(values)
        pairs = _pairs(own, look_up(column), count)
        look_up_pair = _look_up(pc.unique(pa.array(pairs[pairs >= 0])))
        own = look_up_pair(pa.chunked_array([pairs]))
        look_ups.append((look_up, count, look_up_pair))

    def coded(columns: Sequence[pa.ChunkedArray]) -> Array:
        found = look_up_first(columns[0])
        for column, (look_up, count, look_up_pair) in zip(columns[1:], look_ups, strict=True):
            found = look_up_pair(pa.chunked_array([_pairs(found, look_up(column), count)]))
        return found

    return own, coded


def _pairs(codes: Array, others: Array, count: int) -> Array:
    """One number for two, the second below a count."""
    return np.where((codes < 0) | (others < 0), -1, codes * count + others)


def _look_up(values: pa.Array) -> Callable[[pa.ChunkedArray], Array]:
    """The places of values among these, -1 for none. Whole numbers are in order, as a table's rows are, and those that
    lie close are looked up without a hash."""
    if not pa.types.is_integer(values.type) or not len(values):
        return lambda column: _index_in(column, values)
    values = values.take(pc.sort_indices(values))
    numbers = values.to_numpy().astype(np.int64)
    least, span = int(numbers.min()), int(numbers.max()) - int(numbers.min())
    if span >= _SPARSE * len(numbers):
        return lambda column: _index_in(column, values)
    places = np.full(span + 2, -1)
    places[numbers - least] = np.arange(len(numbers))

    def looked_up(column: pa.ChunkedArray) -> Array:
        away = pc.fill_null(column, least).to_numpy().astype(np.int64) - least
        away = np.minimum(away.view(np.uint64), span + 1).view(np.int64)  # below zero is far beyond
        if column.null_count:
            away[column.is_null().to_numpy()] = span + 1
        found: Array = places[away]
        return found

    return looked_up


def _index_in(column: pa.ChunkedArray, values: pa.Array) -> Array:
    return pc.fill_null(pc.index_in(column, value_set=values), -1).to_numpy().astype(np.int64)


# in a task: the features of the rows that were found


def _write_answers(task: _Searching, found: _Found) -> list[int]:
    """Write the features of the chosen rows in the spine's order, and count the cells that would differ."""
    differ = np.flatnonzero(found.differ)
    chosen, would = found.chosen, found.would[differ]
    is_wanted = np.zeros(max(chosen.max(initial=-1), would.max(initial=-1)) + 1, bool)
    for numbers in (chosen, would):
        is_wanted[numbers[numbers >= 0]] = True
    wanted, places = np.flatnonzero(is_wanted), np.cumsum(is_wanted, dtype=np.int32) - 1
    place, others = (
        pa.array(places[numbers] if len(places) else numbers, mask=numbers < 0) for numbers in (chosen, would)
    )
    leaks = []
    for block in task.blocks:
        names = [feature for feature, _ in block.columns]
        values = _values(task.part.files, names, wanted)
        first = 0
        for number, count in enumerate(task.counts):
            _write(block.file(number), values, place.slice(first, count), task.piece)
            first += count
        if len(differ):
            ours, theirs = values.take(place.take(pa.array(differ))), values.take(others)
            leaks += [int(np.count_nonzero(~_same(ours[name], theirs[name]))) for name in names]
    return leaks or [0] * len(task.part.group.columns)


def _values(files: FileRows, names: Sequence[str], wanted: Array) -> pa.Table:
    """These columns of the rows of these numbers, which are in order."""
    parts = []
    for rows in files.row_groups():
        low, high = np.searchsorted(wanted, [rows.start, rows.start + rows.rows])
        if low < high:
            parts.append(rows.read(names).take(pa.array(wanted[low:high] - rows.start)))
    return pa.concat_tables(parts).combine_chunks() if parts else files.columns(names).empty_table()


def _write(path: Path, values: pa.Table, place: pa.Array, piece: int) -> None:
    with (
        made_whole(path) as draft,
        pa.OSFile(str(draft), "wb") as sink,
        pa.ipc.new_file(sink, values.schema) as writer,
    ):
        for start in range(0, len(place), piece):
            (batch,) = values.take(place.slice(start, piece)).combine_chunks().to_batches()
            writer.write_batch(batch)


def _same(left: pa.ChunkedArray, right: pa.ChunkedArray) -> Array:
    """Where two columns hold the same, as Spark's <=> says: null is null, and what is no number is no number."""
    if pa.types.is_list(left.type):
        return _same_lists(left.combine_chunks(), right.combine_chunks())
    same = pc.fill_null(pc.equal(left, right), False)
    if pa.types.is_floating(left.type):
        same = pc.or_(same, pc.fill_null(pc.and_(pc.is_nan(left), pc.is_nan(right)), False))
    both_null = pc.and_(left.is_null(), right.is_null())
    found: Array = pc.or_(same, both_null).to_numpy(zero_copy_only=False)
    return found


def _same_lists(left: pa.Array, right: pa.Array) -> Array:
    sizes = [pc.fill_null(pc.list_value_length(column), -1).to_numpy() for column in (left, right)]
    same = sizes[0] == sizes[1]
    alike = pa.array(same)
    elements = _same(*(pa.chunked_array([column.filter(alike).flatten()]) for column in (left, right)))
    ends = np.cumsum(np.maximum(sizes[0][same], 0))
    others = np.concatenate([[0], np.cumsum(~elements)])
    same[same] = others[ends] == others[np.concatenate([[0], ends[:-1]])] if len(ends) else True
    return same
