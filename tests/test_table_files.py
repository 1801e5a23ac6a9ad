"""Tables whose files tasks write: Delta reads them as its own, before and behind its own commits, whatever fails."""

from __future__ import annotations

import datetime
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from chispa import assert_df_equality
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from connectors import table_files
from connectors.delta_log import commit_actions
from connectors.file_store import LocalFileStore, local_path, open_file_store
from connectors.offline_tables import MAINTAINED, OfflineTable, open_table
from connectors.plain_files import plain_files
from connectors.table_files import Begun
from feature_defs import Aggregate, Entity, Expectation, Feature, FeatureGroup, Freshness, RowCount, Source, Unique
from feature_defs.errors import DataError, LakeError
from jobs import group_run
from jobs.compute import ComputedGroup, compute
from jobs.maintain import maintain
from jobs.place import Place
from jobs.transforms.pieces import _write_parquet
from tests.lab import NOW, files_in, put, register

KEYS = "k bigint, name string, day date, event_time timestamp, created_time timestamp, x double"
LONG = "a text that is longer than the thirty-two characters of a bound"


def rows_of(spark: SparkSession, count: int, *, plus: int = 0) -> DataFrame:
    rows = spark.range(count).selectExpr(
        f"id + {plus} AS k",
        f"concat('{LONG}', id) AS name",
        "date_add(DATE '2026-01-01', cast(id % 5 AS int)) AS day",
        "timestamp_micros(1767225600000000 + id * 1001) AS event_time",
        "timestamp_micros(1767225600000000 + id * 2002) AS created_time",
        "if(id % 3 = 0, null, id / 2) AS x",
    )
    return spark.createDataFrame(rows.toArrow(), KEYS)


def write(table: OfflineTable, rows: DataFrame, note: dict[str, Any] | None = None) -> int:
    """As a job does with the files of its tasks."""
    version = begun(table, rows.schema)
    files = list(version.write(iter(rows.toArrow().to_batches())))
    return table.finish(version, files, rows.schema, note or {})


def begun(table: OfflineTable, schema: StructType) -> Begun:
    version = table.begin(schema)
    assert version is not None
    return version


@pytest.fixture(params=["delta", "parquet"])
def table(spark: SparkSession, tmp_path: Path, request: pytest.FixtureRequest) -> OfflineTable:
    return open_table(spark, f"file://{tmp_path}/a lake #1%20/table", request.param)


def files_below(table: OfflineTable) -> list[str]:
    return [file.path for file in open_file_store(table.uri).list_files(table.uri) if file.path.startswith("data/")]


def check_holds(table: OfflineTable, rows: DataFrame, version: int | None = None) -> None:
    assert_df_equality(table.read_all(version), rows, ignore_row_order=True, ignore_nullable=True)


def test_versions_of_tasks_and_of_spark_follow_each_other(
    spark: SparkSession, table: OfflineTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_files, "ROWS_A_FILE", 40)
    first, second, third = rows_of(spark, 100), rows_of(spark, 50, plus=7), rows_of(spark, 5, plus=1000)
    one = write(table, first, {"run": "one"})
    two = table.append(third, {"run": "two"}, after=one)
    three = write(table, second, {"run": "three"})
    changed = third.union(second.where("k >= 50").withColumn("x", F.lit(0.5)))
    four = table.merge(changed, {"run": "four"}, on=["k"], after=three)
    five = write(table, first, {"run": "five"})  # behind files of which some rows are deleted
    six = table.replace(second, {"run": "six"})
    assert [one, two, three, four, five, six] == [one + n for n in range(6)]
    both = second.where("k < 50").union(changed)
    for version, expected in ((one, first), (two, first.union(third)), (three, second), (four, both), (five, first)):
        check_holds(table, expected, version)
    check_holds(table, second)
    runs = ["one", "two", "three", "four", "five", "six"]
    assert [table.note(version)["run"] for version in table.versions()] == runs
    changes = table.changes(two, three)
    assert changes is not None
    went = {row["k"]: row["_tidemark_went"] for row in changes.where("k >= 100").collect()}
    assert went == dict.fromkeys(range(1000, 1005), True)


def test_a_reader_of_some_rows_opens_few_files(
    spark: SparkSession, table: OfflineTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_files, "ROWS_A_FILE", 10)
    rows = rows_of(spark, 100)
    files = plain_files(table, write(table, rows))
    assert files is not None
    assert len(files.files) == 10
    start = 1767225600000000
    near = files.within(start + 45 * 1001, start + 47 * 1001)
    assert len(near.files) == 1
    check_holds(table, rows)
    for condition in (
        "k = 42",
        f"name = '{LONG}42'",
        "day = DATE '2026-01-03' AND k > 90",
        f"event_time > timestamp_micros({start + 45 * 1001}) AND event_time <= timestamp_micros({start + 47 * 1001})",
        f"event_time = timestamp_micros({start + 99 * 1001})",
    ):
        assert table.read().where(condition).count() == rows.where(condition).count() > 0, condition


