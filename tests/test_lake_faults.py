"""Lakes that fail for a while, or for good: what is done again, what is said, and that files and tables stay whole."""

from __future__ import annotations

import dataclasses
import datetime
import io
import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from azure.storage.blob import AccountSasPermissions, ResourceTypes, generate_account_sas

from connectors.adls_files import AdlsFileStore
from connectors.copying import Copier
from connectors.file_store import LocalFileStore
from connectors.hdfs_files import HdfsFileStore
from feature_defs.errors import LakeError
from tests.emulator import ACCOUNT, KEY, Emulator
from tests.hdfs_daemons import Hdfs
from tests.lake_kinds import Lake, new_lake


@pytest.fixture
def on_hdfs(hdfs: Hdfs, tmp_path: Path) -> Iterator[Lake]:
    yield new_lake(tmp_path, f"{hdfs.uri}/{tmp_path.name}", hdfs=hdfs)
    hdfs.heal()


@pytest.fixture
def on_adls(adls: Emulator, tmp_path: Path) -> Iterator[Lake]:
    yield new_lake(tmp_path, f"{adls.uri}/{tmp_path.name}", adls=adls)
    adls.double.faults.clear()


# --- HDFS ---


def test_the_name_node_that_answers_of_a_pair_is_asked(hdfs: Hdfs, on_hdfs: Lake) -> None:
    pair = HdfsFileStore("pair", ("http://127.0.0.1:1", hdfs.webhdfs))
    pair.create(on_hdfs / "a", b"x")
    assert (pair.read(on_hdfs / "a"), on_hdfs.paths()) == (b"x", ["a"])


def test_a_user_who_may_not_write_is_told_so(hdfs: Hdfs, on_hdfs: Lake) -> None:
    on_hdfs.files.create(on_hdfs / "a", b"x")
    stranger = HdfsFileStore("localhost", (hdfs.webhdfs,), user="stranger")
    assert stranger.read(on_hdfs / "a") == b"x"
    for action in (lambda: stranger.create(on_hdfs / "b", b""), lambda: stranger.delete(on_hdfs / "a")):
        with pytest.raises(LakeError, match="Permission denied: user=stranger") as raised:
            action()
        assert raised.value.hint == "let this user read and write there, or name another: [hdfs.localhost] user"
    assert on_hdfs.paths() == ["a"]


class Interrupted(io.BytesIO):
    """Content during whose reading something happens, once."""

    def __init__(self, content: bytes, happens: threading.Event) -> None:
        super().__init__(content)
        self.happens = happens

    def read(self, size: int | None = -1) -> bytes:
        if self.tell() >= 16 << 20:
            self.happens.set()
        return super().read(size)


def test_files_are_written_and_read_while_a_data_node_dies(hdfs: Hdfs, on_hdfs: Lake) -> None:
    content, killed = os.urandom(40 << 20), threading.Event()
    on_hdfs.files.create(on_hdfs / "before", content)
    killer = threading.Thread(target=lambda: (killed.wait(60), hdfs.kill("data0")))
    killer.start()
    on_hdfs.files.upload(on_hdfs / "during", Interrupted(content, killed))
    killer.join()
    on_hdfs.files.create(on_hdfs / "after", b"x" * 1000)
    for name in ("before", "during"):
        assert on_hdfs.files.read(on_hdfs / name) == content
    with on_hdfs.files.open(on_hdfs / "before") as file:
        file.seek(30 << 20)
        assert file.read(100) == content[30 << 20 : (30 << 20) + 100]
    assert on_hdfs.files.list_drafts(on_hdfs.root) == []
    assert on_hdfs.paths() == ["after", "before", "during"]


def test_a_name_node_that_starts_again_is_waited_for(hdfs: Hdfs, on_hdfs: Lake) -> None:
    on_hdfs.files.create(on_hdfs / "a", b"before")
    hdfs.kill("name")
    hdfs.start_name_node()
    on_hdfs.files.create(on_hdfs / "b", b"meanwhile")
    assert [on_hdfs.files.read(on_hdfs / name) for name in ("a", "b")] == [b"before", b"meanwhile"]


