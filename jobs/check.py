"""check: read the definition files and name every fault in them. Neither Spark nor a lake is touched."""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

from feature_defs.fingerprint import fingerprint
from feature_defs.loading import shown_path
from jobs.place import Place
from jobs.report import counted, table


@dataclass(frozen=True)
class CheckReport:
    definitions: str
    groups: dict[str, str]
    features: int
    services: int
    seconds: float
    exit_code: int = 0

    def text(self) -> str:
        lines = [(name, digest) for name, digest in self.groups.items()]
        total = ", ".join(
            (counted(len(self.groups), "group"), counted(self.features, "feature"), counted(self.services, "service"))
        )
        where = shown_path(Path(self.definitions))
        return f"{table(['group', 'fingerprint'], lines)}\n{total}: no fault, {self.seconds:.2f} s ({where})"


def check(place: Place) -> CheckReport:
    """Check the files that the profile names; DefinitionError holds all faults."""
    started = time.monotonic()
    definitions = place.written()
    return CheckReport(
        definitions=place.settings.definitions,
        groups={name: fingerprint(group, definitions) for name, group in sorted(definitions.groups.items())},
        features=sum(len(group.features) for group in definitions.groups.values()),
        services=len(definitions.services),
        seconds=round(time.monotonic() - started, 3),
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The profile says it all."""


def run(place: Place, _args: argparse.Namespace) -> CheckReport:
    return check(place)


if __name__ == "__main__":
    from jobs.command_line import run_verb

    run_verb("check")
