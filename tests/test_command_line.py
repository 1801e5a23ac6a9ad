"""The command line of the verbs that need no Spark: help, exit codes, text and JSON, through a real registry."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from connectors.adls_files import AdlsFileStore
from connectors.file_store import use_file_stores
from feature_defs import Aggregate, Feature, errors
from jobs.command_line import VERBS, main, overview, verb_parser
from jobs.show import expression_text
from tests.definition_files import GOOD, edited, write, write_place

ROOT = Path(__file__).resolve().parent.parent

SHOP = (
    GOOD.replace(
        'Feature("orders", "bigint", Aggregate("count"))',
        'Feature("orders", "bigint", Aggregate("count"), tags=["volume"], description="paid ones")',
    )
    + """
visitor = Entity("visitor", keys={"visitor_id": "bigint"})
visits = Source("visits", path="lake://raw/visits", event_time="seen_at")
visit_last = FeatureGroup(
    "visit_last", entity=visitor, source=visits, owner="web", description="the newest visit", version=2,
    features=[Feature("page", "string"), Feature("seconds", "int", "cast(length as int)")],
)
rank = Service("rank", [visit_last, spend["mean"]], owner="search", tags=["live"])
"""
)


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> Any:
        return json.loads(self.err)


Run = Callable[..., Ran]


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    return write_place(tmp_path, SHOP)


@pytest.fixture
def run(profile: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a verb at the test's own place, from the repository's folder."""
    for name in [name for name in os.environ if name.startswith("TIDEMARK")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("TIDEMARK_PROFILE", str(profile))

    def ran(*arguments: str) -> Ran:
        capsys.readouterr()
        code = main(arguments)
        return Ran(code, *capsys.readouterr())

    return ran


@pytest.fixture
def applied(run: Run) -> Run:
    assert run("apply", "--message", "the first").code == 0
    return run


def rewrite(profile: Path, *changes: tuple[str, str]) -> None:
    write(profile.parent, {"definitions/shop.py": edited(*changes, text=SHOP)})


# --- help ---


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_tells_what_it_does_and_what_each_argument_is_for(verb: str) -> None:
    parser = verb_parser(verb, importlib.import_module(VERBS[verb].module))
    assert (parser.description or "").startswith(f"{verb}: ")
    assert [action.dest for action in parser._actions if not action.help] == []
    assert {"--profile", "--json", "--help"} <= {
        option for action in parser._actions for option in action.option_strings
    }


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_is_printed_and_is_success(run: Run, verb: str) -> None:
    ran = run(verb, "--help")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith(f"usage: tidemark {verb} ")


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_the_overview_names_every_verb_and_every_exit_code(run: Run, arguments: list[str]) -> None:
    ran = run(*arguments)
    assert (ran.code, ran.out) == (0, overview() + "\n")
    for name, verb in VERBS.items():
        assert re.search(rf"^  {name} +{re.escape(verb.summary)}$", ran.out, re.MULTILINE)
    told = {int(code) for code in re.findall(r"(?:^|  )(\d)(?= \S)", ran.out.split("exit codes:")[1], re.MULTILINE)}
    family = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.TidemarkError)
    ]
    assert told == {kind.exit_code for kind in family} | {errors.EXIT_DONE, errors.EXIT_BUG, errors.EXIT_CHANGES}


def test_every_module_that_can_run_as_a_script_is_a_verb() -> None:
    runs = {f"jobs.{path.stem}" for path in ROOT.glob("jobs/*.py") if "run_verb(" in path.read_text(encoding="utf-8")}
    assert runs - {"jobs.command_line"} == {verb.module for verb in VERBS.values()}


