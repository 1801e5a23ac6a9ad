"""replay: quarantined rows -> judged again by the rules in force -> the offline table, the rest stays quarantined.

When only rules have changed since the table was computed, the rows of the table and those that rules kept out of it are
judged together: the result is that of a full compute, without its source. When more has changed, and for a group with
aggregates, where a row more changes others, the group is computed in full, which reads those rows from the source.
Running again changes nothing: the same rules say the same of the same rows.
"""

from __future__ import annotations

import argparse
import datetime
import time
from dataclasses import dataclass, replace
from typing import Any

from pyspark.sql import DataFrame, Observation
from pyspark.sql import functions as F

from connectors.offline_tables import MAINTAINED, Note
from connectors.registry import Snapshot
from connectors.spark_errors import data_errors
from feature_defs.errors import DataError, LakeError
from feature_defs.fingerprint import fingerprint
from feature_defs.model import REJECTED, Definitions, FeatureGroup
from feature_defs.window_functions import refuse_window_functions
from jobs import arguments
from jobs.compute import compute
from jobs.place import Place, chosen_groups, new_run, now_us
from jobs.quality import (
    FEATURE,
    KEPT,
    keep_results,
    kept_rows,
    quarantine_in_force,
    rejected_rows,
    runs_of,
    stops_told,
    write_checked,
)
from jobs.report import counted, step
from jobs.rule_results import ended
from jobs.transforms.expectations import checked, rules_digest, rules_of

NOTHING, RULES, COMPUTE = "nothing", "rules", "compute"


@dataclass(frozen=True)
class ReplayReport:
    """`way`: nothing to do, judged again by the rules, or the whole group computed. `stayed` rows are quarantined now.

    `newly` of them are rows of the table that the rules in force no longer let in. When the group was computed, the
    counts are those of the quarantine before and after, whichever rows are in it.
    """

    run: str
    group: str
    way: str
    before: int
    passed: int
    stayed: int
    newly: int
    table_version: int
    seconds: float
    why: str
    exit_code: int = 0

    def text(self) -> str:
        told = f"{self.group}: {counted(self.before, 'row')} in the quarantine, {self.passed:,} passed, "
        told += f"{self.stayed:,} {'stays' if self.stayed == 1 else 'stay'}"
        newly = [f"  {counted(self.newly, 'row')} of the table broke a rule in force, and went there"]
        ended = f"{self.why}, table version {self.table_version}, {self.seconds:.1f} s"
        return "\n".join([told, *(newly if self.newly else []), ended])


def replay(place: Place, group: str, *, now: datetime.datetime | None = None) -> ReplayReport:
    """Give the group's quarantined rows another chance, by the definitions in force."""
    started = time.monotonic()
    snapshot = place.applied()
    (chosen,) = chosen_groups(snapshot, [group])
    refuse_window_functions(chosen)
    version = place.table(chosen).version()
    if version is None:
        hint = f"run `tidemark compute --group {group}`"
        raise DataError(f"FeatureGroup '{group}'", "has no offline table yet, so no quarantine", hint=hint)
    note = place.table(chosen).note(version)
    in_force = quarantine_in_force(place, chosen)
    before = place.quarantine(chosen).read(in_force).count() if in_force is not None else 0
    way, why = _way(place, snapshot, chosen, note, before)
    told: dict[str, Any]
    with step(f"replay {group}"), data_errors(f"FeatureGroup '{group}'"):
        if way == NOTHING:
            told = {"run": note["run"], "passed": 0, "stayed": before, "newly": 0, "table_version": version}
        elif way == COMPUTE:
            told = _computed(place, chosen, before, now)
        else:
            assert in_force is not None
            told = _replayed(place, snapshot, chosen, (version, in_force), now_us(now))
    seconds = round(time.monotonic() - started, 3)
    return ReplayReport(group=group, way=way, why=why, before=before, seconds=seconds, **told)


