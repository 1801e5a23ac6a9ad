"""Generations: a whole new set of keys beside the one that is read, put in its place at once, and back.

    PREFIX:_generation   a hash: now, before, next, last
        now      the generation that clients read; without it, 0
        before   the one that was read before: it stays until the next is begun, so that one can go back
        next     the one that is being loaded
        last     the highest number ever given

    generation 0   PREFIX:entity:key      what a store without generations holds
    generation n   PREFIX~n:entity:key

So a generation is a key prefix like any other, and what loads, audits and reads one needs to know nothing of this.
Clients ask for `now` in the round trip in which they ask for values, and ask again when it is another.
"""

from __future__ import annotations

from dataclasses import dataclass

from connectors.redis_online import RedisOnlineStore
from feature_defs.errors import OnlineStoreError

NOW = "now"
_BEGIN = """
local number = redis.call('HINCRBY', KEYS[1], 'last', 1)
redis.call('HDEL', KEYS[1], 'before')
redis.call('HSET', KEYS[1], 'next', number)
return number
"""
# Each of these may be sent twice, when a reply was lost: the second time it is done already.
_SWITCH = """
local now = redis.call('HGET', KEYS[1], 'now') or '0'
if now == ARGV[1] then return 1 end
if redis.call('HGET', KEYS[1], 'next') ~= ARGV[1] then return 0 end
if ARGV[2] == '1' then redis.call('HSET', KEYS[1], 'before', now) end
redis.call('HSET', KEYS[1], 'now', ARGV[1])
redis.call('HDEL', KEYS[1], 'next')
return 1
"""
_ROLL_BACK = """
local now = redis.call('HGET', KEYS[1], 'now')
if now == ARGV[2] then return 1 end
if now ~= ARGV[1] or redis.call('HGET', KEYS[1], 'before') ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], 'before', now, 'now', ARGV[2])
return 1
"""


@dataclass(frozen=True)
class Generations:
    """`now` is None in a store that never had a generation; `before` None where there is nothing to go back to."""

    now: int | None
    before: int | None
    loading: int | None
    last: int


def pointer_key(prefix: str) -> str:
    return f"{prefix}:_generation"


def prefix_of(prefix: str, number: int) -> str:
    """The key prefix of a generation."""
    return f"{prefix}~{number}" if number else prefix


def generation_now(store: RedisOnlineStore) -> int | None:
    """The one that clients read."""
    found = store.run("HGET", pointer_key(store.address.key_prefix), NOW)
    return int(found) if found else None


def generations(store: RedisOnlineStore) -> Generations:
    stored: dict[bytes, bytes] = store.run("HGETALL", pointer_key(store.address.key_prefix))
    found = {role.decode(): int(number) for role, number in stored.items()}
    return Generations(found.get(NOW), found.get("before"), found.get("next"), found.get("last", 0))


def begin(store: RedisOnlineStore) -> int:
    """A new number to load under. The generation to go back to is given up, so that there are never three."""
    return _script(store, _BEGIN)


def remove_unread(store: RedisOnlineStore) -> int:
    """Remove the keys of every generation but the one that is read, before another is loaded; how many there were."""
    prefix, removed = store.address.key_prefix, 0
    now, pointer = generation_now(store) or 0, pointer_key(prefix).encode()
    read = f"{prefix_of(prefix, now)}:".encode()
    for start in (f"{prefix}~", f"{prefix}:") if now else (f"{prefix}~",):
        for keys in store.scan_keys(start):
            removed += store.remove([key for key in keys if key != pointer and not key.startswith(read)])
    return removed


def switch(store: RedisOnlineStore, number: int, *, keeps_before: bool) -> None:
    """Clients read this generation from now on. One that holds nothing is not kept to go back to."""
    if not _script(store, _SWITCH, number, int(keeps_before)):
        problem = f"generation {number} is not the newest any more: another load began one since"
        raise OnlineStoreError(str(store.address), problem, hint="let one run at a time load generations")


def roll_back(store: RedisOnlineStore) -> None:
    """Clients read the generation before. Doing it again goes forward."""
    found = generations(store)
    if found.before is None:
        problem = "there is no generation to go back to: none was switched, or the next one is begun"
        raise OnlineStoreError(str(store.address), problem, hint="load one with `tidemark materialize --generation`")
    if not _script(store, _ROLL_BACK, found.now or 0, found.before):
        problem = f"generation {found.now} is not the one that is read any more"
        raise OnlineStoreError(str(store.address), problem, hint="look at `tidemark online generations`")


def _script(store: RedisOnlineStore, script: str, *arguments: int) -> int:
    found: int = store.run("EVAL", script, 1, pointer_key(store.address.key_prefix), *arguments)
    return found
