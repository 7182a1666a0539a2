"""Prepares ranges of lines in several processes, which end when this process ends for any reason."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any

import numpy as np

from paligemma.artifacts.record import file_sha256
from paligemma.data.jsonl_files import LineRange
from paligemma.data.kept_pictures import KeptPictures
from paligemma.data.prepare import Job, Preparer, part_file, read_facts
from paligemma.errors import PaliGemmaError
from paligemma.progress import WorkProgress

SECONDS_BETWEEN_LOOKS = 0.2


class WorkerDiedError(PaliGemmaError):
    """A worker was killed from outside, e.g. for lack of memory. Finished shards are kept, so running again continues."""

    exit_code = 4


def core_count() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def prepare_parts(
    job: Job,
    parts: Sequence[LineRange],
    folder: Path,
    workers: int,
    progress: WorkProgress,
    kept: KeptPictures | None = None,
) -> None:
    """Prepares the unfinished ranges; see `prepare.part_file` for the files in `folder`.

    Args:
        job: what to do.
        parts: the ranges.
        folder: destination; may hold ranges that an earlier call finished.
        workers: number of processes; with 1, this process does the work.
        progress: counts lines.
        kept: pictures that need not be decoded; None: all are.

    Raises:
        WorkerDiedError: a process was killed.
    """
    todo = []
    for part in parts:
        facts = read_facts(folder, part)
        if facts is None or file_sha256(part_file(folder, part, "tfrecord")) != facts.shards[0].sha256:
            todo.append(part)
        else:
            progress.skip(part.lines)
    if min(workers, len(todo)) > 1:
        _prepare_in_processes(job, todo, folder, min(workers, len(todo)), progress, kept)
    elif todo:
        _prepare_here(job, todo, folder, progress, kept)


def _prepare_here(job: Job, todo: list[LineRange], folder: Path, progress: WorkProgress, kept: KeptPictures | None) -> None:
    gc.freeze()  # else garbage collection searches all imported objects again and again, which takes 3 % of the time
    try:
        _prepare_in_turn(Preparer(job, kept), todo, folder, progress)
    finally:
        gc.unfreeze()


def _prepare_in_turn(preparer: Preparer, todo: list[LineRange], folder: Path, progress: WorkProgress) -> None:
    before, rejected = progress.done, 0
    for part in todo:

        def report(line: int, rejected_here: int, start: int = before - part.line, earlier: int = rejected) -> None:
            progress.advance(start + line - progress.done, f"{earlier + rejected_here} rejected")

        rejected += preparer.prepare(part, folder, report).reject_count
        before += part.lines
        progress.advance(before - progress.done, f"{rejected} rejected")


@dataclass(frozen=True)
class _Board:
    """Shared memory of the processes.

    Attributes:
        line, rejected: for every range, its current line (0 before it begins), and its number of rejected rows.
        stop: 1 once nobody waits for the ranges.
    """

    line: Any
    rejected: Any
    stop: Any


def _prepare_in_processes(
    job: Job, todo: list[LineRange], folder: Path, workers: int, progress: WorkProgress, kept: KeptPictures | None
) -> None:
    # Never fork: JAX and TensorFlow have threads in this process.
    context = multiprocessing.get_context("spawn")
    board = _Board(context.RawArray("q", len(todo)), context.RawArray("q", len(todo)), context.RawValue("b", 0))
    firsts, before = np.array([part.line for part in todo]), progress.done
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(job, folder, board, kept))
    futures: list[Future[None]] = []
    try:
        for place, part in enumerate(todo):  # a process may die before the last is submitted
            try:
                futures.append(pool.submit(_prepare_one, part, place))
            except (ValueError, OSError) as error:
                if isinstance(error, OSError) and error.errno is not None:  # the system's own: no process can be started
                    raise
                # It broke just now, and closed the pipes that a new process was being given.
                raise BrokenProcessPool(str(error)) from error
        pending = set(futures)
        while pending:
            done, pending = wait(pending, SECONDS_BETWEEN_LOOKS, FIRST_EXCEPTION)
            lines = (np.array(board.line[:]) - firsts).clip(0).sum()
            progress.advance(before + int(lines) - progress.done, f"{sum(board.rejected)} rejected")
            for future in done:
                future.result()
    except BrokenProcessPool:
        # One that was started while the pool broke is not ended by it, and waited for without end.
        for process in set(multiprocessing.active_children()) - others:
            process.kill()
        at = [
            f"line {line} of {job.sources[part.source].file}"
            for line, part, future in zip(board.line, todo, futures, strict=False)
            if line and future.exception()
        ]
        raise WorkerDiedError(
            "A process that prepared rows was killed.",
            where=" or ".join(at) or f"line unknown of {', '.join(str(source.file) for source in job.sources)}",
            fix="run the same command again, which goes on from the finished shards; if memory ran out, with fewer --workers",
        ) from None
    finally:
        board.stop.value = 1  # else the pool would finish what it has begun
        pool.shutdown(cancel_futures=True)


_preparer: Preparer
_folder: Path
_board: _Board


def _begin(job: Job, folder: Path, board: _Board, kept: KeptPictures | None) -> None:
    """Initializes a new process."""
    global _preparer, _folder, _board
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the main process tells the others to stop
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _preparer, _folder, _board = Preparer(job, kept), folder, board
    gc.freeze()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:  # as it is in a process that `multiprocessing` began
        connection.wait([parent.sentinel])
        os._exit(1)


def _prepare_one(part: LineRange, place: int) -> None:
    def report(line: int, rejected: int) -> None:
        if _board.stop.value:
            raise InterruptedError("another process met an error")
        _board.line[place], _board.rejected[place] = line, rejected

    _preparer.prepare(part, _folder, report)
    _board.line[place] = part.line + part.lines
