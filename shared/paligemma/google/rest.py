"""JSON over HTTP: retries a service's failures if a retry cannot do anything twice, and turns the rest into our own errors."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from paligemma.errors import PaliGemmaError
from paligemma.foreign_json import parse_json

if TYPE_CHECKING:
    import requests

_TRIES = 4
_TRANSIENT = (429, 500, 502, 503, 504)


class BackendError(PaliGemmaError):
    """The service refused a request, or does not know the named resource; `status` is the HTTP status."""

    exit_code = 2
    status = 0


class BackendUnavailableError(PaliGemmaError):
    """The service did not answer, or answered only with its own failures. The same command continues later."""

    exit_code = 4


@dataclass(frozen=True)
class Service:
    """A service and how to reach it.

    Attributes:
        name: its name, for messages.
        base: base address of all paths, with a slash at the end.
        send: sends a request, like `requests.Session.request`.
        access: advice if the service denies access.
        said: takes the text of a refusal from its JSON.
    """

    name: str
    base: str
    send: Callable[..., requests.Response]
    access: str
    said: Callable[[dict], str]

    def call(
        self,
        method: str,
        path: str,
        body: Mapping | None = None,
        *,
        again: bool,
        made: Mapping | None = None,
        **query: str,
    ) -> dict:
        """Sends one request.

        Args:
            method: HTTP method.
            path: path below `base`.
            body: JSON body, if any.
            again: whether a retry is safe, i.e. cannot do anything twice.
            made: the answer to return if a retry finds (by 409) that the first try, whose answer was lost, made the resource.
            query: query parameters; empty ones are left out.

        Raises:
            BackendError: the service refused.
            BackendUnavailableError: there was no answer.
        """
        from google.auth.exceptions import GoogleAuthError
        from requests import RequestException

        given = {key: value for key, value in query.items() if value}
        url = f"{self.base}{path}" + (f"?{urlencode(given)}" if given else "")
        tries, why = _TRIES if again else 1, ""
        for left in reversed(range(tries)):
            if left < tries - 1:
                time.sleep(0.2 * 2 ** (tries - 1 - left))
            try:
                answer = self.send(method, url, json=body, timeout=60)
            except (RequestException, GoogleAuthError) as error:
                why = f"{self.name} did not answer: {type(error).__name__}."
                continue
            if answer.status_code < 300:
                return self._read(answer) if answer.content else {}
            if answer.status_code == 409 and made is not None and left < tries - 1:
                return dict(made)
            if answer.status_code not in _TRANSIENT:
                raise self._refusal(answer, path)
            why = f"{self.name} answered {answer.status_code}."
        raise BackendUnavailableError(why, where=self.base, fix="run the same command later")

    def _read(self, answer: requests.Response) -> dict:
        what, fix = f"The answer of {self.name}", "see whether something else answers there, such as a page to log in at"
        return parse_json(answer.content, self.base, what, error=BackendError, fix=fix)

    def _refusal(self, answer: requests.Response, path: str) -> BackendError:
        try:
            said = self.said(self._read(answer))
        except (BackendError, LookupError, TypeError, AttributeError):
            said = answer.reason
        fix = self.access if answer.status_code in (401, 403) else None
        error = BackendError(f"{self.name} refused ({answer.status_code}): {said}", where=path, fix=fix)
        error.status = answer.status_code
        return error
