"""Maps where Spark needs an order: it compares and sorts neither maps nor structs that hold them.

    rows -> entries_of: each map as its entries, sorted by key -> max, <=>, ... -> maps_again: the entries as maps

Sorted entries compare as tuples do: by first key, its value (null is least), next key and so on; of two that are equal
so far the shorter is less. Null is less than an empty map. Groups without maps pass through as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from feature_defs import data_types
from feature_defs.model import Feature


def map_names(features: Sequence[Feature]) -> tuple[str, ...]:
    """Which of the features are maps, by the types they declare."""
    return tuple(feature.name for feature in features if data_types.parse(feature.type).kind == "map")


def entries_of(rows: DataFrame, maps: Sequence[str]) -> DataFrame:
    """The rows with these maps as arrays of (key, value), sorted by key."""
    if not maps:
        return rows
    entries = {name: F.sort_array(F.map_entries(name)) for name in maps}
    return rows.withColumns(entries)


def maps_again(rows: DataFrame, maps: Sequence[str]) -> DataFrame:
    """What `entries_of` made of these columns as maps, their entries in the order of the keys."""
    if not maps:
        return rows
    return rows.withColumns({name: F.map_from_entries(name) for name in maps})
