"""Says before a run which of its steps have a result already, why the others have not, and what these took last time.

It follows the compiled DAG, and asks each step itself, through the very function that a task calls: a step that is planned ends
where it would take over a result, or would begin to work.
"""

from __future__ import annotations

import contextvars
import importlib
import inspect
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any, get_args

from google.protobuf import json_format
from kfp import dsl
from pydantic_core import to_jsonable_python

from paligemma.artifacts.record import RECORD_FILE, MadeRecord
from paligemma.artifacts.recording import FOLDER, package_versions, planning
from paligemma.artifacts.results import NotMadeError
from paligemma.artifacts.store import LOCATION, record_of
from paligemma.lineage.diff import changes
from paligemma.lineage.index import Index, unpack
from paligemma.storage.files import exists
from paligemma.storage.folders import is_folder
from paligemma.storage.location import parse_location
from paligemma.training.open_recipe import parse_open_recipe
from pipelines.caching import NOT_REUSED
from pipelines.finetune import finetune_pipeline

_RUN = "plan"
_CHANNEL = "pipelinechannel--"
_VERDICT = "preflight"
_LOOKED_AT = 20
"""Latest records of a task that are compared with what it would make."""
_NAMED = 3
"""Differences that are named."""


@dataclass(frozen=True)
class Planned:
    """What will become of one task.

    Attributes:
        task: its name in the DAG.
        reused: the record of the artifact that it takes over; None if it makes one.
        why: why it makes one; or what would make it do so all the same, if only the work itself can tell; else empty.
        before: the latest record of what this task made; None if there is none.
    """

    task: str
    reused: MadeRecord | None
    why: str
    before: MadeRecord | None

    def __str__(self) -> str:
        if self.reused is not None:
            unless = f", unless {self.why}" if self.why else ""
            return f"{self.task:<17} reused  from run {self.reused.run}{unless}"
        took = f" ({_duration(self.before.seconds)} last time)" if self.before else ""
        return f"{self.task:<17} made    {self.why}{took}"


def plan(parameters: Mapping[str, object], root: str, images: Sequence[str] = ()) -> list[Planned]:
    """What a run would do, task by task. Works on nothing, and leaves nothing below the root.

    Args:
        parameters: parameters of the pipeline; those that are left out have their defaults.
        root: the root of artifacts and records.
        images: of a run on a cluster, its images. Their code and packages are not those of this machine. So a step counts as
            reused if one of them made an artifact from the same inputs with the same settings.

    Raises:
        PaliGemmaError: an input is missing or wrong, as a step finds it.
    """
    values = {**_defaults(), **parameters, "artifact_root": root}
    planned: list[Planned] = []
    made: dict[str, MadeRecord] = {}
    with ExitStack() as stack:
        stack.enter_context(planning())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="paligemma-")))
        has_records = is_folder(parse_location(root) / FOLDER)
        index = stack.enter_context(Index(root)) if has_records else None
        for name, step, task in _tasks():
            earlier = _records_of(index, name)
            if not parse_open_recipe(str(values["recipe"])).open:
                task = _without(task, _VERDICT)  # it only holds the task back then, and says nothing that the task takes
            if missing := sorted(_producers(task) - made.keys()):
                reused, why = None, f"from what {', '.join(missing)} will make"
            else:
                reused, why = _ask(step, name, _arguments(task, values, made), folder, earlier, images)
            if reused is not None:
                made[name] = reused
            planned.append(Planned(name, reused, why, next((one for one in earlier if one.cached_from is None), None)))
    return planned


def in_words(planned: Sequence[Planned]) -> Iterator[str]:
    """The plan, a line for each task, and what is to be expected of the whole."""
    for one in planned:
        yield str(one)
    for step in NOT_REUSED:
        yield f"{step:<17} made    {'if the tuned model is better' if step == 'publish' else NOT_REUSED[step]}"
    again = [one for one in planned if one.reused is None]
    known = [one.before for one in again if one.before is not None]
    expected = [f"{len(planned) - len(again)} of {len(planned)} steps are reused"]
    if known:
        cost = sum(record.cost_usd or 0 for record in known)
        paid = f", and cost {cost:.2f} US dollars" if cost else ""
        expected.append(
            f"of the others, {len(known)} took {_duration(sum(record.seconds for record in known))} last time{paid}"
        )
    if len(known) < len(again):
        expected.append(f"{len(again) - len(known)} have not run here before")
    yield "; ".join(expected)


def _tasks() -> Iterator[tuple[str, str, dict]]:
    """Name, step and specification of the tasks that every run has, each after the tasks that it takes something from."""
    spec = json_format.MessageToDict(finetune_pipeline.pipeline_spec)
    [dag] = [part["dag"] for part in spec["components"].values() if "fetch-checkpoint" in part.get("dag", {}).get("tasks", {})]
    tasks = {name: task for name, task in dag["tasks"].items() if "dag" not in spec["components"][task["componentRef"]["name"]]}
    for name in TopologicalSorter({name: sorted(_producers(task)) for name, task in sorted(tasks.items())}).static_order():
        executor = spec["components"][tasks[name]["componentRef"]["name"]]["executorLabel"]
        arguments = spec["deploymentSpec"]["executors"][executor]["container"]["args"]
        yield name, arguments[arguments.index("--function_to_execute") + 1], tasks[name]


