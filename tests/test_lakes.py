"""Spark and the verbs on HDFS and ADLS Gen2: the same rows in both, groups of several lakes in one join, and faults."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from pyspark.sql import DataFrame

from connectors.adls_files import AdlsFileStore
from connectors.file_store import open_file_store
from connectors.offline_tables import open_table
from connectors.redis_online import RedisAddress
from connectors.spark_errors import data_errors
from feature_defs import Entity, Feature, FeatureGroup, Service, Source
from feature_defs.errors import LakeError
from jobs.apply import apply
from jobs.compute import compute
from jobs.datasets import open_dataset
from jobs.generate import generate
from jobs.lake_access import hadoop_conf
from jobs.maintain import maintain
from jobs.materialize import materialize
from jobs.place import Place
from jobs.settings import AdlsSettings, OnlineSettings, load_settings
from jobs.training_set import training_set
from jobs.transforms.row_hash import hash_of
from tests.emulator import ACCOUNT, KEY, Emulator
from tests.hdfs_daemons import Hdfs
from tests.lab import NOW, Table, register
from tests.lake_kinds import ROOT, adls_settings, hdfs_settings
from tests.pipe_tables import assert_rows
from tests.test_lake_faults import signed
from tests.waiting import free_port, until

customer = Entity("customer", keys={"customer_id": "string"})
Put = Callable[..., Place]


@pytest.fixture
def with_lakes(place: Place, hdfs: Hdfs, adls: Emulator) -> Iterator[Callable[..., Place]]:
    """A place whose session knows where these lakes are."""

    def made(lakes: dict[str, str], **others: object) -> Place:
        elsewhere = {"hdfs": hdfs_settings(hdfs), "adls": adls_settings(adls)}
        found = Place(dataclasses.replace(place.settings, lakes=lakes, **elsewhere, **others))
        assert found.spark is not None
        return found

    yield made
    adls.double.faults.clear()
    hdfs.heal()


def test_one_training_set_joins_groups_of_both_lakes(
    with_lakes: Put, table: Table, hdfs: Hdfs, adls: Emulator, tmp_path: Path
) -> None:
    """Raw data and a table in Delta on HDFS, a source, a table in Parquet and the datasets in ADLS; run twice, the
    second time for what was added, then maintained."""
    on_hdfs, on_adls = f"{hdfs.uri}/{tmp_path.name}", f"{adls.uri}/{tmp_path.name}"
    lakes = {"raw": f"{on_hdfs}/raw lake 1%20", "features": f"{on_hdfs}/features"}
    lakes |= {"cloud": f"{on_adls}/features", "work": f"{on_adls}/work"}
    place = with_lakes(lakes, tables={"visits": "lake://cloud"})
    spends = Source("spends", path="lake://raw/spends", format="delta", event_time="event_time")
    seen = Source("seen", path="lake://cloud/seen", format="parquet", event_time="event_time")
    spend = FeatureGroup("spend", entity=customer, source=spends, features=[Feature("amount", "double")])
    clicks = [Feature("clicks", "bigint")]
    visits = FeatureGroup("visits", entity=customer, source=seen, features=clicks, offline="parquet")
    register(place, customer, spends, seen, spend, visits, Service("churn", [spend, visits]))
    types = "customer_id string, amount double, clicks bigint, event_time timestamp"
    rows = table(
        """
        customer_id | amount | clicks | event_time
        a           | 1.5    | 10     | 2026-01-01
        a           | 2.5    | 20     | 2026-01-03
        b           | 3.5    | 30     | 2026-01-02
        """,
        types,
    ).coalesce(1)
    spine = table(
        """
        customer_id | event_time
        a           | 2026-01-02
        b           | 2026-01-02
        c           | 2026-01-02
        """,
        "customer_id string, event_time timestamp",
    )
    expected = table(
        """
        customer_id | amount | clicks
        a           | 1.5    | 10
        b           | 3.5    | 30
        c           | null   | null
        """,
        "customer_id string, amount double, clicks bigint",
    )
    uri = place.lakes.uri
    spine.coalesce(1).write.format("delta").save(uri("lake://raw/spine"))
    for _ in range(2):
        rows.drop("clicks").write.format("delta").mode("append").save(uri("lake://raw/spends"))
        rows.drop("amount").write.mode("append").parquet(uri("lake://cloud/seen"))
        report = compute(place, [], now=NOW)
    assert [group.rejected for group in report.groups] == [0, 0]
    for out_format in ("parquet", "delta"):
        out = f"lake://work/{out_format}"
        training_set(place, "lake://raw/spine", service="churn", out=out, out_format=out_format)
        dataset = open_dataset(place, out)
        assert_rows(dataset.spark().select(*expected.columns), expected)
        found = dataset.arrow(["customer_id", "amount"]).sort_by("customer_id").to_pylist()
        assert [row["amount"] for row in found] == [1.5, 3.5, None]
    training_set(place, "lake://raw/spine", service="churn", out="lake://work/parquet")  # in place of the first
    maintain(place, [])
    assert_rows(open_dataset(place, "lake://work/parquet").spark().select(*expected.columns), expected)
    for base, group in (("features", spend), ("cloud", visits)):
        files = open_file_store(uri(f"lake://{base}"))
        assert any(file.path.startswith(f"{group.name}/v1/") for file in files.list_files(uri(f"lake://{base}")))
        assert files.list_drafts(uri(f"lake://{base}")) == []


def test_the_example_gives_the_same_rows_on_hdfs_and_in_adls(
    with_lakes: Put, hdfs: Hdfs, adls: Emulator, address: RedisAddress, tmp_path: Path
) -> None:
    """The demo's verbs in each; every table, and the training set, by its row hash. Then the profile of the containers,
    on HDFS but for a table in ADLS."""
    hashes: dict[str, dict[str, str]] = {}
    for kind, part in (("hdfs", hdfs), ("adls", adls)):
        lakes = {name: f"{part.uri}/{tmp_path.name}/{name}" for name in ("raw", "features", "work")}
        online = OnlineSettings(kind="redis", url=address.url, key_prefix=kind)
        place = with_lakes(lakes, definitions=f"{ROOT}/feature_defs/examples/retail", online=online)
        generate(place, customers=30, end=NOW)
        snapshot = place.registry.read(apply(place).snapshot)
        compute(place, [], now=NOW)
        out = "lake://work/churn_train"
        training_set(place, "lake://raw/churn_labels", service="churn", out=out)
        materialize(place, [], now=NOW)
        tables = {group.name: place.table(group).read() for group in snapshot.definitions.groups.values()}
        tables["training set"] = open_dataset(place, out).spark()
        hashes[kind] = {name: str(hashed(rows)) for name, rows in tables.items()}
    assert hashes["hdfs"] == hashes["adls"]
    assert len(hashes["hdfs"]) == 6
    assert not [told for told in hashes["hdfs"].values() if told.startswith("0 rows")]
    hybrid = with_lakes(**containers_profile(hdfs, adls, tmp_path))
    (elsewhere,) = hybrid.settings.tables
    compute(hybrid, [elsewhere], now=NOW)
    training_set(hybrid, "lake://raw/churn_labels", service="churn", out="lake://work/hybrid")
    table = hybrid.table(hybrid.applied().definitions.groups[elsewhere])
    assert table.uri.startswith(adls.uri)
    assert str(hashed(table.read())) == hashes["hdfs"][elsewhere]
    dataset = open_dataset(hybrid, "lake://work/hybrid")
    assert str(hashed(dataset.spark())) == hashes["hdfs"]["training set"]


def containers_profile(hdfs: Hdfs, adls: Emulator, folder: Path) -> dict[str, Any]:
    """conf/docker.toml's lakes and tables, with the parts of the tests in the containers' place."""
    told = load_settings(str(ROOT / "conf" / "docker.toml"), {})
    uris = {"hdfs://namenode:8020/lake": f"{hdfs.uri}/{folder.name}", adls.uri: f"{adls.uri}/{folder.name}"}
    lakes = {
        name: base.replace(there, here)
        for name, base in told.lakes.items()
        for there, here in uris.items()
        if base.startswith(there)
    }
    assert lakes.keys() == told.lakes.keys()
    return {"lakes": lakes, "tables": told.tables, "definitions": told.definitions}


def test_the_double_runs_by_itself_as_in_the_containers(adls: Emulator, tmp_path: Path) -> None:
    """The command of docker/compose.yaml; `localhost`, as its `blobs`, is a name that has no dots."""
    services = yaml.safe_load(ROOT.joinpath("docker", "compose.yaml").read_text(encoding="utf-8"))["services"]
    port = free_port()
    here = {"python3": sys.executable, "10004": str(port), "http://blobs:10000": f"http://localhost:{adls.port}"}
    process = subprocess.Popen([here.get(word, word) for word in services["adls"]["command"]], cwd=ROOT)
    try:
        store = AdlsFileStore(ACCOUNT, f"http://localhost:{port}/{ACCOUNT}", auth="key", secret=KEY)
        uri = f"{adls.uri}/{tmp_path.name}"
        store.create(f"{uri}/a", b"x")  # tried again until it answers
        store.rename(f"{uri}/a", f"{uri}/b")
        assert [file.path for file in store.list_files(uri)] == ["b"]
        assert store.read(f"{uri}/b") == b"x"
    finally:
        process.kill()
        process.wait()


def hashed(rows: DataFrame) -> object:
    """Of all but when a run wrote it."""
    return hash_of(rows, [name for name in rows.columns if name != "created_time"])


# --- faults while Spark writes and reads ---


def slowly(rows: DataFrame, begun: Path, go_on: Path) -> DataFrame:
    """The same rows, the later ones when the file `go_on` is there; `begun` is made when the first have gone."""

    def passed(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for number, batch in enumerate(batches):
            if number == 4:
                begun.touch()
                until(go_on.exists, 120)
            yield batch

    return rows.mapInArrow(passed, rows.schema)


def many_rows(place: Place, value: str) -> DataFrame:
    """So many rows in one file of about 20 MB, so that blocks are on their way while it is written."""
    columns = ("cast(id as string) customer_id", "timestamp'2026-01-01' event_time", f"{value} amount", "uuid() noise")
    return place.spark.range(0, 400_000, 1, 1).selectExpr(*columns)


def interrupted(write: Callable[[DataFrame], object], rows: DataFrame, folder: Path, fault: Callable[[], None]) -> None:
    """Write the rows; the fault comes while they are written. Raises what the write raised."""
    begun, go_on, raised = folder / "begun", folder / "go on", []
    for mark in (begun, go_on):
        mark.unlink(missing_ok=True)

    def run() -> None:
        try:
            write(slowly(rows, begun, go_on))
        except Exception as error:  # noqa: BLE001 - of whatever kind, it is raised below
            raised.append(error)

    job = threading.Thread(target=run)
    job.start()
    until(lambda: begun.exists() or raised, 120)
    fault()
    go_on.touch()
    job.join()
    if raised:
        raise raised[0]


def test_a_table_is_whole_when_a_data_node_dies_while_it_is_written(
    with_lakes: Put, hdfs: Hdfs, tmp_path: Path
) -> None:
    place = with_lakes({"features": f"{hdfs.uri}/{tmp_path.name}"})
    table = open_table(place.spark, place.lakes.uri("lake://features/t"), "delta")
    table.replace(many_rows(place, "1").limit(10), {"run": "first"})
    interrupted(
        lambda rows: table.replace(rows, {"run": "second"}), many_rows(place, "2"), tmp_path, lambda: hdfs.kill("data0")
    )
    totals = table.read().selectExpr("count(*)", "sum(amount)").collect()[0]
    assert tuple(totals) == (400_000, 800_000)
    assert table.note(table.version() or 0)["run"] == "second"


def test_a_job_goes_on_when_the_name_node_starts_again_while_it_writes_or_begins(
    with_lakes: Put, hdfs: Hdfs, tmp_path: Path
) -> None:
    def starts_again() -> None:
        hdfs.kill("name")
        hdfs.start_name_node()

    place = with_lakes({name: f"{hdfs.uri}/{tmp_path.name}/{name}" for name in ("raw", "features")})
    raw = Source("raw", path="lake://raw/rows", format="delta", event_time="event_time")
    spend = FeatureGroup("spend", entity=customer, source=raw, features=[Feature("amount", "double")])
    register(place, customer, raw, spend)
    source = open_table(place.spark, place.lakes.uri(raw.path), "delta")
    source.replace(many_rows(place, "1D").limit(10), {"run": "first"})
    interrupted(lambda rows: source.replace(rows, {"run": "second"}), many_rows(place, "2D"), tmp_path, starts_again)
    assert source.note(source.version() or 0)["run"] == "second"
    starts_again()
    assert compute(place, [], now=NOW).rows == 400_000
    totals = place.table(spend).read().selectExpr("count(*)", "sum(amount)").collect()[0]
    assert tuple(totals) == (400_000, 800_000)


def test_a_table_is_whole_when_adls_is_busy_breaks_off_or_refuses(
    with_lakes: Put, adls: Emulator, tmp_path: Path
) -> None:
    place = with_lakes({"features": f"{adls.uri}/{tmp_path.name}"})
    table = open_table(place.spark, place.lakes.uri("lake://features/t"), "delta")

    def busy() -> None:
        adls.double.fail(503, 6)
        adls.double.fail(429, 6)

    interrupted(lambda rows: table.replace(rows, {"run": "first"}), many_rows(place, "1"), tmp_path, busy)
    adls.double.cut(2)
    assert tuple(table.read().selectExpr("count(*)", "sum(amount)").collect()[0]) == (400_000, 400_000)

    def refused() -> None:
        adls.double.fail(403, 1_000_000)

    with pytest.raises(Exception, match=r"403|AuthenticationFailed"):
        interrupted(lambda rows: table.replace(rows, {"run": "second"}), many_rows(place, "2"), tmp_path, refused)
    adls.double.faults.clear()
    assert tuple(table.read().selectExpr("count(*)", "sum(amount)").collect()[0]) == (400_000, 400_000)
    assert table.note(table.version() or 0)["run"] == "first"


@pytest.fixture
def by_sas(
    with_lakes: Put, adls: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[int], Place]]:
    """The same place, which signs in by a SAS that is valid for so many seconds."""
    settings = with_lakes({"features": f"{adls.uri}/{tmp_path.name}"}).settings
    sas = AdlsSettings(auth="sas", secret="env:TIDEMARK_TEST_SAS", endpoint=adls.endpoint)
    places: list[Place] = []

    def made(seconds: int) -> Place:
        monkeypatch.setenv("TIDEMARK_TEST_SAS", signed(seconds))
        places.append(Place(dataclasses.replace(settings, adls={ACCOUNT: sas})))
        assert places[-1].spark is not None
        return places[-1]

    yield made
    anew = [f"fs.{scheme}.impl.disable.cache" for scheme in ("abfs", "abfss")]
    for key in (*hadoop_conf(places[-1].settings), *anew):
        places[-1].spark.conf.unset(key)


def test_a_table_is_whole_when_a_sas_expires_while_it_is_written(
    by_sas: Callable[[int], Place], tmp_path: Path
) -> None:
    """And a new one goes on in the session that had the old."""

    def write(rows: DataFrame) -> None:
        with data_errors("FeatureGroup 't'"):  # as the verbs do
            table.replace(rows, {"run": "second"})

    def there() -> tuple[object, ...]:
        run = table.note(table.version() or 0)["run"]
        return (run, *table.read().selectExpr("count(*)", "sum(amount)").collect()[0])

    place = by_sas(3600)
    table = open_table(place.spark, place.lakes.uri("lake://features/t"), "delta")
    table.replace(many_rows(place, "1").limit(10), {"run": "first"})
    for seconds in (8, 32, 128):  # the longer ones for a machine that is busy
        place, end = by_sas(seconds), time.monotonic() + seconds + 1  # a SAS tells whole seconds
        table = open_table(place.spark, table.uri, "delta")
        with pytest.raises(LakeError) as raised:
            interrupted(
                write, many_rows(place, "2"), tmp_path, lambda end=end: time.sleep(max(0.0, end - time.monotonic()))
            )
        if (tmp_path / "begun").exists():
            break
    assert re.fullmatch(rf"Lake path '{re.escape(table.uri)}/[^']*'", raised.value.subject)
    expired = rf"\(403\), the SAS of account '{ACCOUNT}' expired at 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC"
    assert re.fullmatch(f"cannot write it: AuthenticationFailed {expired}", raised.value.problem)
    assert raised.value.hint.startswith(f"put a new SAS where [adls.{ACCOUNT}] secret says, and run it again;")
    place = by_sas(3600)
    table = open_table(place.spark, table.uri, "delta")
    assert there() == ("first", 10, 10)
    write(many_rows(place, "2"))
    assert there() == ("second", 400_000, 800_000)
