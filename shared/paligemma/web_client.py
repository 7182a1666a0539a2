"""Requests to addresses that somebody else may have chosen: looks up the host once, checks the result, and connects to it.

A second lookup, as clients do by themselves, may give another address than the checked one. With a proxy from the environment,
the proxy looks up names, and only numeric hosts are checked here.
"""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.cookiejar import DefaultCookiePolicy
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from requests.utils import DEFAULT_CA_BUNDLE_PATH, get_environ_proxies
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from paligemma.errors import InputError
from paligemma.retry import was_sent
from paligemma.web_address import Ip, RefusedError, WebAddress, is_loopback, is_nobodys, is_public, parse_web_address

HOSTS_VARIABLE = "PALIGEMMA_PRIVATE_HOSTS"
"""Private hosts, separated by commas, from which files may be fetched."""

_MOST_REDIRECTS = 5
_MOST_OPEN = 4  # connections that a thread keeps
_REST = 16 * 1024  # bytes of an answer that nobody wanted, which are read all the same
_MOST_ADDRESSES = 8  # of one host; a name may have hundreds, of which none answers
_REDIRECTS = (301, 302, 303, 307, 308)

Rule = Callable[[WebAddress, Ip | None], str]
"""Why a request to a web address at a network address (None: not looked up) is refused; empty if it is allowed."""


def fetch_rule(address: WebAddress, ip: Ip | None) -> str:
    """Files come over https from the internet. Hosts in `HOSTS_VARIABLE` may be private, or use http on this machine."""
    named = address.host in {name.strip().lower() for name in os.environ.get(HOSTS_VARIABLE, "").split(",")}
    if address.scheme != "https" and not (named and _is_here(address, ip)):
        return f"{address.host} is not contacted over https"
    if ip is not None and is_nobodys(ip):
        return f"{address.host} is link-local, or nobody's address ({ip})"
    if ip is not None and not is_public(ip) and not named:
        return f"{address.host} is not on the internet ({ip}); ${HOSTS_VARIABLE} names the hosts that need not be"
    return ""


def webhook_rule(address: WebAddress, ip: Ip | None) -> str:
    """A message may go over https to any host that is not link-local, or over http to this machine. Reasons omit the host."""
    if address.scheme != "https" and not _is_here(address, ip):
        return "it is neither https nor this machine"
    return "it is link-local, or nobody's" if ip is not None and is_nobodys(ip) else ""


class TooSlowError(requests.RequestException):
    """An answer was not there in the time allowed for all of it. Another try would take as long."""


@contextmanager
def request(
    method: str,
    address: WebAddress,
    rule: Rule,
    headers: Mapping[str, str] | None = None,
    *,
    seconds: float | None = None,
    kept: Connections | None = None,
    **options: Any,
) -> Iterator[requests.Response]:
    """Sends one request to a checked network address. Does not follow redirects.

    Args:
        method: the HTTP method.
        address: where to.
        rule: what may be contacted.
        headers: of the request.
        seconds: time for all of it, until the block ends. A timeout of the client counts from one byte to the next, and who
            sends a byte now and then would be listened to for days. None: no limit.
        kept: connections to go on with, of the same rule; this one is added.
        options: for `requests`.

    Raises:
        RefusedError: the rule refuses the address.
        TooSlowError: it took longer than `seconds`.
        requests.RequestException: the request could not be sent, or had no answer.
    """
    failure = requests.ConnectionError("the host is not found")
    with _Watch(seconds) as watch:
        for session in _sessions(address, rule, kept):
            with contextlib.ExitStack() as left:
                left.callback(session.close)
                watch.expect_time()
                adapter = session.get_adapter(address.url)
                assert isinstance(adapter, _Watched)
                adapter.see = watch.see
                try:
                    response = session.request(method, address.url, headers=headers, allow_redirects=False, **options)
                except requests.ConnectionError as error:
                    failure = error
                    if was_sent(error):
                        raise
                    continue
                with response:
                    yield response
                    if kept is not None and _is_over(response):
                        left.pop_all()
                        kept.put(address, session)
                return
    raise failure


def _is_over(response: requests.Response) -> bool:
    """Whether an answer has been read to its end, or nearly: only then its connection takes another request."""
    try:
        return len(response.raw.read(_REST, decode_content=False)) < _REST
    except Exception:  # whatever breaks here, the answer has been used
        return False


