"""Offline tables: one protocol, a Delta and a Parquet implementation with the same promises.

    rows -> replace -> a new numbered version (all of it or nothing) -> read

A version carries a note (plain data: run id, fingerprint, ...). Delta keeps it in the commit, whether the table is a
folder or a name in a catalog; a Parquet table keeps versions itself:

    TABLE/data/RUN/part-*.parquet     data files, written first, never changed
    TABLE/_tidemark/00000001.json     a manifest a version: its files, schema and note; created exclusively, last
"""

from __future__ import annotations

import json
import re
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from connectors.delta_addresses import ALL, FEED, CatalogTable, Commit, DeltaAddress, Folder
from connectors.delta_commit import STATS, has_checkpoint, knows_bounds, may_replace, replacing
from connectors.delta_log import Action, DeltaVersion, commit_actions, commit_uri, delta_version
from connectors.file_store import FileStore, check_writable, open_file_store
from connectors.lakes import PATTERN, joined
from connectors.row_order import PART, ROWS_A_FILE
from connectors.table_files import Begun, NewFile, begun, given_up, may_open
from feature_defs.errors import DataError, LakeError, UsageError
from feature_defs.expressions import quoted
from feature_defs.model import EVENT_TIME, HIDDEN, REJECTED

Note = Mapping[str, Any]
_ONE_SETTING = threading.Lock()
# of each session: what a setting was before, and what those who hold it now made it
_SETTINGS: WeakKeyDictionary[SparkSession, dict[str, tuple[str | None, list[str]]]] = WeakKeyDictionary()
_ONE_MERGE = threading.Lock()  # what a merge says of its commit is the session's, and threads may share that
MAINTAINED = "maintained"  # in the note of a version that maintenance made of the one before
WENT = HIDDEN + "went"  # whether a changed row is one that went
STAGING = "_staging"  # in a table's folder, what a merge is about to put in it
_ORDERED = ("timestamp", "string", "long", "integer", "date", "decimal")
_MOST_CLUSTERED = 3  # more columns make files that are narrow in none
_PARQUET = {
    "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",  # INT96 has no bounds to skip by, and is slower
    "parquet.dictionary.page.size": "65536",  # values that hardly repeat give their dictionary up early
}
_TABLE = {"parquet.block.row.count.limit": str(PART)}
# What Spark infers of columns, it infers of each expression in terms of each other: for 20 s of three grid points of
# 21 aggregates. Rows are filtered by what the plan says (decision 0025).
_PLANNED = {"spark.sql.constraintPropagation.enabled": "false"}
DELTA_CONFLICT = re.compile(r"\[DELTA_(CONCURRENT_|METADATA_CHANGED|PROTOCOL_CHANGED)")


class OfflineTable(Protocol):
    """A table of a lake with numbered versions. `after` is the version that new rows were made from, None for none:
    a change of part of a table is refused when another run has written meanwhile."""

    @property
    def spark(self) -> SparkSession:
        """The session that reads it."""

    @property
    def uri(self) -> str:
        """Where it is; of a table in a catalog its name."""

    def check_writable(self) -> None:
        """LakeError unless a job may write it: asked before it computes for an hour."""

    def version(self) -> int | None:
        """The newest version; None when there is no table yet."""

    def versions(self) -> list[int]:
        """Every version that the table has a record of; whether its files are still there, reading shows."""

    def read(self, version: int | None = None) -> DataFrame:
        """The feature rows of a version, by default the newest."""

    def read_all(self, version: int | None = None) -> DataFrame:
        """The same with what compute keeps for itself: hidden columns, rows in quarantine."""

    def changes(self, since: int, until: int) -> DataFrame | None:
        """The rows that came and that WENT from one version to a later one; a corrected row is one of each, and some
        did neither. None when the table does not tell; whether vacuum took their files shows when they are read."""

    def note(self, version: int) -> Note:
        """The note of the newest version up to this one that has one: maintenance writes none. Of a version that was
        brought back, by RESTORE, that version's; none where it is not known which that was."""

    def replace(self, rows: DataFrame, note: Note) -> int:
        """Make these rows the table's whole content; gives the new version. Readers see the old rows or the new."""

    def append(self, rows: DataFrame, note: Note, *, after: int) -> int:
        """Add rows, none of which is there."""

    def merge(self, rows: DataFrame, note: Note, *, on: Sequence[str], after: int) -> int:
        """Put these rows in the place of those with equal `on` columns, and add the others."""

    def replace_span(self, rows: DataFrame, note: Note, *, span: Span, after: int) -> int:
        """Make these rows all that the table holds of a span of event_time."""

    def begin(self, schema: StructType) -> Begun | None:
        """A new version of these columns whose files tasks write; None where only Spark writes this table."""

    def finish(self, version: Begun, files: Sequence[NewFile], schema: StructType, note: Note) -> int:
        """Make what tasks have written the table's whole content."""

    def give_up(self, version: Begun) -> None:
        """Remove what tasks have written."""


