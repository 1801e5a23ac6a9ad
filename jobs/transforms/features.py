"""Rows with clocks -> feature rows: keys, event_time, created_time, then the group's features in order.

row level   expressions over the row, one of equal (keys, clocks)
aggregates  tiles -> states merged over each window, at every event or on a grid, then expressions over them
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from connectors.row_order import in_order
from feature_defs import data_types, durations, expressions
from feature_defs.errors import DataError
from feature_defs.model import CREATED_TIME, EVENT_TIME, HIDDEN, REJECTED, Aggregate, Entity, Feature, FeatureGroup
from feature_defs.rules import Unique
from jobs.transforms.rows import after, all_quoted, correction, reason
from jobs.transforms.tile_kernel import KernelRows, kernel_rows, supports
from jobs.transforms.tiles import advanced_rows, group_rows, plan_of, tiles_of


@dataclass(frozen=True)
class Features:
    """A group's feature rows. `kernel` gives the very rows, where tasks can make all of them."""

    rows: DataFrame
    kernel: KernelRows | None = None


def feature_rows(
    rows: DataFrame, group: FeatureGroup, entity: Entity, *, until_us: int, after_us: int | None = None
) -> DataFrame:
    return features_of(rows, group, entity, until_us=until_us, after_us=after_us).rows


def features_of(
    rows: DataFrame, group: FeatureGroup, entity: Entity, *, until_us: int, after_us: int | None = None
) -> Features:
    """The group's feature rows. A grid ends at `until_us`; rows after it belong to a cell that is not over yet.

    With `after_us` only rows of (after, until]: the same as those of a full run. Those of a grid come in order.
    """
    keys = list(entity.keys)
    if after_us is not None:
        rows = rows.where(~after(until_us))
    if not group.aggregates:
        chosen = rows if after_us is None else rows.where(after(after_us))
        return Features(_one_of_equals(_evaluated(chosen, group, keys), group, keys))
    kernel = None
    with _aggregate_faults(rows, group):
        plan = plan_of(rows, group, keys)
        if after_us is not None and not plan.every and plan.longest is not None:
            rows = rows.where(after(after_us - plan.longest))
        if supports(rows, plan):  # gives its rows in order
            kernel = kernel_rows(rows, plan, until_us=until_us, after_us=after_us)
            aggregated = kernel.rows()
        else:
            aggregated = group_rows(tiles_of(rows, plan), plan, until_us=until_us, after_us=after_us)
            aggregated = in_order(aggregated, keys) if group.every else aggregated
    evaluated = _evaluated(aggregated, group, keys)
    as_made = len(group.aggregates) == len(group.features) and evaluated.dtypes == aggregated.dtypes
    return Features(evaluated, kernel if as_made else None)


def reach(rows: DataFrame, group: FeatureGroup, entity: Entity, changed_us: int) -> int | None:
    """The oldest kept row that counts when rows from a time on are made again; None when any may."""
    if not group.aggregates:
        return changed_us
    with _aggregate_faults(rows, group):
        return plan_of(rows, group, list(entity.keys)).reach(changed_us)


def changed_rows(
    rows: DataFrame,
    kept: DataFrame,
    group: FeatureGroup,
    entity: Entity,
    *,
    complete_us: int,
    until_us: int,
    oldest_us: int,
    late: bool,
) -> tuple[DataFrame, list[str]]:
    """What new rows of the source add to a table or change in it, and the columns that name a row of the table.

    `kept` is the table, complete to `complete_us`; the oldest new row that it must be changed for is of `oldest_us`.
    """
    keys = list(entity.keys)
    if not group.aggregates:
        new, clocks = _evaluated(rows, group, keys), [*keys, EVENT_TIME, CREATED_TIME]
        if late:  # a row with the clocks of a kept one takes its place when its values are the greater
            same = [F.col(f"k.{name}").eqNullSafe(F.col(f"n.{name}")) for name in clocks]
            met = kept.select(*new.columns).alias("k").join(new.select(*clocks).alias("n"), same, "left_semi")
            new = new.unionByName(met)
        return _one_of_equals(new, group, keys), clocks
    span = {"complete_us": complete_us, "until_us": until_us, "oldest_us": oldest_us}
    with _aggregate_faults(rows, group):
        plan = plan_of(rows, group, keys)
        changed = advanced_rows(kept, tiles_of(rows, plan), plan, **span, late=late)
    # a sum of decimals widens with every merge; the table's type stays
    kinds = {field.name: field.dataType for field in kept.schema.fields if field.name.startswith(HIDDEN)}
    changed = changed.select(
        *(
            F.col(f"`{name}`").cast(kinds[name]).alias(name) if name in kinds else F.col(f"`{name}`")
            for name in changed.columns
        )
    )
    changed = in_order(changed, keys) if group.every else changed
    return _evaluated(changed, group, keys), [*keys, EVENT_TIME]


