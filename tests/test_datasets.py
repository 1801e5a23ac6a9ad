"""A training set read again, by Spark and without it: the same rows, columns and types from every format and part."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import importlib
import importlib.util
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyspark.sql import SparkSession

from connectors.dataset_files import dataset_version, rebatched
from connectors.file_store import local_path, open_file_store
from connectors.pins import read_pins
from feature_defs import Entity, Feature, FeatureGroup, Service, Source
from feature_defs.errors import DataError, MissingPartError, UsageError
from jobs.datasets import Dataset
from jobs.maintain import maintain
from jobs.place import Place
from jobs.store import Store
from jobs.training_set import training_set
from tests.conftest import settings_in
from tests.lab import Table, files_in, folders_in, register

UTC = datetime.timezone.utc
customer = Entity("customer", keys={"customer_id": "bigint"})
raw = Source("raw", path="lake://raw/raw", event_time="event_time", format="parquet")
NUMBERS = [
    Feature("amount", "double"),
    Feature("price", "decimal(6,2)"),
    Feature("n", "int"),
    Feature("big", "boolean"),
]
OTHERS = [Feature("word", "string"), Feature("day", "date"), Feature("at", "timestamp")]
NESTED = [Feature("list", "array<double>"), Feature("by", "map<string,bigint>"), Feature("bytes", "binary")]
group = FeatureGroup("flat", entity=customer, source=raw, offline="parquet", features=[*NUMBERS, *OTHERS])
nested = FeatureGroup("nested", entity=customer, source=raw, offline="parquet", features=NESTED)
flat = Service("flat", [group])
full = Service("full", [group, nested])
SPLITS = {"train": "..2026-01-11", "validation": "2026-01-11..2026-01-16", "test": "2026-01-16..2026-01-21"}
SPINE = "id AS customer_id, timestampadd(MICROSECOND, 1, timestampadd(DAY, id, timestamp'2026-01-01')) AS event_time"


@pytest.fixture(scope="module")
def original(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two computed groups of thirty entities with values of every type, some of them null and some awkward to write."""
    folder = tmp_path_factory.mktemp("original")
    place = Place(settings_in(folder))
    register(place, customer, raw, group, nested, flat, full)
    clocks = "id AS customer_id", "timestamp'2026-01-01' AS event_time", "CAST(null AS timestamp) AS created_time"
    words = "element_at(array('', null, ' a \"b\", ', 'line\\nline', 'NA', '\\\\', 'été'), CAST(id % 7 + 1 AS int))"
    values = {
        "amount": "element_at(array(null, double('NaN'), double('-Infinity'), id / 3), CAST(id % 4 + 1 AS int))",
        "price": "if(id % 4 = 0, null, CAST(id / 8 AS decimal(6,2)))",
        "n": "CAST(id - 3 AS int)",
        "big": "if(id % 6 = 0, null, id > 10)",
        "word": words,
        "day": "date_add(date'1969-12-25', CAST(id AS int))",
        "at": "timestamp_micros(id * 86400000001)",
    }
    deep = {
        "list": "if(id % 3 = 0, null, array(id / 2, null))",
        "by": "if(id % 3 = 1, null, map('a', id, 'b', null))",
        "bytes": "CAST(CAST(id AS string) AS binary)",
    }
    for made, columns in ((group, values), (nested, deep)):
        rows = spark.range(30).selectExpr(*clocks, *(f"{text} AS `{name}`" for name, text in columns.items()))
        place.table(made).replace(rows, {"fingerprint": place.applied().fingerprint(made.name)})
    return folder


@pytest.fixture
def ready(original: Path, tmp_path: Path) -> Place:
    shutil.copytree(original, tmp_path, dirs_exist_ok=True)
    return Place(settings_in(tmp_path))


def made(place: Place, out_format: str, service: str = "flat", *, out: str = "lake://work/out", **options: Any) -> Any:
    more = "CAST(id % 2 AS smallint) AS label", "timestamp_ntz'2026-01-02 03:04:05.000006' AS `naive time. of`"
    columns = [*more] if out_format != "delta" else more[:1]
    spine = place.spark.range(options.pop("first", 0), 30).selectExpr(*SPINE.split(", ", 1), *columns)
    spine = spine.repartition(3, "customer_id")
    return training_set(place, spine, service=service, out=out, out_format=out_format, **options)


def opened(place: Place, **options: Any) -> Dataset:
    return Store(place).open_dataset("lake://work/out", **options)


