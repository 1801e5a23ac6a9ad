"""DAGs of the registry: what runs when and behind what, as plain data; then as a real Airflow reads them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from feature_defs.dag_plan import DagPlan, GroupTasks, dag_plans
from feature_defs.errors import EXIT_DONE, UsageError
from feature_defs.loading import load
from jobs.command_line import main
from tests.definition_files import GOOD, loaded, write_place

ROOT = Path(__file__).resolve().parent.parent
AIRFLOW = ROOT / "build" / "airflow" / "bin" / "python"
BOTH = ("compute", "materialize")
SHOP = (
    GOOD
    + """
total = FeatureGroup(
    "total", entity=customer, source=spend, online=True, features=[Feature("spent", "double", "spent_30d")],
)
ranked = Source("ranked", inputs=[total, orders], event_time="event_time",
                sql="select t.customer_id, t.event_time, t.spent from {total} t join {orders} o using (customer_id)")
rank = FeatureGroup(
    "rank", entity=customer, source=ranked, every="1h", features=[Feature("mean", "double", Aggregate("avg", "spent"))],
)
last = FeatureGroup("last", entity=customer, source=orders, features=[Feature("amount", "double")])
weekly = FeatureGroup(
    "weekly", entity=customer, source=orders, every="7d", online=True,
    features=[Feature("week", "bigint", Aggregate("count", window="7d"))],
)
gone = FeatureGroup(
    "gone", entity=customer, source=weekly, status="deprecated", features=[Feature("week", "bigint")],
)
"""
)


def test_groups_that_read_one_another_run_together_at_the_pace_of_the_fastest(tmp_path: Path) -> None:
    """Through a source that is made from a group, too; the others at their own, once a day where they name none."""
    hourly, daily, weekly = dag_plans(loaded(tmp_path, SHOP))
    assert hourly == DagPlan(
        "tidemark_1h",
        "1h",
        (GroupTasks("spend", ("compute",), ()), GroupTasks("total", BOTH, ("spend",)),
         GroupTasks("rank", ("compute",), ("total",))),
    )  # fmt: skip
    assert daily == DagPlan("tidemark_1d", "1d", (GroupTasks("last", ("compute",), ()),))
    assert weekly == DagPlan("tidemark_1w", "1w", (GroupTasks("weekly", BOTH, ()),))


def test_a_deprecated_group_does_not_run_and_sets_no_pace(tmp_path: Path) -> None:
    text = SHOP.replace('every="1h"', 'every="1h", status="deprecated"')
    plans = dag_plans(loaded(tmp_path, text), every="2d")
    assert [(plan.name, [tasks.group for tasks in plan.groups]) for plan in plans] == [
        ("tidemark_1d", ["spend", "total"]),
        ("tidemark_2d", ["last"]),
        ("tidemark_1w", ["weekly"]),
    ]


def test_the_example_runs_once_a_day() -> None:
    (plan,) = dag_plans(load(ROOT / "feature_defs" / "examples" / "retail"))
    assert len(plan.groups) == 5
    assert all(tasks == GroupTasks(tasks.group, BOTH, ()) for tasks in plan.groups)


def test_a_pace_that_is_no_length_of_time_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'daily' is not a length of time"):
        dag_plans(loaded(tmp_path), every="daily")


def test_without_airflow_the_import_says_what_to_install() -> None:
    """Airflow is not among what the other tests need."""
    script = "import jobs.airflow_dags"
    ran = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    said = ran.stderr.splitlines()
    assert said[-2].endswith("MissingPartError: Airflow: DAGs need Airflow 3, and there is no package 'airflow'")
    assert said[-1] == "Hint: pip install 'tidemark[airflow]'"


# a real Airflow


def airflow(folder: Path, home: Path) -> Any:
    """What Airflow finds in a folder of DAGs."""
    assert AIRFLOW.exists(), f"no Airflow in {AIRFLOW.parent.parent}: run `make airflow`"
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "PYTHON"))}
    settings = {"AIRFLOW_HOME": str(home), "AIRFLOW__CORE__LOAD_EXAMPLES": "False", "PYTHONPATH": str(ROOT)}
    command = [str(AIRFLOW), str(ROOT / "tests" / "airflow_run.py"), str(folder)]
    ran = subprocess.run(command, env={**kept, **settings}, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-4000:]
    return json.loads(ran.stdout.splitlines()[-1])


def test_airflow_reads_the_dags_of_a_place_and_runs_their_commands(tmp_path: Path) -> None:
    """A file as docs/airflow.md has it, found as Airflow finds files; and one whose registry is not there."""
    profile = write_place(tmp_path / "a place", SHOP)
    assert main(["apply", "--profile", str(profile)]) == EXIT_DONE
    dags = tmp_path / "dags"
    dags.mkdir()
    begin = "from jobs.airflow_dags import build_dags\n\nglobals().update(build_dags("
    dags.joinpath("shop.py").write_text(f'{begin}"{profile}", command="echo {{verb}} {{file}}"))\n')
    dags.joinpath("lost.py").write_text(f'{begin}"{tmp_path}/lost.toml"))\n')
    found = airflow(dags, tmp_path / "airflow")
    (lost,) = found["errors"].values()
    assert "Profile" in lost
    assert found["dags"].keys() == {"tidemark_1h", "tidemark_1d", "tidemark_1w"}
    for name, seconds in (("tidemark_1h", 3600), ("tidemark_1d", 86_400), ("tidemark_1w", 604_800)):
        first, behind = found["dags"][name]["runs"]
        assert (first % seconds, behind - first) == (0, seconds), "a run begins when a cell of the grid is over"
    hourly = found["dags"]["tidemark_1h"]
    assert (hourly["catchup"], hourly["most_runs"]) == (False, 1)
    assert {name: task["after"] for name, task in hourly["tasks"].items()} == {
        "spend.compute": [],
        "total.compute": ["spend.compute"],
        "total.materialize": ["total.compute"],
        "rank.compute": ["total.compute"],
    }
    task = hourly["tasks"]["total.materialize"]
    assert (task["group"], task["retries"]) == ("total", 2)
    assert task["says"] == f"materialize jobs/materialize.py --group total --profile {profile}"


def test_the_environment_of_airflow_is_one_that_the_extra_allows() -> None:
    setup = ROOT.joinpath("setup.py").read_text(encoding="utf-8")
    extra = next(Requirement(part) for part in setup.split('"') if part.startswith("apache-airflow"))
    lines = ROOT.joinpath("tests", "airflow.lock").read_text(encoding="utf-8").splitlines()
    (locked,) = (line.partition("==")[2] for line in lines if line.startswith("apache-airflow=="))
    assert extra.specifier.contains(locked)
