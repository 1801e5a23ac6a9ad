"""How a spine meets the offline tables: which way, by the spine's size, and what is kept on the way.

spine, its rows numbered        kept once: a spine that is not the same twice must not be read twice
  few rows, or skip_nulls       as_of: points and rows in one line, of the spine's entities only
  many rows                     locate: the answers are found in slim columns and kept, then fetched
rows of a table                 within [oldest spine time - ttl, newest spine time]; files outside are not opened
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from pyspark.sql import Column, DataFrame, Observation
from pyspark.sql import functions as F

from connectors.file_store import open_file_store
from connectors.lakes import joined
from connectors.offline_tables import writing
from feature_defs.join_plan import GroupJoin, JoinPlan
from feature_defs.model import EVENT_TIME
from jobs.transforms.as_of import LEAK, training_rows
from jobs.transforms.locate import Keep, Leaks, fetched, located, numbered
from jobs.transforms.rows import after, all_quoted, utc

IN_LINE, LOCATE = "in line", "locate"
FEW = 100_000  # spine rows; below, steps of their own cost more than they save
ANY = 1 << 62


@dataclass(frozen=True)
class Joined:
    """The spine's columns and the outputs, then leak flags of some; `leaks` tells of the others."""

    rows: DataFrame
    flags: tuple[str, ...]
    leaks: tuple[Leaks, ...]
    spine_rows: int
    ways: Mapping[str, str]


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
        with writing(rows.sparkSession):
            rows.observe(told, *metrics).write.parquet(uri)
        return rows.sparkSession.read.schema(rows.schema).parquet(uri), told.get

    return keep


def not_kept(rows: DataFrame, metrics: Sequence[Column]) -> tuple[DataFrame, Mapping[str, Any]]:
    """For rows that are read nobody knows when, as in a notebook; only the way in line goes without keeping them."""
    return rows, rows.agg(*metrics).collect()[0].asDict()


def join_spine(
    spine: DataFrame, tables: Mapping[str, DataFrame], plan: JoinPlan, *, keep: Keep, few: int | None = None
) -> Joined:
    """Every spine row once, with the features as they were at its time; of at most `few` rows in line."""
    few = FEW if few is None else few
    time = F.unix_micros(utc(F.col(EVENT_TIME), spine.schema[EVENT_TIME].dataType))
    told = [F.count(F.lit(1)).alias("rows"), F.min(time).alias("oldest"), F.max(time).alias("newest")]
    base, counts = keep(numbered(spine), told)
    span = {group.group: _within(group, counts["oldest"], counts["newest"]) for group in plan.groups}
    ways = {group.group: way_of(group, counts["rows"], few) for group in plan.groups}
    in_line = [group for group in plan.groups if ways[group.group] == IN_LINE]
    to_locate = [group for group in plan.groups if group not in in_line]
    rows = base
    if in_line:
        near = [tables[group.group].where(span[group.group]) for group in in_line]
        if counts["rows"] <= FEW:
            near = [_of_entities(table, base, group) for table, group in zip(near, in_line, strict=True)]
        rows = training_rows(base, near, replace(plan, groups=tuple(in_line)))
    found = located(base, tables, replace(plan, groups=tuple(to_locate)), keep=keep, span=span) if to_locate else []
    rows, told_leaks = fetched(rows, tables, found)
    flags = tuple(LEAK + output for group in in_line for _, output in group.columns)
    return Joined(
        rows=rows.select(*all_quoted(spine.columns), *plan.outputs, *flags),
        flags=flags,
        leaks=told_leaks,
        spine_rows=counts["rows"],
        ways=ways,
    )


def way_of(group: GroupJoin, spine_rows: int, few: int = FEW) -> str:
    return IN_LINE if spine_rows <= few or group.skip_nulls else LOCATE


def why_of(group: GroupJoin, spine_rows: int) -> str:
    """The reason for `way_of`, as people read it."""
    if group.skip_nulls:
        return "skip_nulls"
    return f"{'up to' if spine_rows <= FEW else 'over'} {FEW:,} spine rows"


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
