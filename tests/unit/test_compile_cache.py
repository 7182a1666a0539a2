"""Where compiled programs are kept, and how a program that runs once is compiled."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from typer.testing import CliRunner

from conftest import ONE_DEVICE, SmallData
from paligemma.runtime.compile_cache import compiled_quickly, use_compile_cache
from paligemma.storage.cache import CACHE_VARIABLE
from pipelines.cli import app

OPTIONS = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = {name: getattr(jax.config, name) for name in OPTIONS}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_programs_of_small_models_are_kept_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", raising=False)
    jax.config.update("jax_compilation_cache_dir", None)
    use_compile_cache()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "compiled")
    assert jax.config.jax_persistent_cache_min_compile_time_secs < 0.5


def test_what_the_user_chose_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "7")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 7.0)
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    use_compile_cache()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path)
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 7.0


def test_one_question_to_a_small_model_is_compiled_quickly_and_many_are_not(
    small_data: SmallData, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []

    def answered(*_: object) -> int:
        seen.append(jax.config.read("jax_disable_most_optimizations"))
        return 0

    monkeypatch.setattr("pipelines.commands.generate.answer_all", answered)
    for number in (0, 1):
        small_data.add_image(f"{number}.png", number)
        done = CliRunner().invoke(
            app, ["generate", "--model", "embedded:tiny", "--image", str(small_data.folder), "--prompt", "ocr"]
        )
        assert done.exit_code == 0, done.exception
    assert seen == [True, False]
    assert not jax.config.read("jax_disable_most_optimizations")
    with compiled_quickly(False):
        assert not jax.config.read("jax_disable_most_optimizations")


def test_buckets_are_not_reached_through_tensorflow_which_is_installed_here(tmp_path: Path) -> None:
    """JAX's cache has etils.epath look for TensorFlow, once a process, before training saves its first state."""
    script = """
import jax, sys
from paligemma.runtime.compile_cache import use_compile_cache
use_compile_cache()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.jit(lambda x: x + 1)(1.0)
from paligemma.training.state import _orbax
_orbax()
from etils import epath
print(type(epath.Path("gs://bucket/x")._backend).__name__)
"""
    assert importlib.util.find_spec("tensorflow")
    environment = ONE_DEVICE | {CACHE_VARIABLE: str(tmp_path)}
    environment.pop("EPATH_USE_TF", None)
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "_FileSystemSpecBackend"
