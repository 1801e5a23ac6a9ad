r"""Tables as text: what a case or a test says is what its reader sees.

    customer_id | event_time          | amount
    c1          | 2026-01-01 10:00:00 | 5

`null` is null and an empty cell is an empty text; `\|` is a bar inside a cell.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_BAR = re.compile(r"(?<!\\)\|")


@dataclass(frozen=True)
class PipeTable:
    """Columns and rows of cells, a null as None. `lines` says on which line of the text, from 0, each row stands."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str | None, ...], ...]
    lines: tuple[int, ...]

    @property
    def ragged(self) -> tuple[int, ...]:
        """The rows, by number, that have more or fewer cells than there are columns."""
        return tuple(number for number, row in enumerate(self.rows) if len(row) != len(self.columns))


def parse(text: str) -> PipeTable:
    """A text without any line is a table without columns."""
    numbered = [(number, line) for number, line in enumerate(text.splitlines()) if line.strip()]
    if not numbered:
        return PipeTable((), (), ())
    (_, header), *rest = numbered
    rows = tuple(tuple(None if cell == "null" else cell for cell in _cells(line)) for _, line in rest)
    return PipeTable(tuple(_cells(header)), rows, tuple(number for number, _ in rest))


def _cells(line: str) -> list[str]:
    return [cell.strip().replace("\\|", "|") for cell in _BAR.split(line)]
