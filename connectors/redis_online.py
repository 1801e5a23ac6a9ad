"""The online store in Redis: one hash per entity key, one field per feature group, one packed value.

    tm:customer:c-17  {customer_purchases:1 -> packed, customer_support:3 -> packed}

    write   keys, values -> calls of 50 entities as one stream of bytes -> a Lua script compares and stores
            while all is new and nothing expires, plain commands, which cost the server a third less
    read    keys x fields -> one pipelined HMGET per key, one round trip

Newer wins inside the server: the script compares event_times where the value lies, so writers need no lock and any load
may be repeated. 50 entities a call make that compare nearly free.

A key expires when the last of its groups would: its expiry is only ever raised, and a group without ttl takes it away.
Redis counts by its own clock and in milliseconds; readers check the ttl exactly, by the packed event_time. So a key
lives a second longer than its last value, and a value that is past its ttl by the server's clock is not stored.

What it needs of a restricted Redis user: EVALSHA, EVAL, SCRIPT LOAD, EXISTS, HGET, HGETALL, HSET, HSETNX, HEXISTS,
HMGET, HDEL, PTTL, PEXPIREAT, PERSIST, TIME, PING, on the keys of its prefix, and MULTI, EXEC and INFO, without which it
is slower. In a Redis Cluster also ASKING, COMMAND and CLUSTER SLOTS. An audit of all entities also asks INFO and SCAN,
a forecast INFO and, where it may, CONFIG GET; generations ask HINCRBY, HKEYS, SCAN, INFO and UNLINK.
"""

from __future__ import annotations

import hashlib
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import numpy.typing as npt
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
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
)
from redis.retry import Retry

from connectors.codec import HEADER, event_times
from connectors.online_store import WriteCounts
from connectors.pacing import BURST_SECONDS, Patience, TokenBucket
from connectors.redis_cluster import ClusterRoute, is_cluster, slots_of
from connectors.redis_memory import ServerMemory, server_memory
from connectors.redis_stream import (
    Lane,
    OneServer,
    Route,
    Stopped,
    blocks,
    fields,
    gets,
    new_blocks,
    new_fields,
    run_calls,
    run_together,
    script_calls,
)
from feature_defs.errors import OnlineStoreError, UsageError

ENTITIES_PER_CALL = 50
FIELDS_PER_CALL = 500  # plain commands, between which the server does other things
# Large values make smaller calls: the server does nothing else during one.
BYTES_PER_CALL = 256 * 1024
# Laid out in memory at once; the keys and lengths come on top.
ENTITIES_TOGETHER = 50_000
BYTES_TOGETHER = 64 * 1024 * 1024
DELETES_IN_FLIGHT = 3200
EXPIRY_MARGIN_MS = 1000
# A window of SCAN keeps the server for a millisecond or two.
KEYS_PER_SCAN = 2000
_NO_LIMIT = np.iinfo(np.int64).min

