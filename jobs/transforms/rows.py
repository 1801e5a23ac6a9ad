"""Raw rows of a source -> rows with the two clocks, the bad ones marked with the reason.

source rows -> filter -> transform -> clocks -> marked
"""

from __future__ import annotations

import inspect
import re
import traceback
from collections.abc import Callable, Iterable, Sequence

from pyspark.cloudpickle import register_pickle_by_value
from pyspark.errors import AnalysisException, PySparkException
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import DataType, DateType, TimestampType

from connectors.sources import UNREADABLE
from connectors.spark_errors import line_of_definitions, worker_raised
from feature_defs import data_types
from feature_defs.errors import DataError, listed, near_miss
from feature_defs.expressions import quoted
from feature_defs.loading import package_of
from feature_defs.model import CREATED_TIME, EVENT_TIME, HIDDEN, REJECTED, Entity, Source

_DAY_US = 86_400_000_000
_OPEN_QUOTE = r'(^|,)"[^"]*+(?:""[^"]*+)*+$'  # of csv: its row may go on in the next line
_NO_GROUP_BY = "MISSING_GROUP_BY"
_CORRECTIONS = {
    _NO_GROUP_BY: 'it sees one row; an aggregate function reads many: write Aggregate("sum", "amount", window="30d")',
    "UNSUPPORTED_GENERATOR": "it gives one value a row; make more rows of one in a transform",
    "WINDOW_FUNCTION_WITHOUT_OVER_CLAUSE": "it sees one row: write an Aggregate, or a transform",
}
_SUGGESTION = re.compile(r"(?P<before> Did you mean one of the following\? )\[(?P<names>[^\]]*)\]\.?")


def prepared(
    rows: DataFrame, source: Source, entity: Entity, transform: Callable[[DataFrame], DataFrame] | None
) -> DataFrame:
    """All of the above: a source's raw rows as a group sees them, before its features."""
    return marked(clocked(transformed(filtered(rows, source), transform), source), entity)


def clocked(rows: DataFrame, source: Source) -> DataFrame:
    """All columns, with `event_time` and `created_time` as UTC timestamps."""
    for clock, column in ((EVENT_TIME, source.event_time), (CREATED_TIME, source.created_time)):
        if column is not None:
            _check_clock(rows, source, clock, column)
    if CREATED_TIME in rows.columns and CREATED_TIME not in (source.event_time, source.created_time):
        problem = f"has a column '{CREATED_TIME}' that created_time= does not name"
        hint = f'set created_time="{CREATED_TIME}", or rename the column in the source'
        raise DataError(f"Source '{source.name}'", problem, hint=hint)
    others = all_quoted(name for name in rows.columns if name not in (EVENT_TIME, CREATED_TIME))
    created = _clock(rows, source.created_time) if source.created_time else F.lit(None).cast("timestamp")
    return rows.select(*others, _clock(rows, source.event_time).alias(EVENT_TIME), created.alias(CREATED_TIME))


def _clock(rows: DataFrame, column: str) -> Column:
    return utc(F.col(f"`{column}`"), rows.schema[column].dataType)


def utc(time: Column, kind: DataType) -> Column:
    """A time as a timestamp, whatever the session's zone: a date is its midnight UTC, a naive time is UTC."""
    if isinstance(kind, TimestampType):
        return time
    if isinstance(kind, DateType):
        return F.timestamp_micros(F.unix_date(time).cast("bigint") * F.lit(_DAY_US))
    return F.concat(time.cast("string"), F.lit("Z")).cast("timestamp")  # a plain cast would take the session's zone


def after(microseconds: int) -> Column:
    """event_time later than a time, as a reader of files can use it to skip some: no function of the column."""
    return F.col(EVENT_TIME) > F.timestamp_micros(F.lit(microseconds))


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
    found = called(transform, rows)
    if UNREADABLE in found.columns:
        return found
    # the function chose its columns: rows that nobody could read go around it, to the quarantine
    readable = called(transform, rows.where(F.col(UNREADABLE).isNull()))
    good = readable.select("*", F.lit(None).cast("string").alias(UNREADABLE))
    bad = rows.where(F.col(UNREADABLE).isNotNull()).select(UNREADABLE)
    return good.unionByName(bad, allowMissingColumns=True)


