"""A table that grew run by run is, bit for bit, the table of one full run: whatever came late, and in which batches.

Hundreds of small cases in a few Spark jobs; the case's number is part of the key. Values are doubles of very different
sizes, whose plain sum would depend on the order.
"""

from __future__ import annotations

import contextlib
import io
import random
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from connectors.offline_tables import session_conf
from feature_defs.model import Aggregate, Entity, Feature, FeatureGroup
from jobs.transforms import tiles
from jobs.transforms.features import changed_rows, feature_rows

CASES, SEED, BATCHES = 120, 20261121, 3
SECOND = 1_000_000
EVERY = "5s"
UNTIL = [10 * SECOND, 15 * SECOND, 15 * SECOND, 25 * SECOND]  # of each run; the third brings only late rows
TIME = pa.timestamp("us", tz="UTC")
ENTITY = Entity("e", keys={"case": "bigint", "name": "string"})
VALUES = [None, 0.1, 0.2, 0.3, 1e16, -1e16, 1e-20, 19.99, -7.3, 3e20, float(2**53 + 2)]


def aggregates(*, lasting: bool) -> list[Feature]:
    windows = [None, "5s", "10s"] if lasting else ["5s", "10s"]
    calls = [
        ("n", "bigint", {"function": "count"}),
        ("total", "double", {"function": "sum", "column": "value"}),
        ("mean", "double", {"function": "avg", "column": "value"}),
        ("spread", "double", {"function": "stddev", "column": "value"}),
        ("newest", "double", {"function": "last", "column": "value"}),
        ("least", "double", {"function": "min", "column": "value", "where": "kind = 'p'"}),
        ("kinds", "bigint", {"function": "approx_distinct", "column": "kind"}),
        ("three", "array<string>", {"function": "last_k", "column": "kind", "k": 3}),
        ("median", "double", {"function": "quantile", "column": "value", "q": 0.5}),
    ]
    return [
        Feature(f"{name}_{window or 'life'}", kind, Aggregate(window=window, **call))
        for name, kind, call in calls
        for window in windows
    ]


@cache
def batches() -> tuple[tuple[Any, ...], ...]:
    """(case, name, event_time, created_time, value, kind, run): a row of run r is not after what r is complete to."""
    draw = random.Random(SEED)
    found = []
    for case in range(CASES):
        for _ in range(draw.randint(1, 8)):
            run = draw.randrange(BATCHES + 1)
            time = draw.choice([0, 1, 2, 5, 6, 10, 11, 14, 15, 19, 20]) * SECOND + draw.choice([0, 0, 1])
            run = max(run, next(r for r, until in enumerate(UNTIL) if time <= until))
            name, created = draw.choice("xy"), draw.choice([None, 1, 2])
            found.append((case, name, time, created, draw.choice(VALUES), draw.choice([None, "p", "q", "r"]), run))
    return tuple(found)


def frame(spark: SparkSession) -> DataFrame:
    case, name, time, created, value, kind, run = zip(*batches(), strict=True)
    clocks = {"event_time": pa.array(time, TIME), "created_time": pa.array(created, TIME)}
    rest = {"value": pa.array(value, pa.float64()), "kind": kind, "run": run}
    return spark.createDataFrame(pa.table({"case": case, "name": name, **clocks, **rest}))


GROUPS = {
    "grid": FeatureGroup("g", entity=ENTITY, source="s", every=EVERY, features=aggregates(lasting=False)),
    "grid and whole lives": FeatureGroup(
        "g", entity=ENTITY, source="s", every=EVERY, features=aggregates(lasting=True)
    ),
    "every event": FeatureGroup("g", entity=ENTITY, source="s", features=aggregates(lasting=False)),
    "every event and whole lives": FeatureGroup("g", entity=ENTITY, source="s", features=aggregates(lasting=True)),
    "rows": FeatureGroup(
        "g", entity=ENTITY, source="s", features=[Feature("value", "double"), Feature("kind", "string")]
    ),
}


