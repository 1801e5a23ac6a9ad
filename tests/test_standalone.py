"""Every verb on a real Spark Standalone, submitted with the zip; Workers killed in the middle of the verbs that write.

One cluster for all tests. An undisturbed driver runs all verbs that need Spark, with dynamic allocation; then each of
three verbs is submitted by its own file and loses a Worker amid its work, and what it leaves is held against what the
undisturbed one left. Every driver takes its settings from conf/spark-defaults.onprem.conf, smaller ones over them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis

from connectors import embedded_redis
from feature_defs.errors import EXIT_DONE
from feature_defs.model import EVENT_TIME, HIDDEN
from jobs.command_line import VERBS, main
from jobs.session import _NOT_WITH_THEM, DELTA_JARS
from tests.conftest import QUICK
from tests.standalone import (
    Application,
    Standalone,
    kill_a_busy_worker,
    lost_tasks,
    running,
    spark_submit,
)
from tests.test_house import make_dist
from tests.verbs_run import END, ROOT
from tests.waiting import free_port

pytestmark = pytest.mark.parts
GROUPS = ("customer_profile", "customer_purchases", "customer_sessions", "product_profile")  # one is Parquet
WATCHED = ("customer_profile", "customer_purchases")
LOADED = ("customer_purchases",)


def named(groups: Sequence[str]) -> str:
    return " ".join(f"--group {name}" for name in groups)


CUSTOMERS = 200
MORE_THAN_A_LOG = 20_000  # bytes; the shuffles by which Delta reads its own log are smaller
NOW = f"--now {END:%Y-%m-%d}"
TRAINING_SET = "--service churn --spine lake://raw/churn_labels --out lake://work/churn"
# What needs Spark, in an order in which each finds what it needs; what needs none runs where it is asked.
COMMANDS = f"""
generate --customers {CUSTOMERS} --end {END:%Y-%m-%d}
apply
compute {NOW} {named(GROUPS)}
replay --group customer_sessions {NOW}
training-set {TRAINING_SET}
diff lake://work/churn lake://work/churn
why lake://work/churn --row customer_id=CUST011 spent_30d
maintain --group product_profile
materialize {NOW} {named(LOADED)}
verify --sample all {NOW} {named(LOADED)}
online get --group customer_purchases --entity customer_id=CUST001 --check {NOW}
test only_completed_purchases_count
compare --group customer_purchases --left PROFILE --right PROFILE
"""
NEED_NO_SPARK = {"check", "plan", "list", "show", "history", "deprecate", "replicate"}
SAME_AS_ITS_STEPS = {"demo"}
PROFILE = """
name = "{name}"
definitions = "{definitions}"
[lakes]
raw = "{folder}/raw"
features = "{folder}/{features}/features"
work = "{folder}/{name}/work"
[online]
kind = "redis"
url = "{redis}"
key_prefix = "{name}"
"""


@dataclass
class Site:
    """A cluster, the zip, a Redis, and places on them: `storm` shares the tables of `calm`, `again` makes its own."""

    folder: Path
    cluster: Standalone
    redis_url: str

    def profile(self, name: str) -> str:
        return str(self.folder / f"{name}.toml")

    def event_log(self, name: str) -> Path:
        return self.folder / "events" / name

    def submit(self, script: Path, *words: str, name: str, dynamic: bool) -> tuple[subprocess.Popen[str], Application]:
        events = self.event_log(name)
        events.mkdir(parents=True)
        port = free_port()
        conf = {
            "spark.driver.host": "127.0.0.1",
            "spark.driver.bindAddress": "127.0.0.1",
            "spark.ui.port": str(port),
            "spark.pyspark.python": sys.executable,
            "spark.cores.max": "2",
            "spark.executor.cores": "1",
            "spark.executor.memory": "512m",
            "spark.driver.memory": "1g",
            "spark.driver.extraJavaOptions": QUICK,
            "spark.executor.extraJavaOptions": QUICK,
            "spark.dynamicAllocation.enabled": str(dynamic).lower(),
            "spark.sql.shuffle.partitions": "2",
            "spark.sql.codegen.wholeStage": "false",  # compiling takes longer than these few rows do
            "spark.databricks.delta.snapshotPartitions": "2",
            "spark.eventLog.enabled": "true",
            "spark.eventLog.dir": events.as_uri(),
            "spark.eventLog.rolling.enabled": "false",
            "spark.eventLog.compress": "false",
            "spark.log.level": "ERROR",
        }
        archive = self.folder / "dist" / "tidemark.zip"
        driver = spark_submit(script, *words, master=self.cluster.url, archive=archive, conf=conf)
        return driver, Application(port)

    def disturbed(
        self,
        place: str,
        verb: str,
        *words: str,
        amid: Callable[[Application], bool],
        dynamic: bool = False,
        script: Path | None = None,
    ) -> Any:
        """The report of a verb that lost a Worker amid its work. The Worker's place is taken for the next one."""
        script = script or ROOT / "jobs" / f"{verb}.py"
        driver, application = self.submit(
            script,
            *words,
            "--profile",
            self.profile(place),
            "--json",
            name=script.stem,
            dynamic=dynamic,
        )
        with driver:
            kill_a_busy_worker(self.cluster, application, lambda: amid(application), driver)
            assert len(self.cluster.alive()) == 1
            printed, said = driver.communicate(timeout=600)
        assert driver.returncode == EXIT_DONE, said[-4000:]
        assert lost_tasks(self.event_log(script.stem)), "no task was lost: the kill hit nothing"
        self.cluster.add_workers(1)
        return json.loads(printed[printed.index("{") :])  # spark-submit prints lines of its own first

    def loaded(self, name: str) -> int:
        with redis.Redis.from_url(self.redis_url) as client:
            return len(client.keys(f"{name}:customer:*"))

    def online(self, name: str) -> dict[bytes, dict[bytes, bytes]]:
        """All that is online, but for the records of loads."""
        with redis.Redis.from_url(self.redis_url) as client:
            prefix = f"{name}:".encode()
            keys = [key for key in client.scan_iter(f"{name}:*") if client.type(key) == b"hash"]
            return {key.removeprefix(prefix): client.hgetall(key) for key in keys if not key.startswith(prefix + b"_")}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("standalone")
    make_dist(folder / "dist")
    url = embedded_redis.start(folder / "redis").url
    for name, features in (("calm", "calm"), ("storm", "calm"), ("again", "again")):
        definitions = ROOT / "feature_defs" / "examples" / "retail"
        text = PROFILE.format(name=name, features=features, definitions=definitions, folder=folder, redis=url)
        folder.joinpath(f"{name}.toml").write_text(text, encoding="utf-8")
    try:
        with running(folder / "cluster") as cluster:
            yield Site(folder, cluster, url)
    finally:
        embedded_redis.stop(folder / "redis")


