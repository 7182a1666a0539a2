"""What `paligemma convert` reads and writes: other files are refused in words, and an output stays until all is written."""

from __future__ import annotations

import inspect
import json
from gzip import compress
from pathlib import Path

import pytest
from coco_sets import (
    BOX,
    CATEGORIES,
    IMAGES,
    but,
    convert_boxes,
    convert_captions,
    write,
)
from converting import run_convert

from paligemma.data.convert.outcomes import MAX_REJECT_FRACTION

ODD_FILES = [
    # a file in the place of COCO's | words | exit code
    (b"", "are empty", 2),
    (b"{", "are not JSON", 2),
    (b"[]", "are a list; is it a file of results?", 2),
    (b'{"images": [], "annotations": [], "images": [1]}', "have 'images' twice", 2),
    (b'{"images": ' + b"9" * 5000 + b"}", "are not JSON: Exceeds the limit", 2),
    (b"3", "are int, not an object", 2),
    (b'{"images": []}', "have no 'annotations'", 2),
    (b'{"images": {}, "annotations": []}', "'images' is dict", 2),
    (b'{"images": [], "annotations": []}', "no annotations in it", 2),
    (b"[" * 100_000, "nested too deeply", 2),
    (b'{"images": "caf\xe9"}', "are not UTF-8: byte 15 is 0xe9", 2),
    (b"PK\x03\x04...", "is a zip archive", 2),
    (b"BZh9", "packed with bzip2", 2),
    (compress(b'{"images": []}' * 9)[:-9], "cannot be unpacked", 3),
    (compress(b'{"images": []}'), "have no 'annotations'", 2),
]


@pytest.mark.parametrize(("content", "words", "exit_code"), ODD_FILES, ids=range(len(ODD_FILES)))
def test_other_files_are_refused_in_words(tmp_path: Path, content: bytes, words: str, exit_code: int) -> None:
    (tmp_path / "x.json").write_bytes(content)
    done = run_convert(tmp_path / "out.jsonl", "coco-captions", "--annotations", tmp_path / "x.json")
    assert words in done.words
    assert done.exit_code == exit_code


REPEATED = [
    # the image, the annotation, as JSON text | codes of what is skipped | words
    (
        '{"id": 1, "file_name": "a.jpg"}',
        '{"image_id": 1, "caption": "a cat", "caption": "a dog"}',
        "key_repeated",
        "'caption' is there twice",
    ),
    (
        '{"id": 1, "id": 2, "file_name": "a.jpg"}',
        '{"image_id": 1, "caption": "a cat"}',
        "image_unlisted",
        "images[0] is an object with 'id' twice",
    ),
]


@pytest.mark.parametrize(("image", "annotation", "code", "words"), REPEATED)
def test_an_object_with_a_key_twice_is_not_guessed_at(
    tmp_path: Path, image: str, annotation: str, code: str, words: str
) -> None:
    (tmp_path / "x.json").write_text(f'{{"images": [{image}], "annotations": [{annotation}]}}')
    done = run_convert(tmp_path / "out.jsonl", "coco-captions", "--annotations", tmp_path / "x.json")
    assert (done.rows, done.codes, words in done.words) == ([], [code], True)


def test_a_question_with_a_key_twice_is_none(tmp_path: Path) -> None:
    (tmp_path / "q.json").write_text('{"questions": [{"question_id": 1, "question": "a?", "question": "b?", "image_id": 1}]}')
    (tmp_path / "a.json").write_text('{"annotations": [{"question_id": 1, "answers": ["x"]}]}')
    done = run_convert(
        tmp_path / "out.jsonl", "vqav2", "--questions", tmp_path / "q.json", "--annotations", tmp_path / "a.json"
    )
    assert done.codes == ["question_unlisted"]
    assert "questions[0] is an object with 'question' twice" in done.words


def test_a_file_that_is_not_there_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "no.json"):
        done = run_convert(tmp_path / "out.jsonl", "coco-captions", "--annotations", path)
        assert (done.exit_code, "cannot be read" in done.words) == (2, True)


def test_a_json_file_larger_than_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paligemma.data.convert.files.MAX_JSON_BYTES", 20)
    done = convert_captions(tmp_path, [])
    assert "are too large" in done.words
    assert "ten times" in done.words


