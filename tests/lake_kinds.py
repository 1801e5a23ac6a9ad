"""The kinds of lakes that the tests hold to the same rules: an empty folder in each, and a profile that names it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from connectors.file_store import FileStore, open_file_store
from connectors.lakes import joined
from jobs.lake_access import use_lakes
from jobs.settings import AdlsSettings, HdfsSettings, Settings
from tests.emulator import ACCOUNT, Emulator
from tests.hdfs_daemons import Hdfs

ROOT = Path(__file__).resolve().parent.parent
KINDS = ("local", "hdfs", "adls")
SECRET = "EMULATOR_KEY"  # the variable that holds it; conftest.py sets it


@dataclass(frozen=True)
class Lake:
    """An empty folder of a store. `profile` names it as its lakes `raw` and `features`."""

    files: FileStore
    root: str
    profile: Path

    def __truediv__(self, path: str) -> str:
        return joined(self.root, path)

    def paths(self, folder: str = "") -> list[str]:
        return [file.path for file in self.files.list_files(self / folder if folder else self.root)]


def hdfs_settings(hdfs: Hdfs) -> dict[str, HdfsSettings]:
    return {"localhost": HdfsSettings(webhdfs=hdfs.webhdfs)}


def adls_settings(adls: Emulator) -> dict[str, AdlsSettings]:
    return {ACCOUNT: AdlsSettings(auth="key", secret=f"env:{SECRET}", endpoint=adls.endpoint)}


def new_lake(folder: Path, root: str, *, hdfs: Hdfs | None = None, adls: Emulator | None = None) -> Lake:
    """The folder `root`, of which this process and, by its profile, any other may open the files."""
    tables: dict[str, Mapping[str, Any]] = {}
    if hdfs is not None:
        tables["hdfs"] = hdfs_settings(hdfs)
    if adls is not None:
        tables["adls"] = adls_settings(adls)
    lakes = {"raw": joined(root, "raw"), "features": joined(root, "features")}
    use_lakes(Settings(name="test", definitions=str(folder), lakes=lakes, **tables))
    profile = folder / "place.toml"
    profile.write_text('name = "test"\ndefinitions = "definitions"\n' + tables_text(lakes, tables), encoding="utf-8")
    return Lake(open_file_store(root), root, profile)


def tables_text(lakes: Mapping[str, str], tables: Mapping[str, Mapping[str, Any]]) -> str:
    """The same as a profile has it."""
    text = "[lakes]\n" + "".join(f'{name} = "{base}"\n' for name, base in lakes.items())
    for table, items in tables.items():
        for name, item in items.items():
            told = {key: value for key, value in vars(item).items() if isinstance(value, str) and value}
            text += f"[{table}.{name}]\n" + "".join(f'{key} = "{value}"\n' for key, value in told.items())
    return text + '[online]\nkind = "none"\n'


def environment() -> dict[str, str]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith("TIDEMARK")}
    return {**plain, "PYTHONPATH": str(ROOT)}


def start(lake: Lake, script: str, *arguments: str) -> subprocess.Popen[str]:
    """A Python process of its own, which runs the script when a line is written to it."""
    prelude = """
import sys
from jobs.lake_access import use_lakes
from jobs.settings import load_settings
use_lakes(load_settings(sys.argv.pop(1)))
print('ready', flush=True)
sys.stdin.readline()
"""
    command = [sys.executable, "-c", prelude + script, str(lake.profile), *arguments]
    return subprocess.Popen(command, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def race(lake: Lake, script: str, racers: list[list[str]]) -> list[str]:
    """What each process printed; all of them had loaded before any began."""
    started = [start(lake, script, *arguments) for arguments in racers]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=60)[0] for process in started]
    assert [process.returncode for process in started] == [0] * len(started)
    return outputs
