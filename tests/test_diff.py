"""diff, the verb: against plain loops over rows, and over real training sets that were made of other things."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import DataFrame, SparkSession

from connectors.file_store import local_path
from connectors.manifests import Column, Manifest, SpineRecord
from feature_defs import Entity, Feature, FeatureGroup, Service, Source
from feature_defs.errors import UsageError
from feature_defs.join_plan import TimeRules
from jobs.datasets import FoundDataset
from jobs.diff import _compared, diff
from jobs.place import Place
from jobs.store import Store
from jobs.training_set import training_set
from tests.lab import Table, put, register
from tests.oracle import null_first

DDL = "label string, customer_id string, event_time timestamp, amount double, seen map<string,int>"
COLUMNS = tuple(
    Column(name, kind, f"spend.{name}" if name in ("amount", "seen") else "")
    for name, kind in (part.split(" ") for part in DDL.split(", "))
)


def dataset(spark: SparkSession, rows: Sequence[tuple[Any, ...]]) -> FoundDataset:
    times = [(label, key, None if day is None else f"2026-01-0{day}", *rest) for label, key, day, *rest in rows]
    text = DDL.replace("event_time timestamp", "event_time string")
    frame = spark.createDataFrame(times, text).selectExpr(
        "label", "customer_id", "cast(event_time as timestamp) AS event_time", "amount", "seen"
    )
    spine = SpineRecord("", "DataFrame", None)
    return FoundDataset("x", Manifest("r", "s@1", 1, {}, {}, spine, {}, ("customer_id",), COLUMNS), frame)


def told_by_loops(left: Sequence[tuple[Any, ...]], right: Sequence[tuple[Any, ...]]) -> dict[str, Any]:
    """Rows that are alike in the spine's columns meet in the order of their values; the rest are on one side only."""
    sides: list[dict[Any, list[Any]]] = [{}, {}]
    for found, rows in zip(sides, (left, right), strict=True):
        for row in rows:
            found.setdefault(row[:3], []).append(row[3:])
    told = {"only_left": 0, "only_right": 0, "amount": 0, "seen": 0}
    for identity in {*sides[0], *sides[1]}:
        one, other = (sorted(side.get(identity, []), key=lambda v: [*map(null_first, v)]) for side in sides)
        told["only_left"] += max(len(one) - len(other), 0)
        told["only_right"] += max(len(other) - len(one), 0)
        for a, b in zip(one, other, strict=False):
            told["amount"] += a[0] != b[0]
            told["seen"] += a[1] != b[1]
    return told


def drawn(random_of: random.Random) -> tuple[Any, ...]:
    pick = random_of.choice
    identity = (pick(["a", None]), pick(["c1", "c2", None]), pick([1, 2, None]))
    return (*identity, pick([1.0, 2.0, None]), pick([{}, {"a": 1}, {"a": None}, {"b": 2, "a": 1}, None]))


def test_diff_counts_what_plain_loops_count(spark: SparkSession) -> None:
    """Duplicates, null keys and times, maps; each edge occurs."""
    random_of, edges = random.Random(11), Counter()
    for size in (0, 3, 12, 40):
        left = [drawn(random_of) for _ in range(size)]
        right = [row if random_of.random() < 0.7 else drawn(random_of) for row in random_of.sample(left, len(left))]
        found = _compared(dataset(spark, left), dataset(spark, right), examples=2, values=True)
        expected = told_by_loops(left, right)
        assert {"only_left": found["only_left"], "only_right": found["only_right"], **found["changed"]} == expected
        assert [one.rows for one in found["hashes"]] == [len(left), len(right)]
        for name, count in found["changed"].items():
            cells = [cell for cell in found["examples"] if cell.feature == name]
            assert len(cells) == min(count, 2)
            assert all(cell.values is not None and cell.values[0] != cell.values[1] for cell in cells)
            assert all(isinstance(value, dict | None) for cell in cells for value in cell.values if name == "seen")
        edges.update({name: count > 0 for name, count in expected.items()})
        edges["duplicates"] += len(left) > len({row[:3] for row in left})
    assert all(edges[name] for name in ("only_left", "only_right", "amount", "seen", "duplicates"))


customer = Entity("customer", keys={"customer_id": "string"})
raw = Source("raw", path="lake://raw/rows", format="parquet", event_time="event_time")
spend = FeatureGroup("spend", entity=customer, source=raw, features=[Feature("amount", "bigint"), Feature("n", "int")])
churn = Service("churn", [spend])
ROWS = """
customer_id | event_time | created_time | amount | n
c1          | 2026-01-01 | null         | 10     | 1
c2          | 2026-01-01 | null         | 20     | 2
"""
SPINE = """
label | customer_id | event_time
a     | c1          | 2026-01-01
b     | c2          | 2026-01-01
b     | c2          | 2026-01-01
"""


