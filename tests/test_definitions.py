"""Definition files: what loads, and what each mistake is called. Every file here is written and loaded for real."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_defs import Aggregate, Entity, Expectation, Feature, FeatureGroup, FeatureSelection, Service, Source
from feature_defs.checks import check
from feature_defs.errors import DefinitionError, near_miss
from feature_defs.loading import load
from feature_defs.model import Definition
from feature_defs.snapshot import from_plain, to_plain
from tests.definition_files import GOOD, edited, faults_of, loaded, write

ROOT = Path(__file__).resolve().parent.parent

# --- what loads ---


def test_a_good_file_gives_its_definitions_by_name(tmp_path: Path) -> None:
    found = loaded(tmp_path)
    assert (list(found.entities), list(found.sources)) == (["customer"], ["orders"])
    assert [feature.name for feature in found.groups["spend"].features] == ["orders", "spent_30d", "mean"]
    assert [group.name for group, _ in found.features_of(found.services["churn"])] == ["spend"]


def test_a_definition_knows_its_line(tmp_path: Path) -> None:
    group = loaded(tmp_path).groups["spend"]
    assert [feature.at.line for feature in group.features] == [10, 11, 12]
    assert (group.at.line, Path(group.at.file).name) == (7, "shop.py")


def test_definitions_in_lists_tuples_and_dicts_count(tmp_path: Path) -> None:
    text = """\
