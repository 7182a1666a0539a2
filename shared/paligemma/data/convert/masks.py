"""Makes rows of objects with masks: `segment cat`, and for each object four `<loc>`, sixteen `<seg>` and the class.

The order of the symbols and the crop that is encoded: google-research/big_vision, `big_vision/pp/proj/paligemma/
segmentation.py`, lines 54-77. Several objects are joined with ` ; ` as in the answers to `detect` (arXiv 2407.07726, section
3.2.5).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from pycocotools import mask as coco

from paligemma.data.convert.boxes import Corners, box_of, clip, place, turn
from paligemma.data.convert.names import number_of
from paligemma.data.convert.outcomes import Entry, EntryError, Outcome, Tally, shown
from paligemma.data.convert.photos import Frame, Size
from paligemma.data.images import MAX_PIXELS
from paligemma.data.mask_codes import Encode, fit_mask
from paligemma.data.rows import MAX_LINE_BYTES
from paligemma.data.run_lengths import MaskError, read_runs, size_of_runs, write_runs
from paligemma.data.seg_masks import Decode, TrueMask, count_overlaps, mean_iou, seg_text
from paligemma.progress import WorkProgress

MOST_RUNS = 1 << 18
"""Most characters of one mask's run lengths in a row, whose line has 1 MiB at most."""

_BYTES_OF_OBJECT = 200
"""Least bytes of an object in a row's line, besides its run lengths: 148 of its symbols, and its size."""
_BATCH = 32
"""Objects that are encoded at once."""

_MOST_OUTLINE = 1 << 21
"""Longest outline of an object in pixels. pycocotools takes five points for each pixel, of some 20 bytes."""
_MOST_COORDINATE = 1e7
"""pycocotools holds five times a coordinate in 32 bits."""

ReadMask = Callable[[Frame], Bool[np.ndarray, "h w"]]


@dataclass(frozen=True)
class MaskCodes:
    """The two halves of the VQ-VAE: `mask_codes.read_encoder` and `read_decoder`."""

    encode: Encode
    decode: Decode


@dataclass(frozen=True)
class MaskedObject:
    """An object of an image.

    Attributes:
        entry: where its data set has it.
        label: its class.
        box: its box in the frame's pixels; None for the box around its mask.
        read: makes the mask, which covers the whole frame, in pixels of its own; raises EntryError if there is none.
    """

    entry: Entry
    label: str
    box: Corners | None
    read: ReadMask


@dataclass(frozen=True)
class _Written:
    location: str
    crop: Float[np.ndarray, "64 64"]
    mask: TrueMask


@dataclass(frozen=True)
class _Row:
    image: str
    label: str
    entries: Sequence[Entry]
    objects: Sequence[_Written]


def segment_rows(
    images: Sequence[tuple[str, Sequence[MaskedObject], Frame | EntryError]], codes: MaskCodes, tally: Tally
) -> Iterator[Outcome]:
    """A row for every class in every image, of all objects of that class, from the top, then from the left; with progress.

    A row keeps its true masks under `masks`, and under `round_trip_iou` how much of them its own codes give back: the
    `mask_iou` of a model that answers the suffix exactly. Memory is bounded by one mask as pixels, and by what a row may hold.

    Args:
        images: name and objects of each image, and the pixels that its boxes and masks refer to, or why they are unknown.
        codes: encodes and decodes.
        tally: counts oddities.
    """
    waiting: list[_Row] = []
    with WorkProgress("encoding masks", "objects", sum(len(objects) for _, objects, _ in images)) as progress:
        for image, objects, frame in images:
            classes: dict[str, list[MaskedObject]] = defaultdict(list)
            for thing in objects:
                classes[thing.label].append(thing)
            for label, things in sorted(classes.items()):
                for made in _read_class(image, label, things, frame, tally):
                    if isinstance(made, Outcome):
                        yield made
                    else:
                        waiting.append(made)
                if sum(len(row.objects) for row in waiting) >= _BATCH:
                    yield from _encoded(waiting, codes, tally)
                    waiting = []
                progress.advance(len(things))
        yield from _encoded(waiting, codes, tally)


