"""Every page at the widths of a desk and of a telephone: nothing is wider than the screen, no word is broken letter by letter.

Pictures of all of them are left in `runs/pages`, to be looked at.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from page_scripts import with_script

from components.evaluate.__main__ import run as evaluate
from components.finetune.__main__ import run as finetune
from components.preflight.__main__ import run as preflight
from components.prepare_data.__main__ import run as prepare_data
from conftest import REPOSITORY, SmallData
from paligemma.data.preview import preview_page
from paligemma.lineage.index import Index
from paligemma.lineage.page import page_data, render_page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WIDTHS = (1400, 400)
PICTURES = REPOSITORY / "runs/pages"
BASE = "embedded:tiny"
PAGES = ("dataset", "training", "base", "evaluation", "preflight", "preview", "lineage")

# A frame has the width of a telephone; a window of Chromium's has 500 pixels at least. Words are looked at where they stand: a
# word of up to 14 letters that takes more than one line is broken; the letters of a hash are no word.
SCRIPT = """
{
const broken = [], range = document.createRange();
const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walk.nextNode()) {
  const text = walk.currentNode, parent = text.parentElement.closest("td, th, p, dd, b");
  if (!parent || text.parentElement.closest("script, style, svg, .token")) continue;
  for (const found of text.data.matchAll(/(?<![A-Za-z0-9])[A-Za-z]{3,14}(?![A-Za-z0-9])/g)) {
    range.setStart(text, found.index); range.setEnd(text, found.index + found[0].length);
    if (new Set([...range.getClientRects()].map(box => Math.round(box.top))).size > 1) broken.push(found[0]);
  }
}
const empty = [];
for (const table of document.querySelectorAll("table")) {
  const rows = [...table.rows].filter(row => row.querySelector("td"));
  for (let column = 0; rows.length && column < table.rows[0].cells.length; column++)
    if (rows.every(row => (cell => cell && !cell.textContent.trim() && !cell.querySelector("img, svg"))(row.cells[column])))
      empty.push(table.rows[0].cells[column].textContent);
}
const cut = [...document.querySelectorAll("table")].filter(table => table.scrollWidth > table.clientWidth + 1)
  .map(table => table.rows[0].textContent);
parent.postMessage(JSON.stringify({ cut, wide: document.documentElement.scrollWidth - innerWidth, broken, empty,
  height: document.documentElement.scrollHeight }), "*");
}
"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Every page that there is, of a small run with something wrong in its data."""
    root = tmp_path_factory.mktemp("pages")
    data = SmallData(tmp_path_factory.mktemp("data"))
    asked = ("ocr", "is the digit that is written here odd or even?")
    rows: list[object] = [
        {"image": data.add_image(f"IMG_20260301_{number:06d}.png", number, 64), "prefix": prefix, "suffix": str(number % 3)}
        for number in range(12)
        for prefix in asked
    ]
    rows += [{"image": "nowhere.png", "prefix": "ocr", "suffix": "1"}, b"{no json", {"image": "IMG_20260301_000001.png"}]
    file = data.write(rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PALIGEMMA_RUN", "weekly-2026-03-01")
        patch.setenv("PALIGEMMA_LINEAGE_ROOT", str(root))
        prepare_data(data=str(file), checkpoint=BASE, output=str(root / "train"), max_reject_fraction=0.5)
        preflight(checkpoint=BASE, target="cpu", output=str(root / "preflight"), set_=["batch_size=8"])
        recipe = ["steps=3", "batch_size=8", "remat=none"]
        finetune(checkpoint=BASE, records=str(root / "train"), output=str(root / "tuned"), set_=recipe)
        judged = {"task": "classify", "max_new_tokens": 4}
        evaluate(BASE, str(root / "train"), str(root / "base"), **judged)
        beside = {"tuned": str(root / "tuned"), "baseline": str(root / "base")}
        evaluate(BASE, str(root / "train"), str(root / "evaluation"), **beside, **judged)
    with Index(root) as index:
        lineage = render_page(page_data(index, 5, 100, beside=root))
    made = {
        "dataset": root / "train/report.html",
        "training": root / "tuned/training.html",
        "base": root / "base/report.html",
        "evaluation": root / "evaluation/report.html",
        "preflight": root / "preflight/preflight.html",
    }
    return {name: path.read_text() for name, path in made.items()} | {
        "preview": preview_page(str(file), BASE, rows=6),
        "lineage": lineage,
    }


def chromium(folder: Path, *more: str) -> str:
    assert CHROMIUM, "a browser is needed: apt-get install chromium"
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", f"--user-data-dir={folder}/user"]
    alone = ["--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=5000", "--hide-scrollbars"]
    command = [CHROMIUM, *quiet, *alone, *more]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_readable_at_a_width(pages: dict[str, str], name: str, width: int, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(with_script(pages[name], SCRIPT))
    frame = tmp_path / "frame.html"
    frame.write_text(
        f"<!doctype html><body style='margin:0'><iframe src='page.html' style='border:0;width:{width}px;height:900px'></iframe>"
        "<script>onmessage = told => { document.body.dataset.seen = told.data; };</script>"
    )
    seen = re.search(r'data-seen="([^"]*)"', chromium(tmp_path, "--dump-dom", "--allow-file-access-from-files", frame.as_uri()))
    assert seen, "the page said nothing"
    found = json.loads(html.unescape(seen[1]))
    PICTURES.mkdir(parents=True, exist_ok=True)
    height = min(found["height"], 6000)
    frame.write_text(frame.read_text().replace("height:900px", f"height:{height}px").partition("<script>")[0])
    picture = f"--screenshot={PICTURES / f'{name}-{width}.png'}"
    chromium(tmp_path, picture, f"--window-size={max(width, 500)},{height}", "--allow-file-access-from-files", frame.as_uri())
    assert (found["wide"] <= 0, found["broken"], found["empty"], found["cut"]) == (True, [], [], [])


@pytest.mark.parametrize("name", ["training", "base", "evaluation", "preflight"])
def test_a_page_says_which_run_model_data_and_commit_it_is_about(pages: dict[str, str], name: str) -> None:
    for said in ("weekly-2026-03-01", "<dt>commit</dt>", "checkpoint"):
        assert said in pages[name]
    if name != "preflight":
        assert "sha256" in pages[name]


def test_what_a_page_is_opened_for_comes_first(pages: dict[str, str]) -> None:
    for name, first, later in (
        ("dataset", "<h2>Rejected</h2>", "<h2>What the model is fed</h2>"),
        ("evaluation", "Keep what there is</h2>", '<div class="tiles">'),
        ("evaluation", "<h2>By question</h2>", "<h2>Metrics</h2>"),
        ("evaluation", "<h2>Confusion</h2>", "<h2>Metrics</h2>"),
        ("preflight", "It fits", "<table"),
    ):
        assert 0 < pages[name].index(first) < pages[name].index(later)
    assert 'class="number shade-' in pages["evaluation"]
