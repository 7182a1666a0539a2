"""Splits rows into training and validation data, by image, so that no picture is in both."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Mapping
from pathlib import Path

from paligemma.data.image_source import ImageSource, open_images
from paligemma.data.jsonl_files import is_gzip, unpack
from paligemma.data.rows import Row, RowError, read_rows
from paligemma.data.web_images import WebImage, fetch_images
from paligemma.errors import InputError
from paligemma.storage.atomic import write_file
from paligemma.storage.location import SCHEME


def split_rows(data: Path, images: Path | None, fraction: float, train: Path, validation: Path) -> tuple[int, int]:
    """Writes every line of a JSONL file, in order, to one of two files. The image's bytes alone decide which.

    Lines that are not rows go to the training data, where prepare_data counts them.

    Args:
        data: the file, plain or gzip; may be the same path as `train`.
        images: the folder that image names are relative to; None if it is not on this machine. An image that is unreadable,
            in Cloud Storage or outside the folder is identified by its name. Those on the web are fetched.
        fraction: share of the images for validation; each side gets at least one image.
        train, validation: the files to write.

    Returns:
        Number of rows in each file.

    Raises:
        InputError: there are fewer than two images.
    """
    with tempfile.TemporaryDirectory(prefix="paligemma-") as folder:
        plain = data
        if is_gzip(data):
            plain = Path(folder) / "rows"
            unpack(data, plain)
        web = fetch_images(row for _, row in read_rows(plain) if isinstance(row, Row))
        source = None if images is None else open_images(images)
        names: dict[int, str] = {}
        keys: dict[str, str] = {}
        for number, row in read_rows(plain):
            if isinstance(row, Row):
                names[number] = row.image
                keys[row.image] = keys.get(row.image) or _key(row, web, source)
        ordered = sorted(set(keys.values()))
        if len(ordered) < 2:
            raise InputError(
                f"{len(ordered)} different images cannot be split by image.",
                where=data,
                expected="two at least",
                fix="add rows, or name a file of its own with --validation-data",
            )
        held = set(ordered[: min(max(1, round(fraction * len(ordered))), len(ordered) - 1)])
        chosen = {number for number, name in names.items() if keys[name] in held}
        with plain.open("rb") as file:
            lines = file.read().split(b"\n")
    parts: tuple[list[bytes], list[bytes]] = ([], [])
    for number, line in enumerate(lines, 1):
        if line.strip():
            parts[number in chosen].append(line + b"\n")
    for path, part in zip((train, validation), parts, strict=True):
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