@dataclass(frozen=True)
class Span:
    """Event times in (after, until], microseconds UTC."""

    after_us: int
    until_us: int

    @property
    def condition(self) -> str:
        return f"{EVENT_TIME} > TIMESTAMP_MICROS({self.after_us}) AND {EVENT_TIME} <= TIMESTAMP_MICROS({self.until_us})"


def shown(rows: DataFrame) -> DataFrame:
    """Feature rows as people see them: no hidden columns, no rows in quarantine."""
    hidden = [name for name in rows.columns if name.startswith(HIDDEN)]
    kept = rows.where(F.col(REJECTED).isNull()) if REJECTED in hidden else rows
    return kept.drop(*hidden)


def others_than(rows: DataFrame, replaced_by: DataFrame, on: Sequence[str]) -> DataFrame:
    """The rows that none of the other rows is equal to in these columns, where a null equals a null."""
    same = [F.col(f"t.`{name}`").eqNullSafe(F.col(f"r.`{name}`")) for name in on]
    return rows.alias("t").join(replaced_by.select(*on).alias("r"), same, "left_anti")


@contextmanager
def session_conf(spark: SparkSession, values: Mapping[str, str], *, may_refuse: bool = False) -> Iterator[None]:
    """Settings of the session for a while. Serverless compute refuses to tell and to change most."""
    held: dict[str, str] = {}
    try:
        for name, value in values.items():
            with suppress(Exception) if may_refuse else nullcontext():
                _hold(spark, name, value)
                held[name] = value
        yield
    finally:
        for name, value in held.items():
            _release(spark, name, value)


def _hold(spark: SparkSession, name: str, value: str) -> None:
    with _ONE_SETTING:
        found = spark.conf.get(name, None)
        spark.conf.set(name, value)
        _SETTINGS.setdefault(spark, {}).setdefault(name, (found, []))[1].append(value)


def _release(spark: SparkSession, name: str, value: str) -> None:
    """Gives back what another thread still holds, and behind the last of them what the first one found."""
    with _ONE_SETTING:
        found, values = _SETTINGS[spark][name]
        values.remove(value)
        if not values:
            del _SETTINGS[spark][name]
        left = values[-1] if values else found
        spark.conf.unset(name) if left is None else spark.conf.set(name, left)


def _takes(spark: SparkSession, values: Mapping[str, str]) -> bool:
    """Whether a session lets these settings be made."""
    with suppress(Exception), session_conf(spark, values):
        return True
    return False


def writing(spark: SparkSession, *, table: bool = False) -> AbstractContextManager[None]:
    """While rows are planned and written to Parquet files; those of a table in parts that a reader can skip."""
    return session_conf(spark, _PARQUET | _PLANNED | (_TABLE if table else {}), may_refuse=True)


def open_table(spark: SparkSession, uri: str, table_format: str) -> OfflineTable:
    """The table at a URI; it need not exist yet."""
    if table_format == "delta":
        return delta_table(spark, uri)
    if table_format == "parquet":
        return ParquetOfflineTable(spark, open_file_store(uri), uri)
    raise UsageError(f"Table '{uri}'", f"format '{table_format}' is not known", hint="use delta or parquet")


