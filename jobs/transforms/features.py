"""Rows with clocks -> feature rows: keys, event_time, created_time, then the group's features in order.

row level       expressions over the row                                 -> one of equal (keys, clocks)
at every event  aggregates over (t - window, t] at each event, then expressions over them
on a grid       tiles -> states merged over each window at each grid point, then expressions over them
"""

from __future__ import annotations

from collections.abc import Sequence

from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from feature_defs import data_types, durations, expressions
from feature_defs.aggregates import AGGREGATES
from feature_defs.errors import DataError
from feature_defs.model import CREATED_TIME, EVENT_TIME, Aggregate, Entity, Feature, FeatureGroup
from jobs.transforms.rows import quoted, reason

_ORDER = f"struct({EVENT_TIME}, {CREATED_TIME})"
_TIME, _CELL, _CREATED = "_tidemark_time", "_tidemark_cell", "_tidemark_created"


def feature_rows(rows: DataFrame, group: FeatureGroup, entity: Entity, *, until_us: int) -> DataFrame:
    """The group's feature rows. A grid ends at `until_us`; rows after it belong to a cell that is not over yet."""
    keys = list(entity.keys)
    if not group.aggregates:
        return _one_of_equals(_evaluated(rows, group, keys), group, keys)
    try:
        if group.every is None:
            aggregated = _at_every_event(rows, group, keys)
        else:
            aggregated = _on_grid(rows, group, keys, until_us=until_us)
    except AnalysisException as error:
        raise _first_aggregate_fault(rows, group) or error from error
    return _evaluated(aggregated, group, keys)


# expressions


def _evaluated(rows: DataFrame, group: FeatureGroup, keys: Sequence[str]) -> DataFrame:
    """Every feature as the type it declares. A column of the rows wins over a feature of the same name."""
    features = _in_need_order(group)
    texts = {feature.name: _text(feature) for feature in features}
    clocks = [*keys, EVENT_TIME, CREATED_TIME]
    try:
        natural = rows.selectExpr(*quoted(clocks), *(f"{texts[f.name]}\n AS `{f.name}`" for f in features)).schema
    except AnalysisException as error:
        raise _first_fault(rows, group, features, texts) or error from error
    for feature in features:
        _check_type(group, feature, natural[feature.name].dataType.simpleString())
    # a line of its own ends a comment behind the user's expression
    cast = [f"CAST({texts[f.name]}\n AS {data_types.parse(f.type).spark}) AS `{f.name}`" for f in features]
    evaluated = rows.selectExpr(*quoted(clocks), *cast)
    return evaluated.select(*clocks, *(feature.name for feature in group.features))


def _text(feature: Feature) -> str:
    return feature.expression if isinstance(feature.expression, str) else f"`{feature.name}`"


def _in_need_order(group: FeatureGroup) -> list[Feature]:
    """A feature after those that its expression names, as SQL's lateral aliases need it."""
    waiting = {feature.name.lower(): feature for feature in group.features}
    ordered: list[Feature] = []
    while waiting:
        for name, feature in list(waiting.items()):
            columns = expressions.columns(feature.expression) if isinstance(feature.expression, str) else ()
            if not ({column.lower() for column in columns} & waiting.keys()) - {name}:
                ordered.append(waiting.pop(name))
    return ordered


def _first_fault(
    rows: DataFrame, group: FeatureGroup, features: Sequence[Feature], texts: dict[str, str]
) -> DataError | None:
    """The first feature that Spark cannot resolve, found one by one only after all together failed."""
    for count in range(1, len(features) + 1):
        feature = features[count - 1]
        try:
            _ = rows.selectExpr(*(f"{texts[f.name]}\n AS `{f.name}`" for f in features[:count])).schema
        except AnalysisException as error:
            return _unresolved(group, feature, texts[feature.name], error)
    return None


def _unresolved(group: FeatureGroup, feature: Feature, text: str, error: AnalysisException) -> DataError:
    subject = f"Feature '{group.name}.{feature.name}'"
    return DataError(subject, f"expression `{text.strip('`')}`: {reason(error)}", hint="correct it")


_WIDER = {
    "tinyint": ("smallint", "int", "bigint", "float", "double", "decimal"),
    "smallint": ("int", "bigint", "float", "double", "decimal"),
    "int": ("bigint", "double", "decimal"),
    "bigint": ("decimal",),
    "float": ("double",),
    "date": ("timestamp",),
    "timestamp_ntz": ("timestamp",),
    "decimal": ("decimal", "double"),
}
_WHOLE_DIGITS = {"tinyint": 3, "smallint": 5, "int": 10, "bigint": 19}


