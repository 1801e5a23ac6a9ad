"""training-set as it goes where tasks cannot read the tables' files themselves: rows are shuffled."""

from __future__ import annotations

from jobs import joining
from jobs.command_line import run_verb

if __name__ == "__main__":
    joining.MOST_DIRECT = 0
    run_verb("training-set")
