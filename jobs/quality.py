"""Feature rows with their rules -> the offline table, the quarantine and the run's results.

    checked rows -> (measured first, when a rule of the whole table may stop the run) -> table -> quarantine -> results

Each step names the run. A quarantine is valid when the table's newest version names its run, so a job that is killed
between two steps leaves nothing that counts twice; the results, written last, say that all of it is there.
"""

from __future__ import annotations

import contextlib
import datetime
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pyspark.sql import DataFrame, Observation
from pyspark.sql import functions as F

from connectors.lakes import joined
from connectors.offline_tables import Note
from connectors.sources import UNREADABLE
from connectors.table_maintenance import past_maintenance
from feature_defs.errors import DataError, LakeError
from feature_defs.model import HIDDEN, REJECTED, FeatureGroup
from feature_defs.rules import Matches, Rule, TableRule, name_of
from jobs.place import Place, now_us, time_of
from jobs.rule_results import BROKEN, RuleResult, RunResults, judged, keep, unknown
from jobs.transforms.expectations import STOPPED, checked, measures, rules_of, without_marks
from jobs.transforms.features import Features, table_rows
from jobs.transforms.rows import all_quoted

KEPT = "_tidemark_kept"
SOURCE, FEATURE = "source", "feature"  # what a quarantined row was when it was rejected
_JSON = {
    "timestampFormat": "yyyy-MM-dd'T'HH:mm:ss.SSSSSSXXX",  # Spark's own form ends at milliseconds
    "timestampNTZFormat": "yyyy-MM-dd'T'HH:mm:ss.SSSSSS",
    "timeZone": "UTC",
}


@dataclass(frozen=True)
class Written:
    """What came of one group's rows. `rows` are those of the table, `rejected` those that rules kept out of it."""

    version: int
    rows: int
    rejected: int
    results: tuple[RuleResult, ...]

    @property
    def broken_rules(self) -> dict[str, int]:
        return {result.name: result.broken or 0 for result in self.results}


def write_checked(
    place: Place,
    group: FeatureGroup,
    features: DataFrame,
    note: Note,
    *,
    now_us: int,
    commit: Callable[[DataFrame], int] | None = None,
) -> Written:
    """Write the checked rows that may be in the group's table, counting in the same pass.

    `commit` makes a version of them; without one they are the whole table.
    """
    rules, table = rules_of(group), place.table(group)
    taken = measures(features, rules, now_us=now_us)
    observed = Observation()
    with stops_told(place, group, note, now_us=now_us):
        if any(isinstance(rule, TableRule) and rule.severity == "stop" for rule in rules):
            # what a pass measures is known when it ends, and then Delta has committed: so it is measured before
            _stop_if_broken(judged(rules, features.agg(*taken).collect()[0].asDict(), group, now_us=now_us))
        laid = table_rows(without_marks(features.observe(observed, *taken)), group)
        version = past_maintenance(table, lambda: commit(laid) if commit else table.replace(laid, note))
    measured = observed.get
    found = judged(rules, measured, group, now_us=now_us)
    return Written(version, measured["rows"] - measured["rejected"], measured["rejected"], found)


def write_by_tasks(place: Place, group: FeatureGroup, made: Features, note: Note, *, now_us: int) -> Written | None:
    """The same where tasks can make and write all of the table; None where it is for Spark.

    Rules are held against the files before they are a version.
    """
    rules, table = rules_of(group), place.table(group)
    if made.kernel is None or any(rule.severity == "quarantine" for rule in rules):
        return None
    schema = made.rows.schema
    version = table.begin(schema)
    if version is None:
        return None
    try:
        files = made.kernel.written(version)
        measured: Mapping[str, Any] = {"rows": sum(file.rows for file in files), "rejected": 0}
        with stops_told(place, group, note, now_us=now_us):
            if rules:
                uris, spark = [joined(table.uri, file.path) for file in files], place.spark
                written = spark.read.schema(schema).parquet(*uris) if uris else spark.createDataFrame([], schema)
                rows = checked(written, rules)
                measured = rows.agg(*measures(rows, rules, now_us=now_us)).collect()[0].asDict()
            found = judged(rules, measured, group, now_us=now_us)
            _stop_if_broken(found)
    except BaseException:  # Ctrl-C too
        table.give_up(version)
        raise
    number = table.finish(version, files, schema, note)
    return Written(number, measured["rows"], 0, found)


def together(parts: Sequence[Written], rules: Sequence[Rule], *, version: int) -> Written:
    """What was written in several commits, as one: rows add up, a rule of the whole table is as the last found it."""
    if not parts:
        return Written(version, 0, 0, unknown(rules, ""))
    results = []
    for number, rule in enumerate(rules):
        found = [part.results[number] for part in parts]
        last = found[-1]
        if not isinstance(rule, TableRule):
            rows, broken = (sum(getattr(result, name) or 0 for result in found) for name in ("rows", "broken"))
            last = replace(last, rows=rows, broken=broken, verdict=BROKEN if broken else last.verdict)
        results.append(last)
    return Written(version, sum(part.rows for part in parts), sum(part.rejected for part in parts), tuple(results))


@contextlib.contextmanager
def stops_told(place: Place, group: FeatureGroup, note: Note, *, now_us: int) -> Iterator[None]:
    """A stop rule that is broken while checked rows are read becomes a DataError, and the run's results say so."""
    try:
        yield
    except Exception as error:
        stopped_by = error.rule if isinstance(error, _Stopped) else _rule_in(str(error))
        if stopped_by is None:
            raise _pattern_fault(rules_of(group), str(error)) or error from error
        results = error.results if isinstance(error, _Stopped) else unknown(rules_of(group), stopped_by)
        with contextlib.suppress(LakeError, FileExistsError):  # the broken rule is what has to be told
            keep(place, group, _results(group, note, results, now_us=now_us))
        problem = f"expectation '{stopped_by}' of severity stop is broken"
        hint = "correct the source, or the rule; the offline table is as it was"
        raise DataError(f"FeatureGroup '{group.name}'", problem, hint=hint) from error


