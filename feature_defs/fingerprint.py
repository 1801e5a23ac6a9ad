"""The semantic fingerprint of a feature group: it changes when the group's values may change, and only then.

In: entity keys, source (with its inputs; of a group that group's fingerprint), features in name order with their types
and expressions, every, ttl, skip_nulls, the transform's own code, cleaning steps, the ranges of what is fitted and
quarantine rules. Out: owner, descriptions, tags,
status, layout of SQL, order of features.
The same text gives the same 16 hex digits on every machine and Python version: only JSON and SHA-256 are used.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import io
import json
import textwrap
import tokenize
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from feature_defs import cleaning, data_types, expressions, rules
from feature_defs.model import GROUP_FORMAT, Aggregate, Definitions, FeatureGroup, Source, TransformReference


def fingerprint(group: FeatureGroup, definitions: Definitions) -> str:
    entity = definitions.entity_of(group)
    meaning: dict[str, Any] = {
        "keys": [[column, _type(kind)] for column, kind in entity.keys.items()],
        "source": _source(definitions.source_of(group), definitions),
        "features": sorted(
            [feature.name, _type(feature.type), _value(feature.expression, group.fit)] for feature in group.features
        ),
        "every": group.every,
        "ttl": group.ttl,
        "skip_nulls": group.skip_nulls,
        "transform": transform_digest(group.transform),
        "quarantine": sorted(rules.meaning(rule) for rule in group.rules if rule.severity == "quarantine"),
    }
    if group.clean:  # the word joins when it is used: groups without it keep their fingerprints
        meaning["clean"] = [cleaning.meaning(step, group.fit) for step in group.clean]
    text = json.dumps(meaning, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _source(source: Source, definitions: Definitions) -> dict[str, Any]:
    """What decides a source's rows. Of a group that is all that decides its own table, and which version of it."""
    if source.format == GROUP_FORMAT:
        group = definitions.groups[source.name]
        return {"group": group.name, "version": group.version, "fingerprint": fingerprint(group, definitions)}
    meaning: dict[str, Any] = {
        "path": source.path,
        "format": source.format,
        "event_time": source.event_time,
        "created_time": source.created_time,
        "filter": _sql(source.filter),
        "schema": {column: _type(kind) for column, kind in (source.schema or {}).items()},
    }
    if source.inputs:
        names = source.input_names
        meaning["inputs"] = {name: _source(definitions.source_named(name), definitions) for name in names}
        meaning["sql"], meaning["transform"] = _sql(source.sql), transform_digest(source.transform)
    return meaning


def _type(text: str) -> str:
    return data_types.parse(text).spark


def _sql(text: str | None) -> str | None:
    return None if text is None else expressions.normalised(text)


def _value(expression: str | Aggregate | cleaning.Scaled | None, fit: Sequence[str] | None) -> Any:
    if isinstance(expression, cleaning.Scaled):
        return cleaning.meaning(expression, fit)
    if isinstance(expression, Aggregate):
        said = [expression.function, _sql(expression.column), expression.window, _sql(expression.where)]
        more = {"by": _sql(expression.by), "k": expression.k, "q": expression.q}
        more = {name: value for name, value in more.items() if value is not None}
        return [*said, more] if more else said
    return _sql(expression)


# a transform is what its function says, and what that uses of the definition files


def transform_digest(transform: Callable[..., Any] | TransformReference | None) -> str | None:
    match transform:
        case None:
            return None
        case TransformReference():
            return transform.digest
        case _:
            return hashlib.sha256("\n".join(_pieces(transform)).encode()).hexdigest()[:16]


def reference(transform: Callable[..., Any] | TransformReference | None) -> TransformReference | None:
    """A transform as the registry keeps it."""
    if transform is None or isinstance(transform, TransformReference):
        return transform
    own = inspect.unwrap(transform)
    return TransformReference(Path(inspect.getfile(own)).name, own.__qualname__, transform_digest(transform) or "")


@dataclass(frozen=True)
class _File:
    """A definition file: its lines without comments, and the statements that bind each name at its top level."""

    tree: ast.Module
    lines: list[str]
    named: dict[str, list[ast.stmt]]


