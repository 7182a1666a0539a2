"""Every command, asked about things whose names steer a terminal: they are shown as escapes, and nothing else arrives."""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import typer
from lineage_runs import at_place, make_step, row_entry
from mask_weights import square_weights, write_weights

from conftest import REPOSITORY
from paligemma.artifacts.recording import attempt
from paligemma.artifacts.store import input_of, produce
from paligemma.checkpoints.npz import write_npz
from paligemma.command_line import run_app, run_command
from paligemma.errors import DamagedError
from paligemma.progress import WorkProgress
from paligemma.registry.releases import Manifest, formats_in, release_part
from paligemma.storage import cache
from paligemma.terminal import say, say_json, show_table
from pipelines.cli import app
from pipelines.run_log import RunLog
from servers.kubeflow import KubeflowServer

EVIL = "x\x1b[2J\x1b]0;owned\x07\x9b31m\u202e\r\x7f[red]"
SHOWN = r"x\x1b[2J\x1b]0;owned\x07\x9b31m\u202e\r\x7f[red]"
STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

NOTHING_FOREIGN = {
    "paligemma demo": "it reads what it wrote itself",
    "paligemma doctor": "it names folders of the user's own",
    "paligemma rollback": "it names releases, which can be called nothing else than letters, digits, '_', '.' and '-'",
}
"""Commands that are not asked, and why."""

ASKED = {
    # the command | its words, with {} for a folder | whether it is to name what is hostile
    "paligemma lineage list": ("--root {}/root", True),
    "paligemma lineage show": ("one/evil --root {}/root", True),
    "paligemma lineage trace": ("one/evil --root {}/root", True),
    "paligemma lineage impact": ("{}/home/rows.jsonl:1 --root {}/root", True),
    "paligemma lineage diff": ("one two --root {}/root", True),
    "paligemma lineage verify": ("--root {}/root", True),
    "paligemma lineage prune": ("--root {}/root --older-than 0", True),
    "paligemma lineage export": ("--root {}/root --openlineage", True),
    "paligemma lineage report": ("--root {}/root --json", True),
    "paligemma releases": ("--registry {}/registry", True),
    "paligemma verify": ("one --registry {}/registry", True),
    "paligemma convert coco-captions": ("--annotations {}/home/coco.json --output {}/out.jsonl", True),
    "paligemma convert coco-detection": ("--annotations {}/home/coco.json --output {}/out.jsonl", True),
    "paligemma convert vqa": (
        "--form okvqa --questions {}/home/vqa.json --annotations {}/home/vqa.json --output {}/out.jsonl",
        True,
    ),
    "paligemma convert captions": ("--form xm3600 --annotations {}/home/captions.jsonl --output {}/out.jsonl", True),
    "paligemma convert boxes": ("--form label-studio --annotations {}/home/boxes.json --output {}/out.jsonl", True),
    "paligemma convert refcoco": ("--annotations {}/home/coco.json --output {}/out.jsonl", True),
    "paligemma convert coco-instances": (
        "--annotations {}/home/coco.json --mask-codes {}/home/vae.npz --output {}/out.jsonl",
        True,
    ),
    "paligemma convert coco-panoptic": (
        "--annotations {}/home/coco.json --masks {}/home --mask-codes {}/home/vae.npz --output {}/out.jsonl",
        True,
    ),
    "paligemma convert masks": (
        "--images {}/home --masks {}/home/EVIL --label cat --mask-codes {}/home/vae.npz --output {}/out.jsonl",
        True,
    ),
    "paligemma convert vqav2": ("--questions {}/home/vqa.json --annotations {}/home/vqa.json --output {}/out.jsonl", True),
    "paligemma convert table": ("--table {}/home/table.jsonl --output {}/out.jsonl --images {}/home/EVIL", True),
    "paligemma convert chat": ("--conversations {}/home/chat.json --output {}/out.jsonl", True),
    "paligemma convert croissant": ("--description {}/home/croissant.json --output {}/out.jsonl", True),
    "paligemma convert folder": ("--folder {}/home/EVIL --output {}/out.jsonl", True),
    "paligemma generate": ("--model embedded:tiny --data {}/home/rows.jsonl", True),
    "paligemma export": ("--model {}/evil --output {}/out --format big_vision", True),
    "paligemma preflight": ("--checkpoint {}/evil", True),
    "paligemma preview": ("--model embedded:tiny --data {}/home/rows.jsonl --output {}/home/EVIL.html", True),
    "paligemma pipeline compile": ("--output {}/out.yaml --images {}/home/EVIL.json", True),
    "paligemma pipeline submit": ("--backend kfp --profile kfp-gpu-l4 --images {}/home/EVIL --parameters {}/x", True),
    "paligemma pipeline schedule": (
        "--backend kfp --profile kfp-gpu-l4 --images {}/home/EVIL --parameters {}/x --cron EVIL",
        True,
    ),
    "paligemma pipeline schedules": ("--backend kfp --host HOST", False),
    "paligemma pipeline unschedule": ("EVIL --backend kfp --host HOST", False),
    "paligemma pipeline pause": ("EVIL --backend kfp --host HOST", False),
    "paligemma pipeline resume": ("EVIL --backend kfp --host HOST", False),
    "paligemma pipeline logs": ("EVIL --backend kfp --host HOST", False),
    "paligemma pipeline status": ("run-1 --backend kfp --host HOST", True),
    "paligemma pipeline cancel": ("EVIL --backend kfp --host HOST", False),  # the client quotes it
    "paligemma pipeline run": ("--source embedded:tiny --train-data x --validation-data x --recipe {}/home/recipe.yaml", True),
    "components fetch_checkpoint": ("--source {}/evil.npz --output {}/out", True),
    "components prepare_data": ("--data {}/home/rows.jsonl --checkpoint embedded:tiny --output {}/out --workers 1", True),
    "components preflight": ("--checkpoint {}/evil --output {}/out", True),
    "components finetune": ("--checkpoint {}/evil --records {}/root/one/evil/records --output {}/out", True),
    "components evaluate": ("--checkpoint {}/evil --records {}/root/one/evil/records --output {}/out", True),
    "components publish": ("--checkpoint {}/evil --tuned {}/evil --evaluation {}/evil --registry {}/new", True),
    "components summarize": ("--output {}/out --root {}/root --run one", True),
}


