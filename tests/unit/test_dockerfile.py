"""The Dockerfile, its locks and the list of digests, as far as they can be judged without building an image."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from conftest import REPOSITORY
from paligemma.runtime.accelerator import Accelerator

LOCKS = REPOSITORY / "docker/requirements"
DOCKERFILE = (REPOSITORY / "docker/Dockerfile").read_text()
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
IMAGE_MACHINE = {"sys_platform": "linux", "platform_machine": "x86_64", "python_version": "3.11"}
TARGETS = ("cpu", "gpu", "tpu")


def entries(lock: Path) -> dict[str, tuple[str, list[str]]]:
    """Version and hashes of each package of a lock."""
    found = {}
    for entry in re.split(r"\n(?=\S)", lock.read_text().strip()):
        name, version = re.match(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^\s;\\]+)", entry).groups()
        found[canonicalize_name(name)] = (version, re.findall(r"--hash=sha256:([0-9a-f]{64})(?:\s|$)", entry))
    return found


def stages() -> dict[str, list[str]]:
    """Instructions of each stage of the Dockerfile, continued lines joined."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE).replace("\\\n", " ")
    found: dict[str, list[str]] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        if line.startswith("FROM "):
            found[line.split(" AS ")[1]] = current = []
        elif found:
            current.append(line)
    return found


@pytest.mark.parametrize("target", TARGETS)
def test_a_lock_has_every_dependency_at_the_version_that_is_tested(target: str) -> None:
    lock, tested = entries(LOCKS / f"{target}.txt"), entries(LOCKS / "dev.txt")
    extras = PROJECT["optional-dependencies"]
    for text in PROJECT["dependencies"] + extras["pipeline"] + extras.get(target, []):
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate(IMAGE_MACHINE):
            name = canonicalize_name(requirement.name)
            assert name in lock, name
            assert requirement.specifier.contains(lock[name][0]), name
    assert {name: lock[name][0] for name in lock.keys() & tested} == {name: tested[name][0] for name in lock.keys() & tested}


def test_the_locks_of_accelerators_have_their_runtime() -> None:
    assert "libtpu" in entries(LOCKS / "tpu.txt")
    assert "jax-cuda12-plugin" in entries(LOCKS / "gpu.txt")
    assert not {"libtpu", "jax-cuda12-plugin"} & entries(LOCKS / "cpu.txt").keys()


def test_preflights_compiler_is_the_images() -> None:
    """libtpu 0.0.52 says 7.92 GiB where 0.0.42.1 says 9.29."""
    pinned = {
        Requirement(text).name: str(Requirement(text).specifier) for text in PROJECT["optional-dependencies"]["preflight"]
    }
    assert pinned["libtpu"] == f"=={entries(LOCKS / 'tpu.txt')['libtpu'][0]}"


@pytest.mark.parametrize("lock", sorted(LOCKS.glob("*.txt")), ids=lambda lock: lock.name)
def test_a_lock_has_hashes_and_names_no_host(lock: Path) -> None:
    assert all(hashes for _, hashes in entries(lock).values())
    assert not re.search(r"://|--index|--find-links|--extra-index|--trusted-host", lock.read_text())


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_ends_as_a_user_without_rights(target: str) -> None:
    assert stages()[target][-1] == "USER 10001:10001"
    assert f"COPY --from=packages-{target} /opt/venv /opt/venv" in stages()[target]


def test_the_gpu_image_finds_the_driver_that_a_node_mounts() -> None:
    """GKE's GPU documentation: /usr/local/nvidia/lib64, of which no loader knows (keras-team/kinetic#269)."""
    (environment,) = [line for line in stages()["gpu"] if line.startswith("ENV ")]
    assert {"LD_LIBRARY_PATH=/usr/local/nvidia/lib64", "JAX_PLATFORMS=cuda,cpu"} <= set(environment.split())


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_for_an_accelerator_refuses_to_train_without_one(target: str) -> None:
    said = re.findall(r'PALIGEMMA_ACCELERATOR="([^"]*)"', " ".join(stages()[target]))
    assert said == ([] if target == "cpu" else [f"{target} 1"])
    assert all(str(Accelerator.parse(text)) == text for text in said)


def test_nothing_is_added_from_the_web_and_every_package_by_hash() -> None:
    instructions = [line for stage in stages().values() for line in stage]
    assert not [line for line in instructions if line.startswith("ADD ") or re.search(r"\b(curl|wget)\b|https?://", line)]
    script = (LOCKS / "install.sh").read_text().replace("\\\n", " ").replace("\n", " && ")
    commands = " && ".join([*instructions, script])
    found = re.findall(r"pip (?:install|wheel) [^&]*", commands) + re.findall(r"-m pip --python \S+ install [^&]*", commands)
    assert len(found) >= 6
    for command in found:
        assert "--require-hashes" in command or "--no-index" in command, command
    for target in TARGETS:
        assert [line for line in stages()[f"packages-{target}"] if line.endswith(f"sh /requirements/install.sh {target}")]


def test_the_base_image_is_pinned_and_can_be_another() -> None:
    assert re.search(r"^ARG BASE_IMAGE=\S+@sha256:[0-9a-f]{64}$", DOCKERFILE, re.MULTILINE)
    assert re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)[0] == "${BASE_IMAGE}"


def test_digests_are_written_as_compile_reads_them(tmp_path: Path) -> None:
    """With an engine that only answers: it is the file that is looked at."""
    engine = tmp_path / "podman"
    engine.write_text(f'#!/bin/sh\n[ "$1" = image ] && echo sha256:{"a" * 64}\nexit 0\n')
    engine.chmod(0o755)
    command = [sys.executable, "docker/build.py", "--repository", "host.example/models/paligemma", "--output", "digests.json"]
    command[-1] = str(tmp_path / "digests.json")
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = {target: f"host.example/models/paligemma@sha256:{'a' * 64}" for target in TARGETS}
    assert json.loads((tmp_path / "digests.json").read_text()) == expected == json.loads(done.stdout)


def test_a_build_that_fails_leaves_no_digests(tmp_path: Path) -> None:
    engine = tmp_path / "podman"
    engine.write_text("#!/bin/sh\nexit 5\n")
    engine.chmod(0o755)
    command = [sys.executable, "docker/build.py", "--output", str(tmp_path / "digests.json")]
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, "The image cpu was not built: podman ended with 5." in done.stderr) == (2, True)
    assert not (tmp_path / "digests.json").exists()