def keep_results(
    place: Place,
    group: FeatureGroup,
    written: Written,
    note: Note,
    *,
    now_us: int,
    reasons: Mapping[str, int] | None = None,
) -> None:
    """The last step of a run: its results, which also say that its quarantine is complete."""
    results = _results(group, note, written.results, now_us=now_us, written=written)
    keep(place, group, replace(results, reasons=reasons or {}))


class _Stopped(Exception):
    """A rule of the whole table that ends the run."""

    def __init__(self, rule: str, results: tuple[RuleResult, ...]) -> None:
        super().__init__(rule)
        self.rule, self.results = rule, results


def _stop_if_broken(results: tuple[RuleResult, ...]) -> None:
    broken = next((result for result in results if result.severity == "stop" and result.verdict == BROKEN), None)
    if broken is not None:
        raise _Stopped(broken.name, results)


def _pattern_fault(rules: Sequence[Rule], text: str) -> DataError | None:
    """What Java says of a pattern that Python took for one; Spark hands it on without an error class."""
    said = re.search(r"PatternSyntaxException: (.+?)(?: near index \d+)?\s*$", text, re.MULTILINE)
    guilty = next((rule for rule in rules if isinstance(rule, Matches) and rule.pattern in text), None)
    if said is None or guilty is None:
        return None
    problem = f"its pattern is no regular expression of Java: {said[1]}"
    return DataError(f"Expectation '{name_of(guilty)}'", problem, hint="correct it; nothing was written")


def _rule_in(text: str) -> str | None:
    """The row rule whose raise_error ended a Spark job."""
    if STOPPED not in text:
        return None
    return text.split(STOPPED, 1)[1].split("\n", maxsplit=1)[0].split(" SQLSTATE", maxsplit=1)[0].strip(" '\"")


def _results(
    group: FeatureGroup,
    note: Note,
    results: tuple[RuleResult, ...],
    *,
    now_us: int,
    written: Written | None = None,
) -> RunResults:
    return RunResults(
        run=note["run"],
        group=group.name,
        version=group.version,
        snapshot=note["snapshot"],
        verb=note["verb"],
        at=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        now=time_of(now_us).isoformat(),
        table_version=written.version if written else None,
        rows=written.rows if written else None,
        rejected=written.rejected if written else None,
        rules=results,
    )


# the quarantine: reason, row (JSON), stage, run and time of every row that did not become one of the table


def rejected_rows(rows: DataFrame, stage: str, run: str) -> DataFrame:
    """The marked rows that may not go on, as the quarantine keeps them; one that was there before keeps its run."""
    names = [name for name in rows.columns if name == UNREADABLE or not name.startswith(HIDDEN)]
    values = {
        "row": F.to_json(F.struct(*all_quoted(names)), _JSON),
        "stage": F.lit(stage),
        "run": F.lit(run),
        "at": F.timestamp_micros(F.lit(now_us(None))),
    }
    before = {name: F.coalesce(F.col(f"{KEPT}.{name}"), value) for name, value in values.items()}
    told = before if KEPT in rows.columns else values
    bad = rows.where(F.col(REJECTED).isNotNull())
    return bad.select(F.col(REJECTED).alias("reason"), *(value.alias(name) for name, value in told.items()))


def kept_rows(quarantined: DataFrame, like: DataFrame) -> DataFrame:
    """Quarantined rows as they were, with the columns of `like` and, as `KEPT`, what the quarantine says of them."""
    parsed = quarantined.select(F.from_json("row", like.schema, _JSON).alias("_"), F.struct("*").alias(KEPT))
    return parsed.select(*(F.col("_")[name].alias(name) for name in like.columns), KEPT)


def quarantine(
    place: Place,
    group: FeatureGroup,
    rejected: int,
    parts: Mapping[str, DataFrame],
    note: Note,
    *,
    earlier: DataFrame | None = None,
) -> int | None:
    """Keep the rejected rows, and `earlier` ones; a table with rows of another run is emptied once all is well."""
    target = place.quarantine(group)
    if not rejected and earlier is None and target.version() is None:
        return None
    rows = [rejected_rows(part, stage, note["run"]) for stage, part in parts.items()]
    kept = _union([*rows, *([earlier] if earlier is not None else [])])
    return past_maintenance(target, lambda: target.replace(kept, {**note, "verb": "quarantine"}))


def _union(parts: Sequence[DataFrame]) -> DataFrame:
    first, *others = parts
    for other in others:
        first = first.unionByName(other)
    return first


def runs_of(note: Note) -> tuple[str, ...]:
    """The runs that a version of an offline table is made of: the one that wrote it, and those it built on."""
    runs: Sequence[Any] = note.get("runs", ())
    return (str(note.get("run", "")), *map(str, runs))


def quarantine_in_force(place: Place, group: FeatureGroup) -> int | None:
    """The quarantine's version that belongs to the table as it is now; None when there is none.

    A newer one is of a run that was killed before it wrote the table.
    """
    version, target = place.table(group).version(), place.quarantine(group)
    newest = target.version()
    if version is None or newest is None:
        return None
    runs = runs_of(place.table(group).note(version))
    return next((number for number in range(newest, 0, -1) if target.note(number).get("run") in runs), None)
