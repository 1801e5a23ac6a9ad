"""What changes from one set of definitions to another: the plan of an apply, and why one is refused.

    (registered, wanted) -> compare -> Plan(changes, refusals)

A version is a promise: within one version of a group its types do not change, and within one version of a service the
model receives the same columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from feature_defs import data_types, snapshot
from feature_defs.inputs import downstream
from feature_defs.model import Definitions, FeatureGroup, Service

ADDED, CHANGED, REMOVED = "added", "changed", "removed"
NOTHING = Definitions({}, {}, {}, {})
_WORDS = {"entities": "Entity", "sources": "Source", "groups": "FeatureGroup", "services": "Service"}


@dataclass(frozen=True)
class FieldChange:
    """One thing about a definition that differs; None stands for absent."""

    field: str
    before: Any
    after: Any


@dataclass(frozen=True)
class Change:
    """One definition that differs. `values_change` says that its rows mean something else, so they are recomputed."""

    action: str
    word: str
    name: str
    fields: tuple[FieldChange, ...] = ()
    values_change: bool = False


@dataclass(frozen=True)
class Plan:
    """What an apply would do. `refusals` are (subject, problem, hint); with any of them nothing is applied."""

    changes: tuple[Change, ...]
    recompute: tuple[str, ...]
    refusals: tuple[tuple[str, str, str], ...]
    warnings: tuple[str, ...]


def compare(registered: Definitions | None, wanted: Definitions) -> Plan:
    before = registered or NOTHING
    old, new = snapshot.to_plain(before), snapshot.to_plain(wanted)
    changes = tuple(change for part, word in _WORDS.items() for change in _changes(word, old[part], new[part]))
    recompute = tuple(change.name for change in changes if change.values_change and change.action != REMOVED)
    return Plan(
        changes=changes,
        recompute=recompute,
        refusals=(*_group_refusals(before, wanted), *_service_refusals(before, wanted)),
        warnings=tuple(_warnings(wanted)),
    )


def keep_status(registered: Definitions | None, wanted: Definitions) -> Definitions:
    """A group whose file says nothing of its status keeps the registered one; a new one is active."""
    known = registered.groups if registered else {}
    groups = {
        name: replace(group, status=group.status or (known[name].status if name in known else None) or "active")
        for name, group in wanted.groups.items()
    }
    return replace(wanted, groups=groups)


def _changes(word: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Change]:
    for name in sorted(old.keys() | new.keys()):
        if name not in old:
            yield Change(ADDED, word, name, values_change="fingerprint" in new[name])
        elif name not in new:
            yield Change(REMOVED, word, name)
        elif old[name] != new[name]:
            values = old[name].get("fingerprint") != new[name].get("fingerprint")
            fields = tuple(_field_changes("", old[name], new[name]))
            version_rose = word == "FeatureGroup" and old[name]["version"] != new[name]["version"]
            yield Change(CHANGED, word, name, fields, values_change=values or version_rose)


def _field_changes(path: str, old: Any, new: Any) -> Iterator[FieldChange]:
    before, after = _named(old, new), _named(new, old)
    if before == after:  # a list whose items only moved
        yield FieldChange(path, "order", "another order")
    elif isinstance(before, dict) and isinstance(after, dict):
        for key in dict.fromkeys((*before, *after)):
            if before.get(key) != after.get(key) and (path, key) != ("", "fingerprint"):
                yield from _field_changes(f"{path}.{key}".lstrip("."), before.get(key), after.get(key))
    else:
        yield FieldChange(path, before, after)


def _named(value: Any, other: Any) -> Any:
    """A list of named things (features, expectations) compares by name, also with none of them."""
    items = [*value, *other] if isinstance(value, list) and isinstance(other, list) else []
    if items and all(isinstance(item, dict) and "name" in item for item in items):
        return {item["name"]: item for item in value}
    return value


# reasons to refuse

Refusals = Iterator[tuple[str, str, str]]


def _group_refusals(before: Definitions, wanted: Definitions) -> Refusals:
    for name in sorted(before.groups.keys() & wanted.groups.keys()):
        old, new = before.groups[name], wanted.groups[name]
        subject, raise_it = (
            f"FeatureGroup '{name}'",
            f"set version={old.version + 1}; version {old.version} stays readable",
        )
        if new.version < old.version:
            yield (
                subject,
                f"version {new.version} is below the registered {old.version}",
                f"use version={old.version} or more",
            )
        if new.version != old.version:
            continue
        types = {feature.name: _type(feature.type) for feature in old.features}
        for feature in new.features:
            if types.get(feature.name, _type(feature.type)) != _type(feature.type):
                problem = f"feature '{feature.name}' changes type from {types[feature.name]} to {_type(feature.type)}"
                yield subject, f"{problem} within version {old.version}", raise_it
        old_keys, new_keys = _keys(old, before), _keys(new, wanted)
        if old_keys != new_keys:
            problem = f"its keys change from {', '.join(old_keys)} to {', '.join(new_keys)}"
            yield subject, f"{problem} within version {old.version}", raise_it
        if old.offline != new.offline:
            problem = f"its offline format changes from {old.offline} to {new.offline} within version {old.version}"
            yield subject, problem, raise_it


def _type(text: str) -> str:
    """`decimal(10, 2)` is `decimal(10,2)`: another spelling is no change."""
    return data_types.parse(text).spark


def _keys(group: FeatureGroup, definitions: Definitions) -> list[str]:
    return [f"{column} {_type(kind)}" for column, kind in definitions.entity_of(group).keys.items()]


def _service_refusals(before: Definitions, wanted: Definitions) -> Refusals:
    for name in sorted(before.services.keys() & wanted.services.keys()):
        old, new = before.services[name], wanted.services[name]
        subject = f"Service '{name}'"
        if new.version < old.version:
            yield (
                subject,
                f"version {new.version} is below the registered {old.version}",
                f"use version={old.version} or more",
            )
        elif new.version == old.version and (reason := _broken(_columns(old, before), _columns(new, wanted))):
            problem = f"{reason}: that would change what the model of version {old.version} receives"
            yield subject, problem, f"set version={old.version + 1} on the service, or undo the change"


def _columns(service: Service, definitions: Definitions) -> dict[str, str]:
    """What the model receives: each column with its group's version and its type, in order."""
    return {
        f"{group.name}.{feature.name}": f"{_type(feature.type)} of version {group.version}"
        for group, features in definitions.features_of(service)
        for feature in features
    }


def _broken(old: Mapping[str, str], new: Mapping[str, str]) -> str:
    lost = [name for name in old if name not in new]
    gained = [name for name in new if name not in old]
    other = [f"{name} ({old[name]} -> {new[name]})" for name in old if new.get(name, old[name]) != old[name]]
    told = [("loses", lost), ("gains", gained), ("has other", other)]
    reason = "; ".join(f"{verb} {', '.join(names)}" for verb, names in told if names)
    return reason or ("has its columns in another order" if list(old) != list(new) else "")


def _warnings(wanted: Definitions) -> Iterator[str]:
    for group in wanted.groups.values():
        using = wanted.services_using(group.name) if group.is_deprecated else ()
        if using:
            names = ", ".join(f"'{service.name}'" for service in using)
            yield f"FeatureGroup '{group.name}' is deprecated and still used by service {names}"
        using_groups = downstream(group.name, wanted) if group.is_deprecated else ()
        if using_groups:
            names = ", ".join(f"'{name}'" for name in using_groups)
            yield f"FeatureGroup '{group.name}' is deprecated and still used by group {names}"
