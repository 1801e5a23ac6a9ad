"""Sources in a database, a real SQLite through its real JDBC driver: types, times, parts, and what goes wrong."""

from __future__ import annotations

import dataclasses
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import DataFrame

from connectors.sources import UNREADABLE, source_state
from feature_defs import Aggregate, Entity, Feature, FeatureGroup, Source
from feature_defs.errors import DataError, LakeError, MissingPartError, TidemarkError, UsageError
from jobs.compute import compute
from jobs.inputs import source_rows
from jobs.place import Place
from jobs.settings import DatabaseSettings, ParallelSettings
from tests.drivers import SQLITE, sqlite_jar
from tests.lab import NOW, Table, register
from tests.pipe_tables import assert_rows

customer = Entity("customer", keys={"customer_id": "string"})
SCHEMA = {
    "order_id": "bigint", "customer_id": "string", "amount": "double", "price": "decimal(10,2)", "items": "int",
    "is_gift": "boolean", "shipped_on": "date", "ordered_at": "timestamp",
}  # fmt: skip
orders = Source("orders", path="jdbc://shop/orders", format="jdbc", event_time="ordered_at", schema=SCHEMA)
TABLE = """CREATE TABLE orders (
    order_id BIGINT, customer_id VARCHAR(20), amount DOUBLE, price DECIMAL(10,2), ITEMS INTEGER, is_gift BOOLEAN,
    shipped_on DATE, ordered_at TIMESTAMP, note TEXT)"""
ROWS = [
    (2**53 + 1, "c1", 10.5, 3.25, 2, 1, "2026-01-02", "2026-01-01 12:00:00.123456", "a"),
    (2, "c1", 1.5, 3.2, 3, 0, None, "2026-03-29 02:30:00", "no such hour in Vienna"),
    (3, "c2", None, None, None, None, None, "2026-01-03", "midnight"),
    (4, "c2", 2.0, 1, 1, 0, "2026-01-02 10:00:00", "2026-01-03T01:00:00+01:00", "a zone of its own"),
]


@pytest.fixture
def shop(place: Place, tmp_path: Path) -> Place:
    """A place with the database `shop`, which holds the orders."""
    if not sqlite_jar().is_file():
        pytest.fail("the SQLite driver is not in the cache; connect this machine to Maven Central once")
    fill(tmp_path / "shop.db", TABLE, ROWS)
    return with_database(place, url=f"jdbc:sqlite:{tmp_path}/shop.db", jars=SQLITE)


def fill(file: Path, table: str, rows: list[tuple[Any, ...]]) -> None:
    with sqlite3.connect(file) as database:
        database.execute(table)
        name = table.split()[2]
        database.executemany(f"INSERT INTO {name} VALUES ({', '.join('?' * len(rows[0]))})", rows)
    database.close()


def with_database(place: Place, **settings: Any) -> Place:
    return Place(dataclasses.replace(place.settings, databases={"shop": DatabaseSettings(**settings)}))


def changed(place: Place, **settings: Any) -> Place:
    found = dataclasses.replace(place.settings.databases["shop"], **settings)
    return Place(dataclasses.replace(place.settings, databases={"shop": found}))


def read(place: Place, source: Source = orders) -> DataFrame:
    register(place, source)
    return source_rows(place, place.applied(), source).rows


def refused(kind: type[TidemarkError], place: Place, source: Source = orders) -> TidemarkError:
    with pytest.raises(kind) as raised:
        read(place, source)
    assert "sekret" not in str(raised.value)
    assert "\tat " not in str(raised.value)
    return raised.value


def test_rows_have_the_declared_types_and_every_time_is_utc(shop: Place, table: Table) -> None:
    register(shop, orders)
    found = source_rows(shop, shop.applied(), orders)
    assert found.extra_columns == ("note",)
    expected = table(
        """
        order_id         | customer_id | amount | price | items | is_gift | shipped_on | ordered_at
        9007199254740993 | c1          | 10.5   | 3.25  | 2     | true    | 2026-01-02 | 2026-01-01 12:00:00.123456
        2                | c1          | 1.5    | 3.2   | 3     | false   | null       | 2026-03-29 02:30:00
        3                | c2          | null   | null  | null  | null    | null       | 2026-01-03
        4                | c2          | 2.0    | 1     | 1     | false   | 2026-01-02 | 2026-01-03 00:00:00
        """,
        ", ".join(f"{name} {kind}" for name, kind in SCHEMA.items()),
    )
    assert_rows(found.rows.drop(UNREADABLE), expected)
    assert found.rows.where(f"{UNREADABLE} is not null").isEmpty()


