"""The order in which rows are written: what lies together can be skipped together.

    a file's worth of rows       one span of time after the other
    in it, parts of PART rows    few entities each

Readers of a month skip files, readers of some entities skip parts of the files that are left.
"""

from __future__ import annotations

from collections.abc import Sequence

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import IntegralType

from feature_defs.expressions import quoted
from feature_defs.model import EVENT_TIME, HIDDEN

ROWS_A_FILE = 250_000
PART = 16_384
_FILE = HIDDEN + "file"
_ROW_BITS = 33  # of monotonically_increasing_id, the ones that count a task's rows
_KEY_BITS, _MOST_FILES = 50, (1 << 13) - 1


def in_order(rows: DataFrame, keys: Sequence[str]) -> DataFrame:
    """Rows of a table, ordered within each task."""
    row = F.monotonically_increasing_id().bitwiseAND(F.lit((1 << _ROW_BITS) - 1))
    # the row's number must be that of a sorted row: the optimizer moves nothing over an expression that counts
    by_time = rows.sortWithinPartitions(EVENT_TIME).withColumn(_FILE, F.floor(row / ROWS_A_FILE))
    is_whole = isinstance(rows.schema[keys[0]].dataType, IntegralType)
    first = [_in_one(keys[0])] if is_whole else [F.col(_FILE), F.col(quoted(keys[0]))]
    return by_time.sortWithinPartitions(*first, *map(quoted, keys[1:])).drop(_FILE)


def _in_one(key: str) -> Column:
    """File and key as one whole number of nearly their order: Spark sorts one several times faster than two."""
    most, name = 1 << (_KEY_BITS - 2), quoted(key)
    return F.expr(
        f"LEAST({_FILE}, {_MOST_FILES}) * {1 << _KEY_BITS} + CASE WHEN {name} > {most} THEN {most} + "
        f"SHIFTRIGHT({name}, 16) WHEN {name} < -{most} THEN -{most} + SHIFTRIGHT({name}, 16) ELSE {name} END"
    )
