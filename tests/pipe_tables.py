"""Tables as text: what a test says is what a reader sees.

    customer_id | event_time          | amount
    c1          | 2026-01-01 10:00:00 | 5

A cell is cast by Spark to the type of its column; `null` is null and an empty cell is an empty text. Times are UTC.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from chispa.rows_comparer import assert_basic_rows_equality
from pyspark.sql import DataFrame, Row, SparkSession

from feature_defs import data_types
from feature_defs.pipe_tables import parse

# A column that a table does not declare a type for has the one that its name suggests.
TYPES = {"event_time": "timestamp", "created_time": "timestamp"}


def columns_and_cells(text: str) -> tuple[list[str], list[list[str | None]]]:
    found = parse(text)
    assert not found.ragged, f"a row has more or fewer cells than {found.columns}"
    return list(found.columns), [list(row) for row in found.rows]


def read_table(spark: SparkSession, text: str, types: str = "") -> DataFrame:
    """The DataFrame of a pipe table; `types` is DDL as "amount double, n bigint", other columns are strings."""
    header, rows = columns_and_cells(text)
    declared = {**TYPES, **_declared(types)}
    values = ", ".join(f"({', '.join(map(_literal, row))})" for row in rows or [[None] * len(header)])
    names = ", ".join(f"`{name}`" for name in header)
    casts = [f"CAST(`{name}` AS {declared.get(name, 'string')}) AS `{name}`" for name in header]
    found = spark.sql(f"SELECT {', '.join(casts)} FROM VALUES {values} AS t({names})")
    return found if rows else found.limit(0)


def _declared(types: str) -> dict[str, str]:
    """`a bigint, b array<float>`: split at the commas outside brackets."""
    parts, depth = [""], 0
    for character in types:
        depth += {"<": 1, "(": 1, ">": -1, ")": -1}.get(character, 0)
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    pairs = (part.strip().split(" ", 1) for part in parts if part.strip())
    return {name: data_types.parse(kind).spark for name, kind in pairs}


def _literal(cell: str | None) -> str:
    return "null" if cell is None else "'" + cell.replace("\\", "\\\\").replace("'", "\\'") + "'"


def assert_rows(found: DataFrame, expected: DataFrame) -> None:
    """Equal columns, types and rows; the order of rows means nothing."""
    assert found.dtypes == expected.dtypes
    assert_basic_rows_equality(in_order(found.collect()), in_order(expected.collect()))


def in_order(rows: Sequence[Row]) -> list[Row]:
    return sorted(rows, key=_null_first)


def _null_first(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(map(_null_first, value))
    return (value is not None, value if value is not None else 0)
