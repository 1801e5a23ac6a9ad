"""forecast: what it says of a load is what the load then does to a real Redis; one without room is refused."""

from __future__ import annotations

import dataclasses
import datetime
import re
import time
from typing import Any
from unittest.mock import patch

import pytest
import redis

from connectors.redis_memory import ServerMemory, server_memory
from connectors.redis_online import RedisOnlineStore, open_redis
from feature_defs import Entity, Feature, FeatureGroup, Source
from feature_defs.errors import OnlineStoreError
from jobs.compute import compute
from jobs.forecast import ForecastReport, GroupForecast, _OfEntity, estimated, forecast, size
from jobs.materialize import materialize
from jobs.online_address import online_address
from jobs.place import Place
from tests.lab import put, register

NOW = datetime.datetime.now(datetime.timezone.utc).replace(minute=0, second=0, microsecond=0)
DAY = datetime.timedelta(days=1)
COUNT = 12_000
BUFFERS = 70_000  # of connections, which come and go
customer = Entity("customer", keys={"customer_id": "string"})
source = Source("rows", path="lake://raw/rows", format="parquet", event_time="event_time")


def a_group(name: str, features: dict[str, str], **options: Any) -> FeatureGroup:
    declared = [Feature(feature, kind) for feature, kind in features.items()]
    kept = {"features": declared, "online": True, "offline": "parquet", **options}
    return FeatureGroup(name, entity=customer, source=source, **kept)


GROUPS = (
    a_group("spend", {"amount": "bigint", "note": "string"}, ttl="1d"),
    a_group("views", {"note": "string", "last": "array<int>"}),
)


def used(place: Place) -> int:
    with open_redis(online_address(place)) as store:
        return sum(server.used_bytes for server in store.memory())


def grown(place: Place, before: int, found: ForecastReport) -> int:
    """How much more is used, as soon as that is what was said: tables that grow or shrink are two for a moment."""
    for _ in range(50):
        if abs(used(place) - before - found.added_bytes) < found.added_bytes * 0.02:
            break
        time.sleep(0.1)
    return used(place) - before


def told(place: Place, *groups: str, **options: Any) -> ForecastReport:
    return forecast(place, groups, NOW, **options)


