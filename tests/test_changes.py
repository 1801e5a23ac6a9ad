"""What a plan says: each kind of change, what is recomputed, what is refused, and a status that stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from feature_defs.changes import ADDED, CHANGED, REMOVED, Change, Plan, compare, keep_status
from feature_defs.loading import load
from feature_defs.model import Definitions
from tests.definition_files import GOOD, edited, loaded, write

GROUP = "FeatureGroup 'spend'"
SERVICE = "Service 'churn'"
COUNT = 'Feature("orders", "bigint", Aggregate("count")),'
WHOLE = ('[spend["orders", "mean"]]', "[spend]")


def planned(folder: Path, *changes: tuple[str, str], registered: str = GOOD) -> Plan:
    """The plan from the registered file to the one with these changes."""
    return compare(loaded(folder / "before", registered), loaded(folder / "after", edited(*changes, text=registered)))


def told(plan: Plan) -> list[str]:
    """Each change as one line, `!` where values change."""
    return [
        f"{change.action} {change.word} {change.name}{'!' if change.values_change else ''}: "
        + "; ".join(f"{field.field} {field.before} -> {field.after}" for field in change.fields)
        for change in plan.changes
    ]


def test_everything_is_added_to_an_empty_registry(tmp_path: Path) -> None:
    plan = compare(None, loaded(tmp_path))
    assert plan.changes == (
        Change(ADDED, "Entity", "customer"),
        Change(ADDED, "Source", "orders"),
        Change(ADDED, "FeatureGroup", "spend", values_change=True),
        Change(ADDED, "Service", "churn"),
    )
    assert (plan.recompute, plan.refusals, plan.warnings) == (("spend",), (), ())


def test_everything_is_removed_by_an_empty_folder(tmp_path: Path) -> None:
    plan = compare(loaded(tmp_path), Definitions({}, {}, {}, {}))
    assert [(change.action, change.name) for change in plan.changes] == [
        (REMOVED, "customer"),
        (REMOVED, "orders"),
        (REMOVED, "spend"),
        (REMOVED, "churn"),
    ]
    assert (plan.recompute, plan.refusals) == ((), ())


def test_the_same_files_change_nothing(tmp_path: Path) -> None:
    assert planned(tmp_path) == Plan((), (), (), ())


@pytest.mark.parametrize(
    ("old", "new", "lines"),
    [
        ('owner="crm"', 'owner="web"', ["changed FeatureGroup spend: owner crm -> web"]),
        ('tags=["crm"]', "tags=[]", ["changed FeatureGroup spend: tags ['crm'] -> []"]),
        (
            'ttl="90d"',
            'ttl="30d", online=True',
            ["changed FeatureGroup spend!: ttl 90d -> 30d; online False -> True"],
        ),
        (
            'keys={"customer_id": "string"}',
            'keys={"customer_id": "string"}, description="who buys"',
            ["changed Entity customer: description  -> who buys"],
        ),
        (
            "amount is not null",
            "amount > 0",
            ["changed Source orders: filter amount is not null -> amount > 0", "changed FeatureGroup spend!: "],
        ),
        (
            "spent_30d / nullif(orders, 0)",
            "1.5 * spent_30d",
            ["changed FeatureGroup spend!: features.mean.expression spent_30d / nullif(orders, 0) -> 1.5 * spent_30d"],
        ),
        (
            'window="30d"',
            'window="7d"',
            ["changed FeatureGroup spend!: features.spent_30d.expression.window 30d -> 7d"],
        ),
        (
            'nullif(orders, 0)")',
            'nullif(orders, 0)", description="a mean", pii=True)',
            ["changed FeatureGroup spend: features.mean.description  -> a mean; features.mean.pii False -> True"],
        ),
        (
            '"mean >= 0"',
            '"mean >= 0", severity="quarantine"',
            ["changed FeatureGroup spend!: expectations.not_negative.severity warn -> quarantine"],
        ),
        ('["orders", "mean"]]', '["orders", "mean"]], owner="ml"', ["changed Service churn: owner  -> ml"]),
    ],
)
def test_a_change_names_the_field_and_whether_values_change(
    tmp_path: Path, old: str, new: str, lines: list[str]
) -> None:
    plan = planned(tmp_path, (old, new))
    assert told(plan) == lines
    assert plan.recompute == (("spend",) if any("!" in line for line in lines) else ())
    assert plan.refusals == ()


def test_layout_of_sql_is_told_but_changes_no_values(tmp_path: Path) -> None:
    """The registry keeps the text as it was written."""
    plan = planned(tmp_path, ("spent_30d / nullif(orders, 0)", "spent_30d  /  nullif(orders,0)"))
    assert [(change.name, change.values_change) for change in plan.changes] == [("spend", False)]
    assert plan.recompute == ()


def test_features_that_only_moved_are_told_as_another_order(tmp_path: Path) -> None:
    lines = GOOD.splitlines(keepends=True)
    moved = "".join([*lines[:9], lines[10], lines[9], *lines[11:]])
    plan = compare(loaded(tmp_path / "before"), loaded(tmp_path / "after", moved))
    assert told(plan) == ["changed FeatureGroup spend: features order -> another order"]
    assert (plan.recompute, plan.refusals) == ((), ())


def test_an_added_and_a_removed_feature_are_told_by_name(tmp_path: Path) -> None:
    plan = planned(tmp_path, (COUNT, f'{COUNT} Feature("n", "bigint", Aggregate("count")),'))
    ((field,),) = (change.fields for change in plan.changes)
    assert (field.field, field.before, field.after["type"]) == ("features.n", None, "bigint")
    back = compare(loaded(tmp_path / "after"), loaded(tmp_path / "before"))
    assert back == Plan((), (), (), ())


def test_the_first_expectation_is_told_by_name(tmp_path: Path) -> None:
    """A list of none is compared by name too."""
    without = edited(('expectations=[Expectation("not_negative", "mean >= 0")],', ""))
    plan = compare(loaded(tmp_path / "before", without), loaded(tmp_path / "after"))
    assert [field.field for change in plan.changes for field in change.fields] == ["expectations.not_negative"]


# --- promises of a group's version ---


def test_a_type_may_not_change_within_a_version(tmp_path: Path) -> None:
    plan = planned(tmp_path, ('"spent_30d", "double"', '"spent_30d", "float"'))
    assert plan.refusals == (
        (
            GROUP,
            "feature 'spent_30d' changes type from double to float within version 1",
            "set version=2; version 1 stays readable",
        ),
    )


def test_another_spelling_of_a_type_is_no_change_of_it(tmp_path: Path) -> None:
    decimal = edited(('"spent_30d", "double"', '"spent_30d", "decimal(12,2)"'))
    plan = planned(tmp_path, ("decimal(12,2)", "Decimal(12, 2)"), registered=decimal)
    assert (plan.refusals, plan.recompute) == ((), ())


def test_a_type_may_change_with_a_new_version_and_is_recomputed(tmp_path: Path) -> None:
    """The service does not read that feature, so only the group's version in what it receives is of note."""
    plan = planned(
        tmp_path,
        ('"spent_30d", "double"', '"spent_30d", "float"'),
        ('ttl="90d"', 'ttl="90d", version=2'),
        ('["orders", "mean"]]', '["orders", "mean"]], version=2'),
    )
    assert (plan.refusals, plan.recompute) == ((), ("spend",))


