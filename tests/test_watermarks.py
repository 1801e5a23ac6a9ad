"""Loads that overlap, die, or go on from one that nobody knows: what the next one makes of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from connectors.file_store import local_path
from connectors.receipts import Load
from connectors.redis_online import RedisAddress, RedisOnlineStore, open_redis
from connectors.watermarks import Found, begin, end, last_load, loaded_fields
from jobs import materialize as job
from jobs.place import Place, online_folder, time_of
from tests.test_loads_property import SECOND, Lab, lab_of

FIELD, OTHER = b"spend:1", b"spend:12"


def load(run: str, version: int = 1) -> Load:
    return Load(run=run, definition=1, table_version=version, table_run="a", now_us=5)


def ends(store: RedisOnlineStore, run: Load, found: Found) -> bool:
    """Asked twice, as after a lost reply."""
    answers = {end(store, FIELD, replace(run, seen_us=7), found) for _ in range(2)}
    assert len(answers) == 1
    return answers.pop()


@pytest.fixture
def store(address: RedisAddress) -> Iterator[RedisOnlineStore]:
    with open_redis(address) as opened:
        opened.run("DEL", f"{address.key_prefix}:_loaded")
        yield opened


def noted(store: RedisOnlineStore) -> set[bytes]:
    return set(store.run("HKEYS", f"{store.address.key_prefix}:_loaded"))


def test_a_load_alone_is_the_last_one_and_nothing_else_stays_noted(store: RedisOnlineStore) -> None:
    first = begin(store, FIELD, load("one"))
    assert (first.last, dict(first.since)) == (None, {})
    assert loaded_fields(store) == []
    assert ends(store, load("one"), first)
    second = begin(store, FIELD, load("two"))
    assert (second.last, dict(second.since)) == ("one", {})
    assert ends(store, load("two"), second)
    assert (last_load(store, FIELD), last_load(store, OTHER), noted(store)) == ("two", None, {FIELD})
    assert loaded_fields(store) == [FIELD]


def test_what_a_dead_load_noted_is_found_until_another_ends(store: RedisOnlineStore) -> None:
    for run in ("dead", "dead too"):
        begin(store, FIELD, load(run, 7))
    begin(store, OTHER, load("another group's"))
    found = begin(store, FIELD, load("one"))
    assert dict(found.since) == {"dead": load("dead", 7), "dead too": load("dead too", 7)}
    assert ends(store, load("one"), found)
    assert noted(store) == {FIELD, OTHER + b" another group's"}


@pytest.mark.parametrize("order", ["the first ends first", "the second ends first", "both begin at once"])
def test_of_loads_beside_each_other_only_one_is_the_last_and_both_are_found(
    store: RedisOnlineStore, order: str
) -> None:
    runs = {run: load(run, version) for version, run in enumerate(("first", "second"))}
    found = {run: begin(store, FIELD, one) for run, one in runs.items()}
    if order == "both begin at once":  # each notes itself before either looks
        found["first"] = begin(store, FIELD, runs["first"])
    names = ["second", "first"] if order == "the second ends first" else ["first", "second"]
    assert [ends(store, runs[run], found[run]) for run in names] == [True, False]
    after = begin(store, FIELD, load("third"))
    assert (after.last, dict(after.since)) == (names[0], {names[1]: replace(runs[names[1]], seen_us=7)})
    assert ends(store, load("third"), after)
    assert noted(store) == {FIELD}


# the same with real tables


def agrees(lab: Lab) -> None:
    assert lab.online() == lab.expected()


def dies(monkeypatch: pytest.MonkeyPatch, lab: Lab, at: str = "write_receipt") -> None:
    """A load that ends before it is named, all of its values sent, or at `loaded` none."""

    def die(*_: object, **__: object) -> None:
        raise RuntimeError

    with monkeypatch.context() as patched:
        patched.setattr(job, at, die)
        with pytest.raises(RuntimeError):
            lab.load()


def test_loads_beside_each_other_lose_no_correction_and_no_deletion(
    online_place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of an older version sends its values behind those of a newer one, and ends before it."""
    lab = lab_of(online_place, offline="delta")
    lab.load()
    at, go, own = threading.Event(), threading.Event(), threading.current_thread()
    loaded, write_receipt = job.loaded, job.write_receipt
    slow: dict[str, Any] = {}

    def loaded_late(*args: Any, **more: Any) -> Any:
        if threading.current_thread() is not own:
            at.set()
            assert go.wait(60)
        return loaded(*args, **more)

    def receipt_last(*args: Any) -> None:
        if threading.current_thread() is own:
            go.set()
            thread.join()
        write_receipt(*args)

    def load_slowly() -> None:
        slow["group"] = job.materialize(online_place, now=time_of(lab.now_us), full=True).groups[0]

    with monkeypatch.context() as patched:
        patched.setattr(job, "loaded", loaded_late)
        patched.setattr(job, "write_receipt", receipt_last)
        thread = threading.Thread(target=load_slowly)
        thread.start()
        assert at.wait(60)
        lab.replace()
        lab.merge()
        quick = lab.load()
    assert (slow["group"].why, quick.why) == ("as asked", job.BESIDE)
    assert lab.online() != lab.expected()
    assert lab.load().how == "changed"
    agrees(lab)
    assert lab.load().how == "nothing new"


