"""The as-of against plain loops: a thousand small cases in one join, under every set of options.

A case is a few rows and spine rows drawn from tiny pools, so that ties, boundaries and nulls meet often; its number is
part of the key, so cases do not touch. One Spark job joins four groups (ttl x skip_nulls) of all cases at once.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product

import pyarrow as pa
import pytest
from pyspark.sql import SparkSession

from feature_defs.join_plan import GroupJoin, JoinPlan, TimeRules
from jobs.transforms.as_of import LEAK, latest_rows, training_rows
from tests import oracle

CASES, SEED = 1000, 20260131
SECOND = 1_000_000
TTL = 3 * SECOND
TIMES = [0, SECOND, SECOND + 1, 2 * SECOND, 3 * SECOND, 4 * SECOND, 4 * SECOND + 1, 7 * SECOND]
KEYS = [(1, "23"), (12, "3"), (1, "3"), (1, None), (None, "3")]
FEATURES = ("a", "b")
TIME = pa.timestamp("us", tz="UTC")


@dataclass(frozen=True)
class Case:
    rows: list[oracle.Row]
    spine: list[oracle.Point]


@cache
def cases() -> list[Case]:
    draw = random.Random(SEED)
    return [_case(draw) for _ in range(CASES)]


def _case(draw: random.Random) -> Case:
    times, keys, created = draw.sample(TIMES, 4), draw.sample(KEYS, 2), [None, *draw.sample(TIMES, 2)]
    rows = []
    for _ in range(draw.randint(0, 7)):
        values = (draw.choice([None, 1, 2]), draw.choice([None, 1, 2]))
        time = None if draw.random() < 0.03 else draw.choice(times)
        rows.append((draw.choice(keys), time, draw.choice(created), values))
    spine = []
    for _ in range(draw.randint(1, 4)):
        time = None if draw.random() < 0.05 else draw.choice(times)
        spine.append((draw.choice(keys), time))
    return Case(rows, spine + draw.sample(spine, k=draw.randint(0, 1)))


def spine_frame(spark: SparkSession):
    places = [(number, place, *point) for number, case in enumerate(cases()) for place, point in enumerate(case.spine)]
    numbers, at, keys, times = zip(*places, strict=True)
    columns = {"case": numbers, "place": at, "k1": [k for k, _ in keys], "k2": [k for _, k in keys]}
    return spark.createDataFrame(pa.table({**columns, "event_time": pa.array(times, TIME)}))


def row_frame(spark: SparkSession):
    rows = [(number, *row) for number, case in enumerate(cases()) for row in case.rows]
    numbers, keys, times, created, values = zip(*rows, strict=True)
    columns = {"case": numbers, "k1": [k for k, _ in keys], "k2": [k for _, k in keys]}
    clocks = {"event_time": pa.array(times, TIME), "created_time": pa.array(created, TIME)}
    return spark.createDataFrame(
        pa.table({**columns, **clocks, "a": [a for a, _ in values], "b": [b for _, b in values]})
    )


def group(ttl: int | None, *, skip_nulls: bool) -> GroupJoin:
    name = f"{'short' if ttl else 'long'}_{'skip' if skip_nulls else 'keep'}"
    columns = tuple((feature, f"{name}__{feature}") for feature in FEATURES)
    return GroupJoin(name, 1, ("case", "k1", "k2"), ("bigint", "bigint", "string"), columns, ttl, skip_nulls)


GROUPS = tuple(group(ttl, skip_nulls=skip) for ttl, skip in product((None, TTL), (False, True)))


@pytest.mark.parametrize("known_by", ["event", "spine"])
@pytest.mark.parametrize("strict", [False, True])
def test_join_equals_the_loops_row_for_row(spark: SparkSession, strict: bool, known_by: str) -> None:
    plan = JoinPlan("s", 1, GROUPS, TimeRules(strict=strict, known_by=known_by))
    found = training_rows(spine_frame(spark), [row_frame(spark)] * len(GROUPS), plan).toArrow()
    assert found.num_rows == sum(len(case.spine) for case in cases())
    answers = {(row["case"], row["place"]): row for row in found.to_pylist()}
    assert len(answers) == found.num_rows
    for joined in GROUPS:
        rules = oracle.Rules(strict, known_by, joined.ttl_us, joined.skip_nulls)
        for number, case in enumerate(cases()):
            expected = oracle.as_of(case.spine, case.rows, rules)
            leaks = oracle.leaks(case.spine, case.rows, rules, len(FEATURES))
            for place, (values, leaked) in enumerate(zip(expected, leaks, strict=True)):
                row, told = answers[number, place], (number, place, joined.group, case)
                assert tuple(row[name] for _, name in joined.columns) == (values or (None, None)), told
                assert tuple(bool(row[LEAK + name]) for _, name in joined.columns) == leaked, told


def test_latest_equals_the_loops(spark: SparkSession) -> None:
    rows = row_frame(spark)
    good = rows.dropna(subset=["event_time"])
    for now in (0, SECOND, 4 * SECOND, 9 * SECOND):
        found = latest_rows(good, group(None, skip_nulls=False), now_us=now).selectExpr(
            "*", "unix_micros(event_time) AS at"
        )
        answers = {(row["case"], (row["k1"], row["k2"])): row for row in found.toArrow().to_pylist()}
        expected = {
            (number, keys): newest
            for number, case in enumerate(cases())
            for keys, newest in oracle.latest([row for row in case.rows if row[1] is not None], now).items()
        }
        told = {key: (row["at"], (row["a"], row["b"])) for key, row in answers.items()}
        assert told == expected


def test_every_edge_occurs_in_the_cases() -> None:
    seen = Counter(edge for case in cases() for edge in edges(case))
    wanted = {
        "row at the spine time", "age exactly ttl", "age a microsecond over ttl", "tie of event_time",
        "tie of both clocks", "tie with a null created_time", "expired", "no row", "row of another key only",
        "null key in the spine", "null time in the spine", "null time in a row", "duplicate spine rows",
        "created after the spine time", "newest row holds null", "strict changes the answer", "ttl changes the answer",
        "known_by changes the answer", "skip_nulls changes the answer",
    }  # fmt: skip
    assert {edge: seen[edge] for edge in wanted if seen[edge] < 10} == {}


def edges(case: Case) -> Iterator[str]:
    if len(set(case.spine)) < len(case.spine):
        yield "duplicate spine rows"
    if any(time is None for _, time, _, _ in case.rows):
        yield "null time in a row"
    for keys, time in case.spine:
        if None in keys:
            yield "null key in the spine"
        elif time is None:
            yield "null time in the spine"
        else:
            yield from _point_edges(case, keys, time)


def _point_edges(case: Case, keys: oracle.Keys, time: int) -> Iterator[str]:
    own = [row for row in case.rows if row[0] == keys and row[1] is not None]
    usable = sorted((row for row in own if row[1] <= time), key=oracle.rank)
    plain = oracle.answer(keys, time, case.rows, oracle.Rules())
    for name, rules in {
        "strict": oracle.Rules(strict=True),
        "ttl": oracle.Rules(ttl=TTL),
        "known_by": oracle.Rules(known_by="spine"),
        "skip_nulls": oracle.Rules(skip_nulls=True),
    }.items():
        if oracle.answer(keys, time, case.rows, rules) != plain:
            yield f"{name} changes the answer"
    if not own:
        yield "row of another key only" if case.rows else "no row"
    if not usable:
        return
    newest = usable[-1]
    ties = [row for row in usable if row[1] == newest[1]]
    age = time - newest[1]
    found = {
        "row at the spine time": age == 0,
        "age exactly ttl": age == TTL,
        "age a microsecond over ttl": age == TTL + 1,
        "expired": age > TTL,
        "tie of event_time": len(ties) > 1,
        "tie of both clocks": sum(row[2] == newest[2] for row in ties) > 1,
        "tie with a null created_time": any(row[2] is None for row in ties) and newest[2] is not None,
        "created after the spine time": newest[2] is not None and newest[2] > time,
        "newest row holds null": None in newest[3],
    }
    yield from (edge for edge, occurs in found.items() if occurs)
