"""Maintenance of offline tables: small files into large ones, and what no reader can need any more away.

    compact   Delta: OPTIMIZE. Parquet: the newest version's rows in fewer files, as the next version
    vacuum    versions that were replaced before the retention go, but for pinned ones; then files that no version names

A version that was the newest at any time since the retention began stays readable, and so does a pinned one. A file
that was written since then is never touched, so that a job that runs now loses nothing. Everything is safe to be killed
and to be run again: a new version appears whole, a manifest goes before its files.

Delta's own VACUUM knows no pins. With pins it is given an inventory: the table's old files without those that
kept versions need. A pinned version also needs its commits and Delta's leave, so a table with pins is set to keep both.
The files of a table in a catalog cannot be listed, so there is no inventory of them: one with pins is only compacted.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import re
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyspark.sql import DataFrame

from connectors.delta_addresses import CatalogTable
from connectors.file_store import FileInfo, FileStore, open_file_store
from connectors.lakes import joined
from connectors.offline_tables import (
    DELTA_CONFLICT,
    MAINTAINED,
    STAGING,
    DeltaOfflineTable,
    Note,
    OfflineTable,
    ParquetOfflineTable,
    clustered_by,
    in_catalog,
    session_conf,
    writing,
)
from connectors.row_order import in_order
from feature_defs.errors import LakeError
from feature_defs.model import EVENT_TIME

TARGET_BYTES = 128 << 20  # of a compacted file: one task's worth, few enough to list and large enough to skip within
BUSY_US = 3_600_000_000
_VERSION = {"delta": re.compile(r"(\d{20})\.json"), "parquet": re.compile(r"(\d{8})\.json")}
NOT_THERE = re.compile(
    r"\[DELTA_(VERSION_NOT_FOUND|VERSIONS_NOT_CONTIGUOUS|LOG_FILE_NOT_FOUND|TRUNCATED_TRANSACTION_LOG"
    r"|NO_RECREATABLE_HISTORY_FOUND)"
)
_KEEPS = "tidemark.keepsHours"
_FILES_KEPT, _LOG_KEPT = "delta.deletedFileRetentionDuration", "delta.logRetentionDuration"
_PINNED_HOURS = 24 * 3650
_DEFAULT_HOURS, _DEFAULT_LOG_HOURS = 24 * 7, 24 * 30
_VACUUM = "spark.databricks.delta.vacuum."
_LOGGED = f"{_VACUUM}logging.enabled"
_OUR_HOURS = {
    f"{_VACUUM}retentionWindowIgnore.enabled": "false",  # else Delta 4.4 takes what the table says
    "spark.databricks.delta.retentionDurationCheck.enabled": "false",  # ours may be shorter than that
}
# a version that the table's own settings do not let anybody read: its files are there, and needed once they do
ANY_VERSION = {f"{_VACUUM}enforceTimeTravelWithinDeletedFileRetentionDuration": "false"}
_HOUR_US = 3_600_000_000


@dataclass(frozen=True)
class Upkeep:
    """What maintenance has to know: pinned versions, when the retention began, and whether only to tell."""

    pinned: frozenset[int]
    now_us: int
    retention_us: int
    run: str
    keys: tuple[str, ...] = ()
    dry_run: bool = False

    @property
    def since_us(self) -> int:
        return self.now_us - self.retention_us


@dataclass(frozen=True)
class TableState:
    """Data files of a table, those of no version too, and its versions."""

    files: int
    bytes: int
    versions: int


@dataclass(frozen=True)
class Maintained:
    """What was done to one table, or would be. `compacted` is files before and after; `notes` say what was left."""

    before: TableState
    after: TableState
    removed: int
    freed: int
    leftovers: int
    compacted: tuple[int, int] | None
    lost_pins: tuple[int, ...]
    notes: tuple[str, ...]


def maintain_table(table: OfflineTable, upkeep: Upkeep) -> Maintained:
    """Compact and vacuum a table that exists."""
    if isinstance(table, DeltaOfflineTable):
        named = in_catalog(table)
        return _maintain_in_catalog(table, named, upkeep) if named else _maintain_delta(table, upkeep)
    assert isinstance(table, ParquetOfflineTable)
    return _maintain_parquet(table, upkeep)


def past_maintenance(table: OfflineTable, write: Callable[[], int]) -> int:
    """The version a job wrote. What only maintenance got in the way of is written again: it has changed no row."""
    for _ in range(2):
        before = table.version()
        try:
            return write()
        except LakeError:
            after = table.version()
            if before is None or after is None or after == before:
                raise
            if not all(MAINTAINED in table.note(version) for version in range(before + 1, after + 1)):
                raise
    return write()


def kept_versions(written_us: Mapping[int, int], since_us: int, pinned: Collection[int]) -> set[int]:
    """Of versions with the time each was written: the pinned ones and all that were the newest since then."""
    versions = sorted(written_us)
    replaced = itertools.pairwise(versions)
    recent = {version for version, following in replaced if written_us[following] >= since_us}
    return recent | set(versions[-1:]) | (set(pinned) & set(versions))


# Parquet: versions are manifests


@dataclass(frozen=True)
class _ParquetFiles:
    """A table as it was listed; manifests are read after the data files, so that none names a file not known."""

    data: tuple[FileInfo, ...]
    manifests: Mapping[int, Mapping[str, Any]]
    written_us: Mapping[int, int]

    @property
    def state(self) -> TableState:
        parts = [file for file in self.data if file.path.endswith(".parquet")]
        return TableState(len(parts), sum(file.size for file in parts), len(self.manifests))

    def named(self, versions: Collection[int]) -> set[str]:
        return {file["path"] for version in versions for file in self.manifests[version]["files"]}

    def youngest(self) -> dict[str, int]:
        """When each run's folder was last written to."""
        found: dict[str, int] = {}
        for file in self.data:
            folder = _folder(file.path)
            found[folder] = max(found.get(folder, 0), file.modified_us)
        return found


