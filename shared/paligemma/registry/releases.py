"""The releases of a model: each is a folder that never changes. A pointer names the release in use, the champion.

    REGISTRY/releases/VERSION/big_vision, .../huggingface     the whole model, one artifact per format
    REGISTRY/releases/VERSION/release                         card, evaluation, manifest; written last
    REGISTRY/champion.json                                    moved atomically, by one writer at a time

A registry is a local folder or a `gs://` prefix.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from paligemma.artifacts.record import RECORD_FILE, File, MadeRecord, file_sha256, list_files, read_record, tree_sha256
from paligemma.artifacts.store import localize
from paligemma.errors import DamagedError, InputError, PaliGemmaError, did_you_mean
from paligemma.foreign_json import first_fault, read_json, read_model
from paligemma.registry.pointer import DamagedPointerError, move_pointer, read_pointer
from paligemma.safe_names import ReleaseVersion, RunName, Sha256, is_release_version, parse_release_version
from paligemma.storage.failures import ChangedError
from paligemma.storage.files import exists
from paligemma.storage.folders import kind_of
from paligemma.storage.folders import list_files as list_paths
from paligemma.storage.location import Location, parse_location

ARTIFACT_TYPE = "release"
CHAMPION_FILE = "champion.json"
MANIFEST_FILE = "manifest.json"
CARD_FILE = "README.md"
EVALUATION_FOLDER = "evaluation"
HISTORY = 100
"""Number of earlier champions in the pointer's history."""


class Format(BaseModel):
    """The model in one format: a separate artifact of the release."""

    model_config = ConfigDict(frozen=True)

    folder: RunName
    tree_sha256: Sha256
    files: list[File]


class Manifest(BaseModel):
    """Contents of `manifest.json`: what a release consists of."""

    model_config = ConfigDict(frozen=True)

    schema_version: int = 1
    version: ReleaseVersion
    formats: Annotated[list[Format], Field(min_length=1)]


class Champion(BaseModel):
    """What `champion.json` points to.

    Attributes:
        release: the version in use.
        tree_sha256: tree hash of the release's artifact.
        history: earlier versions in use, latest last.
    """

    model_config = ConfigDict(frozen=True)

    release: ReleaseVersion
    tree_sha256: Sha256
    history: list[ReleaseVersion] = []


class Score(NamedTuple):
    """A metric of an evaluation, with its interval."""

    metric: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Broken:
    """A release that cannot be read any more, and why."""

    version: str
    error: PaliGemmaError


@dataclass(frozen=True)
class Release:
    """One release of a registry: its location and its records."""

    registry: Location
    version: str
    record: MadeRecord
    manifest: Manifest

    @property
    def location(self) -> Location:
        """The location of its card."""
        return release_part(self.registry, self.version, "release")

    @property
    def model(self) -> Location:
        """A folder that `paligemma.load` takes."""
        return release_part(self.registry, self.version, self.manifest.formats[0].folder)

    @property
    def metrics(self) -> dict:
        """The `metrics.json` of its evaluation.

        Raises:
            DamagedError: the file cannot be read.
        """
        path = localize(self.location) / EVALUATION_FOLDER / "metrics.json"
        return read_json(path, "The figures of the evaluation", nonfinite=True, fix="publish it again")

    @property
    def score(self) -> Score:
        """The score that decided its evaluation.

        Raises:
            DamagedError: its evaluation has no such score.
        """
        try:
            metrics = self.metrics
            found = metrics["metrics"][metrics["primary"]]
            return Score(str(metrics["primary"]), float(found["value"]), float(found["low"]), float(found["high"]))
        except (LookupError, TypeError, ValueError):
            raise DamagedError(
                "The evaluation of the release has no score.", where=self.location, fix="publish it again"
            ) from None


def release_part(registry: str | Path | Location, version: str, part: str) -> Location:
    """The location of one of a release's folders.

    Raises:
        InputError: the version is invalid, and could lead out of the registry.
    """
    return parse_location(registry) / "releases" / parse_release_version(version, "The version", where=registry) / part


