"""A heartbeat file: a waiting step writes it, and its job reads it. A job that nobody waits for ends itself.

A step may vanish without telling its job. KFP's launcher dies of the SIGTERM that the step should have received, and the
container dies with it. Vertex AI signals a shell instead. A lost machine signals nobody.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from pydantic import BaseModel

from paligemma.errors import DamagedError, PaliGemmaError
from paligemma.foreign_json import SMALL_BYTES, parse_model
from paligemma.storage.files import write_file
from paligemma.storage.folders import read_file, remove_file
from paligemma.storage.location import parse_location

HEARTBEAT_VARIABLE = "PALIGEMMA_HEARTBEAT"
"""The heartbeat file of this process; unset: nobody has to wait for it."""
FOLDER = "launched"
"""Folder below the artifact root, with a file for each job."""

BEAT_SECONDS = 60.0
LOOK_SECONDS = 30.0
SILENCE_SECONDS = 360.0
"""Seconds of silence before a job ends. It outlives its step by this, plus the time until it looks and the time to save its
state: ten minutes at most.
"""
SAVE_SECONDS = 120.0

log = logging.getLogger("paligemma.launch")


class AbandonedError(PaliGemmaError):
    """Nobody waits for the result of this process."""

    exit_code = 2


class _Said(BaseModel):
    """Contents of the file: when somebody last waited (Unix time in seconds), for which job, and how many jobs were made."""

    beat: float
    job: str = ""
    tries: int = 0


@dataclass
class Heartbeat:
    """The waiting side, and what it needs to know about earlier attempts.

    Attributes:
        place: the file; empty: none, because no root is reachable from both sides.
        job: the service's name of the last job; empty: no job was made.
        tries: number of jobs made.
    """

    place: str
    job: str = ""
    tries: int = 0
    _beaten: float = 0.0

    @classmethod
    def open(cls, root: str, name: str) -> Heartbeat:
        """The heartbeat of the job with this name, as the previous attempt left it."""
        if not root:
            return cls("")
        place = f"{root.rstrip('/')}/{FOLDER}/{name}.json"
        said = _read(place)
        return cls(place, said.job, said.tries) if said else cls(place)

    def beat(self, now: bool = False) -> None:
        """Writes that somebody waits, unless that was written just before; always if `now`."""
        if self.place and (now or time.time() - self._beaten >= BEAT_SECONDS):
            self._beaten = time.time()
            said = _Said(beat=self._beaten, job=self.job, tries=self.tries)
            write_file(self.place, (said.model_dump_json() + "\n").encode())

    def made(self, job: str) -> None:
        """Records a job that was just made."""
        self.job = job
        self.beat(now=True)

    def remove(self) -> None:
        """Removes the file, once the job's result exists."""
        if self.place:
            remove_file(parse_location(self.place))


def end_when_abandoned(end: Callable[[], None] | None = None) -> None:
    """Ends this process when nobody waits for it any more, if the environment names a heartbeat file.

    The process first gets SIGTERM, on which training saves its state, and is killed if that takes too long.

    Args:
        end: called instead of that.

    Raises:
        AbandonedError: nobody waited at the start already.
    """
    place = os.environ.get(HEARTBEAT_VARIABLE)
    if not place:
        return
    silence = _silence(place)
    if silence >= SILENCE_SECONDS:
        raise AbandonedError(
            f"Nobody has waited for this job for {silence:.0f} seconds.", where=place, fix="run the pipeline again; it goes on"
        )
    threading.Thread(target=_watch, args=(place, end or _end), name="heartbeat", daemon=True).start()


def _watch(place: str, end: Callable[[], None]) -> None:
    heard = time.time()
    while time.time() - heard < SILENCE_SECONDS:
        time.sleep(LOOK_SECONDS)
        try:
            heard = max(heard, time.time() - _silence(place))
        except PaliGemmaError as error:  # counts as silence: the waiting step may have been unable to write, too
            log.warning("%s", error)
    log.warning("nobody has waited for this job for %.0f seconds: it ends", time.time() - heard)
    end()


def _end() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(SAVE_SECONDS)
    os._exit(4)


def _silence(place: str) -> float:
    """Seconds since somebody waited, by clocks that agree within seconds; infinite if nobody ever did."""
    said = _read(place)
    return time.time() - said.beat if said else float("inf")


def _read(place: str) -> _Said | None:
    """The last contents; None if they cannot be parsed, which counts as no heartbeat."""
    data = read_file(parse_location(place))
    try:
        return parse_model(data, place, _Said, "The heartbeat", most=SMALL_BYTES) if data else None
    except DamagedError:
        return None
