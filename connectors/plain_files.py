"""A table's version as the Parquet files that it consists of, where these hold its rows and nothing else.

    Parquet table    the manifest's files
    Delta table      the live files of its log, when no row of them is deleted and their columns have their own names

Spark asks Delta's log several times for each reading of a table, in jobs of its own, before it begins: half a second
that a load of a few thousand entities feels. Read as files, only those are opened that may hold rows of a time.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import unquote

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from connectors.delta_addresses import Folder
from connectors.delta_log import Action, commit_actions, delta_version
from connectors.file_rows import FileRows, file_rows
from connectors.lakes import PATTERN, joined
from connectors.offline_tables import WENT, DeltaOfflineTable, OfflineTable, ParquetOfflineTable, shown
from connectors.table_files import may_open
from connectors.table_stats import may_hold, micros
from feature_defs.errors import DataError
from feature_defs.model import EVENT_TIME, REJECTED

_READABLE = {"deletionVectors", "v2Checkpoint", "vacuumProtocolCheck"}  # what changes nothing of files that lack them
_MOST_FILES = 1000  # Spark looks for each before it begins, and tasks read the footer of each
_MOST_COMMITS = 200
_RECENT = 8  # the newest of so many parts
_MILLISECOND = 1000  # Delta's bounds are cut to it


@dataclass(frozen=True)
class PlainFile:
    """A Parquet file, and its oldest and newest event_time where they are known."""

    uri: str
    bytes: int
    oldest_us: int | None = None
    newest_us: int | None = None

    def may_hold(self, after_us: int | None, until_us: int | None = None) -> bool:
        return may_hold(self.oldest_us, self.newest_us, after_us=after_us, until_us=until_us)


@dataclass(frozen=True)
class PlainFiles:
    """Some files of a table."""

    spark: SparkSession
    schema: StructType
    files: tuple[PlainFile, ...]

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)

    @property
    def newest_first(self) -> PlainFiles:
        """In the order of their newest times; before all others those that tell none."""
        return self._of(
            sorted(self.files, key=lambda file: (file.newest_us is None, file.newest_us or 0), reverse=True)
        )

    def rows(self) -> DataFrame:
        """The feature rows in them."""
        reader, uris = self.spark.read.schema(self.schema), [file.uri for file in self.files]
        return shown(reader.parquet(*uris) if uris else self.spark.createDataFrame([], self.schema))

    def columns(self, names: Iterable[str]) -> FileRows | None:
        """These columns, and what marks quarantined rows, for tasks to read; None where they cannot."""
        wanted = {*names, REJECTED}
        if not wanted - {REJECTED} <= set(self.schema.names) or len(self.files) > _MOST_FILES:
            return None
        schema = StructType([field for field in self.schema.fields if field.name in wanted])
        return file_rows([file.uri for file in self.files], schema)

    def after(self, time_us: int) -> PlainFiles:
        """Those that may hold rows later than a time."""
        return self.within(time_us, None)

    def between(self, after_us: int, until_us: int) -> PlainFiles:
        """Those that may hold rows of (after, until]."""
        return self.within(after_us, until_us) if after_us < until_us else self._of(())

    def within(self, after_us: int | None, until_us: int | None) -> PlainFiles:
        """The same where either may have no bound."""
        return self._of(file for file in self.files if file.may_hold(after_us, until_us))

    def without(self, others: PlainFiles) -> PlainFiles:
        known = {file.uri for file in others.files}
        return self._of(file for file in self.files if file.uri not in known)

    def recent_after(self) -> int | None:
        """A time that an eighth of the bytes are later than; None where files are not in the order of time."""
        if any(file.oldest_us is None or file.newest_us is None for file in self.files):
            return None
        seen, time_us = 0, None
        for file in sorted(self.files, key=lambda file: file.newest_us or 0, reverse=True):
            time_us = min(file.oldest_us or 0, time_us if time_us is not None else file.oldest_us or 0)
            seen += file.bytes
            if seen * _RECENT >= self.bytes:
                break
        return time_us - 1 if time_us is not None and 2 * self.after(time_us - 1).bytes <= self.bytes else None

    def _of(self, files: Any) -> PlainFiles:
        return replace(self, files=tuple(files))


@dataclass(frozen=True)
class PlainChanges:
    """The files that came and went from one version to a later one."""

    came: PlainFiles
    went: PlainFiles

    @property
    def bytes(self) -> int:
        return self.came.bytes + self.went.bytes

    def rows(self) -> DataFrame:
        """As `OfflineTable.changes` tells them."""
        parts = [(self.came, False), (self.went, True)]
        came, went = (files.rows().withColumn(WENT, F.lit(gone)) for files, gone in parts)
        return came.unionByName(went) if self.went.files else came


def plain_files(table: OfflineTable, version: int) -> PlainFiles | None:
    """The files of a version; None where only the table's own reader knows what they hold."""
    if isinstance(table, ParquetOfflineTable):
        manifest = table.manifest(version)
        return _of_manifest(table, manifest["files"], StructType.fromJson(manifest["schema"]))
    if not isinstance(table, DeltaOfflineTable) or not isinstance(table.at, Folder):
        return None
    if not may_open(table.spark):
        return None
    try:
        found = delta_version(table.at.files, table.uri, f"Table '{table.uri}'", version, stats=True)
    except (FileNotFoundError, DataError):  # a log that is being cleaned up, or is not all there
        return None
    if found is None or not (0 < len(found.adds) <= _MOST_FILES) or not _is_plain(found.protocol, found.metadata):
        return None
    return _of_adds(table, found.adds, StructType.fromJson(json.loads(found.metadata["schemaString"])))


