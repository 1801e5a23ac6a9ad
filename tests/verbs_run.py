"""The verbs over the example retailer, and all that came out as plain data: run once on each kind of session.

python -m tests.verbs_run FOLDER RAW REDIS_URL    on a Spark Connect server that this process starts; prints JSON
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

from jobs.apply import apply
from jobs.compare import compare
from jobs.compute import compute
from jobs.diff import diff
from jobs.maintain import maintain
from jobs.materialize import materialize
from jobs.online import online_get
from jobs.place import Place
from jobs.rebuild import rebuild
from jobs.replay import replay
from jobs.report import plain_value
from jobs.session import cached_jars
from jobs.settings import OnlineSettings, Settings, SparkSettings
from jobs.testing import run_cases
from jobs.training_set import training_set
from jobs.verify import verify
from jobs.why import why
from tests.conftest import SPARK_CONF, settings_in

ROOT = Path(__file__).resolve().parent.parent
GROUPS = ("customer_profile", "customer_purchases", "customer_sessions", "product_profile")
# today's: Redis keeps no value that is past its ttl by its own clock
END = datetime.datetime.now(datetime.timezone.utc).replace(hour=0, minute=0, second=0, microsecond=0)
SCHEMA = "retail"
_DIFFERENT = ("run", "replay_of", "seconds", "file", "quarantine")  # from run to run, or from folder to folder
DELTA_CONF = {
    "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
    "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
}


def example_settings(folder: Path, raw: Path, redis_url: str, spark: SparkSettings | None = None) -> Settings:
    """A place in a folder, but for the raw lake, which several may read."""
    online = OnlineSettings(kind="redis", url=redis_url, key_prefix=folder.name)
    definitions = str(ROOT / "feature_defs" / "examples" / "retail")
    plain = settings_in(folder, spark=spark)
    lakes = {**plain.lakes, "raw": f"file://{raw}"}
    tables = {"customer_purchases": f"spark_catalog.{SCHEMA}"}  # by name; the others by path
    return dataclasses.replace(plain, definitions=definitions, lakes=lakes, online=online, tables=tables)


def run_verbs(place: Place, folder: Path) -> dict[str, Any]:
    """Every count of every report, and the rows of the tables and of the training sets."""
    place.spark.sql(f"CREATE SCHEMA spark_catalog.{SCHEMA} LOCATION '{folder}/managed'")
    apply(place)
    found: dict[str, Any] = {"compute": compute(place, GROUPS, now=END)}
    for name in GROUPS:
        found[f"rows of {name}"] = rows_of(place.table(place.applied().definitions.groups[name]).read())
    out = "lake://work/churn"
    told = training_set(place, "lake://raw/churn_labels", service="churn", out=out)
    # over Connect the files of a Delta table are left to Delta
    found["training set"] = dataclasses.replace(told, ways={})
    found["way"] = told.ways["customer_sessions"]
    found["rows of the training set"] = rows_of(place.spark.read.parquet(place.lakes.uri(out)))
    with patch("jobs.joining.FEW", 0), patch("jobs.joining.MOST_DIRECT", 0):
        found["located"] = training_set(place, "lake://raw/churn_labels", service="churn", out="lake://work/located")
    assert found["located"].hash == found["training set"].hash
    found["replay"] = dataclasses.replace(rebuild(place, out, out="lake://work/again"), ways={})
    found["diff"] = diff(place, out, "lake://work/again")
    labelled = place.spark.read.parquet(place.lakes.uri(out)).selectExpr("min(customer_id)").collect()[0][0]
    found["compare"] = compare(place, GROUPS[:1], right=place)
    found["why"] = why(place, out, "spent_30d", {"customer_id": labelled})
    found["quarantine again"] = replay(place, "customer_sessions", now=END)
    found["materialize"] = materialize(place, GROUPS, now=END)
    found["verify"] = verify(place, GROUPS, sample=None, now=END)
    found["customer"] = online_get(place, {"customer_id": "CUST001"}, service="churn", check=True, now=END)
    found["product"] = online_get(place, {"product_id": "1"}, group="product_profile", check=True, now=END)
    maintained = maintain(place, ("customer_profile", "customer_purchases", "product_profile"))  # of each kind
    found["maintain"] = [(one.table, one.versions, one.leftovers, one.notes) for one in maintained.tables]
    found["test"] = run_cases(place, ("only_completed_purchases_count",))
    return json.loads(json.dumps(found, default=_plain))


def rows_of(rows: Any) -> list[str]:
    return sorted(map(str, rows.toArrow().to_pylist()))


def _plain(value: Any) -> Any:
    """A report without what differs from run to run."""
    if dataclasses.is_dataclass(value):
        told = {part.name: getattr(value, part.name) for part in dataclasses.fields(value)}
        return {name: inner for name, inner in told.items() if name not in _DIFFERENT}
    return plain_value(value)


if __name__ == "__main__":
    lake, raw_lake, url = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    conf = {**SPARK_CONF, **DELTA_CONF, "spark.jars": ",".join(map(str, cached_jars()))}
    connect = Place(example_settings(lake, raw_lake, url, SparkSettings(remote="local[2]", conf=conf)))
    result = run_verbs(connect, lake)
    result["session"] = type(connect.spark).__module__
    print(json.dumps(result))
    connect.spark.stop()
