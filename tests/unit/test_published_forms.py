"""`paligemma convert` on every published form: the rows that PaliGemma was trained on, and prepare_data takes each of them."""

from __future__ import annotations

import json
import re
import shlex
import typing
from pathlib import Path

import pytest
from converting import COMMAND, VALUES, Conversion, assert_accounted, places, run_convert, with_value
from hypothesis import given, settings
from hypothesis import strategies as st
from published_boxes import BOXES
from published_captions import CAPTIONS
from published_forms import PICTURE, QUESTIONS, Published, write_one

from components.prepare_data.__main__ import run as prepare
from components.presets import FOLDER
from conftest import REPOSITORY
from paligemma.artifacts.record import each, one_or_all
from paligemma.choices import BoxFormName, CaptionFormName, VqaFormName
from paligemma.data.convert import box_forms, captions, vqa_forms
from paligemma.evaluation.tasks import TASKS

PUBLISHED = [*QUESTIONS, *CAPTIONS, *BOXES]
NAMES = [one.form for one in PUBLISHED]


def convert(published: Published, folder: Path) -> Conversion:
    return run_convert(folder / "out.jsonl", *published.write(folder))


@pytest.mark.parametrize("published", PUBLISHED, ids=NAMES)
def test_a_published_form_becomes_the_rows_of_the_transfer(published: Published, tmp_path: Path) -> None:
    done = convert(published, tmp_path)
    assert [(row["image"], row["prefix"], row["suffix"]) for row in done.rows] == list(published.rows)
    assert [row["answers"] for row in done.rows if "answers" in row] == [list(answers) for answers in published.answers]
    assert done.codes == list(published.skips)
    assert published.words in done.words
    assert "name an image that is not" not in done.words
    assert f"{len(done.skipped)} skipped" in done.words


def test_every_form_has_a_data_set() -> None:
    assert typing.get_args(VqaFormName) == tuple(vqa_forms.FORMS)
    assert typing.get_args(CaptionFormName) == tuple(captions.FORMS)
    assert typing.get_args(BoxFormName) == tuple(box_forms.FORMS)
    assert {one.form for one in QUESTIONS} == set(vqa_forms.FORMS)
    assert {one.form for one in CAPTIONS} == {*captions.FORMS, "coco", "nocaps"}
    assert {one.form for one in BOXES} == {*box_forms.FORMS, "roboflow-coco", "refcoco", "refcoco-mdetr"}


