"""Sources made from others: another group's table, SQL over several, a function over several, and in which order."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import DataFrame

from connectors.sources import source_state
from feature_defs import Aggregate, Entity, Feature, FeatureGroup, Service, Source
from feature_defs.changes import compare
from feature_defs.checks import check
from feature_defs.errors import DataError, Fault, TidemarkError
from feature_defs.fingerprint import fingerprint
from feature_defs.inputs import in_order
from feature_defs.loading import load
from feature_defs.model import Definition
from feature_defs.snapshot import from_plain, to_plain
from jobs.apply import apply
from jobs.compute import ComputeReport, GroupsFailed, compute
from jobs.inputs import source_rows
from jobs.place import Place
from jobs.settings import load_settings
from jobs.show import show
from tests.definition_files import write
from tests.lab import NOW, Table, checked, put, put_text, register, write_definitions
from tests.pipe_tables import assert_rows

customer = Entity("customer", keys={"customer_id": "string"})
country = Entity("country", keys={"country": "string"})
purchases = Source(
    "purchases", path="lake://raw/purchases", format="parquet", event_time="at", filter="amount > 0",
    schema={"customer_id": "string", "amount": "double", "at": "timestamp"},
)  # fmt: skip
customers = Source(
    "customers", path="lake://raw/customers", format="csv", event_time="since",
    schema={"customer_id": "string", "country": "string", "since": "timestamp"},
)  # fmt: skip
SQL = "select p.*, c.country from {purchases} p join {customers} c using (customer_id)"
enriched = Source("enriched", sql=SQL, inputs=[purchases, "customers"], event_time="at")
spend = FeatureGroup(
    "spend", entity=customer, source=enriched,
    features=[Feature("country", "string", Aggregate("last", "country")),
              Feature("spent", "double", Aggregate("sum", "amount"))],
)  # fmt: skip
wealth = FeatureGroup(
    "wealth", entity=country, source=spend, offline="parquet",
    features=[Feature("customers", "bigint", Aggregate("count")),
              Feature("most", "double", Aggregate("max", "spent"))],
)  # fmt: skip
rich = FeatureGroup("rich", entity=country, source="wealth", features=[Feature("is_rich", "boolean", "most >= 40")])
BASE = (customer, country, purchases, customers)
ALL = (*BASE, enriched, rich, spend, wealth)


def faults_of(*objects: Definition) -> tuple[Fault, ...]:
    return check(objects)[1]


def with_source(**changes: Any) -> tuple[Definition, ...]:
    return (*BASE, dataclasses.replace(enriched, **changes))


def both(purchases: DataFrame, customers: DataFrame) -> DataFrame:
    return purchases.join(customers, "customer_id")


def one(purchases: DataFrame) -> DataFrame:
    return purchases


# --- faults, without Spark ---


@pytest.mark.parametrize(
    ("changes", "problem", "hint"),
    [
        ({"sql": SQL.replace("{customers}", "{custmers}")}, "sql names {custmers}, which is not in inputs (purchases, ",
         "did you mean 'customers'?"),
        ({"sql": "select * from {purchases}"}, "input 'customers' is not used", "name it in the SQL as {customers}"),
        ({"sql": SQL.replace("{customers}", "customers")}, "sql reads 'customers' without braces", "write {customers}"),
        ({"sql": SQL + " join orders o using (x)"}, "sql reads 'orders' without braces", "name it in inputs="),
        ({"sql": "drop table x"}, "sql begins with 'drop', expected a query", "begin with select or with"),
        ({"sql": SQL + ";"}, "sql: ';' has no place", "without a semicolon"),
        ({"sql": 5}, "sql is int", "write Spark SQL as text"),
        ({"sql": None}, "has inputs= but neither sql= nor transform=", "{purchases}"),
        ({"path": "lake://raw/x"}, "has path= together with inputs=", "leave path= out"),
        ({"format": "csv", "schema": {"at": "timestamp"}}, "has format= together with inputs=", "leave format= out"),
        ({"transform": both}, "has sql= together with transform=", "as one of the two"),
        ({"sql": None, "transform": one}, "transform takes (purchases), the inputs are purchases, customers",
         "write def one(purchases, customers)"),
        ({"sql": None, "transform": lambda purchases, customers: purchases}, "transform is a lambda", "with def"),
        ({"inputs": []}, "has sql= but no inputs=", "name what it reads"),
        ({"inputs": [], "sql": None, "transform": both}, "has transform= but no inputs=", "name what it reads"),
        ({"inputs": "purchases"}, "inputs is str, expected a list", "write inputs=[purchases, customers]"),
        ({"inputs": [purchases, 5]}, "inputs holds int", "each item is a source"),
        ({"inputs": [purchases, "customer"]}, "input 'customer' is not defined", "did you mean 'customers'?"),
        ({"inputs": [purchases, customers, purchases]}, "input 'purchases' is there twice", "keep one"),
        ({"inputs": [], "sql": None}, "path '' is not a logical path", "write lake://NAME/path"),
        ({"inputs": [], "sql": None, "path": "jdbc://shop/orders"}, "path 'jdbc://shop/orders' is a database's",
         'add format="jdbc"'),
        ({"inputs": [], "sql": None, "format": "jdbc", "path": "lake://raw/x"}, "is not a table of a database",
         "write jdbc://NAME/schema.table"),
        ({"inputs": [], "sql": None, "format": "jdbc", "path": "jdbc://shop/(select 1)"},
         "is not a table of a database", "write jdbc://NAME/schema.table"),
    ],
)  # fmt: skip
def test_one_mistake_in_a_source_made_from_others_is_one_fault(
    changes: dict[str, Any], problem: str, hint: str
) -> None:
    orders = Source("orders", path="lake://raw/orders", event_time="at")
    found = [fault for fault in faults_of(*with_source(**changes), orders) if fault.subject == "Source 'enriched'"]
    if "inputs" in changes and changes["inputs"] in ([purchases, 5], [purchases, "customer"]):
        found = [fault for fault in found if "sql names" not in fault.problem]  # the SQL is right, the inputs are not
    (fault,) = found
    assert problem in fault.problem
    assert hint in fault.hint


@pytest.mark.parametrize(
    ("changes", "subject", "problem", "hint"),
    [
        ({"features": [Feature("most", "double", Aggregate("max", "spend"))]}, "Feature 'wealth.most'",
         "aggregate column names 'spend', which is not in group 'spend' (customer_id, event_time, created_time, ",
         "did you mean 'spent'?"),
        ({"features": [Feature("amount", "double")]}, "Feature 'wealth.amount'",
         "is not a column of group 'spend'", "name a column"),
        ({"entity": Entity("country", keys={"land": "string"})}, "FeatureGroup 'wealth'",
         "key 'land' is not a column of group 'spend'", "rename it"),
        ({"entity": Entity("country", keys={"country": "int"})}, "FeatureGroup 'wealth'",
         "key 'country' is string in group 'spend', int in the entity", "declare the same type"),
        ({"source": "spent"}, "FeatureGroup 'wealth'", "source 'spent' is not defined", "did you mean 'spend'?"),
        ({"source": dataclasses.replace(spend, name="else")}, "FeatureGroup 'wealth'",
         "source 'else' stands at the top level of no file", "give it a name of its own"),
    ],
)  # fmt: skip
def test_what_a_group_needs_of_another_group_is_checked(
    changes: dict[str, Any], subject: str, problem: str, hint: str
) -> None:
    changed = dataclasses.replace(wealth, **changes)
    entity = changes.get("entity", country)
    (fault,) = faults_of(customer, entity, purchases, customers, enriched, spend, changed)
    assert fault.subject == subject
    assert problem in fault.problem
    assert hint in fault.hint


def test_a_group_and_a_source_of_one_name_are_told_apart(tmp_path: Path) -> None:
    raw = Source("spend", path="lake://raw/spend", event_time="at")
    (fault,) = faults_of(*BASE, enriched, spend, raw, wealth)
    assert (fault.subject, fault.hint) == ("FeatureGroup 'wealth'", "rename one of the two")
    by_name = dataclasses.replace(wealth, source="spend")
    assert checked(*BASE, enriched, spend, raw, by_name).source_of(by_name) is raw


def test_what_is_made_from_itself_is_refused_once() -> None:
    circle = dataclasses.replace(enriched, inputs=["rich", "customers"], sql=SQL.replace("{purchases}", "{rich}"))
    (fault,) = faults_of(*BASE, circle, rich, spend, wealth)
    assert fault.problem == "'rich', 'spend', 'wealth', 'enriched' are made from one another"
    (fault,) = faults_of(*BASE, enriched, spend, dataclasses.replace(wealth, source="wealth"))
    assert fault.problem == "source 'wealth' is not defined"
    (fault,) = faults_of(
        *BASE,
        dataclasses.replace(
            enriched, inputs=["enriched", purchases, customers], sql=SQL + " join {enriched} e using (customer_id)"
        ),
    )
    assert fault.problem == "is made from itself"


# --- registry: what is kept, what changes ---


def test_a_snapshot_keeps_what_a_source_is_made_from() -> None:
    made = dataclasses.replace(enriched, sql=None, transform=both)
    for definitions in (checked(*ALL), checked(*BASE, made, spend)):
        plain = to_plain(definitions)
        back = from_plain(plain)
        assert to_plain(back) == plain
        assert back.sources["enriched"].input_names == ("purchases", "customers")
        for name, group in definitions.groups.items():
            assert fingerprint(back.groups[name], back) == fingerprint(group, definitions)
    assert "inputs" not in to_plain(checked(*ALL))["sources"]["purchases"]


def test_all_that_a_group_is_made_from_is_in_its_fingerprint() -> None:
    changes: dict[str, tuple[Definition, Definition]] = {
        "nothing": (spend, spend),
        "the other group's feature": (
            spend, dataclasses.replace(spend, features=[*spend.features, Feature("twice", "double", "spent * 2")]),
        ),
        "the other group's version": (spend, dataclasses.replace(spend, version=2)),
        "sql": (enriched, dataclasses.replace(enriched, sql=SQL + " where amount > 1")),
        "an input": (customers, dataclasses.replace(customers, path="lake://raw/clients")),
        "an input's filter": (purchases, dataclasses.replace(purchases, filter=None)),
        "a function": (enriched, dataclasses.replace(enriched, sql=None, transform=both)),
    }  # fmt: skip
    found = {}
    for name, (old, new) in changes.items():
        definitions = checked(*(new if item is old else item for item in ALL))
        found[name] = fingerprint(definitions.groups["rich"], definitions)
    assert len(set(found.values())) == len(changes), found
    layout = SQL.replace(" join", "\n-- the country\njoin")
    same = dataclasses.replace(enriched, sql=layout, inputs=[customers, purchases])
    definitions = checked(*(same if item is enriched else item for item in ALL))
    assert fingerprint(definitions.groups["rich"], definitions) == found["nothing"]


def test_plan_recomputes_what_is_made_from_a_group_that_changes_and_warns_of_a_deprecated_one() -> None:
    changed = dataclasses.replace(spend, status="deprecated", ttl="9d")
    plan = compare(checked(*ALL), checked(*(changed if item is spend else item for item in ALL)))
    assert plan.recompute == ("rich", "spend", "wealth")
    assert plan.warnings == ("FeatureGroup 'spend' is deprecated and still used by group 'wealth'",)


def test_groups_are_put_behind_those_they_are_made_from() -> None:
    definitions = checked(*ALL)
    names = [group.name for group in in_order(list(definitions.groups.values()), definitions)]
    assert names == ["spend", "wealth", "rich"]
    two = [definitions.groups[name] for name in ("rich", "spend")]
    assert [group.name for group in in_order(two, definitions)] == ["spend", "rich"]  # also with none between them


# --- over real tables ---

PURCHASES = """
customer_id | amount | at
c1          | 10     | 2026-01-01
c1          | 30     | 2026-01-03
c2          | 5      | 2026-01-02
c2          | -5     | 2026-01-04
c9          | 7      | 2026-01-02
"""
CUSTOMERS = "customer_id,country,since\nc1,AT,2020-01-01\nc2,DE,2020-01-01\nc3,DE,yesterday\n"


@pytest.fixture
def raw(place: Place, table: Table) -> Place:
    put(place, table(PURCHASES, "amount double, at timestamp"), "lake://raw/purchases")
    put_text(place, CUSTOMERS, "lake://raw/customers")
    return place


def computed(place: Place, *groups: str) -> ComputeReport:
    return compute(place, groups, now=NOW)


def read(place: Place, source: Source) -> DataFrame:
    return source_rows(place, place.applied(), source).rows


def refused(place: Place, action: Callable[[], object]) -> TidemarkError:
    with pytest.raises(TidemarkError) as raised:
        action()
    return raised.value


def test_groups_made_from_groups_and_sql_over_several_sources(raw: Place, table: Table) -> None:
    register(raw, *ALL)
    before = raw.spark.catalog.listTables()
    report = computed(raw)
    assert [group.group for group in report.groups] == ["spend", "wealth", "rich"]
    assert raw.spark.catalog.listTables() == before  # no view is left behind
    expected = table(
        """
        customer_id | event_time | created_time | country | spent
        c1          | 2026-01-01 | null         | AT      | 10
        c1          | 2026-01-03 | null         | AT      | 40
        c2          | 2026-01-02 | null         | DE      | 5
        """,
        "spent double",
    )
    assert_rows(raw.table(spend).read(), expected)
    expected = table(
        """
        country | event_time | created_time | customers | most
        AT      | 2026-01-01 | null         | 1         | 10
        AT      | 2026-01-03 | null         | 2         | 40
        DE      | 2026-01-02 | null         | 1         | 5
        """,
        "customers bigint, most double",
    )
    assert_rows(raw.table(wealth).read(), expected)
    expected = table("country | is_rich\nAT | false\nAT | true\nDE | false", "is_rich boolean")
    assert_rows(raw.table(rich).read().select("country", "is_rich"), expected)
    # the row of the csv file that nobody could read went around the join
    rejected = raw.quarantine(spend).read().select("reason").collect()
    assert [row["reason"] for row in rejected] == ["row does not fit the schema"]
    version = raw.table(spend).version()
    state = source_state(enriched, raw.lakes), source_state(purchases, raw.lakes, table=raw.table(spend))
    assert (state[0], state[1]["table_version"]) == ({"kind": "unknown"}, version)


def test_a_group_that_was_not_computed_as_registered_is_no_source(raw: Place) -> None:
    register(raw, *ALL)
    error = refused(raw, lambda: computed(raw, "wealth"))
    assert (error.subject, error.hint) == ("FeatureGroup 'spend'", "run `tidemark compute --group spend`")
    assert "has no offline table yet" in error.problem
    computed(raw, "spend")
    assert computed(raw, "wealth").rows == 3
    other = dataclasses.replace(spend, ttl="9d")
    register(raw, *(other if item is spend else item for item in ALL))
    error = refused(raw, lambda: computed(raw, "wealth"))
    assert "its table was computed with definitions" in error.problem


def test_what_is_made_from_a_group_that_failed_is_told_so_and_left_as_it_was(raw: Place, table: Table) -> None:
    profile = FeatureGroup(
        "profile", entity=customer, source=purchases, features=[Feature("amount", "double")], offline="parquet"
    )
    register(raw, *ALL, profile)
    computed(raw)
    versions = [raw.table(group).version() for group in (spend, wealth, rich)]
    put_text(raw, "customer_id,country\nc1,AT\n", "lake://raw/customers")
    error = refused(raw, lambda: computed(raw))
    assert isinstance(error, GroupsFailed)
    assert [group.group for group in error.report.groups] == ["profile"]
    subjects = [fault.subject for fault in error.failed]
    assert subjects == ["Source 'customers'", "FeatureGroup 'wealth'", "FeatureGroup 'rich'"]
    assert error.failed[1].problem == "is made from spend, which failed in this run"
    assert error.failed[2].problem == "is made from wealth, which failed in this run"
    assert [raw.table(group).version() for group in (spend, wealth, rich)] == versions


DEFINITIONS = """
from feature_defs import Entity, Feature, FeatureGroup, Source
customer = Entity("customer", keys={"customer_id": "string"})
purchases = Source("purchases", path="lake://raw/purchases", format="parquet", event_time="at",
                   schema={"customer_id": "string", "amount": "double", "at": "timestamp"})
