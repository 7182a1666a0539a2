"""Brings two packages of public pictures here, through the ordinary clients, by name.

- Debian's `kgeography-data`: maps with a colour for each division, flags, and translations of every name (GPL-2+; the files
  `usr/share/doc/kgeography-data/copyright` of the package says so).
- npm's `emoji-datasource-twitter`: pictures and names of emoji (MIT; the pictures CC-BY 4.0, says its README).

Neither they nor anything made from them is committed.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)

TIMEOUT = 300  # seconds of one command; 60 MB take a few


class PackageError(Exception):
    """A package cannot be had; says which, with which command, and what that answered."""


@dataclass(frozen=True)
class Package:
    """A package of a registry.

    Attributes:
        name: as its client knows it.
        fetch: the command that writes the package's file into the working folder.
        refresh: a command that may have to run before, on a machine where nobody ran it yet.
        pattern: of the file's name.
        sha256: of the file that the checks were written against.
        is_pinned: whether the client was asked for just that version, so that another file is an error and not news.
    """

    name: str
    fetch: tuple[str, ...]
    refresh: tuple[str, ...]
    pattern: str
    sha256: str
    is_pinned: bool


GEOGRAPHY = Package(
    "kgeography-data",
    ("apt-get", "download", "-qq", "kgeography-data"),
    ("apt-get", "update", "-qq"),
    "kgeography-data_*.deb",
    "1cdaf45dea7cbf1682a05109b4e9299934f0a60ca8866fa957cf4d9dcfe3982a",
    is_pinned=False,  # a Debian release has one version of it, and the next release another
)
EMOJI = Package(
    "emoji-datasource-twitter",
    ("npm", "pack", "--silent", "emoji-datasource-twitter@16.0.0"),
    (),
    "emoji-datasource-twitter-*.tgz",
    "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
    is_pinned=True,
)


def fetch(package: Package, folder: Path) -> Path:
    """The package's file, in `folder`: the one that is there if it is the recorded one, else one that the client brings.

    Raises:
        PackageError: it cannot be had, or a pinned one is another.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob(package.pattern):
        if _sha256(path) == package.sha256:
            return path
        path.unlink()
    try:
        _call(package, package.fetch, folder)
    except PackageError:
        if not package.refresh:
            raise
        _call(package, package.refresh, folder)
        _call(package, package.fetch, folder)
    found = list(folder.glob(package.pattern))
    if len(found) != 1:
        raise PackageError(f"{_cannot(package, package.fetch)} It ended well, but left {found or 'no file'} in {folder}.")
    sha256 = _sha256(found[0])
    if sha256 != package.sha256:
        changed = (
            f"{found[0].name} has the sha256 {sha256}, not {package.sha256}, with which the real-data checks were written."
        )
        if package.is_pinned:
            raise PackageError(f"{_cannot(package, package.fetch)} {changed}")
        log.warning("%s Figures may differ.", changed)
    return found[0]


def unpack_debian(package: Path, folder: Path) -> Path:
    """What a Debian package installs, below `folder`.

    Raises:
        PackageError: `dpkg-deb` cannot unpack it.
    """
    _call(GEOGRAPHY, ("dpkg-deb", "--extract", str(package), str(folder)), folder.parent)
    return folder


def unpack_npm(package: Path, folder: Path) -> Path:
    """What is in an npm package but for its sheets of all pictures, below `folder`."""
    with tarfile.open(package) as tar:
        tar.extractall(folder, [one for one in tar.getmembers() if "/sheets" not in one.name], filter="data")
    return folder / "package"


def _call(package: Package, command: Sequence[str], folder: Path) -> None:
    if shutil.which(command[0]) is None:
        raise PackageError(f"{_cannot(package, command)} There is no program {command[0]}: install it.")
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        raise PackageError(f"{_cannot(package, command)} It did not end within {TIMEOUT} seconds.") from None
    if done.returncode:
        raise PackageError(
            f"{_cannot(package, command)} It ended with {done.returncode}:\n{(done.stderr or done.stdout).strip()}"
        )


def _cannot(package: Package, command: Sequence[str]) -> str:
    return f"The real-data checks need the package {package.name}, and `{' '.join(command)}` could not bring it."


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
