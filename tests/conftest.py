"""Fixtures shared by every layer of tests, and eight simulated devices for all of them."""

from __future__ import annotations

import gc
import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from mask_weights import square_weights, write_weights
from PIL import Image

os.environ["JAX_PLATFORMS"] = "cpu"
EIGHT_DEVICES = "--xla_force_host_platform_device_count=8"
# Tests spend their time in the compiler, not in what it compiles: code that is not optimized is there four times as soon. What
# the environment says comes later and wins: `make parity` compares optimized code with the golden values.
QUICK_TO_COMPILE = (
    "--xla_backend_optimization_level=0",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",  # threads of their own for programs this small cost an eighth more
)
_GIVEN = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if flag not in (EIGHT_DEVICES, *QUICK_TO_COMPILE)]
XLA_FLAGS = " ".join((*QUICK_TO_COMPILE, *_GIVEN))
os.environ["XLA_FLAGS"] = f"{EIGHT_DEVICES} {XLA_FLAGS}"

# JAX notes the whole stack of calls beside every operation that it traces. Below pytest's own stack that is an eighth of the
# time of tests that compile.
os.environ.setdefault("JAX_INCLUDE_FULL_TRACEBACKS_IN_LOCATIONS", "0")
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")

# Where there is room, files of tests are in memory: they make and remove a hundred thousand folders, and wait for the disk each
# time. What needs a disk of its own kind is in `tests/disk`.
_IN_MEMORY = Path("/dev/shm")
if _IN_MEMORY.is_dir() and shutil.disk_usage(_IN_MEMORY).free > 4 * 2**30:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(_IN_MEMORY))

# Where Python may not write bytecode, as in many containers, each of the hundreds of processes that tests start would parse our
# sources again: a sixth of what a step takes to start.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# As `paligemma pipeline run` and the images do for a step, see `paligemma.runtime.host_memory`.
os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")

# Programs of JAX are millions of objects, which every collection of garbage goes through: it is worth it less often.
gc.set_threshold(200_000, 20, 100)

hypothesis.settings.register_profile("shared machine", deadline=None)
hypothesis.settings.load_profile("shared machine")

REPOSITORY = Path(__file__).parents[1]
ONE_DEVICE = os.environ | {"XLA_FLAGS": XLA_FLAGS}
"""Environment of a process that sees this machine as it is: eight simulated devices on two cores are slow."""
OPTIMIZED = os.environ | {"XLA_FLAGS": " ".join(_GIVEN)}
"""Environment of a process that compiles as users' processes do: for work that takes many steps."""


SLOW = {
    "test_atomic",
    "test_attention",
    "test_checkpoints",
    "test_cloud_setup",
    "test_compile_cache",
    "test_convert_chat",
    "test_convert_tables",
    "test_decoding",
    "test_flops",
    "test_gcs",
    "test_generate",
    "test_huggingface_folders",
    "test_kaggle_server",
    "test_lineage",
    "test_lineage_queries",
    "test_lineage_verify",
    "test_loader",
    "test_lora",
    "test_metrics",
    "test_named_model",
    "test_names_everywhere",
    "test_network",
    "test_npz",
    "test_optimizer",
    "test_perfect_model",
    "test_pictures",
    "test_pointer",
    "test_preflight",
    "test_registry",
    "test_reports",
    "test_roots",
    "test_rows_with_pictures",
    "test_sharding",
    "test_shards",
    "test_state",
    "test_state_on_gcs",
    "test_step",
    "test_storage_names",
    "test_storage_servers",
    "test_terminal",
    "test_tf_dataset",
    "test_tfrecord",
    "test_web_images",
    "test_yaml_text",
}
"""Files of `unit` and `hostile` that took more than two seconds in a measured run: `--quick` leaves them out."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="leave out files that take more than two seconds (make check)")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return True if config.getoption("--quick") and collection_path.stem in SLOW else None


@pytest.fixture(scope="module", autouse=True)
def _forget_what_was_compiled() -> Iterator[None]:
    """Programs of one file are of no use to the next, take gigabytes, and every collection of garbage goes through them."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
        gc.collect()
        gc.freeze()  # what is left, most of it modules, stays: the next collections need not go through it


@dataclass(frozen=True)
class SmallData:
    """A JSONL file and its images, made by a test."""

    folder: Path

    @property
    def jsonl(self) -> Path:
        return self.folder / "rows.jsonl"

    def write(self, rows: list[object]) -> Path:
        """Writes rows, each a JSON value or raw bytes."""
        lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
        self.jsonl.write_bytes(b"\n".join(lines) + b"\n")
        return self.jsonl

    def add_image(self, name: str, seed: int = 0, size: int = 12) -> str:
        """Writes a random picture and returns its name."""
        pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
        Image.fromarray(pixels).save(self.folder / name)
        return name


@pytest.fixture
def small_data(tmp_path: Path) -> SmallData:
    """An empty folder for rows and images."""
    folder = tmp_path / "data"
    folder.mkdir()
    return SmallData(folder)


@pytest.fixture(scope="session")
def codes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the VQ-VAE behind `<seg>`, with which a mask comes back as the coverage of 8 x 8 squares."""
    return write_weights(tmp_path_factory.mktemp("codes") / "vae-oid.npz", square_weights())


@pytest.fixture(scope="session")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records of 21 rows over 7 pictures, prepared for the embedded checkpoint; texts of different lengths."""
    from components.prepare_data.__main__ import run

    data = SmallData(tmp_path_factory.mktemp("records-source"))
    rows = [
        {"image": data.add_image(f"{index}.png", index), "prefix": prefix, "suffix": suffix}
        for index in range(7)
        for prefix, suffix in (
            ("ocr", str(index)),
            ("caption en", f"the digit number {index}"),
            ("answer en is it odd or even?", "odd" if index % 2 else "even"),
        )
    ]
    output = tmp_path_factory.mktemp("records") / "train"
    run(data=data.write(rows), checkpoint="embedded:tiny", output=output)
    return output
