"""compare: a group's table in two places, by a hash of its rows that knows no order; then what differs.

    rows of both -> a hash a version, all in one job -> where they differ: matched by key and event_time, cells counted

For a replica, and for a definition that two places have computed for themselves. One Spark session reads both places.
Exit code 0: equal; 1: different. Examples name keys and times; feature values are shown only with `--values`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from connectors.manifests import RowHash
from connectors.offline_tables import OfflineTable
from connectors.readable import any_version, what_is_gone
from connectors.spark_errors import data_errors
from feature_defs.errors import EXIT_DONE, DataError, UsageError
from feature_defs.model import EVENT_TIME
from jobs import arguments
from jobs.datasets import types_of
from jobs.place import Place, chosen_groups, open_place
from jobs.report import counted, step, table
from jobs.row_diff import (
    ONLY_LEFT,
    ONLY_RIGHT,
    ChangedCell,
    Rows,
    counts_of,
    examples_of,
    examples_table,
    matched,
)
from jobs.transforms.row_hash import hash_sums, row_hash, row_hash_of

DIFFERENT = 1
EXAMPLES = 3
_PART, _HASH = "_tidemark_part", "_tidemark_hash"


@dataclass(frozen=True)
class ComparedVersion:
    """One version of either table."""

    left_version: int
    right_version: int
    left: RowHash
    right: RowHash
    equal: bool


@dataclass(frozen=True)
class ComparedGroup:
    """One group. Columns and rows are those of the last version that differs; `changed` counts each column's cells in
    rows that are in both. `definitions` are the fingerprints, where they are not the same."""

    group: str
    versions: tuple[ComparedVersion, ...]
    definitions: tuple[str, str] | None
    columns_added: tuple[str, ...]
    columns_removed: tuple[str, ...]
    columns_retyped: tuple[str, ...]
    only_left: int
    only_right: int
    changed: dict[str, int]
    examples: tuple[ChangedCell, ...]
    equal: bool


@dataclass(frozen=True)
class CompareReport:
    left: str
    right: str
    groups: tuple[ComparedGroup, ...]
    seconds: float

    @property
    def equal(self) -> bool:
        return all(group.equal for group in self.groups)

    @property
    def exit_code(self) -> int:
        return EXIT_DONE if self.equal else DIFFERENT

    def text(self) -> str:
        headers = [
            "group",
            *(f"{side} {what}" for what in ("version", "rows", "hash") for side in (self.left, self.right)),
        ]
        lines = [
            (g.group, v.left_version, v.right_version, v.left.rows, v.right.rows, v.left.sum,
             "the same" if v.equal else v.right.sum)
            for g in self.groups
            for v in g.versions
        ]  # fmt: skip
        told = [table(headers, lines)]
        for group in self.groups:
            told += [f"  {group.group}: {line}" for line in _differences(group, self.left, self.right)]
            told += [examples_table(group.examples)] if group.examples else []
        return "\n".join([*told, f"{'equal' if self.equal else 'different'}, {self.seconds:.1f} s"])


def _differences(group: ComparedGroup, left: str, right: str) -> list[str]:
    told = []
    if group.definitions:
        one, other = group.definitions
        told.append(f"its definitions are not the same: {one} in {left}, {other} in {right}")
    for verb, names in (
        (f"only in {right}", group.columns_added),
        (f"only in {left}", group.columns_removed),
        ("of another type", group.columns_retyped),
    ):
        told += [f"column {name}: {verb}" for name in names]
    told += [f"{counted(group.only_left, 'row')} only in {left}"] if group.only_left else []
    told += [f"{counted(group.only_right, 'row')} only in {right}"] if group.only_right else []
    return told + [f"{name} differs in {counted(n, 'row')}" for name, n in group.changed.items() if n]


def compare(
    place: Place,
    groups: Sequence[str] = (),
    *,
    right: Place,
    version: int | None = None,
    every_version: bool = False,
    examples: int = EXAMPLES,
    values: bool = False,
) -> CompareReport:
    """Hold these groups' tables (none: of all that are not deprecated) against those of the other place: the newest
    versions, one version, or every version that both have."""
    started = time.monotonic()
    if examples < 0:
        raise UsageError("Option --examples", f"{examples} is less than none", hint="write 0 or more")
    if version is not None and every_version:
        raise UsageError("Option --version", "one version, or every version", hint="leave --every-version out")
    mine, theirs = place.applied(), right.applied()
    pairs = [(group, chosen_groups(theirs, [group.name])[0]) for group in chosen_groups(mine, groups)]
    spark, found = _reading_both(place, right).spark, []
    for group, other in pairs:
        with step(f"compare {group.name}"), data_errors(f"FeatureGroup '{group.name}'"), any_version(spark):
            sides = _Sides(
                group.name,
                place.table_in(spark, group),
                right.table_in(spark, other),
                tuple(mine.definitions.entity_of(group).keys),
            )
            numbers = _versions(spark, sides, place, right, version, every_version=every_version)
            definitions = mine.fingerprint(group.name), theirs.fingerprint(group.name)
            found.append(_compared(sides, numbers, definitions, examples=examples, values=values))
    return CompareReport(
        left=place.settings.name,
        right=right.settings.name,
        groups=tuple(found),
        seconds=round(time.monotonic() - started, 3),
    )


def _reading_both(place: Place, right: Place) -> Place:
    """The left place with the right one's lakes besides, so that its session has what both need."""
    one, other = place.settings, right.settings
    lakes = {**{f"{name} of {other.name}": base for name, base in other.lakes.items()}, **one.lakes}
    return Place(replace(one, lakes=lakes, hdfs={**other.hdfs, **one.hdfs}, adls={**other.adls, **one.adls}))