@pytest.fixture(scope="module")
def calm(site: Site) -> list[Any]:
    """What the undisturbed driver said: where our code was found, then each command's report."""
    profile = site.profile("calm")
    lines = [line if "PROFILE" in line else f"{line} --profile PROFILE" for line in COMMANDS.splitlines() if line]
    commands = "\n".join(lines).replace("PROFILE", profile)
    file = site.folder / "commands"
    file.write_text(commands, encoding="utf-8")
    script = ROOT / "tests" / "standalone_driver.py"
    driver, _ = site.submit(script, str(file), site.profile("calm"), name="calm", dynamic=True)
    printed, said = driver.communicate(timeout=600)
    assert driver.returncode == EXIT_DONE, said[-4000:]
    return json.loads(printed.splitlines()[-1])


def reports(calm: list[Any], verb: str) -> list[Any]:
    return [one["report"] for one in calm[1:] if one["command"].startswith(f"{verb} ")]


def test_every_verb_that_needs_spark_runs_on_a_cluster(calm: list[Any]) -> None:
    """All in one driver, as `tidemark demo` runs its steps; each by the arguments of its command line."""
    failed = [one for one in calm[1:] if one["code"] != EXIT_DONE]
    assert not failed, failed[0]["said"]
    assert {one["command"].split()[0] for one in calm[1:]} == VERBS.keys() - NEED_NO_SPARK - SAME_AS_ITS_STEPS
    (computed,), (loaded,), (verified,) = (reports(calm, verb) for verb in ("compute", "materialize", "verify"))
    assert len(computed["groups"]) == len(GROUPS)
    assert loaded["rows"] == CUSTOMERS
    assert verified["agrees"]


