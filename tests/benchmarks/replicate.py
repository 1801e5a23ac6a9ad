"""replicate, measured: a Delta table from a real HDFS to the blob emulator, files through this process, no Spark.

    make bench NAME=replicate                2 GiB in 16 files
    make bench NAME=replicate ARGS="0.25"    so many GiB

`read_mb_s` and `write_mb_s` are the two ends, each alone, through the same stores: the table's files read to their
end, and as many bytes written in files of that size. `vs_slower_end` is the replication against the slower of them,
`sampled` and `all` are its two checks. `one_commit_vs_full` is the verb once more after a commit of a few kilobytes
(and after a delete, which is a deletion vector), against the first run. `identical`: the hash of all rows of every
version, read by Spark in both lakes. The last line is one JSON object.
"""

from __future__ import annotations

import dataclasses
import io
import json
import multiprocessing
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
os.environ["PYTHONPATH"] = str(ROOT)  # for the workers, wherever this is started
sys.path[0] = str(ROOT)  # the script's own folder has modules named as ours

from pyspark.sql import DataFrame  # noqa: E402 - the path comes first

from connectors.copying import ALL, SAMPLED  # noqa: E402
from connectors.file_store import BLOCK, open_file_store  # noqa: E402
from connectors.lakes import joined  # noqa: E402
from feature_defs import Entity, Feature, FeatureGroup, Source  # noqa: E402
from jobs.compare import hashes_of  # noqa: E402
from jobs.place import Place  # noqa: E402
from jobs.replicate import replicate  # noqa: E402
from jobs.row_diff import Rows  # noqa: E402
from tests.benchmarks.common import in_folder, place_in, progress, rounded, seconds  # noqa: E402
from tests.emulator import KEY, emulator  # noqa: E402
from tests.hdfs_daemons import Hdfs  # noqa: E402
from tests.lab import register  # noqa: E402
from tests.lake_kinds import SECRET, adls_settings, hdfs_settings  # noqa: E402

FILES = 16
PAYLOAD = 1000  # random letters a row, which hardly compress

customer = Entity("customer", keys={"customer_id": "bigint"})
raw = Source("raw", path="lake://raw/rows", format="parquet", event_time="event_time")
group = FeatureGroup("wide", entity=customer, source=raw, features=[Feature("payload", "string")])


def serve(folder: Path, pipe: Connection) -> None:
    """The emulator and the double before it, in a process of their own, until the pipe is closed."""
    with emulator(folder) as started:
        pipe.send((started.uri, started.endpoint))
        pipe.recv()


@contextmanager
def parts(folder: Path) -> Iterator[tuple[Hdfs, Any]]:
    hdfs, context = Hdfs(folder / "hdfs", data_nodes=1), multiprocessing.get_context("spawn")
    mine, its = context.Pipe()
    process = context.Process(target=serve, args=(folder / "azurite", its))
    os.environ[SECRET] = KEY
    try:
        process.start()
        hdfs.start()
        uri, endpoint = mine.recv()
        yield hdfs, dataclasses.make_dataclass("Started", ["uri", "endpoint"])(uri, endpoint)
    finally:
        if process.is_alive():
            mine.send("stop")
            process.join()
        hdfs.stop()


def places(folder: Path, hdfs: Hdfs, adls: Any) -> tuple[Place, Place]:
    """Where the table is made, and where it is brought."""
    plain = place_in(folder).settings
    conf = {**plain.spark.conf, "spark.hadoop.fs.azure.networking.library": "JDK_HTTP_URL_CONNECTION"}
    both = {
        "hdfs": hdfs_settings(hdfs),
        "adls": adls_settings(adls),
        "spark": dataclasses.replace(plain.spark, conf=conf),
    }
    names = ("raw", "features")
    # the other lake is named in both, so that one Spark session reads both
    lakes = [{**{name: f"{uri}/{name}" for name in names}, "other": other} for uri, other in
             ((f"{hdfs.uri}/lake", adls.uri), (f"{adls.uri}/lake", hdfs.uri))]  # fmt: skip
    here, there = (Place(dataclasses.replace(plain, lakes=each, **both)) for each in lakes)
    return here, there


