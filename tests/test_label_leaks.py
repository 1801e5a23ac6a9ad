"""A service whose features read the label's own column is refused, by whatever way they read it."""

from __future__ import annotations

import pytest

from feature_defs import Aggregate, Entity, Feature, FeatureGroup, Service, Source
from feature_defs.cleaning import Index
from feature_defs.errors import UsageError
from feature_defs.label_leaks import refuse_label_leaks
from feature_defs.model import Definition
from tests.lab import checked

customer = Entity("customer", keys={"customer_id": "string"})
raw = Source("raw", path="lake://raw/raw", event_time="at")
plain = FeatureGroup(
    "plain",
    entity=customer,
    source=raw,
    features=[
        Feature("left_at", "timestamp"),
        Feature("is_gone", "boolean", "coalesce(CHURNED, false)"),
        Feature("is_not_gone", "boolean", "not is_gone"),
        Feature("state", "int", Index("churned", fit=("2025-01-01", "2025-02-01"))),
        Feature("amount", "double", "amount * 2"),
        Feature("note", "string", "concat('churned', other.churned)"),
    ],
)
summed = FeatureGroup(
    "summed",
    entity=customer,
    source=raw,
    every="1d",
    features=[
        Feature("times", "bigint", Aggregate("sum", "churned")),
        Feature("lost", "bigint", Aggregate("count", where="churned = 1")),
        Feature("by_state", "map<string,bigint>", Aggregate("count", by="churned")),
        Feature("churned", "bigint", Aggregate("count")),
        Feature("twice", "bigint", "churned * 2"),
    ],
)
chained = FeatureGroup(
    "chained",
    entity=customer,
    source=plain,
    features=[Feature("gone", "boolean", "is_not_gone"), Feature("much", "double", "amount")],
)
GROUPS = (plain, summed, chained)


def service(group: FeatureGroup, feature: str) -> tuple[Service, tuple[Definition, ...]]:
    made = Service("churn", [group[feature]])
    return made, (customer, raw, *GROUPS, made)


@pytest.mark.parametrize(
    ("group", "feature", "label", "told"),
    [
        (plain, "left_at", "left_at", "feature 'plain.left_at' reads source 'raw''s column 'left_at'"),
        (plain, "is_gone", "churned", "feature 'plain.is_gone' reads source 'raw''s column 'CHURNED'"),
        (plain, "is_not_gone", "churned", "feature 'plain.is_not_gone' reads source 'raw''s column 'CHURNED'"),
        (plain, "state", "Churned", "reads source 'raw''s column 'churned', and --label 'Churned' says"),
        (summed, "times", "churned", "feature 'summed.times' reads"),
        (summed, "lost", "churned", "feature 'summed.lost' reads"),
        (summed, "by_state", "churned", "feature 'summed.by_state' reads"),
        (chained, "gone", "churned", "feature 'chained.gone' reads source 'raw''s column 'CHURNED'"),
        (chained, "gone", "is_not_gone", "feature 'chained.gone' reads group 'plain''s column 'is_not_gone'"),
    ],
)
def test_feature_that_reads_the_label_is_refused(group: FeatureGroup, feature: str, label: str, told: str) -> None:
    made, words = service(group, feature)
    with pytest.raises(UsageError, match=r"^Service 'churn': .*\nHint: leave the feature out") as caught:
        refuse_label_leaks(made, checked(*words), ["other_label", label])
    assert told in caught.value.problem


@pytest.mark.parametrize(
    ("group", "feature"),
    [(plain, "amount"), (plain, "note"), (chained, "much"), (summed, "churned"), (summed, "twice")],
)
def test_feature_that_only_has_or_says_the_name_is_not(group: FeatureGroup, feature: str) -> None:
    made, words = service(group, feature)
    refuse_label_leaks(made, checked(*words), ["churned"])
    refuse_label_leaks(made, checked(*words), [])
