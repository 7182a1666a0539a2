"""Requests to Google Cloud Storage: retries while that can help, and turns failures into our own errors.

Every user error names the bucket, object, operation and, if one is missing, the permission.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from paligemma.errors import DamagedError, InputError, PaliGemmaError
from paligemma.storage.location import GcsLocation

T = TypeVar("T")

_TRANSIENT_CODES = frozenset({408, 429, 500, 502, 503, 504})
_PERMISSIONS = {
    "read": "storage.objects.get (role Storage Object Viewer)",
    "list": "storage.objects.list (role Storage Object Viewer)",
    "write": "storage.objects.create, and storage.objects.delete to replace (role Storage Object User)",
    "delete": "storage.objects.delete (role Storage Object User)",
}


class StorageUnavailableError(PaliGemmaError):
    """The service did not answer in the time allowed. Nothing is half done; running again continues."""

    exit_code = 4


class ChangedError(PaliGemmaError):
    """An object is not at the generation it was expected at: somebody else wrote it."""

    exit_code = 2


@dataclass
class RetryPolicy:
    """When to retry: exponential waits with full jitter, from `initial` to `maximum` seconds, for `timeout` seconds in all."""

    initial: float = 0.5
    maximum: float = 32.0
    timeout: float = 300.0


RETRY = RetryPolicy()
"""The policy in force."""


class BadBytesError(Exception):
    """Bytes that do not match their checksum; worth another try."""


def attempts(most: int = 6) -> Iterator[bool]:
    """Yields, for each attempt, whether another will follow; waits between attempts, with jitter."""
    for number in range(most):
        if number:
            time.sleep(random.uniform(0, min(RETRY.maximum, RETRY.initial * 2**number)))
        yield number + 1 < most


def call(operation: str, location: GcsLocation, function: Callable[[], T]) -> T:
    """Runs one request; retries transient failures, and turns the rest into our own errors."""
    deadline, wait = time.monotonic() + RETRY.timeout, RETRY.initial
    while True:
        try:
            return function()
        except PaliGemmaError:
            raise
        except Exception as error:  # unknown errors propagate unchanged
            if isinstance(error, google_exceptions().RetryError):
                raise _given_up(operation, location, error) from None
            if not _is_transient(error):
                raise _translated(operation, location, error) from None
            pause = max(random.uniform(0, wait), _retry_after(error))
            if time.monotonic() + pause > deadline:
                raise _given_up(operation, location, error) from None
            time.sleep(pause)
            wait = min(2 * wait, RETRY.maximum)


def _is_transient(error: Exception) -> bool:
    import google.auth.exceptions
    import requests
    import urllib3.exceptions

    broken = (
        requests.ConnectionError,
        requests.Timeout,
        requests.exceptions.ChunkedEncodingError,
        urllib3.exceptions.HTTPError,  # requests does not wrap errors of a raw body that breaks off
        google.auth.exceptions.TransportError,
        ConnectionError,
        BadBytesError,
    )
    return isinstance(error, broken) or _code(error) in _TRANSIENT_CODES


def _code(error: Exception) -> int | None:
    code = getattr(error, "code", None)
    response = getattr(error, "response", None)
    return code if isinstance(code, int) else getattr(response, "status_code", None)


def _retry_after(error: Exception) -> float:
    headers = getattr(getattr(error, "response", None), "headers", {})
    try:
        return min(float(headers.get("Retry-After", 0)), RETRY.maximum)
    except ValueError:  # an HTTP date; our own waits suffice
        return 0.0


def _given_up(operation: str, location: GcsLocation, error: Exception) -> PaliGemmaError:
    if isinstance(error, BadBytesError):
        return DamagedError(f"The bytes of {location} never matched their checksum: {error}.", fix="run again")
    return StorageUnavailableError(
        f"Google Cloud Storage did not answer: {operation} {location} failed for {RETRY.timeout:.0f} s.",
        where=f"{type(error).__name__}: {error}",
        fix="run the same command again; what is done is kept",
    )


def _translated(operation: str, location: GcsLocation, error: Exception) -> Exception:
    import google.auth.exceptions

    code = _code(error)
    if isinstance(error, google.auth.exceptions.GoogleAuthError) or code == 401:
        return InputError(
            f"There are no Google credentials to {operation} {location} with.",
            where=str(error).splitlines()[0],
            fix="run `gcloud auth application-default login`, or give the pod or job a service account",
        )
    if code == 403:
        return InputError(
            f"Not allowed to {operation} {location}.",
            expected=f"the permission {_PERMISSIONS[operation]} on bucket {location.bucket}",
            fix="grant it to the account this runs as",
        )
    if code == 404:
        return InputError(
            f"There is no bucket {location.bucket}, or no object {location.name} in it.", where=f"{operation} {location}"
        )
    if code is not None and 400 <= code < 500:
        return InputError(f"Google Cloud Storage refused to {operation} {location}.", where=str(error))
    return error


def chunk_retry():
    """The same policy as a Google client object, for the chunks of a resumable upload."""
    from google.api_core.retry import Retry

    return Retry(_is_transient, RETRY.initial, RETRY.maximum, timeout=RETRY.timeout)


def google_exceptions():
    """The Google client's exceptions, imported on first use."""
    from google.api_core import exceptions

    return exceptions
