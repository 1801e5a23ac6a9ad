"""training-set: spine + service -> a dataset, every spine row once with the features as they were at its time.

    read the spine -> plan the join -> pin the tables' versions -> as-of join -> write the dataset and its manifest

The dataset appears whole or not at all. The report counts spine rows without a key or time, and the leak: cells that
would differ had rows created after the spine time been left out.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import or_

from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame, Observation
from pyspark.sql import functions as F

from connectors.file_store import FileStore, check_writable, open_file_store
from connectors.lakes import joined
from connectors.manifests import Manifest, SpineRecord, counted_uri, to_plain, written
from connectors.offline_tables import DeltaOfflineTable
from connectors.pins import DATASET_MANIFEST, Pin, write_pin
from connectors.registry import Snapshot
from connectors.spark_errors import data_errors
from feature_defs import data_types
from feature_defs.errors import DataError, LakeError, UsageError, listed, near_miss
from feature_defs.join_plan import KNOWN_BY, JoinPlan, TimeRules, plan_join
from feature_defs.model import EVENT_TIME, OFFLINE_FORMATS, Service
from jobs.place import Place, find_service, new_run
from jobs.recorded import (
    columns_of,
    keys_of,
    options_of,
    recorded_service,
    recorded_table,
    refuse_difference,
)
from jobs.report import counted, step
from jobs.transforms.as_of import LEAK, training_rows
from jobs.transforms.row_hash import hash_sums, row_hash_of, with_hash
from jobs.transforms.rows import quoted

MANIFEST = DATASET_MANIFEST
_SPINE_HASH, _ROW_HASH = "_tidemark_spine_hash", "_tidemark_row_hash"


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
    hash: str
    seconds: float
    replay_of: str = ""
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
        if self.replay_of:
            lines.append(f"  equal to the rows of run {self.replay_of}: hash {self.hash}")
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
    spine: str | DataFrame,
    *,
    service: str,
    out: str,
    out_format: str = "parquet",
    spine_format: str = "",
    prefix: bool = False,
    rules: TimeRules | None = None,
    exactly: Manifest | None = None,
) -> TrainingSetReport:
    """Build a training set at the logical path `out`; one that is there is replaced, anything else refused.

    With a manifest it is made of what that names, and appears only when its rows are those of the manifest.
    """
    started = time.monotonic()
    run = new_run()
    snapshot, found = recorded_service(place, exactly) if exactly else find_service(place, service)
    target = _Target(place, out, out_format)
    target.refuse_what_is_not_ours()
    if isinstance(spine, str):
        source = exactly.spine if exactly else spine_at(place, spine, spine_format)
        rows = read_spine(place, spine, source.format, source.version)
    else:
        source, rows = SpineRecord("", "DataFrame", None), spine
    versions = exactly.table_versions if exactly else None
    dataset = join(place, rows, snapshot, found, prefix=prefix, rules=rules, versions=versions)
    plan = dataset.plan
    manifest = Manifest(
        run=run,
        service=f"{found.name}@{found.version}",
        snapshot=snapshot.number,
        fingerprints={group.group: snapshot.fingerprint(group.group) for group in plan.groups},
        table_versions=dataset.table_versions,
        spine=source,
        options=options_of(plan, prefix=prefix),
        keys=keys_of(plan),
        columns=columns_of(dataset.rows.schema, plan),
        replay_of=exactly.run if exactly else "",
    )
    tables = {place.table_path(snapshot.definitions.groups[name]): n for name, n in dataset.table_versions.items()}
    write_pin(place.lakes, place.settings.offline, Pin(run, out, tables, tuple(dataset.table_versions)))
    with step(f"training-set {found.name}"), data_errors(f"Service '{found.name}'"):
        counts, manifest = _write(target, dataset, manifest, exactly)
    assert manifest.hash is not None
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
        hash=manifest.hash.sum,
        replay_of=manifest.replay_of,
        seconds=round(time.monotonic() - started, 3),
    )


def join(
    place: Place,
    spine: DataFrame,
    snapshot: Snapshot,
    service: Service,
    *,
    prefix: bool = False,
    rules: TimeRules | None = None,
    versions: Mapping[str, int] | None = None,
) -> Dataset:
    """The as-of join of a spine and a service over the tables' newest versions, or over those given; no job runs."""
    definitions = snapshot.definitions
    plan = plan_join(service, definitions, spine_columns=spine.columns, prefix=prefix, rules=rules)
    _check_spine(spine, plan)
    tables, read = [], {}
    for group in plan.groups:
        definition = definitions.groups[group.group]
        if versions is None:
            table, version = place.computed(snapshot, definition)
        else:
            table, version = recorded_table(place, snapshot, definition, versions)
        tables.append(table.read(version))
        read[group.group] = version
    return Dataset(training_rows(spine, tables, plan), spine, plan, read)


