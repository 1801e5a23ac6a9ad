"""A double of an ADLS Gen2 account with a hierarchical namespace, over HTTP, before the blob emulator, which lacks one.

    a verb of the Data Lake interface (create, append, flush, rename, list, delete, properties) -> calls of blobs
    all else (reads, blobs)                                                                     -> handed on as it is

After https://learn.microsoft.com/rest/api/storageservices/data-lake-storage-gen2. Not checked: signatures of Data Lake
verbs (the emulator checks those of reads), and access lists. A folder is an empty blob with the mark that the service
uses, and one lock makes a rename one step. `fail`, `cut` and the clock of a SAS are faults that a test asks for.

    python tests/adls_double.py --blobs http://HOST:10000 --host 0.0.0.0 --port 10004 --container lake

runs it by itself: a container of docker/compose.yaml.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from azure.core.exceptions import HttpResponseError, ResourceExistsError, ResourceModifiedError, ResourceNotFoundError
from azure.storage.blob import BlobBlock, BlobProperties, BlobServiceClient, ContainerClient

ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="  # published
FOLDER = "hdi_isfolder"
Query = Mapping[str, str]
_CODES = {403: "AuthenticationFailed", 429: "TooManyRequests", 503: "ServerBusy"}
_OWN_HEADERS = ("transfer-encoding", "connection", "keep-alive", "content-length", "server", "date")
_ACL = "user::rwx,group::r-x,other::---"


class Refused(Exception):
    def __init__(self, status: int, code: str) -> None:
        super().__init__(status, code)
        self.status, self.code = status, code


@dataclass
class Fault:
    """What the next requests get: a status, or with `cut` only half of what they read."""

    status: int
    left: int
    cut: bool = False
    method: str = ""


class AdlsDouble(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, blobs: str, host: str = "127.0.0.1", port: int = 0) -> None:
        super().__init__((host, port), _Request)
        self.blobs = urlsplit(blobs)
        credential = {"account_name": ACCOUNT, "account_key": KEY}
        self.service = BlobServiceClient(f"{blobs}/{ACCOUNT}", credential=credential, retry_total=0)
        self.lock = threading.RLock()
        self.faults: list[Fault] = []
        self.lost_answers = 0  # so many renames are done, and their answers do not arrive
        self.requests = 0

    def start(self) -> None:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def stop(self) -> None:
        self.shutdown()
        self.server_close()

    def make_container(self, name: str) -> None:
        self.service.create_container(name)

    def fail(self, status: int, times: int, method: str = "") -> None:
        """So many requests get this status."""
        self.faults.append(Fault(status, times, method=method))

    def cut(self, times: int) -> None:
        """So many reads break off in the middle."""
        self.faults.append(Fault(200, times, cut=True, method="GET"))

    def next_fault(self, method: str, *, cut: bool) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.left > 0 and fault.cut == cut and fault.method in ("", method):
                    fault.left -= 1
                    return fault
        return None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""


class _Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: AdlsDouble
    container: ContainerClient

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name in the standard library
        pass

    def handle_expect_100(self) -> bool:
        self.send_response_only(100)
        self.end_headers()
        return True

    def answer(self, status: int, headers: Mapping[str, str] | None = None, body: bytes = b"") -> None:
        self.send_response(status)
        told = {"x-ms-version": self.headers.get("x-ms-version", ""), "x-ms-request-id": "double"}
        for name, value in {**told, "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, code: str) -> None:
        body = json.dumps({"error": {"code": code, "message": code}}).encode()
        self.answer(status, {"x-ms-error-code": code, "Content-Type": "application/json"}, body)

    def content(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        found = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def handle_any(self) -> None:
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        _, name, path = (*url.path.strip("/").split("/", 2), "", "")[:3]
        path, body = unquote(path).strip("/"), self.content()
        self.server.requests += 1
        try:
            if fault := self.server.next_fault(self.command, cut=False):
                raise Refused(fault.status, _CODES[fault.status])
            self.check_signed_in(query)
            verb = self.verb(query, name, path)
            if verb is None:
                return self.hand_on(body)
            self.container = self.server.service.get_container_client(name)
            with self.server.lock:
                return verb(path, query, body)
        except Refused as refused:
            return self.refuse(refused.status, refused.code)
        except ResourceNotFoundError as error:
            return self.refuse(404, "FilesystemNotFound" if "Container" in str(error.error_code) else "PathNotFound")
        except ResourceExistsError:
            return self.refuse(409, "PathAlreadyExists")
        except ResourceModifiedError:
            return self.refuse(412, "ConditionNotMet")
        except HttpResponseError as error:
            return self.refuse(error.status_code or 500, str(error.error_code or "InternalError"))

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_PATCH = handle_any  # noqa: N815 - as http.server calls them

    def check_signed_in(self, query: Query) -> None:
        expires = query.get("se")
        if expires is None and "Authorization" not in self.headers:
            raise Refused(401, "NoAuthenticationInformation")
        if expires is not None and expires < time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()):
            raise Refused(403, "AuthenticationFailed")

    def verb(self, query: Query, name: str, path: str) -> Callable[[str, Query, bytes], None] | None:
        """What to do with a request of the Data Lake interface; None for any other."""
        method = self.headers.get("X-HTTP-Method-Override") or self.command
        if "comp" in query or "restype" in query or query.get("resource") == "account" or not name:
            return None
        if query.get("resource") == "filesystem" or (method == "HEAD" and "action" in query and not path):
            return self.on_container
        if method == "PUT" and "x-ms-rename-source" in self.headers:
            return self.on_rename
        if method == "PUT" and "resource" in query:
            return self.on_create
        if method in ("PATCH", "POST"):
            return self.on_change
        if method == "HEAD" and "action" in query:
            return self.on_properties
        if method == "DELETE" and "recursive" in query:
            return self.on_delete
        return None

    def hand_on(self, body: bytes) -> None:
        """To the emulator as it came: a signature does not cover the host, so it stays valid."""
        there = http.client.HTTPConnection(self.server.blobs.hostname or "", self.server.blobs.port, timeout=60)
        there.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in ("transfer-encoding", "expect", "connection"):
                there.putheader(name, value)
        there.endheaders(body)
        found = there.getresponse()
        content = found.read()
        self.send_response(found.status)
        for name, value in found.getheaders():
            if name.lower() not in _OWN_HEADERS:
                self.send_header(name, value)
        self.send_header("Content-Length", found.getheader("Content-Length") or str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            if content and found.status < 300 and self.server.next_fault(self.command, cut=True):
                self.wfile.write(content[: len(content) // 2])
                self.close_connection = True
            else:
                self.wfile.write(content)
        there.close()

    # what is there

    def found(self, path: str) -> BlobProperties | None:
        with suppress(ResourceNotFoundError):
            return self.container.get_blob_client(path).get_blob_properties()
        return None

    def below(self, path: str) -> list[str]:
        return [blob.name for blob in self.container.list_blobs(name_starts_with=f"{path}/")]

    def make_folders(self, path: str) -> None:
        parts, missing = path.split("/")[:-1], []
        for count in range(len(parts), 0, -1):
            there = self.found(folder := "/".join(parts[:count]))
            if there is not None and not is_folder(there):
                raise Refused(409, "PathAlreadyExists")
            if there is not None:
                break
            missing.append(folder)
        for folder in missing:
            self.container.upload_blob(folder, b"", metadata={FOLDER: "true"})

    def check_conditions(self, there: BlobProperties | None) -> None:
        if self.headers.get("If-None-Match") == "*" and there is not None:
            raise Refused(409, "PathAlreadyExists")
        wanted = self.headers.get("If-Match")
        if wanted and wanted != "*" and (there is None or there.etag.strip('"') != wanted.strip('"')):
            raise Refused(412, "ConditionNotMet")

    def given_metadata(self) -> dict[str, str]:
        pairs = (pair.split("=", 1) for pair in (self.headers.get("x-ms-properties") or "").split(",") if "=" in pair)
        return {name.strip(): base64.b64decode(value).decode("latin-1") for name, value in pairs}

    # containers and their listing

    def on_container(self, path: str, query: Query, body: bytes) -> None:
        if self.command == "PUT":
            self.container.create_container()
            return self.answer(201)
        there = self.container.get_container_properties()
        if self.command != "GET":
            told = {"x-ms-namespace-enabled": "true", "x-ms-resource-type": "directory", "x-ms-acl": _ACL}
            owned = {"x-ms-owner": "$superuser", "x-ms-group": "$superuser", "x-ms-permissions": "rwxr-x---"}
            changed = format_datetime(there.last_modified, usegmt=True)
            return self.answer(200, {**told, **owned, "Last-Modified": changed})
        return self.on_list(query)

    def on_list(self, query: Query) -> None:
        folder, prefix = query.get("directory", "").strip("/"), ""
        if folder:
            prefix, there = f"{folder}/", self.found(folder)
            if there is None:
                raise Refused(404, "PathNotFound")
            if not is_folder(there):
                return self.answer_list([entry(there)], {})
        deep = query.get("recursive", "").lower() == "true"
        most, after = int(query.get("maxResults") or 5000), base64.b64decode(query.get("continuation", "")).decode()
        found: list[dict[str, str]] = []
        for blob in self.container.list_blobs(name_starts_with=prefix or None, include=["metadata"]):
            if blob.name <= after or (not deep and "/" in blob.name[len(prefix) :]):
                continue
            if len(found) == most:
                more = base64.b64encode(found[-1]["name"].encode()).decode()
                return self.answer_list(found, {"x-ms-continuation": more})
            found.append(entry(blob))
        return self.answer_list(found, {})

    def answer_list(self, paths: list[dict[str, str]], headers: Mapping[str, str]) -> None:
        kind = {"Content-Type": "application/json;charset=utf-8"}
        self.answer(200, {**kind, **headers}, json.dumps({"paths": paths}).encode())

    # files and folders

    def on_create(self, path: str, query: Query, body: bytes) -> None:
        there, as_folder = self.found(path), query["resource"] == "directory"
        self.check_conditions(there)
        if there is not None and is_folder(there) != as_folder:
            raise Refused(409, "PathAlreadyExists")
        if there is None or not as_folder:
            self.make_folders(path)
            mark = {FOLDER: "true"} if as_folder else {}
            self.container.upload_blob(path, b"", overwrite=True, metadata={**self.given_metadata(), **mark})
        self.answer(201, stamped(self.found(path)))

    def on_rename(self, path: str, query: Query, body: bytes) -> None:
        source = unquote(urlsplit(self.headers["x-ms-rename-source"]).path).strip("/").removeprefix(f"{ACCOUNT}/")
        source = source.partition("/")[2]  # behind its container, which is the same: nothing here renames across
        moved, there = self.found(source), self.found(path)
        if moved is None:
            raise Refused(404, "SourcePathNotFound")
        self.check_conditions(there)
        if path.startswith(f"{source}/"):
            raise Refused(409, "InvalidRenameSourcePath")
        parent = path.rpartition("/")[0]
        if parent and (folder := self.found(parent)) is None:
            raise Refused(404, "RenameDestinationParentPathNotFound")
        if parent and not is_folder(folder):
            raise Refused(409, "PathConflict")
        if there is not None and (is_folder(there) != is_folder(moved) or self.below(path)):
            raise Refused(409, "DestinationPathAlreadyExists")
        names = [source, *(self.below(source) if is_folder(moved) else ())]
        for name in names:
            url = self.container.get_blob_client(name).url
            self.container.get_blob_client(path + name[len(source) :]).start_copy_from_url(url)
        for name in reversed(names):
            self.container.delete_blob(name)
        if self.server.lost_answers:
            self.server.lost_answers -= 1
            self.close_connection = True
            return None
        return self.answer(201, stamped(self.found(path)))

    def on_change(self, path: str, query: Query, body: bytes) -> None:
        blob, action = self.container.get_blob_client(path), query.get("action")
        lease = {"lease": self.headers["x-ms-lease-id"]} if self.headers.get("x-ms-lease-id") else {}
        there = self.found(path)
        if there is None:
            raise Refused(404, "PathNotFound")
        if action == "append":
            blob.stage_block(f"{int(query['position']):032d}", body, **lease)
            if query.get("flush") == "true":
                self.flush(blob, int(query["position"]) + len(body), there, lease)
            return self.answer(202)
        if action == "flush":
            self.check_conditions(there)
            self.flush(blob, int(query["position"]), there, lease)
        elif action == "setProperties":
            mark = {FOLDER: "true"} if is_folder(there) else {}
            blob.set_blob_metadata({**self.given_metadata(), **mark}, **lease)
        elif action != "setAccessControl":
            raise Refused(400, "UnsupportedQueryParameter")
        return self.answer(200, stamped(self.found(path)))

    def flush(self, blob: Any, position: int, there: BlobProperties, lease: Mapping[str, str]) -> None:
        """Until then what was appended is not seen."""
        known, new = blob.get_block_list("all")
        sizes = {block.id: block.size for block in known}
        sizes |= {block.id: block.size for block in new if int(block.id) < position}
        if sum(sizes.values()) != position:
            raise Refused(400, "InvalidFlushPosition")
        if new or position == 0:
            blob.commit_block_list([BlobBlock(block) for block in sorted(sizes)], metadata=there.metadata, **lease)

    def on_properties(self, path: str, query: Query, body: bytes) -> None:
        there = self.found(path)
        if there is None:
            raise Refused(404, "PathNotFound")
        own = {name: value for name, value in there.metadata.items() if name != FOLDER}
        told = {
            "x-ms-resource-type": "directory" if is_folder(there) else "file",
            "Content-Length": str(there.size),
            "x-ms-owner": "$superuser",
            "x-ms-group": "$superuser",
            "x-ms-permissions": entry(there)["permissions"],
            "x-ms-acl": _ACL,
            "x-ms-properties": ",".join(f"{n}={base64.b64encode(v.encode()).decode()}" for n, v in own.items()),
        }
        self.answer(200, {**stamped(there), **told})

    def on_delete(self, path: str, query: Query, body: bytes) -> None:
        there = self.found(path)
        if there is None:
            raise Refused(404, "PathNotFound")
        below = self.below(path) if is_folder(there) else []
        if below and query["recursive"].lower() != "true":
            raise Refused(409, "DirectoryNotEmpty")
        for name in reversed([path, *below]):
            self.container.delete_blob(name)
        self.answer(200)


def is_folder(blob: BlobProperties) -> bool:
    return (blob.metadata or {}).get(FOLDER) == "true"


def entry(blob: BlobProperties) -> dict[str, str]:
    """A line of a listing."""
    found = {
        "name": blob.name,
        "contentLength": str(blob.size),
        "lastModified": format_datetime(blob.last_modified, usegmt=True),
        "etag": blob.etag.strip('"'),
        "owner": "$superuser",
        "group": "$superuser",
        "permissions": "rwxr-x---" if is_folder(blob) else "rw-r-----",
    }
    return {**found, "isDirectory": "true"} if is_folder(blob) else found


def stamped(blob: BlobProperties | None) -> dict[str, str]:
    assert blob is not None
    etag = blob.etag.strip('"')
    return {"ETag": f'"{etag}"', "Last-Modified": format_datetime(blob.last_modified, usegmt=True)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--blobs", required=True, metavar="URL", help="the emulator's address")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=10004)
    parser.add_argument("--container", required=True, help="made when it is not there")
    args = parser.parse_args()
    double = AdlsDouble(args.blobs, args.host, args.port)
    with suppress(ResourceExistsError):
        double.make_container(args.container)
    double.serve_forever()


if __name__ == "__main__":
    main()
