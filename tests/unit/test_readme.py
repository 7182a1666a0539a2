"""The pages' commands exist as they are written, and their links lead somewhere."""

from __future__ import annotations

import functools
import importlib
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import typer
from typer.core import TyperCommand
from typer.exceptions import TyperException

from conftest import REPOSITORY
from pipelines.cli import app

README = REPOSITORY / "README.md"
FOLDERS = ("components", "docker", "pipelines", "shared", "tests")
PAGES = [README, *(page for folder in FOLDERS for page in sorted((REPOSITORY / folder).rglob("*.md")))]
PALIGEMMA = typer.main.get_command(app)
MAKEFILE = (REPOSITORY / "Makefile").read_text()


def commands() -> list[tuple[Path, str]]:
    """Every command of ours in a block of shell lines, with its page."""
    found = []
    for page in PAGES:
        for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE):
            lines = block.replace("\\\n", " ").splitlines() if language in ("sh", "") else []
            found += [(page, line) for line in lines if re.match(r"(\w+=\S* )*(\.venv/|make )", line)]
    return found


def check_make(words: list[str]) -> None:
    """A target of the Makefile, with variables that it knows."""
    target, *settings = words
    assert re.search(rf"^{target}:.*##", MAKEFILE, re.MULTILINE), target
    for setting in settings:
        assert f"$({setting.partition('=')[0]})" in MAKEFILE or f"$(if $({setting.partition('=')[0]})" in MAKEFILE, setting


def check_module(words: list[str]) -> None:
    """What `python -m` starts: a step, or a module of ours."""
    if words[:2] == ["pip", "install"]:  # see test_extras.py
        return
    check_flags(command_of_module(words[0]), words[1:])


@functools.cache
def command_of_module(name: str) -> TyperCommand:
    """The command line of a step."""
    alone = typer.Typer(add_completion=False)
    alone.command()(importlib.import_module(f"{name}.__main__").run)
    return typer.main.get_command(alone)


def check_paligemma(words: list[str]) -> None:
    """The command `paligemma` and its subcommands."""
    command, words = PALIGEMMA, list(words)
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    assert not hasattr(command, "commands") or words == ["--help"], words
    check_flags(command, words)


def check_flags(command: TyperCommand, words: list[str]) -> None:
    """Parses as the command itself does: no unknown flag, none that is required left out, no value of another type."""
    if words != ["--help"]:
        command.make_context("x", list(words))


def check(line: str) -> None:
    """Fails where the line is none that a shell could run in a clone."""
    words = shlex.split(re.sub(r"\$\([^)]*\)", "x", line), comments=True)
    words = words[: words.index("&")] if "&" in words else words
    while re.match(r"\w+=", words[0]):
        words.pop(0)
    program, *words = words
    if program == "make":
        check_make(words)
    elif program == ".venv/bin/paligemma":
        check_paligemma(words)
    elif words[0] == "-m":
        check_module(words[1:])
    elif program in (".venv/bin/python", ".venv/bin/pytest"):
        assert (REPOSITORY / words[0].partition("::")[0]).exists(), words[0]
    else:
        assert program in (".venv/bin/tensorboard", ".venv/bin/ruff"), program


def test_every_command_is_one_that_is_there() -> None:
    found = commands()
    assert len(found) > 60
    for page, line in found:
        try:
            check(line)
        except (AssertionError, TyperException, ImportError) as error:
            pytest.fail(f"{page.relative_to(REPOSITORY)}: {line}: {error}")


@pytest.mark.parametrize(("command", "flag"), [("pipeline run", "--source"), ("preview", "--model"), ("generate", "--model")])
def test_a_command_names_its_model(command: str, flag: str) -> None:
    """So that nobody takes over a line that tunes or asks the demo's model without saying so."""
    found = [line for _, line in commands() if f"paligemma {command} " in line]
    assert found
    assert [line for line in found if f" {flag} " not in line] == []


@pytest.mark.parametrize(
    "line",
    [
        "make demos",
        "make images TARGET=cpu",
        ".venv/bin/paligemma previews --data x",
        ".venv/bin/paligemma preview --datas x",
        ".venv/bin/paligemma preview",
        ".venv/bin/paligemma export --model x --output y --format zip",
        ".venv/bin/python -m components.fetch --output x",
        ".venv/bin/pytest tests/nowhere",
    ],
)
def test_a_command_that_is_not_there_is_found(line: str) -> None:
    with pytest.raises((AssertionError, TyperException, ImportError)):
        check(line)


def links(page: Path) -> list[str]:
    """Where a page's links and pictures lead, outside of its blocks of code."""
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE))


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives a page's headings."""
    headings = re.findall(
        r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_lead_to_a_page_and_a_heading_that_are_there(page: Path) -> None:
    for link in links(page):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, ahead = set(), [README]
    while ahead:
        page = ahead.pop()
        if page in reached:
            continue
        reached.add(page)
        files = [(page.parent / link.partition("#")[0]).resolve() for link in links(page) if not link.startswith("https://")]
        ahead += [file for file in files if file.suffix == ".md"]
    assert {str(page.relative_to(REPOSITORY)) for page in PAGES if page not in reached} == set()


def test_the_readme_is_one_screen_and_three_paths() -> None:
    text = README.read_text()
    assert len(text.splitlines()) <= 150
    assert all((REPOSITORY / picture).stat().st_size < 100_000 for picture in re.findall(r"!\[.*?\]\((.*?)\)", text))
    assert [
        heading for heading in re.findall(r"^## (.*)$", text, re.MULTILINE) if heading in ("Tune", "Operate", "Review")
    ] == [
        "Tune",
        "Operate",
        "Review",
    ]


def test_what_we_rely_on_elsewhere_is_held_to_by_tests_that_exist() -> None:
    page = (REPOSITORY / "pipelines/README.md").read_text()
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| ")][2:]
    assert len(rows) > 25
    for what, where, tests in rows:
        assert where.strip(), what
        named = re.findall(r"`(tests/\S+?\.py)?(?:::(\w+))?`", tests)
        assert named, what
        file = ""
        for path, test in named:
            file = path or file
            assert (REPOSITORY / file).is_file(), file
            assert not test or f"def {test}(" in (REPOSITORY / file).read_text(), test


def test_files_that_the_tests_page_names_are_there() -> None:
    page = (REPOSITORY / "tests/README.md").read_text()
    named = set(re.findall(r"`((?:shared|components|pipelines|docker)/[\w/.-]+\.(?:py|yaml|sh|txt))`", page))
    assert len(named) >= 15
    assert [name for name in sorted(named) if "NAME" not in name and not (REPOSITORY / name).is_file()] == []


UPGRADING = (REPOSITORY / "pipelines/guides/upgrading.md").read_text()


def test_the_page_of_versions_is_of_this_one() -> None:
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    assert f"It is {version}." in UPGRADING
    assert f" to {version}\n" in UPGRADING


def test_modules_that_moved_are_where_the_page_says() -> None:
    rows = re.findall(r"^\| (.*) \| (.*) \|$", UPGRADING.partition("Modules of `paligemma` that moved")[2], re.MULTILINE)
    assert len(rows) > 10
    core = REPOSITORY / "shared/paligemma"
    for before, now in rows[2:]:
        old, new = ([name.replace(".", "/") for name in re.findall(r"`([\w.]+)`", cell)] for cell in (before, now))
        new = [f"{new[0]}/{name}" for name in old] if now.startswith("the same names in") else new
        assert len(old) == len(new), before
        assert [name for name in old if (core / f"{name}.py").exists()] == []
        assert [name for name in new if not (core / f"{name}.py").exists()] == []
