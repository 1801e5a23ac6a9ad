"""training-set: spine + service -> a dataset, every spine row once with the features as they were at its time.

    read the spine -> plan the join -> pin the tables' versions -> join -> write the dataset and its manifest

The dataset appears whole or not at all. The report counts spine rows without a key or time, and the leak: cells that
would differ had rows created after the spine time been left out.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import reduce
from operator import or_

from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame, Observation
from pyspark.sql import functions as F

from connectors.file_store import FileStore, check_writable, open_file_store
from connectors.lakes import joined
from connectors.offline_tables import DeltaOfflineTable, writing
from connectors.pins import DATASET_MANIFEST, Pin, write_pin
from connectors.registry import Snapshot
from connectors.spark_errors import data_errors
from feature_defs import data_types
from feature_defs.errors import DataError, LakeError, UsageError, listed, near_miss
from feature_defs.join_plan import KNOWN_BY, JoinPlan, TimeRules, plan_join
from feature_defs.model import EVENT_TIME, OFFLINE_FORMATS, Service
from jobs.joining import Joined, join_spine, kept_in
from jobs.place import Place, find_service, new_run
from jobs.report import counted, step
from jobs.transforms.as_of import LEAK
from jobs.transforms.locate import Keep

MANIFEST = DATASET_MANIFEST


@dataclass(frozen=True)
class TrainingSetReport:
    """`leaked_cells` counts, for each feature, cells that rows created after the spine time decided."""

    run: str
    service: str
    out: str
    rows: int
    null_key_rows: int
    null_time_rows: int
    matched: dict[str, int]
    leaked_cells: dict[str, int]
    table_versions: dict[str, int]
    snapshot: int
    seconds: float
    exit_code: int = 0

    def text(self) -> str:
        lines = [f"  {name}: {counted(n, 'row')} with a value" for name, n in self.matched.items()]
        if self.null_key_rows:
            lines.append(f"  warning: {counted(self.null_key_rows, 'spine row')} with a null key: features are null")
        if self.null_time_rows:
            lines.append(
                f"  warning: {counted(self.null_time_rows, 'spine row')} with no {EVENT_TIME}: features are null"
            )
        leaks = ", ".join(f"{name} {n:,}" for name, n in self.leaked_cells.items() if n)
        lines.append(f"  leak report: {leaks or 'no cell'} decided by rows created after the spine time")
        versions = ", ".join(f"{name} @{version}" for name, version in self.table_versions.items())
        lines.append(f"  tables: {versions} (registry snapshot {self.snapshot})")
        return "\n".join([*lines, f"{counted(self.rows, 'row')} of {self.service} in {self.out}, {self.seconds:.1f} s"])


def training_set(
    place: Place,
    spine: str | DataFrame,
    *,
    service: str,
    out: str,
    out_format: str = "parquet",
    spine_format: str = "",
    prefix: bool = False,
    rules: TimeRules | None = None,
) -> TrainingSetReport:
    """Build a training set at the logical path `out`; one that is there is replaced, anything else refused."""
    started = time.monotonic()
    run = new_run()
    snapshot, found = find_service(place, service)
    target = _Target(place, out, out_format)
    target.refuse_what_is_not_ours()
    rows = read_spine(place, spine, spine_format) if isinstance(spine, str) else spine
    planned = plan_dataset(place, rows, snapshot, found, prefix=prefix, rules=rules)
    plan, versions = planned.plan, planned.versions
    note = {
        "verb": "training-set",
        "run": run,
        "service": f"{found.name}@{found.version}",
        "spine": spine if isinstance(spine, str) else "DataFrame",
        "snapshot": snapshot.number,
        "fingerprints": {group.group: snapshot.fingerprint(group.group) for group in plan.groups},
        "table_versions": versions,
        "prefix": prefix,
        "rules": asdict(plan.rules),
        "columns": [*rows.columns, *plan.outputs],
    }
    tables = {place.table_path(snapshot.definitions.groups[name]): n for name, n in versions.items()}
    pin = Pin(run, out, tables, tuple(versions))
    write_pin(place.lakes, place.settings.offline, pin)
    with step(f"training-set {found.name}"), data_errors(f"Service '{found.name}'"), _work(place, pin) as folder:
        counts = _write(target, planned.join(rows, kept_in(folder)), plan, note)
    return TrainingSetReport(
        run=run,
        service=f"{found.name}@{found.version}",
        out=out,
        rows=counts["rows"],
        null_key_rows=counts["null_key"],
        null_time_rows=counts["null_time"],
        matched={output: counts[f"value_{i}"] for i, output in enumerate(plan.outputs)},
        leaked_cells={output: counts.get(LEAK + output, 0) for output in plan.outputs},
        table_versions=versions,
        snapshot=snapshot.number,
        seconds=round(time.monotonic() - started, 3),
    )


@dataclass(frozen=True)
class Planned:
    """What is joined: a plan, the tables' rows and their versions. No job has run."""

    plan: JoinPlan
    tables: dict[str, DataFrame]
    versions: dict[str, int]

    def join(self, spine: DataFrame, keep: Keep) -> Joined:
        return join_spine(spine, self.tables, self.plan, keep=keep)


