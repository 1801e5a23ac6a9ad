"""diff: two training sets, row by row and cell by cell, and what in their manifests may be the reason.

    tidemark diff lake://work/churn_january lake://work/churn_february

A row is known by its spine's columns; rows that are alike in them meet one for one, in the order of their values.
Exit code 0: equal; 1: different. Examples name keys and times; feature values are shown only with `--values`.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from typing import Any

from connectors.manifests import Manifest
from feature_defs.errors import UsageError
from feature_defs.model import EVENT_TIME
from jobs.datasets import FoundDataset, found_dataset
from jobs.place import Place
from jobs.report import counted, step, table
from jobs.row_diff import (
    ONLY_LEFT,
    ONLY_RIGHT,
    ChangedCell,
    Rows,
    counts_of,
    examples_of,
    examples_table,
    hashes_of,
    matched,
)

DIFFERENT = 1


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
            lines += ["", examples_table(self.examples)]
        if self.reasons:
            lines += ["", "  what was not the same:", *(f"    {reason}" for reason in self.reasons)]
        elif not self.equal:
            lines += [
                "",
                "  the manifests name no reason: service, tables, definitions, spine and options are the same",
            ]
        lines += [f"  warning: {one}" for one in self.no_longer]
        return "\n".join([*lines, f"{'equal' if self.equal else 'different'}, {self.seconds:.1f} s"])


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
    sides = [Rows(side.rows, [column.name for column in side.manifest.columns]) for side in (first, second)]
    rows = matched(sides[0], sides[1], identity, features)
    counts = counts_of(rows, features)
    changed = {name: int(counts[f"changed_{i}"]) for i, name in enumerate(features)}
    keys = [name for name in first.manifest.keys if name in identity]
    shown_columns = [*keys, *([EVENT_TIME] if EVENT_TIME in identity else [])]
    alone = {ONLY_LEFT: counts["only_left"], ONLY_RIGHT: counts["only_right"]}
    maps = [name for name in features if kinds[0][name].startswith("map<")]
    cells = examples_of(rows, {**changed, **alone}, shown_columns, maps=maps, most=examples, values=values)
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
        "hashes": hashes_of(counts),
    }


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
