"""HTTPS on 127.0.0.1, with a certificate of its own for the names that a test gives it."""

from __future__ import annotations

import ipaddress
import selectors
import socket
import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from paligemma.web_client import HOSTS_VARIABLE
from servers.local_http import BLOCK, Exchange, LocalServer


class HttpsServer(LocalServer):
    """A `LocalServer` that speaks TLS. `certificate`, which nobody else knows, is for 127.0.0.1 and the given names."""

    def __init__(self, serve: Callable[[Exchange], None], folder: Path, *names: str) -> None:
        """Args: `folder` is where certificate and key are written."""
        super().__init__(serve)
        self.certificate, self._key = folder / "certificate.pem", folder / "key.pem"
        key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a server of the tests")])
        hosts = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), *map(x509.DNSName, names)]
        made = (
            x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName(hosts), critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(key, hashes.SHA256())
        )
        self.certificate.write_bytes(made.public_bytes(Encoding.PEM))
        self._key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))

    def __enter__(self) -> Self:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self._key)
        self.tls = context
        super().__enter__()
        self.url = self.url.replace("http://", "https://")
        self.port = int(self.url.rpartition(":")[2])
        return self

    def environment(self) -> dict[str, str]:
        """What makes our own client trust it, though it is on this machine."""
        return {"REQUESTS_CA_BUNDLE": str(self.certificate), HOSTS_VARIABLE: "127.0.0.1"}


class Tunnel(LocalServer):
    """A proxy that leads every host to one server on this machine (RFC 9110, 9.3.6), so that an address may be anybody's."""

    def __init__(self, port: int) -> None:
        """Args: `port` is the server's."""
        self.hosts: list[str] = []
        self._port = port
        super().__init__(self._lead)

    def environment(self) -> dict[str, str]:
        """What sends a process's requests here, but those to this machine."""
        return {"https_proxy": self.url, "no_proxy": "127.0.0.1,localhost"}

    def _lead(self, exchange: Exchange) -> None:
        if exchange.command != "CONNECT":
            exchange.answer(405)
            return
        self.hosts.append(exchange.path)
        exchange.close_connection = True
        with socket.create_connection(("127.0.0.1", self._port)) as server, selectors.DefaultSelector() as ready:
            exchange.send_head(200, [])
            ends = {exchange.connection: server, server: exchange.connection}
            for end in ends:
                ready.register(end, selectors.EVENT_READ)
            while True:
                for key, _ in ready.select():
                    assert isinstance(key.fileobj, socket.socket)
                    if not (data := key.fileobj.recv(BLOCK)):
                        return
                    ends[key.fileobj].sendall(data)
