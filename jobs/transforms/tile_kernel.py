"""Aggregates on a grid in numpy: what `group_rows(tiles_of(rows))` gives, to the bit, in less time.

    rows -> slim rows (keys, cell, created, values)           Spark; repartitioned by the keys
         -> partition function, on Arrow batches
              chunk of rows -> partial tiles                  sort by (entity, cell), reduce each run; a hot entity's
                                                              many rows are never in memory at once
              partial tiles -> tiles in the order (cell, key) the same reduction
              cell by cell  -> states of every window         one number an entity and state: a tile is added when it
                                                              enters and taken away when it leaves
              100,000 rows  -> features, tile and life columns
         -> rows of the group, each partition in the order (event_time, keys)

Whole numbers are exact, so a window's sum can be made by subtraction. The `rest` of an exact sum is a double: it is
added up again for every window, in the order of cells, as Spark's frame does it. Of a minimum the part that leaves is
kept as the minima of the tiles after each tile, made once for every window's length (van Herk).

Where rows of one tile have a `rest` each, the order of their addition is that of their arrival, here and in Spark.
Where 0.0 and -0.0 meet, -0.0 is the least and 0.0 the greatest; Spark takes the first that arrives.

A partition holds its tiles once (8 bytes a state) and its entities (8 bytes a state and window), besides a chunk.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame
from pyspark.sql.types import StructType

from connectors.table_files import Begun, NewFile
from feature_defs.model import CREATED_TIME, EVENT_TIME, HIDDEN, Aggregate
from jobs.transforms.arrays import GREATEST, LEAST, Array, Partition, encoded
from jobs.transforms.rows import all_quoted
from jobs.transforms.tiles import Measure, TilePlan, group_rows, tiles_of

CHUNK, OUT = 1 << 21, 100_000  # rows that are reduced at once, rows of a batch that is given back
_CELL, _CREATED = f"{HIDDEN}cell", f"{HIDDEN}created"
_INTEGERS, _FLOATS = ("tinyint", "smallint", "int", "bigint"), ("float", "double")
_EXACT = ("high", "middle", "low", "least", "rest")
_FUNCTIONS = ("count", "sum", "avg", "min", "max", "variance", "stddev")
_TYPES = {
    "tinyint": pa.int8(),
    "smallint": pa.int16(),
    "int": pa.int32(),
    "bigint": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
    "timestamp": pa.timestamp("us", tz="UTC"),
}


# what there is to compute


@dataclass(frozen=True)
class Value:
    """A column of the slim rows. `kind` is its Spark type; `here` where only its nulls count, `rows` without any."""

    kind: str
    states: tuple[str, ...]

    @property
    def column(self) -> bool:
        return self.kind != "rows"


State = tuple[int, str]  # a value's number (-1: created_time) and the state's name
_NEWEST: State = (-1, "max")


@dataclass(frozen=True)
class Column:
    """A column of the result: `what` is event_time, created, tile, window (a state over a window) or a function."""

    name: str
    what: str
    kind: str
    value: int = -1
    state: str = ""
    cells: int | None = None


@dataclass(frozen=True)
class Kernel:
    """All that the partition function knows. Cells are numbered by `every`; `lower` and `after` are such numbers."""

    keys: int
    every: int
    until: int
    after: int | None
    lower: int | None
    values: tuple[Value, ...]
    columns: tuple[Column, ...]
    names: tuple[str, ...]

    @property
    def windows(self) -> tuple[tuple[State, int | None], ...]:
        """Every state over every window that a column needs; a value's count says where its other states are null."""
        found: list[tuple[State, int | None]] = []
        for column in self.columns:
            if column.what == "created":
                found.append((_NEWEST, column.cells))
            elif column.what == "window":
                found += [((column.value, column.state), column.cells), ((column.value, "n"), column.cells)]
            elif column.what in _FUNCTIONS:
                names = _states(column.what, column.state == "floating")
                found += [((column.value, name), column.cells) for name in ("n", *names)]
        return tuple(dict.fromkeys(found))


