"""materialize: offline tables -> the online store, the latest row of every entity, or of those that changed.

    the store's last load -> entities to load -> partition function: encode, send, read back -> receipt -> last load

The store keeps the value of the newer definition, then of the newer event_time, so a load can be repeated, or run
beside another, without harm. A receipt in the lake says what was loaded and verified; the next load goes on from it.

A profile's online stores are loaded one after the other, each from its own last load: one that fails does not keep the
others from theirs. With `--generation` everything is loaded under new keys, audited, and put in place at once.
"""

from __future__ import annotations

import argparse
import datetime
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace

from connectors import codec, watermarks
from connectors.generations import begin, generations, remove_unread, switch
from connectors.lakes import joined
from connectors.receipts import Load, Receipt, read_receipt, write_receipt
from connectors.redis_online import RedisOnlineStore, open_redis
from connectors.registry import Snapshot
from connectors.spark_errors import data_errors
from feature_defs.errors import EXIT_DONE, OnlineStoreError, UsageError
from feature_defs.join_plan import group_join
from feature_defs.model import FeatureGroup
from jobs import arguments
from jobs.forecast import ForecastReport, estimated, forecast
from jobs.joining import keeping
from jobs.load_work import FIRST_LOAD, NOTHING, Earlier, Loading, loaded
from jobs.online_address import at_store, in_generation, online_address, store_names
from jobs.online_load import partition_load, writers_for
from jobs.place import LOAD_WORK, Place, new_run, now_us, online_folder, online_groups
from jobs.report import counted, step, table
from jobs.settings import MAIN_STORE
from jobs.verify import audited

BESIDE = "another load wrote beside it: the next one goes on from before both"


@dataclass(frozen=True)
class LoadedGroup:
    """One group's load: all of it, what changed since the last load, or nothing; `why` says why it was all.

    Each of `rows` entities was written, left alone for a newer value, past its ttl, removed, or absent already.
    """

    store: str
    group: str
    version: int
    how: str
    why: str
    table_version: int
    rows: int
    written: int
    kept_newer: int
    expired: int
    removed: int
    bytes: int
    sampled: int
    seconds: float


@dataclass(frozen=True)
class Switched:
    """A store's new generation. `left_behind` are group versions that were online before and are not in it."""

    store: str
    generation: int
    removed_keys: int
    left_behind: tuple[str, ...]


@dataclass(frozen=True)
class FailedStore:
    """A store that was not loaded, or not completely: its next load goes on from its last complete one."""

    store: str
    problem: str
    hint: str


@dataclass(frozen=True)
class MaterializeReport:
    run: str
    snapshot: int
    groups: tuple[LoadedGroup, ...]
    switched: tuple[Switched, ...]
    failed: tuple[FailedStore, ...]
    rows: int
    seconds: float

    @property
    def exit_code(self) -> int:
        return OnlineStoreError.exit_code if self.failed else EXIT_DONE

    def text(self) -> str:
        stores = {group.store for group in self.groups} | {one.store for one in self.failed}
        lines = [
            [g.store] * (len(stores) > 1)
            + [f"{g.group} v{g.version}", g.how, g.rows, g.written, g.kept_newer, g.expired, g.removed, g.bytes,
               g.table_version, g.seconds]
            for g in self.groups
        ]  # fmt: skip
        headers = ["store"] * (len(stores) > 1)
        headers += ["group", "load", "entities", "written", "kept newer", "expired", "removed", "bytes",
                    "table version", "seconds"]  # fmt: skip
        told = [table(headers, lines)] if lines else []
        told += [f"  {group.group}: {group.how}, {group.why}" for group in self.groups if _is_news(group.why)]
        for one in self.switched:
            removed = f"{counted(one.removed_keys, 'key')} of an older one removed"
            told.append(f"  {one.store}: clients read generation {one.generation} now; {removed}")
            if one.left_behind:
                told.append(f"  {one.store}: not in this generation: {', '.join(one.left_behind)}")
        told += [f"  {one.store}: FAILED: {one.problem}\n    Hint: {one.hint}" for one in self.failed]
        total = f"{counted(self.rows, 'value')} loaded, {self.seconds:.1f} s"
        total += f" (run {self.run}, registry snapshot {self.snapshot})"
        return "\n".join([*told, total])


