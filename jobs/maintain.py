"""maintain: compact offline tables and remove what no reader can need any more, leftovers of killed runs included.

    read the pins -> per group: the table and its quarantine: compact, vacuum

Rows stay as they are. Every version that was the newest within the retention stays readable, and every version that a
training set was made of, for as long as that training set is there. Run it again at any time, also while jobs run.
"""

from __future__ import annotations

import argparse
import datetime
import time
from collections.abc import Sequence
from dataclasses import dataclass

from connectors.file_store import open_file_store
from connectors.lakes import joined
from connectors.pins import FoundPin, read_pins
from connectors.table_maintenance import Upkeep, maintain_table
from feature_defs import durations
from feature_defs.errors import EXIT_DONE, TidemarkError, UsageError
from feature_defs.model import FeatureGroup
from jobs import arguments
from jobs.place import LOAD_WORK, Place, chosen_groups, new_run, now_us, online_folder
from jobs.quality import quarantine_in_force
from jobs.report import counted, step, table

RETENTION = "7d"
LEAST_RETENTION = "1h"


@dataclass(frozen=True)
class MaintainedTable:
    """One table. `compacted` is how many files its newest version had and has; `leftovers` of runs that did not end."""

    table: str
    files_before: int
    files_after: int
    bytes_before: int
    bytes_after: int
    bytes_freed: int
    versions: int
    pins: tuple[int, ...]
    compacted: tuple[int, int] | None
    leftovers: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class MaintainReport:
    run: str
    dry_run: bool
    retention: str
    tables: tuple[MaintainedTable, ...]
    pins_dropped: int
    bytes_freed: int
    leftovers: int
    failed: tuple[str, ...]
    seconds: float
    exit_code: int = EXIT_DONE

    def text(self) -> str:
        headers = ["table", "files", "then", "bytes", "then", "freed", "versions", "pinned", "leftovers"]
        lines = [
            (t.table, t.files_before, t.files_after, t.bytes_before, t.bytes_after, t.bytes_freed, t.versions,
             len(t.pins), t.leftovers)
            for t in self.tables
        ]  # fmt: skip
        told = [table(headers, lines)]
        for one in self.tables:
            if one.compacted:
                verb = "would be" if self.dry_run else "is"
                told.append(f"  {one.table}: what was {counted(one.compacted[0], 'file')} {verb} {one.compacted[1]:,}")
            told += [f"  {one.table}: {note}" for note in one.notes]
        told += self.failed
        what = "would be freed" if self.dry_run else "freed"
        total = f"{counted(self.bytes_freed, 'byte')} {what}, {counted(self.leftovers, 'leftover')}"
        pins = f", {counted(self.pins_dropped, 'pin')} of datasets that are gone" if self.pins_dropped else ""
        return "\n".join([*told, f"{total}{pins}, retention {self.retention}, {self.seconds:.1f} s (run {self.run})"])


def maintain(
    place: Place,
    groups: Sequence[str] = (),
    *,
    retention: str = RETENTION,
    dry_run: bool = False,
    now: datetime.datetime | None = None,
) -> MaintainReport:
    """Maintain the tables of these groups (none: all, deprecated ones too)."""
    started = time.monotonic()
    run, moment, kept_us = new_run(), now_us(now), _retention_us(retention)
    chosen = _chosen(place, groups)
    living, dropped, drafts = _pins(place, moment - kept_us, dry_run=dry_run)
    loads = sum(_remove_load_work(place, group, moment - kept_us, dry_run=dry_run) for group in chosen)
    done: list[MaintainedTable] = []
    failed: list[TidemarkError] = []
    for group in chosen:
        keys = tuple(place.applied().definitions.entity_of(group).keys)
        for target, path, sorted_by in (
            (place.table(group), place.table_path(group), keys),
            (place.quarantine(group), f"{place.files_path(group)}_quarantine", ()),
        ):
            if target.version() is None:
                continue
            pinned = frozenset(pin.pin.tables[path] for pin in living if path in pin.pin.tables)
            if not sorted_by and (in_force := quarantine_in_force(place, group)) is not None:
                pinned |= {in_force}
            upkeep = Upkeep(pinned, moment, kept_us, run, sorted_by, dry_run)
            try:
                with step(f"maintain {path}"):
                    found = maintain_table(target, upkeep)
            except TidemarkError as error:  # one table's fault must not keep the others from being maintained
                failed.append(error)
                continue
            lost = [f"pinned version {version} cannot be read any more" for version in found.lost_pins]
            done.append(
                MaintainedTable(
                    table=path,
                    files_before=found.before.files,
                    files_after=found.after.files,
                    bytes_before=found.before.bytes,
                    bytes_after=found.after.bytes,
                    bytes_freed=found.freed,
                    versions=found.after.versions,
                    pins=tuple(sorted(pinned)),
                    compacted=found.compacted,
                    leftovers=found.leftovers,
                    notes=(*found.notes, *lost),
                )
            )
    return MaintainReport(
        run=run,
        dry_run=dry_run,
        retention=retention,
        tables=tuple(done),
        pins_dropped=dropped,
        bytes_freed=sum(one.bytes_freed for one in done),
        leftovers=drafts + loads + sum(one.leftovers for one in done),
        failed=tuple(map(str, failed)),
        seconds=round(time.monotonic() - started, 3),
        exit_code=failed[0].exit_code if failed else EXIT_DONE,
    )


