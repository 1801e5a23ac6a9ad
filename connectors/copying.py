"""One file from a lake to another: in bounded memory, within a rate, and held against what was read.

    source -> pieces, a CRC-32 each -> target -> its size, and pieces of it read back -> the same CRC-32s

All pieces are read back, or with `SAMPLED` the first, the last and some that the file's name chooses. That proves that
the target has every byte in its place (all), or that it has as many bytes as the source and that these pieces are in
theirs (sampled): enough for a lost, repeated or misplaced block. Single bytes on their way are what TLS and the stores'
own checksums guard. A file that is there already is held against the source in the same way and not sent again.
"""

from __future__ import annotations

import io
import threading
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import BinaryIO, cast

from connectors.file_store import FileStore
from connectors.pacing import TokenBucket
from feature_defs.errors import LakeError

PIECE = 1 << 20
SAMPLED, ALL = "sampled", "all"
_FEW = 4  # pieces of a file that are read back when they are sampled


@dataclass(frozen=True)
class Sent:
    """What one file cost: bytes that went over, and whether it was there already."""

    bytes: int
    was_there: bool


@dataclass(frozen=True)
class Copier:
    """Copies files between two stores; shared by threads. `rate` is of bytes a second, sent and read back."""

    source: FileStore
    target: FileStore
    check: str = SAMPLED
    rate: TokenBucket | None = None
    stopped: threading.Event = field(default_factory=threading.Event)

    def copy(self, uri: str, to: str, size: int | None = None, *, is_there: bool = False) -> Sent:
        """Make `to` what the source has at `uri`; LakeError when either is not what it should be."""
        if size is None:
            with self._open(uri) as file:
                size = file.seek(0, io.SEEK_END)
        if not is_there:
            try:
                return self._sent(uri, to, size)
            except FileExistsError:  # another run was faster
                pass
        self._hold_against(uri, to, size)
        return Sent(0, was_there=True)

    def _sent(self, uri: str, to: str, size: int) -> Sent:
        with self._open(uri) as file:
            passing = _Passing(self, file, uri)
            self.target.upload(to, cast(BinaryIO, passing))
        try:
            if passing.size != size:
                hint = "the source was cut short or changed while it was read; run it again"
                raise LakeError(f"File '{uri}'", f"has {size:,} bytes, {passing.size:,} were read", hint=hint)
            self._read_back(to, size, passing.sums())
        except LakeError:
            self.target.delete(to)  # no commit names it yet
            raise
        return Sent(size, was_there=False)

    def _read_back(self, to: str, size: int, sums: list[int]) -> None:
        with self.target.open(to) as file:
            there = file.seek(0, io.SEEK_END)
            wrong = there != size or any(self._sum(file, number) != sums[number] for number in self._pieces(to, size))
        if wrong:
            problem = f"does not read back as it was sent ({there:,} of {size:,} bytes are there)"
            raise LakeError(f"File '{to}'", problem, hint="it was removed; run it again, and check that store")

    def _hold_against(self, uri: str, to: str, size: int) -> None:
        with self._open(uri) as one, self.target.open(to) as other:
            there = other.seek(0, io.SEEK_END)
            pieces = self._pieces(to, size)
            same = there == size and all(self._sum(one, number) == self._sum(other, number) for number in pieces)
        if not same:
            problem = f"is there with other content ({there:,} bytes, the source has {size:,})"
            raise LakeError(f"File '{to}'", problem, hint=f"it should be a copy of {uri}; remove it and run this again")

    def _pieces(self, name: str, size: int) -> Iterable[int]:
        count = -(-size // PIECE)
        if self.check == ALL or count <= _FEW:
            return range(count)
        drawn = zlib.crc32(name.rpartition("/")[2].encode())
        return sorted({0, count - 1, *(1 + (drawn // 997**i) % (count - 2) for i in range(_FEW - 2))})

    def _sum(self, file: BinaryIO, number: int) -> int:
        file.seek(number * PIECE)
        found, left = 0, PIECE
        while left and (piece := file.read(left)):
            self.pass_on(len(piece))
            found, left = zlib.crc32(piece, found), left - len(piece)
        return found

    def _open(self, uri: str) -> BinaryIO:
        try:
            return self.source.open(uri)
        except FileNotFoundError as error:
            raise gone(uri) from error

    def pass_on(self, count: int) -> None:
        """Wait until so many bytes may go on; LakeError once the run has failed elsewhere."""
        if self.stopped.is_set():
            raise LakeError("Replication", "stopped", hint="another file failed; its error says why")
        if self.rate is not None:
            self.rate.take(count)


def gone(uri: str) -> LakeError:
    problem = "was removed while the replication ran"
    return LakeError(f"File '{uri}'", problem, hint="run it again: it goes on from where it stopped")


class _Passing(io.RawIOBase):
    """A stream that counts its bytes, sums its pieces, and keeps the rate; a store may begin again from its start."""

    def __init__(self, copier: Copier, file: BinaryIO, uri: str) -> None:
        super().__init__()
        self.size = 0
        self._copier, self._file, self._uri = copier, file, uri
        self._whole: list[int] = []
        self._sum = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.size

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        if (offset, whence) != (0, io.SEEK_SET):
            raise io.UnsupportedOperation("a stream that is copied goes back to its start or nowhere")
        self.size, self._sum, self._whole = self._file.seek(0), 0, []
        return 0

    def read(self, size: int = -1, /) -> bytes:
        try:
            found = self._file.read(size)
        except OSError as error:  # else it would be told of the target, which asks for these bytes
            problem = f"cannot be read: {error.strerror or type(error).__name__}"
            raise LakeError(f"File '{self._uri}'", problem, hint="check the source's lake, and run it again") from error
        self._count(found)
        return found

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]
        found = self.read(len(buffer))
        buffer[: len(found)] = found
        return len(found)

    def _count(self, found: bytes) -> None:
        self._copier.pass_on(len(found))
        rest = memoryview(found)
        while rest:
            piece = rest[: PIECE - self.size % PIECE]
            self._sum = zlib.crc32(piece, self._sum)
            self.size += len(piece)
            rest = rest[len(piece) :]
            if self.size % PIECE == 0:
                self._whole.append(self._sum)
                self._sum = 0

    def sums(self) -> list[int]:
        """The CRC-32 of each piece, the last one shorter."""
        return self._whole + ([self._sum] if self.size % PIECE else [])
