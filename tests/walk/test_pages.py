"""Walks the pages as a reader does: every command of a block `sh`, from `make demo` on, in a clone of its own.

It takes some minutes, so it is not part of `make test`: `make walk`.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from conftest import OPTIMIZED, REPOSITORY
from walk.conftest import type_line

STEPS = ("fetch_checkpoint", "prepare_data", "preflight", "finetune", "evaluate", "publish", "summarize")
PAGES = [
    "README.md",
    *(f"pipelines/guides/{name}.md" for name in ("own-data", "real-checkpoints", "lineage", "releases")),
    "components/README.md",
    *(f"components/{step}/README.md" for step in STEPS),
]
THE_TESTS = ("make test", ".venv/bin/pytest")


def lines() -> list[tuple[str, str]]:
    """Each page's commands, but those that would run the tests."""
    found = []
    for page in PAGES:
        for block in re.findall(r"^```sh\n(.*?)^```$", (REPOSITORY / page).read_text(), re.DOTALL | re.MULTILINE):
            found += [(page, line) for line in block.splitlines() if line and not line.startswith(THE_TESTS)]
    return found


@pytest.mark.parametrize(("page", "line"), lines(), ids=lambda text: text[:70])
def test_a_command_does_what_it_says(clone: Path, demo: subprocess.CompletedProcess[str], page: str, line: str) -> None:
    done = demo if line == "make demo" else type_line(clone, line)
    assert done.returncode == 0, f"{page}: {done.stderr[-3000:]}"
    assert "Traceback" not in done.stderr
    if " lineage trace " in line:
        assert "checkpoint" in done.stdout
    if " lineage impact " in line:
        assert "Releases: 1" in done.stdout
    if " generate " in line and "--output" not in line:
        assert done.stdout.strip()


def test_the_walk_is_a_long_one() -> None:
    assert len(lines()) > 30


def test_what_python_users_are_shown_runs(clone: Path) -> None:
    (block,) = re.findall(
        r"^```python\n(import .*?)^```$", (REPOSITORY / "shared/README.md").read_text(), re.DOTALL | re.MULTILINE
    )
    command = [".venv/bin/python", "-c", block.replace("model.generate", "answers = model.generate") + "\nprint(*answers)"]
    done = subprocess.run(command, cwd=clone, env=OPTIMIZED, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
