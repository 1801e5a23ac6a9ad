"""The table of data types: what parses, what is refused and how, and what a feature or a key may be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_defs import data_types
from feature_defs.data_types import ARRAY_ELEMENTS, FEATURE_TYPES, KEY_TYPES, OTHER_SPELLINGS, TYPES, TypeFault, parse

SIMPLE = sorted(TYPES.keys() - {"decimal", "array", "map", "struct"})
NAMES = st.from_regex(r"[A-Za-z_][A-Za-z_0-9]{0,8}", fullmatch=True)
DECIMALS = st.integers(1, 38).flatmap(lambda p: st.integers(0, p).map(lambda s: f"decimal({p},{s})"))
TYPE_TEXTS = st.recursive(
    st.sampled_from(SIMPLE) | DECIMALS,
    lambda inner: (
        inner.map("array<{}>".format)
        | st.tuples(inner, inner).map(lambda pair: f"map<{pair[0]},{pair[1]}>")
        | st.lists(st.tuples(NAMES, inner), min_size=1, max_size=3).map(
            lambda fields: "struct<" + ",".join(f"{name}:{kind}" for name, kind in fields) + ">"
        )
    ),
    max_leaves=6,
)


@given(TYPE_TEXTS)
def test_a_type_is_written_as_it_was_read(text: str) -> None:
    """So that the fingerprint and Spark see one spelling."""
    assert parse(text).spark == text


@given(TYPE_TEXTS, st.sampled_from([" ", "  ", "\n", "\t"]))
def test_case_and_spaces_do_not_matter(text: str, space: str) -> None:
    """Except in a struct's field names, which are data."""
    spaced = "".join(f"{space}{letter}{space}" if letter in "<>(),:" else letter for letter in text)
    assert parse(spaced).spark == text
    if "struct" not in text:
        assert parse(text.upper()).spark == text


@given(st.text(alphabet="abdintrsuc<>(),: 0123_é²٣", max_size=24) | st.text(max_size=24))
def test_any_text_is_a_type_or_a_fault(text: str) -> None:
    """Nothing a user writes ends in another error."""
    try:
        kind = parse(text)
    except TypeFault:
        return
    assert parse(kind.spark) == kind


@pytest.mark.parametrize("value", [None, 5, int, ["bigint"], {"a": "int"}, b"int"])
def test_what_is_not_text_is_a_fault_that_says_so(value: object) -> None:
    with pytest.raises(TypeFault, match=f"not {type(value).__name__}$"):
        parse(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is not a type"),
        ("bigintt", "'bigintt' is not a type"),
        ("int64", "'int64' is not a type; write 'bigint'"),
        ("array<float64>", "'float64' is not a type; write 'double'"),
        ("big int", "'big' is not a type"),
        ("int!", "'int!' is not a type"),
        ("int int", "'int int' has 'int' after the type's end"),
        ("array<int>>", "'array<int>>' has '>' after the type's end"),
        ("array", "'array': expected '<' at the end"),
        ("array<int", "'array<int': expected '>' at the end"),
        ("array<", "'array<' ends too early"),
        ("map<string>", "'map<string>': expected ',', found '>'"),
        ("struct<>", "'struct<>': expected a field's name, found '>'"),
        ("struct<(:int>", "'struct<(:int>': expected a field's name, found '('"),
        ("struct<a:int,", "'struct<a:int,' ends too early"),
        ("struct<a int>", "'struct<a int>': expected ':', found 'int'"),
        ("decimal", "'decimal': write a decimal with precision and scale, as 'decimal(12,2)'"),
        ("decimal(10)", "'decimal(10)': write a decimal with precision and scale, as 'decimal(12,2)'"),
        ("decimal(39,2)", "'decimal(39,2)': precision is 1 to 38 and scale is at most the precision"),
        ("decimal(0,0)", "'decimal(0,0)': precision is 1 to 38 and scale is at most the precision"),
        ("decimal(4,5)", "'decimal(4,5)': precision is 1 to 38 and scale is at most the precision"),
    ],
)
def test_a_fault_says_what_is_wrong_with_the_text(text: str, message: str) -> None:
    with pytest.raises(TypeFault) as raised:
        parse(text)
    assert str(raised.value) == message


def test_a_number_of_thousands_of_digits_is_a_fault() -> None:
    """Python itself refuses to read it."""
    with pytest.raises(TypeFault):
        parse(f"decimal({'9' * 5000},2)")


@pytest.mark.parametrize("other", OTHER_SPELLINGS)
def test_every_other_spelling_is_answered_by_a_type_that_parses(other: str) -> None:
    with pytest.raises(TypeFault, match="; write '"):
        parse(other)
    assert parse(OTHER_SPELLINGS[other]).is_feature_type


def test_what_a_feature_may_hold_is_what_has_a_codec() -> None:
    texts = {"decimal": "decimal(12,2)", "array": "array<float>", "struct": "struct<a:int>", "map": "map<string,int>"}
    possible = {name for name in TYPES if parse(texts.get(name, name)).is_feature_type}
    assert possible == set(FEATURE_TYPES)
    assert possible == set(TYPES) - {"tinyint", "smallint", "timestamp_ntz", "struct"}


def test_an_array_feature_holds_simple_elements_only() -> None:
    texts = [*SIMPLE, "decimal(4,2)", "array<int>", "map<string,int>", "struct<a:int>"]
    possible = {text for text in texts if parse(f"array<{text}>").is_feature_type}
    assert possible == set(ARRAY_ELEMENTS)


def test_a_map_feature_is_from_string_to_what_an_array_holds() -> None:
    texts = [*SIMPLE, "decimal(4,2)", "array<int>", "map<string,int>", "struct<a:int>"]
    possible = {(key, value) for key in texts for value in texts if parse(f"map<{key},{value}>").is_feature_type}
    assert possible == {("string", value) for value in ARRAY_ELEMENTS}
    assert not parse("map<string,int>").row.numerical


def test_keys_are_of_types_that_compare_exactly() -> None:
    """Two floating-point numbers that print alike may differ, so they are no keys."""
    assert set(KEY_TYPES) <= set(FEATURE_TYPES)
    assert {"float", "double", "array", "map"}.isdisjoint(KEY_TYPES)


def test_the_table_in_the_docstring_is_the_table() -> None:
    """It is what readers see first."""
    lines = (data_types.__doc__ or "").split("fixed width in the packed value\n")[1].splitlines()
    told = {cells[0]: tuple(cells[2:5]) for cells in (line.split() for line in lines) if cells}
    rows = {name: (TYPES[name].arrow, TYPES[name].codec, str(TYPES[name].width or "-")) for name in FEATURE_TYPES}
    assert told == rows
