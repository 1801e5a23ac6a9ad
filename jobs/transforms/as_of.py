"""The as-of: the newest feature row not after a time, for every spine row or for every entity at one time.

    spine (keys, event_time, ...)  +  feature rows of each group  ->  spine rows in place, features behind

    points      distinct (keys, time) of the spine: duplicates meet the feature rows once
    winners     points x rows in the window of time -> a struct a point, the greatest (event_time, created_time, values)
    result      spine left join winners: every spine row once, also with a null key or a null time

Rules of time: DESIGN in docs/rules-of-time.md; each is one condition below.
"""

from __future__ import annotations

from collections.abc import Sequence

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from feature_defs.join_plan import GroupJoin, JoinPlan, TimeRules
from feature_defs.model import CREATED_TIME, EVENT_TIME
from jobs.transforms.maps import entries_of, maps_again
from jobs.transforms.rows import quoted, utc

_TIME, _WINNER, _KNOWN = "_tidemark_time", "_tidemark_winner", "_tidemark_known"
LEAK = "_tidemark_leak_"


def training_rows(spine: DataFrame, tables: Sequence[DataFrame], plan: JoinPlan) -> DataFrame:
    """Every spine row once and in its columns, then the plan's outputs, then a leak flag a feature (LEAK + output).

    A leak flag is true where the value would differ had rows created after the spine time been left out.
    """
    result = spine
    for rows, group in zip(tables, plan.groups, strict=True):
        found = _winners(_points(spine, group.keys), rows, group, plan.rules)
        on = [F.col(f"s.{key}") == F.col(f"w.{key}") for key in group.keys]
        on.append(_spine_time(spine, f"s.{EVENT_TIME}") == F.col(f"w.{_TIME}"))
        kept = [F.col(f"s.{name}") for name in quoted(result.columns)]
        added = [F.col(f"w.`{name}`") for name in found.columns if name not in (*group.keys, _TIME)]
        result = result.alias("s").join(found.alias("w"), on, "left").select(*kept, *added)
    flags = [LEAK + output for output in plan.outputs]
    return result.select(*quoted(spine.columns), *plan.outputs, *flags)


def latest_rows(rows: DataFrame, group: GroupJoin, *, now_us: int) -> DataFrame:
    """(keys, event_time, features) of each entity's newest row not after `now_us`, past its ttl or not."""
    current = entries_of(rows.where(F.col(EVENT_TIME) <= F.timestamp_micros(F.lit(now_us))), group.maps)
    values, alive = _one_newest, F.lit(True)
    if group.skip_nulls:
        values = _each_newest
        if group.ttl_us is not None:  # a value that only an expired row holds is not the entity's any more
            alive = F.unix_micros(EVENT_TIME) >= F.lit(now_us - group.ttl_us)
    newest = current.groupBy(*group.keys).agg(
        F.max(EVENT_TIME).alias(EVENT_TIME), values(group.features, alive).alias(_WINNER)
    )
    found = newest.select(*group.keys, EVENT_TIME, *(f"{_WINNER}.{name}" for name in group.features))
    return maps_again(found, group.maps)


def _points(spine: DataFrame, keys: Sequence[str]) -> DataFrame:
    """(keys, time) to look up. A null key or time matches nothing and is not looked up."""
    points = spine.select(*keys, _spine_time(spine, EVENT_TIME).alias(_TIME)).dropna()
    return points.distinct()


def _spine_time(spine: DataFrame, column: str) -> Column:
    return utc(F.col(column), spine.schema[EVENT_TIME].dataType)


def _winners(points: DataFrame, rows: DataFrame, group: GroupJoin, rules: TimeRules) -> DataFrame:
    """(keys, time, outputs, leak flags) of the points that have a row."""
    row_time, time = F.col(f"r.{EVENT_TIME}"), F.col(f"p.{_TIME}")
    match = [F.col(f"p.{key}") == F.col(f"r.{key}") for key in group.keys]
    match.append(row_time < time if rules.strict else row_time <= time)
    if group.ttl_us is not None:
        match.append(F.unix_micros(row_time) >= F.unix_micros(time) - F.lit(group.ttl_us))
    slim = entries_of(rows.select(*group.keys, EVENT_TIME, CREATED_TIME, *group.features), group.maps)
    candidates = points.alias("p").join(slim.alias("r"), match, "inner")
    columns = [*(F.col(f"p.{key}") for key in group.keys), F.col(f"p.{_TIME}")]
    rest = [F.col(f"r.{name}") for name in (EVENT_TIME, CREATED_TIME, *group.features)]
    # a row without a created_time is taken as known at its event_time
    known = F.coalesce(F.col(CREATED_TIME), F.col(EVENT_TIME)) <= F.col(_TIME)
    values = _each_newest if group.skip_nulls else _one_newest
    answers = (
        candidates.select(*columns, *rest)
        .groupBy(*group.keys, _TIME)
        .agg(values(group.features, F.lit(True)).alias(_WINNER), values(group.features, known).alias(_KNOWN))
    )
    chosen = _KNOWN if rules.known_by == "spine" else _WINNER
    found = answers.select(
        *group.keys,
        _TIME,
        *(F.col(f"{chosen}.{feature}").alias(output) for feature, output in group.columns),
        *(_differ(feature).alias(LEAK + output) for feature, output in group.columns),
    )
    return maps_again(found, [output for feature, output in group.columns if feature in group.maps])


def _ordered(features: Sequence[str]) -> Column:
    """What decides between rows: event_time, then created_time (null is oldest), then the values."""
    return F.struct(EVENT_TIME, CREATED_TIME, F.struct(*features).alias("values"))


def _one_newest(features: Sequence[str], kept: Column) -> Column:
    """The newest row's values; its nulls are the answer."""
    return F.max(F.when(kept, _ordered(features))).getField("values")


def _each_newest(features: Sequence[str], kept: Column) -> Column:
    """Each feature's newest value that is not null."""
    newest = [
        F.max(F.when(kept & F.col(name).isNotNull(), _ordered([name]))).getField("values").getField(name).alias(name)
        for name in features
    ]
    return F.struct(*newest)


def _differ(feature: str) -> Column:
    return ~F.col(f"{_WINNER}.{feature}").eqNullSafe(F.col(f"{_KNOWN}.{feature}"))
