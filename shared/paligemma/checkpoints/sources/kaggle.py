"""Fetches Kaggle models through kagglehub and its cache. Credentials come from the environment, a file or Secret Manager."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from paligemma.checkpoints.npz import verify_weights
from paligemma.checkpoints.sources.remote import DOWNLOADS, unavailable
from paligemma.choices import StoredDtype
from paligemma.errors import DamagedError, InputError, one_of
from paligemma.foreign_json import SMALL_BYTES, parse_json
from paligemma.google.secret_manager import read_secret, secret_and_project
from paligemma.retry import retrying, status_of
from paligemma.storage.disk_space import explain_full_disk

_SECONDS = 60.0  # without a byte
_FILES: dict[StoredDtype, str] = {"float16": ".f16.npz", "bfloat16": ".bf16.npz", "float32": ".npz"}

SECRET_VARIABLE = "PALIGEMMA_KAGGLE_SECRET"
"""Name of a secret version whose payload is a kaggle.json."""


def parse_source(source: str, precision: StoredDtype) -> tuple[str, str]:
    """The handle of a model version, and the name of its file.

    Raises:
        InputError: the source names no version, or the precision is none.
    """
    owner, *rest = source.removeprefix("kaggle://").split("/")
    if len(rest) not in (4, 5) or not rest[3].isdigit():
        raise InputError(
            f"{source!r} names no version of a Kaggle model.",
            expected="kaggle://owner/model/framework/variation/version, e.g. kaggle://google/paligemma/jax/paligemma-3b-pt-224/1",
        )
    model, framework, variation, version = rest[:4]
    name = rest[4] if len(rest) == 5 else variation + _FILES[one_of(precision, list(_FILES), "--precision")]
    return f"{owner}/{model}/{framework}/{variation}/{version}", name


def fetch(source: str, precision: StoredDtype) -> Path:
    """Fetches `kaggle://owner/model/framework/variation/version[/file]`, and returns the file in kagglehub's cache."""
    from kagglehub.config import get_cache_folder
    from kagglehub.exceptions import DataCorruptionError, KaggleApiHTTPError
    from requests import RequestException

    handle, name = parse_source(source, precision)
    with _credentials(), explain_full_disk(Path(get_cache_folder())):
        try:
            for left in reversed(range(DOWNLOADS)):
                try:
                    path = _download(handle, name, anew=left < DOWNLOADS - 1)
                    verify_weights(path)
                    return path
                except (DamagedError, DataCorruptionError) as error:
                    # kagglehub appends a failing server's answer to an interrupted file; not every answer has a hash to notice.
                    if not left:
                        what = error.what if isinstance(error, DamagedError) else str(error)
                        raise DamagedError(f"{source} never arrived whole: {what}", fix="run again") from None
        except (KaggleApiHTTPError, RequestException) as error:
            raise _refusal(status_of(error), handle, name) or unavailable(source, error) from None
    raise AssertionError("unreachable")


def _download(handle: str, name: str, anew: bool = False) -> Path:
    """The file in kagglehub's cache. Another attempt resumes where the last one broke off."""
    import kagglehub
    from kagglehub.cache import Cache
    from kagglehub.handle import parse_model_handle

    partial = Path(Cache().get_path(parse_model_handle(handle), name))
    return Path(
        retrying(
            lambda: kagglehub.model_download(handle, path=name, force_download=anew),
            _SECONDS,
            progress=lambda: partial.stat().st_size if partial.exists() else 0,
        )
    )


def _refusal(status: int | None, handle: str, name: str) -> InputError | None:
    """The error that tells a user what to do about a status; None if a retry may help."""
    page = "https://www.kaggle.com/models/" + "/".join(handle.split("/")[:2])
    match status:
        case 401:
            return InputError(
                f"Kaggle requires credentials for {handle}.",
                fix="create a token at https://www.kaggle.com/settings and set KAGGLE_USERNAME and KAGGLE_KEY, or mount it as "
                f"~/.kaggle/kaggle.json, or keep it in Secret Manager and name it in {SECRET_VARIABLE}",
            )
        case 403:
            return InputError(
                f"This Kaggle account may not download {handle}.",
                fix=f"accept the model's licence at {page}, signed in as that account; then run again",
            )
        case 404:
            return InputError(f"Kaggle has no file {name} in {handle}.", fix=f"see {page} for versions and files")
    return None


@contextmanager
def _credentials() -> Iterator[None]:
    """Gives kagglehub the credentials from Secret Manager, if it finds none in the environment or a file.

    They stay in this process's memory: child processes would inherit the environment.
    """
    from kagglehub import config

    try:
        found = config.get_kaggle_credentials()
    except ValueError as error:  # its text names the file and what it lacks
        raise InputError(f"{error}.", fix="download it again from https://www.kaggle.com/settings") from None
    name = os.environ.get(SECRET_VARIABLE)
    if found or not name:
        yield
        return
    config.set_kaggle_credentials(*_parse_secret(name, read_secret(name)))
    try:
        yield
    finally:
        config.clear_kaggle_credentials()


def _parse_secret(name: str, payload: bytes) -> tuple[str, str]:
    """User name and key from a kaggle.json."""
    try:
        loaded = parse_json(payload, name, "The secret", most=SMALL_BYTES)
        username, key = loaded["username"].strip(), loaded["key"].strip()
    except (DamagedError, LookupError, AttributeError):  # its text may quote the secret
        username = key = ""
    if not (username and key):
        raise InputError(
            f"The secret {name} is not a kaggle.json.",
            expected='{"username": "...", "key": "..."}',
            fix="download one from https://www.kaggle.com/settings, then: "
            f"gcloud secrets versions add {secret_and_project(name)} --data-file kaggle.json",
        )
    return username, key