def test_prepare_data_takes_every_row_of_every_form(tmp_path: Path) -> None:
    rows: dict[int, list[dict]] = {1: [], 2: []}
    for published in PUBLISHED:
        for row in convert(published, tmp_path / published.form).rows:
            inside = "train/" if published.form == "roboflow-coco" else ""
            names = [f"{published.form}/{inside}{name}" for name in each(row["image"])]
            rows[len(names)].append(row | {"image": one_or_all(names)})
    for images, of_them in rows.items():
        (tmp_path / f"{images}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in of_them))
        prepare(
            data=str(tmp_path / f"{images}.jsonl"),
            checkpoint="embedded:tiny",
            output=str(tmp_path / f"records-{images}"),
            max_reject_fraction=0.0,
            max_text_tokens=512,
            workers=1,
            images_per_example=images,
        )
        counts = json.loads((tmp_path / f"records-{images}" / "dataset.json").read_text())
        assert (counts["rows"], counts["rejected"]) == (len(of_them), {})


ODD_WORDS = ["", "nan", "1e999", "-1", "0", "<", "&lt;", "&#1;", '"', ";", "..", "/", "\\", "9" * 40]


def _changed(content: object, data: st.DataObject, value: object) -> object:
    """A file's content with another value in some place; of a text, with another word."""
    if not isinstance(content, str):
        return with_value(content, data.draw(st.sampled_from(places(content))), value)
    lines = content.splitlines()
    number = data.draw(st.integers(0, len(lines) - 1))
    if lines[number].startswith("{"):
        line = json.loads(lines[number])
        lines[number] = json.dumps(with_value(line, data.draw(st.sampled_from(places(line))), value))
    else:
        words = re.findall(r"[\w.]+|\W", lines[number])
        place = data.draw(st.integers(0, len(words) - 1))
        words[place] = data.draw(st.sampled_from(ODD_WORDS) | st.text(alphabet=st.characters(codec="utf-8"), max_size=8))
        lines[number] = "".join(words)
    return "\n".join(lines)


@pytest.mark.parametrize("published", PUBLISHED, ids=NAMES)
@settings(max_examples=60)
@given(data=st.data(), value=VALUES)
def test_any_value_anywhere_in_any_file_never_ends_in_a_traceback(
    published: Published, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, value: object
) -> None:
    folder = tmp_path_factory.mktemp("form")
    arguments = published.write(folder)
    name = data.draw(st.sampled_from([name for name, content in published.files.items() if content is not PICTURE]))
    content = _changed(published.files[name], data, value)
    write_one(folder / name, content if isinstance(published.files[name], str) else json.dumps(content))
    done = run_convert(folder / "out.jsonl", *arguments)
    entries = None
    if name == published.document and not isinstance(published.files[name], str):
        entries = published.entries(content)
    assert_accounted(done, folder / "out.jsonl", entries, one_each=not published.joins)


TABLE = re.compile(r"^\| ([^|]+) \| ([^|]+) \| `?([^|`]+)`? \| ([^|]+) \|$", re.MULTILINE)


def test_the_page_has_a_command_and_a_metric_for_every_preset_and_form() -> None:
    page = (REPOSITORY / "components/prepare_data/README.md").read_text()
    rows = TABLE.findall(page[page.index("## Published data sets") : page.index("## Images")])[2:]
    assert all(cell.strip(" `") for row in rows for cell in row)
    presets = {path.stem for path in FOLDER.glob("*.yaml")} - {"auto", "default", "demo", "lora", "qlora", "qlora-8gb"}
    listed = [source.strip("`") for source, *_ in rows if source.startswith("`")]
    assert sorted(listed) == sorted(presets)
    assert {one.preset for one in PUBLISHED if one.preset} == presets
    commands = {source.strip("`"): command.split() for source, _, command, _ in rows}
    for one in PUBLISHED:
        if one.preset and one.form != "xm3600":
            assert commands[one.preset][1] == one.command[0], one.preset
            assert one.form in (*commands[one.preset], "coco", "refcoco")
    metrics = re.findall(r"`([a-z_0-9]+)`", " ".join(metric for *_, metric in rows))
    assert set(metrics) <= {name for task in TASKS.values() for name in task.metrics}


def test_every_command_of_the_page_is_one() -> None:
    page = (REPOSITORY / "components/prepare_data/README.md").read_text()
    listed = [shlex.split(line) for line in re.findall(r"`convert ([^`]*)`", page)]
    assert {words[0] for words in listed} >= {one.command[0] for one in PUBLISHED}
    for name, *words in listed:
        context = COMMAND.commands[name].make_context(name, [*words, "--output", "train.jsonl"])  # an error if a flag is none
        assert context.params["output"] == Path("train.jsonl")


def test_roboflows_jsonl_of_paligemma_rows_needs_no_conversion(tmp_path: Path) -> None:
    """The form: https://maestro.roboflow.com/develop/datasets/jsonl, a JSONL file beside its pictures."""
    line = {"image": "1_jpg.rf.0a1b.jpg", "prefix": "detect cat", "suffix": "<loc0205><loc0256><loc0818><loc0767> cat"}
    write_one(tmp_path / "train/_annotations.train.jsonl", json.dumps(line) + "\n")
    write_one(tmp_path / "train/1_jpg.rf.0a1b.jpg", PICTURE)
    data, output = tmp_path / "train/_annotations.train.jsonl", tmp_path / "records"
    prepare(data=str(data), checkpoint="embedded:tiny", output=str(output), max_reject_fraction=0.0, workers=1)
    assert json.loads((output / "dataset.json").read_text())["rows"] == 1
