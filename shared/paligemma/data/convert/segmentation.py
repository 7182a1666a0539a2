"""Makes rows with `<seg>` symbols of labelled boxes whose objects have a mask too, whatever they were read from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from paligemma.choices import BoxPixels
from paligemma.data.convert.boxes import Corners
from paligemma.data.convert.detection import (
    BoxedImage,
    FoundBox,
    LabelledBox,
    collect_boxes,
    measured_frames,
    read_photos,
)
from paligemma.data.convert.masks import MaskCodes, MaskedObject, Wording, class_wording, segment_rows
from paligemma.data.convert.outcomes import Entry, EntryError, Outcome, Tally
from paligemma.data.convert.photos import Frame, Photo
from paligemma.data.run_lengths import Runs


def mask_rows(
    found: Iterable[FoundBox],
    folder: Path,
    box_pixels: BoxPixels,
    codes: MaskCodes,
    tally: Tally,
    wording: Wording = class_wording,
    together: bool = True,
) -> Iterator[Outcome]:
    """Rows for `segment`; see `segment_rows`.

    Args:
        found, folder, box_pixels, tally: see `detection_rows`.
        codes: encodes and decodes masks.
        wording: how a label becomes a row's prefix, and a name in its suffix.
        together: whether the objects of an image that have the same label make one row, or one each.
    """
    boxes: dict[BoxedImage, list[tuple[Entry, LabelledBox]]] = {}
    yield from collect_boxes(found, boxes)
    photos = read_photos(boxes, folder)
    measured, fractions = measured_frames(boxes, photos, box_pixels, tally)
    described: list[tuple[str, Sequence[MaskedObject], Frame | EntryError]] = []
    for image, photo in photos.items():
        frame = _whole(image, photo, box_pixels) if image.fractions else measured[image]
        if fractions and not image.fractions:
            frame = EntryError("box_fraction", "all boxes end within the first pixel")
        objects = [MaskedObject(entry, item.label, _in_pixels(item, frame), item.mask or _none) for entry, item in boxes[image]]
        described += [(image.name, part, frame) for part in ([objects] if together else [[one] for one in objects])]
    yield from segment_rows(described, codes, tally, wording)


def _whole(image: BoxedImage, photo: Photo | None, box_pixels: BoxPixels) -> Frame | EntryError:
    """The pixels of an image with shapes in fractions: tools show photos as their orientation says, unless told otherwise."""
    if photo is None:
        return EntryError("size_unknown", f"{image.name!r} cannot be opened, and its masks are in fractions of it")
    return Frame(*photo.stored, photo.orientation) if box_pixels == "stored" else Frame(*photo.displayed)


def _in_pixels(item: LabelledBox, frame: Frame | EntryError) -> Corners:
    if isinstance(frame, EntryError) or not item.image.fractions:
        return item.box
    x1, y1, x2, y2 = item.box
    return Corners(x1 * frame.width, y1 * frame.height, x2 * frame.width, y2 * frame.height)


def _none(*_: object) -> Runs:
    raise EntryError("mask_missing", "there is only a box")
