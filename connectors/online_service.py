"""A service as the online store holds it, all of it prepared: keys -> one request; its replies -> an answer.

    rows of keys -> a packed HMGET for each distinct entity key -> replies -> values, statuses and times per group

No connection is in here, so that the client with threads and the one with asyncio ask and answer by the same code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from connectors import codec
from connectors.online_answer import (
    DAMAGED,
    DEFAULT,
    EXPIRED,
    MISSING,
    NOT_LOADED,
    OTHER_SCHEMA,
    PRESENT,
    UNREACHABLE,
    Answer,
    GroupRows,
    typed_default,
)
from feature_defs import data_types
from feature_defs.errors import OnlineStoreError, UsageError, listed, near_miss
from feature_defs.model import Definitions, Entity, Feature, FeatureGroup

Keys = Mapping[str, Any]
Part = tuple[FeatureGroup, Sequence[Feature]]
# Defaults by feature; or keys and {feature: why it is not there} -> defaults.
Fallback = Mapping[str, Any] | Callable[[Keys, Mapping[str, str]], Mapping[str, Any]]
_FIRST_TIME = -(2**63)
_MANY = 8  # values that are read faster as columns than one by one
_NULL_KEY = -1  # no entity has a null key: behind the last reply stands a missing one


@dataclass(frozen=True)
class Reading:
    """How values of one schema are read as the features asked for, and which of these they can give."""

    reader: codec.ValueReader
    statuses: tuple[str, ...]


@dataclass(frozen=True)
class GroupPlan:
    """A group's chosen features. `readings` are by the head of a value: its codec version and schema."""

    group: FeatureGroup
    features: tuple[Feature, ...]
    readings: Mapping[bytes, Reading]

    @cached_property
    def ttl_us(self) -> int | None:
        return self.group.ttl_us

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(feature.name for feature in self.features)

    @cached_property
    def no_values(self) -> list[Any]:
        return [None] * len(self.features)

    @cached_property
    def whole(self) -> dict[str, tuple[str, ...]]:
        """The statuses of the features where one status is that of all."""
        return {status: (status,) * len(self.features) for status in (MISSING, EXPIRED, OTHER_SCHEMA, DAMAGED)}

    def rows(self, values: Sequence[bytes | None], now_us: int) -> GroupRows:
        """What these packed values say at this time. Exactly as old as the ttl is not expired."""
        # No time is before the first one.
        oldest = _FIRST_TIME if self.ttl_us is None else now_us - self.ttl_us
        rows = self._of_one_schema(values, oldest) if len(values) >= _MANY else None
        return rows or self._one_by_one(values, oldest)

    def nothing(self, status: str, rows: int) -> GroupRows:
        """No value for so many rows, with this status."""
        statuses = [(status,) * len(self.features)] * rows
        columns = [[None] * rows for _ in self.features]
        return GroupRows(self.group.name, self.names, [status] * rows, [None] * rows, columns, statuses, statuses)

    def _of_one_schema(self, values: Sequence[bytes | None], oldest: int) -> GroupRows | None:
        """As columns; None when they are of several schemas, or one is damaged."""
        stored = [value for value in values if value is not None]
        reading = self.readings.get(stored[0][: codec.HEAD_SIZE]) if stored else None
        if reading is None:
            return None
        try:
            times, columns = reading.reader.columns(stored)
        except codec.CodecError:
            return None
        found, statuses = [PRESENT] * len(values), [reading.statuses] * len(values)
        event_times: list[int | None] = [*times]
        if len(times) < len(values):
            for row, value in enumerate(values):
                if value is None:
                    found[row], statuses[row] = MISSING, self.whole[MISSING]
                    event_times.insert(row, None)
                    for column in columns:
                        column.insert(row, None)
        if min(times) < oldest:
            for row, time in enumerate(event_times):
                if time is not None and time < oldest:
                    found[row], statuses[row] = EXPIRED, self.whole[EXPIRED]
                    for column in columns:
                        column[row] = None
        return GroupRows(self.group.name, self.names, found, event_times, columns, statuses, statuses)

    def _one_by_one(self, values: Sequence[bytes | None], oldest: int) -> GroupRows:
        rows = [self._row(value, oldest) for value in values]
        if len(rows) == 1:  # the request of most
            ((status, time, row, each),) = rows
            statuses = [each]
            return GroupRows(
                self.group.name, self.names, [status], [time], [[item] for item in row], statuses, statuses
            )
        statuses = [each for _, _, _, each in rows]
        columns = list(map(list, zip(*(row for _, _, row, _ in rows), strict=True))) or [[] for _ in self.features]
        found, event_times = [status for status, *_ in rows], [time for _, time, *_ in rows]
        return GroupRows(self.group.name, self.names, found, event_times, columns, statuses, statuses)

    def _row(self, value: bytes | None, oldest: int) -> tuple[str, int | None, list[Any], tuple[str, ...]]:
        """A value's status, event_time and features, and the status of each of these."""
        if value is None:
            return MISSING, None, self.no_values, self.whole[MISSING]
        reading = self.readings.get(value[: codec.HEAD_SIZE])
        if reading is None:
            return OTHER_SCHEMA, None, self.no_values, self.whole[OTHER_SCHEMA]
        try:
            time, row = reading.reader.row(value)
        except codec.CodecError:
            return DAMAGED, None, self.no_values, self.whole[DAMAGED]
        if time < oldest:
            return EXPIRED, time, self.no_values, self.whole[EXPIRED]
        return PRESENT, time, row, reading.statuses


