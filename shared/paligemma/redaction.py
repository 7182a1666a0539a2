"""Texts without the secrets that addresses in them may hold: users and passwords always, query and fragment where asked.

Any spelling counts that some program takes for an address: other cases, backslashes, one slash or three, percent escapes.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

_OURS = ("gs", "hf", "kaggle")
"""Schemes whose addresses have no user: what follows `@` in them is a revision."""

_SCHEME = r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]{1,30})"  # bounded, so that a long text takes no longer than long
# Up to the last @ before a slash; or, where a password is not over at the slash in it, up to the last @ there is.
_USER = re.compile(
    rf"{_SCHEME}(?P<slashes>:[/\\]+)"
    r"(?P<user>[^\s/\\?#]*@|[^\s/\\?#@]*:(?!\d+[/\\?#\s]|\d+$)[^\s@]{0,1000}@(?:[^\s/\\?#]*@)?)"
)
_TAIL = re.compile(rf"(?P<start>{_SCHEME}:[/\\]+[^\s?#,]*)[?#][^\s,]*")
_ESCAPED = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{1,30}(?:%(?:25)*3a|:)(?:%(?:25)*(?:2f|5c)|[/\\])[^\s]*", re.IGNORECASE)


def without_passwords(text: str) -> str:
    """A text whose addresses have neither user nor password."""
    return _USER.sub(_without_user, _ESCAPED.sub(_unescaped, text))


def without_secrets(text: str) -> str:
    """A text whose addresses have neither user, password, query nor fragment: signed addresses have their key in the query."""
    return _TAIL.sub(lambda found: found[0] if found["scheme"].lower() in _OURS else found["start"], without_passwords(text))


def _without_user(found: re.Match) -> str:
    if found["scheme"].lower() in _OURS:
        return found[0]
    return found["scheme"] + found["slashes"]


def _unescaped(found: re.Match) -> str:
    """The address as it reads without its escapes, if these hide that it has a user."""
    plain = found[0]
    while plain != (plain := unquote(plain)):
        pass
    return plain if _USER.search(plain) and not _USER.search(found[0]) else found[0]
