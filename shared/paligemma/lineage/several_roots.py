"""Queries several roots as one: those that a user names, and those that these link to."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterable
from pathlib import Path

from paligemma.artifacts.root_links import linked_roots, same_root
from paligemma.errors import PaliGemmaError
from paligemma.lineage.index import Index, empty_index
from paligemma.storage.location import Location, parse_location

log = logging.getLogger("paligemma.lineage")


class JoinedIndex(Index):
    """The records of several indexes joined in memory. A record in several roots counts once."""

    def __init__(self, parts: list[Index], unseen: Iterable[str]) -> None:
        """Takes ownership of the indexes, and closes them with itself."""
        self.root, self._parts, self.unseen = parts[0].root, parts, list(unseen)
        self.database = empty_index()
        with self.database:
            for part in parts:
                self._take(part.database)

    @property
    def roots(self) -> list[Location]:
        """All roots that were read."""
        return [part.root for part in self._parts]

    def __exit__(self, *error: object) -> None:
        self.database.close()
        for part in self._parts:
            part.database.close()

    def damaged(self) -> list[tuple[str, str]]:
        """Files that should be records but are not: where, and why."""
        return [one for part in self._parts for one in part.damaged()]

    def refresh_rows(self) -> None:
        """Indexes the lists of rows; each from the first root that has it."""
        for part in self._parts:
            part.refresh_rows()
            for number, sha256 in part.ask("SELECT id, sha256 FROM row_sets"):
                with self.database:
                    added = self.database.execute("INSERT OR IGNORE INTO row_sets (sha256) VALUES (?)", (sha256,))
                    if added.rowcount:
                        rows = part.database.execute(
                            "SELECT row, line, image, name, source FROM rows WHERE row_set = ?", (number,)
                        )
                        self.database.executemany(f"INSERT INTO rows VALUES ({added.lastrowid}, ?, ?, ?, ?, ?)", rows)

    def _take(self, database: sqlite3.Connection) -> None:
        known = {sha256 for (sha256,) in self.database.execute("SELECT sha256 FROM records")}
        for row in database.execute("SELECT * FROM records ORDER BY id").fetchall():
            if row["sha256"] in known:
                continue
            marks = ", ".join("?" * (len(row) - 1))
            added = self.database.execute(f"INSERT OR IGNORE INTO records VALUES (NULL, {marks})", tuple(row)[1:])
            if added.rowcount:
                inputs = database.execute("SELECT role, uri, sha256, made_by FROM inputs WHERE record = ?", (row["id"],))
                self.database.executemany(
                    f"INSERT INTO inputs VALUES ({added.lastrowid}, ?, ?, ?, ?)", inputs.fetchall()
                )  # fmt: skip


def open_roots(roots: Iterable[str | Path | Location]) -> Index:
    """An index of these roots and all that they link to, directly or not. Its `unseen` lists roots that cannot be opened.

    Raises:
        InputError: one of the given roots has no records.
    """
    parts, unseen = open_linked(roots)
    parts[0].unseen = unseen
    return parts[0] if len(parts) == 1 else JoinedIndex(parts, unseen)


def open_linked(roots: Iterable[str | Path | Location]) -> tuple[list[Index], list[str]]:
    """The indexes of these roots, then of all that they link to; and the addresses of roots that cannot be opened.

    Raises:
        InputError: one of the given roots has no records.
    """
    parts: list[Index] = []
    unseen: dict[str, None] = {}
    for root in roots:
        place = parse_location(root)
        if not same_root(place, [one.root for one in parts]):
            parts.append(Index(place))
    for part in parts:  # grows during the loop
        for address, places in linked_roots(part.root):
            if any(same_root(place, [one.root for one in parts]) for place in places):
                continue
            opened = _first_opened(places)
            if opened is None:
                unseen[address] = None
            else:
                parts.append(opened)
    return parts, list(unseen)


def _first_opened(places: Iterable[Location]) -> Index | None:
    for place in places:
        try:
            return Index(place)
        except (PaliGemmaError, OSError, sqlite3.Error) as error:
            log.debug("not looked into %s: %s", place, error)
    return None
