"""The words for cleaning and scaling without Spark: what each mistake is called, what refits, what plan tells."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from connectors.file_store import LocalFileStore
from connectors.fitted_values import Fitted, FittedValues
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
    MinMax,
    OneHot,
    Source,
    Standardise,
    cleaning,
)
from feature_defs.changes import compare
from feature_defs.checks import check
from feature_defs.errors import LakeError
from feature_defs.fingerprint import fingerprint
from feature_defs.fitting import fits_of, reads_other_rows
from feature_defs.loading import load
from feature_defs.snapshot import from_plain, to_plain
from jobs.plan import changes_text
from tests.lab import checked

FIT = ("2026-01-01", "2026-02-01")
customer = Entity("customer", keys={"customer_id": "string"})
SCHEMA = {"customer_id": "string", "amount": "double", "n": "int", "tier": "string", "is_new": "boolean", "at": "date"}
orders = Source("orders", path="lake://raw/orders", event_time="at", schema=SCHEMA)
AMOUNT = Feature("amount", "double")


def group(*features: Feature, **options: Any) -> FeatureGroup:
    return FeatureGroup("g", **{"entity": customer, "source": orders, "features": features or [AMOUNT], **options})


def faults(made: FeatureGroup, *others: Any) -> list[tuple[str, str]]:
    return [(fault.problem, fault.hint) for fault in check([customer, made, *(others or [orders])])[1]]


# --- mistakes ---

STEPS = [
    (Fill("amunt", "mean"), "column 'amunt' is not there (customer_id, amount,", "did you mean 'amount'?"),
    (Fill("amount", "medain"), "how 'medain' is not known", "did you mean 'median'?"),
    (Fill("amount"), "has nothing to fill with", 'Fill("amount", value=0)'),
    (Fill("amount", "mean", value=0), "has both how and value=", 'Fill("amount", "median")'),
    (Fill("amount", value=float("nan")), "value is float", "a finite number"),
    (Fill("amount", value=[1]), "value is list", "give a text"),
    (Fill("amount", value="none"), "column 'amount' is double, which str 'none' cannot fill", "a word that fits"),
    (Fill("amount", value=True), "column 'amount' is double, which bool True cannot fill", "a word that fits"),
    (Fill("n", value=0.5), "column 'n' is int, which float 0.5 cannot fill", "a word that fits"),
    (Fill("is_new", value=0), "column 'is_new' is boolean, which int 0 cannot fill", "a word that fits"),
    (Fill("tier", "mean"), "column 'tier' is string, expected a number", "cast it"),
    (Fill("is_new", "median"), "column 'is_new' is boolean, expected a number", "cast it"),
    (Fill("amount", "forward", fit=FIT), "has fit= but learns nothing from data", "leave fit out"),
    (Fill("customer_id", value="x"), "'customer_id' is a key, which cleaning does not change", "in the source"),
    (Fill("at", value="2026-01-01"), "'at' is a clock, which cleaning does not change", "in the source"),
    (Fill(3, "mean"), "column is 3, expected a name", 'write Fill("amount")'),
    (Clip({"amount": 1}, low=0), "column is {'amount': 1}, expected a name", 'write Clip("amount")'),
    (Clip("amount", quantiles=["a", {}]), "quantiles ['a', {}] are not two rising shares", "quantiles=(0.01, 0.99)"),
    (Fill("amount", ["mean"]), "how ['mean'] is not known", "use one of mean, median, forward"),
    (DropNull("Amount"), "column 'Amount' is not there", "did you mean 'amount'?"),
    (Clip("amount"), "has no bounds, expected one way", "iqr=1.5"),
    (Clip("amount", low=0, iqr=1.5), "has bounds and iqr, expected one way", "iqr=1.5"),
    (Clip("amount", low=1, high=0), "low 1 is above high 0", "exchange"),
    (Clip("amount", low="0"), "bound '0' is not a finite number", "low="),
    (Clip("amount", high=float("inf")), "bound inf is not a finite number", "low="),
    (Clip("amount", iqr=-1), "iqr -1 is not a factor", "iqr=1.5"),
    (Clip("amount", quantiles=(0.9, 0.1)), "quantiles (0.9, 0.1) are not two rising shares", "quantiles=(0.01, 0.99)"),
    (Clip("amount", quantiles=(0.01, 99)), "quantiles (0.01, 99) are not two rising shares", "quantiles=(0.01, 0.99)"),
    (Clip("amount", quantiles=0.5), "quantiles 0.5 are not two rising shares", "quantiles=(0.01, 0.99)"),
    (Clip("tier", iqr=1.5), "column 'tier' is string, expected a number", "cast it"),
    (Clip("amount", iqr=1.5, fit=("2026-02-01", "2026-01-01")), "fit: 2026-02-01 to 2026-01-01 holds no time", "fit=("),
    (Clip("amount", iqr=1.5, fit=("2026-13-01", "2026-01-01")), "fit: '2026-13-01' is not a date or time", "fit=("),
    (Clip("amount", iqr=1.5, fit="2026-01"), "fit: '2026-01' is not a range of two times", "fit=("),
]


@pytest.mark.parametrize(("step", "problem", "hint"), STEPS, ids=str)
def test_a_mistake_in_a_step_is_one_fault_with_a_hint(step: Any, problem: str, hint: str) -> None:
    found = faults(group(clean=[step, Clip("amount", low=0)], fit=None if getattr(step, "fit", None) else FIT))
    found = [fault for fault in found if fault[0] != "has fit= but nothing that is fitted"]
    assert len(found) == 1, found
    assert problem in found[0][0]
    assert found[0][0].startswith(f"clean: {type(step).__name__}(")
    assert hint in found[0][1]


WORDS = [
    ("double", Standardise("amunt"), "Standardise: column 'amunt' is not there", "did you mean 'amount'?"),
    ("int", Standardise("amount"), "is int, but Standardise gives double, float", 'write type "double"'),
    ("double", MinMax("tier"), "MinMax: column 'tier' is string, expected a number", "cast it"),
    ("double", Log("amount", offset="1"), "Log: offset '1' is not a number", "offset=0.5"),
    ("int", Bucket("amount"), "Bucket: has no edges", "quantiles=4"),
    ("int", Bucket("amount", edges=[1], quantiles=2), "Bucket: has both edges and quantiles", "quantiles=4"),
    ("int", Bucket("amount", edges=[]), "Bucket: edges [] are not rising numbers", "edges=["),
    ("int", Bucket("amount", edges=[1, 1]), "Bucket: edges [1, 1] are not rising numbers", "edges=["),
    ("int", Bucket("amount", edges=[1, "2"]), "Bucket: edges [1, '2'] are not rising numbers", "edges=["),
    ("int", Bucket("amount", quantiles=1), "Bucket: quantiles 1 is not a number of buckets", "2 to 1,000"),
    ("string", Bucket("amount", quantiles=4), "is string, but Bucket gives int, bigint", 'write type "int"'),
    ("string", Index("tier"), "is string, but Index gives int, bigint", 'write type "int"'),
    ("int", Index("amount"), "Index: column 'amount' is double, expected text", "a word that fits"),
    ("int", Index("tier", most=0), "Index: most 0 is not a number of categories", "1 to 10,000"),
    ("int", OneHot("tier"), "is int, but OneHot gives array<int>, array<bigint>", 'write type "array<int>"'),
    ("array<int>", OneHot("tier", most=2.5), "OneHot: most 2.5 is not a number of categories", "1 to 10,000"),
]


@pytest.mark.parametrize(("kind", "word", "problem", "hint"), WORDS, ids=str)
def test_a_mistake_in_a_word_is_one_fault_with_a_hint(kind: str, word: Any, problem: str, hint: str) -> None:
    found = faults(group(Feature("f", kind, word), Feature("z", "double", MinMax("amount")), fit=FIT))
    assert len(found) == 1, found
    assert problem in found[0][0]
    assert hint in found[0][1]


GROUPS = [
    (group(clean=Fill("amount", "mean")), "clean is Fill, expected a list", 'clean=[Fill("amount", "median")]'),
    (group(clean=["amount"]), "clean holds str, expected DropNull, Fill, Clip", "clean=["),
    (group(clean=[Standardise("amount")]), "clean holds Standardise, expected DropNull", "give it to a feature"),
    (group(clean=[Fill("amount", "mean")]), "learns from data, but says not from which", 'fit=("2026-01-01"'),
    (group(clean=[Fill("n", "mean")], fit=["2026-01-01"]), "fit: ['2026-01-01'] is not a range of two times", "UTC"),
    (group(fit=FIT), "has fit= but nothing that is fitted", "leave fit out"),
    (group(clean=[Fill("amount", value=0)], fit=FIT), "has fit= but nothing that is fitted", "leave fit out"),
    (group(Feature("f", "double", Standardise("amount"))), "learns from data, but says not from which", "on the word"),
    (group(Feature("f", "double", Fill("amount", "mean"))), "expression is Fill", "Fill is for clean="),
]


@pytest.mark.parametrize(("made", "problem", "hint"), GROUPS, ids=lambda case: case if isinstance(case, str) else "")
def test_a_mistake_of_a_group_is_one_fault_with_a_hint(made: FeatureGroup, problem: str, hint: str) -> None:
    found = faults(made)
    assert len(found) == 1, found
    assert problem in found[0][0]
    assert hint in found[0][1]


def test_a_fitted_word_beside_aggregates_is_refused_and_an_unfitted_one_reads_features() -> None:
    spent = Feature("spent", "double", Aggregate("sum", "amount"))
    refused = faults(group(spent, Feature("z", "double", Standardise("spent")), fit=FIT))
    assert refused[0][0].startswith("Standardise is fitted on the source's columns, which a group with aggregates")
    assert faults(group(spent, Feature("log", "double", Log("spent")))) == []
    assert faults(group(spent, Feature("log", "double", Log("spnet"))))[0][1].startswith("did you mean 'spent'?")


def test_features_that_need_one_another_through_a_word_are_refused() -> None:
    spent = Feature("spent", "double", Aggregate("sum", "amount"))
    circle = [spent, Feature("a", "double", Log("b")), Feature("b", "double", "a + 1")]
    assert faults(group(*circle))[0][0] == "features a, b need one another"


def test_without_a_schema_or_behind_a_transform_columns_are_for_compute_to_find() -> None:
    loose = replace(orders, schema=None)
    assert faults(group(clean=[Clip("anything", low=0)], source=loose), loose) == []


# --- ranges ---


@pytest.mark.parametrize(
    ("text", "microseconds"),
    [
        ("1970-01-02", 86_400_000_000),
        ("1970-01-01T01:00", 3_600_000_000),
        ("1970-01-01T01:00:00.000001Z", 3_600_000_001),
        ("1970-01-01T01:00:00+01:00", 0),
    ],
)
def test_times_of_a_range_are_utc(text: str, microseconds: int) -> None:
    assert cleaning.range_us((text, "2026-01-01"))[0] == microseconds


# --- fingerprints, snapshots, plan ---

FULL = group(
    AMOUNT,
    Feature("z", "double", Standardise("amount")),
    Feature("scaled", "float", MinMax("amount", fit=["2026-01-01", "2026-01-08"])),
    Feature("log", "double", Log("amount", offset=0.5)),
    Feature("bucket", "int", Bucket("amount", edges=[1, 2.5])),
    Feature("quarter", "int", Bucket("amount", quantiles=4)),
    Feature("tier_index", "bigint", Index("tier", most=20)),
    Feature("tier_hot", "array<int>", OneHot("tier")),
    clean=[
        DropNull("n"), Fill("amount", "median"), Clip("amount", quantiles=(0.01, 0.99)), Fill("tier", value="none"),
        Fill("is_new", "forward"),
    ],
    fit=FIT,
)  # fmt: skip


def test_words_survive_the_registry() -> None:
    plain = to_plain(checked(customer, orders, FULL))
    stored = json.loads(json.dumps(plain))
    again = from_plain(stored)
    assert to_plain(again) == plain
    assert fingerprint(again.groups["g"], again) == plain["groups"]["g"]["fingerprint"]
    assert fits_of(again.groups["g"], again) != ()
    assert [fit.digest for fit in fits_of(again.groups["g"], again)] == [f.digest for f in fits_of(FULL, again)]


def test_a_group_without_the_words_has_no_trace_of_them_in_its_snapshot() -> None:
    """What was registered before they came is still what it was."""
    assert not {"clean", "fit"} & to_plain(checked(customer, orders, group()))["groups"]["g"].keys()


def of(made: FeatureGroup, source: Source = orders) -> str:
    return fingerprint(made, checked(customer, source, made))


def changed_step(number: int, step: Any) -> FeatureGroup:
    return replace(FULL, clean=[step if at == number else kept for at, kept in enumerate(FULL.clean)])


def test_what_may_change_cleaned_values_changes_the_fingerprint() -> None:
    found = {
        "as it is": of(FULL),
        "another range": of(replace(FULL, fit=("2026-01-01", "2026-02-02"))),
        "another way": of(changed_step(1, Fill("amount", "mean"))),
        "another bound": of(changed_step(2, Clip("amount", quantiles=(0.01, 0.98)))),
        "another constant": of(changed_step(3, Fill("tier", value="None"))),
        "no step": of(replace(FULL, clean=FULL.clean[1:])),
        "another order": of(replace(FULL, clean=[FULL.clean[0], FULL.clean[2], FULL.clean[1], *FULL.clean[3:]])),
        "another word": of(replace(FULL, features=[AMOUNT, Feature("z", "double", MinMax("amount"))])),
    }
    assert len(set(found.values())) == len(found), found


def test_another_spelling_of_the_same_keeps_the_fingerprint() -> None:
    spelt = replace(FULL, fit=["2026-01-01T00:00:00Z", "2026-02-01T01:00+01:00"], clean=list(FULL.clean))
    assert of(spelt) == of(FULL)
    low, same = (group(clean=[Clip("amount", low=bound)]) for bound in (0, 0.0))
    assert of(low) == of(same)


def test_plan_tells_steps_words_and_ranges_as_they_are_written() -> None:
    before = checked(customer, orders, group(AMOUNT, clean=[Fill("amount", value=0)]))
    word = Feature("amount", "double", Standardise("amount"))
    after = checked(customer, orders, group(word, clean=[Fill("amount", "median"), Clip("amount", iqr=1.5)], fit=FIT))
    plan = compare(before, after)
    assert plan.recompute == ("g",)
    assert changes_text(plan.changes) == [
        "~ FeatureGroup g  (values change)",
        "    features.amount.expression: nothing -> Standardise(amount)",
        "    clean: Fill(amount, value=0) -> Fill(amount, median), Clip(amount, iqr=1.5)",
        "    fit: nothing -> ['2026-01-01', '2026-02-01']",
    ]


def test_only_a_forward_fill_reads_other_rows() -> None:
    assert reads_other_rows(FULL)
    assert not reads_other_rows(replace(FULL, clean=FULL.clean[:-1]))


def test_the_definition_of_the_documentation_is_sound(tmp_path: Path) -> None:
    """A newcomer copies it first."""
    text = (Path(__file__).resolve().parent.parent / "docs" / "cleaning.md").read_text(encoding="utf-8")
    (tmp_path / "orders.py").write_text(text.split("```python\n")[1].split("```")[0], encoding="utf-8")
    definitions = load(tmp_path)
    shown = [cleaning.text(fit.word) for fit in fits_of(definitions.groups["order_values"], definitions)]
    assert shown == [
        line.split("  ")[0] for line in text.replace("\n      ", "\n").splitlines() if " to 2026-02-01 " in line
    ]


# --- what refits ---


def digests(made: FeatureGroup, source: Source = orders) -> dict[str, str]:
    return {cleaning.text(fit.word): fit.digest for fit in fits_of(made, checked(customer, source, made))}


def refitted(change: Callable[[], dict[str, str]]) -> set[str]:
    before, after = digests(FULL), change()
    return {word for word in after if before.get(word) != after[word]}


def test_a_change_refits_what_hangs_on_it_and_nothing_else() -> None:
    every = set(digests(FULL))
    texts = {"Index(tier, most=20)", "OneHot(tier)"}
    median, clip, own_range = "Fill(amount, median)", "Clip(amount, quantiles=[0.01, 0.99])", "MinMax(amount)"
    assert every > {median, clip, own_range, *texts}
    assert refitted(lambda: digests(replace(FULL, owner="crm", version=1, ttl="9d"))) == set()
    assert refitted(lambda: digests(replace(FULL, fit=("2026-01-02", "2026-02-01")))) == every
    assert refitted(lambda: digests(FULL, replace(orders, filter="amount > 0"))) == every
    assert refitted(lambda: digests(replace(FULL, clean=FULL.clean[1:]))) == every  # other rows
    assert refitted(lambda: digests(changed_step(3, Fill("tier", value="?")))) == texts
    assert refitted(lambda: digests(changed_step(2, Clip("amount", low=0)))) == every - texts - {median, clip}
    assert refitted(lambda: digests(replace(FULL, clean=[*FULL.clean, Clip("n", low=0)]))) == set()


def test_a_change_of_what_a_source_is_made_of_refits() -> None:
    def digest(source: Source | FeatureGroup, *others: Any) -> str:
        made = group(Feature("z", "double", Standardise("amount")), source=source, fit=FIT)
        (fit,) = fits_of(made, checked(customer, orders, source, *others, made))
        return fit.digest

    def net(**way: Any) -> Source:
        return Source("net", event_time="at", **{"inputs": [orders], **way})

    def twice(orders: Any) -> Any:
        return orders.union(orders)

    def distinct(orders: Any) -> Any:
        return orders.distinct()

    def upstream(expression: str) -> FeatureGroup:
        return replace(group(Feature("amount", "double", expression)), name="upstream")

    few = Source("few", path="lake://raw/orders", event_time="at", filter="amount > 0")
    every = {
        digest(net(sql="SELECT * FROM {orders}")),
        digest(net(sql="SELECT *, amount * 100 AS amount FROM {orders}")),
        digest(net(sql="SELECT * FROM {few}", inputs=[few]), few),
        digest(net(sql="SELECT * FROM {few}", inputs=[few]), replace(few, filter="amount > 1")),
        digest(net(transform=twice)),
        digest(net(transform=distinct)),
        digest(upstream("amount")),
        digest(upstream("amount * 100")),
    }
    assert len(every) == 8
    assert digest(net(sql="SELECT  *\n FROM {orders}")) == digest(net(sql="SELECT * FROM {orders}"))


def test_digest_of_a_source_that_lies_at_a_path_is_the_one_of_files_that_are_there() -> None:
    assert digests(FULL)["Fill(amount, median)"] == "cd12a8e7421e3101"


# --- the files ---

VALUES = {"mean": 0.1 + 0.2, "edges": [1e-320, 1.7976931348623157e308], "vocabulary": ["é", "", "a\nb'\""]}
LEARNED = Fitted("Fill(a, mean)", ("2026-01-01", "2026-02-01"), 3, 2, "abc", "r1", VALUES)


def store(folder: Path) -> FittedValues:
    return FittedValues(LocalFileStore(), f"file://{folder}/v1_fitted")


def test_fitted_values_survive_exactly(tmp_path: Path) -> None:
    assert store(tmp_path).read("d1") is None
    assert store(tmp_path).keep("d1", LEARNED) == LEARNED
    assert store(tmp_path).read("d1") == LEARNED


def test_of_two_runs_the_first_wins_and_the_second_uses_its_values(tmp_path: Path) -> None:
    store(tmp_path).keep("d1", LEARNED)
    assert store(tmp_path).keep("d1", replace(LEARNED, run="r2", values={"mean": 5.0})) == LEARNED


@pytest.mark.parametrize("content", [b"", b"{}", b'{"format": 2}', b'{"format": 1, "range": [1]}', b"\xff"])
def test_a_broken_file_of_fitted_values_is_told(tmp_path: Path, content: bytes) -> None:
    kept = store(tmp_path)
    kept.files.create(f"{kept.root}/d1.json", content)
    with pytest.raises(LakeError, match="Fitted values"):
        kept.read("d1")
