"""Answers about many images as JSON lines, a batch at a time; continues where an earlier run ended."""

from __future__ import annotations

import json
import logging
import os
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

from paligemma.data.image_source import ImageSource, open_images
from paligemma.data.image_suffixes import decoded_suffixes, is_image_name
from paligemma.data.images import ImageError, decode_image, read_image_file
from paligemma.data.inline_images import inline_image
from paligemma.data.rows import Row, RowError, name_image
from paligemma.data.web_images import WebImage, fetch_images
from paligemma.decoding.settings import DecodeSettings
from paligemma.errors import InputError
from paligemma.foreign_json import LINE_BYTES, read_json_lines
from paligemma.model import Model
from paligemma.storage.location import SCHEME
from paligemma.terminal import printable, printable_json

log = logging.getLogger("paligemma.generate")

_NAMED = 10
"""Most skipped files to name in the log; all are counted."""


class Question(NamedTuple):
    """A prompt about an image, which `read` reads. Answers name the image as the user did, but for the query of an address."""

    name: str
    read: Callable[[], bytes]
    prompt: str


def find_questions(
    image: Path | str | None, data: Path | None, prompt: str, ask: Callable[[str], str], output: Path | None = None
) -> list[Question]:
    """All questions: about one image, a folder's images sorted by name, or the rows of a JSONL file.

    Args:
        image: a file or a folder, of which the log names other files; or the address of an image, as a text.
        data: a JSONL file.
        prompt: the question; replaces the prefixes of a JSONL file.
        ask: turns the question into a prompt.
        output: the answers' file, which may be in the folder.

    Raises:
        InputError: there is no image or no question, or a row is invalid.
    """
    if data is not None and image is None:
        return _rows(data, prompt, ask)
    if image is None or data is not None:
        fix = "add --image, a file or a folder, or --data, a JSONL file; not both"
        raise InputError("There is nothing to ask about.", expected="either --image or --data", fix=fix)
    if not ask(prompt):
        raise InputError(
            "There is no prompt.",
            where="--prompt",
            expected="what to ask, in the words of the training data's prefixes",
            fix='add --prompt, e.g. --prompt "caption en", or --task caption',
        )
    if isinstance(image, str):
        try:
            return _about([(_row(1, image), ask(prompt))], Path())
        except ValueError as error:
            raise InputError(f"The image cannot be read: {error}.", where="--image") from None
    if not image.exists():
        raise InputError(f"There is no image {image}.", where="--image", expected="a file, or a folder", fix="check the path")
    if image.is_dir():
        files = _images(image, output)
        if not files:
            raise InputError(
                "The folder has no images.", where=image, expected=f"files {', '.join(sorted(decoded_suffixes()))}"
            )
        return [Question(str(path.relative_to(image)), partial(read_image_file, path), ask(prompt)) for path in files]
    return [Question(str(image), partial(read_image_file, image), ask(prompt))]


def answer_all(
    model: Model, questions: Sequence[Question], settings: DecodeSettings, batch_size: int, output: Path | None
) -> int:
    """Writes a JSON line for every question, as soon as its batch is done. The line of an unreadable image has an `error`.

    Args:
        model: the model that answers.
        questions: the questions, in the order of the lines.
        settings: how to decode; the seed counts together with image name and prompt, so that the batch size does not matter.
        batch_size: questions asked at once.
        output: a file to append to, which skips questions answered in it; None for standard output.

    Returns:
        Number of unreadable images.
    """
    unread = 0
    done = answered_before(output) if output is not None and output.exists() else set()
    left = [question for question in questions if question[::2] not in done]
    with ExitStack() as stack:
        file = sys.stdout if output is None else stack.enter_context(output.open("a"))
        for start in range(0, len(left), batch_size):
            lines: dict[Question, dict] = {}
            asked, images = [], []
            for question in left[start : start + batch_size]:
                lines[question] = {"image": question.name, "prompt": question.prompt}
                try:
                    images.append(decode_image(question.read(), question.name, model.grey_range))
                    asked.append(question)
                except ImageError as error:
                    lines[question]["error"] = str(error)
                    unread += 1
            # One shape for all batches: the last is filled up.
            missing = batch_size - len(asked) if asked and len(left) > batch_size else 0
            filled = asked + asked[:1] * missing
            seeds = [zlib.crc32(f"{settings.seed} {question.name} {question.prompt}".encode()) for question in filled]
            answers = model.answer(images + images[:1] * missing, [question.prompt for question in filled], settings, seeds)
            for question, answer in zip(asked, answers, strict=False):
                lines[question] |= {"answer": answer.text, "logprob": round(answer.logprob, 4)}
            file.writelines(printable_json(json.dumps(line, ensure_ascii=False)) + "\n" for line in lines.values())
            file.flush()
    return unread


