"""The load into Redis, measured: offline tables through the partition function of `materialize`, against plain ways.

    make bench NAME=materialize                  1 M entities x 11 features: five doubles, five whole numbers, a string
    make bench NAME=materialize ARGS="100000"    the same, a tenth

`parquet` and `delta` are loads of an offline table by what `materialize` calls: latest rows are found, packed, sent and
a sample of them read back. `pipe` is `redis-cli --pipe`, fed a file of ready commands, HSET key field value, one an
entity: the limit of a loader that reads no table, encodes nothing and compares nothing. `redis_py` is what one writes
first: foreachPartition over the rows as they are, each packed by struct in a layout by hand, pipelines of 1,000 HSETs.
All write the same keys into the same Redis, emptied before each, and all but redis_py the same values; numbers of keys
and the bytes of a sample are compared after each. `again` loads once more what is there: every value is compared, and
found to be there. `x10` is ten times the entities in one load, with the memory of the largest Python worker. `feast` is
Feast's materialize of a tenth of the entities. `cluster` is three servers of a Redis Cluster. `job` is the whole verb
over ten rows of history an entity, `one_percent` the verb after a hundredth of the entities got a new row. The last
line is one JSON object; times are seconds, medians, and the first round is not counted.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
os.environ["PYTHONPATH"] = str(ROOT)  # for the workers, wherever this is started
sys.path[0] = str(ROOT)  # the script's own folder has modules named as ours

import numpy as np  # noqa: E402 - the path comes first
import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
import redis  # noqa: E402
from pyspark.sql import DataFrame, Row  # noqa: E402
from pyspark.sql import functions as F  # noqa: E402

from connectors import codec, embedded_redis  # noqa: E402
from connectors.codec import ValueSchema  # noqa: E402
from connectors.offline_tables import OfflineTable, open_table  # noqa: E402
from connectors.redis_online import RedisAddress  # noqa: E402
from feature_defs import Entity, Feature, FeatureGroup, Source  # noqa: E402
from feature_defs.data_types import parse  # noqa: E402
from feature_defs.join_plan import group_join  # noqa: E402
from jobs.compute import compute  # noqa: E402
from jobs.joining import keeping  # noqa: E402
from jobs.load_work import Earlier, Loading, loaded  # noqa: E402
from jobs.materialize import materialize  # noqa: E402
from jobs.online_load import partition_load  # noqa: E402
from jobs.place import Place, time_of  # noqa: E402
from jobs.settings import OnlineSettings  # noqa: E402
from tests.benchmarks.common import (  # noqa: E402
    keep_in_memory,
    place_in,
    progress,
    redis_on_tcp,
    rounded,
    seconds,
    told_by_feast,
    watched_workers,
)
from tests.lab import checked, register  # noqa: E402
from tests.redis_cluster import running  # noqa: E402

ROUNDS = 3
NOW_US = 1_767_225_600_000_000  # 2026-01-01
DAY_US = 86_400_000_000
LEVELS = np.array(["bronze", "silver", "gold", "platinum"])
FEATURES = [*((f"d{j}", "double") for j in range(5)), *((f"i{j}", "bigint") for j in range(5)), ("s", "string")]
SCHEMA = ValueSchema.of(FEATURES)
DEFINITION = 1

customer = Entity("customer", keys={"customer_id": "bigint"})
source = Source("rows", path="lake://raw/rows", format="parquet", event_time="event_time")
group = FeatureGroup(
    "spend", entity=customer, source=source, online=True, features=[Feature(name, kind) for name, kind in FEATURES]
)
FIELD = codec.field_name(group.name, group.version)
WANTED = group_join(group, checked(customer, source, group), group.features)


# data


def latest_rows(entities: int) -> pa.Table:
    """One row of each entity, as the latest of an offline table."""
    draw = np.random.default_rng(6)
    columns: dict[str, Any] = {"customer_id": draw.permutation(entities)}
    columns["event_time"] = pa.array(NOW_US - draw.integers(0, 30 * DAY_US, entities), pa.timestamp("us", "UTC"))
    for name, kind in FEATURES:
        if kind == "double":
            columns[name] = draw.random(entities)
        else:
            columns[name] = (
                draw.integers(0, 1000, entities) if kind == "bigint" else LEVELS[draw.integers(0, 4, entities)]
            )
    return pa.table(columns)


def packed(rows: pa.Table) -> tuple[pa.Array, pa.Array]:
    """Keys and values."""
    kinds = [parse(kind) for kind in customer.keys.values()]
    keys = codec.encode_keys(rows, customer.name, key_names=["customer_id"], key_types=kinds, prefix="tm")
    return keys, codec.encode(rows, SCHEMA, definition=DEFINITION)


def write_commands(keys: pa.Array, values: pa.Array, file: Path) -> None:
    """One HSET an entity, ready for the wire."""
    with file.open("wb") as out:
        for start in range(0, len(keys), 10_000):
            for key, value in zip(
                keys[start : start + 10_000].to_pylist(), values[start : start + 10_000].to_pylist(), strict=True
            ):
                command = (b"HSET", key, FIELD, value)
                out.write(b"*4\r\n" + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in command))


# the ways


def through_pipe(file: Path, address: RedisAddress) -> None:
    socket = address.url.removeprefix("unix://")
    with file.open("rb") as commands:
        command = [str(redis_cli()), "-s", socket, "--pipe"]
        told = subprocess.run(command, stdin=commands, check=True, capture_output=True, text=True).stdout
    assert "errors: 0" in told, told


def redis_cli() -> Path:
    """The one beside the embedded server, else the one on PATH."""
    beside = embedded_redis.executable().with_name("redis-cli")
    return beside if beside.exists() else Path(shutil.which("redis-cli") or "redis-cli")


def through_redis_py(rows: DataFrame, address: RedisAddress) -> None:
    url, names, field = address.url, [name for name, _ in FEATURES], FIELD
    layout = "<q5d5q"  # as one writes it by hand: no widths, schema or nulls

    def send(partition: Iterator[Row]) -> None:
        with redis.Redis.from_url(url) as client:
            pipeline = client.pipeline(transaction=False)
            for count, row in enumerate(partition, 1):
                time = int(row["event_time"].timestamp() * 1_000_000)
                *numbers, text = (row[name] for name in names)
                value = struct.pack(layout, time, *numbers) + text.encode()
                pipeline.hset(f"tm:customer:{row['customer_id']}", field, value)
                if count % 1000 == 0:
                    pipeline.execute()
            pipeline.execute()

    rows.foreachPartition(send)


def through_tasks(table: OfflineTable, address: RedisAddress, entities: int) -> None:
    """What `materialize` does with a group between asking the store for its last load and writing the receipt."""
    load = partition_load(group, customer, address, definition=DEFINITION, now_us=NOW_US)
    version = table.version()
    assert version is not None
    with keeping(f"{table.uri}_work") as keep:
        work = Loading(table, version, WANTED, DEFINITION, NOW_US).work(Earlier(), full=False, keep=keep)
        counts = loaded(work, load, "Benchmark", spark=table.spark)
    assert counts.written == counts.entities == entities, counts


def offline_table(rows: DataFrame, folder: Path, kind: str) -> OfflineTable:
    """The rows as an offline table has them."""
    keys, time, *features = rows.columns
    table = open_table(rows.sparkSession, f"file://{folder}", kind)
    table.replace(rows.select(keys, time, F.lit(None).cast("timestamp").alias("created_time"), *features), {"run": "b"})
    return table


def ten_times(rows: DataFrame, entities: int) -> DataFrame:
    """Ten entities for each of the rows."""
    copies = rows.sparkSession.range(0, 10, 1, 1).withColumnRenamed("id", "copy")
    key = (F.col("customer_id") + F.col("copy") * F.lit(entities)).alias("customer_id")
    others = [name for name in rows.columns if name != "customer_id"]
    return rows.crossJoin(F.broadcast(copies)).select(key, *others)


# measuring


def measured(folder: Path, entities: int) -> dict[str, Any]:
    progress("data")
    table = latest_rows(entities)
    keys, values = packed(table)
    write_commands(keys, values, folder / "commands")
    (folder / "parquet").mkdir()
    for part in range(4):
        some = table.slice(part * (entities // 4), entities // 4 if part < 3 else None)
        pq.write_table(some, folder / "parquet" / f"part-{part}.parquet")
    spark = place_in(folder).spark
    rows = spark.read.parquet(str(folder / "parquet"))
    tables = {kind: offline_table(rows, folder / "tables" / kind, kind) for kind in ("parquet", "delta")}
    ten = offline_table(ten_times(rows, entities), folder / "tables" / "ten", "parquet")

    address = embedded_redis.start(folder / "redis")
    times: dict[str, list[float]] = {}
    memory = 0.0
    with redis.Redis.from_url(address.url, socket_timeout=120) as server:
        server.config_set("save", "")  # a copy on disk in the middle would be measured too

        def one(name: str, way: Callable[[], object], *, empty: bool = True, same: bool = True) -> None:
            progress(name)
            if empty:
                server.flushall()
            keep_in_memory([folder / "commands", *(folder / "tables").rglob("*.parquet")])
            times.setdefault(name, []).append(seconds(way))
            progress(f"  {times[name][-1]:.2f} s")
            check(server, keys, values if same else None)

        for number in range(ROUNDS + 1):
            progress(f"round {number} of {ROUNDS}")
            one("pipe", lambda: through_pipe(folder / "commands", address))
            one("pipe_again", lambda: through_pipe(folder / "commands", address), empty=False)
            for name, offline in tables.items():
                one(name, lambda offline=offline: through_tasks(offline, address, entities))  # type: ignore[misc]
                one(f"{name}_again", lambda offline=offline: through_tasks(offline, address, entities), empty=False)  # type: ignore[misc]
            if number < 2:  # the slowest: one that counts
                one("redis_py", lambda: through_redis_py(rows, address), same=False)
        server.flushall()
        before = server.info("memory")["used_memory"]
        through_tasks(tables["parquet"], address, entities)
        memory = (server.info("memory")["used_memory"] - before) / entities
        loads = []
        for offline, count in ((tables["parquet"], entities), (ten, 10 * entities)):
            progress(f"{count:,} entities")
            server.flushall()
            with watched_workers() as peak:
                took = seconds(lambda offline=offline, count=count: through_tasks(offline, address, count))  # type: ignore[misc]
            loads.append((count / took, peak[0]))
        server.flushall()
    embedded_redis.stop(folder / "redis")
    progress("Feast")
    (folder / "online").mkdir()
    pq.write_table(table.slice(0, entities // 10), folder / "online" / "spend.parquet")
    with redis_on_tcp(folder / "redis_of_feast") as port:
        feast = told_by_feast("online", folder, 100, port)
    progress("job")
    times |= job_seconds(folder, entities)
    progress("cluster")
    cluster = cluster_seconds(folder / "cluster", tables["parquet"], entities)

    median = {name: statistics.median(found[1:]) for name, found in times.items()}
    told = {
        "entities": entities,
        "features": len(FEATURES),
        "vs_pipe": median["pipe"] / max(median["parquet"], median["delta"]),
        "vs_pipe_parquet": median["pipe"] / median["parquet"],
        "vs_pipe_delta": median["pipe"] / median["delta"],
        "vs_pipe_again": median["pipe_again"] / max(median["parquet_again"], median["delta_again"]),
        "job_vs_pipe": median["pipe"] / max(median["job_delta"], median["job_parquet"]),
        "one_percent_vs_full": median["one_percent_delta"] / median["job_delta"],
        "one_percent_vs_full_parquet": median["one_percent_parquet"] / median["job_parquet"],
        "vs_redis_py": median["redis_py"] / median["parquet"],
        "vs_feast": entities / median["parquet"] / feast["rows_per_second"],
        "bytes_vs_feast_one_group": memory / feast["bytes_an_entity"],
        "cluster_vs_single": median["parquet"] / cluster,
        "entities_per_second": entities / median["parquet"],
        "entities_per_second_x10": loads[1][0],
        "worker_mib": loads[0][1],
        "worker_mib_x10": loads[1][1],
        "bytes_an_entity": memory,
        "seconds": {**median, "cluster": cluster},
        "first_seconds": {name: found[0] for name, found in times.items()},
    }
    found: dict[str, Any] = rounded(told)
    return found


def job_seconds(folder: Path, entities: int) -> dict[str, list[float]]:
    """The whole verb over tables that `compute` wrote: first loads, and loads of what changed."""
    online = OnlineSettings(kind="embedded", folder=str(folder / "job" / "redis"))
    place = Place(dataclasses.replace(place_in(folder).settings, online=online))
    groups = [dataclasses.replace(group, name=f"spend_{kind}", offline=kind) for kind in ("delta", "parquet")]
    times: dict[str, list[float]] = {}
    for part in range(10):
        rows = latest_rows(entities)
        at = pa.array(NOW_US - (10 - part) * 3 * DAY_US + np.arange(entities) % DAY_US, pa.timestamp("us", "UTC"))
        write_raw(folder, rows.set_column(1, "event_time", at), f"history-{part}")
    register(place, customer, source, *groups)
    compute(place, now=time_of(NOW_US))
    address = embedded_redis.start(folder / "job" / "redis")
    with redis.Redis.from_url(address.url, socket_timeout=120) as server:
        server.config_set("save", "")
        for number in range(ROUNDS + 1):
            for one in groups:
                server.flushall()
                load = functools.partial(materialize, place, [one.name], now=time_of(NOW_US + number))
                keep_in_memory((folder / "features").rglob("*.parquet"))
                times.setdefault(f"job_{one.offline}", []).append(seconds(load))
                assert server.dbsize() == entities + 1  # and what names the last load
            materialize(place, now=time_of(NOW_US + number), full=True)
            new = latest_rows(entities).slice(0, entities // 100)
            at = pa.array(np.full(len(new), NOW_US + number + 1), pa.timestamp("us", "UTC"))
            write_raw(folder, new.set_column(1, "event_time", at), f"new-{number}")
            compute(place, now=time_of(NOW_US + number + 1))
            for one in groups:
                found: list[Any] = []
                load = functools.partial(materialize, place, [one.name], now=time_of(NOW_US + number + 1))
                times.setdefault(f"one_percent_{one.offline}", []).append(seconds(lambda: found.append(load())))  # noqa: B023
                assert found[0].groups[0].written == entities // 100, found
    embedded_redis.stop(folder / "job" / "redis")
    return times


def write_raw(folder: Path, rows: pa.Table, name: str) -> None:
    (folder / "raw" / "rows").mkdir(parents=True, exist_ok=True)
    pq.write_table(rows, folder / "raw" / "rows" / f"{name}.parquet")


def cluster_seconds(folder: Path, table: OfflineTable, entities: int) -> float:
    """Into three servers of a Redis Cluster on this machine."""
    times = []
    with running(folder) as cluster:
        for _ in range(ROUNDS):
            cluster.empty()
            times.append(seconds(lambda: through_tasks(table, RedisAddress(cluster.url), entities)))
            assert sum(server.ask("DBSIZE") for server in cluster.masters) == entities
    return statistics.median(times)


def check(server: redis.Redis, keys: pa.Array, values: pa.Array | None) -> None:
    """As many keys as entities, and one value in a thousand as it was encoded here."""
    assert server.dbsize() == len(keys)
    for number in range(0, 0 if values is None else len(keys), 1000):
        assert server.hget(keys[number].as_py(), FIELD) == values[number].as_py()


def main(entities: int) -> dict[str, Any]:
    folder = Path(tempfile.mkdtemp(prefix="tidemark-load-"))
    (folder / "spark").mkdir()
    try:
        return measured(folder, entities)
    finally:
        embedded_redis.stop(folder / "redis")
        embedded_redis.stop(folder / "job" / "redis")
        shutil.rmtree(folder)


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)))
