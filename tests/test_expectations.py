"""Rules over real tables: what each finds, held against plain loops; what stays when one stops; replay and kills."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import DataFrame

from connectors.file_store import local_path
from feature_defs import (
    Aggregate,
    Entity,
    Expectation,
    Feature,
    FeatureGroup,
    Freshness,
    InRange,
    Matches,
    NotNull,
    OneOf,
    RowCount,
    Source,
    SumsMatch,
    Unique,
)
from feature_defs.errors import DataError, UsageError
from feature_defs.rules import columns_of, name_of
from jobs.compute import ComputedGroup, compute
from jobs.place import Place, new_run
from jobs.quality import quarantine_in_force
from jobs.replay import replay
from jobs.rule_results import RuleResult, kept, results_uri
from jobs.show import show
from tests.lab import NOW, Table, put, register
from tests.pipe_tables import assert_rows

ROOT = Path(__file__).resolve().parent.parent
customer = Entity("customer", keys={"customer_id": "string"})
orders = Source("orders", path="lake://raw/orders", format="parquet", event_time="at")
TYPES = "n int, amount double, price decimal(10,2), day date, at timestamp"
FEATURES = [
    Feature("n", "int"),
    Feature("amount", "double"),
    Feature("price", "decimal(10,2)"),
    Feature("segment", "string"),
    Feature("email", "string"),
    Feature("day", "date"),
]


def shop(**options: Any) -> FeatureGroup:
    return FeatureGroup("shop", entity=customer, source=orders, **{"features": FEATURES, **options})


def in_force(place: Place, group: FeatureGroup) -> FeatureGroup:
    register(place, customer, orders, group)
    return group


def computed(place: Place, now: datetime.datetime = NOW) -> ComputedGroup:
    return compute(place, now=now, full=True).groups[0]


def results(place: Place, group: FeatureGroup) -> dict[str, RuleResult]:
    """The newest run's results by rule."""
    return {result.name: result for result in kept(place, group)[0].rules}


def quarantined(place: Place, group: FeatureGroup) -> list[tuple[str, str]]:
    """(order, reason) of each row that is validly in the quarantine."""
    version = quarantine_in_force(place, group)
    rows = [] if version is None else place.quarantine(group).read(version).collect()
    return sorted((str(json.loads(row["row"]).get("n")), row["reason"]) for row in rows)


# every kind against plain loops

NAN = float("nan")
POOL: dict[str, list[Any]] = {
    "amount": [None, NAN, -1.0, 0.0, 0.1, 5.0, 10.0, 10.5],
    "price": [None, "-0.01", "0.00", "9.99", "10.00"],
    "segment": [None, "", "gold", "Gold", "it's", "a\\b", "gold\n"],
    "email": [None, "", "a@b", "a@b\n", "x a@b", "É@b"],
    "day": [None, "2026-01-01", "2026-01-31", "2026-02-01"],
}
Holds = Callable[[dict[str, Any]], bool]
ROW_RULES: list[tuple[Any, Holds]] = [
    (NotNull("amount"), lambda row: row["amount"] is not None),
    (NotNull("Segment"), lambda row: row["segment"] is not None),
    (InRange("amount", 0, 10), lambda row: row["amount"] is None or 0 <= row["amount"] <= 10),
    (InRange("amount", at_least=0.1, name="from"), lambda row: row["amount"] is None or row["amount"] >= 0.1),
    (InRange("amount", at_most=0, name="to"), lambda row: row["amount"] is None or row["amount"] <= 0),
    (InRange("price", 0, 9.99), lambda row: row["price"] is None or 0 <= float(row["price"]) <= 9.99),
    (InRange("day", "2026-01-02", "2026-01-31"), lambda row: row["day"] in (None, "2026-01-31")),
    (OneOf("segment", ["gold", "it's", "a\\b"]), lambda row: row["segment"] in (None, "gold", "it's", "a\\b")),
    (OneOf("amount", [0, 0.1, 5]), lambda row: row["amount"] in (None, 0.0, 0.1, 5.0)),
    (Matches("email", r"a|\p{Lu}?a?@b"), lambda row: row["email"] is None or bool(_email(row["email"]))),
    (Matches("segment", "g.*'?d", name="g"), lambda row: row["segment"] is None or row["segment"] == "gold"),
    (Expectation("cheap", "amount < 10 -- a remark"), lambda row: row["amount"] is None or row["amount"] < 10),
    (Expectation("either", "amount > 1 or segment = 'gold'"), lambda row: _either(row) is not False),
]
UNIQUES = [Unique("price"), Unique(["amount", "segment"]), Unique(["Segment", "amount"], name="again"), Unique("day")]


