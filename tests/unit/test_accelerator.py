"""A step that was given an accelerator does not train on the CPU."""

from __future__ import annotations

import importlib.metadata
import subprocess
from pathlib import Path

import jax
import pytest
from jax._src import xla_bridge

from components.evaluate.__main__ import run as evaluate
from components.finetune.main import fine_tune
from conftest import REPOSITORY
from paligemma.errors import InputError
from paligemma.extras import how_to_accelerate
from paligemma.runtime import accelerator
from paligemma.runtime.accelerator import ACCELERATOR_VARIABLE, expect_accelerator
from paligemma.training.recipe import parse_recipe


class Device:
    platform = "gpu"
    device_kind = "NVIDIA L4"


def test_a_step_with_a_profile_refuses_to_start_without_its_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setenv(ACCELERATOR_VARIABLE, "gpu 1")
    places = {"checkpoint": "embedded:tiny", "records": str(tmp_path / "none"), "output": str(tmp_path / "out")}
    for step in (lambda: fine_tune(**places, recipe=parse_recipe("")), lambda: evaluate(**places)):
        with pytest.raises(InputError, match="should have gpu 1, but JAX has 0 of that kind") as caught:
            step()
        assert caught.value.exit_code == 2
        assert "The library libcuda.so.1 cannot be loaded" in str(caught.value)
        assert "/usr/local/nvidia/lib64" in str(caught.value)


def test_it_starts_with_all_its_devices_and_not_with_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "local_devices", lambda: [Device(), Device()])
    monkeypatch.setattr(accelerator, "_DRIVER", "libc.so.6")
    for enough in ("gpu 1", "gpu 2"):
        monkeypatch.setenv(ACCELERATOR_VARIABLE, enough)
        expect_accelerator()
    for too_much in ("gpu 4", "tpu 1"):
        monkeypatch.setenv(ACCELERATOR_VARIABLE, too_much)
        with pytest.raises(InputError, match=r"NVIDIA L4") as caught:
            expect_accelerator()
        assert "cannot be loaded" not in str(caught.value)


def test_what_jax_says_of_its_backend_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> list:
        raise RuntimeError("Unable to initialize backend 'tpu': no chips")

    monkeypatch.setattr(jax, "local_devices", fail)
    monkeypatch.setenv(ACCELERATOR_VARIABLE, "tpu 4")
    with pytest.raises(InputError, match="no chips"):
        expect_accelerator()


def test_a_plugin_that_does_not_start_is_a_sentence_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In the image `gpu` without a driver JAX logged ten lines of traceback before the error."""

    def go_on_with_the_cpu() -> list:
        try:
            raise RuntimeError("operation cuInit(0) failed.")
        except RuntimeError:
            xla_bridge.logger.exception("Jax plugin configuration error: %s", "cuda")
        xla_bridge.logger.warning("something else")
        return []

    monkeypatch.setattr(jax, "local_devices", go_on_with_the_cpu)
    monkeypatch.setenv(ACCELERATOR_VARIABLE, "gpu 1")
    with pytest.raises(InputError, match=r"cannot be loaded: .*\. operation cuInit\(0\) failed\.\n"):
        expect_accelerator()
    assert [record.getMessage() for record in caplog.records] == ["something else"]
    assert not xla_bridge.logger.filters

    monkeypatch.setattr(jax, "local_devices", lambda: [*go_on_with_the_cpu(), Device()])
    caplog.clear()
    expect_accelerator()
    assert [record.getMessage() for record in caplog.records] == ["something else", "operation cuInit(0) failed."]


@pytest.mark.parametrize("text", ["gpu", "gpu 0", "gpu one", "cpu 1", "1 gpu"])
def test_what_no_profile_says(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(ACCELERATOR_VARIABLE, text)
    with pytest.raises(InputError, match="not an accelerator"):
        expect_accelerator()


def test_without_a_profile_a_step_takes_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ACCELERATOR_VARIABLE, raising=False)
    expect_accelerator()


@pytest.mark.parametrize(("plugin", "is_idle"), [("jax_cuda12_plugin", False), ("jax_rocm", True)])
def test_an_nvidia_device_that_jax_cannot_use_is_said(
    plugin: str, is_idle: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.delenv(accelerator.ACCELERATOR_VARIABLE, raising=False)
    entry = importlib.metadata.EntryPoint(plugin, plugin, "jax_plugins")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [entry] * (group == "jax_plugins"))
    monkeypatch.setattr(accelerator, "_NVIDIA", (tmp_path / "nvidiactl",))
    assert accelerator.idle_gpu() == ""  # there is no device
    (tmp_path / "nvidiactl").touch()
    expect_accelerator()
    assert (caplog.messages == []) == (not is_idle)
    assert ("make setup ACCELERATOR=gpu" in accelerator.idle_gpu()) == is_idle
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")  # by the user's own choice
    assert accelerator.idle_gpu() == ""


@pytest.mark.parametrize("kind", ["gpu", "tpu"])
def test_make_sets_up_for_an_accelerator(kind: str) -> None:
    def make(*words: str) -> subprocess.CompletedProcess:
        command = ["make", "--dry-run", "--always-make", *words]
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)

    said = make(*how_to_accelerate(kind).split()[1:]).stdout
    assert f"--editable '.[{kind}]'" in said
    assert "'.[" not in make("setup").stdout
    wrong = make("setup", "ACCELERATOR=cuda")
    assert wrong.returncode == 2
    assert "Take gpu for NVIDIA GPUs" in wrong.stderr
