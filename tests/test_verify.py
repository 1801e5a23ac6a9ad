"""verify: what was changed in a real Redis by hand is found, counted and named, and nothing else is."""

from __future__ import annotations

import dataclasses
import datetime
import json
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import redis
from pyspark.sql import functions as F

from connectors import embedded_redis
from connectors.codec import HEADER, ValueSchema, encode
from connectors.spark_errors import online_errors
from feature_defs import Entity, Feature, FeatureGroup, Source
from feature_defs.errors import DataError, OnlineStoreError, UsageError
from jobs.command_line import main
from jobs.compute import compute
from jobs.materialize import materialize
from jobs.online_address import online_address
from jobs.place import Place, now_us
from jobs.report import as_json
from jobs.transforms.sampling import entity_count, sampled, share
from jobs.verdicts import VERDICTS
from jobs.verify import AuditedGroup, VerifyReport, verify
from tests.lab import Table, put, register

HOUR, DAY = datetime.timedelta(hours=1), datetime.timedelta(days=1)
# an hour that is over, so that rows of NOW + 1 s are not ahead of the clock
NOW = datetime.datetime.now(datetime.timezone.utc).replace(minute=0, second=0, microsecond=0)
pair = Entity("pair", keys={"customer_id": "string", "store": "bigint"})
source = Source("rows", path="lake://raw/rows", format="parquet", event_time="event_time")
FEATURES = [Feature("amount", "bigint"), Feature("note", "string"), Feature("seen", "map<string,int>")]
SCHEMA = ValueSchema.of([(feature.name, feature.type) for feature in FEATURES])


def a_group(name: str = "spend", **options: Any) -> FeatureGroup:
    kept = {"features": FEATURES, "online": True, "offline": "parquet", **options}
    return FeatureGroup(name, entity=pair, source=source, **kept)


def packed(
    at: datetime.datetime, amount: int = 1, note: str = "n", definition: int = 1, seen: dict[str, int] | None = None
) -> bytes:
    entries = [list((seen or {"k": 1}).items())]
    columns = [pa.array([now_us(at)], pa.timestamp("us", "UTC")), pa.array([amount]), pa.array([note])]
    columns.append(pa.array(entries, pa.map_(pa.string(), pa.int32())))
    return encode(pa.record_batch(columns, ["event_time", *SCHEMA.names]), SCHEMA, definition=definition)[0].as_py()


def key(customer: str, store: int = 1) -> str:
    """The online key of a customer, whose name holds a bar for each `_` here."""
    return rf"tm:pair:{customer}|{store}".replace("_", r"\|")


def counts(group: AuditedGroup) -> dict[str, int]:
    return {verdict: getattr(group, verdict) for verdict in VERDICTS if getattr(group, verdict)}


def named(group: AuditedGroup) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for one in group.examples:
        found.setdefault(one.verdict, set()).add(one.key)
    return found


def without_seconds(report: VerifyReport) -> Any:
    groups = tuple(dataclasses.replace(group, seconds=0.0) for group in report.groups)
    return dataclasses.replace(report, seconds=0.0, groups=groups)


def client_of(place: Place) -> redis.Redis:
    return redis.Redis.from_url(online_address(place).url)


def load(
    place: Place,
    table: Table,
    rows: dict[str, tuple[datetime.datetime, int]],
    *groups: FeatureGroup,
    now: datetime.datetime = NOW,
) -> None:
    """customer of store 1 -> (event_time, amount), loaded."""
    lines = [f"{customer} | 1 | {at:%Y-%m-%d %H:%M:%S} | {amount} | n" for customer, (at, amount) in rows.items()]
    text = "\n".join(["customer_id | store | event_time | amount | note", *lines])
    columns = table(text, "store bigint, event_time timestamp, amount bigint")
    columns = columns.withColumn("customer_id", F.expr("replace(customer_id, '_', '|')"))
    put(place, columns.withColumn("seen", F.expr("map('k', 1)")), "lake://raw/rows")
    register(place, pair, source, *groups)
    compute(place, now=now)
    materialize(place, now=now)


