"""compute, the verb, over real Delta and Parquet tables: what is written, what is refused, and what stays as it was."""

from __future__ import annotations

import dataclasses
import threading
from contextlib import suppress
from typing import Any

import pytest
from pyspark.sql import DataFrame, DataFrameWriter, SparkSession

from connectors.file_store import local_path
from connectors.offline_tables import open_table, session_conf
from feature_defs import Aggregate, Entity, Expectation, Feature, FeatureGroup, Service, Source
from feature_defs.checks import check
from feature_defs.errors import DataError, LakeError, UsageError
from feature_defs.model import Definition, Definitions
from jobs.apply import apply
from jobs.compute import ComputedGroup, ComputeReport, GroupsFailed, compute
from jobs.place import Place
from jobs.replay import replay
from jobs.show import show
from tests.lab import NOW, Table, files_in, folders_in, of_kind, put, put_text, register, write_definitions
from tests.pipe_tables import assert_rows

customer = Entity("customer", keys={"customer_id": "string"})
SCHEMA = {"customer_id": "string", "amount": "double", "at": "timestamp"}
purchases = Source("purchases", path="lake://raw/purchases", format="parquet", event_time="at", schema=SCHEMA)
TYPES = "amount double, at timestamp"
RAW = """
customer_id | amount | at
c1          | 10     | 2026-01-01
c1          | 30     | 2026-01-03
c2          | -5     | 2026-01-02
null        | 7      | 2026-01-02
c3          | 8      | null
null        | 9      | null
"""


def spend(**options: Any) -> FeatureGroup:
    """A row-level group over the purchases."""
    kept = {"source": purchases, "features": [Feature("amount", "double")], **options}
    return FeatureGroup("spend", entity=customer, **kept)


def in_force(place: Place, group: FeatureGroup, *others: Definition) -> FeatureGroup:
    source = group.source if isinstance(group.source, Source) else purchases
    register(place, customer, source, group, *others)
    return group


def computed(place: Place) -> ComputedGroup:
    report = compute(place, now=NOW, full=True)
    return report.groups[0]


@pytest.fixture
def raw(place: Place, table: Table) -> DataFrame:
    rows = table(RAW, TYPES)
    put(place, rows, "lake://raw/purchases")
    return rows


def state(place: Place, group: FeatureGroup) -> tuple[Any, ...]:
    """All that a failed run must leave alone: version, rows, and what lies in the lake."""
    kept = place.table(group)
    version = kept.version()
    rows = sorted(map(str, kept.read().collect())) if version is not None else []
    return version, rows, place.quarantine(group).version(), manifests(place)


def manifests(place: Place) -> list[str]:
    return [
        path
        for path in files_in(place, "features")
        if path.endswith(".json") and "_registry" not in path and "_results" not in path
    ]


def leftovers(place: Place) -> list[str]:
    """What only a run that did not end can leave behind. A Delta table's unlisted files are its vacuum's to remove."""
    found = [path for path in folders_in(place, "features") if "_temporary" in path or ".spark-staging" in path]
    return found + [path for path in files_in(place, "features") if "/._" in path]


# what is written


@pytest.mark.parametrize("offline", ["delta", "parquet", "catalog"])
def test_good_rows_are_in_the_table_and_bad_ones_in_quarantine_with_reasons(
    place: Place, table: Table, raw: DataFrame, offline: str
) -> None:
    place, offline = of_kind(place, offline)
    group = in_force(place, spend(offline=offline))
    found = computed(place)
    assert (found.rows, found.rejected, found.version) == (3, 3, 1)
    expected = table(
        """
        customer_id | event_time | created_time | amount
        c1          | 2026-01-01 | null         | 10
        c1          | 2026-01-03 | null         | 30
        c2          | 2026-01-02 | null         | -5
        """,
        "amount double",
    )
    assert_rows(place.table(group).read(), expected)
    rejected = place.quarantine(group).read().selectExpr("reason", "get_json_object(row, '$.amount') AS amount")
    expected = table(
        """
        reason                  | amount
        key customer_id is null | 7.0
        event_time is null      | 8.0
        key customer_id is null | 9.0
        """
    )
    assert_rows(rejected, expected)
    assert found.table_version == place.table(group).version()
    note = place.table(group).note(found.table_version)
    snapshot = place.applied()
    assert (note["verb"], note["group"], note["snapshot"]) == ("compute", "spend", snapshot.number)
    assert note["fingerprint"] == snapshot.fingerprint("spend")
    assert place.quarantine(group).note(1)["run"] == note["run"]


@pytest.mark.parametrize("offline", ["delta", "parquet"])
def test_second_run_gives_the_same_rows_as_the_next_version(place: Place, raw: DataFrame, offline: str) -> None:
    group = in_force(place, spend(offline=offline))
    first = computed(place)
    before = place.table(group).read()
    second = computed(place)
    assert second.table_version == first.table_version + 1
    assert (second.rows, second.rejected) == (first.rows, first.rejected)
    assert_rows(place.table(group).read(), before)
    assert_rows(place.table(group).read(first.table_version), before)
    with pytest.raises(LakeError, match=f"has no version 9.*newest version is {second.table_version}|has no version 9"):
        place.table(group).read(9)


def test_quarantine_is_emptied_once_the_source_is_clean(place: Place, table: Table, raw: DataFrame) -> None:
    group = in_force(place, spend(offline="parquet"))
    assert computed(place).rejected == 3
    put(place, table("customer_id | amount | at\nc1 | 1 | 2026-01-01", TYPES), "lake://raw/purchases")
    assert computed(place).rejected == 0
    assert place.quarantine(group).read().count() == 0


