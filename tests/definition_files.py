"""Definition files written by a test, and a profile beside them."""

from __future__ import annotations

from pathlib import Path

from feature_defs.errors import DefinitionError, Fault
from feature_defs.loading import load
from feature_defs.model import Definitions

GOOD = """\
from feature_defs import Aggregate, Entity, Expectation, Feature, FeatureGroup, Service, Source
customer = Entity("customer", keys={"customer_id": "string"})
orders = Source(
    "orders", path="lake://raw/orders", event_time="ordered_at", filter="amount is not null",
    schema={"customer_id": "string", "amount": "double", "ordered_at": "timestamp"},
)
spend = FeatureGroup(
    "spend", entity=customer, source=orders, every="1d", ttl="90d", owner="crm", tags=["crm"],
    features=[
        Feature("orders", "bigint", Aggregate("count")),
        Feature("spent_30d", "double", Aggregate("sum", "amount", window="30d", where="amount > 0")),
        Feature("mean", "double", "spent_30d / nullif(orders, 0)"),
    ],
    expectations=[Expectation("not_negative", "mean >= 0")],
)
churn = Service("churn", [spend["orders", "mean"]])
"""

PROFILE = """\
name = "test"
definitions = "definitions"
[lakes]
raw = "raw"
features = "features"
[online]
kind = "none"
"""


def write(folder: Path, files: dict[str, str]) -> Path:
    """The files below a folder, by their paths."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def write_place(folder: Path, text: str = GOOD) -> Path:
    """A folder with definitions, and the profile that names them; gives the profile."""
    write(folder, {"definitions/shop.py": text, "place.toml": PROFILE})
    return folder / "place.toml"


def edited(*changes: tuple[str, str], text: str = GOOD) -> str:
    """The text with each (old, new) done; an old text that is not there once is a mistake of the test."""
    for old, new in changes:
        assert text.count(old) == 1, f"{old!r} is there {text.count(old)} times"
        text = text.replace(old, new)
    return text


def loaded(folder: Path, text: str = GOOD) -> Definitions:
    return load(write(folder, {"shop.py": text}))


def faults_of(folder: Path) -> tuple[Fault, ...]:
    """The faults of a folder's files; none when it loads."""
    try:
        load(folder)
    except DefinitionError as error:
        return error.faults
    return ()
