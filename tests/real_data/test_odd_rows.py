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
def odd(published: Published, unpacked: tuple[Path, Path]) -> Path:
    """A folder of odd pictures of real flags, and `table.csv` with a row for each."""
    folder = published.folder / "odd pictures"
    flags = sorted(unpacked[0].glob("usr/share/kgeography/flags/*.png"))
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
    table = {"table": odd / "table.csv", "encoding": "utf-16", "prefix": "caption en", "suffix": "{text}"}
    summary = parse_summary(command_line.paligemma("convert", "table", **table, output=odd / "rows.jsonl"))
    assert (summary.rows, summary.skipped) == (len(ODD), 1)  # the blank one
    records, evaluation, preview = (tmp_path / name for name in ("records", "evaluation", "preview.html"))
    command_line.step("prepare_data", data=odd / "rows.jsonl", checkpoint="embedded:tiny", max_text_tokens=96, output=records)
    dataset = json.loads((records / "dataset.json").read_text())
    assert (dataset["rows"], dataset["rejected"]) == (len(ODD) - 1, {"text_too_long": 1})
    command_line.step("evaluate", checkpoint="embedded:tiny", records=records, task="caption", output=evaluation)
    check_evaluation(evaluation, len(ODD) - 1)
    command_line.paligemma("preview", model="embedded:tiny", data=odd / "rows.jsonl", output=preview)
    assert preview.read_text(encoding="utf-8").count("data:image/") >= len(ODD) - 1


def test_a_folder_of_odd_pictures_is_answered(odd: Path, command_line: CommandLine, tmp_path: Path) -> None:
    answers = tmp_path / "answers.jsonl"
    command_line.paligemma("generate", model="embedded:tiny", image=odd, prompt="caption en", max_new_tokens=4, output=answers)
    found = {line["image"]: line for line in lines(answers)}
    assert found.keys() >= set(ODD)
    assert [name for name in ODD if "answer" not in found[name]] == []


def test_one_row(published: Published, command_line: CommandLine, tmp_path: Path) -> None:
    data, records, tuned, evaluation = (tmp_path / name for name in ("row.jsonl", "records", "tuned", "evaluation"))
    data.write_text(published.rows("scripts", "val").read_text(encoding="utf-8").splitlines()[0] + "\n", encoding="utf-8")
    command_line.step("prepare_data", data=data, images=published.folder, checkpoint="embedded:tiny", output=records)
    few = ["steps=2", "batch_size=1", "remat=none"]
    command_line.step("finetune", checkpoint="embedded:tiny", records=records, set=few, output=tuned)
    command_line.step("evaluate", checkpoint="embedded:tiny", records=records, tuned=tuned, task="caption", output=evaluation)
    check_evaluation(evaluation, 1)
