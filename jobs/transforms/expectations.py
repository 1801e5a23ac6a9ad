"""What rows should be like: each rule becomes a count, a mark for the quarantine, or a stop of the job.

A condition that is null holds, as in SQL's CHECK. A feature's allowed values are a rule of severity warn.
"""

from __future__ import annotations

from collections.abc import Sequence

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from feature_defs.model import REJECTED, Expectation, FeatureGroup

STOPPED = "tidemark expectation broken: "


def rules_of(group: FeatureGroup) -> tuple[Expectation, ...]:
    """The group's expectations, and one for each feature with allowed values."""
    allowed = (
        Expectation(f"{feature.name}_allowed_values", _one_of(feature.name, feature.allowed_values))
        for feature in group.features
        if feature.allowed_values
    )
    return (*group.expectations, *allowed)


def checked(rows: DataFrame, rules: Sequence[Expectation]) -> DataFrame:
    """The rows with the names of the quarantine rules they break in `REJECTED`; evaluating it fails on a stop rule."""
    quarantine = [rule for rule in rules if rule.severity == "quarantine"]
    stop = [rule for rule in rules if rule.severity == "stop"]
    reasons = [F.when(broken(rule), F.lit(rule.name)) for rule in quarantine]
    reasons = [F.when(broken(rule), F.raise_error(F.lit(STOPPED + rule.name))) for rule in stop] + reasons
    marked = F.concat_ws(", ", *reasons) if reasons else F.lit("")
    return rows.select("*", F.nullif(marked, F.lit("")).alias(REJECTED))


def broken(rule: Expectation) -> Column:
    return ~F.coalesce(F.expr(f"({rule.condition}\n)"), F.lit(True))


def _one_of(column: str, values: Sequence[object]) -> str:
    return f"`{column}` IN ({', '.join(map(_literal, values))})"


def _literal(value: object) -> str:
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, int | float):
        return repr(value)
    text = str(value).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{text}'"