def in_order(table: pa.Table) -> list[str]:
    """Rows as text, since NaN equals nothing."""
    return sorted(str(list(row.items())) for row in table.to_pylist())


@pytest.mark.parametrize(("out_format", "service"), [("parquet", "full"), ("delta", "full"), ("csv", "flat")])
def test_spark_arrow_pandas_and_batches_give_the_same_rows(ready: Place, out_format: str, service: str) -> None:
    """Whole, then cut into parts, each of which is also read alone."""
    whole = made(ready, out_format, service)
    dataset = opened(ready)
    names = dataset.columns
    assert names == dataset.spark().columns == dataset.arrow().column_names == list(dataset.pandas().columns)
    assert (dataset.features, dataset.splits) == (list(whole.matched), [])
    wanted = in_order(dataset.spark().toArrow())
    assert len(wanted) == whole.rows == 30
    assert in_order(dataset.arrow()) == wanted
    assert str(dataset.arrow().schema.field("event_time").type) == "timestamp[us, tz=UTC]"
    first = min(dataset.pandas()["event_time"])
    assert (first.tz_convert(UTC).to_pydatetime(), first.nanosecond) == (
        datetime.datetime(2026, 1, 1, 0, 0, 0, 1, tzinfo=UTC), 0,
    )  # fmt: skip
    sizes = [batch.num_rows for batch in dataset.batches(rows=7)]
    assert sizes == [7, 7, 7, 7, 2]
    assert in_order(pa.Table.from_batches(dataset.batches(rows=7))) == wanted
    report = made(ready, out_format, service, splits=SPLITS, gap="2d")
    check_parts(ready, report, wanted)


def check_parts(place: Place, report: Any, wanted: list[str]) -> None:
    assert report.splits == {"train": 10, "validation": 3, "test": 3}
    assert (report.rows, report.gap_rows, report.outside_rows) == (16, 4, 10)
    assert "parts: train 10, validation 3, test 3; left out: 4 between parts, 10 outside" in report.text()
    dataset = opened(place)
    assert dataset.splits == ["train", "validation", "test"]
    assert dataset.columns[-1] == "split"
    found = []
    for name, rows in report.splits.items():
        part = opened(place, split=name)
        table = part.arrow()
        assert in_order(part.spark().toArrow()) == in_order(table)
        assert set(table["split"].to_pylist()) == {name}
        assert table.num_rows == rows
        found += in_order(table.drop_columns(["split"]))
    assert (
        in_order(dataset.arrow().drop_columns(["split"]))
        == sorted(found)
        == in_order(dataset.spark().drop("split").toArrow())
    )
    assert set(found) < set(wanted)
    assert sorted({Path(file).parts[1] for file in files_in(place, "work") if "split=" in file}) == [
        "split=test", "split=train", "split=validation",
    ]  # fmt: skip
    pins = read_pins(place.lakes, place.settings.offline)
    assert [pin.alive for pin in pins if pin.pin.run == report.run] == [True]
    assert {table.pins for table in maintain(place).tables if table.pins} == {(1,)}


def test_part_without_rows_and_dataset_without_rows_have_their_columns(ready: Place) -> None:
    for out_format in ("parquet", "delta", "csv"):
        report = made(ready, out_format, splits=SPLITS, first=20, out=f"lake://work/{out_format}")
        assert (report.rows, report.splits, report.outside_rows) == (0, {"train": 0, "validation": 0, "test": 0}, 10)
        for split in (None, "train"):
            dataset = Store(ready).open_dataset(f"lake://work/{out_format}", split=split)
            assert dataset.arrow().num_rows == dataset.spark().count() == 0
            assert dataset.columns == dataset.spark().columns == dataset.arrow().column_names
            assert list(dataset.batches()) == []


