"""show: one definition as the registry has it, with its lineage: source -> group -> services."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

from connectors.file_store import open_file_store
from feature_defs import cleaning, expressions
from feature_defs.errors import UsageError, listed, near_miss
from feature_defs.fitting import fits_of
from feature_defs.inputs import sources_using
from feature_defs.model import GROUP_FORMAT, Aggregate, Definitions, Feature, FeatureGroup, Service, Source
from jobs.place import Place
from jobs.report import counted, table
from jobs.rule_results import RunResults, kept, lines_of


@dataclass(frozen=True)
class FittedWord:
    """What one word of a group has learned; before the first compute there is no run and there are no values."""

    word: str
    digest: str
    range: tuple[str, str]
    rows: int | None
    run: str | None
    values: dict[str, Any]

    def text(self) -> str:
        shown = [f"{name}={listed(v) if isinstance(v, list) else repr(v)}" for name, v in self.values.items()]
        return "; ".join(shown)


@dataclass(frozen=True)
class ShowReport:
    """`plain` is the definition as the snapshot holds it; `lineage` names what it is made from and what uses it.
    `quarantine` is where a group's rejected rows are, if there ever were some."""

    snapshot: int
    kind: str
    name: str
    plain: dict[str, Any]
    lineage: dict[str, tuple[str, ...]]
    features: tuple[tuple[str, str, str, str], ...]
    fitted: tuple[FittedWord, ...] = ()
    results: tuple[RunResults, ...] = ()
    exit_code: int = 0
    quarantine: str = ""

    def text(self) -> str:
        hidden = ("name", "features", "expectations")
        lines = [f"{self.kind} {self.name}"]
        lines += [f"  {key}: {_line(value)}" for key, value in self.plain.items() if value and key not in hidden]
        if self.features:
            lines += ["", table(["feature", "type", "description", "expression"], self.features)]
        if self.fitted:
            told = [(f.word, " to ".join(f.range), f.rows, f.run or "not fitted yet", f.text()) for f in self.fitted]
            lines += ["", table(["fitted", "range", "rows", "run", "values"], told)]
        if rules := lines_of(self.results):
            newest = self.results[0]
            ending = f"table version {newest.table_version}" if newest.table_version is not None else "stopped"
            lines += ["", f"  expectations, {newest.verb} of {newest.at} ({ending}, run {newest.run}):"]
            lines.append(table(["rule", "kind", "severity", "rows", "broken", "observed", "newest first"], rules))
        if self.quarantine:
            rejected = [(one.run, n, why) for one in self.results[:1] for why, n in one.reasons.items()]
            lines += ["", *(f"  rejected in run {run}: {counted(n, 'row')}, {why}" for run, n, why in rejected)]
            lines.append(f"  quarantine: {self.quarantine}")
        lines += ["", *(f"  {role}: {', '.join(names) or 'none'}" for role, names in self.lineage.items())]
        return "\n".join([*lines, f"(registry snapshot {self.snapshot})"])


def _line(value: Any) -> str:
    if words := cleaning.told(value):
        return words
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
        learned, results = _fitted(place, group, definitions), kept(place, group)
        rejected = place.quarantine_uri(group)
        where = rejected if open_file_store(rejected).list_files(rejected) else ""
        return ShowReport(
            snapshot.number, "FeatureGroup", bare, *about, fitted=learned, results=results, quarantine=where
        )
    if name in definitions.services:
        service = definitions.services[name]
        about = (dict(plain["services"][name]), _service_lineage(service, definitions), _chosen(service, definitions))
        return ShowReport(snapshot.number, "Service", name, *about)
    for part, word in (("sources", "Source"), ("entities", "Entity")):
        if name in plain[part]:
            reference = {"sources": "source_name", "entities": "entity_name"}[part]
            using = tuple(g.name for g in definitions.groups.values() if getattr(g, reference) == name)
            more = _used_by(name, definitions) if word == "Source" else {}
            lineage = {**more, "used by groups": using}
            return ShowReport(snapshot.number, word, name, dict(plain[part][name]), lineage, ())
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
    if isinstance(value, cleaning.Scaled):
        return cleaning.text(value)
    if not isinstance(value, Aggregate):
        return expressions.one_line(value) if value else feature.name
    numbers = "".join(f", {name}={n}" for name, n in (("k", value.k), ("q", value.q)) if n is not None)
    by = f" by {value.by}" if value.by else ""
    window = f" over {value.window}" if value.window else ""
    where = f" where {value.where}" if value.where else ""
    return f"{value.function}({value.column or '*'}{numbers}){by}{window}{where}"


def _group_lineage(group: FeatureGroup, definitions: Definitions) -> dict[str, tuple[str, ...]]:
    source = definitions.source_of(group)
    services = tuple(f"{service.name} v{service.version}" for service in definitions.services_using(group.name))
    return {
        "made from": (_origin(source, definitions),),
        **_used_by(group.name, definitions),
        "used by services": services,
    }


def _origin(source: Source, definitions: Definitions) -> str:
    """A source with where its rows come from: a path, another group's table, or its inputs."""
    if source.format == GROUP_FORMAT:
        return f"group {source.name} v{definitions.groups[source.name].version}"
    if source.inputs:
        return f"{source.name} ({'sql' if source.sql else 'function'} over {', '.join(source.input_names)})"
    return f"{source.name} ({source.path})"


def _used_by(name: str, definitions: Definitions) -> dict[str, tuple[str, ...]]:
    """What is made from this source, or from this group's table; only what there is."""
    groups = tuple(group.name for group in definitions.groups.values() if group.source_name == name)
    found = {"used by sources": sources_using(name, definitions), "used by groups": groups}
    return {role: names for role, names in found.items() if names}


def _fitted(place: Place, group: FeatureGroup, definitions: Definitions) -> tuple[FittedWord, ...]:
    """A word that two features share is there once."""
    found: dict[str, FittedWord] = {}
    private = [feature.expression for feature in group.features if feature.pii]
    for fit in fits_of(group, definitions):
        kept = place.fitted(group).read(fit.digest)
        about = (kept.rows, kept.run, dict(kept.values)) if kept else (None, None, {})
        if any(word is fit.word for word in private) and "vocabulary" in about[2]:
            about[2]["vocabulary"] = counted(len(about[2]["vocabulary"]), "value") + " of personal data"
        found[fit.digest] = FittedWord(cleaning.text(fit.word), fit.digest, fit.range, *about)
    return tuple(found.values())


def _service_lineage(service: Service, definitions: Definitions) -> dict[str, tuple[str, ...]]:
    groups = [group for group, _ in definitions.features_of(service)]
    sources = dict.fromkeys(_origin(source, definitions) for source in map(definitions.source_of, groups))
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