def _read_class(
    image: str, label: str, things: Sequence[MaskedObject], frame: Frame | EntryError, tally: Tally
) -> Iterator[_Row | Outcome]:
    """The row of a class, not encoded yet, and the objects that are skipped: all, if they are more than a line can hold."""
    entries: list[Entry] = []
    written: list[_Written] = []
    size = 0
    for thing in things:
        try:
            if isinstance(frame, EntryError):
                raise frame
            one = _written(thing, frame, tally)
        except EntryError as problem:
            yield Outcome((thing.entry,), problem)
            continue
        entries.append(thing.entry)
        size += len(one.mask.counts) + _BYTES_OF_OBJECT
        if size <= MAX_LINE_BYTES:
            written.append(one)
        else:
            written.clear()
    if size > MAX_LINE_BYTES:
        yield Outcome(tuple(entries), EntryError("line_too_long", f"the row of {len(entries)} objects has {size} bytes"))
    elif written:
        yield _Row(image, label, entries, written)


def _encoded(rows: Sequence[_Row], codes: MaskCodes, tally: Tally) -> Iterator[Outcome]:
    """Rows with their codes. All masks run at once, which takes less than half of the time that they take one by one."""
    if not rows:
        return
    found = codes.encode(np.stack([one.crop for row in rows for one in row.objects]))
    decoded = dict(zip(map(seg_text, found), codes.decode(found), strict=True))
    texts = iter(map(seg_text, found))
    for row in rows:
        symbols_of = zip(row.objects, islice(texts, len(row.objects)), strict=True)
        ordered = sorted(symbols_of, key=lambda one: (one[0].location, one[1]))
        masks = [one.mask for one, _ in ordered]
        suffix = " ; ".join(f"{one.location}{symbols} {row.label}" for one, symbols in ordered)
        given_back = mean_iou(count_overlaps(suffix, masks, lambda known: np.stack([decoded[seg_text(one)] for one in known])))
        tally.round_trips.append(given_back)
        made = {"image": row.image, "prefix": f"segment {row.label}", "suffix": suffix}
        made |= {"masks": [mask.as_json() for mask in masks], "round_trip_iou": round(given_back, 4)}
        yield Outcome(tuple(row.entries), made)


def _written(thing: MaskedObject, frame: Frame, tally: Tally) -> _Written:
    mask = thing.read(frame)
    box = thing.box or _around(mask, frame)
    location, beyond = place(box, frame.width, frame.height, frame.orientation)
    if beyond:
        tally.note("box_clipped", thing.entry.place)
    inside = turn(clip(box, frame.width, frame.height)[0], frame.orientation)
    mask = turn_mask(mask, frame.orientation)
    height, width = mask.shape
    # As big_vision does: fractions and products are float32, and halves are rounded to even.
    y1, y2 = (int(np.round(np.float32(height) * np.float32(edge))) for edge in (inside.y1, inside.y2))
    x1, x2 = (int(np.round(np.float32(width) * np.float32(edge))) for edge in (inside.x1, inside.x2))
    if y2 <= y1 or x2 <= x1:
        raise EntryError("mask_too_small", f"{(inside.x2 - inside.x1) * width:g} x {(inside.y2 - inside.y1) * height:g} pixels")
    if not mask[y1:y2, x1:x2].any():
        raise EntryError("mask_empty", f"none in {x2 - x1} x {y2 - y1} pixels at {x1}, {y1}; {mask.sum()} in the image")
    runs: Any = write_runs(mask)
    if len(runs["counts"]) > MOST_RUNS:
        raise EntryError("mask_too_detailed", f"they take {len(runs['counts'])} bytes")
    return _Written(location, fit_mask(mask[y1:y2, x1:x2]), TrueMask(thing.label, height, width, runs["counts"]))


