"""HTTPS on 127.0.0.1, with a certificate of its own for the names that a test gives it."""

from __future__ import annotations

import ipaddress
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
from servers.local_http import Exchange, LocalServer


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
        return self

    def environment(self) -> dict[str, str]:
        """What makes our own client trust it, though it is on this machine."""
        return {"REQUESTS_CA_BUNDLE": str(self.certificate), HOSTS_VARIABLE: "127.0.0.1"}
