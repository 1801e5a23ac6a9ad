"""A sample of entities that every run takes again: all rows of an entity or none, chosen by a hash of its keys.

One of 2, 4, 8, ... entities, so that a table that grows gets a smaller part of the same sample, not another one.
"""

from __future__ import annotations

from collections.abc import Sequence

from pyspark.sql import DataFrame
from pyspark.sql import functions as F


def sampled(rows: DataFrame, keys: Sequence[str], *, one_of: int, seed: int) -> DataFrame:
    """The rows of one of so many entities."""
    if one_of == 1:
        return rows
    return rows.where(F.pmod(F.xxhash64(F.lit(seed), *keys), F.lit(one_of)) == 0)


def share(entities: int, wanted: int) -> int:
    """One of how many entities to take, a power of two, for at least about so many as are wanted."""
    return 1 << max(entities // max(wanted, 1), 1).bit_length() - 1


def entity_count(rows: DataFrame, keys: Sequence[str]) -> DataFrame:
    """(entities): how many the rows are of, to some percent; one pass over the keys, nothing is shuffled."""
    return rows.agg(F.approx_count_distinct(F.xxhash64(*keys)).alias("entities"))
