"""Window functions have no place in the SQL of a group: an increment evaluates it over new rows alone.

lag(fare) over (...) in a feature, an Aggregate or a rule -> a fault of `check`, or an error of what was registered
"""

from __future__ import annotations

from collections.abc import Iterator

from feature_defs import expressions
from feature_defs.errors import DataError
from feature_defs.model import Aggregate, FeatureGroup
from feature_defs.rule_checks import sql_texts
from feature_defs.rules import name_of

Found = Iterator[tuple[str, str]]  # (problem, hint)


def window_faults(what: str, text: str) -> Found:
    if expressions.has_window(text):
        problem = (
            f"{what} has a window function (OVER): a run over new rows alone would give other values than a full one"
        )
        yield problem, "write an Aggregate, or a transform, which may read any row"


def refuse_window_functions(group: FeatureGroup) -> None:
    """DataError for what was registered before `check` refused it."""
    for subject, what, text in _texts(group):
        for problem, hint in window_faults(what, text):
            raise DataError(subject, problem, hint=hint)


def aggregate_texts(aggregate: Aggregate) -> tuple[tuple[str, str], ...]:
    """What of an aggregate is Spark SQL, each with its label."""
    texts = (("aggregate column", aggregate.column), ("where", aggregate.where), ("by", aggregate.by))
    return tuple((what, text) for what, text in texts if text is not None)


def _texts(group: FeatureGroup) -> Iterator[tuple[str, str, str]]:
    """(subject, what it is, SQL) of all that is evaluated over the group's rows."""
    for feature in group.features:
        subject = f"Feature '{group.name}.{feature.name}'"
        match feature.expression:
            case str() as text:
                yield subject, "expression", text
            case Aggregate() as aggregate:
                yield from ((subject, what, text) for what, text in aggregate_texts(aggregate))
    for rule in group.rules:
        for part, condition in sql_texts(rule):
            yield f"FeatureGroup '{group.name}'", f"expectation '{name_of(rule)}'{part}", str(condition)
