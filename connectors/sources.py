"""A Source -> a DataFrame of its raw rows, held against the schema it declares.

Nothing is inferred: csv and json are read with the declared schema, and a row that does not fit it is marked in the
column `UNREADABLE` for the quarantine. Columns that the schema does not name are dropped and, but for json, whose rows
each have their own, reported.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from pyspark.errors import AnalysisException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StringType, StructType

from connectors.file_store import FileStore, data_files, open_file_store
from connectors.lakes import PATTERN, Lakes, joined
from connectors.offline_tables import OfflineTable
from connectors.source_changes import Added, State
from connectors.spark_errors import data_errors
from feature_defs import data_types
from feature_defs.errors import DataError, LakeError, listed, near_miss
from feature_defs.model import GROUP_FORMAT, Source

UNREADABLE = "_tidemark_unreadable"
CSV = {"header": "true", "escape": '"', "columnNameOfCorruptRecord": UNREADABLE}  # a quote in quotes stands twice
# A line break within quotes is text. Then one task reads a file, however large, and a quote that is never closed takes
# all rows behind it along: a source has to ask for it.
CSV_MULTI_LINE = {**CSV, "multiLine": "true"}
_READ_OPTIONS = {
    # enforceSchema=false makes Spark compare a csv file's header with the schema instead of trusting its order
    "csv": {**CSV, "enforceSchema": "false", "timeZone": "UTC"},
    "json": {"columnNameOfCorruptRecord": UNREADABLE, "timeZone": "UTC"},
}
_NOTHING_THERE = ("PATH_NOT_FOUND", "UNABLE_TO_INFER_SCHEMA", "DELTA_PATH_DOES_NOT_EXIST", "DELTA_TABLE_NOT_FOUND")


@dataclass(frozen=True)
class SourceRows:
    """The raw rows, and the columns found that the schema does not name."""

    rows: DataFrame
    extra_columns: tuple[str, ...]


def read_source(
    spark: SparkSession, source: Source, lakes: Lakes, *, state: State | None = None, added: Added | None = None
) -> SourceRows:
    """The source's rows with the declared columns first to last; DataError when they are not what was declared.

    `state` reads the source as it was then, so that a run sees one source however long it takes; `added` only its
    files, of which there may be none.
    """
    subject = f"Source '{source.name}'"
    uri = lakes.uri(source.path)
    try:
        with data_errors(subject):
            found = _loaded(spark, source, uri, state or {})
            empty = added is None and found.isEmpty()
            found = found if added is None else added.rows(found)
    except AnalysisException as error:
        raise _unreadable(subject, uri, source, error) from error
    return declared_rows(source, found, uri, empty=empty)


def declared_rows(source: Source, found: DataFrame, where: str, *, empty: bool) -> SourceRows:
    """What was found as the source declares it; DataError when it is empty or something else."""
    subject = f"{'FeatureGroup' if source.format == GROUP_FORMAT else 'Source'} '{source.name}'"
    if empty:
        hint = "check the path and that the step before has written; nothing was changed"
        raise DataError(subject, f"holds no rows: {where}", hint=hint)
    unreadable = F.col(UNREADABLE) if UNREADABLE in found.columns else F.lit(None).cast("string")
    if source.schema is None:
        return SourceRows(found.select(*_others(found), unreadable.alias(UNREADABLE)), ())
    _check_schema(subject, source, found.schema)
    extra = tuple(name for name in found.columns if name not in (*source.schema, UNREADABLE))
    columns = [F.col(f"`{name}`") for name in source.schema]
    if source.format in _READ_OPTIONS:
        unreadable = _whole_row_checked(columns)
    return SourceRows(found.select(*columns, unreadable.alias(UNREADABLE)), extra)


def _others(rows: DataFrame) -> list[Column]:
    return [F.col(f"`{name}`") for name in rows.columns if name != UNREADABLE]


def _loaded(spark: SparkSession, source: Source, uri: str, state: State) -> DataFrame:
    reader = spark.read.format(source.format).options(**_READ_OPTIONS.get(source.format, {}))
    if state.get("kind") == "delta":
        reader = reader.option("versionAsOf", state["version"])
    if source.format == "csv":
        dialect = CSV_MULTI_LINE if source.multi_line else CSV
        header = spark.read.options(**dialect).csv(uri).columns
        reader = reader.options(**dialect)
        reader = reader.schema(_csv_schema(source, header).add(UNREADABLE, StringType()))
    elif source.format == "json":
        reader = reader.schema(_struct(source.schema or {}).add(UNREADABLE, StringType()))
    names = list(state["files"]) if state.get("kind") == "files" else []
    if (len(names) == 1 and uri.endswith(f"/{names[0]}")) or any(map(PATTERN.search, names)):
        names = []  # the path is the file; or Spark would take names for patterns
    return reader.option("basePath", uri).load([joined(uri, name) for name in names]) if names else reader.load(uri)


def _csv_schema(source: Source, header: Sequence[str]) -> StructType:
    """The file's columns in its order: a declared one has its type, any other is text."""
    declared = {name.lower(): (name, kind) for name, kind in (source.schema or {}).items()}
    return _struct(dict(declared.get(name.lower(), (name, "string")) for name in header))


