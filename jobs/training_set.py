"""training-set: spine + service -> a dataset, every spine row once with the features as they were at its time.

    read the spine -> plan the join -> pin the tables' versions -> join -> write the dataset and its manifest

A spine is a table, csv or json; --split cuts the dataset by time into parts, each in a folder of its own. The dataset
appears whole or not at all. The report counts spine rows without a key or time, and the leak: cells that would differ
had rows created after the spine time been left out. --replay makes a dataset again from its manifest.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING

from pyspark.sql import DataFrame, Observation
from pyspark.sql import functions as F

from connectors.file_store import FileStore, check_writable, local_path, open_file_store
from connectors.lakes import PATTERN, joined
from connectors.manifests import Column, Manifest, counted_uri, to_plain, written
from connectors.offline_tables import OfflineTable, delta_table, writing
from connectors.pins import DATASET_MANIFEST, Pin, write_pin
from connectors.plain_files import PlainFiles, plain_files
from connectors.registry import Snapshot
from connectors.row_order import ROWS_A_FILE
from connectors.spark_errors import data_errors
from feature_defs.errors import DataError, LakeError, UsageError
from feature_defs.expressions import quoted
from feature_defs.join_plan import KNOWN_BY, JoinPlan, TimeRules, plan_join
from feature_defs.model import EVENT_TIME, Service
from feature_defs.splits import SPLIT, parse_splits
from jobs.arguments import named_columns
from jobs.datasets import CSV_WRITTEN, DATASET_FORMATS, check_columns_of, types_of
from jobs.joining import Joined, OwnFiles, join_spine, keeping
from jobs.place import Place, find_service, new_run
from jobs.recorded import keys_of, options_of, recorded_service, recorded_table, refuse_difference
from jobs.report import counted, step
from jobs.spines import SPINE_FORMATS, Spine, SpineWords, check_spine, open_spine
from jobs.transforms.as_of import LEAK
from jobs.transforms.pieces import Layout
from jobs.transforms.row_hash import hash_sums, row_hash_of, with_hash
from jobs.transforms.rows import all_quoted

if TYPE_CHECKING:
    from jobs.explain import ExplainReport

MANIFEST = DATASET_MANIFEST
_NOT_WITH_REPLAY = (
    "spine", "service", "spine_format", "explain", "keys", "labels", "allow_future", "splits", "gap", "prefix",
    "strict",
)  # fmt: skip
_USUAL = {"event_time": EVENT_TIME, "known_by": "event"}
_SPINE_HASH, _ROW_HASH = "_tidemark_spine_hash", "_tidemark_row_hash"
_KEY_NULL, _TIME_NULL = "_tidemark_key_null", "_tidemark_time_null"


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
    splits: dict[str, int] = field(default_factory=dict)
    gap_rows: int = 0
    outside_rows: int = 0
    ways: dict[str, str] = field(default_factory=dict)

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
        if self.replay_of:
            lines.append(f"  equal to the rows of run {self.replay_of}: hash {self.hash}")
        return "\n".join([*lines, f"{counted(self.rows, 'row')} of {self.service} in {self.out}, {self.seconds:.1f} s"])


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
    exactly: Manifest | None = None,
) -> TrainingSetReport:
    """Build a training set at the logical path `out`; one that is there is replaced, anything else refused.

    The spine is a lake path, a Spark or pandas DataFrame, or a pyarrow Table. With a manifest the dataset is made of
    the versions that it names, and appears only when its rows are those of the manifest.
    """
    started = time.monotonic()
    run, parts = new_run(), parse_splits(splits, gap)
    version = exactly.spine.version if exactly else None
    words = SpineWords(spine_format, keys or {}, event_time, labels, allow_future, version)
    snapshot, found = recorded_service(place, exactly) if exactly else find_service(place, service)
    target = _Target(place, out, out_format)
    target.refuse_what_is_not_ours()
    given = open_spine(place, spine, found, snapshot.definitions, words=words, parts=parts, now=now)
    wanted = exactly.table_versions if exactly else None
    planned = plan_dataset(place, given.rows, snapshot, found, prefix=prefix, rules=rules, versions=wanted)
    plan, versions, types = planned.plan, planned.versions, planned.types(given)
    check_columns_of(out_format, types, f"Dataset '{out}'")
    manifest = Manifest(
        run=run,
        service=f"{found.name}@{found.version}",
        snapshot=snapshot.number,
        fingerprints={group.group: snapshot.fingerprint(group.group) for group in plan.groups},
        table_versions=versions,
        spine=given.record(words),
        options=options_of(plan, prefix=prefix),
        keys=keys_of(plan),
        columns=_columns_of(types, plan),
        files=out_format,
        splits=tuple(part.as_plain() for part in parts),
        replay_of=exactly.run if exactly else "",
    )
    tables = {place.table_path(snapshot.definitions.groups[name]): n for name, n in versions.items()}
    pin = Pin(run, out, tables, tuple(versions))
    write_pin(place.lakes, place.settings.beside, pin)
    work = place.lakes.uri(pin.work)
    told = data_errors(f"Service '{found.name}'", of_tables=True)
    with step(f"training-set {found.name}"), told, keeping(work) as keep:
        own = OwnFiles(planned.files, work)
        met = join_spine(given.rows, planned.tables, plan, keep=keep, own=own, in_files=given.few)
        counts, manifest = _write(target, met, given, plan, manifest, exactly)
    assert manifest.hash is not None
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
        hash=manifest.hash.sum,
        replay_of=manifest.replay_of,
        seconds=round(time.monotonic() - started, 3),
        splits={part.name: counts.get(f"part_{part.name}", 0) for part in parts},
        gap_rows=given.gap_rows,
        outside_rows=given.outside_rows,
        ways=dict(met.ways),
    )


class Tables(Mapping[str, DataFrame]):
    """The rows of tables at their versions, for Spark. Read when they are asked for: a group whose files a task reads
    itself needs none of Spark's look at them."""

    def __init__(self, tables: Mapping[str, tuple[OfflineTable, int]]) -> None:
        self._tables, self._read = tables, dict[str, DataFrame]()

    def __getitem__(self, group: str) -> DataFrame:
        if group not in self._read:
            table, version = self._tables[group]
            self._read[group] = table.read(version)
        return self._read[group]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tables)

    def __len__(self) -> int:
        return len(self._tables)


