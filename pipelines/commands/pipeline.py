"""The command `paligemma pipeline`: compile the DAG, run it here or on a cluster, now or again and again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from components.decoding_flags import DecodingFlags
from paligemma.choices import StoredDtype, TaskName
from paligemma.command_line import make_app, with_flag_groups
from paligemma.terminal import say
from pipelines.commands.cluster_flags import Experiment, ProfileName, Project, Region, Run, Server, Tasks

pipeline = make_app("Run the DAG on this machine, or compile it for a cluster.")
ScheduleName = Annotated[str, typer.Argument(help="Name of the schedule.", show_default=False)]
Plan = Annotated[
    bool,
    typer.Option(
        "--plan", help="Only say what would run, what earlier runs have made already, and why not the rest.", show_default="no"
    ),
]
RunName = Annotated[str, typer.Argument(help="What submit printed.", show_default=False)]


@pipeline.command("compile")
@with_flag_groups
def compile_(
    output: Annotated[Path, typer.Option(help="File to write.")] = Path("pipeline.yaml"),
    which: Annotated[
        Literal["finetune", "prepare"], typer.Option(help="The DAG, or only data preparation on many pods.")
    ] = "finetune",
    profile: ProfileName = "local",
    images: Annotated[
        Path | None, typer.Option(help="digests.json of make images; needed for a cluster.", show_default="none")
    ] = None,
    tasks: Tasks = Tasks(),
    project: Project = "",
    location: Region = "",
) -> None:
    """Compile a pipeline to the YAML that a KFP cluster, or Vertex AI, runs."""
    from pipelines.compile import compile_pipeline
    from pipelines.placement import placer, read_images

    pinned = read_images(images) if images else None
    compile_pipeline(output, which, placer(profile, pinned, project=project, location=location, **asdict(tasks)))
    say(f"wrote {output}")


@pipeline.command()
@with_flag_groups
def submit(
    server: Server,
    to_run: Run,
    tasks: Tasks,
    name: Annotated[str, typer.Option(help="Displayed name of the run.")] = "paligemma-finetune",
    experiment: Experiment = "paligemma",
    plan: Plan = False,
) -> None:
    """Run the DAG on Kubeflow Pipelines or Vertex AI, now."""
    job = to_run.job(name, server, tasks)
    if plan:
        from pipelines.placement import read_images

        _say_plan(job.parameters, str(job.parameters["artifact_root"]), list(read_images(to_run.images).values()))
        return
    say(server.connect(experiment).submit(job))


@pipeline.command()
@with_flag_groups
def schedule(
    server: Server,
    to_run: Run,
    tasks: Tasks,
    cron: Annotated[str, typer.Option(help='When, e.g. "0 3 * * 1"; KFP has seconds in front: "0 0 3 * * 1".')],
    name: Annotated[str, typer.Option(help="Name of the schedule; one of this name is replaced.")] = "paligemma-finetune",
    dry_run: Annotated[bool, typer.Option(help="Only show what would change; without a server, what would be sent.")] = False,
    experiment: Experiment = "paligemma",
) -> None:
    """Run the DAG again and again, one run at a time. The same schedule again changes nothing."""
    from paligemma.errors import InputError
    from paligemma.google.rest import BackendError, BackendUnavailableError
    from pipelines.backends.cron import check_cron
    from pipelines.backends.job import difference

    check_cron(server.backend, cron)
    job = to_run.job(name, server, tasks)
    try:
        server.connect(experiment).schedule(job, cron, dry_run, lambda changes: say(changes or "nothing changes", lines=True))
    except (BackendError, BackendUnavailableError, InputError) as error:
        if not dry_run:
            raise
        say(difference({}, {"name": name, "cron": cron, "root": job.root, "parameters": dict(job.parameters)}), lines=True)
        say(f"This was not compared with the existing schedule. {error.what}", error=True)


@pipeline.command()
@with_flag_groups
def status(run: RunName, server: Server) -> None:
    """Show the state of a run and of its tasks."""
    say(server.connect().status(run), lines=True)


@pipeline.command()
@with_flag_groups
def cancel(run: RunName, server: Server) -> None:
    """End a run."""
    server.connect().cancel(run)
    say(f"asked to end {run}")


@pipeline.command()
@with_flag_groups
def logs(
    run: RunName,
    server: Server,
    task: Annotated[str, typer.Option(help="Step whose log to show, as status names it.")] = "finetune",
) -> None:
    """Show what a step of a run printed, each attempt after the other."""
    for line in server.connect().logs(run, task):
        say(line)


@pipeline.command()
@with_flag_groups
def schedules(server: Server, experiment: Experiment = "paligemma") -> None:
    """List all schedules."""
    there = server.connect(experiment).schedules()
    for one in there:
        say(f"{one.name}: {one.cron}, {one.state}" + (f", next at {one.next_run}" if one.next_run else ""))
    if not there:
        say("there is no schedule")


@pipeline.command()
@with_flag_groups
def unschedule(name: ScheduleName, server: Server, experiment: Experiment = "paligemma") -> None:
    """Delete a schedule. A run that it has started goes on to its end."""
    server.connect(experiment).unschedule(name)
    say(f"{name} is no longer a schedule; its running runs continue: `cancel` ends one")


@pipeline.command()
@with_flag_groups
def pause(name: ScheduleName, server: Server, experiment: Experiment = "paligemma") -> None:
    """Pause a schedule: it starts no runs until `resume`."""
    server.connect(experiment).pause(name)
    say(f"{name} is paused")


@pipeline.command()
@with_flag_groups
def resume(name: ScheduleName, server: Server, experiment: Experiment = "paligemma") -> None:
    """Resume a paused schedule, from its next time on."""
    server.connect(experiment).resume(name)
    say(f"{name} starts runs again")


@pipeline.command()
@with_flag_groups
def run(
    train_data: Annotated[
        list[str],
        typer.Option(
            help="JSONL file of rows to train on, local or gs://; {date} in a path of data is today, in UTC. Repeatable, for a "
            "mixture: FILE,weight=3,images=FOLDER."
        ),
    ],
    validation_data: Annotated[
        list[str] | None,
        typer.Option(
            help="JSONL file of rows to evaluate on, local or gs://. Repeatable: FILE,images=FOLDER.",
            show_default="a part of --train-data",
        ),
    ] = None,
    validation_fraction: Annotated[
        float,
        typer.Option(help="Share of the images of --train-data to evaluate on, without --validation-data.", min=0.01, max=0.9),
    ] = 0.1,
    source: Annotated[
        str,
        typer.Option(
            help="Checkpoint to start from: a kaggle://, https://, hf:// or gs:// address, a path, or embedded:tiny.",
            show_default="none; must be given",
        ),
    ] = "",
    sha256: Annotated[str, typer.Option(help="Expected sha256 of the weight file.", show_default="recorded, not checked")] = "",
    tokenizer: Annotated[
        str, typer.Option(help="SentencePiece model, when it is not beside the weights.", show_default="beside the weights")
    ] = "",
    precision: Annotated[
        StoredDtype,
        typer.Option(help="Which file of a Kaggle model: by the dtype of its weights."),
    ] = "float16",
    image_size: Annotated[
        int, typer.Option(help="Side of the images that the model sees, in pixels.", min=0, show_default="the checkpoint's")
    ] = 0,
    images: Annotated[
        str,
        typer.Option(help="Folder or gs:// prefix that image paths are relative to.", show_default="each JSONL file's folder"),
    ] = "",
    recipe: Annotated[str, typer.Option(help="Training recipe: a preset's name or a YAML file.")] = "default",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Overrides a value of the recipe; repeatable.", show_default="none"),
    ] = None,
    target: Annotated[str, typer.Option(help="Hardware that fine-tuning must fit.")] = "cpu",
    disk_budget: Annotated[
        str,
        typer.Option(
            help="Most bytes that fine-tuning's records on gs:// may take of its disk, e.g. 1GB.",
            show_default="none: all are fetched first",
        ),
    ] = "",
    max_text_tokens: Annotated[int, typer.Option(help="Most tokens of prefix and suffix.", min=4)] = 128,
    max_reject_fraction: Annotated[
        float, typer.Option(help="Fail when a larger share of a split's rows is rejected.", min=0, max=1)
    ] = 0.1,
    grey_range: Annotated[
        str,
        typer.Option(
            help="Samples that are black and white in grey pictures, LOW,HIGH, e.g. 0,4095 for 12 bits.",
            show_default="as each file states",
        ),
    ] = "",
    task: Annotated[
        TaskName,
        typer.Option(help="What the rows ask, which selects the metrics.", show_default="exact match of any text"),
    ] = "",
    metrics: Annotated[
        str, typer.Option(help="Metrics in place of the task's, the deciding one first.", show_default="the task's")
    ] = "",
    margin: Annotated[float, typer.Option(help="By how much the first metric must be better, with confidence.", min=0)] = 0.0,
    mask_decoder: Annotated[
        str,
        typer.Option(help="File with the weights that turn <seg> symbols into masks, for --task segment.", show_default="none"),
    ] = "",
    batch_size: Annotated[int, typer.Option(help="Rows decoded at once in evaluation.", min=1)] = 32,
    decoding: DecodingFlags = DecodingFlags(),
    registry: Annotated[
        str, typer.Option(help="Folder or gs:// prefix of all releases.", show_default="registry, below --root")
    ] = "",
    formats: Annotated[str, typer.Option(help="Formats of a release, with commas: big_vision, huggingface.")] = "big_vision",
    artifact_root: Annotated[
        str,
        typer.Option(help="Folder or gs:// prefix that artifacts go to.", show_default="a folder of the run's below --root"),
    ] = "",
    root: Annotated[Path, typer.Option(help="Local folder for the output of all runs.")] = Path("runs/pipeline"),
    fresh: Annotated[
        bool,
        typer.Option("--fresh", help="Make everything anew, also what a run made from the same inputs.", show_default="no"),
    ] = False,
    plan: Plan = False,
) -> None:
    """Run the DAG on this machine with KFP's local runner."""
    from components.presets import read_recipe
    from paligemma.artifacts.run_date import today, with_date
    from paligemma.checkpoints.describe import describe_source, named
    from paligemma.data.source_list import parse_sources
    from paligemma.decoding.settings_yaml import settings_yaml
    from paligemma.runtime.accelerator import idle_gpu
    from pipelines.check_run import check_run, split_data
    from pipelines.run_end import end_of_run
    from pipelines.run_local import run_pipeline

    source = named(source, "--source")
    date = today()
    images = with_date(images, date)
    train = _sources([with_date(place, date) for place in train_data], "--train-data")
    validation = _sources([with_date(place, date) for place in validation_data or []], "--validation-data", weights=False)
    asked = read_recipe(recipe, set_ or [])  # refuses a wrong recipe before anything runs
    settings = decoding.settings()
    parameters = {
        "train_data": train,
        "validation_data": validation or _without_weights(train),
        "source": ",".join(absolute(part.strip()) for part in source.split(",")),
        "sha256": sha256,
        "tokenizer": absolute(tokenizer),
        "precision": precision,
        "image_size": image_size,
        "images": absolute(images),
        "recipe": asked.text(),
        "target": target,
        "disk_budget": disk_budget,
        "max_text_tokens": max_text_tokens,
        "max_reject_fraction": max_reject_fraction,
        "grey_range": grey_range,
        "images_per_example": asked.recipe.images_per_example,
        "task": task,
        "metrics": metrics,
        "margin": margin,
        "mask_decoder": absolute(mask_decoder),
        "batch_size": batch_size,
        "decoding": settings_yaml(settings),
        "registry": absolute(registry or str(root / "registry")),
        "formats": formats,
        "artifact_root": absolute(artifact_root),
        "fresh": fresh,
    }
    oddities = check_run(parameters)
    if not validation:
        split = split_data(parameters, root, validation_fraction)
        parameters |= split
        both = [*parse_sources(split["train_data"], "--train-data"), *parse_sources(split["validation_data"], "--train-data")]
        say(f"split by image: {', '.join(source.data for source in both)}")
        oddities = check_run(parameters)
    for oddity in [*oddities, *filter(None, [idle_gpu()])]:
        say(f"warning: {oddity}", error=True)
    say(f"model:       {describe_source(source)}")
    if plan:
        _say_plan(parameters, str(parameters["artifact_root"] or root.absolute()))
        return
    outputs = run_pipeline(parameters, root)
    for line in end_of_run(outputs, parameters):
        say(line, lines=True)


def _sources(named: Sequence[str], flag: str, weights: bool = True) -> str:
    """The text of the pipeline's parameter for a repeatable flag; empty if it is not given."""
    from paligemma.data.source_list import Source, parse_flags, sources_text

    if not named:
        return ""
    asked = parse_flags(named, flag, weights)
    return sources_text([Source(absolute(one.data), absolute(one.images), one.weight) for one in asked])


def _without_weights(sources: str) -> str:
    from paligemma.data.source_list import Source, parse_sources, sources_text

    return sources_text([Source(one.data, one.images) for one in parse_sources(sources, "--train-data")])


def _say_plan(parameters: Mapping[str, object], root: str, images: Sequence[str] = ()) -> None:
    from pipelines.plan import in_words, plan

    for line in in_words(plan(parameters, root, images)):
        say(line)


def absolute(location: str) -> str:
    """A local path made absolute, because steps run in folders of their own; anything else as it is."""
    is_local = location and "://" not in location and not location.startswith("embedded:")
    return str(Path(location).absolute()) if is_local else location
