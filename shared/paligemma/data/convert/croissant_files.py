"""Finds the files of a data set that a Croissant file describes: beside it, in folders and archives, or on the web.

A description is a stranger's. No file outside its folder is read but those that the user names, addresses go through
`web_client`, files that have a sha256 are compared with it, and archives are read, not unpacked.
"""

from __future__ import annotations

import fnmatch
import os
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from paligemma.artifacts.record import file_sha256
from paligemma.checkpoints.sources.web import fetch
from paligemma.data.convert.outcomes import EntryError
from paligemma.data.images import MAX_BYTES
from paligemma.data.jsonl_files import is_gzip, unpack
from paligemma.errors import DamagedError, InputError
from paligemma.regular_files import open_regular
from paligemma.safe_names import relative_path_fault, sha256_fault, shown
from paligemma.storage.files import write_file

MOST_FILES = 1_000_000
"""Most files of a folder or archive."""
MOST_TABLE = 2 << 30
"""Largest table in an archive, in bytes; tables elsewhere may be larger."""

_SPECIAL = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class FoundFile:
    """A file of a data set.

    Attributes:
        name: its path in the folder or archive that it is in; of a single file, its name.
        path: where it is on this machine; None if it is in an archive.
    """

    name: str
    path: Path | None = None
    _bytes: Callable[[int], bytes] | None = field(default=None, repr=False)

    def read(self, most: int = MAX_BYTES) -> bytes:
        """Its bytes.

        Raises:
            EntryError: it cannot be read, or has more than `most` bytes.
        """
        try:
            if self._bytes is not None:
                data = self._bytes(most + 1)
            else:
                assert self.path is not None
                with open_regular(self.path) as file:
                    data = file.read(most + 1)
        except (OSError, ValueError, RuntimeError, EOFError, zlib.error, zipfile.BadZipFile, tarfile.TarError) as error:
            raise EntryError("file_unreadable", f"{shown(self.name)}: {error}") from None
        if len(data) > most:
            raise EntryError("file_unreadable", f"{shown(self.name)} has more than {most} bytes")
        return data

    def table(self, folder: Path) -> Path:
        """A file on this machine with its contents, of the same name; made in `folder` if it is in an archive.

        Raises:
            InputError: it cannot be read, or is too large.
        """
        if self.path is not None:
            return self.path
        try:
            data = self.read(MOST_TABLE)
        except EntryError as error:
            raise InputError(f"A table cannot be read: {error.message}.", fix="unpack the archive") from None
        path = folder / f"{len(list(folder.iterdir()))}-{os.path.basename(self.name)}"
        write_file(path, data)
        return path


class Distribution:
    """The files that a description lists, by their ids."""

    def __init__(self, nodes: Mapping[str, Mapping[str, Any]], folder: Path, named: Mapping[str, Path], scratch: Path) -> None:
        """Takes what the description lists.

        Args:
            nodes: FileObjects and FileSets by id.
            folder: the folder of the description.
            named: files and folders on this machine by id, as the user names them.
            scratch: a folder for what has to be unpacked.

        Raises:
            InputError: a name is no id.
        """
        self._nodes, self._folder, self._named, self._scratch = nodes, folder, named, scratch
        self._places: dict[str, Path] = {}
        self._listed: dict[Path, list[FoundFile]] = {}
        self._within: list[str] = []  # containers that are being listed, from the outermost
        for name in named:
            if name not in nodes:
                raise InputError(
                    f"There is no {name!r} in the description.", where="--files", expected=f"one of {_list(nodes)}"
                )

    def files(self, name: str) -> list[FoundFile]:
        """The files of a FileObject, which is one, or of a FileSet, in the order of their names.

        Raises:
            InputError: they are not on this machine, and cannot be had; or the description is wrong.
            DamagedError: a file is not the described one.
        """
        node = self._node(name)
        containers = list(_references(node.get("containedIn")))
        if _kind(node) == "FileSet" and name not in self._named:
            within = [file for container in containers for file in self._inside(container)]
            if not containers:
                within = self._list(self._folder)
            includes, excludes = (_texts(node.get(key), key, name) for key in ("includes", "excludes"))
            chosen = [
                file for file in within if _matches(file.name, includes) and not (excludes and _matches(file.name, excludes))
            ]
            if not chosen:
                raise InputError(
                    f"The files of {name!r} are not there.", where=self._folder, expected=f"files like {_list(includes)}"
                )
            return sorted(chosen, key=lambda file: file.name)
        if containers and name not in self._named:
            return [self._member(containers[0], str(node.get("contentUrl", "")), name)]
        path = self._place(name)
        return self._list(path) if path.is_dir() else [FoundFile(path.name, path)]

    def _node(self, name: str) -> Mapping[str, Any]:
        if name not in self._nodes:
            raise InputError(
                f"The description lists no file {name!r}.", where=self._folder, expected=f"one of {_list(self._nodes)}"
            )
        return self._nodes[name]

    def _inside(self, name: str) -> list[FoundFile]:
        """The files in a folder, in an archive, or of a FileSet."""
        if name in self._within:
            raise InputError(f"{name!r} is contained in itself.", where=self._folder)
        self._within.append(name)
        try:
            return self.files(name) if _kind(self._node(name)) == "FileSet" else self._list(self._place(name))
        finally:
            self._within.pop()

    def _member(self, container: str, wanted: str, name: str) -> FoundFile:
        for file in self._inside(container):
            if os.path.normpath(file.name) == os.path.normpath(wanted):
                return file
        raise InputError(f"{container!r} has no file {shown(wanted)}, which is {name!r}.", where=self._folder)

    def _place(self, name: str) -> Path:
        """Where a FileObject that is in no other is on this machine. One on the web is fetched."""
        if name not in self._places:
            self._places[name] = self._find(name, self._node(name))
        return self._places[name]

    def _find(self, name: str, node: Mapping[str, Any]) -> Path:
        containers = list(_references(node.get("containedIn")))
        if containers and name not in self._named:  # an archive in an archive
            return self._member(containers[0], str(node.get("contentUrl", "")), name).table(self._scratch)
        address, sha256 = str(node.get("contentUrl", "")), str(node.get("sha256", "")).lower()
        has_hash = not sha256_fault(sha256)
        if (path := self._named.get(name)) is not None:
            if not path.exists():
                raise InputError(f"There is no {path}.", where=f"--files {name}={path}")
        elif str(node.get("encodingFormat", "")).startswith("git+"):
            raise InputError(
                f"{name!r} is a git repository, {shown(address)}.", fix=f"clone it, and pass --files {name}=FOLDER"
            )
        elif "://" in address:
            if not address.startswith("https://") or not has_hash:
                what = "has no sha256" if address.startswith("https://") else "is not on https"
                raise InputError(f"{name!r} {what}: {shown(address)}.", fix=f"fetch it yourself, and pass --files {name}=FILE")
            return fetch(address, sha256)
        elif (fault := relative_path_fault(address)) or not _is_below(self._folder, address):
            raise InputError(
                f"{name!r} is at {shown(address)}: {fault or 'it leads out of the folder'}.",
                where=self._folder,
                expected="a file beside the description, or an https address",
            )
        elif not (path := self._folder / address).exists():
            raise InputError(f"There is no {path}.", where=name, fix=f"fetch it, or pass --files {name}=FILE")
        if has_hash and path.is_file() and (found := file_sha256(path)) != sha256:
            raise DamagedError(f"{path} is not the described file.", expected=f"sha256 {sha256}, found {found}")
        return path

    def _list(self, place: Path) -> list[FoundFile]:
        if place not in self._listed:
            self._listed[place] = list(_files_in(place, self._scratch))
        return self._listed[place]


