"""The command line of `publish`."""

from __future__ import annotations

from typing import Annotated

import typer

from paligemma.artifacts.recording import recorded
from paligemma.choices import ReleaseDtype
from paligemma.command_line import run_command


@recorded("publish", output="registry", root="registry")
def run(
    checkpoint: Annotated[str, typer.Option(help="Base checkpoint of the tuned model; local or gs://.")],
    tuned: Annotated[str, typer.Option(help="Tuned model, from finetune; local or gs://.")],
    evaluation: Annotated[str, typer.Option(help="Evaluation of the tuned model, from evaluate; local or gs://.")],
    registry: Annotated[str, typer.Option(help="Folder or gs:// prefix of all releases.")],
    formats: Annotated[
        str,
        typer.Option(help="Formats of the whole model, with commas: big_vision, huggingface."),
    ] = "big_vision",
    dtype: Annotated[
        ReleaseDtype,
        typer.Option(help="Of every parameter; stored keeps each as it is (trained ones are float32)."),
    ] = "stored",
    promote: Annotated[bool, typer.Option(help="Make it the champion; refused when its evaluation says no.")] = True,
    vertex_model: Annotated[
        str,
        typer.Option(
            help="Full name of a Vertex AI Model Registry model; the release becomes a version of it.", show_default="none"
        ),
    ] = "",
    serving: Annotated[
        str,
        typer.Option(
            help="How Vertex AI serves it, as YAML text: image, ports, ...; required with --vertex-model.",
            show_default="none",
        ),
    ] = "",
) -> str:
    """Writes the merged model, its card and its manifest below REGISTRY/releases, then moves REGISTRY/champion.json."""
    arguments = locals()  # before anything else has a name here
    from components.publish.main import publish

    return publish(**arguments)


def main() -> None:
    """The command line."""
    run_command(run, "publish")


if __name__ == "__main__":
    main()
