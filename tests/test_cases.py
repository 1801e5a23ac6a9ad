"""`tidemark test`: cases of users' test files, their faults, and what is said of a case that fails."""

from __future__ import annotations

import datetime
import itertools
import json
import random
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from feature_defs.case_values import CellFault, differences, shown, value
from feature_defs.data_types import parse as data_type
from feature_defs.errors import DefinitionError, Fault, UsageError
from feature_defs.pipe_tables import parse
from jobs.command_line import main
from jobs.place import Place
from jobs.report import as_json
from jobs.testing import CaseResult, CasesReport, run_cases
from tests.conftest import settings_in
from tests.definition_files import GOOD, PROFILE, write

RETAIL = Path(__file__).resolve().parent.parent / "feature_defs" / "examples" / "retail"
UTC = datetime.timezone.utc

WORDS = """
from pyspark.sql import functions as F
from feature_defs import Aggregate, Entity, Expectation, Feature, FeatureGroup, Service, Source

customer = Entity("customer", keys={"customer_id": "string"})
order = Entity("order", keys={"customer_id": "string", "order_id": "bigint"})
orders = Source(
    "orders", path="lake://raw/orders", format="csv", event_time="ordered_at", created_time="known_at",
    filter="status <> 'test'",
    schema={"customer_id": "string", "order_id": "bigint", "amount": "double", "share": "float", "status": "string",
            "price": "decimal(10,2)", "day": "date", "ordered_at": "timestamp", "known_at": "timestamp",
            "device": "struct<os:string,build:int>", "tags": "array<string>", "mark": "binary"},
)
loose = Source("loose", path="lake://raw/loose", event_time="at")
kinds = FeatureGroup("kinds", entity=order, source=orders, features=[
    Feature("amount", "double"), Feature("share", "float"), Feature("price", "decimal(10,2)"),
    Feature("status", "string"), Feature("day", "date"), Feature("at", "timestamp", "ordered_at"),
    Feature("is_paid", "boolean", "status = 'paid'"), Feature("os", "string", "device.os"),
    Feature("tags", "array<string>"), Feature("mark", "binary"),
    Feature("ratio", "double", "if(status = 'ratio', amount / order_id, null)"),
], expectations=[
    Expectation("small", "amount < 1000", severity="quarantine"),
    Expectation("positive", "amount >= 0", severity="warn"),
    Expectation("possible", "amount < 1000000", severity="stop"),
])
totals = FeatureGroup("totals", entity=customer, source=orders, every="1d", ttl="2d", features=[
    Feature("orders", "bigint", Aggregate("count")),
    Feature("spent_2d", "double", Aggregate("sum", "amount", window="2d")),
])
newest = FeatureGroup("newest", entity=customer, source=orders, features=[
    Feature("newest_status", "string", "status"),
])
shout = lambda rows: rows.withColumn("word", F.upper("word"))
words = FeatureGroup("words", entity=customer, source=loose, features=[Feature("word", "string"),
    Feature("length", "int", "length(word) + extra")])
def broken(rows):
    return rows.select("no_such_column")
broken_group = FeatureGroup("broken_group", entity=customer, source=loose, transform=broken,
                            features=[Feature("word", "string")])
score = Service("score", [totals, newest["newest_status"]])
"""

