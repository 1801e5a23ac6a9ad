"""Cleaning in compute, over real tables: values are fitted once on the stated range, kept, and applied as kept."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
from typing import Any

import pytest
from pyspark.sql import DataFrame

from connectors.file_store import local_path
from feature_defs import (
    Aggregate,
    Bucket,
    Clip,
    DropNull,
    Entity,
    Feature,
    FeatureGroup,
    Fill,
    Index,
    Log,
    OneHot,
    Source,
    Standardise,
)
from feature_defs.errors import DataError
from jobs import fitting
from jobs.compute import ComputedGroup, compute
from jobs.place import Place
from jobs.report import as_json
from jobs.show import show
from jobs.transforms import cleaning as steps
from tests.lab import NOW, Table, put, register
from tests.pipe_tables import assert_rows

FIT = ("2026-01-01", "2026-01-05")
TYPES = "amount double, n int, price decimal(6,2), at timestamp, seen timestamp"
customer = Entity("customer", keys={"customer_id": "string"})
purchases = Source("purchases", path="lake://raw/purchases", format="parquet", event_time="at", created_time="seen")
RAW = """
customer_id | amount | n    | price | tier   | at         | seen
c1          | 10     | 1    | 1.05  | gold   | 2026-01-01 | null
c1          | null   | null | 2.10  | null   | 2026-01-02 | null
c2          | 20     | 2    | null  | silver | 2026-01-03 | null
c2          | 90     | 4    | 9.99  | gold   | 2026-01-04 | null
c2          | null   | 9    | 5.00  | bronze | 2026-01-05 | null
c1          | 1000   | null | 7.77  | gold   | 2026-01-06 | null
null        | 5000   | 7    | 3.00  | gold   | 2026-01-02 | null
"""
SHIFTED = """
customer_id | amount | n    | price | tier   | at         | seen
c1          | 900000 | 800  | 500   | none   | 2026-01-01 | null
c1          | null   | null | null  | gold   | 2026-01-02 | null
"""


def group(*features: Feature, **options: Any) -> FeatureGroup:
    return FeatureGroup("spend", **{"entity": customer, "source": purchases, "features": features, **options})


@pytest.fixture
def raw(place: Place, table: Table) -> DataFrame:
    rows = table(RAW, TYPES)
    put(place, rows, "lake://raw/purchases")
    return rows


def computed(place: Place, made: FeatureGroup, *, source: Source = purchases) -> ComputedGroup:
    register(place, customer, source, made)
    return compute(place, now=NOW).groups[0]


def told(place: Place) -> list[dict[str, Any]]:
    """What is fitted, without the run and the digest."""
    return [
        {key: value for key, value in dataclasses.asdict(fitted).items() if key not in ("run", "digest")}
        for fitted in show(place, "spend").fitted
    ]


AMOUNT = Feature("amount", "double")
FULL = group(
    AMOUNT,
    Feature("n", "int"),
    Feature("price", "decimal(6,2)"),
    Feature("z", "double", Standardise("amount")),
    Feature("level", "int", Bucket("amount", quantiles=2)),
    Feature("tier_index", "bigint", Index("tier")),
    Feature("tier_hot", "array<float>", OneHot("tier", most=2)),
    Feature("log", "float", Log("n")),
    clean=[Fill("amount", "median"), Clip("amount", high=100), Fill("n", "mean"), Fill("price", "mean")],
    fit=FIT,
)


def test_values_fitted_on_the_range_are_kept_and_applied_to_other_data(
    place: Place, table: Table, raw: DataFrame
) -> None:
    """The range is half-open, rejected rows are not fitted on, columns keep their types, a shift refits nothing."""
    first = computed(place, FULL)
    # in the range: amounts 10 null 20 90 -> 20; n 1 null 2 4 -> 7/3; price 1.05 2.10 null 9.99 -> 4.38
    expected = table(
        """
        event_time | amount | n | price | level | tier_index
        2026-01-01 | 10     | 1 | 1.05  | 0     | 1
        2026-01-02 | 20     | 2 | 2.10  | 1     | 0
        2026-01-03 | 20     | 2 | 4.38  | 1     | 2
        2026-01-04 | 90     | 4 | 9.99  | 1     | 1
        2026-01-05 | 20     | 9 | 5.00  | 1     | 0
        2026-01-06 | 100    | 2 | 7.77  | 1     | 1
        """,
        "event_time timestamp, amount double, n int, price decimal(6,2), level int, tier_index bigint",
    )
    names = ["event_time", "amount", "n", "price", "level", "tier_index"]
    assert_rows(place.table(FULL).read().select(*names), expected)
    hot = place.table(FULL).read().orderBy("event_time").select("tier_hot", "log").collect()
    assert [row["tier_hot"] for row in hot] == [[1, 0], [0, 0], [0, 1], [1, 0], [0, 0], [1, 0]]
    assert math.isclose(hot[0]["log"], math.log(2), rel_tol=1e-6)
    assert (first.rows, first.rejected, first.dropped) == (6, 1, {})
    assert set(first.fitted) == {
        f"{word} on 4 rows"
        for word in (
            *("Fill(amount, median)", "Fill(n, mean)", "Fill(price, mean)", "Standardise(amount)"),
            *("Bucket(amount, quantiles=2)", "Index(tier)", "OneHot(tier, most=2)"),
        )
    }
    kept = told(place)
    put(place, table(SHIFTED, TYPES), "lake://raw/purchases")
    second = compute(place, now=NOW).groups[0]
    assert second.fitted == ()
    assert told(place) == kept
    rows = place.table(FULL).read().orderBy("event_time").collect()
    values = {fitted["word"]: fitted["values"] for fitted in kept}
    z = values["Standardise(amount)"]
    assert [row["amount"] for row in rows] == [100.0, 20.0]
    assert [row["z"] for row in rows] == [(x - z["mean"]) / z["stddev"] for x in (100.0, 20.0)]
    assert [(row["n"], row["tier_index"], row["level"]) for row in rows] == [(800, 0, 1), (2, 1, 1)]


def test_show_tells_what_was_fitted_as_text_and_as_json(place: Place, raw: DataFrame) -> None:
    pii = Feature("who", "int", Index("customer_id"), pii=True)
    made = group(
        AMOUNT, Feature("tier", "int", Index("tier")), pii,
        clean=[Fill("amount", "median"), Clip("amount", quantiles=(0, 1))], fit=FIT,
    )  # fmt: skip
    register(place, customer, purchases, made)
    unfitted = show(place, "spend")
    assert [fitted.run for fitted in unfitted.fitted] == [None] * 4
    first = next(line.split() for line in unfitted.text().splitlines() if line.startswith("  Fill(amount, median)"))
    assert first == "Fill(amount, median) 2026-01-01 to 2026-01-05 - not fitted yet".split()
    assert "clean: Fill(amount, median), Clip(amount, quantiles=[0, 1])\n" in unfitted.text()
    run = compute(place, now=NOW).run
    shown = show(place, "spend")
    found = json.loads(as_json("show", shown))["fitted"]
    assert [(word["word"], word["rows"], word["run"], word["values"]) for word in found] == [
        ("Fill(amount, median)", 4, run, {"median": 20.0}),
        ("Clip(amount, quantiles=[0, 1])", 4, run, {"low": 10.0, "high": 90.0}),
        ("Index(tier)", 4, run, {"vocabulary": ["gold", "silver"]}),
        ("Index(customer_id)", 4, run, {"vocabulary": "2 values of personal data"}),
    ]
    assert "low=10.0; high=90.0" in shown.text()
    assert "vocabulary=gold, silver" in shown.text()
    assert "c1" not in shown.text()
    stored = place.fitted(made).files.read(f"{place.fitted(made).root}/{found[0]['digest']}.json")
    document = json.loads(stored)
    assert (document["range"], document["present"]) == (["2026-01-01", "2026-01-05"], 3)
    assert document["fingerprint"] == place.applied().fingerprint("spend")


def test_rows_that_a_step_drops_are_counted_and_told(place: Place, raw: DataFrame) -> None:
    """They are no rejected rows: the group asked for it."""
    made = group(AMOUNT, clean=[Fill("n", "forward"), DropNull("n"), DropNull("amount"), DropNull("tier")])
    found = computed(place, made)
    assert found.dropped == {"DropNull(n)": 0, "DropNull(amount)": 2, "DropNull(tier)": 0}
    assert (found.rows, found.rejected) == (4, 1)
    text = compute(place, now=NOW).text()
    assert "spend: 2 rows dropped by DropNull(amount)" in text
    assert "DropNull(tier)" not in text


def test_aggregates_are_computed_over_cleaned_columns(place: Place, table: Table, raw: DataFrame) -> None:
    made = group(
        Feature("spent", "double", Aggregate("sum", "amount")),
        Feature("log", "double", Log("spent", offset=0)),
        clean=[Fill("amount", "median"), Clip("amount", high=50)], fit=FIT,
    )  # fmt: skip
    computed(place, made)
    newest = place.table(made).read().where("event_time >= '2026-01-05'").select("customer_id", "spent")
    assert_rows(newest, table("customer_id | spent\nc1 | 80\nc2 | 90", "spent double"))
    logs = [row["log"] for row in place.table(made).read().where("spent = 80").collect()]
    assert logs == [pytest.approx(math.log(80))]


def test_quarantined_rows_are_kept_as_they_came(place: Place, raw: DataFrame) -> None:
    made = group(AMOUNT, clean=[Clip("amount", high=1)])
    computed(place, made)
    (row,) = place.quarantine(made).read().collect()
    assert json.loads(row["row"])["amount"] == 5000.0


def test_what_does_not_wait_for_another_is_fitted_in_one_pass(
    place: Place, raw: DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two Fills of two columns and what is computed from others: one pass. What reads a filled column: a second."""
    passes: list[list[str]] = []
    numbers = steps.numbers

    def counted(rows: DataFrame, fits: Any) -> DataFrame:
        passes.append([f"{type(fit.word).__name__} {fit.word.column}" for fit in fits])
        return numbers(rows, fits)

    monkeypatch.setattr(fitting.steps, "numbers", counted)
    made = group(
        Feature("z", "double", Standardise("amount")), Feature("i", "int", Index("tier")),
        clean=[Fill("amount", "median"), Clip("n", low=0), Fill("n", "mean"), Clip("amount", iqr=1.5)], fit=FIT,
    )  # fmt: skip
    computed(place, made)
    assert passes == [["Fill amount", "Fill n", "Index tier"], ["Clip amount"], ["Standardise amount"]]


