"""Training state on a disk: whole, bit for bit, whatever happens to the process or to the files."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from conftest import ONE_DEVICE, REPOSITORY, XLA_FLAGS
from paligemma.errors import DamagedError, InputError
from paligemma.runtime.sharding import fsdp_sharding, make_mesh
from paligemma.storage import disk_space
from paligemma.storage.failures import StorageUnavailableError
from paligemma.training import state as state_module
from paligemma.training.preemption import PreemptedError, PreemptionGuard
from paligemma.training.resume_check import describe_changes
from paligemma.training.state import StateStore
from paligemma.training.step import TrainState

RUN = {"recipe": {"learning_rate": 0.03, "steps": 64}, "records": "5f0c"}


def a_state(seed: int, mesh: Mesh | None = None) -> dict:
    """Arrays of every dtype that a training state has, split over the mesh's devices."""
    rng, mesh = np.random.default_rng(seed), mesh or make_mesh()
    arrays = {
        "step": np.int32(seed),
        "trainable": {"w": rng.standard_normal((3, 16, 8)).astype(np.float32), "b": rng.standard_normal(7).astype(np.float32)},
        "moments": [rng.standard_normal((16, 8)).astype(jnp.bfloat16), optax.EmptyState()],
        "key": rng.integers(0, 2**32, 2, np.uint32),
    }
    arrays["trainable"]["b"][:2] = np.nan, -0.0
    return jax.tree.map(lambda array: jax.device_put(array, fsdp_sharding(mesh, np.shape(array))), arrays)


def abstract_of(state: object) -> object:
    return jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding), state)


def bits(state: object) -> list[bytes]:
    return [np.asarray(array).tobytes() for array in jax.tree.leaves(state)]


def newest(store: StateStore) -> int | None:
    """The step of the state that a run would go on from; None if there is none."""
    restored = store.restore(abstract_of(a_state(0)))
    return restored and restored.step


def steps_in(folder: Path) -> list[int]:
    return sorted(int(path.parent.name.split("-")[1]) for path in folder.glob("step-*/checkpoint.json"))


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "flipped bit":
        data[len(data) // 2] ^= 4
        path.write_bytes(data)
    elif how == "truncated":
        path.write_bytes(data[:-1])
    else:
        path.unlink()


def test_a_state_comes_back_bit_for_bit_in_its_layout(tmp_path: Path) -> None:
    state, extra = a_state(3), {"history": [{"step": 3, "loss": 0.1 + 0.2}], "best": None}
    with StateStore(tmp_path / "state", RUN) as store:
        assert store.restore(abstract_of(state)) is None
        assert newest(store) is None
        store.save(3, state, extra)
    with StateStore(tmp_path / "state", RUN) as store:
        assert newest(store) == 3
        step, back, again = store.restore(abstract_of(state))
    assert (step, again) == (3, extra)
    assert bits(back) == bits(state)
    assert jax.tree.structure(back) == jax.tree.structure(state)
    assert jax.tree.map(lambda array: (array.dtype, array.sharding), back) == jax.tree.map(
        lambda array: (array.dtype, array.sharding), state
    )


def test_a_train_state_with_an_optimizer_comes_back(tmp_path: Path) -> None:
    trainable = nnx.State({"llm": {"w": nnx.Param(jnp.arange(8.0))}})
    state = TrainState(jnp.int32(5), trainable, optax.adamw(0.1).init(trainable))
    with StateStore(tmp_path, RUN) as store:
        store.save(5, state)
        back = store.restore(abstract_of(state)).state
    assert jax.tree.structure(back) == jax.tree.structure(state)
    assert bits(back) == bits(state)


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_a_state_comes_back_on_another_number_of_devices(tmp_path: Path, devices: int) -> None:
    eight, fewer = a_state(1), a_state(2, make_mesh(jax.devices()[:devices]))
    with StateStore(tmp_path, RUN) as store:
        store.save(1, eight)
        back = store.restore(abstract_of(fewer)).state
    assert bits(back) == bits(eight)
    assert back["trainable"]["w"].sharding == fewer["trainable"]["w"].sharding


@pytest.mark.parametrize("spec", [PartitionSpec("fsdp"), PartitionSpec()])
def test_buffers_can_be_donated_as_soon_as_save_returns(tmp_path: Path, spec: PartitionSpec) -> None:
    step = jax.jit(lambda array: array * -3.0, donate_argnums=0)
    array = jax.device_put(np.arange(1 << 20, dtype=np.float32), NamedSharding(make_mesh(), spec))
    expected = bits(array)
    with StateStore(tmp_path, RUN) as store:
        store.save(1, array)
        for _ in range(5):
            array = step(array)
        assert bits(store.restore(abstract_of(array)).state) == expected


def test_another_run_is_refused_with_what_differs(tmp_path: Path) -> None:
    with StateStore(tmp_path, RUN) as store:
        store.save(1, a_state(1))
    changed = {"recipe": {"learning_rate": 0.01, "steps": 64, "seed": 1}, "records": "5f0c"}
    with pytest.raises(InputError) as caught, StateStore(tmp_path, changed):
        pass
    assert "  recipe.learning_rate: 0.03 -> 0.01\n  recipe.seed: (absent) -> 1\n" in str(caught.value)
    assert "records" not in caught.value.what
    assert "another --state" in str(caught.value)
    with StateStore(tmp_path, RUN) as store:
        assert newest(store) == 1


def test_a_damaged_fingerprint_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "fingerprint.json").write_text('{"recipe": ')
    with pytest.raises(DamagedError, match="fingerprint"), StateStore(tmp_path, RUN):
        pass