CASES = '''
from feature_defs.testing import Case
from .words import kinds, totals

every_type = Case(kinds, source="""
    customer_id | order_id | amount | share | price | status | day        | tags               | mark | ordered_at
    c1          | 1        | 0.1    | 0.1   | 1.5   | paid   | 2026-01-01 | ["a", null, "\\\\|"] | 00ff | 2026-01-01
    c1          | 2        | null   | null  | null  |        | null       | []                 | null | 2026-01-01
""", expected="""
    order_id | customer_id | amount | share | price | status | day        | tags               | mark | created_time
    2        | c1          | null   | null  | null  |        | null       | []                 | null | null
    1        | c1          | 0.1    | 0.1   | 1.50  | paid   | 2026-01-01 | ["a", null, "\\\\|"] | 00ff | null
""")
times_and_structs = Case(kinds, source="""
    customer_id | order_id | status | ordered_at                 | device
    c1          | 1        | paid   | 2026-01-01 10:00:00.000001 | {"os": "mac", "build": 3}
    c1          | 2        |        | 2026-01-01T12:00:00+02:00  | null
""", expected="""
    order_id | at                         | event_time                 | is_paid | os
    2        | 2026-01-01 10:00           | 2026-01-01T10:00:00Z       | false   | null
    1        | 2026-01-01 10:00:00.000001 | 2026-01-01 10:00:00.000001 | true    | mac
""")
null_is_no_empty_text = Case(kinds, source="""
    customer_id | order_id | status | ordered_at
    c1          | 1        |        | 2026-01-01
    c1          | 2        | paid   | 2026-01-01
""", expected="""
    order_id | status
    1        | null
    2        | paid
""")
rows_in_the_wrong = Case(kinds, source="""
    customer_id | order_id | amount | status | ordered_at
    c1          | 1        | 10     | paid   | 2026-01-01
    c1          | 2        | 20     | paid   | 2026-01-01
    c1          | 3        | 30     | paid   | 2026-01-01
""", expected="""
    customer_id | order_id | amount
    c1          | 1        | 10.0000000001
    c1          | 2        | 20.0001
    c1          | 4        | 40
""")
near_enough = Case(kinds, tolerance=1e-3, source="""
    customer_id | order_id | amount | status | ordered_at
    c1          | 2        | 20     | paid   | 2026-01-01
""", expected="""
    amount
    20.0001
""")
rejections = Case(kinds, source="""
    customer_id | order_id | amount | status | ordered_at
    c1          | 1        | much   | paid   | 2026-01-01
    null        | 2        | 10     | paid   | 2026-01-01
    c1          | 3        | 10     | paid   | null
    c1          | 4        | 1000   | paid   | 2026-01-01
    c1          | 5        | 10     | test   | 2026-01-01
    c1          | 6        | -1     | paid   | 2026-01-01
""", expected="""
    order_id | amount
    6        | -1
""", rejected="""
    reason                      | order_id
    key customer_id is null     | 2
    event_time is null          | 3
    row does not fit the schema | 1
    small                       | 4
""", broken={"positive": 1, "small": 1})
nobody_said_rejected = Case(kinds, source="""
    customer_id | order_id | status | ordered_at
    null        | 2        | paid   | 2026-01-01
""", expected="order_id")
stopped_unasked = Case(kinds, source="""
    customer_id | order_id | amount  | status | ordered_at
    c1          | 2        | 1000000 | paid   | 2026-01-01
""", expected="""
    order_id
    2
""", rejected="""
    reason
    small
""")
stopped_as_expected = Case(kinds, source="""
    customer_id | order_id | amount  | status | ordered_at
    c1          | 2        | 1000000 | paid   | 2026-01-01
""", broken={"possible": 1, "small": 1}, expected="order_id", rejected="""
    reason
    small
""")
breaks_in_spark = Case(kinds, source="""
    customer_id | order_id | amount | status | ordered_at
    c1          | 0        | 1      | ratio  | 2026-01-01
""", expected="ratio")
on_a_grid = [
    Case(totals, now=now, source="""
    customer_id | amount | status | ordered_at          | known_at
    c1          | 1      | paid   | 2026-01-01 10:00:00 | 2026-01-01 11:00:00
    c1          | 2      | paid   | 2026-01-03 00:00:00 | 2026-01-05
    c1          | 4      | paid   | 2026-01-03 00:00:01 | null
""", expected=expected) for now, expected in (
    ("2026-01-03", """
        event_time | orders | spent_2d | created_time
        2026-01-02 | 1      | 1        | 2026-01-01 11:00
        2026-01-03 | 2      | 3        | 2026-01-05
    """),
    (None, """
        event_time | orders | spent_2d
        2026-01-02 | 1      | 1
        2026-01-03 | 2      | 3
        2026-01-04 | 3      | 6
    """),
)]
ORDERS = """
    customer_id | amount | status | ordered_at          | known_at
    c1          | 1      | paid   | 2026-01-01 10:00:00 | 2026-01-09
"""
training = {
    "plain": Case("score", sources={"orders": ORDERS}, spine="""
    label | customer_id | event_time
    1     | c1          | 2026-01-02
    2     | c1          | 2026-01-04
    3     | c1          | 2026-01-04 00:00:01
    4     | null        | 2026-01-04
    5     | c1          | 2026-01-01 10:00:00
    5     | c1          | 2026-01-01 10:00:00
""", expected="""
    label | orders | newest_status
    1     | 1      | paid
    2     | 1      | paid
    3     | null   | paid
    4     | null   | null
    5     | null   | paid
    5     | null   | paid
"""),
    "known by then": Case("score", sources={"orders": ORDERS}, known_by="spine", spine="""
    customer_id | event_time
    c1          | 2026-01-02
    c1          | 2026-01-10
""", expected="""
    event_time | newest_status
    2026-01-02 | null
    2026-01-10 | paid
"""),
    "strict": Case("score", sources={"orders": ORDERS}, strict=True, spine="""
    customer_id | event_time
    c1          | 2026-01-01 10:00:00
""", expected="""
    newest_status
    null
"""),
}
'''
MORE = '''
from feature_defs.testing import Case

no_schema = Case("words", schema={"extra": "int"}, source="""
    customer_id | word  | at         | extra
    c1          | hello | 2026-01-01 | 2
""", expected="""
    customer_id | length
    c1          | 7
""")
transform_that_raises = Case("broken_group", source="""
    customer_id | word | at
    c1          | a    | 2026-01-01
""", expected="word")
'''


