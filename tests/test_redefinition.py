"""A group redefined within its version: what is served after the next load is what the new definition computed."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from connectors.online_answer import NOT_LOADED, PRESENT
from jobs.apply import apply
from jobs.compute import compute
from jobs.materialize import LoadedGroup, materialize
from jobs.online import online_get
from jobs.online_address import online_address
from jobs.online_load import partition_load
from jobs.place import Place
from jobs.transforms.latest import LIMIT
from tests.lab import Table, put, write_definitions

NOW = datetime.datetime.now(datetime.timezone.utc).replace(hour=12, minute=0, second=0, microsecond=0)
HOUR, DAY = datetime.timedelta(hours=1), datetime.timedelta(days=1)

FILE = """\
from feature_defs import Aggregate, Entity, Feature, FeatureGroup, Source
customer = Entity("customer", keys={"customer_id": "string"})
rows = Source("rows", path="lake://raw/rows", format="parquet", event_time="paid_at")
spend = FeatureGroup(
    "spend", entity=customer, source=rows, online=True, offline="parquet", OPTIONS
    features=[FEATURES],
)
"""


def at(time: datetime.datetime) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")


def rows(place: Place, table: Table) -> None:
    """Two orders; the newest by ordered_at is a day older than the newest by paid_at."""
    text = f"""
        customer_id | ordered_at             | paid_at             | amount
        c1          | {at(NOW - 3 * DAY)}    | {at(NOW - 2 * HOUR)} | 1
        c1          | {at(NOW - DAY - HOUR)} | {at(NOW - HOUR)}     | 2
    """
    put(place, table(text, "ordered_at timestamp, paid_at timestamp, amount bigint"), "lake://raw/rows")


def loaded(place: Place, features: str, options: str = "", event_time: str = "paid_at") -> LoadedGroup:
    """Write the definition file, apply, compute and materialize."""
    text = FILE.replace("OPTIONS", options).replace("FEATURES", features).replace('"paid_at"', f'"{event_time}"')
    write_definitions(place, text)
    apply(place)
    compute(place, now=NOW)
    return materialize(place, now=NOW).groups[0]


def served(place: Place) -> dict[str, Any]:
    """What is read online, agreed with the offline table."""
    report = online_get(place, {"customer_id": "c1"}, group="spend", check=True, now=NOW)
    assert report.agrees, report.text()
    assert report.groups[0].status == PRESENT
    return report.groups[0].values


AMOUNT = 'Feature("amount", "bigint")'


@pytest.mark.parametrize(
    ("features", "options", "event_time", "expected"),
    [
        (AMOUNT.replace(")", ', "amount * 10")'), "", "ordered_at", {"amount": 20}),
        ('Feature("amount", "bigint", Aggregate("sum", "amount"))', 'every="1d",', "ordered_at", {"amount": 3}),
        (f'{AMOUNT}, Feature("twice", "bigint", "amount * 2")', "", "ordered_at", {"amount": 2, "twice": 4}),
    ],
    ids=["expression", "grid", "added feature"],
)
def test_a_redefined_group_is_served_by_its_new_definition_though_its_rows_are_older(
    online_place: Place, table: Table, features: str, options: str, event_time: str, expected: dict[str, int]
) -> None:
    rows(online_place, table)
    loaded(online_place, AMOUNT)
    before = online_get(online_place, {"customer_id": "c1"}, group="spend", now=NOW).groups[0].event_time
    found = loaded(online_place, features, options, event_time)
    assert (found.rows, found.written, found.kept_newer) == (1, 1, 0)
    assert served(online_place) == expected
    after = online_get(online_place, {"customer_id": "c1"}, group="spend", now=NOW).groups[0].event_time
    assert before is not None
    assert after is not None
    assert after < before  # or the test would say nothing


def test_going_back_to_the_old_text_brings_its_values_back(online_place: Place, table: Table) -> None:
    rows(online_place, table)
    for event_time, factor in (("ordered_at", 1), ("paid_at", 10), ("ordered_at", 1)):
        features = f'Feature("amount", "bigint", "amount * {factor}")'
        assert loaded(online_place, features, event_time=event_time).kept_newer == 0
        assert served(online_place) == {"amount": 2 * factor}


def test_a_job_of_the_old_definition_does_not_undo_the_new_load(online_place: Place, table: Table) -> None:
    """It had read the registry before the apply and sends its rows, newer by their time, after the new load."""
    rows(online_place, table)
    loaded(online_place, AMOUNT)
    old = online_place.applied()
    loaded(online_place, AMOUNT.replace(")", ', "amount * 10")'), event_time="ordered_at")
    group = old.definitions.groups["spend"]
    late = partition_load(
        group,
        old.definitions.entity_of(group),
        online_address(online_place),
        definition=old.since["spend"],
        now_us=int(NOW.timestamp()) * 1_000_000,
    )
    text = f"customer_id | event_time | amount\nc1 | {at(NOW)} | 2"
    newer = table(text, "event_time timestamp, amount bigint").selectExpr("*", f"CAST(null AS bigint) AS {LIMIT}")
    counts = [batch.to_pylist()[0] for batch in late(iter(newer.toArrow().to_batches()))]
    assert (sum(c["written"] for c in counts), sum(c["kept_newer"] for c in counts)) == (0, 1)
    assert served(online_place) == {"amount": 20}


def test_between_an_apply_and_the_next_load_the_features_that_stayed_are_served(
    online_place: Place, table: Table
) -> None:
    rows(online_place, table)
    loaded(online_place, AMOUNT)
    write_definitions(online_place, FILE.replace("OPTIONS", "").replace("FEATURES", f'Feature("new", "int"), {AMOUNT}'))
    apply(online_place)
    report = online_get(online_place, {"customer_id": "c1"}, group="spend", now=NOW)
    assert report.groups[0].values == {"new": None, "amount": 2}
    assert (report.groups[0].status, report.groups[0].statuses) == (PRESENT, {"new": NOT_LOADED, "amount": PRESENT})
    assert "spend.new     null    not loaded" in report.text()
