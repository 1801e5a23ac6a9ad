"""demo: the example from raw data to an online read. Each step prints the command a user would type, and its output.

The commands run in this process, so that Spark starts once; typed one by one they give the same.
"""

from __future__ import annotations

import argparse
import shlex
import time
from dataclasses import dataclass

from feature_defs.errors import TidemarkError
from jobs.place import Place

STEPS = (
    ("Raw data of a retailer", "generate --customers {customers}"),
    ("Register the definitions", "apply"),
    ("Compute every feature group", "compute"),
    (
        "Build a training set, point in time",
        "training-set --service churn --spine lake://raw/churn_labels --out lake://work/churn_train",
    ),
    ("Load the latest values into Redis", "materialize"),
    (
        "Read one customer back, and hold it against the offline tables",
        "online get --service churn --entity customer_id=CUST001 --check",
    ),
)


@dataclass(frozen=True)
class DemoReport:
    steps: int
    seconds: float
    exit_code: int = 0

    def text(self) -> str:
        return f"demo: {self.steps} steps done in {self.seconds:.0f} s"


class DemoFailed(TidemarkError):
    """A step failed; its own message and exit code stand."""


def demo(place: Place, *, customers: int = 1000) -> DemoReport:
    """Run the steps in order; the first that fails ends the demo."""
    from jobs.command_line import main

    started = time.monotonic()
    profile = ["--profile", place.settings.file]
    for title, text in STEPS:
        command = text.format(customers=customers)
        print(f"\n# {title}\n$ tidemark {command}", flush=True)
        code = main([*shlex.split(command), *profile])
        if code:
            failed = DemoFailed(
                "Demo", f"`tidemark {command}` ended with exit code {code}", hint="its message is above"
            )
            failed.exit_code = code
            raise failed
    print()
    return DemoReport(len(STEPS), round(time.monotonic() - started, 1))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--customers", type=int, default=1000, metavar="N", help="how much data (default: 1000)")


def run(place: Place, args: argparse.Namespace) -> DemoReport:
    return demo(place, customers=args.customers)


if __name__ == "__main__":
    from jobs.command_line import run_verb

    run_verb("demo")
