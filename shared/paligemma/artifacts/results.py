"""Results by content: what was made once, of the same inputs, with the same settings and code, is not made again.

ROOT/results/KEY.json          names an artifact: its location, its record, and in Cloud Storage the generation of each object
ROOT/results/latest/KEY.json   names the last artifact of a kind, in the same way

KEY is a hash of everything that determines the artifact. The file is written last, and atomically. Of two writers with one key,
the later wins; both artifacts are right. The key of a kind leaves out the data, so that a step finds what was made of earlier
data, and takes over what it can. Only steps of a pipeline look here: a step that is run by hand makes what it is asked
to make.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from paligemma.artifacts.record import (
    RECORD_FILE,
    CachedFrom,
    Input,
    MadeRecord,
    Record,
    Signature,
    canonical_sha256,
    file_sha256,
    list_files,
    parse_record_of_artifact,
)
from paligemma.artifacts.recording import Attempt, attempt_under_way, is_planning, seal
from paligemma.artifacts.signing import KEY_VARIABLE, fault_of, own_public_key, sign
from paligemma.artifacts.store import point_to
from paligemma.errors import PaliGemmaError
from paligemma.foreign_json import SMALL_BYTES, first_fault, parse_json
from paligemma.safe_names import Address, Sha256
from paligemma.storage import gcs, versions
from paligemma.storage.files import write_file
from paligemma.storage.folders import read_file
from paligemma.storage.location import GcsLocation, Location, absolute_uri, parse_location

FOLDER = "results"
LATEST_FOLDER = f"{FOLDER}/latest"
FORMAT = 1
_PACKAGES = ("flax", "jax", "jaxlib", "jinja2", "ml_dtypes", "numpy", "optax", "pillow", "safetensors", "sentencepiece")
"""Packages whose version may change an artifact."""

log = logging.getLogger("paligemma.artifacts")


class _Kept(BaseModel):
    """Contents of a result's file. `objects` has the generation of each object by path; empty on a disk.

    Signed, if there is a key, together with the result's hash: whoever writes here could offer one result for another.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Annotated[int, Field(ge=FORMAT, le=FORMAT)] = FORMAT
    location: Address
    record: Sha256
    objects: dict[str, int] = {}
    signature: Signature | None = None

    def sealed(self, sha256: str) -> str:
        """The hash that is signed: of this note as that of the result `sha256`."""
        return canonical_sha256({**self.model_dump(mode="json", exclude={"signature"}), "result": sha256})


class NotMadeError(Exception):
    """Ends a step that is only planned, and whose artifact has to be made: no error of ours, so no step handles it.

    Attributes:
        result: what the step would make.
        compare: how its inputs differ from those of an earlier record, where hashes and settings do not say; empty if not.
        unless: what may have changed, if only the work itself can tell; then what was made before may be taken over.
    """

    def __init__(self, result: Result, compare: Callable[[MadeRecord], str] = lambda _: "", unless: str = "") -> None:
        super().__init__(result.component)
        self.result, self.compare, self.unless = result, compare, unless


@dataclass(frozen=True)
class Result:
    """What a step would make, named by everything that determines it.

    Attributes:
        component: the step.
        sha256: hash of the inputs' contents, the settings and the code; empty if the result cannot be reused.
        folder: where its file is, below the root.
        settings, inputs: what the hash is of, among others; for people.
    """

    component: str
    sha256: str
    folder: str = FOLDER
    settings: Mapping[str, object] = field(default_factory=dict, compare=False)
    inputs: Sequence[Input] = field(default=(), compare=False)

    @classmethod
    def of(
        cls, component: str, code: str | Path, settings: Mapping[str, object], inputs: Sequence[Input] = (), **also: object
    ) -> Result:
        """The result of a step.

        Args:
            component: the step.
            code: folder of the step's own sources.
            settings: every parameter that determines the artifact; JSON values.
            inputs: the inputs. Their roles and contents count, not their locations.
            also: what else determines the artifact, such as devices; JSON values.
        """
        contents = sorted((entry.role, entry.sha256) for entry in inputs)
        determined_by = {"component": component, "settings": dict(settings), "inputs": contents, "also": also}
        sha256 = canonical_sha256({**determined_by, "code": _code_sha256(Path(code)), "packages": _versions()})
        return cls(component, sha256, settings=dict(settings), inputs=list(inputs))

    @classmethod
    def latest_of(cls, component: str, code: str | Path, settings: Mapping[str, object], **also: object) -> Result:
        """The last result of a kind: of whatever data, but with these settings. Takes what `of` takes, without inputs."""
        return replace(cls.of(component, code, settings, (), latest=True, **also), folder=LATEST_FOLDER)

    @classmethod
    def none(cls, component: str) -> Result:
        """A result that is not looked for and not kept, because what determines it is not known."""
        return cls(component, "")

    def find(self, compare: Callable[[MadeRecord], str] = lambda _: "") -> str | None:
        """The location of the whole artifact, if it was made before; None if it has to be made.

        If there is one, the current attempt leaves a record that says where its artifact came from. Its
        output says where it is. A step that is only planned leaves nothing, and ends here.

        Args:
            compare: for a plan: how the inputs differ from those of an earlier record, where hashes and settings do not say.

        Raises:
            NotMadeError: the step is only planned, and its artifact has to be made.
        """
        attempt, record = attempt_under_way(), self.look_up()
        if is_planning() and self.sha256:
            if record is None:
                raise NotMadeError(self, compare)
            return record.artifact.uri
        if attempt is None or record is None:
            return None
        if record.artifact.uri != attempt.output:
            point_to(parse_location(attempt.output), record.artifact.uri, record)
        attempt.keep(reused_record(record, attempt.run, attempt.task, attempt.name, attempt.started))
        log.info("nothing changed: the result of run %s is reused, %s", record.run, record.artifact.uri)
        return record.artifact.uri

    def look_up(self, checked_later: str = "") -> MadeRecord | None:
        """The record of the artifact, if it was made before, is whole, and may be reused; leaves no record of that.

        Args:
            checked_later: files on a disk with this in their names are not hashed, unless there is a key, because the caller
                checks those that it takes; empty: all are.
        """
        attempt = attempt_under_way()
        if not self.sha256 or attempt is None or not attempt.reuses:
            return None
        try:
            data = read_file(self._file(attempt.root))
            if data is None:
                return None
            kept = _parse(data)
            if os.environ.get(KEY_VARIABLE) and (fault := fault_of(kept.signature, kept.sealed(self.sha256), own_public_key())):
                raise PaliGemmaError(f"The note of the result cannot be trusted: {fault}.")
            return _whole_artifact(kept, attempt, "" if os.environ.get(KEY_VARIABLE) else checked_later)
        except PaliGemmaError as error:
            log.warning("an earlier result cannot be reused, and is made anew: %s", error.what)
            return None

    def keep(self) -> None:
        """Notes the artifact that the current attempt has made, for attempts to come."""
        attempt = attempt_under_way()
        if not self.sha256 or attempt is None or attempt.made is None or not attempt.in_pipeline:
            return
        made = attempt.made
        location, objects = parse_location(made.artifact.uri), {}
        if isinstance(location, GcsLocation):
            objects = _generations(location, made)
        kept = _Kept(location=made.artifact.uri, record=made.sha256, objects=objects)
        kept = kept.model_copy(update={"signature": sign(kept.sealed(self.sha256))})
        write_file(self._file(attempt.root), (json.dumps(kept.model_dump(mode="json"), indent=2) + "\n").encode())

    def _file(self, root: Location) -> Location:
        return root / self.folder / f"{self.sha256}.json"


