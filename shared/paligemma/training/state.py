"""Training state: checkpoints are saved in the background, and each appears complete or not at all.

    fingerprint.json                      what determines the run; written first
    step-00000200-5f0c91d2/arrays/...     Orbax's files
    step-00000200-5f0c91d2/checkpoint.json    step, metric, the caller's JSON, checksums of Orbax's files; written last

A checkpoint exists once its checkpoint.json does. Each save has a unique folder name, so the leftovers of a killed save never
mix with another; the next process removes them. The checksums are needed because Orbax restores an array with a flipped bit
without an error (0.12.8, measured; TensorStore keeps checksums of its indices, not of the data).
"""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Generic, Literal, NamedTuple, Self, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from paligemma.errors import DamagedError, InputError, PaliGemmaError
from paligemma.foreign_json import parse_json
from paligemma.storage import folders
from paligemma.storage.disk_space import check_space, is_full_disk, room_for
from paligemma.storage.epath_settings import reach_gcs_without_tensorflow
from paligemma.storage.failures import StorageUnavailableError
from paligemma.storage.files import exists, write_file
from paligemma.storage.gcs import crc32c_of
from paligemma.storage.location import Location, parse_location
from paligemma.training.resume_check import FINGERPRINT_FILE, claim, describe_changes

log = logging.getLogger(__name__)

Tree = TypeVar("Tree")

FORMAT = 1
CHECKPOINT_FILE = "checkpoint.json"

_ARRAYS = "arrays"
_FOLDER = re.compile(r"step-\d{8,}-[0-9a-f]{8,}(\..*)?")
"""Name of a checkpoint's folder, or Orbax's name for it during writing. Other names in a state's folder are not ours."""
_DIVERGED = re.compile(r"diverged-step-\d+-process-\d+\.json")


class Restored(NamedTuple, Generic[Tree]):
    """A saved state: its number of steps, its arrays, and the JSON saved with them."""

    step: int
    state: Tree
    extra: dict


@dataclass(frozen=True)
class _Checkpoint:
    """Contents of checkpoint.json, and the name of its folder."""

    folder: str
    step: int
    metric: float | None
    extra: dict
    arrays: dict[str, str]
    files: folders.Checksums = field(default_factory=dict)


