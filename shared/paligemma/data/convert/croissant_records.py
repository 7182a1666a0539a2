"""Reads the records of a data set that a Croissant file describes: its record sets, their fields, and where values come from.

Read is what descriptions of images with texts use, of versions 1.0 and 1.1 (mlcommons/croissant, docs/croissant-spec-1.0.md,
"RecordSet", "Field", "Source" and "Transform"): columns of tables, JSON paths, names and contents of files, regular
expressions, separators, and one join. The rest is refused in words.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paligemma.data.convert.croissant_files import Distribution
from paligemma.data.convert.files import open_text
from paligemma.data.convert.files import read_json as read_data
from paligemma.data.convert.outcomes import Entry, EntryError, Tally
from paligemma.data.convert.table_files import TableRow, read_table
from paligemma.errors import InputError
from paligemma.foreign_json import read_json
from paligemma.safe_names import shown

MOST_JOINED = 2_000_000
"""Most rows of a table that another one is joined with: they are held in memory."""
MOST_DEPTH = 16
"""Longest chain of fields that are other fields."""

_LONGEST = 500  # characters of a text that an expression is tried on
_REPETITIONS = 3  # in an expression: with more, one text might take minutes
_PREFIX = re.compile(r"^(cr|ml|sc|schema|dct):")
_STEP = re.compile(r"\.([^.\[\]*'\"]+)|\[(\d{1,9})\]|\[['\"]([^'\"]+)['\"]\]|(\[\*\])")
_PROPERTIES = ("filename", "fullpath", "filepath", "content", "lines", "lineNumbers")
_OF_LINES = ("lines", "lineNumbers")

Take = Callable[[Any], Any]
"""Takes a value out of what a file yields: a table's row, an entry of JSON."""


@dataclass(frozen=True)
class Extraction:
    """Where a value comes from.

    Attributes:
        file: id of the FileObject or FileSet.
        kind: `column`, `jsonPath` or `fileProperty`.
        what: name of the column or property, or the JSON path.
        transforms: what becomes of the value.
    """

    file: str
    kind: str
    what: str
    transforms: tuple[Take, ...] = ()

    def of(self, values: Mapping[tuple[str, str], Any]) -> Any:
        """The value in what was read of a record, by kind and name."""
        value = values.get((self.kind, self.what))
        for transform in self.transforms:
            value = [transform(one) for one in value] if isinstance(value, list) else transform(value)
        return value


@dataclass(frozen=True)
class Field:
    """A field of a record set.

    Attributes:
        name: its id without the record set's.
        types: its data types, without their vocabulary: `ImageObject`, `Text`, ...
        extraction: where its values come from; or why that is not read.
        key: what a record of another file has in common with this field's records, if it is joined by it.
    """

    name: str
    types: tuple[str, ...]
    extraction: Extraction | str
    key: Extraction | str | None = None

    def cast(self, value: Any) -> Any:
        """A value of a table of texts as the number that the field's type says."""
        for kind, make in (("Integer", int), ("Float", float)):
            if kind in self.types and isinstance(value, str):
                try:
                    return make(value)
                except ValueError:
                    return value
        return value


@dataclass(frozen=True)
class RecordSet:
    """A record set: its fields by name, and its records if the description itself has them."""

    name: str
    fields: Mapping[str, Field]
    data: Sequence[Mapping[str, Any]] = ()


