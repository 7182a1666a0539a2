"""Small data sets in COCO's and VQA's forms, and conversions of them, for tests."""

from __future__ import annotations

import json
from pathlib import Path

from converting import Conversion, run_convert

MISSING = object()
IMAGES = [
    {"id": 1, "file_name": "a.jpg", "width": 200, "height": 100},
    {"id": "b", "file_name": "b.jpg", "width": 10, "height": 10},
]
CATEGORIES = [
    {"id": 0, "name": "cat"},
    {"id": 7, "name": "dog", "supercategory": "animal"},
    {"id": 8, "name": "a;b"},
    {"id": 9},
]
BOX = {"id": 5, "image_id": 1, "category_id": 7, "bbox": [50, 20, 100, 80], "iscrowd": 0}
DOG = "<loc0205><loc0256><loc1023><loc0767> dog"


def write(path: Path, value: object) -> Path:
    path.write_text(json.dumps(value))
    return path


def but(entry: dict, **changes: object) -> dict:
    return {key: value for key, value in (entry | changes).items() if value is not MISSING}


def convert_boxes(folder: Path, annotations: list, **others: object) -> Conversion:
    data = {"images": IMAGES, "categories": CATEGORIES, "annotations": annotations} | others
    return run_convert(folder / "out.jsonl", "coco-detection", "--annotations", write(folder / "x.json", data))


def convert_captions(folder: Path, annotations: list, images: list = IMAGES) -> Conversion:
    path = write(folder / "x.json", {"images": images, "annotations": annotations})
    return run_convert(folder / "out.jsonl", "coco-captions", "--annotations", path)


def convert_vqa(folder: Path, annotations: list, questions: list) -> Conversion:
    asked, answered = write(folder / "q.json", {"questions": questions}), write(folder / "a.json", {"annotations": annotations})
    name = "COCO_val2014_{:012d}.jpg"
    return run_convert(folder / "out.jsonl", "vqav2", "--questions", asked, "--annotations", answered, "--images", name)


QUESTION = {"question_id": 5, "image_id": 42, "question": "How many?"}
ANSWERED = {"question_id": 5, "image_id": 42, "answers": [{"answer": answer} for answer in ("3", "2", "2")]}
