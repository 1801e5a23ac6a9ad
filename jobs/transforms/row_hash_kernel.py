"""The row hash of `row_hash`, in numpy: for rows that a task holds as Arrow columns.

    h = 42; for each column in order: h = xxhash64(is it null, seed h), then, unless it is, h = xxhash64(value, seed h)

As Spark hashes: booleans, dates and whole numbers of up to 32 bits as 4 bytes; 64 bits, times and decimals of up to 18
digits as 8; a float by its bits, of which zero and what is no number have one each; text and bytes as they are.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

from jobs.transforms.arrays import Array

_SEED = 42
_PRIMES = (
    11400714785074694791, 14029467366897019727, 1609587929392839161, 9650029242287828579, 2870177450012600261,
)  # fmt: skip
_P1, _P2, _P3, _P4, _P5 = map(np.uint64, _PRIMES)
_P12 = np.uint64((_PRIMES[0] + _PRIMES[1]) % 2**64)
_LONGEST_DECIMAL = 18


def can_hash(kind: pa.DataType) -> bool:
    """Whether `row_hashes` knows columns of this type."""
    knows = (
        types.is_boolean, types.is_signed_integer, types.is_float32, types.is_float64, types.is_date32,
        types.is_timestamp, types.is_string, types.is_binary,
    )  # fmt: skip
    return any(is_it(kind) for is_it in knows) or (types.is_decimal128(kind) and kind.precision <= _LONGEST_DECIMAL)


def row_hashes(columns: Iterable[pa.Array], rows: int, seeds: Array | None = None) -> Array:
    """64 bits for each row over these columns; with the hashes over other columns, over those and these."""
    found = np.full(rows, _SEED, np.uint64) if seeds is None else seeds
    for column in columns:
        is_null = column.is_null().to_numpy(zero_copy_only=False)
        found = _of_4_bytes(is_null.astype(np.uint64), found)
        hashed = _of_values(column, found)
        found = np.where(is_null, found, hashed) if column.null_count else hashed
    return found


def _of_values(column: pa.Array, seeds: Array) -> Array:
    """Null gives anything."""
    kind = column.type
    if types.is_string(kind) or types.is_binary(kind):
        return _of_bytes(column, seeds)
    if types.is_decimal128(kind):
        words = np.frombuffer(column.buffers()[1], np.int64)  # of two each, the lower one first
        return _of_8_bytes(words[2 * column.offset : 2 * (column.offset + len(column)) : 2].view(np.uint64), seeds)
    if types.is_floating(kind):
        values = pc.fill_null(column, 0.0).to_numpy()
        values = np.where(values == 0, values.dtype.type(0), values)
        values = np.where(np.isnan(values), values.dtype.type(np.nan), values)
        if types.is_float32(kind):
            return _of_4_bytes(values.view(np.uint32).astype(np.uint64), seeds)
        return _of_8_bytes(values.view(np.uint64), seeds)
    if types.is_timestamp(kind):
        column = column.cast(pa.timestamp("us", kind.tz)).view(pa.int64())
    elif types.is_date32(kind):
        column = column.view(pa.int32())
    elif types.is_boolean(kind):
        column = column.cast(pa.int8())
    numbers = pc.fill_null(column, 0).to_numpy()
    if numbers.itemsize == 8:
        return _of_8_bytes(numbers.view(np.uint64), seeds)
    return _of_4_bytes(numbers.astype(np.int32).view(np.uint32).astype(np.uint64), seeds)


# xxHash64, one value a row


def _of_4_bytes(values: Array, seeds: Array) -> Array:
    return _mixed(_with_4(seeds + (_P5 + np.uint64(4)), values))


def _of_8_bytes(values: Array, seeds: Array) -> Array:
    return _mixed(_with_8(seeds + (_P5 + np.uint64(8)), values))


def _of_bytes(column: pa.Array, seeds: Array) -> Array:
    _, ends, data = column.buffers()
    ends = np.frombuffer(ends, np.int32)[column.offset : column.offset + len(column) + 1].astype(np.int64)
    content = np.frombuffer(data, np.uint8) if data else np.empty(0, np.uint8)
    at, sizes = ends[:-1].copy(), np.diff(ends)
    found = np.where(sizes < 32, seeds + _P5, np.uint64(0))
    many = np.flatnonzero(sizes >= 32)
    if len(many):
        found[many] = _of_stripes(content, at[many], sizes[many] // 32, seeds[many])
        at[many] += sizes[many] // 32 * 32
    found += sizes.view(np.uint64)
    for width, joined in ((8, _with_8), (4, _with_4), (1, _with_1)):
        while len(more := np.flatnonzero(ends[1:] - at >= width)):
            found[more] = joined(found[more], _words(content, at[more], width))
            at[more] += width
    return _mixed(found)


def _of_stripes(content: Array, at: Array, stripes: Array, seeds: Array) -> Array:
    """Four lanes over each 32 bytes, brought together."""
    lanes = [seeds + _P12, seeds + _P2, seeds.copy(), seeds - _P1]
    for stripe in range(int(stripes.max())):
        more = np.flatnonzero(stripes > stripe)
        for number, lane in enumerate(lanes):
            words = _words(content, at[more] + (32 * stripe + 8 * number), 8)
            lane[more] = _rotated(lane[more] + words * _P2, 31) * _P1
    found = sum(
        (_rotated(lane, bits) for lane, bits in zip(lanes[1:], (7, 12, 18), strict=True)), _rotated(lanes[0], 1)
    )
    for lane in lanes:
        found = (found ^ _rotated(lane * _P2, 31) * _P1) * _P1 + _P4
    return found


def _words(content: Array, at: Array, width: int) -> Array:
    """Numbers of so many bytes, the lowest first."""
    found = content[at[:, None] + np.arange(width)]
    return found.view(f"<u{width}")[:, 0].astype(np.uint64)


def _with_8(found: Array, words: Array) -> Array:
    return _rotated(found ^ _rotated(words * _P2, 31) * _P1, 27) * _P1 + _P4


def _with_4(found: Array, words: Array) -> Array:
    return _rotated(found ^ words * _P1, 23) * _P2 + _P3


def _with_1(found: Array, words: Array) -> Array:
    return _rotated(found ^ words * _P5, 11) * _P1


def _rotated(words: Array, bits: int) -> Array:
    return (words << np.uint64(bits)) | (words >> np.uint64(64 - bits))


def _mixed(found: Array) -> Array:
    found = (found ^ (found >> np.uint64(33))) * _P2
    found = (found ^ (found >> np.uint64(29))) * _P3
    return found ^ (found >> np.uint64(32))
