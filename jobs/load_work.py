"""What a load has to bring online: all entities, those that changed since the store's last load, or none.

    earlier loads whose values the store may hold  +  the table now  ->  Work(how, why, ...)  ->  loaded

Rows are (keys, event_time, features, limit): a stored value up to `limit` may be replaced by an older one, and an
entity without an event_time is removed. So corrected and deleted rows arrive as surely as new ones.

They are found in the table's files where that can be done (file_load.py), else by Spark (transforms/latest.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from connectors.codec import CODEC_VERSION
from connectors.offline_tables import WENT, OfflineTable, Span, others_than
from connectors.plain_files import PlainChanges, PlainFiles, plain_changes, plain_files
from connectors.readable import any_version, what_is_gone
from connectors.receipts import Load
from connectors.table_stats import table_bytes
from feature_defs import durations
from feature_defs.join_plan import GroupJoin
from feature_defs.model import EVENT_TIME
from jobs.file_load import LatestOfFiles, columns_of, latest_of_files, load_files, touched_in
from jobs.online_load import LoadCounts, load_rows
from jobs.transforms.as_of import latest_rows
from jobs.transforms.latest import (
    FIRST,
    LIMIT,
    latest_of_all,
    latest_of_touched,
    newest_times,
    touched,
    with_all_limits,
    without_limits,
)
from jobs.transforms.locate import Keep
from jobs.transforms.rows import after

Batches = Iterator[pa.RecordBatch]
_LARGE = 64 << 20  # bytes; of less, choosing among all rows is quicker than a step of its own
_LITTLE = 8 << 20  # bytes of files that one task reads as soon as several, and whose entities the driver holds
FULL, CHANGED, NOTHING = "full", "changed", "nothing new"
FIRST_LOAD = "first load"
# what Delta and Spark say of changes that were not recorded, or that maintenance has taken
_NO_CHANGES = re.compile(
    r"\[(DELTA_MISSING_CHANGE_DATA|DELTA_CHANGE_(TABLE_FEED|DATA_F)\w+|DELTA_VERSION\w*_NOT_\w+|DELTA_FILE_NOT_FOUND\w*"
    r"|DELTA_LOG_FILE_NOT_FOUND\w*|DELTA_TRUNCATED_TRANSACTION_LOG|FAILED_READ_FILE\.\w*NOT_EXIST|PATH_NOT_FOUND)"
)


@dataclass(frozen=True)
class Work:
    """`why` says why all is loaded, and what cannot be known then. Of files or rows one is there, unless nothing is to
    be done; files also with `by_spark`, the same work without them."""

    how: str
    why: str
    rows: DataFrame | None = None
    entities: int = 0  # at least so many, as they were counted before
    files: LatestOfFiles | None = None
    by_spark: Callable[[], Work] | None = None


def loaded(
    work: Work, load: Callable[[Batches], Batches], subject: str, *, spark: SparkSession, writers: int | None = None
) -> LoadCounts:
    """Do it by this partition function, in at most so many tasks at once."""
    if work.files is not None:
        counts = load_files(spark, work.files, load, subject, writers=writers)
        if counts is not None:
            return counts
    if work.by_spark is not None:
        work = work.by_spark()
    if work.rows is None:
        return LoadCounts()
    rows = work.rows if writers is None else work.rows.coalesce(writers)
    return load_rows(rows, load, subject, least=work.entities)


@dataclass(frozen=True)
class _Rows:
    """The rows of a table's version, read from its files where that can be done."""

    table: OfflineTable
    version: int
    files: PlainFiles | None

    def after(self, time_us: int | None) -> DataFrame:
        if self.files is None:
            rows = self.table.read(self.version)
        else:
            near = self.files if time_us is None else self.files.after(time_us)
            rows = near.rows().coalesce(1) if near.bytes <= _LITTLE else near.rows()
        return rows if time_us is None else rows.where(after(time_us))

    @property
    def are_many(self) -> bool:
        return (self.files.bytes if self.files else table_bytes(self.table, self.version)) > _LARGE


@dataclass(frozen=True)
class Earlier:
    """The loads whose values a store may hold; `unknown` says why it may hold others, or not all of these."""

    loads: tuple[Load, ...] = ()
    unknown: str = FIRST_LOAD

    @property
    def until_us(self) -> int:
        """The latest time of their values."""
        return max((load.until_us for load in self.loads), default=durations.LEAST_US)


