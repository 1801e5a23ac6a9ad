"""The words for rules without Spark: names, snapshots, fingerprints, faults, and verdicts of what was measured."""

from __future__ import annotations

import json
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from feature_defs import (
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
from feature_defs.checks import check
from feature_defs.fingerprint import fingerprint
from feature_defs.loading import load
from feature_defs.model import Definitions
from feature_defs.rule_checks import pattern_fault
from feature_defs.rules import COLUMN_RULES, KINDS, RULES, kind_of, name_of
from feature_defs.snapshot import from_plain, plain_group, to_plain
from jobs.rule_results import judged
from tests.definition_files import edited, faults_of, write

CUSTOMER = Entity("customer", keys={"customer_id": "string"})
SCHEMA = {"customer_id": "string", "amount": "double", "segment": "string", "day": "date", "at": "timestamp"}
ORDERS = Source("orders", path="lake://raw/orders", event_time="at", schema=SCHEMA)
FEATURES = [Feature("amount", "double"), Feature("segment", "string"), Feature("day", "date")]
SPEND = FeatureGroup("spend", entity=CUSTOMER, source=ORDERS, features=FEATURES)
ALL: list[Any] = [
    Expectation("positive", "amount > 0"),
    NotNull("amount"),
    Unique(["customer_id", "segment"], severity="quarantine"),
    InRange("amount", 0, 1000.5, severity="stop"),
    InRange("day", at_least="2020-01-01"),
    OneOf("segment", ["gold", "silver"], severity="quarantine", name="known_segment"),
    Matches("segment", r"[a-z]+"),
    RowCount(at_least=1, at_most=10),
    Freshness("2d", severity="stop"),
    SumsMatch("amount", "amount + 0", tolerance=0.01),
]


def with_rules(*rules: Any, **expect: Any) -> FeatureGroup:
    features = [replace(feature, expect=expect.get(feature.name, ())) for feature in FEATURES]
    return replace(SPEND, expectations=list(rules), features=features)


def faults(*rules: Any, **expect: Any) -> list[tuple[str, str, str]]:
    _, found = check([CUSTOMER, ORDERS, with_rules(*rules, **expect)])
    return [(fault.subject, fault.problem, fault.hint) for fault in found]


def of(*rules: Any, **expect: Any) -> str:
    group = with_rules(*rules, **expect)
    return fingerprint(group, Definitions({"customer": CUSTOMER}, {"orders": ORDERS}, {"spend": group}, {}))


# names and snapshots


def test_names_come_from_columns_and_kind_unless_given() -> None:
    assert [name_of(rule) for rule in with_rules(*ALL).rules] == [
        "positive",
        "amount_not_null",
        "customer_id_segment_unique",
        "amount_in_range",
        "day_in_range",
        "known_segment",
        "segment_matches",
        "row_count",
        "fresh",
        "amount_sums_match",
    ]
    assert name_of(SumsMatch("net + tax", "total")) == "sums_match"


def test_rule_in_a_feature_is_the_groups_rule_of_that_column() -> None:
    group = with_rules(amount=[NotNull(), InRange(at_least=0), Expectation("small", "amount < 9")])
    assert group.rules == (
        NotNull("amount", name="amount_not_null"),
        InRange("amount", 0, name="amount_in_range"),
        Expectation("small", "amount < 9"),
    )
    assert faults(amount=[NotNull(), Unique(severity="quarantine"), InRange(0)]) != []
    assert faults(amount=[NotNull(), Unique(severity="quarantine"), InRange(at_least=0)]) == []


def test_snapshot_keeps_every_rule_and_reads_it_back() -> None:
    group = with_rules(*ALL, segment=[NotNull(), Matches(pattern="[a-z]+", name="lower")])
    definitions, found = check([CUSTOMER, ORDERS, group])
    assert definitions is not None, found
    assert {kind_of(rule) for rule in group.rules} == set(KINDS)
    plain = json.loads(json.dumps(to_plain(definitions)))
    again = from_plain(plain)
    assert to_plain(again) == plain
    assert again.groups["spend"].rules == group.rules or to_plain(again) == to_plain(definitions)
    assert fingerprint(again.groups["spend"], again) == plain["groups"]["spend"]["fingerprint"]


def test_snapshot_of_conditions_alone_is_what_it_was() -> None:
    """A registry of an earlier release must not show changes that nobody made."""
    group = with_rules(Expectation("positive", "amount > 0", severity="stop"))
    plain = plain_group(group, Definitions({"customer": CUSTOMER}, {"orders": ORDERS}, {"spend": group}, {}))
    assert plain["expectations"] == [{"name": "positive", "condition": "amount > 0", "severity": "stop"}]
    assert all("expect" not in feature for feature in plain["features"])


# fingerprints


def test_only_quarantine_rules_take_part_in_the_fingerprint() -> None:
    soft = [replace(rule, severity="warn") for rule in ALL]
    assert of(*soft) == of(*(replace(rule, severity="stop") for rule in soft)) == of()
    rows = [rule for rule in soft if isinstance(rule, (Expectation, *COLUMN_RULES))]
    strict = [of(replace(rule, severity="quarantine")) for rule in rows]
    assert len({*strict, of()}) == len(rows) + 1


def test_what_a_quarantine_rule_says_takes_part_and_its_name_and_place_do_not() -> None:
    strict = InRange("amount", 0, 10, severity="quarantine")
    assert of(strict) == of(replace(strict, name="other")) == of(amount=[replace(strict, column=None)])
    assert of(strict) != of(replace(strict, at_most=11))
    values = OneOf("segment", ["a", "b"], severity="quarantine")
    assert of(values) == of(replace(values, values=("b", "a"))) != of(replace(values, values=["b"]))
    pair = Unique(["amount", "segment"], severity="quarantine")
    assert of(pair) == of(replace(pair, column=("segment", "amount"))) != of(replace(pair, column="segment"))


# faults

FAULTS: list[tuple[Any, str, str]] = [
    (NotNull(), "expectation 'not_null': has no column", 'write NotNull("amount")'),
    (NotNull("amout"), "names 'amout', which is not in the group's columns", "did you mean 'amount'?"),
    (NotNull(5), "column is int", 'write NotNull("amount")'),
    (Unique(["amount", "Amount"]), "names a column twice", "keep one"),
    (Unique([]), "column is list", 'write Unique("amount")'),
    (NotNull("amount", severity="error"), "severity 'error' is not known", "use one of warn"),
    (NotNull("amount", name="Not Null"), "expectation: name 'Not Null' is not usable", "start with a letter"),
    (InRange("amount"), "has no bound", 'write InRange("amount", 0, 1000)'),
    (InRange("amount", 5, 1), "at_least is above at_most", "exchange the two"),
    (InRange("amount", "1"), "bound is '1', the column is double", "write a finite number"),
    (InRange("amount", True), "bound is True, the column is double", "write a finite number"),
    (InRange("amount", float("nan")), "bound is nan", "write a finite number"),
    (InRange("segment", 1), "is a range of 'segment', which is string", "ranges are of numbers"),
    (InRange("day", 5), "bound is 5, the column is date", "ISO 8601"),
    (InRange("day", "2026-01-02", "2026-01-01"), "at_least is above at_most", "exchange the two"),
    (OneOf("segment"), "has no list of values", 'write OneOf("segment"'),
    (OneOf("segment", "gold"), "has no list of values", 'write OneOf("segment"'),
    (OneOf("segment", [1]), "values hold int, the column is string", "of the column's type"),
    (OneOf("segment", [None]), "values hold NoneType", "write plain values"),
    (Matches("segment"), "has no pattern", 'write Matches("email"'),
    (Matches("segment", "(a"), "pattern: missing )", "correct the regular expression"),
    (Matches("segment", "(?P<a>b)"), "is not known to Java", "correct the regular expression"),
    (Matches("amount", "a"), "matches 'amount', which is double", "patterns are for strings"),
    (RowCount(), "has no bound", "write RowCount(at_least=1)"),
    (RowCount(-1), "bound is -1", "whole number from 0"),
    (RowCount(2, 1), "at_least is above at_most", "exchange the two"),
    (Freshness("2 days"), "age: '2 days' is not a length of time", 'write Freshness("2d")'),
    (SumsMatch("amount", "amout"), "expectation 'amount_sums_match': right names 'amout'", "did you mean 'amount'?"),
    (SumsMatch("amount +", "(amount"), "'(' is never closed", "correct the Spark SQL"),
    (SumsMatch("amount", "amount", tolerance=-1), "tolerance is -1", "write a number from 0"),
    (RowCount(1, severity="quarantine"), "severity quarantine of RowCount", "use warn or stop"),
    (Freshness("1d", severity="quarantine"), "severity quarantine of Freshness", "use warn or stop"),
    (SumsMatch("amount", "amount", severity="quarantine"), "severity quarantine of SumsMatch", "use warn or stop"),
]


@pytest.mark.parametrize(("rule", "problem", "hint"), FAULTS, ids=[problem for _, problem, _ in FAULTS])
def test_one_mistake_in_a_rule_is_one_fault(rule: Any, problem: str, hint: str) -> None:
    ((subject, told, action),) = faults(rule)
    assert subject == "FeatureGroup 'spend'"
    assert problem in told
    assert hint in action


@pytest.mark.parametrize(
    ("rule", "problem"),
    [
        (NotNull("segment"), "names column 'segment'"),
        (RowCount(1), "RowCount in a feature"),
        ("amount > 0", "expect holds str"),
        (InRange(at_least="x"), "bound is 'x'"),
        (InRange(0, 10), "column is int"),
    ],
)
def test_mistake_in_a_features_rule_is_a_fault_of_the_feature(rule: Any, problem: str) -> None:
    ((subject, told, _),) = faults(amount=[rule])
    assert subject == "Feature 'spend.amount'"
    assert problem in told


def test_rules_of_one_name_are_refused_wherever_they_stand() -> None:
    (fault,) = faults(NotNull("amount"), amount=[NotNull()])
    assert fault[1] == "expectation 'amount_not_null' is there twice"


@pytest.mark.parametrize("wrong", [object(), 5.5, b"a", [[]], [None], {"a": [1]}, {1: 2}, len, None])
@pytest.mark.parametrize("word", RULES)
def test_whatever_a_rule_is_given_check_gives_definitions_or_faults(word: type, wrong: Any) -> None:
    """A wrong value in any place is never a traceback, and never kept unless JSON can hold it."""
    good = next(rule for rule in ALL if type(rule) is word)
    for part in word.__dataclass_fields__:
        group = with_rules(replace(good, **{part: wrong}))
        definitions, found = check([CUSTOMER, ORDERS, group])
        assert (definitions is None) == bool(found)
        if definitions is not None:
            assert to_plain(from_plain(json.loads(json.dumps(to_plain(definitions))))) == to_plain(definitions)


def test_misspelt_keyword_of_a_rule_is_a_fault_with_its_line(tmp_path: Path) -> None:
    text = edited(
        ('[Expectation("not_negative", "mean >= 0")]', '[InRange("mean", at_lest=0)]'),
        ("Feature, FeatureGroup, Service", "Feature, FeatureGroup, InRange, Service"),
    )
    (fault,) = faults_of(write(tmp_path, {"shop.py": text}))
    assert (fault.line, fault.hint[:25]) == (14, "did you mean 'at_least'? ")
    assert load(write(tmp_path / "good", {"shop.py": text.replace("lest", "least")})).groups["spend"].rules


@pytest.mark.parametrize(
    ("pattern", "is_sound"),
    [
        (r"[^@]+@[^@]+", True),
        (r"\p{Lu}\p{L}*", True),
        (r"\P{Digit}+", True),
        (r"(?<year>\d{4})-\d\d", True),
        (r"a++b*+", True),
        (r"(?>ab|a)c", True),
        (r"\Qa(b\E", True),
        (r"(?i)gold", True),
        (r"(?<=a)b", True),
        ("(", False),
        ("a{2,1}", False),
        ("[z-a]", False),
        ("*a", False),
        (r"(?P<a>b)", False),
    ],
)
def test_patterns_are_judged_as_java_would(pattern: str, is_sound: bool) -> None:
    assert (pattern_fault(pattern) is None) == is_sound


# verdicts

DAY = 86_400_000_000


def verdict(rule: Any, group: FeatureGroup = SPEND, **measured: Any) -> tuple[Any, ...]:
    (found,) = judged([rule], {"rows": 5, "rejected": 2, **measured}, group, now_us=10 * DAY)
    return found.rows, found.broken, found.verdict, found.observed


def test_row_count_counts_the_rows_of_the_table() -> None:
    assert verdict(RowCount(3, 3)) == (3, 0, "held", {"rows": 3})
    assert verdict(RowCount(4)) == (3, 1, "broken", {"rows": 3})
    assert verdict(RowCount(at_most=2))[2] == "broken"
    assert verdict(RowCount(at_most=0), rejected=5)[2] == "held"


def test_age_of_exactly_the_limit_is_fresh_and_no_row_is_not() -> None:
    observed = {"newest": "1970-01-09T00:00:00+00:00", "age": "2d 0:00:00"}
    assert verdict(Freshness("2d"), newest_0=8 * DAY) == (3, 0, "held", observed)
    assert verdict(Freshness("2d"), newest_0=8 * DAY - 1)[2] == "broken"
    assert verdict(Freshness("2d"), newest_0=None) == (3, 1, "broken", {"newest": None, "age": None})


@pytest.mark.parametrize(
    ("left", "right", "tolerance", "expected"),
    [
        (1.0, 1.01, 0.01, "broken"),  # the doubles are a little further apart
        (1.0, 1.0099, 0.01, "held"),
        (Decimal("1.00"), Decimal("1.01"), 0.01, "held"),
        (Decimal(10**37), Decimal(10**37 + 1), 0, "broken"),
        (2**62, 2**62 + 1, 0, "broken"),
        (2**62, 2**62 + 1, 1, "held"),
        (None, None, 0, "held"),
        (None, 0.5, 0, "broken"),
        (float("nan"), float("nan"), 5, "broken"),
        (float("inf"), float("inf"), 5, "broken"),
    ],
)
def test_sums_match_within_the_tolerance(left: Any, right: Any, tolerance: float, expected: str) -> None:
    assert verdict(SumsMatch("a", "b", tolerance=tolerance), left_0=left, right_0=right)[2] == expected


def test_extremes_of_a_range_are_told_but_those_of_personal_data() -> None:
    measured = {"rule_0": 2, "min_amount": -1.0, "max_amount": float("nan")}
    rule = InRange("amount", 0)
    assert verdict(rule, **measured) == (5, 2, "broken", {"min": -1.0, "max": "nan"})
    private = replace(SPEND, features=[Feature("amount", "double", pii=True)])
    assert verdict(rule, private, **measured) == (5, 2, "broken", {})


def test_rule_over_no_rows_holds() -> None:
    assert verdict(NotNull("amount"), rows=0, rejected=0, rule_0=None) == (0, 0, "held", {})


def test_definition_of_the_page_on_expectations_is_sound(tmp_path: Path) -> None:
    """A reader copies it first."""
    page = (Path(__file__).resolve().parent.parent / "docs" / "expectations.md").read_text(encoding="utf-8")
    code = page.split("```python\n")[1].split("```")[0]
    group = load(write(tmp_path, {"basket.py": code})).groups["basket"]
    assert {kind_of(rule) for rule in group.rules} == set(KINDS)