def _email(text: str) -> bool:
    return text in ("a", "@b", "a@b", "É@b", "Éa@b")


def _either(row: dict[str, Any]) -> bool | None:
    """SQL's `or` of two comparisons that a null makes null; NaN is above every number to Spark."""
    amount, segment = row["amount"], row["segment"]
    sides = [
        None if amount is None else amount > 1 or math.isnan(amount),
        None if segment is None else segment == "gold",
    ]
    return True if True in sides else None if None in sides else False


def holds_alone(row: dict[str, Any], rows: list[dict[str, Any]], rule: Unique) -> bool:
    """No other row has the same values; a null is like nothing, NaN is like NaN."""

    def values(of: dict[str, Any]) -> list[str | None]:
        return [None if of[name.lower()] is None else str(of[name.lower()]) for name in columns_of(rule)]

    own = values(row)
    return None in own or not any(values(other) == own for other in rows if other is not row)


def drawn(count: int, seed: int) -> list[dict[str, Any]]:
    chance = random.Random(seed)
    rows = []
    for n in range(count):
        row: dict[str, Any] = {name: chance.choice(values) for name, values in POOL.items()}
        rows.append({"customer_id": f"c{n}", "n": n, **row, "at": f"2026-01-{1 + n % 28:02}"})
    return rows


def frame(place: Place, rows: list[dict[str, Any]]) -> DataFrame:
    texts = {"customer_id", "segment", "email"}
    names = list(rows[0])
    kinds = dict(part.split(" ") for part in TYPES.split(", "))
    schema = ", ".join(
        f"{name} {'string' if name in texts or name in ('price', 'day', 'at') else kinds[name]}" for name in names
    )
    raw = place.spark.createDataFrame([tuple(row[name] for name in names) for row in rows], schema)
    return raw.selectExpr(*(name if name in texts else f"cast({name} as {kinds[name]}) {name}" for name in names))


@pytest.mark.parametrize("offline", ["delta", "parquet"])
def test_every_row_rule_finds_what_a_plain_loop_finds(place: Place, offline: str) -> None:
    """As counts, and with severity quarantine as rows, each with the names of all it broke."""
    rows = drawn(150, seed=3)
    put(place, frame(place, rows), "lake://raw/orders")
    broken: dict[int, list[str]] = {row["n"]: [] for row in rows}
    for row in rows:
        broken[row["n"]] += [name_of(rule) for rule, holds in ROW_RULES if not holds(row)]
        broken[row["n"]] += [name_of(rule) for rule in UNIQUES if not holds_alone(row, rows, rule)]
    expected = Counter(name for names in broken.values() for name in names)
    rules = [*(rule for rule, _ in ROW_RULES), *UNIQUES]
    assert set(expected) == {name_of(rule) for rule in rules}
    assert max(expected.values()) < len(rows)

    group = in_force(place, shop(offline=offline, expectations=rules))
    found = computed(place)
    assert (found.rows, found.rejected) == (150, 0)
    assert found.broken_rules == expected
    amounts = [row["amount"] for row in rows if row["amount"] is not None]
    told = results(place, group)["amount_in_range"]
    assert (told.kind, told.rows, told.observed) == ("in_range", 150, {"min": min(amounts), "max": "nan"})
    assert results(place, group)["day_in_range"].observed == {"min": "2026-01-01", "max": "2026-02-01"}
    assert results(place, group)["price_in_range"].observed == {"min": "-0.01", "max": "10.00"}

    some = [rule for rule in rules if name_of(rule) in ("amount_in_range", "day_unique", "g", "either")]
    strict = [dataclasses.replace(rule, severity="quarantine") for rule in some]
    group = in_force(place, shop(offline=offline, expectations=strict))
    found = computed(place)
    reasons = {n: ", ".join(name_of(rule) for rule in some if name_of(rule) in names) for n, names in broken.items()}
    assert quarantined(place, group) == sorted((str(n), reason) for n, reason in reasons.items() if reason)
    good = {row["n"] for row in place.table(group).read().select("n").collect()}
    assert good == {n for n, reason in reasons.items() if not reason}
    assert (found.rows, found.rejected) == (len(good), 150 - len(good))
    assert place.table(group).read().columns == [
        "customer_id",
        "event_time",
        "created_time",
        *(f.name for f in FEATURES),
    ]