def _images(folder: Path, output: Path | None) -> list[Path]:
    """The images of a folder and below, sorted by name. Logs the other files, which are skipped.

    Raises:
        InputError: a folder cannot be read.
    """

    def fail(error: OSError) -> None:
        raise InputError(f"The folder cannot be read: {error.strerror}.", where=error.filename)

    images, others = [], []
    for parent, folders, files in os.walk(folder, onerror=fail):
        # Hidden files are not the user's: editors and file managers keep copies there.
        hidden = [name for name in folders if name.startswith(".") or (Path(parent) / name).is_symlink()]
        folders[:] = [name for name in folders if name not in hidden]
        others += [Path(parent) / name for name in hidden]
        for path in (Path(parent) / name for name in files):
            if output is not None and path.absolute() == output.absolute():
                continue
            found = is_image_name(path.name) and not path.name.startswith(".") and path.is_file() and _is_text(path.name)
            (images if found else others).append(path)
    if others:
        endings = Counter(path.suffix.lower() or "no ending" for path in others)
        counted = ", ".join(f"{count} {ending}" for ending, count in endings.most_common())
        names = sorted(path.relative_to(folder).as_posix() for path in others)
        named = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
        what = "%d entries of %s are no images by their names, and passed over (%s): %s"
        log.warning(what, len(others), folder, printable(counted), printable(named))
    return sorted(images)


def _is_text(name: str) -> bool:
    """Whether a file's name is UTF-8, so that JSON can hold it."""
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False


def answered_before(output: Path) -> set[tuple[str, str]]:
    """Image and prompt of every answer in a file. Cuts off an unfinished last line of an interrupted run.

    Raises:
        InputError: the file holds something else.
    """
    fix = "name another file"
    _cut_unfinished_line(output)
    try:
        lines = read_json_lines(output, "The output", nonfinite=True, error=InputError, fix=fix)
        found = [((line["image"], line["prompt"]), "answer" in line) for line in lines]
        return {asked for asked, is_answered in found if is_answered}
    except (KeyError, TypeError):
        raise InputError("The output holds other lines than answers.", where=output, fix=fix) from None


def _cut_unfinished_line(output: Path) -> None:
    """Cuts off what follows the last line feed. Leaves a file unchanged if it has none within the longest line."""
    with output.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - LINE_BYTES))
        end = file.read()
        left = len(end) - (end.rfind(b"\n") + 1)
        if left and (b"\n" in end or len(end) == size):
            file.truncate(size - left)


def _rows(data: Path, prompt: str, ask: Callable[[str], str]) -> list[Question]:
    asked: list[tuple[Row, str]] = []
    for number, row in enumerate(read_json_lines(data, "The data", nonfinite=True, error=InputError), 1):
        try:
            asked.append((_row(number, row["image"]), ask(prompt or row["prefix"])))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            expected = 'lines {"image": "file", "prefix": "question"}'
            raise InputError(f"Row {number} is not a question: {error!r}.", where=data, expected=expected) from None
    return _about(asked, data.parent)


def _row(number: int, image: str) -> Row:
    """A row of an image, without texts.

    Raises:
        ValueError: it is a `data:` address without a file.
        TypeError: it is no text.
    """
    inline = inline_image(image)
    name, address = name_image(image, inline)
    return Row(number, name, "", "", address=address, inline=inline)


def _about(asked: Sequence[tuple[Row, str]], folder: Path) -> list[Question]:
    """Questions about the images of rows. Those on the web are fetched."""
    web = fetch_images(row for row, _ in asked)
    source = open_images(folder, web)
    return [Question(row.image, partial(_read, row, folder, source, web), text) for row, text in asked]


def _read(row: Row, folder: Path, source: ImageSource, web: Mapping[str, WebImage]) -> bytes:
    """The image of a row. A path may lead anywhere on this machine, as it is the user's own.

    Raises:
        ImageError: it cannot be read.
    """
    if row.inline is not None:
        return row.inline
    if row.image not in web and not row.image.startswith(SCHEME):
        return read_image_file(folder / row.image)
    try:
        return source.read(row.image)
    except RowError as error:
        raise ImageError(error.code, f"The image cannot be had: {error.message}.", row.image) from None
