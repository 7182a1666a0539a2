"""Finds what belongs together: a checkpoint's weights, its architecture and its tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from paligemma.checkpoints.architecture import check_parameters, infer_config
from paligemma.checkpoints.npz import LazyArray, read_npz
from paligemma.errors import InputError
from paligemma.lineage.artifact import localize
from paligemma.lineage.record import RECORD_FILE, file_sha256
from paligemma.models.config import PaliGemmaConfig, parse_config
from paligemma.storage.location import SCHEME

CONFIG_FILE = "config.json"
TOKENIZER_FILE = "tokenizer.model"
EMBEDDED = Path(__file__).parent / "embedded"
"""Checkpoint folders that come with the package; see `pipelines/demo/pretrain.py`."""

_PREFERRED = ("checkpoint.npz", "ckpt.npz", "model.npz")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk, opened but not loaded.

    Attributes:
        location: address of the artifact or of the weight file on `gs://`, else the weight file's path.
        weights: the weight file.
        config: its architecture.
        arrays: every parameter by name, lazily.
        tokenizer: the SentencePiece model beside it, if there is one.
    """

    location: str
    weights: Path
    config: PaliGemmaConfig
    arrays: Mapping[str, LazyArray]
    tokenizer: Path | None

    @cached_property
    def weights_sha256(self) -> str:
        """Hash of the weight file."""
        return file_sha256(self.weights)


def open_checkpoint(path: str | Path, config: PaliGemmaConfig | Mapping | str | Path | None = None) -> Checkpoint:
    """Opens a checkpoint file or folder.

    Args:
        path: a weight file, or a folder with one, local or on `gs://`; `embedded:tiny` for the one in the package.
        config: the architecture; by default the `config.json` beside the weights, else inferred from the shapes.

    Raises:
        InputError: nothing there, or several weight files to choose from.
        DamagedError: the file is not whole, or does not fit the architecture.
    """
    in_storage = isinstance(path, str) and path.startswith(SCHEME)
    weights = _find_weights(localize(path) if in_storage else resolve_embedded(path))
    arrays = read_npz(weights)
    beside = weights.parent / CONFIG_FILE
    if config is not None:
        config = parse_config(config)
    elif beside.is_file():
        config = parse_config(beside)
    else:
        config = infer_config(arrays)
    check_parameters(config, arrays, weights)
    tokenizer = weights.parent / TOKENIZER_FILE
    location = str(weights.absolute())
    if in_storage:  # an artifact goes by its own address, a weight file in a plain prefix by the file's
        in_prefix = weights.name != str(path).rsplit("/", 1)[-1] and not (weights.parent / RECORD_FILE).is_file()
        location = f"{str(path).rstrip('/')}/{weights.name}" if in_prefix else str(path)
    return Checkpoint(location, weights, config, arrays, tokenizer if tokenizer.is_file() else None)


def resolve_embedded(path: str | Path) -> Path:
    """The folder that `embedded:NAME` stands for; any other path as it is."""
    name = str(path)
    if not name.startswith("embedded:"):
        return Path(path)
    folder = EMBEDDED / name.removeprefix("embedded:")
    known = sorted(entry.name for entry in EMBEDDED.iterdir() if entry.is_dir())
    if folder.name not in known or folder.parent != EMBEDDED:
        raise InputError(f"There is no embedded checkpoint {name!r}.", expected=", ".join(f"embedded:{k}" for k in known))
    return folder


def _find_weights(path: Path) -> Path:
    if not path.is_dir():
        return path
    candidates = sorted(path.glob("*.npz"))
    for name in _PREFERRED:
        if path / name in candidates:
            return path / name
    if len(candidates) == 1:
        return candidates[0]
    if not candidates and any(path.glob("*.safetensors")):
        raise InputError(f"The folder {path} holds Hugging Face weights, which are not read yet.", expected="a .npz file")
    raise InputError(
        f"The folder {path} holds {len(candidates)} weight files.",
        expected=f"one .npz file, or one called {' or '.join(_PREFERRED)}",
        fix="name the file itself" if candidates else "check the path, or run fetch_checkpoint",
    )