def plan_dataset(
    place: Place,
    spine: DataFrame,
    snapshot: Snapshot,
    service: Service,
    *,
    prefix: bool = False,
    rules: TimeRules | None = None,
) -> Planned:
    """A spine and a service over the tables' newest versions."""
    definitions = snapshot.definitions
    plan = plan_join(service, definitions, spine_columns=spine.columns, prefix=prefix, rules=rules)
    _check_spine(spine, plan)
    tables, versions = {}, {}
    for group in plan.groups:
        table, version = place.computed(snapshot, definitions.groups[group.group])
        tables[group.group], versions[group.group] = table.read(version), version
    return Planned(plan, tables, versions)


def read_spine(place: Place, path: str, spine_format: str = "") -> DataFrame:
    uri = place.lakes.uri(path)
    if not spine_format:
        files = open_file_store(uri).list_files(joined(uri, "_delta_log"))
        spine_format = "delta" if files else "parquet"
    try:
        with data_errors(f"Spine '{path}'"):
            return place.spark.read.format(spine_format).load(uri)
    except AnalysisException as error:
        hint = "check the path, or name its format with --spine-format"
        raise DataError(f"Spine '{path}'", f"there is no {spine_format} data at {uri}", hint=hint) from error


def _check_spine(spine: DataFrame, plan: JoinPlan) -> None:
    types = {field.name: field.dataType.simpleString() for field in spine.schema.fields}
    if EVENT_TIME not in types:
        hint = near_miss(EVENT_TIME, types) + f"rename the spine's time column to {EVENT_TIME}"
        raise DataError("Spine", f"has no column '{EVENT_TIME}' ({listed(types)})", hint=hint)
    if types[EVENT_TIME] not in ("timestamp", "timestamp_ntz", "date"):
        problem = f"{EVENT_TIME} is {types[EVENT_TIME]}, expected timestamp or date"
        raise DataError("Spine", problem, hint="cast it; a naive time is taken as UTC")
    for group in plan.groups:
        for key, text in zip(group.keys, group.key_types, strict=True):
            declared = data_types.parse(text).spark
            if key not in types:
                hint = near_miss(key, types) + "rename the spine's column to the entity's key"
                raise DataError(
                    "Spine", f"has no key column '{key}' of group '{group.group}' ({listed(types)})", hint=hint
                )
            if types[key] != declared and (types[key], declared) != ("int", "bigint"):
                problem = f"key '{key}' is {types[key]}, group '{group.group}' declares {declared}"
                raise DataError("Spine", problem, hint=f"cast the spine's column to {declared}")


def _write(target: _Target, found: Joined, plan: JoinPlan, note: dict[str, object]) -> dict[str, int]:
    """Counts of the dataset, from the pass that writes it; those of leaks may need another."""
    outputs = plan.outputs
    keys = {key for group in plan.groups for key in group.keys}
    any_key_null = reduce(or_, (F.col(key).isNull() for key in sorted(keys)))
    observed = Observation()
    rows = found.rows.observe(
        observed,
        F.count(F.lit(1)).alias("rows"),
        F.count(F.when(F.col(EVENT_TIME).isNull(), 1)).alias("null_time"),
        F.count(F.when(any_key_null, 1)).alias("null_key"),
        *(F.count(F.col(output)).alias(f"value_{i}") for i, output in enumerate(outputs)),
        *(F.count(F.when(F.col(flag), 1)).alias(flag) for flag in found.flags),
    )

    def finished() -> dict[str, int]:
        counts: dict[str, int] = dict(observed.get)
        if counts["rows"] != found.spine_rows:
            problem = f"{found.spine_rows:,} spine rows became {counts['rows']:,}"
            raise DataError(
                "Spine", problem, hint="this is a fault of Tidemark's: nothing was written; please report it"
            )
        for leaks in found.leaks:
            counts |= {LEAK + output: count for output, count in leaks.counts().items()}
        return counts

    return target.write(rows.drop(*found.flags), note, finished)


