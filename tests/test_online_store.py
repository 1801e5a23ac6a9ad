"""One contract for every online store, and what Redis alone has: expiry, the script, and its refusals.

The Redis is a real one, started here. Times are near the present, since Redis expires by its own clock.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import random
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import redis

from connectors import redis_online, watermarks
from connectors.codec import CodecError, ValueSchema, decode, encode, event_time_of
from connectors.online_store import OnlineStore, WriteCounts
from connectors.receipts import Load
from connectors.redis_online import (
    BYTES_PER_CALL,
    ENTITIES_PER_CALL,
    ENTITIES_TOGETHER,
    EXPIRY_MARGIN_MS,
    WRITE_SCRIPT,
    RedisAddress,
    RedisOnlineStore,
    WriteRows,
    open_redis,
)
from connectors.redis_stream import new_fields
from feature_defs.errors import OnlineStoreError, UsageError
from tests.waiting import free_port

SECOND = 1_000_000
# A day ahead: however long the other tests take, Redis' clock does not reach an expiry in here.
NOW = (time.time_ns() // 86_400_000_000_000 + 2) * 86_400 * SECOND  # a midnight to come
FIELD = b"purchases:1"
SCHEMA = ValueSchema.of([("total", "bigint")])


@pytest.fixture
def server(address: RedisAddress) -> Iterator[redis.Redis]:
    """The server behind the store, emptied, for looking inside."""
    with redis.Redis.from_url(address.url) as client:
        client.flushall()
        yield client


@pytest.fixture(params=["redis"])
def store(request: pytest.FixtureRequest, address: RedisAddress, server: redis.Redis) -> Iterator[OnlineStore]:
    opened = {"redis": open_redis}[request.param](address)
    with closing(opened):
        yield opened


def packed(*rows: tuple[int, int], definition: int = 1) -> pa.BinaryArray:
    """(event_time, total) rows as packed values."""
    times = pa.array([event_time for event_time, _ in rows], pa.int64()).cast(pa.timestamp("us", "UTC"))
    totals = pa.array([total for _, total in rows], pa.int64())
    return encode(pa.record_batch([times, totals], ["event_time", "total"]), SCHEMA, definition=definition)


def put(
    store: OnlineStore, key: bytes, event_time: int, total: int = 1, *, ttl: int | None = None, field: bytes = FIELD
) -> WriteCounts:
    return store.write(pa.array([key]), packed((event_time, total)), field=field, ttl_us=ttl, now_us=NOW)


def got(store: OnlineStore, key: bytes, field: bytes = FIELD) -> tuple[int, int] | None:
    """(event_time, total), or None."""
    value = store.read([key], [field])[0][0]
    if value is None:
        return None
    row = decode(value, SCHEMA)
    return row.event_time_us, row.values[0]


def size_of(values: pa.Array) -> int:
    return sum(map(len, values.to_pylist()))


# --- the contract of every online store -------------------------------------------------------------------------------


def test_what_is_written_is_read_in_the_order_asked(store: OnlineStore) -> None:
    counts = store.write(pa.array([b"a", b"b"]), packed((NOW, 1), (NOW, 2)), field=FIELD, ttl_us=None, now_us=NOW)
    put(store, b"b", NOW, 3, field=b"support:1")
    found = store.read([b"b", b"nobody", b"a"], [b"support:1", FIELD])
    totals = [[value and decode(value, SCHEMA).values[0] for value in values] for values in found]
    assert totals == [[3, 2], [None, None], [None, 1]]
    assert counts == WriteCounts(written=2, bytes=2 * (17 + 1 + 1 + 1))


@pytest.mark.parametrize(
    ("stored", "offered", "kept"),
    [
        ((1, NOW), (2, NOW - 1), (2, NOW - 1)),
        ((2, NOW - 1), (1, NOW), (2, NOW - 1)),
        ((2, NOW), (2, NOW - 1), (2, NOW)),
        ((2**32 - 1, 0), (2**31, NOW), (2**32 - 1, 0)),
    ],
)
def test_newer_definition_wins_whatever_the_times(
    store: OnlineStore, stored: tuple[int, int], offered: tuple[int, int], kept: tuple[int, int]
) -> None:
    """A redefined group's newest row may be older; a job with the old definition must not bring its value back."""
    for definition, event_time in (stored, offered):
        value = packed((event_time, definition), definition=definition)
        store.write(pa.array([b"k"]), value, field=FIELD, ttl_us=None, now_us=NOW)
    assert got(store, b"k") == (kept[1], kept[0])