CONTENT = bytes(range(100))


class _Answers(BaseHTTPRequestHandler):
    """WebHDFS of a cluster with one file, of which the next answers break off after 40 bytes, or stall there."""

    cuts = 0
    may_end = threading.Event()  # while it is not set, the connection of an answer that is cut stays open

    def do_GET(self) -> None:
        if "op=OPEN" in self.path:
            cut, _Answers.cuts = _Answers.cuts > 0, _Answers.cuts - 1
            self._answer(CONTENT, CONTENT[:40] if cut else CONTENT)
            if cut:
                self.wfile.flush()
                self.may_end.wait(60)
        else:
            status = json.dumps({"FileStatus": {"type": "FILE", "length": len(CONTENT)}}).encode()
            self._answer(status, status)

    def _answer(self, promised: bytes, sent: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(promised)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def cutting(monkeypatch: pytest.MonkeyPatch) -> Iterator[HdfsFileStore]:
    monkeypatch.setattr(_Answers, "cuts", 0)
    _Answers.may_end.set()
    with ThreadingHTTPServer(("127.0.0.1", 0), _Answers) as server:
        threading.Thread(target=server.serve_forever).start()
        yield HdfsFileStore("cutting", (f"http://127.0.0.1:{server.server_port}",), seconds=20)
        _Answers.may_end.set()
        server.shutdown()


def test_an_answer_that_breaks_off_is_asked_for_again(cutting: HdfsFileStore, tmp_path: Path) -> None:
    _Answers.cuts = 2
    assert cutting.read("hdfs://cutting/a") == CONTENT
    _Answers.cuts = 2
    with cutting.open("hdfs://cutting/a") as file:
        assert file.read() == CONTENT
    _Answers.cuts = 2
    sent = Copier(cutting, LocalFileStore()).copy("hdfs://cutting/a", f"file://{tmp_path}/a")
    assert (sent.bytes, (tmp_path / "a").read_bytes()) == (100, CONTENT)


@pytest.mark.parametrize("ends", [True, False])
def test_answers_that_always_break_off_are_a_lake_error(cutting: HdfsFileStore, tmp_path: Path, ends: bool) -> None:
    """Whether the connection ends or nothing more comes of it."""
    hurried = dataclasses.replace(cutting, seconds=0.3)
    _Answers.cuts = 1000
    if not ends:
        _Answers.may_end.clear()
    copier = Copier(hurried, LocalFileStore())
    for action in (
        lambda: hurried.read("hdfs://cutting/a"),
        lambda: hurried.open("hdfs://cutting/a").read(),
        lambda: copier.copy("hdfs://cutting/a", f"file://{tmp_path}/a"),
    ):
        with pytest.raises(LakeError, match="cannot read it: HDFS 'cutting' breaks off its answers") as raised:
            action()
        assert raised.value.hint == "check [hdfs.cutting] webhdfs, and that the NameNode and its DataNodes run"
    assert list(tmp_path.iterdir()) == []


# --- ADLS ---


@pytest.mark.parametrize("status", [429, 503])
def test_a_service_that_is_busy_is_asked_again(adls: Emulator, on_adls: Lake, status: int) -> None:
    content = os.urandom(20 << 20)
    adls.double.fail(status, 4)
    on_adls.files.upload(on_adls / "a", io.BytesIO(content))
    adls.double.fail(status, 2)
    assert on_adls.files.read(on_adls / "a") == content
    adls.double.fail(status, 2)
    assert on_adls.paths() == ["a"]
    adls.double.fail(status, 2)
    on_adls.files.rename(on_adls / "a", on_adls / "b")
    adls.double.fail(status, 2)
    on_adls.files.delete(on_adls / "b")
    assert on_adls.paths() == []


def test_a_service_that_stays_busy_is_a_lake_error_and_leaves_nothing(adls: Emulator, on_adls: Lake) -> None:
    hurried = dataclasses.replace(on_adls.files, seconds=0.5)
    adls.double.fail(503, 1000, method="PATCH")
    with pytest.raises(LakeError, match=r"cannot create it: ServerBusy \(503\)\nHint: run it again when the service"):
        hurried.create(on_adls / "a", b"x")
    adls.double.faults.clear()
    assert on_adls.paths() == on_adls.files.list_drafts(on_adls.root) == []


def test_a_read_that_breaks_off_is_begun_again(adls: Emulator, on_adls: Lake) -> None:
    content = os.urandom(20 << 20)
    on_adls.files.create(on_adls / "a", content)
    adls.double.cut(2)
    assert on_adls.files.read(on_adls / "a") == content
    adls.double.cut(1)
    with on_adls.files.open(on_adls / "a") as file:
        assert file.read(5 << 20) == content[: 5 << 20]


def test_a_rename_whose_answer_is_lost_was_done_once(adls: Emulator, on_adls: Lake) -> None:
    """Tried again it finds its source gone, or its target there: both mean that it was done."""
    adls.double.lost_answers = 1
    on_adls.files.create(on_adls / "a", b"x")
    with pytest.raises(FileExistsError):
        on_adls.files.create(on_adls / "a", b"y")
    adls.double.lost_answers = 1
    on_adls.files.rename(on_adls / "a", on_adls / "b")
    assert (on_adls.paths(), on_adls.files.read(on_adls / "b")) == (["b"], b"x")


def signed(seconds: int) -> str:
    """A SAS of the account, which expires so many seconds from now."""
    until = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=seconds)
    allowed = AccountSasPermissions(read=True, write=True, delete=True, list=True, add=True, create=True)
    kinds = ResourceTypes(service=True, container=True, object=True)
    return generate_account_sas(ACCOUNT, KEY, resource_types=kinds, permission=allowed, expiry=until)