def reused_record(record: Record, run: str, task: str, attempt: str, at: str) -> Record:
    """The record of an attempt that took over another attempt's artifact instead of making its own, sealed.

    Args:
        record: the record of the artifact.
        run, task, attempt: the attempt.
        at: when, ISO 8601.
    """
    source = CachedFrom(run=record.run, task=record.task, attempt=record.attempt, record=record.sha256)
    names = {"run": run, "task": task, "attempt": attempt, "cached_from": source, "started": at, "finished": at}
    plain = type(record).model_validate(record.model_dump() | {"sha256": "", "signature": None})
    return seal(plain.model_copy(update={**names, "seconds": 0.0, "cost_usd": None}))


def _parse(data: bytes) -> _Kept:
    values = parse_json(data, FOLDER, "The note of a result", most=SMALL_BYTES * 16)
    try:
        return _Kept.model_validate(values, strict=True)
    except ValidationError as error:
        raise PaliGemmaError(f"The note of a result is damaged: {first_fault(error)}.") from None


def _whole_artifact(kept: _Kept, attempt: Attempt, checked_later: str = "") -> MadeRecord:
    """The record of the artifact that a note names. Of files with `checked_later` in their names, only the sizes are compared.

    Raises:
        PaliGemmaError: it is gone, or elsewhere, or is not what it was, or its record is not signed as this process signs.
    """
    location = parse_location(kept.location)
    if not kept.location.startswith(f"{absolute_uri(attempt.root).rstrip('/')}/"):
        raise PaliGemmaError(f"The artifact at {location} is not below the root {attempt.root}.")
    place = location / RECORD_FILE
    data = read_file(place)
    if data is None:
        raise PaliGemmaError(f"There is no artifact at {location} any more.")
    record = parse_record_of_artifact(data, place)
    if record.sha256 != kept.record or record.artifact.uri != kept.location or record.producer.component != attempt.component:
        raise PaliGemmaError(f"Another artifact has taken the place of the one at {location}.")
    if os.environ.get(KEY_VARIABLE) and (fault := fault_of(record.signature, record.sha256, own_public_key())):
        raise PaliGemmaError(f"The record of the artifact at {location} cannot be trusted: {fault}.")
    if isinstance(location, GcsLocation):
        whole = _generations(location, record) == kept.objects
    else:
        files = record.artifact.files
        known = {file.path: file.sha256 for file in files if checked_later and checked_later in file.path}
        whole = set(list_files(location, known)) == set(files)
    if not whole:
        raise PaliGemmaError(f"The artifact at {location} is not whole, or was changed.")
    return record


def _generations(location: GcsLocation, record: MadeRecord) -> dict[str, int]:
    """The generation of each object of an artifact by path. An object is never changed: a new one has another generation."""
    if record.artifact.version is None:
        return {}
    place = versions.folder_of(location, record.artifact.version)
    expected = {file.path: file.bytes for file in record.artifact.files}
    found = {one.location.name.removeprefix(f"{place.name}/"): one for one in gcs.list_objects(place)}
    return {path: found[path].generation for path, size in expected.items() if path in found and found[path].size == size}


@cache
def _code_sha256(step: Path) -> str:
    """Hash of all sources of the core, and of a step's own."""
    core = Path(__file__).parents[1]
    return canonical_sha256(
        [{p.relative_to(folder).as_posix(): file_sha256(p) for p in _sources(folder)} for folder in (core, step)]
    )


def _sources(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]


@cache
def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
