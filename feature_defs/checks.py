"""Every rule that a set of definitions must meet, found without Spark and all at once.

    objects of a folder -> check -> (Definitions, ()) or (None, faults)

Each rule is a small generator of faults; a fault names the object, what is wrong with it, and the next action.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from feature_defs import cleaning, cleaning_checks, data_types, durations, expressions, inputs
from feature_defs.aggregates import AGGREGATES, AggregateFunction
from feature_defs.errors import Fault, listed, near_miss
from feature_defs.fingerprint import is_as_written, transform_digest
from feature_defs.model import (
    CREATED_TIME,
    EVENT_TIME,
    FEATURE_KINDS,
    GROUP_FORMAT,
    OFFLINE_FORMATS,
    SEVERITIES,
    SOURCE_FORMATS,
    STATUSES,
    Aggregate,
    Definition,
    Definitions,
    Entity,
    Feature,
    FeatureGroup,
    FeatureSelection,
    Service,
    Source,
    TransformReference,
    group_as_source,
)
from feature_defs.rule_checks import rule_faults, sql_texts
from feature_defs.rules import RULES, Rule, name_of, named
from feature_defs.window_functions import aggregate_texts, window_faults

_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
_COLUMN = re.compile(r"(?!_tidemark)[A-Za-z_][A-Za-z0-9_]{0,127}")
_PATH = re.compile(r"lake://[A-Za-z][A-Za-z0-9_-]*/[^\s]+")
_MISSING_SCHEMA = ("csv", "json")
_TEXTS = ("owner", "description", "event_time", "created_time")
_SWITCHES = ("online", "skip_nulls", "pii", "multi_line")
RESERVED = (EVENT_TIME, CREATED_TIME)
MOST_KEPT = 10_000  # values of last_k and top_k: they are one cell of a table

Found = Iterator[tuple[str, str]]  # (problem, hint)
Word = TypeVar("Word", bound=Definition)
Named = TypeVar("Named")


def check(objects: Sequence[Definition]) -> tuple[Definitions | None, tuple[Fault, ...]]:
    """All definitions by name when they are sound, else every fault."""
    faults: list[Fault] = []
    definitions = Definitions(
        entities=_by_name(objects, Entity, faults),
        sources=_by_name(objects, Source, faults),
        groups=_by_name(objects, FeatureGroup, faults),
        services=_by_name(objects, Service, faults),
    )
    for entity in definitions.entities.values():
        faults += _faults(entity, _entity(entity))
    for source in definitions.sources.values():
        faults += _faults(source, _source(source, definitions))
    for group in definitions.groups.values():
        faults += _faults(group, _group(group, definitions))
        for feature in group.features if _is_list(group.features) else ():
            if isinstance(feature, Feature):
                faults += _feature_faults(group, feature, definitions)
    for service in definitions.services.values():
        faults += _faults(service, _service(service, definitions))
    if circle := inputs.cycle(definitions):
        names = ", ".join(f"'{item.name}'" for item in circle)
        problem = f"{names} are made from one another" if len(circle) > 1 else "is made from itself"
        faults += _faults(circle[0], iter([(problem, "make one of them from raw rows")]))
    return (None, tuple(sorted(faults))) if faults else (definitions, ())


def subject_of(definition: Definition) -> str:
    return f"{type(definition).__name__} '{definition.name}'"


def _by_name(objects: Sequence[Definition], word: type[Word], faults: list[Fault]) -> Mapping[str, Word]:
    found: dict[str, Word] = {}
    for item in objects:
        if not isinstance(item, word):
            continue
        first = found.setdefault(str(item.name), item)
        if first is not item:
            problem = f"the name is taken by {first.at.file}:{first.at.line}"
            faults.append(Fault(item.at.file, item.at.line, subject_of(item), problem, "rename one of the two"))
    return found


def _faults(definition: Definition, found: Found) -> list[Fault]:
    at = definition.at
    return [Fault(at.file, at.line, subject_of(definition), problem, hint) for problem, hint in found]


def _feature_faults(group: FeatureGroup, feature: Feature, definitions: Definitions) -> list[Fault]:
    subject = f"Feature '{group.name}.{feature.name}'"
    at = feature.at if feature.at.file else group.at
    found = _feature(group, feature, definitions)
    return [Fault(at.file, at.line, subject, problem, hint) for problem, hint in found]


# one word at a time


def _entity(entity: Entity) -> Found:
    yield from _name(entity.name)
    yield from _plain_fields(entity)
    if not isinstance(entity.keys, Mapping) or not entity.keys:
        yield "keys must map at least one column to a type", 'write keys={"customer_id": "string"}'
        return
    yield from _repeated("key", entity.keys)
    for column, type_text in entity.keys.items():
        yield from _column_name("key", column)
        if str(column).lower() in RESERVED:
            yield (
                f"key '{column}' has a reserved name",
                f"{EVENT_TIME} and {CREATED_TIME} are the two clocks; rename it",
            )
        kind, faults = _parsed(f"key '{column}'", type_text)
        yield from faults
        if kind and kind.kind not in data_types.KEY_TYPES:
            yield (
                f"key '{column}' has type {kind.spark}, which cannot be a key",
                f"use one of {', '.join(data_types.KEY_TYPES)}",
            )


def _source(source: Source, definitions: Definitions) -> Found:
    yield from _name(source.name)
    yield from _plain_fields(source)
    if source.inputs:
        yield from inputs.input_faults(source, [*definitions.sources, *definitions.groups])
        for item in source.inputs if _is_list(source.inputs) else ():
            if isinstance(item, Source | FeatureGroup | str):
                yield from _source_reference("input", item, definitions, source.name)
        yield from _transform(source.transform)
    else:
        yield from _path_of(source)
    yield from _one_of("format", source.format, SOURCE_FORMATS)
    if source.multi_line and source.format != "csv":
        yield f"multi_line is said of csv, and the format is {source.format}", "leave it out"
    if source.schema is None:
        if source.format in _MISSING_SCHEMA:
            yield f"format {source.format} needs a schema", 'add schema={"column": "type", ...}'
    elif not isinstance(source.schema, Mapping) or not source.schema:
        yield "schema must map columns to types", 'write schema={"amount": "double"}'
    else:
        for column, type_text in source.schema.items():
            if not isinstance(column, str):
                yield f"schema: column {column!r} is {type(column).__name__}", "write each column's name as text"
            yield from _parsed(f"column '{column}'", type_text)[1]
        for clock, name in ((EVENT_TIME, source.event_time), (CREATED_TIME, source.created_time)):
            if isinstance(name, str):
                yield from _known_column(clock, name, source.schema, f"the schema of source '{source.name}'")
                yield from _clock_type(clock, name, source.schema)
    if source.filter is not None:
        yield from _sql("filter", source.filter, _columns_of(source), f"source '{source.name}'")


def _path_of(source: Source) -> Found:
    for field, value in (("sql", source.sql), ("transform", source.transform)):
        if value is not None:
            yield f"has {field}= but no inputs=", "name what it reads: inputs=[purchases, customers]"
            return
    if source.format == "jdbc":
        if not isinstance(source.path, str) or not inputs.TABLE_PATH.fullmatch(source.path):
            hint = "write jdbc://NAME/schema.table; a profile's [databases] says where NAME is"
            yield f"path {source.path!r} is not a table of a database", hint
    elif isinstance(source.path, str) and source.path.startswith("jdbc:"):
        yield f"path {source.path!r} is a database's", 'add format="jdbc"'
    elif not isinstance(source.path, str) or not _PATH.fullmatch(source.path):
        yield f"path {source.path!r} is not a logical path", "write lake://NAME/path; a profile says where NAME is"


def _source_of(group: FeatureGroup, definitions: Definitions) -> Source | None:
    """The group's source; of another group what it looks like from here, as far as it is sound itself."""
    source, other = _named(group.source_name, definitions.sources), _named(group.source_name, definitions.groups)
    if source is not None or other is None or other is group:
        return source
    entity = _named(other.entity_name, definitions.entities)
    features = other.features if _is_list(other.features) else [None]
    are_named = all(isinstance(item, Feature) and isinstance(item.name, str) for item in features)
    if entity is not None and isinstance(entity.keys, Mapping) and are_named:
        return group_as_source(other, entity)
    return Source(other.name, format=GROUP_FORMAT, event_time=EVENT_TIME)


