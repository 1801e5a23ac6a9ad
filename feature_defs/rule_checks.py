"""What is wrong with a rule, found without Spark: bounds, values, pattern and severity, against its column's type."""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Iterator, Mapping

from feature_defs import data_types, durations
from feature_defs.errors import listed, near_miss
from feature_defs.rules import (
    TABLE_RULES,
    ColumnRule,
    Expectation,
    Freshness,
    InRange,
    Matches,
    NotNull,
    OneOf,
    RowCount,
    Rule,
    SumsMatch,
    Unique,
    columns_of,
)

Found = Iterator[tuple[str, str]]  # (problem, hint)
Types = Mapping[str, data_types.DataType | None]  # column -> its type, None when the type is a fault already

# what Java's regular expressions have and Python's lack, each with something that stands in the same places
_JAVA_ONLY = (
    (re.compile(r"\\Q.*?(\\E|$)", re.DOTALL), "x"),
    (re.compile(r"\\[pP](\{\^?\w[\w=]*\}|\w)"), r"\\w"),
    (re.compile(r"\\[hHvVRXzGe]"), "x"),
    (re.compile(r"\(\?<(?=[A-Za-z])"), "(?P<"),
    (re.compile(r"(?<=[*+?}])\+"), ""),
    (re.compile(r"\(\?>"), "(?:"),
    (re.compile(r"&&\["), "["),
)
_PYTHON_ONLY = re.compile(r"\(\?P[<=>]|\(\?#|\(\?\(")


def sql_texts(rule: Rule) -> tuple[tuple[str, object], ...]:
    """What of a rule is Spark SQL, with its label: every name in it must be a column of the group."""
    match rule:
        case Expectation():
            return (("", rule.condition),)
        case SumsMatch():
            return ((": left", rule.left), (": right", rule.right))
        case _:
            return ()


def rule_faults(rule: Rule, types: Types | None, *, in_feature: str | None = None) -> Found:
    """All that is wrong with one rule but its name and the SQL in it."""
    if rule.severity == "quarantine" and isinstance(rule, TABLE_RULES):
        problem = f"severity quarantine of {type(rule).__name__}, which judges the table and no single row"
        yield problem, "use warn or stop"
    if in_feature is not None and isinstance(rule, TABLE_RULES):
        yield f"{type(rule).__name__} in a feature", "it judges the table: write it in the group's expectations=[...]"
        return
    if isinstance(rule, ColumnRule):
        yield from _columns(rule, types, in_feature)
    match rule:
        case InRange():
            yield from _in_range(rule, _type(rule, types))
        case OneOf():
            yield from _one_of(rule, _type(rule, types))
        case Matches():
            yield from _matches(rule, _type(rule, types))
        case RowCount():
            yield from _row_count(rule)
        case Freshness():
            yield from _freshness(rule)
        case SumsMatch():
            if not _is_number(rule.tolerance) or rule.tolerance < 0:
                yield f"tolerance is {rule.tolerance!r}", "write a number from 0, as tolerance=0.01"


def _columns(rule: ColumnRule, types: Types | None, in_feature: str | None) -> Found:
    several = isinstance(rule, Unique) and isinstance(rule.column, list | tuple)
    names = columns_of(rule) if several or isinstance(rule.column, str) else ()
    if not names or not all(isinstance(name, str) for name in names):
        told = "has no column" if rule.column is None else f"column is {type(rule.column).__name__}"
        more = "" if isinstance(rule, NotNull | Unique) else ", ..."
        by_name = "in a feature the column is left out and the rest is named, as InRange(at_least=0)"
        yield told, by_name if in_feature is not None else f'write {type(rule).__name__}("amount"{more})'
        return
    if len({name.lower() for name in names}) < len(names):
        yield f"names a column twice ({listed(names)})", "keep one of the two"
    if in_feature is not None and names != (in_feature,):
        yield f"names column '{names[0]}'", "leave the column out in a feature, or move the rule to the group"
    known = {name.lower(): name for name in types or ()}
    for name in names:
        if types is not None and name.lower() not in known:
            problem = f"names '{name}', which is not in the group's columns ({listed(types)})"
            yield problem, near_miss(name, types) + "name one of those"


def _type(rule: InRange | OneOf | Matches, types: Types | None) -> data_types.DataType | None:
    if not isinstance(rule.column, str):
        return None
    found = {name.lower(): kind for name, kind in (types or {}).items()}
    return found.get(rule.column.lower())


