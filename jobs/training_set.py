"""training-set: spine + service -> a dataset, every spine row once with the features as they were at its time.

    read the spine -> plan the join -> pin the tables' versions -> as-of join -> write the dataset and its manifest

A spine is a table, csv or json; --split cuts the dataset by time into parts, each in a folder of its own. The dataset
appears whole or not at all. The report counts spine rows without a key or time, and the leak: cells that would differ
had rows created after the spine time been left out.
"""

from __future__ import annotations

import argparse
import datetime
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import reduce
from operator import or_

from pyspark.sql import DataFrame, Observation
from pyspark.sql import functions as F

from connectors.file_store import FileStore, check_writable, open_file_store
from connectors.lakes import joined
from connectors.offline_tables import ROWS_A_FILE, DeltaOfflineTable, writing
from connectors.pins import DATASET_MANIFEST, Pin, write_pin
from connectors.registry import Snapshot
from connectors.spark_errors import data_errors
from feature_defs.errors import LakeError, UsageError
from feature_defs.join_plan import KNOWN_BY, JoinPlan, TimeRules, plan_join
from feature_defs.model import EVENT_TIME, Service
from feature_defs.splits import SPLIT, Part, parse_splits
from jobs.arguments import named_columns
from jobs.datasets import CSV_WRITTEN, DATASET_FORMATS, check_columns_of, types_of
from jobs.place import Place, find_service, new_run
from jobs.report import counted, step
from jobs.spines import SPINE_FORMATS, Spine, SpineWords, check_spine, open_spine
from jobs.transforms.as_of import LEAK, training_rows
from jobs.transforms.rows import quoted

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
    splits: dict[str, int] = field(default_factory=dict)
    gap_rows: int = 0
    outside_rows: int = 0

    def text(self) -> str:
        lines = [f"  {name}: {counted(n, 'row')} with a value" for name, n in self.matched.items()]
        if self.splits:
            parts = ", ".join(f"{name} {n:,}" for name, n in self.splits.items())
            lines.append(f"  parts: {parts}; left out: {self.gap_rows:,} between parts, {self.outside_rows:,} outside")
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


@dataclass(frozen=True)
class Dataset:
    """A planned training set: rows with a leak flag a feature, not evaluated yet."""

    flagged: DataFrame
    spine: DataFrame
    plan: JoinPlan
    table_versions: dict[str, int]

    @property
    def rows(self) -> DataFrame:
        """The spine's columns, then the features."""
        return self.flagged.select(*quoted(self.spine.columns), *self.plan.outputs)


def training_set(
    place: Place,
    spine: object,
    *,
    service: str,
    out: str,
    out_format: str = "parquet",
    spine_format: str = "",
    keys: Mapping[str, str] | None = None,
    event_time: str = EVENT_TIME,
    labels: Sequence[str] = (),
    allow_future: bool = False,
    splits: Sequence[str] | Mapping[str, str] = (),
    gap: str | None = None,
    prefix: bool = False,
    rules: TimeRules | None = None,
    now: datetime.datetime | None = None,
) -> TrainingSetReport:
    """Build a training set at the logical path `out`; one that is there is replaced, anything else refused.

    The spine is a lake path, a Spark or pandas DataFrame, or a pyarrow Table.
    """
    started = time.monotonic()
    run = new_run()
    parts = parse_splits(splits, gap)
    words = SpineWords(spine_format, keys or {}, event_time, labels, allow_future)
    snapshot, found = find_service(place, service)
    target = _Target(place, out, out_format)
    target.refuse_what_is_not_ours()
    given = open_spine(place, spine, found, snapshot.definitions, words=words, parts=parts, now=now)
    dataset = join(place, given.rows, snapshot, found, prefix=prefix, rules=rules)
    plan = dataset.plan
    check_columns_of(out_format, given.restored(dataset.flagged, plan.outputs), f"Dataset '{out}'")
    note = {
        "verb": "training-set",
        "run": run,
        "service": f"{found.name}@{found.version}",
        "spine": given.path,
        "snapshot": snapshot.number,
        "fingerprints": {group.group: snapshot.fingerprint(group.group) for group in plan.groups},
        "table_versions": dataset.table_versions,
        "prefix": prefix,
        "rules": asdict(plan.rules),
        "columns": [*given.columns, *plan.outputs],
        "features": list(plan.outputs),
        **_told_of(given, words, parts),
    }
    tables = {place.table_path(snapshot.definitions.groups[name]): n for name, n in dataset.table_versions.items()}
    write_pin(place.lakes, place.settings.offline, Pin(run, out, tables, tuple(dataset.table_versions)))
    with step(f"training-set {found.name}"), data_errors(f"Service '{found.name}'"):
        counts = _write(target, dataset, given, note)
    return TrainingSetReport(
        run=run,
        service=f"{found.name}@{found.version}",
        out=out,
        rows=counts["rows"],
        null_key_rows=counts["null_key"],
        null_time_rows=counts["null_time"],
        matched={output: counts[f"value_{i}"] for i, output in enumerate(plan.outputs)},
        leaked_cells={output: counts[f"leak_{i}"] for i, output in enumerate(plan.outputs)},
        table_versions=dataset.table_versions,
        snapshot=snapshot.number,
        seconds=round(time.monotonic() - started, 3),
        splits={part.name: counts[f"part_{i}"] for i, part in enumerate(parts)},
        gap_rows=given.gap_rows,
        outside_rows=given.outside_rows,
    )


