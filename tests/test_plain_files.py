"""Offline tables read as the files that they consist of: as their own reader tells their rows, or not at all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from connectors.file_rows import made_whole
from connectors.offline_tables import OfflineTable, open_table
from connectors.plain_files import PlainChanges, PlainFile, PlainFiles, plain_changes, plain_files

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


def test_columns_for_tasks_are_told_where_they_can_read_them(spark: SparkSession, tmp_path: Path) -> None:
    pq.write_table(pa.table({"ID": [1, 2], "later": [None, "x"]}), tmp_path / "0.parquet")
    pq.write_table(pa.table({"id": [3]}), tmp_path / "1.parquet")
    schema = spark.createDataFrame([], "id bigint, later string, deep interval day").schema
    files = PlainFiles(spark, schema, tuple(PlainFile(f"file://{tmp_path}/{n}.parquet", 1) for n in range(2)))
    found = files.columns(["id", "later"])
    assert found is not None
    assert found.read(["id", "later"]).to_pydict() == {"id": [1, 2, 3], "later": [None, "x", None]}
    assert found.read(["id"], 1, 3).to_pydict() == {"id": [2, 3]}
    assert found.counts() == (2, 1)
    assert files.columns(["id", "missing"]) is None
    assert files.columns(["id", "deep"]) is None  # of a type that only Spark reads
    assert replace(files, files=files.files * 501).columns(["id"]) is None
    assert replace(files, files=(PlainFile("hdfs://name/0.parquet", 1),)).columns(["id"]) is None


def test_file_is_made_whole_or_not_at_all(tmp_path: Path) -> None:
    def make(text: str, error: Exception | None = None) -> None:
        with made_whole(tmp_path / "file") as draft:
            draft.write_text(text)
            if error:
                raise error

    with pytest.raises(OSError, match="no room"):
        make("half", OSError("no room"))
    assert list(tmp_path.iterdir()) == []
    make("whole")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "whole")]
