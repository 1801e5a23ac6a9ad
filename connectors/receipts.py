"""Receipts: what each verified load of a group brought online, kept in the lake beside the group's table.

    OFFLINE/GROUP/vN_online/RUN.json     created exclusively, once the load was verified
    PREFIX:_loaded in the store          group:version -> the run of its last verified load: connectors/watermarks.py

The receipt that a store names is that store's watermark: from its table version the next load goes on. A store that
was emptied names none, one that was set back names an older run; each is caught up from what it really holds.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from connectors.file_store import open_file_store
from connectors.lakes import joined
from feature_defs import durations
from feature_defs.errors import LakeError

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Load:
    """What a load sends.

    `definition` is the number of the group's definition, `table_run` the run that wrote the table's version, `now_us`
    the time that "latest" meant, `codec` the version of the codec that packed it. `seen_us` is the latest such time of
    this load and those before it: the store may hold values up to it.
    """

    run: str
    definition: int
    table_version: int
    table_run: str | None
    now_us: int
    seen_us: int = durations.LEAST_US
    codec: int = 1  # what receipts that do not say so were written by

    @property
    def until_us(self) -> int:
        return max(self.now_us, self.seen_us)


@dataclass(frozen=True, kw_only=True)
class Receipt(Load):
    """One that was verified. The counts add up: `entities` = written + kept_newer + expired + removed + absent.

    `sampled` is how many values were read back, `checksum` the sum of their CRC-32s.
    """

    group: str
    version: int
    how: str
    why: str
    entities: int
    written: int
    kept_newer: int
    expired: int
    removed: int
    absent: int
    bytes: int
    sampled: int
    checksum: int
    seconds: float


def write_receipt(folder: str, receipt: Receipt) -> None:
    text = json.dumps({"format": FORMAT, **asdict(receipt)}, indent=1) + "\n"
    open_file_store(folder).create(_uri(folder, receipt.run), text.encode())


def read_receipt(folder: str, run: str) -> Receipt | None:
    """The receipt of a run, None when there is none: then nobody knows what the store holds."""
    try:
        plain = json.loads(open_file_store(folder).read(_uri(folder, run)))
    except FileNotFoundError:
        return None
    if plain.pop("format") != FORMAT:
        hint = "load with the version of Tidemark that wrote it"
        raise LakeError(f"Receipt '{_uri(folder, run)}'", "is of a later format", hint=hint)
    return Receipt(**plain)


def _uri(folder: str, run: str) -> str:
    return joined(folder, f"{run}.json")
