"""Fetches the first available source: `kaggle://`, `https://`, `hf://`, `gs://`, a path, or the package."""

from __future__ import annotations

import logging

from paligemma.artifacts.store import localize
from paligemma.checkpoints.open_checkpoint import resolve_embedded
from paligemma.checkpoints.sources import huggingface, kaggle, web
from paligemma.checkpoints.sources.remote import redacted
from paligemma.choices import StoredDtype
from paligemma.errors import InputError, PaliGemmaError
from paligemma.redaction import without_passwords
from paligemma.storage.folders import kind_of
from paligemma.storage.location import SCHEME, parse_location
from paligemma.web_address import is_web_address

log = logging.getLogger("paligemma.sources")


def fetch_first(sources: str, sha256: str = "", precision: StoredDtype = "float16") -> tuple[str, str]:
    """Fetches the first available source to this machine.

    Args:
        sources: one source, or several separated by commas, preferred first.
        sha256: expected hash of the weight file; needed for `https://`.
        precision: which file of a Kaggle model, by the dtype of its weights.

    Returns:
        The source that was used, and the argument for `open_checkpoint`: a path, a `gs://` address, or `embedded:NAME`.

    Raises:
        PaliGemmaError: the last source's error, if all fail; earlier errors become warnings.
    """
    candidates = _candidates(sources)
    for source in candidates[:-1]:
        try:
            return source, _fetch(source, sha256, precision)
        except PaliGemmaError as error:
            log.warning("%s is not available, trying the next source: %s", redacted(source), error)
    return candidates[-1], _fetch(candidates[-1], sha256, precision)


def check_sources(sources: str, sha256: str = "") -> None:
    """Confirms without fetching that at least one source exists, or at least has a valid address.

    Raises:
        PaliGemmaError: the last source's error, if none is valid.
    """
    failure: PaliGemmaError | None = None
    for source in _candidates(sources):
        try:
            return _check(source, sha256)
        except PaliGemmaError as error:
            failure = error
    raise failure or AssertionError("unreachable")


def _candidates(sources: str) -> list[str]:
    if without_passwords(sources) != sources:  # before splitting: a password may hold a comma
        raise InputError(
            "A source names a user or a password.",
            where=redacted(sources),
            expected="an address without them, because records keep it",
            fix="let the server take a signed address, or fetch the file yourself and name its path",
        )
    candidates = [source.strip() for source in sources.split(",") if source.strip()]
    if not candidates:
        raise InputError("No source is given.", expected="a checkpoint, e.g. embedded:tiny")
    return candidates


def _check(source: str, sha256: str) -> None:
    if source.startswith("kaggle://"):
        kaggle.parse_source(source, "float16")
    elif is_web_address(source):
        web.parse_source(source, sha256)
    elif source.startswith("hf://"):
        huggingface.parse_source(source)
    elif source.startswith(SCHEME):
        if kind_of(parse_location(source)) is None:
            raise InputError(f"There is no {source}.", where="--source", expected="an object, or a prefix with a checkpoint")
    else:
        _fetch(source, sha256, "float16")  # only looks, fetches nothing


def _fetch(source: str, sha256: str, precision: StoredDtype) -> str:
    if source.startswith("kaggle://"):
        return str(kaggle.fetch(source, precision))
    if is_web_address(source):
        return str(web.fetch(source, sha256))
    if source.startswith("hf://"):
        return str(huggingface.fetch(source))
    if source.startswith(SCHEME):
        localize(source)
        return source
    if "://" in source:
        expected = "kaggle://, https://, hf://, gs://, a path, or embedded:tiny"
        raise InputError(f"{redacted(source)!r} is not a source of checkpoints.", expected=expected)
    if not resolve_embedded(source).exists():
        schemes = ("hf", "kaggle", "gs", "https")
        scheme = next((scheme for scheme in schemes if f"{scheme}:/" in source), "")  # an address that lacks a slash
        raise InputError(
            f"There is no checkpoint file or folder {redacted(source)}.",
            where="--source",
            expected="an existing path, kaggle://, hf://, gs://, https://, or embedded:tiny",
            fix=f"write {scheme}:// with two slashes" if scheme else "check the path",
        )
    return source