def test_compute_reads_a_database_and_quarantines_what_is_no_time_and_no_int(shop: Place, tmp_path: Path) -> None:
    bad = [
        (5, "c3", 1.0, 1, 1, 0, None, "yesterday", "no time"),
        (6, "c3", 1.0, 1, 1, 0, None, "12:30:00", "no day"),
        (7, "c3", 1.0, 1, 2**40, 0, None, "2026-01-01 00:00:00", "too many items"),
        (8, "c3", 1.0, 1, 1, 0, "soon", "2026-01-01 00:00:00", "no date"),
        (9, None, 1.0, 1, 1, 0, None, "2026-01-01 00:00:00", "no key"),
        (10, "c3", 1.0, 1, 1, 0, None, None, "never"),
    ]
    with sqlite3.connect(tmp_path / "shop.db") as database:
        database.executemany("INSERT INTO orders VALUES (?,?,?,?,?,?,?,?,?)", bad)
    database.close()
    spend = FeatureGroup(
        "spend", entity=customer, source=orders,
        features=[Feature("items", "bigint", Aggregate("sum", "items")), Feature("n", "bigint", Aggregate("count"))],
    )  # fmt: skip
    register(shop, customer, orders, spend)
    told = compute(shop, now=NOW).groups[0]
    assert (told.rows, told.rejected, told.extra_columns) == (3, 6, ("note",))
    reasons = shop.quarantine(spend).read().groupBy("reason").count().collect()
    assert {row["reason"]: row["count"] for row in reasons} == {
        "row does not fit the schema": 4,
        "key customer_id is null": 1,
        "event_time is null": 1,
    }


def test_a_table_read_in_parts_has_all_its_rows_once(shop: Place) -> None:
    parts = ParallelSettings(column="order_id", lower=1, upper=4, partitions=3)
    apart = changed(shop, parallel={"orders": parts}, fetch_size=2)
    found = read(apart)
    assert sorted(row.order_id for row in found.select("order_id").collect()) == [2, 3, 4, 2**53 + 1]
    assert found.selectExpr("spark_partition_id() as part").distinct().count() > 1
    error = refused(UsageError, changed(shop, parallel={"orders": dataclasses.replace(parts, column="order")}))
    assert error.problem == "parallel.orders.column 'order' is not a column, expected a whole number"
    assert "did you mean" in error.hint
    error = refused(UsageError, changed(shop, parallel={"orders": dataclasses.replace(parts, column="ordered_at")}))
    assert "'ordered_at' is timestamp_ntz, expected a whole number" in error.problem


def test_without_a_schema_the_types_are_the_databases(shop: Place) -> None:
    found = read(shop, dataclasses.replace(orders, schema=None))
    types = dict(found.drop(UNREADABLE).dtypes)
    assert (types["ITEMS"], types["ordered_at"], types["note"]) == ("bigint", "timestamp", "string")


@pytest.mark.parametrize(
    ("source", "problem", "hint"),
    [
        ({"schema": {**SCHEMA, "customer_id": "bigint"}}, "column 'customer_id' is string, declared bigint", "correct"),
        ({"schema": {**SCHEMA, "amont": "double"}}, "column 'amont' is missing (did you mean 'amount'?", "correct"),
        ({"path": "jdbc://shop/ordrs"}, "table 'ordrs' of database 'shop' cannot be read: ", "check the table's name"),
        ({"path": "jdbc://shop/empty"}, "holds no rows: table 'empty' of database 'shop'", "nothing was changed"),
    ],
)
def test_a_table_that_is_not_what_was_declared_stops_clearly(
    shop: Place, tmp_path: Path, source: dict[str, Any], problem: str, hint: str
) -> None:
    with sqlite3.connect(tmp_path / "shop.db") as database:
        database.execute(TABLE.replace("orders", "empty"))
    database.close()
    error = refused(DataError, shop, dataclasses.replace(orders, **source))
    assert error.subject == "Source 'orders'"
    assert problem in error.problem
    assert hint in error.hint


def test_a_database_that_the_profile_does_not_name_is_answered_by_those_it_does(shop: Place) -> None:
    error = refused(UsageError, shop, dataclasses.replace(orders, path="jdbc://shpo/orders"))
    assert error.problem == "database 'shpo' is not in the profile (shop)"
    assert error.hint == "did you mean 'shop'? add it: [databases.shpo] url = \"jdbc:...\""


def test_a_database_that_is_down_is_said_without_its_url(shop: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_PASSWORD", "sekret")
    away = changed(shop, url="jdbc:sqlite:/nowhere/at/all.db", user="reader", password="env:SHOP_PASSWORD")
    error = refused(LakeError, away)
    assert (error.subject, error.problem) == ("Database 'shop'", "does not answer, or refuses reader")
    assert "sekret" not in repr(away.settings)


def test_a_driver_that_is_not_there_is_named_with_what_to_set(shop: Place) -> None:
    error = refused(MissingPartError, changed(shop, url="jdbc:postgresql://localhost:1/shop"))
    assert error.problem == "its driver org.postgresql.Driver is not on Spark's classpath"
    assert "[databases.shop] jars =" in error.hint
    error = refused(UsageError, changed(shop, url="jdbc:postgres://localhost:1/shop"))
    assert "the driver of 'jdbc:postgres:' is not known" in error.problem
    assert error.hint == "did you mean 'postgresql'? name its class: [databases.shop] driver = \"...\""
    error = refused(MissingPartError, changed(shop, driver="org.example.Driver"))
    assert "org.example.Driver" in error.problem


def test_nothing_is_claimed_of_what_a_database_holds(shop: Place) -> None:
    assert source_state(orders, shop.lakes) == {"kind": "unknown"}