def _where(source: Source | None, name: str) -> str:
    return f"{'group' if source and source.format == GROUP_FORMAT else 'source'} '{name}'"


def _source_reference(what: str, value: object, definitions: Definitions, own: object) -> Found:
    """A source or a group, or the name of one, which has to be there and has to be meant."""
    groups = {name: group for name, group in definitions.groups.items() if name != own or value is group}
    yield from _reference(what, value, {**definitions.sources, **groups})
    if isinstance(value, FeatureGroup) and value.name in definitions.sources:
        yield f"{what} is the group '{value.name}', but a source has that name too", "rename one of the two"


def _columns_of(source: Source | None) -> tuple[str, ...] | None:
    """None when the source says nothing of them: what follows from that is not another fault."""
    return tuple(source.schema) if source and isinstance(source.schema, Mapping) and source.schema else None


def _clock_type(clock: str, column: str, schema: Mapping[str, str]) -> Found:
    kind, _ = _parsed(column, schema.get(column, "timestamp"))
    if kind and kind.kind not in ("timestamp", "timestamp_ntz", "date"):
        yield (
            f"{clock} '{column}' has type {kind.spark}, expected timestamp or date",
            "declare it as timestamp; csv and json text in ISO 8601 is read as UTC",
        )


def _group(group: FeatureGroup, definitions: Definitions) -> Found:
    yield from _name(group.name)
    yield from _plain_fields(group)
    yield from _reference("entity", group.entity, definitions.entities)
    yield from _source_reference("source", group.source, definitions, group.name)
    yield from _one_of("offline", group.offline, OFFLINE_FORMATS)
    yield from _version(group.version)
    yield from _duration("ttl", group.ttl)
    yield from _duration("every", group.every)
    yield from _tags(group.tags)
    if group.status is not None:
        yield from _one_of("status", group.status, STATUSES)
    yield from _transform(group.transform)
    if not _is_list(group.features):
        problem = f"features is {type(group.features).__name__}, expected a list"
        yield problem, 'write features=[Feature("amount", "double")]'
        return
    if not group.features:
        yield "has no features", 'write features=[Feature("amount", "double")]'
        return
    for item in group.features:
        if not isinstance(item, Feature):
            yield f"features holds {type(item).__name__}", "each item is Feature(name, type, expression)"
    features = [item for item in group.features if isinstance(item, Feature)]
    yield from _repeated("feature", [feature.name for feature in features if isinstance(feature.name, str)])
    yield from _keys_of_group(group, definitions)
    yield from _cycle(features)
    yield from cleaning_checks.group_faults(group, _types_of(group, definitions), _not_cleaned(group, definitions))
    if group.every and not group.aggregates:
        yield "has every= but no Aggregate", "every= cuts aggregates on a grid; leave it out, or aggregate"
    if group.skip_nulls and group.aggregates:
        yield "has skip_nulls= with aggregates", "aggregates skip nulls already; leave skip_nulls out"
    if not _is_list(group.expectations):
        problem = f"expectations is {type(group.expectations).__name__}, expected a list"
        yield problem, 'write expectations=[Expectation("positive", "amount > 0")]'
        return
    known = _columns_of_group(group, definitions)
    for expectation in group.expectations:
        yield from _expectation(expectation, known)
    yield from _repeated("expectation", _rule_names(group))