def test_without_a_bad_row_there_is_no_quarantine(place: Place, table: Table) -> None:
    put(place, table("customer_id | amount | at\nc1 | 1 | 2026-01-01", TYPES), "lake://raw/purchases")
    group = in_force(place, spend(offline="parquet"))
    computed(place)
    assert place.quarantine(group).version() is None


def test_filter_drops_rows_before_anything_is_rejected(place: Place, raw: DataFrame) -> None:
    some = dataclasses.replace(purchases, filter="amount > 0 and customer_id is not null -- a remark")
    in_force(place, spend(source=some, offline="parquet"))
    found = computed(place)
    assert (found.rows, found.rejected) == (2, 1)


def test_expressions_may_end_in_a_remark_and_use_one_another(place: Place, table: Table, raw: DataFrame) -> None:
    features = [
        Feature("tenth", "double", "twice / 20 -- of the amount"),
        Feature("twice", "double", "amount * 2 -- doubled"),
    ]
    remark = [Expectation("small", "twice < 1000 -- we hope", severity="stop")]
    group = in_force(place, spend(features=features, expectations=remark, offline="parquet"))
    computed(place)
    expected = table("tenth | twice\n1 | 20\n3 | 60\n-0.5 | -10", "tenth double, twice double")
    assert_rows(place.table(group).read().select("tenth", "twice"), expected)


def test_aggregates_may_end_in_a_remark(place: Place, table: Table, raw: DataFrame) -> None:
    total = Aggregate("sum", "amount -- euro", where="amount > 0 -- no refunds")
    group = in_force(place, spend(features=[Feature("total", "double", total)], offline="parquet"))
    computed(place)
    assert_rows(place.table(group).read().select("total"), table("total\n10\n40\nnull", "total double"))


def test_columns_of_a_source_may_have_any_name(place: Place, table: Table) -> None:
    rows = table("customer_id | at | net amount | order.id\nc1 | 2026-01-01 | 4 | o1\nnull | null | 5 | o2", "at date")
    put(place, rows, "lake://raw/purchases")
    features = [Feature("net", "string", "`net amount`"), Feature("order_id", "string", "`order.id`")]
    loose = dataclasses.replace(purchases, schema=None)
    group = in_force(place, spend(source=loose, features=features, offline="parquet"))
    assert (computed(place).rows, computed(place).rejected) == (1, 1)
    assert_rows(place.table(group).read().select("net", "order_id"), table("net | order_id\n4 | o1"))


# expectations


RULES = [
    Expectation("not_negative", "amount >= 0", severity="quarantine"),
    Expectation("below_25", "amount < 25", severity="warn"),
]


def test_rules_quarantine_warn_and_count(place: Place, table: Table, raw: DataFrame) -> None:
    features = [
        Feature("amount", "double"),
        Feature("size", "string", "if(amount > 20, 'big', 'small')", allowed_values=["small", "medium"]),
    ]
    group = in_force(place, spend(features=features, expectations=RULES))
    report = compute(place, now=NOW, full=True)
    found = report.groups[0]
    assert (found.rows, found.rejected) == (2, 4)
    assert found.broken_rules == {"not_negative": 1, "below_25": 1, "size_allowed_values": 1}
    assert "spend: 1 row broke 'size_allowed_values'" in report.text()
    reasons = place.quarantine(group).read().groupBy("reason").count()
    expected = table(
        "reason | count\nnot_negative | 1\nkey customer_id is null | 2\nevent_time is null | 1", "count bigint"
    )
    assert_rows(reasons, expected)


def test_condition_that_is_null_holds(place: Place, table: Table) -> None:
    put(place, table("customer_id | amount | at\nc1 | null | 2026-01-01", TYPES), "lake://raw/purchases")
    stop = [Expectation("positive", "amount > 0", severity="stop"), *RULES]
    in_force(place, spend(expectations=stop, offline="parquet"))
    assert (computed(place).rows, computed(place).rejected) == (1, 0)


# what the rows tell before anything is written


def test_keys_have_the_type_of_the_entity_in_the_table(place: Place, table: Table) -> None:
    """A narrower whole number is widened; anything else is refused, also when the source declares no schema."""
    number = Entity("customer", keys={"customer_id": "bigint"})
    undeclared = dataclasses.replace(purchases, schema=None)
    group = spend(source=undeclared)
    register(place, number, undeclared, dataclasses.replace(group, entity=number))
    put(
        place,
        table("customer_id | amount | at\n7 | 1 | 2026-01-01", f"customer_id int, {TYPES}"),
        "lake://raw/purchases",
    )
    computed(place)
    assert dict(place.table(group).read().dtypes)["customer_id"] == "bigint"
    put(place, table("customer_id | amount | at\nx | 1 | 2026-01-01", TYPES), "lake://raw/purchases")
    with pytest.raises(DataError, match="key 'customer_id' is string in the source's rows, declared bigint"):
        compute(place, now=NOW)
    assert place.table(group).version() == 0


def test_json_column_that_no_row_has_is_told(place: Place) -> None:
    """A renamed field is null in every row; there is no header to say so."""
    logs = dataclasses.replace(purchases, format="json")
    in_force(place, spend(source=logs))
    put_text(place, '{"customer_id": "c1", "amt": 1.5, "at": "2026-01-01T00:00:00Z"}\n', "lake://raw/purchases")
    report = compute(place, now=NOW, full=True)
    assert report.groups[0].empty_columns == ("amount",)
    assert "spend: null in every row, has the source been renamed? amount" in report.text()


