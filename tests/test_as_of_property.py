"""The as-of against plain loops: a thousand small cases in one join, under every set of options.

A case is a few rows and spine rows drawn from tiny pools, so that ties, boundaries and nulls meet often; its number is
part of the key, so cases do not touch. One Spark job joins four groups (ttl x skip_nulls) of all cases at once.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cache
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from connectors.plain_files import PlainFile, PlainFiles
from feature_defs import Entity, Feature, FeatureGroup
from feature_defs.join_plan import GroupJoin, JoinPlan, TimeRules
from jobs.joining import Joined, OwnFiles, join_spine, kept_in, near_files
from jobs.transforms.as_of import LEAK, latest_rows, training_rows
from jobs.transforms.direct import _coder, _same
from jobs.transforms.features import feature_rows
from jobs.transforms.locate_kernel import TAGS, Search, in_order
from tests import oracle

CASES, SEED = 1000, 20260131
SECOND = 1_000_000
TTL = 3 * SECOND
TIMES = [0, SECOND, SECOND + 1, 2 * SECOND, 3 * SECOND, 4 * SECOND, 4 * SECOND + 1, 7 * SECOND]
KEYS = [(1, "23"), (12, "3"), (1, "3"), (1, None), (None, "3")]
FEATURES = ("a", "b")
MAPS = [None, {}, {"x": None}, {"x": 1}, {"x": 2}, {"x": 1, "y": None}, {"w": 9, "x": 1}, {"é": 1}]
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


def spine_frame(spark: SparkSession, of: list[Case] | None = None) -> DataFrame:
    places = [
        (number, place, *point) for number, case in enumerate(of or cases()) for place, point in enumerate(case.spine)
    ]
    numbers, at, keys, times = zip(*places, strict=True)
    columns = {"case": numbers, "place": at, "k1": [k for k, _ in keys], "k2": [k for _, k in keys]}
    return spark.createDataFrame(pa.table({**columns, "event_time": pa.array(times, TIME)}))


def row_frame(spark: SparkSession) -> DataFrame:
    return spark.createDataFrame(row_table(cases()))


def row_table(of: list[Case]) -> pa.Table:
    rows = [(number, *row) for number, case in enumerate(of) for row in case.rows]
    numbers, keys, times, created, values = zip(*rows, strict=True)
    columns = {"case": numbers, "k1": [k for k, _ in keys], "k2": [k for _, k in keys]}
    clocks = {"event_time": pa.array(times, TIME), "created_time": pa.array(created, TIME)}
    return pa.table({**columns, **clocks, "a": [a for a, _ in values], "b": [b for _, b in values]})


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


@pytest.mark.parametrize("most_seen", [0, 20_000], ids=["leaks counted by a query", "leaks seen in passing"])
@pytest.mark.parametrize("known_by", ["event", "spine"])
@pytest.mark.parametrize("strict", [False, True])
def test_located_rows_equal_the_loops_row_for_row(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strict: bool, known_by: str, most_seen: int
) -> None:
    monkeypatch.setattr("jobs.transforms.locate._MOST_SEEN", most_seen)
    plan = JoinPlan("s", 1, GROUPS, TimeRules(strict=strict, known_by=known_by))
    tables = {group.group: row_frame(spark) for group in GROUPS}
    joined = join_spine(spine_frame(spark), tables, plan, keep=kept_in(f"file://{tmp_path}"), few=0)
    ways = {group.group: "in line" if group.skip_nulls else "locate" for group in GROUPS}
    assert joined.ways == ways
    assert_as_the_loops_say(joined, cases(), plan.rules)


def assert_as_the_loops_say(joined: Joined, of: list[Case], rules: TimeRules) -> None:
    """Every spine row once with its answers, and of groups that tell them, the leaks."""
    found = joined.rows().toArrow()
    assert found.num_rows == joined.spine_rows == sum(len(case.spine) for case in of)
    answers = {(row["case"], row["place"]): row for row in found.to_pylist()}
    told = {name: count for leaks in joined.leaks for name, count in leaks.counts().items()}
    expected_leaks: Counter[str] = Counter()
    for group in GROUPS:
        own = oracle.Rules(rules.strict, rules.known_by, group.ttl_us, group.skip_nulls)
        for number, case in enumerate(of):
            expected = oracle.as_of(case.spine, case.rows, own)
            leaks = oracle.leaks(case.spine, case.rows, own, len(FEATURES))
            for place, (values, leaked) in enumerate(zip(expected, leaks, strict=True)):
                row = answers[number, place]
                told_of = (number, place, group.group, case)
                assert tuple(row[name] for _, name in group.columns) == (values or (None, None)), told_of
                if not group.skip_nulls:
                    expected_leaks.update(name for (_, name), leak in zip(group.columns, leaked, strict=True) if leak)
    assert told == dict(expected_leaks)
    assert all(told.values())


def without_twins(case: Case, *, b: bool) -> Case:
    """One row of each key and clocks; without `b`, as a table had them before the feature was added."""
    one_each = {row[:3]: row for row in case.rows}.values()
    return Case([(*clocks, values if b else (values[0], None)) for *clocks, values in one_each], case.spine)


OLD = 300  # cases whose rows are in files that do not know `b`


@pytest.mark.parametrize("known_by", ["event", "spine"])
@pytest.mark.parametrize("strict", [False, True])
def test_direct_rows_equal_the_loops_row_for_row(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strict: bool, known_by: str
) -> None:
    """From several files of several row groups, in pieces of the spine that end within its files."""
    monkeypatch.setattr("jobs.transforms.direct._AT_ONCE", 1)
    monkeypatch.setattr("jobs.transforms.pieces.PIECE", 700)
    monkeypatch.setattr("jobs.transforms.direct.PIECE", 700)
    own = [without_twins(case, b=number >= OLD) for number, case in enumerate(cases())]
    files = files_of(spark, tmp_path / "rows", [row_table(own), row_table(own[:OLD]).drop_columns(["b"])])
    plan = JoinPlan("s", 1, GROUPS, TimeRules(strict=strict, known_by=known_by))
    tables = {group.group: files.rows() for group in GROUPS}
    files_of_groups = OwnFiles({group.group: files for group in GROUPS}, f"file://{tmp_path}/own")
    keep = kept_in(f"file://{tmp_path}/kept")
    joined = join_spine(spine_frame(spark, own).repartition(2), tables, plan, keep=keep, own=files_of_groups)
    assert joined.ways == {group.group: "in line" if group.skip_nulls else "direct" for group in GROUPS}
    assert joined.pieces is None  # some went in line
    assert_as_the_loops_say(joined, own, plan.rules)


def test_rows_with_equal_clocks_are_not_answered_directly(spark: SparkSession, tmp_path: Path) -> None:
    """Which of them is greater, Spark says."""
    group = GROUPS[0]
    files = files_of(spark, tmp_path / "rows", [row_table(cases())])
    plan, own = JoinPlan("s", 1, (group,), TimeRules()), OwnFiles({group.group: files}, f"file://{tmp_path}/own")
    kept = kept_in(f"file://{tmp_path}/kept")
    joined = join_spine(spine_frame(spark), {group.group: row_frame(spark)}, plan, keep=kept, own=own)
    assert (joined.ways, joined.pieces) == ({group.group: "in line"}, None)


@pytest.mark.parametrize("key", [lambda n: n, "customer {}".format], ids=["whole numbers", "text"])
def test_parts_of_files_without_the_spines_entities_are_not_read(
    spark: SparkSession, tmp_path: Path, key: Callable[[int], object]
) -> None:
    rows = pa.table(
        {
            "k": [key(n) for n in range(100, 130)],
            "event_time": pa.array([datetime(2026, 1, 1, tzinfo=timezone.utc)] * 30, TIME),
            "created_time": pa.array([datetime(2026, 1, 1, tzinfo=timezone.utc)] * 30, TIME),
            "a": range(30),
        }
    )
    path = tmp_path / "rows" / "0.parquet"
    path.parent.mkdir()
    parquet.write_table(rows, path, row_group_size=10, compression="none")
    files = PlainFiles(spark, spark.read.parquet(str(path)).schema, (PlainFile(f"file://{path}", 1),))
    spoil(path, parts=(0, 2))
    group = GroupJoin("g", 1, ("k",), (files.schema["k"].dataType.simpleString(),), (("a", "a"),), None, False)
    points = [{"k": key(n), "event_time": datetime(2026, 1, 2, tzinfo=timezone.utc)} for n in (112, 115)]
    spine = spark.createDataFrame(pa.Table.from_pylist(points))
    own, keep = OwnFiles({"g": files}, f"file://{tmp_path}/own"), kept_in(f"file://{tmp_path}/kept")
    joined = join_spine(spine, {}, JoinPlan("s", 1, (group,), TimeRules()), keep=keep, own=own)
    assert sorted(row["a"] for row in joined.rows().collect()) == [12, 15]


def spoil(path: Path, parts: Sequence[int]) -> None:
    """Make what lies in these parts of a Parquet file unreadable."""
    footer, content = parquet.ParquetFile(path).metadata, bytearray(path.read_bytes())
    for part in parts:
        for n in range(footer.num_columns):
            column = footer.row_group(part).column(n)
            start = column.dictionary_page_offset or column.data_page_offset
            content[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(content)


def test_values_that_are_too_much_for_a_task_are_not_answered_directly(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = GROUPS[0]
    files = files_of(spark, tmp_path / "rows", [row_table([without_twins(case, b=True) for case in cases()])])
    assert near_files(group, files, None, None) is not None
    monkeypatch.setattr("jobs.joining._MOST_BYTES", 100)
    assert near_files(group, files, None, None) is None


def files_of(spark: SparkSession, folder: Path, parts: list[pa.Table]) -> PlainFiles:
    """Rows of the first part that no other has, and the others, in files of several row groups."""
    folder.mkdir()
    later = {number for part in parts[1:] for number in part["case"].to_pylist()}
    first = parts[0].filter(pa.array([number not in later for number in parts[0]["case"].to_pylist()]))
    found = []
    for number, rows in enumerate([first.slice(0, 1000), first.slice(1000), *parts[1:]]):
        parquet.write_table(rows, folder / f"{number}.parquet", row_group_size=400)
        found.append(PlainFile(f"file://{folder}/{number}.parquet", 0))
    return PlainFiles(spark, spark.createDataFrame(parts[0].slice(0, 1)).schema, tuple(found))


@pytest.mark.parametrize("entities", [1, 2**20, 2**50, 2**58])
@pytest.mark.parametrize("span", [2, 2**40, 2**60, 2**63 - 1])
def test_rows_are_put_in_order_however_wide_their_numbers_are(span: int, entities: int) -> None:
    draw = np.random.default_rng([span, entities])
    for count in (0, 1, 2, 700):
        entity, other = draw.integers(0, entities, count), draw.integers(0, 3, count)
        packed = draw.integers(-span, span, count)
        expected = sorted(zip(entity.tolist(), packed.tolist(), other.tolist(), strict=True))
        found = in_order(entity, packed.copy(), other, Search(1, (None,), False, False, ()))
        numbers = (found.time * TAGS + found.tag).tolist()
        told = list(zip(found.entity.tolist(), numbers, found.other(np.arange(count)).tolist(), strict=True))
        assert [row[:2] for row in told] == [row[:2] for row in expected]
        of_rows = [[row for row in rows if row[1] % TAGS != TAGS - 1] for rows in (told, expected)]
        assert of_rows[0] == of_rows[1]  # points of one time are in any order


@pytest.mark.parametrize("kinds", [("int64",), ("int32",), ("int64", "string"), ("string",), ("binary",)], ids=str)
@pytest.mark.parametrize("spread", [1, 10**15], ids=["close", "far"])
def test_entities_have_the_same_number_wherever_they_are(kinds: tuple[str, ...], spread: int) -> None:
    draw = random.Random(SEED)

    def drawn(rows: int) -> list[pa.ChunkedArray]:
        columns = []
        for kind in kinds:
            step = min(spread, 10**7) if kind == "int32" else spread
            numbers = [None if draw.random() < 0.1 else (draw.randint(0, 60) - 30) * step for _ in range(rows)]
            text = [None if n is None else str(n) for n in numbers]
            values = numbers if kind.startswith("int") else text
            columns.append(pa.chunked_array([pa.array(values[:70], kind), pa.array(values[70:], kind)]))
        return columns

    own, others = drawn(100), drawn(500)
    codes, coded = _coder(own)
    numbers: dict[tuple[object, ...], int] = {}
    for code, keys in zip(codes.tolist(), zip(*(column.to_pylist() for column in own), strict=True), strict=True):
        assert numbers.setdefault(keys, code) == code
    assert all((code < 0) == (None in keys) for keys, code in numbers.items())
    known = {keys: code for keys, code in numbers.items() if code >= 0}
    assert sorted(known.values()) == list(range(len(known)))
    expected = [known.get(keys, -1) for keys in zip(*(column.to_pylist() for column in others), strict=True)]
    assert coded(others).tolist() == expected
    assert -1 in expected
    assert max(expected) > 0


def test_cells_of_two_rows_are_compared_as_spark_does() -> None:
    nan = float("nan")
    lists = [None, [], [1.0], [nan], [None], [0.0], [-0.0], [1.0, None], [1.0, nan], [nan, 1.0]]
    pairs = list(product(lists, lists))

    def plain(value: object) -> object:
        if isinstance(value, list):
            return [plain(one) for one in value]
        return "nan" if value != value else value

    for kind, left, right in [
        (pa.list_(pa.float64()), [a for a, _ in pairs], [b for _, b in pairs]),
        (pa.float32(), [None, nan, nan, 0.0, 1.0, None], [None, nan, 1.0, -0.0, None, 2.0]),
        (pa.string(), [None, "", "a", None], [None, "a", "a", ""]),
    ]:
        found = _same(pa.chunked_array([pa.array(left, kind)]), pa.chunked_array([pa.array(right, kind)]))
        assert found.tolist() == [plain(a) == plain(b) for a, b in zip(left, right, strict=True)]


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


# maps


@cache
def map_cases() -> list[Case]:
    """Some of the cases with a map and a number as values: Spark compares no maps, so theirs is a path of its own."""
    draw = random.Random(SEED)
    drawn = cases()[:300]
    return [Case([(*row[:3], (draw.choice(MAPS), row[3][0])) for row in case.rows], case.spine) for case in drawn]


def map_frames(spark: SparkSession):
    """Spine and rows; the entries of every other row's map lie in the other order."""
    points = [(number, *point) for number, case in enumerate(map_cases()) for point in dict.fromkeys(case.spine)]
    numbers, keys, times = zip(*points, strict=True)
    columns = {"case": numbers, "k1": [k for k, _ in keys], "k2": [k for _, k in keys]}
    spine = pa.table({**columns, "event_time": pa.array(times, TIME)})
    rows = [(number, *row) for number, case in enumerate(map_cases()) for row in case.rows]
    numbers, keys, times, created, values = zip(*rows, strict=True)
    columns = {"case": numbers, "k1": [k for k, _ in keys], "k2": [k for _, k in keys]}
    clocks = {"event_time": pa.array(times, TIME), "created_time": pa.array(created, TIME)}
    entries = [m and sorted(m.items(), reverse=at % 2 == 1) for at, (m, _) in enumerate(values)]
    maps = pa.array([[] if m == {} else m for m in entries], pa.map_(pa.string(), pa.int64()))
    table = pa.table({**columns, **clocks, "m": maps, "a": pa.array([a for _, a in values], pa.int64())})
    return spark.createDataFrame(spine), spark.createDataFrame(table)


