"""The rows of any source: files and Delta tables, a database's table, another group's table, or made from several.

    source -> its inputs' rows, each as declared and filtered -> SQL or function -> held against the declared schema

Rows of an input that nobody could read go around the SQL or the function, to the quarantine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any, cast

from pyspark.errors import AnalysisException, ParseException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from connectors.databases import Database, Parallel, read_table
from connectors.registry import Snapshot
from connectors.source_changes import Added, State
from connectors.sources import UNREADABLE, SourceRows, declared_rows, read_source, source_state
from connectors.spark_errors import data_errors
from feature_defs.checks import subject_of
from feature_defs.errors import DataError, UsageError, listed, near_miss
from feature_defs.fingerprint import transform_digest
from feature_defs.inputs import PLACEHOLDER, TABLE_PATH, made_from
from feature_defs.model import GROUP_FORMAT, Definitions, FeatureGroup, Source
from jobs.named_secrets import secret
from jobs.place import Place
from jobs.transforms.rows import called, filtered, reason


def state_of(place: Place, snapshot: Snapshot, source: Source) -> State:
    """What the source holds now, as far as can be told without reading it."""
    made = source.format == GROUP_FORMAT
    return source_state(
        source, place.lakes, table=place.table(snapshot.definitions.groups[source.name]) if made else None
    )


def source_rows(
    place: Place, snapshot: Snapshot, source: Source, *, state: State | None = None, added: Added | None = None
) -> SourceRows:
    """The source's rows with the declared columns first to last; DataError when they are not what was declared.

    Of files and Delta tables those that were there in a `state`, or only those of `added` files.
    """
    if source.format == GROUP_FORMAT:
        table, version = place.computed(snapshot, snapshot.definitions.groups[source.name])
        rows = table.read(version)
        if added is not None:  # none: a table that changed is read in full
            return declared_rows(source, rows.where(F.lit(False)), table.uri, empty=False)
        return declared_rows(source, rows, table.uri, empty=rows.isEmpty())
    if source.inputs:
        return _made(place, snapshot, source)
    if source.format == "jdbc":
        return read_table(place.spark, source, database_of(place, source))
    return read_source(place.spark, source, place.lakes, state=state, added=added)


def refuse_after_failure(group: FeatureGroup, definitions: Definitions, failed: Sequence[str]) -> None:
    """DataError when a group that this one is made from failed in the same run: its table is not what it should be."""
    lost = [name for name in made_from(group, definitions) if name in failed]
    if lost:
        problem = f"is made from {', '.join(lost)}, which failed in this run"
        hint = "correct that first, then compute both; the offline table is as it was"
        raise DataError(f"FeatureGroup '{group.name}'", problem, hint=hint)


def database_of(place: Place, source: Source) -> Database:
    """The database that the source's path names, with its secret."""
    path = TABLE_PATH.fullmatch(source.path)
    assert path is not None  # as checked
    name, databases = path["database"], place.settings.databases
    if name not in databases:
        problem = f"database '{name}' is not in the profile ({listed(databases)})"
        hint = near_miss(name, databases) + f'add it: [databases.{name}] url = "jdbc:..."'
        raise UsageError(f"Source '{source.name}'", problem, hint=hint)
    found = databases[name]
    return Database(
        name=name,
        url=found.url,
        driver=found.driver,
        user=found.user,
        password=secret(found.password) if found.password else "",
        fetch_size=found.fetch_size,
        parallel={table: Parallel(**vars(parts)) for table, parts in found.parallel.items()},
    )


# made from inputs


def _made(place: Place, snapshot: Snapshot, source: Source) -> SourceRows:
    definitions = snapshot.definitions
    read: dict[str, DataFrame] = {}
    extra: list[str] = []
    for name in source.input_names:
        part = definitions.source_named(name)
        found = source_rows(place, snapshot, part)
        read[name] = filtered(found.rows, part)
        extra += [f"{name}.{column}" for column in found.extra_columns]
    subject = f"Source '{source.name}'"
    readable = {name: rows.where(F.col(UNREADABLE).isNull()).drop(UNREADABLE) for name, rows in read.items()}
    if source.sql is not None:
        made = queried(place.spark, source, readable)
    else:
        made = called(applied_function(place, source), **readable)
    _refuse_repeated(subject, made)
    with data_errors(subject):
        told = declared_rows(source, made, f"made from {', '.join(read)}", empty=made.isEmpty())
    unreadable = [rows.where(F.col(UNREADABLE).isNotNull()).select(UNREADABLE) for rows in read.values()]
    rows = reduce(lambda one, other: one.unionByName(other, allowMissingColumns=True), unreadable, told.rows)
    return SourceRows(rows, (*extra, *told.extra_columns))


def queried(spark: SparkSession, source: Source, inputs: Mapping[str, DataFrame]) -> DataFrame:
    """The source's SQL over DataFrames. It names them itself, so that nothing is left behind in the catalog."""
    names = {name: f"input_{number}" for number, name in enumerate(inputs)}
    # other braces, as in a regular expression, are the user's own
    parts = PLACEHOLDER.split(source.sql or "")
    text = "".join(
        f"{{{names[part]}}}" if number % 2 else part.replace("{", "{{").replace("}", "}}")
        for number, part in enumerate(parts)
    )
    try:
        # in a subquery only a query can stand: nothing that writes
        query = f"SELECT * FROM (\n{text}\n)"  # noqa: S608  # SQL is what a definition is made of
        found = spark.sql(query, **cast("dict[str, Any]", {names[name]: rows for name, rows in inputs.items()}))
        _ = found.columns  # Spark Connect resolves names when they are asked for
    except (AnalysisException, ParseException) as error:
        hint = f"correct sql=; its inputs: {'; '.join(f'{name} ({listed(inputs[name].columns)})' for name in inputs)}"
        raise DataError(f"Source '{source.name}'", f"sql: {reason(error)}", hint=hint) from error
    return found


def applied_function(place: Place, made: FeatureGroup | Source) -> Callable[..., Any]:
    """The transform of a group or a source from its file, only if that still says what was applied."""
    definitions = place.written()
    is_group = isinstance(made, FeatureGroup)
    written = definitions.groups.get(made.name) if is_group else definitions.sources.get(made.name)
    if written is None or transform_digest(written.transform) != transform_digest(made.transform):
        problem = "its transform in the definition files is not the one that was applied"
        raise DataError(subject_of(made), problem, hint="run `tidemark plan`, then `tidemark apply`")
    return cast("Callable[..., Any]", written.transform)  # from a file it is a function, no reference


def _refuse_repeated(subject: str, made: DataFrame) -> None:
    names = [name.lower() for name in made.columns]
    repeated = next((name for name in made.columns if names.count(name.lower()) > 1), None)
    if repeated is not None:
        hint = "join with `using (key)`, or name the columns one by one"
        raise DataError(subject, f"gives column '{repeated}' twice ({listed(made.columns)})", hint=hint)
