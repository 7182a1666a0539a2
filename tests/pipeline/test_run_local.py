"""The DAG through KFP's own local runner."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import jax
import numpy as np
import pytest
from kfp import dsl
from step_processes import run_step

from conftest import REPOSITORY, XLA_FLAGS, SmallData
from paligemma.artifacts import results
from paligemma.artifacts.record import read_record
from paligemma.artifacts.run_date import today
from paligemma.checkpoints.npz import write_npz
from paligemma.checkpoints.open_checkpoint import open_checkpoint, resolve_embedded
from paligemma.errors import DamagedError, InputError
from paligemma.lineage.index import Index
from paligemma.lineage.queries import trace
from paligemma.preflight.analyze import MEMORY_VARIABLE
from paligemma.preflight.choice import read_choice
from pipelines.finetune import make_pipeline
from pipelines.plan import in_words, plan
from pipelines.run_local import RunOutputs, StepFailedError, run_pipeline


@pytest.fixture(autouse=True, scope="module")
def _steps_see_this_machine_as_it_is() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("XLA_FLAGS", XLA_FLAGS)
        yield


def eight_rows(data: SmallData) -> Path:
    return data.write(
        [{"image": data.add_image(f"{index}.png", index), "prefix": "ocr", "suffix": str(index)} for index in range(8)]
    )


@pytest.fixture
def data(small_data: SmallData) -> Path:
    return eight_rows(small_data)


def parameters(data: Path, **more: object) -> dict[str, object]:
    recipe = "steps: 2\nremat: none"
    given = {"train_data": str(data), "validation_data": str(data), "source": "embedded:tiny"}
    return {**given, "recipe": recipe, "decoding": "max_new_tokens: 4", **more}


@dataclass(frozen=True)
class Run:
    """A run that ended well, and where its artifacts and the registry are."""

    root: Path
    registry: Path
    given: dict[str, object]
    outputs: RunOutputs


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("finished")
    data = SmallData(folder / "data")
    data.folder.mkdir()
    eight_rows(data).rename(data.folder / f"{today()}.jsonl")
    root, registry = folder / "root", folder / "registry"
    decoding = "{max_new_tokens: 4, temperature: 0.5, top_k: 10, best_of: 2, seed: 3}"
    given = parameters(data.folder / "{date}.jsonl", registry=str(registry), task="ocr", decoding=decoding)
    given["validation_data"] = str(data.folder / f"{today()}.jsonl")
    return Run(root, registry, given, run_pipeline(given, root))


def linked(page: Path) -> set[Path]:
    """The pages that a page leads to, all of which are there."""
    text = page.read_text()
    found = re.findall(r'<a href="([^"]+)"', text)
    if "<title>Lineage</title>" in text:
        data = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
        found += [made["page"] for made in json.loads(data[1])["artifacts"].values() if made["page"]]
    there = {(page.parent / unquote(address)).resolve() for address in found}
    assert all(one.is_file() for one in there)
    return there


def test_artifacts_pass_between_the_steps(finished: Run) -> None:
    outputs = finished.outputs
    train = read_record(Path(outputs.tuned).parents[1] / "prepare-data/records")
    (data,) = [Path(entry.uri) for entry in train.inputs if entry.role == "data"]
    assert (data.suffix, len(data.stem), data.is_file()) == (".jsonl", len("2026-01-31"), True)
    tuned = read_record(outputs.tuned, "tuned-model")
    base, evaluation = read_record(outputs.base_evaluation), read_record(outputs.tuned_evaluation)
    by_role = {entry.role: entry.sha256 for entry in evaluation.inputs}
    assert by_role["tuned model"] == tuned.artifact.tree_sha256
    assert by_role["baseline"] == base.artifact.tree_sha256
    for record in (tuned, base):
        assert by_role["checkpoint"] in {entry.sha256 for entry in record.inputs}
    metrics = json.loads((Path(outputs.tuned_evaluation) / "metrics.json").read_text())
    assert (metrics["examples"], metrics["primary"]) == (8, "anls")
    run = Path(outputs.tuned).relative_to(finished.root).parts[0]
    kept = {path.parent.name for path in (finished.root / "lineage" / run).glob("*/*.json")}
    assert kept == {
        "fetch-checkpoint",
        "prepare-data",
        "prepare-data-2",
        "finetune",
        "evaluate",
        "evaluate-2",
        "preflight",
        "summarize",
    }
    assert {tuned.run, *(one.run for one in evaluation.inputs)} == {run}
    pages = {name: Path(page) for name, page in outputs.pages().items()}
    assert linked(pages["training"]) == {pages[name] for name in ("training data", "run")}
    assert linked(pages["base and tuned"]) == {pages[name] for name in ("validation data", "training", "base", "run")}
    assert linked(pages["fit"]) == {pages["run"]}
    assert linked(pages["run"]) == {page for name, page in pages.items() if name != "run"}


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def planned(finished: Run, images: Sequence[str] = (), **changes: object) -> dict[str, str]:
    """Why each task would be made; empty if it takes over what the finished run made. Planning leaves nothing."""
    before = files(finished.root)
    found = plan(finished.given | changes, str(finished.root), images)
    assert files(finished.root) == before
    assert all((one.reused is None) == bool(one.why) and str(one) for one in found)
    return {one.task: one.why for one in found}


def with_other_rows(finished: Run) -> Path:
    """Rows of which two are others, and which are in another order."""
    rows = Path(str(finished.given["validation_data"]))
    lines = rows.read_text().splitlines()
    other = rows.with_name("other.jsonl")
    other.write_text("\n".join([*lines[1:-1], lines[-1].replace("ocr", "read"), lines[0].replace("ocr", "read")]) + "\n")
    return other


@pytest.fixture
def _one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the processes of the steps: other tests may have given this one more."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)


@pytest.mark.usefixtures("_one_device")
def test_a_plan_says_which_steps_are_reused_and_why_not_the_others(finished: Run, tmp_path: Path) -> None:
    assert set(planned(finished).values()) == {""}
    assert list(in_words(plan(finished.given, str(finished.root))))[-1] == "7 of 7 steps are reused"
    assert {why for why in planned(finished, fresh=True).values() if "from what" not in why} == {"everything is made"}
    recipe = planned(finished, recipe="steps: 3\nremat: none")
    assert recipe["preflight"] == "recipe.steps 2 is 3 now"
    assert recipe["finetune"] == "steps 2 is 3 now"
    assert recipe["evaluate-2"] == "from what finetune will make"
    assert {recipe[task] for task in ("fetch-checkpoint", "prepare-data", "evaluate")} == {""}
    # The verdict on other hardware does not change what comes of training here.
    assert {task for task, why in planned(finished, target="cpu-8").items() if why} == {"preflight"}
    longer = str(finished.given["decoding"]).replace("max_new_tokens: 4", "max_new_tokens: 5")
    assert planned(finished, decoding=longer)["evaluate"] == "max_new_tokens 4 is 5 now"
    data = planned(finished, train_data=str(with_other_rows(finished)))
    assert data["prepare-data"] == "2 of 8 rows are new or changed, 2 are gone"
    assert data["finetune"] == "from what prepare-data will make"
    assert not data["prepare-data-2"]
    nowhere = plan(finished.given, str(tmp_path / "nowhere"))
    assert str(nowhere[0]) == "fetch-checkpoint  made    it was not made here before"
    assert list(in_words(nowhere))[-1] == "0 of 7 steps are reused; 7 have not run here before"
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.usefixtures("_one_device")
def test_a_plan_for_a_cluster_goes_by_the_records_of_its_images(finished: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "_versions", lambda: {"jax": "that of another machine"})
    assert planned(finished)["fetch-checkpoint"] == "its code or devices are others, or its artifact is gone or was changed"
    assert set(planned(finished, [""]).values()) == {""}  # the finished run was not in an image
    others = planned(finished, ["registry/cpu@sha256:0"])
    assert others["fetch-checkpoint"] == "another image"
    changed = planned(finished, [""], recipe="steps: 3\nremat: none", train_data=str(with_other_rows(finished)))
    assert changed["preflight"] == "recipe.steps 2 is 3 now"
    assert changed["prepare-data"] == "2 of 8 rows are new or changed, 2 are gone"
    monkeypatch.undo()
    assert "this machine's code" in planned(finished, ["registry/cpu@sha256:0"])["fetch-checkpoint"]


def test_a_recipe_whose_execution_is_auto_is_trained_as_preflight_chose(data: Path, tmp_path: Path) -> None:
    outputs = run_pipeline(parameters(data, recipe="steps: 2\nexecution: auto\nunroll: false"), tmp_path / "root")
    run = Path(outputs.tuned).parents[1]
    choice = read_choice(str(run / "preflight/preflight"))
    assert choice.settings == {"remat": "none", "frozen_dtype": "float16", "accumulate": 1, "data_parallel": 1}
    asked, tuned = read_record(run / "preflight/preflight"), read_record(outputs.tuned)
    assert asked.producer.parameters["recipe"]["remat"] == "auto"
    assert tuned.producer.parameters["chosen"] == choice.settings
    assert tuned.producer.parameters["chosen_by"] == choice.by
    assert asked.artifact.tree_sha256 in {entry.sha256 for entry in tuned.inputs if entry.role == "preflight"}
    with Index(str(tmp_path / "root")) as index:
        traced = json.dumps(trace(index, outputs.tuned))
    assert choice.by in traced


def test_both_evaluations_decode_as_the_pipeline_was_told(finished: Run) -> None:
    for location in (finished.outputs.base_evaluation, finished.outputs.tuned_evaluation):
        recorded = read_record(location).producer.parameters
        told = {"max_new_tokens": 4, "temperature": 0.5, "top_k": 10, "top_p": 1.0, "best_of": 2, "beams": 1, "seed": 3}
        assert {name: recorded[name] for name in told} == told


def test_a_model_that_is_no_better_is_not_published(finished: Run) -> None:
    """The demo's is, which test_demo.py looks at."""
    assert json.loads((Path(finished.outputs.tuned_evaluation) / "gate.json").read_text())["promote"] is False
    assert finished.outputs.release == ""
    assert not finished.registry.exists()


