"""What the workers of `decode.py` share, in whichever environment they run: the way they are asked and answer.

A worker writes a JSON line with the tokens that it decodes greedily from the case's prompts; then, for every line `ROWS`
that it is sent, it decodes that many of them and writes a JSON line with its seconds. Needs numpy and Linux.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import numpy as np

NEW_TOKENS = 32
"""Tokens that are decoded after the first, which is the prefill's."""


def step_worker(name: str) -> ModuleType:
    """A worker of `step.py`, which knows how to build the network; it finds the `worker` module that it was written for."""
    ours = sys.modules["worker"]
    sys.modules["worker"] = load("worker")
    try:
        return load(name)
    finally:
        sys.modules["worker"] = ours


def load(name: str) -> ModuleType:
    """A file of `step_workers/` as a module."""
    place = Path(__file__).parents[1] / f"step_workers/{name}.py"
    specification = importlib.util.spec_from_file_location(f"step_{name}", place)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def read_case() -> tuple:
    """The case of the command line, and its prompts: images, tokens without padding."""
    case = load("worker").Case(Path(sys.argv[1]), "none")
    (batch,) = case.batches
    return case, batch["images"], batch["tokens"]


def serve(decode: Callable[[int], np.ndarray], measure: Callable[[int], list[float]], packages: list[str]) -> None:
    """Answers.

    Args:
        decode: the tokens `[rows, 1 + NEW_TOKENS]` of so many prompts.
        measure: seconds of their prefill with one token; of a run without the tokens after it, in the shape of one with them;
            and of one with them.
        packages: whose versions to report.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    tokens = {rows: np.asarray(decode(rows)).tolist() for rows in (1, 8)}
    for rows in tokens:
        measure(rows)
    answers.write(json.dumps({"tokens": tokens[8], "versions": {name: version(name) for name in packages}}) + "\n")
    for line in sys.stdin:
        answers.write(json.dumps({"seconds": measure(int(line))}) + "\n")