@dataclass(frozen=True)
class Planned:
    """What is joined: a plan, the tables' rows, their files and their versions. No job has run."""

    plan: JoinPlan
    tables: Tables
    files: dict[str, PlainFiles | None]
    versions: dict[str, int]

    def types(self, given: Spine) -> dict[str, str]:
        """The columns of the dataset, each with its type as Spark writes it."""
        spine = types_of(given.rows.schema)
        added: dict[str, str] = {}
        for group in self.plan.groups:
            files = self.files[group.group]
            kinds = types_of(files.schema if files else self.tables[group.group].schema)
            added |= {out: kinds[name] for name, out in group.columns}
        own = {name: spine[held] for name, held in given.own}
        return {**own, **{out: added[out] for out in self.plan.outputs}, **({SPLIT: "string"} if given.parts else {})}


def plan_dataset(
    place: Place,
    spine: DataFrame,
    snapshot: Snapshot,
    service: Service,
    *,
    prefix: bool = False,
    rules: TimeRules | None = None,
    versions: Mapping[str, int] | None = None,
) -> Planned:
    """A spine and a service over the tables' newest versions, or over those given."""
    definitions = snapshot.definitions
    plan = plan_join(service, definitions, spine_columns=spine.columns, prefix=prefix, rules=rules)
    check_spine(spine, plan)
    found, files = {}, {}
    for group in plan.groups:
        definition = definitions.groups[group.group]
        if versions is None:
            table, version = place.computed(snapshot, definition)
        else:
            table, version = recorded_table(place, snapshot, definition, versions)
        found[group.group], files[group.group] = (table, version), plain_files(table, version)
    return Planned(plan, Tables(found), files, {group: version for group, (_, version) in found.items()})


def _columns_of(types: Mapping[str, str], plan: JoinPlan) -> tuple[Column, ...]:
    features = {out: f"{group.group}.{feature}" for group in plan.groups for feature, out in group.columns}
    return tuple(Column(name, kind, features.get(name, "")) for name, kind in types.items())


