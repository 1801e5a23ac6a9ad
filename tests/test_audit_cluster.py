"""What an audit and a forecast ask of a real Redis Cluster: all its servers answer, whichever the address names."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from connectors.redis_online import RedisAddress, open_redis
from tests.redis_cluster import Cluster, running


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running(tmp_path_factory.mktemp("cluster")) as started:
        yield started


def test_every_server_of_a_cluster_is_asked(cluster: Cluster) -> None:
    keys = [f"tm:customer:{number}".encode() for number in range(5000)]
    with open_redis(RedisAddress(cluster.url)) as store:
        store._servers()
        store._replies([("HSET", key, "g:1", b"value") for key in [*keys, b"tm:product:1"]])
    # a store that has asked nothing yet does not know that it is a cluster
    with open_redis(RedisAddress(cluster.url)) as fresh:
        found = [key for chunk in fresh.scan("customer") for key in chunk]
        assert sorted(found) == sorted(keys)
        assert fresh.holds([keys[0], b"tm:customer:nobody"], [b"g:1", b"g:2"]) == [[True, False], [False, False]]
    with open_redis(RedisAddress(cluster.url)) as fresh:
        servers = fresh.memory()
        assert len(servers) == 3
        assert all(server.is_cluster and server.keys > 1000 for server in servers)
        assert sum(server.keys for server in servers) == len(keys) + 1
