"""Shared by every command: shows user errors without a traceback, and exits with their exit code."""

from __future__ import annotations

import functools
import inspect
import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_type_hints

import typer

from paligemma.errors import InputError, PaliGemmaError
from paligemma.redaction import without_passwords
from paligemma.storage.disk_space import explain_full_disk
from paligemma.terminal import printable

T = TypeVar("T")


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


def with_flag_groups(command: Callable[..., T]) -> Callable[..., T]:
    """Decorator: a parameter whose type is a dataclass stands for a flag for each of its fields, which commands can share.

    typer has no such thing. It sees a signature with the fields in the group's place; the command gets the object.
    Parameters from the first group on are passed by name.
    """
    signature = inspect.signature(command, eval_str=True)
    groups: dict[str, Any] = {}
    flat: list[inspect.Parameter] = []
    for name, parameter in signature.parameters.items():
        if is_dataclass(parameter.annotation):
            groups[name] = parameter.annotation
            flat += _flags(parameter.annotation)
        else:
            flat.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) if groups else parameter)

    @functools.wraps(command)
    def call(*positional: object, **named: object) -> T:
        for name, group in groups.items():
            named[name] = group(**{field.name: named.pop(field.name) for field in fields(group) if field.name in named})
        return command(*positional, **named)

    call.__annotations__ = {parameter.name: parameter.annotation for parameter in flat}
    vars(call)["__signature__"] = signature.replace(parameters=flat)
    return call


def _flags(group: Any) -> Iterator[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    for field in fields(group):
        default = inspect.Parameter.empty if field.default is MISSING else field.default
        kind = inspect.Parameter.KEYWORD_ONLY
        yield inspect.Parameter(field.name, kind, annotation=hints[field.name], default=default)


def say_moved(module: str) -> NoReturn:
    """Ends a module that was a program once: started by its old name, it would do nothing, and say so to nobody."""
    sys.stderr.write(f"error: {InputError('This is no program any more.', fix=f'python -m {module}')}\n")
    raise SystemExit(InputError.exit_code)