def test_changes_name_paths_and_end_after_twenty() -> None:
    assert describe_changes({"a": {"b": [1]}, "c": {}}, {"a": {"b": [1]}, "c": {}}) == []
    assert describe_changes({"a": {"b": [1]}, "c": 1}, {"a": {"b": [2]}}) == ["a.b: [1] -> [2]", "c: 1 -> (absent)"]
    assert describe_changes({}, {str(number): 0 for number in range(25)})[-1] == "and 5 more"


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="not a training state"), StateStore(tmp_path, RUN):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_process_that_is_there_before_the_first_has_made_the_folder_finds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with StateStore(tmp_path / "state", RUN) as store:
        assert store.restore(abstract_of(a_state(1))) is None
    assert not (tmp_path / "state").exists()


def test_two_processes_do_not_share_a_state(tmp_path: Path) -> None:
    with StateStore(tmp_path, RUN), pytest.raises(InputError, match="Another process"), StateStore(tmp_path, RUN):
        pass
    with StateStore(tmp_path, RUN):
        pass


def test_other_arrays_are_refused(tmp_path: Path) -> None:
    with StateStore(tmp_path, RUN) as store:
        store.save(1, {"w": jnp.zeros((4, 8))})
        with pytest.raises(InputError, match=r"w: \"float32\[4, 8\]\" -> \"float32\[8, 4\]\""):
            store.restore(abstract_of({"w": jnp.zeros((8, 4))}))


@pytest.mark.parametrize("how", ["flipped bit", "truncated", "missing"])
def test_any_damage_to_the_newest_is_found_and_the_one_before_is_used(tmp_path: Path, how: str, caplog) -> None:
    first, second = a_state(1), a_state(2)
    with StateStore(tmp_path, RUN) as store:
        store.save(1, first, {"of": 1})
        store.save(2, second, {"of": 2})
    newest = next(tmp_path.glob("step-00000002-*"))
    for path in sorted(path for path in newest.rglob("*") if path.is_file()):
        whole = path.read_bytes()
        damage(path, how)
        caplog.clear()
        with caplog.at_level(logging.WARNING, state_module.__name__), StateStore(tmp_path, RUN) as store:
            step, back, extra = store.restore(abstract_of(first))
        assert (step, extra) == (1, {"of": 1})
        assert bits(back) == bits(first)
        if path.name == state_module.CHECKPOINT_FILE and how == "missing":
            assert not newest.exists()  # as if its save had never ended
            return
        assert path.name in caplog.text
        path.write_bytes(whole)
    with StateStore(tmp_path, RUN) as store:
        assert store.restore(abstract_of(first)).step == 2


def test_a_damaged_checkpoint_is_replaced_when_its_step_is_done_again(tmp_path: Path) -> None:
    with StateStore(tmp_path, RUN) as store:
        store.save(1, a_state(1))
        store.save(2, a_state(2))
    damage(next(tmp_path.glob("step-00000002-*/arrays/d/*")), "truncated")
    with StateStore(tmp_path, RUN) as store:
        assert store.restore(abstract_of(a_state(0))).step == 1
        store.save(2, a_state(2))
    assert steps_in(tmp_path) == [1, 2]
    with StateStore(tmp_path, RUN) as store:
        assert bits(store.restore(abstract_of(a_state(0))).state) == bits(a_state(2))


