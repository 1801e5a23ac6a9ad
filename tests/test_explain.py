"""training-set --explain: the plan is told from footers, and is what the join then does."""

from __future__ import annotations

from pathlib import Path

import pytest

from connectors.file_store import local_path
from feature_defs import Entity, Feature, FeatureGroup, Service, Source
from feature_defs.errors import TidemarkError, UsageError
from jobs.compute import compute
from jobs.explain import explain
from jobs.joining import way_of
from jobs.place import Place
from jobs.training_set import training_set
from tests.lab import NOW, Table, files_in, register

TYPES = "customer_id string, amount double, at timestamp"


def definitions() -> list[object]:
    source = Source("payments", path="lake://raw/payments", format="parquet", event_time="at")
    features = {name: [Feature(f"{name}_amount", "double", "amount")] for name in ("short", "long", "each")}
    short = FeatureGroup("short", entity="customer", source=source, ttl="2d", features=features["short"])
    long = FeatureGroup("long", entity="customer", source=source, offline="parquet", features=features["long"])
    each = FeatureGroup("each", entity="customer", source=source, skip_nulls=True, features=features["each"])
    customer = Entity("customer", keys={"customer_id": "string"})
    return [customer, source, short, long, each, Service("churn", [short, long, each])]


@pytest.fixture
def ready(place: Place, table: Table) -> Place:
    """Tables of three files each: one of each day."""
    register(place, *definitions())
    for day in (1, 10, 20):
        rows = table(
            f"customer_id | amount | at\na | 1 | 2026-01-{day:02} 12:00:00\nb | 2 | 2026-01-{day:02} 13:00:00", TYPES
        )
        rows.coalesce(1).write.mode("append").parquet(place.lakes.uri("lake://raw/payments"))
        compute(place, now=NOW)
    return place


def write_spine(place: Place, table: Table, days: tuple[int, ...], path: str, file_format: str) -> None:
    lines = "\n".join(f"a | 2026-01-{day:02} 18:00:00" for day in days)
    spine = table(f"customer_id | event_time\n{lines}", "customer_id string, event_time timestamp")
    place.spark.conf.set("spark.sql.parquet.outputTimestampType", "TIMESTAMP_MICROS")
    spine.coalesce(1).write.format(file_format).save(place.lakes.uri(path))
    place.spark.conf.unset("spark.sql.parquet.outputTimestampType")


def test_plan_tells_ways_and_what_is_read_and_runs_no_job(ready: Place, table: Table) -> None:
    write_spine(ready, table, (10, 11), "lake://raw/spine", "parquet")
    write_spine(ready, table, (21,), "lake://raw/late", "delta")
    tracker, context = ready.spark.sparkContext.statusTracker(), ready.spark.sparkContext
    context.setJobGroup("explained", "")
    told = explain(ready, "lake://raw/spine", service="churn")
    late = explain(ready, "lake://raw/late", service="churn")
    assert tracker.getJobIdsForGroup("explained") == []
    context.setLocalProperty("spark.jobGroup.id", None)
    found = {plan.group: (plan.way, plan.files, plan.all_files, plan.rows, plan.all_rows) for plan in told.groups}
    assert found == {
        "short": ("direct", 1, 3, 2, 6), "long": ("direct", 2, 3, 4, 6), "each": ("in line", 2, 3, 4, 6),
    }  # fmt: skip
    assert [plan.files for plan in late.groups] == [1, 3, 3]
    assert (told.spine_rows, str(told.oldest), str(told.newest)) == (
        2, "2026-01-10 18:00:00+00:00", "2026-01-11 18:00:00+00:00",
    )  # fmt: skip
    assert all(0 < plan.bytes < plan.all_bytes for plan in told.groups)
    assert "plan of churn@1: no job ran" in told.text()
    assert files_in(ready, "work") == []


