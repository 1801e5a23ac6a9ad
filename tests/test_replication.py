"""replicate without Spark: histories written by hand, real files, real kills; tests/test_replicas.py reads replicas."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.copying import ALL, PIECE, SAMPLED, Copier
from connectors.delta_files import deletion_vector_path
from connectors.file_store import BLOCK, LocalFileStore, local_path
from connectors.pacing import TokenBucket
from connectors.pins import Pin, read_pins, write_pin
from connectors.replication import End, Progress, carry_out, plan_delta
from feature_defs import Entity, Feature, FeatureGroup, Source
from feature_defs.errors import LakeError, UsageError
from jobs.command_line import main
from jobs.place import Place
from jobs.replicate import ReplicateReport, replicate
from jobs.store import Store
from tests.conftest import settings_in
from tests.emulator import Emulator
from tests.hdfs_daemons import Hdfs
from tests.histories import History, bring, contents, end, visible, what_is_half
from tests.lab import register, write_profile
from tests.lake_kinds import adls_settings, hdfs_settings

ROOT = Path(__file__).resolve().parent.parent

customer = Entity("customer", keys={"customer_id": "string"})
raw = Source("raw", path="lake://raw/rows", format="parquet", event_time="event_time")
in_delta = FeatureGroup("in_delta", entity=customer, source=raw, features=[Feature("n", "bigint")])
in_parquet = FeatureGroup(
    "in_parquet", entity=customer, source=raw, features=[Feature("m", "bigint")], offline="parquet"
)


def refused(source: Path, target: Path, **options: Any) -> str:
    """Why a table cannot be replicated; nothing in the replica has changed."""
    before = contents(target)
    with pytest.raises(LakeError) as raised:
        bring(source, target, **options)
    assert contents(target) == before
    return str(raised.value)


def history(folder: Path, steps: int = 0, seed: int = 1) -> History:
    made = History(folder / "source", random.Random(seed))
    for _ in range(steps):
        made.step()
    return made


# histories


class Breaking(LocalFileStore):
    """A store that fails at its n-th write, in the middle of it or behind it."""

    def __init__(self, writes: int) -> None:
        self.left = writes

    def upload(self, uri: str, source: BinaryIO) -> None:
        self.left -= 1
        if self.left == 0:
            content = source.read()
            super().upload(uri, _Cut(content[: len(content) // 2]))
        super().upload(uri, source)
        self.left -= 1
        if self.left == 0:
            raise LakeError("Store", "is gone", hint="none")


class _Cut(io.BytesIO):
    def read(self, size: int | None = -1, /) -> bytes:
        if found := super().read(size):
            return found
        raise LakeError("Store", "is gone", hint="none")


@patch("os.fsync", lambda file: None)  # it is for power cuts
@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10**9), writes=st.lists(st.integers(1, 40), max_size=4), check=st.sampled_from([SAMPLED, ALL])
)
def test_replica_is_the_source_whatever_happened_and_whatever_broke(
    tmp_path_factory: pytest.TempPathFactory, seed: int, writes: list[int], check: str
) -> None:
    """Commits of all kinds, checkpoints of all kinds, a log that is cleaned up; runs that break at any write."""
    folder, draw = tmp_path_factory.mktemp("history"), random.Random(seed)
    source, target = history(folder, seed=seed), folder / "target"
    for broken in (*writes, 0):
        for _ in range(draw.randrange(1, 6)):
            source.step()
            if draw.random() < 0.3:
                source.checkpoint(draw.choice([0, 1, 1, 3]))
        if not target.exists() and draw.random() < 0.2:
            source.checkpoint(draw.choice([0, 1, 2]))
            source.clean_up(source.number, with_its_commit=draw.random() < 0.5)
            source.step()
        plan = plan_delta("t", end(source.folder), End(Breaking(broken), f"file://{target}"))
        try:
            carry_out(
                plan,
                Copier(plan.source.files, plan.target.files, check),
                parallel=draw.choice([1, 3]),
                progress=Progress(),
            )
        except LakeError:
            if not broken:
                raise
        assert what_is_half(source.folder, target) == []
    assert visible(target) == visible(source.folder)
    mine, theirs = contents(source.folder), contents(target)
    unneeded = mine.keys() - theirs.keys()  # files of a history that was cleaned up
    assert not [path for path in unneeded if path.startswith(("_delta_log/0", "_delta_log/_last"))], unneeded
    assert {path: mine[path] for path in theirs} == theirs
    assert bring(source.folder, target).is_done


def test_only_what_is_missing_is_sent(tmp_path: Path) -> None:
    source, target = history(tmp_path, 30), tmp_path / "target"
    bring(source.folder, target)
    assert contents(target) == contents(source.folder)
    source.commit({"add": source.add(100)})
    plan = plan_delta("t", end(source.folder), end(target))
    assert [(version.number, [*version.data.values()]) for version in plan.versions] == [(30, [100])]
    assert plan.after == (f"_delta_log/{30:020d}.crc",)
    bring(source.folder, target)
    (plain,) = [add for add in source.live.values() if add["size"] == 100]
    source.commit({"remove": plain}, {"add": source.with_vector(plain)})
    (version,) = bring(source.folder, target).versions
    assert [path.rpartition(".")[2] for path in version.data] == ["bin"]  # the file itself is there since version 30


def test_replica_of_a_log_that_was_cleaned_up_begins_with_its_oldest_checkpoint(tmp_path: Path) -> None:
    """The live files of that version and what came later; the files of earlier versions are of no use."""
    source, target = history(tmp_path), tmp_path / "target"
    for number in range(12):
        source.commit({"add": source.add(number + 1)}, *({"remove": add} for add in [*source.live.values()][:1]))
        if number in (4, 8):
            source.checkpoint(2)
    source.clean_up(4)
    plan = bring(source.folder, target)
    assert [version.number for version in plan.versions] == [*range(4, 12)]
    assert visible(target) == [*range(4, 12)]
    assert sorted(plan.versions[0].data.values()) == [5]  # what was removed before is not live there
    assert bring(source.folder, target).is_done


def test_replica_that_fell_behind_a_cleaned_log_is_told_to_begin_anew(tmp_path: Path) -> None:
    source, target = history(tmp_path, 3), tmp_path / "target"
    bring(source.folder, target)
    for _ in range(6):
        source.step()
    source.checkpoint()
    source.clean_up(8)
    told = refused(source.folder, target)
    assert "commits before 8 were cleaned up, and the replica ends with version 2" in told
    assert f"remove the replica (file://{target})" in told


def test_log_with_neither_its_first_commit_nor_a_checkpoint_is_refused(tmp_path: Path) -> None:
    source = history(tmp_path, 5)
    source.clean_up(2)
    assert "no checkpoint stands for them" in refused(source.folder, tmp_path / "target")


def test_vacuumed_versions_stop_a_replication_and_are_named(tmp_path: Path) -> None:
    """Allowed, they come as they are: what is readable in the source is readable in the replica."""
    source, target = history(tmp_path), tmp_path / "target"
    first = source.add(10)
    source.commit({"add": first})
    source.commit(
        {"add": source.add(11)}, {"cdc": {"path": "_change_data/c", "size": source.write("_change_data/c", 5)}}
    )
    source.commit({"remove": first}, {"add": source.add(12)})
    source.commit({"add": source.add(13)})
    source.vacuum()
    told = refused(source.folder, target)
    assert (
        "versions 0 to 1 cannot be read in the source any more, their files were vacuumed; versions 2 to 3 can" in told
    )
    assert "the change data of version 1 was vacuumed" in told
    assert "--allow-vacuumed" in told
    plan = bring(source.folder, target, allow_vacuumed=True)
    assert (plan.unreadable, plan.feedless) == ((0, 1), (1,))
    assert contents(target) == contents(source.folder)
    source.commit({"add": source.add(14)})
    assert [version.number for version in bring(source.folder, target).versions] == [4]  # of no concern any more


def test_table_that_has_lost_files_of_its_newest_version_is_refused_in_any_case(tmp_path: Path) -> None:
    source = history(tmp_path)
    add = source.add(10)
    source.commit({"add": add})
    shutil.rmtree(source.folder / add["path"], ignore_errors=True)
    for path in source.folder.rglob("*.parquet"):
        path.unlink()
    told = refused(source.folder, tmp_path / "target", allow_vacuumed=True)
    assert "its newest version 0 has lost 1 of its files" in told


def test_file_of_another_size_than_the_log_says_is_refused(tmp_path: Path) -> None:
    source = history(tmp_path)
    source.commit({"add": {**source.add(10), "size": 11}})
    assert "has 10 bytes, version 0 says 11" in refused(source.folder, tmp_path / "target")


def test_replica_with_a_history_of_its_own_is_refused(tmp_path: Path) -> None:
    """Its newest commit is another; a commit of the same length is; it has one more; it has nothing in common."""
    source, target = history(tmp_path, 6), tmp_path / "target"
    bring(source.folder, target)
    log = target / "_delta_log"
    six, three = log / f"{6:020d}.json", log / f"{3:020d}.json"
    six.write_text("{}")
    assert "the replica has version 6, the source ends with 5" in refused(source.folder, target)
    source.step()
    assert "version 6 of the replica is not the source's" in refused(source.folder, target)
    six.unlink()
    kept = three.read_bytes()
    three.write_bytes(kept[:-2] + b" \n")
    told = refused(source.folder, target)
    assert "version 3 of the replica is not the source's" in told
    assert f"remove it (file://{target})" in told
    three.write_bytes(kept + b"\n")
    assert "version 3" in refused(source.folder, target)
    three.write_bytes(kept)
    assert len(bring(source.folder, target).versions) == 1


def test_commit_that_somebody_writes_to_the_replica_meanwhile_is_not_built_on(tmp_path: Path) -> None:
    source, target = history(tmp_path, 3), tmp_path / "target"
    plan = plan_delta("t", end(source.folder), end(target))
    other = target / "_delta_log" / f"{1:020d}.json"
    other.parent.mkdir(parents=True)
    other.write_text("{}")
    with pytest.raises(LakeError, match="was written in the replica meanwhile"):
        carry_out(plan, Copier(plan.source.files, plan.target.files), parallel=1, progress=Progress())
    assert visible(target) == [0, 1]


@pytest.mark.parametrize(
    "action",
    [
        {"add": {"path": "file:///other/part", "size": 1}},
        {"add": {"path": "/other/part", "size": 1}},
        {"add": {"path": "../other/part", "size": 1}},
        {"add": {"path": "p", "size": 1, "deletionVector": {"storageType": "p", "pathOrInlineDv": "s3://b/dv.bin"}}},
    ],
)
def test_files_that_lie_elsewhere_are_refused(tmp_path: Path, action: dict[str, Any]) -> None:
    """A shallow clone's files are another table's."""
    source = history(tmp_path)
    source.commit(action)
    assert "names a file outside of its folder, as a shallow clone does" in refused(source.folder, tmp_path / "target")


def test_table_whose_commits_are_a_catalogs_is_refused(tmp_path: Path) -> None:
    source = history(tmp_path)
    source.commit({"protocol": {"writerFeatures": ["catalogManaged"]}})
    assert "its commits are its catalog's (catalogManaged)" in refused(source.folder, tmp_path / "target")


def test_deletion_vectors_are_found_where_the_protocol_says() -> None:
    """The example of Delta's protocol document."""
    vector = {"storageType": "u", "pathOrInlineDv": "ab^-aqEH.-t@S}K{vb[*k^"}
    assert deletion_vector_path(vector, "t") == "ab/deletion_vector_d2c639aa-8816-431a-aaf6-d3fe2512ff61.bin"
    assert deletion_vector_path({"storageType": "i", "pathOrInlineDv": "wi5b="}, "t") is None
    assert deletion_vector_path({}, "t") is None


