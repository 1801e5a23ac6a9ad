"""The rules for clean=, fit= and features that are scaled or encoded: faults found without Spark.

A column's name and type are held against the source's schema where it has one; the rest is found when compute reads it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping

from feature_defs import cleaning, data_types
from feature_defs.cleaning import (
    STEPS,
    Bucket,
    Clip,
    Fill,
    Index,
    Log,
    OneHot,
    RangeFault,
    Scaled,
    Step,
    Word,
    is_fitted,
    range_us,
    way_of,
)
from feature_defs.errors import listed, near_miss
from feature_defs.model import Feature, FeatureGroup

MOST_CATEGORIES, MOST_BUCKETS = 10_000, 1_000
Found = Iterator[tuple[str, str]]  # (problem, hint)
Types = Mapping[str, data_types.DataType | None]
_RANGE = 'write fit=("2026-01-01", "2026-02-01"): from the first time to before the second, UTC'


def group_faults(group: FeatureGroup, types: Types | None, not_cleaned: Mapping[str, str]) -> Found:
    """clean= and fit= of a group. `not_cleaned` are the keys and clocks, with what each is."""
    if not isinstance(group.clean, list | tuple):
        yield f"clean is {type(group.clean).__name__}, expected a list", 'write clean=[Fill("amount", "median")]'
        return
    words = ", ".join(step.__name__ for step in STEPS)
    for step in group.clean:
        if not isinstance(step, Step):
            hint = "give it to a feature" if isinstance(step, Scaled) else 'as clean=[Fill("amount", "median")]'
            yield f"clean holds {type(step).__name__}, expected {words}", hint
            continue
        where = f"clean: {type(step).__name__}({step.column})"
        if isinstance(step.column, str) and step.column in not_cleaned:
            problem = f"{where}: '{step.column}' is {not_cleaned[step.column]}, which cleaning does not change"
            yield problem, "correct it in the source, or in the group's transform"
        yield from ((f"{where}: {problem}", hint) for problem, hint in _word(group, step, types))
    if group.fit is not None:
        yield from _range("fit", group.fit)
        scaled = [f.expression for f in group.features if isinstance(f, Feature) and isinstance(f.expression, Scaled)]
        steps = [step for step in group.clean if isinstance(step, Step)]
        if not any(not list(_arguments(word)) and is_fitted(word) for word in (*steps, *scaled)):
            yield "has fit= but nothing that is fitted", "leave fit out, or add a word that learns from data"


def feature_faults(group: FeatureGroup, feature: Feature, word: Scaled, types: Types | None) -> Found:
    """A feature whose expression is one of the words."""
    name = type(word).__name__
    if group.aggregates:
        if not list(_arguments(word)) and is_fitted(word):
            problem = f"{name} is fitted on the source's columns, which a group with aggregates has summed up"
            yield problem, "give it a group of its own over that source; clean= acts before aggregates"
        features = [f.name for f in group.features if isinstance(f, Feature) and f.name != feature.name]
        types = dict.fromkeys(features)
    for problem, hint in _word(group, word, types):
        yield f"{name}: {problem}", hint
    if list(_arguments(word)):
        return
    try:
        found = data_types.parse(feature.type).spark
    except data_types.TypeFault:
        return  # a fault already
    gives = way_of(word).gives
    if found not in gives:
        yield f"is {found}, but {name} gives {', '.join(gives)}", f'write type "{gives[0]}"'


def type_fault(word: Word, kind: data_types.DataType) -> str:
    """What is wrong with a word on a column of this type; empty when nothing is."""
    match way_of(word).reads:
        case "number" if not cleaning.is_numeric(kind):
            return f"column '{word.column}' is {kind.spark}, expected a number"
        case "category" if not cleaning.is_category(kind):
            return f"column '{word.column}' is {kind.spark}, expected text, whole numbers, booleans or dates"
    if isinstance(word, Fill) and word.how is None and not _can_fill(word.value, kind):
        return f"column '{word.column}' is {kind.spark}, which {type(word.value).__name__} {word.value!r} cannot fill"
    if isinstance(word, Fill) and word.how == "forward" and kind.kind == "map":
        return f"column '{word.column}' is {kind.spark}, which has no order to choose by"
    return ""


def _can_fill(value: object, kind: data_types.DataType) -> bool:
    if kind.kind == "boolean" or isinstance(value, bool):
        return kind.kind == "boolean" and isinstance(value, bool)
    if kind.kind in cleaning.WHOLE_NUMBERS:
        return isinstance(value, int)
    if cleaning.is_numeric(kind):
        return isinstance(value, int | float)
    return isinstance(value, str) and kind.kind in ("string", "date", "timestamp", "timestamp_ntz", "binary")


def _word(group: FeatureGroup, word: Word, types: Types | None) -> Found:
    """Its arguments, then its column, then its range: each only when the one before is sound."""
    faults = list(_arguments(word))
    yield from faults
    if not isinstance(word.column, str) or not word.column:
        return
    if types is not None and word.column not in types:
        problem = f"column '{word.column}' is not there ({listed(types)})"
        yield problem, near_miss(word.column, types) + "name one of those"
    if faults:
        return
    kind = types.get(word.column) if types else None
    if kind and (wrong := type_fault(word, kind)):
        yield wrong, "use a word that fits the column, or cast it in the group's transform"
    fit = getattr(word, "fit", None)
    if is_fitted(word):
        if fit is None and group.fit is None:
            yield "learns from data, but says not from which", f"{_RANGE}, on the group or on the word"
        elif fit is not None:
            yield from _range("fit", fit)
    elif fit is not None:
        yield "has fit= but learns nothing from data", "leave fit out"


def _range(what: str, fit: object) -> Found:
    try:
        range_us(fit)
    except RangeFault as fault:
        yield f"{what}: {fault}", _RANGE


def _arguments(word: Word) -> Found:
    if not isinstance(word.column, str) or not word.column:
        yield f"column is {word.column!r}, expected a name", f'write {type(word).__name__}("amount")'
    match word:
        case Fill():
            yield from _fill(word)
        case Clip():
            yield from _clip(word)
        case Log(offset=offset) if offset is not None and not _finite(offset):
            yield f"offset {offset!r} is not a number", "write offset=0.5, or leave it out for 1"
        case Bucket():
            yield from _bucket(word)
        case OneHot() | Index() if not _whole(word.most, 1, MOST_CATEGORIES):
            yield f"most {word.most!r} is not a number of categories", f"write a whole number, 1 to {MOST_CATEGORIES:,}"


def _fill(fill: Fill) -> Found:
    if fill.how is not None and fill.how not in cleaning.FILLS:
        hint = near_miss(fill.how, cleaning.FILLS) + f"use one of {', '.join(cleaning.FILLS)}, or value="
        yield f"how {fill.how!r} is not known", hint
    elif (fill.how is None) == (fill.value is None):
        both = "both how and value=" if fill.how else "nothing to fill with"
        yield f"has {both}", 'write Fill("amount", "median") or Fill("amount", value=0)'
    elif fill.value is not None and not _constant(fill.value):
        yield f"value is {type(fill.value).__name__}", "give a text, a finite number, True or False"


def _constant(value: object) -> bool:
    return isinstance(value, str | bool) or _finite(value)


def _clip(clip: Clip) -> Found:
    """`quantiles`, `iqr`, or one or both bounds."""
    ways = {
        "bounds": clip.low is not None or clip.high is not None,
        "quantiles": clip.quantiles is not None,
        "iqr": clip.iqr is not None,
    }
    hint = "write low= and high=, quantiles=(0.01, 0.99), or iqr=1.5"
    if sum(ways.values()) != 1:
        given = " and ".join(name for name, is_given in ways.items() if is_given) or "no bounds"
        yield f"has {given}, expected one way", hint
    elif clip.iqr is not None:
        if not _finite(clip.iqr) or clip.iqr < 0:
            yield f"iqr {clip.iqr!r} is not a factor", "write iqr=1.5"
    elif clip.quantiles is not None:
        shares = clip.quantiles
        sound = isinstance(shares, list | tuple) and len(shares) == 2 and all(map(_finite, shares))
        if not sound or not 0 <= shares[0] < shares[1] <= 1:
            yield f"quantiles {shares!r} are not two rising shares from 0 to 1", "write quantiles=(0.01, 0.99)"
    elif wrong := [bound for bound in (clip.low, clip.high) if bound is not None and not _finite(bound)]:
        yield f"bound {wrong[0]!r} is not a finite number", hint
    elif clip.low is not None and clip.high is not None and clip.low > clip.high:
        yield f"low {clip.low} is above high {clip.high}", "exchange the two"


def _bucket(bucket: Bucket) -> Found:
    hint = "write edges=[10, 100, 1000], or quantiles=4"
    edges = bucket.edges
    if (edges is None) == (bucket.quantiles is None):
        yield f"has {'both edges and quantiles' if edges else 'no edges'}", hint
    elif edges is None and not _whole(bucket.quantiles, 2, MOST_BUCKETS):
        yield (
            f"quantiles {bucket.quantiles!r} is not a number of buckets",
            f"write a whole number, 2 to {MOST_BUCKETS:,}",
        )
    elif edges is not None:
        sound = isinstance(edges, list | tuple) and edges and len(edges) < MOST_BUCKETS and all(map(_finite, edges))
        if not sound or any(low >= high for low, high in itertools.pairwise(edges)):
            yield f"edges {edges!r} are not rising numbers", hint


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _whole(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
