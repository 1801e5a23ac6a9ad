"""history: the registry's snapshots, newest first, and what each one changed."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from feature_defs.changes import Change, compare
from feature_defs.errors import UsageError, listed, near_miss
from jobs.place import Place
from jobs.plan import changes_text
from jobs.report import counted


@dataclass(frozen=True)
class HistoryEntry:
    snapshot: int
    applied_at: str
    applied_by: str
    message: str
    changes: tuple[Change, ...]


@dataclass(frozen=True)
class HistoryReport:
    entries: tuple[HistoryEntry, ...]
    exit_code: int = 0

    def text(self) -> str:
        lines = []
        for entry in self.entries:
            about = f": {entry.message}" if entry.message else ""
            lines.append(f"snapshot {entry.snapshot}  {entry.applied_at}  {entry.applied_by}{about}")
            lines += [f"  {line}" for line in changes_text(entry.changes)]
        return "\n".join([*lines, counted(len(self.entries), "snapshot")])


def history(place: Place, name: str = "") -> HistoryReport:
    """Every snapshot, or those that changed the definition of this name."""
    entries = []
    before = None
    seen: set[str] = set()
    for number in place.registry.numbers():
        snapshot = place.registry.read(number)
        changes = compare(before, snapshot.definitions).changes
        before = snapshot.definitions
        seen.update(change.name for change in changes)
        kept = tuple(change for change in changes if name in ("", change.name))
        if kept or not name:
            told = (snapshot.applied_at, snapshot.applied_by, snapshot.message)
            entries.append(HistoryEntry(number, *told, kept))
    if name and not entries:
        problem = f"is in no snapshot of the registry ({listed(sorted(seen))})"
        raise UsageError(f"'{name}'", problem, hint=near_miss(name, seen) + "`tidemark list` shows what there is")
    return HistoryReport(tuple(reversed(entries)))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", default="", help="only what changed this definition")


def run(place: Place, args: argparse.Namespace) -> HistoryReport:
    return history(place, args.name)


if __name__ == "__main__":
    from jobs.command_line import run_verb

    run_verb("history")
