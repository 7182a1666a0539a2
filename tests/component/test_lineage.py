"""The reviewer's questions, asked of real runs: two models on different data that share a bad row, one model without it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from lineage_runs import at_place

from components.evaluate.__main__ import run as evaluate
from components.fetch_checkpoint.__main__ import run as fetch_checkpoint
from components.finetune.__main__ import run as finetune
from components.prepare_data.__main__ import run as prepare_data
from conftest import ONE_DEVICE, REPOSITORY, SmallData
from paligemma.artifacts.record import file_sha256, read_record
from paligemma.artifacts.store import input_of, produce
from paligemma.checkpoints.open_checkpoint import resolve_embedded

BAD = {"prefix": "ocr", "suffix": "wrong"}


@dataclass(frozen=True)
class Runs:
    """What the fixture made.

    Attributes:
        root: where it is; runs `a` and `b` have the bad row, `c` has not, and of `a` there is a release.
        data: of each run, its JSONL file; the bad row is its last line, but for `c`.
        bad_image: of `a`.
    """

    root: Path
    data: dict[str, Path]
    bad_image: Path


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    root = tmp_path_factory.mktemp("lineage") / "root"
    data = {}
    for name, seeds in (("a", range(7)), ("b", range(3, 10)), ("c", range(8))):
        source = SmallData(tmp_path_factory.mktemp(f"data-{name}"))
        rows = [{"image": source.add_image(f"{seed}.png", seed), "prefix": "ocr", "suffix": str(seed)} for seed in seeds]
        if name != "c":
            rows.append({"image": source.add_image("bad.png", 99), **BAD})
        data[name] = source.write(rows)
        folder = root / name

        def step(task: str, function, name: str = name, folder: Path = folder, **arguments: object) -> str:
            output = str(folder / task / "artifact")
            with at_place(name, task, str(root)):
                function(output=output, **arguments)
            return output

        base = step("fetch", fetch_checkpoint)
        train = step("train", prepare_data, data=str(data[name]), checkpoint=base)
        recipe = [f"steps={2 if name == 'a' else 3}", "batch_size=8", "remat=none"]
        tuned = step("finetune", finetune, checkpoint=base, records=train, set_=recipe)
        if name != "c":
            judged = step("evaluate", evaluate, checkpoint=base, records=train, tuned=tuned, batch_size=8, max_new_tokens=2)
        if name == "a":
            release([("tuned model", tuned), ("evaluation", judged)], root)
    return Runs(root, data, data["a"].parent / "bad.png")


def release(inputs: list[tuple[str, str]], root: Path) -> None:
    """As `publish` does, as far as lineage goes."""
    with (
        at_place("a", "publish", str(root)),
        produce(root / "releases/v1", "release", "publish", {"name": "v1"}, [input_of(*one) for one in inputs]) as draft,
    ):
        (draft.folder / "manifest.json").write_text("{}\n")


def ask(root: Path, *words: str, code: int = 0) -> str:
    """What the command prints."""
    command = [sys.executable, "-m", "pipelines.cli", "lineage", *words, "--root", str(root)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, env=ONE_DEVICE)
    assert done.returncode == code, done.stderr
    return done.stdout


def test_impact_of_the_bad_row_names_exactly_the_models_trained_on_it(runs: Runs) -> None:
    row = json.loads((runs.root / "a/train/artifact/rows.jsonl").read_text().splitlines()[-1])
    for name in (row["row_id"], f"{runs.data['b']}:8", str(runs.bad_image)):
        found = json.loads(ask(runs.root, "impact", name, "--json"))
        assert {(one["run"], one["task"]) for one in found["models"]} == {("a", "finetune"), ("b", "finetune")}
        assert {(one["run"], one["task"]) for one in found["evaluations"]} == {("a", "evaluate"), ("b", "evaluate")}
        assert [one["output"] for one in found["releases"]] == [str(runs.root / "releases/v1")]
    assert "Models made from it: 2" in ask(runs.root, "impact", row["row_id"])


def test_the_trace_of_the_released_model_reaches_rows_weights_code_and_parameters(runs: Runs) -> None:
    text = ask(runs.root, "trace", str(runs.root / "releases/v1"))
    assert str(runs.data["a"]) in text
    assert file_sha256(runs.data["a"]) in text
    assert file_sha256(resolve_embedded("embedded:tiny") / "checkpoint.npz") in text
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert commit in text
    assert "parameter    steps = 2" in text
    assert str(runs.data["b"]) not in text


def test_a_difference_shows_changed_rows_parameters_and_metrics(runs: Runs) -> None:
    found = json.loads(ask(runs.root, "diff", "a", "b", "--json"))["tasks"]
    rows = found["train"]["rows"]
    assert (rows["added"], rows["removed"], rows["changed"]) == (3, 3, 0)
    assert {row["image"] for row in rows["examples"]["added"]} == {"7.png", "8.png", "9.png"}
    assert {"key": "steps", "before": 2, "after": 3} in found["finetune"]["parameters"]
    assert "final_loss" in {one["key"] for one in found["finetune"]["metrics"]}
    assert found["fetch"] == {}
    assert "rows        3 added, 3 removed, 0 changed" in ask(runs.root, "diff", "a", "b")


def test_every_record_names_the_records_of_its_inputs(runs: Runs) -> None:
    evaluation = read_record(runs.root / "a/evaluate/artifact", "evaluation")
    for one in evaluation.inputs:
        assert one.record == read_record(one.uri).sha256
        assert one.run == "a"
    assert evaluation.metrics.keys() == {"exact_match", "loss"}


def test_a_flipped_byte_and_a_deleted_file_are_found_and_named(runs: Runs, tmp_path: Path) -> None:
    assert json.loads(ask(runs.root, "verify", "--json"))["problems"] == []
    root = tmp_path / "copy"
    shutil.copytree(runs.root, root)
    weights, record = root / "a/finetune/artifact/trained.safetensors", next((root / "lineage/b/train").glob("*.json"))
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    gone = root / "b/evaluate/artifact/metrics.json"
    gone.unlink()
    record.write_text(record.read_text().replace('"prepare_data"', '"prepare_date"'))
    text = ask(root, "verify", code=3)
    for file in (weights, gone, record):
        assert str(file) in text


@pytest.mark.parametrize(
    "words",
    [["list"], ["show", "a"], ["show", "a/train"], ["trace", "a/finetune"], ["impact", "a/train"], ["diff", "a", "b"],
     ["verify"], ["prune"], ["report"]],
    ids=" ".join,
)  # fmt: skip
def test_every_command_answers_in_words_and_in_json(runs: Runs, words: list[str], tmp_path: Path) -> None:
    output = ["--output", str(tmp_path / "page.html")] if words == ["report"] else []
    assert json.loads(ask(runs.root, *words, *output, "--json"))
    assert len(ask(runs.root, *words, *output)) > 20


def test_what_is_not_there_exits_2(runs: Runs, tmp_path: Path) -> None:
    ask(runs.root, "show", "nothing", code=2)
    ask(tmp_path, "list", code=2)
    ask(runs.root, "export", code=2)
