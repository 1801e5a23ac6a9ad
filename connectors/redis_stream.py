"""Many calls as ready bytes: built by Arrow kernels for a whole batch, sent bounded in flight, answers checked.

    keys, values, numbers -> Calls (one buffer, which is what goes over the wire) -> lanes -> replies, one a call

A call of n entities, in the protocol of Redis:

    *{6 + 2n}                          arguments that follow
    $7 EVALSHA, $40 the script's digest, ${digits} n
    n times                            ${length} key
    ${length} field                    then, packed in 8 bytes each, what numbers there are of every entity
    ${8n} expiries, ${8n} limits       ${0} where there are none
    n times                            ${length} value

All keys of a batch are joined with their lengths into one binary column, and all values into another. What belongs to
a call is then a slice of each: a second join over calls, not over entities, lays header, keys, numbers and values end
to end.

A store that has none of the keys needs no script. A block is a transaction: it asks how many of the keys there are, and
sets each field that is not there. If the answers are "none" and "set" for all, its entities are written, at the cost of
plain commands; if not, the script writes them once more.

    MULTI, EXISTS key ..., n times HSETNX key field value, EXEC

Where no key of the store expires, what matters is that the field was not there: then the HSETNX alone are sent. To keep
commands for a transaction costs the server a fifth more.

A lane is one connection with what it has to send. Each step sends a chunk and then reads the answers to the chunk
before it, so the server always has work. At most two chunks are on their way, and the answers to them, or the chunks
where values are asked for, are smaller than any socket's buffer: so neither side waits for ever for the other to read.

The connection is redis-py's own: TLS, users, unix sockets and timeouts are its.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import hiredis
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import redis
from redis.connection import DefaultParser
from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthorizationError,
    MovedError,
    NoScriptError,
    RedisError,
    TryAgainError,
)

from connectors.pacing import Patience, TokenBucket

CALLS_PER_CHUNK = 256
# Large values make smaller chunks; a call that is larger than this goes alone.
BYTES_PER_CHUNK = 256 * 1024

_BYTES = pa.large_binary()
_LINE = b"\r\n"
_HSETNX = b"*4\r\n$6\r\nHSETNX\r\n"
Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Calls:
    """Script calls, one after another, as they go over the wire."""

    between: Callable[[int, int], memoryview]  # the bytes of the calls from one to before another
    starts: Numbers  # where in all bytes each call begins, and the end of the last
    rows: Numbers  # how many entities come before each call, and of all
    before: Numbers  # how many replies come before the one that counts

    def __len__(self) -> int:
        return len(self.starts) - 1


def script_calls(
    keys: pa.Array, values: pa.Array, numbers: Sequence[Numbers | None], *, rows: Numbers, field: bytes, digest: str
) -> Calls:
    """Calls of the script with this digest; the first takes the entities rows[0] to rows[1], and so on."""
    sizes = np.diff(rows)
    start = b"$7\r\nEVALSHA\r\n" + _bulk(digest.encode())
    pieces = [_headers(sizes, start), _slices(_bulks(keys), rows), pa.scalar(_bulk(field), _BYTES)]
    for column in numbers:
        if column is None:
            pieces.append(pa.scalar(_bulk(b""), _BYTES))
        else:
            pieces += _packed(column, rows)
    pieces.append(_slices(_bulks(values), rows))
    return _calls(pieces, rows, np.zeros_like(sizes))


def blocks(keys: pa.Array, values: pa.Array, *, rows: Numbers, field: bytes) -> Calls:
    """Transactions that write what is all new; `new_blocks` sends them."""
    sizes = np.diff(rows)
    found, which = np.unique(sizes, return_inverse=True)
    texts = [b"*1\r\n$5\r\nMULTI\r\n*%d\r\n$6\r\nEXISTS\r\n" % (1 + size) for size in found.tolist()]
    heads = pa.array(texts, _BYTES).take(pa.array(which))
    end = pa.scalar(b"*1\r\n$4\r\nEXEC\r\n", _BYTES)
    return _calls([heads, _slices(_bulks(keys), rows), _slices(_sets(keys, values, field), rows), end], rows, sizes + 2)


def fields(keys: pa.Array, values: pa.Array, *, rows: Numbers, field: bytes) -> Calls:
    """Commands that each set a field that is not there; `new_fields` sends them.

    They are laid out when they are sent: the server works meanwhile, and they stay in the processor's caches.
    """
    lengths = _lengths(keys) + _lengths(values) + len(_HSETNX + _bulk(field))
    starts = np.concatenate([[0], np.cumsum(lengths)])[rows]

    def between(first: int, end: int) -> memoryview:
        start, count = int(rows[first]), int(rows[end] - rows[first])
        places, data = _offsets_and_data(_sets(keys.slice(start, count), values.slice(start, count), field))
        return data[places[0] : places[-1]]

    return Calls(between, starts, rows, np.diff(rows) - 1)


def _lengths(column: pa.Array) -> Numbers:
    """How many bytes each value is as an argument."""
    lengths = np.asarray(pc.binary_length(column), np.int64)
    return lengths + np.searchsorted(10 ** np.arange(1, 12), lengths, side="right") + len(b"$0\r\n\r\n")


def gets(keys: pa.Array, names: Sequence[bytes]) -> Calls:
    """What asks for these fields of each key."""
    start = pa.scalar(b"*%d\r\n$5\r\nHMGET\r\n" % (2 + len(names)), _BYTES)
    end, nothing = pa.scalar(b"".join(map(_bulk, names)), _BYTES), pa.scalar(b"", _BYTES)
    asked = pc.binary_join_element_wise(start, _bulks(keys), end, nothing)
    return _calls([asked], np.arange(len(keys) + 1), np.zeros(len(keys), np.int64))


def _sets(keys: pa.Array, values: pa.Array, field: bytes) -> pa.LargeBinaryArray:
    start, middle, nothing = (pa.scalar(text, _BYTES) for text in (_HSETNX, _bulk(field), b""))
    return pc.binary_join_element_wise(start, _bulks(keys), middle, _bulks(values), nothing)


def _calls(pieces: Sequence[pa.Array | pa.Scalar], rows: Numbers, before: Numbers) -> Calls:
    """The pieces of each call end to end."""
    joined = pc.binary_join_element_wise(*pieces, pa.scalar(b"", _BYTES))
    starts, data = _offsets_and_data(joined)
    return Calls(lambda first, end: data[starts[first] : starts[end]], starts, rows, before)


def _bulk(text: bytes) -> bytes:
    return b"$%d\r\n%s\r\n" % (len(text), text)


def _bulks(column: pa.Array) -> pa.LargeBinaryArray:
    """Each value with its length, as an argument."""
    lengths = pc.binary_length(column)
    longest = pc.max(lengths).as_py() or 0
    if longest < len(column):
        known = pa.array([b"$%d" % length for length in range(longest + 1)], _BYTES)
    else:  # Long values in a small batch: only the lengths that there are.
        encoded = pc.dictionary_encode(lengths)
        known = pa.array([b"$%d" % length for length in encoded.dictionary.to_pylist()], _BYTES)
        lengths = encoded.indices
    line, nothing = pa.scalar(_LINE, _BYTES), pa.scalar(b"", _BYTES)
    return pc.binary_join_element_wise(known.take(lengths), column.cast(_BYTES), nothing, line)


def _headers(sizes: Numbers, start: bytes) -> pa.LargeBinaryArray:
    """The beginning of each call, up to its first key."""
    found, which = np.unique(sizes, return_inverse=True)
    texts = [b"*%d\r\n%s%s" % (6 + 2 * size, start, _bulk(b"%d" % size)) for size in found.tolist()]
    return pa.array(texts, _BYTES).take(pa.array(which))


def _packed(column: Numbers, rows: Numbers) -> list[pa.Array | pa.Scalar]:
    """8 bytes an entity, as one argument of each call."""
    heads = pa.array([b"$%d\r\n" % (8 * size) for size in np.diff(rows).tolist()], _BYTES)
    data = pa.py_buffer(np.ascontiguousarray(column, "<i8"))
    offsets = pa.py_buffer(np.ascontiguousarray(rows * 8))
    return [heads, pa.Array.from_buffers(_BYTES, len(rows) - 1, [None, offsets, data]), pa.scalar(_LINE, _BYTES)]


def _slices(column: pa.LargeBinaryArray, rows: Numbers) -> pa.LargeBinaryArray:
    """What lies between these rows, each as one value of the same data."""
    _, offsets, data = column.buffers()
    starts = np.frombuffer(offsets, np.int64, count=len(column) + 1, offset=column.offset * 8)
    return pa.Array.from_buffers(_BYTES, len(rows) - 1, [None, pa.py_buffer(starts[rows]), data])


def _offsets_and_data(column: pa.LargeBinaryArray) -> tuple[Numbers, memoryview]:
    _, offsets, data = column.buffers()
    starts = np.frombuffer(offsets, np.int64, count=len(column) + 1, offset=column.offset * 8)
    return starts, memoryview(data) if data else memoryview(b"")


# sending

_DONE = object()
AS_HOPED = object()
# What a call's own keys cause, and others are not concerned by.
_OF_ONE_SLOT = (MovedError, AskError, TryAgainError)


def concerns_all(_: int, reply: Any) -> bool:
    """Whether the calls that follow would be refused as well."""
    return isinstance(reply, RedisError) and not isinstance(reply, _OF_ONE_SLOT)


@dataclass
class Lane:
    """One connection's share of the calls, and the replies so far: an error reply stands as its exception.

    `broken` is what ended it early; calls from len(replies) on have no reply then, whether they were run or not.
    """

    client: redis.Redis | None
    calls: Calls
    wanted: Sequence[int]
    bucket: TokenBucket | None
    prefix: bytes = b""  # goes before each call, and has a reply of its own: ASKING
    stops: Callable[[int, Any], bool] = concerns_all  # whether a call's reply makes it pointless to send more
    expects: Sequence[bytes] | None = None  # what each call is hoped to be answered; then its reply is AS_HOPED
    replies: list[Any] = field(default_factory=list)
    broken: RedisError | None = None
    _judged: int = field(init=False, default=0)

    def run(self) -> Generator[None, None, None]:
        """Send and read to the end, a chunk a step."""
        if self.broken or self.client is None:
            return
        pool = self.client.connection_pool
        try:
            connection: Any = pool.get_connection()
        except RedisError as error:
            self.broken = error
            return
        replies, in_flight = _Replies(connection), deque[int]()
        try:
            for first, end in self._chunks():
                if self._stops():
                    break
                if self.bucket:
                    self.bucket.take(self._entities(first, end))
                connection.send_packed_command(self._bytes(first, end), check_health=False)
                in_flight.append(end - first)
                if len(in_flight) > 1:
                    self._read(replies, in_flight.popleft())
                yield
            while in_flight:
                self._read(replies, in_flight.popleft())
                yield
        except RedisError as error:
            connection.disconnect()
            self.broken = error
        except BaseException:
            # Its next user must not be given our replies.
            connection.disconnect()
            raise
        finally:
            pool.release(connection)

    def _chunks(self) -> Iterator[tuple[int, int]]:
        """(first, end) positions in `wanted`, each chunk of so many calls, bytes and, at a rate, entities."""
        sizes, entities = np.diff(self.calls.starts), np.diff(self.calls.rows)
        most = self.bucket.burst if self.bucket else math.inf
        first, size, count = 0, 0, 0
        for position, call in enumerate(self.wanted):
            full = position - first == CALLS_PER_CHUNK or size + sizes[call] > BYTES_PER_CHUNK
            if position > first and (full or count + entities[call] > most):
                yield first, position
                first, size, count = position, 0, 0
            size += int(sizes[call])
            count += int(entities[call])
        if first < len(self.wanted):
            yield first, len(self.wanted)

    def _entities(self, first: int, end: int) -> int:
        rows = self.calls.rows
        return sum(int(rows[call + 1] - rows[call]) for call in self.wanted[first:end])

    def _bytes(self, first: int, end: int) -> list[bytes | memoryview]:
        """The calls of a chunk, ready to send; neighbours are not even copied."""
        between, wanted = self.calls.between, self.wanted
        if not self.prefix and wanted[end - 1] - wanted[first] == end - first - 1:
            return [between(wanted[first], wanted[end - 1] + 1)]
        return [self.prefix + self.prefix.join(between(call, call + 1) for call in wanted[first:end])]

    def unanswered(self) -> list[int]:
        """The calls to send again: refused ones last, so that others go forward."""
        refused = [
            call for call, reply in zip(self.wanted, self.replies, strict=False) if isinstance(reply, RedisError)
        ]
        return [*self.wanted[len(self.replies) :], *refused]

    def errors(self) -> list[RedisError]:
        found = [reply for reply in self.replies if isinstance(reply, RedisError)]
        return [*found, self.broken] if self.broken else found

    def _stops(self) -> bool:
        """Whether what has come back makes it pointless to send more."""
        first, self._judged = self._judged, len(self.replies)
        fresh = zip(self.wanted[first:], self.replies[first:], strict=False)
        return any(self.stops(call, reply) for call, reply in fresh)

    def _read(self, replies: _Replies, count: int) -> None:
        for call in self.wanted[len(self.replies) : len(self.replies) + count]:
            if self.expects and replies.are(self.expects[call]):
                self.replies.append(AS_HOPED)
            else:
                before = int(self.calls.before[call]) + bool(self.prefix)
                self.replies.append(replies.last_of(before + 1))


class _Replies:
    """What a connection answers, by a parser of our own: 0.1 us a reply where redis-py's own way takes 4."""

    def __init__(self, connection: Any) -> None:
        self._socket = connection._sock  # noqa: SLF001  # the one thing that redis-py has no name for
        self._parser = hiredis.Reader(replyError=DefaultParser.parse_error, notEnoughData=_DONE)
        self._buffer = bytearray(1 << 16)
        # What has come and was not parsed, up to the first answer that is not as hoped; from then on all is parsed.
        self._raw, self._at, self._parses = b"", 0, False

    def are(self, expected: bytes) -> bool:
        """Whether the next replies are these bytes, which needs no parsing; if not, they are still to be taken."""
        if self._parses:
            return False
        while not self._raw.startswith(expected, self._at):
            left = self._raw[self._at :]
            if not expected.startswith(left):
                self._parses = True
                self._parser.feed(left)
                return False
            self._raw, self._at = left + self._received(), 0
        self._at += len(expected)
        return True

    def last_of(self, count: int) -> Any:
        """The last of the next replies; one that stands for a lost connection is raised."""
        reply, self._parses = None, True
        while count:
            reply = self._parser.gets()
            if reply is _DONE:
                self._parser.feed(self._received())
                continue
            if isinstance(reply, redis.ConnectionError):
                raise reply
            count -= 1
        return reply

    def _received(self) -> bytes:
        try:
            received = self._socket.recv_into(self._buffer)
        except TimeoutError:
            raise redis.TimeoutError("no reply in time") from None
        except OSError:
            received = 0
        if not received:
            raise redis.ConnectionError("the connection broke")
        return bytes(memoryview(self._buffer)[:received])


