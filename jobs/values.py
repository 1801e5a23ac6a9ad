"""Values of keys and features at the command line: read from text, shown as text, and compared."""

from __future__ import annotations

import datetime
import decimal
from collections.abc import Mapping
from typing import Any

from feature_defs import data_types
from feature_defs.errors import UsageError
from jobs import arguments
from jobs.report import plain_value


def typed_keys(keys: Mapping[str, str], given: Mapping[str, str]) -> tuple[Any, ...]:
    """Key values from text, as the types that the entity declares."""
    return tuple(typed(name, data_types.parse(kind).kind, given[name]) for name, kind in keys.items())


def typed(name: str, kind: str, text: str) -> Any:
    """One value from text, as a type of the closed table."""
    try:
        match kind:
            case "int" | "bigint":
                return int(text)
            case "boolean":
                return {"true": True, "false": False}[text.lower()]
            case "date":
                return datetime.date.fromisoformat(text)
            case "timestamp":
                return arguments.moment(text)
            case "decimal":
                return decimal.Decimal(text)
            case "binary":
                return bytes.fromhex(text)
            case _:
                return text
    except (ValueError, KeyError, ArithmeticError) as error:
        raise UsageError(f"Key '{name}'", f"the value given is no {kind}", hint=f"write it as {kind}") from error


def shown(value: Any) -> str:
    """A value on one line, a long one cut."""
    if isinstance(value, list) and len(value) > 4:
        return f"[{', '.join(shown(item) for item in value[:3])}, ... {len(value)} values]"
    if isinstance(value, list):
        return f"[{', '.join(map(shown, value))}]"
    if isinstance(value, dict):
        entries = [f"{key}: {shown(item)}" for key, item in value.items()]
        return f"{{{', '.join(entries if len(entries) <= 4 else [*entries[:3], f'... {len(entries)} entries'])}}}"
    if isinstance(value, float):
        return f"{value:.6g}"
    return "null" if value is None else str(plain_value(value))


def same(left: Any, right: Any) -> bool:
    """Equal, where a NaN equals a NaN."""
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, float) and isinstance(right, float) and left != left:
        return right != right
    return bool(left == right)
