"""The online codec: golden bytes, round trips as properties, and bytes that must be refused."""

from __future__ import annotations

import functools
import math
import pickle
import struct
import tracemalloc
from collections.abc import Sequence
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from connectors import codec
from connectors.codec import (
    CodecError,
    ValueReader,
    ValueSchema,
    decode,
    encode_key,
    encode_keys,
    event_time_of,
    event_times,
    field_name,
    key_writer,
)
from feature_defs.data_types import DataType, parse

encode = functools.partial(codec.encode, definition=7)

ROOT = Path(__file__).resolve().parent.parent
UTC = timezone.utc
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
quickly = settings(deadline=None, max_examples=80)

ARROW = {
    "boolean": pa.bool_(),
    "int": pa.int32(),
    "bigint": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
    "date": pa.date32(),
    "timestamp": pa.timestamp("us", "UTC"),
    "string": pa.string(),
    "binary": pa.binary(),
}
NUMBERS: dict[str, st.SearchStrategy[Any]] = {
    "boolean": st.booleans(),
    "int": st.integers(-(2**31), 2**31 - 1),
    "bigint": st.integers(-(2**63), 2**63 - 1),
    "float": st.floats(width=32),
    "double": st.floats(),
}
SIMPLE = {
    **NUMBERS,
    "date": st.dates(),
    "timestamp": st.datetimes().map(lambda naive: naive.replace(fold=0, tzinfo=UTC)),
    "string": st.text(max_size=12),
    "binary": st.binary(max_size=12),
}
SHORT_WORDS = st.text(alphabet="|\\12a:é", max_size=4)


def arrow_type(text: str) -> pa.DataType:
    kind = parse(text)
    if kind.kind == "decimal":
        return pa.decimal128(kind.precision, kind.scale)
    if kind.kind == "map":
        return pa.map_(pa.string(), ARROW[kind.element.kind])
    return pa.list_(ARROW[kind.element.kind]) if kind.element else ARROW[text]


def by_key(value: dict[str, Any]) -> dict[str, Any]:
    """In the order of the keys' bytes, as a map is read back."""
    return dict(sorted(value.items(), key=lambda entry: entry[0].encode()))


def values_of(text: str) -> st.SearchStrategy[Any]:
    kind = parse(text)
    if kind.kind == "decimal":
        most = 10**kind.precision - 1
        return st.integers(-most, most).map(lambda unscaled: Decimal(f"{unscaled}E-{kind.scale}"))
    if kind.kind == "map":
        keys = st.text(max_size=3) | st.text(alphabet="ab", max_size=3)
        return st.dictionaries(keys, st.none() | SIMPLE[kind.element.kind], max_size=10).map(by_key)
    if kind.element:
        return st.lists(st.none() | SIMPLE[kind.element.kind], max_size=10)
    return SIMPLE[text]


TYPE_TEXTS = [
    *SIMPLE,
    *("decimal(1,0)", "decimal(12,2)", "decimal(38,38)", "decimal(38,0)"),
    *(f"array<{element}>" for element in [*NUMBERS, "string"]),
    *(f"map<string,{value}>" for value in [*NUMBERS, "string"]),
]


def table(types: Sequence[str], rows: Sequence[Sequence[Any]], times: Sequence[int]) -> pa.RecordBatch:
    """A batch with event_time and features f0, f1, ..."""
    event_time = pa.array(times, pa.int64()).cast(ARROW["timestamp"])
    columns = [pa.array([unsorted(row[i]) for row in rows], arrow_type(text)) for i, text in enumerate(types)]
    return pa.record_batch([event_time, *columns], ["event_time", *(f"f{i}" for i in range(len(types)))])


def unsorted(value: Any) -> Any:
    """A map as its entries in another order than the stored one."""
    return [*reversed(value.items())] if isinstance(value, dict) else value


def schema_of(types: Sequence[str]) -> ValueSchema:
    return ValueSchema.of([(f"f{i}", text) for i, text in enumerate(types)])


def packed(types: Sequence[str], *values: Any, event_time: int = 0) -> bytes:
    """One row as its packed value."""
    return encode(table(types, [values], [event_time]), schema_of(types))[0].as_py()


def encoded_column(column: pa.Array, text: str) -> list[Any]:
    """What a column of any Arrow type becomes after a round trip as a feature of this type."""
    schema = schema_of([text])
    batch = pa.record_batch([pa.array([EPOCH] * len(column), ARROW["timestamp"]), column], ["event_time", "f0"])
    return [decode(value, schema).values[0] for value in encode(batch, schema).to_pylist()]


# --- golden bytes -----------------------------------------------------------------------------------------------------

GOLDEN_SCHEMA = ValueSchema.of(
    [
        ("total_purchases", "bigint"),
        ("avg_purchase_value", "double"),
        ("customer_segment", "string"),
        ("is_member", "boolean"),
        ("last_amounts", "array<int>"),
    ]
)
GOLDEN = """
    02                       codec version
    654841d2                 schema fingerprint
    07000000                 definition number 7
    00202110d70d0600         event_time 2024-01-01 00:00:00 UTC
    02                       null bitmap: feature 1, avg_purchase_value
    01                       widths: total_purchases 2 bytes, both lengths 1
    0000000000000000         avg_purchase_value null
    01                       is_member true
    3801                     total_purchases 312
    04 11                    lengths of customer_segment and last_amounts
    676f6c64                 customer_segment: gold
    03000000 02              last_amounts: 3 elements, element 1 null
    0500000000000000ffffffff   5, null, -1
"""


def hexadecimal(text: str) -> bytes:
    """The hexadecimal words at the start of each line; two spaces begin the remark."""
    return b"".join(bytes.fromhex(line.strip().split("  ")[0]) for line in text.strip().splitlines())


