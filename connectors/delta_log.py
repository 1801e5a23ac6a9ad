"""A Delta table's log, read without Spark: its commits, the notes in them, and what a version is made of.

newest whole checkpoint, commits after it -> actions -> the files that are live, the metadata, the note
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from connectors.file_store import FileStore
from connectors.lakes import joined
from feature_defs.errors import DataError

LOG = "_delta_log"
_CHECKPOINT = re.compile(r"(\d{20})\.checkpoint(?:\.(\d{10})\.(\d{10}))?\.parquet")
_COLUMNS = ("add.path", "add.size", "add.partitionValues", "metaData.configuration", "metaData.partitionColumns")

Action = Mapping[str, Any]


@dataclass(frozen=True)
class DeltaVersion:
    """One version: the `add` action of each live file, the newest metadata, and what the run that wrote it says."""

    version: int
    adds: tuple[Action, ...]
    metadata: Action
    note: Mapping[str, Any]


def commit_actions(files: FileStore, uri: str, version: int) -> Iterator[Action]:
    """A commit's actions in their order; FileNotFoundError when Delta's own retention has cleaned it up."""
    return (json.loads(line) for line in files.read(commit_uri(uri, version)).splitlines() if line.strip())


def commit_uri(uri: str, version: int) -> str:
    return joined(uri, LOG, f"{version:020d}.json")


def commits(files: FileStore, uri: str) -> list[int]:
    """The versions whose commits are in the log."""
    names = (file.path for file in files.list_files(joined(uri, LOG)))
    return [int(name[:20]) for name in names if re.fullmatch(r"\d{20}\.json", name)]


def note_in(actions: Iterator[Action]) -> dict[str, Any]:
    """What the run says that made a commit; nothing where somebody else did, who may say what they like."""
    infos = (action["commitInfo"].get("userMetadata") for action in actions if "commitInfo" in action)
    text = next(infos, None) or ""
    return dict(json.loads(text)) if text.startswith("{") else {}


def delta_version(files: FileStore, uri: str, subject: str, version: int | None = None) -> DeltaVersion | None:
    """A version of the table at a URI, by default the newest; None when there is no table."""
    there = commits(files, uri)
    if not there:
        return None
    wanted = max(there) if version is None else version
    if wanted not in there:
        raise DataError(subject, f"has no version {wanted}", hint=f"versions {min(there)} to {max(there)} are there")
    start, parts = _newest_checkpoint([file.path for file in files.list_files(joined(uri, LOG))], wanted)
    needed = range(start + 1, wanted + 1)
    if not set(needed) <= set(there):
        problem = f"the log of version {wanted} is not all there"
        raise DataError(subject, problem, hint="read it with Spark: .spark()")
    live: dict[tuple[str, str], Action] = {}
    metadata: Action = {}
    checkpointed = (a for name in parts for a in _checkpoint_actions(files.read(joined(uri, LOG, name))))
    committed = (a for number in needed for a in commit_actions(files, uri, number))
    for actions in (checkpointed, committed):
        for action in actions:
            metadata = action.get("metaData") or metadata
            if remove := action.get("remove"):
                live.pop(_file(remove), None)
            if add := action.get("add"):
                live[_file(add)] = add
    adds = tuple(sorted(live.values(), key=_file))
    return DeltaVersion(wanted, adds, metadata, _note(files, uri, [number for number in there if number <= wanted]))


def _file(action: Action) -> tuple[str, str]:
    """What names a live file: its path, and which of its rows are deleted."""
    deleted = action.get("deletionVector") or {}
    return action["path"], "".join(str(deleted.get(part) or "") for part in ("storageType", "pathOrInlineDv", "offset"))


def _note(files: FileStore, uri: str, numbers: Sequence[int]) -> dict[str, Any]:
    """Of the newest commit with a note: maintenance by others has none."""
    notes = (note_in(commit_actions(files, uri, number)) for number in sorted(numbers, reverse=True))
    return next((note for note in notes if note), {})


def _newest_checkpoint(names: Sequence[str], wanted: int) -> tuple[int, list[str]]:
    """The version and the files of the newest whole checkpoint up to a version; -1 and none without one."""
    found: dict[tuple[int, int], list[str]] = {}
    for name in sorted(names):
        if (match := _CHECKPOINT.fullmatch(name)) and int(match[1]) <= wanted:
            found.setdefault((int(match[1]), int(match[3] or 1)), []).append(name)
    whole = [(version, parts) for (version, count), parts in found.items() if len(parts) == count]
    return max(whole, default=(-1, []))


def _checkpoint_actions(content: bytes) -> Iterator[Action]:
    reader = parquet.ParquetFile(pa.BufferReader(content))
    leaves = [reader.schema.column(i).path for i in range(len(reader.schema))]
    deleted = ["add.deletionVector"] if any(name.startswith("add.deletionVector.") for name in leaves) else []
    for batch in reader.iter_batches(columns=[*_COLUMNS, *deleted]):
        yield from batch.to_pylist()
