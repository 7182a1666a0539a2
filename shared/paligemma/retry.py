"""When a request is sent again: one set of status codes, of broken connections and of pauses, for every service.

A caller says for how many seconds it may try, and whether a request that arrives twice does what one does. What the last
failure means to a user is the caller's to say.

- Which failures: those that Google calls retryable (https://cloud.google.com/storage/docs/retry-strategy#retryable).
- How long to wait: exponential backoff with full jitter, and at least what the service asks for in `Retry-After`
  (RFC 9110, 10.2.3).
- A request that is not idempotent is sent again only if it was never sent (RFC 9110, 9.2.2).
"""

from __future__ import annotations

import functools
import http.client
import math
import random
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from urllib3.util import Retry

T = TypeVar("T")

RETRYABLE = frozenset({408, 429, 500, 502, 503, 504})
"""Status codes that may be another in a moment."""


@dataclass(frozen=True)
class RetryPolicy:
    """How to wait: from `initial` to `maximum` seconds at a time, and `timeout` seconds in all, unless a caller has less."""

    initial: float = 0.5
    maximum: float = 32.0
    timeout: float = 300.0


RETRY = RetryPolicy()
"""The policy in force."""


class BadBytesError(Exception):
    """Bytes that do not match their checksum; worth another try."""


def retrying(
    send: Callable[[], T],
    seconds: float = math.inf,
    *,
    idempotent: bool = True,
    progress: Callable[[], int] = lambda: 0,
) -> T:
    """Sends a request, and sends it again while that can help. The last failure propagates unchanged.

    Args:
        send: sends the request once; raises if the answer's status is in `RETRYABLE`.
        seconds: budget, if less than the policy's. Nothing is sent after it.
        idempotent: whether two requests do what one does.
        progress: bytes that have arrived of a long transfer. Whenever there are more than ever, the budget begins anew.
    """
    seconds = min(seconds, RETRY.timeout)
    most, began, longest = progress(), time.monotonic(), RETRY.initial
    while True:
        try:
            return send()
        except Exception as error:  # each client has exceptions of its own; what is not transient propagates unchanged
            if not is_transient(error) or (was_sent(error) and not idempotent):
                raise
            if (reached := progress()) > most:
                most, began, longest = reached, time.monotonic(), RETRY.initial
            pause = max(random.uniform(0, longest), retry_after(error))
            if time.monotonic() - began + pause > seconds:
                raise
        time.sleep(pause)
        longest = min(2 * longest, RETRY.maximum)


def is_transient(error: Exception) -> bool:
    """Whether the same request may succeed later."""
    from google.auth.exceptions import GoogleAuthError

    if isinstance(error, GoogleAuthError) and error.retryable:
        return True
    return isinstance(error, _connection_failures()) or status_of(error) in RETRYABLE


@functools.cache
def _connection_failures() -> tuple[type[Exception], ...]:
    """What the clients raise if an answer does not come, or breaks off."""
    import google.auth.exceptions
    import requests
    import urllib3.exceptions

    return (
        requests.ConnectionError,
        requests.Timeout,
        requests.exceptions.ChunkedEncodingError,
        urllib3.exceptions.HTTPError,  # requests does not wrap errors of a raw body that breaks off
        google.auth.exceptions.TransportError,
        http.client.HTTPException,
        ConnectionError,
        TimeoutError,
        BadBytesError,
    )


def status_of(error: Exception) -> int | None:
    """The HTTP status in an exception of `requests` or of a Google client; None if there was no answer."""
    code = getattr(error, "code", None)
    return code if isinstance(code, int) else getattr(getattr(error, "response", None), "status_code", None)


def was_sent(error: Exception) -> bool:
    """Whether the service may have the request: it has not if no connection came about."""
    from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

    if isinstance(error, NewConnectionError | ConnectTimeoutError | ConnectionRefusedError):
        return False
    cause = getattr(error, "reason", None) or (error.args[0] if error.args else None)  # what a client wrapped
    return was_sent(cause) if isinstance(cause, Exception) else True


def retry_after(error: Exception) -> float:
    """Seconds that the answer asks to wait: a number, or a date in the future; 0 if it does not say."""
    said = getattr(getattr(error, "response", None), "headers", {}).get("Retry-After", "")
    if said.isascii() and said.isdigit():
        return float(said)
    try:
        return max(0.0, parsedate_to_datetime(said).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0


def urllib3_retry(seconds: float, final: Collection[int] = ()) -> Retry:
    """The same policy for a client that sends through urllib3, which counts requests, and tells idempotent methods itself.

    Args:
        seconds: budget.
        final: codes that this service also gives for good.
    """
    from urllib3.util import Retry

    count, waited = 0, 0.0
    while (waited := waited + min(RETRY.initial * 2**count, RETRY.maximum)) <= min(seconds, RETRY.timeout):
        count += 1
    return Retry(
        total=count,
        status_forcelist=RETRYABLE - {*final},
        raise_on_status=False,
        backoff_factor=RETRY.initial / 2,
        backoff_jitter=RETRY.initial / 2,
        backoff_max=RETRY.maximum,
    )
