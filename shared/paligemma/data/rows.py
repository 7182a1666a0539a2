"""Reads JSONL rows `{"image", "prefix", "suffix"}`, of one image or several, and says exactly what is wrong with a bad one."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paligemma.artifacts.record import each
from paligemma.data.image_names import is_foreign, missing_name, unsafe_name
from paligemma.data.inline_images import inline_image
from paligemma.data.jsonl_files import LineRange, read_all_lines, read_lines
from paligemma.data.run_lengths import MaskError
from paligemma.data.seg_masks import masks_text, true_masks
from paligemma.redaction import name_of_address
from paligemma.safe_names import sha256_fault
from paligemma.web_address import is_web_address

MAX_LINE_BYTES = 1 << 20
"""Longest line that is parsed, in bytes, without a picture in it; longer lines are rejected."""

MAX_INLINE_BYTES = 16 << 20
"""Longest line with a picture in it; longer lines are rejected without being held in memory."""

MOST_VALUES = 10_000
"""Most lists, objects and values in a line of more than `MAX_LINE_BYTES`: each takes many times its own bytes in memory."""

MOST_IMAGES = 32
"""Most images in a row. At 224 pixels, 32 are 8,192 tokens, as many as Gemma was trained on (arXiv 2403.08295, section 2)."""

_CHATS = {"messages", "conversations", "conversation"}
REASONS = {
    "line_too_long": "the line is longer than 1 MiB, or 16 MiB with a data: image",
    "encoding_invalid": "the line is not UTF-8, or has half a surrogate pair",
    "json_invalid": "the line is not JSON",
    "not_an_object": "the line is JSON, but not an object",
    "key_repeated": "a key is repeated: nobody knows which value is meant",
    "key_missing": "image, prefix or suffix is missing",
    "type_wrong": "image, prefix or suffix is no text, answers no list of texts, image_sha256 no hash, or masks no run lengths",
    "suffix_empty": "the suffix is empty or blank: there is nothing to learn",
    "image_none": "the row has texts only: the model sees an image in every row",
    "images_several": "the row has more or fewer images than --images-per-example: the model sees so many in every row",
    "image_path_unsafe": "the image path is absolute, an address of another kind, or leads out of the image folder",
    "image_address_unsafe": "the address is plain http, is none, or leads to a host that is not on the internet",
    "image_missing": "there is no such image file, object or page, or it cannot be read",
    "image_forbidden": "the server, or the bucket, refuses to give the image",
    "image_unavailable": "the server did not answer, or only with errors, however often it was asked",
    "image_hash_wrong": "the image has another sha256 than the row says",
    "image_unreadable": "the file is not an image that can be decoded",
    "image_too_large": "the image has too many pixels, or bytes, to decode safely",
    "text_too_long": "prefix and suffix have more tokens than --max-text-tokens",
    "text_unspellable": "the tokenizer does not reproduce the text: the model would learn another text",
}
"""Reason codes of `rejected.jsonl`, and what each means."""


class RowError(Exception):
    """An unusable row: a code of `REASONS`, and details."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


@dataclass(frozen=True)
class Repeated:
    """Replaces a JSON object with a repeated key. Python takes the key's last value, other readers the first."""

    key: str

    @property
    def what(self) -> str:
        """Describes the repeated key."""
        return f"{self.key[:40]!r} is there twice"

    def __repr__(self) -> str:
        return f"an object with {self.key[:40]!r} twice"


def once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any] | Repeated:
    """An object from its keys and values, for `json.loads`."""
    values = dict(pairs)
    if len(values) == len(pairs):
        return values
    seen: set[str] = set()
    return Repeated(next(key for key, _ in pairs if key in seen or seen.add(key)))


@dataclass(frozen=True)
class RowImage:
    """An image of a row.

    Attributes:
        name: its name in lists and records. A path below the image folder, or a `gs://` address, is its own name; a web address
            is named without its query, which may be a key; and a picture in the row by its sha256.
        sha256: what its sha256 has to be; empty if the row does not say.
        address: its web address; empty if it is elsewhere.
        inline: the image file, if the row itself holds it.
    """

    name: str
    sha256: str = ""
    address: str = ""
    inline: bytes | None = None


