"""The DAG in containers of the real image: without rights, network or a root file system that can be written to."""

from __future__ import annotations

import filecmp
import json
import shutil
import subprocess
import tempfile
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from kfp import dsl, local

import docker
from components.kfp_component import CPU_IMAGE
from conftest import ONE_DEVICE, REPOSITORY
from containers.engine import UNPRIVILEGED, Engine, run_container, start_engine
from containers.standin import write_base
from pipelines.demo.run import run_demo


@pytest.fixture(scope="module")
def image(build: Callable[[str], str]) -> str:
    """The image for CPUs; its digest."""
    return build("cpu")


@pytest.fixture
def _tasks_in_containers(engine: Engine, image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", engine.address)
    monkeypatch.setattr("kfp.local.docker_task_handler.run_docker_container", run_container)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A place for a run, whose artifacts another user writes."""
    (tmp_path / "demo/pipeline").mkdir(parents=True)
    (tmp_path / "demo/pipeline").chmod(0o1777)
    return tmp_path / "demo"


def run_in_image(client: docker.DockerClient, image: str, code: str) -> str:
    return client.containers.run(image, ["python", "-c", code], remove=True, stderr=True, **UNPRIVILEGED).decode()


def test_a_container_has_no_rights(client: docker.DockerClient, image: str) -> None:
    code = """
import json, os, pathlib, socket
found = {"uid": os.getuid(), "gid": os.getgid(), "interfaces": [name for _, name in socket.if_nameindex()]}
for place in ("/", "/opt/venv", "/etc", "/tmp"):
    try:
        pathlib.Path(place, "probe").write_text("x")
        found[place] = "written"
    except OSError as error:
        found[place] = error.errno
found["effective"] = pathlib.Path("/proc/self/status").read_text().split("CapEff:")[1].split()[0]
print(json.dumps(found))
"""
    found = json.loads(run_in_image(client, image, code))
    assert (found["uid"], found["gid"]) == (10001, 10001)
    assert found["interfaces"] == ["lo"]
    assert found["/tmp"] == "written"
    assert all(isinstance(found[place], int) for place in ("/", "/opt/venv", "/etc"))
    assert int(found["effective"], 16) == 0


def test_the_image_says_what_it_is_and_holds_no_compiler_and_no_secret(client: docker.DockerClient, image: str) -> None:
    attributes = client.images.get(image).attrs
    labels = attributes["Config"]["Labels"]
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert labels["org.opencontainers.image.version"] == project["version"]
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert labels["org.opencontainers.image.revision"].removesuffix("-dirty") == head
    assert not attributes["Config"].get("Entrypoint")
    code = """
import pathlib, shutil
print([name for name in ("gcc", "cc", "g++", "clang", "make", "git") if shutil.which(name)])
print(pathlib.Path("/etc/pip.conf").exists() and pathlib.Path("/etc/pip.conf").stat().st_size > 0)
"""
    assert run_in_image(client, image, code).split("\n")[:2] == ["[]", "False"]


@pytest.mark.usefixtures("_tasks_in_containers")
def test_the_demo_runs_in_containers(folder: Path) -> None:
    mounts = []
    for name, read_only in (("data", True), ("registry", False)):
        (folder / name).mkdir()
        mounts.append(docker.types.Mount(str(folder / name), str(folder / name), type="bind", read_only=read_only))
    (folder / "registry").chmod(0o1777)
    started = time.monotonic()
    run_demo(folder, local.DockerRunner(mounts=mounts, **UNPRIVILEGED))
    print(f"DAG in containers: {time.monotonic() - started:.0f} s")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["tuned"]["exact_match"] >= 0.90
    assert summary["frozen_parameters_identical"] is True
    assert summary["release"]
    records = list((folder / "pipeline").rglob("lineage.json"))
    assert records
    for record in records:  # each was written in a container, by its user
        assert record.stat().st_uid == 10001, record
        assert json.loads(record.read_text())["producer"]["git_sha"], record


@pytest.mark.usefixtures("_tasks_in_containers")
def test_a_container_that_ends_with_3_fails_the_run(folder: Path) -> None:
    @dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)
    def fail():
        import sys

        sys.exit(3)

    @dsl.pipeline(name="fails")
    def fails():
        fail().set_caching_options(False)

    local.init(local.DockerRunner(**UNPRIVILEGED), pipeline_root=str(folder / "pipeline"))
    with pytest.raises(RuntimeError, match="fail"):
        fails()


def test_podman_is_named_when_it_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(AssertionError, match="apt-get install"), start_engine(tmp_path / "s", tmp_path, ONE_DEVICE):
        pass


def test_the_stand_in_is_the_same_after_a_folder_of_this_machine_was_used(tmp_path: Path) -> None:
    write_base(tmp_path / "before.tar")
    with tempfile.NamedTemporaryFile(dir="/var/tmp"):
        write_base(tmp_path / "after.tar")
    assert filecmp.cmp(tmp_path / "before.tar", tmp_path / "after.tar", shallow=False)
