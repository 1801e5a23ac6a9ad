"""Feast on the benchmarks' files, timed: run by the interpreter of an environment of its own (common.feast_python).

    python tests/benchmarks/feast_peer.py join FOLDER GROUPS ROUNDS    get_historical_features with Spark, to Parquet

The last line is the seconds of each round as JSON. The settings of Spark are those that took the least CPU time of
Feast's query among shuffled hash and sort-merge joins, partitions 2 to 8 and broadcast limits.
"""

from __future__ import annotations

import json
import sys
import time
from datetime import timedelta
from pathlib import Path

import yaml
from feast import Entity, FeatureStore, FeatureView, Field, ValueType
from feast.infra.offline_stores.contrib.spark_offline_store.spark import get_spark_session_or_start_new_with_repoconfig
from feast.infra.offline_stores.contrib.spark_offline_store.spark_source import SparkSource
from feast.types import Float64, Int64, String

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


def main(folder: Path, groups: int, rounds: int) -> list[float]:
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


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))))
