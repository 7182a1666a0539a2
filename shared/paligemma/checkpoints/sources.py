"""Where a checkpoint can come from, and how it gets to this machine: `kaggle://`, `https://`, `gs://`, a path, the package."""

from __future__ import annotations

import logging
import random
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from paligemma.checkpoints.open import resolve_embedded
from paligemma.errors import DamagedError, InputError, PaliGemmaError
from paligemma.lineage.artifact import localize
from paligemma.lineage.record import file_sha256
from paligemma.progress import WorkProgress
from paligemma.storage import cache, retry
from paligemma.storage.location import SCHEME
from paligemma.storage.space import check_space

log = logging.getLogger("paligemma.sources")

Precision = Literal["float16", "bfloat16", "float32"]
_KAGGLE_FILES = {"float16": ".f16.npz", "bfloat16": ".bf16.npz", "float32": ".npz"}
_BUFFER = 64 * 1024  # what a broken connection costs at most


def fetch_first(sources: str, sha256: str = "", precision: Precision = "float16") -> tuple[str, str]:
    """Brings the first source that can be had to this machine.

    Args:
        sources: one source, or several separated by commas, the preferred first.
        sha256: expected hash of the weight file; needed for `https://`.
        precision: which of a Kaggle model's files.

    Returns:
        The source that was had, and what `open_checkpoint` opens: a path, a `gs://` address, or `embedded:NAME`.

    Raises:
        PaliGemmaError: the last source's error, after a warning for each before.
    """
    candidates = [source.strip() for source in sources.split(",") if source.strip()]
    if not candidates:
        raise InputError("No source is given.", expected="a checkpoint, e.g. embedded:tiny")
    for source in candidates[:-1]:
        try:
            return source, _fetch(source, sha256, precision)
        except PaliGemmaError as error:
            log.warning("%s cannot be had, trying the next source: %s", redacted(source), error)
    return candidates[-1], _fetch(candidates[-1], sha256, precision)


def is_remote(source: str) -> bool:
    """Whether a source is fetched by us from elsewhere than storage that a step can name as an input."""
    return "://" in source and not source.startswith(SCHEME)


