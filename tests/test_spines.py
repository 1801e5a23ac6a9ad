"""Spines from every place they come from: what is read, how columns are named, what is refused."""

from __future__ import annotations

import datetime
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet
from pyspark.sql import DataFrame, SparkSession

from connectors.file_store import local_path
from feature_defs import Entity, Feature, FeatureGroup, Service, Source
from feature_defs.errors import DataError, TidemarkError, UsageError
from jobs.arguments import named_columns
from jobs.place import Place
from jobs.spines import Spine, SpineWords, open_spine, read_spine
from jobs.store import Store
from jobs.training_set import MANIFEST, training_set
from tests.conftest import settings_in
from tests.lab import NOW, Table, files_in, put, put_text, read_json, register
from tests.pipe_tables import assert_rows

customer = Entity("customer", keys={"customer_id": "string"})
both = Entity("both", keys={"customer_id": "string", "product_id": "bigint"})
raw = Source("raw", path="lake://raw/raw", event_time="event_time", format="parquet")
spend = FeatureGroup("spend", entity=customer, source=raw, offline="parquet", features=[Feature("amount", "double")])
visits = FeatureGroup("visits", entity=both, source=raw, offline="parquet", features=[Feature("seen", "bigint")])
churn = Service("churn", [spend, visits])
SPINE = """
customer_id | product_id | event_time                 | label
007         | 1          | 2026-01-05 00:00:00.000001 | 1
c2          | 2          | 2026-01-06                 | 0
c2          | null       | null                       | 0
"""
JOINED = """
customer_id | product_id | event_time                 | label | amount | seen
007         | 1          | 2026-01-05 00:00:00.000001 | 1     | 10     | 4
c2          | 2          | 2026-01-06                 | 0     | 20     | null
c2          | null       | null                       | 0     | null   | null
"""
TYPES = "product_id bigint, label int, amount double, seen bigint"
CSV = """customer_id,product_id,event_time,label
007,1,2026-01-05T00:00:00.000001Z,1
c2,2,2026-01-06,0
c2,,,0
"""
JSON = """{"customer_id": "007", "product_id": 1, "event_time": "2026-01-05 00:00:00.000001", "label": 1}
{"customer_id": "c2", "product_id": 2, "event_time": "2026-01-06T01:00:00+01:00", "label": 0}
{"customer_id": "c2", "label": 0}
"""


def make_tables(place: Place, table: Table) -> None:
    """Two groups as if computed: 007 bought for 10, c2 for 20; 007 has seen product 1 four times."""
    register(place, customer, both, raw, spend, visits, churn)
    rows = "customer_id | event_time | created_time | amount\n007 | 2026-01-01 | null | 10\nc2 | 2026-01-02 | null | 20"
    _written(place, spend, table(rows, "amount double"))
    time = "2026-01-05 00:00:00.000001"
    rows = f"customer_id | product_id | event_time | created_time | seen\n007 | 1 | {time} | null | 4"
    _written(place, visits, table(rows, "product_id bigint, seen bigint"))


def _written(place: Place, group: FeatureGroup, rows: DataFrame) -> None:
    place.table(group).replace(rows, {"fingerprint": place.applied().fingerprint(group.name)})


