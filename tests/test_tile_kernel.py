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

import numpy as np
import pyarrow as pa
import pytest
from pyspark.sql import DataFrame, SparkSession

from feature_defs.model import Aggregate, Entity, Feature, FeatureGroup
from jobs.transforms import tile_kernel
from jobs.transforms.tile_kernel import kernel_rows, supports
from jobs.transforms.tiles import TilePlan, group_rows, measure_of, plan_of, tiles_of

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
    keys: tuple[str, ...],
    windows: tuple[str | None, ...],
    values: tuple[str, ...],
    after: int | None,
) -> None:
    rows, (wanted, _) = frame(spark), group(keys, windows, values)
    plan = plan_of(rows, wanted, keys)
    assert supports(rows, plan)
    expected = group_rows(tiles_of(rows, plan), plan, until_us=UNTIL, after_us=after)
    found = kernel_rows(rows, plan, until_us=UNTIL, after_us=after).rows()
    assert found.schema == expected.schema
    other, own = bits(expected.toArrow(), keys), bits(found.toArrow(), keys)
    assert len(own) == len(other) > 100
    for one, two in zip(own, other, strict=True):
        assert one == two, [(n, a, b) for n, a, b in zip(found.columns, one, two, strict=True) if a != b]


def test_kernel_declines_what_only_sql_can_do(spark: SparkSession) -> None:
    rows = frame(spark)
    for every, aggregate in [
        (None, Aggregate("count")),
        (EVERY, Aggregate("last", "double")),
        (EVERY, Aggregate("max", "k_0")),
        (EVERY, Aggregate("sum", "k_6")),
        (EVERY, Aggregate("count", by="k_0")),
    ]:
        entity = Entity("e", keys={"case": "bigint"})
        wanted = FeatureGroup("g", entity=entity, source="s", every=every, features=[Feature("f", "bigint", aggregate)])
        assert not supports(rows, plan_of(rows, wanted, ["case"])), aggregate


# without Spark


def kernel(windows: tuple[int | None, ...], *, after: int | None = None, until: int = 59) -> tile_kernel.Kernel:
    """A grid of one microsecond: a time is the number of its cell."""
    calls = [("count", {}), ("sum", {"column": "x"}), ("min", {"column": "x"}), ("max", {"column": "x"})]
    found = []
    for (function, more), window in product(calls, windows):
        aggregate = Aggregate(function, window="1s", **more)
        found.append((Feature(f"{function}_{window}", "bigint", aggregate), measure_of(aggregate), window))
    plan = TilePlan(("key",), 1, tuple(found))
    types = {"key": "bigint", "event_time": "timestamp", "created_time": "timestamp"}
    types |= {feature.name: "bigint" for feature, *_ in found}
    for name in (*plan.tile_columns, *plan.life_columns[1:], *plan.life_columns[:1]):
        types[name] = "timestamp" if name.endswith("_created") else "bigint"
    kinds = {measure.value: "rows" if measure.name == "count" else "bigint" for measure in plan.measures}
    return tile_kernel.kernel_of(plan, kinds, types, until_us=until, after_us=after)


def slim(rows: list[tuple[int, int, int, int | None]]) -> list[pa.RecordBatch]:
    columns = [pa.array(column, pa.int64()) for column in zip(*rows, strict=True)]
    return pa.table(columns, names=["key", "cell", "created", "x"]).to_batches(max_chunksize=997)


