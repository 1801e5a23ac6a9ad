"""The client that a model's application reads with: a service's features of one or many entities in one round trip.

    keys -> one request (online_service) -> one round trip -> an Answer (online_answer): dicts, pandas or Arrow

    with OnlineClient.open(registry, "churn", address) as client:
        client.get({"customer_id": "CUST001"}).one()

All HMGETs of a request go out in one write, on a pooled connection of redis-py, and its parser takes their replies for
one array; its pipeline would take several times as long to build the request and to hand on the replies. A connection
that did not deliver every reply is closed: nobody reads the rest of somebody else's answer.

Where the address has generations, the generation to read is asked for in the same round trip; a client that read
another one asks once more, of the right one.

Needs neither Spark nor pandas, and of a restricted Redis user HMGET (and HGET, with generations) on the keys of the
prefix. AsyncOnlineClient has
the same words for asyncio. A Redis Cluster is recognised by its first redirection and read through redis-py's client.
"""

from __future__ import annotations

import asyncio
import datetime
import os
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.exceptions import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    RedisClusterException,
    RedisError,
)
from redis.retry import Retry

from connectors.generations import NOW, pointer_key, prefix_of
from connectors.online_answer import OTHER_SCHEMA, Answer
from connectors.online_service import Fallback, Keys, Request, ServicePlan, service_plan
from connectors.redis_online import RedisAddress, explained
from connectors.registry import Registry
from feature_defs.errors import LakeError, OnlineStoreError

CONNECTIONS = 50
LEARN_SECONDS = 60.0  # between two looks into the registry for a schema that is not known
_ALL_IN_USE = "No connection available"  # as redis-py says it
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
_Replies = tuple[list[Any], RedisError | None]


class OnlineClient:
    """Reads one service. May be shared by threads: each uses a connection of the pool while it reads."""

    def __init__(
        self,
        plan: ServicePlan,
        address: RedisAddress,
        *,
        registry: Registry | None = None,
        fallback: Fallback | None = None,
        connections: int = CONNECTIONS,
    ) -> None:
        self._service = _Service(plan, address, registry, fallback)
        self._pool = _Pool(address, connections)
        self._cluster: redis.RedisCluster | None = None

    @classmethod
    def open(
        cls,
        registry: Registry,
        service: str,
        address: RedisAddress,
        *,
        prefix: bool = False,
        fallback: Fallback | None = None,
        connections: int = CONNECTIONS,
    ) -> OnlineClient:
        """A client for a service as registered, NAME or NAME@VERSION. It connects when it first reads."""
        plan = _registered(registry, service, address, prefix=prefix)
        return cls(plan, address, registry=registry, fallback=fallback, connections=connections)

    def __enter__(self) -> OnlineClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._pool.close()
        if self._cluster:
            self._cluster.close()

    def get(self, keys: Keys | Sequence[Keys], *, now: datetime.datetime | None = None) -> Answer:
        """The service's features of the entity, or of each entity, with these keys; ttl is judged at `now`."""
        service = self._service
        plan, request = service.request(keys)
        try:
            replies = self._replies(plan, request)
            while service.has_moved(plan, replies):
                plan, request = service.request(keys)
                replies = self._replies(plan, request)
        except OnlineStoreError as error:
            return service.without(request, error, now)
        answer = service.answer(request, replies, now)
        if answer is None:
            service.learn()
            answer = service.learned(request, replies, now)
        return answer

    def _replies(self, plan: ServicePlan, request: Request) -> list[Any]:
        if not request.count:
            return []
        try:
            if self._cluster is None:
                packed, count = self._service.packed(plan, request)
                replies, error = self._exchange(packed, count)
                if error is None:
                    return replies
                if not isinstance(error, AskError):
                    raise error
                options = _options(self._service.address, None)
                self._cluster = redis.RedisCluster.from_url(self._service.address.url, **options)
            with self._cluster.pipeline() as pipeline:  # type: ignore[no-untyped-call]
                for command in self._service.commands(plan, request):
                    pipeline.execute_command(*command)
                return self._service.checked(pipeline.execute(raise_on_error=False))
        except (RedisError, RedisClusterException) as error:
            raise self._service.explained(request, error) from None

    def _exchange(self, packed: bytes, count: int) -> _Replies:
        connection = self._pool.take()
        try:
            try:
                return self._round_trip(connection, packed, count)
            except redis.ConnectionError as error:
                if not _is_broken(error):
                    raise
                # The server may have closed it while it was idle. The same one is made anew: others may be closed, too.
                connection.disconnect()
                return self._round_trip(connection, packed, count)
        except BaseException:
            connection.disconnect()
            raise
        finally:
            self._pool.give_back(connection)

    def _round_trip(self, connection: Any, packed: bytes, count: int) -> _Replies:
        connection.send_packed_command([packed])
        _expect_array(connection, count)
        return _with_refusal(connection.read_response())


