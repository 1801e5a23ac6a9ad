"""The words for cleaning and scaling, and the closed table of what each means in plain Spark SQL.

    clean= of a group    DropNull  Fill  Clip                                     change the source's columns, in order
    a feature's value    Standardise  MinMax  Log  Bucket  OneHot  Index          computed from the columns so cleaned

What a word learns from data (a mean, bounds, a vocabulary) is fitted once, on a stated range of event_time, and kept:

    fit      name -> aggregate over {x}        one pass fits all that do not wait for one another
    apply    expression of {x} and the fitted values, the same at every compute

{x} is the column, null where it is null or NaN. No number is printed shorter than it is: a double survives exactly.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from feature_defs import data_types
from feature_defs.expressions import quoted, text_literal

FILLS = ("mean", "median", "forward")
WHOLE_NUMBERS = ("tinyint", "smallint", "int", "bigint")
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
_MICROSECOND = datetime.timedelta(microseconds=1)

Constant = str | int | float | bool


def _range() -> Any:
    """The range of event_time that a word is fitted on; without it, the group's."""
    return field(default=None, kw_only=True)


# what clean= holds


@dataclass(frozen=True)
class DropNull:
    """A row in which the column is null is left out of the group, counted and told."""

    column: str


@dataclass(frozen=True)
class Fill:
    """A null becomes the mean or the median, the entity's previous value (`"forward"`), or the constant `value=`."""

    column: str
    how: str | None = None
    value: Constant | None = field(default=None, kw_only=True)
    fit: Sequence[str] | None = _range()


@dataclass(frozen=True)
class Clip:
    """A number beyond a bound becomes it: bounds given, quantiles, or `iqr` quartile distances off the quartiles."""

    column: str
    low: float | None = field(default=None, kw_only=True)
    high: float | None = field(default=None, kw_only=True)
    quantiles: Sequence[float] | None = field(default=None, kw_only=True)
    iqr: float | None = field(default=None, kw_only=True)
    fit: Sequence[str] | None = _range()


# what a feature's expression may be


@dataclass(frozen=True)
class Standardise:
    """(x - mean) / stddev, of the population; a column with no spread is divided by 1."""

    column: str
    fit: Sequence[str] | None = _range()


@dataclass(frozen=True)
class MinMax:
    """(x - min) / (max - min), so 0 to 1 within the fitted range and beyond it outside; no spread is divided by 1."""

    column: str
    fit: Sequence[str] | None = _range()


@dataclass(frozen=True)
class Log:
    """ln(1 + x), or ln(x + offset); null where that is no number above 0."""

    column: str
    offset: float | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class Bucket:
    """How many of the edges are at or below x: n edges make the buckets 0 to n. `quantiles=4` fits three edges."""

    column: str
    edges: Sequence[float] | None = field(default=None, kw_only=True)
    quantiles: int | None = field(default=None, kw_only=True)
    fit: Sequence[str] | None = _range()


@dataclass(frozen=True)
class OneHot:
    """An array with a 1 at the category's place in the fitted vocabulary; all 0 for an unknown one and for null."""

    column: str
    most: int = field(default=100, kw_only=True)
    fit: Sequence[str] | None = _range()


@dataclass(frozen=True)
class Index:
    """The category's place in the fitted vocabulary, from 1; 0 for an unknown one and for null."""

    column: str
    most: int = field(default=1000, kw_only=True)
    fit: Sequence[str] | None = _range()


Step = DropNull | Fill | Clip
Scaled = Standardise | MinMax | Log | Bucket | OneHot | Index
Word = Step | Scaled
STEPS: tuple[type[Step], ...] = (DropNull, Fill, Clip)
SCALED: tuple[type[Scaled], ...] = (Standardise, MinMax, Log, Bucket, OneHot, Index)
_WORDS = {word.__name__: word for word in (*STEPS, *SCALED)}


# the table


@dataclass(frozen=True)
class Way:
    """One row of the table. `reads` is any, number or category; `gives` are types of a feature that may hold it.

    {low_} is a number as the column's own type: cleaning does not change what a column is.
    """

    apply: str
    fit: Mapping[str, str] = field(default_factory=dict)
    reads: str = "any"
    gives: tuple[str, ...] = ()
    vocabulary: bool = False

    @property
    def is_fitted(self) -> bool:
        return self.vocabulary or bool(self.fit)


_CLIPPED = "CASE WHEN {x} < {low} THEN {low_} WHEN {x} > {high} THEN {high_} ELSE {x} END"
_Q1, _Q3 = "percentile({x}, 0.25D)", "percentile({x}, 0.75D)"
_DECIMALS, _INTEGERS = ("double", "float"), ("int", "bigint")
_ARRAYS = tuple(f"array<{element}>" for element in ("int", "bigint", "float", "double", "boolean"))
_INDEX = "coalesce(array_position({vocabulary}, {x}), 0L)"
_HOT = "transform({vocabulary}, _tidemark_v -> if(_tidemark_v <=> {x}, 1, 0))"
_LADDER = "CASE WHEN {x} IS NULL THEN NULL {ladder} END"

