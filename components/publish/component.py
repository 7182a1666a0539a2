"""KFP interface of `publish`."""

# KFP reads these annotations and defaults otherwise than Python does: an output is `OutputPath(str)`, an input that may be left
# out is `= None`, and a parameter is a text, which the step checks.
# pyright: reportInvalidTypeForm=false, reportArgumentType=false

from kfp import dsl

from components.kfp_component import kfp_component


@kfp_component
def publish(
    checkpoint: dsl.Input[dsl.Model],
    tuned: dsl.Input[dsl.Model],
    evaluation: dsl.Input[dsl.Artifact],
    release: dsl.Output[dsl.Model],
    card: dsl.Output[dsl.Markdown],
    registry: str = "",
    formats: str = "big_vision",
    dtype: str = "stored",
    promote: bool = True,
    vertex_model: str = "",
    serving: str = "",
    checkpoint_sha256: str = "",
    tuned_sha256: str = "",
    evaluation_sha256: str = "",
    artifact_root: str = "",
    run: str = "",
    run_task: str = "",
):
    """Makes a tuned model a release of a registry, and its champion.

    Args:
        registry: Folder or gs:// prefix of all releases; empty: where this run's artifacts go.
        formats: Formats of the whole model, with commas: big_vision, huggingface.
        dtype: Of every parameter; stored keeps each as it is.
        promote: Make it the champion; refused when its evaluation says no.
        vertex_model: Model of Vertex AI's Model Registry to make it a version of, by its full name; empty: none.
        serving: How Vertex AI serves it, as YAML text: image, ports, ...; needed with vertex_model.
    """
    from components.artifacts import copy_file, input_location, mirror_record, output_location
    from components.publish.main import publish as run_step
    from paligemma.registry.releases import CARD_FILE, release_part

    location = output_location(release, artifact_root, run, run_task)
    registry = registry or location
    version = run_step(
        checkpoint=input_location(checkpoint, checkpoint_sha256),
        tuned=input_location(tuned, tuned_sha256),
        evaluation=input_location(evaluation, evaluation_sha256),
        registry=registry,
        formats=formats,
        dtype=dtype,
        promote=promote,
        vertex_model=vertex_model,
        serving=serving,
    )
    location = release_part(registry, version, "release")
    release.metadata["version"] = version
    mirror_record(release, str(location))
    copy_file(str(location), CARD_FILE, card.path)
