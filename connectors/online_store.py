"""What a job and a client need of an online store, whatever the technology behind it.

    keys, values (packed by connectors.codec) -> write -> one field per feature group under each entity's key
    keys, fields                              -> read  -> packed values, or None

Every store keeps the newer value: `write` never replaces a value by one of an older definition number, nor, within one
definition, of an older event_time. An equal event_time replaces, since it is a correction.

What the offline table no longer holds is taken back in two ways, neither of which touches a newer value of another
writer:

    a limit     the row is now the newest: it also replaces a value of its definition that is newer than itself, up to
                the limit
    a removal   (codec.removal) no row is left: a value of the same or an older definition goes, up to the event_time

A row past its ttl changes nothing and counts as expired; with a limit, the value that it would have replaced goes.
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
    removed: int = 0  # values that went, by a removal or for a row past its ttl
    absent: int = 0  # removals that found nothing
    bytes: int = 0  # of the values that were written

    @property
    def rows(self) -> int:
        return self.written + self.kept_newer + self.expired + self.removed + self.absent

    def __add__(self, other: WriteCounts) -> WriteCounts:
        return WriteCounts(
            self.written + other.written,
            self.kept_newer + other.kept_newer,
            self.expired + other.expired,
            self.removed + other.removed,
            self.absent + other.absent,
            self.bytes + other.bytes,
        )


class OnlineStore(Protocol):
    """An open connection; whoever opened it closes it. Failures are OnlineStoreErrors."""

    def write(
        self,
        keys: pa.Array,
        values: pa.Array,
        *,
        field: bytes,
        ttl_us: int | None,
        now_us: int,
        limits: pa.Array | None = None,
    ) -> WriteCounts:
        """Values or removals of keys; `limits` are event_times in microseconds, null for none."""

    def read(self, keys: Sequence[bytes], fields: Sequence[bytes]) -> list[list[bytes | None]]:
        """A list per key with a value per field, in the order asked."""

    def delete(self, keys: Sequence[bytes], fields: Sequence[bytes]) -> int:
        """Remove these fields of these keys; the number of values that were there."""

    def close(self) -> None: ...