def read_release(registry: str | Path | Location, version: str) -> Release:
    """Reads a complete release.

    Raises:
        InputError: there is no such version.
        DamagedError: the release is no longer complete.
    """
    registry = parse_location(registry)
    location = release_part(registry, version, "release")
    if not exists(location, RECORD_FILE):
        others = versions(registry)
        raise InputError(
            f"There is no release {version!r}.", where=registry, fix=did_you_mean(version, others) if others else None
        )
    folder = localize(location)
    record = read_record(folder, ARTIFACT_TYPE)
    manifest = read_model(folder / MANIFEST_FILE, Manifest, "The manifest of the release", fix="publish it again")
    if manifest.version != version:
        raise DamagedError(
            f"What is there is release {manifest.version}, under the name of {version}.",
            where=location,
            expected=f"a manifest of {version}",
            fix="remove the copy; releases are made by publishing",
        )
    return Release(registry, version, record, manifest)


def is_registry(registry: str | Path | Location) -> bool:
    """Whether a folder has releases, finished or not, or a champion file."""
    location = parse_location(registry)
    return kind_of(location / "releases") == "folder" or exists(location, CHAMPION_FILE)


def versions(registry: str | Path | Location) -> list[str]:
    """The versions of all finished releases, unordered. Ignores folders whose names are not versions."""
    ending = f"/release/{RECORD_FILE}"
    paths = list_paths(parse_location(registry) / "releases")
    names = (path.removesuffix(ending) for path in paths if path.endswith(ending) and path.count("/") == 2)
    return sorted(name for name in names if is_release_version(name))


def list_releases(registry: str | Path | Location) -> tuple[list[Release], list[Broken]]:
    """The complete releases, oldest first, and the broken ones."""
    found, broken = [], []
    for version in versions(registry):
        try:
            found.append(read_release(registry, version))
        except (DamagedError, InputError) as error:
            broken.append(Broken(version, error))
    return sorted(found, key=lambda release: (release.record.finished or "", release.version)), broken


def read_champion(registry: str | Path | Location) -> Champion | None:
    """The champion; None if there is none yet.

    Raises:
        DamagedError: the champion file is damaged.
    """
    return _champion(registry)[0]


def read_champion_release(registry: str | Path | Location) -> Release | None:
    """The release in use; None if there is none yet.

    Raises:
        DamagedError: the champion file is damaged or names no release, or the release differs from the promoted one.
    """
    champion = read_champion(registry)
    if champion is None:
        return None
    if not exists(release_part(registry, champion.release, "release"), RECORD_FILE):
        raise DamagedError(f"The champion, {champion.release}, is not there any more.", where=registry, fix=_fix(registry))
    release = read_release(registry, champion.release)
    if release.record.artifact.tree_sha256 != champion.tree_sha256:
        raise DamagedError(
            f"The champion, {champion.release}, is not the release that was promoted.",
            where=release.location,
            expected=f"tree_sha256 {champion.tree_sha256}, found {release.record.artifact.tree_sha256}",
            fix=_fix(registry),
        )
    return release


def promote(release: Release, instead_of: Champion | None) -> Champion:
    """Makes a release the champion, if the champion has not changed since the decision.

    Raises:
        ChangedError: the champion has changed.
    """
    current, generation = _champion(release.registry)
    if current is not None and current.release == release.version:
        return current
    if current != instead_of:
        found = current.release if current else "none"
        raise ChangedError(
            f"The champion is {found} now, and {release.version} was not compared with it.",
            where=release.registry,
            expected=instead_of.release if instead_of else "no champion yet",
            fix="evaluate again, with --registry",
        )
    return _move(release, current, generation)