def _states(function: str, floating: bool) -> tuple[str, ...]:
    """The kernel's own names of a measure's states, in the order of its columns."""
    match function:
        case "count":
            return ("n",)
        case "sum":
            return _EXACT if floating else ("s",)
        case "avg":
            return (*_EXACT, "n") if floating else ("s", "n")
        case "min" | "max":
            return (function,)
        case _:
            return ("n", *_EXACT, *(f"square_{name}" for name in _EXACT))


def supports(rows: DataFrame, plan: TilePlan) -> bool:
    """Whether `kernel_rows` can compute the plan; else it is for SQL."""
    if not plan.every or any(m.key or m.name not in _FUNCTIONS for m in plan.measures):
        return False
    if any(window is not None and window < plan.every for _, window in plan.pairs):
        return False
    kinds = _kinds(rows, plan)
    return all(m.name == "count" or kinds[m.value] in (*_INTEGERS, *_FLOATS) for m in plan.measures)


def _kinds(rows: DataFrame, plan: TilePlan) -> dict[str, str]:
    """Each value's type, `rows` for one that is never null and only counted."""
    texts = list(dict.fromkeys(m.value for m in plan.measures))
    schema = rows.selectExpr(*(f"{text} AS `{n}`" for n, text in enumerate(texts))).schema
    counted = {text for text in texts if all(m.name == "count" for m in plan.measures if m.value == text)}
    found = {}
    for text, field in zip(texts, schema.fields, strict=True):
        kind = "here" if field.nullable else "rows"
        found[text] = kind if text in counted else field.dataType.simpleString()
    return found


