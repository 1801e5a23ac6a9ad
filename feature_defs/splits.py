"""Parts of a dataset by time: `train=2025-10-01..2026-01-01`, each a half-open span of event_time, in order.

    START included, END not; the first part may leave START out, the last one END
    gap: a part begins no sooner than this after the end of the one before, so that no window reaches into both

What the words come to is plain data; which part a row is in, jobs/transforms/splits.py says.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from feature_defs import durations
from feature_defs.errors import UsageError

SPLIT = "split"  # the column of a dataset that names a row's part
_NAME = re.compile(r"[a-z][a-z0-9_]*")  # fit for a folder on every file system
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
_FORM = "write NAME=START..END, as train=2025-10-01..2026-01-01"


@dataclass(frozen=True)
class Part:
    """A named part: rows with start <= event_time < end, in microseconds UTC; None is no bound."""

    name: str
    start_us: int | None
    end_us: int | None

    def as_plain(self) -> dict[str, str | None]:
        return {"name": self.name, "start": _text(self.start_us), "end": _text(self.end_us)}


def parse_splits(texts: Sequence[str] | Mapping[str, str], gap: str | None = None) -> tuple[Part, ...]:
    """Parts as users write them, the gap taken off their starts. A text may hold several, with commas between."""
    pairs = [f"{name}={span}" for name, span in texts.items()] if isinstance(texts, Mapping) else texts
    written = [_part(text.strip()) for pair in pairs for text in pair.split(",")]
    if gap is not None and len(written) < 2:
        raise UsageError("Option --gap", "has no two parts to lie between", hint=f"give two or more --split: {_FORM}")
    _check_order(written)
    gap_us = _gap(gap) if gap is not None else 0
    parts = list(written[:1])
    for before, part in pairwise(written):
        assert before.end_us is not None  # as checked
        assert part.start_us is not None
        start = max(part.start_us, before.end_us + gap_us)
        if part.end_us is not None and start >= part.end_us:
            problem = f"part '{part.name}' ends within {gap} of the end of '{before.name}': nothing is left of it"
            raise UsageError("Option --gap", problem, hint="shorten the gap, or lengthen the part")
        parts.append(Part(part.name, start, part.end_us))
    return tuple(parts)


def gaps(parts: Sequence[Part]) -> tuple[tuple[int, int], ...]:
    """The half-open spans between the parts that have any length."""
    ends = ((before.end_us, part.start_us) for before, part in pairwise(parts))
    return tuple((end, start) for end, start in ends if end is not None and start is not None and end < start)


def _part(text: str) -> Part:
    name, equals, span = text.partition("=")
    start, dots, end = span.partition("..")
    if not equals or not dots:
        raise UsageError("Option --split", f"'{text}' is no part", hint=_FORM)
    if not _NAME.fullmatch(name):
        hint = "begin with a small letter, then small letters, digits and _: it becomes a folder's name"
        raise UsageError("Option --split", f"'{name}' cannot name a part", hint=hint)
    part = Part(name, _moment(start), _moment(end))
    if part.start_us is not None and part.end_us is not None and part.start_us >= part.end_us:
        raise UsageError("Option --split", f"part '{name}' ends before it begins", hint=f"END is not included; {_FORM}")
    return part


def _check_order(parts: Sequence[Part]) -> None:
    names = [part.name for part in parts]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise UsageError("Option --split", f"names part '{repeated}' twice", hint="give each part a name of its own")
    for before, part in pairwise(parts):
        if before.end_us is None or part.start_us is None:
            open_one, end = (before, "END") if before.end_us is None else (part, "START")
            problem = f"part '{open_one.name}' has no {end}, and '{before.name}' comes before '{part.name}'"
            hint = "only the first part may leave START out, and only the last one END"
            raise UsageError("Option --split", problem, hint=hint)
        if part.start_us < before.end_us:
            problem = f"part '{part.name}' begins before '{before.name}' ends"
            hint = "give the parts in the order of time; a row can be in one only"
            raise UsageError("Option --split", problem, hint=hint)


def _moment(text: str) -> int | None:
    if not text.strip():
        return None
    try:
        found = datetime.datetime.fromisoformat(text.strip().replace("Z", "+00:00"))
    except ValueError as error:
        hint = "write 2026-01-31 or 2026-01-31T12:00:00Z"
        raise UsageError("Option --split", f"'{text}' is not ISO 8601", hint=hint) from error
    aware = found if found.tzinfo else found.replace(tzinfo=datetime.timezone.utc)
    return (aware - _EPOCH) // datetime.timedelta(microseconds=1)


def _gap(text: str) -> int:
    try:
        return durations.microseconds(text)
    except durations.DurationFault as fault:
        raise UsageError("Option --gap", str(fault), hint="write --gap 7d") from fault


def _text(microseconds: int | None) -> str | None:
    if microseconds is None:
        return None
    return (_EPOCH + datetime.timedelta(microseconds=microseconds)).isoformat()
