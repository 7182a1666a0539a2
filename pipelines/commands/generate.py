"""Answers about many images as JSON lines, a batch at a time; continues where an earlier run ended."""

from __future__ import annotations

import itertools
import json
import logging
import os
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from paligemma.artifacts.record import each, one_or_all
from paligemma.data.image_source import ImageSource, open_images
from paligemma.data.image_suffixes import decoded_suffixes, is_image_name
from paligemma.data.images import ImageError, decode_image, read_image_file
from paligemma.data.inline_images import inline_image
from paligemma.data.pictures.levels import GreyRange
from paligemma.data.rows import MOST_IMAGES, Row, RowError, RowImage, named_image
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


class Asked(NamedTuple):
    """An image that is asked about, which `read` reads. It is named as the user did, but for the query of an address."""

    name: str
    read: Callable[[], bytes]


class Question(NamedTuple):
    """A prompt about an image, or about several together."""

    images: tuple[Asked, ...]
    prompt: str

    @property
    def names(self) -> list[str]:
        """The names of the images."""
        return [image.name for image in self.images]

    def decoded(self, grey_range: GreyRange | None) -> list[UInt8[np.ndarray, "height width 3"]]:
        """The pictures.

        Raises:
            ImageError: one of the images cannot be read.
        """
        return [decode_image(image.read(), image.name, grey_range) for image in self.images]


def find_questions(
    images: Sequence[Path | str], data: Path | None, prompt: str, ask: Callable[[str], str], output: Path | None = None
) -> list[Question]:
    """All questions: one about some images, one about each of a folder's images sorted by name, or the rows of a JSONL file.

    Args:
        images: files, or addresses of images, as texts: one question is about all of them. Or one folder, of which the log
            names other files.
        data: a JSONL file.
        prompt: the question; replaces the prefixes of a JSONL file.
        ask: turns the question into a prompt.
        output: the answers' file, which may be in the folder.

    Raises:
        InputError: there is no image or no question, or a row is invalid.
    """
    if data is not None and not images:
        return _rows(data, prompt, ask)
    if not images or data is not None:
        fix = "add --image, a file or a folder, or --data, a JSONL file; not both"
        raise InputError("There is nothing to ask about.", expected="either --image or --data", fix=fix)
    if not ask(prompt):
        raise InputError(
            "There is no prompt.",
            where="--prompt",
            expected="what to ask, in the words of the training data's prefixes",
            fix='add --prompt, e.g. --prompt "caption en", or --task caption',
        )
    for path in (image for image in images if isinstance(image, Path)):
        if not path.exists():
            raise InputError(
                f"There is no image {path}.", where="--image", expected="a file, or a folder", fix="check the path"
            )
        if path.is_dir() and len(images) > 1:
            raise InputError(
                f"{path} is a folder, and one question is about all images that are named.",
                where="--image",
                expected="files, or one folder alone",
                fix="name the files in it, or write a JSONL file of questions for --data",
            )
    if isinstance(folder := images[0], Path) and folder.is_dir():
        files = _images(folder, output)
        if not files:
            raise InputError(
                "The folder has no images.", where=folder, expected=f"files {', '.join(sorted(decoded_suffixes()))}"
            )
        return [_question(folder, path, ask(prompt)) for path in files]
    try:
        return _about([([_row_image(str(image)) for image in images], ask(prompt))], Path())
    except ValueError as error:
        raise InputError(f"The image cannot be read: {error}.", where="--image") from None


