"""The online store in Redis: one hash per entity key, one field per feature group, one packed value.

    tm:customer:c-17  {customer_purchases:1 -> packed, customer_support:3 -> packed}

    write   keys, values -> calls of 50 entities -> windows of 64 calls, pipelined -> a Lua script compares and stores
    read    keys x fields -> one pipelined HMGET per key, one round trip

Newer wins inside the server: the script compares event_times where the value lies, so writers need no lock and any load
may be repeated. 50 entities a call make that compare nearly free.

A key expires when the last of its groups would: its expiry is only ever raised, and a group without ttl takes it away.
Redis counts by its own clock and in milliseconds; readers check the ttl exactly, by the packed event_time. So a key
lives a second longer than its last value, and a value that is past its ttl by the server's clock is not stored.

What it needs of a restricted Redis user: EVALSHA, SCRIPT LOAD, HGET, HSET, HMGET, HDEL, PTTL, PEXPIREAT, PERSIST, TIME,
PING on the keys of its prefix.
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import redis
from redis.backoff import NoBackoff
from redis.exceptions import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    ClusterCrossSlotError,
    ClusterDownError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
)
from redis.retry import Retry

from connectors.codec import HEADER, event_times
from connectors.online_store import WriteCounts
from feature_defs.errors import OnlineStoreError, UsageError

ENTITIES_PER_CALL = 50
CALLS_IN_FLIGHT = 64
# Large values make smaller calls, so that what is in flight stays below CALLS_IN_FLIGHT times this.
BYTES_PER_CALL = 256 * 1024
EXPIRY_MARGIN_MS = 1000

# KEYS: entity keys. ARGV: the field, a packed value per key and, for a group with a ttl, an expiry per key.
# An event_time is compared as two halves: Lua's numbers are doubles, which cannot hold every 64-bit integer, and its
# string order depends on the server's locale.
WRITE_SCRIPT = """
local field, count = ARGV[1], #KEYS
local has_ttl = #ARGV > count + 1
local written, kept, expired, bytes = 0, 0, 0, 0

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local started = has_ttl and now_ms()

for i = 1, count do
  local key, value, expiry = KEYS[i], ARGV[1 + i], ARGV[1 + count + i]
  local stored = redis.call('HGET', key, field)
  local newer = false
  if stored then
    if #stored < HEADER_SIZE then
      return redis.error_reply('FOREIGN the field holds a value that is not packed')
    end
    local definition, low, high = struct.unpack('<I4I4i4', value, HEADER_SIZE - 11)
    local stored_definition, stored_low, stored_high = struct.unpack('<I4I4i4', stored, HEADER_SIZE - 11)
    if stored_definition == definition then
      newer = stored_high > high or (stored_high == high and stored_low > low)
    else
      newer = stored_definition > definition
    end
  end
  if newer then
    kept = kept + 1
  elseif has_ttl and tonumber(expiry) <= started then
    expired = expired + 1
  else
    -- Milliseconds left; -1 without expiry, -2 without key.
    local left = has_ttl and redis.call('PTTL', key)
    redis.call('HSET', key, field, value)
    -- The clock is read after PTTL, so the present expiry is never taken for an earlier one and never lowered.
    if not has_ttl then
      redis.call('PERSIST', key)
    elseif left == -2 or (left >= 0 and tonumber(expiry) > now_ms() + left) then
      redis.call('PEXPIREAT', key, expiry)
    end
    written = written + 1
    bytes = bytes + #value
  end
