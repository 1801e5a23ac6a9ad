"""What a job and a client need of an online store, whatever the technology behind it.

    keys, values (packed by connectors.codec) -> write -> one field per feature group under each entity's key
    keys, fields                              -> read  -> packed values, or None

Every store keeps the newer value: `write` never replaces a value by one of an older definition number, nor, within one
definition, of an older event_time. An equal event_time replaces, since it is a correction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa


@dataclass(frozen=True)
class WriteCounts:
    """What became of the entities of a write: their numbers add up to the rows that were given."""

    written: int = 0
    kept_newer: int = 0  # the store already held a newer definition or event_time
    expired: int = 0  # older than the ttl, so nobody could have read them
    bytes: int = 0  # of the values that were written

    def __add__(self, other: WriteCounts) -> WriteCounts:
        return WriteCounts(
            self.written + other.written,
            self.kept_newer + other.kept_newer,
            self.expired + other.expired,
            self.bytes + other.bytes,
        )


class OnlineStore(Protocol):
    """An open connection; whoever opened it closes it. Failures are OnlineStoreErrors."""

    def write(
        self, keys: pa.Array, values: pa.Array, *, field: bytes, ttl_us: int | None, now_us: int
    ) -> WriteCounts: ...

    def read(self, keys: Sequence[bytes], fields: Sequence[bytes]) -> list[list[bytes | None]]:
        """A list per key with a value per field, in the order asked."""

    def delete(self, keys: Sequence[bytes], fields: Sequence[bytes]) -> int:
        """Remove these fields of these keys; the number of values that were there."""

    def close(self) -> None: ...
