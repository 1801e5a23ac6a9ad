"""The closed table of aggregate functions, each as (prepare, merge, finalize) in plain Spark SQL.

A value over a window is built from partial states, so that one tile can be computed once and used by many windows, and
kept for the next run:

    prepare    rows of one tile   -> state columns     {x} is the row's value, null where the row does not count
    merge      states of tiles    -> one state         {s} is a state column, null in an empty tile; {over} a frame
    finalize   one state          -> the value         {name} is a state column; it must give the empty window's value

`{order}` in prepare is the struct (event_time, created_time) that makes first and last deterministic, `{k}` and `{q}`
are the aggregate's own numbers. No state depends on the order in which rows or tiles arrive: a backfill and daily runs
give the same bits. So a sum of doubles is kept as whole numbers of four sizes, in which it is exact:

    x = high * 2^28 + middle * 2^-4 + low * 2^-36 + least * 2^-68 + rest        each but the last a whole number < 2^32

`rest` is 0 for 2^-16 <= |x| < 2^58. What lies under 2^-68, and values beyond 2^58, are added as plain doubles.

A *keyed* state holds one entry (k, states of the inner function) a key: counts by a second column, top k, quantiles.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

RELATIVE_ERROR = 0.01  # of a quantile


@dataclass(frozen=True)
class AggregateFunction:
    """One row of the table. `floating` is the row to use for floats and doubles, whose order must not count.

    `numeric` functions take numbers only. `takes` are the aggregate's own arguments (k, q) it needs. A function with
    `keyed_by` counts rows by that key of the value.
    """

    prepare: Mapping[str, str]
    merge: Mapping[str, str]
    finalize: str
    numeric: bool = False
    needs_column: bool = True
    takes: tuple[str, ...] = ()
    keyed_by: str | None = None
    floating: AggregateFunction | None = field(default=None, repr=False)

    @property
    def can_be_keyed(self) -> bool:
        """Whether `by=` may group it: its states merge by sums, minima and maxima alone."""
        return self.keyed_by is None and all(text in (SUM, MIN, MAX) for text in self.merge.values())


SUM, MIN, MAX = "sum({s}){over}", "min({s}){over}", "max({s}){over}"


def _exact(x: str, prefix: str = "") -> dict[str, str]:
    """The states of an exact sum of doubles. A remainder is exact, and a cast cuts towards zero: each has x's sign."""
    inside = f"if(abs({x}) < {2.0**58!r}D, {x}, 0D)"
    parts = {
        "high": f"cast({inside} * {2.0**-28!r}D as bigint)",
        "middle": f"cast({inside} % {2.0**28!r}D * {2.0**4!r}D as bigint)",
        "low": f"cast({inside} % {2.0**-4!r}D * {2.0**36!r}D as bigint)",
        "least": f"cast({inside} % {2.0**-36!r}D * {2.0**68!r}D as bigint)",
        "rest": f"if(abs({x}) < {2.0**58!r}D, {x} % {2.0**-68!r}D, {x})",
    }
    return {prefix + name: f"sum(if({x} is null, null, {text}))" for name, text in parts.items()}


def _total(prefix: str = "") -> str:
    """The double nearest to what the states of an exact sum stand for, to within two units of its last place."""
    parts = {name: f"{{{prefix}{name}}}" for name in ("high", "middle", "low", "least", "rest")}
    large = f"({parts['high']} * {2.0**28!r}D + {parts['middle']} * {2.0**-4!r}D)"
    small = f"({parts['low']} * {2.0**-36!r}D + {parts['least']} * {2.0**-68!r}D)"
    return f"({large} + ({small} + {parts['rest']}))"


_X = "cast({x} as double)"
_COUNT = {"n": "count({x})"}
_SUMS = dict.fromkeys(_exact(_X), SUM)
_SQUARES = dict.fromkeys(_exact(_X, "square_"), SUM)
_SQUARE_DEVIATIONS = f"greatest({_total('square_')} - {_total()} * ({_total()} / {{n}}), 0D)"
_VARIANCE = f"if({{n}} > 1L, {_SQUARE_DEVIATIONS} / ({{n}} - 1L), null)"
_MOMENTS = {**_COUNT, **_exact(_X), **_exact(f"({_X} * {_X})", "square_")}
_MOMENT_MERGE = {"n": SUM, **_SUMS, **_SQUARES}

