"""diff: two training sets, row by row and cell by cell, and what in their manifests may be the reason.

    tidemark diff lake://work/churn_january lake://work/churn_february

A row is known by its spine's columns; rows that are alike in them meet one for one, in the order of their values.
Exit code 0: equal; 1: different. Examples name keys and times; feature values are shown only with `--values`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from connectors.manifests import Manifest, RowHash
from feature_defs.errors import UsageError
from feature_defs.model import EVENT_TIME, HIDDEN
from jobs.datasets import FoundDataset, found_dataset
from jobs.place import Place
from jobs.report import counted, step, table
from jobs.values import shown

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

DIFFERENT = 1
ONLY_LEFT, ONLY_RIGHT = "(only left)", "(only right)"  # no feature has such a name
_LEFT, _RIGHT, _SIDE, _HASH = "_tidemark_left", "_tidemark_right", "_tidemark_side", "_tidemark_hash"
_NUMBER, _FEATURE, _RANK = "_tidemark_number", "_tidemark_feature", "_tidemark_rank"


@dataclass(frozen=True)
class ChangedCell:
    """A cell that differs: the row's keys and event_time; the values only where they were asked for.

    A row that only one side has stands under ONLY_LEFT or ONLY_RIGHT.
    """

    feature: str
    row: dict[str, Any]
    values: tuple[Any, Any] | None


@dataclass(frozen=True)
class DiffReport:
    """`changed` counts the cells of each feature in rows that are in both. `no_longer` tells of files that changed."""

    left: str
    right: str
    left_rows: int
    right_rows: int
    columns_added: tuple[str, ...]
    columns_removed: tuple[str, ...]
    columns_retyped: tuple[str, ...]
    only_left: int
    only_right: int
    changed: dict[str, int]
    examples: tuple[ChangedCell, ...]
    reasons: tuple[str, ...]
    no_longer: tuple[str, ...]
    seconds: float

    @property
    def equal(self) -> bool:
        columns = self.columns_added or self.columns_removed or self.columns_retyped
        return not (columns or self.only_left or self.only_right or any(self.changed.values()))

    @property
    def exit_code(self) -> int:
        return 0 if self.equal else DIFFERENT

    def text(self) -> str:
        lines = [f"  left   {self.left}: {counted(self.left_rows, 'row')}"]
        lines += [f"  right  {self.right}: {counted(self.right_rows, 'row')}"]
        for sign, names in (("+", self.columns_added), ("-", self.columns_removed), ("~", self.columns_retyped)):
            lines += [f"  {sign} column {name}" for name in names]
        for side, rows in (("left", self.only_left), ("right", self.only_right)):
            lines += [f"  {counted(rows, 'row')} only {side}"] if rows else []
        if told := {name: n for name, n in self.changed.items() if n}:
            lines += ["", table(["feature", "changed cells"], list(told.items()))]
        if self.examples:
            lines += ["", self._examples()]
        if self.reasons:
            lines += ["", "  what was not the same:", *(f"    {reason}" for reason in self.reasons)]
        elif not self.equal:
            lines += [
                "",
                "  the manifests name no reason: service, tables, definitions, spine and options are the same",
            ]
        lines += [f"  warning: {one}" for one in self.no_longer]
        return "\n".join([*lines, f"{'equal' if self.equal else 'different'}, {self.seconds:.1f} s"])

    def _examples(self) -> str:
        rows = []
        for cell in self.examples:
            told = ", ".join(f"{key}={shown(value)}" for key, value in cell.row.items() if key != EVENT_TIME)
            at = cell.row.get(EVENT_TIME)
            rows.append([cell.feature, told, shown(at), *(map(shown, cell.values) if cell.values else ())])
        values = ["left", "right"] if any(cell.values for cell in self.examples) else []
        return table(["for example", "row", "event time (UTC)", *values], rows)


def diff(place: Place, left: str, right: str, *, examples: int = 3, values: bool = False) -> DiffReport:
    """Hold two training sets against each other; `examples` a feature, with their values if wanted."""
    started = time.monotonic()
    if examples < 0:
        raise UsageError("Option --examples", f"{examples} is less than none", hint="write 0 or more")
    first, second = found_dataset(place, left), found_dataset(place, right)
    with step("diff"):
        found = _compared(first, second, examples=examples, values=values)
    hashes = found.pop("hashes")
    sides = zip((first, second), hashes, strict=True)
    changed_since = [
        f"{side.path} does not hold what its manifest says: it was {side.manifest.hash}, it is {now}"
        for side, now in sides
        if side.manifest.hash not in (None, now)
    ]
    return DiffReport(
        left=left,
        right=right,
        left_rows=hashes[0].rows,
        right_rows=hashes[1].rows,
        reasons=tuple(reasons(first.manifest, second.manifest)),
        no_longer=tuple(changed_since),
        seconds=round(time.monotonic() - started, 3),
        **found,
    )


def reasons(left: Manifest, right: Manifest) -> list[str]:
    """What two training sets were made of differently."""
    then, now = _made_of(left), _made_of(right)
    names = [*then, *(name for name in now if name not in then)]
    pairs = [(name, then.get(name, "none"), now.get(name, "none")) for name in names]
    return [f"{name}: {one} -> {other}" for name, one, other in pairs if one != other]


def _made_of(manifest: Manifest) -> dict[str, str]:
    return {
        "service": manifest.service,
        **{f"definitions of {group}": fingerprint for group, fingerprint in manifest.fingerprints.items()},
        **{f"table of {group}": f"@{version}" for group, version in manifest.table_versions.items()},
        **{f"option {name}": str(value) for name, value in manifest.options.items()},
        "spine": _spine_text(manifest),
    }


def _spine_text(manifest: Manifest) -> str:
    spine = manifest.spine
    at = f" @{spine.version}" if spine.version is not None else ""
    return f"{spine.path or 'a DataFrame'}{at}" + (f" ({spine.hash})" if spine.hash else "")


# rows


def _compared(first: FoundDataset, second: FoundDataset, *, examples: int, values: bool) -> dict[str, Any]:
    """All that the rows tell, as the report names it: one job to count, one more for examples when there are any."""
    kinds = [{column.name: column.type for column in side.manifest.columns} for side in (first, second)]
    shared = [name for name in kinds[0] if kinds[1].get(name) == kinds[0][name]]
    is_spine = {*first.manifest.spine_columns} & {*second.manifest.spine_columns}
    identity = [name for name in shared if name in is_spine]
    features = [name for name in shared if name not in is_spine]
    matched = _matched(first, second, identity, features)
    counts = _counts(matched, features)
    changed = {name: int(counts[f"changed_{i}"]) for i, name in enumerate(features)}
    keys = [name for name in first.manifest.keys if name in identity]
    shown_columns = [*keys, *([EVENT_TIME] if EVENT_TIME in identity else [])]
    alone = {ONLY_LEFT: counts["only_left"], ONLY_RIGHT: counts["only_right"]}
    maps = [name for name in features if kinds[0][name].startswith("map<")]
    cells = _examples(matched, {**changed, **alone}, shown_columns, maps=maps, most=examples, values=values)
    return {
        "columns_added": tuple(f"{name} {kind}" for name, kind in kinds[1].items() if name not in kinds[0]),
        "columns_removed": tuple(f"{name} {kind}" for name, kind in kinds[0].items() if name not in kinds[1]),
        "columns_retyped": tuple(
            f"{name}: {kind} -> {kinds[1][name]}" for name, kind in kinds[0].items() if kinds[1].get(name, kind) != kind
        ),
        "only_left": counts["only_left"],
        "only_right": counts["only_right"],
        "changed": changed,
        "examples": cells,
        "hashes": _hashes(counts),
    }


def _matched(first: FoundDataset, second: FoundDataset, identity: list[str], features: list[str]) -> DataFrame:
    """(identity, left and right features, their rows' hashes): one row for two that are alike; a side may be null.

    One shuffle, by identity: rows are numbered a side within it, and the numbers then meet.
    """
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    from jobs.transforms.rows import all_quoted

    sides = [_side(side, identity, features, label) for side, label in ((first, _LEFT), (second, _RIGHT))]
    keys = all_quoted(identity)
    union = sides[0].unionByName(sides[1])
    spread = union.repartition(*keys) if keys else union.repartition(1)
    numbered = spread.withColumn(
        _NUMBER, F.row_number().over(Window.partitionBy(*keys, _SIDE).orderBy(*all_quoted(features), _HASH))
    )
    values = F.struct(
        *(F.col(name).alias(f"v{i}") for i, name in enumerate(all_quoted(features))), F.col(_HASH).alias("h")
    )
    return numbered.groupBy(*keys, _NUMBER).agg(
        *(F.max(F.when(F.col(_SIDE) == side, values)).alias(side) for side in (_LEFT, _RIGHT))
    )


def _side(found: FoundDataset, identity: list[str], features: list[str], label: str) -> DataFrame:
    """One side's columns in a form that can be compared and grouped: maps as their sorted entries."""
    from pyspark.sql import functions as F
    from pyspark.sql.types import MapType

    from jobs.transforms.row_hash import row_hash
    from jobs.transforms.rows import all_quoted

    hashed = row_hash(found.rows, [column.name for column in found.manifest.columns])
    columns = []
    for name, column in zip([*identity, *features], all_quoted([*identity, *features]), strict=True):
        is_map = isinstance(found.rows.schema[name].dataType, MapType)
        columns.append(F.sort_array(F.map_entries(column)).alias(name) if is_map else F.col(column))
    return found.rows.select(*columns, hashed.alias(_HASH), F.lit(label).alias(_SIDE))


def _counts(matched: DataFrame, features: list[str]) -> dict[str, Any]:
    from pyspark.sql import functions as F

    from jobs.transforms.row_hash import hash_sums

    left, right = F.col(_LEFT), F.col(_RIGHT)
    row = matched.agg(
        F.count(left).alias("left_rows"),
        F.count(right).alias("right_rows"),
        F.count_if(right.isNull()).alias("only_left"),
        F.count_if(left.isNull()).alias("only_right"),
        *(F.count_if(_differs(i)).alias(f"changed_{i}") for i in range(len(features))),
        *hash_sums(left.getField("h"), "left"),
        *hash_sums(right.getField("h"), "right"),
    )
    return dict(row.collect()[0].asDict())


def _hashes(counts: dict[str, Any]) -> tuple[RowHash, RowHash]:
    from jobs.transforms.row_hash import row_hash_of

    return (
        row_hash_of(counts, "left", counts["left_rows"]),
        row_hash_of(counts, "right", counts["right_rows"]),
    )


def _differs(number: int) -> Any:
    """Whether a feature's cells differ in a row that both sides have."""
    from pyspark.sql import functions as F

    left, right = F.col(_LEFT), F.col(_RIGHT)
    unequal = ~left.getField(f"v{number}").eqNullSafe(right.getField(f"v{number}"))
    return left.isNotNull() & right.isNotNull() & unequal


def _examples(
    matched: DataFrame, changed: dict[str, int], row: list[str], *, maps: Sequence[str], most: int, values: bool
) -> tuple[ChangedCell, ...]:
    """The first changed cells of each feature, and rows of one side, by time and keys; one job for all."""
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    from jobs.transforms.rows import all_quoted

    names = list(changed)
    numbers = [number for number, name in enumerate(names) if changed[name]]
    if not numbers or not most:
        return ()
    alone = {ONLY_LEFT: F.col(_RIGHT).isNull(), ONLY_RIGHT: F.col(_LEFT).isNull()}
    differs = {number: alone[names[number]] if names[number] in alone else _differs(number) for number in numbers}
    which = F.array_compact(F.array(*(F.when(found, F.lit(number)) for number, found in differs.items())))
    cells = matched.where(F.size(which) > 0).withColumn(_FEATURE, F.explode(which))
    order = [*all_quoted([*(name for name in row if name == EVENT_TIME), *row]), _NUMBER]
    ranked = cells.withColumn(_RANK, F.row_number().over(Window.partitionBy(_FEATURE).orderBy(*order)))
    # field by field: Arrow takes no null struct whose fields are never null
    cells_of = [number for number in numbers if values and names[number] not in alone]
    sides = [(f"{side}{n}", f"{name}.v{n}") for n in cells_of for side, name in (("left", _LEFT), ("right", _RIGHT))]
    kept = [F.col(name) for name in (_FEATURE, _RANK, *all_quoted(row))]
    kept += [F.col(path).alias(HIDDEN + name) for name, path in sides]
    found = ranked.where(F.col(_RANK) <= most).select(*kept).toArrow().to_pylist()
    told = []
    for cell in sorted(found, key=lambda one: (one[_FEATURE], one[_RANK])):
        number = cell[_FEATURE]
        pair = None
        if number in cells_of:
            left, right = (_value(cell[f"{HIDDEN}{side}{number}"], names[number] in maps) for side in ("left", "right"))
            pair = (left, right)
        told.append(ChangedCell(names[number], {name: cell[name] for name in row}, pair))
    return tuple(told)


def _value(value: Any, is_map: bool) -> Any:
    """A cell as it was before maps became their entries."""
    return {entry["key"]: entry["value"] for entry in value} if is_map and value is not None else value


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("left", metavar="LEFT", help="lake://NAME/path of a training set; PATH@VERSION of one in Delta")
    parser.add_argument("right", metavar="RIGHT", help="the other one")
    parser.add_argument(
        "--examples", type=int, default=3, metavar="N", help="changed cells to show a feature (default: 3)"
    )
    parser.add_argument("--values", action="store_true", help="show the values of these cells, too")


def run(place: Place, args: argparse.Namespace) -> DiffReport:
    return diff(place, args.left, args.right, examples=args.examples, values=args.values)


if __name__ == "__main__":
    from jobs.command_line import run_verb

    run_verb("diff")
