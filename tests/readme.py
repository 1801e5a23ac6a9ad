"""The README's console blocks, run: `python -m tests.readme` writes what each command prints now; a test compares.

A block is a list of `$ command` lines with their output. `$ cat FILE` shows a file, which is made as shown. Commands
run in a folder with a copy of conf/, so that their lakes and their Redis are its own. Seconds, days and names of runs
differ from run to run and are compared as such.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
_BLOCK = re.compile(r"(?<=```console\n).*?(?=```)", re.DOTALL)
_VERB_HELP = re.compile(r"(?<=```text\n)usage: tidemark.*?(?=```)", re.DOTALL)
_NOT_RUN = ("make test",)


@dataclass(frozen=True)
class Command:
    """One `$` line of a block and what stands below it."""

    line: str
    output: str


def blocks(text: str) -> list[list[Command]]:
    return [_commands(block) for block in _BLOCK.findall(text)]


def _commands(block: str) -> list[Command]:
    if block.startswith("$ make demo"):  # its output has `$` lines of its own
        line, _, output = block.partition("\n")
        return [Command(line[2:], output)]
    parts = re.split(r"^\$ (.*)\n", block, flags=re.MULTILINE)
    return [Command(line, output) for line, output in zip(parts[1::2], parts[2::2], strict=True)]


def run(command: Command, project: Path) -> str:
    """What the command prints, in a project folder that is made on the first use."""
    if command.line in _NOT_RUN:
        return command.output
    if command.line.startswith("cat "):
        file = project / command.line.removeprefix("cat ")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(command.output, encoding="utf-8")
        return command.output
    if not (project / "conf").exists():
        shutil.copytree(ROOT / "conf", project / "conf")
    words = ("tidemark demo" if command.line == "make demo" else command.line).split()
    settings = dict(word.split("=", 1) for word in words if word.startswith("TIDEMARK_"))
    arguments = [word for word in words if not word.startswith("TIDEMARK_")][1:]
    definitions = str(ROOT / "feature_defs" / "examples" / "retail")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TIDEMARK_DEFINITIONS": definitions, **settings}
    program = "import sys; from jobs.command_line import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    shown = done.stdout if done.returncode in (0, 2) else done.stderr
    return shown.replace(f"file://{project}/", "file:///.../").replace(f"{ROOT}/", "").replace(f"{project}/", "")


def normalised(text: str) -> str:
    """Without what differs from run to run, and without the padding that follows from it."""
    text = re.sub(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d:\d\d(\+00:00)?)?", "DAY", text)
    text = re.sub(r"\d{8}T\d+-[0-9a-f]{6}", "RUN", text)
    text = re.sub(r"\b\d+(\.\d{1,2})? s\b", "SECONDS s", text)
    text = re.sub(r"(?m)\b\d+\.\d$", "SECONDS", text)
    text = re.sub(r"(DAY  )\w+(?=\n|$)", r"\1USER", text)
    return "\n".join(re.sub(r" +", " ", line).strip() for line in text.strip().splitlines())


def stop(project: Path) -> None:
    """Stop the Redis that the commands started."""
    if (project / "conf").exists():
        run(Command("tidemark online stop", ""), project)


def help_texts() -> list[str]:
    """`tidemark --help`, then the help of each verb."""
    from jobs.command_line import VERBS

    with tempfile.TemporaryDirectory() as project:
        return [run(Command(f"tidemark {verb} --help", ""), Path(project)) for verb in ("", *VERBS)]


def rewritten(text: str, project: Path) -> str:
    """The README with the true output of every command."""

    def block(found: re.Match[str]) -> str:
        return "".join(f"$ {c.line}\n{run(c, project).rstrip()}\n" for c in _commands(found[0]))

    fresh = iter(help_texts())
    return _VERB_HELP.sub(lambda _: next(fresh), _BLOCK.sub(block, text))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        README.write_text(rewritten(README.read_text(encoding="utf-8"), Path(folder)), encoding="utf-8")
        stop(Path(folder))
