"""What a feature IS: the words users write, their checks, and what changes from one set to the next.

Standard library only. The words are here; everything else is imported from its own module.
"""

from feature_defs.cleaning import (
    Bucket,
    Clip,
    DropNull,
    Fill,
    Index,
    Log,
    MinMax,
    OneHot,
    Standardise,
)
from feature_defs.model import (
    Aggregate,
    Entity,
    Feature,
    FeatureGroup,
    FeatureSelection,
    Service,
    Source,
)
from feature_defs.rules import (
    Expectation,
    Freshness,
    InRange,
    Matches,
    NotNull,
    OneOf,
    RowCount,
    SumsMatch,
    Unique,
)

__all__ = [
    "Aggregate",
    "Bucket",
    "Clip",
    "DropNull",
    "Entity",
    "Expectation",
    "Feature",
    "FeatureGroup",
    "FeatureSelection",
    "Fill",
    "Freshness",
    "InRange",
    "Index",
    "Log",
    "Matches",
    "MinMax",
    "NotNull",
    "OneHot",
    "OneOf",
    "RowCount",
    "Service",
    "Source",
    "Standardise",
    "SumsMatch",
    "Unique",
]
