"""One attempt of a step: its run and task, and where its record goes. Every attempt leaves a record, however it ends.

ROOT/lineage/RUN/TASK/ATTEMPT.json           records, never changed; further records of an attempt end in _2.json, ...
ROOT/lineage/RUN/TASK/ATTEMPT.started.json   the mark of a running attempt; it stays if the attempt is killed
ROOT/lineage/rows/SHA256.jsonl               lists of data rows, which outlive their artifacts
ROOT/lineage/roots/SHA256.json               other roots with records of the same chains
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import inspect
import logging
import math
import os
import platform
import re
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import ParamSpec, TypeVar

from pydantic import BaseModel

from paligemma.artifacts.record import (
    ROWS_FILE,
    Artifact,
    CachedFrom,
    Failure,
    Input,
    MadeRecord,
    Producer,
    Record,
    Status,
    canonical_sha256,
    record_sha256,
    render_record,
)
from paligemma.artifacts.signing import sign
from paligemma.errors import InputError, PaliGemmaError, StoppedError
from paligemma.redaction import without_secrets
from paligemma.runtime.processes import described
from paligemma.runtime.signals import sigterm_raises
from paligemma.storage import folders
from paligemma.storage.cache import cache_folder
from paligemma.storage.disk_space import explain_full_disk
from paligemma.storage.files import copy_new_file, exists, write_new_file
from paligemma.storage.location import Location, absolute_uri, parse_location

FOLDER = "lineage"
ROWS_FOLDER = "rows"
ROOTS_FOLDER = "roots"
MARK_ENDING = ".started.json"
RUN_VARIABLE = "PALIGEMMA_RUN"
"""The run of steps that are started by hand; unset: each step is a run of its own."""
TASK_VARIABLE = "PALIGEMMA_TASK"
"""The task in that run; unset: named by the step and its output."""
ROOT_VARIABLE = "PALIGEMMA_LINEAGE_ROOT"
"""The root of records; unset: the artifact root, or else the output's parent folder."""
PRICE_VARIABLE = "PALIGEMMA_USD_PER_HOUR"

_MOST_NAME = 200  # characters; leaves room for what writers append to a file's name
_PACKAGES = ("paligemma", "jax", "jaxlib", "flax", "optax", "numpy", "sentencepiece", "pillow", "kfp")

P = ParamSpec("P")
T = TypeVar("T")
log = logging.getLogger("paligemma.lineage")


@dataclass(frozen=True)
class Place:
    """The position of this process in a pipeline.

    Attributes:
        reuse: whether results of earlier runs are reused; see `paligemma.artifacts.results`.
    """

    run: str
    task: str
    root: str
    reuse: bool = False


_place: ContextVar[Place | None] = ContextVar("place", default=None)
_current: ContextVar[Attempt | None] = ContextVar("attempt", default=None)
_planning: ContextVar[bool] = ContextVar("planning", default=False)


def set_place(run: str, task: str, root: str, reuse: bool = False) -> None:
    """Sets the run and task of this process, the root for its artifacts and records, and whether it reuses earlier results."""
    _place.set(Place(run, task, root, reuse))


@contextmanager
def planning() -> Iterator[None]:
    """In the block, a step only finds out whether it has a result, and leaves no record; see `results.Result.find`."""
    token = _planning.set(True)
    try:
        yield
    finally:
        _planning.reset(token)


def is_planning() -> bool:
    """Whether steps are planned and not run."""
    return _planning.get()


def place_environment() -> dict[str, str]:
    """Environment variables that give a process on another machine the same run, task and root."""
    place = _place.get()
    if place is None:
        return {name: os.environ[name] for name in (RUN_VARIABLE, TASK_VARIABLE, ROOT_VARIABLE) if os.environ.get(name)}
    return {RUN_VARIABLE: place.run, TASK_VARIABLE: place.task, ROOT_VARIABLE: os.environ.get(ROOT_VARIABLE) or place.root}


