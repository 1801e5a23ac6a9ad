"""The semantic fingerprint of a feature group: it changes when the group's values may change, and only then.

In: entity keys, source, features in name order with their types and expressions, every, ttl, skip_nulls, the
transform's own code and quarantine rules. Out: owner, descriptions, tags, status, layout of SQL, order of features.
The same text gives the same 16 hex digits on every machine and Python version: only JSON and SHA-256 are used.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from feature_defs import data_types, expressions
from feature_defs.model import Aggregate, Definitions, FeatureGroup, TransformReference


def fingerprint(group: FeatureGroup, definitions: Definitions) -> str:
    source = definitions.source_of(group)
    entity = definitions.entity_of(group)
    meaning = {
        "keys": [[column, _type(kind)] for column, kind in entity.keys.items()],
        "source": {
            "path": source.path,
            "format": source.format,
            "event_time": source.event_time,
            "created_time": source.created_time,
            "filter": _sql(source.filter),
            "schema": {column: _type(kind) for column, kind in (source.schema or {}).items()},
        },
        "features": sorted(
            [feature.name, _type(feature.type), _value(feature.expression)] for feature in group.features
        ),
        "every": group.every,
        "ttl": group.ttl,
        "skip_nulls": group.skip_nulls,
        "transform": transform_digest(group.transform),
        "quarantine": sorted(
            _sql(rule.condition) or "" for rule in group.expectations if rule.severity == "quarantine"
        ),
    }
    text = json.dumps(meaning, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _type(text: str) -> str:
    return data_types.parse(text).spark


def _sql(text: str | None) -> str | None:
    return None if text is None else expressions.normalised(text)


def _value(expression: str | Aggregate | None) -> Any:
    if isinstance(expression, Aggregate):
        return [expression.function, _sql(expression.column), expression.window, _sql(expression.where)]
    return _sql(expression)


# a transform is what its function says, and what that uses of the same file


def transform_digest(transform: Callable[..., Any] | TransformReference | None) -> str | None:
    match transform:
        case None:
            return None
        case TransformReference():
            return transform.digest
        case _:
            text = "\n".join(_pieces(transform))
            return hashlib.sha256(text.encode()).hexdigest()[:16]


def reference(transform: Callable[..., Any] | TransformReference | None) -> TransformReference | None:
    """A transform as the registry keeps it."""
    if transform is None or isinstance(transform, TransformReference):
        return transform
    digest = transform_digest(transform)
    return TransformReference(Path(inspect.getfile(transform)).name, transform.__qualname__, digest or "")


def _pieces(transform: Callable[..., Any]) -> list[str]:
    """The source of the function and of every top-level name of its file that it uses, directly or through others."""
    try:
        text = Path(inspect.getfile(transform)).read_text(encoding="utf-8")
        own = textwrap.dedent(inspect.getsource(transform))
    except (OSError, TypeError):
        return [transform.__qualname__]
    named = {name: node for node in ast.parse(text).body for name in _binds(node)}
    wanted, seen = _uses(ast.parse(own)), {transform.__name__}
    pieces = [_without_layout(own)]
    while names := sorted((wanted & named.keys()) - seen):
        for name in names:
            seen.add(name)
            pieces.append(_without_layout(ast.get_source_segment(text, named[name]) or ""))
            wanted |= _uses(named[name])
    return pieces


def _binds(node: ast.stmt) -> list[str]:
    match node:
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            return [name]
        case ast.Assign(targets=targets):
            return [target.id for target in targets if isinstance(target, ast.Name)]
        case ast.AnnAssign(target=ast.Name(id=name)):
            return [name]
        case ast.Import(names=names) | ast.ImportFrom(names=names):
            return [(alias.asname or alias.name).split(".")[0] for alias in names]
        case _:
            return []


def _uses(node: ast.AST) -> set[str]:
    return {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}


def _without_layout(text: str) -> str:
    lines = (line.rstrip() for line in text.splitlines())
    return "\n".join(line for line in lines if line and not line.lstrip().startswith("#"))