def golden_bytes() -> bytes:
    return hexadecimal(GOLDEN)


def test_a_row_packs_to_its_golden_bytes() -> None:
    """What is stored today must be readable by every later release."""
    batch = pa.record_batch(
        {
            "last_amounts": pa.array([[5, None, -1]], pa.list_(pa.int32())),
            "is_member": pa.array([True]),
            "customer_segment": pa.array(["gold"]),
            "avg_purchase_value": pa.array([None], pa.float64()),
            "total_purchases": pa.array([312], pa.int64()),
            "event_time": pa.array([datetime(2024, 1, 1, tzinfo=UTC)], ARROW["timestamp"]),
            "another": pa.array([1]),
        }
    )
    assert encode(batch, GOLDEN_SCHEMA)[0].as_py().hex() == golden_bytes().hex()


def test_golden_bytes_decode_to_their_row() -> None:
    row = decode(golden_bytes(), GOLDEN_SCHEMA)
    assert (row.definition, row.event_time_us) == (7, 1_704_067_200_000_000)
    assert row.values == (312, None, "gold", True, [5, None, -1])


GOLDEN_MAP = """
    02000000                 2 entries
    03000000 627579          buy
    04000000 76696577        view
    00                       null bitmap of the values
    03000000 11000000        3, 17
"""


@pytest.mark.parametrize("entries", [[("view", 17), ("buy", 3)], [("buy", 3), ("view", 17)]])
def test_a_map_packs_to_its_golden_bytes_whatever_the_order_of_its_entries(entries: list[tuple[str, int]]) -> None:
    batch = pa.record_batch(
        {
            "event_time": pa.array([EPOCH], ARROW["timestamp"]),
            "f0": pa.array([entries], pa.map_(pa.string(), pa.int32())),
        }
    )
    schema = schema_of(["map<string,int>"])
    value = encode(batch, schema)[0].as_py()
    assert value[18:] == b"\x00\x1c" + hexadecimal(GOLDEN_MAP)
    assert decode(value, schema).values == ({"buy": 3, "view": 17},)


def test_the_document_shows_the_golden_bytes() -> None:
    """A worked example that no longer works is worse than none."""
    document = (ROOT / "docs" / "codec.md").read_text(encoding="utf-8")
    assert GOLDEN.strip() in document
    assert GOLDEN_MAP.strip() in document
    assert f"`{GOLDEN_SCHEMA.fingerprint.to_bytes(4, 'little').hex()}`" in document


@pytest.mark.parametrize(
    ("text", "value", "expected"),
    [
        ("int", -2, "00 fe"),
        ("int", 127, "00 7f"),
        ("int", 128, "01 8000"),
        ("int", -(2**31), "02 00000080"),
        ("bigint", -(2**15), "01 0080"),
        ("bigint", 2**31, "03 0000008000000000"),
        ("float", 1.5, "0000c03f"),
        ("double", -0.0, "0000000000000080"),
        ("date", date(1969, 12, 31), "00 ff"),
        ("date", date(2026, 1, 1), "01 e64f"),
        ("timestamp", datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC), "40420f0000000000"),
        ("decimal(12,2)", Decimal("-0.01"), "00 ff"),
        ("decimal(18,2)", Decimal("-2.56"), "01 00ff"),
        ("decimal(19,2)", Decimal("2.56"), "0001" + "00" * 14),
        ("string", "é", "00 02 c3a9"),
        ("string", "a" * 255, "00 ff" + "61" * 255),
        ("string", "a" * 256, "01 0001" + "61" * 256),
        ("binary", b"\x00", "00 01 00"),
        ("string", "", "00 00"),
        ("array<bigint>", [], "00 04 00000000"),
        ("array<boolean>", [True, None, False], "00 08 0300000002010000"),
        ("array<string>", ["a", None], "00 0e 020000000201000000" + "61" + "00000000"),
        ("map<string,bigint>", {}, "00 04 00000000"),
        ("map<string,boolean>", {"": None, "é": True}, "00 11 02000000 00000000 02000000c3a9 01 0001"),
        ("map<string,string>", {"a": ""}, "00 0e 01000000 0100000061 00 00000000"),
    ],
)
def test_each_type_has_its_golden_bytes(text: str, value: Any, expected: str) -> None:
    """After 17 bytes of header and one of null bitmap."""
    assert packed([text], value)[18:] == bytes.fromhex(expected)


def test_each_number_of_a_row_has_the_width_it_needs() -> None:
    """Two bits each, from the lowest of the first byte on."""
    types = ["bigint", "string", "int", "bigint", "double", "decimal(5,1)", "date", "binary"]
    row = (1, "x" * 300, 300, 2**40, 0.0, Decimal("-1.0"), date(2200, 1, 1), b"")
    value = packed(types, *row)
    numbers = "01 2c01 0000000000010000 f6 26480100 2c01 00"
    assert value[18:] == bytes.fromhex("34 06" + "00" * 8 + numbers) + b"x" * 300
    assert decode(value, schema_of(types)).values == row


def test_a_number_in_more_bytes_than_it_needs_is_read() -> None:
    """The widest is what a writer may use that knows no other."""
    value = packed(["bigint", "string"], -5, "é")[:18]
    wide = value + bytes.fromhex("0b fbffffffffffffff 02000000 c3a9")
    schema = schema_of(["bigint", "string"])
    assert decode(wide, schema).values == (-5, "é")
    reader = ValueReader(schema, schema.names)
    assert reader.row(wide)[1] == [-5, "é"]
    assert reader.columns([wide, packed(["bigint", "string"], 300, "")])[1] == [[-5, 300], ["é", ""]]


