"""Rows of two images, through every step on plain paths: pairs as in NLVR2."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from prepare_runs import Weeks, files_of

from components.evaluate.__main__ import run as evaluate
from components.finetune.__main__ import run as finetune
from components.preflight.__main__ import run as preflight
from components.prepare_data.__main__ import run as prepare
from components.prepare_data.distributed import join_groups, list_groups, prepare_group
from conftest import SmallData
from paligemma.artifacts.record import read_record
from paligemma.checkpoints.tuned import read_tuned
from paligemma.data import prepare as prepare_module
from paligemma.data.augment import Augmentation
from paligemma.data.images import fit_image
from paligemma.data.loader import training_batches
from paligemma.data.records import Dataset, image_numbers, open_records
from paligemma.data.rows import row_id
from paligemma.data.tf_dataset import tf_dataset
from paligemma.data.tfrecord import RowReader
from paligemma.decoding.settings import DecodeSettings
from paligemma.errors import DamagedError, InputError
from paligemma.lineage.impact import impact
from paligemma.lineage.index import Index
from paligemma.model import load

TINY = "embedded:tiny"
SETTINGS = ["steps=6", "learning_rate=0.2", "remat=none", "batch_size=8", "images_per_example=2"]


def pairs(data: SmallData, count: int = 5) -> list[dict[str, object]]:
    """Rows about two of five pictures, each pair in both orders."""
    names = [data.add_image(f"{number}.png", number) for number in range(count)]
    return [
        {"image": [left, right], "prefix": f"answer en is {left[0]} on the left?", "suffix": answer}
        for number, name in enumerate(names)
        for left, right, answer in (
            (name, names[(number + 1) % count], "True"),
            (names[(number + 1) % count], name, "False"),
        )
    ]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SmallData:
    made = SmallData(tmp_path_factory.mktemp("pairs"))
    made.write(list(pairs(made)))
    return made


@pytest.fixture(scope="module")
def two(data: SmallData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records of the pairs."""
    output = tmp_path_factory.mktemp("records") / "train"
    prepare(data=str(data.jsonl), checkpoint=TINY, output=str(output), images_per_example=2)
    return output


@pytest.fixture(scope="module")
def tuned(two: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("tuned") / "tuned"
    finetune(checkpoint=TINY, records=str(two), output=str(output), validation=str(two), set_=[*SETTINGS, "validate_every=3"])
    return output


def test_records_hold_both_pictures_of_each_row_in_order(data: SmallData, two: Path) -> None:
    records = open_records(two)
    assert records.dataset.images_per_example == 2
    assert (records.dataset.rows, records.dataset.images) == (10, 5)
    size, reader = records.dataset.image_size, RowReader(records)
    listed = [json.loads(line) for line in (two / "rows.jsonl").read_text().splitlines()]
    for number, (given, entry) in enumerate(zip(map(json.loads, data.jsonl.open()), listed, strict=True)):
        row = reader.read(number)
        expected = [np.asarray(fit_image((data.folder / name).read_bytes(), size)[0]) for name in given["image"]]
        np.testing.assert_array_equal(row.image, expected)
        assert entry["image_file"] == given["image"]
        assert row.row_id == row_id(entry["image_sha256"], given["prefix"], given["suffix"]) == entry["row_id"]
    left, right = image_numbers(records).T
    assert set(left) == set(right) == set(range(5))
    assert (left != right).all()


def test_pages_show_both_pictures(two: Path, tuned: Path, tmp_path: Path) -> None:
    page = (two / "report.html").read_text()
    assert [card.count("<img") for card in page.split('<div class="drawn">')[1:]] == [2] * 10
    evaluate(checkpoint=TINY, records=str(two), output=str(tmp_path / "e"), tuned=str(tuned), max_new_tokens=6)
    page = (tmp_path / "e/report.html").read_text()
    (rows,) = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.DOTALL)
    assert {len(row["images"]) for row in json.loads(rows)} == {2}


