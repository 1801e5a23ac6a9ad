"""Offline tables of a catalog, by name: each promise of a table, whole ways through the verbs, and what is refused.

The catalog is Spark's own with Delta's (`spark_catalog.SCHEMA.table`). Its folder is in no lake of the profile, and a
file store that is asked for anything in it fails the test: of a managed table nobody may read the path.
"""

from __future__ import annotations

import dataclasses
import datetime
import shutil
import threading
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from pyspark.sql import DataFrame

from connectors.delta_addresses import CatalogTable
from connectors.delta_log import delta_version
from connectors.file_store import LocalFileStore
from connectors.offline_tables import MAINTAINED, WENT, DeltaOfflineTable, Span, catalog_table, delta_table
from connectors.readable import what_is_gone
from connectors.table_maintenance import Upkeep, maintain_table, past_maintenance
from connectors.table_stats import table_bytes
from feature_defs import Aggregate, Entity, Expectation, Feature, FeatureGroup, Service, Source
from feature_defs.errors import LakeError, UsageError
from jobs.compare import compare
from jobs.compute import compute
from jobs.explain import explain
from jobs.maintain import maintain
from jobs.materialize import materialize
from jobs.online import online_get
from jobs.place import Place
from jobs.rebuild import rebuild
from jobs.replicate import replicate
from jobs.settings import load_settings
from jobs.training_set import training_set
from jobs.why import why
from tests.conftest import settings_in
from tests.lab import NOW, Table, in_catalog, put, register
from tests.test_maintain import age

customer = Entity("customer", keys={"customer_id": "string"})
sales = Source("sales", path="lake://raw/sales", format="parquet", event_time="at", created_time="seen")
spend = FeatureGroup(
    "spend",
    entity=customer,
    source=sales,
    features=[Feature("amount", "double")],
    expectations=[Expectation("positive", "amount > 0", severity="quarantine")],
    online=True,
)
totals = FeatureGroup(
    "totals",
    entity=customer,
    source=sales,
    features=[
        Feature("n", "bigint", Aggregate("count")),
        Feature("sum_3d", "double", Aggregate("sum", "amount", window="3d")),
    ],
    every="1d",
    online=True,
)
latest = FeatureGroup(
    "latest", entity=customer, source=sales, features=[Feature("last", "double", "amount")], offline="parquet"
)
churn = Service("churn", [spend, totals, latest])
WORDS = (customer, sales, spend, totals, latest, churn)
TYPES = "amount double, at timestamp, seen timestamp"
FIRST = """
customer_id | amount | at                  | seen
c1          | 10     | 2026-01-01 08:00:00 | 2026-01-01 09:00:00
c1          | 30     | 2026-01-03 08:00:00 | 2026-01-03 09:00:00
c2          | -5     | 2026-01-02 08:00:00 | 2026-01-02 09:00:00
c3          | 4      | 2026-01-02 09:00:00 | 2026-01-02 09:00:00
"""
SECOND = """
customer_id | amount | at                  | seen
c1          | 0.5    | 2026-01-05 08:00:00 | 2026-01-05 09:00:00
c2          | 0.25   | 2026-01-01 12:00:00 | 2026-01-05 09:00:00
c1          | 31     | 2026-01-03 08:00:00 | 2026-01-05 09:00:00
"""
SPINE = """
customer_id | event_time
c1          | 2026-01-04
c2          | 2026-01-06
c3          | 2026-01-06
"""
KEYED = "customer_id string, event_time timestamp, created_time timestamp, amount double"


@pytest.fixture(autouse=True)
def nobody_reads_the_catalogs_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("list_files", "list_drafts", "read", "open", "create", "upload", "rename", "delete"):
        real = getattr(LocalFileStore, name)

        def asked(store: LocalFileStore, uri: str, *more: Any, real: Any = real) -> Any:
            assert "/managed" not in uri, f"a file store was asked for {uri}"
            return real(store, uri, *more)

        monkeypatch.setattr(LocalFileStore, name, asked)


@pytest.fixture
def named(place: Place) -> Place:
    return in_catalog(place)


@pytest.fixture
def kept(named: Place) -> DeltaOfflineTable:
    """A table that is not there yet."""
    return catalog_table(named.spark, f"{named.settings.offline}.kept_v1", beside=named.lakes.uri("lake://features/k"))


