"""training-set, the verb: the dataset and its manifest, what is replaced, what is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from pyspark.sql import DataFrame, SparkSession

from connectors.file_store import local_path
from connectors.offline_tables import open_table
from feature_defs import Entity, Feature, FeatureGroup, Service, Source
from feature_defs.errors import DataError, LakeError, UsageError
from feature_defs.join_plan import TimeRules
from feature_defs.model import Definition
from jobs.compute import compute
from jobs.place import Place
from jobs.store import Store
from jobs.training_set import MANIFEST, _Target, training_set
from jobs.transforms.row_hash import hash_of
from tests.conftest import settings_in
from tests.lab import NOW, Table, files_in, folders_in, put, put_text, read_json, register
from tests.pipe_tables import assert_rows

customer = Entity("customer", keys={"customer_id": "string"})
product = Entity("product", keys={"product_id": "bigint"})
both = Entity("both", keys={"customer_id": "string", "product_id": "bigint"})


def source(name: str) -> Source:
    clocks = {"event_time": "event_time", "created_time": "created_time"}
    return Source(name, path=f"lake://raw/{name}", format="parquet", **clocks)


spend = FeatureGroup("spend", entity=customer, source=source("spend"), features=[Feature("amount", "double")], ttl="9d")
price = FeatureGroup(
    "price",
    entity=product,
    source=source("price"),
    offline="parquet",
    features=[Feature("price", "decimal(6,2)"), Feature("colours", "array<string>")],
)
visits = FeatureGroup(
    "visits", entity=both, source=source("visits"), offline="parquet", features=[Feature("seen", "bigint")]
)
churn = Service("churn", [spend["amount"], price, visits])
flat = Service("flat", [spend["amount"], price["price"], visits])  # without a list
WORDS: tuple[Definition, ...] = (
    customer, product, both, source("spend"), source("price"), source("visits"), spend, price, visits, churn, flat,
)  # fmt: skip
SPINE = """
label | customer_id | product_id | event_time
a     | c1          | 1          | 2026-01-05
a     | c1          | 1          | 2026-01-05
b     | c1          | 2          | 2026-01-10
c     | c2          | 1          | 2026-01-05
d     | null        | 1          | 2026-01-05
e     | c1          | 1          | null
"""
SPINE_TYPES = "product_id bigint"
JOINED = """
label | customer_id | product_id | event_time | amount | price | colours         | seen
a     | c1          | 1          | 2026-01-05 | 10     | 1.50  | ["red","green"] | 4
a     | c1          | 1          | 2026-01-05 | 10     | 1.50  | ["red","green"] | 4
b     | c1          | 2          | 2026-01-10 | 10     | null  | null            | null
c     | c2          | 1          | 2026-01-05 | null   | 1.50  | ["red","green"] | null
d     | null        | 1          | 2026-01-05 | null   | 1.50  | ["red","green"] | null
e     | c1          | 1          | null       | null   | null  | null            | null
"""


def expected(table: Table) -> DataFrame:
    types = "product_id bigint, amount double, price decimal(6,2), seen bigint"
    return table(JOINED, types).selectExpr(
        "label", "customer_id", "product_id", "event_time", "amount", "price",
        "from_json(colours, 'array<string>') AS colours", "seen",
    )  # fmt: skip


@pytest.fixture(scope="module")
def original(spark: SparkSession, table: Table, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three computed groups of three entities, in Delta and in Parquet, and a spine in the lake."""
    folder = tmp_path_factory.mktemp("original")
    place = Place(settings_in(folder))
    register(place, *WORDS)
    rows = "customer_id | event_time | created_time | amount\nc1 | 2026-01-01 | 2026-01-07 | 10"
    put(place, table(rows, "amount double"), "lake://raw/spend")
    rows = (
        'product_id | event_time | created_time | price | colours\n1 | 2025-12-01 | 2025-12-01 | 1.5 | ["red","green"]'
    )
    prices = table(rows, "product_id bigint, price decimal(6,2)")
    colours = "from_json(colours, 'array<string>') AS colours"
    put(place, prices.selectExpr("product_id", "event_time", "created_time", "price", colours), "lake://raw/price")
    rows = "customer_id | product_id | event_time | created_time | seen\nc1 | 1 | 2026-01-05 | null | 4"
    put(place, table(rows, "product_id bigint, seen bigint"), "lake://raw/visits")
    compute(place, now=NOW)
    put(place, table(SPINE, SPINE_TYPES), "lake://raw/spine")
    return folder


@pytest.fixture
def ready(original: Path, tmp_path: Path) -> Place:
    """A copy of it, to do with as the test likes: tables hold relative paths only."""
    shutil.copytree(original, tmp_path, dirs_exist_ok=True)
    return Place(settings_in(tmp_path))


