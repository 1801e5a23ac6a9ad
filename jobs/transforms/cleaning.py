"""Good rows of a source -> the same rows with clean= applied, and a group whose features are all plain Spark SQL.

    rows -> stepped -> (what can be fitted now, in columns of its own) -> ... -> cleaned

A row that a step drops stays, marked with the number of the step, until all steps are done: so that what was fitted
before that step still sees it, and so that the rows can be counted by step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from feature_defs import cleaning, data_types
from feature_defs.cleaning import DROPPED, DropNull, Scaled, Word
from feature_defs.cleaning_checks import type_fault
from feature_defs.errors import DataError, listed, near_miss
from feature_defs.fitting import Fit
from feature_defs.model import EVENT_TIME, FeatureGroup
from jobs.transforms.rows import all_quoted

Values = Mapping[int, Mapping[str, Any]]  # a word's number among the group's words -> what it has learned
_WORD, _RANK, _TEXT = "_tidemark_word", "_tidemark_rank", "_tidemark_text"


def in_range(fit: Fit) -> str:
    """The column that says whether a row was in the fit's range when its word was reached."""
    return f"_tidemark_in_{fit.place}"


def at_fit(fit: Fit) -> str:
    """The column that holds what the word would see of a row in its range."""
    return f"_tidemark_fit_{fit.place}"


def stepped(
    rows: DataFrame, words: Sequence[Word], keys: Sequence[str], *, fits: Sequence[Fit], values: Values
) -> tuple[DataFrame, tuple[Fit, ...]]:
    """The rows after every step that can be applied with these values, and the fits that can be made from them now.

    A step that waits for its values makes later words on its column wait too; one that drops rows, all of them.
    """
    found, ready, waiting = rows.withColumn(DROPPED, F.lit(None).cast("int")), [], set[str]()
    missing = {fit.place: fit for fit in fits if fit.place not in values}
    kinds = {field.name: field.dataType.simpleString() for field in rows.schema.fields}  # cleaning keeps types
    for place, word in enumerate(words):
        if word.column in waiting and isinstance(word, DropNull):
            break
        if word.column in waiting or (isinstance(word, Scaled) and place not in missing):
            continue
        kind = kinds[word.column]
        if place in missing:
            ready.append(missing[place])
            found = _with_fit(found, missing[place], cleaning.value_text(word, word.column, kind))
            waiting |= set() if isinstance(word, Scaled) else {word.column}
        else:
            text = cleaning.apply_text(word, kind, values.get(place, {}), keys)
            found = _dropped(found, place, text) if isinstance(word, DropNull) else _changed(found, word.column, text)
    return found, tuple(ready)


def _with_fit(rows: DataFrame, fit: Fit, text: str) -> DataFrame:
    start, end = fit.range_us
    time = F.unix_micros(EVENT_TIME)
    inside = F.col(DROPPED).isNull() & (time >= F.lit(start)) & (time < F.lit(end))
    return rows.withColumns({in_range(fit): inside, at_fit(fit): F.when(inside, F.expr(text))})


def _dropped(rows: DataFrame, place: int, condition: str) -> DataFrame:
    return rows.withColumn(DROPPED, F.coalesce(DROPPED, F.when(F.expr(condition), F.lit(place))))


def _changed(rows: DataFrame, column: str, text: str) -> DataFrame:
    return rows.withColumn(column, F.expr(text))


def numbers(rows: DataFrame, fits: Sequence[Fit]) -> DataFrame:
    """One row: for each fit the rows in its range, those with a value, and what it learns but for a vocabulary."""
    columns = []
    for fit in fits:
        text = f"cast({at_fit(fit)} AS double)" if cleaning.way_of(fit.word).reads == "number" else at_fit(fit)
        columns += [F.count_if(in_range(fit)), F.count(at_fit(fit))]
        columns += [F.expr(aggregate) for aggregate in cleaning.fit_texts(fit.word, text).values()]
    somewhere = F.greatest(*(F.col(in_range(fit)) for fit in fits), F.lit(False))
    named = [column.alias(f"_tidemark_{number}") for number, column in enumerate(columns)]
    return rows.where(somewhere).agg(*named)


