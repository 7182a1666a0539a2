"""Identifies files and folders that are not checkpoints we read, and says how to get one that is.

Reads only the beginning of a file, and unpickles nothing. Knows formats by their first bytes (each format's own documentation),
and folders by the names in them.
"""

from __future__ import annotations

import re
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from paligemma.errors import DamagedError, InputError, PaliGemmaError
from paligemma.foreign_json import SMALL_BYTES, read_json
from paligemma.regular_files import NotRegularError, open_regular

ADAPTER_FILE = "adapter_config.json"

_BEGINNING = 4096
_READ = "a big_vision .npz file or a Hugging Face folder with safetensors"
_MODEL = "transformers import PaliGemmaForConditionalGeneration as P"
_PUBLISHED = (
    "fetch the published weights: kaggle://google/paligemma/jax/paligemma-3b-pt-224/1, or hf://google/paligemma-3b-pt-224"
)
_NAME = re.compile(r"[\w./-]+")


class Found(NamedTuple):
    """What something is, to complete a sentence that begins with `this is`, and what to do."""

    what: str
    fix: str
    error: type[PaliGemmaError] = InputError


def refuse_other(path: Path, what: str) -> None:
    """Raises if a file is recognized as something other than its name says; else does nothing.

    Args:
        path: a file that a reader could not make sense of.
        what: what the file should be, as the beginning of a sentence, e.g. `The checkpoint`.

    Raises:
        InputError: says what the file is, and what to do.
        DamagedError: the file is empty, or a FIFO, socket or device.
    """
    if found := identify_file(path):
        raise found.error(f"{what} cannot be read: this is {found.what}.", where=path, fix=found.fix)


def refuse_folder(path: Path) -> None:
    """Like `refuse_other`, for a folder without weights that we read."""
    if found := identify_folder(path):
        raise InputError(f"The checkpoint cannot be read: this is {found.what}.", where=path, expected=_READ, fix=found.fix)


def no_file(path: Path, what: str) -> PaliGemmaError:
    """The error for a path without a file: nothing or something else is there."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        link = path.is_symlink()
        return InputError(
            f"There is no {what} {path}{', only a link to one' if link else ''}.",
            fix="check the path; fetch_checkpoint writes checkpoints",
        )
    kind = "a folder" if stat.S_ISDIR(mode) else "a FIFO, a socket or a device"
    return InputError(f"{path} is {kind}, not a {what}.", fix="name the file itself")


def identify_file(path: Path) -> Found | None:
    """What a file is by its first bytes; None if they are unknown."""
    try:
        with open_regular(path) as file:
            start = file.read(_BEGINNING)
    except NotRegularError as error:
        return Found(f"no file: {error.strerror}", "put the file there", DamagedError)
    except OSError:
        return None
    if not start:
        return Found("an empty file", "fetch it again", DamagedError)
    if start[8:9] == b"{" and start[4:8] == bytes(4):  # the header's length, then the header
        return _misnamed(path, ".safetensors", "a safetensors file")
    for begins, found in _BEGINNINGS:
        if start.startswith(begins):
            return found(path) if callable(found) else found
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n")[:200].lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head")):
        return Found("a web page, as servers send in place of a file to who is not signed in", "download it again, signed in")
    if text.startswith(b"<?xml"):
        return Found("an XML document, as storage sends with an error", "open it to see the error, and download it again")
    if start[4:8] == b"TFL3":
        return Found("a TensorFlow Lite model", _PUBLISHED)
    return None


def identify_folder(path: Path) -> Found | None:
    """What a folder is by the names in it; None if they tell nothing."""
    try:
        names = sorted(entry.name for entry in path.iterdir())
    except OSError:
        return None
    if not names:
        return Found("an empty folder", "check the path")
    return next((found for rule in _FOLDERS if (found := rule(path, names))), None)


def _zip(path: Path) -> Found | None:
    """What a zip file is by the names in it; None for an `.npz` file."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # zipfile raises nearly anything on damaged files; their reader explains them better
        return None
    if any(name.endswith("data.pkl") for name in names):
        return _PICKLE
    if any(name.endswith(".h5") for name in names):
        return _KERAS
    if names and not any(name.endswith(".npy") for name in names):
        return Found("a zip file of other files", "unpack it, and name what is in it")
    return _misnamed(path, ".npz", "a NumPy archive (.npz)")


def _misnamed(path: Path, ending: str, what: str) -> Found | None:
    return None if path.suffix == ending else Found(f"{what} under another name", f"rename it so that it ends in {ending}")


def _pointer(path: Path) -> Found:
    return Found(
        "a Git LFS pointer, three lines that stand for the file",
        f"run `git lfs install && git lfs pull` in {path.parent}, or download it with `hf download`",
    )


_PICKLE = Found(
    "a pickled PyTorch file, which is not read because loading one runs what is in it",
    f'convert it where you trust it: python -c "from {_MODEL}; '
    "P.from_pretrained('FOLDER').save_pretrained('OUT')\", and copy tokenizer.model to OUT",
)
_KERAS = Found("a Keras checkpoint", f"no tool of ours converts it; {_PUBLISHED}")
_GGUF = Found(
    "a GGUF file, made for llama.cpp and mostly quantized", f"take the model that it was made from; else {_PUBLISHED}"
)
_PACKED = Found("a packed file", "unpack it, and name what is in it")

