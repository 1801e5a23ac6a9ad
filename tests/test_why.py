"""why, the verb: the winner and the losers of one cell, each rule by its name, and against the rules as loops."""

from __future__ import annotations

import dataclasses
import datetime
import random
from collections import Counter
from typing import Any

import pytest
from pyspark.sql import DataFrame, SparkSession

from connectors.file_store import local_path
from feature_defs import Aggregate, Entity, Feature, FeatureGroup, Service, Source
from feature_defs.errors import DataError, UsageError
from feature_defs.join_plan import TimeRules
from feature_defs.rules import NotNull
from jobs.compute import compute
from jobs.place import Place
from jobs.store import Store
from jobs.training_set import training_set
from jobs.why import WhyReport, row_of, why
from tests import oracle
from tests.lab import NOW, Table, put, register

customer = Entity("customer", keys={"customer_id": "string"})
raw = Source("raw", path="lake://raw/rows", format="parquet", event_time="event_time", created_time="created_time")
features = [Feature("amount", "bigint"), Feature("city", "string")]
spend = FeatureGroup("spend", entity=customer, source=raw, features=features, ttl="4d")
other = FeatureGroup(
    "other", entity=customer, source=raw, offline="parquet", ttl="4d", skip_nulls=True, features=features
)
both = Service("both", [spend, other])
START = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)
ROWS = """
customer_id | event_time | created_time | amount | city
c1          | 2026-01-01 | null         | 1      | Bonn
c1          | 2026-01-05 | 2026-01-05   | 2      | Bonn
c1          | 2026-01-05 | 2026-01-09   | 3      | null
c1          | 2026-01-05 | 2026-01-09   | 3      | Wien
c1          | 2026-01-06 | 2026-01-06   | null   | Zug
c1          | 2026-01-07 | 2026-01-07   | 4      | Graz
c1          | 2026-01-08 | 2026-01-08   | 5      | Linz
c2          | 2026-01-01 | null         | 6      | Rom
"""
SPINE = """
label | customer_id | event_time
a     | c1          | 2026-01-07
b     | c1          | 2026-01-05
c     | c2          | 2026-01-09
d     | null        | 2026-01-05
e     | c1          | null
f     | c1          | 2026-01-05
g     | c3          | 2026-01-05
"""


def at(text: str) -> datetime.datetime:
    return datetime.datetime.fromisoformat(text).replace(tzinfo=datetime.timezone.utc)


def write_tables(place: Place, rows: DataFrame) -> None:
    snapshot = place.applied()
    for group in (spend, other):
        place.table(group).replace(rows.repartition(2), {"fingerprint": snapshot.fingerprint(group.name)})


