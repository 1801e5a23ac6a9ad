"""The one error family: what object, what was expected and found, and a hint that is the next action.

    TidemarkError                exit
    |- UsageError                  4    the command line or a profile asks for something that cannot be
    |- DefinitionError             3    definition files or their tests, every fault at once
    |- ChangeRefused               3    an apply that would break a service or silently change a type
    |- DataError                   5    a source, a spine or an offline table does not hold what was declared
    |- LakeError                   6    a lake, a database or the registry cannot be read or written
    |  `- RegistryConflict         6    somebody else applied first
    |- OnlineStoreError            7    Redis is down, refuses, or holds something else
    |- MissingPartError            8    Java, a jar or an optional package is not there
    `- SparkFailed                 9    Spark gave up for a reason that is not the data's: memory, disk, a lost cluster

Exit 0 is success, 1 a bug in Tidemark (with its traceback) or a difference that `diff`, `why` or `compare` found (with
its report), 2 is kept for `tidemark plan` that found changes,
and a `tidemark test` that failed is 3 too: the definitions are not what their tests say.
Messages name objects, columns and types; never feature values and never secrets.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

EXIT_DONE = 0
EXIT_BUG = 1
EXIT_CHANGES = 2
EXIT_DEFINITIONS = 3


class TidemarkError(Exception):
    """A mistake or a failure outside Tidemark, said so that the reader knows the next step."""

    exit_code = EXIT_BUG

    def __init__(self, subject: str, problem: str, *, hint: str) -> None:
        super().__init__(subject, problem, hint)
        self.subject = subject
        self.problem = problem
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.subject}: {self.problem}\nHint: {self.hint}"

    def as_plain(self) -> dict[str, object]:
        """The error as plain data, for `--json`."""
        return {
            "error": type(self).__name__,
            "subject": self.subject,
            "problem": self.problem,
            "hint": self.hint,
            "exit_code": self.exit_code,
        }


class UsageError(TidemarkError):
    exit_code = 4


class DataError(TidemarkError):
    exit_code = 5


class LakeError(TidemarkError):
    exit_code = 6


class RegistryConflict(LakeError):
    pass


class OnlineStoreError(TidemarkError):
    exit_code = 7


class MissingPartError(TidemarkError):
    exit_code = 8


class SparkFailed(TidemarkError):
    exit_code = 9


@dataclass(frozen=True, order=True)
class Fault:
    """One thing that is wrong with a set of definitions, and where."""

    file: str
    line: int
    subject: str
    problem: str
    hint: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        return f"{where}\n  {self.subject}: {self.problem}\n  Hint: {self.hint}"


class DefinitionError(TidemarkError):
    """Every fault of a set of definitions, in file order."""

    exit_code = 3

    def __init__(self, faults: Iterable[Fault], subject: str = "Definitions", verb: str = "check") -> None:
        self.faults = tuple(sorted(faults))
        count = len(self.faults)
        super().__init__(
            subject,
            f"{count} fault{'' if count == 1 else 's'}",
            hint=f"correct the files named above and run `tidemark {verb}`",
        )

    def __str__(self) -> str:
        return "\n".join([*map(str, self.faults), f"{self.subject}: {self.problem}. {self.hint.capitalize()}."])

    def as_plain(self) -> dict[str, object]:
        return {**super().as_plain(), "faults": [vars(fault) for fault in self.faults]}


class ChangeRefused(TidemarkError):
    """Reasons why the definitions cannot replace the registered ones, all of them."""

    exit_code = 3

    def __init__(self, reasons: Iterable[tuple[str, str, str]]) -> None:
        self.reasons = tuple(reasons)
        super().__init__("Registry", f"{len(self.reasons)} refused change(s)", hint="raise the version that is named")

    def __str__(self) -> str:
        return "\n".join(f"{subject}: {problem}\nHint: {hint}" for subject, problem, hint in self.reasons)

    def as_plain(self) -> dict[str, object]:
        reasons = [dict(zip(("subject", "problem", "hint"), reason, strict=True)) for reason in self.reasons]
        return {**super().as_plain(), "reasons": reasons}


def near_miss(name: object, known: Iterable[object]) -> str:
    """`did you mean 'customer_id'? ` when a known name is close to this one, else an empty string."""
    by_lower = {str(other).lower(): other for other in known}
    close = difflib.get_close_matches(str(name).lower(), list(by_lower), n=1, cutoff=0.6)
    return f"did you mean '{by_lower[close[0]]}'? " if close else ""


def listed(names: Iterable[object], most: int = 12) -> str:
    """Names for a message: all of a few, the first of many."""
    found = [str(name) for name in names]
    if not found:
        return "none"
    rest = f", ... {len(found) - most} more" if len(found) > most else ""
    return ", ".join(found[:most]) + rest
