"""Signs folders offline with an EC key in a file, by the library `model-signing` (OpenSSF Model Signing)."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from pathlib import Path

from paligemma.artifacts.record import RECORD_FILE
from paligemma.errors import DamagedError, InputError
from paligemma.extras import how_to_install

SIGNATURE_FILE = "model.sig"

KEY_VARIABLE = "PALIGEMMA_SIGNING_KEY"
"""Path of the private key (PEM), such as a mounted secret. The key itself is never a parameter."""

PASSWORD_VARIABLE = "PALIGEMMA_SIGNING_KEY_PASSWORD"


def signing_key() -> Path | None:
    """The private key's file; None if releases are not signed."""
    name = os.environ.get(KEY_VARIABLE)
    return Path(name) if name else None


def signer_of(key: Path) -> str:
    """Identifies a key: sha256 of the public key (DER) in hexadecimal.

    Raises:
        InputError: the file is missing or not an EC private key, or the library is not installed.
    """
    _need_library()
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

    try:
        private = load_pem_private_key(key.read_bytes(), (_password() or "").encode() or None)
        if not isinstance(private, EllipticCurvePrivateKey):
            raise ValueError("not an EC key")
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"The signing key cannot be read: {error}.",
            where=f"${KEY_VARIABLE} = {key}",
            expected="an EC private key in PEM form",
            fix="openssl ecparam -name prime256v1 -genkey -noout -out key.pem",
        ) from None
    return hashlib.sha256(private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def sign(folder: Path, key: Path) -> None:
    """Writes `model.sig`, over everything in the folder."""
    from model_signing import signing  # pyright: ignore[reportMissingImports]  # an extra

    config = signing.Config().set_hashing_config(_hashing())
    config.use_elliptic_key_signer(private_key=key, password=_password()).sign(folder, folder / SIGNATURE_FILE)


def verify_signature(folder: Path, public_key: Path) -> None:
    """Confirms that the holder of a key signed the folder's contents.

    Raises:
        InputError: the public key is invalid, or the library is not installed.
        DamagedError: the signature is from another key, or for other contents.
    """
    _need_library()
    from model_signing import verifying  # pyright: ignore[reportMissingImports]  # an extra

    try:
        config = verifying.Config().set_hashing_config(_hashing()).use_elliptic_key_verifier(public_key=public_key)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"The public key cannot be read: {error}.", where=public_key, fix="openssl ec -in key.pem -pubout -out key.pub"
        ) from None
    try:
        config.verify(folder, folder / SIGNATURE_FILE)
    except Exception as error:  # the library has no specific exception for a wrong signature
        raise DamagedError(
            f"The signature does not fit: {error or type(error).__name__}.", where=folder / SIGNATURE_FILE, expected=public_key
        ) from None


def _hashing():
    from model_signing import hashing  # pyright: ignore[reportMissingImports]  # an extra

    # The lineage record holds the signature's hash, so it is written later.
    ignored = [Path(SIGNATURE_FILE), Path(RECORD_FILE)]
    return hashing.Config().set_ignored_paths(paths=ignored, ignore_git_paths=False)


def _password() -> str | None:
    return os.environ.get(PASSWORD_VARIABLE)


def _need_library() -> None:
    if importlib.util.find_spec("model_signing") is None:
        raise InputError("Signatures need the library model-signing, which is not installed.", fix=how_to_install("signing"))
