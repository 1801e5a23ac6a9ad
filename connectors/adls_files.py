"""Files in ADLS Gen2 by its own REST interface: `abfss:` and `abfs:` URIs, accounts with a hierarchical namespace.

A file under its own name would be seen before it is whole. So it is written as a draft, its blocks side by side, and
renamed with If-None-Match: *, which the service does in one step and refuses when the name is taken: of two creators
one wins.
"""

from __future__ import annotations

import contextlib
import datetime
import io
import os
import re
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, BinaryIO, TypeVar
from urllib.parse import parse_qs, quote, unquote, urlsplit

from connectors.file_store import (
    BLOCK,
    FileInfo,
    draft_of,
    is_draft,
    open_file_store,
    parted,
    places_elsewhere,
    ranged,
    retried,
)
from feature_defs.errors import LakeError, MissingPartError, TidemarkError

Result = TypeVar("Result")
_PARALLEL = 4  # blocks of a file on their way at once
_FOLDER = "hdi_isfolder"
_TAKEN = {"PathAlreadyExists", "DestinationPathAlreadyExists", "ConditionNotMet", "TargetConditionNotMet"}
_NO_CONTAINER = {"FilesystemNotFound", "ContainerNotFound"}
_DRIVER_REFUSED = re.compile(
    r'Operation failed: "[^"]*", (?P<status>401|403), (?P<method>[A-Z]+), (?P<url>https?://[^\s?,]+)'
    r"(?:[^\n]*?, rId: [^,\s]*, (?P<code>\w+))?"
)
_NO_PARENT = "RenameDestinationParentPathNotFound"


