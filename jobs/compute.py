"""compute: sources -> offline tables.

    read the source -> mark bad rows -> features -> expectations -> replace the offline table, quarantine the bad rows

Each group's table changes whole or not at all; running again gives the same rows.
"""

from __future__ import annotations

import argparse
import datetime
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from connectors.file_store import check_writable, open_file_store
from connectors.registry import Snapshot
from connectors.sources import read_source
from connectors.spark_errors import data_errors
from feature_defs import durations
from feature_defs.errors import DataError, TidemarkError
from feature_defs.fingerprint import transform_digest
from feature_defs.loading import load
from feature_defs.model import EVENT_TIME, FeatureGroup, Source
from jobs import arguments
from jobs.place import Place, chosen_groups, new_run, now_us, time_of
from jobs.quality import FEATURE, SOURCE, keep_results, quarantine, write_checked
from jobs.report import counted, step, table
from jobs.rule_results import results_uri
from jobs.transforms.expectations import checked, rules_of
from jobs.transforms.features import feature_rows, grid_end
from jobs.transforms.rows import REJECTED, clocked, filtered, marked, quoted, transformed

MOST_GRID_POINTS = 1_000_000  # a century of hours; one stray row of the year 1 must not become millions of rows


@dataclass(frozen=True)
class ComputedGroup:
    """One group's result. `table_version` is the offline table's, `version` the group's."""

    group: str
    version: int
    table_version: int
    rows: int
    rejected: int
    seconds: float
    extra_columns: tuple[str, ...]
    empty_columns: tuple[str, ...]
    future_rows: int
    broken_rules: dict[str, int]


@dataclass(frozen=True)
class ComputeReport:
    run: str
    snapshot: int
    groups: tuple[ComputedGroup, ...]
    rows: int
    rejected: int
    seconds: float
    exit_code: int = 0

    def text(self) -> str:
        lines = [(f"{g.group} v{g.version}", g.rows, g.rejected, g.table_version, g.seconds) for g in self.groups]
        told = [table(["group", "rows", "rejected", "table version", "seconds"], lines)]
        for group in self.groups:
            if group.extra_columns:
                told.append(
                    f"  {group.group}: the source has columns its schema lacks: {', '.join(group.extra_columns)}"
                )
            if group.empty_columns:
                names = ", ".join(group.empty_columns)
                told.append(f"  {group.group}: null in every row, has the source been renamed? {names}")
            if group.future_rows:
                told.append(f"  {group.group}: {counted(group.future_rows, 'row')} dated after now")
            told += [
                f"  {group.group}: {counted(n, 'row')} broke '{rule}'" for rule, n in group.broken_rules.items() if n
            ]
        total = f"{counted(self.rows, 'row')} computed, {self.rejected:,} rejected, {self.seconds:.1f} s"
        return "\n".join([*told, f"{total} (run {self.run}, registry snapshot {self.snapshot})"])


def compute(place: Place, groups: Sequence[str] = (), *, now: datetime.datetime | None = None) -> ComputeReport:
    """Compute these groups (none: all that are not deprecated). `now` closes the grid of groups with `every`."""
    started = time.monotonic()
    snapshot = place.applied()
    run = new_run()
    chosen = chosen_groups(snapshot, groups)
    found, failed = [], []
    for group in chosen:
        try:
            with step(f"compute {group.name}"), data_errors(f"FeatureGroup '{group.name}'"):
                found.append(_compute_group(place, snapshot, group, run, now_us(now)))
        except TidemarkError as error:  # noqa: PERF203 - one group's fault must not keep the others from being computed
            if len(chosen) == 1:
                raise
            failed.append(error)
    report = ComputeReport(
        run=run,
        snapshot=snapshot.number,
        groups=tuple(found),
        rows=sum(group.rows for group in found),
        rejected=sum(group.rejected for group in found),
        seconds=round(time.monotonic() - started, 3),
    )
    if failed:
        raise GroupsFailed(failed, report)
    return report


class GroupsFailed(TidemarkError):
    """Some of several groups failed; the others are computed. The exit code is the first failure's."""

    def __init__(self, failed: Sequence[TidemarkError], report: ComputeReport) -> None:
        hint = "correct what is named above, then compute those groups again; the others are done"
        super().__init__("Compute", f"{len(failed)} of {len(failed) + len(report.groups)} groups failed", hint=hint)
        self.failed, self.report, self.exit_code = tuple(failed), report, failed[0].exit_code

    def __str__(self) -> str:
        return "\n".join(
            [*map(str, self.failed), super().__str__(), *([self.report.text()] if self.report.groups else [])]
        )

    def as_plain(self) -> dict[str, object]:
        failed = [error.as_plain() for error in self.failed]
        return {**super().as_plain(), "failed": failed, "report": asdict(self.report)}