def test_row_dated_after_now_does_not_move_the_grid(place: Place, table: Table) -> None:
    """One wrong date must not state zeros for days that nobody has data of yet; it is counted."""
    group = in_force(place, spend(every="1d", features=[Feature("n", "bigint", Aggregate("count"))]))
    put(
        place,
        table("customer_id | amount | at\nc1 | 1 | 2026-01-03\nc1 | 1 | 2099-01-01", TYPES),
        "lake://raw/purchases",
    )
    found = computed(place)
    assert (found.rows, found.future_rows) == (1, 1)
    assert_rows(
        place.table(group).read().select("event_time", "n"), table("event_time | n\n2026-01-03 | 1", "n bigint")
    )


def test_one_stray_old_row_does_not_explode_the_grid(place: Place, table: Table) -> None:
    """An hourly grid from the year 1 on would be millions of rows for one entity."""
    group = in_force(place, spend(every="1h", features=[Feature("n", "bigint", Aggregate("count"))]))
    put(
        place,
        table("customer_id | amount | at\nc1 | 1 | 2026-01-03\nc1 | 1 | 0001-01-01", TYPES),
        "lake://raw/purchases",
    )
    with pytest.raises(DataError, match=r"from its oldest row, of 0*1-01-01, is 17,7.* points for one entity"):
        compute(place, now=NOW)
    assert place.table(group).version() is None


def test_one_group_that_fails_does_not_keep_the_others_from_being_computed(place: Place, raw: DataFrame) -> None:
    """All failures are told at the end, with what was done, and the first one's exit code."""
    lost = dataclasses.replace(purchases, name="lost", path="lake://raw/lost")
    bad = dataclasses.replace(spend(source=lost), name="a_bad_one")
    register(place, customer, purchases, lost, spend(), bad)
    with pytest.raises(GroupsFailed, match="1 of 2 groups failed") as failed:
        compute(place, now=NOW)
    assert "Source 'lost': there is no parquet data" in str(failed.value)
    assert "3 rows computed" in str(failed.value)
    assert failed.value.exit_code == DataError.exit_code
    assert failed.value.as_plain()["report"]["rows"] == 3
    assert place.table(spend()).version() == 0


@pytest.mark.parametrize("offline", ["delta", "parquet"])
@pytest.mark.parametrize("blocked", ["spend/v1", "spend/v1_quarantine"])
def test_lake_that_cannot_be_written_is_told_before_anything_is(
    place: Place, raw: DataFrame, offline: str, blocked: str
) -> None:
    """A file in place of a folder; the quarantine counts too, or a job would end between the two tables."""
    group = in_force(place, spend(offline=offline))
    file = local_path(place.lakes.uri(f"lake://features/{blocked}"))
    file.parent.mkdir(parents=True)
    file.write_text("not a folder")
    with pytest.raises(LakeError, match=r"cannot (create|list) it: Not a directory"):
        compute(place, now=NOW)
    assert manifests(place) == []
    file.unlink()
    assert place.table(group).version() is None


@pytest.mark.parametrize("offline", ["delta", "parquet"])
def test_broken_stop_rule_leaves_table_and_quarantine_as_they_were(place: Place, raw: DataFrame, offline: str) -> None:
    group = in_force(place, spend(offline=offline))
    computed(place)
    before, files = state(place, group), folders_in(place, "features")
    in_force(place, spend(offline=offline, expectations=[Expectation("positive", "amount > 0", severity="stop")]))
    with pytest.raises(DataError) as caught:
        compute(place, now=NOW)
    assert str(caught.value) == (
        "FeatureGroup 'spend': expectation 'positive' of severity stop is broken\n"
        "Hint: correct the source, or the rule; the offline table is as it was"
    )
    assert state(place, group) == before
    assert leftovers(place) == []
    assert folders_in(place, "features") == files


def test_table_does_not_exist_after_a_first_run_that_failed(place: Place, raw: DataFrame) -> None:
    broken = [Expectation("positive", "amount > 0", severity="stop")]
    for offline in ("delta", "parquet"):
        group = in_force(place, spend(offline=offline, expectations=broken))
        with pytest.raises(DataError, match="'positive' of severity stop"):
            compute(place, now=NOW)
        assert place.table(group).version() is None
        with pytest.raises(LakeError, match="does not exist yet"):
            place.table(group).read()


# what is refused: nothing is written, and the message says what to do


def refused(place: Place, group: FeatureGroup) -> DataError:
    """The error of a compute that must change nothing."""
    in_force(place, group)
    before = state(place, group)
    with pytest.raises(DataError) as caught:
        compute(place, now=NOW)
    assert state(place, group) == before
    assert leftovers(place) == []
    return caught.value


