"""The words for what rows and tables should be like, and what each says as plain data.

    NotNull, InRange, OneOf, Matches, Expectation   judge a row by itself
    Unique                                          judges a row by the others
    RowCount, Freshness, SumsMatch                  judge the table as a whole

A rule of one column stands in a group's `expectations=` with the column's name, or in a feature's `expect=` without it.
As every word, these only hold what was written; `rule_checks` judges them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from feature_defs import durations, expressions
from feature_defs.expressions import quoted, text_literal


@dataclass(frozen=True)
class Expectation:
    """A condition in Spark SQL that every row of a group should meet, and what happens to one that does not."""

    name: str
    condition: str
    severity: str = field(default="warn", kw_only=True)


@dataclass(frozen=True)
class NotNull:
    """The column has a value in every row. The one rule that a null breaks."""

    column: str | None = None
    severity: str = field(default="warn", kw_only=True)
    name: str | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class Unique:
    """No other row has the same value, or the same values of several columns."""

    column: str | Sequence[str] | None = None
    severity: str = field(default="warn", kw_only=True)
    name: str | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class InRange:
    """From `at_least` to `at_most`, both included; either may be left out. Bounds of dates and times are ISO 8601."""

    column: str | None = None
    at_least: int | float | str | None = None
    at_most: int | float | str | None = None
    severity: str = field(default="warn", kw_only=True)
    name: str | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class OneOf:
    """One of these values."""

    column: str | None = None
    values: Sequence[Any] = ()
    severity: str = field(default="warn", kw_only=True)
    name: str | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class Matches:
    """The whole text matches a regular expression, as Java writes them."""

    column: str | None = None
    pattern: str = ""
    severity: str = field(default="warn", kw_only=True)
    name: str | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class RowCount:
    """How many rows a run writes: with `--full` all that the table has."""

    at_least: int | None = None
    at_most: int | None = None
    severity: str = field(default="warn", kw_only=True)
    name: str | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class Freshness:
    """The newest event_time of the rows that a run writes is at most this old then."""

    age: str
    severity: str = field(default="warn", kw_only=True)
    name: str | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class SumsMatch:
    """The sums of two expressions over the table differ by no more than the tolerance."""

    left: str
    right: str
    tolerance: int | float = field(default=0, kw_only=True)
    severity: str = field(default="warn", kw_only=True)
    name: str | None = field(default=None, kw_only=True)


ColumnRule = NotNull | Unique | InRange | OneOf | Matches
TableRule = RowCount | Freshness | SumsMatch
Rule = Expectation | ColumnRule | TableRule
COLUMN_RULES: tuple[type, ...] = (NotNull, Unique, InRange, OneOf, Matches)
TABLE_RULES: tuple[type, ...] = (RowCount, Freshness, SumsMatch)
RULES: tuple[type, ...] = (Expectation, *COLUMN_RULES, *TABLE_RULES)
KINDS: dict[str, type] = {
    "condition": Expectation,
    "not_null": NotNull,
    "unique": Unique,
    "in_range": InRange,
    "one_of": OneOf,
    "matches": Matches,
    "row_count": RowCount,
    "fresh": Freshness,
    "sums_match": SumsMatch,
}
_KIND_OF = {word: kind for kind, word in KINDS.items()}


def kind_of(rule: Rule) -> str:
    return _KIND_OF[type(rule)]


def columns_of(rule: ColumnRule) -> tuple[str, ...]:
    """The columns a column rule names; none when it stands in a feature and has not been bound to it."""
    column = rule.column
    if column is None:
        return ()
    return (column,) if isinstance(column, str) else tuple(column)


def name_of(rule: Rule) -> str:
    """The name that was given, else one of the columns and the kind: amount_not_null."""
    if rule.name is not None or isinstance(rule, Expectation):
        return rule.name or ""
    columns: Sequence[object] = ()
    if isinstance(rule, SumsMatch):
        columns = [rule.left] if str(rule.left).isidentifier() else []
    elif not isinstance(rule, TableRule):
        columns = columns_of(rule) if isinstance(rule.column, str | list | tuple) else ()
    return "_".join([*map(str, columns), kind_of(rule)]).lower()


def named(rule: Rule, feature: str | None = None) -> Rule:
    """The rule with its name and, when it stands in a feature, with the feature as its column."""
    if isinstance(rule, Expectation):
        return rule
    if feature is not None and not isinstance(rule, TableRule) and rule.column is None:
        rule = replace(rule, column=feature)
    return replace(rule, name=name_of(rule))


def plain_rule(rule: Rule, feature: str | None = None) -> dict[str, Any]:
    """The rule as data that JSON can hold. A condition is what it always was; every other rule tells its kind."""
    whole = named(rule, feature)
    values = {part.name: getattr(whole, part.name) for part in fields(whole)}
    values = {name: list(value) if isinstance(value, list | tuple) else value for name, value in values.items()}
    return values if isinstance(rule, Expectation) else {"kind": kind_of(whole), **values}


def rule_from_plain(plain: Mapping[str, Any]) -> Rule:
    values = {name: value for name, value in plain.items() if name != "kind"}
    rule: Rule = KINDS[plain.get("kind", "condition")](**values)
    return rule


def meaning(rule: Rule) -> str:
    """What a rule says, without name and severity, in one spelling: what the fingerprint has of a quarantine rule."""
    match rule:
        case Expectation():
            return expressions.normalised(rule.condition)
        case OneOf():
            said: list[Any] = [*columns_of(rule), sorted(rule.values, key=repr)]
        case InRange():
            said = [*columns_of(rule), rule.at_least, rule.at_most]
        case Matches():
            said = [*columns_of(rule), rule.pattern]
        case Unique():
            said = sorted(columns_of(rule))
        case NotNull():
            said = [*columns_of(rule)]
        case _:  # a rule of the whole table keeps no row out
            said = []
    return json.dumps([kind_of(rule), *said], ensure_ascii=True)


# row rules as the conditions they stand for


def condition(rule: Rule, types: Mapping[str, str]) -> str | None:
    """What a row must meet in Spark SQL, given the types of columns; None for rules that need more than the row."""
    match rule:
        case Expectation():
            return rule.condition
        case NotNull():
            return f"{quoted(columns_of(rule)[0])} IS NOT NULL"
        case InRange():
            return _in_range(rule, types)
        case OneOf():
            column = columns_of(rule)[0]
            return f"{quoted(column)} IN ({', '.join(literal(value, _type(column, types)) for value in rule.values)})"
        case Matches():
            return f"{quoted(columns_of(rule)[0])} RLIKE {literal(f'{chr(92)}A(?:{rule.pattern}){chr(92)}z')}"
        case _:
            return None


def _in_range(rule: InRange, types: Mapping[str, str]) -> str:
    """No number is not a number in any range; Spark would sort it behind all others."""
    column = columns_of(rule)[0]
    kind, name = _type(column, types), quoted(column)
    bounds = ((">=", rule.at_least), ("<=", rule.at_most))
    told = [f"{name} {sign} {literal(bound, kind)}" for sign, bound in bounds if bound is not None]
    return " AND ".join([*told, *([f"NOT isnan({name})"] if kind in ("float", "double") else [])])


def _type(column: str, types: Mapping[str, str]) -> str:
    return next((kind for name, kind in types.items() if name.lower() == column.lower()), "")


def literal(value: object, kind: str = "") -> str:
    """A value as Spark SQL writes it, to be compared with a column of the type."""
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, int | float):
        # 0.1 is a decimal to Spark, and no float is equal to it
        return f"CAST({value!r} AS float)" if kind == "float" else repr(value)
    text = text_literal(str(value))
    return f"CAST({text} AS {kind})" if kind in ("timestamp", "date") else text


def age_us(rule: Freshness) -> int:
    return durations.microseconds(rule.age)