def test_a_state_of_which_nothing_is_whole_is_an_error(tmp_path: Path) -> None:
    with StateStore(tmp_path, RUN) as store:
        store.save(1, a_state(1))
        store.save(2, a_state(2))
    damage(next(tmp_path.glob("step-00000001-*/checkpoint.json")), "flipped bit")
    damage(next(tmp_path.glob("step-00000002-*/arrays/d/*")), "missing")
    with StateStore(tmp_path, RUN) as store, pytest.raises(DamagedError, match="no older one"):
        store.restore(abstract_of(a_state(0)))
    assert steps_in(tmp_path) == [1, 2]


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    with StateStore(tmp_path, RUN, keep_last=2, keep_best="max") as store:
        for step, metric in enumerate([0.1, None, 0.9, float("nan"), 0.9, 0.3, None]):
            store.save(step, a_state(step), metric=metric)
        assert (store.best_step(), newest(store)) == (2, 6)
        assert bits(store.restore(abstract_of(a_state(0)), step=2).state) == bits(a_state(2))
    assert steps_in(tmp_path) == [2, 5, 6]
    with StateStore(tmp_path, RUN, keep_last=1, keep_best="max") as store:
        store.save(7, a_state(7), metric=1.0)
        store.save(7, a_state(8))  # saved already
    assert steps_in(tmp_path) == [7]
    with StateStore(tmp_path, RUN) as store:
        assert bits(store.restore(abstract_of(a_state(0))).state) == bits(a_state(7))
        with pytest.raises(InputError, match="no checkpoint of step 2"):
            store.restore(abstract_of(a_state(0)), step=2)


def test_an_unfinished_save_is_never_seen_and_removed(tmp_path: Path) -> None:
    with StateStore(tmp_path, RUN) as store:
        store.save(1, a_state(1))
        store.save(2, a_state(2))
    unfinished = next(tmp_path.glob("step-00000002-*"))
    (unfinished / "checkpoint.json").rename(unfinished / ".checkpoint.json.partial-1")
    (tmp_path / "step-00000003-00000000").mkdir()
    with StateStore(tmp_path, RUN) as store:
        assert newest(store) == 1
        assert [path.name[:13] for path in tmp_path.glob("step-*")] == ["step-00000001"]


def test_a_disk_without_room_is_found_before_the_save(tmp_path: Path, monkeypatch) -> None:
    with StateStore(tmp_path, RUN) as store:
        store.save(1, a_state(1))
        store.wait()
        monkeypatch.setattr(disk_space, "MARGIN", 1 << 60)
        with pytest.raises(InputError, match="not enough room"):
            store.save(2, a_state(2))
    assert steps_in(tmp_path) == [1]


