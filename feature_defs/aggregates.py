"""The closed table of aggregate functions, each as (prepare, merge, finalize) in plain Spark SQL.

A value over a window is built from partial states, so that one tile can be computed once and used by many windows:

    prepare    rows of one tile   -> state columns     {x} is the row's value, null where the row does not count
    merge      states of tiles    -> one state         the name of the Spark aggregate that joins two states
    finalize   one state          -> the value         {name} is a state column; it must give the empty window's value

`{order}` in prepare is the struct (event_time, created_time) that makes first and last deterministic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class AggregateFunction:
    """One row of the table. `numeric` functions take numbers only; `needs_column` is false for count alone."""

    prepare: Mapping[str, str]
    merge: Mapping[str, str]
    finalize: str
    numeric: bool = False
    needs_column: bool = True


AGGREGATES: dict[str, AggregateFunction] = {
    "count": AggregateFunction({"n": "count({x})"}, {"n": "sum"}, "coalesce({n}, 0L)", needs_column=False),
    "sum": AggregateFunction({"s": "sum({x})"}, {"s": "sum"}, "{s}", numeric=True),
    "avg": AggregateFunction(
        {"s": "sum(cast({x} as double))", "n": "count({x})"},
        {"s": "sum", "n": "sum"},
        "{s} / nullif({n}, 0L)",
        numeric=True,
    ),
    "min": AggregateFunction({"v": "min({x})"}, {"v": "min"}, "{v}"),
    "max": AggregateFunction({"v": "max({x})"}, {"v": "max"}, "{v}"),
    "first": AggregateFunction(
        {"v": "min(if({x} is null, null, struct({order} as o, {x} as x)))"}, {"v": "min"}, "{v}.x"
    ),
    "last": AggregateFunction(
        {"v": "max(if({x} is null, null, struct({order} as o, {x} as x)))"}, {"v": "max"}, "{v}.x"
    ),
}
