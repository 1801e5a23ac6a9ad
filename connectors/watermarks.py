"""Which loads a store's values may be of, kept in the store itself: so each goes on from what it holds.

    PREFIX:_loaded    a hash
        FIELD         the run of the last load that was verified
        FIELD RUN     a load since, as JSON: it is going on, or died, or another wrote beside it

A load notes itself before its first value. When it ends it is the last one, and takes away what it found noted: it has
repaired what those may have written. Not so where another wrote beside it. Which of both sent a value last is not known
then, so both stay noted, and the next load repairs what either may have sent.

What it cannot see is a load that goes on behind the end of another one, and then dies.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from connectors.receipts import Load
from connectors.redis_online import RedisOnlineStore

# Sent twice, when a reply was lost, it answers as the first time. ARGV: field, run, note, and the runs it found.
# Of these one is gone when it ended meanwhile, or when one did that found it; that one took this run's note, too.
_END = """
local key, field, run = KEYS[1], ARGV[1], ARGV[2]
local own = field .. ' ' .. run
if redis.call('HGET', key, field) == run then return 1 end
if redis.call('HGET', key, own) == ARGV[3] then return 0 end
local beside = redis.call('HEXISTS', key, own) == 0
for i = 4, #ARGV do
  beside = beside or redis.call('HEXISTS', key, field .. ' ' .. ARGV[i]) == 0
end
if beside then
  redis.call('HSET', key, own, ARGV[3])
  return 0
end
redis.call('HSET', key, field, run)
redis.call('HDEL', key, own)
for i = 4, #ARGV do
  redis.call('HDEL', key, field .. ' ' .. ARGV[i])
end
return 1
"""


@dataclass(frozen=True)
class Found:
    """What a load finds noted when it begins: the run of the last one, and loads since that did not end as the last."""

    last: str | None
    since: Mapping[str, Load]


def begin(store: RedisOnlineStore, field: bytes, load: Load) -> Found:
    """Note that a load is about to send values."""
    store.run("HSET", _key(store), _noted(field, load.run), _text(load))
    stored: dict[bytes, bytes] = store.run("HGETALL", _key(store))
    start, last = _noted(field, ""), stored.get(field)
    since = {
        name.removeprefix(start).decode(): Load(**json.loads(text))
        for name, text in stored.items()
        if name.startswith(start) and name != _noted(field, load.run)
    }
    return Found(last.decode() if last else None, since)


def end(store: RedisOnlineStore, field: bytes, load: Load, found: Found) -> bool:
    """Make a verified load the last one; False when another wrote beside it."""
    note = _text(load) + " "  # unlike the one of its beginning, whatever it says
    return bool(store.run("EVAL", _END, 1, _key(store), field, load.run, note, *found.since))


def last_load(store: RedisOnlineStore, field: bytes) -> str | None:
    """The run of a field's last verified load; None where there was none, or the store has lost it."""
    reply = store.run("HGET", _key(store), field)
    return reply.decode() if reply else None


def loaded_fields(store: RedisOnlineStore) -> list[bytes]:
    """The fields that were ever loaded completely."""
    return sorted(name for name in store.run("HKEYS", _key(store)) if b" " not in name)


def _key(store: RedisOnlineStore) -> str:
    return f"{store.address.key_prefix}:_loaded"


def _noted(field: bytes, run: str) -> bytes:
    return field + b" " + run.encode()


def _text(load: Load) -> str:
    return json.dumps({name: value for name, value in asdict(load).items() if name in Load.__dataclass_fields__})