def _check_type(group: FeatureGroup, feature: Feature, found: str) -> None:
    """A cast that could lose something is the user's to write."""
    declared = data_types.parse(feature.type).spark
    is_aggregate = isinstance(feature.expression, Aggregate)
    if found == declared or _is_wider(found, declared, is_aggregate=is_aggregate):
        return
    subject = f"Feature '{group.name}.{feature.name}'"
    cast = "cast what it aggregates" if is_aggregate else f"write cast({_text(feature)} as {declared})"
    problem = f"is declared {declared}, but its expression gives {found}"
    raise DataError(subject, problem, hint=f'set its type to "{found}", or {cast}')


def _is_wider(found: str, declared: str, *, is_aggregate: bool) -> bool:
    plain, wanted = found.partition("(")[0], declared.partition("(")[0]
    if plain == "void":
        return True
    if wanted not in _WIDER.get(plain, ()):
        return False
    if wanted != "decimal":
        return True
    target, scale = data_types.parse(declared), 0 if plain != "decimal" else data_types.parse(found).scale
    digits = _WHOLE_DIGITS[plain] if plain != "decimal" else data_types.parse(found).precision - scale
    # the digits of a sum are Spark's guess at the most there could be; one that does not fit fails the job
    return target.scale >= scale and (is_aggregate or target.precision - target.scale >= digits)


def _one_of_equals(rows: DataFrame, group: FeatureGroup, keys: Sequence[str]) -> DataFrame:
    """Rows with equal keys and clocks are one row, the greatest by its values: a total order for every later join."""
    from jobs.transforms.maps import entries_of, map_names, maps_again

    clocks, maps = [*keys, EVENT_TIME, CREATED_TIME], map_names(group.features)
    values = F.max(F.struct(*(feature.name for feature in group.features))).alias("_tidemark_values")
    greatest = entries_of(rows, maps).groupBy(*clocks).agg(values).select(*clocks, "_tidemark_values.*")
    return maps_again(greatest, maps)


# aggregates


def _measure(aggregate: Aggregate) -> tuple[str, str]:
    """What an aggregate reads whatever its window: the function and its row value, null where it does not count."""
    value = aggregate.column if aggregate.column is not None else "1"
    return (
        aggregate.function,
        f"(CASE WHEN {aggregate.where}\n THEN {value}\n END)" if aggregate.where else f"({value}\n)",
    )


def _first_aggregate_fault(rows: DataFrame, group: FeatureGroup) -> DataError | None:
    """The first aggregate that Spark cannot resolve, found one by one only after all together failed."""
    for feature in group.aggregates:
        assert isinstance(feature.expression, Aggregate)
        function, value = _measure(feature.expression)
        states = AGGREGATES[function].prepare.values()
        try:
            _ = rows.selectExpr(*(state.format(x=value, order=_ORDER) for state in states)).schema
        except AnalysisException as error:
            return _unresolved(group, feature, " ".join(value.split()), error)
    return None


def _states(group: FeatureGroup) -> dict[tuple[str, str], dict[str, str]]:
    """State columns of each distinct measure: windows of one measure share its states."""
    measures = dict.fromkeys(_measure(f.expression) for f in group.aggregates if isinstance(f.expression, Aggregate))
    return {
        measure: {state: f"_tidemark_s{number}_{state}" for state in AGGREGATES[measure[0]].prepare}
        for number, measure in enumerate(measures)
    }


def _over(keys: Sequence[str], order: str, before: int | None) -> str:
    """A frame of every row at most `before` earlier, rows at the same time included."""
    start = "UNBOUNDED" if before is None else f"{before}L"
    partition = ", ".join(quoted(keys))
    return f"OVER (PARTITION BY {partition} ORDER BY {order} RANGE BETWEEN {start} PRECEDING AND CURRENT ROW)"


def _longest(group: FeatureGroup) -> int | None:
    """The longest window, None without a limit: created_time is the newest of the rows it could have read."""
    windows = [f.expression.window for f in group.aggregates if isinstance(f.expression, Aggregate)]
    return None if None in windows else max(durations.microseconds(window) for window in windows)


def _finalized(group: FeatureGroup, per_window: dict[tuple[tuple[str, str], str | None], dict[str, str]]) -> list[str]:
    """Each aggregate feature from the states of its window."""
    found = []
    for feature in group.aggregates:
        aggregate = feature.expression
        assert isinstance(aggregate, Aggregate)
        states = per_window[_measure(aggregate), aggregate.window]
        found.append(f"{AGGREGATES[aggregate.function].finalize.format(**states)} AS `{feature.name}`")
    return found