class _Pool:
    """Connections of redis-py, the last used first, and no more than `most` at once.

    redis-py's own pool takes 10 us a read, a quarter of a short one: it looks whether the server has hung up. Here that
    is found out by the read, which is then done again.
    """

    def __init__(self, address: RedisAddress, most: int) -> None:
        pool = redis.ConnectionPool.from_url(address.url, **_options(address))
        self._make = partial(pool.connection_class, **pool.connection_kwargs)
        self._most, self._timeout = most, address.timeout_seconds
        self._reset()

    def _reset(self) -> None:
        self._idle: list[Any] = []  # redis-py's connections have no types
        self._free = SimpleQueue[None]()  # a semaphore takes 2 us a read
        for _ in range(self._most):
            self._free.put(None)
        self._process = os.getpid()

    def take(self) -> Any:
        if self._process != os.getpid():
            self._reset()  # a fork's connections are its parent's
        try:
            self._free.get(timeout=self._timeout)
        except Empty:
            raise redis.ConnectionError(_ALL_IN_USE) from None
        try:
            return self._idle.pop()
        except IndexError:
            return self._make()

    def give_back(self, connection: Any) -> None:
        self._idle.append(connection)
        self._free.put(None)

    def close(self) -> None:
        while self._idle:
            self._idle.pop().disconnect()


class AsyncOnlineClient:
    """The same words for asyncio: `await client.get(...)`. One client for each event loop, shared by its tasks."""

    def __init__(
        self,
        plan: ServicePlan,
        address: RedisAddress,
        *,
        registry: Registry | None = None,
        fallback: Fallback | None = None,
        connections: int = CONNECTIONS,
    ) -> None:
        self._service = _Service(plan, address, registry, fallback)
        self._pool = redis.asyncio.BlockingConnectionPool.from_url(
            address.url,
            **_options(address, redis.asyncio.retry.Retry),
            max_connections=connections,
            timeout=address.timeout_seconds,
        )
        self._cluster: redis.asyncio.RedisCluster | None = None

    @classmethod
    def open(
        cls,
        registry: Registry,
        service: str,
        address: RedisAddress,
        *,
        prefix: bool = False,
        fallback: Fallback | None = None,
        connections: int = CONNECTIONS,
    ) -> AsyncOnlineClient:
        """As OnlineClient.open. It reads the registry, so call it before the loop has to answer anybody."""
        plan = _registered(registry, service, address, prefix=prefix)
        return cls(plan, address, registry=registry, fallback=fallback, connections=connections)

    async def __aenter__(self) -> AsyncOnlineClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        with suppress(RedisError):  # a server that hangs does not answer the end of TLS either
            await self._pool.disconnect()
        if self._cluster:
            await self._cluster.aclose()

    async def get(self, keys: Keys | Sequence[Keys], *, now: datetime.datetime | None = None) -> Answer:
        """As OnlineClient.get."""
        service = self._service
        plan, request = service.request(keys)
        try:
            replies = await self._replies(plan, request)
            while service.has_moved(plan, replies):
                plan, request = service.request(keys)
                replies = await self._replies(plan, request)
        except OnlineStoreError as error:
            return service.without(request, error, now)
        answer = service.answer(request, replies, now)
        if answer is None:
            await asyncio.to_thread(service.learn)
            answer = service.learned(request, replies, now)
        return answer

    async def _replies(self, plan: ServicePlan, request: Request) -> list[Any]:
        if not request.count:
            return []
        try:
            if self._cluster is None:
                packed, count = self._service.packed(plan, request)
                replies, error = await self._exchange(packed, count)
                if error is None:
                    return replies
                if not isinstance(error, AskError):
                    raise error
                options = _options(self._service.address, None)
                self._cluster = redis.asyncio.RedisCluster.from_url(self._service.address.url, **options)
            pipeline = self._cluster.pipeline()
            for command in self._service.commands(plan, request):
                pipeline.execute_command(*command)
            return self._service.checked(await pipeline.execute(raise_on_error=False))
        except (RedisError, RedisClusterException) as error:
            raise self._service.explained(request, error) from None

    async def _exchange(self, packed: bytes, count: int) -> _Replies:
        connection = await self._pool.get_connection()  # type: ignore[no-untyped-call]
        try:
            try:
                return await self._round_trip(connection, packed, count)
            except redis.ConnectionError as error:
                if not _is_broken(error):
                    raise
                await connection.disconnect(nowait=True)
                return await self._round_trip(connection, packed, count)
        except BaseException:  # a cancelled task's replies are still to come
            await connection.disconnect(nowait=True)
            raise
        finally:
            await self._pool.release(connection)

    async def _round_trip(self, connection: Any, packed: bytes, count: int) -> _Replies:
        await connection.send_packed_command([packed])
        _expect_array(connection, count)
        return _with_refusal(await connection.read_response())


