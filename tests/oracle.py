"""The rules of time as plain loops over tuples: slow, and easy to believe. The Spark code must equal them row for row.

    row     (keys, event_time, created_time, values)      keys and values are tuples, times are whole numbers
    point   (keys, time)                                  a spine row

Null is None everywhere, and lies before every value in an order, as it does in Spark.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Keys = tuple[Any, ...]
Point = tuple[Keys, int | None]
Row = tuple[Keys, int | None, int | None, tuple[Any, ...]]


def null_first(value: Any) -> tuple[bool, Any]:
    if isinstance(value, dict):  # a map compares by its entries, in the order of the keys
        value = tuple((key, null_first(value[key])) for key in sorted(value))
    return (value is not None, 0 if value is None else value)


# the as-of


@dataclass(frozen=True)
class Rules:
    strict: bool = False
    known_by: str = "event"
    ttl: int | None = None
    skip_nulls: bool = False


def as_of(spine: Sequence[Point], rows: Sequence[Row], rules: Rules) -> list[tuple[Any, ...] | None]:
    """The values for each spine row, in its order; None where no row answers."""
    return [answer(keys, time, rows, rules) for keys, time in spine]


def answer(keys: Keys, time: int | None, rows: Sequence[Row], rules: Rules) -> tuple[Any, ...] | None:
    found = [row for row in rows if time is not None and usable(row, keys, time, rules)]
    if not found or not rules.skip_nulls:
        return max(found, key=rank)[3] if found else None
    # each value is looked up by itself: the newest row in which it is not null
    columns = [
        [(*row[:3], (value,)) for row in found if (value := row[3][i]) is not None] for i in range(len(found[0][3]))
    ]
    return tuple(max(column, key=rank)[3][0] if column else None for column in columns)


def usable(row: Row, keys: Keys, time: int, rules: Rules) -> bool:
    row_keys, event_time, created_time, _ = row
    if row_keys != keys or None in keys or event_time is None:
        return False
    if event_time > time or (rules.strict and event_time == time):
        return False
    if rules.ttl is not None and time - event_time > rules.ttl:
        return False
    known = event_time if created_time is None else created_time
    return rules.known_by == "event" or known <= time


def rank(row: Row) -> tuple[Any, ...]:
    """What decides between rows: event_time, then created_time, then the values."""
    _, event_time, created_time, values = row
    return event_time, null_first(created_time), tuple(map(null_first, values))


def leaks(spine: Sequence[Point], rows: Sequence[Row], rules: Rules, width: int) -> list[tuple[bool, ...]]:
    """For each spine row and value: would it differ had rows created after the spine time been left out?"""
    pairs = []
    for known_by in ("event", "spine"):
        found = as_of(spine, rows, Rules(rules.strict, known_by, rules.ttl, rules.skip_nulls))
        pairs.append([values or (None,) * width for values in found])
    return [tuple(a != b for a, b in zip(left, right, strict=True)) for left, right in zip(*pairs, strict=True)]


def latest(rows: Sequence[Row], now: int) -> dict[Keys, tuple[int | None, tuple[Any, ...]]]:
    """(event_time, values) of each entity's newest row not after `now`."""
    newest = {row[0]: row for row in sorted((row for row in rows if row[1] <= now), key=rank)}
    return {keys: (event_time, values) for keys, (_, event_time, _, values) in newest.items()}


# aggregates; a row has one value, and `counts` says whether it meets the aggregate's `where`


@dataclass(frozen=True)
class Event:
    keys: Keys
    time: int
    created: int | None
    value: Any
    counts: bool
    kind: str | None = None


def aggregate(
    function: str,
    events: Sequence[Event],
    time: int,
    window: int | None,
    *,
    filtered: bool,
    by: bool = False,
    **numbers: Any,
) -> Any:
    """The value over (time - window, time], or by=True a value for each kind."""
    inside = [e for e in events if e.time <= time and (window is None or e.time > time - window)]
    chosen = [e for e in inside if e.value is not None and (e.counts or not filtered)]
    if by:
        kinds = {e.kind for e in chosen if e.kind is not None}
        return {kind: value_of(function, [e for e in chosen if e.kind == kind], **numbers) for kind in kinds} or None
    return value_of(function, chosen, **numbers)


def value_of(function: str, chosen: Sequence[Event], k: int = 0, q: float = 0) -> Any:
    """One function over the rows that count."""
    in_order = [e.value for e in sorted(chosen, key=lambda e: (e.time, null_first(e.created), e.value))]
    match function:
        case "count":
            return len(in_order)
        case "distinct" | "approx_distinct":
            return len(set(in_order))
        case _ if not in_order:
            return None
        case "sum":
            return sum(in_order)
        case "avg":
            return sum(in_order) / len(in_order)
        case "min" | "max":
            return (min if function == "min" else max)(in_order)
        case "variance" | "stddev":
            spread = getattr(statistics, {"variance": "variance", "stddev": "stdev"}[function])
            return spread(in_order) if len(in_order) > 1 else None
        case "last_k":
            return in_order[::-1][:k]
        case "top_k":
            return sorted(set(in_order), key=lambda value: (-in_order.count(value), value))[:k]
        case "quantile":
            return sorted(in_order)[max(math.ceil(q * len(in_order)), 1) - 1]
        case _:
            return in_order[{"first": 0, "last": -1}[function]]


def alike(found: Any, expected: Any) -> bool:
    """Equal; a double to what its function promises: a quantile to one part in a hundred."""
    if isinstance(expected, dict) and isinstance(found, dict):
        return found.keys() == expected.keys() and all(alike(found[key], expected[key]) for key in expected)
    if isinstance(found, float) and expected is not None:
        return math.isclose(found, expected, rel_tol=0.0101, abs_tol=1e-9)
    return bool(found == expected)


def newest_created(events: Sequence[Event], time: int, window: int | None) -> int | None:
    inside = [e for e in events if e.time <= time and (window is None or e.time > time - window)]
    return max((e.created for e in inside if e.created is not None), default=None)


def by_entity(events: Sequence[Event]) -> dict[Keys, list[Event]]:
    found: dict[Keys, list[Event]] = {}
    for event in events:
        found.setdefault(event.keys, []).append(event)
    return found


def event_points(events: Sequence[Event]) -> set[tuple[Keys, int]]:
    """Where a group without a grid has a row: once at each event's time."""
    return {(event.keys, event.time) for event in events}


def cell(time: int, every: int) -> int:
    """The end of the cell (end - every, end] that holds the time."""
    return -(-time // every) * every


def grid_points(events: Sequence[Event], every: int, until: int) -> set[tuple[Keys, int]]:
    """Where a group on a grid has rows: from the cell of an entity's first event to `until`."""
    found = set()
    for keys, own in by_entity(events).items():
        first = min(cell(event.time, every) for event in own)
        found |= {(keys, point) for point in range(first, until + 1, every)}
    return found
