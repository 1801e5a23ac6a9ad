"""test: run the definitions' own tests, the cases in test_*.py files: literal rows in, the expected rows out.

    check the cases -> their rows through the same functions as compute and training-set -> hold what came out against
    what was expected

Neither a lake nor the registry nor the online store is touched: it is the written definitions that are tested.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import reduce
from pathlib import Path
from typing import Any

from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from connectors.file_store import LocalFileStore
from connectors.fitted_values import FittedValues
from connectors.spark_errors import data_errors
from feature_defs import data_types
from feature_defs.case_checks import REASON, PlannedCase, TypedTable, chosen, planned
from feature_defs.case_values import CellDifference, RowDifference, differences, of_json
from feature_defs.errors import EXIT_DEFINITIONS, EXIT_DONE, DataError, DefinitionError, TidemarkError, UsageError
from feature_defs.loading import load_cases, shown, shown_path
from feature_defs.model import Definitions, FeatureGroup
from feature_defs.rules import name_of
from jobs.fitting import cleaned_by
from jobs.place import Place
from jobs.report import counted, step
from jobs.transforms.case_rows import FEATURES, SOURCE, Clean, group_outcomes, newest, service_outcomes, source_rows
from jobs.transforms.expectations import STOPPED, rules_of
from jobs.transforms.features import grid_end
from jobs.transforms.rows import reason

END_OF_TIME = 253_402_300_799_000_000  # of year 9999: without now=, every row of a case lies in the past
_CASE = "case"


@dataclass(frozen=True)
class CaseResult:
    """One case. `differences` are rows by table (expected, rejected); `error` says why there are no rows to compare."""

    case: str
    file: str
    line: int
    subject: str
    ok: bool
    differences: dict[str, tuple[RowDifference, ...]]
    error: str

    def lines(self) -> list[str]:
        told = [f"  {'ok    ' if self.ok else 'FAILED'}  {self.case} ({self.subject})"]
        if not self.ok:
            told[0] += f"  {self.file}:{self.line}"
        told += [f"            {line}" for line in self.error.splitlines()]
        for part, found in self.differences.items():
            told += [f"            {part}: {line}" for difference in found for line in difference.text()]
        return told


@dataclass(frozen=True)
class CasesReport:
    definitions: str
    cases: tuple[CaseResult, ...]
    failed: int
    seconds: float
    exit_code: int

    def text(self) -> str:
        lines, file = [], ""
        for case in self.cases:
            if case.file != file:
                file = case.file
                lines.append(file)
            lines += case.lines()
        total = f"{counted(len(self.cases), 'case')}, {self.failed} failed, {self.seconds:.1f} s"
        return "\n".join([*lines, total])


def run_cases(place: Place, names: Sequence[str] = ()) -> CasesReport:
    """Run the cases of the profile's definitions, or those of these names; DefinitionError holds all their faults."""
    started = time.monotonic()
    definitions = place.written()
    cases = tuple(chosen(_cases(place, definitions), names))
    with step(f"test {counted(len(cases), 'case')}"):
        results = _run(place.spark, cases, definitions)
    failed = sum(not result.ok for result in results)
    return CasesReport(
        definitions=place.settings.definitions,
        cases=results,
        failed=failed,
        seconds=round(time.monotonic() - started, 3),
        exit_code=EXIT_DEFINITIONS if failed else EXIT_DONE,
    )


def _cases(place: Place, definitions: Definitions) -> tuple[PlannedCase, ...]:
    folder = Path(place.settings.definitions)
    named, faults = load_cases(folder)
    cases, found = planned(named, definitions)
    if faults or found:
        raise DefinitionError([shown(fault) for fault in (*faults, *found)], "Tests", "test")
    if not cases:
        hint = "write Case(...) in a test_NAME.py beside the definitions: docs/testing-definitions.md"
        raise UsageError("Tests", f"no case in {shown_path(folder)}", hint=hint)
    return cases


# one job for all cases, and one a case only when that fails


def _run(spark: SparkSession, cases: Sequence[PlannedCase], definitions: Definitions) -> tuple[CaseResult, ...]:
    with tempfile.TemporaryDirectory() as folder:  # what a case fits is its own
        return _run_in(spark, cases, definitions, folder)


