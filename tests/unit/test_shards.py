"""Shards as they are written, judged by TensorFlow."""

from __future__ import annotations

import dataclasses
import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paligemma.artifacts.record import file_sha256
from paligemma.data.records import Example
from paligemma.data.shards import ShardWriter, serialize
from paligemma.data.tf_dataset import import_tensorflow


def example(prefix: str = "p", ids: tuple[int, ...] = (2, 5), line: int = 1) -> Example:
    image = np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8)
    return Example((image.tobytes(),), list(ids), [300, 257_151, 1], prefix, "s", ("a.png",), ("0" * 64,), "1" * 64, line)


@settings(max_examples=10)
@given(st.text(st.characters(exclude_categories=["Cs"])), st.lists(st.integers(0, 2**40)), st.integers(1, 2**62))
def test_an_example_is_what_tensorflow_would_write(prefix: str, ids: list[int], line: int) -> None:
    one = example(prefix, tuple(ids), line)
    tf = import_tensorflow()
    features = {
        key: tf.train.Feature(int64_list=tf.train.Int64List(value=value))
        if isinstance(value, list)
        else tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
        for key, value in {
            "image": one.images[0],
            "image_file": b"a.png",
            "image_sha256": b"0" * 64,
            "line": [line],
            "prefix": prefix.encode(),
            "prefix_length": [len(ids)],
            "row_id": b"1" * 64,
            "suffix": b"s",
            "suffix_length": [3],
            "tokens": [*ids, 300, 257_151, 1],
        }.items()
    }
    expected = tf.train.Example(features=tf.train.Features(feature=features))
    assert tf.train.Example.FromString(serialize(one)) == expected
    assert len(serialize(one)) == expected.ByteSize()
    for name, values in (("answers", [b"a", b"b"]), ("masks", b"[1]")):
        expected.features.feature[name].bytes_list.value.extend(values if isinstance(values, list) else [values])
    more = serialize(dataclasses.replace(one, answers=("a", "b"), masks="[1]"))
    assert tf.train.Example.FromString(more) == expected
    assert len(more) == expected.ByteSize()


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_a_shard_is_a_tfrecord_file_and_describes_itself(tmp_path: Path, compression: str) -> None:
    written = [example(line=line) for line in range(1, 4)]
    with ShardWriter(tmp_path / "x", compression) as shard:
        for one in written:
            shard.write(one)
    tf = import_tensorflow()
    kind = "GZIP" if compression == "gzip" else None
    assert list(tf.data.TFRecordDataset(str(tmp_path / "x"), kind).as_numpy_iterator()) == [serialize(one) for one in written]
    description = shard.shard
    assert (description.file, description.rows, description.bytes) == ("x", 3, (tmp_path / "x").stat().st_size)
    assert description.sha256 == file_sha256(tmp_path / "x")


def test_a_gzip_shard_has_the_same_bytes_every_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, now in (("a", 1.0), ("b", 2e9)):
        monkeypatch.setattr(gzip.time, "time", lambda now=now: now)
        with ShardWriter(tmp_path / name, "gzip") as shard:
            shard.write(example())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
