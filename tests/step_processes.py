"""Processes of steps that need no start of Python: each is forked from one that has imported what the steps import.

A step spends two seconds of processor time on its imports. What kills steps, or starts them again and again, would spend most
of its time there. Everything else is as in a process of its own: its memory, its signals, its files, its devices.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess

from conftest import ONE_DEVICE, REPOSITORY

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload([
    "components.evaluate.main",
    "components.fetch_checkpoint.main",
    "components.finetune.main",
    "components.prepare_data.main",
    "components.publish.main",
])  # fmt: skip


def start_step(step: str, flags: Sequence[str], environment: Mapping[str, str] = ONE_DEVICE) -> BaseProcess:
    """Starts `python -m components.STEP FLAGS`; its words go nowhere."""
    process = _FORKS.Process(target=_be_step, args=(step, list(flags), dict(environment)))
    process.start()
    return process


def run_step(step: str, flags: Sequence[str], environment: Mapping[str, str] = ONE_DEVICE) -> None:
    """Runs a step to its end, which has to be a good one."""
    process = start_step(step, flags, environment)
    process.join()
    assert process.exitcode == 0, f"{step} {flags} ended with {process.exitcode}"


def _be_step(step: str, flags: list[str], environment: dict[str, str]) -> None:
    assert len(os.listdir("/proc/self/task")) == 1, "a process with threads was forked"
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(REPOSITORY)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    sys.argv = [f"components.{step}", *flags]
    runpy.run_module(f"components.{step}", run_name="__main__", alter_sys=True)