@pytest.fixture(scope="module")
def original(spark: SparkSession, table: Table, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("original")
    make_tables(Place(settings_in(folder)), table)
    return folder


@pytest.fixture
def ready(original: Path, tmp_path: Path) -> Place:
    shutil.copytree(original, tmp_path, dirs_exist_ok=True)
    return Place(settings_in(tmp_path))


def joined(place: Place, spine: object, **options: Any) -> DataFrame:
    return Store(place).training_set(spine, service="churn", **options)


def opened(place: Place, spine: object, now: datetime.datetime | None = NOW, **words: Any) -> Spine:
    snapshot = place.applied()
    told = SpineWords(**words)
    return open_spine(place, spine, snapshot.definitions.services["churn"], snapshot.definitions, words=told, now=now)


def test_every_format_of_a_lake_gives_the_same_rows(ready: Place, table: Table) -> None:
    """Found by what lies at the path, and by name; text has the types of the entities' keys."""
    rows = table(SPINE, "product_id bigint, label int")
    expected = table(JOINED, TYPES)
    for file_format in ("parquet", "delta"):
        put(ready, rows, f"lake://raw/{file_format}", file_format)
        assert_rows(joined(ready, f"lake://raw/{file_format}"), expected)
    for file_format, text in (("csv", CSV), ("json", JSON)):
        put_text(ready, text, f"lake://raw/{file_format}")
        (local_path(ready.lakes.uri(f"lake://raw/{file_format}")) / "part-0").rename(
            local_path(ready.lakes.uri(f"lake://raw/{file_format}")) / f"part-0.{file_format}"
        )
        report = training_set(ready, f"lake://raw/{file_format}", service="churn", out="lake://work/out")
        found = ready.spark.read.parquet(ready.lakes.uri("lake://work/out"))
        if file_format == "json":  # where columns stand is not said, and a number is a bigint
            found = found.selectExpr(*(f"CAST({name} AS {kind}) AS {name}" for name, kind in expected.dtypes))
        assert_rows(found, expected)
        assert (report.rows, report.null_key_rows, report.null_time_rows) == (3, 1, 1)
        one_file = f"lake://raw/{file_format}/part-0.{file_format}"
        assert opened(ready, one_file).format == read_spine(ready, one_file).format == file_format


def test_delta_spine_is_read_at_the_version_that_is_reported(ready: Place, table: Table) -> None:
    for text in (SPINE, "\n".join(SPINE.splitlines()[:3])):
        put(ready, table(text, "product_id bigint, label int"), "lake://raw/spine", "delta")
    spine = opened(ready, "lake://raw/spine")
    assert (spine.path, spine.format, spine.version) == ("lake://raw/spine", "delta", 1)
    put(ready, table(SPINE, "product_id bigint, label int"), "lake://raw/spine", "delta")
    assert spine.rows.count() == 1
    training_set(ready, "lake://raw/spine", service="churn", out="lake://work/out")
    assert read_json(ready, f"lake://work/out/{MANIFEST}")["spine"]["version"] == 2


def test_pandas_and_arrow_keep_microseconds_and_take_naive_times_as_utc(ready: Place, table: Table) -> None:
    times = [datetime.datetime(2026, 1, 5, microsecond=1), datetime.datetime(2026, 1, 6), None]  # noqa: DTZ001
    keys, products, labels = ["007", "c2", "c2"], [1, 2, None], [1, 0, 0]
    frame = pd.DataFrame(
        {
            "customer_id": pd.Categorical(keys),
            "product_id": pd.array(products, "UInt32"),
            "event_time": pd.Series(times, dtype="datetime64[ns]"),
            "label": pd.Series(labels, dtype="int32"),
        }
    )
    columns = {"customer_id": keys, "product_id": products, "event_time": times, "label": pa.array(labels, pa.int32())}
    expected = table(JOINED, TYPES)
    assert_rows(joined(ready, frame), expected)
    assert_rows(joined(ready, pa.table(columns)), expected)
    elsewhere = frame.assign(event_time=frame["event_time"].dt.tz_localize("UTC").dt.tz_convert("Asia/Tokyo"))
    assert_rows(joined(ready, elsewhere), expected)
    assert [opened(ready, rows).format for rows in (frame, pa.table(columns), expected)] == ["pandas", "arrow", "spark"]
    with pytest.raises(UsageError, match="is list, which is no table"):
        joined(ready, [{"customer_id": "c1"}])
    with pytest.raises(DataError, match="holds values of several types"):
        joined(ready, frame.assign(note=[1, "a", 2.5]))


def test_keys_and_time_by_other_names_leave_the_spines_columns_as_they_are(ready: Place, table: Table) -> None:
    """Also where the spine has columns of its own under the names of the keys: `customer_id` here is another number."""
    text = """
    event_time | cust-ref | customer_id | PRODUCT_ID | at                         | label
    x          | 007      | 17          | 1          | 2026-01-05 00:00:00.000001 | 1
    y          | c2       | 18          | 2          | 2026-01-06                 | 0
    """
    result = """
    event_time | cust-ref | customer_id | PRODUCT_ID | at                         | label | amount | seen
    x          | 007      | 17          | 1          | 2026-01-05 00:00:00.000001 | 1     | 10     | 4
    y          | c2       | 18          | 2          | 2026-01-06                 | 0     | 20     | null
    """
    types = "event_time string, customer_id int, PRODUCT_ID smallint, at timestamp, label int"
    keys = named_columns(["customer_id=cust-ref", "product_id=PRODUCT_ID"])
    spine, expected = table(text, types), table(result, f"{types}, amount double, seen bigint")
    assert_rows(joined(ready, spine, keys=keys, event_time="at"), expected)
    for out_format in ("parquet", "delta"):
        options: Any = {"keys": keys, "event_time": "at", "labels": ["label"], "out_format": out_format}
        report = training_set(ready, spine, service="churn", out=f"lake://work/{out_format}", **options)
        found = ready.spark.read.format(out_format).load(ready.lakes.uri(f"lake://work/{out_format}"))
        assert_rows(found, expected)
        assert (report.null_key_rows, report.null_time_rows, report.matched) == (0, 0, {"amount": 2, "seen": 1})
    note = read_json(ready, f"lake://work/parquet/{MANIFEST}")
    told = note["spine"]
    assert (told["keys"], told["event_time"], told["labels"]) == (keys, "at", ["label"])
    assert [column["name"] for column in note["columns"]] == expected.columns


def test_text_with_other_key_names_has_their_types(ready: Place, table: Table) -> None:
    put_text(ready, "ref,at,product_id\n007,2026-01-05T00:00:00.000001,1", "lake://raw/spine")
    found = joined_csv(ready, keys={"customer_id": "ref"}, event_time="at")
    assert found.rows.drop("customer_id", "event_time").dtypes == [
        ("ref", "string"), ("at", "timestamp"), ("product_id", "bigint"),
    ]  # fmt: skip
    assert [name for name, _ in found.own] == ["ref", "at", "product_id"]


def joined_csv(place: Place, **words: Any) -> Spine:
    return opened(place, "lake://raw/spine", format="csv", **words)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("customer_id,product_id,event_time\nc1,1,12:30:00", "column 'event_time' is no timestamp in 1 row"),
        ("customer_id,product_id,event_time\nc1,1,1767225600\nc1,1,soon", "column 'event_time' is no timestamp in 2 r"),
        ("customer_id,product_id,event_time\nc1,1.0,2026-01-01", "column 'product_id' is no bigint in 1 row"),
        ("customer_id,product_id,event_time\nc1,1,2026-01-01,\nc1,1", "2 rows cannot be read"),
        ("customer_id,product_id\nc1,1", "has no column 'event_time'"),
        (
            "customer_id,product_id,event_time\nc1,1,2026-02-01 00:00:00.000001",
            "1 row with a time in the future, the ne",
        ),
    ],
)
def test_text_that_is_no_key_or_time_is_counted_and_refused_without_its_value(
    ready: Place, text: str, problem: str
) -> None:
    put_text(ready, text, "lake://raw/spine")
    with pytest.raises(DataError, match=r"^Spine.*\nHint: ") as caught:
        joined_csv(ready)
    assert caught.value.problem.startswith(problem)
    assert "soon" not in str(caught.value)


