"""Windowed aggregates, measured: the whole compute job against plain Spark SQL and DuckDB, on the same data and cores.

    make bench NAME=compute                  20 M events, 200 k entities, 30 daily cuts, 12 aggregates over 3 windows
    make bench NAME=compute ARGS="2000000"   the same, smaller

Every engine reads the same Parquet files and writes all rows; ours writes a Delta table with its tiles, checks its rows
and commits. Amounts are multiples of 1/4, of which every engine's sums are exact, as ours are of all doubles: all rows
must be equal, created_time included. The last line is one JSON object; times are seconds, the first run not counted.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
os.environ["PYTHONPATH"] = str(ROOT)  # for the workers, wherever this is started
sys.path[0] = str(ROOT)  # the script's own folder has modules named as ours

import duckdb  # noqa: E402 - the path comes first
import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
from pyspark.sql import SparkSession  # noqa: E402

from connectors.file_store import local_path  # noqa: E402
from feature_defs import Aggregate, Entity, Expectation, Feature, FeatureGroup, Source  # noqa: E402
from jobs.compute import compute  # noqa: E402
from jobs.place import Place  # noqa: E402
from tests.benchmarks.common import in_folder, place_in, progress, rounded, seconds, watched_memory  # noqa: E402
from tests.lab import register  # noqa: E402

ENTITIES, DAYS, ROUNDS = 200_000, 30, 3
FIRST_DAY = datetime(2026, 1, 1, tzinfo=timezone.utc)
DAY_US = 86_400_000_000
WINDOWS = (1, 7, 30)
FUNCTIONS = ("count", "sum", "min", "max")
NAMES = [f"{function}_{days}d" for function in FUNCTIONS for days in WINDOWS]


def events(folder: Path, rows: int, *, first_day: int = 0, days: int = DAYS, hot: float = 0.0) -> None:
    """Events of random entities over some days; a share `hot` of them is one entity's."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng([7, rows, first_day])
    start = int(FIRST_DAY.timestamp() * 1_000_000) + first_day * DAY_US
    parts = max(rows // 2_500_000, 1)
    for part in range(parts):
        count = rows // parts
        customer = draw.integers(0, ENTITIES, count)
        customer[draw.random(count) < hot] = 7
        at = start + 1 + draw.integers(0, days * DAY_US, count)
        time_type = pa.timestamp("us", tz="UTC")
        table = {
            "customer_id": customer,
            "at": pa.array(at, time_type),
            "seen": pa.array(at + 1_000_000, time_type),
            "amount": draw.integers(0, 40_000, count) / 4,
        }
        pq.write_table(pa.table(table), folder / f"day-{first_day:02}-part-{part}.parquet")


def group(name: str, source: str, **more: Any) -> FeatureGroup:
    features = [
        Feature(
            f"{function}_{days}d",
            "bigint" if function == "count" else "double",
            Aggregate(function, None if function == "count" else "amount", window=f"{days}d"),
        )
        for function in FUNCTIONS
        for days in WINDOWS
    ]
    return FeatureGroup(name, entity="customer", source=source, every="1d", features=features, **more)


RULES = [
    Expectation(f"{name}_{number}", f"{name} IS NULL OR {name} >= {-1 - number}")
    for number, name in enumerate((NAMES * 2)[:20])
]


# the same in plain engines


def spark_sql(spark: SparkSession, source: Path, out: Path) -> None:
    """A range join of events and days, one pass for all windows: conditional aggregates, days broadcast."""
    first = FIRST_DAY + timedelta(days=1)
    last = FIRST_DAY + timedelta(days=DAYS)
    columns = []
    for function in FUNCTIONS:
        for days in WINDOWS:
            inside = f"e.at > d.day - INTERVAL {days} DAYS"
            value = "1" if function == "count" else "e.amount"
            columns.append(f"{function}(CASE WHEN {inside} THEN {value} END) AS {function}_{days}d")
    spark.read.parquet(str(source)).createOrReplaceTempView("events")
    days_sql = (
        f"SELECT explode(sequence(TIMESTAMP '{first:%Y-%m-%d}', TIMESTAMP '{last:%Y-%m-%d}', INTERVAL 1 DAY)) AS day"
    )
    spark.sql(
        f"WITH d AS ({days_sql}) SELECT /*+ BROADCAST(d) */ e.customer_id, d.day AS event_time, "
        f"max(e.seen) AS created_time, {', '.join(columns)} FROM events e "
        f"JOIN d ON e.at <= d.day AND e.at > d.day - INTERVAL {max(WINDOWS)} DAYS GROUP BY e.customer_id, d.day"
    ).write.mode("overwrite").parquet(str(out))


def duck_sql(engine: Any, source: Path, out: Path) -> None:
    """Daily tiles once, then frames over them: the fastest of what was tried (a range join takes much longer)."""
    states = {"count": "count(*)", "sum": "sum(amount)", "min": "min(amount)", "max": "max(amount)"}
    tiles = ", ".join(f"{text} AS t_{function}" for function, text in states.items())
    merged = {"count": "coalesce(sum(t_count) OVER w{n}, 0)::BIGINT", "sum": "sum(t_sum) OVER w{n}"}
    merged |= {"min": "min(t_min) OVER w{n}", "max": "max(t_max) OVER w{n}"}
    values = ", ".join(f"{merged[f].format(n=days)} AS {f}_{days}d" for f in FUNCTIONS for days in WINDOWS)
    frames = ", ".join(
        f"w{days} AS (PARTITION BY customer_id ORDER BY event_time ROWS BETWEEN {days - 1} PRECEDING AND CURRENT ROW)"
        for days in WINDOWS
    )
    first, last = FIRST_DAY + timedelta(days=1), FIRST_DAY + timedelta(days=DAYS)
    engine.execute(
        f'COPY (WITH tiles AS (SELECT customer_id, time_bucket(INTERVAL 1 DAY, "at" - INTERVAL 1 MICROSECOND) '
        f"+ INTERVAL 1 DAY AS event_time, max(seen) AS t_seen, {tiles} FROM '{source}/*.parquet' GROUP BY ALL), "
        f"firsts AS (SELECT customer_id, min(event_time) AS first FROM tiles GROUP BY ALL), "
        f"days AS (SELECT unnest(generate_series(TIMESTAMPTZ '{first:%Y-%m-%d}', TIMESTAMPTZ '{last:%Y-%m-%d}', "
        f"INTERVAL 1 DAY)) AS event_time), "
        f"points AS (FROM firsts JOIN days ON event_time >= first LEFT JOIN tiles USING (customer_id, event_time)) "
        f"SELECT customer_id, event_time, max(t_seen) OVER w{max(WINDOWS)} AS created_time, {values} FROM points "
        f"WINDOW {frames}) TO '{out}' (FORMAT parquet)"
    )


def row_hash(engine: Any, files: str) -> tuple[int, int]:
    """How many rows, and a sum of their hashes: the same for the same rows in any order."""
    columns = ["customer_id", "epoch_us(event_time)", "epoch_us(created_time)", *NAMES]
    found = engine.execute(f"SELECT count(*), sum(hash({', '.join(columns)})::HUGEINT) FROM read_parquet({files})")
    return tuple(found.fetchall()[0])


# measuring


def files_of(place: Place, name: str) -> str:
    found = place.table(place.applied().definitions.groups[name]).read_all().inputFiles()
    return str([file.removeprefix("file://") for file in found])


def read_of_a_week(place: Place, name: str) -> dict[str, float]:
    """The share of the table's files that a reader of one week opens, and of their bytes."""
    rows = place.table(place.applied().definitions.groups[name]).read()
    week = rows.where("event_time > '2026-01-10' AND event_time <= '2026-01-17'")
    size = {file: local_path(file.replace("%20", " ")).stat().st_size for file in rows.inputFiles()}
    return {
        "files": round(len(week.inputFiles()) / len(size), 3),
        "bytes": round(sum(size[file] for file in week.inputFiles()) / sum(size.values()), 3),
    }


def main(rows: int) -> dict[str, Any]:
    return in_folder("compute", lambda folder: measured(folder, rows))


def measured(folder: Path, rows: int) -> dict[str, Any]:
    raw = folder / "raw"
    for name, count, hot in (("plain", rows, 0.0), ("twice", 2 * rows, 0.0), ("hot", rows, 0.2)):
        events(raw / name, count, hot=hot)
    place = place_in(folder)
    sources = [
        Source(name, path=f"lake://raw/{name}", format="parquet", event_time="at", created_time="seen")
        for name in ("plain", "twice", "hot")
    ]
    groups = [group(source.name, source.name) for source in sources]
    groups.append(group("ruled", "plain", expectations=RULES))
    register(place, Entity("customer", keys={"customer_id": "bigint"}), *sources, *groups)
    now = FIRST_DAY + timedelta(days=DAYS + 2)

    def ours(name: str) -> float:
        return seconds(lambda: compute(place, [name], now=now, full=True))

    engine = duckdb.connect(config={"threads": 2, "memory_limit": "4GB", "temp_directory": str(folder / "duck")})
    engine.execute("SET timezone = 'UTC'")
    told: dict[str, Any] = {"rows": rows, "entities": ENTITIES, "days": DAYS}
    with watched_memory() as peak:
        told["cold_s"] = seconds(lambda: compute(place, ["plain"], now=now, full=True))
        times: dict[str, list[float]] = {"ours": [], "duckdb": [], "twice": [], "hot": [], "ruled": []}
        for number in range(ROUNDS):
            progress(f"round {number + 1} of {ROUNDS}")
            times["ours"].append(ours("plain"))
            times["ruled"].append(ours("ruled"))
            times["hot"].append(ours("hot"))
        times["twice"].append(ours("twice"))
    for number in range(ROUNDS):  # in this process, whose memory is ours up to here
        progress(f"DuckDB, round {number + 1} of {ROUNDS}")
        times["duckdb"].append(seconds(lambda: duck_sql(engine, raw / "plain", folder / "duck.parquet")))
    progress("plain Spark SQL")
    plain = seconds(lambda: spark_sql(place.spark, raw / "plain", folder / "spark_sql"))
    hashes = {
        "ours": row_hash(engine, files_of(place, "plain")),
        "duckdb": row_hash(engine, f"'{folder}/duck.parquet'"),
        "spark_sql": row_hash(engine, f"'{folder}/spark_sql/*.parquet'"),
    }
    told["read_of_a_week"] = read_of_a_week(place, "plain")
    increments = []
    for day in range(ROUNDS):
        events(raw / "plain", rows // DAYS, first_day=DAYS + day, days=1)
        later = now + timedelta(days=day)
        increments.append(seconds(lambda later=later: compute(place, ["plain"], now=later)))  # type: ignore[misc]
    median = {name: statistics.median(values) for name, values in times.items()}
    told |= {
        "vs_spark_sql": plain / median["ours"],
        "vs_duckdb": median["duckdb"] / median["ours"],
        "identical": len(set(hashes.values())) == 1,
        "increment_vs_backfill": statistics.median(increments) / median["ours"],
        "rows_x2": median["twice"] / median["ours"],
        "skew_vs_uniform": median["hot"] / median["ours"],
        "expectations_overhead": median["ruled"] / median["ours"] - 1,
        "peak_memory_gib": peak[0],
        "seconds": {**median, "spark_sql": plain, "increment": statistics.median(increments)},
    }
    return {name: rounded(value) for name, value in told.items()}


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000_000)))
