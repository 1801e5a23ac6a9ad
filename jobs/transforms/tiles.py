"""Aggregates over windows of time, built from tiles: partial states per entity and cell, kept with the feature rows.

    rows -> tiles (keys, cell, states)                      one pass; a cell is a step of the grid, or an event's time
         -> rows of the group (keys, cell, features)        states merged over (cell - window, cell]

Every row of the group carries its own tile in columns that begin with HIDDEN, and so the next run needs only new rows
of the source: their tiles are merged with the kept ones, and rows from an entity's first new tile on are made again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, DataType, StructType

from feature_defs import durations
from feature_defs.aggregates import AGGREGATES, MAX, MIN, SUM, AggregateFunction
from feature_defs.model import CREATED_TIME, EVENT_TIME, HIDDEN, Aggregate, Feature, FeatureGroup
from jobs.transforms.rows import after, all_quoted

_CELL, _CREATED, _FROM, _LAST = "_tidemark_cell", "_tidemark_created", "_tidemark_from", "_tidemark_last"
_START, _END, _STEP = "_tidemark_start", "_tidemark_end", "_tidemark_step"
_POINT, _RING = "_tidemark_point", "_tidemark_ring"
_FEW_POINTS = 5  # beyond, one sort for all of them is less work than an aggregate each
_A_SET, _MOST_IN_SET = 11, 1_000
_MOST_CELLS = 300_000  # that a window may have, as a table that each task holds
_ORDER = f"struct({EVENT_TIME}, {CREATED_TIME})"
_FLOATING = ("float", "double")


@dataclass(frozen=True)
class Measure:
    """What an aggregate reads whatever its window. Windows of one measure share its states."""

    name: str
    value: str
    key: str | None
    k: int | None
    floating: bool = False

    @property
    def function(self) -> AggregateFunction:
        row = AGGREGATES[self.name]
        return row.floating if self.floating and row.floating else row

    @property
    def digest(self) -> str:
        """The same for the same meaning, so that columns keep their names when features are added or moved."""
        text = repr((self.name, self.value, self.key, self.k))
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    @property
    def columns(self) -> dict[str, str]:
        """State -> its column in a tile. A keyed measure has one: an array of (k, states) in the order of k."""
        states = ["e"] if self.key else list(self.function.prepare)
        return {state: f"{HIDDEN}{self.digest}_{state}" for state in states}

    def merged(self, column: str, state: str, over: str = "") -> str:
        """The SQL that joins states; a keyed measure's entries are only gathered: `_compacted` joins them."""
        merge = "flatten(collect_list({s}){over})" if self.key else self.function.merge[state]
        return merge.format(s=column, k=self.k, over=over)


def measure_of(aggregate: Aggregate) -> Measure:
    value = f"({aggregate.column if aggregate.column is not None else '1'}\n)"
    if aggregate.where:
        value = f"(CASE WHEN {aggregate.where}\n THEN {value} END)"
    row = AGGREGATES[aggregate.function]
    key = f"cast(({aggregate.by}\n) as string)" if aggregate.by else None
    if row.keyed_by:
        key = row.keyed_by.format(x=value)
    # of k only what a state keeps is part of it: top 3 and top 5 share their counts
    return Measure(aggregate.function, value, key, aggregate.k if "{k}" in "".join(row.merge.values()) else None)