def run_together(lanes: Sequence[Lane]) -> None:
    """Step by step in turn, so that no server waits for another."""
    running = [lane.run() for lane in lanes]
    try:
        while running:
            running = [lane for lane in running if next(lane, _DONE) is not _DONE]
    finally:
        for lane in running:
            lane.close()


def new_blocks(route: Route, calls: Calls, bucket: TokenBucket | None) -> npt.NDArray[np.bool_]:
    """Send `blocks` until the first with a key that is there; which of them wrote all their entities."""
    return _all_new(route, calls, bucket, _answers_of_a_new_block, lambda size: [0] + [1] * size)


def new_fields(route: Route, calls: Calls, bucket: TokenBucket | None) -> npt.NDArray[np.bool_]:
    """Send `fields` until the first that is there; which of the calls set all of theirs."""
    return _all_new(route, calls, bucket, lambda size: b":1\r\n" * size, lambda _: AS_HOPED)


def _all_new(
    route: Route,
    calls: Calls,
    bucket: TokenBucket | None,
    raw_answer: Callable[[int], bytes],
    answer: Callable[[int], Any],
) -> npt.NDArray[np.bool_]:
    sizes = np.diff(calls.rows).tolist()
    parsed = {size: answer(size) for size in set(sizes)}
    raw = {size: raw_answer(size) for size in parsed}
    expects = [raw[size] for size in sizes]

    def is_new(call: int, reply: Any) -> bool:
        return reply is AS_HOPED or reply == parsed[sizes[call]]

    lanes = [
        replace(lane, expects=expects, stops=lambda call, reply: not is_new(call, reply))
        for lane in route.lanes(calls, range(len(calls)), bucket)
    ]
    run_together(lanes)
    found = np.zeros(len(calls), np.bool_)
    for lane in lanes:
        for call, reply in zip(lane.wanted, lane.replies, strict=False):
            found[call] = is_new(call, reply)
    return found


