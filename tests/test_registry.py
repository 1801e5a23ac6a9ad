"""The registry of snapshots in a lake; where it says that one of many wins, many processes try."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from connectors.lakes import Lakes, joined
from connectors.registry import Registry
from feature_defs.errors import LakeError, RegistryConflict, UsageError
from feature_defs.loading import load
from feature_defs.snapshot import from_plain, to_plain
from tests.definition_files import GOOD, edited, loaded, write_place
from tests.lake_kinds import KINDS, Lake, environment, new_lake, race

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return new_lake(tmp_path, f"file://{tmp_path}/lake")


# --- logical paths ---


def test_a_logical_path_is_its_lakes_uri_and_the_rest() -> None:
    lakes = Lakes({"raw": "file:///data/raw", "b-2": "hdfs://name:8020"})
    paths = ("lake://raw/a/b", "lake://raw/a/", "lake://raw", "lake://raw/", "lake://b-2/x=1/y z")
    assert [lakes.uri(path) for path in paths] == [
        "file:///data/raw/a/b",
        "file:///data/raw/a",
        "file:///data/raw",
        "file:///data/raw",
        "hdfs://name:8020/x=1/y z",
    ]


@pytest.mark.parametrize(
    ("path", "problem", "hint"),
    [
        ("lake://rwa/x", "lake 'rwa' is not in the profile (raw, features)", "did you mean 'raw'? add it: [lakes] rwa"),
        ("lake://raw/../etc", "steps out of its lake with '..'", "write the path without '..'"),
        ("/data/raw", "expected lake://NAME/path", "[lakes]"),
        ("s3://bucket/x", "expected lake://NAME/path", "[lakes]"),
    ],
)
def test_a_path_that_is_in_no_lake_is_refused(path: str, problem: str, hint: str) -> None:
    with pytest.raises(UsageError) as raised:
        Lakes({"raw": "file:///raw", "features": "file:///features"}).uri(path)
    assert problem in raised.value.problem
    assert hint in raised.value.hint


# --- snapshots ---


def committed(registry: Registry, text: str, folder: Path, after: int, message: str = "") -> int:
    definitions = loaded(folder / f"after_{after}", text)
    return registry.commit(
        definitions, after=after, applied_at="2026-01-31T00:00:00+00:00", applied_by="ada", message=message
    )


@pytest.fixture
def registry(lake: Lake) -> Registry:
    return Registry(lake.files, lake.root)


def test_the_examples_definitions_come_back_as_they_went(registry: Registry) -> None:
    definitions = load(ROOT / "feature_defs/examples/retail")
    number = registry.commit(definitions, after=0, applied_at="now", applied_by="ada", message="why: ü")
    snapshot = registry.read(number)
    assert snapshot.plain == to_plain(definitions) == to_plain(snapshot.definitions)
    assert (snapshot.applied_at, snapshot.applied_by, snapshot.message) == ("now", "ada", "why: ü")
    again = from_plain(json.loads(json.dumps(snapshot.plain)))
    assert again == snapshot.definitions
    for name, feature in ((g.name, f) for g in definitions.groups.values() for f in g.features):
        kept = again.groups[name].feature(feature.name)
        assert (kept.type, kept.expression) == (feature.type, feature.expression)
        assert (list(kept.tags), list(kept.allowed_values)) == (list(feature.tags), list(feature.allowed_values))


def test_the_newest_number_is_in_force_and_the_older_ones_stay(registry: Registry, tmp_path: Path) -> None:
    assert registry.latest() is None
    for after, ttl in enumerate(("90d", "30d", "10d")):
        assert committed(registry, edited(('ttl="90d"', f'ttl="{ttl}"')), tmp_path, after) == after + 1
    latest = registry.latest()
    assert latest is not None
    assert (latest.number, latest.definitions.groups["spend"].ttl) == (3, "10d")
    assert [registry.read(number).definitions.groups["spend"].ttl for number in registry.numbers()] == [
        "90d",
        "30d",
        "10d",
    ]
    assert len({registry.read(number).fingerprint("spend") for number in (1, 2, 3)}) == 3


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([("", "# remark\n")], [1, 1]),
        ([('owner="crm"', 'owner="sales"')], [1, 1]),
        ([('ttl="90d", ', 'ttl="90d", status="deprecated", ')], [1, 1]),
        ([("spent_30d / nullif", "spent_30d * 2 / nullif")], [1, 2]),
        ([('every="1d"', 'every="12h"')], [1, 2]),
        ([('event_time="ordered_at"', 'event_time="paid_at"'), ('"ordered_at": "t', '"paid_at": "t')], [1, 2]),
        ([('ttl="90d"', 'ttl="90d", version=2')], [1, 2]),
        ([("features=[\n", 'features=[\n        Feature("more", "bigint", Aggregate("count")),\n')], [1, 2]),
    ],
)
def test_a_groups_number_rises_when_its_values_or_their_packing_change(
    registry: Registry, tmp_path: Path, changes: list[tuple[str, str]], expected: list[int]
) -> None:
    """And is kept when only what people read of it changes; the third snapshot is the second's text again."""
    text = changes[0][1] + GOOD if not changes[0][0] else edited(*changes)
    for after, written in enumerate([GOOD, text, text]):
        committed(registry, written, tmp_path, after)
    assert [registry.read(number).since["spend"] for number in registry.numbers()] == [*expected, expected[-1]]