def test_every_way_to_differ_is_counted_and_named(online_place: Place, table: Table) -> None:
    customers = [
        "same", "a_b", "go_ne", "late", "old", "other", "mapped", "flipped", "cut", "foreign", "newer", "ahead",
        "future", "lapsed", "revived",
    ]  # fmt: skip
    rows = dict.fromkeys(customers, (NOW - HOUR, 1))
    rows["lapsed"] = rows["revived"] = (NOW - 2 * DAY, 1)
    load(online_place, table, rows, a_group(ttl="1d"))
    assert verify(online_place, sample=None, now=NOW).agrees

    kept = packed(NOW - HOUR)
    changed = {
        "late": packed(NOW - 2 * HOUR),
        "old": packed(NOW, definition=0),
        "other": packed(NOW - HOUR, amount=2, note="m"),
        "mapped": packed(NOW - HOUR, seen={"k": 2}),
        "flipped": kept[: HEADER.size + 1 + 8] + bytes([kept[HEADER.size + 9] ^ 0xFF]) + kept[HEADER.size + 10 :],
        "cut": kept[:-1],
        "foreign": b"not ours",
        "newer": packed(NOW - HOUR + datetime.timedelta(seconds=1), amount=7),
        "ahead": packed(NOW - HOUR, definition=9),
        "future": packed(NOW + 30 * DAY),
        "revived": packed(NOW - 2 * HOUR),
        "unknown": packed(NOW - HOUR),
        "unknown old": packed(NOW - 2 * DAY),
        "unknown new": packed(NOW + datetime.timedelta(microseconds=1)),
    }
    with client_of(online_place) as client:
        assert client.hget(key("same"), "spend:1") == kept  # what the loops below think of is what a load writes
        client.hdel(key("go_ne"), "spend:1")
        for customer, value in changed.items():
            client.hset(key(customer), "spend:1", value)
        client.hset(key("elsewhere"), "other:1", kept)
        client.hset("tm:pairs:same|1", "spend:1", kept)
        before = sorted((name, client.dump(name)) for name in client.scan_iter())

    report = verify(online_place, sample=None, examples=99, now=NOW)
    found = report.groups[0]
    wanted = {
        "missing": {"go_ne"}, "stale": {"late", "old"}, "differs": {"other", "mapped"},
        "unreadable": {"cut", "foreign", "flipped"}, "ahead": {"ahead", "future"}, "surplus": {"unknown"},
        "newer": {"newer", "revived", "unknown new"},
    }  # fmt: skip
    assert named(found) == {verdict: {key(name) for name in names} for verdict, names in wanted.items()}
    assert counts(found) == {"same": 2, "expired": 2, **{verdict: len(names) for verdict, names in wanted.items()}}
    assert (found.entities, found.one_of, found.agrees, report.agrees, report.exit_code) == (15, 1, False, False, 7)
    assert found.features == {"amount": 1, "note": 1, "seen": 1}
    examples = {(one.verdict, one.key): one for one in found.examples}
    assert examples["differs", key("other")].features == ("amount", "note")
    late = examples["stale", key("late")]
    assert (late.offline, late.online) == (NOW - HOUR, NOW - 2 * HOUR)
    assert examples["missing", key("go_ne")].online is None
    assert examples["surplus", key("unknown")].offline is None
    told = report.text()
    assert "online and offline DIFFER" in told
    assert "spend: to repair missing, stale, differs, unreadable: `tidemark materialize --full" in told
    assert "what is surplus: remove it (HDEL)" in told
    assert json.loads(as_json("verify", report))["groups"][0]["differs"] == 2
    with client_of(online_place) as client:  # nothing was written
        assert sorted((name, client.dump(name)) for name in client.scan_iter()) == before

    # fewer examples are the first by key, and a sample tells nothing of what is surplus
    few = verify(online_place, sample=100, examples=1, now=NOW).groups[0]
    assert named(few) == {
        verdict: {min(map(key, names))} for verdict, names in wanted.items() if verdict != "surplus"
    } | {"newer": {key("newer")}}
    assert few.surplus is None
    assert counts(few) == {name: n for name, n in counts(found).items() if name != "surplus"} | {
        "newer": 2,
        "expired": 1,
    }

    # a load repairs what it says it repairs
    with client_of(online_place) as client:
        client.hdel(key("foreign"), "spend:1")
    materialize(online_place, now=NOW, full=True)
    rest = verify(online_place, sample=None, now=NOW).groups[0]
    assert set(counts(rest)) == {"same", "expired", "newer", "ahead", "surplus"}


