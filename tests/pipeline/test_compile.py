"""The compiled pipeline: committed, current, and as the design says."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
import yaml

from conftest import REPOSITORY
from pipelines.caching import NOT_REUSED, REUSED, check_caching
from pipelines.compile import compile_pipeline


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compiled") / "pipeline.yaml"
    compile_pipeline(path)
    return path


@pytest.fixture(scope="module")
def specification(compiled: Path) -> dict:
    return yaml.safe_load(compiled.read_text())


def test_the_committed_file_is_current(compiled: Path) -> None:
    committed = (REPOSITORY / "pipeline.yaml").read_text()
    assert committed == compiled.read_text(), "run `make pipeline` and commit pipeline.yaml"


def test_the_edges_are_the_designs(specification: dict) -> None:
    def edges(dag: dict) -> dict[str, list[str]]:
        return {name: sorted(task.get("dependentTasks", [])) for name, task in dag["tasks"].items()}

    outer, components = specification["root"]["dag"], specification["components"]
    assert edges(outer) == {"exit-handler-1": [], "summarize": ["exit-handler-1"]}
    assert outer["tasks"]["summarize"]["triggerPolicy"]["strategy"] == "ALL_UPSTREAM_TASKS_COMPLETED"
    dag = components["comp-exit-handler-1"]["dag"]
    assert edges(dag) == {
        "fetch-checkpoint": [],
        "prepare-data": ["fetch-checkpoint"],
        "prepare-data-2": ["fetch-checkpoint"],
        "preflight": ["fetch-checkpoint"],
        "finetune": ["fetch-checkpoint", "preflight", "prepare-data", "prepare-data-2"],
        "evaluate": ["fetch-checkpoint", "prepare-data-2"],
        "evaluate-2": ["evaluate", "fetch-checkpoint", "finetune", "prepare-data-2"],
        "condition-2": ["evaluate-2", "fetch-checkpoint", "finetune"],
    }
    assert dag["tasks"]["condition-2"]["taskInfo"]["name"] == "better"
    condition = dag["tasks"]["condition-2"]["triggerPolicy"]["condition"]
    assert condition == "inputs.parameter_values['pipelinechannel--evaluate-2-Output'] == true"
    assert edges(components["comp-condition-2"]["dag"]) == {"publish": []}


def test_both_evaluations_are_judged_by_what_the_user_asks_for(specification: dict) -> None:
    dag = specification["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    asked = {"task", "metrics", "mask_decoder", "batch_size", "decoding"}
    for name, wanted in (("evaluate", asked), ("evaluate-2", asked | {"margin", "registry"})):
        given = dag[name]["inputs"]["parameters"]
        passed = {key: value.get("componentInputParameter") for key, value in given.items()}
        assert {key: passed.get(key) for key in wanted} == {key: f"pipelinechannel--{key}" for key in wanted}
    assert asked | {"margin", "registry"} <= specification["root"]["inputDefinitions"]["parameters"].keys()


def test_the_exit_step_is_told_which_tasks_every_run_has(specification: dict) -> None:
    told = specification["root"]["dag"]["tasks"]["summarize"]["inputs"]["parameters"]["expected"]["runtimeValue"]["constant"]
    inner = specification["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    assert set(told.split(",")) == {name for name in inner if not name.startswith("condition")}


def test_no_task_is_served_from_kfps_cache(specification: dict) -> None:
    inner = [component["dag"] for component in specification["components"].values() if "dag" in component]
    tasks = [task for dag in [specification["root"]["dag"], *inner] for task in dag["tasks"].items()]
    assert len(tasks) == 11
    assert [name for name, task in tasks if task.get("cachingOptions", {}).get("enableCache")] == []


def test_every_step_is_reused_or_has_a_reason_not_to_be() -> None:
    steps = {path.parent.name for path in (REPOSITORY / "components").glob("*/component.py")}
    assert sorted([*REUSED, *NOT_REUSED]) == sorted(steps)
    with pytest.raises(ValueError, match="finetune is reused, and has no parameter fresh"):
        check_caching("finetune", [], {})
    with pytest.raises(ValueError, match="new_step has no reason"):
        check_caching("new_step", [], {})


def test_the_hash_of_every_input_artifact_is_a_parameter(specification: dict) -> None:
    dags = [component["dag"] for component in specification["components"].values() if "dag" in component]
    given = {}
    for name, task in (
        item for dag in dags for item in dag["tasks"].items() if "comp-condition" not in item[1]["componentRef"]["name"]
    ):
        inputs = task.get("inputs", {})
        given[name] = sorted(inputs.get("artifacts", {}))
        assert {f"{artifact}_sha256" for artifact in given[name]} <= inputs.get("parameters", {}).keys(), name
    assert given["finetune"] == ["checkpoint", "preflight", "records", "validation"]
    assert given["evaluate-2"] == ["baseline", "checkpoint", "records", "tuned"]
    assert given["publish"] == ["checkpoint", "evaluation", "tuned"]
    with pytest.raises(ValueError, match="the sha256 of records is no parameter of finetune"):
        check_caching("finetune", ["checkpoint", "records"], {"checkpoint_sha256": "x"})


def test_placeholders_are_whole_values(specification: dict) -> None:
    """KFP's driver fills in no other (resolveInputParameter of backend/src/v2/driver)."""
    constants = re.findall(r'"constant": "([^"]*pipeline_(?:job|task)[^"]*)"', json.dumps(specification))
    assert Counter(constants) == {"{{$.pipeline_job_uuid}}": 9, "{{$.pipeline_task_name}}": 9}


def test_nothing_is_installed_at_run_time(compiled: Path) -> None:
    assert "pip install" not in compiled.read_text()


def test_components_import_no_jax_at_module_level() -> None:
    import subprocess
    import sys

    names = [path.parent.name for path in (REPOSITORY / "components").glob("*/component.py")]
    code = "; ".join(f"import components.{name}.component, components.{name}.__main__" for name in names)
    code += "; import sys; print(sorted({'jax', 'tensorflow', 'flax'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stdout.strip() == "[]"