def commands() -> Iterator[str]:
    """Every command there is."""

    def walk(command: object, words: list[str]) -> Iterator[str]:
        for name, child in getattr(command, "commands", {}).items():
            yield from walk(child, [*words, name])
        if not hasattr(command, "commands"):
            yield " ".join(words)

    yield from walk(typer.main.get_command(app), ["paligemma"])
    yield from (f"components {path.parent.name}" for path in (REPOSITORY / "components").glob("*/main.py"))


def test_every_command_is_asked() -> None:
    assert {*ASKED, *NOTHING_FOREIGN} == set(commands())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A root, a registry, a checkpoint and data sets in which everything that may have any name has a hostile one."""
    folder = tmp_path_factory.mktemp("terminal")
    home = folder / "home"
    home.mkdir()
    rows = [{"image": image, "prefix": "ocr", "suffix": "s"} for image in (EVIL, f"https://127.0.0.2/{EVIL}", f"gs://{EVIL}")]
    (home / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (home / "table.jsonl").write_text(json.dumps({"image": f"../../{EVIL}", "prefix": "p", "suffix": EVIL, EVIL: EVIL}) + "\n")
    coco = {"images": [{"id": EVIL, "file_name": f"../{EVIL}"}], "categories": [{"id": EVIL, "name": EVIL}]}
    segments = {"segmentation": [[1, 2, 3, 4, 5, 6]], "segments_info": [{"id": EVIL, "category_id": EVIL}]}
    coco["annotations"] = [{"image_id": EVIL, "caption": EVIL, "category_id": EVIL, "bbox": [EVIL, EVIL, 1, 1], **segments}]
    write_weights(home / "vae.npz", square_weights())
    (home / "coco.json").write_text(json.dumps(coco))
    vqa = {"questions": [{"question_id": EVIL, "question": EVIL, "image_id": EVIL}]}
    (home / "vqa.json").write_text(
        json.dumps(vqa | {"annotations": [{"question_id": EVIL, "answers": [EVIL], "image_id": EVIL}]})
    )
    (home / "captions.jsonl").write_text(json.dumps({"image/key": f"../{EVIL}", EVIL: {"caption": [EVIL]}}) + "\n")
    result = {"type": EVIL, "value": {EVIL: EVIL}}
    (home / "boxes.json").write_text(json.dumps([{"data": {"image": f"{EVIL}.png"}, "annotations": [{"result": [result]}]}]))
    turns = [{"role": "user", "content": EVIL}, {"role": "assistant", "content": [{"type": "text", "text": EVIL}]}]
    chats = [{"messages": turns, "images": [f"../{EVIL}"]}, {"messages": [{"role": EVIL}]}, {EVIL: EVIL}, {"messages": EVIL}]
    (home / "chat.json").write_text(json.dumps(chats))
    source = {"fileObject": {"@id": EVIL}, "extract": {"column": EVIL}}
    fields = [{"@id": f"{EVIL}/{name}", "dataType": EVIL, "source": source} for name in ("a", "b")]
    files = [{"@id": EVIL, "@type": "cr:FileObject", "contentUrl": f"https://{EVIL}"}]
    croissant = {"recordSet": [{"@id": EVIL, "field": fields}], "distribution": files}
    (home / "croissant.json").write_text(json.dumps(croissant))
    (home / "recipe.yaml").write_text(f"{json.dumps(EVIL)}: 1\n")
    (home / EVIL).mkdir()
    (home / EVIL / "1.png").write_bytes(b"no picture")
    (home / EVIL / EVIL).write_text("x")
    write_npz(folder / "evil.npz", {EVIL: np.zeros(3, np.float32)})
    (folder / "evil").mkdir()
    write_npz(folder / "evil/checkpoint.npz", {f"params/{EVIL}": np.zeros(3, np.float32)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(cache.CACHE_VARIABLE, str(folder / "cache"))
        _make_root(folder / "root", home / "rows.jsonl")
        _make_registry(str(folder / "registry"))
    return folder


def _make_root(root: Path, data: Path) -> None:
    for run in ("one", "two"):
        with at_place(run, "evil", str(root)):
            inputs = [input_of("data", data), input_of(EVIL, data)]
            with produce(
                f"{root}/{run}/evil/records", EVIL, EVIL, {EVIL: f"{EVIL}{run}", "more": {EVIL: EVIL}}, inputs
            ) as draft:
                (draft.folder / "rows.jsonl").write_text(json.dumps(row_entry(EVIL, run, 1)) + "\n")
                (draft.folder / "rejected.jsonl").write_text(json.dumps({"line": 1, "code": EVIL, "message": EVIL}) + "\n")
                draft.device, draft.metrics = EVIL, {EVIL: 1.0}
    failed = attempt(EVIL, f"{root}/one/failed/x", {EVIL: EVIL})
    with at_place("one", "failed", str(root)), contextlib.suppress(DamagedError), failed:
        raise DamagedError(EVIL)
    make_step(root, "released", "publish", "publish", "release")
    (root / "one/evil/records" / EVIL).write_text("added")
    (root / "lineage" / EVIL).write_text("added")
    (root / "lineage/one/evil" / "bad.json").write_text(json.dumps({EVIL: EVIL}))


def _make_registry(registry: str) -> None:
    with produce(str(release_part(registry, "one", "big_vision")), "checkpoint", "test", {}, []) as draft:
        (draft.folder / "checkpoint.npz").write_text("weights")
    part = release_part(registry, "one", "release")
    with produce(str(part), "release", "test", {}, []) as draft:
        manifest = Manifest(version="one", formats=list(formats_in(registry, "one", ["big_vision"])))
        (draft.folder / "manifest.json").write_text(manifest.model_dump_json())
        (draft.folder / "evaluation").mkdir()
        metrics = {"primary": EVIL, "metrics": {EVIL: {"value": 0.5, "low": 0.4, "high": 0.6}}}
        (draft.folder / "evaluation/metrics.json").write_text(json.dumps(metrics))
    (Path(str(part)).parent / "big_vision" / EVIL).write_text("added")


@pytest.fixture(scope="module")
def kubeflow() -> Iterator[str]:
    with KubeflowServer() as server:
        server.runs["run-1"] = {
            "run_id": "run-1",
            "display_name": EVIL,
            "state": EVIL,
            "run_details": {"task_details": [{"display_name": EVIL, "state": EVIL}]},
        }
        yield server.url


@pytest.mark.parametrize("name", ASKED)
def test_no_control_character_reaches_the_terminal(
    name: str, place: Path, kubeflow: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    words, names_it = ASKED[name]
    words = [word.replace("{}/out", f"{tmp_path}/out").replace("{}/new", f"{tmp_path}/new") for word in words.split()]
    words = [word.replace("{}", str(place)).replace("EVIL", EVIL).replace("HOST", kubeflow) for word in words]
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "4000")
    program, *group = name.split()
    monkeypatch.setattr(sys, "argv", [program, *(group if program == "paligemma" else []), *words])
    with _log_as_it_was(), contextlib.suppress(SystemExit):
        if program == "paligemma":
            run_app(app)
        else:
            run_command(importlib.import_module(f"components.{group[0]}.__main__").run, group[0])
    out, err = capfd.readouterr()
    assert not STEERING.search(out + err), repr(STEERING.search(out + err))
    assert "Traceback" not in err
    if names_it:
        assert "x\\x1b[2J" in out + err or "x\\u001b[2J" in out + err


@contextlib.contextmanager
def _log_as_it_was() -> Iterator[None]:
    log = logging.getLogger("paligemma")
    before = log.level, log.propagate, list(log.handlers)
    try:
        yield
    finally:
        log.level, log.propagate, log.handlers = before


def test_what_is_said_is_text(capsys: pytest.CaptureFixture) -> None:
    from rich.table import Table

    say(EVIL)
    say(f"one\n{EVIL}", lines=True, error=True)
    say_json(json.dumps({"a": EVIL}, ensure_ascii=False))
    table = Table(title=EVIL)
    table.add_column(EVIL)
    table.add_row(f"{EVIL}:smile:")
    show_table(table)
    out, err = capsys.readouterr()
    said, answer, *drawn = out.splitlines()
    assert (said, err) == (SHOWN, f"one\n{SHOWN}\n")
    assert json.loads(answer) == {"a": EVIL}
    assert not STEERING.search(out)
    assert sum(SHOWN in line for line in drawn) == 3
    assert f"{SHOWN}:smile:" in out


def test_so_is_what_progress_and_a_runs_log_show(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    with WorkProgress(f"fetching {EVIL}", "bytes", 3) as progress:
        progress.advance(3, facts=EVIL)
    with RunLog(tmp_path / "log") as log:
        log.write(f"Executing task '{EVIL}'\n  preparing {EVIL}: 3 of 5 rows\n")
    shown = capsys.readouterr().err
    assert shown.count(SHOWN) == 4
    assert not STEERING.search(shown)


def test_nothing_else_prints() -> None:
    """By hand, somebody forgets; see paligemma.terminal."""
    allowed = {
        "shared/paligemma/terminal.py": "it is the place",
        "shared/paligemma/command_line.py": "our errors, and the log's lines, which are printable",
        "shared/paligemma/progress.py": "the one live display",
        "shared/paligemma/preflight/worker.py": "to the process that started it",
        "pipelines/run_log.py": "the runner's output, in place of standard output",
        "pipelines/backends/kubeflow.py": "the client's output, moved to standard error",
        "pipelines/commands/generate.py": "JSON lines, to standard output or a file",
    }
    printing = re.compile(r"^ *print\(|typer\.(echo|secho)|click\.echo|Console\(|sys\.(stdout|stderr)", re.MULTILINE)
    found = {
        path.relative_to(REPOSITORY).as_posix()
        for folder in ("shared", "components", "pipelines")
        for path in (REPOSITORY / folder).rglob("*.py")
        if printing.search(path.read_text())
    }
    assert found == allowed.keys()
