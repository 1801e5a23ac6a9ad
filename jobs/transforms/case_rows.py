"""The cases of test files as DataFrames: the same functions as compute and training-set, over literal rows.

    a case's source rows -> prepared -> feature rows -> checked    -> outcomes (kind, row as JSON, reason, rules broken)
    spine + the groups' feature rows -> training rows              -> outcomes

Outcomes of all cases have one shape, so that their union is one job. A case's rows are one partition: nothing of a few
rows is worth a shuffle.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from connectors.sources import UNREADABLE
from feature_defs.case_checks import REASON, GroupRows, PlannedCase, TypedTable
from feature_defs.expressions import quoted
from feature_defs.model import EVENT_TIME, REJECTED, Definitions, FeatureGroup
from feature_defs.rules import TableRule
from jobs.transforms.as_of import training_rows
from jobs.transforms.expectations import broken, checked, rules_of, types_of
from jobs.transforms.features import feature_rows
from jobs.transforms.rows import all_quoted, prepared

FEATURES, SOURCE = "features", "source"
Clean = Callable[[DataFrame, FeatureGroup], tuple[DataFrame, FeatureGroup]]
_JSON = {
    "timestampFormat": "yyyy-MM-dd HH:mm:ss.SSSSSS",
    "timestampNTZFormat": "yyyy-MM-dd HH:mm:ss.SSSSSS",
    "dateFormat": "yyyy-MM-dd",
    "timeZone": "UTC",
    "ignoreNullFields": "false",
}


def literal_rows(spark: SparkSession, table: TypedTable) -> DataFrame:
    """A case's table as it is."""
    return _frame(spark, table.rows, table.types)


def source_rows(spark: SparkSession, part: GroupRows, definitions: Definitions) -> DataFrame:
    """The rows as a group sees them: as a reader would give them, then prepared. Columns left out are null."""
    table, source = part.rows, part.source
    types = {name: kind.spark for name, kind in table.types.items()}
    rows = [(*row, "unreadable" if i in table.unreadable else None) for i, row in enumerate(table.rows)]
    frame = _frame(spark, rows, {**types, UNREADABLE: "string"})
    if source.schema is not None:
        absent = [F.lit(None).cast(kind).alias(name) for name, kind in source.schema.items() if name not in types]
        frame = frame.select("*", *absent).select(*all_quoted(source.schema), UNREADABLE)
    transform: Any = part.group.transform
    return prepared(frame, source, definitions.entity_of(part.group), transform)


def _frame(spark: SparkSession, rows: Sequence[tuple[Any, ...]], types: Any) -> DataFrame:
    kinds = {name: getattr(kind, "spark", kind) for name, kind in types.items()}
    schema = ", ".join(f"{name} {kind}" for name, kind in zip(all_quoted(kinds), kinds.values(), strict=True))
    return spark.createDataFrame(list(rows), schema).coalesce(1)


def newest(rows: DataFrame, now_us: int) -> DataFrame:
    """One row: the newest time of the good rows that are not after now, what closes a grid."""
    time = F.unix_micros(EVENT_TIME)
    good = F.col(REJECTED).isNull() & (time <= F.lit(now_us))
    return rows.agg(F.max(F.when(good, time)).alias("newest"))


def group_outcomes(
    rows: DataFrame, case: PlannedCase, definitions: Definitions, clean: Clean, *, until_us: int
) -> DataFrame:
    """What the group's table and its quarantine would hold; a stop rule only counts, so that it can be expected."""
    group = case.parts[0].group
    rules = rules_of(group)
    features = _features(rows, case.parts[0], definitions, clean, until_us)
    marks = checked(features, [replace(rule, severity="warn") if rule.severity == "stop" else rule for rule in rules])
    types = types_of(marks)
    wanted = [*(case.expected.types if case.expected else ()), *(case.rejected.types if case.rejected else ())]
    counted = (
        F.array(*(F.lit(False) if isinstance(rule, TableRule) else broken(rule, types) for rule in rules))
        if rules
        else F.array().cast("array<boolean>")
    )
    if case.since_us is not None:
        marks = marks.where(F.unix_micros(EVENT_TIME) >= F.lit(case.since_us))
    kept = _outcome(FEATURES, marks, wanted, F.col(REJECTED), counted)
    none = F.array().cast("array<boolean>")
    return kept.unionByName(_outcome(SOURCE, rows.where(F.col(REJECTED).isNotNull()), wanted, F.col(REJECTED), none))


def service_outcomes(
    spark: SparkSession,
    case: PlannedCase,
    rows: Sequence[DataFrame],
    definitions: Definitions,
    until_us: Sequence[int],
    clean: Clean,
) -> DataFrame:
    """What the training set would hold."""
    assert case.plan is not None
    assert case.spine is not None
    assert case.expected is not None
    tables = []
    for part, prepared_rows, until in zip(case.parts, rows, until_us, strict=True):
        features = checked(_features(prepared_rows, part, definitions, clean, until), rules_of(part.group))
        tables.append(features.where(F.col(REJECTED).isNull()).drop(REJECTED))
    joined = training_rows(literal_rows(spark, case.spine), tables, case.plan)
    none = F.array().cast("array<boolean>")
    return _outcome(FEATURES, joined, list(case.expected.types), F.lit(None).cast("string"), none)


def _features(rows: DataFrame, part: GroupRows, definitions: Definitions, clean: Clean, until_us: int) -> DataFrame:
    good, group = clean(rows.where(F.col(REJECTED).isNull()).drop(REJECTED), part.group)
    return feature_rows(good, group, definitions.entity_of(part.group), until_us=until_us)


def _outcome(kind: str, rows: DataFrame, wanted: Sequence[str], reason: Column, rules: Column) -> DataFrame:
    types = {name.lower(): found for name, found in rows.dtypes}
    there = [name for name in dict.fromkeys(wanted) if name.lower() in types and name != REASON]
    cells = [
        (F.hex(quoted(name)) if types[name.lower()] == "binary" else F.col(quoted(name))).alias(name) for name in there
    ]
    row = F.to_json(F.struct(*cells), _JSON) if cells else F.lit("{}")
    return rows.select(F.lit(kind).alias("kind"), row.alias("row"), reason.alias("reason"), rules.alias("rules"))