end
return {written, kept, expired, bytes}
""".replace("HEADER_SIZE", str(HEADER.size))
WRITE_SHA = hashlib.sha1(WRITE_SCRIPT.encode(), usedforsecurity=False).hexdigest()


@dataclass(frozen=True)
class RedisAddress:
    """Where a Redis is and how to log in. Plain data, so that a Spark executor can open it."""

    url: str  # redis://HOST:PORT/DB, rediss:// for TLS, unix:///PATH
    password: str | None = field(default=None, repr=False)
    username: str | None = None
    timeout_seconds: float = 10.0
    key_prefix: str = "tm"

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("redis", "rediss", "unix"):
            raise UsageError(
                "Redis address",
                f"expected a url of redis://, rediss:// or unix://, found '{parts.scheme}'",
                hint="write redis://HOST:6379/0",
            )
        if parts.username or parts.password or {"username", "password"} & parse_qs(parts.query).keys():
            # The url is shown in messages.
            raise UsageError(
                "Redis address",
                "the url holds a user name or a password",
                hint="take both out of the url; the password comes from the environment or a secret scope",
            )
        if not self.key_prefix or ":" in self.key_prefix:
            raise UsageError(
                "Redis address", f"the key prefix is '{self.key_prefix}'", hint="write a word without ':', as in 'tm'"
            )

    def __str__(self) -> str:
        return f"Redis {self.url}"


class RedisOnlineStore:
    """An open Redis, an OnlineStore. May be shared by threads; each uses a connection of the client's pool."""

    def __init__(self, address: RedisAddress, client: redis.Redis) -> None:
        self.address = address
        self._client = client

    def __enter__(self) -> RedisOnlineStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._client.close()

    def write(self, keys: pa.Array, values: pa.Array, *, field: bytes, ttl_us: int | None, now_us: int) -> WriteCounts:
        """Store each value under its key's field, unless a newer one is there. Safe to repeat after any failure."""
        if len(keys) != len(values) or keys.null_count:
            raise ValueError(f"{len(keys)} keys with {keys.null_count} null(s) for {len(values)} values")
        times = event_times(values)
        expired, expiries = 0, None
        if ttl_us is not None:
            # At the far end of time a sum would wrap around.
            ends = np.minimum(times, np.iinfo(np.int64).max - ttl_us) + ttl_us
            alive = ends >= now_us
            expired = len(ends) - int(alive.sum())
            if expired:
                keys, values, ends = keys.filter(pa.array(alive)), values.filter(pa.array(alive)), ends[alive]
            expiries = ends // 1000 + 1 + EXPIRY_MARGIN_MS
        counts = WriteCounts(expired=expired)
        calls = write_calls(keys, values, field=field, expiries=expiries)
        with _explained(self.address, f"writing field '{field.decode()}' failed"):
            while window := list(islice(calls, CALLS_IN_FLIGHT)):
                counts += self._send(window)
        return counts

    def read(self, keys: Sequence[bytes], fields: Sequence[bytes]) -> list[list[bytes | None]]:
        if not keys or not fields:
            return [[] for _ in keys]
        with _explained(self.address, f"reading {len(keys)} keys failed"):
            return _checked(self._replies([("HMGET", key, *fields) for key in keys]))

    def delete(self, keys: Sequence[bytes], fields: Sequence[bytes]) -> int:
        deleted = 0
        calls = iter([("HDEL", key, *fields) for key in keys] if fields else [])
        with _explained(self.address, f"deleting from {len(keys)} keys failed"):
            while window := list(islice(calls, CALLS_IN_FLIGHT * ENTITIES_PER_CALL)):
                deleted += sum(_checked(self._replies(window)))
        return deleted

    def _send(self, window: list[tuple[Any, ...]]) -> WriteCounts:
        """Run the script for a window of calls, after loading it into a server that does not have it."""
        commands = [("EVALSHA", WRITE_SHA, *call) for call in window]
        replies = self._replies(commands)
        unknown = [index for index, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if unknown:
            self._client.script_load(WRITE_SCRIPT)
            again = self._replies([commands[index] for index in unknown])
            for index, reply in zip(unknown, again, strict=True):
                replies[index] = reply
        return sum((WriteCounts(*reply) for reply in _checked(replies)), WriteCounts())

    def _replies(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """The reply of each command, an error reply as its exception, in one round trip."""
        with self._client.pipeline(transaction=False) as pipeline:
            for command in commands:
                pipeline.execute_command(*command)  # type: ignore[no-untyped-call]  # redis-py has no types here
            # Raised by the pipeline, an error would quote the command with its values.
            return pipeline.execute(raise_on_error=False)


def open_redis(address: RedisAddress) -> RedisOnlineStore:
    """Connect and log in, or say why not."""
    client = redis.Redis.from_url(
        address.url,
        username=address.username,
        password=address.password,
        socket_timeout=address.timeout_seconds,
        socket_connect_timeout=address.timeout_seconds,
        protocol=2,
        # Once more for a connection that the server closed while it was idle; Spark repeats what fails for longer.
        retry=Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
    )
    store = RedisOnlineStore(address, client)
    try:
        with _explained(address, "connecting failed"):
            client.ping()
    except OnlineStoreError:
        store.close()
        raise
    return store


def write_calls(
    keys: pa.Array, values: pa.Array, *, field: bytes, expiries: np.ndarray[Any, np.dtype[np.int64]] | None
) -> Iterator[tuple[Any, ...]]:
    """The arguments of the write script after its digest, a call at a time."""
    longest = max(pc.max(pc.binary_length(values)).as_py() or 0, 1)
    entities = max(1, min(ENTITIES_PER_CALL, BYTES_PER_CALL // longest))
    for start in range(0, len(keys), entities):
        some = keys.slice(start, entities).to_pylist()
        ends = [] if expiries is None else expiries[start : start + entities].tolist()
        yield (len(some), *some, field, *values.slice(start, entities).to_pylist(), *ends)


def _checked(replies: list[Any]) -> list[Any]:
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
    return replies


@dataclass(frozen=True)
class _Refusal:
    """An error reply: redis-py's class for it, or the code in the text, where an error inside the script keeps it."""

    kinds: tuple[type[RedisError], ...]
    code: str
    problem: str
    hint: str


_ANOTHER_PREFIX = "something else uses this prefix: choose another key prefix, or remove its keys"
# The first two are connection errors to redis-py too, so this table comes before those.
_REFUSALS = (
    _Refusal(
        (AuthenticationError,),
        "WRONGPASS",
        "the user name or the password is wrong or missing",
        "set the password of this Redis in the environment variable or the secret that the profile names",
    ),
    _Refusal(
        (BusyLoadingError,),
        "LOADING",
        "it is still loading its data",
        "wait until the server is up, then run it again",
    ),
    _Refusal(
        (NoPermissionError,),
        "NOPERM",
        "the user may not run a command or touch a key",
        "give it the commands that connectors/redis_online.py lists, on the keys of the profile's prefix",
    ),
    _Refusal(
        (OutOfMemoryError,),
        "-OOM ",
        "its memory is full",
        "raise maxmemory, or put fewer groups online, then run it again: a repeated load is harmless",
    ),
    _Refusal((ReadOnlyError,), "READONLY", "it is a read-only replica", "name the primary's address in the profile"),
    _Refusal(
        (AskError, ClusterCrossSlotError, ClusterDownError),
        "CROSSSLOT",
        "it is a Redis Cluster, where one call cannot write keys of several slots",
        "name a Redis that is no cluster",
    ),
    _Refusal(
        (),
        "MISCONF",
        "it refuses writes because it cannot save its data",
        "look into the server's log: its disk may be full",
    ),
    _Refusal((), "WRONGTYPE", "a key holds something that is no hash", _ANOTHER_PREFIX),
    _Refusal((), "FOREIGN", "a field holds a value that Tidemark did not write", _ANOTHER_PREFIX),
    _Refusal(
        (),
        "max number of clients",
        "it has no connection left",
        "raise maxclients, or run fewer tasks at once",
    ),
    _Refusal(
        (),
        "unknown command",
        "a command is switched off",
        "allow the commands that connectors/redis_online.py lists",
    ),
)


@contextmanager
def _explained(address: RedisAddress, doing: str) -> Iterator[None]:
    """Redis errors as OnlineStoreErrors. The original is left out: its text may quote keys and values."""
    try:
        yield
    except RedisError as error:
        problem, hint = _explain(error)
        raise OnlineStoreError(str(address), f"{doing}: {problem}", hint=hint) from None


def _explain(error: RedisError) -> tuple[str, str]:
    """What happened, and what to do about it."""
    text = str(error)
    for refusal in _REFUSALS:
        if isinstance(error, refusal.kinds) or refusal.code in text:
            return refusal.problem, refusal.hint
    if isinstance(error, redis.TimeoutError):
        return "no answer in time", "look whether the server is busy or a firewall is between, or raise the timeout"
    if isinstance(error, redis.ConnectionError):
        if isinstance(error.__cause__ or error.__context__, socket.gaierror):
            return "the host name is unknown", "correct the host in the profile, or look at the name server"
        if "refused" in text or "No such file" in text:
            return "the connection is refused", "start the server, or correct the address in the profile"
        return "the connection broke", "look into the server's log, then run it again: a repeated load is harmless"
    code = text.split(" ", 1)[0]
    return f"it answered {code if code.isupper() else type(error).__name__}", "look into the server's log"