class Description:
    """A Croissant file.

    Attributes:
        sets: record sets by name.
        nodes: FileObjects and FileSets by id.
    """

    def __init__(self, path: Path) -> None:
        """Reads the file.

        Raises:
            InputError: it is no Croissant file.
        """
        self._path = path
        value = _plain(read_json(path, "The description", error=InputError))
        if not isinstance(value, dict) or not isinstance(value.get("recordSet", []), list):
            raise InputError("The file is no Croissant description.", where=path, expected="an object with a list recordSet")
        self.nodes = {_id(node): node for node in _objects(value.get("distribution"))}
        self._fields: dict[str, dict[str, Any]] = {}
        listed = []
        for number, one in enumerate(_objects(value.get("recordSet"))):
            found = _objects(one.get("field"))
            found += [inner for field in found for inner in _objects(field.get("subField"))]
            self._fields |= {_id(field): field for field in found}
            listed.append((_id(one) or f"{number + 1}", [field for field in found if "subField" not in field], one))
        self.sets = {name: RecordSet(name, self._named(name, found), _objects(one.get("data"))) for name, found, one in listed}

    def _named(self, record_set: str, fields: Sequence[dict[str, Any]]) -> dict[str, Field]:
        made = {}
        for field in fields:
            name = _id(field).removeprefix(f"{record_set}/")
            reference = field.get("references")
            key = self._extraction(reference, 0) if isinstance(reference, dict) else None
            made[name] = Field(name, self._types(field, 0), self._extraction(field.get("source"), 0), key)
        return made

    def _types(self, field: Mapping[str, Any], depth: int) -> tuple[str, ...]:
        """The data types of a field: its own, or those of the field that it is taken from."""
        types, source = field.get("dataType"), field.get("source")
        if types is None and isinstance(source, dict) and depth < MOST_DEPTH:
            origin = self._fields.get(_reference(source.get("field")))
            return () if origin is None else self._types(origin, depth + 1)
        words = types if isinstance(types, list) else [types]
        return tuple(str(word).rpartition(":")[2].rpartition("/")[2] for word in words if word is not None)

    def _extraction(self, source: object, depth: int) -> Extraction | str:
        """Where values come from, or why that is not read."""
        if not isinstance(source, dict):
            return "it has no source"
        if depth > MOST_DEPTH:
            return "its source is a circle"
        transforms = [_transform(one) for one in _objects(source.get("transform"))]
        if wrong := next((one for one in transforms if isinstance(one, str)), None):
            return wrong
        made = tuple(one for one in transforms if not isinstance(one, str))
        name = _reference(source.get("field"))
        if name in self._fields:
            inner = self._extraction(self._fields[name].get("source"), depth + 1)
            return (
                inner if isinstance(inner, str) else Extraction(inner.file, inner.kind, inner.what, (*inner.transforms, *made))
            )
        file = _reference(source.get("fileObject")) or _reference(source.get("fileSet")) or name
        if file not in self.nodes:
            return f"its source {shown(file)} is no file that is listed"
        given = source.get("extract")
        extract = [(kind, what) for kind, what in given.items() if kind != "@type"] if isinstance(given, dict) else []
        if len(extract) != 1 or not isinstance(extract[0][1], str):
            return f"it is extracted by {shown([kind for kind, _ in extract])}, and not by a column, jsonPath or fileProperty"
        kind, what = extract[0]
        if kind not in ("column", "jsonPath", "fileProperty") or (kind == "fileProperty" and what not in _PROPERTIES):
            return f"it is extracted by {kind} {shown(what)}"
        if kind == "jsonPath" and _steps(what) is None:
            return f"its JSON path {shown(what)} has more than names, numbers and [*]"
        return Extraction(file, kind, what, made)


def read_records(
    record_set: RecordSet, wanted: Sequence[str], distribution: Distribution, scratch: Path, where: Path, tally: Tally
) -> Iterator[TableRow]:
    """Every record of a record set, with the wanted fields by name, or what is wrong with it. A field of a file's contents is a
    `FoundFile`.

    Args:
        record_set: the record set.
        wanted: names of its fields.
        distribution: the files.
        scratch: a folder for tables that have to be unpacked.
        where: the description, for messages.
        tally: counts oddities.

    Raises:
        InputError: a field is not read, or files that are not joined have fields; see also `Distribution.files`.
    """
    if record_set.data:
        for number, one in enumerate(record_set.data):
            yield Entry(f"record {number + 1}"), {key.removeprefix(f"{record_set.name}/"): value for key, value in one.items()}
        return
    fields = {name: record_set.fields[name] for name in wanted}
    places = {name: _read(field, where) for name, field in fields.items()}
    files = {place.file for place in places.values()}
    main, links = _main_file(record_set, files, where)
    of_main = [place for place in places.values() if place.file == main] + [owner for owner, _ in links.values()]
    joined = {}
    for file, (_, key) in links.items():
        of_file = [place for place in places.values() if place.file == file]
        joined[file] = _by_key(_file_records(file, [*of_file, key], distribution, scratch, where, tally), key, file, where)
    for entry, values in _file_records(main, of_main, distribution, scratch, where, tally):
        if isinstance(values, EntryError):
            yield entry, values
            continue
        try:
            found = {main: values}
            for file, (owner, _) in links.items():
                wanted_key = owner.of(values)
                other = joined[file].get(str(wanted_key))
                if other is None:
                    raise EntryError("value_missing", f"{file!r} has nothing for {shown(wanted_key)}")
                if isinstance(other, EntryError):
                    raise other
                found[file] = other
            yield entry, {name: field.cast(places[name].of(found[places[name].file])) for name, field in fields.items()}
        except EntryError as problem:
            yield entry, problem