def test_a_save_that_failed_can_be_tried_again(tmp_path: Path, monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    with StateStore(tmp_path, RUN) as store:
        with monkeypatch.context() as broken:
            broken.setattr(state_module, "write_file", fail)
            store.save(1, a_state(1))
            with pytest.raises(StorageUnavailableError, match="Input/output error"):
                store.wait()
        assert newest(store) is None
        store.save(1, a_state(1))
    assert len(list(tmp_path.glob("step-*"))) == 1
    assert steps_in(tmp_path) == [1]


def test_an_error_of_the_training_is_not_hidden_by_one_of_the_last_save(tmp_path: Path, monkeypatch, caplog) -> None:
    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    def train() -> None:
        with StateStore(tmp_path, RUN) as store:
            monkeypatch.setattr(state_module, "write_file", fail)
            store.save(1, a_state(1))
            raise KeyError("boom")

    with pytest.raises(KeyError, match="boom"):
        train()
    assert "Input/output error" in caplog.text


# One process imports JAX and forks a child for each kill: a child begins to train at once. It does a step, saves it, and says
# which saves it knows to be done.
TRAINER = """
import os, random, signal, sys, time
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np
from paligemma.training.state import StateStore, _orbax
_orbax()

def train(folder, report, until):
    state = {"step": jnp.int32(0), "w": jnp.linspace(0, 1, 50_000), "m": jnp.zeros((50_000,), jnp.bfloat16)}
    abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), state)
    def advance(step, w, m):
        return {"step": step + 1, "w": jnp.sin(3 * w + step), "m": m + w.astype(jnp.bfloat16)}
    advance = jax.jit(advance, donate_argnames=("step", "w", "m"))
    with StateStore(folder, {"run": 1}) as store:
        restored, history = store.restore(abstract), []
        if restored is not None:
            state, history = restored.state, restored.extra["history"]
            assert int(state["step"]) == restored.step == len(history)
        os.write(report, b"%d\\n" % -len(history))
        while len(history) < until:
            state = advance(**state)
            history.append(float(state["w"].sum()))
            store.save(len(history), state, {"history": history})
            if len(history) > 1:
                os.write(report, b"%d\\n" % (len(history) - 1))
    np.savez(sys.argv[2], **{n: np.asarray(a).view(np.uint8) for n, a in state.items() if n != "step"}, history=history)

# A kill comes after some saves and a part of the time that one takes, as seen in this child: on a fast machine as on a slow
# one, they fall everywhere in a save. There are as many as it takes for a quarter of those asked for to have hit one.
chance, acknowledged, seen, during_a_save, asked = random.Random(sys.argv[1]), 0, [], 0, int(sys.argv[3])
while True:
    last = len(seen) >= asked and during_a_save >= asked // 4
    assert len(seen) < 20 * asked + 1, "no kill falls into a save"
    receive, report = os.pipe()
    child = os.fork()
    if not child:
        os.close(receive)
        try:
            train(sys.argv[1], report, acknowledged + 3 if last else 10**9)
        except BaseException:
            import traceback; traceback.print_exc(); os._exit(1)
        os._exit(0)
    os.close(report)
    with os.fdopen(receive) as lines:
        began = -int(lines.readline() or 1)
        assert began >= acknowledged, (began, acknowledged)
        if not last:
            saves, started = chance.randint(0, 3), time.monotonic()
            done = [line for line in (lines.readline() for _ in range(saves)) if line]
            each = (time.monotonic() - started) / len(done) if done else 0.1
            time.sleep(chance.uniform(0, each))
            os.kill(child, signal.SIGKILL)
            acknowledged = max([began, *map(int, done)])
        acknowledged = max([began, acknowledged, *map(int, lines)])
    status = os.waitpid(child, 0)[1]
    assert status == (0 if last else signal.SIGKILL), status
    if last:
        break
    seen.append(began)
    during_a_save += any(not (folder / "checkpoint.json").exists() for folder in Path(sys.argv[1]).glob("step-*"))
print(seen, acknowledged, during_a_save)
"""


def test_killed_at_twenty_moments_and_restarted_it_ends_bit_for_bit_as_undisturbed(tmp_path: Path) -> None:
    def run(folder: str, kills: int, until: int | None = None) -> dict[str, np.ndarray]:
        script = TRAINER if until is None else TRAINER.replace("acknowledged + 3", str(until))
        command = [sys.executable, "-c", script, str(tmp_path / folder), str(tmp_path / f"{folder}.npz"), str(kills)]
        done = subprocess.run(command, cwd=REPOSITORY, env=ONE_DEVICE, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        with np.load(tmp_path / f"{folder}.npz") as file:
            return dict(file)

    killed = run("killed", kills=20)
    undisturbed = run("undisturbed", kills=0, until=len(killed["history"]))
    assert {name: array.tobytes() for name, array in killed.items()} == {
        name: array.tobytes() for name, array in undisturbed.items()
    }


ONE_OF_TWO = """
import os, signal, sys
import jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from paligemma.runtime.sharding import make_mesh
from paligemma.training.preemption import PreemptionGuard
from paligemma.training.state import StateStore
values, sharding = np.arange(64.0, dtype=np.float32).reshape(8, 8), NamedSharding(make_mesh(), PartitionSpec("fsdp"))
state = jax.make_array_from_callback((8, 8), sharding, lambda index: values[index])
advance = jax.jit(lambda w: w + 1, donate_argnums=0)
with StateStore(sys.argv[3], {"run": 1}) as store, PreemptionGuard() as guard:
    restored = store.restore(jax.ShapeDtypeStruct((8, 8), np.float32, sharding=sharding))
    began = step = 0
    if restored is not None:
        began, state, _ = restored
        step = began
        for shard in state.addressable_shards:
            assert np.array_equal(np.asarray(shard.data), (values + began)[shard.index])
    while True:
        step, state = step + 1, advance(state)
        if step == began + 3 and sys.argv[2] == "1":
            os.kill(os.getpid(), signal.SIGTERM)
        if guard.should_stop(step):
            store.save(step, state)
            break
        if step % 5 == 0:
            store.save(step, state)
print(began, step)
"""


def test_two_processes_stop_after_the_same_step_and_go_on_from_it(tmp_path: Path) -> None:
    environment = {**ONE_DEVICE, "XLA_FLAGS": f"--xla_force_host_platform_device_count=2 {XLA_FLAGS}"}
    ended = 0
    for _ in range(2):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", ONE_OF_TWO, address, str(number), str(tmp_path)],
                cwd=REPOSITORY,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for number in range(2)
        ]
        results = [process.communicate(timeout=600) for process in processes]
        assert [process.returncode for process in processes] == [0, 0], results
        (began, one), (also_began, other) = (map(int, out.splitlines()[-1].split()) for out, _ in results)
        assert began == also_began == ended
        assert one == other > began
        ended = one
        assert steps_in(tmp_path)[-1] == ended


def test_sigterm_is_noted_until_the_step_ends() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with PreemptionGuard() as guard:
        assert not guard.should_stop(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert guard.should_stop(2)
    assert signal.getsignal(signal.SIGTERM) == before
    assert PreemptedError(2, "gs://bucket/state").exit_code == 4


def test_a_second_interrupt_stops_at_once() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has what it runs in the background ignore it
    try:
        with PreemptionGuard() as guard:
            signal.raise_signal(signal.SIGINT)
            assert guard.should_stop(1)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
