"""The command `paligemma`. Imports what a subcommand needs inside it, so that help is quick."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from paligemma.command_line import make_app, run_app
from pipelines.lineage import app as lineage

app = make_app("Fine-tune PaliGemma with JAX: run the pipeline, compile it, ask a model.")
pipeline = make_app("Run the DAG on this machine, or compile it for a cluster.")
app.add_typer(pipeline, name="pipeline")
app.add_typer(lineage, name="lineage")
convert = make_app("Convert a data set to the JSONL that prepare_data reads. Images stay where they are.")
app.add_typer(convert, name="convert")
OutputFile = Annotated[Path, typer.Option(help="JSONL file to write.")]
ProfileName = Annotated[str, typer.Option(help="Machines that the steps run on: kfp-gpu-l4, vertex-cpu, ...")]
ImagesFile = Annotated[
    Path | None, typer.Option(help="digests.json of make images; needed for a cluster.", show_default="none")
]
BackendName = Annotated[Literal["kfp", "vertex"], typer.Option(help="What runs it: Kubeflow Pipelines or Vertex AI.")]
ParametersFile = Annotated[Path, typer.Option(help="YAML file of the pipeline's parameters.")]
ServiceAccount = Annotated[str, typer.Option(help="Whose rights the steps have.", show_default="the backend's")]
RunnerRoot = Annotated[
    str, typer.Option(help="gs:// prefix for what the backend itself keeps.", show_default="runner, below artifact_root")
]
Host = Annotated[str, typer.Option(help="Address of Kubeflow Pipelines.", show_default="none; needed for kfp")]
Namespace = Annotated[str, typer.Option(help="Namespace in Kubeflow Pipelines.", show_default="none")]
Experiment = Annotated[str, typer.Option(help="Experiment in Kubeflow Pipelines that runs belong to.")]
Project = Annotated[str, typer.Option(help="Google Cloud project.", show_default="none; needed for vertex")]
Region = Annotated[str, typer.Option(help="Region of Vertex AI.", show_default="none; needed for vertex")]
Spot = Annotated[bool, typer.Option(help="Accelerators at a lower price, which may be taken away at any time.")]
KaggleSecret = Annotated[
    str, typer.Option(help="Name of the Secret Manager secret with kaggle.json, for kaggle:// sources.", show_default="none")
]


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for the data, the artifacts and summary.json.")] = Path("runs/demo"),
) -> None:
    """Run the whole DAG on the embedded tiny checkpoint and real handwritten digits."""
    from pipelines.demo.run import run_demo

    run_demo(output)


@app.command()
def generate(
    image: Annotated[
        Path | None, typer.Option(help="Image to ask about, or a folder of them.", show_default="those that --data names")
    ] = None,
    prompt: Annotated[
        str, typer.Option(help="What to ask, as in the prefix of the training data.", show_default="each row's prefix")
    ] = "",
    data: Annotated[
        Path | None,
        typer.Option(help='JSONL file of rows {"image", "prefix"}; images are relative to it.', show_default="none"),
    ] = None,
    task: Annotated[
        Literal["", "vqa", "caption", "docvqa", "chartqa", "detect", "segment", "classify", "ocr"],
        typer.Option(help="Puts the prompt into the words that PaliGemma was trained on.", show_default="as it is"),
    ] = "",
    model: Annotated[str, typer.Option(help="Checkpoint file or folder, tuned model, or embedded:tiny.")] = "embedded:tiny",
    base: Annotated[
        str,
        typer.Option(help="A tuned model's base checkpoint, when it has moved.", show_default="where it was when tuned"),
    ] = "",
    output: Annotated[
        Path | None,
        typer.Option(help="File to append JSON lines to; what it has answered already is left out.", show_default="print them"),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Images asked about at once.", min=1)] = 8,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens of the answer.", min=1)] = 32,
    beams: Annotated[int, typer.Option(help="Sequences that a beam search keeps; 1 decodes greedily.", min=1)] = 1,
    temperature: Annotated[float, typer.Option(help="Above 0, tokens are drawn at this temperature.", min=0)] = 0.0,
    top_k: Annotated[int, typer.Option(help="Draw among this many most likely tokens; 0 for all.", min=0)] = 0,
    top_p: Annotated[float, typer.Option(help="Draw among the most likely tokens that reach this probability.", max=1)] = 1.0,
    best_of: Annotated[int, typer.Option(help="Samples of each answer, of which the most likely is given.", min=1)] = 1,
    seed: Annotated[int, typer.Option(help="What samples are drawn from, together with image name and prompt.")] = 0,
) -> None:
    """Answer a prompt about an image; about many, as JSON lines."""
    from paligemma.decoding.settings import DecodeSettings
    from paligemma.evaluation.tasks import TASKS
    from paligemma.model import load
    from pipelines.generate import answer_all, find_questions

    settings = DecodeSettings(max_new_tokens, temperature, top_k, top_p, best_of, beams)
    questions = find_questions(image, data, prompt, TASKS[task].ask)
    loaded = load(model, base=base or None)
    if data is None and output is None and image is not None and image.is_file():
        typer.echo(loaded.answer([image], questions[0].prompt, settings, [seed])[0].text)
        return
    answer_all(loaded, questions, settings, batch_size, seed, output)


@app.command()
def export(
    model: Annotated[str, typer.Option(help="Checkpoint file or folder, tuned model, or embedded:tiny.")],
    output: Annotated[str, typer.Option(help="Folder or gs:// prefix to write to.")],
    format: Annotated[
        Literal["big_vision", "huggingface"],
        typer.Option(help="big_vision: one .npz file. huggingface: a folder that transformers loads."),
    ],
    dtype: Annotated[
        Literal["stored", "float32", "float16", "bfloat16"],
        typer.Option(help="Of every parameter; stored keeps each as it is (trained ones are float32)."),
    ] = "stored",
    base: Annotated[
        str,
        typer.Option(help="A tuned model's base checkpoint, when it has moved.", show_default="where it was when tuned"),
    ] = "",
) -> None:
    """Write a model, a tuned one merged with its base, in the format of big_vision or of Hugging Face."""
    from paligemma.checkpoints.export import export

    export(model, output, format, dtype, base)


@app.command()
def preflight(
    variant: Annotated[
        str, typer.Option(help="Published architecture, e.g. paligemma2-3b-pt-224.", show_default="that of --checkpoint")
    ] = "",
    checkpoint: Annotated[str, typer.Option(help="Checkpoint whose architecture to take.", show_default="none")] = "",
    target: Annotated[str, typer.Option(help="Hardware, several with commas: cpu, t4, l4, a100-40, v5e-1, v6e-1, ...")] = "cpu",
    recipe: Annotated[str, typer.Option(help="Training recipe: a preset's name or a YAML file.")] = "default",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Overrides a value of the recipe; repeatable.", show_default="none"),
    ] = None,
    batch_size: Annotated[str, typer.Option(help="Examples in a step, several with commas.", show_default="the recipe's")] = "",
    max_text_tokens: Annotated[int, typer.Option(help="Most tokens of a row's prefix and suffix.", min=4)] = 128,
    output: Annotated[
        Path | None, typer.Option(help="Folder for preflight.json and preflight.html.", show_default="none")
    ] = None,
    prices: Annotated[Path | None, typer.Option(help="YAML file of prices.", show_default="the built-in one")] = None,
    warn_only: Annotated[bool, typer.Option(help="Exit with 0 when it does not fit.")] = False,
    fresh: Annotated[bool, typer.Option(help="Compile again what has been compiled before.")] = False,
) -> None:
    """Compile the training step for hardware that is not there: memory, speed at best, price, and what fits if it does not."""
    from rich.console import Console

    from paligemma.checkpoints.open import open_checkpoint
    from paligemma.errors import InputError
    from paligemma.preflight.examine import PRICES_FILE, DoesNotFitError, examine, find_fitting, read_prices
    from paligemma.preflight.show import table, write
    from paligemma.preflight.targets import find_variant
    from paligemma.training.recipe import parse_recipe
    from pipelines.presets import read_preset

    if bool(variant) == bool(checkpoint):
        raise InputError("Give one of the two.", where="--variant, --checkpoint")
    config = find_variant(variant) if variant else open_checkpoint(checkpoint).config
    as_of, price_list = read_prices(prices or PRICES_FILE)
    sizes = [f"batch_size={size}" for size in batch_size.split(",") if size] or [""]
    recipes = [parse_recipe(read_preset(recipe), [*(set_ or []), *([size] if size else [])], recipe) for size in sizes]
    jobs = [(parsed, name.strip()) for parsed in recipes for name in target.split(",")]
    reports = [examine(config, parsed, name, max_text_tokens, price_list, fresh) for parsed, name in jobs]
    title = f"{variant or checkpoint}: one step, GiB a device (prices of {as_of})"
    Console(soft_wrap=True).print(table(reports, title))
    override = ""
    if len(jobs) == 1 and not reports[0].fits:
        fitting = find_fitting(config, *jobs[0], max_text_tokens, price_list)
        override = " ".join(f"--set {change}" for change in fitting[1]) if fitting else ""
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        write(output, reports, title, recipes[0].steps, as_of, override)
    if len(jobs) == 1 and not reports[0].fits:
        fix = f"what fits: {override}" if override else "no recipe was found that fits: choose a larger target"
        error = DoesNotFitError(f"The job does not fit {target}.", fix=fix)
        if not warn_only:
            raise error
        typer.echo(str(error), err=True)


@app.command()
def preview(
    data: Annotated[str, typer.Option(help="Records from prepare_data, or a JSONL file; local or gs://.")],
    output: Annotated[Path, typer.Option(help="HTML page to write.")] = Path("preview.html"),
    model: Annotated[str, typer.Option(help="Checkpoint whose tokenizer and image size to show a row for.")] = "embedded:tiny",
    images: Annotated[
        str,
        typer.Option(help="Folder or gs:// prefix that image paths are relative to.", show_default="the JSONL file's folder"),
    ] = "",
    rows: Annotated[int, typer.Option(help="Rows to show, from the first.", min=1)] = 24,
) -> None:
    """Show what the model is fed for each row: image, tokens and masks, on one page that opens offline."""
    from paligemma.data.preview import preview_page

    page = preview_page(data, model, images, rows)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(page, encoding="utf-8")
    typer.echo(f"wrote {output}")


Registry = Annotated[str, typer.Option(help="Folder or gs:// prefix of all releases.")]


@app.command()
def releases(registry: Registry = "runs/pipeline/registry") -> None:
    """List the releases of a registry, the oldest first; an asterisk marks the champion."""
    from paligemma.registry import list_releases, read_champion

    champion = read_champion(registry)
    for release in list_releases(registry):
        mark = "*" if champion and champion.release == release.version else " "
        metrics = release.metrics
        score = metrics["metrics"][metrics["primary"]]
        formats = ",".join(one.folder for one in release.manifest.formats)
        figures = f"{metrics['primary']} {score['value']:.4f} ({score['low']:.4f} to {score['high']:.4f})"
        typer.echo(f"{mark} {release.version}  {release.record.finished}  {figures}  {formats}")


@app.command()
def rollback(
    release: Annotated[
        str, typer.Argument(help="Version to make the champion.", show_default="the one before the champion")
    ] = "",
    registry: Registry = "runs/pipeline/registry",
) -> None:
    """Make an earlier release the champion again, after reading every byte of it."""
    from paligemma.registry import roll_back

    before, champion = roll_back(registry, release)
    typer.echo(f"the champion is {champion.release}, it was {before}")


@app.command()
def verify(
    release: Annotated[str, typer.Argument(help="Version of a release, or the folder or gs:// prefix of an artifact.")],
    registry: Registry = "runs/pipeline/registry",
    key: Annotated[
        Path | None, typer.Option(help="Public key (PEM) that the release is to be signed with.", show_default="none")
    ] = None,
) -> None:
    """Read every byte of a release, or of one artifact, and compare it with what was recorded."""
    from paligemma.lineage.artifact import localize
    from paligemma.lineage.record import RECORD_FILE
    from paligemma.registry import read_release, verify_artifact, verify_release
    from paligemma.signature import verify_signature
    from paligemma.storage.files import exists

    is_artifact = "/" in release and exists(release, RECORD_FILE)
    location = release if is_artifact else read_release(registry, release).location
    count = verify_artifact(release) if is_artifact else verify_release(read_release(registry, release))
    if key is not None:
        verify_signature(localize(location), key)
    typer.echo(f"{count} files are as they were recorded" + (f", and signed with {key}" if key else ""))


@convert.command("coco-captions")
def convert_coco_captions(
    annotations: Annotated[Path, typer.Option(help="captions_*.json of COCO.")],
    output: OutputFile,
    prefix: Annotated[str, typer.Option(help="Prefix of every row.")] = "caption en",
) -> None:
    """One row for each caption."""
    from paligemma.data.convert import coco_captions, write_rows

    typer.echo(f"{write_rows(output, coco_captions(annotations, prefix))} rows")


@convert.command("coco-detection")
def convert_coco_detection(
    annotations: Annotated[Path, typer.Option(help="instances_*.json of COCO.")],
    output: OutputFile,
) -> None:
    """One row for each image: its boxes as <loc> tokens, with crowds left out."""
    from paligemma.data.convert import coco_detection, write_rows

    typer.echo(f"{write_rows(output, coco_detection(annotations))} rows")


@convert.command("vqav2")
def convert_vqav2(
    questions: Annotated[Path, typer.Option(help="v2_OpenEnded_mscoco_*_questions.json.")],
    annotations: Annotated[Path, typer.Option(help="v2_mscoco_*_annotations.json.")],
    output: OutputFile,
    images: Annotated[str, typer.Option(help="Name of an image; {:012d} is its number.")] = "COCO_train2014_{:012d}.jpg",
) -> None:
    """One row for each question, with the most frequent answer."""
    from paligemma.data.convert import vqav2, write_rows

    typer.echo(f"{write_rows(output, vqav2(questions, annotations, images))} rows")


@convert.command("table")
def convert_table(
    table: Annotated[Path, typer.Option(help="CSV (with a header), Parquet or JSONL file, as Hugging Face data sets have.")],
    output: OutputFile,
    image: Annotated[str, typer.Option(help="Column of the image's path, or of its bytes, which are written out.")] = "image",
    prefix: Annotated[str, typer.Option(help="Prefix; {name} stands for a column.")] = "{prefix}",
    suffix: Annotated[str, typer.Option(help="Suffix; {name} stands for a column.")] = "{suffix}",
) -> None:
    """One row for each row of a table."""
    from paligemma.data.convert import table_rows, write_rows

    typer.echo(f"{write_rows(output, table_rows(table, output.parent, image, prefix, suffix))} rows")


@convert.command("folder")
def convert_folder(
    folder: Annotated[Path, typer.Option(help="Folder with a folder of images for each label.")],
    output: OutputFile,
    prefix: Annotated[str, typer.Option(help="Prefix of every row.")] = "answer en what is this?",
) -> None:
    """One row for each image: the label is its folder's name."""
    from paligemma.data.convert import labelled_folder, write_rows

    typer.echo(f"{write_rows(output, labelled_folder(folder, prefix))} rows")