@dataclass
class Attempt:
    """A running attempt. Its fields are filled in along the way.

    Attributes:
        in_pipeline: whether a pipeline runs it, and not a person.
        reuses: whether it may take an earlier run's result instead of making its own.
        made: the record of the artifact that it made; None before.
    """

    component: str
    output: str
    parameters: dict
    run: str
    task: str
    root: Location
    name: str
    price: float | None = None
    in_pipeline: bool = False
    reuses: bool = False
    made: MadeRecord | None = None
    inputs: list[Input] = field(default_factory=list)
    device: str | None = None
    records: int = 0
    started: str = field(default_factory=lambda: _now())
    _clock: float = field(default_factory=time.monotonic)

    def record(
        self,
        status: Status,
        *,
        component: str | None = None,
        artifact: Artifact | None = None,
        metrics: Mapping[str, float] | None = None,
        error: Failure | None = None,
        cached_from: CachedFrom | None = None,
    ) -> Record:
        """The record as of now, sealed."""
        seconds = time.monotonic() - self._clock
        return seal(
            Record(
                run=self.run,
                task=self.task,
                attempt=self.name,
                status=status,
                output=artifact.uri if artifact is not None else self.output,
                artifact=artifact,
                producer=_producer(component or self.component, self.parameters, self.device),
                inputs=self.inputs,
                cached_from=cached_from,
                metrics=dict(metrics or {}),
                error=error,
                started=self.started,
                finished=None if status == "running" else _now(),
                seconds=round(seconds, 3),
                cost_usd=None if self.price is None else round(seconds / 3600 * self.price, 6),
            )
        )

    def keep(self, record: Record, folder: Path | None = None) -> None:
        """Writes the append-only copy of a record, and of its artifact's list of rows if `folder` has one."""
        rows = record.artifact.file(ROWS_FILE) if record.artifact is not None else None
        if rows is not None and folder is not None:
            place = self.root / FOLDER / ROWS_FOLDER
            if not exists(place, f"{rows.sha256}.jsonl"):
                copy_new_file(folder / ROWS_FILE, place / f"{rows.sha256}.jsonl")
        ending = f"_{self.records + 1}" if self.records else ""  # sorts after the first one's "."
        keep_file(self.root, f"{self.run}/{self.task}/{self.name}{ending}.json", render_record(record))
        self.records += 1

    def mark(self) -> None:
        """Writes the mark that says that the attempt has begun."""
        keep_file(self.root, f"{self.run}/{self.task}/{self.name}{MARK_ENDING}", render_record(self.record("running")))

    def unmark(self) -> None:
        """Removes the mark once a record exists."""
        folders.remove_file(self.root / FOLDER / self.run / self.task / f"{self.name}{MARK_ENDING}")
        folders.touch(self.root / FOLDER / self.run)


@contextmanager
def attempt(component: str, output: str | Path, parameters: Mapping[str, object], root: str | Path = "") -> Iterator[Attempt]:
    """The current attempt, or else a new one, which leaves a record however it ends.

    In a new attempt, SIGTERM raises `StoppedError`, unless it already has a handler.

    Args:
        component: the step.
        output: where the step writes its artifact.
        parameters: all other arguments of the step; JSON values, no secrets.
        root: parent of the folder `lineage`, if neither the environment nor a pipeline sets it; empty: beside the output.
    """
    current = _current.get()
    if current is not None:
        yield current
        return
    current = _begin(component, output, parameters, root)
    token = _current.set(current)
    try:
        with explain_full_disk(parse_location(current.output), cache_folder()), sigterm_raises():
            if _records_here():
                current.mark()
            yield current
    except BaseException as error:
        if _records_here():
            _leave_failure(current, error)
        raise
    finally:
        _current.reset(token)
    if _records_here():
        current.unmark()


def attempt_under_way() -> Attempt | None:
    """The current attempt; None outside a step."""
    return _current.get()


def in_pipeline() -> bool:
    """Whether a pipeline runs this process, and not a person."""
    return _place.get() is not None


def about_attempt() -> list[tuple[str, str]]:
    """Labels and values for the head of a page: the run, its inputs, the code; empty outside an attempt."""
    current = _current.get()
    if current is None:
        return []
    sha, dirty = _git_state()
    commit = os.environ.get("PALIGEMMA_GIT_SHA", sha) or "unknown"
    inputs = [(one.role, f"{one.uri}, sha256 {one.sha256[:16]}") for one in current.inputs]
    return [("run", f"{current.run}, {current.task}"), *inputs, ("commit", f"{commit}{' with changes' if dirty else ''}")]


def recorded(component: str, output: str = "output", root: str = "") -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorator: each call of the step's function becomes an attempt of the step.

    Args:
        component: the step.
        output: name of the parameter that says where the artifact goes.
        root: name of the parameter that `attempt` takes as `root`; empty if there is none.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def call(*positional: P.args, **named: P.kwargs) -> T:
            bound = inspect.signature(function).bind(*positional, **named)
            bound.apply_defaults()
            values = dict(bound.arguments)
            where, top = values.pop(output), bound.arguments[root] if root else ""
            with attempt(component, where, {name: _plain(value) for name, value in values.items()}, top):
                return function(*positional, **named)

        return call

    return decorate


def seal(record: Record) -> Record:
    """The record with its hash, and with a signature if there is a key."""
    digest = record_sha256(record.model_dump(mode="json"))
    return record.model_copy(update={"sha256": digest, "signature": sign(digest)})


