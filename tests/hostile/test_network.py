"""Addresses: what the one parser and the rules decide. Nothing is sent but to servers of these tests on this machine."""

from __future__ import annotations

import ipaddress
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from components.fetch_checkpoint.__main__ import run as fetch_checkpoint
from components.summarize import webhook
from paligemma import retry, web_client
from paligemma.artifacts.record import file_sha256
from paligemma.checkpoints.sources import web
from paligemma.checkpoints.sources.fetch import fetch_first
from paligemma.errors import InputError, PaliGemmaError
from paligemma.redaction import without_passwords, without_secrets
from paligemma.storage import cache
from paligemma.web_address import WebAddress, is_loopback, is_nobodys, is_public, parse_web_address
from paligemma.web_client import HOSTS_VARIABLE, checked_addresses, fetch_rule, redirect, webhook_rule
from servers.local_http import Exchange, LocalServer

SECRET = "hunter2"


@pytest.fixture(autouse=True)
def _nothing_leaves_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Names have the addresses that a test gives them; connections go to this machine alone."""
    real = socket.socket.connect

    def connect(self: socket.socket, address: tuple) -> None:
        assert self.family == socket.AF_UNIX or ipaddress.ip_address(address[0]).is_loopback, address
        real(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", HOSTS_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(retry, "RETRY", retry.RetryPolicy(initial=0.001, maximum=0.01, timeout=2.0))
    name_has(monkeypatch, "93.184.216.34")


def name_has(monkeypatch: pytest.MonkeyPatch, *ips: str) -> list[str]:
    """Gives every name these addresses; the list is of the names that were looked up."""
    asked: list[str] = []
    real = socket.getaddrinfo

    def getaddrinfo(host: str, port: int, *arguments: object, **named: object) -> list:
        if host[0].isdigit() or ":" in host:  # which nobody has to be asked for
            return real(host, port, *arguments, **named)
        asked.append(host)
        return [(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port)) for ip in ips]

    monkeypatch.setattr(web_client.socket, "getaddrinfo", getaddrinfo)
    return asked


@pytest.mark.parametrize(
    "text",
    [
        "http://169.254.169.254\\@127.0.0.1/",
        "https://user:hunter2@host/x",
        "HTTPS://user:hunter2@host/x",
        "https://hunter2@host/x",
        "https://:hunter2@host/x",
        "https://user%3Ahunter2@host/x",
        "https://user:hunter2%40host/x",
        "https:\\\\host/x",
        "https:/host/x",
        "https:///host/x",
        "https:host/x",
        "//host/x",
        "https://",
        "https:// host/x",
        " https://host/x",
        "https://host/a b",
        "https://ho\tst/x",
        "https://ho\nst/x",
        "https://host/x\r\nHost: other",
        "https://host\x00/x",
        "https://host:0/x",
        "https://host:65536/x",
        "https://host:x/x",
        "https://host:/x:443@other/",
        "https://2130706433/",
        "https://0x7f000001/",
        "https://0x7f.1/",
        "https://127.1/",
        "https://0177.0.0.1/",
        "https://127.0.0.1.1/",
        "https://1.2.3.0x4/",
        "https://256.1.1.1/",
        "https://[::1/",
        "https://[::1]evil/",
        "https://[v1.a]/",
        "https://[fe80::1%25eth0]/",
        "https://..",
        "https://a..b/",
        "https://-a/",
        "https://" + "a" * 64 + "/",
        "https://host%2eexample/",
        "https://１２７.0.0.1/",
        "https://ⓛocalhost/",
        "https://host\u3002example/",
        "ftp://host/x",
        "file:///etc/passwd",
        "gopher://host/",
        "nonsense",
        "",
    ],
)
def test_an_address_that_two_programs_could_read_differently_is_none(text: str) -> None:
    with pytest.raises(InputError, match=r"^The address cannot be used") as caught:
        parse_web_address(text)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://host/a/b.npz?x=1#part", WebAddress("https", "host", 443, "/a/b.npz?x=1")),
        ("HTTP://HOST.Example.:8080", WebAddress("http", "host.example", 8080, "/")),
        ("https://[::ffff:127.0.0.1]/x", WebAddress("https", str(ipaddress.ip_address("::ffff:127.0.0.1")), 443, "/x")),
        ("https://127.0.0.1?x", WebAddress("https", "127.0.0.1", 443, "?x")),
        ("https://host/@scope/x@1", WebAddress("https", "host", 443, "/@scope/x@1")),
    ],
)
def test_an_address_in_the_usual_form_is_its_parts(text: str, expected: WebAddress) -> None:
    address = parse_web_address(text)
    assert address == expected
    assert parse_web_address(address.url) == address


@settings(max_examples=300, deadline=None)
@given(st.text("https:/\\@.?#[]%12axX \t\x00é", max_size=40).map(lambda rest: f"https://{rest}"))
def test_what_the_client_connects_to_is_what_was_parsed(text: str) -> None:
    try:
        address = parse_web_address(text)
    except InputError:
        return
    prepared = requests.Request("GET", address.url).prepare()
    from urllib3.util import parse_url

    assert (parse_url(prepared.url).host or "").strip("[]") == address.host
    assert (parse_url(prepared.url).port or 443) == address.port
    assert parse_url(prepared.url).auth is None


NOBODYS = ["169.254.169.254", "fe80::1", "0.0.0.0", "::", "224.0.0.1", "ff02::1", "255.255.255.255", "240.0.0.1"]
NOBODYS += ["::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1", "::a9fe:a9fe"]
PRIVATE = ["10.0.0.1", "172.16.0.1", "192.168.1.1", "100.100.100.200", "fd00:ec2::254", "::ffff:10.0.0.1", "198.18.0.1"]
LOOPBACK = ["127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "::7f00:1"]
PUBLIC = ["93.184.216.34", "2606:2800:220:1::1"]


def test_every_network_is_known_for_what_it_is() -> None:
    kinds = {}
    for name, ips in {"nobody's": NOBODYS, "private": PRIVATE, "here": LOOPBACK, "public": PUBLIC}.items():
        for text in ips:
            ip = ipaddress.ip_address(text)
            kinds[text] = name, is_nobodys(ip), is_loopback(ip), is_public(ip)
    assert {text for text, kind in kinds.items() if kind[1]} == set(NOBODYS)
    assert {text for text, kind in kinds.items() if kind[2]} == set(LOOPBACK)
    assert {text for text, kind in kinds.items() if kind[3]} == set(PUBLIC)


@pytest.mark.parametrize("ip", NOBODYS + PRIVATE + LOOPBACK)
def test_files_come_from_the_internet_alone(ip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name_has(monkeypatch, "93.184.216.34", ip)  # one bad address of several is enough
    with pytest.raises(InputError, match="Nothing is sent to this address"):
        checked_addresses(parse_web_address("https://rebinding.example/x"), fetch_rule)
    literal = f"[{ip}]" if ":" in ip else ip
    with pytest.raises(InputError, match="Nothing is sent to this address"):
        checked_addresses(parse_web_address(f"https://{literal}/x"), fetch_rule)


def test_a_host_that_the_operator_names_may_be_private_but_not_link_local(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HOSTS_VARIABLE, "mirror.corp, 127.0.0.1")
    for ip in PRIVATE:
        name_has(monkeypatch, ip)
        assert checked_addresses(parse_web_address("https://mirror.corp/x"), fetch_rule) == [ipaddress.ip_address(ip)]
        with pytest.raises(InputError, match="not on the internet"):
            checked_addresses(parse_web_address("https://other.corp/x"), fetch_rule)
        with pytest.raises(InputError, match="not contacted over https"):
            checked_addresses(parse_web_address("http://mirror.corp/x"), fetch_rule)
    for ip in NOBODYS:
        name_has(monkeypatch, ip)
        with pytest.raises(InputError, match="link-local"):
            checked_addresses(parse_web_address("https://mirror.corp/x"), fetch_rule)
    assert checked_addresses(parse_web_address("http://127.0.0.1:8000/x"), fetch_rule) == [ipaddress.ip_address("127.0.0.1")]


@pytest.mark.parametrize("text", ["http://host/x", "HTTP://host/x", "http://localhost/x", "http://127.0.0.1/x"])
def test_a_file_is_not_asked_for_in_the_clear(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = name_has(monkeypatch, "93.184.216.34")
    with pytest.raises(InputError, match="not contacted over https"):
        checked_addresses(parse_web_address(text), fetch_rule)
    assert asked == []


@pytest.mark.parametrize("ip", NOBODYS)
def test_no_webhook_is_link_local(ip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name_has(monkeypatch, ip)
    for scheme in ("https", "http"):
        with pytest.raises(InputError, match="Nothing is sent"):
            checked_addresses(parse_web_address(f"{scheme}://hook.example/x"), webhook_rule)


def test_a_webhook_may_be_inside_the_company_and_in_the_clear_on_this_machine_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for ip in PRIVATE + LOOPBACK + PUBLIC:
        name_has(monkeypatch, ip)
        assert checked_addresses(parse_web_address("https://hook.corp/x"), webhook_rule) == [ipaddress.ip_address(ip)]
        with pytest.raises(InputError, match="neither https nor this machine"):
            checked_addresses(parse_web_address("http://hook.corp/x"), webhook_rule)
    name_has(monkeypatch, "10.0.0.1")
    with pytest.raises(InputError, match="neither https nor this machine"):  # a name that lies
        checked_addresses(parse_web_address("http://localhost/x"), webhook_rule)
    name_has(monkeypatch, "127.0.0.1")
    assert len(checked_addresses(parse_web_address("http://localhost/x"), webhook_rule)) == 1


def test_a_name_is_looked_up_once_and_the_connection_goes_there(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = []

    def answer(exchange: Exchange) -> None:
        hosts.append(exchange.headers["Host"])
        exchange.answer(200, [], b"ok")

    with LocalServer(answer) as server:
        port = server.url.rpartition(":")[2]
        asked = name_has(monkeypatch, "127.0.0.1")
        monkeypatch.setenv(webhook.URL_VARIABLE, f"http://localhost:{port}/hook")
        assert webhook.notify({})
    assert asked == ["localhost"]
    assert hosts == [f"localhost:{port}"]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_webhook_follows_no_redirect(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def answer(exchange: Exchange) -> None:
        asked.append(exchange.path)
        exchange.answer(status, [("Location", "/elsewhere")], b"")

    with LocalServer(answer) as server:
        monkeypatch.setenv(webhook.URL_VARIABLE, f"{server.url}/hook")
        name_has(monkeypatch, "127.0.0.1")
        assert not webhook.notify({})
    assert asked == ["/hook"]


HERE = WebAddress("https", "host", 443, "/a/b")


@pytest.mark.parametrize(
    "target",
    ["http://host/x", "HTTP://host/x", "https://u:hunter2@host/x", "ftp://host/x", "//other/x", "/\\other/x", "x\\y", "", "x"],
)
def test_a_redirect_leads_to_https_alone(target: str) -> None:
    with pytest.raises(InputError) as caught:
        redirect(HERE, target)
    assert SECRET not in str(caught.value)


def test_a_redirect_on_the_same_host_or_to_another_is_followed() -> None:
    assert redirect(HERE, "/c?d") == WebAddress("https", "host", 443, "/c?d")
    assert redirect(HERE, "https://other:444/c") == WebAddress("https", "other", 444, "/c")


def serve(answers: Callable[[Exchange], None], monkeypatch: pytest.MonkeyPatch) -> LocalServer:
    monkeypatch.setenv(HOSTS_VARIABLE, "127.0.0.1")
    return LocalServer(answers)


def test_a_redirect_to_a_metadata_server_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def answer(exchange: Exchange) -> None:
        asked.append(exchange.path)
        exchange.answer(302, [("Location", "http://169.254.169.254/computeMetadata/v1/")], b"")

    with serve(answer, monkeypatch) as server, pytest.raises(InputError, match="Nothing is sent to this address"):
        web.fetch(f"{server.url}/x.npz", "0" * 64)
    assert asked == ["/x.npz"]


def test_a_redirect_that_never_ends_does(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(exchange: Exchange) -> None:
        exchange.answer(302, [("Location", "/x.npz")], b"")

    with serve(answer, monkeypatch) as server, pytest.raises(PaliGemmaError, match="could not be fetched"):
        web.fetch(f"{server.url}/x.npz", "0" * 64)


@pytest.mark.parametrize("path", ["/..", "/", "/.", "/a%2f..%2f..", "/" + "x" * 256, "/a:b"])
def test_the_name_of_a_download_stays_in_its_folder(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").write_bytes(b"data")
    sha256 = file_sha256(tmp_path / "data")
    with serve(lambda exchange: exchange.answer(200, [], b"data"), monkeypatch) as server:
        found = web.fetch(server.url + path, sha256)
    assert found.parent == tmp_path / "cache" / "downloads" / sha256
    assert found.read_bytes() == b"data"


@pytest.mark.parametrize("sha256", ["../../x", "/etc/passwd", "0" * 63, "g" * 64, "0" * 64 + "\n"])
def test_a_hash_is_no_path(sha256: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="The sha256 cannot be used"):
        web.fetch("https://host/x", sha256)
    assert not (tmp_path / "cache").exists()


WITH_PASSWORD = [
    "HTTP://user:hunter2@host/x",
    "http://user:hunter2@host/x",
    "HtTpS://user:hunter2@host/x",
    "https://hunter2@host/x",
    "https://user:hun@hunter2@host/x",
    "https://user:a/hunter2@host/x",
    "https://user:a?hunter2@host/x",
    "https://user:a#hunter2@host/x",
    "https://user:a,hunter2@host/x",
    "https://user:a\\hunter2@host/x",
    "https:\\\\user:hunter2@host/x",
    "https:/user:hunter2@host/x",
    "https:///user:hunter2@host/x",
    "https%3A%2F%2Fuser:hunter2@host/x",
    "https%3a//user:hunter2@host/x",
    "https%253A%252F%252Fuser:hunter2@host/x",
    "https://user%3Ahunter2@host/x",
    "https:%2f%2fuser:hunter2@host/x",
    "ftp://user:hunter2@host/x",
    "s3+ssh://user:hunter2@host/x",
    "/nowhere.npz,HTTPS://user:hunter2@host/x",
    "x" * 50 + "https://user:hunter2@host/x",
]


@pytest.mark.parametrize("source", WITH_PASSWORD)
def test_a_password_is_refused_and_kept_nowhere(source: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(InputError) as caught:
        fetch_checkpoint(str(tmp_path / "made"), source=source, sha256="0" * 64)
    assert SECRET not in str(caught.value)
    assert SECRET not in caught.value.what
    assert SECRET not in caplog.text
    records = [path for path in tmp_path.rglob("*.json") if path.is_file()]
    assert [json.loads(path.read_text())["status"] for path in records] == ["failed"]
    for path in tmp_path.rglob("*"):
        assert SECRET not in path.name
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path


@pytest.mark.parametrize("text", WITH_PASSWORD)
def test_no_text_keeps_a_password(text: str) -> None:
    assert SECRET not in without_passwords(text)
    assert SECRET not in without_passwords(f"a message about {text} and more")
    assert SECRET not in str(PaliGemmaError("x", where=text, expected=text, fix=text))


@pytest.mark.parametrize(
    "text",
    [
        "hf://owner/name@main",
        "gs://bucket/x@y",
        "https://host:8080/@scope/x@1",
        "kaggle://a/b/c/d/1",
        "a@b:c",
        "/data/x@y",
        "C:/a@b",
        "me@host: https://host/x",
    ],
)
def test_what_holds_no_password_stays_as_it_is(text: str) -> None:
    assert without_passwords(text) == without_secrets(text) == text


def test_a_signed_address_loses_its_signature() -> None:
    assert without_secrets("got HTTPS://host/x?sig=hunter2#y, then z") == "got HTTPS://host/x, then z"


def test_a_source_in_another_spelling_is_no_path(tmp_path: Path) -> None:
    for source in ("HTTPS://host/x", "Https://host/x"):
        with pytest.raises(InputError, match="sha256"):
            fetch_first(source)


@pytest.fixture
def https(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The port of a server on this machine whose certificate is `files.example`'s, and taken for good."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "files.example")])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("files.example")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (tmp_path / "certificate").write_bytes(certificate.public_bytes(Encoding.PEM))
    (tmp_path / "key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.headers["Host"].encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "certificate", tmp_path / "key")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "certificate"))
    name_has(monkeypatch, "127.0.0.1")
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_certificate_has_to_be_the_names_and_not_the_networks_address(https: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HOSTS_VARIABLE, "files.example,other.example")
    address = parse_web_address(f"https://files.example:{https}/x")
    with web_client.request("GET", address, fetch_rule, timeout=10) as answer:
        assert answer.text == f"files.example:{https}"
    other = parse_web_address(f"https://other.example:{https}/x")
    with pytest.raises(requests.exceptions.SSLError), web_client.request("GET", other, fetch_rule, timeout=10):
        pass


def test_an_address_that_nobody_answers_at_is_passed_over_for_the_next(https: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HOSTS_VARIABLE, "files.example")
    name_has(monkeypatch, "127.0.0.2", "127.0.0.1")
    with web_client.request("GET", parse_web_address(f"https://files.example:{https}/x"), fetch_rule, timeout=10) as answer:
        assert answer.ok


def test_a_proxy_of_the_environment_looks_names_up_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = name_has(monkeypatch, "169.254.169.254")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    assert checked_addresses(parse_web_address("https://host/x"), fetch_rule) == [None]
    assert asked == []
    for text in ("https://169.254.169.254/x", "https://[::ffff:10.0.0.1]/x", "http://host/x"):
        with pytest.raises(InputError, match="Nothing is sent"):
            checked_addresses(parse_web_address(text), fetch_rule)