@pipeline.command("compile")
def compile_(
    output: Annotated[Path, typer.Option(help="File to write.")] = Path("pipeline.yaml"),
    which: Annotated[
        Literal["finetune", "prepare"], typer.Option(help="The DAG, or data preparation on many pods alone.")
    ] = "finetune",
    profile: ProfileName = "local",
    images: ImagesFile = None,
    spot: Spot = False,
    kaggle_secret: KaggleSecret = "",
) -> None:
    """Compile a pipeline to the YAML that a KFP cluster, or Vertex AI, runs."""
    from paligemma.errors import InputError
    from pipelines.compile import compile_pipeline
    from pipelines.placement import placer, read_images

    if which != "finetune" and profile != "local":
        raise InputError("Only the DAG has profiles.", where="--which", expected="finetune")
    place_task = placer(profile, read_images(images) if images else None, spot, kaggle_secret)
    compile_pipeline(output, which, place_task)
    typer.echo(f"wrote {output}")


@pipeline.command()
def submit(
    backend: BackendName,
    profile: ProfileName,
    images: Annotated[Path, typer.Option(help="digests.json of make images.")],
    parameters: ParametersFile,
    name: Annotated[str, typer.Option(help="Name of the run, as people see it.")] = "paligemma-finetune",
    spot: Spot = False,
    kaggle_secret: KaggleSecret = "",
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

    place_task = place_on(backend, profile, images, spot, kaggle_secret)
    job = make_job(name, parameters, profile, place_task, service_account, root)
    typer.echo(connect(backend, host, namespace, experiment, project, location).submit(job))


@pipeline.command()
def schedule(
    backend: BackendName,
    profile: ProfileName,
    images: Annotated[Path, typer.Option(help="digests.json of make images.")],
    parameters: ParametersFile,
    cron: Annotated[str, typer.Option(help='When, e.g. "0 3 * * 1"; KFP has seconds in front: "0 0 3 * * 1".')],
    name: Annotated[str, typer.Option(help="Name of the schedule; one of this name is replaced.")] = "paligemma-finetune",
    dry_run: Annotated[bool, typer.Option(help="Only show what would change.")] = False,
    spot: Spot = False,
    kaggle_secret: KaggleSecret = "",
    service_account: ServiceAccount = "",
    root: RunnerRoot = "",
    host: Host = "",
    namespace: Namespace = "",
    experiment: Experiment = "paligemma",
    project: Project = "",
    location: Region = "",
) -> None:
    """Run the DAG again and again, one run at a time. The same schedule again changes nothing."""
    from pipelines.backends.connect import connect, place_on
    from pipelines.backends.job import make_job

    place_task = place_on(backend, profile, images, spot, kaggle_secret)
    job = make_job(name, parameters, profile, place_task, service_account, root)
    changes = connect(backend, host, namespace, experiment, project, location).schedule(job, cron, dry_run)
    typer.echo(changes or "nothing changes")


@pipeline.command()
def status(
    run: Annotated[str, typer.Argument(help="What submit printed.", show_default=False)],
    backend: BackendName,
    host: Host = "",
    namespace: Namespace = "",
    project: Project = "",
    location: Region = "",
) -> None:
    """Say how a run is, and its tasks."""
    from pipelines.backends.connect import connect

    typer.echo(connect(backend, host, namespace, "", project, location).status(run))


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
    typer.echo(f"asked to end {run}")


@pipeline.command()
def run(
    train_data: Annotated[str, typer.Option(help="JSONL file of rows to train on, local or gs://.")],
    validation_data: Annotated[str, typer.Option(help="JSONL file of rows to evaluate on, local or gs://.")],
    source: Annotated[
        str,
        typer.Option(help="Checkpoint to start from: a kaggle://, https://, hf:// or gs:// address, a path, or embedded:tiny."),
    ] = "embedded:tiny",
    sha256: Annotated[str, typer.Option(help="Expected sha256 of the weight file.", show_default="recorded, not checked")] = "",
    tokenizer: Annotated[
        str, typer.Option(help="SentencePiece model, when it is not beside the weights.", show_default="beside the weights")
    ] = "",
    precision: Annotated[
        Literal["float16", "bfloat16", "float32"],
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
    target: Annotated[str, typer.Option(help="Hardware that fine-tuning is to fit.")] = "cpu",
    max_text_tokens: Annotated[int, typer.Option(help="Most tokens of prefix and suffix.", min=4)] = 128,
    max_reject_fraction: Annotated[
        float, typer.Option(help="Fail when a larger share of a split's rows is rejected.", min=0, max=1)
    ] = 0.1,
    task: Annotated[
        Literal["", "vqa", "caption", "docvqa", "chartqa", "detect", "segment", "classify", "ocr"],
        typer.Option(help="What the rows ask, which selects the metrics.", show_default="exact match of any text"),
    ] = "",
    metrics: Annotated[
        str, typer.Option(help="Metrics in place of the task's, the deciding one first.", show_default="the task's")
    ] = "",
    margin: Annotated[float, typer.Option(help="By how much the first metric must surely be better.", min=0)] = 0.0,
    mask_decoder: Annotated[
        str,
        typer.Option(help="File with the weights that turn <seg> symbols into masks, for --task segment.", show_default="none"),
    ] = "",
    batch_size: Annotated[int, typer.Option(help="Rows decoded at once in evaluation.", min=1)] = 32,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.", min=1)] = 32,
    beams: Annotated[
        int, typer.Option(help="Sequences that a beam search keeps in evaluation; 1 decodes greedily.", min=1)
    ] = 1,
    registry: Annotated[
        str, typer.Option(help="Folder or gs:// prefix of all releases.", show_default="registry, below --root")
    ] = "",
    formats: Annotated[str, typer.Option(help="Formats of a release, with commas: big_vision, huggingface.")] = "big_vision",
    artifact_root: Annotated[
        str,
        typer.Option(help="Folder or gs:// prefix that artifacts go to.", show_default="a folder of the run's below --root"),
    ] = "",
    root: Annotated[Path, typer.Option(help="Local folder for what every run leaves.")] = Path("runs/pipeline"),
) -> None:
    """Run the DAG on this machine with KFP's local runner."""
    import json

    import yaml

    from paligemma.lineage.artifact import localize
    from paligemma.training.recipe import parse_recipe
    from pipelines.presets import read_preset
    from pipelines.run_local import run_pipeline

    parsed = parse_recipe(read_preset(recipe), set_ or [], recipe)  # wrong recipes are refused before anything runs
    outputs = run_pipeline(
        {
            "train_data": absolute(train_data),
            "validation_data": absolute(validation_data),
            "source": ",".join(absolute(part.strip()) for part in source.split(",")),
            "sha256": sha256,
            "tokenizer": absolute(tokenizer),
            "precision": precision,
            "image_size": image_size,
            "images": absolute(images),
            "recipe": yaml.safe_dump(parsed.model_dump(exclude_none=True), sort_keys=False),
            "target": target,
            "max_text_tokens": max_text_tokens,
            "max_reject_fraction": max_reject_fraction,
            "task": task,
            "metrics": metrics,
            "margin": margin,
            "mask_decoder": absolute(mask_decoder),
            "batch_size": batch_size,
            "max_new_tokens": max_new_tokens,
            "beams": beams,
            "registry": absolute(registry or str(root / "registry")),
            "formats": formats,
            "artifact_root": absolute(artifact_root),
        },
        root,
    )
    evaluation = localize(outputs.tuned_evaluation)
    typer.echo(f"tuned model: {outputs.tuned}")
    typer.echo(f"report:      {evaluation / 'report.html'}")
    typer.echo(json.loads((evaluation / "gate.json").read_text())["why"])
    if outputs.release:
        typer.echo(f"release:     {outputs.release}")


def absolute(location: str) -> str:
    """A local path made absolute, because steps run in folders of their own; anything else as it is."""
    is_local = location and "://" not in location and not location.startswith("embedded:")
    return str(Path(location).absolute()) if is_local else location


def main() -> None:
    """The entry point."""
    run_app(app)


if __name__ == "__main__":
    main()
