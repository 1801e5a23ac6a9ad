"""Cells of a case's tables -> values, and two lots of rows -> how they differ.

A cell is read as the type of its column, here and without Spark: a fault is told before a session starts. Values are
bool, int, float, Decimal, str, bytes, date, datetime (UTC; of a timestamp_ntz naive), list and dict.
"""

from __future__ import annotations

import datetime
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from feature_defs.data_types import DataType
from feature_defs.testing import FLOAT_TOLERANCE

_BITS = {"tinyint": 8, "smallint": 16, "int": 32, "bigint": 64}
_TIME = re.compile(
    r"(?P<day>\d{4}-\d\d-\d\d)(?:[T ](?P<hour>\d\d:\d\d)(?P<second>:\d\d)?(?:\.(?P<part>\d{1,6}))?)?"
    r"(?P<zone>Z|[+-]\d\d:\d\d)?"
)
_WRITTEN = {
    "boolean": "true or false",
    "date": "2026-01-31",
    "timestamp": "2026-01-31 or 2026-01-31 12:00:00, UTC",
    "timestamp_ntz": "2026-01-31 or 2026-01-31 12:00:00",
    "binary": "hex digits",
    "array": 'JSON as ["a", "b"]',
    "struct": 'JSON as {"os": "mac"}',
    "map": 'JSON as {"os": "mac"}',
}


class CellFault(ValueError):
    """A cell that is not of its column's type; the message says how one is written."""


def value(kind: DataType, cell: str | None) -> Any:
    """A cell's value; None is null."""
    if cell is None:
        return None
    try:
        return of_json(kind, json.loads(cell, parse_float=Decimal)) if _is_nested(kind) else _scalar(kind, cell)
    except (ValueError, TypeError, KeyError, InvalidOperation) as error:
        hint = f"write {_WRITTEN[kind.kind]}" if kind.kind in _WRITTEN else "write a number that fits"
        raise CellFault(hint) from error


def of_json(kind: DataType, plain: Any) -> Any:
    """A value from JSON, whose numbers are int or Decimal."""
    if plain is None:
        return None
    match kind.kind:
        case "array":
            assert kind.element is not None
            return [of_json(kind.element, item) for item in _is(list, plain)]
        case "map":
            assert kind.element is not None
            return {str(key): of_json(kind.element, item) for key, item in _is(dict, plain).items()}
        case "struct":
            unknown = _is(dict, plain).keys() - {name for name, _ in kind.fields}
            if unknown:
                raise ValueError(f"no field {min(unknown)}")
            return {name: of_json(inner, plain.get(name)) for name, inner in kind.fields}
        case "string":
            return _is(str, plain)
        case "boolean":
            return _is(bool, plain)
        case _:
            if isinstance(plain, bool):
                raise TypeError("a boolean is no number")
            return _scalar(kind, str(plain))


def _is_nested(kind: DataType) -> bool:
    return kind.kind in ("array", "map", "struct")


def _is(expected: type, plain: Any) -> Any:
    if not isinstance(plain, expected):
        raise TypeError(f"expected {expected.__name__}")
    return plain


def _scalar(kind: DataType, text: str) -> Any:
    match kind.kind:
        case "string":
            return text
        case "boolean":
            return {"true": True, "false": False}[text.lower()]
        case "float" | "double":
            return float(text)
        case "decimal":
            return _decimal(kind, text)
        case "date":
            return datetime.date.fromisoformat(text)
        case "timestamp":
            return _time(text)
        case "timestamp_ntz":
            return _time(text).replace(tzinfo=None)
        case "binary":
            return bytes.fromhex(text)
        case _:
            number = int(text)
            if not -(1 << _BITS[kind.kind] - 1) <= number < 1 << _BITS[kind.kind] - 1:
                raise ValueError("too large")
            return number


def _decimal(kind: DataType, text: str) -> Decimal:
    number = Decimal(text)
    scaled = number.quantize(Decimal(1).scaleb(-kind.scale))
    if scaled != number or len(scaled.as_tuple().digits) > kind.precision:
        raise ValueError("does not fit")
    return scaled


