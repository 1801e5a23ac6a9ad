"""A folder of definition files -> Definitions, or every fault in it.

The files are imported as one private package, so that they may import from each other with a leading dot
(`from .customers import customer`); what counts is every definition that stands at the top level of a file.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.machinery
import os
import re
import sys
import traceback
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from feature_defs.checks import check
from feature_defs.errors import DefinitionError, Fault, near_miss
from feature_defs.model import WORDS, Aggregate, Definition, Definitions, Feature, Location
from feature_defs.rules import RULES
from feature_defs.testing import Case, NamedCase

_PACKAGE = "_definitions_"
_CALLABLES = {word.__name__: word for word in (*WORDS, Feature, Aggregate, *RULES, Case)}


def load(folder: Path) -> Definitions:
    """The checked definitions of a folder; DefinitionError holds all its faults."""
    folder = folder.resolve()
    files = _files(folder)
    objects, faults = _import_all(folder, files)
    definitions, found = check(objects)
    broken = {fault.file for fault in faults}
    # a file that failed to load hides its definitions: what others miss because of it is not a fault of theirs
    faults += [fault for fault in found if not broken or "is not defined" not in fault.problem]
    if faults or definitions is None:
        raise DefinitionError(shown(fault) for fault in faults)
    return definitions


def load_cases(folder: Path) -> tuple[list[NamedCase], list[Fault]]:
    """The cases of a folder's test files, and the faults of files that do not load; after `load` of the same folder.

    They belong to the package of that load: what they import from a definition file is what was loaded.
    """
    folder = folder.resolve()
    found: dict[int, NamedCase] = {}
    faults: dict[tuple[str, int, str], Fault] = {}
    for path in sorted(path for path in folder.rglob("test_*.py") if not _cached(path.relative_to(folder))):
        module = _imported(folder, _package_name(folder), path)
        if isinstance(module, Fault):
            faults.setdefault((module.file, module.line, module.problem), module)
            continue
        for name, case in _cases_in(vars(module)):
            found.setdefault(id(case), NamedCase(name, str(path), case))
    return list(found.values()), list(faults.values())


def _cases_in(names: Mapping[str, Any]) -> Iterator[tuple[str, Case]]:
    """Cases at the top level of a file, alone or several in a list or a dict."""
    for name, item in names.items():
        if isinstance(item, Case):
            yield name, item
        elif isinstance(item, list | tuple | dict):
            pairs = item.items() if isinstance(item, dict) else enumerate(item)
            yield from ((f"{name}[{key}]", case) for key, case in pairs if isinstance(case, Case))


def _cached(path: Path) -> bool:
    return any(part.startswith((".", "__")) for part in path.parts)


def _files(folder: Path) -> list[Path]:
    found = [path for path in folder.rglob("*.py") if not _hidden(path.relative_to(folder))] if folder.is_dir() else []
    if not found:
        problem = "holds no definition files" if folder.is_dir() else "is not a folder"
        hint = 'name the folder of your definition files in the profile: definitions = "..."'
        raise DefinitionError([Fault(shown_path(folder), 0, "Definitions", problem, hint)])
    return sorted(found)


def _hidden(path: Path) -> bool:
    """Caches, checkpoints and users' own tests (test_*.py, conftest.py) are no definitions."""
    return path.name == "conftest.py" or any(part.startswith((".", "__", "test_")) for part in path.parts)


def _import_all(folder: Path, files: Sequence[Path]) -> tuple[list[Definition], list[Fault]]:
    package = _package(folder)
    objects: dict[int, Definition] = {}
    faults: dict[tuple[str, int, str], Fault] = {}
    for path in files:
        module = _imported(folder, package, path)
        if isinstance(module, Fault):
            faults.setdefault((module.file, module.line, module.problem), module)
            continue
        objects.update((id(item), item) for item in _definitions_in(vars(module).values()))
    return list(objects.values()), list(faults.values())