@pytest.mark.parametrize(
    ("stored", "offered", "kept"),
    [
        (NOW, NOW - 1, NOW),
        (NOW, NOW + 1, NOW + 1),
        # Doubles cannot tell these apart.
        (2**53 + 1, 2**53, 2**53 + 1),
        (2**63 - 1, 2**63 - 2, 2**63 - 1),
        (-(2**63) + 1, -(2**63), -(2**63) + 1),
        # Two's complement, and the border between the halves of the number.
        (-1, -2, -1),
        (0, -1, 0),
        (-1, 0, 0),
        (2**32, 2**32 - 1, 2**32),
        (-(2**32), -(2**32) - 1, -(2**32)),
        (2**31, 2**31 - 1, 2**31),
    ],
)
def test_an_older_event_time_never_replaces_a_newer_one(
    store: OnlineStore, stored: int, offered: int, kept: int
) -> None:
    put(store, b"a", stored)
    counts = put(store, b"a", offered)
    assert (counts.written, counts.kept_newer) == ((1, 0) if offered > stored else (0, 1))
    assert got(store, b"a") == (kept, 1)


def test_an_equal_event_time_is_a_correction_and_replaces(store: OnlineStore) -> None:
    put(store, b"a", NOW, 1)
    assert put(store, b"a", NOW, 2).written == 1
    assert got(store, b"a") == (NOW, 2)


def test_each_field_has_its_own_newest_value(store: OnlineStore) -> None:
    put(store, b"a", NOW, 1)
    put(store, b"a", NOW - SECOND, 2, field=b"support:1")
    assert (got(store, b"a"), got(store, b"a", b"support:1")) == ((NOW, 1), (NOW - SECOND, 2))


def test_of_two_values_for_one_entity_in_one_write_the_newer_stays(store: OnlineStore) -> None:
    values = packed((NOW, 1), (NOW + 2, 2), (NOW + 1, 3))
    counts = store.write(pa.array([b"a"] * 3), values, field=FIELD, ttl_us=None, now_us=NOW)
    assert (counts.written, counts.kept_newer) == (2, 1)
    assert got(store, b"a") == (NOW + 2, 2)


def test_a_load_of_several_streams_is_complete_and_may_be_repeated(store: OnlineStore) -> None:
    count = ENTITIES_TOGETHER + 7
    keys = [b"entity %d" % i for i in range(count)]
    values = packed(*((NOW + i, i) for i in range(count)))
    for _ in range(2):
        counts = store.write(pa.array(keys), values, field=FIELD, ttl_us=None, now_us=NOW)
        assert counts == WriteCounts(written=count, bytes=size_of(values))
    assert [value for [value] in store.read(keys, [FIELD])] == values.to_pylist()


def test_arrow_slices_and_64_bit_offsets_are_written_as_they_are(store: OnlineStore) -> None:
    keys = pa.array([b"x", b"a", b"b"]).slice(1)
    values = packed((NOW, 0), (NOW, 1), (NOW, 2)).cast(pa.large_binary()).slice(1)
    store.write(keys, values, field=FIELD, ttl_us=60 * SECOND, now_us=NOW)
    assert [got(store, key) for key in (b"x", b"a", b"b")] == [None, (NOW, 1), (NOW, 2)]


def test_values_of_megabytes_are_written(store: OnlineStore) -> None:
    schema = ValueSchema.of([("note", "string")])
    times = pa.array([NOW] * 3).cast(pa.timestamp("us", "UTC"))
    batch = pa.record_batch([times, pa.array(["x" * 3_000_000, "", None])], ["event_time", "note"])
    keys = pa.array([b"a", b"b", b"c"])
    store.write(keys, encode(batch, schema, definition=1), field=FIELD, ttl_us=None, now_us=NOW)
    found = [decode(value, schema).values[0] for [value] in store.read(keys.to_pylist(), [FIELD]) if value]
    assert found == ["x" * 3_000_000, "", None]