def called(transform: Callable[..., DataFrame], *rows: DataFrame, **named: DataFrame) -> DataFrame:
    """What the function makes of the rows; what it raises is its author's to correct, at the line that is named."""
    subject = f"Transform '{getattr(transform, '__qualname__', transform)}'"
    if package := package_of(transform):  # which no task can import: what a UDF in it calls goes with the UDF
        register_pickle_by_value(package)
    try:
        found = transform(*rows, **named)
        _ = found.columns  # Spark Connect resolves names when they are asked for
    except Exception as error:
        file = inspect.getfile(transform)
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
        line = line_of_definitions(str(error)) or f"{file}:{lines[-1] if lines else 1}"
        said = reason(error) if isinstance(error, PySparkException) else str(error)
        raised = worker_raised(str(error)) or f"{type(error).__name__}: {said}"
        raise DataError(subject, f"raised {raised}", hint=f"correct {line}") from error
    return found


def marked(rows: DataFrame, entity: Entity) -> DataFrame:
    """A column with the reason why a row cannot be a feature row, null for a good one."""
    missing = [key for key in entity.keys if key not in rows.columns]
    if missing:
        problem = f"key '{missing[0]}' is not a column of the source's rows ({listed(_own(rows))})"
        hint = near_miss(missing[0], rows.columns) + "rename it in the source or in the entity"
        raise DataError(f"Entity '{entity.name}'", problem, hint=hint)
    return _keyed(rows, entity).select("*", _first_true(reasons(entity)).alias(REJECTED))


def reasons(entity: Entity) -> list[tuple[Column, str]]:
    """Why a row may be rejected; the first that is true is told."""
    return [
        (F.col(UNREADABLE).rlike(_OPEN_QUOTE), "row ends within quotes"),
        (F.col(UNREADABLE).isNotNull(), "row does not fit the schema"),
        *((F.col(key).isNull(), f"key {key} is null") for key in entity.keys),
        (F.col(EVENT_TIME).isNull(), f"{EVENT_TIME} is null"),
    ]


def _keyed(rows: DataFrame, entity: Entity) -> DataFrame:
    """The rows with each key as the type that the entity declares: what joins and the online store rely on."""
    types = {key: data_types.parse(text) for key, text in entity.keys.items()}
    for key, declared in types.items():
        found = rows.schema[key].dataType.simpleString()
        if not data_types.is_key_of(found, declared):
            problem = f"key '{key}' is {found} in the source's rows, declared {declared.spark}"
            hint = f'declare it as "{found}", or cast it in the source or the group\'s transform'
            raise DataError(f"Entity '{entity.name}'", problem, hint=hint)
    cast = {name: F.col(name).cast(kind.spark).alias(name) for name, kind in types.items()}
    return rows.select(*(cast.get(name, F.col(quoted(name))) for name in rows.columns))


def _first_true(texts: Sequence[tuple[Column, str]]) -> Column:
    return F.coalesce(*[F.when(condition, F.lit(text)) for condition, text in texts])


def _check_clock(rows: DataFrame, source: Source, clock: str, column: str) -> None:
    subject = f"Source '{source.name}'"
    if column not in rows.columns:
        hint = near_miss(column, rows.columns) + f"name the column with {clock}="
        raise DataError(subject, f"{clock} '{column}' is not a column ({listed(_own(rows))})", hint=hint)
    found = rows.schema[column].dataType.simpleString()
    if found not in ("timestamp", "timestamp_ntz", "date"):
        hint = "make it a timestamp in the source, or in the group's transform"
        raise DataError(subject, f"{clock} '{column}' is {found}, expected timestamp or date", hint=hint)
    if clock != column and clock in rows.columns and clock not in (source.event_time, source.created_time):
        problem = f"has a column '{clock}' besides '{column}', which is the {clock}"
        raise DataError(subject, problem, hint=f"rename '{clock}' in the source, or name it with {clock}=")


def all_quoted(names: Iterable[str]) -> list[str]:
    return [quoted(name) for name in names]


def _own(rows: DataFrame) -> list[str]:
    """The columns that a user knows of."""
    return [name for name in rows.columns if name != UNREADABLE]


# what Spark says


def reason(error: PySparkException) -> str:
    """Spark's own words on what is wrong, without its plan dump and the columns that are ours."""
    said = str(error).split("; line ")[0].split(" SQLSTATE")[0].strip().splitlines()[0]
    if error.getCondition() == _NO_GROUP_BY:  # it goes on with advice that fits a query
        said = said.partition(" Add GROUP BY")[0]
    return _SUGGESTION.sub(_without_own, said)


def correction(error: PySparkException) -> str:
    """The hint that goes with `reason`."""
    condition = (error.getCondition() or "").partition(".")[0]
    return _CORRECTIONS.get(condition, "correct it")


def _without_own(found: re.Match[str]) -> str:
    names = [name for name in found["names"].split(", ") if HIDDEN not in name]
    return f"{found['before']}[{', '.join(names)}]." if names else ""
