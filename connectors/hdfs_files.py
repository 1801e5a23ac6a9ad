"""Files on HDFS by WebHDFS, with neither Java nor libhdfs: `hdfs:` URIs.

    list, status, rename, delete -> a NameNode (of a pair the active one)
    read, write                  -> a NameNode, which names the DataNode to go to

A file under its own name would be seen while it is written. So it is written as a draft and renamed with the option
NONE, which the NameNode does in one step and refuses when the name is taken: of two creators one wins.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, BinaryIO, TypeVar

from connectors.file_store import BLOCK, FileInfo, draft_of, is_draft, parted, ranged, retried
from connectors.lakes import joined
from feature_defs.errors import LakeError, MissingPartError

Result = TypeVar("Result")
_CONNECTIONS, _CONNECT_SECONDS = 32, 10.0
# What a NameNode says while it starts, hands over or has no DataNode at hand.
_PASSING = {"RetriableException", "StandbyException", "SafeModeException", "ServerTooBusyException"}
# What a DataNode says whose NameNode is away.
_PASSING |= {"ConnectException", "EOFException", "NoRouteToHostException", "SocketTimeoutException"}
_NO_DATA_NODE = "Failed to find datanode"
_HINTS = {
    "AccessControlException": "let this user read and write there, or name another: [hdfs.{name}] user",
    "QuotaExceededException": "raise the quota or make room: `tidemark maintain` removes what nothing needs",
    "DSQuotaExceededException": "raise the quota or make room: `tidemark maintain` removes what nothing needs",
    "SafeModeException": "the NameNode takes no writes: `hdfs dfsadmin -safemode get` tells why",
}
_HINT = "check [hdfs.{name}] webhdfs, and that the NameNode and its DataNodes run"


@dataclass(frozen=True)
class HdfsFileStore:
    """An HDFS by the HTTP addresses of its NameNodes. `seconds` is how long one that does not answer is tried."""

    name: str
    urls: tuple[str, ...]
    user: str = ""
    kerberos: bool = False
    seconds: float = 60.0

    def list_files(self, uri: str) -> list[FileInfo]:
        return [file for file in self._all_files(uri) if not is_draft(file.path)]

    def list_drafts(self, uri: str) -> list[FileInfo]:
        return [file for file in self._all_files(uri) if is_draft(file.path)]

    def _all_files(self, uri: str) -> list[FileInfo]:
        root = parted(uri)[1]

        def listed(folder: str) -> list[tuple[str, dict[str, Any]]]:
            try:
                return list(self._client.list(joined(root, folder) if folder else root, status=True))
            except _hdfs_error() as error:
                if error.exception == "FileNotFoundException":  # the root is not there, or a folder was just deleted
                    return []
                raise

        def listing() -> list[FileInfo]:
            found, folders = [], [""]
            while folders:
                folder = folders.pop()
                for name, status in listed(folder):
                    path = joined(folder, name) if folder else name
                    if status["type"] == "DIRECTORY":
                        folders.append(path)
                    else:
                        found.append(FileInfo(path, status["length"], status["modificationTime"] * 1000))
            return sorted(found, key=lambda file: file.path)

        return self._told("list", uri, listing)

    def read(self, uri: str) -> bytes:
        return self._told("read", uri, lambda: self._content(parted(uri)[1]))

    def open(self, uri: str) -> BinaryIO:
        path = parted(uri)[1]
        status = self._told("read", uri, lambda: self._client.status(path))
        if status["type"] == "DIRECTORY":
            raise LakeError(f"Lake path '{uri}'", "cannot read it: is a folder", hint="name a file in it")

        def fetch(offset: int, length: int) -> bytes:
            content = self._content(path, offset=offset, length=length)
            if len(content) < length:
                raise ConnectionAbortedError(f"{len(content)} of {length} bytes came")
            return content

        return ranged(status["length"], lambda offset, length: self._told("read", uri, lambda: fetch(offset, length)))

    def _content(self, path: str, **part: int) -> bytes:
        """The body of an answer, which the package hands out as urllib3's: errors within it are that one's."""
        client = self._client
        from urllib3.exceptions import HTTPError

        with client.read(path, **part) as answer:
            try:
                return bytes(answer.read())
            except HTTPError as error:
                raise ConnectionAbortedError(type(error).__name__) from error

    def create(self, uri: str, content: bytes) -> None:
        self.upload(uri, io.BytesIO(content))

    def upload(self, uri: str, source: BinaryIO) -> None:
        begin = source.tell() if source.seekable() else None
        drafts: list[str] = []

        def write() -> str:
            """A try that failed leaves its draft behind: the next one is another file."""
            if drafts and begin is not None:
                source.seek(begin)
            drafts.append(draft_of(uri))
            self._client.write(parted(drafts[-1])[1], data=iter(lambda: source.read(BLOCK), b""))
            return drafts[-1]

        try:
            draft = self._told("create", uri, write, again=begin is not None)
            self._move(draft, uri, "create")
            drafts.remove(draft)
        finally:
            for draft in drafts:
                with contextlib.suppress(LakeError):  # what went wrong before is what matters
                    self.delete(draft)

    def rename(self, uri: str, to: str) -> None:
        self._told("rename", uri, lambda: self._client.status(parted(uri)[1]))
        folder = parted(to)[1].rpartition("/")[0]
        self._told("rename", uri, lambda: self._client.makedirs(folder), taken=NotADirectoryError)
        self._move(uri, to, "rename")

    def _move(self, uri: str, to: str, verb: str) -> None:
        """A rename whose answer was lost is told by the file's number, which goes with it."""
        source, target = parted(uri)[1], parted(to)[1]
        number = self._told(verb, to, lambda: self._client.status(source))["fileId"]

        def move() -> None:
            try:
                # the package's own rename overwrites nothing but moves INTO a folder that has the name
                self._client._rename(source, destination=target, renameoptions="NONE")  # noqa: SLF001
            except _hdfs_error() as error:
                there = self._client.status(target, strict=False)
                if there is None:
                    raise
                if there["fileId"] != number:
                    raise FileExistsError(to) from error

        self._told(verb, to, move)

    def delete(self, uri: str) -> None:
        path = parted(uri)[1].rstrip("/")
        if not path:
            raise LakeError(f"Lake path '{uri}'", "is the whole of an HDFS", hint="name a folder in it")
        self._told("delete", uri, lambda: self._client.delete(path, recursive=True))

    @property
    def _client(self) -> Any:
        return _client(self, os.getpid())

    def _told(
        self,
        verb: str,
        uri: str,
        action: Callable[[], Result],
        *,
        again: bool = True,
        taken: type[OSError] = FileExistsError,
    ) -> Result:
        """Do it, again while the cluster is not itself; what stays is said with the path and what to look at."""
        subject = f"Lake path '{uri}'"
        try:
            return retried(action, _passes, self.seconds if again else 0)
        except _hdfs_error() as error:
            kind = error.exception or ""
            if kind == "FileNotFoundException" and "not a file" not in error.message:
                raise FileNotFoundError(uri) from error
            if kind == "FileAlreadyExistsException" and taken is FileExistsError:
                raise FileExistsError(uri) from error
            reason = str(error.message).splitlines()[0][:300]
            hint = _HINTS.get(kind, _HINT).format(name=self.name)
            raise LakeError(subject, f"cannot {verb} it: {reason}", hint=hint) from error
        except FileExistsError:
            raise
        except ConnectionAbortedError as error:  # of an answer's body
            problem = f"cannot {verb} it: HDFS '{self.name}' breaks off its answers ({error})"
            raise LakeError(subject, problem, hint=_HINT.format(name=self.name)) from error
        except OSError as error:  # of requests, too
            problem = f"cannot {verb} it: HDFS '{self.name}' does not answer ({type(error).__name__})"
            raise LakeError(subject, problem, hint=_HINT.format(name=self.name)) from error


