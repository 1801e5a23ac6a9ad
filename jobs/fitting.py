"""Cleaning a group's rows: stored fitted values are read, missing ones learned and stored, and all of them applied.

    good rows -> stored values -> passes for what was never fitted -> cleaned rows, features as plain Spark SQL

Values that are stored are never fitted again, whatever the source holds today: training and serving agree.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyspark.sql import DataFrame

from connectors.fitted_values import Fitted, FittedValues
from connectors.registry import Snapshot
from feature_defs import cleaning, data_types
from feature_defs.cleaning import DropNull
from feature_defs.errors import DataError
from feature_defs.fitting import Fit, fits_of, words_of
from feature_defs.model import Definitions, FeatureGroup
from jobs.place import Place
from jobs.report import counted
from jobs.transforms import cleaning as steps


@dataclass(frozen=True)
class Cleaned:
    """The rows and the group for the features, what was dropped by which step, and what was learned by this run.

    `left` says whether any row was not dropped.
    """

    rows: DataFrame
    group: FeatureGroup
    dropped: dict[str, int]
    fitted: tuple[str, ...]
    left: bool = True


def clean(place: Place, snapshot: Snapshot, group: FeatureGroup, rows: DataFrame, *, run: str, now: int) -> Cleaned:
    """Apply clean= and write out the features' words; a group without either is as it was."""
    about = {"fingerprint": snapshot.fingerprint(group.name), "run": run}
    return cleaned_by(place.fitted(group), snapshot.definitions, group, rows, about=about, now=now)


def cleaned_by(
    store: FittedValues,
    definitions: Definitions,
    group: FeatureGroup,
    rows: DataFrame,
    *,
    about: Mapping[str, str],
    now: int,
) -> Cleaned:
    """The same with any store of fitted values; `about` says in them whose they are."""
    words = words_of(group)
    if not words:
        return Cleaned(rows, group, {}, ())
    kinds = steps.check_columns(rows, group, words)
    keys = list(definitions.entity_of(group).keys)
    fits = fits_of(group, definitions)
    stored = ((fit.place, store.read(fit.digest)) for fit in fits)
    values = {place: kept.values for place, kept in stored if kept}
    learned: dict[str, int] = {}
    found, ready = steps.stepped(rows, words, keys, fits=fits, values=values)
    while ready:
        for fit, fitted in zip(ready, _learned(found, group, ready, kinds, now), strict=True):
            kept = store.keep(fit.digest, Fitted(**{**fitted, **about}))
            values[fit.place] = kept.values
            learned |= {kept.word: kept.rows} if kept.run == about["run"] else {}
        found, ready = steps.stepped(rows, words, keys, fits=fits, values=values)
    dropped, left = _dropped(found, group)
    return Cleaned(
        rows=steps.cleaned(found, rows.columns),
        group=steps.plain_features(group, values),
        dropped=dropped,
        left=left,
        fitted=tuple(f"{word} on {counted(count, 'row')}" for word, count in learned.items()),
    )


def waits_for_fit(place: Place, snapshot: Snapshot, group: FeatureGroup) -> bool:
    """Whether some value was never fitted: then compute has to see the whole range, not only new rows."""
    store = place.fitted(group)
    return any(store.read(fit.digest) is None for fit in fits_of(group, snapshot.definitions))


def _dropped(rows: DataFrame, group: FeatureGroup) -> tuple[dict[str, int], bool]:
    """Rows left out by each step, and whether any is left: a pass of its own."""
    dropping = [step for step in group.clean if isinstance(step, DropNull)]
    if not dropping:
        return {}, True
    kept, *counts = steps.drop_counts(rows, group.clean).collect()[0]
    found: dict[str, int] = {}
    for step, count in zip(dropping, counts, strict=True):
        found[cleaning.text(step)] = found.get(cleaning.text(step), 0) + count
    return found, bool(kept)


def refuse_when_nothing_is_left(group: FeatureGroup, cleaned: Cleaned) -> None:
    """DataError when the steps dropped every row of a whole source."""
    if not cleaned.left:
        told = ", ".join(f"{step} {count:,}" for step, count in cleaned.dropped.items())
        hint = "look at the source, or fill the column before the step; the offline table is as it was"
        raise DataError(f"FeatureGroup '{group.name}'", f"clean drops every row: {told}", hint=hint)


def _learned(
    rows: DataFrame, group: FeatureGroup, fits: Sequence[Fit], kinds: Mapping[int, data_types.DataType], now: int
) -> list[dict[str, Any]]:
    """What these fits learn, in one pass, and one more when there are vocabularies among them."""
    for fit in fits:
        if fit.range_us[1] > now:
            problem = f"{cleaning.text(fit.word)}: its fit range ends {fit.range[1]}, which is not over yet"
            hint = "values are fitted once and kept: choose a range that is over; the offline table is as it was"
            raise DataError(f"FeatureGroup '{group.name}'", problem, hint=hint)
    row = list(steps.numbers(rows, fits).collect()[0])
    found: dict[int, dict[str, Any]] = {}
    for fit in fits:
        count, present = row.pop(0), row.pop(0)
        values = {name: _number(row.pop(0)) for name in cleaning.fit_texts(fit.word, "x")}
        _check_range(group, fit, count, present)
        _check_finite(group, fit, values)
        about = {"word": cleaning.text(fit.word), "range": fit.range, "rows": count}
        found[fit.place] = {**about, "present": present, "values": values}
    lists = [fit for fit in fits if cleaning.way_of(fit.word).vocabulary]
    if lists:
        ordered = sorted(map(tuple, steps.categories(rows, lists, kinds).collect()), key=lambda row: (row[0], row[2]))
        for fit in lists:
            found[fit.place]["values"] = {"vocabulary": [text for place, text, _ in ordered if place == fit.place]}
    return list(found.values())


def _number(value: Any) -> Any:
    """A list of edges holds each once: buckets that no value falls between are one."""
    return sorted(set(value)) if isinstance(value, list) else value


def _check_range(group: FeatureGroup, fit: Fit, count: int, present: int) -> None:
    if not present:
        start, end = fit.range
        found = f"no value of '{fit.word.column}' in {counted(count, 'row')}" if count else "no row"
        problem = f"{cleaning.text(fit.word)}: {found} from {start} to before {end}, nothing to fit on"
        hint = "choose a fit range that the source covers; the offline table is as it was"
        raise DataError(f"FeatureGroup '{group.name}'", problem, hint=hint)


def _check_finite(group: FeatureGroup, fit: Fit, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if not all(map(math.isfinite, value if isinstance(value, list) else [value])):
            problem = f"{cleaning.text(fit.word)}: its {name} is not a finite number"
            hint = f"clip '{fit.word.column}' to given bounds before it; the offline table is as it was"
            raise DataError(f"FeatureGroup '{group.name}'", problem, hint=hint)