def plain_changes(table: OfflineTable, until: PlainFiles, since: int, version: int) -> PlainChanges | None:
    """From `since` to the version whose files `until` are; of a Delta table None unless all that happened is that rows
    were added."""
    if isinstance(table, ParquetOfflineTable):
        changed = table.changed_files(since, version)
        if changed is None:
            return None
        came, went = (_of_manifest(table, files, until.schema) for files in changed)
        return PlainChanges(came, went)
    assert isinstance(table, DeltaOfflineTable)
    assert isinstance(table.at, Folder)
    adds = _only_added(table.at, since, version)
    added = None if adds is None else _of_adds(table, adds, until.schema)
    return PlainChanges(added, replace(added, files=())) if added else None


def _of_manifest(table: ParquetOfflineTable, files: Sequence[Mapping[str, Any]], schema: StructType) -> PlainFiles:
    found = (
        PlainFile(joined(table.uri, file["path"]), file["bytes"], file.get("oldest"), file.get("newest"))
        for file in files
    )
    return PlainFiles(table.spark, schema, tuple(found))


def _of_adds(table: DeltaOfflineTable, adds: Sequence[Action], schema: StructType) -> PlainFiles | None:
    files = []
    for add in adds:
        path = unquote(add["path"])
        uri = joined(table.uri, path)
        if add.get("deletionVector") or ":" in path.partition("/")[0] or PATTERN.search(uri):
            return None
        files.append(PlainFile(uri, add["size"], *_bounds(add.get("stats"))))
    return PlainFiles(table.spark, schema, tuple(files))


def _is_plain(protocol: Action, metadata: Action) -> bool:
    """Whether a Parquet reader gives the rows of the table's files as Delta does."""
    reader, features = protocol.get("minReaderVersion"), set(protocol.get("readerFeatures") or ())
    mapping = dict(metadata.get("configuration") or ()).get("delta.columnMapping.mode", "none")
    is_known = reader == 1 or (reader == 3 and features <= _READABLE)
    return is_known and mapping == "none" and not metadata.get("partitionColumns") and "schemaString" in metadata


def _only_added(at: Folder, since: int, version: int) -> list[Action] | None:
    """What commits added; None when one did anything else than to add rows, or to move them to other files."""
    if version - since > _MOST_COMMITS:
        return None
    found: list[Action] = []
    for number in range(since + 1, version + 1):
        try:
            actions = list(commit_actions(at.files, at.uri, number))
        except FileNotFoundError:  # cleaned up by Delta's own retention
            return None
        for action in actions:
            moved = not action.get("remove", {"dataChange": False}).get("dataChange", True)
            if {"metaData", "protocol", "cdc"} & action.keys() or not moved:
                return None
            if "add" in action and action["add"].get("dataChange", True):
                found.append(action["add"])
    return found


def _bounds(stats: str | None) -> tuple[int | None, int | None]:
    told = json.loads(stats) if stats else {}
    oldest, newest = (_micros((told.get(name) or {}).get(EVENT_TIME)) for name in ("minValues", "maxValues"))
    if oldest is None or newest is None:
        return None, None
    return oldest, newest + _MILLISECOND - 1


def _micros(text: str | None) -> int | None:
    """A bound as Delta writes it; None where it has no zone, or Python no such year."""
    try:
        time = datetime.datetime.fromisoformat((text or "").replace("Z", "+00:00"))
    except ValueError:
        return None
    return None if time.tzinfo is None else micros(time)
