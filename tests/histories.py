"""Delta tables written by hand, without Spark: commits, data files, deletion vectors, change data, checkpoints.

What lies in the data files is no Parquet: who copies them need not know.

python -m tests.histories FOLDER    copies a place in a child that kills itself at its first, second, ... write
"""

from __future__ import annotations

import base64
import json
import os
import random
import signal
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq

from connectors.copying import Copier
from connectors.delta_files import _TO_BASE85
from connectors.file_store import LocalFileStore, local_path
from connectors.replication import End, Plan, Progress, carry_out, plan_delta

_FROM_BASE85 = {new: old for old, new in _TO_BASE85.items()}
PROTOCOL = {"protocol": {"minReaderVersion": 3, "minWriterVersion": 7, "readerFeatures": ["deletionVectors"]}}
METADATA = {"metaData": {"id": "0", "partitionColumns": [], "configuration": {}}}
_ADD = pa.struct(
    [
        ("path", pa.string()),
        ("size", pa.int64()),
        ("deletionVector", pa.struct([("storageType", pa.string()), ("pathOrInlineDv", pa.string())])),
    ]
)


@dataclass
class History:
    """A table that grows. `live` is each live `add` by its path; all random numbers are of one seed."""

    folder: Path
    draw: random.Random
    live: dict[str, dict[str, Any]] = field(default_factory=dict)
    number: int = -1

    def write(self, path: str, size: int) -> int:
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(self.draw.randbytes(size))
        return size

    def add(self, size: int | None = None) -> dict[str, Any]:
        folder = self.draw.choice(["", "day=2026-01-01/", "name=a%20b %1/"])
        path = f"{folder}part-{self._uuid()}.parquet"
        size = self.write(path, self.draw.randrange(3000) if size is None else size)
        return {"path": quote(path), "size": size}

    def with_vector(self, add: dict[str, Any]) -> dict[str, Any]:
        """The same file, of which a deletion vector in a file takes rows away."""
        found, folder = self._uuid(), self.draw.choice(["", "ab"])
        self.write(f"{folder}/deletion_vector_{found}.bin" if folder else f"deletion_vector_{found}.bin", 40)
        text = base64.b85encode(found.bytes).decode().translate(_FROM_BASE85)
        return {**add, "deletionVector": {"storageType": "u", "pathOrInlineDv": folder + text}}

    def commit(self, *actions: dict[str, Any]) -> None:
        self.number += 1
        first = [PROTOCOL, METADATA] if self.number == 0 else []
        told = [{"commitInfo": {"txnId": str(self._uuid())}}, *first, *actions]
        for action in actions:
            if removed := action.get("remove"):
                self.live.pop(removed["path"])
        for action in actions:
            if added := action.get("add"):
                self.live[added["path"]] = added
        self._log(f"{self.number:020d}.json", "".join(json.dumps(action) + "\n" for action in told).encode())
        self._log(f"{self.number:020d}.crc", json.dumps({"numFiles": len(self.live)}).encode())

    def step(self) -> None:
        """One commit of any kind."""
        kind = self.draw.choice(["append", "append", "delete", "vector", "change", "nothing"])
        some = self.draw.choice(sorted(self.live)) if self.live else None
        if some is None or kind == "append":
            self.commit(*({"add": self.add()} for _ in range(self.draw.randrange(1, 4))))
        elif kind == "delete":
            self.commit({"remove": self.live[some]}, {"add": self.add()})
        elif kind == "vector":
            plain = {name: value for name, value in self.live[some].items() if name != "deletionVector"}
            self.commit({"remove": self.live[some]}, {"add": self.with_vector(plain)})
        elif kind == "change":
            path = f"_change_data/cdc-{self._uuid()}.parquet"
            self.commit({"cdc": {"path": path, "size": self.write(path, 60)}}, {"add": self.add()})
        else:
            self.commit()

    def checkpoint(self, parts: int = 1) -> None:
        """Of the newest version, in so many files; with sidecars, as V2, where it is 0."""
        rows = [{"add": add} for add in self.live.values()]
        name = f"{self.number:020d}.checkpoint"
        if parts == 0:
            sidecar = f"{self._uuid()}.parquet"
            self._log(f"_sidecars/{sidecar}", _parquet(rows))
            told = [PROTOCOL, METADATA, {"sidecar": {"path": sidecar}}]
            self._log(f"{name}.{self._uuid()}.json", "".join(json.dumps(one) + "\n" for one in told).encode())
        elif parts == 1:
            self._log(f"{name}.parquet", _parquet(rows))
        else:
            for i in range(parts):
                self._log(f"{name}.{i + 1:010d}.{parts:010d}.parquet", _parquet(rows[i::parts]))
        self._log("_last_checkpoint", json.dumps({"version": self.number, "size": len(rows)}).encode())

    def clean_up(self, before: int, *, with_its_commit: bool = False) -> None:
        """What Delta does with a log past its retention; the checkpoint's own commit may go with it."""
        for path in (self.folder / "_delta_log").iterdir():
            if path.name[:20].isdigit() and int(path.name[:20]) < before:
                path.unlink()
        if with_its_commit:
            (self.folder / "_delta_log" / f"{before:020d}.json").unlink()

    def vacuum(self) -> None:
        """Remove every file that the newest version does not need."""
        needed = {path for path, _ in needed_by(self.folder, self.live.values())}
        for path in self.folder.rglob("*"):
            name = path.relative_to(self.folder).as_posix()
            if path.is_file() and not name.startswith("_delta_log/") and name not in needed:
                path.unlink()

    def _log(self, name: str, content: bytes) -> None:
        path = self.folder / "_delta_log" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def _uuid(self) -> uuid.UUID:
        return uuid.UUID(int=self.draw.getrandbits(128), version=4)


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema([("add", _ADD)])), sink)
    return bytes(sink.getvalue())


