"""The stream of calls: byte for byte what redis-py would send, and never a deadlock."""

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

import hiredis
import numpy as np
import pyarrow as pa
import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.backoff import NoBackoff
from redis.retry import Retry

from connectors.pacing import Patience
from connectors.redis_stream import (
    CALLS_PER_CHUNK,
    Calls,
    Lane,
    OneServer,
    Stopped,
    blocks,
    fields,
    gets,
    new_blocks,
    run_calls,
    script_calls,
)

FIELD = b"purchases:1"
DIGEST = "0123456789abcdef0123456789abcdef01234567"
INT64 = st.integers(-(2**63), 2**63 - 1)


def packed_by_redis_py(*arguments: object) -> bytes:
    return b"".join(redis.Connection().pack_command(*arguments))


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_calls_are_what_redis_py_would_send(data: st.DataObject) -> None:
    """Any bytes in keys and values, both widths of offsets, slices, calls of any size, with and without numbers."""
    texts = st.one_of(st.binary(max_size=40), st.binary(min_size=1000, max_size=1010))
    pairs = data.draw(st.lists(st.tuples(texts, texts), min_size=1, max_size=30))
    kind, skipped = data.draw(st.sampled_from([pa.binary(), pa.large_binary()])), data.draw(st.integers(0, 1))
    keys = pa.array([b"skipped"] * skipped + [key for key, _ in pairs], kind).slice(skipped)
    values = pa.array([b"skipped"] * skipped + [value for _, value in pairs], kind).slice(skipped)
    inner = data.draw(st.sets(st.integers(1, max(1, len(pairs) - 1)), max_size=5))
    rows = np.array(sorted({0, *inner, len(pairs)}), np.int64)
    numbers = [
        data.draw(st.none() | st.lists(INT64, min_size=len(pairs), max_size=len(pairs)).map(np.array)) for _ in range(2)
    ]
    calls = script_calls(keys, values, numbers, rows=rows, field=FIELD, digest=DIGEST)
    assert len(calls) == len(rows) - 1
    for number, (first, end) in enumerate(itertools.pairwise(rows)):
        packed = [b"" if some is None else some[first:end].astype("<i8").tobytes() for some in numbers]
        mine = pairs[first:end]
        expected = packed_by_redis_py(
            *("EVALSHA", DIGEST, len(mine), *(key for key, _ in mine), FIELD, *packed), *(value for _, value in mine)
        )
        assert bytes(calls.between(number, number + 1)) == expected


def test_the_bytes_of_a_call() -> None:
    keys, values = pa.array([b"tm:c:1", b"tm:c:22"]), pa.array([b"one", b"three"])
    calls = script_calls(keys, values, [np.array([1, 256]), None], rows=np.array([0, 2]), field=b"g:1", digest="d" * 40)
    assert bytes(calls.between(0, len(calls))) == (
        b"*10\r\n$7\r\nEVALSHA\r\n$40\r\n" + b"d" * 40 + b"\r\n$1\r\n2\r\n"
        b"$6\r\ntm:c:1\r\n$7\r\ntm:c:22\r\n"
        b"$3\r\ng:1\r\n$16\r\n\x01\0\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\r\n$0\r\n\r\n"
        b"$3\r\none\r\n$5\r\nthree\r\n"
    )


VALUES = st.one_of(st.binary(max_size=40), st.binary(min_size=98, max_size=101), st.binary(min_size=999, max_size=1001))
PAIRS = st.lists(st.tuples(st.binary(max_size=20), VALUES), min_size=1, max_size=12)


def in_calls(pairs: list[tuple[bytes, bytes]], size: int) -> tuple[pa.Array, pa.Array, Any]:
    """Keys, values, and the places where calls of this size begin and the last one ends."""
    keys, values = (pa.array([pair[column] for pair in pairs], pa.binary()) for column in (0, 1))
    return keys, values, np.append(np.arange(0, len(pairs), size), len(pairs))


