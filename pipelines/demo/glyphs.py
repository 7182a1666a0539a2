"""Draws pictures of digits, letters and shapes, for pretraining the embedded checkpoint. No real data."""

from __future__ import annotations

import math
import string
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

CANVAS = 64  # side of the drawing in pixels, before it is made coarse

# A pen's path for each digit, in a unit box with y down; several ways of writing where people differ.
_RING = [(0.5 + 0.34 * math.sin(a), 0.5 - 0.45 * math.cos(a)) for a in np.linspace(0, 2 * math.pi, 17)]
_PEN: dict[str, list[list[list[tuple[float, float]]]]] = {
    "0": [[_RING]],
    "1": [
        [[(0.32, 0.25), (0.55, 0.05), (0.55, 0.95)]],
        [[(0.5, 0.05), (0.5, 0.95)]],
        [[(0.35, 0.22), (0.55, 0.05), (0.52, 0.95)], [(0.3, 0.95), (0.75, 0.95)]],
    ],
    "2": [
        [[(0.2, 0.25), (0.35, 0.07), (0.62, 0.07), (0.75, 0.25), (0.65, 0.48), (0.2, 0.93), (0.82, 0.93)]],
        [[(0.2, 0.2), (0.5, 0.05), (0.75, 0.22), (0.6, 0.5), (0.3, 0.82), (0.25, 0.93), (0.45, 0.85), (0.85, 0.92)]],
    ],
    "3": [
        [[(0.22, 0.15), (0.5, 0.05), (0.74, 0.2), (0.66, 0.4), (0.42, 0.48), (0.7, 0.56), (0.78, 0.75), (0.55, 0.94),
          (0.2, 0.85)]],
        [[(0.2, 0.07), (0.75, 0.07), (0.45, 0.42), (0.72, 0.55), (0.75, 0.78), (0.5, 0.95), (0.2, 0.85)]],
    ],
    "4": [
        [[(0.6, 0.05), (0.18, 0.62), (0.85, 0.62)], [(0.62, 0.35), (0.6, 0.95)]],
        [[(0.25, 0.08), (0.22, 0.5), (0.75, 0.5)], [(0.75, 0.08), (0.7, 0.95)]],
        [[(0.45, 0.05), (0.2, 0.55), (0.8, 0.5)], [(0.72, 0.25), (0.55, 0.95)]],
    ],
    "5": [
        [[(0.78, 0.07), (0.28, 0.07), (0.25, 0.45), (0.55, 0.4), (0.78, 0.6), (0.7, 0.85), (0.45, 0.95), (0.2, 0.86)]],
        [[(0.3, 0.08), (0.25, 0.45), (0.6, 0.45), (0.75, 0.7), (0.5, 0.95), (0.2, 0.9)], [(0.3, 0.08), (0.8, 0.08)]],
    ],
    "6": [
        [[(0.65, 0.05), (0.35, 0.3), (0.22, 0.65), (0.35, 0.92), (0.62, 0.93), (0.76, 0.72), (0.6, 0.52), (0.26, 0.65)]],
        [[(0.45, 0.05), (0.28, 0.5), (0.3, 0.85), (0.55, 0.95), (0.75, 0.75), (0.55, 0.55), (0.28, 0.75)]],
    ],
    "7": [
        [[(0.2, 0.08), (0.8, 0.08), (0.42, 0.95)]],
        [[(0.2, 0.12), (0.78, 0.08), (0.45, 0.95)], [(0.32, 0.5), (0.75, 0.48)]],
    ],
    "8": [
        [[(0.5, 0.5), (0.25, 0.28), (0.5, 0.05), (0.74, 0.27), (0.5, 0.5), (0.22, 0.75), (0.5, 0.95), (0.78, 0.75),
          (0.5, 0.5)]],
        [[(0.7, 0.15), (0.4, 0.06), (0.28, 0.25), (0.7, 0.7), (0.55, 0.93), (0.3, 0.8), (0.65, 0.35), (0.7, 0.15)]],
    ],
    "9": [
        [[(0.74, 0.3), (0.55, 0.06), (0.28, 0.18), (0.28, 0.42), (0.55, 0.5), (0.74, 0.3), (0.68, 0.95)]],
        [[(0.72, 0.25), (0.45, 0.05), (0.25, 0.3), (0.5, 0.5), (0.72, 0.28), (0.7, 0.7), (0.5, 0.95), (0.25, 0.88)]],
    ],
}  # fmt: skip

SHAPES = ("circle", "square", "triangle", "cross", "diamond", "ring", "line")
LETTERS = string.ascii_uppercase


@dataclass(frozen=True)
class Glyph:
    """A drawn picture and what it shows: `kind` is digit, letter, shape or dots; `name` its value."""

    pixels: np.ndarray
    kind: str
    name: str


