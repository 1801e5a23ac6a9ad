"""maintain, the verb, over real Delta and Parquet tables: what is removed, what stays readable, and being killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import DataFrame, SparkSession

from connectors import table_maintenance
from connectors.file_store import LocalFileStore, local_path
from connectors.pins import read_pins
from connectors.table_maintenance import Upkeep, files_wanted, kept_versions, past_maintenance, vacuum_parquet
from feature_defs import Entity, Feature, FeatureGroup, Service, Source
from feature_defs.errors import LakeError, UsageError
from jobs.maintain import MaintainReport, maintain
from jobs.place import Place
from jobs.training_set import training_set
from tests.conftest import settings_in
from tests.lab import Table, put, register

customer = Entity("customer", keys={"customer_id": "string"})
raw = Source("raw", path="lake://raw/rows", format="parquet", event_time="event_time")
WORDS = [Feature("n", "bigint")]
in_delta = FeatureGroup("in_delta", entity=customer, source=raw, features=WORDS)
in_parquet = FeatureGroup(
    "in_parquet", entity=customer, source=raw, features=[Feature("m", "bigint")], offline="parquet"
)
both = Service("both", [in_delta, in_parquet])
GROUPS = (in_delta, in_parquet)
DAY = 86_400
TEN_DAYS_US = 10 * DAY * 1_000_000
OUT = "lake://work/out"


def rows_of(spark: SparkSession, version: int, name: str) -> DataFrame:
    """A version's rows, in several small files."""
    clocks = ("timestamp'2026-01-01' AS event_time", "CAST(null AS timestamp) AS created_time")
    values = f"id * {version + 1} AS {name}"
    return spark.range(40 + version).selectExpr("concat('c', id) AS customer_id", *clocks, values).repartition(4)


def write_versions(place: Place, *versions: int) -> None:
    snapshot = place.applied()
    for version in versions:
        for group in GROUPS:
            note = {"fingerprint": snapshot.fingerprint(group.name), "written": version}
            place.table(group).replace(rows_of(place.spark, version, group.features[0].name), note)