def test_more_rules_than_a_number_has_bits_are_counted_each(place: Place) -> None:
    rows = drawn(40, seed=5)
    put(place, frame(place, rows), "lake://raw/orders")
    rules = [Expectation(f"above_{n}", f"n >= {n}", severity="quarantine" if n > 125 else "warn") for n in range(130)]
    in_force(place, shop(offline="parquet", expectations=rules))
    found = computed(place)
    assert found.broken_rules == {f"above_{n}": min(n, 40) for n in range(130)}
    assert (found.rows, found.rejected) == (0, 40)


# rules of the whole table

RAW = """
customer_id | n | amount | price | segment | email | day        | at
c1          | 1 | 10     | 1.00  | gold    | a@b   | 2026-01-01 | 2026-01-29
c1          | 2 | 20     | 2.00  | silver  | c@d   | 2026-01-02 | 2026-01-30
c2          | 3 | -5     | 3.00  | gold    | e@f   | 2026-01-03 | 2026-01-31
c3          | 4 | null   | 4.00  | null    | nope  | 2026-01-04 | 2026-02-09
"""


@pytest.fixture
def raw(place: Place, table: Table) -> DataFrame:
    rows = table(RAW, TYPES)
    put(place, rows, "lake://raw/orders")
    return rows


TABLE_RULES = [
    (RowCount(4, 4), True),
    (RowCount(at_least=5, name="more"), False),
    (Freshness("1d"), True),  # the row of 9 February is dated after now, so it says nothing
    (Freshness("1h", name="hour"), False),
    (SumsMatch("amount", "25"), False),
    (SumsMatch("amount * 4", "if(n <= 4, 25.005D, null)", tolerance=0.02, name="near"), True),
    (SumsMatch("price", "cast(n as decimal(10,2))", name="exact"), True),
]


@pytest.mark.parametrize("offline", ["delta", "parquet"])
def test_rules_of_the_table_are_judged_from_the_rows_that_are_in_it(place: Place, raw: DataFrame, offline: str) -> None:
    group = in_force(place, shop(offline=offline, expectations=[rule for rule, _ in TABLE_RULES]))
    found = computed(place)
    assert found.broken_rules == {name_of(rule): int(not holds) for rule, holds in TABLE_RULES}
    told = results(place, group)
    assert told["fresh"].observed == {"newest": "2026-01-31T00:00:00+00:00", "age": "1d 0:00:00"}
    assert told["near"].observed == {"left": 100.0, "right": 100.02}
    assert told["exact"].observed == {"left": "10.00", "right": "10.00"}
    strict = [NotNull("amount", severity="quarantine"), RowCount(3, 3), SumsMatch("price", "6")]
    in_force(place, shop(offline=offline, expectations=strict))
    assert computed(place).broken_rules == {"amount_not_null": 1, "row_count": 0, "price_sums_match": 1}


@pytest.mark.parametrize("offline", ["delta", "parquet"])
@pytest.mark.parametrize(
    "rule",
    [
        NotNull("amount", severity="stop", name="stopping"),
        Unique("segment", severity="stop", name="stopping"),
        RowCount(at_most=2, severity="stop", name="stopping"),
        Freshness("1h", severity="stop", name="stopping"),
        SumsMatch("amount", "price", severity="stop", name="stopping"),
    ],
    ids=lambda rule: type(rule).__name__,
)
def test_broken_stop_rule_leaves_table_and_quarantine_as_they_were(
    place: Place, raw: DataFrame, offline: str, rule: Any
) -> None:
    """And the run's results say which it was."""
    watch = Expectation("positive", "amount > 0", severity="quarantine")
    group = in_force(place, shop(offline=offline, expectations=[watch]))
    computed(place)
    before = (place.table(group).version(), quarantined(place, group), place.quarantine(group).version())
    rows = place.table(group).read()
    in_force(place, shop(offline=offline, expectations=[watch, rule]))
    with pytest.raises(DataError, match="expectation 'stopping' of severity stop is broken"):
        compute(place, now=NOW)
    assert (place.table(group).version(), quarantined(place, group), place.quarantine(group).version()) == before
    assert_rows(place.table(group).read(), rows)
    newest, *_ = kept(place, group)
    assert (newest.table_version, results(place, group)["stopping"].verdict) == (None, "broken")


