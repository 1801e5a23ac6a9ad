"""Waiting, by a clock that the tests move."""

from __future__ import annotations

import pytest

from connectors.pacing import BURST_SECONDS, FIRST_WAIT, LONGEST_WAIT, Patience, TokenBucket


class FakeTime:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.slept.append(seconds)
        self.now += seconds


def test_a_rate_holds_from_the_first_entity_on() -> None:
    time = FakeTime()
    bucket = TokenBucket(1000, clock=time.clock, sleep=time.sleep)
    for _ in range(500):
        bucket.take(50)
    assert time.now - 1000 == pytest.approx(25, rel=0.001)
    assert max(time.slept) == pytest.approx(0.05)


def test_time_that_was_not_used_is_made_up_for_a_moment_only() -> None:
    time = FakeTime()
    bucket = TokenBucket(1000, clock=time.clock, sleep=time.sleep)
    time.now += 3600
    bucket.take(int(bucket.burst))
    assert time.slept == []
    bucket.take(500)
    assert time.slept == [pytest.approx(0.5)]


def test_a_writer_that_is_slower_than_its_rate_never_waits() -> None:
    time = FakeTime()
    bucket = TokenBucket(1000, clock=time.clock, sleep=time.sleep)
    for _ in range(20):
        time.now += 0.2
        bucket.take(100)
    assert time.slept == []


def test_what_is_more_than_a_burst_is_waited_for() -> None:
    time = FakeTime()
    TokenBucket(10, clock=time.clock, sleep=time.sleep).take(100)
    assert time.slept == [pytest.approx(10)]
    assert 10 * BURST_SECONDS == 1


@pytest.mark.parametrize("rate", [0, -1, float("nan")])
def test_a_rate_that_allows_nothing_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        TokenBucket(rate)


def test_waits_grow_up_to_the_longest_and_patience_ends() -> None:
    time = FakeTime()
    patience = Patience(30, clock=time.clock, sleep=time.sleep, draw=lambda low, high: high)
    while patience.wait():
        assert time.now - 1000 < 30 + LONGEST_WAIT
    assert time.slept[:3] == [FIRST_WAIT, FIRST_WAIT * 2, FIRST_WAIT * 4]
    assert time.slept[-1] == LONGEST_WAIT
    assert len(time.slept) < 30


def test_waits_differ_between_writers() -> None:
    drawn = []
    for _ in range(20):
        time = FakeTime()
        Patience(30, clock=time.clock, sleep=time.sleep).wait()
        drawn += time.slept
    assert len(set(drawn)) == 20
    assert all(FIRST_WAIT / 2 <= wait <= FIRST_WAIT for wait in drawn)


def test_what_goes_forward_renews_patience() -> None:
    time = FakeTime()
    patience = Patience(1, clock=time.clock, sleep=time.sleep, draw=lambda low, high: high)
    for _ in range(50):
        assert patience.wait()
        assert time.slept[-1] == FIRST_WAIT
        patience.renew()


def test_no_patience_is_no_second_try() -> None:
    assert not Patience(0, clock=FakeTime().clock).wait()
