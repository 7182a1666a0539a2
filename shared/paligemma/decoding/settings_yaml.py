"""Decoding settings as YAML, the form in which a pipeline's parameter has them."""

from __future__ import annotations

import dataclasses
from typing import get_args, get_type_hints

from paligemma.decoding.settings import DecodeSettings
from paligemma.errors import InputError, did_you_mean
from paligemma.yaml_text import dump_yaml, parse_yaml

_TYPES = get_type_hints(DecodeSettings)
_NUMBERS = {name for name, kind in _TYPES.items() if kind in (int, float)}


def parse_settings(text: str, where: object = "the decoding settings") -> DecodeSettings:
    """Parses decoding settings from a YAML mapping of their names. What it leaves out, or an empty text, is the default.

    Raises:
        InputError: the text is not YAML, a key is unknown (with the nearest known key), or a value is wrong.
    """
    values = parse_yaml(text, where, "The value of decoding")
    if values is None:
        return DecodeSettings()
    if not isinstance(values, dict):
        expected = "lines like `max_new_tokens: 8`"
        raise InputError("The value of decoding is not a mapping.", where=where, expected=expected)
    for name, value in values.items():
        if name not in _TYPES:
            raise InputError(f"There is no decoding setting {name!r}.", where=where, fix=did_you_mean(str(name), _TYPES))
        if name not in _NUMBERS:
            if not isinstance(value, str):
                raise InputError(f"{name} is {value!r}.", where=where, expected=", ".join(get_args(_TYPES[name])))
            continue
        # A boolean is an integer to Python.
        if isinstance(value, bool) or not isinstance(value, int if _TYPES[name] is int else int | float):
            expected = "a whole number" if _TYPES[name] is int else "a number"
            raise InputError(f"{name} is {value!r}.", where=where, expected=expected)
    try:
        # A whole number is a number to a user.
        return DecodeSettings(**{name: _TYPES[name](value) if name in _NUMBERS else value for name, value in values.items()})
    except InputError as error:
        raise InputError(error.what, where=where, expected=error.expected, fix=error.fix) from None


def settings_yaml(settings: DecodeSettings) -> str:
    """The text that `parse_settings` gives these settings for."""
    return dump_yaml(dataclasses.asdict(settings))