def test_newer_values_are_a_fault_only_when_asked(online_place: Place, table: Table) -> None:
    load(online_place, table, {"c1": (NOW - HOUR, 1)}, a_group())
    with client_of(online_place) as client:
        client.hset(key("c1"), "spend:1", packed(NOW, amount=5))
    tolerant, strict = verify(online_place, now=NOW), verify(online_place, now=NOW, no_newer=True)
    assert (tolerant.agrees, tolerant.exit_code, strict.agrees, strict.exit_code) == (True, 0, False, 7)
    assert counts(tolerant.groups[0]) == counts(strict.groups[0]) == {"newer": 1}


def test_sampled_and_full_audits_of_many_entities(online_place: Place) -> None:
    """More than a window of reads; two groups under the same keys, one of them never loaded."""
    count = 12_000
    rows = online_place.spark.range(count).selectExpr(
        "concat('c', id) AS customer_id", "id % 3 AS store", f"TIMESTAMP'{NOW:%Y-%m-%d %H:%M:%S}Z' AS event_time",
        "id AS amount", "'n' AS note", "map('k', 1) AS seen",
    )  # fmt: skip
    put(online_place, rows, "lake://raw/rows")
    register(online_place, pair, source, a_group(), a_group("later"), a_group("quiet", online=False))
    compute(online_place, now=NOW)
    materialize(online_place, ["spend"], now=NOW)
    with client_of(online_place) as client:
        client.hdel(key("c11999", 11999 % 3), "spend:1")
        for number in range(3):
            client.hset(key(f"x{number}"), "spend:1", packed(NOW))
    whole = verify(online_place, sample=None, now=NOW)
    assert [group.group for group in whole.groups] == ["later", "spend"]
    later, spend = whole.groups
    assert counts(spend) == {"same": count - 1, "missing": 1, "surplus": 3}
    assert named(spend) == {"missing": {key("c11999", 2)}, "surplus": {key(f"x{number}") for number in range(3)}}
    assert counts(later) == {"missing": count}
    assert len(later.examples) == 3

    first, again = (verify(online_place, ["later"], sample=1000, examples=9999, now=NOW) for _ in range(2))
    assert without_seconds(first) == without_seconds(again)
    assert first.groups[0].one_of == 8
    assert 1000 < first.groups[0].entities == first.groups[0].missing < 2000
    other = verify(online_place, ["later"], sample=1000, examples=9999, seed=8, now=NOW)
    assert named(other.groups[0]) != named(first.groups[0])
    assert "1 of 8" in other.text()

    with client_of(online_place) as client:
        client.flushall()
        client.set(key("c0", 0), "a string")
    with pytest.raises(OnlineStoreError, match="a key holds something that is no hash") as caught:
        verify(online_place, ["spend"], now=NOW)
    assert "\n" not in caught.value.problem + caught.value.hint


