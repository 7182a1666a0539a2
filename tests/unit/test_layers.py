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
    {
        "choices",
        "errors",
        "extras",
        "foreign_json",
        "json_leaves",
        "progress",
        "redaction",
        "regular_files",
        "safe_names",
        "terminal",
    },
    {"precision", "retry", "web_address", "web_client", "yaml_text"},
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


INSIDE = {
    "pipelines/cli.py": "`--help` is to be quick",
    "shared/paligemma/__init__.py": "JAX takes a second, and `import paligemma` need not",
    "shared/paligemma/preflight/worker.py": "JAX reads the environment when it is imported",
    "pipelines/compile.py": "KFP takes a third of a second, which `submit` with a wrong flag need not",
    "pipelines/run_local.py": "as above",
    "pipelines/backends/job.py": "as above",
    "pipelines/backends/connect.py": "one of two clients is needed",
}
"""Files that import modules of ours inside a function, and why."""


def test_imports_are_at_the_top() -> None:
    """But in KFP's components, whose bodies run elsewhere, and in commands, whose `--help` is to be quick."""
    found = set()
    for file in MODULES.values():
        name = file.relative_to(REPOSITORY).as_posix()
        if name.startswith("pipelines/commands/") or file.name in ("component.py", "distributed_component.py", "__main__.py"):
            continue
        tree = ast.parse(file.read_text())
        at_top = {id(node) for node in tree.body}
        inside = (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom | ast.Import) and id(node) not in at_top)
        if any(
            (node.module or "" if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0]
            in ("paligemma", "components", "pipelines")
            and not _is_for_types(tree, node)
            for node in inside
        ):
            found.add(name)
    assert found == set(INSIDE)


def _is_for_types(tree: ast.Module, node: ast.stmt) -> bool:
    blocks = (block for block in tree.body if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING")
    return any(node in block.body for block in blocks)