@pytest.mark.parametrize(
    ("options", "subject", "what"),
    [
        ({"features": [Feature("x", "double", "lag(amount) over (order by at)")]}, "Feature 'spend.x'", "expression"),
        ({"features": [Feature("x", "bigint", Aggregate("count", where="row_number() over (order by at) = 1"))]},
         "Feature 'spend.x'", "where"),
        ({"expectations": [Expectation("usual", "amount < avg(amount) over ()")]}, "FeatureGroup 'spend'",
         "expectation 'usual'"),
    ],
)  # fmt: skip
def test_window_function_that_was_registered_before_it_was_refused_is_refused_by_compute(
    place: Place, raw: DataFrame, options: dict[str, Any], subject: str, what: str
) -> None:
    """As `check` does; what reads the registry still reads it."""
    group = spend(**options)
    faulty = Definitions({"customer": customer}, {"purchases": purchases}, {"spend": group}, {})
    place.registry.commit(faulty, after=0, applied_at="2026-01-01T00:00:00+00:00", applied_by="test", message="")
    _, (fault,) = check([customer, purchases, group])
    for verb in (compute, lambda place, now: replay(place, "spend", now=now)):
        with pytest.raises(DataError, match=rf"^{subject}: {what} has a window function \(OVER\): ") as caught:
            verb(place, now=NOW)
        assert (fault.subject, fault.problem, fault.hint) == (subject, caught.value.problem, caught.value.hint)
    assert manifests(place) == []
    assert "spend" in show(place, "spend").text()


def test_source_that_is_missing_empty_or_of_another_format_is_refused(place: Place, table: Table) -> None:
    put(place, table("customer_id | amount | at\n", TYPES), "lake://raw/empty")
    put_text(place, "customer_id,amount,at\n", "lake://raw/text")
    folder = local_path(place.lakes.uri("lake://raw/hollow"))
    folder.mkdir()
    told = {
        (path, source_format): refused(
            place,
            spend(source=dataclasses.replace(purchases, path=f"lake://raw/{path}", format=source_format)),
        ).problem.split(" at ")[0].split(": file")[0]
        for path, source_format in [
            ("nothing", "parquet"), ("nothing", "delta"), ("nothing", "csv"), ("nothing", "json"),
            ("hollow", "parquet"), ("hollow", "delta"), ("hollow", "csv"), ("hollow", "json"),
            ("empty", "parquet"), ("text", "csv"), ("empty", "delta"), ("text", "parquet"),
        ]
    }  # fmt: skip
    assert told == {
        ("nothing", "parquet"): "there is no parquet data",
        ("nothing", "delta"): "there is no delta data",
        ("nothing", "csv"): "there is no csv data",
        ("nothing", "json"): "there is no json data",
        ("hollow", "parquet"): "there is no parquet data",
        ("hollow", "delta"): "there is no delta data",
        ("hollow", "csv"): "there is no csv data",
        ("hollow", "json"): "holds no rows",
        ("empty", "parquet"): "holds no rows",
        ("text", "csv"): "holds no rows",
        ("empty", "delta"): "there is no delta data",
        ("text", "parquet"): "a file cannot be read: FAILED_READ_FILE.CANNOT_READ_FILE_FOOTER",
    }


def test_changed_schema_is_refused_with_every_difference(place: Place, table: Table, raw: DataFrame) -> None:
    changed = table("customer_id | amounts | at\nc1 | 1 | 2026-01-01", "at string")
    put(place, changed, "lake://raw/purchases")
    error = refused(place, spend(offline="parquet"))
    assert error.problem == (
        "column 'amount' is missing (did you mean 'amounts'? customer_id, amounts, at); "
        "column 'at' is string, declared timestamp"
    )


def test_extra_columns_are_left_out_and_reported(place: Place, table: Table) -> None:
    rows = table("note | customer_id | amount | at | shop\nx | c1 | 1 | 2026-01-01 | s", TYPES)
    put(place, rows, "lake://raw/purchases")
    put_text(place, "note,AMOUNT,at,customer_id\nx,1,2026-01-01,c1\n", "lake://raw/text")
    for source in (purchases, dataclasses.replace(purchases, path="lake://raw/text", format="csv")):
        in_force(place, spend(source=source, offline="parquet"))
        report = compute(place, now=NOW)
        extra = ("note", "shop") if source is purchases else ("note",)
        assert report.groups[0].extra_columns == extra
        assert f"spend: the source has columns its schema lacks: {', '.join(extra)}" in report.text()
        assert report.rows == 1


def test_text_rows_that_do_not_fit_are_quarantined_whatever_the_features_read(place: Place, table: Table) -> None:
    put_text(
        place,
        '{"customer_id": "c1", "amount": 1.5, "at": "2026-01-01T00:00:00"}\n'
        '{"customer_id": "c2", "amount": "much", "at": "2026-01-01T00:00:00"}\n'
        '{"customer_id": "c3", "amount": 2.5, "at": "yesterday"}\n'
        "no json at all\n",
        "lake://raw/json",
    )
    put_text(
        place,
        "customer_id,amount,at\nc1,1.5,2026-01-01\nc2,much,2026-01-01\nc3,2.5,yesterday\nc4\n",
        "lake://raw/csv",
    )
    amount, visits = Feature("amount", "double"), Feature("visits", "bigint", Aggregate("count"))
    expected = table("reason | count\nrow does not fit the schema | 3", "count bigint")
    for text_format, feature in [("json", amount), ("json", visits), ("csv", amount), ("csv", visits)]:
        source = dataclasses.replace(purchases, path=f"lake://raw/{text_format}", format=text_format)
        group = in_force(place, spend(source=source, features=[feature], offline="parquet"))
        found = computed(place)
        assert (found.rows, found.rejected) == (1, 3)
        rejected = place.quarantine(group).read()
        assert_rows(rejected.groupBy("reason").count(), expected)
        assert rejected.where("row LIKE '%much%'").count() == 1