def _told_of(given: Spine, words: SpineWords, parts: Sequence[Part]) -> dict[str, object]:
    """What the manifest says of a spine and its parts beyond the plain case."""
    version = {"spine_version": given.version} if given.version is not None else {}
    return {**version, **words.as_plain(), **({"splits": [part.as_plain() for part in parts]} if parts else {})}


def join(
    place: Place,
    spine: DataFrame,
    snapshot: Snapshot,
    service: Service,
    *,
    prefix: bool = False,
    rules: TimeRules | None = None,
) -> Dataset:
    """The as-of join of a spine and a service over the tables' newest versions; no job runs."""
    definitions = snapshot.definitions
    plan = plan_join(service, definitions, spine_columns=spine.columns, prefix=prefix, rules=rules)
    check_spine(spine, plan)
    tables, versions = [], {}
    for group in plan.groups:
        table, version = place.computed(snapshot, definitions.groups[group.group])
        tables.append(table.read(version))
        versions[group.group] = version
    return Dataset(training_rows(spine, tables, plan), spine, plan, versions)


def _write(target: _Target, dataset: Dataset, given: Spine, note: dict[str, object]) -> dict[str, int]:
    """Counts of the dataset, from the pass that writes it."""
    outputs = dataset.plan.outputs
    keys = {key for group in dataset.plan.groups for key in group.keys}
    any_key_null = reduce(or_, (F.col(key).isNull() for key in sorted(keys)))
    observed = Observation()
    flagged = dataset.flagged.observe(
        observed,
        F.count(F.lit(1)).alias("rows"),
        F.count(F.when(F.col(EVENT_TIME).isNull(), 1)).alias("null_time"),
        F.count(F.when(any_key_null, 1)).alias("null_key"),
        *(F.count(F.col(output)).alias(f"value_{i}") for i, output in enumerate(outputs)),
        *(F.count(F.when(F.col(LEAK + output), 1)).alias(f"leak_{i}") for i, output in enumerate(outputs)),
        *(F.count(F.when(F.col(SPLIT) == part.name, 1)).alias(f"part_{i}") for i, part in enumerate(given.parts)),
    )
    target.write(given.restored(flagged, outputs), note, split=bool(given.parts))
    return observed.get


class _Target:
    """Where a training set goes: a Delta table's next version, or a folder of files that appears by a rename."""

    def __init__(self, place: Place, out: str, out_format: str) -> None:
        if out_format not in DATASET_FORMATS:
            hint = f"use one of {', '.join(DATASET_FORMATS)}"
            raise UsageError("Option --format", f"'{out_format}' is not known", hint=hint)
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
        if self.format != "delta" and any(file.path == MANIFEST for file in there):
            manifest = json.loads(self.files.read(joined(self.uri, MANIFEST)))
            if manifest.get("format", "parquet") == self.format:
                return
        problem = f"holds {counted(len(there), 'file')} that are no training set in {self.format}"
        raise UsageError(f"Path '{self.out}'", problem, hint="choose another --out, or remove what is there")

    def write(self, rows: DataFrame, note: dict[str, object], *, split: bool = False) -> None:
        """The rows and their note; with a split, each part in a folder `split=NAME`."""
        note = {**note, "format": self.format, "types": types_of(rows)}
        parts = [SPLIT] if split else []
        if self.format == "delta":
            self.delta.replace(rows, note, partition_by=parts)
            return
        parent, _, name = self.uri.rpartition("/")
        draft, old = joined(parent, f"._{name}.{note['run']}"), joined(parent, f"._{name}.old.{note['run']}")
        writer = rows.write.option("maxRecordsPerFile", ROWS_A_FILE).partitionBy(*parts)
        try:
            with writing(self.spark):
                writer.format(self.format).options(**(CSV_WRITTEN if self.format == "csv" else {})).save(draft)
            self.files.create(joined(draft, MANIFEST), json.dumps(note, indent=1).encode())
            self._swap(draft, old)
        finally:
            self.files.delete(draft)
        self.files.delete(old)

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
        "--format", choices=DATASET_FORMATS, default="parquet", help="of the dataset (default: parquet)"
    )
    parser.add_argument("--spine-format", choices=SPINE_FORMATS, default="", help="of the spine (default: as found)")
    parser.add_argument(
        "--key", dest="keys", action="append", default=[], metavar="KEY=COLUMN",
        help="the spine's column for a key of an entity, may be given several times",
    )  # fmt: skip
    parser.add_argument(
        "--event-time", default=EVENT_TIME, metavar="COLUMN", help="the spine's time column (default: event_time)"
    )
    parser.add_argument(
        "--label", dest="labels", action="append", default=[], metavar="COLUMN",
        help="a label of the spine: no feature may read such a column; may be given several times",
    )  # fmt: skip
    parser.add_argument("--allow-future", action="store_true", help="take spine rows with a time in the future")
    parser.add_argument(
        "--split", dest="splits", action="append", default=[], metavar="NAME=START..END",
        help="a part of the dataset by time, END not included; may be given several times, in the\norder of time",
    )  # fmt: skip
    parser.add_argument("--gap", metavar="7d", help="leave out rows for so long behind the end of a part")
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
        keys=named_columns(args.keys),
        event_time=args.event_time,
        labels=args.labels,
        allow_future=args.allow_future,
        splits=args.splits,
        gap=args.gap,
        prefix=args.prefix,
        rules=TimeRules(strict=args.strict, known_by=args.known_by),
    )


if __name__ == "__main__":
    from jobs.command_line import run_verb

    run_verb("training-set")
