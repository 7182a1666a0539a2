"""Checks that the rows' images exist, so a wrong folder or suffix shows while converting, not while preparing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from paligemma.artifacts.record import each
from paligemma.data.convert.outcomes import EntryError, Outcome, Tally, shown
from paligemma.data.image_source import split_archive
from paligemma.data.image_suffixes import decoded_suffixes
from paligemma.data.rows import leads_elsewhere
from paligemma.errors import InputError

_FIRST = 100
"""Rows after which conversion stops if all images are missing."""


def look_up_images(
    outcomes: Iterator[Outcome], folder: Path, tally: Tally, max_missing: float, table: Path, image: str
) -> Iterator[Outcome]:
    """Yields the outcomes unchanged, and looks for each row's images.

    Args:
        outcomes: outcomes of a table's rows.
        folder: the folder that image names are relative to.
        tally: counts rows with a missing image.
        max_missing: largest allowed share of such rows.
        table, image: as the user named them, for the message; without an `image`, no flag names it.

    Raises:
        InputError: too many images are missing.
    """
    rows, missing = 0, []

    def check() -> None:
        if len(missing) <= max_missing * rows:
            return
        raise InputError(
            f"{len(missing)} of {rows} rows name an image that is not there, e.g. {', '.join(map(shown, missing[:3]))}.",
            where=folder,
            expected="names of images, relative to this folder",
            fix=_remedy(missing[0], folder, table, image),
        )

    for outcome in outcomes:
        if not isinstance(outcome.result, EntryError):
            rows += 1
            names = [name for name in map(str, each(outcome.result["image"])) if not leads_elsewhere(name)]
            gone = (name for name in names if not is_there(folder, split_archive(name)[0] or name))
            if (name := next(gone, None)) is not None:
                missing.append(name)
            if rows == _FIRST and len(missing) == rows:
                check()
        yield outcome
    check()
    if missing:
        tally.facts[f"rows name an image that is not in {folder}, e.g. {shown(missing[0])}"] = len(missing)


def is_there(folder: Path, name: str) -> bool:
    """Whether a file of that name is in the folder."""
    try:
        return (folder / name).is_file()
    except (OSError, ValueError):
        return False


def _remedy(name: str, folder: Path, table: Path, image: str) -> str:
    endings = sorted(decoded_suffixes()) if image else []
    endings += [ending.upper() for ending in endings]  # as cameras write them
    for ending in endings:
        if is_there(folder, name + ending):
            return f"the names lack their ending: --image '{image if '{' in image else f'{{{image}}}'}{ending}'"
    last = Path(name).name
    for above in dict.fromkeys((table.parent, folder)):
        if is_there(above, name):
            return f"they are in the table's folder: --images {above}"
        for ending in ("", *endings):
            for found in above.glob("*/"):
                if is_there(found, last + ending):
                    part = f" --image '{{{image}}}{ending}'" if ending and "{" not in image else ""
                    return f"there is one in {found}: --images {found}{part}"
    template = "; or --image with a template, as --image 'photos/{id}.jpg'" if image else ""
    return f"pass --images, the folder that they are in{template}"
