"""What a manifest records, found again: definitions, versions of tables, the spine; and words for what is not there.

manifest -> recorded_service, recorded_table, refuse_what_is_gone -> training_set -> refuse_difference
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from connectors.manifests import Manifest, SpineRecord
from connectors.registry import Snapshot
from feature_defs.errors import DataError, LakeError
from feature_defs.join_plan import JoinPlan, TimeRules
from feature_defs.model import FeatureGroup, Service
from jobs.place import Place

if TYPE_CHECKING:
    from connectors.offline_tables import OfflineTable

OPTIONS = ("prefix", "strict", "known_by")


def options_of(plan: JoinPlan, *, prefix: bool) -> dict[str, Any]:
    """The options of a run as its manifest keeps them."""
    return {"prefix": prefix, "strict": plan.rules.strict, "known_by": plan.rules.known_by}


def rules_of(options: Mapping[str, Any]) -> TimeRules:
    return TimeRules(strict=bool(options["strict"]), known_by=str(options["known_by"]))


def keys_of(plan: JoinPlan) -> tuple[str, ...]:
    return tuple(dict.fromkeys(key for group in plan.groups for key in group.keys))


def recorded_snapshot(place: Place, manifest: Manifest) -> Snapshot:
    """The registry's snapshot with the definitions that the manifest names; they must be those that were used."""
    try:
        snapshot = place.registry.read(manifest.snapshot)
    except LakeError as error:
        raise DataError(_subject(manifest), f"its definitions are gone: {error}", hint=error.hint) from error
    problems = []
    for group, fingerprint in manifest.fingerprints.items():
        known = snapshot.plain["groups"].get(group, {}).get("fingerprint")
        if known != fingerprint:
            found = f"has {known}" if known else "does not have the group"
            problems.append(f"group '{group}' was {fingerprint}, registry snapshot {snapshot.number} {found}")
    if problems:
        hint = "use the registry that the training set was made with"
        raise DataError(_subject(manifest), "; ".join(problems), hint=hint)
    return snapshot


def recorded_service(place: Place, manifest: Manifest) -> tuple[Snapshot, Service]:
    snapshot = recorded_snapshot(place, manifest)
    name, _, version = manifest.service.partition("@")
    service = snapshot.definitions.services.get(name)
    if service is None or str(service.version) != version:
        found = f"{name}@{service.version}" if service else "no service of that name"
        problem = f"service {manifest.service} is not in registry snapshot {snapshot.number} ({found})"
        hint = "use the registry that the training set was made with"
        raise DataError(_subject(manifest), problem, hint=hint)
    return snapshot, service


def recorded_table(
    place: Place, snapshot: Snapshot, group: FeatureGroup, versions: Mapping[str, int]
) -> tuple[OfflineTable, int]:
    """A group's table and the version that is wanted of it; one that cannot be read any more is an error."""
    from connectors.readable import what_is_gone

    subject, path = f"FeatureGroup '{group.name}'", place.table_path(group)
    if group.name not in versions:
        raise DataError(subject, "has no version among those that are asked for", hint="name one for each group")
    table, version = place.table(group), versions[group.name]
    if gone := what_is_gone(place.spark, table, version):
        hint = "restore it from a backup or a replica; `tidemark maintain` keeps what the pins of training sets name"
        raise DataError(subject, f"version {version} of its table {path} {gone}", hint=hint)
    found, wanted = table.note(version).get("fingerprint"), snapshot.fingerprint(group.name)
    if found not in (None, wanted):  # None: Delta has cleaned that commit up
        problem = f"version {version} of its table {path} was computed with definitions {found}, expected {wanted}"
        raise DataError(subject, problem, hint="the table was written anew since; restore it from a backup")
    return table, version


def refuse_what_is_gone(place: Place, manifest: Manifest, snapshot: Snapshot) -> None:
    """DataError that names every version of a table that cannot be read any more."""
    groups = [snapshot.definitions.groups[name] for name in manifest.table_versions]
    faults = [fault for group in groups if (fault := _fault(place, snapshot, group, manifest.table_versions))]
    if faults:
        problem = "; ".join(f"{fault.subject}: {fault.problem}" for fault in faults)
        raise DataError(_subject(manifest), f"cannot be made again; {problem}", hint=faults[0].hint)


def _fault(place: Place, snapshot: Snapshot, group: FeatureGroup, versions: Mapping[str, int]) -> DataError | None:
    try:
        recorded_table(place, snapshot, group, versions)
    except DataError as error:
        return error
    return None


def refuse_other_spine(manifest: Manifest, found: SpineRecord) -> None:
    """DataError unless the spine that was read is the one of the manifest."""
    then, now = manifest.spine.hash, found.hash
    if then != now:
        version = f" @{found.version}" if found.version is not None else ""
        problem = f"its spine {found.path}{version} has changed: it was {then}, it is {now}"
        hint = "restore the spine's rows; a spine in Delta keeps its old versions"
        raise DataError(_subject(manifest), problem, hint=hint)


def refuse_difference(manifest: Manifest, found: Manifest) -> None:
    """DataError unless a replay came to the rows of the manifest."""
    refuse_other_spine(manifest, found.spine)
    problems = []
    if manifest.columns != found.columns:
        then, now = ([f"{c.name} {c.type}" for c in one.columns] for one in (manifest, found))
        other = [f"was {text}" for text in then if text not in now] + [f"is {text}" for text in now if text not in then]
        problems.append(f"columns: {', '.join(other) or 'in another order'}")
    if manifest.hash != found.hash:
        problems.append(f"it was {manifest.hash}, it came to {found.hash}")
    if problems:
        hint = "nothing was written; replay it without the check by --service and --spine, then `tidemark diff` both"
        raise DataError(_subject(manifest), "replay gives other rows: " + "; ".join(problems), hint=hint)


def _subject(manifest: Manifest) -> str:
    return f"Training set of run {manifest.run}"
