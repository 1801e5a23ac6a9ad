"""replicate: bring feature groups to another place's lake, version for version, with the registry that defines them.

    plan every table (what the other place lacks, or why it cannot be) -> registry -> per group: files, then commits

Only what is missing is copied, so it is run again after every compute; a run that was killed is gone on from. Version
12 there is version 12 here, with the same bytes; nothing is copied when the other place has a history of its own. What
was brought is for reading: compute and maintenance stay where they were. No Spark is needed.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass

from connectors.copying import ALL, SAMPLED, Copier
from connectors.delta_log import LOG
from connectors.file_store import open_file_store
from connectors.lakes import joined
from connectors.pacing import TokenBucket
from connectors.pins import FOLDER as PINS
from connectors.replication import End, Plan, Progress, carry_out, plan_delta, plan_files, plan_parquet
from feature_defs.errors import EXIT_DONE, LakeError, RegistryConflict, UsageError, listed
from feature_defs.model import FeatureGroup
from jobs import arguments
from jobs.place import Place, chosen_groups, now_us, open_place
from jobs.report import counted, step, table
from jobs.settings import is_in_catalog

PARALLEL = 4
_MB = 1_000_000
_DAY_US = 86_400_000_000  # nobody has been writing one file for longer


@dataclass(frozen=True)
class ReplicatedTable:
    """One table, or folder of small files: versions and bytes that were brought, `newest` now, files that a run before
    had brought. `unreadable` versions lack files and `feedless` ones change data, in both places."""

    table: str
    versions: int
    newest: int | None
    files: int
    bytes: int
    there: int
    unreadable: tuple[int, ...]
    feedless: tuple[int, ...]
    seconds: float


@dataclass(frozen=True)
class ReplicateReport:
    """`snapshots` of the registry and other `small` files (fitted values, results, pins) were brought besides."""

    source: str
    target: str
    dry_run: bool
    tables: tuple[ReplicatedTable, ...]
    snapshots: int
    small: int
    leftovers: int
    versions: int
    files: int
    bytes: int
    seconds: float
    exit_code: int = EXIT_DONE

    def text(self) -> str:
        headers = ["table", "versions", "newest", "files", "there already", "MB", "seconds"]
        lines = [
            (t.table, t.versions, t.newest, t.files, t.there, round(t.bytes / _MB, 3), t.seconds) for t in self.tables
        ]
        told = [table(headers, lines)] if lines else []
        for one in self.tables:
            if one.unreadable:
                told.append(f"  {one.table}: of {counted(len(one.unreadable), 'version')} the source has lost files")
            if one.feedless:
                told.append(
                    f"  {one.table}: of {counted(len(one.feedless), 'version')} the source has lost change data"
                )
        if self.leftovers:
            told.append(f"  {counted(self.leftovers, 'draft')} of killed runs removed")
        verb = "would be brought" if self.dry_run else "brought"
        small = f"{counted(self.snapshots, 'registry snapshot')}, {counted(self.small, 'small file')}"
        what = f"{counted(self.versions, 'version')} in {counted(self.files, 'file')} ({self.bytes / _MB:,.1f} MB)"
        return "\n".join([*told, f"{what}, {small} {verb}: {self.source} -> {self.target}, {self.seconds:.1f} s"])


def replicate(
    place: Place,
    groups: Sequence[str] = (),
    *,
    to: Place,
    rate: float | None = None,
    check: str = SAMPLED,
    parallel: int = PARALLEL,
    registry: bool = True,
    allow_vacuumed: bool = False,
    dry_run: bool = False,
) -> ReplicateReport:
    """Bring every version of these groups (none: all, deprecated ones too) to the other place.

    `rate` is megabytes a second. `registry` false leaves the registry as it is there: of a place that applies its own.
    """
    started = time.monotonic()
    _refuse_options(rate, parallel)
    with step("plan"):
        planned = _planned(place, to, groups, registry=registry, allow_vacuumed=allow_vacuumed)
    limit = TokenBucket(rate * _MB) if rate is not None else None
    done: list[ReplicatedTable] = []
    leftovers = 0
    for plan in planned:
        began, progress = time.monotonic(), Progress(of_files=len(plan.data), of_bytes=sum(plan.data.values()))
        if dry_run:
            missing = {path: size for path, size in plan.data.items() if path not in plan.there}
            progress = Progress(len(missing), sum(missing.values()), len(plan.there), len(plan.versions))
        elif not plan.is_done:
            copier = Copier(plan.source.files, plan.target.files, check, limit)
            with step(f"replicate {plan.name}", progress.told if plan.versions else None):
                carry_out(plan, copier, parallel=parallel, progress=progress)
            leftovers += _remove_drafts(plan.target)
        if plan.newest is None:
            continue
        done.append(
            ReplicatedTable(
                table=plan.name,
                versions=progress.versions,
                newest=plan.newest,
                files=progress.files,
                bytes=progress.bytes,
                there=progress.there,
                unreadable=plan.unreadable,
                feedless=plan.feedless,
                seconds=round(time.monotonic() - began, 3),
            )
        )
    small = {plan.name: len(plan.after) for plan in planned if plan.newest is None}
    return ReplicateReport(
        source=place.settings.name,
        target=to.settings.name,
        dry_run=dry_run,
        tables=tuple(done),
        snapshots=small.pop(place.settings.registry, 0),
        small=sum(small.values()),
        leftovers=leftovers,
        versions=sum(one.versions for one in done),
        files=sum(one.files for one in done),
        bytes=sum(one.bytes for one in done),
        seconds=round(time.monotonic() - started, 3),
    )


def _refuse_options(rate: float | None, parallel: int) -> None:
    if rate is not None and not rate > 0:
        raise UsageError("Option --rate", f"{rate:g} MB a second is no rate", hint="write --rate 50, or leave it out")
    if parallel < 1:
        raise UsageError("Option --parallel", f"{parallel} is less than one", hint=f"the default is {PARALLEL}")


# what there is to bring


def _planned(place: Place, to: Place, names: Sequence[str], *, registry: bool, allow_vacuumed: bool) -> list[Plan]:
    """What each folder needs, in the order of bringing: what a file needs is there before it.

    They are listed the other way round: what a file needs that was seen is seen, too, while others write.
    """
    snapshot = place.applied()
    groups = chosen_groups(snapshot, names) if names else list(snapshot.definitions.groups.values())
    _refuse_catalogs([version for group in groups for version in _versions(place, group)], place, to)
    apart = [group for group in groups if not _is_shared(place, to, group)]
    if not apart and groups:
        problem = f"the tables of {listed(group.name for group in groups)} are in the same folders in both places"
        hint = "name two profiles with lakes of their own; TIDEMARK_LAKES_... variables would change both"
        raise UsageError("Option --to", problem, hint=hint)
    found = _pins(place, to, apart)
    for group in reversed(apart):
        versions = _versions(place, group)
        tables = [plan for one in versions for plan in _of_version(place, to, one, allow_vacuumed=allow_vacuumed)]
        if not tables and names:
            hint = f"run `tidemark compute --group {group.name}` there first"
            raise LakeError(f"FeatureGroup '{group.name}'", f"has no offline table in {place.settings.name}", hint=hint)
        found += tables
    return [*(_registry(place, to) if registry else []), *reversed(found)]


def _refuse_catalogs(groups: Sequence[FeatureGroup], *places: Place) -> None:
    """A replica is made of files and their log, and a catalog lets nobody at those of its tables."""
    for place in places:
        named = [place.table_path(group) for group in groups if is_in_catalog(place.table_path(group))]
        if named:
            problem = f"{listed(named)} in {place.settings.name}: a catalog's table, of which no files can be copied"
            hint = "name other groups with --group; or compute these in both places, then run `tidemark compare`"
            raise UsageError("Option --group", problem, hint=hint)


def _is_shared(place: Place, to: Place, group: FeatureGroup) -> bool:
    """Whether both places have the group's table in one folder: then there is nothing to bring."""
    return place.lakes.uri(place.table_path(group)) == to.lakes.uri(to.table_path(group))


