"""A dataset's files as Arrow batches, without Spark: one file at a time, through the lake's file store.

    Parquet, CSV   every data file below the folder
    Delta          the files of one version, from the newest checkpoint and the commits behind it
      -> batches of the dataset's own columns and types, in the order of the files' names

A folder `split=NAME` holds the rows of that part and gives them the column `split`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
from pyarrow import csv, parquet

from connectors.delta_log import delta_version
from connectors.file_store import FileStore, data_files
from connectors.lakes import joined
from feature_defs import data_types
from feature_defs.data_types import DataType
from feature_defs.errors import DataError, listed, near_miss
from feature_defs.splits import SPLIT

_USE_SPARK = "read it with Spark: .spark()"
_PART = re.compile(rf"(?:^|/){SPLIT}=([^/]+)/")
_CSV_BLOCK = 8 << 20  # a row must fit in one
_ARROW = {
    "boolean": pa.bool_(), "tinyint": pa.int8(), "smallint": pa.int16(), "int": pa.int32(), "bigint": pa.int64(),
    "float": pa.float32(), "double": pa.float64(), "date": pa.date32(), "timestamp": pa.timestamp("us", "UTC"),
    "timestamp_ntz": pa.timestamp("us"), "string": pa.string(), "binary": pa.binary(),
}  # fmt: skip


@dataclass(frozen=True)
class DataFile:
    """A file by its path from the dataset's folder, and the part that its rows are in."""

    path: str
    split: str | None


@dataclass(frozen=True)
class DatasetVersion:
    """What a Delta table's log says of one version: its files and the note of the run that wrote it."""

    version: int
    note: Mapping[str, Any]
    files: tuple[DataFile, ...]


