#!/usr/bin/env bash
# A Master or a Worker of Spark Standalone in the foreground, from pyspark's wheel, which has no start-master.sh.
#
#   standalone.sh master                  SPARK_MASTER_HOST, SPARK_MASTER_PORT, SPARK_MASTER_WEBUI_PORT
#   standalone.sh worker spark://H:P      SPARK_WORKER_CORES, SPARK_WORKER_MEMORY, SPARK_WORKER_DIR, ...
#
# The containers and the tests run it alike. The JVM takes this process's place, so a signal reaches it.
set -euo pipefail

case ${1:-} in
master) main=(org.apache.spark.deploy.master.Master) ;;
worker) main=(org.apache.spark.deploy.worker.Worker "${2:?the URL of the master}") ;;
*)
    echo "usage: ${0##*/} master | worker spark://HOST:PORT" >&2
    exit 2
    ;;
esac
python=${PYSPARK_PYTHON:-python3}
export SPARK_HOME=${SPARK_HOME:-$("$python" -c 'import pathlib, pyspark; print(pathlib.Path(pyspark.__file__).parent)')}
export SPARK_DAEMON_MEMORY=${SPARK_DAEMON_MEMORY:-256m} # the daemon's own; Spark's 1g is for clusters of many workers
exec "$SPARK_HOME/bin/spark-class" "${main[@]}"
