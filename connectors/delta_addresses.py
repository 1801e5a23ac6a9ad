"""Where a Delta table is and what its log says: a folder, whose log is files, or a name in a catalog, which is asked.

    Folder         lake://features/clicks/v1    the log is listed and read, no Spark job
    CatalogTable   main.features.clicks_v1      DESCRIBE HISTORY, writeTo: the folder is the catalog's own affair

A managed table of Unity Catalog refuses its path, so nothing here looks for one. What a table needs besides rows, such
as the staging of a merge, goes into a lake folder beside it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pyspark.sql import DataFrame, DataFrameReader, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from connectors.delta_log import Action, commit_actions, commits, delta_version, info_in, note_of, restored_by
from connectors.file_store import FileStore, check_writable, open_file_store
from feature_defs.errors import LakeError
from feature_defs.expressions import quoted

FEED = "delta.enableChangeDataFeed"  # what loads of the online store read; appended rows cost nothing more
ALL = "true"  # the condition that every row meets
OURS = "tidemark.table"  # a property of each table that was made here
_FIRST = 16  # commits that are asked for at first: a note is rarely older
_NOT_THERE = re.compile(r"\[(TABLE_OR_VIEW_NOT_FOUND|DELTA_TABLE_NOT_FOUND|DELTA_MISSING_DELTA_TABLE)")
# What is said of a table between its folder's first file and its entry in the catalog.
_BEING_MADE = re.compile(r"\[(DELTA_CREATE_TABLE_WITH_NON_EMPTY_LOCATION|(DELTA_)?TABLE_\w*ALREADY_EXISTS)")
_MAKING_SECONDS = 10
# Operations that change no row: ours, an administrator's, or those of a catalog that maintains its tables by itself.
_UPKEEP = re.compile(
    r"OPTIMIZE|VACUUM|CLUSTER BY|(UN)?SET TBLPROPERTIES|COMPUTE STAT|REORG|ADD FEATURE|UPGRADE PROTOCOL"
)


@dataclass(frozen=True)
class Commit:
    """A version's own note, empty where its commit has none, whether it is known to have changed no row, and the
    version that it is a RESTORE of."""

    version: int
    note: Mapping[str, Any]
    is_upkeep: bool = False
    restored: int | None = None


class DeltaAddress(Protocol):
    """How a Delta table is reached."""

    @property
    def uri(self) -> str:
        """What messages call it."""

    @property
    def sql(self) -> str:
        """What SQL calls it."""

    @property
    def beside(self) -> str:
        """The URI of a folder for what a write needs on the way."""

    def newest(self) -> int | None: ...

    def versions(self) -> list[int]: ...

    def commits(self, until: int | None = None) -> Iterator[Commit]:
        """From a version, by default the newest, down to the oldest of which there is a record."""

    def loaded(self, reader: DataFrameReader) -> DataFrame: ...

    def write(
        self, rows: DataFrame, options: Mapping[str, str], *, replacing: str | None, partition_by: Sequence[str]
    ) -> None:
        """Add rows, or put them in the place of those that meet a condition. The options are a writer's."""

    def has_feed(self, version: int) -> bool:
        """Whether changes are recorded."""

    def check_writable(self) -> None:
        """LakeError unless a job may write here: asked before it computes for an hour."""

    def prepare(self, newest: int | None, schema: StructType, properties: Mapping[str, str]) -> None:
        """What has to be there before all rows are replaced; LakeError where they are somebody else's."""

    def explained(self, error: Exception) -> LakeError | None:
        """What a failure means here; None when it says nothing of the address."""


@dataclass(frozen=True)
class Folder:
    files: FileStore
    uri: str

    @property
    def sql(self) -> str:
        return f"delta.`{self.uri}`"

    @property
    def beside(self) -> str:
        return self.uri

    def newest(self) -> int | None:
        # the log is listed rather than asked of Spark: DESCRIBE HISTORY costs a job, a listing does not
        return max(self.versions(), default=None)

    def versions(self) -> list[int]:
        return commits(self.files, self.uri)

    def commits(self, until: int | None = None) -> Iterator[Commit]:
        newest = self.newest() if until is None else until
        return (self._commit(version) for version in range(-1 if newest is None else newest, -1, -1))

    def _commit(self, version: int) -> Commit:
        try:
            info = info_in(commit_actions(self.files, self.uri, version))
        except FileNotFoundError:  # cleaned up by Delta's own retention
            info = {}
        return Commit(version, note_of(info), restored=restored_by(info))

    def loaded(self, reader: DataFrameReader) -> DataFrame:
        return reader.load(self.uri)

    def write(
        self, rows: DataFrame, options: Mapping[str, str], *, replacing: str | None, partition_by: Sequence[str]
    ) -> None:
        span = {} if replacing in (None, ALL) else {"replaceWhere": replacing}
        writer = rows.write.format("delta").mode("append" if replacing is None else "overwrite")
        writer.options(**{**options, **span}).partitionBy(*partition_by).save(self.uri)

    def has_feed(self, version: int) -> bool:
        found = delta_version(self.files, self.uri, f"Table '{self.uri}'", version)
        return found is not None and dict(found.metadata["configuration"]).get(FEED) == "true"

    def check_writable(self) -> None:
        check_writable(self.files, self.uri)

    def prepare(self, newest: int | None, schema: StructType, properties: Mapping[str, str]) -> None:
        """Nothing: the first rows make the table, with their note in the same commit."""

    def explained(self, error: Exception) -> LakeError | None:  # noqa: ARG002  # the protocol's
        return None


