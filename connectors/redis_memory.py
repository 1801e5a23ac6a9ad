"""What a Redis has of memory, and what our keys would take of it: one hash per entity, one field per feature group.

    INFO, CONFIG GET (where it may be asked) -> ServerMemory
    length of a key, of its fields and values -> hash_bytes: what one key takes, as Redis counts it in used_memory

A small hash is one block (a listpack, a ziplist before Redis 7): every field and value with its length beside it. One
value longer than hash-max-listpack-value, or too many fields, makes it a hash table, where each field and each value is
a block of its own. Each block is rounded up by the allocator, which is where most of the overhead of small keys is.

    key          an entry of the main table and its slot, the key's text, an object
    + expiry     an entry of the table of expiries and its slot
    + compact    header, then per field and value: its length twice and its bytes, in one block
    + or table   a dict, its slots, then per field: an entry, the field's text, the value's text

Tables have a power of two of slots, so their slots are counted for the whole server, by `slots_bytes`.

Held against used_memory by tests, with the server that the tests have. docs/online-audit.md has the figures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Redis' own, where CONFIG may not be asked.
DEFAULT_COMPACT_VALUE = 64
DEFAULT_COMPACT_ENTRIES = 512
_SLOT = 8
_ENTRY, _OBJECT = 24, 16
_FIRST_TABLE = 4


@dataclass(frozen=True)
class ServerMemory:
    """What a server told. `max_bytes` 0: no limit of its own. `settings_known` is false where CONFIG is forbidden."""

    version: str
    allocator: str
    used_bytes: int
    max_bytes: int
    policy: str
    machine_bytes: int
    keys: int
    expiring_keys: int
    compact_value: int = DEFAULT_COMPACT_VALUE
    compact_entries: int = DEFAULT_COMPACT_ENTRIES
    settings_known: bool = False
    is_cluster: bool = False

    @property
    def is_listpack(self) -> bool:
        return int(self.version.partition(".")[0] or 7) >= 7

    @property
    def evicts(self) -> bool:
        """Whether a full server silently drops any key, rather than refuse a write."""
        return self.policy.startswith("allkeys-")

    @property
    def evicts_expiring(self) -> bool:
        """Whether a full server silently drops keys that have an expiry."""
        return self.policy.startswith("volatile-")


def server_memory(info: Mapping[str, Any], settings: Mapping[Any, Any] | None) -> ServerMemory:
    """From the reply of INFO, and of CONFIG GET hash-max-* if there is one.

    Every database counts for keys: they share the memory, and each has tables of its own.
    """
    databases = [found for name, found in info.items() if name.startswith("db") and isinstance(found, Mapping)]
    # 6.2 says ziplist, 7 says both; a name that is not there leaves the default.
    told = {str(name).replace("ziplist", "listpack"): value for name, value in (settings or {}).items()}
    return ServerMemory(
        version=str(info.get("redis_version", "")),
        allocator=str(info.get("mem_allocator", "jemalloc")).partition("-")[0],
        used_bytes=int(info["used_memory"]),
        max_bytes=int(info.get("maxmemory", 0)),
        policy=str(info.get("maxmemory_policy", "noeviction")),
        machine_bytes=int(info.get("total_system_memory", 0)),
        keys=sum(int(found.get("keys", 0)) for found in databases),
        expiring_keys=sum(int(found.get("expires", 0)) for found in databases),
        compact_value=int(told.get("hash-max-listpack-value", DEFAULT_COMPACT_VALUE)),
        compact_entries=int(told.get("hash-max-listpack-entries", DEFAULT_COMPACT_ENTRIES)),
        settings_known="hash-max-listpack-value" in told,
        is_cluster=bool(int(info.get("cluster_enabled", 0))),
    )


def hash_bytes(server: ServerMemory, key: int, fields: Sequence[tuple[int, int]], *, expires: bool) -> int:
    """What a key of this length takes with these (field length, value length); nothing without fields.

    Without the slots of the tables that it stands in.
    """
    if not fields:
        return 0
    entry = _ENTRY + (16 if server.is_cluster and server.is_listpack else 0)  # 7.0 links the keys of a slot
    outer = [entry, _text(key), _OBJECT, *([_ENTRY] if expires else [])]
    longest = max(max(field, value) for field, value in fields)
    if longest <= server.compact_value and len(fields) <= server.compact_entries:
        inner = [_compact(fields, is_listpack=server.is_listpack)]
    else:
        slots = _slots(len(fields)) * _SLOT
        inner = [56 if server.is_listpack else 96, slots]
        inner += [size for field, value in fields for size in (_ENTRY, _text(field), _text(value))]
    return sum(block_bytes(server.allocator, size) for size in (*outer, *inner))


def slots_bytes(server: ServerMemory, keys: int, expiring_keys: int) -> int:
    """The slots of the tables of all keys and of those that expire."""
    tables = (_slots(count) * _SLOT for count in (keys, expiring_keys) if count > 0)
    return sum(block_bytes(server.allocator, size) for size in tables)


def block_bytes(allocator: str, size: int) -> int:
    """What the allocator takes for so many bytes, as used_memory counts it."""
    if allocator == "libc":  # glibc: steps of 16, of which 8 are its own and not counted
        return max((size + 8 + 15) // 16 * 16, 32) - 8
    if size <= 16:
        return 8 if size <= 8 else 16
    # jemalloc: four classes from each power of two to the next, none closer than 16 bytes
    step = max(1 << max((size - 1).bit_length() - 3, 0), 16)
    return (size + step - 1) // step * step


def _text(length: int) -> int:
    """A string of Redis: its bytes, a zero behind them and a header by its length."""
    header = 1 if length < 32 else 3 if length < 256 else 5 if length < 65536 else 9
    return header + length + 1


def _slots(count: int) -> int:
    return max(1 << (count - 1).bit_length(), _FIRST_TABLE)


def _compact(fields: Sequence[tuple[int, int]], *, is_listpack: bool) -> int:
    lengths = [length for pair in fields for length in pair]
    if is_listpack:
        return 7 + sum(map(_listpack_entry, lengths))
    entries = [*map(_ziplist_entry, lengths)]
    # An entry tells the length of the one before it, in 1 byte or in 5.
    return 11 + sum(entries) + 4 * sum(entry >= 254 for entry in entries[:-1])


def _ziplist_entry(length: int) -> int:
    return 1 + (1 if length < 64 else 2 if length < 16384 else 5) + length


def _listpack_entry(length: int) -> int:
    inside = (1 if length < 64 else 2 if length < 4096 else 5) + length
    return inside + (1 if inside < 128 else 2 if inside < 16384 else 3 if inside < 2_097_152 else 4)