def read_out(place: Place, out_format: str, path: str = "lake://work/out") -> DataFrame:
    return place.spark.read.format(out_format).load(place.lakes.uri(path))


def test_dataset_manifest_and_report_in_parquet_and_delta_also_when_made_again(ready: Place, table: Table) -> None:
    snapshot = ready.applied()
    versions = {"spend": 0, "price": 1, "visits": 1}
    for out_format in ("parquet", "delta"):
        for spine in ("lake://raw/spine", table(SPINE, SPINE_TYPES)):
            out = f"lake://work/{out_format}"
            report = training_set(ready, spine, service="churn", out=out, out_format=out_format)
            assert_rows(read_out(ready, out_format, out), expected(table))
            assert (report.rows, report.null_key_rows, report.null_time_rows) == (6, 1, 1)
            assert report.matched == {"amount": 3, "price": 4, "colours": 4, "seen": 2}
            assert report.leaked_cells == {"amount": 2, "price": 0, "colours": 0, "seen": 0}
            assert (report.service, report.table_versions, report.snapshot) == ("churn@1", versions, 1)
            assert "leak report: amount 2 decided by rows created after the spine time" in report.text()
            if out_format == "parquet":
                note = read_json(ready, f"{out}/{MANIFEST}")
            else:
                kept = open_table(ready.spark, ready.lakes.uri(out), "delta")
                note = dict(kept.note(kept.version() or 0))
                assert note.pop("commit")
            about = {name: note[name] for name in ("verb", "run", "service", "snapshot", "fingerprints", "options")}
            assert about == {
                "verb": "training-set",
                "run": report.run,
                "service": "churn@1",
                "snapshot": 1,
                "fingerprints": {name: snapshot.fingerprint(name) for name in versions},
                "options": {"prefix": False, "strict": False, "known_by": "event"},
            }
            named = ("lake://raw/spine", "parquet") if isinstance(spine, str) else ("", "spark")
            assert (note["spine"]["path"], note["spine"]["format"]) == named
            assert [column["name"] for column in note["columns"]] == expected(table).columns
    drafts = [path for path in [*files_in(ready, "work"), *folders_in(ready, "work")] if "._" in path]
    assert drafts == []


@pytest.mark.parametrize("service", ["churn", "flat"])
@pytest.mark.parametrize("splits", [(), ("early=..2026-01-06", "late=2026-01-06..")], ids=["whole", "in parts"])
def test_every_way_gives_the_same_and_nothing_kept_on_the_way_is_left(
    ready: Place, table: Table, monkeypatch: pytest.MonkeyPatch, service: str, splits: tuple[str, ...]
) -> None:
    """The same rows, hash and report, in files that Spark or, of flat columns, tasks wrote."""
    reports = []
    for most, few in ((100, 100_000), (0, 100_000), (0, 0)):
        monkeypatch.setattr("jobs.joining.MOST_DIRECT", most)
        monkeypatch.setattr("jobs.joining.FEW", few)
        told = training_set(ready, "lake://raw/spine", service=service, out="lake://work/out", splits=splits)
        reports.append(told)
        if service == "churn" and not splits:
            assert_rows(read_out(ready, "parquet"), expected(table))
        columns = [column["name"] for column in read_json(ready, f"lake://work/out/{MANIFEST}")["columns"]]
        rows = ready.spark.read.parquet(ready.lakes.uri("lake://work/out"))
        assert (hash_of(rows, columns).sum, rows.count()) == (told.hash, told.rows)
        assert [path for path in [*files_in(ready, "work"), *folders_in(ready, "work")] if "._" in path] == []
    assert [set(told.ways.values()) for told in reports] == [{"direct"}, {"in line"}, {"locate"}]
    for field in ("hash", "rows", "matched", "leaked_cells", "null_key_rows", "null_time_rows", "splits"):
        assert len({str(getattr(told, field)) for told in reports}) == 1, field


@pytest.mark.parametrize("most", [100, 0], ids=["by tasks", "by Spark"])
@pytest.mark.parametrize(("damage", "hint"), [("gone", "removed by another hand"), ("cut", "check its format")])
def test_table_whose_file_cannot_be_read_is_told_and_nothing_is_written(
    ready: Place, monkeypatch: pytest.MonkeyPatch, damage: str, hint: str, most: int
) -> None:
    monkeypatch.setattr("jobs.joining.MOST_DIRECT", most)
    files = [path for path in files_in(ready, "features") if "visits" in path and path.endswith(".parquet")]
    path = local_path(ready.lakes.uri(f"lake://features/{files[0]}"))
    path.unlink() if damage == "gone" else path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=rf"a file cannot be read: (FAILED_READ_FILE|PATH).*\nHint: .*{hint}") as told:
        training_set(ready, "lake://raw/spine", service="churn", out="lake://work/out")
    assert "Service 'churn'" in str(told.value)
    assert files_in(ready, "work") == []


