"""Where a place's online stores are: the embedded Redis, started when it is not running, or configured ones.

A generation is a key prefix, and another store other settings: `at_store` and `in_generation` give a place whose online
store is that one, and what works with a place needs to know no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from connectors import embedded_redis
from connectors.generations import generation_now, prefix_of
from connectors.redis_online import RedisAddress, open_redis
from feature_defs.errors import UsageError, listed, near_miss
from jobs.named_secrets import secret
from jobs.place import Place
from jobs.settings import MAIN_STORE


def online_address(place: Place) -> RedisAddress:
    """The address, with its secret; it can be sent to executors."""
    online = place.settings.online
    if online.kind == "none":
        problem = "the profile has no online store"
        raise UsageError(
            f"Profile '{place.settings.name}'", problem, hint='set [online] kind = "redis" and url = "..."'
        )
    if online.kind == "embedded":
        spark = place.settings.spark
        if not spark.master.startswith("local") or spark.remote:
            problem = f"the embedded Redis serves this machine only, but Spark runs at {spark.remote or spark.master}"
            raise UsageError(f"Profile '{place.settings.name}'", problem, hint='set [online] kind = "redis" and url')
        here = embedded_redis.start(Path(online.folder))
        return replace(
            here,
            timeout_seconds=online.timeout_seconds,
            key_prefix=online.key_prefix,
            generations=online.generations,
        )
    return RedisAddress(
        url=online.url,
        username=online.username or None,
        password=secret(online.password) if online.password else None,
        timeout_seconds=online.timeout_seconds,
        key_prefix=online.key_prefix,
        generations=online.generations,
    )


def store_names(place: Place, names: Sequence[str]) -> list[str]:
    """The named online stores, or with no name all that the profile has."""
    known = [MAIN_STORE, *place.settings.online_stores]
    for name in names:
        if name not in known:
            problem = f"is not in profile '{place.settings.name}' ({listed(known)})"
            raise UsageError(f"Online store '{name}'", problem, hint=near_miss(name, known) + "name one of these")
    return list(dict.fromkeys(names)) or known


def at_store(place: Place, name: str) -> Place:
    """The place with this online store."""
    (found,) = store_names(place, [name])
    return place if found == MAIN_STORE else place.with_online(place.settings.online_stores[found])


def in_generation(place: Place, number: int | None = None) -> Place:
    """The place with a generation of its online store, without a number the one that clients read."""
    online, address = place.settings.online, online_address(place)
    if number is None:
        with open_redis(address) as store:  # refuses clearly before any Spark job runs
            number = generation_now(store)
        if number is not None and not online.generations:
            problem = f"its keys have generations, of which {number} is read, and the profile does not say so"
            raise UsageError(str(address), problem, hint="set generations = true beside its url, for clients too")
    prefix = prefix_of(online.key_prefix, number or 0)
    return place.with_online(replace(online, key_prefix=prefix, generations=False))
