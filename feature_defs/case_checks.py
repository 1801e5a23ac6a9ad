"""Cases of test files -> planned cases with typed rows, or every fault in them, without Spark.

NamedCase, Definitions -> planned -> (PlannedCase, ...) and faults, each at its line of the test file
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from feature_defs import data_types
from feature_defs.case_values import CellFault, time_us, value
from feature_defs.data_types import DataType
from feature_defs.errors import Fault, UsageError, listed, near_miss
from feature_defs.join_plan import JoinPlan, TimeRules, plan_join
from feature_defs.model import (
    CREATED_TIME,
    EVENT_TIME,
    Definitions,
    FeatureGroup,
    FeatureSelection,
    Service,
    Source,
)
from feature_defs.pipe_tables import PipeTable, parse
from feature_defs.rules import name_of
from feature_defs.testing import NamedCase

REASON = "reason"
_TEXT, _TIME = DataType("string"), DataType("timestamp")
_LOOSE = ("csv", "json")  # a cell of such a file may hold anything: a row that does not fit goes to the quarantine


@dataclass(frozen=True)
class TypedTable:
    """Rows of values under typed columns. `unreadable` numbers the rows that hold a cell of another type."""

    types: Mapping[str, DataType]
    rows: tuple[tuple[Any, ...], ...]
    unreadable: tuple[int, ...] = ()

    def as_rows(self) -> list[dict[str, Any]]:
        return [dict(zip(self.types, row, strict=True)) for row in self.rows]


@dataclass(frozen=True)
class GroupRows:
    """A group and the rows of its source."""

    group: FeatureGroup
    source: Source
    rows: TypedTable


@dataclass(frozen=True)
class PlannedCase:
    """A case that can run: a group's, or with a `plan` and a spine a service's."""

    name: str
    file: str
    line: int
    subject: str
    parts: tuple[GroupRows, ...]
    plan: JoinPlan | None
    spine: TypedTable | None
    expected: TypedTable | None
    rejected: TypedTable | None
    broken: Mapping[str, int] | None
    keys: tuple[str, ...]
    now_us: int | None
    since_us: int | None
    tolerance: float

    @property
    def id(self) -> str:
        return f"{Path(self.file).name}:{self.name}"


class _Faulty(Exception):
    """What follows in a case makes no sense without what is at fault."""


def planned(cases: Sequence[NamedCase], definitions: Definitions) -> tuple[tuple[PlannedCase, ...], tuple[Fault, ...]]:
    """The cases that are sound, and every fault of the others."""
    found, faults = [], []
    for named in cases:
        reader = _Reader(named, definitions)
        try:
            plan = reader.plan()
        except _Faulty:
            plan = None
        faults += reader.faults
        if plan is not None and not reader.faults:
            found.append(plan)
    return tuple(found), tuple(faults)


class _Reader:
    """Reads one case and gathers what is wrong with it."""

    def __init__(self, named: NamedCase, definitions: Definitions) -> None:
        self.named, self.case, self.definitions = named, named.case, definitions
        self.faults: list[Fault] = []

    def plan(self) -> PlannedCase:
        name = self.case.subject_name
        self._check_types()
        if name in self.definitions.groups:
            return self._of_group(self.definitions.groups[name])
        if name in self.definitions.services:
            return self._of_service(self.definitions.services[name])
        known = [*self.definitions.groups, *self.definitions.services]
        self._fault(
            f"'{name}' is no group and no service ({listed(known)})", near_miss(name, known) + "name one of them"
        )
        raise _Faulty

    # a group

    def _of_group(self, group: FeatureGroup) -> PlannedCase:
        case = self.case
        self._refuse("a group's case", spine=case.spine, sources=case.sources or None)
        if case.source is None:
            self._fault(f"has no source= rows of '{group.source_name}'", 'write source="""..."""')
            raise _Faulty
        if case.expected is None and case.rejected is None and case.broken is None:
            self._fault("expects nothing", 'write expected="""...""", rejected="""...""" or broken={"rule": 1}')
        entity, source = self.definitions.entity_of(group), self.definitions.source_of(group)
        outcome = _types_of(group, self.definitions)
        of_source = self._source_types(source, [group])
        rules = [name_of(rule) for rule in group.rules]
        rules += [f"{feature.name}_allowed_values" for feature in group.features if feature.allowed_values]
        for rule in case.broken or {}:
            if rule not in rules:
                problem = f"broken: '{rule}' is no rule of group '{group.name}' ({listed(rules)})"
                self._fault(problem, near_miss(rule, rules) + "name one of them")
        where = f"group '{group.name}'"
        rejected_types = {REASON: _TEXT, **outcome, **of_source}
        return self._planned(
            group.name,
            parts=(GroupRows(group, source, self._source_rows(source, case.source, [group])),),
            expected=self._table("expected", case.expected, outcome, where),
            rejected=self._table("rejected", case.rejected, rejected_types, f"{where} or its source"),
            keys=(*entity.keys, EVENT_TIME),
        )

    # a service

    def _of_service(self, service: Service) -> PlannedCase:
        case = self.case
        self._refuse(
            "a service's case", source=case.source, rejected=case.rejected, broken=case.broken, since=case.since
        )
        if case.spine is None or case.expected is None or not case.sources:
            self._fault("needs spine=, sources= and expected=", 'write sources={"purchases": """..."""}')
            raise _Faulty
        chosen = self.definitions.features_of(service)
        features = {feature.name: data_types.parse(feature.type) for _, some in chosen for feature in some}
        entities = [self.definitions.entity_of(group) for group, _ in chosen]
        keys = {key: data_types.parse(kind) for entity in entities for key, kind in entity.keys.items()}
        spine_columns = parse(case.spine).columns
        others = {name: self._declared(name) or _TEXT for name in spine_columns}
        spine = self._table("spine", case.spine, {**others, **keys, EVENT_TIME: _TIME}, "the spine")
        expected = self._table(
            "expected", case.expected, {**features, **others, **keys, EVENT_TIME: _TIME}, f"service '{service.name}'"
        )
        if spine is None or expected is None:
            raise _Faulty
        kept = [(group, [f for f in some if f.name in expected.types]) for group, some in chosen]
        kept = [(group, some) for group, some in kept if some]
        needed = {group.source_name: [g for g, _ in kept if g.source_name == group.source_name] for group, _ in kept}
        for name in case.sources:
            if name not in needed:
                problem = f"sources: '{name}' gives none of the columns expected (sources of those: {listed(needed)})"
                self._fault(problem, near_miss(name, needed) + "correct its name, or leave it out")
        for name in needed:
            if name not in case.sources:
                self._fault(f"sources: rows of '{name}' are missing", f'write sources={{"{name}": """..."""}}')
        self._missing(
            "spine", [*dict.fromkeys(k for g, _ in kept for k in self.definitions.entity_of(g).keys), EVENT_TIME], spine
        )
        if self.faults:
            raise _Faulty
        rows = {
            name: self._source_rows(self.definitions.sources[name], case.sources[name], groups)
            for name, groups in needed.items()
        }
        selections = [FeatureSelection(group.name, tuple(f.name for f in some)) for group, some in kept]
        rules = TimeRules(strict=case.strict, known_by=case.known_by)
        try:
            plan = plan_join(
                replace(service, features=selections), self.definitions, spine_columns=spine_columns, rules=rules
            )
        except UsageError as error:
            self._fault(f"{error.subject}: {error.problem}", error.hint)
            raise _Faulty from error
        return self._planned(
            service.name,
            parts=tuple(GroupRows(g, self.definitions.source_of(g), rows[g.source_name]) for g, _ in kept),
            plan=plan,
            spine=spine,
            expected=expected,
            keys=tuple(name for name in spine_columns if name in expected.types),
        )

    def _planned(self, subject: str, **parts: Any) -> PlannedCase:
        case, named = self.case, self.named
        rest = {"plan": None, "spine": None, "rejected": None, **parts}
        return PlannedCase(
            name=named.name,
            file=named.file,
            line=case.at.line,
            subject=subject,
            broken=case.broken,
            now_us=self._time("now", case.now),
            since_us=self._time("since", case.since),
            tolerance=case.tolerance,
            **rest,
        )

    # tables

    def _source_rows(self, source: Source, text: str, groups: Sequence[FeatureGroup]) -> TypedTable:
        where = f"source '{source.name}'"
        found = self._table("source", text, self._source_types(source, groups), where, loose=source.format in _LOOSE)
        if found is None:
            return TypedTable({}, ())  # told; what else is wrong with the case is to be told too
        if source.schema is not None or not any(group.transform for group in groups):
            self._missing("source", [source.event_time], found)
        return found

    def _source_types(self, source: Source, groups: Sequence[FeatureGroup]) -> dict[str, DataType]:
        """Declared by the source; else by the case, by what the column is to a group, or not known."""
        if source.schema is not None:
            return {name: data_types.parse(kind) for name, kind in source.schema.items()}
        types: dict[str, DataType] = {}
        for group in groups:
            plain = [feature for feature in group.features if feature.expression is None]
            types.update({feature.name: data_types.parse(feature.type) for feature in plain})
            types.update(_keys_of(group, self.definitions))
        clocks = [name for name in (source.event_time, source.created_time) if name]
        declared = {name: kind for name in self.case.schema if (kind := self._declared(name))}
        return {**types, **dict.fromkeys(clocks, _TIME), **declared}

    def _table(
        self, part: str, text: str | None, types: Mapping[str, DataType], where: str, *, loose: bool = False
    ) -> TypedTable | None:
        """A table's values; None when it is not given or at fault."""
        if text is None:
            return None
        if not isinstance(text, str):
            self._fault(f"{part} is {type(text).__name__}, expected a text", f'write {part}="""a | b"""')
            return None
        table, before = parse(text), len(self.faults)
        self._check_columns(part, text, table, types, where)
        for number in table.ragged:
            problem = f"{part}: a row has {len(table.rows[number])} cells, its table {len(table.columns)} columns"
            self._fault(problem, "give each column a cell; null is null", text, table.lines[number])
        if len(self.faults) > before:
            return None
        kinds = {name: types[name] for name in table.columns}
        rows, unreadable = [], []
        for number, cells in enumerate(table.rows):
            read = [_read(kind, cell) for kind, cell in zip(kinds.values(), cells, strict=True)]
            wrong = [(name, hint) for name, (_, hint) in zip(kinds, read, strict=True) if hint]
            rows.append(tuple(found for found, _ in read))
            if wrong and loose:
                unreadable.append(number)
                continue
            for name, hint in wrong:
                problem = f"{part}: a cell of column '{name}' is no {kinds[name].spark}"
                self._fault(problem, hint, text, table.lines[number])
        return TypedTable(kinds, tuple(rows), tuple(unreadable))

    def _check_columns(self, part: str, text: str, table: PipeTable, types: Mapping[str, DataType], where: str) -> None:
        line = next((number for number, said in enumerate(text.splitlines()) if said.strip()), 0)
        if not table.columns:
            self._fault(f"{part} has no columns", "write the names of its columns in the first line", text, line)
        for name in table.columns:
            if name in types:
                continue
            untyped = part == "source" and where.startswith("source") and not self._has_schema(where)
            if untyped:
                hint = f'write schema={{"{name}": "double"}} in the case: the source declares none'
                self._fault(f"{part}: the type of column '{name}' is not known", hint, text, line)
            else:
                problem = f"{part}: '{name}' is no column of {where} ({listed(types)})"
                self._fault(problem, near_miss(name, types) + "name one of those", text, line)
        for name in {name for name in table.columns if table.columns.count(name) > 1}:
            self._fault(f"{part}: column '{name}' is there twice", "leave one out", text, line)

    def _has_schema(self, where: str) -> bool:
        return self.definitions.sources[where.split("'")[1]].schema is not None

    def _missing(self, part: str, needed: Sequence[str], table: TypedTable) -> None:
        for name in needed:
            if name not in table.types:
                self._fault(f"{part}: column '{name}' is missing ({listed(table.types)})", "add it; a cell may be null")

    def _declared(self, name: str) -> DataType | None:
        """The type that the case itself declares."""
        if name not in self.case.schema:
            return None
        try:
            return data_types.parse(self.case.schema[name])
        except data_types.TypeFault as error:
            self._fault(f"schema: column '{name}': {error}", f"known types: {', '.join(data_types.TYPES)}")
            raise _Faulty from error

    # the rest of a case

    def _check_types(self) -> None:
        for name in self.case.schema:
            self._declared(name)

    def _time(self, option: str, text: str | None) -> int | None:
        if text is None:
            return None
        try:
            return time_us(text)
        except (CellFault, TypeError):
            hint = f'write {option}="2026-01-31" or {option}="2026-01-31 12:00:00"'
            self._fault(f"{option}={text!r} is no time", hint)
            return None

    def _refuse(self, whose: str, **given: object) -> None:
        for name, what in given.items():
            if what is not None:
                self._fault(f"{name}= means nothing in {whose}", "leave it out")

    def _fault(self, problem: str, hint: str, text: str | None = None, line: int = 0) -> None:
        at = self.case.at
        number = at.line if text is None else _line_of(at.file, at.line, text, line)
        self.faults.append(Fault(at.file, number, f"Case '{self.named.name}'", problem, hint))


