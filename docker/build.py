"""Builds the images, pushes them if asked to, and writes their digests; needs podman or docker, and Python without packages."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
TARGETS = ("cpu", "gpu", "tpu")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--repository", default="localhost/paligemma", help="where the images go, without a tag")
    parser.add_argument("--targets", nargs="+", default=TARGETS, choices=TARGETS, help="which images to build")
    parser.add_argument("--base-image", default="", help="another base image than the Dockerfile's")
    parser.add_argument("--push", action="store_true", help="push them; the digests are then the registry's")
    parser.add_argument("--output", type=Path, default=Path("digests.json"), help="file for the digests")
    parser.add_argument("--pip-conf", type=Path, help="pip.conf that the build needs; no layer has it")
    parser.add_argument("--ca", type=Path, help="CA bundle that the build needs; no layer has it")
    parser.add_argument("--build-network", default="", help="network of the build, e.g. host")
    options = parser.parse_args()
    engine = find_engine()
    if engine is None:
        return refuse(
            "No container engine found.\n  expected: podman or docker on PATH\n  try:      apt-get install podman buildah"
        )
    if Path(engine).name == "docker" and not options.push:
        return refuse("Docker gives an image a digest when it is pushed.\n  try: make images IMAGE_REPOSITORY=... PUSH=1")
    digests = {}
    for target in options.targets:
        started = time.monotonic()
        try:
            digests[target] = f"{options.repository}@{build(engine, target, options)}"
        except subprocess.CalledProcessError as error:
            return refuse(f"The image {target} was not built: {Path(engine).name} ended with {error.returncode}.")
        print(f"{target}: {time.monotonic() - started:.0f} s", file=sys.stderr)
    text = json.dumps(digests, indent=2) + "\n"
    partial = options.output.with_name(f".{options.output.name}.{os.getpid()}")
    partial.write_text(text)
    partial.replace(options.output)
    print(text, end="")
    if not options.push:
        print("Not pushed: these digests are this machine's. A registry gives others.", file=sys.stderr)
    return 0


def refuse(message: str) -> int:
    """Says what is wrong; the exit code for that."""
    print(message, file=sys.stderr)
    return 2


def find_engine() -> str | None:
    """The container engine to use: the one that CONTAINER_ENGINE names, else podman, else docker."""
    named = os.environ.get("CONTAINER_ENGINE")
    return shutil.which(named) if named else shutil.which("podman") or shutil.which("docker")


def build(engine: str, target: str, options: argparse.Namespace) -> str:
    """Builds one target, tags it by its name, and returns its digest (`sha256:...`)."""
    tag = f"{options.repository}:{target}"
    arguments = {"VERSION": version(), "GIT_SHA": git_sha()}
    if options.base_image:
        arguments["BASE_IMAGE"] = options.base_image
    command = [engine, "build", "--file", "docker/Dockerfile", "--target", target, "--tag", tag]
    for name, value in arguments.items():
        command += ["--build-arg", f"{name}={value}"]
    for name, file in (("pip_conf", options.pip_conf), ("ca", options.ca)):
        if file:
            command += ["--secret", f"id={name},src={file}"]
    if options.build_network:
        command += ["--network", options.build_network]
    if options.base_image.startswith("localhost/"):
        command += ["--pull=never"]
    if Path(engine).name == "podman":
        command += ["--layers"]
    subprocess.run([*command, "."], cwd=REPOSITORY, stdout=sys.stderr, check=True)
    if not options.push:
        return _output([engine, "image", "inspect", "--format", "{{.Digest}}", tag])
    if Path(engine).name == "podman":
        with tempfile.NamedTemporaryFile("r") as digest:
            subprocess.run([engine, "push", "--digestfile", digest.name, tag], stdout=sys.stderr, check=True)
            return Path(digest.name).read_text().strip()
    subprocess.run([engine, "push", tag], stdout=sys.stderr, check=True)
    named = json.loads(_output([engine, "image", "inspect", "--format", "{{json .RepoDigests}}", tag]))
    return next(name for name in named if name.startswith(f"{options.repository}@")).rpartition("@")[2]


def version() -> str:
    """The project's version."""
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]


def git_sha() -> str:
    """The commit that is built, marked when files differ from it."""
    dirty = _output(["git", "status", "--porcelain", "--", *("components", "pipelines", "shared", "docker", "pyproject.toml")])
    return _output(["git", "rev-parse", "HEAD"]) + ("-dirty" if dirty else "")


def _output(command: list[str]) -> str:
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