@dataclass(frozen=True)
class _Sides:
    """A group's table in both places, and the keys of its entity."""

    group: str
    left: OfflineTable
    right: OfflineTable
    keys: Sequence[str]


def _versions(
    spark: SparkSession, sides: _Sides, place: Place, right: Place, version: int | None, *, every_version: bool
) -> list[tuple[int, int]]:
    """The versions to compare, of the left and of the right table."""
    newest = []
    for side, where in ((sides.left, place), (sides.right, right)):
        found = side.version()
        if found is None:
            problem = f"has no offline table in {where.settings.name}"
            raise DataError(f"FeatureGroup '{sides.group}'", problem, hint="compute it there, or replicate it")
        newest.append(found)
    if every_version:
        both = sorted({*sides.left.versions()} & {*sides.right.versions()})
        tables = (sides.left, sides.right)
        return [(n, n) for n in both if not any(what_is_gone(spark, one, n) for one in tables)]
    return [(newest[0] if version is None else version, newest[1] if version is None else version)]


def _compared(
    sides: _Sides,
    numbers: Sequence[tuple[int, int]],
    definitions: tuple[str, str],
    *,
    examples: int,
    values: bool,
) -> ComparedGroup:
    read = [(sides.left.read(one), sides.right.read(other)) for one, other in numbers]
    shared = [_shared(one, other) for one, other in read]
    hashes = hashes_of([Rows(rows, names) for pair, names in zip(read, shared, strict=True) for rows in pair])
    versions = []
    for i, (one, other) in enumerate(numbers):
        left, right = hashes[2 * i], hashes[2 * i + 1]
        same = left == right and types_of(read[i][0].schema) == types_of(read[i][1].schema)
        versions.append(ComparedVersion(one, other, left, right, same))
    wrong = [i for i, version in enumerate(versions) if not version.equal]
    at = wrong[-1] if wrong else -1
    kinds = tuple(types_of(rows.schema) for rows in read[at]) if read else ({}, {})
    cells = _cells(sides.keys, read[at], shared[at], examples=examples, values=values) if wrong else _Cells()
    return ComparedGroup(
        group=sides.group,
        versions=tuple(versions),
        definitions=definitions if definitions[0] != definitions[1] else None,
        columns_added=tuple(f"{name} {kind}" for name, kind in kinds[1].items() if name not in kinds[0]),
        columns_removed=tuple(f"{name} {kind}" for name, kind in kinds[0].items() if name not in kinds[1]),
        columns_retyped=tuple(
            f"{name}: {kind} -> {kinds[1][name]}" for name, kind in kinds[0].items() if kinds[1].get(name, kind) != kind
        ),
        only_left=cells.only_left,
        only_right=cells.only_right,
        changed=cells.changed,
        examples=cells.examples,
        equal=not wrong,
    )


