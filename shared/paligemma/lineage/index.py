"""An SQLite index of the records below a root, so that questions take less than a second. It is only a cache.

Records never change once written, so a refresh reads only folders with new files. The index is in this machine's cache folder
and never in the root, where anybody with write access could forge it. Unreadable records are listed in the table `damaged`, and
answers use the rest.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import re
import sqlite3
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import cast

from paligemma.artifacts.record import ROWS_FILE, Record, each, file_sha256, parse_record
from paligemma.artifacts.recording import FOLDER, ROOTS_FOLDER, ROWS_FOLDER
from paligemma.errors import DamagedError, InputError, PaliGemmaError
from paligemma.foreign_json import read_json_lines
from paligemma.lineage.record_folder import PRUNED_ENDING, is_kept_path, parse_prune_mark, path_fault
from paligemma.progress import WorkProgress
from paligemma.safe_names import relative_path_fault
from paligemma.storage import gcs
from paligemma.storage.cache import cache_folder, exclusive
from paligemma.storage.files import exists, local_file
from paligemma.storage.folders import identity, kind_of, read_file, readers
from paligemma.storage.location import GcsLocation, Location, parse_location

KEY_BYTES = 16
"""Bytes of a row's or image's hash that the index stores."""
_VERSION = 6
_WORTH_SHOWING = 200
_WAIT = 600.0  # seconds to wait while another process adds records
_BATCH = 500  # records read ahead
_SETTLED = 2.0  # seconds after which a folder's modification time covers all earlier changes
_UNUSED = 60 * 86400.0  # seconds
_INDEX_FILE = re.compile(r"[0-9a-f]{32}\.sqlite(-wal|-shm)?|\.[0-9a-f]{32}\.sqlite\.lock")
_SCHEMA = """
CREATE TABLE folders (path TEXT PRIMARY KEY, changed INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE records (
    id INTEGER PRIMARY KEY, path TEXT NOT NULL UNIQUE, sha256 TEXT NOT NULL, run TEXT NOT NULL, task TEXT NOT NULL,
    attempt TEXT NOT NULL, component TEXT NOT NULL, status TEXT NOT NULL, started TEXT NOT NULL, output TEXT NOT NULL,
    type TEXT, tree TEXT, rows_sha256 TEXT, body BLOB NOT NULL);
CREATE INDEX of_hash ON records (sha256);
CREATE INDEX of_tree ON records (tree);
CREATE INDEX of_run ON records (run, started, status);
CREATE INDEX of_output ON records (output, started);
CREATE INDEX of_rows ON records (rows_sha256);
CREATE INDEX of_component ON records (component, run);
CREATE TABLE inputs (record INTEGER NOT NULL, role TEXT NOT NULL, uri TEXT NOT NULL, sha256 TEXT NOT NULL, made_by TEXT);
CREATE INDEX inputs_of ON inputs (record);
CREATE INDEX used_record ON inputs (made_by, role);
CREATE INDEX used_contents ON inputs (sha256);
CREATE INDEX used_uri ON inputs (uri);
CREATE TABLE damaged (path TEXT PRIMARY KEY, why TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE pruned (path TEXT PRIMARY KEY, sha256 TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE row_sets (id INTEGER PRIMARY KEY, sha256 TEXT NOT NULL UNIQUE);
CREATE TABLE rows (
    row_set INTEGER NOT NULL, row BLOB NOT NULL, line INTEGER NOT NULL, image BLOB NOT NULL, name TEXT NOT NULL,
    source TEXT NOT NULL, PRIMARY KEY (row_set, row, source, line, image)) WITHOUT ROWID;
CREATE INDEX row_ids ON rows (row);
CREATE INDEX row_images ON rows (image);
"""


log = logging.getLogger("paligemma.lineage")


class Index:
    """An index of a root, up to date when opened. Use it in a `with` block.

    Attributes:
        root: a local folder, or a `gs://` prefix.
        unseen: other roots with records of the same chains that were not read.
        database: the connection; rows come as `sqlite3.Row`.
    """

    def __init__(self, root: str | Path | Location, thorough: bool = False) -> None:
        """Opens and refreshes the index.

        Args:
            root: where the records are.
            thorough: read every run's folder, not only those whose modification time changed.

        Raises:
            InputError: there are no lineage records below the root.
        """
        self.root = parse_location(root).absolute()
        self.unseen: list[str] = []
        self._thorough = thorough
        self._files: dict[str, float] = {}
        self.database = self._open()
        try:
            try:
                self._refresh()
            except sqlite3.OperationalError as error:  # such as a full disk
                self.database.close()
                self._files.clear()
                self.database = _in_memory(error)
                self._refresh()
        except BaseException:
            self.database.close()
            raise

    def __enter__(self) -> Index:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.database.close()

    @property
    def roots(self) -> list[Location]:
        """All roots that were read."""
        return [self.root]

    def ask(self, query: str, *values: object) -> list[sqlite3.Row]:
        """All result rows of a query."""
        # To SQLite ?1 is the name of a parameter, and from Python 3.14 on a name's value has to come by its name.
        by_name = {str(number): value for number, value in enumerate(values, 1)}
        return self.database.execute(query, by_name if "?1" in query else values).fetchall()

    def body(self, number: int) -> dict:
        """A record's JSON value."""
        (found,) = self.ask("SELECT body FROM records WHERE id = ?", number)
        return unpack(found["body"])

    def file(self, path: str) -> Location:
        """A file of the `lineage` folder."""
        return self.root / FOLDER / path

    def read(self, path: str) -> bytes | None:
        """The contents of a file of the `lineage` folder; None if it is gone.

        Raises:
            PaliGemmaError: the file is too large, or not a regular file.
        """
        return read_file(self.file(path))

    def damaged(self) -> list[tuple[str, str]]:
        """Files that should be records but are not: where, and why."""
        return [(str(self.file(path)), why) for path, why in self.ask("SELECT path, why FROM damaged ORDER BY path")]

    def refresh_rows(self) -> None:
        """Indexes the lists of rows that are not indexed yet. Takes seconds for a million rows, once.

        Warns about a list that contradicts its record, and leaves it out of answers.
        """
        wanted = self.ask(
            "SELECT DISTINCT rows_sha256 FROM records WHERE rows_sha256 NOT NULL"
            " AND rows_sha256 NOT IN (SELECT sha256 FROM row_sets)"
        )
        if not wanted:
            return
        with _progress("indexing rows", "lists", len(wanted)) as advance:
            for (sha256,) in wanted:
                try:
                    with self.database:
                        added = self.database.execute("INSERT INTO row_sets (sha256) VALUES (?)", (sha256,))
                        rows = self._rows(cast(int, added.lastrowid), sha256)  # there is one after an INSERT
                        self.database.executemany("INSERT OR IGNORE INTO rows VALUES (?, ?, ?, ?, ?, ?)", rows)
                except DamagedError as error:
                    log.warning("%s", error)
                advance()

    def _rows(self, number: int, sha256: str) -> Iterator[tuple]:
        place = self.file(f"{ROWS_FOLDER}/{sha256}.jsonl")
        try:
            with local_file(place) as path:
                if file_sha256(path) != sha256:
                    raise DamagedError("A list of rows was altered.", where=place, fix="run `paligemma lineage verify`")
                for entry in read_json_lines(path, "A list of rows"):
                    key, line = bytes.fromhex(entry["row_id"])[:KEY_BYTES], int(entry["line"])
                    source = str(entry.get("source", ""))
                    for sha256, name in zip(each(entry["image_sha256"]), each(entry["image_file"]), strict=True):
                        yield number, key, line, bytes.fromhex(sha256)[:KEY_BYTES], str(name), source
        except (OSError, ValueError, LookupError, TypeError, InputError) as error:
            raise DamagedError(
                f"A list of rows cannot be read: {error}.", where=place, fix="run `paligemma lineage verify`"
            ) from None

    def _open(self) -> sqlite3.Connection:
        if not self._has_records():
            nested = sorted({str(path.parent) for path in _lineage_folders(self.root)})
            raise InputError(
                f"There are no lineage records below {self.root}.",
                expected="a folder or gs:// prefix that pipelines or steps wrote to, with a folder `lineage` in it",
                fix="pass " + (" or ".join(nested[:5]) if nested else "--root"),
            )
        path = cache_folder() / "lineage" / f"{self._identity()}.sqlite"
        try:
            with exclusive(path):  # else two processes would create it at once
                if not path.exists():
                    _forget_others(path.parent)
                return _open_database(path)
        except (sqlite3.Error, OSError) as error:
            return _in_memory(error)

    def _identity(self) -> str:
        """A text that identifies a root, even among roots that were at the same path one after the other."""
        return hashlib.sha256(identity(self.root / FOLDER).encode()).hexdigest()[:32]

    def _has_records(self) -> bool:
        return kind_of(self.root / FOLDER) == "folder"

    def _refresh(self) -> None:
        changed, gone = self._changed_local() if isinstance(self.root, Path) else self._changed_remote(self.root)
        if not (changed or gone or self._files):
            return
        with self.database, _progress("indexing", "records", len(changed)) as advance:
            for path in gone:
                self._forget(path)
            for path, found, contents in self._contents(changed):
                self._add(path, found, contents)
                advance()
            self.database.executemany("INSERT OR REPLACE INTO folders VALUES (?, ?)", self._files.items())

    def _changed_local(self) -> tuple[list[str], list[str]]:
        """New and deleted files of the runs that changed; writing a record touches its run's folder."""
        top, now = str(self.root / FOLDER), time.time()
        known = dict(self.database.execute("SELECT path, changed FROM folders").fetchall())
        new, gone = [], []
        for run in _folders(top):
            if run.name in (ROWS_FOLDER, ROOTS_FOLDER):
                continue
            stamp = run.stat().st_mtime_ns
            if known.pop(run.name, None) == stamp and not self._thorough:
                continue
            files = {
                f"{run.name}/{task.name}/{name}"
                for task in _folders(run.path)
                for name in os.listdir(task.path)
                if is_kept_path(f"{run.name}/{task.name}/{name}")
            }
            before = self._known_below(run.name)
            new += sorted(files - before)
            gone += sorted(before - files)
            self._files[run.name] = stamp if now - stamp / 1e9 > _SETTLED else 0
        for run_name in known:  # runs seen before that are gone now
            gone += sorted(self._known_below(run_name))
            self.database.execute("DELETE FROM folders WHERE path = ?", (run_name,))
        return new, gone

    def _changed_remote(self, root: GcsLocation) -> tuple[list[str], list[str]]:
        start = len((root / FOLDER).name) + 1
        names = (found.location.name[start:] for found in gcs.list_objects(root / FOLDER))
        files = {name for name in names if is_kept_path(name)}
        before = self._known_below("")
        return sorted(files - before), sorted(before - files)

    def _known_below(self, folder: str) -> set[str]:
        bounds = (f"{folder}/", f"{folder}0") if folder else ("", "\U0010ffff")  # "0" comes after "/"
        below = "SELECT path FROM {} WHERE path > ?1 AND path < ?2"
        query = " UNION ".join(below.format(table) for table in ("records", "damaged", "pruned"))
        return {path for (path,) in self.ask(query, *bounds)}

    def _contents(self, paths: list[str]) -> Iterator[tuple[str, Record | str | None, bytes]]:
        """For each file: its path; its record, a pruned artifact's hash, or None; and its indexed contents, or why there are
        none.

        Threads read and compress ahead of the insertion.
        """
        with ThreadPoolExecutor(readers(self.root)) as pool:
            batches = [paths[start : start + _BATCH] for start in range(0, len(paths), _BATCH)]
            ahead = pool.map(self._read_packed, batches[0]) if batches else ()
            for batch, following in itertools.zip_longest(batches, batches[1:], fillvalue=()):
                found, ahead = ahead, pool.map(self._read_packed, following)
                for path, contents in zip(batch, found, strict=True):
                    if contents is not None:
                        yield path, *contents

    def _read_packed(self, path: str) -> tuple[Record | str | None, bytes] | None:
        try:
            data = self.read(path)
            if data is None:  # the mark of an attempt that has just ended
                return None
            if path.endswith(PRUNED_ENDING):
                return parse_prune_mark(data, path).pruned, b""
            record = parse_record(data, path)
            if fault := path_fault(path, record):
                return None, fault.encode()
        except InputError:  # an object that has just been deleted
            return None
        except PaliGemmaError as error:
            return (None, error.what.encode()) if kind_of(self.file(path)) else None
        return record, zlib.compress(data, 1)

    def _add(self, path: str, found: Record | str | None, contents: bytes) -> None:
        if isinstance(found, Record):
            self._add_record(path, found, contents)
        elif found is not None:
            self.database.execute("INSERT OR REPLACE INTO pruned VALUES (?, ?)", (path, found))
        else:
            self.database.execute("INSERT OR REPLACE INTO damaged VALUES (?, ?)", (path, contents.decode()))

    def _add_record(self, path: str, record: Record, packed: bytes) -> None:
        made = record.artifact
        rows = made.file(ROWS_FILE) if made else None
        inputs = [(one.role, one.uri, one.sha256, one.record) for one in record.inputs]
        values = (
            path, record.sha256, record.run, record.task, record.attempt, record.producer.component, record.status,
            record.started, record.output, made and made.type, made and made.tree_sha256, rows and rows.sha256, packed,
        )  # fmt: skip
        marks = ", ".join("?" * len(values))
        added = self.database.execute(f"INSERT OR IGNORE INTO records VALUES (NULL, {marks})", values)
        if not added.rowcount:  # another process was faster
            return
        self.database.executemany("INSERT INTO inputs VALUES (?, ?, ?, ?, ?)", ((added.lastrowid, *one) for one in inputs))

    def _forget(self, path: str) -> None:
        for (number,) in self.ask("SELECT id FROM records WHERE path = ?", path):
            self.database.execute("DELETE FROM inputs WHERE record = ?", (number,))
            self.database.execute("DELETE FROM records WHERE id = ?", (number,))
        for table in ("damaged", "pruned"):
            self.database.execute(f"DELETE FROM {table} WHERE path = ?", (path,))


def _in_memory(error: Exception) -> sqlite3.Connection:
    log.warning("the index is not kept, as the cache folder cannot be written to: %s", error)
    return empty_index()


def empty_index() -> sqlite3.Connection:
    """An empty index in memory."""
    return _with_schema(sqlite3.connect(":memory:"))


def _open_database(path: Path) -> sqlite3.Connection:
    """Opens the index in a file; recreates it if it is damaged or of another version."""
    database = sqlite3.connect(path, timeout=_WAIT)
    try:
        (version,) = database.execute("PRAGMA user_version").fetchone()
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError:  # not a database
        version = None
    if version != _VERSION:
        database.close()
        for ending in ("", "-wal", "-shm"):
            path.with_name(path.name + ending).unlink(missing_ok=True)
        return _with_schema(sqlite3.connect(path, timeout=_WAIT))
    return _set_up(database)


def _forget_others(folder: Path) -> None:
    """Removes indexes that were not used for a long time; some of their roots are gone."""
    for path in folder.iterdir():
        if _INDEX_FILE.fullmatch(path.name) and time.time() - path.lstat().st_mtime > _UNUSED:
            path.unlink(missing_ok=True)


def _with_schema(database: sqlite3.Connection) -> sqlite3.Connection:
    database.executescript(
        f"PRAGMA synchronous = OFF; PRAGMA journal_mode = WAL; BEGIN;{_SCHEMA}PRAGMA user_version = {_VERSION}; COMMIT;"
    )
    return _set_up(database)


def _set_up(database: sqlite3.Connection) -> sqlite3.Connection:
    database.row_factory = sqlite3.Row
    database.execute("PRAGMA synchronous = OFF")  # a lost index is recreated
    database.execute("PRAGMA cache_size = -65536")  # KiB; SQL indexes are written in random order
    return database


@contextmanager
def _progress(what: str, unit: str, total: int) -> Iterator[Callable[[], None]]:
    """Shows progress of work that takes long; yields a function that counts one unit."""
    if total < _WORTH_SHOWING:
        yield lambda: None
        return
    with WorkProgress(what, unit, total) as progress:
        yield progress.advance


def unpack(data: bytes) -> dict:
    """A record's JSON value from its compressed file in the index."""
    return json.loads(zlib.decompress(data))


def _folders(path: str) -> list[os.DirEntry]:
    with os.scandir(path) as entries:
        found = (entry for entry in entries if entry.is_dir(follow_symlinks=False))
        return [entry for entry in found if not entry.name.startswith(".") and not relative_path_fault(entry.name)]


def _lineage_folders(root: Location) -> Iterator[Path]:
    """Folders called `lineage` a few levels below a local root, for a message that suggests the right root."""
    if isinstance(root, GcsLocation):
        return
    for pattern in ("*", "*/*", "*/*/*"):
        yield from (path for path in root.glob(f"{pattern}/{FOLDER}") if path.is_dir() and not exists(path, "__init__.py"))