def test_a_new_range_or_a_new_version_refits_and_the_old_range_finds_its_values_again(
    place: Place, table: Table, raw: DataFrame
) -> None:
    made = group(AMOUNT, clean=[Fill("amount", "median")], fit=FIT)
    register(place, customer, purchases, made)
    assert fitting.waits_for_fit(place, place.applied(), made)
    assert computed(place, made).fitted == ("Fill(amount, median) on 4 rows",)
    assert not fitting.waits_for_fit(place, place.applied(), made)
    put(place, table(SHIFTED, TYPES), "lake://raw/purchases")
    longer = dataclasses.replace(made, fit=("2026-01-01", "2026-01-31"))
    assert computed(place, longer).fitted == ("Fill(amount, median) on 2 rows",)
    assert told(place)[0]["values"] == {"median": 900000.0}
    assert computed(place, made).fitted == ()
    assert told(place)[0]["values"] == {"median": 20.0}
    assert computed(place, dataclasses.replace(made, version=2)).fitted == ("Fill(amount, median) on 2 rows",)
    assert told(place)[0]["values"] == {"median": 900000.0}


def test_values_are_fitted_again_when_the_sql_of_a_source_changes(place: Place, raw: DataFrame) -> None:
    made = group(Feature("z", "double", Standardise("amount")), source="net", fit=FIT)
    for amount in ("amount", "amount * 100"):
        sql = f"SELECT customer_id, at, {amount} AS amount FROM {{purchases}} WHERE amount IN (10, 20)"
        register(place, customer, purchases, Source("net", sql=sql, inputs=[purchases], event_time="at"), made)
        assert compute(place, now=NOW).groups[0].fitted == ("Standardise(amount) on 2 rows",)
        assert sorted(row.z for row in place.table(made).read().collect()) == [-1.0, 1.0]


