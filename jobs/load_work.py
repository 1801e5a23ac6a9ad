"""What a load has to bring online: all entities, those that changed since the store's last load, or none.

    the receipt that the store names  +  the table now  ->  Work(how, why, rows)

Rows are (keys, event_time, features, limit): a stored value up to `limit` may be replaced by an older one, and an
entity without an event_time is removed. So corrected and deleted rows arrive as surely as new ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from connectors.codec import CODEC_VERSION
from connectors.offline_tables import OfflineTable, Span
from connectors.readable import any_version, what_is_gone
from connectors.receipts import Receipt
from connectors.table_stats import table_bytes
from feature_defs.join_plan import GroupJoin
from jobs.transforms.as_of import latest_rows
from jobs.transforms.latest import (
    FIRST,
    LIMIT,
    latest_of_touched,
    newest_rows,
    newest_times,
    touched,
    with_all_limits,
    without_limits,
)
from jobs.transforms.locate import Keep

_LARGE = 64 << 20  # bytes; of less, choosing among all rows is quicker than a step of its own
FULL, CHANGED, NOTHING = "full", "changed", "nothing new"
FIRST_LOAD = "first load"
# what Delta and Spark say of changes that were not recorded, or that maintenance has taken
_NO_CHANGES = re.compile(
    r"\[(DELTA_MISSING_CHANGE_DATA|DELTA_CHANGE_(TABLE_FEED|DATA_F)\w+|DELTA_VERSION\w*_NOT_\w+|DELTA_FILE_NOT_FOUND\w*"
    r"|DELTA_LOG_FILE_NOT_FOUND\w*|DELTA_TRUNCATED_TRANSACTION_LOG|FAILED_READ_FILE\.\w*NOT_EXIST|PATH_NOT_FOUND)"
)


@dataclass(frozen=True)
class Work:
    """`why` says why all is loaded, and what cannot be known then."""

    how: str
    why: str
    rows: DataFrame | None


@dataclass(frozen=True)
class Loading:
    """One group to load: its table at a version, the number of its definition, and the time that "latest" means."""

    table: OfflineTable
    version: int
    group: GroupJoin
    definition: int
    now_us: int

    def work(self, receipt: Receipt | None, *, full: bool, keep: Keep) -> Work:
        if receipt is None:
            return Work(FULL, FIRST_LOAD, without_limits(self._latest(keep)))
        why = self._why_all(receipt, full=full)
        if not why:
            found = self._since(receipt, keep)
            if found is not None:
                return found
            why = f"the changes since version {receipt.table_version} are gone"
        return self._all_since(receipt, why, keep)

    def _latest(self, keep: Keep) -> DataFrame:
        rows = self.table.read(self.version)
        if table_bytes(self.table, self.version) > _LARGE:
            rows = newest_rows(rows, self.group, keep, now_us=self.now_us)
        return latest_rows(rows, self.group, now_us=self.now_us)

    def _why_all(self, receipt: Receipt, *, full: bool) -> str:
        if full:
            return "as asked"
        if receipt.codec != CODEC_VERSION:
            return "packed anew"
        return "" if receipt.definition == self.definition else "defined anew"

    def _since(self, receipt: Receipt, keep: Keep) -> Work | None:
        """The entities whose latest row may have changed; None when the table does not tell which."""
        if not self._is_same_table(receipt):
            return None
        rows, keys = self.table.read(self.version), list(self.group.keys)
        span = Span(receipt.now_us, max(self.now_us, receipt.now_us))
        lost = F.col(LIMIT).isNotNull()
        told = [
            F.count(F.lit(1)).alias("entities"),
            F.min(F.when(~lost, F.col(FIRST))).alias("first"),
            F.count(F.when(lost, 1)).alias("lost"),
        ]
        try:
            with any_version(rows.sparkSession):
                changes = None
                if receipt.table_version < self.version:
                    changes = self.table.changes(receipt.table_version, self.version)
                    if changes is None:
                        return None
                kept, counts = keep(touched(changes, rows.where(span.condition), keys, now_us=self.now_us), told)
        except Exception as error:
            if not _NO_CHANGES.search(str(error)):
                raise
            return None
        return self._of(kept, counts, rows)

    def _of(self, entities: DataFrame, counts: Mapping[str, Any], rows: DataFrame) -> Work:
        if not counts["entities"]:
            return Work(NOTHING, "", None)
        found = latest_of_touched(
            rows, entities, self.group, first_us=counts["first"], lost=counts["lost"], now_us=self.now_us
        )
        return Work(CHANGED, "", found)

    def _is_same_table(self, receipt: Receipt) -> bool:
        """Not one that was removed and made anew at its place."""
        there = receipt.table_version <= self.version
        return there and self.table.note(receipt.table_version).get("run") == receipt.table_run

    def _all_since(self, receipt: Receipt, why: str, keep: Keep) -> Work:
        """Everything, with what the table held at the last load: entities that are no more, values that are no more."""
        latest = self._latest(keep)
        spark = latest.sparkSession
        if not self._is_same_table(receipt) or what_is_gone(spark, self.table, receipt.table_version):
            why += "; the rows of the last load are not there any more: what went since stays online until its ttl"
            return Work(FULL, why, without_limits(latest))
        seen_us = min(receipt.now_us, self.now_us)  # what only a later time would show did not go
        with any_version(spark):  # kept at once: Spark Connect looks at the version only when it is read
            old = newest_times(self.table.read(receipt.table_version), list(self.group.keys), now_us=seen_us)
            before, _ = keep(old, [F.count(F.lit(1)).alias("entities")])
        return Work(FULL, why, with_all_limits(latest, before, list(self.group.keys)))
