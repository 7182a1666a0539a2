"""What the KFP interfaces of all steps share: their image, and what the parameters mean that say where a task is in its run.

KFP cuts a component's function out of its file, and a pod runs that text alone. So each function has to spell out its whole
signature: the hashes of its inputs, `artifact_root`, `run` and `run_task` cannot come from here. Their description does.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from kfp import dsl

CPU_IMAGE = "paligemma:cpu"
"""Image for steps without an accelerator; built from `docker/`. It contains only this repository, installed."""

_HASH = "_sha256"
_DESCRIPTIONS = {
    "fresh": "Make the artifact, even if an earlier run made it from the same inputs.",
    "artifact_root": "Folder or gs:// prefix for artifacts; empty: the runner's own location.",
    "run": "Name of the run; with artifact_root and run_task, it sets the artifact's location.",
    "run_task": "Name of the task in the run.",
}


def kfp_component(function: Callable[..., Any]) -> Any:
    """Decorator: a step's function as a KFP component, with a description of the parameters that other steps have too.

    The function's docstring ends with its section `Args`, if it has one.
    """
    documented = inspect.cleandoc(function.__doc__ or "")
    lines = [f"    {name}: {text}" for name in inspect.signature(function).parameters if (text := _description(name, function))]
    if lines:
        head = "" if "\nArgs:\n" in documented else "\n\nArgs:"
        function.__doc__ = "\n".join([documented + head, *lines])
    return dsl.component(function, base_image=CPU_IMAGE, install_kfp_package=False)


def _description(name: str, function: Callable[..., Any]) -> str:
    artifact = name.removesuffix(_HASH)
    if artifact != name and artifact in inspect.signature(function).parameters:
        return f"Expected tree hash of {artifact}, from the step upstream; empty: not compared."
    return _DESCRIPTIONS.get(name, "")
