"""Feast on the benchmarks' files, timed: run by the interpreter of an environment of its own (common.feast_python).

    python tests/benchmarks/feast_peer.py join FOLDER GROUPS ROUNDS
        get_historical_features with Spark, to Parquet
    python tests/benchmarks/feast_peer.py online FOLDER REQUESTS PORT
        materialize FOLDER/online/*.parquet by DuckDB into the Redis at the port, then get_online_features

The last line is JSON: the seconds of each round, or what `online` returns. The settings of Spark are those that took
the least CPU time of Feast's query among shuffled hash and sort-merge joins, partitions 2 to 8 and broadcast limits.
"""

from __future__ import annotations

import json
import sys
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import redis
import yaml
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.infra.offline_stores.contrib.spark_offline_store.spark import get_spark_session_or_start_new_with_repoconfig
from feast.infra.offline_stores.contrib.spark_offline_store.spark_source import SparkSource
from feast.types import Float64, Int64, String, UnixTimestamp

TYPES = {"d": Float64, "i": Int64, "s": String}


def names(k: int) -> list[str]:
    return [*(f"g{k}_d{j}" for j in range(5)), *(f"g{k}_i{j}" for j in range(5)), f"g{k}_s"]


def opened(folder: Path, groups: int) -> FeatureStore:
    spark = {
        "spark.master": "local[2]",
        "spark.driver.memory": "8g",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.log.level": "OFF",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.shuffle.partitions": "4",
        "spark.sql.join.preferSortMergeJoin": "false",
        "spark.sql.adaptive.maxShuffledHashJoinLocalMapThreshold": "512m",
        "spark.local.dir": str(folder / "spark"),
        "spark.sql.warehouse.dir": str(folder / "feast" / "warehouse"),
    }
    repo = folder / "feast"
    repo.mkdir(exist_ok=True)
    settings = {
        "project": "bench",
        "provider": "local",
        "registry": {"path": str(repo / "registry.db"), "cache_ttl_seconds": 0},
        "offline_store": {"type": "spark", "spark_conf": spark},
        "entity_key_serialization_version": 3,
    }
    (repo / "feature_store.yaml").write_text(yaml.safe_dump(settings))
    store = FeatureStore(repo_path=str(repo))
    customer = Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.INT64)
    views = []
    for k in range(groups):
        source = SparkSource(
            name=f"source{k}", path=f"{folder}/raw/quarter/g{k}", file_format="parquet",
            timestamp_field="event_time", created_timestamp_column="created_time",
        )  # fmt: skip
        fields = [Field(name=name, dtype=TYPES[name.split("_")[1][0]]) for name in names(k)]
        schema = [Field(name="customer_id", dtype=Int64), *fields]
        views.append(FeatureView(name=f"g{k}", entities=[customer], ttl=timedelta(0), schema=schema, source=source))
    store.apply([customer, *views])
    return store


def join(folder: Path, groups: int, rounds: int) -> list[float]:
    store = opened(folder, groups)
    spark = get_spark_session_or_start_new_with_repoconfig(store.config.offline_store)
    features, found = [f"g{k}:{name}" for k in range(groups) for name in names(k)], []
    for _ in range(rounds):
        started = time.monotonic()
        spine = spark.read.parquet(f"{folder}/raw/quarter/spine").withColumnRenamed("event_time", "event_timestamp")
        job = store.get_historical_features(entity_df=spine, features=features)
        job.to_spark_df().write.mode("overwrite").parquet(f"{folder}/feast/out")
        found.append(time.monotonic() - started)
    return found


def opened_online(folder: Path, port: int) -> FeatureStore:
    """A view for each file, and a service of all their features."""
    repo = folder / "feast"
    repo.mkdir(exist_ok=True)
    settings = {
        "project": "bench",
        "provider": "local",
        "registry": {"path": str(repo / "registry.db"), "cache_ttl_seconds": 0},
        "offline_store": {"type": "duckdb"},
        "online_store": {"type": "redis", "connection_string": f"127.0.0.1:{port}"},
        "batch_engine": {"type": "local"},
        "materialization": {"pull_latest_features": True, "online_write_batch_size": 10_000},
        "entity_key_serialization_version": 3,
    }
    (repo / "feature_store.yaml").write_text(yaml.safe_dump(settings))
    store = FeatureStore(repo_path=str(repo))
    types = {pa.string(): String, pa.float64(): Float64, pa.int64(): Int64, pa.timestamp("us", "UTC"): UnixTimestamp}
    views = []
    for file in sorted((folder / "online").glob("*.parquet")):
        schema = pq.read_schema(file)
        is_text = schema.field("customer_id").type == pa.string()
        customer = Entity(
            name="customer", join_keys=["customer_id"], value_type=ValueType.STRING if is_text else ValueType.INT64
        )
        fields = [Field(name=one.name, dtype=types[one.type]) for one in schema if one.name != "event_time"]
        source = FileSource(name=f"source_{file.stem}", path=str(file), timestamp_field="event_time")
        views.append(FeatureView(name=file.stem, entities=[customer], ttl=timedelta(0), schema=fields, source=source))
    store.apply([customer, *views, FeatureService(name="all", features=views)])
    return store


def online(folder: Path, requests: int, port: int) -> dict[str, float]:
    """Rows a second of materialize, bytes an entity in Redis, microseconds of reads of 1 and 100 entities."""
    store = opened_online(folder, port)
    keys = pq.read_table(next((folder / "online").glob("*.parquet")), columns=["customer_id"])[
        "customer_id"
    ].to_pylist()
    views = store.list_feature_views()
    with redis.Redis(port=port) as server:
        before = server.info("memory")["used_memory"]
        started = time.monotonic()
        store.materialize(
            datetime.now(timezone.utc) - timedelta(days=3650), datetime.now(timezone.utc) + timedelta(days=1)
        )
        seconds = time.monotonic() - started
        told = {"rows_per_second": len(keys) * len(views) / seconds}
        told["bytes_an_entity"] = (server.info("memory")["used_memory"] - before) / len(keys)
        assert server.dbsize() == len(keys), server.dbsize()
    service, draw = store.get_feature_service("all"), np.random.default_rng(9)
    count = sum(len(view.features) for view in views)
    for size in (1, 100):
        times = []
        for number in range(requests // size + 20):
            rows = [{"customer_id": keys[at]} for at in draw.integers(0, len(keys), size)]
            started = time.perf_counter()
            found = store.get_online_features(features=service, entity_rows=rows).to_dict()
            if number >= 20:
                times.append((time.perf_counter() - started) * 1e6)
            assert len(found) == count + 1
            assert None not in found[views[0].features[0].name]
        told |= {f"p{p}_{size}": float(np.percentile(times, p)) for p in (50, 99)}
    return told


if __name__ == "__main__":
    what, folder, first, second = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    print(json.dumps(join(folder, first, second) if what == "join" else online(folder, first, second)))
