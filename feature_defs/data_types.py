"""The closed table of data types: one row maps a type to Spark, Arrow and the online codec.

A definition writes a type as text (`"bigint"`, `"decimal(12,2)"`, `"array<float>"`). `parse` reads it into a DataType;
everything else asks the DataType. Sources may also hold what a feature may not (small integers, structs): those have no
codec.

    kind       Spark      Arrow         codec      fixed width in the packed value
    boolean    boolean    bool          bool       1
    int        int        int32         int32      4
    bigint     bigint     int64         int64      8
    float      float      float         float32    4
    double     double     double        float64    8
    date       date       date32        int32      4     days since 1970-01-01
    timestamp  timestamp  timestamp     int64      8     microseconds since 1970-01-01 UTC
    decimal    decimal    decimal128    int128     16    unscaled value
    string     string     string        bytes      -     UTF-8
    binary     binary     binary        bytes      -
    array      array      list          list       -     of boolean, int, bigint, float, double or string
    map        map        map           map        -     from string to what an array holds
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class TypeRow:
    """What one kind of type is called elsewhere. `codec` is None where a feature cannot have the type."""

    arrow: str
    codec: str | None
    width: int | None
    numerical: bool = False


TYPES: dict[str, TypeRow] = {
    "boolean": TypeRow("bool", "bool", 1),
    "int": TypeRow("int32", "int32", 4, numerical=True),
    "bigint": TypeRow("int64", "int64", 8, numerical=True),
    "float": TypeRow("float", "float32", 4, numerical=True),
    "double": TypeRow("double", "float64", 8, numerical=True),
    "date": TypeRow("date32", "int32", 4),
    "timestamp": TypeRow("timestamp", "int64", 8),
    "decimal": TypeRow("decimal128", "int128", 16, numerical=True),
    "string": TypeRow("string", "bytes", None),
    "binary": TypeRow("binary", "bytes", None),
    "array": TypeRow("list", "list", None),
    "tinyint": TypeRow("int8", None, 1, numerical=True),
    "smallint": TypeRow("int16", None, 2, numerical=True),
    "timestamp_ntz": TypeRow("timestamp", None, 8),
    "struct": TypeRow("struct", None, None),
    "map": TypeRow("map", "map", None),
}
ARRAY_ELEMENTS = ("boolean", "int", "bigint", "float", "double", "string")  # a map's values, too
KEY_TYPES = ("string", "bigint", "int", "boolean", "date", "timestamp", "decimal", "binary")
FEATURE_TYPES = tuple(name for name, row in TYPES.items() if row.codec)

OTHER_SPELLINGS = {
    "bool": "boolean", "integer": "int", "int32": "int", "long": "bigint", "int64": "bigint", "float32": "float",
    "float64": "double", "str": "string", "text": "string", "varchar": "string", "bytes": "binary",
    "datetime": "timestamp", "numeric": "decimal(18,6)", "list": "array<double>",
    "dict": "map<string,double>",
}  # fmt: skip


_NARROWER_KEYS = {"int": ("tinyint", "smallint"), "bigint": ("tinyint", "smallint", "int")}


class TypeFault(ValueError):
    """A text that names no type; the message says what would."""


@dataclass(frozen=True)
class DataType:
    """A parsed type. `element` is an array's element or a map's value; `fields` are a struct's."""

    kind: str
    precision: int = 0
    scale: int = 0
    element: DataType | None = None
    key: DataType | None = None
    fields: tuple[tuple[str, DataType], ...] = ()

    @property
    def spark(self) -> str:
        """The type as Spark SQL writes it; parsing it again gives the same type."""
        match self.kind:
            case "decimal":
                return f"decimal({self.precision},{self.scale})"
            case "array":
                return f"array<{self.element.spark}>"  # type: ignore[union-attr]  # an array always has an element
            case "map":
                return f"map<{self.key.spark},{self.element.spark}>"  # type: ignore[union-attr]  # a map has both
            case "struct":
                return "struct<" + ",".join(f"{name}:{inner.spark}" for name, inner in self.fields) + ">"
            case _:
                return self.kind

    @property
    def row(self) -> TypeRow:
        return TYPES[self.kind]

    @property
    def is_feature_type(self) -> bool:
        """Whether a feature may have this type: it has a codec, and so has what it holds."""
        if self.kind in ("array", "map"):
            has_key = self.kind == "array" or (self.key is not None and self.key.kind == "string")
            return has_key and self.element is not None and self.element.kind in ARRAY_ELEMENTS
        return self.row.codec is not None


def is_key_of(found: str, declared: DataType) -> bool:
    """Whether a column of this Spark type can be a key of the declared one: the same, or a narrower whole number."""
    return found == declared.spark or found in _NARROWER_KEYS.get(declared.kind, ())


def parse(text: object) -> DataType:
    """Read a type, or raise TypeFault saying what is wrong and what could be meant."""
    if not isinstance(text, str):
        raise TypeFault(f"a type is written as text such as 'bigint', not {type(text).__name__}")
    tokens = re.findall(r"[A-Za-z_][A-Za-z_0-9]*|[0-9]{1,9}|[<>(),:]", text)
    if "".join(tokens) != re.sub(r"\s+", "", text) or not tokens:
        raise TypeFault(f"'{text}' is not a type")
    found, rest = _read(tokens, text)
    if rest:
        raise TypeFault(f"'{text}' has '{''.join(rest)}' after the type's end")
    return found


def _read(tokens: list[str], text: str) -> tuple[DataType, list[str]]:
    if not tokens:
        raise TypeFault(f"'{text}' ends too early")
    name, rest = tokens[0].lower(), tokens[1:]
    if name not in TYPES:
        meant = OTHER_SPELLINGS.get(name)
        raise TypeFault(f"'{name}' is not a type" + (f"; write '{meant}'" if meant else ""))
    match name:
        case "decimal":
            if len(rest) < 5 or rest[0] != "(" or rest[2] != "," or rest[4] != ")" or not (rest[1] + rest[3]).isdigit():
                raise TypeFault(f"'{text}': write a decimal with precision and scale, as 'decimal(12,2)'")
            precision, scale = int(rest[1]), int(rest[3])
            if not 1 <= precision <= 38 or scale > precision:
                raise TypeFault(f"'{text}': precision is 1 to 38 and scale is at most the precision")
            return DataType("decimal", precision=precision, scale=scale), rest[5:]
        case "array":
            element, rest = _read(_after(rest, "<", text), text)
            return DataType("array", element=element), _after(rest, ">", text)
        case "map":
            key, rest = _read(_after(rest, "<", text), text)
            value, rest = _read(_after(rest, ",", text), text)
            return DataType("map", key=key, element=value), _after(rest, ">", text)
        case "struct":
            fields: list[tuple[str, DataType]] = []
            rest = _after(rest, "<", text)
            while True:
                if not rest:
                    raise TypeFault(f"'{text}' ends too early")
                if rest[0] in "<>(),:":
                    raise TypeFault(f"'{text}': expected a field's name, found '{rest[0]}'")
                field, rest = rest[0], _after(rest[1:], ":", text)
                inner, rest = _read(rest, text)
                fields.append((field, inner))
                if rest[:1] != [","]:
                    return DataType("struct", fields=tuple(fields)), _after(rest, ">", text)
                rest = rest[1:]
        case _:
            return DataType(name), rest


def _after(tokens: list[str], expected: str, text: str) -> list[str]:
    if tokens[:1] != [expected]:
        raise TypeFault(f"'{text}': expected '{expected}'" + (f", found '{tokens[0]}'" if tokens else " at the end"))
    return tokens[1:]
