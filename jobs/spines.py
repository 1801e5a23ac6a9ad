"""A spine from wherever it is: rows with the service's keys and event_time, and the spine's own columns kept aside.

    lake path (delta, parquet, csv, json) | Spark or pandas DataFrame | pyarrow Table
      -> read: a Delta table at one version, text by the keys' declared types
      -> mapped: keys and event_time under the names that the service knows
      -> looked at once: text that is no key or time, times in the future, rows outside every part

`restored` puts a dataset's columns back under the spine's own names, in place.
"""

from __future__ import annotations

import datetime
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from urllib.parse import unquote

import pyarrow as pa
from pyspark.errors import AnalysisException, PySparkException
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from connectors.file_rows import FileRows, file_rows
from connectors.file_store import data_files, open_file_store
from connectors.manifests import SpineRecord
from connectors.offline_tables import delta_table
from connectors.sources import CSV_MULTI_LINE, UNREADABLE
from connectors.spark_errors import data_errors
from connectors.table_stats import files_stats
from feature_defs import data_types
from feature_defs.errors import DataError, LakeError, TidemarkError, UsageError, listed, near_miss
from feature_defs.expressions import quoted
from feature_defs.join_plan import JoinPlan
from feature_defs.label_leaks import refuse_label_leaks
from feature_defs.model import EVENT_TIME, HIDDEN, Definitions, Service
from feature_defs.splits import SPLIT, Part
from jobs.place import Place, now_us
from jobs.report import counted
from jobs.transforms.rows import all_quoted, reason, utc
from jobs.transforms.splits import GAP, OUTSIDE, split_of

SPINE_FORMATS = ("delta", "parquet", "csv", "json")
_TEXT = {
    "csv": CSV_MULTI_LINE,
    "json": {"columnNameOfCorruptRecord": UNREADABLE},
}
_ENDINGS = re.compile(r"\.(parquet|csv|json)l?(\.gz|\.bz2|\.zst|\.snappy)?$", re.IGNORECASE)
_A_TIME = r"^\s*\d{4}-\d{1,2}-\d{1,2}([ T].*)?$"  # else Spark takes '12:30' for today and '2026' for a day
_UNNAMED = re.compile(r"_c\d+")  # what Spark calls a column of csv without a name
_MOST_FOOTERS = 64  # a job over the spine's times is as fast as more of them
_FEW, _FEW_BYTES = 100_000, 64 << 20  # rows that the driver reads in less time than a job takes to begin
_OWN = HIDDEN + "own_"  # an own column that has a mapped key's name, while the join runs


@dataclass(frozen=True)
class SpineWords:
    """What a user says of a spine. `keys` maps an entity's key to the spine's column; `labels` are never features.

    `version` is that of a Delta table, by default the newest.
    """

    format: str = ""
    keys: Mapping[str, str] = field(default_factory=dict)
    event_time: str = EVENT_TIME
    labels: Sequence[str] = ()
    allow_future: bool = False
    version: int | None = None


@dataclass(frozen=True)
class Spine:
    """Rows as a join takes them. `own` pairs each column of the spine with the one of `rows` that holds it.

    `format` is spark, pandas or arrow for rows from memory; `version` is a Delta table's. `few` are files
    that hold the same rows, which are few.
    """

    rows: DataFrame
    path: str
    format: str
    version: int | None = None
    own: tuple[tuple[str, str], ...] = ()
    parts: tuple[Part, ...] = ()
    outside_rows: int = 0
    gap_rows: int = 0
    few: FileRows | None = None

    def restored(self, rows: DataFrame, others: Sequence[str]) -> DataFrame:
        """A dataset's rows: the spine's own columns in place, then the others, the part behind all of them."""
        own = [F.col(quoted(held)).alias(name) for name, held in self.own]
        return rows.select(*own, *all_quoted(others), *([SPLIT] if self.parts else []))

    def record(self, words: SpineWords) -> SpineRecord:
        """What a manifest says of it."""
        path = self.path if self.format in SPINE_FORMATS else ""
        keys, labels = dict(words.keys), tuple(words.labels)
        return SpineRecord(path, self.format, self.version, None, words.event_time, keys, labels)


