"""Asking about many images: JSON lines, resumed, whatever the batch size."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

import paligemma
from conftest import SmallData
from paligemma.checkpoints.open_checkpoint import open_model
from paligemma.data import image_suffixes
from paligemma.decoding.settings import DecodeSettings
from paligemma.errors import InputError
from paligemma.evaluation.tasks import TASKS
from pipelines.cli import app
from pipelines.commands.generate import answer_all, find_questions


@pytest.fixture(scope="module")
def model() -> paligemma.Model:
    return paligemma.load("embedded:tiny", dtype="float32")


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_that_was_cut_off_goes_on_where_it_ended(model, small_data: SmallData, tmp_path: Path) -> None:
    for number in range(5):
        small_data.add_image(f"{number}.png", number)
    questions = find_questions([small_data.folder], None, "caption en", str)
    assert [question.names for question in questions] == [[f"{number}.png"] for number in range(5)]
    settings = DecodeSettings(4, temperature=1.0)
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    answer_all(model, questions, settings, 2, whole)
    text = whole.read_text()
    cut.write_text(text[: text.index("\n") + 20])  # one line, and a part of the second
    answer_all(model, questions, settings, 3, cut)
    for ours, theirs in zip(lines(cut), lines(whole), strict=True):
        assert ours.pop("logprob") == pytest.approx(theirs.pop("logprob"), abs=1e-3)
        assert ours == theirs
    before = cut.read_bytes()
    answer_all(model, questions, settings, 3, cut)
    assert cut.read_bytes() == before


def test_questions_about_one_and_about_two_images_may_be_mixed(model, small_data: SmallData, tmp_path: Path) -> None:
    a, b = (small_data.add_image(f"{name}.png", number) for number, name in enumerate("ab"))
    asked = [a, [a, b], [b, a], [a], [a, "none.png"], [b]]
    rows = [{"image": images, "prefix": "ocr"} for images in asked]
    questions = find_questions([], small_data.write(rows), "", str)
    output = tmp_path / "x.jsonl"
    assert answer_all(model, questions, DecodeSettings(3), 2, output) == 1
    found = lines(output)
    assert [line["image"] for line in found] == [a, [a, b], [b, a], a, [a, "none.png"], b]
    assert ["none.png" in line.get("error", "") for line in found] == [False] * 4 + [True, False]
    assert found[0]["logprob"] == found[3]["logprob"]
    assert len({found[number]["logprob"] for number in (0, 1, 2)}) == 3
    (small_data.folder / "none.png").write_bytes((small_data.folder / b).read_bytes())
    assert answer_all(model, questions, DecodeSettings(3), 8, output) == 0  # only the one that was not answered
    again = lines(output)[len(found) :]
    assert [line["image"] for line in again] == [[a, "none.png"]]
    assert again[0]["logprob"] == pytest.approx(found[1]["logprob"], abs=1e-3)


def test_the_images_of_one_question_are_files_and_no_folder(small_data: SmallData) -> None:
    a, b = (small_data.folder / small_data.add_image(f"{name}.png", number) for number, name in enumerate("ab"))
    (question,) = find_questions([b, a], None, "ocr", str)
    assert question.names == [str(b), str(a)]
    assert [image.read() for image in question.images] == [b.read_bytes(), a.read_bytes()]
    with pytest.raises(InputError, match="is a folder, and one question is about all images"):
        find_questions([a, small_data.folder], None, "ocr", str)
    with pytest.raises(InputError, match="There is no image"):
        find_questions([a, small_data.folder / "none.png"], None, "ocr", str)
    for wrong in ([], [a.name] * 33, [a.name, 7], [[a.name]]):
        with pytest.raises(InputError, match="Row 1 is not a question"):
            find_questions([], small_data.write([{"image": wrong, "prefix": "p"}]), "", str)


def test_an_unreadable_image_has_an_error_and_is_tried_again(model, small_data: SmallData, tmp_path: Path) -> None:
    rows = [{"image": small_data.add_image("a.png"), "prefix": "ocr"}, {"image": "b.png", "prefix": "ocr"}]
    output = tmp_path / "x.jsonl"
    for unread, expected in ((1, ["answer", "error"]), (0, ["answer", "error", "answer"])):
        questions = find_questions([], small_data.write(rows), "", str)
        assert answer_all(model, questions, DecodeSettings(2), 8, output) == unread
        assert [next(key for key in ("answer", "error") if key in line) for line in lines(output)] == expected
        small_data.add_image("b.png", 1)


def test_a_folder_is_answered_on_standard_output_in_the_tasks_words(small_data: SmallData) -> None:
    small_data.add_image("a.png")
    asked = [
        "generate",
        "--model",
        "embedded:tiny",
        "--image",
        str(small_data.folder),
        "--prompt",
        "which digit?",
        "--task",
        "vqa",
        "--max-new-tokens",
        "2",
    ]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    line = json.loads(done.stdout.splitlines()[0])
    assert (line["image"], line["prompt"]) == ("a.png", "answer en which digit?")


@pytest.mark.parametrize("weights", ["int8", "nf4"])
def test_weights_are_quantized_for_an_answer_when_that_is_asked_for(
    weights: str, small_data: SmallData, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = []
    original = paligemma.model.build_model
    monkeypatch.setattr("paligemma.model.build_model", lambda *given: built.append(original(*given)) or built[-1])
    image = str(small_data.folder / small_data.add_image("a.png"))
    asked = ["generate", "--model", "embedded:tiny", "--image", image, "--prompt", "ocr", "--max-new-tokens", "2"]
    done = CliRunner().invoke(app, [*asked, "--weights", weights])
    assert done.exit_code == 0, done.output
    assert str(built[0].module.llm.layers.mlp.linear.get_value().dtype) == weights


def test_what_a_folder_holds_besides_images_is_counted_and_named(small_data: SmallData, caplog) -> None:
    for name in ("a.png", "B.JPG", "c.pgm", "sub/d.webp", ".ipynb_checkpoints/a.png", ".hidden.png"):
        (small_data.folder / name).parent.mkdir(exist_ok=True)
        (small_data.folder / name).touch()
    for name in ("e.heic", "notes.txt", "sub/f.svg", "g", "answers.jsonl"):
        (small_data.folder / name).touch()
    (small_data.folder / "folder.png").mkdir()
    (small_data.folder / "gone.png").symlink_to("nowhere.png")
    questions = find_questions([small_data.folder], None, "ocr", str, small_data.folder / "answers.jsonl")
    assert [question.names for question in questions] == [["B.JPG"], ["a.png"], ["c.pgm"], ["sub/d.webp"]]
    (line,) = caplog.messages
    assert line.startswith(f"7 entries of {small_data.folder} are no images by their names, and passed over (")
    assert line.endswith("): .hidden.png, .ipynb_checkpoints, e.heic, g, gone.png, notes.txt, sub/f.svg")
    for counted in ("1 .heic", "1 .txt", "1 .svg", "2 .png", "2 no ending"):
        assert counted in line


def test_photos_of_phones_are_images_where_they_are_decoded(small_data: SmallData, monkeypatch: pytest.MonkeyPatch) -> None:
    (small_data.folder / "e.heic").touch()
    with pytest.raises(InputError) as without:
        find_questions([small_data.folder], None, "ocr", str)
    monkeypatch.setattr(image_suffixes, "heif_is_read", lambda: True)
    assert [question.names for question in find_questions([small_data.folder], None, "ocr", str)] == [["e.heic"]]
    (small_data.folder / "e.heic").unlink()
    with pytest.raises(InputError) as with_heif:
        find_questions([small_data.folder], None, "ocr", str)
    assert ".heic" not in str(without.value)
    assert ".heic" in str(with_heif.value)


def test_a_file_whose_name_is_no_text_is_passed_over(small_data: SmallData, caplog) -> None:
    small_data.add_image("a.png")
    (small_data.folder / "b\udcff.png").write_bytes((small_data.folder / "a.png").read_bytes())
    assert [question.names for question in find_questions([small_data.folder], None, "ocr", str)] == [["a.png"]]
    assert "1 entries" in caplog.text
    caplog.text.encode()  # a log that is no text cannot be written to a file, nor sent to where logs are collected


def test_a_folder_of_images_alone_needs_no_words(small_data: SmallData, caplog) -> None:
    small_data.add_image("a.png")
    assert len(find_questions([small_data.folder], None, "ocr", str)) == 1
    assert caplog.messages == []


def test_of_many_files_that_are_passed_over_ten_are_named(small_data: SmallData, caplog) -> None:
    small_data.add_image("a.png")
    for number in range(25):
        (small_data.folder / f"{number:02d}.txt").touch()
    find_questions([small_data.folder], None, "ocr", str)
    assert "25 entries" in caplog.text
    assert "(25 .txt)" in caplog.text
    assert "09.txt and 15 more" in caplog.text


def test_questions_that_cannot_be_asked_are_refused(small_data: SmallData, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to ask about"):
        find_questions([], None, "x", str)
    with pytest.raises(InputError, match="no images"):
        find_questions([small_data.folder], None, "x", str)
    with pytest.raises(InputError, match="Row 2 is not a question"):
        find_questions([], small_data.write([{"image": "a", "prefix": "b"}, {"prefix": "b"}]), "", str)


def test_what_a_prompt_needs_is_the_tasks_to_say(small_data: SmallData) -> None:
    image = small_data.folder / small_data.add_image("a.png")
    for task, prompt in (("caption", "caption en"), ("ocr", "ocr")):
        assert find_questions([image], None, " ", TASKS[task].ask)[0].prompt == prompt
    for task in ("", "vqa", "detect", "segment", "docvqa"):
        with pytest.raises(InputError, match="There is no prompt"):
            find_questions([image], None, " ", TASKS[task].ask)


def test_a_folder_of_runs_lists_the_tuned_models_below_it(tmp_path: Path) -> None:
    for number, run in enumerate(("run-1", "run-2")):
        folder = tmp_path / run / "finetune/tuned"
        folder.mkdir(parents=True)
        (folder / "tuned.json").touch()
        os.utime(folder / "tuned.json", (number, number))
    with pytest.raises(InputError) as caught:
        open_model(tmp_path)
    listed = [line.strip() for line in str(caught.value).splitlines() if line.startswith("    ")]
    assert listed == [str(tmp_path / run / "finetune/tuned") for run in ("run-2", "run-1")]
