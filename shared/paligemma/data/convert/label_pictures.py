"""PNG pictures in which a pixel's value says what it belongs to: an index, a level of grey, or a colour."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path

import numpy as np
from jaxtyping import Int

from paligemma.data.convert.outcomes import EntryError, shown
from paligemma.data.convert.outlines import Work, frame_pixels
from paligemma.data.convert.photos import Frame, proportional
from paligemma.data.images import MAX_PIXELS, ImageError, read_image_file
from paligemma.data.pictures.naming import recognize
from paligemma.data.pictures.png import survey_png
from paligemma.data.rows import RowError, image_path
from paligemma.data.run_lengths import Runs

_KEPT = ("1", "L", "P", "I", "I;16")
_LOOKS_FOR_ONE = 4
"""Times that a picture is searched for a value in the time in which as many pixels are made to runs."""
_MOST_READS = 16
"""Times that a picture is read at most. Annotations that name pictures in turn would have each read for every object."""


class LabelPictures:
    """The pictures of a folder. Only the last one that was asked for is held, as 4 bytes a pixel."""

    def __init__(self, folder: Path) -> None:
        """Args: `folder` is what names are relative to."""
        self._folder = folder
        self._name: str | None = None
        self._reads: Counter[str] = Counter()
        self._values: Int[np.ndarray, "h w"] = np.zeros((0, 0), np.int32)

    def values(self, name: object) -> Int[np.ndarray, "h w"]:
        """A picture's values: palette indices, levels of grey, or R + 256 G + 65536 B. A palette's colours count for nothing.

        Raises:
            EntryError: the picture is missing, or cannot be read.
        """
        if not isinstance(name, str):
            raise EntryError("mask_file_missing", f"the file_name of the masks is {shown(name)}")
        if name != self._name:
            self._name = None
            self._reads[name] += 1
            if self._reads[name] > _MOST_READS:
                raise EntryError("mask_too_costly", f"{shown(name)} was read {_MOST_READS} times")
            self._values = _read(self._folder, name)
            self._name = name
        return self._values

    def mask(self, name: object, value: int, frame: Frame, work: Work, other: bool = False) -> Runs:
        """Where a picture has a value.

        Args:
            name: the picture, which covers the whole frame.
            value: the value.
            frame: the pixels of the image.
            work: what is left of the time for the image.
            other: where it has any other value, instead.

        Raises:
            EntryError: the picture cannot be read, or has other proportions than the frame.
        """
        values = self.values(name)
        height, width = values.shape
        frame_pixels(frame)
        if not proportional((width, height), (frame.width, frame.height)):
            raise EntryError("mask_size", f"{shown(name)} is {width} x {height}, the image {frame.width:g} x {frame.height:g}")
        work.spend(values.size // _LOOKS_FOR_ONE)
        inside = values != value if other else values == value
        rows = np.flatnonzero(inside.any(axis=1))
        if not len(rows):
            return Runs(height, width, np.array([height * width]))
        top, bottom = int(rows[0]), int(rows[-1]) + 1
        columns = np.flatnonzero(inside[top:bottom].any(axis=0))
        left, right = int(columns[0]), int(columns[-1]) + 1
        work.spend((right - left) * (bottom - top))
        return Runs.of_pixels(inside[top:bottom, left:right]).placed(left, top, height, width)


def _read(folder: Path, name: str) -> Int[np.ndarray, "h w"]:
    try:
        data = read_image_file(image_path(folder, name))
    except RowError as error:
        raise EntryError("mask_file_missing", error.message) from None
    except ImageError as error:
        raise EntryError("mask_file_unreadable", f"{shown(name)}: {error.what}") from None
    return read_values(data, name)


def read_values(data: bytes, name: str, work: Work | None = None) -> Int[np.ndarray, "h w"]:
    """The values of a PNG picture; see `LabelPictures.values`.

    Args:
        data: the file.
        name: what it is called in messages.
        work: what its pixels are counted in, if they are to be.

    Raises:
        EntryError: it is none that can be read.
    """
    try:
        if (kind := recognize(data)) != "PNG":
            raise EntryError("mask_file_unreadable", f"{shown(name)} is {kind}, which does not keep values exactly")
        survey = survey_png(data)
        if not 0 < survey.width * survey.height <= MAX_PIXELS:
            raise EntryError("mask_file_unreadable", f"{shown(name)} has {survey.width} x {survey.height} pixels")
        if work is not None:
            work.spend(survey.width * survey.height)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about large images; our own limit decides
            image = survey.open()
            image.load()
            pixels = np.asarray(image if image.mode in _KEPT else image.convert("L" if image.mode == "LA" else "RGB"))
    except EntryError:
        raise
    except ImageError as error:
        raise EntryError("mask_file_unreadable", f"{shown(name)}: {error.what}") from None
    except Exception as error:  # Pillow's decoders raise nearly every built-in type on broken files
        raise EntryError("mask_file_unreadable", f"{shown(name)}: {str(error)[:200]}") from None
    if pixels.ndim == 2:
        return pixels.astype(np.int32)
    values = pixels[..., 2].astype(np.int32)
    for channel in (1, 0):  # in place: a large picture takes no further copies
        values <<= 8
        values |= pixels[..., channel]
    return values
