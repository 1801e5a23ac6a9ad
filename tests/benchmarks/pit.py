"""Training sets, measured: the whole job against DuckDB's ASOF and a plain Spark join, on the same files and cores.

    make bench NAME=pit                              4 groups x 4 M rows x 11 features, 400 k entities, 800 k spine rows
    make bench NAME=pit ARGS="400000 5"              the same, a tenth, five times each

Parquet in, Parquet out: the files are those of offline tables that `compute` wrote. Every engine answers every cell,
and the row hash says that all are equal. Feast answers a quarter of the rows. `spark_alone` is what Spark takes to read
the tables and to write the result once more, without a join: no join in Spark is faster. The last line is one JSON
object; times are seconds, the first round is not counted.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timezone
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
from pyspark.sql import functions as F  # noqa: E402

from feature_defs import Entity, Feature, FeatureGroup, Service, Source  # noqa: E402
from jobs.compute import compute  # noqa: E402
from jobs.place import Place  # noqa: E402
from jobs.training_set import training_set  # noqa: E402
from tests.benchmarks.common import (  # noqa: E402
    in_folder,
    keep_in_memory,
    place_in,
    progress,
    rounded,
    seconds,
    told_by_feast,
    watched_memory,
)
from tests.lab import register  # noqa: E402

T0 = int(datetime(2023, 11, 14, tzinfo=timezone.utc).timestamp()) * 1_000_000
DAY_US = 86_400_000_000
SPAN = 90 * DAY_US
TIME = pa.timestamp("us", tz="UTC")
LEVELS = np.array(["bronze", "silver", "gold", "platinum"])


# data


def features_of(k: int) -> list[tuple[str, str]]:
    """The columns of a group: five doubles, five whole numbers, a string."""
    return [
        *((f"g{k}_d{j}", "double") for j in range(5)),
        *((f"g{k}_i{j}", "bigint") for j in range(5)),
        (f"g{k}_s", "string"),
    ]


def write_group(folder: Path, k: int, rows: int, entities: int, *, hot: float = 0.0) -> None:
    """Feature rows over 90 days, each half a percent of them repeated with a later created_time."""
    draw = np.random.default_rng([7, k, rows])
    customer, at = draw.integers(0, entities, rows), T0 + draw.integers(0, SPAN, rows)
    customer[draw.random(rows) < hot] = 7
    again = rows // 200
    customer[-again:], at[-again:] = customer[:again], at[:again]
    made = at + draw.integers(1_000_000, 60_000_000, rows)
    made[-again:] = made[:again] + 100_000_000
    columns: dict[str, Any] = {"customer_id": customer, "event_time": pa.array(at, TIME)}
    columns["created_time"] = pa.array(made, TIME)
    for name, kind in features_of(k):
        if kind == "double":
            columns[name] = draw.random(rows)
        else:
            columns[name] = draw.integers(0, 1000, rows) if kind == "bigint" else LEVELS[draw.integers(0, 4, rows)]
    table, folder = pa.table(columns), folder / f"g{k}"
    folder.mkdir(parents=True)
    for part in range(4):
        pq.write_table(table.slice(part * (rows // 4), rows // 4), folder / f"part-{part}.parquet")


def write_spine(file: Path, rows: int, entities: int, *, hot: float = 0.0, start: int = 0, span: int = SPAN) -> None:
    """Spine rows, one in a hundred of an entity that no group knows, one in two hundred a duplicate."""
    draw = np.random.default_rng([8, rows, start])
    customer, at = draw.integers(0, int(entities * 1.01), rows), T0 + start + draw.integers(0, span, rows)
    customer[draw.random(rows) < hot] = 7
    label, again = draw.integers(0, 2, rows), rows // 200
    for column in (customer, at, label):
        column[-again:] = column[:again]
    file.parent.mkdir(parents=True)
    pq.write_table(pa.table({"customer_id": customer, "event_time": pa.array(at, TIME), "label": label}), file)


def definitions(prefix: str, groups: int, ttl: str | None = None) -> list[Any]:
    found: list[Any] = []
    for k in range(groups):
        source = Source(f"{prefix}{k}", path=f"lake://raw/{prefix}/g{k}", format="parquet", event_time="event_time",
                        created_time="created_time")  # fmt: skip
        features = [Feature(name, kind) for name, kind in features_of(k)]
        found += [source, FeatureGroup(f"{prefix}_g{k}", entity="customer", source=source, ttl=ttl, offline="parquet",
                                       features=features)]  # fmt: skip
    found.append(Service(prefix, [part for part in found if isinstance(part, FeatureGroup)]))
    return found


# the same in plain engines


def duck_sql(engine: Any, spine: Path, tables: list[str], out: Path) -> None:
    """ASOF joins. Of rows with one event_time the last created is kept first: ASOF takes any of them."""
    values = ", ".join(f"g{k}.{name}" for k in range(len(tables)) for name, _ in features_of(k))
    text = f"SELECT s.*, {values} FROM '{spine}' s"
    for k, files in enumerate(tables):
        text += (
            f" ASOF LEFT JOIN (SELECT * FROM read_parquet({files}) QUALIFY row_number() "
            f"OVER (PARTITION BY customer_id, event_time ORDER BY created_time DESC) = 1) g{k} "
            f"ON s.customer_id = g{k}.customer_id AND s.event_time >= g{k}.event_time"
        )
    engine.execute(f"COPY ({text}) TO '{out}' (FORMAT parquet)")


def join_max_by(spark: SparkSession, spine: Path, tables: list[list[str]], out: Path) -> None:
    """Plain Spark: the spine's rows meet the feature rows before them, the newest is kept."""
    result = spark.read.parquet(str(spine)).withColumn("row", F.monotonically_increasing_id())
    points = result.select("row", "customer_id", F.col("event_time").alias("time"))
    for k, files in enumerate(tables):
        names = [name for name, _ in features_of(k)]
        rows = spark.read.parquet(*files).select("customer_id", "event_time", "created_time", *names)
        met = points.join(rows, "customer_id").where("event_time <= time")
        newest = F.max_by(F.struct(*names), F.struct("event_time", "created_time")).alias("newest")
        found = met.groupBy("row").agg(newest).select("row", "newest.*")
        result = result.join(found, "row", "left")
    result.drop("row").write.mode("overwrite").parquet(str(out))


