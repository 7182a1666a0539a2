"""The two packages' pictures in the forms that data sets are published in, so that `paligemma convert` reads them as a user's.

- COCO instances (boxes, masks in run lengths, crowds) and captions: https://cocodataset.org/#format-data.
- Questions and answers of VQAv2: https://visualqa.org/download.html.
- Tables in CSV, JSONL and Parquet (pictures as bytes inside), as Hugging Face data sets have them.
- Folders of labels.

Only rows for `segment` are written as rows: nobody publishes `<seg>` symbols.
"""

from __future__ import annotations

import csv
import json
import shutil
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
from pycocotools import mask as run_lengths

from real_data.geography import Division, Geography, Map, split_of

SPLITS = ("train", "val")
DIVISIONS_OF_AN_IMAGE = 3
"""Divisions asked about at once: the names and boxes of all divisions of a map exceed any text budget."""

DIVISIONS_WITH_MASKS = 5
"""Divisions of a map that are asked about one by one."""

ANSWER_LANGUAGES = ("de", "fr", "es", "it", "pl", "ru")


class Publisher:
    """Writes annotations and pictures below a folder; image names are relative to that folder."""

    def __init__(self, geography: Geography, emoji: Path, folder: Path, limit: int = 0) -> None:
        """Copies maps and flags.

        Args:
            geography: the maps.
            emoji: the emoji package's folder.
            folder: where everything goes.
            limit: most maps of a split, and flags, emoji or labels of a split; 0 for all. For trying things out.
        """
        self.geography, self.emoji, self.folder, self.limit = geography, emoji, folder, limit or None
        self.maps = {split: [one for one in geography.maps if split_of(one.context) == split][: self.limit] for split in SPLITS}
        self.flags = {split: self._flags_of(split) for split in SPLITS}
        (folder / "annotations").mkdir(parents=True)
        for split in SPLITS:
            for of in self.maps[split]:
                self._copy(of.picture, _map_name(of))
            for of, division in self.flags[split]:
                self._copy(of.picture.parent / division.flag, division.flag)

    def _flags_of(self, split: str) -> list[tuple[Map, Division]]:
        """Every flag once, as the first map that has it says; a quarter of them is for validation."""
        first = {part.flag: (of, part) for of in reversed(self.geography.maps) for part in reversed(of.parts) if part.flag}
        return [found for flag, found in sorted(first.items()) if split_of(flag) == split][: self.limit]

    def _copy(self, source: Path, name: str) -> None:
        target = self.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)

    def instances(self, split: str) -> dict[str, int]:
        """COCO's `instances_*.json`: each map several times, with some of its divisions each time.

        Returns:
            how many images and annotations there are, and how many of these are crowds: water.
        """
        images, annotations, categories = [], [], {}
        for of in self.maps[split]:
            height, width = of.colours.shape
            grounds = [one for one in of.divisions if one.is_ground and one.name == "Water"][:1]
            shapes = {part.colour: _shape(of.colours == part.colour) for part in (*of.parts, *grounds)}
            for start in range(0, len(of.parts), DIVISIONS_OF_AN_IMAGE):
                images.append({"id": len(images) + 1, "file_name": _map_name(of), "width": width, "height": height})
                for part in (*of.parts[start : start + DIVISIONS_OF_AN_IMAGE], *grounds):
                    if shapes[part.colour]:
                        number = len(annotations) + 1
                        category = categories.setdefault(part.name, len(categories) + 1)
                        annotation = {"id": number, "image_id": len(images), "category_id": category}
                        annotations.append(annotation | {"iscrowd": int(part.is_ground)} | shapes[part.colour])
        document = {"info": {"description": "KGeography"}, "images": images, "annotations": annotations}
        document["categories"] = [{"id": number, "name": name} for name, number in categories.items()]
        self._write(f"instances_{split}.json", document)
        crowds = sum(one["iscrowd"] for one in annotations)
        return {"images": len(images), "annotations": len(annotations), "crowds": crowds}

    def masks(self, split: str) -> dict[str, int]:
        """Rows for `segment`: the first divisions of every map."""
        rows = []
        for of in self.maps[split]:
            height, width = of.colours.shape
            for part in of.parts[:DIVISIONS_WITH_MASKS]:
                mask = of.colours == part.colour
                if mask.any():
                    x0, y0, x1, y1 = _bounds(mask)
                    corners = (y0 / height, x0 / width, y1 / height, x1 / width)
                    box = "".join(f"<loc{round(1023 * value):04d}>" for value in corners)
                    suffix = f"{box}{codes_of(mask[y0:y1, x0:x1])} {part.name}"
                    rows.append({"image": _map_name(of), "prefix": f"segment {part.name}", "suffix": suffix})
        self._write_lines(self.folder / f"masks_{split}.jsonl", rows)
        return {"rows": len(rows)}

    def captions(self, split: str) -> dict[str, int]:
        """COCO's `captions_*.json`: three captions of each flag, two of each map."""
        images, annotations = [], []

        def add(name: str, *captions: str) -> None:
            images.append({"id": len(images) + 1, "file_name": name})
            for caption in captions:
                annotations.append({"id": len(annotations) + 1, "image_id": len(images), "caption": caption})

        for _, part in self.flags[split]:
            place = f"{part.name}, whose capital is {part.capital}" if part.capital else part.name
            add(part.flag, part.name, f"Flag of {part.name}.", f"the flag of {place} \n")
        for of in self.maps[split]:
            add(_map_name(of), f"A map of {of.name}", f"A map with the {of.kind.lower()} of {of.name} in colours.")
        self._write(f"captions_{split}.json", {"images": images, "annotations": annotations})
        return {"images": len(images), "annotations": len(annotations)}

    def questions(self, split: str) -> dict[str, int]:
        """VQAv2's questions and annotations, with ten answers each. Pictures are copied to names with numbers.

        Answers of one question are in several languages: each is right. Counts are JSON numbers, as some writers have them.
        """
        questions, annotations = [], []

        def ask(image: int, question: str, answers: Sequence[object]) -> None:
            number = image * 100 + len(questions) % 100
            questions.append({"question_id": number, "image_id": image, "question": question})
            ten = [{"answer_id": n + 1, "answer": answers[n % len(answers)], "answer_confidence": "yes"} for n in range(10)]
            annotations.append({"question_id": number, "image_id": image, "multiple_choice_answer": answers[0], "answers": ten})

        for number, (of, part) in enumerate(self.flags[split], start=1):
            self._copy(of.picture.parent / part.flag, f"vqa/{split}_{number:012d}.png")
            ask(number, "Is this a flag or a map?", ["flag"])
            ask(number, "Whose flag is this?", self._right_answers(of, part.name))
            if part.capital:
                ask(number, "What is the capital of the place with this flag?", self._right_answers(of, part.capital))
            other = self.flags[split][number % len(self.flags[split])][1] if number % 2 else part
            ask(number, f"Is this the flag of {other.name}?", ["yes" if other.name == part.name else "no"])
        for number, of in enumerate(self.maps[split], start=len(self.flags[split]) + 1):
            self._copy(of.picture, f"vqa/{split}_{number:012d}.png")
            ask(number, "Is this a flag or a map?", ["map"])
            ask(number, f"How many {of.kind.lower()} does this map have?", [len(of.parts)])
        self._write(f"questions_{split}.json", {"data_type": "mscoco", "questions": questions})
        self._write(f"answers_{split}.json", {"data_type": "mscoco", "annotations": annotations})
        return {"questions": len(questions)}

    def _right_answers(self, of: Map, name: str) -> list[str]:
        """The name, most often, and what it is called in some other languages."""
        words = self.geography.translations(of, name)
        return [name, *(text for language, text in words.items() if language in ANSWER_LANGUAGES), name, name]

    def names(self, split: str) -> dict[str, int]:
        """The table `names_*`, as CSV and as JSONL: every flag in two of the languages that name it, with its capital.

        A column's name has a comma, a space and a percent sign; capitals may be empty.
        """
        rows = []
        for of, part in self.flags[split]:
            words = self.geography.translations(of, part.name)
            capitals = self.geography.translations(of, part.capital) if part.capital else {}
            for language in sorted(words, key=lambda one, flag=part.flag: zlib.crc32(f"{flag} {one}".encode()))[:2]:
                capital = capitals.get(language, part.capital)
                rows.append({"image": part.flag, "language": language, "name, 100 %": words[language], "capital": capital})
        self._write_csv(f"names_{split}.csv", rows)
        self._write_lines(self.folder / f"annotations/names_{split}.jsonl", rows)
        return {"rows": len(rows), "languages": len({row["language"] for row in rows})}

    def figures(self, split: str) -> dict[str, int]:
        """The table `figures_*.csv`: how many divisions a map has, the largest one, and its share of the picture."""
        rows = []
        for of in self.maps[split]:
            colours, pixels = np.unique(of.colours, return_counts=True)
            area = dict(zip(colours.tolist(), pixels.tolist(), strict=True))
            largest = max(of.parts, key=lambda part: area.get(part.colour, 0))
            share = f"{100 * area.get(largest.colour, 0) / of.colours.size:.1f}"
            rows.append(
                {"image": _map_name(of), "kind": of.kind, "count": len(of.parts), "largest": largest.name, "share, %": share}
            )
        self._write_csv(f"figures_{split}.csv", rows)
        return {"rows": len(rows)}

    def emoji_table(self, split: str) -> dict[str, int]:
        """The table `emoji_*.parquet` with pictures as bytes: every emoji and its name, a quarter of them for validation."""
        found = [one for one in self._emoji() if split_of(one["image"]) == split][: self.limit]
        rows = [
            {
                "image": {"bytes": (self._emoji_picture(one)).read_bytes(), "path": one["image"]},
                "name": one["name"].lower(),
                "category": one["category"],
            }
            for one in found
        ]
        pyarrow.parquet.write_table(
            pyarrow.Table.from_pylist(rows), self.folder / f"annotations/emoji_{split}.parquet", row_group_size=100
        )
        return {"rows": len(rows)}

    def labels(self, split: str) -> dict[str, int]:
        """Folders of pictures, one a label: emoji in skin tones, one tone of which is for validation.

        A label is a word in capitals, spaces and a character outside the basic plane.
        """
        pictures = labels = 0
        for one in [one for one in self._emoji() if "skin_variations" in one][: self.limit]:
            label = f"{one['name'].replace('/', ' ')} {chr(int(one['unified'].split('-')[0], 16))}"
            tones = [tone for tone in (one, *one["skin_variations"].values()) if self._emoji_picture(tone).is_file()]
            held_out = len(label) % len(tones)
            chosen = [tone for number, tone in enumerate(tones) if (number == held_out) == (split == "val")]
            for tone in chosen:
                self._copy(self._emoji_picture(tone), f"labels/{split}/{label}/{tone['image']}")
            pictures, labels = pictures + len(chosen), labels + 1
        return {"pictures": pictures, "labels": labels}

    def _emoji(self) -> list[dict]:
        found = json.loads((self.emoji / "emoji.json").read_text(encoding="utf-8"))
        return [one for one in found if self._emoji_picture(one).is_file()]

    def _emoji_picture(self, one: dict) -> Path:
        return self.emoji / "img/twitter/64" / one["image"]

    def _write(self, name: str, document: object) -> None:
        (self.folder / "annotations" / name).write_text(json.dumps(document), encoding="utf-8")

    def _write_lines(self, path: Path, rows: Iterable[dict]) -> None:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")

    def _write_csv(self, name: str, rows: list[dict]) -> None:
        with (self.folder / "annotations" / name).open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


def codes_of(mask: np.ndarray) -> str:
    """Sixteen `<seg>` symbols for a mask in its box: how much of each field of a 4 x 4 grid it covers.

    A stand-in: the published encoder's weights cannot be had through a package registry.
    """
    rows, columns = (np.array_split(np.arange(side), 4) for side in mask.shape)
    shares = [mask[np.ix_(row, column)].mean() if row.size and column.size else 0.0 for row in rows for column in columns]
    return "".join(f"<seg{round(127 * share):03d}>" for share in shares)


def _shape(mask: np.ndarray) -> dict:
    """Box, area and mask of an annotation; nothing if there is nothing."""
    if not mask.any():
        return {}
    x0, y0, x1, y1 = _bounds(mask)
    counts = run_lengths.encode(np.asfortranarray(mask, np.uint8))["counts"].decode()
    return {
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": int(mask.sum()),
        "segmentation": {"size": list(mask.shape), "counts": counts},
    }


def _bounds(mask: np.ndarray) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 of what a mask covers, the last two exclusive."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _map_name(of: Map) -> str:
    return f"maps/{of.picture.name}"