def draw(rng: np.random.Generator, size: int) -> Glyph:
    """One random picture `[size, size, 3]`, dark on light."""
    kind = str(rng.choice(["digit", "letter", "shape", "dots"], p=[0.6, 0.15, 0.13, 0.12]))
    ink = Image.new("L", (CANVAS, CANVAS), 0)
    pen = ImageDraw.Draw(ink)
    if kind == "digit":
        name = str(rng.integers(10))
        if rng.random() < 0.85:
            _write(pen, rng, name)
        else:
            _print(pen, rng, name)
    elif kind == "letter":
        name = str(rng.choice(list(LETTERS)))
        _print(pen, rng, name)
    elif kind == "shape":
        name = str(rng.choice(SHAPES))
        _shape(pen, rng, name)
    else:
        name = str(rng.integers(1, 7))
        _dots(pen, rng, int(name))
    return Glyph(_scan(ink, rng, size), kind, name)


def _write(pen: ImageDraw.ImageDraw, rng: np.random.Generator, digit: str) -> None:
    """Draws a digit as a hand would: a jittered, smoothed path."""
    width, height = rng.uniform(0.45, 0.85) * CANVAS, rng.uniform(0.75, 0.98) * CANVAS
    slant, angle, thickness = rng.normal(0, 0.15), rng.normal(0, 0.12), int(rng.integers(5, 13))
    ways = _PEN[digit]
    for stroke in ways[rng.integers(len(ways))]:
        points = np.array(stroke) + rng.normal(0, 0.035, (len(stroke), 2)) - 0.5
        points = _smooth(points)
        x = points[:, 0] * width - points[:, 1] * slant * height
        y = points[:, 1] * height
        x, y = x * math.cos(angle) - y * math.sin(angle), x * math.sin(angle) + y * math.cos(angle)
        path = [(float(a) + CANVAS / 2, float(b) + CANVAS / 2) for a, b in zip(x, y, strict=True)]
        pen.line(path, fill=255, width=thickness, joint="curve")
        for a, b in (path[0], path[-1]):
            r = thickness / 2
            pen.ellipse((a - r, b - r, a + r, b + r), fill=255)


def _smooth(points: np.ndarray, rounds: int = 2) -> np.ndarray:
    """Cuts corners (Chaikin, 1974)."""
    for _ in range(rounds):
        if len(points) < 3:
            return points
        left, right = 0.75 * points[:-1] + 0.25 * points[1:], 0.25 * points[:-1] + 0.75 * points[1:]
        points = np.concatenate([points[:1], np.stack([left, right], 1).reshape(-1, 2), points[-1:]])
    return points


def _print(pen: ImageDraw.ImageDraw, rng: np.random.Generator, text: str) -> None:
    """Draws a character of Pillow's own font."""
    font = ImageFont.load_default(int(rng.integers(44, 76)))
    at = (CANVAS / 2 + rng.normal(0, 2), CANVAS / 2 + rng.normal(0, 2))
    pen.text(at, text, fill=255, font=font, anchor="mm", stroke_width=int(rng.integers(0, 4)))


def _shape(pen: ImageDraw.ImageDraw, rng: np.random.Generator, name: str) -> None:
    cx, cy = CANVAS / 2 + rng.normal(0, 4, 2)
    r, thickness = rng.uniform(14, 28), int(rng.integers(5, 12))
    box = (cx - r, cy - r, cx + r, cy + r)
    if name == "circle":
        pen.ellipse(box, fill=255)
    elif name == "ring":
        pen.ellipse(box, outline=255, width=thickness // 2 + 1)
    elif name == "square":
        pen.rectangle(box, fill=255)
    elif name == "triangle":
        pen.polygon([(cx, cy - r), (cx - r, cy + r), (cx + r, cy + r)], fill=255)
    elif name == "diamond":
        pen.polygon([(cx, cy - r), (cx - r, cy), (cx, cy + r), (cx + r, cy)], fill=255)
    elif name == "cross":
        pen.line([(cx - r, cy), (cx + r, cy)], fill=255, width=thickness)
        pen.line([(cx, cy - r), (cx, cy + r)], fill=255, width=thickness)
    else:
        pen.line([(cx - r, cy), (cx + r, cy)], fill=255, width=thickness)


def _dots(pen: ImageDraw.ImageDraw, rng: np.random.Generator, count: int) -> None:
    """Draws dots on separate cells of a 3 x 3 grid."""
    cell = CANVAS / 3
    for index in rng.permutation(9)[:count]:
        cx, cy = (index % 3 + 0.5) * cell + rng.normal(0, 2), (index // 3 + 0.5) * cell + rng.normal(0, 2)
        r = rng.uniform(5, 8)
        pen.ellipse((cx - r, cy - r, cx + r, cy + r), fill=255)


def _scan(ink: Image.Image, rng: np.random.Generator, size: int) -> np.ndarray:
    """Turns ink into a coarse, noisy scan, resized to the model's input."""
    if rng.random() < 0.5:
        ink = ink.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 2.5)))
    coarse = int(rng.choice([8, 8, 8, 10, 12, 16, 32]))
    pixels = np.asarray(ink.resize((coarse, coarse), Image.Resampling.BOX), np.float32) / 255
    pixels = np.clip(pixels * rng.uniform(0.8, 1.6) + rng.normal(0, 0.03, pixels.shape), 0, 1)
    paper = Image.fromarray(((1 - pixels) * 255).astype(np.uint8))
    return np.repeat(np.asarray(paper.resize((size, size), Image.Resampling.BILINEAR))[..., None], 3, axis=-1)