def alone(spark: SparkSession, tables: list[list[str]], result: Path, out: Path) -> None:
    """Every value read, and the result written: what any join has to do besides."""
    for k, files in enumerate(tables):
        names = [name for name, _ in features_of(k)]
        rows = spark.read.parquet(*files).select("customer_id", "event_time", "created_time", *names)
        rows.write.format("noop").mode("overwrite").save()
    spark.read.parquet(str(result)).write.mode("overwrite").parquet(str(out))


def row_hash(engine: Any, files: str, groups: int, *, time: str = "event_time") -> tuple[int, int]:
    """How many rows, and a sum of their hashes: the same for the same rows in any order."""
    columns = ["customer_id", f"epoch_us({time})", "label", *(n for k in range(groups) for n, _ in features_of(k))]
    found = engine.execute(f"SELECT count(*), sum(hash({', '.join(columns)})::HUGEINT) FROM read_parquet({files})")
    return tuple(found.fetchall()[0])


# measuring


class Case:
    """Groups of one size with their spine, computed into offline tables."""

    def __init__(self, place: Place, folder: Path, name: str) -> None:
        self.place, self.folder, self.name = place, folder, name
        self.spine, self.out = folder / "raw" / name / "spine" / "part-0.parquet", folder / "work" / name

    def write(self, groups: int, rows: int, entities: int, *, hot: float = 0.0, **spine: int) -> None:
        for k in range(groups):
            write_group(self.folder / "raw" / self.name, k, rows, entities, hot=hot)
        write_spine(self.spine, rows // 5, entities, hot=hot, **spine)

    def join(self, service: str = "") -> None:
        spine, out = f"lake://raw/{self.name}/spine", f"lake://work/{self.name}"
        training_set(self.place, spine, service=service or self.name, out=out)

    def tables(self, prefix: str, groups: int) -> list[list[str]]:
        definitions = self.place.applied().definitions
        tables = [self.place.table(definitions.groups[f"{prefix}_g{k}"]) for k in range(groups)]
        return [[file.removeprefix("file://") for file in table.read_all().inputFiles()] for table in tables]

    @property
    def result(self) -> str:
        return f"'{self.out}/*.parquet'"


def measured(folder: Path, rows: int, rounds: int) -> dict[str, Any]:
    place, entities = place_in(folder), rows // 10
    cases = {name: Case(place, folder, name) for name in ("plain", "twice", "hot", "quarter")}
    progress("data")
    cases["plain"].write(8, rows, entities)
    cases["twice"].write(4, 2 * rows, entities)
    cases["hot"].write(4, rows, entities, hot=0.2)
    cases["quarter"].write(4, rows // 4, entities // 4)
    few = Case(place, folder, "few")
    write_spine(few.spine, 10_000, entities // 20, start=60 * DAY_US, span=7 * DAY_US)
    parts = [Entity("customer", keys={"customer_id": "bigint"})]
    for name, groups in (("plain", 8), ("twice", 4), ("hot", 4), ("quarter", 4)):
        parts += definitions(name, groups)
    half = [part for part in parts if isinstance(part, FeatureGroup) and part.name in {f"plain_g{k}" for k in range(4)}]
    parts.append(Service("half", half))
    register(place, *parts)
    compute(place, [part.name for part in parts if isinstance(part, FeatureGroup)])

    engine = duckdb.connect(config={"threads": 2, "memory_limit": "4GB", "temp_directory": str(folder / "duck")})
    engine.execute("SET timezone = 'UTC'; SET preserve_insertion_order = false")
    plain, tables = cases["plain"], cases["plain"].tables("plain", 4)
    ways: dict[str, Callable[[], object]] = {
        "groups_8": lambda: plain.join("plain"),
        "twice": cases["twice"].join,
        "hot": cases["hot"].join,
        "few": lambda: few.join("half"),
        "quarter": cases["quarter"].join,
        "ours": lambda: plain.join("half"),
        "duckdb": lambda: duck_sql(engine, plain.spine, tables, folder / "duck.parquet"),
        "join_max_by": lambda: join_max_by(place.spark, plain.spine, tables, folder / "max_by"),
        "spark_alone": lambda: alone(place.spark, tables, plain.out, folder / "alone"),
    }
    read = {name: cases[name].tables(name, 4) for name in ("twice", "hot", "quarter")}
    read["groups_8"] = plain.tables("plain", 8)
    first: dict[str, float] = {}
    warm: dict[str, list[float]] = {name: [] for name in ways}
    ratios: dict[str, list[float]] = {name: [] for name in ways}

    def taken(name: str) -> float:
        progress(f"round {number} of {rounds}: {name}")
        keep_in_memory(Path(file) for table in read.get(name, tables) for file in table)
        took = seconds(ways[name])
        first.setdefault(name, took)
        if number:
            warm[name].append(took)
        return took

    for number in range(rounds + 1):
        ours = taken("ours")
        for name in ways:
            if name != "ours":  # a machine's pace changes: held against ours just before it and just after it
                took, before, ours = taken(name), ours, taken("ours")
                if number:
                    ratios[name].append(2 * took / (before + ours))
    to_ours = {name: statistics.median(values) for name, values in ratios.items() if values}
    hashes = {"ours": row_hash(engine, plain.result, 4)}
    hashes["duckdb"] = row_hash(engine, f"'{folder}/duck.parquet'", 4)
    hashes["join_max_by"] = row_hash(engine, f"'{folder}/max_by/*.parquet'", 4)
    progress("processes of their own, and Feast")
    cold = statistics.median(seconds(lambda: in_a_process(folder, "few", "half")) for _ in range(rounds))
    peak = in_a_process(folder, "hot", "hot")
    feast = told_by_feast("join", folder, 4, rounds + 1)
    hashes_of_quarter = {
        row_hash(engine, cases["quarter"].result, 4),
        row_hash(engine, f"'{folder}/feast/out/*.parquet'", 4, time="event_timestamp"),
    }
    median = {name: statistics.median(values) for name, values in (warm | {"feast": feast[1:]}).items()}
    told = {
        "groups": 4,
        "rows": rows,
        "spine_rows": rows // 5,
        "vs_duckdb": to_ours["duckdb"],
        "vs_join_max_by": to_ours["join_max_by"],
        "vs_feast": median["feast"] / median["quarter"],
        "vs_spark_alone": to_ours["spark_alone"],
        "identical": len(set(hashes.values())) == 1,
        "identical_feast": len(hashes_of_quarter) == 1,
        "groups_8_vs_4": to_ours["groups_8"],
        "rows_x2": to_ours["twice"],
        "pruned_vs_full": to_ours["few"],
        "skew_vs_uniform": to_ours["hot"],
        "cold_s": cold,
        "peak_memory_gib_of_skewed": peak,
        "seconds": median,
        "first_seconds": first | {"feast": feast[0]},
    }
    found: dict[str, Any] = rounded(told)
    return found


def in_a_process(folder: Path, case: str, service: str) -> float:
    """A training set from the start of a process to its end; the most memory that it and all below it held, in GiB."""
    command = [sys.executable, __file__, "case", str(folder), case, service]
    told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return float(told.splitlines()[-1])


def main(rows: int = 4_000_000, rounds: int = 3) -> dict[str, Any]:
    return in_folder("pit", lambda folder: measured(folder, rows, rounds))


if __name__ == "__main__" and sys.argv[1:2] == ["case"]:
    lakes, case, service = Path(sys.argv[2]), *sys.argv[3:]
    with watched_memory() as peak:
        Case(place_in(lakes), lakes, case).join(service)
    print(peak[0])
elif __name__ == "__main__":
    print(json.dumps(main(*map(int, sys.argv[1:]))))