def _defaults() -> dict[str, object]:
    found = json_format.MessageToDict(finetune_pipeline.pipeline_spec)["root"]["inputDefinitions"]["parameters"]
    defaults = {name: one["defaultValue"] for name, one in found.items() if "defaultValue" in one}
    # Protocol buffers have one type of number.
    return {name: int(value) if found[name]["parameterType"] == "NUMBER_INTEGER" else value for name, value in defaults.items()}


def _producers(task: Mapping) -> set[str]:
    given = [*task["inputs"].get("parameters", {}).values(), *task["inputs"].get("artifacts", {}).values()]
    return {name for source in given if (name := _producer(source))}


def _producer(source: Mapping) -> str:
    """The task that an input comes from; empty if it comes from none."""
    return next((one["producerTask"] for one in source.values() if isinstance(one, Mapping) and "producerTask" in one), "")


def _without(task: dict, producer: str) -> dict:
    """A task that takes nothing from another one."""
    inputs = {
        kind: {name: source for name, source in given.items() if _producer(source) != producer}
        for kind, given in task["inputs"].items()
    }
    return {**task, "inputs": inputs}


def _arguments(task: Mapping, values: Mapping[str, object], made: Mapping[str, MadeRecord]) -> dict[str, object]:
    """A task's arguments by name: parameters, and artifacts of the tasks before it."""
    arguments: dict[str, object] = {}
    for name, source in task["inputs"].get("parameters", {}).items():
        if "taskOutputParameter" in source:
            arguments[name] = made[source["taskOutputParameter"]["producerTask"]].artifact.tree_sha256
        elif "runtimeValue" in source:
            arguments[name] = source["runtimeValue"]["constant"]
        else:
            arguments[name] = values[source["componentInputParameter"].removeprefix(_CHANNEL)]
    for name, source in task["inputs"].get("artifacts", {}).items():
        location = made[source["taskOutputArtifact"]["producerTask"]].artifact.uri
        arguments[name] = dsl.Artifact(name=name, uri=location, metadata={LOCATION: location})
    return arguments


def _ask(
    step: str, task: str, arguments: Mapping[str, object], folder: Path, earlier: Sequence[MadeRecord], images: Sequence[str]
) -> tuple[MadeRecord | None, str]:
    """The record of the artifact that a task takes over, or None and why it makes one."""
    component = getattr(importlib.import_module(f"components.{step}.component"), step)
    place = folder / _RUN / task
    place.mkdir(parents=True)
    outputs: dict[str, Any] = {}
    for name, parameter in inspect.signature(component.python_func).parameters.items():
        if name in component.component_spec.outputs:
            kinds = get_args(parameter.annotation)  # of dsl.Output[KIND]; a path of a parameter has none
            outputs[name] = kinds[0](name=name, uri=str(place / name), metadata={}) if kinds else str(place / name)
    given = {**arguments, **outputs, "run": _RUN, "run_task": task}
    try:
        contextvars.copy_context().run(lambda: component.python_func(**given))
    except NotMadeError as error:
        return _compared(error, earlier, images, bool(arguments.get("fresh")))
    location = next(one.metadata[LOCATION] for one in outputs.values() if isinstance(one, dsl.Artifact) and one.metadata)
    found = record_of(location)
    if images and (found.producer.image or "") not in images:
        return None, "this machine's code made it, and not that of the run's images"
    return found, ""


def _compared(
    error: NotMadeError, earlier: Sequence[MadeRecord], images: Sequence[str], fresh: bool
) -> tuple[MadeRecord | None, str]:
    """What a run's images made of the same, if anything; else None, and what is not as it was."""
    if fresh:
        return None, "everything is made"
    if not earlier:
        return None, "it was not made here before"
    for record in earlier if images or error.unless else ():
        if not any(_differences(error, record, images)) and exists(parse_location(record.artifact.uri), RECORD_FILE):
            return record, error.unless
    found = list(_differences(error, earlier[0], images))
    more = f", and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    unknown = "its code or devices are others, or its artifact is gone or was changed"
    return None, ", ".join(found[:_NAMED]) + more or unknown


def _differences(error: NotMadeError, record: MadeRecord, images: Sequence[str]) -> Iterator[str]:
    """In what an artifact that would be made differs from that of a record, as far as the record says."""
    yield from _named(_changed(record.producer.parameters, to_jsonable_python(dict(error.result.settings))))
    in_words = error.compare(record)
    if in_words:
        yield in_words
    before = {(entry.role, entry.sha256) for entry in record.inputs}
    for entry in error.result.inputs:
        if (entry.role, entry.sha256) not in before and not in_words:
            yield f"another {entry.role}"
    if not images:  # what runs in an image has the image's packages
        yield from _named(_changed(record.producer.packages, package_versions()))
    elif (record.producer.image or "") not in images:
        yield "another image"


def _changed(before: Mapping, now: Mapping) -> list[dict]:
    """What differs, of what both name."""
    common = sorted(before.keys() & now.keys())
    return changes({key: before[key] for key in common}, {key: now[key] for key in common})


def _named(changed: Sequence[Mapping]) -> list[str]:
    return [f"{one['key']} {one['before']} is {one['after']} now" for one in changed]


def _records_of(index: Index | None, task: str) -> list[MadeRecord]:
    """The latest records of what a task made, or took over, newest first."""
    if index is None:
        return []
    query = "SELECT body FROM records WHERE task = ? AND status = 'succeeded' ORDER BY started DESC LIMIT ?"
    return [MadeRecord.model_validate(unpack(row["body"])) for row in index.ask(query, task, _LOOKED_AT)]


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
