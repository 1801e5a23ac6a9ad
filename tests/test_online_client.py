"""The online client, against a real Redis: what is served, what is not and why, and what happens when Redis is away."""

from __future__ import annotations

import asyncio
import doctest
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import redis
from hypothesis import HealthCheck, given, settings

from connectors import codec, embedded_redis
from connectors.file_store import open_file_store
from connectors.online_answer import (
    DAMAGED,
    DEFAULT,
    EXPIRED,
    MISSING,
    NOT_LOADED,
    OTHER_SCHEMA,
    PRESENT,
    UNREACHABLE,
    Answer,
    Freshness,
)
from connectors.online_client import AsyncOnlineClient, OnlineClient
from connectors.online_service import service_plan
from connectors.redis_online import RedisAddress
from connectors.registry import Registry
from feature_defs import Entity, Feature, FeatureGroup, Service, Source
from feature_defs.data_types import FEATURE_TYPES, KEY_TYPES, parse
from feature_defs.errors import OnlineStoreError, UsageError
from feature_defs.loading import load
from jobs.compute import compute
from jobs.materialize import materialize
from jobs.place import Place
from jobs.settings import OnlineSettings
from jobs.store import Store
from tests import redis_cluster
from tests.conftest import settings_in
from tests.lab import checked, put, register
from tests.test_codec import ARROW, TYPE_TEXTS, arrow_type, batches, schema_of

ROOT = Path(__file__).resolve().parent.parent
UTC = timezone.utc
NOW = datetime(2026, 2, 1, tzinfo=UTC)
HOUR, DAY, MICROSECOND = timedelta(hours=1), timedelta(days=1), timedelta(microseconds=1)

customer = Entity("customer", keys={"customer_id": "string"})
pair = Entity("pair", keys={"customer_id": "string", "category": "string"})
product = Entity("product", keys={"product_id": "bigint"})
source = Source("rows", path="lake://raw/rows", format="parquet", event_time="event_time")


def group(name: str, entity: Entity = customer, /, *, options: Mapping[str, Any] | None = None, **features: str):
    """A group with these features: group("spend", amount="bigint")."""
    found = [Feature(feature, kind) for feature, kind in features.items()]
    kept: dict[str, Any] = {"online": True, **(options or {})}
    return FeatureGroup(name, entity=entity, source=source, features=found, **kept)


def packed(of: FeatureGroup, rows: Sequence[Sequence[Any]], at: datetime = NOW, *, definition: int = 1) -> list[bytes]:
    """Rows of a group's features as materialize packs them."""
    columns: dict[str, Any] = {"event_time": pa.array([at] * len(rows), ARROW["timestamp"])}
    for number, feature in enumerate(of.features):
        items = [row[number] for row in rows]
        entries = [[*item.items()] if isinstance(item, dict) else item for item in items]
        columns[feature.name] = pa.array(entries, arrow_type(feature.type))
    schema = codec.ValueSchema.of_group(of)
    return codec.encode(pa.table(columns), schema, definition=definition).to_pylist()


@dataclass
class Shop:
    """A registry in a folder, and a Redis of its own."""

    registry: Registry
    address: RedisAddress
    server: redis.Redis

    def register(self, *groups: FeatureGroup, service: Sequence[Any] | None = None) -> None:
        told = {"applied_at": "2026-01-01T00:00:00+00:00", "applied_by": "test", "message": ""}
        entities = {id(found.entity): found.entity for found in groups}.values()
        churn = Service("churn", service or groups)
        numbers = self.registry.numbers()
        self.registry.commit(checked(*entities, source, *groups, churn), after=numbers[-1] if numbers else 0, **told)

    def load(self, of: FeatureGroup, rows: Mapping[Any, Sequence[Any]], at: datetime = NOW) -> None:
        """{key, or the parts of a key: features} into Redis."""
        assert isinstance(of.entity, Entity)
        types = [parse(kind) for kind in of.entity.keys.values()]
        field = codec.field_name(of.name, of.version)
        for key, value in zip(rows, packed(of, [*rows.values()], at), strict=True):
            parts = key if isinstance(key, tuple) else (key,)
            self.server.hset(codec.encode_key(parts, of.entity.name, key_types=types, prefix="tm"), field, value)

    def open(self, **options: Any) -> OnlineClient:
        return OnlineClient.open(self.registry, "churn", self.address, **options)

    def open_async(self, **options: Any) -> AsyncOnlineClient:
        return AsyncOnlineClient.open(self.registry, "churn", self.address, **options)

    def get(self, keys: Any, *, now: datetime = NOW, **options: Any) -> Answer:
        """The answer of a client of its own, the same of both kinds."""

        async def read() -> Answer:
            async with self.open_async(**options) as client:
                return await client.get(keys, now=now)

        with self.open(**options) as client:
            answer = client.get(keys, now=now)
        other = asyncio.run(read())
        assert repr(replace(other, error=None)) == repr(replace(answer, error=None))
        return answer


@pytest.fixture
def shop(address: RedisAddress, tmp_path: Path) -> Iterator[Shop]:
    uri = f"file://{tmp_path}/registry"
    with redis.Redis.from_url(address.url) as server:
        server.flushall()
        yield Shop(Registry(open_file_store(uri), uri), address, server)


spend = group("spend", amount="bigint", city="string", options={"ttl": "1d"})
visits = group("visits", visits="int", last_page="string")


@pytest.fixture
def churn(shop: Shop) -> Shop:
    """A service of two groups, three customers in the one, two of them in the other."""
    shop.register(spend, visits)
    shop.load(spend, {"c1": (1, "Graz"), "c2": (2, None)})
    shop.load(spend, {"c3": (3, "Linz")}, NOW - DAY)
    shop.load(visits, {"c1": (10, "/"), "c3": (30, None)}, NOW - HOUR)
    return shop


