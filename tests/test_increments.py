"""Runs that compute only what was added: real sources and tables, late and corrected rows, kills and races.

Whatever happened on the way, the table must be the one that a full run makes.
"""

from __future__ import annotations

import datetime
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import DataFrame

from connectors.file_store import local_path
from feature_defs import Aggregate, Entity, Expectation, Feature, FeatureGroup, Source
from feature_defs.errors import DataError, LakeError, TidemarkError, UsageError
from jobs.compute import ComputedGroup, compute
from jobs.place import Place
from tests.lab import NOW, Table, of_kind, put, register

customer = Entity("customer", keys={"customer_id": "string"})
TYPES = "amount double, at timestamp, seen timestamp"
FIRST = """
customer_id | amount | at                  | seen
c1          | 10     | 2026-01-01 08:00:00 | 2026-01-01 09:00:00
c1          | 30     | 2026-01-03 08:00:00 | 2026-01-03 09:00:00
c2          | -5     | 2026-01-02 08:00:00 | 2026-01-02 09:00:00
null        | 7      | 2026-01-02 08:00:00 | 2026-01-02 09:00:00
"""
# a new day, a late row, a correction (same event_time, seen later), a new customer before all others, a bad row
SECOND = """
customer_id | amount | at                  | seen
c1          | 0.1    | 2026-01-05 08:00:00 | 2026-01-05 09:00:00
c2          | 0.2    | 2026-01-01 12:00:00 | 2026-01-05 09:00:00
c1          | 31     | 2026-01-03 08:00:00 | 2026-01-05 09:00:00
c3          | 1      | 2025-12-30 08:00:00 | 2026-01-05 09:00:00
c4          | 3      | null                | 2026-01-05 09:00:00
"""
THIRD = """
customer_id | amount | at                  | seen
c2          | 0.3    | 2026-01-06 08:00:00 | 2026-01-06 09:00:00
"""
TOTALS = [
    Feature("n", "bigint", Aggregate("count")),
    Feature("total_3d", "double", Aggregate("sum", "amount", window="3d")),
    Feature("last", "double", Aggregate("last", "amount")),
    Feature("per_row", "double", "total_3d / n"),
]
SHAPES: dict[str, dict[str, Any]] = {
    "rows": {"features": [Feature("amount", "double")]},
    "events": {"features": TOTALS},
    "grid": {"features": TOTALS, "every": "1d"},
}


def source_of(source_format: str) -> Source:
    return Source("sales", path="lake://raw/sales", format=source_format, event_time="at", created_time="seen")


def in_force(place: Place, shape: str, *, source: str = "parquet", offline: str = "delta", **more: Any) -> FeatureGroup:
    group = FeatureGroup(
        "spend", entity=customer, source=source_of(source), offline=offline, **{**SHAPES[shape], **more}
    )
    register(place, customer, source_of(source), group)
    return group


def add(place: Place, rows: DataFrame, source_format: str) -> None:
    rows.coalesce(1).write.mode("append").format(source_format).save(place.lakes.uri("lake://raw/sales"))


def computed(place: Place, **options: Any) -> ComputedGroup:
    return compute(place, **{"now": NOW, **options}).groups[0]


def rows_of(place: Place, group: FeatureGroup) -> list[str]:
    return sorted(repr(tuple(row.values())) for row in place.table(group).read().toArrow().to_pylist())