def _registry(place: Place, to: Place) -> list[Plan]:
    """The snapshots that the other place lacks, under their numbers; its own must be the same."""
    if place.registry.root == to.registry.root:
        return []
    held, numbers = to.registry.numbers(), place.registry.numbers()
    hint = "apply in one place only, and replicate from there; or leave the registry out with --no-registry"
    if held and held[-1] > numbers[-1]:
        problem = f"{to.settings.name} has snapshot {held[-1]}, {place.settings.name} ends with {numbers[-1]}"
        raise RegistryConflict("Registry", problem, hint=hint)
    ends = End(place.registry.files, place.registry.root), End(to.registry.files, to.registry.root)
    return [plan_files(place.settings.registry, *ends, _is_json, what="snapshot", hint=hint)]


def _versions(place: Place, group: FeatureGroup) -> list[FeatureGroup]:
    """The group as the registry defined each of its versions last, newest first; as far as snapshots can be read."""
    found: dict[int, FeatureGroup] = {}
    snapshot = place.applied()
    while (known := snapshot.definitions.groups.get(group.name)) is not None:
        found.setdefault(known.version, known)
        number = snapshot.since[group.name] - 1
        try:
            snapshot = place.registry.read(number)
        except LakeError:
            break
    return list(found.values())


def _of_version(place: Place, to: Place, group: FeatureGroup, *, allow_vacuumed: bool) -> list[Plan]:
    """The table of one version of a group and what lies beside it, last things first; nothing without a table."""
    name = place.table_path(group)
    one, other = (_end(where.lakes.uri(where.table_path(group))) for where in (place, to))
    if not one.files.list_files(one.at(LOG if group.offline == "delta" else "_tidemark")):
        return []
    plan = plan_delta if group.offline == "delta" else plan_parquet

    def beside(what: str) -> tuple[str, End, End]:
        return name + what, _end(one.uri + what), _end(other.uri + what)

    return [
        plan_files(*beside("_results"), _is_json),
        plan(name, one, other, allow_vacuumed=allow_vacuumed),
        plan_parquet(*beside("_quarantine"), allow_vacuumed=True),
        plan_files(*beside("_fitted"), _is_json, read=None),
    ]


