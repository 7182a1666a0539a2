"""A release's card: what the model is, what it was made from, and how well it does, as Markdown with Hugging Face's header."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple, get_args

from paligemma.artifacts.record import Input, Record
from paligemma.checkpoints.tuned import TunedDescription
from paligemma.choices import QuantizedDtype
from paligemma.yaml_text import dump_yaml

LICENCE = """The terms that the base checkpoint came with apply to this model too. Those of Google's PaliGemma are the
[Gemma Terms of Use](https://ai.google.dev/gemma/terms): who passes the model on passes on the terms, a notice of the changes
(this card), and the restrictions of the [prohibited use policy](https://ai.google.dev/gemma/prohibited_use_policy)."""


class Source(NamedTuple):
    """A source file of a model: its role, address and hash."""

    role: str
    uri: str
    sha256: str


def render_card(
    version: str,
    formats: Iterable[str],
    description: TunedDescription,
    summary: Mapping,
    metrics: Mapping,
    decision: Mapping | None,
    training: Record,
    inputs: Iterable[Input],
    sources: Iterable[Source],
    model: str,
) -> str:
    """The card's text.

    Args:
        version: the release's version.
        formats: folders with the model.
        description: the tuned model's description.
        summary: the tuned model's `summary.json`.
        metrics: the evaluation's `metrics.json`.
        decision: the evaluation's `gate.json`.
        training: the tuned model's record.
        inputs: the release's inputs.
        sources: external sources of the whole chain.
        model: location of the first format.
    """
    base, recipe = description.base, description.recipe
    header = {
        "pipeline_tag": "image-text-to-text",
        "license": "other",
        "license_name": "as-the-base-checkpoint",
        "tags": ["paligemma"],
    }
    primary, trainer = metrics["primary"], training.producer
    lines = [
        "---",
        dump_yaml(header).rstrip(),
        "---",
        "",
        f"# PaliGemma, fine-tuned: release {version}",
        "",
        f"{_images(description.images_per_example)} and a text prefix in, a text out. {summary['trained_parameters']:,} of "
        f"{summary['trained_parameters'] + summary['frozen_parameters']:,} parameters were trained "
        f"(`trainable: {_inline(recipe.get('trainable'))}`) for {description.steps} steps on {summary['device']}; images are "
        f"{description.config.img.image_size} x {description.config.img.image_size} pixels.",
        *about_frozen(recipe.get("frozen_dtype")),
        "",
        "## How well it does",
        "",
        f"On {metrics['examples']} rows that were held out"
        + (f", as the task `{metrics['task']}`" if metrics["task"] else "")
        + f"; what decides is `{primary}`. Intervals are 95 %, by bootstrap over rows.",
        "",
        "| metric | value | interval |",
        "| --- | --- | --- |",
        *(
            f"| {name} | {_figure(one['value'])} | {_figure(one['low'])} to {_figure(one['high'])} |"
            for name, one in metrics["metrics"].items()
        ),
        f"| perplexity of the right answers | {_figure(metrics['perplexity'])} | |",
        "",
        decision["why"] if decision else "It was compared with no other model.",
        "[Its page](evaluation/report.html) shows every kind of question, and the answers.",
        "",
        "## Made from",
        "",
        "| what | where | sha256 |",
        "| --- | --- | --- |",
        f"| base weights | `{base.uri}`, `{base.weights_file}` | `{base.weights_sha256}` |",
        *(_input_row(entry) for entry in sources),
        "",
        "by way of these artifacts, whose `lineage.json` says more:",
        "",
        "| what | where | sha256 |",
        "| --- | --- | --- |",
        *(_input_row(entry) for entry in {entry.sha256: entry for entry in [*training.inputs, *inputs]}.values()),
        "",
        f"Trained by paligemma {trainer.packages.get('paligemma', '?')}, commit {trainer.git_sha or 'unknown'}"
        f"{' (changed)' if trainer.git_dirty else ''}, on {(training.finished or '')[:10]}. The recipe:",
        "",
        "```yaml",
        dump_yaml({key: value for key, value in recipe.items() if value is not None}).rstrip(),
        "```",
        "",
        "## Use",
        "",
        *(f"- `{folder}`: {_USE[folder]}" for folder in formats),
        "",
        "```python",
        "import paligemma",
        "from PIL import Image",
        "",
        f"model = paligemma.load({model!r})",
        'picture = Image.new("RGB", (640, 480), "grey")  # or the path of yours',
        'print(model.generate([picture], ["caption en"]))  # ask as the prefixes of the training data do',
        "```",
        "",
        "## Licence",
        "",
        LICENCE,
        "",
        "## Limits",
        "",
        "It answers as the rows it was trained on do. The table holds for rows like those it was judged on; nothing was",
        "measured on others.",
    ]
    return "\n".join(lines) + "\n"


_USE = {
    "big_vision": 'one `.npz` file, for `paligemma.load("FOLDER")` and for big_vision',
    "huggingface": '`PaliGemmaForConditionalGeneration.from_pretrained("FOLDER")` of transformers',
}


def _input_row(entry: Input | Source) -> str:
    return f"| {entry.role} | `{entry.uri.replace('|', '%7C')}` | `{entry.sha256}` |"


def about_frozen(dtype: object) -> list[str]:
    """A line about frozen weights that were quantized while the model was trained."""
    if dtype not in get_args(QuantizedDtype):
        return []
    return [
        f"While it was trained, frozen weights were held as {dtype}. Here they are floats, as the base has them, with what "
        "was trained merged into them."
    ]


def _images(count: int) -> str:
    return "An image" if count == 1 else f"{count} images"


def _figure(value: float | None) -> str:
    """A number as text; a dash if there is none, e.g. without rows."""
    return "–" if value is None else f"{value:.4f}"


def _inline(value: str | Iterable[object] | None) -> str:
    return value if isinstance(value, str) else ", ".join(map(str, value or ()))