def _read(field: Field, where: Path) -> Extraction:
    if isinstance(field.extraction, str):
        raise InputError(f"The field {field.name!r} is not read: {field.extraction}.", where=where, fix="take another field")
    return field.extraction


def _main_file(record_set: RecordSet, files: set[str], where: Path) -> tuple[str, dict[str, tuple[Extraction, Extraction]]]:
    """The file whose records are gone through; and of every other file, by which two values its records are joined to them."""
    links: dict[str, tuple[Extraction, Extraction]] = {}
    for field in record_set.fields.values():
        owner, key = field.extraction, field.key
        if not isinstance(owner, Extraction) or not isinstance(key, Extraction) or owner.file == key.file:
            continue
        if {owner.file, key.file} <= files:
            links.setdefault(key.file, (owner, key))
    mains = sorted(files - links.keys())
    if len(mains) != 1 or any(owner.file != mains[0] for owner, _ in links.values()):
        raise InputError(
            f"The fields come from files that the description does not join: {', '.join(sorted(map(repr, files)))}.",
            where=where,
            expected="fields of one file, or one whose field refers to each other file",
            fix="name images by a field, as --image 'images/{id}.jpg'",
        )
    return mains[0], links


def _by_key(rows: Iterator[tuple[Entry, Any]], key: Extraction, file: str, where: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for _, values in rows:
        if isinstance(values, EntryError):
            continue
        if any(isinstance(value, bytes | dict) for value in values.values()):
            raise InputError(f"The table {file!r}, which is joined with another one, has pictures.", where=where)
        try:
            value = str(key.of(values))
        except EntryError:
            continue  # nothing can be joined with it
        found[value] = (
            EntryError("value_wrong", f"{file!r} has several records for {shown(value)}") if value in found else values
        )
        if len(found) > MOST_JOINED:
            raise InputError(f"{file!r} has more than {MOST_JOINED:,} rows to join with.", where=where)
    return found


def _file_records(
    file: str, places: Sequence[Extraction], distribution: Distribution, scratch: Path, where: Path, tally: Tally
) -> Iterator[tuple[Entry, Mapping[tuple[str, str], Any] | EntryError]]:
    """What the files of a FileObject or FileSet yield: rows of tables, entries of JSON, lines, or each file as a whole."""
    kinds = {_inside(place) for place in places} - {""}
    if len(kinds) > 1:
        raise InputError(f"Fields of {file!r} are extracted in {len(kinds)} ways, {', '.join(sorted(kinds))}.", where=where)
    columns = list(dict.fromkeys(place.what for place in places if place.kind == "column"))
    paths = list(dict.fromkeys(place.what for place in places if place.kind == "jsonPath"))
    for found in distribution.files(file):
        local = found.table(scratch) if kinds else None
        about: dict[tuple[str, str], Any] = {
            ("fileProperty", "filename"): found.name.rpartition("/")[2],
            ("fileProperty", "fullpath"): found.name,
            ("fileProperty", "filepath"): found.name,
            ("fileProperty", "content"): found,
        }
        if local is None:
            yield Entry(found.name), about
        elif columns:
            for entry, row in read_table(local, columns, tally):
                at = Entry(f"{found.name}, {entry.place}")
                if isinstance(row, EntryError):
                    yield at, row
                elif missing := [column for column in columns if column not in row]:
                    yield at, EntryError("column_missing", f"there is no {missing[0]!r}")
                else:
                    yield at, about | {("column", column): row[column] for column in columns}
        elif paths:
            taken = _by_paths(read_data(local, "data"), paths, local)
            for number, values in enumerate(taken):
                yield Entry(f"{found.name}, entry {number + 1}"), about | values
        else:
            with open_text(local) as text:
                for number, line in enumerate(iter(lambda text=text: text.readline(1 << 20), "")):
                    of_line = {("fileProperty", "lines"): line.rstrip("\r\n"), ("fileProperty", "lineNumbers"): number}
                    yield Entry(f"{found.name}, line {number + 1}"), about | of_line


def _inside(place: Extraction) -> str:
    """What of a file's contents gives a value: columns, JSON paths or lines; empty if the file as a whole does."""
    if place.kind != "fileProperty":
        return place.kind
    return "lines" if place.what in _OF_LINES else ""


def _by_paths(value: object, paths: Sequence[str], where: Path) -> Iterator[dict[tuple[str, str], Any]]:
    """The values of JSON paths, entry by entry: what comes before a path's last `[*]` has the entries."""
    lists = []
    for path in paths:
        steps = _steps(path) or []
        last = len(steps) - steps[::-1].index(None) if None in steps else 0
        lists.append([next(_walk(entry, steps[last:]), None) for entry in _walk(value, steps[:last])])
    if len({len(values) for values in lists}) > 1:
        counts = ", ".join(f"{path} {len(values)}" for path, values in zip(paths, lists, strict=True))
        raise InputError(f"JSON paths of one record set have different numbers of values: {counts}.", where=where)
    for values in zip(*lists, strict=True):
        yield {("jsonPath", path): one for path, one in zip(paths, values, strict=True)}


def _walk(value: Any, steps: Sequence[str | int | None]) -> Iterator[Any]:
    """The values at the end of a path; None stands for every entry of a list or an object."""
    if not steps:
        yield value
        return
    step, *rest = steps
    inner: Sequence[Any] = ()
    if step is None:
        inner = value if isinstance(value, list) else list(value.values()) if isinstance(value, dict) else ()
    elif isinstance(step, int):
        inner = value[step : step + 1] if isinstance(value, list) else ()
    elif isinstance(value, dict) and step in value:
        inner = [value[step]]
    for one in inner:
        yield from _walk(one, rest)


def _steps(path: str) -> list[str | int | None] | None:
    """The steps of a JSON path: names, numbers, and None for `[*]`; None for a path that has anything else."""
    text = path.removeprefix("$")
    text = text if text[:1] in ("", ".", "[") else f".{text}"
    steps: list[str | int | None] = []
    at = 0
    while at < len(text):
        found = _STEP.match(text, at)
        if found is None or len(steps) == MOST_DEPTH:
            return None
        steps.append(int(found[2]) if found[2] else found[1] or found[3])
        at = found.end()
    return steps


def _transform(value: Mapping[str, Any]) -> Take | str:
    """What a transform makes of a value, or why it is not read."""
    kinds = [key for key in value if key != "@type"]
    if len(kinds) != 1 or not isinstance(value[kinds[0]], str):
        return f"it is transformed by {', '.join(kinds) or 'nothing'}"
    kind, text = kinds[0], value[kinds[0]]
    if kind == "separator":
        return lambda one: one.split(text) if isinstance(one, str) and text else one
    if kind == "jsonPath":
        steps = _steps(text)
        return f"its JSON path {shown(text)} is not read" if steps is None else lambda one: next(_walk(one, steps), None)
    if kind != "regex":
        return f"it is transformed by {kind}"
    if fault := _expression_fault(text):
        return f"its regular expression {shown(text)} {fault}"
    expression = re.compile(text)

    def first_group(one: Any) -> Any:
        if isinstance(one, str) and len(one) > _LONGEST:
            raise EntryError("value_wrong", f"it has more than {_LONGEST} characters, and a regular expression for them")
        found = expression.match(one) if isinstance(one, str) else None
        return next((group for group in found.groups() if group is not None), one) if found else one

    return first_group


def _expression_fault(text: str) -> str:
    """Why a stranger's regular expression is not tried: it is none, or may take for ever. Empty if it is tried.

    What takes for ever has repetitions in repetitions, or many one after the other.
    """
    plain = re.sub(r"\\.", "x", text)
    plain = re.sub(r"\[\^?\]?[^\]]*\]", "x", plain)
    if len(text) > 500 or re.search(r"\)[*+{]", plain) or "(?P=" in plain or re.search(r"\\[1-9]", text):
        return "repeats a group, which may take for ever"
    if len(re.findall(r"[*+]|\{", plain)) > _REPETITIONS or plain.count("?") - plain.count("(?") > _REPETITIONS:
        return f"has more than {_REPETITIONS} repetitions, which may take for ever"
    try:
        re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        return f"is none: {error}"
    return ""


def _plain(value: Any) -> Any:
    """The same value without vocabularies before its keys: `cr:field` is `field`."""
    if isinstance(value, dict):
        return {_PREFIX.sub("", key): _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list) else value


def _objects(value: object) -> list[dict[str, Any]]:
    """The objects in a list, or the one that a value is."""
    return [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, dict)]


def _id(node: Mapping[str, Any]) -> str:
    found = node.get("@id", node.get("name", ""))
    return found if isinstance(found, str) else ""


def _reference(value: object) -> str:
    """The id in a reference; empty if it is none."""
    found = value.get("@id") if isinstance(value, dict) else value
    return found if isinstance(found, str) else ""