def _windows(group: FeatureGroup) -> list[tuple[tuple[str, str], str | None]]:
    """Each distinct (measure, window) of the group."""
    pairs = [
        (_measure(f.expression), f.expression.window) for f in group.aggregates if isinstance(f.expression, Aggregate)
    ]
    return list(dict.fromkeys(pairs))


def _at_every_event(rows: DataFrame, group: FeatureGroup, keys: Sequence[str]) -> DataFrame:
    timed = rows.selectExpr("*", f"unix_micros({EVENT_TIME}) AS {_TIME}")
    frames, per_window = [], {}
    for number, (measure, window) in enumerate(_windows(group)):
        function, value = measure
        over = _over(keys, _TIME, durations.microseconds(window) - 1 if window else None)
        per_window[measure, window] = {state: f"_tidemark_w{number}_{state}" for state in AGGREGATES[function].prepare}
        for state, text in AGGREGATES[function].prepare.items():
            frames.append(f"{text.format(x=value, order=_ORDER)} {over} AS _tidemark_w{number}_{state}")
    longest = _longest(group)
    created = f"max({CREATED_TIME}) {_over(keys, _TIME, longest - 1 if longest else None)} AS {_CREATED}"
    # rows of one entity and time share every frame, so one of them stands for all
    framed = timed.selectExpr(*quoted(keys), EVENT_TIME, created, *frames).dropDuplicates([*keys, EVENT_TIME])
    return framed.selectExpr(*quoted(keys), EVENT_TIME, f"{_CREATED} AS {CREATED_TIME}", *_finalized(group, per_window))


def grid_end(newest_us: int, now_us: int, every: str) -> int:
    """The last grid point: the end of the newest row's cell, or of the last cell that is over, whichever is first."""
    length = durations.microseconds(every)
    return min(newest_us + -newest_us % length, now_us - now_us % length)


def _on_grid(rows: DataFrame, group: FeatureGroup, keys: Sequence[str], *, until_us: int) -> DataFrame:
    every = durations.microseconds(group.every)
    states = _states(group)
    names = [name for columns in states.values() for name in columns.values()]
    prepared = [
        F.expr(AGGREGATES[function].prepare[state].format(x=value, order=_ORDER)).alias(name)
        for (function, value), columns in states.items()
        for state, name in columns.items()
    ]
    # 1 tiles: (keys, cell, states of the rows in (cell - every, cell])
    cell = f"unix_micros({EVENT_TIME}) + pmod(-unix_micros({EVENT_TIME}), {every}L) AS {_CELL}"
    celled = rows.selectExpr("*", cell).where(F.col(_CELL) <= F.lit(until_us))
    tiles = celled.groupBy(*keys, _CELL).agg(F.max(CREATED_TIME).alias(_CREATED), *prepared)
    # 2 points: each tile stands at its own cell and, empty, at every cell before the entity's next tile
    following = f"lead({_CELL}) OVER (PARTITION BY {', '.join(quoted(keys))} ORDER BY {_CELL})"
    spans = tiles.selectExpr("*", f"coalesce({following}, {until_us + every}L) - {every}L AS _tidemark_to")
    points = spans.selectExpr("*", f"explode(sequence({_CELL}, _tidemark_to, {every}L)) AS {_TIME}").selectExpr(
        *quoted(keys), _TIME, *(f"if({_TIME} = {_CELL}, {name}, null) AS {name}" for name in (_CREATED, *names))
    )
    # 3 merged: (keys, cell, state of each window), 4 the values
    frames, per_window = [], {}
    for number, (measure, window) in enumerate(_windows(group)):
        over = _over(keys, _TIME, durations.microseconds(window) - every if window else None)
        per_window[measure, window] = {state: f"_tidemark_w{number}_{state}" for state in states[measure]}
        for state, name in states[measure].items():
            frames.append(f"{AGGREGATES[measure[0]].merge[state]}({name}) {over} AS _tidemark_w{number}_{state}")
    longest = _longest(group)
    created = f"max({_CREATED}) {_over(keys, _TIME, longest - every if longest else None)} AS {CREATED_TIME}"
    merged = points.selectExpr(*quoted(keys), f"timestamp_micros({_TIME}) AS {EVENT_TIME}", created, *frames)
    return merged.selectExpr(*quoted(keys), EVENT_TIME, CREATED_TIME, *_finalized(group, per_window))