@dataclass(frozen=True)
class CatalogTable:
    """`catalog.schema.table`. A table that is there and empty, as a killed run or an administrator has made it, counts
    as not there yet."""

    spark: SparkSession
    uri: str
    beside: str

    @property
    def sql(self) -> str:
        return ".".join(map(quoted, self.uri.split(".")))

    def newest(self) -> int | None:
        last = self._history(1)
        return last[0].version if last and (not last[0].is_upkeep or self._has_rows()) else None

    def _has_rows(self) -> bool:
        """Whether anybody ever wrote to it, as far as the history goes back."""
        oldest = None
        for oldest in self.commits():
            if not oldest.is_upkeep:
                return True
        return oldest is not None and oldest.version > 0

    def versions(self) -> list[int]:
        oldest_first = list(reversed(self._history()))
        empty = next((n for n, commit in enumerate(oldest_first) if not commit.is_upkeep), len(oldest_first))
        is_whole = bool(oldest_first) and oldest_first[0].version == 0
        return [commit.version for commit in (oldest_first[empty:] if is_whole else oldest_first)]

    def commits(self, until: int | None = None) -> Iterator[Commit]:
        first = self._history(_FIRST)
        yield from (commit for commit in first if until is None or commit.version <= until)
        if len(first) == _FIRST:
            oldest = first[-1].version
            older = (commit for commit in self._history() if commit.version < oldest)
            yield from (commit for commit in older if until is None or commit.version <= until)

    def _history(self, most: int | None = None) -> list[Commit]:
        """Newest first; nothing when there is no table."""
        limit = "" if most is None else f" LIMIT {most}"
        try:
            found = self.spark.sql(f"DESCRIBE HISTORY {self.sql}{limit}")
            rows = found.select("version", "operation", "operationParameters", "userMetadata").collect()
        except Exception as error:
            if _NOT_THERE.search(str(error)):
                return []
            raise self.explained(error) or error from error
        return [_commit(row["version"], row.asDict()) for row in rows]

    def times_us(self) -> dict[int, int]:
        """When each version was written."""
        written = F.unix_micros("timestamp").alias("us")
        rows = self.spark.sql(f"DESCRIBE HISTORY {self.sql}").select("version", written).collect()
        return {row["version"]: row["us"] for row in rows}

    def metrics(self, operation: str, after: int) -> dict[str, str]:
        """What the newest commit of an operation after a version counted."""
        rows = self.spark.sql(f"DESCRIBE HISTORY {self.sql} LIMIT {_FIRST}").collect()
        found = (row["operationMetrics"] for row in rows if row["operation"] == operation and row["version"] > after)
        return dict(next(found, None) or {})

    def detail(self) -> dict[str, Any]:
        return dict(self.spark.sql(f"DESCRIBE DETAIL {self.sql}").collect()[0].asDict(recursive=True))

    def _properties(self) -> dict[str, str]:
        return self.detail()["properties"] or {}

    def loaded(self, reader: DataFrameReader) -> DataFrame:
        return reader.table(self.sql)

    def write(
        self, rows: DataFrame, options: Mapping[str, str], *, replacing: str | None, partition_by: Sequence[str]
    ) -> None:
        """By the second writer: what saveAsTable overwrites with, CREATE OR REPLACE TABLE AS SELECT, hands on no
        observed counts, and takes more than the right to MODIFY."""
        assert not partition_by  # of offline tables none is
        writer = rows.writeTo(self.sql).options(**options)
        if replacing is None:
            writer.append()
        else:
            writer.overwrite(F.expr(replacing))

    def has_feed(self, version: int) -> bool:  # noqa: ARG002  # older changes than the feed show when they are read
        return self._properties().get(FEED) == "true"

    def check_writable(self) -> None:
        if not self._refuse_others():
            schema = ".".join(map(quoted, self.uri.split(".")[:2]))
            try:
                self.spark.sql(f"DESCRIBE SCHEMA {schema}").collect()
            except Exception as error:
                raise self.explained(error) or error from error
        check_writable(open_file_store(self.beside), self.beside)

    def prepare(self, newest: int | None, schema: StructType, properties: Mapping[str, str]) -> None:
        """A table that its first rows make would have no note (CREATE TABLE AS SELECT drops it): it is made before."""
        if newest is not None:
            self._refuse_others()
            return
        columns = ", ".join(f"{quoted(field.name)} {field.dataType.simpleString()}" for field in schema.fields)
        told = ", ".join(f"'{name}' = '{value}'" for name, value in {**properties, OURS: "1"}.items())
        made = f"CREATE TABLE IF NOT EXISTS {self.sql} ({columns}) USING delta TBLPROPERTIES ({told})"
        self._make(made)
        if OURS not in self._properties():  # an administrator made it, with columns of no matter
            kept = f"'{FEED}' = 'true', '{OURS}' = '1'"
            self.spark.sql(f"ALTER TABLE {self.sql} SET TBLPROPERTIES ({kept})").collect()

    def _make(self, statement: str) -> None:
        """Where another run is faster, its table is taken, and their writes race for what comes next."""
        until = time.monotonic() + _MAKING_SECONDS
        while True:
            try:
                self.spark.sql(statement).collect()
                return
            except Exception as error:
                if self._history(1):
                    return
                if not _BEING_MADE.search(str(error)) or time.monotonic() > until:
                    raise self.explained(error) or error from error
            time.sleep(0.1)

    def _refuse_others(self) -> bool:
        """Whether there is a table; LakeError for rows that somebody else wrote. The property is what is left of ours
        when the log was cleaned up."""
        is_there = False
        for commit in self.commits():
            is_there = True
            if "run" in commit.note:
                return True
        if not is_there or OURS in self._properties() or not self._has_rows():
            return is_there
        hint = "drop or rename it, or name another schema or table for the group: [tables] in the profile"
        raise LakeError(f"Table '{self.uri}'", "is there, and no run of Tidemark has written it", hint=hint)

    def explained(self, error: Exception) -> LakeError | None:
        text = str(error)
        catalog, schema, _ = self.uri.split(".")
        elsewhere = "or correct `offline` and [tables] in the profile"
        for pattern, problem, hint in (
            (r"\[EXPECT_TABLE_NOT_VIEW", "is a view", f"rename the view, {elsewhere}"),
            (r"\[DELTA_(TABLE_)?ONLY_OPERATION|\[DELTA_NOT_A_DELTA_TABLE", "is there, and is no Delta table",
             f"drop or rename it, {elsewhere}"),
            (r"\[DELTA_CREATE_TABLE_WITH_NON_EMPTY_LOCATION", "its folder holds files, and no table",
             f"a killed run may have left them; whoever keeps the catalog can remove them: {_said(text)}"),
            (r"\[SCHEMA_NOT_FOUND", f"there is no schema {catalog}.{schema}",
             f"CREATE SCHEMA {catalog}.{schema}, {elsewhere}"),
            (r"\[(NO_SUCH_)?CATALOG(_NOT_FOUND)?|\[REQUIRES_SINGLE_PART_NAMESPACE|Couldn't find a catalog",
             f"there is no catalog {catalog} here", f"SHOW CATALOGS tells which there are; {elsewhere[3:]}"),
            (r"\[\w*INSUFFICIENT_P|PERMISSION_DENIED|\[UNAUTHORIZED|SQLSTATE: 42501|User does not have ",
             f"the catalog refuses: {_said(text)}",
             f"GRANT USE CATALOG on {catalog}, and USE SCHEMA, CREATE TABLE, SELECT and MODIFY on {catalog}.{schema}"),
        ):  # fmt: skip
            if re.search(pattern, text):
                return LakeError(f"Table '{self.uri}'", problem, hint=hint)
        return None


def _commit(version: int, info: Action) -> Commit:
    note, operation = note_of(info), info["operation"] or ""
    is_upkeep = not note and (operation == "CREATE TABLE" or _UPKEEP.match(operation) is not None)
    return Commit(version, note, is_upkeep, restored_by(info))


def _said(text: str) -> str:
    """A server's words, without what is for its developers."""
    return " ".join(re.split(r"SQLSTATE|JVM stacktrace|\n\s+at ", text)[0].split())[:300]
