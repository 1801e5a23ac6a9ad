"""What a load would take before anything is written: entities, bytes, memory of the store, and whether it has room.

    newest row per entity at `now` -> how many, exactly
    a sample of them, packed       -> lengths of keys and values
    the same entities, online      -> what is there already: replaced, not added
    INFO                           -> what the server has and uses      -> a report, or a refusal

The memory of a key before and after is worked out by connectors.redis_memory, entity by entity of the sample.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import functions as F

from connectors import codec
from connectors.redis_memory import ServerMemory, hash_bytes, slots_bytes
from connectors.redis_online import RedisAddress, RedisOnlineStore, open_redis
from connectors.registry import Snapshot
from connectors.spark_errors import data_errors
from feature_defs.errors import EXIT_DONE, OnlineStoreError
from feature_defs.join_plan import group_join
from feature_defs.model import EVENT_TIME, Entity, FeatureGroup
from jobs.online_address import online_address
from jobs.place import Place, now_us, online_groups
from jobs.report import counted, step, table
from jobs.transforms.as_of import latest_rows
from jobs.transforms.sampling import sampled, share

SAMPLE, SEED = 4000, 7
_KEYS_PER_READ = 500


@dataclass(frozen=True)
class GroupForecast:
    """One group's load. `bytes` of the packed values and `present`, the entities that are online already, are exact
    where `one_of` is 1; else they follow from one entity of so many.
    """

    group: str
    version: int
    table_version: int
    entities: int
    expired: int
    present: int
    bytes: int
    one_of: int


@dataclass(frozen=True)
class ForecastReport:
    """A load as it would be. `max_bytes` 0 is no limit; `load_seconds` is null where no load was timed yet.

    Of a cluster the memory is that of all servers together; each is taken to get its part of the load.
    """

    groups: tuple[GroupForecast, ...]
    entities: int
    bytes: int
    new_keys: int
    added_bytes: int
    used_bytes: int
    max_bytes: int
    policy: str
    servers: int
    full_servers: int  # those without room for their part
    load_seconds: float | None
    warnings: tuple[str, ...]
    seconds: float
    exit_code: int = EXIT_DONE

    @property
    def fits(self) -> bool:
        return not self.full_servers

    def text(self) -> str:
        headers = ["group", "entities", "online already", "expired", "bytes", "table version", "looked at"]
        lines = [
            (f"{g.group} v{g.version}", g.entities, g.present, g.expired, g.bytes, g.table_version,
             "all" if g.one_of == 1 else f"1 of {g.one_of:,}")
            for g in self.groups
        ]  # fmt: skip
        limit = f"of {size(self.max_bytes)} ({self.policy})" if self.max_bytes else "without a limit"
        who = "the server uses" if self.servers == 1 else f"the {self.servers} servers use"
        more = "more" if self.added_bytes >= 0 else "less"
        needed = f"{size(abs(self.added_bytes))} {more}, {counted(self.new_keys, 'new key')}"
        told = [
            table(headers, lines),
            f"  memory: about {needed}; {who} {size(self.used_bytes)} {limit}",
            f"  time: about {self.load_seconds:,.0f} s" if self.load_seconds is not None else "  time: unknown",
            *(f"  warning: {warning}" for warning in self.warnings),
        ]
        total = f"{counted(self.entities, 'value')}, {counted(self.bytes, 'byte')} would be loaded"
        return "\n".join([*told, f"{total}, nothing was written, {self.seconds:.1f} s"])


def forecast(
    place: Place,
    groups: Sequence[str] = (),
    now: datetime.datetime | None = None,
    *,
    rate: float | None = None,
) -> ForecastReport:
    """What a full load of these groups (none: every online one) would take; refused where it would not fit.

    `rate` is what the last load managed in entities a second.
    """
    found = estimated(place, groups, now, rate=rate)
    if not found.fits:
        problem = (
            f"the load needs about {size(found.added_bytes)} more for {counted(found.new_keys, 'new key')}, "
            f"and {size(found.used_bytes)} of its maxmemory of {size(found.max_bytes)} are used ({found.policy})"
        )
        if found.servers > 1:
            problem += f"; {found.full_servers} of {found.servers} servers have no room for their part"
        least = size(found.used_bytes + found.added_bytes)
        hint = f"raise maxmemory above {least} with room to spare, or put fewer groups online; nothing was written"
        raise OnlineStoreError(str(online_address(place)), problem, hint=hint)
    return found


def estimated(
    place: Place,
    groups: Sequence[str] = (),
    now: datetime.datetime | None = None,
    *,
    rate: float | None = None,
) -> ForecastReport:
    """The forecast, whether it fits or not."""
    started = time.monotonic()
    snapshot, at = place.applied(), now_us(now)
    chosen = online_groups(snapshot, groups)
    address = online_address(place)
    found: list[GroupForecast] = []
    added, new_keys, new_expiring = 0.0, 0, 0
    with open_redis(address) as store:
        servers = store.memory()
        for entity in dict.fromkeys(snapshot.definitions.entity_of(group).name for group in chosen):
            with step(f"forecast {entity}"):
                one = _of_entity(place, snapshot, entity, chosen, store, servers[0], at)
            found += one.groups
            added += one.added_bytes
            new_keys += one.new_keys
            new_expiring += one.new_expiring
    # Hash slots spread the keys of a load evenly. Redis gives slots of its tables back, too, within a second or so.
    parts = [
        added / len(servers)
        + slots_bytes(one, one.keys + new_keys // len(servers), one.expiring_keys + new_expiring // len(servers))
        - slots_bytes(one, one.keys, one.expiring_keys)
        for one in servers
    ]
    limited = [(one, part) for one, part in zip(servers, parts, strict=True) if one.max_bytes]
    order = [group.name for group in chosen]
    entities = sum(group.entities for group in found)
    report = ForecastReport(
        groups=tuple(sorted(found, key=lambda group: order.index(group.group))),
        entities=entities,
        bytes=sum(group.bytes for group in found),
        new_keys=new_keys,
        added_bytes=round(sum(parts)),
        used_bytes=sum(one.used_bytes for one in servers),
        max_bytes=sum(one.max_bytes for one in servers),
        policy=servers[0].policy,
        servers=len(servers),
        full_servers=sum(one.used_bytes + part > one.max_bytes for one, part in limited),
        load_seconds=entities / rate if rate else None,
        warnings=(),
        seconds=round(time.monotonic() - started, 3),
    )
    warnings = _warnings(servers[0], report, expiring=any(group.ttl for group in chosen))
    return replace(report, warnings=warnings)


def size(count: int) -> str:
    """Bytes as Redis writes them in its settings and in INFO: 1 KiB is 1024."""
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= factor:
            return f"{count / factor:,.1f} {unit}"
    return counted(count, "byte")


def _warnings(server: ServerMemory, report: ForecastReport, *, expiring: bool) -> tuple[str, ...]:
    found = []
    if server.evicts:
        found.append(
            f"maxmemory-policy {server.policy}: a full server silently drops entities; use noeviction, which refuses"
        )
    elif server.evicts_expiring and expiring:
        found.append(
            f"maxmemory-policy {server.policy}: a full server silently drops entities whose groups all have a ttl; "
            "use noeviction, which refuses"
        )
    each = (report.used_bytes + report.added_bytes) / report.servers
    if not report.max_bytes and server.machine_bytes and each > server.machine_bytes:
        found.append(f"there is no maxmemory, and the machine has only {size(server.machine_bytes)}")
    if not server.settings_known:
        found.append(
            "the server does not tell its settings (CONFIG): hash-max-listpack-value is taken to be "
            f"{server.compact_value}; where it is more, less memory is needed"
        )
    return tuple(found)


# one entity: its groups' values lie in one hash, so their memory is one sum


@dataclass(frozen=True)
class _OfEntity:
    groups: tuple[GroupForecast, ...]
    added_bytes: float
    new_keys: int
    new_expiring: int


def _of_entity(
    place: Place,
    snapshot: Snapshot,
    name: str,
    chosen: Sequence[FeatureGroup],
    store: RedisOnlineStore,
    server: ServerMemory,
    now: int,
) -> _OfEntity:
    groups = [group for group in chosen if snapshot.definitions.entity_of(group).name == name]
    counts = [_counts(place, snapshot, group, now) for group in groups]
    one_of = share(max(entities for _, entities, _ in counts), SAMPLE)
    lengths = [_lengths(place, snapshot, group, store.address, now, one_of) for group in groups]
    fields = _fields(snapshot, name)
    keys = sorted({key for of_group in lengths for key in of_group})
    online = _online(store, keys, list(fields))
    before = {key: {f: len(v) for f, v in zip(fields, values, strict=True) if v is not None} for key, values in online}
    after = {key: dict(there) for key, there in before.items()}
    for group, of_group in zip(groups, lengths, strict=True):
        stored_in = codec.field_name(group.name, group.version)
        for key, length in of_group.items():
            after[key][stored_in] = length

    def expires(there: dict[bytes, int]) -> bool:
        return bool(there) and all(fields[stored_in] for stored_in in there)

    def memory(key: bytes, there: dict[bytes, int]) -> int:
        pairs = [(len(stored_in), length) for stored_in, length in there.items()]
        return hash_bytes(server, len(key), pairs, expires=expires(there))

    looked_at = sum(map(len, lengths))
    scale = sum(entities for _, entities, _ in counts) / looked_at if looked_at else 0.0
    return _OfEntity(
        groups=tuple(
            _of_group(group, count, of_group, before, one_of)
            for group, count, of_group in zip(groups, counts, lengths, strict=True)
        ),
        added_bytes=scale * sum(memory(key, after[key]) - memory(key, before[key]) for key in keys),
        new_keys=round(scale * sum(not before[key] for key in keys)),
        # Less than none where keys get their first group without a ttl.
        new_expiring=round(scale * sum(expires(after[key]) - expires(before[key]) for key in keys)),
    )


def _of_group(
    group: FeatureGroup,
    count: tuple[int, int, int],
    lengths: dict[bytes, int],
    before: dict[bytes, dict[bytes, int]],
    one_of: int,
) -> GroupForecast:
    version, entities, expired = count
    stored_in = codec.field_name(group.name, group.version)
    scale = entities / len(lengths) if lengths else 0.0
    return GroupForecast(
        group=group.name,
        version=group.version,
        table_version=version,
        entities=entities,
        expired=expired,
        present=round(scale * sum(stored_in in before[key] for key in lengths)),
        bytes=round(scale * sum(lengths.values())),
        one_of=one_of,
    )


def _counts(place: Place, snapshot: Snapshot, group: FeatureGroup, now: int) -> tuple[int, int, int]:
    """(table version, entities to load, entities past their ttl)."""
    with data_errors(f"FeatureGroup '{group.name}'"):
        source, version = place.computed(snapshot, group)
        join = group_join(group, snapshot.definitions, group.features)
        latest = latest_rows(source.read(version), join, now_us=now)
        oldest = now - join.ttl_us if join.ttl_us is not None else None
        alive = F.unix_micros(EVENT_TIME) >= F.lit(oldest) if oldest is not None else F.lit(True)
        found = latest.agg(F.count_if(alive).alias("alive"), F.count_if(~alive).alias("expired")).toArrow().to_pylist()
    return version, found[0]["alive"], found[0]["expired"]


def _lengths(
    place: Place, snapshot: Snapshot, group: FeatureGroup, address: RedisAddress, now: int, one_of: int
) -> dict[bytes, int]:
    """The online key and the length of the packed value of each entity of the sample that would be loaded."""
    with data_errors(f"FeatureGroup '{group.name}'"):
        source, version = place.computed(snapshot, group)
        join = group_join(group, snapshot.definitions, group.features)
        rows = sampled(source.read(version), join.keys, one_of=one_of, seed=SEED)
        function = _partition_lengths(group, snapshot.definitions.entity_of(group), address.key_prefix, now)
        found = latest_rows(rows, join, now_us=now).mapInArrow(function, "key binary, length bigint").toArrow()
    return dict(zip(found["key"].to_pylist(), found["length"].to_pylist(), strict=True))


def _partition_lengths(
    group: FeatureGroup, entity: Entity, prefix: str, now: int
) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    schema = codec.ValueSchema.of_group(group)
    encoded = codec.key_encoder(entity, prefix)
    oldest = now - group.ttl_us if group.ttl_us is not None else None

    def lengths(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            keys = encoded(batch)
            values = codec.encode(batch, schema, definition=0)
            found = pa.record_batch(
                [keys.cast(pa.binary()), pc.binary_length(values).cast(pa.int64())], ["key", "length"]
            )
            yield found if oldest is None else found.filter(pa.array(codec.event_times(values) >= oldest))

    return lengths


def _fields(snapshot: Snapshot, entity: str) -> dict[bytes, bool]:
    """Every field that a key of this entity may hold, older versions of its groups too, and whether it has a ttl."""
    return {
        codec.field_name(group.name, version): group.ttl is not None
        for group in snapshot.definitions.groups.values()
        if group.online and snapshot.definitions.entity_of(group).name == entity
        for version in range(1, group.version + 1)
    }


def _online(
    store: RedisOnlineStore, keys: Sequence[bytes], fields: Sequence[bytes]
) -> Iterator[tuple[bytes, list[bytes | None]]]:
    for start in range(0, len(keys), _KEYS_PER_READ):
        some = keys[start : start + _KEYS_PER_READ]
        yield from zip(some, store.read(some, fields), strict=True)
