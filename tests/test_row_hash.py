"""The row hash in numpy is Spark's, bit for bit."""

from __future__ import annotations

import random
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyspark.sql import SparkSession

from jobs.transforms.row_hash import hash_sums, parts_of, with_hash
from jobs.transforms.row_hash_kernel import can_hash, row_hashes

ROWS, SEED = 3000, 20261122
SIZES = [0, 1, 2, 3, 4, 5, 7, 8, 9, 11, 12, 15, 16, 31, 32, 33, 40, 63, 64, 65, 100, 1000]


def text(draw: random.Random) -> str:
    return "".join(draw.choice("aé€𝄞xyz01") for _ in range(draw.choice(SIZES)))


def number(bits: int) -> Callable[[random.Random], int]:
    edges = [0, 1, -1, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1]
    return lambda draw: draw.choice([*edges, draw.randint(edges[3], edges[4])])


def fraction(draw: random.Random) -> float:
    return draw.choice([0.0, -0.0, float("nan"), -float("nan"), float("inf"), -float("inf"), -1.5, draw.random()])


COLUMNS: dict[str, tuple[pa.DataType, Callable[[random.Random], Any]]] = {
    "boolean": (pa.bool_(), lambda draw: draw.random() < 0.5),
    "tinyint": (pa.int8(), number(8)),
    "smallint": (pa.int16(), number(16)),
    "int": (pa.int32(), number(32)),
    "bigint": (pa.int64(), number(64)),
    "float": (pa.float32(), fraction),
    "double": (pa.float64(), fraction),
    "date": (pa.date32(), lambda draw: draw.randint(-10_000, 20_000)),
    "timestamp": (pa.timestamp("us", "UTC"), lambda draw: draw.randint(-(10**15), 10**16)),
    "naive": (pa.timestamp("us"), lambda draw: draw.randint(-(10**15), 10**16)),
    "decimal": (pa.decimal128(18, 2), lambda draw: Decimal(draw.randint(-(10**18) + 1, 10**18 - 1)).scaleb(-2)),
    "string": (pa.string(), text),
    "binary": (pa.binary(), lambda draw: text(draw).encode()),
}


def drawn() -> pa.Table:
    draw = random.Random(SEED)
    columns = {
        name: pa.array([None if draw.random() < 0.1 else made(draw) for _ in range(ROWS)], kind)
        for name, (kind, made) in COLUMNS.items()
    }
    none = {"nothing": pa.nulls(ROWS, pa.int64()), "no_text": pa.nulls(ROWS, pa.string())}
    return pa.table({**columns, **none})


def test_hash_of_rows_is_that_of_spark(spark: SparkSession) -> None:
    rows = drawn()
    assert all(can_hash(field.type) for field in rows.schema)
    frame = spark.createDataFrame(rows).coalesce(1)
    hashed = frame
    for name in rows.column_names:
        hashed = with_hash(hashed, [name], f"of_{name}")
    found = with_hash(hashed, rows.column_names, "of_all").toArrow().combine_chunks()
    batch = found.select(rows.column_names).to_batches()[0].slice(17)  # not at the beginning of its buffers

    def theirs(name: str) -> Any:
        return found[f"of_{name}"].to_numpy()[17:].view(np.uint64)

    for name, column in zip(rows.column_names, batch.columns, strict=True):
        assert (row_hashes([column], len(batch)) == theirs(name)).all(), name
    assert (row_hashes(batch.columns, len(batch)) == theirs("all")).all()
    first = row_hashes(batch.columns[:3], len(batch))
    assert (row_hashes(batch.columns[3:], len(batch), first) == theirs("all")).all()


def test_sum_of_hashes_is_kept_in_the_parts_that_spark_sums(spark: SparkSession) -> None:
    hashed = with_hash(spark.range(1000), ["id"], "h")
    theirs = hashed.agg(*hash_sums(hashed["h"], "row")).collect()[0].asDict()
    ours = parts_of(int(row_hashes([pa.array(range(1000))], 1000).sum()), "row")

    def total(parts: dict[str, int]) -> int:
        return (parts["row_low"] + (parts["row_middle"] << 22) + (parts["row_high"] << 43)) % 2**64

    assert total(ours) == total(theirs)


@pytest.mark.parametrize("kind", [pa.list_(pa.int64()), pa.decimal128(19, 2), pa.struct([("a", pa.int64())])], ids=str)
def test_types_that_it_does_not_know_are_told(kind: pa.DataType) -> None:
    assert not can_hash(kind)
