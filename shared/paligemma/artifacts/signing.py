"""Ed25519 signatures of records, made with a private key in a mounted file and checked with its public key."""

from __future__ import annotations

import base64
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from paligemma.artifacts.record import Signature
from paligemma.errors import InputError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

KEY_VARIABLE = "PALIGEMMA_LINEAGE_KEY"
"""Path of the private key (PEM); unset: records are not signed."""

_CONTEXT = b"paligemma lineage record\0"  # a record's signature is valid for nothing else


def sign(sha256: str) -> Signature | None:
    """Signs a record's hash; None without a key.

    Raises:
        InputError: the key cannot be read.
    """
    path = os.environ.get(KEY_VARIABLE)
    if not path:
        return None
    key = _read_private(Path(path))
    value = base64.b64encode(key.sign(_CONTEXT + sha256.encode())).decode()
    return Signature(key=_fingerprint(key.public_key()), value=value)


def own_public_key() -> Ed25519PublicKey:
    """The public key of the key that this process signs with.

    Raises:
        InputError: the key cannot be read, or the environment names none.
    """
    return _read_private(Path(os.environ.get(KEY_VARIABLE, ""))).public_key()


def read_public_key(path: Path) -> Ed25519PublicKey:
    """The public key of a PEM file.

    Raises:
        InputError: the file holds no Ed25519 public key.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(path.read_bytes())
    except (OSError, ValueError):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise InputError(
            "There is no public key to check signatures with.",
            where=path,
            expected="an Ed25519 public key in a PEM file",
            fix="openssl pkey -in key.pem -pubout -out key.pub",
        )
    return key


def fault_of(signature: Signature | None, sha256: str, key: Ed25519PublicKey) -> str:
    """What is wrong with the signature of this hash; empty if it is valid."""
    from cryptography.exceptions import InvalidSignature

    if signature is None:
        return "it is not signed"
    if signature.key != _fingerprint(key):
        return "it is signed with another key"
    try:
        value = base64.b64decode(signature.value, validate=True)
        if base64.b64encode(value).decode() != signature.value:  # a signature has one valid spelling
            return "its signature does not fit its contents"
        key.verify(value, _CONTEXT + sha256.encode())
    except (InvalidSignature, ValueError):
        return "its signature does not fit its contents"
    return ""


def _read_private(path: Path) -> Ed25519PrivateKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError(
            "Lineage records cannot be signed.",
            where=f"{path} (from ${KEY_VARIABLE})",
            expected="an Ed25519 private key in a PEM file, without a passphrase",
            fix="openssl genpkey -algorithm ed25519 -out key.pem",
        )
    return key


def _fingerprint(key: Ed25519PublicKey) -> str:
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()
