"""What a pipeline costs that runs every week, in Cloud Storage 20 ms away: the first week, and weeks in which little changed.

    .venv/bin/python tests/benchmarks/weekly.py

Each week is a process of its own with new, empty caches, as on a machine that was not there before. Only the bucket stays: a
real fake-gcs-server behind `servers.relay`. Weeks with a change are made once more from nothing (`fresh`), and each artifact is
compared with that. The exit code is 1 if a file differs that may not.

Nothing in the steps is changed for it. The relay counts bytes. Rows are what the run's records and its log say. Programs are
new objects in JAX's cache, which a root's runs share. The kernel says the processor time of each process when it ends.
"""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated

import typer
from prepare import cpu_seconds, generate, generate_one

sys.path.insert(0, str(Path(__file__).parents[1]))

from paligemma.artifacts.compiled_programs import FOLDER
from paligemma.artifacts.record import MadeRecord, parse_record
from paligemma.artifacts.recording import FOLDER as RECORDS
from paligemma.artifacts.recording import MARK_ENDING
from paligemma.artifacts.store import localize, record_of
from paligemma.checkpoints.open_checkpoint import resolve_embedded
from paligemma.registry.releases import read_champion_release
from paligemma.storage import gcs
from paligemma.storage.cache import CACHE_VARIABLE
from paligemma.storage.folders import list_files, read_file
from paligemma.storage.location import GcsLocation
from servers.gcs import GcsServer
from servers.relay import Carried, Relay

BUCKET = GcsLocation("bucket-of-weeks", "")
ROOT, REGISTRY = BUCKET / "artifacts", BUCKET / "registry"
RECIPE = "{{steps: {steps}, learning_rate: {rate}, batch_size: 16, remat: none, save_every: 50}}"
RATE, ANOTHER_RATE = 0.2, 0.1
ANSWER = "a picture of noise"
"""Every row's, so that the first week's model is a release, and no later one is surely better: the champion stays the same."""
SPLITS = ("train", "validation")
PREPARING = ("prepare-data", "prepare-data-2")
EVALUATING = {"evaluate": "base", "evaluate-2": "tuned"}
PAGES = ("*.html", "tensorboard/*")
"""Files with times of the run that made them, for people."""
OWN_FIGURES = re.compile(r"(.*_)?seconds(_.*)?|.*_per_second|tflops|share_of_peak|uri")
"""Names of figures in other files that are the run's own: times and rates, and where a tuned model's base is."""
FREE = ("preflight", "finetune", *EVALUATING)
"""Tasks whose artifacts have such files and figures. All others have to be equal as they are."""
_COLOUR = re.compile(r"\x1b\[\d+m")
_STARTED = re.compile(r"Executing task '([^']+)'")
_ANSWERED = re.compile(r"(base|tuned|champion): (\d+) of (\d+) rows are answered as in an earlier run")