@pytest.fixture(scope="module")
def original(spark: SparkSession, table: Table, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four versions of a Delta and a Parquet table; a training set was made of the second one."""
    folder = tmp_path_factory.mktemp("original")
    place = Place(settings_in(folder))
    register(place, customer, raw, *GROUPS, both)
    write_versions(place, 0, 1)
    put(place, table("customer_id | event_time\nc1 | 2026-02-01\nc39 | 2026-02-01"), "lake://raw/spine")
    training_set(place, "lake://raw/spine", service="both", out=OUT)
    write_versions(place, 2, 3)
    place.quarantine(in_delta).replace(spark.range(3).repartition(3), {})
    return folder


@pytest.fixture
def aged(original: Path, tmp_path: Path) -> Place:
    """A copy in which all was written ten days ago; a new path, so that no cache of Delta's knows it."""
    shutil.copytree(original, tmp_path, dirs_exist_ok=True)
    age(tmp_path)
    return Place(settings_in(tmp_path))


def age(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.parent.name == "_delta_log" and path.suffix == ".json":
            old = [older(json.loads(line)) for line in path.read_text().splitlines()]
            path.write_text("\n".join(map(json.dumps, old)))
            path.with_name(f".{path.name}.crc").unlink(missing_ok=True)
            path.with_suffix(".crc").unlink(missing_ok=True)  # Delta's own checksum of the version
        if path.is_file():
            status = path.stat()
            os.utime(path, (status.st_atime, status.st_mtime - 10 * DAY))


def older(action: dict[str, Any]) -> dict[str, Any]:
    if "remove" in action:
        action["remove"]["deletionTimestamp"] -= TEN_DAYS_US // 1000
    return action


def contents(place: Place, group: FeatureGroup, version: int | None = None) -> list[Any]:
    return sorted(map(tuple, place.table(group).read(version).collect()))


def expected(place: Place, group: FeatureGroup, version: int) -> list[Any]:
    columns = place.table(group).read().columns
    return sorted(map(tuple, rows_of(place.spark, version, group.features[0].name).select(*columns).collect()))


def on_disk(place: Place) -> dict[str, int]:
    root = local_path(place.lakes.uri("lake://features"))
    return {path.relative_to(root).as_posix(): path.stat().st_size for path in root.rglob("*") if path.is_file()}


def data_files(place: Place, table: str) -> list[str]:
    return [path for path in on_disk(place) if path.startswith(f"{table}/") and path.endswith(".parquet")]


def told(report: MaintainReport, table: str) -> Any:
    return next(one for one in report.tables if one.table == f"lake://features/{table}")


# what goes and what stays


def test_small_files_are_compacted_and_old_versions_go_but_the_pinned_one(aged: Place) -> None:
    """A dry run first: it changes nothing and tells what the run then frees. A second run has nothing to do."""
    before, pinned = on_disk(aged), {"in_delta": 1, "in_parquet": 2}
    foreseen = maintain(aged, dry_run=True)
    assert on_disk(aged) == before
    report = maintain(aged)
    assert [one.table for one in report.tables] == [one.table for one in foreseen.tables]
    for group, first in ((in_delta, 0), (in_parquet, 1)):
        name = f"{group.name}/v1"
        one, other = told(report, name), told(foreseen, name)
        assert one.pins == (pinned[group.name],)
        assert one.compacted == other.compacted == (4, 1)
        assert one.bytes_freed == other.bytes_freed > 0
        assert one.files_before == 16
        assert one.files_after == len(data_files(aged, name)) == 9  # pinned 4, the newest before 4, compacted 1
        assert one.bytes_after == sum(size for path, size in on_disk(aged).items() if path in data_files(aged, name))
        assert contents(aged, group) == expected(aged, group, 3)
        assert contents(aged, group, first + 3) == expected(aged, group, 3)  # replaced by maintenance, just now
        assert contents(aged, group, pinned[group.name]) == expected(aged, group, 1)
        for gone in (first, first + 2):
            with pytest.raises(Exception, match=r"has no version|FAILED_READ_FILE|does not exist"):
                contents(aged, group, gone)
        aged.computed(aged.applied(), group)  # the newest version still says by which definitions it was computed
        assert aged.table(group).note(aged.table(group).version() or 0)["written"] == 3
    assert told(report, "in_delta/v1_quarantine").compacted == (3, 1)
    assert "lake://features/in_delta/v1: what was 4 files is 1" in report.text()
    again = maintain(aged)
    assert (again.bytes_freed, again.leftovers, [one.compacted for one in again.tables]) == (0, 0, [None] * 3)


def test_history_of_a_pinned_delta_table_is_kept_until_its_dataset_is_gone(aged: Place) -> None:
    """Delta removes commits after 30 days, and reads no version that was replaced a week ago."""
    with pytest.raises(Exception, match="Cannot time travel beyond"):
        contents(aged, in_delta, 1)

    def properties() -> dict[str, str]:
        uri = aged.table(in_delta).uri
        return dict(aged.spark.sql(f"DESCRIBE DETAIL delta.`{uri}`").collect()[0]["properties"])

    maintain(aged, ["in_delta"])
    kept = {"delta.deletedFileRetentionDuration", "delta.logRetentionDuration"}
    assert kept <= properties().keys()
    assert contents(aged, in_delta, 1) == expected(aged, in_delta, 1)
    shutil.rmtree(local_path(aged.lakes.uri(OUT)))
    report = maintain(aged, ["in_delta"])
    assert (report.pins_dropped, told(report, "in_delta/v1").pins) == (1, ())
    assert not kept & properties().keys()
    assert read_pins(aged.lakes, aged.settings.offline) == ()
    assert len(data_files(aged, "in_delta/v1")) == 5  # what was pinned is gone
    aged.computed(aged.applied(), in_delta)


def test_nothing_is_removed_within_the_retention(original: Path, tmp_path: Path) -> None:
    """Also with no pin at all: whoever reads a version now has a week to end."""
    shutil.copytree(original, tmp_path, dirs_exist_ok=True)
    place = Place(settings_in(tmp_path))
    shutil.rmtree(local_path(place.lakes.uri("lake://features/_pins")))
    report = maintain(place)
    assert (report.bytes_freed, report.leftovers) == (0, 0)
    for version in range(4):
        assert contents(place, in_delta, version) == expected(place, in_delta, version)
        assert contents(place, in_parquet, version + 1) == expected(place, in_parquet, version)


def test_rebuilt_training_set_gives_its_old_versions_free(aged: Place) -> None:
    """The pin of the run that was replaced is not alive any more; the new one's is."""
    report = training_set(aged, "lake://raw/spine", service="both", out=OUT)
    found = {pin.pin.run: pin.alive for pin in read_pins(aged.lakes, aged.settings.offline)}
    assert sorted(found.values()) == [False, True]
    assert found[report.run]
    assert told(maintain(aged, ["in_parquet"]), "in_parquet/v1").pins == (4,)


def test_delta_dataset_pins_as_long_as_one_of_its_commits_names_the_run(original: Path, tmp_path: Path) -> None:
    """A Delta dataset keeps its older versions, and so what they were made of."""
    shutil.copytree(original, tmp_path, dirs_exist_ok=True)
    place = Place(settings_in(tmp_path))
    for _ in range(2):
        training_set(place, "lake://raw/spine", service="both", out="lake://work/delta", out_format="delta")
    pins = read_pins(place.lakes, place.settings.offline)
    assert [pin.alive for pin in pins] == [True] * 3


# leftovers of killed runs


def test_leftovers_go_when_they_are_older_than_the_retention(aged: Place) -> None:
    """A folder that a running job writes to, however long ago it began, is not touched."""
    table = local_path(aged.table(in_parquet).uri)
    work, loads = local_path(aged.lakes.uri("lake://work")), Path(f"{table}_online")
    run = read_pins(aged.lakes, aged.settings.offline)[0].pin.run
    old = [
        table / "data" / "dead" / "part-0.parquet",
        table / "data" / "dead" / "_temporary" / "0" / "part-1.parquet",
        table / "_tidemark" / "._draft",
        work / f"._out.{run}" / "part-0.parquet",
        loads / "_work.dead" / "0" / "part-0.parquet",
    ]
    young = [
        table / "data" / "running" / "_temporary" / "part-0.parquet",
        table / "_tidemark" / "._now",
        loads / "_work.running" / "0" / "part-0.parquet",
        loads / "20260101T000000000-aaaaaa.json",
    ]
    slow = table / "data" / "running" / "part-0.parquet"
    for path in (*old, *young, slow):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"1234")
    for path in (*old, slow):
        os.utime(path, (time.time() - 10 * DAY,) * 2)
    report = maintain(aged, ["in_parquet"])
    assert [path for path in old if path.exists()] == []
    assert [path for path in (*young, slow) if not path.exists()] == []
    assert report.leftovers == 4
    assert told(report, "in_parquet/v1").notes == ("not compacted: another run has been writing within the hour",)
    assert not (table / "data" / "dead").exists()
    assert contents(aged, in_parquet) == expected(aged, in_parquet, 3)


def test_dataset_that_only_a_killed_run_has_put_aside_is_not_a_leftover(aged: Place) -> None:
    """Between its two renames a training set that is replaced has another name and no successor."""
    out = local_path(aged.lakes.uri(OUT))
    run = read_pins(aged.lakes, aged.settings.offline)[0].pin.run
    aside = out.with_name(f"._out.old.{run}")
    out.rename(aside)
    assert maintain(aged, ["in_parquet"]).leftovers == 0
    assert aside.exists()


# plain rules, without Spark


def test_versions_that_were_the_newest_since_then_are_kept() -> None:
    written = {1: 10, 2: 20, 3: 30, 5: 40}
    assert kept_versions(written, 100, []) == {5}
    assert kept_versions(written, 30, []) == {2, 3, 5}  # 2 was the newest until 30
    assert kept_versions(written, 31, [1, 4]) == {1, 3, 5}
    assert kept_versions(written, 0, []) == {1, 2, 3, 5}


def test_files_are_compacted_only_when_that_makes_them_fewer() -> None:
    mb = 1 << 20
    assert files_wanted([mb] * 4) == 1
    assert files_wanted([mb]) is None
    assert files_wanted([]) is None
    assert files_wanted([100 * mb] * 3) is None
    assert files_wanted([128 * mb, 128 * mb, mb, mb]) == 3
    assert files_wanted([128 * mb, mb]) is None


@pytest.mark.parametrize("retention", ["1s", "0d", "week", "59m"])
def test_retention_that_a_running_job_could_outlast_is_refused(aged: Place, retention: str) -> None:
    with pytest.raises(UsageError, match="retention"):
        maintain(aged, retention=retention)


# beside others


def test_what_only_maintenance_got_in_the_way_of_is_written_again(original: Path, tmp_path: Path) -> None:
    """A job's write begins, maintenance compacts, the job's write ends: it fails, is repeated, and no row is lost."""
    shutil.copytree(original, tmp_path, dirs_exist_ok=True)
    place = Place(settings_in(tmp_path))
    for group in GROUPS:
        table = place.table(group)
        began, go_on = tmp_path / f"{group.name} began", tmp_path / f"{group.name} goes on"

        def slow(batches: Any, began: Path = began, go_on: Path = go_on) -> Any:
            began.touch()
            while not go_on.exists():
                time.sleep(0.05)
            yield from batches

        rows = rows_of(place.spark, 7, group.features[0].name).coalesce(1)
        slowed = rows.mapInArrow(slow, rows.schema)
        attempts, versions = [], []

        def write(table: Any = table, slowed: DataFrame = slowed, attempts: list[int] = attempts) -> int:
            attempts.append(1)
            return int(table.replace(slowed, {"written": 7}))

        job = threading.Thread(target=lambda t=table, v=versions, w=write: v.append(past_maintenance(t, w)))
        job.start()
        while not began.exists():
            time.sleep(0.05)
        # a job that is seen writing is not got in the way of: only one that is missed
        table_maintenance_busy = table_maintenance.BUSY_US
        table_maintenance.BUSY_US = -1
        assert told(maintain(place, [group.name]), f"{group.name}/v1").compacted == (4, 1)
        table_maintenance.BUSY_US = table_maintenance_busy
        go_on.touch()
        job.join()
        assert (len(attempts), versions) == (2, [table.version()])
        assert contents(place, group) == expected(place, group, 7)


def test_write_that_another_job_was_faster_than_fails_as_ever(aged: Place) -> None:
    table = aged.table(in_parquet)

    def beaten() -> int:
        write_versions(aged, 5)
        raise LakeError("Table", "another run wrote version 5 first", hint="run the job again")

    with pytest.raises(LakeError, match="another run"):
        past_maintenance(table, beaten)
    assert contents(aged, in_parquet) == expected(aged, in_parquet, 5)


def test_two_maintenances_at_once_do_no_harm(aged: Place) -> None:
    """Each in a session of its own, as two processes have."""
    places = [Place(aged.settings), Place(aged.settings)]
    failed: list[Exception] = []

    def run(place: Place) -> None:
        try:
            maintain(place)
        except Exception as error:  # noqa: BLE001 - whatever it is, the test fails by it
            failed.append(error)

    for place in places:
        place.__dict__["spark"] = aged.spark.newSession()
    threads = [threading.Thread(target=run, args=(place,)) for place in places]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    for group, pinned in ((in_delta, 1), (in_parquet, 2)):
        assert contents(aged, group) == expected(aged, group, 3)
        assert contents(aged, group, pinned) == expected(aged, group, 1)
        aged.computed(aged.applied(), group)


# kill -9

VACUUM = """
import os, signal, sys
from connectors.file_store import LocalFileStore
from connectors.table_maintenance import Upkeep, vacuum_parquet
steps = int(sys.argv[2])
delete = LocalFileStore.delete
def counted(self, uri):
    global steps
    steps -= 1
    if steps < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    delete(self, uri)
LocalFileStore.delete = counted
vacuum_parquet(LocalFileStore(), sys.argv[1], Upkeep(frozenset({2}), int(sys.argv[3]), 1, "run"))
"""


def parquet_table(folder: Path) -> dict[int, list[str]]:
    """Five versions as they lie in a lake, each adding a file to those of the one before and dropping the oldest."""
    files: dict[int, list[str]] = {}
    for version in range(1, 6):
        path = folder / "data" / f"run{version}" / "part-0.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(pa.table({"n": [version]}), path)
        files[version] = [f"data/run{v}/part-0.parquet" for v in (version - 1, version) if v]
        manifest = {"files": [{"path": name, "bytes": 1} for name in files[version]], "schema": {}, "note": {}}
        target = folder / "_tidemark" / f"{version:08d}.json"
        target.parent.mkdir(exist_ok=True)
        target.write_text(json.dumps(manifest))
        os.utime(target, (1000 + version, 1000 + version))
        os.utime(path, (1000 + version, 1000 + version))
    return files


def test_kill_at_any_step_of_a_vacuum_leaves_every_listed_version_whole(tmp_path: Path) -> None:
    """And the next run ends what was begun. The process is really killed, before each of its deletions in turn."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    for step in range(20):
        folder = tmp_path / str(step)
        files = parquet_table(folder)
        command = [sys.executable, "-c", VACUUM, f"file:{folder}", str(step), str(2_000_000_000)]
        code = subprocess.run(command, env=environment, check=False).returncode
        for manifest in (folder / "_tidemark").glob("*.json"):
            assert [name for name in files[int(manifest.stem)] if not (folder / name).exists()] == []
        vacuum_parquet(LocalFileStore(), f"file:{folder}", Upkeep(frozenset({2}), 2_000_000_000, 1, "run"))
        left = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        assert left == sorted({*files[2], *files[5], "_tidemark/00000002.json", "_tidemark/00000005.json"})
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert step == 4  # three manifests and one folder


KILLED = """
import os, signal, sys
from pathlib import Path
from connectors.file_store import LocalFileStore
from jobs.maintain import maintain
from jobs.place import Place
from jobs.settings import SparkSettings
from tests.conftest import settings_in
from jobs.session import cached_jars
point = sys.argv[2]
create, delete = LocalFileStore.create, LocalFileStore.delete
def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)
if point == "before the compacted version":
    LocalFileStore.create = kill
else:
    LocalFileStore.delete = kill
maintain(Place(settings_in(Path(sys.argv[1]))), ["in_parquet", "in_delta"])
"""


@pytest.mark.parametrize("point", ["before the compacted version", "before anything is removed"])
def test_kill_of_a_run_between_its_steps_leaves_readable_tables(aged: Place, tmp_path: Path, point: str) -> None:
    """A process with a Spark of its own is killed; the next run goes the whole way."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    ran = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), point], env=environment, check=False)
    assert ran.returncode == -signal.SIGKILL
    for again in range(2):
        for group, pinned in ((in_delta, 1), (in_parquet, 2)):
            assert contents(aged, group) == expected(aged, group, 3)
            if again or group is in_parquet:  # Delta reads an old version once a maintenance has ended
                assert contents(aged, group, pinned) == expected(aged, group, 1)
        maintain(aged)
    assert len(data_files(aged, "in_parquet/v1")) == 9
