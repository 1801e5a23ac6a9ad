"""Loads go on from the last one, and what is online is what a plain loop over the table's rows says, after every step.

Each step changes hundreds of entities at once: rows that are new, late, tied, corrected, deleted, or whose time comes.
"""

from __future__ import annotations

import datetime
import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import redis
from pyspark.sql import DataFrame

from connectors import codec, watermarks
from connectors.file_store import local_path
from connectors.offline_tables import OfflineTable, Span
from connectors.redis_online import open_redis
from feature_defs import Entity, Feature, FeatureGroup, Source
from feature_defs.errors import DataError
from jobs import load_work
from jobs.file_load import load_files
from jobs.maintain import maintain
from jobs.materialize import LoadedGroup, materialize
from jobs.online_address import online_address
from jobs.online_load import LoadCounts
from jobs.place import Place, online_folder, time_of
from tests.lab import register

SEED, ENTITIES, SECOND = 20261122, 300, 1_000_000
START = int(datetime.datetime(2026, 2, 1, tzinfo=datetime.timezone.utc).timestamp()) * SECOND
FAR = 4_000 * 86_400 * SECOND  # a ttl that Redis's own clock does not reach
TIME = pa.timestamp("us", tz="UTC")
SCHEMA = pa.schema(
    [
        ("customer_id", pa.int64()),
        ("event_time", TIME),
        ("created_time", TIME),
        ("amount", pa.float64()),
        ("city", pa.string()),
    ]
)
SOURCE = Source("rows", path="lake://raw/rows", format="parquet", event_time="event_time")
Row = tuple[int, int, int | None, float | None, str | None]


