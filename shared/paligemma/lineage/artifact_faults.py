"""Checks an artifact against its record: the record beside it, every file, and no other file, link or folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from paligemma.artifacts.record import RECORD_FILE, MadeRecord, Record, file_sha256, parse_record, render_record
from paligemma.errors import PaliGemmaError
from paligemma.lineage.relocation import version_folder
from paligemma.storage.files import local_file
from paligemma.storage.folders import Entry, kind_of, read_file, walk
from paligemma.storage.location import Location

ArtifactFault = tuple[Literal["altered", "missing"], str, str]
"""Kind, location and description."""

_KINDS = {"folder": "a folder", "link": "a link", "other": "a FIFO, a socket or a device", "file": "a file"}


def artifact_faults(record: MadeRecord, place: Location, others: Sequence[Record]) -> Iterator[ArtifactFault]:
    """What is wrong with an artifact. Follows no links, and opens nothing but files.

    Args:
        record: the artifact's record, as kept below the root.
        place: the artifact's location.
        others: all records of the same location. In Cloud Storage, the previous version stays for a while, and the leftovers of
            a failed attempt go with the next publication.
    """
    kind = kind_of(place)
    if kind is None:
        yield "missing", str(place), f"the artifact ({record.artifact.type}) is gone"
        return
    if kind != "folder":
        yield "altered", str(place), f"in the place of the artifact is {_KINDS[kind]}"
        return
    inside = version_folder(record.artifact.version, place)
    expected = {f"{inside}{file.path}": file for file in record.artifact.files}
    folders = {path[:end] for path in expected for end, letter in enumerate(path) if letter == "/"} | {inside.rstrip("/")}
    there: dict[str, Entry] = {}
    for entry in walk(place):
        if inside and _is_of_another_version(entry.path, inside, others):
            continue
        there[entry.path] = entry
    yield from _record_faults(record, place, there.pop(RECORD_FILE, None))
    for path, file in expected.items():
        found = there.pop(path, None)
        if found is None:
            yield "missing", str(place / path), "a file of the artifact is gone"
        elif found.kind != "file":
            yield "altered", str(place / path), f"in the place of a file of the artifact is {_KINDS[found.kind]}"
        elif found.bytes != file.bytes or _hash(place / path) != file.sha256:
            yield "altered", str(place / path), f"a file of the artifact is not what was recorded: {file.sha256}"
    for path, found in sorted(there.items()):
        if found.kind != "folder":
            yield (
                "altered",
                str(place / path),
                f"{'this file' if found.kind == 'file' else _KINDS[found.kind]} was added to the artifact",
            )
        elif path not in folders and not any(other.startswith(f"{path}/") for other in there):
            yield "altered", str(place / path), "an empty folder was added to the artifact"


def location_sha256(file: Location) -> str:
    """Hash of a file or an object.

    Raises:
        OSError: the file is missing, or not a regular file.
        PaliGemmaError: the object cannot be read.
    """
    with local_file(file) as path:
        return file_sha256(path)


def _hash(file: Location) -> str:
    try:
        return location_sha256(file)
    except (OSError, PaliGemmaError):
        return ""


def _record_faults(record: Record, place: Location, found: Entry | None) -> Iterator[ArtifactFault]:
    where = place / RECORD_FILE
    if found is None:
        yield "missing", str(where), "the record beside the artifact is gone"
        return
    if found.kind != "file":
        yield "altered", str(where), f"in the place of the record is {_KINDS[found.kind]}"
        return
    try:
        data = read_file(where) or b""
        beside = parse_record(data, where)
    except PaliGemmaError as error:
        yield "altered", str(where), error.what
        return
    if beside.sha256 != record.sha256:
        yield "altered", str(where), "it is not the record that was kept below the root"
    elif data != render_record(record):  # the hash does not cover the signature
        yield "altered", str(where), "its bytes are not those that were written"


def _is_of_another_version(path: str, inside: str, others: Sequence[Record]) -> bool:
    folder = path.partition("/")[0]
    if f"{folder}/" == inside or not folder.startswith("version-"):
        return False
    versions = {f"version-{record.artifact.version}" for record in others if record.artifact}
    return folder in versions or any(record.artifact is None for record in others)