def test_rejected_rows_are_told_with_their_reasons_and_where_they_are(place: Place) -> None:
    """By compute, for the rows of this run, and by show; a row is told once, with its first fault."""
    lines = ["c1,1,2026-01-01", "c2,much,2026-01-01", "c3", ",1,2026-01-01", ",2,", "c4,3,", 'c5,"1,2026-01-01']
    put_text(place, "\n".join(["customer_id,amount,at", *lines]), "lake://raw/csv")
    text = dataclasses.replace(purchases, path="lake://raw/csv", format="csv")
    group = in_force(place, spend(source=text, offline="parquet"))
    report = compute(place, now=NOW)
    (found,) = report.groups
    assert (found.rows, found.rejected) == (1, 6)
    why = {"row does not fit the schema": 2, "key customer_id is null": 2, "row ends within quotes": 1}
    assert found.reasons == {**why, "event_time is null": 1}
    assert list(found.reasons.values()) == [2, 2, 1, 1]
    where = place.quarantine_uri(group)
    assert place.quarantine(group).read().count() == 6
    assert local_path(found.quarantine).is_dir()
    assert "  spend: 2 rows rejected: key customer_id is null\n" in report.text()
    assert f"  spend: rejected rows are in {where}\n" in report.text()
    shown = show(place, "spend")
    assert (shown.results[0].reasons, shown.quarantine) == (found.reasons, where)
    assert f"  rejected in run {report.run}: 1 row, row ends within quotes\n" in shown.text()
    assert f"  quarantine: {where}\n" in shown.text()
    put_text(place, "customer_id,amount,at\nc1,1,2026-01-01", "lake://raw/csv")
    report = compute(place, now=NOW)
    assert (report.groups[0].reasons, report.groups[0].quarantine) == ({}, "")
    assert "rejected:" not in report.text()


def test_quotes_of_csv_are_read_as_other_programs_write_them(place: Place) -> None:
    """Also with Windows' line ends; a row that goes on in the next line only where the source says so."""
    schema = {"customer_id": "string", "note": "string", "at": "timestamp"}
    notes = Source("notes", path="lake://raw/notes", format="csv", event_time="at", schema=schema)
    lines = [
        "customer_id,note,at",
        'c1,"a ""b""",2026-01-01',
        'c2,"say ""hi"", you",2026-01-01',
        'c3,"one\ntwo",2026-01-01',
        'c4,5" pipe,2026-01-01',
        'c5,"",2026-01-01',
        "c6,x,2026-01-01,y",
        'c7,"c:\\",2026-01-01',
        f'c8,"{"long " * 20_000}",2026-01-01,y',
    ]
    plain = {"c1": 'a "b"', "c2": 'say "hi", you', "c4": '5" pipe', "c5": None, "c7": "c:\\"}
    for end in ("\n", "\r\n"):
        put_text(place, end.join(lines) + end, "lake://raw/notes")
        for multi_line, read, why in (
            (False, plain, {"row ends within quotes": 1, "row does not fit the schema": 3}),
            (True, {**plain, "c3": "one\ntwo"}, {"row does not fit the schema": 2}),
        ):
            source = dataclasses.replace(notes, multi_line=multi_line)
            group = in_force(place, spend(source=source, features=[Feature("note", "string")], offline="parquet"))
            assert computed(place).rejected == sum(why.values())
            assert {row["customer_id"]: row["note"] for row in place.table(group).read().collect()} == read
            counts = place.quarantine(group).read().groupBy("reason").count().collect()
            assert {row["reason"]: row["count"] for row in counts} == why


@pytest.mark.parametrize("multi_line", [False, True])
def test_csv_header_without_a_declared_column_or_unlike_the_other_files_is_refused(
    place: Place, multi_line: bool
) -> None:
    text = dataclasses.replace(purchases, path="lake://raw/csv", format="csv", multi_line=multi_line)
    put_text(place, "customer_id,sum,at\nc1,1,2026-01-01\n", "lake://raw/csv")
    error = refused(place, spend(source=text, offline="parquet"))
    assert error.problem.startswith("column 'amount' is missing (")
    put_text(place, "customer_id,amount,at\nc1,1,2026-01-01\n", "lake://raw/csv")
    folder = local_path(place.lakes.uri("lake://raw/csv"))
    (folder / "part-1").write_text("customer_id,at,amount\nc1,2026-01-01,1\n")
    error = refused(place, spend(source=text, offline="parquet"))
    assert error.problem == "a csv file's header is not that of the others"


def test_source_without_a_usable_row_is_refused_with_the_reasons(place: Place, table: Table) -> None:
    rows = table("customer_id | amount | at\nnull | 1 | 2026-01-01\nnull | 2 | null\nc1 | 3 | null", TYPES)
    put(place, rows, "lake://raw/purchases")
    error = refused(place, spend(offline="parquet"))
    assert error.problem == "no row of 3 can be used: key customer_id is null (2), event_time is null (1)"
    nothing = dataclasses.replace(purchases, filter="amount > 99")
    error = refused(place, spend(source=nothing, offline="parquet"))
    assert error.problem == "no row of 0 can be used: the source's filter keeps none"