def _pins(place: Place, to: Place, groups: Sequence[FeatureGroup]) -> list[Plan]:
    """The pins of training sets that these groups are in, so that maintenance over there would honour them. A pin names
    tables by their lake paths: those that have others there are left out."""
    names = {group.name for group in groups if place.table_path(group) == to.table_path(group)}
    folder = joined(place.settings.beside, PINS)
    one, other = (_end(where.lakes.uri(joined(where.settings.beside, PINS))) for where in (place, to))
    if one.uri == other.uri:
        return []
    held = other.sizes()

    def is_wanted(path: str) -> bool:
        if not _is_json(path) or path in held:
            return False
        try:
            return bool(names & {*json.loads(one.files.read(one.at(path)))["groups"]})
        except FileNotFoundError:  # its dataset is gone, and maintenance has just noticed
            return False

    return [plan_files(folder, one, other, is_wanted)]


def _is_json(path: str) -> bool:
    return path.endswith(".json")


def _end(uri: str) -> End:
    return End(open_file_store(uri), uri)


def _remove_drafts(end: End) -> int:
    """What runs that were killed had begun to write, long ago."""
    old = [file for file in end.files.list_drafts(end.uri) if file.modified_us < now_us(None) - _DAY_US]
    for file in old:
        end.files.delete(end.at(file.path))
    return len(old)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_groups(parser)
    arguments.add_place(parser, "--from", "the place that has them")
    parser.add_argument("--to", required=True, metavar="PROFILE", help="the place to bring them to")
    parser.add_argument(
        "--rate", type=float, metavar="MB", help="at most so many megabytes a second (default: no limit)"
    )
    parser.add_argument(
        "--parallel", type=int, default=PARALLEL, metavar="N", help=f"files at once (default: {PARALLEL})"
    )
    parser.add_argument(
        "--check",
        choices=(SAMPLED, ALL),
        default=SAMPLED,
        help="what is read back of each file that was sent: four megabytes, or all of it (default: sampled)",
    )
    parser.add_argument(
        "--no-registry",
        action="store_true",
        help="leave the other place's registry alone: it applies its own definitions",
    )
    parser.add_argument(
        "--allow-vacuumed", action="store_true", help="go on where the source has lost files of old versions"
    )
    parser.add_argument("--dry-run", action="store_true", help="only tell what would be brought")


def run(place: Place, args: argparse.Namespace) -> ReplicateReport:
    return replicate(
        place,
        args.groups,
        to=open_place(args.to),
        rate=args.rate,
        check=args.check,
        parallel=args.parallel,
        registry=not args.no_registry,
        allow_vacuumed=args.allow_vacuumed,
        dry_run=args.dry_run,
    )


if __name__ == "__main__":
    from jobs.command_line import run_verb

    run_verb("replicate")
