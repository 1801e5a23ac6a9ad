"""What is latest: each entity's newest row at a time, and of which entities that has changed since a load.

    rows (keys, event_time, features)  ->  latest_rows  ->  (keys, event_time, features)

    all rows' keys and times, the newest part first  ->  winners' keys and times  ->  their rows: `latest_of_all`

    changes (rows that came, rows that WENT)  -+
    rows whose time has come since             +-->  touched  ->  (keys, first, limit)  ->  latest_of_touched

An entity of which rows only came is answered by rows from the newest of them on: with few and new rows, few files. One
that lost a row needs all of its rows, and may have none left: then its event_time is null, and it is to be removed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from connectors.offline_tables import WENT
from feature_defs.join_plan import GroupJoin
from feature_defs.model import EVENT_TIME
from jobs.transforms.as_of import latest_rows
from jobs.transforms.locate import Keep
from jobs.transforms.rows import after, all_quoted

_HASH, _TIES = "_tidemark_hash", "_tidemark_ties"
_BROADCAST = 4_000_000  # numbers that each task holds: some 100 MB
_BROADCAST_KEYS = 300_000  # the same of keys that are text, or several
FIRST, LIMIT = "_tidemark_first", "_tidemark_limit"  # microseconds

RowsAfter = Callable[[int | None], DataFrame]
"""A table's rows later than a time, or all, from those of its files that may hold such rows."""


def touched(
    changes: DataFrame | None,
    visible: DataFrame | None,
    keys: Sequence[str],
    *,
    now_us: int,
    seen_us: int,
    in_one_task: bool = False,
) -> DataFrame:
    """(keys, first, limit) of the entities whose latest row may have changed.

    `first` is the newest time of a row that came, up to `now_us`, `limit` that of one that went, up to `seen_us`: a
    stored value up to it may be replaced by an older one, or removed. Null where no row did.
    """
    parts = [] if visible is None else [visible.select(*keys, EVENT_TIME, F.lit(False).alias(WENT))]
    parts += [] if changes is None else [changes.select(*keys, EVENT_TIME, WENT)]
    in_time = F.when(F.col(WENT), _not_after(seen_us)).otherwise(_not_after(now_us))
    rows = reduce(DataFrame.unionByName, parts).where(in_time)
    rows = rows.coalesce(1) if in_one_task else rows
    time = F.unix_micros(EVENT_TIME)
    came, went = (F.max(F.when(F.col(WENT) == F.lit(gone), time)) for gone in (False, True))
    return rows.groupBy(*keys).agg(came.alias(FIRST), went.alias(LIMIT))


def latest_of_touched(
    rows_after: RowsAfter, entities: DataFrame, group: GroupJoin, *, first_us: int | None, lost: int, now_us: int
) -> DataFrame:
    """(keys, event_time, features, limit) of these entities, event_time null for those that have no row left.

    `first_us` is the least `first` of the entities that lost no row, `lost` how many did.
    """
    keys, parts = list(group.keys), []
    if first_us is not None:
        # with skip_nulls any earlier row may hold the newest value of a feature
        near = rows_after(None if group.skip_nulls else first_us - 1).where(_not_after(now_us))
        parts.append(_of(near, entities.where(F.col(LIMIT).isNull()) if lost else entities, keys))
    if lost:
        parts.append(_of(rows_after(None).where(_not_after(now_us)), entities.where(F.col(LIMIT).isNotNull()), keys))
    latest = latest_rows(reduce(DataFrame.unionByName, parts), group, now_us=now_us)
    if not lost:  # each has a row
        return without_limits(latest)
    return entities.select(*keys, LIMIT).join(latest, keys, "left").select(*latest.columns, LIMIT)