from feature_defs import Entity
LISTED = [Entity(f"listed_{n}", keys={"id": "int"}) for n in range(2)]
PAIR = (Entity("paired", keys={"id": "int"}), "not a definition")
BY_NAME = {"one": Entity("named", keys={"id": "int"})}
"""
    assert set(loaded(tmp_path, text).entities) == {"listed_0", "listed_1", "paired", "named"}


def test_files_import_from_one_another_in_folders_and_each_definition_counts_once(tmp_path: Path) -> None:
    lines = GOOD.splitlines(keepends=True)
    files = {
        "base/entities.py": lines[0] + lines[1],
        "base/sources.py": lines[0] + "".join(lines[2:6]),
        "groups.py": lines[0]
        + "from .base.entities import customer\nfrom .base import sources\norders = sources.orders\n"
        + "".join(lines[6:15]),
        "services.py": "from feature_defs import Service\nfrom .groups import *\n" + lines[15],
    }
    found = load(write(tmp_path, files))
    assert to_plain(found) == to_plain(loaded(tmp_path / "one_file"))


def test_names_may_stand_for_the_definitions_of_other_files(tmp_path: Path) -> None:
    """entity= and source= take a name, and so does a service."""
    text = edited(
        ("entity=customer, source=orders", 'entity="customer", source="orders"'),
        ('[spend["orders", "mean"]]', '["spend"]'),
    )
    found = loaded(tmp_path, text)
    assert found.entity_of(found.groups["spend"]).keys == {"customer_id": "string"}
    assert [f.name for _, features in found.features_of(found.services["churn"]) for f in features][-1] == "mean"


def test_tests_caches_and_checkpoints_are_no_definitions(tmp_path: Path) -> None:
    broken = "this is no Python"
    names = ("test_shop.py", "sub/test_more.py", "__pycache__/x.py", ".ipynb_checkpoints/x.py", "__init__.py")
    write(tmp_path, dict.fromkeys(names, broken))
    assert list(loaded(tmp_path).groups) == ["spend"]


def test_a_file_that_was_just_rewritten_is_loaded_as_it_is_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Same second, same size: Python's own cache would give the old one."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    for ttl in ("90d", "30d", "10d"):
        assert loaded(tmp_path, edited(('ttl="90d"', f'ttl="{ttl}"'))).groups["spend"].ttl == ttl
    assert not list(tmp_path.rglob("*.pyc"))


def test_the_standard_library_and_installed_packages_can_be_imported(tmp_path: Path) -> None:
    assert loaded(tmp_path, "import math, json, pytest\n" + GOOD).groups.keys() == {"spend"}


# --- one mistake, one fault ---

ENTITY, SOURCE, GROUP, SERVICE = "Entity 'customer'", "Source 'orders'", "FeatureGroup 'spend'", "Service 'churn'"
MEAN, SPENT = "Feature 'spend.mean'", "Feature 'spend.spent_30d'"
FEATURES = """[
        Feature("orders", "bigint", Aggregate("count")),
        Feature("spent_30d", "double", Aggregate("sum", "amount", window="30d", where="amount > 0")),
        Feature("mean", "double", "spent_30d / nullif(orders, 0)"),
    ]"""
COUNT = 'Feature("orders", "bigint", Aggregate("count")),'
ROWS = 'every="1d", '

MISTAKES = [
    # name of the mistake, (old, new) in the good file, line, subject, part of the problem, part of the hint
    # Python
    ("syntax", ('keys={"customer_id": "string"})', 'keys={"customer_id": "string")'), 2, "File",
     "closing parenthesis ')'", "correct the Python syntax"),
    ("exception", ("customer = Entity(", "1 / 0\ncustomer = Entity("), 2, "File",
     "ZeroDivisionError: division by zero", "correct this line"),
    ("exit", ("customer = Entity(", "raise SystemExit(0)\ncustomer = Entity("), 2, "File", "SystemExit: 0",
     "correct this line"),
    ("misspelt name", ('Feature("mean"', 'Featur("mean"'), 12, "File", "name 'Featur' is not defined",
     "correct this line"),
    ("misspelt keyword", ('owner="crm"', 'owne="crm"'), 7, "File", "unexpected keyword argument 'owne'",
     "did you mean 'owner'? FeatureGroup takes name, entity"),
    ("missing keyword", (', event_time="ordered_at"', ""), 3, "File",
     "missing 1 required keyword-only argument: 'event_time'", "give Source what it names"),
    ("no keyword", ('"spend", entity=customer', '"spend", customer'), 7, "File",
     "FeatureGroup.__init__() takes 2 positional", "write these with their names: entity=, source=, features="),
    ("unknown package", ("customer = Entity(", "import pyspark_extra\ncustomer = Entity("), 2, "File",
     "No module named 'pyspark_extra'", "install the package, or correct the name"),
    ("import without a dot", ("customer = Entity(", "import base\ncustomer = Entity("), 2, "File",
     "No module named 'base'", "with a leading dot: from .base import"),
    # entity
    ("entity name", ('Entity("customer"', 'Entity("Customer"'), 2, "Entity 'Customer'",
     "name 'Customer' is not usable", "start with a letter"),
    ("no keys", ('keys={"customer_id": "string"}', "keys={}"), 2, ENTITY, "keys must map at least one column",
     'write keys={"customer_id"'),
    ("list of keys", ('keys={"customer_id": "string"}', 'keys=["customer_id"]'), 2, ENTITY,
     "keys must map at least one column", 'write keys={"customer_id"'),
    ("key type", ('keys={"customer_id": "string"}', 'keys={"customer_id": "str"}'), 2, ENTITY,
     "key 'customer_id': 'str' is not a type; write 'string'", "known types: boolean"),
    ("key of doubles", ('keys={"customer_id": "string"}', 'keys={"customer_id": "double"}'), 2, ENTITY,
     "type double, which cannot be a key", "use one of string, bigint"),
    ("two keys in two cases",
     ("orders = Source(", 'pair = Entity("pair", keys={"id": "int", "ID": "int"})\norders = Source('), 3,
     "Entity 'pair'", "key 'ID' is there twice", "keep one"),
    # source
    ("path", ("lake://raw/orders", "s3://bucket/orders"), 3, SOURCE,
     "path 's3://bucket/orders' is not a logical path", "write lake://NAME/path"),
    ("source format", ('event_time="ordered_at",', 'event_time="ordered_at", format="delt",'), 3, SOURCE,
     "format 'delt' is not known", "did you mean 'delta'? use one of delta, parquet"),
    ("event_time", ('event_time="ordered_at"', 'event_time="orderd_at"'), 3, SOURCE,
     "event_time 'orderd_at' is not in the schema", "did you mean 'ordered_at'?"),
    ("created_time", ('filter="amount is not null"', 'created_time="amount"'), 3, SOURCE,
     "created_time 'amount' has type double, expected timestamp", "declare it as timestamp"),
    ("column type", ('"amount": "double"', '"amount": "float64"'), 3, SOURCE,
     "column 'amount': 'float64' is not a type; write 'double'", "known types: boolean"),
    ("filter column", ("amount is not null", "amont is not null"), 3, SOURCE,
     "filter names 'amont', which is not in source 'orders' (customer_id, amount, ordered_at)",
     "did you mean 'amount'?"),
    ("filter quote", ("amount is not null", "amount = 'x"), 3, SOURCE,
     "filter: the quote at character 10 is never closed", "correct the Spark SQL"),
    ("empty schema", ('{"customer_id": "string", "amount": "double", "ordered_at": "timestamp"}', "{}"), 3, SOURCE,
     "schema must map columns to types", 'write schema={"amount"'),
    ("source description", ('event_time="ordered_at"', 'event_time="ordered_at", description=5'), 3, SOURCE,
     "description is int, expected text", 'write description="..."'),
    # group
    ("group name", ('    "spend"', '    "my spend"'), 7, "FeatureGroup 'my spend'", "name 'my spend' is not usable",
     "start with a letter"),
    ("entity by a near name", ("entity=customer", 'entity="custmer"'), 7, GROUP, "entity 'custmer' is not defined",
     "did you mean 'customer'? known: customer"),
    ("source by a near name", ("source=orders", 'source="order"'), 7, GROUP, "source 'order' is not defined",
     "did you mean 'orders'? known: orders"),
    ("entity in place", ("entity=customer", 'entity=Entity("buyer", keys={"customer_id": "string"})'), 7, GROUP,
     "entity 'buyer' stands at the top level of no file", "give it a name of its own"),
    ("ttl of nothing", ('ttl="90d"', 'ttl="0d"'), 7, GROUP, "ttl: '0d' has no length",
     'write ttl="90d", or leave it out'),
    ("ttl in words", ('ttl="90d"', 'ttl="90 days"'), 7, GROUP, "ttl: '90 days' is not a length of time",
     'write ttl="90d"'),
    ("ttl as a number", ('ttl="90d"', "ttl=90"), 7, GROUP, "ttl: 90 is not a length of time", 'write ttl="90d"'),
    ("every", ('every="1d"', 'every="daily"'), 7, GROUP, "every: 'daily' is not a length of time",
     'write every="90d"'),
    ("offline format", ('ttl="90d"', 'ttl="90d", offline="iceberg"'), 7, GROUP, "offline 'iceberg' is not known",
     "use one of delta, parquet"),
    ("version", ('ttl="90d"', 'ttl="90d", version=0'), 7, GROUP, "version 0 is not a version", "whole number from 1"),
    ("status", ('ttl="90d"', 'ttl="90d", status="activ"'), 7, GROUP, "status 'activ' is not known",
     "did you mean 'active'?"),
    ("online", ('ttl="90d"', 'ttl="90d", online="yes"'), 7, GROUP, "online is str, expected True or False",
     "write online=True"),
    ("owner", ('owner="crm"', 'owner=["crm"]'), 7, GROUP, "owner is list, expected text", 'write owner="..."'),
    ("tags as text", ('tags=["crm"]', 'tags="crm"'), 7, GROUP, "tags is 'crm'", 'write tags=["crm", "daily"]'),
    ("one feature without a list", (FEATURES, 'Feature("orders", "bigint", Aggregate("count"))'), 7, GROUP,
     "features is Feature, expected a list", "write features=[Feature("),
    ("text among features", (COUNT, f'{COUNT} "spent",'), 7, GROUP, "features holds str",
     "each item is Feature(name, type, expression)"),
    ("feature twice", (COUNT, f'{COUNT} Feature("Orders", "bigint", Aggregate("count")),'), 7, GROUP,
     "feature 'Orders' is there twice", "keep one of the two"),
    ("feature named as a key", (COUNT, f'{COUNT} Feature("Customer_ID", "string", "customer_id"),'), 7, GROUP,
     "feature 'Customer_ID' has the name of a key", "rename the feature"),
    ("key not in the source", ('keys={"customer_id": "string"}', 'keys={"customerid": "string"}'), 7, GROUP,
     "key 'customerid' is not a column of source 'orders' (customer_id, amount, ordered_at)",
     "did you mean 'customer_id'?"),
    ("transform of text", ('ttl="90d"', 'ttl="90d", transform="flatten"'), 7, GROUP, "transform is not a function",
     "takes a DataFrame"),
    ("transform of a lambda", ('ttl="90d"', 'ttl="90d", transform=lambda rows: rows'), 7, GROUP,
     "transform is a lambda", "with def"),
    ("transform of a builtin", ('ttl="90d"', 'ttl="90d", transform=len'), 7, GROUP, "transform is not a function",
     "takes a DataFrame"),
    ("skip_nulls", ('ttl="90d"', 'ttl="90d", skip_nulls=True'), 7, GROUP, "has skip_nulls= with aggregates",
     "leave skip_nulls out"),
    # feature
    ("feature name", (COUNT, f'{COUNT} Feature("mean spend", "double", "orders"),'), 10, "Feature 'spend.mean spend'",
     "feature name 'mean spend' is not usable as a column", "use letters"),
    ("reserved name", (COUNT, f'{COUNT} Feature("event_time", "double", "orders"),'), 10,
     "Feature 'spend.event_time'", "has a reserved name", "the two clocks; rename"),
    ("reserved name in another case", (COUNT, f'{COUNT} Feature("Created_Time", "double", "orders"),'), 10,
     "Feature 'spend.Created_Time'", "has a reserved name", "the two clocks; rename"),
    ("unknown type", ('"orders", "bigint"', '"orders", "int64"'), 10, "Feature 'spend.orders'",
     "type: 'int64' is not a type; write 'bigint'", "known types: boolean"),
    ("misspelt type", ('"mean", "double"', '"mean", "doubl"'), 12, MEAN, "type: 'doubl' is not a type",
     "did you mean 'double'?"),
    ("struct", ('"mean", "double"', '"mean", "struct<a:int>"'), 12, MEAN, "type struct<a:int> cannot be a feature",
     "use one of boolean"),
    ("map by numbers", ('"mean", "double"', '"mean", "map<int,double>"'), 12, MEAN,
     "type map<int,double> cannot be a feature", "arrays, and maps from string, hold boolean, int"),
    ("map of dates", ('"mean", "double"', '"mean", "map<string,date>"'), 12, MEAN,
     "type map<string,date> cannot be a feature", "arrays, and maps from string, hold boolean, int"),
    ("map as a key", ('keys={"customer_id": "string"}', 'keys={"customer_id": "map<string,int>"}'), 2,
     "Entity 'customer'", "key 'customer_id' has type map<string,int>, which cannot be a key", "use one of string"),
    ("allowed_values of a map", ('"mean", "double", "spent_30d / nullif(orders, 0)"',
     '"mean", "map<string,double>", "map(\'m\', spent_30d)", allowed_values=["buy"]'), 12, MEAN,
     "allowed_values cannot be those of a map<string,double>", 'write Expectation("known", "forall(map_keys(mean)'),
    ("kind", ('nullif(orders, 0)")', 'nullif(orders, 0)", kind="numeric")'), 12, MEAN, "kind 'numeric' is not known",
     "did you mean 'numerical'?"),
    ("allowed_values as text", ('nullif(orders, 0)")', 'nullif(orders, 0)", allowed_values="gold")'), 12, MEAN,
     "allowed_values is not a list", "write allowed_values=["),
    ("allowed_values of lists", ('nullif(orders, 0)")', 'nullif(orders, 0)", allowed_values=[["gold"]])'), 12, MEAN,
     "allowed_values holds list", "write allowed_values=["),
    ("unknown column", ("spent_30d / nullif(orders, 0)", "spent30d / nullif(orders, 0)"), 12, MEAN,
     "expression names 'spent30d', which is not in the group's features and keys", "did you mean 'spent_30d'?"),
    ("column beside aggregates", ("spent_30d / nullif(orders, 0)", "spent_30d / amount"), 12, MEAN,
     "names 'amount', which is not in the group's features and keys (an expression beside aggregates",
     "name one of those"),
    ("its own name", ("spent_30d / nullif(orders, 0)", "mean + 1"), 12, MEAN,
     "expression names 'mean', which is not in", "name one of those"),
    ("bracket", ("spent_30d / nullif(orders, 0)", "(spent_30d / nullif(orders, 0)"), 12, MEAN,
     "expression: '(' is never closed in: (spent_30d", "correct the Spark SQL"),
    ("window function", ("spent_30d / nullif(orders, 0)", "lag(orders) over (order by event_time)"), 12, MEAN,
     "expression has a window function (OVER): a run over new rows alone would give other values than a full one",
     "write an Aggregate, or a transform, which may read any row"),
    ("expression of a number", ('"spent_30d / nullif(orders, 0)"', "0"), 12, MEAN, "expression is int",
     "give Spark SQL as text, or an Aggregate"),
    ("no expression beside aggregates", (', "spent_30d / nullif(orders, 0)"', ""), 12, MEAN,
     "has no expression in a group with aggregates", "give it an Aggregate"),
    # aggregate
    ("function", ('Aggregate("sum"', 'Aggregate("summ"'), 11, SPENT, "aggregate 'summ' is not known",
     "did you mean 'sum'?"),
    ("k where none is taken", ('"amount", window', '"amount", k=3, window'), 11, SPENT, "aggregate sum takes no k=",
     "k= is for last_k, top_k"),
    ("k that is missing", ('Aggregate("sum"', 'Aggregate("top_k"'), 11, SPENT, "aggregate top_k needs k=", "write k=5"),
    ("k of nothing", ('Aggregate("sum", "amount"', 'Aggregate("last_k", "amount", k=0'), 11, SPENT,
     "k is 0, expected a whole number from 1 to 10,000", "write k=5"),
    ("q in percent", ('Aggregate("sum", "amount"', 'Aggregate("quantile", "amount", q=95'), 11, SPENT,
     "q is 95, expected a share above 0 and up to 1", "write q=0.95"),
    ("by an unknown column", ('"amount", window', '"amount", by="kind", window'), 11, SPENT, "by names 'kind'",
     "name one of those"),
    ("by with a sketch", ('Aggregate("sum", "amount"', 'Aggregate("distinct", "amount", by="customer_id"'), 11, SPENT,
     "aggregate distinct cannot be grouped by a column", "by= is for count, sum"),
    ("no column", ('Aggregate("sum", "amount", ', 'Aggregate("sum", '), 11, SPENT, "aggregate sum has no column",
     'write Aggregate("sum", "amount")'),
    ("aggregate column", ('"sum", "amount"', '"sum", "amonut"'), 11, SPENT,
     "aggregate column names 'amonut', which is not in source 'orders'", "did you mean 'amount'?"),
    ("where column", ('where="amount > 0"', 'where="amounts > 0"'), 11, SPENT,
     "where names 'amounts', which is not in source 'orders'", "did you mean 'amount'?"),
    ("window", ('window="30d"', 'window="30 days"'), 11, SPENT, "window: '30 days' is not a length of time",
     'write window="90d"'),
    ("window function in an aggregate", ('"sum", "amount"', '"sum", "amount - lag(amount) over (order by ordered_at)"'),
     11, SPENT, "aggregate column has a window function (OVER)", "write an Aggregate, or a transform"),
    ("window function in where",
     ('where="amount > 0"', 'where="row_number() over (partition by customer_id order by ordered_at) = 1"'), 11, SPENT,
     "where has a window function (OVER)", "write an Aggregate, or a transform"),
    ("window function in by",
     ('"amount", window', '"amount", by="lag(customer_id) over (order by ordered_at)", window'), 11, SPENT,
     "by has a window function (OVER)", "write an Aggregate, or a transform"),
    ("window off the grid", ('window="30d"', 'window="36h"'), 11, SPENT, "window 36h is not a multiple of every=1d",
     "make it one, or make the grid finer"),
    # expectation
    ("condition column", ("mean >= 0", "maen >= 0"), 7, GROUP,
     "expectation 'not_negative' names 'maen', which is not in the group's columns", "did you mean 'mean'?"),
    ("window function in a condition", ("mean >= 0", "mean >= avg(mean) over ()"), 7, GROUP,
     "expectation 'not_negative' has a window function (OVER)", "write an Aggregate, or a transform"),
    ("severity", ('"mean >= 0"', '"mean >= 0", severity="error"'), 7, GROUP, "severity 'error' is not known",
     "use one of warn, quarantine, stop"),
    ("expectation of text", ('[Expectation("not_negative", "mean >= 0")]', '["mean >= 0"]'), 7, GROUP,
     "expectations holds str", "write Expectation("),
    ("expectation without a list",
     ('[Expectation("not_negative", "mean >= 0")]', 'Expectation("not_negative", "mean >= 0")'), 7, GROUP,
     "expectations is Expectation, expected a list", "write expectations=["),
    ("expectation twice",
     ('[Expectation("not_negative", "mean >= 0")]', '[Expectation("a", "mean >= 0"), Expectation("a", "mean < 9")]'),
     7, GROUP, "expectation 'a' is there twice", "keep one"),
    # service
    ("feature not in the group", ('spend["orders", "mean"]', 'spend["orders", "means"]'), 16, SERVICE,
     "feature 'means' is not in group 'spend' (orders, spent_30d, mean)", "did you mean 'mean'?"),
    ("group by a near name", ('spend["orders", "mean"]', '"spent"'), 16, SERVICE, "group 'spent' is not defined",
     "did you mean 'spend'?"),
    ("service without a list", ('[spend["orders", "mean"]]', "spend"), 16, SERVICE,
     "features is FeatureGroup, expected a list", 'write features=[group["feature"]]'),
    ("service of nothing", ('[spend["orders", "mean"]]', "[]"), 16, SERVICE, "has no features",
     'write features=[group["feature"]]'),
    ("entity in a service", ('spend["orders", "mean"]', "customer"), 16, SERVICE, "features holds Entity",
     "each item is a group"),
    ("feature twice in a service", ('spend["orders", "mean"]', 'spend["orders", "orders"]'), 16, SERVICE,
     "feature 'spend.orders' is there twice", "keep one of the two"),
    ("service version", ('spend["orders", "mean"]]', 'spend["orders", "mean"]], version="2"'), 16, SERVICE,
     "version '2' is not a version", "whole number from 1"),
    # the same name again
    ("second entity", ("orders = Source(", 'again = Entity("customer", keys={"id": "int"})\norders = Source('), 3,
     ENTITY, "the name is taken by ", "rename one of the two"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "line", "subject", "problem", "hint"),
    [mistake[1:] for mistake in MISTAKES],
    ids=[mistake[0].replace(" ", "_") for mistake in MISTAKES],
)
def test_one_mistake_is_one_fault(
    tmp_path: Path, change: tuple[str, str], line: int, subject: str, problem: str, hint: str
) -> None:
    """At its line, of its object, with the next action, and nothing else is blamed for it."""
    write(tmp_path, {"shop.py": edited(change), "base.py": ""})
    (fault,) = faults_of(tmp_path)
    assert (Path(fault.file).name, fault.line, fault.subject) == ("shop.py", line, subject)
    assert problem in fault.problem
    assert hint in fault.hint


def test_the_table_of_mistakes_has_no_name_twice() -> None:
    names = [mistake[0] for mistake in MISTAKES]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_csv_and_json_need_a_schema(tmp_path: Path, kind: str) -> None:
    schema = '\n    schema={"customer_id": "string", "amount": "double", "ordered_at": "timestamp"},'
    (fault,) = faults_of(write(tmp_path, {"shop.py": edited((schema, f'\n    format="{kind}",'))}))
    assert (fault.subject, fault.problem) == (SOURCE, f"format {kind} needs a schema")


@pytest.mark.parametrize(
    ("told", "problem"),
    [
        ("multi_line=True", "multi_line is said of csv, and the format is delta"),
        ('multi_line="yes", format="csv"', "multi_line is str, expected True or False"),
    ],
)
def test_multi_line_is_a_switch_of_csv(tmp_path: Path, told: str, problem: str) -> None:
    schema = '\n    schema={"customer_id"'
    (fault,) = faults_of(write(tmp_path, {"shop.py": edited((schema, f"\n    {told},{schema}"))}))
    assert (fault.subject, fault.problem) == (SOURCE, problem)


@pytest.mark.parametrize("first", ["b + amount", "B + amount"])  # Spark compares names whatever their case
def test_features_that_need_one_another_are_named(tmp_path: Path, first: str) -> None:
    features = f"""[
        Feature("a", "double", "{first}"), Feature("b", "double", "c"), Feature("c", "double", "a"),
        Feature("d", "double", "amount"),
    ]"""
    text = edited((FEATURES, features), (ROWS, ""), ("mean >= 0", "d >= 0"), ('"orders", "mean"', '"d"'))
    (fault,) = faults_of(write(tmp_path, {"shop.py": text}))
    assert (fault.subject, fault.problem) == (GROUP, "features a, b, c need one another")


def test_a_grid_without_aggregates_is_refused(tmp_path: Path) -> None:
    text = edited(
        (FEATURES, '[Feature("amount", "double")]'), ("mean >= 0", "amount >= 0"), ('"orders", "mean"', '"amount"')
    )
    (fault,) = faults_of(write(tmp_path, {"shop.py": text}))
    assert (fault.subject, fault.problem) == (GROUP, "has every= but no Aggregate")


def test_a_feature_without_an_expression_is_a_column_of_the_source(tmp_path: Path) -> None:
    text = edited(
        (FEATURES, '[Feature("amont", "double")]'),
        (ROWS, ""),
        ("mean >= 0", "amont >= 0"),
        ('"orders", "mean"', '"amont"'),
    )
    (fault,) = faults_of(write(tmp_path, {"shop.py": text}))
    assert fault.problem == "is not a column of source 'orders' (customer_id, amount, ordered_at)"
    assert fault.hint.startswith("did you mean 'amount'?")


def test_a_transform_that_hides_a_value_is_refused(tmp_path: Path) -> None:
    """Its text would not change with the value, so a change would not be recomputed."""
    maker = "def last(days):\n    def cut(rows):\n        return rows.limit(days)\n    return cut\n"
    text = edited(('ttl="90d"', 'ttl="90d", transform=last(7)')).replace("customer = ", f"{maker}customer = ")
    (fault,) = faults_of(write(tmp_path, {"shop.py": text}))
    assert fault.problem == "transform 'cut' uses days of the function that made it"


@pytest.mark.parametrize(
    ("code", "transform"),
    [
        ("", "times(cut, 7)"),
        ("cut = times(cut, 7)\n", "cut"),
        ("twice = times(cut, 7)\n", "twice"),
        ("@seven\ndef last(rows):\n    return rows\n", "times(last, 7)"),
        ("@seven\ndef last(rows):\n    return rows\nlast = times(last, 7)\n", "last"),
    ],
)
def test_a_transform_that_a_call_has_wrapped_is_refused(tmp_path: Path, code: str, transform: str) -> None:
    """Its text is that of the function within: neither what the call adds nor what it is given would be seen."""
    (fault,) = faults_of(write(tmp_path, {"shop.py": wrapped(code, transform)}))
    assert (fault.subject, fault.problem.split("' ")[1]) == (
        "FeatureGroup 'spend'",
        "is wrapped by more than the decorators above its def",
    )
    assert fault.hint.startswith("wrap it by a decorator there, at the top level of the file")


@pytest.mark.parametrize("decorators", ["@seven", "@seven\n@functools.cache", "@with_times(7)"])
def test_a_transform_may_be_wrapped_by_decorators(tmp_path: Path, decorators: str) -> None:
    code = f"{decorators}\ndef last(rows):\n    return rows\n"
    assert faults_of(write(tmp_path, {"shop.py": wrapped(code, "last")})) == ()


def wrapped(code: str, transform: str) -> str:
    wrappers = """\
