"""The rules of time, each in the words of its table row: spine, feature rows and result on one screen."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from connectors.offline_tables import shown
from feature_defs import Aggregate, Entity, Feature, FeatureGroup, Fill, Service, Source
from feature_defs.durations import DurationFault, microseconds
from feature_defs.errors import UsageError
from feature_defs.join_plan import TimeRules, group_join, plan_join
from jobs.compute import compute
from jobs.place import Place
from jobs.training_set import training_set
from jobs.transforms.as_of import LEAK, latest_rows, training_rows
from jobs.transforms.features import feature_rows
from jobs.transforms.rows import clocked
from tests.lab import NOW, Table, checked, put, register
from tests.pipe_tables import assert_rows, read_table

customer = Entity("customer", keys={"customer_id": "string"})
source = Source("rows", path="lake://raw/rows", format="parquet", event_time="event_time", created_time="created_time")
one_feature = FeatureGroup("spend", entity=customer, source=source, features=[Feature("amount", "bigint")])
AMOUNT = "amount bigint"


def joined(
    spine: DataFrame,
    *parts: tuple[FeatureGroup, DataFrame],
    rules: TimeRules | None = None,
    prefix: bool = False,
    leaks: bool = False,
) -> DataFrame:
    """A service of all the features of these groups, joined to the spine."""
    definitions = checked(customer, source, Service("all", [group for group, _ in parts]), *_words(parts))
    service = definitions.services["all"]
    plan = plan_join(service, definitions, spine_columns=spine.columns, prefix=prefix, rules=rules)
    found = training_rows(spine, [rows for _, rows in parts], plan)
    return found if leaks else found.drop(*(name for name in found.columns if name.startswith(LEAK)))


def _words(parts: tuple[tuple[FeatureGroup, DataFrame], ...]) -> Iterator[Entity | FeatureGroup]:
    for group, _ in parts:
        yield group
        if group.entity is not customer and isinstance(group.entity, Entity):
            yield group.entity


# a feature row exactly at the spine time


AT_AND_BEFORE = """
customer_id | event_time          | created_time | amount
c1          | 2026-01-10 12:00:00 | null         | 1
c1          | 2026-01-10 11:00:00 | null         | 2
"""


@pytest.mark.parametrize(("strict", "amount"), [(False, 1), (True, 2)])
def test_row_exactly_at_spine_time_is_used_unless_strict(table: Table, strict: bool, amount: int) -> None:
    spine = table("customer_id | event_time\nc1 | 2026-01-10 12:00:00")
    found = joined(spine, (one_feature, table(AT_AND_BEFORE, AMOUNT)), rules=TimeRules(strict=strict))
    assert_rows(found, table(f"customer_id | event_time | amount\nc1 | 2026-01-10 12:00:00 | {amount}", AMOUNT))


def test_row_a_microsecond_after_the_spine_time_is_not_used(table: Table) -> None:
    rows = table(
        """
        customer_id | event_time                 | created_time | amount
        c1          | 2026-01-10 12:00:00.000001 | null         | 1
        """,
        AMOUNT,
    )
    spine = table("customer_id | event_time\nc1 | 2026-01-10 12:00:00")
    expected = table("customer_id | event_time | amount\nc1 | 2026-01-10 12:00:00 | null", AMOUNT)
    assert_rows(joined(spine, (one_feature, rows)), expected)


# age and ttl


def test_age_of_exactly_ttl_is_used_and_a_microsecond_more_is_not(table: Table) -> None:
    rows = table("customer_id | event_time | created_time | amount\nc1 | 2026-01-01 00:00:00 | null | 7", AMOUNT)
    spine = table(
        """
        customer_id | event_time
        c1          | 2026-01-03 00:00:00
        c1          | 2026-01-03 00:00:00.000001
        """
    )
    expected = table(
        """
        customer_id | event_time                 | limited | amount
        c1          | 2026-01-03 00:00:00        | 7       | 7
        c1          | 2026-01-03 00:00:00.000001 | null    | 7
        """,
        "limited bigint, amount bigint",
    )
    two_days = dataclasses.replace(one_feature, name="short", ttl="2d", features=[Feature("limited", "bigint")])
    parts = [(two_days, rows.withColumnRenamed("amount", "limited")), (one_feature, rows)]
    assert_rows(joined(spine, *parts), expected)


def test_ttl_of_zero_is_refused() -> None:
    with pytest.raises(DurationFault, match="leave it out for no limit"):
        microseconds("0d")


# rows with one event_time


def test_of_rows_with_one_event_time_the_newest_created_wins_and_null_is_oldest(table: Table) -> None:
    rows = table(
        """
        customer_id | event_time | created_time | amount
        c1          | 2026-01-01 | 2026-01-02   | 1
        c1          | 2026-01-01 | 2026-01-03   | 2
        c1          | 2026-01-01 | null         | 3
        c2          | 2026-01-01 | null         | 4
        c2          | 2026-01-01 | 2025-12-31   | 5
        """,
        AMOUNT,
    )
    spine = table("customer_id | event_time\nc1 | 2026-01-05\nc2 | 2026-01-05")
    expected = table("customer_id | event_time | amount\nc1 | 2026-01-05 | 2\nc2 | 2026-01-05 | 5", AMOUNT)
    assert_rows(joined(spine, (one_feature, rows)), expected)


def test_of_rows_with_equal_clocks_the_greatest_values_win_and_come_from_one_row(table: Table) -> None:
    rows = table(
        """
        customer_id | event_time | created_time | amount | city
        c1          | 2026-01-01 | 2026-01-02   | 1      | Wien
        c1          | 2026-01-01 | 2026-01-02   | 2      | Bonn
        c1          | 2026-01-01 | 2026-01-02   | null   | Zug
        """,
        AMOUNT,
    )
    group = dataclasses.replace(one_feature, features=[Feature("amount", "bigint"), Feature("city", "string")])
    spine = table("customer_id | event_time\nc1 | 2026-01-05")
    expected = table("customer_id | event_time | amount | city\nc1 | 2026-01-05 | 2 | Bonn", AMOUNT)
    assert_rows(joined(spine, (group, rows)), expected)


def test_compute_keeps_one_of_rows_with_equal_keys_and_clocks(table: Table) -> None:
    rows = table(
        """
        customer_id | event_time | created_time | amount
        c1          | 2026-01-01 | 2026-01-02   | 1
        c1          | 2026-01-01 | 2026-01-02   | 2
        c1          | 2026-01-01 | 2026-01-03   | 3
        c1          | 2026-01-01 | null         | 4
        c1          | 2026-01-01 | null         | null
        """,
        AMOUNT,
    )
    expected = table(
        """
        customer_id | event_time | created_time | amount
        c1          | 2026-01-01 | 2026-01-02   | 2
        c1          | 2026-01-01 | 2026-01-03   | 3
        c1          | 2026-01-01 | null         | 4
        """,
        AMOUNT,
    )
    assert_rows(feature_rows(rows, one_feature, customer, until_us=0), expected)


# created after the spine time


LATE_ROWS = """
customer_id | event_time | created_time | amount
c1          | 2026-01-01 | 2026-01-01   | 1
c1          | 2026-01-02 | 2026-01-09   | 2
c2          | 2026-01-01 | 2026-01-09   | 3
c3          | 2026-01-02 | null         | 4
c3          | 2026-01-01 | 2026-01-09   | 5
c4          | 2026-01-01 | 2026-01-05   | 6
c5          | 2026-01-01 | 2026-01-01   | 7
c5          | 2026-01-01 | 2026-01-09   | 7
"""


def test_rows_created_after_the_spine_time_count_by_default_and_the_leak_is_told(table: Table) -> None:
    spine = table("customer_id | event_time\n" + "\n".join(f"c{i} | 2026-01-05" for i in range(1, 6)))
    expected = table(
        """
        customer_id | event_time | amount | _tidemark_leak_amount
        c1          | 2026-01-05 | 2      | true
        c2          | 2026-01-05 | 3      | true
        c3          | 2026-01-05 | 4      | false
        c4          | 2026-01-05 | 6      | false
        c5          | 2026-01-05 | 7      | false
        """,
        "amount bigint, _tidemark_leak_amount boolean",
    )
    assert_rows(joined(spine, (one_feature, table(LATE_ROWS, AMOUNT)), leaks=True), expected)


def test_known_by_spine_leaves_out_rows_created_later(table: Table) -> None:
    spine = table("customer_id | event_time\n" + "\n".join(f"c{i} | 2026-01-05" for i in range(1, 6)))
    expected = table(
        """
        customer_id | event_time | amount | _tidemark_leak_amount
        c1          | 2026-01-05 | 1      | true
        c2          | 2026-01-05 | null   | true
        c3          | 2026-01-05 | 4      | false
        c4          | 2026-01-05 | 6      | false
        c5          | 2026-01-05 | 7      | false
        """,
        "amount bigint, _tidemark_leak_amount boolean",
    )
    rules = TimeRules(known_by="spine")
    assert_rows(joined(spine, (one_feature, table(LATE_ROWS, AMOUNT)), rules=rules, leaks=True), expected)


def test_unknown_word_for_known_by_is_refused(table: Table) -> None:
    spine = table("customer_id | event_time\nc1 | 2026-01-05")
    with pytest.raises(UsageError, match="use one of event, spine"):
        joined(spine, (one_feature, table(LATE_ROWS, AMOUNT)), rules=TimeRules(known_by="label"))


def test_known_by_spine_is_refused_of_groups_that_fill_forward() -> None:
    """What fills a row may have become known later than the row."""
    filled = dataclasses.replace(one_feature, clean=[Fill("amount", "forward")])
    again = dataclasses.replace(one_feature, name="again", source="spend")
    further = dataclasses.replace(one_feature, name="further", source="again")
    definitions = checked(
        customer, source, filled, again, further, *(Service(f"s{n}", [g]) for n, g in enumerate((filled, further)))
    )
    for service in definitions.services.values():
        assert plan_join(service, definitions).groups
        with pytest.raises(UsageError, match="what of group 'spend' was known: it fills nulls forward"):
            plan_join(service, definitions, rules=TimeRules(known_by="spine"))


# the newest row holds null


@pytest.mark.parametrize(("skip_nulls", "amount", "city"), [(False, "null", "Bonn"), (True, "5", "Bonn")])
def test_null_of_the_newest_row_is_the_answer_unless_nulls_are_skipped(
    table: Table, skip_nulls: bool, amount: str, city: str
) -> None:
    features = [Feature("amount", "bigint"), Feature("city", "string")]
    group = dataclasses.replace(one_feature, features=features, skip_nulls=skip_nulls, ttl="5d")
    rows = table(
        """
        customer_id | event_time | created_time | amount | city
        c1          | 2026-01-01 | null         | 5      | Graz
        c1          | 2026-01-03 | null         | null   | Bonn
        c2          | 2025-12-01 | null         | 5      | Graz
        c2          | 2026-01-03 | null         | null   | null
        """,
        AMOUNT,
    )
    spine = table("customer_id | event_time\nc1 | 2026-01-05\nc2 | 2026-01-05")
    expected = table(
        f"""
        customer_id | event_time | amount   | city
        c1          | 2026-01-05 | {amount} | {city}
        c2          | 2026-01-05 | null     | null
        """,
        AMOUNT,
    )
    assert_rows(joined(spine, (group, rows)), expected)


def test_latest_values_skip_nulls_where_the_training_set_does(table: Table) -> None:
    rows = table(
        """
        customer_id | event_time | created_time | amount | city
        c1          | 2025-12-01 | null         | null   | Graz
        c1          | 2026-01-01 | null         | 5      | null
        c1          | 2026-01-03 | null         | null   | null
        c1          | 2026-01-09 | null         | 9      | Linz
        """,
        AMOUNT,
    )
    features = [Feature("amount", "bigint"), Feature("city", "string")]
    group = dataclasses.replace(one_feature, features=features, skip_nulls=True, ttl="10d")
    spine = table("customer_id | event_time\nc1 | 2026-01-05")
    asked_at = microseconds("1d") * spine.select(F.unix_date(F.col("event_time").cast("date"))).first()[0]
    definitions = checked(customer, source, group)
    found = latest_rows(rows, group_join(group, definitions, group.features), now_us=asked_at)
    expected = table("customer_id | event_time | amount | city\nc1 | 2026-01-03 | 5 | null", AMOUNT)
    assert_rows(found, expected)
    assert_rows(found.drop("event_time"), joined(spine, (group, rows)).drop("event_time"))


# null keys and times


ODD_SPINE = """
customer_id | event_time | label
null        | 2026-01-05 | a
c1          | null       | b
null        | null       | c
c1          | 2026-01-05 | d
"""


def test_spine_row_with_null_key_or_time_is_kept_with_null_features(table: Table) -> None:
    rows = table(
        """
        customer_id | event_time | created_time | amount
        c1          | 2026-01-01 | null         | 1
        null        | 2026-01-01 | null         | 2
        c1          | null       | null         | 3
        """,
        AMOUNT,
    )
    expected = table(
        """
        customer_id | event_time | label | amount
        null        | 2026-01-05 | a     | null
        c1          | null       | b     | null
        null        | null       | c     | null
        c1          | 2026-01-05 | d     | 1
        """,
        AMOUNT,
    )
    assert_rows(joined(table(ODD_SPINE), (one_feature, rows)), expected)


def test_spine_rows_with_null_key_or_time_are_counted_and_a_source_row_without_time_is_quarantined(
    place: Place, table: Table
) -> None:
    two = Entity("pair", keys={"customer_id": "string", "shop": "string"})
    pairs = Source("pairs", path="lake://raw/pairs", format="parquet", event_time="event_time")
    per_pair = FeatureGroup("visits", entity=two, source=pairs, features=[Feature("n", "bigint")])
    register(place, customer, source, one_feature, two, pairs, per_pair, Service("all", [one_feature, per_pair]))
    put(
        place,
        table(
            """
            customer_id | event_time | created_time | amount
            c1          | 2026-01-01 | null         | 1
            c1          | null       | null         | 2
            null        | 2026-01-01 | null         | 3
            """,
            AMOUNT,
        ),
        "lake://raw/rows",
    )
    put(place, table("customer_id | shop | event_time | n\nc1 | s1 | 2026-01-01 | 4", "n bigint"), "lake://raw/pairs")
    spine = table(
        """
        customer_id | shop | event_time
        null        | s1   | 2026-01-05
        c1          | null | 2026-01-05
        null        | null | null
        c1          | s1   | 2026-01-05
        """
    )
    computed = compute(place, now=NOW)
    assert [(group.rows, group.rejected) for group in computed.groups] == [(1, 2), (1, 0)]
    reasons = place.quarantine(one_feature).read().select("reason")
    assert_rows(reasons, table("reason\nevent_time is null\nkey customer_id is null"))
    report = training_set(place, spine, service="all", out="lake://work/out")
    assert (report.rows, report.null_key_rows, report.null_time_rows) == (4, 3, 1)
    assert "warning: 3 spine rows with a null key" in report.text()
    assert "warning: 1 spine row with no event_time" in report.text()
    assert report.matched == {"amount": 2, "n": 1}


# duplicates and composite keys


def test_duplicate_spine_rows_come_back_one_for_one(table: Table) -> None:
    rows = table("customer_id | event_time | created_time | amount\nc1 | 2026-01-01 | null | 1", AMOUNT)
    spine = table(
        """
        customer_id | event_time | label
        c1          | 2026-01-05 | a
        c1          | 2026-01-05 | a
        c1          | 2026-01-05 | b
        """
    )
    expected = table(
        """
        customer_id | event_time | label | amount
        c1          | 2026-01-05 | a     | 1
        c1          | 2026-01-05 | a     | 1
        c1          | 2026-01-05 | b     | 1
        """,
        AMOUNT,
    )
    assert_rows(joined(spine, (one_feature, rows)), expected)


def test_keys_of_two_columns_are_never_run_together(table: Table) -> None:
    seat = Entity("seat", keys={"row": "bigint", "number": "string"})
    group = FeatureGroup("seats", entity=seat, source=source, features=[Feature("amount", "bigint")])
    types = "row bigint, amount bigint"
    rows = table(
        """
        row | number | event_time | created_time | amount
        1   | 23     | 2026-01-01 | null         | 123
        12  | 3      | 2026-01-01 | null         | 999
        """,
        types,
    )
    spine = table("row | number | event_time\n1 | 23 | 2026-01-05\n12 | 3 | 2026-01-05\n1 | 3 | 2026-01-05", types)
    expected = table(
        """
        row | number | event_time | amount
        1   | 23     | 2026-01-05 | 123
        12  | 3      | 2026-01-05 | 999
        1   | 3      | 2026-01-05 | null
        """,
        types,
    )
    assert_rows(joined(spine, (group, rows)), expected)


# names that collide


def test_feature_with_the_name_of_a_spine_column_is_refused_or_prefixed(table: Table) -> None:
    rows = table("customer_id | event_time | created_time | amount\nc1 | 2026-01-01 | null | 1", AMOUNT)
    spine = table("customer_id | event_time | Amount\nc1 | 2026-01-05 | mine")
    with pytest.raises(UsageError, match="column 'amount' comes from the spine and from group 'spend'"):
        joined(spine, (one_feature, rows))
    expected = table(
        "customer_id | event_time | Amount | spend__amount\nc1 | 2026-01-05 | mine | 1", "spend__amount bigint"
    )
    assert_rows(joined(spine, (one_feature, rows), prefix=True), expected)


def test_features_of_two_groups_with_one_name_are_refused_or_prefixed(table: Table) -> None:
    rows = table("customer_id | event_time | created_time | amount\nc1 | 2026-01-01 | null | 1", AMOUNT)
    other = dataclasses.replace(one_feature, name="refund")
    parts = [(one_feature, rows), (other, rows.withColumn("amount", F.col("amount") + 1))]
    spine = table("customer_id | event_time\nc1 | 2026-01-05")
    with pytest.raises(UsageError, match="from group 'spend' and from group 'refund'"):
        joined(spine, *parts)
    expected = table(
        "customer_id | event_time | spend__amount | refund__amount\nc1 | 2026-01-05 | 1 | 2",
        "spend__amount bigint, refund__amount bigint",
    )
    assert_rows(joined(spine, *parts, prefix=True), expected)


def test_prefixed_name_that_the_spine_has_is_refused_too(table: Table) -> None:
    rows = table("customer_id | event_time | created_time | amount\nc1 | 2026-01-01 | null | 1", AMOUNT)
    spine = table("customer_id | event_time | spend__amount\nc1 | 2026-01-05 | mine")
    with pytest.raises(UsageError, match="column 'spend__amount' comes from the spine"):
        joined(spine, (one_feature, rows), prefix=True)


# time zones


@pytest.fixture(params=["UTC", "America/New_York", "Asia/Kathmandu"])
def zoned(request: pytest.FixtureRequest, spark: SparkSession) -> SparkSession:
    """A session in another time zone; tables written in it name UTC where they hold a timestamp."""
    session = spark.newSession()
    session.conf.set("spark.sql.session.timeZone", request.param)
    return session


def test_dates_and_naive_times_of_a_spine_are_utc_in_every_session(zoned: SparkSession) -> None:
    rows = read_table(
        zoned,
        """
        customer_id | event_time                  | created_time | amount
        c1          | 2026-03-08 00:00:00Z        | null         | 1
        c1          | 2026-03-08 00:00:00.000001Z | null         | 2
        c1          | 2026-03-08 02:30:00Z        | null         | 3
        c1          | 2026-03-08 02:30:00.000001Z | null         | 4
        """,
        AMOUNT,
    )
    for kind, text, amount in [("date", "2026-03-08", 1), ("timestamp_ntz", "2026-03-08 02:30:00", 3)]:
        spine = read_table(zoned, f"customer_id | event_time\nc1 | {text}", f"event_time {kind}")
        expected = read_table(
            zoned, f"customer_id | event_time | amount\nc1 | {text} | {amount}", f"event_time {kind}, {AMOUNT}"
        )
        assert_rows(joined(spine, (one_feature, rows)), expected)


def test_dates_and_naive_times_of_a_source_are_utc_in_every_session(zoned: SparkSession) -> None:
    raw = read_table(
        zoned,
        "customer_id | day | at\nc1 | 2026-03-08 | 2026-03-08 02:30:00.000001\nc1 | null | null",
        "day date, at timestamp_ntz",
    )
    by_day = Source("s", path="lake://raw/s", event_time="day", created_time="at")
    expected = read_table(
        zoned,
        "event_time | created_time\n2026-03-08 00:00:00Z | 2026-03-08 02:30:00.000001Z\nnull | null",
    )
    assert_rows(clocked(raw, by_day).select("event_time", "created_time"), expected)


def test_naive_times_in_text_files_are_utc_in_every_session(place: Place, zoned: SparkSession) -> None:
    from connectors.sources import read_source
    from tests.lab import put_text

    schema = {"customer_id": "string", "at": "timestamp"}
    put_text(place, "customer_id,at\nc1,2026-03-08 02:30:00\n", "lake://raw/csv")
    put_text(place, '{"customer_id": "c1", "at": "2026-03-08T02:30:00"}\n', "lake://raw/json")
    expected = read_table(zoned, "customer_id | at\nc1 | 2026-03-08 02:30:00Z", "at timestamp")
    for text_format in ("csv", "json"):
        text = Source("s", path=f"lake://raw/{text_format}", format=text_format, event_time="at", schema=schema)
        assert_rows(read_source(zoned, text, place.lakes).rows.select(*schema), expected)


# windows


def test_value_computed_over_a_day_carries_the_end_of_the_day(table: Table) -> None:
    daily = FeatureGroup(
        "daily", entity=customer, source=source, every="1d", features=[Feature("n", "bigint", Aggregate("count"))]
    )
    rows = table(
        """
        customer_id | event_time                 | created_time
        c1          | 2026-01-01 00:00:00        | null
        c1          | 2026-01-01 00:00:00.000001 | null
        c1          | 2026-01-01 23:59:59        | null
        c1          | 2026-01-02 00:00:00        | null
        """
    )
    expected = table(
        """
        customer_id | event_time | created_time | n
        c1          | 2026-01-01 | null         | 1
        c1          | 2026-01-02 | null         | 4
        """,
        "n bigint",
    )
    until = microseconds("1d") * table("d\n2026-01-02", "d date").select(F.unix_date("d")).first()[0]
    assert_rows(shown(feature_rows(rows, daily, customer, until_us=until)), expected)


def test_window_is_open_at_its_start_and_closed_at_its_end(table: Table) -> None:
    windowed = FeatureGroup(
        "windowed",
        entity=customer,
        source=source,
        features=[
            Feature("n", "bigint", Aggregate("count", "amount", window="1h", where="amount < 100")),
            Feature("total", "bigint", Aggregate("sum", "amount", window="1h", where="amount < 100")),
        ],
    )
    rows = table(
        """
        customer_id | event_time                 | created_time | amount
        c1          | 2026-01-01 10:00:00        | null         | 1
        c1          | 2026-01-01 10:59:59.999999 | null         | 2
        c1          | 2026-01-01 11:00:00        | null         | 4
        c1          | 2026-01-01 13:00:00        | null         | 100
        """,
        AMOUNT,
    )
    expected = table(
        """
        customer_id | event_time                 | created_time | n | total
        c1          | 2026-01-01 10:00:00        | null         | 1 | 1
        c1          | 2026-01-01 10:59:59.999999 | null         | 2 | 3
        c1          | 2026-01-01 11:00:00        | null         | 2 | 6
        c1          | 2026-01-01 13:00:00        | null         | 0 | null
        """,
        "n bigint, total bigint",
    )
    assert_rows(shown(feature_rows(rows, windowed, customer, until_us=0)), expected)
