"""Cleaning and scaling as plain loops over lists of dicts: slow, and easy to believe. The Spark code must equal them.

A row has `key`, `time`, `created` and columns; None is null, and a NaN counts as None. Steps run one after another,
each fitted on the rows as those before it left them, if their time is in [start, end).
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from feature_defs.cleaning import (
    Bucket,
    Clip,
    DropNull,
    Fill,
    Index,
    Log,
    MinMax,
    OneHot,
    Scaled,
    Standardise,
    Step,
    Word,
)
from tests.oracle import null_first

Row = dict[str, Any]


def cleaned(rows: Sequence[Row], steps: Sequence[Step], start: int, end: int) -> list[Row]:
    """The rows after all steps."""
    found = [dict(row) for row in rows]
    for step in steps:
        fitted = fit(found, step, start, end)
        for row in found:
            row[step.column] = value(row[step.column])
        match step:
            case DropNull():
                found = [row for row in found if row[step.column] is not None]
            case Fill(how="forward"):
                filled = [previous(found, row, step.column) for row in found]
                for row, x in zip(found, filled, strict=True):
                    row[step.column] = x
            case Fill():
                for row in found:
                    row[step.column] = fitted["value"] if row[step.column] is None else row[step.column]
            case Clip():
                for row in found:
                    row[step.column] = clipped(row[step.column], fitted["low"], fitted["high"])
    return found


def fit(rows: Sequence[Row], word: Word, start: int, end: int) -> dict[str, Any]:
    """What the word learns from these rows; what needs no learning is as it was written."""
    own = [value(row[word.column]) for row in rows if start <= row["time"] < end]
    xs = sorted(x for x in own if x is not None)
    match word:
        case Fill(how="mean"):
            return {"value": statistics.fmean(xs)}
        case Fill(how="median"):
            return {"value": statistics.median(xs)}
        case Fill(how=None):
            return {"value": word.value}
        case Clip(quantiles=[low, high]):
            return {"low": quantile(xs, low), "high": quantile(xs, high)}
        case Clip(iqr=factor) if factor is not None:
            q1, q3 = quantile(xs, 0.25), quantile(xs, 0.75)
            return {"low": q1 - factor * (q3 - q1), "high": q3 + factor * (q3 - q1)}
        case Clip():
            return {"low": word.low, "high": word.high}
        case Standardise():
            return {"mean": statistics.fmean(xs), "stddev": statistics.pstdev(xs)}
        case MinMax():
            return {"min": xs[0], "max": xs[-1]}
        case Bucket(quantiles=count) if count is not None:
            return {"edges": sorted({quantile(xs, part / count) for part in range(1, count)})}
        case Bucket():
            return {"edges": list(word.edges or ())}
        case OneHot() | Index():
            counted = sorted(Counter(xs).items(), key=lambda pair: (-pair[1], pair[0]))
            return {"vocabulary": [category for category, _ in counted[: word.most]]}
        case _:
            return {}


def scaled(x: Any, word: Scaled, fitted: dict[str, Any]) -> Any:
    """A feature's value from its column's."""
    x = value(x)
    if isinstance(word, OneHot):
        return [int(category == x) for category in fitted["vocabulary"]]
    if isinstance(word, Index):
        return fitted["vocabulary"].index(x) + 1 if x in fitted["vocabulary"] else 0
    if x is None:
        return None
    match word:
        case Standardise():
            return (x - fitted["mean"]) / (fitted["stddev"] or 1)
        case MinMax():
            return (x - fitted["min"]) / ((fitted["max"] - fitted["min"]) or 1)
        case Bucket():
            return sum(edge <= x for edge in fitted["edges"])
        case Log():
            offset = 1 if word.offset is None else word.offset
            return math.log(x + offset) if x + offset > 0 else None


def value(x: Any) -> Any:
    return None if isinstance(x, float) and math.isnan(x) else x


def clipped(x: Any, low: float | None, high: float | None) -> Any:
    if x is None:
        return None
    return low if low is not None and x < low else high if high is not None and x > high else x


def previous(rows: Sequence[Row], row: Row, column: str) -> Any:
    """The row's own value, or the newest of its entity that is not after it; of equal clocks the greatest."""
    if row[column] is not None:
        return row[column]
    clocks: Callable[[Row], Any] = lambda r: (r["time"], null_first(r["created"]))  # noqa: E731 - a key, used twice
    known = [r for r in rows if r["key"] == row["key"] and r[column] is not None and clocks(r) <= clocks(row)]
    return max(known, key=lambda r: (clocks(r), r[column]))[column] if known else None


def quantile(xs: Sequence[float], share: float) -> float:
    """Between the two nearest of the sorted values, as `statistics.quantiles(method="inclusive")`."""
    place = (len(xs) - 1) * share
    low, high = math.floor(place), math.ceil(place)
    return xs[low] if xs[low] == xs[high] else (high - place) * xs[low] + (place - low) * xs[high]


def with_columns(word: Any, column: str) -> Any:
    """The same word on another column."""
    return dataclasses.replace(word, column=column)
