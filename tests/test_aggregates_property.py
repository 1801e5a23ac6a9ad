"""Aggregates against plain loops: every function, over several windows and filters, at every event and on a grid.

Hundreds of small cases in two Spark jobs; the case's number is part of the key. Values are whole numbers, so that sums
and averages are exact.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import pyarrow as pa
import pytest
from pyspark.sql import DataFrame, SparkSession

from feature_defs.aggregates import AGGREGATES
from feature_defs.durations import microseconds
from feature_defs.model import Aggregate, Entity, Feature, FeatureGroup
from jobs.transforms import tiles
from jobs.transforms.features import feature_rows, grid_end
from tests import oracle

CASES, SEED = 300, 20260228
SECOND = 1_000_000
EVERY, WINDOWS = "5s", (None, "5s", "10s", "20s")
UNTIL = 15 * SECOND
TIMES = [0, 1, SECOND, 4 * SECOND, 5 * SECOND, 5 * SECOND + 1, 6 * SECOND, 10 * SECOND, 10 * SECOND + 1, 15 * SECOND]
LATE = [15 * SECOND + 1, 17 * SECOND, 40 * SECOND]
TIME = pa.timestamp("us", tz="UTC")
# each function with its own arguments and its type
CALLS: dict[str, tuple[dict[str, Any], str]] = {
    "count": ({}, "bigint"),
    "sum": ({}, "bigint"),
    "avg": ({}, "double"),
    "min": ({}, "bigint"),
    "max": ({}, "bigint"),
    "variance": ({}, "double"),
    "stddev": ({}, "double"),
    "first": ({}, "bigint"),
    "last": ({}, "bigint"),
    "last_k": ({"k": 2}, "array<bigint>"),
    "distinct": ({}, "bigint"),
    "approx_distinct": ({}, "bigint"),
    "top_k": ({"k": 2}, "array<bigint>"),
    "quantile": ({"q": 0.5}, "double"),
}


@dataclass(frozen=True)
class Called:
    """A feature of the test: a function over a window, perhaps of chosen rows, perhaps by a second column."""

    function: str
    window: str | None
    filtered: bool = False
    by: str | None = None

    @property
    def name(self) -> str:
        return "_".join(filter(None, [self.function, self.window or "life", self.by, "some" if self.filtered else ""]))

    @property
    def feature(self) -> Feature:
        arguments, kind = CALLS[self.function]
        where = "counts" if self.filtered else None
        call = Aggregate(self.function, "value", window=self.window, where=where, by=self.by, **arguments)
        return Feature(self.name, f"map<string,{kind}>" if self.by else kind, call)


CALLED = [
    *(Called(function, window) for function, window in product(AGGREGATES, WINDOWS)),
    *(Called(function, window, filtered=True) for function, window in product(AGGREGATES, (None, "10s"))),
    *(
        Called(function, window, by="kind")
        for function, window in product([n for n, row in AGGREGATES.items() if row.can_be_keyed], (None, "10s"))
    ),
]


def group(every: str | None, windows: tuple[str | None, ...] = WINDOWS) -> FeatureGroup:
    features = [called.feature for called in CALLED if called.window in windows]
    return FeatureGroup("g", entity=ENTITY, source="s", every=every, features=features)


ENTITY = Entity("e", keys={"case": "bigint", "name": "string"})


@cache
def events() -> list[oracle.Event]:
    draw = random.Random(SEED)
    found = []
    for case in range(CASES):
        pool = TIMES if case % 3 else [*TIMES, *LATE]
        for _ in range(draw.randint(1, 9)):
            value = draw.choice([None, 0, 1, 2, 3])
            name, time, created = draw.choice("xy"), draw.choice(pool), draw.choice([None, 1, 2, 50])
            kind = draw.choice([None, "p", "q", "r"])
            found.append(oracle.Event((case, name), time, created, value, draw.random() < 0.6, kind))
    return found


def frame(spark: SparkSession) -> DataFrame:
    rows = [(*e.keys, e.time, e.created, e.value, e.counts, e.kind) for e in events()]
    case, name, time, created, value, counts, kind = zip(*rows, strict=True)
    clocks = {"event_time": pa.array(time, TIME), "created_time": pa.array(created, TIME)}
    return spark.createDataFrame(
        pa.table({"case": case, "name": name, **clocks, "value": value, "counts": counts, "kind": kind})
    )


def check(
    found: DataFrame, wanted: FeatureGroup, points: set[tuple[oracle.Keys, int]], seen: list[oracle.Event]
) -> None:
    """Every point once, every value as the loops have it, created_time of the longest window."""
    names = [feature.name for feature in wanted.features]
    clocks = ["unix_micros(event_time) AS at", "unix_micros(created_time) AS created"]
    rows = found.selectExpr("case", "name", *clocks, *names).toArrow().to_pylist()
    answers = {((row["case"], row["name"]), row["at"]): row for row in rows}
    assert len(rows) == len(answers)
    assert answers.keys() == points
    windows = [feature.expression.window for feature in wanted.features]
    longest = None if None in windows else max(microseconds(window) for window in windows)
    own = oracle.by_entity(seen)
    for (keys, at), row in answers.items():
        assert row["created"] == oracle.newest_created(own[keys], at, longest), (keys, at)
        for called in CALLED:
            if called.name in row:
                length = microseconds(called.window) if called.window else None
                arguments, _ = CALLS[called.function]
                expected = oracle.aggregate(
                    called.function,
                    own[keys],
                    at,
                    length,
                    filtered=called.filtered,
                    by=called.by is not None,
                    **arguments,
                )
                found_value = dict(row[called.name]) if called.by and row[called.name] is not None else row[called.name]
                assert oracle.alike(found_value, expected), (keys, at, called, found_value, expected, own[keys])


@pytest.mark.parametrize("windows", [WINDOWS, ("5s", "10s")])
def test_aggregates_at_every_event_equal_the_loops(spark: SparkSession, windows: tuple[str | None, ...]) -> None:
    wanted = group(None, windows)
    found = feature_rows(frame(spark), wanted, ENTITY, until_us=UNTIL)
    check(found, wanted, oracle.event_points(events()), events())


@pytest.mark.parametrize("windows", [WINDOWS, ("5s", "10s")])
def test_aggregates_on_a_grid_equal_the_loops(spark: SparkSession, windows: tuple[str | None, ...]) -> None:
    wanted, every = group(EVERY, windows), microseconds(EVERY)
    found = feature_rows(frame(spark), wanted, ENTITY, until_us=UNTIL)
    seen = [event for event in events() if oracle.cell(event.time, every) <= UNTIL]
    check(found, wanted, oracle.grid_points(seen, every, UNTIL), seen)


def test_entries_of_one_key_become_one_added_in_the_order_in_which_they_came(spark: SparkSession) -> None:
    """To the bit: what of a sum of doubles is not exact hangs on that order."""
    draw = random.Random(SEED)
    sums, least = tiles.Measure("sum", "x", "k", None, floating=True), tiles.Measure("min", "x", "k", None)
    states = list(sums.function.prepare)
    schema = f"n int, s array<struct<k: string, {', '.join(f'{name}: double' for name in states)}>>"
    drawn = [None, 0.1, 0.2, -7.3, 1e16, 1e300, -1e300, 5e-324]
    cases = [
        [(draw.choice("pqrstu"), *(draw.choice(drawn) for _ in states)) for _ in range(count)]
        for count in [0, 1, 1, 2, 2, 3, *range(4, 60)]
    ]
    rows = spark.createDataFrame(list(enumerate(cases)), schema).selectExpr(
        "n", "s", "transform(s, e -> struct(e.k, e.rest AS v)) AS m"
    )
    for row in tiles._compacted(rows, [(sums, "s"), (least, "m")]).collect():
        added: dict[str, list[float | None]] = {}
        smallest: dict[str, float | None] = {}
        for key, *values in cases[row.n]:
            before = added.get(key, [None] * len(values))
            added[key] = [b if a is None else a if b is None else a + b for a, b in zip(before, values, strict=True)]
            met = [x for x in (smallest.get(key), values[states.index("rest")]) if x is not None]
            smallest[key] = min(met, default=None)
        assert [repr(tuple(entry)) for entry in row.s] == [repr((key, *added[key])) for key in sorted(added)]
        assert [tuple(entry) for entry in row.m] == sorted(smallest.items())


def test_window_of_ten_times_the_distinct_values_takes_no_hundred_times_as_long(spark: SparkSession) -> None:
    def seconds(distinct: int) -> float:
        values = ["id DIV 3 AS value", "cast(id DIV 3 as string) AS kind", "true AS counts"]
        clocks = ["timestamp_seconds(5 * (id % 3)) AS event_time", "cast(null as timestamp) AS created_time"]
        rows = spark.range(3 * distinct).selectExpr("1L AS case", "'x' AS name", *clocks, *values).localCheckpoint()
        began = time.monotonic()
        feature_rows(rows, wanted, ENTITY, until_us=UNTIL).write.format("noop").mode("overwrite").save()
        return time.monotonic() - began

    keyed = [Called("top_k", "20s"), Called("quantile", "20s"), Called("count", "10s", by="kind")]
    wanted = FeatureGroup("g", entity=ENTITY, source="s", every=EVERY, features=[called.feature for called in keyed])
    seconds(10)  # what Spark compiles once
    few, many = seconds(300), seconds(3000)
    assert many < 15 * few, (few, many)


def test_every_edge_occurs_in_the_cases() -> None:
    every = microseconds(EVERY)
    seen: Counter[str] = Counter()
    for own in oracle.by_entity(events()).values():
        times = [event.time for event in own]
        edges: dict[str, Any] = {
            "ties in time": len(set(times)) < len(times),
            "a row on the grid": any(time % every == 0 for time in times),
            "a row a microsecond after the grid": any(time % every == 1 for time in times),
            "rows a window apart": any(a - b == every for a in times for b in times),
            "rows a window and a microsecond apart": any(a - b == every + 1 for a in times for b in times),
            "an empty window": any(b - a >= 2 * every for a, b in zip(sorted(times), sorted(times)[1:], strict=False)),
            "a row after the last cell": max(times) > UNTIL,
            "rows after the last cell only": min(times) > UNTIL,
            "only nulls": all(event.value is None for event in own),
            "no row that counts": not any(event.counts for event in own),
            "ties that only created_time decides": _decided_by_created(own),
        }
        seen.update(edge for edge, occurs in edges.items() if occurs)
    assert {edge: seen[edge] for edge in edges if seen[edge] < 5} == {}


def _decided_by_created(own: list[oracle.Event]) -> bool:
    pairs = [(a, b) for a in own for b in own if a.time == b.time and a.value is not None and b.value is not None]
    return any(a.created != b.created and a.value != b.value for a, b in pairs)


@pytest.mark.parametrize(
    ("newest", "now", "every", "end"),
    [
        (7, 100, "5s", 10),  # the end of the newest row's cell
        (10, 100, "5s", 10),  # a row on the grid is in the cell that ends there
        (17, 18, "5s", 15),  # its cell is not over yet
        (17, 20, "5s", 20),  # over now
        (40, 18, "5s", 15),  # rows of the future do not pull the grid along
    ],
)
def test_grid_ends_with_the_newest_row_or_the_last_cell_that_is_over(
    newest: int, now: int, every: str, end: int
) -> None:
    assert grid_end(newest * SECOND, now * SECOND, every) == end * SECOND
