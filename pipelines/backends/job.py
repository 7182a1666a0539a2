"""The interface to a backend: runs a compiled pipeline with checked parameters, once or on a schedule."""

from __future__ import annotations

import dataclasses
import difflib
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from components.presets import read_preset
from components.publish.serving import parse_serving
from paligemma.data.source_list import parse_sources
from paligemma.decoding.settings import DecodeSettings
from paligemma.decoding.settings_yaml import parse_settings
from paligemma.errors import InputError, did_you_mean
from paligemma.storage.location import SCHEME
from paligemma.training.open_recipe import parse_open_recipe
from paligemma.training.recipe import check_images
from paligemma.yaml_text import dump_yaml, parse_documents, read_yaml
from pipelines.compile import compile_pipeline
from pipelines.placement import PlaceTask
from pipelines.profiles import find_profile

_TYPES = {"String": str, "Integer": int, "Float": (int, float), "Boolean": bool}


@dataclass(frozen=True)
class Job:
    """A pipeline to run.

    Attributes:
        name: displayed name of the run or schedule.
        documents: documents of the compiled YAML: the pipeline and, for Kubernetes, platform settings.
        parameters: the pipeline's checked parameters.
        service_account: service account of the steps; empty: the backend's default.
        root: gs:// prefix for the backend's own files.
    """

    name: str
    documents: tuple[dict, ...]
    parameters: Mapping[str, object]
    service_account: str
    root: str


@dataclass(frozen=True)
class Scheduled:
    """An existing schedule: its name, cron expression, state and next time, as reported by the backend."""

    name: str
    cron: str
    state: str
    next_run: str


class Backend(Protocol):
    """A backend. Calls may raise `BackendError` or `BackendUnavailableError`."""

    def submit(self, job: Job) -> str:
        """Runs a job now; returns the run's id."""
        ...

    def schedule(self, job: Job, cron: str, dry_run: bool, show: Callable[[str], None]) -> None:
        """Schedules a job by a cron expression. Replaces a schedule of this name if it differs; shows the difference first."""
        ...

    def status(self, run: str) -> str:
        """The state of a run, in a few lines."""
        ...

    def cancel(self, run: str) -> None:
        """Ends a run."""
        ...

    def schedules(self) -> list[Scheduled]:
        """All schedules of this pipeline that have not ended."""
        ...

    def unschedule(self, name: str) -> None:
        """Deletes a schedule; runs that it has started continue."""
        ...

    def pause(self, name: str) -> None:
        """Pauses a schedule, so that it starts no runs."""
        ...

    def resume(self, name: str) -> None:
        """Resumes a paused schedule; missed runs are not made up."""
        ...

    def logs(self, run: str, task: str) -> list[str]:
        """The log of a run's task: of its last attempt, or of failed attempts and the last."""
        ...


def make_job(name: str, parameters: Path, profile: str, place_task: PlaceTask, service_account: str, root: str) -> Job:
    """Compiles the DAG and checks its parameters, before anything is sent.

    Args:
        name: name of the run or schedule.
        parameters: YAML file with the parameters.
        profile: sets the hardware that `preflight` compiles for, unless the parameters do.
        place_task: places tasks on the profile's machines.
        service_account: service account of the steps.
        root: gs:// prefix for the backend's own files; empty: below artifact_root.

    Raises:
        InputError: a parameter is unknown, missing or of the wrong type.
    """
    from pipelines.finetune import finetune_pipeline

    inputs = finetune_pipeline.component_spec.inputs or {}
    checked = {"target": find_profile(profile).target, **check_parameters(parameters, inputs)}
    with tempfile.TemporaryDirectory(prefix="paligemma-") as folder:
        compile_pipeline(Path(folder) / "pipeline.yaml", place_task=place_task)
        documents = tuple(parse_documents((Path(folder) / "pipeline.yaml").read_bytes(), "pipeline.yaml", "The pipeline"))
    root = root or f"{str(checked['artifact_root']).rstrip('/')}/runner"
    return Job(name, documents, checked, service_account, root)


