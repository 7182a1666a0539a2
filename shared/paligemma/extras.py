"""Optional libraries: the commands that add them to the environment of `make setup`, run in this clone's folder.

The project is on no package registry. A package called `paligemma` there is, or may become, somebody else's. So no message and
no page says to install that name.
"""

from __future__ import annotations

from typing import Literal

Extra = Literal["heif", "huggingface", "lineage", "preflight", "signing"]


def how_to_accelerate(kind: Literal["gpu", "tpu"]) -> str:
    """The command that adds what JAX needs for an accelerator, to be typed in the clone's folder."""
    return f"make setup ACCELERATOR={kind}"


def how_to_install(extra: Extra) -> str:
    """The command that installs an extra, to be typed in the clone's folder."""
    return f".venv/bin/python -m pip install --no-build-isolation --editable '.[{extra}]'"