@pytest.mark.parametrize(
    ("feature", "subject", "problem"),
    [
        (
            Feature("x", "double", "no_such_function(amount)"),
            "Feature 'spend.x'",
            "expression `no_such_function(amount)`: [UNRESOLVED_ROUTINE]",
        ),
        (Feature("x", "int", "amount"), "Feature 'spend.x'", "is declared int, but its expression gives double"),
        (Feature("x", "string"), "Feature 'spend.x'", "expression `x`: [UNRESOLVED_COLUMN.WITH_SUGGESTION]"),
        (
            Feature("x", "double", Aggregate("avg", "amountt")),
            "Feature 'spend.x'",
            "expression `amountt`: [UNRESOLVED_COLUMN",
        ),
        (Feature("x", "bigint", Aggregate("sum", "amount")), "Feature 'spend.x'", "is declared bigint, but"),
        (
            Feature("x", "decimal(10,2)", "cast(amount as decimal(12,4))"),
            "Feature 'spend.x'",
            "is declared decimal(10,2), but its expression gives decimal(12,4)",
        ),
        (
            Feature("x", "decimal(6,2)", "cast(amount as int)"),
            "Feature 'spend.x'",
            "is declared decimal(6,2), but its expression gives int",
        ),
    ],
)
def test_feature_that_spark_cannot_compute_as_declared_is_refused(
    place: Place, raw: DataFrame, feature: Feature, subject: str, problem: str
) -> None:
    loose = dataclasses.replace(purchases, schema=None)
    error = refused(place, spend(source=loose, features=[feature], offline="parquet"))
    assert error.subject == subject
    assert problem in error.problem
    assert "\n" not in error.problem


@pytest.mark.parametrize(
    ("expression", "problem", "hint"),
    [
        ("sum(amount)", "[MISSING_GROUP_BY] The query does not include a GROUP BY clause.", 'write Aggregate("sum",'),
        ("max(at) > at", "[MISSING_GROUP_BY]", 'write Aggregate("sum",'),
        ("rank()", "[WINDOW_FUNCTION_WITHOUT_OVER_CLAUSE]", "write an Aggregate, or a transform"),
        ("explode(array(amount, 1D))", "[UNSUPPORTED_GENERATOR.NESTED_IN_EXPRESSIONS]", "in a transform"),
        ("amount > 3 =", "[PARSE_SYNTAX_ERROR] Syntax error at or near ')'.", "correct it"),
        ("amout", "name `amout` cannot be resolved. Did you mean one of the following? [`amount`, ", "correct it"),
        ("readable", "name `readable` cannot be resolved. Did you mean one of the following? [`", "correct it"),
        (Aggregate("max", "sum(amount)"), "[MISSING_GROUP_BY]", 'write Aggregate("sum",'),
        (Aggregate("max", "amout"), "name `amout` cannot be resolved. Did you mean one of the following? [`amount`, ",
         "correct it"),
    ],
)  # fmt: skip
def test_what_spark_says_of_an_expression_is_told_of_its_feature(
    place: Place, raw: DataFrame, expression: str | Aggregate, problem: str, hint: str
) -> None:
    """Of that one among others, without a plan, and without columns that are no user's."""
    fine = Aggregate("count") if isinstance(expression, Aggregate) else "amount"
    kind = "bigint" if isinstance(expression, Aggregate) else "double"
    features = [Feature("a", kind, fine), Feature("x", "double", expression), Feature("b", kind, fine)]
    loose = dataclasses.replace(purchases, schema=None)
    error = refused(place, spend(source=loose, features=features, offline="parquet"))
    assert error.subject == "Feature 'spend.x'"
    assert problem in error.problem
    assert hint in error.hint
    assert "_tidemark" not in error.problem
    assert "\n" not in error.problem


def test_types_that_hold_every_value_of_the_expression_are_allowed(place: Place, raw: DataFrame) -> None:
    features = [
        Feature("a", "bigint", "cast(amount as int)"),
        Feature("b", "decimal(14,2)", "cast(amount as decimal(12,2))"),
        Feature("c", "decimal(10,0)", "cast(amount as int)"),
        Feature("d", "timestamp", "cast(at as date)"),
        Feature("e", "array<double>", "null"),
    ]
    group = in_force(place, spend(features=features, offline="parquet"))
    computed(place)
    assert dict(place.table(group).read().dtypes)["b"] == "decimal(14,2)"
    total = Feature("t", "decimal(12,2)", Aggregate("sum", "cast(amount as decimal(10,2))"))
    for every in (None, "1d"):
        in_force(place, spend(features=[total], every=every, offline="parquet"))
        computed(place)


@pytest.mark.parametrize("offline", ["delta", "parquet"])
def test_expression_that_fails_on_a_row_is_told_without_the_row(place: Place, raw: DataFrame, offline: str) -> None:
    for expression, condition in [
        ("1 / (amount - 30)", "DIVIDE_BY_ZERO"),
        ("cast(concat(customer_id, '-secret') as double)", "CAST_INVALID_INPUT"),
    ]:
        error = refused(place, spend(features=[Feature("x", "double", expression)], offline=offline))
        assert error.problem.startswith(f"a row breaks an expression: {condition} in `")
        assert expression in error.problem
        assert "c1-secret" not in str(error)


# transforms, snapshots, names


DEFINITIONS = """
from pyspark.sql import functions as F
from feature_defs import Entity, Feature, FeatureGroup, Source

customer = Entity("customer", keys={"customer_id": "string"})
purchases = Source("purchases", path="lake://raw/json", format="json", event_time="at",
                   schema={"customer_id": "string", "amount": "double", "at": "timestamp"})

def twice(rows):
    return rows.select("customer_id", "at", (F.col("amount") * FACTOR).alias("amount"))

FACTOR = 2
spend = FeatureGroup("spend", entity=customer, source=purchases, transform=twice, offline="parquet",
                     features=[Feature("amount", "double")])
"""