def _imported(folder: Path, package: str, path: Path) -> types.ModuleType | Fault:
    name = ".".join((package, *path.relative_to(folder).with_suffix("").parts))
    try:
        with _no_bytecode():
            return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a user's file raises is a fault of that file
        return _import_fault(folder, path, error)


@contextlib.contextmanager
def _no_bytecode() -> Iterator[None]:
    """Python tells a stale .pyc by seconds and size: a file that was rewritten at once would be loaded as it was."""
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


def _package(folder: Path) -> str:
    """A fresh package over the folder (and its subfolders), never on sys.path and never cached from an earlier load."""
    name = _package_name(folder)
    for loaded in [loaded for loaded in sys.modules if loaded == name or loaded.startswith(name + ".")]:
        del sys.modules[loaded]
    importlib.invalidate_caches()
    package = types.ModuleType(name)
    package.__path__ = [str(folder)]
    package.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
    sys.modules[name] = package
    return name


def package_of(function: object) -> types.ModuleType | None:
    """The package of definition files that a function is written in; none when it is written elsewhere."""
    name = str(getattr(function, "__module__", "")).partition(".")[0]
    return sys.modules.get(name) if name.startswith(_PACKAGE) else None


def definition_files() -> frozenset[str]:
    """The files that this process has loaded as definitions."""
    modules = [module for name, module in list(sys.modules.items()) if name.startswith(_PACKAGE)]
    return frozenset(str(module.__file__) for module in modules if getattr(module, "__file__", None))


def _package_name(folder: Path) -> str:
    return _PACKAGE + hashlib.sha256(str(folder).encode()).hexdigest()[:12]


def _definitions_in(values: Iterable[Any]) -> Iterator[Definition]:
    for value in values:
        if isinstance(value, WORDS):
            yield value  # type: ignore[misc]  # WORDS are the members of Definition
        elif isinstance(value, list | tuple | dict):
            items = value.values() if isinstance(value, dict) else value
            yield from (item for item in items if isinstance(item, WORDS))  # type: ignore[misc]  # as above


# what a user sees of a file that does not load


def _import_fault(folder: Path, path: Path, error: BaseException) -> Fault:
    if isinstance(error, SyntaxError) and error.filename and _inside(folder, error.filename):
        text = f": {error.text.strip()}" if error.text else ""
        return Fault(error.filename, error.lineno or 0, "File", f"{error.msg}{text}", "correct the Python syntax")
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _inside(folder, frame.filename)]
    at = Location(frames[-1].filename, frames[-1].lineno or 0) if frames else Location(str(path), 0)
    return Fault(at.file, at.line, "File", f"{type(error).__name__}: {error}", _import_hint(folder, error))


def _inside(folder: Path, filename: str) -> bool:
    return Path(filename).is_relative_to(folder)


def _import_hint(folder: Path, error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError):
        stem = (error.name or "").rsplit(".", 1)[-1]
        if any(folder.rglob(f"{stem}.py")):
            return f"definition files import one another with a leading dot: from .{stem} import ..."
        return "install the package, or correct the name"
    unexpected = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
    if unexpected and unexpected[1] in _CALLABLES:
        known = [item.name for item in fields(_CALLABLES[unexpected[1]]) if item.name != "at"]
        return near_miss(unexpected[2], known) + f"{unexpected[1]} takes {', '.join(known)}"
    positional = re.search(r"(\w+)\.__init__\(\) takes", str(error))
    if positional and positional[1] in _CALLABLES:
        named = [item.name for item in fields(_CALLABLES[positional[1]]) if item.kw_only and item.name != "at"]
        return f"write these with their names: {', '.join(f'{name}=' for name in named)}"
    missing = re.search(r"(\w+)\.__init__\(\) missing", str(error))
    if missing and missing[1] in _CALLABLES:
        return f"give {missing[1]} what it names"
    return "correct this line"


def shown(fault: Fault) -> Fault:
    return replace(fault, file=shown_path(Path(fault.file)))


def shown_path(path: Path) -> str:
    """Paths below the working directory are shown from there, as compilers do."""
    shown = os.path.relpath(path)
    return str(path) if shown.startswith("..") else shown
