"""materialize and `online get --check`: what was computed is what a model reads, from a real Redis."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import redis
from pyspark.sql import DataFrame

from connectors import embedded_redis
from connectors.online_answer import EXPIRED, MISSING, PRESENT
from connectors.redis_online import open_redis
from connectors.watermarks import loaded_fields
from feature_defs import Entity, Feature, FeatureGroup, Service, Source
from feature_defs.data_types import ARRAY_ELEMENTS, FEATURE_TYPES, KEY_TYPES
from feature_defs.errors import DataError, OnlineStoreError, UsageError
from jobs.command_line import main
from jobs.compute import compute
from jobs.materialize import LoadedGroup, dry_run, materialize
from jobs.online import online_get
from jobs.online_address import online_address
from jobs.place import Place
from jobs.report import as_json
from jobs.settings import OnlineSettings
from jobs.verify import verify
from tests.conftest import settings_in
from tests.lab import Table, files_in, put, register

HOUR, DAY = datetime.timedelta(hours=1), datetime.timedelta(days=1)
MICROSECOND = datetime.timedelta(microseconds=1)
NOW = datetime.datetime.now(datetime.timezone.utc).replace(minute=0, second=0, microsecond=0)
customer = Entity("customer", keys={"customer_id": "string"})
source = Source("rows", path="lake://raw/rows", format="parquet", event_time="event_time")


def a_group(**options: Any) -> FeatureGroup:
    features = [Feature("amount", "bigint")]
    kept = {"entity": customer, "source": source, "features": features, "online": True, "offline": "parquet", **options}
    return FeatureGroup("spend", **kept)


def at(time: datetime.datetime) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S.%f")


def loaded(place: Place, rows: DataFrame, group: FeatureGroup, now: datetime.datetime = NOW) -> LoadedGroup:
    """The group computed from these rows and loaded."""
    put(place, rows, "lake://raw/rows")
    register(place, group.entity, source, group)  # type: ignore[arg-type]  # the entity itself, here
    compute(place, now=now)
    return materialize(place, now=now).groups[0]


def got(place: Place, customer_id: str, now: datetime.datetime = NOW) -> tuple[str, Any]:
    """(status, amount) of a customer, agreed with the offline table."""
    report = online_get(place, {"customer_id": customer_id}, group="spend", check=True, now=now)
    assert report.agrees, report.text()
    assert report.exit_code == 0
    return report.groups[0].status, report.groups[0].values["amount"]


# every type


VALUES: dict[str, list[str]] = {
    "boolean": ["true", "false"],
    "int": ["7", "-2147483648"],
    "bigint": ["7", "9223372036854775807"],
    "float": ["1.5", "'NaN'"],
    "double": ["0.1", "'-Infinity'"],
    "date": ["'2026-01-31'", "'1912-06-23'"],
    "timestamp": ["'2026-01-31 12:00:00.000001Z'", "'1912-06-23 00:00:00.999999Z'"],
    "decimal(38,18)": ["1.5", "-99999999999999999999.999999999999999999"],
    "string": ["'Zoë 🙂'", "''"],
    "binary": ["X'00FF0A'", "X''"],
}
ARRAYS = {f"array<{kind}>": [f"array({', '.join(VALUES[kind])}, null)", "array()"] for kind in ARRAY_ELEMENTS}
MAPS = {
    f"map<string,{kind}>": [f"map('Zoë 🙂', {VALUES[kind][0]}, 'b', {VALUES[kind][1]}, '', null)", "map()"]
    for kind in ARRAY_ELEMENTS
}


def test_every_type_of_feature_reads_back_as_it_was_computed(online_place: Place) -> None:
    every = {**VALUES, **ARRAYS, **MAPS}
    assert {kind.partition("(")[0].partition("<")[0] for kind in every} == set(FEATURE_TYPES)
    names = {kind: f"f{number}" for number, kind in enumerate(every)}
    rows = [
        ", ".join(f"CAST({values[row]} AS {kind}) AS {names[kind]}" for kind, values in every.items()) for row in (0, 1)
    ]
    rows.append(", ".join(f"CAST(null AS {kind}) AS {names[kind]}" for kind in every))
    time = f"TIMESTAMP'{at(NOW)}Z' AS event_time"
    selects = (f"SELECT 'c{number}' AS customer_id, {time}, {row}" for number, row in enumerate(rows))
    group = a_group(features=[Feature(names[kind], kind) for kind in every])
    found = loaded(online_place, online_place.spark.sql(" UNION ALL ".join(selects)), group)
    assert (found.rows, found.written, found.kept_newer, found.expired) == (3, 3, 0, 0)
    for number in range(3):
        report = online_get(online_place, {"customer_id": f"c{number}"}, group="spend", check=True)
        assert report.agrees, report.text()
        assert "online and offline agree" in report.text()
        assert json.loads(as_json("online", report))["groups"][0]["status"] == PRESENT
        values = report.groups[0].values.values()
        assert all(value is None for value in values) == (number == 2)
        assert any(value is None for value in values) == (number == 2)


def test_key_of_several_columns_of_every_type(online_place: Place) -> None:
    kinds = ["decimal(12,2)" if kind == "decimal" else kind for kind in KEY_TYPES]
    keys = {f"k{number}": kind for number, kind in enumerate(kinds)}
    noon = "2026-01-31T12:00:00.000001Z"
    shown = {
        "string": ("a|b\\", "'a|b\\\\'"), "bigint": ("-5", "-5"), "int": ("23", "23"), "boolean": ("true", "true"),
        "date": ("2026-01-31", "'2026-01-31'"), "timestamp": (noon, f"'{noon}'"),
        "decimal(12,2)": ("1.50", "1.5"), "binary": ("00ff", "X'00FF'"),
    }  # fmt: skip
    cells = ", ".join(f"CAST({shown[kind][1]} AS {kind}) AS {name}" for name, kind in keys.items())
    rows = online_place.spark.sql(f"SELECT {cells}, TIMESTAMP'{at(NOW)}Z' AS event_time, 5L AS amount")
    pair = Entity("pair", keys=keys)
    loaded(online_place, rows, dataclasses.replace(a_group(), entity=pair))
    given = {name: shown[kind][0] for name, kind in keys.items()}
    report = online_get(online_place, given, group="spend", check=True)
    assert (report.groups[0].status, report.groups[0].values, report.agrees) == (PRESENT, {"amount": 5}, True)
    # a load of what changed names its entities by way of the driver
    offline = online_place.table(online_place.applied().definitions.groups["spend"])
    newer = offline.read().selectExpr(*keys, "event_time + INTERVAL '1' SECOND", "created_time", "amount + 1L")
    offline.append(newer.toDF(*offline.read().columns), offline.note(1), after=1)
    assert materialize(online_place, now=NOW + HOUR).groups[0].how == "changed"
    assert online_get(online_place, given, group="spend").groups[0].values == {"amount": 6}
    other = online_get(online_place, {**given, "k2": "24"}, group="spend", check=True)
    assert (other.groups[0].status, other.agrees) == (MISSING, True)
    for wrong, problem in [({"k2": "x"}, "the value given is no int"), ({"k9": "1"}, "'k9' is not a key")]:
        with pytest.raises(UsageError, match=problem):
            online_get(online_place, {**given, **wrong}, group="spend")


# which value is online


def test_newest_value_is_online_and_a_missing_entity_is_an_answer(online_place: Place, table: Table) -> None:
    rows = table(
        f"""
        customer_id | event_time           | amount
        c1          | {at(NOW - 3 * HOUR)} | 1
        c1          | {at(NOW - HOUR)}     | 2
        c1          | {at(NOW + HOUR)}     | 3
        c2          | {at(NOW - HOUR)}     | null
        c3          | {at(NOW + HOUR)}     | 4
        """,
        "amount bigint",
    )
    found = loaded(online_place, rows, a_group())
    assert (found.rows, found.written) == (2, 2)
    assert [got(online_place, name) for name in ("c1", "c2", "c3", "c4")] == [
        (PRESENT, 2), (PRESENT, None), (MISSING, None), (MISSING, None),
    ]  # fmt: skip


def test_loading_again_is_harmless_and_older_never_replaces_newer(online_place: Place, table: Table) -> None:
    rows = table(
        f"customer_id | event_time | amount\nc1 | {at(NOW - 3 * HOUR)} | 1\nc1 | {at(NOW - HOUR)} | 2", "amount bigint"
    )
    found = loaded(online_place, rows, a_group())
    assert (found.how, found.why) == ("full", "first load")
    nothing = materialize(online_place, now=NOW).groups[0]
    assert (nothing.how, nothing.rows) == ("nothing new", 0)
    again = materialize(online_place, now=NOW, full=True).groups[0]
    assert (again.written, again.kept_newer, again.bytes) == (1, 0, found.bytes)
    older = materialize(online_place, now=NOW - 2 * HOUR).groups[0]
    assert (older.rows, older.written, older.kept_newer) == (0, 0, 0)
    assert got(online_place, "c1") == (PRESENT, 2)


def test_forecast_writes_nothing_and_a_load_keeps_to_its_rate(online_place: Place, table: Table) -> None:
    lines = "\n".join(f"c{number} | {at(NOW)} | {number}" for number in range(40))
    rows = table(f"customer_id | event_time | amount\n{lines}", "amount bigint")
    put(online_place, rows, "lake://raw/rows")
    register(online_place, customer, source, a_group())
    compute(online_place, now=NOW)
    before = dry_run(online_place, now=NOW)
    assert (before.entities, before.new_keys, before.load_seconds) == (40, 40, None)
    assert got_online(online_place) == 0
    found = materialize(online_place, now=NOW, rate=20).groups[0]
    assert found.written == 40
    assert found.seconds >= 1.8  # the first tenth of a second is free
    after = dry_run(online_place, now=NOW)
    assert (after.new_keys, after.groups[0].present) == (0, 40)
    assert after.load_seconds is not None
    with pytest.raises(UsageError, match="Option --rate: 0 is not above 0"):
        materialize(online_place, rate=0)


def got_online(place: Place) -> int:
    with redis.Redis.from_url(online_address(place).url) as client:
        return int(client.dbsize())


def test_value_past_its_ttl_is_not_loaded_and_not_served(online_place: Place, table: Table) -> None:
    rows = table(
        f"customer_id | event_time | amount\nc1 | {at(NOW - HOUR)} | 1\nc2 | {at(NOW - 25 * HOUR)} | 2", "amount bigint"
    )
    found = loaded(online_place, rows, a_group(ttl="1d"))
    assert (found.rows, found.written, found.expired) == (2, 1, 1)
    last = NOW - HOUR + DAY
    assert [got(online_place, "c1", when) for when in (NOW, last, last + MICROSECOND)] == [
        (PRESENT, 1), (PRESENT, 1), (EXPIRED, None),
    ]  # fmt: skip
    assert got(online_place, "c2") == (MISSING, None)


def test_value_past_its_ttl_takes_away_what_an_older_definition_left(online_place: Place) -> None:
    """Under the old definition the entity had a row within its ttl, under the new one it has none."""
    rows = [("c1", NOW - DAY, 100, "test"), ("c1", NOW - 60 * DAY, 5, "real"), ("c2", NOW - 60 * DAY, 5, "real")]
    frame = online_place.spark.createDataFrame(
        rows, "customer_id string, event_time timestamp, amount bigint, kind string"
    )
    loaded(online_place, frame, a_group(ttl="30d"))
    assert got(online_place, "c1") == (PRESENT, 100)
    real = dataclasses.replace(source, filter="kind <> 'test'")
    register(online_place, customer, real, a_group(ttl="30d", source=real))
    compute(online_place, now=NOW)
    report = materialize(online_place, now=NOW).groups[0]
    assert (report.why, report.removed, report.expired) == ("defined anew", 1, 1)
    assert got(online_place, "c1") == (MISSING, None)


def test_late_row_past_its_ttl_fails_no_load_where_an_older_value_is_still_there(online_place: Place) -> None:
    """Its key lives on for another group. What was not sent is not looked for."""
    kinds, spend = "customer_id string, event_time timestamp, amount bigint", a_group(ttl="1h")
    forever = dataclasses.replace(a_group(), name="forever")
    for late in ([], [("c1", NOW + HOUR / 2, 2)]):
        put(online_place, online_place.spark.createDataFrame([("c1", NOW, 1), *late], kinds), "lake://raw/rows")
        register(online_place, customer, source, spend, forever)
        now = NOW + 3 * HOUR if late else NOW
        compute(online_place, now=now)
        report = materialize(online_place, ["spend"] if late else [], now=now)
    assert (report.groups[0].how, report.groups[0].expired) == ("changed", 1)
    assert materialize(online_place, ["spend"], now=now, full=True).groups[0].expired == 1


def test_group_of_an_entity_that_is_renamed_is_loaded_under_its_new_keys(online_place: Place) -> None:
    frame = online_place.spark.createDataFrame(
        [("c1", NOW, 7)], "customer_id string, event_time timestamp, amount bigint"
    )
    loaded(online_place, frame, a_group())
    client = Entity("client", keys=customer.keys)
    register(online_place, client, source, a_group(entity=client))
    assert materialize(online_place, now=NOW).groups[0].why == "defined anew"
    assert got(online_place, "c1") == (PRESENT, 7)


def test_group_that_skips_nulls_serves_what_a_training_set_holds(online_place: Place, table: Table) -> None:
    rows = table(
        f"""
        customer_id | event_time            | amount | city
        c1          | {at(NOW - 30 * HOUR)} | 1      | Graz
        c1          | {at(NOW - 3 * HOUR)}  | 2      | null
        c1          | {at(NOW - HOUR)}      | null   | null
        """,
        "amount bigint",
    )
    group = a_group(ttl="1d", skip_nulls=True, features=[Feature("amount", "bigint"), Feature("city", "string")])
    loaded(online_place, rows, group)
    report = online_get(online_place, {"customer_id": "c1"}, group="spend", check=True, now=NOW)
    assert (report.groups[0].values, report.agrees) == ({"amount": 2, "city": None}, True)


def test_check_fails_when_online_and_offline_differ(online_place: Place, table: Table) -> None:
    rows = table(f"customer_id | event_time | amount\nc1 | {at(NOW - HOUR)} | 1", "amount bigint")
    loaded(online_place, rows, a_group())
    put(online_place, rows.selectExpr("customer_id", "event_time", "amount + 1 AS amount"), "lake://raw/rows")
    compute(online_place, now=NOW)
    report = online_get(online_place, {"customer_id": "c1"}, group="spend", check=True, now=NOW)
    assert (report.agrees, report.exit_code) == (False, 7)
    assert "online and offline DIFFER" in report.text()


# what is refused


def test_groups_that_are_not_online_or_not_computed_are_refused(online_place: Place, table: Table) -> None:
    put(
        online_place,
        table(f"customer_id | event_time | amount\nc1 | {at(NOW)} | 1", "amount bigint"),
        "lake://raw/rows",
    )
    quiet = dataclasses.replace(a_group(online=False), name="quiet")
    register(online_place, customer, source, a_group(), quiet, Service("both", ["spend", "quiet"]))
    with pytest.raises(
        DataError, match=r"'spend': has no offline table yet \(version 1\)\nHint: run `tidemark compute --group spend"
    ):
        materialize(online_place)
    compute(online_place)
    assert [group.group for group in materialize(online_place).groups] == ["spend"]
    with pytest.raises(UsageError, match="'quiet': is not online"):
        materialize(online_place, ["quiet"])
    for asked in ({"group": "quiet"}, {"service": "both"}):
        with pytest.raises(UsageError, match="'quiet': is not online"):
            online_get(online_place, {"customer_id": "c1"}, **asked)
    with pytest.raises(UsageError, match="has no online store"):
        materialize(Place(dataclasses.replace(online_place.settings, online=OnlineSettings(kind="none"))))


@pytest.mark.parametrize("rate", [None, 1000])  # the driver sends, or tasks do
@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ("CAST(X'FF' AS string)", "column 'f' holds text that is not UTF-8\nHint: decode it"),
        ("date_add(DATE'9999-12-31', 1)", "column 'f' holds a date outside the years 1 to 9999\nHint: make it null"),
    ],
)
def test_value_that_no_reader_could_read_fails_the_load(
    online_place: Place, wrong: str, problem: str, rate: int | None
) -> None:
    """It would make its entity's whole row unreadable; no receipt says that the table is loaded."""
    kind = "date" if "DATE" in wrong else "string"
    put(
        online_place,
        online_place.spark.sql(f"SELECT 'c1' AS customer_id, TIMESTAMP'{at(NOW)}Z' AS event_time, {wrong} AS f"),
        "lake://raw/rows",
    )
    group = a_group(features=[Feature("f", kind)])
    register(online_place, customer, source, group)
    compute(online_place, now=NOW)
    with pytest.raises(DataError, match=f"^FeatureGroup 'spend': {problem}"):
        materialize(online_place, now=NOW, rate=rate)
    with pytest.raises(DataError, match=f"^FeatureGroup 'spend': {problem}"):
        verify(online_place, now=NOW)
    with open_redis(online_address(online_place)) as store:
        assert not loaded_fields(store)
    assert not [file for file in files_in(online_place, "features") if "_online/" in file]


