"""What the files of a table hold, told from their footers: rows and the span of event_time, no Spark job.

a version's files -> footers -> FileStats -> those that a reader of a span of time opens

The files of a table in a catalog are not ours to open: a query over its event_time tells the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
from pyarrow import parquet
from pyspark.sql import functions as F

from connectors.delta_log import delta_version
from connectors.file_store import FileStore, open_file_store
from connectors.lakes import joined
from connectors.offline_tables import OfflineTable, ParquetOfflineTable, in_catalog
from feature_defs.errors import DataError
from feature_defs.model import EVENT_TIME

_READERS = 16  # footers at once


@dataclass(frozen=True)
class FileStats:
    """A Parquet file: bytes, rows, columns, and its oldest and newest time; None where its footer does not tell."""

    bytes: int
    rows: int
    columns: tuple[str, ...]
    oldest_us: int | None
    newest_us: int | None

    def may_hold(self, after_us: int | None, until_us: int | None) -> bool:
        """Whether a row of (after, until] may be in it."""
        return may_hold(self.oldest_us, self.newest_us, after_us=after_us, until_us=until_us)


def may_hold(oldest_us: int | None, newest_us: int | None, *, after_us: int | None, until_us: int | None) -> bool:
    """Whether a file of these bounds may have a row of (after, until]."""
    if oldest_us is None or newest_us is None:
        return True
    return (until_us is None or oldest_us <= until_us) and (after_us is None or newest_us > after_us)


def table_bytes(table: OfflineTable, version: int) -> int:
    """How much the files of a table's version hold, without opening them."""
    if isinstance(table, ParquetOfflineTable):
        return sum(file["bytes"] for file in table.manifest(version)["files"])
    if named := in_catalog(table):
        return int(named.detail()["sizeInBytes"] or 0)  # of the newest version, which is what loads read
    found = delta_version(open_file_store(table.uri), table.uri, f"Table '{table.uri}'", version)
    return sum(add["size"] for add in found.adds) if found else 0


def table_stats(table: OfflineTable, version: int) -> list[FileStats]:
    """The files of a table's version."""
    if in_catalog(table):
        return _queried(table, version)
    files = open_file_store(table.uri)
    if isinstance(table, ParquetOfflineTable):
        uris = [joined(table.uri, file["path"]) for file in table.manifest(version)["files"]]
    else:
        uris = delta_files(files, table.uri, version)
    return files_stats(files, uris, EVENT_TIME)


def _queried(table: OfflineTable, version: int) -> list[FileStats]:
    rows = table.read_all(version)
    time = F.unix_micros(EVENT_TIME)
    told = rows.groupBy("_metadata.file_path", "_metadata.file_size").agg(F.count("*"), F.min(time), F.max(time))
    columns = tuple(rows.columns)
    return [FileStats(size, count, columns, low, high) for _, size, count, low, high in told.collect()]


def delta_files(files: FileStore, uri: str, version: int | None = None) -> list[str]:
    """The URIs of the files of a Delta table's version, by default the newest."""
    subject = f"Table '{uri}'"
    found = delta_version(files, uri, subject, version)
    if found is None:
        raise DataError(subject, "there is no Delta table", hint="check the path")
    paths = dict.fromkeys(unquote(add["path"]) for add in found.adds)
    return [path if ":" in path.partition("/")[0] else joined(uri, path) for path in paths]


def files_stats(files: FileStore, uris: Sequence[str], time: str) -> list[FileStats]:
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(lambda uri: _stats(files, uri, time), uris))


def _stats(files: FileStore, uri: str, time: str) -> FileStats:
    with files.open(uri) as content:
        size = content.seek(0, 2)
        try:
            footer = parquet.ParquetFile(content).metadata
        except pa.ArrowInvalid as error:
            hint = "look at the file; `tidemark maintain` does not repair one"
            raise DataError(f"File '{uri}'", f"is no Parquet file: {error}", hint=hint) from error
        columns = tuple(dict.fromkeys(footer.schema.column(n).path.split(".")[0] for n in range(footer.num_columns)))
        bounds = [_bounds(footer.row_group(n), time) for n in range(footer.num_row_groups)]
    known = [bound for bound in bounds if bound is not None]
    if len(known) < len(bounds) or not known:
        return FileStats(size, footer.num_rows, columns, None, None)
    return FileStats(size, footer.num_rows, columns, min(low for low, _ in known), max(high for _, high in known))


def _bounds(group: Any, time: str) -> tuple[int, int] | None:
    for n in range(group.num_columns):
        column = group.column(n)
        if column.path_in_schema == time:
            told = column.statistics
            if told is None or not told.has_min_max:
                return None
            with suppress(OverflowError):  # a time that Python has no date for
                return micros(told.min), micros(told.max)
    return None


def micros(value: Any) -> int:
    """A bound as microseconds UTC: a naive time is UTC, a date its midnight."""
    return int(pa.scalar(value).cast(pa.timestamp("us")).value)