def test_driver_and_executors_run_the_code_of_the_zip(calm: list[Any], site: Site) -> None:
    """Not the checkout's, which the tests' Python could import as well."""
    archive = str(site.folder / "dist" / "tidemark.zip")
    driver, *tasks = calm[0]
    assert len(tasks) == 4
    assert "tidemark.zip/" in driver
    assert all("tidemark.zip/" in task and not task.startswith(archive) for task in tasks), tasks  # a copy of their own


def test_a_worker_killed_amid_compute_costs_no_row(calm: list[Any], site: Site) -> None:
    """Behind the first table's commit and before the second's; a fixed number of executors."""
    assert main(["apply", "--profile", site.profile("again"), "--json"]) == EXIT_DONE
    features = site.folder / "again" / "features"

    def amid(_: Application) -> bool:
        return len(list(features.glob("*/v1/_delta_log/*.json"))) == 1

    report = site.disturbed("again", "compute", *NOW.split(), *named(WATCHED).split(), amid=amid)
    (expected,) = reports(calm, "compute")
    counts = {group["group"]: (group["rows"], group["rejected"]) for group in expected["groups"]}
    assert {group["group"]: (group["rows"], group["rejected"]) for group in report["groups"]} == {
        name: counts[name] for name in WATCHED
    }
    for name in WATCHED:
        assert rows_of(site, "again", name).equals(rows_of(site, "calm", name)), name


def rows_of(site: Site, place: str, group: str) -> pa.Table:
    """The feature rows of a Delta table's first version, in order, without a Spark that would have to start."""
    table = site.folder / place / "features" / group / "v1"
    commit = table.joinpath("_delta_log", f"{0:020}.json").read_text(encoding="utf-8")
    added = [json.loads(line)["add"]["path"] for line in commit.splitlines() if line.startswith('{"add"')]
    rows = pa.concat_tables([pq.read_table(table / path) for path in added])
    shown = rows.select([name for name in rows.column_names if not name.startswith(HIDDEN)])
    assert shown.num_rows
    return shown.sort_by([("customer_id", "ascending"), (EVENT_TIME, "ascending")]).combine_chunks()


@pytest.mark.parametrize("shuffled", [True, False], ids=["shuffled", "direct"])
def test_a_worker_killed_amid_a_training_set_costs_no_cell(calm: list[Any], site: Site, shuffled: bool) -> None:
    """With the shuffled rows of spine and features on the executor that went, or what a task had found in files; and
    with dynamic allocation."""

    def amid(application: Application) -> bool:
        done = application.stages("complete")
        return any(stage["shuffleWriteBytes"] > MORE_THAN_A_LOG for stage in done) if shuffled else bool(done)

    words, script = TRAINING_SET.split(), Path(__file__).with_name("standalone_shuffled.py") if shuffled else None
    report = site.disturbed("storm", "training_set", *words, amid=amid, dynamic=True, script=script)
    assert (set(report["ways"].values()) == {"direct"}) == (not shuffled)
    expected = reports(calm, "training-set")[0]
    same = ("rows", "hash", "matched", "leaked_cells", "null_key_rows")
    assert {name: report[name] for name in same} == {name: expected[name] for name in same}


@pytest.mark.usefixtures("calm")
def test_a_worker_killed_amid_a_load_costs_no_value(site: Site) -> None:
    """Some of a group's values are in Redis and some are not; the task that sent them is done again elsewhere."""

    def amid(_: Application) -> bool:
        return 0 < site.loaded("storm") < CUSTOMERS

    words = [*NOW.split(), *named(LOADED).split(), "--rate", "50"]
    report = site.disturbed("storm", "materialize", *words, amid=amid)
    assert report["rows"] == CUSTOMERS
    assert site.online("storm") == site.online("calm")


def test_submit_settings_name_the_jars_that_sessions_start_with() -> None:
    """One pair of coordinates, wherever Spark comes from, and nothing that Spark has already."""
    lines = ROOT.joinpath("conf", "spark-defaults.onprem.conf").read_text(encoding="utf-8").splitlines()
    found = dict(line.split(None, 1) for line in lines if line and not line.startswith("#"))
    assert tuple(found["spark.jars.packages"].split(",")) == DELTA_JARS
    assert tuple(found["spark.jars.excludes"].split(",")) == _NOT_WITH_THEM