def test_key_that_expired_between_load_and_audit_is_no_fault(online_place: Place, table: Table) -> None:
    """Redis goes by the clock, an audit by its `now`."""
    now = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)
    load(online_place, table, {"brief": (now, 1), "long": (now + 60 * DAY, 1)}, a_group(ttl="9s"), now=now)
    found = verify(online_place, sample=None, now=now).groups[0]
    assert (found.entities, found.same + found.expired) == (1, 1)
    time.sleep(max(0.0, (now - datetime.datetime.now(datetime.timezone.utc)).total_seconds() + 10.2))
    with client_of(online_place) as client:
        assert not client.exists(key("brief"))
    late = verify(online_place, sample=None, now=now)
    assert (counts(late.groups[0]), late.agrees) == ({"expired": 1}, True)


def test_the_verb_exits_with_7_and_prints_json(
    online_place: Place, table: Table, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load(online_place, table, {"c1": (NOW - HOUR, 1)}, a_group())
    lakes = "\n".join(f'{name} = "{base}"' for name, base in online_place.settings.lakes.items())
    profile = tmp_path / "profile.toml"
    online = f'[online]\nkind = "redis"\nurl = "{online_address(online_place).url}"\n'
    profile.write_text(f'name = "p"\ndefinitions = "definitions"\n[lakes]\n{lakes}\n{online}')
    command = ["verify", "--sample", "all", "--profile", str(profile)]
    assert main(command) == 0
    assert "online and offline agree" in capsys.readouterr().out
    with client_of(online_place) as client:
        client.flushall()
    assert main([*command, "--json"]) == 7
    told = json.loads(capsys.readouterr().out)
    assert (told["verb"], told["agrees"], told["groups"][0]["missing"], told["exit_code"]) == ("verify", False, 1, 7)
    assert main([*command[:2], "some", *command[3:]]) == 4
    assert "'some' is no number of entities" in capsys.readouterr().err
    embedded_redis.stop(Path(online_place.settings.online.folder))
    assert main(command) == 7
    assert "the connection is refused" in capsys.readouterr().err


def test_what_cannot_be_audited_is_refused(online_place: Place) -> None:
    register(online_place, pair, source, a_group(), a_group("quiet", online=False))
    with pytest.raises(DataError, match="'spend': has no offline table yet"):
        verify(online_place)
    with pytest.raises(UsageError, match="'quiet': is not online"):
        verify(online_place, ["quiet"])
    with pytest.raises(UsageError, match="0 is less than one entity"):
        verify(online_place, sample=0)
    with pytest.raises(UsageError, match="-1 is less than none"):
        verify(online_place, examples=-1)


def test_sample_is_a_part_of_the_larger_one_and_takes_all_rows_of_an_entity(online_place: Place) -> None:
    rows = online_place.spark.range(20_000).selectExpr("concat('c', id % 4000) AS a", "id % 2 AS b", "id")
    halves = {of: sampled(rows, ["a", "b"], one_of=of, seed=7).toArrow().to_pylist() for of in (1, 2, 4)}
    entities = {of: {(row["a"], row["b"]) for row in found} for of, found in halves.items()}
    assert entities[4] < entities[2] < entities[1]
    assert len(entities[1]) == 4000
    assert 1800 < len(entities[2]) < 2200
    assert all(len(found) == 5 * len(entities[of]) for of, found in halves.items())
    assert entity_count(rows, ["a", "b"]).toArrow()["entities"][0].as_py() == pytest.approx(4000, rel=0.15)
    assert [share(entities, 1000) for entities in (0, 999, 1999, 2000, 4000, 7999, 8000)] == [1, 1, 1, 2, 4, 4, 8]


def test_error_of_the_store_inside_a_task_is_told_in_its_own_words() -> None:
    told = "Traceback:\n  x\nfeature_defs.errors.OnlineStoreError: Redis redis://h: reading: full\nHint: wait\n at"
    with pytest.raises(OnlineStoreError) as caught, online_errors():
        raise RuntimeError(told)
    found = caught.value
    assert (found.subject, found.problem, found.hint) == ("Redis redis://h", "reading: full", "wait")
    with pytest.raises(RuntimeError, match="another"), online_errors():
        raise RuntimeError("another")