def test_a_value_past_its_ttl_is_counted_and_not_written(store: OnlineStore) -> None:
    put(store, b"a", NOW - 20 * SECOND, 1)
    counts = put(store, b"a", NOW - 10 * SECOND - 1, 2, ttl=10 * SECOND)
    assert counts == WriteCounts(expired=1)
    assert got(store, b"a") == (NOW - 20 * SECOND, 1)


def test_a_value_past_its_ttl_takes_away_what_it_would_have_replaced(store: OnlineStore) -> None:
    """A newer value of its definition up to the limit, any value of an older definition."""
    put(store, b"a", NOW, 1)
    put(store, b"b", NOW, 1)
    for key, definition in ((b"a", 1), (b"b", 2)):
        counts = store.write(
            pa.array([key]),
            packed((NOW - 20 * SECOND, 2), definition=definition),
            field=FIELD,
            ttl_us=10 * SECOND,
            now_us=NOW,
            limits=pa.array([NOW]),
        )
        assert (counts, got(store, key)) == (WriteCounts(removed=1), None)


def test_a_value_exactly_as_old_as_its_ttl_is_not_expired(store: OnlineStore) -> None:
    """By the time of the load; the hour keeps the server's clock out of it."""
    hour = 3600 * SECOND
    counts = store.write(
        pa.array([b"a", b"b"]), packed((NOW, 1), (NOW - 1, 2)), field=FIELD, ttl_us=hour, now_us=NOW + hour
    )
    assert (counts.written, counts.expired) == (1, 1)
    assert (got(store, b"a"), got(store, b"b")) == ((NOW, 1), None)


def test_a_deleted_field_is_gone_and_the_others_stay(store: OnlineStore) -> None:
    put(store, b"a", NOW, 1)
    put(store, b"a", NOW, 2, field=b"support:1")
    assert store.delete([b"a", b"nobody"], [FIELD]) == 1
    assert (got(store, b"a"), got(store, b"a", b"support:1")) == (None, (NOW, 2))
    assert store.delete([], [FIELD]) == store.delete([b"a"], []) == 0


def test_nothing_written_and_nothing_read_is_no_error(store: OnlineStore) -> None:
    nothing = pa.array([], pa.binary())
    for ttl in (None, SECOND):
        assert store.write(nothing, nothing, field=FIELD, ttl_us=ttl, now_us=NOW) == WriteCounts()
    assert store.read([], [FIELD]) == []
    assert store.read([b"a", b"b"], []) == [[], []]


def test_what_is_not_packed_is_refused_before_anything_is_written(store: OnlineStore) -> None:
    values = pa.array([packed((NOW, 1))[0].as_py(), b"something else, long enough"])
    with pytest.raises(CodecError):
        store.write(pa.array([b"a", b"b"]), values, field=FIELD, ttl_us=None, now_us=NOW)
    with pytest.raises(ValueError, match="2 keys with 1 null"):
        store.write(pa.array([b"a", None]), packed((NOW, 1), (NOW, 2)), field=FIELD, ttl_us=None, now_us=NOW)
    with pytest.raises(ValueError, match="1 keys"):
        store.write(pa.array([b"a"]), packed((NOW, 1), (NOW, 2)), field=FIELD, ttl_us=None, now_us=NOW)
    assert got(store, b"a") is None


def write_shuffled(address: RedisAddress, now: int, seed: int) -> WriteCounts:
    """One writer of several: 20 entities, 50 event_times each, in its own order. Another process has another NOW."""
    rows = [(b"entity %d" % entity, now + age) for entity in range(20) for age in range(50)]
    random.Random(seed).shuffle(rows)
    counts = WriteCounts()
    with open_redis(address) as store:
        for start in range(0, len(rows), 100):
            some = rows[start : start + 100]
            values = packed(*((event_time, event_time % 1000) for _, event_time in some))
            keys = pa.array([key for key, _ in some])
            counts += store.write(keys, values, field=FIELD, ttl_us=3600 * SECOND, now_us=now)
    return counts


