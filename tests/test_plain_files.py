"""Offline tables read as the files that they consist of: as their own reader tells their rows, or not at all."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from pyspark.sql import SparkSession

from connectors.offline_tables import OfflineTable, open_table
from connectors.plain_files import PlainChanges, PlainFiles, plain_changes, plain_files

DAY = 86_400_000_000
START = 1_767_225_600_000_000  # 2026-01-01
TIME = pa.timestamp("us", tz="UTC")


def append(table: OfflineTable, day: int, count: int = 20) -> int:
    """A file of rows of one day."""
    times = pa.array([START + day * DAY + i for i in range(count)], TIME)
    columns = {"id": pa.array(range(count)), "event_time": times, "created_time": times}
    rows = table.spark.createDataFrame(pa.table({**columns, "amount": pa.array([float(day)] * count)})).coalesce(1)
    newest = table.version()
    return table.replace(rows, {"run": "r"}) if newest is None else table.append(rows, {"run": "r"}, after=newest)


def files_of(table: OfflineTable) -> PlainFiles:
    version = table.version()
    assert version is not None
    found = plain_files(table, version)
    assert found is not None
    return found


@pytest.mark.parametrize("kind", ["delta", "parquet"])
def test_plain_files_hold_a_tables_rows_and_skip_those_of_other_times(
    spark: SparkSession, tmp_path: Path, kind: str
) -> None:
    table = open_table(spark, f"file://{tmp_path}/a table", kind)
    first = append(table, 0)
    if kind == "delta":  # the log is read from a checkpoint, too
        spark.sql(f"ALTER TABLE delta.`{table.uri}` SET TBLPROPERTIES ('delta.checkpointInterval' = '3')")
    for day in range(1, 4):
        last = append(table, day)
    files = files_of(table)
    assert len(files.files) == 4
    assert sorted(files.rows().collect()) == sorted(table.read().collect())
    left = [3, 2, 1, 0] if kind == "parquet" else [4, 3, 2, 1]  # Delta's bounds are cut to milliseconds
    assert [len(files.after(START + day * DAY + 19).files) for day in range(4)] == left
    assert len(files.between(START + DAY + 5, START + 2 * DAY).files) == 2
    assert files.between(START, START).files == ()
    assert files.recent_after() == START + 3 * DAY - 1
    changes = plain_changes(table, files, last - 2, last)
    assert changes is not None
    expected = table.changes(last - 2, last)
    assert expected is not None
    assert sorted(changes.rows().collect()) == sorted(expected.collect())
    assert (len(changes.came.files), changes.went.files) == (2, ())
    assert len(files.without(changes.came).files) == 2
    assert first < last - 2


def test_delta_table_whose_files_do_not_tell_is_left_to_delta(spark: SparkSession, tmp_path: Path) -> None:
    """Files of which rows are deleted, versions that did more than to add rows, columns that have other names."""
    table = open_table(spark, f"file://{tmp_path}/table", "delta")
    since = append(table, 0)
    append(table, 1)
    files = files_of(table)
    assert isinstance(plain_changes(table, files, since, since + 1), PlainChanges)
    spark.sql(f"OPTIMIZE delta.`{table.uri}`")
    optimized = files_of(table)
    assert len(optimized.files) == 1
    moved = plain_changes(table, optimized, since, since + 2)
    assert moved is not None
    assert moved.rows().count() == 20
    spark.sql(f"DELETE FROM delta.`{table.uri}` WHERE id = 3")
    assert plain_files(table, since + 3) is None
    assert plain_changes(table, files, since + 2, since + 3) is None
    spark.sql(f"REORG TABLE delta.`{table.uri}` APPLY (PURGE)")
    assert files_of(table).rows().count() == 38
    (tmp_path / "table" / "_delta_log" / f"{since + 1:020d}.json").unlink()
    assert plain_changes(table, files, since, since + 2) is None
    other = open_table(spark, f"file://{tmp_path}/other", "delta")
    append(other, 0)
    spark.sql(f"ALTER TABLE delta.`{other.uri}` SET TBLPROPERTIES ('delta.columnMapping.mode' = 'name')")
    assert plain_files(other, 1) is None
    pattern = open_table(spark, f"file://{tmp_path}/a[1]", "delta")
    assert plain_files(pattern, append(pattern, 0)) is None
    torn = open_table(spark, f"file://{tmp_path}/torn", "delta")
    append(torn, 0)
    newest = append(torn, 1)
    (tmp_path / "torn" / "_delta_log" / f"{0:020d}.json").unlink()
    assert plain_files(torn, newest) is None
