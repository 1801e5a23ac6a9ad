"""How a training set would be joined, told without running a job: which way each group goes, and what is read of it.

footers of the spine -> its rows and span of time -> the way
footers of each table's files -> those within [oldest spine time - ttl, newest] -> files, bytes and rows
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from connectors.file_store import data_files, open_file_store
from connectors.offline_tables import in_catalog
from connectors.plain_files import plain_files
from connectors.table_stats import FileStats, delta_files, files_stats, table_stats
from feature_defs.errors import UsageError
from feature_defs.join_plan import TimeRules, plan_join
from feature_defs.model import EVENT_TIME
from jobs.joining import near_files, span_of, way_of, why_of
from jobs.place import Place, find_service, time_of
from jobs.report import counted, table
from jobs.spines import SpineWords, check_names, format_of


@dataclass(frozen=True)
class GroupPlan:
    """What one group adds: its table's version, the way of its join and why, and what of its files is read."""

    group: str
    table_version: int
    way: str
    why: str
    files: int
    all_files: int
    bytes: int
    all_bytes: int
    rows: int
    all_rows: int


@dataclass(frozen=True)
class ExplainReport:
    """A plan. Rows are those of the files that are opened: a reader skips pages within them, too. `queried` are groups
    whose files a query told of: a catalog keeps them for itself."""

    service: str
    spine: str
    spine_rows: int
    oldest: datetime.datetime | None
    newest: datetime.datetime | None
    groups: tuple[GroupPlan, ...]
    queried: tuple[str, ...] = ()
    exit_code: int = 0

    def text(self) -> str:
        span = f"{self.oldest:%Y-%m-%d %H:%M} to {self.newest:%Y-%m-%d %H:%M}" if self.oldest else "of unknown times"
        headers = ["group", "table", "files", "of", "MB", "of", "rows", "of", "way"]
        rows = [
            (g.group, f"@{g.table_version}", g.files, g.all_files, g.bytes / 1e6, g.all_bytes / 1e6, g.rows, g.all_rows,
             f"{g.way}: {g.why}")
            for g in self.groups
        ]  # fmt: skip
        ran = f"no join ran; asked in the catalog: {', '.join(self.queried)}" if self.queried else "no job ran"
        end = f"plan of {self.service}: {ran}"
        return "\n".join(
            [f"  spine {self.spine}: {counted(self.spine_rows, 'row')}, {span}", table(headers, rows), end]
        )


def explain(
    place: Place,
    spine: str,
    *,
    service: str,
    spine_format: str = "",
    keys: Mapping[str, str] | None = None,
    event_time: str = EVENT_TIME,
    labels: Sequence[str] = (),
    prefix: bool = False,
) -> ExplainReport:
    """The plan of a training set over a Parquet or Delta spine."""
    snapshot, found = find_service(place, service)
    files, folders = _spine_files(place, spine, spine_format, event_time)
    columns = tuple(dict.fromkeys([*files[0].columns, *folders])) if files else ()
    if files:
        words = SpineWords(spine_format, keys or {}, event_time, labels)
        check_names(columns, words, found, snapshot.definitions)
    plan = plan_join(found, snapshot.definitions, spine_columns=columns, prefix=prefix, rules=TimeRules())
    rows = sum(file.rows for file in files)
    times = [(file.oldest_us, file.newest_us) for file in files if file.rows]
    known = [(low, high) for low, high in times if low is not None and high is not None]
    told = len(known) == len(times) > 0
    oldest, newest = (min(low for low, _ in known), max(high for _, high in known)) if told else (None, None)
    groups, queried = [], []
    for group in plan.groups:
        offline, version = place.computed(snapshot, snapshot.definitions.groups[group.group])
        every = table_stats(offline, version)
        queried += [group.group] if in_catalog(offline) else []
        read = [file for file in every if file.may_hold(*span_of(group, oldest, newest))]
        in_reach = near_files(group, plain_files(offline, version), oldest, newest) is not None
        way = way_of(group, rows, sum(file.rows for file in read) if in_reach else None)
        groups.append(
            GroupPlan(
                group=group.group,
                table_version=version,
                way=way,
                why=why_of(group, rows, way),
                files=len(read),
                all_files=len(every),
                bytes=sum(file.bytes for file in read),
                all_bytes=sum(file.bytes for file in every),
                rows=sum(file.rows for file in read),
                all_rows=sum(file.rows for file in every),
            )
        )
    return ExplainReport(
        service=f"{found.name}@{found.version}",
        spine=spine,
        spine_rows=rows,
        oldest=None if oldest is None else time_of(oldest),
        newest=None if newest is None else time_of(newest),
        groups=tuple(groups),
        queried=tuple(queried),
    )


def _spine_files(
    place: Place, path: str, spine_format: str, event_time: str
) -> tuple[list[FileStats], tuple[str, ...]]:
    """What the footers tell, and the columns that folders name: `day=2026-01-01`."""
    uri = place.lakes.uri(path)
    store, kind = open_file_store(uri), spine_format or format_of(uri)
    if kind == "delta":
        uris = delta_files(store, uri)
    elif kind == "parquet":
        uris = list(data_files(store, uri))
    else:
        hint = "write it as parquet or delta, or run the training set"
        raise UsageError(f"Spine '{path}'", f"is {kind}, which tells nothing without being read", hint=hint)
    folders = re.findall(r"/([^/=]+)=[^/]*(?=/)", uris[0].removeprefix(uri)) if uris else []
    return files_stats(store, uris, event_time), tuple(folders)