import functools
def times(function, number):
    @functools.wraps(function)
    def call(rows):
        return function(rows).limit(number)
    return call
def with_times(number):
    return lambda function: times(function, number)
def seven(function):
    return times(function, 7)
def cut(rows):
    return rows
"""
    return edited(
        ('ttl="90d"', f'ttl="90d", transform={transform}'),
        ("customer = Entity(", f"{wrappers}{code}customer = Entity("),
    )


def test_columns_that_a_transform_or_an_unknown_schema_gives_are_not_judged(tmp_path: Path) -> None:
    """What Spark alone can know, Spark says."""
    schema = 'schema={"customer_id": "string", "amount": "double", "ordered_at": "timestamp"},'
    changed = [
        edited((schema, ""), ('"sum", "amount"', '"sum", "anything"')),
        edited(('ttl="90d"', 'ttl="90d", transform=same'), ('"sum", "amount"', '"sum", "anything"')).replace(
            "customer = ", "def same(rows):\n    return rows\ncustomer = "
        ),
    ]
    assert [faults_of(write(tmp_path / str(n), {"shop.py": text})) for n, text in enumerate(changed)] == [(), ()]


# --- many mistakes ---


def test_all_faults_of_all_files_are_reported_at_once_in_order(tmp_path: Path) -> None:
    bad = [
        ('Entity("customer", keys={"customer_id": "string"})', 'Entity("customer", keys={"customer_id": "text"})'),
        ('ttl="90d"', 'ttl="0d"'),
        ('window="30d"', 'window="36h"'),
        ("nullif(orders, 0)", "nullif(order, 0)"),
        ("mean >= 0", "men >= 0"),
        ('spend["orders", "mean"]', 'spend["order"]'),
    ]
    write(tmp_path, {"b.py": edited(*bad), "a.py": "x = 1 +\n", "c/d.py": "\n\nraise ValueError('no')\n"})
    found = [(Path(fault.file).name, fault.line, fault.subject) for fault in faults_of(tmp_path)]
    assert found == [
        ("a.py", 1, "File"),
        ("b.py", 2, ENTITY),
        ("b.py", 7, GROUP),
        ("b.py", 7, GROUP),
        ("b.py", 11, SPENT),
        ("b.py", 12, MEAN),
        ("b.py", 16, SERVICE),
        ("d.py", 3, "File"),
    ]


def test_a_file_that_does_not_load_is_one_fault_however_many_files_need_it(tmp_path: Path) -> None:
    lines = GOOD.splitlines(keepends=True)
    files = {
        "entities.py": lines[0] + lines[1].replace("keys=", "kys="),
        "groups.py": lines[0] + "from .entities import customer\n" + "".join(lines[2:15]),
        "services.py": 'from feature_defs import Service\nchurn = Service("churn", ["spend"])\n',
        "more.py": "from .groups import spend\n",
    }
    (fault,) = faults_of(write(tmp_path, files))
    assert (Path(fault.file).name, fault.line) == ("entities.py", 2)
    assert "did you mean 'keys'?" in fault.hint


def test_definitions_named_from_a_file_that_does_not_load_are_not_called_undefined(tmp_path: Path) -> None:
    lines = GOOD.splitlines(keepends=True)
    group = "".join(lines[6:]).replace("entity=customer, source=orders", 'entity="customer", source="orders"')
    group = group.replace("spent_30d / nullif(orders, 0)", "spent_30d + length(customer_id)")
    files = {"base.py": "".join(lines[:6]) + "1 / 0\n", "groups.py": lines[0] + group}
    assert [Path(fault.file).name for fault in faults_of(write(tmp_path, files))] == ["base.py"]


def test_a_fault_is_shown_as_a_compiler_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, {"defs/shop.py": edited(('ttl="90d"', 'ttl="0d"'))})
    with pytest.raises(DefinitionError) as raised:
        load(Path("defs"))
    assert str(raised.value) == (
        "defs/shop.py:7\n"
        "  FeatureGroup 'spend': ttl: '0d' has no length; leave it out for no limit\n"
        '  Hint: write ttl="90d", or leave it out for no limit\n'
        "Definitions: 1 fault. Correct the files named above and run `tidemark check`."
    )


@pytest.mark.parametrize(("name", "problem"), [("nothing", "is not a folder"), ("empty", "holds no definition files")])
def test_a_folder_without_definitions_is_a_fault(tmp_path: Path, name: str, problem: str) -> None:
    (tmp_path / "empty").mkdir()
    (fault,) = faults_of(tmp_path / name)
    assert fault.problem == problem


@pytest.mark.parametrize("content", [b"x = '\xff\xfe'\n", b"x = 1\0\n", b"\xef\xbb\xbfx = (\n"])
def test_a_file_that_is_no_python_text_is_a_fault_of_that_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "odd.py").write_bytes(content)
    (fault,) = faults_of(tmp_path)
    assert (Path(fault.file).name, fault.subject) == ("odd.py", "File")


def test_a_syntax_error_in_evaluated_text_is_a_fault_of_the_line_that_evaluates_it(tmp_path: Path) -> None:
    (fault,) = faults_of(write(tmp_path, {"shop.py": "x = 1\ny = eval('1 +')\n"}))
    assert (Path(fault.file).name, fault.line) == ("shop.py", 2)


# --- whatever a user passes ---

ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 2)
    | st.floats()
    | st.binary(max_size=2)
    | st.sampled_from(["", "a", "bigint", "1d", "customer", "orders", "amount", "spend", "count", "x'", "active"])
    | st.just(object())
    | st.just(len)
    | st.just(Entity)
    | st.just(range(2)),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.tuples(inner)
        | st.dictionaries(st.integers(0, 1) | st.just("a"), inner, max_size=2)
    ),
    max_leaves=4,
)
OPTIONAL: dict[type, dict[str, Any]] = {
    Entity: {"name": "customer", "keys": {"id": "string"}, "description": ""},
    Source: {
        "name": "orders",
        "path": "lake://raw/orders",
        "event_time": "at",
        "format": "delta",
        "created_time": None,
        "filter": "amount > 0",
        "schema": {"id": "string", "amount": "double", "at": "timestamp"},
        "description": "",
    },
    Aggregate: {"function": "sum", "column": "amount", "window": "2d", "where": "amount > 0"},
    Feature: {
        "name": "mean",
        "type": "double",
        "expression": "spent / 2",
        "kind": None,
        "description": "",
        "tags": (),
        "pii": False,
        "allowed_values": (),
    },
    Expectation: {"name": "positive", "condition": "mean > 0", "severity": "warn"},
    FeatureGroup: {
        "name": "spend",
        "entity": "customer",
        "source": "orders",
        "every": "1d",
        "ttl": "90d",
        "offline": "delta",
        "online": False,
        "version": 1,
        "owner": "",
        "description": "",
        "tags": (),
        "status": None,
        "skip_nulls": False,
        "transform": None,
    },
    FeatureSelection: {"group": "spend", "features": ("mean",)},
    Service: {"name": "churn", "version": 1, "owner": "", "description": "", "tags": ()},
}
FIELDS = [(word, field) for word, values in OPTIONAL.items() for field in values]
FIELDS += [(FeatureGroup, "features"), (FeatureGroup, "expectations"), (Service, "features")]


def a_set_of_definitions(wrong: dict[tuple[type, str], Any]) -> list[Definition]:
    """Good definitions of every word, with the wrong values in their places."""

    def built(word: type, **values: Any) -> Any:
        replaced = {field: value for (other, field), value in wrong.items() if other is word}
        return word(**{**OPTIONAL[word], **values, **replaced})

    aggregate = built(Aggregate)
    features = [Feature("spent", "double", aggregate), built(Feature)]
    group = built(FeatureGroup, features=features, expectations=[built(Expectation)])
    return [built(Entity), built(Source), group, built(Service, features=[built(FeatureSelection)])]


def check_and_keep(objects: list[Definition]) -> bool:
    """Whether they are sound; if so the registry can hold them."""
    definitions, faults = check(objects)
    assert (definitions is None) == bool(faults)
    for fault in faults:
        assert fault.subject
        assert fault.problem
        assert fault.hint
    if definitions is not None:
        plain = json.loads(json.dumps(to_plain(definitions)))
        assert to_plain(from_plain(plain)) == plain
    return definitions is not None


def test_the_definitions_that_are_made_wrong_below_are_good() -> None:
    assert check_and_keep(a_set_of_definitions({}))


@pytest.mark.parametrize(("word", "field"), FIELDS, ids=[f"{word.__name__}.{field}" for word, field in FIELDS])
def test_a_value_of_a_wrong_python_type_is_a_fault_in_every_field(word: type, field: str) -> None:
    """Found as a fault, not kept, not a traceback."""
    for value in (object(), 5.5, b"a", [[]], [None], {"a": [1]}, {1: 2}, ((1, [2]),), len):
        assert not check_and_keep(a_set_of_definitions({(word, field): value})), value


@given(st.dictionaries(st.sampled_from(FIELDS), ANYTHING, min_size=1, max_size=5))
@settings(max_examples=300, deadline=None)
def test_whatever_is_passed_check_gives_definitions_or_faults(wrong: dict[tuple[type, str], Any]) -> None:
    check_and_keep(a_set_of_definitions(wrong))


@given(st.lists(ANYTHING, max_size=3))
@settings(deadline=None)
def test_whatever_stands_in_lists_check_gives_definitions_or_faults(items: list[Any]) -> None:
    places = [(FeatureGroup, "features"), (FeatureGroup, "expectations"), (Service, "features")]
    check_and_keep(a_set_of_definitions(dict.fromkeys(places, items)))


# --- no Spark, no Java ---


def test_the_example_is_checked_where_there_is_no_java_and_starts_no_process(tmp_path: Path) -> None:
    """PySpark may be imported by a definition file for a transform; its JVM is another matter."""
    script = """
