"""A disk that is really full. Mounting a small one needs root: `make full-disk`."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from components.fetch_checkpoint.__main__ import run as fetch_checkpoint
from paligemma.checkpoints.export import export
from paligemma.errors import InputError
from paligemma.training import state as state_module
from paligemma.training.state import StateStore

RUN = {"recipe": {"learning_rate": 0.03}}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of three megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "none", folder], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"a small disk cannot be mounted, which needs root: {done.stderr}"
    yield folder
    subprocess.run(["umount", folder], check=True)


# Orbax writes in threads of its own. Once in thirty times, a second one meets the full disk after the first has said so, and
# nobody is left to hear it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_disk_that_fills_up_during_a_save_leaves_the_one_before(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_module, "check_space", lambda *_: None)
    small = {"w": jnp.zeros(1000)}
    with StateStore(disk / "state", RUN) as store:
        store.save(1, small)
        store.save(2, {"w": jax.random.normal(jax.random.key(0), (1_000_000,))})
        with pytest.raises(InputError, match="no room left"):
            store.wait()
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), small)
    with StateStore(disk / "state", RUN) as store:
        assert store.restore(abstract).step == 1


@pytest.mark.parametrize(
    ("module", "write"),
    [
        ("paligemma.storage.disk_space", lambda place: fetch_checkpoint(output=str(place))),
        ("paligemma.checkpoints.export", lambda place: export("embedded:tiny", place, "big_vision", "float32")),
        ("paligemma.checkpoints.export", lambda place: export("embedded:tiny", place, "huggingface", "float32")),
    ],
    ids=["fetch_checkpoint", "big_vision", "huggingface"],
)
def test_what_fills_the_disk_leaves_nothing_and_says_what_was_free(
    disk: Path, module: str, write: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{module}.check_space", lambda *_: None)
    (disk / "other").write_bytes(bytes(2_000_000))
    with pytest.raises(InputError, match=rf"not enough room in {disk}.*\n.*more than the 1\.\d MB that were free"):
        write(disk / "out")
    assert {path.name for path in disk.iterdir()} <= {"other", "lineage"}
