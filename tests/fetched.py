"""What the tests fetch from Maven Central: pinned by version and checksum, kept in build/parts."""

from __future__ import annotations

import hashlib
import urllib.request
import uuid
from pathlib import Path

PARTS = Path(__file__).resolve().parent.parent / "build" / "parts"
_CENTRAL = "https://repo1.maven.org/maven2"


def maven_jar(coordinate: str, sha256: str) -> Path:
    """The jar of GROUP:ARTIFACT:VERSION."""
    group, artifact, version = coordinate.split(":")
    jar = PARTS / f"{artifact}-{version}.jar"
    if not jar.is_file():
        url = f"{_CENTRAL}/{group.replace('.', '/')}/{artifact}/{version}/{jar.name}"
        try:
            with urllib.request.urlopen(url, timeout=60) as answer:
                content = answer.read()
        except OSError as error:
            raise AssertionError(f"{jar.name} is missing, and {url} gives {error}. Hint: fetch it to {jar}") from error
        assert hashlib.sha256(content).hexdigest() == sha256, f"{url} is not what it was"
        jar.parent.mkdir(parents=True, exist_ok=True)
        draft = jar.with_suffix(f".{uuid.uuid4().hex}")
        draft.write_bytes(content)
        draft.replace(jar)
    return jar