@contextmanager
def _work(place: Place, pin: Pin) -> Iterator[str]:
    """A folder beside the dataset for what is kept on the way."""
    uri = place.lakes.uri(pin.work)
    try:
        yield uri
    finally:
        open_file_store(uri).delete(uri)


class _Target:
    """Where a training set goes: a Delta table's next version, or a Parquet folder that appears by a rename."""

    def __init__(self, place: Place, out: str, out_format: str) -> None:
        if out_format not in OFFLINE_FORMATS:
            raise UsageError(
                "Option --format", f"'{out_format}' is not known", hint=f"use {' or '.join(OFFLINE_FORMATS)}"
            )
        self.spark, self.out, self.format = place.spark, out, out_format
        self.uri = place.lakes.uri(out)
        self.files: FileStore = open_file_store(self.uri)
        self.delta = DeltaOfflineTable(self.spark, self.files, self.uri)

    def refuse_what_is_not_ours(self) -> None:
        """A path that holds anything but a training set of this format is not overwritten."""
        check_writable(self.files, self.uri.rpartition("/")[0])
        there = self.files.list_files(self.uri)
        version = self.delta.version()
        if not there:
            return
        if self.format == "delta" and version is not None and self.delta.note(version).get("verb") == "training-set":
            return
        if self.format == "parquet" and any(file.path == MANIFEST for file in there):
            return
        problem = f"holds {counted(len(there), 'file')} that are no training set in {self.format}"
        raise UsageError(f"Path '{self.out}'", problem, hint="choose another --out, or remove what is there")

    def write(self, rows: DataFrame, note: dict[str, object], finished: Callable[[], dict[str, int]]) -> dict[str, int]:
        """Write the rows; `finished` looks at what was written, a Parquet dataset appearing only when it is content."""
        if self.format == "delta":
            self.delta.replace(rows, note)
            return finished()
        parent, _, name = self.uri.rpartition("/")
        draft, old = joined(parent, f"._{name}.{note['run']}"), joined(parent, f"._{name}.old.{note['run']}")
        try:
            with writing(self.spark):
                rows.write.parquet(draft)
            counts = finished()
            self.files.create(joined(draft, MANIFEST), json.dumps(note, indent=1).encode())
            self._swap(draft, old)
        finally:
            self.files.delete(draft)
        self.files.delete(old)
        return counts

    def _swap(self, draft: str, old: str) -> None:
        """Put the finished draft in place of what is there; when that fails, what was there comes back."""
        replaces = bool(self.files.list_files(self.uri))
        try:
            if replaces:
                self.files.rename(self.uri, old)
            self.files.rename(draft, self.uri)
        except (FileExistsError, FileNotFoundError) as error:
            if replaces and not self.files.list_files(self.uri):
                self.files.rename(old, self.uri)
            hint = "run it again once the other is done, or choose another --out"
            raise LakeError(f"Path '{self.out}'", "another run wrote it meanwhile", hint=hint) from error


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--spine", required=True, metavar="PATH", help="lake://NAME/path with entity keys and event_time"
    )
    parser.add_argument("--service", required=True, metavar="NAME[@VERSION]", help="the service whose features to join")
    parser.add_argument("--out", required=True, metavar="PATH", help="lake://NAME/path of the dataset")
    parser.add_argument(
        "--format", choices=OFFLINE_FORMATS, default="parquet", help="of the dataset (default: parquet)"
    )
    parser.add_argument(
        "--spine-format", choices=("delta", "parquet"), default="", help="of the spine (default: as found)"
    )
    parser.add_argument("--prefix", action="store_true", help="name features GROUP__FEATURE")
    parser.add_argument("--strict", action="store_true", help="leave out a feature row exactly at the spine time")
    parser.add_argument(
        "--known-by", choices=KNOWN_BY, default="event", help="spine: also leave out rows created later"
    )


def run(place: Place, args: argparse.Namespace) -> TrainingSetReport:
    return training_set(
        place,
        args.spine,
        service=args.service,
        out=args.out,
        out_format=args.format,
        spine_format=args.spine_format,
        prefix=args.prefix,
        rules=TimeRules(strict=args.strict, known_by=args.known_by),
    )


if __name__ == "__main__":
    from jobs.command_line import run_verb

    run_verb("training-set")
