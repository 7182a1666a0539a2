"""Makes a release: checks a tuned model, its base and its evaluation against each other, and writes them."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from components.publish.card import Source, render_card
from components.publish.formats import parse_formats
from paligemma.artifacts.record import RECORD_FILE, Input, canonical_sha256, read_record
from paligemma.artifacts.store import input_of, localize, produce, record_of
from paligemma.checkpoints.export import export
from paligemma.checkpoints.open_checkpoint import check_base, open_checkpoint
from paligemma.checkpoints.tuned import TunedDescription, read_tuned
from paligemma.choices import ModelFormat, ReleaseDtype
from paligemma.errors import InputError, PaliGemmaError, one_of
from paligemma.foreign_json import read_json
from paligemma.registry.releases import (
    ARTIFACT_TYPE,
    CARD_FILE,
    EVALUATION_FOLDER,
    MANIFEST_FILE,
    Champion,
    Manifest,
    Release,
    formats_in,
    read_champion,
    read_release,
    release_part,
    versions,
)
from paligemma.registry.signature import sign, signer_of, signing_key
from paligemma.storage.failures import ChangedError
from paligemma.storage.files import exists
from paligemma.storage.location import absolute_uri, parse_location

log = logging.getLogger("paligemma.publish")

_VERSION_LENGTH = 12


@dataclass(frozen=True)
class Candidate:
    """A tuned model to release.

    Attributes:
        version: a hash of everything it is made from, so equal inputs give the same version.
        signer: hash of the signing public key; empty if unsigned.
        inputs: inputs for the lineage record.
        compared_with: the champion in its evaluation; None if there was none.
        decision: the evaluation's `gate.json`.
    """

    version: str
    checkpoint: str
    tuned: str
    evaluation: Path
    registry: str
    formats: tuple[ModelFormat, ...]
    dtype: ReleaseDtype
    signer: str
    description: TunedDescription
    inputs: list[Input]
    compared_with: Champion | None
    decision: dict | None

    def check_decision(self, champion: Champion | None) -> None:
        """Raises before anything is written if the candidate should not become the champion.

        Raises:
            InputError: its evaluation says no.
            ChangedError: it was not compared with the current champion.
        """
        if champion is not None and champion.release == self.version:
            return
        if self.decision is not None and self.decision.get("promote") is not True:
            raise InputError(
                "The evaluation says that this model must not replace another.",
                where=self.evaluation,
                expected=self.decision.get("why"),
                fix="train a better one, or release it without making it the champion (--no-promote)",
            )
        if champion != self.compared_with:
            raise ChangedError(
                "The model was not compared with the current champion.",
                where=self.registry,
                expected=f"an evaluation beside {champion.release if champion else 'no champion'}",
                fix="evaluate it again, with --registry",
            )


def read_candidate(checkpoint: str, tuned: str, evaluation: str, registry: str, formats: str, dtype: str) -> Candidate:
    """Checks that the parts belong together.

    Raises:
        InputError: they do not belong together, or a format or dtype is unknown.
    """
    wanted, held_in = parse_formats(formats), one_of(dtype, get_args(ReleaseDtype), "--dtype")
    base, model = open_checkpoint(checkpoint), read_tuned(localize(tuned))
    check_base(model, base)
    evaluated = localize(evaluation)
    record = read_record(evaluated, "evaluation")
    inputs = [
        input_of("checkpoint", base.location),
        input_of("tuned model", tuned),
        input_of("evaluation", evaluation),
    ]
    if inputs[1].sha256 not in {entry.sha256 for entry in record.inputs if entry.role == "tuned model"}:
        raise InputError(
            "The evaluation is of another model.",
            where=evaluation,
            expected=f"one of {tuned}",
            fix="evaluate this model",
        )
    gate = evaluated / "gate.json"
    key = signing_key()
    signer = signer_of(key) if key is not None else ""
    identity = {"inputs": [entry.sha256 for entry in inputs], "formats": wanted, "dtype": held_in, "signer": signer}
    return Candidate(
        version=canonical_sha256(identity)[:_VERSION_LENGTH],
        checkpoint=base.location,
        tuned=tuned,
        evaluation=evaluated,
        registry=registry,
        formats=wanted,
        dtype=held_in,
        signer=signer,
        description=model.description,
        inputs=inputs,
        compared_with=_compared_with(registry, {entry.sha256 for entry in record.inputs if entry.role == "champion"}),
        decision=read_json(gate, "The decision of the gate", nonfinite=True) if gate.is_file() else None,
    )


def write_release(candidate: Candidate) -> Release:
    """Writes the missing parts of a release: each format, then the release itself, which completes it."""
    registry, version = candidate.registry, candidate.version
    if version in versions(registry):
        log.info("release %s is there already", version)
        return read_release(registry, version)
    for name in candidate.formats:
        location = release_part(registry, version, name)
        if not exists(location, RECORD_FILE):  # else it is left over from an unfinished attempt
            export(candidate.tuned, str(location), name, candidate.dtype, base=candidate.checkpoint)
    formats = list(formats_in(registry, version, list(candidate.formats)))
    parts = [input_of(f"model, {name}", release_part(registry, version, name)) for name in candidate.formats]
    key = signing_key()
    parameters = {"version": version, "formats": list(candidate.formats), "dtype": candidate.dtype}
    parameters["signer"] = candidate.signer
    location = release_part(registry, version, "release")
    tuned = localize(candidate.tuned)
    with produce(str(location), ARTIFACT_TYPE, "publish", parameters, [*candidate.inputs, *parts]) as draft:
        copies = draft.folder / EVALUATION_FOLDER
        shutil.copytree(candidate.evaluation, copies)
        manifest = Manifest(version=version, formats=formats)
        (draft.folder / MANIFEST_FILE).write_text(json.dumps(manifest.model_dump(), indent=2) + "\n")
        card = render_card(
            version,
            candidate.formats,
            candidate.description,
            read_json(tuned / "summary.json", "The summary of the training", nonfinite=True),
            read_json(copies / "metrics.json", "The figures of the evaluation", nonfinite=True),
            candidate.decision,
            read_record(tuned),
            candidate.inputs,
            sources_of([*read_record(tuned).inputs, *candidate.inputs]),
            str(release_part(absolute_uri(parse_location(registry)), version, candidate.formats[0])),
        )
        (draft.folder / CARD_FILE).write_text(card)
        if key is not None:  # the manifest has every file's hash, so its signature covers the model too
            sign(draft.folder, key)
    return read_release(registry, version)


def sources_of(inputs: Iterable[Input]) -> list[Source]:
    """The external sources of artifacts: data files, and checkpoints by their original address.

    Reads the records beside the artifacts; skips artifacts that are gone.
    """
    found: dict[tuple[str, str], Source] = {}
    for one in inputs:
        try:
            record = record_of(one.uri) if one.record else None
        except (PaliGemmaError, OSError) as error:
            log.warning("the card does not say what %s was made from: %s", one.uri, error)
            continue
        for source in () if record is None else record.inputs:
            role = f"{one.role}: {source.role}"
            if source.record is None:
                found.setdefault((role, source.sha256), Source(role, source.uri, source.sha256))
    return list(found.values())


def _compared_with(registry: str, hashes: set[str]) -> Champion | None:
    """The champion in an evaluation. A champion other than the current one is known only by its hash."""
    if not hashes:
        return None
    (compared,) = hashes
    current = read_champion(registry)
    if current is not None and current.tree_sha256 == compared:
        return current
    return Champion(release=f"hash-{compared[:_VERSION_LENGTH]}", tree_sha256=compared)
