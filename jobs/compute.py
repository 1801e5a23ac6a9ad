"""compute: sources -> offline tables.

    read the source -> mark bad rows -> clean -> features -> expectations -> write the offline table and the quarantine

What was added to the source since the last run is found by its Delta version or list of files, which the table's note
keeps in the same commit as the rows: so every row of the source counts once, however often a run is repeated or killed.
"""

from __future__ import annotations

import argparse
import datetime
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from connectors.spark_errors import data_errors
from feature_defs import durations
from feature_defs.errors import TidemarkError, UsageError
from feature_defs.inputs import in_order
from jobs import arguments
from jobs.group_run import AS_ASKED, FIRST_RUN, Backfill, ComputedGroup, Options, compute_group
from jobs.inputs import refuse_after_failure
from jobs.place import Place, chosen_groups, new_run, now_us
from jobs.report import counted, step, table

CHUNK = "30d"
ADDED_FEATURES = ("backfill", "null")


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
        lines = [
            (f"{g.group} v{g.version}", g.how, g.rows, g.rejected, g.table_version, g.seconds) for g in self.groups
        ]
        told = [table(["group", "computed", "rows", "rejected", "table version", "seconds"], lines)]
        if not self.groups:
            told = ["  no group: all are deprecated; compute one with --group NAME"]
        for group in self.groups:
            if group.why not in ("", FIRST_RUN, AS_ASKED):
                told.append(f"  {group.group}: {group.how}, {group.why}")
            if group.extra_columns:
                told.append(
                    f"  {group.group}: the source has columns its schema lacks: {', '.join(group.extra_columns)}"
                )
            if group.empty_columns:
                names = ", ".join(group.empty_columns)
                told.append(f"  {group.group}: null in every row, has the source been renamed? {names}")
            if group.future_rows:
                told.append(f"  {group.group}: {counted(group.future_rows, 'row')} dated after now")
            told += [f"  {group.group}: {counted(n, 'row')} rejected: {why}" for why, n in group.reasons.items()]
            if group.quarantine:
                told.append(f"  {group.group}: rejected rows are in {group.quarantine}")
            told += [f"  {group.group}: fitted {word}" for word in group.fitted]
            told += [
                f"  {group.group}: {counted(n, 'row')} dropped by {name}" for name, n in group.dropped.items() if n
            ]
            told += [
                f"  {group.group}: {counted(n, 'row')} broke '{rule}'" for rule, n in group.broken_rules.items() if n
            ]
        total = f"{counted(self.rows, 'row')} computed, {self.rejected:,} rejected, {self.seconds:.1f} s"
        return "\n".join([*told, f"{total} (run {self.run}, registry snapshot {self.snapshot})"])


def compute(
    place: Place,
    groups: Sequence[str] = (),
    *,
    now: datetime.datetime | None = None,
    full: bool = False,
    start: datetime.datetime | None = None,
    end: datetime.datetime | None = None,
    chunk: str = CHUNK,
    added_features: str = "backfill",
) -> ComputeReport:
    """Compute these groups (none: all that are not deprecated). `now` closes the grid of groups with `every`.

    Where a group's source only grew since its last run, only what that adds or changes is computed; `full` computes
    all of it. `start` and `end` compute the event times in (start, end] anew, a commit a `chunk`. Features that the
    table does not have yet get their past, or with `added_features="null"` stay null up to what it is complete to.
    """
    backfill = _backfill(start, end, chunk, full=full)
    if added_features not in ADDED_FEATURES:
        problem = f"'{added_features}' is not known"
        raise UsageError("Option --added-features", problem, hint=f"write {' or '.join(ADDED_FEATURES)}")
    options = Options(full=full, backfill=backfill, leave_null=added_features == "null")
    started = time.monotonic()
    snapshot = place.applied()
    run = new_run()
    chosen = in_order(chosen_groups(snapshot, groups), snapshot.definitions)
    found, failed = [], []
    lost: list[str] = []
    for group in chosen:
        try:
            refuse_after_failure(group, snapshot.definitions, lost)
            with step(f"compute {group.name}"), data_errors(f"FeatureGroup '{group.name}'"):
                found.append(compute_group(place, snapshot, group, run, now=now_us(now), options=options))
        except TidemarkError as error:  # noqa: PERF203 - one group's fault must not keep the others from being computed
            if len(chosen) == 1:
                raise
            failed.append(error)
            lost.append(group.name)
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


def _backfill(
    start: datetime.datetime | None, end: datetime.datetime | None, chunk: str, *, full: bool
) -> Backfill | None:
    if start is None and end is None:
        return None
    if start is None or end is None or full or start >= end:
        problem = "--full computes all" if full else "needs --start and --end, the earlier first"
        raise UsageError("Option --start", problem, hint="write --start 2026-01-01 --end 2026-02-01, without --full")
    try:
        return Backfill(now_us(start), now_us(end), durations.microseconds(chunk))
    except durations.DurationFault as fault:
        raise UsageError("Option --chunk", str(fault), hint="write --chunk 7d") from fault


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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_groups(parser)
    arguments.add_now(parser, "the time at which grid cells count as over (default: the clock)")
    parser.add_argument("--full", action="store_true", help="compute all of it, not only what was added to the source")
    parser.add_argument(
        "--start", type=arguments.moment, metavar="TIME", help="backfill: compute event times after this anew"
    )
    parser.add_argument("--end", type=arguments.moment, metavar="TIME", help="backfill: up to this and with it")
    parser.add_argument(
        "--chunk", default=CHUNK, metavar="DURATION", help=f"backfill: how much a commit holds (default: {CHUNK})"
    )
    parser.add_argument(
        "--added-features",
        choices=ADDED_FEATURES,
        default="backfill",
        help="what features that the table lacks are in rows that are there: computed, or null (default: backfill)",
    )


def run(place: Place, args: argparse.Namespace) -> ComputeReport:
    told = {name: getattr(args, name) for name in ("now", "full", "start", "end", "chunk", "added_features")}
    return compute(place, args.groups, **told)


if __name__ == "__main__":
    from jobs.command_line import run_verb

    run_verb("compute")
