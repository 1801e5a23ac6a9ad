"""The as-of of many spine rows: locate each group's row in slim columns, then fetch only the rows that were found.

    spine, a number a row                                      written once
    slim rows of all groups of an entity, and the spine's      (keys, packed, other): one shuffle for all groups
         -> partition function                                 `locate_kernel`
    located: number, keys, clocks of each group's row          written once
    wide rows  join  located                                   by one number of (keys, clocks), located being broadcast:
                                                               wide rows that answer nothing are never shuffled
    spine  left join  the fetched rows of each group           by the number of the row

What a caller keeps between two steps it gives to `keep`; the numbers of rows must not change from one reading of the
spine to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

from pyspark.sql import Column, DataFrame, Observation
from pyspark.sql import functions as F
from pyspark.sql.types import BooleanType, LongType, StructField, StructType

from feature_defs.expressions import quoted
from feature_defs.join_plan import GroupJoin, JoinPlan, TimeRules
from feature_defs.model import CREATED_TIME, EVENT_TIME
from jobs.transforms.arrays import LEAST
from jobs.transforms.locate_kernel import MOST_GROUPS, TAGS, Search, partition_points, tag_of
from jobs.transforms.maps import entries_of, maps_again
from jobs.transforms.row_hash import cell_hashes
from jobs.transforms.rows import after, all_quoted, utc

ROW = "_tidemark_row"  # the number of a spine row
_PACKED, _OTHER, _HASH, _TIME, _CREATED, _SEEN = (
    f"_tidemark_{name}" for name in ("packed", "other", "hash", "time", "made", "seen")
)
# of each group: the clocks of the row that answers, those of the row that would by the other rule, and two flags
_COLUMNS = {
    "time": LongType(), "created": LongType(), "would_time": LongType(), "would_created": LongType(),
    "differs": BooleanType(), "twin": BooleanType(),
}  # fmt: skip
_BROADCAST = 2_000_000  # rows of about 100 bytes; more are shuffled, with the wide rows
_MOST_SEEN = 20_000  # spine rows of which the driver is told

Keep = Callable[[DataFrame, Sequence[Column]], tuple[DataFrame, Mapping[str, Any]]]
"""Keeps rows, and tells what these aggregates of them are."""


@dataclass(frozen=True)
class Located:
    """Where the rows are that answer some groups of one entity: `found[i]` tells of `groups[i]`."""

    rows: DataFrame
    groups: tuple[GroupJoin, ...]
    found: tuple[Found, ...]


@dataclass(frozen=True)
class Found:
    """Of one group: spine rows with an answer, those that rows created later decide, the span of the answers."""

    rows: int
    differs: int
    twins: int
    oldest_us: int
    newest_us: int


def numbered(spine: DataFrame) -> DataFrame:
    return spine.withColumn(ROW, F.monotonically_increasing_id())


def located(
    spine: DataFrame, tables: Mapping[str, DataFrame], plan: JoinPlan, *, keep: Keep, span: Mapping[str, Column]
) -> list[Located]:
    """The answers' clocks, entity by entity. `span` is the condition on event_time that a group's rows must meet."""
    found = []
    for groups in _by_keys(plan.groups):
        told = [metric for n in range(len(groups)) for metric in _metrics(n)]
        rows, counts = keep(_clocks(spine, tables, groups, plan.rules, span), told)
        parts = [
            Found(*(counts[f"{name}_{n}"] or 0 for name in Found.__dataclass_fields__)) for n in range(len(groups))
        ]
        found.append(Located(rows, groups, tuple(parts)))
    return found


def _by_keys(groups: Sequence[GroupJoin]) -> list[tuple[GroupJoin, ...]]:
    """Groups that one shuffle serves."""
    by_keys: dict[tuple[tuple[str, ...], tuple[str, ...]], list[GroupJoin]] = {}
    for group in groups:
        by_keys.setdefault((group.keys, group.key_types), []).append(group)
    return [
        tuple(same[start : start + MOST_GROUPS])
        for same in by_keys.values()
        for start in range(0, len(same), MOST_GROUPS)
    ]


def _metrics(n: int) -> list[Column]:
    def of(column: str) -> Column:
        return F.col(_name(column, n))

    return [
        F.count(of("time")).alias(f"rows_{n}"),
        F.count(of("differs")).alias(f"differs_{n}"),
        F.count(of("twin")).alias(f"twins_{n}"),
        F.min(F.least(of("time"), of("would_time"))).alias(f"oldest_us_{n}"),
        F.max(F.greatest(of("time"), of("would_time"))).alias(f"newest_us_{n}"),
    ]


def _clocks(
    spine: DataFrame,
    tables: Mapping[str, DataFrame],
    groups: Sequence[GroupJoin],
    rules: TimeRules,
    span: Mapping[str, Column],
) -> DataFrame:
    keys = groups[0].keys
    fields = [StructField(ROW, LongType()), *(tables[groups[0].group].schema[key] for key in keys)]
    fields += [StructField(_name(column, n), kind) for n in range(len(groups)) for column, kind in _COLUMNS.items()]
    schema = StructType(fields)
    ttls, known_by_spine = tuple(group.ttl_us for group in groups), rules.known_by == "spine"
    search = Search(len(keys), ttls, rules.strict, known_by_spine, tuple(schema.names))
    points = spine.select(
        *(F.col(key).cast(schema[key].dataType).alias(key) for key in keys),
        _packed(utc(F.col(EVENT_TIME), spine.schema[EVENT_TIME].dataType), search.point),
        F.col(ROW).alias(_OTHER),
    )
    slim = [
        tables[group.group]
        .where(span[group.group])
        .select(*keys, _packed(F.col(EVENT_TIME), tag_of(n)), F.unix_micros(CREATED_TIME).alias(_OTHER))
        for n, group in enumerate(groups)
    ]
    together = reduce(DataFrame.unionAll, slim, points).dropna(subset=[*keys, _PACKED])
    return together.repartition(*keys).mapInArrow(partition_points(search), schema)


def _name(column: str, n: int) -> str:
    return f"_tidemark_{column}_{n}"


def _packed(time: Column, tag: int) -> Column:
    return (F.unix_micros(time) * F.lit(TAGS) + F.lit(tag)).alias(_PACKED)


# located -> values


@dataclass(frozen=True)
class Leaks:
    """Of one group's features, the cells that the other rule of `known_by` would fill otherwise.

    Few are looked at in the pass that fetches: `seen`, hashes of both rows' values. More are counted by a query, or
    were `counted` before.
    """

    outputs: tuple[str, ...]
    counted: tuple[int, ...] = ()
    seen: Observation | None = None
    query: DataFrame | None = None

    def counts(self) -> dict[str, int]:
        """How many for each output; of what was seen only after the fetched rows were written."""
        if self.counted:
            return dict(zip(self.outputs, self.counted, strict=True))
        if self.query is not None:
            return dict(self.query.collect()[0].asDict())
        assert self.seen is not None
        found = {row[ROW]: list(row["hashes"]) for row in self.seen.get["seen"]}
        none = [None] * len(self.outputs)
        pairs = [(found.get(row, none), found.get(-1 - row, none)) for row in {max(row, -1 - row) for row in found}]
        return {output: sum(ours[i] != theirs[i] for ours, theirs in pairs) for i, output in enumerate(self.outputs)}


def fetched(
    spine: DataFrame, tables: Mapping[str, DataFrame], found: Sequence[Located]
) -> tuple[DataFrame, tuple[Leaks, ...]]:
    """The numbered rows with the outputs of the groups that were located behind; and what there is to tell of leaks."""
    leaks = []
    for part in found:
        for n, group in enumerate(part.groups):
            told, table = part.found[n], tables[group.group]
            outputs = tuple(output for _, output in group.columns)
            wanted = _wanted(part, n, "")
            if 0 < told.differs <= _MOST_SEEN:
                wanted = wanted.unionAll(_wanted(part, n, "would_"))
            values = _values(part, n, table, wanted, told.rows)
            if 0 < told.differs <= _MOST_SEEN:
                leaks.append(Leaks(outputs, seen=Observation()))
                values = _observed(values, group, leaks[-1])
            elif told.differs:
                leaks.append(Leaks(outputs, query=_differing(part, n, table)))
            named = [f"{quoted(feature)} AS {quoted(output)}" for feature, output in group.columns]
            spine = spine.join(values.selectExpr(ROW, *named), ROW, "left")
    return spine, tuple(leaks)


def _wanted(part: Located, n: int, other: str) -> DataFrame:
    """(number, keys, clocks) of the rows that answer; or that would by the other rule, by another number."""
    time, created = _name(f"{other}time", n), _name(f"{other}created", n)
    return part.rows.where(f"{time} IS NOT NULL").selectExpr(
        f"-1 - {ROW} AS {ROW}" if other else ROW,
        *all_quoted(part.groups[n].keys),
        f"{time} AS {_TIME}",
        f"{created} AS {_CREATED}",
        f"{_name('differs', n)} AS {_SEEN}",
    )


def _observed(values: DataFrame, group: GroupJoin, leaks: Leaks) -> DataFrame:
    assert leaks.seen is not None
    pair = F.struct(F.col(ROW), cell_hashes(values, group.features).alias("hashes"))
    return values.observe(leaks.seen, F.collect_list(F.when(F.col(_SEEN), pair)).alias("seen"))


def _differing(part: Located, n: int, table: DataFrame) -> DataFrame:
    """One row: of each output, how many cells would differ."""
    group = part.groups[n]
    ours, others = (
        entries_of(_values(part, n, table, _wanted(part, n, other).where(_SEEN), part.found[n].differs), group.maps)
        for other in ("", "would_")
    )
    both = ours.alias("o").join(others.alias("w"), F.col(f"o.{ROW}") == F.lit(-1) - F.col(f"w.{ROW}"), "full")
    return both.agg(
        *(
            F.count(F.when(~F.col(f"o.`{feature}`").eqNullSafe(F.col(f"w.`{feature}`")), 1)).alias(output)
            for feature, output in group.columns
        )
    )


def _values(part: Located, n: int, table: DataFrame, wanted: DataFrame, count: int) -> DataFrame:
    """(number, features, seen) of `count` wanted rows, by keys and clocks. Of twins the greatest by its values."""
    group, told = part.groups[n], part.found[n]
    wide = table.where(after(told.oldest_us - 1) & ~after(told.newest_us)).select(
        *group.keys,
        F.unix_micros(EVENT_TIME).alias(_TIME),
        F.unix_micros(CREATED_TIME).alias(_CREATED),
        *all_quoted(group.features),
    )
    clocks = [*group.keys, _TIME, _CREATED]
    hashed = F.xxhash64(*clocks).alias(_HASH)
    wide, wanted = wide.select("*", hashed).alias("t"), wanted.select("*", hashed).alias("l")
    # one number is looked up several times faster than several columns, which are compared where it is found: an
    # equality would become a part of the key again
    same = [f"t.{_HASH} = l.{_HASH}"]
    for name in clocks:
        here, there = (f"{side}.{quoted(name)}" for side in "tl")
        if name == _CREATED:
            here, there = (f"coalesce({column}, {LEAST}L)" for column in (here, there))
        same.append(f"{here} BETWEEN {there} AND {there}")
    met = wide.join(F.broadcast(wanted) if count <= _BROADCAST else wanted, F.expr(" AND ".join(same)))
    rows = met.select(f"l.{ROW}", *(f"t.{name}" for name in all_quoted(group.features)), f"l.{_SEEN}")
    if not told.twins:
        return rows
    greatest = F.max(F.struct(*all_quoted(group.features))).alias("values")
    one = entries_of(rows, group.maps).groupBy(ROW, _SEEN).agg(greatest).select(ROW, "values.*", _SEEN)
    return maps_again(one, group.maps)
