"""Splits rows into training and validation data, by image, so that no picture is in both.

Rows that share a picture belong together, and so do the rows that share one with these, and so on.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from paligemma.data.image_source import ImageSource, open_images
from paligemma.data.jsonl_files import is_gzip, unpack
from paligemma.data.rows import Row, RowError, RowImage, read_rows
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


def split_rows(
    data: Path, images: Path | None, fraction: float, train: Path, validation: Path, images_per_example: int | None = 1
) -> tuple[int, int]:
    """Splits one file; see `split_files`. Returns the number of rows in each of the two files."""
    return split_files([SplitFile(data, images, train, validation)], fraction, images_per_example)[0]


def split_files(files: Sequence[SplitFile], fraction: float, images_per_example: int | None = 1) -> list[tuple[int, int]]:
    """Writes every line of each file, in order, to one of its two files. The images' bytes alone decide which.

    Lines that are not rows go to the training data, where prepare_data counts them.

    Args:
        files: the files. An image that is in several of them is on the same side in all.
        fraction: share of the images for validation; the validation data get at least one image, and each file's training data.
        images_per_example: number of images in every row; None: any.

    Returns:
        Number of rows in each of the two files that each file was split into.

    Raises:
        InputError: there are too few images for that; or every picture is in a row with another one, directly or over others.
    """
    with tempfile.TemporaryDirectory(prefix="paligemma-") as folder:
        groups: dict[str, set[str]] = {}
        keyed = []
        for number, file in enumerate(files):
            plain = file.data
            if is_gzip(file.data):
                plain = Path(folder) / f"rows{number}"
                unpack(file.data, plain)
            keyed.append((plain, _keys_of_lines(plain, file.images, images_per_example, groups)))
        held = set(_held(groups, fraction))
        for _, keys in keyed:
            if keys and set(keys.values()) <= held:
                held -= groups[max(keys.values())]
        if not held:
            what = f"{len(groups)} different images cannot be split by image"
            together = ": rows that share one belong together, and all rows do" if len(files) == 1 < len(groups) else ""
            apart = "rows of which some share no image with the others"
            raise InputError(
                f"{what}{together}.",
                where=", ".join(str(file.data) for file in files),
                expected=apart if together else "two at least" if len(files) == 1 else "more images than files",
                fix="add rows, or name a file of its own with --validation-data",
            )
        return [_write(file, plain, keys, held) for file, (plain, keys) in zip(files, keyed, strict=True)]


def _keys_of_lines(
    plain: Path, images: Path | None, images_per_example: int | None, groups: dict[str, set[str]]
) -> dict[int, str]:
    """The key of the first image of each line that is a row, by the line's number. Joins the groups of a row's images."""
    web = fetch_images(row for _, row in read_rows(plain, images=images_per_example) if isinstance(row, Row))
    source = None if images is None else open_images(images)
    first: dict[int, str] = {}
    keys: dict[str, str] = {}
    for number, row in read_rows(plain, images=images_per_example):
        if isinstance(row, Row):
            for image in row.images:
                keys[image.name] = keys.get(image.name) or _key(image, web, source)
            first[number] = keys[row.images[0].name]
            _join(groups, [keys[name] for name in row.names])
    return first


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


def _join(groups: dict[str, set[str]], keys: Sequence[str]) -> None:
    """Joins the groups of images that a row has. `groups` has each image's group, the same set for all images in it."""
    joined = max((groups.setdefault(key, {key}) for key in keys), key=len)
    for key in keys:
        if (other := groups[key]) is not joined:
            joined |= other
            groups.update(dict.fromkeys(other, joined))


def _held(groups: Mapping[str, set[str]], fraction: float) -> set[str]:
    """The keys of about this share of the images, in whole groups: at least one group, not all. Empty if there is but one."""
    distinct = list({id(group): group for group in groups.values()}.values())
    if len(distinct) < 2:
        return set()
    most = min(max(1, round(fraction * len(groups))), len(groups) - 1)
    held: set[str] = set()
    for group in sorted(distinct, key=min):
        if len(held) + len(group) <= most:
            held |= group
    return held or min(distinct, key=lambda group: (len(group), min(group)))


def _key(image: RowImage, web: Mapping[str, WebImage], images: ImageSource | None) -> str:
    """Key of an image. Hashed, so that the order of keys is independent of the order of names."""
    name = image.name
    if name in web:
        return web[name].sha256 or hashlib.sha256(name.encode()).hexdigest()
    content = image.inline or name.encode()
    if images is not None and image.inline is None and not name.startswith(SCHEME):
        with contextlib.suppress(RowError):
            content = images.read(name)
    return hashlib.sha256(content).hexdigest()
