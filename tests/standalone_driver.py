"""What the tests submit to a cluster: every command of a file in one driver, each with its report as JSON.

    spark-submit ... --py-files tidemark.zip standalone_driver.py COMMANDS

The last line that it prints is a list: first where a task of each executor found our packages, then a command each.
"""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from jobs.command_line import main


def ran(command: str) -> dict[str, Any]:
    printed, told = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(told):
        code = main([*shlex.split(command), "--json"])
    return {"command": command, "code": code, "report": json.loads(printed.getvalue() or "{}"), "said": told.getvalue()}


def places_of_our_code() -> list[str]:
    """Of the driver and of a task on the cluster."""
    import jobs
    from jobs.place import open_place

    def where(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import jobs

        for _ in batches:
            yield pa.RecordBatch.from_pydict({"file": [jobs.__file__]})

    spark = open_place(sys.argv[2]).spark
    rows = spark.range(4, numPartitions=4).mapInArrow(where, "file string").collect()
    return [str(jobs.__file__), *(row["file"] for row in rows)]


if __name__ == "__main__":
    code = places_of_our_code()
    reports = [ran(line) for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines() if line]
    print(json.dumps([code, *reports]))
