"""The online codec: one feature group's row of one entity as one packed value, and the text of an entity's key.

    offline rows -> Arrow batches -> encode, encode_keys -> online store -> decode -> Python values

A packed value, little-endian throughout, for a group of n features:

    offset   size        field
    0        1           codec version, unsigned: 2
    1        4           schema fingerprint: the first 4 bytes of sha256 over the lines "NAME TYPE\\n" in order
    5        4           definition number, unsigned: the registry snapshot that introduced the group's definition
    9        8           event_time, signed microseconds since 1970-01-01 UTC
    17       ceil(n/8)   null bitmap: bit i % 8 of byte i // 8 is set when feature i is null; spare bits are 0
    ...      ceil(k/4)   widths of the k numbers below: bits 2 * (i % 4) and the next of byte i // 4 are 0, 1, 2, 3
                           for 1, 2, 4, 8 bytes; spare bits are 0
    ...      fixed       every feature of a fixed width, in order; a null writes zeros
                           boolean 1 (0 or 1) | float 4 | double 8 | timestamp 8, microseconds UTC |
                           decimal of more than 18 digits 16, two's complement of the unscaled value
    ...      numbers     first every int, bigint, date (days) and decimal of up to 18 digits (unscaled), in order, two's
                           complement, a null 0; then the length of every other feature, in order, unsigned, a null's 0
    ...      bytes       every other feature, in order: string: UTF-8 | binary: as it is | array, map: as below

A writer gives a number the least width that holds it: most counts, codes and amounts are small. Readers take any.

An array's bytes, for m elements. An empty array is 4 bytes, so that it differs from a null one.

    0        4           m, unsigned
    4        ceil(m/8)   null bitmap of the elements, as above
    ...      fixed       m values of the element's width, a null one zeros; or, for strings, m times a length
                         (4, unsigned) and the UTF-8 bytes, a null one of length 0

A map's bytes, for m entries. An empty map is 4 bytes, too.

    0        4           m, unsigned
    4        keys        m times a length (4, unsigned) and the UTF-8 bytes, ascending by these bytes, no two equal
    ...      ceil(m/8)   null bitmap of the values, in the order of the keys
    ...      values      m values, as an array's elements

But for the width of its numbers a row has one valid encoding, and `decode` refuses every other: a value that was cut,
grown or written under other features is an error, never a wrong number. The first 17 bytes keep their place in every
later codec version, as the online store compares definition number and event_time without knowing the schema.
docs/codec.md has the reasons and a worked example.

A removal is exactly the first 17 bytes, its schema fingerprint 0: what `write` is given to take a value away that is
not newer. It is never stored, and `decode` refuses it. Every value is longer, as a schema has at least one feature.

An entity's key is text: PREFIX:ENTITY:VALUE|VALUE, with a backslash before each backslash and bar inside a value.

Encoding works on whole columns: fixed-width features are laid out as one structured numpy matrix, numbers as another
of which a mask takes the bytes that count, and one Arrow kernel joins their rows with the other features' bytes. There
is no loop over rows.
"""

from __future__ import annotations

import hashlib
import math
import operator
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from decimal import Context, Decimal, Inexact, InvalidOperation
from functools import cached_property, lru_cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from feature_defs.data_types import KEY_TYPES, TYPES, DataType, parse
from feature_defs.model import Entity, FeatureGroup

CODEC_VERSION = 2
EVENT_TIME = "event_time"
HEADER = struct.Struct("<BIIq")
HEAD_SIZE = 5  # of it: codec version and schema fingerprint

_HEADER_LAYOUT: list[tuple[str, str, tuple[int, ...]]] = [
    ("version", "u1", ()),
    ("schema", "<u4", ()),
    ("definition", "<u4", ()),
    (EVENT_TIME, "<i8", ()),
]
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MICROSECOND = timedelta(microseconds=1)
_EPOCH_DAY = date(1970, 1, 1).toordinal()
# First and last that Python has, as they are stored.
_FIRST_DAY, _LAST_DAY = date.min.toordinal() - _EPOCH_DAY, date.max.toordinal() - _EPOCH_DAY
_DAY_US = 86_400_000_000
_CALENDAR = {
    "date": (_FIRST_DAY, _LAST_DAY),
    "timestamp": (_FIRST_DAY * _DAY_US, (_LAST_DAY + 1) * _DAY_US - 1),
}
_LONGEST = _LAST_DEFINITION = 2**32 - 1
_WIDTHS = 4  # of a number: 1, 2, 4 and 8 bytes, two bits tell which
_DIGITS_OF_NUMBER = 18  # of a decimal that 8 bytes hold
_LAST_ASCII = 0x7F
_TOGETHER = 250_000  # numbers
# Arrow's 32-bit offsets end here; a larger result keeps 64-bit ones.
_MOST_BYTES_OF_BINARY = 2**31 - 1

_ARROW: dict[str, pa.DataType] = {
    "boolean": pa.bool_(),
    "int": pa.int32(),
    "bigint": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
    "date": pa.date32(),
    "timestamp": pa.timestamp("us", "UTC"),
    # 64-bit offsets inside, so that a big batch cannot overflow half way.
    "string": pa.large_string(),
    "binary": pa.large_binary(),
}
_BYTES = (pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view())
_NUMPY = {"bool": "u1", "int32": "<i4", "int64": "<i8", "float32": "<f4", "float64": "<f8", "int128": "<u8"}
_STRUCT = {"bool": "B", "int32": "i", "int64": "q", "float32": "f", "float64": "d", "int128": "16s"}
_LAID_OUT = 1 << 16  # numbers, in all the layouts that a reader keeps of one schema; each takes 32 bytes
_UNFIT_WIDTHS = "the widths of its numbers do not fit the schema"
_SIGNED, _UNSIGNED = "bhiq", "BHIQ"  # by width


class CodecError(ValueError):
    """Bytes that are no packed value of this schema, or a column that cannot be packed under it."""