def test_features_in_another_order_are_another_definition(registry: Registry, tmp_path: Path) -> None:
    """The fingerprint of the values does not see it; the packed values are laid out in another way."""
    line = '        Feature("orders", "bigint", Aggregate("count")),\n'
    moved = edited((line, ""), ("    ],\n    expectations", f"{line}    ],\n    expectations"))
    for after, text in enumerate([GOOD, moved]):
        committed(registry, text, tmp_path, after)
    first, second = registry.read(1), registry.read(2)
    assert first.fingerprint("spend") == second.fingerprint("spend")
    assert (first.since["spend"], second.since["spend"]) == (1, 2)


def test_an_old_definition_that_comes_back_has_a_number_of_its_own(registry: Registry, tmp_path: Path) -> None:
    """Values of the definition between the two must lose against it."""
    other = edited(('ttl="90d"', 'ttl="30d"'))
    for after, text in enumerate([GOOD, other, GOOD, GOOD, other]):
        committed(registry, text, tmp_path, after)
    assert [registry.read(number).since["spend"] for number in registry.numbers()] == [1, 2, 3, 3, 5]


def test_another_spelling_of_a_type_is_no_other_definition(registry: Registry, tmp_path: Path) -> None:
    for after, spelled in enumerate(("decimal(10,2)", "decimal( 10 , 2 )")):
        text = edited(('"orders", "bigint"', f'"orders", "{spelled}"'), ('Aggregate("count")', '"amount"'))
        text = edited(
            ('every="1d", ', ""),
            ('Aggregate("sum", "amount", window="30d", where="amount > 0")', '"amount"'),
            text=text,
        )
        committed(registry, text, tmp_path, after)
    assert registry.read(2).since == {"spend": 1}


def test_a_number_is_committed_once_and_the_loser_is_told_who_won(registry: Registry, tmp_path: Path) -> None:
    committed(registry, GOOD, tmp_path, 0)
    with pytest.raises(RegistryConflict) as raised:
        committed(registry, GOOD, tmp_path, 0)
    assert raised.value.problem == "snapshot 1 was applied meanwhile by ada at 2026-01-31T00:00:00+00:00"
    assert raised.value.exit_code == 6


def test_of_many_processes_that_commit_a_number_exactly_one_does(registry: Registry, tmp_path: Path) -> None:
    """Every process tries every number; each loss names the winner."""
    script = """
from pathlib import Path
from connectors.file_store import open_file_store
from connectors.registry import Registry
from feature_defs.errors import RegistryConflict
from feature_defs.loading import load
root, folder, me = sys.argv[1:]
registry, definitions = Registry(open_file_store(root), root), load(Path(folder))
for after in range(10):
    try:
        print("won", registry.commit(definitions, after=after, applied_at="now", applied_by=me, message=""))
    except RegistryConflict as error:
        print("lost", error.problem)
"""
    loaded(tmp_path / "definitions")
    arguments = [[registry.root, str(tmp_path / "definitions"), f"racer-{me}"] for me in range(4)]
    outputs = race(new_lake(tmp_path, registry.root), script, arguments)
    wins = {
        int(number): f"racer-{me}" for me, output in enumerate(outputs) for number in re.findall(r"won (\d+)", output)
    }
    assert sum(output.count("won") for output in outputs) == 10
    assert registry.numbers() == sorted(wins) == list(range(1, 11))
    assert {number: registry.read(number).applied_by for number in wins} == wins
    lost = re.findall(r"lost snapshot (\d+) was applied meanwhile by (\S+) at now", "".join(outputs))
    assert len(lost) == 30
    assert all(wins[int(number)] == winner for number, winner in lost)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", "{}", '{"format": 1}', '{"format": 1, "definitions": {"entities": []}}', "\xff"],
)
def test_a_snapshot_that_cannot_be_read_is_a_lake_error_that_names_it(registry: Registry, content: str) -> None:
    registry.files.create(joined(registry.root, "00000001.json"), content.encode("latin-1"))
    with pytest.raises(LakeError) as raised:
        registry.latest()
    assert raised.value.subject == "Registry snapshot 1"
    assert "00000001.json" in raised.value.problem
    assert "restore the file from a backup" in raised.value.hint