def test_stop_rules_that_hold_do_not_stop(place: Place, raw: DataFrame) -> None:
    rules = [RowCount(1), Freshness("2d"), SumsMatch("price", "n"), Unique("n"), NotNull("email")]
    in_force(
        place, shop(offline="parquet", expectations=[dataclasses.replace(rule, severity="stop") for rule in rules])
    )
    assert not any(computed(place).broken_rules.values())


def test_rules_that_spark_cannot_judge_are_refused_and_named(place: Place, raw: DataFrame) -> None:
    wrong = {
        "'odd': its condition gives int, expected boolean": Expectation("odd", "n + 1"),
        "'odd': its condition `nope\\(n\\)`": Expectation("odd", "nope(n)"),
        "'odd': its condition `avg\\(n\\) > 1`: \\[MISSING_GROUP_BY\\] .* write Aggregate\\(": Expectation(
            "odd", "avg(n) > 1"
        ),
        "'odd': its left `sum\\(n\\)`: \\[MISSING_GROUP_BY\\]": SumsMatch("sum(n)", "n", name="odd"),
        "'odd': its condition `explode.*`: \\[UNSUPPORTED_GENERATOR": Expectation("odd", "explode(array(n > 0))"),
        "'odd': its condition `n >`: \\[PARSE_SYNTAX_ERROR\\]": Expectation("odd", "n >"),
        "'odd': its left gives string, expected a number": SumsMatch("email", "n", name="odd"),
        "'odd': its pattern is no regular expression of Java": Matches("email", r"\p{Nonsense}", name="odd"),
    }
    for problem, rule in wrong.items():
        group = in_force(place, shop(offline="parquet", expectations=[Expectation("fine", "n > 0"), rule]))
        with pytest.raises(DataError, match=f"(?s){problem}"):
            compute(place, now=NOW)
        assert place.table(group).version() is None


# results


def test_runs_of_one_second_are_named_in_the_order_of_time() -> None:
    names = []
    for _ in range(50):
        names.append(new_run())
        time.sleep(0.002)
    assert names == sorted(names)


def test_results_of_each_run_are_kept_and_shown_with_their_history(place: Place, raw: DataFrame) -> None:
    group = in_force(place, shop(expectations=[InRange("amount", at_least=0), RowCount(4)]))
    computed(place)
    put(place, raw.where("n < 3"), "lake://raw/orders")
    computed(place)
    files = sorted(local_path(results_uri(place, group)).glob("*.json"))
    first, second = (json.loads(file.read_text(encoding="utf-8")) for file in files)
    assert [file.stem for file in files] == [first["run"], second["run"]]
    assert place.table(group).note(1)["run"] == second["run"]
    assert [rule["verdict"] for rule in first["rules"]] == ["broken", "held"]
    assert (second["table_version"], second["rows"], second["rejected"], second["verb"]) == (1, 2, 0, "compute")
    text = show(place, "shop").text()
    lines = [re.split(r"  +", line.strip()) for line in text.splitlines()]
    assert ["amount_in_range", "in_range", "warn", "2", "0", "min 10.0, max 20.0", "held, broken"] in lines
    assert ["row_count", "row_count", "warn", "2", "1", "rows 2", "broken, held"] in lines
    assert second["run"] in text


def test_group_without_a_run_or_a_rule_is_shown_without_expectations(place: Place, raw: DataFrame) -> None:
    in_force(place, shop(offline="parquet"))
    assert "expectations" not in show(place, "shop").text()
    computed(place)
    assert "expectations" not in show(place, "shop").text()


# the quarantine and its replay

STRICT = [
    Expectation("positive", "amount > 0", severity="quarantine"),
    Matches("email", ".+@.+", severity="quarantine"),
]


