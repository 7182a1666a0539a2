"""The list of pictures that are made to take memory or time; see `picture_attacks`."""

from __future__ import annotations

from collections.abc import Callable

MIB = 1024 * 1024
SIDE = 8192
SIZE = 224

ATTACKS: dict[str, Callable[[], bytes]] = {}


def attack(make: Callable[[], bytes]) -> Callable[[], bytes]:
    """Adds an attack under the name of its function."""
    ATTACKS[make.__name__] = make
    return make
