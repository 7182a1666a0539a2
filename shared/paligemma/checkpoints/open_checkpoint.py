"""Opens a checkpoint: finds its weights, architecture and tokenizer."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from paligemma.artifacts.record import RECORD_FILE, File, MadeRecord, read_record, tree_sha256
from paligemma.artifacts.store import localize
from paligemma.checkpoints import npz, safetensors_files
from paligemma.checkpoints.architecture import check_dtypes, check_parameters, infer_config, without_padding
from paligemma.checkpoints.hashes import checked_sha256, known_sha256
from paligemma.checkpoints.huggingface.config import is_huggingface_config, parse_huggingface_config
from paligemma.checkpoints.huggingface.mapping import from_tensors
from paligemma.checkpoints.identify import refuse_folder, refuse_other
from paligemma.checkpoints.lazy import LazyArray
from paligemma.checkpoints.quantized_files import from_quantized, read_quantization
from paligemma.checkpoints.resample import resampled
from paligemma.checkpoints.stored import StoredWeights, open_stored
from paligemma.checkpoints.tokenizer_file import as_sentencepiece, find_tokenizer
from paligemma.checkpoints.tuned import DESCRIPTION_FILE, TunedModel, is_tuned_model, read_tuned
from paligemma.errors import DamagedError, InputError
from paligemma.models.config import PaliGemmaConfig, parse_config, read_config
from paligemma.storage.location import SCHEME

CONFIG_FILE = "config.json"
EMBEDDED = Path(__file__).parent / "embedded"
"""Checkpoint folders that come with the package; see `pipelines/demo/pretrain.py`."""

log = logging.getLogger("paligemma.checkpoints")

_PREFERRED = ("checkpoint.npz", "ckpt.npz", "model.npz")
_LISTED = 10
"""Most tuned models that a message lists."""
_HUGGINGFACE = (safetensors_files.INDEX_FILE, safetensors_files.SINGLE_FILE)
_SAFETENSORS = (".json", ".safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk, opened but not loaded.

    Attributes:
        location: on `gs://`, the address of the artifact or weight file; else the weight file's path.
        weights: the weight file, or the index of its shards; of an artifact on `gs://`, where it is once a value was read.
        config: its architecture.
        arrays: every parameter by name, as lazy arrays.
        tokenizer_file: the tokenizer beside the weights (SentencePiece model or `tokenizer.json`); None without one.
        stored: its weights in storage, if they are fetched on use.
    """

    location: str
    weights: Path
    config: PaliGemmaConfig
    arrays: Mapping[str, LazyArray]
    tokenizer_file: Path | None
    stored: StoredWeights | None = None

    @cached_property
    def record(self) -> MadeRecord | None:
        """The record of the artifact that the checkpoint is; None if no step wrote it.

        Raises:
            DamagedError: the record is damaged.
        """
        if self.stored is not None:
            return self.stored.record
        return read_record(self.weights.parent) if (self.weights.parent / RECORD_FILE).is_file() else None

    @cached_property
    def tokenizer(self) -> Path | None:
        """The SentencePiece model; None without a tokenizer. From a `tokenizer.json` it is made on first use.

        Raises:
            InputError: `tokenizer.json` is not of Gemma's kind.
        """
        return as_sentencepiece(self.tokenizer_file) if self.tokenizer_file else None

    @cached_property
    def weights_sha256(self) -> str:
        """Hash of the weight file; for shards, of their names and hashes, like an artifact's tree hash.

        Raises:
            DamagedError: a file's hash differs from the one in its record or in Hugging Face's cache.
        """
        if self.stored is not None:
            return self.stored.sha256
        if self.weights.suffix != ".json":
            return checked_sha256(self.weights)
        shards = safetensors_files.weight_files(self.weights)
        return tree_sha256(File(path=file.name, bytes=file.stat().st_size, sha256=checked_sha256(file)) for file in shards)

    def verify(self) -> None:
        """Reads every byte of the weights and compares it with checksums or hashes.

        An `.npz` file has checksums. Safetensors files have none; their hashes are in `lineage.json` beside them if a step
        wrote them, or in their names in Hugging Face's cache. Other safetensors files cannot be verified, and are not read.

        Raises:
            DamagedError: names the damaged file or array.
        """
        if self.stored is not None:
            self.stored.fetch()  # compares every byte with the record
        elif self.weights.suffix == ".npz":
            npz.verify_weights(self.weights)
        elif any(known_sha256(file) for file in safetensors_files.weight_files(self.weights)):
            _ = self.weights_sha256