def test_keys_may_not_change_within_a_version(tmp_path: Path) -> None:
    old = 'Entity("customer", keys={"customer_id": "string"})'
    column = 'schema={"customer_id": "string", '
    plan = planned(tmp_path, *((text, text.replace('"string"', '"bigint"')) for text in (old, column)))
    assert [(subject, problem) for subject, problem, _ in plan.refusals] == [
        (GROUP, "its keys change from customer_id string to customer_id bigint within version 1")
    ]


def test_the_order_of_keys_may_not_change_within_a_version(tmp_path: Path) -> None:
    """It is the order of the online key's bytes."""
    one, other = (
        '{"customer_id": "string", "ordered_at": "timestamp"})',
        '{"ordered_at": "timestamp", "customer_id": "string"})',
    )
    plan = planned(tmp_path, (one, other), registered=edited(('{"customer_id": "string"})', one)))
    ((_, problem, _),) = plan.refusals
    before, after = "customer_id string, ordered_at timestamp", "ordered_at timestamp, customer_id string"
    assert problem == f"its keys change from {before} to {after} within version 1"


def test_the_offline_format_may_not_change_within_a_version(tmp_path: Path) -> None:
    plan = planned(tmp_path, ('ttl="90d"', 'ttl="90d", offline="parquet"'))
    assert plan.refusals == (
        (
            GROUP,
            "its offline format changes from delta to parquet within version 1",
            "set version=2; version 1 stays readable",
        ),
    )


def test_a_version_may_not_fall(tmp_path: Path) -> None:
    higher = edited(('ttl="90d"', 'ttl="90d", version=3'), ('["orders", "mean"]]', '["orders", "mean"]], version=3'))
    plan = planned(
        tmp_path,
        ('ttl="90d", version=3', 'ttl="90d", version=2'),
        ('"mean"]], version=3', '"mean"]], version=1'),
        registered=higher,
    )
    assert plan.refusals == (
        (GROUP, "version 2 is below the registered 3", "use version=3 or more"),
        (SERVICE, "version 1 is below the registered 3", "use version=3 or more"),
    )