@pytest.mark.parametrize("offline", ["parquet", "delta"])
def test_a_first_load_that_died_is_repaired(online_place: Place, monkeypatch: pytest.MonkeyPatch, offline: str) -> None:
    lab = lab_of(online_place, offline=offline)
    dies(monkeypatch, lab)
    lab.replace()
    assert lab.load().removed > 0
    agrees(lab)


def test_a_first_load_that_died_is_done_again(online_place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = lab_of(online_place, offline="parquet")
    dies(monkeypatch, lab, "loaded")
    found = lab.load()
    assert (found.how, found.why) == ("full", "first load")
    agrees(lab)


@pytest.mark.parametrize("offline", ["parquet", "delta"])
@pytest.mark.parametrize("full", [False, True])
def test_what_a_load_that_died_sent_of_a_wrong_version_is_taken_back(
    online_place: Place, monkeypatch: pytest.MonkeyPatch, offline: str, full: bool
) -> None:
    lab = lab_of(online_place, offline=offline)
    lab.load()
    good = list(lab.rows)
    there = {row[:2] for row in good}
    wrong = [(key, lab.now_us, None, 666.0, "wrong") for key in range(280, 310) if (key, lab.now_us) not in there]
    lab.rows = [*good, *wrong]
    lab.table.append(lab.frame(wrong), lab.note, after=lab._version)
    dies(monkeypatch, lab)
    lab.rows = good
    lab.table.replace(lab.frame(good), lab.note)
    assert lab.load(full=full).how == ("full" if full else "changed")
    agrees(lab)
    assert lab.load().how == "nothing new"


def test_a_receipt_that_is_lost_is_told(online_place: Place) -> None:
    lab = lab_of(online_place, offline="parquet")
    lab.load()
    for file in Path(local_path(online_folder(online_place, lab.group))).glob("*.json"):
        file.unlink()
    found = lab.load()
    assert found.how == "full"
    assert found.why.startswith("this lake has no receipt of the last load, 2")
    agrees(lab)
    assert lab.load().how == "nothing new"


@pytest.mark.parametrize("offline", ["parquet", "delta"])
def test_what_goes_while_loads_are_of_an_earlier_time_does_not_stay(online_place: Place, offline: str) -> None:
    """A clock that went back: the store holds values of times that are in the future again."""
    lab = lab_of(online_place, offline=offline)
    now = lab.now_us
    lab.now_us = now + 5 * SECOND
    lab.load()
    for full, share in ((False, 3), (True, 2)):
        lab.rows = [row for row in lab.rows if row[0] % share or row[1] <= now - 3 * SECOND]
        lab.table.replace(lab.frame(lab.rows), lab.note)
        lab.now_us = now - 2 * SECOND
        lab.load(full=full)
    before = lab.online()
    correct_later_rows(lab, now)
    lab.now_us = now - SECOND
    assert lab.load().how == "changed"
    assert lab.online().keys() == before.keys()
    lab.now_us = now + 20 * SECOND
    lab.load()
    agrees(lab)


def correct_later_rows(lab: Lab, after_us: int) -> None:
    """Rows of times that have not come again, which are there before and after."""
    rows = {row[:2]: (*row[:3], 8.0, "Linz") for row in lab.rows if row[1] > after_us}
    assert rows
    lab.table.merge(lab.frame([*rows.values()]), lab.note, on=["customer_id", "event_time"], after=lab._version)
    lab.rows = [row for row in lab.rows if row[:2] not in rows] + [*rows.values()]
