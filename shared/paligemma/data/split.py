"""Splits rows into training and validation data, by image, so that no picture is in both."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from pathlib import Path

from paligemma.data.image_source import ImageSource, open_images
from paligemma.data.rows import Row, RowError, is_gzip, read_rows, unpack
from paligemma.errors import InputError
from paligemma.storage.atomic import write_file


def split_rows(data: Path, images: Path | None, fraction: float, train: Path, validation: Path) -> tuple[int, int]:
    """Writes every line of a JSONL file, in order, to one of two files. The image's bytes alone decide which.

    Lines that are not rows go to the training data, where prepare_data counts them.

    Args:
        data: the file, plain or gzip; may be the same path as `train`.
        images: the folder that image names are relative to; None if it is not on this machine. An image that is unreadable or
            outside the folder is identified by its name.
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
        names = {number: row.image for number, row in read_rows(plain) if isinstance(row, Row)}
        source = None if images is None else open_images(images)
        keys = {name: _key(name, source) for name in dict.fromkeys(names.values())}
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


def _key(name: str, images: ImageSource | None) -> str:
    """Key of an image. Hashed, so that the order of keys is independent of the order of names."""
    content = name.encode("utf-8", "surrogatepass")
    if images is not None:
        with contextlib.suppress(RowError):
            content = images.read(name)
    return hashlib.sha256(content).hexdigest()
