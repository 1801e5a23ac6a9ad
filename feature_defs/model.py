"""The words users write: entity, source, feature, aggregate, feature group, service.

A definition is a frozen dataclass that only holds what was written. Nothing is checked here, so that `checks` can name
every fault of a folder at once; `entity=` and `source=` take the object or its name.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from feature_defs import durations
from feature_defs.cleaning import Scaled, Step
from feature_defs.rules import Rule, named

OFFLINE_FORMATS = ("delta", "parquet")
SOURCE_FORMATS = ("delta", "parquet", "csv", "json", "jdbc")
GROUP_FORMAT = "group"  # of the source that a feature group is to the groups made from it
STATUSES = ("active", "deprecated")
FEATURE_KINDS = ("numerical", "categorical")
SEVERITIES = ("warn", "quarantine", "stop")
EVENT_TIME = "event_time"
CREATED_TIME = "created_time"
HIDDEN = "_tidemark_"  # what a column of ours begins with in an offline table; no column of a user does
REJECTED = HIDDEN + "rejected"  # why a row is in the quarantine, null for a good one


@dataclass(frozen=True)
class Location:
    """Where a definition was written, for messages."""

    file: str = ""
    line: int = 0


def _caller() -> Location:
    """The first frame outside this module's package: the line of a definition file."""
    frame = sys._getframe(1)  # noqa: SLF001 - the documented way; inspect.stack() reads source files
    while frame.f_back and frame.f_code.co_filename in (__file__, "<string>"):  # "<string>": a generated __init__
        frame = frame.f_back
    return Location(frame.f_code.co_filename, frame.f_lineno)


def _located() -> Any:
    return field(default_factory=_caller, compare=False, repr=False, kw_only=True)


@dataclass(frozen=True)
class Entity:
    """A named join key of one or more typed columns."""

    name: str
    keys: Mapping[str, str]
    description: str = field(default="", kw_only=True)
    at: Location = _located()


@dataclass(frozen=True)
class Source:
    """Where raw rows come from. `schema` maps columns to types; csv and json must have one.

    Rows lie at a `path` (lake://NAME/path, or jdbc://DATABASE/table), or are made from `inputs`, other sources and
    feature groups, by `sql` that names them in braces or by a `transform` that takes a DataFrame for each. With
    `multi_line` a row of csv may go on in the next line, within quotes.
    """

    name: str
    path: str = field(default="", kw_only=True)
    event_time: str = field(kw_only=True)
    format: str = field(default="delta", kw_only=True)
    created_time: str | None = field(default=None, kw_only=True)
    filter: str | None = field(default=None, kw_only=True)
    schema: Mapping[str, str] | None = field(default=None, kw_only=True)
    description: str = field(default="", kw_only=True)
    inputs: Sequence[Source | FeatureGroup | str] = field(default=(), kw_only=True)
    sql: str | None = field(default=None, kw_only=True)
    transform: Callable[..., Any] | TransformReference | None = field(default=None, kw_only=True)
    multi_line: bool = field(default=False, kw_only=True)
    at: Location = _located()

    @property
    def input_names(self) -> tuple[str, ...]:
        return tuple(item if isinstance(item, str) else item.name for item in self.inputs)


@dataclass(frozen=True)
class Aggregate:
    """A function over an entity's rows in (t - window, t]; no window means its whole life. `where` picks rows.

    `by` groups by a second column into a map. `k` is how many (last_k, top_k), `q` which quantile (0 to 1).
    """

    function: str
    column: str | None = None
    window: str | None = field(default=None, kw_only=True)
    where: str | None = field(default=None, kw_only=True)
    by: str | None = field(default=None, kw_only=True)
    k: int | None = field(default=None, kw_only=True)
    q: float | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class Feature:
    """One named, typed column: an Aggregate, a Spark SQL expression, a scaled or encoded column (see `cleaning`),
    or with none of them the source's column of that name.

    `kind` is numerical or categorical; left out, it follows from the type.
    """

    name: str
    type: str
    expression: str | Aggregate | Scaled | None = None
    kind: str | None = field(default=None, kw_only=True)
    description: str = field(default="", kw_only=True)
    tags: Sequence[str] = field(default=(), kw_only=True)
    pii: bool = field(default=False, kw_only=True)
    allowed_values: Sequence[Any] = field(default=(), kw_only=True)
    expect: Sequence[Rule] = field(default=(), kw_only=True)
    at: Location = _located()


@dataclass(frozen=True)
class TransformReference:
    """A group's transform as the registry keeps it: where it is written and a digest of all it is made of."""

    file: str
    function: str
    digest: str