limits = Source("limits", path="lake://raw/limits", format="parquet", event_time="at")

def large(limits, purchases):
    return purchases.crossJoin(limits.select("least")).where("amount >= least")

big = Source("big", inputs=[purchases, limits], transform=large, event_time="at")
spend = FeatureGroup("spend", entity=customer, source=big, features=[Feature("amount", "double")])
"""


def test_a_function_over_several_sources_gets_each_by_its_name(raw: Place, table: Table) -> None:
    put(raw, table("least | at\n10 | 2026-01-01", "least double, at timestamp"), "lake://raw/limits")
    write_definitions(raw, DEFINITIONS)
    apply(raw)
    computed(raw)
    found = raw.table(raw.applied().definitions.groups["spend"]).read().select("customer_id", "amount")
    assert_rows(found, table("customer_id | amount\nc1 | 10\nc1 | 30", "amount double"))
    write_definitions(raw, DEFINITIONS.replace(">= least", "> least"))
    error = refused(raw, lambda: computed(raw))
    assert error.subject == "Source 'big'"
    assert error.problem == "its transform in the definition files is not the one that was applied"


def test_rows_made_from_others_are_held_against_the_schema(raw: Place, table: Table) -> None:
    def made(**changes: Any) -> Source:
        source = dataclasses.replace(enriched, **changes)
        register(raw, *BASE, source)
        return source

    types = {"customer_id": "string", "amount": "double", "at": "timestamp"}
    declared = made(schema=types)
    assert source_rows(raw, raw.applied(), declared).extra_columns == ("country",)
    wrong = {
        "column 'amount' is double, declared bigint": made(schema={**types, "amount": "bigint"}),
        "holds no rows: made from purchases, customers": made(sql=SQL + " where amount > 1e9"),
        "gives column 'customer_id' twice": made(sql="select * from {purchases} p cross join {customers} c"),
        "sql: [UNRESOLVED_COLUMN.WITH_SUGGESTION]": made(sql=SQL.replace("c.country", "c.land")),
        "sql: [PARSE_SYNTAX_ERROR]": made(sql=SQL + " group by by by"),
    }
    for problem, source in wrong.items():
        register(raw, *BASE, source)
        error = refused(raw, lambda source=source: read(raw, source))  # type: ignore[misc]  # bound at once
        assert isinstance(error, DataError)
        assert (error.subject, problem in error.problem) == ("Source 'enriched'", True), error
    writes = made(sql="with x as (select 1 as n from {purchases}, {customers}) insert into nowhere select * from x")
    assert "sql: [PARSE_SYNTAX_ERROR]" in refused(raw, lambda: read(raw, writes)).problem
    braces = made(sql=SQL + r" where customer_id rlike '^[a-z]{1}[0-9]{1,3}$'")
    assert read(raw, braces).where("customer_id is not null").count() == 3


def test_show_names_what_a_definition_is_made_from_and_what_is_made_from_it(place: Place) -> None:
    register(place, *ALL, Service("service", [rich]))
    assert show(place, "wealth").lineage == {
        "made from": ("group spend v1",), "used by groups": ("rich",), "used by services": (),
    }  # fmt: skip
    assert show(place, "spend").lineage["made from"] == ("enriched (sql over purchases, customers)",)
    assert show(place, "purchases").lineage == {"used by sources": ("enriched",), "used by groups": ()}
    assert show(place, "enriched").lineage == {"used by groups": ("spend",)}
    assert show(place, "service").lineage["made from"] == ("group wealth v1",)
    assert "inputs: purchases, customers" in show(place, "enriched").text()


def test_the_page_on_sources_tells_the_truth(tmp_path: Path) -> None:
    """Its definitions are sound and its profile is one."""
    page = Path(__file__).resolve().parent.parent.joinpath("docs", "sources.md").read_text(encoding="utf-8")
    (code,), (profile,) = (re.findall(rf"```{kind}\n(.*?)```", page, re.DOTALL) for kind in ("python", "toml"))
    definitions = load(write(tmp_path, {"definitions/shop.py": code}) / "definitions")
    assert f"fingerprint: {fingerprint(definitions.groups['customer_spend'], definitions)}" in page
    write(
        tmp_path,
        {"place.toml": f'name = "x"\ndefinitions = "definitions"\n[lakes]\n[online]\nkind = "none"\n{profile}'},
    )
    assert load_settings(str(tmp_path / "place.toml"), {}).databases["shop"].parallel["orders"].partitions == 8