@pytest.fixture(scope="module")
def made(spark: SparkSession, table: Table, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Sets with both groups, with default and with strict rules; the tables have changed since."""
    from tests.conftest import settings_in

    place = Place(settings_in(tmp_path_factory.mktemp("why")))
    register(place, customer, raw, spend, other, both)
    write_tables(place, table(ROWS, "amount bigint"))
    put(place, table(SPINE), "lake://raw/spine")
    told: dict[str, Any] = {"service": "both", "prefix": True}
    training_set(place, "lake://raw/spine", out="lake://work/set", **told)
    rules = TimeRules(strict=True, known_by="spine")
    training_set(place, "lake://raw/spine", out="lake://work/strict", out_format="delta", rules=rules, **told)
    write_tables(place, table(ROWS, "amount bigint").where("amount < 0"))
    return place


def ask(place: Place, path: str, feature: str, label: str, **options: Any) -> WhyReport:
    report = why(place, f"lake://work/{path}", feature, {"label": label}, **options)
    assert (report.agrees, report.exit_code) == (True, 0)
    return report


def roles(report: WhyReport) -> list[tuple[str, int, Any, str]]:
    return [(row.role, row.event_time.day, row.value, row.rule) for row in report.rows]


def test_winner_the_runners_up_and_what_was_left_out(made: Place) -> None:
    report = ask(made, "set", "spend.city", "b", runners_up=2)
    assert (report.held, report.decided_by) == ("Wien", "greatest values")
    assert roles(report) == [
        ("winner", 5, "Wien", "greatest values"),
        ("runner-up 1", 5, None, "smaller values"),
        ("runner-up 2", 5, "Bonn", "older created_time"),
        ("left out", 8, "Linz", "after the spine time"),
        ("left out", 7, "Graz", "after the spine time"),
    ]
    assert report.left_out == {"after the spine time": 3}
    assert (report.table, report.table_version, report.service) == ("lake://features/spend/v1", 0, "both@1")
    table_folder = local_path(made.table(spend).uri)
    assert report.winner is not None
    assert (table_folder / str(report.winner.file)).is_file()
    assert f"file: {report.winner.file}" in report.text()
    newest = ask(made, "set", "spend__amount", "a")
    assert roles(newest)[:2] == [("winner", 7, 4, "newest event_time"), ("runner-up 1", 6, None, "older event_time")]
    assert newest.left_out == {"after the spine time": 1, "older than the ttl": 1}
    in_parquet = ask(made, "set", "other__amount", "a")
    assert in_parquet.left_out == {"after the spine time": 1, "null (skip_nulls)": 1, "older than the ttl": 1}
    assert in_parquet.winner is not None
    assert (local_path(made.table(other).uri) / str(in_parquet.winner.file)).is_file()
    twice = ask(made, "set", "other__amount", "b")
    assert [row[3] for row in roles(twice)[:2]] == ["one of equal rows", "equal"]


def test_rules_that_leave_all_rows_out_or_match_nothing(made: Place) -> None:
    strict = ask(made, "strict", "spend__amount", "b")
    assert (strict.held, strict.decided_by) == (1, "the only row left")
    assert strict.left_out == {"after the spine time": 3, "at the spine time (strict)": 3}
    known = ask(made, "strict", "spend__amount", "a")
    assert known.held is None
    assert known.left_out["not known by the spine time (known_by)"] == 2
    expired = ask(made, "set", "spend__amount", "c")
    assert (expired.held, expired.left_out) == (None, {"older than the ttl": 1})
    assert expired.decided_by == "no row is left, so the answer is null"
    assert ask(made, "set", "spend__amount", "d").decided_by.startswith("null key customer_id")
    assert ask(made, "set", "spend__amount", "e").decided_by.startswith("null event_time")
    nobody = ask(made, "set", "spend__amount", "g")
    assert (nobody.rows, nobody.left_out, nobody.held) == ((), {}, None)


def test_row_is_named_by_any_columns_of_the_spine_and_a_time(made: Place) -> None:
    found = Store(made).why("lake://work/set", "spend__amount", {"customer_id": "c1"}, at=at("2026-01-07"))
    assert (found.held, found.row) == (4, {"customer_id": "c1"})
    assert why(made, "lake://work/set", "spend__amount", {"customer_id": "null"}).time == at("2026-01-05")
    # two spine rows of one key and time have one answer
    assert why(made, "lake://work/set", "spend__amount", {"customer_id": "c1"}, at=at("2026-01-05")).held == 3
    for row, feature, error, problem in [
        ({"customer_id": "c1"}, "spend__amount", UsageError, "rows of 3 keys and times have the given customer_id"),
        ({"customer_id": "c9"}, "spend__amount", DataError, "no row has the given customer_id"),
        ({"customer": "c1"}, "spend__amount", UsageError, "'customer' is not a column of the spine"),
        ({"spend__amount": "1"}, "spend__amount", UsageError, "'spend__amount' is not a column of the spine"),
        ({"label": "a"}, "amount", UsageError, "is no feature of lake://work/set"),
        ({"label": "a"}, "label", UsageError, "is no feature of lake://work/set"),
    ]:
        with pytest.raises(error, match=problem):
            why(made, "lake://work/set", feature, row)


def test_pairs_of_a_row_may_hold_commas() -> None:
    assert row_of(["a=1,b=x, y,c=3"]) == {"a": "1", "b": "x, y", "c": "3"}
    assert row_of(["a=1", "b=2"]) == {"a": "1", "b": "2"}
    for texts in ([], ["a"], ["a,b=1"]):
        with pytest.raises(UsageError, match="Option --row"):
            row_of(texts)


def test_cell_that_the_table_does_not_give_any_more_is_told(made: Place) -> None:
    """A file of the dataset was changed by hand."""
    training_set(made, "lake://raw/spine", service="both", out="lake://work/now", prefix=True)
    uri = made.lakes.uri("lake://work/now")
    rows = made.spark.read.parquet(uri).toPandas()
    rows["spend__amount"] = rows["spend__amount"].astype("Int64").fillna(99)
    files = list(local_path(uri).glob("*.parquet"))
    for file in files:
        file.unlink()
        file.with_name(f".{file.name}.crc").unlink()
    rows.to_parquet(files[0], coerce_timestamps="us")
    report = why(made, "lake://work/now", "spend__amount", {"label": "a"})
    assert (report.agrees, report.exit_code, report.held, report.found) == (False, 1, 99, None)
    assert report.text().endswith("the dataset and the table DISAGREE: the rules now give null")


def test_why_finds_what_the_oracle_finds(place: Place, spark: SparkSession) -> None:
    """Rows and times from tiny pools; each cell's winner, and how many rows each rule leaves out."""
    register(place, customer, raw, spend, other, both)
    random_of, seen = random.Random(5), Counter()
    days = [datetime.timedelta(days=n) for n in range(9)]
    rows = {
        ((random_of.choice(["c1", "c2"]),), *(random_of.choice([*range(9)]), random_of.choice([None, *range(9)])),
         (random_of.choice([None, 1, 2]), random_of.choice([None, "x", "y"])))
        for _ in range(60)
    }  # fmt: skip
    plain = [
        (k[0], START + days[e], None if c is None else START + days[c], *v) for k, e, c, v in sorted(rows, key=str)
    ]
    kinds = "customer_id string, event_time timestamp, created_time timestamp, amount bigint, city string"
    write_tables(place, spark.createDataFrame(plain, kinds))
    points = [(f"{key}{day}", key, START + days[day]) for key in ("c1", "c2") for day in (1, 5, 8)]
    spine = spark.createDataFrame(points, "label string, customer_id string, event_time timestamp")
    for number, rules in enumerate((TimeRules(), TimeRules(strict=True, known_by="spine"))):
        out = f"lake://work/{number}"
        training_set(place, spine, service="both", out=out, prefix=True, rules=rules)
        for label, key, time in random_of.sample(points, 3):
            for group in (spend, other):
                told = oracle.Rules(rules.strict, rules.known_by, 4, group.skip_nulls)
                day = (time - START).days
                answer = oracle.answer((key,), day, list(rows), told)
                report = why(place, out, f"{group.name}.amount", {"label": label})
                assert report.agrees
                assert report.found == (answer[0] if answer else None)
                usable = [row for row in rows if oracle.usable(row, (key,), day, told)]
                if group.skip_nulls:
                    usable = [row for row in usable if row[3][0] is not None]
                assert sum(report.left_out.values()) == sum(row[0] == (key,) for row in rows) - len(usable)
                clocks = sorted(((e, -1 if c is None else c) for _, e, c, _ in usable), reverse=True)[:4]
                shown = [row for row in report.rows if row.role != "left out"]
                found = [
                    ((r.event_time - START).days, -1 if r.created_time is None else (r.created_time - START).days)
                    for r in shown
                ]
                assert found == clocks
                seen.update([*report.left_out, report.decided_by])
    assert {"after the spine time", "older than the ttl", "at the spine time (strict)"} <= seen.keys()
    assert {"not known by the spine time (known_by)", "null (skip_nulls)", "newest event_time"} <= seen.keys()


def test_aggregate_tells_its_window_and_the_points_it_covers(place: Place, table: Table) -> None:
    """Also rows in quarantine, which no spine row sees."""
    daily = FeatureGroup(
        "daily",
        entity=customer,
        source=raw,
        every="1d",
        features=[
            Feature("spent_3d", "bigint", Aggregate("sum", "amount", window="3d")),
            Feature("count_all", "bigint", Aggregate("count")),
            Feature("doubled", "bigint", "spent_3d * 2"),
        ],
    )
    events = dataclasses.replace(
        daily,
        name="events",
        every=None,
        offline="parquet",
        features=[
            Feature(
                "last_2",
                "array<bigint>",
                Aggregate("last_k", "amount", k=2, window="2d"),
                expect=[NotNull(severity="quarantine")],
            )
        ],
    )
    register(place, customer, raw, daily, events, Service("all", [daily, events]))
    rows = """
    customer_id | event_time          | created_time | amount
    c1          | 2026-01-01 10:00:00 | null         | 1
    c1          | 2026-01-02 10:00:00 | null         | 2
    c1          | 2026-01-05 10:00:00 | null         | 4
    c1          | 2026-01-05 12:00:00 | null         | 8
    c2          | 2026-01-05 12:00:00 | null         | null
    """
    put(place, table(rows, "amount bigint"), "lake://raw/rows")
    compute(place, now=NOW)
    spine = table("customer_id | event_time\nc1 | 2026-01-06 12:00:00\nc2 | 2026-01-06 12:00:00")
    training_set(place, spine, service="all", out="lake://work/out")

    def window(feature: str) -> Any:
        report = why(place, "lake://work/out", feature, {"customer_id": "c1"})
        assert report.agrees
        return report, report.window

    report, covered = window("spent_3d")
    assert (report.held, covered.points, covered.filled) == (12, 3, 1)
    assert (covered.after, covered.until) == (at("2026-01-03"), at("2026-01-06"))
    assert "window: sum(amount) over 3d, (2026-01-03 00:00:00, 2026-01-06 00:00:00]: 3 points" in report.text()
    report, covered = window("count_all")
    assert (report.held, covered.after, covered.points, covered.filled) == (4, None, 5, 3)
    report, covered = window("events.last_2")
    assert (report.held, covered.points, covered.filled) == ([8, 4], 2, 2)
    assert window("doubled")[1] is None
    rejected = why(place, "lake://work/out", "last_2", {"customer_id": "c2"})
    assert (rejected.agrees, rejected.held, rejected.left_out) == (True, None, {"in quarantine": 1})