def test_packed_files_and_byte_order_marks_are_read_as_plain_ones_are(tmp_path: Path) -> None:
    data = json.dumps({"images": IMAGES, "annotations": [{"image_id": 1, "caption": "é"}]}, ensure_ascii=False)
    for content in (compress(data.encode()), data.encode("utf-8-sig"), data.encode("utf-16")):
        (tmp_path / "x.json").write_bytes(content)
        done = run_convert(tmp_path / "out.jsonl", "coco-captions", "--annotations", tmp_path / "x.json")
        assert [row["suffix"] for row in done.rows] == ["é"]


def test_a_conversion_fails_when_more_than_a_tenth_cannot_be_used_and_leaves_the_output_as_it_was(tmp_path: Path) -> None:
    good, bad = {"image_id": 1, "caption": "x"}, {"id": "b7", "image_id": 1}
    output, path = tmp_path / "out.jsonl", tmp_path / "x.json"
    write(path, {"images": IMAGES, "annotations": [*[good] * 9, bad]})
    done = run_convert(output, "coco-captions", "--annotations", path, limit=MAX_REJECT_FRACTION)
    assert (done.exit_code, len(done.rows)) == (0, 9)
    before = output.read_bytes()
    write(path, {"images": IMAGES, "annotations": [*[good] * 8, bad]})
    done = run_convert(output, "coco-captions", "--annotations", path, limit=MAX_REJECT_FRACTION)
    assert done.exit_code == 2
    assert output.read_bytes() == before
    assert done.skipped == [
        {"place": "annotations[8]", "id": "b7", "code": "caption_missing", "message": "the caption is nothing"}
    ]
    for words in (
        "1 of 9 annotations cannot be used",
        "annotations[8]: caption_missing",
        "at most 10%",
        "out.jsonl.skipped.jsonl",
    ):
        assert words in done.words
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out.jsonl", "out.jsonl.skipped.jsonl", "x.json"]


def test_the_limit_is_that_of_prepare_data_and_crowds_do_not_count_against_it(tmp_path: Path) -> None:
    from components.prepare_data.__main__ import run as prepare
    from pipelines.commands import convert as commands

    assert inspect.signature(prepare).parameters["max_reject_fraction"].default == MAX_REJECT_FRACTION
    for name in ("coco_captions", "coco_detection", "vqa", "captions", "boxes", "refcoco", "vqav2", "table", "folder"):
        command = getattr(commands, f"convert_{name}")
        assert inspect.signature(command).parameters["max_reject_fraction"].default == MAX_REJECT_FRACTION
    path = write(tmp_path / "x.json", {"images": IMAGES, "categories": CATEGORIES, "annotations": [BOX, but(BOX, iscrowd=1)]})
    assert run_convert(tmp_path / "out.jsonl", "coco-detection", "--annotations", path, limit=0.1).exit_code == 0


def test_a_rerun_gives_equal_bytes_and_a_list_of_skips_goes_when_nothing_is_skipped_any_more(tmp_path: Path) -> None:
    output, listed = tmp_path / "out.jsonl", tmp_path / "out.jsonl.skipped.jsonl"
    annotations = [BOX, but(BOX, bbox=None), but(BOX, image_id="b", bbox=[1, 1, 3, 3])]
    written = []
    for _ in range(2):
        convert_boxes(tmp_path, annotations)
        written.append((output.read_bytes(), listed.read_bytes()))
    assert written[0] == written[1]
    convert_boxes(tmp_path, [BOX])
    assert not listed.exists()


def test_an_output_that_cannot_be_written_is_refused_in_words(tmp_path: Path) -> None:
    path = write(tmp_path / "x.json", {"images": IMAGES, "annotations": []})
    (tmp_path / "file").write_text("")
    for output in (tmp_path, tmp_path / "file" / "out.jsonl"):
        done = run_convert(output, "coco-captions", "--annotations", path)
        assert (done.exit_code, "The output cannot be written" in done.words) == (2, True)


def test_what_is_read_is_never_overwritten(tmp_path: Path) -> None:
    asked, answered = write(tmp_path / "q.json", {"questions": []}), write(tmp_path / "a.json", {"annotations": []})
    listed = write(tmp_path / "out.jsonl.skipped.jsonl", {"questions": []})
    for output, questions in ((asked, asked), (answered, asked), (tmp_path / "out.jsonl", listed)):
        done = run_convert(output, "vqav2", "--questions", questions, "--annotations", answered)
        assert "is read and would be written" in done.words
    assert json.loads(asked.read_text()) == {"questions": []}
