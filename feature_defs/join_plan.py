"""The plan of a point-in-time join as frozen data: which columns of which tables meet the spine, by which rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from feature_defs import data_types
from feature_defs.errors import UsageError, listed
from feature_defs.fitting import reads_other_rows
from feature_defs.inputs import all_upstream
from feature_defs.model import Definitions, Feature, FeatureGroup, Service

KNOWN_BY = ("event", "spine")


@dataclass(frozen=True)
class GroupJoin:
    """One group's part of a join. `columns` pairs a feature with its name in the result; `maps` are features, too."""

    group: str
    version: int
    keys: tuple[str, ...]
    key_types: tuple[str, ...]
    columns: tuple[tuple[str, str], ...]
    ttl_us: int | None
    skip_nulls: bool
    maps: tuple[str, ...] = ()  # Spark cannot compare these as they are

    @property
    def features(self) -> tuple[str, ...]:
        return tuple(feature for feature, _ in self.columns)


@dataclass(frozen=True)
class TimeRules:
    """Options of the as-of: a strict upper bound, and whether a row must be known (created) by the spine time."""

    strict: bool = False
    known_by: str = "event"


@dataclass(frozen=True)
class JoinPlan:
    """A service joined to a spine."""

    service: str
    service_version: int
    groups: tuple[GroupJoin, ...]
    rules: TimeRules

    @property
    def outputs(self) -> tuple[str, ...]:
        return tuple(output for group in self.groups for _, output in group.columns)


def plan_join(
    service: Service,
    definitions: Definitions,
    *,
    spine_columns: Sequence[str] = (),
    prefix: bool = False,
    rules: TimeRules | None = None,
) -> JoinPlan:
    """The plan for a service; UsageError when two columns of the result would have one name."""
    rules = rules or TimeRules()
    if rules.known_by not in KNOWN_BY:
        hint = f"use one of {', '.join(KNOWN_BY)}"
        raise UsageError("Option known_by", f"'{rules.known_by}' is not known", hint=hint)
    if rules.known_by == "spine":
        _refuse_forward_fills(service, definitions)
    groups = tuple(
        group_join(group, definitions, features, prefix=prefix) for group, features in definitions.features_of(service)
    )
    plan = JoinPlan(service.name, service.version, groups, rules)
    _refuse_collisions(plan, spine_columns)
    return plan


def group_join(
    group: FeatureGroup, definitions: Definitions, features: Sequence[Feature], *, prefix: bool = False
) -> GroupJoin:
    """These features of a group, looked up under the group's own rules."""
    entity = definitions.entity_of(group)
    return GroupJoin(
        group=group.name,
        version=group.version,
        keys=tuple(entity.keys),
        key_types=tuple(entity.keys.values()),
        columns=tuple((f.name, f"{group.name}__{f.name}" if prefix else f.name) for f in features),
        ttl_us=group.ttl_us,
        skip_nulls=group.skip_nulls,
        maps=tuple(f.name for f in features if data_types.parse(f.type).kind == "map"),
    )


def _refuse_forward_fills(service: Service, definitions: Definitions) -> None:
    """A filled row has its own created_time, and the row that filled it may have become known later."""
    for group, _ in definitions.features_of(service):
        for name in (group.name, *sorted(all_upstream(group, definitions))):
            if reads_other_rows(definitions.groups[name]):
                problem = f"'spine' cannot say what of group '{name}' was known: it fills nulls forward from other rows"
                raise UsageError("Option known_by", problem, hint="leave it out, or fill in the group's transform")


def _refuse_collisions(plan: JoinPlan, spine_columns: Sequence[str]) -> None:
    taken = {name.lower(): "the spine" for name in spine_columns}
    for group in plan.groups:
        for _, output in group.columns:
            owner = taken.setdefault(output.lower(), f"group '{group.group}'")
            if owner != f"group '{group.group}'":
                problem = f"column '{output}' comes from {owner} and from group '{group.group}'"
                hint = f"use --prefix to name features GROUP__FEATURE, or rename it (spine: {listed(spine_columns)})"
                raise UsageError(f"Service '{plan.service}'", problem, hint=hint)
