"""Small files in a lake (registry snapshots, manifests) without Spark: one protocol, an implementation a scheme.

    uri -> open_file_store -> FileStore

Big data goes through Spark; what needs "only one may win" or "no JVM" goes through here.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar, cast

from connectors.pacing import Patience
from feature_defs.errors import LakeError, near_miss

Result = TypeVar("Result")
DRAFT = "._"  # what a file's name begins with until all of it is there
BLOCK = 8 << 20  # how much of a big file is on its way at once


@dataclass(frozen=True)
class FileInfo:
    """A file below a folder: its path from that folder, its bytes, and when it last changed (microseconds UTC)."""

    path: str
    size: int
    modified_us: int


class FileStore(Protocol):
    """Files by URI. A missing file is FileNotFoundError, one in the way FileExistsError, the rest LakeError."""

    def list_files(self, uri: str) -> list[FileInfo]:
        """Every file below a folder, sorted by path; none when the folder is missing."""

    def read(self, uri: str) -> bytes: ...

    def open(self, uri: str) -> BinaryIO:
        """A file to read parts of, by seeking."""

    def create(self, uri: str, content: bytes) -> None:
        """Write a whole new file; of two creators at once exactly one succeeds and no reader sees half a file."""

    def upload(self, uri: str, source: BinaryIO) -> None:
        """Write a whole new file from a stream, of any size in bounded memory; as `create`, all or nothing, never over
        another."""

    def rename(self, uri: str, to: str) -> None:
        """Move a file or folder; the target must not exist."""

    def delete(self, uri: str) -> None:
        """Remove a file or a folder with all it holds; nothing happens when it is missing."""

    def list_drafts(self, uri: str) -> list[FileInfo]:
        """Files below a folder that were begun and not finished."""


class LocalFileStore:
    """`file:` URIs on this machine."""

    def list_files(self, uri: str) -> list[FileInfo]:
        root = local_path(uri)

        def listing() -> list[FileInfo]:
            found = []
            for folder, _, names in os.walk(root, onerror=_raise_unless_missing):
                for path in (Path(folder, name) for name in names if not is_draft(name)):
                    with contextlib.suppress(FileNotFoundError):  # deleted since it was listed
                        status = path.stat()
                        file = path.relative_to(root).as_posix()
                        found.append(FileInfo(file, status.st_size, status.st_mtime_ns // 1000))
            return sorted(found, key=lambda file: file.path)

        return _told("list", uri, listing)

    def read(self, uri: str) -> bytes:
        return _told("read", uri, local_path(uri).read_bytes)

    def open(self, uri: str) -> BinaryIO:
        return _told("read", uri, lambda: local_path(uri).open("rb"))

    def create(self, uri: str, content: bytes) -> None:
        self.upload(uri, io.BytesIO(content))

    def upload(self, uri: str, source: BinaryIO) -> None:
        path = local_path(uri)

        def link() -> None:
            _make_folder(path.parent)
            draft = path.with_name(f"{DRAFT}{uuid.uuid4().hex}")
            try:
                with draft.open("xb") as file:
                    shutil.copyfileobj(source, file, BLOCK)
                    file.flush()
                    os.fsync(file.fileno())
                os.link(draft, path)  # unlike rename, link fails when the name is taken: of two creators one wins
            finally:
                draft.unlink(missing_ok=True)

        _told("create", uri, link)

    def rename(self, uri: str, to: str) -> None:
        source, target = local_path(uri), local_path(to)

        def move() -> None:
            if target.exists():
                raise FileExistsError(str(target))
            _make_folder(target.parent)
            if source.is_dir():
                source.rename(target)
            else:
                os.link(source, target)  # as in create: a file that came meanwhile is not replaced
                source.unlink()

        _told("rename", uri, move)

    def delete(self, uri: str) -> None:
        path = local_path(uri)

        def remove() -> None:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

        _told("delete", uri, remove)

    def list_drafts(self, uri: str) -> list[FileInfo]:
        root, found = local_path(uri), []
        for path in (path for path in root.rglob(f"{DRAFT}*") if path.suffix != ".crc"):  # ._SUCCESS.crc is none
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                if path.is_file():
                    found.append(
                        FileInfo(path.relative_to(root).as_posix(), status.st_size, status.st_mtime_ns // 1000)
                    )
        return found


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:  # of the folder, not of the file that is to be in it
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)) from error


def _raise_unless_missing(error: OSError) -> None:
    """A folder that cannot be listed must not look empty: an empty registry means that nothing was ever applied."""
    if not isinstance(error, FileNotFoundError):
        raise error


def _told(verb: str, uri: str, action: Callable[[], Result]) -> Result:
    """Run a file operation; what the operating system refuses is said with the path and what to look at."""
    try:
        return action()
    except (FileNotFoundError, FileExistsError):
        raise
    except OSError as error:
        hint = "check that the lake's folder exists, is a folder, has room and that this user may write there"
        raise LakeError(f"Lake path '{uri}'", f"cannot {verb} it: {error.strerror or error}", hint=hint) from error


def local_path(uri: str) -> Path:
    """`file:/a/b` and `file:///a/b` -> /a/b. As in Spark's paths, `%20`, `#` and `?` are only characters."""
    return Path(re.sub(r"^file:(//(localhost)?(?=/))?", "", uri))