class Connections:
    """Connections that stay open after their answers, for the next requests of one thread, which need no handshake then.

    They lead where they were checked to lead, whatever the host's name has become since.
    """

    def __init__(self) -> None:
        self._sessions: dict[tuple[str, str, int], requests.Session] = {}

    def pop(self, address: WebAddress) -> requests.Session | None:
        """The session of a host, which is no longer here; None if there is none."""
        return self._sessions.pop((address.scheme, address.host, address.port), None)

    def put(self, address: WebAddress, session: requests.Session) -> None:
        """Keeps the session of a host, and closes the one that was used longest ago if there are many."""
        self._sessions[address.scheme, address.host, address.port] = session
        if len(self._sessions) > _MOST_OPEN:
            self._sessions.pop(next(iter(self._sessions))).close()

    def close(self) -> None:
        """Closes all."""
        while self._sessions:
            self._sessions.popitem()[1].close()


def _sessions(address: WebAddress, rule: Rule, kept: Connections | None) -> Iterator[requests.Session]:
    """Sessions to send a request by: one that is kept, and then one for each network address."""
    if kept is not None and (session := kept.pop(address)) is not None:
        yield session
    for ip in checked_addresses(address, rule)[:_MOST_ADDRESSES]:
        session = requests.Session()
        session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))  # an answer depends on its request alone
        if ip is None:
            session.mount(f"{address.scheme}://", _Watched())
        else:
            session.trust_env = False  # it would look for a proxy again
            session.verify = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or True
            session.mount(f"{address.scheme}://", _Pinned(ip, session.verify))
        yield session


def checked_addresses(address: WebAddress, rule: Rule) -> list[Ip | None]:
    """The network addresses to connect to, in order of preference. None stands for a proxy from the environment.

    Raises:
        RefusedError: the rule refuses an address.
        requests.ConnectionError: the host has no address.
    """
    proxies = get_environ_proxies(address.url)
    literal = _literal(address.host)
    _confirm(rule, address, literal)
    if proxies.get(address.scheme) or proxies.get("all"):
        return [None]
    found = [literal] if literal else lookup(address)
    for ip in found:
        _confirm(rule, address, ip)
    return [*found]


def _confirm(rule: Rule, address: WebAddress, ip: Ip | None) -> None:
    if why := rule(address, ip):
        raise RefusedError(f"Nothing is sent to this address: {why}.", expected="https:// to a host on the internet")


def _is_here(address: WebAddress, ip: Ip | None) -> bool:
    return address.host == "localhost" if ip is None else is_loopback(ip)


@contextmanager
def get_file(
    address: WebAddress,
    headers: Mapping[str, str],
    timeout: float,
    seconds: float | None = None,
    kept: Connections | None = None,
) -> Iterator[requests.Response]:
    """Requests a file, and follows redirects after checking each like the first address. Does not read the body yet.

    Args:
        address: where it is.
        headers: of each request.
        timeout: seconds without a byte.
        seconds, kept: for each request and its answer; see `request`.

    Raises:
        RefusedError: the address or a redirect is refused.
        requests.RequestException: there was no answer.
    """
    with contextlib.ExitStack() as stack:
        for _ in range(_MOST_REDIRECTS + 1):
            asked = request("GET", address, fetch_rule, headers, seconds=seconds, kept=kept, stream=True, timeout=timeout)
            response = stack.enter_context(asked)
            target = response.headers.get("Location") if response.status_code in _REDIRECTS else None
            if target is None:
                yield response
                return
            stack.pop_all().close()
            address = redirect(address, target)
        raise requests.TooManyRedirects(f"more than {_MOST_REDIRECTS}")


def redirect(address: WebAddress, target: str) -> WebAddress:
    """The target of a redirect: a full address, or a path on the same host.

    Raises:
        RefusedError: the target is not an address, or leads from https to http.
    """
    if target.startswith("/") and not target.startswith(("//", "/\\")):
        target = WebAddress(address.scheme, address.host, address.port, target).url
    found = parse_web_address(target, "The address of a redirect")
    if address.scheme == "https" and found.scheme != "https":
        raise RefusedError("A redirect leads from https to http.", where=f"{address.scheme}://{address.host}")
    return found


def lookup(address: WebAddress) -> list[Ip]:
    """The network addresses of a host, in the order to try them.

    Raises:
        requests.ConnectionError: the host has no address.
    """
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise requests.ConnectionError("the host is not found") from None
    return [ipaddress.ip_address(str(one[4][0]).partition("%")[0]) for one in found]