class _Service:
    """What both clients do before and behind their round trip."""

    def __init__(
        self, plan: ServicePlan, address: RedisAddress, registry: Registry | None, fallback: Fallback | None
    ) -> None:
        self.plan, self.address = plan, address
        self._registry, self._fallback = registry, plan.checked(fallback)
        self._lock = threading.Lock()
        self._newest = 0  # snapshot that was learned from
        self._next_look = 0.0
        # What asks for the generation to read, in front of what asks for values.
        self._pointer = ("HGET", pointer_key(address.key_prefix), NOW) if address.generations else ()
        self._packed_pointer = _packed(self._pointer) if self._pointer else b""
        self.learn()

    def request(self, keys: Keys | Sequence[Keys]) -> tuple[ServicePlan, Request]:
        plan = self.plan
        return plan, plan.request([keys] if isinstance(keys, Mapping) else list(keys))

    def packed(self, plan: ServicePlan, request: Request) -> tuple[bytes, int]:
        """What is sent for a request, and how many replies it has."""
        return self._packed_pointer + plan.packed(request), request.count + bool(self._pointer)

    def commands(self, plan: ServicePlan, request: Request) -> list[tuple[Any, ...]]:
        """The same, command by command."""
        values = [("HMGET", key, *fields) for key, fields in plan.commands(request)]
        return [self._pointer, *values] if self._pointer else values

    def has_moved(self, plan: ServicePlan, replies: list[Any]) -> bool:
        """Whether the plan reads a generation that is not the one to read: then this has a plan of that now."""
        if not self._pointer or not replies:
            return False
        number = int(replies.pop(0) or 0)
        if number == plan.generation:
            return False
        with self._lock:
            self.plan = self.plan.of_generation(number, prefix_of(self.address.key_prefix, number))
        return True

    def checked(self, replies: list[Any]) -> list[Any]:
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        return replies

    def explained(self, request: Request, error: Exception) -> OnlineStoreError:
        doing = f"reading {request.count} keys failed"
        if isinstance(error, RedisClusterException):
            hint = "look at the state of the cluster's nodes"
            return OnlineStoreError(str(self.address), f"{doing}: the Redis Cluster does not answer", hint=hint)
        if _ALL_IN_USE in str(error):
            problem = f"{doing}: every connection of this client was in use for {self.address.timeout_seconds} s"
            return OnlineStoreError(str(self.address), problem, hint="open the client with more connections")
        assert isinstance(error, RedisError)
        return explained(self.address, doing, error)

    def without(self, request: Request, error: OnlineStoreError, now: datetime.datetime | None) -> Answer:
        """The answer when the store gave none: the fallback's, or the error."""
        if self._fallback is None:
            raise error
        answer = self.plan.unreachable(request, error, _now_us(now))
        return self.plan.with_defaults(answer, request, self._fallback)

    def answer(self, request: Request, replies: list[Any], now: datetime.datetime | None) -> Answer | None:
        """What was found; None when there is something to be learned first."""
        answer = self.plan.answer(request, replies, _now_us(now))
        if any(OTHER_SCHEMA in part.found for part in answer.parts) and self._may_learn():
            return None
        return self._completed(answer, request)

    def learned(self, request: Request, replies: list[Any], now: datetime.datetime | None) -> Answer:
        return self._completed(self.plan.answer(request, replies, _now_us(now)), request)

    def _completed(self, answer: Answer, request: Request) -> Answer:
        return answer if self._fallback is None else self.plan.with_defaults(answer, request, self._fallback)

    def _may_learn(self) -> bool:
        """Whether it is time to look again; true for one caller at a time."""
        if self._registry is None or time.monotonic() < self._next_look:
            return False
        with self._lock:
            is_first = time.monotonic() >= self._next_look
            self._next_look = time.monotonic() + LEARN_SECONDS
        return is_first

    def learn(self) -> None:
        """Know every schema that the service's groups have, or had, in the registry.

        A group may be redefined and loaded while this client runs: what has stayed of its features is still served.
        """
        if self._registry is None:
            return
        try:
            newest = max(self._registry.numbers(), default=0)
            if newest != self._newest:
                versions = {plan.group.name: plan.group.version for plan in self.plan.groups}
                definitions = self._registry.definitions_of(versions)
                with self._lock:  # another thread may change the plan's generation
                    self.plan = self.plan.knowing(definitions)
                self._newest = newest
        except LakeError:
            return  # tried again at the next unknown schema