def _is_news(why: str) -> bool:
    return why not in ("", FIRST_LOAD)


@dataclass(frozen=True)
class _Run:
    """What is the same for every store of a run."""

    name: str
    snapshot: Snapshot
    groups: Sequence[FeatureGroup]
    now_us: int
    full: bool
    rate: float | None


def materialize(
    place: Place,
    groups: Sequence[str] = (),
    *,
    now: datetime.datetime | None = None,
    full: bool = False,
    rate: float | None = None,
    stores: Sequence[str] = (),
) -> MaterializeReport:
    """Load these groups (none: every online group that is not deprecated) as they are at `now` into these stores.

    What a store's last load already brought is left out, unless `full`. `rate` is the most entities a second.
    """
    snapshot = place.applied()
    run = _Run(new_run(), snapshot, online_groups(snapshot, groups), now_us(now), full, _checked(rate))

    def load(there: Place, name: str, found: _Found) -> None:
        _load_store(in_generation(there), name, run, found)

    return _each_store(place, store_names(place, stores), run, load)


def materialize_generation(
    place: Place,
    *,
    now: datetime.datetime | None = None,
    rate: float | None = None,
    stores: Sequence[str] = (),
) -> MaterializeReport:
    """Load every online group under new keys, hold them against the offline tables, then let clients read them."""
    names, snapshot = store_names(place, stores), place.applied()
    for name in names:
        if not at_store(place, name).settings.online.generations:
            hint = "set generations = true beside its url and open clients with that; then run this again"
            raise UsageError(f"Online store '{name}'", "its clients do not look for generations", hint=hint)
    groups = _of_generation(place, snapshot)
    for group in groups:
        place.computed(snapshot, group)  # before the generation to go back to is given up
    run = _Run(new_run(), snapshot, groups, now_us(now), True, _checked(rate))

    def load(there: Place, name: str, found: _Found) -> None:
        _load_generation(there, name, run, found, now)

    return _each_store(place, names, run, load)


def _checked(rate: float | None) -> float | None:
    if rate is not None and not rate > 0:
        problem = f"{rate:g} is not above 0"
        raise UsageError("Option --rate", problem, hint="write how many entities a second, as in 20000")
    return rate


@dataclass
class _Found:
    """What a run has done so far."""

    loaded: list[LoadedGroup] = field(default_factory=list)
    switched: list[Switched] = field(default_factory=list)
    failed: list[FailedStore] = field(default_factory=list)


def _each_store(
    place: Place, names: Sequence[str], run: _Run, load: Callable[[Place, str, _Found], None]
) -> MaterializeReport:
    """One store after the other; what is wrong with one of several is told in the report."""
    started, found = time.monotonic(), _Found()
    for name in names:
        try:
            load(at_store(place, name), name, found)
        except (OnlineStoreError, UsageError) as error:  # noqa: PERF203  # the other stores are still to be loaded
            if len(names) == 1:
                raise
            found.failed.append(FailedStore(name, f"{error.subject}: {error.problem}", error.hint))
    return MaterializeReport(
        run=run.name,
        snapshot=run.snapshot.number,
        groups=tuple(found.loaded),
        switched=tuple(found.switched),
        failed=tuple(found.failed),
        rows=sum(group.rows for group in found.loaded),
        seconds=round(time.monotonic() - started, 3),
    )


def _of_generation(place: Place, snapshot: Snapshot) -> list[FeatureGroup]:
    """Every online group; a deprecated one, which others may still read, where there is something to load."""
    groups = snapshot.definitions.groups.values()
    return [g for g in groups if g.online and not (g.is_deprecated and place.table(g).version() is None)]


