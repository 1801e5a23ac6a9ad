"""why: where one cell of a training set comes from, and which rows of the offline table lost to it by which rule.

    tidemark why lake://work/churn_train --row customer_id=CUST001 --at 2026-11-03 spent_30d

    manifest -> the dataset's row -> rows of its key in the table's version then, each with its rule -> winner, losers

Exit code 1: the dataset holds something else than the table's version gives. Values are shown: they are asked for.
"""

from __future__ import annotations

import argparse
import datetime
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from connectors.manifests import Column, Manifest
from feature_defs import data_types, durations
from feature_defs.errors import DataError, UsageError, listed, near_miss
from feature_defs.join_plan import plan_join
from feature_defs.model import EVENT_TIME, Aggregate, FeatureGroup
from jobs import arguments
from jobs.datasets import FoundDataset, found_dataset
from jobs.place import Place, now_us, time_of
from jobs.recorded import recorded_service, recorded_table, rules_of
from jobs.report import counted, table
from jobs.show import expression_text
from jobs.values import same, shown, typed

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

DISAGREES = 1
_ROWS_READ = 100  # of the dataset; spine rows that are alike have one answer
_NULL = "null"


@dataclass(frozen=True)
class WhyRow:
    """A row of the offline table. `rule` says by what it won, lost to the winner, or was left out."""

    role: str
    event_time: datetime.datetime
    created_time: datetime.datetime | None
    value: Any
    rule: str
    file: str | None


@dataclass(frozen=True)
class WindowCovered:
    """The window (after, until] of the winner's aggregate; `after` is None for an entity's whole life.

    `points` are the table's rows in it, `filled` those at which the source had rows that could count.
    """

    aggregate: str
    after: datetime.datetime | None
    until: datetime.datetime
    points: int
    filled: int | None


@dataclass(frozen=True)
class WhyReport:
    """`held` is what the dataset holds, `found` what the rules give now; `left_out` counts rows by rule."""

    dataset: str
    feature: str
    row: dict[str, Any]
    time: datetime.datetime | None
    held: Any
    found: Any
    agrees: bool
    decided_by: str
    rows: tuple[WhyRow, ...]
    left_out: dict[str, int]
    window: WindowCovered | None
    table: str
    table_version: int
    service: str
    snapshot: int

    @property
    def winner(self) -> WhyRow | None:
        return next((row for row in self.rows if row.role == "winner"), None)

    @property
    def exit_code(self) -> int:
        return 0 if self.agrees else DISAGREES

    def text(self) -> str:
        told = ", ".join(f"{name}={shown(value)}" for name, value in self.row.items())
        lines = [f"  {told} at {_clock(self.time)}: {self.feature} = {shown(self.held)}"]
        lines.append(f"  table {self.table} @{self.table_version} ({self.service}, registry snapshot {self.snapshot})")
        if self.rows:
            headers = ["", "event time (UTC)", "created time (UTC)", "value", "rule"]
            cells = [
                [one.role, _clock(one.event_time), _clock(one.created_time), shown(one.value), one.rule]
                for one in self.rows
            ]
            lines += ["", table(headers, cells), ""]
        lines.append(f"  decided by: {self.decided_by}")
        if self.left_out:
            lines.append("  left out: " + ", ".join(f"{counted(n, 'row')} {rule}" for rule, n in self.left_out.items()))
        if (won := self.winner) and won.file:
            lines.append(f"  file: {won.file}")
        if window := self.window:
            after = f"({_clock(window.after)}, {_clock(window.until)}]" if window.after else "its whole life"
            filled = f", {window.filled:,} with rows of the source" if window.filled is not None else ""
            lines.append(
                f"  window: {window.aggregate}, {after}: {counted(window.points, 'point')} of the table{filled}"
            )
        end = "the dataset holds what the table gives"
        if not self.agrees:
            end = f"the dataset and the table DISAGREE: the rules now give {shown(self.found)}"
        return "\n".join([*lines, end])


def _clock(time: datetime.datetime | None) -> str:
    """A time without what is zero at its end, in UTC."""
    if time is None:
        return "-"
    return f"{time:%Y-%m-%d %H:%M:%S.%f}".removesuffix(".000000")


