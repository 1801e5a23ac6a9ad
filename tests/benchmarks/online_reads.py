"""Online reads, measured: the client's typed answer against a bare pipelined HMGET through the same library.

    make bench NAME=online_reads                     4 groups x 11 features, 20 k entities, 1 and 100 of them a request
    make bench NAME=online_reads ARGS="1000"         the same, with so many requests a round

Bare means redis-py's pipeline of one HMGET per entity, its replies left as bytes. The client's request ends in Python
values by name, `get(...).dicts()`. Both draw the same entities and take turns by the request, so that whatever else the
machine does meets both alike. `feast` is Feast's get_online_features(...).to_dict() of the same features, in a process
of its own. Bytes are the memory of Redis for an entity's 44 features, also in layouts that were tried: numbers of eight
bytes each, JSON, and a field of the hash for every feature. The last line is one JSON object; times are microseconds.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[0] = str(ROOT)  # the script's own folder has modules named as ours

import numpy as np  # noqa: E402 - the path comes first
import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
import redis  # noqa: E402

from connectors import codec, embedded_redis  # noqa: E402
from connectors.online_client import AsyncOnlineClient, OnlineClient  # noqa: E402
from connectors.online_service import ServicePlan, service_plan  # noqa: E402
from connectors.redis_online import RedisAddress  # noqa: E402
from feature_defs import (  # noqa: E402
    Entity,
    Feature,
    FeatureGroup,
    Service,
    Source,
    data_types,
)
from feature_defs.model import Definitions  # noqa: E402
from tests.benchmarks.common import progress, redis_on_tcp, rounded, told_by_feast  # noqa: E402
from tests.lab import checked  # noqa: E402

ROUNDS = 5
ENTITIES = 20_000
LEVELS = np.array(["bronze", "silver", "gold", "platinum"])


def definitions(groups: int = 4) -> Definitions:
    """Groups of five doubles, five whole numbers and a string, and a service of all of them."""
    customer = Entity("customer", keys={"customer_id": "string"})
    source = Source("rows", path="lake://raw/rows", format="parquet", event_time="event_time")
    found = []
    for k in range(groups):
        features = [Feature(f"g{k}_d{j}", "double") for j in range(5)]
        features += [Feature(f"g{k}_i{j}", "bigint") for j in range(5)]
        features.append(Feature(f"g{k}_s", "string"))
        found.append(FeatureGroup(f"g{k}", entity=customer, source=source, online=True, ttl="90d", features=features))
    return checked(customer, source, *found, Service("churn", found))


def plan_of(found: Definitions, address: RedisAddress) -> ServicePlan:
    parts = found.features_of(found.services["churn"])
    return service_plan("Service 'churn'", found, parts, key_prefix=address.key_prefix)


def load(
    found: Definitions, address: RedisAddress, entities: int = ENTITIES, *, folder: Path | None = None
) -> list[pa.Table]:
    """Every entity's row of every group, as materialize writes it; as Parquet too, where a folder is given."""
    tables = []
    draw, now_us = np.random.default_rng(7), time.time_ns() // 1000
    ids = pa.array([f"CUST{number:08d}" for number in range(entities)])
    types = [data_types.parse("string")]
    keys = codec.encode_keys(
        pa.record_batch([ids], ["customer_id"]), "customer", key_names=["customer_id"], key_types=types, prefix="tm"
    )
    with redis.Redis.from_url(address.url) as server:
        for group in found.groups.values():
            columns: dict[str, Any] = {"event_time": pa.array([now_us] * entities, pa.timestamp("us", "UTC"))}
            for feature in group.features:
                if feature.type == "double":
                    columns[feature.name] = draw.random(entities)
                elif feature.type == "bigint":
                    columns[feature.name] = draw.integers(0, 1000, entities)
                else:
                    columns[feature.name] = LEVELS[draw.integers(0, 4, entities)]
            schema = codec.ValueSchema.of_group(group)
            table = pa.table(columns)
            tables.append(table)
            values = codec.encode(table, schema, definition=1)
            if folder is not None:
                (folder / "online").mkdir(exist_ok=True)
                pq.write_table(table.add_column(0, "customer_id", ids), folder / "online" / f"{group.name}.parquet")
            field = codec.field_name(group.name, group.version)
            pipeline = server.pipeline(transaction=False)
            for key, value in zip(keys.to_pylist(), values.to_pylist(), strict=True):
                pipeline.hset(key, field, value)
            pipeline.execute()
    return tables


def eight_bytes_each(row: dict[str, Any]) -> dict[str, bytes]:
    time, *numbers, text = row.values()
    return {"g:1": struct.pack("<q5d5q", int(time.timestamp() * 1e6), *numbers) + text.encode()}


def as_json(row: dict[str, Any]) -> dict[str, str]:
    return {"g:1": json.dumps({name: str(value) if name == "event_time" else value for name, value in row.items()})}


def field_a_feature(row: dict[str, Any]) -> dict[str, str]:
    return {f"g:{name}": str(value) for name, value in row.items()}