def test_options_reach_the_join(ready: Place, table: Table) -> None:
    rules = TimeRules(strict=True, known_by="spine")
    training_set(ready, "lake://raw/spine", service="churn", out="lake://work/out", prefix=True, rules=rules)
    found = read_out(ready, "parquet").select("label", "spend__amount", "price__price", "visits__seen")
    told = """
    label | spend__amount | price__price | visits__seen
    a     | null          | 1.50         | null
    a     | null          | 1.50         | null
    b     | 10            | null         | null
    c     | null          | 1.50         | null
    d     | null          | 1.50         | null
    e     | null          | null         | null
    """
    assert_rows(found, table(told, "spend__amount double, price__price decimal(6,2), visits__seen bigint"))
    options = read_json(ready, f"lake://work/out/{MANIFEST}")["options"]
    assert options == {"prefix": True, "strict": True, "known_by": "spine"}


def test_store_gives_the_same_rows_without_writing(ready: Place, table: Table) -> None:
    found = Store(ready).training_set("lake://raw/spine", service="churn")
    assert_rows(found, expected(table))
    assert files_in(ready, "work") == []


def test_path_that_holds_anything_else_is_refused_and_left_alone(ready: Place, table: Table) -> None:
    training_set(ready, "lake://raw/spine", service="churn", out="lake://work/ours")
    put_text(ready, "mine", "lake://work/mine")
    put(ready, table("n\n1"), "lake://work/table", "delta")
    before = files_in(ready, "work")
    for out, out_format in [("mine", "parquet"), ("mine", "delta"), ("table", "delta"), ("ours", "delta")]:
        with pytest.raises(UsageError, match=f"no training set in {out_format}.*\nHint: choose another --out"):
            training_set(ready, "lake://raw/spine", service="churn", out=f"lake://work/{out}", out_format=out_format)
    with pytest.raises(UsageError, match="use one of delta, parquet, csv"):
        training_set(ready, "lake://raw/spine", service="churn", out="lake://work/new", out_format="orc")
    assert files_in(ready, "work") == before


def test_failed_run_leaves_the_old_dataset_and_no_draft(ready: Place, table: Table) -> None:
    training_set(ready, "lake://raw/spine", service="churn", out="lake://work/out")
    before = files_in(ready, "work")
    broken = table(SPINE, SPINE_TYPES).selectExpr("*", "1 div (ascii(label) - 99) AS bad")
    with pytest.raises(Exception, match="DIVIDE_BY_ZERO"):
        training_set(ready, broken, service="churn", out="lake://work/out")
    assert files_in(ready, "work") == before
    assert_rows(read_out(ready, "parquet"), expected(table))


def test_old_version_of_a_service_is_there_after_a_newer_one(ready: Place, table: Table) -> None:
    louder = dataclasses.replace(spend, version=2, features=[Feature("loud", "double", "amount * 100")])
    newer = Service("churn", [louder["loud"]], version=2)
    register(ready, *WORDS[:6], louder, price, visits, newer)
    compute(ready, ["spend"], now=NOW)
    report = training_set(ready, "lake://raw/spine", service="churn", out="lake://work/new")
    assert (report.service, report.snapshot, report.matched) == ("churn@2", 2, {"loud": 3})
    report = training_set(ready, "lake://raw/spine", service="churn@1", out="lake://work/old")
    assert (report.service, report.snapshot) == ("churn@1", 1)
    assert_rows(read_out(ready, "parquet", "lake://work/old"), expected(table))
    for name, problem in [
        ("churn@3", "is not in the registry"),
        ("chrun", "is not in"),
        ("churn@x", "is not a number"),
    ]:
        with pytest.raises(UsageError, match=problem):
            training_set(ready, "lake://raw/spine", service=name, out="lake://work/none")


def test_table_of_other_definitions_and_missing_table_are_refused(ready: Place) -> None:
    changed = dataclasses.replace(spend, ttl="10d")
    register(ready, *(changed if word is spend else word for word in WORDS))
    with pytest.raises(DataError, match=r"its table was computed with definitions .*\nHint: run `tidemark compute"):
        training_set(ready, "lake://raw/spine", service="churn", out="lake://work/out")
    compute(ready, ["spend"], now=NOW)
    training_set(ready, "lake://raw/spine", service="churn", out="lake://work/out")
    raised = dataclasses.replace(changed, version=2)
    register(ready, *(raised if word is spend else word for word in WORDS))
    with pytest.raises(DataError, match=r"has no offline table yet \(version 2\)\nHint: run `tidemark compute --group"):
        training_set(ready, "lake://raw/spine", service="churn", out="lake://work/out")


