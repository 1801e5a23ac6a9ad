"""Where a place's online store is: the embedded Redis, started when it is not running, or a configured one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from connectors import embedded_redis
from connectors.redis_online import RedisAddress
from feature_defs.errors import UsageError
from jobs.named_secrets import secret
from jobs.place import Place


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
        return replace(here, timeout_seconds=online.timeout_seconds, key_prefix=online.key_prefix)
    return RedisAddress(
        url=online.url,
        username=online.username or None,
        password=secret(online.password) if online.password else None,
        timeout_seconds=online.timeout_seconds,
        key_prefix=online.key_prefix,
    )
