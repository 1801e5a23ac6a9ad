"""The kernel of aggregates on a grid against Spark SQL, bit for bit, and its parts against plain loops.

Hundreds of small cases in a few Spark jobs; the case's number is part of the key.
"""

from __future__ import annotations

import datetime
import math
import random
import struct
from decimal import Decimal
from functools import cache
from itertools import product
from typing import Any

import pyarrow as pa
import pytest
from pyspark.sql import DataFrame, SparkSession

from feature_defs.model import Aggregate, Entity, Feature, FeatureGroup
from jobs.transforms.tile_kernel import kernel_rows, supports
from jobs.transforms.tiles import group_rows, plan_of, tiles_of

CASES, SEED = 300, 20261121
SECOND = 1_000_000
EVERY, UNTIL = "5s", 60 * SECOND
TIME = pa.timestamp("us", tz="UTC")
DOUBLES = [
    *(None, 0.0, -0.0, 0.1, 0.2, 0.3, -7.3, 19.99, 1e16, -1e16, 1e-20, -1e-20, 3e20, -3e20, 5e-324),
    *(2.0**57.5, -(2.0**28), 2.0**-16, float(2**53 + 2), 1e-6, math.nan, math.inf, -math.inf),
]
SOME_DOUBLES = [None, 0.0, 0.1, 0.2, 19.99, -7.3, 1e16, -1e16, 1e-20, 3e20, 1e-6]
INTEGERS = {
    "tinyint": (-128, 127),
    "smallint": (-32768, 32767),
    "int": (-(2**31), 2**31 - 1),
    "bigint": (-(2**59), 2**59),
}
ARROW = {"tinyint": pa.int8(), "smallint": pa.int16(), "int": pa.int32(), "bigint": pa.int64()}
FUNCTIONS = ("count", "sum", "avg", "min", "max", "variance", "stddev")
KEYS: dict[str, tuple[pa.DataType, list[Any]]] = {
    "string": (pa.string(), ["a", "b", "B", "", "é", "日本", "aa"]),
    "bigint": (pa.int64(), [-(2**63), -1, 0, 7, 2**63 - 1]),
    "int": (pa.int32(), [-5, 0, 5]),
    "date": (pa.date32(), [datetime.date(1969, 12, 31), datetime.date(2026, 1, 1)]),
    "timestamp": (TIME, [-1, 0, 1_767_225_600_000_000]),
    "boolean": (pa.bool_(), [True, False]),
    "decimal(12,2)": (pa.decimal128(12, 2), [Decimal("-1.50"), Decimal("0.00"), Decimal("12.25")]),
    "binary": (pa.binary(), [b"", b"\x00", b"\xff", b"a"]),
}


@cache
def events() -> tuple[tuple[Any, ...], ...]:
    """(case, keys..., time, created, double, float, integers...)"""
    draw = random.Random(SEED)
    found = []
    for case in range(CASES):
        doubles = DOUBLES if case % 2 else SOME_DOUBLES
        own = {name: draw.sample(pool, min(2, len(pool))) for name, (_, pool) in KEYS.items()}
        for _ in range(draw.randint(1, 12)):
            keys = [draw.choice(own[name]) for name in KEYS]
            time = draw.choice([draw.randrange(0, 75), 5 * draw.randrange(0, 15)]) * SECOND + draw.choice([0, 0, 1, -1])
            whole = [draw.choice([None, 0, 1, low, high, draw.randint(low, high)]) for low, high in INTEGERS.values()]
            value = draw.choice(doubles)
            single = None if value is None else struct.unpack("f", struct.pack("f", max(min(value, 1e30), -1e30)))[0]
            found.append((case, *keys, time, draw.choice([None, 1, 2, 50]), value, single, *whole))
    return tuple(found)


