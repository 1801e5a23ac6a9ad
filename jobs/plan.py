"""plan: what an apply would change, which values would change with it, and what would be recomputed.

Exit code 0: nothing to apply; 2: changes; 3: changes that are refused. A CI job needs no more.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from feature_defs import cleaning
from feature_defs.changes import Change, Plan, compare, keep_status
from feature_defs.errors import EXIT_CHANGES, EXIT_DONE, ChangeRefused
from feature_defs.model import Definitions
from jobs.place import Place
from jobs.report import counted

_SIGNS = {"added": "+", "changed": "~", "removed": "-"}


@dataclass(frozen=True)
class PlanReport:
    """`snapshot` is the one in force, 0 before the first."""

    snapshot: int
    changes: tuple[Change, ...]
    recompute: tuple[str, ...]
    refusals: tuple[tuple[str, str, str], ...]
    warnings: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        if self.refusals:
            return ChangeRefused.exit_code
        return EXIT_CHANGES if self.changes else EXIT_DONE

    def text(self) -> str:
        lines = changes_text(self.changes)
        lines += [f"refused: {subject}: {problem}\n  Hint: {hint}" for subject, problem, hint in self.refusals]
        lines += [f"warning: {warning}" for warning in self.warnings]
        if self.recompute:
            lines.append(f"to recompute: {', '.join(self.recompute)}")
        if not self.changes:
            return "\n".join([*lines, f"no change against registry snapshot {self.snapshot}"])
        return "\n".join([*lines, f"{counted(len(self.changes), 'change')} against registry snapshot {self.snapshot}"])


def changes_text(changes: tuple[Change, ...]) -> list[str]:
    """A line a definition, then one for each thing about it that changes."""
    lines = []
    for change in changes:
        values = "  (values change)" if change.values_change and change.action == "changed" else ""
        lines.append(f"{_SIGNS[change.action]} {change.word} {change.name}{values}")
        lines += [f"    {field.field}: {_short(field.before)} -> {_short(field.after)}" for field in change.fields]
    return lines


def _short(value: object) -> str:
    if words := cleaning.told(value):
        return words
    if isinstance(value, dict):
        return "defined" if "name" in value else ", ".join(f"{key}={inner}" for key, inner in value.items() if inner)
    return "nothing" if value in (None, "", []) else str(value)


def plan(place: Place) -> PlanReport:
    """Compare the definition files with the registry."""
    return planned(place)[0]


def planned(place: Place) -> tuple[PlanReport, Definitions]:
    """The plan, and the definitions as an apply would register them."""
    snapshot = place.registry.latest()
    registered = snapshot.definitions if snapshot else None
    wanted = keep_status(registered, place.written())
    found: Plan = compare(registered, wanted)
    report = PlanReport(
        snapshot=snapshot.number if snapshot else 0,
        changes=found.changes,
        recompute=found.recompute,
        refusals=found.refusals,
        warnings=found.warnings,
    )
    return report, wanted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The profile says it all."""


def run(place: Place, _args: argparse.Namespace) -> PlanReport:
    return plan(place)


if __name__ == "__main__":
    from jobs.command_line import run_verb

    run_verb("plan")