@dataclass(frozen=True)
class KernelRows:
    """The rows of `group_rows(tiles_of(rows, plan), plan, ...)`, which tasks make of slim rows."""

    slim: DataFrame
    kernel: Kernel
    schema: StructType

    def rows(self) -> DataFrame:
        """For Spark to go on with."""
        return self.slim.mapInArrow(partition_rows(self.kernel), self.schema)

    def written(self, version: Begun) -> list[NewFile]:
        """As files of a table, which the tasks write."""
        rows_of = partition_rows(self.kernel)

        def write(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            for file in version.write(rows_of(batches)):
                yield pa.record_batch({"told": [json.dumps(file.as_plain())]})

        return [NewFile(**json.loads(row["told"])) for row in self.slim.mapInArrow(write, "told string").collect()]


def kernel_rows(rows: DataFrame, plan: TilePlan, *, until_us: int, after_us: int | None = None) -> KernelRows:
    """Of a plan that `supports` says yes to."""
    assert plan.every is not None
    schema = group_rows(tiles_of(rows, plan), plan, until_us=until_us, after_us=after_us).schema
    kinds = _kinds(rows, plan)
    types = {field.name: field.dataType.simpleString() for field in schema.fields}
    kernel = kernel_of(plan, kinds, types, until_us=until_us, after_us=after_us)
    time = f"unix_micros({EVENT_TIME})"
    values = [
        f"{text} AS {HIDDEN}x{n}" if kind != "here" else f"if({text} IS NULL, null, true) AS {HIDDEN}x{n}"
        for n, (text, kind) in enumerate(kinds.items())
        if kind != "rows"
    ]
    cell = f"{time} + pmod(-{time}, {plan.every}L) AS {_CELL}"
    slim = rows.selectExpr(*all_quoted(plan.keys), cell, f"unix_micros({CREATED_TIME}) AS {_CREATED}", *values)
    slim = slim.where(f"{_CELL} <= {until_us}L").repartition(*all_quoted(plan.keys))
    return KernelRows(slim, kernel, schema)


def kernel_of(
    plan: TilePlan, kinds: dict[str, str], types: dict[str, str], *, until_us: int, after_us: int | None
) -> Kernel:
    """The plan as numbers of cells and columns. `kinds` are the values' types, `types` those of the result."""
    every, numbers = plan.every, {text: number for number, text in enumerate(kinds)}
    assert every is not None

    def cells(window: int | None) -> int | None:
        return None if window is None else window // every

    def names(measure: Measure) -> tuple[str, ...]:
        return _states(measure.name, measure.floating)

    columns = [
        Column(EVENT_TIME, EVENT_TIME, "timestamp"),
        Column(CREATED_TIME, "created", "timestamp", cells=cells(plan.longest)),
    ]
    for feature, measure, window in plan.features:
        assert isinstance(feature.expression, Aggregate)
        state, value = "floating" if measure.floating else "", numbers[measure.value]
        columns.append(Column(feature.name, measure.name, types[feature.name], value, state, cells(window)))
    columns.append(Column(_CREATED, "tile", "timestamp", -1, "max"))
    lives = []
    for measure in plan.measures:
        for state, name in zip(names(measure), measure.columns.values(), strict=True):
            columns.append(Column(name, "tile", types[name], numbers[measure.value], state))
    for measure in plan.lasting:
        for state, name in zip(names(measure), measure.columns.values(), strict=True):
            life = f"{HIDDEN}life_{name.removeprefix(HIDDEN)}"
            lives.append(Column(life, "window", types[life], numbers[measure.value], state))
    if lives:
        lives.append(Column(plan.life_columns[0], "created", "timestamp"))
    assert [*plan.keys, *(column.name for column in (*columns, *lives))] == list(types)
    values = tuple(
        Value(kind, tuple(dict.fromkeys(s for m in plan.measures if m.value == text for s in ("n", *names(m)))))
        for text, kind in kinds.items()
    )
    lower = None if after_us is None or plan.longest is None else (after_us - plan.longest) // every
    return Kernel(
        keys=len(plan.keys),
        every=every,
        until=until_us // every,
        after=None if after_us is None else after_us // every,
        lower=lower,
        values=values,
        columns=tuple(columns + lives),
        names=tuple(types),
    )


def partition_rows(kernel: Kernel) -> Partition:
    """The partition function: all rows of its entities in any order -> their rows of the group."""

    def rows_of(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        tiles = _merged_tiles(batches, kernel)
        if tiles is not None:
            yield from _windowed(tiles, kernel)

    return rows_of


# rows -> tiles


@dataclass(frozen=True)
class Tiles:
    """One a (entity, cell). `entities` are the key columns of each entity, `entity` is an index into them."""

    entities: tuple[pa.Array, ...]
    entity: Array
    cell: Array
    states: dict[State, Array]


def _merged_tiles(batches: Iterator[pa.RecordBatch], kernel: Kernel) -> Tiles | None:
    """Partial tiles of each chunk, made one whenever they have doubled."""
    parts: list[Tiles] = []
    held, limit = 0, CHUNK
    for chunk in _chunks(batches):
        parts.append(_tiles_of(chunk, kernel))
        held += len(parts[-1].cell)
        if held > limit:
            parts = [_one(parts)]
            held = len(parts[0].cell)
            limit = max(CHUNK, 2 * held)
    return _one(parts) if parts else None


def _chunks(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    waiting: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        if batch.num_rows:
            waiting.append(batch)
            count += batch.num_rows
        if count >= CHUNK:
            yield pa.Table.from_batches(waiting)
            waiting, count = [], 0
    if waiting:
        yield pa.Table.from_batches(waiting)


def _tiles_of(chunk: pa.Table, kernel: Kernel) -> Tiles:
    columns = [pa.concat_arrays(column.chunks) for column in chunk.columns]
    keys, clocks, rest = columns[: kernel.keys], columns[kernel.keys : kernel.keys + 2], columns[kernel.keys + 2 :]
    entity, entities = encoded(keys)
    cell = clocks[0].to_numpy() // kernel.every
    old = None
    if kernel.lower is not None and cell.min() <= kernel.lower:
        # such rows only say that the entity was there
        old = cell <= kernel.lower
        cell = np.maximum(cell, kernel.lower)
    order, starts = _runs(entity, cell)
    states: dict[State, Array] = {}
    newest = _filled(clocks[1], old, LEAST)[0]
    states[_NEWEST] = np.maximum.reduceat(newest[order], starts)
    arrays = iter(rest)
    for number, value in enumerate(kernel.values):
        column = next(arrays) if value.column else None
        for state, found in _value_states(value, column, old, order, starts):
            states[number, state] = found
    first = order[starts]
    return Tiles(entities, entity[first], cell[first], states)


def _filled(column: pa.Array, old: Array | None, empty: int = 0) -> tuple[Array, Array | None]:
    """The numbers of a column, and which of its rows count; None when all do."""
    here = None
    if column.null_count:
        here = pc.is_valid(column).to_numpy(zero_copy_only=False)
        column = pc.fill_null(column, pa.scalar(empty).cast(column.type))
    numbers = column.to_numpy(zero_copy_only=False)
    if old is not None:
        here = ~old if here is None else here & ~old
        numbers = np.where(old, np.array(empty, numbers.dtype), numbers)
    return numbers, here


def _value_states(
    value: Value, column: pa.Array | None, old: Array | None, order: Array, starts: Array
) -> Iterator[tuple[str, Array]]:
    """A value's states in each run of the sorted rows."""
    lengths = np.diff(starts, append=len(order))
    if column is None:
        here = None if old is None else ~old
    elif value.kind == "here":
        _, here = _filled(pc.cast(column, pa.int8()), old)
    else:
        numbers, here = _filled(column, old)
        numbers = numbers[order]
    if here is not None:
        here = here[order]
    yield "n", lengths if here is None else np.add.reduceat(here.astype(np.int64), starts)
    if "s" in value.states:
        yield "s", added(numbers.astype(np.int64), starts)
    if "min" in value.states or "max" in value.states:
        ranks = ranked(numbers)
        for state, least in (("min", True), ("max", False)):
            if state in value.states:
                empty = GREATEST if least else LEAST
                counted = ranks if here is None else np.where(here, ranks, empty)
                yield state, (np.minimum if least else np.maximum).reduceat(counted, starts)
    for prefix in ("", "square_"):
        if f"{prefix}high" in value.states:
            double = numbers.astype(np.float64)
            with np.errstate(over="ignore", invalid="ignore"):
                parts = exact(double * double if prefix else double)
            for name, part in zip(_EXACT, parts, strict=True):
                yield prefix + name, _reduced(part, starts)


def _reduced(part: Array | None, starts: Array) -> Array:
    if part is None:
        return np.zeros(len(starts), np.int64)
    with np.errstate(over="ignore", invalid="ignore"):
        return added(part, starts) if part.dtype == np.int64 else np.add.reduceat(part, starts)


def exact(x: Array) -> tuple[Array | None, ...]:
    """The five parts of `aggregates._exact`, None for one that is 0 in every row.

    A quotient by a power of two, its whole part and what is left are exact: the remainders that SQL's % gives.
    """
    small = np.abs(x) < 2.0**58
    beyond = None
    if not small.all():
        beyond = np.where(small, 0.0, x)
        x = np.where(small, x, 0.0)
    parts: list[Array | None] = []
    for size in (2.0**28, 2.0**-4, 2.0**-36, 2.0**-68):
        if not x.any():
            parts.append(None)
            continue
        whole = np.trunc(x * (1 / size))
        x = x - whole * size
        parts.append(whole.astype(np.int64))
    rest = x if x.any() else None
    if beyond is not None:
        rest = beyond if rest is None else rest + beyond
    return (*parts, rest)


def added(values: Array, starts: Array) -> Array:
    """Sums of runs of whole numbers; OverflowError when one is none of 64 bits, as Spark's sum raises."""
    total = np.add.reduceat(values, starts)
    longest = int(np.diff(starts, append=len(values)).max())
    if longest > 1 and max(int(values.max()), -int(values.min())) * longest > GREATEST:
        _check_sums(total, np.add.reduceat(values.astype(np.float64), starts))
    return total


def _check_sums(total: Array, nearly: Array) -> None:
    """A sum that wrapped is 2^64 away from the sum of doubles."""
    if (np.abs(total.astype(np.float64) - nearly) > 2.0**62).any():
        raise OverflowError("[ARITHMETIC_OVERFLOW] the sum of an aggregate does not fit bigint. SQLSTATE: 22003")


def ranked(numbers: Array) -> Array:
    """Numbers as 64-bit integers of the same order: -0.0 before 0.0, NaN the greatest."""
    if numbers.dtype.kind != "f":
        return numbers.astype(np.int64, copy=False)
    missing = np.isnan(numbers)
    if missing.any():
        numbers = np.where(missing, np.array(np.nan, numbers.dtype), numbers)
    kind = np.int64 if numbers.dtype == np.float64 else np.int32
    return _turned(np.ascontiguousarray(numbers).view(kind)).astype(np.int64, copy=False)


def unranked(ranks: Array, kind: str) -> Array:
    """The numbers again, as the Spark type."""
    if kind == "double":
        return _turned(ranks).view(np.float64)
    if kind == "float":
        return _turned(ranks.astype(np.int32)).view(np.float32)
    return ranks.astype(_TYPES[kind].to_pandas_dtype(), copy=False)


def _turned(bits: Array) -> Array:
    """Of negative numbers all bits but the sign's turned over; its own inverse."""
    return bits ^ ((bits >> (bits.itemsize * 8 - 1)) & np.iinfo(bits.dtype).max)


def _runs(major: Array, minor: Array) -> tuple[Array, Array]:
    """The order of rows by (major, minor), then of arrival, and where each run of equal ones begins."""
    low = int(minor.min())
    width = int(minor.max()) - low + 1
    code = major * width + (minor - low)
    bits = len(code).bit_length()
    if (int(major.max()) + 1) * width < 1 << (63 - bits):
        # sorting numbers that carry their place is several times faster than sorting places
        packed = np.sort((code << bits) | np.arange(len(code)))
        order, code = packed & ((1 << bits) - 1), packed >> bits
    else:
        order = np.argsort(code, kind="stable")
        code = code[order]
    return order, np.flatnonzero(np.concatenate(([True], code[1:] != code[:-1])))


def _one(parts: Sequence[Tiles]) -> Tiles:
    """Partial tiles as tiles in the order (cell, keys), entities in the order of their keys."""
    offsets = np.cumsum([0, *(len(part.entities[0]) for part in parts)])
    keys = [pa.concat_arrays([part.entities[n] for part in parts]) for n in range(len(parts[0].entities))]
    code, entities = encoded(keys)
    by = pa.table(list(entities), names=[str(n) for n in range(len(entities))])
    ascending = pc.sort_indices(by, sort_keys=[(name, "ascending") for name in by.column_names])
    rank = np.empty(len(ascending), np.int64)
    rank[ascending.to_numpy()] = np.arange(len(ascending))
    entity = np.concatenate([rank[code[part.entity + at]] for part, at in zip(parts, offsets, strict=False)])
    cell = np.concatenate([part.cell for part in parts])
    order, starts = _runs(cell - cell.min(), entity)
    first = order[starts]
    states = {}
    for state in parts[0].states:
        values = np.concatenate([part.states[state] for part in parts])[order]
        if len(parts) > 1:
            match _joining(state):
                case "min":
                    values = np.minimum.reduceat(values, starts)
                case "max":
                    values = np.maximum.reduceat(values, starts)
                case _:
                    values = _reduced(values, starts)
        states[state] = values
    return Tiles(tuple(key.take(ascending) for key in entities), entity[first], cell[first], states)


def _joining(state: State) -> str:
    return state[1] if state[1] in ("min", "max") else "rest" if state[1].endswith("rest") else "sum"


# tiles -> states of windows, cell by cell


class _Steps:
    """The tiles by cell: `of` gives a cell's tiles as a slice. Cells are numbered from the first tile's."""

    def __init__(self, tiles: Tiles, last: int) -> None:
        self.first = int(tiles.cell[0])
        self.count = last - self.first + 1
        self.entity = tiles.entity
        self.entities = len(tiles.entities[0])
        self._bounds = np.searchsorted(tiles.cell, np.arange(self.first, last + 2)).tolist()

    def of(self, cell: int) -> slice:
        return slice(self._bounds[cell], self._bounds[cell + 1])


class _Sum:
    """A state of whole numbers over the last `cells`: what enters is added, what leaves is taken away."""

    def __init__(self, steps: _Steps, values: Array, cells: int) -> None:
        self.now = np.zeros(steps.entities, np.int64)
        self._steps, self._values, self._cells = steps, values, cells
        most = max(int(values.max()), -int(values.min()))
        # a window that may overflow is summed a second time, as doubles, that do not wrap
        self._nearly = np.zeros(steps.entities) if most * min(cells, steps.count) > GREATEST else None

    def step(self, cell: int) -> None:
        for at, sign in ((cell, 1), (cell - self._cells, -1)):
            if at < 0:
                continue
            tiles = self._steps.of(at)
            entity, values = self._steps.entity[tiles], self._values[tiles]
            if sign > 0:
                self.now[entity] += values
            else:
                self.now[entity] -= values
            if self._nearly is not None:
                self._nearly[entity] += sign * values.astype(np.float64)
        if self._nearly is not None:
            _check_sums(self.now, self._nearly)


class _Single:
    """A state over one cell: that of its tile."""

    def __init__(self, steps: _Steps, values: Array, empty: int) -> None:
        self.now = np.empty(steps.entities, values.dtype)
        self._steps, self._values, self._empty = steps, values, empty

    def step(self, cell: int) -> None:
        tiles = self._steps.of(cell)
        self.now.fill(self._empty)
        self.now[self._steps.entity[tiles]] = self._values[tiles]


class _Rest:
    """The rest of an exact sum over the last `cells`: added in the order of cells whenever one enters or leaves."""

    def __init__(self, steps: _Steps, values: Array, cells: int) -> None:
        self.now = np.zeros(steps.entities)
        self._steps, self._cells = steps, cells
        some = np.flatnonzero(values)
        self._entity, self._values = steps.entity[some], values[some]
        cell_bounds = [steps.of(cell).start for cell in range(steps.count)] + [len(values)]
        self._bounds = np.searchsorted(some, cell_bounds).tolist()

    def step(self, cell: int) -> None:
        low, high = self._bounds[max(cell - self._cells + 1, 0)], self._bounds[cell + 1]
        left = self._bounds[max(cell - self._cells, 0)]
        with np.errstate(over="ignore", invalid="ignore"):
            if left < low or cell == 0:
                tiles = slice(low, high)
                total = np.bincount(self._entity[tiles], self._values[tiles], minlength=len(self.now))
                self.now = total.astype(np.float64, copy=False)  # of no number at all it is of integers
            elif self._bounds[cell] < high:
                tiles = slice(self._bounds[cell], high)
                self.now[self._entity[tiles]] += self._values[tiles]


class _Extreme:
    """The least or greatest over the last `cells`, as the better of two: of the tiles of this window's length of
    cells so far, and of those of the length before that have not left."""

    def __init__(self, steps: _Steps, values: Array, cells: int, *, least: bool) -> None:
        self._better = np.minimum if least else np.maximum
        self._empty = GREATEST if least else LEAST
        self._steps, self._values, self._cells = steps, values, cells
        self._new = np.full(steps.entities, self._empty, np.int64)
        self._old: Array | None = None
        self._after = self._new[:0]  # of each tile of the length before: the best of its entity's later ones there
        self._start = 0
        self.now = self._new

    def step(self, cell: int) -> None:
        if cell and cell % self._cells == 0:
            self._turn(cell)
        tiles = self._steps.of(cell)
        entity = self._steps.entity[tiles]
        self._new[entity] = self._better(self._new[entity], self._values[tiles])
        if self._old is None:
            self.now = self._new
            return
        left = self._steps.of(cell - self._cells)
        self._old[self._steps.entity[left]] = self._after[left.start - self._start : left.stop - self._start]
        self.now = self._better(self._old, self._new)

    def _turn(self, cell: int) -> None:
        start, stop = self._steps.of(cell - self._cells).start, self._steps.of(cell - 1).stop
        best = np.full(self._steps.entities, self._empty, np.int64)
        self._start, self._after = start, np.empty(stop - start, np.int64)
        for at in range(cell - 1, cell - self._cells - 1, -1):
            tiles = self._steps.of(at)
            entity = self._steps.entity[tiles]
            known = best[entity]
            self._after[tiles.start - start : tiles.stop - start] = known
            best[entity] = self._better(known, self._values[tiles])
        self._old, self._new = best, np.full(self._steps.entities, self._empty, np.int64)


Window = _Sum | _Single | _Rest | _Extreme


def _window(steps: _Steps, state: State, values: Array, cells: int) -> Window:
    kind = _joining(state)
    if cells == 1:
        return _Single(steps, values, {"min": GREATEST, "max": LEAST}.get(kind, 0))
    if kind == "rest":
        return _Rest(steps, values, cells)
    if kind == "sum":
        return _Sum(steps, values, cells)
    return _Extreme(steps, values, cells, least=kind == "min")


def _windowed(tiles: Tiles, kernel: Kernel) -> Iterator[pa.RecordBatch]:
    """Step through the cells; give rows back whenever there are enough."""
    steps = _Steps(tiles, kernel.until)
    states, same = _distinct(tiles.states)
    names: dict[tuple[State, int | None], tuple[State, int]] = {}
    windows: dict[tuple[State, int], Window] = {}
    for state, cells in kernel.windows:
        length = min(cells or steps.count, steps.count)
        names[state, cells] = own = (same[state], length)
        if own not in windows and same[state] in states:
            windows[own] = _window(steps, same[state], states[same[state]], length)
    seen = {same[c.value, c.state] for c in kernel.columns if c.what == "tile"}
    seen |= {same[c.value, "n"] for c in kernel.columns if c.what == "tile" and c.value >= 0}
    shown = [state for state in seen if state in states]
    first = np.full(steps.entities, steps.count, np.int64)
    first[tiles.entity[::-1]] = tiles.cell[::-1] - steps.first
    begin = 0 if kernel.after is None else max(kernel.after + 1 - steps.first, 0)
    result = _Result(kernel, tiles, names, same, list(windows), shown, room=max(OUT, steps.entities))
    for cell in range(steps.count):
        for window in windows.values():
            window.step(cell)
        if cell < begin:
            continue
        active = np.flatnonzero(first <= cell)
        if result.used + len(active) > result.room:
            yield from result.batches()
        result.put(steps, cell, active, windows, states)
    yield from result.batches()


def _distinct(states: dict[State, Array]) -> tuple[dict[State, Array], dict[State, State]]:
    """States without those that are 0 everywhere, and counts that are equal as one: what each state is called."""
    found: dict[State, Array] = {}
    same: dict[State, State] = {}
    for state, values in states.items():
        same[state] = state
        if state[1] == "n":
            same[state] = next((s for s in found if s[1] == "n" and np.array_equal(found[s], values)), state)
        if same[state] == state and (_joining(state) in ("min", "max") or state[1] == "n" or values.any()):
            found[state] = values
    return found, same


# states -> rows


class _Result:
    """Rows that wait to be given back: states of windows and tiles, one array each, filled from the left."""

    def __init__(
        self,
        kernel: Kernel,
        tiles: Tiles,
        names: dict[tuple[State, int | None], tuple[State, int]],
        same: dict[State, State],
        windows: Sequence[tuple[State, int]],
        shown: Sequence[State],
        *,
        room: int,
    ) -> None:
        self.room, self.used = room, 0
        self._kernel, self._keys, self._names, self._same = kernel, tiles.entities, names, same
        self._entity = np.empty(room, np.int64)
        self._time = np.empty(room, np.int64)
        self._here = np.empty(room, bool)
        self._windows = {w: np.empty(room, np.float64 if _joining(w[0]) == "rest" else np.int64) for w in windows}
        self._tiles = {s: np.empty(room, np.float64 if _joining(s) == "rest" else np.int64) for s in shown}

    def put(
        self,
        steps: _Steps,
        cell: int,
        active: Array,
        windows: dict[tuple[State, int], Window],
        states: dict[State, Array],
    ) -> None:
        """The rows of one cell: of every entity that has had a tile."""
        count = len(active)
        rows = slice(self.used, self.used + count)
        everyone = count == steps.entities
        self._entity[rows] = active
        self._time[rows] = (steps.first + cell) * self._kernel.every
        for name, window in windows.items():
            if everyone:
                self._windows[name][rows] = window.now
            else:
                np.take(window.now, active, out=self._windows[name][rows])
        tiles = steps.of(cell)
        places = steps.entity[tiles]
        if not everyone:
            places = np.searchsorted(active, places)
        self._here[rows] = False
        self._here[rows][places] = True
        for state, waiting in self._tiles.items():
            waiting[rows] = 0
            waiting[rows][places] = states[state][tiles]
        self.used += count

    def batches(self) -> Iterator[pa.RecordBatch]:
        for start in range(0, self.used, OUT):
            yield self._batch(slice(start, min(start + OUT, self.used)))
        self.used = 0

    def _batch(self, rows: slice) -> pa.RecordBatch:
        entity = pa.array(self._entity[rows])
        arrays = [key.take(entity) for key in self._keys]
        with np.errstate(all="ignore"):
            arrays += [self._column(column, rows) for column in self._kernel.columns]
        return pa.RecordBatch.from_arrays(arrays, names=list(self._kernel.names))

    def _column(self, column: Column, rows: slice) -> pa.Array:
        match column.what:
            case "event_time":
                return _arrow(self._time[rows], None, column.kind)
            case "created":
                newest = self._of_window(_NEWEST, column.cells, rows)
                return _arrow(newest, newest != LEAST, column.kind)
            case "tile":
                return self._tile(column, rows)
            case "window":
                state = self._of_window((column.value, column.state), column.cells, rows)
                some = None if column.state == "n" else self._of_window((column.value, "n"), column.cells, rows) > 0
                return _arrow(_shown(state, column), some, column.kind)
            case _:
                return self._feature(column, rows)

    def _tile(self, column: Column, rows: slice) -> pa.Array:
        here = self._here[rows]
        own = self._same[column.value, column.state]
        values = self._tiles[own][rows] if own in self._tiles else np.zeros(len(here), np.int64)
        if column.value < 0:
            return _arrow(values, here & (values != LEAST), column.kind)
        if column.state != "n":
            here = here & (self._tiles[self._same[column.value, "n"]][rows] > 0)
        return _arrow(_shown(values, column), here, column.kind)

    def _of_window(self, state: State, cells: int | None, rows: slice) -> Array:
        found = self._windows.get(self._names[state, cells])
        return np.zeros(rows.stop - rows.start, np.int64) if found is None else found[rows]

    def _feature(self, column: Column, rows: slice) -> pa.Array:
        """The value that the table's `finalize` gives, operation by operation."""

        def of(state: str) -> Array:
            return self._of_window((column.value, state), column.cells, rows)

        def total(prefix: str = "") -> Array:
            high, middle, low, least, rest = (of(prefix + name) for name in _EXACT)
            large = high * 2.0**28 + middle * 2.0**-4
            return large + ((low * 2.0**-36 + least * 2.0**-68) + rest)

        n = of("n")
        floating = column.state == "floating"
        match column.what:
            case "count":
                return _arrow(n, None, column.kind)
            case "sum":
                return _arrow(total() if floating else of("s"), n > 0, column.kind)
            case "avg":
                return _arrow((total() if floating else of("s").astype(np.float64)) / n, n > 0, column.kind)
            case "min" | "max":
                return _arrow(unranked(of(column.what), column.kind), n > 0, column.kind)
            case _:
                plain = total()
                squares = total("square_") - plain * (plain / n)
                variance = np.where(squares < 0, 0.0, squares) / (n - 1)
                return _arrow(variance if column.what == "variance" else np.sqrt(variance), n > 1, column.kind)


def _shown(values: Array, column: Column) -> Array:
    """A state as its column has it."""
    return unranked(values, column.kind) if column.state in ("min", "max") else values


def _arrow(values: Array, here: Array | None, kind: str) -> pa.Array:
    """A copy as an Arrow array, null where a row is not `here`."""
    wanted = _TYPES[kind]
    width = np.dtype(np.int64 if kind == "timestamp" else wanted.to_pandas_dtype())
    data = pa.py_buffer(np.array(values, dtype=width))
    bits = None if here is None or here.all() else pa.py_buffer(np.packbits(here, bitorder="little"))
    return pa.Array.from_buffers(wanted, len(values), [bits, data])
