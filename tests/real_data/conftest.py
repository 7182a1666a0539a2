"""Packages, published forms, rows and one fine-tuned model: made once for all checks on real data."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from conftest import REPOSITORY
from real_data.command_line import CommandLine
from real_data.geography import Geography
from real_data.packages import EMOJI, GEOGRAPHY, PackageError, fetch, unpack_debian, unpack_npm
from real_data.published import SPLITS, Publisher
from real_data.sets import SETS

PACKAGES = REPOSITORY / "runs/real-data/packages"
"""Where packages are kept between runs; a kept one is used only if its sha256 is the recorded one."""

LIMIT_VARIABLE = "REAL_DATA_LIMIT"
"""Most maps, flags, emoji and labels of a split, for trying things out: 0, or not set, is all of them."""

FOLDER = "real data, 100 % Île №1"
"""Everything is below a folder whose name has what paths may have: spaces, a comma, a percent sign, letters beyond ASCII."""


@dataclass(frozen=True)
class Published:
    """The published forms and the rows made from them.

    Attributes:
        folder: of everything; image names are relative to it.
        counts: of each set's source, by set and split, as the publisher counted.
        said: what `paligemma convert` printed for each.
    """

    folder: Path
    counts: dict[tuple[str, str], dict[str, int]]
    said: dict[tuple[str, str], str]

    def rows(self, of: str, split: str) -> Path:
        """The JSONL file of a set."""
        return self.folder / f"{of}_{split}.jsonl"

    def images(self, of: str, split: str) -> Path:
        """The folder that the set's image names are relative to."""
        return self.folder / SETS[of].images.format(split=split)


@dataclass(frozen=True)
class Run:
    """A finished run of the DAG.

    Attributes:
        root: of all runs, local.
        folder: of this run's artifacts.
        said: what the command printed.
    """

    root: Path
    folder: Path
    said: str

    @property
    def registry(self) -> Path:
        """Where releases are."""
        return self.root / "registry"

    @property
    def tuned(self) -> Path:
        """The tuned model."""
        return self.folder / "finetune/tuned"

    def dataset(self, task: str) -> dict:
        """What `prepare_data` says of the records of one of its tasks."""
        return json.loads((self.folder / task / "records/dataset.json").read_text())


@pytest.fixture(scope="session")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Both packages, unpacked. Without them there is nothing to check: the whole run ends, and says why."""
    folder = tmp_path_factory.mktemp("unpacked")
    try:
        geography = unpack_debian(fetch(GEOGRAPHY, PACKAGES), folder / "geography")
        return geography, unpack_npm(fetch(EMOJI, PACKAGES), folder / "emoji")
    except PackageError as error:
        pytest.exit(str(error), returncode=1)


@pytest.fixture(scope="session")
def published(unpacked: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Published:
    """All sets, converted by the command."""
    folder = tmp_path_factory.mktemp("made") / FOLDER
    geography, emoji = unpacked
    publisher = Publisher(Geography(geography), emoji, folder, int(os.environ.get(LIMIT_VARIABLE, "0")))
    counts = {(name, split): getattr(publisher, of.form)(split) for name, of in SETS.items() for split in SPLITS}
    made = Published(folder, counts, {})
    command_line = CommandLine(folder)
    for name, of in SETS.items():
        for split in SPLITS:
            if of.convert:
                made.said[name, split] = command_line.paligemma("convert", *of.arguments(split), output=made.rows(name, split))
    return made


@pytest.fixture(scope="session")
def command_line(published: Published, tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    """Commands in the data's folder, with a cache of their own."""
    return CommandLine(published.folder, {"PALIGEMMA_CACHE": str(tmp_path_factory.mktemp("cache"))})


@pytest.fixture(scope="session")
def run(published: Published, command_line: CommandLine) -> Run:
    """The DAG on this machine: trained on all sets with pictures in one folder, validated on questions with several answers."""
    mixed = [name for name, of in SETS.items() if of.images == "."]
    rows = [published.rows(name, "train").read_text(encoding="utf-8") for name in mixed]
    (published.folder / "mixed_train.jsonl").write_text("".join(rows), encoding="utf-8")
    return run_pipeline(command_line, "mixed_train.jsonl", "vqa_val.jsonl", task="vqa", steps=100)


def run_pipeline(command_line: CommandLine, train: str, validation: str, task: str, steps: int) -> Run:
    """`paligemma pipeline run`, with its artifacts below `runs`."""
    root = command_line.folder / "runs"
    before = set(root.glob("paligemma-finetune-*"))
    said = command_line.paligemma(
        "pipeline",
        "run",
        source="embedded:tiny",
        train_data=train,
        validation_data=validation,
        task=task,
        root="runs",
        **few_steps(steps),
    )
    (folder,) = set(root.glob("paligemma-finetune-*")) - before
    return Run(root, folder, said)


def few_steps(steps: int) -> dict[str, object]:
    """Flags of a run that takes little time."""
    return {"recipe": "demo", "set": ["batch_size=32", f"steps={steps}"], "max_new_tokens": 16, "batch_size": 128}
