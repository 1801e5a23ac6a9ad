"""Writes through faults: a connection that breaks, a Redis that dies, is busy or full, TLS. Nothing is lost or wrong.

The Redis is real, and so are its faults: it is killed, filled and blocked. A small proxy breaks the connection.
"""

from __future__ import annotations

import datetime
import os
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pyarrow as pa
import pytest
import redis

from connectors import embedded_redis
from connectors.codec import ValueSchema, encode, removal
from connectors.online_store import WriteCounts
from connectors.redis_online import RedisAddress, RedisOnlineStore, open_redis
from connectors.redis_stream import BYTES_PER_CHUNK
from feature_defs.errors import OnlineStoreError

SECOND = 1_000_000
NOW = (time.time_ns() // 86_400_000_000_000 + 2) * 86_400 * SECOND
FIELD = b"purchases:1"
SCHEMA = ValueSchema.of([("total", "bigint"), ("note", "string")])
COUNT = 20_000


def rows(*, first: int = 0, count: int = COUNT, age: int = 0) -> tuple[pa.Array, pa.Array]:
    """Keys and values."""
    numbers = np.arange(first, first + count)
    times = pa.array(np.full(count, NOW - age)).cast(pa.timestamp("us", "UTC"))
    batch = pa.record_batch([times, pa.array(numbers), pa.array(["x" * 40] * count)], ["event_time", "total", "note"])
    return pa.array([b"private %d" % number for number in numbers]), encode(batch, SCHEMA, definition=1)


def write(store: RedisOnlineStore, keys: pa.Array, values: pa.Array) -> WriteCounts:
    return store.write(keys, values, field=FIELD, ttl_us=None, now_us=NOW)


def missing(store: RedisOnlineStore, keys: pa.Array, values: pa.Array) -> int:
    """How many values are not there as they should be."""
    found = store.read(keys.to_pylist(), [FIELD])
    return sum(value != expected for [value], expected in zip(found, values.to_pylist(), strict=True))


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "redis"
    embedded_redis.stop(tmp_path / "redis")


@pytest.fixture
def address(folder: Path) -> RedisAddress:
    return replace(embedded_redis.start(folder), patience_seconds=30.0)


@pytest.fixture
def server(address: RedisAddress) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(address.url) as client:
        yield client


@contextmanager
def proxy(
    address: RedisAddress, *, breaks: Callable[[int, int], bool], tls: ssl.SSLContext | None = None
) -> Iterator[int]:
    """A TCP port before the server's unix socket. breaks(connection's number, bytes so far) ends a connection."""
    path, number = unquote(urlsplit(address.url).path), 0
    opened: list[socket.socket] = []
    carriers: list[threading.Thread] = []

    def carry(source: socket.socket, target: socket.socket, number: int, *, counts: bool) -> None:
        passed = 0
        with suppress(OSError):
            while some := source.recv(8192):
                passed += len(some)
                if counts and breaks(number, passed):
                    break
                target.sendall(some)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def serve() -> None:
        nonlocal number
        while True:
            try:
                client, _ = listening.accept()
            except OSError:
                return
            if tls:
                client = tls.wrap_socket(client, server_side=True)
            server = socket.socket(socket.AF_UNIX)
            opened.extend((client, server))
            server.connect(path)
            for source, target, counts in ((client, server, True), (server, client, False)):
                options = {"counts": counts}
                carriers.append(threading.Thread(target=carry, args=[source, target, number], kwargs=options))
                carriers[-1].start()
            number += 1

    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        accepting = threading.Thread(target=serve)
        accepting.start()
        try:
            yield listening.getsockname()[1]
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            accepting.join()
            for end in opened:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            for carrier in carriers:
                carrier.join()
            for end in opened:
                end.close()


def test_a_connection_that_breaks_again_and_again_loses_nothing(address: RedisAddress) -> None:
    """Every connection but the tenth breaks after some chunks, in the middle of a call."""
    keys, values = rows()
    with (
        proxy(address, breaks=lambda number, passed: number < 10 and passed > 300_001) as port,
        open_redis(replace(address, url=f"redis://127.0.0.1:{port}")) as store,
    ):
        counts = write(store, keys, values)
        assert counts == WriteCounts(written=COUNT, bytes=sum(map(len, values.to_pylist())))
    with open_redis(address) as store:
        assert missing(store, keys, values) == 0


def test_a_connection_that_breaks_is_not_waited_for_without_patience(address: RedisAddress) -> None:
    keys, values = rows()
    with proxy(address, breaks=lambda number, passed: passed > 1_000_000) as port:
        impatient = replace(address, url=f"redis://127.0.0.1:{port}", patience_seconds=0)
        with open_redis(impatient) as store, pytest.raises(OnlineStoreError) as caught:
            write(store, keys, values)
    told = str(caught.value)
    assert "the connection broke" in told
    assert f"of {COUNT:,} entities" in told
    assert "private" not in told


def test_a_redis_that_is_killed_during_a_write_and_started_again_gets_the_rest(
    folder: Path, address: RedisAddress, server: redis.Redis
) -> None:
    """What it had not saved is lost with it; the same load again gives what one undisturbed load gives."""
    keys, values = rows()
    process, found = server.info("server")["process_id"], []

    def kill_and_start_again() -> None:
        while server.dbsize() < 1000:
            pass
        os.kill(process, signal.SIGKILL)
        while embedded_redis._is_alive(folder):
            time.sleep(0.001)
        time.sleep(0.1)
        embedded_redis.start(folder)

    fault = threading.Thread(target=kill_and_start_again)
    fault.start()
    with open_redis(address, rate=COUNT / 1.0) as store:  # slow enough to be in the middle of
        found.append(write(store, keys, values))
    fault.join()
    assert server.info("server")["process_id"] != process
    assert found[0].rows == found[0].written == COUNT
    with open_redis(address) as store:
        assert write(store, keys, values).written == COUNT
        assert missing(store, keys, values) == 0
    assert server.dbsize() == COUNT


def test_a_redis_that_stays_away_is_told_with_what_was_done(
    folder: Path, address: RedisAddress, server: redis.Redis
) -> None:
    keys, values = rows(count=100)
    with open_redis(replace(address, patience_seconds=0.2)) as store:
        write(store, keys, values)
        os.kill(server.info("server")["process_id"], signal.SIGKILL)
        while embedded_redis._is_alive(folder):
            time.sleep(0.001)
        with pytest.raises(OnlineStoreError, match="refused"):
            write(store, keys, values)


def test_full_memory_keeps_what_is_there_and_the_load_can_be_repeated(
    address: RedisAddress, server: redis.Redis
) -> None:
    keys, values = rows()
    server.config_set("maxmemory", server.info("memory")["used_memory"] + 2_000_000)
    with open_redis(address) as store:
        with pytest.raises(OnlineStoreError, match="memory is full") as caught:
            write(store, keys, values)
        done = int(str(caught.value).split("after ")[1].split(" of ")[0].replace(",", ""))
        # Of a call that was refused half way, the first entities are there and not counted.
        assert 0 < done <= server.dbsize() < COUNT
        server.config_set("maxmemory", 0)
        assert write(store, keys, values).written == COUNT
        assert missing(store, keys, values) == 0


def test_a_busy_redis_is_waited_for(address: RedisAddress, server: redis.Redis) -> None:
    """Somebody's script runs for ever, until somebody kills it."""
    server.config_set("lua-time-limit", 1)
    forever = threading.Thread(target=lambda: _ignored(lambda: server.eval("while true do end", 0)))
    with open_redis(address) as store, redis.Redis.from_url(address.url) as other:
        forever.start()
        while not _ignored(other.ping):
            time.sleep(0.001)
        killer = threading.Timer(0.3, other.script_kill)
        killer.start()
        keys, values = rows(count=500)
        assert write(store, keys, values).written == 500
        killer.join()
        forever.join()


def _ignored(action: Callable[[], object]) -> str:
    try:
        action()
    except redis.ResponseError as error:
        return str(error)
    return ""


def test_a_script_that_is_lost_during_a_write_is_loaded_again(address: RedisAddress, server: redis.Redis) -> None:
    keys, values = rows()
    stop = threading.Event()

    def forget() -> None:
        while not stop.wait(0.01):
            server.script_flush()

    thread = threading.Thread(target=forget)
    thread.start()
    try:
        with open_redis(address) as store:
            assert write(store, keys, values).written == COUNT
            assert missing(store, keys, values) == 0
    finally:
        stop.set()
        thread.join()


def test_writers_that_are_cut_off_at_any_time_leave_the_newest_after_all(address: RedisAddress) -> None:
    """Three loads at once, of three ages, each through a proxy of its own that breaks; with removals in between."""
    keys, newest = rows(count=5000)
    failed: list[Exception] = []

    def load(age: int) -> None:
        try:
            with (
                proxy(address, breaks=lambda number, passed: number < 5 and passed > 100_000 + age) as port,
                open_redis(replace(address, url=f"redis://127.0.0.1:{port}")) as store,
            ):
                if age:
                    gone = removal(1, np.full(5000, NOW - age))
                    assert store.write(keys, gone, field=FIELD, ttl_us=None, now_us=NOW).rows == 5000
                assert write(store, *rows(count=5000, age=age)).rows == 5000
        except (AssertionError, OnlineStoreError) as error:
            failed.append(error)

    threads = [threading.Thread(target=load, args=[age]) for age in (0, 1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    with open_redis(address) as store:
        assert missing(store, keys, newest) == 0


def test_a_write_goes_through_tls(address: RedisAddress, tmp_path: Path) -> None:
    certificate = self_signed(tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    keys, values = rows()
    with proxy(address, breaks=lambda number, passed: False, tls=tls) as port:
        secure = replace(address, url=f"rediss://127.0.0.1:{port}?ssl_ca_certs={certificate}", patience_seconds=0)
        with open_redis(secure) as store:
            assert write(store, keys, values).written == COUNT
            assert values.nbytes > 4 * BYTES_PER_CHUNK
            assert missing(store, keys, values) == 0


def self_signed(folder: Path) -> Path:
    """A certificate of 127.0.0.1 with its key, in one file."""
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.timezone.utc)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(address, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    file = folder / "certificate.pem"
    file.write_bytes(private + made.public_bytes(pem))
    return file


@pytest.mark.parametrize("rate", [20_000, 400])
def test_a_rate_slows_the_writer_down(address: RedisAddress, rate: int) -> None:
    count = rate // 4
    keys, values = rows(count=count)
    with open_redis(address, rate=rate) as store:
        started = time.monotonic()
        assert write(store, keys, values).written == count
        assert time.monotonic() - started > 0.2
