"""Fitted values: what cleaning and scaling have learned, a small JSON file each, in the lake beside the group's table.

    GROUP/vN_fitted/DIGEST.json     {"format": 1, "word": "Fill(amount, median)", "range": [...], "values": {...}, ...}

The digest says what was fitted on what (see `feature_defs.fitting`). A file is created exclusively and never changed:
of two racing runs one wins and both use its values. Numbers are written by their shortest exact text: none is lost.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from connectors.file_store import FileStore
from connectors.lakes import joined
from feature_defs.errors import LakeError

FORMAT = 1


@dataclass(frozen=True)
class Fitted:
    """What one word has learned. `rows` are those in the range, `present` those of them that had a value."""

    word: str
    range: tuple[str, str]
    rows: int
    present: int
    fingerprint: str
    run: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class FittedValues:
    """The files of one version of a group."""

    files: FileStore
    root: str

    def read(self, digest: str) -> Fitted | None:
        """None when nothing was fitted yet."""
        uri = self._uri(digest)
        try:
            document = json.loads(self.files.read(uri))
            if document.pop("format") != FORMAT:
                hint = "upgrade Tidemark"
                raise LakeError("Fitted values", f"have a format that this Tidemark does not read: {uri}", hint=hint)
            return Fitted(**{**document, "range": tuple(document["range"])})
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            problem = f"cannot be read ({type(error).__name__}): {uri}"
            hint = "restore the file from a backup or a replica; without it the next compute would fit anew"
            raise LakeError("Fitted values", problem, hint=hint) from error

    def keep(self, digest: str, fitted: Fitted) -> Fitted:
        """Write them, unless another run was first: then its values are the answer."""
        text = json.dumps({"format": FORMAT, **asdict(fitted)}, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        try:
            self.files.create(self._uri(digest), text.encode())
        except FileExistsError:
            return self.read(digest) or fitted
        return fitted

    def _uri(self, digest: str) -> str:
        return joined(self.root, f"{digest}.json")
