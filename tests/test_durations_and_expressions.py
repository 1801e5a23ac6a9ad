"""Lengths of time, and the columns that a Spark SQL expression names.

The expected columns were compared with those of Spark's own parser once; lambda bodies, where Spark has variables
instead of columns, are the one difference.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_defs import durations
from feature_defs.durations import UNITS, DurationFault, microseconds
from feature_defs.expressions import ExpressionFault, columns, has_window, may_change_by_itself, normalised

# --- durations ---


@pytest.mark.parametrize(
    ("text", "length"),
    [
        ("1s", 1_000_000),
        ("15m", 900_000_000),
        ("24h", 86_400_000_000),
        ("90d", 7_776_000_000_000),
        ("2w", 14 * 86_400_000_000),
    ],
)
def test_a_length_of_time_is_counted_in_microseconds(text: str, length: int) -> None:
    assert microseconds(text) == length


@given(st.integers(1, 50_000), st.sampled_from(sorted(UNITS)))
def test_a_length_is_written_in_its_largest_unit(number: int, unit: str) -> None:
    """24 hours are told as one day."""
    length = microseconds(f"{number}{unit}")
    shortest = durations.text(length)
    assert microseconds(shortest) == length
    assert all(UNITS[shortest[-1]] >= size for size in UNITS.values() if length % size == 0)


@pytest.mark.parametrize(
    "value", ["", "d", "90", "90 days", "90 d", " 90d", "90d\n", "1.5h", "-1d", "1D", "1y", "٣d", None, 90, ["1d"]]
)
def test_what_is_no_length_of_time_is_a_fault_that_shows_one(value: object) -> None:
    with pytest.raises(DurationFault, match="write a whole number and s, m, h, d or w, as '90d'"):
        microseconds(value)


@pytest.mark.parametrize("text", ["0d", "00s"])
def test_no_length_at_all_is_refused(text: str) -> None:
    """A ttl of zero would match nothing but a row at the same microsecond."""
    with pytest.raises(DurationFault, match="has no length"):
        microseconds(text)


def test_a_length_that_spark_could_not_count_is_refused() -> None:
    """64 bits of microseconds hold 292,000 years, and a time minus a window has to fit too."""
    assert microseconds("365000d") == 365_000 * UNITS["d"]
    for text in ("53000w", "999999999999w"):
        with pytest.raises(DurationFault, match=r"longer than 1,000 years"):
            microseconds(text)


@given(st.text(max_size=12) | st.from_regex(r"[0-9]+[smhdw]", fullmatch=True))
def test_any_text_is_a_length_or_a_fault(text: str) -> None:
    try:
        assert microseconds(text) > 0
    except DurationFault:
        return


# --- columns ---


@pytest.mark.parametrize(
    ("expression", "named"),
    [
        # plain
        ("a + b * a", "a b"),
        ("_a1 + A1", "_a1 A1"),
        ("1 + 2.5e3 + 7L + 1.0BD + .5", ""),
        ("-a", "a"),
        ("größe", "größe"),
        # strings and comments
        ("a = 'b c'", "a"),
        ("a = 'it''s b'", "a"),
        (r"a = 'it\'s b'", "a"),
        ('a = "b" || c', "a c"),
        (r"a rlike r'\d\' and b", "a b"),
        (r'a = R"x\" and b', "a b"),
        ("a -- b 'c\n+ d", "a d"),
        ("a /* b ' \n c */ + d", "a d"),
        ("'-- a' || '/* b'", ""),
        ("x'1F' = a", "a"),
        # backquotes and fields
        ("`a b` + `c``d`", "a b|c`d"),
        ("a.b.c + d . e", "a d"),
        ("`a`.`b`[0].c", "a"),
        ("m['k'] + m[k] + xs[0]", "m k xs"),
        ("max(struct(a, b)).a", "a b"),
        ("period.end - period.case", "period"),
        # functions and their arguments
        ("coalesce(a, 0) / nullif(b, 0)", "a b"),
        ("if(a, b, c)", "a b c"),
        ("count(*) filter (where a > 1)", "a"),
        ("count(distinct a)", "a"),
        ("mask(a, lowerChar => 'q')", "a"),
        ("a <=> b", "a b"),
        ("percentile_cont(0.5) within group (order by a desc)", "a"),
        ("first(a) ignore nulls", "a"),
        ("overlay(a placing b from 3 for 2)", "a b"),
        ("substring(a from b for c)", "a b c"),
        ("position('x' in a)", "a"),
        ("trim(both 'x' from a) || trim(leading from b) || trim(trailing c from d) || trim(both)", "a b c d both"),
        # case, in, between, like
        ("case when a > 1 then b else c end", "a b c"),
        ("case a when 'x' then b end + c", "a b c"),
        ("case when (case when a then 1 end) = 1 then b end", "a b"),
        ("a in (b, 'c') and not d", "a b d"),
        ("a between b and c or d", "a b c d"),
        ("a not like 'x!_' escape '!' and b", "a b"),
        ("a like any ('x', b)", "a b"),
        ("a is not null and b is null", "a b"),
        ("a is distinct from b", "a b"),
        ("a is not distinct from b", "a b"),
        ("a is not unknown and b is true", "a b"),
        ("a collate utf8_lcase = b", "a b"),
        ("a div b", "a b"),
        # types
        ("cast(a as decimal(10,2)) + b", "a b"),
        ("cast(a as int) + try_cast(b as string)", "a b"),
        ("cast(a as array<int>)", "a"),
        ("cast(a as map<string,array<double>>) = b", "a b"),
        ("cast(a as struct<b:int,c:string>).b", "a"),
        ("cast(a as interval day to second) + b", "a b"),
        ("a::double + b::decimal(4,1)", "a b"),
        ("struct(a as b, c as `d e`)", "a c"),
        # lambdas
        ("transform(a, x -> x + b)", "a b"),
        ("transform(a, x -> X.f)", "a"),
        ("transform(a, (x, i) -> x * i + b)", "a b"),
        ("aggregate(a, 0, (total, x) -> total + x.n, total -> total / b)", "a b"),
        # dates, times and intervals
        ("date '2026-01-31' < a", "a"),
        ("timestamp '2026-01-31 10:00:00' - a", "a"),
        ("a + interval 1 day", "a"),
        ("a - interval '1' day + interval 2 hours 3 minutes", "a"),
        ("a - interval '1-2' year to month + b", "a b"),
        ("interval (a + 1) day", "a"),
        ("extract(day from a)", "a"),
        ("extract(year from date)", "date"),
        ("dateadd(day, 1, a) > timestampadd(hour, b, c)", "a b c"),
        ("datediff(day, month)", "day month"),
        ("current_date - a", "a"),
        # words that Spark also takes as names
        ("date", "date"),
        ("year(date) = year", "date year"),
        ("order + position + first + window + group + rows", "order position first window group rows"),
        ("end - start", "end start"),
        ("a.timestamp + timestamp", "a timestamp"),
        # windows
        ("sum(a) over (partition by b order by c desc nulls last)", "a b c"),
        ("sum(a) over (order by b rows between unbounded preceding and current row) + c", "a b c"),
        ("max(a) over (partition by b order by c range between 5 preceding and unbounded following)", "a b c"),
    ],
)
def test_columns_are_told_from_everything_else(expression: str, named: str) -> None:
    expected = tuple(named.split("|") if "|" in named else named.split())
    assert columns(expression) == expected


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("", "the expression is empty"),
        (" -- nothing but a comment", "the expression is empty"),
        ("(a", "'(' is never closed in: (a"),
        ("a)", "')' closes nothing in: a)"),
        ("f(a[0)]", "')' closes nothing in: f(a[0)]"),
        ("a = 'b", "the quote at character 5 is never closed"),
        ('a = "b', "the quote at character 5 is never closed"),
        (r"a = 'b\'", "the quote at character 5 is never closed"),
        ("`a", "the quote at character 1 is never closed"),
        ("a /* b", "the comment at character 3 is never closed"),
        ("a; drop table b", "';' has no place in an expression"),
        ("case when a then b", "'case' has no 'end' in: case when a then b"),
        ("case when a.end then b", "'case' has no 'end' in: case when a.end then b"),
    ],
)
def test_text_that_cannot_be_an_expression_is_a_fault_that_says_where(expression: str, message: str) -> None:
    with pytest.raises(ExpressionFault) as raised:
        columns(expression)
    assert str(raised.value) == message


@given(st.text(max_size=30) | st.text(alphabet="ab.,()[]'\"`-/*<>=: \nrx1", max_size=30))
def test_any_text_has_columns_or_is_a_fault(text: str) -> None:
    """Nothing a user writes ends in another error, and layout never changes what is named."""
    try:
        found = columns(text)
    except ExpressionFault:
        return
    assert len(set(found)) == len(found)
    assert columns(normalised(text)) == found


NAMES = st.from_regex(r"[a-z]_[a-z0-9]{0,4}", fullmatch=True)  # no keyword has its second letter as _
QUOTED = st.text(alphabet="a '`1.", min_size=1, max_size=5).map(lambda name: "`" + name.replace("`", "``") + "`")
LITERALS = st.sampled_from(["1", "2.5", "'it''s a_b'", r"'\'a_b'", '"a_b"', "null", "true", "date '2026-01-01'"])
EXPRESSIONS = st.recursive(
    st.tuples(NAMES | QUOTED).map(lambda name: (name[0], name)) | LITERALS.map(lambda text: (text, ())),
    lambda inner: st.tuples(
        st.sampled_from(
            [
                "{} + {}",
                "coalesce({}, {})",
                "({}) = {}",
                "case when {} then {} end",
                "{} /* a_b */ and {}",
                "{} -- a_b '\n or {}",
                "struct({}, {}).a_b",
                "cast({} as decimal(4,2)) - {}",
                "{} in (1, {})",
            ]
        ),
        inner,
        inner,
    ).map(lambda parts: (parts[0].format(parts[1][0], parts[2][0]), parts[1][1] + parts[2][1])),
    max_leaves=8,
)


@given(EXPRESSIONS)
def test_the_columns_of_a_built_expression_are_those_it_was_built_from(built: tuple[str, tuple[str, ...]]) -> None:
    text, names = built
    plain = [name[1:-1].replace("``", "`") if name.startswith("`") else name for name in names]
    assert columns(text) == tuple(dict.fromkeys(plain))


# --- window functions ---


@pytest.mark.parametrize(
    "expression",
    [
        "lag(a) over (partition by b order by c)",
        "1 + SUM(a)OVER(order by b) - c",
        "row_number() /* of b */ over -- all\n (order by b)",
        "first(a) ignore nulls over (order by b)",
        "count(*) filter (where a > 1) over (partition by b)",
        "sum(a) over w + 1",
        "sum(a) over `w`",
        "coalesce(max(over) over (order by over), 0)",
    ],
)
def test_a_window_function_is_found(expression: str) -> None:
    assert has_window(expression)


@pytest.mark.parametrize(
    "expression",
    [
        "over",
        "Over + 1",
        "over + f(over)",
        "coalesce(over, 0)",
        "if(over, over, f(a))",
        "f(a) + over",
        "f(a) and over",
        "a in (over)",
        "case when f(a) then over else (over) end",
        "a.over (1)",
        "`over` > 0",
        "f(a) = 'b) over (order by c)'",
        "f(a) -- over (order by b)",
        "f(a) /* over (order by b) */",
        'concat(f(a), ") over (")',
        "struct(f(a) as over, b)",
        "struct(f(a) over, b)",
        "transform(a, (x, over) -> over + x)",
        "overlay(a placing b from 3)",
    ],
)
def test_a_column_a_text_or_a_comment_is_no_window_function(expression: str) -> None:
    assert not has_window(expression)


# --- layout ---


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a+b", "a + b"),
        ("a\n\t+ b", "a + b"),
        ("a -- why\n+ b", "a /* because */ + b"),
        ("f( a,b )", "f(a, b)"),
    ],
)
def test_layout_and_comments_are_no_change(one: str, other: str) -> None:
    assert normalised(one) == normalised(other)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("at <= Current_Timestamp", True),
        ("at <= now() - interval 1 day", True),
        ("rand() < 0.1", True),
        ("true", False),
        ("a > 1 AND note <> 'now()' -- now()", False),
        ("`now` > 1", False),
    ],
)
def test_what_asks_the_clock_or_draws_may_change_by_itself(expression: str, expected: bool) -> None:
    assert may_change_by_itself(expression) is expected


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a = 'x y'", "a = 'x  y'"),
        ("a = '-- x'", "a = ''"),
        ("a = 'X'", "a = 'x'"),
        ("a b", "ab"),
        ("a - -b", "a - b"),
        ("`a b`", "`a  b`"),
        ("r'a'", "'a'"),
    ],
)
def test_what_may_change_a_value_is_a_change(one: str, other: str) -> None:
    assert normalised(one) != normalised(other)
