"""What a step's machine needs of its disk, and that a job which leaves nothing for records is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from components.preflight import main as preflight
from paligemma.checkpoints.open_checkpoint import open_checkpoint
from paligemma.errors import InputError
from paligemma.models.config import VARIANTS
from paligemma.preflight.analyze import DoesNotFitError, Report
from paligemma.preflight.disk import Disk, examine_disk
from paligemma.storage.disk_space import DISK_VARIABLE
from paligemma.training.open_recipe import parse_open_recipe
from paligemma.training.recipe import parse_recipe
from pipelines.profiles import PROFILES


class Base:
    """A published checkpoint that is not here: names and shapes, as they are stored in float16."""

    def __init__(self, variant: str) -> None:
        from paligemma.checkpoints.parameters import parameters_by_name
        from paligemma.models.paligemma import abstract_model

        self.config = VARIANTS[variant]
        leaves = parameters_by_name(abstract_model(self.config))
        self.arrays = {name: np.lib.stride_tricks.as_strided(np.float16(0), leaf.shape) for name, leaf in leaves.items()}


def test_it_is_what_is_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    base = open_checkpoint("embedded:tiny")
    monkeypatch.setenv(DISK_VARIABLE, "80000000000")
    disk = examine_disk(base, parse_recipe("trainable: attention"))
    assert disk.checkpoint == sum(array[...].nbytes for array in base.arrays.values())
    attention = [array for name, array in base.arrays.items() if name.startswith("llm/layers/attn/")]
    assert disk.tuned == sum(4 * array[...].size for array in attention)
    assert disk.release == disk.checkpoint + sum((4 - array.dtype.itemsize) * array[...].size for array in attention)
    assert disk.for_records == 80000000000 - disk.checkpoint - disk.tuned - disk.release
    adapters = examine_disk(base, parse_recipe("trainable: lora"))
    assert adapters.tuned < disk.tuned
    assert adapters.release == disk.release


@pytest.mark.parametrize("recipe", ["trainable: attention", "trainable: llm"])
def test_every_profile_holds_the_3b_model_and_records(monkeypatch: pytest.MonkeyPatch, recipe: str) -> None:
    monkeypatch.setenv(DISK_VARIABLE, str(min(profile.accelerated.disk for profile in PROFILES.values()) * 10**9))
    disk = examine_disk(Base("paligemma-3b-pt-224"), parse_recipe(recipe))
    assert disk.checkpoint == pytest.approx(5.85e9, rel=0.01)
    assert disk.for_records > 40e9


def test_a_job_that_leaves_nothing_for_records_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    report = Report(
        "cpu", 8, True, 1, 2, 0.1, 2, 1.0, None, None, None, None, None, 1, None, None, None, {"arguments": 1, "temporaries": 1}
    )
    monkeypatch.setattr(preflight, "examine", lambda *_, **__: report)
    arguments = {"checkpoint": "embedded:tiny", "recipe": parse_open_recipe("steps: 1"), "target": "cpu", "max_text_tokens": 8}
    monkeypatch.setenv(DISK_VARIABLE, "3000000")
    with pytest.raises(DoesNotFitError, match="does not fit its machines' disks"):
        preflight.check(output=str(tmp_path / "a"), warn_only=False, **arguments)
    monkeypatch.setenv(DISK_VARIABLE, "80000000000")
    preflight.check(output=str(tmp_path / "b"), warn_only=False, **arguments)
    said = json.loads((tmp_path / "b/preflight.json").read_text())["disk"]
    assert said["given"] - said["needed"] == said["for_records"] > 79e9
    assert "leaves 74" in (tmp_path / "b/preflight.html").read_text()


def test_without_a_profile_it_is_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DISK_VARIABLE, raising=False)
    disk = Disk(1, 2, 3, 0)
    assert disk.fits
    assert disk.as_json()["for_records"] is None
    assert not Disk(1, 2, 3, 6).fits
    monkeypatch.setenv(DISK_VARIABLE, "80G")
    with pytest.raises(InputError, match="not a number of bytes"):
        examine_disk(open_checkpoint("embedded:tiny"), parse_recipe(""))
