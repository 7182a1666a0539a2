"""Where compiled programs are kept, and how a program that runs once is compiled."""

from __future__ import annotations

import contextvars
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import jax
import pytest
from typer.testing import CliRunner

from conftest import ONE_DEVICE, SmallData
from paligemma.artifacts.compiled_programs import _processor_features, shared_programs
from paligemma.artifacts.recording import ROOT_VARIABLE, RUN_VARIABLE, attempt, set_place
from paligemma.artifacts.signing import KEY_VARIABLE
from paligemma.runtime.compile_cache import compiled_quickly, use_compile_cache
from paligemma.storage.cache import CACHE_VARIABLE
from pipelines.cli import app
from servers.gcs import GcsServer

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


@dataclass(frozen=True)
class Situation:
    """What decides whether a step shares its programs."""

    root: str = "gs://bucket/root"
    in_pipeline: bool = True
    environment: Mapping[str, str] = field(default_factory=dict)


@pytest.mark.parametrize(
    ("situation", "expected"),
    [
        (Situation(), r"gs://bucket/root/compiled/[0-9a-f]{16}"),
        (
            Situation(in_pipeline=False, environment={RUN_VARIABLE: "r", ROOT_VARIABLE: "gs://bucket/other"}),
            "gs://bucket/oth.*",
        ),
        (Situation(in_pipeline=False, environment={ROOT_VARIABLE: "gs://bucket/root"}), ""),
        (Situation(root="/disk/root"), ""),
        (Situation(environment={KEY_VARIABLE: "key"}), ""),
    ],
    ids=["pod", "job", "by hand", "disk", "signed"],
)
def test_pods_of_a_pipeline_share_programs_where_nobody_else_writes(
    situation: Situation, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in situation.environment.items():
        monkeypatch.setenv(name, value)
    assert shared_programs() == ""
    assert re.fullmatch(expected, programs_in(situation, monkeypatch))


def programs_in(situation: Situation, monkeypatch: pytest.MonkeyPatch) -> str:
    def found() -> str:
        if situation.in_pipeline:
            set_place("run", "task", situation.root)
        with attempt("step", f"{situation.root}/x", {}):
            return shared_programs()

    monkeypatch.setattr("paligemma.artifacts.recording._records_here", lambda: False)  # no record is written
    return contextvars.copy_context().run(found)


def test_another_image_and_another_processor_have_programs_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [programs_in(Situation(), monkeypatch)]
    monkeypatch.setenv("PALIGEMMA_IMAGE", "a@sha256:1")
    found += [programs_in(Situation(), monkeypatch), programs_in(Situation(), monkeypatch)]
    monkeypatch.setattr("paligemma.artifacts.compiled_programs._processor_features", lambda: ["avx"])
    found.append(programs_in(Situation(), monkeypatch))
    assert found[1] == found[2]
    assert len(set(found)) == 3
    assert len(_processor_features()) > 5


def test_what_one_machine_compiled_another_one_takes_from_the_bucket(tmp_path: Path) -> None:
    script = """
import jax
from paligemma.runtime.compile_cache import use_compile_cache
seen = []
jax.monitoring.register_event_listener(lambda event, **_: seen.append(event))
use_compile_cache("gs://bucket/root/compiled/x")
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.jit(lambda x: (x + 1).sum())(jax.numpy.arange(3.0))
print(seen.count("/jax/compilation_cache/cache_hits"), seen.count("/jax/compilation_cache/cache_misses"))
"""
    with GcsServer() as server:
        server.create_bucket("bucket")
        environment = {**ONE_DEVICE, CACHE_VARIABLE: str(tmp_path), "STORAGE_EMULATOR_HOST": server.url}
        environment.pop("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", None)

        def hits_and_misses() -> list[int]:
            done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
            return [int(word) for word in done.stdout.split()]

        (hits, misses), again = hits_and_misses(), hits_and_misses()
    assert (hits, again) == (0, [misses, 0])
    assert misses > 0


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
