"""Reads rows and images of one JSONL file, or of a mixture of several, in which names of images tell their folders too.

Where the files' images are in different folders, the name of an image begins with its folder's: `cats/1.png`, `dogs/1.png`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from paligemma.artifacts.store import localize
from paligemma.data.image_source import ImageSource, image_marks, open_images
from paligemma.data.jsonl_files import LineRange, split_lines
from paligemma.data.rows import Row, RowError, RowImage, read_all_rows, read_rows
from paligemma.data.source_list import parse_sources, short_names
from paligemma.data.web_images import WebImage
from paligemma.errors import InputError
from paligemma.storage.location import SCHEME, absolute_uri, parse_location


@dataclass(frozen=True)
class RowSource:
    """A JSONL file of a data set.

    Attributes:
        file: a local copy.
        images: the folder or `gs://` prefix that its image names are relative to.
        name: what tells the file from the others, for lists and pages; empty if there are no others.
        folder: what the names of its images begin with; empty if all files have one folder.
        data: the file's location.
        weight: its share of the training examples, relative to the others'; None: each row counts once.
    """

    file: Path
    images: str
    name: str = ""
    folder: str = ""
    data: str = ""
    weight: float | None = None


def open_sources(data: str, images: str) -> list[RowSource]:
    """The JSONL files that `--data` names, as local copies, and where their images are.

    Args:
        data: one location, or the sources of a mixture; see `source_list.parse_sources`.
        images: the folder or prefix of the images of all sources that name none; empty: each file's folder.

    Raises:
        InputError: the sources are named wrongly, or there is no such file.
    """
    asked = parse_sources(str(data), "--data")
    folders = [absolute_uri(parse_location(source.images or images or parse_location(source.data).parent)) for source in asked]
    different = list(dict.fromkeys(folders))
    beginnings = dict(zip(different, short_names(different), strict=True))
    opened = []
    for source, folder, name in zip(asked, folders, short_names([source.data for source in asked]), strict=True):
        file = localize(source.data)
        if not file.is_file():
            if file.exists():
                raise InputError(f"{source.data} is not a file.", expected="a JSONL file", fix="name the file in it")
            raise InputError(f"There is no data file {source.data}.", expected="a JSONL file", fix="check --data")
        opened.append(RowSource(file.absolute(), folder, name, beginnings[folder], source.data, source.weight))
    return opened


def read_part(sources: Sequence[RowSource], part: LineRange, images: int | None) -> Iterator[tuple[int, Row | RowError]]:
    """The rows of a range, as `rows.read_rows` yields them, with the mixture's names of images. The file is not packed."""
    source = sources[part.source]
    return _named(source, read_rows(source.file, part, images))


def read_source(source: RowSource, images: int | None) -> Iterator[tuple[int, Row | RowError]]:
    """All rows of a file, which may be gzip; see `read_part`."""
    return _named(source, read_all_rows(source.file, images))


def read_sources(sources: Iterable[RowSource], images: int | None) -> Iterator[tuple[int, Row | RowError]]:
    """All rows of all files, one file after the other; see `read_source`."""
    for source in sources:
        yield from read_source(source, images)


def split_sources(sources: Sequence[RowSource], lines: int) -> list[LineRange]:
    """Cuts every file after each `lines` lines, so that no range has rows of two; none of them is packed."""
    parts = (replace(part, source=place) for place, source in enumerate(sources) for part in split_lines(source.file, lines))
    return [replace(part, number=number) for number, part in enumerate(parts)]


def open_folders(sources: Sequence[RowSource], web: Mapping[str, WebImage] | None = None) -> ImageSource:
    """The source of all images of these files; see `image_source.open_images`."""
    if not sources[0].folder:
        return open_images(sources[0].images, web)
    return _Folders({source.folder: open_images(source.images, web) for source in sources}, web or {})


def folder_marks(sources: Sequence[RowSource], names: Iterable[str], web: Mapping[str, WebImage]) -> dict[str, str]:
    """What each image is, by its name in the mixture; see `image_source.image_marks`."""
    if not sources[0].folder:
        return image_marks(sources[0].images, sorted(names), web)
    marks, within = dict[str, str](), dict[str, dict[str, str]]()
    folders = {source.folder: source.images for source in sources}
    for name in sorted(names):
        folder, rest = _in_folder(name, folders, web)
        within.setdefault(folder, {})[rest] = name
    for folder, named in within.items():
        found = image_marks(folders[folder], list(named), web)
        marks |= {name: found[rest] for rest, name in named.items()}
    return marks


class _Folders:
    """Sends each name to its folder."""

    def __init__(self, folders: Mapping[str, ImageSource], web: Mapping[str, WebImage]) -> None:
        self._folders, self._web = folders, web

    def read(self, name: str) -> bytes:
        folder, rest = _in_folder(name, self._folders, self._web)
        return self._folders[folder].read(rest)

    def expect(self, names: Iterable[str]) -> None:
        wanted: dict[str, list[str]] = {}
        for name in names:
            folder, rest = _in_folder(name, self._folders, self._web)
            wanted.setdefault(folder, []).append(rest)
        for folder, source in self._folders.items():
            source.expect(wanted.get(folder, ()))


def _in_folder(name: str, folders: Mapping[str, object], web: Mapping[str, WebImage]) -> tuple[str, str]:
    """The folder of an image, and its name there. What is elsewhere has its own name in each: the first stands for all."""
    first = next(iter(folders))
    if name.startswith(SCHEME) or name in web:
        return first, name
    parts = name.split("/")
    depth = first.count("/") + 1  # all have as many parts; see `source_list.short_names`
    return "/".join(parts[:depth]), "/".join(parts[depth:])


def _named(source: RowSource, rows: Iterator[tuple[int, Row | RowError]]) -> Iterator[tuple[int, Row | RowError]]:
    if not source.folder:
        return rows
    return ((number, _in_mixture(row, source.folder) if isinstance(row, Row) else row) for number, row in rows)


def _in_mixture(row: Row, folder: str) -> Row:
    """A row whose images' names begin with their folder's, unless they are elsewhere, or in the row itself."""
    return replace(row, images=tuple(_within(image, folder) for image in row.images))


def _within(image: RowImage, folder: str) -> RowImage:
    if image.address or image.inline is not None or image.name.startswith(SCHEME):
        return image
    return replace(image, name=f"{folder}/{image.name}")
