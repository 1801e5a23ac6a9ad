"""What rows should be like: each rule becomes a bit, a mark for the quarantine, or a stop of the job; then a number.

    rows -> unique counts -> bits (one a rule that acts) -> `REJECTED` -> measures, observed while the rows are written

Every condition is evaluated once a row, whatever is counted of it and done about it. A null makes a rule hold, as in
SQL's CHECK, but for NotNull. A feature's allowed values are a rule of severity warn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import reduce

from pyspark.errors import AnalysisException
from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from feature_defs.errors import DataError
from feature_defs.expressions import quoted
from feature_defs.model import EVENT_TIME, REJECTED, FeatureGroup
from feature_defs.rules import (
    Expectation,
    Freshness,
    InRange,
    RowCount,
    Rule,
    SumsMatch,
    TableRule,
    Unique,
    columns_of,
    condition,
    literal,
    name_of,
)
from jobs.transforms.rows import all_quoted, correction, reason

STOPPED = "tidemark expectation broken: "
MARKS = "_tidemark_rule_"  # what the columns that decide begin with; they never reach a table
_BITS, _SAME = MARKS + "bits_", MARKS + "same_"
_PER_WORD = 60  # rules a column of bits; a bigint has 63 that can be shifted without its sign
_NUMBERS = ("tinyint", "smallint", "int", "bigint", "float", "double", "decimal")


def rules_of(group: FeatureGroup) -> tuple[Rule, ...]:
    """The group's expectations, those of its features, and one for each feature with allowed values."""
    allowed = (
        Expectation(f"{feature.name}_allowed_values", _one_of(feature.name, feature.allowed_values))
        for feature in group.features
        if feature.allowed_values
    )
    return (*group.rules, *allowed)


def rules_digest(group: FeatureGroup) -> str:
    """What a table's rows were held against: other rules judge them all again."""
    return hashlib.sha256(repr(rules_of(group)).encode()).hexdigest()[:16]


def checked(rows: DataFrame, rules: Sequence[Rule]) -> DataFrame:
    """The rows with the names of the quarantine rules they break in `REJECTED`; evaluating it fails on a stop rule.

    Other marks stay until `measures` are taken: `without_marks` drops them.
    """
    _check_types(rows, rules)
    acting = _acting(rules)
    named = [F.when(_is_broken(number), F.lit(name_of(rule))) for number, rule in enumerate(acting)]
    chosen = {
        severity: [number for number, rule in enumerate(acting) if rule.severity == severity]
        for severity in ("quarantine", "stop")
    }
    marked = F.lit(None).cast("string")
    if chosen["quarantine"]:
        names = F.concat_ws(", ", *(named[number] for number in chosen["quarantine"]))
        marked = F.when(_any_broken(chosen["quarantine"]), names)
    if chosen["stop"]:
        first = F.coalesce(*(named[number] for number in chosen["stop"]))
        stopped = F.raise_error(F.concat(F.lit(STOPPED), first)).cast("string")
        marked = F.when(_any_broken(chosen["stop"]), stopped).otherwise(marked)
    return _with_same(rows, rules).select("*", *_bits(acting, types_of(rows))).select("*", marked.alias(REJECTED))


def without_marks(rows: DataFrame) -> DataFrame:
    """The rows as they were, and `REJECTED`."""
    return rows.select(*all_quoted(name for name in rows.columns if not name.startswith(MARKS)))


def measures(rows: DataFrame, rules: Sequence[Rule], *, now_us: int) -> list[Column]:
    """Aggregates of checked rows that decide every rule: see `rule_results.judged` for how.

    A rule that only warns is evaluated here and nowhere else: Spark splits the code of aggregates into many methods,
    that of a projection it keeps in one, which Java no longer compiles when it is too long.
    """
    kept, types = F.col(REJECTED).isNull(), types_of(rows)
    taken = [F.count(F.lit(1)).alias("rows"), F.count(REJECTED).alias("rejected")]
    bits = iter(range(len(rules)))
    for number, rule in enumerate(rules):
        match rule:
            case Freshness():
                newest = F.unix_micros(EVENT_TIME)
                taken.append(F.max(F.when(kept & (newest <= now_us), newest)).alias(f"newest_{number}"))
            case SumsMatch():
                for side, text in (("left", rule.left), ("right", rule.right)):
                    taken.append(F.sum(F.when(kept, F.expr(f"({text}\n)"))).alias(f"{side}_{number}"))
            case RowCount():
                pass
            case _ if rule.severity == "warn":
                taken.append(F.count_if(broken(rule, types)).alias(f"rule_{number}"))
            case _:
                taken.append(F.sum(_bit(next(bits))).alias(f"rule_{number}"))
    for column in dict.fromkeys(columns_of(rule)[0].lower() for rule in rules if isinstance(rule, InRange)):
        value = F.col(quoted(column))
        value = F.unix_micros(value) if types[column] == "timestamp" else value
        taken += [F.min(value).alias(f"min_{column}"), F.max(value).alias(f"max_{column}")]
    return taken


