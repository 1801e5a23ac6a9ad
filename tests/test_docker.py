"""The containers of docker/, without an engine: by the schema of compose files, and what would not come up."""

from __future__ import annotations

import importlib.resources
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from feature_defs.loading import load
from jobs.settings import load_settings
from tests.emulator import ACCOUNT, KEY
from tests.emulator import PINNED as PINNED_EMULATOR
from tests.standalone import ROOT

DOCKER = ROOT / "docker"
COMPOSE = yaml.safe_load(DOCKER.joinpath("compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, Any] = COMPOSE["services"]
DOCKERFILE = DOCKER.joinpath("Dockerfile").read_text(encoding="utf-8")
FOLDERS = ("namenode.name", "datanode.data")
PINNED = re.compile(r"[a-z0-9./-]+:\d+\.\d+\.\d+(-[a-z0-9-]+)?")


def refused(compose: Any) -> list[str]:
    """What the schema of the Compose specification says against it."""
    schemas = importlib.resources.files("check_jsonschema") / "builtin_schemas" / "vendor"
    schema = json.loads(schemas.joinpath("compose-spec.json").read_text(encoding="utf-8"))
    return [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(compose)]


def test_the_compose_file_keeps_the_published_schema() -> None:
    assert refused(COMPOSE) == []
    assert refused({**COMPOSE, "services": {"redis": {"imagee": "redis:7"}}})


def test_the_parts_of_a_place_are_there() -> None:
    wanted = {
        "master",
        "worker-1",
        "worker-2",
        "namenode",
        "datanode",
        "blobs",
        "adls",
        "redis",
        "redis-cluster",
        "jupyter",
    }
    assert SERVICES.keys() >= wanted
    cluster = {name for name, service in SERVICES.items() if "cluster" in service.get("profiles", [])}
    assert cluster == {"redis-1", "redis-2", "redis-3", "redis-cluster"}


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_pinned_watched_and_only_this_machines(name: str) -> None:
    service = SERVICES[name]
    assert PINNED.fullmatch(service["image"]), service["image"]
    assert service["healthcheck"]["test"][0] == "CMD"
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    for other, wait in service.get("depends_on", {}).items():
        assert wait == {"condition": "service_healthy"}
        assert other in SERVICES
        assert set(SERVICES[other].get("profiles", [])) <= set(service.get("profiles", [])), "would not be started"
    for volume in service.get("volumes", []):
        assert volume.partition(":")[0] in COMPOSE["volumes"]


def test_no_two_services_take_one_port() -> None:
    taken = [port.rpartition(":")[0] for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(taken) == len(set(taken))


def test_a_health_check_asks_the_port_that_its_service_opens() -> None:
    """Those that ask by HTTP share one check."""
    for name in ("master", "worker-1", "worker-2", "jupyter"):
        service = SERVICES[name]
        opened = {value for key, value in service.get("environment", {}).items() if key.endswith("WEBUI_PORT")}
        opened |= {word.removeprefix("--port=") for word in service["command"] if word.startswith("--port=")}
        assert opened == {"8080"}, name
        assert ":8080'" in service["healthcheck"]["test"][-1]


def test_standalone_is_started_by_the_script_that_the_tests_start_it_with() -> None:
    for name, words in (("master", ["master"]), ("worker-1", ["worker", "spark://master:7077"])):
        script, *rest = SERVICES[name]["command"]
        assert (ROOT / script).samefile(DOCKER / "standalone.sh")
        assert os.access(ROOT / script, os.X_OK)
        assert rest == words
    launcher = ROOT.joinpath("tests", "standalone.py").read_text(encoding="utf-8")
    assert '"docker" / "standalone.sh"' in launcher


def test_the_script_says_how_it_is_used() -> None:
    ran = subprocess.run(["bash", DOCKER / "standalone.sh"], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == "usage: standalone.sh master | worker spark://HOST:PORT\n"


def test_every_image_that_is_built_is_made_of_files_that_are_there() -> None:
    """From a pinned image, by the lock with its hashes; what is not let through to the build cannot be copied."""
    stages = re.findall(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, re.MULTILINE)
    made = {stage for _, stage in stages}
    assert all(PINNED.fullmatch(base) for base, _ in stages if base not in made)
    assert {service["build"]["target"] for service in SERVICES.values() if "build" in service} == made
    copied = {word for line in re.findall(r"^COPY (.*) \S+$", DOCKERFILE, re.MULTILINE) for word in line.split()}
    let_through = DOCKER.joinpath("Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert copied == {line[1:] for line in let_through if line.startswith("!")}
    assert all((ROOT / name).exists() for name in copied)
    assert "--require-hashes -r requirements.lock" in DOCKERFILE


def test_the_profile_of_the_containers_names_services(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {})
    assert "TIDEMARK_PROFILE=docker" in DOCKERFILE
    settings = load_settings(str(ROOT / "conf" / "docker.toml"))
    assert Path(settings.definitions).is_dir()
    lakes = [settings.lakes["raw"], settings.hdfs["namenode"].webhdfs, settings.adls[ACCOUNT].endpoint]
    for url in (settings.online.url, settings.spark.master, *lakes):
        host, _, port = url.partition("//")[2].partition("/")[0].partition(":")
        assert host in SERVICES, url
        assert f"127.0.0.1:{port}:{port}" in SERVICES[host]["ports"]


def test_a_name_node_with_files_does_not_wait_for_a_data_node_that_waits_for_it() -> None:
    """Safe mode ends once the DataNode has told its blocks; whether files can be written, that one checks."""
    name_node, data_node = (SERVICES[name]["healthcheck"]["test"][-1] for name in ("namenode", "datanode"))
    assert ("safemode" in name_node, "safemode get | grep -q OFF" in data_node) == (False, True)
    assert "namenode" in SERVICES["datanode"]["depends_on"]
    assert "datanode" in SERVICES["jupyter"]["depends_on"]


def test_the_lakes_of_the_containers_are_the_hdfs_and_the_emulator_of_theirs() -> None:
    settings = load_settings(str(ROOT / "conf" / "docker.toml"), {})
    hdfs, cloud = SERVICES["namenode"]["environment"]["CORE-SITE.XML_fs.defaultFS"], settings.lakes["cloud"]
    for name in ("raw", "features", "work"):
        assert settings.lakes[name] == f"{hdfs}/lake/{name}"
    assert settings.hdfs["namenode"].webhdfs == "http://namenode:9870"
    assert SERVICES["datanode"]["environment"].items() <= SERVICES["namenode"]["environment"].items()
    folders = [SERVICES["namenode"]["environment"][f"HDFS-SITE.XML_dfs.{kind}.dir"] for kind in FOLDERS]
    assert folders == ["file:///data/name", "file:///data/blocks"]  # on volumes, which outlive a container
    assert {SERVICES[name]["volumes"][0].partition(":")[2] for name in ("namenode", "datanode")} == {"/data"}

    command = SERVICES["adls"]["command"]
    told = dict(zip(command[2::2], command[3::2], strict=True))
    assert settings.adls[ACCOUNT].endpoint == f"http://adls:{told['--port']}/{ACCOUNT}"
    assert cloud.startswith(f"abfs://{told['--container']}@{ACCOUNT}.dfs.core.windows.net/")
    assert told["--blobs"] == "http://blobs:10000"
    assert settings.tables.keys() <= load(Path(settings.definitions)).groups.keys()
    assert set(settings.tables.values()) == {"lake://cloud"}
    assert f"\nENV {settings.adls[ACCOUNT].secret.removeprefix('env:')}={KEY}\n" in DOCKERFILE


def test_the_emulator_of_the_containers_is_that_of_the_tests() -> None:
    pinned = json.loads(PINNED_EMULATOR.joinpath("package.json").read_text(encoding="utf-8"))["dependencies"]["azurite"]
    lock = json.loads(PINNED_EMULATOR.joinpath("package-lock.json").read_text(encoding="utf-8"))["packages"]
    assert SERVICES["blobs"]["image"] == f"mcr.microsoft.com/azure-storage/azurite:{pinned}"
    assert lock["node_modules/azurite"]["version"] == pinned