def customers(*names: str) -> list[dict[str, Any]]:
    return [{"customer_id": name} for name in names]


# --- what is served ---------------------------------------------------------------------------------------------------


def test_features_of_several_groups_and_entities_come_in_the_order_asked(churn: Shop) -> None:
    answer = churn.get(customers("c3", "c1", "c3"))
    assert answer.dicts() == [
        {"amount": 3, "city": "Linz", "visits": 30, "last_page": None},
        {"amount": 1, "city": "Graz", "visits": 10, "last_page": "/"},
        {"amount": 3, "city": "Linz", "visits": 30, "last_page": None},
    ]
    assert answer.features == list(answer.dicts()[0])
    assert len(answer) == 3
    assert answer.missing() == [{}, {}, {}]


def test_one_entity_is_asked_for_by_its_keys_alone(churn: Shop) -> None:
    assert churn.get({"customer_id": "c1"}).one() == {"amount": 1, "city": "Graz", "visits": 10, "last_page": "/"}
    with pytest.raises(UsageError, match="has 2 rows, expected one"):
        churn.get(customers("c1", "c2")).one()


def test_only_the_features_of_the_service_are_told_in_its_order(shop: Shop) -> None:
    shop.register(spend, visits, service=[visits["last_page"], spend["city", "amount"]])
    shop.load(spend, {"c1": (1, "Graz")})
    assert list(shop.get({"customer_id": "c1"}).one().items()) == [("last_page", None), ("city", "Graz"), ("amount", 1)]


def test_what_is_not_there_is_an_answer_and_no_error(churn: Shop) -> None:
    """A null is a value; an entity, a group or a key that is null is missing."""
    answer = churn.get([*customers("c2", "nobody"), {"customer_id": None}])
    nothing = dict.fromkeys(answer.features)
    assert answer.dicts() == [{**nothing, "amount": 2}, nothing, nothing]
    assert answer.statuses()[0] == {"amount": PRESENT, "city": PRESENT, "visits": MISSING, "last_page": MISSING}
    assert answer.status("amount") == [PRESENT, MISSING, MISSING]
    assert answer.missing()[0] == {"visits": MISSING, "last_page": MISSING}
    with pytest.raises(UsageError, match="did you mean 'amount'"):
        answer.status("amuont")


def test_a_value_as_old_as_its_ttl_is_served_and_an_older_one_is_not(churn: Shop) -> None:
    for ids in (["c3"], ["c3"] * 20):  # read one by one, and as columns
        at_the_end = churn.get(customers(*ids))
        assert at_the_end.dicts()[-1]["amount"] == 3
        answer = churn.get(customers(*ids, "c1"), now=NOW + MICROSECOND)
        assert answer.dicts()[-2] == {"amount": None, "city": None, "visits": 30, "last_page": None}
        assert answer.dicts()[-1]["amount"] == 1
        assert answer.missing()[0] == {"amount": EXPIRED, "city": EXPIRED}
        event_time = NOW - DAY
        assert answer.freshness()[0]["spend"] == Freshness(EXPIRED, event_time, DAY + MICROSECOND)
        assert answer.freshness()[0]["visits"] == Freshness(PRESENT, NOW - HOUR, HOUR + MICROSECOND)


def test_freshness_is_told_by_group_and_row(churn: Shop) -> None:
    found = churn.get(customers("c2", "nobody")).freshness()
    nothing = Freshness(MISSING, None, None)
    assert found == [
        {"spend": Freshness(PRESENT, NOW, timedelta(0)), "visits": nothing},
        {"spend": nothing, "visits": nothing},
    ]


def test_the_clock_decides_when_no_time_is_given(churn: Shop) -> None:
    """And a naive time is UTC."""
    churn.load(spend, {"c1": (7, None)}, datetime.now(UTC) - timedelta(seconds=5))
    with churn.open() as client:
        answer = client.get({"customer_id": "c1"})
        assert timedelta(seconds=5) <= (answer.freshness()[0]["spend"].age or DAY) < timedelta(minutes=5)
        naive = client.get({"customer_id": "c3"}, now=NOW.replace(tzinfo=None))
    assert naive.one()["amount"] == 3


def test_a_service_of_several_entities_takes_all_their_keys_and_reads_each_entity_once(shop: Shop) -> None:
    spent = group("spent", pair, spent="double")
    prices = group("prices", product, price="decimal(10,2)")
    shop.register(spend, spent, prices)
    shop.load(spend, {"c1": (1, "Graz")})
    shop.load(spent, {("c1", "a|b"): (1.5,), ("c1|a", "b"): (9.0,)})
    shop.load(prices, {7: (Decimal("1.50"),), -8: (None,)})
    rows = [
        {"customer_id": "c1", "category": name, "product_id": number} for name in ("a|b", "b") for number in (7, -8)
    ]
    answer = shop.get(rows)
    assert [tuple(row.values()) for row in answer.dicts()] == [
        (1, "Graz", 1.5, Decimal("1.50")), (1, "Graz", 1.5, None),
        (1, "Graz", None, Decimal("1.50")), (1, "Graz", None, None),
    ]  # fmt: skip
    assert answer.status("spent") == [PRESENT, PRESENT, MISSING, MISSING]
    before = calls(shop)
    with shop.open() as client:
        client.get(rows)
    assert calls(shop) - before == 1 + 2 + 2  # one customer, two pairs, two products


