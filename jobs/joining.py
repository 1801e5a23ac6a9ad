"""How a spine meets the offline tables: which way, by the spine's size, and what is kept on the way.

spine, its rows numbered        kept once: a spine that is not the same twice must not be read twice
  files that a task can hold    direct: a task searches a group's files, answers are kept and put beside the spine
  few rows, or skip_nulls       as_of: points and rows in one line, of the spine's entities only
  many rows                     locate: the answers are found in slim columns and kept, then fetched
rows of a table                 within [oldest spine time - ttl, newest spine time]; files outside are not opened
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
from pyarrow import parquet
from pyspark.sql import Column, DataFrame, Observation
from pyspark.sql import functions as F

from connectors.file_rows import FileRows, file_rows
from connectors.file_store import local_path, open_file_store
from connectors.lakes import joined
from connectors.offline_tables import writing
from connectors.plain_files import PlainFiles
from connectors.row_order import PART
from feature_defs.join_plan import GroupJoin, JoinPlan
from feature_defs.model import CREATED_TIME, EVENT_TIME
from jobs.transforms.arrays import LEAST, micros_of
from jobs.transforms.as_of import LEAK, training_rows
from jobs.transforms.direct import GroupFiles, searched
from jobs.transforms.locate import ROW, Keep, Leaks, fetched, located, numbered
from jobs.transforms.pieces import Pieces
from jobs.transforms.rows import after, all_quoted, utc

IN_LINE, LOCATE, DIRECT = "in line", "locate", "direct"
FEW = 100_000  # spine rows; below, steps of their own cost more than they save
MOST_DIRECT = 10_000_000  # rows of a group's files, or of the spine, that one task holds: some 100 bytes each
ANY = 1 << 62
_MOST_BYTES = 1 << 30  # of a group's features, if every row answers


@dataclass(frozen=True)
class Joined:
    """`rows` gives, among others, the spine's columns, the outputs, and leak flags of some; `leaks` tells of the rest.

    `pieces` are the same rows where all groups went directly: then Spark is asked for them only if it writes them.
    """

    rows: Callable[[], DataFrame]
    flags: tuple[str, ...]
    leaks: tuple[Leaks, ...]
    spine_rows: int
    ways: Mapping[str, str]
    pieces: Pieces | None = None


@contextmanager
def keeping(folder: str) -> Iterator[Keep]:
    """Keep rows below a folder of their own, until the end."""
    try:
        yield kept_in(folder)
    finally:
        open_file_store(folder).delete(folder)


def kept_in(folder: str) -> Keep:
    """Keep rows as files below a folder, which the caller removes: they outlive a lost executor."""

    def keep(rows: DataFrame, metrics: Sequence[Column]) -> tuple[DataFrame, Mapping[str, Any]]:
        uri, told = joined(folder, uuid.uuid4().hex), Observation()
        with writing(rows.sparkSession, table=True):  # in parts: tasks read pieces of it
            rows.observe(told, *metrics).write.parquet(uri)
        return rows.sparkSession.read.schema(rows.schema).parquet(uri), told.get

    return keep


def not_kept(rows: DataFrame, metrics: Sequence[Column]) -> tuple[DataFrame, Mapping[str, Any]]:
    """For rows that are read nobody knows when, as in a notebook; only the way in line goes without keeping them."""
    return rows, rows.agg(*metrics).collect()[0].asDict()


@dataclass(frozen=True)
class OwnFiles:
    """The files of the plan's tables, where a task can read them, and a folder for what is found in them."""

    tables: Mapping[str, PlainFiles | None]
    folder: str


def join_spine(
    spine: DataFrame,
    tables: Mapping[str, DataFrame],
    plan: JoinPlan,
    *,
    keep: Keep,
    few: int | None = None,
    own: OwnFiles | None = None,
    in_files: FileRows | None = None,
) -> Joined:
    """Every spine row once, with the features as they were at its time; of at most `few` rows in line.

    With `own` files `keep` keeps the spine in files, too. `in_files` are the spine's rows, where they are few.
    """
    few = FEW if few is None else few
    kept = _kept_here(numbered(spine), in_files, own.folder) if own and in_files else None
    if kept:
        base, counts = kept
    else:
        time = F.unix_micros(utc(F.col(EVENT_TIME), spine.schema[EVENT_TIME].dataType))
        told = [F.count(F.lit(1)).alias("rows"), F.min(time).alias("oldest"), F.max(time).alias("newest")]
        base, counts = keep(numbered(spine), told)
    pieces, leaks = _directly(base, plan, own, counts) if own and counts["newest"] is not None else (None, [])
    ways = {part.group.group: DIRECT for part in pieces.parts} if pieces else {}
    others = [group for group in plan.groups if group.group not in ways]
    if pieces and not others:
        return Joined(pieces.rows, (), tuple(leaks), counts["rows"], ways, pieces)
    rows = pieces.rows() if pieces else base
    span = {group.group: _within(group, counts["oldest"], counts["newest"]) for group in others}
    ways |= {group.group: way_of(group, counts["rows"], few=few) for group in others}
    in_line = [group for group in others if ways[group.group] == IN_LINE]
    to_locate = [group for group in others if ways[group.group] == LOCATE]
    if in_line:
        near = [tables[group.group].where(span[group.group]) for group in in_line]
        if counts["rows"] <= FEW:
            near = [_of_entities(table, base, group) for table, group in zip(near, in_line, strict=True)]
        rows = training_rows(rows, near, replace(plan, groups=tuple(in_line)), points_of=base)
    found = located(base, tables, replace(plan, groups=tuple(to_locate)), keep=keep, span=span) if to_locate else []
    rows, of_located = fetched(rows, tables, found)
    flags = tuple(LEAK + output for group in in_line for _, output in group.columns)
    chosen = rows.select(*all_quoted(spine.columns), *plan.outputs, *flags)
    return Joined(
        rows=lambda: chosen,
        flags=flags,
        leaks=(*leaks, *of_located),
        spine_rows=counts["rows"],
        ways={group.group: ways[group.group] for group in plan.groups},
    )