@settings(deadline=None, max_examples=50)
@given(PAIRS, st.integers(1, 12))
def test_blocks_are_what_redis_py_would_send(pairs: list[tuple[bytes, bytes]], per_block: int) -> None:
    keys, values, rows = in_calls(pairs, per_block)
    found = blocks(keys, values, rows=rows, field=FIELD)
    for number, (first, end) in enumerate(itertools.pairwise(rows)):
        mine = pairs[first:end]
        commands = [("MULTI",), ("EXISTS", *(key for key, _ in mine))]
        commands += [("HSETNX", key, FIELD, value) for key, value in mine]
        expected = b"".join(packed_by_redis_py(*command) for command in [*commands, ("EXEC",)])
        assert bytes(found.between(number, number + 1)) == expected
        assert found.before[number] == len(commands)


@settings(deadline=None, max_examples=50)
@given(PAIRS, st.integers(1, 12))
def test_fields_are_what_redis_py_would_send(pairs: list[tuple[bytes, bytes]], per_call: int) -> None:
    keys, values, rows = in_calls(pairs, per_call)
    found = fields(keys, values, rows=rows, field=FIELD)
    for number, (first, end) in enumerate(itertools.pairwise(rows)):
        expected = b"".join(packed_by_redis_py("HSETNX", key, FIELD, value) for key, value in pairs[first:end])
        assert bytes(found.between(number, number + 1)) == expected
        assert found.starts[number + 1] - found.starts[number] == len(expected)
        assert found.before[number] == end - first - 1
    asked = gets(keys, [FIELD, b"g:2"])
    assert bytes(asked.between(0, len(asked))) == b"".join(
        packed_by_redis_py("HMGET", key, FIELD, b"g:2") for key, _ in pairs
    )


# --- sending, to a server that says what a test wants -----------------------------------------------------------------


def some_calls(count: int, size: int = 10) -> Calls:
    """One entity a call; its value begins with the call's number."""
    values = pa.array([b"%08d" % number + bytes(size) for number in range(count)])
    keys = pa.array([b"private %d" % number for number in range(count)])
    return script_calls(keys, values, [None, None], rows=np.arange(count + 1), field=FIELD, digest=DIGEST)


@contextmanager
def answering(
    reply: Callable[[int], bytes | None],
    *,
    buffer: int = 0,
    commands: Callable[[list[bytes]], bytes] = lambda command: b"+OK\r\n",
) -> Iterator[redis.Redis]:
    """A server of one thread, which writes its replies before it reads on. None: it closes the connection."""

    def serve() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection, suppress(ConnectionError):  # a client that hangs up before it has read all resets it
                parser, answers = hiredis.Reader(), [b""]
                while None not in answers and (received := connection.recv(4096)):
                    parser.feed(received)
                    answers = []
                    while (command := parser.gets()) is not False:
                        evalsha = command[0] == b"EVALSHA"
                        answers.append(reply(int(command[-1][:8])) if evalsha else commands(command))
                    # What comes after the break has no answer.
                    connection.sendall(b"".join(itertools.takewhile(lambda answer: answer is not None, answers)))

    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        if buffer:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        port = listening.getsockname()[1]
        options: dict[str, Any] = {"retry": Retry(NoBackoff(), 0), "protocol": 2, "socket_timeout": 10}
        with redis.Redis("127.0.0.1", port, **options) as client:
            yield client


def outcome(reply: Callable[[int], bytes | None], count: int, *, patience: float = 0, buffer: int = 0) -> list[int]:
    """The sum of the replies to so many calls."""
    with answering(reply, buffer=buffer) as client:
        waiting = Patience(patience, sleep=lambda _: None)
        return run_calls(OneServer(client, ""), some_calls(count), width=2, patience=waiting).tolist()


def counted(number: int) -> bytes:
    return b"*2\r\n:1\r\n:%d\r\n" % number


def test_every_reply_is_counted_once() -> None:
    count = CALLS_PER_CHUNK * 5 + 3
    assert outcome(counted, count) == [count, sum(range(count))]
    assert outcome(counted, 1) == [1, 0]


def test_a_server_that_reads_only_when_its_replies_are_taken_is_no_deadlock() -> None:
    count = CALLS_PER_CHUNK * 10
    assert outcome(counted, count, buffer=4096) == [count, sum(range(count))]


