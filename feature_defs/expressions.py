"""Which columns a Spark SQL expression names, found without Spark.

Only enough of the language is read to check names before a session starts: strings, numbers, comments, function calls,
lambda parameters, types and keywords are told apart from columns. Most of Spark's words (date, day, order, first, end)
may also name a column, so what decides is where a word stands: a name right after a value is never a column
(`interval 1 day`, `x desc nulls last`). Spark has the last word when a job runs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_TOKEN = re.compile(
    r"""(?P<space>\s+|--[^\n]*|/\*.*?\*/)
      | (?P<string>[rR]'[^']*'|[rR]"[^"]*"|'(?:[^'\\]|\\.|'')*'|"(?:[^"\\]|\\.|"")*")
      | (?P<quoted>`(?:[^`]|``)+`)
      | (?P<number>\d+\.?\d*(?:[eE][+-]?\d+)?(?:[bB][dD]|[LSDFYlsdfy])?)
      | (?P<name>[^\W\d]\w*)
      | (?P<arrow>->)
      | (?P<other><=>|=>|::|.)""",
    re.VERBOSE | re.DOTALL,
)
_OPERATORS = frozenset(
    """all and any as between by case distinct div else escape for from ilike in interval like not or placing regexp
    rlike some then when where""".split()
)
_NO_COLUMNS = frozenset("collate current_date current_time current_timestamp false is localtimestamp null true".split())
_NOT_OF_THE_ROW = frozenset(
    """curdate current_date current_time current_timestamp localtimestamp now rand randn random unix_timestamp uniform
    uuid""".split()
)
_PAIRS = frozenset(
    {("current", "row"), ("order", "by"), ("partition", "by"), ("unbounded", "following"), ("unbounded", "preceding")}
)
_TRIMMED = frozenset({"both", "leading", "trailing"})
_UNIT_FIRST = frozenset("date_add date_diff dateadd datediff timestampadd timestampdiff".split())
_CLOSING = {")": "(", "]": "[", "}": "{"}
_OPENING = frozenset(_CLOSING.values())


def quoted(column: str) -> str:
    """A column's name as SQL writes it whatever it holds."""
    return "`" + column.replace("`", "``") + "`"


