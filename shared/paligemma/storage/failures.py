"""Requests to Google Cloud Storage, and what their failures mean to a user.

Every user error names the bucket, object, operation and, if one is missing, the permission.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from paligemma import retry
from paligemma.errors import DamagedError, InputError, PaliGemmaError
from paligemma.retry import BadBytesError, is_transient, retrying, status_of
from paligemma.storage.location import GcsLocation

T = TypeVar("T")

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


def call(operation: str, location: GcsLocation, function: Callable[[], T]) -> T:
    """Runs one request, again while that can help, and turns its failure into our own error."""
    try:
        return retrying(function)
    except PaliGemmaError:
        raise
    except Exception as error:  # unknown errors propagate unchanged
        over = is_transient(error) or isinstance(error, google_exceptions().RetryError)
        raise (_given_up if over else _translated)(operation, location, error) from None


def _given_up(operation: str, location: GcsLocation, error: Exception) -> PaliGemmaError:
    if isinstance(error, BadBytesError):
        return DamagedError(f"The bytes of {location} never matched their checksum: {error}.", fix="run again")
    return StorageUnavailableError(
        f"Google Cloud Storage did not answer: {operation} {location} failed for {retry.RETRY.timeout:.0f} s.",
        where=f"{type(error).__name__}: {error}",
        fix="run the same command again; what is done is kept",
    )


def _translated(operation: str, location: GcsLocation, error: Exception) -> Exception:
    import google.auth.exceptions

    code = status_of(error)
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

    policy = retry.RETRY
    return Retry(is_transient, policy.initial, policy.maximum, timeout=policy.timeout)


def google_exceptions():
    """The Google client's exceptions, imported on first use."""
    from google.api_core import exceptions

    return exceptions
