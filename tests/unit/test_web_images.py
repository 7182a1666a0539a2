"""Images that rows name by address: fetched once, asked about later, and bounded in every way."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paligemma import retry
from paligemma.data import web_images
from paligemma.data.rows import REASONS, Row, RowError, parse_row
from paligemma.data.web_images import WebImage, fetch_images
from paligemma.errors import DamagedError, InputError
from paligemma.retry import RetryPolicy
from paligemma.storage import cache
from paligemma.storage.gcs import crc32c_of
from paligemma.web_client import HOSTS_VARIABLE
from servers.https import HttpsServer, Tunnel
from servers.local_http import Exchange

Answer = Callable[[Exchange], None]
SECRET = "hunter2"


class Web:
    """A site whose pages are functions that answer, with a log of what was asked."""

    def __init__(self) -> None:
        self.pages: dict[str, Answer] = {}
        self.asked: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.url = ""

    def serve(self, exchange: Exchange) -> None:
        path = exchange.target.partition("?")[0]
        self.asked.append(exchange.target)
        self.headers.append(dict(exchange.headers.items()))
        self.pages.get(path, lambda exchange: exchange.answer(404))(exchange)

    def fetch(self, *paths: str, sha256: str = "") -> list[WebImage]:
        """What a run of its own gets, for each path."""
        rows = [row(self.url + path, sha256) for path in paths]
        found = fetch_images(rows)
        return [found[one.names[0]] for one in rows]


def row(address: str, sha256: str = "") -> Row:
    line = {"image": address, "prefix": "p", "suffix": "s"} | ({"image_sha256": sha256} if sha256 else {})
    return parse_row(json.dumps(line).encode(), 2)


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setattr(retry, "RETRY", RetryPolicy(initial=0.001, maximum=0.01, timeout=2.0))
    monkeypatch.setattr(web_images, "TRYING", 0.2)
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path / "cache"))
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    site = Web()
    with HttpsServer(site.serve, tmp_path) as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        site.url = server.url
        yield site


def plain(data: bytes, **headers: str) -> Answer:
    return lambda exchange: exchange.answer(200, [(name.replace("_", "-"), value) for name, value in headers.items()], data)


def tagged(data: bytes, tag: str) -> Answer:
    """A page that knows what it is, as RFC 9110 has it."""

    def answer(exchange: Exchange) -> None:
        same = exchange.headers.get("If-None-Match") == tag
        exchange.answer(304 if same else 200, [("ETag", tag)], b"" if same else data)

    return answer


def dated(data: bytes, age: float) -> Answer:
    """A page whose server knows when it was changed, which was `age` seconds ago."""
    modified = formatdate(time.time() - age, usegmt=True)

    def answer(exchange: Exchange) -> None:
        same = exchange.headers.get("If-Modified-Since") == modified
        headers = [("Date", formatdate(usegmt=True)), ("Last-Modified", modified)]
        exchange.answer(304 if same else 200, headers, b"" if same else data)

    return answer


def chunked(data: bytes) -> Answer:
    def answer(exchange: Exchange) -> None:
        exchange.send_head(200, [("Transfer-Encoding", "chunked")])
        for start in range(0, len(data), 1000):
            piece = data[start : start + 1000]
            exchange.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        exchange.wfile.write(b"0\r\n\r\n")

    return answer


def test_an_image_is_fetched_once_however_many_rows_name_it_and_then_asked_about(web: Web) -> None:
    web.pages["/a"] = tagged(b"a" * 3000, '"1"')
    first, second, other = web.fetch("/a", "/a", "/a?x=1")
    assert web.asked.count("/a") == 1
    assert first == second == other  # by contents
    assert first.read() == b"a" * 3000
    assert first.sha256 == hashlib.sha256(b"a" * 3000).hexdigest()
    assert (first.bytes, first.crc32c) == (3000, crc32c_of(b"a" * 3000))
    assert web.fetch("/a") == [first]
    assert web.headers[-1]["If-None-Match"] == '"1"'
    web.pages["/a"] = tagged(b"b", '"2"')
    (changed,) = web.fetch("/a")
    assert changed.read() == b"b"
    assert web.fetch("/a") == [changed]


def test_a_date_tells_unless_it_is_of_the_same_second(web: Web) -> None:
    web.pages["/old"], web.pages["/new"] = dated(b"old", 3600), dated(b"new", 0)
    web.fetch("/old", "/new")
    del web.headers[:], web.asked[:]
    web.fetch("/old", "/new")
    asked = {path: headers.get("If-Modified-Since") for path, headers in zip(web.asked, web.headers, strict=True)}
    assert asked["/old"] is not None
    assert asked["/new"] is None


def test_what_has_neither_is_fetched_by_every_run(web: Web) -> None:
    web.pages["/a"] = plain(b"one")
    assert web.fetch("/a")[0].read() == b"one"
    web.pages["/a"] = plain(b"two")
    assert web.fetch("/a")[0].read() == b"two"


def test_of_an_image_with_a_known_sha256_nothing_is_asked_once_it_is_there(web: Web) -> None:
    web.pages["/a"] = plain(b"data")
    sha256 = hashlib.sha256(b"data").hexdigest()
    (image,) = web.fetch("/a", sha256=sha256)
    assert web.fetch("/a", "/elsewhere", sha256=sha256) == [image, image]
    assert web.asked == ["/a"]


def test_rows_that_say_two_sha256_of_one_address_get_what_it_gives(web: Web) -> None:
    web.pages["/a"] = plain(b"data")
    rows = [row(f"{web.url}/a", digest * 64) for digest in "ab"]
    (found,) = fetch_images(rows).values()
    assert found.read() == b"data"


@pytest.mark.parametrize("size", [0, 1, 999, 64 * 1024, 300_000])
@pytest.mark.parametrize("how", [plain, chunked])
def test_every_size_arrives_whole(web: Web, size: int, how: Callable[[bytes], Answer]) -> None:
    data = os.urandom(size)
    web.pages["/a"] = how(data)
    assert web.fetch("/a")[0].read() == data


def test_a_broken_connection_and_a_busy_server_are_tried_again(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_images, "TRYING", 2.0)
    left = {"/broken": 2, "/busy": 2, "/short": 2}

    def answer(exchange: Exchange) -> None:
        left[exchange.target] -= 1
        if left[exchange.target] < 0:
            exchange.answer(200, [], b"whole")
        elif exchange.target == "/busy":
            exchange.answer(503)
        else:
            exchange.send_head(200, [("Content-Length", "5")])
            exchange.wfile.write(b"wh")
            exchange.close_connection = True

    web.pages |= dict.fromkeys(left, answer)
    assert [image.read() for image in web.fetch(*left)] == [b"whole"] * 3


def drips(head: bytes) -> Answer:
    """Sends what `head` is and then a byte now and then, without end."""

    def answer(exchange: Exchange) -> None:
        exchange.wfile.write(head)
        for _ in range(200):
            exchange.wfile.write(b"x")
            exchange.wfile.flush()
            time.sleep(0.02)
        exchange.close_connection = True

    return answer


def moved(to: str) -> Answer:
    return lambda exchange: exchange.answer(302, [("Location", to)])


BAD = {
    "absent": (lambda exchange: exchange.answer(404), "image_missing", r"no such file \(HTTP 404\)"),
    "gone": (lambda exchange: exchange.answer(410), "image_missing", r"HTTP 410"),
    "forbidden": (lambda exchange: exchange.answer(403), "image_forbidden", r"HTTP 403"),
    "partial": (lambda exchange: exchange.answer(206, [], b"x"), "image_forbidden", r"HTTP 206"),
    "not asked": (lambda exchange: exchange.answer(304), "image_forbidden", r"HTTP 304"),
    "broken": (lambda exchange: exchange.answer(500), "image_unavailable", r"HTTP 500"),
    "packed": (plain(b"x", Content_Encoding="gzip"), "image_unreadable", r"packs it \(gzip\)"),
    "large": (plain(b"x" * 2000), "image_too_large", r"more than 1000 bytes"),
    "endless": (chunked(b"x" * 5000), "image_too_large", r"more than 1000 bytes"),
    "cut": (
        lambda exchange: (exchange.send_head(200, [("Content-Length", "9")]), exchange.reset()),
        "image_unavailable",
        "does not answer",
    ),
    "silent": (lambda exchange: time.sleep(1.5), "image_unavailable", "more than|does not answer"),
    "slow head": (drips(b"HTTP/1.1 200 OK\r\nX: "), "image_unavailable", "takes more than"),
    "slow body": (drips(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n"), "image_unavailable", "takes more than"),
    "slow without length": (drips(b"HTTP/1.1 200 OK\r\n\r\n"), "image_unavailable", "takes more than"),
    "no HTTP": (lambda exchange: exchange.wfile.write(b"hello\r\n\r\n"), "image_unavailable", "does not answer"),
    "metadata": (moved("http://169.254.169.254/latest/"), "image_address_unsafe", "Nothing is sent|from https to http"),
    "link-local": (moved("https://169.254.169.254/latest/"), "image_address_unsafe", "link-local"),
    "private": (moved("https://10.0.0.1/a.png"), "image_address_unsafe", "not on the internet"),
    "mapped": (moved("https://[::ffff:10.0.0.1]/a.png"), "image_address_unsafe", "not on the internet"),
    "in the clear": (moved("http://example.com/a.png"), "image_address_unsafe", "from https to http"),
    "circle": (moved("/circle"), "image_unavailable", "redirected again and again"),
    "file": (moved("file:///etc/passwd"), "image_address_unsafe", "cannot be used"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_gives_no_image_is_a_reason_in_words(web: Web, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_images, "MAX_BYTES", 1000)
    monkeypatch.setattr(web_images, "WHOLE", 0.5)
    answer, code, words = BAD[kind]
    web.pages[f"/{kind.replace(' ', '-')}"] = answer
    began = time.monotonic()
    (image,) = web.fetch(f"/{kind.replace(' ', '-')}?key={SECRET}")
    assert time.monotonic() - began < 5
    assert image.code == code in REASONS
    assert image.message.startswith(f"'{web.url}/{kind.replace(' ', '-')}?sha256:")
    with pytest.raises(RowError, match=words):
        image.read()
    assert SECRET not in image.message
    assert not list((cache.cache_folder() / "web" / "partial").iterdir())


@pytest.mark.parametrize("kind", ["slow head", "slow body", "slow without length", "large", "absent"])
def test_limits_hold_through_a_proxy(web: Web, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_images, "MAX_BYTES", 1000)
    monkeypatch.setattr(web_images, "WHOLE", 0.5)
    answer, code, words = BAD[kind]
    web.pages |= {"/bad": answer, "/good": plain(b"good")}
    with Tunnel(int(web.url.rpartition(":")[2])) as tunnel:
        monkeypatch.setenv("https_proxy", tunnel.url)
        bad, good = web.fetch("/bad", "/good")
    assert bad.code == code
    with pytest.raises(RowError, match=words):
        bad.read()
    assert good.read() == b"good"
    assert len(tunnel.hosts) == 2


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://example.com/a.png", "example.com is not contacted over https; what comes over plain http may be changed"),
        ("http://127.0.0.2/a.png", "not contacted over https"),
        ("https://127.0.0.2/a.png", "not on the internet"),
        ("https://localhost/a.png", "not on the internet"),
        ("https://192.168.1.1/a.png", "not on the internet"),
        ("https://[::1]/a.png", "not on the internet"),
        ("https://0x7f.1/a.png", "not in the form 1.2.3.4"),
        ("https://user:hunter2@example.com/a.png", "without user and password"),
        ("https:///a.png", "not of the form"),
        ("https://example.com:99999/a.png", "no such port"),
        ("https://b\u00fccher.example/a.png", "not of the form"),
    ],
)
def test_what_is_not_contacted_is_refused_before_anything_is_sent(
    web: Web, address: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a connection"))
    (image,) = fetch_images([row(address)]).values()
    assert image.code == "image_address_unsafe"
    with pytest.raises(RowError, match=words):
        image.read()
    assert SECRET not in image.message


def test_a_host_of_ones_own_is_contacted_only_if_it_is_named(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    web.pages["/a"] = plain(b"a")
    monkeypatch.delenv(HOSTS_VARIABLE)
    assert web.fetch("/a")[0].code == "image_address_unsafe"
    assert web.asked == []


def test_a_certificate_that_nobody_knows_is_refused(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    web.pages["/a"] = plain(b"a")
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    (image,) = web.fetch("/a")
    assert image.code == "image_unavailable"
    assert "certificate" in image.message
    assert web.asked == []


def test_certificates_that_cannot_be_read_are_no_fault_of_a_row(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere.pem")
    with pytest.raises(InputError, match="certificates of authorities cannot be read"):
        web.fetch("/a")


def test_a_host_that_does_not_answer_is_given_up(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_images, "THREADS", 1)
    web.pages |= {f"/{number}": lambda exchange: exchange.answer(503) for number in range(9)}
    found = web.fetch(*(f"/{number}" for number in range(9)))
    assert {image.code for image in found} == {"image_unavailable"}
    assert {path for path in web.asked} == {"/0", "/1", "/2"}
    assert "did not answer for 3 other images" in found[-1].message


def test_pages_that_are_missing_are_an_answer(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_images, "THREADS", 1)
    web.pages["/9"] = plain(b"there")
    assert [image.code for image in web.fetch(*(f"/{number}" for number in range(10)))] == ["image_missing"] * 9 + [""]


def test_a_damaged_image_in_the_cache_is_fetched_again(web: Web) -> None:
    web.pages["/a"] = tagged(b"data", '"1"')
    (image,) = web.fetch("/a")
    path = cache.cache_folder() / "web" / "objects" / image.sha256[:2] / image.sha256
    path.write_bytes(b"Data")
    with pytest.raises(DamagedError, match="changed or removed"):
        image.read()
    assert web.fetch("/a")[0].read() == b"data"
    path.unlink()
    assert web.fetch("/a")[0].read() == b"data"
    for entry in (cache.cache_folder() / "web" / "addresses").rglob("*"):
        if entry.is_file():
            entry.write_bytes(b"[" * 10_000)
    assert web.fetch("/a")[0].read() == b"data"
    assert len(web.asked) == 4


def test_several_runs_may_fill_the_cache_at_once(web: Web) -> None:
    web.pages |= {f"/{number}": plain(bytes([number]) * 5000) for number in range(20)}
    with ThreadPoolExecutor(4) as pool:
        runs = list(pool.map(lambda _: web.fetch(*(f"/{number}" for number in range(20))), range(4)))
    for run in runs:
        assert [image.read() for image in run] == [bytes([number]) * 5000 for number in range(20)]


def test_what_a_killed_run_left_is_removed_and_what_another_writes_is_not(web: Web) -> None:
    folder = cache.cache_folder() / "web" / "partial"
    folder.mkdir(parents=True)
    (folder / "old").write_bytes(b"x")
    (folder / "new").write_bytes(b"x")
    os.utime(folder / "old", (0, time.time() - 100_000))
    web.pages["/a"] = plain(b"a")
    web.fetch("/a")
    assert [path.name for path in folder.iterdir()] == ["new"]


def test_a_connection_is_used_for_many_images_and_remembers_nothing_of_them(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_images, "THREADS", 1)
    connections: list[int] = []

    def noted(answer: Answer) -> Answer:
        return lambda exchange: (connections.append(exchange.client_address[1]), answer(exchange))

    web.pages = {
        "/a": noted(tagged(b"a" * 100_000, '"1"')),
        "/b": noted(chunked(b"b" * 5000)),
        "/c": noted(plain(b"c", Set_Cookie="x=1")),
        "/d": noted(plain(b"")),
        "/none": noted(lambda exchange: exchange.answer(404)),
    }
    paths = ["/a", "/none", "/b", "/c", "/d", "/none?again"]
    first = web.fetch(*paths)
    assert web.fetch(*paths) == first
    assert [image.bytes for image in first] == [100_000, 0, 5000, 1, 0, 0]
    assert len(connections) == 12
    assert len(set(connections)) == 2  # one in each run
    assert not any("Cookie" in headers for headers in web.headers)


def test_a_connection_that_the_server_has_closed_is_made_anew(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_images, "THREADS", 1)
    monkeypatch.setattr(web_images, "TRYING", 2.0)

    def closes(exchange: Exchange) -> None:
        exchange.answer(200, [], b"data")
        exchange.close_connection = True

    web.pages |= {f"/{number}": closes for number in range(8)}
    assert [image.read() for image in web.fetch(*(f"/{number}" for number in range(8)))] == [b"data"] * 8


def test_the_rest_of_an_answer_that_nobody_wants_is_not_read(web: Web) -> None:
    web.pages["/long"] = lambda exchange: exchange.answer(404, [], b"x" * 5_000_000)
    web.pages["/a"] = plain(b"a")
    assert [image.code for image in web.fetch("/long", "/long?again", "/a")] == ["image_missing", "image_missing", ""]


def test_no_address_is_in_the_cache(web: Web) -> None:
    web.pages["/a"] = tagged(b"data", '"1"')
    web.fetch(f"/a?key={SECRET}")
    for path in cache.cache_folder().rglob("*"):
        assert SECRET not in path.name
        assert not path.is_file() or SECRET.encode() not in path.read_bytes()


def test_an_address_with_spaces_or_accents_is_asked_for_as_browsers_do(web: Web) -> None:
    web.pages["/caf%C3%A9%20%2B.png"] = plain(b"found")
    assert web.fetch("/caf\u00e9 %2B.png")[0].read() == b"found"


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text("https:/\\@.?#[]%1aX \t\x00\u00e9\u202e", max_size=30).map(lambda rest: f"https://127.0.0.2{rest}"))
def test_any_address_is_refused_or_an_image_in_one_of_our_words(web: Web, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr("paligemma.web_client.lookup", lambda address: [ip_address("10.0.0.1")])
    try:
        one = row(text)
    except RowError:
        return
    for image in fetch_images([one]).values():
        assert image.code in REASONS