def _run_in(
    spark: SparkSession, cases: Sequence[PlannedCase], definitions: Definitions, folder: str
) -> tuple[CaseResult, ...]:
    prepared: dict[int, list[DataFrame]] = {}
    errors: dict[int, str] = {}
    for number, case in enumerate(cases):
        try:
            prepared[number] = [source_rows(spark, part, definitions) for part in case.parts]
        except TidemarkError as error:  # noqa: PERF203 - one case's fault must not hide the others'
            errors[number] = str(error)
    grids = {
        (number, i): newest(frame, _now(cases[number]))
        for number, frames in prepared.items()
        for i, frame in enumerate(frames)
        if cases[number].parts[i].group.every
    }
    ends, grid_errors = _collected(cases, {key: frame.select("newest") for key, frame in grids.items()})
    outcomes = {}
    for number, frames in prepared.items():
        case = cases[number]
        untils = [_until(case, i, ends.get((number, i))) for i in range(len(frames))]
        failed = [text for (n, _), text in grid_errors.items() if n == number]
        clean = _cleaning(definitions, f"{folder}/{number}")
        try:
            if failed:
                errors[number] = failed[0]
            elif case.plan:
                outcomes[number, 0] = service_outcomes(spark, case, frames, definitions, untils, clean)
            else:
                outcomes[number, 0] = group_outcomes(frames[0], case, definitions, clean, until_us=untils[0])
        except TidemarkError as error:
            errors[number] = str(error)
    found, run_errors = _collected(cases, outcomes)
    errors.update({number: text for (number, _), text in run_errors.items()})
    return tuple(_result(case, errors.get(number, ""), found.get((number, 0), [])) for number, case in enumerate(cases))


def _cleaning(definitions: Definitions, folder: str) -> Clean:
    """What a group's cleaning does to the rows of a case: it fits on them."""

    def clean(rows: DataFrame, group: FeatureGroup) -> tuple[DataFrame, FeatureGroup]:
        store = FittedValues(LocalFileStore(), f"file:{folder}/{group.name}")
        about = {"fingerprint": "", "run": "test"}
        found = cleaned_by(store, definitions, group, rows, about=about, now=END_OF_TIME)
        return found.rows, found.group

    return clean


def _now(case: PlannedCase) -> int:
    return END_OF_TIME if case.now_us is None else case.now_us


def _until(case: PlannedCase, part: int, found: list[Any] | None) -> int:
    """As compute closes a grid: with the newest row that is not after now."""
    every = case.parts[part].group.every
    if not every:
        return _now(case)
    latest = found[0]["newest"] if found else None
    return grid_end(_now(case) if latest is None else latest, _now(case), every)


_Key = tuple[int, int]


def _collected(
    cases: Sequence[PlannedCase], frames: dict[_Key, DataFrame]
) -> tuple[dict[_Key, list[Any]], dict[_Key, str]]:
    """The rows of each frame, from one job; when that fails, from one each, so that only those at fault fail."""
    if not frames:
        return {}, {}
    marks = {key: F.lit(f"{key[0]}.{key[1]}").alias(_CASE) for key in frames}
    found: dict[_Key, list[Any]] = {key: [] for key in frames}
    try:
        rows = reduce(DataFrame.unionByName, (frame.select("*", marks[key]) for key, frame in frames.items())).collect()
    except Exception:  # noqa: BLE001 - whatever it is, running them one by one says whose it is
        return _one_by_one(cases, frames)
    for row in rows:
        number, part = row[_CASE].split(".")
        found[int(number), int(part)].append(row)
    return found, {}


