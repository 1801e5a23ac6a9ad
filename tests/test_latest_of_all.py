"""The latest rows of a large table, found in keys and times first: as a plain loop says, in any parts."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow as pa
import pytest
from pyspark.sql import DataFrame, SparkSession

from feature_defs.join_plan import GroupJoin
from jobs.joining import kept_in
from jobs.transforms import latest
from jobs.transforms.latest import latest_of_all
from jobs.transforms.rows import after

SECOND, NOW = 1_000_000, 100_000_000
TIME = pa.timestamp("us", tz="UTC")
Row = tuple[int, str, int, int | None, float | None]


def rows_of(*, ties: bool, stragglers: bool) -> list[Row]:
    """Entities with rows in the last ten seconds, and others that have older rows only; some rows are in the future."""
    draw, found = random.Random(f"{ties} {stragglers}"), dict[tuple[int, int, int | None], Row]()
    for key in range(120):
        newest = NOW - 20 * SECOND if stragglers and key % 4 else NOW - draw.randrange(10) * SECOND
        times = [newest, newest - 15 * SECOND, newest - 30 * SECOND, *([NOW + 1] if key % 3 == 0 else [])]
        for time in times + times * ties:
            created = draw.choice([None, time, time + SECOND]) if ties else time
            found[key, time, created] = (key, f"k{key % 7}", time, created, draw.choice([None, 0.5, -2.0]))
    return list(found.values())


def expected(rows: list[Row]) -> list[tuple[int, int, float | None]]:
    best: dict[int, Row] = {}
    for row in rows:
        if row[2] <= NOW and (row[0] not in best or order(row) > order(best[row[0]])):
            best[row[0]] = row
    return sorted((key, row[2], row[4]) for key, row in best.items())


def order(row: Row) -> tuple[object, ...]:
    return row[2], row[3] is not None, row[3] or 0, row[4] is not None, row[4] or 0.0


@pytest.mark.parametrize("broadcast", [4_000_000, 50])
def test_latest_of_all_is_what_a_plain_loop_says(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broadcast: int
) -> None:
    """With few numbers that a task may hold, too: then more is left to the choice among wide rows."""
    monkeypatch.setattr(latest, "_BROADCAST", broadcast)
    monkeypatch.setattr(latest, "_BROADCAST_KEYS", broadcast)
    wanted = GroupJoin("spend", 1, ("id", "name"), ("bigint", "string"), (("amount", "amount"),), None, False)
    keep = kept_in(str(tmp_path))
    for ties, stragglers in ((False, False), (True, False), (True, True)):
        rows = rows_of(ties=ties, stragglers=stragglers)
        names = ["id", "name", "event_time", "created_time", "amount"]
        kinds = [pa.int64(), pa.string(), TIME, TIME, pa.float64()]
        columns = [pa.array(column, kind) for column, kind in zip(zip(*rows, strict=True), kinds, strict=True)]
        table = spark.createDataFrame(pa.Table.from_arrays(columns, names)).repartition(3)

        def rows_after(time_us: int | None, table: DataFrame = table) -> DataFrame:
            return table if time_us is None else table.where(after(time_us))

        for recent_us, one_each in ((None, False), (NOW - 12 * SECOND, False), (NOW - 12 * SECOND, True)):
            found, count = latest_of_all(rows_after, wanted, keep, now_us=NOW, recent_us=recent_us, one_each=one_each)
            got = found.selectExpr("id", "unix_micros(event_time)", "amount").collect()
            assert sorted(map(tuple, got)) == expected(rows), (ties, stragglers, recent_us)
            assert count == 120
