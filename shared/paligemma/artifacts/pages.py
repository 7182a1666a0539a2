"""The page of an artifact, and links between pages. Links are relative, so they also work in a copy of the root."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from paligemma.artifacts.recording import attempt_under_way
from paligemma.errors import InputError
from paligemma.storage.location import parse_location

PAGES = ("report.html", "training.html", "preflight.html", "README.md")
"""File names of an artifact's page; the last is a release's card."""
RUN_PAGE = "summarize/summary/report.html"
"""The page of a whole run, in the run's folder: the pipeline's last step writes it, however the run ended."""


class Link(NamedTuple):
    """A link to a page."""

    label: str
    address: str


def neighbours() -> list[Link]:
    """Links from the current attempt's page to the pages of its inputs and, in a pipeline, to the page of its run.

    Empty unless both pages are on a disk: on `gs://` an artifact's folder name is not known until its files are written.
    """
    current = attempt_under_way()
    if current is None or not isinstance(parse_location(current.output), Path):
        return []
    folder = Path(current.output)
    found = [Link(one.role, address) for one in current.inputs if one.record and (address := way(folder, one.uri))]
    if folder.parts[-3:-1] == (current.run, current.task):
        found.append(Link("the run and its lineage", _relative(folder, folder.parents[1] / RUN_PAGE)))
    return found


def way(start: Path, artifact: str) -> str | None:
    """The relative address of an artifact's page, seen from a folder; None if it has none, or is not on this disk."""
    with contextlib.suppress(InputError, OSError, ValueError):  # a record may hold any text as an address
        place = parse_location(artifact)
        if isinstance(place, Path):
            found = next((place / name for name in PAGES if (place / name).is_file()), None)
            return None if found is None else _relative(start, found)
    return None


def _relative(start: Path, page: Path) -> str:
    return quote(os.fsencode(Path(os.path.relpath(page, start)).as_posix()))