def test_keys_of_every_type_find_their_entity(shop: Shop) -> None:
    kinds = ["decimal(12,2)" if kind == "decimal" else kind for kind in KEY_TYPES]
    values = {
        "string": "a|b\\", "bigint": -5, "int": 23, "boolean": True, "date": date(2026, 1, 31),
        "timestamp": datetime(2026, 1, 31, 12, tzinfo=UTC), "decimal(12,2)": Decimal("1.5"), "binary": b"\x00\xff",
    }  # fmt: skip
    every = Entity("every", keys={f"k{number}": kind for number, kind in enumerate(kinds)})
    amounts = group("amounts", every, amount="bigint")
    shop.register(amounts)
    shop.load(amounts, {tuple(values[kind] for kind in kinds): (5,)})
    given = {f"k{number}": values[kind] for number, kind in enumerate(kinds)}
    assert shop.get(given).one() == {"amount": 5}
    assert shop.get({**given, "k1": -6}).missing() == [{"amount": MISSING}]


EVERY = group("every", **{f"f{number}": kind for number, kind in enumerate(TYPE_TEXTS)})


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches())
def test_every_type_comes_back_as_it_was_packed(shop: Shop, batch: Any) -> None:
    """As Python values and as Arrow, of a few entities and of many; as text, which tells -0.0 from 0.0."""
    types, rows, _ = batch
    every = group("every", **{f"f{number}": kind for number, kind in enumerate(types)})
    assert schema_of(types).names == tuple(feature.name for feature in every.features)
    shop.server.flushall()
    shop.load(every, {f"c{number}": row for number, row in enumerate(rows)})
    plan = service_plan("every", checked(customer, source, every), [(every, every.features)], key_prefix="tm")
    for ids in (range(len(rows)), [*range(len(rows))] * 3, [*range(len(rows) + 1)] * 5):
        expected = [rows[number] if number < len(rows) else [None] * len(types) for number in ids]
        with OnlineClient(plan, shop.address) as client:
            answer = client.get(customers(*(f"c{number}" for number in ids)), now=NOW)
        assert repr([list(row.values()) for row in answer.dicts()]) == repr(expected)
        table = answer.arrow()
        assert [str(field.type) for field in table.schema] == [str(arrow_type(kind)) for kind in types]
        entries = [[[*v.items()] if isinstance(v, dict) else v for v in row] for row in expected]
        columns = [pa.array([row[i] for row in entries], field.type) for i, field in enumerate(table.schema)]
        assert repr(table.to_pylist()) == repr(pa.table(columns, schema=table.schema).to_pylist())
        assert len(answer.pandas()) == len(expected)


def test_arrow_and_pandas_have_the_declared_types_whatever_was_found(shop: Shop) -> None:
    """A model must not get doubles today and whole numbers tomorrow."""
    assert {kind.partition("(")[0].partition("<")[0] for kind in TYPE_TEXTS} == set(FEATURE_TYPES)
    shop.register(EVERY)
    big = 2**53 + 1
    whole = [big if kind == "bigint" else 7 if kind == "int" else None for kind in TYPE_TEXTS]
    shop.load(EVERY, {"full": whole, "empty": [None] * len(TYPE_TEXTS)})
    asked = [["full"], ["empty"], ["nobody"], ["full", "empty", "nobody"] * 4, []]
    with shop.open() as client:
        answers = [client.get(customers(*names), now=NOW) for names in asked]
    assert len({str(answer.arrow().schema) for answer in answers}) == 1
    frames = [answer.pandas() for answer in answers]
    assert len({str([*frame.dtypes]) for frame in frames}) == 1
    bigint = frames[3][f"f{TYPE_TEXTS.index('bigint')}"]
    assert (str(bigint.dtype), bigint[0], bigint.isna().sum()) == ("Int64", big, 8)


def test_pandas_has_maps_as_dicts_and_times_in_utc(shop: Shop) -> None:
    odd = group("odd", at="timestamp", counts="map<string,int>", flag="boolean")
    shop.register(odd)
    shop.load(odd, {"c1": (NOW, {"b": 1, "a": None}, True)})
    frame = shop.get(customers("c1", "c2")).pandas()
    assert [str(kind) for kind in frame.dtypes] == ["datetime64[us, UTC]", "object", "boolean"]
    assert (frame["at"][0], frame["counts"][0], frame["flag"][0]) == (NOW, {"a": None, "b": 1}, True)
    assert frame.isna().loc[1].all()


def test_features_of_one_name_are_refused_or_prefixed_with_their_group(shop: Shop) -> None:
    other = group("other", amount="double")
    shop.register(spend, other)
    shop.load(spend, {"c1": (1, "Graz")})
    shop.load(other, {"c1": (2.5,)})
    with pytest.raises(UsageError, match=r"feature 'amount' is in several of its groups.*\n.*prefix=True"):
        shop.open()
    answer = shop.get({"customer_id": "c1"}, prefix=True)
    assert answer.one() == {"spend__amount": 1, "spend__city": "Graz", "other__amount": 2.5}


def test_groups_that_are_not_online_and_unknown_services_are_refused(shop: Shop) -> None:
    shop.register(replace(spend, online=False))
    with pytest.raises(UsageError, match="'spend': is not online"):
        shop.open()
    with pytest.raises(UsageError, match="'chrun': is not in the registry"):
        OnlineClient.open(shop.registry, "chrun", shop.address)


# --- what was written under other definitions -------------------------------------------------------------------------

BEFORE = group("spend", amount="bigint", city="string", gone="double", code="int")
AFTER = group("spend", code="string", city="string", added="double", amount="bigint")


