"""Raw rows of a source -> rows with the two clocks, the bad ones marked with the reason.

source rows -> filter -> transform -> clocks -> marked
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pyspark.errors import AnalysisException
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from connectors.sources import UNREADABLE
from feature_defs.errors import DataError, listed, near_miss
from feature_defs.model import CREATED_TIME, EVENT_TIME, Entity, Source

REJECTED = "_rejected"


def clocked(rows: DataFrame, source: Source) -> DataFrame:
    """All columns, with `event_time` and `created_time` as UTC timestamps."""
    for clock, column in ((EVENT_TIME, source.event_time), (CREATED_TIME, source.created_time)):
        if column is not None:
            _check_clock(rows, source, clock, column)
    created = F.col(source.created_time) if source.created_time else F.lit(None)
    others = [name for name in rows.columns if name not in (EVENT_TIME, CREATED_TIME)]
    return rows.select(
        *others,
        F.col(source.event_time).cast("timestamp").alias(EVENT_TIME),
        created.cast("timestamp").alias(CREATED_TIME),
    )


def filtered(rows: DataFrame, source: Source) -> DataFrame:
    """The rows that the source's filter keeps; an unreadable row is kept, for the quarantine."""
    if source.filter is None:
        return rows
    try:
        return rows.where(F.expr(source.filter) | F.col(UNREADABLE).isNotNull())
    except AnalysisException as error:
        raise DataError(f"Source '{source.name}'", f"filter: {reason(error)}", hint="correct filter=") from error


def transformed(rows: DataFrame, transform: Callable[[DataFrame], DataFrame] | None) -> DataFrame:
    """The group's own DataFrame -> DataFrame function, if it has one."""
    if transform is None:
        return rows
    found = transform(rows)
    if UNREADABLE in found.columns:
        return found
    return found.select("*", F.lit(None).cast("string").alias(UNREADABLE))


def marked(rows: DataFrame, entity: Entity) -> DataFrame:
    """A column with the reason why a row cannot be a feature row, null for a good one."""
    missing = [key for key in entity.keys if key not in rows.columns]
    if missing:
        problem = f"key '{missing[0]}' is not a column of the source's rows ({listed(rows.columns)})"
        hint = near_miss(missing[0], rows.columns) + "rename it in the source or in the entity"
        raise DataError(f"Entity '{entity.name}'", problem, hint=hint)
    reasons: list[tuple[Column, str]] = [(F.col(UNREADABLE).isNotNull(), "row does not fit the schema")]
    reasons += [(F.col(key).isNull(), f"key {key} is null") for key in entity.keys]
    reasons += [(F.col(EVENT_TIME).isNull(), f"{EVENT_TIME} is null")]
    return rows.select("*", _first_true(reasons).alias(REJECTED))


def _first_true(reasons: Sequence[tuple[Column, str]]) -> Column:
    return F.coalesce(*[F.when(condition, F.lit(text)) for condition, text in reasons])


def _check_clock(rows: DataFrame, source: Source, clock: str, column: str) -> None:
    subject = f"Source '{source.name}'"
    if column not in rows.columns:
        hint = near_miss(column, rows.columns) + f"name the column with {clock}="
        raise DataError(subject, f"{clock} '{column}' is not a column ({listed(rows.columns)})", hint=hint)
    found = rows.schema[column].dataType.simpleString()
    if found not in ("timestamp", "timestamp_ntz", "date"):
        hint = "make it a timestamp in the source, or in the group's transform"
        raise DataError(subject, f"{clock} '{column}' is {found}, expected timestamp or date", hint=hint)
    if clock != column and clock in rows.columns and clock not in (source.event_time, source.created_time):
        problem = f"has a column '{clock}' besides '{column}', which is the {clock}"
        raise DataError(subject, problem, hint=f"rename '{clock}' in the source, or name it with {clock}=")


def reason(error: AnalysisException) -> str:
    """Spark's own words on what is wrong, without its plan dump."""
    return str(error).split("; line ")[0].split(" SQLSTATE")[0].splitlines()[0]
