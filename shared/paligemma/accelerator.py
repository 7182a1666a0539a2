"""Whether a step has the accelerator that its profile pays for: without one, JAX goes on with the CPU and a line in the log."""

from __future__ import annotations

import ctypes
import importlib.metadata
import logging
import os
from dataclasses import dataclass
from pathlib import Path

from paligemma.errors import InputError
from paligemma.extras import how_to_accelerate

log = logging.getLogger("paligemma.accelerator")

ACCELERATOR_VARIABLE = "PALIGEMMA_ACCELERATOR"
"""What a process is to have, as KIND COUNT: "gpu 1", "tpu 4". The images for accelerators say one of their kind, a pipeline's
profile how many. Unset or empty, a step takes what there is."""

_DRIVER = "libcuda.so.1"
"""NVIDIA's library that comes with a node, not with an image; what a TPU needs is all in the image."""
_NVIDIA = (Path("/proc/driver/nvidia/version"), Path("/dev/nvidiactl"), Path("/dev/dxg"))
"""What the driver makes when it finds a device: on Linux, and in the Windows Subsystem for Linux."""
_PLUGINS = "jax_plugins"
"""Group of entry points by which JAX finds what it can compute on, besides the CPU and TPUs."""
_LOOK_AT = {
    "gpu": "GKE mounts the driver at /usr/local/nvidia/lib64, which $LD_LIBRARY_PATH has to name, and a node pool has one only "
    "with gpu-driver-version=latest (or default)",
    "tpu": "the image `tpu`, and a node pool whose topology is the profile's",
}


@dataclass(frozen=True)
class Accelerator:
    """What a process is to have.

    Attributes:
        kind: JAX's name of the platform.
        count: of its devices that this process sees.
    """

    kind: str
    count: int

    @classmethod
    def parse(cls, text: str) -> Accelerator:
        """Raises InputError for what a profile does not say."""
        kind, _, count = text.partition(" ")
        if kind not in _LOOK_AT or not count.isdecimal() or int(count) < 1:
            raise InputError(f"{text!r} is no accelerator.", where=f"${ACCELERATOR_VARIABLE}", expected="gpu 1, tpu 4, ...")
        return cls(kind, int(count))

    def __str__(self) -> str:
        return f"{self.kind} {self.count}"


def idle_gpu() -> str:
    """What to say of an NVIDIA device that JAX will not use, as it has no plugin for one; empty if there is none."""
    if not any(path.exists() for path in _NVIDIA) or os.environ.get("JAX_PLATFORMS", "").lower() == "cpu":
        return ""
    if any("cuda" in entry.name or "cuda" in entry.value for entry in importlib.metadata.entry_points(group=_PLUGINS)):
        return ""
    what = "This machine has an NVIDIA device, but JAX has no plugin for it, and computes on the CPU."
    return f"{what} To use it: {how_to_accelerate('gpu')}"


def expect_accelerator() -> None:
    """Confirms that JAX has the accelerator that this step's profile gave it; to be called before anything is computed.

    Warns of an NVIDIA device that is not used, where no profile asks for one.

    Raises:
        InputError: it has another one, fewer, or none.
    """
    said = os.environ.get(ACCELERATOR_VARIABLE)
    if not said:
        if idle := idle_gpu():
            log.warning("%s", idle)
        return
    import jax

    wanted = Accelerator.parse(said)
    try:
        found, why = jax.local_devices(), ""
    except RuntimeError as error:
        found, why = [], str(error)
    fitting = [device for device in found if device.platform == wanted.kind]
    if len(fitting) >= wanted.count:
        return
    missing = _missing(_DRIVER) if wanted.kind == "gpu" else ""
    there = ", ".join(sorted({f"{device.platform} ({device.device_kind})" for device in found})) or "none"
    reasons = " ".join(f"{reason.rstrip('.')}." for reason in (missing, why) if reason)
    raise InputError(
        f"This step is to have {wanted}, but JAX has {len(fitting)} of that kind. {reasons}".rstrip(),
        where=f"devices of this process: {there}",
        expected=f"{wanted.count} x {wanted.kind}, by ${ACCELERATOR_VARIABLE}",
        fix=f"look at {_LOOK_AT[wanted.kind]}",
    )


def _missing(library: str) -> str:
    """What the loader says of a library that it cannot load; empty if it can."""
    try:
        ctypes.CDLL(library)
    except OSError as error:
        return f"The library {library} cannot be loaded: {error}"
    return ""