def _folder(path: str) -> str:
    """data/RUN of a data file."""
    return "/".join(path.split("/")[:2])


def _parquet_files(files: FileStore, uri: str) -> _ParquetFiles:
    data = [file for file in files.list_files(uri) if file.path.startswith("data/")]
    manifests, written = {}, {}
    for file in files.list_files(joined(uri, "_tidemark")):
        named = _VERSION["parquet"].fullmatch(file.path)
        if named:
            with contextlib.suppress(FileNotFoundError):  # another maintenance was faster
                manifests[int(named[1])] = json.loads(files.read(joined(uri, "_tidemark", file.path)))
                written[int(named[1])] = file.modified_us
    return _ParquetFiles(tuple(data), manifests, written)


def _maintain_parquet(table: ParquetOfflineTable, upkeep: Upkeep) -> Maintained:
    before = _parquet_files(table.files, table.uri)
    compacted, notes = _compact_parquet(table, before, upkeep)
    removed, freed, leftovers = vacuum_parquet(table.files, table.uri, upkeep)
    drafts, draft_bytes = remove_drafts(table.files, table.uri, upkeep)
    after = before.state
    if upkeep.dry_run:
        kept = kept_versions(before.written_us, upkeep.since_us, upkeep.pinned)
        after = TableState(after.files - removed, after.bytes - freed, len(kept))
    else:
        after = _parquet_files(table.files, table.uri).state
    lost = tuple(sorted(upkeep.pinned - before.manifests.keys()))
    return Maintained(before.state, after, removed, freed + draft_bytes, leftovers + drafts, compacted, lost, notes)


