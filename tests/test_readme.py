"""The README tells the truth: its definition loads, its commands print what it shows, every verb's help is in it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from feature_defs.loading import load
from jobs.command_line import VERBS
from tests import readme

TEXT = readme.README.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder of its own for the README's commands, in their order; its Redis is stopped behind them."""
    folder = tmp_path_factory.mktemp("readme")
    yield folder
    readme.stop(folder)


def test_definition_of_the_readme_is_sound_and_short(tmp_path: Path):
    """A newcomer copies it first."""
    code = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)[0]
    (tmp_path / "spending.py").write_text(code, encoding="utf-8")
    definitions = load(tmp_path)
    assert list(definitions.groups) == ["spending"]
    assert list(definitions.services) == ["churn"]
    assert len([line for line in code.splitlines() if line and not line.startswith(("from", "import"))]) <= 10


def test_commands_print_what_the_readme_shows(project: Path):
    """Every command of every console block, from raw data to an online read."""
    commands = [command for block in readme.blocks(TEXT) for command in block]
    assert len(commands) >= 6
    for command in commands:
        printed = readme.run(command, project)
        assert readme.normalised(printed) == readme.normalised(command.output), f"$ {command.line}"


def test_help_of_every_verb_is_in_the_readme():
    """As it is printed; `python -m tests.readme` renews it."""
    printed = readme.help_texts()
    assert len(printed) == len(VERBS) + 1
    for text in printed:
        assert readme.normalised(text) in readme.normalised(TEXT)


def test_every_file_the_readme_links_to_exists():
    """A link to nowhere is a broken promise."""
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", TEXT)
    assert links
    assert [link for link in links if not (readme.ROOT / link).exists()] == []