@dataclass(frozen=True)
class AdlsFileStore:
    """An account, by whatever `auth` signs in with. `seconds` is how long a service that is busy is tried."""

    account: str
    endpoint: str
    auth: str = "identity"
    secret: str = field(default="", repr=False)
    tenant: str = ""
    client: str = ""
    seconds: float = 60.0

    def list_files(self, uri: str) -> list[FileInfo]:
        return [file for file in self._all_files(uri) if not is_draft(file.path)]

    def list_drafts(self, uri: str) -> list[FileInfo]:
        return [file for file in self._all_files(uri) if is_draft(file.path)]

    def _all_files(self, uri: str) -> list[FileInfo]:
        container, root = _located(uri)

        def listing() -> list[FileInfo]:
            below = self._service.get_file_system_client(container).get_paths(root or None, recursive=True)
            found = []
            for path in below:
                if path.is_directory:
                    continue
                if path.name == root:
                    raise LakeError(f"Lake path '{uri}'", "cannot list it: is a file", hint="name a folder")
                changed_us = int(path.last_modified.timestamp()) * 1_000_000
                found.append(FileInfo(path.name[len(root) :].lstrip("/"), path.content_length, changed_us))
            return sorted(found, key=lambda file: file.path)

        try:
            return self._told("list", uri, listing)
        except FileNotFoundError:
            return []

    def read(self, uri: str) -> bytes:
        def whole() -> bytes:
            answer = self._file(uri).download_file(max_concurrency=_PARALLEL)
            _refuse_folder(uri, answer.properties.metadata)
            return bytes(answer.readall())

        return self._told("read", uri, whole)

    def open(self, uri: str) -> BinaryIO:
        found = self._told("read", uri, self._file(uri).get_file_properties)
        _refuse_folder(uri, found.metadata)

        def fetch(offset: int, length: int) -> bytes:
            answer = self._file(uri).download_file(offset=offset, length=length, max_concurrency=_PARALLEL)
            content = bytes(answer.readall())
            if len(content) < length:
                raise ConnectionError(f"{len(content)} of {length} bytes came")
            return content

        return ranged(found.size, lambda offset, length: self._told("read", uri, lambda: fetch(offset, length)))

    def create(self, uri: str, content: bytes) -> None:
        self.upload(uri, io.BytesIO(content))

    def upload(self, uri: str, source: BinaryIO) -> None:
        draft = draft_of(uri)
        file = self._file(draft)
        try:
            self._told("create", uri, file.create_file, taken=NotADirectoryError)
            size = self._append(file, uri, source)
            self._told("create", uri, lambda: file.flush_data(size))
            self._move(draft, uri, "create")
        except BaseException:  # Ctrl-C too
            with contextlib.suppress(LakeError):  # what went wrong before is what matters
                self.delete(draft)
            raise

    def _append(self, file: Any, uri: str, source: BinaryIO) -> int:
        """Send the blocks, a few at once, each again by itself when it did not arrive; how many bytes there were."""
        offset = 0
        sent: deque[Future[Any]] = deque()
        with ThreadPoolExecutor(_PARALLEL) as pool:
            while block := source.read(BLOCK):
                if len(sent) == _PARALLEL:
                    sent.popleft().result()
                sent.append(pool.submit(self._appended, file, uri, block, offset))
                offset += len(block)
            for block_sent in sent:
                block_sent.result()
        return offset

    def _appended(self, file: Any, uri: str, block: bytes, offset: int) -> None:
        self._told("create", uri, lambda: file.append_data(block, offset, len(block)))

    def rename(self, uri: str, to: str) -> None:
        self._told("rename", uri, self._file(uri).get_file_properties)
        self._move(uri, to, "rename")

    def _move(self, uri: str, to: str, verb: str) -> None:
        """A rename whose answer was lost, and that is tried again, finds its source gone: nobody else moves it."""
        from azure.core import MatchConditions

        container, target = _located(to)
        folder = target.rpartition("/")[0]
        source = self._file(uri, quoted=True)  # the package takes percent signs out of the name to rename
        tries = 0

        def move() -> None:
            nonlocal tries
            tries += 1
            try:
                source.rename_file(f"{container}/{target}", match_condition=MatchConditions.IfMissing)
            except _azure_error() as error:
                if _code(error) == _NO_PARENT and folder:
                    parent = self._service.get_directory_client(container, folder)
                    self._told(verb, to, parent.create_directory, taken=NotADirectoryError)
                    source.rename_file(f"{container}/{target}", match_condition=MatchConditions.IfMissing)
                elif tries == 1 or error.status_code not in (404, 409, 412) or self._file(uri).exists():
                    raise

        self._told(verb, to, move)

    def delete(self, uri: str) -> None:
        container, path = _located(uri)
        if not path:
            raise LakeError(f"Lake path '{uri}'", "is a whole container", hint="name a folder in it")
        with contextlib.suppress(FileNotFoundError):
            self._told("delete", uri, self._service.get_directory_client(container, path).delete_directory)

    @property
    def _service(self) -> Any:
        return _service(self, os.getpid())

    def _file(self, uri: str, *, quoted: bool = False) -> Any:
        container, path = _located(uri)
        return self._service.get_file_client(container, quote(path) if quoted else path)

    def _told(
        self, verb: str, uri: str, action: Callable[[], Result], *, taken: type[OSError] = FileExistsError
    ) -> Result:
        """Do it, again while the service is busy; what stays is said with the path and what to look at."""
        subject = f"Lake path '{uri}'"
        try:
            return retried(action, _passes, self.seconds)
        except _azure_error() as error:
            code, status = _code(error), getattr(error, "status_code", None)
            if status == 404 and code not in _NO_CONTAINER:
                raise FileNotFoundError(uri) from error
            if code in _TAKEN and taken is FileExistsError:
                raise FileExistsError(uri) from error
            if status in (401, 403):
                raise self.refusal(verb, uri, status, code) from error
            reason = f"{code or 'refused'} ({status})" if status else f"{self.endpoint} does not answer"
            raise LakeError(subject, f"cannot {verb} it: {reason}", hint=self._hint(status, code)) from error
        except ConnectionError as error:
            raise LakeError(subject, f"cannot {verb} it: {error}", hint=self._hint(None, "")) from error

    def refusal(self, verb: str, uri: str, status: int, code: str) -> LakeError:
        """That the account does not let us in, and why as far as it can be known here."""
        reason, table = f"{code or 'refused'} ({status})", f"[adls.{self.account}]"
        hint = f"{table} signs in by {self.auth}: renew it if it has expired, and let it read and write there"
        if self.auth == "sas" and (ended := _ended(self.secret)):
            reason += f", the SAS of account '{self.account}' expired at {ended:%Y-%m-%d %H:%M:%S} UTC"
            hint = f"put a new SAS where {table} secret says, and run it again; what was there before is unchanged"
        return LakeError(f"Lake path '{uri}'", f"cannot {verb} it: {reason}", hint=hint)

    def _hint(self, status: int | None, code: str) -> str:
        table = f"[adls.{self.account}]"
        if code in _NO_CONTAINER:
            return "make the container, or correct the lake's URI: abfss://CONTAINER@ACCOUNT.dfs.core.windows.net"
        if status is None:
            return f"check the network and {table} endpoint"
        return "a file may be where a folder should be" if status == 409 else "run it again when the service is well"


