"""What a source holds now, told without a Spark job: it changes when the rows may have, and not when they did not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from connectors.file_store import local_path
from connectors.offline_tables import open_table
from connectors.sources import source_state
from feature_defs import Source
from jobs.place import Place
from tests.lab import Table, put, put_text


def state(place: Place, source: Source) -> dict[str, Any]:
    found = source_state(source, place.lakes)
    assert json.loads(json.dumps(found)) == found
    return found


def raw(file_format: str, path: str = "lake://raw/rows") -> Source:
    return Source("rows", path=path, format=file_format, event_time="at")


def test_a_delta_source_is_its_version_and_the_id_of_its_table(place: Place, table: Table) -> None:
    source, rows = raw("delta"), table("a\n1", "a bigint")
    assert state(place, source) == {"kind": "unknown"}
    put(place, rows, source.path, "delta")
    first = state(place, source)
    assert (first["kind"], first["version"]) == ("delta", 0)
    put(place, rows, source.path, "delta")
    assert state(place, source) == {**first, "version": 1}
    detail = place.spark.sql(f"DESCRIBE DETAIL delta.`{place.lakes.uri(source.path)}`").collect()[0]
    assert first["id"] == detail["id"]


def test_the_id_of_a_delta_table_is_found_in_checksum_commit_or_checkpoint(place: Place, table: Table) -> None:
    source, rows = raw("delta"), table("a\n1", "a bigint")
    uri = place.lakes.uri(source.path)
    for _ in range(2):
        put(place, rows, source.path, "delta")
    place.spark.sql(f"ALTER TABLE delta.`{uri}` SET TBLPROPERTIES ('delta.checkpointInterval' = '3')")
    put(place, rows, source.path, "delta")
    rows.write.format("delta").mode("append").save(uri)
    whole = state(place, source)
    log = local_path(uri) / "_delta_log"
    assert whole["version"] == 4
    assert (log / f"{3:020d}.checkpoint.parquet").exists()
    for checksum in log.glob("*.crc"):
        checksum.unlink()
    assert state(place, source) == whole
    for version in range(3):
        (log / f"{version:020d}.json").unlink()
    assert state(place, source) == whole
    (log / f"{3:020d}.checkpoint.parquet").unlink()
    assert state(place, source) == {"kind": "unknown"}


@pytest.mark.parametrize("file_format", ["parquet", "csv", "json"])
def test_files_are_their_data_files_with_size_and_time(place: Place, file_format: str) -> None:
    source = raw(file_format)
    put_text(place, "abc", "lake://raw/rows/day=1")
    put_text(place, "abcd", "lake://raw/rows/_part=2")
    for hidden in ("_SUCCESS", ".part-0.crc", "_temporary"):
        put_text(place, "no data", f"lake://raw/rows/{hidden}")
    found = state(place, source)
    assert found["kind"] == "files"
    assert {path: size for path, (size, _) in found["files"].items()} == {"day=1/part-0": 3, "_part=2/part-0": 4}
    part = local_path(place.lakes.uri("lake://raw/rows/day=1/part-0"))
    assert found["files"]["day=1/part-0"][1] == part.stat().st_mtime_ns // 1000
    assert state(place, source) == found
    part.write_text("abcde", encoding="utf-8")
    assert state(place, source) != found


def test_a_source_may_be_one_file(place: Place) -> None:
    put_text(place, "abc", "lake://raw/rows")
    put_text(place, "other", "lake://raw/rows/more")
    assert list(state(place, raw("csv", "lake://raw/rows/part-0"))["files"]) == ["part-0"]


def test_a_path_that_is_not_there_has_no_files(place: Place, tmp_path: Path) -> None:
    assert state(place, raw("csv")) == {"kind": "files", "files": {}}


def test_nothing_is_claimed_of_a_pattern(place: Place) -> None:
    put_text(place, "abc", "lake://raw/rows")
    assert state(place, raw("csv", "lake://raw/ro*")) == {"kind": "unknown"}


@pytest.mark.parametrize("offline", ["delta", "parquet"])
def test_a_group_is_the_version_of_its_table_and_the_run_that_wrote_it(
    place: Place, table: Table, offline: str
) -> None:
    kept = open_table(place.spark, place.lakes.uri("lake://features/spend/v1"), offline)
    assert source_state(raw("delta"), place.lakes, table=kept) == {"kind": "group", "table_version": None, "run": None}
    version = kept.replace(table("a\n1", "a bigint"), {"run": "one"})
    found = source_state(raw("delta"), place.lakes, table=kept)
    assert found == {"kind": "group", "table_version": version, "run": "one"}


def test_a_bracket_that_closes_nothing_makes_no_pattern_of_a_path(place: Place, table: Table) -> None:
    """What comes later is added, not computed anew; of a pattern nobody can tell."""
    put(place, table("a\n1", "a bigint"), "lake://raw/a]b")
    kinds = {path: state(place, raw("parquet", f"lake://raw/{path}"))["kind"] for path in ("a]b", "a*", "{a,b}", "[a]")}
    assert kinds == {"a]b": "files", "a*": "unknown", "{a,b}": "unknown", "[a]": "unknown"}
