"""Cleaning and scaling against plain loops: random pipelines of steps and words over random rows, few Spark jobs.

A case is a column with steps of its own, so that one group holds many. Those that drop rows come in a second group,
because they act on all columns.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pytest
from pyspark.sql import SparkSession

from connectors.fitted_values import FittedValues
from feature_defs import (
    Bucket,
    Clip,
    DropNull,
    Entity,
    Feature,
    FeatureGroup,
    Fill,
    Index,
    Log,
    MinMax,
    OneHot,
    Source,
    Standardise,
)
from feature_defs.cleaning import Step, number
from jobs.fitting import clean
from tests import cleaning_oracle as oracle
from tests.lab import register

SEED, ROWS = 20260115, 160
DAY = 86_400_000_000
FIRST = 1_767_225_600_000_000  # 2026-01-01
FIT = ("2026-01-05", "2026-01-20T12:00:00Z")
START, END = FIRST + 4 * DAY, FIRST + 19 * DAY + DAY // 2
TIMES = [FIRST, START - 1, START, START + DAY, START + 5 * DAY, END - 1, END, FIRST + 25 * DAY]
NUMBERS = [None, None, math.nan, -1000.0, -1.0, -0.5, 0.0, 0.1, 1 / 3, 2.5, 7.0, 7.0, 1e6]
TEXTS = [None, "a", "b", "b", "c'", "d\\", "é", "z\nz", ""]
STEPS = [
    *(lambda c: Fill(c, "mean"), lambda c: Fill(c, "median"), lambda c: Fill(c, "forward"), lambda c: Fill(c, value=3)),
    *(lambda c: Clip(c, low=-0.75), lambda c: Clip(c, low=-1, high=7.5), lambda c: Clip(c, iqr=0.5)),
    *(lambda c: Clip(c, quantiles=(0.1, 0.9)), lambda c: Clip(c, quantiles=[0, 0.5])),
]
WORDS = [
    *(Standardise, MinMax, Log, lambda c: Log(c, offset=-0.25)),
    *(lambda c: Bucket(c, edges=[-0.5, 0, 7]), lambda c: Bucket(c, quantiles=4), lambda c: Bucket(c, quantiles=3)),
]
LISTS = [Index, lambda c: Index(c, most=3), OneHot, lambda c: OneHot(c, most=2)]
TEXT_STEPS = [[], [lambda c: Fill(c, "forward")], [lambda c: Fill(c, value="it's none")]]
entity = Entity("e", keys={"key": "bigint"})


def cases(draw: random.Random, count: int) -> tuple[list[Step], list[Feature], dict[str, list[Any]]]:
    """Steps, features and the values of each column; steps of different columns lie mixed."""
    chains: list[list[Step]] = []
    features: list[Feature] = []
    columns: dict[str, list[Any]] = {}
    for case in range(count):
        name = f"n{case}"
        pool = draw.choice([NUMBERS, NUMBERS, [5.0, None], [*NUMBERS, *(draw.gauss(0, 50) for _ in range(30))]])
        columns[name] = [draw.choice(pool) for _ in range(ROWS)]
        chains.append([draw.choice(STEPS)(name) for _ in range(draw.randrange(4))])
        features.append(Feature(f"{name}_clean", "double", f"`{name}`"))
        for at, word in enumerate(draw.sample(WORDS, 3)):
            made = word(name)
            features.append(Feature(f"{name}_{at}", "int" if isinstance(made, Bucket) else "double", made))
    for case, steps in enumerate(TEXT_STEPS):
        name = f"t{case}"
        columns[name] = [draw.choice(TEXTS) for _ in range(ROWS)]
        chains.append([step(name) for step in steps])
        for at, word in enumerate(LISTS):
            made = word(name)
            features.append(Feature(f"{name}_{at}", "int" if isinstance(made, Index) else "array<int>", made))
    mixed: list[Step] = []
    while any(chains):
        mixed.append(draw.choice([chain for chain in chains if chain]).pop(0))
    return mixed, features, columns


def same(found: Any, expected: Any) -> bool:
    """Equal, but for the last bits of a mean or a deviation: the order of a sum is Spark's."""
    if isinstance(found, float) and isinstance(expected, int | float):
        if math.isnan(expected):  # a column that no step reads is as it was
            return math.isnan(found)
        return math.isclose(found, expected, rel_tol=1e-9, abs_tol=1e-9)
    return bool(found == expected)