def test_csv_with_pandas_index_and_quoted_lines_is_read(ready: Place) -> None:
    put_text(ready, ',customer_id,product_id,event_time,note\n0,c1,1,2026-01-01,"a ""b"",\nc"\n', "lake://raw/spine")
    spine = joined_csv(ready)
    assert [tuple(row) for row in spine.rows.select("_c0", "customer_id", "note").collect()] == [(0, "c1", 'a "b",\nc')]


def test_time_in_the_future_is_refused_unless_it_is_allowed(ready: Place, table: Table) -> None:
    later = table(
        "product_id | event_time\n1 | 2026-02-03 04:05:06.000007\n1 | 2026-02-02\n1 | 2026-02-01",
        "product_id bigint",
    ).selectExpr("'c1' AS customer_id", "*")
    told = r"2 rows with a time in the future, the newest 2026-02-03T04:05:06.000007Z\nHint: .*--allow-future"
    with pytest.raises(DataError, match=told):
        opened(ready, later)
    with pytest.raises(DataError, match=told):
        training_set(ready, later, service="churn", out="lake://work/out", now=NOW)
    assert files_in(ready, "work") == []
    assert opened(ready, later, allow_future=True).rows.count() == 3
    # by the clock: a spine of this moment is not in its future, also where that comes after the look
    here = later.selectExpr("customer_id", "product_id", "current_timestamp() AS event_time")
    assert joined(ready, here).count() == 3
    with pytest.raises(DataError, match="3 rows with a time in the future"):
        joined(ready, here.selectExpr("customer_id", "product_id", "event_time + interval 1 hour AS event_time"))


