"""Rows of Parquet files for a task that works on columns: pyarrow reads them where they lie, without Spark's rows.

files of one table -> row groups, of which statistics tell what they may hold -> the columns asked for, as declared

Spark reads files into rows of its own and hands Python a copy: several times the work of the reading. Only files that
every task finds at the same path (`file:`) are read so. What cannot be read is told in Spark's words.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet
from pyspark.sql.types import StructType

from connectors.dataset_files import arrow_schema
from connectors.file_store import DRAFT, local_path
from feature_defs.errors import DataError

_BY_SPARK = b"org.apache.spark.version"


@dataclass(frozen=True)
class FileRows:
    """Files of one table and its columns. Plain data: a task gets it as it is."""

    paths: tuple[str, ...]
    schema: pa.Schema

    def row_groups(self) -> Iterator[RowGroup]:
        """All row groups in order, each with the number of its first row among all rows."""
        start = 0
        for path in self.paths:
            with _opened(path) as file:
                names = {name.lower(): name for name in file.schema_arrow.names}
                numbers = {file.schema.column(n).path: n for n in range(file.metadata.num_columns)}
                for number in range(file.metadata.num_row_groups):
                    group = RowGroup(file, path, number, start, self.schema, names, numbers)
                    yield group
                    start += group.rows

    def counts(self) -> tuple[int, ...]:
        """The rows of each file, by its footer."""
        found = []
        for path in self.paths:
            with _opened(path) as file:
                found.append(file.metadata.num_rows)
        return tuple(found)

    @property
    def bytes(self) -> int:
        """What all columns take in memory, by the files' footers."""
        return sum(group.bytes for group in self.row_groups())

    def bytes_of(self, columns: Sequence[str]) -> int:
        """What these columns take."""
        return sum(group.bytes_of(columns) for group in self.row_groups())

    def read(self, columns: Sequence[str], start: int = 0, stop: int | None = None) -> pa.Table:
        """The rows from a number up to another, by default all."""
        parts = []
        for group in self.row_groups():
            low, high = max(start, group.start), min(group.start + group.rows, stop or group.start + group.rows)
            if low < high:
                parts.append(group.read(columns).slice(low - group.start, high - low))
        return pa.concat_tables(parts) if parts else self.columns(columns).empty_table()

    def read_alike(self) -> pa.Table | None:
        """All rows, if every file holds the very columns; what Spark turns into them is for Spark."""
        declared = [(field.name, field.type) for field in self.schema]
        for path in self.paths:
            with _opened(path) as file:
                numbers, notes = range(file.metadata.num_columns), file.metadata.metadata or {}
                # another calendar
                is_old = any(b"legacy" in note for note in notes) or notes.get(_BY_SPARK, b"9") < b"3"
                is_old |= any(file.schema.column(n).physical_type == "INT96" for n in numbers)
                if is_old or [(field.name, field.type) for field in file.schema_arrow] != declared:
                    return None
        return self.read(self.schema.names)

    def columns(self, columns: Sequence[str]) -> pa.Schema:
        return pa.schema([self.schema.field(name) for name in columns])

    def file(self, number: int) -> FileRows:
        return replace(self, paths=(self.paths[number],))


@dataclass(frozen=True)
class RowGroup:
    """A part of a file, while that is open."""

    file: parquet.ParquetFile
    path: str
    number: int
    start: int
    schema: pa.Schema
    names: Mapping[str, str]  # of the file's columns, by what they are in small letters
    numbers: Mapping[str, int]  # of what a column stores, by its path

    @property
    def rows(self) -> int:
        return int(self.file.metadata.row_group(self.number).num_rows)

    @property
    def bytes(self) -> int:
        return int(self.file.metadata.row_group(self.number).total_byte_size)

    def bytes_of(self, columns: Sequence[str]) -> int:
        """At least: a value that is stored as a number of its dictionary takes more."""
        group = self.file.metadata.row_group(self.number)
        return sum(group.column(n).total_uncompressed_size for path, n in self.numbers.items() if path in columns)

    def bounds(self, name: str) -> tuple[Any, Any] | None:
        """The least and the greatest value of a column; None where the file does not tell."""
        if name not in self.numbers:
            return None
        told = self.file.metadata.row_group(self.number).column(self.numbers[name]).statistics
        with suppress(OverflowError, UnicodeDecodeError):  # what Python has no date or text for
            return (told.min, told.max) if told is not None and told.has_min_max else None
        return None

    def read(self, columns: Sequence[str]) -> pa.Table:
        """Columns as the table declares them; one that the file does not have yet is null. As in Spark, A is a."""
        there = {name: self.names[name.lower()] for name in columns if name.lower() in self.names}
        with _told(self.path):
            found = self.file.read_row_group(self.number, columns=list(there.values()), use_threads=False)
        arrays = []
        for name in columns:
            kind = self.schema.field(name).type
            if name not in there:
                arrays.append(pa.nulls(self.rows, kind))
            else:
                column = found.column(there[name])
                arrays.append(column if column.type == kind else column.cast(kind))
        return pa.table(arrays, schema=pa.schema([self.schema.field(name) for name in columns]))


def file_rows(uris: Sequence[str], schema: StructType) -> FileRows | None:
    """The rows of these files; None when a task could not read them, or not as Spark does."""
    names = {name.lower() for name in schema.names}
    if not all(uri.startswith("file:") for uri in uris) or len(names) < len(schema.names):
        return None
    try:
        columns = arrow_schema("", {field.name: field.dataType.simpleString() for field in schema.fields})
    except DataError:  # a type that only Spark reads
        return None
    return FileRows(tuple(str(local_path(uri)) for uri in uris), columns)


@contextmanager
def _opened(path: str) -> Iterator[parquet.ParquetFile]:
    with _told(path):
        # where a session refuses other times, Spark writes INT96, which Arrow would take for nanoseconds
        file = parquet.ParquetFile(path, memory_map=True, coerce_int96_timestamp_unit="us")
    with file:
        yield file


@contextmanager
def _told(path: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise OSError(f"[FAILED_READ_FILE.FILE_NOT_EXIST] {path} SQLSTATE: KD001") from error
    except (pa.ArrowException, OSError) as error:
        raise OSError(f"[FAILED_READ_FILE.NO_HINT] {path}: {error} SQLSTATE: KD001") from error


@contextmanager
def made_whole(path: Path) -> Iterator[Path]:
    """A file to write, which gets its name when all of it is there. An attempt that was taken for lost may be writing
    the same at the same time, on another machine."""
    draft = path.with_name(f"{DRAFT}{path.name}.{uuid.uuid4().hex}")
    try:
        yield draft
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
