"""Whether a version of an offline table can still be read: asked before a job runs, so that an error names it."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from urllib.parse import unquote

from pyspark.sql import SparkSession

from connectors.file_store import open_file_store
from connectors.offline_tables import OfflineTable, session_conf
from connectors.table_maintenance import ANY_VERSION, NOT_THERE
from feature_defs.errors import LakeError

_NO_PATH = re.compile(r"\[PATH_NOT_FOUND\]")


def any_version(spark: SparkSession) -> AbstractContextManager[None]:
    """While versions are read whose files are there, though they were replaced longer ago than Delta lets one look."""
    return session_conf(spark, ANY_VERSION, may_refuse=True)


def what_is_gone(spark: SparkSession, table: OfflineTable, version: int) -> str:
    """Why a version cannot be read: `is gone`, or how many of its files are; empty when it can."""
    try:
        with any_version(spark):
            files = [_name(path) for path in table.read_all(version).inputFiles()]
    except LakeError:
        return "is gone"
    except Exception as error:
        if not (NOT_THERE.search(str(error)) or _NO_PATH.search(str(error))):
            raise
        return "is gone"
    there = {_name(file.path) for file in open_file_store(table.uri).list_files(table.uri)}
    gone = len([name for name in files if name not in there])
    return f"was vacuumed: {gone} of its {len(files)} files are gone" if gone else ""


def _name(path: str) -> str:
    return unquote(path).rpartition("/")[2]
