"""Reads big_vision's `.npz` checkpoints as lazy arrays: maps stored members into memory, streams deflated ones on use.

Unpickles nothing, and allocates only what a member's header declares and its size confirms.
"""

from __future__ import annotations

import io
import logging
import math
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np
from numpy.lib import format as npy

from paligemma.checkpoints.checksum import combine, crc32, read_values
from paligemma.checkpoints.identify import no_file, refuse_other
from paligemma.checkpoints.lazy import LazyArray, Stacked, blocks, copy, empty, lengths, split_index
from paligemma.errors import DamagedError, PaliGemmaError

_PIECE = 8 * 1024 * 1024  # bytes inflated per step; zipfile holds about three copies
_MOST_HEADER = 10_000  # bytes, NumPy's own limit
_LENGTH_BYTES = {b"\x01\x00": 2, b"\x02\x00": 4}  # size of a header's length field, by version
_LOCAL_HEADER = 30  # bytes before the name in a zip member's local header (PKWARE APPNOTE 4.3.7)


LEFT_OUT = (
    (re.compile(r"(?:opt|opt_state|optimizer)/"), "the optimizer's state (opt/)"),
    (re.compile(r"chrono/"), "the clock of big_vision's trainer (chrono/)"),
    (re.compile(r"img/MAPHead_0/"), "SigLIP's pooling head (img/MAPHead_0/), which PaliGemma does not use"),
)
"""Prefixes of arrays that are not network parameters (big_vision `train.py` saves params, opt, chrono).

Any other array without a parameter in the network is refused."""

log = logging.getLogger("paligemma.checkpoints")