@pytest.fixture(scope="module")
def tested(spark: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Place, CasesReport]:
    folder = tmp_path_factory.mktemp("cases")
    place = Place(settings_in(folder))
    files = {"words.py": WORDS, "test_words.py": CASES, "more/test_more.py": MORE}
    write(Path(place.settings.definitions), files)
    return place, run_cases(place)


def result(tested: tuple[Place, CasesReport], name: str) -> CaseResult:
    return next(case for case in tested[1].cases if case.case == name)


def lines(case: CaseResult) -> list[str]:
    return [line.strip() for line in case.lines()[1:]]


# what runs


@pytest.mark.parametrize(
    "name",
    [
        "every_type", "times_and_structs", "near_enough", "rejections", "stopped_as_expected", "on_a_grid[0]",
        "on_a_grid[1]", "training[plain]", "training[known by then]", "training[strict]", "no_schema",
    ],
)  # fmt: skip
def test_case_that_says_what_comes_out_is_ok(tested: tuple[Place, CasesReport], name: str) -> None:
    assert lines(result(tested, name)) == []
    assert result(tested, name).ok


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "null_is_no_empty_text",
            ["expected: missing: order_id=1, status=null", "expected: unexpected: order_id=1, status=''"],
        ),
        (
            "rows_in_the_wrong",
            [
                "expected: customer_id=c1, order_id=2: amount is 20.0, expected 20.0001",
                "expected: missing: customer_id=c1, order_id=4, amount=40.0",
                "expected: unexpected: customer_id=c1, order_id=3, amount=30.0",
            ],
        ),
        ("nobody_said_rejected", ["rejected: unexpected: reason=key customer_id is null"]),
        (
            "stopped_unasked",
            ["expected: missing: order_id=2", "broken: rule 'possible': rows that break it is 1, expected 0"],
        ),
    ],
)
def test_case_that_fails_says_which_rows_and_cells_differ(
    tested: tuple[Place, CasesReport], name: str, expected: list[str]
) -> None:
    case = result(tested, name)
    found = lines(case)
    if name == "null_is_no_empty_text":  # paired by its key, so one line says it
        expected = ["expected: order_id=1: status is '', expected null"]
    assert not case.ok
    assert found == expected


