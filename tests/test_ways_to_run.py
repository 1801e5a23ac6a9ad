"""One function behind every way to run a verb: a shell, spark-submit with the zip, a notebook; and Java missing."""

from __future__ import annotations

import datetime
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from fnmatch import fnmatch
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pyspark
import pytest

from jobs.session import _NOT_WITH_THEM, DELTA_JARS, cached_jars, one_at_a_time, with_jars
from jobs.settings import DatabaseSettings, Settings, SparkSettings
from tests.drivers import SQLITE

ROOT = Path(__file__).resolve().parent.parent
RETAIL = ROOT / "feature_defs" / "examples" / "retail"


@pytest.fixture
def project(tmp_path):
    """A folder with the local profile; everything that is written stays below it, and its Redis ends with the test."""
    folder = tmp_path / "project"
    shutil.copytree(ROOT / "conf", folder / "conf")
    yield folder
    ran([sys.executable, str(ROOT / "jobs" / "online.py"), "stop"], folder)


def ran(command: list[str], project: Path, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TIDEMARK_DEFINITIONS": str(RETAIL), **more}
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)


def write_customers(folder: Path, *, count: int) -> None:
    """The source of customer_profile, without Spark."""
    day = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)
    columns = {
        "customer_id": [f"CUST{number:03}" for number in range(count)],
        "email": ["someone@mail.example"] * count,
        "country": ["AT"] * count,
        "birth_date": [day.date()] * count,
        "updated_at": pa.array([day] * count, pa.timestamp("us", "UTC")),
    }
    folder.mkdir(parents=True)
    pq.write_table(pa.table(columns), folder / "part-0.parquet")


def test_module_and_file_run_the_same_verb(project):
    """`python -m jobs check` is `python jobs/check.py`."""
    module = ran([sys.executable, "-m", "jobs", "check", "--json"], project)
    file = ran([sys.executable, str(ROOT / "jobs" / "check.py"), "--json"], project)
    assert (module.returncode, file.returncode) == (0, 0), module.stderr + file.stderr
    assert json.loads(module.stdout)["groups"] == json.loads(file.stdout)["groups"]


@pytest.mark.usefixtures("spark")  # it has put the Delta jars into the cache
def test_standard_output_holds_the_report_alone(project):
    """Delta's VACUUM prints on the standard output of its JVM."""
    write_customers(project / ".tidemark" / "lake" / "raw" / "customers", count=20)
    assert ran([sys.executable, "-m", "jobs", "apply"], project).returncode == 0
    for verb in ("compute", "maintain"):
        done = ran([sys.executable, "-m", "jobs", verb, "--group", "customer_profile", "--json"], project)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["verb"] == verb, done.stdout
    assert "Deleted 0 files" in done.stderr


@pytest.mark.usefixtures("spark")  # it has put the Delta jars into the cache
def test_spark_submit_runs_a_verb_with_the_zip(project, tmp_path):
    """No Tidemark but the zip, the command line's own master and jars, and a Python worker that needs the zip too."""
    archive = tmp_path / "tidemark.zip"
    with zipfile.ZipFile(archive, "w") as made:
        for package in ("feature_defs", "connectors", "jobs"):
            for file in (ROOT / package).rglob("*.py"):
                made.write(file, file.relative_to(ROOT))
    verbs = tmp_path / "verbs"
    verbs.mkdir()
    submit = [
        str(Path(pyspark.__file__).parent / "bin" / "spark-submit"),
        *("--master", "local[1]", "--jars", ",".join(map(str, cached_jars())), "--py-files", str(archive)),
        *("--conf", "spark.ui.enabled=false", "--conf", "spark.driver.host=127.0.0.1"),
    ]

    def submitted(verb: str, *arguments: str) -> str:
        shutil.copy(ROOT / "jobs" / f"{verb}.py", verbs)
        local = {"PYTHONPATH": "", "PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"}
        done = ran([*submit, str(verbs / f"{verb}.py"), *arguments, "--json"], project, **local)
        assert done.returncode == 0, done.stderr
        return done.stdout[done.stdout.index("{") :]  # spark-submit prints a line of its own first

    write_customers(project / ".tidemark" / "lake" / "raw" / "customers", count=20)
    assert ran([sys.executable, "-m", "jobs", "apply"], project).returncode == 0
    computed = json.loads(submitted("compute", "--group", "customer_profile"))
    assert computed["rows"] == 20
    loaded = json.loads(submitted("materialize", "--group", "customer_profile"))
    assert loaded["groups"][0]["written"] == 20


def test_notebook_runs_as_plain_python(project):
    """The quickstart goes from raw data to an online read that agrees with the offline tables."""
    done = ran([sys.executable, str(ROOT / "notebooks" / "quickstart.py")], project)
    assert done.returncode == 0, done.stderr
    assert "CUST001" in done.stdout
    assert done.stdout.rstrip().endswith("online and offline agree")


