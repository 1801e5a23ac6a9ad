"""A failure inside Spark that the data or a lake's sign-in caused -> one line, without the values that Spark quotes.

A task's failure reaches Python as a PySparkException or as a bare Py4JJavaError, whichever layer wrapped it, so its
text is read: Spark writes every error as `[CONDITION] message SQLSTATE: 12345`, the innermost cause last.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from connectors.adls_files import driver_refusal
from feature_defs.errors import DataError, OnlineStoreError, TidemarkError
from feature_defs.loading import definition_files

_ERROR = re.compile(
    r"\[(?P<condition>[A-Z][A-Z0-9_]+(?:\.[A-Z0-9_]+)?)\].*?SQLSTATE: (?P<state>[0-9A-Z]{5})", re.DOTALL
)
_FRAGMENT = re.compile(r"== SQL[^\n]*==\n(?P<line>[^\n]+)\n\s*\^")
# by its name: schedulers and `--help` come by here, and have no need of the codec's packages
_REFUSED_BY_CODEC = re.compile(r"\bCodecError: (?P<problem>[^\n]+)(?:\nHint: (?P<hint>[^\n]+))?")
_TRACEBACK = "Traceback (most recent call last):\n"
_FRAME = re.compile(r'^ +File "(?P<file>[^"]+)", line (?P<line>\d+)', re.MULTILINE)
_RAISED = re.compile(r"^(?:\w+\.)*(?P<said>\w+(?::.*)?)$", re.MULTILINE)  # frames are indented
_GONE = "it was removed by another hand: restore it, or make anew what it belongs to; nothing was written"
_DATA_EXCEPTION = "22"  # the class of SQLSTATEs for values that an operation cannot take


@contextmanager
def data_errors(subject: str, *, of_tables: bool = False) -> Iterator[None]:
    """What the data caused is a DataError about the subject, what an account refused a LakeError about the path; every
    other failure passes as it is. Where files of tables are read, one that is not there is a fault of the data."""
    try:
        yield
    except TidemarkError:
        raise
    except Exception as error:
        if refused := driver_refusal(str(error)):
            raise refused from error
        found = _of_definitions(str(error)) or _explained(f"{type(error).__name__}: {error}")
        if found is None and of_tables and "[PATH_NOT_FOUND]" in str(error):
            found = "a file cannot be read: PATH_NOT_FOUND", _GONE
        if found is None:
            raise
        problem, hint = found
        raise DataError(subject, problem, hint=hint) from error


@contextmanager
def online_errors() -> Iterator[None]:
    """An OnlineStoreError that a task raised, in its own words, from inside the traceback that Spark gives for it."""
    try:
        yield
    except TidemarkError:
        raise
    except Exception as error:
        found = _online_error(str(error))
        if found is None:
            raise
        raise found from error


def worker_raised(text: str) -> str:
    """The exception of a Python worker as the end of its traceback has it; empty when none raised."""
    _, header, lines = text.rpartition(_TRACEBACK)
    found = _RAISED.search(lines) if header else None
    return found["said"] if found else ""


def line_of_definitions(text: str) -> str:
    """FILE:LINE of the innermost frame of a definition file in a Python worker's traceback; empty when none is."""
    files = definition_files()
    lines = [f"{frame['file']}:{frame['line']}" for frame in _FRAME.finditer(text) if frame["file"] in files]
    return lines[-1] if lines else ""


def _of_definitions(text: str) -> tuple[str, str] | None:
    """What a function of a definition file raised in a Python worker."""
    line = line_of_definitions(text)
    return (f"its transform raised {worker_raised(text)}", f"correct {line}; nothing was written") if line else None


def _online_error(text: str) -> OnlineStoreError | None:
    _, marker, told = text.partition(f"{OnlineStoreError.__name__}: ")
    if not marker:
        return None
    problem, _, rest = told.partition("\nHint: ")
    subject, _, problem = problem.partition(": ")
    return OnlineStoreError(subject, problem, hint=rest.partition("\n")[0] or "run it again once it is back")


def _explained(text: str) -> tuple[str, str] | None:
    if refused := _REFUSED_BY_CODEC.search(text):
        return refused["problem"], refused["hint"] or "correct such rows where the column is computed"
    if "CSV header does not conform" in text or "in CSV header is not equal" in text:
        return "a csv file's header is not that of the others", "give all files below the path the same columns"
    if re.search(r"\bjava\.sql\.SQL\w*Exception|\bPSQLException|\bSQLiteException", text):
        return "its database failed while rows were read", "check that it still answers, then run again"
    errors = [(found["condition"], found["state"]) for found in _ERROR.finditer(text)]
    if any(condition == "DUPLICATED_MAP_KEY" for condition, _ in errors):  # whose message quotes the key
        hint = "aggregate the entries by key first, or keep one of each; nothing was written"
        return "a row breaks an expression: it makes a map with one key twice", hint
    value_fault = next((condition for condition, state in errors if state.startswith(_DATA_EXCEPTION)), None)
    if value_fault is not None:
        fragment = _FRAGMENT.search(text)
        where = f" in `{fragment['line'].strip()}`" if fragment else ""
        hint = "guard the expression with nullif or try_cast, or filter such rows out; nothing was written"
        return f"a row breaks an expression: {value_fault}{where}", hint
    file_fault = next((condition for condition, _ in errors if condition.startswith("FAILED_READ_FILE")), None)
    if file_fault is not None:
        hint = "check its format and that the files below its path have one schema; nothing was written"
        hint = _GONE if "NOT_EXIST" in file_fault else hint
        return f"a file cannot be read: {file_fault}", hint
    return None