_BEGINNINGS: tuple[tuple[bytes | tuple[bytes, ...], Found | Callable[[Path], Found | None]], ...] = (
    (b"version https://git-lfs.github.com/spec/", _pointer),
    (b"GGUF", _GGUF),
    ((b"ggml", b"lmgg", b"ggjt", b"tjgg"), _GGUF),
    (b"\x89HDF\r\n\x1a\n", _KERAS),
    ((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"), _PICKLE),
    (b"PK\x03\x04", _zip),
    (b"PK\x05\x06", _zip),
    (b"\x93NUMPY", Found("a single array (.npy)", "save all of them in one file with numpy.savez, by big_vision's names")),
    ((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"7z\xbc\xaf\x27\x1c", b"\x28\xb5\x2f\xfd", b"Rar!\x1a\x07"), _PACKED),
)


def _adapter(path: Path, names: list[str]) -> Found | None:
    if ADAPTER_FILE not in names:
        return None
    base = "BASE"
    try:
        named = read_json(path / ADAPTER_FILE, "The adapter", most=SMALL_BYTES).get("base_model_name_or_path")
        base = named if isinstance(named, str) and _NAME.fullmatch(named) else base
    except DamagedError:
        pass
    folder = path if _NAME.fullmatch(str(path)) else "FOLDER"
    return Found(
        "a PEFT adapter: what was trained on top of another model, not a model",
        f'merge it into its base, with peft installed: python -c "from peft import PeftModel; from {_MODEL}; '
        f"PeftModel.from_pretrained(P.from_pretrained('{base}'), '{folder}').merge_and_unload().save_pretrained('OUT')\", "
        "copy the base's tokenizer.model to OUT, and name OUT",
    )


def _keras(_: Path, names: list[str]) -> Found | None:
    return _KERAS if any(name.endswith((".h5", ".keras")) for name in names) else None


def _gguf(_: Path, names: list[str]) -> Found | None:
    return _GGUF if any(name.endswith(".gguf") for name in names) else None


def _pickles(_: Path, names: list[str]) -> Found | None:
    pickled = [name for name in names if re.search(r"(?:\.bin|\.bin\.index\.json|\.pt|\.pth|\.ckpt|\.pkl)$", name)]
    if not pickled:
        return None
    return Found(f"a folder whose weights are {pickled[0]}, {_PICKLE.what}", _PICKLE.fix)


def _distributed(_: Path, names: list[str]) -> Found | None:
    if "zero_to_fp32.py" in names or any(name.startswith("global_step") for name in names):
        return Found(
            "a DeepSpeed checkpoint, cut up for its machines",
            "run the zero_to_fp32.py in it, and save the model with save_pretrained",
        )
    if any(name.endswith(".distcp") for name in names):
        return Found(
            "a PyTorch checkpoint cut up for its machines (DCP)",
            "put it together with torch.distributed.checkpoint.format_utils, and save the model with save_pretrained",
        )
    return None


def _orbax(_: Path, names: list[str]) -> Found | None:
    marks = {"_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt", "checkpoint_metadata", "_sharding", "array_metadatas"}
    if not marks & set(names) and not any(name.startswith("ocdbt.process_") for name in names):
        return None
    return Found(
        "an Orbax checkpoint, as training states are",
        "of a run of finetune, name its output in place of its state; of another program, restore it there and save the "
        "parameters by big_vision's names with numpy.savez",
    )


def _flax(_: Path, names: list[str]) -> Found | None:
    if not any(name.endswith(".msgpack") or name.endswith(".msgpack.index.json") for name in names):
        return None
    return Found("a folder with Flax weights (msgpack)", "take the model's safetensors, from the same place")


def _tensorflow(_: Path, names: list[str]) -> Found | None:
    if "saved_model.pb" not in names and not any(re.search(r"\.data-\d+-of-\d+$", name) for name in names):
        return None
    return Found("a TensorFlow model", _PUBLISHED)


def _shards_alone(_: Path, names: list[str]) -> Found | None:
    shards = [name for name in names if re.fullmatch(r".*-\d+-of-\d+\.safetensors", name)]
    if not shards:
        return None
    return Found(
        f"a folder with {len(shards)} shards, such as {shards[0]}, and without their index",
        "fetch model.safetensors.index.json from the same place",
    )


def _cache(path: Path, names: list[str]) -> Found | None:
    if not {"snapshots", "blobs"} <= set(names):
        return None
    model = path.name.removeprefix("models--").replace("--", "/")
    model = model if _NAME.fullmatch(model) else "OWNER/NAME"
    return Found("a model in Hugging Face's cache, with all its versions", f"name hf://{model}, or a folder below snapshots")


def _steps(_: Path, names: list[str]) -> Found | None:
    steps = sorted((name for name in names if re.fullmatch(r"checkpoint-\d+", name)), key=lambda name: int(name[11:]))
    if not steps:
        return None
    return Found(f"a folder of checkpoints: {', '.join(steps[-3:])}", f"name one of them, e.g. {steps[-1]}")


_FOLDERS: tuple[Callable[[Path, list[str]], Found | None], ...] = (
    _adapter, _cache, _distributed, _orbax, _shards_alone, _keras, _gguf, _flax, _tensorflow, _pickles, _steps,
)  # fmt: skip
