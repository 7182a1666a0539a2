"""Imports point down: rooms are listed from the lowest, and none imports one above it. No file imports itself by a detour."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from conftest import REPOSITORY

ROOMS = [
    # What every room may use: errors, readers and writers of texts, what a terminal shows.
    {"errors", "extras", "foreign_json", "precision", "progress", "redaction", "regular_files", "safe_names", "terminal"},
    {"web_address", "web_client", "yaml_text"},
    {"storage"},
    {"command_line", "runtime"},
    {"models", "google", "reports"},
    {"artifacts"},
    {"checkpoints", "registry", "lineage", "launch"},
    {"data", "decoding"},
    {"model"},
    {"training", "evaluation"},
    {"preflight"},
    {"components"},
    {"pipelines"},
]
LEVELS = {name: level for level, rooms in enumerate(ROOMS) for name in rooms}


def sources() -> dict[str, Path]:
    """Every module of ours by its name."""
    files = [*REPOSITORY.glob("shared/paligemma/**/*.py"), *(REPOSITORY.glob("components/**/*.py"))]
    files += REPOSITORY.glob("pipelines/**/*.py")
    modules = {}
    for file in files:
        path = file.relative_to(REPOSITORY / "shared" if "shared" in file.relative_to(REPOSITORY).parts else REPOSITORY)
        modules[".".join(path.with_suffix("").parts).removesuffix(".__init__")] = file
    return modules


MODULES = sources()


def imported(module: str) -> Iterator[str]:
    """Modules of ours that a module imports, at its top or anywhere in it."""
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield from (one for one in (name if name in MODULES else node.module,) if one in MODULES)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)


def room(module: str) -> str:
    first, *rest = module.split(".")
    return rest[0] if first == "paligemma" and rest else first


def test_every_room_has_a_level() -> None:
    assert {room(module) for module in MODULES} - {"paligemma"} == set(LEVELS)


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"paligemma"}))
def test_no_import_points_up(module: str) -> None:
    here = room(module)
    above = [name for name in imported(module) if room(name) not in (here, "paligemma") and LEVELS[room(name)] > LEVELS[here]]
    assert above == []


def test_nothing_imports_in_a_circle() -> None:
    """Neither files nor, of one level, rooms."""
    list(TopologicalSorter({module: set(imported(module)) - {module} for module in MODULES}).static_order())
    rooms: dict[str, set[str]] = {}
    for module in MODULES:
        rooms.setdefault(room(module), set()).update(room(name) for name in imported(module) if room(name) != room(module))
    list(TopologicalSorter(rooms).static_order())
