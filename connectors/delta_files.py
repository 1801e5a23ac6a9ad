"""Which files each version of a Delta table is made of: data, deletion vectors, change data.

Paths in a log are escaped as in a URI, and relative to the table. A file that lies elsewhere (a shallow clone's, one
that was added by its full path) makes the table more than a folder: it is refused.
"""

from __future__ import annotations

import base64
import re
import uuid
from collections.abc import Iterator
from urllib.parse import unquote

from connectors.delta_log import Action
from feature_defs.errors import LakeError

_ELSEWHERE = re.compile(r"/|[A-Za-z][A-Za-z0-9+.-]*:")
_UUID_CHARACTERS = 20  # of Z85: what stands before them is a folder
_Z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
_BASE85 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~"
_TO_BASE85 = str.maketrans(_Z85, _BASE85)
# Where a catalog decides what is committed, the folder does not tell.
_CATALOGS = {"catalogManaged", "catalogOwned-preview", "coordinatedCommits-preview"}


def data_files_of(action: Action, subject: str) -> Iterator[tuple[str, int | None]]:
    """The files that an `add` needs, with the bytes that it says of them."""
    if add := action.get("add"):
        yield _inside(add["path"], subject), add["size"]
        if vector := deletion_vector_path(add.get("deletionVector") or {}, subject):
            yield vector, None


def change_files_of(action: Action, subject: str) -> Iterator[tuple[str, int | None]]:
    """The file of a `cdc`: what the change feed reads, not the table."""
    if change := action.get("cdc"):
        yield _inside(change["path"], subject), change["size"]


def deletion_vector_path(vector: Action, subject: str) -> str | None:
    """Where a deletion vector lies; None for one that is in the log itself."""
    kind, text = vector.get("storageType"), vector.get("pathOrInlineDv") or ""
    if kind == "p":
        raise _elsewhere(text, subject)
    if kind != "u":
        return None
    folder, name = text[:-_UUID_CHARACTERS], text[-_UUID_CHARACTERS:]
    file = f"deletion_vector_{uuid.UUID(bytes=base64.b85decode(name.translate(_TO_BASE85)))}.bin"
    return f"{folder}/{file}" if folder else file


def refuse_catalog(action: Action, subject: str) -> None:
    protocol = action.get("protocol") or {}
    features = {*(protocol.get("readerFeatures") or ()), *(protocol.get("writerFeatures") or ())}
    if by_catalog := sorted(features & _CATALOGS):
        problem = f"its commits are its catalog's ({by_catalog[0]}), not its folder's"
        raise LakeError(subject, problem, hint="drop that feature of the table, or copy it by the catalog's own means")


def _inside(path: str, subject: str) -> str:
    plain = unquote(path)
    if _ELSEWHERE.match(plain) or ".." in plain.split("/"):
        raise _elsewhere(plain, subject)
    return plain


def _elsewhere(path: str, subject: str) -> LakeError:
    problem = f"names a file outside of its folder, as a shallow clone does: {path}"
    return LakeError(subject, problem, hint="write the table anew (or make a deep clone of it), then replicate that")
