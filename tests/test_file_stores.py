"""What every kind of lake keeps, on real parts; where it says that one of many wins, many processes try."""

from __future__ import annotations

import io
import os
import threading
import time
import tracemalloc
from pathlib import Path

import pytest

from connectors.file_store import check_writable, data_files, draft_of, open_file_store
from feature_defs.errors import LakeError
from tests.lake_kinds import KINDS, Lake, new_lake, race, start


@pytest.fixture(params=KINDS)
def lake(request: pytest.FixtureRequest, tmp_path: Path) -> Lake:
    if request.param == "local":
        return new_lake(tmp_path, f"file://{tmp_path}/lake")
    part = request.getfixturevalue(request.param)
    return new_lake(tmp_path, f"{part.uri}/{tmp_path.name}", **{request.param: part})


def test_a_created_file_is_read_as_it_was_written(lake: Lake) -> None:
    """Folders come with it; no bytes at all are a file too."""
    for path, content in (("a/b/c.bin", bytes(range(256))), ("empty", b"")):
        lake.files.create(lake / path, content)
        assert lake.files.read(lake / path) == content


def test_a_file_is_created_once(lake: Lake) -> None:
    lake.files.create(lake / "a", b"first")
    with pytest.raises(FileExistsError):
        lake.files.create(lake / "a", b"second")
    assert lake.files.read(lake / "a") == b"first"
    assert lake.paths() == ["a"]


def test_of_many_processes_that_create_a_file_exactly_one_does(lake: Lake) -> None:
    """Eight files, four processes, and each file holds what its one winner wrote."""
    script = """
from connectors.file_store import open_file_store
root, me = sys.argv[1:]
files = open_file_store(root)
for number in range(8):
    try:
        files.create(f"{root}/race/{number:02}", me.encode() * 1000)
        print(number)
    except FileExistsError:
        pass
"""
    outputs = race(lake, script, [[lake.root, str(me)] for me in range(4)])
    won = {int(number): str(me) for me, output in enumerate(outputs) for number in output.split()}
    assert sorted(number for output in outputs for number in map(int, output.split())) == list(range(8))
    assert lake.paths("race") == [f"{number:02}" for number in range(8)]
    assert all(lake.files.read(lake / f"race/{n:02}") == me.encode() * 1000 for n, me in won.items())


def test_no_reader_sees_half_a_file(lake: Lake) -> None:
    """A file is listed and read while another process writes: all of it or nothing."""
    size = 1 << 20
    script = f"""
from connectors.file_store import open_file_store
root = sys.argv[1]
for number in range(12):
    open_file_store(root).create(f"{{root}}/{{number}}", bytes({size}))
"""
    writer = start(lake, script, lake.root)
    assert writer.stdin is not None
    writer.stdin.write("go\n")
    writer.stdin.flush()
    seen: set[str] = set()
    while writer.poll() is None:
        for file in lake.files.list_files(lake.root):
            assert (file.path.isdigit(), file.size) == (True, size)
            if file.path not in seen:
                assert len(lake.files.read(lake / file.path)) == size
            seen.add(file.path)
    writer.communicate()
    assert (writer.returncode, len(lake.paths())) == (0, 12)