def test_case_that_breaks_in_spark_fails_alone(tested: tuple[Place, CasesReport]) -> None:
    """All cases are one job; the others still have their rows."""
    case = result(tested, "breaks_in_spark")
    assert "Case 'breaks_in_spark': a row breaks an expression: DIVIDE_BY_ZERO" in case.error
    assert tested[1].failed == 6
    assert tested[1].exit_code == 3


def test_transform_that_raises_is_named_with_its_line(tested: tuple[Place, CasesReport]) -> None:
    case = result(tested, "transform_that_raises")
    assert "Transform 'broken': raised AnalysisException" in case.error
    assert "words.py:" in case.error


def test_report_names_file_and_line_and_is_json(tested: tuple[Place, CasesReport]) -> None:
    report = tested[1]
    assert f"{len(report.cases)} cases, 6 failed" in report.text()
    assert f"FAILED  rows_in_the_wrong (kinds)  {result(tested, 'rows_in_the_wrong').file}:" in report.text()
    plain = json.loads(as_json("test", report))
    found = next(case for case in plain["cases"] if case["case"] == "rows_in_the_wrong")
    assert found["differences"]["expected"][0]["cells"] == [
        {"column": "amount", "expected": "20.0001", "found": "20.0"}
    ]


def test_neither_lake_nor_registry_is_touched(tested: tuple[Place, CasesReport]) -> None:
    folder = Path(tested[0].settings.definitions).parent
    assert [path.name for path in folder.iterdir()] == ["definitions"]


def test_cases_are_chosen_by_name_group_or_file(tested: tuple[Place, CasesReport]) -> None:
    place = tested[0]
    assert [case.case for case in run_cases(place, ["words", "on_a_grid[0]"]).cases] == ["no_schema", "on_a_grid[0]"]
    assert {case.subject for case in run_cases(place, ["test_more"]).cases} == {"words", "broken_group"}
    with pytest.raises(UsageError, match="did you mean 'totals'"):
        run_cases(place, ["total"])


def test_tests_of_the_shipped_example_pass(spark: Any, tmp_path: Path) -> None:
    """What the documentation shows."""
    place = Place(settings_in(tmp_path))
    place.settings.__dict__["definitions"] = str(RETAIL)
    report = run_cases(place)
    assert report.failed == 0, report.text()
    assert {case.subject for case in report.cases} >= {
        "customer_purchases", "customer_category_spend", "customer_sessions", "product_profile", "churn",
    }  # fmt: skip


# faults, without Spark

FAULTY = '''\
from feature_defs.testing import Case

ragged = Case("spend", source="""
    customer_id | amount | ordered_at
    c1          | 1
""", expected="orders")
unknown = Case("spand", source="customer_id", expected="orders")
columns = Case("spend", source="""
    customer_id | amont | ordered_at
""", expected="""
    ordrs | mean

""", rejected="reson", broken={"not_negativ": 1})
cells = Case("spend", now="soon", source="""
    customer_id | amount | ordered_at
    c1          | 1      | 2026-01-01
    c1          | much   | 2026-13-01
""", expected="""
    orders
    1.5
""")
nothing = Case("spend", source="customer_id | ordered_at")
no_source = Case("spend", expected="orders", spine="x")
twice = Case("spend", source="customer_id | ordered_at | ordered_at", expected="orders")
no_clock = Case("spend", source="customer_id", expected="orders")
service = Case("churn", spine="customer_id | event_time", sources={"order": "x"}, expected="orders")
wrong_schema = Case("spend", schema={"x": "int64"}, source="ordered_at", expected="orders")
'''