def test_transform_runs_on_the_rows_that_could_be_read(place: Place, table: Table) -> None:
    put_text(
        place, '{"customer_id": "c1", "amount": 1.5, "at": "2026-01-01"}\n{"customer_id": "c2"]\n', "lake://raw/json"
    )
    write_definitions(place, DEFINITIONS)
    apply(place)
    found = computed(place)
    assert (found.rows, found.rejected) == (1, 1)
    group = place.applied().definitions.groups["spend"]
    assert_rows(place.table(group).read().select("amount"), table("amount\n3", "amount double"))
    assert_rows(place.quarantine(group).read().select("reason"), table("reason\nrow does not fit the schema"))


def test_transform_that_changed_since_apply_is_refused(place: Place) -> None:
    put_text(place, '{"customer_id": "c1", "amount": 1.5, "at": "2026-01-01"}\n', "lake://raw/json")
    write_definitions(place, DEFINITIONS)
    apply(place)
    write_definitions(place, DEFINITIONS.replace("FACTOR = 2", "FACTOR = 3"))
    with pytest.raises(DataError, match="transform in the definition files is not the one that was applied"):
        compute(place, now=NOW)
    assert manifests(place) == []


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ('rows.select("customer_id", "at", F.col("amounts"))', "raised AnalysisException: [UNRESOLVED_COLUMN"),
        ("rows.with_column", "raised PySparkAttributeError: [ATTRIBUTE_NOT_SUPPORTED]"),
        ('print("looked")', "raised AttributeError: 'NoneType' object has no attribute 'columns'"),
    ],
)
def test_transform_that_raises_is_told_with_its_line(place: Place, body: str, problem: str) -> None:
    put_text(place, '{"customer_id": "c1", "amount": 1.5, "at": "2026-01-01"}\n', "lake://raw/json")
    good = 'rows.select("customer_id", "at", (F.col("amount") * FACTOR).alias("amount"))'
    write_definitions(place, DEFINITIONS.replace(good, body))
    apply(place)
    with pytest.raises(DataError, match=r"features.py:(10|1)$") as caught:
        compute(place, now=NOW)
    assert caught.value.subject == "Transform 'twice'"
    assert caught.value.problem.startswith(problem)
    assert "\n" not in caught.value.problem


UDFS = """
from pyspark.sql.types import DoubleType

def half(x):
    return 1.0 if x is None else json.loads("{") if x > 9 else x / 2

DDL = "customer_id string, at timestamp, amount double"

@F.udf(returnType=DoubleType())
def halved(x):
    return half(x)

def halves(batches):
    for batch in batches:
        batch["amount"] = batch["amount"].map(half)
        yield batch
"""


@pytest.mark.parametrize(
    "body",
    [
        'rows.select("customer_id", "at", halved("amount").alias("amount"))',
        'rows.select("customer_id", "at", "amount").mapInPandas(halves, DDL)',
        'rows.select("customer_id", "at", "amount") if rows.where(halved("amount") > 0).count() else rows',
    ],
)
def test_python_of_a_transform_that_raises_in_a_task_is_told_with_its_line(place: Place, body: str) -> None:
    """It may call what stands beside it in its file, which no task can import."""
    good = 'rows.select("customer_id", "at", (F.col("amount") * FACTOR).alias("amount"))'
    text = f"import json\n{DEFINITIONS}{UDFS}".replace(good, body)
    line = text.splitlines().index(UDFS.splitlines()[4]) + 1
    write_definitions(place, text)
    apply(place)
    put_text(place, '{"customer_id": "c1", "amount": 3, "at": "2026-01-01"}\n', "lake://raw/json")
    assert computed(place).rows == 1
    put_text(place, '{"customer_id": "c1", "amount": 10, "at": "2026-01-01"}\n', "lake://raw/json")
    with pytest.raises(DataError, match=rf"\nHint: correct \S+features.py:{line}\b") as caught:
        compute(place, now=NOW)
    told = "raised JSONDecodeError: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"
    assert caught.value.problem.endswith(told)


def test_registry_without_a_snapshot_and_unknown_groups_are_refused(place: Place, raw: DataFrame) -> None:
    with pytest.raises(LakeError, match="run `tidemark apply` first"):
        compute(place, now=NOW)
    in_force(place, spend(offline="parquet"))
    with pytest.raises(UsageError, match="did you mean 'spend'"):
        compute(place, ["spent"], now=NOW)


def test_clock_columns_that_cannot_be_clocks_are_refused(place: Place, table: Table) -> None:
    rows = table("customer_id | amount | at | event_time | created_time\nc1 | 1 | x | 2026-01-01 | 2026-01-01")
    put(place, rows, "lake://raw/purchases")
    for options, problem in [
        ({"event_time": "at"}, "event_time 'at' is string, expected timestamp or date"),
        ({"event_time": "time"}, "event_time 'time' is not a column"),
        ({"event_time": "created_time"}, "has a column 'event_time' besides 'created_time', which is the event_time"),
        ({"event_time": "event_time"}, "has a column 'created_time' that created_time= does not name"),
    ]:
        source = dataclasses.replace(purchases, schema=None, **options)
        assert refused(place, spend(source=source, offline="parquet")).problem.startswith(problem)


def test_deprecated_groups_are_computed_only_by_name(place: Place, raw: DataFrame) -> None:
    in_force(place, spend(offline="parquet", status="deprecated"))
    report: ComputeReport = compute(place, now=NOW)
    assert report.groups == ()
    assert report.text().startswith("  no group: all are deprecated; compute one with --group NAME\n0 rows computed")
    assert len(compute(place, ["spend"], now=NOW).groups) == 1


