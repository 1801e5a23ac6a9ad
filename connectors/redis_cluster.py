"""Script calls in a Redis Cluster: which slot a key has, which server has the slot, and what a redirection means.

    keys -> slots, in bulk -> rows in the order of their slots -> calls of one slot each -> a lane per server

A call may name keys of one slot only, of 16,384. redis-py's RedisCluster knows the servers and holds their connections;
a redirection, a lost server or a cluster that is down makes it ask again, and what was refused is sent again. A slot on
its way from one server to another answers ASK for keys that have left it: those calls follow, with ASKING before each.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import redis
from redis.crc import key_slot
from redis.exceptions import (
    AskError,
    ClusterCrossSlotError,
    ClusterDownError,
    MovedError,
    NoScriptError,
    RedisClusterException,
    RedisError,
    TryAgainError,
)

from connectors.pacing import TokenBucket
from connectors.redis_stream import Calls, Lane, Numbers, may_pass

SLOTS = 16384
ASKING = b"*1\r\n$6\r\nASKING\r\n"


def slots_of(keys: pa.Array) -> Numbers:
    """The slot of every key: CRC-16 of it, or of what stands in its first braces."""
    wide = keys.cast(pa.large_binary())
    _, offsets, data = wide.buffers()
    starts = np.frombuffer(offsets, np.int64, count=len(wide) + 1, offset=wide.offset * 8)
    found = _crc16(np.frombuffer(data or b"", np.uint8), starts[:-1], np.diff(starts)) % SLOTS
    tagged = np.flatnonzero(np.asarray(pc.find_substring(wide, b"{")) >= 0)
    for row in tagged.tolist():  # rarely one
        found[row] = key_slot(wide[row].as_py())
    return found


def _crc16(data: npt.NDArray[np.uint8], starts: Numbers, lengths: Numbers) -> Numbers:
    """Of each of these pieces of the data, a byte of all pieces at a time, the longest pieces first."""
    order = np.argsort(-lengths, kind="stable")
    at, left = starts[order], lengths[order]
    crc = np.zeros(len(order), np.uint16)
    for position in range(int(left[0]) if len(left) else 0):
        count = int(np.searchsorted(-left, -position))  # so many are longer than this
        some = crc[:count]
        crc[:count] = (some << np.uint16(8)) ^ _CRC16[(some >> np.uint16(8)) ^ data[at[:count] + position]]
    found = np.empty(len(order), np.int64)
    found[order] = crc
    return found


def _crc16_table() -> npt.NDArray[np.uint16]:
    """The polynomial of XMODEM, 0x1021, for every byte."""
    table = np.arange(256, dtype=np.uint32) << 8
    for _ in range(8):
        table = (table << 1) ^ np.where(table & 0x8000, 0x1021, 0).astype(np.uint32)
    return (table & 0xFFFF).astype(np.uint16)


_CRC16 = _crc16_table()


def is_cluster(error: RedisError) -> bool:
    """Whether a server answers so because it is one of a cluster."""
    kinds = (AskError, ClusterCrossSlotError, ClusterDownError)  # a MovedError is an AskError
    return isinstance(error, kinds) or "CROSSSLOT" in str(error)


class ClusterRoute:
    """The route of one write's calls to the servers of their slots, one slot for each call."""

    def __init__(self, client: redis.RedisCluster, script: str, slots: Numbers) -> None:
        self._client, self._script, self._slots = client, script, slots
        self._asked: dict[int, tuple[str, int]] = {}

    def lanes(self, calls: Calls, waiting: Sequence[int], bucket: TokenBucket | None) -> list[Lane]:
        plain: dict[str, list[int]] = {}
        asked: dict[tuple[str, int], list[int]] = {}
        for call in waiting:
            if call in self._asked:
                asked.setdefault(self._asked[call], []).append(call)
            else:
                plain.setdefault(self._server(int(self._slots[call])), []).append(call)
        self._asked = {}
        nodes = self._client.nodes_manager.nodes_cache
        found = []
        for name, wanted in plain.items():
            if name:
                found.append(Lane(self._client.get_redis_connection(nodes[name]), calls, sorted(wanted), bucket))
            else:
                found.append(Lane(None, calls, wanted, bucket, broken=ClusterDownError("a slot is not served")))
        for (host, port), wanted in asked.items():
            # One that is not known yet is, after asking again.
            name = f"{host}:{port}"
            if name in nodes:
                client = self._client.get_redis_connection(nodes[name])
                found.append(Lane(client, calls, sorted(wanted), bucket, prefix=ASKING))
            else:
                found.append(Lane(None, calls, wanted, bucket, broken=TryAgainError("a server is not known")))
        return found

    def passes(self, error: RedisError) -> bool:
        return may_pass(error) or isinstance(error, (AskError, ClusterDownError))

    def mend(self, lanes: Sequence[Lane]) -> None:
        for lane in lanes:
            errors = lane.errors()
            if lane.client and not lane.broken and any(isinstance(error, NoScriptError) for error in errors):
                lane.client.script_load(self._script)
            for call, reply in zip(lane.wanted, lane.replies, strict=False):
                if isinstance(reply, AskError) and not isinstance(reply, MovedError):
                    self._asked[call] = (reply.host, reply.port)
        if any(_is_about_servers(error) for lane in lanes for error in lane.errors()):
            try:
                self._client.nodes_manager.initialize()
            except RedisClusterException:
                # No server of it answers, or they disagree: for now.
                raise redis.ConnectionError("no server of the cluster answers") from None

    def _server(self, slot: int) -> str:
        """The name of the slot's primary, empty where the cluster has none."""
        nodes = self._client.nodes_manager.slots_cache.get(slot)
        return nodes[0].name if nodes else ""


def _is_about_servers(error: RedisError) -> bool:
    return isinstance(error, (MovedError, ClusterDownError, redis.ConnectionError, redis.TimeoutError, TryAgainError))
