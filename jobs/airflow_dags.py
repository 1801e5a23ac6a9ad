"""Airflow DAGs of the registry: a DAG a schedule, a task group a feature group, edges by lineage.

    registry -> definitions in force -> feature_defs.dag_plan -> DAGs whose tasks are commands

A file in Airflow's folder of DAGs says which place; after an `apply` Airflow shows the change at its next look:

    from jobs.airflow_dags import build_dags

    globals().update(build_dags("/opt/tidemark/conf/onprem.toml"))
"""

from __future__ import annotations

import datetime
import shlex
from collections.abc import Mapping
from itertools import pairwise

from feature_defs import durations
from feature_defs.dag_plan import EVERY, DagPlan, GroupTasks, dag_plans
from feature_defs.errors import MissingPartError
from jobs.command_line import VERBS
from jobs.place import open_place

try:
    from airflow.providers.standard.operators.bash import BashOperator
    from airflow.sdk import DAG, DeltaDataIntervalTimetable, TaskGroup
except ModuleNotFoundError as error:
    problem = f"DAGs need Airflow 3, and there is no package '{error.name}'"
    raise MissingPartError("Airflow", problem, hint="pip install 'tidemark[airflow]'") from error

COMMAND = "tidemark {verb}"
_START = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)  # any time that is past
_AGAIN = {"retries": 2, "retry_delay": datetime.timedelta(minutes=5)}  # a run that ended amid its work changed nothing


def build_dags(
    profile: str,
    *,
    command: str = COMMAND,
    every: str = EVERY,
    default_args: Mapping[str, object] | None = None,
) -> dict[str, DAG]:
    """The DAGs by name. `command` starts a verb: `{verb}` is its name, `{file}` its file below the checkout.

    `every` is the pace of groups that name none.
    """
    plans = dag_plans(open_place(profile).applied().definitions, every=every)
    return {plan.name: _dag(plan, profile, command, {**_AGAIN, **(default_args or {})}) for plan in plans}


def _dag(plan: DagPlan, profile: str, command: str, default_args: Mapping[str, object]) -> DAG:
    pace = datetime.timedelta(microseconds=durations.microseconds(plan.every))
    with DAG(
        plan.name,
        # A bare timedelta would count from the moment that Airflow first saw the DAG; this one counts from 1970, as the
        # grid of a group with `every` does: a run begins when a cell is over.
        schedule=DeltaDataIntervalTimetable(pace),
        start_date=_START,
        catchup=False,  # a run computes all that has come since the last one
        max_active_runs=1,  # two runs of a group at once: the second is refused
        default_args=dict(default_args),
        tags=["tidemark"],
    ) as dag:
        computed = {tasks.group: _task_group(tasks, profile, command) for tasks in plan.groups}
        for tasks in plan.groups:
            for other in tasks.after:
                computed[other] >> computed[tasks.group]
    return dag


def _task_group(tasks: GroupTasks, profile: str, command: str) -> BashOperator:
    """The tasks of one feature group, one behind the other; gives the first, which computes its table."""
    with TaskGroup(tasks.group):
        operators = [
            BashOperator(
                task_id=verb, bash_command=_command(command, verb, tasks.group, profile), append_env=True
            )
            for verb in tasks.verbs
        ]  # fmt: skip
        for before, behind in pairwise(operators):
            before >> behind
    return operators[0]


def _command(command: str, verb: str, group: str, profile: str) -> str:
    file = VERBS[verb].module.replace(".", "/") + ".py"
    started = command.replace("{verb}", verb).replace("{file}", file)
    return f"{started} --group {shlex.quote(group)} --profile {shlex.quote(profile)}"
