"""Pictures of an earlier preparation, found by the bytes of their files: what was decoded once is not decoded again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from google.protobuf.message import DecodeError

from paligemma.data.tf_example import TFExample
from paligemma.data.tfrecord import TFRecordFile
from paligemma.errors import DamagedError


@dataclass(frozen=True)
class Seen:
    """What was found under an image's name: a line of `images.jsonl`.

    Attributes:
        image_file: the name, as rows have it.
        image_sha256, bytes, crc32c: hash, size and checksum of the file; the checksum is as Cloud Storage writes it.
        fault: why there is no file to read; empty if there is one.
    """

    image_file: str
    image_sha256: str = ""
    bytes: int = 0
    crc32c: str = ""
    fault: str = ""

    def entry(self) -> dict:
        """The line's JSON value."""
        if self.fault:
            return {"image_file": self.image_file, "fault": self.fault}
        return {
            "image_file": self.image_file,
            "image_sha256": self.image_sha256,
            "bytes": self.bytes,
            "crc32c": self.crc32c,
        }

    @classmethod
    def of_entry(cls, entry: Mapping) -> Seen:
        """The image of a line.

        Raises:
            TypeError: the line has other fields, or values of other types.
        """
        seen = cls(**entry)
        texts = (seen.image_file, seen.image_sha256, seen.crc32c, seen.fault)
        if not isinstance(seen.bytes, int) or not all(isinstance(text, str) for text in texts):
            raise TypeError("a value is of another type")
        return seen

    @property
    def mark(self) -> str:
        """The image's mark when it was looked at; see `image_source.image_marks`."""
        return self.fault or f"{self.bytes} {self.crc32c}"


class Place(NamedTuple):
    """Where the pixels of an image are: shard, row in it and image of it, from 0; and their difference hash."""

    shard: int
    row: int
    image: int
    dhash: int


@dataclass(frozen=True)
class KeptPictures:
    """Pictures that an earlier preparation with the same settings decoded without a warning.

    Attributes:
        known: by name: images that are known to be the same as then, without reading them.
        places: by sha256: where the pixels are.
        shards: by number: the shard's file, and its number of rows.
    """

    known: Mapping[str, Seen] = field(default_factory=dict)
    places: Mapping[str, Place] = field(default_factory=dict)
    shards: Mapping[int, tuple[Path, int]] = field(default_factory=dict)
    _open: dict[int, TFRecordFile] = field(default_factory=dict)  # opened where they are read: a process passes on none

    def without_reading(self, name: str) -> Seen | None:
        """The image, if its file need not be read because its bytes are known, and its pixels are kept."""
        seen = self.known.get(name)
        return seen if seen is not None and seen.image_sha256 in self.places else None

    def find(self, sha256: str) -> tuple[bytes, int] | None:
        """An image as stored, and its difference hash; None if it is not kept, or damaged."""
        place = self.places.get(sha256)
        if place is None:
            return None
        if place.shard not in self._open:
            self._open[place.shard] = TFRecordFile(*self.shards[place.shard], "run prepare_data again")
        try:
            picture = read_pictures(self._open[place.shard], place.row)[place.image]
        except (DamagedError, IndexError):
            return None
        return (picture.stored, place.dhash) if picture.sha256 == sha256 else None


class StoredPicture(NamedTuple):
    """A picture of a row as stored, and the name and sha256 of the image file."""

    stored: bytes
    name: str
    sha256: str


def read_pictures(shard: TFRecordFile, row: int) -> list[StoredPicture]:
    """The pictures of a row.

    Raises:
        DamagedError: the record is damaged.
    """
    payload = shard.read(row)
    try:
        feature = TFExample.FromString(payload).features.feature
        values = (feature[name].bytes_list.value for name in ("image", "image_file", "image_sha256"))
        return [StoredPicture(stored, name.decode(), sha256.decode()) for stored, name, sha256 in zip(*values, strict=True)]
    except (DecodeError, ValueError, IndexError) as error:
        raise DamagedError(f"A record is not a row: {error}.", where=shard.path) from None