@dataclass(frozen=True)
class DatasetFiles:
    """The files of a dataset with what it takes to read them; plain data, so that another process can."""

    store: FileStore
    path: str
    uri: str
    format: str
    types: Mapping[str, str]
    files: tuple[DataFile, ...]

    @property
    def schema(self) -> pa.Schema:
        return arrow_schema(self.path, self.types)

    def batches(self, rows: int, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """All rows in batches of `rows`, but for the last; of all columns or of these."""
        schema = self.schema
        if columns is not None:
            schema = pa.schema([schema.field(checked_column(self.path, name, self.types)) for name in columns])
        of_files = (batch for file in self.files for batch in self._of_file(file, schema, rows))
        return rebatched(of_files, rows)

    def _of_file(self, file: DataFile, schema: pa.Schema, rows: int) -> Iterator[pa.RecordBatch]:
        try:
            content = self.store.read(joined(self.uri, file.path))
        except FileNotFoundError as error:
            hint = "open it again: a run has replaced the dataset meanwhile"
            raise DataError(f"Dataset '{self.path}'", "one of its files is gone", hint=hint) from error
        found = _csv_batches if self.format == "csv" else _parquet_batches
        stored = [field for field in schema if file.split is None or field.name != SPLIT]
        for batch in found(content, stored, rows):
            yield _as_declared(batch, schema, file.split)


def arrow_schema(path: str, types: Mapping[str, str]) -> pa.Schema:
    """The dataset's columns in Arrow's types: times are UTC microseconds."""
    return pa.schema([_field(path, name, text) for name, text in types.items()])


def _field(path: str, name: str, text: str) -> pa.Field:
    try:
        return pa.field(name, _arrow_type(data_types.parse(text)))
    except (data_types.TypeFault, KeyError) as error:
        problem = f"column '{name}' is {text}, which only Spark reads"
        raise DataError(f"Dataset '{path}'", problem, hint=_USE_SPARK) from error


def checked_column(path: str, name: str, types: Mapping[str, str]) -> str:
    if name not in types:
        problem = f"has no column '{name}' ({listed(types)})"
        raise DataError(f"Dataset '{path}'", problem, hint=near_miss(name, types) + "name a column of the dataset")
    return name


def rebatched(batches: Iterator[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of exactly `rows`, but for the last."""
    return map(_one, together(batches, rows))


def together(batches: Iterator[pa.RecordBatch], rows: int) -> Iterator[list[pa.RecordBatch]]:
    """The same rows in lists of batches that have exactly `rows` each, but for the last: none is copied."""
    held: list[pa.RecordBatch] = []
    missing = rows
    for found in batches:
        rest = found
        while rest.num_rows >= missing:
            yield [*held, rest.slice(0, missing)]
            rest, held, missing = rest.slice(missing), [], rows
        if rest.num_rows:
            held.append(rest)
            missing -= rest.num_rows
    if held:
        yield held


def folder_files(files: FileStore, uri: str) -> tuple[DataFile, ...]:
    """The data files of a Parquet or CSV dataset; `_tidemark.json`, `_SUCCESS` and checksums are none."""
    found = (file for file in data_files(files, uri).values() if file.size)
    return tuple(DataFile(file.path, _part_of(file.path)) for file in found)


def dataset_version(files: FileStore, uri: str, path: str, version: int | None = None) -> DatasetVersion | None:
    """A version of a Delta dataset, by default the newest; None when there is no table.

    DataError for one of features that only Spark reads.
    """
    subject = f"Dataset '{path}'"
    found = delta_version(files, uri, subject, version)
    if found is None:
        return None
    if dict(found.metadata.get("configuration") or ()).get("delta.columnMapping.mode", "none") != "none":
        raise DataError(subject, "its columns have other names in its files", hint=_USE_SPARK)
    if [name for name in found.metadata.get("partitionColumns") or () if name != SPLIT]:
        raise DataError(subject, "it is partitioned by columns other than the parts", hint=_USE_SPARK)
    if any(add.get("deletionVector") for add in found.adds):
        raise DataError(subject, "rows of it were deleted in place", hint=_USE_SPARK)
    if any(":" in unquote(add["path"]).partition("/")[0] for add in found.adds):
        raise DataError(subject, "a file of it lies elsewhere", hint=_USE_SPARK)
    parts = sorted((unquote(add["path"]), dict(add["partitionValues"] or ()).get(SPLIT)) for add in found.adds)
    return DatasetVersion(found.version, found.note, tuple(DataFile(name, split) for name, split in parts))


def _part_of(path: str) -> str | None:
    found = _PART.search(path)
    return found[1] if found else None


def _parquet_batches(content: bytes, fields: Sequence[pa.Field], rows: int) -> Iterator[pa.RecordBatch]:
    # where a session refuses other times, Spark writes INT96, which Arrow would take for nanoseconds
    reader = parquet.ParquetFile(pa.BufferReader(content), coerce_int96_timestamp_unit="us")
    yield from reader.iter_batches(batch_size=rows, columns=[field.name for field in fields])


def _csv_batches(content: bytes, fields: Sequence[pa.Field], rows: int) -> Iterator[pa.RecordBatch]:  # noqa: ARG001
    """As training-set writes it: an empty cell is null, a quoted empty one is an empty text."""
    convert = csv.ConvertOptions(
        column_types={field.name: field.type for field in fields},
        include_columns=[field.name for field in fields],
        null_values=[""],
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
    )
    yield from csv.open_csv(
        pa.BufferReader(content),
        read_options=csv.ReadOptions(block_size=_CSV_BLOCK),
        parse_options=csv.ParseOptions(newlines_in_values=True),
        convert_options=convert,
    )


def _as_declared(batch: pa.RecordBatch, schema: pa.Schema, split: str | None) -> pa.RecordBatch:
    arrays = []
    for field in schema:
        if split is not None and field.name == SPLIT:
            arrays.append(pa.repeat(pa.scalar(split, pa.string()), batch.num_rows))
        else:
            column = batch.column(batch.schema.get_field_index(field.name))
            arrays.append(column if column.type == field.type else column.cast(field.type))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _one(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    if len(batches) == 1:
        return batches[0]
    return pa.Table.from_batches(batches).combine_chunks().to_batches()[0]


def _arrow_type(kind: DataType) -> pa.DataType:
    match kind.kind:
        case "decimal":
            return pa.decimal128(kind.precision, kind.scale)
        case "struct":
            return pa.struct([pa.field(name, _arrow_type(inner)) for name, inner in kind.fields])
        case "array" | "map":
            assert kind.element is not None  # as parsed
            element = _arrow_type(kind.element)
            return pa.list_(element) if kind.key is None else pa.map_(_arrow_type(kind.key), element)
        case _:
            return _ARROW[kind.kind]