def needed_by(folder: Path, adds: Any) -> Iterator[tuple[str, int | None]]:
    from connectors.delta_files import data_files_of

    return (file for add in adds for file in data_files_of({"add": add}, str(folder)))


def end(folder: Path) -> End:
    return End(LocalFileStore(), f"file://{folder}")


def bring(source: Path, target: Path, **options: Any) -> Plan:
    """Replicate one table, from folder to folder."""
    plan = plan_delta("t", end(source), end(target), **options)
    carry_out(plan, Copier(plan.source.files, plan.target.files), parallel=3, progress=Progress())
    return plan


def visible(folder: Path) -> list[int]:
    """The versions whose commits are there."""
    return sorted(int(path.stem) for path in folder.glob("_delta_log/*.json") if path.stem.isdigit())


def what_is_half(source: Path, target: Path) -> list[str]:
    """What is wrong with a replica at any moment: a version without its files, a file that is not the source's, a
    checkpoint without what it names."""
    from connectors.delta_files import change_files_of, data_files_of
    from connectors.delta_log import commit_actions, whole_checkpoints

    store = LocalFileStore()
    there = [file.path for file in store.list_files(f"file://{target}") if not file.path.endswith("/_last_checkpoint")]
    faults = [f"{path} is another" for path in there if (target / path).read_bytes() != (source / path).read_bytes()]
    for version in visible(target):
        for action in commit_actions(store, f"file://{target}", version):
            for path, _ in (*data_files_of(action, ""), *change_files_of(action, "")):
                if (source / path).exists() and not (target / path).exists():
                    faults.append(f"version {version} lacks {path}")
    last = target / "_delta_log" / "_last_checkpoint"
    log = [path.name for path in (target / "_delta_log").glob("*")]
    if last.exists() and json.loads(last.read_text())["version"] not in whole_checkpoints(log):
        faults.append("_last_checkpoint names one that is not there")
    return faults


def contents(folder: Path) -> dict[str, bytes]:
    found = LocalFileStore().list_files(f"file://{folder}")
    return {file.path: (folder / file.path).read_bytes() for file in found}


# killed at every write


class Deadly(LocalFileStore):
    """A store whose process dies at its n-th write: before it, or in the middle of a stream."""

    left = 0

    def _dies(self) -> bool:
        Deadly.left -= 1
        return Deadly.left == 0

    def upload(self, uri: str, source: BinaryIO) -> None:
        super().upload(uri, _Dying(source) if self._dies() else source)  # type: ignore[arg-type]
        if self._dies():
            os.kill(os.getpid(), signal.SIGKILL)

    def delete(self, uri: str) -> None:
        super().delete(uri)
        if self._dies():
            os.kill(os.getpid(), signal.SIGKILL)


class _Dying:
    def __init__(self, source: BinaryIO) -> None:
        self.source = source

    def read(self, size: int = -1) -> bytes:
        if not (found := self.source.read(min(size, 100))):
            os.kill(os.getpid(), signal.SIGKILL)
        return found


def killed_at_every_write(root: Path) -> None:
    """Prints how many writes there are; each fault is an error."""
    from unittest.mock import patch

    from jobs.place import Place
    from jobs.replicate import replicate
    from tests.conftest import settings_in

    source = Place(settings_in(root / "source"))
    tables = ["in_delta/v1", "in_parquet/v1", "in_delta/v1_fitted", "_registry"]
    lake = local_path(source.lakes.uri("lake://features"))
    writes = 0
    died = True
    while died:
        writes += 1
        folder = root / f"target {writes}"
        folder.mkdir()
        target = Place(settings_in(folder))
        child = os.fork()
        if child == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            Deadly.left = writes
            # the source's files are only read
            with (
                patch("jobs.replicate.open_file_store", lambda uri: Deadly()),
                patch("jobs.place.open_file_store", lambda uri: Deadly()),
            ):
                replicate(source, to=target, parallel=2)
            os._exit(0)
        died = os.WIFSIGNALED(os.waitpid(child, 0)[1])
        there = local_path(target.lakes.uri("lake://features"))
        assert not (faults := what_is_half(lake / tables[0], there / tables[0])), (writes, faults)
        for manifest in there.glob("in_parquet/v1/_tidemark/*.json"):
            for file in json.loads(manifest.read_text())["files"]:
                assert (there / "in_parquet/v1" / file["path"]).exists(), (writes, manifest, file)
        with open(os.devnull, "w") as nothing:  # noqa: PTH123
            sys.stderr, kept = nothing, sys.stderr
            replicate(source, to=target)
            sys.stderr = kept
        for name in tables:
            assert contents(lake / name) == contents(there / name), (writes, name)
    print(writes - 1)


if __name__ == "__main__":
    os.fsync = lambda file: None  # it is for power cuts
    killed_at_every_write(Path(sys.argv[1]))