def _load_generation(place: Place, name: str, run: _Run, found: _Found, now: datetime.datetime | None) -> None:
    address, before = online_address(place), online_address(in_generation(place))
    with open_redis(address) as store:
        number = begin(store)
        with step(f"remove generations of {name} that nobody reads"):
            removed = remove_unread(store)
    new, loaded = in_generation(place, number), _Found()
    _load_store(new, name, run, loaded)
    # What came while that was loaded, so that clients do not go back in time.
    since = replace(run, name=f"{run.name}-since", now_us=now_us(now), full=False)
    _load_store(new, name, since, loaded)
    found.loaded += [group for group in loaded.loaded if group.how != NOTHING]
    versions = {group.group: group.table_version for group in loaded.loaded}
    audit = audited(new, run.snapshot, run.groups, versions=versions, now_us=since.now_us)
    if not audit.agrees:
        faults = "; ".join(f"{group.group}: {group.told_faults}" for group in audit.groups if not group.agrees)
        problem = f"generation {number} is not what the offline tables hold ({faults}); it is not read"
        raise OnlineStoreError(str(address), problem, hint="run it again; it begins another one")
    with open_redis(before) as store:
        there = watermarks.loaded_fields(store)
    with open_redis(address) as store:
        switch(store, number, keeps_before=bool(there))
    fields = {codec.field_name(group.name, group.version) for group in run.groups}
    left = tuple(field.decode().replace(":", " v") for field in there if field not in fields)
    found.switched.append(Switched(name, number, removed, left))


def _load_store(place: Place, name: str, run: _Run, found: _Found) -> None:
    """Load the groups into the place's online store."""
    beside = "" if name == MAIN_STORE else f" into {name}"
    for group in run.groups:
        errors = data_errors(f"FeatureGroup '{group.name}'", of_tables=True)
        with step(f"materialize {group.name}{beside}"), errors:
            found.loaded.append(_load(place, name, run, group))


def _load(place: Place, name: str, run: _Run, group: FeatureGroup) -> LoadedGroup:
    """Note the load, load, verify, write the receipt, then let the store name it: a run that ends before is repaired by
    the next one."""
    started = time.monotonic()
    snapshot, address = run.snapshot, online_address(place)
    source, version = place.computed(snapshot, group)
    definition, stored_in = snapshot.since[group.name], codec.field_name(group.name, group.version)
    folder = online_folder(place, group)
    own = Load(
        run=run.name if name == MAIN_STORE else f"{run.name}-{name}",
        definition=definition,
        table_version=version,
        table_run=source.note(version).get("run"),
        now_us=run.now_us,
        codec=codec.CODEC_VERSION,
    )
    with open_redis(address) as store:
        found = watermarks.begin(store, stored_in, own)
    earlier = _earlier(found, folder)
    wanted = group_join(group, snapshot.definitions, group.features)
    with keeping(joined(folder, LOAD_WORK + own.run)) as keep:
        work = Loading(source, version, wanted, definition, run.now_us).work(earlier, full=run.full, keep=keep)
        entity = snapshot.definitions.entity_of(group)
        writers = None if run.rate is None else writers_for(run.rate)
        share = None if run.rate is None or writers is None else run.rate / writers
        load = partition_load(group, entity, address, definition=definition, now_us=run.now_us, rate=share)
        counts = loaded(work, load, f"FeatureGroup '{group.name}'", spark=place.spark, writers=writers)
    told = asdict(counts)
    told.pop("mismatched")
    done = Receipt(
        **{**asdict(own), "seen_us": max(own.until_us, earlier.until_us)},
        group=group.name,
        version=group.version,
        how=work.how,
        why=work.why,
        seconds=round(time.monotonic() - started, 3),
        **told,
    )
    write_receipt(folder, done)
    with open_redis(address) as store:
        alone = watermarks.end(store, stored_in, done, found)
    return LoadedGroup(
        store=name,
        group=group.name,
        version=group.version,
        how=work.how,
        why=work.why if alone else "; ".join(filter(None, (work.why, BESIDE))),
        table_version=version,
        rows=counts.entities,
        written=counts.written,
        kept_newer=counts.kept_newer,
        expired=counts.expired,
        removed=counts.removed,
        bytes=counts.bytes,
        sampled=counts.sampled,
        seconds=done.seconds,
    )


