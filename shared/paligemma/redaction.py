"""Removes secrets in addresses from texts: users and passwords always, query and fragment on request.

Covers every spelling that some program accepts as an address: other cases, backslashes, one slash or three, percent escapes.
"""

from __future__ import annotations

import hashlib
import re
from urllib.parse import unquote

_OURS = ("gs", "hf", "kaggle")
"""Schemes whose addresses have no user: `@` precedes a revision."""

_SCHEME = r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]{1,30})"  # bounded, so that time stays linear in the text's length
# Up to the last @ before a slash; or, if the password contains a slash, up to the last @ of all.
_USER = re.compile(
    rf"{_SCHEME}(?P<slashes>:[/\\]+)"
    r"(?P<user>[^\s/\\?#]*@|[^\s/\\?#@]*:(?!\d+[/\\?#\s]|\d+$)[^\s@]{0,1000}@(?:[^\s/\\?#]*@)?)"
)
_TAIL = re.compile(rf"(?P<start>{_SCHEME}:[/\\]+[^\s?#,]*)[?#][^\s,]*")
_ESCAPED = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{1,30}(?:%(?:25)*3a|:)(?:%(?:25)*(?:2f|5c)|[/\\])[^\s]*", re.IGNORECASE)


def without_passwords(text: str) -> str:
    """Removes user and password from a text's addresses."""
    return _USER.sub(_without_user, _ESCAPED.sub(_unescaped, text))


def without_secrets(text: str) -> str:
    """Removes user, password, query and fragment from a text's addresses: signed addresses have their key in the query."""
    return _TAIL.sub(lambda found: found[0] if found["scheme"].lower() in _OURS else found["start"], without_passwords(text))


def name_of_address(address: str) -> str:
    """A web address for lists and pages: without user, password and fragment, and with a hash in place of its query.

    Addresses that differ in what is asked for have different names. An address without any of these is its own name.
    """
    asked = address.strip().partition("#")[0]
    where, _, query = asked.partition("?")
    plain = without_passwords(where)
    if plain == where and not query:
        return where
    return f"{plain}?sha256:{hashlib.sha256(asked.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"


def _without_user(found: re.Match) -> str:
    if found["scheme"].lower() in _OURS:
        return found[0]
    return found["scheme"] + found["slashes"]


def _unescaped(found: re.Match) -> str:
    """The unescaped address, if escapes hide a user."""
    plain = found[0]
    while plain != (plain := unquote(plain)):
        pass
    return plain if _USER.search(plain) and not _USER.search(found[0]) else found[0]