# --- mistakes on the command line ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["chek"], "'chek' is not a verb\nHint: did you mean 'check'? verbs: check, test, plan, apply"),
        (["--profile", "local"], "'--profile' is not a verb"),
        (["show"], "`tidemark show`: the following arguments are required: name"),
        (["check", "--verbose"], "`tidemark check`: unrecognized arguments: --verbose\nHint: `tidemark check --help`"),
        (["list", "--status", "old"], "argument --status: invalid choice: 'old'"),
        (["apply", "--message"], "argument --message: expected one argument"),
        (["check", "--profile", "locl"], "Profile 'locl': there is no file conf/locl.toml"),
    ],
)
def test_a_usage_error_exits_4_with_a_hint(run: Run, arguments: list[str], message: str) -> None:
    """Never argparse's 2: that is what a plan with changes exits with."""
    ran = run(*arguments)
    assert (ran.code, ran.out) == (4, "")
    assert ran.err.startswith("tidemark: ")
    assert message in ran.err
    assert "\nHint: " in ran.err
    assert "Traceback" not in ran.err


def test_an_error_as_json_is_json(run: Run) -> None:
    error = run("show", "spend", "--json").error
    assert error["error"] == "LakeError"
    assert (error["subject"], error["exit_code"]) == ("Registry", 6)
    assert error["hint"] == "run `tidemark apply` first"


def test_a_bug_is_told_with_all_of_its_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("not thought of")

    monkeypatch.setattr("jobs.check.run", broken)
    ran = run("check")
    assert (ran.code, ran.out) == (1, "")
    assert "Traceback" in ran.err
    assert "RuntimeError: not thought of" in ran.err
    assert "this is a bug in Tidemark" in ran.err


# --- the same everywhere ---