def categories(rows: DataFrame, fits: Sequence[Fit], kinds: Mapping[int, data_types.DataType]) -> DataFrame:
    """(word, text, place) of the most frequent values of each fit; of equal frequency the lesser first."""
    structs = []
    for fit in fits:
        number = at_fit(fit) if fit.place in kinds and cleaning.is_numeric(kinds[fit.place]) else "NULL"
        structs.append(f"struct({fit.place} AS {_WORD}, cast({number} AS double) AS {_RANK}, {at_fit(fit)} AS {_TEXT})")
    values = rows.selectExpr(f"inline(array({', '.join(structs)}))").where(F.col(_TEXT).isNotNull())
    counted = values.groupBy(_WORD, _RANK, _TEXT).count()
    place = f"row_number() OVER (PARTITION BY {_WORD} ORDER BY count DESC, {_RANK}, {_TEXT})"
    most = " ".join(f"WHEN {fit.place} THEN {getattr(fit.word, 'most', 0)}" for fit in fits)
    ranked = counted.selectExpr(_WORD, _TEXT, f"{place} AS place")
    return ranked.where(F.expr(f"place <= CASE {_WORD} {most} END"))


def drop_counts(rows: DataFrame, words: Sequence[Word]) -> DataFrame:
    """One row: how many rows are left, then how many each DropNull drops."""
    places = [place for place, word in enumerate(words) if isinstance(word, DropNull)]
    counts = [F.count_if(F.col(DROPPED) == F.lit(place)).alias(f"_tidemark_{place}") for place in places]
    return rows.agg(F.count_if(F.col(DROPPED).isNull()).alias("kept"), *counts)


def cleaned(rows: DataFrame, columns: Sequence[str]) -> DataFrame:
    """The rows that no step dropped, with the columns that they came with."""
    return rows.where(F.col(DROPPED).isNull()).select(*all_quoted(columns))


def plain_features(group: FeatureGroup, values: Values) -> FeatureGroup:
    """The group with every word of its features written out in Spark SQL, cast to the feature's type."""
    place, features = len(group.clean), []
    for feature in group.features:
        word = feature.expression
        if isinstance(word, Scaled):
            text = cleaning.apply_text(word, "", values.get(place, {}))
            kind = data_types.parse(feature.type).spark
            features.append(dataclasses.replace(feature, expression=f"cast({text} AS {kind})"))
            place += 1
        else:
            features.append(feature)
    return dataclasses.replace(group, features=features, clean=(), fit=None)


def check_columns(rows: DataFrame, group: FeatureGroup, words: Sequence[Word]) -> dict[int, data_types.DataType]:
    """The type of each word's column; DataError when it is not there or not of a type that the word reads."""
    found = {}
    for place, word in enumerate(words):
        if group.aggregates and isinstance(word, Scaled):
            continue  # it reads a feature
        subject = f"FeatureGroup '{group.name}'"
        if word.column not in rows.columns:
            own = [name for name in rows.columns if not name.startswith("_tidemark")]
            problem = f"{cleaning.text(word)}: '{word.column}' is not a column of the source's rows ({listed(own)})"
            raise DataError(subject, problem, hint=near_miss(word.column, own) + "correct the definition")
        kind = _parsed(rows.schema[word.column].dataType.simpleString())
        if kind is not None:
            if wrong := type_fault(word, kind):
                hint = "use a word that fits it, or cast it in the group's transform"
                raise DataError(subject, f"{cleaning.text(word)}: {wrong}", hint=hint)
            found[place] = kind
    return found


def _parsed(text: str) -> data_types.DataType | None:
    """None for a type that a definition cannot name (an interval, a variant)."""
    try:
        return data_types.parse(text)
    except data_types.TypeFault:
        return None