def map_group(*, skip_nulls: bool) -> GroupJoin:
    name = "skip" if skip_nulls else "keep"
    columns, types = (("m", f"{name}__m"), ("a", f"{name}__a")), ("bigint", "bigint", "string")
    return GroupJoin(name, 1, ("case", "k1", "k2"), types, columns, TTL, skip_nulls, maps=("m",))


def answers_of(found: DataFrame, *clocks: str) -> dict:
    """(case, keys, times) -> the row, its maps as dicts: Arrow tells them as lists of pairs."""
    timed = found.withColumns({clock: F.unix_micros(clock) for clock in clocks})
    rows = [
        {name: dict(value) if isinstance(value, list) else value for name, value in row.items()}
        for row in timed.toArrow().to_pylist()
    ]
    return {(row["case"], (row["k1"], row["k2"]), *(row[clock] for clock in clocks)): row for row in rows}


@pytest.mark.parametrize("known_by", ["event", "spine"])
def test_join_of_maps_equals_the_loops(spark: SparkSession, known_by: str) -> None:
    groups = (map_group(skip_nulls=False), map_group(skip_nulls=True))
    spine, rows = map_frames(spark)
    found = training_rows(spine, [rows] * 2, JoinPlan("s", 1, groups, TimeRules(known_by=known_by)))
    assert dict(found.dtypes)["keep__m"] == "map<string,bigint>"
    answers = answers_of(found, "event_time")
    for joined in groups:
        rules = oracle.Rules(False, known_by, joined.ttl_us, joined.skip_nulls)
        for number, case in enumerate(map_cases()):
            expected = oracle.as_of(case.spine, case.rows, rules)
            leaks = oracle.leaks(case.spine, case.rows, rules, 2)
            for point, values, leaked in zip(case.spine, expected, leaks, strict=True):
                row, told = answers[(number, *point)], (number, point, joined.group, case)
                assert tuple(row[name] for _, name in joined.columns) == (values or (None, None)), told
                assert tuple(bool(row[LEAK + name]) for _, name in joined.columns) == leaked, told