def test_threads_and_processes_at_once_leave_the_newest(store: OnlineStore, address: RedisAddress) -> None:
    counts: list[WriteCounts] = []
    threads = [
        threading.Thread(target=lambda seed: counts.append(write_shuffled(address, NOW, seed)), args=[seed])
        for seed in range(4)
    ]
    for thread in threads:
        thread.start()
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        counts += pool.starmap(write_shuffled, [(address, NOW, 10), (address, NOW, 11)], chunksize=1)
    for thread in threads:
        thread.join()
    assert [count.written + count.kept_newer for count in counts] == [1000] * 6
    newest = (NOW + 49, (NOW + 49) % 1000)
    assert [got(store, b"entity %d" % entity) for entity in range(20)] == [newest] * 20


def write_definition(address: RedisAddress, now: int, definition: int) -> WriteCounts:
    """One job of several: the later its definition, the older its rows."""
    counts = WriteCounts()
    with open_redis(address) as store:
        for _ in range(20):
            values = packed(*[(now - definition, definition)] * 20, definition=definition)
            keys = pa.array([b"entity %d" % entity for entity in range(20)])
            counts += store.write(keys, values, field=FIELD, ttl_us=3600 * SECOND, now_us=now)
    return counts


def test_of_jobs_with_several_definitions_at_once_the_latest_definition_stays(
    store: OnlineStore, address: RedisAddress
) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        counts = pool.starmap(write_definition, [(address, NOW, number) for number in (4, 3, 2, 1)], chunksize=1)
    assert [count.written + count.kept_newer for count in counts] == [400] * 4
    assert counts[0].written == 400
    assert [got(store, b"entity %d" % entity) for entity in range(20)] == [(NOW - 4, 4)] * 20


# --- Redis: when a key expires ----------------------------------------------------------------------------------------


def expires_at(server: redis.Redis, key: bytes) -> float | None:
    """Seconds after NOW, without the margin, or None for a key that stays."""
    left = server.pttl(key)
    assert left != -2, "the key is gone"
    return None if left == -1 else (time.time() * 1000 + left - EXPIRY_MARGIN_MS - NOW / 1000) / 1000


@pytest.mark.parametrize(
    ("writes", "expected"),
    [
        # (field, seconds after now, ttl in seconds) ...; the key expires so many seconds after now
        ([("a", 0, 60)], 60),
        ([("a", -50, 60)], 10),
        ([("a", 0, 60), ("b", 0, 90)], 90),
        ([("a", 0, 90), ("b", 0, 60)], 90),
        ([("a", 0, 60), ("a", 5, 60)], 65),
        ([("a", 5, 60), ("a", 0, 600)], 65),  # the older value was not written
        ([("a", 0, 60), ("a", 0, 60)], 60),
        ([("a", 0, None)], None),
        ([("a", 0, 60), ("b", 0, None)], None),
        ([("b", 0, None), ("a", 0, 60)], None),
    ],
)
def test_a_key_expires_when_its_last_group_would(
    store: OnlineStore, server: redis.Redis, writes: list[tuple[str, int, int | None]], expected: int | None
) -> None:
    for field, after, ttl in writes:
        put(store, b"k", NOW + after * SECOND, ttl=ttl and ttl * SECOND, field=field.encode())
    found = expires_at(server, b"k")
    assert found is None if expected is None else found == pytest.approx(expected, abs=0.5)


def test_an_expired_key_is_gone_and_starts_anew(store: OnlineStore, server: redis.Redis) -> None:
    put(store, b"k", NOW, ttl=60 * SECOND)
    server.pexpire(b"k", 1)
    time.sleep(0.01)
    assert got(store, b"k") is None
    put(store, b"k", NOW - 5 * SECOND, 2, ttl=60 * SECOND)
    assert got(store, b"k") == (NOW - 5 * SECOND, 2)
    assert expires_at(server, b"k") == pytest.approx(55, abs=0.5)