@pytest.mark.parametrize("dropping", [0, 3])
def test_cleaning_and_scaling_are_what_plain_loops_say(place: Any, spark: SparkSession, dropping: int) -> None:
    draw = random.Random(SEED + dropping)
    steps, features, columns = cases(draw, 14 if not dropping else 8)
    for _ in range(dropping):
        steps.insert(draw.randrange(len(steps)), DropNull(f"n{draw.randrange(8)}"))
    rows = [
        {
            "row": number, "key": draw.randrange(6), "time": draw.choice(TIMES),
            "created": draw.choice([None, FIRST, FIRST + DAY]), **{name: xs[number] for name, xs in columns.items()},
        }
        for number in range(ROWS)
    ]  # fmt: skip
    found, kept, dropped = computed(place, spark, rows, steps, features)
    expected = oracle.cleaned(rows, steps, START, END)
    assert (len(expected) < ROWS) == bool(dropping)
    assert sum(dropped.values()) == ROWS - len(expected)
    assert kept
    by_row = {row["row"]: row for row in expected}
    assert set(found) == set(by_row)
    for feature in features:
        word = feature.expression
        column = feature.name.split("_")[0]
        learned = {} if isinstance(word, str) else oracle.fit(expected, word, START, END)
        for number_, row in by_row.items():
            wanted = row[column] if isinstance(word, str) else oracle.scaled(row[column], word, learned)
            got = found[number_][feature.name]
            assert same(got, wanted), (word, [s for s in steps if s.column == column], got, wanted)


def computed(
    place: Any, spark: SparkSession, rows: Sequence[dict[str, Any]], steps: Sequence[Step], features: Sequence[Feature]
) -> tuple[dict[int, dict[str, Any]], list[str], dict[str, int]]:
    """Feature rows by the number of their source row, the files of fitted values, and what was dropped."""
    source = Source("s", path="lake://raw/s", event_time="event_time", created_time="created_time")
    own = Feature("row", "bigint")
    group = FeatureGroup("g", entity=entity, source=source, clean=steps, fit=FIT, features=[own, *features])
    register(place, entity, source, group)
    renamed = [{**row, "event_time": row["time"], "created_time": row["created"]} for row in rows]
    numbers, texts = ([name for name in rows[0] if name[0] == kind and name[1:].isdigit()] for kind in "nt")
    time = pa.timestamp("us", tz="UTC")
    types = {"row": pa.int64(), "key": pa.int64(), "event_time": time, "created_time": time}
    types |= dict.fromkeys(numbers, pa.float64()) | dict.fromkeys(texts, pa.string())
    frame = spark.createDataFrame(pa.Table.from_pylist(renamed, schema=pa.schema(types))).repartition(3, "row")
    snapshot = place.applied()
    applied = snapshot.definitions.groups["g"]
    made = clean(place, snapshot, applied, frame, run="r1", now=FIRST + 40 * DAY)
    ready = made.rows.selectExpr(
        *(f"{feature.expression or feature.name} AS {feature.name}" for feature in made.group.features)
    )
    ready = ready.collect()
    store: FittedValues = place.fitted(applied)
    return (
        {row["row"]: row.asDict() for row in ready},
        [f.path for f in store.files.list_files(store.root)],
        made.dropped,
    )


def test_doubles_survive_as_sql_text(spark: SparkSession) -> None:
    """Every double reads back as itself, from the smallest to the largest."""
    draw = random.Random(SEED)
    values = [0.0, -0.0, 5e-324, -1.7976931348623157e308, 2.2250738585072014e-308, 0.1, 1 / 3, 1e16, 123456789012345.67]
    values += [math.ldexp(draw.uniform(-1, 1), draw.randrange(-1074, 1024)) for _ in range(300)]
    found = spark.sql(f"SELECT array({', '.join(map(number, values))}) AS x").collect()[0]["x"]
    assert [x.hex() for x in found] == [x.hex() for x in values]