def without_past(rows: DataFrame, null_until: Mapping[str, int] | None) -> DataFrame:
    """The rows with each of these features null up to a time: it was added later, and not backfilled."""
    if not null_until:
        return rows
    later = {name: F.unix_micros(EVENT_TIME) > until for name, until in null_until.items() if name in rows.columns}
    return rows.select(
        *(
            F.when(later[name], F.col(name)).alias(name) if name in later else F.col(f"`{name}`")
            for name in rows.columns
        )
    )


def table_rows(rows: DataFrame, group: FeatureGroup) -> DataFrame:
    """Checked rows as the table keeps them, in order.

    Where rules may put a row in quarantine, it stays, hidden: its tile counts in later windows, and a row that comes
    with equal clocks is held against it.
    """
    if not any(rule.severity == "quarantine" for rule in group.rules):
        rows = rows.where(F.col(REJECTED).isNull()).drop(REJECTED)
    if group.every and not any(isinstance(rule, Unique) for rule in group.rules):  # which gathers rows by their values
        return rows
    return in_order(rows, rows.columns[: rows.columns.index(EVENT_TIME)])


# expressions


def _evaluated(rows: DataFrame, group: FeatureGroup, keys: Sequence[str]) -> DataFrame:
    """Every feature as the type it declares. A column of the rows wins over a feature of the same name."""
    features = _in_need_order(group)
    clocks = [*keys, EVENT_TIME, CREATED_TIME]
    kept = [name for name in rows.columns if name.startswith(HIDDEN)] if group.aggregates else []
    try:
        natural = rows.selectExpr(*all_quoted(clocks), *map(_natural, features)).schema
        for feature in features:
            _check_type(group, feature, natural[feature.name].dataType.simpleString())
        evaluated = rows.selectExpr(*all_quoted(clocks), *map(_cast, features), *all_quoted(kept))
        evaluated = evaluated.select(*clocks, *(feature.name for feature in group.features), *kept)
        _ = evaluated.schema  # Spark Connect resolves names when they are asked for
    except AnalysisException as error:
        raise _first_fault(rows, group, features, clocks, error) from error
    return evaluated


def _natural(feature: Feature) -> str:
    """The feature as the type that Spark finds. Brackets keep what is left open from reading on into our text, and a
    line of their own ends a comment behind it."""
    return f"({_text(feature)}\n) AS `{feature.name}`"


def _cast(feature: Feature) -> str:
    return f"CAST(({_text(feature)}\n) AS {data_types.parse(feature.type).spark}) AS `{feature.name}`"


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
    rows: DataFrame, group: FeatureGroup, features: Sequence[Feature], clocks: Sequence[str], error: AnalysisException
) -> DataError:
    """The first feature that Spark cannot evaluate, found one by one only after all together failed."""
    for count in range(1, len(features) + 1):
        some = features[:count]
        try:
            for texts in (map(_natural, some), map(_cast, some)):
                _ = rows.selectExpr(*all_quoted(clocks), *texts).schema
        except AnalysisException as fault:
            return _unresolved(group, some[-1], _text(some[-1]), fault)
    return _together(group, error)


def _unresolved(group: FeatureGroup, feature: Feature, text: str, error: AnalysisException) -> DataError:
    subject = f"Feature '{group.name}.{feature.name}'"
    problem = f"expression `{text.strip('`')}`: {reason(error)}"
    return DataError(subject, problem, hint=correction(error))


def _together(group: FeatureGroup, error: AnalysisException) -> DataError:
    """No feature fails by itself."""
    problem = f"its features cannot be evaluated: {reason(error)}"
    return DataError(f"FeatureGroup '{group.name}'", problem, hint=correction(error))


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


@contextmanager
def _aggregate_faults(rows: DataFrame, group: FeatureGroup) -> Iterator[None]:
    """The first aggregate that Spark cannot evaluate, found one by one only after all together failed."""
    try:
        yield
    except AnalysisException as error:
        raise _first_aggregate_fault(rows, group, error) from error


def _first_aggregate_fault(rows: DataFrame, group: FeatureGroup, error: AnalysisException) -> DataError:
    for feature in group.aggregates:
        assert isinstance(feature.expression, Aggregate)
        alone = replace(group, features=[feature])
        try:
            _ = tiles_of(rows, plan_of(rows, alone, [])).schema
        except AnalysisException as fault:
            text = feature.expression.column or feature.expression.where or ""
            return _unresolved(group, feature, " ".join(text.split()), fault)
    return _together(group, error)


def grid_end(newest_us: int, now_us: int, every: str) -> int:
    """The last grid point: the end of the newest row's cell, or of the last cell that is over, whichever is first."""
    length = durations.microseconds(every)
    return min(newest_us + -newest_us % length, now_us - now_us % length)