def test_missing_java_is_said_with_the_way_to_get_it(project):
    """Before Spark tries, and with an exit code of its own."""
    done = ran([sys.executable, "-m", "jobs", "generate"], project, PATH="/nowhere", JAVA_HOME="")
    assert done.returncode == 8, done.stderr
    assert "Java: Spark needs Java 17 or newer: no `java` on the PATH" in done.stderr
    assert "apt-get install openjdk-17-jre-headless" in done.stderr
    assert "Traceback" not in done.stderr


def test_wrong_java_home_is_named(project):
    """The variable is the mistake, whatever the PATH holds."""
    done = ran([sys.executable, "-m", "jobs", "generate"], project, JAVA_HOME="/no/such/java")
    assert done.returncode == 8, done.stderr
    assert "JAVA_HOME is /no/such/java" in done.stderr


def test_old_java_is_refused_with_its_version(project, tmp_path):
    """Spark 4 on Java 11 fails much later and far less clearly."""
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    java.write_text("#!/bin/sh\necho 'openjdk version \"11.0.20\" 2023-07-18' >&2\n")
    java.chmod(0o755)
    done = ran([sys.executable, "-m", "jobs", "generate"], project, JAVA_HOME=str(tmp_path))
    assert done.returncode == 8, done.stderr
    assert "is version 11" in done.stderr


@pytest.mark.usefixtures("spark")
def test_cached_jars_are_passed_by_path_so_that_no_network_is_needed():
    """With a warm cache the resolver is not asked at all."""
    from jobs.session import _jars

    found = _jars(SparkSettings(master="local[1]"))
    assert "spark.jars.packages" not in found
    assert len(found["spark.jars"].split(",")) == len(DELTA_JARS)


def test_of_two_processes_one_fetches_jars_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def is_free() -> bool:
        with next(tmp_path.glob("tidemark-jars-*")).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        return True

    with one_at_a_time():
        assert not is_free()
    assert is_free()


def settings_of(jars: str, **conf: str) -> Settings:
    databases = {"shop": DatabaseSettings(url="jdbc:sqlite:shop.db", jars=jars)}
    spark = SparkSettings(master="local[1]", conf=conf)
    return Settings(name="test", definitions=".", lakes={}, spark=spark, databases=databases)


@pytest.mark.usefixtures("spark")
def test_jars_are_found_in_every_cache_and_in_the_home_that_java_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # as containers do; Java asks the system
    assert len(cached_jars()) == len(DELTA_JARS)
    for cache, name in ((".ivy2", "a_b-1.jar"), (".ivy2.9", "c_d-1.jar")):
        (tmp_path / cache / "jars").mkdir(parents=True)
        (tmp_path / cache / "jars" / name).touch()
    assert [jar.name for jar in cached_jars(["a:b:1", "c:d:1"])] == ["a_b-1.jar", "c_d-1.jar"]
    assert cached_jars(["a:b:1", "c:e:1"]) == []


@pytest.mark.usefixtures("spark")
def test_a_drivers_jar_is_passed_by_path_too_once_it_is_cached() -> None:
    found = with_jars(settings_of(SQLITE, **{"spark.jars": "/my/own.jar", "spark.ui.enabled": "false"}))
    assert "spark.jars.packages" not in found
    assert found["spark.jars"].split(",") == [*map(str, cached_jars([*DELTA_JARS, SQLITE])), "/my/own.jar"]
    assert found["spark.ui.enabled"] == "false"


def test_packages_of_the_profile_stand_beside_ours_when_the_cache_is_cold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.session._homes", lambda: [tmp_path])
    own = {"spark.jars.packages": "org.example:own:1", "spark.jars.excludes": "org.example:not"}
    found = with_jars(settings_of(f"{SQLITE}, com.h2database:h2:2.3.232", **own))
    assert found["spark.jars.packages"].split(",") == [
        *DELTA_JARS, SQLITE, "com.h2database:h2:2.3.232", "org.example:own:1",
    ]  # fmt: skip
    assert found["spark.jars.excludes"].endswith(",org.example:not")
    assert "spark.jars" not in found


def test_no_exclusion_hides_a_driver_or_a_file_system() -> None:
    """Spark's resolver leaves out what matches, also when it was asked for by name."""
    wanted = [
        SQLITE, "com.h2database:h2:1", "com.mysql:mysql-connector-j:1", "com.oracle.database.jdbc:ojdbc11:1",
        "com.microsoft.sqlserver:mssql-jdbc:1", "com.google.cloud.bigdataoss:gcs-connector:1", "org.mariadb.jdbc:x:1",
        "org.postgresql:postgresql:1", "org.apache.derby:derby:1", "org.apache.hadoop:hadoop-azure:1", *DELTA_JARS,
    ]  # fmt: skip
    excluded = [pattern for pattern in _NOT_WITH_THEM for jar in wanted if fnmatch(jar.rpartition(":")[0], pattern)]
    assert excluded == []
