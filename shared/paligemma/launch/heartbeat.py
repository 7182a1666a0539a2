"""That somebody still waits for a job, in a file that the one writes and the other reads: a job nobody waits for ends itself.

A step may vanish without a word to the job that it had made: KFP's launcher dies of the SIGTERM that the step should have had,
and the container with it; Vertex AI tells a shell; and a machine that is lost tells nobody.
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
"""The file that says when somebody last waited for this process; unset, nobody has to."""
FOLDER = "launched"
"""Below the root of the artifacts: a file for each job."""

BEAT_SECONDS = 60.0
LOOK_SECONDS = 30.0
SILENCE_SECONDS = 360.0
"""A job outlives its step by this, by the time until it looks, and by the time to save its state: ten minutes at most."""
SAVE_SECONDS = 120.0

log = logging.getLogger("paligemma.launch")


class AbandonedError(PaliGemmaError):
    """Nobody waits for what this process was started to make."""

    exit_code = 2


class _Said(BaseModel):
    """What the file says: when somebody last waited, in seconds of Unix time, for which job, and how many were made."""

    beat: float
    job: str = ""
    tries: int = 0


@dataclass
class Heartbeat:
    """The waiting side, and what an attempt at waiting has to know of those before it.

    Attributes:
        place: the file; empty: none, where there is no root that both sides reach.
        job: what the service calls the job that was made last; empty: none was.
        tries: how many were made.
    """

    place: str
    job: str = ""
    tries: int = 0
    _beaten: float = 0.0

    @classmethod
    def open(cls, root: str, name: str) -> Heartbeat:
        """That of the job of this name, as the attempt before left it."""
        if not root:
            return cls("")
        place = f"{root.rstrip('/')}/{FOLDER}/{name}.json"
        said = _read(place)
        return cls(place, said.job, said.tries) if said else cls(place)

    def beat(self, now: bool = False) -> None:
        """Says that somebody waits, if that has not just been said, or has to be said `now`."""
        if self.place and (now or time.time() - self._beaten >= BEAT_SECONDS):
            self._beaten = time.time()
            said = _Said(beat=self._beaten, job=self.job, tries=self.tries)
            write_file(self.place, (said.model_dump_json() + "\n").encode())

    def made(self, job: str) -> None:
        """Notes a job that was just made."""
        self.job = job
        self.beat(now=True)

    def remove(self) -> None:
        """Forgets it, when what it made is there."""
        if self.place:
            remove_file(parse_location(self.place))


def end_when_abandoned(end: Callable[[], None] | None = None) -> None:
    """Watches over this process for as long as it lives, if the environment says who waits for it.

    When nobody does any more, the process gets SIGTERM, by which training saves its state, and is ended if that takes too long.

    Args:
        end: in place of that.

    Raises:
        AbandonedError: nobody did when it began.
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
        except PaliGemmaError as error:  # as if nobody had been heard: whoever waits may not have been able to write either
            log.warning("%s", error)
    log.warning("nobody has waited for this job for %.0f seconds: it ends", time.time() - heard)
    end()


def _end() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(SAVE_SECONDS)
    os._exit(4)


def _silence(place: str) -> float:
    """Seconds since somebody waited, by clocks that agree within some; without end, if nobody ever did."""
    said = _read(place)
    return time.time() - said.beat if said else float("inf")


def _read(place: str) -> _Said | None:
    """What was said last; None if that cannot be understood, which is as if nothing had been said."""
    data = read_file(parse_location(place))
    try:
        return parse_model(data, place, _Said, "The heartbeat", most=SMALL_BYTES) if data else None
    except DamagedError:
        return None