def _pieces(transform: Callable[..., Any]) -> list[str]:
    """The function's text, then that of every top-level name it uses, directly or through others.

    Names are looked up in the function's own file and, by way of relative imports, in the other definition files.
    """
    own = inspect.unwrap(transform)
    path = Path(inspect.getfile(own)).resolve()
    files = {path: _file(path)}
    node = _function_at(files[path], own.__code__.co_firstlineno)
    pieces, seen, wanted = [_text(files[path], node)], {(path, own.__name__)}, _uses(path, node)
    while waiting := sorted(wanted - seen):
        seen.update(waiting)
        for where, name in waiting:
            file = files[where] if where in files else files.setdefault(where, _file(where))
            for statement in file.named.get(name, ()):
                match statement:
                    case ast.ImportFrom(level=level) if level:
                        wanted |= _imported(where, statement, name)
                    case ast.Import() | ast.ImportFrom():
                        pieces += _import_texts(statement, name)
                    case _:
                        pieces.append(_text(file, statement))
                        wanted |= _uses(where, statement)
    return pieces


def _file(path: Path) -> _File:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    named: dict[str, list[ast.stmt]] = {}
    for statement in tree.body:
        for name in _binds(statement):
            named.setdefault(name, []).append(statement)
    lines = text.split("\n")
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    return _File(tree, lines, named)


def _function_at(file: _File, line: int) -> ast.AST:
    functions = (node for node in ast.walk(file.tree) if isinstance(node, ast.FunctionDef))
    found = next((node for node in functions if _first_line(node) == line), None)
    if found is None:
        raise TypeError("the function is not in its file")
    return found


def _first_line(node: Any) -> int:
    return int(min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", ()))]))


def _binds(statement: ast.stmt) -> set[str]:
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return {statement.name}
    found = set()
    for node in ast.walk(statement):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                found.add(name)
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                found |= {_bound(alias) for alias in names}
    return found


def _bound(alias: ast.alias) -> str:
    return (alias.asname or alias.name).split(".")[0]


def _uses(path: Path, node: ast.AST) -> set[tuple[Path, str]]:
    """The names in a piece of a file; `*` stands for those that come from `from .other import *`."""
    names = {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}
    return {(path, name) for name in (*names, "*")}


def _imported(path: Path, statement: ast.ImportFrom, name: str) -> set[tuple[Path, str]]:
    """Where a relative import's name is bound: one name of a definition file, or all of the file."""
    folder = path.parents[statement.level - 1].joinpath(*(statement.module or "").split("."))
    module = folder.with_name(f"{folder.name}.py")
    found: set[tuple[Path, str]] = set()
    for alias in statement.names:
        if _bound(alias) != name:
            continue
        if (part := folder / f"{alias.name}.py").is_file():
            found |= {(part, inner) for inner in _file(part).named}
        elif module.is_file() and statement.module:
            found |= {(module, inner) for inner in (_file(module).named if name == "*" else [alias.name])}
    return found


def _import_texts(statement: ast.Import | ast.ImportFrom, name: str) -> list[str]:
    """What a name is imported from, whatever else the same line imports."""
    module = f"from {statement.module} " if isinstance(statement, ast.ImportFrom) else ""
    chosen = [alias for alias in statement.names if _bound(alias) == name]
    return [f"{module}import {alias.name} as {alias.asname or alias.name}" for alias in chosen]


def _text(file: _File, node: Any) -> str:
    """A statement's lines without comments, docstrings and blank lines: the same on every version of Python."""
    skipped: set[int] = set()
    for inner in ast.walk(node):
        match inner:
            case ast.FunctionDef(body=[ast.Expr(value=ast.Constant(value=str())) as doc, following, *_]):
                skipped.update(range(doc.lineno, (doc.end_lineno or 0) + 1) if doc.lineno < following.lineno else ())
    kept = [n for n in range(_first_line(node), node.end_lineno + 1) if n not in skipped]
    lines = textwrap.dedent("\n".join(file.lines[n - 1] for n in kept)).split("\n")
    return "\n".join(line.rstrip() for line in lines if line.strip())
