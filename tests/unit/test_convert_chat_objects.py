"""ms-swift's boxes apart from the text: the published examples, and odd ones with their reasons."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pytest
from converting import VALUES, Conversion, assert_accounted, places, run_convert, with_value
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet

WIDTH, HEIGHT = 2000, 2000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "x.jpg")
    return folder


def convert(folder: Path, entry: object, *flags: object) -> Conversion:
    (folder / "chat.json").write_text(json.dumps([entry]))
    return run_convert(folder / "out.jsonl", "chat", "--conversations", folder / "chat.json", "--images", folder, *flags)


def loc(x1: float, y1: float, x2: float, y2: float, width: float = WIDTH, height: float = HEIGHT) -> str:
    return "".join(f"<loc{round(edge * 1023):04d}>" for edge in (y1 / height, x1 / width, y2 / height, x2 / width))


def chat(question: str, answer: str, **more: object) -> dict:
    system = {"role": "system", "content": "You are a helpful assistant."}
    turns = [system, {"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns, "images": ["x.jpg"]} | more


DOG, WOMAN = [331.5, 761.4, 853.5, 1594.8], [676.5, 685.8, 1099.5, 1427.4]
SHEEP = [[90.9, 160.8, 135, 212.8], [360.9, 480.8, 495, 532.8]]
DESCRIBE = chat("<image>Describe the image.", "<ref-object><bbox> and <ref-object><bbox> are playing on the beach",
                objects={"ref": ["a dog", "a woman"], "bbox": [DOG, WOMAN]})  # fmt: skip
FIND = chat("<image>Find the <ref-object> in the image", "<bbox><bbox>", objects={"ref": ["sheep"], "bbox": SHEEP})
CLICK = chat("<image>Help me open Google Chrome", "Action: click(start_box='<bbox>')",
             objects={"ref": [], "bbox": [[615, 226]]})  # fmt: skip
HALF = {"bbox": [[0.25, 0.2, 0.75, 0.8]], "bbox_type": "norm1"}
ROWS = [
    # the conversation | its prefix and suffix
    (DESCRIBE, ("Describe the image.", f"a dog{loc(*DOG)} and a woman{loc(*WOMAN)} are playing on the beach")),
    (FIND, ("Find the sheep in the image", f"{loc(*SHEEP[0])} ; {loc(*SHEEP[1])}")),
    (chat("What is in <bbox>?", "<ref-object>", objects=HALF | {"ref": ["a cat"]}),
     ("What is in <loc0205><loc0256><loc0818><loc0767>?", "a cat")),
    (chat("Where?", "<bbox>", objects=HALF | {"image_id": [0]}), ("Where?", "<loc0205><loc0256><loc0818><loc0767>")),
    (chat("Where?", "<bbox>", objects=HALF, images=["gs://bucket/x.jpg"]), ("Where?", "<loc0205><loc0256><loc0818><loc0767>")),
    (chat("Where?", "<bbox> <bbox>", objects={"bbox": SHEEP}), ("Where?", f"{loc(*SHEEP[0])} ; {loc(*SHEEP[1])}")),
    (chat("Where?", "there", objects={"ref": ["x"], "bbox": SHEEP}), ("Where?", "there")),  # no marks: nothing to fill
]  # fmt: skip


@pytest.mark.parametrize(("entry", "row"), ROWS, ids=range(len(ROWS)))
def test_boxes_stand_where_the_text_has_their_marks(folder: Path, entry: dict, row: tuple[str, str]) -> None:
    done = convert(folder, entry)
    assert [(one["prefix"], one["suffix"]) for one in done.rows] == [row]


def test_a_table_may_hold_them(folder: Path) -> None:
    parquet.write_table(pyarrow.Table.from_pylist([DESCRIBE]), folder / "chat.parquet")
    flags = ("--conversations", folder / "chat.parquet", "--images", folder)
    assert run_convert(folder / "out.jsonl", "chat", *flags).rows == convert(folder, DESCRIBE).rows


def test_later_turns_may_have_further_boxes(folder: Path) -> None:
    turns = [*FIND["messages"], {"role": "user", "content": "And the dog?"}, {"role": "assistant", "content": "<bbox>"}]
    entry = FIND | {"messages": turns, "objects": {"ref": ["sheep"], "bbox": [*SHEEP, DOG]}}
    assert convert(folder, entry, "--first-turn").rows == convert(folder, FIND).rows
    assert convert(folder, entry).codes == ["turns_several"]


ODD = [
    # the conversation | code | words
    (CLICK, "shape_other", "a point"),
    (chat("Where?", "<bbox>"), "boxes_apart", "places for 1 boxes, and objects has 0"),
    (chat("Where?", "<bbox>", objects=None), "boxes_apart", "objects has 0"),
    (chat("Where?", "<bbox>", objects=7), "not_an_object", "7"),
    (chat("Where?", "<bbox>", objects={"bbox": 7}), "boxes_apart", "bbox is 7"),
    (chat("Where?", "<bbox><bbox>", objects=HALF), "boxes_apart", "places for 2 boxes, and objects has 1"),
    (chat("Where?", "<bbox>", objects={"bbox": SHEEP}), "boxes_apart", "places for 1 boxes, and objects has 2"),
    (chat("Find <ref-object>", "<bbox>", objects=HALF), "boxes_apart", "places for 1 names, and objects has 0"),
    (chat("Find <ref-object>", "<bbox>", objects=HALF | {"ref": ["a;b"]}), "category_unnamed", "'a;b'"),
    (chat("Find <ref-object>", "<bbox>", objects=HALF | {"ref": [None]}), "category_unnamed", "None"),
    (chat("Where?", "<bbox>", objects=HALF | {"bbox_type": "norm1000"}), "box_malformed", "'norm1000', neither"),
    (chat("Where?", "<bbox>", objects=HALF | {"image_id": [1]}), "box_malformed", "there is one image"),
    (chat("Where?", "<bbox>", objects={"bbox": [[1, 2, 3]]}), "box_malformed", "has not four numbers"),
    (chat("Where?", "<bbox>", objects={"bbox": [[1, 2, 3, "x"]]}), "box_malformed", "has not four numbers"),
    (chat("Where?", "<bbox>", objects={"bbox": ["1,2,3,4"]}), "box_malformed", "has not four numbers"),
    (chat("Where?", "<bbox>", objects={"bbox": [[9, 9, 1, 1]]}), "box_empty", "from 9, 9 to 1, 1"),
    (chat("Where?", "<bbox>", objects={"bbox": [[1, 1, float("inf"), 9]]}), "box_malformed", "has not four numbers"),
    (chat("Where?", "<bbox>", objects={"bbox": [[3000, 1, 4000, 9]]}), "box_outside", "in 2000 x 2000"),
    (chat("Where?", "<bbox>", objects={"bbox": SHEEP[:1]}, images=["gone.jpg"]), "size_unknown", "'gone.jpg' cannot be opened"),
    (chat("Where?", "<bbox>", objects={"bbox": SHEEP[:1]}, images=["https://x.org/1.jpg"]), "size_unknown", "in pixels"),
    ({"messages": [{"role": "system", "content": "<bbox>"}], "images": ["x.jpg"]}, "boxes_apart", "the system prompt"),
]  # fmt: skip


@pytest.mark.parametrize(("entry", "code", "words"), ODD, ids=range(len(ODD)))
def test_every_odd_box_costs_its_conversation(folder: Path, entry: dict, code: str, words: str) -> None:
    done = convert(folder, entry)
    assert done.codes == [code]
    assert words in done.words + json.dumps(done.skipped)


def test_a_million_marks_are_no_work_without_boxes(folder: Path) -> None:
    assert convert(folder, chat("Where?", "<bbox> " * 1_000_000, objects=HALF)).codes == ["boxes_apart"]
    assert convert(folder, chat("Where?", "<bbox>" + " " * 1_000_000 + "x", objects=HALF)).rows


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), value=VALUES)
def test_any_value_anywhere_is_used_or_skipped(folder: Path, data: st.DataObject, value: object) -> None:
    entry = data.draw(st.sampled_from([DESCRIBE, FIND, chat("Where?", "<bbox>", objects=HALF)]))
    (folder / "out.jsonl").unlink(missing_ok=True)
    entry = with_value(entry, data.draw(st.sampled_from(places(entry))), value)
    assert_accounted(convert(folder, entry), folder / "out.jsonl", [entry])