@dataclass(frozen=True)
class Row:
    """A well-formed row.

    Attributes:
        line: number of its line, from 1.
        images: the images, in the order in which the model sees them; at least one.
        prefix, suffix: the texts.
        answers: the references for evaluation if there are several; if empty, the suffix is the only reference.
        masks: the true masks as `seg_masks.masks_text` writes them; empty if the row keeps none.
    """

    line: int
    images: tuple[RowImage, ...]
    prefix: str
    suffix: str
    answers: tuple[str, ...] = ()
    masks: str = ""

    @property
    def names(self) -> list[str]:
        """The names of the images."""
        return [image.name for image in self.images]


def read_rows(path: str | Path, part: LineRange | None = None, images: int | None = 1) -> Iterator[tuple[int, Row | RowError]]:
    """Yields every line that is not blank, numbered from 1, as a row or an error. Streams; skips a BOM.

    Args:
        path: the file.
        part: the lines to read; None for all.
        images: see `parse_row`.

    Raises:
        InputError: the file cannot be read.
    """
    return _parsed(read_lines(path, MAX_INLINE_BYTES, part), part.line if part else 1, images)


def read_all_rows(path: Path, images: int | None = 1) -> Iterator[tuple[int, Row | RowError]]:
    """`read_rows` for a whole file that may be gzip. Unpacks no more than is consumed.

    Raises:
        InputError: the file cannot be read, or unpacks to more than rows plausibly do.
        DamagedError: the gzip file is cut short, or its checksum is wrong.
    """
    return _parsed(read_all_lines(path, MAX_INLINE_BYTES), 1, images)


def parse_row(line: bytes, number: int, images: int | None = 1) -> Row:
    """Parses one line as a row.

    A row with fewer images than the others is refused, not filled up: the reference has as many in every row, and no mask on
    image tokens (big_vision's `pp/proj/paligemma/video.py:44-50` and `models/proj/paligemma/paligemma.py:128-133`). It repeats
    the frames of a video that is too short (`video.py:53-75`), which a row can do too.

    Args:
        line: the line.
        number: its number in the file, from 1.
        images: how many images a row has; None for any number up to `MOST_IMAGES`.

    Raises:
        RowError: the line is not a row.
    """
    try:
        text = line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        wide = number == 1 and line[:2] in (b"\xff\xfe", b"\xfe\xff")
        what = "the file is UTF-16; save it as UTF-8" if wide else f"byte {error.start + 1} of the line is not UTF-8"
        raise RowError("encoding_invalid", what) from None
    try:
        values = json.loads(text, object_pairs_hook=once_each)
    except json.JSONDecodeError as error:
        whole = number == 1 and text.lstrip().startswith("[")
        what = "; the file looks like one JSON array, but each line must be an object" if whole else ""
        raise RowError("json_invalid", f"{error.msg} at character {error.pos + 1} of the line{what}") from None
    except RecursionError:
        raise RowError("json_invalid", "nested too deeply") from None
    except ValueError as error:  # integers of more than 4,300 digits
        raise RowError("json_invalid", str(error)) from None
    if isinstance(values, Repeated):
        raise RowError("key_repeated", values.what)
    if not isinstance(values, dict):
        many = "; the file looks like one JSON array, but each line must be an object" if number == 1 else ""
        raise RowError("not_an_object", f"the line is {_kind(values)}{many if isinstance(values, list) else ''}")
    given: list[Any] = each(values.get("image"))
    _expect_number(values.get("image"), images)
    inline = _inline(given, len(line))
    _expect_image(values)
    for key in ("image", "prefix", "suffix"):
        if key not in values:
            chat = "; paligemma convert chat makes rows of conversations" if values.keys() & _CHATS else ""
            raise RowError("key_missing", f"{key!r} is missing; the row has {', '.join(map(repr, values)) or 'no keys'}{chat}")
        for text in given if key == "image" else [values[key]]:
            if not isinstance(text, str):
                verb = "has" if text is not values[key] else "is"
                raise RowError("type_wrong", f"{key!r} {verb} {_kind(text)}, not a string")
            try:
                text.encode()
            except UnicodeEncodeError:
                raise RowError("encoding_invalid", f"{key!r} has half a surrogate pair") from None
    if not values["suffix"].strip():
        raise RowError("suffix_empty", "the suffix is empty")
    answers = values.get("answers", [])
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        raise RowError("type_wrong", "'answers' is not a list of strings")
    try:
        "".join(answers).encode()
    except UnicodeEncodeError:
        raise RowError("encoding_invalid", "'answers' has half a surrogate pair") from None
    hashes = _hashes(values.get("image_sha256", ""), len(given))
    found = tuple(named_image(*one) for one in zip(given, inline, hashes, strict=True))
    return Row(number, found, values["prefix"], values["suffix"], tuple(answers), _masks_of(values.get("masks")))


