"""Files of a table that tasks write themselves, where they can: rows as they come, without Spark's rows in between.

    begin -> Begun(folder, version before)   tasks -> NewFile ...   finish: one commit names them all

A version that is begun and not finished is files that nobody names; maintenance removes them.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet
from pyspark.sql import SparkSession

from connectors.dataset_files import together
from connectors.delta_log import Action
from connectors.file_rows import made_whole
from connectors.file_store import FileStore, local_path
from connectors.lakes import joined
from connectors.row_order import PART, ROWS_A_FILE
from feature_defs.errors import LakeError

Bounds = Mapping[str, tuple[Any, Any]]


@dataclass(frozen=True)
class NewFile:
    """A file by its path below the table's folder. `bounds` are the least and greatest values of some columns: whole
    numbers, texts, and times as microseconds."""

    path: str
    bytes: int
    rows: int
    bounds: Bounds

    def as_plain(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Begun:
    """A version to come: the folder of its files, below the table's, and the version before. Plain data: a task gets it
    as it is."""

    uri: str
    folder: str
    after: int | None
    known: tuple[str, ...]  # the columns whose bounds are kept
    made: tuple[Action, ...] = ()  # what makes a new table, as its log has it

    def write(self, batches: Iterator[pa.RecordBatch]) -> Iterator[NewFile]:
        """Write one task's rows. Another attempt at the same task writes files of other names."""
        attempt = uuid.uuid4().hex
        for number, held in enumerate(together(batches, ROWS_A_FILE)):
            rows = pa.Table.from_batches(held)
            path = joined(self.folder, f"part-{attempt}-{number:05d}.parquet")
            file = local_path(joined(self.uri, path))
            file.parent.mkdir(parents=True, exist_ok=True)
            _write(rows, file)
            yield NewFile(path, file.stat().st_size, len(rows), dict(_bounds(rows, self.known)))


def begun(uri: str, after: int | None, known: Sequence[str], made: Sequence[Action] = ()) -> Begun:
    return Begun(uri, f"data/{uuid.uuid4().hex}", after, tuple(known), tuple(made))


def given_up(files: FileStore, version: Begun) -> None:
    """Remove what tasks have written of a version that does not come. One that is still writing may get in the way:
    maintenance removes what stays."""
    with suppress(OSError, LakeError):
        files.delete(joined(version.uri, version.folder))


def may_open(spark: SparkSession) -> bool:
    """Whether tasks reach a table's files as we do. Databricks refuses it below a Delta log, and tells a Connect
    session so only when rows are read."""
    return isinstance(spark, SparkSession) and "DATABRICKS_RUNTIME_VERSION" not in os.environ


def with_bounds(schema: pa.Schema) -> list[str]:
    """The columns of which a file may tell bounds. Arrow leaves NaN out of them, of which Spark thinks as the greatest
    number: it would skip rows that it looks for."""
    return [field.name for field in schema if not (pa.types.is_floating(field.type) or pa.types.is_nested(field.type))]


def _write(rows: pa.Table, file: Path) -> None:
    """Numbers without a dictionary: it takes half of the time, and saves nothing where values hardly repeat."""
    texts = [field.name for field in rows.schema if not pa.types.is_primitive(field.type)]
    with made_whole(file) as draft:
        parquet.write_table(
            rows,
            draft,
            row_group_size=PART,
            compression="snappy",
            use_dictionary=texts,
            write_statistics=with_bounds(rows.schema),
            store_schema=False,
        )


def _bounds(rows: pa.Table, names: Sequence[str]) -> Iterator[tuple[str, tuple[Any, Any]]]:
    for name in names:
        found = pc.min_max(rows.column(name))
        if found["min"].is_valid:
            with suppress(UnicodeDecodeError):  # bytes that Spark takes for text
                yield name, (_plain(found["min"]), _plain(found["max"]))


def _plain(value: pa.Scalar) -> Any:
    return value.cast(pa.timestamp("us")).value if pa.types.is_temporal(value.type) else value.as_py()
