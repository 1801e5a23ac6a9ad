"""Proof of a training set: its manifest and hash, and made again from them; real Delta and Parquet tables."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from connectors.file_store import local_path, open_file_store
from connectors.manifests import (
    Column,
    Manifest,
    RowHash,
    SpineRecord,
    from_plain,
    read_delta_manifest,
    to_plain,
    written,
)
from connectors.offline_tables import delta_table
from feature_defs import Entity, Feature, FeatureGroup, Service, Source
from feature_defs.errors import DataError, UsageError
from feature_defs.join_plan import TimeRules
from feature_defs.model import Definition
from jobs.datasets import found_dataset, manifest_of
from jobs.place import Place
from jobs.rebuild import rebuild
from jobs.store import Store
from jobs.training_set import training_set
from jobs.transforms.row_hash import hash_of
from tests.conftest import settings_in
from tests.lab import Table, files_in, put, read_json, register
from tests.pipe_tables import assert_rows

customer = Entity("customer", keys={"customer_id": "string"})
raw = Source("raw", path="lake://raw/rows", format="parquet", event_time="event_time", created_time="created_time")
spend = FeatureGroup("spend", entity=customer, source=raw, features=[Feature("amount", "bigint")], ttl="9d")
habits = FeatureGroup(
    "habits",
    entity=customer,
    source=raw,
    offline="parquet",
    features=[Feature("city", "string"), Feature("seen", "map<string,int>"), Feature("vector", "array<float>")],
)
churn = Service("churn", [spend, habits])
WORDS: tuple[Definition, ...] = (customer, raw, spend, habits, churn)
SPINE = """
label | customer_id | event_time
a     | c1          | 2026-01-05
a     | c1          | 2026-01-05
b     | c1          | 2026-01-20
c     | c2          | 2026-01-05
d     | null        | 2026-01-05
e     | c1          | null
"""
SPEND = """
customer_id | event_time | created_time | amount
c1          | 2026-01-01 | 2026-01-07   | 10
c1          | 2026-01-04 | 2026-01-04   | 11
c2          | 2026-01-01 | null         | 20
"""
HABITS = """
customer_id | event_time | created_time | city | seen        | vector
c1          | 2026-01-01 | 2026-01-01   | Wien | {"a":1,"b":2} | [1,null]
c2          | 2026-01-01 | 2026-01-01   | null | {}          | [1]
"""


def habit_rows(table: Table, text: str = HABITS) -> DataFrame:
    made = {"seen": "map<string,int>", "vector": "array<float>"}
    rows = table(text)
    return rows.withColumns({name: F.expr(f"from_json({name}, '{kind}')") for name, kind in made.items()})


def write_tables(place: Place, table: Table, amount: str = "amount") -> None:
    """One more version of both tables, in the order of compute's columns."""
    snapshot = place.applied()
    spends = table(SPEND, "amount bigint").withColumn("amount", F.expr(amount))
    for group, rows in ((spend, spends), (habits, habit_rows(table))):
        place.table(group).replace(rows, {"fingerprint": snapshot.fingerprint(group.name)})