def test_all_refusals_come_at_once_in_name_order(tmp_path: Path) -> None:
    names = [f"g{number}" for number in range(8)]
    group = 'FeatureGroup("{}", entity=customer, source=orders, features=[Feature("amount", "{}")]),\n'
    before, after = (
        "".join([*GOOD.splitlines(keepends=True)[:6], "X = [", *(group.format(name, kind) for name in names), "]\n"])
        for kind in ("double", "float")
    )
    plan = compare(loaded(tmp_path / "before", before), loaded(tmp_path / "after", after))
    assert [subject for subject, _, _ in plan.refusals] == [f"FeatureGroup '{name}'" for name in names]


# --- promises of a service's version ---


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (('"orders", "mean"]', '"orders"]'), "loses spend.mean"),
        (('"orders", "mean"]', '"orders", "mean", "spent_30d"]'), "gains spend.spent_30d"),
        (('"orders", "mean"]', '"mean", "orders"]'), "has its columns in another order"),
        (
            ('ttl="90d"', 'ttl="90d", version=2'),
            (
                "has other spend.orders (bigint of version 1 -> bigint of version 2), "
                "spend.mean (double of version 1 -> double of version 2)"
            ),
        ),
    ],
)
def test_what_a_model_receives_may_not_change_within_a_version(
    tmp_path: Path, change: tuple[str, str], reason: str
) -> None:
    plan = planned(tmp_path, change)
    assert plan.refusals == (
        (
            SERVICE,
            f"{reason}: that would change what the model of version 1 receives",
            "set version=2 on the service, or undo the change",
        ),
    )
    raised = planned(
        tmp_path / "raised", change, ('churn = Service("churn", ', 'churn = Service("churn", version=2, features=')
    )
    assert raised.refusals == ()


def test_a_feature_less_in_a_group_is_refused_where_a_service_takes_all_of_it(tmp_path: Path) -> None:
    mean = '        Feature("mean", "double", "spent_30d / nullif(orders, 0)"),\n'
    plan = planned(tmp_path, (mean, ""), ("mean >= 0", "orders >= 0"), registered=edited(WHOLE))
    assert [problem.split(":")[0] for _, problem, _ in plan.refusals] == ["loses spend.mean"]


def test_a_feature_more_in_a_group_is_refused_where_a_service_takes_all_of_it(tmp_path: Path) -> None:
    plan = planned(tmp_path, (COUNT, f'{COUNT} Feature("n", "bigint", Aggregate("count")),'), registered=edited(WHOLE))
    assert [problem.split(":")[0] for _, problem, _ in plan.refusals] == ["gains spend.n"]


def test_naming_all_features_is_the_same_as_taking_the_group(tmp_path: Path) -> None:
    plan = planned(
        tmp_path, ("[spend]]", '[spend["orders", "spent_30d", "mean"]]]'), registered=edited((WHOLE[0], "[*[spend]]"))
    )
    assert plan.refusals == ()


# --- status ---


def registered_as(folder: Path, status: str) -> Definitions:
    return loaded(folder, edited(('ttl="90d"', f'ttl="90d", status="{status}"')))


def test_a_group_without_a_status_is_active(tmp_path: Path) -> None:
    wanted = loaded(tmp_path)
    assert wanted.groups["spend"].status is None
    assert keep_status(None, wanted).groups["spend"].status == "active"


def test_a_deprecated_group_stays_so_until_its_file_says_active(tmp_path: Path) -> None:
    deprecated = registered_as(tmp_path / "before", "deprecated")
    silent, active = loaded(tmp_path / "after"), registered_as(tmp_path / "active", "active")
    assert keep_status(deprecated, silent).groups["spend"].status == "deprecated"
    assert keep_status(deprecated, active).groups["spend"].status == "active"


def test_a_change_of_status_changes_no_values(tmp_path: Path) -> None:
    plan = compare(registered_as(tmp_path / "before", "active"), registered_as(tmp_path / "after", "deprecated"))
    assert [(change.action, change.values_change) for change in plan.changes] == [(CHANGED, False)]


def test_a_deprecated_group_that_a_service_uses_is_warned_of(tmp_path: Path) -> None:
    deprecated = registered_as(tmp_path, "deprecated")
    assert compare(deprecated, deprecated).warnings == (
        "FeatureGroup 'spend' is deprecated and still used by service 'churn'",
    )


def test_a_group_that_moves_to_another_file_is_no_change(tmp_path: Path) -> None:
    lines = GOOD.splitlines(keepends=True)
    files = {"a.py": "".join(lines[:6]), "b.py": lines[0] + "from .a import customer, orders\n" + "".join(lines[6:])}
    assert compare(loaded(tmp_path / "before"), load(write(tmp_path / "after", files))) == Plan((), (), (), ())
