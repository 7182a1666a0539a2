"""The reader's clone, and the demo in it, which runs once for all who look at it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from conftest import OPTIMIZED, REPOSITORY


@pytest.fixture(scope="session")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that is in this one, but no runs."""
    folder = tmp_path_factory.mktemp("walk") / "clone"
    folder.mkdir()
    for entry in REPOSITORY.iterdir():
        if entry.name not in ("runs", ".git"):
            (folder / entry.name).symlink_to(entry)
    return folder


@pytest.fixture(scope="session")
def demo(clone: Path) -> subprocess.CompletedProcess[str]:
    """What `make demo` in the clone said; its files are in `runs/demo`."""
    return type_line(clone, "make demo")


def type_line(clone: Path, line: str) -> subprocess.CompletedProcess[str]:
    """Runs a line of a page in the clone."""
    environment = OPTIMIZED | {"PALIGEMMA_CACHE": str(clone / "cache")}
    # The environment is this one, and not set up again.
    command = re.sub(r"^make ", "make --assume-old=.venv/.installed ", line)
    return subprocess.run(["bash", "-c", command], cwd=clone, env=environment, capture_output=True, text=True, check=False)