def _registered(registry: Registry, service: str, address: RedisAddress, *, prefix: bool) -> ServicePlan:
    snapshot, found = registry.find_service(service)
    parts = snapshot.definitions.features_of(found)
    return service_plan(
        f"Service '{found.name}'", snapshot.definitions, parts, key_prefix=address.key_prefix, prefix=prefix
    )


def _packed(command: Sequence[str]) -> bytes:
    words = [word.encode() for word in command]
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


def _expect_array(connection: Any, count: int) -> None:
    """Have the replies to come read as one, an array of them: one by one, 100 take more than twice as long."""
    connection._parser._reader.feed(b"*%d\r\n" % count)  # noqa: SLF001  # redis-py has no name for its hiredis reader


def _with_refusal(replies: list[Any]) -> _Replies:
    """The replies, and the refusal if there is one among them: a cluster's redirection before all others."""
    refusals = [reply for reply in replies if isinstance(reply, RedisError)]
    if not refusals:
        return replies, None
    return replies, next((one for one in refusals if isinstance(one, AskError)), refusals[0])


def _options(address: RedisAddress, retry: Any = Retry) -> dict[str, Any]:
    """Of a connection. Nothing is tried again in here: the clients do, and redis-py's own for a cluster."""
    return {**address.options, **({"retry": retry(NoBackoff(), 0)} if retry else {})}


def _is_broken(error: redis.ConnectionError) -> bool:
    """A connection that may work when it is made anew; redis-py calls other refusals connection errors, too."""
    return not isinstance(error, AuthenticationError | BusyLoadingError)


def _now_us(now: datetime.datetime | None) -> int:
    if now is None:
        return time.time_ns() // 1000
    aware = now if now.tzinfo else now.replace(tzinfo=datetime.timezone.utc)
    return (aware - _EPOCH) // datetime.timedelta(microseconds=1)