@pytest.mark.parametrize("tells", [True, False], ids=["plain", "in blocks"])
def test_new_keys_are_written_without_the_script_and_others_by_it(
    store: OnlineStore, server: redis.Redis, monkeypatch: pytest.MonkeyPatch, tells: bool
) -> None:
    """Plain commands go on as long as all is new; one key that is there, or twice in a write, ends them for a while."""
    if not tells:
        monkeypatch.setattr(RedisOnlineStore, "_expired", lambda self: None)
    values = packed(*[(NOW, number) for number in range(1000)])
    keys = pa.array([b"entity %d" % number for number in range(1000)])

    def calls_of_the_script(*, some: slice = slice(None), **options: int | None) -> int:
        server.config_resetstat()
        counts = store.write(keys[some], values[some], field=FIELD, now_us=NOW, **{"ttl_us": None, **options})
        assert counts == WriteCounts(written=len(keys[some]), bytes=size_of(values[some]))
        return server.info("commandstats").get("cmdstat_evalsha", {"calls": 0})["calls"]

    server.script_load(WRITE_SCRIPT)
    assert calls_of_the_script() == 0
    assert calls_of_the_script() == 1000 / ENTITIES_PER_CALL  # all are there
    server.flushall()
    assert calls_of_the_script(some=slice(0, 100)) == 2  # not tried again yet
    assert calls_of_the_script(some=slice(100, 200)) == 0
    assert calls_of_the_script(some=slice(200, 300), ttl_us=60 * SECOND) == 2  # expiries are the script's
    server.delete(*keys[:300].to_pylist())
    assert calls_of_the_script(some=slice(0, 1)) == 0
    # only the block with the one that is there; of plain commands also what was on its way
    assert calls_of_the_script(some=slice(0, 100)) == (2 if tells else 1)
    assert [value for [value] in store.read(keys[:100].to_pylist(), [FIELD])] == values[:100].to_pylist()


@pytest.mark.parametrize("is_left", [True, False], ids=["there", "expired meanwhile"])
def test_plain_commands_are_repeated_when_a_key_came_that_expires(
    store: OnlineStore, server: redis.Redis, monkeypatch: pytest.MonkeyPatch, is_left: bool
) -> None:
    """Another group's first write, which comes in between, would take our value with it when it expires."""

    def while_another_writes(*args: Any) -> Any:
        server.hset(b"k", b"support:1", b"theirs")
        server.pexpire(b"k", 60_000 if is_left else 1)
        if not is_left:
            time.sleep(0.01)
            assert not server.exists(b"k")
        return new_fields(*args)

    monkeypatch.setattr(redis_online, "new_fields", while_another_writes)
    server.config_resetstat()
    assert put(store, b"k", NOW) == WriteCounts(written=1, bytes=size_of(packed((NOW, 1))))
    assert server.info("commandstats")["cmdstat_evalsha"]["calls"] > 0
    assert expires_at(server, b"k") is None
    assert got(store, b"k") == (NOW, 1)


def test_a_value_that_a_cut_off_writer_left_under_a_key_that_expires_stays(
    store: OnlineStore, server: redis.Redis
) -> None:
    """The block had written it, and the script that takes the expiry away never ran."""
    put(store, b"k", NOW, ttl=60 * SECOND, field=b"support:1")
    server.hset(b"k", FIELD, packed((NOW, 1))[0].as_py())
    assert put(store, b"k", NOW).written == 1
    assert expires_at(server, b"k") is None


def test_a_key_outlives_its_ttl_by_the_margin(store: OnlineStore, server: redis.Redis) -> None:
    """A reader at exactly event_time + ttl must find the value, and Redis counts in milliseconds."""
    put(store, b"k", NOW, ttl=60 * SECOND)
    assert expires_at(server, b"k") > 60 - 0.002


def test_a_value_past_its_ttl_by_the_servers_clock_is_counted_as_expired(store: OnlineStore) -> None:
    """A load with a `now` of last year would be dropped by Redis at once; it must not say `written`."""
    year = 365 * 86400 * SECOND
    counts = store.write(pa.array([b"k"]), packed((NOW - year, 1)), field=FIELD, ttl_us=60 * SECOND, now_us=NOW - year)
    assert counts == WriteCounts(expired=1)
    assert got(store, b"k") is None


