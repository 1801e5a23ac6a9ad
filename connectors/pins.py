"""Pins: which versions of which tables a dataset was made of, so that maintenance keeps them readable.

    OFFLINE/_pins/RUN.json     created exclusively, before the dataset is written

A pin lives as long as its dataset: while the dataset's own manifest, or a commit of a Delta dataset, names the run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from connectors.delta_log import commit_actions, commits, info_in, note_of
from connectors.file_store import FileStore, open_file_store
from connectors.lakes import Lakes, joined
from feature_defs.errors import TidemarkError

FOLDER = "_pins"
DATASET_MANIFEST = "_tidemark.json"


@dataclass(frozen=True)
class Pin:
    """A run's dataset and the versions it read: logical paths of tables to their version, and the groups' names."""

    run: str
    dataset: str
    tables: Mapping[str, int]
    groups: tuple[str, ...]

    @property
    def work(self) -> str:
        """Where a run keeps what it needs on the way."""
        return self._beside("work")

    def drafts(self) -> tuple[str, str, str]:
        """What a run that was killed may have left: its dataset, new and replaced, and its work."""
        return self._beside(), self._beside("old"), self.work

    def _beside(self, *what: str) -> str:
        parent, _, name = self.dataset.rstrip("/").rpartition("/")
        return joined(parent, ".".join((f"._{name}", *what, self.run)))


@dataclass(frozen=True)
class FoundPin:
    """A pin as it lies in the lake. `alive` is whether its dataset is still there."""

    pin: Pin
    uri: str
    created_us: int
    alive: bool


def write_pin(lakes: Lakes, offline: str, pin: Pin) -> None:
    uri = lakes.uri(joined(offline, FOLDER, f"{pin.run}.json"))
    open_file_store(uri).create(uri, json.dumps(asdict(pin), indent=1).encode())


def read_pins(lakes: Lakes, offline: str) -> tuple[FoundPin, ...]:
    """Every pin of an offline lake."""
    folder = lakes.uri(joined(offline, FOLDER))
    files = open_file_store(folder)
    found = []
    for file in files.list_files(folder):
        if not file.path.endswith(".json"):
            continue
        uri = joined(folder, file.path)
        plain = json.loads(files.read(uri))
        pin = Pin(plain["run"], plain["dataset"], plain["tables"], tuple(plain["groups"]))
        found.append(FoundPin(pin, uri, file.modified_us, _is_alive(lakes, pin)))
    return tuple(found)


def _is_alive(lakes: Lakes, pin: Pin) -> bool:
    """A dataset that cannot be asked counts as there."""
    try:
        uri = lakes.uri(pin.dataset)
        files = open_file_store(uri)
        return pin.run in (_run_of(files, uri), *_delta_runs(files, uri))
    except TidemarkError:
        return True


def _run_of(files: FileStore, uri: str) -> str | None:
    try:
        manifest = json.loads(files.read(joined(uri, DATASET_MANIFEST)))
    except FileNotFoundError:
        return None
    return str(manifest.get("run"))


def _delta_runs(files: FileStore, uri: str) -> set[str]:
    """The runs whose versions a Delta dataset has."""
    notes = (note_of(info_in(commit_actions(files, uri, version))) for version in commits(files, uri))
    return {str(note["run"]) for note in notes if "run" in note}
