"""The asset bundle of conf/databricks, without a workspace: jobs by Databricks' own classes, commands by our parser.

The databricks command line is not needed: this reads the YAML files, lays a target's part over each job as the command
line does (tasks, clusters and environments meet by their keys), and fills the variables in.
"""

from __future__ import annotations

import copy
import importlib
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from databricks.bundles.jobs import Job
from databricks.bundles.secret_scopes import SecretScope

from feature_defs.errors import UsageError
from jobs.command_line import VERBS, verb_parser
from jobs.settings import load_settings
from tests.test_house import make_dist

ROOT = Path(__file__).resolve().parent.parent
BUNDLE = ROOT / "conf" / "databricks"
KEYS = ("task_key", "job_cluster_key", "environment_key", "name")
FILES = "/Workspace/Users/someone/.bundle/tidemark/files"
TARGETS = ("clusters", "serverless")
NOT_SERVERLESS = {"materialize", "verify", "maintain"}  # they talk to Redis, or need settings of Delta


def read(file: Path) -> Any:
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def overlaid(base: Any, over: Any) -> Any:
    if isinstance(base, dict) and isinstance(over, dict):
        return {**base, **{name: overlaid(base.get(name), value) for name, value in over.items()}}
    if isinstance(base, list) and isinstance(over, list) and all(isinstance(item, dict) for item in (*base, *over)):
        merged = {keyed(item): item for item in base}
        for item in over:
            merged[keyed(item)] = overlaid(merged.get(keyed(item)), item)
        return list(merged.values())
    return over


def keyed(item: dict[str, Any]) -> str:
    return next((str(item[key]) for key in KEYS if key in item), json.dumps(item))