def _write(
    target: _Target, met: Joined, given: Spine, plan: JoinPlan, manifest: Manifest, exactly: Manifest | None
) -> tuple[dict[str, int], Manifest]:
    """Counts of the dataset, from the pass that writes it, and the manifest with its hashes."""
    counts: dict[str, int] = {}
    columns = [column.name for column in manifest.columns]
    keys = tuple(sorted({key for group in plan.groups for key in group.keys}))
    layout = Layout(
        columns=(
            *given.own,
            *((output, output) for output in plan.outputs),
            *([(SPLIT, SPLIT)] if given.parts else []),
        ),
        spine=len(manifest.spine_columns),
        keys=keys,
        outputs=plan.outputs,
        has_parts=bool(given.parts),
    )

    def finished() -> Manifest:
        if counts["rows"] != met.spine_rows:
            problem = f"{met.spine_rows:,} spine rows became {counts['rows']:,}"
            raise DataError("Spine", problem, hint="a fault of the join, not of the spine: please report it")
        for leaks in met.leaks:
            counts.update({LEAK + output: count for output, count in leaks.counts().items()})
        found = manifest.counted(*(row_hash_of(counts, name, counts["rows"]) for name in ("spine", "row")))
        if exactly:
            refuse_difference(exactly, found)
        return found

    if met.pieces and target.format == "parquet" and met.pieces.may_write(layout):
        pieces = met.pieces
        return counts, target.put(
            lambda draft: counts.update(pieces.write(layout, str(local_path(draft)))), manifest, finished
        )

    observed = Observation()
    any_key_null = reduce(or_, (F.col(key).isNull() for key in keys))
    rows = met.rows().withColumns({_KEY_NULL: any_key_null, _TIME_NULL: F.col(EVENT_TIME).isNull()})
    rows = given.restored(rows, [*plan.outputs, *met.flags, _KEY_NULL, _TIME_NULL])
    rows = with_hash(with_hash(rows, manifest.spine_columns, _SPINE_HASH), columns, _ROW_HASH)
    rows = rows.observe(
        observed,
        F.count(F.lit(1)).alias("rows"),
        F.count(F.when(F.col(_TIME_NULL), 1)).alias("null_time"),
        F.count(F.when(F.col(_KEY_NULL), 1)).alias("null_key"),
        *(F.expr(f"count({quoted(output)}) AS value_{i}") for i, output in enumerate(plan.outputs)),
        *(F.expr(f"count_if({flag}) AS {flag}") for flag in map(quoted, met.flags)),
        *(F.count(F.when(F.col(SPLIT) == part.name, 1)).alias(f"part_{part.name}") for part in given.parts),
        *hash_sums(F.col(_SPINE_HASH), "spine"),
        *hash_sums(F.col(_ROW_HASH), "row"),
    )

    def known() -> Manifest:
        counts.update(observed.get)
        return finished()

    return counts, target.write(rows.select(*all_quoted(columns)), manifest, known)


