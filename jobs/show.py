"""show: one definition as the registry has it, with its lineage: source -> group -> services."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

from feature_defs import expressions
from feature_defs.errors import UsageError, listed, near_miss
from feature_defs.model import Aggregate, Definitions, Feature, FeatureGroup, Service
from jobs.place import Place
from jobs.report import table
from jobs.rule_results import RunResults, kept, lines_of


@dataclass(frozen=True)
class ShowReport:
    """`plain` is the definition as the snapshot holds it; `lineage` names what it is made from and what uses it."""

    snapshot: int
    kind: str
    name: str
    plain: dict[str, Any]
    lineage: dict[str, tuple[str, ...]]
    features: tuple[tuple[str, str, str, str], ...]
    results: tuple[RunResults, ...] = ()
    exit_code: int = 0

    def text(self) -> str:
        hidden = ("name", "features", "expectations")
        lines = [f"{self.kind} {self.name}"]
        lines += [f"  {key}: {_line(value)}" for key, value in self.plain.items() if value and key not in hidden]
        if self.features:
            lines += ["", table(["feature", "type", "description", "expression"], self.features)]
        if rules := lines_of(self.results):
            newest = self.results[0]
            ending = f"table version {newest.table_version}" if newest.table_version is not None else "stopped"
            lines += ["", f"  expectations, {newest.verb} of {newest.at} ({ending}, run {newest.run}):"]
            lines.append(table(["rule", "kind", "severity", "rows", "broken", "observed", "newest first"], rules))
        lines += ["", *(f"  {role}: {', '.join(names) or 'none'}" for role, names in self.lineage.items())]
        return "\n".join([*lines, f"(registry snapshot {self.snapshot})"])


def _line(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {inner}" for key, inner in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def show(place: Place, name: str) -> ShowReport:
    """The group, service, source or entity of this name, in that order; `GROUP.FEATURE` shows one feature."""
    snapshot = place.applied()
    definitions, plain = snapshot.definitions, snapshot.plain
    bare = name.split(".", maxsplit=1)[0]
    if bare in definitions.groups:
        group = definitions.groups[bare]
        about = (dict(plain["groups"][bare]), _group_lineage(group, definitions), _lines(group, name))
        results = kept(place, group)
        return ShowReport(snapshot.number, "FeatureGroup", bare, *about, results=results)
    if name in definitions.services:
        service = definitions.services[name]
        about = (dict(plain["services"][name]), _service_lineage(service, definitions), _chosen(service, definitions))
        return ShowReport(snapshot.number, "Service", name, *about)
    for part, word in (("sources", "Source"), ("entities", "Entity")):
        if name in plain[part]:
            reference = {"sources": "source_name", "entities": "entity_name"}[part]
            using = tuple(g.name for g in definitions.groups.values() if getattr(g, reference) == name)
            return ShowReport(snapshot.number, word, name, dict(plain[part][name]), {"used by groups": using}, ())
    known = [known for part in ("groups", "services", "sources", "entities") for known in plain[part]]
    raise UsageError(
        f"'{name}'", f"is not in the registry ({listed(known)})", hint=near_miss(name, known) + "try `list`"
    )


def _lines(group: FeatureGroup, name: str) -> tuple[tuple[str, str, str, str], ...]:
    chosen = name.partition(".")[2]
    if chosen and chosen not in {feature.name for feature in group.features}:
        names = [feature.name for feature in group.features]
        hint = near_miss(chosen, names) + f"`tidemark show {group.name}` shows all of them"
        raise UsageError(f"Feature '{name}'", f"is not in the group ({listed(names)})", hint=hint)
    shown = [feature for feature in group.features if chosen in ("", feature.name)]
    return tuple((f.name, f.type, f.description, expression_text(f)) for f in shown)


def expression_text(feature: Feature) -> str:
    """A feature's value as one line: `sum(amount) over 30d where status = 'ok'`."""
    value = feature.expression
    if not isinstance(value, Aggregate):
        return expressions.one_line(value) if value else feature.name
    window = f" over {value.window}" if value.window else ""
    where = f" where {value.where}" if value.where else ""
    return f"{value.function}({value.column or '*'}){window}{where}"


def _group_lineage(group: FeatureGroup, definitions: Definitions) -> dict[str, tuple[str, ...]]:
    source = definitions.source_of(group)
    services = tuple(f"{service.name} v{service.version}" for service in definitions.services_using(group.name))
    return {"made from": (f"{source.name} ({source.path})",), "used by services": services}


def _service_lineage(service: Service, definitions: Definitions) -> dict[str, tuple[str, ...]]:
    groups = [group for group, _ in definitions.features_of(service)]
    sources = dict.fromkeys(f"{s.name} ({s.path})" for s in map(definitions.source_of, groups))
    return {
        "made from": tuple(sources),
        "by way of groups": tuple(f"{group.name} v{group.version}" for group in groups),
    }


def _chosen(service: Service, definitions: Definitions) -> tuple[tuple[str, str, str, str], ...]:
    return tuple(
        (f"{group.name}.{feature.name}", feature.type, feature.description, expression_text(feature))
        for group, features in definitions.features_of(service)
        for feature in features
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="a group, GROUP.FEATURE, service, source or entity")


def run(place: Place, args: argparse.Namespace) -> ShowReport:
    return show(place, args.name)


if __name__ == "__main__":
    from jobs.command_line import run_verb

    run_verb("show")