def _answers_of_a_new_block(size: int) -> bytes:
    queued, none, all_set = b"+QUEUED\r\n" * (size + 1), b":0\r\n", b":1\r\n" * size
    return b"+OK\r\n" + queued + b"*%d\r\n" % (size + 1) + none + all_set


# tries


class Route(Protocol):
    """Which connection a call goes to, and what may help after a refusal."""

    def lanes(self, calls: Calls, waiting: Sequence[int], bucket: TokenBucket | None) -> list[Lane]: ...

    def passes(self, error: RedisError) -> bool:
        """Whether the same call may succeed later."""

    def mend(self, lanes: Sequence[Lane]) -> None:
        """Do what the refusals ask for: load the script, learn where slots are."""


class OneServer:
    """The route to a Redis that is no cluster."""

    def __init__(self, client: redis.Redis, script: str) -> None:
        self._client, self._script = client, script

    def lanes(self, calls: Calls, waiting: Sequence[int], bucket: TokenBucket | None) -> list[Lane]:
        return [Lane(self._client, calls, waiting, bucket)]

    def passes(self, error: RedisError) -> bool:
        return may_pass(error)

    def mend(self, lanes: Sequence[Lane]) -> None:
        if any(isinstance(error, NoScriptError) for lane in lanes for error in lane.errors()):
            self._client.script_load(self._script)


