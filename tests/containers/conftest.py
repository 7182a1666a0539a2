"""An engine, the base image and the images that are built on it: made once for a file of tests."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import docker
from conftest import ONE_DEVICE, REPOSITORY
from containers.engine import Engine, start_engine
from containers.standin import write_base

PIP_CONF, CA = Path("/etc/pip.conf"), Path("/etc/ssl/certs/ca-certificates.crt")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    storage = Path(os.environ.get("PALIGEMMA_TEST_IMAGES") or Path.home() / ".cache/paligemma-test-images")
    with start_engine(storage, tmp_path_factory.mktemp("engine"), ONE_DEVICE) as started:
        yield started


@pytest.fixture(scope="module")
def base_image(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> str:
    """BASE_IMAGE from the environment, else a stand-in from this machine's own files: no image has to be pulled."""
    if chosen := os.environ.get("BASE_IMAGE"):
        return chosen
    archive = tmp_path_factory.mktemp("base") / "base.tar"
    write_base(archive)
    with archive.open("rb") as file:  # equal files are the same base, and the layers on it are found again
        name = f"localhost/python:{hashlib.file_digest(file, 'sha256').hexdigest()[:12]}"
    if not engine.has(name):
        engine.podman("import", "--quiet", str(archive), "localhost/python-files")
        dockerfile = "FROM localhost/python-files\nRUN python -m ensurepip\n"
        engine.podman("build", "--pull=never", "--network=none", "--tag", name, "-", input=dockerfile)
    return name


@pytest.fixture(scope="module")
def build(engine: Engine, base_image: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Builds a target by the command of `make images`, and returns its digest."""

    def build_target(target: str) -> str:
        digests = tmp_path_factory.mktemp("digests") / "digests.json"
        command = [sys.executable, "docker/build.py", "--targets", target, "--base-image", base_image, "--output", str(digests)]
        command += ["--build-network", "host"]
        for flag, file in (("--pip-conf", PIP_CONF), ("--ca", CA)):
            command += [flag, str(file)] if file.exists() else []
        started = time.monotonic()
        subprocess.run(command, cwd=REPOSITORY, env=engine.environment, check=True)
        print(f"image built in {time.monotonic() - started:.0f} s")
        digest = json.loads(digests.read_text())[target]
        assert engine.has(digest)
        return digest

    return build_target


@pytest.fixture
def client(engine: Engine) -> Iterator[docker.DockerClient]:
    connected = docker.DockerClient(base_url=engine.address, timeout=600)
    yield connected
    connected.close()