@dataclass(frozen=True)
class TilePlan:
    """A group's aggregates as measures with their windows (microseconds, None for a whole life) and the grid."""

    keys: tuple[str, ...]
    every: int | None
    features: tuple[tuple[Feature, Measure, int | None], ...]

    @property
    def measures(self) -> tuple[Measure, ...]:
        return tuple(dict.fromkeys(measure for _, measure, _ in self.features))

    @property
    def pairs(self) -> tuple[tuple[Measure, int | None], ...]:
        return tuple(dict.fromkeys((measure, window) for _, measure, window in self.features))

    @property
    def longest(self) -> int | None:
        """The longest window, None without a limit: what a row could have read."""
        windows = [window for *_, window in self.features]
        return None if None in windows else max(window for window in windows if window is not None)

    @property
    def farthest(self) -> int:
        """The longest window that ends."""
        return max((window for *_, window in self.features if window is not None), default=0)

    def reach(self, changed_us: int) -> int | None:
        """The oldest kept row that counts when rows from a time on are made again; None when any may."""
        if self.every:
            return changed_us + -changed_us % self.every - max(self.farthest, self.every)
        return None if self.lasting else changed_us - self.farthest

    @property
    def lasting(self) -> tuple[Measure, ...]:
        """Measures over an entity's whole life: a row keeps their state up to it."""
        return tuple(measure for measure, window in self.pairs if window is None)

    @property
    def tile_columns(self) -> tuple[str, ...]:
        return (_CREATED, *(name for measure in self.measures for name in measure.columns.values()))

    @property
    def life_columns(self) -> tuple[str, ...]:
        return tuple(map(_life, _lasting(self)))


def plan_of(rows: DataFrame, group: FeatureGroup, keys: Sequence[str]) -> TilePlan:
    """The group's aggregates; the types of the rows decide which states are needed."""
    found = []
    for feature in group.aggregates:
        assert isinstance(feature.expression, Aggregate)
        measure = measure_of(feature.expression)
        if AGGREGATES[measure.name].floating:
            kind = rows.selectExpr(f"{measure.value} AS x").schema["x"].dataType.simpleString()
            measure = Measure(measure.name, measure.value, measure.key, measure.k, kind in _FLOATING)
        window = durations.microseconds(feature.expression.window) if feature.expression.window else None
        found.append((feature, measure, window))
    return TilePlan(tuple(keys), durations.microseconds(group.every) if group.every else None, tuple(found))


# rows -> tiles


def tiles_of(rows: DataFrame, plan: TilePlan) -> DataFrame:
    """(keys, cell, tile columns) of the cells that have rows. A cell is named by its end, in microseconds."""
    time = f"unix_micros({EVENT_TIME})"
    cell = f"{time} + pmod(-{time}, {plan.every}L)" if plan.every else time
    texts = {text: f"{HIDDEN}x{n}" for n, text in enumerate(_texts(plan))}
    # each value is a column of its own before it is aggregated: a state's text names it several times
    values = [f"{text} AS {name}" for text, name in texts.items()]
    celled = rows.selectExpr(*all_quoted(plan.keys), EVENT_TIME, CREATED_TIME, f"{cell} AS {_CELL}", *values)
    states = [text for measure in plan.measures if not measure.key for text in _prepared(measure, texts)]
    by = [*all_quoted(plan.keys), _CELL]
    tiles = celled.groupBy(*by).agg(F.max(CREATED_TIME).alias(_CREATED), *map(F.expr, states))
    for measure in plan.measures:
        if measure.key:
            tiles = tiles.join(_entries(celled, measure, texts, by), [*plan.keys, _CELL], "left")
    return tiles.select(*by, *plan.tile_columns)


def _texts(plan: TilePlan) -> Iterator[str]:
    for measure in plan.measures:
        yield measure.value
        if measure.key:
            yield measure.key


def _prepared(measure: Measure, texts: dict[str, str]) -> list[str]:
    names = measure.columns if not measure.key else {state: state for state in measure.function.prepare}
    return [
        f"{text.format(x=texts[measure.value], order=_ORDER, k=measure.k)} AS `{names[state]}`"
        for state, text in measure.function.prepare.items()
    ]


def _entries(celled: DataFrame, measure: Measure, texts: dict[str, str], by: Sequence[str]) -> DataFrame:
    """One array a tile of (k, states). Rows are grouped by k first, so that a large tile is never one array of rows."""
    keyed = celled.where(f"{texts[measure.key or '']} IS NOT NULL AND {texts[measure.value]} IS NOT NULL")
    inner = keyed.groupBy(*by, F.col(texts[measure.key or ""]).alias("k")).agg(*map(F.expr, _prepared(measure, texts)))
    entry = F.struct("k", *measure.function.prepare)
    return inner.groupBy(*by).agg(F.array_sort(F.collect_list(entry)).alias(measure.columns["e"]))