class Data:
    """Two splits of rows in the bucket, and the changes of the weeks."""

    def __init__(self, folder: Path, train: int, validation: int) -> None:
        self._folder, self._next = folder, train + validation
        generate(folder, self._next)
        self._rows = {"train": list(range(train)), "validation": list(range(train, self._next))}
        self._upload(range(self._next))
        self._write()

    def append(self, share: float) -> None:
        """Appends new rows to both splits."""
        for rows in self._rows.values():
            new = [self._make() for _ in range(max(1, round(share * len(rows))))]
            self._upload(new)
            rows += new
        self._write()

    def delete_and_replace(self) -> None:
        """Deletes the first row of both splits, and replaces the image of the row in the middle by another one."""
        for rows in self._rows.values():
            del rows[0]
            other = self._folder / f"{self._make():06d}.jpg"
            gcs.upload(other, BUCKET / f"data/{rows[len(rows) // 2]:06d}.jpg")
        self._write()

    def _make(self) -> int:
        generate_one(self._folder, self._next)
        self._next += 1
        return self._next - 1

    def _upload(self, numbers: Iterable[int]) -> None:
        names = [f"{number:06d}.jpg" for number in numbers]
        with ThreadPoolExecutor(gcs.STREAMS) as pool:
            list(pool.map(lambda name: gcs.upload(self._folder / name, BUCKET / "data" / name), names))

    def _write(self) -> None:
        for split, rows in self._rows.items():
            lines = [{"image": f"{number:06d}.jpg", "prefix": "caption en", "suffix": ANSWER} for number in rows]
            gcs.write_bytes(BUCKET / f"data/{split}.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())


@dataclass(frozen=True)
class Step:
    """The process of a task, from its start to its end."""

    seconds: float
    cpu_seconds: float


@dataclass(frozen=True)
class Run:
    """A run of the pipeline, and what it cost.

    Attributes:
        seconds, cpu_seconds: of all processes of the run.
        carried: what went through the relay.
        programs: compiled programs that took JAX 0.1 s or more.
        artifacts: their locations by task.
        steps: processes by task.
        reused: tasks that took over an earlier run's artifact.
        prepared: rows prepared anew, by split.
        decoded: rows decoded, by model.
    """

    seconds: float
    cpu_seconds: float
    carried: Carried
    programs: int
    artifacts: Mapping[str, str]
    steps: Mapping[str, Step]
    reused: set[str]
    prepared: Mapping[str, int]
    decoded: Mapping[str, int]


def run(server: GcsServer, relay: Relay, folder: Path, recipe: str, root: GcsLocation = ROOT, fresh: bool = False) -> Run:
    """Runs the pipeline in a process of its own, with everything but the bucket in a new folder."""
    folder.mkdir()
    parameters = {
        "source": str(BUCKET / "checkpoints/tiny"),
        "train_data": str(BUCKET / "data/train.jsonl"),
        "validation_data": str(BUCKET / "data/validation.jsonl"),
        "recipe": recipe,
        "decoding": "max_new_tokens: 8",
        "registry": str(REGISTRY),
        "artifact_root": str(root),
        "fresh": fresh,
    }
    there = {name: value.replace(server.url, relay.url) for name, value in server.environment().items()}
    programs = count_programs(root)
    started, cpu, carried = time.monotonic(), cpu_seconds(), relay.carried()
    with (folder / "output").open("w") as output:
        done = subprocess.run(
            [sys.executable, __file__, "--run", folder],
            env={**os.environ, **there, CACHE_VARIABLE: str(folder / "cache")},
            input=json.dumps(parameters),
            stdout=subprocess.PIPE,
            stderr=output,
            text=True,
        )
    seconds, cpu, carried = time.monotonic() - started, cpu_seconds() - cpu, relay.carried() - carried
    if done.returncode:
        sys.exit(f"A run failed.\n{(folder / 'output').read_text()}")
    found = json.loads(done.stdout)
    artifacts, steps = found["artifacts"], {task: Step(*figures) for task, figures in found["steps"].items()}
    records = records_of(root, artifacts["summarize"].removeprefix(f"{root}/").partition("/")[0])
    reused = {task for task, record in records.items() if record.cached_from is not None}
    (log,) = (folder / "root/logs").glob("*.log")
    return Run(
        seconds,
        cpu,
        carried,
        count_programs(root) - programs,
        artifacts,
        steps,
        reused,
        {split: prepared(records[task]) for split, task in zip(SPLITS, PREPARING, strict=True)},
        decoded(log.read_text(), records),
    )


def count_programs(root: GcsLocation) -> int:
    """Number of compiled programs that the runs below a root share."""
    return sum(found.location.name.endswith("-cache") for found in gcs.list_objects(root / FOLDER))


def run_here(folder: Path) -> None:
    """Runs the pipeline, and prints the artifacts and each step's seconds and processor seconds."""
    from kfp.local import subprocess_task_handler

    from pipelines.run_local import run_pipeline

    start, steps = subprocess_task_handler.run_local_subprocess, {}

    def start_timed(full_command: list[str], env_vars: dict[str, str] | None = None) -> int:
        started, before = time.monotonic(), cpu_seconds_of_children()
        try:
            return start(full_command=full_command, env_vars=env_vars)
        finally:
            (task,) = set(re.findall(r"/([^/]+)/executor_output\.json", " ".join(full_command)))
            steps[task] = (time.monotonic() - started, cpu_seconds_of_children() - before)

    subprocess_task_handler.run_local_subprocess = start_timed
    outputs = run_pipeline(json.load(sys.stdin), folder / "root")
    print(json.dumps({"artifacts": dict(outputs.artifacts), "steps": steps}))


def cpu_seconds_of_children() -> float:
    """Of those that have ended, and of theirs."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def records_of(root: GcsLocation, name: str) -> dict[str, MadeRecord]:
    """The records of a run by task."""
    folder, found = root / RECORDS / name, {}
    for path in sorted(path for path in list_files(folder) if path.endswith(".json") and not path.endswith(MARK_ENDING)):
        record = parse_record(read_file(folder / path) or b"", folder / path)
        if isinstance(record, MadeRecord):
            found[record.task] = record
    return found


def prepared(record: MadeRecord) -> int:
    """Rows whose picture a preparation decoded."""
    if record.cached_from is not None:
        return 0
    return (record.artifact.rows or 0) - int(record.metrics.get("rows_taken_over", 0))


def decoded(log: str, records: Mapping[str, MadeRecord]) -> dict[str, int]:
    """Rows that each model answered anew."""
    parts = _STARTED.split(_COLOUR.sub("", log))
    said = dict(zip(parts[1::2], parts[2::2], strict=True))
    found = {}
    for task, model in EVALUATING.items():
        rows = records[task].artifact.rows or 0
        answered = {name: int(count) for name, count, _ in _ANSWERED.findall(said[task])}
        anew = 0 if records[task].cached_from is not None else rows
        found[model] = anew - answered.get(model, 0)
        if model == "tuned":
            found["champion"] = rows - answered.get("champion", 0) if "evaluating the champion" in said[task] else 0
    return found


def contents(place: str, path: str) -> bytes:
    """A file of an artifact; of JSON, all but the run's own figures."""
    data = (localize(place) / path).read_bytes()
    if path.endswith((".json", ".jsonl")):
        texts = [data] if path.endswith(".json") else data.splitlines()
        return b"\n".join(json.dumps(without_own_figures(json.loads(text))).encode() for text in texts)
    return data


def without_own_figures(value: object) -> object:
    """A JSON value without what a run has of its own."""
    if isinstance(value, dict):
        return {key: without_own_figures(one) for key, one in value.items() if not OWN_FIGURES.fullmatch(key)}
    return [without_own_figures(one) for one in value] if isinstance(value, list) else value


def compare(made: Run, anew: Run) -> bool:
    """Prints a line for each artifact, and says whether all is equal that can be."""
    whole = True
    for task in (*PREPARING, "fetch-checkpoint", "preflight", "finetune", *EVALUATING):
        places = made.artifacts[task], anew.artifacts[task]
        one, other = (record_of(place).artifact for place in places)
        files = [{(file.path, file.sha256) for file in artifact.files} for artifact in (one, other)]
        differing = {path for path, _ in files[0] ^ files[1]}
        rest = {path for path in differing if not any(fnmatch(path, page) for page in PAGES)}
        both = {path for path in rest if one.file(path) and other.file(path)}
        wrong = rest - {path for path in both if contents(places[0], path) == contents(places[1], path)}
        if task not in FREE:
            wrong = differing
        whole = whole and not wrong
        said = "the same tree hash"
        if one.tree_sha256 != other.tree_sha256:
            same = sorted(path for path, _ in files[0] & files[1]) or ["no file"]
            own = sorted({path.partition("/")[0] for path in differing - wrong})
            said = f"{', '.join(same)} the same; the same but for the run's own figures: {', '.join(own)}"
        print(f"  {task}: {said}{f'; DIFFER: {sorted(wrong)}' if wrong else ''}", flush=True)
    return whole


HEAD = (
    "week",
    "s",
    "CPU s",
    "MB up",
    "MB down",
    "rows prepared",
    "rows decoded: base, tuned, champion",
    "steps reused",
    "programs",
)


def line(name: str, week: Run) -> str:
    """A run's line of the table."""
    cells = [name, f"{week.seconds:.1f}", f"{week.cpu_seconds:.1f}"]
    cells += [f"{count / 1e6:.1f}" for count in (week.carried.up, week.carried.down)]
    cells += [" + ".join(map(str, week.prepared.values())), ", ".join(map(str, week.decoded.values()))]
    cells += [f"{len(week.reused)} of {len(week.steps)}", str(week.programs)]
    return f"| {' | '.join(cells)} |"


def main(
    rows: Annotated[int, typer.Option(help="Rows to train on, each with an image of 640 x 480.")] = 1000,
    validation: Annotated[int, typer.Option(help="Rows to evaluate on.")] = 200,
    steps: Annotated[int, typer.Option(help="Steps to train.")] = 100,
    weeks: Annotated[int, typer.Option(help="Weeks to run.", min=3, max=5)] = 5,
    round_trip_ms: Annotated[float, typer.Option(help="Round trip of a request.")] = 20.0,
    mb_per_second: Annotated[float, typer.Option(help="Bandwidth of one connection.")] = 80.0,
    from_nothing: Annotated[bool, typer.Option(help="Make weeks 3 to 5 once more from nothing, and compare.")] = True,
    run: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Prints the weeks, the comparisons, and the ratios. Or (with --run) is a week's run."""
    if run is not None:
        return run_here(run)
    with (
        GcsServer() as server,
        Relay(server.url, round_trip_ms / 1000, mb_per_second * 1e6) as relay,
        tempfile.TemporaryDirectory() as folder,
    ):
        os.environ |= {**server.environment(), CACHE_VARIABLE: f"{folder}/cache"}
        server.create_bucket(BUCKET.bucket)
        for path in resolve_embedded("embedded:tiny").iterdir():
            gcs.upload(path, BUCKET / "checkpoints/tiny" / path.name)
        (Path(folder) / "data").mkdir()
        data = Data(Path(folder) / "data", rows, validation)
        if not measure(server, relay, Path(folder), data, steps, weeks, from_nothing):
            sys.exit("An artifact is not what it is when it is made from nothing.")


def measure(server: GcsServer, relay: Relay, folder: Path, data: Data, steps: int, most: int, from_nothing: bool) -> bool:
    """Runs and prints all weeks; says whether the artifacts are those of runs from nothing, if there are any."""
    changes: dict[str, Callable[[], object]] = {
        "1, first": lambda: None,
        "2, unchanged": lambda: None,
        "3, 1 % more rows": lambda: data.append(0.01),
        "4, a row deleted, an image replaced": data.delete_and_replace,
        "5, another recipe": lambda: None,
    }
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"| {' | '.join(HEAD)} |\n|{' --- |' * len(HEAD)}", flush=True)
    weeks, anew, champion, whole = [], {}, None, True
    for number, (name, change) in enumerate(list(changes.items())[:most], start=1):
        change()
        recipe = RECIPE.format(steps=steps, rate=ANOTHER_RATE if number == 5 else RATE)
        weeks.append(run(server, relay, folder / f"week-{number}", recipe))
        print(line(name, weeks[-1]), flush=True)
        if number > 2 and from_nothing:
            place = BUCKET / f"from-nothing-{number}"
            anew[number] = run(server, relay, folder / f"from-nothing-{number}", recipe, place, fresh=True)
            print(line(f"{number}, from nothing", anew[number]), flush=True)
        release = read_champion_release(REGISTRY)
        if release is None or (champion or release.version) != release.version:
            sys.exit("The first week's model is to be the champion in all weeks, or the runs do not judge the same.")
        champion = release.version
    for number, run_anew in anew.items():
        print(f"Week {number} against the same week from nothing:")
        whole = compare(weeks[number - 1], run_anew) and whole
    say_ratios(weeks, anew.get(3, weeks[0]))
    return whole


def say_ratios(weeks: Sequence[Run], full_run: Run) -> None:
    """Prints what the acceptance of scheduled runs asks for, and where the seconds go."""
    first, unchanged, more = weeks[:3]
    print(f"unchanged: {unchanged.seconds / first.seconds:.1%} of the first week's seconds", end="")
    print(f", {sum(unchanged.decoded.values())} rows decoded, {unchanged.programs} programs compiled", end="")
    print(", no finetune" if "finetune" in unchanged.reused else ", FINETUNE")
    full, again = (sum(one.steps[task].cpu_seconds for task in PREPARING) for one in (full_run, more))
    least = sum(unchanged.steps[task].cpu_seconds for task in PREPARING)
    print(f"1 % more rows: preparation takes {again:.1f} of {full:.1f} s of processor time, {again / full:.1%}", end="")
    print(f"; {least:.1f} s where nothing changed, {(again - least) / (full - least):.1%} of the full one's above that")
    print(f"| s (CPU s) | {' | '.join(map(str, range(1, len(weeks) + 1)))} |\n|{' --- |' * (1 + len(weeks))}")
    for task in first.steps:
        spent = [week.steps.get(task) for week in weeks]
        print(f"| {task} | {' | '.join(f'{one.seconds:.1f} ({one.cpu_seconds:.1f})' if one else '-' for one in spent)} |")
    rest = [week.seconds - sum(step.seconds for step in week.steps.values()) for week in weeks]
    print(f"| the runner | {' | '.join(f'{seconds:.1f}' for seconds in rest)} |")


if __name__ == "__main__":
    typer.run(main)