def test_table_with_rows_corrected_in_place_and_spine_of_one_file_are_planned(ready: Place, table: Table) -> None:
    late = table("customer_id | amount | at\na | 3 | 2026-01-10 12:00:00", TYPES)
    late.coalesce(1).write.mode("append").parquet(ready.lakes.uri("lake://raw/payments"))
    compute(ready, now=NOW)
    log = Path(local_path(ready.table(ready.applied().definitions.groups["short"]).uri), "_delta_log")
    assert "deletionVector" in max(log.glob("*.json")).read_text()
    write_spine(ready, table, (10,), "lake://raw/spine", "parquet")
    (part,) = Path(local_path(ready.lakes.uri("lake://raw/spine"))).glob("*.parquet")
    told = explain(ready, f"lake://raw/spine/{part.name}", service="churn")
    assert [(plan.files, plan.all_files) for plan in told.groups] == [(2, 4), (3, 4), (3, 4)]
    assert {plan.group: f"{plan.way}: {plan.why}" for plan in told.groups} == {
        "short": "in line: up to 100,000 spine rows",
        "long": "direct: files that a task can read, of up to 10,000,000 rows",
        "each": "in line: skip_nulls",
    }


def test_spine_that_does_not_tell_its_times_leaves_no_file_out(ready: Place, table: Table) -> None:
    spine = table("customer_id | event_time\na | 2026-01-10 18:00:00", "customer_id string, event_time timestamp")
    spine.write.option("parquet.column.statistics.enabled", "false").parquet(ready.lakes.uri("lake://raw/silent"))
    told = explain(ready, "lake://raw/silent", service="churn")
    assert (told.oldest, [plan.files for plan in told.groups]) == (None, [3, 3, 3])
    assert "of unknown times" in told.text()


@pytest.mark.parametrize("file_format", ["parquet", "delta"])
def test_columns_that_the_spine_lacks_are_refused_as_a_run_refuses_them(
    ready: Place, table: Table, file_format: str
) -> None:
    rows = table("client | asked_at | day\na | 2026-01-10 18:00:00 | 10", "asked_at timestamp, day int")
    rows.write.partitionBy("day").format(file_format).save(ready.lakes.uri("lake://raw/spine"))
    good = {"keys": {"customer_id": "client"}, "event_time": "asked_at"}
    for words in (
        {**good, "keys": {"customer_id": "clint"}},
        {**good, "keys": {"costumer_id": "client"}},
        {**good, "event_time": "askd_at"},
        {**good, "labels": ["lable"]},
        {"keys": good["keys"]},
        {"event_time": "asked_at"},
    ):
        with pytest.raises(TidemarkError) as run:
            training_set(ready, "lake://raw/spine", service="churn", out="lake://work/out", **words)
        with pytest.raises(TidemarkError) as plan:
            explain(ready, "lake://raw/spine", service="churn", **words)
        assert (type(plan.value), str(plan.value)) == (type(run.value), str(run.value))
    assert explain(ready, "lake://raw/spine", service="churn", **good, labels=["day"]).spine_rows == 1


def test_ways_follow_from_the_rows_and_from_what_a_task_can_read(ready: Place) -> None:
    ways = {}
    for plan in explain_groups(ready):
        ways[plan.group] = [way_of(plan, rows) for rows in (0, 100_000, 100_001)]
        near = [way_of(plan, *rows) for rows in ((0, 0), (10_000_000, 1), (10_000_001, 1), (1, 10_000_001))]
        ways[plan.group] += near
    assert ways == {
        "short": ["in line", "in line", "locate", "direct", "direct", "locate", "in line"],
        "long": ["in line", "in line", "locate", "direct", "direct", "locate", "in line"],
        "each": ["in line"] * 7,
    }


def explain_groups(place: Place):
    from feature_defs.join_plan import plan_join

    definitions = place.applied().definitions
    return plan_join(definitions.services["churn"], definitions).groups


def test_text_tells_nothing_and_is_refused(ready: Place, table: Table) -> None:
    table("customer_id\na", "customer_id string").write.csv(ready.lakes.uri("lake://raw/text"))
    with pytest.raises(
        UsageError, match="is csv, which tells nothing without being read\nHint: write it as parquet or delta"
    ):
        explain(ready, "lake://raw/text", service="churn")
