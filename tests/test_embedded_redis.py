"""The embedded Redis: one server a folder, whoever starts it and however often."""

from __future__ import annotations

import multiprocessing
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from connectors import embedded_redis
from connectors.redis_online import open_redis
from feature_defs.errors import MissingPartError, OnlineStoreError

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "redis"
    yield place
    embedded_redis.stop(place)


def client(folder: Path) -> redis.Redis:
    return redis.Redis.from_url(embedded_redis.address(folder).url)


def process_id(folder: Path) -> int:
    with client(folder) as connection:
        return connection.info("server")["process_id"]


def start_and_tell(folder: str) -> int:
    """Runs in another process."""
    embedded_redis.start(Path(folder))
    return process_id(Path(folder))


def test_a_started_server_answers_on_a_socket_and_has_no_port(folder: Path) -> None:
    address = embedded_redis.start(folder)
    assert address == embedded_redis.address(folder)
    assert address.url.startswith("unix:///")
    with open_redis(address), client(folder) as connection:
        assert connection.config_get("port") == {"port": "0"}


def test_data_outlive_a_stop(folder: Path) -> None:
    embedded_redis.start(folder)
    with client(folder) as connection:
        connection.hset("tm:customer:1", "g:1", b"\x00packed")
    assert embedded_redis.stop(folder)
    embedded_redis.start(folder)
    with client(folder) as connection:
        assert connection.hgetall("tm:customer:1") == {b"g:1": b"\x00packed"}


def test_stop_says_whether_there_was_a_server(folder: Path) -> None:
    assert not embedded_redis.stop(folder)
    assert not folder.exists()
    embedded_redis.start(folder)
    assert embedded_redis.stop(folder)
    assert not embedded_redis.stop(folder)
    with pytest.raises(OnlineStoreError, match="refused"):
        open_redis(embedded_redis.address(folder))


def test_a_second_start_finds_the_running_server(folder: Path) -> None:
    embedded_redis.start(folder)
    before = process_id(folder)
    embedded_redis.start(folder)
    assert process_id(folder) == before


def test_the_server_outlives_the_command_that_started_it(folder: Path) -> None:
    script = "import sys, pathlib; from connectors.embedded_redis import start; start(pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", script, str(folder)], cwd=ROOT, check=True, timeout=30)
    assert process_id(folder)


def test_processes_that_start_at_once_end_up_with_one_server(folder: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        found = pool.map(start_and_tell, [str(folder)] * 3, chunksize=1)
    assert len(set(found)) == 1


def test_threads_that_start_at_once_end_up_with_one_server(folder: Path) -> None:
    """Closer together than processes can be."""
    together = threading.Barrier(8)
    found: list[int] = []

    def start() -> None:
        together.wait(10)
        embedded_redis.start(folder)
        found.append(process_id(folder))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1


def test_a_killed_server_is_started_again(folder: Path) -> None:
    """It leaves its socket behind."""
    embedded_redis.start(folder)
    before = process_id(folder)
    os.kill(before, signal.SIGKILL)
    while embedded_redis._is_alive(folder):
        time.sleep(0.001)
    embedded_redis.start(folder)
    assert process_id(folder) != before


def test_the_files_are_for_their_owner_only(folder: Path) -> None:
    embedded_redis.start(folder)
    with client(folder) as connection:
        connection.set("a", "b")
        connection.save()
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (folder, folder / "online.rdb")}
    assert modes == {"redis": 0o700, "online.rdb": 0o600}
    assert stat.S_IMODE((folder / "redis.sock").stat().st_mode) == 0o700


def test_a_path_too_long_for_a_socket_still_works(tmp_path: Path) -> None:
    """The socket moves to a short private folder, the data stay."""
    folder = tmp_path / ("long " * 20) / "redis"
    address = embedded_redis.start(folder)
    socket = embedded_redis._socket(folder)
    try:
        assert address == embedded_redis.start(folder)
        assert len(str(socket)) <= embedded_redis.LONGEST_SOCKET_PATH
        assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
    finally:
        embedded_redis.stop(folder)
        socket.parent.rmdir()
    assert (folder / "online.rdb").exists()


def test_a_socket_folder_that_others_can_open_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 30)
    place = embedded_redis._socket(folder).parent
    place.mkdir()
    place.chmod(0o755)
    try:
        with pytest.raises(OnlineStoreError, match="not private"):
            embedded_redis.start(folder)
    finally:
        place.rmdir()


def test_a_path_with_spaces_and_percent_signs_works(tmp_path: Path) -> None:
    folder = tmp_path / "a b%20 é"
    try:
        with open_redis(embedded_redis.start(folder)) as store:
            assert store.read([b"nobody"], [b"g:1"]) == [[None]]
    finally:
        embedded_redis.stop(folder)


def test_damaged_data_fail_the_start_with_the_end_of_the_log(folder: Path) -> None:
    folder.mkdir()
    (folder / "online.rdb").write_bytes(b"REDIS0009 and then something else")
    with pytest.raises(OnlineStoreError, match=r"does not start; its log ends:\n(.|\n)*RDB"):
        embedded_redis.start(folder)
    (folder / "online.rdb").unlink()
    embedded_redis.start(folder)


def test_a_refused_setting_fails_the_start_with_what_the_server_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(embedded_redis.SETTINGS, "no-such-setting", "1")
    with pytest.raises(OnlineStoreError, match="no-such-setting"):
        embedded_redis.start(folder)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OnlineStoreError, match="folder cannot be used"):
        embedded_redis.start(tmp_path / "file" / "redis")


def test_without_the_wheel_the_server_on_path_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And without both, the hint is the extra that brings one."""
    monkeypatch.setattr(embedded_redis.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingPartError, match="tidemark\\[embedded\\]"):
        embedded_redis.executable()
    server = tmp_path / "redis-server"
    server.touch(mode=0o755)
    assert embedded_redis.executable() == server
