"""The registry: immutable, numbered snapshots of all definitions, as JSON files in the lake.

    ROOT/00000001.json, ROOT/00000002.json, ...

A snapshot is created exclusively, so of two racing applies one wins and the other is told so. Nothing else is stored:
the newest number is what is in force, history is the older ones, and reading needs neither Spark nor a database.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from connectors.file_store import FileStore
from connectors.lakes import joined
from feature_defs import data_types, snapshot
from feature_defs.errors import LakeError, RegistryConflict, UsageError, listed, near_miss
from feature_defs.model import Definitions, FeatureGroup, Service

_NAME = re.compile(r"(\d{8})\.json")


@dataclass(frozen=True)
class Snapshot:
    """All definitions as they were applied once: the number, when (ISO 8601 UTC), by whom, and why."""

    number: int
    applied_at: str
    applied_by: str
    message: str
    definitions: Definitions
    plain: dict[str, Any]
    since: Mapping[str, int]  # group -> the snapshot that introduced its present definition, which only ever rises

    def fingerprint(self, group: str) -> str:
        return str(self.plain["groups"][group]["fingerprint"])


@dataclass(frozen=True)
class Registry:
    """The snapshots under one folder."""

    files: FileStore
    root: str

    def numbers(self) -> list[int]:
        names = (_NAME.fullmatch(file.path) for file in self.files.list_files(self.root))
        return sorted(int(name[1]) for name in names if name)

    def latest(self) -> Snapshot | None:
        """The snapshot in force; None before the first apply."""
        numbers = self.numbers()
        return self.read(numbers[-1]) if numbers else None

    def applied(self) -> Snapshot:
        """The snapshot in force; LakeError before the first apply."""
        snapshot = self.latest()
        if snapshot is None:
            raise LakeError("Registry", f"holds no definitions yet: {self.root}", hint="run `tidemark apply` first")
        return snapshot

    def find_service(self, name: str) -> tuple[Snapshot, Service]:
        """`churn` as it is now, or `churn@1` from the newest snapshot in which the service had version 1."""
        bare, _, version = name.partition("@")
        if version and not version.isdigit():
            raise UsageError(f"Service '{name}'", f"version '{version}' is not a number", hint="write NAME or NAME@2")
        applied = snapshot = self.applied()
        for number in reversed(self.numbers()):
            snapshot = snapshot if number == snapshot.number else self.read(number)
            service = snapshot.definitions.services.get(bare)
            if service is not None and (not version or service.version == int(version)):
                return snapshot, service
            if not version:
                break
        known = applied.definitions.services
        hint = near_miss(bare, known) + "`tidemark list` shows services; `tidemark apply` registers new ones"
        raise UsageError(f"Service '{name}'", f"is not in the registry ({listed(known)})", hint=hint)

    def definitions_of(self, groups: Mapping[str, int]) -> dict[str, list[FeatureGroup]]:
        """Each group (name -> version) as every snapshot defined this version of it, newest first.

        A snapshot that cannot be read ends a group's list: what it meant there, and before, is not known.
        """
        numbers = self.numbers()
        read: dict[int, Snapshot] = {}
        found: dict[str, list[FeatureGroup]] = {name: [] for name in groups}
        for name, version in groups.items():
            number = numbers[-1] if numbers else 0
            while number > 0:
                try:
                    snapshot = read[number] = read.get(number) or self.read(number)
                except LakeError:
                    break
                group = snapshot.definitions.groups.get(name)
                if group is None:
                    break
                if group.version == version:
                    found[name].append(group)
                number = snapshot.since[name] - 1  # the definition before this one
        return found

    def read(self, number: int) -> Snapshot:
        uri = self._uri(number)
        try:
            document = json.loads(self.files.read(uri))
            if document["format"] != snapshot.FORMAT:
                problem = f"has format {document['format']}, this Tidemark reads {snapshot.FORMAT}"
                raise LakeError(f"Registry snapshot {number}", problem, hint="upgrade Tidemark")
            definitions = snapshot.from_plain(document["definitions"])
            since = {str(name): int(document["since"][name]) for name in definitions.groups}
            told = {name: str(document[name]) for name in ("applied_at", "applied_by", "message")}
        except FileNotFoundError as error:
            hint = "`tidemark history` lists the snapshots there are"
            raise LakeError(f"Registry snapshot {number}", "does not exist", hint=hint) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            problem = f"cannot be read ({type(error).__name__}): {uri}"
            hint = "restore the file from a backup or a replica; snapshots are never edited"
            raise LakeError(f"Registry snapshot {number}", problem, hint=hint) from error
        return Snapshot(number, definitions=definitions, plain=document["definitions"], since=since, **told)

    def commit(self, definitions: Definitions, *, after: int, applied_at: str, applied_by: str, message: str) -> int:
        """Write the snapshot behind number `after` (0: the first); RegistryConflict when another is there already."""
        number = after + 1
        plain = snapshot.to_plain(definitions)
        document = {
            "format": snapshot.FORMAT,
            "number": number,
            "applied_at": applied_at,
            "applied_by": applied_by,
            "message": message,
            "since": _since(plain, self.read(after) if after else None, number),
            "definitions": plain,
        }
        text = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
        try:
            self.files.create(self._uri(number), text.encode())
        except FileExistsError as error:
            winner = self.read(number)
            problem = f"snapshot {number} was applied meanwhile by {winner.applied_by} at {winner.applied_at}"
            hint = "run `tidemark plan` against it, then `tidemark apply` again; nothing of yours was written"
            raise RegistryConflict("Registry", problem, hint=hint) from error
        return number

    def _uri(self, number: int) -> str:
        return joined(self.root, f"{number:08d}.json")


def _since(plain: Mapping[str, Any], before: Snapshot | None, number: int) -> dict[str, int]:
    """For each group the number from which it means what it means now."""
    known = before.plain["groups"] if before else {}
    return {
        name: before.since[name] if before and name in known and _meaning(known[name]) == _meaning(group) else number
        for name, group in plain["groups"].items()
    }


def _meaning(group: Mapping[str, Any]) -> tuple[Any, ...]:
    """What decides a group's values, how they are packed, and under which keys."""
    features = [(feature["name"], data_types.parse(feature["type"]).spark) for feature in group["features"]]
    return group["fingerprint"], group["version"], group["entity"], features
