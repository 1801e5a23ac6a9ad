"""The word of a user's test file: a case says which rows go in and which must come out.

    test_purchases.py beside purchases.py  ->  Case(group, source=..., expected=...)  ->  `tidemark test`

As with definitions, a case only holds what was written; `case_checks` names every fault of a folder at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from feature_defs.model import FeatureGroup, Location, Service, _located

TOLERANCE = 1e-9  # of a double, relative; a float has 24 bits, and never less than FLOAT_TOLERANCE
FLOAT_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Case:
    """Rows of a source and the feature rows that a group makes of them; or a spine and the training rows of a service.

    Tables are texts with bars. Only the columns that a table names are looked at; the order of rows means nothing. The
    name of a case is that of the variable that holds it.
    """

    subject: FeatureGroup | Service | str
    source: str | None = field(default=None, kw_only=True)
    sources: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    spine: str | None = field(default=None, kw_only=True)
    expected: str | None = field(default=None, kw_only=True)
    rejected: str | None = field(default=None, kw_only=True)
    broken: Mapping[str, int] | None = field(default=None, kw_only=True)
    now: str | None = field(default=None, kw_only=True)
    since: str | None = field(default=None, kw_only=True)
    schema: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    tolerance: float = field(default=TOLERANCE, kw_only=True)
    strict: bool = field(default=False, kw_only=True)
    known_by: str = field(default="event", kw_only=True)
    at: Location = _located()

    @property
    def subject_name(self) -> str:
        return self.subject.name if isinstance(self.subject, FeatureGroup | Service) else str(self.subject)


@dataclass(frozen=True)
class NamedCase:
    """A case as it was found: the variable it is in, and its file."""

    name: str
    file: str
    case: Case
