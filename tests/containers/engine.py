"""A container engine of the tests' own (podman, with its own storage and socket), and a way to run KFP's tasks in it."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import docker

CONFIGURATION = """[containers]
default_ulimits=["nofile=20000:20000","nproc=32768:32768"]
[engine]
runtime="runc"
cgroup_manager="cgroupfs"
events_logger="file"
"""
HOW_TO_GET_IT = (
    "podman is needed: apt-get install -y --no-install-recommends podman buildah runc fuse-overlayfs uidmap slirp4netns "
    "netavark aardvark-dns catatonit nftables iptables"
)
UNPRIVILEGED = {
    "network_mode": "none",
    "read_only": True,
    "tmpfs": {"/tmp": "rw,mode=1777,size=2g"},
    "cap_drop": ["all"],
    "security_opt": ["no-new-privileges"],
}
"""What every container of a test runs with."""


@dataclass(frozen=True)
class Engine:
    """A podman service that a test may use up."""

    address: str
    environment: dict[str, str]

    def has(self, image: str) -> bool:
        """Whether the engine holds an image."""
        return subprocess.run(["podman", "image", "exists", image], env=self.environment, check=False).returncode == 0

    def podman(self, *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
        """Runs podman; what it says is in the error, when it fails."""
        done = subprocess.run(
            ["podman", *arguments], env=self.environment, capture_output=True, text=True, check=False, **options
        )
        assert done.returncode == 0, f"podman {' '.join(arguments)}:\n{done.stdout}\n{done.stderr}"
        return done


@contextlib.contextmanager
def start_engine(storage: Path, scratch: Path, environment: dict[str, str]) -> Iterator[Engine]:
    """Starts the service on a socket in `scratch`; images stay in `storage`, so that the next run finds their layers."""
    assert shutil.which("podman"), HOW_TO_GET_IT
    storage.mkdir(parents=True, exist_ok=True)
    (scratch / "containers.conf").write_text(CONFIGURATION)
    (scratch / "storage.conf").write_text(
        f'[storage]\ndriver="overlay"\ngraphroot="{storage / "storage"}"\nrunroot="{storage / "run"}"\n'
    )
    address = f"unix://{scratch / 'podman.sock'}"
    own = {
        **environment,
        "CONTAINERS_CONF": str(scratch / "containers.conf"),
        "CONTAINERS_STORAGE_CONF": str(scratch / "storage.conf"),
    }
    with (scratch / "service.log").open("w") as log:
        service = subprocess.Popen(["podman", "system", "service", "--time=0", address], env=own, stdout=log, stderr=log)
        try:
            _wait_for(address, service, scratch / "service.log")
            yield Engine(address, own)
        finally:
            service.terminate()
            service.wait(30)


def _wait_for(address: str, service: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        assert service.poll() is None, log.read_text()
        with contextlib.suppress(docker.errors.DockerException):
            docker.DockerClient(base_url=address).ping()
            return
        time.sleep(0.2)
    raise AssertionError(f"podman's service did not answer: {log.read_text()}")


def run_container(client: docker.DockerClient, image: str, command: list[str], volumes: dict, **options: object) -> int:
    """Takes the place of KFP's own, which removes a container before it has read its exit code, and then takes it for 0.

    Nothing is pulled: a missing image is an error.
    """
    container = client.containers.create(image=image, command=command, volumes=volumes, **options)
    try:
        container.start()
        for line in container.logs(stream=True, follow=True):
            print(line.decode(errors="replace"), end="")
        return container.wait()["StatusCode"]
    finally:
        container.remove(force=True)
