"""Reads safetensors files as lazy, memory-mapped arrays, and writes them piece by piece: one file, or shards with an index.

The format: https://github.com/huggingface/safetensors#format. Headers are checked before they are trusted.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import ml_dtypes
import numpy as np

from paligemma.checkpoints.identify import no_file, refuse_other
from paligemma.errors import DamagedError, InputError
from paligemma.foreign_json import parse_json, read_json
from paligemma.regular_files import open_regular
from paligemma.safe_names import relative_path_fault

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
SHARD_BYTES = 5_000_000_000
"""A shard stays below this size, unless a single tensor is larger."""

_MOST_HEADER = 100_000_000  # bytes, the format's own limit
_DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "I64": np.int64, "I32": np.int32,
    "I16": np.int16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip
_UNREAD = re.compile(r"F[468](_\w+)?|U16|U32|U64|C64")
"""Dtypes of the format that we do not read."""
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}


log = logging.getLogger("paligemma.checkpoints")


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file: shape and dtype now, values when indexed."""

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype

    def __getitem__(self, index) -> np.ndarray:
        """Values at `index`; nothing else is read."""
        return self.values()[index]

    def values(self) -> np.ndarray:
        """All values, memory-mapped: reshaping and transposing them reads nothing."""
        if not math.prod(self.shape):
            return np.empty(self.shape, self.dtype)
        return np.memmap(self.path, self.dtype, "r", self.offset, self.shape)

    def first(self, rows: int) -> Tensor:
        """Its first rows only."""
        return replace(self, shape=(rows, *self.shape[1:]))


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, or of the files that an index names.

    Raises:
        InputError: there is no such file.
        DamagedError: a file is incomplete, its header is wrong, or the index contradicts the files.
    """
    if not path.is_file():
        raise no_file(path, "checkpoint file")
    if path.suffix != ".json":
        return _read_file(path)
    weight_map = read_index(path)
    names = sorted(set(weight_map.values()))
    if missing := [name for name in names if not os.path.exists(path.parent / name)]:
        raise DamagedError(
            f"{len(missing)} of the {len(names)} files that the index names are missing: {_shortened(missing)}.",
            where=path,
            expected="an index and all its shards in one folder",
            fix="fetch the missing files from where the index is from",
        )
    if others := sorted(set(entry.name for entry in path.parent.glob("*.safetensors")) - set(names)):
        log.warning("%s does not name these files, which are not used: %s", path.name, _shortened(others))
    tensors: dict[str, Tensor] = {}
    for name in names:
        found = _read_file(path.parent / name)
        if differing := found.keys() ^ {key for key, file in weight_map.items() if file == name}:
            raise DamagedError(
                f"{name} does not hold what the index says: {', '.join(sorted(differing)[:5])}.",
                where=path,
                expected="an index and shards of one checkpoint",
                fix="fetch the checkpoint again",
            )
        tensors.update(found)
    return tensors


def read_index(path: Path) -> dict[str, str]:
    """The file of each tensor, by name; files are in the index's folder.

    Raises:
        DamagedError: the index is unreadable, or names anything but safetensors files beside it.
    """
    try:
        weight_map = read_json(path, "The index of the weights", fix="download it again").get("weight_map")
    except DamagedError:
        refuse_other(path, "The index of the weights")
        raise
    try:
        valid = bool(weight_map) and all(
            name.endswith(".safetensors") and "/" not in name and not relative_path_fault(name) for name in weight_map.values()
        )
    except (TypeError, AttributeError):
        valid = False
    if not valid:
        raise DamagedError(
            "The index of the weights cannot be read: it does not say which file holds which tensor.",
            where=path,
            expected='{"weight_map": {"NAME": "FILE.safetensors"}}, files beside it',
            fix="download it again",
        )
    return weight_map


def weight_files(path: Path) -> list[Path]:
    """The file itself, or the files that an index names."""
    return sorted(path.parent / name for name in set(read_index(path).values())) if path.suffix == ".json" else [path]


@dataclass(frozen=True)
class Outgoing:
    """A tensor to write; `pieces` yields its values in C order."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    pieces: Iterable[np.ndarray]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write_safetensors(folder: Path, tensors: Iterable[Outgoing], shard_bytes: int = SHARD_BYTES) -> None:
    """Writes tensors into an existing folder, one piece in memory at a time: as one file, or as shards with an index.

    Args:
        folder: the existing folder.
        tensors: the tensors, in order.
        shard_bytes: size in bytes above which a new shard begins.
    """
    shards: list[list[Outgoing]] = [[]]
    for tensor in tensors:
        if shards[-1] and sum(other.bytes for other in shards[-1]) + tensor.bytes > shard_bytes:
            shards.append([])
        shards[-1].append(tensor)
    if len(shards) == 1:
        _write_file(folder / SINGLE_FILE, shards[0])
        return
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_file(folder / name, shard)
        weight_map.update((tensor.name, name) for tensor in shard)
    total = sum(tensor.bytes for shard in shards for tensor in shard)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")