def killed(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def check_equal_to_a_full_run(place: Place, group: FeatureGroup) -> None:
    found = rows_of(place, group)
    assert computed(place, full=True).how == "full"
    assert found == rows_of(place, group)


@pytest.mark.parametrize(
    ("source", "offline", "shape"),
    [
        ("delta", "delta", "rows"),
        ("delta", "delta", "events"),
        ("delta", "delta", "grid"),
        ("parquet", "parquet", "grid"),
    ],
)
def test_run_after_run_gives_the_table_of_one_full_run(
    place: Place, table: Table, source: str, offline: str, shape: str
) -> None:
    group = in_force(place, shape, source=source, offline=offline)
    add(place, table(FIRST, TYPES), source)
    assert (computed(place).how, computed(place).how) == ("full", "nothing new")
    add(place, table(SECOND, TYPES), source)
    version = place.table(group).version()
    second = computed(place)
    assert (second.how, second.rejected) == ("added", 1)
    assert place.table(group).version() == second.table_version == (version or 0) + 1
    assert place.quarantine(group).read().count() == 2
    add(place, table(THIRD, TYPES), source)
    third = computed(place)
    assert (third.how, third.rejected) == ("added", 0)
    assert third.rows == {"rows": 1, "events": 1, "grid": 3}[shape]
    check_equal_to_a_full_run(place, group)


def test_row_whose_cell_is_not_over_counts_in_the_run_after_it_is(place: Place, table: Table) -> None:
    group = in_force(place, "grid")
    add(place, table(FIRST, TYPES), "parquet")
    in_between = datetime.datetime(2026, 1, 3, 12, tzinfo=datetime.timezone.utc)
    assert computed(place, now=in_between).rows == 3  # c1 at the ends of 1 and 2 January, c2 at that of 2 January
    assert computed(place, now=in_between).how == "nothing new"
    add(place, table(THIRD, TYPES), "parquet")
    assert computed(place, now=in_between).rows == 0
    assert computed(place).how == "added"
    check_equal_to_a_full_run(place, group)


@pytest.mark.parametrize("source", ["delta", "parquet"])
def test_source_that_was_rewritten_is_computed_in_full_and_the_report_says_why(
    place: Place, table: Table, source: str
) -> None:
    group = in_force(place, "grid", source=source)
    put(place, table(FIRST, TYPES), "lake://raw/sales", source)
    assert f"{group.name}: full" not in compute(place, now=NOW).text()
    put(place, table(SECOND, TYPES), "lake://raw/sales", source)
    report = compute(place, now=NOW)
    assert (report.groups[0].how, report.groups[0].why) == ("full", "its source did not only grow")
    assert f"  {group.name}: full, its source did not only grow\n" in report.text()
    assert {row["customer_id"] for row in place.table(group).read().collect()} == {"c1", "c2", "c3"}


def test_compaction_of_a_delta_source_adds_nothing(place: Place, table: Table) -> None:
    group = in_force(place, "rows", source="delta")
    for text in (FIRST, SECOND):
        add(place, table(text, TYPES), "delta")
    computed(place)
    place.spark.sql(f"OPTIMIZE delta.`{place.lakes.uri('lake://raw/sales')}`")
    assert computed(place).rows == 0
    add(place, table(THIRD, TYPES), "delta")
    assert (computed(place).how, computed(place).how) == ("added", "nothing new")
    check_equal_to_a_full_run(place, group)


def test_rows_that_a_restore_of_the_table_undid_are_added_again(place: Place, table: Table) -> None:
    group = in_force(place, "rows")
    for text in (FIRST, SECOND):
        add(place, table(text, TYPES), "parquet")
        computed(place)
    whole = rows_of(place, group)
    place.spark.sql(f"RESTORE TABLE delta.`{place.table(group).uri}` TO VERSION AS OF 0")
    assert rows_of(place, group) != whole
    assert (computed(place).how, rows_of(place, group)) == ("added", whole)


def test_table_restored_to_another_definition_is_not_taken_for_one_of_this(place: Place, table: Table) -> None:
    add(place, table(FIRST, TYPES), "parquet")
    for amount in ("amount", "amount * 1000"):
        group = in_force(place, "rows", features=[Feature("amount", "double", amount)])
        computed(place)
    place.spark.sql(f"RESTORE TABLE delta.`{place.table(group).uri}` TO VERSION AS OF 0")
    with pytest.raises(DataError, match="its table was computed with definitions"):
        place.computed(place.applied(), group)
    assert computed(place).why == "its definition changed"


@pytest.mark.parametrize("offline", ["delta", "parquet"])
def test_row_in_quarantine_still_counts_in_later_windows(place: Place, table: Table, offline: str) -> None:
    rule = Expectation("not_many", "n < 2", severity="quarantine")
    group = in_force(place, "grid", offline=offline, expectations=[rule])
    for text in (FIRST, SECOND, THIRD):
        add(place, table(text, TYPES), "parquet")
        computed(place)
    assert {row["n"] for row in place.table(group).read().collect()} == {1}
    check_equal_to_a_full_run(place, group)


@pytest.mark.parametrize("shape", ["rows", "grid"])
def test_added_feature_has_its_past_or_as_told_none(place: Place, table: Table, shape: str) -> None:
    group = in_force(place, shape, offline="parquet")
    add(place, table(FIRST, TYPES), "parquet")
    computed(place)
    old_columns = place.table(group).read(1).columns
    more = Feature("seen", "timestamp") if shape == "rows" else Feature("most", "double", Aggregate("max", "amount"))
    group = in_force(place, shape, offline="parquet", features=[*SHAPES[shape]["features"], more])
    assert computed(place, added_features="null").why == "its definition changed"
    assert place.table(group).read().where(f"{more.name} IS NOT NULL").count() == 0
    add(place, table(THIRD, TYPES), "parquet")
    assert computed(place).how == "added"
    known = place.table(group).read().where(f"{more.name} IS NOT NULL").collect()
    assert {row["event_time"].day for row in known} == ({6} if shape == "rows" else {5, 6, 7})
    if shape == "grid":  # the values are those of all rows, also of those before the feature was
        assert {row["most"] for row in known} == {30, -5, 0.3}
    computed(place, full=True)
    assert place.table(group).read().where(f"{more.name} IS NULL").count() == 0
    assert place.table(group).read(1).columns == old_columns


# backfill

START, END = (datetime.datetime(2026, 1, day, tzinfo=datetime.timezone.utc) for day in (2, 6))


@pytest.mark.parametrize(
    ("offline", "shape"), [("delta", "rows"), ("parquet", "events"), ("delta", "grid"), ("parquet", "grid")]
)
def test_backfill_in_chunks_then_increments_equal_a_full_run_from_the_start_on(
    place: Place, table: Table, offline: str, shape: str
) -> None:
    group = in_force(place, shape, offline=offline)
    add(place, table(FIRST, TYPES), "parquet")
    add(place, table(THIRD, TYPES), "parquet")
    found = computed(place, start=START, end=END, chunk="1d")
    assert (found.how, place.table(group).version()) == ("backfill", {"delta": 3, "parquet": 4}[offline])
    for _ in range(2):  # what lies behind the end, then what comes later
        assert computed(place).how == "added"
        add(place, table(SECOND, TYPES), "parquet")
    computed(place)
    assert computed(place).how == "nothing new"
    grown = rows_of(place, group)
    computed(place, full=True)
    later = place.table(group).read().where("event_time > '2026-01-02'").toArrow().to_pylist()
    assert grown == sorted(repr(tuple(row.values())) for row in later)


def test_backfill_of_a_span_repairs_it_and_leaves_the_rest(place: Place, table: Table) -> None:
    group = in_force(place, "grid")
    for text in (FIRST, SECOND):
        add(place, table(text, TYPES), "parquet")
    computed(place)
    good = rows_of(place, group)
    damaged = place.table(group).read_all().where("event_time <> '2026-01-04'")
    place.table(group).replace(damaged, place.table(group).note(0))
    assert rows_of(place, group) != good
    computed(place, start=START, end=END)
    assert rows_of(place, group) == good
    assert computed(place).how == "nothing new"


EVENT_GROUPS = [
    {"features": [Feature("n", "bigint", Aggregate("count"))]},
    {"features": [Feature("n", "double", "amount")]},
]
OLD = "c1          | 10     | 2026-01-10 08:00:00 | 2026-01-10 09:00:00"
AHEAD = "c1          | 30     | 2026-03-01 08:00:00 | 2026-01-10 09:00:00"
HEAD = "customer_id | amount | at                  | seen"


def day(text: str) -> datetime.datetime:
    return datetime.datetime.fromisoformat(f"{text}T00:00:00+00:00")


@pytest.mark.parametrize("options", EVENT_GROUPS, ids=["whole life", "rows"])
@pytest.mark.parametrize("end", ["2026-02-01", "2026-12-31"], ids=["up to now", "beyond now"])
def test_rows_of_the_future_outlive_a_backfill_and_what_comes_behind_it(
    place: Place, table: Table, options: dict[str, Any], end: str
) -> None:
    """Late rows from before the backfill's start, rows of a time that is still to come, and of now."""
    group = in_force(place, "rows", offline="parquet", **options)
    late = "c1          | 1      | 2026-01-02 08:00:00 | 2026-02-01 09:00:00"
    soon = "c2          | 2      | 2026-03-02 08:00:00 | 2026-02-01 09:00:00"
    now = "c1          | 3      | 2026-03-04 08:00:00 | 2026-03-04 09:00:00"
    add(place, table("\n".join(["", HEAD, OLD, AHEAD, ""]), TYPES), "parquet")
    computed(place, start=day("2026-01-05"), end=day(end), now=day("2026-02-01"))
    for rows, at in (([soon], "2026-02-01"), ([late], "2026-02-01"), ([now], "2026-03-05")):
        add(place, table("\n".join(["", HEAD, *rows, ""]), TYPES), "parquet")
        computed(place, now=day(at))
    grown = rows_of(place, group)
    computed(place, full=True)
    from_start = place.table(group).read().where("event_time > '2026-01-05'").toArrow().to_pylist()
    assert grown == sorted(repr(tuple(row.values())) for row in from_start)
    assert len(grown) == 4


def test_filter_that_asks_the_clock_is_asked_again_of_all_rows(place: Place, table: Table) -> None:
    source = Source("sales", path="lake://raw/sales", format="parquet", event_time="at", filter="seen <= now()")
    register(place, customer, source, FeatureGroup("spend", entity=customer, source=source, **SHAPES["rows"]))
    add(place, table(FIRST, TYPES), "parquet")
    computed(place)
    found = computed(place)
    assert (found.how, found.why) == ("full", "which rows count depends on the clock")


def test_backfill_that_ended_before_its_end_has_its_quarantine(
    place: Place, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jobs import group_run

    group = in_force(place, "rows")
    add(place, table(FIRST, TYPES), "parquet")
    with monkeypatch.context() as patch:
        patch.setattr(group_run, "keep_results", killed)
        with pytest.raises(KeyboardInterrupt):
            computed(place, start=START, end=END)
    for how in ("nothing new", "added"):
        assert computed(place).how == how
        assert place.quarantine(group).read().count() == 1
        add(place, table(THIRD, TYPES), "parquet")


def test_stop_rule_that_added_rows_break_is_told_also_beside_rejected_ones(place: Place, table: Table) -> None:
    rule = Expectation("positive", "amount > 0", severity="stop")
    group = in_force(place, "rows", expectations=[rule])
    add(place, table("\n".join(["", HEAD, OLD, ""]), TYPES), "parquet")
    computed(place)
    add(place, table(FIRST, TYPES), "parquet")
    before = rows_of(place, group)
    with pytest.raises(TidemarkError, match="expectation 'positive' of severity stop is broken"):
        computed(place)
    assert rows_of(place, group) == before
    assert place.quarantine(group).version() is None


def test_backfill_that_stopped_goes_on_where_it_was(
    place: Place, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jobs import group_run

    group = in_force(place, "events")
    for text in (FIRST, SECOND, THIRD):
        add(place, table(text, TYPES), "parquet")
    real, calls = group_run.write_checked, []

    def failing(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(group_run, "write_checked", failing)
    options = {"start": START, "end": END, "chunk": "1d"}
    with pytest.raises(KeyboardInterrupt):
        computed(place, **options)
    computed(place, **options)
    assert len(calls) == 3 + 2  # chunks three and four only
    computed(place)
    grown = rows_of(place, group)
    computed(place, full=True)
    later = place.table(group).read().where("event_time > '2026-01-02'").toArrow().to_pylist()
    assert grown == sorted(repr(tuple(row.values())) for row in later)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"start": START}, "needs --start and --end"),
        ({"start": END, "end": START}, "the earlier first"),
        ({"start": START, "end": END, "full": True}, "--full computes all"),
        ({"start": START, "end": END, "chunk": "soon"}, "soon"),
    ],
)
def test_backfill_that_makes_no_sense_is_refused(place: Place, options: dict[str, Any], problem: str) -> None:
    with pytest.raises(UsageError) as caught:
        compute(place, **options)
    assert problem in caught.value.problem


