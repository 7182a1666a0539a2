"""Draws on pictures where the task is about what is drawn: AI2D's letters, the box of a widget. Writes to `images/`."""

from __future__ import annotations

import hashlib
import io
import re
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from paligemma.data.convert.names import number_of
from paligemma.data.convert.outcomes import EntryError, object_of, shown
from paligemma.data.images import decode_image, fit_image, read_image_file
from paligemma.data.pictures.errors import ImageError
from paligemma.data.rows import RowError, image_path
from paligemma.errors import InputError
from paligemma.storage.atomic import write_file

MOST_LABELS = 1_000
"""Most labels that are drawn into one picture."""

Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


def with_letters(folder: Path, name: str, labels: object) -> str:
    """The name of a copy of a diagram in which letters cover its labels, as AI2D's questions name them.

    Each label has a `rectangle` of two points in pixels and a `replacementText`
    (google-research/big_vision at commit 0127fb6, big_vision/datasets/ai2d/ai2d.py:184-209).

    Args:
        folder: the image folder.
        name: the diagram's name.
        labels: the diagram's file in AI2D's folder `annotations`.

    Raises:
        EntryError: the labels or the picture cannot be read.
    """
    texts = object_of(labels).get("text")
    if not isinstance(texts, dict) or len(texts) > MOST_LABELS:
        raise EntryError("labels_wrong", f"text is {shown(texts)}")
    found = [_label(label) for label in texts.values()]
    try:
        image = Image.fromarray(decode_image(_read(folder, name), repr(name)))
    except ImageError as error:
        raise EntryError("picture_unreadable", error.what) from None
    draw = ImageDraw.Draw(image)
    for box, letters in found:
        box = (max(box[0], 0), max(box[1], 0), min(box[2], image.width), min(box[3], image.height))
        if box[0] >= box[2] or box[1] >= box[3]:
            continue
        draw.rectangle(box, fill="white")
        font = _font(letters, box[2] - box[0], box[3] - box[1])
        draw.text(((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), letters, fill="black", font=font, anchor="mm")
    return _write(folder, f"images/letters-{hashlib.sha256(name.encode()).hexdigest()[:16]}.png", image)


def _label(label: object) -> tuple[Box, str]:
    label = object_of(label)
    corners, letters = label.get("rectangle"), label.get("replacementText")
    if not isinstance(letters, str) or not 0 < len(letters) <= 20 or not letters.isprintable():
        raise EntryError("labels_wrong", f"replacementText is {shown(letters)}")
    points = corners if isinstance(corners, list) and all(isinstance(point, list) for point in corners) else []
    numbers = [number for point in points for value in point if (number := number_of(value)) is not None]
    if len(numbers) != 4 or max(map(abs, numbers)) > 1e6:
        raise EntryError("labels_wrong", f"rectangle is {shown(corners)}")
    x1, y1, x2, y2 = numbers
    return (min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)), letters


def _font(letters: str, width: float, height: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The largest size, up to 100 pixels, in which the letters fit."""
    low, high = 4, 100
    while low < high:
        middle = (low + high + 1) // 2
        left, top, right, bottom = ImageFont.load_default(middle).getbbox(letters)
        low, high = (middle, high) if right - left <= width and bottom - top <= height else (low, middle - 1)
    return ImageFont.load_default(low)


def with_box(folder: Path, name: str, box: Box, key: str, size: int) -> str:
    """The name of a copy of a picture, size x size pixels, with a red line of one pixel around a box.

    The reference resizes to the model's resolution first and then draws (google-research/big_vision at commit 0127fb6,
    big_vision/configs/proj/paligemma/transfers/widgetcap.py:42-50, big_vision/pp/proj/paligemma/widgetcap.py:21-36).

    Args:
        folder: the image folder.
        name: the picture's name.
        box: the box, in fractions of the picture.
        key: what the copy's name has.
        size: pixels of a side.

    Raises:
        EntryError: the picture cannot be read.
    """
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,200}", key):
        raise EntryError("value_wrong", f"{shown(key)} cannot be a part of a file's name")
    try:
        image, _, _ = fit_image(_read(folder, name), size, repr(name))
    except ImageError as error:
        raise EntryError("picture_unreadable", error.what) from None
    x1, y1, x2, y2 = (int(min(max(edge, -1), 2) * (size - 1)) for edge in box)
    draw = ImageDraw.Draw(image)
    for line in ((x1, y1, x2, y1), (x1, y2, x2, y2), (x1, y1, x1, y2), (x2, y1, x2, y2)):  # an edge outside is not drawn
        draw.line(line, fill=(255, 0, 0))
    return _write(folder, f"images/box-{key}-{size}.png", image)


def _read(folder: Path, name: str) -> bytes:
    try:
        return read_image_file(image_path(folder, name))
    except (RowError, InputError, OSError, ValueError) as error:
        what = error.message if isinstance(error, RowError) else error.what if isinstance(error, InputError) else str(error)
        raise EntryError("picture_unreadable", what) from None


def _write(folder: Path, name: str, image: Image.Image) -> str:
    packed = io.BytesIO()
    image.save(packed, "PNG")
    (folder / "images").mkdir(parents=True, exist_ok=True)
    write_file(folder / name, packed.getvalue())
    return name
