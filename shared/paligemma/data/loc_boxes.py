"""Boxes written as `<loc>` symbols: PaliGemma's answers to `detect`."""

from __future__ import annotations

import re
from typing import NamedTuple

BINS = 1024
_OBJECT = re.compile(r"((?:<loc\d{4}>){4})(?:<seg\d{3}>)*\s*([^<;]*)")


class Box(NamedTuple):
    """A labelled box; coordinates in bins of 1/1024 of the image, as in the symbols."""

    y0: int
    x0: int
    y1: int
    x1: int
    label: str

    @property
    def area(self) -> int:
        """Area in square bins; 0 if an edge pair is reversed."""
        return max(0, self.y1 - self.y0) * max(0, self.x1 - self.x0)


def parse_boxes(text: str) -> list[Box]:
    """The boxes in an answer such as `<loc0100><loc0200><loc0300><loc0400> cat ; ...`. Skips everything else, as `<seg>`."""
    boxes = []
    for symbols, label in _OBJECT.findall(text):
        y0, x0, y1, x1 = (int(value) for value in re.findall(r"\d{4}", symbols))
        if max(y0, x0, y1, x1) < BINS:
            boxes.append(Box(y0, x0, y1, x1, label.strip()))
    return boxes