def write_table(place: Place, rows: DataFrame) -> None:
    place.table(spend).replace(rows, {"fingerprint": place.applied().fingerprint("spend")})


@pytest.fixture
def made(place: Place, table: Table) -> Place:
    register(place, customer, raw, spend, churn)
    write_table(place, table(ROWS, "amount bigint, n int"))
    put(place, table(SPINE), "lake://raw/spine")
    training_set(place, "lake://raw/spine", service="churn", out="lake://work/first")
    return place


def test_training_sets_differ_by_table_spine_option_and_column(made: Place, table: Table, tmp_path: Path) -> None:
    training_set(made, "lake://raw/spine", service="churn", out="lake://work/delta", out_format="delta")
    same = diff(made, "lake://work/first", "lake://work/delta")
    assert (same.exit_code, same.reasons, same.no_longer) == (0, (), ())
    assert same.text().splitlines()[-1].startswith("equal, ")

    write_table(made, table(ROWS, "amount bigint, n int").selectExpr("* EXCEPT (amount)", "amount + (n - 1) AS amount"))
    training_set(made, "lake://raw/spine", service="churn", out="lake://work/delta", out_format="delta")
    found = diff(made, "lake://work/delta@0", "lake://work/delta@1")
    assert (found.exit_code, found.changed, found.reasons) == (1, {"amount": 2, "n": 0}, ("table of spend: @0 -> @1",))
    assert [(cell.feature, cell.row["customer_id"], cell.values) for cell in found.examples] == [
        ("amount", "c2", None)
    ] * 2
    assert "21" not in found.text()
    shown = Store(made).diff("lake://work/delta@0", "lake://work/delta@1", examples=1, values=True)
    assert [cell.values for cell in shown.examples] == [(20, 21)]
    assert "c2" in shown.text()
    assert diff(made, "lake://work/delta@0", "lake://work/delta@1", examples=0).examples == ()

    spine = table(SPINE).selectExpr("label", "customer_id", "event_time", "1 AS weight").where("label = 'b'").limit(1)
    put(made, spine, "lake://raw/spine")
    rules = TimeRules(strict=True)
    training_set(made, "lake://raw/spine", service="churn", out="lake://work/second", prefix=True, rules=rules)
    found = diff(made, "lake://work/first", "lake://work/second")
    assert found.columns_added == ("weight int", "spend__amount bigint", "spend__n int")
    assert found.columns_removed == ("amount bigint", "n int")
    assert (found.only_left, found.only_right, found.left_rows, found.right_rows) == (2, 0, 3, 1)
    assert [(cell.feature, cell.row["customer_id"]) for cell in found.examples] == [
        ("(only left)", "c1"),
        ("(only left)", "c2"),
    ]
    assert found.reasons[:3] == (
        "table of spend: @0 -> @1",
        "option prefix: False -> True",
        "option strict: False -> True",
    )
    assert found.reasons[3].startswith("spine: lake://raw/spine (3 rows, hash ")

    retyped = table(SPINE).selectExpr("label", "customer_id", "to_date(event_time) AS event_time")
    training_set(made, retyped, service="churn", out="lake://work/third")
    found = diff(made, "lake://work/first", "lake://work/third")
    assert found.columns_retyped == ("event_time: timestamp -> date",)
    assert (found.only_left, found.only_right, found.changed) == (0, 0, {"amount": 2, "n": 0})


def test_dataset_that_was_changed_behind_its_manifest_is_told(made: Place) -> None:
    training_set(made, "lake://raw/spine", service="churn", out="lake://work/other")
    folder = local_path(made.lakes.uri("lake://work/other"))
    rows = made.spark.read.parquet(made.lakes.uri("lake://work/other")).where("label = 'a'").toPandas()
    files = list(folder.glob("*.parquet"))
    for file in files:
        file.unlink()
        (folder / f".{file.name}.crc").unlink(missing_ok=True)  # Spark writes them, tasks do not
    rows.to_parquet(files[0], coerce_timestamps="us")
    found = diff(made, "lake://work/first", "lake://work/other")
    assert (found.exit_code, found.only_left, found.reasons) == (1, 2, ())
    assert len(found.no_longer) == 1
    assert found.no_longer[0].startswith("lake://work/other does not hold what its manifest says: it was 3 rows, hash ")
    assert "the manifests name no reason" in found.text()


def test_less_than_no_examples_are_refused(made: Place) -> None:
    with pytest.raises(UsageError, match="-1 is less than none"):
        diff(made, "lake://work/first", "lake://work/first", examples=-1)
