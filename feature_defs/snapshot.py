"""Definitions as plain JSON data and back: what a registry snapshot holds.

All that a definition says is kept, except the line it was written on; a transform is kept as a reference. Reading
what was written gives the same plain data again, so history can be compared with today without any definition file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from feature_defs import cleaning
from feature_defs.fingerprint import fingerprint, reference
from feature_defs.model import (
    Aggregate,
    Definitions,
    Entity,
    Feature,
    FeatureGroup,
    FeatureSelection,
    Service,
    Source,
    TransformReference,
)
from feature_defs.rules import plain_rule, rule_from_plain

FORMAT = 1


def to_plain(definitions: Definitions) -> dict[str, Any]:
    """Definitions as data that JSON can hold, in name order."""
    return {
        "entities": {name: _plain(item) for name, item in sorted(definitions.entities.items())},
        "sources": {name: _plain_source(item) for name, item in sorted(definitions.sources.items())},
        "groups": {name: plain_group(item, definitions) for name, item in sorted(definitions.groups.items())},
        "services": {name: _plain_service(item) for name, item in sorted(definitions.services.items())},
    }


def plain_group(group: FeatureGroup, definitions: Definitions) -> dict[str, Any]:
    """A group by value, with its references by name and its fingerprint."""
    plain = _plain(group)
    plain["entity"], plain["source"] = group.entity_name, group.source_name
    plain["features"] = [_plain_feature(feature) for feature in group.features]
    plain["expectations"] = [plain_rule(rule) for rule in group.expectations]
    kept = reference(group.transform)
    plain["transform"] = _plain(kept) if kept else None
    for name in ("clean", "fit"):  # newer than the format: there only when they say something
        if not plain[name]:
            del plain[name]
    plain["fingerprint"] = fingerprint(group, definitions)
    return plain


def _plain_source(source: Source) -> dict[str, Any]:
    """A source by value; what it is made from is there only where it is made from something."""
    plain = _plain(source)
    if not source.multi_line:  # newer than the format
        del plain["multi_line"]
    made = {name: plain.pop(name) for name in ("inputs", "sql", "transform")}
    if source.inputs:
        kept = reference(source.transform)
        plain |= {**made, "inputs": list(source.input_names), "transform": _plain(kept) if kept else None}
    return plain


def _plain_feature(feature: Feature) -> dict[str, Any]:
    """Rules only where there are some: a feature without them is what it always was."""
    plain = _plain(feature)
    plain["expect"] = [plain_rule(rule, feature.name) for rule in feature.expect]
    return plain if plain["expect"] else {name: value for name, value in plain.items() if name != "expect"}


def _plain_service(service: Service) -> dict[str, Any]:
    plain = _plain(service)
    plain["features"] = [
        {"group": selection.group, "features": list(selection.features) if selection.features else None}
        for selection in service.selections
    ]
    return plain


def _plain(item: Any) -> dict[str, Any]:
    values = {part.name: getattr(item, part.name) for part in fields(item) if part.name != "at"}
    return {name: _plain_value(value) for name, value in values.items()}


def _plain_value(value: Any) -> Any:
    if isinstance(value, Aggregate):
        return {part.name: getattr(value, part.name) for part in fields(value)}
    if isinstance(value, cleaning.Word):
        return cleaning.to_plain(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, list | tuple) and any(isinstance(item, cleaning.Step) for item in value):
        return [_plain_value(item) for item in value]
    return list(value) if isinstance(value, list | tuple) else value


def from_plain(plain: Mapping[str, Any]) -> Definitions:
    """The definitions that a snapshot holds."""
    return Definitions(
        entities={name: Entity(**item) for name, item in plain["entities"].items()},
        sources={name: _source(item) for name, item in plain["sources"].items()},
        groups={name: _group(item) for name, item in plain["groups"].items()},
        services={name: _service(item) for name, item in plain["services"].items()},
    )


def _source(plain: Mapping[str, Any]) -> Source:
    kept = plain.get("transform")
    return Source(**{**plain, "transform": TransformReference(**kept) if kept else None})


def _group(plain: Mapping[str, Any]) -> FeatureGroup:
    values = {name: value for name, value in plain.items() if name != "fingerprint"}
    values["features"] = [_feature(item) for item in plain["features"]]
    values["expectations"] = [rule_from_plain(item) for item in plain["expectations"]]
    values["transform"] = TransformReference(**plain["transform"]) if plain["transform"] else None
    values["clean"] = [cleaning.from_plain(item) for item in plain.get("clean", ())]
    return FeatureGroup(**values)


def _feature(plain: Mapping[str, Any]) -> Feature:
    expression = plain["expression"]
    if isinstance(expression, dict):
        expression = cleaning.from_plain(expression) if "word" in expression else Aggregate(**expression)
    expect = [rule_from_plain(item) for item in plain.get("expect", ())]
    return Feature(**{**plain, "expression": expression, "expect": expect})


def _service(plain: Mapping[str, Any]) -> Service:
    selections = [
        FeatureSelection(item["group"], tuple(item["features"]) if item["features"] else None)
        for item in plain["features"]
    ]
    return Service(**{**plain, "features": selections})