def check_parameters(path: Path, inputs: Mapping) -> dict[str, object]:
    """Reads the pipeline's parameters from a YAML file. `recipe` may be a preset's name or a mapping; `decoding` and `serving`
    may be mappings, and `train_data` and `validation_data` lists.

    Raises:
        InputError: names the first parameter that is unknown, missing or of the wrong type.
    """
    values = read_yaml(path, "The parameters file")
    if not isinstance(values, dict):
        raise InputError("The parameters are not names and values.", where=path, expected="train_data: gs://...")
    for name in values:
        if name not in inputs:
            raise InputError(f"There is no parameter {name!r}.", where=path, fix=_known_parameter(str(name), values, inputs))
    missing = [name for name, declared in inputs.items() if not declared.optional and name not in values]
    if missing:
        raise InputError(f"{', '.join(missing)} is missing.", where=path, expected="a value")
    if isinstance(recipe := values.get("recipe"), dict):
        values["recipe"] = dump_yaml(recipe)
    elif recipe:
        values["recipe"] = read_preset(recipe)
    if values.get("recipe"):
        recipe = parse_open_recipe(values["recipe"], [], str(path)).recipe
        if recipe.images_per_example > 1:
            values.setdefault("images_per_example", recipe.images_per_example)
        if isinstance(images := values.get("images_per_example"), int):
            check_images(recipe, images, f"images_per_example, in {path}")
    for name in ("decoding", "serving"):
        if isinstance(values.get(name), dict):
            values[name] = dump_yaml(values[name])
    for name in ("train_data", "validation_data"):
        if isinstance(values.get(name), list):
            values[name] = dump_yaml(values[name])
        if isinstance(values.get(name), str):
            parse_sources(values[name], f"{name}, in {path}", weights=name == "train_data")
    if isinstance(values.get("decoding"), str):
        parse_settings(values["decoding"], f"decoding, in {path}")
    if values.get("vertex_model"):
        parse_serving(str(values.get("serving", "")), path)
    for name, value in values.items():
        expected = inputs[name].type
        wrong_bool = isinstance(value, bool) and expected != "Boolean"
        if wrong_bool or not isinstance(value, _TYPES[expected]):
            fix = "put it in quotes" if expected == "String" and value is not None else None
            raise InputError(f"{name} is {value!r}.", where=path, expected=f"a value of the type {expected}", fix=fix)
        if expected == "Float":
            values[name] = float(value)
    if not str(values.get("artifact_root", "")).startswith(SCHEME):
        raise InputError(
            "A cluster's steps share no disk.", where=path, expected="artifact_root: gs://BUCKET/...", fix="set artifact_root"
        )
    return values


def _known_parameter(name: str, values: Mapping, inputs: Mapping) -> str:
    """What to write instead of an unknown parameter: decoding settings are one parameter, others may be misspelt."""
    settings = {field.name: values[field.name] for field in dataclasses.fields(DecodeSettings) if field.name in values}
    if name in settings:
        return f"write decoding: {dump_yaml(settings, default_flow_style=True).strip()}"
    return did_you_mean(name, inputs)


def no_such_schedule(name: str, there: Iterable[str]) -> InputError:
    """The error for a missing schedule."""
    names = sorted(there)
    return InputError(
        f"There is no schedule {name!r}.",
        expected=did_you_mean(name, names) if names else "one that `paligemma pipeline schedule` made; there is none",
        fix="`paligemma pipeline schedules` names all",
    )


def find_task(task: str, run: str, there: Iterable[str]) -> str:
    """The backend's name for a run's task.

    Raises:
        InputError: the run has no such task.
    """
    names = sorted(set(there))
    if task not in names:
        raise InputError(f"{run} has no task {task!r}.", where="--task", expected=did_you_mean(task, names) if names else None)
    return task


def step_names(pipeline: Mapping) -> set[str]:
    """Names of a compiled pipeline's tasks that run a container; nested DAGs are left out."""
    components = pipeline.get("components", {})
    dags = [pipeline.get("root", {}), *components.values()]
    tasks = [task for component in dags for task in component.get("dag", {}).get("tasks", {}).items()]
    return {name for name, task in tasks if "executorLabel" in components[task["componentRef"]["name"]]}


def difference(before: Mapping, after: Mapping) -> str:
    """The changes as a unified diff of YAML; empty if there are none."""
    old, new = (dump_yaml(canonical(value), sort_keys=True, width=200).splitlines() for value in (before, after))
    return "\n".join(difflib.unified_diff(old, new, "scheduled", "new", lineterm=""))


def canonical(value: object) -> object:
    """A JSON value with numbers in a canonical form.

    Both backends store values in protocol buffers' Struct, where all numbers are doubles: 0.0 may come back as 0, and 8 as 8.0.
    """
    if isinstance(value, Mapping):
        return {key: canonical(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [canonical(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