def test_registry_without_a_snapshot_is_refused(place: Place, table: Table) -> None:
    with pytest.raises(LakeError, match="run `tidemark apply` first"):
        training_set(place, table(SPINE, SPINE_TYPES), service="churn", out="lake://work/out")


@pytest.mark.parametrize(
    ("header", "types", "problem"),
    [
        ("customer_id | product_id | time", "product_id bigint", "has no column 'event_time'"),
        (
            "customer_id | product_id | event_time",
            "product_id bigint, event_time string",
            "event_time is string, expec",
        ),
        ("customer | product_id | event_time", "product_id bigint", "has no key column 'customer_id' of group 'spend'"),
        ("customer_id | event_time", "", "has no key column 'product_id' of group 'price'"),
        (
            "customer_id | product_id | event_time",
            "product_id string",
            "key 'product_id' is string, group 'price' decl",
        ),
        (
            "customer_id | product_id | event_time",
            "product_id double",
            "key 'product_id' is double, group 'price' decl",
        ),
        ("CUSTOMER_ID | product_id | event_time", "product_id bigint", "has no key column 'customer_id'"),
    ],
)
def test_spine_without_keys_or_time_of_the_right_types_is_refused(
    ready: Place, table: Table, header: str, types: str, problem: str
) -> None:
    with pytest.raises(DataError, match=r"^Spine: .*\nHint: ") as caught:
        training_set(ready, table(header, types), service="churn", out="lake://work/out")
    assert caught.value.problem.startswith(problem)
    assert files_in(ready, "work") == []


def test_spine_that_cannot_be_read_is_refused(ready: Place) -> None:
    for spine_format in ("", "delta", "parquet"):
        with pytest.raises(DataError, match=r"Spine 'lake://raw/none': there is no (delta|parquet) data at"):
            training_set(ready, "lake://raw/none", service="churn", out="lake://work/out", spine_format=spine_format)


def test_spine_may_be_delta_or_have_narrower_keys_and_odd_names_and_no_rows(ready: Place, table: Table) -> None:
    narrow = table(SPINE, "product_id int").withColumnRenamed("label", "the label, a.b")
    report = training_set(ready, narrow, service="churn", out="lake://work/narrow")
    found = read_out(ready, "parquet", "lake://work/narrow")
    assert found.columns[0] == "the label, a.b"
    assert (report.matched["price"], dict(found.dtypes)["product_id"]) == (4, "int")
    put(ready, table(SPINE, SPINE_TYPES), "lake://raw/delta_spine", "delta")
    training_set(ready, "lake://raw/delta_spine", service="churn", out="lake://work/delta")
    assert_rows(read_out(ready, "parquet", "lake://work/delta"), expected(table))
    report = training_set(ready, table(SPINE, SPINE_TYPES).limit(0), service="churn", out="lake://work/empty")
    assert (report.rows, read_out(ready, "parquet", "lake://work/empty").count()) == (0, 0)


def test_manifest_is_written_with_the_rows_or_not_at_all(ready: Place) -> None:
    training_set(ready, "lake://raw/spine", service="churn", out="lake://work/deep/er/out")
    folder = local_path(ready.lakes.uri("lake://work/deep/er"))
    assert [path.name for path in folder.iterdir()] == ["out"]
    assert json.loads((folder / "out" / MANIFEST).read_text())["verb"] == "training-set"


@pytest.mark.parametrize("moment", ["before", "after"])
def test_run_that_loses_a_race_leaves_the_dataset_of_the_winner(ready: Place, table: Table, moment: str) -> None:
    """Another run's dataset appears, or what was there disappears, between the look and the rename."""
    training_set(ready, "lake://raw/spine", service="churn", out="lake://work/out")
    target = _Target(ready, "lake://work/out", "parquet")
    parent = target.uri.rpartition("/")[0]
    target.files.create(f"{parent}/draft/part", b"")
    if moment == "before":  # the draft is gone: a clean-up was faster
        with pytest.raises(LakeError, match="another run wrote it meanwhile"):
            target._swap(f"{parent}/no-draft", f"{parent}/old")
    else:  # the name for the old one is taken
        target.files.create(f"{parent}/old/part", b"")
        with pytest.raises(LakeError, match="another run wrote it meanwhile"):
            target._swap(f"{parent}/draft", f"{parent}/old")
    assert_rows(read_out(ready, "parquet", "lake://work/out"), expected(table))