FAULTS = """
test_faulty:5 Case 'ragged': source: a row has 2 cells, its table 3 columns
test_faulty:7 Case 'unknown': 'spand' is no group and no service (spend, churn)
test_faulty:8 Case 'columns': broken: 'not_negativ' is no rule of group 'spend' (not_negative)
test_faulty:9 Case 'columns': source: 'amont' is no column of source 'orders' (customer_id, amount, ordered_at)
test_faulty:11 Case 'columns': expected: 'ordrs' is no column of group 'spend' (customer_id, event_time, created_time,
test_faulty:13 Case 'columns': rejected: 'reson' is no column of group 'spend' or its source (reason, customer_id,
test_faulty:14 Case 'cells': now='soon' is no time
test_faulty:17 Case 'cells': source: a cell of column 'amount' is no double
test_faulty:17 Case 'cells': source: a cell of column 'ordered_at' is no timestamp
test_faulty:20 Case 'cells': expected: a cell of column 'orders' is no bigint
test_faulty:22 Case 'nothing': expects nothing
test_faulty:23 Case 'no_source': has no source= rows of 'orders'
test_faulty:23 Case 'no_source': spine= means nothing in a group's case
test_faulty:24 Case 'twice': source: column 'ordered_at' is there twice
test_faulty:25 Case 'no_clock': source: column 'ordered_at' is missing (customer_id)
test_faulty:26 Case 'service': sources: 'order' gives none of the columns expected (sources of those: orders)
test_faulty:26 Case 'service': sources: rows of 'orders' are missing
test_faulty:27 Case 'wrong_schema': schema: column 'x': 'int64' is not a type; write 'bigint'
test_import:1 File: ImportError: cannot import name 'spand'
test_syntax:1 File: '(' was never closed: case = Case(
"""


def faults_of(tmp_path: Path, **files: str) -> list[Fault]:
    place = Place(settings_in(tmp_path))
    write(Path(place.settings.definitions), {"shop.py": GOOD, **{f"{name}.py": text for name, text in files.items()}})
    with pytest.raises(DefinitionError) as caught:
        run_cases(place)
    assert caught.value.subject == "Tests"
    assert caught.value.hint.endswith("`tidemark test`")
    return list(caught.value.faults)


def test_every_fault_of_every_test_file_is_told_with_its_line(tmp_path: Path) -> None:
    found = faults_of(tmp_path, test_faulty=FAULTY, test_syntax="case = Case(", test_import="from .shop import spand")
    told = [f"{Path(fault.file).stem}:{fault.line} {fault.subject}: {fault.problem}" for fault in found]
    for line, (said, expected) in enumerate(zip(told, FAULTS.strip().splitlines(), strict=True)):
        assert said.startswith(expected), line
    hints = {fault.problem.split(" ")[1]: fault.hint for fault in found}
    assert hints["'amont'"].startswith("did you mean 'amount'?")
    assert hints["'ordrs'"].startswith("did you mean 'orders'?")


def test_case_takes_no_word_it_does_not_know(tmp_path: Path) -> None:
    text = 'from feature_defs.testing import Case\ncase = Case("spend", sorce="")'
    (fault,) = faults_of(tmp_path, test_word=text)
    assert (fault.line, fault.hint[:24]) == (2, "did you mean 'source'? C")


def test_fault_of_a_definition_is_told_before_those_of_its_tests(tmp_path: Path) -> None:
    place = Place(settings_in(tmp_path))
    write(Path(place.settings.definitions), {"shop.py": GOOD.replace('"90d"', '"0d"'), "test_shop.py": FAULTY})
    with pytest.raises(DefinitionError, match="ttl"):
        run_cases(place)


