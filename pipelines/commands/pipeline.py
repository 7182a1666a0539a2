"""The command `paligemma pipeline`: compile the DAG, run it here or on a cluster, now or again and again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from components.decoding_flags import Beams, BestOf, MaxNewTokens, Seed, Temperature, TopK, TopP
from paligemma.choices import StoredDtype, TaskName
from paligemma.command_line import make_app
from paligemma.decoding.settings import DecodeSettings
from paligemma.terminal import say

pipeline = make_app("Run the DAG on this machine, or compile it for a cluster.")
ProfileName = Annotated[str, typer.Option(help="Machines that the steps run on: kfp-gpu-l4, vertex-cpu, ...")]
ImagesFile = Annotated[
    Path | None, typer.Option(help="digests.json of make images; needed for a cluster.", show_default="none")
]
BackendName = Annotated[Literal["kfp", "vertex"], typer.Option(help="What runs it: Kubeflow Pipelines or Vertex AI.")]
ParametersFile = Annotated[Path, typer.Option(help="YAML file of the pipeline's parameters.")]
ServiceAccount = Annotated[str, typer.Option(help="Service account of the steps.", show_default="the backend's")]
RunnerRoot = Annotated[
    str, typer.Option(help="gs:// prefix for the backend's own files.", show_default="runner, below artifact_root")
]
Host = Annotated[str, typer.Option(help="Address of Kubeflow Pipelines.", show_default="none; needed for kfp")]
Namespace = Annotated[str, typer.Option(help="Namespace in Kubeflow Pipelines.", show_default="none")]
Experiment = Annotated[str, typer.Option(help="Experiment in Kubeflow Pipelines that runs belong to.")]
ScheduleName = Annotated[str, typer.Argument(help="Name of the schedule.", show_default=False)]
Project = Annotated[str, typer.Option(help="Google Cloud project.", show_default="none; needed for vertex")]
Region = Annotated[str, typer.Option(help="Region of Vertex AI.", show_default="none; needed for vertex")]
Spot = Annotated[bool, typer.Option(help="Spot accelerators: cheaper, but they may be preempted at any time.")]
KaggleSecret = Annotated[
    str, typer.Option(help="Name of the Secret Manager secret with kaggle.json, for kaggle:// sources.", show_default="none")
]
WebhookSecret = Annotated[
    str,
    typer.Option(help="Full name of the Secret Manager secret with the address for a message at the end.", show_default="none"),
]
SigningSecret = Annotated[
    str, typer.Option(help="Kubernetes secret whose key.pem signs releases; only for kfp.", show_default="none")
]


@pipeline.command("compile")
def compile_(
    output: Annotated[Path, typer.Option(help="File to write.")] = Path("pipeline.yaml"),
    which: Annotated[
        Literal["finetune", "prepare"], typer.Option(help="The DAG, or only data preparation on many pods.")
    ] = "finetune",
    profile: ProfileName = "local",
    images: ImagesFile = None,
    spot: Spot = False,
    kaggle_secret: KaggleSecret = "",
    webhook_secret: WebhookSecret = "",
    signing_secret: SigningSecret = "",
    project: Project = "",
    location: Region = "",
    service_account: ServiceAccount = "",
) -> None:
    """Compile a pipeline to the YAML that a KFP cluster, or Vertex AI, runs."""
    from pipelines.compile import compile_pipeline
    from pipelines.placement import placer, read_images

    pinned = read_images(images) if images else None
    place_task = placer(
        profile,
        pinned,
        spot=spot,
        kaggle_secret=kaggle_secret,
        webhook_secret=webhook_secret,
        signing_secret=signing_secret,
        project=project,
        location=location,
        service_account=service_account,
    )
    compile_pipeline(output, which, place_task)
    say(f"wrote {output}")


@pipeline.command()
def submit(
    backend: BackendName,
    profile: ProfileName,
    images: Annotated[Path, typer.Option(help="digests.json of make images.")],
    parameters: ParametersFile,
    name: Annotated[str, typer.Option(help="Displayed name of the run.")] = "paligemma-finetune",
    spot: Spot = False,
    kaggle_secret: KaggleSecret = "",
    webhook_secret: WebhookSecret = "",
    signing_secret: SigningSecret = "",
    service_account: ServiceAccount = "",
    root: RunnerRoot = "",
    host: Host = "",
    namespace: Namespace = "",
    experiment: Experiment = "paligemma",
    project: Project = "",
    location: Region = "",
) -> None:
    """Run the DAG on Kubeflow Pipelines or Vertex AI, now."""
    from pipelines.backends.connect import connect, place_on
    from pipelines.backends.job import make_job

    place_task = place_on(
        backend,
        profile,
        images,
        spot=spot,
        kaggle_secret=kaggle_secret,
        webhook_secret=webhook_secret,
        signing_secret=signing_secret,
        project=project,
        location=location,
        service_account=service_account,
    )
    job = make_job(name, parameters, profile, place_task, service_account, root)
    say(connect(backend, host, namespace, experiment, project, location).submit(job))


@pipeline.command()
def schedule(
    backend: BackendName,
    profile: ProfileName,
    images: Annotated[Path, typer.Option(help="digests.json of make images.")],
    parameters: ParametersFile,
    cron: Annotated[str, typer.Option(help='When, e.g. "0 3 * * 1"; KFP has seconds in front: "0 0 3 * * 1".')],
    name: Annotated[str, typer.Option(help="Name of the schedule; one of this name is replaced.")] = "paligemma-finetune",
    dry_run: Annotated[bool, typer.Option(help="Only show what would change; without a server, what would be sent.")] = False,
    spot: Spot = False,
    kaggle_secret: KaggleSecret = "",
    webhook_secret: WebhookSecret = "",
    signing_secret: SigningSecret = "",
    service_account: ServiceAccount = "",
    root: RunnerRoot = "",
    host: Host = "",
    namespace: Namespace = "",
    experiment: Experiment = "paligemma",
    project: Project = "",
    location: Region = "",
) -> None:
    """Run the DAG again and again, one run at a time. The same schedule again changes nothing."""
    from paligemma.errors import InputError
    from paligemma.google.rest import BackendError, BackendUnavailableError
    from pipelines.backends.connect import connect, place_on
    from pipelines.backends.cron import check_cron
    from pipelines.backends.job import difference, make_job

    check_cron(backend, cron)
    place_task = place_on(
        backend,
        profile,
        images,
        spot=spot,
        kaggle_secret=kaggle_secret,
        webhook_secret=webhook_secret,
        signing_secret=signing_secret,
        project=project,
        location=location,
        service_account=service_account,
    )
    job = make_job(name, parameters, profile, place_task, service_account, root)
    try:
        connected = connect(backend, host, namespace, experiment, project, location)
        connected.schedule(job, cron, dry_run, lambda changes: say(changes or "nothing changes", lines=True))
    except (BackendError, BackendUnavailableError, InputError) as error:
        if not dry_run:
            raise
        say(difference({}, {"name": name, "cron": cron, "root": job.root, "parameters": dict(job.parameters)}), lines=True)
        say(f"This was not compared with the existing schedule. {error.what}", error=True)


@pipeline.command()
def status(
    run: Annotated[str, typer.Argument(help="What submit printed.", show_default=False)],
    backend: BackendName,
    host: Host = "",
    namespace: Namespace = "",
    project: Project = "",
    location: Region = "",
) -> None:
    """Show the state of a run and of its tasks."""
    from pipelines.backends.connect import connect

    say(connect(backend, host, namespace, "", project, location).status(run), lines=True)


@pipeline.command()
def cancel(
    run: Annotated[str, typer.Argument(help="What submit printed.", show_default=False)],
    backend: BackendName,
    host: Host = "",
    namespace: Namespace = "",
    project: Project = "",
    location: Region = "",
) -> None:
    """End a run."""
    from pipelines.backends.connect import connect

    connect(backend, host, namespace, "", project, location).cancel(run)
    say(f"asked to end {run}")


@pipeline.command()
def logs(
    run: Annotated[str, typer.Argument(help="What submit printed.", show_default=False)],
    backend: BackendName,
    task: Annotated[str, typer.Option(help="Step whose log to show, as status names it.")] = "finetune",
    host: Host = "",
    namespace: Namespace = "",
    project: Project = "",
    location: Region = "",
) -> None:
    """Show what a step of a run printed, each attempt after the other."""
    from pipelines.backends.connect import connect

    for line in connect(backend, host, namespace, "", project, location).logs(run, task):
        say(line)


@pipeline.command()
def schedules(
    backend: BackendName,
    host: Host = "",
    namespace: Namespace = "",
    experiment: Experiment = "paligemma",
    project: Project = "",
    location: Region = "",
) -> None:
    """List all schedules."""
    from pipelines.backends.connect import connect

    found = connect(backend, host, namespace, experiment, project, location).schedules()
    for one in found:
        say(f"{one.name}: {one.cron}, {one.state}" + (f", next at {one.next_run}" if one.next_run else ""))
    if not found:
        say("there is no schedule")


@pipeline.command()
def unschedule(
    name: ScheduleName,
    backend: BackendName,
    host: Host = "",
    namespace: Namespace = "",
    experiment: Experiment = "paligemma",
    project: Project = "",
    location: Region = "",
) -> None:
    """Delete a schedule. A run that it has started goes on to its end."""
    from pipelines.backends.connect import connect

    connect(backend, host, namespace, experiment, project, location).unschedule(name)
    say(f"{name} is no longer a schedule; its running runs continue: `cancel` ends one")


@pipeline.command()
def pause(
    name: ScheduleName,
    backend: BackendName,
    host: Host = "",
    namespace: Namespace = "",
    experiment: Experiment = "paligemma",
    project: Project = "",
    location: Region = "",
) -> None:
    """Pause a schedule: it starts no runs until `resume`."""
    from pipelines.backends.connect import connect

    connect(backend, host, namespace, experiment, project, location).pause(name)
    say(f"{name} is paused")


@pipeline.command()
def resume(
    name: ScheduleName,
    backend: BackendName,
    host: Host = "",
    namespace: Namespace = "",
    experiment: Experiment = "paligemma",
    project: Project = "",
    location: Region = "",
) -> None:
    """Resume a paused schedule, from its next time on."""
    from pipelines.backends.connect import connect

    connect(backend, host, namespace, experiment, project, location).resume(name)
    say(f"{name} starts runs again")


@pipeline.command()
def run(
    train_data: Annotated[
        str, typer.Option(help="JSONL file of rows to train on, local or gs://; {date} in a path of data is today, in UTC.")
    ],
    validation_data: Annotated[
        str,
        typer.Option(help="JSONL file of rows to evaluate on, local or gs://.", show_default="a part of --train-data"),
    ] = "",
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
    max_new_tokens: MaxNewTokens = DecodeSettings.max_new_tokens,
    temperature: Temperature = DecodeSettings.temperature,
    top_k: TopK = DecodeSettings.top_k,
    top_p: TopP = DecodeSettings.top_p,
    best_of: BestOf = DecodeSettings.best_of,
    beams: Beams = DecodeSettings.beams,
    seed: Seed = DecodeSettings.seed,
    registry: Annotated[
        str, typer.Option(help="Folder or gs:// prefix of all releases.", show_default="registry, below --root")
    ] = "",
    formats: Annotated[str, typer.Option(help="Formats of a release, with commas: big_vision, huggingface.")] = "big_vision",
    artifact_root: Annotated[
        str,
        typer.Option(help="Folder or gs:// prefix that artifacts go to.", show_default="a folder of the run's below --root"),
    ] = "",
    root: Annotated[Path, typer.Option(help="Local folder for the output of all runs.")] = Path("runs/pipeline"),
) -> None:
    """Run the DAG on this machine with KFP's local runner."""
    from components.presets import read_recipe
    from paligemma.artifacts.run_date import today, with_date
    from paligemma.checkpoints.describe import describe_source, named
    from paligemma.decoding.settings_yaml import settings_yaml
    from paligemma.runtime.accelerator import idle_gpu
    from paligemma.yaml_text import dump_yaml
    from pipelines.check_run import check_run, split_data
    from pipelines.run_end import end_of_run
    from pipelines.run_local import run_pipeline

    source = named(source, "--source")
    date = today()
    train_data, validation_data, images = (with_date(place, date) for place in (train_data, validation_data, images))
    parsed = read_recipe(recipe, set_ or [])  # refuses a wrong recipe before anything runs
    settings = DecodeSettings(max_new_tokens, temperature, top_k, top_p, best_of, beams, seed)
    parameters = {
        "train_data": absolute(train_data),
        "validation_data": absolute(validation_data or train_data),
        "source": ",".join(absolute(part.strip()) for part in source.split(",")),
        "sha256": sha256,
        "tokenizer": absolute(tokenizer),
        "precision": precision,
        "image_size": image_size,
        "images": absolute(images),
        "recipe": dump_yaml(parsed.model_dump(exclude_none=True)),
        "target": target,
        "max_text_tokens": max_text_tokens,
        "max_reject_fraction": max_reject_fraction,
        "grey_range": grey_range,
        "task": task,
        "metrics": metrics,
        "margin": margin,
        "mask_decoder": absolute(mask_decoder),
        "batch_size": batch_size,
        "decoding": settings_yaml(settings),
        "registry": absolute(registry or str(root / "registry")),
        "formats": formats,
        "artifact_root": absolute(artifact_root),
    }
    oddities = check_run(parameters)
    if not validation_data:
        split = split_data(parameters, root, validation_fraction)
        parameters |= split
        say(f"split by image: {split['train_data']}, {split['validation_data']}")
        oddities = check_run(parameters)
    for oddity in [*oddities, *filter(None, [idle_gpu()])]:
        say(f"warning: {oddity}", error=True)
    say(f"model:       {describe_source(source)}")
    outputs = run_pipeline(parameters, root)
    for line in end_of_run(outputs, parameters):
        say(line, lines=True)


def absolute(location: str) -> str:
    """A local path made absolute, because steps run in folders of their own; anything else as it is."""
    is_local = location and "://" not in location and not location.startswith("embedded:")
    return str(Path(location).absolute()) if is_local else location
