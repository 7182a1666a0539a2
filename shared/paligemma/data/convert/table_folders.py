"""Reads the rows of a folder: a Hugging Face data set saved on disk, Parquet files, or WebDataset's tar files.

- Saved on disk (`Dataset.save_to_disk`): `state.json` lists Arrow streams in `_data_files`. In a folder of several splits,
  `dataset_dict.json` lists these (huggingface/datasets at commit 01f5328, src/datasets/config.py for the names).
- WebDataset: a sample is the files of a tar file that have one name up to its first dot, one after another
  (webdataset/webdataset, README.md, section The WebDataset Format). Its columns are the endings, and `image`.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from paligemma.data.convert.arrow_tables import FoundRow, arrow_rows, parquet_rows
from paligemma.data.convert.outcomes import Entry, EntryError, shown
from paligemma.data.image_suffixes import is_image_name
from paligemma.data.rows import MAX_LINE_BYTES
from paligemma.errors import DamagedError, InputError
from paligemma.foreign_json import parse_json, read_json

_MOST_MEMBERS = 64
"""Most files of a sample."""


def read_folder(table: Path, folder: Path, columns: Sequence[str]) -> Iterator[FoundRow]:
    """The rows of a folder's files, in the order of their names.

    Args:
        table: the folder.
        folder: the image folder, to which the names of a tar file's images are relative.
        columns: the wanted columns.

    Raises:
        InputError: the folder has none of these forms, or a file cannot be read.
    """
    if (table / "dataset_dict.json").is_file():
        splits = read_json(table / "dataset_dict.json", "The list of splits", error=InputError).get("splits")
        first = splits[0] if isinstance(splits, list) and splits else "train"
        raise InputError("The folder has several splits.", where=table, fix=f"name one of them: --table {table}/{first}")
    if (table / "state.json").is_file():
        for path in _arrow_files(table):
            yield from arrow_rows(path, columns)
        return
    tars = sorted(table.glob("*.tar"))
    files = sorted(table.glob("*.parquet"))
    if not tars and not files:
        what = "The folder has no table."
        raise InputError(
            what, where=table, expected="state.json of a data set saved on disk, *.parquet, or *.tar of WebDataset"
        )
    if tars and files:
        raise InputError("The folder has both Parquet and tar files.", where=table, fix="name a folder that has one kind")
    for path in files:
        for entry, values in parquet_rows(path, columns):
            yield Entry(f"{path.name}, {entry.place}"), values
    for path in tars:
        yield from _samples(path, folder)


def _arrow_files(table: Path) -> list[Path]:
    state = read_json(table / "state.json", "The state of the data set", error=InputError)
    if state.get("_indices_data_files"):
        what = "The data set's rows are picked by a list of indices."
        raise InputError(what, where=table, fix="save it again: dataset.flatten_indices().save_to_disk(...)")
    listed = state.get("_data_files")
    files = []
    for one in listed if isinstance(listed, list) else []:
        name = one.get("filename") if isinstance(one, dict) else None
        if not isinstance(name, str) or not name or "/" in name or "\0" in name or name.startswith("."):
            raise InputError(f"The state of the data set names {shown(name)}.", where=table, expected="a file beside it")
        files.append(table / name)
    if not files:
        raise InputError("The state of the data set names no files.", where=table, expected="_data_files with a filename each")
    return files


def _samples(path: Path, folder: Path) -> Iterator[FoundRow]:
    """The samples of a tar file. Of images, only the names are taken: prepare_data reads them where they are."""
    key, members = "", []
    try:
        with tarfile.open(path, "r:") as tar, path.open("rb") as file:
            for member in tar:
                cast(Any, tar).members = []  # which would hold every header
                if not member.isreg():
                    continue
                before, slash, last = member.name.removeprefix("./").rpartition("/")
                stem, _, ending = last.partition(".")
                if (name := before + slash + stem) != key and members:
                    yield _sample(path, folder, key, members)
                    members = []
                key = name
                data = os.pread(file.fileno(), min(member.size, MAX_LINE_BYTES + 1), member.offset_data)
                members.append((ending, member.name.removeprefix("./"), b"" if is_image_name(last) else data))
    except (tarfile.TarError, OSError, ValueError) as error:
        raise InputError(f"The tar file cannot be read after {shown(key)}: {error}.", where=path) from None
    if members:
        yield _sample(path, folder, key, members)


def _sample(path: Path, folder: Path, key: str, members: list[tuple[str, str, bytes]]) -> FoundRow:
    entry = Entry(f"{path.name}, {key[:80]}", key)
    if len(members) > _MOST_MEMBERS:
        return entry, EntryError("value_wrong", f"the sample has {len(members)} files, {_MOST_MEMBERS} at most")
    if ".." in key.split("/"):
        return entry, EntryError("image_path_unsafe", f"{shown(key)} leads out of the tar file")
    values: dict[str, Any] = {"__key__": key}
    for ending, name, data in members:
        if is_image_name(name):
            values[ending] = f"{os.path.relpath(path, folder)}/{name}"
            values.setdefault("image", values[ending])
            continue
        if len(data) > MAX_LINE_BYTES:
            return entry, EntryError("line_too_long", f"{name[:80]} has more than {MAX_LINE_BYTES} bytes")
        try:
            values[ending] = parse_json(data, name, "The file", kind=object) if ending == "json" else data.decode()
        except (DamagedError, UnicodeDecodeError) as error:
            what = error.what if isinstance(error, DamagedError) else "it is not UTF-8"
            values[ending] = EntryError("value_wrong", f"{name[:80]}: {what}")
    return entry, values