def _files_in(place: Path, scratch: Path) -> Iterator[FoundFile]:
    """The files in a folder or archive."""
    if place.is_dir():
        yield from _files_below(place)
        return
    if zipfile.is_zipfile(place):
        archive = zipfile.ZipFile(place)
        members = [(one.filename, partial(_read_zip, archive, one)) for one in archive.infolist() if not one.is_dir()]
    else:
        plain = place
        if is_gzip(place):
            plain = scratch / f"{len(list(scratch.iterdir()))}.tar"
            unpack(place, plain)
        try:
            tar = tarfile.open(plain, "r:")  # noqa: SIM115
            members = [(one.name, partial(_read_tar, tar, one)) for one in tar if one.isreg()]
        except (tarfile.TarError, EOFError) as error:
            raise InputError(f"The archive cannot be read: {error}.", where=place, expected="a zip or tar file") from None
    if len(members) > MOST_FILES:
        raise InputError(f"The archive has more than {MOST_FILES:,} files.", where=place)
    for name, read in members:
        inside = "/".join(part for part in name.split("/") if part not in ("", ".", ".."))  # nothing is unpacked by its name
        if not relative_path_fault(inside):
            yield FoundFile(inside, None, read)


def _files_below(folder: Path) -> Iterator[FoundFile]:
    """The files of a folder that are in it also when links are followed; links to folders are not."""
    count = 0
    for root, _, names in os.walk(folder):
        for name in names:
            path = Path(root) / name
            count += 1
            if count > MOST_FILES:
                raise InputError(f"The folder has more than {MOST_FILES:,} files.", where=folder, fix="name a smaller one")
            if path.is_file() and _is_below(folder, str(path.relative_to(folder))):
                yield FoundFile(path.relative_to(folder).as_posix(), path)


def _read_zip(archive: zipfile.ZipFile, member: zipfile.ZipInfo, most: int) -> bytes:
    with archive.open(member) as file:
        return file.read(most)


def _read_tar(archive: tarfile.TarFile, member: tarfile.TarInfo, most: int) -> bytes:
    file = archive.extractfile(member)
    return file.read(most) if file is not None else b""


def _is_below(folder: Path, name: str) -> bool:
    root, path = os.path.realpath(folder), os.path.realpath(folder / name)
    return os.path.commonpath([root, path]) == root


def _matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a path is like one of the patterns, in which a star stands for slashes too, as in the library mlcroissant."""
    return not patterns or any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _texts(value: object, key: str, name: str) -> list[str]:
    listed = value if isinstance(value, list) else [] if value is None else [value]
    texts = [text for text in listed if isinstance(text, str) and len(text) <= 1000 and len(_SPECIAL.findall(text)) <= 10]
    if len(texts) < len(listed):
        raise InputError(f"{key!r} of {name!r} is no pattern of names.", expected="a text such as images/*.jpg, or a list")
    return texts


def _kind(node: Mapping[str, Any]) -> str:
    return str(node.get("@type", "")).rpartition(":")[2].rpartition("/")[2]


def _references(value: object) -> Iterator[str]:
    """The ids in a reference: `{"@id": "x"}`, a text, or a list of them."""
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, dict) and isinstance(one.get("@id"), str):
            yield one["@id"]
        elif isinstance(one, str):
            yield one.removeprefix("#{").removesuffix("}")


def _list(names: Mapping[str, object] | Sequence[str]) -> str:
    listed = [shown(name) for name in names]
    return ", ".join(listed[:20]) + (f" and {len(listed) - 20} more" if len(listed) > 20 else "") or "nothing"