@dataclass(frozen=True)
class ValueSchema:
    """The ordered features of one feature group, as its packed values hold them."""

    names: tuple[str, ...]
    types: tuple[DataType, ...]

    def __post_init__(self) -> None:
        if len(self.names) != len(self.types):
            raise CodecError(f"a schema of {len(self.names)} names has {len(self.types)} types")
        # Without a null bitmap its values would be removals.
        if not self.names:
            raise CodecError("a schema has at least one feature")
        for name, data_type in zip(self.names, self.types, strict=True):
            if not data_type.is_feature_type:
                raise CodecError(f"feature '{name}': {data_type.spark} has no online codec")
            # A line break in a name could make two schemas share their fingerprint's text.
            if not name or "\n" in name or self.names.count(name) > 1 or name == EVENT_TIME:
                raise CodecError(f"feature '{name}': a name is unique, not empty, one line and not '{EVENT_TIME}'")

    @classmethod
    def of(cls, features: Iterable[tuple[str, str]]) -> ValueSchema:
        """The schema of (name, type text) pairs, as in [("total", "bigint")]."""
        pairs = list(features)
        return cls(tuple(name for name, _ in pairs), tuple(parse(text) for _, text in pairs))

    @classmethod
    def of_group(cls, group: FeatureGroup) -> ValueSchema:
        return cls.of((feature.name, feature.type) for feature in group.features)

    @cached_property
    def fingerprint(self) -> int:
        lines = "".join(f"{name} {kind.spark}\n" for name, kind in zip(self.names, self.types, strict=True))
        return int.from_bytes(hashlib.sha256(lines.encode()).digest()[:4], "little")

    @cached_property
    def parts(self) -> tuple[list[int], list[int], list[int]]:
        """The features' positions as a value holds them: of a fixed width, numbers, others."""
        found: tuple[list[int], list[int], list[int]] = ([], [], [])
        for position, kind in enumerate(self.types):
            found[1 if _is_number(kind) else 0 if kind.row.width else 2].append(position)
        return found

    @cached_property
    def widths_at(self) -> slice:
        """Where a value tells the widths of its numbers and lengths."""
        _, numbers, others = self.parts
        start = HEADER.size + _bitmap_size(len(self.types))
        return slice(start, start + _size_of_widths(len(numbers) + len(others)))

    def layout(self, widths: bytes) -> struct.Struct:
        """Head, definition number, event_time, null bitmap, fixed-width features, numbers and lengths of a value with
        these widths: all that lies before the other features' bytes."""
        _, numbers, others = self.parts
        count, told = len(numbers) + len(others), int.from_bytes(widths, "little")
        if len(widths) != _size_of_widths(count) or told >> 2 * count:
            raise CodecError(_UNFIT_WIDTHS)
        codes = [told >> 2 * number & 3 for number in range(count)]
        signed = "".join(_SIGNED[code] for code in codes[: len(numbers)])
        lengths = "".join(_UNSIGNED[code] for code in codes[len(numbers) :])
        return struct.Struct(f"{self.start}{signed}{lengths}")

    @cached_property
    def start(self) -> str:
        """The layout of what lies before a value's numbers."""
        fixed, numbers, others = self.parts
        kinds = "".join(_STRUCT[str(self.types[position].row.codec)] for position in fixed)
        widths = _size_of_widths(len(numbers) + len(others))
        return f"<{HEAD_SIZE}sIq{_bitmap_size(len(self.types))}s{widths}x{kinds}"

    @cached_property
    def spare_bits(self) -> int:
        """The bits of the null bitmap that stand for no feature."""
        count = len(self.types)
        return (1 << 8 * _bitmap_size(count)) - (1 << count)


@dataclass(frozen=True)
class DecodedRow:
    """A packed value as Python values, in the schema's order."""

    definition: int
    event_time_us: int
    values: tuple[Any, ...]


def field_name(group: str, version: int) -> bytes:
    """The hash field that holds a feature group: b'customer_purchases:1'."""
    return f"{group}:{version}".encode()


# Encoding ------------------------------------------------------------------------------------------------------------


def encode(
    batch: pa.RecordBatch | pa.Table, schema: ValueSchema, *, definition: int
) -> pa.BinaryArray | pa.LargeBinaryArray:
    """The packed value of every row. The batch has `event_time` and the schema's features, among other columns."""
    _check_definition(definition)
    batches = batch.to_batches() if isinstance(batch, pa.Table) else [batch]
    packed = [_encode_batch(part, schema, definition) for part in batches]
    return _narrowed(pa.concat_arrays([pa.array([], pa.large_binary()), *packed]))


