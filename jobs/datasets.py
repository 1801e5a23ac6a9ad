"""Training sets and their manifests by a path: lake://NAME/path, @VERSION behind it for one in Delta, or a file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from connectors.file_store import FileStore, open_file_store
from connectors.manifests import Manifest, parsed, read_delta_manifest, read_parquet_manifest
from connectors.spark_errors import data_errors
from feature_defs.errors import DataError, UsageError
from jobs.place import Place

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

    from connectors.offline_tables import DeltaOfflineTable


@dataclass(frozen=True)
class FoundDataset:
    """A training set as it lies in a lake."""

    path: str
    manifest: Manifest
    rows: DataFrame


def manifest_of(place: Place, path: str) -> Manifest:
    """The manifest of a training set, or one that lies apart from it: a file in a lake or on this machine."""
    if not path.endswith(".json"):
        return _found(place, path)[0]
    if path.startswith("lake://"):
        uri = place.lakes.uri(path)
        files, where = open_file_store(uri), uri
    else:
        files, where = open_file_store("file:///"), f"file://{Path(path).resolve()}"
    try:
        return parsed(files.read(where), path)
    except FileNotFoundError as error:
        raise DataError(f"Manifest '{path}'", "there is no such file", hint="check the path") from error


def open_dataset(place: Place, path: str) -> FoundDataset:
    """A training set's manifest and rows; no job runs."""
    manifest, uri, version = _found(place, path)
    reader = place.spark.read.format("parquet" if version is None else "delta")
    options = {} if version is None else {"versionAsOf": str(version)}
    with data_errors(f"Training set '{path}'"):
        rows = reader.options(**options).load(uri)
    missing = [column.name for column in manifest.columns if column.name not in rows.columns]
    if missing:
        problem = f"its manifest names the column '{missing[0]}', which it does not have"
        raise DataError(f"Training set '{path}'", problem, hint="somebody wrote to it; write it again")
    return FoundDataset(path, manifest, rows)


def _found(place: Place, path: str) -> tuple[Manifest, str, int | None]:
    """The manifest, where the dataset lies, and the version of one in Delta."""
    bare, version = _parted(path)
    uri = place.lakes.uri(bare)
    files = open_file_store(uri)
    manifest = read_parquet_manifest(files, uri) if version is None else None
    if manifest is not None:
        return manifest, uri, None
    table = _delta_table(place, files, uri)
    newest = table.version()
    chosen = newest if version is None else version
    if newest is not None and chosen is not None and chosen <= newest:
        manifest = read_delta_manifest(files, uri, table.note(chosen))
        if manifest is not None:
            return manifest, uri, chosen
    if version is not None:
        there = "it is no Delta table" if newest is None else f"the newest is {newest}"
        raise UsageError(f"Training set '{bare}'", f"has no version {version}: {there}", hint="leave out @VERSION")
    hint = "name what `tidemark training-set --out` wrote"
    raise UsageError(f"Path '{path}'", f"there is no training set at {uri}", hint=hint)


def _parted(path: str) -> tuple[str, int | None]:
    found = re.fullmatch(r"(.+)@(\d+)", path)
    return (found[1], int(found[2])) if found else (path, None)


def _delta_table(place: Place, files: FileStore, uri: str) -> DeltaOfflineTable:
    from connectors.offline_tables import DeltaOfflineTable

    return DeltaOfflineTable(place.spark, files, uri)
