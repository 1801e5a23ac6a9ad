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
    Expectation,
    Feature,
    FeatureGroup,
    FeatureSelection,
    Service,
    Source,
)

__all__ = ["Aggregate", "Entity", "Expectation", "Feature", "FeatureGroup", "FeatureSelection", "Service", "Source"]
__all__ += ["Bucket", "Clip", "DropNull", "Fill", "Index", "Log", "MinMax", "OneHot", "Standardise"]
