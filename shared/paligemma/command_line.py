"""Shared by every command: shows user errors without a traceback, and exits with their exit code."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import typer

from paligemma.errors import InputError, PaliGemmaError
from paligemma.redaction import without_passwords
from paligemma.storage.disk_space import explain_full_disk
from paligemma.terminal import printable


def make_app(help: str | None = None, completion: bool = False) -> typer.Typer:
    """A typer app with our settings; `completion` adds the flags that install shell completion."""
    return typer.Typer(help=help, no_args_is_help=True, add_completion=completion, pretty_exceptions_enable=False)


def run_app(app: typer.Typer) -> None:
    """Runs an app as the program: shows our log lines, and turns our errors into a message and an exit code."""
    log = logging.getLogger("paligemma")
    log.setLevel(logging.INFO)
    log.propagate = False  # else a library that sets up the root logger would print every line twice
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Printable("%(message)s"))
    log.addHandler(handler)
    try:
        with explain_full_disk(Path()):  # steps name their own disks; this is for other commands
            app()
    except PaliGemmaError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(error.exit_code) from None


class _Printable(logging.Formatter):
    """A formatter that escapes control characters: names in messages often come from others."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(without_passwords(super().format(record)), lines=True)


def run_command(run: Callable, name: str) -> None:
    """Runs one function as the program `name`; its parameters are the flags."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(name)(run)
    run_app(app)


def say_moved(module: str) -> NoReturn:
    """Ends a module that was a program once: started by its old name, it would do nothing, and say so to nobody."""
    sys.stderr.write(f"error: {InputError('This is no program any more.', fix=f'python -m {module}')}\n")
    raise SystemExit(InputError.exit_code)