def answer_all(
    model: Model, questions: Sequence[Question], settings: DecodeSettings, batch_size: int, output: Path | None
) -> int:
    """Writes a JSON line for every question, as soon as its batch is done. The line of one whose image is unreadable has an
    `error`. A line's `image` is a name, or a list of names if the question is about several.

    Args:
        model: the model that answers.
        questions: the questions, in the order of the lines.
        settings: how to decode; the seed counts together with image name and prompt, so that the batch size does not matter.
        batch_size: questions asked at once.
        output: a file to append to, which skips questions answered in it; None for standard output.

    Returns:
        Number of questions with an unreadable image.
    """
    unread = 0
    done = answered_before(output) if output is not None and output.exists() else set()
    left = [question for question in questions if (tuple(question.names), question.prompt) not in done]
    with ExitStack() as stack:
        file = sys.stdout if output is None else stack.enter_context(output.open("a"))
        for together in _batches(left, batch_size):
            lines: dict[Question, dict] = {}
            asked, images = [], []
            for question in together:
                lines[question] = {"image": one_or_all(question.names), "prompt": question.prompt}
                try:
                    images.append(question.decoded(model.grey_range))
                    asked.append(question)
                except ImageError as error:
                    lines[question]["error"] = str(error)
                    unread += 1
            # One shape for all batches: the last is filled up.
            missing = batch_size - len(asked) if asked and len(left) > batch_size else 0
            filled = asked + asked[:1] * missing
            keys = [(" ".join(question.names), question.prompt) for question in filled]
            seeds = [zlib.crc32(f"{settings.seed} {names} {prompt}".encode()) for names, prompt in keys]
            answers = model.answer(images + images[:1] * missing, [question.prompt for question in filled], settings, seeds)
            for question, answer in zip(asked, answers, strict=False):
                lines[question] |= {"answer": answer.text, "logprob": round(answer.logprob, 4)}
            file.writelines(printable_json(json.dumps(line, ensure_ascii=False)) + "\n" for line in lines.values())
            file.flush()
    return unread


def _batches(questions: Sequence[Question], size: int) -> Iterator[list[Question]]:
    """The questions in order, in batches about as many images each."""
    for _, alike in itertools.groupby(questions, lambda question: len(question.images)):
        while together := list(itertools.islice(alike, size)):
            yield together


def _question(folder: Path, path: Path, prompt: str) -> Question:
    """A question about a file in a folder."""
    return Question((Asked(str(path.relative_to(folder)), partial(read_image_file, path)),), prompt)


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


def answered_before(output: Path) -> set[tuple[tuple[str, ...], str]]:
    """Images and prompt of every answer in a file. Cuts off an unfinished last line of an interrupted run.

    Raises:
        InputError: the file holds something else.
    """
    fix = "name another file"
    _cut_unfinished_line(output)
    try:
        lines = read_json_lines(output, "The output", nonfinite=True, error=InputError, fix=fix)
        found = [((tuple(each(line["image"])), line["prompt"]), "answer" in line) for line in lines]
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
    asked: list[tuple[list[RowImage], str]] = []
    for number, row in enumerate(read_json_lines(data, "The data", nonfinite=True, error=InputError), 1):
        try:
            images = each(row["image"])
            if not 0 < len(images) <= MOST_IMAGES:
                raise ValueError(f"it has {len(images)} images")
            asked.append(([_row_image(image) for image in images], ask(prompt or row["prefix"])))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            expected = 'lines {"image": "file", "prefix": "question"}'
            raise InputError(f"Row {number} is not a question: {error!r}.", where=data, expected=expected) from None
    return _about(asked, data.parent)


def _row_image(image: str) -> RowImage:
    """An image as a row names it.

    Raises:
        ValueError: it is a `data:` address without a file.
        TypeError: it is no text.
    """
    return named_image(image, inline_image(image))


def _about(asked: Sequence[tuple[Sequence[RowImage], str]], folder: Path) -> list[Question]:
    """Questions about images. Those on the web are fetched."""
    web = fetch_images(Row(number, tuple(images), "", "") for number, (images, _) in enumerate(asked, 1))
    source = open_images(folder, web)
    return [
        Question(tuple(Asked(image.name, partial(_read, image, folder, source, web)) for image in images), text)
        for images, text in asked
    ]


def _read(image: RowImage, folder: Path, source: ImageSource, web: Mapping[str, WebImage]) -> bytes:
    """The file of an image. A path may lead anywhere on this machine, as it is the user's own.

    Raises:
        ImageError: it cannot be read.
    """
    if image.inline is not None:
        return image.inline
    if image.name not in web and not image.name.startswith(SCHEME):
        return read_image_file(folder / image.name)
    try:
        return source.read(image.name)
    except RowError as error:
        raise ImageError(error.code, f"The image cannot be had: {error.message}.", image.name) from None