def _literal(host: str) -> Ip | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


class _Watch:
    """Ends the connections of a request when its time is over, wherever it waits."""

    def __init__(self, seconds: float | None) -> None:
        self._timer = None if seconds is None else threading.Timer(seconds, self._end)
        self._lock, self._seen, self._over = threading.Lock(), list[socket.socket](), False

    def __enter__(self) -> _Watch:
        if self._timer is not None:
            self._timer.daemon = True
            self._timer.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if kind is None or issubclass(kind, Exception):
            self.expect_time()  # an answer that was broken off may look whole

    def see(self, connected: socket.socket) -> None:
        """Takes a new connection under watch."""
        with self._lock:
            self._seen.append(connected)
            if self._over:
                _break_off(connected)

    def expect_time(self) -> None:
        """Raises TooSlowError if the time is over."""
        if self._over:
            raise TooSlowError("the answer takes too long") from None

    def _end(self) -> None:
        with self._lock:
            self._over = True
            for connected in self._seen:
                _break_off(connected)


def _break_off(connected: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it is closed
        socket.socket.shutdown(connected, socket.SHUT_RDWR)  # TLS's own method may not be called beside a read


@functools.lru_cache(maxsize=8)
def _trust(bundle: str) -> ssl.SSLContext:
    """What checks certificates. Reading the bundle of authorities takes 17 ms of processor time."""
    folder = os.path.isdir(bundle)
    try:
        return ssl.create_default_context(cafile=None if folder else bundle, capath=bundle if folder else None)
    except OSError as error:  # ssl.SSLError is one
        raise InputError(
            f"The certificates of authorities cannot be read: {error.strerror or error}.",
            where=bundle,
            fix="check $REQUESTS_CA_BUNDLE and $CURL_CA_BUNDLE",
        ) from None


class _Watched(HTTPAdapter):
    """Shows the connection of each request to `see`, also one to a proxy."""

    def __init__(self) -> None:
        self.see: Callable[[socket.socket], None] = lambda connected: None
        self._pools = {
            "http": self._watching(HTTPConnectionPool, HTTPConnection),
            "https": self._watching(HTTPSConnectionPool, HTTPSConnection),
        }
        super().__init__()

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        super().init_poolmanager(*arguments, **options)
        self.poolmanager.pool_classes_by_scheme = self._pools

    def proxy_manager_for(self, *arguments: Any, **options: Any) -> Any:
        manager = super().proxy_manager_for(*arguments, **options)
        manager.pool_classes_by_scheme = self._pools
        return manager

    def _watching(self, pool: type, connection: type) -> Any:
        """A class of pools whose connections are seen when they are made, and when they are used again."""

        def connect(used: Any) -> None:
            connection.connect(used)
            self.see(used.sock)

        def request(used: Any, *arguments: Any, **options: Any) -> None:
            if used.sock is not None:
                self.see(used.sock)
            connection.request(used, *arguments, **options)

        watched = type(connection.__name__, (connection,), {"connect": connect, "request": request})
        return type(pool.__name__, (pool,), {"ConnectionCls": watched})


class _Pinned(_Watched):
    """Connects to one network address, whatever the name; the certificate must still match the name."""

    def __init__(self, ip: Ip, verify: str | bool) -> None:
        self._ip, self._bundle = ip, DEFAULT_CA_BUNDLE_PATH if verify is True else str(verify)
        super().__init__()

    def build_connection_pool_key_attributes(self, request: Any, verify: Any, cert: Any = None) -> tuple[Any, Any]:
        where, how = super().build_connection_pool_key_attributes(request, verify, cert)
        if where["scheme"] == "https":
            how = {key: value for key, value in how.items() if key not in ("ca_certs", "ca_cert_dir")}
            how |= {"server_hostname": where["host"], "assert_hostname": where["host"], "ssl_context": _trust(self._bundle)}
        return {**where, "host": str(self._ip)}, how

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        conn.cert_reqs = "CERT_REQUIRED"  # by the context, which has read the bundle

    def send(self, request: requests.PreparedRequest, *arguments: Any, **options: Any) -> requests.Response:
        request.headers.setdefault("Host", str(request.url).partition("://")[2].partition("/")[0])
        return super().send(request, *arguments, **options)
