"""Walks from photos and a CSV to the release that a photo went into, with the commands of the guides.

The commands are the guides' own. What is put in place of the demo's names is the table at the top of `own-data.md`.
"""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

from conftest import OPTIMIZED, REPOSITORY

GUIDES = REPOSITORY / "pipelines/guides"
PHOTOS, SIZE = 120, (320, 240)
STORED_AS = {  # EXIF's orientation, and how the pixels lie in the file
    1: None,
    3: Image.Transpose.ROTATE_180,
    6: Image.Transpose.ROTATE_90,
    8: Image.Transpose.ROTATE_270,
}


@dataclass(frozen=True)
class Scene:
    """What is on a photo."""

    day: bool
    left: bool
    snow: bool

    def answers(self) -> dict[str, str]:
        """The right answer to each question."""
        return {
            "is it day or night?": "day" if self.day else "night",
            "is the light left or right?": "left" if self.left else "right",
            "is there snow?": "yes" if self.snow else "no",
        }

    def take(self, random: np.random.Generator) -> Image.Image:
        """The scene as people see it: sky, ground, sun or moon, and the noise of a camera."""
        width, height = SIZE
        sky = np.array((120, 180, 240) if self.day else (8, 10, 40))
        ground = np.array((235, 235, 240) if self.snow else (60, 100, 40))
        horizon = int(height * random.uniform(0.55, 0.7))
        pixels = np.where((np.arange(height) < horizon)[:, None, None], sky, ground * (1 if self.day else 0.6))
        pixels = np.broadcast_to(pixels, (height, width, 3)) + random.normal(0, 6, (height, width, 3))
        photo = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
        x = width * random.uniform(0.12, 0.28)
        x, y, radius = x if self.left else width - x, height * random.uniform(0.2, 0.35), random.uniform(24, 34)
        color = (255, 225, 60) if self.day else (230, 230, 225)
        ImageDraw.Draw(photo).ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)
        return photo


def save_as_a_camera_does(photo: Image.Image, path: Path, orientation: int) -> None:
    """A JPEG whose pixels lie as the camera was held, with what EXIF says of it."""
    exif = Image.Exif()
    exif[0x010F], exif[0x0110], exif[0x0112], exif[0x0132] = "Camera", "Model 1", orientation, "2026:03:01 10:00:00"
    turn = STORED_AS[orientation]
    (photo if turn is None else photo.transpose(turn)).save(path, "JPEG", quality=88, exif=exif)


def write_table(path: Path, scenes: dict[str, Scene]) -> None:
    """A CSV as a spreadsheet leaves it: semicolons, a mark in front, empty lines, remarks with all that a cell may hold."""
    text = io.StringIO()
    write = csv.writer(text, delimiter=";", lineterminator="\r\n").writerow
    write(["id", "question", "answer", "asked by", "remark"])
    for number, (name, scene) in enumerate(scenes.items()):
        for question, answer in scene.answers().items():
            remark = ('two "suns"; a reflection', "line one\nline two", "", "Zürich, früh")[number % 4]
            write([name, question, answer, "Ana", remark])
        if number % 40 == 7:
            write(["", "", "", "", ""][:0])
            write([name, "is it blurred?", "", "Bo", "not answered yet"])
    write(["IMG_9999", "is there snow?", "yes", "Bo", "the photo was deleted"])
    path.write_bytes(b"\xef\xbb\xbf" + text.getvalue().encode())