# tiles -> rows of the group


def group_rows(tiles: DataFrame, plan: TilePlan, *, until_us: int, after_us: int | None = None) -> DataFrame:
    """The rows that tiles of the whole past give; only those later than `after_us`."""
    lives = _over_already(tiles, plan, until_us).selectExpr("*", *_lives(plan))
    lower = None if after_us is None or plan.longest is None else after_us - plan.longest
    rows = _windowed(lives, plan, until_us=until_us, lower_us=lower)
    return rows if after_us is None else rows.where(F.unix_micros(EVENT_TIME) > after_us)


def advanced_rows(
    kept: DataFrame, added: DataFrame, plan: TilePlan, *, complete_us: int, until_us: int, oldest_us: int, late: bool
) -> DataFrame:
    """The rows that are new, or no longer as in `kept`, when `added` tiles come to a table complete to a time.

    Without `late` tiles and with few new points of a grid, each is an aggregate by itself. Otherwise:

    1 an entity's rows change from its first added tile on; on a grid every entity goes on after `complete_us`
    2 of its kept tiles only those are read that a window from there on can reach, and its life before
    3 tiles of one cell are merged, then windows as ever
    """
    keys = list(plan.keys)
    if (
        plan.every
        and not late
        and 0 < (until_us - complete_us) // plan.every <= _FEW_POINTS
        and (plan.farthest + until_us - complete_us) // plan.every <= _MOST_CELLS
    ):
        points = range(complete_us + plan.every, until_us + 1, plan.every)
        at_points = (_at_point(kept, added, plan, complete_us=complete_us, point_us=point) for point in points)
        return reduce(DataFrame.unionByName, at_points)
    bound = plan.reach(oldest_us)
    near = kept if bound is None else kept.where(after(bound - 1))
    new = _over_already(added, plan, until_us)
    first = new.groupBy(*all_quoted(keys)).agg(F.min(_CELL).alias(_FROM))
    old = _celled(near, plan)
    if plan.every:
        goes_on = F.lit(complete_us + plan.every)
        old = old.join(first, keys, "left").withColumn(_FROM, F.least(F.coalesce(_FROM, goes_on), goes_on))
        first = first.withColumn(_FROM, F.least(_FROM, goes_on))
    else:
        old = old.join(first, keys)
    columns = [*keys, _CELL, _FROM, *plan.tile_columns]
    before = _before(old, plan).selectExpr(*all_quoted([*columns, *plan.life_columns]))
    new = new.join(first, keys).selectExpr(*all_quoted(columns), *_lives(plan))
    rows = _windowed(_one_a_cell(before.unionByName(new), plan), plan, until_us=until_us, lower_us=None)
    return rows.where(F.unix_micros(EVENT_TIME) >= F.col(_FROM)).drop(_FROM)


def _celled(kept: DataFrame, plan: TilePlan) -> DataFrame:
    """The tiles of rows of the table."""
    cell = f"unix_micros({EVENT_TIME}) AS {_CELL}"
    return kept.selectExpr(*all_quoted(plan.keys), cell, *all_quoted([*plan.tile_columns, *plan.life_columns]))


def _over_already(tiles: DataFrame, plan: TilePlan, until_us: int) -> DataFrame:
    """On a grid no tile of a cell that is still going on."""
    return tiles.where(F.col(_CELL) <= until_us) if plan.every else tiles


def _lasting(plan: TilePlan) -> list[str]:
    """The tile columns of which a life is kept."""
    names = [name for measure in plan.lasting for name in measure.columns.values()]
    return [_CREATED, *names] if names else []


def _lives(plan: TilePlan) -> list[str]:
    """Of new tiles, each its own part of a life."""
    return [f"`{name}` AS `{_life(name)}`" for name in _lasting(plan)]


