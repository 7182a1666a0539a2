"""Bytes a row and processor time of ways to store a picture in a record, on pictures that nobody here made.

    .venv/bin/python tests/benchmarks/stored_pictures.py maps=FOLDER emoji=FOLDER photographs=FOLDER

Of each folder, at any depth, a sample of pictures is resized as `prepare_data` does it. Every way is confirmed to give back the
same levels. Processor time, because the machine may be busy.
"""

from __future__ import annotations

import io
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image, features

from paligemma.data.images import ImageError, fit_image, read_image_file
from paligemma.data.stored_pictures import pack_picture, unpack_picture

Pack, Unpack = Callable[[np.ndarray], bytes], Callable[[bytes, int], np.ndarray]


def by_pillow(kind: str, **how) -> tuple[Pack, Unpack]:
    """A format as Pillow writes and reads it."""

    def pack(pixels: np.ndarray) -> bytes:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, kind, **how)
        return file.getvalue()

    return pack, lambda stored, size: np.asarray(Image.open(io.BytesIO(stored)))


def webp(method: int, quality: int) -> tuple[Pack, Unpack]:
    """WebP's lossless form with more effort than ours."""
    return by_pillow("WEBP", lossless=True, method=method, quality=quality, exact=True)


def ours(compression) -> tuple[Pack, Unpack]:
    """As records have it."""
    return (
        lambda pixels: pack_picture(pixels, compression),
        lambda stored, size: unpack_picture(stored, size, compression),
    )


WAYS: dict[str, tuple[Pack, Unpack]] = {
    "raw (`none`)": ours("none"),
    "PNG, level 1": by_pillow("PNG", compress_level=1),
    "PNG, level 6": by_pillow("PNG", compress_level=6),
    "WebP, method 0 (`webp`)": ours("webp"),
    "WebP, method 1": webp(1, 0),
    "WebP, method 4": webp(4, 50),
}


def pictures_of(folder: Path, size: int, most: int) -> list[np.ndarray]:
    """A sample of the pictures below a folder, as records have them."""
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp"))
    random.Random(0).shuffle(found)
    fitted = []
    for path in found:
        try:
            fitted.append(np.asarray(fit_image(read_image_file(path), size, path)[0]))
        except ImageError:
            continue
        if len(fitted) == most:
            break
    return fitted


def seconds(work: Callable[[], object], rounds: int) -> float:
    """Processor time of one round: the least of all."""
    least = float("inf")
    for _ in range(rounds):
        before = time.process_time()
        work()
        least = min(least, time.process_time() - before)
    return least


def main(
    folders: Annotated[list[str], typer.Argument(metavar="NAME=FOLDER...")],
    size: Annotated[list[int], typer.Option(help="Sides of the square in pixels.")] = [224, 448, 896],  # noqa: B006
    most: Annotated[int, typer.Option(help="Pictures of each folder.")] = 32,
    rounds: Annotated[int, typer.Option(help="How often each is timed.")] = 3,
) -> None:
    """Prints a table."""
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, libwebp {features.version('webp')}")
    print("| pictures | pixels | way | kB a row | of raw | packing, ms | unpacking, ms |\n|" + " --- |" * 7)
    for side in size:
        for name, folder in (one.split("=", 1) for one in folders):
            pictures = pictures_of(Path(folder), side, most)
            for way, (pack, unpack) in WAYS.items():
                stored = [pack(picture) for picture in pictures]
                for one, picture in zip(stored, pictures, strict=True):
                    np.testing.assert_array_equal(unpack(one, side), picture)
                mean = sum(map(len, stored)) / len(stored)
                packing = seconds(lambda pack=pack, pictures=pictures: [pack(one) for one in pictures], rounds)
                unpacking = seconds(
                    lambda unpack=unpack, stored=stored, side=side: [unpack(one, side) for one in stored], rounds
                )
                print(
                    f"| {name} ({len(pictures)}) | {side} | {way} | {mean / 1e3:.1f} | {mean / (3 * side**2):.1%} "
                    f"| {packing / len(stored) * 1e3:.2f} | {unpacking / len(stored) * 1e3:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    typer.run(main)