def test_delta_opens_the_files_whose_bounds_fit(spark: SparkSession, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(table_files, "ROWS_A_FILE", 10)
    table = open_table(spark, f"file://{tmp_path}/table", "delta")
    write(table, rows_of(spark, 100))
    for condition in ("k = 42", "event_time = timestamp_micros(1767225600000000 + 42 * 1001)"):
        assert len(table.read().where(condition).inputFiles()) == 1, condition


def test_a_new_table_is_as_delta_makes_it(spark: SparkSession, tmp_path: Path) -> None:
    rows = rows_of(spark, 3)
    told = []
    for name in ("spark", "tasks"):
        table = open_table(spark, f"file://{tmp_path}/{name}", "delta")
        number = table.replace(rows.coalesce(1), {}) if name == "spark" else write(table, rows)
        assert number == 0
        told.append(
            {key: action[key] for action in commit_actions(open_file_store(table.uri), table.uri, 0) for key in action}
        )
    by_spark, by_tasks = told
    assert by_spark.keys() == by_tasks.keys()
    assert by_tasks["protocol"] == by_spark["protocol"]
    varying = {"id", "createdTime"}
    assert {k: v for k, v in by_tasks["metaData"].items() if k not in varying} == {
        k: v for k, v in by_spark["metaData"].items() if k not in varying
    }
    assert by_tasks["txn"]["version"] == by_spark["txn"]["version"]
    stats = [json.loads(one["add"]["stats"]) for one in told]
    for side in ("minValues", "nullCount"):
        assert stats[0][side] == {name: value for name, value in stats[1][side].items() if name in stats[0][side]}
    assert not files_left(table, "_staging")


def files_left(table: OfflineTable, folder: str) -> list[str]:
    return [file.path for file in open_file_store(table.uri).list_files(table.uri) if file.path.startswith(folder)]


def test_what_is_not_known_here_is_for_spark(spark: SparkSession, tmp_path: Path) -> None:
    rows = rows_of(spark, 3)
    table = open_table(spark, f"file://{tmp_path}/table", "delta")
    write(table, rows)
    assert table.begin(rows.drop("x").schema) is None
    assert table.begin(rows.withColumn("x", F.lit("text")).schema) is None
    spark.sql(f"ALTER TABLE delta.`{table.uri}` SET TBLPROPERTIES ('delta.enableRowTracking' = 'true')")
    assert table.begin(rows.schema) is None
    other = open_table(spark, f"file://{tmp_path}/other", "delta")
    write(other, rows)
    spark.sql(f"ALTER TABLE delta.`{other.uri}` ADD CONSTRAINT positive CHECK (k >= 0)")
    assert other.begin(rows.schema) is None
    decimal = rows.selectExpr("cast(k AS decimal(9, 2)) AS k", "event_time")
    assert open_table(spark, f"file://{tmp_path}/decimal", "delta").begin(decimal.schema) is None
    assert open_table(spark, f"file://{tmp_path}/a[b]", "delta").begin(rows.schema) is None
    known = open_table(spark, f"file://{tmp_path}/known", "delta")
    write(known, rows)
    stats = "'delta.dataSkippingStatsColumns' = 'event_time,k,x'"
    spark.sql(f"ALTER TABLE delta.`{known.uri}` SET TBLPROPERTIES ({stats})")
    assert known.begin(rows.schema) is None


def test_every_tenth_version_is_for_spark_which_writes_its_checkpoint(spark: SparkSession, tmp_path: Path) -> None:
    table = open_table(spark, f"file://{tmp_path}/table", "delta")
    for number in range(10):
        assert write(table, rows_of(spark, 3, plus=number), {"run": number}) == number
    last = rows_of(spark, 3, plus=10)
    assert table.begin(last.schema) is None
    assert table.replace(last, {"run": 10}) == 10
    assert files_left(table, "_delta_log/00000000000000000010.checkpoint")
    behind = rows_of(spark, 4, plus=11)
    assert write(table, behind, {"run": 11}) == 11
    check_holds(table, behind)
    check_holds(table, last, 10)


def test_of_two_that_began_together_the_second_is_told(spark: SparkSession, table: OfflineTable) -> None:
    before, one, two = rows_of(spark, 3), rows_of(spark, 4), rows_of(spark, 5)
    write(table, before)
    versions = [begun(table, before.schema) for _ in range(2)]
    files = [
        list(version.write(iter(rows.toArrow().to_batches())))
        for version, rows in zip(versions, (one, two), strict=True)
    ]
    number = table.finish(versions[0], files[0], before.schema, {"run": "one"})
    with pytest.raises(LakeError, match="another run wrote a version meanwhile"):
        table.finish(versions[1], files[1], before.schema, {"run": "two"})
    assert table.version() == number
    check_holds(table, one)
    assert not files_left(table, versions[1].folder)
    fresh = open_table(spark, table.uri + "-new", "delta" if "Delta" in type(table).__name__ else "parquet")
    versions = [begun(fresh, before.schema) for _ in range(2)]
    fresh.finish(versions[0], [], before.schema, {"run": "one"})
    with pytest.raises(LakeError, match="another run wrote a version meanwhile"):
        fresh.finish(versions[1], [], before.schema, {"run": "two"})


@pytest.mark.parametrize("first", ["tasks", "spark"])
def test_of_tasks_and_spark_that_began_together_the_second_is_told(
    spark: SparkSession, tmp_path: Path, first: str
) -> None:
    rows, table = rows_of(spark, 3), open_table(spark, f"file://{tmp_path}/table", "delta")
    before = write(table, rows)
    version = begun(table, rows.schema)
    files = list(version.write(iter(rows.toArrow().to_batches())))
    if first == "spark":
        table.append(rows, {}, after=before)
        with pytest.raises(LakeError, match="another run wrote"):
            table.finish(version, files, rows.schema, {})
    else:
        table.finish(version, files, rows.schema, {})
        with pytest.raises(LakeError, match="another run wrote"):
            table.append(rows, {}, after=before)
    assert table.version() == before + 1


def test_a_version_that_was_created_unnoticed_is_ours(
    spark: SparkSession, table: OfflineTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = LocalFileStore.create

    def repeated(store: LocalFileStore, uri: str, content: bytes) -> None:
        for _ in range(2):  # as a network's file system may do with a call whose answer was lost
            create(store, uri, content)

    rows = rows_of(spark, 3)
    monkeypatch.setattr(LocalFileStore, "create", repeated)
    assert write(table, rows) == table.version()
    check_holds(table, rows)


def test_values_that_python_does_not_know_have_no_bounds(spark: SparkSession, tmp_path: Path) -> None:
    table = open_table(spark, f"file://{tmp_path}/table", "delta")
    name = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\0")])
    day = pa.array([100_020_454], pa.int32()).cast(pa.date32())
    time = pa.array([253_402_300_800_000_000], pa.timestamp("us", "UTC"))
    schema = StructType.fromDDL("name string, day date, event_time timestamp")
    version = begun(table, schema)
    files = list(version.write(iter([pa.record_batch({"name": name, "day": day, "event_time": time})])))
    actions = commit_actions(open_file_store(table.uri), table.uri, table.finish(version, files, schema, {}))
    (add,) = [action["add"] for action in actions if "add" in action]
    assert json.loads(add["stats"])["minValues"] == {}
    assert table.read().where("event_time > TIMESTAMP '2026-01-01' AND name > 'a'").count() == 1


def test_a_filter_finds_rows_that_are_no_number(spark: SparkSession, table: OfflineTable) -> None:
    numbers = [(n, float("nan") if n % 2 else float(n)) for n in range(10)]
    rows = spark.createDataFrame(numbers, "k bigint, x double").selectExpr(
        "k", "timestamp_seconds(k) AS event_time", "x", "cast(x AS float) AS y"
    )
    write(table, rows)
    for condition in ("x > 100", "x >= 8", "x = double('NaN')", "y > 100", "x < 3"):
        assert table.read().where(condition).count() == rows.where(condition).count() > 0, condition


def test_a_filter_of_a_dataset_finds_them_too(spark: SparkSession, tmp_path: Path) -> None:
    rows = pa.table({"x": pa.array([1.0, float("nan")]), "name": ["a", "b"], "many": [[1.0], [float("nan")]]})
    _write_parquet(rows, tmp_path / "part-0.parquet")
    found = spark.read.parquet(f"file://{tmp_path}")
    assert [row["name"] for row in found.where("x > 100").collect()] == ["b"]
    assert found.where("name = 'a'").count() == 1


def test_maintenance_in_between_is_no_other_run(spark: SparkSession, table: OfflineTable) -> None:
    before, after = rows_of(spark, 3), rows_of(spark, 5)
    first = write(table, before, {"run": "one"})
    version = begun(table, before.schema)
    table.replace(before.coalesce(1), {"run": "one", MAINTAINED: "m"})
    files = list(version.write(iter(after.toArrow().to_batches())))
    assert table.finish(version, files, after.schema, {"run": "two"}) == first + 2
    check_holds(table, after)
    assert table.note(first + 2)["run"] == "two"


# compute


customer = Entity("customer", keys={"customer_id": "bigint", "shop": "string"})
source = Source("sales", path="lake://raw/sales", format="parquet", event_time="at", created_time="seen")
FUNCTIONS = ("count", "sum", "avg", "min", "max", "variance", "stddev")
FEATURES = [
    Feature(
        f"{name}_{days}",
        "bigint" if name == "count" else "double",
        Aggregate(name, None if name == "count" else "amount", window=days),
    )
    for name in FUNCTIONS
    for days in ("1d", "3d", None)
]


def sales(spark: SparkSession, count: int = 2_000) -> DataFrame:
    return spark.range(count).selectExpr(
        "id % 17 AS customer_id",
        "concat('shop ', id % 3) AS shop",
        "timestamp_micros(1767225600000000 + pmod(hash(id), 1000000) * 1000000L) AS at",
        "timestamp_micros(1768225600000000 + id) AS seen",
        "if(id % 11 = 0, null, cast(pmod(hash(id, 1), 1000) AS double) / 7) AS amount",
    )


def in_force(place: Place, offline: str, **more: Any) -> FeatureGroup:
    group = FeatureGroup(
        "spend", entity=customer, source=source, offline=offline, every="1d", **{"features": FEATURES, **more}
    )
    register(place, customer, source, group)
    return group


def computed(place: Place) -> ComputedGroup:
    return compute(place, now=NOW, full=True).groups[0]


RULES = [
    Expectation("positive", "sum_1d IS NULL OR sum_1d > 200"),
    Unique(("customer_id", "shop", "event_time"), name="one_a_day"),
    RowCount(1),
    Freshness("1d"),
]


@pytest.mark.parametrize("offline", ["delta", "parquet"])
def test_tasks_write_what_spark_writes(
    place: Place, spark: SparkSession, monkeypatch: pytest.MonkeyPatch, offline: str
) -> None:
    put(place, sales(spark), "lake://raw/sales")
    group = in_force(place, offline, expectations=RULES)
    table = place.table(group)
    by_tasks = computed(place)
    found, schema = table.read_all(), table.read_all().schema
    assert files_below(table)
    with monkeypatch.context() as patch:
        patch.setattr(type(table), "begin", lambda *_: None)
        by_spark = computed(place)
    assert table.read_all().schema == schema
    assert_df_equality(found, table.read_all(), ignore_row_order=True, ignore_nullable=True)
    assert by_tasks.broken_rules == by_spark.broken_rules
    assert by_tasks.broken_rules["positive"] > 0
    assert by_tasks.broken_rules["one_a_day"] == 0
    assert (by_tasks.rows, by_tasks.rejected) == (by_spark.rows, by_spark.rejected) == (found.count(), 0)
    notes = [{**table.note(version), "run": "", "commit": ""} for version in table.versions()]
    assert notes[0] == notes[1]


@pytest.mark.parametrize("offline", ["delta", "parquet"])
def test_later_runs_go_on_from_files_of_tasks(place: Place, spark: SparkSession, offline: str) -> None:
    rows = sales(spark)
    early = "at < TIMESTAMP '2026-01-10'"
    put(place, rows.where(early), "lake://raw/sales")
    group = in_force(place, offline)
    computed(place)
    rows.where(f"NOT ({early})").coalesce(1).write.mode("append").parquet(place.lakes.uri("lake://raw/sales"))
    assert compute(place, now=NOW).groups[0].how == "added"
    grown = place.table(group).read_all()
    kept = grown.toArrow()
    computed(place)
    assert_df_equality(
        spark.createDataFrame(kept, grown.schema),
        place.table(group).read_all(),
        ignore_row_order=True,
        ignore_nullable=True,
    )


@pytest.mark.parametrize("offline", ["delta", "parquet"])
@pytest.mark.parametrize(
    "rule", [Expectation("never", "count_1d < 0", severity="stop"), RowCount(10**9, severity="stop")]
)
def test_a_rule_that_stops_leaves_no_file(place: Place, spark: SparkSession, offline: str, rule: Any) -> None:
    put(place, sales(spark), "lake://raw/sales")
    group = in_force(place, offline, expectations=[rule])
    with pytest.raises(DataError, match="of severity stop is broken"):
        computed(place)
    assert place.table(group).version() is None
    assert not [file for file in files_in(place, "features") if file.endswith(".parquet")]
    in_force(place, offline)
    computed(place)
    kept = place.table(group).read_all().toArrow().num_rows
    in_force(place, offline, expectations=[rule])
    with pytest.raises(DataError, match="of severity stop is broken"):
        computed(place)
    assert place.table(group).read_all().count() == kept


def test_what_fails_is_told_whatever_becomes_of_the_files(
    place: Place, spark: SparkSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(*_: Any) -> None:
        raise FileNotFoundError

    put(place, sales(spark), "lake://raw/sales")
    in_force(place, "parquet", expectations=[RowCount(10**9, severity="stop")])
    monkeypatch.setattr(group_run, "_check_writable", lambda *_, **__: None)
    monkeypatch.setattr(LocalFileStore, "delete", busy)
    with pytest.raises(DataError, match="of severity stop is broken"):
        computed(place)


@pytest.mark.parametrize("offline", ["delta", "parquet"])
@pytest.mark.parametrize("rules", [[], RULES[:2]], ids=["no rules", "rules"])
def test_a_grid_of_which_no_cell_is_over_is_an_empty_table(
    place: Place, spark: SparkSession, offline: str, rules: list[Any]
) -> None:
    rows = sales(spark, 51).withColumn("at", F.expr("TIMESTAMP '2026-01-31 12:00:00'"))
    put(place, rows, "lake://raw/sales")
    group = in_force(place, offline, expectations=rules)
    at = datetime.datetime(2026, 1, 31, 18, tzinfo=datetime.timezone.utc)
    found = compute(place, now=at, full=True).groups[0]
    assert found.rows == place.table(group).read().count() == 0
    assert compute(place, now=NOW).groups[0].rows == place.table(group).read().count() == 51


def test_rows_of_a_quarantine_are_for_spark(place: Place, spark: SparkSession) -> None:
    put(place, sales(spark), "lake://raw/sales")
    group = in_force(place, "delta", expectations=[Expectation("much", "sum_1d > 200", severity="quarantine")])
    assert computed(place).rejected > 0
    assert not files_below(place.table(group))


def test_a_task_that_fails_leaves_no_file(place: Place, spark: SparkSession) -> None:
    rows = sales(spark, 200).withColumn("amount", F.expr("if(customer_id = 3, 5000000000000000000, 1)"))
    put(place, rows, "lake://raw/sales")
    group = in_force(place, "parquet", features=[Feature("total", "bigint", Aggregate("sum", "amount"))])
    with pytest.raises(DataError, match="OVERFLOW"):
        computed(place)
    assert place.table(group).version() is None
    assert not [file for file in files_in(place, "features") if file.endswith(".parquet")]


CHILD = """
import os, signal, sys
from pathlib import Path
from connectors import offline_tables
from jobs.compute import compute
from jobs.place import Place
from tests.conftest import settings_in
from tests.lab import NOW

stage, folder = sys.argv[1], Path(sys.argv[2])
dead = lambda *args, **more: os.killpg(0, signal.SIGKILL)
if stage == "before the commit":
    offline_tables._finished = dead
else:
    finished = offline_tables._finished
    offline_tables._finished = lambda *args: (finished(*args), dead())
compute(Place(settings_in(folder)), now=NOW, full=True)
"""


@pytest.mark.parametrize(
    ("offline", "stage"),
    [("delta", "before the commit"), ("parquet", "before the commit"), ("delta", "after the commit")],
)
def test_kill_of_the_driver_leaves_one_correct_table(
    place: Place, spark: SparkSession, tmp_path: Path, offline: str, stage: str
) -> None:
    put(place, sales(spark, 500), "lake://raw/sales")
    group = in_force(place, offline)
    computed(place)
    table = place.table(group)
    before = table.version() or 0
    put(place, sales(spark), "lake://raw/sales")
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, stage, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    assert child.wait(timeout=240) == -signal.SIGKILL
    moved = stage == "after the commit"
    assert table.version() == before + moved
    known = {path for version in table.versions() for path in named_by(table, version)}
    left = set(files_below(table)) - known
    assert bool(left) != moved
    again = compute(place, now=NOW).groups[0]
    assert again.how == "full"
    found = table.read_all().toArrow().num_rows
    computed(place)
    assert table.read_all().count() == found
    for path in left:
        os.utime(local_path(f"{table.uri}/{path}"), (0, 0))
    maintain(place)
    assert not left & set(files_below(table))


def named_by(table: OfflineTable, version: int) -> set[str]:
    files = plain_files(table, version)
    assert files is not None
    return {file.uri.removeprefix(f"{table.uri}/") for file in files.files}
