"""`paligemma convert chat`: conversations to rows; what PaliGemma cannot do is left out by its reason."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from converting import Conversion, places, run_convert, with_value
from hypothesis import given, settings
from hypothesis import strategies as st

from paligemma.data.convert.reasons import REASONS
from paligemma.data.rows import Row, read_rows

PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")
CODED = base64.b64encode(PNG).decode()


def convert(folder: Path, entries: list, *flags: str, limit: float = 1.0) -> Conversion:
    path = folder / "chats.json"
    path.write_text(json.dumps(entries))
    return run_convert(folder / "out.jsonl", "chat", "--conversations", path, *flags, limit=limit)


def user(content: object) -> dict:
    return {"role": "user", "content": content}


def assistant(content: object, **more: object) -> dict:
    return {"role": "assistant", "content": content, **more}


def text(what: str) -> dict:
    return {"type": "text", "text": what}


A = {"images": ["a.jpg"]}
WHAT, A_CAT, GPT = text("What is it?"), assistant("a cat"), {"from": "gpt", "value": "a cat"}
CAT = [user("<image>What is it?"), A_CAT]
ROW = {"image": "a.jpg", "prefix": "What is it?", "suffix": "a cat"}

FORMS = [
    # the entry | its row, if it is used | why not, if it is not | words
    # LLaMA-Factory: messages or conversations beside images
    ({"messages": CAT, **A}, ROW, None, "1 conversations read: 1 used, 0 skipped"),
    ({"messages": CAT, "images": "a.jpg"}, ROW, None, "1 used"),
    ({"messages": [user("What is it?"), A_CAT], **A}, ROW, None, "1 used"),
    ({"conversations": [{"from": "human", "value": "<image>What is it?"}, GPT], **A},
     ROW, None, "1 used"),
    ({"messages": [{"role": "system", "content": "Be brief."}, *CAT], **A}, ROW, None, "1 system_dropped"),
    ({"messages": CAT, "system": "Be brief.", **A}, ROW, None, "1 system_dropped"),
    # LLaVA
    ({"id": "1", "image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\nWhat is it?"},
                                                     GPT]}, ROW, None, "1 used"),
    ({"image": "a.jpg", "conversations": [{"from": "human", "value": "What is it?\n<image>"}, GPT]},
     ROW, None, "1 used"),
    ({"image": ["a.jpg"], "messages": CAT}, ROW, None, "1 used"),
    # transformers: parts
    ({"messages": [user([{"type": "image", "url": "https://host/a.jpg"}, WHAT]), assistant([text("a cat")])]},
     {**ROW, "image": "https://host/a.jpg"}, None, "1 used"),
    ({"messages": [user([{"type": "image", "path": "a.jpg"}, WHAT]), A_CAT]}, ROW, None, "1 used"),
    ({"messages": [user([{"type": "image", "image": "gs://b/a.jpg"}, WHAT]), A_CAT]},
     {**ROW, "image": "gs://b/a.jpg"}, None, "1 used"),
    ({"messages": [user([{"type": "image", "base64": CODED}, WHAT]), A_CAT]},
     {**ROW, "image": f"data:;base64,{CODED}"}, None, "1 used"),
    ({"messages": [user([{"type": "image"}, WHAT]), A_CAT], **A}, ROW, None, "1 used"),
    # OpenAI: image_url; consecutive messages of the user
    ({"messages": [user("What is it?"), user([{"type": "image_url", "image_url": {"url": "https://host/a.jpg"}}]),
                   assistant("a cat", weight=1)]}, {**ROW, "image": "https://host/a.jpg"}, None, "1 used"),
    ({"messages": [user([{"type": "image_url", "image_url": f"data:image/png;base64,{CODED}"}, WHAT]),
                   A_CAT]}, {**ROW, "image": f"data:image/png;base64,{CODED}"}, None, "1 used"),
    ({"messages": [user([{"type": "input_image", "image_url": "a.jpg"}, {"type": "input_text", "text": "What is it?"}]),
                   assistant([{"type": "output_text", "text": "a cat"}])]}, ROW, None, "1 used"),
    # ms-swift: Anthropic's sources, pairs, paths from the root, file://
    ({"messages": [user([{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": CODED}},
                         WHAT]), A_CAT]}, {**ROW, "image": f"data:;base64,{CODED}"}, None, "1 used"),
    ({"messages": [user([{"type": "image", "source": {"type": "url", "url": "https://host/a.jpg"}}, WHAT]),
                   A_CAT]}, {**ROW, "image": "https://host/a.jpg"}, None, "1 used"),
    ({"conversation": [{"human": "What is it?", "assistant": "a cat"}], **A}, ROW, None, "1 used"),
    ({"messages": CAT, "images": ["FOLDER/a.jpg"]}, ROW, None, "1 name_absolute"),
    ({"messages": CAT, "images": ["file://FOLDER/a.jpg"]}, ROW, None, "1 name_absolute"),
    ({"messages": CAT, "images": [{"path": "a.jpg", "bytes": None}]}, ROW, None, "1 used"),
    # the_cauldron
    ({"texts": [{"user": "What is it?", "assistant": "a cat", "source": "x"}], **A}, ROW, None, "1 used"),
    # where the mark is
    ({"messages": [user("Look at <image> and say what it is"), A_CAT], **A},
     {**ROW, "prefix": "Look at and say what it is"}, None, "1 image_moved: questions have their image amid the text"),
    ({"messages": [user([text("What"), {"type": "image"}, text("is it?")]), A_CAT], **A},
     ROW, None, "1 used"),
    ({"messages": [user("<image>"), A_CAT], **A}, {**ROW, "prefix": ""}, None, "1 used"),
    ({"messages": [user("<image>What is it?"), assistant(" a cat ")], **A}, {**ROW, "suffix": " a cat "}, None, "1 used"),
    ({"messages": [{"role": "Human", "content": "What is it?"}, {"role": " model ", "content": "a cat"}], **A},
     ROW, None, "1 used"),
    # what PaliGemma cannot do
    ({"messages": [*CAT, user("And its colour?"), assistant("black")], **A}, None, "turns_several", "--first-turn takes"),
    ({"messages": CAT}, None, "image_none", "the row has texts only"),
    ({"messages": CAT, "images": []}, None, "image_none", "texts only"),
    ({"messages": [user("<image><image>Differences?"), assistant("none")], "images": ["a.jpg", "b.jpg"]},
     None, "images_several",
     "the question has 2 images"),
    ({"messages": [user([{"type": "image", "path": "b.jpg"}, text("?")]), assistant("x")], "image": "a.jpg"},
     None, "images_several",
     "2 images"),
    ({"messages": [user("<image><image>?"), assistant("x")], **A}, None, "marks_disagree", "2 places for one image"),
    ({"messages": [user("<video>?"), assistant("x")], "videos": ["a.mp4"]}, None, "media_other", "a video"),
    ({"messages": [user("?"), assistant("x")], "videos": ["a.mp4"], **A}, None, "media_other", "a video or sound"),
    ({"messages": [user([{"type": "audio", "url": "x"}]), assistant("x")]}, None, "media_other", "a part of type 'audio'"),
    ({"messages": [user("Draw an apple"), assistant("<image>")], **A}, None, "image_in_answer", "the answer has an image"),
    ({"messages": [user("Find <ref-object>"), assistant("<bbox>")], **A, "objects": {"ref": ["x"]}}, None, "boxes_apart",
     "<ref-object>"),
    ({"messages": [user("<image>?"), {"role": "tool", "content": "x"}, assistant("y")], **A}, None, "role_other", "'tool'"),
    # what is not as the pages have it
    (7, None, "not_an_object", "the row is int"),
    ({}, None, "turns_missing", "there are no keys"),
    ({"image": "a.jpg", "prefix": "p", "suffix": "s"},
     None, "turns_missing", "'image', 'prefix', 'suffix', not one of messages"),
    ({"messages": CAT, "conversations": CAT, **A}, None, "turns_missing", "messages and conversations"),
    ({"messages": "hello", **A}, None, "turns_malformed", "'messages' is 'hello', not a list"),
    ({"messages": ["hello"], **A}, None, "turns_malformed", "messages[0] is 'hello', not an object"),
    ({"messages": [{"content": "x"}]}, None, "turns_malformed", "messages[0] does not say who speaks: 'content'"),
    ({"messages": [user(7), assistant("x")]}, None, "turns_malformed", "messages[0] says 7"),
    ({"messages": [user({"text": "x"}), assistant("x")]}, None, "turns_malformed", "a part of type nothing"),
    ({"messages": [{"role": 7, "content": "x"}]}, None, "role_other", "messages[0] is of 7"),
    ({"messages": []}, None, "question_unasked", "nobody says anything"),
    ({"messages": [A_CAT], **A}, None, "question_unasked", "begins with an answer"),
    ({"messages": [user("<image>?")], **A}, None, "answer_unlearned", "nobody answers"),
    ({"messages": [*CAT, assistant("a dog")], **A}, None, "turns_malformed", "two answers follow each other"),
    ({"messages": [user("<image>?"), assistant("x", weight=0)], **A}, None, "answer_unlearned", "not to be learned"),
    ({"messages": [user("<image>?"), assistant("x", loss=False)], **A}, None, "answer_unlearned", "not to be learned"),
    ({"messages": CAT, **A, "label": False}, None, "answer_unlearned", "not to be learned"),
    ({"messages": [user("<image>?"), assistant(" ")], **A}, None, "suffix_empty", "the suffix is empty"),
    ({"messages": CAT, "images": [7]}, None, "value_wrong", "the image is 7"),
    ({"messages": CAT, "images": [{"x": 1}]}, None, "value_missing", "there is no image"),
    ({"messages": CAT, "images": ["http://host/a.jpg"]}, None, "image_path_unsafe", "is not relative to the image folder"),
    ({"messages": CAT, "images": ["/elsewhere/a.jpg"]}, None, "image_path_unsafe", "is not relative"),
    ({"messages": CAT, "images": ["../a.jpg"]}, None, "image_path_unsafe", "leads out of the image folder"),
    ({"messages": CAT, "images": ["data:image/png;base64,?"]}, None, "image_unreadable", "is not base64"),
]  # fmt: skip


@pytest.mark.parametrize(("entry", "row", "code", "words"), FORMS)
def test_every_form_is_a_row_or_left_out_with_its_reason(
    tmp_path: Path, entry: object, row: dict | None, code: str | None, words: str
) -> None:
    (tmp_path / "a.jpg").write_bytes(PNG)
    placed = json.loads(json.dumps(entry).replace("FOLDER", str(tmp_path)))
    done = convert(tmp_path, [placed])
    assert done.rows == ([row] if row else [])
    assert done.codes == ([code] if code else [])
    assert words in done.words + "".join(entry["message"] for entry in done.skipped)
    assert done.exit_code == (0 if row else 2)


def test_of_a_longer_conversation_the_first_pair_needs_nothing_that_comes_later(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(PNG)
    longer = [*CAT, user("What are they doing?<image>"), assistant("Sleeping.")]
    entries = [{"messages": longer, "images": ["a.jpg", "b.jpg"]}, {"messages": longer[:3], "images": ["a.jpg", "a.jpg"]}]
    assert convert(tmp_path, entries).codes == ["turns_several"] * 2
    done = convert(tmp_path, entries, "--first-turn")
    assert done.rows == [ROW, ROW]
    assert "3 later_turns_dropped" in done.words


def test_what_is_left_out_on_purpose_does_not_fail_a_conversion(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(PNG)
    good = {"messages": CAT, "images": ["a.jpg"]}
    others = [{"messages": CAT * 2, "images": ["a.jpg"]}, {"messages": CAT}, {"messages": CAT, "images": ["a.jpg", "b.jpg"]}]
    done = convert(tmp_path, [good, *others * 5], limit=0.1)
    assert (done.exit_code, len(done.rows), len(done.skipped)) == (0, 1, 15)
    done = convert(tmp_path, [good, {"messages": 7}, {"messages": 8}], limit=0.1)
    assert done.exit_code == 2


def test_images_that_are_not_there_are_found_while_converting(tmp_path: Path) -> None:
    done = convert(tmp_path, [{"messages": CAT, "images": ["none.jpg"]}], limit=0.1)
    assert done.exit_code == 2
    assert "pass --images, the folder that they are in" in done.words
    assert "--image with" not in done.words


@pytest.mark.parametrize("kind", ["json", "jsonl", "parquet"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, kind: str) -> None:
    entries = [{"messages": CAT, "images": [{"bytes": PNG.hex(), "path": None}]}, {"messages": CAT * 2, "images": []}]
    path = tmp_path / f"chats.{kind}"
    if kind == "parquet":
        for entry in entries:
            for image in entry["images"]:
                image["bytes"] = bytes.fromhex(image["bytes"])
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(entries), path)
        done = run_convert(tmp_path / "out.jsonl", "chat", "--conversations", path)
        (row,) = done.rows
        assert (tmp_path / row["image"]).read_bytes() == PNG
        assert (row["prefix"], row["suffix"], done.codes) == ("What is it?", "a cat", ["turns_several"])
        return
    (tmp_path / "a.jpg").write_bytes(PNG)
    for entry in entries:
        entry["images"] = ["a.jpg"]
    path.write_text(json.dumps(entries) if kind == "json" else "\n".join(map(json.dumps, entries)))
    done = run_convert(tmp_path / "out.jsonl", "chat", "--conversations", path)
    assert (done.rows, done.codes) == ([ROW], ["turns_several"])


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6)
SCALARS |= st.sampled_from(["user", "assistant", "<image>", "a.jpg", "image", "text", 1, 0])
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2), max_leaves=6
)
WHOLE = [
    {"messages": [user([{"type": "image", "url": "a.jpg"}, text("?")]), assistant("a", weight=1)], "system": "s"},
    {"conversations": [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "b"}], "images": [{"path": "a.jpg"}]},
    {"conversation": [{"human": "?", "assistant": "c"}], "image": "a.jpg"},
]


@settings(max_examples=250)
@given(data=st.data(), value=VALUES, first=st.booleans())
def test_any_value_anywhere_never_ends_in_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, value: object, first: bool
) -> None:
    changed = with_value(WHOLE, data.draw(st.sampled_from(places(WHOLE))), value)
    folder = tmp_path_factory.mktemp("chat")
    done = convert(folder, changed, *["--first-turn"] * first)
    assert done.exit_code in (0, 2)
    assert {entry["code"] for entry in done.skipped} <= REASONS.keys()
    if found := re.search(r"(\d+) conversations read: (\d+) used, (\d+) skipped", done.words):
        read, used, skipped = map(int, found.groups())
        assert (read, skipped, len(done.rows)) == (used + skipped, len(done.skipped), used)
    if (folder / "out.jsonl").exists():
        assert all(isinstance(row, Row) for _, row in read_rows(folder / "out.jsonl"))