def named_image(image: str, inline: bytes | None, sha256: str = "") -> RowImage:
    """An image of a row.

    Args:
        image: as the row has it.
        inline: the image file, if that is it.
        sha256: see `RowImage`.
    """
    if inline is not None:
        return RowImage(f"data:sha256:{hashlib.sha256(inline).hexdigest()}", sha256, inline=inline)
    return RowImage(name_of_address(image), sha256, image) if is_web_address(image) else RowImage(image, sha256)


def leads_elsewhere(image: str) -> bool:
    """Whether an image, as a row has it, is by its form in a bucket, on the web, or in the row itself."""
    try:
        return image.startswith("gs://") or is_web_address(image) or inline_image(image) is not None
    except ValueError:
        return True


def _expect_number(image: object, wanted: int | None) -> None:
    """Refuses a row with another number of images than wanted; of more than `MOST_IMAGES`, before one is looked at."""
    count = len(image) if isinstance(image, list) else 1
    if not isinstance(image, list | str) or not count or (count <= MOST_IMAGES and wanted in (count, None)):
        return
    if count > MOST_IMAGES:
        raise RowError("images_several", f"'image' is an array of {count:,}; a row has {MOST_IMAGES} images at most")
    if wanted == 1:
        alone = "write a row for each image, if it is asked about alone"
        flags = f"--images-per-example {count}, of pipeline run --set images_per_example={count}"
        raise RowError("images_several", f"'image' is an array of {count}; {alone}; if every row has so many, pass {flags}")
    there = f"'image' is an array of {count}" if isinstance(image, list) else "'image' is one image"
    raise RowError("images_several", f"{there}; every row is to have {wanted}")


def _expect_image(values: dict) -> None:
    """Refuses a row of texts only in words of its own."""
    image = values.get("image")
    if image in (None, []) and all(isinstance(values.get(key), str) for key in ("prefix", "suffix")):
        there = f"the row has {', '.join(map(repr, values))}"
        if "image" in values:
            there = "'image' is null" if image is None else "'image' is an empty array"
        raise RowError("image_none", f"{there}: without an image, there is nothing to ask PaliGemma about")


def _inline(images: Sequence[object], size: int) -> list[bytes | None]:
    """For each image the picture that the row holds itself, if it does.

    Args:
        images: the row's images, as they are written.
        size: of the line, in bytes.

    Raises:
        RowError: a picture cannot be decoded; or the line is too long, pictures in it not counted.
    """
    try:
        inline = [inline_image(image) if isinstance(image, str) else None for image in images]
    except ValueError as error:
        raise RowError("image_unreadable", str(error)) from None
    in_it = sum(len(str(image)) for image, held in zip(images, inline, strict=True) if held is not None)
    if size - in_it > MAX_LINE_BYTES:
        raise RowError("line_too_long", f"it has {size} bytes, {MAX_LINE_BYTES} at most, a picture in it not counted")
    return inline


