"""materialize: offline tables -> the online store, the latest row of every entity, or of those that changed.

    the store's last load -> entities to load -> partition function: encode, send, read back -> receipt -> last load

The store keeps the value of the newer definition, then of the newer event_time, so a load can be repeated, or run
beside another, without harm. A receipt in the lake says what was loaded and verified; the next load goes on from it.
"""

from __future__ import annotations

import argparse
import datetime
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from connectors import codec
from connectors.lakes import joined
from connectors.receipts import Receipt, read_receipt, write_receipt
from connectors.redis_online import RedisAddress, RedisOnlineStore, open_redis
from connectors.registry import Snapshot
from connectors.spark_errors import data_errors
from feature_defs.errors import UsageError
from feature_defs.join_plan import group_join
from feature_defs.model import FeatureGroup
from jobs import arguments
from jobs.forecast import ForecastReport, forecast
from jobs.joining import keeping
from jobs.load_work import FIRST_LOAD, Loading
from jobs.online_address import online_address
from jobs.online_load import LoadCounts, load_rows, partition_load, writers_for
from jobs.place import Place, new_run, now_us, online_groups
from jobs.report import counted, step, table


@dataclass(frozen=True)
class LoadedGroup:
    """One group's load: all of it, what changed since the last load, or nothing; `why` says why it was all.

    Each of `rows` entities was written, left alone for a newer value, past its ttl, removed, or absent already.
    """

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
class MaterializeReport:
    run: str
    snapshot: int
    groups: tuple[LoadedGroup, ...]
    rows: int
    seconds: float
    exit_code: int = 0

    def text(self) -> str:
        lines = [
            (f"{g.group} v{g.version}", g.how, g.rows, g.written, g.kept_newer, g.expired, g.removed, g.bytes,
             g.table_version, g.seconds)
            for g in self.groups
        ]  # fmt: skip
        headers = ["group", "load", "entities", "written", "kept newer", "expired", "removed", "bytes", "table version",
                   "seconds"]  # fmt: skip
        whole = [
            f"  {group.group}: {group.how}, {group.why}" for group in self.groups if group.why not in ("", FIRST_LOAD)
        ]
        total = f"{counted(self.rows, 'value')} loaded, {self.seconds:.1f} s"
        total += f" (run {self.run}, registry snapshot {self.snapshot})"
        return "\n".join([table(headers, lines), *whole, total])


def materialize(
    place: Place,
    groups: Sequence[str] = (),
    *,
    now: datetime.datetime | None = None,
    full: bool = False,
    rate: float | None = None,
) -> MaterializeReport:
    """Load these groups (none: every online group that is not deprecated) as they are at `now`.

    What the store's last load already brought is left out, unless `full`. `rate` is the most entities a second.
    """
    if rate is not None and not rate > 0:
        raise UsageError(
            "Option --rate", f"{rate:g} is not above 0", hint="write how many entities a second, as in 20000"
        )
    started = time.monotonic()
    run = new_run()
    snapshot = place.applied()
    chosen = online_groups(snapshot, groups)
    address = online_address(place)
    with open_redis(address):  # refuses clearly before any Spark job runs
        pass
    found = []
    for group in chosen:
        with step(f"materialize {group.name}"), data_errors(f"FeatureGroup '{group.name}'"):
            found.append(_load(place, snapshot, group, address, run, now_us(now), full=full, rate=rate))
    return MaterializeReport(
        run=run,
        snapshot=snapshot.number,
        groups=tuple(found),
        rows=sum(group.rows for group in found),
        seconds=round(time.monotonic() - started, 3),
    )


def _load(
    place: Place,
    snapshot: Snapshot,
    group: FeatureGroup,
    address: RedisAddress,
    run: str,
    now: int,
    *,
    full: bool,
    rate: float | None,
) -> LoadedGroup:
    """Load, verify, then write the receipt, then let the store name it: a run that ends before repeats what it did."""
    started = time.monotonic()
    source, version = place.computed(snapshot, group)
    definition, field = snapshot.since[group.name], codec.field_name(group.name, group.version)
    folder = _receipts(place, group)
    with open_redis(address) as store:
        receipt = _last_receipt(store, place, group)
    wanted = group_join(group, snapshot.definitions, group.features)
    with keeping(joined(folder, f"_work.{run}")) as keep:
        work = Loading(source, version, wanted, definition, now).work(receipt, full=full, keep=keep)
        counts = LoadCounts()
        if work.rows is not None:
            entity = snapshot.definitions.entity_of(group)
            rows, share = work.rows, None
            if rate is not None:
                writers = writers_for(rate)
                rows, share = rows.coalesce(writers), rate / writers
            load = partition_load(group, entity, address, definition=definition, now_us=now, rate=share)
            counts = load_rows(rows, load, f"FeatureGroup '{group.name}'")
    plain = asdict(counts)
    plain.pop("mismatched")
    done = Receipt(
        run=run,
        group=group.name,
        version=group.version,
        definition=definition,
        table_version=version,
        table_run=source.note(version).get("run"),
        now_us=now,
        how=work.how,
        why=work.why,
        seconds=round(time.monotonic() - started, 3),
        **plain,
    )
    write_receipt(folder, done)
    with open_redis(address) as store:
        store.set_last_load(field, run)
    return LoadedGroup(
        group=group.name,
        version=group.version,
        how=work.how,
        why=work.why,
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


def dry_run(place: Place, groups: Sequence[str] = (), *, now: datetime.datetime | None = None) -> ForecastReport:
    """What a full load would take; its time by the loads that the store names."""
    with open_redis(online_address(place)) as store:
        receipts = [_last_receipt(store, place, group) for group in online_groups(place.applied(), groups)]
    known = [receipt for receipt in receipts if receipt is not None and receipt.written]
    rate = sum(receipt.written for receipt in known) / sum(receipt.seconds for receipt in known) if known else None
    return forecast(place, groups, now, rate=rate)


def _last_receipt(store: RedisOnlineStore, place: Place, group: FeatureGroup) -> Receipt | None:
    last = store.last_load(codec.field_name(group.name, group.version))
    return read_receipt(_receipts(place, group), last) if last else None


def _receipts(place: Place, group: FeatureGroup) -> str:
    return place.lakes.uri(place.table_path(group)) + "_online"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_groups(parser)
    arguments.add_now(parser, "load values as they are at this time (default: the clock)")
    parser.add_argument(
        "--full", action="store_true", help="load every entity, not only what changed since the last load"
    )
    parser.add_argument("--rate", type=float, metavar="N", help="write at most so many entities a second")
    parser.add_argument(
        "--dry-run", action="store_true", help="only forecast keys, bytes, memory and time of a full load"
    )


def run(place: Place, args: argparse.Namespace) -> MaterializeReport | ForecastReport:
    if args.dry_run:
        return dry_run(place, args.groups, now=args.now)
    return materialize(place, args.groups, now=args.now, full=args.full, rate=args.rate)


if __name__ == "__main__":
    from jobs.command_line import run_verb

    run_verb("materialize")