def test_quarantined_row_names_its_rules_run_stage_and_time(place: Place, raw: DataFrame) -> None:
    put(
        place,
        raw.unionByName(raw.where("n = 1").selectExpr("* except (at)", "cast(null as timestamp) at")),
        "lake://raw/orders",
    )
    group = in_force(place, shop(expectations=[*STRICT, NotNull("amount", severity="quarantine")]))
    computed(place)
    found = {row["reason"]: row for row in place.quarantine(group).read().collect()}
    assert set(found) == {"positive", "email_matches, amount_not_null", "event_time is null"}
    assert {row["stage"] for row in found.values()} == {"source", "feature"}
    assert {row["run"] for row in found.values()} == {place.table(group).note(0)["run"]}
    assert all(row["at"] is not None for row in found.values())
    assert json.loads(found["positive"]["row"])["event_time"] == "2026-01-31T00:00:00.000000Z"


@pytest.mark.parametrize("offline", ["delta", "parquet"])
def test_replay_after_a_corrected_rule_gives_what_a_compute_would(place: Place, offline: str) -> None:
    """Row by row, in the table and in the quarantine, whatever the rows hold; and once more changes nothing."""
    rows = drawn(80, seed=11)
    rows[0]["at"] = None
    put(place, frame(place, rows), "lake://raw/orders")
    in_force(place, shop(offline=offline, expectations=[*STRICT, Unique("price", severity="quarantine")]))
    first = computed(place)
    loose = [Expectation("positive", "amount >= 0", severity="quarantine"), Unique("day", severity="quarantine")]
    group = in_force(place, shop(offline=offline, expectations=[*loose, RowCount(1, severity="stop")]))
    report = replay(place, "shop", now=NOW)
    assert (report.way, report.before) == ("rules", first.rejected)
    replayed, kept_out = place.table(group).read(), quarantined(place, group)
    assert report.stayed == len(kept_out)
    assert report.passed > 0
    assert report.newly > 0
    assert report.before - report.passed + report.newly == report.stayed
    again = replay(place, "shop", now=NOW)
    assert (again.way, again.passed, again.stayed, again.table_version) == (
        "nothing",
        0,
        report.stayed,
        report.table_version,
    )
    snapshot = place.applied()
    assert place.computed(snapshot, group)[1] == report.table_version
    found = computed(place)
    texts = [sorted(map(repr, rows.collect())) for rows in (place.table(group).read(), replayed)]  # NaN is no NaN
    assert texts[0] == texts[1]
    assert (found.rejected, quarantined(place, group)) == (report.stayed, kept_out)


def test_row_that_stays_keeps_the_run_that_rejected_it(place: Place, raw: DataFrame) -> None:
    in_force(place, shop(expectations=STRICT))
    computed(place)
    group = in_force(place, shop(expectations=STRICT[:1]))
    first = place.table(group).note(0)["run"]
    report = replay(place, "shop", now=NOW)
    assert (report.passed, report.stayed, report.newly) == (1, 1, 0)
    (row,) = place.quarantine(group).read().collect()
    assert (row["reason"], row["run"]) == ("positive", first)
    assert place.table(group).note(1)["runs"] == [first]
    assert "2 rows in the quarantine, 1 passed, 1 stays" in report.text()
    assert kept(place, group)[0].verb == "replay"


def test_replay_that_a_stop_rule_ends_changes_nothing(place: Place, raw: DataFrame) -> None:
    in_force(place, shop(offline="parquet", expectations=STRICT))
    computed(place)
    for severe in (
        RowCount(at_most=1, severity="stop", name="stopping"),
        NotNull("segment", severity="stop", name="stopping"),
    ):
        group = in_force(place, shop(offline="parquet", expectations=[severe]))
        before = (place.table(group).version(), quarantined(place, group))
        with pytest.raises(DataError, match="'stopping' of severity stop is broken"):
            replay(place, "shop", now=NOW)
        assert (place.table(group).version(), quarantined(place, group)) == before


