"""JSON over HTTP: sends requests by the policy of `paligemma.retry`, and turns failures into our own errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from paligemma.errors import PaliGemmaError
from paligemma.foreign_json import parse_json
from paligemma.retry import RETRYABLE, retrying, status_of

if TYPE_CHECKING:
    import requests

SECONDS = 10.0
"""Budget of a request, which a person or a step waits for."""


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
            again: whether two requests do what one does.
            made: the answer to return if the first request made the resource, as the 409 of a second one shows.
            query: query parameters; empty ones are left out.

        Raises:
            BackendError: the service refused.
            BackendUnavailableError: there was no answer.
        """
        from google.auth.exceptions import GoogleAuthError
        from requests import RequestException

        given = {key: value for key, value in query.items() if value}
        url = f"{self.base}{path}" + (f"?{urlencode(given)}" if given else "")
        sent = 0

        def send() -> requests.Response:
            nonlocal sent
            sent += 1
            answer = self.send(method, url, json=body, timeout=60)
            if answer.status_code in RETRYABLE:
                answer.raise_for_status()
            return answer

        try:
            answer = retrying(send, SECONDS, idempotent=again)
        except (RequestException, GoogleAuthError) as error:
            status = status_of(error)
            why = f"answered {status}" if status else f"did not answer: {type(error).__name__}"
            raise BackendUnavailableError(f"{self.name} {why}.", where=self.base, fix="run the same command later") from None
        if answer.status_code == 409 and made is not None and sent > 1:
            return dict(made)
        if answer.status_code >= 300:
            raise self._refusal(answer, path)
        return self._read(answer) if answer.content else {}

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