def _in_range(rule: InRange, kind: data_types.DataType | None) -> Found:
    bounds = [bound for bound in (rule.at_least, rule.at_most) if bound is not None]
    if not bounds:
        yield "has no bound", 'write InRange("amount", 0, 1000), or one of at_least= and at_most='
        return
    if kind is None:
        wrong: list[object] = [bound for bound in bounds if not _is_number(bound) and not isinstance(bound, str)]
    elif kind.row.numerical:
        wrong = [bound for bound in bounds if not _is_number(bound)]
    elif kind.kind in ("date", "timestamp"):
        wrong = [bound for bound in bounds if not _is_time(bound)]
    else:
        yield f"is a range of '{rule.column}', which is {kind.spark}", "ranges are of numbers, dates and timestamps"
        return
    if wrong:
        of = f", the column is {kind.spark}" if kind else ""
        hint = "write a finite number, or for dates and timestamps ISO 8601 as text: '2026-01-31'"
        yield f"bound is {_told(wrong[0])}{of}", hint
    elif len(bounds) == 2 and _is_above(*bounds):
        yield "at_least is above at_most, so no row can hold", "exchange the two"


def _one_of(rule: OneOf, kind: data_types.DataType | None) -> Found:
    if not isinstance(rule.values, list | tuple) or not rule.values:
        yield "has no list of values", 'write OneOf("segment", ["bronze", "silver"])'
        return
    wrong = [value for value in rule.values if not isinstance(value, str) and not _is_number(value, or_boolean=True)]
    if wrong:
        yield f"values hold {_told(wrong[0])}, expected texts, numbers, True or False", "write plain values"
    elif kind and (other := [value for value in rule.values if not can_be(value, kind)]):
        yield f"values hold {type(other[0]).__name__}, the column is {kind.spark}", "write values of the column's type"


def _matches(rule: Matches, kind: data_types.DataType | None) -> Found:
    if not isinstance(rule.pattern, str) or not rule.pattern:
        yield "has no pattern", 'write Matches("email", r"[^@]+@[^@]+")'
        return
    if fault := pattern_fault(rule.pattern):
        yield f"pattern: {fault}", "correct the regular expression; it has to match the whole value"
    if kind is not None and kind.kind != "string":
        yield f"matches '{rule.column}', which is {kind.spark}", "patterns are for strings"


def pattern_fault(pattern: str) -> str | None:
    """Why a regular expression cannot be one; Java, which has the last word, knows a little more than Python."""
    if found := _PYTHON_ONLY.search(pattern):
        return f"'{found[0]}' at character {found.start() + 1} is not known to Java"
    read = pattern
    for java, python in _JAVA_ONLY:
        read = java.sub(python, read)
    try:
        re.compile(read)
    except (re.error, OverflowError, RecursionError) as error:
        return str(error)
    return None


def _row_count(rule: RowCount) -> Found:
    bounds = [bound for bound in (rule.at_least, rule.at_most) if bound is not None]
    if not bounds:
        yield "has no bound", "write RowCount(at_least=1), at_most=, or both"
    elif wrong := [bound for bound in bounds if not isinstance(bound, int) or isinstance(bound, bool) or bound < 0]:
        yield f"bound is {_told(wrong[0])}", "write a whole number from 0"
    elif len(bounds) == 2 and bounds[0] > bounds[1]:
        yield "at_least is above at_most, so no table can hold", "exchange the two"


def _freshness(rule: Freshness) -> Found:
    try:
        durations.microseconds(rule.age)
    except durations.DurationFault as fault:
        yield f"age: {fault}", 'write Freshness("2d")'


def can_be(value: object, kind: data_types.DataType) -> bool:
    """Whether a Python value is one of a type that has such literals; others (dates, binary) are written as text."""
    if kind.kind == "boolean" or isinstance(value, bool):
        return kind.kind == "boolean" and isinstance(value, bool)
    if kind.row.numerical:
        return _is_number(value)
    if kind.kind in ("date", "timestamp"):
        return _is_time(value)
    return kind.kind == "string" and isinstance(value, str)


def _is_number(value: object, *, or_boolean: bool = False) -> bool:
    if isinstance(value, bool):
        return or_boolean
    return isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))


def _is_above(low: float | str, high: float | str) -> bool:
    if isinstance(low, str) or isinstance(high, str):
        return _is_time(low) and _is_time(high) and _time(low) > _time(high)
    return low > high


def _is_time(value: object) -> bool:
    try:
        _time(value)
    except (TypeError, ValueError):
        return False
    return True


def _time(value: object) -> datetime.datetime:
    """A bound of dates or timestamps; a naive one is UTC."""
    if not isinstance(value, str):
        raise TypeError
    found = datetime.datetime.fromisoformat(value.replace("Z", "+00:00"))
    return found if found.tzinfo else found.replace(tzinfo=datetime.timezone.utc)


def _told(value: object) -> str:
    """A bound as a message may show it: it is the user's own text, no row's."""
    return repr(value) if isinstance(value, str | int | float) else type(value).__name__
