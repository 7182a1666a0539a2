"""The formats of a release's model."""

from __future__ import annotations

from typing import get_args

from paligemma.choices import ModelFormat
from paligemma.errors import InputError, did_you_mean

FORMATS: tuple[ModelFormat, ...] = get_args(ModelFormat)


def parse_formats(text: str) -> tuple[ModelFormat, ...]:
    """Parses a comma-separated list of formats; drops repetitions.

    Raises:
        InputError: a format is unknown, or none is named.
    """
    wanted: list[ModelFormat] = []
    for name in dict.fromkeys(name.strip() for name in text.split(",") if name.strip()):
        if name not in FORMATS:
            raise InputError(f"There is no format {name!r}.", where="--formats", fix=did_you_mean(name, FORMATS))
        wanted.append(name)
    if not wanted:
        raise InputError("No format is named.", where="--formats", expected=", ".join(FORMATS))
    return tuple(wanted)
