"""The manifest of a training set: all that another run needs to make the same rows, and the hash that tells if it did.

    OUT/_tidemark.json           a Parquet or csv dataset: the file appears with the rows
    OUT/_tidemark/RUN.json       a Delta dataset: the commit names the run, and its rows are counted by then

Plain JSON in, plain JSON out. docs/proof.md defines the hash.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from connectors.file_store import FileStore
from connectors.lakes import joined
from connectors.pins import DATASET_MANIFEST
from feature_defs.errors import DataError
from feature_defs.model import EVENT_TIME

VERB = "training-set"
FORMAT = 2  # 1, which named no format, had no hash
FOLDER = "_tidemark"


@dataclass(frozen=True)
class RowHash:
    """How many rows, and the sum of their hashes in 16 hexadecimal digits: blind to their order, not to a duplicate."""

    rows: int
    sum: str

    def __str__(self) -> str:
        return f"{self.rows:,} row{'' if self.rows == 1 else 's'}, hash {self.sum}"


@dataclass(frozen=True)
class SpineRecord:
    """The spine that was read. A DataFrame of a notebook has no path; only a Delta table has a version.

    `keys` are columns under other names than the entities', `labels` columns that no feature may read.
    """

    path: str
    format: str
    version: int | None
    hash: RowHash | None = None
    event_time: str = EVENT_TIME
    keys: Mapping[str, str] = field(default_factory=dict)
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Column:
    """A column of the dataset. `feature` is GROUP.FEATURE; a column of the spine has none, nor has that of parts."""

    name: str
    type: str
    feature: str = ""


@dataclass(frozen=True)
class Manifest:
    """What a dataset was made of. `hash` is None where the run ended between a Delta commit and its count."""

    run: str
    service: str
    snapshot: int
    fingerprints: Mapping[str, str]
    table_versions: Mapping[str, int]
    spine: SpineRecord
    options: Mapping[str, Any]
    keys: tuple[str, ...]
    columns: tuple[Column, ...]
    files: str = "parquet"  # the format of the dataset's files
    splits: tuple[Mapping[str, Any], ...] = ()
    hash: RowHash | None = None
    replay_of: str = ""

    @property
    def spine_columns(self) -> tuple[str, ...]:
        own = [column.name for column in self.columns if not column.feature]
        return tuple(own[:-1] if self.splits else own)

    def counted(self, spine: RowHash, rows: RowHash) -> Manifest:
        """The same with what was counted while the rows were written."""
        return replace(self, spine=replace(self.spine, hash=spine), hash=rows)


def to_plain(manifest: Manifest) -> dict[str, Any]:
    plain = asdict(manifest)
    for part in (plain, plain["spine"]):  # what is not known yet is not there
        counted = part.pop("hash")
        part.update({"rows": counted["rows"], "hash": counted["sum"]} if counted else {})
    if not manifest.replay_of:
        del plain["replay_of"]
    return {"verb": VERB, "format": FORMAT, **plain}


def from_plain(plain: Mapping[str, Any], where: str) -> Manifest:
    """The manifest that this plain data is; `where` it lies is for messages."""
    subject = f"Manifest '{where}'"
    number = plain.get("format", 1)
    if plain.get("verb") != VERB or not isinstance(number, int):
        hint = "name a training set, or the manifest of one"
        raise DataError(subject, "is not a training set's", hint=hint)
    if number > FORMAT:
        raise DataError(subject, f"has format {number}, this Tidemark reads {FORMAT}", hint="upgrade Tidemark")
    if number < FORMAT:
        problem = "is of an older Tidemark, which kept no hash of rows and spine"
        raise DataError(subject, problem, hint="write the training set again with `tidemark training-set`")
    try:
        spine = plain["spine"]
        return Manifest(
            run=str(plain["run"]),
            service=str(plain["service"]),
            snapshot=int(plain["snapshot"]),
            fingerprints=dict(plain["fingerprints"]),
            table_versions={str(name): int(version) for name, version in plain["table_versions"].items()},
            spine=SpineRecord(
                path=str(spine["path"]),
                format=str(spine["format"]),
                version=spine["version"],
                event_time=str(spine["event_time"]),
                keys=dict(spine["keys"]),
                labels=tuple(spine["labels"]),
                hash=_row_hash(spine),
            ),
            options=dict(plain["options"]),
            keys=tuple(plain["keys"]),
            columns=tuple(Column(**column) for column in plain["columns"]),
            files=str(plain["files"]),
            splits=tuple(dict(part) for part in plain["splits"]),
            hash=_row_hash(plain),
            replay_of=str(plain.get("replay_of", "")),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        problem = f"cannot be read ({type(error).__name__}: {error})"
        raise DataError(subject, problem, hint="restore the file; manifests are never edited") from error


def _row_hash(plain: Mapping[str, Any]) -> RowHash | None:
    return RowHash(int(plain["rows"]), str(plain["hash"])) if "hash" in plain else None


def parsed(text: bytes, where: str) -> Manifest:
    try:
        plain = json.loads(text)
    except ValueError as error:
        raise DataError(
            f"Manifest '{where}'", "is not JSON", hint="name a training set, or the manifest of one"
        ) from error
    return from_plain(plain if isinstance(plain, dict) else {}, where)


def written(manifest: Manifest) -> bytes:
    return json.dumps(to_plain(manifest), indent=1, ensure_ascii=False).encode()


def read_folder_manifest(files: FileStore, uri: str) -> Manifest | None:
    """The manifest of a Parquet or csv dataset; None where there is none."""
    try:
        return parsed(files.read(joined(uri, DATASET_MANIFEST)), uri)
    except FileNotFoundError:
        return None


def counted_uri(uri: str, run: str) -> str:
    """Where the whole manifest of a Delta dataset's commit lies."""
    return joined(uri, FOLDER, f"{run}.json")


def read_delta_manifest(files: FileStore, uri: str, note: Mapping[str, Any]) -> Manifest | None:
    """The manifest of a version of a Delta dataset, by the note of its commit; None when that is of another verb."""
    if note.get("verb") != VERB:
        return None
    begun = from_plain(note, uri)
    if begun.hash is not None:
        return begun
    try:
        return parsed(files.read(counted_uri(uri, begun.run)), uri)
    except FileNotFoundError:
        return begun