@pytest.mark.parametrize("missing", ["applied_at", "applied_by", "message", "definitions", "format", "since"])
def test_a_snapshot_without_one_of_its_parts_is_a_lake_error(registry: Registry, tmp_path: Path, missing: str) -> None:
    uri = joined(registry.root, "00000001.json")
    committed(registry, GOOD, tmp_path, 0)
    document: dict[str, Any] = json.loads(registry.files.read(uri))
    del document[missing]
    registry.files.delete(uri)
    registry.files.create(uri, json.dumps(document).encode())
    with pytest.raises(LakeError, match=r"cannot be read \(KeyError\)"):
        registry.read(1)


def test_a_snapshot_of_a_later_tidemark_asks_for_an_upgrade(registry: Registry) -> None:
    registry.files.create(joined(registry.root, "00000001.json"), b'{"format": 2}')
    with pytest.raises(LakeError, match="has format 2, this Tidemark reads 1\nHint: upgrade Tidemark"):
        registry.read(1)


def test_a_number_that_was_never_applied_is_a_lake_error(registry: Registry) -> None:
    with pytest.raises(LakeError, match="Registry snapshot 7: does not exist"):
        registry.read(7)


def test_other_files_beside_the_snapshots_are_no_snapshots(registry: Registry, tmp_path: Path) -> None:
    committed(registry, GOOD, tmp_path, 0)
    for name in ("README.md", "1.json", "00000002.json.bak", "old/00000009.json"):
        registry.files.create(joined(registry.root, name), b"x")
    assert registry.numbers() == [1]


# --- racing applies ---


def apply_in_background(profile: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "jobs", "apply", "--json", "--profile", str(profile)]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_an_apply_that_was_overtaken_exits_6_and_says_who_won(tmp_path: Path) -> None:
    """The slow one has read the registry when its definition file waits for the fast one to be done."""
    waiting = f"""\
import time
from pathlib import Path
Path({str(tmp_path / "reading")!r}).touch()
while not Path({str(tmp_path / "go on")!r}).exists():
    time.sleep(0.01)
"""
    fast, slow = tmp_path / "fast", tmp_path / "slow"
    lakes = '[lakes]\nraw = "../raw"\nfeatures = "../features"\n'
    for folder, text in ((fast, GOOD), (slow, waiting + GOOD)):
        profile = write_place(folder, text)
        profile.write_text(re.sub(r"\[lakes\]\n.*\n.*\n", lakes, profile.read_text()))
    overtaken = apply_in_background(slow / "place.toml")
    while not (tmp_path / "reading").exists():
        assert overtaken.poll() is None
        time.sleep(0.01)
    winner = apply_in_background(fast / "place.toml")
    report = json.loads(winner.communicate(timeout=60)[0])
    assert (winner.returncode, report["snapshot"], report["applied"]) == (0, 1, True)
    (tmp_path / "go on").touch()
    error = json.loads(overtaken.communicate(timeout=60)[1])
    assert (overtaken.returncode, error["error"], error["exit_code"]) == (6, "RegistryConflict", 6)
    assert error["problem"].startswith("snapshot 1 was applied meanwhile by ")
    assert "nothing of yours was written" in error["hint"]
    assert [path.name for path in (tmp_path / "features/_registry").iterdir()] == ["00000001.json"]


@pytest.mark.parametrize("kind", KINDS)
def test_applies_at_once_each_write_a_snapshot_of_their_own_or_none(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str
) -> None:
    """However they meet: as many snapshots as applies that exit 0, and none is lost."""
    parts = {} if kind == "local" else {kind: request.getfixturevalue(kind)}
    root = f"{parts[kind].uri}/{tmp_path.name}" if parts else f"file://{tmp_path}/lake"
    lake = new_lake(tmp_path, root, **parts)
    for number in range(4):
        profile = write_place(tmp_path / str(number), edited(('owner="crm"', f'owner="team_{number}"')))
        profile.write_text(lake.profile.read_text())
    running = [apply_in_background(tmp_path / str(number) / "place.toml") for number in range(4)]
    outputs = [process.communicate(timeout=60) for process in running]
    codes = [process.returncode for process in running]
    assert set(codes) <= {0, 6}
    done = {number: json.loads(out)["snapshot"] for number, (out, _) in enumerate(outputs) if codes[number] == 0}
    registry = Registry(lake.files, lake / "features/_registry")
    assert registry.numbers() == sorted(done.values()) == list(range(1, len(done) + 1))
    for number, snapshot in done.items():
        assert registry.read(snapshot).definitions.groups["spend"].owner == f"team_{number}"
    for number, (_, err) in enumerate(outputs):
        assert (codes[number] == 6) == ("was applied meanwhile by" in err)
