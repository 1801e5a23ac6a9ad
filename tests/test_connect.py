"""The verbs on a real Spark Connect server, as on Databricks shared and serverless compute: as on a classic session."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from connectors import embedded_redis
from jobs.generate import generate
from jobs.place import Place
from tests.verbs_run import END, ROOT, example_settings, run_verbs


@pytest.fixture
def redis_url(tmp_path: Path) -> Iterator[str]:
    yield embedded_redis.start(tmp_path / "redis").url
    embedded_redis.stop(tmp_path / "redis")


def test_verbs_on_spark_connect_give_what_they_give_on_a_classic_session(
    spark: SparkSession, tmp_path: Path, redis_url: str
) -> None:
    classic, connect, raw = tmp_path / "classic", tmp_path / "connect", tmp_path / "raw"
    classic.mkdir()
    connect.mkdir()
    place = Place(example_settings(classic, raw, redis_url))
    generate(place, customers=40, end=END)
    command = [sys.executable, "-m", "tests.verbs_run", str(connect), str(raw), redis_url]
    # the server's Python workers have a working directory of their own; a cluster has the wheel installed
    environment = {**os.environ, "PYSPARK_PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    log = (tmp_path / "connect.log").open("w+")
    with (
        log,
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=log, text=True) as other,
    ):
        expected = run_verbs(place, classic)
        printed, _ = other.communicate(timeout=400)
        log.seek(0)
        assert other.returncode == 0, log.read()[-4000:]
    found = json.loads(printed.splitlines()[-1])
    assert found.pop("session") == "pyspark.sql.connect.session"
    assert found.keys() == expected.keys()
    for part, value in expected.items():
        assert found[part] == value, part
    assert expected["compute"]["rejected"] == sum(group["rejected"] for group in expected["compute"]["groups"])
    assert expected["way"] == "direct"
    assert expected["verify"]["agrees"]
    assert expected["customer"]["agrees"]
    assert expected["product"]["agrees"]