# files


def copied(tmp_path: Path, target: LocalFileStore, size: int, check: str) -> Path:
    (tmp_path / "one").write_bytes(random.Random(3).randbytes(size))
    Copier(LocalFileStore(), target, check).copy(f"file://{tmp_path}/one", f"file://{tmp_path}/two", size)
    return tmp_path / "two"


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, 9 * PIECE + 5])
@pytest.mark.parametrize("check", [SAMPLED, ALL])
def test_file_of_any_size_arrives(tmp_path: Path, size: int, check: str) -> None:
    assert copied(tmp_path, LocalFileStore(), size, check).read_bytes() == (tmp_path / "one").read_bytes()


class Spoiling(LocalFileStore):
    """A store that keeps something else than it was given."""

    def __init__(self, spoil: Callable[[bytes], bytes]) -> None:
        self.spoil = spoil

    def upload(self, uri: str, source: BinaryIO) -> None:
        super().upload(uri, io.BytesIO(self.spoil(source.read())))


SPOILT: dict[str, Callable[[bytes], bytes]] = {
    "cut short": lambda content: content[:-1],
    "grown": lambda content: content + b"x",
    "a block twice": lambda content: content[: 4 * PIECE] * 2 + content[8 * PIECE :],
    "zeros": lambda content: bytes(len(content)),
    "its end lost": lambda content: content[:-10] + bytes(10),
}