def _earlier(found: watermarks.Found, folder: str) -> Earlier:
    last = read_receipt(folder, found.last) if found.last else None
    unknown = "" if found.last else FIRST_LOAD  # one that died may have sent some of it
    if found.last and last is None:
        unknown = f"this lake has no receipt of the last load, {found.last}: what went since stays online until its ttl"
    return Earlier((*([last] if last else []), *found.since.values()), unknown)


def dry_run(
    place: Place, groups: Sequence[str] = (), *, now: datetime.datetime | None = None, store: str = MAIN_STORE
) -> ForecastReport:
    """What a full load of a store would take; its time by the loads that it names."""
    there = in_generation(at_store(place, store))
    return forecast(there, groups, now, rate=_last_rate(there, online_groups(place.applied(), groups)))


def dry_run_of_generation(
    place: Place, *, now: datetime.datetime | None = None, store: str = MAIN_STORE
) -> ForecastReport:
    """What a whole new generation of a store would take beside the one that is read."""
    base, snapshot = at_store(place, store), place.applied()
    groups = _of_generation(place, snapshot)
    names, rate = [group.name for group in groups], _last_rate(in_generation(base), groups)
    with open_redis(online_address(base)) as opened:
        found = generations(opened)
    there = in_generation(base, found.last + 1)
    if found.before is None:
        return forecast(there, names, now, rate=rate)
    # Whether it fits is not known: what is removed first still takes its memory.
    report = estimated(there, names, now, rate=rate)
    given_up = f"the memory of generation {found.before}, which a load removes first, is counted as used"
    return replace(report, warnings=(*report.warnings, given_up))


def _last_rate(place: Place, groups: Sequence[FeatureGroup]) -> float | None:
    """Entities a second of the loads that the place's store names."""
    with open_redis(online_address(place)) as store:
        receipts = [_last_receipt(store, place, group) for group in groups]
    known = [receipt for receipt in receipts if receipt is not None and receipt.written]
    return sum(receipt.written for receipt in known) / sum(receipt.seconds for receipt in known) if known else None


def _last_receipt(store: RedisOnlineStore, place: Place, group: FeatureGroup) -> Receipt | None:
    last = watermarks.last_load(store, codec.field_name(group.name, group.version))
    return read_receipt(online_folder(place, group), last) if last else None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_groups(parser)
    arguments.add_now(parser, "load values as they are at this time (default: the clock)")
    parser.add_argument(
        "--full", action="store_true", help="load every entity, not only what changed since the last load"
    )
    parser.add_argument("--rate", type=float, metavar="N", help="write at most so many entities a second")
    parser.add_argument(
        "--store",
        action="append",
        default=[],
        dest="stores",
        metavar="NAME",
        help="load this online store, again for more (default: all that the profile has)",
    )
    parser.add_argument(
        "--generation",
        action="store_true",
        help="load everything under new keys, audit it, then let clients read these at once",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="only forecast keys, bytes, memory and time of a full load of one store (default: that of [online])",
    )


def run(place: Place, args: argparse.Namespace) -> MaterializeReport | ForecastReport:
    if args.generation and args.groups:
        problem = "a generation holds every online group, and only some are named"
        raise UsageError("Option --generation", problem, hint="leave --group out")
    if args.dry_run:
        if len(args.stores) > 1:
            raise UsageError("Option --dry-run", "looks at one online store", hint="name one --store")
        (store,) = args.stores or [MAIN_STORE]
        if args.generation:
            return dry_run_of_generation(place, now=args.now, store=store)
        return dry_run(place, args.groups, now=args.now, store=store)
    if args.generation:
        return materialize_generation(place, now=args.now, rate=args.rate, stores=args.stores)
    return materialize(place, args.groups, now=args.now, full=args.full, rate=args.rate, stores=args.stores)


if __name__ == "__main__":
    from jobs.command_line import run_verb

    run_verb("materialize")
