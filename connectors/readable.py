"""Whether a version of an offline table can still be read: asked before a job runs, so that an error names it."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from urllib.parse import unquote

from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from connectors.file_store import open_file_store
from connectors.offline_tables import OfflineTable, in_catalog, session_conf
from connectors.table_maintenance import ANY_VERSION, NOT_THERE
from feature_defs.errors import LakeError

_NO_PATH = re.compile(r"\[PATH_NOT_FOUND\]")
_NO_FILE = re.compile(r"\[(FAILED_READ_FILE\.\w*NOT_EXIST|DELTA_FILE_NOT_FOUND\w*)")


def any_version(spark: SparkSession) -> AbstractContextManager[None]:
    """While versions are read whose files are there, though they were replaced longer ago than Delta lets one look."""
    return session_conf(spark, ANY_VERSION, may_refuse=True)


def what_is_gone(spark: SparkSession, table: OfflineTable, version: int) -> str:
    """Why a version cannot be read: `is gone`, or how many of its files are; empty when it can."""
    try:
        with any_version(spark):
            rows = table.read_all(version)
            if in_catalog(table):  # its folder cannot be listed: each file is opened, and nothing of it read
                rows.agg(F.max("_metadata.file_path")).collect()
                return ""
            files = [_name(path) for path in rows.inputFiles()]
    except LakeError:
        return "is gone"
    except Exception as error:
        if _NO_FILE.search(str(error)):
            return "was vacuumed: a file of it is gone"
        if not (NOT_THERE.search(str(error)) or _NO_PATH.search(str(error))):
            raise
        return "is gone"
    there = {_name(file.path) for file in open_file_store(table.uri).list_files(table.uri)}
    gone = len([name for name in files if name not in there])
    return f"was vacuumed: {gone} of its {len(files)} files are gone" if gone else ""


def _name(path: str) -> str:
    return unquote(path).rpartition("/")[2]
