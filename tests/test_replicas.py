"""Replicas read by Spark: real Delta histories at every version, training sets made again, two places compared."""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from connectors.delta_log import delta_version
from connectors.file_store import LocalFileStore, local_path
from connectors.readable import any_version
from feature_defs import Entity, Feature, FeatureGroup, Service, Source
from feature_defs.errors import DataError, LakeError, UsageError
from jobs.command_line import main
from jobs.compare import compare, hashes_of
from jobs.compute import compute
from jobs.place import Place
from jobs.rebuild import rebuild
from jobs.replicate import replicate
from jobs.row_diff import ONLY_LEFT, ONLY_RIGHT, Rows
from jobs.training_set import training_set
from tests.conftest import settings_in
from tests.histories import bring, contents
from tests.lab import NOW, Table, put, register, write_profile

customer = Entity("customer", keys={"customer_id": "string"})
raw = Source("raw", path="lake://raw/rows", format="parquet", event_time="event_time")
in_delta = FeatureGroup("in_delta", entity=customer, source=raw, features=[Feature("n", "bigint")])
in_parquet = FeatureGroup(
    "in_parquet", entity=customer, source=raw, features=[Feature("m", "bigint")], offline="parquet"
)
both = Service("both", [in_delta, in_parquet])


def hashes(spark: SparkSession, versions: list[tuple[str, int]]) -> list[Any]:
    """The hash of all rows of each version of each table, in one job."""
    with any_version(spark):
        read = [spark.read.format("delta").option("versionAsOf", n).load(uri) for uri, n in versions]
        return hashes_of([Rows(rows, rows.columns) for rows in read])


def changes(spark: SparkSession, uri: str) -> Any:
    rows = spark.read.format("delta").option("readChangeFeed", "true").option("startingVersion", 0).load(uri)
    told = rows.drop("_commit_timestamp")  # which is when the file was written
    return hashes_of([Rows(told, told.columns)])


