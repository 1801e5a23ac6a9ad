"""Parts of a dataset by time: the words, what is refused, and the rule against plain loops."""

from __future__ import annotations

import datetime
import random
from typing import Any

import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from feature_defs.errors import UsageError
from feature_defs.splits import Part, gaps, parse_splits
from jobs.transforms.splits import GAP, OUTSIDE, split_of

DAY = 86_400_000_000


def us(text: str) -> int:
    found = datetime.datetime.fromisoformat(text).replace(tzinfo=datetime.timezone.utc)
    return (found - datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)) // datetime.timedelta(microseconds=1)


def test_parts_are_read_in_order_also_in_one_text_and_from_a_mapping() -> None:
    spans = {"train": "..2026-01-01", "validation": "2026-01-01..2026-02-01", "test": "2026-02-01T12:00:00+01:00.."}
    expected = (
        Part("train", None, us("2026-01-01")),
        Part("validation", us("2026-01-01"), us("2026-02-01")),
        Part("test", us("2026-02-01T11:00:00"), None),
    )
    pairs = [f"{name}={span}" for name, span in spans.items()]
    assert parse_splits(pairs) == parse_splits([", ".join(pairs)]) == parse_splits(spans) == expected
    assert parse_splits([]) == ()
    assert expected[0].as_plain() == {"name": "train", "start": None, "end": "2026-01-01T00:00:00+00:00"}


def test_gap_is_taken_off_the_start_of_every_part_but_the_first() -> None:
    spans = {"a": "2026-01-01..2026-02-01", "b": "2026-02-01..2026-03-01", "c": "2026-03-20..2026-04-01"}
    a, b, c = parse_splits(spans, "7d")
    assert (a.start_us, b.start_us, c.start_us) == (us("2026-01-01"), us("2026-02-08"), us("2026-03-20"))
    assert gaps((a, b, c)) == ((us("2026-02-01"), us("2026-02-08")), (us("2026-03-01"), us("2026-03-20")))
    assert gaps(parse_splits({"a": "..2026-02-01", "b": "2026-02-01.."})) == ()


@pytest.mark.parametrize(
    ("texts", "gap", "problem"),
    [
        (["train"], None, "'train' is no part"),
        (["train=2026-01-01"], None, "'train=2026-01-01' is no part"),
        (["Train=2026-01-01.."], None, "'Train' cannot name a part"),
        (["a/b=2026-01-01.."], None, "'a/b' cannot name a part"),
        (["a=2026-01-01..2026-01-01"], None, "part 'a' ends before it begins"),
        (["a=soon.."], None, "'soon' is not ISO 8601"),
        (["a=2026-01-01..2026-02-01", "a=2026-02-01.."], None, "names part 'a' twice"),
        (["a=2026-01-01..2026-02-02", "b=2026-02-01.."], None, "part 'b' begins before 'a' ends"),
        (["b=2026-02-01..2026-03-01", "a=2026-01-01..2026-02-01"], None, "part 'a' begins before 'b' ends"),
        (["a=2026-01-01..", "b=2026-02-01.."], None, "part 'a' has no END"),
        (["a=..2026-01-01", "b=..2026-02-01"], None, "part 'b' has no START"),
        (["a=..2026-01-01", "b=2026-01-01..2026-01-03"], "2d", "part 'b' ends within 2d of the end of 'a'"),
        (["a=..2026-01-01", "b=2026-01-01.."], "soon", "'soon' is not a length of time"),
        (["a=..2026-01-01"], "2d", "has no two parts to lie between"),
        ([], "2d", "has no two parts to lie between"),
    ],
)
def test_parts_that_overlap_or_mean_nothing_are_refused(texts: list[str], gap: str | None, problem: str) -> None:
    with pytest.raises(UsageError, match=r"^Option --(split|gap): .*\nHint: ") as caught:
        parse_splits(texts, gap)
    assert caught.value.problem.startswith(problem)


def oracle(time: int | None, spans: list[tuple[str, int | None, int | None]], gap: int) -> str:
    """The words as a user would apply them by hand: spans as written, then the gap behind each end."""
    if time is None:
        return OUTSIDE
    ends = [end for _, _, end in spans[:-1]]
    for end in ends:
        if end is not None and end <= time < end + gap:
            return GAP
    for name, start, end in spans:
        if (start is None or start <= time) and (end is None or time < end):
            return name
    first, last = spans[0], spans[-1]
    before, behind = first[1] is not None and time < first[1], last[2] is not None and time >= last[2]
    return OUTSIDE if before or behind else GAP


def drawn(draw: random.Random) -> tuple[list[tuple[str, int | None, int | None]], int]:
    """One to three spans over twelve days, whose ends meet, or not, and are open, or not; a gap shorter than a span."""
    count = draw.choice([1, 2, 3])
    bounds: list[int] = []
    while len(bounds) < 2 * count:
        step = draw.choice([2, 3]) if len(bounds) % 2 else draw.choice([0, 0, 1])
        bounds.append((bounds[-1] if bounds else 1) + step)
    spans: list[tuple[str, int | None, int | None]] = [
        (name, bounds[2 * i] * DAY, bounds[2 * i + 1] * DAY) for i, name in enumerate(["a", "b", "c"][:count])
    ]
    if draw.random() < 0.5:
        spans[0] = (spans[0][0], None, spans[0][2])
    if draw.random() < 0.5:
        spans[-1] = (spans[-1][0], spans[-1][1], None)
    return spans, draw.choice([0, DAY // 2, DAY]) if count > 1 else 0


def test_every_row_is_in_at_most_one_part_as_plain_loops_say(spark: SparkSession) -> None:
    """Forty ways to cut the same times, each a column, in one job."""
    draw = random.Random(11)
    times: list[Any] = [None, *(half * DAY // 2 + off for half in range(30) for off in (-1, 0, 1))]
    cases = [drawn(draw) for _ in range(40)]
    columns = []
    for number, (spans, gap) in enumerate(cases):
        words = {name: f"{iso(start)}..{iso(end)}" for name, start, end in spans}
        parts = parse_splits(words, {0: None, DAY // 2: "12h", DAY: "1d"}[gap])
        for one, other in [(one, other) for one in parts for other in parts if one is not other]:
            assert (one.end_us or 2**62) <= (other.start_us or -1) or (other.end_us or 2**62) <= (one.start_us or -1)
        columns.append(split_of(F.timestamp_micros("us"), parts).alias(f"case_{number}"))
    rows = spark.createDataFrame([(time,) for time in times], "us bigint").select("us", *columns).collect()
    seen = set()
    for row in rows:
        for number, (spans, gap) in enumerate(cases):
            expected = oracle(row["us"], spans, gap)
            assert row[f"case_{number}"] == expected, (row["us"], spans, gap)
            seen.add(expected)
    assert seen == {"a", "b", "c", GAP, OUTSIDE}


def iso(time: int | None) -> str:
    if time is None:
        return ""
    return (datetime.datetime(1970, 1, 1) + datetime.timedelta(microseconds=time)).isoformat()  # noqa: DTZ001