def _hashes(given: object, count: int) -> list[str]:
    """What the images' sha256 have to be, one for each; empty texts if the row does not say.

    Raises:
        RowError: they are no hashes, or not as many as images.
    """
    hashes = [""] * count if given == "" else each(given)
    if len(hashes) != count:
        raise RowError("type_wrong", f"'image_sha256' has {len(hashes)} of the {count} images: an array has one for each")
    for sha256 in hashes:
        if not isinstance(sha256, str) or (sha256 and sha256_fault(sha256.lower())):
            raise RowError("type_wrong", "'image_sha256' is not 64 hexadecimal digits")
    return [str(sha256).lower() for sha256 in hashes]


def _masks_of(given: object) -> str:
    """True masks as `seg_masks.masks_text` writes them; empty if the key holds something else, such as names of files.

    Raises:
        RowError: they are run lengths, but cannot be used.
    """
    if not (isinstance(given, list) and any(isinstance(one, dict) and "counts" in one for one in given)):
        return ""
    try:
        text = masks_text(true_masks(given))
        text.encode()
    except MaskError as error:
        raise RowError("type_wrong", f"'masks' are no masks with a label, a size and packed counts: {error}") from None
    except UnicodeEncodeError:
        raise RowError("encoding_invalid", "'masks' has half a surrogate pair") from None
    return text


def _kind(value: object) -> str:
    """JSON's name for a value's type."""
    names = {dict: "an object", list: "an array", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def image_path(folder: Path, name: str) -> Path:
    """The path of a row's image, which is below `folder` even with links followed.

    Raises:
        RowError: the image is missing, or not below the folder.
    """
    if not name or "\0" in name:
        raise RowError("image_missing", f"{name!r} is not a file name")
    try:
        root = os.path.realpath(folder)
        path = os.path.realpath(os.path.join(root, name))
        if os.path.isabs(name) or os.path.commonpath([root, path]) != root:
            raise RowError("image_path_unsafe", unsafe_name(name, str(folder)))
        if not os.path.isfile(path):
            raise _no_file(name, path, root)
    except (OSError, RuntimeError) as error:  # name too long; a loop of links
        raise RowError("image_missing", f"{name!r}: {error}") from None
    return Path(path)


def _no_file(name: str, path: str, root: str) -> RowError:
    def exists(near: str) -> bool:
        other = os.path.realpath(os.path.join(root, near))
        return os.path.commonpath([root, other]) == root and os.path.isfile(other)

    if os.path.exists(path):
        return RowError("image_missing", f"{name!r} is {'a folder' if os.path.isdir(path) else 'something else'}, not a file")
    if is_foreign(name):
        return RowError("image_path_unsafe", unsafe_name(name, root))
    return RowError("image_missing", missing_name(name, exists, root))


def row_id(image_sha256: str | Iterable[str], prefix: str, suffix: str) -> str:
    """Hash of a row's contents: sha256 over the hash of each image's bytes, prefix and suffix, each with its length."""
    digest = hashlib.sha256()
    images = [image_sha256] if isinstance(image_sha256, str) else image_sha256
    for part in (*images, prefix, suffix):
        data = part.encode()
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()


def _parsed(lines: Iterable[bytes | None], first: int, images: int | None) -> Iterator[tuple[int, Row | RowError]]:
    for number, line in enumerate(lines, start=first):
        if line is None:
            yield number, RowError("line_too_long", f"longer than {MAX_LINE_BYTES} bytes")
        elif len(line) > MAX_LINE_BYTES and sum(map(line.count, (b"[", b"{", b","))) > MOST_VALUES:
            yield number, RowError("line_too_long", f"longer than {MAX_LINE_BYTES} bytes, and not by a picture in it")
        elif line.strip():
            try:
                row = parse_row(line, number, images)
            except RowError as error:
                row = RowError(error.code, error.message)  # the other one holds the line, and all that was made of it
            yield number, row