def _before(old: DataFrame, plan: TilePlan) -> DataFrame:
    """The kept tiles that count, `_life` columns being a row's life where it is the last before the first new tile."""
    near = F.col(_CELL) > F.col(_FROM) - plan.farthest
    if not plan.life_columns:
        return old.where(near)
    following = f"lead({_CELL}) OVER (PARTITION BY {', '.join(all_quoted(plan.keys))} ORDER BY {_CELL})"
    last = f"{_CELL} < {_FROM} AND coalesce({following} >= {_FROM}, true) AS {_LAST}"
    counted = old.selectExpr("*", last).where(near | F.col(_LAST) | (F.col(_CELL) >= F.col(_FROM)))
    lives = [
        f"if({_LAST}, `{_life(name)}`, if({_CELL} < {_FROM}, null, `{name}`)) AS `{_life(name)}`"
        for name in _lasting(plan)
    ]
    return counted.selectExpr(*all_quoted([*plan.keys, _CELL, _FROM, *plan.tile_columns]), *lives)


def _one_a_cell(tiles: DataFrame, plan: TilePlan) -> DataFrame:
    """A late row's tile and the kept one of its cell become one."""
    by = [*all_quoted(plan.keys), _CELL]
    merged = [f"max({name}) AS {name}" for name in (_FROM, _CREATED, _life(_CREATED)) if name in tiles.columns]
    states = [
        (measure, state, column)
        for measure in plan.measures
        for state, name in measure.columns.items()
        for column in (name, _life(name))
        if column in tiles.columns
    ]
    merged += [f"{measure.merged(f'`{column}`', state)} AS `{column}`" for measure, state, column in states]
    joined = tiles.groupBy(*by).agg(*map(F.expr, merged))
    return _compacted(joined, [(measure, column) for measure, _, column in states])


def _compacted(rows: DataFrame, columns: Sequence[tuple[Measure, str]]) -> DataFrame:
    """Joined entries of keyed measures as one entry a key, in the order of keys."""
    keyed = {column: measure for measure, column in columns if measure.key}
    if not keyed:
        return rows
    kinds = {column: rows.schema[column].dataType for column in keyed}
    return rows.select(
        *(
            F.expr(_by_key(name, keyed[name], kinds[name])).alias(name) if name in keyed else F.col(f"`{name}`")
            for name in rows.columns
        )
    )


def _by_key(column: str, measure: Measure, kind: DataType) -> str:
    """Sorts the entries once and joins each run of one key: to look for every key among all entries takes the square of
    their number. In a run they stay as they were gathered, since the rest of an exact sum hangs on their order."""
    assert isinstance(kind, ArrayType)
    assert isinstance(kind.elementType, StructType)
    states = []
    for state, merge in measure.function.merge.items():
        values, type_text = f"transform(run, x -> x.e.{state})", kind.elementType[state].dataType.simpleString()
        added = f"if(a IS NULL, v, if(v IS NULL, a, cast(a + v AS {type_text})))"
        joined = {
            SUM: f"aggregate({values}, cast(null AS {type_text}), (a, v) -> {added})",
            MIN: f"array_min({values})",
            MAX: f"array_max({values})",
        }
        states.append(f"'{state}', {joined[merge]}")
    ordered = f"sort_array(transform(`{column}`, (e, i) -> struct(e.k AS k, i AS i, e AS e)))"
    places = "transform(s, (x, i) -> i)"
    firsts = f"filter({places}, i -> NOT (s[i].k <=> get(s, i - 1).k))"
    lasts = f"filter({places}, i -> NOT (s[i].k <=> get(s, i + 1).k))"
    runs = f"zip_with({firsts}, {lasts}, (first, last) -> slice(s, first + 1, last - first + 1))"
    entries = f"transform({runs}, run -> named_struct('k', run[0].k, {', '.join(states)}))"
    return f"transform(array({ordered}), s -> {entries})[0]"