def test_folder_without_a_case_is_no_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A CI job that tests nothing has to say so."""
    write(tmp_path / "definitions", {"shop.py": GOOD, "test_empty.py": "x = 1"})
    write(tmp_path, {"place.toml": PROFILE})
    assert main(["test", "--profile", str(tmp_path / "place.toml")]) == 4
    assert "Tests: no case in" in capsys.readouterr().err


# cells and rows


@pytest.mark.parametrize(
    ("kind", "cell", "expected"),
    [
        ("bigint", "-9223372036854775808", -(1 << 63)),
        ("double", "1e3", 1000.0),
        ("double", "1", 1.0),
        ("decimal(6,2)", "1.5", Decimal("1.50")),
        ("boolean", "TRUE", True),
        ("string", "", ""),
        ("string", "null ", "null "),
        ("date", "2026-01-31", datetime.date(2026, 1, 31)),
        ("timestamp", "2026-01-31", datetime.datetime(2026, 1, 31, tzinfo=UTC)),
        ("timestamp", "2026-01-31T01:00:00.5+01:00", datetime.datetime(2026, 1, 31, 0, 0, 0, 500_000, tzinfo=UTC)),
        ("timestamp_ntz", "2026-01-31 01:02", datetime.datetime(2026, 1, 31, 1, 2)),  # noqa: DTZ001 - it has no zone
        ("binary", "00fF", b"\x00\xff"),
        ("array<double>", "[1, 2.5, null]", [1.0, 2.5, None]),
        ("struct<a:int,b:array<string>>", '{"b": ["x"]}', {"a": None, "b": ["x"]}),
        ("map<string,decimal(4,1)>", '{"x": 1.5}', {"x": Decimal("1.5")}),
    ],
)
def test_cell_is_read_as_its_column_s_type(kind: str, cell: str, expected: object) -> None:
    found = value(data_type(kind), cell)
    assert (found, type(found)) == (expected, type(expected))
    assert value(data_type(kind), None) is None


@pytest.mark.parametrize(
    ("kind", "cell"),
    [
        ("int", "2147483648"), ("int", "1.0"), ("int", ""), ("double", "much"), ("decimal(4,2)", "1.555"),
        ("decimal(4,2)", "100"), ("boolean", "yes"), ("date", "2026-02-30"), ("timestamp", "2026-1-1"),
        ("timestamp", "2026-01-01 25:00"), ("binary", "abc"), ("array<int>", "[1.5]"), ("array<int>", "1"),
        ("array<int>", "[true]"), ("array<string>", "[1]"), ("struct<a:int>", '{"b": 1}'), ("struct<a:int>", "{"),
    ],
)  # fmt: skip
def test_cell_of_another_type_is_a_fault(kind: str, cell: str) -> None:
    with pytest.raises(CellFault, match="write"):
        value(data_type(kind), cell)


def test_table_is_read_cell_by_cell() -> None:
    table = parse("\n  a | b\n\n  1 |  \n null | x \\| y\n 3\n")
    assert (table.columns, table.rows) == (("a", "b"), (("1", ""), (None, "x | y"), ("3",)))
    assert (table.lines, table.ragged) == ((3, 4, 5), (2,))
    assert parse(" \n").columns == ()


def test_values_are_shown_as_a_cell_would_write_them() -> None:
    day = datetime.datetime(2026, 1, 31, tzinfo=UTC)
    values = [None, True, day, day.replace(hour=3), b"\x0f", ["a", None], "", 1.5]
    assert list(map(shown, values)) == [
        "null", "true", "2026-01-31", "2026-01-31 03:00:00", "0f", '["a", null]', "''", "1.5",
    ]  # fmt: skip


def test_differences_are_none_exactly_when_the_rows_are_the_same_lot() -> None:
    """Held against sorting both, over small pools with ties; and each row is told of at most once."""
    draw = random.Random(7)
    types = {"key": data_type("string"), "n": data_type("bigint")}
    pool = [{"key": key, "n": n} for key, n in itertools.product(("a", "b", None), (1, None))]
    seen = set()
    for _ in range(500):
        one, other = (draw.choices(pool, k=draw.randrange(4)) for _ in range(2))
        found = differences(one, other, types=types, keys=["key"], tolerance=0)
        same = sorted(map(str, one)) == sorted(map(str, other))
        assert (found == ()) == same
        kinds = [difference.kind for difference in found]
        gone, come = kinds.count("missing") + kinds.count("differs"), kinds.count("unexpected") + kinds.count("differs")
        equal = sum(min(one.count(row), other.count(row)) for row in pool)
        assert (gone, come) == (len(one) - equal, len(other) - equal)
        seen |= set(kinds)
    assert seen == {"missing", "unexpected", "differs"}
