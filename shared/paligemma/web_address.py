"""Web addresses, parsed only once: the connection goes to exactly what was checked.

Programs parse addresses differently: `http://169.254.169.254\\@127.0.0.1/` is one host to a browser and another to a parser of
RFC 3986. Here an address has one strict form or is refused, and the client gets the parts, not the text.

Numeric hosts such as `0x7f.1` follow the WHATWG URL standard ("ends in a number" and the IPv4 parser). Private networks are
those of `ipaddress`, from IANA's registries of special-purpose addresses.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from paligemma.errors import InputError

Ip = ipaddress.IPv4Address | ipaddress.IPv6Address

_ADDRESS = re.compile(
    r"(?P<scheme>https?)://(?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::(?P<port>[0-9]{1,5}))?(?P<target>(?:[/?][\x21-\x7e]*)?)",
    re.IGNORECASE,
)
_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class RefusedError(InputError):
    """An address that is none, or that is not contacted."""


@dataclass(frozen=True)
class WebAddress:
    """An address without user, password and fragment. `host` is in lower case; an IPv6 address has no brackets."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def url(self) -> str:
        """The address as text for a client."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == _PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{host}{port}{self.target}"

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.target.partition("?")[0].rsplit("/", 1)[-1]


_PORTS = {"http": 80, "https": 443}


def parse_web_address(text: str, what: str = "The address") -> WebAddress:
    """Parses an address.

    Args:
        text: the address.
        what: what the text is, as the beginning of a sentence. The message does not show the text, which may be a secret.

    Raises:
        RefusedError: the text is not an address, names a user, or has a numeric host in an unusual form.
    """
    match = _ADDRESS.fullmatch(text.partition("#")[0])
    if match is None or "\\" in text:
        raise _refused(what, "it is not of the form https://host/path, without user and password")
    host, scheme = match["host"].lower(), match["scheme"].lower()
    port = int(match["port"]) if match["port"] else _PORTS[scheme]
    if not 0 < port < 65536:
        raise _refused(what, "there is no such port")
    if host.startswith("["):
        try:
            host = str(ipaddress.IPv6Address(host[1:-1]))
        except ValueError:
            raise _refused(what, "its host is not an IPv6 address") from None
    else:
        host = host.removesuffix(".")
        labels = host.split(".")
        if len(host) > 253 or not all(map(_LABEL.fullmatch, labels)):
            raise _refused(what, "its host is not a name")
        if _NUMBER.fullmatch(labels[-1]):
            try:
                host = str(ipaddress.IPv4Address(host))
            except ValueError:
                raise _refused(what, "its host is a number, but not in the form 1.2.3.4") from None
    return WebAddress(scheme, host, port, match["target"] or "/")


def is_web_address(text: str) -> bool:
    """Whether a text is meant as a web address, in any spelling."""
    return re.match(r"\s*https?:", text, re.IGNORECASE) is not None


def innermost(ip: Ip) -> Ip:
    """The IPv4 address inside an IPv6 address (mapped, 6to4, Teredo, NAT64); else the address itself."""
    if isinstance(ip, ipaddress.IPv4Address):
        return ip
    if inside := ip.ipv4_mapped or ip.sixtofour:
        return inside
    if ip.teredo:
        return ip.teredo[1]
    if ip in _NAT64 or (int(ip) >> 32 == 0 and int(ip) > 1):  # and the deprecated IPv4-compatible ones
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip


def is_public(ip: Ip) -> bool:
    """Whether an address is a public unicast address."""
    ip = innermost(ip)
    return ip.is_global and not ip.is_multicast


def is_nobodys(ip: Ip) -> bool:
    """Whether an address must never be contacted: link-local (metadata servers), unspecified, multicast."""
    ip = innermost(ip)
    return ip.is_link_local or ip.is_unspecified or ip.is_multicast or (ip.is_reserved and not ip.is_loopback)


def is_loopback(ip: Ip) -> bool:
    """Whether an address is this machine."""
    return innermost(ip).is_loopback


def _refused(what: str, why: str) -> RefusedError:
    return RefusedError(f"{what} cannot be used: {why}.", expected="https://host/path", fix="write it in the usual form")
