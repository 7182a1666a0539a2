"""The commands as a user types them: processes of their own, whose exit codes and words are looked at."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from conftest import OPTIMIZED, REPOSITORY


@dataclass(frozen=True)
class CommandLine:
    """Runs commands in the data's folder.

    Attributes:
        folder: where they run; paths may be relative to it.
        environment: beside the usual one.
    """

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    def paligemma(self, *words: object, **flags: object) -> str:
        """`paligemma WORDS FLAGS`; what it prints to standard output."""
        return self._run("pipelines.cli", words, flags)

    def step(self, step: str, **flags: object) -> str:
        """`python -m components.STEP FLAGS`."""
        return self._run(f"components.{step}", (), flags)

    def _run(self, module: str, words: Sequence[object], flags: Mapping[str, object]) -> str:
        """Flags are `name_of_it=value`; True is a flag alone, and a list is one that is repeated."""
        arguments = [str(word) for word in words]
        for name, value in flags.items():
            for one in value if isinstance(value, list) else [value]:
                arguments += [f"--{name.replace('_', '-')}"] + ([] if one is True else [str(one)])
        environment = OPTIMIZED | {"PYTHONPATH": str(REPOSITORY)} | self.environment
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
        said = f"{shlex.join([module, *arguments])}\nended with {done.returncode}\n{done.stdout[-8000:]}\n{done.stderr[-8000:]}"
        assert done.returncode == 0, said
        assert "Traceback (most recent call last)" not in done.stdout + done.stderr, said
        return done.stdout


@dataclass(frozen=True)
class Converted:
    """What `paligemma convert` said: rows it wrote, and entries that it read, used and skipped."""

    rows: int
    read: int
    used: int
    skipped: int


def parse_summary(said: str) -> Converted:
    """The counts in the summary of a conversion."""
    rows, read, used, skipped = re.search(r"(\d+) rows in .*\n(\d+) \w+ read: (\d+) used, (\d+) skipped", said).groups()
    return Converted(int(rows), int(read), int(used), int(skipped))
