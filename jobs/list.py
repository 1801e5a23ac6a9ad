"""list: find feature groups and services in the registry."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

from feature_defs.errors import near_miss
from feature_defs.model import STATUSES, Definitions, Feature, FeatureGroup
from jobs.place import Place
from jobs.report import counted, table


@dataclass(frozen=True)
class Criteria:
    """What to look for; every one that is given must hold."""

    text: str = ""
    owner: str = ""
    tag: str = ""
    entity: str = ""
    status: str = ""


@dataclass(frozen=True)
class Entry:
    """One group or service that was found. `features` are those that match text and tag, or all."""

    kind: str
    name: str
    version: int
    entity: str
    owner: str
    status: str
    features: tuple[str, ...]
    description: str


@dataclass(frozen=True)
class ListReport:
    snapshot: int
    entries: tuple[Entry, ...]
    hint: str = ""
    exit_code: int = 0

    def text(self) -> str:
        if not self.entries:
            return f"nothing found in registry snapshot {self.snapshot}" + (f"; {self.hint}" if self.hint else "")
        lines = [
            (
                entry.kind,
                f"{entry.name} v{entry.version}",
                entry.entity,
                entry.owner,
                entry.status,
                ", ".join(entry.features),
            )
            for entry in self.entries
        ]
        shown = table(["kind", "name", "entity", "owner", "status", "features"], lines)
        return f"{shown}\n{counted(len(lines), 'definition')} found (registry snapshot {self.snapshot})"


def list_definitions(place: Place, criteria: Criteria = Criteria()) -> ListReport:
    """Groups and services that meet all the criteria."""
    snapshot = place.applied()
    definitions = snapshot.definitions
    entries = (*_groups(definitions, criteria), *_services(definitions, criteria))
    return ListReport(snapshot.number, entries, "" if entries else _hint(definitions, criteria))


def _groups(definitions: Definitions, criteria: Criteria) -> Iterator[Entry]:
    for group in definitions.groups.values():
        tagged = group.features if criteria.tag in ("", *group.tags) else _tagged(group, criteria.tag)
        features = tuple(feature.name for feature in tagged if _matches(feature, criteria.text))
        about = (group.name, group.description, group.owner, *group.tags)
        if (
            (features or _contains(about, criteria.text))
            and _equal(criteria.owner, group.owner)
            and tagged
            and _equal(criteria.entity, group.entity_name)
            and _equal(criteria.status, group.status or STATUSES[0])
        ):
            named = features or tuple(feature.name for feature in tagged)
            yield Entry(
                "group", group.name, group.version, group.entity_name, group.owner, group.status or STATUSES[0], named,
                group.description,
            )  # fmt: skip


def _tagged(group: FeatureGroup, tag: str) -> tuple[Feature, ...]:
    return tuple(feature for feature in group.features if tag in feature.tags)


def _matches(feature: Feature, text: str) -> bool:
    return _contains((feature.name, feature.description, *feature.tags), text)


def _services(definitions: Definitions, criteria: Criteria) -> Iterator[Entry]:
    for service in definitions.services.values():
        parts = definitions.features_of(service)
        entities = tuple(dict.fromkeys(group.entity_name for group, _ in parts))
        names = tuple(feature.name for _, features in parts for feature in features)
        if (
            _contains((service.name, service.description, service.owner, *service.tags, *names), criteria.text)
            and _equal(criteria.owner, service.owner)
            and (not criteria.tag or criteria.tag in service.tags)
            and (not criteria.entity or criteria.entity in entities)
            and criteria.status in ("", STATUSES[0])
        ):
            about = (", ".join(entities), service.owner, STATUSES[0], names, service.description)
            yield Entry("service", service.name, service.version, *about)


def _contains(texts: tuple[str, ...], wanted: str) -> bool:
    return any(wanted.lower() in text.lower() for text in texts)


def _equal(wanted: str, found: str) -> bool:
    return not wanted or wanted.lower() == found.lower()


def _hint(definitions: Definitions, criteria: Criteria) -> str:
    groups = definitions.groups.values()
    names = [*definitions.groups, *definitions.services, *(f.name for group in groups for f in group.features)]
    return (
        near_miss(criteria.text, names)
        or near_miss(criteria.owner, [group.owner for group in groups])
        or near_miss(criteria.entity, definitions.entities)
    ).strip()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("text", nargs="?", default="", help="text in a name, description, owner or tag")
    parser.add_argument("--owner", default="", metavar="NAME", help="only what this owner owns")
    parser.add_argument("--tag", default="", metavar="TAG", help="only what has this tag")
    parser.add_argument("--entity", default="", metavar="NAME", help="only groups and services of this entity")
    parser.add_argument("--status", default="", choices=STATUSES, help="only groups of this status")


def run(place: Place, args: argparse.Namespace) -> ListReport:
    return list_definitions(place, Criteria(args.text, args.owner, args.tag, args.entity, args.status))


if __name__ == "__main__":
    from jobs.command_line import run_verb

    run_verb("list")