# once, whatever happens


@pytest.mark.parametrize("offline", ["delta", "parquet", "catalog"])
def test_two_runs_at_once_add_every_row_once(place: Place, table: Table, offline: str) -> None:
    place, offline = of_kind(place, offline)
    group = in_force(place, "grid", offline=offline)
    add(place, table(FIRST, TYPES), "parquet")
    computed(place)
    add(place, table(SECOND, TYPES), "parquet")
    outcomes: list[Any] = []

    def racing() -> None:
        try:
            outcomes.append(computed(place).how)
        except TidemarkError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=racing) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert "added" in outcomes
    assert all(isinstance(outcome, LakeError) or outcome in ("added", "nothing new") for outcome in outcomes)
    assert outcomes.count("added") == 1
    check_equal_to_a_full_run(place, group)


def test_full_run_that_ended_before_its_quarantine_is_done_again(
    place: Place, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jobs import group_run

    group = in_force(place, "rows", offline="parquet")
    add(place, table(FIRST, TYPES), "parquet")
    with monkeypatch.context() as patch:
        patch.setattr(group_run, "quarantine", killed)
        with pytest.raises(KeyboardInterrupt):
            computed(place)
    assert place.quarantine(group).version() is None
    again = computed(place)
    assert (again.how, again.why) == ("full", "the run before did not come to its end")
    assert place.quarantine(group).read().count() == 1
    assert computed(place).how == "nothing new"


CHILD = """
import os, signal, sys
from jobs import group_run
from connectors import offline_tables
from jobs.compute import compute
from jobs.place import Place
from tests.conftest import settings_in
from pathlib import Path
import datetime

stage, folder = sys.argv[1], Path(sys.argv[2])
dead = lambda *args, **more: os.killpg(0, signal.SIGKILL)
match stage:
    case "after the data files, before the commit":
        offline_tables.ParquetOfflineTable._manifest_uri = dead
    case "after the commit":
        group_run.keep_results = dead
now = datetime.datetime(2026, 2, 1, tzinfo=datetime.timezone.utc)
compute(Place(settings_in(folder)), now=now)
"""


@pytest.mark.parametrize(
    ("offline", "stage"),
    [
        ("delta", "while the data files are written"),
        ("delta", "after the commit"),
        ("parquet", "after the data files, before the commit"),
    ],
)
def test_kill_of_the_driver_loses_and_repeats_nothing(
    place: Place, table: Table, tmp_path: Path, offline: str, stage: str
) -> None:
    group = in_force(place, "grid", offline=offline)
    add(place, table(FIRST, TYPES), "parquet")
    computed(place)
    add(place, table(SECOND, TYPES), "parquet")
    before = place.table(group).version()
    script = tmp_path / "child.py"
    script.write_text(textwrap.dedent(CHILD))
    child = subprocess.Popen(
        [sys.executable, str(script), stage, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    if stage == "while the data files are written":
        staging = local_path(place.table(group).uri) / "_staging"
        while child.poll() is None and not any(staging.rglob("*.parquet")):
            threading.Event().wait(0.002)
        os.killpg(child.pid, signal.SIGKILL)
    assert child.wait(timeout=240) == -signal.SIGKILL
    moved = stage == "after the commit"
    assert place.table(group).version() == (before or 0) + moved
    assert computed(place).how == ("nothing new" if moved else "added")
    check_equal_to_a_full_run(place, group)