@pytest.fixture(scope="module")
def rich(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table with all that Delta does: deletion vectors, change data, another schema, compaction, both checkpoints."""
    folder = tmp_path_factory.mktemp("rich") / "a table %1"
    name = f"delta.`file://{folder}`"
    properties = {
        "delta.enableDeletionVectors": "true",
        "delta.enableChangeDataFeed": "true",
        "delta.checkpointInterval": "3",
    }
    rows = spark.range(0, 40, 1, 1).selectExpr("id", "concat('a day/ %', id % 2) AS day", "concat('v', id) AS v")
    rows.write.format("delta").partitionBy("day").options(**properties).save(f"file://{folder}")
    merged = f"MERGE INTO {name} t USING (SELECT id * 3 AS id FROM range(50)) s ON t.id = s.id"
    for statement in (
        f"DELETE FROM {name} WHERE id % 7 = 0",
        f"UPDATE {name} SET v = 'new' WHERE id % 5 = 1",
        f"ALTER TABLE {name} ADD COLUMN w int",
        f"ALTER TABLE {name} SET TBLPROPERTIES ('delta.checkpointPolicy' = 'v2')",
        f"{merged} WHEN MATCHED THEN UPDATE SET w = 1 WHEN NOT MATCHED THEN INSERT (id, day) VALUES (s.id, 'other')",
        f"OPTIMIZE {name}",
        f"DELETE FROM {name} WHERE id = 1",
    ):
        spark.sql(statement).collect()
    return folder


def cleaned_up(table: Path, folder: Path, before: int) -> Path:
    """A copy of a table of whose log all is gone that is older than a version."""
    shutil.copytree(table, folder)
    for path in (folder / "_delta_log").iterdir():
        if (number := path.name.lstrip(".")[:20]).isdigit() and int(number) < before:
            path.unlink()
    return folder


def test_replica_of_a_real_history_is_the_same_at_every_version(
    spark: SparkSession, rich: Path, tmp_path: Path
) -> None:
    """Rows of each version and the change feed; brought in two runs. Replicas of a log that was cleaned up begin with
    its checkpoint, a classic one and a V2 one with sidecars, and are the same from there on."""
    source, target, half = f"file://{rich}", tmp_path / "replica", tmp_path / "half"
    shutil.copytree(rich, half)
    for path in (half / "_delta_log").iterdir():
        if (path.name[:20].isdigit() and int(path.name[:20]) > 4) or path.name.startswith("_last"):
            path.unlink()
    assert len(bring(half, target).versions) == 5
    assert len(bring(rich, target).versions) == 3
    mine = {name: content for name, content in contents(rich).items() if not name.rpartition("/")[2].startswith(".")}
    assert contents(target) == mine
    assert any(name.startswith("deletion_vector_") for name in mine)
    assert any(name.startswith("_change_data/") for name in mine)
    assert any(name.endswith("3.checkpoint.parquet") for name in mine)
    assert any("_sidecars/" in name for name in mine)
    for before in (3, 6):
        assert (
            len(bring(cleaned_up(rich, tmp_path / f"from {before}", before), tmp_path / f"r{before}").versions)
            == 8 - before
        )
        found = delta_version(LocalFileStore(), f"file://{tmp_path}/r{before}", "t")
        assert found == delta_version(LocalFileStore(), source, "t")
    later = [(f"file://{tmp_path}/r{before}", version) for before in (3, 6) for version in (before, 7)]
    every = range(8)
    told = hashes(spark, [*((source, n) for n in every), *((f"file://{target}", n) for n in every), *later])
    assert told[:8] == told[8:16]
    assert len({each.sum for each in told[:8]}) == 6  # a property and OPTIMIZE change no row
    assert told[16:] == [told[3], told[7], told[6], told[7]]
    assert changes(spark, f"file://{target}") == changes(spark, source)


def test_shallow_clone_is_refused(spark: SparkSession, rich: Path, tmp_path: Path) -> None:
    spark.sql(f"CREATE TABLE delta.`file://{tmp_path}/clone` SHALLOW CLONE delta.`file://{rich}`").collect()
    with pytest.raises(LakeError, match="as a shallow clone does"):
        bring(tmp_path / "clone", tmp_path / "replica")


def rows_of(table: Table) -> DataFrame:
    text = (
        "customer_id | event_time | n | m\nc1 | 2026-01-01 | 1 | 10\nc2 | 2026-01-02 | 2 | 20\nc3 | 2026-01-03 | 3 | 30"
    )
    return table(text, "n bigint, m bigint")


@pytest.fixture(scope="module")
def computed(spark: SparkSession, table: Table, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place with two groups of two versions, and a training set of the first."""
    folder = tmp_path_factory.mktemp("computed")
    place = Place(settings_in(folder))
    register(place, customer, raw, in_delta, in_parquet, both)
    put(place, rows_of(table), "lake://raw/rows")
    compute(place, now=NOW)
    put(place, table("customer_id | event_time\nc1 | 2026-02-01\nc3 | 2026-02-01"), "lake://raw/spine")
    training_set(place, "lake://raw/spine", service="both", out="lake://work/out")
    put(place, rows_of(table).where("customer_id != 'c1'"), "lake://raw/rows")
    compute(place, now=NOW, full=True)
    return folder


@pytest.fixture
def here(computed: Path, spark: SparkSession, tmp_path: Path) -> Place:
    """A copy of it; a new path, so that no cache of Delta's knows it."""
    shutil.copytree(computed, tmp_path / "here")
    return Place(settings_in(tmp_path / "here"))


@pytest.fixture
def there(spark: SparkSession, tmp_path: Path) -> Place:
    (tmp_path / "there").mkdir()
    return Place(settings_in(tmp_path / "there"))


def test_replica_makes_the_same_training_set_and_every_version_is_the_same(here: Place, there: Place) -> None:
    """Also of versions that were replaced since: the dataset's manifest and its spine are all that is carried over."""
    replicate(here, to=there)
    for path in ("lake://raw/spine", "lake://work/out"):
        shutil.copytree(local_path(here.lakes.uri(path)), local_path(there.lakes.uri(path)))
    rebuild(there, "lake://work/out", out="lake://work/again")  # an error unless the hashes are the manifest's
    told = compare(here, right=there, every_version=True)
    assert told.exit_code == 0
    assert {group.group: [(v.left_version, v.left.rows) for v in group.versions] for group in told.groups} == {
        "in_delta": [(0, 3), (1, 2)],
        "in_parquet": [(1, 3), (2, 2)],
    }
    assert "the same" in told.text()
    assert told.text().splitlines()[-1].startswith("equal, ")


def test_the_same_definition_computed_in_two_places_is_held_against_the_other(
    computed: Path, here: Place, table: Table, tmp_path: Path
) -> None:
    """Other commits, the same rows: equal. Then rows, cells, columns and definitions that are not the same."""
    shutil.copytree(computed, tmp_path / "there")
    there = Place(settings_in(tmp_path / "there"))
    compute(there, ["in_delta"], now=NOW, full=True)
    assert compare(here, right=there).exit_code == 0
    changed = rows_of(table).withColumn("n", F.expr("if(customer_id = 'c2', 7, n)")).where("customer_id != 'c3'")
    put(there, changed, "lake://raw/rows")
    more = dataclasses.replace(in_delta, features=[Feature("n", "bigint"), Feature("k", "bigint", "n + 1")])
    register(there, customer, raw, more, in_parquet, both)
    compute(there, ["in_delta"], now=NOW, full=True)
    report = compare(here, right=there, values=True)
    group, other = report.groups
    assert (report.exit_code, group.equal, other.equal) == (1, False, True)
    assert (group.only_left, group.only_right, group.changed) == (1, 1, {"created_time": 0, "n": 1})
    assert [(one.feature, one.row["customer_id"], one.values) for one in group.examples] == [
        ("n", "c2", (2, 7)),
        (ONLY_LEFT, "c3", None),
        (ONLY_RIGHT, "c1", None),
    ]
    assert (group.columns_added, group.columns_removed) == (("k bigint",), ())
    text = dataclasses.replace(report, left="onprem", right="cloud").text()
    assert "in_delta: 1 row only in cloud" in text
    assert "in_delta: n differs in 1 row" in text
    assert re.search(r"\(only left\) +customer_id=c3 +2026-01-03", text)
    assert "in_delta: column k bigint: only in cloud" in text
    assert "in_delta: its definitions are not the same: " in text
    assert compare(here, ["in_delta"], right=there, version=1).exit_code == 0


def test_what_cannot_be_compared_is_said(here: Place, there: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--left", write_profile(here, "onprem"), "--right", write_profile(there, "cloud")]) == 6
    assert "holds no definitions yet" in capsys.readouterr().err
    with pytest.raises(LakeError, match="holds no definitions yet"):
        compare(here, right=there)
    register(there, customer, raw, in_delta, in_parquet)
    with pytest.raises(DataError, match="FeatureGroup 'in_delta': has no offline table in test"):
        compare(here, right=there)
    with pytest.raises(UsageError, match="-1 is less than none"):
        compare(here, right=there, examples=-1)
    with pytest.raises(UsageError, match="one version, or every version"):
        compare(here, right=there, version=1, every_version=True)