def open_checkpoint(path: str | Path, config: PaliGemmaConfig | Mapping | str | Path | None = None) -> Checkpoint:
    """Opens a checkpoint file or folder.

    Position embeddings are resampled if the architecture's image size differs from the weights'. Of an artifact on `gs://`,
    the weights are fetched when a value is first read.

    Args:
        path: a weight file, or a folder with one (big_vision's `.npz`, or Hugging Face's safetensors, whole or in shards),
            local or on `gs://`; `embedded:tiny` for the one in the package.
        config: the architecture; by default from `config.json` beside the weights, ours or transformers', else inferred from
            the shapes of an `.npz` file.

    Raises:
        InputError: there is no weight file, or several to choose from.
        DamagedError: a file is incomplete or does not fit the architecture.
    """
    in_storage = isinstance(path, str) and path.startswith(SCHEME)
    stored = open_stored(path, lambda weights: read_arrays(weights, _config_beside(weights))[0]) if in_storage else None
    if stored is not None:
        weights, folder, arrays = stored.weights, stored.beside, stored.arrays
        config = parse_config(config) if config is not None else _config_beside(folder / weights.name)
        config = config or infer_config(arrays, path)
    else:
        weights = _find_weights(localize(path if in_storage else resolve_embedded(path)))
        folder = weights.parent
        arrays, config = read_arrays(weights, parse_config(config) if config is not None else _config_beside(weights))
    arrays = resampled(arrays, config)
    check_parameters(config, arrays, weights)
    check_dtypes(arrays, weights)
    location = str(weights.absolute())
    if in_storage:  # an artifact is named by its own address, a weight file in a plain prefix by the file's address
        is_artifact = stored is not None or (folder / RECORD_FILE).is_file()
        in_prefix = not is_artifact and weights.name != str(path).rsplit("/", 1)[-1]
        location = f"{str(path).rstrip('/')}/{weights.name}" if in_prefix else str(path)
    return Checkpoint(location, weights, config, arrays, find_tokenizer(folder), stored)


def read_arrays(weights: Path, config: PaliGemmaConfig | None) -> tuple[dict[str, LazyArray], PaliGemmaConfig]:
    """The parameters of a weight file, or of the index of its shards, at its own resolution; and the architecture.

    Raises:
        InputError: there is no such file, or the architecture is not known.
        DamagedError: a file is incomplete or does not fit the architecture.
    """
    if weights.suffix in _SAFETENSORS:
        return _read_huggingface(weights, config)
    arrays = npz.read_npz(weights)
    config = config or infer_config(arrays, weights)
    return without_padding(arrays, config), config


def open_model(
    path: str | Path, config: PaliGemmaConfig | Mapping | str | Path | None = None, base: str | Path | None = None
) -> tuple[Checkpoint, TunedModel | None]:
    """Opens a checkpoint, or a tuned model together with its base.

    Args:
        path: path of either; see `open_checkpoint`.
        config: the architecture, if it should not be inferred.
        base: a tuned model's base, if it has moved since training.

    Raises:
        InputError: nothing is there, or the configuration is unknown.
        DamagedError: a file is incomplete, does not fit the architecture, or is not the tuned model's base.
    """
    if str(path).startswith("embedded:") or not is_tuned_model(localize(path)):
        return open_checkpoint(path, config), None
    tuned = read_tuned(localize(path))
    checkpoint = open_checkpoint(base or tuned.description.base.uri, config or tuned.description.config)
    check_base(tuned, checkpoint)
    return checkpoint, tuned


