"""The semantic fingerprint: what changes it, what does not, and that it is the same everywhere."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from feature_defs import Aggregate, Entity, Expectation, Feature, FeatureGroup, Source
from feature_defs.fingerprint import fingerprint, reference
from feature_defs.loading import load
from feature_defs.model import Definitions
from tests.definition_files import GOOD, edited, write

ROOT = Path(__file__).resolve().parent.parent

CUSTOMER = Entity("customer", keys={"customer_id": "string", "shop": "int"})
ORDERS = Source(
    "orders",
    path="lake://raw/orders",
    event_time="ordered_at",
    created_time="ingested_at",
    filter="amount is not null",
    schema={"customer_id": "string", "shop": "int", "amount": "decimal(10,2)", "ordered_at": "timestamp"},
)
SPEND = FeatureGroup(
    "spend",
    entity="customer",
    source="orders",
    every="1d",
    ttl="90d",
    features=[
        Feature("orders", "bigint", Aggregate("count")),
        Feature("spent", "double", Aggregate("sum", "amount", window="30d", where="amount > 0")),
        Feature("mean", "double", "spent / nullif(orders, 0)"),
    ],
    expectations=[Expectation("some", "orders > 0", severity="quarantine"), Expectation("few", "orders < 9")],
)
PROFILE = FeatureGroup(
    "profile",
    entity="customer",
    source="orders",
    skip_nulls=True,
    features=[Feature("amount", "decimal(10,2)"), Feature("größe", "string", "upper('größe') || amount")],
)


def of(group: FeatureGroup = SPEND, source: Source = ORDERS, entity: Entity = CUSTOMER) -> str:
    named = Definitions({"customer": entity}, {"orders": source}, {group.name: group}, {})
    return fingerprint(group, named)


def with_feature(number: int, **changes: Any) -> FeatureGroup:
    features = list(SPEND.features)
    features[number] = replace(features[number], **changes)
    return replace(SPEND, features=features)


def test_the_fingerprints_of_these_definitions_are_these() -> None:
    """Golden: a change of the algorithm would recompute every group of every user."""
    assert (of(), of(PROFILE)) == ("7e9cf656ec1c59d4", "d2f07d90220b6beb")


CHANGES: dict[str, Callable[[], str]] = {
    "source path": lambda: of(source=replace(ORDERS, path="lake://raw/orders_2")),
    "source format": lambda: of(source=replace(ORDERS, format="parquet")),
    "multi_line": lambda: of(source=replace(ORDERS, multi_line=True)),
    "source filter": lambda: of(source=replace(ORDERS, filter="amount is null")),
    "no source filter": lambda: of(source=replace(ORDERS, filter=None)),
    "event_time": lambda: of(source=replace(ORDERS, event_time="paid_at")),
    "created_time": lambda: of(source=replace(ORDERS, created_time=None)),
    "source column type": lambda: of(source=replace(ORDERS, schema={**(ORDERS.schema or {}), "amount": "double"})),
    "key type": lambda: of(entity=replace(CUSTOMER, keys={"customer_id": "string", "shop": "bigint"})),
    "key order": lambda: of(entity=replace(CUSTOMER, keys={"shop": "int", "customer_id": "string"})),
    "every": lambda: of(replace(SPEND, every="12h")),
    "ttl": lambda: of(replace(SPEND, ttl="91d")),
    "no ttl": lambda: of(replace(SPEND, ttl=None)),
    "skip_nulls": lambda: of(replace(SPEND, skip_nulls=True)),
    "feature type": lambda: of(with_feature(2, type="float")),
    "feature name": lambda: of(with_feature(2, name="average")),
    "feature expression": lambda: of(with_feature(2, expression="spent / orders")),
    "letters in a string": lambda: of(with_feature(2, expression="if(spent = 'A', 1, 2)")),
    "one feature less": lambda: of(replace(SPEND, features=SPEND.features[:2])),
    "aggregate function": lambda: of(
        with_feature(1, expression=Aggregate("avg", "amount", window="30d", where="amount > 0"))
    ),
    "aggregate column": lambda: of(
        with_feature(1, expression=Aggregate("sum", "shop", window="30d", where="amount > 0"))
    ),
    "window": lambda: of(with_feature(1, expression=Aggregate("sum", "amount", window="31d", where="amount > 0"))),
    "no window": lambda: of(with_feature(1, expression=Aggregate("sum", "amount", where="amount > 0"))),
    "where": lambda: of(with_feature(1, expression=Aggregate("sum", "amount", window="30d", where="amount >= 0"))),
    "quarantine condition": lambda: of(
        replace(SPEND, expectations=[Expectation("some", "orders > 1", severity="quarantine")])
    ),
    "a second quarantine": lambda: of(
        replace(SPEND, expectations=[replace(rule, severity="quarantine") for rule in SPEND.expectations])
    ),
}


def test_what_may_change_values_changes_it_and_no_two_changes_are_the_same() -> None:
    found = {name: change() for name, change in CHANGES.items()}
    assert len({of(), *found.values()}) == len(found) + 1, found


KEPT: dict[str, Callable[[], str]] = {
    "owner": lambda: of(replace(SPEND, owner="crm")),
    "description": lambda: of(replace(SPEND, description="what they spend")),
    "tags": lambda: of(replace(SPEND, tags=["crm"])),
    "status": lambda: of(replace(SPEND, status="deprecated")),
    "online": lambda: of(replace(SPEND, online=True)),
    "offline format": lambda: of(replace(SPEND, offline="parquet")),
    "group name": lambda: of(replace(SPEND, name="spending")),
    "source name": lambda: of(source=replace(ORDERS, name="all_orders", description="all")),
    "entity description": lambda: of(entity=replace(CUSTOMER, description="who buys")),
    "feature order": lambda: of(replace(SPEND, features=SPEND.features[::-1])),
    "feature papers": lambda: of(
        with_feature(2, description="d", tags=["t"], pii=True, kind="numerical", allowed_values=[1])
    ),
    "SQL layout": lambda: of(with_feature(2, expression="spent\n  / nullif( orders,0 ) -- none ordered\n")),
    "SQL comment": lambda: of(source=replace(ORDERS, filter="amount /* paid */ is not null")),
    "spelling of a type": lambda: of(with_feature(2, type=" Double ")),
    "source column order": lambda: of(source=replace(ORDERS, schema=dict(reversed((ORDERS.schema or {}).items())))),
    "warning expectation": lambda: of(replace(SPEND, expectations=SPEND.expectations[:1])),
    "expectation name": lambda: of(
        replace(SPEND, expectations=[replace(rule, name=f"x_{rule.name}") for rule in SPEND.expectations])
    ),
}


@pytest.mark.parametrize("what", KEPT)
def test_what_cannot_change_values_does_not_change_it(what: str) -> None:
    assert KEPT[what]() == of()


# --- transforms ---

TRANSFORM = edited(
    ('ttl="90d"', 'ttl="90d", transform=clean'),
    (
        "customer = Entity(",
        '''\
import math
from .shared import least, names as columns
from .sub import rates

BASE = 10
LIMIT, OTHER = BASE * 2, 5
UNUSED = 1


def scaled(rows):
    return rows.scale(LIMIT, least())


class Unused:
    pass


def clean(rows):
    """Rows that count."""
    # only these
    text = "# no comment"

    return scaled(rows).where(text, math.pi, rates.RATE).select(columns)  # and no others


customer = Entity(''',
    ),
)
FILES = {
    "shop.py": TRANSFORM,
    "shared.py": "LEAST = 3\nMOST = 9\nnames = ['a']\n\n\ndef least():\n    return LEAST\n",
    "sub/rates.py": "RATE = 0.5\n",
}


def of_files(folder: Path, files: dict[str, str]) -> str:
    definitions = load(write(folder, files))
    return fingerprint(definitions.groups["spend"], definitions)


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("shop.py", ".where(text", ".filter(text"),
        ("shop.py", '"# no comment"', '"# another"'),
        ("shop.py", "rows.scale(LIMIT", "rows.scale(2 * LIMIT"),
        ("shop.py", "BASE * 2, 5", "BASE * 3, 5"),
        ("shop.py", "BASE = 10", "BASE = 11"),
        ("shop.py", "UNUSED = 1\n", "BASE = BASE + 1\n"),
        ("shop.py", "UNUSED = 1\n", "if UNUSED_TOO := 1:\n    LIMIT = 7\n"),
        ("shop.py", "def scaled", "def doubled(function):\n    return function\n\n\n@doubled\ndef scaled"),
        ("shop.py", "import math", "import cmath as math"),
        ("shared.py", "LEAST = 3", "LEAST = 4"),
        ("shared.py", "return LEAST", "return LEAST + 1"),
        ("shared.py", "['a']", "['b']"),
        ("sub/rates.py", "RATE = 0.5", "RATE = 0.6"),
    ],
)
def test_what_a_transform_is_made_of_changes_it(tmp_path: Path, file: str, old: str, new: str) -> None:
    """Its body, and each function and constant it uses in any definition file, directly or through others."""
    changed = {**FILES, file: edited((old, new), text=FILES[file])}
    assert of_files(tmp_path / "a", FILES) != of_files(tmp_path / "b", changed)


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("shop.py", "    # only these\n", "    # these\n    # alone\n\n"),
        ("shop.py", "  # and no others", ""),
        ("shop.py", "BASE = 10", "BASE = 10  # percent"),
        ("shop.py", "    return scaled", "\n\n    return scaled"),
        ("shop.py", '    """Rows that count."""\n', '    """Rows\n\n    that matter.\n    """\n'),
        ("shop.py", "UNUSED = 1", "UNUSED = 2"),
        ("shop.py", "class Unused:\n    pass", "class Unused:\n    size = 3"),
        ("shop.py", "import math\n", "import math, json\n"),
        (
            "shop.py",
            "from .shared import least, names as columns",
            "from .shared import least\nfrom .shared import names as columns",
        ),
        ("shared.py", "MOST = 9", "MOST = 10"),
        ("shared.py", "LEAST = 3", "\n\n\nLEAST = 3"),
    ],
)
def test_comments_layout_and_what_a_transform_does_not_use_are_no_change(
    tmp_path: Path, file: str, old: str, new: str
) -> None:
    changed = {**FILES, file: edited((old, new), text=FILES[file])}
    assert of_files(tmp_path / "a", FILES) == of_files(tmp_path / "b", changed)


def of_transform(folder: Path, code: str, files: dict[str, str] | None = None) -> str:
    """The fingerprint of a group whose transform is the function `clean` of this code."""
    shop = edited(('ttl="90d"', 'ttl="90d", transform=clean'), ("customer = Entity(", f"{code}\ncustomer = Entity("))
    return of_files(folder, {"shop.py": shop, **(files or {})})


LEAST = "def least():\n    return 3\n"


@pytest.mark.parametrize(
    ("code", "files"),
    [
        ("def clean(rows):\n    from .other import least\n    return rows.limit(least())", {"other.py": LEAST}),
        ("def clean(rows):\n    from . import other\n    return rows.limit(other.least())", {"other.py": LEAST}),
        (
            "def most():\n    from .other import least as n\n    return n()\ndef clean(rows):\n    return most()",
            {"other.py": LEAST},
        ),
        ("from .sub import least\ndef clean(rows):\n    return least()", {"sub/__init__.py": LEAST}),
        ("from .sub import *\ndef clean(rows):\n    return least()", {"sub/__init__.py": LEAST}),
        ("from . import sub\ndef clean(rows):\n    return sub.least()", {"sub/__init__.py": LEAST}),
        (
            "from .sub import least\ndef clean(rows):\n    return least()",
            {"sub/__init__.py": "from .other import least\n", "sub/other.py": LEAST},
        ),
        (
            "from .sub import least\ndef clean(rows):\n    return least()",
            {"sub/__init__.py": "from .other import *\n", "sub/other.py": LEAST},
        ),
    ],
)
def test_an_import_is_followed_wherever_it_stands(tmp_path: Path, code: str, files: dict[str, str]) -> None:
    """Inside a function, and into the `__init__.py` of a folder."""
    changed = {name: text.replace("return 3", "return 4") for name, text in files.items()}
    assert of_transform(tmp_path / "a", code, files) != of_transform(tmp_path / "b", code, changed)


CHANGED_LATER = (
    'RATES = {}\nRATES["gold"] = 2',
    "RATES = {}\nRATES.update(gold=2)",
    'RATES = {}\nRATES.setdefault("gold", []).append(2)',
    "RATES = {}\nfor name in (2,):\n    RATES[name] = 1",
    'RATES = {"gold": 2, 2: 2}\ndel RATES[2]',
    "class RATES:\n    gold = 1\nRATES.gold = 2",
    "def put():\n    global RATES\n    RATES = 2\nput()",
    "RATES = 1\ndef put(value):\n    global RATES\n    RATES = value\nput(2)",
    "RATES = {}\ndef put(name, rate):\n    RATES[name] = rate\nput('gold', 2)",
    "RATES = {}\ndef put():\n    RATES.update(gold=2)\nput()",
)


@pytest.mark.parametrize("code", CHANGED_LATER)
def test_what_changes_a_name_after_it_was_bound_counts_for_it(tmp_path: Path, code: str) -> None:
    """Items, attributes, methods, and functions that do it or set a `global`."""
    uses = "\ndef clean(rows):\n    return rows.scale(RATES)"
    changed = code.replace("RATES[2]", "RATES['gold']") if "del" in code else code.replace("2", "3")
    assert of_transform(tmp_path / "a", code + uses) != of_transform(tmp_path / "b", changed + uses)


def test_an_attribute_of_the_transform_itself_counts(tmp_path: Path) -> None:
    code = "def clean(rows):\n    return rows.limit(clean.most)\nclean.most = 2"
    assert of_transform(tmp_path / "a", code) != of_transform(tmp_path / "b", code.replace("2", "3"))


def test_changes_of_other_names_and_of_packages_do_not_count(tmp_path: Path) -> None:
    code = "import sys\nRATES = {}\nOTHERS = {}\ndef clean(rows):\n    return rows.scale(RATES, sys.path)\n"
    others = (
        "OTHERS['gold'] = 2",
        "OTHERS.update(RATES)",
        "FOUND = RATES.get('gold')",
        "def put(RATES):\n    RATES['gold'] = 2\nput(OTHERS)",
        "def put():\n    RATES = {}\n    RATES['gold'] = 2\nput()",
        "def put():\n    RATES['gold'] = 2",
        "def put():\n    from .other import least",
        "sys.path.extend(())",
        "if __name__ == '__main__':\n    RATES.update(gold=2)\n    clean(None).show()",
        "if OTHERS:\n    def put():\n        RATES['gold'] = 2",
    )
    found = {of_transform(tmp_path / str(n), code + more, {"other.py": LEAST}) for n, more in enumerate(("", *others))}
    assert len(found) == 1


def test_what_is_imported_for_annotations_does_not_count(tmp_path: Path) -> None:
    code = (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .other import least\n"
        "def clean(rows):\n    found: least = rows\n    return found"
    )
    texts = (LEAST, LEAST.replace("3", "4"))
    found = {of_transform(tmp_path / str(n), code, {"other.py": text}) for n, text in enumerate(texts)}
    assert len(found) == 1


def test_names_imported_with_a_star_are_followed(tmp_path: Path) -> None:
    starred = edited(
        ("import least, names as columns", "import *"), ("select(columns)", "select(names)"), text=TRANSFORM
    )
    other = edited(("LEAST = 3", "LEAST = 4"), text=FILES["shared.py"])
    files = {**FILES, "shop.py": starred}
    assert of_files(tmp_path / "a", files) != of_files(tmp_path / "b", {**files, "shared.py": other})


def test_a_decorated_transform_is_what_its_function_says(tmp_path: Path) -> None:
    decorator = """\
