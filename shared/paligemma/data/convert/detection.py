"""Makes rows for `detect` of labelled boxes, whatever they were read from: places them on pictures as the model sees them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from paligemma.choices import BoxPixels
from paligemma.data.convert.boxes import Corners, all_fractions, place, reach
from paligemma.data.convert.outcomes import Entry, EntryError, Outcome, Tally
from paligemma.data.convert.outlines import ReadMask
from paligemma.data.convert.photos import Frame, Photo, Pictured, Size, find_frames, read_photo

_PARTS = 1000
"""Boxes in fractions are placed as thousandths, so that rounding is told from boxes that reach beyond the image."""


@dataclass(frozen=True)
class BoxedImage:
    """An image with boxes.

    Attributes:
        name: its name, relative to the image folder.
        size: width and height that the annotations give, if they do.
        fractions: whether its boxes are in fractions of it instead of pixels.
        rank: its place among the images; rows are in this order.
    """

    name: str
    size: Size | None = None
    fractions: bool = False
    rank: int = 0


@dataclass(frozen=True)
class LabelledBox:
    """A box on an image, and what is in it; `mask` makes the object's mask, where there is more than a box."""

    image: BoxedImage
    box: Corners
    label: str
    mask: ReadMask | None = None


FoundBox = tuple[Entry, LabelledBox | EntryError]
Boxes = Mapping[BoxedImage, Sequence[tuple[Entry, LabelledBox]]]


def detection_rows(found: Iterable[FoundBox], folder: Path, box_pixels: BoxPixels, tally: Tally) -> Iterator[Outcome]:
    """A row for every image: `detect cat ; dog`, and the boxes as <loc> tokens with their labels, from the top, then the left.

    Args:
        found: the boxes, or why an entry has none.
        folder: the folder that image names are relative to; images there are opened for their sizes and orientations.
        box_pixels: whether boxes are on the photo as displayed or as stored, for photos with an EXIF orientation.
        tally: counts oddities.
    """
    boxes: dict[BoxedImage, list[tuple[Entry, LabelledBox]]] = {}
    yield from collect_boxes(found, boxes)
    for image, placed in place_boxes(boxes, folder, box_pixels, tally):
        used, suffixes = [], []
        for entry, item, text in placed:
            if isinstance(text, EntryError):
                yield Outcome((entry,), text)
            else:
                used.append(entry)
                suffixes.append((text, item.label))
        if used:
            prefix = "detect " + " ; ".join(sorted({label for _, label in suffixes}))
            suffix = " ; ".join(f"{box} {label}" for box, label in sorted(suffixes))
            yield Outcome(tuple(used), {"image": image.name, "prefix": prefix, "suffix": suffix})


def collect_boxes(found: Iterable[FoundBox], boxes: dict[BoxedImage, list[tuple[Entry, LabelledBox]]]) -> Iterator[Outcome]:
    """Puts boxes into a list for each image; yields the entries that have none."""
    for entry, item in found:
        if isinstance(item, EntryError):
            yield Outcome((entry,), item)
        else:
            boxes.setdefault(item.image, []).append((entry, item))


def measured_frames(
    boxes: Boxes, photos: Mapping[BoxedImage, Photo | None], box_pixels: BoxPixels, tally: Tally
) -> tuple[dict[BoxedImage, Frame | EntryError], bool]:
    """The pixels of the boxes that are not in fractions, by image, and whether they seem to be fractions nevertheless."""
    images = [image for image in photos if not image.fractions]
    pictured = {
        str(number): Pictured(image.name, image.size, photos[image], reach([item.box for _, item in boxes[image]]))
        for number, image in enumerate(images)
    }
    frames = find_frames(pictured, box_pixels, tally)
    fractions = all_fractions([item.box for image in images for _, item in boxes[image]])
    return {image: frames[str(number)] for number, image in enumerate(images)}, fractions


def read_photos(boxes: Boxes, folder: Path) -> dict[BoxedImage, Photo | None]:
    """Size and orientation of the images, in the order of rows."""
    return {image: read_photo(folder, image.name) for image in sorted(boxes, key=lambda image: image.rank)}


def place_boxes(
    boxes: Boxes, folder: Path, box_pixels: BoxPixels, tally: Tally
) -> Iterator[tuple[BoxedImage, list[tuple[Entry, LabelledBox, str | EntryError]]]]:
    """The boxes of each image as four <loc> tokens, or why they cannot be placed; see `detection_rows`."""
    photos = read_photos(boxes, folder)
    frames, fractions = measured_frames(boxes, photos, box_pixels, tally)
    for image, photo in photos.items():
        frame = _whole(photo, box_pixels) if image.fractions else frames[image]
        if image.fractions and photo is None:
            tally.note("size_unchecked", repr(image.name))
        placed: list[tuple[Entry, LabelledBox, str | EntryError]] = []
        for entry, item in boxes[image]:
            box = Corners(*(edge * _PARTS for edge in item.box)) if image.fractions else item.box
            try:
                if isinstance(frame, EntryError):
                    raise frame
                if fractions and not image.fractions:
                    raise EntryError("box_fraction", f"the box ends at {box.x2:g}, {box.y2:g}")
                text, beyond = place(box, frame.width, frame.height, frame.orientation)
                if beyond:
                    tally.note("box_clipped", entry.place)
                placed.append((entry, item, text))
            except EntryError as problem:
                placed.append((entry, item, problem))
        yield image, placed


def _whole(photo: Photo | None, box_pixels: BoxPixels) -> Frame:
    """The frame of boxes in fractions: tools show photos as their EXIF orientation says, unless told otherwise."""
    return Frame(_PARTS, _PARTS, photo.orientation if photo is not None and box_pixels == "stored" else 1)


def label_of(text: object) -> str:
    """A label for a suffix.

    Raises:
        EntryError: it is no text, is empty, or would end the box's text.
    """
    label = text.strip() if isinstance(text, str) else ""
    if not label or ";" in label or "<" in label or not label.isprintable():
        raise EntryError("category_unnamed", f"the label is {text!r:.60}")
    return label
