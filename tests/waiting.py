"""What every launcher of a part needs: a port that is free, and to wait until something holds."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import TypeVar

import redis

PATIENCE_SECONDS = 300.0  # a machine that others use as well may take minutes to start a driver
Found = TypeVar("Found")


def free_port(*, with_partner: int = 0) -> int:
    """A port that nothing listens at; and neither at the one so much higher, where a part takes two."""
    while True:
        with closing(socket.create_server(("127.0.0.1", 0))) as found:
            port = int(found.getsockname()[1])
        if not with_partner:
            return port
        port = port % 20_000 + 30_000  # its partner is a port, too
        with (
            suppress(OSError),
            closing(socket.create_server(("127.0.0.1", port))),
            closing(socket.create_server(("127.0.0.1", port + with_partner))),
        ):
            return port


def until(
    ask: Callable[[], Found | None], seconds: float = PATIENCE_SECONDS, *, every: float = 0.02, log: Path | None = None
) -> Found:
    """The answer, once there is one. A part that does not answer yet, or not all of it, is asked again."""
    deadline = time.monotonic() + seconds
    while True:
        with suppress(OSError, KeyError, IndexError, redis.RedisError):
            if answer := ask():
                return answer
        told = f":\n{log.read_text(encoding='utf-8', errors='replace')[-3000:]}" if log else ""
        assert time.monotonic() < deadline, f"a part of the tests does not get there in {seconds:g} s{told}"
        time.sleep(every)
