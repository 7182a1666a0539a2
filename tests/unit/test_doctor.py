"""What `paligemma doctor` finds, and that no secret is read or shown."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from paligemma.errors import InputError
from paligemma.extras import how_to_install
from paligemma.runtime import accelerator
from pipelines.cli import app
from pipelines.commands import doctor

VARIABLES = (
    *("KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_CONFIG_DIR"),
    *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "HF_HOME", "XDG_CACHE_HOME"),
    *("CLOUDSDK_CONFIG", "GOOGLE_APPLICATION_CREDENTIALS"),
)


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (
        *VARIABLES,
        "HF_HOME",
        "XDG_CACHE_HOME",
        "KAGGLE_CONFIG_DIR",
        "CLOUDSDK_CONFIG",
        "GOOGLE_APPLICATION_CREDENTIALS",
    ):
        monkeypatch.delenv(name, raising=False)


def findings() -> dict[str, doctor.Finding]:
    return {finding.what: finding for finding in doctor.examine()}


def test_it_says_what_there_is() -> None:
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 0, done.exception
    for what in ("Python", "JAX", "memory", "disk, here", "disk, cache", "Kaggle", "Hugging Face", "Google", "clock"):
        assert f" {what} " in done.output
    assert f"paligemma {importlib.metadata.version('paligemma')}" in done.output


def test_what_is_missing_has_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pillow_heif" else object())
    found = findings()
    assert {found[name].state for name in ("Kaggle", "Hugging Face", "Google")} == {"missing"}
    assert found["extra heif"].fix == how_to_install("heif")
    assert found["extra lineage"].state == "fine"
    assert all(finding.fix for finding in found.values() if finding.state == "missing")


def test_credentials_are_named_by_their_place_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in (".kaggle/kaggle.json", ".cache/huggingface/token", ".config/gcloud/application_default_credentials.json"):
        (tmp_path / place).parent.mkdir(parents=True)
        (tmp_path / place).write_text("s3cret")
    found = findings()
    assert found["Kaggle"].found == f"credentials in {tmp_path}/.kaggle/kaggle.json"
    assert found["Hugging Face"].found == f"credentials in {tmp_path}/.cache/huggingface/token"
    monkeypatch.setenv("HF_TOKEN", "s3cret")
    found = findings()
    assert found["Hugging Face"].found == "credentials in $HF_TOKEN"
    assert "s3cret" not in "".join(map(str, found.values()))


def test_what_stops_every_command_is_wrong_and_exits_with_2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_clock", lambda now: real(datetime(2001, 1, 1, tzinfo=UTC)))
    done = CliRunner().invoke(app, ["doctor"])
    assert isinstance(done.exception, InputError)
    assert "wrong   clock" in done.output


real = doctor._clock


def test_an_nvidia_device_without_a_plugin_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.setattr(accelerator, "_NVIDIA", (tmp_path,))
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [])
    assert findings()["JAX"].state == "missing"
    assert "make setup ACCELERATOR=gpu" in findings()["JAX"].fix


def test_the_version_is_printed() -> None:
    done = CliRunner().invoke(app, ["--version"])
    assert (done.exit_code, done.output) == (0, f"paligemma {importlib.metadata.version('paligemma')}\n")


def test_shells_can_complete_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_PALIGEMMA_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "paligemma conv")
    monkeypatch.setenv("COMP_CWORD", "1")
    assert CliRunner().invoke(app, [], prog_name="paligemma").output.split() == ["convert"]