def test_files_are_listed_by_path_with_size_and_time(lake: Lake) -> None:
    before = time.time_ns() // 1000 - 2_000_000
    for path in ("b", "a/z", "a/b/c", "a-b", "B"):
        lake.files.create(lake / path, path.encode())
    found = lake.files.list_files(lake.root)
    assert [file.path for file in found] == ["B", "a-b", "a/b/c", "a/z", "b"]
    assert [file.size for file in found] == [1, 3, 5, 3, 1]
    assert all(before < file.modified_us < time.time_ns() // 1000 + 2_000_000 for file in found)
    assert lake.paths("a") == ["b/c", "z"]


def test_a_missing_folder_holds_no_files(lake: Lake) -> None:
    assert lake.paths() == []
    assert lake.paths("nowhere/at/all") == []


def test_a_missing_file_is_said_to_be_missing(lake: Lake) -> None:
    with pytest.raises(FileNotFoundError):
        lake.files.read(lake / "a")
    with pytest.raises(FileNotFoundError):
        lake.files.rename(lake / "a", lake / "b")


def test_a_file_and_a_folder_move(lake: Lake) -> None:
    lake.files.create(lake / "a/one", b"1")
    lake.files.create(lake / "a/two", b"2")
    lake.files.rename(lake / "a/one", lake / "deep/er/one")
    lake.files.rename(lake / "a", lake / "else/where")
    assert lake.paths() == ["deep/er/one", "else/where/two"]
    assert lake.files.read(lake / "deep/er/one") == b"1"


def test_nothing_moves_onto_what_is_there(lake: Lake) -> None:
    lake.files.create(lake / "a/one", b"1")
    lake.files.create(lake / "b/one", b"2")
    for source, target in (("a/one", "b/one"), ("a", "b"), ("a/one", "b"), ("a", "b/one")):
        with pytest.raises(FileExistsError):
            lake.files.rename(lake / source, lake / target)
    assert (lake.files.read(lake / "a/one"), lake.files.read(lake / "b/one")) == (b"1", b"2")


def test_a_file_and_a_folder_are_deleted_and_a_missing_one_is_no_error(lake: Lake) -> None:
    for path in ("a/one", "a/b/two", "c"):
        lake.files.create(lake / path, b"x")
    lake.files.delete(lake / "a")
    assert lake.paths() == ["c"]
    for path in ("c", "c", "a", "never/was"):
        lake.files.delete(lake / path)
    assert lake.paths() == []
    lake.files.create(lake / "c", b"again")


def test_names_with_signs_are_only_names(lake: Lake) -> None:
    """Spark escapes nothing in a path, so neither may this."""
    names = ["50%", "a b", "a%20b", "a+b=c", "it's;a&b", "q?x#y", "{x}[y]", "ü"]
    for name in names:
        lake.files.create(lake / f"{name}/file", name.encode())
    assert lake.paths() == [f"{name}/file" for name in names]
    assert [lake.files.read(lake / f"{name}/file").decode() for name in names] == names
    for name in names:
        lake.files.rename(lake / name, lake / f"moved {name}")
        with lake.files.open(lake / f"moved {name}/file") as file:
            assert file.read().decode() == name
    lake.files.delete(lake / "moved a%20b")
    assert lake.paths() == [f"moved {name}/file" for name in names if name != "a%20b"]


def test_a_file_where_a_folder_should_be_is_a_lake_error(lake: Lake) -> None:
    """Not "it exists already": nobody won anything."""
    lake.files.create(lake / "a", b"x")
    for action in (
        lambda: lake.files.create(lake / "a/b", b""),
        lambda: lake.files.create(lake / "a/b/c", b""),
        lambda: lake.files.list_files(lake / "a"),
        lambda: lake.files.rename(lake / "a", lake / "a/b"),
    ):
        with pytest.raises(LakeError) as raised:
            action()
        assert raised.value.exit_code == 6
        assert lake.root in raised.value.subject
    with pytest.raises((LakeError, FileNotFoundError)):  # remote stores know only that it is not there
        lake.files.read(lake / "a/b")
    assert lake.files.read(lake / "a") == b"x"


def test_a_folder_is_no_file(lake: Lake) -> None:
    lake.files.create(lake / "a/b", b"x")
    for action in (lake.files.read, lake.files.open):
        with pytest.raises(LakeError):
            action(lake / "a")
    with pytest.raises(FileExistsError):
        lake.files.create(lake / "a", b"y")
    assert lake.paths() == ["a/b"]


def test_parts_of_a_file_are_read(lake: Lake) -> None:
    """As a reader of Parquet does: the end first, then here and there."""
    content = os.urandom(3_000_000)
    lake.files.create(lake / "file", content)
    with lake.files.open(lake / "file") as file:
        assert file.seek(-8, io.SEEK_END) == len(content) - 8
        assert (file.read(), file.read(5)) == (content[-8:], b"")
        for at, count in ((0, 1), (1_000_000, 70_000), (2_999_990, 100), (5, 2_500_000)):
            file.seek(at)
            assert file.read(count) == content[at : at + count]
    with pytest.raises(FileNotFoundError):
        lake.files.open(lake / "nowhere")


class Flow(io.RawIOBase):
    """A stream that is made while it is read, and cannot go back."""

    def __init__(self, size: int, broken_at: int | None = None) -> None:
        self.left, self.broken_at = size, broken_at

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if self.broken_at is not None and self.left <= self.broken_at:
            raise RuntimeError("the source broke")
        count = min(self.left, size)
        self.left -= count
        return bytes(count)


def test_a_big_file_goes_up_in_bounded_memory(lake: Lake) -> None:
    size = 128 << 20
    tracemalloc.start()
    lake.files.upload(lake / "big", Flow(size))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [file.size for file in lake.files.list_files(lake.root)] == [size]
    assert peak < size * 0.75  # the double and its blocks are in this process, too
    with lake.files.open(lake / "big") as file:
        file.seek(size - 10)
        assert file.read() == bytes(10)


def test_an_upload_is_whole_and_over_nothing(lake: Lake) -> None:
    content = os.urandom(20 << 20)
    lake.files.upload(lake / "a/file", io.BytesIO(content))
    assert lake.files.read(lake / "a/file") == content
    with pytest.raises(FileExistsError):
        lake.files.upload(lake / "a/file", io.BytesIO(b"other"))
    with pytest.raises(RuntimeError, match="the source broke"):
        lake.files.upload(lake / "a/half", Flow(20 << 20, broken_at=4 << 20))
    assert lake.paths() == ["a/file"]
    assert lake.files.list_drafts(lake.root) == []
    assert lake.files.read(lake / "a/file") == content


def test_of_many_threads_that_create_a_file_exactly_one_does(lake: Lake) -> None:
    won: list[tuple[int, int]] = []

    def create(me: int) -> None:
        for number in range(8):
            try:
                lake.files.create(lake / f"{number}", bytes([me]) * 1000)
                won.append((number, me))
            except FileExistsError:  # noqa: PERF203 - the requests take longer
                pass

    threads = [threading.Thread(target=create, args=(me,)) for me in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(number for number, _ in won) == list(range(8))
    assert all(lake.files.read(lake / f"{number}") == bytes([me]) * 1000 for number, me in won)
    assert lake.files.list_drafts(lake.root) == []


def test_a_draft_is_no_file_until_it_is_asked_for(lake: Lake) -> None:
    """What a killed run leaves: maintenance finds it and removes it."""
    lake.files.create(lake / "a/file", b"x")
    draft = draft_of(lake / "a/file")
    lake.files.create(draft, b"half")
    assert lake.paths() == ["a/file"]
    found = lake.files.list_drafts(lake.root)
    assert [(lake / file.path, file.size) for file in found] == [(draft, 4)]
    lake.files.delete(draft)
    assert lake.files.list_drafts(lake.root) == []


def test_what_spark_would_read_is_told_without_it(lake: Lake) -> None:
    for path in ("t/part-0", "t/day=1/part-1", "t/_SUCCESS", "t/.part-0.crc"):
        lake.files.create(lake / path, b"x")
    assert sorted(data_files(lake.files, lake / "t")) == [lake / "t/day=1/part-1", lake / "t/part-0"]
    assert list(data_files(lake.files, lake / "t/part-0")) == [lake / "t/part-0"]
    assert data_files(lake.files, lake / "nowhere") == {}


def test_a_folder_that_can_be_written_to_is_told_from_one_that_cannot(lake: Lake) -> None:
    check_writable(lake.files, lake / "new")
    lake.files.create(lake / "file", b"x")
    with pytest.raises(LakeError):
        check_writable(lake.files, lake / "file")
    assert lake.paths() == ["file"]


@pytest.mark.parametrize("uri", ["s4://bucket/x", "x", ""])
def test_a_scheme_without_a_store_is_a_lake_error(uri: str) -> None:
    with pytest.raises(LakeError, match="has no file store here, expected one of file:"):
        open_file_store(uri)


def test_a_place_that_no_profile_names_is_a_lake_error() -> None:
    with pytest.raises(LakeError, match="no lake of the profile is at hdfs://unknown:8020, so nothing tells how"):
        open_file_store("hdfs://unknown:8020/a")
    with pytest.raises(LakeError, match="no lake of the profile is at such a path"):
        open_file_store("hdfs:///a")
