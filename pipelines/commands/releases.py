"""Commands about releases: `paligemma releases`, `rollback` and `verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from paligemma.command_line import make_app
from paligemma.terminal import say

app = make_app()
Registry = Annotated[str, typer.Option(help="Folder or gs:// prefix of all releases.")]


@app.command()
def releases(registry: Registry = "runs/pipeline/registry") -> None:
    """List the releases of a registry, the oldest first; an asterisk marks the champion.

    What is damaged is listed as such, after the rest: a release, or a champion that is none of the releases.
    """
    from paligemma.errors import DamagedError, InputError
    from paligemma.registry.releases import is_registry, list_releases, read_champion, read_champion_release

    if not is_registry(registry):
        raise InputError(
            "There is no registry.",
            where=registry,
            expected="a folder or prefix with a folder `releases`, which publish makes",
            fix="pass --registry; a pipeline's is below its --root, unless it was told another",
        )
    found, broken = list_releases(registry)
    faults = [(one.version, one.error) for one in broken]
    in_use = ""
    try:
        if champion := read_champion(registry):
            in_use = champion.release
            read_champion_release(registry)
    except (DamagedError, InputError) as error:
        if in_use not in {one.version for one in broken}:
            faults.append((in_use or "champion", error))
    for release in found:
        mark = "*" if release.version == in_use else " "
        formats = ",".join(one.folder for one in release.manifest.formats)
        try:
            score = release.score
            figures = f"{score.metric} {score.value:.4f} ({score.low:.4f} to {score.high:.4f})"
        except DamagedError as error:
            figures = error.what
        say(f"{mark} {release.version}  {release.record.finished}  {figures}  {formats}")
    if not found and not faults:
        say(f"no release is finished in {registry}")
    for name, error in faults:
        say(f"{'*' if name == in_use else '!'} {name}  {error}", lines=True)


@app.command()
def rollback(
    release: Annotated[
        str, typer.Argument(help="Version to make the champion.", show_default="the one before the champion")
    ] = "",
    registry: Registry = "runs/pipeline/registry",
) -> None:
    """Make an earlier release the champion again, after reading every byte of it."""
    from paligemma.registry.releases import roll_back

    before, champion = roll_back(registry, release)
    say(f"the champion is {champion.release}, it was {before or 'damaged'}")


@app.command()
def verify(
    release: Annotated[str, typer.Argument(help="Version of a release, or the folder or gs:// prefix of an artifact.")],
    registry: Registry = "runs/pipeline/registry",
    key: Annotated[
        Path | None, typer.Option(help="Public key (PEM) that the release must be signed with.", show_default="none")
    ] = None,
) -> None:
    """Read every byte of a release, or of one artifact, and compare it with what was recorded."""
    from paligemma.artifacts.record import RECORD_FILE
    from paligemma.artifacts.store import localize
    from paligemma.registry.releases import read_release, verify_artifact, verify_release
    from paligemma.registry.signature import verify_signature
    from paligemma.storage.files import exists

    is_artifact = "/" in release and exists(release, RECORD_FILE)
    location = release if is_artifact else read_release(registry, release).location
    count = verify_artifact(release) if is_artifact else verify_release(read_release(registry, release))
    if key is not None:
        verify_signature(localize(location), key)
    say(f"{count} files are as they were recorded" + (f", and signed with {key}" if key else ""))