def delta_table(spark: SparkSession, uri: str) -> DeltaOfflineTable:
    """The Delta table in a folder."""
    return DeltaOfflineTable(spark, Folder(open_file_store(uri), uri))


def catalog_table(spark: SparkSession, name: str, *, beside: str) -> DeltaOfflineTable:
    """The Delta table of a catalog; `beside` is the URI of a folder for what is no rows of it."""
    return DeltaOfflineTable(spark, CatalogTable(spark, name, beside))


@dataclass(frozen=True)
class DeltaOfflineTable:
    spark: SparkSession
    at: DeltaAddress

    @property
    def uri(self) -> str:
        return self.at.uri

    def check_writable(self) -> None:
        self.at.check_writable()

    def version(self) -> int | None:
        return self.at.newest()

    def versions(self) -> list[int]:
        return self.at.versions()

    def read(self, version: int | None = None) -> DataFrame:
        return shown(self.read_all(version))

    def read_all(self, version: int | None = None) -> DataFrame:
        chosen = _existing(self, version)
        return self.at.loaded(self.spark.read.format("delta").option("versionAsOf", chosen))

    def changes(self, since: int, until: int) -> DataFrame | None:
        if not self.at.has_feed(until):
            return None
        reader = self.spark.read.format("delta").option("readChangeFeed", "true")
        rows = self.at.loaded(reader.option("startingVersion", since + 1).option("endingVersion", until))
        went = F.col("_change_type").isin("delete", "update_preimage")
        told = ("_change_type", "_commit_version", "_commit_timestamp")
        return shown(rows).withColumn(WENT, went).drop(*told)

    def note(self, version: int) -> Note:
        upkeep: list[bool] = []
        for commit in self.at.commits(version):
            if commit.note or commit.restored is not None:
                by_others = {MAINTAINED: "by others"} if upkeep and all(upkeep) else {}
                return {**self._said(commit), **by_others}
            upkeep.append(commit.is_upkeep)
        return {}

    def _said(self, commit: Commit) -> Note:
        """A commit's note; of a RESTORE, which changes rows, that of the version that it brought back."""
        if commit.restored is None:
            return commit.note
        return {name: value for name, value in self.note(commit.restored).items() if name != MAINTAINED}

    def replace(self, rows: DataFrame, note: Note, *, partition_by: Sequence[str] = ()) -> int:
        """As any table's; `partition_by` gives each value of these columns a folder."""
        newest = self.version()
        with self._refusing():
            self.at.prepare(newest, rows.schema, _properties(rows.schema))
        same = newest is not None and not partition_by and _shape(self.read_all(newest)) == _shape(rows)
        options = {} if same else {"overwriteSchema": "true", **_properties(rows.schema)}
        return self._written(rows, note, after=newest, replacing=ALL, partition_by=partition_by, **options)

    def append(self, rows: DataFrame, note: Note, *, after: int) -> int:
        return self._written(rows, note, after=after, replacing=None)

    def replace_span(self, rows: DataFrame, note: Note, *, span: Span, after: int) -> int:
        return self._written(rows, note, after=after, replacing=span.condition)

    def merge(self, rows: DataFrame, note: Note, *, on: Sequence[str], after: int) -> int:
        same = " AND ".join(f"t.`{name}` <=> r.`{name}`" for name in on)
        into = f"MERGE INTO {self.at.sql} t USING {{rows}} r ON {same}"
        # SQL has no other way to give a commit its note and its place in the row of transactions
        conf = {f"spark.databricks.delta.{name}": value for name, value in self._transaction(note, after).items()}
        with self._refusing(), _ONE_MERGE, _staged(self.spark, self.at.beside, rows) as staged:
            if not _takes(self.spark, conf):
                return self._merged_in_span(staged, note, on=on, after=after)
            with session_conf(self.spark, conf), writing(self.spark, table=True):
                self.spark.sql(f"{into} WHEN MATCHED THEN UPDATE SET * WHEN NOT MATCHED THEN INSERT *", rows=staged)
        return self._version_of(conf["spark.databricks.delta.commitInfo.userMetadata"], after)

    def begin(self, schema: StructType) -> Begun | None:
        known = clustered_by(schema)
        is_ours = isinstance(self.at, Folder) and self.uri.startswith("file:") and not PATTERN.search(self.uri)
        if not is_ours or not may_open(self.spark) or not all(knows_bounds(schema[name]) for name in known):
            return None
        after = self.version()
        if after is not None and has_checkpoint(after + 1):
            return None
        made = self._made(schema) if after is None else ()
        try:
            before = self._in_log(after) if after is not None else _of_actions(made)
        except (FileNotFoundError, DataError):  # a log that is being cleaned up, or is not all there
            return None
        return begun(self.uri, after, known, made) if before and self._may_replace(before, schema) else None

    def finish(self, version: Begun, files: Sequence[NewFile], schema: StructType, note: Note) -> int:
        def create(after: int | None) -> int:
            before = None if after is None else self._in_log(after)
            if before is not None and not self._may_replace(before, schema):
                raise FileExistsError
            number = 0 if after is None else after + 1
            told = self._transaction(note, after)["commitInfo.userMetadata"]
            content = replacing(before, version.made, files, schema, told)
            _create(open_file_store(self.uri), commit_uri(self.uri, number), content)
            return number

        return _finished(self, version, create)

    def is_upkeep(self, version: int) -> bool:
        return any(MAINTAINED in commit.note for commit in islice(self.at.commits(version), 1))

    def _may_replace(self, before: DeltaVersion, schema: StructType) -> bool:
        return may_replace(before, schema, _properties(schema).get(STATS))

    def give_up(self, version: Begun) -> None:
        given_up(open_file_store(self.uri), version)

    def _in_log(self, version: int) -> DeltaVersion | None:
        return delta_version(open_file_store(self.uri), self.uri, f"Table '{self.uri}'", version)

    def _made(self, schema: StructType) -> list[Action]:
        """What makes a table of these columns, as Delta does it in another folder."""
        uri = joined(self.at.beside, STAGING, uuid.uuid4().hex)
        try:
            delta_table(self.spark, uri).replace(self.spark.createDataFrame([], schema), {})
            actions = list(commit_actions(open_file_store(uri), uri, 0))
        finally:
            open_file_store(uri).delete(uri)
        return [action for action in actions if {"metaData", "protocol"} & action.keys()]

    def _merged_in_span(self, staged: DataFrame, note: Note, *, on: Sequence[str], after: int) -> int:
        """The same where a session takes no settings, as on serverless compute: a writer has options, MERGE has none.
        All rows between the oldest and the newest that came are written anew."""
        span = _span_of(staged)
        others = others_than(self.read_all(after).where(span.condition), staged, on)
        return self.replace_span(others.unionByName(staged), note, span=span, after=after)

    def _written(
        self,
        rows: DataFrame,
        note: Note,
        *,
        after: int | None,
        replacing: str | None,
        partition_by: Sequence[str] = (),
        **options: str,
    ) -> int:
        told = self._transaction(note, after)
        options |= {name.rpartition(".")[2]: value for name, value in told.items()}
        options["maxRecordsPerFile"] = str(ROWS_A_FILE)
        with self._refusing(), writing(self.spark, table=True):
            self.at.write(rows, options, replacing=replacing, partition_by=partition_by)
        return self._version_of(told["commitInfo.userMetadata"], after)

    def _transaction(self, note: Note, after: int | None) -> dict[str, str]:
        """Delta skips a write whose transaction number is not new, and fails one of two that race for it."""
        return {
            "commitInfo.userMetadata": json.dumps({**note, "commit": uuid.uuid4().hex}),
            "write.txnAppId": "tidemark",
            "write.txnVersion": str(0 if after is None else after + 1),
        }

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except LakeError:
            raise
        except Exception as error:
            if not DELTA_CONFLICT.search(str(error)):
                raise self.at.explained(error) or error from error
            raise _conflict(self.uri) from error

    def _version_of(self, metadata: str, after: int | None) -> int:
        """The version that this commit got; another writer may have committed since."""
        run = json.loads(metadata)["commit"]
        for commit in self.at.commits():
            if after is not None and commit.version <= after:
                break
            if commit.note.get("commit") == run:
                return commit.version
        raise _conflict(self.uri)  # skipped: the table had moved before it began


