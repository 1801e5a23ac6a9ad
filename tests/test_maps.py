"""Maps as features, end to end: what is computed is in the training set, in Redis and in what a model reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from feature_defs import Aggregate, Entity, Expectation, Feature, FeatureGroup, Service, Source, snapshot
from feature_defs.errors import DataError
from feature_defs.fingerprint import fingerprint
from jobs.apply import apply
from jobs.compute import compute
from jobs.materialize import materialize
from jobs.online import online_get
from jobs.place import Place
from jobs.report import as_json
from jobs.show import show
from jobs.training_set import training_set
from jobs.values import same, shown
from tests.lab import NOW, Table, checked, put, register, write_definitions

customer = Entity("customer", keys={"customer_id": "string"})
events = Source("events", path="lake://raw/events", event_time="event_time", created_time="created_time")
EVENTS = """
customer_id | event_time | created_time | actions                       | city
c1          | 2026-01-01 | 2026-01-01   | {"view": 1}                   | Graz
c1          | 2026-01-02 | 2026-01-02   | {"view": 17, "buy": 3}        | Graz
c1          | 2026-01-02 | 2026-01-02   | {"view": 17, "buy": 2, "z": 9} | Graz
c1          | 2026-01-03 | 2026-01-09   | null                          | null
c2          | 2026-01-02 | null         | {}                            | Wien
c3          | 2026-01-02 | null         | {"": null, "Zoë 🙂": 5}       | Wien
"""
SPINE = """
customer_id | event_time
c1          | 2026-01-01
c1          | 2026-01-02
c1          | 2026-01-05
c2          | 2026-01-05
c3          | 2026-01-05
c4          | 2026-01-05
"""


def a_group(**options: Any) -> FeatureGroup:
    features = [
        Feature("actions", "map<string,int>"),
        Feature("shares", "map<string,double>", "transform_values(actions, (k, v) -> v / 20)"),
        Feature("city", "string"),
    ]
    kept = {"features": features, "online": True, **options}
    return FeatureGroup("habits", entity=customer, source=events, **kept)


@pytest.fixture
def raw(place: Place, table: Table) -> None:
    rows = table(EVENTS).withColumns({"actions": _from_json("actions")})
    put(place, rows, "lake://raw/events", "delta")
    put(place, table(SPINE), "lake://raw/spine")


def _from_json(name: str):
    from pyspark.sql import functions as F

    return F.from_json(name, "map<string,int>")


@pytest.mark.parametrize(("offline", "skip_nulls"), [("delta", False), ("parquet", True)])
def test_map_is_the_same_in_the_table_the_training_set_and_redis(
    online_place: Place, raw: None, offline: str, skip_nulls: bool
) -> None:
    group = a_group(offline=offline, skip_nulls=skip_nulls)
    register(online_place, customer, events, group, Service("habit", [group]))
    compute(online_place, now=NOW)
    kept = online_place.table(group).read()
    assert dict(kept.dtypes)["actions"] == "map<string,int>"
    assert dict(kept.dtypes)["shares"] == "map<string,double>"
    found = {(row.customer_id, row.event_time.day): row.actions for row in kept.collect()}
    greatest = {"buy": 3, "view": 17}  # of equal clocks, the greatest by its entries
    assert found == {
        ("c1", 1): {"view": 1}, ("c1", 2): greatest, ("c1", 3): None, ("c2", 2): {}, ("c3", 2): {"": None, "Zoë 🙂": 5},
    }  # fmt: skip

    newest = greatest if skip_nulls else None
    answers = {"c1": newest, "c2": {}, "c3": {"": None, "Zoë 🙂": 5}}
    for out_format in ("parquet", "delta"):
        out = f"lake://work/{out_format}"
        report = training_set(online_place, "lake://raw/spine", service="habit", out=out, out_format=out_format)
        rows = online_place.spark.read.format(out_format).load(online_place.lakes.uri(out)).collect()
        assert {(row.customer_id, row.event_time.day): row.actions for row in rows} == {
            ("c1", 1): {"view": 1}, ("c1", 2): greatest, ("c4", 5): None,
            **{(name, 5): value for name, value in answers.items()},
        }  # fmt: skip
        assert report.matched["actions"] == (5 if skip_nulls else 4)
        assert report.leaked_cells["actions"] == (0 if skip_nulls else 1)

    assert materialize(online_place, now=NOW).groups[0].written == 3
    for name, actions in answers.items():
        report = online_get(online_place, {"customer_id": name}, service="habit", check=True, now=NOW)
        assert report.agrees, report.text()
        values = json.loads(as_json("online", report))["groups"][0]["values"]
        assert (report.groups[0].values["actions"], values["actions"]) == (actions, actions)
    values = online_get(online_place, {"customer_id": "c3"}, group="habits", now=NOW).groups[0].values
    assert values["shares"] == {"": None, "Zoë 🙂": 0.25}
    assert online_get(online_place, {"customer_id": "c4"}, group="habits", check=True, now=NOW).agrees


def test_check_tells_a_map_that_differs(online_place: Place, raw: None) -> None:
    group = a_group()
    register(online_place, customer, events, group)
    compute(online_place, now=NOW)
    materialize(online_place, now=NOW)
    rows = online_place.spark.read.format("delta").load(online_place.lakes.uri("lake://raw/events"))
    put(online_place, rows.selectExpr("* except(actions)", "map('Zoë 🙂', 5) AS actions"), "lake://raw/events", "delta")
    compute(online_place, now=NOW)
    report = online_get(online_place, {"customer_id": "c3"}, group="habits", check=True, now=NOW)
    assert (report.agrees, report.exit_code) == (False, 7)


def test_maps_beside_aggregates_expectations_of_maps_and_what_show_tells(place: Place, raw: None) -> None:
    features = [
        Feature("events", "bigint", Aggregate("count")),
        Feature("summary", "map<string,bigint>", "map('events', events, 'none', null)"),
    ]
    known = Expectation("known", "forall(map_keys(summary), k -> k in ('events'))")
    for every in (None, "1d"):
        group = a_group(features=features, expectations=[known], every=every, skip_nulls=False)
        register(place, customer, events, group)
        (report,) = compute(place, now=NOW).groups
        assert report.broken_rules == {"known": report.rows}
        rows = place.table(group).read().where("customer_id = 'c1' AND event_time = '2026-01-03'").collect()
        assert [row.summary for row in rows] == [{"events": 4, "none": None}]
    assert ("summary", "map<string,bigint>") in [line[:2] for line in show(place, "habits").features]


DEFINITIONS = """
from pyspark.sql import functions as F
from feature_defs import Entity, Feature, FeatureGroup, Source