def test_a_sas_signs_in_until_it_has_expired(adls: Emulator, on_adls: Lake) -> None:
    by_sas = AdlsFileStore(ACCOUNT, adls.endpoint, auth="sas", secret=signed(60))
    by_sas.create(on_adls / "a", b"x")
    by_sas.rename(on_adls / "a", on_adls / "it's b")
    assert by_sas.read(on_adls / "it's b") == b"x"
    expired = dataclasses.replace(by_sas, secret=signed(-60))
    for action in (expired.read, expired.list_files, lambda uri: expired.create(f"{uri}2", b"y")):
        with pytest.raises(LakeError, match=r"Failed \(403\), the SAS of account 'devst.*' expired at 20") as raised:
            action(on_adls / "it's b")
        assert raised.value.hint.startswith("put a new SAS where [adls.devstoreaccount1] secret says, and run it again")
        assert "sig=" not in str(raised.value)
    assert on_adls.paths() == ["it's b"]


def test_a_whole_place_is_not_deleted(hdfs: Hdfs, adls: Emulator, on_hdfs: Lake, on_adls: Lake) -> None:
    """Whatever a lake's base is: nothing of Tidemark's is all that a container or a cluster holds."""
    for lake, part in ((on_hdfs, hdfs), (on_adls, adls)):
        lake.files.create(lake / "a", b"x")
        for uri in (part.uri, f"{part.uri}/"):
            with pytest.raises(LakeError, match=r"name a folder in it"):
                lake.files.delete(uri)
        assert lake.paths() == ["a"]


def test_a_wrong_key_is_told_from_a_missing_file(adls: Emulator, on_adls: Lake) -> None:
    on_adls.files.create(on_adls / "a", b"x")
    wrong = AdlsFileStore(ACCOUNT, adls.endpoint, auth="key", secret=KEY.replace("E", "F"))
    with pytest.raises(LakeError, match=r"\(403\)\nHint: \[adls.devstoreaccount1\] signs in by key"):
        wrong.read(on_adls / "a")
    with pytest.raises(LakeError, match=r"FilesystemNotFound \(404\)\nHint: make the container"):
        on_adls.files.list_files((on_adls / "a").replace("lake@", "nothere@"))
