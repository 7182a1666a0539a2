"""The releases of a model: each in a folder of its own that never changes, and a pointer to the one in use, the champion.

    REGISTRY/releases/VERSION/big_vision, .../huggingface     the whole model, an artifact each
    REGISTRY/releases/VERSION/release                         card, evaluation, manifest: there when the release is whole
    REGISTRY/champion.json                                    moved at once, by one writer at a time

A registry is a local folder or a `gs://` prefix.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from paligemma.errors import DamagedError, InputError, did_you_mean
from paligemma.lineage.artifact import localize
from paligemma.lineage.record import RECORD_FILE, File, Record, file_sha256, list_files, read_record, tree_sha256
from paligemma.storage.files import exists
from paligemma.storage.folders import list_files as list_paths
from paligemma.storage.location import Location, parse_location
from paligemma.storage.pointer import Pointer, move_pointer, read_pointer
from paligemma.storage.retry import ChangedError

ARTIFACT_TYPE = "release"
CHAMPION_FILE = "champion.json"
MANIFEST_FILE = "manifest.json"
CARD_FILE = "README.md"
EVALUATION_FOLDER = "evaluation"
HISTORY = 100
"""Earlier champions that the pointer remembers."""


class Format(BaseModel):
    """The model in one format: an artifact beside the release."""

    model_config = ConfigDict(frozen=True)

    folder: str
    tree_sha256: str
    files: list[File]


class Manifest(BaseModel):
    """Contents of `manifest.json`: what a release consists of."""

    model_config = ConfigDict(frozen=True)

    schema_version: int = 1
    version: str
    formats: list[Format]


class Champion(BaseModel):
    """What `champion.json` points to.

    Attributes:
        release: the version in use.
        tree_sha256: of the artifact that the release is.
        history: versions that were in use before, the latest last.
    """

    model_config = ConfigDict(frozen=True)

    release: str
    tree_sha256: str
    history: list[str] = []


@dataclass(frozen=True)
class Release:
    """One release of a registry: where it is, and what is recorded of it."""

    registry: Location
    version: str
    record: Record
    manifest: Manifest

    @property
    def location(self) -> Location:
        """Where its card is."""
        return release_part(self.registry, self.version, "release")

    @property
    def model(self) -> Location:
        """A folder that `paligemma.load` takes."""
        return release_part(self.registry, self.version, self.manifest.formats[0].folder)

    @property
    def metrics(self) -> dict:
        """The `metrics.json` of its evaluation."""
        return json.loads((localize(self.location) / EVALUATION_FOLDER / "metrics.json").read_text())


def release_part(registry: str | Path | Location, version: str, part: str) -> Location:
    """Where one of a release's folders is."""
    return parse_location(registry) / "releases" / version / part


def read_release(registry: str | Path | Location, version: str) -> Release:
    """A whole release.

    Raises:
        InputError: there is none of that version.
        DamagedError: it is not whole any more.
    """
    registry = parse_location(registry)
    location = release_part(registry, version, "release")
    if not exists(location, RECORD_FILE):
        raise InputError(
            f"There is no release {version!r}.", where=registry, fix=did_you_mean(version, versions(registry)) or None
        )
    folder = localize(location)
    record = read_record(folder, ARTIFACT_TYPE)
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST_FILE).read_bytes())
    except (OSError, ValidationError) as error:
        raise DamagedError(f"The release's manifest is damaged: {error}.", where=location, fix="publish it again") from None
    return Release(registry, version, record, manifest)


def versions(registry: str | Path | Location) -> list[str]:
    """The versions of all whole releases, in no order that means anything."""
    ending = f"/release/{RECORD_FILE}"
    paths = list_paths(parse_location(registry) / "releases")
    return sorted(path.removesuffix(ending) for path in paths if path.endswith(ending) and path.count("/") == 2)


def list_releases(registry: str | Path | Location) -> list[Release]:
    """Every whole release, the oldest first."""
    found = [read_release(registry, version) for version in versions(registry)]
    return sorted(found, key=lambda release: (release.record.finished, release.version))


def read_champion(registry: str | Path | Location) -> Champion | None:
    """What is in use; None if nothing is yet."""
    return _champion(_pointer(registry), registry)


def promote(release: Release, instead_of: Champion | None) -> Champion:
    """Makes a release the champion, if the champion still is what it was when somebody decided so.

    Raises:
        ChangedError: it is not.
    """
    pointer = _pointer(release.registry)
    current = _champion(pointer, release.registry)
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
    return _move(release, current, pointer)


def roll_back(registry: str | Path | Location, version: str = "") -> tuple[str, Champion]:
    """Makes an earlier champion, or any other release, the champion.

    Args:
        registry: where.
        version: the release; empty: the one before the champion.

    Returns:
        The version that was in use, and the new champion.

    Raises:
        InputError: there is no such release, or none before.
        DamagedError: the release is not whole.
        ChangedError: somebody else moved the champion meanwhile.
    """
    pointer = _pointer(registry)
    current = _champion(pointer, registry)
    if current is None:
        raise InputError("There is no champion to roll back.", where=registry, fix="publish a release")
    if not version and not current.history:
        raise InputError("There was no champion before this one.", where=registry, fix="name a release: paligemma releases")
    release = read_release(registry, version or current.history[-1])
    verify_release(release)
    if release.version == current.release:
        return current.release, current
    if version:
        return current.release, _move(release, current, pointer)
    # Going back twice goes back two steps, and not to and fro.
    champion = Champion(release=release.version, tree_sha256=release.record.artifact.tree_sha256, history=current.history[:-1])
    move_pointer(parse_location(registry) / CHAMPION_FILE, champion.model_dump(), pointer.generation)
    return current.release, champion


def verify_release(release: Release) -> int:
    """Reads every file of a release and of its formats, and compares it with what was recorded.

    Returns:
        The number of files.

    Raises:
        DamagedError: names the first that is missing, altered or new.
    """
    count = verify_artifact(release.location, release.record.artifact.tree_sha256)
    for part in release.manifest.formats:
        count += verify_artifact(release_part(release.registry, release.version, part.folder), part.tree_sha256)
    return count


def verify_artifact(location: str | Path | Location, expected: str = "") -> int:
    """Reads every file of an artifact and compares it with the artifact's record.

    Args:
        location: a folder, or a `gs://` prefix.
        expected: the artifact's hash, if known from elsewhere; a record that was altered with its files does not have it.

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
    """What a manifest says of formats that are written already."""
    for folder in folders:
        location = release_part(registry, version, folder)
        path = localize(location)
        artifact = read_record(path).artifact
        record = File(path=RECORD_FILE, bytes=(path / RECORD_FILE).stat().st_size, sha256=file_sha256(path / RECORD_FILE))
        yield Format(folder=folder, tree_sha256=artifact.tree_sha256, files=[*artifact.files, record])


def _pointer(registry: str | Path | Location) -> Pointer:
    return read_pointer(parse_location(registry) / CHAMPION_FILE)


def _champion(pointer: Pointer, registry: object) -> Champion | None:
    if pointer.value is None:
        return None
    try:
        return Champion.model_validate(pointer.value)
    except ValidationError:
        raise DamagedError(f"{CHAMPION_FILE} does not name a release.", where=registry, fix="paligemma rollback") from None


def _move(release: Release, current: Champion | None, pointer: Pointer) -> Champion:
    history = [*current.history, current.release][-HISTORY:] if current else []
    champion = Champion(release=release.version, tree_sha256=release.record.artifact.tree_sha256, history=history)
    move_pointer(release.registry / CHAMPION_FILE, champion.model_dump(), pointer.generation)
    return champion
