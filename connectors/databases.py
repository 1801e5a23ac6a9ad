"""A table of a JDBC database -> its rows, typed, whatever the driver and the zone of the JVM.

    path jdbc://NAME/schema.table + Database -> the table's own types -> read -> converted -> declared columns

Times without a zone and dates are read as the text that the driver gives, then parsed as UTC: a driver makes a
`java.sql.Timestamp` of them, which is a time of the JVM's zone, and an hour of each spring does not exist there. A
text that is no time, as SQLite may hold, makes its row unreadable, for the quarantine.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from connectors.sources import UNREADABLE, SourceRows, declared_rows
from connectors.spark_errors import data_errors
from feature_defs import data_types
from feature_defs.errors import DataError, LakeError, MissingPartError, TidemarkError, UsageError, listed, near_miss
from feature_defs.inputs import TABLE_PATH
from feature_defs.model import Source

# Named to Spark always: a driver on `spark.jars` does not register itself where Spark asks for it by URL.
DRIVERS = {
    "db2": "com.ibm.db2.jcc.DB2Driver",
    "derby": "org.apache.derby.iapi.jdbc.AutoloadedDriver",
    "h2": "org.h2.Driver",
    "mariadb": "org.mariadb.jdbc.Driver",
    "mysql": "com.mysql.cj.jdbc.Driver",
    "oracle": "oracle.jdbc.OracleDriver",
    "postgresql": "org.postgresql.Driver",
    "snowflake": "net.snowflake.client.jdbc.SnowflakeDriver",
    "sqlite": "org.sqlite.JDBC",
    "sqlserver": "com.microsoft.sqlserver.jdbc.SQLServerDriver",
}
_WHOLE = ("tinyint", "smallint", "int", "bigint", "decimal(20,0)")
_NO_DRIVER = ("No suitable driver", "ClassNotFoundException", "DATA_SOURCE_NOT_FOUND")
_NO_CONNECTION = ("FAILED_JDBC.CONNECTION", "Failed to connect", "Connection refused")
_SQL_FAULT = re.compile(r"(?:SQL|Jdbc)\w*(?:Exception|Error): (?P<said>[^\n]+)|(?P<error>ERROR: [^\n]+)")


@dataclass(frozen=True)
class Parallel:
    """A table read in `partitions` parts by a column of whole numbers; the bounds only say how to cut."""

    column: str
    lower: int
    upper: int
    partitions: int


@dataclass(frozen=True)
class Database:
    """Where a database is and how it is read, with its secret: not for printing."""

    name: str
    url: str = field(repr=False)
    driver: str = ""
    user: str = ""
    password: str = field(default="", repr=False)
    fetch_size: int = 0
    parallel: Mapping[str, Parallel] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        return self.url.split(":")[1]

    @property
    def driver_class(self) -> str:
        return self.driver or DRIVERS.get(self.kind, "")


def read_table(spark: SparkSession, source: Source, database: Database) -> SourceRows:
    """The table's rows with the declared columns first to last; DataError when they are not what was declared."""
    path = TABLE_PATH.fullmatch(source.path)
    assert path is not None  # as checked
    table = path["table"]
    options = _options(database, table)
    with _told(source, database, table):
        natural = spark.read.format("jdbc").options(**options).load().schema
    options |= _partitioned(database, table, natural)
    if read_as := _read_as(database, natural):
        options["customSchema"] = ", ".join(f"`{name}` {kind}" for name, kind in read_as.items())
    with _told(source, database, table):
        found = _typed(spark.read.format("jdbc").options(**options).load(), source, natural, read_as)
        empty = found.isEmpty()
    return declared_rows(source, found, f"table '{table}' of database '{database.name}'", empty=empty)


def _options(database: Database, table: str) -> dict[str, str]:
    if not database.driver_class:
        hint = near_miss(database.kind, DRIVERS) + f'name its class: [databases.{database.name}] driver = "..."'
        problem = f"the driver of 'jdbc:{database.kind}:' is not known ({listed(DRIVERS)})"
        raise UsageError(f"Database '{database.name}'", problem, hint=hint)
    options = {
        "url": database.url,
        "dbtable": table,
        "driver": database.driver_class,
        "user": database.user,
        "password": database.password,
        "fetchsize": str(database.fetch_size) if database.fetch_size else "",
        "preferTimestampNTZ": "true",
    }
    return {name: value for name, value in options.items() if value}


