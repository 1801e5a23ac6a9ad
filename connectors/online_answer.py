"""What an online client found: a service's features for some entities, as dicts, pandas or Arrow.

Every feature of every row has a status, and a value is there only where the status is `present` (the value may be null:
a null was loaded) or `default`:

    present       loaded, within its ttl
    missing       nothing is stored for this entity and group
    expired       the stored value is older than the group's ttl
    not loaded    the feature is newer than the stored value: the group was not loaded since it was added
    other schema  the stored value was written with a type, or with features, that this client cannot map to its own
    damaged       the stored bytes are no packed value
    unreachable   the online store gave no answer; only with a fallback, without one it is an error
    default       the fallback's value; `missing()` tells what was wrong
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa

from connectors.dataset_files import arrow_schema
from feature_defs import data_types
from feature_defs.errors import OnlineStoreError, UsageError, listed, near_miss

if TYPE_CHECKING:
    import pandas as pd

PRESENT, MISSING, EXPIRED, OTHER_SCHEMA = "present", "missing", "expired", "other schema"
NOT_LOADED, DAMAGED, UNREACHABLE, DEFAULT = "not loaded", "damaged", "unreachable", "default"
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)


@dataclass(frozen=True)
class Freshness:
    """Of one group's value: when its row happened, and how long ago that was."""

    status: str
    event_time: datetime.datetime | None
    age: datetime.timedelta | None


class GroupRows(NamedTuple):
    """One group's part of an answer: an item per row, `columns` a list of them for each chosen feature.

    A tuple, since every request makes some: a frozen dataclass takes three times as long.
    """

    group: str
    features: tuple[str, ...]
    found: list[str]  # the status of the group's value
    event_times: list[int | None]
    columns: list[list[Any]]
    statuses: list[tuple[str, ...]]  # of each feature
    reasons: list[tuple[str, ...]]  # the statuses before a fallback gave defaults


@dataclass(frozen=True)
class Answer:
    """One row for each entity asked for, in their order. `error` is why the online store gave no answer, if so."""

    types: Mapping[str, str]  # of the features, in the service's order
    parts: tuple[GroupRows, ...]
    rows: int
    now_us: int
    error: OnlineStoreError | None = None

    def __len__(self) -> int:
        return self.rows

    @property
    def features(self) -> list[str]:
        return list(self.types)

    def dicts(self) -> list[dict[str, Any]]:
        """{feature: value} for each row."""
        names, columns = self.types, chain.from_iterable([part.columns for part in self.parts])
        if self.rows == 1:
            return [{name: column[0] for name, column in zip(names, columns, strict=True)}]
        # Copies of one that has all names: a dict that grows name by name takes a third longer.
        blank = dict.fromkeys(names)
        found = [blank.copy() for _ in range(self.rows)]
        for row, values in zip(found, zip(*columns, strict=True), strict=True):
            row.update(zip(names, values, strict=True))
        return found

    def one(self) -> dict[str, Any]:
        """{feature: value} of the only row."""
        if self.rows != 1:
            raise UsageError("Answer", f"has {self.rows} rows, expected one", hint="take dicts(), one for each row")
        return self.dicts()[0]

    def arrow(self) -> pa.Table:
        """The declared types, whatever was found."""
        schema = arrow_schema("", self.types)
        columns = chain.from_iterable(part.columns for part in self.parts)
        arrays = [_array(column, field.type) for column, field in zip(columns, schema, strict=True)]
        return pa.table(arrays, schema=schema)

    def pandas(self) -> pd.DataFrame:
        """One set of dtypes, whatever was found: whole numbers and booleans are pandas' nullable ones."""
        import pandas as pd

        nullable = {pa.int32(): pd.Int32Dtype(), pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}
        return self.arrow().to_pandas(types_mapper=nullable.get, maps_as_pydicts="strict")

    def status(self, feature: str) -> list[str]:
        """The feature's status in each row."""
        if feature not in self.types:
            hint = near_miss(feature, self.types) + "name a feature of the service"
            raise UsageError(f"Feature '{feature}'", f"is not in the answer ({listed(self.types)})", hint=hint)
        return [row[feature] for row in self.statuses()]

    def statuses(self) -> list[dict[str, str]]:
        """{feature: status} for each row."""
        names = list(self.types)
        return [dict(zip(names, row, strict=True)) for row in self._lines("statuses")]

    def missing(self) -> list[dict[str, str]]:
        """{feature: why it has no value of its own} for each row; empty where every feature is present."""
        names = list(self.types)
        lines = self._lines("reasons")
        return [{n: why for n, why in zip(names, row, strict=True) if why != PRESENT} for row in lines]

    def freshness(self) -> list[dict[str, Freshness]]:
        """{group: Freshness} for each row."""
        return [{part.group: self._freshness(part, row) for part in self.parts} for row in range(self.rows)]

    def _lines(self, what: str) -> list[list[str]]:
        """Each row's statuses of all groups, in the order of the features."""
        columns = [getattr(part, what) for part in self.parts]
        return [list(chain.from_iterable(row)) for row in zip(*columns, strict=True)]

    def _freshness(self, part: GroupRows, row: int) -> Freshness:
        at = part.event_times[row]
        if at is None:
            return Freshness(part.found[row], None, None)
        age = datetime.timedelta(microseconds=self.now_us - at)
        return Freshness(part.found[row], _EPOCH + datetime.timedelta(microseconds=at), age)


def _array(column: Sequence[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_map(kind):
        column = [None if value is None else list(value.items()) for value in column]
    return pa.array(column, kind)


def typed_default(feature: str, kind: str, value: Any) -> Any:
    """A fallback's value as the feature's type has it; UsageError when it is none. A naive time is UTC."""
    if isinstance(value, datetime.datetime) and value.tzinfo is None:
        value = value.replace(tzinfo=datetime.timezone.utc)
    parsed = data_types.parse(kind)
    try:
        found = _array([value], arrow_schema("", {feature: kind}).field(0).type)[0].as_py()
    except (pa.ArrowException, TypeError, ValueError, AttributeError, OverflowError):
        fits = False
    else:
        found = dict(found) if found is not None and parsed.kind == "map" else found
        # Arrow cuts 1.5 to a whole number and a time to its date.
        fits = (parsed.element or parsed).kind in ("float", "double") or found == value
    if not fits:
        problem = f"the fallback's value is a {type(value).__name__}, expected {kind}"
        raise UsageError(f"Feature '{feature}'", problem, hint=f"give a value of type {kind}, or None")
    return found.astimezone(datetime.timezone.utc) if isinstance(found, datetime.datetime) else found
