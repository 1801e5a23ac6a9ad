"""Every row of an offline table that one key has, judged by the rules of time for one cell: the long form of the as-of.

    rows of the key -> the first rule that leaves a row out, or none -> ranked within each -> the first few of each

The as-of itself keeps winners only; here the rows that lose stay, each with the reason. No join: a filter and windows
over the rows of one key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from feature_defs.expressions import quoted
from feature_defs.join_plan import GroupJoin, TimeRules
from feature_defs.model import CREATED_TIME, EVENT_TIME, REJECTED
from jobs.transforms.rows import all_quoted

QUARANTINE, AFTER, STRICT, TTL = (
    "in quarantine",
    "after the spine time",
    "at the spine time (strict)",
    "older than the ttl",
)
UNKNOWN, NULL = "not known by the spine time (known_by)", "null (skip_nulls)"
RULE, PLACE, TIES, ROWS, VALUE, FILE = "rule", "place", "ties", "rows", "value", "file"
POINTS, FILLED = "points", "filled"
_TIME = "_tidemark_us"


@dataclass(frozen=True)
class Cell:
    """One cell of a training set: the key's values, the time in microseconds, a feature of a group by its rules."""

    keys: Mapping[str, Any]
    time_us: int
    group: GroupJoin
    feature: str
    rules: TimeRules


@dataclass(frozen=True)
class Covered:
    """The window of an aggregate, None for its whole life, and the column of its tile that is null in an empty one."""

    window_us: int | None
    tile: str | None


def candidates(rows: DataFrame, cell: Cell, covered: Covered | None, *, most: int) -> DataFrame:
    """(rule, place, ties, rows, event_time, created_time, value, file, points, filled), at most so many rows a rule.

    The rows come with a column of their FILE. A null `rule` is that of the rows that may answer; the first of them
    does. `ties` is the place of a row where equal ones share theirs, `rows` how many a rule has in all. `points` are
    the table's rows in the window that ends with the row.
    """
    own = rows
    for name, value in cell.keys.items():
        own = own.where(F.col(quoted(name)) == F.lit(value))
    own = own.withColumn(_TIME, F.unix_micros(EVENT_TIME))
    counts = _covered(covered)
    judged = own.select(
        _rule(own, cell).alias(RULE),
        F.struct(EVENT_TIME, CREATED_TIME, _values(cell)).alias("o"),
        EVENT_TIME,
        CREATED_TIME,
        F.col(quoted(cell.feature)).alias(VALUE),
        FILE,
        *(count.alias(name) for name, count in zip((POINTS, FILLED), counts, strict=True)),
    )
    by_rule = Window.partitionBy(RULE)
    ranked = by_rule.orderBy(F.col("o").desc())
    placed = judged.select(
        RULE,
        F.row_number().over(ranked).alias(PLACE),
        F.rank().over(ranked).alias(TIES),
        F.count(F.lit(1)).over(by_rule).alias(ROWS),
        *(EVENT_TIME, CREATED_TIME, VALUE, FILE, POINTS, FILLED),
    )
    return placed.where(F.col(PLACE) <= most)


def _rule(rows: DataFrame, cell: Cell) -> Column:
    """The first rule that leaves a row out; the conditions are those of `as_of`."""
    time, event = F.lit(cell.time_us), F.col(_TIME)
    rules = [(event > time, AFTER)]
    if REJECTED in rows.columns:
        rules.insert(0, (F.col(REJECTED).isNotNull(), QUARANTINE))
    if cell.rules.strict:
        rules.append((event == time, STRICT))
    if cell.group.ttl_us is not None:
        rules.append((event < time - F.lit(cell.group.ttl_us), TTL))
    if cell.rules.known_by == "spine":
        rules.append((F.coalesce(F.unix_micros(CREATED_TIME), event) > time, UNKNOWN))
    if cell.group.skip_nulls:
        rules.append((F.col(quoted(cell.feature)).isNull(), NULL))
    return F.coalesce(*(F.when(condition, F.lit(name)) for condition, name in rules), F.lit(None).cast("string"))


def _values(cell: Cell) -> Column:
    """What decides between rows with equal clocks: all chosen features, with skip_nulls the one that is asked for."""
    names = [cell.feature] if cell.group.skip_nulls else list(cell.group.features)
    columns = dict(zip(names, all_quoted(names), strict=True))
    entries = {name: F.sort_array(F.map_entries(columns[name])) for name in names if name in cell.group.maps}
    return F.struct(*(entries.get(name, F.col(columns[name])).alias(f"v{i}") for i, name in enumerate(names)))


def _covered(covered: Covered | None) -> tuple[Column, Column]:
    """How many rows the window that ends with a row has, and in how many of them the source had any."""
    nothing = F.lit(None).cast("bigint")
    if covered is None:
        return nothing, nothing
    first = Window.unboundedPreceding if covered.window_us is None else 1 - covered.window_us
    # all rows are of one key: there is one partition whatever it is called
    over = Window.partitionBy(F.lit(1)).orderBy(_TIME).rangeBetween(first, Window.currentRow)
    filled = F.count(F.col(quoted(covered.tile))).over(over) if covered.tile else nothing
    return F.count(F.lit(1)).over(over), filled