def _partitioned(database: Database, table: str, natural: StructType) -> dict[str, str]:
    parallel = database.parallel.get(table)
    if parallel is None:
        return {}
    types = {item.name.lower(): item.dataType.simpleString() for item in natural.fields}
    found = types.get(parallel.column.lower())
    if found is None or not (found in _WHOLE or found.startswith("decimal")):
        problem = f"parallel.{table}.column '{parallel.column}' is {found or 'not a column'}, expected a whole number"
        hint = near_miss(parallel.column, types) + "name a column of whole numbers, best one with an index"
        raise UsageError(f"Database '{database.name}'", problem, hint=hint)
    return {
        "partitionColumn": parallel.column,
        "lowerBound": str(parallel.lower),
        "upperBound": str(parallel.upper),
        "numPartitions": str(parallel.partitions),
    }


def _read_as(database: Database, natural: StructType) -> dict[str, str]:
    """Columns that are asked for as another type than Spark would, and then converted."""
    found = {}
    for item in natural.fields:
        kind = item.dataType.simpleString()
        if kind in ("timestamp_ntz", "date"):
            found[item.name] = "string"
        elif database.kind == "sqlite" and kind in _WHOLE:  # its integers have 64 bits whatever they are called
            found[item.name] = "bigint"
    return found


def _typed(rows: DataFrame, source: Source, natural: StructType, read_as: Mapping[str, str]) -> DataFrame:
    """The columns as the source spells them, converted; a row that does not convert is marked."""
    declared = {name.lower(): (name, data_types.parse(kind).spark) for name, kind in (source.schema or {}).items()}
    columns, failed = [], []
    for item in natural.fields:
        raw = F.col(f"`{item.name}`")
        name, wanted = declared.get(item.name.lower(), (item.name, ""))
        kind = item.dataType.simpleString()
        value = raw
        if kind == "timestamp_ntz":
            value = _utc(raw)
        elif kind == "date":
            value = F.when(_is_dated(raw), raw.try_cast("date"))
        elif item.name in read_as and wanted in _WHOLE:
            value = raw.try_cast(wanted)
        if value is not raw:
            failed.append(raw.isNotNull() & value.isNull())
        columns.append(value.alias(name))
    if not failed:
        return rows.select(*columns)
    any_failed = failed[0]
    for condition in failed[1:]:
        any_failed = any_failed | condition
    row = F.to_json(F.struct(*(F.col(f"`{name}`") for name in rows.columns)))
    return rows.select(*columns, F.when(any_failed, row).alias(UNREADABLE))


def _is_dated(text: Column) -> Column:
    return text.rlike(r"^\d{4}-\d\d-\d\d")  # a time alone would be one of today


def _utc(text: Column) -> Column:
    """A time as a driver writes it, UTC unless it says otherwise; a date is its midnight."""
    has_zone = text.rlike(r"(Z|[+-]\d\d(:?\d\d)?)$")
    midnight = F.concat(text, F.lit(" 00:00:00Z")).try_cast("timestamp")
    read = F.coalesce(
        F.concat(text, F.lit("Z")).try_cast("timestamp"), midnight, F.when(has_zone, text.try_cast("timestamp"))
    )
    return F.when(_is_dated(text), read)


@contextmanager
def _told(source: Source, database: Database, table: str) -> Iterator[None]:
    """What a database or its driver says, as one line without the URL and without the password."""
    with data_errors(f"Source '{source.name}'"):
        try:
            yield
        except Exception as error:
            raise _explained(str(error), source, database, table) or error from error


def _explained(text: str, source: Source, database: Database, table: str) -> TidemarkError | None:
    name = f"Database '{database.name}'"
    if any(sign in text for sign in _NO_DRIVER):
        problem = f"its driver {database.driver_class} is not on Spark's classpath"
        hint = (
            f'name its jar, [databases.{database.name}] jars = "GROUP:ARTIFACT:VERSION", and start a new session; '
            "under spark-submit use --packages, on a cluster install it there"
        )
        return MissingPartError(name, problem, hint=hint)
    if any(sign in text for sign in _NO_CONNECTION):
        problem = f"does not answer, or refuses {database.user or 'a login without a user'}"
        hint = "check that it runs, that this machine may reach it, and the profile's url, user and password"
        return LakeError(name, problem, hint=hint)
    fault = _SQL_FAULT.search(text)
    if fault is None or "Job aborted" in text:  # the words of a task may hold a row's values
        return None
    problem = f"table '{table}' of database '{database.name}' cannot be read: {_said(fault, database)}"
    return DataError(f"Source '{source.name}'", problem, hint="check the table's name and that the user may read it")


def _said(fault: re.Match[str], database: Database) -> str:
    said = (fault["said"] or fault["error"]).split(" SQLSTATE")[0].split("; SQL statement:")[0].strip()
    return said.replace(database.password, "***") if database.password else said