def bytes_of_layouts(server: redis.Redis, tables: list[pa.Table]) -> dict[str, float]:
    """The memory of an entity in other layouts than ours."""
    found = {}
    for layout in (eight_bytes_each, as_json, field_a_feature):
        server.flushall()
        before = server.info("memory")["used_memory"]
        for number, table in enumerate(tables):
            pipeline = server.pipeline(transaction=False)
            for entity, row in enumerate(table.to_pylist()):
                fields = {f"{number}{name}": value for name, value in layout(row).items()}
                pipeline.hset(f"tm:customer:CUST{entity:08d}", mapping=fields)
            pipeline.execute()
        found[layout.__name__] = (server.info("memory")["used_memory"] - before) / ENTITIES
    return found


def bare(client: redis.Redis, found: Definitions) -> Callable[[list[str]], object]:
    fields = [codec.field_name(group.name, group.version) for group in found.groups.values()]

    def read(ids: list[str]) -> object:
        pipeline = client.pipeline(transaction=False)
        for customer_id in ids:
            pipeline.hmget(f"tm:customer:{customer_id}", fields)
        return pipeline.execute()

    return read


def measured(folder: Path, address: RedisAddress, requests: int) -> dict[str, Any]:
    found = definitions()
    progress("loading")
    with redis.Redis.from_url(address.url) as server:
        before = server.info("memory")["used_memory"]
        tables = load(found, address, folder=folder)
        bytes_an_entity = (server.info("memory")["used_memory"] - before) / ENTITIES
    plan = plan_of(found, address)
    told: dict[str, Any] = {"groups": 4, "features": 44, "entities": ENTITIES, "bytes_an_entity": bytes_an_entity}
    with redis.Redis.from_url(address.url, protocol=2) as server, OnlineClient(plan, address) as client:
        hmget = bare(server, found)
        ways: dict[str, Callable[[list[str]], object]] = {
            "hmget": hmget,
            "client": lambda ids: client.get([{"customer_id": name} for name in ids]).dicts(),
            "arrow": lambda ids: client.get([{"customer_id": name} for name in ids]).arrow(),
            "pandas": lambda ids: client.get([{"customer_id": name} for name in ids]).pandas(),
        }
        for size in (1, 100):
            progress(f"{size} entities a request")
            count = requests if size == 1 else max(requests // 5, 1)
            some = in_turns({name: ways[name] for name in ("hmget", "client")}, size, count)
            some |= in_turns({name: ways[name] for name in ("arrow", "pandas")}, size, max(count // 5, 1))
            for name, times in some.items():
                told[f"{name}_{size}"] = {"p50": percentile(times, 50), "p99": percentile(times, 99)}
            for p in (50, 99):
                ratio = percentile(some["client"], p) / percentile(some["hmget"], p)
                told[f"client_p{p}_vs_hmget_{size}"] = ratio
    progress("asyncio")
    told["async_1"], told["async_requests_per_second"] = asyncio.run(concurrent(plan, address, requests))
    progress("Feast")
    with redis_on_tcp(folder / "redis_of_feast") as port:
        told["feast"] = feast = told_by_feast("online", folder, requests, port)
    progress("other layouts")
    with redis.Redis.from_url(address.url) as server:
        told["bytes_of_layouts"] = {"packed": bytes_an_entity, **bytes_of_layouts(server, tables)}
    told["bytes_vs_feast"] = bytes_an_entity / feast["bytes_an_entity"]
    for count in (1, 100):
        told[f"client_vs_feast_{count}"] = feast[f"p50_{count}"] / told[f"client_{count}"]["p50"]
    told["client_vs_feast"] = min(told["client_vs_feast_1"], told["client_vs_feast_100"])
    found_: dict[str, Any] = rounded(told)
    return found_


def in_turns(ways: dict[str, Callable[[list[str]], object]], size: int, requests: int) -> dict[str, list[float]]:
    """Microseconds of each request; the first round warms up and is left out."""
    draw = np.random.default_rng([9, size])
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(ROUNDS + 1):
        for request in range(requests):
            ids = [f"CUST{entity:08d}" for entity in draw.integers(0, ENTITIES, size)]
            # The second to read finds them in the server's caches.
            for name, way in reversed(ways.items()) if request % 2 else ways.items():
                started = time.perf_counter()
                way(ids)
                if number:
                    times[name].append((time.perf_counter() - started) * 1e6)
    return times


async def concurrent(plan: ServicePlan, address: RedisAddress, requests: int) -> tuple[dict[str, float], float]:
    """One request after another, then 32 tasks at once."""
    times = []
    async with AsyncOnlineClient(plan, address) as client:

        async def some(start: int) -> None:
            for number in range(start, start + requests // 10):
                await client.get({"customer_id": f"CUST{number:08d}"})

        for number in range(requests):
            started = time.perf_counter()
            (await client.get({"customer_id": f"CUST{number:08d}"})).dicts()
            times.append((time.perf_counter() - started) * 1e6)
        started = time.perf_counter()
        await asyncio.gather(*(some(task * 500) for task in range(32)))
        rate = 32 * (requests // 10) / (time.perf_counter() - started)
    return {"p50": percentile(times, 50), "p99": percentile(times, 99)}, rate


def percentile(times: list[float], p: int) -> float:
    return float(np.percentile(times, p))


def main(requests: int) -> dict[str, Any]:
    folder = Path(tempfile.mkdtemp(prefix="tidemark-reads-"))
    try:
        return measured(folder, embedded_redis.start(folder / "redis"), requests)
    finally:
        embedded_redis.stop(folder / "redis")
        shutil.rmtree(folder)


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000)))
