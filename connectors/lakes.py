"""Logical paths: `lake://NAME/path` -> the URI that a profile's [lakes] table gives NAME."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from feature_defs.errors import UsageError, listed, near_miss

PATTERN = re.compile(r"[{}\[\]*?\\]")  # what Spark takes for a pattern in a path
_LOGICAL = re.compile(r"lake://(?P<name>[A-Za-z][A-Za-z0-9_-]*)(?:/(?P<rest>.*))?")


@dataclass(frozen=True)
class Lakes:
    """The lakes of a place: name -> base URI without a slash at its end."""

    bases: Mapping[str, str]

    def uri(self, logical: str) -> str:
        """The physical URI of a logical path. A path with a scheme of its own is refused: definitions must travel."""
        found = _LOGICAL.fullmatch(logical)
        if not found:
            raise UsageError(f"Path '{logical}'", "expected lake://NAME/path", hint="the profile's [lakes] names lakes")
        name, rest = found["name"], (found["rest"] or "").strip("/")
        if ".." in rest.split("/"):
            raise UsageError(f"Path '{logical}'", "steps out of its lake with '..'", hint="write the path without '..'")
        if name not in self.bases:
            problem = f"lake '{name}' is not in the profile ({listed(self.bases)})"
            hint = near_miss(name, self.bases) + f'add it: [lakes] {name} = "..."'
            raise UsageError(f"Path '{logical}'", problem, hint=hint)
        return f"{self.bases[name]}/{rest}".rstrip("/")


def joined(path: str, *parts: str) -> str:
    """A logical path or URI with more parts behind it."""
    return "/".join((path.rstrip("/"), *parts))
