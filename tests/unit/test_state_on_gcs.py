"""Training state in Google Cloud Storage: Orbax against a real fake-gcs-server process."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from types import SimpleNamespace

import fsspec.config
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from conftest import ONE_DEVICE, REPOSITORY
from paligemma.errors import DamagedError, InputError
from paligemma.runtime.sharding import fsdp_sharding, make_mesh
from paligemma.storage import failures, gcs
from paligemma.storage.location import GcsLocation
from paligemma.training.state import CHECKPOINT_FILE, StateStore
from servers.gcs import GcsServer

BUCKET = "bucket-of-states"
RUN = {"recipe": {"learning_rate": 0.03}}


@pytest.fixture(scope="module")
def server() -> Iterator[GcsServer]:
    with GcsServer() as running:
        running.create_bucket(BUCKET)
        yield running


@pytest.fixture(autouse=True)
def _on_the_server(server: GcsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(fsspec.config.conf, "gs", {"token": "anon"})  # it reads the variable once, when it is imported


@pytest.fixture
def place() -> GcsLocation:
    """A prefix of the test's own."""
    return GcsLocation(BUCKET, f"states/{time.monotonic_ns()}")


def a_state(seed: int) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    arrays = {
        "step": np.int32(seed),
        "w": rng.standard_normal((16, 8)).astype(np.float32),
        "m": rng.standard_normal((16, 8)).astype(jnp.bfloat16),
    }
    return {name: jax.device_put(array, fsdp_sharding(make_mesh(), np.shape(array))) for name, array in arrays.items()}


def abstract() -> dict[str, jax.ShapeDtypeStruct]:
    return {name: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding) for name, a in a_state(0).items()}


def bits(state: dict[str, jax.Array]) -> list[bytes]:
    return [np.asarray(state[name]).tobytes() for name in sorted(state)]


def steps_at(place: GcsLocation) -> list[int]:
    names = [found.location.name.split("/") for found in gcs.list_objects(place)]
    return sorted(int(name[-2].split("-")[1]) for name in names if name[-1] == CHECKPOINT_FILE)


def test_a_state_comes_back_bit_for_bit(place: GcsLocation) -> None:
    with StateStore(str(place), RUN, keep_best="min") as store:
        assert store.restore(abstract()) is None
        for step, metric in enumerate([0.3, 0.1, 0.2, 0.4]):
            store.save(step, a_state(step), {"of": step}, metric)
    assert steps_at(place) == [1, 2, 3]
    with StateStore(str(place), RUN) as store:
        step, back, extra = store.restore(abstract())
    assert (step, extra) == (3, {"of": 3})
    assert bits(back) == bits(a_state(3))
    assert back["w"].sharding == a_state(3)["w"].sharding


def test_another_run_and_other_objects_are_refused(place: GcsLocation) -> None:
    gcs.write_bytes(place / "used/thesis.txt", b"precious")
    with pytest.raises(InputError, match="not a training state"), StateStore(str(place / "used"), RUN):
        pass
    with StateStore(str(place / "free"), RUN):
        pass
    changed = {"recipe": {"learning_rate": 0.01}}
    with pytest.raises(InputError, match=r"recipe.learning_rate: 0.03 -> 0.01"), StateStore(str(place / "free"), changed):
        pass


@pytest.mark.parametrize("how", ["altered", "missing"])
def test_a_damaged_newest_is_found_and_the_one_before_is_used(place: GcsLocation, how: str) -> None:
    with StateStore(str(place), RUN) as store:
        store.save(1, a_state(1))
        store.save(2, a_state(2))
    data = [
        found for found in gcs.list_objects(place) if "/step-00000002-" in found.location.name and "/d/" in found.location.name
    ]
    largest = max(data, key=lambda found: found.size).location
    content = bytearray(gcs.read_bytes(largest)[0])
    content[len(content) // 2] ^= 1
    gcs.delete(largest) if how == "missing" else gcs.write_bytes(largest, bytes(content))
    with StateStore(str(place), RUN) as store:
        assert bits(store.restore(abstract()).state) == bits(a_state(1))
    for found in list(gcs.list_objects(place)):
        if "/step-00000001-" in found.location.name and "/d/" in found.location.name:
            gcs.delete(found.location)
    with StateStore(str(place), RUN) as store, pytest.raises(DamagedError):
        store.restore(abstract())


TRAINER = """
import sys
import jax
import jax.numpy as jnp
from paligemma.training.state import StateStore
with StateStore(sys.argv[1], {"recipe": {"learning_rate": 0.03}}) as store:
    array = jnp.full(1000, 0)
    restored = store.restore({"w": jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)})
    step = restored.step if restored else 0
    while True:
        step += 1
        store.save(step, {"w": jnp.full(1000, step)})
        print(step - 1, flush=True)
"""


def test_a_killed_save_is_never_seen_and_its_objects_are_removed(server: GcsServer, place: GcsLocation) -> None:
    environment = {**ONE_DEVICE, **server.environment()}
    for delay in (0.0, 0.05, 0.1):
        process = subprocess.Popen(
            [sys.executable, "-c", TRAINER, str(place)], cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True
        )
        saved = [int(process.stdout.readline()) for _ in range(4)]
        time.sleep(delay)
        process.kill()
        saved += map(int, process.communicate()[0].split())
        with StateStore(str(place), RUN) as store:
            step, state, _ = store.restore(
                {"w": jax.ShapeDtypeStruct((1000,), jnp.int32, sharding=a_state(0)["step"].sharding)}
            )
        assert step >= saved[-1]
        assert set(np.asarray(state["w"])) == {step}
        folders = {found.location.name.removeprefix(f"{place.name}/").split("/")[0] for found in gcs.list_objects(place)}
        assert len(folders - {"fingerprint.json"}) == len(steps_at(place)) <= 3


def test_storage_that_is_gone_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    async def at_once(seconds: float) -> None:
        pass

    with ExitStack() as stack:
        with GcsServer() as server:
            server.create_bucket(BUCKET)
            for name, value in server.environment().items():
                monkeypatch.setenv(name, value)
            store = stack.enter_context(StateStore(f"gs://{BUCKET}/state", RUN))
            store.save(1, a_state(1))
            store.wait()
        monkeypatch.setattr("gcsfs.retry.asyncio", SimpleNamespace(sleep=at_once))  # imported by now
        with pytest.raises(failures.StorageUnavailableError) as caught:
            store.save(2, a_state(2))
    assert f"gs://{BUCKET}/state" in str(caught.value)
