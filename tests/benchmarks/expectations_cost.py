"""What rules cost: one row-level group computed with no rule, with 20, with the same 20 of severity quarantine, and
with a unique one, alternating, the median of several rounds.

    python tests/benchmarks/expectations_cost.py [ROWS] [ROUNDS]

Its last line is one JSON object: seconds per variant and the cost of the rules in percent of the plain group, by the
clock and, where /proc tells it, by the processor: that is the one to believe on a machine that does other things too.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from connectors.lakes import Lakes  # noqa: E402 - run as a script, the checkout is not on the path yet
from connectors.registry import Registry  # noqa: E402
from feature_defs import (  # noqa: E402
    Entity,
    Expectation,
    Feature,
    FeatureGroup,
    Freshness,
    InRange,
    Matches,
    NotNull,
    OneOf,
    RowCount,
    Source,
    SumsMatch,
    Unique,
)
from feature_defs.checks import check  # noqa: E402
from feature_defs.rules import TABLE_RULES  # noqa: E402
from jobs.compute import compute  # noqa: E402
from jobs.place import Place  # noqa: E402
from jobs.settings import OnlineSettings, Settings, SparkSettings  # noqa: E402

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

CUSTOMER = Entity("customer", keys={"customer_id": "bigint"})
SCHEMA = {
    "customer_id": "bigint",
    "order_id": "bigint",
    "at": "timestamp",
    "net": "double",
    "tax": "double",
    "amount": "double",
    "quantity": "int",
    "status": "string",
    "country": "string",
    "email": "string",
}
ORDERS = Source("orders", path="lake://raw/orders", format="parquet", event_time="at", schema=SCHEMA)
COLUMNS = [name for name in SCHEMA if name not in ("customer_id", "at")]
STATUSES, COUNTRIES = ["new", "paid", "sent", "closed"], ["DE", "FR", "IT", "ES", "PT", "AT"]
RULES = [
    *(NotNull(name) for name in ("order_id", "net", "tax", "amount", "status", "country")),
    InRange("amount", 0, 100_000),
    InRange("net", 0, 100_000),
    InRange("tax", at_least=0),
    InRange("quantity", 1, 1000),
    OneOf("status", STATUSES),
    OneOf("country", COUNTRIES),
    Matches("email", r"[a-z0-9.]+@[a-z]+\.[a-z]+"),
    Expectation("adds_up", "abs(amount - net - tax) <= 0.01"),
    Expectation("paid_has_tax", "status <> 'paid' or tax > 0"),
    Expectation("bulk_is_cheap", "quantity < 500 or amount / quantity < 1000"),
    Expectation("known_by_then", "event_time >= timestamp '2020-01-01 00:00:00'"),
    RowCount(at_least=1),
    Freshness("52w"),
    SumsMatch("amount", "net + tax", tolerance=1000.0),
]


def write_orders(spark: SparkSession, uri: str, rows: int) -> None:
    """Orders in which every rule of `RULES` holds."""
    spark.range(rows, numPartitions=4).selectExpr(
        "xxhash64(id) % 100000 AS customer_id",
        "id AS order_id",
        "timestamp_seconds(1767225600 + id % 2000000) AS at",
        "round((id % 9973) * 1.25D + 1, 2) AS net",
        "round(((id % 9973) * 1.25D + 1) * 0.19D, 2) AS tax",
        "round((id % 9973) * 1.25D + 1, 2) + round(((id % 9973) * 1.25D + 1) * 0.19D, 2) AS amount",
        "cast(id % 400 + 1 AS int) AS quantity",
        f"element_at(array({', '.join(map(repr, STATUSES))}), cast(id % 4 AS int) + 1) AS status",
        f"element_at(array({', '.join(map(repr, COUNTRIES))}), cast(id % 6 AS int) + 1) AS country",
        "concat('user', id % 100000, '@example.org') AS email",
    ).write.mode("overwrite").parquet(uri)


def groups() -> dict[str, FeatureGroup]:
    """The group's variants, each with a table of its own."""
    features = [Feature(name, SCHEMA[name]) for name in COLUMNS]
    plain = FeatureGroup("plain", entity=CUSTOMER, source=ORDERS, features=features)
    kept_out = [rule if isinstance(rule, TABLE_RULES) else replace(rule, severity="quarantine") for rule in RULES]
    variants = {"rules": RULES, "quarantine": kept_out, "unique": [Unique("order_id")]}
    found = {
        "plain": plain,
        **{name: replace(plain, name=name, expectations=rules) for name, rules in variants.items()},
    }
    return {f"{name}_{kind}": replace(g, name=f"{name}_{kind}", offline=kind) for kind in ("delta", "parquet")
            for name, g in found.items()}  # fmt: skip