def _time(text: str) -> datetime.datetime:
    """ISO 8601 to the microsecond, on every version of Python."""
    found = _TIME.fullmatch(text)
    if not found:
        raise ValueError("no time")
    clock = f"{found['hour'] or '00:00'}{found['second'] or ':00'}.{(found['part'] or '').ljust(6, '0')}"
    zone = (found["zone"] or "Z").replace("Z", "+00:00")
    return datetime.datetime.fromisoformat(f"{found['day']}T{clock}{zone}").astimezone(datetime.timezone.utc)


def time_us(text: str) -> int:
    """A time in microseconds UTC; CellFault when the text is none."""
    moment = value(DataType("timestamp"), text)
    epoch = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
    return int((moment - epoch) // datetime.timedelta(microseconds=1))


def shown(found: Any) -> str:
    """A value as a cell would write it."""
    match found:
        case None:
            return "null"
        case bool():
            return str(found).lower()
        case datetime.datetime():
            text = found.replace(tzinfo=None).isoformat(sep=" ")
            return text.removesuffix(" 00:00:00")
        case bytes():
            return found.hex()
        case list() | dict():
            return json.dumps(found, default=shown, ensure_ascii=False)
        case "":
            return "''"
        case _:
            return str(found)


# rows


Row = Mapping[str, Any]


@dataclass(frozen=True)
class CellDifference:
    """A cell of a row that was found, but for this."""

    column: str
    expected: str
    found: str


@dataclass(frozen=True)
class RowDifference:
    """One row that is `missing` or `unexpected`, or one that `differs` in the cells named. `row` tells which it is."""

    kind: str
    row: str
    cells: tuple[CellDifference, ...] = ()

    def text(self) -> list[str]:
        if self.kind != "differs":
            return [f"{self.kind}: {self.row}"]
        return [f"{self.row}: {cell.column} is {cell.found}, expected {cell.expected}" for cell in self.cells]


def differences(
    expected: Sequence[Row],
    found: Sequence[Row],
    *,
    types: Mapping[str, DataType],
    keys: Sequence[str],
    tolerance: float,
) -> tuple[RowDifference, ...]:
    """How the rows found differ from those expected, whatever their order; rows with equal keys are held together."""
    left = list(found)
    unmatched = []
    for row in expected:
        equal = next((i for i, other in enumerate(left) if not _unequal(row, other, types, tolerance)), None)
        if equal is None:
            unmatched.append(row)
        else:
            left.pop(equal)
    told = []
    for row in unmatched:
        pair = next((i for i, other in enumerate(left) if keys and all(row[key] == other[key] for key in keys)), None)
        if pair is None:
            told.append(RowDifference("missing", _written(row, types)))
            continue
        other = left.pop(pair)
        cells = tuple(
            CellDifference(name, shown(row[name]), shown(other[name]))
            for name in _unequal(row, other, types, tolerance)
        )
        told.append(RowDifference("differs", _written(row, keys), cells))
    return (*told, *(RowDifference("unexpected", _written(row, types)) for row in left))


def _written(row: Row, names: Sequence[str] | Mapping[str, DataType]) -> str:
    return ", ".join(f"{name}={shown(row[name])}" for name in names)


def _unequal(row: Row, other: Row, types: Mapping[str, DataType], tolerance: float) -> list[str]:
    return [name for name, kind in types.items() if not _equal(kind, row[name], other[name], tolerance)]


def _equal(kind: DataType, one: Any, other: Any, tolerance: float) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        share = max(tolerance, FLOAT_TOLERANCE) if kind.kind == "float" else tolerance
        return (math.isnan(one) and math.isnan(other)) or math.isclose(one, other, rel_tol=share, abs_tol=share * 1e-3)
    if kind.kind == "array" and isinstance(one, list) and isinstance(other, list) and kind.element is not None:
        pairs = zip(one, other, strict=False)
        return len(one) == len(other) and all(_equal(kind.element, a, b, tolerance) for a, b in pairs)
    return bool(one == other)
