"""Writing a file or a directory so that a crash at any byte leaves the old state or the new one."""

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
from contextlib import ExitStack, contextmanager
from pathlib import Path

from paligemma.errors import InputError
from paligemma.storage.access import explain_refusal
from paligemma.storage.disk_space import explain_full_disk

FilesOf = Callable[[Path], Iterable[str]]
"""Which of the files in a folder are an artifact's own: their paths in it, with forward slashes."""

_MOST_NAME = 255  # NAME_MAX of Linux and macOS
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2  # linux/fs.h

log = logging.getLogger("paligemma.storage")


def write_file(path: str | Path, data: bytes | str) -> None:
    """Replaces a file's contents at once; makes its parents."""
    with _written(Path(path), data) as partial:
        partial.replace(path)


def write_new_file(path: str | Path, data: bytes | str) -> bool:
    """Writes a file that is not there yet, at once; makes its parents. False, and nothing done, if there is one."""
    with _written(Path(path), data) as partial:
        try:
            os.link(partial, path)  # unlike a rename, it fails if there is one
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
    """Yields a file beside `path` with this contents, on the disk; removes it if it is still there afterwards."""
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
    """A name beside `path` that belongs to it, also where its own name is almost as long as a name can be."""
    name = f".{path.name}{ending}"
    if len(os.fsencode(name)) > _MOST_NAME:
        name = f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()}{ending}"
    return path.with_name(name)


def _beside(path: Path) -> Path:
    """A name for a file that no other process or thread writes."""
    return hidden_beside(path, f".partial-{os.getpid()}-{threading.get_ident()}")


@contextmanager
def write_directory(path: str | Path, may_replace: str, files_of: FilesOf | None = None) -> Iterator[Path]:
    """Yields an empty folder to fill; it takes the place of `path` when the block ends without an exception.

    What a killed predecessor left unfinished is removed. An existing `path` stays whole, and is exchanged for the new
    folder in one step, only if it is empty or holds a file called `may_replace`, and nothing that is none of its own files:
    with a note, a plot or a copy that a user keeps there, the folder is refused before any work is done, and not emptied.
    What comes into it while the block runs is too late for that, and the work is not lost either: the folder as it is then is
    renamed to `path.kept-1` (or the first number that is free), and stays.

    Args:
        path: the folder.
        may_replace: the file by which an older version is known.
        files_of: the paths of an older version's own files, `may_replace` among them; without, all that is in it is ours.

    Raises:
        InputError: `path` holds something else, another process is writing it now, it may not be written, or the disk is full.
    """
    path = Path(path).absolute()
    with explain_refusal(path):
        path = path.resolve() if path.is_symlink() else path  # a link to a larger disk stays a link
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
                # What is exchanged becomes a draft under the draft's name. Unlocked, it would be another writer's.
                handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
                locks.callback(os.close, handle)
                fcntl.flock(handle, fcntl.LOCK_EX)  # a writer that has just published lets go in a moment
                _exchange(partial, path)
                shutil.rmtree(partial)
            else:
                partial.rename(path)
        _sync(path.parent)


def clear(folder: Path, but: str = "") -> None:
    """Removes everything in a folder, but not the folder, which may be locked, nor the entry called `but`. Follows no link."""
    for entry in folder.iterdir():
        if entry.name == but:
            continue
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


def expect_file(path: Path) -> None:
    """Removes what is at the place of a file of ours and is not a file; a link goes, and not what it leads to."""
    if path.is_symlink() or (path.exists() and not path.is_dir() and not path.is_file()):
        path.unlink()
    elif path.is_dir():
        shutil.rmtree(path)


def expect_folder(path: Path) -> None:
    """Removes what is at the place of a folder of ours and is not a folder; a link goes, and not what it leads to."""
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        path.unlink()


def _replaceable(path: Path, marker: str) -> bool:
    return path.is_dir() and ((path / marker).exists() or not any(path.iterdir()))


def _own_files(path: Path, may_replace: str, files_of: FilesOf | None) -> frozenset[str] | None:
    """Which files of a folder that is perhaps there may go with it; None for all. No other writer of ours publishes now.

    Raises:
        InputError: it holds others.
    """
    own: frozenset[str] | None = frozenset()
    if (path / may_replace).exists():
        own = None if files_of is None else frozenset(files_of(path))
    if foreign := _foreign(path, own):
        raise InputError(
            f"{path} holds {foreign}, which is none of the artifact's files, and would be lost.",
            expected="a folder with nothing in it but what the step that made it wrote",
            fix="move what is yours out of it, or choose another output path",
        )
    return own


def _foreign(folder: Path, own: frozenset[str] | None) -> str:
    """The first thing in a folder that is none of its own files, nor a folder with one; empty if there is none.

    Args:
        folder: it need not be there.
        own: paths of its own files; None for whatever is there. A link with such a name is what replaced the file.
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
    """Opens and locks the folder that the draft goes to; makes it if need be.

    A draft that was published or removed between its opening and its locking is no longer at its name, where another writer
    may have begun one: its lock is worth nothing.
    """
    while True:
        try:
            partial.mkdir()
        except FileExistsError:  # what was there may be gone by now: only what stays in the way is an error
            if partial.is_symlink() or (partial.exists() and not partial.is_dir()):
                raise
        try:
            handle = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:  # another writer was done with it
            continue
        try:
            # The kernel drops the lock with the process, so a killed writer blocks nobody.
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(handle, partial):
                return handle
        except BlockingIOError:
            os.close(handle)
            raise InputError(f"Another process is writing {path}.", fix="wait for it, or choose another output path") from None
        os.close(handle)


def _is_at(handle: int, path: Path) -> bool:
    """Whether the name still leads to what was opened."""
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
    """Has a folder and all that is in it on the disk when it returns."""
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