@pytest.mark.parametrize("text", TYPE_TEXTS)
def test_a_null_sets_its_bit_and_writes_zeros_or_length_zero(text: str) -> None:
    fixed = {"boolean": 1, "float": 4, "double": 8, "timestamp": 8, "decimal(38,38)": 16, "decimal(38,0)": 16}
    assert packed([text], None)[17:] == b"\x01" + bytes(fixed.get(text, 2))  # the width of its number and a 0


def test_the_fingerprint_knows_names_types_and_order() -> None:
    schemas = [
        [("a", "int"), ("b", "bigint")],
        [("b", "bigint"), ("a", "int")],
        [("a", "bigint"), ("b", "bigint")],
        [("a", "int"), ("c", "bigint")],
        [("a", "int")],
        [("a", "decimal(12,2)")],
        [("a", "decimal(12,3)")],
    ]
    assert len({ValueSchema.of(pairs).fingerprint for pairs in schemas}) == len(schemas)
    assert ValueSchema.of([("a", "decimal( 12 , 2 )")]) == ValueSchema.of(schemas[-2])


def test_a_used_schema_still_pickles() -> None:
    """Spark sends it to executors."""
    decode(golden_bytes(), GOLDEN_SCHEMA)
    again = pickle.loads(pickle.dumps(GOLDEN_SCHEMA))
    assert again == GOLDEN_SCHEMA
    assert decode(golden_bytes(), again) == decode(golden_bytes(), GOLDEN_SCHEMA)


# --- round trips ------------------------------------------------------------------------------------------------------


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[str], list[list[Any]], list[int]]:
    types = draw(st.lists(st.sampled_from(TYPE_TEXTS), min_size=1, max_size=12))
    row = st.tuples(*(st.none() | values_of(text) for text in types)).map(list)
    rows = draw(st.lists(row, max_size=6))
    return types, rows, draw(st.lists(NUMBERS["bigint"], min_size=len(rows), max_size=len(rows)))


@quickly
@given(batches(), st.integers(0, 3), st.integers(0, 6), st.integers(0, 2**32 - 1))
def test_every_row_of_every_slice_comes_back(batch: Any, offset: int, length: int, definition: int) -> None:
    """Compared as text, which tells -0.0 from 0.0, finds NaN equal to NaN and shows a decimal's scale."""
    types, rows, times = batch
    schema = schema_of(types)
    values = encode(table(types, rows, times).slice(offset, length), schema, definition=definition)
    decoded = [decode(value, schema) for value in values.to_pylist()]
    end = offset + length
    assert [repr(list(row.values)) for row in decoded] == [repr(row) for row in rows[offset:end]]
    assert [row.event_time_us for row in decoded] == times[offset:end]
    assert {row.definition for row in decoded} <= {definition}
    assert [event_time_of(value) for value in values.to_pylist()] == times[offset:end]
    assert event_times(values).tolist() == times[offset:end]
    assert event_times(values.slice(1)).tolist() == times[offset:end][1:]


@quickly
@given(batches())
def test_a_table_of_many_chunks_packs_as_one_batch(batch: Any) -> None:
    types, rows, times = batch
    whole = table(types, rows, times)
    chunked = pa.Table.from_batches([whole.slice(i, 1) for i in range(whole.num_rows)], whole.schema)
    assert encode(chunked, schema_of(types)).to_pylist() == encode(whole, schema_of(types)).to_pylist()


@quickly
@given(batches(), st.data())
def test_changed_bytes_are_refused_or_are_another_valid_row(batch: Any, data: st.DataObject) -> None:
    """But for the width of its numbers a row has one encoding: what decodes must encode to the same bytes, or fewer."""
    types, rows, times = batch
    assume(rows)
    schema = schema_of(types)
    changed = bytearray(encode(table(types, rows, times), schema)[0].as_py())
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(5, len(changed) - 1))] = data.draw(st.integers(0, 255))
    try:
        row = decode(bytes(changed), schema)
    except CodecError:
        return
    # A 32-bit NaN has many bit patterns, and Python keeps only its 64-bit ones.
    assume("nan" not in repr(row.values))
    again = encode(table(types, [row.values], [row.event_time_us]), schema, definition=row.definition)
    assert again[0].as_py() == bytes(changed) or len(again[0].as_py()) < len(changed)
    assert decode(again[0].as_py(), schema) == row


@quickly
@given(batches(), st.binary(min_size=1, max_size=5))
def test_a_cut_or_grown_value_is_refused(batch: Any, more: bytes) -> None:
    types, rows, times = batch
    schema = schema_of(types)
    for value in encode(table(types, rows, times), schema).to_pylist():
        for wrong in [*(value[:end] for end in range(len(value))), value + more]:
            with pytest.raises(CodecError):
                decode(wrong, schema)


# --- the prepared reader, held against decode -------------------------------------------------------------------------


@quickly
@given(batches(), st.data())
def test_a_reader_gives_what_decode_gives(batch: Any, data: st.DataObject) -> None:
    """Of any of the features in any order, one by one and as columns; a feature that is not asked for is null."""
    types, rows, times = batch
    schema = schema_of(types)
    values = encode(table(types, rows, times), schema).to_pylist()
    chosen = data.draw(st.lists(st.sampled_from([*schema.names, None]), min_size=1, max_size=6))
    reader = ValueReader(schema, chosen)
    decoded = [decode(value, schema) for value in values]
    expected = [[None if name is None else row.values[schema.names.index(name)] for name in chosen] for row in decoded]
    assert [reader.row(value)[0] for value in values] == times
    assert repr([reader.row(value)[1] for value in values]) == repr(expected)
    if values:
        found, columns = reader.columns(values)
        assert found == times
        assert repr([list(row) for row in zip(*columns, strict=True)]) == repr(expected)


def refused(read: Any) -> bool:
    try:
        read()
    except CodecError:
        return True
    return False


