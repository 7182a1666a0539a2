"""The formats that a release's model is written in."""

from __future__ import annotations

from paligemma.errors import InputError, did_you_mean

FORMATS = ("big_vision", "huggingface")


def parse_formats(text: str) -> tuple[str, ...]:
    """The formats that a text names, with commas between, each once.

    Raises:
        InputError: one is unknown, or none is named.
    """
    wanted = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in wanted:
        if name not in FORMATS:
            raise InputError(f"There is no format {name!r}.", where="--formats", fix=did_you_mean(name, FORMATS))
    if not wanted:
        raise InputError("No format is named.", where="--formats", expected=", ".join(FORMATS))
    return wanted