@dataclass
class Lab:
    """A group's table, the same rows as plain Python, and the clock of the loads."""

    place: Place
    group: FeatureGroup
    draw: random.Random
    rows: list[Row] = field(default_factory=list)
    now_us: int = START + 100 * SECOND

    @property
    def table(self) -> OfflineTable:
        return self.place.table(self.group)

    @property
    def note(self) -> dict[str, Any]:
        return {"run": f"run-{self.draw.random()}", "fingerprint": self.place.applied().fingerprint(self.group.name)}

    def frame(self, rows: list[Row]) -> DataFrame:
        columns = [list(column) for column in zip(*rows, strict=True)] if rows else [[]] * len(SCHEMA)
        arrays = [pa.array(column, SCHEMA.field(i).type) for i, column in enumerate(columns)]
        return self.place.spark.createDataFrame(pa.Table.from_arrays(arrays, schema=SCHEMA)).coalesce(2)

    def made(self, count: int, *, ties: bool) -> list[Row]:
        """Rows of few times around now: some tie with rows that are there, some are in the future."""
        draw, taken = self.draw, {row[:2] for row in self.rows}
        found: dict[tuple[int, int, int | None], Row] = {}
        for _ in range(count):
            key, time = draw.randrange(ENTITIES), self.now_us + draw.choice([-90, -40, -3, -2, -1, 0, 1, 5]) * SECOND
            created = draw.choice([None, time, time + SECOND, time + 2 * SECOND])
            if ties or (key, time) not in taken:
                value, city = draw.choice([None, 0.5, 1.5, -2.0]), draw.choice([None, "Graz", "Wien", ""])
                found[key, time, created] = (key, time, created, value, city)
        there = {row[:3] for row in self.rows}
        return [row for row in found.values() if row[:3] not in there]

    # steps

    def append(self) -> None:
        rows = self.made(150, ties=True)
        self.table.append(self.frame(rows), self.note, after=self._version)
        self.rows += rows

    def merge(self) -> None:
        """Corrections of rows that are there, and new ones."""
        single = [row for row in self.rows if [other[:2] for other in self.rows].count(row[:2]) == 1]
        corrected = [
            (key, time, created, self.draw.choice([7.0, None]), "Linz")
            for key, time, created, _, _ in self.draw.sample(single, 60)
        ]
        fresh = {row[:2]: row for row in self.made(40, ties=False)}
        rows = [*corrected, *fresh.values()]
        self.table.merge(self.frame(rows), self.note, on=["customer_id", "event_time"], after=self._version)
        replaced = {row[:2] for row in rows}
        self.rows = [row for row in self.rows if row[:2] not in replaced] + rows

    def replace_span(self) -> None:
        """A span of time is computed again, and most of its rows are gone."""
        span = Span(self.now_us - 4 * SECOND, self.now_us + 2 * SECOND)
        inside = [row for row in self.rows if span.after_us < row[1] <= span.until_us]
        kept = self.draw.sample(inside, len(inside) // 3)
        self.table.replace_span(self.frame(kept), self.note, span=span, after=self._version)
        self.rows = [row for row in self.rows if row not in inside] + kept

    def replace(self) -> None:
        """The whole table is computed again, and a fifth of the entities is gone."""
        self.rows = [row for row in self.rows if row[0] % 5]
        self.table.replace(self.frame(self.rows), self.note)

    def maintain(self) -> None:
        maintain(self.place, [self.group.name])

    def wait(self) -> None:
        self.now_us += 6 * SECOND

    def nothing(self) -> None:
        pass

    @property
    def _version(self) -> int:
        version = self.table.version()
        assert version is not None
        return version

    # what is to be, and what is

    def expected(self) -> dict[int, dict[str, Any]]:
        """The features of each entity by the rules of time; entities past their ttl or without a row are left out."""
        ttl_us = FAR if self.group.ttl else None
        found: dict[int, dict[str, Any]] = {}
        for key in {row[0] for row in self.rows}:
            rows = [row for row in self.rows if row[0] == key and row[1] <= self.now_us]
            rows = [row for row in rows if ttl_us is None or row[1] >= self.now_us - ttl_us]
            rows.sort(key=_order)
            if rows:
                found[key] = {"event_time": rows[-1][1], "amount": rows[-1][3], "city": rows[-1][4]}
            if rows and self.group.skip_nulls:
                found[key] |= {
                    name: next((row[i] for row in reversed(rows) if row[i] is not None), None)
                    for name, i in (("amount", 3), ("city", 4))
                }
        return found

    def online(self) -> dict[int, dict[str, Any]]:
        schema = codec.ValueSchema.of_group(self.group)
        address, name = online_address(self.place), codec.field_name(self.group.name, self.group.version)
        found = {}
        with redis.Redis.from_url(address.url) as client:
            for key in client.scan_iter(f"{address.key_prefix}:customer:*"):
                if (value := client.hget(key, name)) is not None:
                    row = codec.decode(value, schema)
                    values = dict(zip(schema.names, row.values, strict=True))
                    found[int(key.rpartition(b":")[2])] = {"event_time": row.event_time_us, **values}
        return found

    def load(self, *, full: bool = False) -> LoadedGroup:
        return materialize(self.place, now=time_of(self.now_us), full=full).groups[0]


def _order(row: Row) -> tuple[Any, ...]:
    """By event_time, then created_time, then the values; nulls are least."""
    _, time, created, amount, city = row
    return time, created is not None, created or 0, amount is not None, amount or 0.0, city is not None, city or ""


def lab_of(place: Place, **options: Any) -> Lab:
    features = [Feature("amount", "double"), Feature("city", "string")]
    entity = Entity("customer", keys={"customer_id": "bigint"})
    group = FeatureGroup("spend", entity=entity, source=SOURCE, online=True, features=features, **options)
    register(place, entity, SOURCE, group)
    lab = Lab(place, group, random.Random(f"{SEED} {options}"))
    lab.rows = lab.made(500, ties=True)
    lab.table.replace(lab.frame(lab.rows), lab.note)
    return lab


@pytest.mark.parametrize(
    ("options", "bounds"),
    [
        ({"offline": "delta"}, {}),
        (
            {"offline": "parquet"},
            {"file_load._SHARED": 0, "file_load._A_SLICE": 3000, "file_load._ENTITIES": 7, "file_load._FEW": -1},
        ),
        ({"offline": "parquet"}, {"file_load._MOST": 0, "load_work._LARGE": 0, "load_work._LITTLE": 0}),
        ({"offline": "delta", "ttl": "4000d", "skip_nulls": True}, {}),
    ],
    ids=["delta, by the driver", "parquet, in slices", "parquet, by Spark, as if it were large", "skip_nulls"],
)
def test_what_is_online_is_what_a_plain_loop_says_after_every_step(
    online_place: Place, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], bounds: dict[str, int]
) -> None:
    for name, bound in bounds.items():
        monkeypatch.setattr(f"jobs.{name}", bound)
    lab = lab_of(online_place, **options)
    assert (lab.load().how, lab.online()) == ("full", lab.expected())
    steps: list[tuple[Callable[[], None], str]] = [
        (lab.append, "changed"), (lab.wait, "changed"), (lab.merge, "changed"), (lab.maintain, "nothing new"),
        (lab.replace_span, "changed"), (lab.nothing, "nothing new"), (lab.replace, "changed"), (lab.append, "changed"),
    ]  # fmt: skip
    for step, how in steps:
        step()
        found = lab.load()
        assert (step.__name__, found.how) == (step.__name__, how)
        assert lab.online() == lab.expected(), step.__name__
    lab.append()
    lab.merge()
    lab.wait()
    assert lab.load().how == "changed"
    assert lab.online() == lab.expected()
    assert (lab.load(full=True).why, lab.online()) == ("as asked", lab.expected())


