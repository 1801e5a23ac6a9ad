"""A hash of all rows of a DataFrame that knows no order: each row's 64 bits, summed.

    row     xxhash64 over its columns in order, of each: is it null, then what it holds
    rows    the count, and the sum of the rows' hashes, modulo 2^64

Spark's hash passes nulls over: without the flags (null, 1) and (1, null) would be alike. An array counts its elements
and tells where nulls are, a map hashes its entries and sorts those hashes, a struct goes field by field. The sum is
kept in three parts of 22, 21 and 21 bits, none of which can overflow before 2^41 rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, DataType, MapType, StructType, VariantType

from connectors.manifests import RowHash
from feature_defs.expressions import quoted, text_literal

_SHIFTS = {"low": (0, 22), "middle": (22, 21), "high": (43, 21)}
_NESTED = (ArrayType, MapType, StructType, VariantType)
# Where Spark can say that an array does not hold such a value, no element is null: known without a look at each.
_RARE = {"boolean": "true", "string": "'\u0001'", "binary": "X'01'"}
_RARE_NUMBER = "-77"
_NUMBERS = ("tinyint", "smallint", "int", "bigint", "float", "double")


def with_hash(rows: DataFrame, columns: Sequence[str], name: str) -> DataFrame:
    """The rows with a column of their hashes over these columns."""
    return rows.withColumn(name, row_hash(rows, columns))


def row_hash(rows: DataFrame, columns: Sequence[str]) -> Column:
    # text is one call of Spark's, columns would be hundreds
    parts = [part for name, kind in _kinds(rows, columns).items() for part in _parts(quoted(name), kind)]
    return F.expr(_hash(parts)) if parts else F.lit(0).cast("bigint")


def cell_hashes(rows: DataFrame, columns: Sequence[str]) -> Column:
    """An array of the hash of each cell, null of a null."""
    cells = {quoted(name): kind for name, kind in _kinds(rows, columns).items()}
    return F.expr(f"array({', '.join(f'nvl2({cell}, {_hash(_parts(cell, cells[cell]))}, NULL)' for cell in cells)})")


def _kinds(rows: DataFrame, columns: Sequence[str]) -> dict[str, DataType]:
    kinds = {field.name: field.dataType for field in rows.schema.fields}
    return {name: kinds[name] for name in columns}


def hash_sums(hashes: Column, name: str) -> list[Column]:
    """Aggregates of the rows' hashes, for `agg` and for `observe`."""
    return [
        F.sum(F.shiftright(hashes, shift).bitwiseAND(F.lit((1 << bits) - 1))).alias(f"{name}_{part}")
        for part, (shift, bits) in _SHIFTS.items()
    ]


def parts_of(total: int, name: str) -> dict[str, int]:
    """What `hash_sums` of this name would come to for hashes of this sum."""
    return {f"{name}_{part}": total >> shift & (1 << bits) - 1 for part, (shift, bits) in _SHIFTS.items()}


def row_hash_of(counts: Mapping[str, Any], name: str, rows: int) -> RowHash:
    """What `hash_sums` of this name came to."""
    total = sum((counts[f"{name}_{part}"] or 0) << shift for part, (shift, _) in _SHIFTS.items())
    return RowHash(rows, f"{total % (1 << 64):016x}")


def hash_of(rows: DataFrame, columns: Sequence[str]) -> RowHash:
    """The hash of rows that lie somewhere; this runs a job."""
    hashed = rows.select(row_hash(rows, columns).alias("h"))
    counts = hashed.agg(F.count(F.lit(1)).alias("rows"), *hash_sums(F.col("h"), "h")).collect()[0].asDict()
    return row_hash_of(counts, "h", counts["rows"])


def _hash(parts: Sequence[str]) -> str:
    return f"xxhash64({', '.join(parts)})"


def _parts(value: str, kind: DataType, depth: int = 0) -> list[str]:
    """What of a value goes into the hash, in order; all of it SQL."""
    is_null, element = f"isnull({value})", f"e{depth}"
    if isinstance(kind, StructType):
        fields = [
            part
            for field in kind.fields
            for part in _parts(f"{value}[{text_literal(field.name)}]", field.dataType, depth)
        ]
        return [is_null, *fields]
    if isinstance(kind, MapType):
        parts = _parts(f"{element}['key']", kind.keyType, depth + 1)
        parts += _parts(f"{element}['value']", kind.valueType, depth + 1)
        return [is_null, f"size({value})", f"sort_array(transform(map_entries({value}), {element} -> {_hash(parts)}))"]
    if isinstance(kind, ArrayType) and isinstance(kind.elementType, _NESTED):
        parts = _parts(element, kind.elementType, depth + 1)
        return [is_null, f"size({value})", f"transform({value}, {element} -> {_hash(parts)})"]
    if isinstance(kind, ArrayType):
        return [is_null, f"size({value})", value, _null_marks(value, kind.elementType, element)]
    return [is_null, f"CAST({value} AS STRING)" if isinstance(kind, VariantType) else value]


def _null_marks(value: str, kind: DataType, element: str) -> str:
    """Which elements are null; null when none is.

    A look at each costs 120 ns an element, 16 times the hash of an array of 128 floats, and is rarely needed.
    """
    marks = f"transform({value}, {element} -> isnull({element}))"
    holds_null = f"array_contains({marks}, true)"
    name = kind.simpleString()
    rare = _RARE_NUMBER if name in _NUMBERS else _RARE.get(name)
    if rare is None:
        return f"CASE WHEN {holds_null} THEN {marks} END"
    has_none = f"array_contains({value}, CAST({rare} AS {name})) <=> false"
    return f"CASE WHEN NOT ({has_none}) AND {holds_null} THEN {marks} END"
