"""The order in which rows are written: files are spans of time, parts of them few entities."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import pytest
from pyarrow import parquet
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from connectors.offline_tables import open_table
from connectors.plain_files import plain_files
from connectors.row_order import PART, in_order

FILE = 50  # rows
KEYS = {
    "bigint": [*range(-5, 40), 2**48, 2**48 + 70_000, 2**63 - 1, -(2**48) - 70_000, -(2**63)],
    "tinyint": list(range(-50, 50)),
    "string": [f"customer {n:04d}" for n in range(50)],
}


@pytest.mark.parametrize("kind", KEYS)
def test_a_file_of_rows_is_a_span_of_time_and_its_rows_lie_by_key(
    spark: SparkSession, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr("connectors.row_order.ROWS_A_FILE", FILE)
    draw = random.Random(5)
    rows = [(key, second) for key in KEYS[kind] for second in draw.sample(range(10_000), 6)]
    draw.shuffle(rows)
    frame = spark.createDataFrame(rows, f"k {kind}, second int").withColumn("event_time", F.timestamp_seconds("second"))
    found = [(row["k"], row["second"]) for row in in_order(frame.coalesce(1), ["k"]).collect()]
    assert sorted(found) == sorted(rows)
    files = [found[start : start + FILE] for start in range(0, len(found), FILE)]
    assert len(files) > 5
    for file, later in pairwise(files):
        assert max(second for _, second in file) <= min(second for _, second in later)
    for file in files:
        assert [key for key, _ in file] == sorted(key for key, _ in file)


@pytest.mark.parametrize("table_format", ["delta", "parquet"])
def test_a_file_of_a_table_has_parts(spark: SparkSession, tmp_path: Path, table_format: str) -> None:
    table = open_table(spark, f"file://{tmp_path}/table", table_format)
    rows = spark.range(2 * PART + 10).select(F.col("id").alias("k"), F.timestamp_seconds("id").alias("event_time"))
    files = plain_files(table, table.replace(in_order(rows.coalesce(1), ["k"]), {}))
    assert files is not None
    (file,) = files.files
    footer = parquet.ParquetFile(file.uri.removeprefix("file://")).metadata
    assert [footer.row_group(n).num_rows for n in range(footer.num_row_groups)] == [PART, PART, 10]
