"""Generations and several online stores: what clients read while, after and instead of a load."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import redis

from connectors import embedded_redis
from connectors.generations import begin, generations, pointer_key, prefix_of, remove_unread, roll_back, switch
from connectors.online_answer import PRESENT, Answer
from connectors.redis_online import RedisAddress, open_redis
from connectors.watermarks import loaded_fields
from feature_defs import Entity, Feature, FeatureGroup, Service, Source
from feature_defs.errors import OnlineStoreError, UsageError
from jobs.compute import compute
from jobs.materialize import (
    MaterializeReport,
    dry_run,
    dry_run_of_generation,
    materialize,
    materialize_generation,
)
from jobs.online import online_generations, online_get, online_rollback
from jobs.online_address import online_address
from jobs.place import Place
from jobs.settings import OnlineSettings
from jobs.store import Store
from jobs.verify import audited, verify
from tests.lab import NOW, Table, put, register
from tests.redis_cluster import running
from tests.test_online_client import Shop, counting_proxy, customers, group, packed, shop

__all__ = ["shop"]  # a fixture

spend = group("spend", amount="bigint")


# --- the pointer, and who reads by it ---------------------------------------------------------------------------------


@pytest.fixture
def moving(shop: Shop) -> Shop:
    """A shop whose generation n says n."""
    shop.register(spend)
    shop.load(spend, {"c1": (0,), "c2": (0,)})
    return replace(shop, address=replace(shop.address, generations=True))


def put_generation(server: redis.Redis | redis.RedisCluster, number: int) -> None:
    """The keys of a generation, all of which say its number."""
    (value,) = packed(spend, [(number,)])
    for key in ("c1", "c2"):
        server.hset(f"{prefix_of('tm', number)}:customer:{key}", "spend:1", value)


def numbers(answer: Answer) -> list[int]:
    return [row["amount"] for row in answer.dicts()]


def test_a_client_reads_the_generation_that_is_switched_to_and_back(moving: Shop) -> None:
    with open_redis(moving.address) as store, moving.open() as client:

        def read() -> list[int]:
            found = numbers(client.get(customers("c1", "c2"), now=NOW))
            assert numbers(moving.get(customers("c1", "c2"))) == found
            return found

        assert read() == [0, 0]
        with pytest.raises(OnlineStoreError, match="no generation to go back to"):
            roll_back(store)
        for number in (1, 2):
            assert begin(store) == number
            assert read() == [number - 1] * 2
            put_generation(moving.server, number)
            assert read() == [number - 1] * 2
            switch(store, number, keeps_before=True)
            assert read() == [number] * 2
        roll_back(store)
        assert read() == [1, 1]
        roll_back(store)
        assert read() == [2, 2]
        assert (generations(store).now, generations(store).before) == (2, 1)


def test_only_what_nobody_reads_is_removed(moving: Shop) -> None:
    moving.server.set("tm:_loaded", "x")
    moving.server.set("tmx:customer:c1", "another prefix")
    with open_redis(moving.address) as store:
        first = begin(store)
        put_generation(moving.server, first)
        put_generation(moving.server, 10)  # of a pointer that was lost, say
        assert remove_unread(store) == 4
        put_generation(moving.server, first)
        switch(store, first, keeps_before=True)
        abandoned = begin(store)
        with pytest.raises(OnlineStoreError, match="no generation to go back to"):
            roll_back(store)
        assert remove_unread(store) == 3  # generation 0
        last = begin(store)
        put_generation(moving.server, abandoned)  # by a run that does not know
        with pytest.raises(OnlineStoreError, match="generation 2 is not the newest any more: another load began"):
            switch(store, abandoned, keeps_before=True)
        assert remove_unread(store) == 2
        assert (generations(store).now, generations(store).loading) == (first, last)
    left = {b"tm:_generation", b"tm~1:customer:c1", b"tm~1:customer:c2", b"tmx:customer:c1"}
    assert set(moving.server.keys()) == left


def test_what_was_done_is_not_done_again_when_its_reply_was_lost(moving: Shop) -> None:
    """redis-py sends a command again after a broken connection."""
    with open_redis(moving.address) as store:
        number = begin(store)
        for _ in range(2):
            switch(store, number, keeps_before=True)
        assert (generations(store).now, generations(store).before) == (number, 0)
        sent: list[tuple[object, ...]] = []
        run = store.run

        def twice(*command: object) -> object:
            sent.append(command)
            return [run(*command) for _ in range(2)][-1]

        store.run = twice  # type: ignore[method-assign]
        roll_back(store)
        assert (generations(store).now, generations(store).before) == (0, number)
        assert [command[0] for command in sent] == ["HGETALL", "EVAL", "HGETALL", "HGETALL"]


def test_there_is_nothing_to_go_back_to_where_nothing_was(moving: Shop) -> None:
    with open_redis(moving.address) as store:
        switch(store, begin(store), keeps_before=False)
        with pytest.raises(OnlineStoreError, match="no generation to go back to"):
            roll_back(store)


def test_the_listed_commands_are_enough_for_generations(moving: Shop) -> None:
    """The list in the docstring of connectors/redis_online.py, which operators copy."""
    listed = "ping info hget eval hincrby hset hdel hgetall hkeys scan unlink".split()
    commands = [f"+{name}" for name in listed]
    moving.server.acl_setuser(
        "switcher", enabled=True, passwords=["+hunter2"], keys=["tm:*", "tm~*"], commands=commands
    )
    try:
        with open_redis(replace(moving.address, username="switcher", password="hunter2")) as store:
            remove_unread(store)
            loaded_fields(store)
            switch(store, begin(store), keeps_before=True)
            put_generation(moving.server, 9)
            assert remove_unread(store) == 4
            roll_back(store)
        assert moving.server.hget(pointer_key("tm"), "now") == b"0"
    finally:
        moving.server.acl_deluser("switcher")


def test_the_generation_is_asked_for_in_the_same_round_trip(moving: Shop) -> None:
    with (
        counting_proxy(moving.address) as (address, turns),
        replace(moving, address=replace(address, generations=True)).open() as client,
        open_redis(moving.address) as store,
    ):
        client.get(customers("c1"), now=NOW)
        turns.clear()
        assert numbers(client.get(customers("c1", "c2"), now=NOW)) == [0, 0]
        assert turns == ["request", "reply"]
        begin(store)
        put_generation(moving.server, 1)
        switch(store, 1, keeps_before=True)
        turns.clear()
        assert numbers(client.get(customers("c1", "c2"), now=NOW)) == [1, 1]
        assert turns == ["request", "reply"] * 2  # once more, when it had moved


def test_no_answer_mixes_generations_while_they_are_switched(moving: Shop) -> None:
    """Threads that share a client, and tasks: each answer is of one generation, and never of one given up before."""
    answers: list[list[int]] = []
    done = threading.Event()
    failed: list[OnlineStoreError] = []

    def read() -> None:
        try:
            while not done.is_set():
                answers.append(numbers(client.get(customers("c1", "c2"), now=NOW)))
        except OnlineStoreError as error:
            failed.append(error)

    async def tasks() -> None:
        async def one() -> None:
            while not done.is_set():
                answers.append(numbers(await other.get(customers("c1", "c2"), now=NOW)))

        async with moving.open_async() as other:
            await asyncio.gather(*(one() for _ in range(3)))

    with open_redis(moving.address) as store, moving.open() as client:
        for number in (1, 2):
            begin(store)
            put_generation(moving.server, number)
            switch(store, number, keeps_before=True)
        threads = [threading.Thread(target=read) for _ in range(3)]
        threads.append(threading.Thread(target=lambda: asyncio.run(tasks())))
        for thread in threads:
            thread.start()
        for _ in range(200):
            roll_back(store)
        done.set()
        for thread in threads:
            thread.join()
    assert not failed
    assert {tuple(answer) for answer in answers} == {(1, 1), (2, 2)}


def test_a_cluster_has_generations_too(tmp_path: Path, moving: Shop) -> None:
    with running(tmp_path / "cluster") as cluster:
        clustered = RedisAddress(cluster.url, generations=True)
        there = replace(moving, address=clustered)
        with open_redis(clustered) as store, redis.RedisCluster.from_url(cluster.url) as server:
            for number in (1, 2):
                assert begin(store) == number
                put_generation(server, number)
                switch(store, number, keeps_before=True)
                assert numbers(there.get(customers("c1", "c2"))) == [number] * 2
            roll_back(store)
            assert numbers(there.get(customers("c1", "c2"))) == [1, 1]
            begin(store)
            assert remove_unread(store) == 2
            assert len(server.keys(target_nodes=redis.RedisCluster.PRIMARIES)) == 3


# --- loads ------------------------------------------------------------------------------------------------------------

customer = Entity("customer", keys={"customer_id": "string"})
source = Source("rows", path="lake://raw/rows", format="parquet", event_time="event_time")
totals = FeatureGroup("totals", entity=customer, source=source, features=[Feature("amount", "bigint")], online=True)
TYPES = "event_time timestamp, amount bigint"


@pytest.fixture
def stores(place: Place, tmp_path: Path) -> Iterator[Place]:
    """A place with two online stores, of which the first has generations."""
    here, cloud = (OnlineSettings(kind="embedded", folder=str(tmp_path / name)) for name in ("here", "cloud"))
    online = dataclasses.replace(here, generations=True)
    yield Place(dataclasses.replace(place.settings, online=online, online_stores={"cloud": cloud}))
    for name in ("here", "cloud"):
        embedded_redis.stop(tmp_path / name)


def computed(place: Place, rows: str, table: Table) -> None:
    put(place, table(f"customer_id | event_time | amount\n{rows}", TYPES), "lake://raw/rows")
    register(place, customer, source, totals, Service("churn", [totals]))
    compute(place, now=NOW)


def amounts(place: Place, store: str = "online") -> list[int | None]:
    found = [
        online_get(place, {"customer_id": name}, group="totals", check=True, now=NOW, store=store)
        for name in ("c1", "c2")
    ]
    return [one.groups[0].values["amount"] if one.groups[0].status == PRESENT else None for one in found]


def load(place: Place, **options: object) -> MaterializeReport:
    return materialize(place, now=NOW, **options)  # type: ignore[arg-type]


def test_a_generation_is_read_when_all_of_it_is_loaded_and_the_one_before_can_be_read_again(
    stores: Place, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed(stores, "c1 | 2026-01-01 | 1\nc2 | 2026-01-01 | 1", table)
    load(stores, stores=["online"])
    with open_redis(online_address(stores)) as store:
        store.run("HSET", "tm:_loaded", "totals:0", "of an older version")
    client = Store(stores).online_client("churn")
    assert client.get({"customer_id": "c1"}, now=NOW).one()["amount"] == 1
    computed(stores, "c1 | 2026-01-02 | 2\nc2 | 2026-01-02 | 2", table)
    forecast = dry_run_of_generation(stores, now=NOW)
    assert (forecast.new_keys, dry_run(stores, now=NOW).new_keys) == (2, 0)

    # A value that is lost before the switch keeps it from happening.
    def losing(place: Place, *arguments: object, **options: object) -> object:
        with redis.Redis.from_url(online_address(place).url) as server:
            server.delete("tm~1:customer:c2")
        return audited(place, *arguments, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr("jobs.materialize.audited", losing)
        told = r"1 is not what the offline tables hold \(totals: 1 missing\); it is not read"
        with pytest.raises(OnlineStoreError, match=told):
            materialize_generation(stores, now=NOW, stores=["online"])
    assert client.get({"customer_id": "c1"}, now=NOW).one()["amount"] == 1

    report = materialize_generation(stores, now=NOW, stores=["online"])
    (switched,) = report.switched
    assert (switched.generation, switched.removed_keys, switched.left_behind) == (2, 2, ("totals v0",))
    assert "clients read generation 2 now; 2 keys of an older one removed" in report.text()
    assert "not in this generation: totals v0" in report.text()
    assert "memory of generation 0, which a load removes" in dry_run_of_generation(stores, now=NOW).text()
    assert client.get({"customer_id": "c1"}, now=NOW).one()["amount"] == 2
    assert amounts(stores) == [2, 2]
    assert verify(stores, now=NOW, sample=None).agrees

    assert online_rollback(stores).text() == "online: clients read generation 0; generation 2 is kept to go back to"
    assert client.get({"customer_id": "c1"}, now=NOW).one()["amount"] == 1
    assert load(stores, stores=["online"]).groups[0].how == "changed"  # from what this generation holds
    assert amounts(stores) == [2, 2]
    online_rollback(stores)
    assert online_generations(stores).now == 2
    assert load(stores, stores=["online"]).groups[0].how == "nothing new"


def test_a_profile_that_does_not_look_for_generations_is_refused(stores: Place, table: Table) -> None:
    computed(stores, "c1 | 2026-01-01 | 1", table)
    with pytest.raises(UsageError, match="Online store 'cloud': its clients do not look for generations"):
        materialize_generation(stores, now=NOW)
    assert online_generations(stores).loading is None  # nothing was begun in the other one either
    materialize_generation(stores, now=NOW, stores=["online"])
    blind = stores.with_online(dataclasses.replace(stores.settings.online, generations=False))
    refused = pytest.raises(UsageError, match="its keys have generations, of which 1 is read")
    with refused:
        load(blind, stores=["online"])
    with refused:
        verify(blind, now=NOW)


def test_every_store_goes_on_from_its_own_last_load_and_one_that_fails_does_not_stop_the_others(
    stores: Place, table: Table, tmp_path: Path
) -> None:
    computed(stores, "c1 | 2026-01-01 | 1\nc2 | 2026-01-01 | 1", table)
    report = load(stores)
    assert [(g.store, g.how, g.written) for g in report.groups] == [("online", "full", 2), ("cloud", "full", 2)]
    assert report.exit_code == 0
    assert "store   group" in report.text()
    assert load(stores, stores=["cloud"]).groups[0].how == "nothing new"

    computed(stores, "c1 | 2026-01-01 | 1\nc2 | 2026-01-02 | 2", table)
    broken = dataclasses.replace(stores.settings.online, kind="redis", url=f"unix://{tmp_path}/gone.sock")
    report = load(stores.with_online(broken))
    assert [(g.store, g.how, g.written) for g in report.groups] == [("cloud", "changed", 2)]
    assert [one.store for one in report.failed] == ["online"]
    assert report.exit_code == 7
    assert "online: FAILED: Redis unix://" in report.text()
    with pytest.raises(OnlineStoreError, match="connection is refused"):
        load(stores.with_online(broken), stores=["online"])

    assert amounts(stores, "cloud") == [1, 2]
    assert [(g.store, g.how) for g in load(stores).groups] == [("online", "changed"), ("cloud", "nothing new")]
    assert amounts(stores) == [1, 2]
    assert verify(stores, now=NOW, store="cloud").agrees
    with pytest.raises(UsageError, match=r"Online store 'clowd': is not in profile 'test' \(online, cloud\)"):
        load(stores, stores=["clowd"])