def check_base(tuned: TunedModel, checkpoint: Checkpoint) -> None:
    """Confirms that a checkpoint is the tuned model's base."""
    expected = tuned.description.base.weights_sha256
    found = checkpoint.weights_sha256
    if found != expected:
        raise DamagedError(
            "This is not the checkpoint that the model was tuned from.",
            where=checkpoint.weights,
            expected=f"sha256 {expected}, found {found}",
            fix=f"name the base checkpoint itself (--base); it was {tuned.description.base.uri}",
        )


def resolve_embedded(path: str | Path) -> Path:
    """The folder for `embedded:NAME`; any other path unchanged."""
    name = str(path)
    if not name.startswith("embedded:"):
        return Path(path)
    folder = EMBEDDED / name.removeprefix("embedded:")
    known = sorted(entry.name for entry in EMBEDDED.iterdir() if entry.is_dir())
    if folder.name not in known or folder.parent != EMBEDDED:
        raise InputError(f"There is no embedded checkpoint {name!r}.", expected=", ".join(f"embedded:{k}" for k in known))
    return folder


def _tuned_below(folder: Path) -> list[Path]:
    """Tuned models below a folder such as a pipeline's root, newest first."""
    found = [path for depth in range(1, 5) for path in folder.glob("*/" * depth + DESCRIPTION_FILE)]
    return [path.parent for path in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)]


def _config_beside(weights: Path) -> PaliGemmaConfig | None:
    """The architecture from `config.json` beside the weights, ours or transformers'; None without one."""
    beside = weights.parent / CONFIG_FILE
    if not beside.is_file():
        return None
    try:
        values = read_config(beside, DamagedError)
    except DamagedError:
        refuse_other(beside, "The model configuration")
        raise
    return parse_huggingface_config(values, beside) if is_huggingface_config(values) else parse_config(beside)


def _read_huggingface(weights: Path, config: PaliGemmaConfig | None) -> tuple[dict[str, LazyArray], PaliGemmaConfig]:
    tensors = safetensors_files.read_safetensors(weights)
    quantization = read_quantization(weights)
    if config is None:
        raise InputError(
            f"There is no {CONFIG_FILE} beside the weights.",
            where=weights.parent,
            expected="transformers' configuration: shapes do not tell how wide a head is",
        )
    if quantization is not None:
        return from_quantized(config, tensors, quantization, weights), config
    # The weights have the shapes of their own resolution.
    return from_tensors(config, tensors, weights), config


def _find_weights(path: Path) -> Path:
    if not path.is_dir():
        return path
    archives = sorted(path.glob("*.npz"))
    huggingface = [path / name for name in _HUGGINGFACE if (path / name).exists()]
    preferred = [path / name for name in _PREFERRED if path / name in archives]
    candidates = preferred[:1] or archives or huggingface
    if len(candidates) == 1:
        if others := [entry.name for entry in [*archives, *huggingface] if entry != candidates[0]]:
            log.warning("%s is used, of the weights in %s; these are not: %s", candidates[0].name, path, ", ".join(others))
        return candidates[0]
    expected = f"one .npz file, one called {' or '.join(_PREFERRED)}, or Hugging Face's {' or '.join(_HUGGINGFACE)}"
    if candidates:
        names = ", ".join(entry.name for entry in candidates)
        raise InputError(
            f"The folder {path} holds {len(candidates)} weight files: {names}.", expected=expected, fix="name the file itself"
        )
    refuse_folder(path)
    if below := _tuned_below(path):
        names = "".join(f"\n    {folder}" for folder in below[:_LISTED])
        more = f"\n    and {len(below) - _LISTED} more" if len(below) > _LISTED else ""
        raise InputError(
            f"The folder {path} is no model, but holds tuned models.",
            where=path,
            expected="a checkpoint's file or folder, or a tuned model's folder",
            fix=f"name one of these, the newest first:{names}{more}",
        )
    found = sorted(entry.name for entry in path.glob("*.safetensors"))
    raise InputError(
        f"The folder {path} holds no weights under a name that is looked for.",
        expected=expected,
        fix=f"name the file itself: {', '.join(found)}" if found else "check the path",
    )
