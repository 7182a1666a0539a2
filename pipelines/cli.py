"""The command `paligemma`: its groups, and the commands for one model. Commands import what they need, so help is fast."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Annotated

import typer

from components.decoding_flags import DecodingFlags
from paligemma.choices import ExportDtype, ModelFormat, TaskName
from paligemma.command_line import make_app, run_app, with_flag_groups
from paligemma.errors import InputError
from paligemma.terminal import say
from pipelines.commands.convert import convert
from pipelines.commands.lineage import app as lineage
from pipelines.commands.pipeline import pipeline
from pipelines.commands.releases import app as registry

_SMALL = 10_000_000
"""Largest model (in parameters) whose answer takes less time than optimizing its program."""

ModelName = Annotated[
    str,
    typer.Option(help="Checkpoint file or folder, tuned model, or embedded:tiny.", show_default="none; must be given"),
]

app = make_app(completion=True)


def _say_version(wanted: bool) -> None:
    if wanted:
        say(f"paligemma {importlib.metadata.version('paligemma')}")
        raise typer.Exit


@app.callback()
def of_all(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Print the version.", show_default=False)
    ] = False,
) -> None:
    """Fine-tune PaliGemma with JAX: run the pipeline, compile it, ask a model."""


app.add_typer(pipeline, name="pipeline")
app.add_typer(lineage, name="lineage")
app.add_typer(convert, name="convert")


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for the data, the artifacts and summary.json.")] = Path("runs/demo"),
) -> None:
    """Run the whole DAG on the embedded tiny checkpoint and real handwritten digits."""
    from pipelines.demo.run import run_demo

    run_demo(output)


@app.command()
@with_flag_groups
def generate(
    image: Annotated[
        list[str] | None,
        typer.Option(
            help="Image to ask about, a file or an address (gs://, https://), or a folder of them. Given several times, one "
            "question is about all of them, in this order.",
            show_default="those that --data names",
        ),
    ] = None,
    prompt: Annotated[
        str, typer.Option(help="What to ask, as in the prefix of the training data.", show_default="each row's prefix")
    ] = "",
    data: Annotated[
        Path | None,
        typer.Option(help='JSONL file of rows {"image", "prefix"}; images are relative to it.', show_default="none"),
    ] = None,
    task: Annotated[
        TaskName,
        typer.Option(help="Puts the prompt into the words that PaliGemma was trained on.", show_default="as it is"),
    ] = "",
    model: ModelName = "",
    base: Annotated[
        str,
        typer.Option(help="A tuned model's base checkpoint, when it has moved.", show_default="where it was when tuned"),
    ] = "",
    output: Annotated[
        Path | None,
        typer.Option(help="File to append JSON lines to; questions answered in it are skipped.", show_default="print them"),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Images asked about at once.", min=1)] = 8,
    decoding: DecodingFlags = DecodingFlags(),
    grey_range: Annotated[
        str,
        typer.Option(
            help="Samples that are black and white in grey pictures, LOW,HIGH, e.g. 0,4095 for 12 bits.",
            show_default="as the tuned model's data were prepared",
        ),
    ] = "",
) -> None:
    """Answer a prompt about an image, or about several together; many prompts as JSON lines."""
    from paligemma.checkpoints.describe import describe, named, parameter_count
    from paligemma.checkpoints.open_checkpoint import open_model
    from paligemma.data.pictures.levels import parse_grey_range
    from paligemma.data.rows import leads_elsewhere
    from paligemma.evaluation.tasks import TASKS
    from paligemma.model import build_model
    from paligemma.runtime.accelerator import expect_accelerator
    from paligemma.runtime.compile_cache import compiled_quickly, use_compile_cache
    from pipelines.commands.generate import answer_all, find_questions

    model = named(model, "--model")
    expect_accelerator()
    settings = decoding.settings()
    asked = [one if leads_elsewhere(one) else Path(one) for one in image or () if one]
    questions = find_questions(asked, data, prompt, TASKS[task].ask, output)
    opened, tuned = open_model(model, base=base or None)
    say(f"model: {describe(model, opened)}", error=True)
    use_compile_cache()
    unread = 0
    with compiled_quickly(len(questions) == 1 and parameter_count(opened) < _SMALL):
        loaded = build_model(opened, tuned, settings.loaded_as)
        loaded.grey_range = parse_grey_range(grey_range) or loaded.grey_range
        if data is None and output is None and not (isinstance(asked[0], Path) and asked[0].is_dir()):
            (question,) = questions
            say(loaded.answer([question.decoded(loaded.grey_range)], question.prompt, settings)[0].text, lines=True)
        else:
            unread = answer_all(loaded, questions, settings, batch_size, output)
    if unread:
        raise InputError(
            f"{unread} of {len(questions)} images could not be read; the others are answered.",
            where=output or "the lines above",
            expected="an answer in every line",
            fix='see "error" in the lines; run again with the same --output to ask only those',
        )


@app.command()
def export(
    model: Annotated[str, typer.Option(help="Checkpoint file or folder, tuned model, or embedded:tiny.")],
    output: Annotated[str, typer.Option(help="Folder or gs:// prefix to write to.")],
    format: Annotated[
        ModelFormat,
        typer.Option(help="big_vision: one .npz file, or safetensors of int8 or nf4. huggingface: for transformers."),
    ],
    dtype: Annotated[
        ExportDtype,
        typer.Option(help="Of every parameter; stored keeps each as it is, int8 and nf4 quantize weights."),
    ] = "stored",
    base: Annotated[
        str,
        typer.Option(help="A tuned model's base checkpoint, when it has moved.", show_default="where it was when tuned"),
    ] = "",
) -> None:
    """Write a model, a tuned one merged with its base, in the format of big_vision or of Hugging Face."""
    from paligemma.checkpoints.export import export

    export(model, output, format, dtype, base)
    say(f"wrote {model} in the format {format} to {output}")


@app.command()
def preflight(
    variant: Annotated[
        str,
        typer.Option(
            help="Published architecture, e.g. paligemma2-3b-pt-224.",
            show_default="that of --checkpoint; with --sweep, nine of them",
        ),
    ] = "",
    checkpoint: Annotated[str, typer.Option(help="Checkpoint whose architecture to take.", show_default="none")] = "",
    target: Annotated[
        str,
        typer.Option(
            help="Hardware, several with commas: cpu, t4, l4-4, a100-40, v5e-1, v6e-8, ...",
            show_default="cpu; with --sweep, one of each kind",
        ),
    ] = "",
    recipe: Annotated[str, typer.Option(help="Training recipe: a preset's name or a YAML file.")] = "default",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Overrides a value of the recipe; repeatable.", show_default="none"),
    ] = None,
    batch_size: Annotated[str, typer.Option(help="Examples in a step, several with commas.", show_default="the recipe's")] = "",
    frozen_dtype: Annotated[
        str,
        typer.Option(help="Dtype of frozen parameters, several with commas: float16, int8, ...", show_default="the recipe's"),
    ] = "",
    max_text_tokens: Annotated[int, typer.Option(help="Maximum tokens of a row's prefix and suffix.", min=4)] = 128,
    rows: Annotated[
        int | None, typer.Option(help="Training rows, for a recipe that has epochs.", min=1, show_default="none")
    ] = None,
    sweep: Annotated[
        bool,
        typer.Option(help="Tabulate variants, batches, dtypes and targets, several with commas; does not fail."),
    ] = False,
    markdown: Annotated[bool, typer.Option(help="Print the table of --sweep as Markdown.")] = False,
    output: Annotated[
        Path | None, typer.Option(help="Folder for preflight.json and preflight.html.", show_default="none")
    ] = None,
    prices: Annotated[Path | None, typer.Option(help="YAML file of prices.", show_default="the built-in one")] = None,
    warn_only: Annotated[bool, typer.Option(help="Exit with 0 when it does not fit.")] = False,
    fresh: Annotated[bool, typer.Option(help="Compile again what has been compiled before.")] = False,
    decode_batch: Annotated[
        int,
        typer.Option(help="Prompts decoded at once; above 0, decoding is compiled too.", min=0, show_default="not compiled"),
    ] = 0,
    full_effort: Annotated[
        bool, typer.Option(help="Compile for TPUs as a run does: minutes, and seconds by the compiler's cycles.")
    ] = False,
) -> None:
    """Compile the training step for absent hardware: memory, best speed, price, and what would fit if it does not."""
    from pipelines.commands.preflight import Question, ask, tabulate

    question = Question(
        variant,
        checkpoint,
        target,
        recipe,
        tuple(set_ or ()),
        batch_size,
        frozen_dtype,
        max_text_tokens,
        rows,
        prices,
        fresh,
        full_effort,
        decode_batch,
    )
    if sweep or markdown:
        tabulate(question, output, markdown)
    else:
        ask(question, output, warn_only)


@app.command()
def preview(
    data: Annotated[
        list[str],
        typer.Option(help="Records from prepare_data, or a JSONL file; local or gs://. Repeatable, for a mixture of files."),
    ],
    output: Annotated[Path, typer.Option(help="HTML page to write.")] = Path("preview.html"),
    model: Annotated[
        str,
        typer.Option(
            help="Checkpoint or tuned model whose tokenizer and image size to use, or embedded:tiny.",
            show_default="none; must be given",
        ),
    ] = "",
    images: Annotated[
        str,
        typer.Option(help="Folder or gs:// prefix that image paths are relative to.", show_default="the JSONL file's folder"),
    ] = "",
    rows: Annotated[int, typer.Option(help="Rows to show, from the first.", min=1)] = 24,
    max_text_tokens: Annotated[int, typer.Option(help="Most tokens of a row; longer ones are rejected.", min=4)] = 128,
    grey_range: Annotated[
        str,
        typer.Option(
            help="Samples that are black and white in grey pictures, LOW,HIGH, e.g. 0,4095 for 12 bits.",
            show_default="as each file states",
        ),
    ] = "",
    mask_decoder: Annotated[
        str,
        typer.Option(
            help="File with the weights that turn <seg> symbols into masks, to draw them; true masks are drawn without.",
            show_default="none",
        ),
    ] = "",
    images_per_example: Annotated[
        int, typer.Option(help="Images in every row of a JSONL file; rows with another number are rejected.", min=1)
    ] = 1,
) -> None:
    """Show what the model is fed for each row (image, boxes, tokens, masks), and which rows would be rejected, on one page."""
    from paligemma.checkpoints.describe import named
    from paligemma.data.preview import make_preview
    from paligemma.data.source_list import parse_flags, sources_text

    settings = (images, rows, grey_range, max_text_tokens, mask_decoder, images_per_example)
    made = make_preview(sources_text(parse_flags(data, "--data")), named(model, "--model"), *settings)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(made.page, encoding="utf-8")
    say(f"model: {made.model}")
    for line in made.counts:
        say(line)
    say(f"wrote {output}")


@app.command()
def doctor() -> None:
    """Say what this machine has (JAX, devices, memory, disk, credentials, clock), and what each command lacks."""
    from pipelines.commands.doctor import examine

    wrong = []
    for finding in examine():
        say(finding, lines=True)
        wrong += [finding.what] if finding.state == "wrong" else []
    if wrong:
        raise InputError(f"Nothing runs here yet: {', '.join(wrong)}.", where="the lines that begin with wrong", fix="see them")


app.add_typer(registry)


def main() -> None:
    """The entry point."""
    run_app(app)


if __name__ == "__main__":
    main()