def test_a_refusal_leaves_the_count_of_the_others() -> None:
    """It stops what was not sent, and what was sent is counted to the last reply."""

    def reply(number: int) -> bytes:
        return b"-OOM private\r\n" if number == 40 else counted(number)

    with pytest.raises(Stopped) as stopped:
        outcome(reply, CALLS_PER_CHUNK * 5)
    sent = CALLS_PER_CHUNK * 2
    assert stopped.value.sums.tolist() == [sent - 1, sum(range(sent)) - 40]
    assert "private" not in str(stopped.value)


def test_calls_that_had_no_reply_are_sent_again_and_counted_once() -> None:
    seen: list[int] = []

    def reply(number: int) -> bytes | None:
        seen.append(number)
        return None if number % 197 == 50 and seen.count(number) == 1 else counted(number)

    count = CALLS_PER_CHUNK * 3
    assert outcome(reply, count, patience=60) == [count, sum(range(count))]
    assert set(seen) == set(range(count))
    assert len(seen) > count


@pytest.mark.parametrize("error", ["TRYAGAIN private", "BUSY Redis is busy", "LOADING private", "NOSCRIPT private"])
def test_refusals_that_pass_are_tried_again(error: str) -> None:
    refused: list[int] = []

    def reply(number: int) -> bytes:
        if number % 10 == 3 and refused.count(number) < 2:
            refused.append(number)
            return b"-%s\r\n" % error.encode()
        return counted(number)

    with answering(reply) as client:
        route = OneServer(client, "")
        route.mend = lambda lanes: None  # type: ignore[method-assign]  # the server above knows no SCRIPT LOAD
        found = run_calls(route, some_calls(100), width=2, patience=Patience(60, sleep=lambda _: None))
    assert found.tolist() == [100, sum(range(100))]
    assert len(refused) == 20


def test_of_new_blocks_those_that_were_answered_otherwise_are_told() -> None:
    """As bytes as far as all is new, parsed from the first that is not; then no more are sent."""
    count = CALLS_PER_CHUNK * 4

    def answers(old: int) -> Callable[[list[bytes]], bytes]:
        def answer(command: list[bytes]) -> bytes:
            if command[0] == b"EXEC":
                return b"*2\r\n:0\r\n:1\r\n" if next(blocks_seen) != old else b"*2\r\n:1\r\n:0\r\n"
            return b"+OK\r\n" if command[0] == b"MULTI" else b"+QUEUED\r\n"

        return answer

    keys, values = pa.array([b"k"] * count), pa.array([b"v"] * count)
    calls = blocks(keys, values, rows=np.arange(count + 1), field=FIELD)
    for old in (0, 3, CALLS_PER_CHUNK * 2, count):
        blocks_seen = iter(range(count))
        with answering(lambda number: None, commands=answers(old)) as client:
            found = new_blocks(OneServer(client, ""), calls, None)
        sent = min(count, (old // CALLS_PER_CHUNK + 2) * CALLS_PER_CHUNK) if old < count else count
        assert np.flatnonzero(found).tolist() == [number for number in range(sent) if number != old]


def test_patience_ends_with_the_last_refusal() -> None:
    with pytest.raises(Stopped) as stopped:
        outcome(lambda number: b"-BUSY private\r\n" if number >= 10 else counted(number), 100)
    assert stopped.value.sums.tolist() == [10, 45]
    assert str(stopped.value.error).startswith("BUSY")


def test_chunks_are_bounded_in_calls_and_bytes_and_a_large_call_goes_alone() -> None:
    sizes = [100] * 300 + [200_000, 100_000, 300_000, 100]
    values = pa.array([bytes(size) for size in sizes])
    rows = np.arange(len(sizes) + 1)
    calls = script_calls(pa.array([b"k"] * len(sizes)), values, [None], rows=rows, field=FIELD, digest=DIGEST)
    lane = Lane(redis.Redis(), calls, range(len(calls)), None)
    assert list(lane._chunks()) == [(0, 256), (256, 301), (301, 302), (302, 303), (303, 304)]