def open_spine(
    place: Place,
    given: object,
    service: Service,
    definitions: Definitions,
    *,
    words: SpineWords | None = None,
    parts: Sequence[Part] = (),
    now: datetime.datetime | None = None,
) -> Spine:
    """The spine of a service, read, mapped and looked at; with parts, only their rows, each with its part."""
    words = words or SpineWords()
    declared = _declared_keys(service, definitions, words)
    if isinstance(given, str):
        spine = read_spine(place, given, words.format, typed=_typed(words, declared), version=words.version)
    else:
        spine = _in_memory(place, given)
    _check_words(spine.rows.columns, words, declared, parts)
    refuse_label_leaks(service, definitions, words.labels)
    return _looked_at(place, spine, words, declared, parts=tuple(parts), now=now)


def check_names(names: Sequence[str], words: SpineWords, service: Service, definitions: Definitions) -> None:
    """What `open_spine` refuses, as far as the names of a spine's columns tell it."""
    declared = _declared_keys(service, definitions, words)
    _check_words(names, words, declared, ())
    refuse_label_leaks(service, definitions, words.labels)
    _check_has([*names, *words.keys, *([EVENT_TIME] if words.event_time != EVENT_TIME else [])], declared)


def read_spine(
    place: Place,
    path: str,
    spine_format: str = "",
    *,
    typed: Mapping[str, str] | None = None,
    version: int | None = None,
) -> Spine:
    """The spine at a lake path, its format as found unless it is named. `typed` columns of text are left as text."""
    uri = place.lakes.uri(path)
    subject = f"Spine '{path}'"
    spine_format = spine_format or format_of(uri)
    if spine_format not in SPINE_FORMATS:
        hint = f"use one of {', '.join(SPINE_FORMATS)}"
        raise UsageError("Option --spine-format", f"'{spine_format}' is not known", hint=hint)
    if spine_format == "delta" and version is None:
        version = delta_table(place.spark, uri).version()
    try:
        with data_errors(subject):
            reader = place.spark.read.format(spine_format)
            if spine_format in _TEXT:
                rows = _text_rows(place, uri, spine_format, typed or {})
            elif version is not None:  # a table that another job writes to meanwhile stays what it is
                rows = reader.option("versionAsOf", version).load(uri)
            else:
                rows = reader.load(uri)
            _ = rows.columns  # Spark Connect looks at the path only now
    except AnalysisException as error:
        hint = "check the path, or name its format with --spine-format"
        raise DataError(subject, f"there is no {spine_format} data at {uri}", hint=hint) from error
    return Spine(rows, path, spine_format, version)


def mapped(rows: DataFrame, words: SpineWords) -> tuple[DataFrame, tuple[tuple[str, str], ...]]:
    """The rows with keys and event_time under the service's names behind them, and where each own column is now.

    An own column that is in the way of a mapped name steps aside until the dataset is written.
    """
    names = {key: column for key, column in words.keys.items() if key != column}
    if words.event_time != EVENT_TIME:
        names[EVENT_TIME] = words.event_time
    taken = {name.lower() for name in names}
    own = tuple(
        (name, f"{_OWN}{number}" if name.lower() in taken else name) for number, name in enumerate(rows.columns)
    )
    held = [F.col(quoted(name)).alias(now) for name, now in own]
    added = [F.col(quoted(column)).alias(name) for name, column in names.items()]
    return rows.select(*held, *added), own


def check_spine(spine: DataFrame, plan: JoinPlan) -> None:
    """DataError unless the rows have the plan's keys and event_time, of types that can be them."""
    for group in plan.groups:
        check_columns(spine, {key: (text, group.group) for key, text in zip(group.keys, group.key_types, strict=True)})
    if not plan.groups:
        check_columns(spine, {})


def check_columns(spine: DataFrame, declared: Mapping[str, tuple[str, str]]) -> None:
    types = {field.name: field.dataType.simpleString() for field in spine.schema.fields}
    _check_has(list(types), declared)
    if types[EVENT_TIME] not in ("timestamp", "timestamp_ntz", "date"):
        problem = f"{EVENT_TIME} is {types[EVENT_TIME]}, expected timestamp or date"
        raise DataError("Spine", problem, hint="cast it; a naive time is taken as UTC")
    for key, (text, group) in declared.items():
        kind = data_types.parse(text)
        if not data_types.is_key_of(types[key], kind):
            problem = f"key '{key}' is {types[key]}, group '{group}' declares {kind.spark}"
            raise DataError("Spine", problem, hint=f"cast the spine's column to {kind.spark}")