def _transform(transform: object) -> Found:
    """The fingerprint reads the function's text, so nothing may be in it that its text does not say."""
    if transform is None or isinstance(transform, TransformReference):
        return
    own = inspect.unwrap(transform) if callable(transform) else None
    if not callable(transform) or not inspect.isfunction(own):
        yield "transform is not a function", "give a function that takes a DataFrame and returns one"
    elif own.__name__ == "<lambda>":
        yield "transform is a lambda", "write it as a function with def, so that a change of it is seen"
    elif own.__closure__:
        names = ", ".join(own.__code__.co_freevars)
        yield (
            f"transform '{own.__name__}' uses {names} of the function that made it",
            "write it with def at the top level of the file, so that a change of its values is seen",
        )
    else:
        try:
            transform_digest(own)
            as_written = is_as_written(transform)
        except (OSError, TypeError, SyntaxError):
            yield f"the text of transform '{own.__name__}' cannot be read", "write it with def in a definition file"
            return
        if not as_written:
            yield (
                f"transform '{own.__name__}' is wrapped by more than the decorators above its def",
                "wrap it by a decorator there, at the top level of the file, so that a change of the wrapping is seen",
            )


def _key_names(group: FeatureGroup, definitions: Definitions) -> tuple[str, ...] | None:
    """None when the entity is at fault: what follows from that is not another fault."""
    entity = _named(group.entity_name, definitions.entities)
    return tuple(entity.keys) if entity and isinstance(entity.keys, Mapping) else None