def text_literal(text: str) -> str:
    """A text as a SQL literal; line ends are written as escapes."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\r", "\\r")
    return f"'{escaped}'"


class ExpressionFault(ValueError):
    """Text that cannot be an expression; the message says where it breaks."""


@dataclass(frozen=True)
class _Word:
    kind: str
    text: str

    @property
    def lower(self) -> str:
        return self.text.lower()


_NOTHING = _Word("", "")


def normalised(expression: str) -> str:
    """The expression without comments and with single spaces, so that layout is not a change."""
    return " ".join(word.text for word in _words(expression))


def one_line(expression: str) -> str:
    """The expression as a reader would type it on one line: comments gone, white space as it was but single."""
    text = "".join(" " if match.lastgroup == "space" else match.group() for match in _TOKEN.finditer(expression))
    return text.strip()


def may_change_by_itself(expression: str) -> bool:
    """Whether it may say another thing tomorrow of the same row: it asks the clock, or draws."""
    return any(word.kind == "name" and word.lower in _NOT_OF_THE_ROW for word in _words(expression))


def has_window(expression: str) -> bool:
    """Whether a function in it reads other rows: `lag(x) over (...)`, `first(x) ignore nulls over w`."""
    words = _words(expression)
    return any(
        word.kind == "name"
        and word.lower == "over"
        and (before.text == ")" or before.lower == "nulls")  # behind which no column can stand
        and (after.text == "(" or after.kind in ("name", "quoted"))  # `struct(f(x) over, y)` names a field
        for before, word, after in zip(words, words[1:], words[2:], strict=False)
    )


def columns(expression: str) -> tuple[str, ...]:
    """Column names in order of appearance, each once. `a.b` names column a."""
    words = _words(expression)
    _check_brackets(expression, words)
    parameters, types = _lambda_parameters(words), _types(words)
    found: dict[str, None] = {}
    after_value = False
    open_cases = 0
    for at, word in enumerate(words):
        before = words[at - 1] if at else _NOTHING
        after = words[at + 1] if at + 1 < len(words) else _NOTHING
        if at in types or before.text == ".":
            after_value = True
        elif word.kind == "quoted":
            if before.lower != "as":
                found[word.text[1:-1].replace("``", "`")] = None
            after_value = True
        elif word.kind != "name":
            after_value = word.kind in ("string", "number") or word.text in _CLOSING
        elif after.text in ("(", "=>"):  # a function, or the name of its argument
            open_cases += word.lower == "case"
            after_value = False
        elif word.lower == "end" and open_cases:
            open_cases -= 1
            after_value = True
        elif word.lower in _OPERATORS:
            open_cases += word.lower == "case"
            after_value = word.lower == "not" and before.lower == "is"
        elif _is_syntax(words, at):
            after_value = False
        else:
            no_column = word.lower in parameters or word.lower in _NO_COLUMNS or (word.lower, after.lower) in _PAIRS
            if not after_value and not no_column:
                found[word.text] = None
            after_value = True
    return tuple(found)


def _is_syntax(words: Sequence[_Word], at: int) -> bool:
    """Before a value: `date '2026-01-31'`, `extract(day from x)`, `trim(both from x)`, `dateadd(day, 1, x)`."""
    after = words[at + 1] if at + 1 < len(words) else _NOTHING
    if after.kind == "string":
        return True
    function = words[at - 2].lower if at > 1 and words[at - 1].text == "(" else ""
    if function == "trim" and words[at].lower in _TRIMMED:
        return after.kind != "other"
    return (function == "extract" and after.lower == "from") or (
        function in _UNIT_FIRST and after.text == "," and _arguments(words, at) == 3
    )


def _arguments(words: Sequence[_Word], start: int) -> int:
    """How many arguments a call has whose first one begins at `start`."""
    depth, commas = 0, 0
    for word in words[start:]:
        depth += (word.text in _OPENING) - (word.text in _CLOSING)
        if depth < 0:
            break
        commas += depth == 0 and word.text == ","
    return commas + 1


def _types(words: Sequence[_Word]) -> frozenset[int]:
    """Where the words of `as TYPE` and `::TYPE` stand; the alias of `as NAME` is one of them."""
    found: set[int] = set()
    for at, word in enumerate(words):
        if not (word.text == "::" or (word.kind == "name" and word.lower == "as")) or at + 1 == len(words):
            continue
        end = at + 2
        if words[at + 1].lower == "interval":
            while end < len(words) and words[end].kind == "name":
                end += 1
        if end < len(words) and words[end].text in ("(", "<"):
            opening, closing = words[end].text, {"(": ")", "<": ">"}[words[end].text]
            depth = 0
            while end < len(words):
                depth += (words[end].text == opening) - (words[end].text == closing)
                end += 1
                if depth == 0:
                    break
        found.update(range(at + 1, end))
    return frozenset(found)


def _words(expression: str) -> list[_Word]:
    found = []
    for match in _TOKEN.finditer(expression):
        kind = match.lastgroup or "other"
        if kind == "space":
            continue
        if kind == "other" and match.group() in "'\"`":
            raise ExpressionFault(f"the quote at character {match.start() + 1} is never closed")
        if expression.startswith("/*", match.start()):
            raise ExpressionFault(f"the comment at character {match.start() + 1} is never closed")
        if kind == "other" and match.group() == ";":
            raise ExpressionFault("';' has no place in an expression")
        found.append(_Word(kind, match.group()))
    if not found:
        raise ExpressionFault("the expression is empty")
    return found


def _check_brackets(expression: str, words: list[_Word]) -> None:
    open_brackets: list[str] = []
    open_cases = 0
    for before, word in zip([_NOTHING, *words], words, strict=False):
        if word.kind == "name" and before.text != ".":
            open_cases += (word.lower == "case") - (word.lower == "end" and open_cases > 0)
        elif word.text in _OPENING:
            open_brackets.append(word.text)
        elif word.text in _CLOSING and (not open_brackets or open_brackets.pop() != _CLOSING[word.text]):
            raise ExpressionFault(f"'{word.text}' closes nothing in: {expression}")
    if open_brackets:
        raise ExpressionFault(f"'{open_brackets[-1]}' is never closed in: {expression}")
    if open_cases:
        raise ExpressionFault(f"'case' has no 'end' in: {expression}")


def _lambda_parameters(words: list[_Word]) -> frozenset[str]:
    """`x -> ...` and `(x, y) -> ...` name x and y; they are columns nowhere in the expression."""
    found: set[str] = set()
    for at, word in enumerate(words):
        if word.kind != "arrow" or at == 0:
            continue
        back = at - 1
        if words[back].text != ")":
            found.add(words[back].lower)
            continue
        while back and words[back].text != "(":
            back -= 1
            if words[back].kind == "name":
                found.add(words[back].lower)
    return frozenset(found)