class Member:
    """One array of the file: shape and dtype now, values when indexed.

    Attributes:
        shape: the shape in the member's header.
        dtype: the header's dtype in this machine's byte order; two-byte void, numpy's way to store bfloat16, is bfloat16.
    """

    def __init__(self, path: Path, info: zipfile.ZipInfo) -> None:
        self._path, self._info = path, info
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DamagedError("An array is compressed in a way that is not read.", where=self._where, expected="zip's deflate")
        with zipfile.ZipFile(path) as archive, archive.open(info) as stream:
            header = _read_header(stream)
        self.shape, stored_dtype, self._fortran = _parse_header(header, self._where)
        is_bfloat16 = stored_dtype == np.dtype("V2")
        self.dtype = np.dtype(ml_dtypes.bfloat16) if is_bfloat16 else stored_dtype.newbyteorder("=")
        self._header_bytes, self._header_crc = len(header), zlib.crc32(header)
        self._stored_dtype = stored_dtype  # of either byte order
        self._file_dtype = self.dtype if is_bfloat16 else stored_dtype
        declared = self._header_bytes + stored_dtype.itemsize * int(np.prod(self.shape, dtype=object))
        stored = info.compress_size if info.compress_type == zipfile.ZIP_STORED else declared
        if not declared == info.file_size == stored:
            raise DamagedError(
                "An array's size is not what its header declares.",
                where=self._where,
                expected=f"{declared} bytes, found {info.file_size}, stored in {info.compress_size}",
                fix="fetch the checkpoint again",
            )

    @property
    def _where(self) -> str:
        return f"{self._path}, member {self._info.filename}"

    def __getitem__(self, index) -> np.ndarray:
        """Values at `index`. Reads nothing else of a stored member; decompresses a deflated one block by block."""
        if self._is_stored:
            return self._native(self._mapped()[index])
        slices, rest = split_index(index, self.shape)
        if self._fortran:  # Fortran order: the file's first axis is the last one
            return self._native(self._inflate(self.shape[::-1], slices[::-1]).view(self._file_dtype)).T[rest]
        return self._native(self._inflate(self.shape, slices).view(self._file_dtype))[rest]

    def read_into(self, to: np.ndarray) -> None:
        """Reads all values into `to`, of any dtype, and compares them with the member's CRC-32.

        Raises:
            DamagedError: the values differ from their CRC-32.
        """
        if not self._is_stored:  # decompressing compares the CRC-32
            copy(self[...], to)
        elif self._fortran or not to.flags.c_contiguous:
            copy(self._mapped(), to)
            self.verify()
        else:
            try:
                found = read_values(self._path, self._data_offset(), self._file_dtype, to)
            except (OSError, EOFError) as error:
                raise _damaged(self._where, error) from None
            self._compare(found)

    def verify(self) -> None:
        """Reads all values and compares them with the member's CRC-32. For a deflated member, decompressing does so.

        Raises:
            DamagedError: the values differ from their CRC-32.
        """
        if self._is_stored:
            values = self._mapped()
            flat = (values.T if self._fortran else values).reshape(-1)
            self._compare(crc32(flat.view(np.uint8)))

    @property
    def _is_stored(self) -> bool:
        return self._info.compress_type == zipfile.ZIP_STORED

    def _mapped(self) -> np.ndarray:
        if not math.prod(self.shape):
            return np.empty(self.shape, self._file_dtype)
        order = "F" if self._fortran else "C"
        try:
            values = np.memmap(self._path, self._stored_dtype, "r", self._data_offset(), self.shape, order)
        except (OSError, ValueError) as error:  # the file has become shorter
            raise _damaged(self._where, error) from None
        return values.view(self._file_dtype)

    def _native(self, values: np.ndarray) -> np.ndarray:
        """Values in this machine's byte order; swapping bytes makes a copy."""
        return values if values.dtype == self.dtype else values.astype(self.dtype)

    def _compare(self, crc: int) -> None:
        size = self._info.file_size - self._header_bytes
        if combine(self._header_crc, crc, size) != self._info.CRC:
            raise DamagedError(
                "An array's bytes do not match its checksum.",
                where=self._where,
                expected=f"CRC-32 {self._info.CRC:08x}",
                fix="fetch the checkpoint again",
            )

    def _inflate(self, shape: tuple[int, ...], slices: tuple[slice, ...]) -> np.ndarray:
        """Values in C order. Decompresses the whole member, because its checksum is at the end, and drops the rest."""
        values = empty(lengths(slices), self._stored_dtype)
        row = self._stored_dtype.itemsize * math.prod(shape[1:])
        try:
            with zipfile.ZipFile(self._path) as archive, archive.open(self._info) as stream:
                stream.read(self._header_bytes)
                if not shape or not row:
                    data = stream.read()
                    return np.frombuffer(data, self._stored_dtype).reshape(shape)[(*slices, ...)]
                for first in range(0, shape[0], step := max(1, _PIECE // row)):
                    last = min(first + step, shape[0])
                    block = np.frombuffer(stream.read((last - first) * row), self._stored_dtype)
                    block = block.reshape(last - first, *shape[1:])
                    start, stop = max(first, slices[0].start), min(last, slices[0].stop)
                    if start < stop:
                        place = slice(start - slices[0].start, stop - slices[0].start)
                        values[place] = block[(slice(start - first, stop - first), *slices[1:])]
                stream.read()  # compares the checksum
        except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError) as error:
            raise _damaged(self._where, error) from None
        return values

    def _data_offset(self) -> int:
        with self._path.open("rb") as file:
            file.seek(self._info.header_offset)
            header = file.read(_LOCAL_HEADER)
        name_bytes, extra_bytes = int.from_bytes(header[26:28], "little"), int.from_bytes(header[28:30], "little")
        return self._info.header_offset + _LOCAL_HEADER + name_bytes + extra_bytes + self._header_bytes


def read_npz(path: str | Path) -> dict[str, LazyArray]:
    """Every array of a checkpoint by its parameter name (`llm/...`, `img/...`).

    A leading `params/` is dropped; `encoderblock_0`, `encoderblock_1`, ... become one stacked `encoderblock`. Other data of a
    training run (`LEFT_OUT`) is left out, with a warning.

    Raises:
        InputError: there is no such file, or it has another format.
        DamagedError: the npz file is incomplete, or a member is a pickle.
    """
    path = Path(path)
    if not path.is_file():
        raise no_file(path, "checkpoint file")
    try:
        with zipfile.ZipFile(path) as archive:
            infos = _parameters(archive.infolist())
        members = {_parameter_name(info.filename): Member(path, info) for info in infos}
        if len(members) < len(infos):
            raise DamagedError("The checkpoint has two arrays of one name.", where=path, fix="fetch it again")
    except PaliGemmaError:
        raise
    except Exception as error:  # parsing damaged headers raises nearly anything: ValueError, tokenize.TokenError, ...
        refuse_other(path, "The checkpoint")
        raise _damaged(path, error) from None
    return _stack_layers(members)


def write_npz(
    path: str | Path,
    arrays: Iterable[tuple[str, LazyArray]] | Mapping[str, LazyArray],
    cast: Callable[[str, np.ndarray], np.ndarray] = lambda name, values: values,
) -> None:
    """Writes arrays block by block as stored members, which can be memory-mapped. Equal arrays give equal bytes.

    Args:
        path: the file.
        arrays: the arrays by name.
        cast: converts a block of values for writing, given the array's name.
    """
    items: Iterable[tuple[str, Any]] = _pairs(arrays)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, values in items:
            values = values if hasattr(values, "shape") else np.asarray(values)
            # A fixed date keeps the file's hash a function of its values.
            info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            dtype = np.dtype(cast(name, np.empty(0, values.dtype)).dtype)
            stored = np.dtype("V2") if dtype == ml_dtypes.bfloat16 else dtype
            header = {"descr": npy.dtype_to_descr(stored), "fortran_order": False, "shape": tuple(values.shape)}
            with archive.open(info, "w", force_zip64=True) as stream:
                npy.write_array_header_1_0(stream, header)
                for block in blocks(values.shape, values.dtype.itemsize):
                    stream.write(np.asarray(cast(name, values[block]), dtype, order="C").tobytes())


def _pairs(arrays: Any) -> Iterable[tuple[str, Any]]:
    """Names and arrays. That a mapping could be an iterable of pairs itself is what a type checker cannot rule out."""
    return arrays.items() if isinstance(arrays, Mapping) else arrays


def verify_weights(path: Path) -> None:
    """Reads a whole npz file and compares every member with its CRC-32.

    Raises:
        DamagedError: names the member that differs.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        raise DamagedError(f"The weight file is damaged: {error}.", where=path, fix="fetch it again") from None
    if bad is not None:
        raise DamagedError("The weight file is damaged: a member's bytes do not match its checksum.", where=f"{path}, {bad}")


def _parameters(infos: list[zipfile.ZipInfo]) -> list[zipfile.ZipInfo]:
    """Members that may be parameters. Those of `LEFT_OUT` are dropped, with a warning that counts them."""
    kept: list[zipfile.ZipInfo] = []
    unused: Counter[str] = Counter()
    for info in infos:
        name = _parameter_name(info.filename)
        what = next((what for pattern, what in LEFT_OUT if pattern.match(name)), None)
        if what is None:
            kept.append(info)
        else:
            unused[what] += 1
    for what, count in unused.items():
        log.warning("%d arrays are not used: %s", count, what)
    return kept


def _parameter_name(filename: str) -> str:
    return filename.removesuffix(".npy").removeprefix("params/")


def _stack_layers(members: dict[str, Member]) -> dict[str, LazyArray]:
    result: dict[str, LazyArray] = {}
    layers: dict[str, dict[int, Member]] = {}
    for name, member in members.items():
        match = re.fullmatch(r"(.*/encoderblock)_(\d+)(/.*)", name)
        if match:
            layers.setdefault(match[1] + match[3], {})[int(match[2])] = member
        else:
            result[name] = member
    for name, by_layer in layers.items():
        ordered = [by_layer[layer] for layer in sorted(by_layer)]
        if sorted(by_layer) != list(range(len(by_layer))) or len({member.shape for member in ordered}) > 1:
            raise DamagedError(
                "Layers of the vision tower are missing or differ in shape.",
                where=name,
                expected="encoderblock_0 up to the last, all of one shape",
            )
        result[name] = Stacked(ordered)
    return result


def _read_header(stream: IO[bytes]) -> bytes:
    """The header of an npy file (NumPy's `lib.format`); reads no more than any array needs."""
    magic = stream.read(npy.MAGIC_LEN)
    if magic[:-2] != npy.MAGIC_PREFIX or magic[-2:] not in _LENGTH_BYTES:
        raise ValueError("a member is not a NumPy array, or one of an unknown version")
    length = stream.read(_LENGTH_BYTES[magic[-2:]])
    size = int.from_bytes(length, "little")
    if size > _MOST_HEADER:
        raise ValueError(f"an array's header is {size} bytes long")
    return magic + length + stream.read(size)


def _parse_header(header: bytes, where: str) -> tuple[tuple[int, ...], np.dtype, bool]:
    stream = io.BytesIO(header)
    read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[npy.read_magic(stream)]
    shape, fortran, dtype = read(stream)
    if dtype.hasobject:
        raise DamagedError("The checkpoint holds a pickle, which is not read.", where=where, expected="numeric arrays")
    return shape, dtype, fortran


def _damaged(where: object, error: Exception) -> DamagedError:
    return DamagedError(
        f"The checkpoint cannot be read: {error}.", where=where, expected="a whole npz file", fix="fetch it again"
    )
