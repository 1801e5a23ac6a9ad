"""The latest rows found in a table's Parquet files: as a plain loop says, however the files, keys and tasks are cut."""

from __future__ import annotations

import datetime
import decimal
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql.types import (
    BinaryType,
    BooleanType,
    DataType,
    DateType,
    DecimalType,
    IntegerType,
    LongType,
    StringType,
    StructField,
    StructType,
    TimestampType,
)

from connectors.plain_files import PlainFile, PlainFiles
from feature_defs.join_plan import GroupJoin
from feature_defs.model import REJECTED
from jobs import file_load
from jobs.file_load import HandedBackError, LatestOfFiles, latest_of_files
from jobs.transforms.latest import LIMIT

SECOND, NOW, CASES = 1_000_000, 100_000_000, 40
TIME = pa.timestamp("us", tz="UTC")
DAY = datetime.date(2026, 1, 1)
Key = tuple[Any, ...]
Row = tuple[Key, int, int | None, int, str | None]  # keys, event_time, created_time, amount, why it is in quarantine

KEYS: dict[str, tuple[dict[str, str], Callable[[int], Key]]] = {
    "numbers": ({"id": "bigint"}, lambda n: (n - 7,)),
    "numbers far apart": ({"id": "bigint"}, lambda n: ((n - 7) << 40,)),
    "small numbers": ({"id": "int"}, lambda n: (n,)),
    "texts": ({"name": "string"}, lambda n: (f"{'k' * (n % 4)}{n // 4}",)),
    "bytes": ({"name": "binary"}, lambda n: (bytes([n % 3, n]),)),
    "two": ({"name": "string", "id": "bigint"}, lambda n: (f"k{n % 5}", n // 5)),
    "others": (
        {"yes": "boolean", "day": "date", "price": "decimal(9,2)", "at": "timestamp"},
        lambda n: (
            bool(n % 2),
            DAY + datetime.timedelta(n // 2 % 3),
            decimal.Decimal(n) / 4,
            datetime.datetime(2026, 1, 1, n % 24, tzinfo=datetime.timezone.utc),
        ),
    ),
}
ARROW = {
    "bigint": pa.int64(), "int": pa.int32(), "string": pa.string(), "binary": pa.binary(), "boolean": pa.bool_(),
    "date": pa.date32(), "decimal(9,2)": pa.decimal128(9, 2), "timestamp": TIME,
}  # fmt: skip
SPARK: dict[str, DataType] = {
    "bigint": LongType(), "int": IntegerType(), "string": StringType(), "binary": BinaryType(),
    "boolean": BooleanType(), "date": DateType(), "decimal(9,2)": DecimalType(9, 2), "timestamp": TimestampType(),
}  # fmt: skip


def drawn(draw: random.Random, key: Callable[[int], Key]) -> list[list[Row]]:
    """Files of rows around now, in the order of time or not: ties, rows in the future, rows in quarantine."""
    in_order, ties, same, rejects = (draw.random() < odds for odds in (0.7, 0.6, 0.2, 0.4))
    files: list[list[Row]] = []
    taken = set()
    for file in range(draw.randrange(1, 6)):
        rows: list[Row] = []
        for _ in range(draw.randrange(1, 40)):
            entity = key(draw.randrange(24))
            age = draw.randrange(-2, 12) + (10 * file if in_order else 0)
            time = NOW - age * SECOND if draw.random() < 0.99 else 1 << 61  # a year that Python has no date for
            created = draw.choice([None, time, time + SECOND])
            alike = (entity, time, created) if ties else (entity, time)
            if alike not in taken or same:
                taken.add(alike)
                why = draw.choice([None, "bad"]) if rejects else None
                if why and draw.random() < 0.1:
                    entity = (None,) * len(entity)
                rows.append((entity, time, created, draw.randrange(10**9), why))
        files.append(rows)
    return [rows for rows in files if rows]


def written(folder: Path, draw: random.Random, files: list[list[Row]], kinds: dict[str, str]) -> PlainFiles:
    """The files, some without what later ones have; their bounds are known or not."""
    found, bounded = [], draw.random() < 0.8
    for number, rows in enumerate(files):
        keys, times, created, amounts, whys = zip(*rows, strict=True)
        columns = {
            name: pa.array([key[i] for key in keys], ARROW[kind]) for i, (name, kind) in enumerate(kinds.items())
        }
        columns |= {"event_time": pa.array(times, TIME), "created_time": pa.array(created, TIME)}
        columns |= {"amount": pa.array(amounts, pa.int64())}
        if number % 2:  # as files of today; the others are of before
            columns |= {"added": pa.array([1] * len(rows), pa.int32())}
        if any(whys):
            columns |= {REJECTED: pa.array(whys)}
        if all(time is None for time in created) and draw.random() < 0.5:
            del columns["created_time"]
        path = folder / f"{number}.parquet"
        pq.write_table(pa.table(columns), path, row_group_size=draw.choice([7, 100]))
        span = (min(times), max(times)) if bounded else (None, None)
        found.append(PlainFile(f"file://{path}", path.stat().st_size, *span))
    draw.shuffle(found)
    names = {**kinds, "event_time": "timestamp", "created_time": "timestamp", "amount": "bigint", "added": "int"}
    if any(why for rows in files for *_, why in rows):
        names[REJECTED] = "string"
    schema = StructType([StructField(name, SPARK[kind]) for name, kind in names.items()])
    return PlainFiles(None, schema, tuple(found))  # type: ignore[arg-type]  # no session is asked


def expected(files: list[list[Row]]) -> dict[Key, Row | None]:
    """The latest row of each entity; None where two are alike in both clocks."""
    best: dict[Key, list[Row]] = {}
    for row in (row for rows in files for row in rows if row[1] <= NOW and row[4] is None):
        found = best.setdefault(row[0], [row])
        if clocks(row) > clocks(found[0]):
            best[row[0]] = [row]
        elif clocks(row) == clocks(found[0]) and row is not found[0]:
            found.append(row)
    return {key: found[0] if len(found) == 1 else None for key, found in best.items()}


def clocks(row: Row) -> tuple[int, int]:
    return row[1], -1 if row[2] is None else row[2]


def sent(latest: LatestOfFiles, kinds: dict[str, str]) -> dict[Key, tuple[int | None, int | None, int | None]]:
    """What all tasks send of each entity: event_time, amount and limit; no entity twice."""
    found: dict[Key, tuple[int | None, int | None, int | None]] = {}
    for part in latest.parts:
        located, count = latest.located(part), 0
        for batch in located.batches():
            rows = pa.Table.from_batches([batch])
            amounts = rows["amount"].to_pylist() if "amount" in rows.column_names else [None] * len(rows)
            times = rows["event_time"].cast(pa.int64()).to_pylist()
            for *key, time, amount, limit in zip(
                *(rows[name].to_pylist() for name in kinds), times, amounts, rows[LIMIT].to_pylist(), strict=True
            ):
                assert tuple(key) not in found
                found[tuple(key)] = (time, amount, limit)
                count += 1
        assert count == located.count
    return found


@pytest.mark.parametrize("keys", KEYS)
def test_latest_rows_of_files_are_what_a_plain_loop_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: str
) -> None:
    kinds, key = KEYS[keys]
    group = GroupJoin(
        "g", 1, tuple(kinds), tuple(kinds.values()), (("amount", "amount"), ("added", "added")), None, False
    )
    seen = {"alike": 0, "tied": 0, "gone": 0, "slices": 0, "recent": 0, "by number": 0, "rejected": 0}
    for case in range(CASES):
        draw = random.Random(f"{keys} {case}")
        monkeypatch.setattr(file_load, "_SHARED", draw.choice([0, 1 << 20]))
        monkeypatch.setattr(file_load, "_A_SLICE", draw.choice([300, 1 << 20]))
        monkeypatch.setattr(file_load, "_ENTITIES", draw.choice([7, 1 << 20]))
        monkeypatch.setattr(file_load, "_UNEVEN", 1 << 10)
        monkeypatch.setattr(file_load, "_MOST_SLICES", 1 << 10)
        files = drawn(draw, key)
        folder = tmp_path / str(case)
        folder.mkdir()
        plain, best = written(folder, draw, files, kinds), expected(files)
        limits = {key(n): draw.choice([None, NOW, NOW - 5 * SECOND]) for n in draw.sample(range(30), 12)}
        limits = {one: NOW if one not in best else limit for one, limit in limits.items()}
        columns = {
            name: pa.array([one[i] for one in limits], ARROW[kind]) for i, (name, kind) in enumerate(kinds.items())
        }
        touched = pa.table({**columns, LIMIT: pa.array(limits.values(), pa.int64())})
        for asked in (None, touched):
            latest = latest_of_files(plain, group, now_us=NOW, touched=asked)
            assert latest is not None
            wanted = best if asked is None else {one: best.get(one) for one in limits}
            if any(one in best and best[one] is None for one in wanted):
                seen["alike"] += 1
                with pytest.raises(HandedBackError):
                    sent(latest, kinds)
                continue
            told = {
                one: (row[1], row[3], None if asked is None else limits[one]) if row else (None, None, limits[one])
                for one, row in wanted.items()
            }
            assert sent(latest, kinds) == told, (case, asked is None)
            seen["slices"] += latest.slices > 1
            seen["recent"] += len(latest.parts) % 3 == 0
            seen["by number"] += latest.numbers is not None
            seen["gone"] += any(row is None for row in wanted.values())
            times = [row[:2] for rows in files for row in rows if row[4] is None and row[1] <= NOW]
            seen["tied"] += any(row is not None and times.count(row[:2]) > 1 for row in wanted.values())
            seen["rejected"] += REJECTED in latest.rows.schema.names
    occurred = {name for name, count in seen.items() if count}
    assert occurred == seen.keys() - ({"by number"} if keys not in ("numbers", "small numbers") else set()), seen


def test_what_values_decide_or_spark_alone_reads_is_left_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw, (kinds, key) = random.Random(1), KEYS["numbers"]
    plain = written(tmp_path, draw, drawn(draw, key), kinds)

    def found(plain: PlainFiles = plain, *, skip_nulls: bool = False, maps: tuple[str, ...] = ()) -> object:
        group = GroupJoin("g", 1, ("id",), ("bigint",), (("amount", "amount"),), None, skip_nulls, maps)
        return latest_of_files(plain, group, now_us=NOW)

    assert found() is not None
    assert found(skip_nulls=True) is None
    assert found(maps=("amount",)) is None
    elsewhere = PlainFile("hdfs://there/0.parquet", 1)
    assert found(PlainFiles(plain.spark, plain.schema, (*plain.files, elsewhere))) is None
    monkeypatch.setattr(file_load, "_MOST", 10)
    assert found() is None


def test_task_holds_no_more_than_its_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slice that turns out larger than it should is handed back."""
    draw, (kinds, key) = random.Random(2), KEYS["texts"]
    plain = written(tmp_path, draw, drawn(draw, key), kinds)
    latest = latest_of_files(
        plain, GroupJoin("g", 1, ("name",), ("string",), (("amount", "amount"),), None, False), now_us=NOW
    )
    assert latest is not None
    nothing = replace(latest, now_us=-(1 << 60), touched=pa.table({"name": ["ann"], LIMIT: [NOW]}))
    assert nothing.located(latest.parts[0]).gone == nothing.touched  # no row group is read
    monkeypatch.setattr(file_load, "_UNEVEN", 0)
    with pytest.raises(HandedBackError):
        latest.located(latest.parts[0])
