"""What came to a source since a table was computed from it: by the Delta log, or by the list of files.

    (state then, state now) -> Added(files, oldest, newest), or None when more than adding happened

Rows that were only added can be computed alone; a file that was rewritten or removed means that the past changed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from connectors.delta_log import commit_actions
from connectors.file_store import FileStore, open_file_store

State = Mapping[str, Any]
FILE = "_metadata.file_name"
_PLAIN = re.compile(r"[A-Za-z0-9._=+~-]+")
_MOST_COMMITS = 1_000  # more are read one by one for longer than a full run would take


@dataclass(frozen=True)
class Added:
    """The data files that came, by name; none when nothing changed."""

    names: tuple[str, ...]

    def rows(self, source: DataFrame) -> DataFrame:
        """Those rows of the source that the files hold."""
        return source.where(F.col(FILE).isin(*self.names)) if self.names else source.where(F.lit(False))


def added_since(then: State | None, now: State, uri: str) -> Added | None:
    """The files that hold what was added between two states of a source; None when that cannot be told."""
    if not then or then.get("kind") != now.get("kind"):
        return None
    if then == now and now["kind"] != "unknown":
        return Added(())
    match now["kind"]:
        case "delta":
            return _in_log(open_file_store(uri), uri, then, now)
        case "files":
            return _in_listing(then["files"], now["files"])
        case _:
            return None


def _in_listing(then: Mapping[str, Any], now: Mapping[str, Any]) -> Added | None:
    if any(now.get(name) != known for name, known in then.items()):
        return None
    names = [name.rsplit("/", 1)[-1] for name in now if name not in then]
    known = {name.rsplit("/", 1)[-1] for name in then}
    plain = all(map(_PLAIN.fullmatch, names))  # Spark tells a file's name as in a URI, other names encoded
    return Added(tuple(names)) if plain and not known & set(names) and len(set(names)) == len(names) else None


def _in_log(files: FileStore, uri: str, then: State, now: State) -> Added | None:
    """The files that commits added, if all they did was to add, or to move rows into other files."""
    if then["id"] != now["id"] or not 0 <= now["version"] - then["version"] <= _MOST_COMMITS:
        return None
    names: set[str] = set()
    for version in range(then["version"] + 1, now["version"] + 1):
        try:
            actions = commit_actions(files, uri, version)
        except FileNotFoundError:  # cleaned up by Delta's own retention
            return None
        for action in actions:
            removed, added = action.get("remove"), action.get("add")
            if "metaData" in action or (removed and (removed["dataChange"] or _name(removed) in names)):
                return None
            if added and added["dataChange"]:
                names.add(_name(added))
    return Added(tuple(sorted(names)))


def _name(action: Mapping[str, Any]) -> str:
    return unquote(action["path"]).rsplit("/", 1)[-1]
