"""What the demo never varies: formats, sizes and names of pictures, one row alone, texts that are long or blank."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from real_data.command_line import CommandLine, parse_summary
from real_data.conftest import Published
from real_data.test_tasks import check_evaluation, lines

ODD: dict[str, Callable[[Image.Image], Image.Image]] = {
    "100 %.png": lambda flag: flag,
    "50%20 off#1?.png": lambda flag: flag,
    "палітра of 16.gif": lambda flag: flag.convert("P", palette=Image.Palette.ADAPTIVE, colors=16),
    "two frames.gif": lambda flag: flag.convert("P"),
    "旗.webp": lambda flag: flag,
    "a'quote\".bmp": lambda flag: flag,
    "grey.TIFF": lambda flag: flag.convert("L"),
    "one bit.png": lambda flag: flag.convert("1"),
    "ink.jpg": lambda flag: flag.convert("CMYK"),
    "grey and alpha.png": lambda flag: flag.convert("LA"),
    "one pixel.png": lambda flag: flag.resize((1, 1)),
    "a line.png": lambda flag: flag.resize((3000, 1)),
    "huge.png": lambda flag: flag.convert("P", palette=Image.Palette.ADAPTIVE).resize((8000, 8000), Image.Resampling.NEAREST),
    "deep/er folder/é.ppm": lambda flag: flag,
}
"""Names of pictures, and what a flag is made into."""


@pytest.fixture(scope="module")
def odd(published: Published) -> Path:
    """A folder of odd pictures of real flags, and `table.csv` with a row for each."""
    folder = published.folder / "odd pictures"
    flags = sorted(published.folder.glob("flags/*.png"))
    rows = []
    for flag, (name, make) in zip(flags, ODD.items(), strict=False):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        more = {"save_all": True, "append_images": [Image.new("P", (5, 5))]} if "frames" in name else {}
        make(Image.open(flag).convert("RGB")).save(folder / name, **more)
        rows.append({"image": name, "text": f'{flag.stem}\nin two lines, with "quotes", {len(rows)}'})
    rows[1]["text"] = "long " * 40
    rows.append({"image": rows[0]["image"], "text": "  "})
    with (folder / "table.csv").open("w", encoding="utf-16", newline="") as file:
        writer = csv.DictWriter(file, ["image", "text"], delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)
    return folder


def test_odd_pictures_go_all_the_way(odd: Path, command_line: CommandLine, tmp_path: Path) -> None:
    said = command_line.paligemma(
        "convert",
        "table",
        "--table",
        odd / "table.csv",
        "--encoding",
        "utf-16",
        "--prefix",
        "caption en",
        "--suffix",
        "{text}",
        "--output",
        odd / "rows.jsonl",
    )
    summary = parse_summary(said)
    assert (summary.rows, summary.skipped) == (len(ODD), 1)  # the blank one
    command_line.step(
        "prepare_data",
        "--data",
        odd / "rows.jsonl",
        "--checkpoint",
        "embedded:tiny",
        "--max-text-tokens",
        96,
        "--output",
        tmp_path / "records",
    )
    dataset = json.loads((tmp_path / "records/dataset.json").read_text())
    assert (dataset["rows"], dataset["rejected"]) == (len(ODD) - 1, {"text_too_long": 1})
    command_line.step(
        "evaluate",
        "--checkpoint",
        "embedded:tiny",
        "--records",
        tmp_path / "records",
        "--task",
        "caption",
        "--output",
        tmp_path / "evaluation",
    )
    check_evaluation(tmp_path / "evaluation", len(ODD) - 1)
    command_line.paligemma("preview", "--data", odd / "rows.jsonl", "--output", tmp_path / "preview.html")
    assert (tmp_path / "preview.html").read_text(encoding="utf-8").count("data:image/") >= len(ODD) - 1


def test_a_folder_of_odd_pictures_is_answered(odd: Path, command_line: CommandLine, tmp_path: Path) -> None:
    answers = tmp_path / "answers.jsonl"
    command_line.paligemma("generate", "--image", odd, "--prompt", "caption en", "--max-new-tokens", 4, "--output", answers)
    found = {line["image"]: line for line in lines(answers)}
    assert found.keys() >= set(ODD)
    assert [name for name in ODD if "answer" not in found[name]] == []


def test_one_row(published: Published, command_line: CommandLine, tmp_path: Path) -> None:
    row = published.rows("scripts", "val").read_text(encoding="utf-8").splitlines()[0]
    (tmp_path / "row.jsonl").write_text(row + "\n", encoding="utf-8")
    records, tuned = tmp_path / "records", tmp_path / "tuned"
    command_line.step(
        "prepare_data",
        "--data",
        tmp_path / "row.jsonl",
        "--images",
        published.folder,
        "--checkpoint",
        "embedded:tiny",
        "--output",
        records,
    )
    command_line.step(
        "finetune",
        "--checkpoint",
        "embedded:tiny",
        "--records",
        records,
        "--recipe",
        "demo",
        "--set",
        "steps=2",
        "--set",
        "batch_size=1",
        "--output",
        tuned,
    )
    for task in ("vqa", "caption"):
        command_line.step(
            "evaluate",
            "--checkpoint",
            "embedded:tiny",
            "--records",
            records,
            "--tuned",
            tuned,
            "--task",
            task,
            "--output",
            tmp_path / task,
        )
        check_evaluation(tmp_path / task, 1)
