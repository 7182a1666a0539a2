"""Records as a `tf.data.Dataset`, for your own code with TensorFlow's input pipeline. No step imports this module."""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING

from paligemma.data.records import Records
from paligemma.errors import InputError

if TYPE_CHECKING:
    import tensorflow as tf


def tf_dataset(records: Records) -> tf.data.Dataset:
    """The rows of records, in order, each a dictionary of tensors.

    Returns:
        Per row: `image` (uint8 `[size, size, 3]`; with several images in a row `[n, size, size, 3]`), `tokens` (int64 `[t]`),
        `prefix_length` and `suffix_length` (tokens), `prefix`, `suffix`, `row_id` (strings), `answers` (strings `[n]`, empty if
        the suffix is the only one), `masks` (a JSON text of true masks, empty without any), `line`.

    Raises:
        InputError: TensorFlow is not installed.
    """
    tf = import_tensorflow()
    shape, count = records.dataset.image_shape, records.dataset.images_per_example
    several, one_int, one_text = (
        tf.io.RaggedFeature(tf.int64),
        tf.io.FixedLenFeature((), tf.int64),
        tf.io.FixedLenFeature((), tf.string),
    )
    spec = {
        "image": tf.io.FixedLenFeature((count,), tf.string),
        "tokens": several,
        "answers": tf.io.RaggedFeature(tf.string),
        "masks": tf.io.FixedLenFeature((), tf.string, ""),
        **dict.fromkeys(("prefix_length", "suffix_length", "line"), one_int),
        **dict.fromkeys(("prefix", "suffix", "row_id"), one_text),
    }

    def parse(record: tf.Tensor) -> dict[str, tf.Tensor]:
        row = tf.io.parse_single_example(record, spec)
        pictures = tf.stack([unpack(row["image"][number]) for number in range(count)])
        return {**row, "image": tf.reshape(pictures, shape)}

    def unpack(stored: tf.Tensor) -> tf.Tensor:
        if records.dataset.compression == "webp":
            return tf.io.decode_webp(stored, channels=3)  # of an animation's frames, of which there is one
        return tf.io.decode_raw(stored, tf.uint8)

    compression = "GZIP" if records.dataset.compression == "gzip" else None
    return tf.data.TFRecordDataset([str(path) for path in records.shard_paths], compression).map(parse)


@functools.cache
def import_tensorflow():
    """Imports `tensorflow` without its start-up messages, and hides every accelerator from it.

    Raises:
        InputError: TensorFlow is not installed.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # else it prints a notice about numerics that do not concern us
    try:
        import tensorflow as tf
    except ImportError:
        raise InputError("TensorFlow is not installed.", fix="install the project's extra 'tensorflow'") from None
    for kind in ("GPU", "TPU"):
        tf.config.set_visible_devices([], kind)
    return tf
