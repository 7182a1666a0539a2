"""Rows that hold pictures, written by a stranger: what they take of memory and time stays within that of one large picture."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from conftest import REPOSITORY
from paligemma.checkpoints.open_checkpoint import resolve_embedded

MOST_MIB_OF_A_WORKER = 512
LARGE = 11 << 20  # bytes, which base64 makes 15 MiB
LINES = 6
PREPARE = """
import json, re, resource, sys
from pathlib import Path
from paligemma.data.prepare import Facts, Job, Preparer
from paligemma.data.row_sources import RowSource
from paligemma.data.rows import read_rows
data, tokenizer = map(Path, sys.argv[1:3])
images = int(sys.argv[3])
sources = [RowSource(data, str(data.parent))]
preparer = Preparer(Job(sources, tokenizer, 32, 128, "reject", "none", images_per_example=images))
codes = []
for example, _, remarks in preparer.judge(read_rows(data, images=images), Facts(), lambda line, rejected: None):
    codes.append("" if example is not None else remarks[0].code)
used = resource.getrusage(resource.RUSAGE_SELF)
most = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]  # ru_maxrss would be the parent's too
print(json.dumps([codes, int(most) / 1024, used.ru_utime + used.ru_stime]))
"""


def row(image: object, **more: object) -> bytes:
    return json.dumps({"image": image, "prefix": "p", "suffix": "s", **more}).encode()


def coded(start: bytes, size: int = LARGE) -> str:
    return base64.b64encode(start + bytes(size) + os.urandom(8)).decode()


def pictures(count: int) -> list[str]:
    """So many pictures as fit into a row, each of its own."""
    return [ADDRESS + coded(PNG, LARGE // count) for _ in range(count)]


def huge() -> bytes:
    """A picture that takes as much memory as one may, in a file as large as fits into a row."""
    file = io.BytesIO()
    Image.new("RGB", (6200, 6200), "red").save(file, "JPEG", progressive=True)
    return file.getvalue()


JPEG, PNG = b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n"
ADDRESS = "data:image/png;base64,"
ATTACKS = {
    "huge pictures": (lambda: row(ADDRESS + coded(huge())), ""),
    "pictures": (lambda: row(ADDRESS + coded(JPEG)), "image_unreadable"),
    "bare pictures": (lambda: row(coded(JPEG)), "image_unreadable"),
    "almost bare": (lambda: row("iVBORw0KGgo" + "A" * LARGE + "!"), "line_too_long"),
    "white space": (lambda: row(ADDRESS + " \n" * (LARGE // 4)), "image_unreadable"),
    "many that are no pictures": (lambda: row(ADDRESS + coded(PNG)), "image_unreadable"),
    "many that are no base64": (lambda: row(ADDRESS + coded(PNG) + "?"), "image_unreadable"),
    "percent signs": (lambda: row(ADDRESS + "%41" * (LARGE // 3)), "image_unreadable"),
    "escaped slashes": (lambda: row(ADDRESS + "%2F" * (LARGE // 3)), "image_unreadable"),
    "no comma": (lambda: row("data:" + ";" * LARGE), "line_too_long"),
    "spaces first": (lambda: row(" " * LARGE + "data:;base64,AAAA"), "image_unreadable"),
    "brackets": (lambda: row("a.png", note=[[]] * (LARGE // 4)), "line_too_long"),
    "a long text": (lambda: row(ADDRESS + coded(PNG), note="x" * (2 << 20)), "line_too_long"),
    "32 pictures": (lambda: row(pictures(32)), "image_unreadable"),
    "32 huge pictures": (lambda: row([ADDRESS + coded(huge(), 0)] * 32), ""),
    "32 names, and one more": (lambda: row(["a.png"] * 33), "images_several"),
    "32 were wanted, and there is one": (lambda: row(ADDRESS + coded(PNG)), "images_several"),
    "32 that are lists of lists": (lambda: row([[["a.png"] * 9] * 9] * 32), "type_wrong"),
    "32 were wanted, and there are thousands": (lambda: row(["a" * 100] * 9000), "images_several"),
    "32 were wanted, and there are millions": (lambda: row(["a"] * (LARGE // 5)), "line_too_long"),
    "escapes of JSON": (lambda: row(ADDRESS + "\u0100" * (LARGE // 6)), "image_unreadable"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_row_takes_bounded_memory_and_time(tmp_path: Path, name: str) -> None:
    make, code = ATTACKS[name]
    with (tmp_path / "rows.jsonl").open("wb") as file:
        lines = 6 * LINES if name.startswith("many") else LINES
        for _ in range(lines):
            file.write(make() + b"\n")
    tokenizer = resolve_embedded("embedded:tiny") / "tokenizer.model"
    images = 32 if name.startswith("32") else 1
    arguments = [sys.executable, "-c", PREPARE, str(tmp_path / "rows.jsonl"), str(tokenizer), str(images)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, cwd=REPOSITORY)
    codes, mib, seconds = json.loads(done.stdout)
    assert codes == [code] * lines
    assert mib < MOST_MIB_OF_A_WORKER
    assert seconds < 3 + 0.5 * lines