@dataclass(frozen=True)
class FeatureGroup:
    """Entity + source -> one offline table. The source may be another group: its offline table is read.

    `every` cuts time on a grid: one row per entity and grid point, its value computed over (t - window, t]. Without it
    there is a row at every event. `transform`, a DataFrame -> DataFrame function, runs on the source's rows first.
    `clean` then changes their columns in order; what it or a feature learns from data is fitted on `fit`, two times.
    A `status` left out is what the registry says: a deprecated group stays so until the file says "active".
    """

    name: str
    entity: Entity | str = field(kw_only=True)
    source: Source | FeatureGroup | str = field(kw_only=True)
    features: Sequence[Feature] = field(kw_only=True)
    every: str | None = field(default=None, kw_only=True)
    ttl: str | None = field(default=None, kw_only=True)
    offline: str = field(default="delta", kw_only=True)
    online: bool = field(default=False, kw_only=True)
    version: int = field(default=1, kw_only=True)
    owner: str = field(default="", kw_only=True)
    description: str = field(default="", kw_only=True)
    tags: Sequence[str] = field(default=(), kw_only=True)
    status: str | None = field(default=None, kw_only=True)
    expectations: Sequence[Rule] = field(default=(), kw_only=True)
    skip_nulls: bool = field(default=False, kw_only=True)
    transform: Callable[..., Any] | TransformReference | None = field(default=None, kw_only=True)
    clean: Sequence[Step] = field(default=(), kw_only=True)
    fit: Sequence[str] | None = field(default=None, kw_only=True)
    at: Location = _located()

    def __getitem__(self, names: str | tuple[str, ...]) -> FeatureSelection:
        """`group["a", "b"]`: those features of the group, for a Service."""
        return FeatureSelection(self.name, (names,) if isinstance(names, str) else tuple(names))

    @property
    def ttl_us(self) -> int | None:
        """Its ttl in microseconds; None for no limit."""
        return durations.microseconds(self.ttl) if self.ttl else None

    @property
    def entity_name(self) -> str:
        return self.entity.name if isinstance(self.entity, Entity) else self.entity

    @property
    def source_name(self) -> str:
        return self.source.name if isinstance(self.source, Source | FeatureGroup) else self.source

    @property
    def is_deprecated(self) -> bool:
        return self.status == "deprecated"

    @property
    def aggregates(self) -> tuple[Feature, ...]:
        features = (item for item in self.features if isinstance(item, Feature))
        return tuple(feature for feature in features if isinstance(feature.expression, Aggregate))

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The group's expectations and those of its features, each with its name and column."""
        own = (named(rule) for rule in self.expectations)
        return (*own, *(named(rule, feature.name) for feature in self.features for rule in feature.expect))

    def feature(self, name: str) -> Feature:
        return next(feature for feature in self.features if feature.name == name)


@dataclass(frozen=True)
class FeatureSelection:
    """Some features of a group by name; None stands for all of them."""

    group: str
    features: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Service:
    """The features of several groups that one model uses. Its version rises when what the model receives changes."""

    name: str
    features: Sequence[FeatureGroup | FeatureSelection | str]
    version: int = field(default=1, kw_only=True)
    owner: str = field(default="", kw_only=True)
    description: str = field(default="", kw_only=True)
    tags: Sequence[str] = field(default=(), kw_only=True)
    at: Location = _located()

    @property
    def selections(self) -> tuple[FeatureSelection, ...]:
        return tuple(_selection(item) for item in self.features)


def _selection(item: FeatureGroup | FeatureSelection | str) -> FeatureSelection:
    match item:
        case FeatureGroup():
            return FeatureSelection(item.name)
        case FeatureSelection():
            return item
        case _:
            return FeatureSelection(item)


def group_as_source(group: FeatureGroup, entity: Entity) -> Source:
    """A group's offline table as the groups made from it see it: keys, the two clocks, features."""
    features = {feature.name: feature.type for feature in group.features}
    schema = {**entity.keys, EVENT_TIME: "timestamp", CREATED_TIME: "timestamp", **features}
    return Source(
        group.name, format=GROUP_FORMAT, event_time=EVENT_TIME, created_time=CREATED_TIME, schema=schema, at=group.at
    )


Definition = Entity | Source | FeatureGroup | Service
WORDS: tuple[type, ...] = (Entity, Source, FeatureGroup, Service)


@dataclass(frozen=True)
class Definitions:
    """A checked set of definitions, by name. Groups and services refer to others by name."""

    entities: Mapping[str, Entity]
    sources: Mapping[str, Source]
    groups: Mapping[str, FeatureGroup]
    services: Mapping[str, Service]

    def entity_of(self, group: FeatureGroup) -> Entity:
        return self.entities[group.entity_name]

    def source_of(self, group: FeatureGroup) -> Source:
        return self.source_named(group.source_name)

    def source_named(self, name: str) -> Source:
        """A source by its name, or a feature group as the source that it is to others."""
        if name in self.sources:
            return self.sources[name]
        group = self.groups[name]
        return group_as_source(group, self.entity_of(group))

    def features_of(self, service: Service) -> tuple[tuple[FeatureGroup, tuple[Feature, ...]], ...]:
        """The service's groups in its order, each with the chosen features."""
        chosen: dict[str, list[Feature]] = {}
        for selection in service.selections:
            group = self.groups[selection.group]
            names = selection.features or tuple(feature.name for feature in group.features)
            chosen.setdefault(group.name, []).extend(group.feature(name) for name in names)
        return tuple((self.groups[name], tuple(features)) for name, features in chosen.items())

    def services_using(self, group_name: str) -> tuple[Service, ...]:
        return tuple(
            service
            for service in self.services.values()
            if any(selection.group == group_name for selection in service.selections)
        )