def _of_actions(made: Sequence[Action]) -> DeltaVersion:
    """A table that is only made."""
    found = {name: value for action in made for name, value in action.items()}
    return DeltaVersion(-1, (), found["metaData"], {}, found["protocol"])


def _past_upkeep(table: DeltaOfflineTable | ParquetOfflineTable, version: int) -> int:
    """The newest version with the same rows: maintenance changes none."""
    newest = table.version() or 0
    while version < newest and table.is_upkeep(version + 1):
        version += 1
    return version


def _create(files: FileStore, uri: str, content: bytes) -> None:
    """Create a version's file. One of this very content is ours: a file system may repeat a call that it has made."""
    try:
        files.create(uri, content)
    except FileExistsError:
        if files.read(uri) != content:
            raise


def _finished(
    table: DeltaOfflineTable | ParquetOfflineTable, version: Begun, create: Callable[[int | None], int]
) -> int:
    """Create a version behind the one that it was begun after, or behind maintenance of that.

    Whatever else fails, its files stay: it may have been created.
    """
    after = version.after
    while True:
        with suppress(FileExistsError):
            return create(after)
        newer = after if after is None else _past_upkeep(table, after)
        if newer == after:
            table.give_up(version)
            raise _conflict(table.uri)
        after = newer


def _conflict(uri: str) -> LakeError:
    hint = "run the job again; nothing of this run is in the table"
    return LakeError(f"Table '{uri}'", "another run wrote a version meanwhile", hint=hint)