def roll_back(registry: str | Path | Location, version: str = "") -> tuple[str, Champion]:
    """Makes an earlier champion, or any other release, the champion.

    Args:
        registry: the registry's location.
        version: the release; empty: the one before the champion. A named release can also replace a damaged champion.

    Returns:
        The previous version (empty if unknown), and the new champion.

    Raises:
        InputError: there is no such release, or no earlier one.
        DamagedError: the release is incomplete; or no version is given and the champion is damaged.
        ChangedError: somebody else moved the champion meanwhile.
    """
    try:
        current, generation = _champion(registry)
    except DamagedPointerError as error:
        if not version:
            raise
        release = read_release(registry, version)
        verify_release(release)
        return "", _move(release, None, error.generation)
    if current is None:
        raise InputError("There is no champion to roll back.", where=registry, fix="publish a release")
    if not version and not current.history:
        raise InputError("There was no champion before this one.", where=registry, fix="name a release: paligemma releases")
    release = read_release(registry, version or current.history[-1])
    verify_release(release)
    if release.version == current.release:
        return current.release, current
    if version:
        return current.release, _move(release, current, generation)
    # Rolling back twice goes back two steps, not back and forth.
    champion = Champion(release=release.version, tree_sha256=release.record.artifact.tree_sha256, history=current.history[:-1])
    move_pointer(parse_location(registry) / CHAMPION_FILE, champion.model_dump(), generation)
    return current.release, champion


def verify_release(release: Release) -> int:
    """Reads every file of a release and its formats, and compares it with the records.

    Returns:
        The number of files.

    Raises:
        DamagedError: names the first file that is missing, altered or new.
    """
    count = verify_artifact(release.location, release.record.artifact.tree_sha256)
    for part in release.manifest.formats:
        count += verify_artifact(release_part(release.registry, release.version, part.folder), part.tree_sha256)
    return count


def verify_artifact(location: str | Path | Location, expected: str = "") -> int:
    """Reads every file of an artifact and compares it with the artifact's record.

    Args:
        location: a folder, or a `gs://` prefix.
        expected: the artifact's hash, if known from elsewhere; it reveals a record that was altered together with its files.

    Returns:
        The number of files.

    Raises:
        DamagedError: names the first file that is missing, altered or new.
    """
    folder = localize(location)
    record = read_record(folder)
    recorded = {file.path: file for file in record.artifact.files}
    found = {file.path: file for file in list_files(folder)}
    for path in sorted(recorded.keys() | found.keys()):
        if recorded.get(path) != found.get(path):
            what = "is new" if path not in recorded else "is missing" if path not in found else "was altered"
            raise DamagedError(f"{path} {what}.", where=location, expected="the files that its record lists")
    if tree_sha256(record.artifact.files) != record.artifact.tree_sha256 or expected not in ("", record.artifact.tree_sha256):
        raise DamagedError("The record was altered.", where=folder / RECORD_FILE, expected=expected or "the hash of its files")
    return len(found)


def formats_in(registry: str | Path | Location, version: str, folders: list[str]) -> Iterator[Format]:
    """The manifest's entries for formats that are written already."""
    for folder in folders:
        location = release_part(registry, version, folder)
        path = localize(location)
        artifact = read_record(path).artifact
        record = File(path=RECORD_FILE, bytes=(path / RECORD_FILE).stat().st_size, sha256=file_sha256(path / RECORD_FILE))
        yield Format(folder=folder, tree_sha256=artifact.tree_sha256, files=[*artifact.files, record])


def _champion(registry: str | Path | Location) -> tuple[Champion | None, int]:
    """The champion, and the generation of its file."""
    location = parse_location(registry) / CHAMPION_FILE
    try:
        pointer = read_pointer(location)
    except DamagedPointerError as error:
        raise DamagedPointerError(error.what, error.generation, where=location, fix=_fix(registry)) from None
    try:
        return (None if pointer.value is None else Champion.model_validate(pointer.value)), pointer.generation
    except ValidationError as fault:
        raise DamagedPointerError(
            f"{CHAMPION_FILE} does not name a release: {first_fault(fault)}.",
            pointer.generation,
            where=location,
            fix=_fix(registry),
        ) from None


def _fix(registry: str | Path | Location) -> str:
    """Advice for an unreadable champion."""
    return f"paligemma rollback VERSION --registry {registry}, which makes a release the champion: " + (
        ", ".join(versions(registry)[:20]) or "there is none yet, publish one"
    )


def _move(release: Release, current: Champion | None, generation: int) -> Champion:
    history = [*current.history, current.release][-HISTORY:] if current else []
    champion = Champion(release=release.version, tree_sha256=release.record.artifact.tree_sha256, history=history)
    move_pointer(release.registry / CHAMPION_FILE, champion.model_dump(), generation)
    return champion
