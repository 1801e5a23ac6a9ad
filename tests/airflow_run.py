"""What the tests run in an environment with Airflow: a folder of DAGs read as Airflow reads it, told as JSON.

AIRFLOW_HOME=... python tests/airflow_run.py FOLDER
"""

from __future__ import annotations

import json
import sys
from typing import Any

from airflow.dag_processing.dagbag import DagBag
from airflow.serialization.encoders import coerce_to_core_timetable
from airflow.timetables.base import TimeRestriction


def told(dag: Any) -> dict[str, Any]:
    timetable = coerce_to_core_timetable(dag.timetable)
    restriction = TimeRestriction(dag.start_date, None, catchup=dag.catchup)
    first = timetable.next_dagrun_info(last_automated_data_interval=None, restriction=restriction)
    behind = timetable.next_dagrun_info(last_automated_data_interval=first.data_interval, restriction=restriction)
    return {
        "runs": [first.run_after.timestamp(), behind.run_after.timestamp()],
        "catchup": dag.catchup,
        "most_runs": dag.max_active_runs,
        "tasks": {
            task.task_id: {
                "after": sorted(task.upstream_task_ids),
                "group": task.task_group.group_id,
                "retries": task.retries,
                "says": task.execute({}),
            }
            for task in dag.tasks
        },
    }


if __name__ == "__main__":
    bag = DagBag(sys.argv[1])
    print(json.dumps({"errors": bag.import_errors, "dags": {name: told(dag) for name, dag in bag.dags.items()}}))