@pytest.fixture(scope="module")
def original(spark: SparkSession, table: Table, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tables, a spine in Parquet and one in Delta, a training set in each format, then newer versions of all."""
    folder = tmp_path_factory.mktemp("original")
    place = Place(settings_in(folder))
    register(place, *WORDS)
    write_tables(place, table)
    put(place, table(SPINE), "lake://raw/spine")
    put(place, table(SPINE), "lake://raw/delta_spine", "delta")
    training_set(place, "lake://raw/spine", service="churn", out="lake://work/set")
    options = {"prefix": True, "rules": TimeRules(strict=True, known_by="spine"), "out_format": "delta"}
    training_set(place, "lake://raw/delta_spine", service="churn", out="lake://work/delta", **options)
    write_tables(place, table, "amount + 1")
    put(place, table(SPINE).where("label <> 'c'"), "lake://raw/delta_spine", "delta")
    register(place, customer, raw, dataclasses.replace(spend, ttl="8d"), habits, churn)
    return folder


@pytest.fixture
def made(original: Path, tmp_path: Path) -> Place:
    shutil.copytree(original, tmp_path, dirs_exist_ok=True)
    return Place(settings_in(tmp_path))


def read(place: Place, path: str, out_format: str = "parquet") -> DataFrame:
    return place.spark.read.format(out_format).load(place.lakes.uri(path))


# the manifest


EXAMPLE = Manifest(
    run="20260131T120000-1f9e2c",
    service="churn@2",
    snapshot=3,
    fingerprints={"spend": "aa"},
    table_versions={"spend": 4},
    spine=SpineRecord("lake://raw/labels", "delta", 7, RowHash(2, "00000000000000ff")),
    options={"prefix": False, "strict": True, "known_by": "spine"},
    keys=("customer_id",),
    columns=(Column("customer_id", "string"), Column("amount", "bigint", "spend.amount")),
    hash=RowHash(2, "0123456789abcdef"),
)


@pytest.mark.parametrize(
    "manifest",
    [
        EXAMPLE,
        dataclasses.replace(EXAMPLE, hash=None, spine=SpineRecord("", "DataFrame", None)),
        dataclasses.replace(EXAMPLE, replay_of="20250131T120000-1f9e2c"),
    ],
)
def test_manifest_is_the_same_after_a_round_trip_through_json(manifest: Manifest) -> None:
    assert from_plain(json.loads(written(manifest)), "here") == manifest


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"format": 3}, "has format 3, this Tidemark reads 2"),
        ({"format": 1}, "kept no hash"),
        ({"verb": "compute"}, "is not a training set's"),
        ({"spine": None}, "cannot be read (TypeError"),
        ({"columns": [{"title": "a"}]}, "cannot be read (TypeError"),
    ],
)
def test_manifest_of_another_format_or_verb_is_refused(change: dict[str, Any], problem: str) -> None:
    with pytest.raises(DataError, match=r"^Manifest 'here': .*\nHint: ") as caught:
        from_plain({**to_plain(EXAMPLE), **change}, "here")
    assert problem in caught.value.problem


def test_dataset_in_delta_and_in_parquet_has_a_manifest_with_the_hash_of_its_rows(made: Place, table: Table) -> None:
    plain = manifest_of(made, "lake://work/set")
    assert from_plain(read_json(made, "lake://work/set/_tidemark.json"), "") == plain
    assert plain.columns == (
        Column("label", "string"),
        Column("customer_id", "string"),
        Column("event_time", "timestamp"),
        Column("amount", "bigint", "spend.amount"),
        Column("city", "string", "habits.city"),
        Column("seen", "map<string,int>", "habits.seen"),
        Column("vector", "array<float>", "habits.vector"),
    )
    assert (plain.keys, plain.spine_columns) == (("customer_id",), ("label", "customer_id", "event_time"))
    spine_hash = hash_of(table(SPINE), ["label", "customer_id", "event_time"])
    assert plain.spine == SpineRecord("lake://raw/spine", "parquet", None, spine_hash)
    in_delta = manifest_of(made, "lake://work/delta")
    assert in_delta == manifest_of(made, "lake://work/delta@0")
    assert in_delta.spine == SpineRecord("lake://raw/delta_spine", "delta", 0, spine_hash)
    assert in_delta.options == {"prefix": True, "strict": True, "known_by": "spine"}
    for manifest, path in ((plain, "lake://work/set"), (in_delta, "lake://work/delta")):
        rows = found_dataset(made, path).rows
        assert manifest.hash == hash_of(rows, [column.name for column in manifest.columns])
        assert manifest.hash.rows == 6
    uri = made.lakes.uri("lake://work/delta")
    files = open_file_store(uri)
    note = delta_table(made.spark, uri).note(0)
    files.delete(f"{uri}/_tidemark")  # as when the run was killed after its commit
    begun = read_delta_manifest(files, uri, note)
    assert begun == dataclasses.replace(in_delta, hash=None, spine=dataclasses.replace(in_delta.spine, hash=None))


def test_path_without_a_training_set_is_refused(made: Place) -> None:
    for path, error, problem in [
        ("lake://raw/spine", DataError, "there is no training set"),
        ("lake://raw/delta_spine", DataError, "there is no training set"),
        ("lake://work/none", DataError, "there is no training set"),
        ("lake://work/delta@7", DataError, "has no version 7\nHint: versions 0 to 0 are there"),
        ("lake://work/set@7", UsageError, "is parquet, which has no versions"),
        ("lake://work/none.json", DataError, "there is no such file"),
        ("/no/such/manifest.json", DataError, "there is no such file"),
    ]:
        with pytest.raises(error, match=problem):
            manifest_of(made, path)


# the hash


def test_hash_knows_no_order_and_no_files_but_every_duplicate_null_and_place(spark: SparkSession) -> None:
    """All in one job a frame; each change of the rows gives another hash."""
    kinds = "id int, a string, b string, v array<float>, n array<array<int>>, m map<string,int>, s struct<x:int,y:int>"
    rows: list[tuple[Any, ...]] = [
        (i, f"a{i % 3}", None, [1.0, None], [[1], [2]], {"k": i, "l": None}, (None, 2)) for i in range(40)
    ]
    columns = ["id", "a", "b", "v", "n", "m", "s"]

    def hashed(changed: list[tuple[Any, ...]], files: int = 1) -> RowHash:
        return hash_of(spark.createDataFrame(changed, kinds).repartition(files), columns)

    expected = hashed(rows)
    shuffled = random.Random(3).sample(rows, len(rows))
    reordered = [(*row[:5], dict(reversed(row[5].items())), row[6]) for row in shuffled]
    assert hashed(shuffled, 4) == hashed(reordered, 3) == expected
    first = rows[0]
    others = [
        rows[1:],
        [*rows, first],
        [*rows[1:], rows[1]],  # as many rows, another one twice
        [(*first[:1], None, first[1], *first[3:]), *rows[1:]],  # a value one column to the right
        [(*first[:3], [None, 1.0], *first[4:]), *rows[1:]],
        [(*first[:3], [1.0], *first[4:]), *rows[1:]],
        [(*first[:3], [1.0, None, None], *first[4:]), *rows[1:]],
        [(*first[:3], None, *first[4:]), *rows[1:]],
        [(*first[:3], [], *first[4:]), *rows[1:]],
        [(*first[:3], [-77.0, None], *first[4:]), *rows[1:]],
        [(*first[:3], [None, -77.0], *first[4:]), *rows[1:]],
        [(*first[:4], [[1, 2]], *first[5:]), *rows[1:]],
        [(*first[:5], {"k": None, "l": 0}, first[6]), *rows[1:]],
        [(*first[:5], {}, first[6]), *rows[1:]],
        [(*first[:5], None, first[6]), *rows[1:]],
        [(*first[:6], (2, None)), *rows[1:]],
        [(*first[:6], None), *rows[1:]],
    ]
    found = [hashed(changed) for changed in others]
    assert len({one.sum for one in [expected, *found]}) == len(others) + 1
    assert hashed(rows[:0]) == RowHash(0, "0" * 16)


def test_null_marks_of_an_array_follow_the_definition_whatever_it_holds(spark: SparkSession) -> None:
    """Also where the cheap test for nulls cannot tell: the array holds the rare value, or has no such."""
    arrays = {
        "array<int>": ["array(1, 2)", "array(-77, 2)", "array(null, -77)", "array(null, 3)", "array()", "null"],
        "array<boolean>": ["array(true)", "array(false)", "array(true, null)", "array(false, null)"],
        "array<date>": ["array(date'2026-01-01')", "array(date'2026-01-01', null)"],
    }
    for kind, values in arrays.items():
        rows = spark.sql(" UNION ALL ".join(f"SELECT cast({value} AS {kind}) AS a" for value in values))
        marks = "if(exists(a, x -> x IS NULL), transform(a, x -> x IS NULL), null)"
        each = rows.selectExpr(f"xxhash64(a IS NULL, size(a), a, {marks}) AS h").collect()
        assert hash_of(rows, ["a"]) == RowHash(len(values), f"{sum(row.h for row in each) % 2**64:016x}")


def test_sum_of_hashes_is_the_plain_sum_modulo_two_to_the_64(spark: SparkSession) -> None:
    rows = spark.range(3000).selectExpr("id", "id % 7 AS b")
    each = rows.selectExpr("xxhash64(id IS NULL, id, b IS NULL, b) AS h").collect()
    assert hash_of(rows, ["id", "b"]) == RowHash(3000, f"{sum(row.h for row in each) % 2**64:016x}")


# made again


@pytest.mark.parametrize(("path", "out_format"), [("lake://work/set", "delta"), ("lake://work/delta@0", "parquet")])
def test_replay_gives_the_same_rows_from_old_versions_definitions_and_options(
    made: Place, path: str, out_format: str
) -> None:
    """Since then tables, spine and definitions have changed."""
    before = manifest_of(made, path)
    report = Store(made).replay_training_set(path, out="lake://work/again", out_format=out_format)
    assert (report.snapshot, report.table_versions) == (1, {"spend": 0, "habits": 1})
    assert (report.hash, report.replay_of) == (before.hash.sum, before.run)
    assert f"equal to the rows of run {before.run}: hash {report.hash}" in report.text()
    found = manifest_of(made, "lake://work/again")
    assert found == dataclasses.replace(before, run=report.run, replay_of=before.run, files=out_format)
    assert_rows(read(made, "lake://work/again", out_format).drop("seen"), found_dataset(made, path).rows.drop("seen"))
    assert [name for name in files_in(made, "work") if "._" in name] == []
    again = rebuild(made, "lake://work/again", out="lake://work/third")  # a replay can be replayed
    assert again.hash == report.hash


def test_replay_of_a_manifest_that_was_kept_apart(made: Place, tmp_path: Path) -> None:
    kept = tmp_path / "model.json"
    uri = made.lakes.uri("lake://work/set")
    shutil.move(local_path(uri) / "_tidemark.json", kept)
    shutil.rmtree(local_path(uri))
    assert rebuild(made, str(kept), out="lake://work/again").rows == 6
    put_in_lake = local_path(made.lakes.uri("lake://work/model.json"))
    shutil.move(kept, put_in_lake)
    assert rebuild(made, "lake://work/model.json", out="lake://work/more").rows == 6


def refused(place: Place, path: str = "lake://work/set") -> str:
    before = files_in(place, "work")
    with pytest.raises((DataError, UsageError), match="\nHint: ") as caught:
        rebuild(place, path, out="lake://work/again")
    assert files_in(place, "work") == before
    return str(caught.value)


def test_replay_names_each_version_that_was_vacuumed(made: Place) -> None:
    """By Delta's own VACUUM, and a Parquet table's manifest or a file of it removed."""
    conf = {"retentionDurationCheck.enabled": "false", "vacuum.logging.enabled": "false"}
    for name, value in conf.items():
        made.spark.conf.set(f"spark.databricks.delta.{name}", value)
    made.spark.sql(f"VACUUM delta.`{made.table(spend).uri}` RETAIN 0 HOURS")
    for name in conf:
        made.spark.conf.unset(f"spark.databricks.delta.{name}")
    told = refused(made)
    assert "'spend': version 0 of its table lake://features/spend/v1 was vacuumed: " in told
    assert "habits" not in told
    habit_files = local_path(made.table(habits).uri)
    (habit_files / "_tidemark" / "00000001.json").unlink()
    assert "'habits': version 1 of its table lake://features/habits/v1 is gone" in refused(made)
    shutil.rmtree(local_path(made.table(spend).uri) / "_delta_log")
    assert "'spend': version 0 of its table lake://features/spend/v1 is gone" in refused(made)


def test_replay_says_how_the_spine_has_changed(made: Place, table: Table) -> None:
    then = manifest_of(made, "lake://work/set").spine.hash
    changed = table(SPINE).where("label <> 'c'")
    now = hash_of(changed, ["label", "customer_id", "event_time"])
    put(made, changed, "lake://raw/spine")
    expected = f"its spine lake://raw/spine has changed: it was 6 rows, hash {then.sum}, it is 5 rows, hash {now.sum}"
    assert expected in refused(made)
    put(made, table(SPINE).drop("label"), "lake://raw/spine")
    assert "has changed: it has no column 'label' any more" in refused(made)
    shutil.rmtree(local_path(made.lakes.uri("lake://raw/spine")))
    assert "its spine lake://raw/spine cannot be read as it was: there is no parquet data" in refused(made)
    shutil.rmtree(local_path(made.lakes.uri("lake://raw/delta_spine")))
    assert "its spine lake://raw/delta_spine @0 is gone" in refused(made, "lake://work/delta")


def test_replay_without_its_definitions_is_refused(made: Place) -> None:
    snapshot = local_path(made.lakes.uri(made.settings.registry)) / "00000001.json"
    text = snapshot.read_text()
    snapshot.write_text(text.replace(made.registry.read(1).fingerprint("habits"), "0123456789abcdef"))
    assert "group 'habits' was " in refused(made)
    plain = json.loads(text)
    plain["definitions"]["services"]["churn"]["version"] = 5
    snapshot.write_text(json.dumps(plain))
    assert "service churn@1 is not in registry snapshot 1 (churn@5)" in refused(made)
    snapshot.unlink()
    assert "its definitions are gone: Registry snapshot 1: does not exist" in refused(made)


def change_manifest(place: Place, **changes: Any) -> None:
    path = local_path(place.lakes.uri("lake://work/set")) / "_tidemark.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("out_format", ["parquet", "delta"])
def test_replay_that_comes_to_other_rows_leaves_nothing(made: Place, out_format: str) -> None:
    """Also in Delta, where a commit could not be taken back."""
    change_manifest(made, hash="0123456789abcdef")
    before = files_in(made, "work")
    with pytest.raises(DataError, match="it was 6 rows, hash 0123456789abcdef, it came to 6 rows, hash"):
        rebuild(made, "lake://work/set", out="lake://work/new", out_format=out_format)
    assert files_in(made, "work") == before


def test_what_cannot_be_replayed_is_said(made: Place, table: Table) -> None:
    change_manifest(made, options={"prefix": False, "strict": False, "known_by": "event", "sampled": 2})
    assert "its options differ from those this Tidemark knows: sampled" in refused(made)
    files = open_file_store(made.lakes.uri("lake://work/delta"))
    files.delete(made.lakes.uri("lake://work/delta/_tidemark"))
    assert "its run was killed before it counted the rows" in refused(made, "lake://work/delta")
    register(made, *WORDS)
    training_set(made, table(SPINE), service="churn", out="lake://work/notebook")
    assert "its spine was a DataFrame" in refused(made, "lake://work/notebook")
