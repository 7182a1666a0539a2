"""Random changes to training images: mirroring, crops, colours. Off by default, and refused if they make a text wrong."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from paligemma.data.records import Records
from paligemma.data.row_stream import open_rows
from paligemma.data.tfrecord import RowReader, StoredRow
from paligemma.errors import InputError
from paligemma.progress import WorkProgress

THREADS, READ_AHEAD = 8, 256
"""Threads that read rows to check their texts, and the rows that they hold in memory."""

ASPECTS = (3 / 4, 4 / 3)
"""Widest range of a crop's width to its height, relative to the stored square."""

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R BT.601), as in Pillow."""

SIDES = {
    "en": "left right leftmost rightmost leftward leftwards rightward rightwards lefthand righthand clockwise counterclockwise "
    "anticlockwise",
    "de": "links rechts linke linken linker linkes linkem rechte rechten rechter rechtes rechtem",
    "fr": "gauche droite",
    "es": "izquierda izquierdo derecha derecho",
    "it": "sinistra sinistro destra destro",
    "pt": "esquerda esquerdo direita direito",
    "nl": "links rechts linker linkse rechter rechtse linksom rechtsom",
    "ru": "слева справа налево направо левый левая левое левой правый правая правое правой",
}
"""Words for sides and turns, which mirroring makes wrong. Their other senses ("what is right") are refused too."""

SIDE_SIGNS = ("左", "右", "왼쪽", "오른쪽")
"""The same for languages written without spaces or with endings: matched anywhere."""

_WORDS = "|".join(sorted({word for words in SIDES.values() for word in words.split()}))
# Only letters continue a word, so left-hand and left_arm contain `left`.
_SIDE = re.compile(rf"(?<![^\W\d_])(?:{_WORDS})(?![^\W\d_])|{'|'.join(SIDE_SIGNS)}", re.IGNORECASE)
_PLACE = re.compile(r"<loc|<seg")


class Augmentation(BaseModel):
    """The random changes to make. By default there are none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    flip: bool = Field(default=False, description="Mirror every other image; not for pictures of writing.")
    crop: float = Field(
        default=1.0, gt=0, le=1, description="Smallest share of the area that a random crop keeps; 1: no crops."
    )
    colour: float = Field(
        default=0.0, ge=0, lt=1, description="Largest change of brightness, contrast and saturation; 0: none."
    )


def augment(image: UInt8[np.ndarray, "size size 3"], augmentation: Augmentation, key: tuple[int, int, int]) -> np.ndarray:
    """Changes an image at random: mirrors, crops and resizes back, then recolours it.

    Args:
        image: as records store it.
        augmentation: the changes and their sizes.
        key: seed, step and position in the batch, which determine the changes.

    Returns:
        uint8 `[size, size, 3]`.
    """
    seed, *place = key
    # All eight numbers are always drawn, so turning on one change leaves the others as they were.
    raw = np.random.Philox(np.random.SeedSequence(seed, spawn_key=(1, *place))).random_raw(8)
    mirror, area, aspect, left, top, *factors = (raw >> np.uint64(11)) * 2.0**-53
    picture = Image.fromarray(image)
    if augmentation.flip and mirror < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if augmentation.crop < 1:
        x1, y1, x2, y2 = (side * picture.width for side in crop_box(augmentation.crop, area, aspect, left, top))
        picture = picture.resize(picture.size, Image.Resampling.BILINEAR, (x1, y1, x2, y2))
    if augmentation.colour > 0:
        changes = (1 + augmentation.colour * (2 * factor - 1) for factor in factors)
        picture = picture.convert("RGB", colour_matrix(picture, *changes))
    return np.asarray(picture)


def crop_box(smallest: float, area: float, aspect: float, left: float, top: float) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a crop of the unit square, from random numbers in [0, 1).

    The area is uniform from `smallest` to 1. The aspect ratio is log-uniform in the part of `ASPECTS` that fits the square.
    """
    share = smallest + (1 - smallest) * area
    low, high = np.log(np.clip(ASPECTS, share, 1 / share))
    ratio = np.exp(low + (high - low) * aspect)
    width, height = min(1.0, float(np.sqrt(share * ratio))), min(1.0, float(np.sqrt(share / ratio)))
    x, y = float(left) * (1 - width), float(top) * (1 - height)
    return x, y, min(1.0, x + width), min(1.0, y + height)


def colour_matrix(picture: Image.Image, brightness: float, contrast: float, saturation: float) -> tuple[float, ...]:
    """The 3 x 4 matrix, by rows, that changes brightness, then contrast about the mean grey, then saturation, and clips once.

    A factor of 1 changes nothing. 0 gives black, the mean grey, or grey levels, respectively.
    """
    mean = float(np.asarray(picture).mean(axis=(0, 1)) @ np.array(LUMA))
    linear = brightness * contrast * (saturation * np.eye(3) + (1 - saturation) * np.array([LUMA] * 3))
    constant = np.full((3, 1), (1 - contrast) * brightness * mean)
    return tuple(np.hstack([linear, constant]).ravel().tolist())


def check_augmentation(augmentation: Augmentation, records: Records) -> None:
    """Confirms that the changes keep every text correct. Reads every record once, if any change is turned on.

    Mirroring makes texts that name sides or turns (`SIDES`) wrong. Mirroring or cropping makes places (`<loc0000>`, `<seg000>`)
    wrong.

    Raises:
        InputError: a text would be wrong; names the row.
    """
    if not augmentation.flip and augmentation.crop == 1:
        return
    with (
        closing(open_rows(records)) as reader,
        WorkProgress("checking augmentation", "rows", len(reader)) as progress,
        ThreadPoolExecutor(THREADS) as pool,
    ):
        for number, row in enumerate(_all_rows(reader, pool)):
            found, option, off = _contradiction(augmentation, row)
            if found:
                raise InputError(
                    f"{option} would make a text wrong: it has {found!r}, and the picture would change.",
                    where=f"row {number} of {records.location}, line {row.line} of its source: {row.prefix!r} {row.suffix!r}",
                    fix=f"set {option} to {off}, or leave such rows out",
                )
            progress.advance()


def _all_rows(reader: RowReader, pool: ThreadPoolExecutor) -> Iterator[StoredRow]:
    windows = [range(start, min(start + READ_AHEAD, len(reader))) for start in range(0, len(reader), READ_AHEAD)]
    for window in reader.ahead(windows, lambda window: window):
        yield from pool.map(reader.read_texts, window)


def _contradiction(augmentation: Augmentation, row: StoredRow) -> tuple[str, str, str]:
    """The word in a row's texts, the option that it contradicts, and the option's harmless value; empty if there is none."""
    for text in (row.prefix, row.suffix):
        place = _PLACE.search(text)
        if augmentation.flip and (side := place or _SIDE.search(text)):
            return side.group(), "flip", "false"
        if augmentation.crop < 1 and place:
            return place.group(), "crop", "1"
    return "", "", ""
