"""A real Spark Standalone on loopback: a Master and Workers, JVMs of their own, to be killed with their executors.

They are started by docker/standalone.sh, the command of the containers, and log to one folder.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyspark

from tests.conftest import QUICK
from tests.waiting import until

ROOT = Path(__file__).resolve().parent.parent
SPARK_HOME = Path(pyspark.__file__).parent


@dataclass(frozen=True)
class Executor:
    """An executor's process; `number` is its name within its application."""

    number: str
    pid: int

    def freeze(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)


@dataclass(frozen=True)
class Worker:
    process: subprocess.Popen[bytes]

    def executors(self) -> list[Executor]:
        table = subprocess.run(
            ["ps", "-A", "-ww", "-o", "pid=,ppid=,args="], capture_output=True, text=True, check=True
        ).stdout
        rows = (line.split(None, 2) for line in table.splitlines())
        of_worker = [(int(pid), args) for pid, parent, args in rows if int(parent) == self.process.pid]
        found = ((pid, re.search(r"--executor-id (\d+)", args)) for pid, args in of_worker)
        return [Executor(number[1], pid) for pid, number in found if number]

    def kill(self) -> None:
        """The machine is gone: the Worker and its executors at once, none of which can say goodbye."""
        lost = self.executors()
        self.process.kill()
        for executor in lost:
            os.kill(executor.pid, signal.SIGKILL)
        self.process.wait()


@dataclass
class Standalone:
    folder: Path
    url: str = ""
    master: subprocess.Popen[bytes] | None = None
    workers: list[Worker] = field(default_factory=list)

    def start(self, *, workers: int = 2) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.master, log = self._launch("master", SPARK_MASTER_HOST="127.0.0.1", SPARK_MASTER_PORT="0")
        self.url = until(lambda: found(r"Starting Spark master at (spark://\S+)", log), log=log)
        self.add_workers(workers)

    def add_workers(self, count: int) -> None:
        """Workers of one core, so that two tasks at a time run on two of them."""
        size = {"SPARK_WORKER_CORES": "1", "SPARK_WORKER_MEMORY": "1g"}
        begun = [
            self._launch("worker", self.url, SPARK_WORKER_DIR=str(self.folder / f"work{number}"), **size)
            for number in range(len(self.workers), len(self.workers) + count)
        ]
        for process, log in begun:
            until(lambda log=log: found(r"Successfully registered with (master)", log), log=log)
            self.workers.append(Worker(process))

    def alive(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.process.poll() is None]

    def stop(self) -> None:
        for worker in self.alive():
            worker.kill()
        if self.master is not None:
            self.master.kill()
            self.master.wait()

    def _launch(self, *words: str, **settings: str) -> tuple[subprocess.Popen[bytes], Path]:
        log = self.folder / f"{words[0]}{len(list(self.folder.glob('*.log')))}.log"
        ports = {"SPARK_MASTER_WEBUI_PORT": "0", "SPARK_WORKER_WEBUI_PORT": "0"}
        environment = {**spark_environment(), **ports, "SPARK_DAEMON_JAVA_OPTS": QUICK, **settings}
        with log.open("wb") as output:
            process = subprocess.Popen(
                ["bash", str(ROOT / "docker" / "standalone.sh"), *words],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        return process, log


def spark_environment() -> dict[str, str]:
    """This process's, without what would reach past the zip to the checkout or to another Spark's settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SPARK_", "PYTHON", "PYSPARK_"))}
    loopback = {"SPARK_LOCAL_IP": "127.0.0.1", "SPARK_LOCAL_HOSTNAME": "127.0.0.1"}
    return {**kept, **loopback, "SPARK_HOME": str(SPARK_HOME), "PYSPARK_PYTHON": sys.executable}


def spark_submit(
    script: Path, *arguments: str, master: str, archive: Path, conf: Mapping[str, str]
) -> subprocess.Popen[str]:
    """A driver in client mode, by the settings of conf/spark-defaults.onprem.conf and these over them."""
    options = [word for name, value in conf.items() for word in ("--conf", f"{name}={value}")]
    command = [
        str(SPARK_HOME / "bin" / "spark-submit"),
        *("--master", master, "--py-files", str(archive)),
        *("--properties-file", str(ROOT / "conf" / "spark-defaults.onprem.conf")),
        *options,
        *(str(script), *arguments),
    ]
    return subprocess.Popen(
        command, cwd=archive.parent, env=spark_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@dataclass
class Application:
    """What a running driver tells of itself at its UI's port."""

    port: int
    name: str = ""

    def asked(self, path: str) -> Any:
        """None while it does not answer."""
        root = f"http://127.0.0.1:{self.port}/api/v1/applications"
        with suppress(OSError, ValueError, IndexError):
            if not self.name:
                with urllib.request.urlopen(root, timeout=5) as answer:
                    self.name = json.load(answer)[0]["id"]
            with urllib.request.urlopen(f"{root}/{self.name}/{path}", timeout=5) as answer:
                return json.load(answer)
        return None

    def busy(self) -> dict[str, int]:
        """The tasks that each executor has begun and not ended."""
        told = self.asked("executors") or []
        return {one["id"]: one["activeTasks"] for one in told if one["id"] != "driver" and one["activeTasks"]}

    def stages(self, status: str) -> list[Any]:
        return self.asked(f"stages?status={status}") or []


def kill_a_busy_worker(
    cluster: Standalone, application: Application, amid: Callable[[], bool], driver: subprocess.Popen[str]
) -> None:
    """Wait until the driver is `amid` its work, then kill a Worker whose executor has a task, for certain.

    An executor is frozen before the driver is asked: a task that it has begun then, it cannot end. Without one it may
    go on for a moment.
    """

    def begun() -> bool:
        assert driver.poll() is None, f"it ended before it could be disturbed\n{driver.communicate()[1][-4000:]}"
        return amid()

    def frozen() -> Worker | None:
        if not begun():
            return None
        for worker, executor in there:
            executor.freeze()
            time.sleep(0.2)  # ends that it had told are with the driver
            if executor.number in application.busy() and begun():
                return worker
            executor.thaw()
            time.sleep(0.02)
        return None

    until(begun)
    there = [(worker, executor) for worker in cluster.alive() for executor in worker.executors()]
    until(frozen).kill()


def lost_tasks(event_log: Path) -> list[str]:
    """The executors whose loss ended a task, by Spark's own record."""
    lines = [line for file in event_log.iterdir() for line in file.read_text(encoding="utf-8").splitlines()]
    events = map(json.loads, lines)
    reasons = [event["Task End Reason"] for event in events if event["Event"] == "SparkListenerTaskEnd"]
    return [reason["Executor ID"] for reason in reasons if reason["Reason"] == "ExecutorLostFailure"]


def found(pattern: str, log: Path) -> str | None:
    told = re.search(pattern, log.read_text(encoding="utf-8", errors="replace"))
    return told[1] if told else None


@contextmanager
def running(folder: Path) -> Iterator[Standalone]:
    cluster = Standalone(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