class _Target:
    """Where a training set goes: a Delta table's next version, or a folder of files that appears by a rename."""

    def __init__(self, place: Place, out: str, out_format: str) -> None:
        if out_format not in DATASET_FORMATS:
            hint = f"use one of {', '.join(DATASET_FORMATS)}"
            raise UsageError("Option --format", f"'{out_format}' is not known", hint=hint)
        self.spark, self.out, self.format = place.spark, out, out_format
        self.uri = place.lakes.uri(out)
        if not re.fullmatch(r"lake://[^/]+/+[^/].*", out):
            raise UsageError("Option --out", f"'{out}' is a whole lake", hint="name a folder in it: lake://NAME/path")
        if found := PATTERN.search(out):
            problem = f"'{out}': Spark takes '{found[0]}' in a path for a pattern"
            raise UsageError("Option --out", problem, hint="write a path without any of { } [ ] * ? \\")
        self.files: FileStore = open_file_store(self.uri)
        self.delta = delta_table(self.spark, self.uri)

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
            if manifest.get("files", "parquet") == self.format:
                return
        problem = f"holds {counted(len(there), 'file')} that are no training set in {self.format}"
        raise UsageError(f"Path '{self.out}'", problem, hint="choose another --out, or remove what is there")

    def write(self, rows: DataFrame, begun: Manifest, finished: Callable[[], Manifest]) -> Manifest:
        """Write the rows; then they are counted, and `finished` gives their manifest, or an error and no dataset.

        In Delta the commit is there by then, and stays. With parts, each is in a folder `split=NAME`.
        """
        parts = [SPLIT] if begun.splits else []
        if self.format == "delta" and not begun.replay_of:
            self.delta.replace(rows, to_plain(begun), partition_by=parts)
            manifest = finished()
            self.files.create(counted_uri(self.uri, begun.run), written(manifest))
            return manifest
        writer = rows.write.option("maxRecordsPerFile", ROWS_A_FILE).partitionBy(*parts)
        if self.format == "csv":
            writer = writer.options(**CSV_WRITTEN)

        def put(draft: str) -> None:
            with writing(self.spark):
                writer.format("csv" if self.format == "csv" else "parquet").save(draft)

        def committed(draft: str, manifest: Manifest) -> None:
            kept = self.spark.read.schema(rows.schema).parquet(draft)
            self.delta.replace(kept.select(*all_quoted(rows.columns)), to_plain(manifest), partition_by=parts)

        # a commit cannot be taken back, so it waits until the rows are known
        return self.put(put, begun, finished, committed if self.format == "delta" else None)

    def put(
        self,
        put: Callable[[str], None],
        begun: Manifest,
        finished: Callable[[], Manifest],
        commit: Callable[[str, Manifest], None] | None = None,
    ) -> Manifest:
        """`put` writes a draft, which then takes the place of what is there, or is committed."""
        parent, _, name = self.uri.rpartition("/")
        draft, old = joined(parent, f"._{name}.{begun.run}"), joined(parent, f"._{name}.old.{begun.run}")
        try:
            put(draft)
            manifest = finished()
            if commit:
                commit(draft, manifest)
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
        except BaseException as error:  # Ctrl-C too
            if replaces and not self.files.list_files(self.uri):
                self.files.rename(old, self.uri)
            if not isinstance(error, FileExistsError | FileNotFoundError):
                raise
            hint = "run it again once the other is done, or choose another --out"
            raise LakeError(f"Path '{self.out}'", "another run wrote it meanwhile", hint=hint) from error


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--spine", default="", metavar="PATH", help="lake://NAME/path with entity keys and event_time")
    parser.add_argument("--service", default="", metavar="NAME[@VERSION]", help="the service whose features to join")
    parser.add_argument("--out", default="", metavar="PATH", help="lake://NAME/path of the dataset")
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
    parser.add_argument(
        "--explain", action="store_true", help="only tell how it would be joined and what would be read; no job runs"
    )
    parser.add_argument(
        "--replay",
        default="",
        metavar="PATH[@VERSION]",
        help="make this dataset again, or that of a manifest.json",
    )


def run(place: Place, args: argparse.Namespace) -> TrainingSetReport | ExplainReport:
    if args.replay:
        from jobs.rebuild import rebuild

        _require(args, "out")
        given = [name for name in _NOT_WITH_REPLAY if getattr(args, name)]
        given += [name for name, usual in _USUAL.items() if getattr(args, name) != usual]
        if given:
            problem = f"--replay takes all but --out and --format from the manifest; found {_dashed(given)}"
            raise UsageError("`tidemark training-set`", problem, hint=f"leave out {_dashed(given)}")
        return rebuild(place, args.replay, out=args.out, out_format=args.format)
    _require(args, "spine", "service", *(() if args.explain else ("out",)))
    if args.explain:
        from jobs.explain import explain

        return explain(
            place,
            args.spine,
            service=args.service,
            spine_format=args.spine_format,
            keys=named_columns(args.keys),
            event_time=args.event_time,
            labels=args.labels,
            prefix=args.prefix,
        )
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


def _require(args: argparse.Namespace, *names: str) -> None:
    missing = [name for name in names if not getattr(args, name)]
    if missing:
        problem = f"the following arguments are required: {_dashed(missing)}"
        raise UsageError("`tidemark training-set`", problem, hint="`tidemark training-set --help` shows what it takes")


def _dashed(names: Sequence[str]) -> str:
    written = {"keys": "key", "labels": "label", "splits": "split"}
    return ", ".join("--" + written.get(name, name).replace("_", "-") for name in names)


if __name__ == "__main__":
    from jobs.command_line import run_verb

    run_verb("training-set")
