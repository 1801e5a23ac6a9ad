"""A training set, read again: by Spark, or from its files by pyarrow alone, whole or in batches.

    open_dataset(place, "lake://work/churn_train", split="train") -> Dataset -> .spark() .pandas() .arrow()
                                                                             -> .batches() .numpy_batches() .torch()

Everything but `.spark()` needs neither Spark nor Java. Batches hold one file in memory, whatever the dataset's size.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from connectors.dataset_files import DatasetFiles, DatasetVersion, checked_column, dataset_version, folder_files
from connectors.file_store import open_file_store
from connectors.manifests import Manifest, parsed, read_delta_manifest, read_folder_manifest
from feature_defs import data_types
from feature_defs.errors import DataError, MissingPartError, UsageError, listed, near_miss
from feature_defs.expressions import quoted
from feature_defs.model import OFFLINE_FORMATS
from feature_defs.splits import SPLIT
from jobs.place import Place

if TYPE_CHECKING:
    import pandas as pd
    from pyspark.sql import DataFrame
    from pyspark.sql.types import StructType

    from jobs.torch_batches import TorchBatches

DATASET_FORMATS = (*OFFLINE_FORMATS, "csv")
_TIMES = {
    # Spark's own formats end at milliseconds
    "timestampFormat": "yyyy-MM-dd'T'HH:mm:ss.SSSSSSXXX",
    "timestampNTZFormat": "yyyy-MM-dd'T'HH:mm:ss.SSSSSS",
}
# As other programs read csv: quotes doubled, not escaped by a backslash; spaces around text kept.
_CSV = {"header": "true", "escape": '"', "ignoreLeadingWhiteSpace": "false", "ignoreTrailingWhiteSpace": "false"}
CSV_WRITTEN = {**_CSV, **_TIMES}
# Spark takes a quoted empty text for null as long as null is an empty text, too.
_CSV_READ = {**CSV_WRITTEN, "multiLine": "true", "nullValue": "\x01", "emptyValue": ""}
_NO_CSV = ("map", "array", "struct", "binary")
_NO_DELTA = set(" ,;{}()\n\t=")
_NUMBERS = ("boolean", "tinyint", "smallint", "int", "bigint", "float", "double", "decimal")
Batch = npt.NDArray[np.float64] | tuple[npt.NDArray[np.float64], npt.NDArray[Any]]


@dataclass(frozen=True)
class Dataset:
    """A training set at one version, all of it or one part. `manifest` is what its run said of it."""

    place: Place
    path: str
    split: str | None
    version: int | None
    manifest: Manifest
    files: DatasetFiles

    @property
    def columns(self) -> list[str]:
        return list(self.files.types)

    @property
    def features(self) -> list[str]:
        """The service's features in it; every other column is the spine's."""
        return [column.name for column in self.manifest.columns if column.feature]

    @property
    def splits(self) -> list[str]:
        return [part["name"] for part in self.manifest.splits]

    def spark(self) -> DataFrame:
        """The rows as Spark reads them, wherever the driver's session runs."""
        names = [quoted(name) for name in self.columns]
        reader = self.place.spark.read.format(self.files.format)
        if self.version is not None:
            reader = reader.option("versionAsOf", self.version)
        else:  # a part without rows has no folder: the columns are as the manifest says
            types = self.files.types.values()
            reader = reader.schema(", ".join(f"{name} {kind}" for name, kind in zip(names, types, strict=True)))
        rows = reader.options(**(_CSV_READ if self.files.format == "csv" else {})).load(self.files.uri).select(*names)
        return rows if self.split is None else rows.where(rows[SPLIT] == self.split)

    def arrow(self, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows in memory, of all columns or of these; times are UTC microseconds."""
        chosen = self.columns if columns is None else [self._column(name) for name in columns]
        schema = pa.schema([self.files.schema.field(name) for name in chosen])
        return pa.Table.from_batches(self.batches(columns=chosen), schema=schema)

    def pandas(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """All rows in memory as pandas has them: a column of whole numbers with nulls becomes one of floats."""
        return self.arrow(columns).to_pandas()

    def batches(self, rows: int = 65_536, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """All rows in batches of `rows`, but for the last, in one order whenever they are read."""
        if rows < 1:
            raise UsageError("Argument rows", f"is {rows}, expected 1 or more", hint="batches(rows=65536)")
        return self.files.batches(rows, columns)

    def numpy_batches(
        self, features: Sequence[str] | None = None, label: str | None = None, rows: int = 65_536
    ) -> Iterator[Batch]:
        """(X, y) a batch for `partial_fit`, X in float64 with NaN for null; only X without a label.

        The features are by default all of the service's.
        """
        chosen = self.numeric(self.features if features is None else features)
        columns = [*chosen, *([self._column(label)] if label is not None else [])]
        return (numbers(batch, self.path, label) for batch in self.batches(rows, columns))

    def torch(self, features: Sequence[str] | None = None, label: str | None = None, rows: int = 1024) -> TorchBatches:
        """The same as an IterableDataset of float32 tensors: DataLoader(dataset.torch(...), batch_size=None)."""
        try:
            from jobs.torch_batches import TorchBatches
        except ModuleNotFoundError as error:
            if (error.name or "").split(".")[0] != "torch":
                raise
            problem = "Dataset.torch needs the package 'torch'"
            raise MissingPartError("Python", problem, hint="pip install 'tidemark[torch]'") from error
        chosen = self.numeric(self.features if features is None else features)
        if label is not None:
            self.numeric([label])
        return TorchBatches(self.files, tuple(chosen), label, rows)

    def numeric(self, names: Sequence[str]) -> list[str]:
        """These columns, each of them numbers or booleans."""
        for name in names:
            found = self.files.types[self._column(name)]
            if data_types.parse(found).kind not in _NUMBERS:
                problem = f"column '{name}' is {found}, expected a number or a boolean"
                hint = "name others with features=[...]; OneHot or Index in the definition makes numbers of words"
                raise DataError(f"Dataset '{self.path}'", problem, hint=hint)
        return list(names)

    def _column(self, name: str) -> str:
        return checked_column(self.path, name, self.files.types)


def open_dataset(place: Place, path: str, *, split: str | None = None, version: int | None = None) -> Dataset:
    """The training set at a lake path, or one part of it; of a Delta dataset any version, by default the newest."""
    manifest, delta = _found(place, path, version)
    uri = place.lakes.uri(path)
    store = open_file_store(uri)
    parts = [part["name"] for part in manifest.splits]
    if split is not None and split not in parts:
        hint = near_miss(split, parts) + "leave split= out for all rows"
        raise UsageError(f"Dataset '{path}'", f"has no part '{split}' ({listed(parts)})", hint=hint)
    found = delta.files if delta is not None else folder_files(store, uri)
    chosen = tuple(file for file in found if split is None or file.split == split)
    types = {column.name: column.type for column in manifest.columns}
    files = DatasetFiles(store, path, uri, manifest.files, types, chosen)
    return Dataset(place, path, split, None if delta is None else delta.version, manifest, files)


def _found(place: Place, path: str, version: int | None) -> tuple[Manifest, DatasetVersion | None]:
    """What a path holds: the manifest, and the version of a dataset in Delta."""
    uri = place.lakes.uri(path)
    files = open_file_store(uri)
    delta = dataset_version(files, uri, path, version)
    if delta is not None:
        manifest = read_delta_manifest(files, uri, delta.note)
    else:
        manifest = read_folder_manifest(files, uri)
    if manifest is None:
        hint = "check the path, or make it with `tidemark training-set --out`"
        raise DataError(f"Dataset '{path}'", f"there is no training set at {uri}", hint=hint)
    if version is not None and delta is None:
        hint = "leave the version out, or write the dataset with --format delta"
        raise UsageError(f"Dataset '{path}'", f"is {manifest.files}, which has no versions", hint=hint)
    return manifest, delta


def manifest_of(place: Place, path: str) -> Manifest:
    """The manifest of a training set, or one that lies apart from it: a file in a lake or on this machine."""
    if not path.endswith(".json"):
        return _found(place, *_parted(path))[0]
    if path.startswith("lake://"):
        uri = place.lakes.uri(path)
        files, where = open_file_store(uri), uri
    else:
        files, where = open_file_store("file:///"), f"file://{Path(path).resolve()}"
    try:
        return parsed(files.read(where), path)
    except FileNotFoundError as error:
        raise DataError(f"Manifest '{path}'", "there is no such file", hint="check the path") from error


@dataclass(frozen=True)
class FoundDataset:
    """A training set as it lies in a lake, for Spark."""

    path: str
    manifest: Manifest
    rows: DataFrame


def found_dataset(place: Place, path: str) -> FoundDataset:
    """A training set's manifest and rows, `@VERSION` behind the path for one in Delta; no job runs."""
    from pyspark.errors import AnalysisException

    from connectors.spark_errors import data_errors
    from jobs.transforms.rows import reason

    bare, version = _parted(path)
    dataset = open_dataset(place, bare, version=version)
    try:
        with data_errors(f"Dataset '{path}'"):
            rows = dataset.spark()
    except AnalysisException as error:
        problem = f"its files are not as its manifest says: {reason(error)}"
        raise DataError(f"Dataset '{path}'", problem, hint="somebody wrote to it; write it again") from error
    return FoundDataset(path, dataset.manifest, rows)


def _parted(path: str) -> tuple[str, int | None]:
    found = re.fullmatch(r"(.+)@(\d+)", path)
    return (found[1], int(found[2])) if found else (path, None)


def numbers(batch: pa.RecordBatch, path: str, label: str | None) -> Batch:
    """A batch as (X, y), or as X alone; the label is its last column."""
    columns = batch.columns if label is None else batch.columns[:-1]
    values = np.empty((batch.num_rows, len(columns)))
    for number, column in enumerate(columns):
        values[:, number] = _floats(column)
    return values if label is None else (values, _labels(batch.columns[-1], path, label))


def _floats(column: pa.Array) -> npt.NDArray[np.float64]:
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    if pa.types.is_decimal(column.type):  # Arrow's own way to a double is off in the last bit
        column = column.cast(pa.string())
    found: npt.NDArray[np.float64] = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return found


def _labels(column: pa.Array, path: str, label: str) -> npt.NDArray[Any]:
    if column.null_count:
        problem = f"label '{label}' is null in {column.null_count} rows of a batch"
        raise DataError(f"Dataset '{path}'", problem, hint="leave rows without a label out of the spine")
    if pa.types.is_boolean(column.type) or pa.types.is_integer(column.type):
        column = column.cast(pa.int64())
    elif pa.types.is_decimal(column.type) or pa.types.is_floating(column.type):
        return _floats(column)
    found: npt.NDArray[Any] = column.to_numpy(zero_copy_only=False)
    return found


def types_of(schema: StructType) -> dict[str, str]:
    """Each column's type as Spark writes it, for the manifest."""
    return {field.name: field.dataType.simpleString() for field in schema.fields}


def check_columns_of(dataset_format: str, types: Mapping[str, str], subject: str) -> None:
    """DataError when a column is nothing that files of the format could hold."""
    for name, kind in types.items():
        if dataset_format == "csv" and kind.partition("<")[0] in _NO_CSV:
            hint = "leave it out of the service or the spine, or use --format parquet"
            raise DataError(subject, f"column '{name}' is {kind}, which csv cannot hold", hint=hint)
        if dataset_format == "delta" and set(name) & _NO_DELTA:
            problem = f"column '{name}' has a character that Delta takes in no name: one of space , ; {{ }} ( ) ="
            raise DataError(subject, problem, hint="rename it in the spine, or use --format parquet")