def frame(spark: SparkSession) -> DataFrame:
    case, *rest = map(list, zip(*events(), strict=True))
    keys, (time, created, double, single, *whole) = rest[: len(KEYS)], rest[len(KEYS) :]
    columns = {"case": pa.array(case, pa.int64())}
    columns |= {f"k_{n}": pa.array(v, kind) for n, (v, (kind, _)) in enumerate(zip(keys, KEYS.values(), strict=True))}
    columns |= {"event_time": pa.array(time, TIME), "created_time": pa.array(created, TIME)}
    columns |= {"double": pa.array(double, pa.float64()), "float": pa.array(single, pa.float32())}
    columns |= {name: pa.array(v, ARROW[name]) for name, v in zip(INTEGERS, whole, strict=True)}
    # one partition: where several rows of a tile have a rest, Spark adds them as they arrive
    return spark.createDataFrame(pa.table(columns)).coalesce(1)


def group(
    keys: tuple[str, ...], windows: tuple[str | None, ...], values: tuple[str, ...]
) -> tuple[FeatureGroup, Entity]:
    types = {"case": "bigint", **{f"k_{n}": name for n, name in enumerate(KEYS)}}
    entity = Entity("e", keys={key: types[key] for key in keys})
    calls = [("rows", "count", {})]
    for value in values:
        calls += [(f"{function}_{value}", function, {"column": value}) for function in FUNCTIONS]
        calls.append((f"some_{value}", "sum", {"column": value, "where": f"{value} > 0 and case % 3 != 0"}))
    calls.append(("texts", "count", {"column": "k_0", "where": "k_0 > 'a'"}))
    kind = {"count": "bigint"}
    features = [
        Feature(f"{name}_{window or 'life'}", kind.get(function, "double"), Aggregate(function, window=window, **more))
        for (name, function, more), window in product(calls, windows)
    ]
    return FeatureGroup("g", entity=entity, source="s", every=EVERY, features=features), entity


def bits(rows: pa.Table, keys: tuple[str, ...]) -> list[tuple[Any, ...]]:
    """Rows in the order of keys and time, doubles as their bits, every NaN the same."""
    columns = []
    for name, column in zip(rows.column_names, rows.columns, strict=True):
        values = column.to_pylist()
        if pa.types.is_floating(column.type):
            zero = name.startswith(("min_", "max_")) or name.endswith("_v")  # of 0.0 and -0.0 Spark takes either
            values = [v if v is None else "NaN" if v != v else (v + 0.0 if zero else v).hex() for v in values]
        columns.append(values)
    order = [rows.column_names.index(name) for name in (*keys, "event_time")]
    return sorted(zip(*columns, strict=True), key=lambda row: [row[n] for n in order])


ALL = ("double", "float", *INTEGERS)


@pytest.mark.parametrize(
    ("keys", "windows", "values", "after"),
    [
        (("case", "k_0"), (None, "5s", "10s", "20s"), ("double", "bigint"), None),
        (("case",), ("5s", "15s", "1000s"), ALL, None),
        (("case", *(f"k_{n}" for n in range(len(KEYS)))), (None, "10s"), ("double",), None),
        (("k_7", "case"), ("10s", "17s"), ("double", "int"), 22 * SECOND),
        (("case",), (None, "20s"), ("double", "smallint"), 30 * SECOND),
        (("k_6", "k_4", "case"), ("5s",), ("float",), 44 * SECOND),
    ],
)
def test_kernel_gives_the_rows_of_sql_to_the_bit(
    spark: SparkSession,
    monkeypatch: pytest.MonkeyPatch,
    keys: tuple[str, ...],
    windows: tuple[str | None, ...],
    values: tuple[str, ...],
    after: int | None,
) -> None:
    rows, (wanted, _) = frame(spark), group(keys, windows, values)
    plan = plan_of(rows, wanted, keys)
    assert supports(rows, plan)
    expected = group_rows(tiles_of(rows, plan), plan, until_us=UNTIL, after_us=after)
    found = kernel_rows(rows, plan, until_us=UNTIL, after_us=after)
    assert found.schema == expected.schema
    other, own = bits(expected.toArrow(), keys), bits(found.toArrow(), keys)
    assert len(own) == len(other) > 100
    for one, two in zip(own, other, strict=True):
        assert one == two, [(n, a, b) for n, a, b in zip(found.columns, one, two, strict=True) if a != b]