def _acting(rules: Sequence[Rule]) -> list[Rule]:
    """The row rules that decide what becomes of a row; each has a bit, in this order."""
    return [rule for rule in rules if rule.severity != "warn" and not isinstance(rule, TableRule)]


def types_of(rows: DataFrame) -> dict[str, str]:
    return {name.lower(): kind for name, kind in rows.dtypes}


def _bits(rules: Sequence[Rule], types: dict[str, str]) -> Iterator[Column]:
    """Columns of a bit a rule, set when the row breaks it."""
    for start in range(0, len(rules), _PER_WORD):
        bits = [
            F.shiftleft(broken(rule, types).cast("bigint"), bit)
            for bit, rule in enumerate(rules[start : start + _PER_WORD])
        ]
        yield reduce(lambda one, other: one.bitwiseOR(other), bits).alias(f"{_BITS}{start // _PER_WORD}")


def _bit(number: int) -> Column:
    word = F.col(f"{_BITS}{number // _PER_WORD}")
    return F.shiftright(word, number % _PER_WORD).bitwiseAND(F.lit(1).cast("bigint"))


def _is_broken(number: int) -> Column:
    return _bit(number) != F.lit(0)


def _any_broken(numbers: Sequence[int]) -> Column:
    words: dict[int, int] = {}
    for number in numbers:
        words[number // _PER_WORD] = words.get(number // _PER_WORD, 0) | 1 << number % _PER_WORD
    tests = [F.col(f"{_BITS}{word}").bitwiseAND(F.lit(mask).cast("bigint")) != F.lit(0) for word, mask in words.items()]
    return reduce(lambda one, other: one | other, tests)


def broken(rule: Rule, types: dict[str, str]) -> Column:
    """Whether a checked row breaks a rule of rows."""
    if isinstance(rule, Unique):
        return F.coalesce(F.col(_same(rule)), F.lit(0)) > F.lit(1)
    return F.expr(f"({condition(rule, types)}\n) IS FALSE")


def _same(rule: Unique) -> str:
    return _SAME + ",".join(sorted(name.lower() for name in columns_of(rule))).replace("`", "")


def _with_same(rows: DataFrame, rules: Sequence[Rule]) -> DataFrame:
    """For each set of unique columns how many rows have the row's values; null where one of them is null.

    A shuffle and a sort a set, the price of such a rule. Rows with a null hold, so they are spread, not gathered.
    """
    for rule in {_same(rule): rule for rule in rules if isinstance(rule, Unique)}.values():
        columns = all_quoted(columns_of(rule))
        missing = reduce(lambda one, other: one | other, [F.col(name).isNull() for name in columns])
        spread = F.when(missing, F.xxhash64(*all_quoted(rows.columns[: rows.columns.index(EVENT_TIME) + 1])))
        alike = Window.partitionBy(*columns, spread)
        rows = rows.withColumn(_same(rule), F.when(~missing, F.count(F.lit(1)).over(alike)))
    return rows


def _check_types(rows: DataFrame, rules: Sequence[Rule]) -> None:
    """Conditions are boolean and sums are of numbers: asked of Spark all at once, one by one only after a fault."""
    texts: list[tuple[Rule, str, str]] = []
    for rule in rules:
        if isinstance(rule, Expectation):
            texts.append((rule, "condition", rule.condition))
        if isinstance(rule, SumsMatch):
            texts += [(rule, "left", rule.left), (rule, "right", rule.right)]
    if not texts:
        return
    try:
        _, *types = _of_rows(rows, [text for *_, text in texts]).dtypes
    except AnalysisException as error:
        raise _first_fault(rows, texts) or error from error
    for (rule, part, _), (_, kind) in zip(texts, types, strict=True):
        plain, expected = kind.partition("(")[0], "boolean" if part == "condition" else "a number"
        if plain != "void" and (plain != "boolean" if part == "condition" else plain not in _NUMBERS):
            problem = f"its {part} gives {kind}, expected {expected}"
            raise DataError(f"Expectation '{name_of(rule)}'", problem, hint="correct it; nothing was written")


def _first_fault(rows: DataFrame, texts: Sequence[tuple[Rule, str, str]]) -> DataError | None:
    for rule, part, text in texts:
        try:
            _ = _of_rows(rows, [text]).schema
        except AnalysisException as error:  # noqa: PERF203 - the first that fails ends it
            problem = f"its {part} `{text}`: {reason(error)}"
            hint = f"{correction(error)}; nothing was written"
            return DataError(f"Expectation '{name_of(rule)}'", problem, hint=hint)
    return None


def _of_rows(rows: DataFrame, texts: Sequence[str]) -> DataFrame:
    """What each gives of a row. An aggregate function fails beside a column, one that makes rows inside another."""
    return rows.select(EVENT_TIME, *(F.coalesce(F.expr(f"({text}\n)")).alias(f"c{n}") for n, text in enumerate(texts)))


def _one_of(column: str, values: Sequence[object]) -> str:
    return f"`{column}` IN ({', '.join(map(literal, values))})"