def in_catalog(table: OfflineTable) -> CatalogTable | None:
    """The name of a table that is in a catalog: its files are reached by Spark alone."""
    at = table.at if isinstance(table, DeltaOfflineTable) else None
    return at if isinstance(at, CatalogTable) else None


@dataclass(frozen=True)
class ParquetOfflineTable:
    spark: SparkSession
    files: FileStore
    uri: str

    def check_writable(self) -> None:
        check_writable(self.files, self.uri)

    def version(self) -> int | None:
        return max(self.versions(), default=None)

    def versions(self) -> list[int]:
        names = (re.fullmatch(r"(\d{8})\.json", file.path) for file in self.files.list_files(self._manifests))
        return [int(name[1]) for name in names if name]

    def read(self, version: int | None = None) -> DataFrame:
        return shown(self.read_all(version))

    def read_all(self, version: int | None = None) -> DataFrame:
        manifest = self.manifest(_existing(self, version))
        return self._rows_of(manifest["files"], StructType.fromJson(manifest["schema"]))

    def changes(self, since: int, until: int) -> DataFrame | None:
        found = self.changed_files(since, until)
        if found is None:
            return None
        schema = StructType.fromJson(self.manifest(until)["schema"])
        parts = [
            shown(self._rows_of(files, schema)).select("*", F.lit(gone).alias(WENT))
            for files, gone in zip(found, (False, True), strict=True)
        ]
        return parts[0].unionByName(parts[1])

    def changed_files(self, since: int, until: int) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]] | None:
        """The files that came and those that went, some did both; None when a manifest is gone."""
        came: dict[str, Mapping[str, Any]] = {}
        went: dict[str, Mapping[str, Any]] = {}
        try:
            manifests = [self.manifest(version) for version in range(since, until + 1)]
        except LakeError:  # removed by maintenance
            return None
        for then, now in pairwise(manifests):
            if MAINTAINED in now["note"]:  # the same rows in other files
                continue
            before, behind = ({file["path"]: file for file in one["files"]} for one in (then, now))
            came |= {path: file for path, file in behind.items() if path not in before}
            went |= {path: file for path, file in before.items() if path not in behind}
        return list(came.values()), list(went.values())

    def _rows_of(self, files: Sequence[Mapping[str, Any]], schema: StructType) -> DataFrame:
        paths = [joined(self.uri, file["path"]) for file in files]
        return self.spark.read.schema(schema).parquet(*paths) if paths else self.spark.createDataFrame([], schema)

    def note(self, version: int) -> Note:
        found: Note = {}
        while version > 0 and not found:
            try:
                found = dict(self.manifest(version)["note"])
            except LakeError:  # removed by maintenance
                return found
            version -= 1
        return found

    def replace(self, rows: DataFrame, note: Note) -> int:
        return self._committed(rows, note, kept=(), after=self.version())

    def append(self, rows: DataFrame, note: Note, *, after: int) -> int:
        after = _past_upkeep(self, after)
        return self._committed(rows, note, kept=self.manifest(after)["files"], after=after)

    def replace_span(self, rows: DataFrame, note: Note, *, span: Span, after: int) -> int:
        after = _past_upkeep(self, after)
        kept, touched = self._parted(after, span)
        others = touched.where(f"NOT ({span.condition})")
        return self._committed(others.unionByName(rows), note, kept=kept, after=after)

    def merge(self, rows: DataFrame, note: Note, *, on: Sequence[str], after: int) -> int:
        after = _past_upkeep(self, after)
        with _staged(self.spark, self.uri, rows) as staged:
            kept, touched = self._parted(after, _span_of(staged))
            others = others_than(touched, staged, on)
            return self._committed(others.unionByName(staged), note, kept=kept, after=after)

    def _parted(self, version: int, span: Span) -> tuple[list[dict[str, Any]], DataFrame]:
        """The files of a version that hold nothing of the span, and the rows of the others."""
        manifest = self.manifest(version)
        kept = [
            file
            for file in manifest["files"]
            if "oldest" in file and (file["newest"] <= span.after_us or file["oldest"] > span.until_us)
        ]
        touched = [file for file in manifest["files"] if file not in kept]
        return kept, self._rows_of(touched, StructType.fromJson(manifest["schema"]))

    def _committed(self, rows: DataFrame, note: Note, *, kept: Sequence[Mapping[str, Any]], after: int | None) -> int:
        folder = f"data/{uuid.uuid4().hex}"
        try:
            with writing(self.spark, table=True):
                rows.write.option("maxRecordsPerFile", ROWS_A_FILE).parquet(joined(self.uri, folder))
            data = self.data_files(folder, rows.schema)
        except BaseException:  # Ctrl-C too
            self.files.delete(joined(self.uri, folder))
            raise
        try:
            return self._created([*kept, *data], rows.schema, note, after=after)
        except FileExistsError as error:
            self.files.delete(joined(self.uri, folder))
            raise _conflict(self.uri) from error

    def _created(self, files: Sequence[Mapping[str, Any]], schema: StructType, note: Note, *, after: int | None) -> int:
        number = (after or 0) + 1
        manifest = {"files": list(files), "schema": json.loads(schema.json()), "note": dict(note)}
        _create(self.files, self._manifest_uri(number), json.dumps(manifest, indent=1).encode())
        return number

    def is_upkeep(self, version: int) -> bool:
        return MAINTAINED in self.manifest(version)["note"]

    def begin(self, schema: StructType) -> Begun | None:  # noqa: ARG002  # the protocol's
        if not self.uri.startswith("file:") or not may_open(self.spark):
            return None
        return begun(self.uri, self.version(), (EVENT_TIME,))

    def finish(self, version: Begun, files: Sequence[NewFile], schema: StructType, note: Note) -> int:
        data = []
        for file in files:
            span = dict(zip(("oldest", "newest"), file.bounds.get(EVENT_TIME, ()), strict=False))
            data.append({"path": file.path, "bytes": file.bytes, **span})
        return _finished(self, version, lambda after: self._created(data, schema, note, after=after))

    def give_up(self, version: Begun) -> None:
        given_up(self.files, version)

    def data_files(self, folder: str, schema: StructType) -> list[dict[str, Any]]:
        """The files that were written, with the span of event_time that each holds."""
        written = [file for file in self.files.list_files(joined(self.uri, folder)) if file.path.endswith(".parquet")]
        found = [{"path": f"{folder}/{file.path}", "bytes": file.size} for file in written]
        if EVENT_TIME not in schema.names or not written:
            return found
        times = [F.unix_micros(F.min(EVENT_TIME)).alias("oldest"), F.unix_micros(F.max(EVENT_TIME)).alias("newest")]
        rows = self.spark.read.schema(schema).parquet(joined(self.uri, folder))
        spans = {
            row["name"]: row for row in rows.groupBy(F.col("_metadata.file_name").alias("name")).agg(*times).collect()
        }
        for file in found:
            name = str(file["path"]).rpartition("/")[2]
            if (span := spans.get(name)) and span["oldest"] is not None:
                file |= {"oldest": span["oldest"], "newest": span["newest"]}
        return found

    def manifest(self, version: int) -> dict[str, Any]:
        try:
            return dict(json.loads(self.files.read(self._manifest_uri(version))))
        except FileNotFoundError as error:
            hint = f"the newest version is {self.version()}"
            raise LakeError(f"Table '{self.uri}'", f"has no version {version}", hint=hint) from error

    def _manifest_uri(self, version: int) -> str:
        return joined(self._manifests, f"{version:08d}.json")

    @property
    def _manifests(self) -> str:
        return joined(self.uri, "_tidemark")