@pytest.mark.parametrize("after", [None, 30])
def test_many_rows_in_small_chunks_equal_a_plain_loop(monkeypatch: pytest.MonkeyPatch, after: int | None) -> None:
    """Partial tiles are joined again and again, a tenth of the rows are of one entity, batches are small."""
    monkeypatch.setattr(tile_kernel, "CHUNK", 2000)
    monkeypatch.setattr(tile_kernel, "OUT", 1000)
    draw = random.Random(SEED)
    rows = []
    for _ in range(30_000):
        key = 7 if draw.random() < 0.1 else draw.randrange(400)
        value = None if draw.random() < 0.3 else draw.randint(-(2**62) // 5000, 2**62 // 5000)
        rows.append((key, draw.randrange(key % 40, 60) if key % 3 else 59 - key % 7, draw.randrange(99), value))
    windows = (1, 2, 7, 30) if after else (None, 1, 7, 100)
    batches = list(tile_kernel.partition_rows(kernel(windows, after=after))(iter(slim(rows))))
    assert max(batch.num_rows for batch in batches) <= 1000
    found = pa.Table.from_batches(batches).to_pylist()
    epoch = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
    at = [((row["event_time"] - epoch) // datetime.timedelta(microseconds=1), row["key"]) for row in found]
    assert at == sorted(set(at))  # in the order (event_time, keys)
    own: dict[int, dict[int, list[int | None]]] = {}
    for key, cell, _, value in rows:
        own.setdefault(key, {}).setdefault(cell, []).append(value)
    begin = -1 if after is None else after
    assert set(at) == {(cell, key) for key, cells in own.items() for cell in range(min(cells), 60) if cell > begin}
    for (cell, key), row in zip(at, found, strict=True):
        for window in windows:
            start = -1 if window is None else cell - window
            inside = [value for c, values in own[key].items() if start < c <= cell for value in values]
            some = [value for value in inside if value is not None]
            expected = (len(inside), sum(some) if some else None, min(some, default=None), max(some, default=None))
            assert tuple(row[f"{name}_{window}"] for name in ("count", "sum", "min", "max")) == expected


@pytest.mark.parametrize("cells", [[5, 5, 5], [5, 6, 7]])
def test_sum_that_leaves_64_bits_raises_in_a_tile_and_in_a_window(cells: list[int]) -> None:
    rows = [(1, cell, 0, 2**62) for cell in cells]
    with pytest.raises(OverflowError, match="ARITHMETIC_OVERFLOW"):
        list(tile_kernel.partition_rows(kernel((3,)))(iter(slim(rows))))
    alone = [(1, cell, 0, 2**62) for cell in (5, 8, 11)]
    assert list(
        tile_kernel.partition_rows(kernel((3,)))(iter(slim(alone)))
    )  # the sum of all is too large, no window is


def test_parts_of_an_exact_sum_are_those_of_remainders() -> None:
    draw = random.Random(SEED)
    values = [v for v in DOUBLES if v is not None]
    values += [math.ldexp(draw.uniform(-1, 1), draw.randint(-120, 62)) for _ in range(5000)]
    parts = tile_kernel.exact(np.array(values))
    columns = [np.zeros(len(values)) if part is None else part for part in parts]
    for value, *found in zip(values, *columns, strict=True):
        small = abs(value) < 2.0**58
        inside = value if small else 0.0
        remainders = [(28, 4), (-4, 36), (-36, 68)]
        whole = [int(inside * 2.0**-28), *(int(math.fmod(inside, 2.0**a) * 2.0**b) for a, b in remainders)]
        rest = math.fmod(value, 2.0**-68) if small else value
        assert [int(part) for part in found[:4]] == whole
        assert found[4] == rest or (math.isnan(rest) and math.isnan(found[4]))


def test_ranks_order_doubles_as_spark_does_and_turn_back() -> None:
    ordered = [-math.inf, -3e20, -1.0, -5e-324, -0.0, 0.0, 5e-324, 1.0, 3e20, math.inf, math.nan]
    for kind, spark_type in ((np.float64, "double"), (np.float32, "float")):
        numbers = np.array([v for v in ordered if abs(v) != 5e-324], kind)
        ranks = tile_kernel.ranked(numbers)
        assert (np.diff(ranks) > 0).all()
        assert tile_kernel.unranked(ranks, spark_type).tobytes() == numbers.tobytes()
