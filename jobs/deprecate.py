"""deprecate: mark a group as no longer for new uses. It stays readable; `compute` without --group leaves it out.

The mark is a snapshot of its own and stays until the group's file says status="active" again.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace

from jobs.apply import now_text
from jobs.place import Place, chosen_groups, user_name


@dataclass(frozen=True)
class DeprecateReport:
    group: str
    snapshot: int
    changed: bool
    services: tuple[str, ...]
    exit_code: int = 0

    def text(self) -> str:
        if not self.changed:
            return f"group '{self.group}' is deprecated already (registry snapshot {self.snapshot})"
        using = f"; services that still use it: {', '.join(self.services)}" if self.services else ""
        return f"group '{self.group}' is deprecated (registry snapshot {self.snapshot}){using}"


def deprecate(place: Place, group: str, *, message: str = "") -> DeprecateReport:
    """Deprecate one group. An explicit status in its file wins at the next apply."""
    snapshot = place.applied()
    found = chosen_groups(snapshot, [group])[0]
    services = tuple(service.name for service in snapshot.definitions.services_using(group))
    if found.is_deprecated:
        return DeprecateReport(group, snapshot.number, False, services)
    groups = {**snapshot.definitions.groups, group: replace(found, status="deprecated")}
    number = place.registry.commit(
        replace(snapshot.definitions, groups=groups),
        after=snapshot.number,
        applied_at=now_text(),
        applied_by=user_name(),
        message=message or f"deprecate {group}",
    )
    return DeprecateReport(group, number, True, services)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("group", help="the feature group")
    parser.add_argument("--message", default="", metavar="TEXT", help="why, and what to use instead")


def run(place: Place, args: argparse.Namespace) -> DeprecateReport:
    return deprecate(place, args.group, message=args.message)


if __name__ == "__main__":
    from jobs.command_line import run_verb

    run_verb("deprecate")