def _struct(columns: Mapping[str, str]) -> StructType:
    text = ", ".join(f"`{name}` {data_types.parse(kind).spark}" for name, kind in columns.items())
    return cast("StructType", StructType.fromDDL(text))  # a list of columns is always a struct


def _whole_row_checked(columns: Sequence[Column]) -> Column:
    """UNREADABLE, made to need every column: Spark marks a row only for columns that the query reads, so a row would be
    good in a query of its keys and bad in one of its amounts."""
    of_every_column = F.substring(F.to_json(F.struct(*columns)), 0, 0)
    return F.when(F.col(UNREADABLE).isNotNull(), F.concat(F.col(UNREADABLE), of_every_column))


def _check_schema(subject: str, source: Source, found: StructType) -> None:
    types = {field.name: field.dataType.simpleString() for field in found.fields}
    wrong = []
    for name, text in (source.schema or {}).items():
        expected = data_types.parse(text).spark
        if name not in types:
            wrong.append(f"column '{name}' is missing ({near_miss(name, types) or 'found: '}{listed(types)})")
        elif types[name].replace("timestamp_ntz", "timestamp") != expected.replace("timestamp_ntz", "timestamp"):
            wrong.append(f"column '{name}' is {types[name]}, declared {expected}")
    if wrong:
        hint = "the source changed: correct its schema in the definition, or the source; nothing was written"
        raise DataError(subject, "; ".join(wrong), hint=hint)


def _unreadable(subject: str, uri: str, source: Source, error: AnalysisException) -> DataError:
    if (error.getCondition() or "").split(".")[0] in _NOTHING_THERE:
        hint = "check the path, the profile's [lakes], and that the step before has written"
        return DataError(subject, f"there is no {source.format} data at {uri} (path '{source.path}')", hint=hint)
    first_line = str(error).splitlines()[0]
    return DataError(subject, f"cannot be read as {source.format}: {first_line}", hint="check format= and schema=")


# what a source holds now, as far as its files say it


def source_state(source: Source, lakes: Lakes, *, table: OfflineTable | None = None) -> dict[str, Any]:
    """What a source holds now, as plain JSON data and without a Spark job: equal states mean equal rows.

    `table` is the offline table of a source that is a feature group. `kind` is delta, files, group or, when nothing
    short of reading the rows would tell, unknown; two unknown states say nothing about each other.
    """
    if table is not None:
        version = table.version()
        run = table.note(version).get("run") if version is not None else None
        return {"kind": "group", "table_version": version, "run": run}
    if source.inputs or source.format not in ("delta", "parquet", "csv", "json"):
        return {"kind": "unknown"}
    uri = lakes.uri(source.path)
    try:
        files = open_file_store(uri)
    except LakeError:  # a scheme that only Spark can read
        return {"kind": "unknown"}
    if source.format == "delta":
        return _delta_state(files, uri)
    matches_several = re.search(r"[*?\[{]", source.path)  # less than PATTERN: a `]` alone names one path
    return {"kind": "unknown"} if matches_several else _files_state(files, uri)


def _delta_state(files: FileStore, uri: str) -> dict[str, Any]:
    """The newest version, and the id that tells this table from one that was made anew at its path."""
    log = joined(uri, "_delta_log")
    names = {file.path for file in files.list_files(log)}
    commits = sorted((name for name in names if re.fullmatch(r"\d{20}\.json", name)), reverse=True)
    if not commits:
        return {"kind": "unknown"}
    newest = commits[0].removesuffix(".json")
    table_id = _id_in_checksum(files, log, newest, names) or _id_in_log(files, log, commits, names)
    return {"kind": "delta", "version": int(newest), "id": table_id} if table_id else {"kind": "unknown"}


def _id_in_checksum(files: FileStore, log: str, version: str, names: set[str]) -> str | None:
    """Delta writes a small checksum file beside most commits, with the whole metadata in it."""
    if f"{version}.crc" not in names:
        return None
    try:
        return cast("str | None", json.loads(files.read(joined(log, f"{version}.crc")))["metadata"]["id"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _id_in_log(files: FileStore, log: str, commits: Sequence[str], names: set[str]) -> str | None:
    """From the newest commit down: the first that changed the metadata, or the first checkpoint, which holds it too."""
    for commit in commits:
        for line in files.read(joined(log, commit)).splitlines():
            if b'"metaData"' in line and (metadata := json.loads(line).get("metaData")):
                return cast("str", metadata["id"])
        checkpoint = commit.replace(".json", ".checkpoint.parquet")
        if checkpoint in names:
            return _id_in_checkpoint(files.read(joined(log, checkpoint)))
    return None


def _id_in_checkpoint(content: bytes) -> str | None:
    from pyarrow import parquet

    ids = parquet.ParquetFile(io.BytesIO(content)).read(columns=["metaData.id"])["metaData"].to_pylist()
    return next((row["id"] for row in ids if row and row["id"]), None)


def _files_state(files: FileStore, uri: str) -> dict[str, Any]:
    """Size and time of every data file below the path, or of the one file that it names."""
    found = data_files(files, uri).values()
    return {"kind": "files", "files": {file.path: [file.size, file.modified_us] for file in found}}