def _columns_of_group(group: FeatureGroup, definitions: Definitions) -> Mapping[str, data_types.DataType | None] | None:
    """The columns that rules may name, each with its type; None for a type that is a fault already."""
    entity = _named(group.entity_name, definitions.entities)
    if entity is None or not isinstance(entity.keys, Mapping):
        return None
    features = {str(feature.name): feature.type for feature in group.features if isinstance(feature, Feature)}
    types = {**entity.keys, EVENT_TIME: "timestamp", **features}
    return {str(name): _parsed("", text)[0] for name, text in types.items()}


def _rule_names(group: FeatureGroup) -> list[str]:
    own = [named(rule) for rule in group.expectations if isinstance(rule, RULES)]
    features = [feature for feature in group.features if isinstance(feature, Feature) and _is_list(feature.expect)]
    theirs = [named(rule, feature.name) for feature in features for rule in feature.expect if isinstance(rule, RULES)]
    return [rule.name for rule in (*own, *theirs) if isinstance(rule.name, str)]


def _keys_of_group(group: FeatureGroup, definitions: Definitions) -> Found:
    keys = _key_names(group, definitions) or ()
    taken = {str(key).lower() for key in keys}
    for feature in group.features:
        if isinstance(feature, Feature) and str(feature.name).lower() in taken:
            yield f"feature '{feature.name}' has the name of a key", "rename the feature"
    source = _source_of(group, definitions)
    columns = _columns_of(source)
    if source is None or columns is None or group.transform is not None:
        return
    for key in keys:
        if key not in columns:
            yield (
                f"key '{key}' is not a column of {_where(source, source.name)} ({listed(columns)})",
                near_miss(key, columns) + "rename it in the source or in the entity",
            )
    entity = _named(group.entity_name, definitions.entities)
    if entity and isinstance(entity.keys, Mapping) and isinstance(source.schema, Mapping):
        yield from _key_types(entity.keys, source.schema, source)


def _key_types(keys: Mapping[str, object], columns: Mapping[str, object], source: Source) -> Found:
    """A key's type is what joins and the online store rely on: the source's column must have it."""
    for key in keys.keys() & columns.keys():
        declared, faults = _parsed(key, keys[key])
        found, more = _parsed(key, columns[key])
        if not declared or not found or faults or more or declared.kind not in data_types.KEY_TYPES:
            continue  # a fault already
        if not data_types.is_key_of(found.spark, declared):
            where = f"{found.spark} in {_where(source, source.name)}, {declared.spark} in the entity"
            yield f"key '{key}' is {where}", "declare the same type in both"


def _cycle(features: Sequence[Feature]) -> Found:
    """Expressions may name other features of the group, but not in a circle."""
    named = [feature for feature in features if isinstance(feature.name, str)]
    names = {feature.name.lower() for feature in named}  # as Spark compares them
    needs = {feature.name.lower(): _needs(feature) & names - {feature.name.lower()} for feature in named}
    while needs:
        free = [name for name, needed in needs.items() if not needed & needs.keys()]
        if not free:
            yield f"features {', '.join(needs)} need one another", "write one of them from the source's columns"
            return
        for name in free:
            del needs[name]


def _types_of(group: FeatureGroup, definitions: Definitions) -> Mapping[str, data_types.DataType | None] | None:
    """The source's columns with their types, None where one has a fault; None when the source says nothing of them."""
    source = _named(group.source_name, definitions.sources)
    if source is None or _columns_of(source) is None or group.transform is not None:
        return None
    return {column: _parsed(column, kind)[0] for column, kind in (source.schema or {}).items()}


def _not_cleaned(group: FeatureGroup, definitions: Definitions) -> Mapping[str, str]:
    """Columns that decide whose row it is and when, with what each is."""
    source = _named(group.source_name, definitions.sources)
    clocks = [EVENT_TIME, CREATED_TIME, *((source.event_time, source.created_time) if source else ())]
    keys = dict.fromkeys(_key_names(group, definitions) or (), "a key")
    return {**keys, **{clock: "a clock" for clock in clocks if isinstance(clock, str)}}


def _needs(feature: Feature) -> set[str]:
    if isinstance(feature.expression, cleaning.Scaled):
        return {str(feature.expression.column).lower()}
    if not isinstance(feature.expression, str):
        return set()
    try:
        return {column.lower() for column in expressions.columns(feature.expression)}
    except expressions.ExpressionFault:
        return set()