def test_csv_is_what_other_programs_read_and_refuses_what_it_cannot_hold(ready: Place) -> None:
    import csv

    made(ready, "csv")
    folder = local_path(ready.lakes.uri("lake://work/out"))
    texts = [file.read_bytes().decode() for file in folder.glob("*.csv")]
    read = [row for text in texts for row in csv.DictReader(io.StringIO(text, newline=""))]
    row = next(row for row in read if row["customer_id"] == "2")
    assert row["word"] == ' a "b", '
    assert (row["event_time"], row["naive time. of"]) == ("2026-01-03T00:00:00.000001Z", "2026-01-02T03:04:05.000006")
    assert (row["amount"], row["price"], row["big"], row["day"]) == ("-Infinity", "0.25", "false", "1969-12-27")
    before = files_in(ready, "work")
    with pytest.raises(DataError, match=r"column 'list' is array<double>, which csv cannot hold\nHint: "):
        made(ready, "csv", "full", out="lake://work/new")
    spine = ready.spark.range(3).selectExpr(*SPINE.split(", ", 1), "map('a', 1) AS m")
    with pytest.raises(DataError, match="column 'm' is map<string,int>, which csv cannot hold"):
        training_set(ready, spine, service="flat", out="lake://work/new", out_format="csv")
    odd = spine.withColumnRenamed("m", "a (b)")
    with pytest.raises(DataError, match=r"column 'a \(b\)' has a character that Delta takes in no name"):
        training_set(ready, odd, service="flat", out="lake://work/new", out_format="delta")
    with pytest.raises(UsageError, match="no training set in parquet"):
        made(ready, "parquet")
    with pytest.raises(UsageError, match="the spine has a column 'split' of its own"):
        training_set(ready, spine.withColumnRenamed("m", "SPLIT"), service="flat", out="lake://work/n", splits=SPLITS)
    assert files_in(ready, "work") == before
    assert not [name for name in folders_in(ready, "work") if "._" in name]


def test_numpy_batches_are_numbers_with_nan_for_null(ready: Place) -> None:
    made(ready, "parquet")
    dataset = opened(ready)
    names = [feature.name for feature in NUMBERS]
    batches = list(dataset.numpy_batches(names, "label", rows=8))
    assert [x.shape for x, _ in batches] == [(8, 4)] * 3 + [(6, 4)]
    rows = dataset.arrow([*names, "label"]).to_pylist()
    wanted = [[np.nan if row[name] is None else float(row[name]) for name in names] for row in rows]
    np.testing.assert_array_equal(np.concatenate([x for x, _ in batches]), np.array(wanted))
    np.testing.assert_array_equal(np.concatenate([y for _, y in batches]), np.array([row["label"] for row in rows]))
    assert {x.dtype.name for x, _ in batches} == {"float64"}
    assert {y.dtype.name for _, y in batches} == {"int64"}
    only = list(dataset.numpy_batches(["n"]))
    assert [found.shape for found in only if isinstance(found, np.ndarray)] == [(30, 1)]
    words = list(dataset.numpy_batches(["n"], "naive time. of"))
    assert words[0][1].dtype.kind == "M"
    for features, label, problem in (
        (None, None, "column 'word' is string, expected a number or a boolean"),
        (["amuont"], None, r"has no column 'amuont'.*\nHint: did you mean 'amount'"),
        (["n"], "lable", "has no column 'lable'"),
    ):
        with pytest.raises(DataError, match=problem):
            dataset.numpy_batches(features, label)
    with pytest.raises(DataError, match="label 'price' is null in 8 rows of a batch"):
        list(dataset.numpy_batches(["n"], "price"))
    with pytest.raises(UsageError, match="is 0, expected 1 or more"):
        dataset.batches(0)


def test_torch_gives_the_same_numbers_or_says_which_extra_it_needs(ready: Place) -> None:
    made(ready, "parquet")
    dataset = opened(ready)
    if importlib.util.find_spec("torch") is None:
        with pytest.raises(MissingPartError, match=r"needs the package 'torch'\nHint: pip install 'tidemark\[torch\]'"):
            dataset.torch(["n"], "label")
        return
    for workers in (0, 2):
        loader: Any = importlib.import_module("torch.utils.data").DataLoader
        batches = list(loader(dataset.torch(["n"], "label", rows=8), batch_size=None, num_workers=workers))
        found = sorted((int(n), int(y)) for x, label in batches for (n,), y in zip(x.tolist(), label, strict=True))
        assert found == sorted((row["n"], row["label"]) for row in dataset.arrow(["n", "label"]).to_pylist())