def _check_has(names: Sequence[str], declared: Mapping[str, tuple[str, str]]) -> None:
    shown = [name for name in names if not name.startswith(HIDDEN)]
    if EVENT_TIME not in names:
        hint = near_miss(EVENT_TIME, shown) + "name the spine's time column with --event-time"
        raise DataError("Spine", f"has no column '{EVENT_TIME}' ({listed(shown)})", hint=hint)
    for key, (_, group) in declared.items():
        if key not in names:
            problem = f"has no key column '{key}' of group '{group}' ({listed(shown)})"
            hint = near_miss(key, shown) + f"name the spine's column with --key {key}=COLUMN"
            raise DataError("Spine", problem, hint=hint)


def _declared_keys(service: Service, definitions: Definitions, words: SpineWords) -> dict[str, tuple[str, str]]:
    """Each key of the service's groups once: its declared type, and a group that declares it. UsageError when the words
    name another."""
    found: dict[str, tuple[str, str]] = {}
    for group, _ in definitions.features_of(service):
        for key, text in definitions.entity_of(group).keys.items():
            found.setdefault(key, (text, group.name))
    if unknown := next((key for key in words.keys if key not in found), None):
        hint = near_miss(unknown, found) + "write --key KEY_OF_ENTITY=COLUMN_OF_SPINE"
        problem = f"'{unknown}' is no key of service '{service.name}' ({listed(found)})"
        raise UsageError("Option --key", problem, hint=hint)
    return found


def _typed(words: SpineWords, declared: Mapping[str, tuple[str, str]]) -> dict[str, str]:
    """The spine's columns that have a type whatever the text looks like."""
    keys = {words.keys.get(key, key): data_types.parse(text).spark for key, (text, _) in declared.items()}
    return {**keys, words.event_time: "timestamp"}


def format_of(uri: str) -> str:
    if found := _ENDINGS.search(uri):
        return found[1].lower()
    files = open_file_store(uri)
    try:
        names = [file.path for file in files.list_files(uri)]
    except LakeError:  # one file, whose name says nothing
        return "parquet"
    if any(name.startswith("_delta_log/") for name in names):
        return "delta"
    endings = Counter(found[1].lower() for name in names if (found := _ENDINGS.search(name)))
    return endings.most_common(1)[0][0] if endings else "parquet"


def _text_rows(place: Place, uri: str, spine_format: str, typed: Mapping[str, str]) -> DataFrame:
    """Text whose columns are inferred but for the typed ones, which are still text, and what could not be read."""
    reader = place.spark.read.format(spine_format).options(**_TEXT[spine_format])
    found = (reader.option("inferSchema", "true") if spine_format == "csv" else reader).load(uri).schema
    types = {part.name: part.dataType.simpleString() for part in found.fields if part.name != UNREADABLE}
    types = {name: "string" if name in typed else kind for name, kind in types.items()}
    columns = [f"{quoted(name)} {kind}" for name, kind in {**types, UNREADABLE: "string"}.items()]
    if spine_format == "csv":
        # else a row that is broken in one column is good in a query of others
        reader = reader.option("columnPruning", "false")
        if not any(_UNNAMED.fullmatch(name) for name in types):  # as pandas leaves its index; no header is like it
            reader = reader.option("enforceSchema", "false")  # every file must have the header of the first
    return reader.schema(", ".join(columns)).load(uri)


