"""Kaggle's models, through kagglehub and its cache."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from paligemma.checkpoints.npz import verify_weights
from paligemma.checkpoints.sources.remote import attempts, unavailable
from paligemma.errors import DamagedError, InputError

Precision = Literal["float16", "bfloat16", "float32"]
_FILES = {"float16": ".f16.npz", "bfloat16": ".bf16.npz", "float32": ".npz"}


def fetch(source: str, precision: Precision) -> Path:
    """`kaggle://owner/model/framework/variation/version[/file]`, through kagglehub and its cache."""
    import kagglehub
    from kagglehub.exceptions import KaggleApiHTTPError
    from requests import RequestException

    owner, *rest = source.removeprefix("kaggle://").split("/")
    if len(rest) not in (4, 5) or not rest[3].isdigit():
        raise InputError(
            f"{source!r} names no version of a Kaggle model.",
            expected="kaggle://owner/model/framework/variation/version, e.g. kaggle://google/paligemma/jax/paligemma-3b-pt-224/1",
        )
    model, framework, variation, version = rest[:4]
    handle = f"{owner}/{model}/{framework}/{variation}/{version}"
    name = rest[4] if len(rest) == 5 else variation + _FILES[precision]
    page = f"https://www.kaggle.com/models/{owner}/{model}"
    for again in attempts():
        try:
            path = Path(kagglehub.model_download(handle, path=name))
            try:
                verify_weights(path)
            except DamagedError:
                # kagglehub appends what a failing server says to an interrupted file, and does not check it.
                path = Path(kagglehub.model_download(handle, path=name, force_download=True))
                verify_weights(path)
            return path
        except KaggleApiHTTPError as error:
            status = getattr(error.response, "status_code", None)
            if status == 401:
                raise InputError(
                    f"Kaggle wants to know who asks for {handle}.",
                    fix="create a token at https://www.kaggle.com/settings and set KAGGLE_USERNAME and KAGGLE_KEY, or mount "
                    "it as ~/.kaggle/kaggle.json",
                ) from None
            if status == 403:
                raise InputError(
                    f"This Kaggle account may not download {handle}.",
                    fix=f"accept the model's licence at {page}, signed in as that account; then run again",
                ) from None
            if status == 404:
                raise InputError(f"Kaggle has no file {name} in {handle}.", fix=f"see {page} for versions and files") from None
            if not again:
                raise unavailable(source, error) from None
        except (RequestException, DamagedError) as error:
            if not again:
                raise (error if isinstance(error, DamagedError) else unavailable(source, error)) from None
    raise AssertionError("unreachable")
