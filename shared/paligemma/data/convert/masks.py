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

import numpy as np
from jaxtyping import Bool, Float

from paligemma.data.convert.boxes import Corners, box_of, clip, place, turn
from paligemma.data.convert.outcomes import Entry, EntryError, Outcome, Tally
from paligemma.data.convert.outlines import ReadMask, Work
from paligemma.data.convert.photos import Frame
from paligemma.data.mask_codes import Encode, fit_mask
from paligemma.data.rows import MAX_LINE_BYTES
from paligemma.data.run_lengths import Runs
from paligemma.data.seg_masks import Decode, TrueMask, count_overlaps, mean_iou, seg_text
from paligemma.progress import WorkProgress

MOST_RUNS = 1 << 18
"""Most characters of one mask's run lengths in a row, whose line has 1 MiB at most."""

_BYTES_OF_OBJECT = 200
"""Least bytes of an object in a row's line, besides its run lengths: 148 of its symbols, and its size."""
_BATCH = 32
"""Objects that are encoded at once."""

Wording = Callable[[str], tuple[str, str]]
"""Of a class or an expression, the prefix of its row, and the name that its objects have in the suffix, if any."""


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
        label: its class, or the expression that means it.
        box: its box in the frame's pixels; None for the box around its mask.
        read: makes the mask, which covers the whole frame, in pixels of its own.
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
    reach: tuple[int, int, int, int]


@dataclass(frozen=True)
class _Row:
    image: str
    prefix: str
    name: str
    entries: Sequence[Entry]
    objects: Sequence[_Written]


def class_wording(label: str) -> tuple[str, str]:
    """What an answer to `segment` is asked by: the prefix names the class, and so does each object."""
    return f"segment {label}", label


def segment_rows(
    images: Sequence[tuple[str, Sequence[MaskedObject], Frame | EntryError]],
    codes: MaskCodes,
    tally: Tally,
    wording: Wording = class_wording,
) -> Iterator[Outcome]:
    """A row for every class in every image, of all objects of that class, from the top, then from the left; with progress.

    A row keeps its true masks under `masks`, and under `round_trip_iou` how much of them its own codes give back: the
    `mask_iou` of a model that answers the suffix exactly. Memory is bounded by one mask as pixels, and by what a row may hold;
    time by `Work` for each image.

    Args:
        images: name and objects of each image, and the pixels that its boxes and masks refer to, or why they are unknown.
        codes: encodes and decodes.
        tally: counts oddities.
        wording: how a label becomes a row's prefix, and a name in its suffix.
    """
    waiting: list[_Row] = []
    works: dict[str, Work] = {}
    with WorkProgress("encoding masks", "objects", sum(len(objects) for _, objects, _ in images)) as progress:
        for image, objects, frame in images:
            classes: dict[str, list[MaskedObject]] = defaultdict(list)
            for thing in objects:
                classes[thing.label].append(thing)
            for label, things in sorted(classes.items()):
                entries, written = [], []
                for made in _read_class(image, things, frame, works, wording(label)[1], tally):
                    if isinstance(made, Outcome):
                        yield made
                    else:
                        entries.append(made[0])
                        written.append(made[1])
                if written:
                    waiting.append(_Row(image, *wording(label), entries, written))
                if sum(len(row.objects) for row in waiting) >= _BATCH:
                    yield from _encoded(waiting, codes, tally)
                    waiting = []
                progress.advance(len(things))
        yield from _encoded(waiting, codes, tally)