@pytest.mark.parametrize("name", GROUPS)
def test_table_that_grew_run_by_run_is_the_table_of_one_full_run(
    spark: SparkSession, tmp_path: Path, name: str
) -> None:
    group, rows = GROUPS[name], frame(spark)
    kept = written(feature_rows(rows.where("run = 0"), group, ENTITY, until_us=UNTIL[0]), tmp_path / "0")
    for run in range(1, BATCHES + 1):
        new = rows.where(F.col("run") == run)
        oldest = min(row[2] for row in batches() if row[6] == run)
        span = {"complete_us": UNTIL[run - 1], "until_us": UNTIL[run]}
        changed, on = changed_rows(new, kept, group, ENTITY, **span, oldest_us=oldest, late=True)
        changed = written(changed, tmp_path / f"changed-{run}")
        assert changed.count() == changed.select(*on).distinct().count()
        same = [F.col(f"k.{column}").eqNullSafe(F.col(f"c.{column}")) for column in on]
        others = kept.alias("k").join(changed.alias("c"), same, "left_anti")
        kept = written(others.unionByName(changed), tmp_path / f"{run}")
    whole = feature_rows(rows, group, ENTITY, until_us=UNTIL[-1])
    assert texts(kept, group) == texts(whole, group)


@pytest.mark.parametrize("name", ["grid", "grid and whole lives"])
def test_run_without_late_rows_makes_the_points_of_one_full_run(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """By a table of cells, and where that would be too large."""
    group, rows = GROUPS[name], frame(spark)
    time = F.unix_micros("event_time")
    complete, until = UNTIL[0], UNTIL[-1]
    kept = feature_rows(rows.where(time <= complete), group, ENTITY, until_us=complete)
    kept = written(kept, tmp_path / "kept")
    new = rows.where((time > complete) & (time <= until))
    span = {"complete_us": complete, "until_us": until, "oldest_us": complete + 1, "late": False}
    whole = texts(feature_rows(rows, group, ENTITY, until_us=until), group)
    for most in (300_000, 3):
        monkeypatch.setattr(tiles, "_MOST_CELLS", most)
        added, _ = changed_rows(new, kept, group, ENTITY, **span)
        assert texts(kept.unionByName(added), group) == whole


def test_next_point_runs_the_code_of_the_point_before(spark: SparkSession, tmp_path: Path) -> None:
    """Code that names a time is made and compiled anew in each run; only the small table of cells may."""
    group, rows = GROUPS["grid and whole lives"], frame(spark)
    kept = written(feature_rows(rows, group, ENTITY, until_us=UNTIL[0]), tmp_path / "kept")
    codes = []
    for complete in (UNTIL[0], UNTIL[0] + 5 * SECOND):
        span = {"complete_us": complete, "until_us": complete + 5 * SECOND, "oldest_us": complete + 1, "late": False}
        codes.append(generated(changed_rows(rows, kept, group, ENTITY, **span)[0]))
    before, then = codes
    assert len(before) == len(then) > 4
    assert {"range_" in code for code in then if code not in before} == {True}


def generated(rows: DataFrame) -> list[str]:
    """The code that Spark makes of each stage of a query."""
    with session_conf(rows.sparkSession, {"spark.sql.adaptive.enabled": "false"}):
        told = io.StringIO()
        with contextlib.redirect_stdout(told):
            rows.explain("codegen")
    return [part.partition("Generated code:")[2] for part in told.getvalue().split("== Subtree")[1:]]


def written(rows: DataFrame, folder: Path) -> DataFrame:
    rows.coalesce(2).write.parquet(str(folder))
    return rows.sparkSession.read.schema(rows.schema).parquet(str(folder))


def texts(rows: DataFrame, group: FeatureGroup) -> list[str]:
    """Each row as text: doubles to the last bit, NaN equal to NaN."""
    columns = ["case", "name", "event_time", "created_time", *(feature.name for feature in group.features)]
    return sorted(repr(tuple(row.values())) for row in rows.select(*columns).toArrow().to_pylist())


def test_every_kind_of_lateness_occurs_in_the_cases() -> None:
    late = [row for row in batches() if row[6] and row[2] <= UNTIL[row[6] - 1]]
    first = {}
    for case, name, time, *_, run in batches():
        first.setdefault((case, name), []).append((run, time))
    earlier = sum(min(t for r, t in seen) < min(t for r, t in seen if r == min(seen)[0]) for seen in first.values())
    new = sum(min(seen)[0] > 0 for seen in first.values())
    quiet = sum(max(seen)[0] < BATCHES for seen in first.values())
    assert min(len(late), earlier, new, quiet) > 20
