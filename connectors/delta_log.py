"""A Delta table's log, read without Spark: its commits, the notes in them, and what a version is made of.

newest whole checkpoint, commits after it -> actions -> the files that are live, the metadata, the note
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
from pyarrow import parquet

from connectors.file_store import FileStore
from connectors.lakes import joined
from feature_defs.errors import DataError

LOG = "_delta_log"
_SIDECARS = "_sidecars"  # in the log's folder, what a V2 checkpoint's adds are in
# in one file, in several parts, or (V2) in one of a name of its own
_CHECKPOINT = re.compile(r"(\d{20})\.checkpoint(?:\.(\d{10})\.(\d{10})|\.([0-9a-f-]{36}))?\.(?:parquet|json)")
_COLUMNS = (
    "add.path",
    "add.size",
    "add.partitionValues",
    "add.deletionVector",
    "metaData.id",
    "metaData.configuration",
    "metaData.partitionColumns",
    "metaData.schemaString",
    "protocol.minReaderVersion",
    "protocol.minWriterVersion",
    "protocol.readerFeatures",
    "protocol.writerFeatures",
    "sidecar.path",
)

_STATS = "add.stats"
_BEFORE_FIRST = -1
Action = Mapping[str, Any]


@dataclass(frozen=True)
class DeltaVersion:
    """One version: the `add` action of each live file, the newest metadata and protocol, and what the run that wrote it
    says."""

    version: int
    adds: tuple[Action, ...]
    metadata: Action
    note: Mapping[str, Any]
    protocol: Action


def commit_actions(files: FileStore, uri: str, version: int) -> Iterator[Action]:
    """A commit's actions in their order; FileNotFoundError when Delta's own retention has cleaned it up."""
    return _json_actions(files.read(commit_uri(uri, version)))


def commit_uri(uri: str, version: int) -> str:
    return joined(uri, LOG, f"{version:020d}.json")


def commits(files: FileStore, uri: str) -> list[int]:
    """The versions whose commits are in the log."""
    names = (file.path for file in files.list_files(joined(uri, LOG)))
    return [int(name[:20]) for name in names if re.fullmatch(r"\d{20}\.json", name)]


def info_in(actions: Iterable[Action]) -> Action:
    """What a commit says of itself."""
    return next((action["commitInfo"] for action in actions if "commitInfo" in action), {})


def note_of(info: Action) -> dict[str, Any]:
    """What the run says that made a commit; nothing where somebody else did, who may say what they like."""
    text = info.get("userMetadata") or ""
    return dict(json.loads(text)) if text.startswith("{") else {}


def restored_by(info: Action) -> int | None:
    """The version whose rows a RESTORE brought back; None of another operation.

    One that names a time does not say which: it is taken as one before the first, which says nothing.
    """
    if info.get("operation") != "RESTORE":
        return None
    version = (info.get("operationParameters") or {}).get("version")
    return _BEFORE_FIRST if version in (None, "null") else int(version)


def delta_version(
    files: FileStore, uri: str, subject: str, version: int | None = None, *, stats: bool = False
) -> DeltaVersion | None:
    """A version of the table at a URI, by default the newest; None when there is no table.

    What a checkpoint says of the values in each file, kilobytes of text, is read where `stats` are asked for.
    """
    there = commits(files, uri)
    if not there:
        return None
    wanted = max(there) if version is None else version
    if wanted not in there:
        raise DataError(subject, f"has no version {wanted}", hint=f"versions {min(there)} to {max(there)} are there")
    whole = whole_checkpoints(file.path for file in files.list_files(joined(uri, LOG)))
    start = max((number for number in whole if number <= wanted), default=-1)
    parts = whole[start][0] if start >= 0 else ()
    needed = range(start + 1, wanted + 1)
    if not set(needed) <= set(there):
        problem = f"the log of version {wanted} is not all there"
        raise DataError(subject, problem, hint="read it with Spark: .spark()")
    live: dict[tuple[str, str], Action] = {}
    metadata: Action = {}
    protocol: Action = {}
    checkpointed = checkpoint_actions(files, uri, parts, stats=stats)
    committed = (a for number in needed for a in commit_actions(files, uri, number))
    for actions in (checkpointed, committed):
        for action in actions:
            metadata = action.get("metaData") or metadata
            protocol = action.get("protocol") or protocol
            if remove := action.get("remove"):
                live.pop(file_key(remove), None)
            if add := action.get("add"):
                live[file_key(add)] = add
    adds = tuple(sorted(live.values(), key=file_key))
    note = _note(files, uri, [number for number in there if number <= wanted])
    return DeltaVersion(wanted, adds, metadata, note, protocol)


def file_key(action: Action) -> tuple[str, str]:
    """What names a live file: its path, and which of its rows are deleted."""
    deleted = action.get("deletionVector") or {}
    return action["path"], "".join(str(deleted.get(part) or "") for part in ("storageType", "pathOrInlineDv", "offset"))


def _note(files: FileStore, uri: str, numbers: Sequence[int]) -> dict[str, Any]:
    """Of the newest commit with a note: maintenance by others has none, and RESTORE brings one back."""
    for number in sorted(numbers, reverse=True):
        info = info_in(commit_actions(files, uri, number))
        restored = restored_by(info)
        if restored is not None:
            return _note(files, uri, [older for older in numbers if older <= restored])
        if note := note_of(info):
            return note
    return {}


def whole_checkpoints(names: Iterable[str]) -> dict[int, list[tuple[str, ...]]]:
    """Of the names in a log, each checkpoint of which every part is there, by its version."""
    found: dict[tuple[int, int, str], list[str]] = {}
    for name in sorted(names):
        if match := _CHECKPOINT.fullmatch(name):
            found.setdefault((int(match[1]), int(match[3] or 1), match[4] or ""), []).append(name)
    whole: dict[int, list[tuple[str, ...]]] = {}
    for (version, count, _), parts in found.items():
        if len(parts) == count:
            whole.setdefault(version, []).append(tuple(parts))
    return whole


def checkpoint_actions(files: FileStore, uri: str, parts: Sequence[str], *, stats: bool = False) -> Iterator[Action]:
    """The actions of a checkpoint's files, and of the sidecars that they name."""
    for name in parts:
        content = files.read(joined(uri, LOG, name))
        for action in _json_actions(content) if name.endswith(".json") else _parquet_actions(content, stats):
            if sidecar := action.get("sidecar"):
                yield from _parquet_actions(files.read(joined(uri, LOG, _sidecar_name(sidecar["path"]))), stats)
            else:
                yield action