def _read_class(
    image: str, things: Sequence[MaskedObject], frame: Frame | EntryError, works: dict[str, Work], name: str, tally: Tally
) -> Iterator[tuple[Entry, _Written] | Outcome]:
    """The objects of a class, not encoded yet, and those that are skipped: all, if they are more than a line can hold."""
    written: list[tuple[Entry, _Written]] = []
    size, hull = 0, (0, 0, 0, 0)
    for thing in things:
        try:
            if isinstance(frame, EntryError):
                raise frame
            if size > MAX_LINE_BYTES:
                raise EntryError("line_too_long", f"the row of {len(things)} objects has more than {size} bytes")
            work = works.get(image) or works.setdefault(image, Work(frame))
            one = _written(thing, frame, name, work, tally)
            reach = _hull([hull, one.reach]) if written else one.reach
            work.spend(_area(reach) - _area(hull))  # where the row's codes are compared with its masks
            hull = reach
            size += len(one.mask.counts) + _BYTES_OF_OBJECT
            written.append((thing.entry, one))
        except EntryError as problem:
            yield Outcome((thing.entry,), problem)
    if size > MAX_LINE_BYTES:
        problem = EntryError("line_too_long", f"the row of {len(things)} objects has {size} bytes and more")
        yield Outcome(tuple(entry for entry, _ in written), problem)
    else:
        yield from written


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
        suffix = " ; ".join(f"{one.location}{symbols} {row.name}".rstrip() for one, symbols in ordered)
        given_back = mean_iou(count_overlaps(suffix, masks, lambda known: np.stack([decoded[seg_text(one)] for one in known])))
        tally.round_trips.append(given_back)
        made = {"image": row.image, "prefix": row.prefix, "suffix": suffix}
        made |= {"masks": [mask.as_json() for mask in masks], "round_trip_iou": round(given_back, 4)}
        yield Outcome(tuple(row.entries), made)


def _written(thing: MaskedObject, frame: Frame, name: str, work: Work, tally: Tally) -> _Written:
    runs = thing.read(frame, work)
    box = thing.box or _around(runs, frame)
    location, beyond = place(box, frame.width, frame.height, frame.orientation)
    if beyond:
        tally.note("box_clipped", thing.entry.place)
    inside = turn(clip(box, frame.width, frame.height)[0], frame.orientation)
    if frame.orientation > 1:
        work.spend(runs.height * runs.width)
        runs = Runs.of_pixels(turn_mask(runs.pixels(), frame.orientation))
    # As big_vision does: fractions and products are float32, and halves are rounded to even.
    y1, y2 = (int(np.round(np.float32(runs.height) * np.float32(edge))) for edge in (inside.y1, inside.y2))
    x1, x2 = (int(np.round(np.float32(runs.width) * np.float32(edge))) for edge in (inside.x1, inside.x2))
    if y2 <= y1 or x2 <= x1:
        across, down = (inside.x2 - inside.x1) * runs.width, (inside.y2 - inside.y1) * runs.height
        raise EntryError("mask_too_small", f"{across:g} x {down:g} pixels")
    work.spend((y2 - y1) * (x2 - x1))
    crop = runs.part(x1, y1, x2, y2)
    if not crop.any():
        raise EntryError("mask_empty", f"none in {x2 - x1} x {y2 - y1} pixels at {x1}, {y1}; {runs.area} in the image")
    counts = runs.text
    if len(counts) > MOST_RUNS:
        raise EntryError("mask_too_detailed", f"they take {len(counts)} bytes")
    reach = _hull([(x1, y1, x2, y2), runs.box or (x1, y1, x2, y2)])
    return _Written(location, fit_mask(crop), TrueMask(name, runs.height, runs.width, counts), reach)


def _hull(boxes: Sequence[tuple[int, int, int, int]]) -> tuple[int, int, int, int]:
    x1, y1, x2, y2 = zip(*boxes, strict=True)
    return min(x1), min(y1), max(x2), max(y2)


def _area(box: tuple[int, int, int, int]) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def _around(runs: Runs, frame: Frame) -> Corners:
    """The box around a mask, in the frame's pixels."""
    if (box := runs.box) is None:
        raise EntryError("mask_empty", "the mask has no pixel")
    across, down = frame.width / runs.width, frame.height / runs.height
    return Corners(box[0] * across, box[1] * down, box[2] * across, box[3] * down)


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
