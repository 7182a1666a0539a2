"""The formats of a release's model."""

from __future__ import annotations

from paligemma.errors import InputError, did_you_mean

FORMATS = ("big_vision", "huggingface")


def parse_formats(text: str) -> tuple[str, ...]:
    """Parses a comma-separated list of formats; drops repetitions.

    Raises:
        InputError: a format is unknown, or none is named.
    """
    wanted = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in wanted:
        if name not in FORMATS:
            raise InputError(f"There is no format {name!r}.", where="--formats", fix=did_you_mean(name, FORMATS))
    if not wanted:
        raise InputError("No format is named.", where="--formats", expected=", ".join(FORMATS))
    return wanted