@pytest.mark.parametrize("count", [1, 20])
def test_a_value_of_an_earlier_definition_gives_the_features_that_are_the_same(shop: Shop, count: int) -> None:
    """By name and type. An added feature is null until the next load; one of another type is never taken for it."""
    shop.register(BEFORE)
    ids = [f"c{number}" for number in range(count)]
    shop.load(BEFORE, dict.fromkeys(ids, (5, "Graz", 1.5, 9)))
    shop.register(AFTER)
    answer = shop.get(customers(*ids))
    assert answer.dicts() == [{"code": None, "city": "Graz", "added": None, "amount": 5}] * count
    assert answer.statuses()[-1] == {"code": OTHER_SCHEMA, "city": PRESENT, "added": NOT_LOADED, "amount": PRESENT}
    assert answer.freshness()[-1]["spend"].event_time == NOW
    shop.load(AFTER, {ids[0]: ("x", "Linz", 2.5, 6)})
    both = shop.get(customers(*ids))
    assert both.dicts()[0] == {"code": "x", "city": "Linz", "added": 2.5, "amount": 6}
    assert both.missing()[0] == {}
    assert both.dicts()[1:] == answer.dicts()[1:]


def test_a_value_of_a_definition_that_the_registry_does_not_know_is_of_another_schema(churn: Shop) -> None:
    churn.load(group("spend", amount="bigint", other="string"), {"c1": (5, "x")})
    for ids in (["c1"], ["c1", "c2"] * 10):
        answer = churn.get(customers(*ids))
        assert answer.dicts()[0] == {"amount": None, "city": None, "visits": 10, "last_page": "/"}
        assert answer.missing()[0] == {"amount": OTHER_SCHEMA, "city": OTHER_SCHEMA}
        assert answer.freshness()[0]["spend"] == Freshness(OTHER_SCHEMA, None, None)


def test_definitions_of_another_version_are_not_mixed_with_those_of_this_one(shop: Shop) -> None:
    """A version is a field of its own; a value of it under this field is nobody's."""
    shop.register(BEFORE)
    shop.register(replace(AFTER, version=2))
    old = group("spend", amount="bigint", city="string")
    shop.register(replace(old, version=3))
    for of in (BEFORE, AFTER):
        shop.load(replace(of, version=3), {"c1": [None] * 4})
        assert shop.get({"customer_id": "c1"}).status("amount") == [OTHER_SCHEMA]


def test_a_running_client_learns_of_a_definition_that_was_loaded_meanwhile(shop: Shop) -> None:
    """It goes on to serve its own features."""
    shop.register(BEFORE)
    shop.load(BEFORE, {"c1": (5, "Graz", 1.5, 9)})

    async def read() -> Answer:
        async with later:
            return await later.get({"customer_id": "c1"}, now=NOW)

    later = shop.open_async()
    with shop.open() as client:
        assert client.get({"customer_id": "c1"}, now=NOW).one()["amount"] == 5
        shop.register(AFTER)
        shop.load(AFTER, {"c1": ("x", "Linz", 2.5, 6)})
        answer = client.get({"customer_id": "c1"}, now=NOW)
    assert answer.one() == {"amount": 6, "city": "Linz", "gone": None, "code": None}
    assert answer.missing() == [{"gone": NOT_LOADED, "code": OTHER_SCHEMA}]
    assert asyncio.run(read()).dicts() == answer.dicts()


def test_an_unknown_schema_does_not_make_every_request_read_the_registry(
    churn: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    churn.load(group("spend", amount="bigint", other="string"), {"c1": (5, "x")})
    looks = []
    numbers = Registry.numbers
    with churn.open() as client:
        monkeypatch.setattr(Registry, "numbers", lambda self: looks.append(1) or numbers(self))
        for _ in range(5):
            client.get({"customer_id": "c1"}, now=NOW)
    assert len(looks) == 1


def test_damaged_bytes_are_never_served_and_leave_the_other_entities_alone(churn: Shop) -> None:
    value = packed(spend, [(1, "Graz")])[0]
    wrong = [value[:-1], value + b"x", value[:20], b"\x01" + value[1:], b"", b"something else"]
    names = [f"d{number}" for number in range(len(wrong))]
    for name, damaged in zip(names, wrong, strict=True):
        churn.server.hset(f"tm:customer:{name}", "spend:1", damaged)
    expected = [DAMAGED] * 3 + [OTHER_SCHEMA] * 3
    answer = churn.get(customers("c1", *names, "c2"))
    assert answer.status("amount") == [PRESENT, *expected, PRESENT]
    assert [row["amount"] for row in answer.dicts()] == [1, *[None] * 6, 2]
    assert churn.get(customers(names[0])).status("amount") == [DAMAGED]


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        (
            {"customer": "c1"},
            "key 'customer_id' is missing; 'customer' is not a key\nHint: did you mean 'customer_id'?",
        ),
        ({"customer_id": "c1", "extra": 1}, "'extra' is not a key"),
        ([{"customer_id": "c1"}, {}], "key 'customer_id' is missing"),
        ("secret", "a row is a mapping of the keys \\(customer_id\\), found a str"),
        ({"customer_id": 12345}, "Key 'customer_id': is string, and the int given cannot be one"),
        ({"customer_id": b"secret"}, "is string, and the bytes given"),
        ([{"customer_id": None}, {"customer_id": "c1"}, {"customer_id": 12345}], "is string, and the int given"),
        ({"customer_id": float("nan")}, "is string, and the float given"),
        ({"customer_id": "\ud800"}, "is string, and the str given"),
    ],
)
def test_wrong_names_and_types_of_keys_are_refused_without_their_values(churn: Shop, keys: Any, problem: str) -> None:
    with churn.open() as client, pytest.raises(UsageError, match=problem) as caught:
        client.get(keys)
    assert not any(word in str(caught.value) for word in ("secret", "12345"))