def spine_at(place: Place, path: str, spine_format: str = "") -> SpineRecord:
    """The format of a spine, as found unless it is given, and a Delta table's newest version."""
    uri = place.lakes.uri(path)
    version = DeltaOfflineTable(place.spark, open_file_store(uri), uri).version()
    found = spine_format or ("parquet" if version is None else "delta")
    return SpineRecord(path, found, version if found == "delta" else None)


def read_spine(place: Place, path: str, spine_format: str = "", version: int | None = None) -> DataFrame:
    uri = place.lakes.uri(path)
    spine_format = spine_format or spine_at(place, path).format
    options = {} if version is None else {"versionAsOf": str(version)}
    try:
        with data_errors(f"Spine '{path}'"):
            return place.spark.read.format(spine_format).options(**options).load(uri)
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


def _write(
    target: _Target, dataset: Dataset, manifest: Manifest, exactly: Manifest | None
) -> tuple[dict[str, int], Manifest]:
    """Counts of the dataset, from the pass that writes it, and the manifest with its hashes."""
    outputs = dataset.plan.outputs
    keys = {key for group in dataset.plan.groups for key in group.keys}
    any_key_null = reduce(or_, (F.col(key).isNull() for key in sorted(keys)))
    observed = Observation()
    spine, columns = manifest.spine_columns, [column.name for column in manifest.columns]
    hashed = with_hash(with_hash(dataset.flagged, spine, _SPINE_HASH), columns, _ROW_HASH)
    flagged = hashed.observe(
        observed,
        F.count(F.lit(1)).alias("rows"),
        F.count(F.when(F.col(EVENT_TIME).isNull(), 1)).alias("null_time"),
        F.count(F.when(any_key_null, 1)).alias("null_key"),
        *(F.count(F.col(output)).alias(f"value_{i}") for i, output in enumerate(outputs)),
        *(F.count(F.when(F.col(LEAK + output), 1)).alias(f"leak_{i}") for i, output in enumerate(outputs)),
        *hash_sums(F.col(_SPINE_HASH), "spine"),
        *hash_sums(F.col(_ROW_HASH), "row"),
    )

    def finished() -> Manifest:
        counts = observed.get
        hashes = [row_hash_of(counts, name, counts["rows"]) for name in ("spine", "row")]
        found = manifest.counted(*hashes)
        if exactly:
            refuse_difference(exactly, found)
        return found

    whole = target.write(flagged.select(*quoted(dataset.spine.columns), *outputs), manifest, finished)
    return observed.get, whole


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

    def write(self, rows: DataFrame, begun: Manifest, finished: Callable[[], Manifest]) -> Manifest:
        """Write the rows; then they are counted, and `finished` gives their manifest, or an error and no dataset."""
        if self.format == "delta" and not begun.replay_of:
            self.delta.replace(rows, to_plain(begun))
            manifest = finished()
            self.files.create(counted_uri(self.uri, begun.run), written(manifest))
            return manifest
        parent, _, name = self.uri.rpartition("/")
        draft, old = joined(parent, f"._{name}.{begun.run}"), joined(parent, f"._{name}.old.{begun.run}")
        try:
            rows.write.parquet(draft)
            manifest = finished()
            if self.format == "delta":  # a commit cannot be taken back, so it waits until the rows are known
                self.delta.replace(self.spark.read.schema(rows.schema).parquet(draft), to_plain(manifest))
                return manifest
            self.files.create(joined(draft, MANIFEST), written(manifest))
            self._swap(draft, old)
        finally:
            self.files.delete(draft)
        self.files.delete(old)
        return manifest

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
    parser.add_argument("--spine", default="", metavar="PATH", help="lake://NAME/path with entity keys and event_time")
    parser.add_argument("--service", default="", metavar="NAME[@VERSION]", help="the service whose features to join")
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
    parser.add_argument(
        "--replay",
        default="",
        metavar="PATH[@VERSION]",
        help="make this training set again, or that of a manifest.json",
    )


def run(place: Place, args: argparse.Namespace) -> TrainingSetReport:
    if args.replay:
        from jobs.rebuild import rebuild

        chosen = ("spine", "service", "spine_format", "prefix", "strict")
        given = [name for name in chosen if getattr(args, name)] + ["known_by"] * (args.known_by != "event")
        if given:
            problem = f"--replay takes all but --out and --format from the manifest; found {_dashed(given)}"
            raise UsageError("`tidemark training-set`", problem, hint=f"leave out {_dashed(given)}")
        return rebuild(place, args.replay, out=args.out, out_format=args.format)
    missing = [name for name in ("spine", "service") if not getattr(args, name)]
    if missing:
        problem = f"the following arguments are required: {_dashed(missing)}"
        raise UsageError("`tidemark training-set`", problem, hint="`tidemark training-set --help` shows what it takes")
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


def _dashed(names: list[str]) -> str:
    return ", ".join("--" + name.replace("_", "-") for name in names)


if __name__ == "__main__":
    from jobs.command_line import run_verb

    run_verb("training-set")
