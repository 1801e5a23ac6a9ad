"""Lengths of time as users write them (`"90d"`, `"15m"`), counted in whole microseconds."""

from __future__ import annotations

import re

MOST_DAYS = 1_000 * 366  # the microseconds of more would not fit what Spark counts in
# Instants that Python knows: of the years 1 and 9999.
LEAST_US, GREATEST_US = -62_135_596_800_000_000, 253_402_300_799_999_999
UNITS = {"s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000, "w": 604_800_000_000}


class DurationFault(ValueError):
    """A text that is no length of time; the message says how to write one."""


def microseconds(text: object) -> int:
    """`"90d"` -> 7_776_000_000_000. Zero is refused: a ttl or a window of no length matches nothing."""
    found = re.fullmatch(r"([0-9]{1,18})([smhdw])", text) if isinstance(text, str) else None
    if not found:
        raise DurationFault(f"{text!r} is not a length of time; write a whole number and s, m, h, d or w, as '90d'")
    length = int(found[1]) * UNITS[found[2]]
    if length == 0:
        raise DurationFault(f"{text!r} has no length; leave it out for no limit")
    if length > MOST_DAYS * UNITS["d"]:
        raise DurationFault(f"{text!r} is longer than 1,000 years; leave it out for no limit")
    return length


def text(length: int) -> str:
    """The shortest way to write a number of microseconds that came from `microseconds`."""
    unit = next(unit for unit in ("w", "d", "h", "m", "s") if length % UNITS[unit] == 0)
    return f"{length // UNITS[unit]}{unit}"
