"""Offline tables: one protocol, a Delta and a Parquet implementation with the same promises.

    rows -> replace -> a new numbered version (all of it or nothing) -> read

A version carries a note (plain data: run id, fingerprint, ...). Delta keeps it in the commit; a Parquet table keeps
versions itself:

    TABLE/data/RUN/part-*.parquet     data files, written first, never changed
    TABLE/_tidemark/00000001.json     a manifest a version: its files, schema and note; created exclusively, last
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import StructType

from connectors.file_store import FileStore, open_file_store
from connectors.lakes import joined
from feature_defs.errors import LakeError, UsageError

Note = Mapping[str, Any]
_DELTA_CONFLICT = re.compile(r"\[DELTA_(CONCURRENT_|METADATA_CHANGED|PROTOCOL_CHANGED)")


class OfflineTable(Protocol):
    """A table of a lake with numbered versions."""

    @property
    def uri(self) -> str: ...

    def version(self) -> int | None:
        """The newest version; None when there is no table yet."""

    def read(self, version: int | None = None) -> DataFrame:
        """The rows of a version, by default the newest."""

    def note(self, version: int) -> Note: ...

    def replace(self, rows: DataFrame, note: Note) -> int:
        """Make these rows the table's whole content; gives the new version. Readers see the old rows or the new."""


def open_table(spark: SparkSession, uri: str, table_format: str) -> OfflineTable:
    """The table at a URI; it need not exist yet."""
    files = open_file_store(uri)
    if table_format == "delta":
        return DeltaOfflineTable(spark, files, uri)
    if table_format == "parquet":
        return ParquetOfflineTable(spark, files, uri)
    raise UsageError(f"Table '{uri}'", f"format '{table_format}' is not known", hint="use delta or parquet")


@dataclass(frozen=True)
class DeltaOfflineTable:
    spark: SparkSession
    files: FileStore
    uri: str

    def version(self) -> int | None:
        # the log is listed rather than asked of Spark: DESCRIBE HISTORY costs a job, a listing does not
        return _newest(self.files, joined(self.uri, "_delta_log"), r"(\d{20})\.json")

    def read(self, version: int | None = None) -> DataFrame:
        chosen = _existing(self, version)
        return self.spark.read.format("delta").option("versionAsOf", chosen).load(self.uri)

    def note(self, version: int) -> Note:
        log = self.files.read(joined(self.uri, "_delta_log", f"{version:020d}.json"))
        actions = (json.loads(line) for line in log.splitlines() if line.strip())
        info: Note = next((action["commitInfo"] for action in actions if "commitInfo" in action), {})
        return dict(json.loads(info.get("userMetadata") or "{}"))

    def replace(self, rows: DataFrame, note: Note) -> int:
        writer = rows.write.format("delta").mode("overwrite").option("overwriteSchema", "true")
        run = uuid.uuid4().hex
        try:
            writer.option("userMetadata", json.dumps({**note, "commit": run})).save(self.uri)
        except Exception as error:
            if not _DELTA_CONFLICT.search(str(error)):
                raise
            hint = "run the job again; nothing of this run is in the table"
            raise LakeError(f"Table '{self.uri}'", "another run wrote a version meanwhile", hint=hint) from error
        return self._version_of(run)

    def _version_of(self, run: str) -> int:
        """The version that this commit got; another writer may have committed since."""
        newest = _existing(self, None)
        return next(version for version in range(newest, -1, -1) if self.note(version).get("commit") == run)


@dataclass(frozen=True)
class ParquetOfflineTable:
    spark: SparkSession
    files: FileStore
    uri: str

    def version(self) -> int | None:
        return _newest(self.files, joined(self.uri, "_tidemark"), r"(\d{8})\.json")

    def read(self, version: int | None = None) -> DataFrame:
        manifest = self._manifest(_existing(self, version))
        schema = StructType.fromJson(manifest["schema"])
        paths = [joined(self.uri, file["path"]) for file in manifest["files"]]
        return self.spark.read.schema(schema).parquet(*paths) if paths else self.spark.createDataFrame([], schema)

    def note(self, version: int) -> Note:
        return dict(self._manifest(version)["note"])

    def replace(self, rows: DataFrame, note: Note) -> int:
        number = (self.version() or 0) + 1
        folder = f"data/{uuid.uuid4().hex}"
        try:
            rows.write.parquet(joined(self.uri, folder))
        except BaseException:  # Ctrl-C too
            self.files.delete(joined(self.uri, folder))
            raise
        written = self.files.list_files(joined(self.uri, folder))
        data = [file for file in written if file.path.endswith(".parquet")]
        manifest = {
            "files": [{"path": f"{folder}/{file.path}", "bytes": file.size} for file in data],
            "schema": json.loads(rows.schema.json()),
            "note": dict(note),
        }
        try:
            self.files.create(self._manifest_uri(number), json.dumps(manifest, indent=1).encode())
        except FileExistsError as error:
            self.files.delete(joined(self.uri, folder))
            hint = "run the job again; what this run wrote was removed"
            raise LakeError(f"Table '{self.uri}'", f"another run wrote version {number} first", hint=hint) from error
        return number

    def _manifest(self, version: int) -> dict[str, Any]:
        try:
            return dict(json.loads(self.files.read(self._manifest_uri(version))))
        except FileNotFoundError as error:
            hint = f"the newest version is {self.version()}"
            raise LakeError(f"Table '{self.uri}'", f"has no version {version}", hint=hint) from error

    def _manifest_uri(self, version: int) -> str:
        return joined(self.uri, "_tidemark", f"{version:08d}.json")


def _newest(files: FileStore, folder: str, pattern: str) -> int | None:
    names = (re.fullmatch(pattern, file.path) for file in files.list_files(folder))
    return max((int(name[1]) for name in names if name), default=None)


def _existing(table: OfflineTable, version: int | None) -> int:
    newest = table.version()
    if newest is None:
        raise LakeError(f"Table '{table.uri}'", "does not exist yet", hint="run `tidemark compute` first")
    if version is not None and version > newest:
        raise LakeError(f"Table '{table.uri}'", f"has no version {version}", hint=f"the newest version is {newest}")
    return newest if version is None else version