@pytest.mark.parametrize("offline", ["delta", "parquet"])
def test_rows_alike_in_both_clocks_are_decided_by_their_values(
    online_place: Place, monkeypatch: pytest.MonkeyPatch, offline: str
) -> None:
    """What a task cannot decide goes Spark's way, in a first load and in one of what changed."""
    lab = lab_of(online_place, offline=offline)
    at, late = lab.now_us, lab.now_us + 100 * SECOND
    lab.rows += [(key, at, late, amount, "Graz") for key in (1, 2) for amount in (2.5, None, 1.5)]
    lab.table.replace(lab.frame(lab.rows), lab.note)
    asked: list[LoadCounts | None] = []
    monkeypatch.setattr(
        load_work, "load_files", lambda *args, **more: asked.append(load_files(*args, **more)) or asked[-1]
    )
    assert (lab.load().how, lab.online()) == ("full", lab.expected())
    rows: list[Row] = [(3, at, late, amount, city) for amount, city in ((0.5, "Wien"), (0.5, "Linz"))]
    lab.rows += rows
    lab.table.append(lab.frame(rows), lab.note, after=lab._version)
    assert (lab.load().how, lab.online()) == ("changed", lab.expected())
    assert asked == [None, None]


@pytest.mark.parametrize("most", [1 << 30, 0], ids=["files", "Spark"])
def test_file_that_is_gone_is_named_as_such(online_place: Place, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr("jobs.file_load._MOST", most)
    lab = lab_of(online_place, offline="parquet")
    for file in local_path(lab.table.uri).glob("data/*/*.parquet"):
        file.unlink()
    with pytest.raises(DataError, match="a file cannot be read: FAILED_READ_FILE"):
        lab.load()


def test_changed_entities_alone_are_sent(online_place: Place) -> None:
    lab = lab_of(online_place, offline="delta")
    lab.load()
    row: Row = (7, lab.now_us, lab.now_us, 3.25, "Graz")
    lab.rows.append(row)
    lab.table.append(lab.frame([row]), lab.note, after=0)
    assert (lab.load().rows, lab.online()[7]) == (1, {"event_time": lab.now_us, "amount": 3.25, "city": "Graz"})


def test_store_that_lost_its_content_or_was_set_back_is_caught_up(online_place: Place) -> None:
    lab = lab_of(online_place, offline="parquet")
    lab.load()
    address = online_address(online_place)
    with redis.Redis.from_url(address.url) as client:
        client.flushall()
        assert (lab.load().why, lab.online()) == ("first load", lab.expected())
        kept = {key: client.dump(key) for key in client.scan_iter()}
        lab.append()
        lab.load()
        client.flushall()
        for key, value in kept.items():
            client.restore(key, 0, value)
    assert (lab.load().how, lab.online()) == ("changed", lab.expected())


def test_redefined_group_takes_away_what_its_new_definition_has_not(online_place: Place) -> None:
    lab = lab_of(online_place, offline="delta")
    lab.load()
    changed = replace(lab.group, features=[Feature("amount", "double", "amount + 0"), Feature("city", "string")])
    register(online_place, lab.group.entity, SOURCE, changed)  # type: ignore[arg-type]  # the entity itself, here
    lab.rows = [row for row in lab.rows if row[0] % 2]
    lab.table.replace(lab.frame(lab.rows), lab.note)
    # the version of the last load was replaced longer ago than Delta lets one look
    properties = "'delta.deletedFileRetentionDuration' = 'interval 0 seconds'"
    online_place.spark.sql(f"ALTER TABLE delta.`{lab.table.uri}` SET TBLPROPERTIES ({properties})")
    found = lab.load()
    assert (found.why, lab.online()) == ("defined anew", lab.expected())
    assert found.removed > 0


def test_what_an_earlier_codec_packed_is_packed_anew(online_place: Place) -> None:
    """Nothing has changed in the table, and no reader of today takes a value of yesterday."""
    lab = lab_of(online_place, offline="parquet")
    lab.load()
    (receipt,) = Path(local_path(online_folder(online_place, lab.group))).glob("*.json")
    told = json.loads(receipt.read_text(encoding="utf-8"))
    assert told.pop("codec") == codec.CODEC_VERSION
    receipt.write_text(json.dumps(told), encoding="utf-8")
    with redis.Redis.from_url(online_address(online_place).url) as client:
        for key in client.scan_iter("*:customer:*"):
            for field, value in client.hgetall(key).items():
                client.hset(key, field, b"\x01" + value[1:])
    assert (lab.load().why, lab.online()) == ("packed anew", lab.expected())
    assert lab.load().how == "nothing new"


def test_newer_value_of_another_writer_outlives_a_removal(online_place: Place) -> None:
    lab = lab_of(online_place, offline="delta")
    lab.load()
    keys = sorted(lab.online())[:2]
    schema = codec.ValueSchema.of([("amount", "double"), ("city", "string")])
    name, later = codec.field_name("spend", 1), lab.now_us + SECOND
    batch = pa.RecordBatch.from_pydict(
        {
            "event_time": pa.array([later], TIME),
            "amount": pa.array([99.0]),
            "city": pa.array(["stream"]),
        }
    )
    address = online_address(online_place)
    with open_redis(address) as store:
        value = codec.encode(batch, schema, definition=online_place.applied().since["spend"])
        store.write(
            pa.array([f"{address.key_prefix}:customer:{keys[0]}".encode()]),
            value,
            field=name,
            ttl_us=None,
            now_us=later,
        )
    lab.rows = [row for row in lab.rows if row[0] not in keys]
    lab.table.replace(lab.frame(lab.rows), lab.note)
    assert lab.load().removed == 1
    assert lab.online() == {**lab.expected(), keys[0]: {"event_time": later, "amount": 99.0, "city": "stream"}}


CHILD = """
import dataclasses, os, signal, sys, time
from pathlib import Path
from connectors import watermarks
from jobs import file_load
from jobs.materialize import materialize
from jobs.place import Place, time_of
from jobs.settings import OnlineSettings
from tests.conftest import settings_in

stage, folder, now_us = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
if stage == "receipt, not yet named by the store":
    watermarks.end = lambda *args, **more: os.killpg(0, signal.SIGKILL)
online = OnlineSettings(kind="embedded", folder=str(folder / "redis"))
place = Place(dataclasses.replace(settings_in(folder), online=online))
if stage == "in the middle":
    file_load._TOGETHER = 1
materialize(place, now=time_of(now_us))
"""


@pytest.mark.parametrize("stage", ["in the middle", "receipt, not yet named by the store"])
def test_kill_of_the_driver_loses_nothing_and_the_next_load_catches_up(
    online_place: Place, tmp_path: Path, stage: str
) -> None:
    lab = lab_of(online_place, offline="delta")
    lab.load()
    lab.replace_span()
    lab.append()
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    before, named = lab.online(), last_load(lab)
    child = subprocess.Popen(
        [sys.executable, str(script), stage, str(tmp_path), str(lab.now_us)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    if stage == "in the middle":
        while child.poll() is None and lab.online() == before:
            threading.Event().wait(0.002)
        os.killpg(child.pid, signal.SIGKILL)
    assert child.wait(timeout=240) == -signal.SIGKILL
    assert last_load(lab) == named
    assert lab.load().how == "changed"
    assert lab.online() == lab.expected()
    assert lab.load().how == "nothing new"


def last_load(lab: Lab) -> str | None:
    with open_redis(online_address(lab.place)) as store:
        return watermarks.last_load(store, codec.field_name(lab.group.name, lab.group.version))
