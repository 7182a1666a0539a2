"""Writes files and folders atomically: a crash at any byte leaves the old state or the new one."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import itertools
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from paligemma.errors import InputError
from paligemma.storage.access import explain_refusal
from paligemma.storage.disk_space import explain_full_disk

FilesOf = Callable[[Path], Iterable[str]]
"""Returns an artifact's own files in a folder: relative paths with forward slashes."""

_MOST_NAME = 255  # NAME_MAX of Linux and macOS
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2  # linux/fs.h

log = logging.getLogger("paligemma.storage")


def write_file(path: str | Path, data: bytes | str) -> None:
    """Replaces a file's contents atomically; creates parent folders."""
    with _written(Path(path), data) as partial:
        partial.replace(path)


def write_new_file(path: str | Path, data: bytes | str) -> bool:
    """Writes a new file atomically; creates parent folders. Returns False and does nothing if the file exists."""
    with _written(Path(path), data) as partial:
        try:
            os.link(partial, path)  # unlike a rename, fails if the file exists
        except FileExistsError:
            return False
        return True


def copy_new_file(source: Path, path: Path) -> bool:
    """`write_new_file` with the contents of another file, however large."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _beside(path)
    try:
        shutil.copyfile(source, partial)
        _sync(partial)
        os.link(partial, path)
    except FileExistsError:
        return False
    finally:
        partial.unlink(missing_ok=True)
    return True


@contextmanager
def _written(path: Path, data: bytes | str) -> Iterator[Path]:
    """Yields a temporary file beside `path` with the data, synced to disk; removes it afterwards if it still exists."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _beside(path)
    try:
        with partial.open("wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        yield partial
    finally:
        partial.unlink(missing_ok=True)


def hidden_beside(path: Path, ending: str) -> Path:
    """A hidden name beside `path` that belongs to it, even if its own name has almost the maximum length."""
    name = f".{path.name}{ending}"
    if len(os.fsencode(name)) > _MOST_NAME:
        name = f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()}{ending}"
    return path.with_name(name)


def _beside(path: Path) -> Path:
    """A unique file name that no other process or thread uses."""
    return hidden_beside(path, f".partial-{os.getpid()}-{threading.get_ident()}")


