"""Whether a step has the accelerator that its profile pays for: without one, JAX goes on with the CPU and a line in the log."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from paligemma.errors import InputError
from paligemma.extras import how_to_accelerate

log = logging.getLogger("paligemma.runtime.accelerator")

ACCELERATOR_VARIABLE = "PALIGEMMA_ACCELERATOR"
"""What a process is to have, as KIND COUNT: "gpu 1", "tpu 4". The images for accelerators say one of their kind, a pipeline's
profile how many. Unset or empty, a step takes what there is."""

_DRIVER = "libcuda.so.1"
"""NVIDIA's library that comes with a node, not with an image; what a TPU needs is all in the image."""
_NVIDIA = (Path("/proc/driver/nvidia/version"), Path("/dev/nvidiactl"), Path("/dev/dxg"))
"""What the driver makes when it finds a device: on Linux, and in the Windows Subsystem for Linux."""
_PLUGINS = "jax_plugins"
"""Group of entry points by which JAX finds what it can compute on, besides the CPU and TPUs."""
_TO_DO = {
    "gpu": "let $LD_LIBRARY_PATH name the folder of the driver, which GKE mounts at /usr/local/nvidia/lib64; a node pool has a "
    "driver only with gpu-driver-version=latest (or default)",
    "tpu": "use the image `tpu`, and a node pool whose topology is the profile's",
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
        if kind not in _TO_DO or not count.isdecimal() or int(count) < 1:
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
    told = os.environ.get(ACCELERATOR_VARIABLE)
    if not told:
        if idle := idle_gpu():
            log.warning("%s", idle)
        return
    import jax

    wanted = Accelerator.parse(told)
    complaints = _Complaints()
    with complaints.heard():
        try:
            found = jax.local_devices()
        except RuntimeError as error:
            found = []
            complaints.said.append(str(error))
    fitting = [device for device in found if device.platform == wanted.kind]
    if len(fitting) >= wanted.count:
        for said in complaints.said:  # of what this step does not need
            log.warning("%s", said)
        return
    missing = _missing(_DRIVER) if wanted.kind == "gpu" else ""
    there = ", ".join(sorted({f"{device.platform} ({device.device_kind})" for device in found})) or "none"
    reasons = " ".join(f"{reason.rstrip('.')}." for reason in (missing, *complaints.said) if reason)
    raise InputError(
        f"This step is to have {wanted}, but JAX has {len(fitting)} of that kind. {reasons}".rstrip(),
        where=f"devices of this process: {there}",
        expected=f"{wanted.count} x {wanted.kind}, by ${ACCELERATOR_VARIABLE}",
        fix=_TO_DO[wanted.kind],
    )


class _Complaints(logging.Filter):
    """What JAX says of a plugin that does not start: it logs a traceback, and goes on with the CPU.

    Attributes:
        said: one sentence for each.
    """

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def filter(self, record: logging.LogRecord) -> bool:
        """Takes a record that has a traceback, and lets every other one pass."""
        if not record.exc_info or record.exc_info[1] is None:
            return True
        self.said.append(str(record.exc_info[1]))
        return False

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        """Listens to JAX."""
        logger = logging.getLogger("jax._src.xla_bridge")
        logger.addFilter(self)
        try:
            yield
        finally:
            logger.removeFilter(self)


def _missing(library: str) -> str:
    """What the loader says of a library that it cannot load; empty if it can."""
    try:
        ctypes.CDLL(library)
    except OSError as error:
        return f"The library {library} cannot be loaded: {error}"
    return ""
