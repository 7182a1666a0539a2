"""Sets how `etils.epath`, which Orbax and JAX's compilation cache use for files, reaches `gs://`."""

from __future__ import annotations

import os


def reach_gcs_without_tensorflow() -> None:
    """Makes epath use the plain object API, like our own code, and not TensorFlow if that happens to be installed.

    Call before either library touches its first path, even a local one: epath decides once per process.
    """
    os.environ.setdefault("EPATH_USE_TF", "false")
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