import functools
def plain(f):
    @functools.wraps(f)
    def call(rows):
        return f(rows)
    return call
"""
    decorated = edited(("def clean(rows)", f"{decorator}@plain\ndef clean(rows)"), text=TRANSFORM)
    files = {**FILES, "shop.py": decorated}
    changed = {**FILES, "shop.py": edited((".where(text", ".filter(text"), text=decorated)}
    assert len({of_files(tmp_path / str(n), each) for n, each in enumerate((FILES, files, changed))}) == 3


def test_the_folder_and_the_file_have_no_part_in_it(tmp_path: Path) -> None:
    moved = {("spending.py" if name == "shop.py" else name): text for name, text in FILES.items()}
    assert of_files(tmp_path / "a", FILES) == of_files(tmp_path / "other" / "folder", moved)


def test_the_fingerprint_of_this_transform_is_this(tmp_path: Path) -> None:
    """Golden, as above: the text of a file, never what a version of Python makes of it."""
    assert of_files(tmp_path, FILES) == "26f73e283a69e9e3"


def test_a_transform_read_from_the_registry_has_the_digest_of_its_file(tmp_path: Path) -> None:
    definitions = load(write(tmp_path, FILES))
    group = definitions.groups["spend"]
    kept = reference(group.transform)
    assert kept is not None
    assert (kept.file, kept.function) == ("shop.py", "clean")
    assert fingerprint(replace(group, transform=kept), definitions) == fingerprint(group, definitions)


# --- everywhere the same ---


def test_it_does_not_depend_on_the_order_of_sets(tmp_path: Path) -> None:
    """PYTHONHASHSEED reorders every set of texts from process to process."""
    write(
        tmp_path,
        {
            **FILES,
            "more.py": GOOD.replace('"spend"', '"more"')
            .replace("churn", "other")
            .replace('Entity("customer"', 'Entity("buyer"')
            .replace('"orders", path', '"orders_2", path'),
        },
    )
    script = (
        "import sys; from pathlib import Path; from feature_defs.loading import load\n"
        "from feature_defs.fingerprint import fingerprint\n"
        "found = load(Path(sys.argv[1]))\n"
        "print([(name, fingerprint(group, found)) for name, group in sorted(found.groups.items())])"
    )
    printed = set()
    for seed in ("0", "1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", script, str(tmp_path)]
        printed.add(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert len(printed) == 1
    assert "26f73e283a69e9e3" in printed.pop()