@dataclass(frozen=True)
class EntityPlan:
    """One entity of a service: how its keys are made of rows, and the fields that are read under them."""

    entity: Entity
    groups: tuple[GroupPlan, ...]
    write_keys: Callable[[Sequence[Sequence[Any]]], list[bytes | None]]
    fields: tuple[bytes, ...]

    @cached_property
    def around_key(self) -> tuple[bytes, bytes]:
        """What stands before and behind a key's length and the key in a packed HMGET."""
        fields = b"".join(b"$%d\r\n%b\r\n" % (len(field), field) for field in self.fields)
        return b"*%d\r\n$5\r\nHMGET\r\n$" % (len(self.fields) + 2), b"\r\n" + fields

    def keys(self, rows: Sequence[Keys]) -> list[bytes | None]:
        """The online key of each row; None where one of its columns is null."""
        columns = [[row[name] for row in rows] for name in self.entity.keys]
        try:
            return self.write_keys(columns)
        except codec.CodecError as error:
            raise self._wrong_key(columns) from error

    def _wrong_key(self, columns: Sequence[Sequence[Any]]) -> UsageError:
        """Which of the key's columns is the culprit; its value is not told."""
        for row in zip(*columns, strict=True):
            for (name, kind), value in zip(self.entity.keys.items(), row, strict=True):
                if None not in row and not _is_key(value, kind):
                    problem = f"is {kind}, and the {type(value).__name__} given cannot be one"
                    return UsageError(f"Key '{name}'", problem, hint=f"give a value of type {kind}")
        return UsageError(f"Entity '{self.entity.name}'", "its key cannot be written", hint="look at its columns")


def _is_key(value: object, kind: str) -> bool:
    try:
        codec.encode_key([value], "x", key_types=[data_types.parse(kind)], prefix="x")
    except codec.CodecError:
        return False
    return True


@dataclass(frozen=True)
class Request:
    """What to ask for some rows: distinct keys, the commands that read them, and where each row's reply will be."""

    rows: Sequence[Keys]
    keys: list[list[bytes]]  # per entity
    places: list[list[int] | None]  # per entity, which of its keys is each row's; None: they are the rows

    @property
    def count(self) -> int:
        return sum(map(len, self.keys))