def _compact_parquet(
    table: ParquetOfflineTable, found: _ParquetFiles, upkeep: Upkeep
) -> tuple[tuple[int, int] | None, tuple[str, ...]]:
    """The newest version's rows in fewer files, as the next version; nothing when another run is writing."""
    newest = max(found.manifests)
    manifest = found.manifests[newest]
    sizes = [file["bytes"] for file in manifest["files"]]
    wanted = files_wanted(sizes)
    if wanted is None:
        return None, ()
    named = {_folder(path) for path in found.named(found.manifests)}
    writing = [at for folder, at in found.youngest().items() if folder not in named and at >= upkeep.now_us - BUSY_US]
    if writing:
        return None, ("not compacted: another run has been writing within the hour",)
    if not upkeep.dry_run:
        rows = _fewer(table.read_all(newest), wanted, upkeep.keys)
        if not _commit(table, rows, newest, manifest, upkeep):
            return None, ("not compacted: another run wrote a version meanwhile",)
    return (len(sizes), wanted), ()


def files_wanted(sizes: Sequence[int]) -> int | None:
    """How many files there should be; None when they are few enough as they are."""
    wanted = max(1, math.ceil(sum(sizes) / TARGET_BYTES))
    small = sum(size < TARGET_BYTES // 2 for size in sizes)
    return wanted if small > 1 and len(sizes) > wanted else None


def _fewer(rows: DataFrame, count: int, keys: Sequence[str]) -> DataFrame:
    """The rows in so many files, one span of time after the other; without keys, in any order."""
    if not keys:
        return rows.coalesce(count)
    return in_order(rows.coalesce(1) if count == 1 else rows.repartitionByRange(count, EVENT_TIME, *keys), keys)


def _commit(
    table: ParquetOfflineTable, rows: DataFrame, newest: int, manifest: Mapping[str, Any], upkeep: Upkeep
) -> bool:
    """Write exactly the version after the one that was read: a version that came meanwhile must not be undone."""
    folder = f"data/{uuid.uuid4().hex}"
    target = joined(table.uri, folder)
    try:
        with writing(table.spark, table=True):
            rows.write.parquet(target)
        content = {
            **manifest,
            "files": table.data_files(folder, rows.schema),
            "note": {**manifest["note"], MAINTAINED: upkeep.run},
        }
        uri = joined(table.uri, "_tidemark", f"{newest + 1:08d}.json")
        table.files.create(uri, json.dumps(content, indent=1).encode())
    except FileExistsError:
        table.files.delete(target)
        return False
    except BaseException:  # Ctrl-C too
        table.files.delete(target)
        raise
    return True


def vacuum_parquet(files: FileStore, uri: str, upkeep: Upkeep) -> tuple[int, int, int]:
    """Data files removed, the bytes of them, and leftover folders of runs that did not end. Needs no Spark."""
    found = _parquet_files(files, uri)
    kept = kept_versions(found.written_us, upkeep.since_us, upkeep.pinned)
    needed = found.named(kept)
    known = {_folder(path) for path in found.named(found.manifests)}
    old = {folder for folder, at in found.youngest().items() if at < upkeep.since_us}
    garbage = [file for file in found.data if file.path not in needed and _folder(file.path) in old]
    parts = [file for file in garbage if file.path.endswith(".parquet") and not _is_hidden(file.path)]
    leftovers = {_folder(file.path) for file in garbage} - known
    if not upkeep.dry_run:
        for version in sorted(found.manifests.keys() - kept):
            _delete(files, joined(uri, "_tidemark", f"{version:08d}.json"))
        half = {_folder(path) for path in needed}
        for folder in sorted({_folder(file.path) for file in garbage} - half):
            _delete(files, joined(uri, folder))
        for file in parts:
            if _folder(file.path) in half:
                parent, _, name = file.path.rpartition("/")
                _delete(files, joined(uri, file.path))
                _delete(files, joined(uri, parent, f".{name}.crc"))
    return len(parts), sum(file.size for file in parts), len(leftovers)


def _delete(files: FileStore, uri: str) -> None:
    """Remove it, also when another maintenance is removing it too."""
    for _ in range(3):
        with contextlib.suppress(FileNotFoundError):
            return files.delete(uri)
    return None


def _is_hidden(path: str) -> bool:
    return path.rpartition("/")[2].startswith((".", "_"))


def remove_drafts(files: FileStore, uri: str, upkeep: Upkeep) -> tuple[int, int]:
    """Files that a killed run had begun and not finished: how many, and their bytes."""
    drafts = [
        *files.list_drafts(uri),
        *(file for file in files.list_files(uri) if file.path.startswith(f"{STAGING}/")),
    ]
    old = [file for file in drafts if file.modified_us < upkeep.since_us]
    if not upkeep.dry_run:
        for file in old:
            files.delete(joined(uri, file.path))
    return len(old), sum(file.size for file in old)


# Delta: versions are commits


def _maintain_delta(table: DeltaOfflineTable, upkeep: Upkeep) -> Maintained:
    before = _delta_state(table, upkeep)
    kept = kept_versions(_commit_times(table), upkeep.since_us, ()) | upkeep.pinned if upkeep.pinned else set()
    readable, unreadable = _readable(table, kept)
    lost = tuple(version for version in unreadable if version in upkeep.pinned)
    detail = table.spark.sql(f"DESCRIBE DETAIL {table.at.sql}").collect()[0].asDict(recursive=True)
    compacted, notes = _optimize(table, detail, upkeep)
    if not upkeep.dry_run:
        _keep_history(table, detail["properties"] or {}, upkeep)
    listed = _data_files(table.uri)
    needed = {_relative(path, detail["location"]) for paths in readable.values() for path in paths}
    garbage = _vacuum(table, listed, needed if upkeep.pinned else None, detail["location"], upkeep)
    drafts, draft_bytes = remove_drafts(open_file_store(table.uri), table.uri, upkeep)
    sizes = {file.path: file.size for file in listed}
    if upkeep.dry_run:
        removed, freed = len(garbage), sum(sizes.get(path, 0) for path in garbage)
        after = TableState(before.files - removed, before.bytes - freed, before.versions)
    else:
        left = {file.path for file in _data_files(table.uri)}
        removed, freed = len(sizes.keys() - left), sum(size for path, size in sizes.items() if path not in left)
        after = _delta_state(table, upkeep)
    return Maintained(before, after, removed, freed + draft_bytes, drafts, compacted, lost, notes)


def _data_files(uri: str) -> list[FileInfo]:
    found = open_file_store(uri).list_files(uri)
    return [
        file
        for file in found
        if not file.path.startswith("_delta_log/") and file.path.endswith(".parquet") and not _is_hidden(file.path)
    ]


def _delta_state(table: DeltaOfflineTable, upkeep: Upkeep) -> TableState:
    data = _data_files(table.uri)
    versions = len(kept_versions(_commit_times(table), upkeep.since_us, upkeep.pinned))
    return TableState(len(data), sum(file.size for file in data), versions)


def _commit_times(table: DeltaOfflineTable) -> dict[int, int]:
    """When each version was written, of those whose commit is still in the log."""
    commits = open_file_store(table.uri).list_files(joined(table.uri, "_delta_log"))
    named = [(_VERSION["delta"].fullmatch(file.path), file.modified_us) for file in commits]
    return {int(name[1]): at for name, at in named if name}


def _relative(path: str, location: str) -> str:
    return path.removeprefix(location.rstrip("/")).lstrip("/")


def _readable(table: DeltaOfflineTable, versions: Collection[int]) -> tuple[dict[int, list[str]], tuple[int, ...]]:
    """The files of each pinned version, and the versions that Delta cannot build from its log any more."""
    files = {version: _files_or_none(table, version) for version in sorted(versions)}
    readable = {version: found for version, found in files.items() if found is not None}
    return readable, tuple(version for version in files if version not in readable)


def _files_or_none(table: DeltaOfflineTable, version: int) -> list[str] | None:
    """None only where Delta says that the version is not there: after any other failure nothing may be removed."""
    try:
        with session_conf(table.spark, ANY_VERSION):
            return list(table.read_all(version).inputFiles())
    except Exception as error:
        if not NOT_THERE.search(str(error)):
            raise
        return None


def _optimize(
    table: DeltaOfflineTable, detail: Mapping[str, Any], upkeep: Upkeep
) -> tuple[tuple[int, int] | None, tuple[str, ...]]:
    """OPTIMIZE compacts, and clusters a clustered table. Its commit repeats the note: the rows are what they were."""
    live, size = detail["numFiles"], detail["sizeInBytes"]
    wanted = files_wanted([size // max(live, 1)] * live)
    if wanted is None and not (detail.get("clusteringColumns") and live > 1):
        return None, ()
    if upkeep.dry_run:
        return (live, wanted or live), ()
    try:
        with session_conf(table.spark, ANY_VERSION, may_refuse=True):  # a maintenance beside this one may replace it
            schema = table.read_all().schema
        if not detail.get("clusteringColumns") and EVENT_TIME in schema.names:
            columns = ", ".join(f"`{name}`" for name in clustered_by(schema))
            _committed(table, f"ALTER TABLE {table.at.sql} CLUSTER BY ({columns})", upkeep)
        done = _committed(table, f"OPTIMIZE {table.at.sql}", upkeep)
    except LakeError as error:
        return None, (f"not compacted: {error.problem}",)
    metrics = done[0]["metrics"]
    if not metrics["numFilesRemoved"]:
        return None, ()
    return (live, live - metrics["numFilesRemoved"] + metrics["numFilesAdded"]), ()


def _keep_history(table: DeltaOfflineTable, properties: Mapping[str, str], upkeep: Upkeep) -> None:
    """Delta reads no version that was replaced a week ago, and removes commits after 30 days. A table with pins, or
    with a longer retention, is told to keep both for longer, until that is over."""
    hours = _PINNED_HOURS if upkeep.pinned else math.ceil(upkeep.retention_us / _HOUR_US)
    name = f"ALTER TABLE {table.at.sql}"
    if hours <= _DEFAULT_HOURS:
        if _KEEPS in properties:
            names = f"'{_FILES_KEPT}', '{_LOG_KEPT}', '{_KEEPS}'"
            _committed(table, f"{name} UNSET TBLPROPERTIES IF EXISTS ({names})", upkeep)
    elif properties.get(_KEEPS) != str(hours):
        kept = {_FILES_KEPT: f"interval {hours} hours", _LOG_KEPT: f"interval {max(hours, _DEFAULT_LOG_HOURS)} hours"}
        told = ", ".join(f"'{key}' = '{value}'" for key, value in {**kept, _KEEPS: str(hours)}.items())
        _committed(table, f"{name} SET TBLPROPERTIES ({told})", upkeep)


def _committed(table: DeltaOfflineTable, statement: str, upkeep: Upkeep) -> list[Any]:
    """Run a statement whose commit repeats the newest version's note; LakeError when another run was faster."""
    read = table.version() or 0
    done = _noted(table, statement, table.note(read), upkeep)
    written = table.version() or 0
    between = [v for v in range(read + 1, written + 1) if MAINTAINED not in table.note(v)]
    if between:  # a job's version came in between: the newest one has to say what that one said
        again = f"ALTER TABLE {table.at.sql} SET TBLPROPERTIES ('tidemark.maintained' = '{upkeep.run}')"
        _noted(table, again, table.note(between[-1]), upkeep)
    return done


def _noted(table: DeltaOfflineTable, statement: str, note: Note, upkeep: Upkeep) -> list[Any]:
    text = json.dumps({**note, MAINTAINED: upkeep.run})
    conf = {"spark.databricks.delta.commitInfo.userMetadata": text}
    # a catalog's table tells upkeep by its history, too, and serverless compute takes no note from a session
    with writing(table.spark, table=True), session_conf(table.spark, conf, may_refuse=in_catalog(table) is not None):
        try:
            return list(table.spark.sql(statement).collect())
        except Exception as error:
            if not DELTA_CONFLICT.search(str(error)):
                raise
            problem = "another run wrote a version meanwhile"
            raise LakeError(f"Table '{table.uri}'", problem, hint="run `tidemark maintain` again") from error


# in a catalog: nothing is told by files


def _maintain_in_catalog(table: DeltaOfflineTable, at: CatalogTable, upkeep: Upkeep) -> Maintained:
    """Files and bytes are those of the newest version, whose are all that a catalog tells of."""
    before, detail = _catalog_state(at, upkeep)
    lost = tuple(sorted(upkeep.pinned - {*at.versions()}))
    compacted, notes = _optimize(table, detail, upkeep)
    if not upkeep.dry_run:
        _keep_history(table, detail["properties"] or {}, upkeep)
    removed, freed = 0, 0
    if upkeep.pinned:
        notes = (*notes, "not vacuumed: a catalog's VACUUM knows no pins, so all versions stay readable")
    else:
        removed, freed = _vacuum_in_catalog(table, at, upkeep)
    drafts, draft_bytes = remove_drafts(open_file_store(at.beside), at.beside, upkeep)
    after, _ = _catalog_state(at, upkeep)
    return Maintained(before, after, removed, freed + draft_bytes, drafts, compacted, lost, notes)


def _catalog_state(at: CatalogTable, upkeep: Upkeep) -> tuple[TableState, dict[str, Any]]:
    detail = at.detail()
    versions = len(kept_versions(at.times_us(), upkeep.since_us, upkeep.pinned))
    return TableState(detail["numFiles"] or 0, detail["sizeInBytes"] or 0, versions), detail


def _vacuum_in_catalog(table: DeltaOfflineTable, at: CatalogTable, upkeep: Upkeep) -> tuple[int, int]:
    """Files that were removed, and their bytes; of those that would be, how many."""
    hours = math.ceil(upkeep.retention_us / _HOUR_US)
    conf = {_LOGGED: "true", **_OUR_HOURS}  # its commits tell what it did
    before = at.newest() or 0
    with session_conf(table.spark, conf, may_refuse=True):
        told = table.spark.sql(f"VACUUM {at.sql} RETAIN {hours} HOURS{' DRY RUN' * upkeep.dry_run}").collect()
    if upkeep.dry_run:
        return sum(row["path"].endswith(".parquet") for row in told), 0
    removed = int(at.metrics("VACUUM END", before).get("numDeletedFiles", 0))
    freed = int(at.metrics("VACUUM START", before).get("sizeOfDataToDelete", 0))
    return removed, freed if removed else 0


def _vacuum(
    table: DeltaOfflineTable, listed: Sequence[FileInfo], needed: set[str] | None, location: str, upkeep: Upkeep
) -> list[str]:
    """VACUUM; gives what a dry run would remove.

    With pins it is over old files that no kept version needs, and they may all go; the table itself is set to keep
    what was replaced for ten years then.
    """
    hours = math.ceil(upkeep.retention_us / _HOUR_US)
    conf = {_LOGGED: "false", **_OUR_HOURS}  # its two commits would be versions without a note
    using, inventory = "", f"tidemark_inventory_{uuid.uuid4().hex}"
    if needed is not None:
        rows = [
            (joined(location, file.path), file.size, False, file.modified_us // 1000)
            for file in listed
            if file.path not in needed and file.modified_us < upkeep.since_us
        ]
        kinds = "path string, length bigint, isDir boolean, modificationTime bigint"
        table.spark.createDataFrame(rows, kinds).createOrReplaceTempView(inventory)
        hours = 0
        using = f" USING INVENTORY (SELECT * FROM {inventory})"  # noqa: S608 - a name that was made here
    statement = f"VACUUM delta.`{table.uri}`{using} RETAIN {hours} HOURS"
    try:
        with session_conf(table.spark, conf):
            if not upkeep.dry_run:
                table.spark.sql(statement).collect()
                return []
            return [_relative(row["path"], location) for row in table.spark.sql(f"{statement} DRY RUN").collect()]
    finally:
        table.spark.catalog.dropTempView(inventory)
