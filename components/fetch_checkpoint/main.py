"""Brings a checkpoint into the pipeline: weights byte for byte, its architecture, its tokenizer."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

from paligemma.artifacts.record import Input, file_sha256
from paligemma.artifacts.recording import is_planning, recorded
from paligemma.artifacts.results import NotMadeError, Result
from paligemma.artifacts.store import input_of, localize, produce
from paligemma.checkpoints import tokenizer_file as published_tokenizer
from paligemma.checkpoints.hashes import known_sha256
from paligemma.checkpoints.npz import verify_weights
from paligemma.checkpoints.open_checkpoint import CONFIG_FILE, open_checkpoint, read_arrays
from paligemma.checkpoints.safetensors_files import INDEX_FILE, SINGLE_FILE
from paligemma.checkpoints.sources import web
from paligemma.checkpoints.sources.fetch import fetch_first
from paligemma.checkpoints.sources.huggingface import checkpoint_files, pinned
from paligemma.checkpoints.sources.remote import is_immutable, is_remote, redacted
from paligemma.checkpoints.stored import write_description
from paligemma.checkpoints.tokenizer_file import PUBLISHED_SHA256, TOKENIZER_FILE, as_sentencepiece, find_tokenizer
from paligemma.choices import StoredDtype
from paligemma.command_line import say_moved
from paligemma.data.tokenizer import Tokenizer
from paligemma.errors import DamagedError, InputError, one_of
from paligemma.models.config import parse_config
from paligemma.safe_names import parse_sha256
from paligemma.storage.disk_space import check_space

log = logging.getLogger("paligemma.fetch_checkpoint")

_HERE = Path(__file__).parent


@recorded("fetch_checkpoint")
def fetch_checkpoint(*, output: str, source: str, sha256: str, tokenizer: str, precision: str, image_size: int) -> str:
    """Copies a checkpoint to OUTPUT, after checking it; see the command line.

    Returns:
        Where the checkpoint is: OUTPUT, or what an earlier run of a pipeline made of the same source.
    """
    expected_sha256 = parse_sha256(sha256.lower(), "The expected hash", where="--sha256") if sha256 else ""
    settings = {"sha256": sha256, "precision": precision, "image_size": image_size}
    named = _named_result(source, tokenizer, settings)
    if (made := named.find()) is not None:
        return made
    if is_planning() and "://" in source:
        asked = Result("fetch_checkpoint", "", settings={**settings, "source": redacted(source)})
        raise NotMadeError(asked, unless="the source has changed")
    had, local = fetch_first(source, expected_sha256, one_of(precision, get_args(StoredDtype), "--precision"))
    checkpoint = open_checkpoint(local)
    config = checkpoint.config
    if image_size:
        values = config.model_dump()
        values["img"]["image_size"] = image_size
        config = parse_config(values)
    given = localize(tokenizer) if tokenizer else checkpoint.tokenizer_file
    if given is not None and given.is_dir():
        given = find_tokenizer(given)
    published = given is None and config.llm.vocab_size == published_tokenizer.PUBLISHED_ROWS
    if published:
        log.info("there is no tokenizer beside the weights: fetching PaliGemma's own, %s", published_tokenizer.PUBLISHED)
        given = web.fetch(published_tokenizer.PUBLISHED, published_tokenizer.PUBLISHED_SHA256)
    if given is None:
        raise InputError(
            "There is no tokenizer.model, and no tokenizer.json.",
            where=tokenizer or checkpoint.weights.parent,
            fix="pass --tokenizer",
        )
    tokenizer_file = as_sentencepiece(given)
    pieces = Tokenizer(tokenizer_file).vocab_size
    rows = config.llm.vocab_size
    if pieces > rows:
        raise InputError(
            f"The tokenizer has {pieces} pieces, the embedding only {rows} rows.",
            where=tokenizer_file,
            expected="the tokenizer that the checkpoint was trained with",
        )
    if expected_sha256 not in ("", checkpoint.weights_sha256):
        raise DamagedError(
            "The weight file is not the expected one.",
            where=checkpoint.weights,
            expected=f"sha256 {expected_sha256}, found {checkpoint.weights_sha256}",
        )
    folder = checkpoint.weights.parent
    is_npz = checkpoint.weights.suffix == ".npz"
    files = {checkpoint.weights.name: checkpoint.weights} if is_npz else checkpoint_files(folder)
    if checkpoint.weights.suffix == ".safetensors":  # one file, under the name that later steps expect
        others = {name: path for name, path in files.items() if name != INDEX_FILE and not name.endswith(".safetensors")}
        files = {**others, SINGLE_FILE: checkpoint.weights.resolve()}
    expected = {name: known_sha256(path) for name, path in files.items()}
    parameters = {"source": redacted(had), "sha256": sha256, "precision": precision, "image_size": image_size}
    if is_remote(had):
        weights_input = Input(role="weights", uri=pinned(redacted(had), folder), sha256=checkpoint.weights_sha256)
    else:
        weights_input = input_of("weights", checkpoint.location)
    tokenizer_input = (
        Input(role="tokenizer", uri=published_tokenizer.PUBLISHED, sha256=published_tokenizer.PUBLISHED_SHA256)
        if published
        else input_of("tokenizer", tokenizer or given)
    )
    inputs = [weights_input, tokenizer_input]
    hashes = {name: expected[name] or file_sha256(path) for name, path in files.items()}
    described = config.model_dump(mode="json")  # of an .npz, the architecture is no file that is copied
    held = Result.of("fetch_checkpoint", _HERE, settings, [tokenizer_input], files=hashes, config=described)
    if (made := held.find()) is not None:
        return made
    with produce(output, "checkpoint", "fetch_checkpoint", parameters, inputs) as draft:
        check_space(draft.folder, sum(path.stat().st_size for path in files.values()))
        for name, path in files.items():
            shutil.copyfile(path, draft.folder / name)
            found = file_sha256(draft.folder / name)
            if expected[name] not in (None, found):
                raise DamagedError(
                    "A file of the checkpoint changed since it was recorded.",
                    where=path,
                    expected=f"sha256 {expected[name]}, found {found}",
                    fix="fetch it again",
                )
        if is_npz:
            verify_weights(draft.folder / checkpoint.weights.name)
        shutil.copyfile(tokenizer_file, draft.folder / TOKENIZER_FILE)
        if is_npz or image_size:
            (draft.folder / CONFIG_FILE).write_text(json.dumps(config.model_dump(), indent=2) + "\n")
        name = SINGLE_FILE if checkpoint.weights.suffix == ".safetensors" else checkpoint.weights.name
        write_description(draft.folder, name, read_arrays(draft.folder / name, config)[0])
    named.keep()
    held.keep()
    log.info("checkpoint %s, sha256 %s, in %s", checkpoint.weights.name, checkpoint.weights_sha256, output)
    return output


def _named_result(source: str, tokenizer: str, settings: Mapping[str, object]) -> Result:
    """The checkpoint by its address alone, before anything is fetched, if the address says what comes from it.

    A hash is of the weights, so it says all only of an address that gives one file, and not the files beside it.
    """
    places = [place.strip() for place in source.split(",")]
    says_all = all(is_immutable(place) or (settings["sha256"] and place.startswith("https://")) for place in places)
    if tokenizer or not says_all:
        return Result.none("fetch_checkpoint")
    return Result.of("fetch_checkpoint", _HERE, {**settings, "source": redacted(source)}, published=PUBLISHED_SHA256)


if __name__ == "__main__":
    say_moved("components.fetch_checkpoint")