def test_replay_of_another_definition_or_of_aggregates_computes_the_group(place: Place, raw: DataFrame) -> None:
    in_force(place, shop(offline="parquet", expectations=STRICT))
    computed(place)
    doubled = [*FEATURES[:1], Feature("amount", "double", "abs(amount) -- corrected"), *FEATURES[2:]]
    renamed = dataclasses.replace(orders, filter="email <> 'nope'")
    group = shop(
        offline="parquet",
        expectations=STRICT,
        features=doubled,
    )
    register(place, customer, renamed, dataclasses.replace(group, source=renamed))
    report = replay(place, "shop", now=NOW)
    assert (report.way, report.before, report.stayed) == ("compute", 2, 0)
    assert report.why == "more than rules has changed: computed in full"
    total = [Feature("total", "double", Aggregate("sum", "amount"))]
    rule = Expectation("positive", "total > 0", severity="quarantine")
    in_force(place, dataclasses.replace(shop(features=total, expectations=[rule]), version=2))
    assert computed(place).rejected == 1
    in_force(place, dataclasses.replace(shop(features=total), version=2))
    report = replay(place, "shop", now=NOW)
    assert (report.way, report.before, report.passed, report.stayed) == ("compute", 1, 1, 0)
    assert "the group has aggregates" in report.text()


def test_replay_without_a_table_or_a_group_is_refused(place: Place, raw: DataFrame) -> None:
    in_force(place, shop())
    with pytest.raises(DataError, match="has no offline table yet"):
        replay(place, "shop")
    with pytest.raises(UsageError, match="is not in registry snapshot"):
        replay(place, "shopp")


# a job that is killed between two writes

KILLED = """
import os, signal, sys
sys.path.insert(0, {root!r})
from pathlib import Path
from connectors import offline_tables
from jobs import quality, replay as verb
from jobs.compute import compute
from jobs.place import Place, new_run
from tests.conftest import settings_in
from tests.lab import NOW
from tests.test_expectations import STRICT, in_force, shop

place = Place(settings_in(Path({folder!r})))
place.spark.sparkContext.setLogLevel("OFF")
replace = offline_tables.{table}.replace

def replaced(self, rows, note):
    if self.uri.endswith("_quarantine") == {quarantine} and note["run"] != {run!r}:
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(self, rows, note)

offline_tables.{table}.replace = replaced
{verb}
"""


def killed(place: Place, tmp_path: Path, *, verb: str, before: str, run: str = "") -> None:
    """Run a verb in a process of its own that is killed (SIGKILL) when it is about to write this table."""
    script = KILLED.format(
        root=str(ROOT), folder=str(tmp_path), verb=verb, run=run, quarantine=before == "quarantine",
        table="ParquetOfflineTable",
    )  # fmt: skip
    ran = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == -signal.SIGKILL, ran.stderr


def test_compute_killed_before_its_quarantine_neither_loses_nor_doubles_a_row(
    place: Place, raw: DataFrame, tmp_path: Path
) -> None:
    """The table names a run whose quarantine is not there: no older one stands in for it, and replay computes."""
    group = in_force(place, shop(offline="parquet", expectations=STRICT))
    first = computed(place)
    expected = quarantined(place, group)
    assert len(expected) == first.rejected == 2
    killed(place, tmp_path, verb="compute(place, now=NOW, full=True)", before="quarantine")
    assert place.table(group).version() == first.table_version + 1
    assert quarantine_in_force(place, group) is None
    report = replay(place, "shop", now=NOW)
    assert (report.way, report.why) == (
        "compute",
        "the run that wrote the table did not come to its end: computed in full",
    )
    assert quarantined(place, group) == expected
    assert place.table(group).read().count() == 2


def test_replay_killed_before_the_table_neither_loses_nor_doubles_a_row(
    place: Place, raw: DataFrame, tmp_path: Path
) -> None:
    """Its quarantine is written, but no version of the table names its run: the older one is in force."""
    in_force(place, shop(offline="parquet", expectations=STRICT))
    computed(place)
    group = in_force(place, shop(offline="parquet", expectations=STRICT[:1]))
    before = quarantined(place, group)
    killed(place, tmp_path, verb='verb.replay(place, "shop", now=NOW)', before="table")
    assert place.quarantine(group).version() == 2
    assert (quarantine_in_force(place, group), quarantined(place, group)) == (1, before)
    report = replay(place, "shop", now=NOW)
    assert (report.way, report.before, report.passed, report.stayed) == ("rules", 2, 1, 1)
    assert sorted(row["n"] for row in place.table(group).read().collect()) == [1, 2, 4]