def _windowed(tiles: DataFrame, plan: TilePlan, *, until_us: int, lower_us: int | None) -> DataFrame:
    """(keys, clocks, features, tile and life columns): one row a cell, on a grid also where an entity has no tile."""
    points = _spread(tiles, plan, until_us=until_us, lower_us=lower_us) if plan.every else tiles
    frames = [
        f"{measure.merged(f'`{_read(column, window)}`', state, _over(plan, window))} AS {_merged(number, state)}"
        for number, (measure, window) in enumerate(plan.pairs)
        for state, column in measure.columns.items()
    ]
    created = f"max({_read(_CREATED, plan.longest)}) {_over(plan, plan.longest)} AS {CREATED_TIME}"
    kept = [name for name in (*plan.tile_columns, _FROM) if name in points.columns]
    event_time = f"timestamp_micros({_CELL}) AS {EVENT_TIME}"
    return _valued(points.selectExpr(*all_quoted(plan.keys), event_time, created, *all_quoted(kept), *frames), plan)


def _at_point(kept: DataFrame, new: DataFrame, plan: TilePlan, *, complete_us: int, point_us: int) -> DataFrame:
    """The same for one point of a grid behind what is kept: an aggregate of what its windows reach, and no sort.

    All its windows end in it, so a longer one is a shorter one and a *ring* of cells before that. Which cells there are
    comes as a small table: times are then no part of the code that Spark makes and Java compiles, which took a third of
    an increment, and which is the same now for one day as for the next.
    """
    assert plan.every is not None
    spans = sorted({plan.every, *(window for _, window in plan.pairs if window is not None)})
    # the last cell that is kept, too: every key has a row there, and its life
    count = max(spans[-1], point_us - complete_us + plan.every) // plan.every
    cells = F.broadcast(_cells(kept.sparkSession, spans, complete_us=complete_us, point_us=point_us, count=count))
    columns = all_quoted([*plan.keys, *plan.tile_columns])
    lives = [f"if({_LAST}, `{name}`, null) AS `{name}`" for name in plan.life_columns]
    old = _celled(kept.where(_among(complete_us, plan.every, point_us - count * plan.every)), plan)
    old = old.join(cells, _CELL).selectExpr(*columns, _POINT, _RING, *lives)
    tiles = old.unionByName(new.join(cells, _CELL).selectExpr(*columns, _POINT, _RING, *_lives(plan)))

    def inside(column: str, window: int | None) -> str:
        read = f"`{_read(column, window)}`"
        return read if window is None else f"if({_RING} <= {spans.index(window)}, {read}, null)"

    frames = [
        f"{measure.merged(inside(column, window), state)} AS {_merged(number, state)}"
        for number, (measure, window) in enumerate(plan.pairs)
        for state, column in measure.columns.items()
    ]
    own = [f"any_value({inside(name, plan.every)}, true) AS `{name}`" for name in plan.tile_columns]
    clocks = [
        f"timestamp_micros(max({_POINT})) AS {EVENT_TIME}",
        f"max({inside(_CREATED, plan.longest)}) AS {CREATED_TIME}",
    ]
    return _valued(tiles.groupBy(*all_quoted(plan.keys)).agg(*map(F.expr, [*clocks, *own, *frames])), plan)


def _cells(spark: SparkSession, spans: Sequence[int], *, complete_us: int, point_us: int, count: int) -> DataFrame:
    """(cell, point, ring, last) of the `count` cells up to a point. `last` is the last that is kept."""
    every = spans[0]
    cell = f"{point_us}L - id * {every}L"
    rings = " ".join(f"WHEN id < {span // every}L THEN {number}" for number, span in enumerate(spans))
    return spark.range(count).selectExpr(
        f"{cell} AS {_CELL}",
        f"{cell} + id * {every}L AS {_POINT}",  # by no constant, which Spark would put into its code in its place
        f"CASE {rings} ELSE {len(spans)} END AS {_RING}",
        f"{cell} = {complete_us}L AS {_LAST}",
    )


