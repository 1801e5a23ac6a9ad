"""Spark and the verbs on HDFS and ADLS Gen2: the same rows as on local files, groups of several lakes in one join."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import pytest

from feature_defs import Entity, Feature, FeatureGroup, Service, Source
from jobs.compute import compute
from jobs.datasets import open_dataset
from jobs.place import Place
from jobs.training_set import training_set
from tests.emulator import Emulator
from tests.hdfs_daemons import Hdfs
from tests.lab import NOW, Table, register
from tests.lake_kinds import KINDS, adls_settings, hdfs_settings
from tests.pipe_tables import assert_rows

customer = Entity("customer", keys={"customer_id": "string"})


@pytest.fixture
def hybrid(place: Place, hdfs: Hdfs, adls: Emulator, tmp_path: Path) -> Place:
    """Raw data and most tables on HDFS, the group `visits` and the datasets in ADLS."""
    on_hdfs, on_adls = f"{hdfs.uri}/{tmp_path.name}", f"{adls.uri}/{tmp_path.name}"
    lakes = {
        "raw": f"{on_hdfs}/raw lake",
        "features": f"{on_hdfs}/features",
        "cloud": f"{on_adls}/features",
        "work": f"{on_adls}/work",
    }
    tables = {"visits": "lake://cloud"}
    elsewhere = {"hdfs": hdfs_settings(hdfs), "adls": adls_settings(adls)}
    found = Place(dataclasses.replace(place.settings, lakes=lakes, tables=tables, **elsewhere))
    assert found.spark is not None  # which tells the session where the lakes are
    return found


def test_one_training_set_joins_groups_of_both_lakes(hybrid: Place, table: Table) -> None:
    clocks = {"event_time": "event_time"}
    spends = Source("spends", path="lake://raw/spends", format="delta", **clocks)
    seen = Source("seen", path="lake://cloud/seen", format="parquet", **clocks)
    amount, clicks = Feature("amount", "double"), Feature("clicks", "bigint")
    spend = FeatureGroup("spend", entity=customer, source=spends, features=[amount])
    visits = FeatureGroup("visits", entity=customer, source=seen, features=[clicks], offline="parquet")
    register(hybrid, customer, spends, seen, spend, visits, Service("churn", [spend, visits]))
    rows = table(
        """
        customer_id | amount | clicks | event_time
        a           | 1.5    | 10     | 2026-01-01
        a           | 2.5    | 20     | 2026-01-03
        b           | 3.5    | 30     | 2026-01-02
        """,
        "customer_id string, amount double, clicks bigint, event_time timestamp",
    )
    uri = hybrid.lakes.uri
    rows.drop("clicks").write.format("delta").save(uri("lake://raw/spends"))
    rows.drop("amount").write.parquet(uri("lake://cloud/seen"))
    spine = table(
        """
        customer_id | event_time
        a           | 2026-01-02
        b           | 2026-01-02
        c           | 2026-01-02
        """,
        "customer_id string, event_time timestamp",
    )
    spine.write.format("delta").save(uri("lake://raw/spine"))

    started = time.monotonic()
    compute(hybrid, [], now=NOW)
    print("compute", time.monotonic() - started)
    for out_format in ("parquet", "delta"):
        out = f"lake://work/{out_format}"
        training_set(hybrid, "lake://raw/spine", service="churn", out=out, out_format=out_format)
        dataset = open_dataset(hybrid, out)
        told = dataset.spark().select("customer_id", "amount", "clicks")
        assert_rows(told, "customer_id | amount | clicks\na | 1.5 | 10\nb | 3.5 | 30\nc | null | null")
        assert dataset.pandas()["amount"].sum() == 5.0
        print(out_format, time.monotonic() - started)

    files = [
        file.path
        for name in ("features", "cloud")
        for file in hybrid.table(spend).files.list_files(uri(f"lake://{name}"))
    ]
    print(files)


@pytest.mark.parametrize("kind", KINDS)
def test_x(kind):
    pass
