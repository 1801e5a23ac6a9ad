"""Which part of a dataset a row is in, by its time alone: parts are half-open spans that do not overlap."""

from __future__ import annotations

from collections.abc import Sequence

from pyspark.sql import Column
from pyspark.sql import functions as F

from feature_defs.splits import Part, gaps

OUTSIDE, GAP = "-", "~"  # no name of a part


def split_of(time: Column, parts: Sequence[Part]) -> Column:
    """The name of the part that a time is in, GAP between two parts that a gap keeps apart, OUTSIDE for any other."""
    found = F.lit(OUTSIDE)
    for start, end in gaps(parts):
        found = F.when(_within(time, start, end), F.lit(GAP)).otherwise(found)
    for part in parts:
        found = F.when(_within(time, part.start_us, part.end_us), F.lit(part.name)).otherwise(found)
    return found


def _within(time: Column, start_us: int | None, end_us: int | None) -> Column:
    found = time.isNotNull()
    if start_us is not None:
        found = found & (time >= F.timestamp_micros(F.lit(start_us)))
    if end_us is not None:
        found = found & (time < F.timestamp_micros(F.lit(end_us)))
    return found