def test_the_column_of_a_composite_key_that_is_wrong_is_named(shop: Shop) -> None:
    amounts = group("amounts", Entity("both", keys={"a": "string", "b": "bigint"}), amount="bigint")
    shop.register(amounts)
    with shop.open() as client, pytest.raises(UsageError, match="Key 'b': is bigint, and the str given"):
        client.get({"a": "x", "b": "y"})


# --- a fallback -------------------------------------------------------------------------------------------------------


def test_defaults_stand_where_nothing_was_found_and_say_so(churn: Shop) -> None:
    for ids in (["c2"], ["c2"] * 10):
        answer = churn.get(customers(*ids, "nobody"), fallback={"amount": 0, "visits": -1})
        assert answer.dicts()[0] == {"amount": 2, "city": None, "visits": -1, "last_page": None}
        assert answer.dicts()[-1] == {"amount": 0, "city": None, "visits": -1, "last_page": None}
        assert answer.statuses()[0] == {
            "amount": PRESENT, "city": PRESENT, "visits": DEFAULT, "last_page": MISSING
        }  # fmt: skip
        assert answer.missing()[0] == {"visits": MISSING, "last_page": MISSING}
        assert answer.error is None


def test_defaults_may_be_computed_from_keys_and_what_is_missing(churn: Shop) -> None:
    asked = []

    def fallback(keys: Mapping[str, Any], missing: Mapping[str, str]) -> Mapping[str, Any]:
        asked.append((dict(keys), dict(missing)))
        return {"city": f"of {keys['customer_id']}", "amount": 99}

    with churn.open(fallback=fallback) as client:
        answer = client.get(customers("c1", "c2", "c9"), now=NOW)
    assert [row["city"] for row in answer.dicts()] == ["Graz", None, "of c9"]
    assert [row["amount"] for row in answer.dicts()] == [1, 2, 99]
    assert asked[0] == ({"customer_id": "c2"}, {"visits": MISSING, "last_page": MISSING})
    assert len(asked) == 2


def test_the_fallback_answers_while_redis_is_away(churn: Shop) -> None:
    away = replace(churn, address=RedisAddress("unix:///no/such/redis.sock", timeout_seconds=1))
    answer = away.get(customers("c1", "c2"), fallback={"amount": 0})
    assert answer.dicts() == [{"amount": 0, "city": None, "visits": None, "last_page": None}] * 2
    assert answer.statuses()[0]["amount"] == DEFAULT
    assert answer.missing() == [dict.fromkeys(answer.features, UNREACHABLE)] * 2
    assert "the connection is refused" in str(answer.error)
    assert answer.arrow().schema == churn.get(customers("c1")).arrow().schema
    with pytest.raises(OnlineStoreError, match="reading 1 keys failed: the connection is refused"):
        away.get({"customer_id": "c1"})


@pytest.mark.parametrize(
    ("fallback", "problem"),
    [
        ({"amount": "none"}, "'amount': the fallback's value is a str, expected bigint"),
        ({"amount": True}, "'amount': the fallback's value is a bool, expected bigint"),
        ({"amount": 2**63}, "expected bigint"),
        ({"amount": 1.5}, "expected bigint"),
        ({"counts": [1.5]}, "expected array<int>"),
        ({"born": NOW}, "expected date"),
        ({"seen": 7}, "expected timestamp"),
        ({"raw": "text"}, "expected binary"),
        ({"city": 1}, "expected string"),
        ({"amuont": 1}, "the fallback names 'amuont', which it does not have\nHint: did you mean 'amount'"),
    ],
)
def test_a_default_of_the_wrong_type_or_name_is_refused_at_once(shop: Shop, fallback: Any, problem: str) -> None:
    shop.register(spend, group("odd", counts="array<int>", born="date", seen="timestamp", raw="binary"))
    with pytest.raises(UsageError, match=problem):
        shop.open(fallback=fallback)
    with shop.open(fallback=lambda _keys, _missing: fallback) as client, pytest.raises(UsageError, match=problem):
        client.get({"customer_id": "nobody"})


def test_defaults_take_the_type_of_their_feature(shop: Shop) -> None:
    types = {"at": "timestamp", "counts": "map<string,int>", "price": "decimal(5,2)", "ratio": "double"}
    odd = group("odd", **types, list="array<int>", small="float")
    shop.register(odd)
    fallback = {"at": NOW.replace(tzinfo=None), "counts": {"a": 1}, "price": Decimal("1.5"), "ratio": 1, "list": []}
    fallback["small"] = 0.5
    answer = shop.get({"customer_id": "c1"}, fallback=fallback)
    expected = {"at": NOW, "counts": {"a": 1}, "price": Decimal("1.50"), "ratio": 1.0, "list": []}
    expected["small"] = 0.5
    assert repr(answer.one()) == repr(expected)
    assert answer.arrow().to_pylist()[0]["counts"] == [("a", 1)]
    with shop.open(fallback=fallback) as client:
        client.get({"customer_id": "c1"}).one()["counts"]["b"] = 2
        assert client.get({"customer_id": "c1"}).one()["counts"] == {"a": 1}


# --- the round trip ---------------------------------------------------------------------------------------------------


def calls(shop: Shop) -> int:
    return shop.server.info("commandstats").get("cmdstat_hmget", {}).get("calls", 0)