def why(
    place: Place,
    dataset: str,
    feature: str,
    row: Mapping[str, str],
    *,
    at: datetime.datetime | None = None,
    runners_up: int = 3,
) -> WhyReport:
    """Explain the cell of `feature`, a column or GROUP.FEATURE, in the row with these values of spine columns."""
    from connectors.readable import any_version

    if runners_up < 0:
        raise UsageError("Option --runners-up", f"{runners_up} is less than none", hint="write 0 or more")
    found = found_dataset(place, dataset)
    column = _column(found.manifest, feature, dataset)
    snapshot, service = recorded_service(place, found.manifest)
    name, _, feature_name = column.feature.partition(".")
    group = snapshot.definitions.groups[name]
    rules = rules_of(found.manifest.options)
    plan = plan_join(service, snapshot.definitions, prefix=bool(found.manifest.options["prefix"]), rules=rules)
    joined = next(one for one in plan.groups if one.group == name)
    keys, time_us, held = _dataset_row(found, column, joined.keys, row, at)
    with any_version(place.spark):
        source, version = recorded_table(place, snapshot, group, found.manifest.table_versions)
        rows: list[dict[str, Any]] = []
        if time_us is not None and None not in keys.values():
            from jobs.transforms.candidates import Cell, candidates

            cell = Cell(keys, time_us, joined, feature_name, rules)
            whole = _with_file(source.read_all(version))
            covered = _covered(whole, group, feature_name)
            rows = candidates(whole, cell, covered, most=runners_up + 1).toArrow().to_pylist()
    for one in rows:
        one["value"] = _plain(one["value"], column.type)
    first = sorted((one for one in rows if one["rule"] is None), key=lambda one: one["place"])
    value = first[0]["value"] if first else None
    return WhyReport(
        dataset=dataset,
        feature=column.feature,
        row=keys,
        time=None if time_us is None else time_of(time_us),
        held=next((one for one in held if not same(one, value)), held[0]),
        found=value,
        agrees=all(same(one, value) for one in held),
        decided_by=_decided_by(first, keys, time_us),
        rows=_told(rows, source.uri, runners_up),
        left_out={one["rule"]: one["rows"] for one in _by_rule(rows) if one["place"] == 1},
        window=_window(first[0], group, feature_name) if first else None,
        table=place.table_path(group),
        table_version=version,
        service=found.manifest.service,
        snapshot=snapshot.number,
    )


def _column(manifest: Manifest, feature: str, dataset: str) -> Column:
    """The dataset's column of a feature, by its own name or as GROUP.FEATURE."""
    for column in manifest.columns:
        if column.feature and feature in (column.name, column.feature):
            return column
    names = [column.name for column in manifest.columns if column.feature]
    problem = f"is no feature of {dataset} ({listed(names)})"
    raise UsageError(f"Feature '{feature}'", problem, hint=near_miss(feature, names) + "name one of its columns")


# the dataset's row


def _dataset_row(
    found: FoundDataset,
    column: Column,
    keys: Sequence[str],
    row: Mapping[str, str],
    at: datetime.datetime | None,
) -> tuple[dict[str, Any], int | None, list[Any]]:
    """The one (keys, time) that is meant, and the cells of all rows with it."""
    from pyspark.sql import functions as F

    from feature_defs.expressions import quoted
    from jobs.transforms.rows import all_quoted, utc

    manifest, rows = found.manifest, found.rows
    time = F.unix_micros(utc(F.col(EVENT_TIME), rows.schema[EVENT_TIME].dataType))
    for name, text in row.items():
        rows = rows.where(_is(manifest, name, text))
    if at is not None:
        rows = rows.where(time == F.lit(now_us(at)))
    wanted = rows.select(
        *(F.col(key).alias(f"k{i}") for i, key in enumerate(all_quoted(keys))),
        time.alias("time"),
        F.col(quoted(column.name)).alias("cell"),
    )
    read = wanted.limit(_ROWS_READ).toArrow().to_pylist()
    points = list(dict.fromkeys((*(one[f"k{i}"] for i in range(len(keys))), one["time"]) for one in read))
    told = ", ".join([*row, *(["--at"] if at else [])])
    subject = f"Training set '{found.path}'"
    if not points:
        hint = "the values are those of spine columns; a time is UTC"
        raise DataError(subject, f"no row has the given {told}", hint=hint)
    if len(points) > 1:
        times = sorted({point[-1] for point in points if point[-1] is not None})
        few = listed([time_of(one).strftime("%Y-%m-%dT%H:%M:%S.%f").removesuffix(".000000") for one in times], 5)
        problem = f"rows of {len(points)} keys and times have the given {told} ({EVENT_TIME}: {few})"
        raise UsageError(subject, problem, hint="name one with --at, or more columns with --row")
    *values, time_us = points[0]
    return dict(zip(keys, values, strict=True)), time_us, [_plain(one["cell"], column.type) for one in read]


def _is(manifest: Manifest, name: str, text: str) -> Any:
    from pyspark.sql import functions as F

    from feature_defs.expressions import quoted

    types = {column.name: column.type for column in manifest.columns if not column.feature}
    if name not in types:
        hint = near_miss(name, types) + f"spine columns: {listed(types)}"
        raise UsageError("Option --row", f"'{name}' is not a column of the spine", hint=hint)
    column = F.col(quoted(name))
    if text == _NULL:
        return column.isNull()
    return column == F.lit(typed(name, data_types.parse(types[name]).kind, text))


def _plain(value: Any, kind: str) -> Any:
    """Arrow tells a map as a list of pairs."""
    return dict(value) if value is not None and kind.startswith("map<") else value


# the table's rows


def _with_file(rows: DataFrame) -> DataFrame:
    """The rows with the data file of each; a table that has no rows may have no files."""
    from pyspark.sql import functions as F

    from jobs.transforms.candidates import FILE

    path = F.col("_metadata.file_path") if rows.inputFiles() else F.lit(None).cast("string")
    return rows.select("*", path.alias(FILE))