def rows(place: Place, count: int, start: int = 0) -> DataFrame:
    clocks = ("timestamp'2026-01-01' AS event_time", "CAST(null AS timestamp) AS created_time")
    payload = f"randstr({PAYLOAD}, {start + 1}) AS payload"
    return place.spark.range(start, start + count).selectExpr("id AS customer_id", *clocks, payload)


def read_all(uris: list[str]) -> None:
    for uri in uris:
        with open_file_store(uri).open(uri) as file:
            while file.read(BLOCK):
                pass


class Zeros(io.RawIOBase):
    """A stream of so many bytes."""

    def __init__(self, size: int) -> None:
        self.left, self.block = size, os.urandom(BLOCK)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        found = self.block[: min(size, self.left)]
        self.left -= len(found)
        return found


def write_all(folder: str, sizes: list[int]) -> None:
    for number, size in enumerate(sizes):
        uri = joined(folder, str(number))
        open_file_store(uri).upload(uri, Zeros(size))  # type: ignore[arg-type]


def measured(folder: Path, gib: float) -> dict[str, Any]:
    with parts(folder) as (hdfs, adls):
        here, there = places(folder, hdfs, adls)
        register(here, customer, raw, group)
        table = here.table(group)
        count = int(gib * 2**30 / (PAYLOAD + 16))
        progress(f"{count:,} rows of {PAYLOAD} bytes to {table.uri}")
        properties = {"delta.enableChangeDataFeed": "true", "delta.enableDeletionVectors": "true"}
        writer = rows(here, count).repartition(FILES).write.format("delta").options(**properties)
        writer.save(table.uri)
        files = open_file_store(table.uri)
        found = [file for file in files.list_files(table.uri) if file.path.endswith(".parquet")]
        size = sum(file.size for file in found)
        uris, sizes = [joined(table.uri, file.path) for file in found], [file.size for file in found]
        progress(f"{len(found)} files, {size / 1e6:,.0f} MB")

        read_s = seconds(lambda: read_all(uris))
        progress(f"read: {size / 1e6 / read_s:,.0f} MB/s")
        scratch = there.lakes.uri("lake://features/scratch")
        write_s = seconds(lambda: write_all(scratch, sizes))
        open_file_store(scratch).delete(scratch)
        progress(f"written: {size / 1e6 / write_s:,.0f} MB/s")

        took: dict[str, float] = {}
        for check in (ALL, SAMPLED):
            took[check] = seconds(lambda check=check: replicate(here, to=there, check=check))
            progress(f"replicated, {check}: {size / 1e6 / took[check]:,.0f} MB/s")
            if check == ALL:
                target = there.lakes.uri("lake://features")
                open_file_store(target).delete(target)

        rows(here, 10, start=count).coalesce(1).write.format("delta").mode("append").save(table.uri)
        one_s = seconds(lambda: replicate(here, to=there))
        here.spark.sql(f"DELETE FROM delta.`{table.uri}` WHERE customer_id % 1000 = 1").collect()
        delete_s = seconds(lambda: replicate(here, to=there))
        replica = there.lakes.uri(there.table_path(group))
        versions = [(uri, n) for n in range(3) for uri in (table.uri, replica)]
        read = [there.spark.read.format("delta").option("versionAsOf", n).load(uri) for uri, n in versions]
        hashes = hashes_of([Rows(each, each.columns) for each in read])
        identical = hashes[0::2] == hashes[1::2] and len({each.sum for each in hashes}) == 3
        there.spark.stop()
        slower = min(size / read_s, size / write_s)
        return {
            "gib": size / 2**30,
            "read_mb_s": size / 1e6 / read_s,
            "write_mb_s": size / 1e6 / write_s,
            "sampled_mb_s": size / 1e6 / took[SAMPLED],
            "all_mb_s": size / 1e6 / took[ALL],
            "vs_slower_end": size / took[SAMPLED] / slower,
            "vs_slower_end_all": size / took[ALL] / slower,
            "one_commit_seconds": one_s,
            "delete_seconds": delete_s,
            "one_commit_vs_full": one_s / took[SAMPLED],
            "identical": identical,
        }


if __name__ == "__main__":
    size_gib = float(sys.argv[1]) if len(sys.argv) > 1 else 2.0
    print(json.dumps(rounded(in_folder("replicate", lambda folder: measured(folder, size_gib)))))
