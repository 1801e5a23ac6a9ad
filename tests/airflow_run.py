"""What the tests run in an environment with Airflow: a folder of DAGs read as Airflow reads it, told as JSON.

AIRFLOW_HOME=... python tests/airflow_run.py FOLDER
"""

from __future__ import annotations

import json
import sys
from typing import Any

from airflow.dag_processing.dagbag import DagBag


def told(dag: Any) -> dict[str, Any]:
    return {
        "seconds": dag.timetable.delta.total_seconds() if hasattr(dag.timetable, "delta") else str(dag.timetable),
        "start": dag.start_date.isoformat(),
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