def test_of_two_racing_runs_the_second_applies_the_values_of_the_first(
    place: Place, raw: DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other run's file comes between the look and the write."""
    made = group(AMOUNT, clean=[Fill("amount", "median")], fit=FIT)
    numbers = steps.numbers

    def meanwhile(rows: DataFrame, fits: Any) -> DataFrame:
        other = {"format": 1, "word": "w", "range": FIT, "rows": 9, "present": 9, "fingerprint": "f", "run": "other"}
        file = local_path(f"{place.fitted(made).root}/{fits[0].digest}.json")
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps({**other, "values": {"median": 77.5}}), encoding="utf-8")
        return numbers(rows, fits)

    monkeypatch.setattr(fitting.steps, "numbers", meanwhile)
    assert computed(place, made).fitted == ()
    assert place.table(made).read().where("amount = 77.5").count() == 2


# --- what stops a run ---

LATE = ("2026-01-10", "2026-01-20")
STOPPED = [
    (group(AMOUNT, clean=[Fill("amount", "mean")], fit=LATE),
     "Fill(amount, mean): no row from 2026-01-10 to before 2026-01-20", "that the source covers"),
    (group(AMOUNT, clean=[Clip("amount", iqr=1.5, fit=("2026-01-02", "2026-01-03"))]),
     "Clip(amount, iqr=1.5): no value of 'amount' in 1 row from 2026-01-02", "that the source covers"),
    (group(AMOUNT, clean=[Fill("amount", "mean")], fit=("2026-01-01", "2026-02-01T00:00:01")),
     "its fit range ends 2026-02-01T00:00:01Z, which is not over yet", "choose a range that is over"),
    (group(Feature("z", "double", Standardise("huge")), fit=FIT), "its mean is not a finite number", "clip 'huge'"),
    (group(AMOUNT, clean=[DropNull("never")]), "clean drops every row: DropNull(never) 6", "fill the column"),
    (group(AMOUNT, clean=[Clip("amuont", low=0)]),
     "Clip(amuont, low=0): 'amuont' is not a column of the source's rows (customer_id", "did you mean 'amount'?"),
    (group(AMOUNT, clean=[Fill("tier", "mean")], fit=FIT), "column 'tier' is string, expected a number", "cast it"),
    (group(Feature("z", "int", Index("amount")), fit=FIT), "column 'amount' is double, expected text", "cast it"),
]  # fmt: skip


def test_what_cannot_be_fitted_or_applied_stops_the_run_with_a_hint(place: Place, raw: DataFrame) -> None:
    """And writes no table."""
    more = "huge", "if(n = 1, cast('Infinity' AS double), amount)", "never", "nullif(n, n)"
    put(place, raw.selectExpr("*", f"{more[1]} AS {more[0]}", f"{more[3]} AS {more[2]}"), "lake://raw/purchases")
    for made, problem, hint in STOPPED:
        with pytest.raises(DataError) as stopped:
            computed(place, made)
        assert problem in stopped.value.problem
        assert hint in stopped.value.hint
        assert place.table(made).version() is None


def test_now_decides_whether_a_range_is_over(place: Place, raw: DataFrame) -> None:
    made = group(AMOUNT, clean=[Fill("amount", "mean")], fit=FIT)
    register(place, customer, purchases, made)
    end = datetime.datetime(2026, 1, 5, tzinfo=datetime.timezone.utc)
    with pytest.raises(DataError, match="not over yet"):
        compute(place, now=end - datetime.timedelta(microseconds=1))
    assert compute(place, now=end).groups[0].fitted != ()