@dataclass(frozen=True)
class ServicePlan:
    """Everything of a service that does not depend on who is asked for."""

    title: str
    entities: tuple[EntityPlan, ...]
    groups: tuple[GroupPlan, ...]  # in the service's order
    types: Mapping[str, str]  # of each feature, by its name in the answer
    generation: int = 0  # of the keys: connectors/generations.py

    @cached_property
    def key_names(self) -> frozenset[str]:
        return frozenset(name for entity in self.entities for name in entity.entity.keys)

    def request(self, rows: Sequence[Keys]) -> Request:
        names = self.key_names
        for row in rows:
            if not (type(row) is dict or isinstance(row, Mapping)) or row.keys() != names:
                raise self._wrong_names(row)
        keys: list[list[bytes]] = []
        places: list[list[int] | None] = []
        for entity in self.entities:
            at: dict[bytes, int] = {}
            place = [_NULL_KEY if key is None else at.setdefault(key, len(at)) for key in entity.keys(rows)]
            keys.append(list(at))
            places.append(None if len(at) == len(rows) else place)
        return Request(rows, keys, places)

    def packed(self, request: Request) -> bytes:
        """The whole request as it is sent."""
        pieces = []
        for entity, keys in zip(self.entities, request.keys, strict=True):
            before, behind = entity.around_key
            pieces += [b"%b%d\r\n%b%b" % (before, len(key), key, behind) for key in keys]
        return b"".join(pieces)

    def commands(self, request: Request) -> list[tuple[bytes, tuple[bytes, ...]]]:
        """The same as keys with their fields, for a client that has to send them to several servers."""
        return [(key, e.fields) for e, keys in zip(self.entities, request.keys, strict=True) for key in keys]

    def answer(self, request: Request, replies: Sequence[Sequence[bytes | None]], now_us: int) -> Answer:
        """What was found, each row in its place."""
        parts: dict[str, GroupRows] = {}
        for group, values in self._values(request, replies):
            parts[group.group.name] = group.rows(values, now_us)
        return Answer(self.types, tuple(parts[g.group.name] for g in self.groups), len(request.rows), now_us)

    def unreachable(self, request: Request, error: OnlineStoreError, now_us: int) -> Answer:
        """The answer when there was none: no value at all."""
        parts = tuple(group.nothing(UNREACHABLE, len(request.rows)) for group in self.groups)
        return Answer(self.types, parts, len(request.rows), now_us, error)

    def checked(self, fallback: Fallback | None) -> Fallback | None:
        """A fallback whose defaults are of the features' types."""
        return self._typed(fallback) if isinstance(fallback, Mapping) else fallback

    def with_defaults(self, answer: Answer, request: Request, fallback: Fallback) -> Answer:
        """The fallback's values where there is none; what it leaves out keeps its status."""
        if all(map(_is_complete, answer.parts)):
            return answer
        given = []
        for keys, why in zip(request.rows, answer.missing(), strict=True):
            if isinstance(fallback, Mapping):
                given.append({name: fallback[name] for name in why if name in fallback})
            else:
                offered = self._typed(fallback(keys, why)) if why else {}
                given.append({name: offered[name] for name in why if name in offered})
        names = iter(self.types)
        parts = tuple(_with_defaults(part, [next(names) for _ in part.features], given) for part in answer.parts)
        return replace(answer, parts=parts)

    def of_generation(self, number: int, key_prefix: str) -> ServicePlan:
        """The same, read under the keys of another generation."""
        entities = tuple(replace(one, write_keys=_key_writer(one.entity, key_prefix)) for one in self.entities)
        return replace(self, entities=entities, generation=number)

    def knowing(self, definitions: Mapping[str, Sequence[FeatureGroup]]) -> ServicePlan:
        """The same, reading also what was written under these other definitions of its groups."""
        plans = {
            plan.group.name: replace(plan, readings={**_readings(plan, definitions[plan.group.name]), **plan.readings})
            for plan in self.groups
        }
        entities = tuple(replace(e, groups=tuple(plans[g.group.name] for g in e.groups)) for e in self.entities)
        return replace(self, entities=entities, groups=tuple(plans[plan.group.name] for plan in self.groups))

    def _values(
        self, request: Request, replies: Sequence[Sequence[bytes | None]]
    ) -> Iterable[tuple[GroupPlan, Sequence[bytes | None]]]:
        """Each group's packed values, one for each row."""
        start = 0
        for entity, keys, place in zip(self.entities, request.keys, request.places, strict=True):
            end = start + len(keys)
            columns = list(zip(*replies[start:end], strict=True)) or [()] * len(entity.groups)
            for group, column in zip(entity.groups, columns, strict=True):
                yield group, column if place is None else [(*column, None)[i] for i in place]
            start = end

    def _typed(self, defaults: Mapping[str, Any]) -> dict[str, Any]:
        for name in defaults:
            if name not in self.types:
                hint = near_miss(name, self.types) + "name features of the service"
                raise UsageError(self.title, f"the fallback names '{name}', which it does not have", hint=hint)
        return {name: typed_default(name, self.types[name], value) for name, value in defaults.items()}

    def _wrong_names(self, row: object) -> UsageError:
        expected = sorted(self.key_names)
        hint = f"write {{{', '.join(f'{name!r}: ...' for name in expected)}}}"
        if not isinstance(row, Mapping):
            problem = f"a row is a mapping of the keys ({listed(expected)}), found a {type(row).__name__}"
            return UsageError(self.title, problem, hint=hint)
        told = [f"key '{name}' is missing" for name in expected if name not in row]
        unknown = [name for name in row if name not in self.key_names]
        told += [f"'{name}' is not a key" for name in unknown]
        return UsageError(self.title, "; ".join(told), hint=(near_miss(unknown[0], expected) if unknown else "") + hint)