@quickly
@given(batches(), st.data())
def test_a_reader_refuses_what_decode_refuses(batch: Any, data: st.DataObject) -> None:
    """Changed, cut and grown values, also among good ones."""
    types, rows, times = batch
    assume(rows)
    schema = schema_of(types)
    good = encode(table(types, rows, times), schema).to_pylist()
    wrong = bytearray(good[0])
    for _ in range(data.draw(st.integers(1, 3))):
        wrong[data.draw(st.integers(17, len(wrong) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(5, len(wrong)))
    grown = bytes(wrong) + data.draw(st.binary(max_size=3))
    reader = ValueReader(schema, schema.names)
    for value in (bytes(wrong), bytes(wrong[:end]), good[0][:end], grown):
        expected = refused(lambda value=value: decode(value, schema))
        assert refused(lambda value=value: reader.row(value)) == expected
        assert refused(lambda value=value: reader.columns([*good, value])) == expected


def test_a_reader_of_columns_refuses_values_of_two_schemas() -> None:
    """Values that differ in nothing but their heads."""
    values = [packed(["bigint"], 1), packed(["int"], 1)]
    assert values[0][5:] == values[1][5:]
    assert refused(lambda: ValueReader(schema_of(["bigint"]), ["f0"]).columns(values))


def test_a_reader_of_more_than_64_features_knows_their_null_bits() -> None:
    types = ["boolean", "string"] * 35
    row = [None if i % 9 == 0 else i % 4 == 0 if i % 2 == 0 else str(i) for i in range(70)]
    reader = ValueReader(schema_of(types), schema_of(types).names)
    value = packed(types, *row)
    assert reader.row(value)[1] == row
    assert [column[1] for column in reader.columns([value, value])[1]] == row


@quickly
@given(batches(), st.data())
def test_a_reader_that_keeps_one_layout_reads_and_refuses_the_same(batch: Any, data: st.DataObject) -> None:
    """As one of a wide group, of which hardly two values have numbers of the same widths."""
    types, rows, times = batch
    assume(rows)
    schema = schema_of(types)
    good = encode(table(types, rows, times), schema).to_pylist()
    wrong = bytearray(good[0])
    wrong[data.draw(st.integers(17, len(wrong) - 1))] = data.draw(st.integers(0, 255))
    kept = ValueReader(schema, schema.names)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec, "_LAID_OUT", 0)
        keeps_one = ValueReader(schema, schema.names)
    assert repr(keeps_one.columns(good)) == repr(kept.columns(good))
    for value in (*good, bytes(wrong), good[0][: data.draw(st.integers(5, len(good[0])))]):
        expected = refused(lambda value=value: kept.row(value))
        assert refused(lambda value=value: keeps_one.row(value)) == expected
        assert refused(lambda value=value: keeps_one.columns([*good, value])) == expected
        if not expected:
            assert repr(keeps_one.row(value)) == repr(kept.row(value))


def test_a_reader_of_a_wide_group_makes_few_layouts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every value of it has other widths, and to make a layout takes longer than to read by four numbers."""
    types, count = ["bigint"] * 45 + ["string"] * 2, 3000
    draw = np.random.default_rng(1)
    numbers = draw.integers(0, 1 << 62, (count, 45)) >> draw.integers(0, 62, (count, 45))
    rows = [[*row, "a" * (row[0] % 300), None] for row in numbers.tolist()]
    schema = schema_of(types)
    values = encode(table(types, rows, range(count)), schema).to_pylist()
    made: list[bytes] = []
    layout = ValueSchema.layout
    monkeypatch.setattr(ValueSchema, "layout", lambda self, widths: made.append(widths) or layout(self, widths))
    reader = ValueReader(schema, schema.names)
    assert [reader.row(value) for value in values] == list(zip(range(count), rows, strict=True))
    assert reader.columns(values) == ([*range(count)], [list(column) for column in zip(*rows, strict=True)])
    assert len(made) == len(set(made)) < count / 2


def test_a_string_of_ten_megabytes_comes_back() -> None:
    long = "ü" * 5_000_000
    types = ["string", "binary", "array<string>", "map<string,string>"]
    values = (long, long.encode(), [long, "", None], {long: None, "": long})
    assert decode(packed(types, *values), schema_of(types)).values == values


def test_a_map_of_many_entries_comes_back() -> None:
    many = {f"{'key' * (number % 3)}{number}": None if number % 7 == 0 else number for number in range(100_000)}
    row = decode(packed(["map<string,bigint>", "int"], many, 5), schema_of(["map<string,bigint>", "int"]))
    assert row.values == (many, 5)
    assert [*row.values[0]] == [*by_key(many)]


@quickly
@given(st.lists(st.none() | values_of("map<string,bigint>"), max_size=6), st.randoms(use_true_random=False))
def test_equal_maps_have_equal_bytes(maps: list[dict[str, Any] | None], draw: Any) -> None:
    """Sorted, reversed or shuffled, for a load that runs again must write what is there."""
    schema, kind = schema_of(["map<string,bigint>"]), arrow_type("map<string,bigint>")
    shuffled = [value and draw.sample([*value.items()], len(value)) for value in maps]
    in_order = [value and [*value.items()] for value in maps]
    times = pa.array([EPOCH] * len(maps), ARROW["timestamp"])
    found = [
        encode(pa.record_batch([times, pa.array(column, kind)], ["event_time", "f0"]), schema).to_pylist()
        for column in (in_order, shuffled, [unsorted(value) for value in maps])
    ]
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("definition", [-1, 2**32])
def test_a_definition_number_that_does_not_fit_is_refused(definition: int) -> None:
    """Wrapped around, it would lose against every value that is stored."""
    with pytest.raises(CodecError, match="definition number"):
        encode(table(["int"], [[1]], [0]), schema_of(["int"]), definition=definition)


def test_rows_of_a_wide_group_pack_as_each_alone() -> None:
    """Rows that are packed apart, whose widest numbers differ."""
    columns = 500
    count = 2 * codec._TOGETHER // columns + 3
    narrow = count - count // 3
    numbers = np.arange(count * columns).reshape(count, columns) % 300
    numbers[narrow:] <<= 50
    batch = pa.record_batch(
        [pa.array(range(count), pa.int64()).cast(ARROW["timestamp"]), *map(pa.array, numbers.T)],
        ["event_time", *(f"f{i}" for i in range(columns))],
    )
    schema = schema_of(["bigint"] * columns)
    values = encode(batch, schema)
    for row in (0, narrow - 1, narrow, count - 1, *range(0, count, 97)):
        assert values[row] == encode(batch.slice(row, 1), schema)[0]
        assert decode(values[row].as_py(), schema).values == tuple(numbers[row].tolist())


def test_packing_wide_numbers_takes_little_more_memory_than_they() -> None:
    columns, count = 500, 4000
    column = pa.array(np.full(count, 1 << 62))
    batch = pa.record_batch(
        [column.cast(ARROW["timestamp"]), *[column] * columns], ["event_time", *(f"f{i}" for i in range(columns))]
    )
    schema = schema_of(["bigint"] * columns)
    tracemalloc.start()
    encode(batch, schema)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 5 * 8 * columns * count


def test_a_nan_keeps_its_bits() -> None:
    """A round trip must not make two stores differ that hold the same value."""
    bits = struct.pack("<d", math.nan)[:-1] + b"\xff"
    (nan,) = struct.unpack("<d", bits)
    assert packed(["double"], nan)[18:] == bits


def test_no_rows_give_no_values() -> None:
    empty = table(TYPE_TEXTS, [], [])
    schema = schema_of(TYPE_TEXTS)
    assert encode(empty, schema).to_pylist() == []
    assert encode(pa.Table.from_batches([], empty.schema), schema).to_pylist() == []


def test_more_than_64_features_have_their_own_null_bits() -> None:
    types = ["boolean"] * 70
    row = [None if i % 9 == 0 else i % 2 == 0 for i in range(70)]
    assert decode(packed(types, *row), schema_of(types)).values == tuple(row)


# --- Arrow columns as they come ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "text", "expected"),
    [
        (pa.array(["a", None, "a"]).dictionary_encode(), "string", ["a", None, "a"]),
        (pa.array(["a", None], pa.large_string()), "string", ["a", None]),
        (pa.array(["a", None, "longer than twelve"], pa.string_view()), "string", ["a", None, "longer than twelve"]),
        (pa.array([b"a", None], pa.binary_view()), "binary", [b"a", None]),
        (pa.array([b"ab", None], pa.binary(2)), "binary", [b"ab", None]),
        (pa.array([None, None]), "array<int>", [None, None]),
        (pa.array([1, None], pa.int16()), "bigint", [1, None]),
        (pa.array([datetime(2024, 1, 1)], pa.timestamp("ns")), "timestamp", [datetime(2024, 1, 1, tzinfo=UTC)]),  # noqa: DTZ001
        (pa.array([EPOCH], pa.timestamp("ms", "Asia/Tokyo")), "timestamp", [EPOCH]),
        (pa.array([Decimal("1.5")], pa.decimal128(3, 1)), "decimal(12,2)", [Decimal("1.50")]),
        (pa.array([[1.0, 2.0], None], pa.list_(pa.float32(), 2)), "array<float>", [[1.0, 2.0], None]),
        (pa.array([None, None]), "map<string,int>", [None, None]),
        (pa.array([[("a", 1)], None], pa.map_(pa.large_string(), pa.int16())), "map<string,bigint>", [{"a": 1}, None]),
        (pa.array([[("a", b"b")]], pa.map_(pa.binary(), pa.binary())), "map<string,string>", [{"a": "b"}]),
        (pa.array([[("a", None)]], pa.map_(pa.string(), pa.null())), "map<string,int>", [{"a": None}]),
        (
            pa.array(
                [[("b", 1), ("a", 2)]], pa.map_(pa.field("k", pa.string(), nullable=False), pa.field("v", pa.int64()))
            ),
            "map<string,bigint>",
            [{"a": 2, "b": 1}],
        ),
    ],
)
def test_other_arrow_types_are_cast(column: pa.Array, text: str, expected: list[Any]) -> None:
    assert encoded_column(column, text) == expected


@pytest.mark.parametrize("text", ["boolean", "int", "bigint", "double", "date", "timestamp", "decimal(12,2)"])
def test_what_lies_under_a_null_is_not_stored(text: str) -> None:
    """Arrow leaves the bytes of a null undefined; a stored value has one encoding."""
    leftovers = pa.Array.from_buffers(arrow_type(text), 1, [pa.py_buffer(b"\0"), pa.py_buffer(b"\x01" * 16)], 1)
    batch = pa.record_batch([pa.array([EPOCH], ARROW["timestamp"]), leftovers], ["event_time", "f0"])
    assert encode(batch, schema_of([text]))[0].as_py() == packed([text], None)


def test_elements_behind_a_null_array_are_not_stored() -> None:
    """Arrow allows a null to point at leftovers."""
    child = pa.array(["secret", "a", None])
    column = pa.ListArray.from_arrays(pa.array([0, 1, 3]), child, mask=pa.array([True, False]))
    assert encoded_column(column, "array<string>") == [None, ["a", None]]
    assert encoded_column(column.slice(1), "array<string>") == [["a", None]]


def test_entries_behind_a_null_map_are_not_stored() -> None:
    """Nor looked at: these have no order and a key twice."""
    keys, values = pa.array(["s", "s", "b", "a"]), pa.array([1, 2, 3, None])
    column = pa.MapArray.from_arrays(pa.array([0, 2, 4, 4]), keys, values, mask=pa.array([True, False, False]))
    assert encoded_column(column, "map<string,bigint>") == [None, {"a": None, "b": 3}, {}]
    assert encoded_column(column.slice(1), "map<string,bigint>") == [{"a": None, "b": 3}, {}]
    assert encoded_column(column.slice(2), "map<string,bigint>") == [{}]


@pytest.mark.parametrize(
    ("column", "text"),
    [
        (pa.array(["12"]), "bigint"),
        (pa.array([12]), "string"),
        (pa.array([2**40]), "int"),
        (pa.array([1.5]), "bigint"),
        (pa.array([b"\xff"]), "string"),
        (pa.array([Decimal("123.45")]), "decimal(4,2)"),
        (pa.array([Decimal("1.234")]), "decimal(12,2)"),
        (pa.array([1], pa.int64()), "array<bigint>"),
        (pa.array([[1], None], pa.list_view(pa.int64())), "array<bigint>"),
        (pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())), "array<bigint>"),
        (pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())), "map<string,string>"),
        (pa.array([[("a", "1")]], pa.map_(pa.string(), pa.string())), "map<string,bigint>"),
        (pa.array([[(1, 1)]], pa.map_(pa.int64(), pa.int64())), "map<string,bigint>"),
        (pa.array([[("a", 2**40)]], pa.map_(pa.string(), pa.int64())), "map<string,int>"),
        (pa.array([[(b"\xff", 1)]], pa.map_(pa.binary(), pa.int64())), "map<string,bigint>"),
        (pa.array([[("a", 2**40), ("a", 1)]], pa.map_(pa.string(), pa.int64())), "map<string,bigint>"),
        (pa.array([[("b", 1), ("a", 2), ("b", 3)]], pa.map_(pa.string(), pa.int64())), "map<string,bigint>"),
        (pa.array([[{"key": "a", "value": 1}]]), "map<string,bigint>"),
        (pa.array([{"a": 1}]), "map<string,bigint>"),
        (pa.array([4_000_000], pa.int32()).cast(pa.date32()), "date"),
        (pa.array([2**60], pa.int64()).cast(pa.timestamp("us")), "timestamp"),
    ],
)
def test_a_column_that_does_not_fit_is_refused_without_its_values(column: pa.Array, text: str) -> None:
    """What Arrow says of a failed cast quotes the value."""
    with pytest.raises(CodecError, match="column 'f0'") as caught:
        encoded_column(column, text)
    assert caught.value.__cause__ is None
    assert not any(value in str(caught.value) for value in ["123.45", "1.234", str(2**40)])


NOT_TEXT = pa.array([b"secret \xff", b"a", None]).view(pa.string())  # as Spark's `cast(binary as string)` gives


@pytest.mark.parametrize(
    ("column", "text"),
    [
        (NOT_TEXT, "string"),
        (NOT_TEXT.cast(pa.large_string()), "string"),
        (NOT_TEXT.dictionary_encode(), "string"),
        (pa.array([b"\xed\xa0\x80"]).view(pa.string()), "string"),
        (pa.ListArray.from_arrays([0, 1, 3], NOT_TEXT), "array<string>"),
        (pa.MapArray.from_arrays([0, 1, 2], NOT_TEXT.slice(0, 2), pa.array([1, 2])), "map<string,int>"),
        (pa.MapArray.from_arrays([0, 1, 2], pa.array(["a", "b", "c"]), NOT_TEXT), "map<string,string>"),
    ],
)
def test_text_that_is_not_utf8_is_refused_without_it(column: pa.Array, text: str) -> None:
    """Stored, it would make the whole row unreadable."""
    with pytest.raises(CodecError, match="column 'f0' holds text that is not UTF-8\nHint: ") as caught:
        encoded_column(column, text)
    assert caught.value.__cause__ is None
    assert "secret" not in str(caught.value)
    assert len(encoded_column(column.slice(1), text)) == len(column) - 1


def test_a_key_that_is_not_utf8_is_refused() -> None:
    batch, names = pa.record_batch([NOT_TEXT.slice(0, 2)], ["id"]), ["id"]
    with pytest.raises(CodecError, match="column 'id' holds text that is not UTF-8"):
        encode_keys(batch, "customer", key_names=names, key_types=[DataType("string")], prefix="tm")
    keys = encode_keys(batch.slice(1), "customer", key_names=names, key_types=[DataType("string")], prefix="tm")
    assert keys.to_pylist() == [b"tm:customer:a"]


def test_text_behind_nulls_may_be_anything() -> None:
    """It is not stored."""
    hidden = pa.StringArray.from_buffers(2, NOT_TEXT.buffers()[1], NOT_TEXT.buffers()[2], pa.py_buffer(b"\x02"), 1)
    assert encoded_column(hidden, "string") == [None, "a"]
    column = pa.ListArray.from_arrays(pa.array([0, 1, 2]), NOT_TEXT, mask=pa.array([True, False]))
    assert encoded_column(column, "array<string>") == [None, ["a"]]


def test_a_missing_a_doubled_and_a_null_column_are_named() -> None:
    time = pa.array([EPOCH], ARROW["timestamp"])
    schema = schema_of(["int"])
    with pytest.raises(CodecError, match=r"'f0' is there 0 times.*\(event_time, g\)"):
        encode(pa.record_batch([time, pa.array([1])], ["event_time", "g"]), schema)
    with pytest.raises(CodecError, match="'f0' is there 2 times"):
        encode(pa.record_batch([time, pa.array([1]), pa.array([1])], ["event_time", "f0", "f0"]), schema)
    with pytest.raises(CodecError, match="'event_time' has 1 null"):
        encode(pa.record_batch([pa.nulls(1, time.type), pa.array([1])], ["event_time", "f0"]), schema)


@pytest.mark.parametrize(
    "features",
    [
        [("a", "struct<b:int>")],
        [("a", "array<date>")],
        [("a", "map<int,int>")],
        [("a", "map<string,date>")],
        [("a", "map<string,array<int>>")],
        [("a", "smallint")],
        [("a", "int"), ("a", "int")],
        [("", "int")],
        [("a int\nb", "int")],
        [("event_time", "int")],
    ],
)
def test_a_schema_that_cannot_be_packed_is_refused(features: list[tuple[str, str]]) -> None:
    with pytest.raises(CodecError, match="feature"):
        ValueSchema.of(features)


# --- bytes that are refused -------------------------------------------------------------------------------------------


def test_another_codec_version_is_refused() -> None:
    wrong = b"\x01" + golden_bytes()[1:]
    with pytest.raises(CodecError, match="version 1"):
        decode(wrong, GOLDEN_SCHEMA)
    with pytest.raises(CodecError, match="version 1"):
        event_time_of(wrong)
    with pytest.raises(CodecError, match="version"):
        event_times(pa.array([golden_bytes(), wrong]))


def test_a_removal_is_a_header_and_no_value() -> None:
    """17 bytes: version, no schema, definition, event_time."""
    times = [-1, 2**63 - 1]
    found = codec.removal(2**32 - 1, np.array(times))
    assert found.to_pylist()[0] == b"\x02" + bytes(4) + b"\xff" * 12
    assert event_times(found).tolist() == times
    assert len(codec.removal(1, np.array([], np.int64))) == 0
    for definition in (-1, 2**32):
        with pytest.raises(CodecError, match="definition number"):
            codec.removal(definition, np.array(times))


def test_a_removal_is_refused_as_a_value() -> None:
    [removal] = codec.removal(7, np.array([0])).to_pylist()
    with pytest.raises(CodecError, match="removal"):
        decode(removal[:1] + GOLDEN_SCHEMA.fingerprint.to_bytes(4, "little") + removal[5:], GOLDEN_SCHEMA)
    with pytest.raises(CodecError, match="removal"):
        decode(removal, GOLDEN_SCHEMA)


def test_a_schema_without_features_is_refused() -> None:
    """Its values would have no null bitmap, as removals have none."""
    with pytest.raises(CodecError, match="at least one feature"):
        ValueSchema.of([])


def test_a_value_of_another_schema_is_refused() -> None:
    with pytest.raises(CodecError, match="another schema"):
        decode(packed(["int"], 1), schema_of(["float"]))


@pytest.mark.parametrize(
    ("text", "tail", "problem"),
    [
        ("int", "02 00 00", "beyond the last feature"),
        ("int", "00 04 00", "the widths of its numbers do not fit"),
        ("int", "00", "the widths of its numbers do not fit"),
        ("int", "01 00 01", "a null int has a value"),
        ("decimal(1,0)", "00 00 0a", "too many digits"),
        ("decimal(19,0)", "00" + "ff" * 15 + "7f", "too many digits"),
        ("decimal(19,0)", "01" + "01" * 16, "a null decimal has a value"),
        ("float", "01 00000080", "a null float has a value"),
        ("double", "01 0000000000000080", "a null double has a value"),
        ("array<float>", "00 00 09 01000000 01 00000080", "a null float has a value"),
        ("boolean", "00 02", "neither 0 nor 1"),
        ("date", "00 02 ffffff7f", "damaged"),
        ("timestamp", "00 ffffffffffffff7f", "damaged"),
        ("string", "00 00 01 ff", "damaged"),
        ("string", "01 00 01 61", "a null string has a value"),
        ("string", "00 02 ffffffff 61", "expected 4294967318 bytes, found 24"),
        ("string", "00 03 ffffffffffffffff 61", "expected 18446744073709551642 bytes, found 28"),
        ("string", "01 00 10" + "00" * 16, "a null string has a value"),
        ("array<int>", "00 00 04 ffffffff", "cannot have 4294967295 elements"),
        ("array<int>", "00 00 00", "damaged"),
        ("array<int>", "00 00 09 01000000 02 00000000", "beyond its last element"),
        ("array<int>", "00 00 09 01000000 01 07000000", "a null int has a value"),
        ("array<int>", "00 00 0a 01000000 00 0700000000", "found 10"),
        ("array<string>", "00 00 09 01000000 00 01000000", "within a length"),
        ("map<string,int>", "00 00 04 ffffffff", "cannot have 4294967295 elements"),
        ("map<string,int>", "00 00 00", "damaged"),
        ("map<string,int>", "00 00 08 01000000 00000000", "cannot have 1 elements"),
        ("map<string,int>", "00 00 08 01000000 01000000", "within a length"),
        ("map<string,int>", "00 00 0e 01000000 01000000 61 02 00000000", "beyond its last element"),
        ("map<string,int>", "00 00 0e 01000000 01000000 61 01 07000000", "a null int has a value"),
        ("map<string,int>", "00 00 0f 01000000 01000000 61 00 0700000000", "found 15"),
        ("map<string,int>", "00 00 0e 01000000 01000000 ff 00 07000000", "damaged"),
        ("map<string,boolean>", "00 00 11 02000000 01000000 62 01000000 61 00 0000", "not in ascending order"),
        ("map<string,boolean>", "00 00 11 02000000 01000000 61 01000000 61 00 0000", "not in ascending order"),
        ("map<string,int>", "01 00 04 00000000", "a null map has a value"),
    ],
)
def test_damage_is_named(text: str, tail: str, problem: str) -> None:
    header = packed([text], None)[:17]
    with pytest.raises(CodecError, match=problem):
        decode(header + bytes.fromhex(tail), schema_of([text]))


def test_event_times_refuse_nulls_and_foreign_bytes() -> None:
    for foreign in [None, b"", b"\x01short", b"text of some length"]:
        with pytest.raises(CodecError):
            event_times(pa.array([golden_bytes(), foreign], pa.binary()))


# --- keys -------------------------------------------------------------------------------------------------------------


def one_key(*values: object, types: Sequence[str]) -> bytes:
    return encode_key(values, "customer", key_types=[parse(text) for text in types], prefix="tm")


@pytest.mark.parametrize(
    ("values", "types", "expected"),
    [
        (["c-17"], ["string"], b"tm:customer:c-17"),
        (["1", "23"], ["string", "string"], b"tm:customer:1|23"),
        (["12", "3"], ["string", "string"], b"tm:customer:12|3"),
        (["1|2", "3"], ["string", "string"], rb"tm:customer:1\|2|3"),
        (["1\\", "2"], ["string", "string"], b"tm:customer:1\\\\|2"),
        (["", ""], ["string", "string"], b"tm:customer:|"),
        ([-5, 2**62], ["int", "bigint"], b"tm:customer:-5|4611686018427387904"),
        ([True, False], ["boolean", "boolean"], b"tm:customer:true|false"),
        ([date(2024, 2, 29)], ["date"], b"tm:customer:2024-02-29"),
        ([EPOCH + timedelta(microseconds=5)], ["timestamp"], b"tm:customer:5"),
        ([datetime(1970, 1, 1)], ["timestamp"], b"tm:customer:0"),  # noqa: DTZ001
        ([Decimal("1E-10")], ["decimal(20,10)"], b"tm:customer:0.0000000001"),
        ([Decimal("-0.5")], ["decimal(12,2)"], b"tm:customer:-0.50"),
        ([Decimal("-0")], ["decimal(12,2)"], b"tm:customer:0.00"),
        ([b"\x00\xff"], ["binary"], b"tm:customer:00ff"),
        (["naïve"], ["string"], "tm:customer:naïve".encode()),
    ],
)
def test_a_key_is_text_that_a_person_can_type(values: list[object], types: list[str], expected: bytes) -> None:
    assert one_key(*values, types=types) == expected


KEY_TYPES = ["string", "bigint", "int", "boolean", "date", "timestamp", "decimal(38,10)", "decimal(9,0)", "binary"]


@st.composite
def key_rows(draw: st.DrawFn) -> tuple[list[str], list[tuple[Any, ...]]]:
    types = draw(st.lists(st.sampled_from(KEY_TYPES), min_size=1, max_size=3))
    columns = [SHORT_WORDS if text == "string" else values_of(text) for text in types]
    return types, draw(st.lists(st.tuples(*columns), max_size=6))


@quickly
@given(key_rows(), st.integers(0, 2))
def test_keys_of_a_batch_are_the_keys_of_each_row(drawn: Any, offset: int) -> None:
    types, rows = drawn
    names = [f"k{i}" for i in range(len(types))]
    columns = [pa.array([row[i] for row in rows], arrow_type(text)) for i, text in enumerate(types)]
    batch = pa.record_batch(columns, names).slice(offset)
    kinds = [parse(text) for text in types]
    for whole in (batch, pa.Table.from_batches([batch])):
        keys = encode_keys(whole, "customer", key_names=names, key_types=kinds, prefix="tm").to_pylist()
        assert keys == [one_key(*row, types=types) for row in rows[offset:]]
    write = key_writer("customer", key_types=kinds, prefix="tm")
    together = [[row[i] for row in rows] for i in range(len(types))]
    assert write(together) == [one_key(*row, types=types) for row in rows]
    assert write([[*column, None] for column in together]) == [*write(together), None]


@quickly
@given(st.lists(st.tuples(SHORT_WORDS, SHORT_WORDS, SHORT_WORDS), max_size=30, unique=True))
def test_different_entities_have_different_keys(rows: list[tuple[str, str, str]]) -> None:
    assert len({one_key(*row, types=["string"] * 3) for row in rows}) == len(rows)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (5, "string"),
        ("5", "bigint"),
        (True, "bigint"),
        (1, "boolean"),
        (2**31, "int"),
        (datetime(2024, 1, 1, tzinfo=UTC), "date"),
        (date(2024, 1, 1), "timestamp"),
        (Decimal("0.001"), "decimal(12,2)"),
        (Decimal(12345), "decimal(4,2)"),
        (Decimal("NaN"), "decimal(4,2)"),
        (1.5, "decimal(12,2)"),
        ("a", "binary"),
        (None, "string"),
        ("\ud800", "string"),
        (1.0, "double"),
    ],
)
def test_a_key_of_the_wrong_type_is_refused(value: object, text: str) -> None:
    """Looked up as it is, it would silently find nobody."""
    with pytest.raises(CodecError):
        one_key(value, types=[text])


def test_a_key_needs_an_entity_a_prefix_and_every_value() -> None:
    string = parse("string")
    for entity, prefix, values, types in [
        ("", "tm", ["a"], [string]),
        ("a:b", "tm", ["a"], [string]),
        ("a", "", ["a"], [string]),
        ("a", "t:m", ["a"], [string]),
        ("a", "tm", ["a", "b"], [string]),
        ("a", "tm", [], []),
    ]:
        with pytest.raises(CodecError):
            encode_key(values, entity, key_types=types, prefix=prefix)


def test_a_null_key_is_counted_and_refused() -> None:
    batch = pa.record_batch({"id": pa.array(["a", None])})
    with pytest.raises(CodecError, match=r"key 'id' has 1 null"):
        encode_keys(batch, "customer", key_names=["id"], key_types=[DataType("string")], prefix="tm")


def test_a_field_is_the_group_and_its_version() -> None:
    assert field_name("customer_purchases", 1) == b"customer_purchases:1"
