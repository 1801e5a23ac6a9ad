"""What a run found about each rule: judged from a few numbers, kept as one JSON document a run, read without Spark.

    lake://features/GROUP/vN_results/RUN.json

A run that a stop rule ended has its document too: its table version is null.
"""

from __future__ import annotations

import datetime
import decimal
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from connectors.file_store import open_file_store
from connectors.lakes import joined
from feature_defs import durations
from feature_defs.model import FeatureGroup
from feature_defs.rules import (
    Freshness,
    InRange,
    RowCount,
    Rule,
    SumsMatch,
    TableRule,
    columns_of,
    kind_of,
    name_of,
)
from jobs.place import Place, time_of

FORMAT = 1
HELD, BROKEN, UNKNOWN = "held", "broken", "unknown"
Observed = Mapping[str, Any]


@dataclass(frozen=True)
class RuleResult:
    """One rule in one run. `broken` counts rows, and is 1 for a rule of the whole table that is broken.

    `observed` is what decided: least and greatest of a range, the newest event_time and its age, both sums.
    """

    name: str
    kind: str
    severity: str
    rows: int | None
    broken: int | None
    verdict: str
    observed: Mapping[str, Any]


@dataclass(frozen=True)
class RunResults:
    """All rules of one group in one run. `reasons` are those for which rows of the source were rejected."""

    run: str
    group: str
    version: int
    snapshot: int
    verb: str
    at: str
    now: str
    table_version: int | None
    rows: int | None
    rejected: int | None
    rules: tuple[RuleResult, ...]
    reasons: Mapping[str, int] = field(default_factory=dict)


def judged(rules: Sequence[Rule], measured: Observed, group: FeatureGroup, *, now_us: int) -> tuple[RuleResult, ...]:
    """Every rule from the measures of `transforms.expectations.measures`."""
    return tuple(_judged(rule, number, measured, group, now_us) for number, rule in enumerate(rules))


def _judged(rule: Rule, number: int, measured: Observed, group: FeatureGroup, now_us: int) -> RuleResult:
    about = (name_of(rule), kind_of(rule), rule.severity)
    if not isinstance(rule, TableRule):
        broken = measured[f"rule_{number}"] or 0  # the sum over no rows is null
        verdict = BROKEN if broken else HELD
        return RuleResult(*about, measured["rows"], broken, verdict, _extremes(rule, measured, group))
    kept = measured["rows"] - measured["rejected"]
    match rule:
        case RowCount():
            low, high = rule.at_least, rule.at_most
            held = (low is None or kept >= low) and (high is None or kept <= high)
            observed: dict[str, Any] = {"rows": kept}
        case Freshness():
            newest = measured[f"newest_{number}"]
            age = None if newest is None else now_us - newest
            held = age is not None and age <= durations.microseconds(rule.age)
            told = {"newest": _plain_time(newest), "age": _age(age)} if age is not None else {}
            observed = {"newest": None, "age": None, **told}
        case SumsMatch():
            sums = [measured[f"{side}_{number}"] or 0 for side in ("left", "right")]
            held = _differ_by(*sums) <= decimal.Decimal(str(rule.tolerance))
            observed = dict(zip(("left", "right"), map(_plain, sums), strict=True))
    return RuleResult(*about, kept, int(not held), HELD if held else BROKEN, observed)


def _differ_by(left: Any, right: Any) -> decimal.Decimal:
    """How far apart two sums are; sums that are no numbers differ by more than any tolerance."""
    if any(isinstance(value, float) and not math.isfinite(value) for value in (left, right)):
        return decimal.Decimal("Infinity")
    if isinstance(left, float) or isinstance(right, float):
        return decimal.Decimal(repr(abs(float(left) - float(right))))
    exact = decimal.Context(prec=80)
    return abs(exact.subtract(decimal.Decimal(left), decimal.Decimal(right)))


def _extremes(rule: Rule, measured: Observed, group: FeatureGroup) -> dict[str, Any]:
    """The least and greatest of a range's column; personal data is not told."""
    if not isinstance(rule, InRange):
        return {}
    column = columns_of(rule)[0].lower()
    if any(feature.pii and feature.name.lower() == column for feature in group.features):
        return {}
    is_time = any(f.name.lower() == column and f.type == "timestamp" for f in group.features) or column == "event_time"
    found = {side: measured[f"{side}_{column}"] for side in ("min", "max")}
    return {side: _plain_time(value) if is_time else _plain(value) for side, value in found.items()}


def _plain_time(microseconds: int | None) -> str | None:
    return None if microseconds is None else time_of(microseconds).isoformat()


def _plain(value: Any) -> Any:
    """A number as JSON has it; one that JSON has not, a date or a decimal, as text."""
    if value is None or isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return value.isoformat() if isinstance(value, datetime.date) else str(value)


def _age(microseconds: int) -> str:
    """`1d 2:03:04`: an age as people read it, to the second."""
    return str(datetime.timedelta(seconds=microseconds // 1_000_000)).replace(" days, ", "d ").replace(" day, ", "d ")


def unknown(rules: Sequence[Rule], stopped_by: str) -> tuple[RuleResult, ...]:
    """The rules of a run that ended inside the write: only the one that ended it is known."""
    return tuple(
        RuleResult(name, kind_of(rule), rule.severity, None, None, BROKEN if name == stopped_by else UNKNOWN, {})
        for rule in rules
        for name in [name_of(rule)]
    )


# documents


def results_uri(place: Place, group: FeatureGroup) -> str:
    return place.lakes.uri(place.files_path(group)) + "_results"


def keep(place: Place, group: FeatureGroup, results: RunResults) -> None:
    """Write the run's document; a run that had no rules has one too: it says that the run came to its end."""
    uri = results_uri(place, group)
    text = json.dumps({"format": FORMAT, **asdict(results)}, indent=1, ensure_ascii=False) + "\n"
    open_file_store(uri).create(joined(uri, f"{results.run}.json"), text.encode())


def ended(place: Place, group: FeatureGroup, run: str) -> bool:
    """Whether a run came to its end: it wrote its results, and so all before them."""
    uri = results_uri(place, group)
    return any(file.path == f"{run}.json" for file in open_file_store(uri).list_files(uri))


def kept(place: Place, group: FeatureGroup, most: int = 10) -> tuple[RunResults, ...]:
    """The newest documents of a group, newest first: a run's name begins with its time."""
    uri = results_uri(place, group)
    files = open_file_store(uri)
    names = sorted((file.path for file in files.list_files(uri) if file.path.endswith(".json")), reverse=True)
    return tuple(_read(json.loads(files.read(joined(uri, name)))) for name in names[:most])


def _read(plain: dict[str, Any]) -> RunResults:
    rules = tuple(RuleResult(**rule) for rule in plain.pop("rules"))
    plain.pop("format")
    return RunResults(**plain, rules=rules)


def lines_of(results: Sequence[RunResults]) -> list[tuple[Any, ...]]:
    """The newest run's rules, each with what it observed and how it went in this run and those before."""
    if not results:
        return []
    return [
        (rule.name, rule.kind, rule.severity, rule.rows, rule.broken, _observed(rule), _past(rule.name, results))
        for rule in results[0].rules
    ]


def _observed(rule: RuleResult) -> str:
    told = ", ".join(f"{name} {value}" for name, value in rule.observed.items() if value is not None)
    return told or ("" if rule.verdict != UNKNOWN else "not known: the run was stopped")


def _past(name: str, results: Sequence[RunResults]) -> str:
    found = [rule.verdict for run in results for rule in run.rules if rule.name == name]
    return ", ".join(found[:5])