class StateStore:
    """The checkpoints of one run. Use it in a `with` block, which ends when the last save is done.

    With several processes, all must call every method in the same order, with their shards of the same arrays, and all must be
    able to reach `location`.
    """

    def __init__(
        self,
        location: str | Path,
        fingerprint: Mapping[str, object],
        *,
        keep_last: int = 2,
        keep_best: Literal["min", "max"] | None = None,
    ) -> None:
        """Touches nothing before the `with` block.

        Args:
            location: a local folder or `gs://` prefix that only this run uses.
            fingerprint: JSON values that determine the run; resuming is refused if any differs.
            keep_last: number of newest checkpoints to keep, at least 1. With 2, there is one to fall back to.
            keep_best: also keep the checkpoint with the lowest (`min`) or highest (`max`) metric; None for no such checkpoint.
        """
        if keep_last < 1:
            raise ValueError("keep_last must be at least 1")
        self._location = parse_location(location).absolute()
        self._fingerprint = {"state_format": FORMAT, **fingerprint}
        self._keep_last = keep_last
        self._keep_best: Literal["min", "max"] | None = keep_best
        self._checkpoints: list[_Checkpoint] = []  # by step
        self._damaged: list[str] = []
        self._size = 0  # size of the newest state in bytes
        self._pending: Future[None] | None = None
        self._lock: int | None = None

    def __enter__(self) -> Self:
        """Finds existing checkpoints, and removes the leftovers of a killed predecessor.

        Raises:
            InputError: the state belongs to another run (with the differences), or another process is writing it.
        """
        first = jax.process_index() == 0
        if first and isinstance(self._location, Path):
            self._lock = _lock_folder(self._location)
        try:
            claim(self._location, self._fingerprint, write=first)
            published = self._find()
            if first:
                self._remove_all_but(published)
            self._token = _of_first_process(secrets.randbits(31))
            self._checkpointer = _checkpointer()
        except BaseException:
            self._unlock()
            raise
        self._background = ThreadPoolExecutor(1, "save")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        failed: PaliGemmaError | None = None
        try:
            for end in (self.wait, self._close):  # an error in Orbax's own threads may only show in the latter
                try:
                    end()
                except PaliGemmaError as one:
                    failed = failed or one
        finally:
            self._background.shutdown()
            self._unlock()
        if failed is not None and error is None:
            raise failed
        if failed is not None:
            log.warning("The last save failed, too: %s", failed)

    def _close(self) -> None:
        with self._explained():
            self._checkpointer.close()

    def best_step(self) -> int | None:
        """Step of the checkpoint that `keep_best` keeps; None if no checkpoint has a metric."""
        self.wait()
        best = _best(self._checkpoints, self._keep_best) if self._keep_best else None
        return None if best is None else best.step

    def restore(self, abstract: Tree, step: int | None = None) -> Restored[Tree] | None:
        """A saved state, verified against its checksums, with the devices and sharding of `abstract`.

        Args:
            abstract: the state's tree, with a `jax.ShapeDtypeStruct` that has a sharding for every array.
            step: step to restore; by default the newest, skipping damaged checkpoints with a warning.

        Returns:
            The state; None if nothing was saved yet.

        Raises:
            DamagedError: no checkpoint is intact.
            InputError: the saved arrays have other names, shapes or dtypes, or there is no such step.
        """
        self.wait()
        wanted = [one for one in self._checkpoints if step in (None, one.step)]
        if step is not None and not wanted:
            raise InputError(f"There is no checkpoint of step {step}.", where=self._location)
        # One process chooses the checkpoint; the others learn its choice.
        chosen = self._newest_whole(wanted) if jax.process_index() == 0 else -1
        chosen = _of_first_process(chosen)
        for damaged in wanted[chosen + 1 :]:
            self._checkpoints.remove(damaged)
            self._damaged.append(damaged.folder)
        if chosen < 0:
            if not self._damaged:
                return None
            raise DamagedError(
                "The training state is damaged, and there is no older one that is whole.",
                where=", ".join(str(self._location / name) for name in self._damaged),
                fix="choose another --state to begin anew",
            )
        return self._read(wanted[chosen], abstract)

    def save(self, step: int, state: object, extra: Mapping[str, object] | None = None, metric: float | None = None) -> None:
        """Saves in the background. Waits for the previous save and the copy from the devices, so that buffers can be donated.

        Does not save a step twice.

        Args:
            step: number of steps done.
            state: a tree of arrays.
            extra: JSON values to restore with the state.
            metric: what `keep_best` compares; a non-finite metric counts as None.

        Raises:
            InputError: no room is left on the disk.
            StorageUnavailableError: this save or the previous one could not be written.
        """
        self.wait()
        if any(one.step == step for one in self._checkpoints):
            return
        arrays = _by_name(state)
        self._token += 1  # a failed save may be retried
        name = f"step-{step:08d}-{self._token:08x}"
        metric = metric if metric is not None and math.isfinite(metric) else None
        checkpoint = _Checkpoint(name, step, metric, json.loads(json.dumps(extra or {})), _describe(arrays))
        with self._explained():
            self._size = sum(array.nbytes for array in arrays.values())
            check_space(self._location, self._size)
            self._checkpointer.save(str(self._location / name / _ARRAYS), args=_orbax().args.PyTreeSave(arrays))
        self._pending = self._background.submit(self._publish, checkpoint)

    def wait(self) -> None:
        """Waits until the last save is done.

        Raises:
            InputError: no room is left on the disk.
            StorageUnavailableError: the save could not be written.
        """
        if self._pending is not None:
            pending, self._pending = self._pending, None
            with self._explained():
                pending.result()

    def _publish(self, checkpoint: _Checkpoint) -> None:
        """Waits for Orbax, publishes the checkpoint, and removes checkpoints that are no longer needed."""
        self._checkpointer.wait_until_finished()
        first, folder = jax.process_index() == 0, self._location / checkpoint.folder
        if first:
            folders.sync(folder)
            checkpoint = replace(checkpoint, files=folders.checksums(folder / _ARRAYS))
            content = {name: value for name, value in asdict(checkpoint).items() if name != "folder"}
            write_file(folder / CHECKPOINT_FILE, json.dumps({"crc32c": _crc32c(content), "content": content}).encode())
        checkpoints = sorted([*self._checkpoints, checkpoint], key=lambda one: one.step)
        best = _best(checkpoints, self._keep_best) if self._keep_best else None
        older, newest = checkpoints[: -self._keep_last], checkpoints[-self._keep_last :]
        self._checkpoints = [one for one in older if one is best] + newest
        self._damaged.clear()
        if first:
            self._remove_all_but({one.folder for one in self._checkpoints})

    def _remove_all_but(self, kept: set[str]) -> None:
        for name in self._folders() - kept:
            folders.remove_folder(self._location / name, first=CHECKPOINT_FILE)

    def _folders(self) -> set[str]:
        """Names of the folders of checkpoints, finished or not."""
        return _checkpoint_folders(self._location)

    def _find(self) -> set[str]:
        """Reads every checkpoint.json; returns the names of their folders, including damaged ones."""
        for name in sorted(self._folders()):
            data = folders.read_file(self._location / name / CHECKPOINT_FILE)
            if data is None:
                continue
            try:
                written = parse_json(data, name, "It")
                content = written["content"]
                if written["crc32c"] != _crc32c(content):
                    raise ValueError("its checksum is another")
                content["files"] = {path: (size, checksum) for path, (size, checksum) in content["files"].items()}
                self._checkpoints.append(_Checkpoint(name, **content))
            except (DamagedError, ValueError, TypeError, KeyError, AttributeError) as error:
                log.warning("%s is damaged, and passed over: %s", self._location / name / CHECKPOINT_FILE, error)
                self._damaged.append(name)
        self._checkpoints.sort(key=lambda one: one.step)
        return {one.folder for one in self._checkpoints} | set(self._damaged)

    def _newest_whole(self, checkpoints: list[_Checkpoint]) -> int:
        """Index of the last intact checkpoint; -1 if there is none."""
        for index in reversed(range(len(checkpoints))):
            folder = self._location / checkpoints[index].folder
            expected, found = checkpoints[index].files, folders.checksums(folder / _ARRAYS)
            wrong = [name for name in sorted(expected) if found.get(name) != expected[name]]
            if not wrong:
                return index
            what = "altered or truncated" if wrong[0] in found else "missing"
            log.warning("%s is damaged, and passed over: %s/%s is %s", folder, _ARRAYS, wrong[0], what)
        return -1

    def _read(self, checkpoint: _Checkpoint, abstract: Tree) -> Restored[Tree]:
        targets = _by_name(abstract)
        if changes := describe_changes(checkpoint.arrays, _describe(targets)):
            raise InputError(
                "The saved training state has other arrays:\n" + "\n".join(f"  {change}" for change in changes),
                where=self._location / checkpoint.folder,
                fix="use the version of this program that wrote it, or choose another --state to begin anew",
            )
        orbax = _orbax()
        how = orbax.args.PyTreeRestore(targets, orbax.checkpoint_utils.construct_restore_args(targets))
        with self._explained():
            arrays = self._checkpointer.restore(str(self._location / checkpoint.folder / _ARRAYS), args=how)
        state = jax.tree.unflatten(jax.tree.structure(abstract), [arrays[name] for name in targets])
        return Restored(checkpoint.step, state, checkpoint.extra)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turns storage errors of Orbax and TensorStore into our own errors."""
        try:
            yield
        except PaliGemmaError:
            raise
        except Exception as error:  # Orbax, TensorStore, gcsfs and aiohttp share no exception type; other errors propagate
            text = str(error)
            if is_full_disk(error) or "No space left" in text:
                place = self._location
                raise InputError(
                    f"There is no room left in {place}. Earlier saves are intact.",
                    where=text[:300],
                    expected=room_for(self._size, place),
                    fix="free some and run the same command again; it goes on from the last save",
                ) from None
            if isinstance(error, PermissionError) or any(code in text for code in _REFUSALS):
                raise InputError(
                    f"Not allowed to write or read the training state in {self._location}.",
                    where=text[:300],
                    fix="let the account this runs as read, write and delete there",
                ) from None
            if _is_of_storage(error):
                raise StorageUnavailableError(
                    f"The training state could not be written to or read from {self._location}.",
                    where=f"{type(error).__name__}: {text[:300]}",
                    fix="run the same command again; it goes on from the last save",
                ) from error
            raise

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def remove_state(location: str | Path) -> None:
    """Removes a run's state, and its fingerprint last, so that an interrupted removal stays recognizable.

    A folder without a fingerprint is not ours. Other files in the folder stay.
    """
    place = parse_location(location)
    if not exists(place, FINGERPRINT_FILE):
        return
    for name in sorted(_checkpoint_folders(place)):
        folders.remove_folder(place / name, first=CHECKPOINT_FILE)
    for name in [name for name in folders.list_files(place) if _DIVERGED.fullmatch(name)]:
        folders.remove_file(place / name)
    folders.remove_file(place / FINGERPRINT_FILE)
    folders.remove_empty(place)  # somebody may have put another file there


def _checkpoint_folders(place: Location) -> set[str]:
    """Names of the folders of checkpoints, finished or not."""
    return {name for name in folders.subfolders(place) if _FOLDER.fullmatch(name)}


_REFUSALS = ("PERMISSION_DENIED", "UNAUTHENTICATED")
_FAILURES = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED", "NOT_FOUND", "DATA_LOSS")
"""Status codes in the messages when TensorStore gives up after its own retries."""


def _is_of_storage(error: Exception) -> bool:
    libraries = ("aiohttp", "gcsfs", "google")
    return (
        isinstance(error, OSError)
        or type(error).__module__.partition(".")[0] in libraries
        or any(code in str(error) for code in _FAILURES)
    )


def _best(checkpoints: list[_Checkpoint], mode: Literal["min", "max"]) -> _Checkpoint | None:
    """The checkpoint with the best metric; the earliest at a tie."""
    sign = -1 if mode == "max" else 1
    measured = [(sign * one.metric, one) for one in checkpoints if one.metric is not None]
    return min(measured, key=lambda pair: pair[0])[1] if measured else None


def _orbax():
    """Orbax, imported on first use."""
    reach_gcs_without_tensorflow()
    import orbax.checkpoint

    return orbax.checkpoint


def _checkpointer():
    orbax = _orbax()
    # No compression: floats hardly compress, and the processor is busy with training.
    return orbax.AsyncCheckpointer(orbax.PyTreeCheckpointHandler(use_compression=False))


def _by_name(tree: object) -> dict:
    """The leaves of a tree by path. Orbax restores such a flat dictionary for any kind of tree."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    if len(named) < len(leaves):
        raise ValueError("two arrays of the state have the same name")
    return named


def _describe(arrays: Mapping[str, jax.Array | jax.ShapeDtypeStruct]) -> dict[str, str]:
    return {name: f"{array.dtype}{list(array.shape)}" for name, array in arrays.items()}


def _crc32c(content: dict) -> str:
    return crc32c_of(json.dumps(content, sort_keys=True).encode())


def _of_first_process(value: int) -> int:
    """The first process's value, on every process; waits for all processes."""
    return value if jax.process_count() == 1 else int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def _lock_folder(folder: Path) -> int:
    """Locks a folder until the handle is closed. The kernel releases a killed process's lock."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise InputError(
            f"Another process is training with the state in {folder}.", fix="wait for it, or choose another --state"
        ) from None
    return handle
