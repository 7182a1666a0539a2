"""Converts conversations about an image, in the forms in which chat models are tuned: one question and its answer are a row.

The forms, as their own pages have them:

- `messages` of `role` and `content`, a text or a list of parts: huggingface/transformers 0d7e95d,
  docs/source/en/chat_templating_multimodal.md, lines 19 to 47; OpenAI's guide "Vision fine-tuning", "Data format".
- `conversations` of `from` and `value`, with `<image>` in a text: haotian-liu/LLaVA 9ad7265, docs/Finetune_Custom_Data.md,
  lines 5 to 27. Where the mark is in a text does not matter there either (llava/train/train.py, `preprocess_multimodal`).
- either of them beside `images`, one for each `<image>`: hiyouga/LLaMA-Factory ff6d4d1, data/README.md, lines 310 to 349, and
  433 to 475.
- `messages` with OpenAI's or Anthropic's parts, or beside `images`; `conversation` of `human` and `assistant`; `loss`:
  modelscope/ms-swift 3602360, docs/source_en/Customization/Custom-dataset.md, lines 24 to 49, 86, and 258 to 283; for its
  `objects` see `chat_objects`.

PaliGemma reads one image and one text, and has neither turns nor a system prompt. What needs more is left out, by its reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paligemma.data.convert.chat_objects import fill_marks, has_marks
from paligemma.data.convert.names import image_name
from paligemma.data.convert.outcomes import EntryError, Outcome, Tally, shown
from paligemma.data.convert.table import stored_image
from paligemma.data.convert.table_files import read_table
from paligemma.data.rows import Repeated, leads_elsewhere

_LISTS = ("messages", "conversations", "conversation", "texts")
_PAIRS = (("human", "assistant"), ("user", "assistant"))
_ROLES = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "system": "system",
    "developer": "system",
}
_MARK = "<image>"
_OTHER_MEDIA = ("videos", "audios", "video", "audio")
_OTHER_MARKS = ("<video>", "<audio>")


@dataclass
class _Turn:
    """What one side says until the other does.

    Attributes:
        role: `user`, `assistant` or `system`.
        texts: its texts, without the marks of images.
        images: images that a part of it holds or names.
        marks: number of places for images that are listed beside the conversation.
        moved: whether such a place is amid a text.
        learned: whether an answer is one to learn.
    """

    role: str
    texts: list[str] = field(default_factory=list)
    images: list[object] = field(default_factory=list)
    marks: int = 0
    moved: bool = False
    learned: bool = True

    @property
    def text(self) -> str:
        """The texts as one."""
        return " ".join(filter(None, self.texts))

    def add(self, other: _Turn) -> None:
        """Adds what the same side says next."""
        self.texts += other.texts
        self.images += other.images
        self.marks += other.marks
        self.moved |= other.moved


def chat_rows(chats: Path, folder: Path, first_turn: bool, tally: Tally) -> Iterator[Outcome]:
    """A row for every conversation of one question about one image, and its answer.

    Args:
        chats: JSONL, JSON or Parquet.
        folder: the folder that image names are relative to; images that are bytes are written to its `images/`.
        first_turn: of a longer conversation, take the first question and answer; else it is left out.
        tally: counts oddities.

    Raises:
        InputError: the file cannot be read.
    """
    for entry, values in read_table(chats, (), tally):
        try:
            if isinstance(values, EntryError):
                raise values
            turns, system = _turns(values)
            question, answer = _pair(turns, first_turn)
            if values.get("label") is False or values.get("kto_tag") is False or not answer.learned:
                raise EntryError("answer_unlearned", "the answer is marked as one that is not to be learned")
            if answer.images or answer.marks:
                raise EntryError("image_in_answer", "the answer has an image")
            image = _name_of(_one_image(values, question, len(turns) > 2), folder)
            name = image if leads_elsewhere(image) else image_name(image, folder, tally)
            texts = [question.text, answer.text]
            prefix, suffix = fill_marks(texts, values.get("objects"), name, folder, len(turns) > 2, entry, tally)
        except EntryError as problem:
            yield Outcome((entry,), problem)
            continue
        if system:
            tally.note("system_dropped", entry.place)
        if question.moved:
            tally.note("image_moved", entry.place)
        if len(turns) > 2:
            tally.note("later_turns_dropped", entry.place, len(turns) - 2)
        yield Outcome((entry,), {"image": name, "prefix": prefix, "suffix": suffix})


def _turns(values: dict[str, Any]) -> tuple[list[_Turn], bool]:
    """The turns of a conversation, and whether it has a system prompt. What a user says in several messages is one turn."""
    found = [key for key in _LISTS if values.get(key) is not None]
    if len(found) != 1:
        there = " and ".join(found) or ", ".join(map(shown, list(values)[:8])) or "no keys"
        raise EntryError("turns_missing", f"there are {there}, not one of {', '.join(_LISTS)}")
    listed = values[found[0]]
    if not isinstance(listed, list):
        raise EntryError("turns_malformed", f"{found[0]!r} is {shown(listed)}, not a list")
    turns: list[_Turn] = []
    system = values.get("system") not in (None, "")
    for number, message in enumerate(listed):
        for one in _messages(message, f"{found[0]}[{number}]"):
            if one.role == "system":
                system = True
                if has_marks(one.text):
                    raise EntryError("boxes_apart", "the system prompt, which is left out, has <bbox> or <ref-object>")
            elif turns and turns[-1].role == one.role == "user":
                turns[-1].add(one)
            else:
                turns.append(one)
    return turns, system


def _messages(message: object, place: str) -> Iterator[_Turn]:
    """The turn of a message; of one of `_PAIRS`, both turns."""
    if isinstance(message, Repeated):
        raise EntryError("key_repeated", f"{place}: {message.what}")
    if not isinstance(message, dict):
        raise EntryError("turns_malformed", f"{place} is {shown(message)}, not an object")
    if "role" in message or "from" in message:
        yield _turn(message.get("role", message.get("from")), message.get("content", message.get("value")), message, place)
    elif pair := next((pair for pair in _PAIRS if message.keys() >= set(pair)), None):
        for role in pair:
            yield _turn(role, message[role], message, place)
    else:
        raise EntryError("turns_malformed", f"{place} does not say who speaks: {', '.join(map(shown, list(message)[:8]))}")


def _turn(role: object, content: object, message: dict, place: str) -> _Turn:
    if not isinstance(role, str) or role.strip().lower() not in _ROLES:
        raise EntryError("role_other", f"{place} is of {shown(role)}")
    turn = _Turn(_ROLES[role.strip().lower()])
    weight = message.get("weight", message.get("loss"))
    turn.learned = not (weight is False or (isinstance(weight, int | float) and weight == 0))
    for part in content if isinstance(content, list) else [content]:
        _add_part(turn, part, place)
    return turn


def _add_part(turn: _Turn, part: object, place: str) -> None:
    if isinstance(part, str):
        _add_text(turn, part)
        return
    if isinstance(part, Repeated):
        raise EntryError("key_repeated", f"{place}: {part.what}")
    if not isinstance(part, dict):
        raise EntryError("turns_malformed", f"{place} says {shown(part)}, neither text nor parts")
    kind = part.get("type")
    if kind in ("text", "input_text", "output_text") and isinstance(part.get("text"), str):
        _add_text(turn, part["text"])
    elif kind in ("image", "image_url", "input_image"):
        held = [part[key] for key in ("image_url", "url", "path", "image", "source") if part.get(key) is not None]
        held += [part] if "base64" in part else []
        turn.images += held[:1]
        turn.marks += not held
    elif kind in ("video", "audio", "input_audio", "video_url", "audio_url", "file"):
        raise EntryError("media_other", f"{place} has a part of type {shown(kind)}")
    else:
        raise EntryError("turns_malformed", f"{place} has a part of type {shown(kind)}")


def _add_text(turn: _Turn, text: str) -> None:
    if any(mark in text for mark in _OTHER_MARKS):
        raise EntryError("media_other", f"a text has a mark for a video or for sound: {shown(text)}")
    first, *others = text.split(_MARK)
    if not others:
        turn.texts.append(text)
        return
    turn.marks += len(others)
    pieces = [piece.strip() for piece in (first, *others)]
    turn.moved |= sum(map(bool, pieces)) > 1
    turn.texts.append(" ".join(filter(None, pieces)))


def _pair(turns: list[_Turn], first_turn: bool) -> tuple[_Turn, _Turn]:
    """The question and the answer of a conversation that has one, or of a longer one if its first are asked for."""
    if not turns or turns[0].role != "user":
        raise EntryError("question_unasked", "the conversation begins with an answer" if turns else "nobody says anything")
    if len(turns) == 1:
        raise EntryError("answer_unlearned", "nobody answers")
    if len(turns) > 2 and turns[2].role == "assistant":
        raise EntryError("turns_malformed", "two answers follow each other")
    if len(turns) > 2 and not first_turn:
        raise EntryError("turns_several", f"the conversation has {len(turns)} turns; --first-turn takes the first two")
    return turns[0], turns[1]


def _one_image(values: dict[str, Any], question: _Turn, longer: bool) -> object:
    """The image that a question is about.

    Args:
        values: the entry, which may list images.
        question: the question.
        longer: whether later turns may be about other images of the list.
    """
    if any(values.get(key) for key in _OTHER_MEDIA):
        raise EntryError("media_other", "there is a video or sound")
    listed = [one for key in ("images", "image") for one in _listed(values.get(key))]
    if longer and 0 < question.marks < len(listed):
        listed = listed[: question.marks]  # one for each mark, in their order
    found = listed + question.images
    if not found:
        raise EntryError("image_none", "the conversation has no image")
    if len(found) > 1:
        raise EntryError("images_several", f"the question has {len(found)} images")
    if question.marks > 1:
        raise EntryError("marks_disagree", f"there are {question.marks} places for one image")
    return found[0]


def _listed(value: object) -> list[object]:
    return list(value) if isinstance(value, list) else [] if value in (None, "") else [value]


def _name_of(value: object, folder: Path) -> str:
    """An image, in any of the forms in which parts and lists have it, as a row names it. Bytes are written to a file."""
    if isinstance(value, dict):
        coded = value.get("base64", value.get("data"))
        if isinstance(coded, str):
            return coded if coded.lstrip()[:5].lower() == "data:" else f"data:;base64,{coded}"
        if isinstance(address := value.get("url"), str):
            value = address
    name = stored_image(value, folder)
    return name.removeprefix("file://")
