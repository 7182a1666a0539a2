"""Fetches files from the web, by address and hash."""

from __future__ import annotations

from pathlib import Path

from paligemma.artifacts.record import file_sha256
from paligemma.checkpoints.sources.remote import DOWNLOADS, redacted, unavailable
from paligemma.errors import DamagedError, InputError
from paligemma.progress import WorkProgress
from paligemma.retry import is_transient, retrying, status_of
from paligemma.safe_names import parse_sha256, relative_path_fault
from paligemma.storage import cache
from paligemma.storage.atomic import expect_file, hidden_beside
from paligemma.storage.disk_space import check_space
from paligemma.web_address import WebAddress, parse_web_address
from paligemma.web_client import get_file

_SECONDS = 60.0  # without a byte
_BUFFER = 64 * 1024  # bytes that a broken connection costs at most


def parse_source(source: str, sha256: str) -> WebAddress:
    """Parses the address of a file with a known hash.

    Raises:
        InputError: it is not a web address, or its hash is missing.
    """
    address = parse_web_address(source, "The source")
    if not sha256:
        raise InputError(
            f"The sha256 of {redacted(source)} is not given.",
            where="--sha256",
            expected="64 hexadecimal digits: nothing else says that it is the right file",
            fix="pass --sha256",
        )
    return address


def fetch(source: str, sha256: str) -> Path:
    """Downloads a file by address and hash; resumes an interrupted download."""
    import requests

    address = parse_source(source, sha256)
    sha256 = parse_sha256(sha256.lower(), "The sha256", where="--sha256")
    name = "checkpoint.npz" if relative_path_fault(address.name) else address.name
    path = cache.cache_folder() / "downloads" / sha256 / name
    partial = hidden_beside(path, ".partial")
    with cache.exclusive(path):
        for left in (path, partial):
            expect_file(left)
        if path.is_file() and file_sha256(path) == sha256:
            return path
        try:
            for left in reversed(range(DOWNLOADS)):
                retrying(lambda: _get(address, partial), _SECONDS, progress=lambda: _size(partial))
                found = file_sha256(partial)
                if found == sha256:
                    partial.replace(path)
                    return path
                partial.unlink()
                if not left:
                    raise DamagedError(
                        f"{redacted(source)} is not the expected file.", expected=f"sha256 {sha256}, found {found}"
                    )
        except requests.RequestException as error:
            if (status := status_of(error)) and not is_transient(error):
                raise InputError(f"{redacted(source)} is not available: HTTP {status}.", fix="check the address") from None
            raise unavailable(source, error) from None
    raise AssertionError("unreachable")


def _size(partial: Path) -> int:
    return partial.stat().st_size if partial.exists() else 0


def _get(address: WebAddress, partial: Path) -> None:
    """Appends the missing bytes to `partial`."""
    have = _size(partial)
    headers = {"Range": f"bytes={have}-"} if have else {}
    with get_file(address, headers, timeout=60) as response:
        if response.status_code == 416:  # the server has nothing beyond our bytes
            return
        response.raise_for_status()
        goes_on = response.status_code == 206
        check_space(partial.parent, int(response.headers.get("Content-Length", 0)))
        total = int(response.headers.get("Content-Length", 0)) + (have if goes_on else 0)
        with partial.open("ab" if goes_on else "wb") as file, WorkProgress("fetching", "bytes", total or None) as progress:
            for piece in response.iter_content(_BUFFER):
                file.write(piece)
                progress.advance(len(piece))