def _feature(group: FeatureGroup, feature: Feature, definitions: Definitions) -> Found:
    yield from _column_name("feature", feature.name)
    yield from _plain_fields(feature)
    if str(feature.name).lower() in RESERVED:
        yield "has a reserved name", f"{EVENT_TIME} and {CREATED_TIME} are the two clocks; rename the feature"
    kind, faults = _parsed("type", feature.type)
    yield from faults
    if kind and not kind.is_feature_type:
        types, elements = ", ".join(data_types.FEATURE_TYPES), ", ".join(data_types.ARRAY_ELEMENTS)
        hint = f"use one of {types}; arrays, and maps from string, hold {elements}"
        yield f"type {kind.spark} cannot be a feature", hint
    if feature.kind is not None:
        yield from _one_of("kind", feature.kind, FEATURE_KINDS)
    yield from _tags(feature.tags)
    yield from _expression(group, feature, definitions)
    if not _is_list(feature.allowed_values):
        yield "allowed_values is not a list", 'write allowed_values=["bronze", "silver"]'
    elif feature.allowed_values and kind and kind.kind == "map":
        example = f"forall(map_keys({feature.name}), k -> k in ('buy', 'view'))"
        yield f"allowed_values cannot be those of a {kind.spark}", f'write Expectation("known", "{example}")'
    elif wrong := [value for value in feature.allowed_values if not isinstance(value, str | int | float)]:
        problem = f"allowed_values holds {type(wrong[0]).__name__}, expected texts, numbers, True or False"
        yield problem, 'write allowed_values=["bronze", "silver"]'
    elif kind and (other := [value for value in feature.allowed_values if not _can_be(value, kind)]):
        problem = f"allowed_values holds {type(other[0]).__name__}, the feature is {kind.spark}"
        yield problem, "write values of the feature's type"
    if not _is_list(feature.expect):
        yield f"expect is {type(feature.expect).__name__}, expected a list", "write expect=[NotNull()]"
        return
    for rule in feature.expect:
        yield from _expectation(rule, _columns_of_group(group, definitions), str(feature.name))


def _can_be(value: object, kind: data_types.DataType) -> bool:
    """Whether a Python value is one of a type that has such literals; others (dates, binary) are written as text."""
    if kind.kind == "boolean" or isinstance(value, bool):
        return kind.kind == "boolean" and isinstance(value, bool)
    if kind.row.numerical:
        return isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    return isinstance(value, str)


def _expression(group: FeatureGroup, feature: Feature, definitions: Definitions) -> Found:
    source = _source_of(group, definitions)
    rows = _columns_of(source) if group.transform is None else None
    where = _where(source, group.source_name)
    match feature.expression:
        case Aggregate():
            yield from _aggregate(group, feature.expression, rows, where)
        case None if group.aggregates:
            yield "has no expression in a group with aggregates", "give it an Aggregate or an expression of features"
        case None:
            if rows is not None and feature.name not in rows:
                yield (
                    f"is not a column of {where} ({listed(rows)})",
                    near_miss(feature.name, rows) + "give the feature an expression, or name a column",
                )
        case str():
            others = tuple(f.name for f in group.features if isinstance(f, Feature) and f.name != feature.name)
            if group.aggregates:
                keys = _key_names(group, definitions)
                known: tuple[str, ...] | None = None if keys is None else (*keys, EVENT_TIME, *others)
                where = "the group's features and keys (an expression beside aggregates sees those, not the source)"
            else:
                known = (*rows, *others) if rows is not None else None
            yield from _sql("expression", feature.expression, known, where)
        case word if isinstance(word, cleaning.Scaled):
            yield from cleaning_checks.feature_faults(group, feature, word, _types_of(group, definitions))
        case step if isinstance(step, cleaning.Step):
            yield f"expression is {type(step).__name__}", f"{type(step).__name__} is for clean= of the group"
        case _:
            yield f"expression is {type(feature.expression).__name__}", "give Spark SQL as text, or an Aggregate"


