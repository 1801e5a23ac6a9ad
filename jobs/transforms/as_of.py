"""The as-of: the newest feature row not after a time, for every spine row or for every entity at one time.

    spine (keys, event_time, ...)  +  feature rows of each group  ->  spine rows in place, features behind

    points      distinct (keys, time) of the spine: duplicates meet the feature rows once
    winners     points and rows of an entity in one line by time -> at each point the greatest row so far, as a struct
                (event_time, created_time, values)
    result      spine left join winners: every spine row once, also with a null key or a null time

Rules of time: DESIGN in docs/rules-of-time.md; each is one condition below.
"""

from __future__ import annotations

from collections.abc import Sequence

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from feature_defs.expressions import quoted, text_literal
from feature_defs.join_plan import GroupJoin, JoinPlan, TimeRules
from feature_defs.model import CREATED_TIME, EVENT_TIME
from jobs.transforms.maps import entries_of, maps_again
from jobs.transforms.rows import all_quoted, utc

_TIME, _ARRIVAL, _POINT = "_tidemark_time", "_tidemark_arrival", "_tidemark_point"
_WINNER, _KNOWN = "_tidemark_winner_", "_tidemark_known_"
LEAK = "_tidemark_leak_"


def training_rows(
    spine: DataFrame, tables: Sequence[DataFrame], plan: JoinPlan, *, points_of: DataFrame | None = None
) -> DataFrame:
    """Every spine row once and in its columns, then the plan's outputs, then a leak flag a feature (LEAK + output).

    A leak flag is true where the value would differ had rows created after the spine time been left out. `points_of`
    are the same rows where these have columns that are costly to make.
    """
    result = spine
    for rows, group in zip(tables, plan.groups, strict=True):
        found = _winners(_points(points_of or spine, group.keys), rows, group, plan.rules)
        on = [F.col(f"s.{key}") == F.col(f"w.{key}") for key in group.keys]
        on.append(_spine_time(spine, f"s.{EVENT_TIME}") == F.col(f"w.{_TIME}"))
        kept = [f"s.{name}" for name in all_quoted(result.columns)]
        added = [f"w.{quoted(name)}" for name in found.columns if name not in (*group.keys, _TIME)]
        result = result.alias("s").join(found.alias("w"), on, "left").selectExpr(*kept, *added)
    flags = [LEAK + output for output in plan.outputs]
    return result.select(*all_quoted(spine.columns), *plan.outputs, *flags)


def latest_rows(rows: DataFrame, group: GroupJoin, *, now_us: int) -> DataFrame:
    """(keys, event_time, features) of each entity's newest row not after `now_us`, past its ttl or not."""
    current = entries_of(rows.where(F.col(EVENT_TIME) <= F.timestamp_micros(F.lit(now_us))), group.maps)
    alive = F.lit(True)
    if group.skip_nulls and group.ttl_us is not None:  # a value that only an expired row holds is not the entity's
        alive = F.unix_micros(EVENT_TIME) >= F.lit(now_us - group.ttl_us)
    newest = current.groupBy(*group.keys).agg(
        F.max(EVENT_TIME).alias(EVENT_TIME),
        *(F.max(F.when(alive, candidate)).alias(_WINNER + name) for name, candidate in _candidates(group).items()),
    )
    values = (f"{_answer(group, name, _WINNER)} AS {quoted(name)}" for name in group.features)
    return maps_again(newest.selectExpr(*all_quoted(group.keys), EVENT_TIME, *values), group.maps)


def _points(spine: DataFrame, keys: Sequence[str]) -> DataFrame:
    """(keys, time) to look up. A null key or time matches nothing and is not looked up."""
    points = spine.select(*keys, _spine_time(spine, EVENT_TIME).alias(_TIME)).dropna()
    return points.distinct()


def _spine_time(spine: DataFrame, column: str) -> Column:
    return utc(F.col(column), spine.schema[EVENT_TIME].dataType)


def _winners(points: DataFrame, rows: DataFrame, group: GroupJoin, rules: TimeRules) -> DataFrame:
    """(keys, time, outputs, leak flags) of the points.

    Points and rows stand in one line by time, and each point takes the greatest row so far; for what was known by then
    in one line by arrival, a row without a created_time having arrived at its event_time.
    """
    slim = entries_of(rows.select(*group.keys, EVENT_TIME, CREATED_TIME, *group.features), group.maps)
    time = F.col(EVENT_TIME)
    earliest = time + F.expr("INTERVAL '0.000001' SECOND") if rules.strict else time
    candidates = _candidates(group)
    of_rows = slim.where(time.isNotNull()).select(
        *group.keys,
        time.alias(_TIME),
        F.greatest(earliest, CREATED_TIME).alias(_ARRIVAL),
        F.lit(0).alias(_POINT),
        *(candidate.alias(_WINNER + name) for name, candidate in candidates.items()),
    )
    of_points = points.select(
        *group.keys, _TIME, F.col(_TIME).alias(_ARRIVAL), F.lit(-1 if rules.strict else 1).alias(_POINT)
    )
    # what arrives at the very time is known by then, whatever the bound on event_time
    by_time, by_arrival = (
        Window.partitionBy(*group.keys).orderBy(*order).rowsBetween(Window.unboundedPreceding, 0)
        for order in ((_TIME, _POINT), (_ARRIVAL, F.abs(_POINT)))
    )
    answers = (
        of_rows.unionByName(of_points, allowMissingColumns=True)
        .select(
            *group.keys,
            _TIME,
            _POINT,
            *(F.max(_WINNER + name).over(by_time).alias(_WINNER + name) for name in candidates),
            *(F.max(_WINNER + name).over(by_arrival).alias(_KNOWN + name) for name in candidates),
        )
        .where(f"{_POINT} != 0")
    )

    def value(feature: str, kind: str) -> str:
        answer = _answer(group, feature, kind)
        if group.ttl_us is None:
            return answer
        time = f"{_candidate(group, feature, kind)}['{EVENT_TIME}']"
        return f"CASE WHEN unix_micros({time}) >= unix_micros({_TIME}) - {group.ttl_us} THEN {answer} END"

    chosen = _KNOWN if rules.known_by == "spine" else _WINNER
    found = answers.selectExpr(  # text, which is one call of Spark's where columns would be a dozen each
        *all_quoted(group.keys),
        _TIME,
        *(f"{value(feature, chosen)} AS {quoted(output)}" for feature, output in group.columns),
        *(
            f"NOT ({value(feature, _WINNER)} <=> {value(feature, _KNOWN)}) AS {quoted(LEAK + output)}"
            for feature, output in group.columns
        ),
    )
    return maps_again(found, [output for feature, output in group.columns if feature in group.maps])


def _ordered(features: Sequence[str]) -> Column:
    """What decides between rows: event_time, then created_time (null is oldest), then the values."""
    return F.struct(EVENT_TIME, CREATED_TIME, F.struct(*features).alias("values"))


def _candidates(group: GroupJoin) -> dict[str, Column]:
    """What a row offers as the answer: its values as a whole, whose nulls are the answer; or each that is not null."""
    if not group.skip_nulls:
        return {"": _ordered(group.features)}
    return {name: F.when(F.col(name).isNotNull(), _ordered([name])) for name in group.features}


def _candidate(group: GroupJoin, feature: str, kind: str) -> str:
    """The candidate that was chosen for a feature, as SQL names it."""
    return quoted(kind + (feature if group.skip_nulls else ""))


def _answer(group: GroupJoin, feature: str, kind: str) -> str:
    """The feature's value in it."""
    return f"{_candidate(group, feature, kind)}['values'][{text_literal(feature)}]"
