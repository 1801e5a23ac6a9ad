"""Writes and reads in a real Redis Cluster of three masters: a slot moves, one is lost, a master dies."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.crc import key_slot

from connectors.codec import ValueSchema, decode, encode, removal
from connectors.online_store import WriteCounts
from connectors.pacing import TokenBucket
from connectors.redis_cluster import SLOTS, slots_of
from connectors.redis_online import RedisAddress, RedisOnlineStore, open_redis
from connectors.redis_stream import Calls, Route, new_fields
from tests.redis_cluster import Cluster, Server, running
from tests.waiting import until

SECOND = 1_000_000
NOW = (time.time_ns() // 86_400_000_000_000 + 2) * 86_400 * SECOND
FIELD = b"purchases:1"
SCHEMA = ValueSchema.of([("total", "bigint")])


@settings(deadline=None, max_examples=300)
@given(st.lists(st.text("a{}:|é", max_size=8).map(str.encode) | st.binary(max_size=30), max_size=20), st.booleans())
def test_slots_in_bulk_are_those_of_redis(keys: list[bytes], wide: bool) -> None:
    array = pa.array([b"skipped", *keys], pa.large_binary() if wide else pa.binary()).slice(1)
    assert slots_of(array).tolist() == [key_slot(key) for key in keys]


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture
def cluster(started: Cluster) -> Cluster:
    started.empty()
    return started


def rows(count: int, *, age: int = 0, tag: str = "entity") -> tuple[pa.Array, pa.Array]:
    numbers = np.arange(count)
    times = pa.array(np.full(count, NOW - age)).cast(pa.timestamp("us", "UTC"))
    batch = pa.record_batch([times, pa.array(numbers)], ["event_time", "total"])
    return pa.array([f"tm:{tag}:{number}".encode() for number in numbers]), encode(batch, SCHEMA, definition=1)


def owner_of(cluster: Cluster, slot: int) -> Server:
    """The master that has a slot at present."""
    for first, last, (_, port, *_), *_ in cluster.masters[0].slots():
        if first <= slot <= last:
            return next(server for server in cluster.masters if server.port == port)
    raise AssertionError(f"slot {slot} has no master")


def write(store: RedisOnlineStore, keys: pa.Array, values: pa.Array, *, ttl: int | None = None) -> WriteCounts:
    return store.write(keys, values, field=FIELD, ttl_us=ttl, now_us=NOW)


def missing(store: RedisOnlineStore, keys: pa.Array, values: pa.Array) -> int:
    found = store.read(keys.to_pylist(), [FIELD])
    return sum(value != expected for [value], expected in zip(found, values.to_pylist(), strict=True))


def test_every_server_gets_its_keys_and_each_is_counted_once(cluster: Cluster) -> None:
    keys, values = rows(20_000)
    with open_redis(RedisAddress(cluster.url)) as store:
        sent = sum(map(len, values.to_pylist()))
        assert write(store, keys, values, ttl=60 * SECOND) == WriteCounts(written=20_000, bytes=sent)
        assert missing(store, keys, values) == 0
        assert store.read([b"nobody"], [FIELD]) == [[None]]
    sizes = [server.ask("DBSIZE") for server in cluster.masters]
    assert sum(sizes) == 20_000
    assert min(sizes) > 6000


def test_commands_of_mixed_slots_end_when_it_turns_out_a_cluster(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []

    def counting(route: Route, calls: Calls, bucket: TokenBucket | None) -> np.ndarray:
        sent.append(len(calls))
        return new_fields(route, calls, bucket)

    monkeypatch.setattr("connectors.redis_online.new_fields", counting)
    with open_redis(RedisAddress(cluster.url)) as store:
        for number in range(4):
            assert write(store, *rows(200, tag=f"entity{number}")).written == 200
    assert len(sent) <= 1  # before the first redirection


def test_the_rules_of_a_write_hold_in_a_cluster(cluster: Cluster) -> None:
    keys, values = rows(500)
    with open_redis(RedisAddress(cluster.url)) as store:
        write(store, keys, values)
        assert write(store, *rows(500, age=1)).kept_newer == 500
        _, older = rows(500, age=5)
        limits = pa.array([NOW if number % 2 else None for number in range(500)], pa.int64())
        counts = store.write(keys, older, field=FIELD, ttl_us=None, now_us=NOW, limits=limits)
        assert (counts.written, counts.kept_newer) == (250, 250)
        gone = removal(1, np.full(500, NOW - 5))
        counts = store.write(keys, gone, field=FIELD, ttl_us=None, now_us=NOW)
        assert (counts.removed, counts.kept_newer) == (250, 250)
        assert store.delete(keys.to_pylist(), [FIELD]) == 250
        assert missing(store, keys, pa.array([None] * 500, pa.binary())) == 0


def test_two_values_of_one_entity_leave_the_newer(cluster: Cluster) -> None:
    keys, newer = rows(100)
    _, older = rows(100, age=1)
    with open_redis(RedisAddress(cluster.url)) as store:
        both = pa.concat_arrays([newer, older])
        counts = write(store, pa.concat_arrays([keys, keys]), both)
        assert (counts.written, counts.kept_newer) == (100, 100)
        assert missing(store, keys, newer) == 0


def test_keys_with_braces_go_where_redis_puts_them(cluster: Cluster) -> None:
    keys, values = rows(300, tag="{everybody}")
    with open_redis(RedisAddress(cluster.url)) as store:
        assert write(store, keys, values).written == 300
        assert missing(store, keys, values) == 0
    assert sorted(server.ask("DBSIZE") for server in cluster.masters) == [0, 0, 300]


def test_a_slot_that_moves_is_followed(cluster: Cluster) -> None:
    """First it is on its way, which is told by ASK, then it has moved, which is told by MOVED."""
    keys, values = rows(3000)
    slot = int(slots_of(keys)[0])
    there = keys.filter(pa.array(slots_of(keys) == slot)).to_pylist()
    source = owner_of(cluster, slot)
    target = next(server for server in cluster.masters if server is not source)
    with open_redis(RedisAddress(cluster.url)) as store:
        assert write(store, *rows(3000, tag="other")).written == 3000  # knows the slots from now on
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source.name)
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", target.name)
        try:
            assert write(store, keys, values).written == 3000
            assert set(there) <= set(target.ask("KEYS", "*"))
            assert source.ask("CLUSTER", "COUNTKEYSINSLOT", slot) == 0
        finally:
            for server in (target, source, *cluster.masters):
                server.ask("CLUSTER", "SETSLOT", slot, "NODE", target.name)
        _, later = rows(3000, age=-1)
        assert write(store, keys, later).written == 3000
        assert missing(store, keys, later) == 0


def test_a_cluster_in_which_a_slot_is_not_served_is_waited_for(cluster: Cluster) -> None:
    keys, values = rows(1000)
    slot = int(slots_of(keys)[0])
    owner = owner_of(cluster, slot)
    owner.ask("CLUSTER", "DELSLOTS", slot)
    back = threading.Timer(1.0, lambda: owner.ask("CLUSTER", "ADDSLOTS", slot))
    back.start()
    with open_redis(RedisAddress(cluster.url)) as store:
        assert write(store, keys, values).written == 1000
        back.join()
        until(lambda: missing(store, keys, values) == 0)


def test_a_master_that_dies_during_a_load_is_replaced_by_its_replica(tmp_path: Path) -> None:
    """What its replica had not yet got is lost with it; the same load again makes it whole."""
    count = 8000
    keys, values = rows(count)
    with running(tmp_path, replicas=1) as cluster:
        with open_redis(RedisAddress(cluster.url), rate=count / 2) as store:
            dead = threading.Timer(0.7, cluster.masters[0].kill)
            dead.start()
            counts = write(store, keys, values)
            dead.join()
            assert counts.rows == counts.written == count
            assert write(store, keys, values).written == count
            assert missing(store, keys, values) == 0
        assert cluster.replicas[0].role()[0] == b"master"
        assert SLOTS // 3 * count // SLOTS // 2 < cluster.replicas[0].ask("DBSIZE")


def test_values_read_back_are_those_written(cluster: Cluster) -> None:
    keys, values = rows(10)
    with open_redis(RedisAddress(cluster.url)) as store:
        write(store, keys, values)
        found = [decode(value, SCHEMA).values[0] for [value] in store.read(keys.to_pylist(), [FIELD]) if value]
    assert found == list(range(10))