def _kept_here(spine: DataFrame, in_files: FileRows, folder: str) -> tuple[DataFrame, Mapping[str, Any]] | None:
    """As `keep` does, without a job; None where files are not read as Spark reads them."""
    read = None
    with suppress(OSError):  # Spark will tell of it
        read = in_files.read_alike() if folder.startswith("file:") else None
    if read is None:
        return None
    uri = joined(folder, uuid.uuid4().hex)
    local_path(uri).mkdir(parents=True)
    rows = read.append_column(ROW, pa.array(range(len(read)), pa.int64()))
    parquet.write_table(rows, local_path(uri) / "part-0.parquet", row_group_size=PART, store_schema=False)
    times = micros_of(read.column(EVENT_TIME))
    times = times[times > LEAST]
    oldest, newest = (int(times.min()), int(times.max())) if len(times) else (None, None)
    base = spine.sparkSession.read.schema(spine.schema).parquet(uri)
    return base, {"rows": len(read), "oldest": oldest, "newest": newest}


def way_of(group: GroupJoin, spine_rows: int, near_rows: int | None = None, *, few: int = FEW) -> str:
    """`near_rows` are those of the table's files that may answer; None where no task can read these."""
    if near_rows is not None and max(spine_rows, near_rows) <= MOST_DIRECT and not (group.skip_nulls or group.maps):
        return DIRECT
    return IN_LINE if spine_rows <= few or group.skip_nulls else LOCATE


def why_of(group: GroupJoin, spine_rows: int, way: str) -> str:
    """The reason for `way_of`, as people read it."""
    if way == DIRECT:
        return f"files that a task can read, of up to {MOST_DIRECT:,} rows"
    if group.skip_nulls:
        return "skip_nulls"
    return f"{'up to' if spine_rows <= FEW else 'over'} {FEW:,} spine rows"


def near_files(group: GroupJoin, files: PlainFiles | None, oldest: int | None, newest: int | None) -> FileRows | None:
    """What a task reads of a group's files for spine rows of these times; None where it cannot."""
    near = files.within(*span_of(group, oldest, newest)) if files else None
    found = near.columns([*group.keys, EVENT_TIME, CREATED_TIME, *group.features]) if near else None
    is_light = found and (found.bytes <= _MOST_BYTES or found.bytes_of(group.features) <= _MOST_BYTES)
    return found if is_light else None


def _directly(
    base: DataFrame, plan: JoinPlan, own: OwnFiles, counts: Mapping[str, Any]
) -> tuple[Pieces | None, list[Leaks]]:
    """The groups that go so beside the spine, and what there is to tell of their leaks."""
    spine = file_rows([unquote(uri) for uri in base.inputFiles()], base.schema)
    oldest, newest = counts["oldest"], counts["newest"]
    parts = []
    for group in plan.groups if spine else ():
        files = own.tables[group.group]
        near = near_files(group, files, oldest, newest)
        if near and way_of(group, counts["rows"], sum(near.counts())) == DIRECT:
            assert files is not None
            parts.append(GroupFiles(group, near, span_of(group, oldest, newest)[0], newest, files.schema))
    if not parts:
        return None, []
    assert spine is not None
    folder = str(local_path(joined(own.folder, "direct")))
    told = searched(base.sparkSession, spine, parts, plan.rules, folder)
    sure = [(part, one) for part, one in zip(parts, told, strict=True) if not one.handed_back]
    if not sure:
        return None, []
    leaks = [Leaks(tuple(output for _, output in part.group.columns), counted=one.leaks) for part, one in sure]
    return Pieces(base, spine, tuple(part for part, _ in sure), folder), leaks


def span_of(group: GroupJoin, oldest: int | None, newest: int | None) -> tuple[int | None, int | None]:
    """(after, until] of the rows that can answer spine rows of these times; None has no bound."""
    return None if oldest is None or group.ttl_us is None else oldest - group.ttl_us - 1, newest


def _within(group: GroupJoin, oldest: int | None, newest: int | None) -> Column:
    if oldest is None or newest is None:  # no spine row has a time
        return F.lit(False)
    start, _ = span_of(group, oldest, newest)
    until = ~after(newest)
    return until if start is None else until & after(start)


def _of_entities(table: DataFrame, spine: DataFrame, group: GroupJoin) -> DataFrame:
    entities = spine.select(*group.keys).distinct()
    return table.join(F.broadcast(entities), list(group.keys), "left_semi").select(*all_quoted(table.columns))
