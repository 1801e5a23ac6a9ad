"""A real Redis Cluster on loopback for the tests: servers of the embedded binary, joined by redis-py."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis

from connectors import embedded_redis
from connectors.redis_cluster import SLOTS
from tests.waiting import free_port, until

BUS = 10_000  # servers talk to one another on their port and this
NODE_TIMEOUT_MS = 1000


@dataclass
class Server:
    port: int
    process: subprocess.Popen[bytes]

    def ask(self, *command: Any) -> Any:
        with redis.Redis("127.0.0.1", self.port) as client:
            return client.execute_command(*command)

    @property
    def name(self) -> str:
        return str_of(self.ask("CLUSTER", "MYID"))

    def cluster_info(self) -> dict[str, str]:
        lines = str_of(self.ask("CLUSTER", "INFO")).split()
        return dict(line.split(":", 1) for line in lines)

    def slots(self) -> list[Any]:
        """[first, last, [host, port, ...], replicas ...] of every range."""
        return list(self.ask("CLUSTER", "SLOTS"))

    def role(self) -> list[Any]:
        return list(self.ask("ROLE"))

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@dataclass
class Cluster:
    """Masters share the slots evenly, in their order; replica i is of master i."""

    folder: Path
    masters: list[Server] = field(default_factory=list)
    replicas: list[Server] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.masters[-1].port}"

    def start(self, *, masters: int = 3, replicas: int = 0) -> None:
        self.masters = [self._launch() for _ in range(masters)]
        self.replicas = [self._launch() for _ in range(replicas)]
        first = self.masters[0]
        for number, server in enumerate(self.masters):
            slots = range(SLOTS * number // masters, SLOTS * (number + 1) // masters)
            server.ask("CLUSTER", "ADDSLOTS", *slots)
            server.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for server in (*self.masters[1:], *self.replicas):
            server.ask("CLUSTER", "MEET", "127.0.0.1", first.port)
        count = masters + replicas
        for server in (*self.masters, *self.replicas):
            until(lambda server=server: server.cluster_info()["cluster_known_nodes"] == str(count))
        for replica, master in zip(self.replicas, self.masters, strict=False):
            replica.ask("CLUSTER", "REPLICATE", master.name)
            until(lambda replica=replica: replica.role()[:4:3] == [b"slave", b"connected"])
        for server in (*self.masters, *self.replicas):
            until(lambda server=server: server.cluster_info()["cluster_state"] == "ok")

    def stop(self) -> None:
        for server in (*self.masters, *self.replicas):
            server.kill()

    def empty(self) -> None:
        for server in self.masters:
            server.ask("FLUSHALL")
            server.ask("SCRIPT", "FLUSH")

    def _launch(self) -> Server:
        port = free_port(with_partner=BUS)
        folder = self.folder / str(port)
        folder.mkdir(parents=True)
        settings = {
            "port": port,
            "bind": "127.0.0.1",
            "cluster-enabled": "yes",
            "cluster-node-timeout": NODE_TIMEOUT_MS,
            "repl-diskless-sync": "yes",
            "repl-diskless-sync-delay": 0,
            "repl-ping-replica-period": 1,
            "save": "",
            "appendonly": "no",
            "dir": str(folder),
            "logfile": "redis.log",
        }
        command = [str(embedded_redis.executable())]
        for name, value in settings.items():
            command += [f"--{name}", str(value)]
        server = Server(port, subprocess.Popen(command, stdin=subprocess.DEVNULL))
        until(lambda: server.ask("PING"))
        return server


@contextmanager
def running(folder: Path, *, replicas: int = 0) -> Iterator[Cluster]:
    """Three masters, and so many replicas, until the end."""
    cluster = Cluster(folder)
    try:
        cluster.start(replicas=replicas)
        yield cluster
    finally:
        cluster.stop()


def str_of(found: str | bytes) -> str:
    return found.decode() if isinstance(found, bytes) else found
