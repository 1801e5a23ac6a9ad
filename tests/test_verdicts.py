"""Verdicts of an audit against plain loops over decoded rows; no Spark and no Redis."""

from __future__ import annotations

import functools
import random
from collections import Counter
from typing import Any

import pyarrow as pa
import pytest

from connectors import codec
from connectors.codec import CodecError, ValueSchema, decode, encode
from jobs.verdicts import (
    AHEAD,
    CLOCK_MARGIN_US,
    DIFFERS,
    EXPIRED,
    GONE,
    MISSING,
    NEWER,
    NO_TIME,
    SAME,
    STALE,
    SURPLUS,
    UNREADABLE,
    VERDICTS,
    Judged,
    Terms,
    judged,
    judged_alone,
)

SCHEMA = ValueSchema.of([("n", "bigint"), ("x", "double"), ("s", "string"), ("m", "map<string,int>")])
OTHER = ValueSchema.of([("n", "bigint")])
SECOND = 1_000_000
NOW, CLOCK, TTL = 1_000 * SECOND, 1_010 * SECOND, 100 * SECOND
FAR = CLOCK + CLOCK_MARGIN_US + 1
TIMES = [NOW - 200 * SECOND, NOW - TTL - 1, NOW - TTL, NOW - 95 * SECOND, NOW - SECOND, NOW, NOW + 5 * SECOND, FAR]
NAN = float("nan")
ROWS: list[tuple[Any, ...]] = [
    (1, 0.0, "a", [("k", 1)]), (1, -0.0, "a", [("k", 1)]), (2, NAN, None, None), (2, NAN, None, []),
    (1, 0.0, "b", [("k", 2)]),
]  # fmt: skip
TERMS = Terms(SCHEMA, definition=3, ttl_us=TTL, now_us=NOW)


@functools.cache
def packed(time: int, row: int, definition: int = 3, schema: ValueSchema = SCHEMA) -> bytes:
    types = [pa.int64(), pa.float64(), pa.string(), pa.map_(pa.string(), pa.int32())]
    columns = [pa.array([value], kind) for value, kind in zip(ROWS[row], types, strict=True)]
    event_time = pa.array([time], pa.timestamp("us", "UTC"))
    return encode(
        pa.record_batch([event_time, *columns], ["event_time", *SCHEMA.names]), schema, definition=definition
    )[0].as_py()


def expected(offline: bytes, stored: bytes | None, terms: Terms) -> tuple[str, tuple[str, ...]]:
    """The rules as a reader would tell them."""
    row = decode(offline, SCHEMA)

    def past(time: int, at: int) -> bool:
        return terms.ttl_us is not None and time < at - terms.ttl_us

    if stored is None:
        return (EXPIRED if past(row.event_time_us, max(CLOCK, terms.now_us)) else MISSING), ()
    if len(stored) < 17 or stored[0] != codec.CODEC_VERSION:
        return UNREADABLE, ()
    _, schema, definition, time = codec.HEADER.unpack_from(stored)
    if past(time, terms.now_us) and past(row.event_time_us, terms.now_us):
        return EXPIRED, ()
    if definition != terms.definition:
        return (STALE if definition < terms.definition else AHEAD), ()
    if schema != SCHEMA.fingerprint:
        return UNREADABLE, ()
    if time >= FAR:
        return AHEAD, ()
    if time < row.event_time_us:
        return STALE, ()
    try:
        found = decode(stored, SCHEMA)
    except CodecError:
        return UNREADABLE, ()
    if time > row.event_time_us:
        return NEWER, ()
    names = tuple(name for name, a, b in zip(SCHEMA.names, row.values, found.values, strict=True) if repr(a) != repr(b))
    return (DIFFERS, names) if names else (SAME, ())


def told(found: Judged) -> list[tuple[str, tuple[str, ...]]]:
    names = [*VERDICTS, "gone"]
    return [(names[code], found.features.get(row, ())) for row, code in enumerate(found.codes)]


def stored_values(draw: random.Random) -> bytes | None:
    """What may be online: mostly sound, of several definitions and times, else damaged in many ways."""
    kind = draw.randrange(10)
    if kind == 0:
        return None
    schema = OTHER if kind == 1 else SCHEMA
    value = packed(draw.choice(TIMES), draw.randrange(len(ROWS)), draw.choice([2, 3, 3, 3, 3, 4]), schema)
    if kind == 2:
        at = draw.randrange(len(value))
        return value[:at] + bytes([value[at] ^ (1 << draw.randrange(8))]) + value[at + 1 :]
    if kind == 3:
        return value[: draw.randrange(len(value))]
    return value + b"x" if kind == 4 and draw.random() < 0.5 else value


@pytest.mark.parametrize("ttl", [TTL, None])
@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_verdicts_are_those_of_plain_loops(ttl: int | None, kind: pa.DataType) -> None:
    draw = random.Random(11)
    terms = Terms(SCHEMA, 3, ttl, NOW)
    cases = []
    for _ in range(6000):
        offline = packed(draw.choice(TIMES[:6]), draw.randrange(len(ROWS)))
        cases.append((offline, offline if draw.random() < 0.15 else stored_values(draw)))
    found = judged(pa.array([o for o, _ in cases], kind), pa.array([s for _, s in cases], kind), terms, clock_us=CLOCK)
    wanted = [expected(offline, stored, terms) for offline, stored in cases]
    assert told(found) == wanted
    seen = Counter(verdict for verdict, _ in wanted)
    assert set(seen) == {SAME, NEWER, MISSING, STALE, DIFFERS, UNREADABLE, AHEAD, *([EXPIRED] if ttl else [])}
    assert min(seen.values()) > 20
    assert {name for _, names in wanted for name in names} == set(SCHEMA.names)


def test_values_without_an_offline_row_are_surplus_unless_nobody_can_read_them() -> None:
    alone = {
        None: "gone",
        packed(NOW, 0): SURPLUS,
        packed(NOW - TTL, 0): SURPLUS,
        packed(NOW - TTL - 1, 0): EXPIRED,
        packed(NOW + 1, 0): NEWER,
        packed(NOW + 1, 0, definition=4): SURPLUS,
        packed(NOW + 1, 0, schema=OTHER): SURPLUS,
        packed(FAR, 0): SURPLUS,
        b"": SURPLUS,
        b"anything that is no value of ours": SURPLUS,
    }
    found = judged_alone(pa.array(list(alone), pa.binary()), TERMS, clock_us=CLOCK)
    assert [verdict for verdict, _ in told(found)] == list(alone.values())
    assert found.codes[0] == GONE
    assert (found.online_times[1], found.online_times[8]) == (NOW, NO_TIME)


def test_nothing_to_judge_is_no_verdict() -> None:
    empty = pa.array([], pa.binary())
    assert told(judged(empty, empty, TERMS, clock_us=CLOCK)) == []
    assert told(judged_alone(empty, TERMS, clock_us=CLOCK)) == []


def test_rows_names_where_a_verdict_stands() -> None:
    rows = pa.array([packed(NOW, 0)] * 3, pa.binary())
    stored = pa.array([None, packed(NOW, 0), packed(NOW, 4)], pa.binary())
    found = judged(rows, stored, TERMS, clock_us=CLOCK)
    assert [found.rows(verdict).tolist() for verdict in (MISSING, SAME, DIFFERS)] == [[0], [1], [2]]
    assert found.features == {2: ("s", "m")}
    assert found.online_times.tolist() == [NO_TIME, NOW, NOW]