import sys
started, starts = [], {"subprocess.Popen", "os.posix_spawn", "os.fork", "os.exec", "os.system"}
sys.addaudithook(lambda event, _: started.append(event) if event in starts else None)
from jobs.command_line import main
code = main(["check", "--profile", "local"])
pyspark = sys.modules.get("pyspark")
assert pyspark is None or pyspark.SparkContext._active_spark_context is None
sys.exit(f"started {started}" if started else code)
"""
    environment = {**os.environ, "PATH": str(tmp_path), "PYTHONPATH": str(ROOT)}
    environment = {
        name: value for name, value in environment.items() if not name.startswith(("JAVA", "TIDEMARK", "SPARK"))
    }
    ran = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "5 groups, 18 features, 2 services: no fault" in ran.stdout


def test_key_of_another_type_than_the_source_declares_is_refused(tmp_path: Path) -> None:
    """The online key and every join follow the entity's type."""
    text = edited(
        ('Entity("customer", keys={"customer_id": "string"})', 'Entity("customer", keys={"customer_id": "bigint"})')
    )
    (fault,) = faults_of(write(tmp_path, {"shop.py": text}))
    assert (fault.subject, fault.problem) == (
        GROUP,
        "key 'customer_id' is string in source 'orders', bigint in the entity",
    )


def test_choosing_no_feature_of_a_group_is_refused(tmp_path: Path) -> None:
    """An empty choice is not all of them."""
    (fault,) = faults_of(write(tmp_path, {"shop.py": edited(('spend["orders", "mean"]', "spend[()]"))}))
    assert fault.problem == "chooses no feature of group 'spend'"


@pytest.mark.parametrize(
    ("kind", "value"), [("double", 'float("inf")'), ("string", "1"), ("bigint", '"a"'), ("int", "True")]
)
def test_allowed_values_are_of_the_features_type(tmp_path: Path, kind: str, value: str) -> None:
    """They become a condition in SQL, which would fail only when the job runs."""
    feature = f'Feature("orders", "{kind}", "1", allowed_values=[{value}])'
    text = edited(('Feature("orders", "bigint", Aggregate("count"))', feature))
    (fault,) = faults_of(write(tmp_path, {"shop.py": text}))
    assert fault.problem.startswith("allowed_values holds ")


def test_near_miss_sees_through_case() -> None:
    assert near_miss("at", ["CustID", "At", "Amt"]) == "did you mean 'At'? "