def keyed(kept: DeltaOfflineTable, *rows: tuple[str, str, float]) -> DataFrame:
    def time(text: str) -> datetime.datetime:
        return datetime.datetime.fromisoformat(text).replace(tzinfo=datetime.timezone.utc)

    return kept.spark.createDataFrame([(key, time(at), None, float(amount)) for key, at, amount in rows], KEYED)


def amounts(rows: DataFrame) -> list[tuple[str, str, float]]:
    return sorted((row["customer_id"], f"{row['event_time']:%m-%d}", row["amount"]) for row in rows.collect())


def test_each_kind_of_write_is_one_version_with_its_note(kept: DeltaOfflineTable) -> None:
    """And a change of rows that another run has changed meanwhile is refused, a repeated one too."""
    assert (kept.version(), kept.versions()) == (None, [])
    first = kept.replace(keyed(kept, ("a", "2026-01-01", 1), ("b", "2026-01-02", 2)), {"run": "one"})
    second = kept.append(keyed(kept, ("c", "2026-01-03", 3)), {"run": "two"}, after=first)
    correction = keyed(kept, ("a", "2026-01-01", 10), ("d", "2026-01-04", 4))
    third = kept.merge(correction, {"run": "three"}, on=["customer_id", "event_time"], after=second)
    day = Span(1767312000_000000 - 1, 1767312000_000000)  # 2 January
    fourth = kept.replace_span(keyed(kept, ("b", "2026-01-02", 20)), {"run": "four"}, span=day, after=third)
    assert kept.versions() == [first, second, third, fourth] == list(range(first, first + 4))
    assert [kept.note(version)["run"] for version in kept.versions()] == ["one", "two", "three", "four"]
    expected = [("a", "01-01", 10.0), ("b", "01-02", 20.0), ("c", "01-03", 3.0), ("d", "01-04", 4.0)]
    assert amounts(kept.read()) == expected
    assert amounts(kept.read(first)) == [("a", "01-01", 1.0), ("b", "01-02", 2.0)]
    changes = kept.changes(second, third)
    assert changes is not None
    assert {(row["customer_id"], row["amount"], row[WENT]) for row in changes.collect()} == {
        ("a", 1.0, True), ("a", 10.0, False), ("d", 4.0, False),
    }  # fmt: skip
    late = keyed(kept, ("z", "2026-01-02", 0))
    for write in (
        lambda: kept.append(late, {"run": "late"}, after=third),
        lambda: kept.merge(late, {"run": "late"}, on=["customer_id"], after=third),
        lambda: kept.replace_span(late, {"run": "late"}, span=day, after=third),
    ):
        with pytest.raises(LakeError, match="another run wrote a version meanwhile"):
            write()
    assert (kept.version(), amounts(kept.read())) == (fourth, expected)
    assert what_is_gone(kept.spark, kept, first) == ""
    assert what_is_gone(kept.spark, kept, fourth + 5) == "is gone"
    assert table_bytes(kept, fourth) > 0
    with pytest.raises(LakeError, match=f"has no version {fourth + 5}"):
        kept.read(fourth + 5)


def test_merge_without_settings_of_the_session_gives_the_same_rows(kept: DeltaOfflineTable) -> None:
    """As on serverless compute, which lets nobody set what gives a MERGE its note."""
    first = kept.replace(
        keyed(kept, ("a", "2026-01-01", 1), ("b", "2026-01-02", 2), ("c", "2026-01-09", 9)), {"run": "one"}
    )
    correction = keyed(kept, ("a", "2026-01-01", 10), ("d", "2026-01-04", 4))

    def refused(*_: Any, **__: Any) -> Any:
        raise RuntimeError("[CONFIG_NOT_AVAILABLE] Configuration spark.databricks.delta.x is not available.")

    with patch.object(type(kept.spark.conf), "set", refused):
        second = kept.merge(correction, {"run": "two"}, on=["customer_id", "event_time"], after=first)
        with pytest.raises(LakeError, match="another run wrote a version meanwhile"):
            kept.merge(correction, {"run": "late"}, on=["customer_id", "event_time"], after=first)
    assert (kept.version(), kept.note(second)["run"]) == (second, "two")
    assert amounts(kept.read()) == [
        ("a", "01-01", 10.0), ("b", "01-02", 2.0), ("c", "01-09", 9.0), ("d", "01-04", 4.0),
    ]  # fmt: skip


