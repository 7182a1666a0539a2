"""Writes a shard: examples as `tf.train.Example` in a TFRecord file. Encoded here, because TensorFlow takes seconds to import.

The formats: tensorflow/core/example/example.proto, and tensorflow/core/lib/io/record_writer.h.
"""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path
from types import TracebackType

import google_crc32c

from paligemma.choices import Compression
from paligemma.data.records import Example, Shard
from paligemma.data.tfrecord import FOOTER, HEADER, mask
from paligemma.regular_files import open_regular

_BLOCK = 1 << 20
_SMALL = [bytes((value,)) for value in range(128)]

_Pieces = list[bytes]
"""Pieces of bytes, joined once at the end: fields are nested, and joining at each level would copy the image."""


class ShardWriter:
    """Writes one shard; equal examples give equal bytes. After closing, `shard` and `crc32c` describe the file."""

    shard: Shard
    crc32c: str

    def __init__(self, path: Path, compression: Compression) -> None:
        """Creates the file, and replaces an existing one."""
        self._path, self._rows = path, 0
        path.unlink(missing_ok=True)  # it may be linked to the shard of an earlier run, which must not change
        self._file = path.open("wb", buffering=_BLOCK)
        self._hashed = _Hashed(self._file)
        # Neither name nor time goes into the gzip header.
        self._out = gzip.GzipFile("", "wb", 6, self._hashed, mtime=0) if compression == "gzip" else self._hashed

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        try:
            if kind is None:
                if isinstance(self._out, gzip.GzipFile):
                    self._out.close()
                digest = self._hashed.digest.hexdigest()
                self.crc32c = f"{self._hashed.crc32c:08x}"
                self.shard = Shard(file=self._path.name, rows=self._rows, bytes=self._file.tell(), sha256=digest)
        finally:
            self._file.close()

    def write(self, example: Example) -> tuple[int, str]:
        """Appends an example. Returns the size of its payload in bytes, and the payload's crc32c in hexadecimal."""
        payload = serialize(example)
        length = HEADER.pack(len(payload), 0)[:8]
        checksum = google_crc32c.value(payload)
        self._out.write(HEADER.pack(len(payload), mask(google_crc32c.value(length))))
        self._out.write(payload)
        self._out.write(FOOTER.pack(mask(checksum)))
        self._rows += 1
        return len(payload), f"{checksum:08x}"


def serialize(example: Example) -> bytes:
    """An example as the bytes of a `tf.train.Example`, with features sorted by name."""
    answers = [(b"answers", _bytes(*(answer.encode() for answer in example.answers)))] if example.answers else []
    masks = [(b"masks", _bytes(example.masks.encode()))] if example.masks else []
    features = [
        *answers,
        (b"image", _bytes(*example.images)),
        (b"image_file", _bytes(*(name.encode() for name in example.image_files))),
        (b"image_sha256", _bytes(*(sha256.encode() for sha256 in example.image_sha256s))),
        (b"line", _ints([example.line])),
        *masks,
        (b"prefix", _bytes(example.prefix.encode())),
        (b"prefix_length", _ints([len(example.prefix_ids)])),
        (b"row_id", _bytes(example.row_id.encode())),
        (b"suffix", _bytes(example.suffix.encode())),
        (b"suffix_length", _ints([len(example.suffix_ids)])),
        (b"tokens", _ints(example.prefix_ids + example.suffix_ids)),
    ]
    record = []
    for name, value in features:
        record += _field(b"\x0a", [*_field(b"\x0a", [name]), *_field(b"\x12", value)])
    return b"".join(_field(b"\x0a", record))


def _bytes(*values: bytes) -> _Pieces:
    return _field(b"\x0a", [piece for value in values for piece in (b"\x0a", _varint(len(value)), value)])


def _ints(values: list[int]) -> _Pieces:
    packed = b"".join(map(_varint, values))
    return _field(b"\x1a", [b"\x0a", _varint(len(packed)), packed])


def _field(tag: bytes, payload: _Pieces) -> _Pieces:
    """A length-delimited field of a protocol buffer; its tag is its number times 8, plus 2."""
    return [tag, _varint(sum(map(len, payload))), *payload]


def _varint(value: int) -> bytes:
    if value < 128:
        return _SMALL[value]
    parts = bytearray()
    while value >= 128:
        parts.append(value & 127 | 128)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def file_crc32c(path: Path) -> str:
    """crc32c of a shard's file, in hexadecimal: finds damage in a quarter of the time of a hash.

    Raises:
        OSError: the file cannot be read.
    """
    value = 0
    with open_regular(path) as file:
        while block := file.read(_BLOCK):
            value = google_crc32c.extend(value, block)
    return f"{value:08x}"


class _Hashed:
    """A file that hashes what is written, which saves reading it again."""

    def __init__(self, file) -> None:
        self._file, self.digest, self.crc32c = file, hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        self.crc32c = google_crc32c.extend(self.crc32c, data)
        self.digest.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()