@contextmanager
def write_directory(path: str | Path, may_replace: str, files_of: FilesOf | None = None) -> Iterator[Path]:
    """Yields an empty folder to fill, which replaces `path` if the block raises nothing.

    Removes the leftovers of a killed predecessor. An existing `path` is replaced in one step, and only if it is empty, or holds
    a file called `may_replace` and no foreign files. A folder with a user's note, plot or copy is refused before any work is
    done. If a foreign file appears while the block runs, the work is not lost either: the old folder is renamed to
    `path.kept-1` (or the first free number), and stays.

    Args:
        path: the folder.
        may_replace: the file that identifies an older version.
        files_of: returns the paths of an older version's own files, including `may_replace`; None: all files are ours.

    Raises:
        InputError: `path` holds foreign files, another process is writing it, it is not writable, or the disk is full.
    """
    path = Path(path).absolute()
    with explain_refusal(path):
        path = path.resolve() if path.is_symlink() else path  # a link, e.g. to a larger disk, stays a link
        if path.exists() and not _replaceable(path, may_replace):
            raise InputError(
                f"{path} exists and is not an artifact of this program.",
                expected=f"no such path, an empty folder, or a folder with {may_replace}",
                fix="choose another output path, or remove it yourself",
            )
    partial = hidden_beside(path, ".partial")
    with ExitStack() as locks:
        with explain_refusal(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            locks.callback(os.close, _lock_draft(partial, path))
            clear(partial)
        try:
            with explain_refusal(path):
                own = _own_files(path, may_replace, files_of)
            with explain_full_disk(partial):
                yield partial
                sync_tree(partial)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        with explain_refusal(path):
            if path.exists() and _foreign(path, own):
                aside = next(name for n in itertools.count(1) if not os.path.lexists(name := Path(f"{path}.kept-{n}")))
                path.rename(aside)
                partial.rename(path)
                log.warning("%s was changed by somebody while its new version was made; as it was, it is now %s", path, aside)
            elif path.exists():
                # The replaced folder gets the draft's name. Without a lock, another writer could take it.
                handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
                locks.callback(os.close, handle)
                fcntl.flock(handle, fcntl.LOCK_EX)  # a writer that has just published releases its lock in a moment
                _exchange(partial, path)
                shutil.rmtree(partial)
            else:
                partial.rename(path)
        _sync(path.parent)


def clear(folder: Path, but: str = "") -> None:
    """Removes everything in a folder except the entry `but`, and keeps the folder, which may be locked. Follows no links."""
    for entry in folder.iterdir():
        if entry.name == but:
            continue
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


def expect_file(path: Path) -> None:
    """Removes whatever is at a file's path but is not a file. Removes a link itself, not its target."""
    if path.is_symlink() or (path.exists() and not path.is_dir() and not path.is_file()):
        path.unlink()
    elif path.is_dir():
        shutil.rmtree(path)


def expect_folder(path: Path) -> None:
    """Removes whatever is at a folder's path but is not a folder. Removes a link itself, not its target."""
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        path.unlink()


def _replaceable(path: Path, marker: str) -> bool:
    return path.is_dir() and ((path / marker).exists() or not any(path.iterdir()))


def _own_files(path: Path, may_replace: str, files_of: FilesOf | None) -> frozenset[str] | None:
    """The files that may be removed with a folder, if it exists; None for all. The caller holds the lock.

    Raises:
        InputError: the folder holds other files.
    """
    own: frozenset[str] | None = frozenset()
    if (path / may_replace).exists():
        own = None if files_of is None else frozenset(files_of(path))
    if foreign := _foreign(path, own):
        raise InputError(
            f"{path} holds {foreign}, which is not one of the artifact's files, and would be lost.",
            expected="a folder that holds only the files of its step",
            fix="move what is yours out of it, or choose another output path",
        )
    return own


def _foreign(folder: Path, own: frozenset[str] | None) -> str:
    """The first entry of a folder that is neither one of its own files nor a folder with one; empty if there is none.

    Args:
        folder: a folder, which may be missing.
        own: paths of its own files; None for all. A link with such a name replaced the file, and is foreign.
    """
    if own is None:
        return ""
    folders = {path[:end] for path in own for end, letter in enumerate(path) if letter == "/"}
    for parent, inner, files in os.walk(folder):
        for path in (Path(parent) / name for name in sorted([*inner, *files])):
            known = folders if path.is_dir() and not path.is_symlink() else own
            if (name := path.relative_to(folder).as_posix()) not in known:
                return name
    return ""


def _lock_draft(partial: Path, path: Path) -> int:
    """Opens and locks the draft's folder; creates it if needed.

    If the draft was published or removed between opening and locking, its name may already belong to another writer's draft.
    Then the lock is worthless.
    """
    while True:
        # What is there may go at any moment. Only the call that opens it looks at it, and refuses what is not a folder.
        with suppress(FileExistsError):
            partial.mkdir()
        try:
            handle = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:  # another writer published or removed it
            continue
        try:
            # The kernel drops the lock when the process ends, so a killed writer blocks nobody.
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(handle, partial):
                return handle
        except BlockingIOError:
            os.close(handle)
            raise InputError(f"Another process is writing {path}.", fix="wait for it, or choose another output path") from None
        os.close(handle)


def _is_at(handle: int, path: Path) -> bool:
    """Whether the path still leads to the opened folder."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _exchange(new: Path, old: Path) -> None:
    """Swaps two directories in one step."""
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "renameat2"):
        done = libc.renameat2(_AT_FDCWD, bytes(new), _AT_FDCWD, bytes(old), _RENAME_EXCHANGE)
        code = ctypes.get_errno()
    elif hasattr(libc, "renamex_np"):  # macOS
        done = libc.renamex_np(bytes(new), bytes(old), _RENAME_EXCHANGE)
        code = ctypes.get_errno()
    else:
        done, code = -1, errno.ENOSYS
    if done != 0:
        raise InputError(
            f"{old} exists and this file system cannot replace it in one step ({os.strerror(code)}).",
            fix="choose another output path, or remove it yourself",
        )


def sync_tree(root: Path) -> None:
    """Syncs a folder and its contents to the disk."""
    for folder, _, files in os.walk(root):
        for name in files:
            _sync(Path(folder) / name)
        _sync(Path(folder))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF):  # some network mounts cannot sync a directory
            raise
    finally:
        os.close(handle)
