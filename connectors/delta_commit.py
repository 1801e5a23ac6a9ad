"""A commit to a Delta log that puts files, which tasks have written, in the place of all rows.

the version before (live files, metadata, protocol)  +  new files  +  note  ->  actions  ->  NUMBER.json, created last

Of a new table the metadata and the protocol are those that Delta gives an empty one elsewhere. Every other kind of
commit is Delta's own: appends, merges, spans, other columns than the table has, tables of features that are not known
here, and every version at which Delta writes a checkpoint.
"""

from __future__ import annotations

import datetime
import json
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from pyspark.sql.types import DateType, IntegralType, StringType, StructField, StructType, TimestampType

from connectors.delta_log import Action, DeltaVersion
from connectors.table_files import NewFile
from feature_defs.durations import GREATEST_US, LEAST_US

# What asks nothing of a commit that replaces all rows. A clustered table wants bounds of its columns: all files have.
_FEATURES = {
    "appendOnly", "changeDataFeed", "clustering", "deletionVectors", "domainMetadata", "invariants", "v2Checkpoint",
    "vacuumProtocolCheck",
}  # fmt: skip
STATS = "delta.dataSkippingStatsColumns"
_PROPERTIES = {
    STATS, "delta.deletedFileRetentionDuration", "delta.enableChangeDataFeed",
    "delta.enableDeletionVectors", "delta.logRetentionDuration",
}  # fmt: skip
_CHECKPOINTS = 10  # versions from one to the next, where the table has no property that says otherwise
_PREFIX = 32  # characters of a text that Delta keeps as its bound
_LAST = "\U0010ffff"
_MICROSECOND = datetime.timedelta(microseconds=1)
_EPOCH = datetime.datetime(1970, 1, 1)  # noqa: DTZ001  # UTC, and written with a Z


def knows_bounds(field: StructField) -> bool:
    """Whether a new file tells the bounds of a column of this type."""
    return isinstance(field.dataType, (IntegralType, StringType, TimestampType, DateType))


def may_replace(found: DeltaVersion, schema: StructType, stats: str | None) -> bool:
    """Whether a commit from here may replace all rows of a version by rows of the same columns, with these `stats`."""
    protocol, metadata = found.protocol, found.metadata
    features = {*(protocol.get("writerFeatures") or ()), *(protocol.get("readerFeatures") or ())}
    properties = dict(metadata.get("configuration") or ())
    return (
        (protocol.get("minReaderVersion"), protocol.get("minWriterVersion")) == (3, 7)
        and features <= _FEATURES
        and not metadata.get("partitionColumns")
        and all(name in _PROPERTIES or not name.startswith("delta.") for name in properties)
        and properties.get(STATS) == stats
        and _is_like(StructType.fromJson(json.loads(metadata["schemaString"])), schema)
    )


def _is_like(there: StructType, schema: StructType) -> bool:
    """Whether a table has these columns, and asks nothing of their values."""
    columns = [[(field.name, field.dataType.simpleString()) for field in one.fields] for one in (there, schema)]
    return columns[0] == columns[1] and all(field.nullable and not field.metadata for field in there.fields)


def has_checkpoint(version: int) -> bool:
    """Whether Delta writes a checkpoint at a version."""
    return version > 0 and version % _CHECKPOINTS == 0


def replacing(
    before: DeltaVersion | None, made: Sequence[Action], files: Sequence[NewFile], schema: StructType, told: str
) -> bytes:
    """The commit behind a version. `made` are the actions that make a new table, `told` says who wrote it."""
    now = time.time_ns() // 1_000_000
    version = 0 if before is None else before.version + 1
    gone = () if before is None else before.adds
    info = {
        "timestamp": now,
        "operation": "WRITE",
        "operationParameters": {"mode": "Overwrite", "partitionBy": "[]"},
        **({} if before is None else {"readVersion": before.version}),
        "isolationLevel": "Serializable",
        "isBlindAppend": False,
        "operationMetrics": {
            "numFiles": str(len(files)),
            "numOutputRows": str(sum(file.rows for file in files)),
            "numOutputBytes": str(sum(file.bytes for file in files)),
            "numRemovedFiles": str(len(gone)),
            "numRemovedBytes": str(sum(add["size"] for add in gone)),
        },
        "userMetadata": told,
        "engineInfo": "Tidemark",
        "txnId": str(uuid.uuid4()),
    }
    actions: list[Action] = [
        {"commitInfo": info},
        *made,
        {"txn": {"appId": "tidemark", "version": version, "lastUpdated": now}},
        *({"remove": _removed(add, now)} for add in gone),
        *({"add": _added(file, schema, now)} for file in files),
    ]
    return "".join(f"{json.dumps(action)}\n" for action in actions).encode()


def _removed(add: Action, now: int) -> Action:
    vector = {name: value for name, value in (add.get("deletionVector") or {}).items() if value is not None}
    deleted = {"deletionVector": vector} if vector else {}
    about = {"path": add["path"], "deletionTimestamp": now, "dataChange": True, "extendedFileMetadata": True}
    return {**about, "partitionValues": {}, "size": add["size"], **deleted}


def _added(file: NewFile, schema: StructType, now: int) -> Action:
    bounds = [dict(_bounds(file, schema, side)) for side in (0, 1)]
    stats = {
        "numRecords": file.rows,
        "minValues": bounds[0],
        "maxValues": bounds[1],
        "nullCount": dict.fromkeys(bounds[0], 0),
        "tightBounds": True,
    }
    about = {"path": file.path, "partitionValues": {}, "size": file.bytes, "modificationTime": now, "dataChange": True}
    return {**about, "stats": json.dumps(stats, ensure_ascii=False)}


def _bounds(file: NewFile, schema: StructType, side: int) -> Iterator[tuple[str, Any]]:
    for name, bounds in file.bounds.items():
        kind = schema[name].dataType
        if isinstance(kind, StringType):
            yield name, _cut(bounds[side], is_greatest=side == 1)
        elif isinstance(kind, (TimestampType, DateType)):
            if not LEAST_US <= bounds[0] <= bounds[1] <= GREATEST_US:
                continue
            at = _EPOCH + bounds[side] * _MICROSECOND
            # cut to milliseconds, as Delta writes and reads them
            is_date = isinstance(kind, DateType)
            yield name, at.date().isoformat() if is_date else f"{at.isoformat(timespec='milliseconds')}Z"
        else:
            yield name, bounds[side]


def _cut(text: str, *, is_greatest: bool) -> str:
    if len(text) <= _PREFIX:
        return text
    if not is_greatest:
        return text[:_PREFIX]
    return text if text[_PREFIX] == _LAST else text[:_PREFIX] + _LAST
