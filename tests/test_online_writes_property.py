"""The rules of a write, as a plain loop over one row at a time, and random sequences of writes held against it.

Values, limits, removals, definitions and ttl, drawn from tiny pools, so that ties and boundaries are frequent. The
Redis is a real one; its clock takes no part, as every expiry is far ahead.
"""

from __future__ import annotations

import dataclasses
import random
import time
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest
import redis

from connectors.codec import ValueSchema, decode, encode, removal
from connectors.online_store import WriteCounts
from connectors.redis_online import RedisAddress, RedisOnlineStore, open_redis

SECOND = 1_000_000
NOW = (time.time_ns() // 86_400_000_000_000 + 2) * 86_400 * SECOND
FIELD = b"purchases:1"
SCHEMA = ValueSchema.of([("total", "bigint")])
TTL = 10 * SECOND
# The last ones are past the ttl, and one exactly as old as it.
TIMES = [NOW - age for age in (0, 1, 2, SECOND, TTL, TTL + 1, TTL + 2)]
EVENTS = ("written", "kept_newer", "expired", "removed", "absent")


@dataclasses.dataclass(frozen=True)
class Row:
    key: bytes
    definition: int
    event_time: int
    total: int | None  # None: a removal
    limit: int | None


Stored = dict[bytes, tuple[int, int, int]]  # definition, event_time, total


def written(stored: Stored, row: Row, *, ttl: int | None) -> str:
    """What becomes of one row, and of what was stored."""
    before = stored.get(row.key)
    bound = row.event_time if row.limit is None else max(row.event_time, row.limit)
    past = ttl is not None and row.total is not None and row.event_time + ttl < NOW
    if past and bound == row.event_time:
        # Nobody could read it, so it is not even sent; but what is newer is told only where the store was asked.
        return "expired"
    if before:
        definition, event_time, _ = before
        if definition > row.definition or (definition == row.definition and event_time > bound):
            return "kept_newer"
    if row.total is None:
        return "removed" if stored.pop(row.key, None) else "absent"
    if past:
        replaced = before and (before[0] < row.definition or before[1] > row.event_time)
        return "removed" if replaced and stored.pop(row.key) else "expired"
    stored[row.key] = (row.definition, row.event_time, row.total)
    return "written"


def packed(rows: list[Row]) -> tuple[pa.Array, pa.Array, pa.Array]:
    """Keys, values and limits."""
    values = []
    for row in rows:
        if row.total is None:
            values += removal(row.definition, np.array([row.event_time])).to_pylist()
        else:
            at = pa.array([row.event_time], pa.int64()).cast(pa.timestamp("us", "UTC"))
            batch = pa.record_batch([at, pa.array([row.total], pa.int64())], ["event_time", "total"])
            values += encode(batch, SCHEMA, definition=row.definition).to_pylist()
    limits = pa.array([row.limit for row in rows], pa.int64())
    return pa.array([row.key for row in rows], pa.binary()), pa.array(values, pa.binary()), limits


@pytest.fixture
def store(address: RedisAddress) -> Iterator[RedisOnlineStore]:
    with redis.Redis.from_url(address.url) as client:
        client.flushall()
    with open_redis(address) as opened:
        yield opened


def content(store: RedisOnlineStore, keys: list[bytes]) -> Stored:
    found: Stored = {}
    for key, [value] in zip(keys, store.read(keys, [FIELD]), strict=True):
        if value is not None:
            row = decode(value, SCHEMA)
            found[key] = (row.definition, row.event_time_us, row.values[0])
    return found


@pytest.mark.parametrize("ttl", [None, TTL])
def test_random_writes_limits_and_removals_follow_the_rules(store: RedisOnlineStore, ttl: int | None) -> None:
    draw = random.Random(20240101)
    keys = [b"entity %d" % i for i in range(30)]
    stored: Stored = {}
    seen: Counter[str] = Counter()
    for _ in range(300):
        with_limits = draw.random() < 0.5
        rows = [
            Row(
                key=draw.choice(keys),
                definition=draw.choices((1, 2, 3), (80, 18, 2))[0] if stored else 1,
                event_time=draw.choice(TIMES),
                total=None if draw.random() < 0.3 else draw.randrange(1000),
                limit=draw.choice([None, *TIMES]) if with_limits else None,
            )
            for _ in range(draw.choice((1, 3, 70)))
        ]
        names, values, limits = packed(rows)
        options = {"limits": limits} if with_limits else {}
        counts = store.write(names, values, field=FIELD, ttl_us=ttl, now_us=NOW, **options)
        expected = Counter(written(stored, row, ttl=ttl) for row in rows)
        assert {name: getattr(counts, name) for name in EVENTS} == {name: expected[name] for name in EVENTS}
        assert content(store, keys) == stored
        seen += expected
        if draw.random() < 0.05:
            # Begin again, so that definitions do not only rise and keys are new.
            store.delete(keys, [FIELD])
            stored.clear()
    assert min(seen[name] for name in EVENTS if name != "expired") > 100, seen
    assert bool(seen["expired"]) == (ttl is not None)


def put(store: RedisOnlineStore, *rows: Row, ttl: int | None = None) -> WriteCounts:
    keys, values, limits = packed(list(rows))
    return store.write(keys, values, field=FIELD, ttl_us=ttl, now_us=NOW, limits=limits)


def value(age: int, total: int = 1, *, definition: int = 1, limit: int | None = None) -> Row:
    return Row(b"k", definition, NOW - age, total, None if limit is None else NOW - limit)


def gone(age: int, *, definition: int = 1) -> Row:
    return Row(b"k", definition, NOW - age, None, None)


@pytest.mark.parametrize(
    ("stored", "offered", "outcome", "left"),
    [
        # (age, total): a smaller age is newer
        (value(5), value(9, 2, limit=5), "written", (9, 2)),  # exactly the limit
        (value(4), value(9, 2, limit=5), "kept_newer", (4, 1)),  # another writer's newer value
        (value(5), value(5, 2, limit=9), "written", (5, 2)),  # a limit before the row's own time means nothing
        (value(4), value(5, 2, limit=9), "kept_newer", (4, 1)),
        (value(5, definition=2), value(9, 2, limit=0), "kept_newer", (5, 1)),  # a limit is within one definition
        (value(5), gone(5), "removed", None),
        (value(5), gone(4), "removed", None),
        (value(5), gone(6), "kept_newer", (5, 1)),
        (value(5), gone(6, definition=2), "removed", None),  # the later definition has no such entity
        (value(5, definition=2), gone(0), "kept_newer", (5, 1)),
    ],
)
def test_limits_and_removals_reach_up_to_their_time(
    store: RedisOnlineStore, stored: Row, offered: Row, outcome: str, left: tuple[int, int] | None
) -> None:
    put(store, stored)
    counts = put(store, offered)
    assert dataclasses.replace(counts, bytes=0) == WriteCounts(**{outcome: 1})
    found = content(store, [b"k"]).get(b"k")
    assert (found and (NOW - found[1], found[2])) == left


def test_a_removal_of_nothing_is_counted_and_a_key_goes_with_its_last_field(
    store: RedisOnlineStore, address: RedisAddress
) -> None:
    assert put(store, gone(0)) == WriteCounts(absent=1)
    put(store, value(5))
    with redis.Redis.from_url(address.url) as client:
        client.hset(b"k", b"support:1", b"another group")
        assert put(store, gone(5)) == WriteCounts(removed=1)
        assert client.hgetall(b"k") == {b"support:1": b"another group"}
        client.hdel(b"k", b"support:1")
        put(store, value(5))
        put(store, gone(5))
        assert not client.exists(b"k")


def test_a_value_past_its_ttl_takes_back_what_its_limit_names_and_nothing_older(store: RedisOnlineStore) -> None:
    """The newest row was deleted and the one before it is past its ttl: nothing may be read, so nothing may stay."""
    put(store, value(5))
    assert put(store, value(TTL + 1, limit=5), ttl=TTL) == WriteCounts(removed=1)
    assert content(store, [b"k"]) == {}
    assert put(store, value(TTL + 1, limit=5), ttl=TTL) == WriteCounts(expired=1)
    put(store, value(TTL + 9))
    assert put(store, value(TTL + 1, limit=5), ttl=TTL) == WriteCounts(expired=1)
    assert content(store, [b"k"]) == {b"k": (1, NOW - TTL - 9, 1)}


def test_a_removal_knows_no_ttl(store: RedisOnlineStore) -> None:
    put(store, value(TTL + 5))
    assert put(store, gone(TTL + 5), ttl=TTL) == WriteCounts(removed=1)


def test_as_many_limits_as_keys_are_asked_for(store: RedisOnlineStore) -> None:
    keys, values, limits = packed([value(1), value(2)])
    with pytest.raises(ValueError, match="2 keys for 1 limits"):
        store.write(keys, values, field=FIELD, ttl_us=None, now_us=NOW, limits=limits[:1])