def driver_refusal(text: str) -> LakeError | None:
    """What Spark's driver of `abfs:` tells of a request that an account refused, as our own error about the path."""
    found = _DRIVER_REFUSED.search(text)
    if found is None:
        return None
    url = urlsplit(found["url"])
    for place in places_elsewhere():
        with contextlib.suppress(TidemarkError):  # as of a place whose secret is not at hand
            store = open_file_store(place)
            if not isinstance(store, AdlsFileStore) or urlsplit(store.endpoint).netloc != url.netloc:
                continue
            path = unquote(url.path)
            if not url.netloc.startswith(f"{store.account}."):  # an account elsewhere is the first part of the path
                path = path.removeprefix(f"/{store.account}")
            root = f"/{_located(place)[0]}"
            if f"{path}/".startswith(f"{root}/"):
                verb = "read" if found["method"] in ("GET", "HEAD") else "write"
                return store.refusal(verb, place + path[len(root) :], int(found["status"]), found["code"] or "")
    return None


def _ended(sas: str) -> datetime.datetime | None:
    """When a SAS expired, if it has; None when it does not tell."""
    told = parse_qs(sas.lstrip("?")).get("se", [""])[0].replace("Z", "+00:00")
    with contextlib.suppress(ValueError):
        end = datetime.datetime.fromisoformat(told)
        end = end.astimezone(datetime.timezone.utc) if end.tzinfo else end.replace(tzinfo=datetime.timezone.utc)
        return end if end <= datetime.datetime.now(datetime.timezone.utc) else None
    return None


def _located(uri: str) -> tuple[str, str]:
    """`abfss://raw@acme.dfs.core.windows.net/a/b` -> (`raw`, `a/b`)."""
    place, path = parted(uri)
    container, _, host = place.partition("://")[2].rpartition("@")
    if not container or not host:
        raise LakeError(f"Lake path '{uri}'", "names no container", hint="write abfss://CONTAINER@ACCOUNT.dfs...")
    return container, re.sub("/+", "/", path).strip("/")


def _refuse_folder(uri: str, metadata: Any) -> None:
    if (metadata or {}).get(_FOLDER) == "true":
        raise LakeError(f"Lake path '{uri}'", "cannot read it: is a folder", hint="name a file in it")


def _code(error: Any) -> str:
    return str(getattr(error.error_code, "value", error.error_code) or "") if hasattr(error, "error_code") else ""


def _passes(error: Exception) -> bool:
    """No answer, too many requests, or a service that is not itself."""
    if not isinstance(error, _azure_error()):
        return isinstance(error, ConnectionError)
    status = getattr(error, "status_code", None)
    return status is None or status in (408, 429, 500, 502, 503, 504)


@lru_cache(maxsize=32)
def _service(store: AdlsFileStore, process: int) -> Any:  # noqa: ARG001 - a process that was forked has its own
    try:
        from azure.storage.filedatalake import DataLakeServiceClient
    except ImportError as error:
        problem = "the package azure-storage-file-datalake is missing"
        raise MissingPartError("ADLS", problem, hint="pip install 'tidemark[adls]'") from error
    return DataLakeServiceClient(
        store.endpoint,
        credential=_credential(store),
        retry_total=0,  # the package's own first wait is 15 seconds, and it takes 429 for an answer
        read_timeout=store.seconds,
        connection_timeout=min(10.0, store.seconds),
        max_single_get_size=BLOCK,
        max_chunk_get_size=BLOCK,
    )


def _credential(store: AdlsFileStore) -> Any:
    from azure.core.credentials import AzureNamedKeyCredential, AzureSasCredential

    if store.auth == "key":
        return AzureNamedKeyCredential(store.account, store.secret)
    if store.auth == "sas":
        return AzureSasCredential(store.secret)
    try:
        from azure import identity
    except ImportError as error:
        raise MissingPartError(
            "ADLS", "the package azure-identity is missing", hint="pip install 'tidemark[adls]'"
        ) from error
    if store.auth == "principal":
        return identity.ClientSecretCredential(store.tenant, store.client, store.secret)
    return identity.ManagedIdentityCredential(client_id=store.client or None)


def _azure_error() -> Any:
    """The packages' error, also where they are not there: then there is none to catch."""
    try:
        from azure.core.exceptions import AzureError
    except ImportError:
        return ()
    return AzureError