UTC = datetime.timezone.utc
YEAR_10000 = 253_402_300_800_000_000


@pytest.mark.parametrize(
    ("folder", "times"),
    [("", [0, 1_800_000_000_000_000]), ("", [YEAR_10000]), ("event_time=2099-01-01/", [0])],
    ids=["among others", "a time that Python does not have", "by a folder's name"],
)
def test_files_with_a_time_in_the_future_are_refused_unless_it_is_allowed(
    ready: Place, folder: str, times: list[int]
) -> None:
    file = local_path(ready.lakes.uri(f"lake://raw/later/{folder}part-0.parquet"))
    file.parent.mkdir(parents=True)
    at = pa.array(times, pa.timestamp("us", "UTC"))
    parquet.write_table(pa.table({"customer_id": ["c"] * len(at), "product_id": [1] * len(at), "event_time": at}), file)
    with pytest.raises(DataError, match="1 row with a time in the future"):
        opened(ready, "lake://raw/later")
    assert opened(ready, "lake://raw/later", allow_future=True).rows.count() == len(times)


def test_files_of_few_rows_are_read_without_spark_where_it_changes_nothing(ready: Place, table: Table) -> None:
    """And the dataset is the same, whoever reads them."""
    times = [datetime.datetime(2026, 1, 5, microsecond=1, tzinfo=UTC), datetime.datetime(2026, 1, 6, tzinfo=UTC), None]
    kind, labels = pa.timestamp("us", "UTC"), pa.array([1, 0, 0], pa.int32())
    rows = pa.table(
        {
            "customer_id": ["007", "c2", "c2"],
            "product_id": [1, 2, None],
            "event_time": pa.array(times, kind),
            "label": labels,
        }
    )
    required = rows.cast(pa.schema([*list(rows.schema)[:3], pa.field("label", pa.int32(), nullable=False)]))
    days = rows.set_column(2, "event_time", rows["event_time"].cast(pa.timestamp("ms", "UTC"), safe=False))
    categories = rows.set_column(0, "customer_id", rows["customer_id"].dictionary_encode())
    old = rows.replace_schema_metadata({"org.apache.spark.legacyDateTime": ""})
    turned = rows.select(["label", "event_time", "product_id", "customer_id"])
    expected = table(JOINED, TYPES)
    expected_of_days = table(JOINED.replace(" 00:00:00.000001", "").replace("| 4", "| null"), TYPES)
    for number, (is_read, parts, options) in enumerate(
        [
            (True, [rows.slice(0, 1), rows.slice(1)], {}),
            (True, [required], {}),
            (False, [rows.slice(0, 1), turned.slice(1)], {}),
            (False, [categories], {}),
            (False, [old], {}),
            (False, [rows.replace_schema_metadata({"org.apache.spark.version": "2.4.8"})], {}),
            (False, [days], {}),
            (False, [rows], {"use_deprecated_int96_timestamps": True}),
        ]
    ):
        path = f"lake://raw/few{number}"
        folder = local_path(ready.lakes.uri(path))
        folder.mkdir(parents=True)
        for part, content in enumerate(parts):
            parquet.write_table(content, folder / f"part-{part}.parquet", **options)
        few = opened(ready, path).few
        assert (few is not None and few.read_alike() is not None) == is_read, number
        report = training_set(ready, path, service="churn", out="lake://work/out")
        found = ready.spark.read.parquet(ready.lakes.uri("lake://work/out"))
        assert_rows(found, expected_of_days if parts[0] is days else expected)
        assert (report.rows, report.null_key_rows, report.null_time_rows) == (3, 1, 1)
    assert opened(ready, "lake://raw/few0", keys={"product_id": "label"}).few is None
    nested = local_path(ready.lakes.uri("lake://raw/few0/older/part-0.parquet"))  # which Spark does not look at
    nested.parent.mkdir()
    parquet.write_table(rows, nested)
    assert training_set(ready, "lake://raw/few0", service="churn", out="lake://work/out").rows == 3


