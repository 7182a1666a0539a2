"""Hardware that a job can be compiled for: memory, speed, and the compiler's arguments.

TPU memory limits are those that the compiler enforces. GPU figures come from NVIDIA's data sheets and programming guide; memory
is what the driver leaves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from paligemma.choices import ComputeDtype
from paligemma.errors import InputError, did_you_mean
from paligemma.models.config import VARIANTS, PaliGemmaConfig

GIB = 2**30


@dataclass(frozen=True)
class Target:
    """A number of devices of one kind.

    Attributes:
        platform: the compiler's platform.
        device: name of the device kind in the price list.
        devices: number of devices.
        memory: bytes per device available to a program; 0: this machine's memory, shared by all devices.
        margin: share of it that is to stay free.
        tflops: speed of one device on dense 16-bit matrix products, 10^12 operations a second; 0: unknown.
        tflops32: its speed where operands are float32, at JAX's default precision: one pass of bfloat16 on a TPU, TF32 on
            NVIDIA since compute capability 8.0.
        bandwidth: memory bandwidth of one device, bytes a second.
        links: bytes a second that one device can receive from others; 0: there are none.
        compute: the dtype that `compute_dtype: auto` stands for there.
        clock: of a TPU, 10^9 cycles a second; 0: unknown.
        topology: keyword arguments of `get_topology_desc`.
    """

    platform: Literal["cpu", "tpu", "cuda"]
    device: str
    devices: int
    memory: int
    margin: float
    tflops: float
    tflops32: float
    bandwidth: float
    links: float
    compute: ComputeDtype
    clock: float = 0.0
    topology: Mapping[str, Any] = field(default_factory=dict)

    def speed(self, dtype: str) -> float:
        """Operations a second of one device on dense matrix products, by XLA's name of the operands' dtype.

        NVIDIA's cards before compute capability 8.0 have no bfloat16 in their tensor cores.
        """
        slow = dtype in ("f32", "f64") or (dtype == "bf16" and self.compute == "float16")
        return (self.tflops32 if slow else self.tflops) * 1e12


_V5E = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_CUBES = {1: "1x1x1", 4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4"}
_TPUS = {  # name: generation, memory (GiB), TFLOP/s, memory and links (GB/s), FLOP a cycle, topologies by chips
    "v4": ("v4", 30.75, 275, 1228, 300, 1 << 18, _CUBES),
    "v5e": ("v5e", 15.75, 197, 819, 200, 1 << 17, _V5E),
    "v5p": ("v5p", 95.74, 459, 2765, 600, 1 << 18, _CUBES),
    "v6e": ("v6e", 31.25, 918, 1640, 448, 1 << 19, _V5E),
}


def _tpu(name: str, chips: int) -> Target:
    generation, memory, tflops, bandwidth, links, a_cycle, topologies = _TPUS[name]
    topology: dict[str, object] = {"topology_name": f"{generation}:{topologies[chips]}", "platform": "tpu"}
    if chips == 1:
        topology |= {"chips_per_host_bounds": (1, 1, 1), "num_slices": 1}
    if name == "v4":
        topology["chip_config_name"] = "megacore"
    links = 0 if chips == 1 else links * 1e9
    clock = tflops * 1e3 / a_cycle
    memory, bandwidth = int(memory * GIB), bandwidth * 1e9
    return Target("tpu", name, chips, memory, 0.02, tflops, tflops, bandwidth, links, "bfloat16", clock, topology)


@dataclass(frozen=True)
class _Gpu:
    name: str
    memory: int  # MiB
    tflops: float
    tflops32: float
    bandwidth: float  # GB/s
    capability: tuple[int, int]
    multiprocessors: int
    units: int  # float32 units per multiprocessor
    clock: float  # GHz
    cache: int  # MiB
    threads: int  # per multiprocessor
    shared: int  # bytes per multiprocessor
    shared_of_block: int  # bytes, at most
    links: float  # GB/s that one GPU receives from others in its machine: PCIe or NVLink
    together: tuple[int, ...] = (1, 2, 4, 8)  # GPUs per machine


_GPUS = {
    "t4": _Gpu("Tesla T4", 14930, 65, 8.1, 320, (7, 5), 40, 64, 1.59, 4, 1024, 65536, 65536, 16, (1, 2, 4)),
    "l4": _Gpu("NVIDIA L4", 23034, 121, 60, 300, (8, 9), 58, 128, 2.04, 48, 1536, 102400, 101376, 32),
    "a10g": _Gpu("NVIDIA A10G", 22731, 70, 35, 600, (8, 6), 80, 128, 1.71, 6, 1536, 102400, 101376, 32, (1, 4, 8)),
    # Of consumers' cards, the smallest memory that people's error messages report; a screen takes more of it.
    "rtx3070-8": _Gpu(
        "NVIDIA GeForce RTX 3070", 7813, 40.6, 20.3, 448, (8, 6), 46, 128, 1.73, 4, 1536, 102400, 101376, 32, (1,)
    ),
    "rtx4060-8": _Gpu(
        "NVIDIA GeForce RTX 4060", 7813, 30.2, 15.1, 272, (8, 9), 24, 128, 2.46, 24, 1536, 102400, 101376, 16, (1,)
    ),
    "rtx4090-24": _Gpu(
        "NVIDIA GeForce RTX 4090", 24084, 165.2, 82.6, 1008, (8, 9), 128, 128, 2.52, 72, 1536, 102400, 101376, 32, (1, 2, 4)
    ),
    "a100-40": _Gpu(
        "NVIDIA A100-SXM4", 40536, 312, 156, 1555, (8, 0), 108, 64, 1.41, 40, 2048, 167936, 166912, 300, (1, 2, 4, 8, 16)
    ),
    "h100-80": _Gpu(
        "NVIDIA H100 HBM3", 81559, 989, 494, 3350, (9, 0), 132, 128, 1.98, 50, 2048, 233472, 232448, 450, (1, 2, 4, 8)
    ),
}


def _gpu(name: str, count: int) -> Target:
    gpu = _GPUS[name]
    description = f"""gpu_device_info {{ threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: {gpu.shared} threads_per_core_limit: {gpu.threads} core_count: {gpu.multiprocessors}
  fpus_per_core: {gpu.units} block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {int(gpu.bandwidth * 1e9)} l2_cache_size: {gpu.cache * 2**20} clock_rate_ghz: {gpu.clock}
  device_memory_size: {gpu.memory * 2**20} shared_memory_per_block_optin: {gpu.shared_of_block}
  cuda_compute_capability {{ major: {gpu.capability[0]} minor: {gpu.capability[1]} }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536 }}
runtime_version {{ major: 12 minor: 8 patch: 0 }}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{gpu.name}"
"""
    topology = {"platform": "cuda", "target_config": description, "topology": f"1x1x{count}"}
    compute = "bfloat16" if gpu.capability >= (8, 0) else "float16"
    # The compiler's figures omit the CUDA context, the libraries' workspaces and the allocator's rounding.
    links = 0 if count == 1 else gpu.links * 1e9
    memory, bandwidth = gpu.memory * 2**20, gpu.bandwidth * 1e9
    speeds = (gpu.tflops, gpu.tflops32, bandwidth, links)
    return Target("cuda", name, count, memory, 0.08, *speeds, compute, topology=topology)


TARGETS: dict[str, Target] = {
    "cpu": Target("cpu", "cpu", 1, 0, 0.1, 0.0, 0.0, 0.0, 0.0, "float32"),
    **{f"cpu-{count}": Target("cpu", "cpu", count, 0, 0.1, 0.0, 0.0, 0.0, 0.0, "float32") for count in (2, 4, 8)},
    **{name if count == 1 else f"{name}-{count}": _gpu(name, count) for name, gpu in _GPUS.items() for count in gpu.together},
    **{f"{name}-{chips}": _tpu(name, chips) for name in _TPUS for chips in _TPUS[name][-1]},
}


def find_target(name: str) -> Target:
    """A target by name.

    Raises:
        InputError: there is no such target.
    """
    if name not in TARGETS:
        raise InputError(f"There is no target {name!r}.", where="--target", fix=did_you_mean(name, TARGETS))
    return TARGETS[name]


def find_variant(name: str) -> PaliGemmaConfig:
    """The architecture of a published checkpoint.

    Raises:
        InputError: there is no such checkpoint.
    """
    if name not in VARIANTS:
        raise InputError(f"There is no variant {name!r}.", where="--variant", fix=did_you_mean(name, VARIANTS))
    return VARIANTS[name]