@contextmanager
def counting_proxy(target: RedisAddress) -> Iterator[tuple[RedisAddress, list[str]]]:
    """An address before the server's, and the turns of who spoke: a round trip is one request and one reply."""
    turns: list[str] = []

    def pump(name: str, source_socket: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):  # the other direction has closed both
            while chunk := source_socket.recv(1 << 20):
                if not turns or turns[-1] != name:
                    turns.append(name)
                sink.sendall(chunk)

    def serve(listening: socket.socket) -> None:
        with closing(listening.accept()[0]) as client, socket.socket(socket.AF_UNIX) as server:
            server.connect(target.url.removeprefix("unix://"))
            back = threading.Thread(target=pump, args=["reply", server, client], daemon=True)
            back.start()
            pump("request", client, server)

    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        thread = threading.Thread(target=serve, args=[listening], daemon=True)
        thread.start()
        yield RedisAddress(f"redis://127.0.0.1:{listening.getsockname()[1]}"), turns


@pytest.mark.parametrize("count", [1, 100])
def test_a_request_is_one_round_trip(churn: Shop, count: int) -> None:
    """However many entities and groups, over TCP as over a unix socket."""
    ids = [f"c{number % 4}" for number in range(count)]
    with (
        counting_proxy(churn.address) as (address, turns),
        OnlineClient.open(churn.registry, "churn", address) as client,
    ):
        client.get(customers("c1"))
        turns.clear()
        before = calls(churn)
        assert len(client.get(customers(*ids), now=NOW).dicts()) == count
        assert turns == ["request", "reply"]
        assert calls(churn) - before == len(set(ids))


def test_no_rows_and_null_keys_ask_nothing(churn: Shop) -> None:
    away = replace(churn, address=RedisAddress("unix:///no/such/redis.sock"))
    assert away.get([]).dicts() == []
    assert away.get([]).arrow().num_rows == len(away.get([]).pandas()) == 0
    assert away.get({"customer_id": None}).status("amount") == [MISSING]


def test_a_user_that_may_only_read_the_prefix_is_enough(churn: Shop) -> None:
    churn.server.acl_setuser("reader", enabled=True, passwords=["+hunter2"], keys=["tm:*"], commands=["+hmget"])
    try:
        own = replace(churn, address=replace(churn.address, username="reader", password="hunter2"))
        assert own.get({"customer_id": "c1"}).one()["amount"] == 1
        wrong = replace(churn, address=replace(churn.address, username="reader", password="hunter3"))
        with pytest.raises(OnlineStoreError, match="password is wrong") as caught:
            wrong.get({"customer_id": "c1"})
        assert "hunter" not in str(caught.value)
        other = replace(churn, address=replace(own.address, key_prefix="other"))
        with pytest.raises(OnlineStoreError, match="may not run a command or touch a key"):
            other.get({"customer_id": "c1"})
    finally:
        churn.server.acl_deluser("reader")


def test_a_key_that_is_no_hash_is_told_and_the_connection_stays_in_step(churn: Shop) -> None:
    churn.server.set("tm:customer:text", "private")
    with churn.open(connections=1) as client:
        for _ in range(3):
            with pytest.raises(OnlineStoreError, match="holds something that is no hash") as caught:
                client.get(customers("c1", "text", "c2"), now=NOW)
            assert "private" not in str(caught.value)
            assert client.get(customers("c2", "c1"), now=NOW).dicts()[0]["amount"] == 2

    async def read() -> None:
        async with churn.open_async(connections=1) as later:
            for _ in range(3):
                with pytest.raises(OnlineStoreError, match="holds something that is no hash"):
                    await later.get(customers("c1", "text", "c2"), now=NOW)
                assert (await later.get(customers("c2", "c1"), now=NOW)).dicts()[0]["amount"] == 2

    asyncio.run(read())


# --- a server that is slow, gone and back -----------------------------------------------------------------------------


def test_a_connection_closed_while_idle_is_made_anew(churn: Shop) -> None:
    async def read() -> None:
        async with churn.open_async() as client:
            for _ in range(3):
                assert (await client.get({"customer_id": "c1"}, now=NOW)).one()["amount"] == 1
                churn.server.client_kill_filter(_type="normal", skipme=True)

    asyncio.run(read())
    with churn.open() as client:
        for _ in range(3):
            assert client.get({"customer_id": "c1"}, now=NOW).one()["amount"] == 1
            churn.server.client_kill_filter(_type="normal", skipme=True)