def _way(place: Place, snapshot: Snapshot, group: FeatureGroup, note: Note, before: int) -> tuple[str, str]:
    """What has to be done, and the reason as the report tells it."""
    if not ended(place, group, note["run"]):
        return COMPUTE, "the run that wrote the table did not come to its end: computed in full"
    if note["fingerprint"] == snapshot.fingerprint(group.name):
        return NOTHING, "the definition is the one that the table was made with"
    if not before:
        return COMPUTE, "the definition has changed and the quarantine is empty: computed in full"
    if group.aggregates:
        return COMPUTE, "the group has aggregates, so that a row more changes others: computed in full"
    try:
        then = place.registry.read(note["snapshot"]).definitions
    except LakeError:
        return COMPUTE, "the snapshot that the table was made with is gone: computed in full"
    if group.name not in then.groups or _without_rules(group.name, then) != _without_rules(
        group.name, snapshot.definitions
    ):
        return COMPUTE, "more than rules has changed: computed in full"
    return RULES, "judged again by the rules in force"


def _without_rules(name: str, definitions: Definitions) -> str:
    group = definitions.groups[name]
    features = [replace(feature, expect=()) for feature in group.features]
    return fingerprint(replace(group, features=features, expectations=()), definitions)


def _computed(place: Place, group: FeatureGroup, before: int, now: datetime.datetime | None) -> dict[str, Any]:
    report = compute(place, [group.name], now=now, full=True)
    (found,) = report.groups
    passed, stayed = max(0, before - found.rejected), found.rejected
    newly = max(0, found.rejected - before)
    return {"run": report.run, "passed": passed, "stayed": stayed, "newly": newly, "table_version": found.table_version}


def _replayed(
    place: Place, snapshot: Snapshot, group: FeatureGroup, versions: tuple[int, int], now: int
) -> dict[str, Any]:
    """The table's rows and the quarantined ones under the rules in force: quarantine first, which counts only then."""
    run, table = new_run(), place.table(group)
    version, in_force = versions
    note = {
        **{name: value for name, value in table.note(version).items() if name != MAINTAINED},  # what it holds
        "run": run,
        "rules": rules_digest(group),
        "verb": "replay",
        "group": group.name,
        "fingerprint": snapshot.fingerprint(group.name),
        "snapshot": snapshot.number,
        "runs": list(runs_of(table.note(version))),
    }
    existing, quarantined = table.read(version), place.quarantine(group).read(in_force)
    # a source's own fault does not go away with a rule
    faulty = quarantined.where(F.col("stage") != FEATURE)
    candidates = kept_rows(quarantined.where(F.col("stage") == FEATURE), existing)
    judged = checked(_joined(existing, candidates), rules_of(group))
    is_new, is_good = F.col(KEPT).isNotNull(), F.col(REJECTED).isNull()
    observed = Observation()
    counted_rows = judged.observe(
        observed, F.count_if(is_new & is_good).alias("passed"), F.count_if(~is_new & ~is_good).alias("newly")
    )
    with stops_told(place, group, note, now_us=now):
        staying = rejected_rows(counted_rows, FEATURE, run).unionByName(faulty)
        place.quarantine(group).replace(staying, {**note, "verb": "quarantine"})
    written = write_checked(place, group, judged.drop(KEPT), note, now_us=now)
    keep_results(place, group, written, note, now_us=now)
    passed, newly = observed.get["passed"], observed.get["newly"]
    stayed = written.rejected + faulty.count()
    return {"run": run, "passed": passed, "stayed": stayed, "newly": newly, "table_version": written.version}


def _joined(existing: DataFrame, candidates: DataFrame) -> DataFrame:
    """The rows of the table and those that may join it, one for one: what a merge into the table would replace.

    No row is in both: of rows with equal keys and clocks a compute makes one, and judges that.
    """
    return existing.unionByName(candidates, allowMissingColumns=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--group", required=True, metavar="NAME", help="the feature group")
    arguments.add_now(parser, "the time that freshness is held against (default: the clock)")


def run(place: Place, args: argparse.Namespace) -> ReplayReport:
    return replay(place, args.group, now=args.now)


if __name__ == "__main__":
    from jobs.command_line import run_verb

    run_verb("replay")