def processor_seconds() -> float:
    """What this process and those it started, Spark's JVM among them, have used of the processor; 0 without /proc."""
    parents: dict[int, tuple[int, int]] = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = file.read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:
            continue  # it has ended
        parents[int(file.parent.name)] = (int(fields[1]), int(fields[11]) + int(fields[12]))
    ours = {os.getpid()}
    while more := {process for process, (parent, _) in parents.items() if parent in ours} - ours:
        ours |= more
    return sum(used for process, (_, used) in parents.items() if process in ours) / os.sysconf("SC_CLK_TCK")


def measure(
    spark: SparkSession, rows: int, rounds: int = 5, formats: Sequence[str] = ("delta", "parquet")
) -> dict[str, Any]:
    """Seconds of each variant (medians) and what its rules add in percent of the plain group of the same format."""
    with tempfile.TemporaryDirectory() as folder:
        lakes = {name: f"file://{folder}/{name}" for name in ("raw", "features", "work")}
        settings = Settings("bench", folder, lakes, online=OnlineSettings(kind="none"))
        place = Place(settings)
        place.__dict__["spark"] = spark  # the session that is measured is the caller's
        write_orders(spark, Lakes(lakes).uri("lake://raw/orders"), rows)
        variants = {name: group for name, group in groups().items() if group.offline in formats}
        definitions, faults = check([CUSTOMER, ORDERS, *variants.values()])
        assert definitions is not None, faults
        registry: Registry = place.registry
        registry.commit(definitions, after=0, applied_at="2026-01-01T00:00:00+00:00", applied_by="", message="")
        spent: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
        for name in variants:  # once for the JVM to warm up
            compute(place, [name])
        for turn in range(rounds):
            for name in list(variants)[:: 1 if turn % 2 else -1]:
                started, used = time.monotonic(), processor_seconds()
                compute(place, [name])
                spent[name].append((time.monotonic() - started, processor_seconds() - used))
    told: dict[str, Any] = {"rows": rows, "rounds": rounds, "rules": len(RULES)}
    for number, unit in enumerate(("seconds", "processor_seconds")):
        medians = {name: round(statistics.median(times[number] for times in found), 2) for name, found in spent.items()}
        plain = {name: medians[f"plain_{name.rpartition('_')[2]}"] for name in medians}
        told[unit] = medians
        told[f"{unit}_cost_percent"] = {
            name: round(100 * (value / plain[name] - 1), 1)
            for name, value in medians.items()
            if plain[name] and not name.startswith("plain")
        }
    return told


def main(rows: int = 2_000_000, rounds: int = 5) -> None:
    from jobs.session import open_session

    with tempfile.TemporaryDirectory() as folder:
        conf = {
            "spark.driver.memory": "2g",
            "spark.ui.enabled": "false",
            "spark.ui.showConsoleProgress": "false",
            "spark.sql.shuffle.partitions": "4",
            "spark.log.level": "ERROR",
            "spark.local.dir": folder,
            "spark.sql.warehouse.dir": folder,
        }
        plain = Settings("bench", folder, {}, spark=SparkSettings(master="local[2]", conf=conf))
        spark = open_session(plain)
        try:
            print(json.dumps(measure(spark, rows, rounds)))
        finally:
            spark.stop()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
