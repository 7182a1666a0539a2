"""Image files made to take memory or time, each built from what it abuses, and a program that measures what each one takes.

Every attack is built in one process, and decoded and resized in another one that is forked for it, so that neither counts for
the other and no interpreter is started for it. Prints a JSON line for each: name, code or size, processor seconds, MiB.

PYTHONPATH=shared:tests .venv/bin/python -m hostile.picture_attacks [PART OF A NAME]
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from hostile.attack_list import ATTACKS, SIZE

from paligemma.data.images import ImageError, decode_image, fit_image, read_image_file

FORMATS = ("png", "jpeg_and_gif", "tiff", "other")
for _kind in FORMATS:
    importlib.import_module(f"hostile.{_kind}_attacks")  # which adds its files to the list

WHOLE = {
    "png_with_transparency_everywhere",
    "png_of_16_bit_grey",
    "png_one_pixel_wide",
    "tiff_with_jpeg_strips",
    "tiff_turned",
    "ppm_whose_samples_end_at_254",
    "pbm_as_text",
}
"""Those that take the most when they are decoded whole, as for an answer, and not for the records."""


def measure(name: str, folder: Path) -> dict[str, object]:
    """What decoding an attack takes, for the records and for an answer, in a process of its own each."""
    path = folder / name
    _forked(lambda: path.write_bytes(ATTACKS[name]()) and None)
    found: dict[str, object] = {"name": name, "bytes": path.stat().st_size}
    found["fit"] = _used(lambda: fit_image(read_image_file(path), SIZE)[1:])
    if name in WHOLE:
        found["decode"] = _used(lambda: decode_image(read_image_file(path)).shape)
    path.unlink()
    return found


def _used(call: Callable[[], object]) -> dict[str, object]:
    result, usage = _forked(call)
    return {"result": result, "seconds": round(usage.ru_utime + usage.ru_stime, 2), "mib": usage.ru_maxrss // 1024}


def _forked(call: Callable[[], object]) -> tuple[object, object]:
    """What a call answers in a forked process, or the code and words of its error; and what the process used."""
    reading, writing = os.pipe()
    process = os.fork()
    if not process:
        try:
            answer = call()
        except ImageError as error:
            answer = [error.code, error.what]
        except BaseException as error:
            answer = ["escaped", repr(error)]
        os.write(writing, json.dumps(answer).encode()[:60_000])
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        answer = file.read()
    _, status, usage = os.wait4(process, 0)
    return json.loads(answer) if answer else ["killed", f"status {status}"], usage


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as root:
        for wanted in ATTACKS:
            if not sys.argv[1:] or sys.argv[1] in wanted:
                print(json.dumps(measure(wanted, Path(root))), flush=True)
