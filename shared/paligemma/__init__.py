"""PaliGemma in JAX. The front door is `load`, which returns a `Model`; everything else is imported by its module."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from paligemma.model import Model, load

__all__ = ["Model", "load"]


def __getattr__(name: str):
    # JAX takes a second to import; `paligemma --help` must not.
    if name in __all__:
        from paligemma import model

        return getattr(model, name)
    raise AttributeError(f"module 'paligemma' has no attribute {name!r}")