def test_new_version_of_a_group_has_a_table_of_its_own(place: Place, raw: DataFrame) -> None:
    first = in_force(place, spend(offline="parquet"), Service("s", ["spend"]))
    computed(place)
    second = in_force(place, spend(offline="parquet", version=2, features=[Feature("amount", "double", "amount * 2")]))
    computed(place)
    sums = [place.table(group).read().agg({"amount": "sum"}).collect()[0][0] for group in (first, second)]
    assert sums == [35.0, 70.0]


# tables


def test_of_two_racing_replaces_of_a_parquet_table_one_wins(place: Place, table: Table) -> None:
    uri = place.lakes.uri("lake://features/raced")
    rows = table("n\n1", "n bigint")
    open_table(place.spark, uri, "parquet").replace(rows, {"run": "first"})
    meet, outcomes = threading.Barrier(2), {}

    def replace(name: str) -> None:
        raced = open_table(place.spark, uri, "parquet")
        create = raced.files.create

        def create_together(*arguments: Any) -> None:
            meet.wait()
            create(*arguments)

        object.__setattr__(raced.files, "create", create_together)
        try:
            outcomes[name] = raced.replace(rows, {"run": name})
        except LakeError as error:
            outcomes[name] = error

    threads = [threading.Thread(target=replace, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [name for name, outcome in outcomes.items() if outcome == 2]
    assert len(winners) == 1
    lost = next(outcome for outcome in outcomes.values() if outcome != 2)
    assert str(lost).endswith(
        "another run wrote a version meanwhile\nHint: run the job again; nothing of this run is in the table"
    )
    kept = open_table(place.spark, uri, "parquet")
    assert (kept.version(), kept.note(2)["run"]) == (2, winners[0])
    folders = [path for path in folders_in(place, "features") if path.startswith("raced/data/")]
    assert len(folders) == 2


def test_of_two_racing_replaces_of_a_delta_table_the_loser_is_told(place: Place, table: Table) -> None:
    uri = place.lakes.uri("lake://features/raced")
    rows = table("n\n1", "n bigint")
    open_table(place.spark, uri, "delta").replace(rows, {"run": "first"})
    meet, outcomes = threading.Barrier(4), []

    def replace(name: str) -> None:
        meet.wait()
        try:
            outcomes.append((name, open_table(place.spark, uri, "delta").replace(rows, {"run": name})))
        except LakeError as error:
            outcomes.append((name, error))

    threads = [threading.Thread(target=replace, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kept = open_table(place.spark, uri, "delta")
    won = {version: name for name, version in outcomes if isinstance(version, int)}
    lost = {outcome.problem for _, outcome in outcomes if isinstance(outcome, LakeError)}
    assert len(outcomes) == 4
    assert won
    assert lost <= {"another run wrote a version meanwhile"}
    assert {version: kept.note(version)["run"] for version in won} == won
    assert kept.version() == max(won)
    assert kept.read().count() == 1


@pytest.mark.parametrize("table_format", ["delta", "parquet"])
def test_failed_write_leaves_the_old_version_readable(place: Place, table: Table, table_format: str) -> None:
    kept = open_table(place.spark, place.lakes.uri("lake://features/kept"), table_format)
    version = kept.replace(table("n\n1\n2", "n bigint"), {"run": "good", "why": "a note"})
    before = files_in(place, "features")
    with pytest.raises(Exception, match="DIVIDE_BY_ZERO"):
        kept.replace(table("n\n1\n0", "n bigint").selectExpr("1 div n AS n"), {"run": "bad"})
    assert kept.version() == version
    assert kept.note(version)["why"] == "a note"
    assert_rows(kept.read(), table("n\n1\n2", "n bigint"))
    assert [path for path in files_in(place, "features") if path.endswith(".json")] == [
        path for path in before if path.endswith(".json")
    ]


def test_unknown_table_format_is_refused(place: Place) -> None:
    with pytest.raises(UsageError, match="use delta or parquet"):
        open_table(place.spark, place.lakes.uri("lake://features/x"), "orc")


def test_rows_are_planned_without_inferred_filters(
    place: Place, table: Table, raw: DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They took a wide group's increment five times as long as all else."""
    setting, seen, conf = "spark.sql.constraintPropagation.enabled", [], place.spark.conf
    real = DataFrameWriter.save

    def save(writer: DataFrameWriter, *arguments: Any, **options: Any) -> None:
        seen.append(conf.get(setting))
        real(writer, *arguments, **options)

    in_force(place, spend())
    monkeypatch.setattr(DataFrameWriter, "save", save)
    computed(place)
    assert seen
    assert set(seen) == {"false"}
    assert conf.get(setting) == "true"


@pytest.mark.parametrize("before", [None, "before", "two"])
def test_threads_that_set_a_setting_at_once_leave_what_the_first_one_found(
    spark: SparkSession, before: str | None
) -> None:
    name, conf = "spark.tidemark.test", spark.conf
    if before:
        conf.set(name, before)
    one, two = (session_conf(spark, {name: value}) for value in ("one", "two"))
    with suppress(RuntimeError), one:
        assert conf.get(name) == "one"
        two.__enter__()
        assert conf.get(name) == "two"
        raise RuntimeError
    assert conf.get(name) == "two"
    two.__exit__(None, None, None)
    assert conf.get(name, None) == before
    with pytest.raises(Exception, match="CANNOT_MODIFY"), session_conf(spark, {name: "x", "spark.sql.extensions": "y"}):
        pass
    assert conf.get(name, None) == before
    conf.unset(name)