def test_no_thread_notices_that_all_idle_connections_were_closed(churn: Shop) -> None:
    """One that makes its connection anew must not be handed another closed one."""
    failed: list[BaseException] = []
    together = threading.Barrier(8)

    def read() -> None:
        try:
            for _ in range(5):
                together.wait()
                client.get({"customer_id": "c1"}, now=NOW)
                if together.wait() == 0:
                    churn.server.client_kill_filter(_type="normal", skipme=True)
        except BaseException as error:  # noqa: BLE001  # told by the test
            failed.append(error)
            together.abort()

    with churn.open() as client:
        threads = [threading.Thread(target=read) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failed


def test_a_server_that_was_killed_is_read_again_when_it_is_back(tmp_path: Path) -> None:
    """By the same clients, which say so meanwhile."""
    folder = tmp_path / "redis"
    uri = f"file://{tmp_path}/registry"
    own = embedded_redis.start(folder)
    try:
        with redis.Redis.from_url(own.url) as server:
            shop = Shop(Registry(open_file_store(uri), uri), own, server)
            shop.register(spend)
            shop.load(spend, {"c1": (1, "Graz")})
            server.save()
            process = server.info("server")["process_id"]

        async def all_the_way() -> None:
            async with shop.open_async() as later:
                assert (await later.get({"customer_id": "c1"}, now=NOW)).one()["amount"] == 1
                assert client.get({"customer_id": "c1"}, now=NOW).one()["amount"] == 1
                os.kill(process, signal.SIGKILL)
                for _ in range(2):
                    with pytest.raises(OnlineStoreError, match=r"the connection (is refused|broke)"):
                        await later.get({"customer_id": "c1"}, now=NOW)
                    with pytest.raises(OnlineStoreError, match=r"the connection (is refused|broke)"):
                        client.get({"customer_id": "c1"}, now=NOW)
                embedded_redis.start(folder)
                assert (await later.get({"customer_id": "c1"}, now=NOW)).one()["amount"] == 1
                assert client.get({"customer_id": "c1"}, now=NOW).one()["amount"] == 1

        with shop.open() as client:
            asyncio.run(all_the_way())
    finally:
        embedded_redis.stop(folder)


def test_a_late_answer_is_given_up_in_time_and_never_taken_for_the_next_one(churn: Shop) -> None:
    hasty = replace(churn, address=replace(churn.address, timeout_seconds=0.1))

    def sleep() -> threading.Thread:
        thread = threading.Thread(target=lambda: churn.server.execute_command("DEBUG", "SLEEP", "0.4"))
        thread.start()
        time.sleep(0.05)
        return thread

    def in_time(started: float) -> None:
        assert time.monotonic() - started < 0.35

    with hasty.open(connections=1) as client:
        client.get({"customer_id": "c1"}, now=NOW)
        sleeping, started = sleep(), time.monotonic()
        with pytest.raises(OnlineStoreError, match="no answer in time"):
            client.get({"customer_id": "c1"}, now=NOW)
        in_time(started)
        sleeping.join()
        assert client.get({"customer_id": "c2"}, now=NOW).one()["amount"] == 2

    async def read() -> None:
        async with hasty.open_async(connections=1) as later:
            await later.get({"customer_id": "c1"}, now=NOW)
            sleeping, started = sleep(), time.monotonic()
            with pytest.raises(OnlineStoreError, match="no answer in time"):
                await later.get({"customer_id": "c1"}, now=NOW)
            in_time(started)
            sleeping.join()
            assert (await later.get({"customer_id": "c2"}, now=NOW)).one()["amount"] == 2

    asyncio.run(read())


def test_a_cancelled_task_leaves_nothing_for_the_next_one(churn: Shop) -> None:
    """Its replies are still to come on that connection."""
    churn.load(spend, {f"n{number}": (number, "x") for number in range(200)})

    async def read() -> int:
        cancelled = 0
        async with churn.open_async(connections=2) as client:

            async def right(number: int) -> None:
                answer = await client.get({"customer_id": f"n{number}"}, now=NOW)
                assert answer.one()["amount"] == number

            for number in range(200):
                task = asyncio.create_task(right(number))
                for _ in range(number % 7):
                    await asyncio.sleep(0)
                cancelled += task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                await right(199 - number)
        return cancelled

    assert asyncio.run(read()) > 100


def test_threads_share_a_client_and_its_few_connections(churn: Shop) -> None:
    churn.load(spend, {f"n{number}": (number, "x") for number in range(500)})
    wrong: list[object] = []
    before = int(churn.server.info("stats")["total_connections_received"])

    def read(start: int) -> None:
        for number in range(start, 500, 8):
            ids = [number, 499 - number] * (1 if number % 2 else 10)
            answer = client.get(customers(*(f"n{one}" for one in ids)), now=NOW)
            if [row["amount"] for row in answer.dicts()] != ids:
                wrong.append(ids)

    with churn.open(connections=3) as client:
        threads = [threading.Thread(target=read, args=[start]) for start in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong
    assert int(churn.server.info("stats")["total_connections_received"]) - before <= 3


def test_many_tasks_at_once_get_their_own_answers(churn: Shop) -> None:
    churn.load(spend, {f"n{number}": (number, "x") for number in range(300)})

    async def read() -> list[int]:
        async with churn.open_async(connections=4) as client:
            found = await asyncio.gather(*(client.get({"customer_id": f"n{n}"}, now=NOW) for n in range(300)))
        return [answer.one()["amount"] for answer in found]

    assert asyncio.run(read()) == [*range(300)]


def test_waiting_for_a_connection_ends_in_time(churn: Shop) -> None:
    hasty = replace(churn, address=replace(churn.address, timeout_seconds=0.1))
    with hasty.open(connections=1) as client:
        taken = client._pool.take()
        with pytest.raises(OnlineStoreError, match=r"every connection of this client was in use for 0.1 s"):
            client.get({"customer_id": "c1"})
        client._pool.give_back(taken)
        assert client.get({"customer_id": "c1"}, now=NOW).one()["amount"] == 1


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # of Python 3.12, that forks may hang
def test_a_forked_process_makes_connections_of_its_own(churn: Shop) -> None:
    """As web servers do that load the application before they fork."""
    churn.load(spend, {f"n{number}": (number, "x") for number in range(50)})

    def right(client: OnlineClient, numbers: Sequence[int]) -> bool:
        found = [client.get({"customer_id": f"n{n}"}, now=NOW).one()["amount"] for n in numbers for _ in range(20)]
        return found == [n for n in numbers for _ in range(20)]

    with churn.open() as client:
        assert right(client, [1])
        child = os.fork()
        if not child:
            os._exit(0 if right(client, range(25)) else 1)
        assert right(client, range(25, 50))
        assert os.waitpid(child, 0)[1] == 0


# --- Redis Cluster ----------------------------------------------------------------------------------------------------


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[list[int]]:
    """Three masters on loopback, by their ports."""
    with redis_cluster.running(tmp_path) as started:
        yield [server.port for server in started.masters]


def test_a_redis_cluster_is_recognised_and_read(shop: Shop, cluster: list[int]) -> None:
    """Its keys lie on three nodes; the client knows one."""
    shop.register(spend, visits)
    with redis.RedisCluster(host="127.0.0.1", port=cluster[0]) as server:
        own = replace(shop, server=server, address=RedisAddress(f"redis://127.0.0.1:{cluster[0]}", timeout_seconds=5))
        own.load(spend, {f"n{number}": (number, "x") for number in range(50)})
        ids = [f"n{number}" for number in range(51)]
        answer = own.get(customers(*ids))
        assert [row["amount"] for row in answer.dicts()] == [*range(50), None]
        with own.open() as client:
            for name in ids[:5]:
                assert client.get({"customer_id": name}, now=NOW).one()["amount"] == int(name[1:])


# --- what was computed ------------------------------------------------------------------------------------------------


def test_the_client_reads_what_materialize_loaded(online_place: Place) -> None:
    """From raw rows to the answer, for entities that have rows and one that has none."""
    now = datetime.now(UTC).replace(microsecond=0)
    rows = online_place.spark.range(60).selectExpr(
        "concat('c', id % 30) AS customer_id",
        f"timestamp_seconds({int(now.timestamp())} - id) AS event_time",
        "id AS amount",
        "if(id % 3 = 0, null, concat('city ', id)) AS city",
        "map('a', cast(id AS int)) AS counts",
    )
    put(online_place, rows, "lake://raw/rows")
    kept = {"options": {"offline": "parquet"}}
    groups = [group("spend", amount="bigint", city="string", **kept), group("more", counts="map<string,int>", **kept)]
    register(online_place, customer, source, *groups, Service("churn", groups))
    compute(online_place)
    materialize(online_place)
    with Store(online_place).online_client("churn") as client:
        answer = client.get(customers(*(f"c{number}" for number in range(31))))
    expected = [{"amount": n, "city": None if n % 3 == 0 else f"city {n}", "counts": {"a": n}} for n in range(30)]
    assert answer.dicts() == [*expected, dict.fromkeys(answer.features)]
    assert answer.freshness()[7]["spend"].event_time == now - timedelta(seconds=7)


# --- the page ---------------------------------------------------------------------------------------------------------


def test_the_page_prints_what_it_shows(address: RedisAddress, tmp_path: Path) -> None:
    """docs/online-client.md, over the example's definitions and two of its customers."""
    definitions = load(ROOT / "feature_defs" / "examples" / "retail")
    place = Place(replace(settings_in(tmp_path), online=OnlineSettings(kind="redis", url=address.url)))
    told = {"applied_at": "2026-01-01T00:00:00+00:00", "applied_by": "test", "message": ""}
    place.registry.commit(definitions, after=0, **told)
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    rows = {
        "customer_purchases": (today, "total_purchases avg_purchase_value customer_segment spent_30d", [
            (98, 30.56377551020408, "platinum", 1217.15), (71, 28.927464788732394, "platinum", 1008.42)
        ]),
        "customer_sessions": (today, "sessions_7d last_os", [(0, "windows"), (2, "ios")]),
        "customer_profile": (datetime(2026, 8, 23, tzinfo=UTC), "country", [("IT",), ("NL",)]),
    }  # fmt: skip
    with redis.Redis.from_url(address.url) as server:
        server.flushall()
        shop = Shop(place.registry, address, server)
        for name, (at, features, found) in rows.items():
            of = replace(definitions.groups[name], entity=customer)
            known = [dict(zip(features.split(), row, strict=True)) for row in found]
            values = [[row.get(feature.name) for feature in of.features] for row in known]
            shop.load(of, dict(zip(("CUST001", "CUST002"), values, strict=True)), at)
    page = (ROOT / "docs" / "online-client.md").read_text(encoding="utf-8")
    text = "\n".join("" if line.startswith("```") else line for line in page.splitlines())
    store = Store(place)
    words = {"store": store, "client": store.online_client("churn")}
    test = doctest.DocTestParser().get_doctest(text, words, "online-client.md", None, 0)
    assert len(test.examples) > 10
    failures: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test, out=failures.append)
    assert not failures, "".join(failures)


# --- where it runs ----------------------------------------------------------------------------------------------------


def test_the_client_loads_neither_spark_nor_pandas() -> None:
    script = (
        "import sys, connectors.online_client; "
        "print(*{name.split('.')[0] for name in sys.modules} & {'pyspark', 'py4j', 'pandas', 'jobs', 'delta'})"
    )
    ran = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == ""


def test_a_store_opens_clients_without_spark(tmp_path: Path) -> None:
    """`store.online_client("churn")`, by a profile."""
    lakes = "\n".join(f'{name} = "{base}"' for name, base in settings_in(tmp_path).lakes.items())
    profile = tmp_path / "shop.toml"
    profile.write_text(
        f'name = "shop"\ndefinitions = "definitions"\n[lakes]\n{lakes}\n'
        f'[online]\nkind = "embedded"\nfolder = "{tmp_path}/redis"\n[spark]\nmaster = "local[2]"\n'
    )
    place = Place(settings_in(tmp_path))
    Shop(place.registry, RedisAddress("redis://x"), redis.Redis()).register(spend)
    script = f"""
import asyncio, sys
from jobs.store import open_store
store = open_store({str(profile)!r})
with store.online_client("churn", fallback={{"amount": 0}}) as client:
    print(client.get({{"customer_id": "c1"}}).one())
async def read():
    async with store.async_online_client("churn") as client:
        print((await client.get({{"customer_id": "c1"}})).missing())
asyncio.run(read())
print("pyspark" in sys.modules)
"""
    try:
        ran = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    finally:
        embedded_redis.stop(tmp_path / "redis")
    assert ran.stdout.splitlines() == [
        "{'amount': 0, 'city': None}", "[{'amount': 'missing', 'city': 'missing'}]", "False"
    ], ran.stderr  # fmt: skip
