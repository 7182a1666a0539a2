"""Where the steps of a pipeline share compiled programs: ROOT/compiled, if the root is in Cloud Storage.

A pod is a fresh machine, and a step of PaliGemma-3B compiles for minutes. JAX's own key of a program has the versions of JAX
and of the compiler, the accelerator and the options. It lacks what the processor can do, for which XLA compiles on a CPU: such
a program may crash on an older one. So each image and each kind of processor has a folder of its own.

What `preflight` compiles for absent hardware is not handed over. JAX 0.10 does write such a program to its cache (seen with
libtpu 0.0.42 and a v5e that is not there), under a key with the topology. But preflight compiles with little effort, which
makes another key, and with all of it a 3B step takes the time that is to be saved. Whether a TPU takes the entry was never
tried.

Whoever can write there runs code in later steps. So nothing is shared where records are signed, as then nobody who writes below
the root is trusted. On a disk, the cache folder of this machine serves all runs already.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

from paligemma.artifacts.record import canonical_sha256
from paligemma.artifacts.recording import RUN_VARIABLE, attempt_under_way, is_planning
from paligemma.artifacts.signing import KEY_VARIABLE
from paligemma.storage.location import GcsLocation

FOLDER = "compiled"


def shared_programs() -> str:
    """The prefix of compiled programs for the current attempt; empty if it shares none, as one that is only planned."""
    attempt = attempt_under_way()
    if is_planning() or attempt is None or not isinstance(attempt.root, GcsLocation) or os.environ.get(KEY_VARIABLE):
        return ""
    if not (attempt.in_pipeline or os.environ.get(RUN_VARIABLE)):  # the latter on the machines of a job that a step has made
        return ""
    machine = [os.environ.get("PALIGEMMA_IMAGE"), platform.machine(), _processor_features()]
    return str(attempt.root / FOLDER / canonical_sha256(machine)[:16])


def _processor_features() -> list[str]:
    """What this machine's processor can do, as Linux names it; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    return sorted({word for line in lines if line.lower().startswith(("flags", "features")) for word in line.split()[2:]})
