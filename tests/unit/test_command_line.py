"""Commands that share groups of flags."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from paligemma.command_line import make_app, with_flag_groups
from paligemma.terminal import say


@dataclass(frozen=True)
class Place:
    """Where."""

    street: Annotated[str, typer.Option(help="Its name.")]
    number: Annotated[int, typer.Option(help="Of the house.", min=1)] = 1


@with_flag_groups
def send(what: str, place: Place, fast: bool = False) -> str:
    """Sends something."""
    return f"{what} to {place}, fast: {fast}"


def test_a_groups_fields_are_flags_and_the_command_gets_the_object() -> None:
    app = make_app()
    app.command()(lambda: None)
    app.command("send")(with_flag_groups(_say))
    done = CliRunner().invoke(app, ["send", "it", "--street", "High Street", "--fast"])
    assert done.output == "it to Place(street='High Street', number=1), fast: True\n"
    assert "--street" in CliRunner().invoke(app, ["send", "it"]).output  # it is missing
    assert CliRunner().invoke(app, ["send", "it", "--street", "x", "--number", "0"]).exit_code == 2


def _say(what: str, place: Place, fast: bool = False) -> None:
    say(f"{what} to {place}, fast: {fast}")


def test_a_program_calls_it_with_the_fields_by_name() -> None:
    assert send("it", street="x") == "it to Place(street='x', number=1), fast: False"
    assert send("it", fast=True, street="x", number=2) == "it to Place(street='x', number=2), fast: True"
    with pytest.raises(TypeError, match="street"):
        send("it")
    with pytest.raises(TypeError, match="stret"):
        send("it", street="x", stret="y")


def test_its_signature_has_the_fields_in_the_groups_place() -> None:
    assert list(inspect.signature(send).parameters) == ["what", "street", "number", "fast"]
    assert inspect.signature(send).parameters["number"].default == 1
    assert send.__doc__ == "Sends something."