def default_root(output: Location, root: str | Path = "") -> Location:
    """The folder whose `lineage` holds the records of artifacts written to `output`."""
    place = _place.get()
    named = os.environ.get(ROOT_VARIABLE) or (place.root if place else "") or root
    return parse_location(named) if named else parse_location(output).parent


def keep_file(root: Location, path: str, data: bytes) -> None:
    """Writes a new file below `lineage` and touches the run's folder, so that an index notices it. Overwrites nothing."""
    write_new_file(root / FOLDER / path, data)
    folders.touch(root / FOLDER / path.partition("/")[0])


def attempt_name() -> str:
    """A unique name that sorts by time."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S.%f}"[:-3] + f"Z-{secrets.token_hex(3)}"


def safe_name(name: str) -> str:
    """The folder name for a run or task: a `RunName` that differs from the names of reserved folders."""
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-") or "x"
    if len(safe) > _MOST_NAME:
        safe = f"{safe[:_MOST_NAME]}-{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:16]}"
    return f"{safe}_" if safe in (ROWS_FOLDER, ROOTS_FOLDER) else safe


def _begin(component: str, output: str | Path, parameters: Mapping[str, object], root: str | Path) -> Attempt:
    location, place, name = parse_location(output).absolute(), _place.get(), attempt_name()
    run = place.run if place else os.environ.get(RUN_VARIABLE) or f"{component}-{name}"
    top = default_root(location, root)
    # Steps started by hand for one run differ by what they write: one component prepares two data sets.
    task = place.task if place else os.environ.get(TASK_VARIABLE) or f"{component}-{absolute_uri(location).rpartition('/')[2]}"
    return Attempt(
        component=component,
        output=absolute_uri(location),
        parameters=dict(parameters),
        run=safe_name(run),
        task=safe_name(task),
        root=top.absolute(),
        name=name,
        price=_price(),
        in_pipeline=place is not None,
        reuses=place is not None and place.reuse,
    )


def _price() -> float | None:
    """Price of this machine in US dollars an hour; None if the environment does not say."""
    said = os.environ.get(PRICE_VARIABLE)
    if not said:
        return None
    try:
        price = float(said)
    except ValueError:
        price = -1.0
    if not 0 <= price < math.inf:
        raise InputError(f"{said!r} is not a price.", where=f"${PRICE_VARIABLE}", expected="US dollars an hour, such as 1.2")
    return price


def _leave_failure(current: Attempt, error: BaseException) -> None:
    """Writes a record of the failure. A failure to write it must not hide the error itself."""
    stopped = isinstance(error, StoppedError | KeyboardInterrupt)
    message = error.what if isinstance(error, PaliGemmaError) else str(error)
    failure = Failure(kind=type(error).__name__, message=without_secrets(message)[:2000])
    try:
        current.keep(current.record("preempted" if stopped else "failed", error=failure))
        current.unmark()
    except Exception as second:  # any type: the first error is the one to show
        log.warning("the failed attempt left no lineage record: %s", second)


def _records_here() -> bool:
    """Whether this process writes the record; on several hosts, only one does. A step that is planned leaves none."""
    if is_planning():
        return False
    try:
        processes = described()
    except InputError:  # joining the processes raises it again, inside the attempt, where it is recorded
        return True
    return (processes.index if processes else int(os.environ.get("TPU_WORKER_ID") or 0)) == 0


def _plain(value: object) -> object:
    """An argument in the form that a record stores."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    # A dataclass with a text of its own, such as a location, is recorded as that text.
    if is_dataclass(value) and not isinstance(value, type) and type(value).__str__ is object.__str__:
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return _plain_parameters(value)
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value if value is None or isinstance(value, bool | int | float) else without_secrets(str(value))


def _plain_parameters(values: Mapping[object, object]) -> dict[str, object]:
    return {without_secrets(str(key)): _plain(one) for key, one in values.items()}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _producer(component: str, parameters: dict, device: str | None) -> Producer:
    sha, dirty = _git_state()
    parameters = _plain_parameters(parameters)  # every argument passes here: secrets in addresses are removed
    return Producer(
        component=component,
        parameters=parameters,
        parameters_sha256=canonical_sha256(parameters),
        image=os.environ.get("PALIGEMMA_IMAGE"),
        git_sha=os.environ.get("PALIGEMMA_GIT_SHA", sha),
        git_dirty=dirty,
        packages=package_versions(),
        python=platform.python_version(),
        device=device,
    )


@functools.cache
def package_versions() -> dict[str, str]:
    """Versions of the packages that a record names."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


@functools.cache
def _git_state() -> tuple[str | None, bool | None]:
    """Commit of the source tree, and whether it has changes; None outside a checkout. Read once per process."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return None, None