def _covered(rows: DataFrame, group: FeatureGroup, feature: str) -> Any:
    """The window of an aggregate and the column that tells its tiles with rows; None for other features."""
    from feature_defs.model import HIDDEN
    from jobs.transforms.candidates import Covered
    from jobs.transforms.tiles import measure_of

    aggregate = group.feature(feature).expression
    if not isinstance(aggregate, Aggregate):
        return None
    prefix = f"{HIDDEN}{measure_of(aggregate).digest}_"
    tile = next((name for name in rows.columns if name.startswith(prefix)), None)
    return Covered(durations.microseconds(aggregate.window) if aggregate.window else None, tile)


def _window(winner: Mapping[str, Any], group: FeatureGroup, name: str) -> WindowCovered | None:
    feature = group.feature(name)
    if not isinstance(feature.expression, Aggregate):
        return None
    length = durations.microseconds(feature.expression.window) if feature.expression.window else None
    until = winner["event_time"]
    after = until - datetime.timedelta(microseconds=length) if length else None
    return WindowCovered(expression_text(feature), after, until, winner["points"], winner["filled"])


def _by_rule(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows that a rule left out, those of one rule together and newest first."""
    out = [one for one in rows if one["rule"] is not None]
    return sorted(out, key=lambda one: (one["rule"], one["place"]))


def _told(rows: Sequence[Mapping[str, Any]], uri: str, runners_up: int) -> tuple[WhyRow, ...]:
    """The winner, the runners-up, and the newest rows that each rule left out."""
    first = sorted((one for one in rows if one["rule"] is None), key=lambda one: one["place"])
    told = [
        ("winner" if not i else f"runner-up {i}", one, _lost(first[0], one) if i else "") for i, one in enumerate(first)
    ]
    if first:
        told[0] = ("winner", first[0], _won(first))
    told += [("left out", one, one["rule"]) for one in _by_rule(rows) if one["place"] <= max(runners_up, 1)]
    return tuple(
        WhyRow(role, one["event_time"], one["created_time"], one["value"], rule, _below(one["file"], uri))
        for role, one, rule in told
    )


def _won(first: Sequence[Mapping[str, Any]]) -> str:
    """The rule that decided between the winner and the next row."""
    if len(first) == 1 and first[0]["rows"] == 1:
        return "the only row left"
    if len(first) == 1:
        return "the first of several"
    winner, second = first[0], first[1]
    if winner["event_time"] != second["event_time"]:
        return "newest event_time"
    if winner["created_time"] != second["created_time"]:
        return "newest created_time"
    return "one of equal rows" if second["ties"] == 1 else "greatest values"


def _lost(winner: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """The rule by which a row that could answer does not."""
    if row["event_time"] != winner["event_time"]:
        return "older event_time"
    if row["created_time"] != winner["created_time"]:
        return "no created_time" if row["created_time"] is None else "older created_time"
    return "equal" if row["ties"] == 1 else "smaller values"


def _decided_by(first: Sequence[Mapping[str, Any]], keys: Mapping[str, Any], time_us: int | None) -> str:
    if first:
        return _won(first)
    missing = [name for name, value in keys.items() if value is None]
    if missing:
        return f"null key {missing[0]}: a key that is null matches nothing"
    if time_us is None:
        return f"null {EVENT_TIME}: a spine row without a time matches nothing"
    return "no row is left, so the answer is null"


def _below(path: str | None, uri: str) -> str | None:
    """A data file's path from its table's folder."""
    if path is None:
        return None
    plain, folder = unquote(path), re.sub(r"^file:/+", "/", uri)
    return plain.partition(f"{folder}/")[2] or plain


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", metavar="DATASET", help="lake://NAME/path of a training set; PATH@VERSION in Delta")
    parser.add_argument("feature", metavar="FEATURE", help="a column of it, or GROUP.FEATURE")
    parser.add_argument(
        "--row", action="append", default=[], metavar="KEY=VALUE,...", help="values of spine columns; `null` is null"
    )
    parser.add_argument(
        "--at", type=arguments.moment, metavar="TIME", help="the row's event_time, if there are several"
    )
    parser.add_argument("--runners-up", type=int, default=3, metavar="N", help="rows to show that lost (default: 3)")


def row_of(texts: Sequence[str]) -> dict[str, str]:
    """`a=1,b=2` -> its pairs; a comma that no NAME= follows is part of a value."""
    pairs = [pair for text in texts for pair in re.split(r",(?=[^,=]+=)", text)]
    malformed = [pair for pair in pairs if "=" not in pair]
    if malformed or not pairs:
        found = f"'{malformed[0]}' is not KEY=VALUE" if malformed else "is missing"
        raise UsageError("Option --row", found, hint="write --row customer_id=CUST001")
    return dict(pair.split("=", 1) for pair in pairs)


def run(place: Place, args: argparse.Namespace) -> WhyReport:
    return why(place, args.dataset, args.feature, row_of(args.row), at=args.at, runners_up=args.runners_up)


if __name__ == "__main__":
    from jobs.command_line import run_verb

    run_verb("why")
