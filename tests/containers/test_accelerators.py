"""The images for accelerators on a machine without one: a step that trains refuses in words, and preflight does its work."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

import docker
from containers.engine import UNPRIVILEGED, run_container

FINETUNE = "python -m components.finetune --checkpoint embedded:tiny --records /data/records --output /data/tuned"
PREFLIGHT = "python -m components.preflight --checkpoint embedded:tiny --output /data/preflight --target"


@pytest.fixture(scope="module", params=["gpu", "tpu"])
def target(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def image(build: Callable[[str], str], target: str) -> str:
    return build(target)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a container has at /data, where another user writes."""
    tmp_path.chmod(0o1777)
    return tmp_path


@pytest.fixture
def run(client: docker.DockerClient, image: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> Callable:
    """Runs a command in a container; its exit code and its words, without the line ends that a terminal's width makes."""

    def run_command(command: str, **environment: str) -> tuple[int, str]:
        volumes = {str(folder): {"bind": "/data", "mode": "rw"}}
        code = run_container(client, image, shlex.split(command), volumes, environment=environment, **UNPRIVILEGED)
        said = capsys.readouterr().out
        with capsys.disabled():
            print(f"\n{command}\n{said}exit code {code}")
        return code, " ".join(said.split())

    return run_command


def test_a_step_that_trains_refuses_without_an_accelerator(run: Callable, target: str, folder: Path) -> None:
    code, said = run(FINETUNE)
    assert code == 2
    assert f"This step should have {target} 1, but JAX has 0 of that kind." in said
    assert ("The library libcuda.so.1 cannot be loaded" in said) is (target == "gpu")
    assert "Traceback" not in said
    assert not (folder / "tuned").exists()


def test_preflight_works_on_a_machine_without_one(run: Callable, target: str, folder: Path) -> None:
    """With $JAX_PLATFORMS as a profile sets it for this step."""
    hardware = {"gpu": "l4", "tpu": "v5e-1"}[target]
    code, _ = run(f"{PREFLIGHT} {hardware}", JAX_PLATFORMS="cpu")
    assert code == 0
    (report,) = json.loads((folder / "preflight/preflight.json").read_text())["reports"]
    assert report["target"] == hardware
    assert report["fits"]