# KEYS: entity keys. ARGV: the field; an expiry per key, packed, or nothing for a group without a ttl; a limit per key,
# packed, or nothing; a value or a removal per key.
# An event_time is compared as two halves: Lua's numbers are doubles, which cannot hold every 64-bit integer, and its
# string order depends on the server's locale.
WRITE_SCRIPT = """
local call, unpacked = redis.call, struct.unpack
local field, expiries, limits = ARGV[1], ARGV[2], ARGV[3]
local has_ttl, has_limits = #expiries > 0, #limits > 0
local written, kept, expired, removed, absent, bytes = 0, 0, 0, 0, 0, 0

local function now_ms()
  local time = call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local started = has_ttl and now_ms()
-- One question for all keys: into an empty store nothing has to be compared.
local empty = call('EXISTS', unpack(KEYS)) == 0

for i = 1, #KEYS do
  local key, value = KEYS[i], ARGV[3 + i]
  local removal = #value == HEADER_SIZE
  local expiry = has_ttl and unpacked('<i8', expiries, 8 * i - 7)
  local past = has_ttl and not removal and expiry <= started
  -- 0 where the same key came before in this call.
  if empty and not removal and not past and call('HSETNX', key, field, value) == 1 then
    if has_ttl then
      call('PEXPIREAT', key, expiry)
    end
    written = written + 1
    bytes = bytes + #value
  else
    local stored = call('HGET', key, field)
    local newer = false -- kept from being replaced
    local outlives = false -- and would stay for readers behind a value that is past its ttl
    if stored then
      if #stored <= HEADER_SIZE then
        return redis.error_reply('FOREIGN the field holds a value that is not packed')
      end
      local definition, low, high = unpacked('<I4I4i4', value, HEADER_SIZE - 11)
      local stored_definition, stored_low, stored_high = unpacked('<I4I4i4', stored, HEADER_SIZE - 11)
      if stored_definition == definition then
        outlives = stored_high > high or (stored_high == high and stored_low > low)
        newer = outlives
        if newer and has_limits then
          low, high = unpacked('<I4i4', limits, 8 * i - 7)
          newer = stored_high > high or (stored_high == high and stored_low > low)
        end
      else
        newer = stored_definition > definition
        outlives = true
      end
    end
    if newer then
      kept = kept + 1
    elseif removal or (past and outlives) then
      if stored then
        call('HDEL', key, field)
        removed = removed + 1
      else
        absent = absent + 1
      end
    elseif past then
      expired = expired + 1
    elseif stored == value then
      -- With an expiry all is done. Without one, a block may have written it under a key that expires.
      if not has_ttl then
        call('PERSIST', key)
      end
      written = written + 1
      bytes = bytes + #value
    else
      -- Milliseconds left; -1 without expiry, -2 without key.
      local left = has_ttl and call('PTTL', key)
      call('HSET', key, field, value)
      -- The clock is read after PTTL, so the present expiry is never taken for an earlier one and never lowered.
      if not has_ttl then
        call('PERSIST', key)
      elseif left == -2 or (left >= 0 and expiry > started + left and expiry > now_ms() + left) then
        call('PEXPIREAT', key, expiry)
      end
      written = written + 1
      bytes = bytes + #value
    end
  end
end
return {written, kept, expired, removed, absent, bytes, empty and 1 or 0}
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
    generations: bool = False  # whether clients ask which generation of keys to read: connectors/generations.py
    patience_seconds: float = 30.0  # how long a write tries again what may pass: a restart, a failover

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
            problem = f"the key prefix is '{self.key_prefix}'"
            raise UsageError("Redis address", problem, hint="write a word without ':', as in 'tm'")

    def __str__(self) -> str:
        return f"Redis {self.url}"

    @property
    def options(self) -> dict[str, Any]:
        """What redis-py is told of every connection, besides the url."""
        return {
            "username": self.username,
            "password": self.password,
            "socket_timeout": self.timeout_seconds,
            "socket_connect_timeout": self.timeout_seconds,
            "protocol": 2,
        }


class RedisOnlineStore:
    """An open Redis, an OnlineStore. May be shared by threads; each uses a connection of the client's pool."""

    def __init__(self, address: RedisAddress, client: redis.Redis, *, rate: float | None = None) -> None:
        self.address = address
        self._client = client
        self._cluster: redis.RedisCluster | None = None
        # Whether keys are expected to be new: then blocks of plain commands are tried before the script.
        self._new = True
        self._expired_before: int | None = None  # what `_expired` said last
        self._bucket = TokenBucket(rate) if rate else None
        # Small enough that a low rate is kept from tenth of a second to tenth.
        self._entities = (
            ENTITIES_PER_CALL if rate is None else max(1, min(ENTITIES_PER_CALL, int(rate * BURST_SECONDS)))
        )

    def __enter__(self) -> RedisOnlineStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._client.close()
        if self._cluster:
            self._cluster.close()

    def write(
        self,
        keys: pa.Array,
        values: pa.Array,
        *,
        field: bytes,
        ttl_us: int | None,
        now_us: int,
        limits: pa.Array | None = None,
    ) -> WriteCounts:
        """Store each value under its key's field, unless a newer one is there. Safe to repeat after any failure."""
        rows = write_rows(keys, values, ttl_us=ttl_us, now_us=now_us, limits=limits)
        counts = WriteCounts(expired=len(keys) - len(rows.keys))
        try:
            for found in self._counts(rows, field):
                counts += found
        except Stopped as stopped:
            if self._turns_out_a_cluster(stopped.error):
                # From the start: what was written is written once more, and counted once.
                return self.write(keys, values, field=field, ttl_us=ttl_us, now_us=now_us, limits=limits)
            counts += WriteCounts(*stopped.sums[:6].tolist())
            problem, hint = _explain(stopped.error)
            done = f"after {counts.rows:,} of {len(keys):,} entities" if counts.rows else ""
            doing = f"writing field '{field.decode()}' failed {done}".rstrip()
            raise OnlineStoreError(str(self.address), f"{doing}: {problem}", hint=hint) from None
        return counts

    def _counts(self, rows: WriteRows, field: bytes) -> Iterator[WriteCounts]:
        patience, per_call = Patience(self.address.patience_seconds), self._entities
        if self._cluster:
            per_call = 1
            rows = rows.taken(np.argsort(slots_of(rows.keys), kind="stable"))
        for part in rows.parts(per_call):
            left = part
            if self._new and part.are_plain:
                written, left = self._written_new(part, field)
                yield written
            if not len(left.keys):
                continue
            numbers = (left.expiries, left.limits)
            calls = script_calls(left.keys, left.values, numbers, rows=left.bounds, field=field, digest=WRITE_SHA)
            *sums, empty = run_calls(
                self._route_of(left), calls, width=7, patience=patience, bucket=self._bucket
            ).tolist()
            self._new = empty == len(calls)
            yield WriteCounts(*sums)

    def _route_of(self, rows: WriteRows) -> Route:
        if self._cluster:
            return ClusterRoute(self._cluster, WRITE_SCRIPT, slots_of(rows.keys))
        return OneServer(self._client, WRITE_SCRIPT)

    def _written_new(self, rows: WriteRows, field: bytes) -> tuple[WriteCounts, WriteRows]:
        """Write what is all new, call by call; the others are left, whatever the reason."""
        route = self._route_of(rows)
        so_far = self._expired() if self._cluster or self._expired_before is None else self._expired_before
        if so_far is None:
            calls = blocks(rows.keys, rows.values, rows=rows.bounds, field=field)
            found = new_blocks(route, calls, self._bucket)
        else:
            together = rows if self._bucket else rows.in_calls_of(FIELDS_PER_CALL)
            calls = fields(rows.keys, rows.values, rows=together.bounds, field=field)
            found = new_fields(route, calls, self._bucket)
            self._expired_before = now = self._expired()  # as it is before the next write, too
            if now != so_far:  # another group's key, which expires, may have come first
                found[:] = False
        self._new = bool(found.all())
        if self._new:
            return WriteCounts(written=len(rows.keys), bytes=rows.value_bytes), rows.slice(0, 0)
        kept = np.repeat(found, np.diff(calls.rows))
        done, left = rows.taken(np.flatnonzero(kept)), rows.taken(np.flatnonzero(~kept))
        return WriteCounts(written=len(done.keys), bytes=done.value_bytes), left

    def _expired(self) -> int | None:
        """How many keys have expired, of a server of which now none will; None for another, and for one that does not
        tell. If it is the same after a write, no key that was written expires."""
        if self._cluster:
            return None
        try:
            keys = self._client.info("keyspace")
            return (
                None if any(found["expires"] for found in keys.values()) else self._client.info("stats")["expired_keys"]
            )
        except (RedisError, KeyError, TypeError):
            return None

    def read(self, keys: Sequence[bytes], fields: Sequence[bytes]) -> list[list[bytes | None]]:
        if not keys or not fields:
            return [[] for _ in keys]
        with _explained(self.address, f"reading {len(keys)} keys failed"):
            if not self._cluster:
                calls = gets(pa.array(keys, pa.large_binary()), fields)
                lane = Lane(self._client, calls, range(len(calls)), None)
                run_together([lane])
                if not lane.errors():
                    return lane.replies
            # redis-py tries once more where a connection was lost, and tells when it is a cluster
            return self._replies([("HMGET", key, *fields) for key in keys])

    def delete(self, keys: Sequence[bytes], fields: Sequence[bytes]) -> int:
        deleted = 0
        calls = iter([("HDEL", key, *fields) for key in keys] if fields else [])
        with _explained(self.address, f"deleting from {len(keys)} keys failed"):
            while window := list(islice(calls, DELETES_IN_FLIGHT)):
                deleted += sum(self._replies(window))
        return deleted

    def _replies(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """The reply of each command, in one round trip to each server."""
        with (self._cluster or self._client).pipeline(transaction=False) as pipeline:
            for command in commands:
                pipeline.execute_command(*command)
            # Raised by the pipeline, an error would quote the command with its values.
            replies = pipeline.execute(raise_on_error=False)
        errors = [reply for reply in replies if isinstance(reply, Exception)]
        if any(isinstance(error, RedisError) and self._turns_out_a_cluster(error) for error in errors):
            return self._replies(commands)
        if errors:
            raise errors[0]
        return list(replies)

    def _turns_out_a_cluster(self, error: RedisError) -> bool:
        """Whether this answer is the first to tell, so that the same can be asked of the cluster now."""
        if self._cluster or not is_cluster(error):
            return False
        with _explained(self.address, "connecting to its cluster failed"):
            self._cluster = _open_cluster(self.address)
        return True

    def scan(self, entity: str) -> Iterator[list[bytes]]:
        """The keys of an entity that the store holds, in chunks.

        A key may come twice, and one that is written or removed meanwhile may or may not come.
        """
        return self.scan_keys(f"{self.address.key_prefix}:{entity}:")

    def scan_keys(self, start: str) -> Iterator[list[bytes]]:
        """The keys that start so, as `scan`."""
        match = re.sub(r"([*?\[\]\\])", r"\\\1", start) + "*"
        with _explained(self.address, "listing keys failed"):
            for server in self._servers():
                cursor = -1
                while cursor:
                    cursor, found = server.scan(max(cursor, 0), match=match, count=KEYS_PER_SCAN)
                    keys = [key for key in found if isinstance(key, bytes)]  # all: redis-py also types decoded ones
                    if keys:
                        yield keys

    def remove(self, keys: Sequence[bytes]) -> int:
        """Remove whole keys; how many there were. Their memory is given back in the background."""
        with _explained(self.address, f"removing {len(keys)} keys failed"):
            return sum(self._replies([("UNLINK", key) for key in keys])) if keys else 0

    def run(self, *command: Any) -> Any:
        """The reply of one command on one key of our own bookkeeping."""
        with _explained(self.address, f"{command[0]} failed"):
            (reply,) = self._replies([command])
        return reply

    def holds(self, keys: Sequence[bytes], fields: Sequence[bytes]) -> list[list[bool]]:
        """Whether each key has each field, without its value."""
        calls = [("HEXISTS", key, field) for key in keys for field in fields]
        with _explained(self.address, f"looking for {len(keys)} keys failed"):
            found = self._replies(calls)
        width = len(fields)
        return [[bool(one) for one in found[at * width : (at + 1) * width]] for at in range(len(keys))]

    def memory(self) -> tuple[ServerMemory, ...]:
        """What each server has and uses. CONFIG may be forbidden, as managed services do; INFO is not."""
        with _explained(self.address, "asking for its memory failed"):
            return tuple(_memory_of(server) for server in self._servers())

    def _servers(self) -> list[redis.Redis]:
        """The server that holds the keys, or the masters of the cluster."""
        if not self._cluster and int(self._client.info("cluster").get("cluster_enabled", 0)):
            self._cluster = _open_cluster(self.address)
        if not self._cluster:
            return [self._client]
        masters = self._cluster.get_primaries()  # type: ignore[no-untyped-call]  # redis-py has no types here
        return [self._cluster.get_redis_connection(node) for node in masters]


def _memory_of(server: redis.Redis) -> ServerMemory:
    info = server.info()
    try:
        settings = server.config_get("hash-max-*")
    except redis.ResponseError:  # forbidden, or no such command
        settings = None
    return server_memory(info, settings)


def open_redis(address: RedisAddress, *, rate: float | None = None) -> RedisOnlineStore:
    """Connect and log in, or say why not. It writes at most `rate` entities a second."""
    client = redis.Redis.from_url(
        address.url,
        **address.options,
        # Once more for a connection that the server closed while it was idle; Spark repeats what fails for longer.
        retry=Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
    )
    store = RedisOnlineStore(address, client, rate=rate)
    try:
        with _explained(address, "connecting failed"):
            client.ping()
    except OnlineStoreError:
        store.close()
        raise
    return store


def _open_cluster(address: RedisAddress) -> redis.RedisCluster:
    """The cluster that the server at the address is one of."""
    return redis.RedisCluster.from_url(
        address.url,
        **address.options,
        require_full_coverage=False,
    )


@dataclass(frozen=True)
class WriteRows:
    """What is sent of a write: each key's value or removal, and the columns that some writes have no need of."""

    keys: pa.Array
    values: pa.Array
    expiries: npt.NDArray[np.int64] | None  # milliseconds; 0 for a value that is past its ttl
    limits: npt.NDArray[np.int64] | None
    per_call: int = ENTITIES_PER_CALL

    def taken(self, order: npt.NDArray[np.int64]) -> WriteRows:
        """These rows, in this order."""
        keys, values = self.keys.take(pa.array(order)), self.values.take(pa.array(order))
        expiries, limits = (None if of is None else of[order] for of in (self.expiries, self.limits))
        return replace(self, keys=keys, values=values, expiries=expiries, limits=limits)

    def slice(self, start: int, count: int) -> WriteRows:
        keys, values = self.keys.slice(start, count), self.values.slice(start, count)
        expiries, limits = (None if of is None else of[start : start + count] for of in (self.expiries, self.limits))
        return replace(self, keys=keys, values=values, expiries=expiries, limits=limits)

    def parts(self, per_call: int) -> Iterator[WriteRows]:
        """As many rows at a time as are laid out in memory at once, in calls of so many or, of large values, fewer."""
        rows = self.in_calls_of(per_call)
        count = min(ENTITIES_TOGETHER, BYTES_TOGETHER // self._longest) // rows.per_call * rows.per_call
        count = max(rows.per_call, count)
        for start in range(0, len(self.keys), count):
            yield rows.slice(start, count)

    def in_calls_of(self, most: int) -> WriteRows:
        """The same in calls of so many or, of large values, fewer."""
        return replace(self, per_call=max(1, min(most, BYTES_PER_CALL // self._longest)))

    @cached_property
    def _longest(self) -> int:
        return max(pc.max(pc.binary_length(self.values)).as_py() or 0, 1)

    @property
    def bounds(self) -> npt.NDArray[np.int64]:
        """At which row each call begins, and the end of the last."""
        return np.append(np.arange(0, len(self.keys), self.per_call), len(self.keys))

    @property
    def are_plain(self) -> bool:
        """Whether to set a field that is not there is all there is to do: no expiry, no removals."""
        shortest = pc.min(pc.binary_length(self.values)).as_py()
        return self.expiries is None and shortest is not None and shortest > HEADER.size

    @property
    def value_bytes(self) -> int:
        return int(pc.sum(pc.binary_length(self.values)).as_py() or 0)


def write_rows(
    keys: pa.Array, values: pa.Array, *, ttl_us: int | None, now_us: int, limits: pa.Array | None
) -> WriteRows:
    """The rows of a write, without those past their ttl that can change nothing."""
    count = len(keys)
    if len(values) != count or keys.null_count:
        raise ValueError(f"{count} keys with {keys.null_count} null(s) for {len(values)} values")
    if limits is not None and len(limits) != count:
        raise ValueError(f"{count} keys for {len(limits)} limits")
    times = event_times(values)
    until = None if limits is None else np.asarray(limits.fill_null(_NO_LIMIT).cast(pa.int64()))
    if ttl_us is None:
        return WriteRows(keys, values, None, until)
    # At the far end of time a sum would wrap around.
    ends = np.minimum(times, np.iinfo(np.int64).max - ttl_us) + ttl_us
    alive = ends >= now_us
    expiries = np.where(alive, ends // 1000 + 1 + EXPIRY_MARGIN_MS, 0)
    sent = alive | (np.asarray(pc.binary_length(values)) == HEADER.size)
    if until is not None:
        sent |= until > times
    rows = WriteRows(keys, values, expiries, until)
    return rows if sent.all() else rows.taken(np.flatnonzero(sent))


@dataclass(frozen=True)
class _Refusal:
    """An error reply: redis-py's class for it, or the code in the text, where an error inside the script keeps it."""

    kinds: tuple[type[RedisError], ...]
    code: str
    problem: str
    hint: str


_CLUSTER_HINT = "look at `CLUSTER INFO` of its servers, then run it again: a repeated load is harmless"
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
        "the Redis Cluster does not serve every key",
        _CLUSTER_HINT,
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
    except RedisClusterException:
        raise OnlineStoreError(str(address), f"{doing}: no server of its cluster answers", hint=_CLUSTER_HINT) from None


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
        if "certificate verify failed" in text.lower():
            return "its certificate is not trusted", "add ?ssl_ca_certs=FILE to the url, with who signed it"
        if "refused" in text or "No such file" in text:
            return "the connection is refused", "start the server, or correct the address in the profile"
        return "the connection broke", "look into the server's log, then run it again: a repeated load is harmless"
    code = text.split(" ", 1)[0]
    return f"it answered {code if code.isupper() else type(error).__name__}", "look into the server's log"


def explained(address: RedisAddress, doing: str, error: RedisError) -> OnlineStoreError:
    """A Redis error as ours, for one who reads without this module's store. Raise it `from None`: see `_explained`."""
    problem, hint = _explain(error)
    return OnlineStoreError(str(address), f"{doing}: {problem}", hint=hint)