@pytest.mark.parametrize(("event_time", "ttl"), [(2**63 - 1, 60 * SECOND), (NOW, 2**63 - 1)])
def test_a_ttl_beyond_the_end_of_time_does_not_wrap_around(store: OnlineStore, event_time: int, ttl: int) -> None:
    assert put(store, b"k", event_time, ttl=ttl).written == 1
    assert got(store, b"k") == (event_time, 1)


# --- Redis: how it is sent --------------------------------------------------------------------------------------------


def test_the_script_is_loaded_again_when_the_server_lost_it(store: OnlineStore, server: redis.Redis) -> None:
    put(store, b"a", NOW)
    server.script_flush()
    count = ENTITIES_PER_CALL * 3
    keys = pa.array([b"entity %d" % i for i in range(count)])
    assert store.write(keys, packed(*[(NOW, 1)] * count), field=FIELD, ttl_us=None, now_us=NOW).written == count


def test_a_read_is_one_round_trip(store: OnlineStore, server: redis.Redis) -> None:
    """What arrives together is read from the socket together."""
    store.read([b"a"], [FIELD])
    before = server.info("stats")["total_reads_processed"]
    store.read([b"a", b"b", b"c"], [FIELD, b"support:1"])
    assert server.info("stats")["total_reads_processed"] - before == 2  # and this question itself


def test_large_values_make_smaller_calls() -> None:
    """What is in flight is bounded in bytes too."""
    sizes = {100: ENTITIES_PER_CALL, BYTES_PER_CALL // 4: 4, BYTES_PER_CALL * 2: 1}
    for size, expected in sizes.items():
        values = pa.array([bytes(size)] * 60)
        rows = WriteRows(pa.array([b"k"] * 60), values, None, None)
        counts = [count for part in rows.parts(ENTITIES_PER_CALL) for count in np.diff(part.bounds).tolist()]
        assert counts[0] == expected
        assert sum(counts) == 60


def test_a_connection_closed_while_idle_is_opened_again(store: OnlineStore, server: redis.Redis) -> None:
    put(store, b"a", NOW)
    server.client_kill_filter(_type="normal", skipme=True)
    assert got(store, b"a") == (NOW, 1)


# --- Redis: what is said when it refuses ------------------------------------------------------------------------------


def refused(act: Callable[[], object], problem: str) -> str:
    """The message; it never holds a key, a value or a password."""
    with pytest.raises(OnlineStoreError, match=problem) as caught:
        act()
    message = str(caught.value)
    assert "Hint: " in message
    assert not any(word in message for word in ("hunter2", "private"))
    assert caught.value.__cause__ is None
    return message


@pytest.fixture
def setting(server: redis.Redis) -> Iterator[Callable[[str, object], None]]:
    """Change a setting of the server; it is put back."""
    before: dict[str, object] = {}

    def change(name: str, value: object) -> None:
        before.update(server.config_get(name))
        server.config_set(name, value)

    yield change
    for name, value in before.items():
        server.config_set(name, value)


def test_a_wrong_and_a_missing_password_are_named_and_never_shown(
    address: RedisAddress, setting: Callable[[str, object], None]
) -> None:
    setting("requirepass", "hunter2")
    wrong = replace(address, password="wrong hunter2")
    refused(lambda: open_redis(wrong), "password is wrong or missing")
    refused(lambda: open_redis(address), "password is wrong or missing")
    assert "hunter2" not in repr(wrong) + str(wrong)
    with open_redis(replace(address, password="hunter2")) as store:
        assert put(store, b"a", NOW).written == 1


def test_a_user_without_permission_is_told_so(address: RedisAddress, server: redis.Redis) -> None:
    server.acl_setuser("reader", enabled=True, passwords=["+hunter2"], keys=["tm:*"], commands=["+ping", "+hmget"])
    try:
        with open_redis(replace(address, username="reader", password="hunter2")) as store:
            assert store.read([b"tm:a"], [FIELD]) == [[None]]
            refused(lambda: store.read([b"other"], [FIELD]), "may not run a command or touch a key")
            message = refused(lambda: put(store, b"tm:a", NOW), "may not run a command")
            assert "writing field 'purchases:1'" in message
    finally:
        server.acl_deluser("reader")


def test_the_listed_commands_are_enough_for_a_restricted_user(address: RedisAddress, server: redis.Redis) -> None:
    """The list in the module's docstring, which operators copy."""
    listed = (
        "multi exec evalsha eval script|load exists hget hgetall hset hsetnx hexists hmget hdel "
        "pttl pexpireat persist time ping".split()
    )
    server.acl_setuser(
        "loader", enabled=True, passwords=["+hunter2"], keys=["tm:*"], commands=[f"+{name}" for name in listed]
    )
    server.script_flush()
    try:
        with open_redis(replace(address, username="loader", password="hunter2")) as store:
            put(store, b"tm:a", NOW, ttl=60 * SECOND)
            put(store, b"tm:a", NOW + 1, ttl=60 * SECOND)
            put(store, b"tm:a", NOW + 2)
            assert got(store, b"tm:a") == (NOW + 2, 1)
            assert store.delete([b"tm:a"], [FIELD]) == 1
            load = Load(run="one", definition=1, table_version=1, table_run="a", now_us=NOW)
            assert watermarks.end(store, FIELD, load, watermarks.begin(store, FIELD, load))
            assert watermarks.last_load(store, FIELD) == "one"
    finally:
        server.acl_deluser("loader")


def test_a_refused_connection_names_the_address() -> None:
    port = free_port()
    assert f"redis://127.0.0.1:{port}" in refused(
        lambda: open_redis(RedisAddress(f"redis://127.0.0.1:{port}", password="hunter2")), "refused"
    )
    refused(lambda: open_redis(RedisAddress("unix:///no/such/redis.sock")), "refused")


def test_an_unknown_host_is_told_from_a_refusing_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)  # asking a real name server may take seconds
    refused(lambda: open_redis(RedisAddress("redis://no-such-host.invalid:6379")), "host name is unknown")


