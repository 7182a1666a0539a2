"""Every command's help, every component's page, and exit codes."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from pydantic import BaseModel

from conftest import ONE_DEVICE, REPOSITORY
from paligemma.data.balance import FINDINGS
from paligemma.data.row_warnings import WARNINGS
from paligemma.data.rows import REASONS
from paligemma.decoding.settings import DecodeSettings
from paligemma.training.recipe import Recipe
from pipelines.caching import REUSED
from pipelines.cli import app

SETTINGS = {field.name for field in dataclasses.fields(DecodeSettings)}
COMPONENTS = sorted(path.parent.name for path in (REPOSITORY / "components").glob("*/main.py"))


def commands() -> dict[str, tuple[list[str], list[typer.core.TyperArgument]]]:
    """Command line and parameters of everything a user can call."""
    found = {}
    for name in COMPONENTS:
        alone = typer.Typer(add_completion=False)
        alone.command()(importlib.import_module(f"components.{name}.__main__").run)
        found[name] = ([f"components.{name}"], typer.main.get_command(alone).params)

    def walk(command, words: list[str]) -> None:
        for name, child in getattr(command, "commands", {}).items():
            walk(child, [*words, name])
        if not hasattr(command, "commands"):
            found["paligemma " + " ".join(words)] = (["pipelines.cli", *words], command.params)

    walk(typer.main.get_command(app), [])
    return found


COMMANDS = commands()


def call(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=ONE_DEVICE, check=False)


def test_what_there_is() -> None:
    assert COMPONENTS == ["evaluate", "fetch_checkpoint", "finetune", "preflight", "prepare_data", "publish", "summarize"]
    assert {"paligemma demo", "paligemma generate", "paligemma pipeline run", "paligemma pipeline compile"} < COMMANDS.keys()


@pytest.mark.parametrize("name", [*COMMANDS, "paligemma"])
def test_help_is_quick_and_names_every_flag_with_its_default(name: str) -> None:
    module, parameters = COMMANDS.get(name, (["pipelines.cli"], []))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = call(*module, "--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0
    # Of the processor, which is what imports cost; a busy machine makes anything else longer.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0
    text = re.sub(r"[\s│]+", " ", done.stdout)
    for parameter in parameters:
        assert parameter.opts[0] in text
        assert parameter.required or parameter.show_default is not True or parameter.default is not None
    assert text.count("[default:") + text.count("[required]") == len(parameters)


@pytest.mark.parametrize("component", COMPONENTS)
def test_the_components_page_has_the_flags_and_defaults_of_its_signature(component: str) -> None:
    page = (REPOSITORY / "components" / component / "README.md").read_text()
    table = {row[0]: row[1:] for row in re.findall(r"^\| `(--[a-z0-9-]+)` \| (.*?) \| (.*?) \|$", page, re.MULTILINE)}
    expected = {}
    for parameter in COMMANDS[component][1]:
        shown = parameter.show_default if isinstance(parameter.show_default, str) else f"`{parameter.default}`"
        expected[parameter.opts[0]] = ("required" if parameter.required else shown, parameter.help)
    assert table == expected


def test_finetunes_page_has_every_recipe_key() -> None:
    page = (REPOSITORY / "components/finetune/README.md").read_text()
    expected = {}
    for key, field in Recipe.model_fields.items():
        shown = f"`{json.dumps(field.default.model_dump())}`" if isinstance(field.default, BaseModel) else f"`{field.default}`"
        expected[key] = ("none" if field.default is None else shown.replace("|", "\\|"), field.description)
    rows = re.findall(r"^\| `([a-z_]+)` \| (.*?) (?<!\\)\| (.*?) \|$", page, re.MULTILINE)
    assert {row[0]: row[1:] for row in rows} == expected


def test_prepare_datas_page_has_every_reason_and_warning_code() -> None:
    page = (REPOSITORY / "components/prepare_data/README.md").read_text()
    assert dict(re.findall(r"^\| `([a-z_]+)` \| ([^|]*?) \|$", page, re.MULTILINE)) == REASONS | WARNINGS | FINDINGS


@pytest.mark.parametrize("component", COMPONENTS)
def test_the_components_interface_offers_what_its_command_line_does(component: str) -> None:
    module = importlib.import_module(f"components.{component}.component")
    inputs = getattr(module, component).component_spec.inputs
    flags = {parameter.name.rstrip("_") for parameter in COMMANDS[component][1]}
    if component == "evaluate":  # whose interface has them as one text
        assert flags >= SETTINGS
        flags = flags - SETTINGS | {"decoding"}
    hashes = {name for name in inputs if name.endswith("_sha256")}  # of input artifacts, by which tasks know them
    assert hashes == {f"{name}_sha256" for name in inputs if f"{name}_sha256" in inputs}
    fresh = {"fresh"} if component in REUSED else set()
    assert set(inputs) - hashes == (flags - {"output", "set", "state_root"}) | {"artifact_root", "run", "run_task"} | fresh
    shared = hashes | {"artifact_root", "run", "run_task"}
    assert {name: inputs[name].default for name in shared} == dict.fromkeys(shared, "")
    assert all(inputs[name].description for name in shared)
    for parameter in COMMANDS[component][1]:
        name = parameter.name.rstrip("_")
        if name in inputs and not parameter.required and inputs[name].default is not None:
            assert inputs[name].default == parameter.default


@pytest.mark.parametrize("name", ["evaluate", "paligemma generate", "paligemma pipeline run"])
def test_whatever_answers_has_the_same_flags_of_decoding(name: str) -> None:
    flags = {parameter.name: parameter for parameter in COMMANDS[name][1] if parameter.name in SETTINGS}
    assert {key: flag.default for key, flag in flags.items()} == dataclasses.asdict(DecodeSettings())
    assert {flag.rich_help_panel for flag in flags.values()} == {"Decoding"}
    assert [flag.help for flag in flags.values()] == [
        parameter.help for parameter in COMMANDS["evaluate"][1] if parameter.name in SETTINGS
    ]


def test_an_unknown_flag_exits_2() -> None:
    done = call("components.finetune", "--recipee", "x")
    assert done.returncode == 2
    assert "--recipee" in done.stderr


def test_wrong_input_exits_2_without_a_traceback(tmp_path: Path) -> None:
    done = call("components.fetch_checkpoint", "--output", str(tmp_path / "x"), "--source", str(tmp_path / "none"))
    assert done.returncode == 2
    assert done.stderr.startswith("error: There is no checkpoint file")
    assert "Traceback" not in done.stderr


def test_a_damaged_file_exits_3_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(b"PK\x03\x04 half a file")
    done = call("components.fetch_checkpoint", "--output", str(tmp_path / "x"), "--source", str(tmp_path / "x.npz"))
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "x").exists()


def test_generate_prints_an_answer(tmp_path: Path, records: Path) -> None:
    from PIL import Image

    Image.new("L", (8, 8), 255).save(tmp_path / "x.png")
    asked = ["--model", "embedded:tiny", "--image", str(tmp_path / "x.png"), "--prompt", "answer en what is shown?"]
    done = call("pipelines.cli", "generate", *asked)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in {"digit", "letter", "shape", "dots"}


def test_json_artifacts_are_json(records: Path) -> None:
    for path in records.glob("*.json"):
        json.loads(path.read_text())


@pytest.mark.parametrize("component", COMPONENTS)
def test_the_name_that_it_had_once_says_the_one_of_today(component: str) -> None:
    done = call(f"components.{component}.main", "--help")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith(f"python -m components.{component}\n")