def test_of_racing_first_runs_and_racing_replaces_the_losers_are_told(kept: DeltaOfflineTable) -> None:
    for before in (None, 1):
        assert kept.version() == before
        meet, outcomes = threading.Barrier(3), []

        def replace(name: str, meet: Any = meet, outcomes: list[Any] = outcomes) -> None:
            rows = keyed(kept, ("a", "2026-01-01", 1))
            meet.wait()
            try:
                outcomes.append((name, kept.replace(rows, {"run": name})))
            except LakeError as error:
                outcomes.append((name, error))

        threads = [threading.Thread(target=replace, args=(name,)) for name in "abc"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        won = {version: name for name, version in outcomes if isinstance(version, int)}
        lost = {outcome.problem for _, outcome in outcomes if isinstance(outcome, LakeError)}
        assert (len(outcomes), kept.version()) == (3, max(won))
        assert lost <= {"another run wrote a version meanwhile"}
        assert {version: kept.note(version)["run"] for version in won} == won
        assert kept.read().count() == 1
        if before is None and len(won) > 1:
            return  # no race came about: they ran one after the other


def test_folder_that_holds_files_is_waited_for_since_another_run_may_be_making_the_table(
    kept: DeltaOfflineTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = kept.spark.sql(f"DESCRIBE SCHEMA {kept.uri.rpartition('.')[0]}").collect()
    folder = Path(next(row[1] for row in schema if row[0] == "Location").removeprefix("file:")) / "kept_v1"
    folder.mkdir(parents=True)
    (folder / "part").touch()
    rows = keyed(kept, ("a", "2026-01-01", 1))
    with monkeypatch.context() as quick:
        quick.setattr("connectors.delta_addresses._MAKING_SECONDS", 0.3)
        with pytest.raises(LakeError, match="its folder holds files, and no table") as caught:
            kept.replace(rows, {"run": "one"})
    assert str(folder) in caught.value.hint
    cleared = threading.Timer(1, (folder / "part").unlink)
    cleared.start()
    version = kept.replace(rows, {"run": "two"})
    cleared.join()
    assert (kept.note(version)["run"], amounts(kept.read())) == ("two", [("a", "01-01", 1.0)])


def test_upkeep_by_others_neither_hides_a_note_nor_stops_a_job(kept: DeltaOfflineTable) -> None:
    """A catalog that maintains its tables by itself writes no note."""
    first = kept.replace(keyed(kept, ("a", "2026-01-01", 1)).repartition(1), {"run": "one"})
    second = kept.append(keyed(kept, ("b", "2026-01-02", 2)), {"run": "two"}, after=first)
    kept.spark.sql(f"OPTIMIZE {kept.at.sql}")
    newest = kept.version()
    assert newest == second + 1
    assert kept.note(newest) == {**kept.note(second), MAINTAINED: "by others"}
    third = kept.append(keyed(kept, ("c", "2026-01-03", 3)), {"run": "three"}, after=second)
    assert (kept.version(), kept.note(third)["run"]) == (newest + 1, "three")
    kept.spark.sql(f"ALTER TABLE {kept.at.sql} SET TBLPROPERTIES ('team' = 'crm')")
    rows, tries = keyed(kept, ("d", "2026-01-04", 4)), []

    def write() -> int:
        tries.append(1)
        if len(tries) == 1:
            kept.spark.sql(f"ALTER TABLE {kept.at.sql} SET TBLPROPERTIES ('team' = 'shop')")
            raise LakeError("Table", "another run wrote a version meanwhile", hint="")
        return kept.append(rows, {"run": "four"}, after=kept.version() or 0)

    assert kept.note(past_maintenance(kept, write))["run"] == "four"
    assert kept.read().count() == 4


@pytest.mark.parametrize("is_named", [True, False])
def test_version_that_was_restored_says_what_it_said(kept: DeltaOfflineTable, is_named: bool) -> None:
    """A deletion by others does not: what was written before it is still there."""
    chosen = kept if is_named else delta_table(kept.spark, f"{kept.at.beside}/t")
    rows = keyed(kept, ("a", "2026-01-01", 1), ("z", "2026-01-01", 7))
    first = chosen.replace(rows, {"run": "one", MAINTAINED: "m"})
    second = chosen.append(keyed(kept, ("b", "2026-01-02", 2)), {"run": "two"}, after=first)

    def newest_after(statement: str) -> int:
        kept.spark.sql(statement.format(table=chosen.at.sql)).collect()
        return chosen.version() or 0

    restored = newest_after(f"RESTORE TABLE {{table}} TO VERSION AS OF {first}")
    said = {"run": "one", "commit": chosen.note(first)["commit"]}
    assert (restored, chosen.note(restored)) == (second + 1, said)
    deleted = newest_after("DELETE FROM {table} WHERE amount = 7")
    assert (deleted, chosen.note(deleted)) == (restored + 1, said)
    again = newest_after(f"RESTORE TABLE {{table}} TO VERSION AS OF {restored}")
    assert (again, chosen.note(again)) == (deleted + 1, said)
    third = chosen.append(keyed(kept, ("c", "2026-01-03", 3)), {"run": "three"}, after=again)
    assert [chosen.note(version)["run"] for version in (second, third)] == ["two", "three"]
    history = kept.spark.sql(f"DESCRIBE HISTORY {chosen.at.sql}").where(f"version = {second}")
    (written,) = history.selectExpr("string(timestamp)").collect()[0]
    by_time = newest_after(f"RESTORE TABLE {{table}} TO TIMESTAMP AS OF '{written}'")
    assert (by_time, chosen.note(by_time)) == (third + 1, {})
    if not is_named:
        for version in chosen.versions():
            found = delta_version(LocalFileStore(), chosen.uri, "t", version)
            assert found is not None
            assert found.note.get("run") == chosen.note(version).get("run")


# what is in the way


def test_what_others_keep_under_the_name_is_left_alone(named: Place, table: Table) -> None:
    spark, schema = named.spark, named.settings.offline
    put(named, table(FIRST, TYPES), "lake://raw/sales")
    register(named, *WORDS)
    name = f"{schema}.spend_v1"
    rows = "SELECT 1 AS a"
    for made, dropped, problem in (
        (f"CREATE VIEW {name} AS {rows}", "VIEW", "is a view"),
        (f"CREATE TABLE {name} USING parquet AS {rows}", "TABLE", "is there, and is no Delta table"),
        (f"CREATE TABLE {name} USING delta AS {rows}", "TABLE", "is there, and no run of Tidemark has written it"),
    ):
        spark.sql(made)
        with pytest.raises(LakeError) as caught:
            compute(named, ["spend"], now=NOW)
        assert (caught.value.subject, caught.value.problem) == (f"Table '{name}'", problem)
        assert "rename" in caught.value.hint
        assert [row["a"] for row in spark.table(name).collect()] == [1]
        spark.sql(f"DROP {dropped} {name}")
    spark.sql(f"CREATE TABLE {name} (customer_id string) USING delta")  # by an administrator, who granted rights on it
    assert named.table(spend).version() is None
    assert compute(named, ["spend"], now=NOW).groups[0].rows == 3


@pytest.mark.parametrize(
    ("offline", "problem", "hint"),
    [
        ("spark_catalog.nothing", "there is no schema spark_catalog.nothing", "CREATE SCHEMA spark_catalog.nothing"),
        ("nowhere.features", "there is no catalog nowhere here", "SHOW CATALOGS"),
    ],
)
def test_schema_or_catalog_that_is_not_there_is_told_before_anything_is_computed(
    place: Place, table: Table, offline: str, problem: str, hint: str
) -> None:
    there = Place(dataclasses.replace(place.settings, offline=offline, offline_files="lake://features"))
    put(there, table(FIRST, TYPES), "lake://raw/sales")
    register(there, *WORDS)
    with patch("jobs.group_run.feature_rows", side_effect=AssertionError), pytest.raises(LakeError) as caught:
        compute(there, ["spend"], now=NOW)
    assert caught.value.problem == problem
    assert caught.value.hint.startswith(hint)


def test_missing_privilege_is_told_in_the_servers_words(kept: DeltaOfflineTable) -> None:
    said = "[INSUFFICIENT_PERMISSIONS] Insufficient privileges:\nUser does not have USE SCHEMA on Schema 'main.f'."
    for text in (said, "PERMISSION_DENIED: User does not have MODIFY on Table 'main.f.kept_v1'. SQLSTATE: 42501"):
        found = CatalogTable(kept.spark, "main.f.kept_v1", "").explained(RuntimeError(text))
        assert found is not None
        assert found.problem.startswith("the catalog refuses: ")
        assert "does not have" in found.problem
        assert found.hint.startswith(
            "GRANT USE CATALOG on main, and USE SCHEMA, CREATE TABLE, SELECT and MODIFY on mai"
        )
    assert CatalogTable(kept.spark, "main.f.kept_v1", "").explained(RuntimeError("[DIVIDE_BY_ZERO] x")) is None


# profiles


PROFILE = """
name = "p"
definitions = "."
offline = "main.features"
offline_files = "lake://features"
[lakes]
features = "lake"
[online]
kind = "none"
"""


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('"main.features"', '"main"', "offline 'main' is neither a lake path nor CATALOG.SCHEMA"),
        ('"main.features"', '"main.a.b"', "offline 'main.a.b' is neither a lake path nor CATALOG.SCHEMA"),
        ('offline_files = "lake://features"\n', "", "the schema main.features of a catalog, and offline_files is miss"),
        ('"lake://features"', '"main.files"', "offline_files 'main.files' is not a lake path"),
        ("[lakes]", '[tables]\na = "b"\n[lakes]', "tables.a 'b' is not a lake path, nor CATALOG.SCHEMA or"),
        ("[lakes]", '[tables]\na = "m.s.t"\nb = "m.s.t"\n[lakes]', "tables.b and tables.a are one table, m.s.t"),
    ],
)
def test_addresses_that_cannot_be_are_faults_of_the_profile(tmp_path: Path, old: str, new: str, problem: str) -> None:
    path = tmp_path / "p.toml"
    path.write_text(PROFILE.replace(old, new), encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        load_settings(str(path), {})
    assert problem in caught.value.problem


def test_each_group_has_its_name_in_the_catalog_and_a_folder_beside(tmp_path: Path) -> None:
    settings = dataclasses.replace(
        settings_in(tmp_path), offline="main.features", offline_files="lake://features/files"
    )
    tables = {"totals": "main.crm.sums", "latest": "lake://work/tables", "other": "main.crm"}
    place = Place(dataclasses.replace(settings, tables=tables))
    second = dataclasses.replace(totals, version=2)
    assert [place.table_path(group) for group in (spend, totals, second, latest)] == [
        "main.features.spend_v1", "main.crm.sums_v1", "main.crm.sums_v2", "lake://work/tables/latest/v1",
    ]  # fmt: skip
    assert [place.files_path(group) for group in (spend, second, latest)] == [
        "lake://features/files/spend/v1", "lake://features/files/totals/v2", "lake://work/tables/latest/v1",
    ]  # fmt: skip
    other = dataclasses.replace(latest, name="other")
    with pytest.raises(UsageError, match="are in parquet, and a catalog keeps Delta"):
        place.table_path(other)
    in_parquet = dataclasses.replace(latest, name="plain")
    assert place.table_path(in_parquet) == place.files_path(in_parquet) == "lake://features/files/plain/v1"


# the whole way


def test_every_verb_gives_by_name_what_it_gives_by_path(online_place: Place, table: Table, tmp_path: Path) -> None:
    """compute (full, increment, backfill), training set, replay, why, explain, materialize, maintain, compare; by path
    all at once."""
    folder = tmp_path / "other"
    folder.mkdir()
    lakes = {**online_place.settings.lakes, "features": f"file://{folder}"}
    other = dataclasses.replace(online_place.settings, name="cloud", lakes=lakes)
    by_path, by_name = online_place, in_catalog(Place(other))
    schema = by_name.settings.offline
    put(by_path, table(SPINE, "event_time timestamp"), "lake://raw/spine")
    for place in (by_path, by_name):
        register(place, customer, sales, spend, totals, Service("churn", [spend, totals]))

    def computed(**options: Any) -> set[tuple[str, int]]:
        rows = table(options.pop("text"), TYPES).coalesce(1) if "text" in options else None
        if rows is not None:
            rows.write.mode("append").parquet(by_path.lakes.uri("lake://raw/sales"))
        return {(group.how, group.rejected) for group in compute(by_name, now=NOW, **options).groups}

    def loaded() -> set[tuple[str, str, int]]:
        return {(group.group, group.how, group.rows) for group in materialize(by_name, now=NOW).groups}

    assert computed(text=FIRST) == {("full", 1), ("full", 0)}
    assert loaded() == {("spend", "full", 2), ("totals", "full", 3)}
    assert computed(text=SECOND) == {("added", 0)}
    assert loaded() == {("spend", "changed", 2), ("totals", "changed", 3)}
    assert online_get(by_name, {"customer_id": "c1"}, group="totals", check=True, now=NOW).agrees
    assert by_name.quarantine(spend).read().count() == 1
    days = {"start": NOW.replace(month=1, day=2), "end": NOW.replace(month=1, day=4)}
    assert computed(groups=["totals"], **days) == {("backfill", 0)}
    compute(by_path, now=NOW)
    assert compare(by_path, right=by_name).equal
    made = [
        training_set(place, "lake://raw/spine", service="churn", out=f"lake://work/{place.settings.name}")
        for place in (by_path, by_name)
    ]
    assert made[0].hash == made[1].hash
    assert why(by_name, "lake://work/cloud", "amount", {"customer_id": "c1"}).agrees
    plan = explain(by_name, "lake://raw/spine", service="churn")
    assert plan.text().endswith("no join ran; asked in the catalog: spend, totals")
    assert plan.groups[0].all_rows == 7
    for one in maintain(by_name).tables:
        if one.table.startswith(schema):
            assert (one.files_after, len(one.pins)) == (1, 1)
            assert any(note.startswith("not vacuumed") for note in one.notes)
    assert rebuild(by_name, "lake://work/cloud", out="lake://work/again").hash == made[0].hash
    assert computed() == {("nothing new", 0)}
    for one, to in ((by_path, by_name), (by_name, by_path)):
        with pytest.raises(UsageError, match=rf"{schema}.spend_v1, {schema}.totals_v1 in cloud: a catalog's table"):
            replicate(one, to=to)
    assert not list((folder / "spend" / "v1").rglob("*.parquet")), "no table beside, nor what a merge had staged"


def test_vacuum_removes_what_was_replaced_before_the_retention(named: Place, tmp_path: Path) -> None:
    """And the version that lost its files is said to be gone; a table with a pin keeps all."""
    register(named, *WORDS)
    first = named.table(spend)
    versions = [first.replace(keyed(first, ("a", "2026-01-01", n)), {"run": str(n)}) for n in (1.0, 2.0, 3.0)]
    shutil.copytree(tmp_path / "managed" / "spend_v1", tmp_path / "older" / "managed")
    age(tmp_path / "older")
    kept = catalog_table(named.spark, f"{named.settings.offline}.aged_v1", beside=first.at.beside)
    named.spark.sql(f"CREATE TABLE {kept.at.sql} USING delta LOCATION '{tmp_path}/older/managed'")
    now_us = time.time_ns() // 1000
    upkeep = Upkeep(frozenset({versions[0]}), now_us, 86_400_000_000, "maintained")
    pinned = maintain_table(kept, upkeep)
    assert (pinned.removed, pinned.notes[0][:12], pinned.lost_pins) == (0, "not vacuumed", ())
    assert what_is_gone(named.spark, kept, versions[0]) == ""
    upkeep = dataclasses.replace(upkeep, pinned=frozenset(), dry_run=True)
    told = maintain_table(kept, upkeep)
    done = maintain_table(kept, dataclasses.replace(upkeep, dry_run=False))
    assert done.removed == told.removed >= len(versions[:2])
    assert (told.freed, done.freed > 0) == (0, True)
    assert [what_is_gone(named.spark, kept, n) for n in versions] == ["was vacuumed: a file of it is gone"] * 2 + [""]
    assert kept.note(kept.version() or 0)["run"] == "3.0"
    assert amounts(kept.read()) == [("a", "01-01", 3.0)]