def _passes(error: Exception) -> bool:
    if isinstance(error, FileExistsError):
        return False
    return (
        isinstance(error, OSError)
        or getattr(error, "exception", "") in _PASSING
        or _NO_DATA_NODE in str(getattr(error, "message", ""))
    )


@lru_cache(maxsize=32)
def _client(store: HdfsFileStore, process: int) -> Any:  # noqa: ARG001 - a process that was forked has its own
    try:
        import requests
        from hdfs import InsecureClient
    except ImportError as error:
        raise MissingPartError("HDFS", "the package hdfs is missing", hint="pip install 'tidemark[hdfs]'") from error
    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, requests.adapters.HTTPAdapter(pool_maxsize=_CONNECTIONS))
    urls, timeout = ";".join(store.urls), (min(_CONNECT_SECONDS, store.seconds), store.seconds)
    if not store.kerberos:
        return InsecureClient(urls, user=store.user or None, timeout=timeout, session=session)
    try:
        from hdfs.ext.kerberos import KerberosClient
    except ImportError as error:
        problem = "Kerberos needs the package requests-kerberos, and the system's libkrb5"
        raise MissingPartError("HDFS", problem, hint="pip install 'tidemark[kerberos]'") from error
    return KerberosClient(urls, timeout=timeout, session=session)


def _hdfs_error() -> Any:
    """The package's error, also where the package is not there: then there is none to catch."""
    try:
        from hdfs.util import HdfsError
    except ImportError:
        return ()
    return HdfsError
