"""What is latest: each entity's newest row at a time, and of which entities that has changed since a load.

    rows (keys, event_time, features)  ->  latest_rows  ->  (keys, event_time, features)

    changes (rows that came, rows that WENT)  -+
    rows whose time has come since             +-->  touched  ->  (keys, first, limit)  ->  latest_of_touched

An entity of which rows only came is answered by rows from the newest of them on: with few and new rows, few files. One
that lost a row needs all of its rows, and may have none left: then its event_time is null, and it is to be removed.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from connectors.offline_tables import WENT
from feature_defs.join_plan import GroupJoin
from feature_defs.model import EVENT_TIME
from jobs.transforms.as_of import latest_rows
from jobs.transforms.locate import Keep
from jobs.transforms.rows import after, all_quoted

_HASH = "_tidemark_hash"
_BROADCAST = 4_000_000  # numbers that each task holds: some 100 MB
FIRST, LIMIT = "_tidemark_first", "_tidemark_limit"  # microseconds


def touched(changes: DataFrame | None, visible: DataFrame, keys: Sequence[str], *, now_us: int) -> DataFrame:
    """(keys, first, limit) of the entities whose latest row may have changed.

    `first` is the newest time of a row that came, `limit` that of one that went: a stored value up to it may be
    replaced by an older one, or removed. Null where no row did.
    """
    rows = visible.select(*keys, EVENT_TIME, F.lit(False).alias(WENT))
    if changes is not None:
        rows = rows.unionByName(changes.select(*keys, EVENT_TIME, WENT))
    rows = rows.where(_not_after(now_us))
    time = F.unix_micros(EVENT_TIME)
    came, went = (F.max(F.when(F.col(WENT) == F.lit(gone), time)) for gone in (False, True))
    return rows.groupBy(*keys).agg(came.alias(FIRST), went.alias(LIMIT))


def latest_of_touched(
    rows: DataFrame, entities: DataFrame, group: GroupJoin, *, first_us: int | None, lost: int, now_us: int
) -> DataFrame:
    """(keys, event_time, features, limit) of these entities, event_time null for those that have no row left.

    `first_us` is the least `first` of the entities that lost no row, `lost` how many did.
    """
    current, keys = rows.where(_not_after(now_us)), list(group.keys)
    parts = []
    if first_us is not None:
        whole = group.skip_nulls  # any earlier row may hold the newest value of a feature
        near = current if whole else current.where(after(first_us - 1))
        parts.append(_of(near, entities.where(F.col(LIMIT).isNull()), keys))
    if lost:
        parts.append(_of(current, entities.where(F.col(LIMIT).isNotNull()), keys))
    latest = latest_rows(reduce(DataFrame.unionByName, parts), group, now_us=now_us)
    return entities.select(*keys, LIMIT).join(latest, keys, "left").select(*latest.columns, LIMIT)


def newest_rows(rows: DataFrame, group: GroupJoin, keep: Keep, *, now_us: int) -> DataFrame:
    """The rows that can be the latest of their entity, found in keys and times alone.

    Choosing among all rows would sort the whole table; what is left here is little. Rows are told by a hash of keys and
    time; one that meets another's by chance is an older row, and loses.
    """
    if group.skip_nulls:  # any row may hold the newest value of a feature
        return rows
    keys, current = list(group.keys), rows.where(_not_after(now_us))
    newest = current.groupBy(*keys).agg(F.max(EVENT_TIME).alias(EVENT_TIME))
    hashed = F.xxhash64(*keys, F.unix_micros(EVENT_TIME)).alias(_HASH)
    kept, told = keep(newest.select(hashed), [F.count(F.lit(1)).alias("entities")])
    if told["entities"] > _BROADCAST:
        return current
    return current.withColumn(_HASH, hashed).join(F.broadcast(kept), _HASH, "left_semi").drop(_HASH)


def without_limits(latest: DataFrame) -> DataFrame:
    """The latest rows, none of which takes the place of one that went."""
    return latest.withColumn(LIMIT, F.lit(None).cast("bigint"))


def with_all_limits(latest: DataFrame, before: DataFrame, keys: Sequence[str]) -> DataFrame:
    """All latest rows, and those entities that only were there before."""
    return latest.join(before, list(keys), "full").select(*latest.columns, LIMIT)


def newest_times(rows: DataFrame, keys: Sequence[str], *, now_us: int) -> DataFrame:
    """(keys, limit) of the entities that a version held at a time."""
    newest = F.max(F.unix_micros(EVENT_TIME)).alias(LIMIT)
    return rows.where(_not_after(now_us)).groupBy(*keys).agg(newest)


def _of(rows: DataFrame, entities: DataFrame, keys: Sequence[str]) -> DataFrame:
    return rows.join(entities.select(*keys), list(keys), "left_semi").select(*all_quoted(rows.columns))


def _not_after(now_us: int) -> Column:
    return F.col(EVENT_TIME) <= F.timestamp_micros(F.lit(now_us))