def redacted(source: str) -> str:
    """A source without what may be a secret: user, password, query and fragment of a web address."""
    if not is_remote(source):
        return source
    parts = urlsplit(source)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def verify_weights(path: Path) -> None:
    """Reads a whole npz file and compares every member with its CRC-32.

    Raises:
        DamagedError: names the member that differs.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        raise DamagedError(f"The weight file is damaged: {error}.", where=path, fix="fetch it again") from None
    if bad is not None:
        raise DamagedError("The weight file is damaged: a member's bytes do not match its checksum.", where=f"{path}, {bad}")


def _fetch(source: str, sha256: str, precision: Precision) -> str:
    if source.startswith("kaggle://"):
        return str(_from_kaggle(source, precision))
    if source.startswith(("https://", "http://")):
        return str(_from_web(source, sha256))
    if source.startswith(SCHEME):
        localize(source)
        return source
    if "://" in source:
        expected = "kaggle://, https://, gs://, a path, or embedded:tiny"
        raise InputError(f"{source!r} is not a source of checkpoints.", expected=expected)
    if not resolve_embedded(source).exists():
        raise InputError(f"There is no checkpoint file or folder {source}.", expected="an existing path")
    return source


def _from_kaggle(source: str, precision: Precision) -> Path:
    """`kaggle://owner/model/framework/variation/version[/file]`, through kagglehub and its cache."""
    import kagglehub
    from kagglehub.exceptions import KaggleApiHTTPError
    from requests import RequestException

    owner, *rest = source.removeprefix("kaggle://").split("/")
    if len(rest) not in (4, 5) or not rest[3].isdigit():
        raise InputError(
            f"{source!r} names no version of a Kaggle model.",
            expected="kaggle://owner/model/framework/variation/version, e.g. kaggle://google/paligemma/jax/paligemma-3b-pt-224/1",
        )
    model, framework, variation, version = rest[:4]
    handle = f"{owner}/{model}/{framework}/{variation}/{version}"
    name = rest[4] if len(rest) == 5 else variation + _KAGGLE_FILES[precision]
    page = f"https://www.kaggle.com/models/{owner}/{model}"
    for again in _attempts():
        try:
            path = Path(kagglehub.model_download(handle, path=name))
            try:
                verify_weights(path)
            except DamagedError:
                # kagglehub appends what a failing server says to an interrupted file, and does not check it.
                path = Path(kagglehub.model_download(handle, path=name, force_download=True))
                verify_weights(path)
            return path
        except KaggleApiHTTPError as error:
            status = getattr(error.response, "status_code", None)
            if status == 401:
                raise InputError(
                    f"Kaggle wants to know who asks for {handle}.",
                    fix="create a token at https://www.kaggle.com/settings and set KAGGLE_USERNAME and KAGGLE_KEY, or mount "
                    "it as ~/.kaggle/kaggle.json",
                ) from None
            if status == 403:
                raise InputError(
                    f"This Kaggle account may not download {handle}.",
                    fix=f"accept the model's licence at {page}, signed in as that account; then run again",
                ) from None
            if status == 404:
                raise InputError(f"Kaggle has no file {name} in {handle}.", fix=f"see {page} for versions and files") from None
            if not again:
                raise _unavailable(source, error) from None
        except (RequestException, DamagedError) as error:
            if not again:
                raise (error if isinstance(error, DamagedError) else _unavailable(source, error)) from None
    raise AssertionError("unreachable")


def _from_web(source: str, sha256: str) -> Path:
    """A file by its address and hash; an interrupted download goes on where it stopped."""
    import requests

    if not sha256:
        raise InputError(
            f"The sha256 of {redacted(source)} is not given.", expected="--sha256: nothing else says that it is the right file"
        )
    name = urlsplit(source).path.rsplit("/", 1)[-1] or "checkpoint.npz"
    path = cache.cache_folder() / "downloads" / sha256.lower() / name
    partial = path.with_name(f".{name}.partial")
    with cache.exclusive(path):
        if path.is_file() and file_sha256(path) == sha256.lower():
            return path
        for again in _attempts():
            try:
                _get(source, partial)
            except requests.HTTPError as error:
                status = error.response.status_code
                if status not in (408, 429) and status < 500:
                    raise InputError(f"{redacted(source)} cannot be had: HTTP {status}.", fix="check the address") from None
                if not again:
                    raise _unavailable(source, error) from None
                continue
            except requests.RequestException as error:
                if not again:
                    raise _unavailable(source, error) from None
                continue
            found = file_sha256(partial)
            if found == sha256.lower():
                partial.replace(path)
                return path
            partial.unlink()
            if not again:
                raise DamagedError(f"{redacted(source)} is not the expected file.", expected=f"sha256 {sha256}, found {found}")
    raise AssertionError("unreachable")


def _get(source: str, partial: Path) -> None:
    """Adds to `partial` what it lacks of the file."""
    import requests

    have = partial.stat().st_size if partial.exists() else 0
    headers = {"Range": f"bytes={have}-"} if have else {}
    with requests.get(source, headers=headers, stream=True, timeout=60) as response:
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


def _attempts(most: int = 6) -> Iterator[bool]:
    """Whether there will be another attempt, for each attempt; waits between them, with jitter."""
    for number in range(most):
        if number:
            time.sleep(random.uniform(0, min(retry.RETRY.maximum, retry.RETRY.initial * 2**number)))
        yield number + 1 < most


def _unavailable(source: str, error: Exception) -> retry.StorageUnavailableError:
    # Only the error's kind: its text may hold a signed address.
    name = type(error).__name__
    return retry.StorageUnavailableError(
        f"{redacted(source)} could not be fetched.", where=name, fix="run again; what has arrived is kept"
    )
