"""Loads a random PaliGemma 3B of 5.8 GB for training, each way in a process of its own, and measures memory and time.

Memory is what is anonymous: pages of a mapped file can be dropped at any time, and are not counted. Seconds are compared with a
plain sequential read of the same file; before each, the file is dropped from the page cache.

PYTHONPATH=shared:. .venv/bin/python tests/benchmarks/load.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from paligemma.checkpoints.huggingface.write import write_huggingface
from paligemma.checkpoints.lazy import lengths, split_index
from paligemma.checkpoints.npz import write_npz
from paligemma.checkpoints.open_checkpoint import open_checkpoint
from paligemma.checkpoints.parameters import build_module, parameters_by_name
from paligemma.models.config import VARIANTS
from paligemma.models.parameter_shapes import parameter_shapes
from paligemma.runtime.sharding import make_mesh
from paligemma.training.trainable import compile_pattern, is_trainable

VARIANT = "paligemma-3b-pt-224"
ROUNDS = 2
SPARE = 4_000_000_000
"""Bytes of memory that are left to others: what does not fit beside is not run."""

_POOL = np.random.default_rng(0).normal(0, 0.02, 1 << 22).astype(np.float16)


class Noise:
    """A random array that is made where it is indexed."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape, self.dtype = shape, np.dtype(np.float16)

    def __getitem__(self, index) -> np.ndarray:
        slices, rest = split_index(index, self.shape)
        return np.resize(_POOL, lengths(slices))[rest]


class Anonymous:
    """Largest anonymous resident memory of this process while it runs, in bytes."""

    def __init__(self) -> None:
        self.before = self.peak = _anonymous()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._ended.wait(0.005):
            self.peak = max(self.peak, _anonymous())

    def stop(self) -> int:
        """What was added to what there was at the start."""
        self._ended.set()
        self._thread.join()
        return max(self.peak, _anonymous()) - self.before


def _anonymous() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def available() -> int:
    """Bytes of memory that could be had now."""
    line = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable"))
    return int(line.split()[1]) * 1024


def drop_from_cache(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(handle)


def measure(way: str, path: Path) -> None:
    """In a process of its own: prints seconds, peak and bytes of the device arrays as JSON."""
    import jax

    jax.devices()
    trained = compile_pattern("attention")
    for file in [path] if path.is_file() else path.glob("*.safetensors"):
        drop_from_cache(file)
    watched, started = Anonymous(), time.perf_counter()
    arrays = None
    if way == "read":
        buffer = bytearray(1 << 24)
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    else:
        checkpoint = open_checkpoint(path, None if path.is_dir() else VARIANT)
        values: Mapping = checkpoint.arrays
        if way == "np.load everything":
            with np.load(path) as file:
                values = {name: file[name] for name in file}
        arrays = build_module(
            checkpoint.config,
            values,
            lambda name, _: np.dtype(np.float32 if is_trainable(trained, name) else np.float16),
            mesh=make_mesh(jax.devices()[:1]),
        )
        jax.block_until_ready(jax.tree.leaves([variable[...] for variable in parameters_by_name(arrays).values()]))
    seconds = time.perf_counter() - started
    held = sum(variable[...].nbytes for variable in parameters_by_name(arrays).values()) if arrays else 0
    print(json.dumps({"seconds": seconds, "peak": watched.stop(), "held": held}))


def main() -> None:
    config = VARIANTS[VARIANT]
    with tempfile.TemporaryDirectory(prefix="load-benchmark-") as made:
        npz, folder = Path(made) / "x.npz", Path(made) / "hf"
        noise = {name: Noise(shape) for name, shape in parameter_shapes(config).items()}
        write_npz(npz, noise)
        folder.mkdir()
        write_huggingface(folder, config, open_checkpoint(npz, config).arrays, lambda _, values: values, None)
        print(f"{npz.stat().st_size / 1e9:.2f} GB")
        cases = [("read", npz), ("ours", npz), ("np.load everything", npz), ("ours", folder)]
        needed = {"read": 0.0, "ours": 1.3, "np.load everything": 2.3}
        results: dict[tuple[str, Path], list[dict]] = {case: [] for case in cases}
        for _ in range(ROUNDS):
            for way, path in cases:
                if available() < SPARE + needed[way] * npz.stat().st_size:
                    print(f"{way} ({path.name}): not enough memory now")
                    continue
                command = [sys.executable, __file__, way, str(path)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                results[way, path].append(json.loads(done.stdout.splitlines()[-1]))
        plain = min(result["seconds"] for result in results["read", npz])
        for (way, path), runs in results.items():
            if not runs:
                continue
            seconds, peak, held = (min(run[key] for run in runs) for key in ("seconds", "peak", "held"))
            memory = f"{peak / 1e9:.2f} GB, {peak / held:.2f}x of {held / 1e9:.2f} GB" if held else "-"
            print(f"{way} ({path.name}): {seconds:.1f} s, {seconds / plain:.2f}x of the plain read; {memory}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(sys.argv[1], Path(sys.argv[2]))
    else:
        main()
