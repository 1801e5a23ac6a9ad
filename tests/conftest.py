"""What the tests share: one Spark session, a place in a temporary folder, a real Redis, tables written as text.

Nothing here starts Spark or Redis before a test asks for it.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from jobs.place import Place
from jobs.settings import OnlineSettings, Settings, SparkSettings

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from connectors.redis_online import RedisAddress
    from tests.emulator import Emulator
    from tests.hdfs_daemons import Hdfs

# Of every JVM of the tests, also those of drivers in processes of their own: tables of a few rows are not worth
# compiling twice or collecting in parallel. And compiled code has room: a worker's session filled the usual 48 MiB
# early in a run, then threw code away to compile it again, and tests behind that took up to twice as long.
QUICK = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC -XX:ReservedCodeCacheSize=240m"
os.environ.setdefault("SPARK_SUBMIT_OPTS", QUICK)
SPARK_CONF = {
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.memory": "1g",
    "spark.log.level": "OFF",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.sql.shuffle.partitions": "2",
    "spark.databricks.delta.snapshotPartitions": "1",
    "spark.sql.sources.parallelPartitionDiscovery.parallelism": "2",
}


def settings_in(folder: Path, *, spark: SparkSettings | None = None) -> Settings:
    """A place in a folder: three lakes, an empty folder of definitions, no online store.

    The lakes lie under a name that a URI would have to escape, and must not.
    """
    definitions = folder / "definitions"
    definitions.mkdir(exist_ok=True)
    return Settings(
        name="test",
        definitions=str(definitions),
        lakes={name: f"file://{folder}/a lake #1%20/{name}" for name in ("raw", "features", "work")},
        online=OnlineSettings(kind="none"),
        spark=spark or SparkSettings(master="local[2]", conf=SPARK_CONF),
    )


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
    from jobs.session import open_session
    from tests.drivers import sqlite_jar

    folder = tmp_path_factory.mktemp("spark")
    conf = {**SPARK_CONF, "spark.sql.warehouse.dir": str(folder), "spark.local.dir": str(folder)}
    if (jar := sqlite_jar()).is_file():
        conf["spark.jars"] = str(jar)
    settings = settings_in(folder, spark=SparkSettings(master="local[2]", conf=conf))
    lakes = {**settings.lakes, "cloud": "abfs://lake@devstoreaccount1.dfs.core.windows.net"}  # brings the driver's jars
    session = open_session(dataclasses.replace(settings, lakes=lakes))
    yield session
    session.stop()


@pytest.fixture
def place(spark: SparkSession, tmp_path: Path) -> Place:
    """A place with nothing in it: see tests/lab.py for what fills it."""
    return Place(settings_in(tmp_path))


@pytest.fixture
def online_place(place: Place, tmp_path: Path) -> Iterator[Place]:
    """A place with a Redis of its own, which starts when it is first asked for."""
    from connectors import embedded_redis

    folder = tmp_path / "redis"
    online = OnlineSettings(kind="embedded", folder=str(folder))
    yield Place(dataclasses.replace(place.settings, online=online))
    embedded_redis.stop(folder)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisAddress]:
    """A Redis for the tests of one module, without Spark."""
    from connectors import embedded_redis

    folder = tmp_path_factory.mktemp("redis")
    yield embedded_redis.start(folder)
    embedded_redis.stop(folder)


@pytest.fixture(scope="session")
def hdfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hdfs]:
    """A NameNode and two DataNodes; who kills one starts it again."""
    from tests.hdfs_daemons import Hdfs

    daemons = Hdfs(tmp_path_factory.mktemp("hdfs"))
    try:
        daemons.start()
        yield daemons
    finally:
        daemons.stop()


@pytest.fixture(scope="session")
def adls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    """The blob emulator as an ADLS Gen2 account, whose key is in the environment."""
    from tests.emulator import KEY, emulator
    from tests.lake_kinds import SECRET

    with emulator(tmp_path_factory.mktemp("adls")) as started, pytest.MonkeyPatch.context() as patch:
        patch.setenv(SECRET, KEY)
        yield started


@pytest.fixture(scope="session")
def table(spark: SparkSession) -> Callable[..., DataFrame]:
    """A pipe table and its DDL -> a DataFrame: table("id | n", "n bigint")."""
    from tests.pipe_tables import read_table

    return lambda text, types="": read_table(spark, text, types)
