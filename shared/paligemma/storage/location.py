"""Where something is: a local path, or a `gs://bucket/name` address."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from paligemma.errors import InputError

SCHEME = "gs://"


@dataclass(frozen=True)
class GcsLocation:
    """An object, or a prefix of objects, in Google Cloud Storage. `name` has no slash at either end."""

    bucket: str
    name: str

    def __str__(self) -> str:
        return f"{SCHEME}{self.bucket}/{self.name}"

    def __truediv__(self, name: str) -> GcsLocation:
        return GcsLocation(self.bucket, f"{self.name}/{name}" if self.name else name)


Location = Path | GcsLocation


def parse_location(text: str | Path | GcsLocation) -> Location:
    """A location from what a user wrote.

    Raises:
        InputError: a `gs://` address without a bucket, or one of a scheme that is not storage.
    """
    if isinstance(text, Path | GcsLocation):
        return text
    if text.startswith(SCHEME):
        bucket, _, name = text.removeprefix(SCHEME).partition("/")
        if not bucket:
            raise InputError(f"{text!r} names no bucket.", expected="gs://bucket/path")
        return GcsLocation(bucket, name.strip("/"))
    if "://" in text:
        raise InputError(
            f"{text!r} is not a place files can be read from or written to.", expected="a path, or gs://bucket/path"
        )
    return Path(text)


def absolute_uri(location: Location) -> str:
    """The location as a record names it."""
    return str(location.absolute()) if isinstance(location, Path) else str(location)