@pytest.mark.parametrize("how", SPOILT)
def test_file_that_does_not_read_back_as_it_was_sent_is_an_error_and_removed(tmp_path: Path, how: str) -> None:
    with pytest.raises(LakeError, match="does not read back as it was sent"):
        copied(tmp_path, Spoiling(SPOILT[how]), 12 * PIECE, SAMPLED)
    assert not (tmp_path / "two").exists()


def test_one_wrong_byte_anywhere_is_found_when_all_is_read_back(tmp_path: Path) -> None:
    def flipped(content: bytes) -> bytes:
        return content[: 5 * PIECE + 7] + bytes([content[5 * PIECE + 7] ^ 1]) + content[5 * PIECE + 8 :]

    with pytest.raises(LakeError, match="does not read back"):
        copied(tmp_path, Spoiling(flipped), 12 * PIECE, ALL)


def test_source_that_is_cut_short_is_an_error_and_nothing_stays(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"x" * 10)
    with pytest.raises(LakeError, match="has 11 bytes, 10 were read"):
        Copier(LocalFileStore(), LocalFileStore()).copy(f"file://{tmp_path}/one", f"file://{tmp_path}/two", 11)
    assert not (tmp_path / "two").exists()


def test_file_that_a_killed_run_has_brought_is_held_against_the_source(tmp_path: Path) -> None:
    source, target = history(tmp_path), tmp_path / "target"
    source.commit({"add": source.add(5000)})
    (path,) = [path for path in contents(source.folder) if not path.startswith("_delta_log")]
    there = target / path
    there.parent.mkdir(parents=True)
    there.write_bytes(b"x" * 5000)
    assert "is there with other content" in refused(source.folder, target)
    shutil.copy(source.folder / path, there)
    progress = Progress()
    plan = plan_delta("t", end(source.folder), end(target))
    carry_out(plan, Copier(plan.source.files, plan.target.files), parallel=1, progress=progress)
    assert (progress.files, progress.there, progress.bytes) == (0, 1, 0)


