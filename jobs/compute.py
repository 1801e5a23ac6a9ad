"""compute: sources -> offline tables.

    read the source -> mark bad rows -> features -> expectations -> replace the offline table, quarantine the bad rows

Each group's table changes whole or not at all; running again gives the same rows.
"""

from __future__ import annotations

import argparse
import datetime
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from pyspark.sql import DataFrame, Observation
from pyspark.sql import functions as F

from connectors.file_store import check_writable, open_file_store
from connectors.offline_tables import OfflineTable
from connectors.registry import Snapshot
from connectors.sources import read_source
from connectors.spark_errors import data_errors
from feature_defs.errors import DataError
from feature_defs.fingerprint import transform_digest
from feature_defs.loading import load
from feature_defs.model import EVENT_TIME, Expectation, FeatureGroup
from jobs import arguments
from jobs.place import Place, chosen_groups, new_run, now_us
from jobs.report import counted, step, table
from jobs.transforms.expectations import STOPPED, broken, checked, rules_of
from jobs.transforms.features import feature_rows, grid_end
from jobs.transforms.rows import REJECTED, clocked, filtered, marked, quoted, transformed


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
    offline = place.lakes.uri(place.settings.offline)
    check_writable(open_file_store(offline), offline)
    found = []
    for group in chosen_groups(snapshot, groups):
        with step(f"compute {group.name}"), data_errors(f"FeatureGroup '{group.name}'"):
            found.append(_compute_group(place, snapshot, group, run, now_us(now)))
    return ComputeReport(
        run=run,
        snapshot=snapshot.number,
        groups=tuple(found),
        rows=sum(group.rows for group in found),
        rejected=sum(group.rejected for group in found),
        seconds=round(time.monotonic() - started, 3),
    )


def _compute_group(place: Place, snapshot: Snapshot, group: FeatureGroup, run: str, now: int) -> ComputedGroup:
    started = time.monotonic()
    definitions = snapshot.definitions
    source, entity = definitions.source_of(group), definitions.entity_of(group)
    raw = read_source(place.spark, source, place.lakes)
    kept = transformed(filtered(raw.rows, source), _transform(place, group))
    rows = marked(clocked(kept, source), entity)
    bad, newest = _inspected(rows, group)
    good = rows.where(F.col(REJECTED).isNull()).drop(REJECTED)
    until = grid_end(newest, now, group.every) if group.every else now
    rules = rules_of(group)
    features = checked(feature_rows(good, group, entity, until_us=until), rules)
    note = {"run": run, "verb": "compute", "group": group.name, "fingerprint": snapshot.fingerprint(group.name)}
    written, version = _write(place.table(group), features, rules, {**note, "snapshot": snapshot.number})
    rejected = bad + written["rejected"]
    _quarantine(place.quarantine(group), rejected, [rows, features], {**note, "verb": "quarantine"})
    return ComputedGroup(
        group=group.name,
        version=group.version,
        table_version=version,
        rows=written["rows"] - written["rejected"],
        rejected=rejected,
        seconds=round(time.monotonic() - started, 3),
        extra_columns=raw.extra_columns,
        broken_rules={rule.name: written[f"rule_{number}"] for number, rule in enumerate(rules)},
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


def _inspected(rows: DataFrame, group: FeatureGroup) -> tuple[int, int]:
    """(bad rows, newest event_time) from one pass over the keys and clocks; DataError when no row is good."""
    good = F.col(REJECTED).isNull()
    newest = F.max(F.when(good, F.unix_micros(EVENT_TIME)))
    read, bad, last = rows.agg(F.count("*"), F.count(REJECTED), newest).collect()[0]
    if read == bad:
        reasons = rows.groupBy(REJECTED).count().orderBy(F.desc("count")).limit(3).collect()
        told = ", ".join(f"{row[REJECTED]} ({row['count']:,})" for row in reasons) or "the source's filter keeps none"
        hint = "look at the source and at the definition's keys, event_time and schema; the offline table is as it was"
        raise DataError(f"FeatureGroup '{group.name}'", f"no row of {read:,} can be used: {told}", hint=hint)
    return bad, last


def _write(
    target: OfflineTable, features: DataFrame, rules: Sequence[Expectation], note: dict[str, object]
) -> tuple[dict[str, int], int]:
    """Counts and the table's new version, from one pass."""
    counts = [F.count(F.when(broken(rule), 1)).alias(f"rule_{number}") for number, rule in enumerate(rules)]
    observed = Observation()
    counted_rows = features.observe(
        observed, F.count(F.lit(1)).alias("rows"), F.count(REJECTED).alias("rejected"), *counts
    )
    try:
        version = target.replace(counted_rows.where(F.col(REJECTED).isNull()).drop(REJECTED), note)
    except Exception as error:
        if STOPPED not in str(error):
            raise
        rule = str(error).split(STOPPED, 1)[1].split("\n")[0].split(" SQLSTATE")[0].strip(" '\"")
        problem = f"expectation '{rule}' of severity stop is broken"
        hint = "correct the source, or the rule; the offline table is as it was"
        raise DataError(f"FeatureGroup '{note['group']}'", problem, hint=hint) from error
    return observed.get, version


def _quarantine(target: OfflineTable, rejected: int, parts: Sequence[DataFrame], note: dict[str, object]) -> None:
    """Keep the rejected rows with their reasons; a table with rows of an earlier run is emptied once all is well."""
    if rejected or target.version() is not None:
        kept = [
            part.where(F.col(REJECTED).isNotNull()).select(
                F.col(REJECTED).alias("reason"),
                F.to_json(F.struct(*quoted(name for name in part.columns if name != REJECTED))).alias("row"),
            )
            for part in parts
        ]
        target.replace(kept[0].unionByName(kept[1]), note)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_groups(parser)
    arguments.add_now(parser, "the time at which grid cells count as over (default: the clock)")


def run(place: Place, args: argparse.Namespace) -> ComputeReport:
    return compute(place, args.groups, now=args.now)


if __name__ == "__main__":
    from jobs.command_line import run_verb

    run_verb("compute")
