"""generate: write the example retailer's raw data into the lake `raw`, of any size, the same for the same seed."""

from __future__ import annotations

import argparse
import datetime
import json
import time
from dataclasses import dataclass

from connectors.file_store import open_file_store
from connectors.lakes import joined
from feature_defs.errors import UsageError
from jobs import arguments
from jobs.place import Place, now_us
from jobs.report import step, table
from jobs.transforms import example_data

RAW = "lake://raw"
MARKER = "_example.json"
_TABLES = (
    (example_data.customers, "parquet"),
    (example_data.products, "parquet"),
    (example_data.purchases, "delta"),
    (example_data.web_sessions, "json"),
    (example_data.churn_labels, "parquet"),
)


@dataclass(frozen=True)
class GenerateReport:
    """`tables` are (path, format, rows)."""

    tables: tuple[tuple[str, str, int], ...]
    end: str
    seed: int
    seconds: float
    exit_code: int = 0

    def text(self) -> str:
        shown = table(["path", "format", "rows"], self.tables)
        return f"{shown}\n90 days up to {self.end}, seed {self.seed}, {self.seconds:.1f} s"


def generate(
    place: Place, *, customers: int = 1000, seed: int = 7, end: datetime.datetime | None = None
) -> GenerateReport:
    """Write the tables; data there that this verb did not write is refused."""
    started = time.monotonic()
    if customers < 1:
        raise UsageError("Option --customers", f"{customers} is not a size", hint="use a whole number from 1")
    root = place.lakes.uri(RAW)
    _refuse_what_is_not_ours(root)
    end_us = now_us(end) // example_data.DAY_US * example_data.DAY_US
    written = []
    for make, table_format in _TABLES:
        name = make.__name__
        with step(f"generate {name}"):
            count = max(10, customers // 10) if name == "products" else customers
            rows = make(place.spark, count=count, end_us=end_us, seed=seed)
            rows.write.format(table_format).mode("overwrite").save(joined(root, name))
            written.append((joined(RAW, name), table_format, rows.count()))
    day = datetime.datetime.fromtimestamp(end_us / 1e6, datetime.timezone.utc)
    return GenerateReport(tuple(written), day.strftime("%Y-%m-%d"), seed, round(time.monotonic() - started, 3))


def _refuse_what_is_not_ours(root: str) -> None:
    files = open_file_store(root)
    names = {file.path.split("/")[0] for file in files.list_files(root)}
    taken = sorted(names & {make.__name__ for make, _ in _TABLES})
    if MARKER in names:
        return
    if taken:
        problem = f"holds '{taken[0]}', which `tidemark generate` did not write"
        raise UsageError(f"Lake path '{RAW}'", problem, hint="use a profile whose raw lake is for examples")
    files.create(joined(root, MARKER), json.dumps({"written by": "tidemark generate"}).encode())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--customers", type=int, default=1000, metavar="N", help="how many; all else follows (default: 1000)"
    )
    parser.add_argument("--seed", type=int, default=7, metavar="N", help="another seed, other rows (default: 7)")
    parser.add_argument("--end", type=arguments.moment, metavar="DATE", help="the day the 90 days end (default: today)")


def run(place: Place, args: argparse.Namespace) -> GenerateReport:
    return generate(place, customers=args.customers, seed=args.seed, end=args.end)


if __name__ == "__main__":
    from jobs.command_line import run_verb

    run_verb("generate")
