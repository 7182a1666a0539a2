"""Splits rows into training and validation data, by image, so that no picture is in both."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from paligemma.data.image_source import ImageSource, open_images
from paligemma.data.jsonl_files import is_gzip, unpack
from paligemma.data.rows import Row, RowError, read_rows
from paligemma.data.web_images import WebImage, fetch_images
from paligemma.errors import InputError
from paligemma.storage.atomic import write_file
from paligemma.storage.location import SCHEME


@dataclass(frozen=True)
class SplitFile:
    """A JSONL file to split.

    Attributes:
        data: the file, plain or gzip; may be the same path as `train`.
        images: the folder that image names are relative to; None if it is not on this machine. An image that is unreadable,
            in Cloud Storage or outside the folder is identified by its name. Those on the web are fetched.
        train, validation: the files to write.
    """

    data: Path
    images: Path | None
    train: Path
    validation: Path


def split_rows(data: Path, images: Path | None, fraction: float, train: Path, validation: Path) -> tuple[int, int]:
    """Splits one file; see `split_files`. Returns the number of rows in each of the two files."""
    return split_files([SplitFile(data, images, train, validation)], fraction)[0]


def split_files(files: Sequence[SplitFile], fraction: float) -> list[tuple[int, int]]:
    """Writes every line of each file, in order, to one of its two files. The image's bytes alone decide which.

    Lines that are not rows go to the training data, where prepare_data counts them.

    Args:
        files: the files. An image that is in several of them is on the same side in all.
        fraction: share of the images for validation; the validation data get at least one image, and each file's training data.

    Returns:
        Number of rows in each of the two files that each file was split into.

    Raises:
        InputError: there are too few images for that.
    """
    with tempfile.TemporaryDirectory(prefix="paligemma-") as folder:
        keyed = []
        for number, file in enumerate(files):
            plain = file.data
            if is_gzip(file.data):
                plain = Path(folder) / f"rows{number}"
                unpack(file.data, plain)
            keyed.append((plain, _keys_of_lines(plain, file.images)))
        ordered = sorted({key for _, keys in keyed for key in keys.values()})
        held = set(ordered[: min(max(1, round(fraction * len(ordered))), len(ordered) - 1)]) if ordered else set()
        for _, keys in keyed:
            if keys and (own := set(keys.values())) <= held:
                held.remove(max(own))
        if not held:
            raise InputError(
                f"{len(ordered)} different images cannot be split by image.",
                where=", ".join(str(file.data) for file in files),
                expected="two at least" if len(files) == 1 else "more images than files",
                fix="add rows, or name a file of its own with --validation-data",
            )
        return [_write(file, plain, keys, held) for file, (plain, keys) in zip(files, keyed, strict=True)]


def _keys_of_lines(plain: Path, images: Path | None) -> dict[int, str]:
    """The key of the image of each line that is a row, by the line's number."""
    web = fetch_images(row for _, row in read_rows(plain) if isinstance(row, Row))
    source = None if images is None else open_images(images)
    names: dict[int, str] = {}
    keys: dict[str, str] = {}
    for number, row in read_rows(plain):
        if isinstance(row, Row):
            names[number] = row.image
            keys[row.image] = keys.get(row.image) or _key(row, web, source)
    return {number: keys[name] for number, name in names.items()}


def _write(file: SplitFile, plain: Path, keys: Mapping[int, str], held: Collection[str]) -> tuple[int, int]:
    with plain.open("rb") as opened:
        lines = opened.read().split(b"\n")
    parts: tuple[list[bytes], list[bytes]] = ([], [])
    for number, line in enumerate(lines, 1):
        if line.strip():
            parts[keys.get(number) in held].append(line + b"\n")
    for path, part in zip((file.train, file.validation), parts, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, b"".join(part))
    return len(parts[0]), len(parts[1])


def _key(row: Row, web: Mapping[str, WebImage], images: ImageSource | None) -> str:
    """Key of an image. Hashed, so that the order of keys is independent of the order of names."""
    if row.image in web:
        return web[row.image].sha256 or hashlib.sha256(row.image.encode()).hexdigest()
    content = row.inline or row.image.encode()
    if images is not None and row.inline is None and not row.image.startswith(SCHEME):
        with contextlib.suppress(RowError):
            content = images.read(row.image)
    return hashlib.sha256(content).hexdigest()