def test_upload_takes_a_stream_in_pieces_and_never_another_files_place(tmp_path: Path) -> None:
    """As create: whole or not at all, also when the stream breaks."""

    asked = []

    class Stream(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            asked.append(size or 0)
            return super().read(size)

    store, uri = LocalFileStore(), f"file://{tmp_path}/new folder/file"
    store.upload(uri, Stream(b"x" * (9 << 20)))
    assert (tmp_path / "new folder" / "file").stat().st_size == 9 << 20
    assert 0 < min(asked) <= max(asked) <= BLOCK
    with pytest.raises(FileExistsError):
        store.upload(uri, io.BytesIO(b"other"))
    with pytest.raises(LakeError, match="is gone"):
        store.upload(uri + "2", _Cut(b"half"))
    assert [path.name for path in (tmp_path / "new folder").iterdir()] == ["file"]


def test_rate_holds_over_all_threads(tmp_path: Path) -> None:
    """3 MB at 3 MB a second, in four files at once: a second, but for the burst; read back pieces count."""
    source, target = history(tmp_path), tmp_path / "target"
    source.commit(*({"add": source.add(375_000)} for _ in range(4)))
    plan = plan_delta("t", end(source.folder), end(target))
    copier = Copier(plan.source.files, plan.target.files, ALL, TokenBucket(3_000_000))
    started = time.monotonic()
    carry_out(plan, copier, parallel=4, progress=Progress())
    assert 0.85 < time.monotonic() - started < 3


# the verb


def fill(place: Place) -> History:
    """A place with a Delta and a Parquet table, without Spark."""
    register(place, customer, raw, in_delta, in_parquet)
    lake = local_path(place.lakes.uri("lake://features"))
    made = History(lake / "in_delta" / "v1", random.Random(5))
    for _ in range(4):
        made.step()
    made.checkpoint(2)
    made.step()
    parquet = lake / "in_parquet" / "v1"
    for version in (1, 2):
        put_version(parquet, version)
    for name, content in (("v1_fitted/abc.json", "{}"), ("v1_results/run.json", "{}"), ("v1_online/run.json", "{}")):
        path = lake / "in_delta" / name
        path.parent.mkdir()
        path.write_text(content)
    write_pin(
        place.lakes,
        place.settings.offline,
        Pin("run1", "lake://work/out", {"lake://features/in_delta/v1": 3}, ("in_delta",)),
    )
    write_pin(place.lakes, place.settings.offline, Pin("run2", "lake://work/out", {}, ("another",)))
    return made


def put_version(table: Path, version: int, files: int = 2) -> None:
    """A version of a Parquet table that keeps the files of the one before."""
    paths = [f"data/run{n}/part-{n}.parquet" for n in range(1, version * files)]
    for path in paths:
        (table / path).parent.mkdir(parents=True, exist_ok=True)
        (table / path).write_bytes(f"{path}".encode())
    told = {
        "files": [{"path": path, "bytes": len(path)} for path in paths],
        "schema": {},
        "note": {"run": str(version)},
    }
    manifest = table / "_tidemark" / f"{version:08d}.json"
    manifest.parent.mkdir(exist_ok=True)
    manifest.write_text(json.dumps(told))


def place_in(folder: Path) -> Place:
    folder.mkdir()
    return Place(settings_in(folder))


@pytest.fixture
def here(tmp_path: Path) -> Place:
    place = place_in(tmp_path / "here")
    fill(place)
    return place


@pytest.fixture
def there(tmp_path: Path) -> Place:
    return place_in(tmp_path / "there")


def lake_of(place: Place) -> Path:
    return local_path(place.lakes.uri("lake://features"))


def brought(report: ReplicateReport) -> dict[str, tuple[int, int | None]]:
    return {one.table.removeprefix("lake://features/"): (one.versions, one.newest) for one in report.tables}


def test_groups_come_with_all_that_is_theirs_and_with_the_registry(here: Place, there: Place) -> None:
    """But for what tells of an online store of the source; a run again has nothing to do."""
    foreseen = replicate(here, to=there, dry_run=True)
    assert contents(lake_of(there)) == {}
    report = replicate(here, to=there)
    mine, theirs = contents(lake_of(here)), contents(lake_of(there))
    assert sorted(mine.keys() - theirs.keys()) == ["_pins/run2.json", "in_delta/v1_online/run.json"]
    assert {path: mine[path] for path in theirs} == theirs
    assert brought(report) == brought(foreseen) == {"in_delta/v1": (5, 4), "in_parquet/v1": (2, 2)}
    assert (report.versions, report.files, report.bytes) == (foreseen.versions, foreseen.files, foreseen.bytes)
    assert (report.snapshots, report.small) == (foreseen.snapshots, foreseen.small) == (1, 3)
    assert there.registry.applied() == here.registry.applied()
    (pin,) = read_pins(there.lakes, there.settings.offline)
    assert pin.pin.tables == {"lake://features/in_delta/v1": 3}
    again = replicate(here, to=there)
    assert (again.versions, again.files, again.bytes, again.snapshots, again.small) == (0, 0, 0, 0, 0)
    assert contents(lake_of(there)) == theirs
    assert "0 versions in 0 files (0.0 MB), 0 registry snapshots, 0 small files brought: test -> test" in again.text()


def test_only_the_named_groups_come(here: Place, there: Place) -> None:
    report = replicate(here, ["in_parquet"], to=there)
    assert brought(report) == {"in_parquet/v1": (2, 2)}
    assert not (lake_of(there) / "in_delta").exists()
    with pytest.raises(UsageError, match="FeatureGroup 'in_delat': is not in registry snapshot 1"):
        replicate(here, ["in_delat"], to=there)
    shutil.rmtree(lake_of(here) / "in_delta")
    with pytest.raises(LakeError, match="has no offline table in test"):
        replicate(here, ["in_delta"], to=there)
    assert brought(replicate(here, to=there)) == {"in_parquet/v1": (0, 2)}


def test_every_version_of_a_group_comes(here: Place, there: Place) -> None:
    """A model's training set is replayed from the table of the version that it was made of."""
    register(here, customer, raw, replace(in_delta, version=3), in_parquet)
    newer = History(lake_of(here) / "in_delta" / "v3", random.Random(9))
    newer.step()
    report = replicate(here, ["in_delta"], to=there)
    assert brought(report) == {"in_delta/v1": (5, 4), "in_delta/v3": (1, 0)}
    assert report.snapshots == 2


def test_registry_with_other_snapshots_is_refused_before_anything_is_copied(here: Place, there: Place) -> None:
    register(there, customer, raw, in_parquet)
    before = contents(lake_of(there))
    with pytest.raises(LakeError) as raised:
        replicate(here, to=there)
    assert "lake://features/_registry: snapshot 1 of the replica is not the source's" in str(raised.value)
    assert contents(lake_of(there)) == before
    assert replicate(here, to=there, registry=False).versions == 7
    assert there.registry.applied().definitions.groups.keys() == {"in_parquet"}


def test_registry_that_is_ahead_of_the_source_is_refused(here: Place, there: Place) -> None:
    replicate(here, to=there)
    register(there, customer, raw, in_parquet)
    with pytest.raises(LakeError, match="Registry: test has snapshot 2, test ends with 1"):
        replicate(here, to=there)


def test_fitted_values_that_the_other_place_fitted_itself_are_refused(here: Place, there: Place) -> None:
    """The rows were made of the source's."""
    path = lake_of(there) / "in_delta" / "v1_fitted" / "abc.json"
    path.parent.mkdir(parents=True)
    path.write_text("[]")
    with pytest.raises(LakeError, match=r"in_delta/v1_fitted: file abc\.json of the replica is not the source's"):
        replicate(here, to=there)
    assert [*contents(lake_of(there))] == ["in_delta/v1_fitted/abc.json"]


def test_parquet_table_comes_by_its_manifests(here: Place, there: Place) -> None:
    """New versions only; versions that maintenance removed are none; another history is refused."""
    table, other = (lake_of(place) / "in_parquet" / "v1" for place in (here, there))
    replicate(here, to=there)
    for version in (3, 4, 5):
        put_version(table, version)
    (table / "_tidemark" / "00000003.json").unlink()
    report = replicate(here, to=there)
    assert brought(report)["in_parquet/v1"] == (2, 5)
    assert sorted(path.name for path in (other / "_tidemark").iterdir()) == [f"{n:08d}.json" for n in (1, 2, 4, 5)]
    assert contents(table) == contents(other)
    put_version(other, 6)
    with pytest.raises(LakeError, match="the replica has version 6, the source ends with 5"):
        replicate(here, to=there)
    put_version(table, 6, files=3)
    with pytest.raises(LakeError, match="version 6 of the replica is not the source's"):
        replicate(here, to=there)


def test_parquet_file_of_another_size_than_its_manifest_says_is_refused(here: Place, there: Place) -> None:
    (lake_of(here) / "in_parquet" / "v1" / "data/run1/part-1.parquet").write_bytes(b"x")
    with pytest.raises(LakeError, match=r"data/run1/part-1\.parquet has 1 bytes, version 1 says 24"):
        replicate(here, to=there)


def test_parquet_version_that_has_lost_files_is_left_out_where_that_is_allowed(here: Place, there: Place) -> None:
    table = lake_of(here) / "in_parquet" / "v1"
    (table / "data/run1/part-1.parquet").unlink()
    with pytest.raises(LakeError, match="its newest version 2 has lost files"):
        replicate(here, to=there)
    told = {"files": [], "schema": {}, "note": {}}
    (table / "_tidemark" / "00000003.json").write_text(json.dumps(told))
    with pytest.raises(LakeError, match="versions 1 to 2 cannot be read in the source any more"):
        replicate(here, to=there)
    report = replicate(here, to=there, allow_vacuumed=True)
    assert brought(report)["in_parquet/v1"] == (1, 3)
    assert "lake://features/in_parquet/v1: of 2 versions the source has lost files" in report.text()


def test_old_drafts_of_killed_runs_are_removed_young_ones_are_not(here: Place, there: Place) -> None:
    folder = lake_of(there) / "in_delta" / "v1"
    folder.mkdir(parents=True)
    for name in ("._old", "._young"):
        (folder / name).write_text("half")
    os.utime(folder / "._old", (0, 0))
    report = replicate(here, to=there)
    assert report.leftovers == 1
    assert "1 draft of killed runs removed" in report.text()
    assert [path.name for path in folder.glob("._*")] == ["._young"]


@pytest.mark.parametrize(
    ("options", "told"),
    [({"rate": 0}, "0 MB a second is no rate"), ({"rate": -1.5}, "-1.5 MB"), ({"parallel": 0}, "0 is less than one")],
)
def test_options_that_make_no_sense_are_refused(here: Place, there: Place, options: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        replicate(here, to=there, **options)


def test_place_is_not_replicated_into_itself(here: Place, there: Place) -> None:
    """A group that both places have in one folder is there already; the others are brought."""
    with pytest.raises(UsageError, match="the tables of in_delta, in_parquet are in the same folders in both places"):
        replicate(here, to=Place(here.settings))
    lakes = {**there.settings.lakes, "shared": here.settings.lakes["features"]}
    to = Place(replace(there.settings, lakes=lakes, tables={"in_delta": "lake://shared"}))
    assert brought(replicate(here, to=to)) == {"in_parquet/v1": (2, 2)}
    to = Place(replace(to.settings, registry="lake://shared/_registry", tables={}))
    report = replicate(here, to=to)
    assert (brought(report)["in_delta/v1"], report.snapshots, report.small) == ((5, 4), 0, 3)


def test_two_at_once_do_no_harm(here: Place, there: Place) -> None:
    found: list[BaseException] = []

    def run() -> None:
        try:
            replicate(here, to=Place(there.settings), parallel=2)
        except BaseException as error:  # noqa: BLE001 - told in the test's own thread
            found.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == []
    replicate(here, to=there)
    mine = contents(lake_of(here))
    assert contents(lake_of(there)).items() <= mine.items()
    assert visible(lake_of(there) / "in_delta/v1") == [0, 1, 2, 3, 4]


def test_killed_at_every_write_it_leaves_nothing_half_and_goes_on(tmp_path: Path) -> None:
    """A process that kills itself with SIGKILL at its first, second, ... write; each time from nothing."""
    fill(place_in(tmp_path / "source"))
    command = [sys.executable, "-m", "tests.histories", str(tmp_path)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) > 40


def test_replica_in_adls_of_a_lake_on_hdfs(here: Place, hdfs: Hdfs, adls: Emulator, tmp_path: Path) -> None:
    """Real daemons and the emulator, which is busy for a while; the second run brings one commit."""
    lakes = {name: f"{hdfs.uri}/{tmp_path.name}/{name}" for name in ("raw", "features")}
    on_hdfs = Place(replace(here.settings, lakes=lakes, hdfs=hdfs_settings(hdfs)))
    lakes = {name: f"{adls.uri}/{tmp_path.name}/{name}" for name in ("raw", "features")}
    in_adls = Place(replace(here.settings, lakes=lakes, adls=adls_settings(adls)))
    target = in_adls.registry.files

    def sizes() -> dict[str, int]:
        return {file.path: file.size for file in target.list_files(lakes["features"])}

    def put_on_hdfs() -> None:
        for path, content in contents(lake_of(here)).items():
            with suppress(FileExistsError):
                on_hdfs.registry.files.create(on_hdfs.lakes.uri(f"lake://features/{path}"), content)

    put_on_hdfs()
    assert adls.double is not None
    adls.double.fail(503, 4)
    report = replicate(on_hdfs, to=in_adls, check=ALL)
    assert brought(report) == {"in_delta/v1": (5, 4), "in_parquet/v1": (2, 2)}
    there = {path: target.read(f"{lakes['features']}/{path}") for path in sizes()}
    left_out = {"_pins/run2.json", "in_delta/v1_online/run.json"}
    assert there == {path: content for path, content in contents(lake_of(here)).items() if path not in left_out}
    assert replicate(on_hdfs, to=in_adls).versions == 0
    put_version(lake_of(here) / "in_parquet" / "v1", 3)
    put_on_hdfs()
    again = replicate(on_hdfs, to=in_adls)
    assert (again.versions, again.files) == (1, 2)
    assert sizes().keys() - there.keys() == {
        "in_parquet/v1/_tidemark/00000003.json",
        "in_parquet/v1/data/run4/part-4.parquet",
        "in_parquet/v1/data/run5/part-5.parquet",
    }


def test_the_command_line_tells_what_was_brought(
    here: Place, there: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TIDEMARK_PROFILE", raising=False)
    ends = ["--from", write_profile(here, "onprem"), "--to", write_profile(there, "cloud")]
    assert main(["replicate", "--group", "in_parquet", *ends]) == 0
    printed = capsys.readouterr()
    assert "2 versions in 3 files (0.0 MB), 1 registry snapshot, 0 small files brought: onprem -> cloud" in printed.out
    assert "replicate lake://features/in_parquet/v1, 3 of 3 files, 0 of 0 MB, 2 versions: " in printed.err
    assert main(["replicate", *ends, "--rate", "100", "--check", "all", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["verb"], told["source"], told["target"], told["versions"]) == ("replicate", "onprem", "cloud", 5)
    put_version(lake_of(there) / "in_parquet" / "v1", 3)
    assert main(["replicate", *ends, "--json"]) == 6
    assert json.loads(capsys.readouterr().err)["error"] == "LakeError"
    assert main(["replicate", "--to", ends[1]]) == 4


def test_in_a_notebook_the_other_place_is_named_by_its_profile(here: Place, there: Place) -> None:
    report = Store(here).replicate("in_parquet", to=write_profile(there, "cloud"), rate=1000.0, registry=False)
    assert (report.target, brought(report), report.snapshots) == ("cloud", {"in_parquet/v1": (2, 2)}, 0)