# a bucket's number orders as its values do: 0 holds zero, 100000 the infinite, others are spaced by the relative error
_GAMMA = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
_SIZE = f"cast(least(ceil(ln(abs({_X})) / ln({_GAMMA!r}D)) + 50000D, 100000D) as int)"
_BUCKET = f"case when isnan({_X}) then null when {_X} = 0D then 0 when {_X} > 0D then {_SIZE} else -{_SIZE} end"
_MIDDLE = f"2D * pow({_GAMMA!r}D, abs(b) - 50000) / {_GAMMA + 1!r}D"
_VALUE_OF_BUCKET = (
    f"case when b = 0 then 0D when abs(b) = 100000 then sign(b) * double('Infinity') else sign(b) * {_MIDDLE} end"
)
_RANK = "greatest(cast(ceil({q}D * aggregate({e}, 0L, (a, x) -> a + x.n)) as bigint), 1L)"
# the first bucket at which the running count reaches the rank
_AT_RANK = (
    f"aggregate({{e}}, struct({_RANK} as left, cast(null as int) as b), (a, x) -> struct("
    "a.left - x.n as left, if(a.left > 0L, x.k, a.b) as b)).b"
)

AGGREGATES: dict[str, AggregateFunction] = {
    "count": AggregateFunction(_COUNT, {"n": SUM}, "coalesce({n}, 0L)", needs_column=False),
    "sum": AggregateFunction(
        {"s": "sum({x})"}, {"s": SUM}, "{s}", numeric=True, floating=AggregateFunction(_exact(_X), _SUMS, _total())
    ),
    "avg": AggregateFunction(
        {"s": "sum({x})", **_COUNT},
        {"s": SUM, "n": SUM},
        "cast({s} as double) / nullif({n}, 0L)",
        numeric=True,
        floating=AggregateFunction({**_exact(_X), **_COUNT}, {**_SUMS, "n": SUM}, f"{_total()} / nullif({{n}}, 0L)"),
    ),
    "min": AggregateFunction({"v": "min({x})"}, {"v": MIN}, "{v}"),
    "max": AggregateFunction({"v": "max({x})"}, {"v": MAX}, "{v}"),
    "variance": AggregateFunction(_MOMENTS, _MOMENT_MERGE, _VARIANCE, numeric=True),
    "stddev": AggregateFunction(_MOMENTS, _MOMENT_MERGE, f"sqrt({_VARIANCE})", numeric=True),
    "first": AggregateFunction(
        {"v": "min(if({x} is null, null, struct({order} as o, {x} as x)))"}, {"v": MIN}, "{v}.x"
    ),
    "last": AggregateFunction({"v": "max(if({x} is null, null, struct({order} as o, {x} as x)))"}, {"v": MAX}, "{v}.x"),
    "last_k": AggregateFunction(
        {"v": "slice(sort_array(collect_list(if({x} is null, null, struct({order} as o, {x} as x))), false), 1, {k})"},
        {"v": "slice(sort_array(flatten(collect_list({s}){over}), false), 1, {k})"},
        "if(size({v}) > 0, transform({v}, e -> e.x), null)",
        takes=("k",),
    ),
    "distinct": AggregateFunction(
        {"v": "array_sort(collect_set({x}))"},
        {"v": "array_sort(array_distinct(flatten(collect_list({s}){over})))"},
        "cast(coalesce(array_size({v}), 0) as bigint)",
    ),
    "approx_distinct": AggregateFunction(
        {"v": "hll_sketch_agg(cast({x} as string), 12)"},
        {"v": "hll_union_agg({s}){over}"},
        "coalesce(hll_sketch_estimate({v}), 0L)",
    ),
    "top_k": AggregateFunction(
        _COUNT,
        {"n": SUM},
        "transform(slice(array_sort(transform({e}, x -> struct(-x.n as n, x.k as k))), 1, {k}), x -> x.k)",
        takes=("k",),
        keyed_by="{x}",
    ),
    "quantile": AggregateFunction(
        _COUNT,
        {"n": SUM},
        f"element_at(transform(array({_AT_RANK}), b -> {_VALUE_OF_BUCKET}), 1)",
        numeric=True,
        takes=("q",),
        keyed_by=_BUCKET,
    ),
}