def _among(complete_us: int, every: int, after_us: int) -> Column:
    """Which rows of a table are of cells in (after, complete].

    Of more than ten times Spark makes a set, by which it skips files and pages as by a bound, and which is no part of
    its code either: so a short list goes on, to cells that the table does not have yet.
    """
    count = max((complete_us - after_us) // every, _A_SET)
    if count > _MOST_IN_SET:
        return after(after_us)
    times = (f"timestamp_micros({after_us + number * every})" for number in range(1, count + 1))
    return F.expr(f"{EVENT_TIME} IN ({', '.join(times)})")


def _read(column: str, window: int | None) -> str:
    return _life(column) if window is None else column


def _merged(number: int, state: str) -> str:
    """The column of a window's state."""
    return f"{HIDDEN}w{number}_{state}"


def _valued(merged: DataFrame, plan: TilePlan) -> DataFrame:
    """Features, and what is kept, from the merged states of each window."""
    numbers = {pair: number for number, pair in enumerate(plan.pairs)}
    states = [
        (measure, _merged(number, state)) for (measure, _), number in numbers.items() for state in measure.columns
    ]
    kept = [name for name in (*plan.tile_columns, _FROM) if name in merged.columns]
    lives = [
        f"{_merged(numbers[measure, None], state)} AS `{_life(column)}`"
        for measure in plan.lasting
        for state, column in measure.columns.items()
    ]
    if lives:
        lives.append(f"{CREATED_TIME} AS {_life(_CREATED)}")
    values = [
        f"{_value(measure, feature, numbers[measure, window])} AS `{feature.name}`"
        for feature, measure, window in plan.features
    ]
    return _compacted(merged, states).selectExpr(
        *all_quoted(plan.keys), EVENT_TIME, CREATED_TIME, *values, *all_quoted(kept), *lives
    )


def _value(measure: Measure, feature: Feature, number: int) -> str:
    aggregate = feature.expression
    assert isinstance(aggregate, Aggregate)
    states = {state: _merged(number, state) for state in measure.columns}
    finalize, numbers = measure.function.finalize, {"k": aggregate.k, "q": aggregate.q}
    if not measure.key:
        return finalize.format(**states, **numbers)
    entries = states["e"]
    if measure.function.keyed_by:
        value = finalize.format(e=entries, **numbers)
    else:
        inner = finalize.format(**{state: f"x.{state}" for state in measure.function.prepare}, **numbers)
        value = f"map_from_entries(transform({entries}, x -> struct(x.k, {inner})))"
    return f"if(size({entries}) > 0, {value}, null)"


def _over(plan: TilePlan, window: int | None) -> str:
    """A frame of every tile in (cell - window, cell]."""
    start = "UNBOUNDED" if window is None else f"{window - (plan.every or 1)}L"
    partition = ", ".join(all_quoted(plan.keys))
    return f" OVER (PARTITION BY {partition} ORDER BY {_CELL} RANGE BETWEEN {start} PRECEDING AND CURRENT ROW)"


def _spread(tiles: DataFrame, plan: TilePlan, *, until_us: int, lower_us: int | None) -> DataFrame:
    """Each tile at its own cell and, empty, at every cell before the entity's next; none up to `lower_us`."""
    every = plan.every
    assert every is not None
    following = f"lead({_CELL}) OVER (PARTITION BY {', '.join(all_quoted(plan.keys))} ORDER BY {_CELL})"
    start = _CELL
    if lower_us is not None:
        start = f"if({_CELL} > {lower_us}L, {_CELL}, {lower_us}L + {every}L - pmod({lower_us}L - {_CELL}, {every}L))"
    spans = tiles.selectExpr(
        "*", f"{start} AS {_START}", f"coalesce({following}, {until_us + every}L) - {every}L AS {_END}"
    ).where(f"{_START} <= {_END}")
    values = [name for name in tiles.columns if name not in (*plan.keys, _CELL, _FROM)]
    stepped = spans.selectExpr("*", f"explode(sequence({_START}, {_END}, {every}L)) AS {_STEP}")
    return stepped.selectExpr(
        *all_quoted(plan.keys),
        f"{_STEP} AS {_CELL}",
        *(name for name in (_FROM,) if name in tiles.columns),
        *(f"if({_STEP} = {_CELL}, `{name}`, null) AS `{name}`" for name in values),
    )


def _life(column: str) -> str:
    return f"{HIDDEN}life_{column.removeprefix(HIDDEN)}"
