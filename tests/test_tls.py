"""TLS: loads and clients through an encrypted connection, and a server that is not the one it should be."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from connectors.redis_online import RedisAddress, open_redis
from feature_defs.errors import OnlineStoreError
from tests.test_online_client import NOW, Shop, customers, group, packed, shop

__all__ = ["shop"]  # a fixture

spend = group("spend", amount="bigint")


@dataclass(frozen=True)
class Certificate:
    """One that signed itself, and its key."""

    file: Path
    key: Path


def certificate(folder: Path, name: str) -> Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    named = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.timezone.utc)
    built = (
        x509.CertificateBuilder()
        .subject_name(named)
        .issuer_name(named)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    made = Certificate(folder / f"{name}.crt", folder / f"{name}.key")
    made.file.write_bytes(built.public_bytes(serialization.Encoding.PEM))
    made.key.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return made


@contextmanager
def encrypted(target: RedisAddress, own: Certificate) -> Iterator[int]:
    """The port of a server that speaks TLS and hands on to a Redis, as managed services do it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own.file, own.key)

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while chunk := source.recv(1 << 18):
                sink.sendall(chunk)
        for one in (source, sink):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def hand_on(client: socket.socket) -> None:
        with (
            suppress(OSError),
            context.wrap_socket(client, server_side=True) as secure,
            socket.socket(socket.AF_UNIX) as server,
        ):
            server.connect(target.url.removeprefix("unix://"))
            back = threading.Thread(target=pump, args=[server, secure], daemon=True)
            back.start()
            pump(secure, server)
            back.join()

    def serve(listening: socket.socket) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=hand_on, args=[listening.accept()[0]], daemon=True).start()

    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        threading.Thread(target=serve, args=[listening], daemon=True).start()
        yield listening.getsockname()[1]


def test_a_load_and_both_clients_read_through_tls(shop: Shop, tmp_path: Path) -> None:
    """50,000 values: several windows of the write, some of them in flight at once."""
    shop.register(spend)
    own = certificate(tmp_path, "server")
    count = 50_000
    keys = pa.array([f"tm:customer:c{number}".encode() for number in range(count)])
    values = pa.array(packed(spend, [(number,) for number in range(count)]), pa.large_binary())
    with encrypted(shop.address, own) as port:
        address = RedisAddress(f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={own.file}")
        with open_redis(address) as store:
            for expected in (count, count):  # new keys, and keys that are there
                found = store.write(keys, values, field=b"spend:1", ttl_us=None, now_us=0)
                assert found.written == expected
            assert store.read([b"tm:customer:c49999"], [b"spend:1"]) == [[values[-1].as_py()]]
        secure = replace(shop, address=address)
        asked = customers("c0", "c49999", "nobody")
        assert [row["amount"] for row in secure.get(asked, now=NOW).dicts()] == [0, 49_999, None]


def test_a_server_with_another_certificate_is_not_trusted(shop: Shop, tmp_path: Path) -> None:
    shop.register(spend)
    own, other = certificate(tmp_path, "server"), certificate(tmp_path, "other")

    async def read(secure: Shop) -> None:
        async with secure.open_async() as client:
            await client.get(customers("c1"))

    with encrypted(shop.address, own) as port:
        address = RedisAddress(f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={other.file}", patience_seconds=0.2)
        secure = replace(shop, address=address)
        refused = pytest.raises(OnlineStoreError, match="its certificate is not trusted")
        with refused:
            open_redis(address)
        with refused, secure.open() as client:
            client.get(customers("c1"))
        with refused:
            asyncio.run(read(secure))