def _read(kind: DataType, cell: str | None) -> tuple[Any, str]:
    """A cell's value, or null and how it should be written."""
    try:
        return value(kind, cell), ""
    except CellFault as error:
        return None, str(error)


def _line_of(file: str, start: int, text: str, line: int) -> int:
    """The line of a test file on which a line of a case's text stands; a text that was put together is the case's."""
    written = Path(file).read_text(encoding="utf-8") if Path(file).is_file() else ""
    begin = sum(len(some) for some in written.splitlines(keepends=True)[: start - 1])
    found = written.find(text, begin)
    return start if found < 0 else written.count("\n", 0, found) + 1 + line


def _keys_of(group: FeatureGroup, definitions: Definitions) -> dict[str, DataType]:
    return {key: data_types.parse(kind) for key, kind in definitions.entity_of(group).keys.items()}


def _types_of(group: FeatureGroup, definitions: Definitions) -> dict[str, DataType]:
    """The columns of a group's table."""
    features = {feature.name: data_types.parse(feature.type) for feature in group.features}
    return {**_keys_of(group, definitions), EVENT_TIME: _TIME, CREATED_TIME: _TIME, **features}


def chosen(cases: Sequence[PlannedCase], names: Sequence[str]) -> Iterator[PlannedCase]:
    """The cases of these names: of a case, a group or service, or a test file."""
    for name in names:
        known = {word for case in cases for word in words_of(case)}
        if name not in known:
            hint = near_miss(name, known) + f"cases: {listed(case.name for case in cases)}"
            raise UsageError("Tests", f"'{name}' is no case, group, service or test file", hint=hint)
    for case in cases:
        if not names or words_of(case) & set(names):
            yield case


def words_of(case: PlannedCase) -> set[str]:
    """What a case can be asked for by."""
    file = Path(case.file)
    return {case.name, case.id, case.subject, file.name, file.stem}