def _write_file(path: Path, tensors: list[Outgoing]) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}  # transformers refuses a file without this
    offset = 0
    for tensor in tensors:
        ends = [offset, offset + tensor.bytes]
        header[tensor.name] = {"dtype": _NAMES[tensor.dtype], "shape": tensor.shape, "data_offsets": ends}
        offset = ends[1]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            for piece in tensor.pieces:
                file.write(np.ascontiguousarray(piece, tensor.dtype).tobytes())
        if file.tell() != 8 + len(text) + offset:
            raise AssertionError(f"{path} became {file.tell()} bytes long, its header says {8 + len(text) + offset}")


def _read_file(path: Path) -> dict[str, Tensor]:
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(_MOST_HEADER, size - 8):
                raise ValueError(f"its header of {length} bytes is longer than the file or than the format allows")
            header = parse_json(file.read(length), path, "Its header", most=_MOST_HEADER)
        return dict(_entries(path, header, 8 + length, size))
    except FileNotFoundError:
        raise DamagedError("A file of the checkpoint is missing.", where=path, fix="fetch the checkpoint again") from None
    except (DamagedError, ValueError, TypeError, AttributeError, LookupError, OSError) as error:
        refuse_other(path, "The checkpoint")
        raise DamagedError(
            f"The checkpoint cannot be read: {getattr(error, 'what', error)}".removesuffix(".") + ".",
            where=path,
            expected="a whole safetensors file",
            fix="fetch it again",
        ) from None


def _entries(path: Path, header: Mapping, start: int, size: int) -> Iterator[tuple[str, Tensor]]:
    """Tensors of a header. Confirms that they cover the data end to end, without gaps or overlaps."""
    end = 0
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
        (first, last), shape = entry["data_offsets"], entry["shape"]
        if not all(type(number) is int and number >= 0 for number in (first, last, *shape)):
            raise ValueError(f"{name} has a shape or offsets that are not natural numbers")
        if _UNREAD.fullmatch(entry["dtype"]):
            raise InputError(
                f"{name} is of dtype {entry['dtype']}, which is not read.",
                where=path,
                expected="float32, float16 or bfloat16",
                fix="take the weights as trained, or those of `model.dequantize()`: these are quantized, or no model's",
            )
        if entry["dtype"] not in _DTYPES:
            raise ValueError(f"{name} is of dtype {entry['dtype']}, which is not read")
        dtype = np.dtype(_DTYPES[entry["dtype"]])
        if first != end or last - first != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{name} is not where, or not as long as, its header declares")
        end = last
        yield name, Tensor(path, start + first, tuple(shape), dtype)
    if start + end != size:
        raise ValueError(f"it is {size} bytes long, its header declares {start + end}")


def _shortened(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
