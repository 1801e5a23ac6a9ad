"""What customers look at: nested JSON logs, flattened by a DataFrame function."""

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from feature_defs import Aggregate, Feature, FeatureGroup, Source

from .entities import customer

web_sessions = Source(
    "web_sessions",
    path="lake://raw/web_sessions",
    format="json",
    event_time="ended_at",
    schema={
        "session_id": "bigint",
        "customer_id": "string",
        "ended_at": "timestamp",
        "device": "struct<os:string,browser:string>",
        "pages": "array<struct<url:string,seconds:int>>",
    },
)


def flatten(sessions: DataFrame) -> DataFrame:
    """One row a session: its number of pages and the seconds spent on them."""
    seconds = F.aggregate("pages", F.lit(0), lambda total, page: total + page["seconds"])
    return sessions.withColumn("page_count", F.size("pages")).withColumn("seconds", seconds)


customer_sessions = FeatureGroup(
    "customer_sessions",
    entity=customer,
    source=web_sessions,
    transform=flatten,
    every="1d",
    ttl="30d",
    offline="parquet",
    online=True,
    owner="web",
    tags=["web"],
    description="how a customer has used the site",
    features=[
        Feature("sessions_7d", "bigint", Aggregate("count", window="7d")),
        Feature("pages_7d", "bigint", Aggregate("sum", "page_count", window="7d")),
        Feature("longest_session", "int", Aggregate("max", "seconds"), description="seconds"),
        Feature("last_os", "string", Aggregate("last", "device.os"), kind="categorical"),
    ],
)