def test_forecast_is_what_the_load_then_does(online_place: Place) -> None:
    """Two groups under one key, one with a ttl: from nothing, with one there, with both there; then without room."""
    rows = online_place.spark.range(COUNT).selectExpr(
        "concat('customer-', id) AS customer_id",
        f"TIMESTAMP'{NOW:%Y-%m-%d %H:%M:%S}Z' "
        "- make_dt_interval(0, CAST(if(id % 5 = 0, 48, id % 12) AS INT)) AS event_time",
        "id AS amount", "repeat('n', CAST(id % 40 AS INT)) AS note", "sequence(0, CAST(id % 9 AS INT)) AS last",
    )  # fmt: skip
    put(online_place, rows, "lake://raw/rows")
    register(online_place, customer, source, *GROUPS)
    compute(online_place, now=NOW)
    alive = sum(number % 5 != 0 for number in range(COUNT))

    empty = used(online_place)
    first = told(online_place, "spend")
    assert first.groups[0].entities == first.entities == alive
    assert (first.groups[0].expired, first.groups[0].present, first.groups[0].one_of) == (COUNT - alive, 0, 2)
    assert first.new_keys == alive
    assert (first.load_seconds, first.warnings) == (None, ())
    assert used(online_place) == pytest.approx(empty, abs=BUFFERS)  # nothing was written
    loaded = materialize(online_place, ["spend"], now=NOW).groups[0]
    assert loaded.written == alive
    assert first.bytes == pytest.approx(loaded.bytes, rel=0.02)
    assert first.added_bytes == pytest.approx(grown(online_place, empty, first), rel=0.03, abs=BUFFERS)

    before = used(online_place)
    both = told(online_place, rate=1000.0)
    assert [group.group for group in both.groups] == ["spend", "views"]
    assert [group.present for group in both.groups] == [alive, 0]
    assert both.new_keys == pytest.approx(COUNT - alive, rel=0.1)
    assert both.load_seconds == pytest.approx((COUNT + alive) / 1000)
    materialize(online_place, now=NOW)
    # with the second group the keys lose their expiry: Redis gives the slots of those back
    assert both.added_bytes == pytest.approx(grown(online_place, before, both), rel=0.05, abs=BUFFERS)

    again = told(online_place)
    assert [group.present for group in again.groups] == [alive, COUNT]
    assert (again.new_keys, again.fits) == (0, True)
    assert abs(again.added_bytes) < 0.02 * used(online_place)
    text = again.text()
    assert "without a limit" in text
    assert "nothing was written" in text
    assert "time: unknown" in text

    with redis.Redis.from_url(online_address(online_place).url) as client:
        # as full as can be: what is there already is replaced
        client.config_set("maxmemory", used(online_place) + 300_000)
        assert told(online_place).fits
        client.config_set("maxmemory-policy", "allkeys-lru")
        (warning,) = told(online_place).warnings
        assert "allkeys-lru: a full server silently drops entities" in warning
        client.config_set("maxmemory-policy", "volatile-ttl")
        assert "groups all have a ttl" in told(online_place).warnings[0]
        client.config_set("maxmemory-policy", "noeviction")

        # the same load into an empty server of half the size it needs
        client.config_set("maxmemory", 0)
        needed = used(online_place) - empty
        client.flushall()
        client.config_set("maxmemory", used(online_place) + needed // 2)
        with pytest.raises(OnlineStoreError) as caught:
            told(online_place)
        assert caught.value.exit_code == 7
        assert re.fullmatch(
            r"the load needs about [\d.]+ MiB more for 1[12],\d{3} new keys, "
            r"and [\d.]+ [KM]iB of its maxmemory of [\d.]+ MiB are used \(noeviction\)",
            caught.value.problem,
        )
        assert "raise maxmemory above" in caught.value.hint
        assert client.dbsize() == 0
        client.config_set("maxmemory", used(online_place) + int(needed * 1.1))
        assert told(online_place).fits
        assert materialize(online_place, now=NOW).groups[1].written == COUNT


def test_sizes_are_written_as_redis_writes_them() -> None:
    assert [size(count) for count in (1, 1023, 1024, 3 << 20, 5 << 29)] == [
        "1 byte", "1,023 bytes", "1.0 KiB", "3.0 MiB", "2.5 GiB",
    ]  # fmt: skip


def test_load_that_fits_to_the_byte_is_not_refused(online_place: Place) -> None:
    """And in a cluster every server must have room for its part."""
    register(online_place, customer, source, *GROUPS)
    groups = [GroupForecast(group.name, 1, 0, 10, 0, 0, 100, 1) for group in GROUPS]
    server = server_memory(
        {"redis_version": "7.0.15", "used_memory": 900, "maxmemory": 1000, "mem_allocator": "libc"}, {}
    )
    of_entity = _OfEntity(tuple(groups), added_bytes=100, new_keys=0, new_expiring=0)

    def report(*servers: ServerMemory, added: int = 100) -> ForecastReport:
        found = dataclasses.replace(of_entity, added_bytes=added * len(servers))
        with (
            patch.object(RedisOnlineStore, "memory", lambda _: servers),
            patch("jobs.forecast._of_entity", lambda *_: found),
        ):
            return estimated(online_place, now=NOW)

    assert report(server).fits
    assert not report(server, added=101).fits
    assert report(dataclasses.replace(server, max_bytes=0), added=10**9).fits
    fuller = dataclasses.replace(server, used_bytes=901)
    three = report(server, fuller, server)
    assert (three.fits, three.full_servers, three.servers, three.max_bytes) == (False, 1, 3, 3000)
    assert "the 3 servers use 2.6 KiB of 2.9 KiB" in three.text()
    small = dataclasses.replace(server, max_bytes=0, machine_bytes=950)
    assert "no maxmemory, and the machine has only 950 bytes" in report(small).text()
    assert report(server, added=-50).text().count("50 bytes less") == 1
