"""What is asked of the C library's allocator."""

from __future__ import annotations

import ctypes
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from paligemma.runtime import host_memory


def test_a_tuned_environment_stays_as_it_is() -> None:
    plain, tuned = {}, {"GLIBC_TUNABLES": "glibc.malloc.check=1"}
    host_memory.use_huge_pages(plain)
    host_memory.use_huge_pages(tuned)
    assert plain == {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    assert tuned == {"GLIBC_TUNABLES": "glibc.malloc.check=1"}


def test_the_image_for_cpus_has_the_same_variable() -> None:
    plain = {}
    host_memory.use_huge_pages(plain)
    ((name, value),) = plain.items()
    dockerfile = Path(__file__).parents[2] / "docker/Dockerfile"
    assert f"{name}={value}\n" in dockerfile.read_text()


def test_memory_is_trimmed_once_a_program_is_compiled_and_before_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    order = []
    library = type("Library", (), {"malloc_trim": staticmethod(lambda pad: order.append("trimmed"))})
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    monkeypatch.setattr(host_memory, "SECONDS_WORTH_IT", 0.0)
    listeners = []
    monkeypatch.setattr(jax.monitoring, "register_event_duration_secs_listener", listeners.append)
    host_memory.trim_after_compiling.__wrapped__()
    (listener,) = listeners
    monkeypatch.undo()
    monkeypatch.setattr(host_memory, "SECONDS_WORTH_IT", 0.0)
    x = jax.block_until_ready(jnp.ones(3))
    program = jax.jit(lambda x: jax.pure_callback(lambda y: (order.append("ran"), y)[1], x, x) + 41)
    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        jax.block_until_ready(program(x))
        jax.block_until_ready(program(x))
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)
    assert order == ["trimmed", "ran", "ran"]


def test_a_library_without_a_trim_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    monkeypatch.setattr(jax.monitoring, "register_event_duration_secs_listener", pytest.fail)
    host_memory.trim_after_compiling.__wrapped__()
