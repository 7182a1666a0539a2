"""Makes the picture of a report that README.md shows: `make demo`, then `.venv/bin/python tests/browser/picture.py`.

It needs Chromium (`apt-get install chromium`).
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from pathlib import Path

from PIL import Image

REPOSITORY = Path(__file__).parents[2]
PICTURE = REPOSITORY / "pipelines/guides/report.png"
WIDTH, HEIGHT = 1100, 680
COLOURS = 64
"""Enough for a page of text with grey digits, in a fifth of the bytes."""


def main() -> None:
    """Renders the demo's evaluation of base and tuned model as a browser shows it."""
    report = json.loads((REPOSITORY / "runs/demo/summary.json").read_text())["reports"]["base and tuned"]
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    assert chromium, "a browser is needed: apt-get install chromium"
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "shot.png"
        quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", f"--user-data-dir={folder}/user"]
        size = [f"--window-size={WIDTH},{HEIGHT}", "--hide-scrollbars", "--virtual-time-budget=20000"]
        command = [chromium, *quiet, *size, f"--screenshot={shot}", Path(report).absolute().as_uri()]
        subprocess.run(command, check=True, capture_output=True)
        with Image.open(shot) as page:
            page.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(PICTURE, optimize=True)
    print(f"wrote {PICTURE.relative_to(REPOSITORY)}: {PICTURE.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
