"""A real JDBC driver for the tests: SQLite's, once from Maven Central into the cache of Spark's resolver."""

from __future__ import annotations

import hashlib
import urllib.request
import uuid
from pathlib import Path

from jobs.session import cached_jars

SQLITE = "org.xerial:sqlite-jdbc:3.50.3.0"
_SHA256 = "a3f53a2aa15ae9425a9e793bbe9c8e5288febeb4b65ef5c1a4e80d4c2045cf08"
_URL = "https://repo1.maven.org/maven2/org/xerial/sqlite-jdbc/3.50.3.0/sqlite-jdbc-3.50.3.0.jar"


def sqlite_jar() -> Path:
    """The driver's jar; it may not be there when this machine has no network, which only tests that need it notice."""
    if cached := cached_jars([SQLITE]):
        return cached[0]
    jar = Path.home() / ".ivy2" / "jars" / "org.xerial_sqlite-jdbc-3.50.3.0.jar"
    _download(jar)
    return jar


def _download(jar: Path) -> None:
    try:
        with urllib.request.urlopen(_URL, timeout=60) as answer:
            content = answer.read()
    except OSError:
        return
    assert hashlib.sha256(content).hexdigest() == _SHA256, f"{_URL} is not what it was"
    jar.parent.mkdir(parents=True, exist_ok=True)
    draft = jar.with_suffix(f".{uuid.uuid4().hex}")
    draft.write_bytes(content)
    draft.replace(jar)
