"""The policy of retries: which failures, for how long, and with which pauses."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Callable
from email.utils import formatdate
from types import SimpleNamespace

import pytest
import requests
import urllib3
from google.api_core import exceptions as google_exceptions
from google.auth.exceptions import DefaultCredentialsError, RefreshError, TransportError
from google.cloud.storage import retry as google_retry
from google.cloud.storage.exceptions import InvalidResponse

from paligemma import retry
from paligemma.retry import RETRYABLE, BadBytesError, is_transient, retrying, urllib3_retry, was_sent
from servers.local_http import LocalServer


class Clock:
    """Time that passes only in pauses."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.pauses = 1_000_000_000.0, list[float]()
        monkeypatch.setattr(retry.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(retry.time, "time", lambda: self.now)
        monkeypatch.setattr(retry.time, "sleep", self.sleep)
        monkeypatch.setattr(retry.random, "uniform", lambda low, high: high)  # the longest pauses

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def answered(status: int, **headers: str) -> requests.HTTPError:
    answer = requests.Response()
    answer.status_code, answer.headers = status, requests.structures.CaseInsensitiveDict(headers)
    return requests.HTTPError(response=answer)


def failing(*failures: Exception) -> Callable[[], str]:
    waiting = list(failures)

    def send() -> str:
        if waiting:
            raise waiting.pop(0)
        return "done"

    return send


CODES = [301, 400, 401, 403, 404, 408, 409, 412, 413, 416, 422, 429, 499, 500, 501, 502, 503, 504, 505, 507]
FORMS: dict[str, Callable[[int], Exception]] = {
    "requests": answered,
    "api_core": lambda code: google_exceptions.from_http_status(code, "said"),
    "storage": lambda code: InvalidResponse(SimpleNamespace(status_code=code, headers={}), "said"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("code", CODES)
def test_a_status_is_final_or_not_as_googles_own_client_has_it(code: int, form: str) -> None:
    assert is_transient(FORMS[form](code)) == (code in RETRYABLE)
    assert google_retry._should_retry(FORMS["storage"](code)) == (code in RETRYABLE)


BROKEN = [
    ConnectionResetError(),
    ConnectionRefusedError(),
    TimeoutError(),
    requests.ConnectionError(),
    requests.ConnectTimeout(),
    requests.ReadTimeout(),
    requests.exceptions.ChunkedEncodingError(),
    requests.exceptions.SSLError(),
    http.client.BadStatusLine("x"),
    http.client.IncompleteRead(b""),
    http.client.ResponseNotReady(),
    urllib3.exceptions.PoolError(None, "x"),
    urllib3.exceptions.ProtocolError("x"),
    urllib3.exceptions.SSLError("x"),
    urllib3.exceptions.ReadTimeoutError(None, "x", "y"),
    TransportError(requests.ConnectionError()),
    BadBytesError(),
]
FINAL = [
    ValueError(),
    FileNotFoundError(),
    requests.exceptions.InvalidURL(),
    requests.TooManyRedirects(),
    DefaultCredentialsError(),
    RefreshError("invalid_grant"),
]


@pytest.mark.parametrize("error", BROKEN, ids=lambda error: type(error).__name__)
def test_a_connection_that_breaks_may_be_whole_next_time(error: Exception) -> None:
    assert is_transient(error)
    assert retrying(failing(error), 10.0) == "done"


def test_what_googles_own_client_retries_we_do() -> None:
    covered = (*(type(error) for error in BROKEN), google_exceptions.GoogleAPICallError)
    assert [kind for kind in google_retry._RETRYABLE_TYPES if not any(issubclass(one, kind) for one in covered)] == [
        kind for kind in google_retry._RETRYABLE_TYPES if issubclass(kind, google_exceptions.GoogleAPICallError)
    ]
    assert set(google_retry._RETRYABLE_STATUS_CODES) == RETRYABLE


@pytest.mark.parametrize("error", FINAL, ids=lambda error: type(error).__name__)
def test_what_stays_wrong_is_not_sent_again(error: Exception, clock: Clock) -> None:
    with pytest.raises(type(error)):
        retrying(failing(error))
    assert clock.pauses == []


def test_credentials_that_say_so_are_asked_again(clock: Clock) -> None:
    assert retrying(failing(RefreshError("busy", retryable=True))) == "done"


def failure_at(url: str) -> requests.RequestException:
    with pytest.raises(requests.RequestException) as caught:
        requests.post(url, timeout=5)
    return caught.value


def test_only_what_was_never_sent_is_sent_again_if_twice_is_not_once(clock: Clock) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        refused = failure_at(f"http://127.0.0.1:{closed.getsockname()[1]}")
    with LocalServer(lambda exchange: exchange.reset()) as server:
        reset = failure_at(server.url)
    for error, sent in [
        (refused, False),
        (TransportError(refused), False),
        (ConnectionRefusedError(), False),
        (reset, True),
        (requests.ReadTimeout(), True),
        (answered(503), True),
    ]:
        assert was_sent(error) == sent
        if sent:
            with pytest.raises(type(error)):
                retrying(failing(error), idempotent=False)
        else:
            assert retrying(failing(error), idempotent=False) == "done"


def test_pauses_double_up_to_the_longest_and_end_with_the_budget(clock: Clock) -> None:
    with pytest.raises(requests.HTTPError):
        retrying(failing(*[answered(503)] * 99))
    assert clock.pauses == [0.5, 1, 2, 4, 8, 16, 32, 32, 32, 32, 32, 32, 32, 32]
    clock.pauses.clear()
    with pytest.raises(requests.HTTPError):
        retrying(failing(*[answered(503)] * 99), 10.0)
    assert clock.pauses == [0.5, 1, 2, 4]


def test_pauses_are_random_so_that_many_clients_do_not_come_back_together(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(retry.time, "sleep", pauses.append)
    for _ in range(200):
        retrying(failing(answered(503), answered(503)))
    first, second = pauses[::2], pauses[1::2]
    assert 0 <= min(first) < 0.1 < 0.4 < max(first) <= 0.5
    assert 0 <= min(second) < 0.2 < 0.8 < max(second) <= 1.0


def test_a_service_is_given_the_time_that_it_asks_for(clock: Clock) -> None:
    at = formatdate(clock.now + 90, usegmt=True)
    said = ["40", at, formatdate(clock.now - 90, usegmt=True), "soon", "-3", "٣", ""]
    retrying(failing(*[answered(429, **{"Retry-After": one}) for one in said]))
    assert clock.pauses[:2] == [40, 50]  # the date is 90 s after the beginning
    assert clock.pauses[2:] == [2, 4, 8, 16, 32]


def test_a_service_that_asks_for_more_than_the_budget_is_left_at_once(clock: Clock) -> None:
    with pytest.raises(requests.HTTPError):
        retrying(failing(answered(503, **{"retry-after": "3600"})))
    assert clock.pauses == []


def test_a_long_transfer_that_gets_further_begins_its_budget_anew(clock: Clock) -> None:
    arrived = 0

    def broken_off() -> None:
        nonlocal arrived
        clock.now += 100  # longer than the budget
        arrived = min(arrived + 10, 50)
        raise requests.exceptions.ChunkedEncodingError

    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        retrying(broken_off, 60.0, progress=lambda: arrived)
    assert clock.pauses == [0.5] * 5  # and the sixth brought nothing


def test_a_client_of_urllib3_keeps_the_same_policy() -> None:
    tries = list[str]()

    def serve(exchange) -> None:
        tries.append(exchange.command)
        exchange.answer(int(exchange.target[1:]), [], b"")

    with LocalServer(serve) as server, urllib3.PoolManager(retries=urllib3_retry(1.0, final={500})) as pool:
        for method, code in [("GET", 503), ("GET", 429), ("GET", 408), ("GET", 500), ("GET", 404), ("POST", 503)]:
            tries.clear()
            assert pool.request(method, f"{server.url}/{code}").status == code
            assert len(tries) == (2 if method == "GET" and code in RETRYABLE - {500} else 1), (method, code)
    assert [urllib3_retry(seconds).total for seconds in (0.4, 1, 10, 300)] == [0, 1, 4, 14]
