"""What rules cost: one row-level group computed with no rule, with 20, with the same 20 of severity quarantine, and
with a unique one, alternating, the median of several rounds.

    make bench NAME=expectations_cost                    2 M rows, 5 rounds
    make bench NAME=expectations_cost ARGS="10000 1"     the same, smaller

Its last line is one JSON object: seconds per variant and the cost of the rules in percent of the plain group, by the
clock and, where /proc tells it, by the processor: that is the one to believe on a machine that does other things too.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parent.parent.parent
os.environ["PYTHONPATH"] = str(ROOT)  # for the workers, wherever this is started
sys.path[0] = str(ROOT)  # the script's own folder has modules named as ours

from feature_defs import (  # noqa: E402 - the path comes first
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
from feature_defs.rules import TABLE_RULES  # noqa: E402
from jobs.compute import compute  # noqa: E402
from tests.benchmarks.common import in_folder, place_in, processor_seconds, progress, seconds  # noqa: E402
from tests.lab import register  # noqa: E402

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


def measured(folder: Path, rows: int, rounds: int) -> dict[str, Any]:
    """Seconds of each variant (medians) and what its rules add in percent of the plain group of the same format."""
    place = place_in(folder)
    write_orders(place.spark, place.lakes.uri(ORDERS.path or ""), rows)
    variants = groups()
    register(place, CUSTOMER, ORDERS, *variants.values())
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
    for name in variants:  # once for the JVM to warm up
        compute(place, [name], full=True)
    for turn in range(rounds):
        for name in list(variants)[:: 1 if turn % 2 else -1]:
            used = processor_seconds()
            by_the_clock = seconds(lambda name=name: compute(place, [name], full=True))
            spent[name].append((by_the_clock, processor_seconds() - used))
            progress(f"{name}: {by_the_clock:.1f} s")
    place.spark.stop()
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
    print(json.dumps(in_folder("expectations_cost", lambda folder: measured(folder, rows, rounds))))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