def test_redis_that_is_down_is_told_with_exit_code_7(
    place: Place, table: Table, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(place, table(f"customer_id | event_time | amount\nc1 | {at(NOW)} | 1", "amount bigint"), "lake://raw/rows")
    register(place, customer, source, a_group())
    compute(place)
    settings = settings_in(tmp_path)
    lakes = "\n".join(f'{name} = "{base}"' for name, base in settings.lakes.items())
    profile = tmp_path / "down.toml"
    online = f'[online]\nkind = "redis"\nurl = "unix://{tmp_path}/nobody.sock"\n'
    profile.write_text(f'name = "down"\ndefinitions = "definitions"\n[lakes]\n{lakes}\n{online}')
    for command in (["materialize"], ["online", "get", "--group", "spend", "--entity", "customer_id=c1"]):
        assert main([*command, "--profile", str(profile)]) == 7
        told = capsys.readouterr()
        assert told.out == ""
        assert "the connection is refused\nHint: start the server" in told.err
        assert "Traceback" not in told.err


def test_redis_that_dies_during_a_load_is_told_and_the_next_load_repairs_it(
    online_place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(online_place.settings.online.folder)
    address = embedded_redis.start(folder)
    count = 20_000
    rows = online_place.spark.range(count).selectExpr(
        "concat('c', id) AS customer_id", f"TIMESTAMP'{at(NOW)}Z' AS event_time", "id AS amount"
    )
    put(online_place, rows, "lake://raw/rows")
    register(online_place, customer, source, a_group())
    compute(online_place)
    conf = online_place.spark.conf

    def kill_when_the_load_has_begun() -> None:
        with redis.Redis.from_url(address.url) as client:
            process = client.info("server")["process_id"]
            while not client.dbsize():
                pass
        os.kill(process, signal.SIGKILL)

    conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", "1")  # slow enough to be in the middle of
    killer = threading.Thread(target=kill_when_the_load_has_begun)
    killer.start()
    try:
        with pytest.raises(OnlineStoreError) as caught:
            materialize(online_place)
    finally:
        conf.unset("spark.sql.execution.arrow.maxRecordsPerBatch")
        killer.join()
    assert caught.value.exit_code == 7
    assert caught.value.subject.startswith("Redis unix://")
    assert "\n" not in caught.value.problem + caught.value.hint
    assert materialize(online_place).groups[0].written == count
    assert got(online_place, f"c{count - 1}") == (PRESENT, count - 1)


def test_table_of_other_definitions_is_neither_loaded_nor_compared(online_place: Place, table: Table) -> None:
    """Online values of definitions that are no longer in force would disagree with every new training set."""
    rows = table("customer_id | event_time | amount\nc1 | 2026-01-03 | 1", "event_time timestamp, amount bigint")
    loaded(online_place, rows, a_group())
    changed = a_group(features=[Feature("amount", "bigint", "amount * 100")])
    register(online_place, customer, source, changed)
    for attempt in (
        lambda: materialize(online_place, now=NOW),
        lambda: online_get(online_place, {"customer_id": "c1"}, group="spend", check=True),
    ):
        with pytest.raises(DataError, match="its table was computed with definitions"):
            attempt()


def test_redefined_group_replaces_newer_values_of_its_old_definition(online_place: Place, table: Table) -> None:
    """The new definition's newest row is the older one here; what is served must still be what is stored offline."""
    rows = table(
        f"""
        customer_id | event_time      | amount | kept
        c1          | {at(NOW - DAY)} | 1      | true
        c1          | {at(NOW)}       | 2      | false
        """,
        "event_time timestamp, amount bigint, kept boolean",
    )
    loaded(online_place, rows, a_group())
    assert got(online_place, "c1") == (PRESENT, 2)
    register(online_place, customer, dataclasses.replace(source, filter="kept"), a_group())
    compute(online_place, now=NOW)
    assert materialize(online_place, now=NOW).groups[0].written == 1
    assert got(online_place, "c1") == (PRESENT, 1)


def test_embedded_redis_takes_the_profiles_prefix(online_place: Place) -> None:
    """Two profiles with one Redis must not write one another's keys."""
    online = dataclasses.replace(online_place.settings.online, key_prefix="other", timeout_seconds=3.0)
    address = online_address(Place(dataclasses.replace(online_place.settings, online=online)))
    assert (address.key_prefix, address.timeout_seconds) == ("other", 3.0)