def test_python_m_jobs_and_the_verbs_own_file_run_the_same_verb(run: Run, profile: Path) -> None:
    expected = run("plan")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TIDEMARK_PROFILE": str(profile)}
    for command in (["-m", "jobs", "plan"], ["jobs/plan.py"]):
        ran = subprocess.run(
            [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        assert Ran(ran.returncode, ran.stdout, ran.stderr) == expected


def test_a_reader_that_stops_reading_is_no_bug(profile: Path) -> None:
    """`tidemark show ... | head -1`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TIDEMARK_PROFILE": str(profile)}
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "jobs", "check"]
    ran = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=writing, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writing)
    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.parametrize(
    "arguments",
    [
        ["check"],
        ["plan"],
        ["apply"],
        ["list"],
        ["show", "spend"],
        ["show", "rank"],
        ["history"],
        ["deprecate", "spend"],
    ],
    ids=" ".join,
)
def test_json_is_the_report_and_nothing_else(applied: Run, arguments: list[str]) -> None:
    ran = applied(*arguments, "--json")
    assert (ran.code, ran.err) == (0, "")
    assert ran.json["verb"] == arguments[0]
    assert applied(*arguments).code == 0


# --- check ---


def test_check_names_groups_with_their_fingerprints(run: Run) -> None:
    ran = run("check", "--json")
    assert (ran.json["features"], ran.json["services"]) == (5, 2)
    assert list(ran.json["groups"]) == ["spend", "visit_last"]
    assert all(re.fullmatch("[0-9a-f]{16}", digest) for digest in ran.json["groups"].values())
    assert "2 groups, 5 features, 2 services: no fault" in run("check").out


def test_faults_exit_3_and_are_all_there_as_text_and_as_json(run: Run, profile: Path) -> None:
    rewrite(profile, ('ttl="90d"', 'ttl="0d"'), ('owner="search"', 'ownr="search"'))
    for verb in ("check", "plan", "apply"):
        ran = run(verb)
        assert (ran.code, ran.out) == (3, "")
        assert "did you mean 'owner'?" in ran.err
        faults = run(verb, "--json").error["faults"]
        assert [sorted(fault) for fault in faults] == [["file", "hint", "line", "problem", "subject"]] * len(faults)
        assert [fault["line"] for fault in faults] == [24]
    rewrite(profile, ('ttl="90d"', 'ttl="0d"'), ('window="30d"', 'window="36h"'))
    assert [fault["line"] for fault in run("check", "--json").error["faults"]] == [7, 11]


# --- plan and apply ---


def test_plan_exits_2_with_changes_0_without_and_3_when_they_are_refused(run: Run, profile: Path) -> None:
    first = run("plan")
    assert first.code == 2
    assert first.out.splitlines()[-2:] == ["to recompute: spend, visit_last", "8 changes against registry snapshot 0"]
    assert run("apply").code == 0
    assert run("plan") == Ran(0, "no change against registry snapshot 1\n", "")
    rewrite(profile, ('"spent_30d", "double"', '"spent_30d", "float"'))
    refused = run("plan")
    assert refused.code == 3
    assert "refused: FeatureGroup 'spend': feature 'spent_30d' changes type from double to float" in refused.out
    rewrite(profile, ('owner="search"', 'owner="discovery"'))
    changed = run("plan")
    assert (changed.code, changed.out) == (
        2,
        "~ Service rank\n    owner: search -> discovery\n1 change against registry snapshot 1\n",
    )


def test_plan_writes_nothing(run: Run, profile: Path) -> None:
    run("plan")
    assert {path.name for path in profile.parent.iterdir()} == {"definitions", "place.toml"}


def test_apply_registers_what_plan_showed_and_then_nothing(run: Run) -> None:
    planned = run("plan", "--json").json
    done = run("apply", "--json", "--message", "why").json
    assert (done["snapshot"], done["applied"]) == (1, True)
    assert (done["changes"], done["recompute"]) == (planned["changes"], planned["recompute"])
    again = run("apply")
    assert (again.code, again.out) == (0, "nothing to apply: registry snapshot 1 stays in force\n")
    assert len(run("history", "--json").json["entries"]) == 1


def test_a_refused_apply_exits_3_and_registers_nothing(applied: Run, profile: Path) -> None:
    rewrite(profile, ('"spent_30d", "double"', '"spent_30d", "float"'), ("[visit_last, spend", "[spend"))
    ran = applied("apply")
    assert (ran.code, ran.out) == (3, "")
    assert ran.err.count("\nHint: ") == 2
    reasons = applied("apply", "--json").error["reasons"]
    assert [reason["subject"] for reason in reasons] == ["FeatureGroup 'spend'", "Service 'rank'"]
    assert applied("history", "--json").json["entries"][0]["snapshot"] == 1


def test_a_lake_that_cannot_be_written_exits_6(run: Run, profile: Path) -> None:
    (profile.parent / "features").write_text("a file")
    ran = run("apply")
    assert (ran.code, ran.out) == (6, "")
    assert "Not a directory" in ran.err
    assert "Traceback" not in ran.err


def test_an_account_that_refuses_spark_exits_6_without_a_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    url = "https://acme.dfs.core.windows.net/raw/a?se=2026-01-31&sig=XXXXX"

    def refused(*_: object) -> None:
        raise RuntimeError(
            f'Caused by: Operation failed: "Forbidden", 403, PUT, {url}, rId: 1, AuthenticationFailed, "x"'
        )

    account = AdlsFileStore("acme", "https://acme.dfs.core.windows.net", auth="sas", secret="se=2026-01-31&sig=x")
    use_file_stores({"abfss://raw@acme.dfs.core.windows.net": lambda: account})
    monkeypatch.setattr("jobs.check.run", refused)
    ran = run("check")
    assert (ran.code, ran.out) == (6, "")
    assert ran.err == (
        "tidemark: Lake path 'abfss://raw@acme.dfs.core.windows.net/a': cannot write it: AuthenticationFailed (403), "
        "the SAS of account 'acme' expired at 2026-01-31 00:00:00 UTC\n"
        "Hint: put a new SAS where [adls.acme] secret says, and run it again; what was there before is unchanged\n"
    )


# --- list ---


@pytest.mark.parametrize(
    ("criteria", "names"),
    [
        ([], ["spend", "visit_last", "churn", "rank"]),
        (["SPENT"], ["spend"]),
        (["mean"], ["spend", "churn", "rank"]),
        (["newest visit"], ["visit_last"]),
        (["--owner", "web"], ["visit_last"]),
        (["--owner", "CRM"], ["spend"]),
        (["--tag", "crm"], ["spend"]),
        (["--tag", "volume"], ["spend"]),
        (["--tag", "live"], ["rank"]),
        (["--entity", "visitor"], ["visit_last", "rank"]),
        (["--entity", "customer", "--owner", "search"], ["rank"]),
        (["--status", "deprecated"], []),
        (["page", "--owner", "crm"], []),
    ],
)
def test_list_finds_what_meets_all_criteria(applied: Run, criteria: list[str], names: list[str]) -> None:
    ran = applied("list", *criteria, "--json")
    assert (ran.code, [entry["name"] for entry in ran.json["entries"]]) == (0, names)


def test_list_shows_the_features_that_match(applied: Run) -> None:
    found = {entry["name"]: entry["features"] for entry in applied("list", "paid", "--json").json["entries"]}
    assert found == {"spend": ["orders"]}
    assert applied("list", "paid").out.splitlines()[-1] == "1 definition found (registry snapshot 1)"


@pytest.mark.parametrize(
    ("criteria", "meant"),
    [(["spendd"], "spend"), (["--owner", "wbe"], "web"), (["--entity", "custmer"], "customer")],
)
def test_list_of_nothing_says_what_may_be_meant(applied: Run, criteria: list[str], meant: str) -> None:
    ran = applied("list", *criteria)
    assert ran.code == 0
    assert ran.out.startswith("nothing found in registry snapshot 1")
    assert f"did you mean '{meant}'?" in ran.out


# --- show ---


@pytest.mark.parametrize(
    ("name", "kind", "lineage"),
    [
        (
            "spend",
            "FeatureGroup",
            {"made from": ["orders (lake://raw/orders)"], "used by services": ["churn v1", "rank v1"]},
        ),
        (
            "spend.mean",
            "FeatureGroup",
            {"made from": ["orders (lake://raw/orders)"], "used by services": ["churn v1", "rank v1"]},
        ),
        (
            "rank",
            "Service",
            {
                "made from": ["visits (lake://raw/visits)", "orders (lake://raw/orders)"],
                "by way of groups": ["visit_last v2", "spend v1"],
            },
        ),
        ("orders", "Source", {"used by groups": ["spend"]}),
        ("visitor", "Entity", {"used by groups": ["visit_last"]}),
    ],
)
def test_show_tells_what_a_thing_is_made_from_and_what_uses_it(
    applied: Run, name: str, kind: str, lineage: dict[str, list[str]]
) -> None:
    report = applied("show", name, "--json").json
    assert (report["kind"], report["lineage"]) == (kind, lineage)
    text = applied("show", name).out
    assert text.startswith(f"{kind} {name.partition('.')[0]}\n")
    assert all(f"  {role}: {', '.join(names)}" in text for role, names in lineage.items())


@pytest.mark.parametrize(
    ("aggregate", "text"),
    [
        (Aggregate("sum", "due", by="city", window="3d", where="due > 0"), "sum(due) by city over 3d where due > 0"),
        (Aggregate("last_k", "city", k=3), "last_k(city, k=3)"),
        (Aggregate("quantile", "fare", q=0.95), "quantile(fare, q=0.95)"),
        (Aggregate("count"), "count(*)"),
    ],
)
def test_an_aggregate_is_shown_with_all_that_it_says(aggregate: Aggregate, text: str) -> None:
    assert expression_text(Feature("one", "double", aggregate)) == text


def test_show_of_a_feature_shows_that_one_only(applied: Run) -> None:
    shown = applied("show", "spend.spent_30d", "--json").json["features"]
    assert shown == [["spent_30d", "double", "", "sum(amount) over 30d where amount > 0"]]
    assert len(applied("show", "spend", "--json").json["features"]) == 3


@pytest.mark.parametrize(
    ("name", "subject", "hint"),
    [
        ("spnd", "'spnd'", "did you mean 'spend'? "),
        ("spend.maen", "Feature 'spend.maen'", "did you mean 'mean'? `tidemark show spend` shows all of them"),
        ("spend.zzz", "Feature 'spend.zzz'", "`tidemark show spend` shows all of them"),
    ],
)
def test_show_of_an_unknown_name_exits_4_and_suggests(applied: Run, name: str, subject: str, hint: str) -> None:
    ran = applied("show", name, "--json")
    assert (ran.code, ran.error["subject"]) == (4, subject)
    assert ran.error["hint"].startswith(hint)


# --- history and deprecate ---


def test_history_is_every_snapshot_newest_first_with_its_changes(applied: Run, profile: Path) -> None:
    rewrite(profile, ('owner="search"', 'owner="discovery"'))
    applied("apply", "--message", "a new owner")
    entries = applied("history", "--json").json["entries"]
    assert [(entry["snapshot"], entry["message"], len(entry["changes"])) for entry in entries] == [
        (2, "a new owner", 1),
        (1, "the first", 8),
    ]
    assert [field["field"] for change in entries[0]["changes"] for field in change["fields"]] == ["owner"]
    text = applied("history").out
    assert re.match(r"snapshot 2  \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00  \S+: a new owner\n  ~ Service rank\n", text)
    assert text.endswith("2 snapshots\n")
    of_one = applied("history", "spend", "--json").json["entries"]
    assert [(entry["snapshot"], [change["name"] for change in entry["changes"]]) for entry in of_one] == [
        (1, ["spend"])
    ]


def test_history_before_the_first_apply_is_empty(run: Run) -> None:
    assert run("history") == Ran(0, "0 snapshots\n", "")


def test_a_deprecated_group_is_marked_stays_so_and_comes_back_by_its_file(applied: Run, profile: Path) -> None:
    done = applied("deprecate", "spend", "--message", "use spend_2", "--json").json
    assert (done["snapshot"], done["changed"], done["services"]) == (2, True, ["churn", "rank"])
    again = applied("deprecate", "spend")
    assert (again.code, again.out) == (0, "group 'spend' is deprecated already (registry snapshot 2)\n")
    assert [entry["name"] for entry in applied("list", "--status", "deprecated", "--json").json["entries"]] == ["spend"]
    assert applied("plan").code == 0
    rewrite(profile, ('owner="search"', 'owner="discovery"'))
    applied("apply")
    assert applied("show", "spend", "--json").json["plain"]["status"] == "deprecated"
    rewrite(profile, ('ttl="90d"', 'ttl="90d", status="active"'), ('owner="search"', 'owner="discovery"'))
    assert applied("apply", "--json").json["recompute"] == []
    assert applied("show", "spend", "--json").json["plain"]["status"] == "active"
    messages = [entry["message"] for entry in applied("history", "spend", "--json").json["entries"]]
    assert messages == ["", "use spend_2", "the first"]


def test_deprecate_of_an_unknown_group_exits_4_and_suggests(applied: Run) -> None:
    error = applied("deprecate", "spnd", "--json").error
    assert (error["exit_code"], error["subject"]) == (4, "FeatureGroup 'spnd'")
    assert error["hint"].startswith("did you mean 'spend'?")


@pytest.mark.parametrize("arguments", [["list"], ["show", "spend"], ["deprecate", "spend"]], ids=" ".join)
def test_what_reads_the_registry_before_the_first_apply_exits_6(run: Run, arguments: list[str]) -> None:
    ran = run(*arguments)
    assert (ran.code, ran.out) == (6, "")
    assert "Hint: run `tidemark apply` first" in ran.err
