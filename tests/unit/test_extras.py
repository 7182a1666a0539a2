"""What messages and pages say of optional libraries: a command that works in a clone, no name that a stranger could take."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from typing import get_args

import pytest

from conftest import REPOSITORY
from paligemma.extras import Extra, how_to_install

ENDINGS = (".py", ".md", ".yaml", ".toml", ".html", "Makefile", "Dockerfile")
SHIPPED = [
    path
    for folder in ("components", "docker", "pipelines", "shared")
    for path in sorted((REPOSITORY / folder).rglob("*"))
    if path.name.endswith(ENDINGS)
] + [REPOSITORY / name for name in ("README.md", "Makefile", "pyproject.toml", "pipeline.yaml")]
UNPUBLISHED = re.compile(r"\b(?:install|(?:uv|poetry|pdm) add|sync)\b[^\n`]*?[\s'\"]paligemma\b(?![/.])")


@pytest.mark.parametrize("command", ["pip install paligemma", "pip install 'paligemma[heif]'", 'uv pip install -U "paligemma"'])
def test_an_unpublished_name_is_recognized(command: str) -> None:
    assert UNPUBLISHED.search(command)


def test_no_message_and_no_page_says_to_install_a_name_that_is_not_published() -> None:
    assert len(SHIPPED) > 200
    found = [
        f"{path.relative_to(REPOSITORY)}: {match[0]}" for path in SHIPPED for match in UNPUBLISHED.finditer(path.read_text())
    ]
    assert found == []


def test_pages_say_it_in_the_same_words_as_messages() -> None:
    commands = {how_to_install(extra) for extra in get_args(Extra)}
    said = re.compile(r"[^\s`(]*python -m pip install [^`\n]*'\.\[[a-z]+\]'")
    found = {match[0] for path in SHIPPED if path.suffix == ".md" for match in said.finditer(path.read_text())}
    assert found == commands
    asked = {match[0] for path in SHIPPED if path.suffix == ".md" for match in re.finditer(r"'\.\[[a-z]+\]'", path.read_text())}
    assert asked == {f"'.[{extra}]'" for extra in get_args(Extra)}


def test_each_is_one_of_the_projects_extras() -> None:
    declared = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(get_args(Extra)) <= declared.keys()


def test_the_command_is_one_that_pip_takes() -> None:
    words = how_to_install("heif").replace("'", "").split()
    assert words[0] == ".venv/bin/python"
    done = subprocess.run([sys.executable, *words[1:4], "--help"], capture_output=True, text=True, check=True)
    assert all(flag in done.stdout for flag in words if flag.startswith("--"))