def test_delta_dataset_is_read_at_any_version_also_behind_a_checkpoint(ready: Place) -> None:
    """And in the order of its log: a table that was cut into parts and is whole again has no part."""
    reports = [
        made(ready, "delta", splits=SPLITS),
        *(made(ready, "delta", "full", first=first) for first in range(1, 12)),
    ]
    uri = ready.lakes.uri("lake://work/out")
    assert any(".checkpoint." in name for name in files_in(ready, "work"))
    for version, report in [(number, reports[number]) for number in (0, 5, 10, 11)]:
        dataset = opened(ready, version=version)
        assert (dataset.version, dataset.manifest.run, dataset.splits) == (
            version, report.run, list(report.splits),
        )  # fmt: skip
        assert dataset.arrow().num_rows == dataset.spark().count() == report.rows
    assert opened(ready).version == 11
    ready.spark.sql(f"DELETE FROM delta.`{uri}` WHERE customer_id = 12")
    with pytest.raises(DataError, match=r"rows of it were deleted in place\nHint: read it with Spark: .spark\(\)"):
        opened(ready)
    with pytest.raises(DataError, match=r"has no version 99\nHint: versions 0 to 12 are there"):
        opened(ready, version=99)
    log = local_path(uri) / "_delta_log"
    (log / f"{3:020d}.json").unlink()
    with pytest.raises(DataError, match="the log of version 5 is not all there"):
        opened(ready, version=5)
    assert dataset_version(open_file_store(uri), uri, "lake://work/out", 11) is not None


def test_path_without_a_training_set_and_unknown_parts_are_refused(ready: Place, table: Table) -> None:
    with pytest.raises(DataError, match="there is no training set at"):
        opened(ready)
    table("n\n1", "n int").write.format("delta").save(ready.lakes.uri("lake://work/out"))
    with pytest.raises(DataError, match="there is no training set at"):
        opened(ready)
    open_file_store("file:///").delete(ready.lakes.uri("lake://work/out"))
    made(ready, "parquet", splits=SPLITS)
    with pytest.raises(UsageError, match=r"has no part 'tset' \(train, validation, test\)\nHint: did you mean 'test'"):
        opened(ready, split="tset")
    with pytest.raises(UsageError, match="is parquet, which has no versions"):
        opened(ready, version=1)


def test_dataset_that_is_replaced_while_it_is_read_says_so(ready: Place) -> None:
    made(ready, "parquet")
    batches = opened(ready).batches(rows=4)
    next(batches)
    made(ready, "parquet")
    with pytest.raises(DataError, match="one of its files is gone\nHint: open it again"):
        list(batches)


def test_reading_needs_no_spark(ready: Place, tmp_path: Path) -> None:
    """A machine that only trains has no Java: nothing but pyarrow is loaded."""
    for out_format in ("parquet", "delta"):
        made(ready, out_format, out=f"lake://work/{out_format}")
    settings = dataclasses.replace(ready.settings, spark=dataclasses.replace(ready.settings.spark, conf={}))
    script = f"""
import sys
from jobs.place import Place
from jobs.settings import *
from jobs.store import Store
for name in ("parquet", "delta"):
    dataset = Store(Place({settings!r})).open_dataset(f"lake://work/{{name}}")
    print(dataset.arrow().num_rows, len(list(dataset.numpy_batches(["n"], "label", rows=10))))
print([name for name in ("pyspark", "py4j", "delta") if name in sys.modules])
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ran.stdout.split("\n")[:3] == ["30 3", "30 3", "[]"], ran.stderr


def test_batches_are_cut_across_files_and_hold_every_row_once() -> None:
    def parts(*sizes: int) -> Any:
        number = 0
        for size in sizes:
            yield pa.record_batch({"n": pa.array(range(number, number + size), pa.int64())})
            number += size

    for sizes in ((), (0,), (3,), (1, 1, 1), (5, 0, 2), (7, 7), (2, 9, 1)):
        for rows in (1, 2, 3, 7, 20):
            found = list(rebatched(parts(*sizes), rows))
            assert [n for batch in found for n in batch["n"].to_pylist()] == list(range(sum(sizes)))
            assert [batch.num_rows for batch in found[:-1]] == [rows] * (len(found) - 1)
            assert all(0 < batch.num_rows <= rows for batch in found)


def test_manifest_says_types_parts_and_features(ready: Place) -> None:
    report = made(ready, "csv", splits=SPLITS, gap="1d", labels=["label"])
    note = json.loads((local_path(ready.lakes.uri("lake://work/out")) / "_tidemark.json").read_text())
    assert note["splits"][1] == {
        "name": "validation", "start": "2026-01-12T00:00:00+00:00", "end": "2026-01-16T00:00:00+00:00",
    }  # fmt: skip
    assert (note["files"], note["spine"]["labels"]) == ("csv", ["label"])
    assert [column["name"] for column in note["columns"] if column["feature"]] == list(report.matched)
    types = {column["name"]: column["type"] for column in note["columns"]}
    assert (types["naive time. of"], types["price"]) == ("timestamp_ntz", "decimal(6,2)")
    assert decimal.Decimal("0.25") in opened(ready).arrow()["price"].to_pylist()
