"""Records as a `tf.data.Dataset`, against our own reader; and that no step needs TensorFlow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from conftest import ONE_DEVICE
from paligemma.data.records import open_records
from paligemma.data.tf_dataset import import_tensorflow, tf_dataset
from paligemma.data.tfrecord import RowReader


def test_a_dataset_holds_what_our_reader_reads(records: Path) -> None:
    opened = open_records(records)
    reader = RowReader(opened)
    rows = list(tf_dataset(opened).as_numpy_iterator())
    assert len(rows) == len(reader) == 21
    for number, row in enumerate(rows):
        ours = reader.read(number)
        np.testing.assert_array_equal(row["image"], ours.image)
        assert row["tokens"].tolist() == ours.tokens.tolist()
        assert (row["prefix"].decode(), row["suffix"].decode(), row["line"]) == (ours.prefix, ours.suffix, ours.line)
        assert row["prefix_length"] + row["suffix_length"] == len(ours.tokens)
        assert tuple(answer.decode() for answer in row["answers"]) == ours.answers


def test_tensorflow_sees_no_accelerator() -> None:
    assert {device.device_type for device in import_tensorflow().config.get_visible_devices()} == {"CPU"}


def test_training_and_evaluating_import_no_tensorflow(records: Path, tmp_path: Path) -> None:
    code = """
import sys
records, tuned, evaluation = sys.argv[1:]
sys.modules["tensorflow"] = None  # importing it fails from here on
from components.evaluate.__main__ import run as evaluate
from components.finetune.__main__ import run as finetune
finetune(checkpoint="embedded:tiny", records=records, output=tuned, set_=["steps=1", "batch_size=2"])
evaluate(checkpoint="embedded:tiny", tuned=tuned, records=records, output=evaluation, max_new_tokens=2)
"""
    command = [sys.executable, "-c", code, str(records), str(tmp_path / "tuned"), str(tmp_path / "evaluation")]
    result = subprocess.run(command, env=ONE_DEVICE, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