def test_maps_that_compute_keeps_and_materialize_loads_equal_the_loops(spark: SparkSession) -> None:
    good = map_frames(spark)[1].dropna(subset=["event_time"])
    entity = Entity("e", keys={"case": "bigint", "k1": "bigint", "k2": "string"})
    features = [Feature("m", "map<string,bigint>"), Feature("a", "bigint")]
    kept = feature_rows(good, FeatureGroup("g", entity=entity, source="r", features=features), entity, until_us=0)
    assert kept.dtypes == good.dtypes
    rows = [(number, row) for number, case in enumerate(map_cases()) for row in case.rows if row[1] is not None]
    greatest = {(number, *row[:3]): row[3] for number, row in sorted(rows, key=lambda pair: oracle.rank(pair[1]))}
    found = answers_of(kept, "event_time", "created_time")
    assert {at: (row["m"], row["a"]) for at, row in found.items()} == greatest
    for now in (SECOND, 9 * SECOND):
        found = answers_of(latest_rows(good, map_group(skip_nulls=False), now_us=now), "event_time")
        expected = {
            (number, keys, time): values
            for number, case in enumerate(map_cases())
            for keys, (time, values) in oracle.latest([r for r in case.rows if r[1] is not None], now).items()
        }
        assert {at: (row["m"], row["a"]) for at, row in found.items()} == expected


def test_every_edge_of_maps_occurs_in_the_cases() -> None:
    """Rows that only their maps tell apart, and among these each of the maps."""
    seen = Counter(
        str(row[3][0])
        for case in map_cases()
        for pair in combinations(case.rows, 2)
        for row in pair
        if pair[0][:3] == pair[1][:3] and pair[0][3][0] != pair[1][3][0]
    )
    assert {edge: seen[edge] for edge in map(str, MAPS) if seen[edge] < 5} == {}
