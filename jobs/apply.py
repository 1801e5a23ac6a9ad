"""apply: register the definition files as the next snapshot. With no change nothing is written."""

from __future__ import annotations

import argparse
import datetime
from dataclasses import dataclass

from feature_defs.changes import Change
from feature_defs.errors import ChangeRefused
from jobs.place import Place, user_name
from jobs.plan import changes_text, planned
from jobs.report import counted


@dataclass(frozen=True)
class ApplyReport:
    """`snapshot` is the one in force now; `applied` says whether this run wrote it."""

    snapshot: int
    applied: bool
    changes: tuple[Change, ...]
    recompute: tuple[str, ...]
    warnings: tuple[str, ...]
    exit_code: int = 0

    def text(self) -> str:
        lines = changes_text(self.changes) + [f"warning: {warning}" for warning in self.warnings]
        if not self.applied:
            return "\n".join([*lines, f"nothing to apply: registry snapshot {self.snapshot} stays in force"])
        if self.recompute:
            lines.append(f"to recompute: {', '.join(self.recompute)}")
        return "\n".join([*lines, f"registry snapshot {self.snapshot}: {counted(len(self.changes), 'change')} applied"])


def apply(place: Place, *, message: str = "") -> ApplyReport:
    """Apply what `plan` shows; ChangeRefused when it would break a promise, RegistryConflict when another won."""
    report, wanted = planned(place)
    if report.refusals:
        raise ChangeRefused(report.refusals)
    number = report.snapshot
    if report.changes:
        number = place.registry.commit(
            wanted, after=report.snapshot, applied_at=now_text(), applied_by=user_name(), message=message
        )
    return ApplyReport(number, bool(report.changes), report.changes, report.recompute, report.warnings)


def now_text() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--message", default="", metavar="TEXT", help="why, for `tidemark history`")


def run(place: Place, args: argparse.Namespace) -> ApplyReport:
    return apply(place, message=args.message)


if __name__ == "__main__":
    from jobs.command_line import run_verb

    run_verb("apply")