def _aggregate(group: FeatureGroup, aggregate: Aggregate, rows: tuple[str, ...] | None, where: str) -> Found:
    yield from _one_of("aggregate", aggregate.function, tuple(AGGREGATES))
    function = _named(aggregate.function, AGGREGATES)
    if function and function.needs_column and aggregate.column is None:
        yield f"aggregate {aggregate.function} has no column", f'write Aggregate("{aggregate.function}", "amount")'
    if function:
        yield from _aggregate_arguments(aggregate, function)
    for label, text in aggregate_texts(aggregate):
        yield from _sql(label, text, rows, where)
    yield from _duration("window", aggregate.window)
    if aggregate.window and group.every:
        try:
            window, every = durations.microseconds(aggregate.window), durations.microseconds(group.every)
        except durations.DurationFault:
            return
        if window % every:
            yield (
                f"window {aggregate.window} is not a multiple of every={group.every}",
                "make it one, or make the grid finer",
            )


def _aggregate_arguments(aggregate: Aggregate, function: AggregateFunction) -> Found:
    example = {"k": "k=5", "q": "q=0.95"}
    for name in ("k", "q"):
        value = getattr(aggregate, name)
        if name in function.takes and value is None:
            yield f"aggregate {aggregate.function} needs {name}=", f"write {example[name]}"
        elif name not in function.takes and value is not None:
            takers = [other for other, row in AGGREGATES.items() if name in row.takes]
            yield f"aggregate {aggregate.function} takes no {name}=", f"leave it out; {name}= is for {listed(takers)}"
    if aggregate.k is not None and (not _is_whole(aggregate.k) or not 1 <= aggregate.k <= MOST_KEPT):
        yield f"k is {aggregate.k!r}, expected a whole number from 1 to {MOST_KEPT:,}", "write k=5"
    if aggregate.q is not None and (
        isinstance(aggregate.q, bool) or not isinstance(aggregate.q, float | int) or not 0 < aggregate.q <= 1
    ):
        yield f"q is {aggregate.q!r}, expected a share above 0 and up to 1", "write q=0.95"
    if aggregate.by is not None and not function.can_be_keyed:
        able = [name for name, row in AGGREGATES.items() if row.can_be_keyed]
        yield f"aggregate {aggregate.function} cannot be grouped by a column", f"by= is for {listed(able)}"


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _expectation(
    expectation: object, known: Mapping[str, data_types.DataType | None] | None, feature: str | None = None
) -> Found:
    if not isinstance(expectation, RULES):
        where = "expectations" if feature is None else "expect"
        yield f"{where} holds {type(expectation).__name__}", 'write Expectation("positive", "amount > 0")'
        return
    rule: Rule = named(expectation, feature)  # type: ignore[arg-type]  # RULES are the members of Rule
    subject = f"expectation '{name_of(rule)}'"
    yield from ((f"expectation: {problem}", hint) for problem, hint in _name(rule.name))
    yield from _one_of("severity", rule.severity, SEVERITIES)
    columns = None if known is None else tuple(known)
    for label, text in sql_texts(rule):
        yield from _sql(f"{subject}{label}", text, columns, "the group's columns")
    faults = rule_faults(rule, known, in_feature=feature)
    yield from ((f"{subject}: {problem}", hint) for problem, hint in faults)


def _service(service: Service, definitions: Definitions) -> Found:
    yield from _name(service.name)
    yield from _version(service.version)
    yield from _plain_fields(service)
    yield from _tags(service.tags)
    if not _is_list(service.features):
        problem = f"features is {type(service.features).__name__}, expected a list"
        yield problem, 'write features=[group["feature"]]'
        return
    if not service.features:
        yield "has no features", 'write features=[group["feature"]]'
        return
    chosen: list[str] = []
    for item in service.features:
        if not isinstance(item, FeatureGroup | FeatureSelection | str):
            yield f"features holds {type(item).__name__}", 'each item is a group or group["feature", ...]'
    items = [item for item in service.features if isinstance(item, FeatureGroup | FeatureSelection | str)]
    for selection in Service("", items).selections:
        yield from _reference("group", selection.group, definitions.groups)
        group = _named(selection.group, definitions.groups)
        if selection.features is not None and not _is_list(selection.features):
            problem = f"features of group '{selection.group}' is {type(selection.features).__name__}, expected names"
            yield problem, 'write group["feature", ...]'
            continue
        if selection.features is not None and not selection.features:
            yield f"chooses no feature of group '{selection.group}'", "name some, or the group for all of them"
        if group is None or not _is_list(group.features):
            continue  # a fault already
        names = [feature.name for feature in group.features if isinstance(feature, Feature)]
        for name in selection.features or ():
            if name not in names:
                yield (
                    f"feature '{name}' is not in group '{group.name}' ({listed(names)})",
                    near_miss(name, names) + "name a feature of the group",
                )
        chosen += [f"{group.name}.{name}" for name in selection.features or names]
    yield from _repeated("feature", chosen)