def _retention_us(text: str) -> int:
    try:
        found = durations.microseconds(text)
    except durations.DurationFault as error:
        raise UsageError("Option --retention", str(error), hint=f"the default is {RETENTION}") from error
    if found < durations.microseconds(LEAST_RETENTION):
        problem = f"{text} is shorter than {LEAST_RETENTION}: a job that runs now would lose its files"
        raise UsageError("Option --retention", problem, hint=f"the default is {RETENTION}")
    return found


def _chosen(place: Place, names: Sequence[str]) -> list[FeatureGroup]:
    snapshot = place.applied()
    return chosen_groups(snapshot, names) if names else list(snapshot.definitions.groups.values())


def _pins(place: Place, since_us: int, *, dry_run: bool) -> tuple[list[FoundPin], int, int]:
    """The pins to honour; how many were dropped, and the drafts of datasets whose run was killed."""
    found = read_pins(place.lakes, place.settings.beside)
    living = [pin for pin in found if pin.alive or pin.created_us >= since_us]  # a young one's run may be writing
    gone = [pin for pin in found if pin not in living]
    drafts = 0
    for pin in found:
        if pin.created_us < since_us:
            drafts += _remove_drafts(place, pin, since_us, dry_run=dry_run)
    for pin in gone if not dry_run else ():
        open_file_store(pin.uri).delete(pin.uri)
    return living, len(gone), drafts


def _remove_drafts(place: Place, pin: FoundPin, since_us: int, *, dry_run: bool) -> int:
    """A replaced dataset that a killed run had put aside stays when nothing took its place: it is the only one."""
    target = place.lakes.uri(pin.pin.dataset)
    files = open_file_store(target)
    draft, replaced, work = (place.lakes.uri(path) for path in pin.pin.drafts())
    count = 0
    for uri in (draft, replaced, work):
        there = files.list_files(uri)
        if not there or any(file.modified_us >= since_us for file in there):
            continue
        if uri == replaced and not files.list_files(target):
            continue
        count += 1
        if not dry_run:
            files.delete(uri)
    return count


def _remove_load_work(place: Place, group: FeatureGroup, since_us: int, *, dry_run: bool) -> int:
    """What a killed load had set aside."""
    folder = online_folder(place, group)
    files = open_file_store(folder)
    newest: dict[str, int] = {}
    for file in files.list_files(folder):
        work, _, inner = file.path.partition("/")
        if inner and work.startswith(LOAD_WORK):
            newest[work] = max(file.modified_us, newest.get(work, 0))
    old = [work for work, modified_us in newest.items() if modified_us < since_us]
    for work in old if not dry_run else ():
        files.delete(joined(folder, work))
    return len(old)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_groups(parser)
    parser.add_argument(
        "--retention", default=RETENTION, metavar="7d", help="how long a replaced version stays (default: 7d, least 1h)"
    )
    parser.add_argument("--dry-run", action="store_true", help="only tell what would be done")


def run(place: Place, args: argparse.Namespace) -> MaintainReport:
    return maintain(place, args.groups, retention=args.retention, dry_run=args.dry_run)


if __name__ == "__main__":
    from jobs.command_line import run_verb

    run_verb("maintain")