def _in_memory(place: Place, given: object) -> Spine:
    import pandas as pd

    if isinstance(given, DataFrame):
        return Spine(given, "DataFrame", "spark")
    is_pandas = isinstance(given, pd.DataFrame)
    try:
        table = pa.Table.from_pandas(given, preserve_index=False) if is_pandas else given
    except pa.ArrowException as error:
        hint = "give each column one type, as with df.astype(...)"
        raise DataError("Spine", "a column of the pandas DataFrame holds values of several types", hint=hint) from error
    if not isinstance(table, pa.Table):
        hint = "give a lake path, a Spark or pandas DataFrame, or a pyarrow Table"
        raise UsageError("Spine", f"is {type(given).__name__}, which is no table", hint=hint)
    try:
        rows = place.spark.createDataFrame(_for_spark(table))
    except PySparkException as error:
        raise DataError("Spine", reason(error), hint="cast the column to a type that Spark has") from error
    return Spine(rows, "DataFrame", "pandas" if is_pandas else "arrow")


def _for_spark(table: pa.Table) -> pa.Table:
    """The table in types that Spark has: naive times are UTC, all times in microseconds."""
    return pa.table([_column_for_spark(column) for column in table.columns], names=table.column_names)


def _column_for_spark(column: pa.ChunkedArray) -> pa.ChunkedArray:
    kind = column.type
    if pa.types.is_dictionary(kind):  # pandas' categories
        return _column_for_spark(column.cast(kind.value_type))
    if pa.types.is_timestamp(kind):
        # without safe=False Arrow refuses a time that has nanoseconds
        return column.cast(pa.timestamp("us", kind.tz), safe=False).cast(pa.timestamp("us", "UTC"))
    if pa.types.is_date64(kind):
        return column.cast(pa.date32())
    if pa.types.is_null(kind):  # all of it is None: there is no type to keep
        return column.cast(pa.string())
    wider = {pa.uint8(): pa.int16(), pa.uint16(): pa.int32(), pa.uint32(): pa.int64(), pa.float16(): pa.float32()}
    return column.cast(wider[kind]) if kind in wider else column


def _check_words(
    names: Sequence[str], words: SpineWords, declared: Mapping[str, tuple[str, str]], parts: Sequence[Part]
) -> None:
    """UsageError when an option names a column that the spine does not have, or one that it must not have."""
    columns = [name for name in names if name != UNREADABLE]
    if hidden := next((name for name in columns if name.lower().startswith(HIDDEN)), None):
        problem = f"has a column '{hidden}', a name that is Tidemark's own"
        raise DataError("Spine", problem, hint="drop it from the spine, or rename it")
    named = [("--key", column) for column in words.keys.values()] + [("--label", label) for label in words.labels]
    if words.event_time != EVENT_TIME:
        named.append(("--event-time", words.event_time))
    for option, column in named:
        if column not in columns:
            problem = f"'{column}' is not a column of the spine ({listed(columns)})"
            hint = near_miss(column, columns) + "name a column as the spine writes it"
            raise UsageError(f"Option {option}", problem, hint=hint)
    for label in words.labels:
        if label in _typed(words, declared):
            hint = "a label is what the model is to predict"
            raise UsageError("Option --label", f"'{label}' is a key or the time of the spine", hint=hint)
    if parts and SPLIT in (name.lower() for name in columns):
        hint = "rename it in the spine, or leave --split out: the column is in the dataset as it is"
        raise UsageError("Option --split", f"the spine has a column '{SPLIT}' of its own", hint=hint)