def _shared(left: DataFrame, right: DataFrame) -> list[str]:
    """The columns that both have with one type, in the left one's order."""
    kinds = types_of(right.schema)
    return [name for name, kind in types_of(left.schema).items() if kinds.get(name) == kind]


def hashes_of(parts: Sequence[Rows]) -> list[RowHash]:
    """The hash of each of these, in one job."""
    if not parts:
        return []
    slim = [
        part.rows.select(F.lit(i).alias(_PART), row_hash(part.rows, part.columns).alias(_HASH))
        for i, part in enumerate(parts)
    ]
    union = slim[0]
    for other in slim[1:]:
        union = union.unionAll(other)
    sums = union.groupBy(_PART).agg(F.count(F.lit(1)).alias("rows"), *hash_sums(F.col(_HASH), "h")).collect()
    found = {row[_PART]: row.asDict() for row in sums}
    nothing = RowHash(0, f"{0:016x}")
    return [row_hash_of(found[i], "h", found[i]["rows"]) if i in found else nothing for i in range(len(parts))]


@dataclass(frozen=True)
class _Cells:
    only_left: int = 0
    only_right: int = 0
    changed: dict[str, int] = field(default_factory=dict)
    examples: tuple[ChangedCell, ...] = ()


def _cells(
    keys: Sequence[str], pair: tuple[DataFrame, DataFrame], shared: Sequence[str], *, examples: int, values: bool
) -> _Cells:
    """What differs in the columns that both have, row by row."""
    identity = [name for name in (*keys, EVENT_TIME) if name in shared]
    others = [name for name in shared if name not in identity]
    rows = matched(Rows(pair[0], shared), Rows(pair[1], shared), identity, others)
    counts = counts_of(rows, others)
    changed = {name: int(counts[f"changed_{i}"]) for i, name in enumerate(others)}
    alone = {ONLY_LEFT: counts["only_left"], ONLY_RIGHT: counts["only_right"]}
    maps = [name for name, kind in types_of(pair[0].schema).items() if kind.startswith("map<")]
    told = examples_of(rows, {**changed, **alone}, identity, maps=maps, most=examples, values=values)
    return _Cells(counts["only_left"], counts["only_right"], changed, told)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_groups(parser)
    arguments.add_place(parser, "--left", "a place, whose Spark runs")
    parser.add_argument("--right", required=True, metavar="PROFILE", help="the other place")
    parser.add_argument(
        "--version", type=int, metavar="N", help="a version of both tables (default: the newest of each)"
    )
    parser.add_argument("--every-version", action="store_true", help="every version that can be read in both places")
    parser.add_argument(
        "--examples",
        type=int,
        default=EXAMPLES,
        metavar="N",
        help=f"cells and rows to show a column (default: {EXAMPLES})",
    )
    parser.add_argument("--values", action="store_true", help="show the values of these cells, too")


def run(place: Place, args: argparse.Namespace) -> CompareReport:
    told = {name: getattr(args, name) for name in ("version", "every_version", "examples", "values")}
    return compare(place, args.groups, right=open_place(args.right), **told)


if __name__ == "__main__":
    from jobs.command_line import run_verb

    run_verb("compare")