WAYS: dict[str, Way] = {
    "DropNull": Way("{x} IS NULL"),
    "Fill value": Way("coalesce({x}, {value})"),
    "Fill mean": Way("coalesce({x}, {mean_})", {"mean": "avg({x})"}, "number"),
    "Fill median": Way("coalesce({x}, {median_})", {"median": "percentile({x}, 0.5D)"}, "number"),
    # of rows with equal clocks the greatest value counts, so that the answer does not depend on how the rows lie
    "Fill forward": Way("coalesce({x}, (max(if({x} IS NULL, NULL, struct({order}, {x} AS x))) OVER ({earlier})).x)"),
    "Clip bounds": Way(_CLIPPED, {}, "number"),
    "Clip quantiles": Way(
        _CLIPPED, {"low": "percentile({x}, {from_share})", "high": "percentile({x}, {to_share})"}, "number"
    ),
    "Clip iqr": Way(
        _CLIPPED,
        {
            "low": f"{_Q1} - {{factor}} * ({_Q3} - {_Q1})",
            "high": f"{_Q3} + {{factor}} * ({_Q3} - {_Q1})",
        },
        "number",
    ),
    "Standardise": Way(
        "({x} - {mean}) / coalesce(nullif({stddev}, 0D), 1D)",
        {"mean": "avg({x})", "stddev": "stddev_pop({x})"},
        "number",
        _DECIMALS,
    ),
    "MinMax": Way(
        "({x} - {min}) / coalesce(nullif({max} - {min}, 0D), 1D)",
        {"min": "min({x})", "max": "max({x})"},
        "number",
        _DECIMALS,
    ),
    "Log": Way("log1p({x})", {}, "number", _DECIMALS),
    "Log offset": Way("ln({x} + {offset})", {}, "number", _DECIMALS),
    "Bucket edges": Way(_LADDER, {}, "number", _INTEGERS),
    "Bucket quantiles": Way(_LADDER, {"edges": "percentile({x}, {shares})"}, "number", _INTEGERS),
    "OneHot": Way(_HOT, {}, "category", _ARRAYS, vocabulary=True),
    "Index": Way(_INDEX, {}, "category", _INTEGERS, vocabulary=True),
}


def way_of(word: Word) -> Way:
    """The table's row for a word that passed its checks."""
    match word:
        case Fill():
            name = f"Fill {word.how or 'value'}"
        case Clip():
            ways = (name for name in ("quantiles", "iqr") if getattr(word, name) is not None)
            name = f"Clip {next(ways, 'bounds')}"
        case Log(offset=offset) if offset is not None:
            name = "Log offset"
        case Bucket():
            name = "Bucket edges" if word.edges is not None else "Bucket quantiles"
        case _:
            name = type(word).__name__
    return WAYS[name]


def is_fitted(word: Word) -> bool:
    return way_of(word).is_fitted


# SQL texts


def value_text(word: Word, column: str, kind: str) -> str:
    """{x}: the word's column, of this Spark type and under this name, as the word reads it."""
    name = quoted(column)
    if way_of(word).reads == "category":
        return f"cast({name} AS string)"
    if isinstance(word, Scaled):
        return f"nullif(cast({name} AS double), cast('NaN' AS double))"
    return f"nullif({name}, cast('NaN' AS {kind}))" if kind in ("float", "double") else name


def fit_texts(word: Word, x: str) -> dict[str, str]:
    """What to fit, by name: aggregates over the text x."""
    match word:
        case Clip(quantiles=[low, high]):
            given = {"from_share": number(low), "to_share": number(high)}
        case Clip(iqr=factor) if factor is not None:
            given = {"factor": number(factor)}
        case Bucket(quantiles=count) if count is not None:
            given = {"shares": f"array({', '.join(number(part / count) for part in range(1, count))})"}
        case _:
            given = {}
    return {name: text.format(x=x, **given) for name, text in way_of(word).fit.items()}


def apply_text(word: Word, kind: str, fitted: Mapping[str, Any], keys: Sequence[str] = ()) -> str:
    """The word's value from its column of this Spark type, in the column's own type for a step of clean=."""
    texts = {"x": value_text(word, word.column, kind)}
    given = {part.name: getattr(word, part.name) for part in fields(word)}
    for name, value in {**given, **fitted}.items():
        match value:
            case _ if name == "value":
                texts[name] = f"cast({text_literal(_plain_text(value))} AS {kind})"
            case None | int() | float():
                texts[name], texts[f"{name}_"] = number(value), _typed(number(value), kind)
    if isinstance(word, Bucket):
        edges = fitted.get("edges", word.edges)
        steps = [f"WHEN {texts['x']} < {number(edge)} THEN {place}" for place, edge in enumerate(edges)]
        texts["ladder"] = f"{' '.join(steps)} ELSE {len(edges)}"
    if "vocabulary" in fitted:
        texts["vocabulary"] = f"array({', '.join(map(text_literal, fitted['vocabulary']))})"
    partition = ", ".join(map(quoted, keys))
    texts["order"] = "event_time, created_time"
    texts["earlier"] = (
        f"PARTITION BY {partition}, {DROPPED} IS NULL ORDER BY event_time, created_time NULLS FIRST "
        "RANGE BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW"
    )
    return way_of(word).apply.format(**texts)