def test_a_job_that_does_not_fit_never_reaches_fine_tuning(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MEMORY_VARIABLE, "1000000")
    with pytest.raises(StepFailedError, match=r"preflight failed\. The job does not fit") as caught:
        run_pipeline(parameters(data), tmp_path / "root")
    assert caught.value.exit_code == 2
    run = next(path for path in (tmp_path / "root/lineage").iterdir() if path.is_dir() and path.name != "rows")
    tasks = {path.name for path in run.iterdir()}
    assert "preflight" in tasks
    assert "finetune" not in tasks


def test_a_failing_step_fails_the_run_with_its_own_words(data: Path, tmp_path: Path) -> None:
    with pytest.raises(StepFailedError) as caught:
        run_pipeline(parameters(data, validation_data=str(tmp_path / "none.jsonl")), tmp_path / "root")
    assert "prepare-data-2 failed. There is no data file" in str(caught.value)
    assert caught.value.exit_code == InputError.exit_code
    (log,) = (tmp_path / "root/logs").iterdir()
    assert "Traceback" in log.read_text()


def test_a_damaged_checkpoint_fails_the_run_with_exit_code_3(data: Path, tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(StepFailedError) as caught:
        run_pipeline(parameters(data, source=str(tmp_path / "x.npz")), tmp_path / "root")
    assert caught.value.exit_code == DamagedError.exit_code


def test_a_diverging_training_fails_the_run_with_exit_code_2(data: Path, tmp_path: Path) -> None:
    arrays = {name: array[...].copy() for name, array in open_checkpoint("embedded:tiny").arrays.items()}
    arrays["llm/final_norm/scale"][0] = np.nan
    (tmp_path / "ck").mkdir()
    write_npz(tmp_path / "ck/x.npz", arrays)
    (tmp_path / "ck/tokenizer.model").write_bytes((resolve_embedded("embedded:tiny") / "tokenizer.model").read_bytes())
    with pytest.raises(StepFailedError, match=r"finetune failed\. The loss or its gradient is not finite") as caught:
        run_pipeline(parameters(data, source=str(tmp_path / "ck")), tmp_path / "root")
    assert caught.value.exit_code == 2


def test_the_command_refuses_a_wrong_recipe_before_it_runs_anything(data: Path, tmp_path: Path) -> None:
    command = ["pipeline", "run", "--train-data", data, "--validation-data", data, "--set", "stepz=1", "--root", tmp_path / "r"]
    command += ["--source", "embedded:tiny"]
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", *map(str, command)], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "did you mean 'steps'" in done.stderr
    assert not (tmp_path / "r").exists()


def test_fine_tuning_killed_twice_ends_with_the_bytes_of_an_undisturbed_run(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def try_again(step: str, task: dsl.PipelineTask) -> None:
        if step == "finetune":
            task.set_retry(2, backoff_duration="0s")

    monkeypatch.setattr("pipelines.finetune.finetune_pipeline", make_pipeline(try_again))
    root, recipe = tmp_path / "artifacts", "steps: 60\nremat: none\nsave_every: 1"
    killed: list[int] = []
    done = threading.Event()
    killer = threading.Thread(target=kill_twice, args=(root / "state", killed, done))
    killer.start()
    try:
        outputs = run_pipeline(parameters(data, recipe=recipe, artifact_root=str(root)), tmp_path / "root")
    finally:
        done.set()
        killer.join()
    assert len(killed) == 2
    assert killed[0] < killed[1] < 60  # the second attempt went on from the first one's state
    (tmp_path / "recipe.yaml").write_text(recipe)
    folder = Path(outputs.tuned).parents[1]
    flags = ["--checkpoint", folder / "fetch-checkpoint/checkpoint", "--records", folder / "prepare-data/records"]
    flags += ["--validation", folder / "prepare-data-2/records"]
    flags += ["--recipe", tmp_path / "recipe.yaml", "--output", tmp_path / "undisturbed"]
    run_step("finetune", list(map(str, flags)))
    trained = [folder / "trained.safetensors" for folder in (Path(outputs.tuned), tmp_path / "undisturbed")]
    assert trained[0].read_bytes() == trained[1].read_bytes()


def kill_twice(states: Path, killed: list[int], done: threading.Event) -> None:
    """SIGKILLs the process of the task `finetune` twice, each time after it has saved further; notes the steps saved."""

    def saved() -> int:
        found = states.glob("*/step-*/checkpoint.json")
        return max((int(path.parent.name.split("-")[1]) for path in found), default=-1)

    while len(killed) < 2 and not done.wait(0.01):
        step = saved()
        if step > (killed[-1] + 3 if killed else 3):
            for process in of_task("finetune"):
                os.kill(process, signal.SIGKILL)
                killed.append(step)


def of_task(name: str) -> list[int]:
    """This process's children, at any depth, that execute the function of a KFP component."""
    parents, commands = {}, {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            commands[int(entry.name)] = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it has ended meanwhile
            continue

    def is_ours(process: int) -> bool:
        return process == os.getpid() or (process in parents and is_ours(parents[process]))

    flag = "--function_to_execute"
    running = {process for process, words in commands.items() if flag in words and words[words.index(flag) + 1] == name}
    # The shell that starts it has the same words: the one to kill is the last of its line.
    return [process for process in running if is_ours(process) and process not in {parents[one] for one in running}]