def test_a_model_learns_from_pairs_and_says_for_how_many_images_it_is(tuned: Path) -> None:
    lines = [json.loads(line) for line in (tuned / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < losses[0]
    assert read_tuned(tuned).description.images_per_example == 2
    assert read_record(tuned).producer.parameters["images_per_example"] == 2


def test_embeddings_that_are_kept_train_the_same_parameters(two: Path, tmp_path: Path) -> None:
    for cache in ("none", "memory", "disk"):
        settings = [*SETTINGS, f"vision_cache={cache}", "buckets=1"]
        finetune(checkpoint=TINY, records=str(two), output=str(tmp_path / cache), set_=settings)
    expected = read_tuned(tmp_path / "none").arrays
    for cache in ("memory", "disk"):
        for name, values in read_tuned(tmp_path / cache).arrays.items():
            np.testing.assert_allclose(values, expected[name], atol=1e-3, err_msg=f"{cache} {name}")


def test_the_order_of_the_pictures_matters_to_an_evaluation(data: SmallData, two: Path, tuned: Path, tmp_path: Path) -> None:
    swapped = [{**row, "image": row["image"][::-1]} for row in map(json.loads, data.jsonl.open())]
    (data.folder / "swapped.jsonl").write_text("".join(json.dumps(row) + "\n" for row in swapped))
    prepare(data=str(data.folder / "swapped.jsonl"), checkpoint=TINY, output=str(tmp_path / "swapped"), images_per_example=2)
    scores = []
    for records in (two, tmp_path / "swapped"):
        for batch_size in (4, 10):
            output = tmp_path / f"{records.name}-{batch_size}"
            evaluate(checkpoint=TINY, records=str(records), output=str(output), tuned=str(tuned), max_new_tokens=6,
                     batch_size=batch_size)  # fmt: skip
            lines = (output / "predictions.jsonl").read_text().splitlines()
            scores.append([json.loads(line)["target_logprob"] for line in lines])
    np.testing.assert_allclose(scores[0], scores[1], atol=0.02)
    assert np.abs(np.subtract(scores[0], scores[2])).max() > 0.02


def test_a_question_about_two_pictures_is_asked_as_rows_are(data: SmallData, two: Path, tuned: Path, tmp_path: Path) -> None:
    evaluate(checkpoint=TINY, records=str(two), output=str(tmp_path / "e"), tuned=str(tuned), max_new_tokens=6)
    predictions = [json.loads(line) for line in (tmp_path / "e/predictions.jsonl").read_text().splitlines()]
    reader, model = RowReader(open_records(two)), load(tuned)
    rows = [reader.read(number) for number in range(len(reader))]
    answers = model.answer([list(row.image) for row in rows], [row.prefix for row in rows], DecodeSettings(6))
    for answer, prediction in zip(answers, predictions, strict=True):
        assert answer.logprob == pytest.approx(prediction["logprob"], abs=0.02)
    images = [data.folder / "0.png", data.folder / "1.png"]
    with pytest.raises(InputError, match="tuned on 2 images in a row, the question has 1"):
        model.generate(images, "ocr")
    with pytest.raises(InputError, match="about 1, 2 images each"):
        model.generate([images, images[:1]], "ocr")
    base = load(TINY)
    assert base.answer([images[:1]], "ocr", DecodeSettings(4)) == base.answer(images[:1], "ocr", DecodeSettings(4))


def test_numbers_of_images_that_differ_are_told_at_once(two: Path, records: Path, tuned: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Every row of the records has 2 images, the recipe is for one image") as caught:
        finetune(checkpoint=TINY, records=str(two), output=str(tmp_path / "x"), set_=["steps=1"])
    assert "--set images_per_example=2" in str(caught.value)
    with pytest.raises(InputError, match="has one image, the recipe is for 2 images"):
        finetune(checkpoint=TINY, records=str(two), validation=str(records), output=str(tmp_path / "x"),
                 set_=[*SETTINGS, "validate_every=2"])  # fmt: skip
    with pytest.raises(InputError, match="tuned for 2 images in a row, the records have 1"):
        evaluate(checkpoint=TINY, records=str(records), output=str(tmp_path / "x"), tuned=str(tuned))
    with pytest.raises(InputError, match="has 2 images, the recipe is for one image"):
        preflight(checkpoint=TINY, output=str(tmp_path / "x"), images_per_example=2)
    assert not (tmp_path / "x").exists()


def test_preflight_counts_the_tokens_of_all_images(tmp_path: Path) -> None:
    found = {}
    for images in (1, 2):
        output = tmp_path / str(images)
        preflight(checkpoint=TINY, output=str(output), set_=[f"images_per_example={images}"], images_per_example=images)
        (found[images],) = json.loads((output / "preflight.json").read_text())["reports"]
    assert found[2]["flops"] > 1.1 * found[1]["flops"]
    assert found[2]["peak"] > found[1]["peak"]


def test_records_are_the_same_however_they_are_made(data: SmallData, two: Path, tmp_path: Path) -> None:
    """By one process or two, on one machine or in parts of many, raw or packed, read by our reader or TensorFlow's."""
    given = {"data": str(data.jsonl), "checkpoint": TINY, "images_per_example": 2, "rows_per_shard": 3}
    for workers in (1, 2):
        prepare(output=str(tmp_path / f"{workers}"), workers=workers, **given)
    settings = {"max_text_tokens": 128, "over_long": "reject", "rows_per_shard": 3, "compression": "webp", "grey_range": "",
                "images_per_example": 2}  # fmt: skip
    groups = list_groups(str(data.jsonl), 3, 2)
    for number, group in enumerate(groups):
        prepare_group(group, str(data.jsonl), TINY, "", tmp_path / f"part-{number}", settings, 1)
    folders = [tmp_path / f"part-{number}" for number in range(len(groups))]
    join_groups(folders, str(data.jsonl), TINY, "", str(tmp_path / "joined"), settings, "train", 0.1, "")
    hashes = [files_of(str(tmp_path / name)) for name in ("1", "2", "joined")]
    assert hashes[0] == hashes[1] == hashes[2]
    for compression in ("none", "gzip"):
        prepare(output=str(tmp_path / compression), compression=compression, **given)
    expected = RowReader(open_records(two))
    for name in ("1", "none", "gzip"):
        opened = open_records(tmp_path / name)
        reader, read_by_tensorflow = RowReader(opened), list(tf_dataset(opened).as_numpy_iterator())
        for number in range(10):
            np.testing.assert_array_equal(reader.read(number).image, expected.read(number).image)
            np.testing.assert_array_equal(read_by_tensorflow[number]["image"], expected.read(number).image)


def test_pictures_that_are_the_same_are_taken_from_an_earlier_run(
    small_data: SmallData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, decoded, fit = pairs(small_data), [], prepare_module.fit_image

    def counted(data: bytes, size: int, name: str, *more: object):
        decoded.append(name)
        return fit(data, size, name, *more)

    monkeypatch.setattr(prepare_module, "fit_image", counted)
    weeks = Weeks(str(small_data.jsonl), str(tmp_path / "root"), str(tmp_path / "fresh"))
    small_data.write(list(rows))
    weeks.run(images_per_example=2)
    changes = [rows[1:], [rows[3], *rows], [{**rows[0], "image": rows[0]["image"][::-1]}, *rows[1:]]]
    changes.append([{"image": [small_data.add_image("new.png", 77), "4.png"], "prefix": "p", "suffix": "s"}, *rows])
    changes.append([{"image": ["new.png", "gone.png"], "prefix": "p", "suffix": "s"}, *rows])
    for number, changed in enumerate(changes):
        small_data.write(list(changed))
        decoded.clear()
        made = weeks.run(images_per_example=2)
        assert set(decoded) <= {"new.png"}
        assert ("new.png" in decoded) == (number == 3)
        assert files_of(made) == files_of(weeks.run(weeks.fresh, reuse=False, images_per_example=2))
    assert weeks.run(images_per_example=2) == made


def test_both_images_lead_to_the_model(small_data: SmallData, tmp_path: Path) -> None:
    weeks = Weeks(str(small_data.write(list(pairs(small_data)))), str(tmp_path / "root"), "")
    made = weeks.run(images_per_example=2)
    with Index(str(tmp_path / "root")) as index:
        for name in ("0.png", str(small_data.folder / "1.png")):
            found = impact(index, name)
            assert (found["kind"], len(found["rows"])) == ("image", 4)
            assert [one["output"] for one in found["others"]] == [made]


def test_all_images_of_a_row_are_changed_alike(small_data: SmallData, tmp_path: Path) -> None:
    names = [small_data.add_image(f"{number}.png", number) for number in range(4)]
    rows = [{"image": [name, name], "prefix": "p", "suffix": "s"} for name in names]
    prepare(data=str(small_data.write(list(rows))), checkpoint=TINY, output=str(tmp_path / "r"), images_per_example=2)
    batches = training_batches(open_records(tmp_path / "r"), 4, 0, augment=Augmentation(flip=True, crop=0.5, colour=0.5))
    plain = training_batches(open_records(tmp_path / "r"), 4, 0)
    for (_, changed), (_, batch) in islice(zip(batches, plain, strict=True), 3):
        assert changed.images.shape == (4, 2, 32, 32, 3)
        np.testing.assert_array_equal(changed.images[:, 0], changed.images[:, 1])
        assert (changed.images != batch.images).any(axis=(1, 2, 3, 4)).all()


def test_a_record_with_fewer_images_than_the_others_is_damaged(records: Path, two: Path, tmp_path: Path) -> None:
    for source, images in ((records, 2), (two, 1)):
        folder = tmp_path / str(images)
        shutil.copytree(source, folder)
        described = json.loads((folder / "dataset.json").read_text()) | {"images_per_example": images}
        opened = open_records(source)
        changed = dataclasses.replace(opened, dataset=Dataset.model_validate(described))
        with pytest.raises(DamagedError, match=r"it has \d images, each has \d"):
            RowReader(changed).read(0)
        with pytest.raises(DamagedError, match="it lists"):
            image_numbers(changed)
    assert "images_per_example" not in json.loads((records / "dataset.json").read_text())


def test_what_is_wrong_with_one_of_several_is_told_of_it(small_data: SmallData, tmp_path: Path) -> None:
    names = [small_data.add_image(f"{number}.png", number) for number in range(2)]
    Image.new("RGB", (12, 12)).save(small_data.folder / "black.png")
    (small_data.folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    texts = {"prefix": "p", "suffix": "s"}
    bad = [
        ([*names, names[0]], "images_several"),
        (names[0], "images_several"),
        ([names[0]], "images_several"),
        (names * 500, "images_several"),
        ([], "image_none"),
        ([names[0], "gone.png"], "image_missing"),
        (["gone.png", names[0]], "image_missing"),
        ([names[0], "../secret.png"], "image_path_unsafe"),
        ([names[0], "/etc/passwd"], "image_path_unsafe"),
        ([names[0], "broken.png"], "image_unreadable"),
        ([names[0], "data:image/png;base64,AAAA"], "image_unreadable"),
        ([names[0], "https://10.0.0.1/a.png"], "image_address_unsafe"),
        ([names[0], [names[1]]], "type_wrong"),
        ([names[0], None], "type_wrong"),
        ([names[0], {"path": names[1]}], "type_wrong"),
        ([names[0], 7], "type_wrong"),
        ([names[0], "\ud800.png"], "encoding_invalid"),
    ]
    rows = [{"image": image, **texts} for image, _ in bad]
    hashed = {"image": names, **texts, "image_sha256": ["0" * 64, "0" * 64]}
    rows += [hashed, {**hashed, "image_sha256": "0" * 64}]
    good = [{"image": [names[0], names[0]], **texts}, {"image": [names[1], "black.png"], **texts}]
    codes = [code for _, code in bad] + ["image_hash_wrong", "type_wrong"]
    prepare(data=str(small_data.write([*rows, *good])), checkpoint=TINY, output=str(tmp_path / "out"), images_per_example=2,
            max_reject_fraction=1.0)  # fmt: skip
    rejected = [json.loads(line) for line in (tmp_path / "out/rejected.jsonl").read_text().splitlines()]
    assert [entry["code"] for entry in rejected] == codes
    assert "'gone.png'" in rejected[5]["message"]
    assert "1,000" in rejected[3]["message"]
    assert rejected[5]["image"] == [names[0], "gone.png"]
    (kept, warned) = [RowReader(open_records(tmp_path / "out")).read(number) for number in range(2)]
    np.testing.assert_array_equal(kept.image[0], kept.image[1])
    warnings = [json.loads(line) for line in (tmp_path / "out/warnings.jsonl").read_text().splitlines()]
    assert ("image_flat", warned.row_id) in {(entry["code"], entry["row_id"]) for entry in warnings}
    assert any(entry["message"].startswith("black.png: ") for entry in warnings)