def test_files_that_are_none_are_told_by_spark(ready: Place) -> None:
    put_text(ready, "no parquet", "lake://raw/torn")
    with pytest.raises(DataError, match="Spine 'lake://raw/torn'"):
        opened(ready, "lake://raw/torn")


def test_column_with_a_name_of_ours_and_a_whole_lake_are_refused(ready: Place, table: Table) -> None:
    text = "customer_id | product_id | event_time | _Tidemark_row\n007 | 1 | 2026-01-05 00:00:00 | 1"
    spine = table(text, "customer_id string, product_id bigint, event_time timestamp, _Tidemark_row int")
    with pytest.raises(DataError, match="has a column '_Tidemark_row', a name that is Tidemark's own\nHint: drop it"):
        joined(ready, spine)
    for out in ("lake://work", "lake://work/"):
        with pytest.raises(UsageError, match=f"'{out}' is a whole lake\nHint: name a folder in it"):
            training_set(ready, "lake://raw/spine", service="churn", out=out)
    with pytest.raises(UsageError, match=r"Spark takes '\[' in a path for a pattern"):
        training_set(ready, "lake://raw/spine", service="churn", out="lake://work/set[1]")


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ({"keys": {"customer": "customer_id"}}, "Option --key: 'customer' is no key of service 'churn'"),
        ({"keys": {"customer_id": "custmer"}}, "Option --key: 'custmer' is not a column of the spine"),
        ({"event_time": "at"}, "Option --event-time: 'at' is not a column of the spine"),
        ({"labels": ["lable"]}, "Option --label: 'lable' is not a column of the spine"),
        ({"labels": ["product_id"]}, "Option --label: 'product_id' is a key or the time of the spine"),
        ({"keys": {"product_id": "label"}, "labels": ["label"]}, "Option --label: 'label' is a key or the time"),
        ({"keys": {"customer_id": "label"}}, "Spine: key 'customer_id' is int, group 'spend' declares string"),
        ({"event_time": "label"}, "Spine: event_time is int, expected timestamp"),
    ],
)
def test_words_that_do_not_fit_the_spine_are_refused(
    ready: Place, table: Table, words: dict[str, Any], problem: str
) -> None:
    with pytest.raises(TidemarkError, match=r"\nHint: ") as caught:
        opened(ready, table(SPINE, "product_id bigint, label int"), **words)
    assert str(caught.value).startswith(problem)


def test_label_that_a_feature_reads_is_refused(ready: Place, table: Table) -> None:
    spine = table(SPINE.replace("label", "seen "), "product_id bigint, seen int")
    with pytest.raises(UsageError, match=r"feature 'visits\.seen' reads source 'raw''s column 'seen'"):
        training_set(ready, spine, service="churn", out="lake://work/out", labels=["seen"], prefix=True)
    with pytest.raises(UsageError, match="column 'seen' comes from the spine and from group 'visits'"):
        training_set(ready, spine, service="churn", out="lake://work/out")


def test_key_column_pairs_are_read_and_mistakes_are_named() -> None:
    assert named_columns(["a=b=c", "d=e"]) == {"a": "b=c", "d": "e"}
    for pairs, problem in ((["a"], "'a' is not KEY=COLUMN"), (["a="], "'a='"), (["a=b", "a=c"], "'a' is given twice")):
        with pytest.raises(UsageError, match=problem):
            named_columns(pairs)


def test_whole_numbers_narrower_than_the_key_are_taken_and_wider_ones_are_not(ready: Place, table: Table) -> None:
    for kind in ("tinyint", "smallint", "int", "bigint"):
        assert joined(ready, table(SPINE, f"product_id {kind}")).where("seen = 4").count() == 1
    with pytest.raises(DataError, match=r"key 'product_id' is decimal\(10,0\), group 'visits' declares bigint"):
        joined(ready, table(SPINE, "product_id decimal(10,0)"))