# rules that several words share


def _name(name: object) -> Found:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        yield f"name {name!r} is not usable", "start with a letter; lower-case letters, digits and _, at most 63"


def _column_name(what: str, name: object) -> Found:
    if not isinstance(name, str) or not _COLUMN.fullmatch(name):
        yield (
            f"{what} name {name!r} is not usable as a column",
            "use letters, digits and _, not starting with a digit or _tidemark",
        )


def _plain_fields(definition: object) -> Found:
    """What the registry keeps as it was written has to be text, or True or False."""
    for field in (name for name in _TEXTS if hasattr(definition, name)):
        value = getattr(definition, field)
        if not isinstance(value, str) and not (field == "created_time" and value is None):
            yield f"{field} is {type(value).__name__}, expected text", f'write {field}="..."'
    for field in (name for name in _SWITCHES if hasattr(definition, name)):
        if not isinstance(getattr(definition, field), bool):
            value = getattr(definition, field)
            yield f"{field} is {type(value).__name__}, expected True or False", f"write {field}=True or leave it out"


def _one_of(what: str, value: object, allowed: Sequence[str]) -> Found:
    if value not in allowed:
        yield f"{what} {value!r} is not known", near_miss(str(value), allowed) + f"use one of {', '.join(allowed)}"


def _reference(what: str, value: object, known: Mapping[str, Any]) -> Found:
    """A definition or its name, which has to be one of the known."""
    name = value.name if isinstance(value, Entity | Source | FeatureGroup) else value
    if _named(name, known) is not None:
        return
    if isinstance(value, Entity | Source | FeatureGroup):
        hint = "give it a name of its own at the top level of a file, and use that name here"
        yield f"{what} '{name}' stands at the top level of no file", hint
    else:
        yield f"{what} '{name}' is not defined", near_miss(name, known) + f"known: {listed(known)}"


def _named(name: object, known: Mapping[str, Named]) -> Named | None:
    return known.get(name) if isinstance(name, str) else None


def _version(version: object) -> Found:
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        yield f"version {version!r} is not a version", "use a whole number from 1"


def _duration(what: str, value: object) -> Found:
    if value is None:
        return
    try:
        durations.microseconds(value)
    except durations.DurationFault as fault:
        yield f"{what}: {fault}", f'write {what}="90d", or leave it out for no limit'


def _tags(tags: object) -> Found:
    if not isinstance(tags, list | tuple) or not all(isinstance(tag, str) for tag in tags):
        yield f"tags is {tags!r}", 'write tags=["crm", "daily"]'


def _repeated(what: str, names: Iterable[str]) -> Found:
    """Spark does not tell `Total` from `total`, so neither may stand beside the other."""
    seen: set[str] = set()
    for name in names:
        if str(name).lower() in seen:
            yield f"{what} '{name}' is there twice", "keep one of the two"
        seen.add(str(name).lower())


def _known_column(what: str, column: str, known: Iterable[str], where: str) -> Found:
    if column not in known:
        yield f"{what} '{column}' is not in {where} ({listed(known)})", near_miss(column, known) + "name a column of it"


def _parsed(what: str, type_text: object) -> tuple[data_types.DataType | None, list[tuple[str, str]]]:
    try:
        return data_types.parse(type_text), []
    except data_types.TypeFault as fault:
        close = "" if "; write '" in str(fault) else near_miss(type_text, data_types.TYPES)
        return None, [(f"{what}: {fault}", close + f"known types: {', '.join(data_types.FEATURE_TYPES)}")]


def _sql(what: str, text: object, known: Sequence[str] | None, where: str) -> Found:
    if not isinstance(text, str):
        yield f"{what} is {type(text).__name__}", "write Spark SQL as text"
        return
    try:
        found = expressions.columns(text)
    except expressions.ExpressionFault as fault:
        yield f"{what}: {fault}", "correct the Spark SQL"
        return
    yield from window_faults(what, text)
    if known is None:
        return
    lower = {str(name).lower() for name in known}
    for column in found:
        if column.lower() not in lower:
            yield (
                f"{what} names '{column}', which is not in {where} ({listed(known)})",
                near_miss(column, known) + "name one of those",
            )


def _is_list(value: object) -> bool:
    return isinstance(value, list | tuple)