def _one_by_one(
    cases: Sequence[PlannedCase], frames: dict[_Key, DataFrame]
) -> tuple[dict[_Key, list[Any]], dict[_Key, str]]:
    found: dict[_Key, list[Any]] = {}
    errors: dict[_Key, str] = {}
    for key, frame in frames.items():
        subject = f"Case '{cases[key[0]].name}'"
        try:
            with data_errors(subject):
                found[key] = frame.collect()
        except TidemarkError as error:
            errors[key] = str(error)
        except AnalysisException as error:
            errors[key] = str(DataError(subject, reason(error), hint="correct the definition"))
        except Exception as error:
            if STOPPED not in str(error):
                raise
            rule = str(error).split(STOPPED, 1)[1].split("\n")[0].split(" SQLSTATE")[0].strip(" '\"")
            errors[key] = f"expectation '{rule}' of severity stop is broken"
    return found, errors


# what came out against what was expected


def _result(case: PlannedCase, error: str, found: list[Any]) -> CaseResult:
    told: dict[str, tuple[RowDifference, ...]] = {}
    if not error:
        stopped = _stopped(case, found)
        told["expected"] = _expected(case, [] if stopped else found)
        told["rejected"] = _rejected(case, found)
        told["broken"] = _broken(case, found, stopped)
    told = {part: rows for part, rows in told.items() if rows}
    return CaseResult(
        case=case.name,
        file=shown_path(Path(case.file)),
        line=case.line,
        subject=case.subject,
        ok=not error and not told,
        differences=told,
        error=error,
    )


def _rule_counts(case: PlannedCase, found: list[Any]) -> dict[str, int]:
    rules = [] if case.plan else rules_of(case.parts[0].group)
    rows = [row for row in found if row["kind"] == FEATURES]
    return {name_of(rule): sum(row["rules"][i] for row in rows) for i, rule in enumerate(rules)}


def _stopped(case: PlannedCase, found: list[Any]) -> list[str]:
    """Stop rules that are broken: the job fails and the table gets no row."""
    counts = _rule_counts(case, found)
    rules = [] if case.plan else rules_of(case.parts[0].group)
    return [name_of(rule) for rule in rules if rule.severity == "stop" and counts[name_of(rule)]]


def _expected(case: PlannedCase, found: list[Any]) -> tuple[RowDifference, ...]:
    rows = [row for row in found if row["kind"] == FEATURES and row["reason"] is None]
    return () if case.expected is None else _differences(case, case.expected, rows)


def _rejected(case: PlannedCase, found: list[Any]) -> tuple[RowDifference, ...]:
    """A case that says nothing of rejected rows expects none."""
    if case.plan:
        return ()
    rows = [row for row in found if row["kind"] == SOURCE or row["reason"] is not None]
    nothing = TypedTable({REASON: data_types.parse("string")}, ())
    return _differences(case, case.rejected or nothing, rows)


def _differences(case: PlannedCase, table: TypedTable, found: list[Any]) -> tuple[RowDifference, ...]:
    rows = [
        {**_values(table, row["row"]), **({REASON: row["reason"]} if REASON in table.types else {})} for row in found
    ]
    keys = [key for key in case.keys if key in table.types]
    return differences(table.as_rows(), rows, types=table.types, keys=keys, tolerance=case.tolerance)


def _values(table: TypedTable, text: str) -> dict[str, Any]:
    plain = json.loads(text, parse_float=Decimal)
    return {name: _value(kind, plain.get(name)) for name, kind in table.types.items()}


def _value(kind: data_types.DataType, plain: Any) -> Any:
    try:
        return of_json(kind, plain)
    except (ValueError, TypeError, KeyError, ArithmeticError):  # a transform made another type of a source's column
        return plain


def _broken(case: PlannedCase, found: list[Any], stopped: Sequence[str]) -> tuple[RowDifference, ...]:
    counts = _rule_counts(case, found)
    expected = {name: (case.broken or {}).get(name, 0) for name in counts}
    if case.broken is None:  # only what stops the job is told unasked
        expected = dict.fromkeys(stopped, 0)
    return tuple(
        RowDifference("differs", f"rule '{name}'", (CellDifference("rows that break it", f"{n}", f"{counts[name]}"),))
        for name, n in expected.items()
        if counts[name] != n
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="a case, a group or service, or a test file (default: all cases)"
    )


def run(place: Place, args: argparse.Namespace) -> CasesReport:
    return run_cases(place, args.names)


if __name__ == "__main__":
    from jobs.command_line import run_verb

    run_verb("test")
