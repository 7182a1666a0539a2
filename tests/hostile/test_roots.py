"""Roots that a stranger made or altered: `verify` finds it, and nothing that is asked of one touches anything else."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest
import typer

from conftest import REPOSITORY
from paligemma.artifacts.signing import read_public_key
from paligemma.checkpoints.open_checkpoint import open_model
from paligemma.errors import PaliGemmaError
from paligemma.lineage.verify import verify
from paligemma.registry.releases import roll_back
from paligemma.storage.cache import CACHE_VARIABLE
from pipelines.commands import lineage, releases

sys.path.insert(0, str(Path(__file__).parent))

from baits import BAITS
from forgeries import CATALOGUE, Alteration
from roots import Case, snapshot

SEEDS = 3
ROOTS, GROUPS = 500, 20
EVERYTHING = bool(os.environ.get("EVERY_QUESTION"))
"""Asks everything of every root, which takes minutes; else each is asked what its seed chooses."""
SECONDS = 120  # a question takes well under a second: only one that hangs gets there, on a slow machine too
MARK = "| alteration | found by `verify` | found by `verify --key` |"


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    with pytest.MonkeyPatch.context() as patch:
        made = Case(tmp_path_factory.mktemp("hostile"))
        patch.setenv(CACHE_VARIABLE, str(made.cache))
        patch.setenv("COLUMNS", "200")
        made.make()
        before = snapshot(made.genuine)
        yield made
        assert snapshot(made.genuine) == before  # whatever shared a file with it


@pytest.fixture(autouse=True)
def _home(case: Case) -> Iterator[None]:
    """The user's files are what they were, whatever an alteration moved there."""
    yield
    restore(case)


def restore(case: Case) -> None:
    for entry in case.home.iterdir():
        if entry.name not in ("rows.jsonl", "thesis.txt", "photos"):
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


@pytest.mark.parametrize("alteration", CATALOGUE, ids=lambda alteration: alteration.title)
def test_verify_finds(case: Case, alteration: Alteration) -> None:
    key = read_public_key(case.public)
    for seed in range(SEEDS):
        case.renew(models=False)
        restore(case)
        assert verify(case.root, key).problems == []
        alteration.apply(case, Random(seed))
        found = verify(case.root).problems != [], verify(case.root, key).problems != []
        assert found == (alteration.found, alteration.found_with_key), f"seed {seed}"


def test_the_guide_has_the_table_of_what_is_found() -> None:
    text = (REPOSITORY / "pipelines/guides/lineage.md").read_text()
    table = text[text.index(MARK) :].split("\n\n", 1)[0]
    assert table == render_table()


def render_table() -> str:
    """What the catalogue says, as Markdown."""
    words = {True: "yes", False: "no"}
    lines = [f"| {one.title} | {words[one.found]} | {words[one.found_with_key]} |" for one in CATALOGUE]
    return "\n".join([MARK, "| --- | --- | --- |", *lines])


@pytest.mark.parametrize("group", range(GROUPS))
def test_nothing_else_is_touched(case: Case, group: int) -> None:
    """Each root has one to three things wrong; everything that can be asked of it ends as it should."""
    for seed in range(group, ROOTS, GROUPS):
        random = Random(seed)
        models = EVERYTHING or seed // GROUPS % 2 == 0
        case.renew(models)
        restore(case)
        wrong = random.choices([*(one.apply for one in CATALOGUE), *BAITS * 2], k=random.randint(1, 3))
        for forge in wrong:
            try:
                forge(case, random)
            except (OSError, LookupError, ValueError, PaliGemmaError):
                continue  # what the one before has left is nothing that this one can alter
        before = snapshot(case.home), sorted(path.name for path in case.top.iterdir())
        asked = ask(case, random, seed, models)
        said = "".join(text for _, text in asked)
        assert snapshot(case.home) == before[0], (seed, [what for what, _ in asked])
        assert sorted({path.name for path in case.top.iterdir()} - {"cache"}) == sorted(set(before[1]) - {"cache"}), seed
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", said), seed


def ask(case: Case, random: Random, seed: int, models: bool) -> list[tuple[str, str]]:
    """Asks many things of a root; what, and what was said."""
    root, output = str(case.root), str(case.output)
    asked = {
        "list": lambda: run(lineage.app, "list"),
        "show": lambda: run(lineage.app, "show", random.choice(["one", "two", "one/train", "bait", "real/publish"])),
        "trace": lambda: run(lineage.app, "trace", random.choice(["one/publish", "two/finetune", "bait/bait"])),
        "impact": lambda: run(lineage.app, "impact", random.choice(["1.png", "one/fetch", "3.png"])),
        "diff": lambda: run(lineage.app, "diff", "one", "two"),
        "verify": lambda: run(lineage.app, "verify"),
        "verify --key": lambda: run(lineage.app, "verify", "--key", str(case.public)),
        "prune": lambda: run(lineage.app, "prune", "--delete", "--older-than", "0"),
        "report": lambda: run(lineage.app, "report", "--output", f"{output}/lineage.html"),
        "export": lambda: run(lineage.app, "export", "--openlineage", "--output", f"{output}/events.jsonl"),
        "list --json": lambda: run(lineage.app, "list", "--json"),
    }
    of_models = {
        "generate": lambda: open_model(f"{root}/real/finetune/tuned"),
        "evaluate": lambda: open_evaluated(f"{root}/real/finetune/tuned", f"{root}/one/train/records"),
        "releases": lambda: run(releases.app, "releases"),
        "rollback": lambda: roll_back(f"{root}/registry", random.choice(["", "..", "../../home", "another"])),
        "publish": lambda: publish(case),
    }

    def run(app: object, *words: str) -> str:
        where = ("--registry", f"{root}/registry") if app is releases.app else ("--root", root)
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = command_of(app).main([*words, *where], standalone_mode=False)
        assert code in (None, 0, 2, 3, 4), said.getvalue()
        return said.getvalue()

    names = [*asked, *of_models]
    if not EVERYTHING:
        names = ["verify --key", "prune", *random.sample(sorted(asked.keys() - {"prune", "verify --key"}), 2)]
        names += random.sample(sorted(of_models), 1) if models else []
    return [(name, answered({**asked, **of_models}[name], f"seed {seed}: {name}")) for name in names]


@functools.cache
def command_of(app: typer.Typer) -> object:
    """Typer builds a command anew at every call, which takes longer than most answers."""
    return typer.main.get_command(app)


def open_evaluated(tuned: str, records: str) -> None:
    """What evaluate does before it computes anything."""
    from paligemma.data.records import open_records

    open_model(tuned)
    open_records(records)


def publish(case: Case) -> None:
    """What publish does before it writes anything."""
    from components.publish.release import read_candidate
    from paligemma.registry.releases import read_champion

    parts = [f"{case.root}/real/{name}" for name in ("fetch/checkpoint", "finetune/tuned", "evaluate/evaluation")]
    candidate = read_candidate(*parts, f"{case.root}/registry", "big_vision", "stored")
    candidate.check_decision(read_champion(f"{case.root}/registry"))


def answered(question: Callable[[], object], what: str) -> str:
    """What was said, or our own error; anything else is a bug. It has ten seconds."""

    def stop(number: int, frame: object) -> None:
        raise AssertionError(f"{what} hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        return str(question() or "")
    except PaliGemmaError as error:
        return str(error)
    except AssertionError:
        raise
    except Exception as error:
        raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