def _around(mask: Bool[np.ndarray, "h w"], frame: Frame) -> Corners:
    """The box around a mask, in the frame's pixels."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        raise EntryError("mask_empty", "the mask has no pixel")
    across, down = frame.width / mask.shape[1], frame.height / mask.shape[0]
    edges = columns[0] * across, rows[0] * down, (columns[-1] + 1) * across, (rows[-1] + 1) * down
    return Corners(*(float(edge) for edge in edges))


def turn_mask(mask: Bool[np.ndarray, "h w"], orientation: int) -> Bool[np.ndarray, "i j"]:
    """Turns a mask from the stored to the displayed image, by EXIF orientation 1 to 8; `boxes.turn` for masks."""
    if orientation in (5, 6, 7, 8):
        mask = mask.T
    if orientation in (2, 3, 6, 7):
        mask = mask[:, ::-1]
    if orientation in (3, 4, 7, 8):
        mask = mask[::-1]
    return mask


def given_box(annotation: dict, entry: Entry, tally: Tally) -> Corners | None:
    """The box of a COCO annotation, or the one around its polygons; None if it has neither, but run lengths.

    Raises:
        EntryError: the box is invalid.
    """
    if annotation.get("bbox") in (None, []) and isinstance(annotation.get("segmentation"), dict):
        return None
    box, from_polygons = box_of(annotation)
    if from_polygons:
        tally.note("box_from_polygon", entry.place)
    return box


def stated_size(segmentation: object) -> Size | None:
    """Width and height that run lengths state; None if they state none, or are polygons."""
    try:
        height, width = size_of_runs(segmentation)
    except MaskError:
        return None
    return width, height


def mask_reader(segmentation: object, entry: Entry, tally: Tally) -> ReadMask:
    """Makes the mask of a COCO `segmentation`: polygons, or run lengths, packed and not.

    Raises:
        EntryError: it is none. Run lengths are looked at when the mask is made.
    """
    if segmentation in (None, [], {}, ""):
        raise EntryError("mask_missing", f"the segmentation is {shown(segmentation)}")
    if isinstance(segmentation, dict):
        return lambda frame: _of_runs(segmentation, frame)
    polygons = _polygons(segmentation, entry, tally)
    return lambda frame: _of_polygons(polygons, frame)


def _of_runs(runs: dict, frame: Frame) -> Bool[np.ndarray, "h w"]:
    try:
        height, width = size_of_runs(runs)
        if (height, width) != (wanted := frame_pixels(frame)):
            raise EntryError("mask_size", f"it is {width} x {height}, the image {wanted[1]} x {wanted[0]}")
        return read_runs(runs)
    except MaskError as error:
        raise EntryError("mask_malformed", f"the mask cannot be read: {error}") from None


def frame_pixels(frame: Frame) -> tuple[int, int]:
    """Height and width of a frame in whole pixels.

    Raises:
        EntryError: it has too many pixels for a mask.
    """
    if frame.width * frame.height > MAX_PIXELS or max(frame.width, frame.height) > MAX_PIXELS:
        raise EntryError("mask_too_large", f"the image is {frame.width:g} x {frame.height:g}")
    return max(round(frame.height), 1), max(round(frame.width), 1)


def _polygons(segmentation: object, entry: Entry, tally: Tally) -> list[Float[np.ndarray, " xy"]]:
    """Polygons with three points and more, each as x, y, x, y, ...; points and lines, which COCO has some of, are dropped."""
    if not isinstance(segmentation, list) or not all(isinstance(polygon, list) for polygon in segmentation):
        raise EntryError("mask_malformed", f"the segmentation is {shown(segmentation)}, not a list of lists")
    polygons = []
    for polygon in segmentation:
        numbers = [number_of(value) for value in polygon]
        if None in numbers or len(numbers) % 2:
            raise EntryError("mask_malformed", f"a polygon of {len(polygon)} values is not x, y, x, y, ...")
        if len(numbers) < 6:
            tally.note("polygon_dropped", entry.place)
            continue
        polygons.append(np.array(numbers, np.float64))
    if not polygons:
        raise EntryError("mask_malformed", "no polygon has three points")
    if max(np.abs(polygon).max() for polygon in polygons) > _MOST_COORDINATE:
        raise EntryError("mask_too_large", f"a polygon reaches farther than {_MOST_COORDINATE:,.0f} pixels")
    outline = sum(_length(polygon.reshape(-1, 2)) for polygon in polygons)
    if outline > _MOST_OUTLINE:
        raise EntryError("mask_too_large", f"the outline is {outline:.0f} pixels long, at most {_MOST_OUTLINE}")
    return polygons


def _length(points: Float[np.ndarray, "p 2"]) -> float:
    """Pixels along a polygon's outline, at least one for each edge."""
    steps = np.abs(points - np.roll(points, -1, axis=0)).max(axis=1)
    return float(np.maximum(steps, 1).sum())


def _of_polygons(polygons: Sequence[Float[np.ndarray, " xy"]], frame: Frame) -> Bool[np.ndarray, "h w"]:
    """As `annToMask` of pycocotools: the union of the polygons."""
    height, width = frame_pixels(frame)
    runs: Any = coco.merge(coco.frPyObjects([polygon.tolist() for polygon in polygons], height, width))
    return read_runs({"size": [height, width], "counts": runs["counts"].decode("ascii")})
