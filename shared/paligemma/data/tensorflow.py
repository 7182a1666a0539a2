"""TensorFlow, imported when it is used (seconds) and kept off the accelerators: it only reads and writes records."""

from __future__ import annotations

import functools
import os


@functools.cache
def import_tensorflow():
    """The `tensorflow` module, without its start-up chatter and with every accelerator hidden from it."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # or it prints a notice about numerics that do not concern us
    import tensorflow as tf

    for kind in ("GPU", "TPU"):
        tf.config.set_visible_devices([], kind)
    return tf
