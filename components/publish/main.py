"""Makes a tuned model a release of a registry, and the champion if it is better than the one before."""

from __future__ import annotations

import logging
from typing import Annotated, Literal

import typer

from paligemma.artifacts.recording import recorded
from paligemma.command_line import run_command

log = logging.getLogger("paligemma.publish")


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
        Literal["stored", "float32", "float16", "bfloat16"],
        typer.Option(help="Of every parameter; stored keeps each as it is (trained ones are float32)."),
    ] = "stored",
    promote: Annotated[bool, typer.Option(help="Make it the champion; refused when its evaluation says no.")] = True,
    vertex_model: Annotated[
        str,
        typer.Option(
            help="Model of Vertex AI's Model Registry to make it a version of, by its full name.", show_default="none"
        ),
    ] = "",
    serving: Annotated[
        str,
        typer.Option(
            help="How Vertex AI is to serve it, as YAML text: image, ports, ...; needed with --vertex-model.",
            show_default="none",
        ),
    ] = "",
) -> str:
    """Writes the merged model, its card and its manifest below REGISTRY/releases, then moves REGISTRY/champion.json."""
    from components.publish.model_registry import VertexModel
    from components.publish.release import read_candidate, write_release
    from paligemma.registry import releases

    vertex = VertexModel.parse(vertex_model, serving, registry) if vertex_model else None
    candidate = read_candidate(checkpoint, tuned, evaluation, registry, formats, dtype)
    if promote:
        candidate.check_decision(releases.read_champion(registry))
    release = write_release(candidate)
    log.info("release %s is in %s", release.version, release.location)
    if promote:
        releases.promote(release, candidate.compared_with)
        log.info("release %s is the champion of %s", release.version, registry)
    if vertex is not None:
        vertex.upload(release)
    return release.version


def main() -> None:
    """The command line."""
    run_command(run, "publish")


if __name__ == "__main__":
    main()
