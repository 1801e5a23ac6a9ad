"""Which columns a Spark SQL expression names, found without Spark.

Only enough of the language is read to check names before a session starts: strings, numbers, comments, function calls,
lambda parameters, `cast(x as type)` and keywords are told apart from columns. Spark has the last word when a job runs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_TOKEN = re.compile(
    r"""(?P<space>\s+|--[^\n]*|/\*.*?\*/)
      | (?P<string>[rR]?'(?:[^'\\]|\\.|'')*'|[rR]?"(?:[^"\\]|\\.|"")*")
      | (?P<quoted>`(?:[^`]|``)+`)
      | (?P<number>\d+\.?\d*(?:[eE][+-]?\d+)?(?:BD|[LSDFYlsdfy])?)
      | (?P<name>[A-Za-z_][A-Za-z_0-9]*)
      | (?P<arrow>->)
      | (?P<other>.)""",
    re.VERBOSE | re.DOTALL,
)
_KEYWORDS = frozenset(
    """all and any as asc between both by case cast collate current_date current_timestamp date day desc distinct div
    else end escape exists false filter first following for from group hour ilike in interval is last leading like
    minute month not null nulls on or order over overlay partition placing position preceding quarter range regexp
    rlike row rows second similar some substring symmetric then timestamp timestamp_ltz timestamp_ntz to trailing true
    unbounded week when where window within year years months weeks days hours minutes seconds millisecond
    milliseconds microsecond microseconds""".split()
)
_TYPES_AFTER_AS = frozenset(
    """array bigint binary boolean byte char date dec decimal double float int integer long map numeric real short
    smallint string struct timestamp timestamp_ltz timestamp_ntz tinyint varchar void""".split()
)
_CLOSING = {")": "(", "]": "[", "}": "{"}


class ExpressionFault(ValueError):
    """Text that cannot be an expression; the message says where it breaks."""


@dataclass(frozen=True)
class _Word:
    kind: str
    text: str


def normalised(expression: str) -> str:
    """The expression without comments and with single spaces, so that layout is not a change."""
    return " ".join(word.text for word in _words(expression))


def columns(expression: str) -> tuple[str, ...]:
    """Column names in order of appearance, each once. `a.b` names column a."""
    words = _words(expression)
    _check_brackets(expression, words)
    parameters = _lambda_parameters(words)
    found: dict[str, None] = {}
    for at, word in enumerate(words):
        before = words[at - 1] if at else _Word("", "")
        after = words[at + 1] if at + 1 < len(words) else _Word("", "")
        if word.kind == "quoted":
            if before.text != "." and before.text.lower() != "as":
                found[word.text[1:-1].replace("``", "`")] = None
            continue
        if word.kind != "name" or before.text == "." or after.text == "(" or word.text in parameters:
            continue
        if word.text.lower() in _KEYWORDS and not (after.text == "." and after.kind == "other"):
            continue
        if before.text.lower() == "as" or (word.text.lower() in _TYPES_AFTER_AS and after.kind == "string"):
            continue
        found[word.text] = None
    return tuple(found)


def _words(expression: str) -> list[_Word]:
    found = []
    for match in _TOKEN.finditer(expression):
        kind = match.lastgroup or "other"
        if kind == "space":
            continue
        if kind == "other" and match.group() in "'\"`":
            raise ExpressionFault(f"the quote at character {match.start() + 1} is never closed")
        if kind == "other" and match.group() == ";":
            raise ExpressionFault("';' has no place in an expression")
        found.append(_Word(kind, match.group()))
    if not found:
        raise ExpressionFault("the expression is empty")
    return found


def _check_brackets(expression: str, words: list[_Word]) -> None:
    open_brackets: list[str] = []
    cases = 0
    for word in words:
        if word.kind != "other":
            if word.kind == "name":
                cases += {"case": 1, "end": -1}.get(word.text.lower(), 0)
            continue
        if word.text in "([{":
            open_brackets.append(word.text)
        elif word.text in _CLOSING and (not open_brackets or open_brackets.pop() != _CLOSING[word.text]):
            raise ExpressionFault(f"'{word.text}' closes nothing in: {expression}")
    if open_brackets:
        raise ExpressionFault(f"'{open_brackets[-1]}' is never closed in: {expression}")
    if cases > 0:
        raise ExpressionFault(f"'case' has no 'end' in: {expression}")


def _lambda_parameters(words: list[_Word]) -> frozenset[str]:
    """`x -> ...` and `(x, y) -> ...` name x and y; they are columns nowhere in the expression."""
    found: set[str] = set()
    for at, word in enumerate(words):
        if word.kind != "arrow" or at == 0:
            continue
        back = at - 1
        if words[back].text != ")":
            found.add(words[back].text)
            continue
        while back and words[back].text != "(":
            back -= 1
            if words[back].kind == "name":
                found.add(words[back].text)
    return frozenset(found)
