"""The leaves of a JSON value, by their paths: how two values differ is how their leaves do."""

from __future__ import annotations

from collections.abc import Iterator


def leaves(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Each path, such as `recipe.learning_rate`, and its leaf. A list is a leaf, and so is an empty object below the root."""
    if isinstance(value, dict) and (value or not path):
        for key, below in value.items():
            yield from leaves(below, f"{path}.{key}" if path else str(key))
    else:
        yield path, value