def filled(value: Any, variables: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {name: filled(inner, variables) for name, inner in value.items()}
    if isinstance(value, list):
        return [filled(inner, variables) for inner in value]
    if isinstance(value, str):
        return re.sub(r"\$\{([a-z_.]+)\}", lambda found: variables[found[1]], value)
    return value


def bundle() -> dict[str, Any]:
    """The files that databricks.yml includes, each with the folder from which its paths go."""
    found = read(BUNDLE / "databricks.yml")
    for pattern in found["include"]:
        for file in sorted(BUNDLE.glob(pattern)):
            found = overlaid(found, with_files(read(file), file.parent))
    return found


def with_files(value: Any, folder: Path) -> Any:
    """Paths beginning with a dot, as the file that each means."""
    if isinstance(value, dict):
        return {name: with_files(inner, folder) for name, inner in value.items()}
    if isinstance(value, list):
        return [with_files(inner, folder) for inner in value]
    if isinstance(value, str) and value.startswith("../"):
        return str((folder / value).resolve())
    return value


def jobs_of(target: str) -> dict[str, Any]:
    whole = bundle()
    variables = {f"var.{name}": str(variable["default"]) for name, variable in whole["variables"].items()}
    over = whole["targets"][target]["resources"]["jobs"]
    assert over.keys() == whole["resources"]["jobs"].keys()
    jobs = overlaid(copy.deepcopy(whole["resources"]["jobs"]), over)
    return filled(jobs, {**variables, "workspace.file_path": FILES})


def commands(target: str) -> list[tuple[str, list[str]]]:
    found = []
    for job in jobs_of(target).values():
        given = {f"job.parameters.{one['name']}": one["default"] for one in job.get("parameters", [])}
        for task in job["tasks"]:
            words = [
                re.sub(r"\{\{([a-z_.]+)\}\}", lambda part, given=given: given[part[1]], word)
                for word in task["python_wheel_task"]["parameters"]
            ]
            found.append((task["task_key"], words))
    return found


@pytest.mark.parametrize("target", TARGETS)
def test_every_job_is_one_that_databricks_takes(target: str) -> None:
    """By the classes of databricks-bundles, which refuse a field that there is not and a value of another type."""
    for name, job in jobs_of(target).items():
        taken = Job.from_dict(copy.deepcopy(job))
        assert taken.as_dict()["name"].startswith("tidemark"), name
    with pytest.raises(ValueError, match="Unexpected field 'sparkversion'"):
        Job.from_dict({"job_clusters": [{"job_cluster_key": "a", "new_cluster": {"sparkversion": "1"}}]})


@pytest.mark.parametrize("target", TARGETS)
def test_every_task_has_one_place_to_run_that_its_job_brings(target: str) -> None:
    for job in jobs_of(target).values():
        clusters = {one["job_cluster_key"] for one in job.get("job_clusters", [])}
        environments = {one["environment_key"] for one in job.get("environments", [])}
        tasks = {task["task_key"] for task in job["tasks"]}
        for task in job["tasks"]:
            chosen = [task.get("job_cluster_key"), task.get("environment_key")]
            assert chosen.count(None) == 1, task
            assert chosen[0] in {None, *clusters}
            assert chosen[1] in {None, *environments}
            assert {one["task_key"] for one in task.get("depends_on", [])} <= tasks
            assert ("libraries" in task) == (chosen[0] is not None), "an environment brings the wheel itself"


@pytest.mark.parametrize("target", TARGETS)
def test_every_command_is_one_of_the_command_line(target: str) -> None:
    """Each verb exists, and its parameters are parsed by the parser that will parse them."""
    found = commands(target)
    for key, (verb, *words) in found:
        assert verb in VERBS
        assert verb.replace("-", "_") == key
        args = verb_parser(verb, importlib.import_module(VERBS[verb].module)).parse_args(words)
        assert args.profile == f"{FILES}/conf/databricks.toml"
    assert {words[0] for _, words in found} >= {"apply", "compute", "training-set", "materialize", "verify"}


def test_serverless_compute_runs_what_it_can() -> None:
    """Python code in its tasks cannot open a connection, and its sessions refuse settings."""
    for job in jobs_of("serverless").values():
        for task in job["tasks"]:
            assert ("environment_key" in task) == (task["task_key"] not in NOT_SERVERLESS), task["task_key"]


@pytest.mark.parametrize("target", TARGETS)
def test_jobs_install_the_wheel_that_make_dist_builds(target: str, tmp_path: Path) -> None:
    """Its file, the name of its package, and an entry point in it."""
    make_dist(tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    expected = str(ROOT / "dist" / wheel.name)
    assert [one["source"] for one in with_files(bundle()["artifacts"]["wheel"]["files"], BUNDLE)] == [expected]
    for job in jobs_of(target).values():
        for environment in job.get("environments", []):
            assert environment["spec"]["dependencies"][0] == expected
        for task in job["tasks"]:
            assert [one["whl"] for one in task.get("libraries", []) if "whl" in one] in ([], [expected])
            ran = task["python_wheel_task"]
            files = zipfile.ZipFile(wheel)
            (metadata,) = (name for name in files.namelist() if name.endswith(".dist-info/METADATA"))
            (points,) = (name for name in files.namelist() if name.endswith(".dist-info/entry_points.txt"))
            assert f"\nName: {ran['package_name']}\n" in files.read(metadata).decode()
            assert f"\n{ran['entry_point']} = jobs.command_line:run_task\n" in files.read(points).decode()


def test_profile_and_definitions_lie_in_the_workspace_as_in_the_checkout() -> None:
    """What is brought holds the profile, and the definitions are where it says, from its own folder."""
    whole = bundle()
    brought = [Path(path) for path in with_files(whole["sync"]["paths"], BUNDLE)]
    profile = ROOT / whole["variables"]["profile"]["default"]
    settings = load_settings(str(profile))
    for wanted in (profile, Path(settings.definitions)):
        assert wanted.exists()
        assert any(wanted.is_relative_to(path) for path in brought), wanted


def test_the_profile_with_tables_of_unity_catalog_loads_too(tmp_path: Path) -> None:
    """As it stands there in a comment."""
    text = ROOT.joinpath("conf", "databricks.toml").read_text(encoding="utf-8")
    by_name = text.replace('\noffline = "lake://features"', "").replace("# offline", "offline")
    tmp_path.joinpath("databricks.toml").write_text(by_name, encoding="utf-8")
    settings = load_settings(str(tmp_path / "databricks.toml"), {})
    assert (settings.offline, settings.offline_files) == ("main.features", "lake://features")


def test_the_notebook_is_brought_in_the_source_format_of_databricks() -> None:
    """tests/test_ways_to_run.py runs its cells."""
    notebook = ROOT / "notebooks" / "quickstart.py"
    first, *lines = notebook.read_text(encoding="utf-8").splitlines()
    assert first == "# Databricks notebook source"
    assert lines.count("# COMMAND ----------") >= 3
    assert any(notebook.is_relative_to(path) for path in with_files(bundle()["sync"]["paths"], BUNDLE))


def test_every_secret_scope_of_the_profile_is_one_that_the_bundle_makes() -> None:
    scopes = bundle()["resources"]["secret_scopes"]
    made = {SecretScope.from_dict(scope).as_dict()["name"] for scope in scopes.values()}
    text = ROOT.joinpath("conf", "databricks.toml").read_text(encoding="utf-8")
    named = set(re.findall(r'"scope:([^/"]+)/', text))
    assert named
    assert named <= made


def test_schedules_begin_paused_and_have_the_fields_of_quartz() -> None:
    """A first deploy starts nothing."""
    schedules = [job["schedule"] for job in jobs_of("clusters").values() if "schedule" in job]
    assert len(schedules) == 4
    for schedule in schedules:
        assert schedule["pause_status"] == "PAUSED"
        assert len(schedule["quartz_cron_expression"].split()) == 6
        assert schedule["timezone_id"] == "UTC"


def test_a_task_fails_by_an_exception_and_ends_without_one() -> None:
    """As the runner of wheel tasks calls it: parameters in sys.argv, the answer dropped."""

    def called(*words: str) -> subprocess.CompletedProcess[str]:
        script = f"import sys; sys.argv = {['task', *words]!r}; from jobs.command_line import run_task; run_task()"
        return subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)

    good = called("check", "--profile", "conf/databricks.toml")
    assert (good.returncode, good.stderr) == (0, "")
    bad = called("materialise")
    assert "tidemark: `tidemark`: 'materialise' is not a verb" in bad.stderr
    assert f"TaskFailed: `tidemark materialise` ended with exit code {UsageError.exit_code}" in bad.stderr
