"""Reads XML that strangers wrote, one child of the root at a time: no entities, no document types, bounded size and nesting.

Expat itself expands entities, which is how a file of a kilobyte takes gigabytes (https://docs.python.org/3/library/xml.html,
section XML vulnerabilities). Annotations need none, so a document type is refused wherever it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from paligemma.data.convert.files import open_binary
from paligemma.errors import InputError

MAX_BYTES = 256 << 20
"""Largest XML file that is read, unpacked."""
MAX_DEPTH = 32
"""Deepest nesting of elements."""
MAX_CHILD_BYTES = 16 << 20
"""Largest child of the root: an image with its shapes."""
MAX_CHILD_ELEMENTS = 200_000
"""Most elements of a child of the root."""

_BLOCK = 1 << 16


def read_elements(path: Path, what: str, root: str, most: int = MAX_BYTES) -> Iterator[Element]:
    """The children of an XML file's root, in order; a child is released before the next one is read.

    Args:
        path: the file, plain or gzip.
        what: what the file is, for messages.
        root: the root's name.
        most: most bytes, unpacked.

    Raises:
        InputError: the file cannot be read, is too large, is not XML, has a document type, or another root.
    """
    reader = _Reader(path, what, root)
    size = 0
    with open_binary(path) as file:
        try:
            while block := file.read(_BLOCK):
                size += len(block)
                if size > most:
                    limit = f"{most >> 20} MiB at most"
                    raise InputError(
                        f"The {what} are too large: {limit}.", where=path, fix="export fewer images into each file"
                    )
                reader.parser.Parse(block)
                reader.check(size)
                yield from reader.taken()
            reader.parser.Parse(b"", True)
        except expat.ExpatError as error:
            message = f"{expat.errors.messages[error.code]}, line {error.lineno}"
            raise InputError(f"The {what} are not XML: {message}.", where=path) from None
        except (UnicodeError, LookupError, ValueError) as error:
            raise InputError(f"The {what} are not XML: {error}.", where=path) from None
    yield from reader.taken()


class _Reader:
    """Builds one tree for each child of the root."""

    def __init__(self, path: Path, what: str, root: str) -> None:
        self._path, self._what, self._root = path, what, root
        self._depth = self._elements = self._begin = 0
        self._builder: TreeBuilder | None = None
        self._done: list[Element] = []
        self.parser = expat.ParserCreate()
        self.parser.buffer_text = True
        self.parser.StartDoctypeDeclHandler = self._refuse
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._text

    def taken(self) -> list[Element]:
        done, self._done = self._done, []
        return done

    def check(self, size: int) -> None:
        """Refuses a child that is too large, and a tag without an end, which the parser keeps whole."""
        begin = self._begin if self._builder is not None else self.parser.CurrentByteIndex
        if size - begin > MAX_CHILD_BYTES:
            self._refuse_child(f"{MAX_CHILD_BYTES >> 20} MiB")

    def _refuse(self, *_: object) -> None:
        raise InputError(
            f"The {self._what} have a document type (<!DOCTYPE ...>), which may hold entities without end.",
            where=self._path,
            expected="XML without one, as annotation tools write",
            fix="remove the line",
        )

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        if self._depth == 1 and name != self._root:
            raise InputError(f"The {self._what} begin with <{name[:40]}>.", where=self._path, expected=f"<{self._root}>")
        if self._depth > MAX_DEPTH:
            raise InputError(f"The {self._what} are nested deeper than {MAX_DEPTH} levels.", where=self._path)
        if self._depth == 1:
            return
        if self._depth == 2:
            self._builder, self._elements, self._begin = TreeBuilder(), 0, self.parser.CurrentByteIndex
        self._elements += 1
        if self._elements > MAX_CHILD_ELEMENTS:
            self._refuse_child(f"{MAX_CHILD_ELEMENTS:,} elements")
        if self._builder is not None:
            self._builder.start(name, attributes)

    def _text(self, text: str) -> None:
        if self._builder is not None and self._depth > 1:
            self._builder.data(text)

    def _end(self, name: str) -> None:
        self._depth -= 1
        if self._builder is None or self._depth == 0:
            return
        self._builder.end(name)
        if self._depth == 1:
            self._done.append(self._builder.close())
            self._builder = None

    def _refuse_child(self, most: str) -> None:
        what = f"An element of the {self._what} has more than {most}."
        raise InputError(what, where=self._path, fix="export fewer shapes for each image")
