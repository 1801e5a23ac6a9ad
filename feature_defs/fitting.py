"""What of a group is fitted, in which order, and what each fit hangs on.

    group -> words (clean= in order, then features) -> Fit(word, range, digest)

The digest names the file of the fitted values. It covers all that decides them: the source with what it is made of, the
group's transform, the word, its range, and those steps before it that change its column or drop rows. A step on another
column does not refit it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from feature_defs import cleaning, expressions
from feature_defs.cleaning import DropNull, Fill, Word
from feature_defs.fingerprint import source_meaning, transform_digest
from feature_defs.model import GROUP_FORMAT, Definitions, FeatureGroup


@dataclass(frozen=True)
class Fit:
    """One fitted word; `place` is its number among the group's words."""

    place: int
    word: Word
    range_us: tuple[int, int]
    digest: str

    @property
    def range(self) -> tuple[str, str]:
        """The range as text: from the first time to before the second, UTC."""
        start, end = self.range_us
        return cleaning.time_text(start), cleaning.time_text(end)


def words_of(group: FeatureGroup) -> tuple[Word, ...]:
    """The steps of clean=, then the features' words: each sees the columns as the steps before it leave them."""
    scaled = (f.expression for f in group.features if isinstance(f.expression, cleaning.Scaled))
    return (*group.clean, *scaled)


def reads_other_rows(group: FeatureGroup) -> bool:
    """Whether a row's cleaned values need other rows of its entity: such a group cannot be computed from new rows."""
    return any(isinstance(step, Fill) and step.how == "forward" for step in group.clean)


def fits_of(group: FeatureGroup, definitions: Definitions) -> tuple[Fit, ...]:
    """What is fitted for the group."""
    words = words_of(group)
    found = []
    for place, word in enumerate(words):
        fit = getattr(word, "fit", None) or group.fit
        if cleaning.is_fitted(word):
            before = _before(words[: min(place, len(group.clean))], word)
            digest = _digest(group, definitions, [*before, word])
            found.append(Fit(place, word, cleaning.range_us(fit), digest))
    return tuple(found)


def _before(steps: Sequence[Word], word: Word) -> list[Word]:
    """Those of the steps that decide what the word sees: they change its column, or which rows there are."""
    columns: set[str] = {word.column}
    found: list[Word] = []
    for step in reversed(steps):
        if isinstance(step, DropNull) or step.column in columns:
            columns.add(step.column)
            found.insert(0, step)
    return found


def _digest(group: FeatureGroup, definitions: Definitions, words: Sequence[Word]) -> str:
    source = definitions.source_of(group)
    meaning: dict[str, Any] = {
        "keys": list(definitions.entity_of(group).keys),
        "source": [source.path, source.format, source.event_time, source.created_time],
        "filter": None if source.filter is None else expressions.normalised(source.filter),
        "transform": transform_digest(group.transform),
        "words": [cleaning.meaning(word, group.fit) for word in words],
    }
    if source.inputs or source.format == GROUP_FORMAT:
        meaning["made_of"] = source_meaning(source, definitions)
    text = json.dumps(meaning, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