def _compute_group(place: Place, snapshot: Snapshot, group: FeatureGroup, run: str, now: int) -> ComputedGroup:
    started = time.monotonic()
    definitions = snapshot.definitions
    source, entity = definitions.source_of(group), definitions.entity_of(group)
    raw = read_source(place.spark, source, place.lakes)
    kept = transformed(filtered(raw.rows, source), _transform(place, group))
    rows = marked(clocked(kept, source), entity)
    told = _inspected(rows, source, group, now)
    rules = rules_of(group)
    _check_writable(place, group, quarantine=told.bad > 0 or any(rule.severity == "quarantine" for rule in rules))
    good = rows.where(F.col(REJECTED).isNull()).drop(REJECTED)
    until = _grid_end(group, told, now) if group.every else now
    features = checked(feature_rows(good, group, entity, until_us=until), rules)
    about = {"run": run, "verb": "compute", "group": group.name, "fingerprint": snapshot.fingerprint(group.name)}
    note = {**about, "snapshot": snapshot.number}
    written = write_checked(place, group, features, note, now_us=now)
    rejected = told.bad + written.rejected
    quarantine(place, group, rejected, {SOURCE: rows, FEATURE: features}, note)
    keep_results(place, group, written, note, now_us=now)
    return ComputedGroup(
        group=group.name,
        version=group.version,
        table_version=written.version,
        rows=written.rows,
        rejected=rejected,
        seconds=round(time.monotonic() - started, 3),
        extra_columns=raw.extra_columns,
        empty_columns=told.empty_columns,
        future_rows=told.future,
        broken_rules=written.broken_rules,
    )


def _transform(place: Place, group: FeatureGroup) -> Callable[[DataFrame], DataFrame] | None:
    """The group's function from its file, only if that still says what was applied."""
    if group.transform is None:
        return None
    written = load(Path(place.settings.definitions)).groups.get(group.name)
    if written is None or transform_digest(written.transform) != transform_digest(group.transform):
        problem = "its transform in the definition files is not the one that was applied"
        raise DataError(f"FeatureGroup '{group.name}'", problem, hint="run `tidemark plan`, then `tidemark apply`")
    return cast("Callable[[DataFrame], DataFrame]", written.transform)  # from a file it is a function, no reference


@dataclass(frozen=True)
class _Inspected:
    """What one pass over a source's rows tells: bad ones, ones after now, the span of the others (microseconds)."""

    bad: int
    future: int
    oldest: int
    newest: int
    empty_columns: tuple[str, ...]


def _inspected(rows: DataFrame, source: Source, group: FeatureGroup, now: int) -> _Inspected:
    """Look at the rows before anything is written; DataError when no row is good."""
    good = F.col(REJECTED).isNull()
    time = F.unix_micros(EVENT_TIME)
    past = F.when(good & (time <= now), time)
    # json has no header: a column that was renamed only shows in that nobody has it
    watched = [name for name in source.schema or () if source.format == "json" and name in rows.columns]
    filled = [F.count(F.col(name)).alias(f"filled_{number}") for number, name in enumerate(quoted(watched))]
    future = F.count(F.when(good & (time > now), 1))
    read, bad, after, oldest, newest, *counts = rows.agg(
        F.count("*"), F.count(REJECTED), future, F.min(past), F.max(past), *filled
    ).collect()[0]
    if read == bad:
        reasons = rows.groupBy(REJECTED).count().orderBy(F.desc("count")).limit(3).collect()
        told = ", ".join(f"{row[REJECTED]} ({row['count']:,})" for row in reasons) or "the source's filter keeps none"
        hint = "look at the source and at the definition's keys, event_time and schema; the offline table is as it was"
        raise DataError(f"FeatureGroup '{group.name}'", f"no row of {read:,} can be used: {told}", hint=hint)
    empty = tuple(name for name, count in zip(watched, counts, strict=True) if not count)
    return _Inspected(bad, after, now if oldest is None else oldest, now if newest is None else newest, empty)


def _grid_end(group: FeatureGroup, told: _Inspected, now: int) -> int:
    """The last grid point; DataError when an entity would get an absurd number of them from one stray row."""
    every = group.every or ""
    until = grid_end(told.newest, now, every)
    points = (until - told.oldest) // durations.microseconds(every)
    if points > MOST_GRID_POINTS:
        oldest = time_of(told.oldest)
        problem = f"every={every} from its oldest row, of {oldest:%Y-%m-%d}, is {points:,} points for one entity"
        hint = "drop stray rows with the source's filter=, or make the grid coarser; nothing was written"
        raise DataError(f"FeatureGroup '{group.name}'", problem, hint=hint)
    return until


def _check_writable(place: Place, group: FeatureGroup, *, quarantine: bool) -> None:
    """All that is to be written, before any of it is: a job must not end between the two."""
    tables = [place.table(group), *([place.quarantine(group)] if quarantine else [])]
    for uri in [*(target.uri for target in tables), results_uri(place, group)]:
        check_writable(open_file_store(uri), uri)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_groups(parser)
    arguments.add_now(parser, "the time at which grid cells count as over (default: the clock)")


def run(place: Place, args: argparse.Namespace) -> ComputeReport:
    return compute(place, args.groups, now=args.now)


if __name__ == "__main__":
    from jobs.command_line import run_verb

    run_verb("compute")