def _encode_batch(batch: pa.RecordBatch, schema: ValueSchema, definition: int) -> pa.LargeBinaryArray:
    event_time = _column(batch, EVENT_TIME, _ARROW["timestamp"])
    if event_time.null_count:
        raise CodecError(f"column '{EVENT_TIME}' has {event_time.null_count} null(s)")
    columns = [_feature(batch, name, kind) for name, kind in zip(schema.names, schema.types, strict=True)]

    fixed_ones, numbers, others = schema.parts
    payloads = [_payload(columns[position], schema.types[position]) for position in others]
    lengths = [_row_sizes(pieces, batch.num_rows) for pieces in payloads]
    widths, packed_numbers = _packed_numbers(
        [*(_integers(columns[position]) for position in numbers), *lengths], len(numbers), batch.num_rows
    )
    # A row of this matrix is everything before the numbers.
    fixed = np.zeros(batch.num_rows, _fixed_layout(schema))
    fixed["version"] = CODEC_VERSION
    fixed["schema"] = schema.fingerprint
    fixed["definition"] = definition
    fixed[EVENT_TIME] = _numbers(event_time, "int64")
    for position, column in enumerate(columns):
        if column.null_count:
            fixed["nulls"][:, position // 8] |= _is_null(column).astype("u1") << np.uint8(position % 8)
    fixed["widths"] = widths
    for position in fixed_ones:
        fixed[str(position)] = _numbers(columns[position], str(schema.types[position].row.codec))
    return _joined([_rows_of(fixed), packed_numbers, *(piece for pieces in payloads for piece in pieces)])


def _is_number(kind: DataType) -> bool:
    """Whether it is stored in as few bytes as its value needs."""
    return kind.kind in ("int", "bigint", "date") or (kind.kind == "decimal" and kind.precision <= _DIGITS_OF_NUMBER)


def _integers(column: pa.Array) -> npt.NDArray[np.int64]:
    """A column of numbers, zeros for nulls; of a decimal the unscaled value, which its lower word holds."""
    if pa.types.is_decimal(column.type):
        return np.asarray(_numbers(column, "int128")[:, 0].view("<i8"))
    return np.asarray(_numbers(column, "int32" if column.type.bit_width == 32 else "int64"), np.int64)


def _packed_numbers(
    columns: list[npt.NDArray[np.int64]], signed: int, rows: int
) -> tuple[npt.NDArray[np.uint8], pa.LargeBinaryArray]:
    """The widths and the numbers of each row; the first columns are signed, the others lengths."""
    codes = np.zeros((rows, len(columns)), "u1")
    widths = np.zeros((rows, _size_of_widths(len(columns))), "u1")
    sizes = np.zeros(rows, np.int64)
    for position, column in enumerate(columns):
        codes[:, position] = code = _width_codes(column, "i" if position < signed else "u")
        widths[:, position // _WIDTHS] |= code << np.uint8(2 * (position % _WIDTHS))
        sizes += np.int64(1) << code
    starts = _starts(sizes)
    packed = np.empty(starts[-1], "u1")
    # To find the bytes that count takes up to 88 for a number, so not all rows are looked at together: of 25,000 rows
    # of 500 wide numbers that took 1 GiB, and twice the time.
    together = max(1, _TOGETHER // max(1, len(columns)))
    for first in range(0, rows, together):
        some = slice(first, min(first + together, rows))
        packed[starts[some.start] : starts[some.stop]] = _narrow_bytes(
            [column[some] for column in columns], codes[some]
        )
    return widths, _binary(starts, packed)


def _narrow_bytes(columns: list[npt.NDArray[np.int64]], codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The numbers of each row, one after another, in the bytes that their codes say."""
    widest = 1 << int(codes.max(initial=0))
    matrix = np.empty(codes.shape, f"<i{widest}")
    for position, column in enumerate(columns):
        matrix[:, position] = column
    kept = np.empty((*codes.shape, widest), np.bool_)
    for byte in range(widest):
        kept[:, :, byte] = codes >= byte.bit_length()
    return matrix.view("u1").reshape(-1).take(np.flatnonzero(kept))


def _width_codes(column: npt.NDArray[np.int64], sign: str) -> npt.NDArray[np.uint8]:
    """Per number 0, 1, 2 or 3, for the 1, 2, 4 or 8 bytes that hold it."""
    codes = np.zeros(len(column), "u1")
    least, most = int(column.min(initial=0)), int(column.max(initial=0))
    for size in (1, 2, 4):
        narrow = np.iinfo(f"{sign}{size}")
        if narrow.min <= least and most <= narrow.max:
            break
        codes += column.astype(narrow.dtype) != column
    return codes


def _payload(column: pa.Array, kind: DataType) -> list[pa.LargeBinaryArray]:
    """The bytes of a feature that is neither a number nor of a fixed width, in pieces; of a null none."""
    if kind.kind == "array":
        return _array_pieces(column, kind)
    return _map_pieces(column, kind) if kind.kind == "map" else [column.cast(pa.large_binary())]


def _row_sizes(pieces: list[pa.LargeBinaryArray], rows: int) -> npt.NDArray[np.int64]:
    sizes = sum((pc.binary_length(piece).fill_null(0).to_numpy() for piece in pieces), np.zeros(rows, np.int64))
    return np.asarray(_checked(sizes), np.int64)


def removal(definition: int, event_times: npt.NDArray[np.int64]) -> pa.BinaryArray:
    """For each event_time, what makes `write` take away a value that is not newer, nor of a later definition."""
    _check_definition(definition)
    headers = np.zeros(len(event_times), _HEADER_LAYOUT)
    headers["version"], headers["definition"], headers[EVENT_TIME] = CODEC_VERSION, definition, event_times
    return _rows_of(headers).cast(pa.binary())


def _check_definition(definition: int) -> None:
    # Numpy before 2 would store another number.
    if not 0 <= definition <= _LAST_DEFINITION:
        raise CodecError(f"a definition number is from 0 to {_LAST_DEFINITION}, found {definition}")


def _fixed_layout(schema: ValueSchema) -> np.dtype[np.void]:
    """The header, the null bitmap, the numbers' widths and the fixed-width features, these named by their position."""
    fixed, numbers, others = schema.parts
    layout: list[tuple[str, str, tuple[int, ...]]] = [
        *_HEADER_LAYOUT,
        ("nulls", "u1", (_bitmap_size(len(schema.types)),)),
        ("widths", "u1", (_size_of_widths(len(numbers) + len(others)),)),
    ]
    for position in fixed:
        kind = schema.types[position]
        layout.append((str(position), _NUMPY[str(kind.row.codec)], (2,) if kind.kind == "decimal" else ()))
    return np.dtype(layout)


def _array_pieces(column: pa.LargeListArray, kind: DataType) -> list[pa.LargeBinaryArray]:
    """The element count, a null bitmap and the elements, per row of an array column."""
    counts = _counts(column)
    return _counted_pieces(column, counts, _element_pieces(column.flatten(), _starts(counts), kind))


def _map_pieces(column: pa.LargeListArray, kind: DataType) -> list[pa.LargeBinaryArray]:
    """The entry count, the keys, then the values as an array has them, per row of a map column."""
    counts = _counts(column)
    starts = _starts(counts)
    keys, values = column.flatten().flatten()
    return _counted_pieces(column, counts, [_string_piece(keys, starts), *_element_pieces(values, starts, kind)])


def _counts(column: pa.LargeListArray) -> npt.NDArray[np.int64]:
    return np.asarray(pc.list_value_length(column).fill_null(0).to_numpy())


def _counted_pieces(
    column: pa.LargeListArray, counts: npt.NDArray[np.int64], parts: list[pa.LargeBinaryArray]
) -> list[pa.LargeBinaryArray]:
    """The parts behind a count, which a null row has not."""
    present = ~_is_null(column)
    return [_binary(_starts(4 * present), _checked(counts)[present].astype("<u4")), *parts]


def _element_pieces(items: pa.Array, starts: npt.NDArray[np.int64], kind: DataType) -> list[pa.LargeBinaryArray]:
    """A null bitmap and the elements, per row, where `starts` says at which item each row begins.

    The items of a column lie one after another in its child, so those of a row are a slice of one buffer and need no
    copying here: only offsets are computed.
    """
    assert kind.element is not None
    element, counts = kind.element, np.diff(starts)
    bitmap_starts = _starts((counts + 7) // 8)
    bitmap = np.zeros(bitmap_starts[-1], "u1")
    null_items = np.flatnonzero(_is_null(items))
    row = np.searchsorted(starts, null_items, side="right") - 1
    within = null_items - starts[row]
    np.bitwise_or.at(bitmap, bitmap_starts[row] + within // 8, (1 << within % 8).astype("u1"))

    if element.row.width:
        payload = _binary(starts * element.row.width, _numbers(items, str(element.row.codec)))
    else:
        payload = _string_piece(items, starts)
    return [_binary(bitmap_starts, bitmap), payload]


def _string_piece(items: pa.Array, starts: npt.NDArray[np.int64]) -> pa.LargeBinaryArray:
    """Each item's length and bytes, per row."""
    lengths = _checked(pc.binary_length(items).fill_null(0).to_numpy()).astype("<u4")
    item_starts, data = _offsets_and_data(_joined([_rows_of(lengths), items.cast(pa.large_binary())]))
    return _binary(item_starts[starts], data)


def _feature(batch: pa.RecordBatch, name: str, kind: DataType) -> pa.Array:
    column = _column(batch, name, _arrow_type(kind))
    if kind.kind in _CALENDAR:
        first, last = _CALENDAR[kind.kind]
        numbers = column.cast(pa.int32() if kind.kind == "date" else pa.int64())
        found = pc.min_max(numbers).as_py()
        # Stored, it would make the whole row unreadable.
        if found["min"] is not None and not first <= found["min"] <= found["max"] <= last:
            problem = f"column '{name}' holds a {kind.kind} outside the years 1 to 9999"
            raise CodecError(f"{problem}\nHint: make it null where the feature is computed")
    return _with_sorted_keys(column, name) if kind.kind == "map" else column


def _with_sorted_keys(column: pa.LargeListArray, name: str) -> pa.LargeListArray:
    """A map column with each row's entries in the order of their keys' bytes: equal maps have equal bytes."""
    starts, entries = _starts(_counts(column)), column.flatten()
    keys = entries.field("key").cast(pa.large_binary())
    if entries.null_count or keys.null_count:
        raise CodecError(f"column '{name}' holds a map with a null key")
    if _ascends(keys, starts):
        return column
    # Materialize asks for this rarely: the as-of gives maps in the order of their keys.
    rows = pa.array(np.repeat(np.arange(len(column)), np.diff(starts)))
    order = pc.sort_indices(pa.table({"row": rows, "key": keys}), [("row", "ascending"), ("key", "ascending")])
    if not _ascends(keys.take(order), starts):
        raise CodecError(f"column '{name}' holds a map with one key twice")
    return pa.LargeListArray.from_arrays(pa.array(starts), entries.take(order), mask=column.is_null())


def _ascends(keys: pa.LargeBinaryArray, starts: npt.NDArray[np.int64]) -> bool:
    """Whether each key is greater than the one before it in its row."""
    if len(keys) < 2:
        return True
    ascends = pc.less(keys.slice(0, len(keys) - 1), keys.slice(1)).to_numpy(zero_copy_only=False)
    begins = np.zeros(len(keys) + 1, np.bool_)
    begins[starts] = True
    return bool((ascends | begins[1:-1]).all())


def _column(batch: pa.RecordBatch, name: str, wanted: pa.DataType) -> pa.Array:
    """The column, cast. Messages of Arrow's casts quote values, so they are not passed on."""
    found = batch.schema.get_all_field_indices(name)
    if len(found) != 1:
        names = ", ".join(batch.schema.names)
        raise CodecError(f"column '{name}' is there {len(found)} times, not once, in the batch ({names})")
    column = batch.column(found[0])
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    # Arrow would parse '12' to a number and write a number as text: here that is a mistake.
    if not pa.types.is_null(column.type) and _is_bytes(column.type) != _is_bytes(wanted):
        raise CodecError(f"column '{name}' is {column.type}, which is no {wanted}")
    if pa.types.is_list_view(column.type) or pa.types.is_large_list_view(column.type):
        # Seen in Arrow 26: the cast leaves out the last offset. Spark and Parquet give plain lists.
        raise CodecError(f"column '{name}' is {column.type}: hand it over as a list")
    if pa.types.is_map(wanted):
        return _utf8(_map_column(column, name, wanted), name)
    try:
        cast = column.cast(wanted)
    except pa.ArrowException:
        raise CodecError(f"column '{name}' is {column.type} and holds what {wanted} cannot") from None
    return _utf8(cast, name)


def _utf8(column: pa.Array, name: str) -> pa.Array:
    """The column. Spark's strings may hold any bytes, and Arrow takes them as text without a look: stored, they would
    make the whole row unreadable."""
    try:
        for texts in _texts(column):
            starts, data = _offsets_and_data(texts.cast(pa.large_binary()))
            # Most text is ASCII, which is told in a tenth of the time.
            if data[starts[0] : starts[-1]].max(initial=0) > _LAST_ASCII:
                texts.validate(full=True)
    except pa.ArrowInvalid:
        hint = "decode it by its charset where it is computed, or declare it binary"
        raise CodecError(f"column '{name}' holds text that is not UTF-8\nHint: {hint}") from None
    return column


def _texts(column: pa.Array) -> list[pa.LargeStringArray]:
    """A column of text; of arrays and maps, what of theirs is text."""
    kind = column.type
    if pa.types.is_struct(kind):
        return [texts for part in column.flatten() for texts in _texts(part)]
    if pa.types.is_large_list(kind) and not pa.types.is_primitive(kind.value_type):
        return _texts(column.flatten())
    return [column] if pa.types.is_large_string(kind) else []


def _map_column(column: pa.Array, name: str, wanted: pa.MapType) -> pa.LargeListArray:
    """A map column as lists of entries, for which Arrow has kernels."""
    found = column.type
    fits = pa.types.is_null(found) or (
        pa.types.is_map(found)
        and _is_bytes(found.key_type)
        and (pa.types.is_null(found.item_type) or _is_bytes(found.item_type) == _is_bytes(wanted.item_type))
    )
    if not fits:
        raise CodecError(f"column '{name}' is {found}, which is no {wanted}")
    entry = pa.struct([("key", wanted.key_type), ("value", wanted.item_type)])
    try:
        return column.cast(wanted).cast(pa.large_list(entry))
    except pa.ArrowException:
        raise CodecError(f"column '{name}' is {found} and holds what {wanted} cannot") from None


def _arrow_type(kind: DataType) -> pa.DataType:
    if kind.kind == "decimal":
        return pa.decimal128(kind.precision, kind.scale)
    if kind.element is not None:
        element = _ARROW[kind.element.kind]
        return pa.map_(_ARROW["string"], element) if kind.kind == "map" else pa.large_list(element)
    return _ARROW[kind.kind]


def _is_bytes(arrow: pa.DataType) -> bool:
    return arrow in _BYTES or pa.types.is_fixed_size_binary(arrow)


def _is_null(column: pa.Array) -> npt.NDArray[np.bool_]:
    return np.asarray(column.is_null().to_numpy(zero_copy_only=False))


def _numbers(column: pa.Array, codec: str) -> npt.NDArray[Any]:
    """A fixed-width column's values as they are stored, zeros for nulls; a decimal is two words."""
    words = 2 if codec == "int128" else 1
    dtype = np.dtype(_NUMPY[codec])
    if not len(column):
        return np.zeros((0, 2) if words == 2 else 0, dtype)
    if codec == "bool":
        column = column.cast(pa.uint8())
    count, skipped = len(column) * words, column.offset * words * dtype.itemsize
    numbers = np.frombuffer(column.buffers()[1], dtype, count=count, offset=skipped)
    if words == 2:
        numbers = numbers.reshape(-1, 2)
    if column.null_count:
        numbers = numbers.copy()
        numbers[_is_null(column)] = 0
    return numbers


def _bitmap_size(bits: int) -> int:
    return (bits + 7) // 8


def _size_of_widths(numbers: int) -> int:
    return (numbers + _WIDTHS - 1) // _WIDTHS


def _starts(sizes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Where each of the sizes begins when laid end to end, and the end of the last."""
    starts = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes, out=starts[1:])
    return starts


def _checked(lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    if len(lengths) and lengths.max() > _LONGEST:
        raise CodecError(f"a value of {lengths.max()} bytes is longer than {_LONGEST}")
    return lengths


def _rows_of(matrix: npt.NDArray[Any]) -> pa.LargeBinaryArray:
    """Each element of a one-dimensional array as its bytes."""
    return _binary(np.arange(len(matrix) + 1, dtype=np.int64) * matrix.itemsize, matrix)


def _binary(starts: npt.NDArray[np.int64], data: npt.NDArray[Any]) -> pa.LargeBinaryArray:
    flat = np.ascontiguousarray(data).reshape(-1).view("u1")
    buffers = [None, pa.py_buffer(np.ascontiguousarray(starts)), pa.py_buffer(flat)]
    return pa.Array.from_buffers(pa.large_binary(), len(starts) - 1, buffers)


def _joined(pieces: list[pa.LargeBinaryArray]) -> pa.LargeBinaryArray:
    """The pieces of each row, one after another; a null piece is empty."""
    nothing = pa.scalar(b"", pa.large_binary())
    return pc.binary_join_element_wise(*pieces, nothing, null_handling="replace", null_replacement=b"")


def _narrowed(packed: pa.LargeBinaryArray) -> pa.BinaryArray | pa.LargeBinaryArray:
    starts, _ = _offsets_and_data(packed)
    return packed.cast(pa.binary()) if starts[-1] <= _MOST_BYTES_OF_BINARY else packed


def _offsets_and_data(values: pa.Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """Where each value of a binary array begins in its data, and the data."""
    wide = pa.types.is_large_binary(values.type)
    _, offsets, data = values.buffers()
    dtype = np.dtype("<i8" if wide else "<i4")
    if offsets is None or not len(values):
        return np.zeros(1, np.int64), np.zeros(0, np.uint8)
    starts = np.frombuffer(offsets, dtype, count=len(values) + 1, offset=values.offset * dtype.itemsize)
    return starts.astype(np.int64, copy=False), np.frombuffer(data, np.uint8) if data else np.zeros(0, np.uint8)


# Decoding ------------------------------------------------------------------------------------------------------------


def decode(value: bytes, schema: ValueSchema) -> DecodedRow:
    """A packed value's event_time and features; CodecError for bytes that `encode` would not write."""
    _check_header(value)
    if len(value) == HEADER.size:
        raise CodecError("a removal is no value")
    if int.from_bytes(value[1:5], "little") != schema.fingerprint:
        raise CodecError("the value was written under another schema: the feature group's features have changed")
    try:
        return _decode_body(value, schema)
    except CodecError:
        raise
    except (struct.error, ValueError, OverflowError):
        # Their messages quote the value.
        raise _damaged(value) from None


def schema_head(schema: ValueSchema) -> bytes:
    """The first HEAD_SIZE bytes of every value of a schema: what tells a reader how to go on."""
    return bytes((CODEC_VERSION,)) + schema.fingerprint.to_bytes(4, "little")


class ValueReader:
    """`decode` with all of it prepared, for some features of one schema; a feature that is None stands for null.

    What it refuses is what `decode` refuses, but for what lies inside features that are not asked for. `row` takes only
    values that begin with the schema's head; `columns` looks.
    """

    def __init__(self, schema: ValueSchema, features: Sequence[str | None]) -> None:
        fixed, numbers, others = schema.parts
        kinds, stored = schema.types, [*fixed, *numbers, *others]
        self._others = len(others)
        self._head, self._widths = schema_head(schema), operator.itemgetter(schema.widths_at)
        self._new_layout, self._layouts = schema.layout, dict[bytes, struct.Struct]()
        count = len(numbers) + len(others)
        self._most_layouts = max(1, _LAID_OUT // max(1, count))
        # By parts, for widths that have no layout kept.
        self._start = struct.Struct(schema.start)
        signs = "s" * len(numbers) + "u" * len(others)
        self._of_widths = [_by_widths(signs[first : first + _WIDTHS]) for first in range(0, count, _WIDTHS)]
        self._no_nulls, self._spare_bits = bytes(_bitmap_size(len(kinds))), schema.spare_bits
        self._stored = [(spot, 1 << feature, kinds[feature]) for spot, feature in enumerate(stored)]
        wanted = {schema.names.index(name) for name in features if name is not None}
        self._convert = [_converter(kinds[feature]) if feature in wanted else None for feature in stored]
        self._conversions = [(spot, convert) for spot, convert in enumerate(self._convert) if convert is not None]
        spots = {schema.names[feature]: spot for spot, feature in enumerate(stored)}
        self._spots = [len(stored) if name is None else spots[name] for name in features]

    def row(self, value: bytes) -> tuple[int, list[Any]]:
        """One value's event_time and features."""
        try:
            layout = self._layouts.get(self._widths(value))
            found, end = (layout.unpack_from(value), layout.size) if layout else self._unpacked(value)
            _, _, event_time, bitmap, *raw = found
            if self._others:
                lengths = raw[-self._others :]
                del raw[-self._others :]
                for length in lengths:
                    start, end = end, end + length
                    raw.append(value[start:end])
            # A length beyond the end shows here too: the position only grows.
            if end != len(value):
                raise CodecError(f"expected {end} bytes, found {len(value)}")
            if bitmap == self._no_nulls:
                for spot, convert in self._conversions:
                    raw[spot] = convert(raw[spot])
            else:
                self._set_nulls(raw, int.from_bytes(bitmap, "little"))
            raw.append(None)
            return event_time, [raw[spot] for spot in self._spots]
        except CodecError:
            raise
        except (struct.error, ValueError, OverflowError):
            raise _damaged(value) from None

    def columns(self, values: Sequence[bytes]) -> tuple[list[int], list[list[Any]]]:
        """The event_times of many values and a list of values for each feature; CodecError when one is refused."""
        count = len(values)
        try:
            found: Iterable[Sequence[Any]]
            layouts: list[Any] = list(map(self._layouts.get, map(self._widths, values)))
            if all(layouts):
                found, ends = map(struct.Struct.unpack_from, layouts, values), [layout.size for layout in layouts]
            else:
                found, ends = map(list, zip(*map(self._unpacked, values), strict=True))
            columns: list[Any] = list(zip(*found, strict=True))
            heads, _, event_times, bitmaps, *raw = columns
            if heads.count(self._head) != count:
                raise CodecError("a value was written under another schema")
            if self._others:
                lengths = raw[-self._others :]
                del raw[-self._others :]
                for inside in lengths:
                    starts, ends = ends, list(map(operator.add, ends, inside))
                    raw.append([value[start:end] for value, start, end in zip(values, starts, ends, strict=True)])
            if ends != list(map(len, values)):
                raise CodecError("a value is shorter or longer than its lengths say")
            if bitmaps.count(self._no_nulls) == count:
                for spot, convert in self._conversions:
                    raw[spot] = list(map(convert, raw[spot]))
            else:
                self._set_nulls_of_columns(raw, [int.from_bytes(bitmap, "little") for bitmap in bitmaps])
            raw.append([None] * count)
            return list(event_times), [list(raw[spot]) for spot in self._spots]
        except CodecError:
            raise
        except (struct.error, ValueError, OverflowError):
            raise CodecError(f"one of {count} values is damaged") from None

    def _unpacked(self, value: bytes) -> tuple[Sequence[Any], int]:
        """All that lies before the other features' bytes, and where these begin.

        Of a wide group hardly two values have the same widths, so once the layouts that are kept are enough, four
        numbers are read at a time.
        """
        widths = self._widths(value)
        layout = self._layouts.get(widths)
        if layout is None and len(self._layouts) < self._most_layouts:
            layout = self._layouts[widths] = self._new_layout(widths)
        if layout is not None:
            return layout.unpack_from(value), layout.size
        found, end = [*self._start.unpack_from(value)], self._start.size
        if widths[-1] >= len(self._of_widths[-1]):
            raise CodecError(_UNFIT_WIDTHS)
        for layouts, byte in zip(self._of_widths, widths, strict=True):
            layout = layouts[byte]
            found += layout.unpack_from(value, end)
            end += layout.size
        return found, end

    def _set_nulls(self, raw: list[Any], nulls: int) -> None:
        if nulls & self._spare_bits:
            raise CodecError("the null bitmap has bits beyond the last feature")
        for (spot, bit, kind), convert in zip(self._stored, self._convert, strict=True):
            if nulls & bit:
                raw[spot] = _null(raw[spot], kind)
            elif convert is not None:
                raw[spot] = convert(raw[spot])

    def _set_nulls_of_columns(self, raw: list[Any], nulls: list[int]) -> None:
        somewhere = 0
        for row in nulls:
            somewhere |= row
        if somewhere & self._spare_bits:
            raise CodecError("a null bitmap has bits beyond the last feature")
        for (spot, bit, kind), convert in zip(self._stored, self._convert, strict=True):
            if somewhere & bit:
                pairs = zip(raw[spot], nulls, strict=True)
                raw[spot] = [
                    _null(item, kind) if row & bit else convert(item) if convert else item for item, row in pairs
                ]
            elif convert is not None:
                raw[spot] = list(map(convert, raw[spot]))


@lru_cache
def _by_widths(signs: str) -> list[struct.Struct]:
    """The layout of up to four numbers, signed or unsigned, for each byte of widths; none fits spare bits."""
    layouts = []
    for byte in range(1 << 2 * _WIDTHS):
        kinds = "".join((_SIGNED if sign == "s" else _UNSIGNED)[byte >> 2 * at & 3] for at, sign in enumerate(signs))
        layouts.append(struct.Struct("<" + kinds))
    return layouts[: 1 << 2 * len(signs)]


def _converter(kind: DataType) -> Callable[[Any], Any] | None:
    """From what a value holds to Python's value; None where they are the same."""
    if kind.kind in ("int", "bigint", "float", "double", "binary"):
        return None
    return bytes.decode if kind.kind == "string" else partial(_python_value, kind=kind)


def _null(raw: Any, kind: DataType) -> Any:
    """None, stored as zeros or as no bytes."""
    is_there = raw.strip(b"\0") if kind.kind == "decimal" and not _is_number(kind) else raw
    if is_there or (isinstance(raw, float) and math.copysign(1, raw) < 0):  # -0.0 is not all zeros
        raise CodecError(f"a null {kind.kind} has a value")
    return None


def _damaged(value: bytes) -> CodecError:
    return CodecError(f"a value of {len(value)} bytes is damaged")


def event_time_of(value: bytes) -> int:
    """A packed value's event_time in microseconds, whatever its schema."""
    _check_header(value)
    *_, event_time = HEADER.unpack_from(value)
    return int(event_time)


def definition_of(value: bytes) -> int:
    """The number of the definition that a packed value was made by."""
    _check_header(value)
    _, _, definition, _ = HEADER.unpack_from(value)
    return int(definition)


def event_times(values: pa.BinaryArray | pa.LargeBinaryArray) -> npt.NDArray[np.int64]:
    """`event_time_of` every value of an array."""
    if values.null_count:
        raise CodecError(f"{values.null_count} of {len(values)} packed values are null")
    starts, data = _offsets_and_data(values)
    if (np.diff(starts) < HEADER.size).any() or (data[starts[:-1]] != CODEC_VERSION).any():
        raise CodecError(f"not every value is a packed value of codec version {CODEC_VERSION}")
    event_time = starts[:-1, None] + np.arange(HEADER.size - 8, HEADER.size)
    return np.asarray(data[event_time].view("<i8").reshape(-1), np.int64)


def _check_header(value: bytes) -> None:
    if value[:1] != bytes([CODEC_VERSION]):
        found = f"version {value[0]}" if value else "no bytes"
        raise CodecError(f"expected codec version {CODEC_VERSION}, found {found}")
    if len(value) < HEADER.size:
        raise CodecError(f"a packed value has at least {HEADER.size} bytes, found {len(value)}")


def _decode_body(value: bytes, schema: ValueSchema) -> DecodedRow:
    layout = schema.layout(value[schema.widths_at])
    _, definition, event_time, bitmap, *raw = layout.unpack_from(value)
    nulls = int.from_bytes(bitmap, "little")
    if nulls & schema.spare_bits:
        raise CodecError("the null bitmap has bits beyond the last feature")
    fixed, numbers, others = schema.parts
    stored, lengths = raw[: len(fixed) + len(numbers)], raw[len(fixed) + len(numbers) :]
    end = layout.size
    for length in lengths:
        start, end = end, end + length
        stored.append(value[start:end])
    if end != len(value):
        raise CodecError(f"expected {end} bytes, found {len(value)}")
    values = {
        position: _present_or_null(item, schema.types[position], is_null=bool(nulls >> position & 1))
        for position, item in zip([*fixed, *numbers, *others], stored, strict=True)
    }
    return DecodedRow(definition, event_time, tuple(values[position] for position in range(len(values))))


def _length_and_bytes(value: bytes, position: int) -> tuple[bytes, int]:
    """The bytes behind a length at this position, and the position after them."""
    (length,) = struct.unpack_from("<I", value, position)
    end = position + 4 + length
    if end > len(value):
        raise CodecError(f"a value ends after {len(value)} bytes, within a length of {length} at byte {position}")
    return value[position + 4 : end], end


def _present_or_null(raw: Any, kind: DataType, *, is_null: bool) -> Any:
    return _null(raw, kind) if is_null else _python_value(raw, kind)


def _python_value(raw: Any, kind: DataType) -> Any:
    match kind.kind:
        case "boolean":
            if raw > 1:
                raise CodecError("a boolean is neither 0 nor 1")
            return bool(raw)
        case "date":
            return date.fromordinal(_EPOCH_DAY + raw)
        case "timestamp":
            return _EPOCH + timedelta(microseconds=raw)
        case "decimal":
            unscaled = raw if _is_number(kind) else int.from_bytes(raw, "little", signed=True)
            if abs(unscaled) >= 10**kind.precision:
                raise CodecError(f"a {kind.spark} has too many digits")
            # From text: arithmetic would round to the context's 28 digits.
            return Decimal(f"{unscaled}E-{kind.scale}")
        case "string":
            return raw.decode()
        case "array":
            return _python_list(raw, kind)
        case "map":
            return _python_dict(raw, kind)
        case _:
            return raw


def _python_list(raw: bytes, kind: DataType) -> list[Any]:
    (count,) = struct.unpack_from("<I", raw)
    return _elements(raw, 4, count, kind)


def _python_dict(raw: bytes, kind: DataType) -> dict[str, Any]:
    (count,) = struct.unpack_from("<I", raw)
    # Before anything of this size is made, as below.
    if 4 + count * 4 > len(raw):
        raise CodecError(f"a map of {len(raw)} bytes cannot have {count} elements")
    position = 4
    keys: list[bytes] = []
    for _ in range(count):
        key, position = _length_and_bytes(raw, position)
        if keys and key <= keys[-1]:
            raise CodecError("the keys of a map are not in ascending order")
        keys.append(key)
    values = _elements(raw, position, count, kind)
    return {key.decode(): value for key, value in zip(keys, values, strict=True)}


def _elements(raw: bytes, position: int, count: int, kind: DataType) -> list[Any]:
    """The null bitmap and so many elements, which end where the bytes end."""
    assert kind.element is not None
    element, start = kind.element, position
    position += _bitmap_size(count)
    # Before anything of this size is made: a damaged count may be 4 billion.
    if position + count * (element.row.width or 4) > len(raw):
        raise CodecError(f"{_a(kind)} of {len(raw)} bytes cannot have {count} elements")
    nulls = int.from_bytes(raw[start:position], "little")
    if nulls >> count:
        raise CodecError(f"the null bitmap of {_a(kind)} has bits beyond its last element")
    items: list[Any] = []
    if element.row.width:
        layout = f"<{count}{_STRUCT[str(element.row.codec)]}"
        items.extend(struct.unpack_from(layout, raw, position))
        position += struct.calcsize(layout)
    else:
        for _ in range(count):
            item, position = _length_and_bytes(raw, position)
            items.append(item)
    if position != len(raw):
        raise CodecError(f"{_a(kind)} of {count} elements is {position} bytes, found {len(raw)}")
    if not nulls and element.kind not in ("boolean", "string"):
        return items
    return [_present_or_null(item, element, is_null=bool(nulls >> index & 1)) for index, item in enumerate(items)]


def _a(kind: DataType) -> str:
    return "an array" if kind.kind == "array" else "a map"


# Keys ----------------------------------------------------------------------------------------------------------------


def encode_keys(
    batch: pa.RecordBatch | pa.Table,
    entity_name: str,
    *,
    key_names: Sequence[str],
    key_types: Sequence[DataType],
    prefix: str,
) -> pa.BinaryArray | pa.LargeBinaryArray:
    """The key of every row's entity. A null key is an error: the caller drops and counts such rows."""
    start = pa.scalar(_key_start(prefix, entity_name, key_types), pa.large_string())
    bar, nothing = pa.scalar("|", pa.large_string()), pa.scalar("", pa.large_string())
    keys = [pa.array([], pa.large_binary())]
    for part in batch.to_batches() if isinstance(batch, pa.Table) else [batch]:
        texts = []
        for name, kind in zip(key_names, key_types, strict=True):
            column = _column(part, name, _arrow_type(kind))
            if column.null_count:
                raise CodecError(f"key '{name}' has {column.null_count} null(s)")
            texts.append(_key_texts(column, kind))
        values = pc.binary_join_element_wise(*texts, bar)
        keys.append(pc.binary_join_element_wise(start, values, nothing).cast(pa.large_binary()))
    return _narrowed(pa.concat_arrays(keys))


def key_encoder(entity: Entity, prefix: str) -> Callable[[pa.RecordBatch], pa.Array]:
    """`encode_keys` for one entity's batches; plain data, which may be sent to executors."""
    types = tuple(parse(kind) for kind in entity.keys.values())
    return partial(encode_keys, entity_name=entity.name, key_names=tuple(entity.keys), key_types=types, prefix=prefix)


def encode_key(values: Sequence[object], entity_name: str, *, key_types: Sequence[DataType], prefix: str) -> bytes:
    """The key of one entity, equal to what `encode_keys` writes for it."""
    write = key_writer(entity_name, key_types=key_types, prefix=prefix)
    if len(values) != len(key_types):
        raise CodecError(f"entity '{entity_name}' has {len(key_types)} key(s), found {len(values)} value(s)")
    (key,) = write([[value] for value in values])
    if key is None:
        raise CodecError(f"a key of entity '{entity_name}' is null")
    return key


def key_writer(
    entity_name: str, *, key_types: Sequence[DataType], prefix: str
) -> Callable[[Sequence[Sequence[Any]]], list[bytes | None]]:
    """`encode_key` for many entities, given as a list of values for each key; None where one of these is null."""
    kinds = tuple(key_types)
    start = _key_start(prefix, entity_name, kinds)
    is_text = [kind.kind for kind in kinds] == ["string"]

    def write(columns: Sequence[Sequence[Any]]) -> list[bytes | None]:
        try:
            # The keys of most entities; the other way takes ten times as long.
            if is_text and {*map(type, texts := columns[0])} == {str}:
                together = "".join(texts)
                if "|" not in together and "\\" not in together:
                    return [(start + text).encode() for text in texts]
            rows = zip(*columns, strict=True)
            return [None if None in row else (start + "|".join(map(_key_text, row, kinds))).encode() for row in rows]
        except UnicodeEncodeError:
            raise CodecError(f"a key of entity '{entity_name}' is not valid text") from None

    return write


def _key_start(prefix: str, entity_name: str, key_types: Sequence[DataType]) -> str:
    for what, text in (("key prefix", prefix), ("entity name", entity_name)):
        if not text or ":" in text:
            raise CodecError(f"a {what} is not empty and has no ':', found '{text}'")
    for kind in key_types:
        if kind.kind not in KEY_TYPES:
            raise CodecError(f"entity '{entity_name}': a key cannot be {kind.spark}")
    if not key_types:
        raise CodecError(f"entity '{entity_name}' has no key")
    return f"{prefix}:{entity_name}:"


def _key_texts(column: pa.Array, kind: DataType) -> pa.LargeStringArray:
    text = pa.large_string()
    match kind.kind:
        case "string":
            return pc.replace_substring(pc.replace_substring(column, "\\", "\\\\"), "|", "\\|")
        case "timestamp":
            return column.cast(pa.int64()).cast(text)
        case "decimal":
            return _decimal_texts(column, kind)
        case "binary":
            starts, data = _offsets_and_data(column)
            digits = np.array([list(f"{byte:02x}".encode()) for byte in range(256)], np.uint8)
            used = data[starts[0] : starts[-1]]
            return _binary((starts - starts[0]) * 2, digits[used]).cast(text)
        case _:
            return column.cast(text)


def _decimal_texts(column: pa.Decimal128Array, kind: DataType) -> pa.LargeStringArray:
    """Plain digits at the declared scale; Arrow's own cast turns to 1E-7 for small values."""
    whole = pa.Array.from_buffers(
        pa.decimal128(kind.precision, 0), len(column), column.buffers(), offset=column.offset
    ).cast(pa.large_string())
    if not kind.scale:
        return whole
    digits = pc.utf8_lpad(pc.utf8_ltrim(whole, "-"), kind.scale + 1, "0")
    sign = pc.if_else(pc.starts_with(whole, "-"), pa.scalar("-", pa.large_string()), pa.scalar("", pa.large_string()))
    before = pc.utf8_slice_codeunits(digits, 0, stop=-kind.scale)
    after = pc.utf8_slice_codeunits(digits, -kind.scale)
    nothing, point = pa.scalar("", pa.large_string()), pa.scalar(".", pa.large_string())
    return pc.binary_join_element_wise(sign, before, point, after, nothing)


def _key_text(value: object, kind: DataType) -> str:
    text: str | None = None
    match kind.kind, value:
        case "string", str():
            text = value.replace("\\", "\\\\").replace("|", "\\|")
        case "boolean", bool() | np.bool_():
            text = "true" if value else "false"
        case (("int" | "bigint"), int() | np.integer()) if not isinstance(value, bool):
            number = operator.index(value)
            limit = 1 << 8 * (TYPES[kind.kind].width or 0) - 1
            text = str(number) if -limit <= number < limit else None
        case "date", date() if not isinstance(value, datetime):
            text = value.isoformat()
        case "timestamp", datetime():
            # A naive time is UTC, everywhere in Tidemark.
            aware = value if value.tzinfo else value.replace(tzinfo=timezone.utc)
            text = str((aware - _EPOCH) // _MICROSECOND)
        case "decimal", Decimal():
            text = _decimal_text(value, kind)
        case "binary", bytes():
            text = value.hex()
    if text is None:
        raise CodecError(f"a key of type {kind.spark} cannot be this {type(value).__name__}")
    return text


def _decimal_text(value: Decimal, kind: DataType) -> str | None:
    """Plain digits at the declared scale, or None where it does not fit."""
    exact = Context(prec=kind.precision, traps=[Inexact, InvalidOperation])
    try:
        scaled = value.quantize(Decimal((0, (1,), -kind.scale)), context=exact)
    except (Inexact, InvalidOperation):
        return None
    # Arrow has no negative zero.
    return format(scaled or abs(scaled), "f") if scaled.is_finite() else None
