"""Writing a shard: examples as `tf.train.Example` in a TFRecord file, encoded here, because TensorFlow takes seconds to import.

The formats: tensorflow/core/example/example.proto, and tensorflow/core/lib/io/record_writer.h.
"""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path
from types import TracebackType

import numpy as np

from paligemma.data.records import Compression, Example, Shard
from paligemma.data.tfrecord import FOOTER, HEADER, masked_crc32c


class ShardWriter:
    """Writes one shard; equal examples give equal bytes. `shard` describes it once it is closed."""

    shard: Shard

    def __init__(self, path: Path, compression: Compression) -> None:
        """Begins the file, in place of what is there."""
        self._path, self._rows = path, 0
        self._file = path.open("wb")
        self._hashed = _Hashed(self._file)
        # Neither name nor time goes into the gzip header.
        self._out = gzip.GzipFile("", "wb", 6, self._hashed, mtime=0) if compression == "gzip" else self._hashed

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        try:
            if kind is None:
                if self._out is not self._hashed:
                    self._out.close()
                digest = self._hashed.digest.hexdigest()
                self.shard = Shard(file=self._path.name, rows=self._rows, bytes=self._file.tell(), sha256=digest)
        finally:
            self._file.close()

    def write(self, example: Example) -> None:
        """Appends an example."""
        payload = serialize(example)
        length = HEADER.pack(len(payload), 0)[:8]
        self._out.write(HEADER.pack(len(payload), masked_crc32c(length)) + payload + FOOTER.pack(masked_crc32c(payload)))
        self._rows += 1


def serialize(example: Example) -> bytes:
    """An example as a `tf.train.Example`, with its features in the order of their names."""
    several = {"answers": _bytes(*(answer.encode() for answer in example.answers))} if example.answers else {}
    features = {
        **several,
        "image": _bytes(np.ascontiguousarray(example.image).tobytes()),
        "image_file": _bytes(example.image_file.encode()),
        "image_sha256": _bytes(example.image_sha256.encode()),
        "line": _ints([example.line]),
        "prefix": _bytes(example.prefix.encode()),
        "prefix_length": _ints([len(example.prefix_ids)]),
        "row_id": _bytes(example.row_id.encode()),
        "suffix": _bytes(example.suffix.encode()),
        "suffix_length": _ints([len(example.suffix_ids)]),
        "tokens": _ints(example.prefix_ids + example.suffix_ids),
    }
    entries = (_field(1, _field(1, name.encode()) + _field(2, value)) for name, value in features.items())
    return _field(1, b"".join(entries))


def _bytes(*values: bytes) -> bytes:
    return _field(1, b"".join(_field(1, value) for value in values))  # Feature.bytes_list.value


def _ints(values: list[int]) -> bytes:
    return _field(3, _field(1, b"".join(map(_varint, values))))  # Feature.int64_list.value, packed


def _field(number: int, payload: bytes) -> bytes:
    """A length-delimited field of a protocol buffer."""
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def _varint(value: int) -> bytes:
    if value < 128:
        return bytes((value,))
    parts = bytearray()
    while value >= 128:
        parts.append(value & 127 | 128)
        value >>= 7
    parts.append(value)
    return bytes(parts)


class _Hashed:
    """A file that hashes what is written to it, which saves reading it again."""

    def __init__(self, file) -> None:
        self._file, self.digest = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()