def sidecars(files: FileStore, uri: str, name: str) -> list[str]:
    """What of the log's folder a checkpoint's file needs besides."""
    if name.endswith(".json"):
        actions = _json_actions(files.read(joined(uri, LOG, name)))
        return [_sidecar_name(action["sidecar"]["path"]) for action in actions if action.get("sidecar")]
    with files.open(joined(uri, LOG, name)) as file:
        reader = parquet.ParquetFile(file)
        if "sidecar" not in reader.schema_arrow.names:
            return []
        found = reader.read(columns=["sidecar.path"])["sidecar"].to_pylist()
    return [_sidecar_name(one["path"]) for one in found if one and one["path"]]


def _sidecar_name(path: str) -> str:
    return joined(_SIDECARS, unquote(path).rpartition("/")[2])


def _json_actions(content: bytes) -> Iterator[Action]:
    return (json.loads(line) for line in content.splitlines() if line.strip())


def _parquet_actions(content: bytes, stats: bool) -> Iterator[Action]:
    reader = parquet.ParquetFile(pa.BufferReader(content))
    leaves = [reader.schema.column(i).path for i in range(len(reader.schema))]
    there = [
        column
        for column in (*_COLUMNS, *([_STATS] if stats else []))
        if any(leaf == column or leaf.startswith(f"{column}.") for leaf in leaves)
    ]
    for batch in reader.iter_batches(columns=there):
        yield from batch.to_pylist()
