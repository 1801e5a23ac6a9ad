"""How a job tells its end: a frozen report as text for people or as JSON for machines, and its progress meanwhile.

Progress goes to standard error, so that standard output holds the report alone. On a terminal the running step is shown
with its seconds; elsewhere each finished step is one line, which is what a job log needs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol


class Report(Protocol):
    """What a verb returns."""

    @property
    def exit_code(self) -> int: ...

    def text(self) -> str:
        """The report for people."""


def as_json(verb: str, report: Any) -> str:
    plain = {"verb": verb, **dataclasses.asdict(report), "exit_code": report.exit_code}
    return json.dumps(plain, default=plain_value, ensure_ascii=False, indent=1)


def plain_value(value: Any) -> Any:
    """What JSON has no form for: times in ISO 8601, bytes in hex, the rest as text."""
    if isinstance(value, datetime.datetime | datetime.date):
        return value.isoformat()
    return value.hex() if isinstance(value, bytes) else str(value)


def table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Columns under their headers, numbers to the right; no line ends in spaces."""
    cells = [[_cell(value) for value in row] for row in rows]
    right = [bool(rows) and all(isinstance(row[i], int | float | None) for row in rows) for i in range(len(headers))]
    widths = [max(len(line[i]) for line in [list(headers), *cells]) for i in range(len(headers))]
    lines = []
    for line in [list(headers), *cells]:
        padded = [text.rjust(w) if r else text.ljust(w) for text, w, r in zip(line, widths, right, strict=True)]
        lines.append("  " + "  ".join(padded).rstrip())
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def counted(number: int, thing: str) -> str:
    """`1 row`, `1,204 rows`."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


@contextlib.contextmanager
def step(name: str, told: Callable[[], str] | None = None) -> Iterator[None]:
    """Show that a step is running, for how long, and how far it is, if it tells."""
    started = time.monotonic()
    if not sys.stderr.isatty():
        yield
        print(f"{_named(name, told)}: {time.monotonic() - started:.1f} s", file=sys.stderr, flush=True)
        return
    done = threading.Event()
    shown = threading.Thread(target=_tick, args=(name, told, started, done), daemon=True)
    shown.start()
    try:
        yield
    finally:
        done.set()
        shown.join()
        print(f"\r\033[K{_named(name, told)}: {time.monotonic() - started:.1f} s", file=sys.stderr, flush=True)


def _tick(name: str, told: Callable[[], str] | None, started: float, done: threading.Event) -> None:
    while not done.wait(0.2):
        shown = f"{_named(name, told)} ... {time.monotonic() - started:.0f} s"
        print(f"\r\033[K{shown}", end="", file=sys.stderr, flush=True)


def _named(name: str, told: Callable[[], str] | None) -> str:
    return f"{name}, {told()}" if told else name
