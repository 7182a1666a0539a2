"""Optional libraries: how to add them to the environment that `make` set up, from the folder of this clone.

The project is on no package registry. What is called `paligemma` there is somebody else's, or may be one day: no message and no
page says to install that name.
"""

from __future__ import annotations

from typing import Literal

Extra = Literal["heif", "huggingface", "lineage", "preflight", "signing"]


def how_to_accelerate(kind: Literal["gpu", "tpu"]) -> str:
    """The command that adds what JAX needs for an accelerator of one's own, as one types it in that folder."""
    return f"make setup ACCELERATOR={kind}"


def how_to_install(extra: Extra) -> str:
    """The command, as one types it in the folder that README.md is in."""
    return f".venv/bin/python -m pip install --no-build-isolation --editable '.[{extra}]'"