@dataclass(frozen=True)
class Loading:
    """One group to load: its table at a version, the number of its definition, and the time that "latest" means."""

    table: OfflineTable
    version: int
    group: GroupJoin
    definition: int
    now_us: int

    def work(self, earlier: Earlier, *, full: bool, keep: Keep) -> Work:
        if not earlier.loads:
            return self._all(earlier.unknown, keep)
        why = self._why_all(earlier, full=full)
        if not why:
            found = self._since(earlier.loads, keep)
            if found is not None:
                return found
            why = f"the changes since version {min(load.table_version for load in earlier.loads)} are gone"
        return self._all_since(earlier.loads, why, keep)

    @cached_property
    def _rows(self) -> _Rows:
        return _Rows(self.table, self.version, plain_files(self.table, self.version))

    def _all(self, why: str, keep: Keep) -> Work:
        def by_spark() -> Work:
            latest, entities = self._latest(keep, with_limits=False)
            return Work(FULL, why, without_limits(latest), entities)

        files = self._rows.files
        found = latest_of_files(files, self.group, now_us=self.now_us) if files else None
        return by_spark() if found is None else Work(FULL, why, files=found, by_spark=by_spark)

    def _latest(self, keep: Keep, *, with_limits: bool) -> tuple[DataFrame, int]:
        rows = self._rows
        if not rows.are_many:
            return latest_rows(rows.after(None), self.group, now_us=self.now_us), 0
        recent_us = rows.files.recent_after() if rows.files else None
        return latest_of_all(
            rows.after, self.group, keep, now_us=self.now_us, recent_us=recent_us, one_each=with_limits
        )

    def _why_all(self, earlier: Earlier, *, full: bool) -> str:
        if earlier.unknown:
            return earlier.unknown
        if full:
            return "as asked"
        if any(load.codec != CODEC_VERSION for load in earlier.loads):
            return "packed anew"
        return "" if all(load.definition == self.definition for load in earlier.loads) else "defined anew"

    def _since(self, loads: Sequence[Load], keep: Keep) -> Work | None:
        """The entities whose latest row may have changed; None when the table does not tell which."""
        if not all(map(self._is_of_table, loads)):
            return None
        rows, since = self._rows, _since(loads, self.now_us)
        try:
            with any_version(self.table.spark):
                changed = self._changed_files(since, rows.files) if rows.files else None
                if changed is not None:
                    return self._of_files(since, changed, rows, keep)
                changes = None
                if since.version < self.version:
                    changes = self.table.changes(since.version, self.version)
                    if changes is None:
                        return None
                visible = rows.after(None).where(since.coming.condition)
                if changes is not None:
                    changes = self._gone(changes, since)
                found = touched(changes, visible, self.group.keys, now_us=self.now_us, seen_us=since.seen_us)
                return self._of(found, rows, keep)
        except Exception as error:
            if not _NO_CHANGES.search(str(error)):
                raise
            return None

    def _changed_files(self, since: _Since, files: PlainFiles) -> PlainChanges | None:
        if since.version < self.version:
            return plain_changes(self.table, files, since.version, self.version)
        nothing = replace(files, files=())
        return PlainChanges(nothing, nothing)

    def _of_files(self, since: _Since, changed: PlainChanges, rows: _Rows, keep: Keep) -> Work:
        assert rows.files is not None
        coming = rows.files.between(since.coming.after_us, since.coming.until_us).without(changed.came)
        if not changed.bytes and not coming.files:
            return Work(NOTHING, "")
        if changed.bytes + coming.bytes > _LITTLE or since.seen_us > self.now_us:
            return self._of(self._touched(since, changed, coming, in_one_task=False), rows, keep)
        came, went, coming_rows = (columns_of(files, self.group) for files in (changed.came, changed.went, coming))
        if came is None or went is None or coming_rows is None:
            return self._of_few(since, changed, coming, rows)
        entities = touched_in(came, went, coming_rows, self.group.keys, span=since.coming, now_us=self.now_us)
        if not len(entities):
            return Work(NOTHING, "")
        near = rows.files if (first_us := _all_after(entities)) is None else rows.files.after(first_us - 1)
        found = latest_of_files(near, self.group, now_us=self.now_us, touched=entities.drop_columns([FIRST]))
        if found is None:
            return self._of_few(since, changed, coming, rows)
        return Work(CHANGED, "", files=found, by_spark=lambda: self._of_few(since, changed, coming, rows))

    def _touched(self, since: _Since, changed: PlainChanges, coming: PlainFiles, *, in_one_task: bool) -> DataFrame:
        visible = coming.rows().where(since.coming.condition) if coming.files else None
        changes = self._gone(changed.rows(), since) if changed.bytes else None
        return touched(
            changes, visible, self.group.keys, now_us=self.now_us, seen_us=since.seen_us, in_one_task=in_one_task
        )

    def _of_few(self, since: _Since, changed: PlainChanges, coming: PlainFiles, rows: _Rows) -> Work:
        """Few changes are told to the driver: a step that keeps them would take longer than all others."""
        found = self._touched(since, changed, coming, in_one_task=True)
        entities = found.toArrow()
        if not len(entities):
            return Work(NOTHING, "")
        limits = entities[LIMIT]
        counts = {
            "entities": len(entities),
            "first": pc.min(entities[FIRST].filter(pc.is_null(limits))).as_py(),
            "lost": len(entities) - limits.null_count,
        }
        return self._of_entities(found.sparkSession.createDataFrame(entities, found.schema), counts, rows)

    def _of(self, found: DataFrame, rows: _Rows, keep: Keep) -> Work:
        lost = F.col(LIMIT).isNotNull()
        told = [
            F.count(F.lit(1)).alias("entities"),
            F.min(F.when(~lost, F.col(FIRST))).alias("first"),
            F.count(F.when(lost, 1)).alias("lost"),
        ]
        return self._of_entities(*keep(found, told), rows)

    def _of_entities(self, entities: DataFrame, counts: Mapping[str, Any], rows: _Rows) -> Work:
        if not counts["entities"]:
            return Work(NOTHING, "")
        found = latest_of_touched(
            rows.after, entities, self.group, first_us=counts["first"], lost=counts["lost"], now_us=self.now_us
        )
        return Work(CHANGED, "", found, counts["entities"])

    def _is_of_table(self, load: Load) -> bool:
        """Whether it was of this table, not of one that was removed and made anew at its place."""
        there = load.table_version <= self.version
        return there and self.table.note(load.table_version).get("run") == load.table_run

    def _all_since(self, loads: Sequence[Load], why: str, keep: Keep) -> Work:
        """Everything, with what the table held at the earlier loads: entities that are no more, values that are no
        more."""
        latest, entities = self._latest(keep, with_limits=True)
        spark, held = latest.sparkSession, dict[int, int]()
        for load in loads:
            held[load.table_version] = max(load.until_us, held.get(load.table_version, load.until_us))
        there = {load.table_version for load in loads if self._is_of_table(load)}
        there = {version for version in there if not what_is_gone(spark, self.table, version)}
        if there != held.keys():
            why += "; the rows of the last load are not there any more: what went since stays online until its ttl"
        if not there:
            return Work(FULL, why, without_limits(latest), entities)
        with any_version(spark):  # kept at once: Spark Connect looks at the version only when it is read
            old = [self._held(version, held[version]) for version in sorted(there)]
            newest = reduce(DataFrame.unionByName, old).groupBy(*self.group.keys).agg(F.max(LIMIT).alias(LIMIT))
            before, _ = keep(newest, [F.count(F.lit(1)).alias("entities")])
        return Work(FULL, why, with_all_limits(latest, before, list(self.group.keys)), entities)

    def _held(self, version: int, until_us: int) -> DataFrame:
        """(keys, limit) of the entities of which a version may have brought values of times up to this one."""
        keys, rows = list(self.group.keys), self.table.read(version)
        seen = newest_times(rows, keys, now_us=min(until_us, self.now_us))
        if until_us <= self.now_us:
            return seen
        went = self._not_there(rows.where(Span(self.now_us, until_us).condition))
        return seen.unionByName(newest_times(went, keys, now_us=until_us))

    def _gone(self, changes: DataFrame, since: _Since) -> DataFrame:
        """The changes that count, where an earlier load was of a later time: see `_not_there`."""
        if since.seen_us <= self.now_us:
            return changes
        later = changes.where(F.col(WENT)).where(Span(self.now_us, since.seen_us).condition)
        return changes.where(~after(self.now_us)).unionByName(self._not_there(later))

    def _not_there(self, rows: DataFrame) -> DataFrame:
        """Of rows whose time has not come again those that the table lacks now: the store is not taken back to now."""
        return others_than(rows, self._rows.after(self.now_us), [*self.group.keys, EVENT_TIME])


@dataclass(frozen=True)
class _Since:
    """Where a load goes on: changes since a version of the table, rows whose time has come, and up to which time rows
    that went may be online."""

    version: int
    coming: Span
    seen_us: int


def _since(loads: Sequence[Load], now_us: int) -> _Since:
    then_us = min(load.now_us for load in loads)
    seen_us = max(now_us, *(load.until_us for load in loads))
    return _Since(min(load.table_version for load in loads), Span(then_us, max(now_us, then_us)), seen_us)


def _all_after(entities: pa.Table) -> int | None:
    """The least time that rows came with; None when an entity lost one, and needs all its rows."""
    lost = entities[LIMIT].null_count < len(entities)
    return None if lost else pc.min(entities[FIRST]).as_py()
