"""Checks that a step has the accelerator that its profile pays for: without one, JAX continues on the CPU with a log line."""

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
"""The accelerator that a process should have, as KIND COUNT: "gpu 1", "tpu 4". Images for accelerators set a count of one, and
a pipeline's profile sets the real count. Unset or empty: a step takes what it finds.
"""

_DRIVER = "libcuda.so.1"
"""NVIDIA's driver library, which comes with a node, not an image. For TPUs, the image contains everything."""
_NVIDIA = (Path("/proc/driver/nvidia/version"), Path("/dev/nvidiactl"), Path("/dev/dxg"))
"""Files that the driver creates for a device: on Linux, and in the Windows Subsystem for Linux."""
_PLUGINS = "jax_plugins"
"""Entry point group in which JAX finds platforms other than CPU and TPU."""
_TO_DO = {
    "gpu": "let $LD_LIBRARY_PATH name the folder of the driver, which GKE mounts at /usr/local/nvidia/lib64; a node pool has a "
    "driver only with gpu-driver-version=latest (or default)",
    "tpu": "use the image `tpu`, and a node pool whose topology is the profile's",
}


@dataclass(frozen=True)
class Accelerator:
    """The accelerator that a process should have.

    Attributes:
        kind: JAX's platform name.
        count: number of devices that this process should see.
    """

    kind: str
    count: int

    @classmethod
    def parse(cls, text: str) -> Accelerator:
        """Parses `KIND COUNT`; raises InputError for other texts."""
        kind, _, count = text.partition(" ")
        if kind not in _TO_DO or not count.isdecimal() or int(count) < 1:
            raise InputError(f"{text!r} is not an accelerator.", where=f"${ACCELERATOR_VARIABLE}", expected="gpu 1, tpu 4, ...")
        return cls(kind, int(count))

    def __str__(self) -> str:
        return f"{self.kind} {self.count}"


def idle_gpu() -> str:
    """A warning if JAX lacks the plugin for an NVIDIA device that is present; else empty."""
    if not any(path.exists() for path in _NVIDIA) or os.environ.get("JAX_PLATFORMS", "").lower() == "cpu":
        return ""
    if any("cuda" in entry.name or "cuda" in entry.value for entry in importlib.metadata.entry_points(group=_PLUGINS)):
        return ""
    what = "This machine has an NVIDIA device, but JAX has no plugin for it, and computes on the CPU."
    return f"{what} To use it: {how_to_accelerate('gpu')}"


def expect_accelerator() -> None:
    """Confirms that JAX has the accelerator in this step's profile. Call before any computation.

    Without a profile, warns of an unused NVIDIA device.

    Raises:
        InputError: JAX has another accelerator, fewer devices, or none.
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
        for said in complaints.said:  # about platforms that this step does not need
            log.warning("%s", said)
        return
    missing = _missing(_DRIVER) if wanted.kind == "gpu" else ""
    there = ", ".join(sorted({f"{device.platform} ({device.device_kind})" for device in found})) or "none"
    reasons = " ".join(f"{reason.rstrip('.')}." for reason in (missing, *complaints.said) if reason)
    raise InputError(
        f"This step should have {wanted}, but JAX has {len(fitting)} of that kind. {reasons}".rstrip(),
        where=f"devices of this process: {there}",
        expected=f"{wanted.count} x {wanted.kind}, by ${ACCELERATOR_VARIABLE}",
        fix=_TO_DO[wanted.kind],
    )


class _Complaints(logging.Filter):
    """Collects JAX's log of plugins that fail to start: it logs a traceback, and continues on the CPU.

    Attributes:
        said: one sentence for each failure.
    """

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def filter(self, record: logging.LogRecord) -> bool:
        """Takes log records with a traceback, and lets others pass."""
        if not record.exc_info or record.exc_info[1] is None:
            return True
        self.said.append(str(record.exc_info[1]))
        return False

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        """Listens to JAX's log during the block."""
        logger = logging.getLogger("jax._src.xla_bridge")
        logger.addFilter(self)
        try:
            yield
        finally:
            logger.removeFilter(self)


def _missing(library: str) -> str:
    """The loader's message for a library that it cannot load; else empty."""
    try:
        ctypes.CDLL(library)
    except OSError as error:
        return f"The library {library} cannot be loaded: {error}"
    return ""
