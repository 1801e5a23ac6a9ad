"""Generations: a whole new set of keys beside the one that is read, put in its place at once, and back.

    PREFIX:_generation   a hash: now, before, next, last, drop:N
        now      the generation that clients read; without it, 0
        before   the one that was read before: it stays until the next is begun, so that one can go back
        next     the one that is being loaded
        last     the highest number ever given
        drop:N   one whose keys are to be removed

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
for _, role in ipairs({'before', 'next'}) do
  local gone = redis.call('HGET', KEYS[1], role)
  if gone then redis.call('HSET', KEYS[1], 'drop:' .. gone, 1) end
end
redis.call('HDEL', KEYS[1], 'before')
redis.call('HSET', KEYS[1], 'next', number)
return number
"""
_SWITCH = """
if redis.call('HGET', KEYS[1], 'next') ~= ARGV[1] then
  redis.call('HSET', KEYS[1], 'drop:' .. ARGV[1], 1)
  return 0
end
redis.call('HSET', KEYS[1], 'before', redis.call('HGET', KEYS[1], 'now') or '0', 'now', ARGV[1])
redis.call('HDEL', KEYS[1], 'next')
return 1
"""
_ROLL_BACK = """
local before = redis.call('HGET', KEYS[1], 'before')
if not before then return -1 end
redis.call('HSET', KEYS[1], 'before', redis.call('HGET', KEYS[1], 'now'), 'now', before)
return tonumber(before)
"""


@dataclass(frozen=True)
class Generations:
    """`now` is None in a store that never had a generation; `before` None where there is nothing to go back to."""

    now: int | None
    before: int | None
    loading: int | None
    last: int
    dropped: tuple[int, ...]


def pointer_key(prefix: str) -> str:
    return f"{prefix}:_generation"


def prefix_of(prefix: str, number: int) -> str:
    """The key prefix of a generation."""
    return f"{prefix}~{number}" if number else prefix


def generations(store: RedisOnlineStore) -> Generations:
    stored: dict[bytes, bytes] = store.run("HGETALL", pointer_key(store.address.key_prefix))
    found = {role.decode(): int(number) for role, number in stored.items()}
    dropped = sorted(int(role.removeprefix("drop:")) for role in found if role.startswith("drop:"))
    return Generations(found.get(NOW), found.get("before"), found.get("next"), found.get("last", 0), tuple(dropped))


def begin(store: RedisOnlineStore) -> int:
    """A new number to load under. The generation to go back to is given up, so that there are never three."""
    return int(_script(store, _BEGIN))


def switch(store: RedisOnlineStore, number: int) -> None:
    """Clients read this generation from now on."""
    if not _script(store, _SWITCH, number):
        problem = f"generation {number} is not the newest any more: another load began one since"
        raise OnlineStoreError(str(store.address), problem, hint="let one run at a time load generations")


def roll_back(store: RedisOnlineStore) -> int:
    """Clients read the generation before; the number of it. Doing it again goes forward."""
    number = int(_script(store, _ROLL_BACK))
    if number < 0:
        problem = "there is no generation to go back to: none was switched, or the next one is begun"
        raise OnlineStoreError(str(store.address), problem, hint="load one with `tidemark materialize --generation`")
    return number


def remove_dropped(store: RedisOnlineStore) -> int:
    """Remove the keys of generations that nobody reads or can go back to; how many there were."""
    prefix, removed = store.address.key_prefix, 0
    pointer = pointer_key(prefix).encode()
    for number in generations(store).dropped:
        for keys in store.scan_keys(f"{prefix_of(prefix, number)}:"):
            removed += store.remove([key for key in keys if key != pointer])
        store.run("HDEL", pointer_key(prefix), f"drop:{number}")
    return removed


def _script(store: RedisOnlineStore, script: str, *arguments: int) -> int:
    found: int = store.run("EVAL", script, 1, pointer_key(store.address.key_prefix), *arguments)
    return found
