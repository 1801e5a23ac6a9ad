"""Rows as numpy arrays: what the partition functions share."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import LongType, StringType, StructField, StructType

Array = npt.NDArray[Any]
Partition = Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]

_TOLD = StructType([StructField("number", LongType()), StructField("told", StringType())])
LEAST, GREATEST = int(np.iinfo(np.int64).min), int(np.iinfo(np.int64).max)


def encoded(keys: Sequence[pa.Array]) -> tuple[Array, tuple[pa.Array, ...]]:
    """A number for each row's entity, and the keys of the entities."""
    parts = [key.dictionary_encode(null_encoding="encode") for key in keys]
    codes = [part.indices.to_numpy() for part in parts]
    if len(parts) == 1:
        return codes[0].astype(np.int64), (parts[0].dictionary,)
    together = codes[0].astype(np.int64)
    for code, part in zip(codes[1:], parts[1:], strict=True):
        pair = pa.array(together * len(part.dictionary) + code).dictionary_encode()
        together = pair.indices.to_numpy().astype(np.int64)
    # any row of an entity tells its keys
    some = np.empty(int(together.max()) + 1, np.int64)
    some[together] = np.arange(len(together))
    return together, tuple(part.dictionary.take(pa.array(code[some])) for code, part in zip(codes, parts, strict=True))


def micros_of(times: pa.ChunkedArray | pa.Array) -> Array:
    """Microseconds, of null the least number: a naive time is UTC, a date its midnight."""
    if pa.types.is_date(times.type):
        times = times.cast(pa.timestamp("us"))
    numbers = times.cast(pa.int64())
    return np.asarray((numbers.fill_null(LEAST) if numbers.null_count else numbers).to_numpy())


def in_tasks(
    spark: SparkSession,
    tasks: Sequence[Any],
    run: Callable[[Any], Iterator[pa.RecordBatch]],
    schema: StructType | str,
) -> DataFrame:
    """A task each, which gives Spark what `run` makes of its work."""

    def of(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        if not gc.get_freeze_count():  # once a worker, which goes through all that is not frozen after each task: 45 ms
            gc.freeze()
        for batch in batches:
            for number in batch.column(0).to_pylist():
                yield from run(tasks[number])

    ran: Partition = of
    return spark.range(0, len(tasks), 1, len(tasks)).mapInArrow(ran, schema)


def told_by_tasks(spark: SparkSession, tasks: Sequence[Any], run: Callable[[Any], Any]) -> list[Any]:
    """What `run` makes of each: plain data, in the order of the tasks."""

    def of(numbered: tuple[int, Any]) -> Iterator[pa.RecordBatch]:
        number, task = numbered
        yield pa.record_batch({"number": pa.array([number], pa.int64()), "told": [json.dumps(run(task))]})

    found = in_tasks(spark, list(enumerate(tasks)), of, _TOLD).collect()
    return [json.loads(row["told"]) for row in sorted(found, key=lambda row: row["number"])]
