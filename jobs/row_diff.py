"""Two sets of rows held against each other, cell by cell: what `diff` and `compare` share.

    rows of both -> matched by the columns that name a row -> counts (one job) -> examples (one more, if any differ)

Rows that are alike in these columns meet one for one, in the order of their values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from connectors.manifests import RowHash
from feature_defs.model import EVENT_TIME, HIDDEN
from jobs.report import table
from jobs.values import shown

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

ONLY_LEFT, ONLY_RIGHT = "(only left)", "(only right)"  # no feature has such a name
_LEFT, _RIGHT, _SIDE, _HASH = "_tidemark_left", "_tidemark_right", "_tidemark_side", "_tidemark_hash"
_NUMBER, _FEATURE, _RANK = "_tidemark_number", "_tidemark_feature", "_tidemark_rank"


@dataclass(frozen=True)
class Rows:
    """One side: its rows, and all columns that their hash is over, in order."""

    rows: DataFrame
    columns: Sequence[str]


@dataclass(frozen=True)
class ChangedCell:
    """A cell that differs: the row's keys and event_time; the values only where they were asked for.

    A row that only one side has stands under ONLY_LEFT or ONLY_RIGHT.
    """

    feature: str
    row: dict[str, Any]
    values: tuple[Any, Any] | None


def examples_table(examples: Sequence[ChangedCell]) -> str:
    """A line a cell; a row that only one side has shows no values."""
    values = ["left", "right"] if any(cell.values for cell in examples) else []
    rows = []
    for cell in examples:
        told = ", ".join(f"{key}={shown(value)}" for key, value in cell.row.items() if key != EVENT_TIME)
        pair = [shown(value) for value in cell.values] if cell.values else [""] * len(values)
        rows.append([cell.feature, told, shown(cell.row.get(EVENT_TIME)), *pair])
    return table(["for example", "row", "event time (UTC)", *values], rows)


def matched(first: Rows, second: Rows, identity: list[str], features: list[str]) -> DataFrame:
    """(identity, left and right features, their rows' hashes): one row for two that are alike; a side may be null.

    One shuffle, by identity: rows are numbered a side within it, and the numbers then meet.
    """
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    from jobs.transforms.rows import all_quoted

    sides = [_side(side, identity, features, label) for side, label in ((first, _LEFT), (second, _RIGHT))]
    keys = all_quoted(identity)
    union = sides[0].unionByName(sides[1])
    spread = union.repartition(*keys) if keys else union.repartition(1)
    numbered = spread.withColumn(
        _NUMBER, F.row_number().over(Window.partitionBy(*keys, _SIDE).orderBy(*all_quoted(features), _HASH))
    )
    values = F.struct(
        *(F.col(name).alias(f"v{i}") for i, name in enumerate(all_quoted(features))), F.col(_HASH).alias("h")
    )
    return numbered.groupBy(*keys, _NUMBER).agg(
        *(F.max(F.when(F.col(_SIDE) == side, values)).alias(side) for side in (_LEFT, _RIGHT))
    )


def _side(found: Rows, identity: list[str], features: list[str], label: str) -> DataFrame:
    """One side's columns in a form that can be compared and grouped: maps as their sorted entries."""
    from pyspark.sql import functions as F
    from pyspark.sql.types import MapType

    from jobs.transforms.row_hash import row_hash
    from jobs.transforms.rows import all_quoted

    hashed = row_hash(found.rows, found.columns)
    columns = []
    for name, column in zip([*identity, *features], all_quoted([*identity, *features]), strict=True):
        is_map = isinstance(found.rows.schema[name].dataType, MapType)
        columns.append(F.sort_array(F.map_entries(column)).alias(name) if is_map else F.col(column))
    return found.rows.select(*columns, hashed.alias(_HASH), F.lit(label).alias(_SIDE))


def counts_of(matched: DataFrame, features: list[str]) -> dict[str, Any]:
    from pyspark.sql import functions as F

    from jobs.transforms.row_hash import hash_sums

    left, right = F.col(_LEFT), F.col(_RIGHT)
    row = matched.agg(
        F.count(left).alias("left_rows"),
        F.count(right).alias("right_rows"),
        F.count_if(right.isNull()).alias("only_left"),
        F.count_if(left.isNull()).alias("only_right"),
        *(F.count_if(_differs(i)).alias(f"changed_{i}") for i in range(len(features))),
        *hash_sums(left.getField("h"), "left"),
        *hash_sums(right.getField("h"), "right"),
    )
    return dict(row.collect()[0].asDict())


def hashes_of(counts: dict[str, Any]) -> tuple[RowHash, RowHash]:
    from jobs.transforms.row_hash import row_hash_of

    return (
        row_hash_of(counts, "left", counts["left_rows"]),
        row_hash_of(counts, "right", counts["right_rows"]),
    )


def _differs(number: int) -> Any:
    """Whether a feature's cells differ in a row that both sides have."""
    from pyspark.sql import functions as F

    left, right = F.col(_LEFT), F.col(_RIGHT)
    unequal = ~left.getField(f"v{number}").eqNullSafe(right.getField(f"v{number}"))
    return left.isNotNull() & right.isNotNull() & unequal


def examples_of(
    matched: DataFrame, changed: dict[str, int], row: list[str], *, maps: Sequence[str], most: int, values: bool
) -> tuple[ChangedCell, ...]:
    """The first changed cells of each feature, and rows of one side, by time and keys; one job for all."""
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    from jobs.transforms.rows import all_quoted

    names = list(changed)
    numbers = [number for number, name in enumerate(names) if changed[name]]
    if not numbers or not most:
        return ()
    alone = {ONLY_LEFT: F.col(_RIGHT).isNull(), ONLY_RIGHT: F.col(_LEFT).isNull()}
    differs = {number: alone[names[number]] if names[number] in alone else _differs(number) for number in numbers}
    which = F.array_compact(F.array(*(F.when(found, F.lit(number)) for number, found in differs.items())))
    cells = matched.where(F.size(which) > 0).withColumn(_FEATURE, F.explode(which))
    order = [*all_quoted([*(name for name in row if name == EVENT_TIME), *row]), _NUMBER]
    ranked = cells.withColumn(_RANK, F.row_number().over(Window.partitionBy(_FEATURE).orderBy(*order)))
    # field by field: Arrow takes no null struct whose fields are never null
    cells_of = [number for number in numbers if values and names[number] not in alone]
    sides = [(f"{side}{n}", f"{name}.v{n}") for n in cells_of for side, name in (("left", _LEFT), ("right", _RIGHT))]
    kept = [F.col(name) for name in (_FEATURE, _RANK, *all_quoted(row))]
    kept += [F.col(path).alias(HIDDEN + name) for name, path in sides]
    found = ranked.where(F.col(_RANK) <= most).select(*kept).toArrow().to_pylist()
    told = []
    for cell in sorted(found, key=lambda one: (one[_FEATURE], one[_RANK])):
        number = cell[_FEATURE]
        pair = None
        if number in cells_of:
            left, right = (_value(cell[f"{HIDDEN}{side}{number}"], names[number] in maps) for side in ("left", "right"))
            pair = (left, right)
        told.append(ChangedCell(names[number], {name: cell[name] for name in row}, pair))
    return tuple(told)


def _value(value: Any, is_map: bool) -> Any:
    """A cell as it was before maps became their entries."""
    return {entry["key"]: entry["value"] for entry in value} if is_map and value is not None else value
