"""The memory of our keys, worked out, against used_memory of a real Redis; and what a server tells of itself."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import redis

from connectors import embedded_redis
from connectors.redis_memory import block_bytes, hash_bytes, server_memory, slots_bytes
from connectors.redis_online import open_redis

COUNT = 12_000
BUFFERS = 70_000  # of connections, which come and go


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    made = tmp_path_factory.mktemp("redis")
    embedded_redis.start(made)
    yield made
    embedded_redis.stop(made)


@pytest.mark.parametrize(("expires", "compact_value"), [(True, 64), (False, 1024)])
@pytest.mark.parametrize(
    ("key", "field", "values"),
    [(18, 6, [44]), (22, 20, [30, 60, 60, 90]), (40, 35, [100, 300]), (300, 25, [5000, 300]), (22, 20, [])],
)
def test_memory_of_keys_is_what_redis_counts(
    folder: Path, key: int, field: int, values: list[int], compact_value: int, expires: bool
) -> None:
    """No values: drawn anew for each key, one to four of them."""
    draw = random.Random(3)
    with open_redis(embedded_redis.address(folder)) as store, redis.Redis.from_url(store.address.url) as client:
        client.config_set("hash-max-ziplist-value", compact_value)
        client.flushall()
        (server,) = store.memory()
        assert (server.compact_value, server.settings_known, server.keys) == (compact_value, True, 0)
        pipeline = client.pipeline(transaction=False)
        total = 0
        for number in range(COUNT):
            lengths = values or [draw.randrange(20, 200) for _ in range(draw.randrange(1, 5))]
            name = f"t:{number:07}".ljust(key, "x")
            pipeline.hset(name, mapping={f"g{n}".ljust(field, "y"): draw.randbytes(v) for n, v in enumerate(lengths)})
            if expires:
                pipeline.pexpire(name, 10**10)
            total += hash_bytes(server, key, [(field, length) for length in lengths], expires=expires)
            if number % 1000 == 999:
                pipeline.execute()
        total += slots_bytes(server, COUNT, COUNT if expires else 0)
        for _ in range(50):  # a table that grows is two tables for a moment
            (filled,) = store.memory()
            if abs(filled.used_bytes - server.used_bytes - total) < max(total * 0.02, BUFFERS):
                break
            time.sleep(0.1)
    assert (filled.keys, filled.expiring_keys) == (COUNT, COUNT if expires else 0)
    assert total == pytest.approx(filled.used_bytes - server.used_bytes, rel=0.02, abs=BUFFERS)


def test_blocks_are_rounded_up_as_the_allocators_do() -> None:
    assert [block_bytes("libc", size) for size in (1, 24, 25, 40, 41)] == [24, 24, 40, 40, 56]
    sizes = {1: 8, 9: 16, 17: 32, 24: 32, 65: 80, 128: 128, 129: 160, 161: 192, 257: 320, 600: 640, 1025: 1280}
    assert {size: block_bytes("jemalloc", size) for size in sizes} == sizes


def test_nothing_takes_nothing() -> None:
    server = server_memory({"used_memory": 1}, None)
    assert hash_bytes(server, 20, [], expires=False) == 0
    assert slots_bytes(server, 0, 0) == 0


def test_server_that_tells_little_is_taken_to_be_as_it_comes() -> None:
    """Managed services forbid CONFIG and leave out what they like of INFO."""
    info = {
        "redis_version": "7.2.4",
        "used_memory": 10,
        "maxmemory": 20,
        "db0": {"keys": 3, "expires": 1},
        "db1": {"keys": 2},
    }
    server = server_memory(info, None)
    assert (server.used_bytes, server.max_bytes, server.keys, server.expiring_keys) == (10, 20, 5, 1)
    assert (server.compact_value, server.settings_known, server.allocator) == (64, False, "jemalloc")
    assert (server.is_listpack, server.evicts, server.evicts_expiring) == (True, False, False)
    older = server_memory(
        {"redis_version": "6.2.14", "used_memory": 10, "maxmemory_policy": "allkeys-lru"},
        {"hash-max-ziplist-value": "128", "hash-max-ziplist-entries": "32"},
    )
    assert (older.compact_value, older.compact_entries, older.settings_known) == (128, 32, True)
    assert (older.is_listpack, older.evicts, older.max_bytes) == (False, True, 0)


def test_user_who_may_not_ask_config_learns_the_rest(folder: Path) -> None:
    with open_redis(embedded_redis.address(folder)) as store, redis.Redis.from_url(store.address.url) as client:
        client.config_set("hash-max-ziplist-value", 1024)
        client.execute_command("ACL", "SETUSER", "default", "-config")
        try:
            (server,) = store.memory()
        finally:
            client.execute_command("ACL", "SETUSER", "default", "+@all")
        assert (server.compact_value, server.settings_known) == (64, False)
        assert server.used_bytes > 0
        assert store.memory()[0].settings_known


def test_keys_of_an_entity_are_found_and_no_others(folder: Path) -> None:
    """Prefix and entity may hold what SCAN takes for a pattern."""
    address = replace(embedded_redis.address(folder), key_prefix="t[m]*?\\")
    with open_redis(address) as store, redis.Redis.from_url(address.url) as client:
        client.flushall()
        wanted = [rf"t[m]*?\:customer:{number}" for number in range(5000)]
        others = ["tm:customer:1", r"t[m]*?\:customer_store:1", r"tmXY\:customer:1", r"t[m]*?\:customer"]
        pipeline = client.pipeline(transaction=False)
        for number, key in enumerate([*wanted, *others]):
            pipeline.hset(key, "g:1" if number % 2 else "g:2", b"x")
        pipeline.execute()
        found = [key for chunk in store.scan("customer") for key in chunk]
        assert {key.decode() for key in found} == set(wanted)
        some = [wanted[0].encode(), wanted[1].encode(), b"nobody"]
        assert store.holds(some, [b"g:1", b"g:2"]) == [[False, True], [True, False], [False, False]]
        assert store.holds([], [b"g:1"]) == []
        assert store.holds(some, []) == [[], [], []]
