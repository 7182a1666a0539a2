"""Locations: a local path, or a `gs://bucket/name` address. Other texts are refused while parsing.

A `GcsLocation` has the methods of a `Path` that need no request, under their names. `files` and `folders` read and write both.
So nobody else asks which of the two a location is, unless the two are told apart by what a user sees, or by what it costs.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from paligemma.errors import InputError
from paligemma.safe_names import address_fault, parse_relative_path, shown

SCHEME = "gs://"
_BUCKET = re.compile(r"[a-z0-9]([a-z0-9._-]{0,220}[a-z0-9])?")  # cloud.google.com/storage/docs/buckets#naming


@dataclass(frozen=True)
class GcsLocation:
    """An object, or a prefix of objects, in Google Cloud Storage. `name` has no slash at either end."""

    bucket: str
    name: str

    def __str__(self) -> str:
        return f"{SCHEME}{self.bucket}/{self.name}"

    def __truediv__(self, name: str) -> GcsLocation:
        return GcsLocation(self.bucket, f"{self.name}/{name}" if self.name else name)

    @property
    def parent(self) -> GcsLocation:
        """The prefix that it is in; a bucket's is itself."""
        return GcsLocation(self.bucket, self.name.rpartition("/")[0])

    def absolute(self) -> GcsLocation:
        """Itself."""
        return self


Location = Path | GcsLocation


def parse_location(text: str | Path | GcsLocation) -> Location:
    """Parses a location from a user or a record.

    Raises:
        InputError: a `gs://` address lacks a bucket or has a part such as `..`; the scheme is not storage; or a path has
            control characters.
    """
    if isinstance(text, Path | GcsLocation):
        return text
    if text and (fault := address_fault(text)):
        raise InputError(f"{shown(text)} is not a location: {fault}.", expected="a path, or gs://bucket/path")
    if text.startswith(SCHEME):
        bucket, _, name = text.removeprefix(SCHEME).partition("/")
        if not _BUCKET.fullmatch(bucket):
            raise InputError(f"{text!r} names no bucket.", expected="gs://bucket/path")
        name = name.strip("/")
        return GcsLocation(bucket, parse_relative_path(name, "The name in the bucket", where=text) if name else "")
    if "://" in text:
        raise InputError(
            f"{text!r} is not a place files can be read from or written to.", expected="a path, or gs://bucket/path"
        )
    return Path(text)


def absolute_uri(location: Location) -> str:
    """The location as text for a record."""
    return str(location.absolute())


def relative_way(start: Location, end: Location) -> str | None:
    """The relative path from one location to another; None if they are not on one disk or in one bucket."""
    if isinstance(start, GcsLocation) and isinstance(end, GcsLocation):
        return os.path.relpath(f"/{end.name}", f"/{start.name}") if start.bucket == end.bucket else None
    return os.path.relpath(end.absolute(), start.absolute()) if isinstance(start, Path) and isinstance(end, Path) else None


def follow(start: Location, way: str) -> Location:
    """The location at the end of a relative path, which may have `..`."""
    if isinstance(start, GcsLocation):
        return parse_location(f"{SCHEME}{start.bucket}{os.path.normpath(f'/{start.name}/{way}')}")
    return Path(os.path.normpath(start.absolute() / way))
