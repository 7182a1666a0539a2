"""Makes a tuned model a release of a registry, and the champion if it is better than the one before."""

from __future__ import annotations

import logging

from components.publish.model_registry import VertexModel
from components.publish.release import read_candidate, write_release
from paligemma.artifacts.recording import recorded
from paligemma.command_line import say_moved
from paligemma.registry import releases

log = logging.getLogger("paligemma.publish")


@recorded("publish", output="registry", root="registry")
def publish(
    *,
    checkpoint: str,
    tuned: str,
    evaluation: str,
    registry: str,
    formats: str,
    dtype: str,
    promote: bool,
    vertex_model: str,
    serving: str,
) -> str:
    """Writes the merged model, its card and its manifest, then moves the champion's pointer; see the command line.

    Returns:
        The version of the release.
    """
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


if __name__ == "__main__":
    say_moved("components.publish")
