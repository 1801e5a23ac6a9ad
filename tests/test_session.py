"""Settings that Spark cannot start with: each in a process of its own, as a session of the tests is there already."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs import session

ROOT = Path(__file__).parent.parent
START = """
import sys
from pathlib import Path
from feature_defs.errors import TidemarkError
from jobs.session import open_session
from jobs.settings import SparkSettings
from tests.conftest import settings_in
master, memory = sys.argv[2:]
spark = SparkSettings(master=master, conf={"spark.driver.memory": memory})
try:
    open_session(settings_in(Path(sys.argv[1]), spark=spark))
except TidemarkError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize(
    ("master", "memory", "problem", "hint"),
    [
        ("local[x]", "1g", "key 'spark.master' is 'local[x]': Could not parse Master URL: 'local[x]'",
         "write local[2], local[*]"),
        ("locl", "1g", "Java ended before Spark began, the lines above say why; key 'spark.master' is 'locl'",
         "correct spark.master"),
        ("local[2]", "1x", "key 'spark.conf' has spark.driver.memory = 1x: Invalid maximum heap size: -Xmx1x",
         'write a size as spark.driver.memory = "2g"'),
        ("local[2]", "100m", "key 'spark.conf' has spark.driver.memory = 100m: System memory ",
         'write a size as spark.driver.memory = "2g"'),
    ],
)  # fmt: skip
def test_setting_that_spark_cannot_start_with_is_named(
    tmp_path: Path, master: str, memory: str, problem: str, hint: str
) -> None:
    command = [sys.executable, "-c", START, str(tmp_path), master, memory]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    first, second = ran.stdout.strip().splitlines()
    assert first.startswith(f"UsageError Profile 'test': {problem}")
    assert second.startswith(f"Hint: {hint}")
    assert "Traceback" not in ran.stderr


def test_interrupted_call_of_java_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    session._silence_query_logs()
    session._silence_query_logs()
    logging.error("KeyboardInterrupt while sending command.")  # noqa: LOG015 - as py4j does
    try:
        try:
            raise RuntimeError("reentrant call inside <_io.BufferedReader name=3>")
        except RuntimeError:
            raise ConnectionError("Error while sending or receiving")  # noqa: B904 - as py4j does
    except ConnectionError:
        logging.exception("Exception while sending command.")  # noqa: LOG015
    logging.error("another")  # noqa: LOG015
    assert [record.getMessage() for record in caplog.records] == ["another"]