@contextmanager
def _staged(spark: SparkSession, folder: str, rows: DataFrame) -> Iterator[DataFrame]:
    """The rows, computed once and kept in files until the end: a merge reads them several times."""
    uri = joined(folder, STAGING, uuid.uuid4().hex)
    try:
        with writing(spark):
            rows.write.parquet(uri)
        yield spark.read.schema(rows.schema).parquet(uri)
    finally:
        open_file_store(uri).delete(uri)


def _span_of(rows: DataFrame) -> Span:
    """The event times of some rows."""
    oldest, newest = rows.agg(F.unix_micros(F.min(EVENT_TIME)), F.unix_micros(F.max(EVENT_TIME))).collect()[0]
    return Span((oldest or 0) - 1, newest or 0)


def _shape(rows: DataFrame) -> list[tuple[str, str]]:
    return [(field.name, field.dataType.simpleString()) for field in rows.schema.fields]


def clustered_by(schema: StructType) -> list[str]:
    """What maintenance clusters a Delta table by: event_time, then the keys, which stand before it. Compute writes in
    that order already, within each task. Only types of which Delta keeps a file's least and greatest value."""
    keys = schema.fields[: schema.names.index(EVENT_TIME)]
    return [EVENT_TIME, *(key.name for key in keys if key.dataType.typeName() in _ORDERED)][:_MOST_CLUSTERED]


def _properties(schema: StructType) -> dict[str, str]:
    """Of a new Delta table. Least and greatest values only of what readers look for: those of all columns take as long
    as writing the rows does."""
    known = ",".join(map(quoted, clustered_by(schema))) if EVENT_TIME in schema.names else ""
    stats = {STATS: known} if known else {}
    return {"delta.enableDeletionVectors": "true", FEED: "true", **stats}


def _existing(table: OfflineTable, version: int | None) -> int:
    newest = table.version()
    if newest is None:
        raise LakeError(f"Table '{table.uri}'", "does not exist yet", hint="run `tidemark compute` first")
    if version is not None and version > newest:
        raise LakeError(f"Table '{table.uri}'", f"has no version {version}", hint=f"the newest version is {newest}")
    return newest if version is None else version