def _looked_at(
    place: Place,
    spine: Spine,
    words: SpineWords,
    declared: Mapping[str, tuple[str, str]],
    *,
    parts: tuple[Part, ...],
    now: datetime.datetime | None,
) -> Spine:
    """The spine, mapped, after one pass over its keys and times, where footers do not tell enough."""
    subject = f"Spine '{spine.path}'" if spine.format in SPINE_FORMATS else "Spine"
    typed = _typed(words, declared) if spine.format in _TEXT else {}
    typed = {name: kind for name, kind in typed.items() if name in spine.rows.columns}
    parsed = spine.rows.select(*(_parsed(name, typed) for name in spine.rows.columns if name != UNREADABLE))
    rows, own = mapped(parsed, words)
    check_columns(rows, declared)
    newest, few = (None, None) if parts else _by_files(place, spine, words)
    if newest is not None and newest <= now_us(now):
        return replace(spine, rows=rows, own=own, few=few if rows.columns == spine.rows.columns else None)
    time = utc(F.col(EVENT_TIME), rows.schema[EVENT_TIME].dataType)
    part = split_of(time, parts)
    # the clock is the query's own: a spine of current_timestamp() is not in the future of a clock read before it
    clock = F.current_timestamp() if now is None else F.timestamp_micros(F.lit(now_us(now)))
    wrong = {name: F.col(quoted(name)).isNotNull() & _value(name, kind).isNull() for name, kind in typed.items()}
    seen = spine.rows
    if UNREADABLE in seen.columns:
        wrong[UNREADABLE] = F.col(UNREADABLE).isNotNull()
    counts = {f"wrong_{i}": F.count(F.when(condition, 1)) for i, condition in enumerate(wrong.values())}
    if counts:
        with data_errors(subject):
            told = seen.agg(*(count.alias(name) for name, count in counts.items())).collect()[0]
        _refuse_wrong(subject, {name: told[f"wrong_{i}"] for i, name in enumerate(wrong)}, typed)
    with data_errors(subject):
        found = rows.agg(
            F.count(F.when(time > clock, 1)).alias("future"),
            F.date_format(F.max(time), "yyyy-MM-dd'T'HH:mm:ss.SSSSSS'Z'").alias("newest"),
            F.count(F.when(part == OUTSIDE, 1)).alias("outside"),
            F.count(F.when(part == GAP, 1)).alias("gap"),
        ).collect()[0]
    if found["future"] and not words.allow_future:
        problem = f"{counted(found['future'], 'row')} with a time in the future, the newest {found['newest']}"
        hint = "features of that time are not known yet: correct the spine, or allow it with --allow-future"
        raise DataError(subject, problem, hint=hint)
    if parts:
        rows = rows.withColumn(SPLIT, part).where(~F.col(SPLIT).isin(OUTSIDE, GAP))
    return replace(spine, rows=rows, own=own, parts=parts, outside_rows=found["outside"], gap_rows=found["gap"])


def _by_files(place: Place, spine: Spine, words: SpineWords) -> tuple[int | None, FileRows | None]:
    """The newest time of a Parquet spine, in microseconds, and its files where their rows are few; None where they do
    not tell, or are many."""
    if spine.format != "parquet":
        return None, None
    uri = place.lakes.uri(spine.path)
    store = open_file_store(uri)
    try:
        uris = list(data_files(store, uri))
        if len(uris) > _MOST_FOOTERS or any("=" in file.removeprefix(uri) for file in uris):  # a folder may name a time
            return None, None
        stats = files_stats(store, uris, words.event_time)
        times = [file.newest_us for file in stats]
        if None in times:
            return None, None
        few = None
        if sum(file.rows for file in stats) <= _FEW:
            few = file_rows([unquote(file) for file in spine.rows.inputFiles()], spine.rows.schema)  # Spark's list
        few = few if few and few.bytes <= _FEW_BYTES else None
        return max((time for time in times if time is not None), default=None), few
    except (TidemarkError, OSError, pa.ArrowException):  # Spark will tell of it
        return None, None


def _parsed(name: str, typed: Mapping[str, str]) -> Column:
    return _value(name, typed[name]).alias(name) if name in typed else F.col(quoted(name))


def _value(name: str, kind: str) -> Column:
    """A cell of text as a key or a time, null where it is none."""
    text = F.col(quoted(name))
    if kind == "timestamp":
        text = F.when(text.rlike(_A_TIME), text)
    return text.try_cast(kind)


def _refuse_wrong(subject: str, counts: Mapping[str, int], typed: Mapping[str, str]) -> None:
    for name, count in counts.items():
        if not count:
            continue
        if name == UNREADABLE:
            hint = "give every row the columns of the others, with quotes around text that holds the separator"
            raise DataError(subject, f"{counted(count, 'row')} cannot be read", hint=hint)
        hint = f"write a value of type {typed[name]}, or nothing for none"
        if typed[name] == "timestamp":
            hint = "write times as 2026-01-31, 2026-01-31 12:00:00 (UTC) or 2026-01-31T12:00:00+01:00"
        elif typed[name] in ("int", "bigint"):
            hint = "write whole numbers without a point; pandas writes one when a column also holds nothing"
        problem = f"column '{name}' is no {typed[name]} in {counted(count, 'row')}"
        raise DataError(subject, problem, hint=hint)