def may_pass(error: RedisError) -> bool:
    """Whether waiting may help: the connection broke, or the server is starting, busy or out of connections."""
    if isinstance(error, (AuthenticationError, AuthorizationError)):  # connection errors too
        return False
    passing = (redis.ConnectionError, redis.TimeoutError, TryAgainError, NoScriptError)
    return isinstance(error, passing) or str(error).startswith("BUSY ")


class Stopped(Exception):
    """What ended the sending of calls, and the sums of the replies until then."""

    def __init__(self, error: RedisError, sums: Numbers) -> None:
        super().__init__()
        self.error, self.sums = error, sums


def run_calls(
    route: Route, calls: Calls, *, width: int, patience: Patience, bucket: TokenBucket | None = None
) -> Numbers:
    """The sum of the calls' replies, each of `width` numbers; what may pass is tried again as long as patience lasts.

    A call whose reply was lost is repeated; its reply counts once, the first time it arrives.
    """
    sums = np.zeros(width, np.int64)
    waiting: Sequence[int] = range(len(calls))
    script_was_missing = False
    while waiting:
        lanes = route.lanes(calls, waiting, bucket)
        run_together(lanes)
        answered = [reply for lane in lanes for reply in lane.replies if isinstance(reply, list)]
        if answered:
            sums += np.array(answered, np.int64).sum(axis=0)
            patience.renew()
        waiting = [call for lane in lanes for call in lane.unanswered()]
        errors = [error for lane in lanes for error in lane.errors()]
        for error in errors:
            if not route.passes(error):
                raise Stopped(error, sums)
        if errors:
            # A script is loaded at once; a server that forgets it again is one that has to be waited for.
            script_is_missing = all(isinstance(error, NoScriptError) for error in errors)
            if (script_was_missing or not script_is_missing) and not patience.wait():
                raise Stopped(errors[0], sums)
            script_was_missing = script_is_missing and not answered
            try:
                route.mend(lanes)
            except RedisError as error:
                if not route.passes(error):
                    raise Stopped(error, sums) from None
    return sums