def test_a_server_that_does_not_answer_is_given_up_in_time() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        address = RedisAddress(f"redis://127.0.0.1:{silent.getsockname()[1]}", timeout_seconds=0.1)
        started = time.monotonic()
        refused(lambda: open_redis(address), "no answer in time")
        assert time.monotonic() - started < 1


def test_full_memory_stops_the_load(
    store: OnlineStore, server: redis.Redis, setting: Callable[[str, object], None]
) -> None:
    """Also when it fills up under a load that has begun."""
    put(store, b"a", NOW)
    setting("maxmemory", 1)
    message = refused(lambda: put(store, b"private", NOW), "memory is full")
    assert "writing field 'purchases:1' failed" in message
    assert got(store, b"a") == (NOW, 1)
    server.config_set("maxmemory", server.info("memory")["used_memory"] + 500_000)
    count = 100_000
    keys = pa.array([b"private %d" % i for i in range(count)])
    values = packed(*[(NOW, 1)] * count)
    refused(lambda: store.write(keys, values, field=FIELD, ttl_us=None, now_us=NOW), "memory is full")


def test_a_read_only_replica_is_refused(store: OnlineStore, server: redis.Redis) -> None:
    put(store, b"a", NOW)
    server.replicaof("127.0.0.1", 1)
    try:
        refused(lambda: put(store, b"a", NOW + 1), "read-only replica")
        assert got(store, b"a") == (NOW, 1)
    finally:
        server.replicaof("NO", "ONE")


def connecting_problem(address: RedisAddress) -> set[str]:
    try:
        open_redis(address).close()
    except OnlineStoreError as error:
        return {error.problem}
    return set()