def service_plan(
    title: str, definitions: Definitions, parts: Sequence[Part], *, key_prefix: str, prefix: bool = False
) -> ServicePlan:
    """The plan for these features of these groups; with `prefix` a feature is named GROUP__FEATURE."""
    groups = tuple(_group_plan(group, features) for group, features in parts)
    by_entity: dict[str, list[GroupPlan]] = {}
    for plan in groups:
        by_entity.setdefault(definitions.entity_of(plan.group).name, []).append(plan)
    entities = tuple(
        EntityPlan(
            entity=definitions.entities[name],
            groups=tuple(plans),
            write_keys=_key_writer(definitions.entities[name], key_prefix),
            fields=tuple(codec.field_name(plan.group.name, plan.group.version) for plan in plans),
        )
        for name, plans in by_entity.items()
    )
    return ServicePlan(title, entities, groups, _types(title, groups, prefix=prefix))


def _key_writer(entity: Entity, key_prefix: str) -> Callable[[Sequence[Sequence[Any]]], list[bytes | None]]:
    types = [data_types.parse(kind) for kind in entity.keys.values()]
    return codec.key_writer(entity.name, key_types=types, prefix=key_prefix)


def _group_plan(group: FeatureGroup, features: Sequence[Feature]) -> GroupPlan:
    if not group.online:
        hint = "set online=True in its definition, apply it and materialize"
        raise UsageError(f"FeatureGroup '{group.name}'", "is not online", hint=hint)
    plan = GroupPlan(group, tuple(features), {})
    return replace(plan, readings=_readings(plan, [group]))


def _readings(plan: GroupPlan, definitions: Sequence[FeatureGroup]) -> dict[bytes, Reading]:
    """How to read what was written under each definition: a feature is the same when its name and type are."""
    found: dict[bytes, Reading] = {}
    for written in definitions:
        schema = codec.ValueSchema.of_group(written)
        kinds = dict(zip(schema.names, schema.types, strict=True))
        statuses = []
        for feature in plan.features:
            same = kinds.get(feature.name) == data_types.parse(feature.type)
            statuses.append(PRESENT if same else OTHER_SCHEMA if feature.name in kinds else NOT_LOADED)
        pairs = zip(plan.features, statuses, strict=True)
        names = [feature.name if status == PRESENT else None for feature, status in pairs]
        head = codec.schema_head(schema)
        found.setdefault(head, Reading(codec.ValueReader(schema, names), tuple(statuses)))
    return found


def _is_complete(part: GroupRows) -> bool:
    """Whether every feature of every row is present: then one tuple says so of all of them."""
    rows = part.statuses
    return not rows or (rows.count(rows[0]) == len(rows) and rows[0].count(PRESENT) == len(rows[0]))


def _with_defaults(part: GroupRows, names: Sequence[str], given: Sequence[Mapping[str, Any]]) -> GroupRows:
    columns, statuses = [list(column) for column in part.columns], list(part.statuses)
    for row, defaults in enumerate(given):
        for column, name in zip(columns, names, strict=True):
            if name in defaults:
                column[row] = copy(defaults[name])  # a list or a map is its reader's own
        pairs = zip(names, statuses[row], strict=True)
        statuses[row] = tuple(DEFAULT if name in defaults else status for name, status in pairs)
    return part._replace(columns=columns, statuses=statuses)


def _types(title: str, groups: Sequence[GroupPlan], *, prefix: bool) -> dict[str, str]:
    found: dict[str, str] = {}
    for plan in groups:
        for feature in plan.features:
            name = f"{plan.group.name}__{feature.name}" if prefix else feature.name
            if name in found:
                problem = f"feature '{name}' is in several of its groups, also in '{plan.group.name}'"
                raise UsageError(title, problem, hint="use prefix=True to name features GROUP__FEATURE")
            found[name] = data_types.parse(feature.type).spark
    return found
