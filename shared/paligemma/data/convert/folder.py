"""Converts folders of labelled pictures to rows: a picture's label is the name of its folder."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from paligemma.data.convert.outcomes import Entry, EntryError, Outcome, Tally, skipped_file
from paligemma.data.image_suffixes import is_image_name
from paligemma.errors import InputError

_TABLES = (".csv", ".tsv", ".parquet")
_SYSTEM = frozenset(
    ("__MACOSX", "Thumbs.db", "ehthumbs.db", "desktop.ini", "$RECYCLE.BIN", "System Volume Information", "@eaDir", "lost+found")
)
"""Files left by Finder, Explorer, servers and file systems; other such files begin with a dot."""


def labelled_folder(folder: Path, prefix: str, tally: Tally, output: Path | None = None) -> Iterator[Outcome]:
    """A row for every image in a folder of folders; the suffix is the name of the image's folder.

    Args:
        folder: a folder with one folder of images for each label.
        prefix: prefix of every row.
        tally: counts oddities.
        output: the file being written. It may be in the folder, and is then left out.

    Raises:
        InputError: the folder is missing or unreadable.
    """
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}.")
    formats: Counter[str] = Counter()
    files = list(list_files(folder, output, tally))
    _expect_labels(folder, files)
    for path in files:
        entry, ending = Entry(path.relative_to(folder).as_posix()), path.suffix.lower()
        readable = is_image_name(path.name)
        if path.parent == folder:
            if readable:  # lists and read-mes beside the label folders are not counted
                yield Outcome((entry,), EntryError("label_missing", "it is beside the folders of the labels"))
        elif readable:
            yield Outcome((entry,), {"image": entry.place, "prefix": prefix, "suffix": path.parent.name})
        else:
            formats[ending] += 1
            yield Outcome((entry,), EntryError("format_other", f"its name ends in {ending or 'nothing'}"))
    for ending, count in sorted(formats.items(), key=lambda item: (-item[1], item[0])):
        tally.facts[f"files left out that {f'end in {ending}' if ending else 'have no ending'}"] = count


def _expect_labels(folder: Path, files: Sequence[Path]) -> None:
    """Raises InputError if a folder has pictures, but none of them in a label's folder."""
    pictures = [path for path in files if is_image_name(path.name)]
    if not pictures or any(path.parent != folder for path in pictures):
        return
    beside = [path for place in (folder, folder.parent) for path in sorted(place.iterdir()) if path.suffix.lower() in _TABLES]
    table = beside[0] if beside else "TABLE.csv"
    raise InputError(
        f"The {len(pictures)} pictures are in no folders of labels.",
        where=folder,
        expected=f"{folder}/LABEL/{pictures[0].name}: the name of a picture's folder is its suffix",
        fix="move the pictures into a folder for each label; or, with labels in a table: paligemma convert table "
        f"--table {table} --images {folder} --image COLUMN --suffix '{{COLUMN}}' --prefix 'answer en what is this?'",
    )


def list_files(folder: Path, output: Path | None, tally: Tally) -> Iterator[Path]:
    """Every file that is neither hidden nor ours, sorted by the parts of its path: the same order on every machine."""

    def fail(error: OSError) -> None:
        raise InputError(f"The folder cannot be read: {error.strerror}.", where=error.filename)

    found = []
    for parent, folders, files in os.walk(folder, onerror=fail):
        here = Path(parent)
        for name in sorted(folders + files):
            path, hidden = here / name, name.startswith(".") or name in _SYSTEM
            if output is not None and _is_ours(path, output):
                continue
            if hidden:
                tally.note("hidden_left_out", repr(path.relative_to(folder).as_posix()))
            elif name in folders and path.is_symlink():
                tally.note("link_left_out", repr(path.relative_to(folder).as_posix()))
            elif path.is_file():
                found.append(path)
        folders[:] = [name for name in folders if not name.startswith(".") and name not in _SYSTEM]
    return iter(sorted(found))


def _is_ours(path: Path, output: Path) -> bool:
    """Whether a file is the output, its list of skips, or an unfinished part of either."""
    names = (output.name, skipped_file(output).name)
    mine = path.name in names or path.name.startswith(tuple(f".{name}.partial-" for name in names))
    return mine and path.parent.absolute() == output.parent.absolute()
