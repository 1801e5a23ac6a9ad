"""What the benchmarks share: a place of their own, times, memory, and the last line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from connectors import embedded_redis
from jobs.place import Place
from jobs.settings import OnlineSettings, Settings, SparkSettings
from tests.waiting import free_port

ROOT = Path(__file__).resolve().parent.parent.parent
FEAST = "feast[duckdb,redis,spark]==0.67.0"
MEMORY = "3g"  # of the JVM; with its Python workers it stays within 4 GiB


def place_in(folder: Path) -> Place:
    conf = {
        "spark.driver.memory": MEMORY,
        "spark.driver.host": "127.0.0.1",
        "spark.log.level": "OFF",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.sql.shuffle.partitions": "8",
        "spark.databricks.delta.snapshotPartitions": "2",
        "spark.local.dir": str(folder / "spark"),
    }
    return Place(
        Settings(
            name="benchmark",
            definitions=str(folder),
            lakes={name: f"file://{folder}/{name}" for name in ("raw", "features", "work")},
            online=OnlineSettings(kind="none"),
            spark=SparkSettings(master="local[2]", conf=conf),
        )
    )


def in_folder(name: str, measured: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """A folder for everything of one benchmark, gone at the end."""
    folder = Path(tempfile.mkdtemp(prefix=f"tidemark-{name}-"))
    (folder / "spark").mkdir()
    try:
        return measured(folder)
    finally:
        shutil.rmtree(folder)


def keep_in_memory(files: Iterable[Path]) -> None:
    """Read the files once more: a system may drop within seconds what nobody reads, and then one way reads the disk."""
    for file in files:
        with file.open("rb") as content:
            while content.read(1 << 22):
                pass


def seconds(action: Callable[[], object]) -> float:
    started = time.monotonic()
    action()
    return time.monotonic() - started


def watched_memory() -> AbstractContextManager[list[float]]:
    """The most that this process and all below it held at once, in GiB; 0 where /proc does not tell."""
    return _watched(lambda: _resident(os.getpid()) / 2**30)


def watched_workers() -> AbstractContextManager[list[float]]:
    """The most that one Python worker of Spark held, in MiB."""
    return _watched(lambda: _largest_worker() / 2**20)


@contextmanager
def _watched(measure: Callable[[], float]) -> Iterator[list[float]]:
    peak, stop = [0.0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.5):
            peak[0] = max(peak[0], measure())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


def processor_seconds() -> float:
    """What this process and all below it, Spark's JVM among them, have used of the processors; 0 where /proc does not
    tell."""
    ticks = sum(int(fields[11]) + int(fields[12]) for fields in _from(os.getpid()).values())
    return ticks / os.sysconf("SC_CLK_TCK")


def _resident(root: int) -> int:
    return sum(int(fields[21]) for fields in _from(root).values()) * os.sysconf("SC_PAGE_SIZE")


def _from(root: int) -> dict[int, list[str]]:
    """A process and all below it, with what /proc/PID/stat tells behind the name."""
    told = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            told[int(entry.name)] = (entry / "stat").read_text().rpartition(")")[2].split()
    below, found = {root}, True
    while found:
        found = {pid for pid, fields in told.items() if int(fields[1]) in below} - below
        below |= found
    return {pid: told[pid] for pid in below & told.keys()}


def _largest_worker() -> int:
    largest = 0
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if b"pyspark.daemon" in (entry / "cmdline").read_bytes():
                pages = int((entry / "statm").read_text().split()[1])
                largest = max(largest, pages * os.sysconf("SC_PAGE_SIZE"))
    return largest


def feast_python() -> Path:
    """The interpreter of an environment with Feast in it, which is made when it is first asked for."""
    folder = ROOT / "build" / "feast"
    installed = folder / "installed"
    if not installed.is_file() or installed.read_text() != FEAST:
        progress(f"installing {FEAST} into {folder}")
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", FEAST], check=True)
        installed.write_text(FEAST)
    return folder / "bin" / "python"


def told_by_feast(what: str, folder: Path, *args: object) -> Any:
    """What feast_peer.py measures, in a process of its own."""
    script = Path(__file__).parent / "feast_peer.py"
    command = [str(feast_python()), str(script), what, str(folder), *map(str, args)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    return json.loads(told.splitlines()[-1])


@contextmanager
def redis_on_tcp(folder: Path) -> Iterator[int]:
    """The embedded server's binary with its settings on a port, for those who know no unix sockets."""
    port = free_port()
    folder.mkdir(parents=True)
    server = embedded_redis.executable()
    options = {"port": port, "bind": "127.0.0.1", "save": "", "dir": folder, "hash-max-ziplist-value": 1024}
    command = [str(server), *(str(word) for name, value in options.items() for word in (f"--{name}", value))]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        with redis.Redis("127.0.0.1", port, retry=Retry(ConstantBackoff(0.1), 100)) as client:
            client.ping()
        yield port
    finally:
        process.kill()
        process.wait()


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: rounded(inner) for name, inner in value.items()}
    return round(value, 3) if isinstance(value, float) else value


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