def latest_of_all(
    rows_after: RowsAfter, group: GroupJoin, keep: Keep, *, now_us: int, recent_us: int | None, one_each: bool
) -> tuple[DataFrame, int]:
    """As `latest_rows`, the winners being found in keys and times alone; and how many there are at least.

    Choosing among all rows would sort the whole table. Wide rows are told by a hash of keys and time; one that meets
    another's by chance is an older row, and loses in the store; `one_each` has it lose here, since under a limit an
    older value may win there.

    Entities that have a row after `recent_us` are found there, where nearly all are and most have one newest row, that
    is sent as it is. Of older rows those of other entities alone are looked at.
    """
    if group.skip_nulls:  # any row may hold the newest value of a feature
        return latest_rows(rows_after(None), group, now_us=now_us), 0
    keys = list(group.keys)
    if recent_us is None:
        return _found(rows_after, None, group, keep, now_us)
    ties = F.count_if(_TIES).alias("ties")
    kept, counts = keep(_newest_with_ties(rows_after(recent_us), keys, now_us), [*_told(), ties])
    if counts["entities"] > _BROADCAST:
        return latest_rows(rows_after(None), group, now_us=now_us), counts["entities"]
    recent = _among(rows_after, kept, counts["oldest_us"], keys, now_us)
    if counts["ties"] or one_each:
        recent = latest_rows(recent, group, now_us=now_us)
    recent = recent.select(*keys, EVENT_TIME, *all_quoted(group.features))

    def older_after(time_us: int | None) -> DataFrame:
        return rows_after(time_us).where(~after(recent_us))

    known = kept.select(*keys)
    older, count = _found(older_after, _broadcast(known, counts["entities"]), group, keep, now_us)
    return (recent.unionByName(older) if count else recent), counts["entities"] + count


def _found(
    rows_after: RowsAfter, known: DataFrame | None, group: GroupJoin, keep: Keep, now_us: int
) -> tuple[DataFrame, int]:
    """The latest rows of these rows' entities but the known ones, and how many they are."""
    keys, newest = list(group.keys), F.max(F.unix_micros(EVENT_TIME)).alias(EVENT_TIME)
    rows = rows_after(None).where(_not_after(now_us))
    if known is not None:
        rows = rows.join(known, keys, "left_anti").select(*all_quoted(rows.columns))
    kept, counts = keep(rows.groupBy(*keys).agg(newest), _told())
    if 0 < counts["entities"] <= _BROADCAST:
        rows = _among(rows_after, kept, counts["oldest_us"], keys, now_us)
    return latest_rows(rows, group, now_us=now_us), counts["entities"]


def _broadcast(keys: DataFrame, count: int) -> DataFrame:
    """Each task holds them where they are few, or one number each; else rows are brought to them."""
    is_number = len(keys.columns) == 1 and keys.schema[0].dataType.typeName() in ("integer", "long", "date")
    return F.broadcast(keys) if is_number or count <= _BROADCAST_KEYS else keys


def _told() -> list[Column]:
    return [F.count(F.lit(1)).alias("entities"), F.min(EVENT_TIME).alias("oldest_us")]


def _among(
    rows_after: RowsAfter, newest: DataFrame, oldest_us: int | None, keys: Sequence[str], now_us: int
) -> DataFrame:
    """The rows of these keys and times, the oldest of which is known."""
    near = rows_after(None if oldest_us is None else oldest_us - 1).where(_not_after(now_us))
    wanted = newest.select(F.xxhash64(*keys, EVENT_TIME).alias(_HASH))
    hashed = near.withColumn(_HASH, F.xxhash64(*keys, F.unix_micros(EVENT_TIME)))
    return hashed.join(F.broadcast(wanted), _HASH, "left_semi").drop(_HASH)


def _newest_with_ties(rows: DataFrame, keys: Sequence[str], now_us: int) -> DataFrame:
    """(keys, event_time, ties): the newest time of each entity, in microseconds, and whether several rows have it.

    The flag is the lowest bit of the number that is compared: a maximum of two columns would be a sort.
    """
    slim = rows.where(_not_after(now_us)).select(*keys, F.unix_micros(EVENT_TIME).alias(EVENT_TIME))
    times = slim.repartition(*keys).groupBy(*keys, EVENT_TIME).agg(F.count(F.lit(1)).alias(_TIES))
    flagged = F.shiftleft(EVENT_TIME, 1) + F.when(F.col(_TIES) > 1, 1).otherwise(0)
    newest = times.groupBy(*keys).agg(F.max(flagged).alias(_TIES))
    return newest.select(*keys, F.shiftright(_TIES, 1).alias(EVENT_TIME), (F.col(_TIES) % 2 != 0).alias(_TIES))


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
