"""How `etils.epath`, through which Orbax and JAX's compilation cache reach their files, is to reach `gs://`."""

from __future__ import annotations

import os


def reach_gcs_without_tensorflow() -> None:
    """Has epath use the plain object API, as all of ours does, and not TensorFlow where that happens to be installed.

    To be called before either library touches its first path: epath looks once a process, at a local path too.
    """
    os.environ.setdefault("EPATH_USE_TF", "false")
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