def test_a_loading_server_is_told_from_a_broken_one(
    address: RedisAddress, server: redis.Redis, setting: Callable[[str, object], None]
) -> None:
    """A loading Redis answers after every 2 MB; the delay is per key."""
    for name in "abcdefghij":
        server.set(name, os.urandom(2_500_000))
    setting("key-load-delay", 30_000)
    with redis.Redis.from_url(address.url) as other:
        reload = threading.Thread(target=lambda: other.execute_command("DEBUG", "RELOAD"))
        reload.start()
        # Until the load begins, the server answers as ever.
        problems: set[str] = set()
        while reload.is_alive() and not problems:
            problems |= connecting_problem(address)
        reload.join()
    assert problems == {"connecting failed: it is still loading its data"}


def test_a_prefix_that_something_else_uses_is_noticed(store: OnlineStore, server: redis.Redis) -> None:
    server.set(b"text", "private")
    server.hset(b"hash", FIELD, "private")
    refused(lambda: put(store, b"text", NOW), "holds something that is no hash")
    refused(lambda: put(store, b"hash", NOW), "did not write")
    refused(lambda: store.read([b"text"], [FIELD]), "holds something that is no hash")
    assert server.hget(b"hash", FIELD) == b"private"


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        ("MOVED 3999 10.0.0.1:6381", "Redis Cluster"),
        ("CROSSSLOT Keys in request don't hash to the same slot", "Redis Cluster"),
        ("CLUSTERDOWN Hash slot not served", "Redis Cluster"),
        ("MISCONF Redis is configured to save RDB snapshots, but it cannot", "cannot save its data"),
        ("ERR unknown command `HMGET`, with args beginning with: `private`", "command is switched off"),
        ("NOREPLICAS Not enough good replicas to write.", "answered NOREPLICAS"),
        ("ERR something about private", "answered ResponseError"),
        ("ERR max number of clients reached", "no connection left"),
    ],
)
def test_replies_of_servers_that_a_test_cannot_start_are_explained(reply: str, problem: str) -> None:
    """One error for each command that arrives, from a socket that is no Redis."""

    def answer(listening: socket.socket) -> None:
        for _ in range(2):  # redis-py connects again after some of these
            connection, _address = listening.accept()
            with connection:
                while received := connection.recv(65536):
                    connection.sendall(f"-{reply}\r\n".encode() * len(re.findall(rb"(?:^|\r\n)\*\d", received)))

    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        thread = threading.Thread(target=answer, args=[listening], daemon=True)
        thread.start()
        address = RedisAddress(f"redis://127.0.0.1:{listening.getsockname()[1]}", timeout_seconds=5)
        refused(lambda: open_redis(address), problem)
        with closing(socket.create_connection(listening.getsockname())):
            pass  # the second one, where redis-py made none
        thread.join(5)


def test_one_refused_call_among_many_fails_the_load(store: OnlineStore, server: redis.Redis) -> None:
    """Every reply is looked at, not only the last."""
    server.set(b"entity 77", "private")
    count = ENTITIES_PER_CALL * 10
    keys = pa.array([b"entity %d" % i for i in range(count)])
    values = packed(*[(NOW, 1)] * count)
    refused(lambda: store.write(keys, values, field=FIELD, ttl_us=None, now_us=NOW), "no hash")
    server.delete(b"entity 77")
    assert store.write(keys, values, field=FIELD, ttl_us=None, now_us=NOW).written == count
    assert event_time_of(store.read([b"entity 77"], [FIELD])[0][0] or b"") == NOW


# --- the address ------------------------------------------------------------------------------------------------------


def test_an_address_travels_to_executors() -> None:
    address = RedisAddress("rediss://host:6380/1", password="hunter2", username="loader")
    assert pickle.loads(pickle.dumps(address)) == address
    assert "hunter2" not in repr(address)


@pytest.mark.parametrize(
    ("url", "prefix"),
    [
        ("http://host", "tm"),
        ("host:6379", "tm"),
        ("redis://:hunter2@host", "tm"),
        ("redis://user@host", "tm"),
        ("redis://host?password=hunter2", "tm"),
        ("redis://host", ""),
        ("redis://host", "a:b"),
    ],
)
def test_an_address_that_cannot_be_or_shows_a_password_is_refused(url: str, prefix: str) -> None:
    with pytest.raises(UsageError) as caught:
        RedisAddress(url, key_prefix=prefix)
    assert "hunter2" not in str(caught.value)
