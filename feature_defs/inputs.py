"""What a source is made from: the inputs its SQL or its function names, and which groups come before which.

    {purchases} in SQL, purchases in transform=def f(purchases)  ->  the input of that name
    group -> its source -> inputs -> ... -> the groups whose tables it reads

A name means a source, or a feature group when no source has it.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from feature_defs import expressions
from feature_defs.errors import listed, near_miss
from feature_defs.model import GROUP_FORMAT, Definitions, FeatureGroup, Source, TransformReference

_PART = r'(?:[A-Za-z_][A-Za-z0-9_$]*|"[^"\s]+")'
TABLE_PATH = re.compile(rf"jdbc://(?P<database>[A-Za-z][A-Za-z0-9_-]*)/(?P<table>{_PART}(?:\.{_PART}){{0,2}})")
PLACEHOLDER = re.compile(r"\{\s*([A-Za-z_]\w*)\s*\}")
_QUERY = re.compile(r"[\s(]*(select|with|from|values)\b", re.IGNORECASE)
_TABLE = re.compile(r"\b(?:from|join)\s+([A-Za-z_]\w*)\b(?!\s*[.(])", re.IGNORECASE)

Found = Iterator[tuple[str, str]]  # (problem, hint)


def input_faults(source: Source, known: Sequence[str]) -> Found:
    """What is wrong with the inputs of a source and with the SQL or the function over them."""
    if not isinstance(source.inputs, list | tuple):
        yield f"inputs is {type(source.inputs).__name__}, expected a list", "write inputs=[purchases, customers]"
        return
    if wrong := [item for item in source.inputs if not isinstance(item, Source | FeatureGroup | str)]:
        yield f"inputs holds {type(wrong[0]).__name__}", "each item is a source, a feature group or the name of one"
        return
    names = [str(name) for name in source.input_names]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"input '{name}' is there twice", "keep one of the two; SQL may name it as often as it needs"
    if source.path or source.format != "delta":
        what = "path=" if source.path else "format="
        yield f"has {what} together with inputs=", f"leave {what} out, or move it to a source of its own and name that"
    if source.sql is not None and source.transform is not None:
        yield "has sql= together with transform=", "write the rows as one of the two"
    elif source.sql is not None:
        yield from _sql_faults(source.sql, names, known)
    elif source.transform is not None:
        yield from _parameter_faults(source.transform, names)
    else:
        yield "has inputs= but neither sql= nor transform=", f'write sql="... from {{{names[0]}}}"'


def _sql_faults(sql: object, names: Sequence[str], known: Sequence[str]) -> Found:
    if not isinstance(sql, str):
        yield f"sql is {type(sql).__name__}", "write Spark SQL as text"
        return
    try:
        text = expressions.normalised(sql)
    except expressions.ExpressionFault as fault:
        yield f"sql: {fault}", "write one query in Spark SQL, without a semicolon"
        return
    if not _QUERY.match(text):
        yield (
            f"sql begins with '{text.split()[0]}', expected a query",
            f"begin with select or with; name an input as {{{names[0]}}}",
        )
        return
    named = PLACEHOLDER.findall(text)
    bare = [name for name in _TABLE.findall(text) if name in {*names, *known} and not _is_own_name(text, name)]
    for name in dict.fromkeys(bare):
        yield (
            f"sql reads '{name}' without braces",
            f"write {{{name}}}" + ("" if name in names else ", and name it in inputs="),
        )
    unknown = [name for name in dict.fromkeys(named) if name not in names]
    for name in unknown:
        hint = near_miss(name, names) + "name it in inputs=, or correct the SQL"
        yield f"sql names {{{name}}}, which is not in inputs ({listed(names)})", hint
    for name in () if unknown or bare else dict.fromkeys(names):  # else it is most likely the one that is misspelt
        if name not in named:
            yield f"input '{name}' is not used", f"name it in the SQL as {{{name}}}, or take it out of inputs="


def _is_own_name(text: str, name: str) -> bool:
    """Whether the query gives this name to a part of its own: `with name as (...)`."""
    return re.search(rf"\b{name}\s+as\s*\(", text, re.IGNORECASE) is not None


def _parameter_faults(transform: Callable[..., Any] | TransformReference, names: Sequence[str]) -> Found:
    if not inspect.isfunction(transform) or transform.__name__ == "<lambda>":
        return  # a fault already, or the registry's word for it
    parameters = list(inspect.signature(transform).parameters)
    if sorted(parameters) != sorted(set(names)):
        problem = f"transform takes ({', '.join(parameters)}), the inputs are {listed(names)}"
        yield problem, f"write def {transform.__name__}({', '.join(names)})"


# which definitions need which


def cycle(definitions: Definitions) -> tuple[FeatureGroup | Source, ...]:
    """Groups and sources that are made from one another, in name order; none when all is well."""
    needs = {
        (GROUP_FORMAT, name): _nodes([group.source_name], definitions) - {(GROUP_FORMAT, name)}
        for name, group in definitions.groups.items()
    }
    for name, source in definitions.sources.items():
        needs["source", name] = _nodes(_input_names(source), definitions)
    while True:
        needed = {node for nodes in needs.values() for node in nodes}
        in_circle = {
            node: nodes & needs.keys() for node, nodes in needs.items() if nodes & needs.keys() and node in needed
        }
        if in_circle.keys() == needs.keys():
            break
        needs = in_circle
    return tuple(
        definitions.groups[name] if kind == GROUP_FORMAT else definitions.sources[name] for kind, name in sorted(needs)
    )


def _nodes(names: Sequence[object], definitions: Definitions) -> set[tuple[str, str]]:
    found: set[tuple[str, str]] = set()
    for name in names:
        if isinstance(name, str):
            kind = "source" if name in definitions.sources else GROUP_FORMAT
            found.add((kind, name))
    return found


def _input_names(source: Source) -> list[object]:
    items = source.inputs if isinstance(source.inputs, list | tuple) else ()
    return [item.name if isinstance(item, Source | FeatureGroup) else item for item in items]


def upstream(source: Source, definitions: Definitions) -> dict[str, FeatureGroup]:
    """The groups whose tables a source reads, directly or through its inputs."""
    if source.format == GROUP_FORMAT:
        return {source.name: definitions.groups[source.name]}
    found: dict[str, FeatureGroup] = {}
    for name in source.input_names:
        found |= upstream(definitions.source_named(name), definitions)
    return found


def in_order(groups: Sequence[FeatureGroup], definitions: Definitions) -> list[FeatureGroup]:
    """The groups, each behind those of them that it is made from; otherwise as they were."""
    waiting = {group.name: group for group in groups}
    needs = {name: all_upstream(group, definitions) for name, group in waiting.items()}
    ordered: list[FeatureGroup] = []
    while waiting:
        name = next(name for name in waiting if not needs[name] & waiting.keys())
        ordered.append(waiting.pop(name))
    return ordered


def all_upstream(group: FeatureGroup, definitions: Definitions) -> set[str]:
    """Also through groups that are not chosen."""
    direct = upstream(definitions.source_of(group), definitions)
    return set(direct).union(*(all_upstream(other, definitions) for other in direct.values()))


def made_from(group: FeatureGroup, definitions: Definitions) -> tuple[str, ...]:
    """The groups whose tables this one reads."""
    return tuple(upstream(definitions.source_of(group), definitions))


def downstream(name: str, definitions: Definitions) -> tuple[str, ...]:
    """The groups that read this group's table."""
    return tuple(group.name for group in definitions.groups.values() if name in made_from(group, definitions))


def sources_using(name: str, definitions: Definitions) -> tuple[str, ...]:
    """The sources that name this source, or this group, as an input."""
    return tuple(source.name for source in definitions.sources.values() if name in source.input_names)
