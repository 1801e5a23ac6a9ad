"""How a scheduler runs feature groups: definitions -> a plan for each pace, as plain data without a scheduler.

    groups that are not deprecated -> those made from one another kept together -> a plan a pace

Groups that read each other's tables run in one plan, at the pace of the fastest of them: a run of a group whose next
cell of the grid is not over finds nothing new.
"""

from __future__ import annotations

from dataclasses import dataclass

from feature_defs import durations
from feature_defs.errors import UsageError
from feature_defs.inputs import in_order, made_from
from feature_defs.model import Definitions, FeatureGroup

EVERY = "1d"  # of groups that have a row at every event


@dataclass(frozen=True)
class GroupTasks:
    """The verbs of one group, each behind the one before; `after` names the groups that are computed before it."""

    group: str
    verbs: tuple[str, ...]
    after: tuple[str, ...]


@dataclass(frozen=True)
class DagPlan:
    """What runs at one pace: its groups, each behind those that it is made from."""

    name: str
    every: str
    groups: tuple[GroupTasks, ...]


def dag_plans(definitions: Definitions, *, every: str = EVERY) -> tuple[DagPlan, ...]:
    """The plans, the fastest first; `every` is for groups that name none."""
    try:
        durations.microseconds(every)
    except durations.DurationFault as fault:
        raise UsageError("Option every", str(fault), hint='write every="1d"') from fault
    chosen = in_order([group for group in definitions.groups.values() if not group.is_deprecated], definitions)
    paces = _paces(chosen, definitions, every)
    return tuple(
        DagPlan(f"tidemark_{durations.text(pace)}", durations.text(pace), tuple(
            _tasks(group, chosen, definitions) for group in chosen if paces[group.name] == pace
        ))
        for pace in sorted(set(paces.values()))
    )  # fmt: skip


def _tasks(group: FeatureGroup, chosen: list[FeatureGroup], definitions: Definitions) -> GroupTasks:
    names = [other.name for other in chosen]
    after = tuple(name for name in made_from(group, definitions) if name in names)
    return GroupTasks(group.name, ("compute", "materialize") if group.online else ("compute",), after)


def _paces(chosen: list[FeatureGroup], definitions: Definitions, every: str) -> dict[str, int]:
    """Microseconds between two runs of each group: the least of all that it is joined with, in either direction."""
    together = {group.name: {group.name} for group in chosen}
    for group in chosen:  # each behind its inputs, so the sets grow together
        for other in made_from(group, definitions):
            if other in together:
                joined = together[group.name] | together[other]
                together.update(dict.fromkeys(joined, joined))
    own = {group.name: durations.microseconds(group.every or every) for group in chosen}
    return {name: min(own[other] for other in joined) for name, joined in together.items()}