DROPPED = "_tidemark_dropped"  # which step of clean= left a row out; null while none has


def number(value: float | None) -> str:
    """A number as a double literal that reads back as exactly this number."""
    if value is None:
        return "cast(NULL AS double)"
    text = f"{float(value)!r}D"
    return f"({text})" if text.startswith("-") else text


def _typed(text: str, kind: str) -> str:
    return f"cast(round({text}) AS {kind})" if kind in WHOLE_NUMBERS else f"cast({text} AS {kind})"


def _plain_text(value: Constant) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


# the range of a fit


class RangeFault(ValueError):
    """A range that is none; the message says what is wrong with it."""


def range_us(fit: object) -> tuple[int, int]:
    """[from, to) in microseconds UTC; a date is its midnight UTC, a naive time is UTC."""
    if not isinstance(fit, list | tuple) or len(fit) != 2:
        raise RangeFault(f"{fit!r} is not a range of two times")
    start, end = (_microseconds(time) for time in fit)
    if start >= end:
        raise RangeFault(f"{fit[0]} to {fit[1]} holds no time: it goes from the first to before the second")
    return start, end


def _microseconds(text: object) -> int:
    try:
        # `Z` is read from Python 3.11 on
        time = datetime.datetime.fromisoformat(text.replace("Z", "+00:00")) if isinstance(text, str) else None
    except ValueError:
        time = None
    if time is None:
        raise RangeFault(f"{text!r} is not a date or time in ISO 8601, as text")
    aware = time if time.tzinfo else time.replace(tzinfo=datetime.timezone.utc)
    return (aware - _EPOCH) // _MICROSECOND


def time_text(microseconds: int) -> str:
    """A time of a range as a reader would write it: `2026-01-01`, `2026-01-01T12:00:00Z`."""
    time = _EPOCH + microseconds * _MICROSECOND
    text = time.replace(tzinfo=None).isoformat()
    return text[:10] if text.endswith("T00:00:00") else f"{text}Z"


# words as text and as plain data


def text(word: Word) -> str:
    """A word on one line: `Clip(amount, iqr=1.5)`."""
    shown = [word.column]
    for part in fields(word)[1:]:
        value = getattr(word, part.name)
        if value != part.default and part.name != "fit":
            shown.append(str(value) if part.name == "how" else f"{part.name}={_told(value)}")
    return f"{type(word).__name__}({', '.join(shown)})"


def _told(value: Any) -> str:
    return f"[{', '.join(map(str, value))}]" if isinstance(value, list | tuple) else repr(value)


def to_plain(word: Word) -> dict[str, Any]:
    """A word as data that JSON can hold."""
    values = {part.name: getattr(word, part.name) for part in fields(word)}
    plain = {name: list(value) if isinstance(value, list | tuple) else value for name, value in values.items()}
    return {"word": type(word).__name__, **plain}


def from_plain(plain: Mapping[str, Any]) -> Any:
    """The word that `to_plain` was given."""
    return _WORDS[plain["word"]](**{name: value for name, value in plain.items() if name != "word"})


def meaning(word: Word, group_fit: Sequence[str] | None) -> dict[str, Any]:
    """What decides the word's values, as data: a range in microseconds, `low=0` and `low=0.0` alike."""
    plain = to_plain(word)
    for name in ("low", "high", "quantiles", "iqr", "edges", "offset"):
        match plain.get(name):
            case list() as values:
                plain[name] = [float(value) for value in values]
            case int() as value if name != "quantiles":
                plain[name] = float(value)
    if "fit" in plain:
        plain["fit"] = list(range_us(plain["fit"] or group_fit)) if is_fitted(word) else None
    return plain


def told(plain: Any) -> str:
    """A word of plain data, or a list of them, on one line; anything else is empty."""
    items = plain if isinstance(plain, list) else [plain]
    is_words = items and all(isinstance(item, dict) and "word" in item for item in items)
    return ", ".join(text(from_plain(item)) for item in items) if is_words else ""


def is_numeric(kind: data_types.DataType) -> bool:
    return kind.row.numerical


def is_category(kind: data_types.DataType) -> bool:
    """Whether a column of this type has few values that can be told apart as text."""
    return kind.kind in ("string", "boolean", "date", "decimal", *WHOLE_NUMBERS)
