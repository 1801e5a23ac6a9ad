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
from functools import lru_cache
from pathlib import Path
from typing import Any

from feature_defs import cleaning, data_types, expressions, rules
from feature_defs.model import GROUP_FORMAT, Aggregate, Definitions, FeatureGroup, Source, TransformReference


def fingerprint(group: FeatureGroup, definitions: Definitions) -> str:
    entity = definitions.entity_of(group)
    meaning: dict[str, Any] = {
        "keys": [[column, _type(kind)] for column, kind in entity.keys.items()],
        "source": source_meaning(definitions.source_of(group), definitions),
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


def source_meaning(source: Source, definitions: Definitions) -> dict[str, Any]:
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
    if source.multi_line:
        meaning["multi_line"] = True
    if source.inputs:
        names = source.input_names
        meaning["inputs"] = {name: source_meaning(definitions.source_named(name), definitions) for name in names}
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

_DEF = ast.FunctionDef | ast.ClassDef


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


def is_as_written(transform: Callable[..., Any]) -> bool:
    """Whether nothing wraps the function but the decorators above its def, which its text has."""
    own = inspect.unwrap(transform)
    if own is transform:
        return True
    file = _file(Path(inspect.getfile(own)))
    bound = [statement for statement in file.tree.body if own.__name__ in _binds(statement)]
    decorators = _function_at(file, own.__code__.co_firstlineno).decorator_list
    return bool(decorators) and len(bound) == 1 and own.__globals__.get(own.__name__) is transform


@dataclass(frozen=True)
class _File:
    """A definition file: its lines without comments, and the statements of its top level that decide each name."""

    tree: ast.Module
    lines: list[str]
    named: dict[str, list[ast.stmt]]


def _pieces(transform: Callable[..., Any]) -> list[str]:
    """The function's text, then that of every top-level name it uses, directly or through others.

    Names are looked up in the function's own file and, by way of relative imports, in the other definition files. What
    changes a name in its file counts as what binds it does.
    """
    own = inspect.unwrap(transform)
    path = Path(inspect.getfile(own)).resolve()
    files = {path: _file(path)}
    node = _function_at(files[path], own.__code__.co_firstlineno)
    itself = (path, own.__name__)
    pieces, wanted = [_text(files[path], node)], {itself, *_uses(path, node)}
    seen: set[tuple[Path, str]] = set()
    while waiting := sorted(wanted - seen):
        seen.update(waiting)
        for where, name in waiting:
            file = files[where] if where in files else files.setdefault(where, _file(where))
            for statement in file.named.get(name, ()):
                match statement:
                    case _ if (where, name) == itself and name in _binds(statement):
                        continue  # it is there already
                    case ast.FunctionDef(name=other) | ast.ClassDef(name=other) if other != name:
                        wanted.add((where, other))
                    case ast.ImportFrom(level=level) if level:
                        wanted |= _imported(where, statement, name)
                    case ast.Import() | ast.ImportFrom():
                        pieces += _import_texts(statement, name)
                    case _:
                        pieces.append(_text(file, statement))
                        wanted |= _uses(where, statement)
    return pieces


def _file(path: Path) -> _File:
    return _parsed(path.read_text(encoding="utf-8"))


@lru_cache(maxsize=64)
def _parsed(text: str) -> _File:
    tree = ast.parse(text)
    named: dict[str, list[ast.stmt]] = {}
    called = set().union(*(_changes(statement) for statement in tree.body if not isinstance(statement, _DEF)))
    packages = set().union(*(_binds(statement) for statement in tree.body if _imports_package(statement)))
    for statement in tree.body:
        changed = _changes_outside(statement, called) if isinstance(statement, _DEF) else _changes(statement)
        for name in _binds(statement) | (changed - packages):
            named.setdefault(name, []).append(statement)
    lines = text.split("\n")
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    return _File(tree, lines, named)


def _function_at(file: _File, line: int) -> ast.FunctionDef:
    functions = (node for node in ast.walk(file.tree) if isinstance(node, ast.FunctionDef))
    found = next((node for node in functions if _first_line(node) == line), None)
    if found is None:
        raise TypeError("the function is not in its file")
    return found


def _first_line(node: Any) -> int:
    return int(min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", ()))]))


def _binds(statement: ast.stmt) -> set[str]:
    if isinstance(statement, _DEF):
        return {statement.name}
    found = set()
    for node in ast.walk(statement):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                found.add(name)
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                found |= {_bound(alias) for alias in names}
    return found


def _changes(node: ast.AST) -> set[str]:
    """The names of which a piece of a file, as it runs, sets items or attributes, or which it calls for no result."""
    found: set[str] = set()
    match node:
        case ast.Subscript(ctx=ast.Store() | ast.Del()) | ast.Attribute(ctx=ast.Store() | ast.Del()):
            found = _base(node)
        case ast.Expr(value=ast.Call() as call):
            found = _base(call)
        case _ if _is_idle(node):
            return found
    return found.union(*(_changes(inner) for inner in ast.iter_child_nodes(node) if not isinstance(inner, _DEF)))


def _is_idle(node: ast.AST) -> bool:
    """Whether it does nothing when definitions are loaded: `if TYPE_CHECKING:` and `if __name__ == "__main__":`."""
    match node:
        case ast.If(orelse=[], test=ast.Name(id=name) | ast.Attribute(attr=name) | ast.Compare(left=ast.Name(id=name))):
            return name in ("TYPE_CHECKING", "__name__")
    return False


def _base(node: ast.expr) -> set[str]:
    """`RATES` of `RATES["gold"].append(2)`."""
    match node:
        case ast.Name(id=name):
            return {name}
        case ast.Subscript(value=inner) | ast.Attribute(value=inner) | ast.Call(func=inner):
            return _base(inner)
    return set()


def _changes_outside(function: ast.FunctionDef | ast.ClassDef, called: set[str]) -> set[str]:
    """The names of its file that a function sets by `global`, and if the file calls it those that it changes."""
    nodes = list(ast.walk(function))
    found = {name for node in nodes if isinstance(node, ast.Global) for name in node.names}
    if function.name in called:
        inside = {node.arg for node in nodes if isinstance(node, ast.arg)}
        inside |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        found |= _changes(function) - inside
    return found


def _imports_package(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Import) or (isinstance(statement, ast.ImportFrom) and not statement.level)


def _bound(alias: ast.alias) -> str:
    return (alias.asname or alias.name).split(".")[0]


def _uses(path: Path, node: ast.AST) -> set[tuple[Path, str]]:
    """The names in a piece of a file; `*` stands for those that come from `from .other import *`."""
    found = {(path, "*")}
    for inner in ast.walk(node):
        match inner:
            case ast.Name(id=name):
                found.add((path, name))
            case ast.ImportFrom(level=level, names=names) if level and not _is_idle(node):
                found.update(*(_imported(path, inner, _bound(alias)) for alias in names))
    return found


def _imported(path: Path, statement: ast.ImportFrom, name: str) -> set[tuple[Path, str]]:
    """Where a relative import's name is bound: one name of a definition file, or all of the file."""
    folder = path.parents[statement.level - 1].joinpath(*(statement.module or "").split("."))
    module = _module(folder) if statement.module else folder / "__init__.py"
    bound = _file(module).named if module.is_file() else {}
    found: set[tuple[Path, str]] = set()
    for alias in statement.names:
        if _bound(alias) != name:
            continue
        if (part := _module(folder / alias.name)).is_file():
            found |= {(part, inner) for inner in _file(part).named}
        if name == "*":
            found |= {(module, inner) for inner in bound}
        elif alias.name in bound or not part.is_file():
            found.add((module, alias.name if alias.name in bound else "*"))
    return {(file, inner) for file, inner in found if file.is_file()}


def _module(stem: Path) -> Path:
    """`sub/__init__.py` or `sub.py`, as Python finds `sub`."""
    package = stem / "__init__.py"
    return package if package.is_file() else stem.with_name(f"{stem.name}.py")


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