def check_writable(files: FileStore, folder: str) -> None:
    """LakeError unless a file can be made in the folder: asked before a job computes for an hour."""
    probe = f"{folder.rstrip('/')}/._probe-{uuid.uuid4().hex}"
    files.create(probe, b"")
    files.delete(probe)


def data_files(files: FileStore, uri: str) -> dict[str, FileInfo]:
    """What Spark reads at a path, by URI: the files below a folder that are not hidden, or the one file it names."""
    try:
        below = files.list_files(uri)
    except LakeError:  # a file cannot be listed
        below = []
    if below:
        return {f"{uri.rstrip('/')}/{file.path}": file for file in below if not is_hidden(file.path)}
    folder, _, name = uri.rpartition("/")
    named = [file for file in files.list_files(folder) if file.path == name and not is_hidden(name)]
    return dict(zip([uri], named, strict=False))


def is_hidden(path: str) -> bool:
    """As Spark judges it: `_SUCCESS` and `.part.crc` are no data, `_day=1/part` is."""
    return any(part.startswith(".") or (part.startswith("_") and "=" not in part) for part in path.split("/"))


def draft_of(uri: str) -> str:
    """A name beside a file's own, for what is not all there yet."""
    return f"{uri.rpartition('/')[0]}/{DRAFT}{uuid.uuid4().hex}"


def is_draft(path: str) -> bool:
    return path.rpartition("/")[2].startswith(DRAFT)


def retried(action: Callable[[], Result], passes: Callable[[Exception], bool], seconds: float) -> Result:
    """Do it again, after longer and longer waits, while it fails in a way that passes."""
    patience = Patience(seconds)
    while True:
        try:
            return action()
        except Exception as error:  # noqa: PERF203 - the requests take longer
            if not passes(error) or not patience.wait():
                raise


class RangedFile(io.RawIOBase):
    """A file of a lake of which parts are read: a read is a request for a range."""

    def __init__(self, size: int, fetch: Callable[[int, int], bytes]) -> None:
        self._size, self._fetch, self._at = size, fetch, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self._size - self._at))
        if count:
            view[:count] = self._fetch(self._at, count)
            self._at += count
        return count

    def readall(self) -> bytes:
        content = bytearray(max(0, self._size - self._at))
        self.readinto(content)
        return bytes(content)


def ranged(size: int, fetch: Callable[[int, int], bytes]) -> BinaryIO:
    """The same with a buffer, for readers that take a few bytes at a time."""
    return cast("BinaryIO", io.BufferedReader(RangedFile(size, fetch), 1 << 20))


# which store a URI is of

_SCHEMES = ("file", "hdfs", "abfss", "abfs")
_ELSEWHERE: dict[str, Callable[[], FileStore]] = {}


def use_file_stores(opened: Mapping[str, Callable[[], FileStore]]) -> None:
    """From now on the files of these places, named `scheme://authority`, are opened so. What a place needs (addresses,
    a credential) is in a profile, and URIs travel alone: docs/decisions/0015-lakes.md."""
    _ELSEWHERE.update(opened)


def places_elsewhere() -> list[str]:
    """The places that `use_file_stores` was told."""
    return list(_ELSEWHERE)


def parted(uri: str) -> tuple[str, str]:
    """`hdfs://name:8020/a/b` -> (`hdfs://name:8020`, `/a/b`). As in Spark's paths, signs are only characters."""
    found = re.fullmatch(r"([a-z]+://[^/]+)(/.*)?", uri, re.DOTALL)
    return (found[1], found[2] or "/") if found else ("", uri)


def open_file_store(uri: str) -> FileStore:
    """The store of a URI: by its scheme on this machine, elsewhere as `use_file_stores` was told."""
    scheme = uri.partition(":")[0]
    if scheme not in _SCHEMES:
        known = ", ".join(f"{name}:" for name in _SCHEMES)
        problem = f"scheme '{scheme}:' has no file store here, expected one of {known}"
        hint = near_miss(scheme, _SCHEMES) + "point the lake at such a path in the profile"
        raise LakeError(f"Lake path '{uri}'", problem, hint=hint)
    if scheme == "file":
        return LocalFileStore()
    place = parted(uri)[0]
    if place not in _ELSEWHERE:
        problem = f"no lake of the profile is at {place or 'such a path'}, so nothing tells how to reach it"
        raise LakeError(f"Lake path '{uri}'", problem, hint=f'name it: [lakes] NAME = "{scheme}://HOST/path"')
    return _ELSEWHERE[place]()