customer = Entity("customer", keys={"customer_id": "string"})
clicks = Source("clicks", path="lake://raw/clicks", format="parquet", event_time="day")

"""
GROUP = """
habits = FeatureGroup("habits", entity=customer, source=clicks, transform=actions,
                      features=[Feature("actions", "map<string,bigint>")])
"""


def test_function_of_the_document_groups_by_a_second_column(place: Place, table: Table) -> None:
    """As it stands there."""
    document = (Path(__file__).resolve().parent.parent / "docs" / "maps.md").read_text(encoding="utf-8")
    write_definitions(place, DEFINITIONS + document.split("```python\n")[1].split("```")[0] + GROUP)
    cells = [("c1", 1, "view"), ("c1", 1, "buy"), ("c1", 1, "view"), ("c1", 2, "buy"), ("c2", 1, "view")]
    lines = "\n".join(f"{name} | 2026-01-0{day} | {kind}" for name, day, kind in cells)
    put(place, table(f"customer_id | day | kind\n{lines}", "day date"), "lake://raw/clicks")
    apply(place)
    compute(place, now=NOW)
    rows = place.table(place.applied().definitions.groups["habits"]).read().collect()
    assert {(row.customer_id, row.event_time.day): row.actions for row in rows} == {
        ("c1", 1): {"view": 2, "buy": 1}, ("c1", 2): {"buy": 1}, ("c2", 1): {"view": 1},
    }  # fmt: skip


def test_map_with_a_key_twice_stops_the_job_without_telling_the_key(place: Place, raw: None) -> None:
    twice = Feature("twice", "map<string,int>", "map_from_entries(array(struct(city, 1), struct(city, 2)))")
    register(place, customer, events, a_group(features=[twice]))
    with pytest.raises(DataError, match="makes a map with one key twice") as caught:
        compute(place, now=NOW)
    assert "Graz" not in str(caught.value) + str(caught.value.hint)
    assert place.table(a_group()).version() is None


def test_map_of_another_type_than_declared_is_refused(place: Place, raw: None) -> None:
    for text in ("map<string,bigint>", "map<string,string>", "array<string>", "string"):
        register(place, customer, events, a_group(features=[Feature("actions", text)]))
        with pytest.raises(DataError, match="but its expression gives map<string,int>"):
            compute(place, now=NOW)


def test_definition_of_a_map_goes_through_a_snapshot_and_its_spelling_does_not_matter() -> None:
    spellings = ["map<string,int>", "MAP< string , int >", "map<string,bigint>"]
    found = []
    for text in spellings:
        definitions = checked(customer, events, a_group(features=[Feature("actions", text)]))
        again = snapshot.from_plain(json.loads(json.dumps(snapshot.to_plain(definitions))))
        prints = [fingerprint(each.groups["habits"], each) for each in (definitions, again)]
        assert prints[0] == prints[1]
        found.append(prints[0])
    assert found[0] == found[1] != found[2]


def test_maps_are_shown_short_and_compared_by_their_entries() -> None:
    nan = float("nan")
    assert shown({"buy": 3, "view": None}) == "{buy: 3, view: null}"
    assert shown({str(i): i / 2 for i in range(5)}) == "{0: 0, 1: 0.5, 2: 1, ... 5 entries}"
    assert shown({}) == "{}"
    assert same({"a": nan, "b": 1}, {"b": 1, "a": nan})
    assert not any(same({"a": 1}, other) for other in ({}, {"a": 2}, {"a": None}, {"b": 1}, None, {"a": 1, "b": 1}))
