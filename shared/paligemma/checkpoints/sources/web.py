"""Files on the web, by address and hash."""

from __future__ import annotations

from pathlib import Path

from paligemma.artifacts.record import file_sha256
from paligemma.checkpoints.sources.remote import redacted, unavailable
from paligemma.errors import DamagedError, InputError
from paligemma.progress import WorkProgress
from paligemma.safe_names import parse_sha256, relative_path_fault
from paligemma.storage import cache
from paligemma.storage.atomic import expect_file, hidden_beside
from paligemma.storage.disk_space import check_space
from paligemma.storage.retry import attempts
from paligemma.web_address import WebAddress, parse_web_address

_BUFFER = 64 * 1024  # what a broken connection costs at most


def parse_source(source: str, sha256: str) -> WebAddress:
    """The address of a file whose hash is known.

    Raises:
        InputError: it is none, or its hash is not given.
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
    """A file by its address and hash; an interrupted download goes on where it stopped."""
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
        for again in attempts():
            try:
                _get(address, partial)
            except requests.HTTPError as error:
                status = error.response.status_code
                if status not in (408, 429) and status < 500:
                    raise InputError(f"{redacted(source)} cannot be had: HTTP {status}.", fix="check the address") from None
                if not again:
                    raise unavailable(source, error) from None
                continue
            except requests.RequestException as error:
                if not again:
                    raise unavailable(source, error) from None
                continue
            found = file_sha256(partial)
            if found == sha256:
                partial.replace(path)
                return path
            partial.unlink()
            if not again:
                raise DamagedError(f"{redacted(source)} is not the expected file.", expected=f"sha256 {sha256}, found {found}")
    raise AssertionError("unreachable")


def _get(address: WebAddress, partial: Path) -> None:
    """Adds to `partial` what it lacks of the file."""
    from paligemma.web_client import get_file

    have = partial.stat().st_size if partial.exists() else 0
    headers = {"Range": f"bytes={have}-"} if have else {}
    with get_file(address, headers, timeout=60) as response:
        if response.status_code == 416:  # there is nothing after what we have
            return
        response.raise_for_status()
        goes_on = response.status_code == 206
        check_space(partial.parent, int(response.headers.get("Content-Length", 0)))
        total = int(response.headers.get("Content-Length", 0)) + (have if goes_on else 0)
        with partial.open("ab" if goes_on else "wb") as file, WorkProgress("fetching", "bytes", total or None) as progress:
            for piece in response.iter_content(_BUFFER):
                file.write(piece)
                progress.advance(len(piece))