@dataclass(frozen=True)
class Reader:
    """Somebody who has a clone, photos and a CSV, and types what the guides say."""

    clone: Path
    scenes: dict[str, Scene]

    def command(self, guide: str, beginning: str, holding: str = "") -> str:
        """The first command of a guide that begins so, and holds the other words, with the reader's own names."""
        found = [line for line in commands(guide) if line.startswith(f".venv/bin/paligemma {beginning} ") and holding in line]
        assert found, f"{guide}.md has no command `{beginning} ... {holding}`"
        line = found[0]
        for demo, own in own_names().items():
            line = line.replace(demo, own)
        assert "runs/demo" not in line
        return line

    def type(self, line: str) -> str:
        """What the command prints; it has to succeed."""
        environment = OPTIMIZED | {"PALIGEMMA_CACHE": str(self.clone / "cache")}
        done = subprocess.run(
            ["bash", "-c", line], cwd=self.clone, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        assert "Traceback" not in done.stderr
        return done.stdout

    def rows(self, name: str) -> list[dict]:
        """Rows that were written."""
        return [json.loads(line) for line in (self.clone / "photos" / name).read_text().splitlines()]


def commands(guide: str) -> list[str]:
    """Every line of a guide's blocks, in their order, whether it needs a reader's files or not."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", (GUIDES / f"{guide}.md").read_text(), re.DOTALL | re.MULTILINE)
    return [line for language, block in blocks if language in ("sh", "") for line in block.splitlines()]


def own_names() -> dict[str, str]:
    """What the guide says is to be put in place of the demo's names."""
    return dict(re.findall(r"^\| `([^`|]+)` \| `([^`|]+)` \|", (GUIDES / "own-data.md").read_text(), re.MULTILINE))


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    """A clone in which nothing has run yet, with photos and a table."""
    clone = tmp_path_factory.mktemp("walk") / "clone"
    clone.mkdir()
    for entry in REPOSITORY.iterdir():
        if entry.name not in ("runs", ".git"):
            (clone / entry.name).symlink_to(entry)
    (clone / "photos").mkdir()
    random = np.random.default_rng(21)
    scenes = {}
    for number in range(PHOTOS):
        day, left, snow = (bool(number >> bit & 1) for bit in range(3))
        name = f"IMG_{number:04d}"
        scenes[name] = Scene(day, left, snow)
        orientation = list(STORED_AS)[number // 8 % len(STORED_AS)]
        save_as_a_camera_does(scenes[name].take(random), clone / f"photos/{name}.jpg", orientation)
    write_table(clone / "answers.csv", scenes)
    return Reader(clone, scenes)


def test_a_photo_of_the_test_is_turned_by_its_orientation_alone(tmp_path: Path) -> None:
    photo = Scene(day=True, left=True, snow=False).take(np.random.default_rng(0))
    for orientation in STORED_AS:
        save_as_a_camera_does(photo, tmp_path / "x.jpg", orientation)
        with Image.open(tmp_path / "x.jpg") as stored:
            upright = np.asarray(ImageOps.exif_transpose(stored), int)
        assert np.abs(upright - np.asarray(photo, int)).mean() < 8


def test_from_photos_and_a_table_to_the_release_that_a_photo_went_into(reader: Reader) -> None:
    # Tune: the table becomes rows, split by photo.
    said = reader.type(reader.command("own-data", "convert table"))
    train, held = reader.rows("train.jsonl"), reader.rows("train.validation.jsonl")
    assert len(train) + len(held) == 3 * PHOTOS + 1
    assert {row["image"] for row in train}.isdisjoint(row["image"] for row in held)
    assert 30 <= len(held) <= 42
    assert "IMG_9999.jpg" in said
    skipped = reader.rows("train.jsonl.skipped.jsonl")
    assert [entry["code"] for entry in skipped] == ["suffix_empty"] * 3
    preview = reader.type(reader.command("own-data", "preview"))
    assert "runs/preview.html" in preview
    end = reader.type(reader.command("own-data", "pipeline run", "embedded:tiny"))
    assert "release:" in end

    # An answer, about a photo that the model was not trained on.
    photo = held[0]["image"].removesuffix(".jpg")
    asking = reader.command("own-data", "generate", "--image").replace("IMG_0004", photo)
    question = shlex.split(asking)[shlex.split(asking).index("--prompt") + 1].removeprefix("answer en ")
    assert reader.type(asking).strip() == reader.scenes[photo].answers()[question]

    # Operate: the release is the champion, and whole.
    releases = reader.type(reader.command("releases", "releases"))
    (version,) = [path.name for path in (reader.clone / "runs/pipeline/registry/releases").iterdir()]
    assert re.search(rf"\*\s*{version}|{version}\s*\*", releases), releases
    reader.type(reader.command("releases", "verify"))

    # Review: what the release was made from, and which release a photo went into.
    trace = reader.type(reader.command("lineage", "lineage trace"))
    assert "photos/train.jsonl" in trace.replace("\n", "")
    used = train[4]["image"].removesuffix(".jpg")
    impact = reader.type(reader.command("lineage", "lineage impact", "images/0007.png").replace("IMG_0004", used))
    assert "Releases: 1" in impact
    assert version in impact
