"""Quantized checkpoints: codes and scales in safetensors files, so that nobody needs to quantize the weights again.

A folder with these files, as `paligemma export --dtype int8` writes it:

- `model.safetensors`, or shards with an index. Parameters have big_vision's names. A quantized one is two tensors, `NAME.codes`
  and `NAME.scales`, as `models.weight_formats.quantize` makes them; any other is a tensor of its name.
- `quantization.json`: the format, and which groups of weights are quantized.
- `config.json` in our form, and the tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from paligemma.checkpoints.lazy import LazyArray, blocks, split_index
from paligemma.checkpoints.quantize import quantize_array
from paligemma.checkpoints.safetensors_files import Outgoing, write_safetensors
from paligemma.choices import QuantizedDtype
from paligemma.errors import DamagedError, InputError
from paligemma.foreign_json import SMALL_BYTES, read_model
from paligemma.models.config import PaliGemmaConfig
from paligemma.models.parameter_shapes import parameter_shapes
from paligemma.models.weight_formats import QuantizeConfig, WeightFormat, dequantize, weight_format

DESCRIPTION_FILE = "quantization.json"
_CODES, _SCALES = ".codes", ".scales"

Cast = Callable[[str, np.ndarray], np.ndarray]


class Quantization(BaseModel):
    """Contents of `quantization.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    kind: QuantizedDtype
    quantize: QuantizeConfig


@dataclass(frozen=True)
class QuantizedArray:
    """A stored quantized parameter. Indexing gives the floats that its codes stand for."""

    codes: LazyArray
    scales: LazyArray
    form: WeightFormat
    shape: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype:
        """float32, in which a level times a scale is rounded once."""
        return np.dtype(np.float32)

    def __getitem__(self, index) -> np.ndarray:
        """Values at `index`; along the first axis nothing else is read."""
        (first, *within), rest = split_index(index, self.shape)
        values = dequantize(self.codes[first], self.scales[first], self.form)
        return values[(slice(None), *within)][rest]

    def as_quantized(self, form: WeightFormat) -> tuple[np.ndarray, np.ndarray]:
        """Codes and scales.

        Raises:
            InputError: another format is asked for: quantizing twice would add both errors.
        """
        if form != self.form:
            raise InputError(
                f"The checkpoint's weights are {self.form.kind}"
                + (f" with blocks of {self.form.block}" if self.form.block else "")
                + f", not {form.kind}"
                + (f" with blocks of {form.block}." if form.block else "."),
                expected="the checkpoint's own format, or a float dtype",
                fix="quantize the checkpoint that this one was made from",
            )
        return np.array(self.codes[...]), np.array(self.scales[...])


def write_quantized(
    folder: Path, arrays: Mapping[str, LazyArray], kind: QuantizedDtype, quantize: QuantizeConfig, cast: Cast
) -> None:
    """Writes weights and description into an existing folder, a parameter in memory at a time.

    Args:
        folder: the existing folder.
        arrays: every parameter by name.
        kind, quantize: what is quantized, and to what.
        cast: converts values of a named parameter that is not quantized to `quantize.others`.
    """
    write_safetensors(folder, _outgoing(arrays, kind, quantize, cast))
    (folder / DESCRIPTION_FILE).write_text(Quantization(kind=kind, quantize=quantize).model_dump_json(indent=2) + "\n")


def _outgoing(
    arrays: Mapping[str, LazyArray], kind: QuantizedDtype, quantize: QuantizeConfig, cast: Cast
) -> Iterator[Outgoing]:
    for name, array in sorted(arrays.items()):
        shape = tuple(array.shape)
        form = weight_format(name, shape, kind, quantize)
        if form is None:
            dtype = np.dtype(quantize.others)
            yield Outgoing(name, shape, dtype, _as_floats(name, array, cast))
            continue
        codes, scales = form.shapes(shape)
        made: list[np.ndarray] = []
        yield Outgoing(f"{name}{_CODES}", codes, form.codes_dtype, _codes_first(array, form, made))
        yield Outgoing(f"{name}{_SCALES}", scales, np.dtype(np.float32), _scales_next(made))


def _as_floats(name: str, array: LazyArray, cast: Cast) -> Iterator[np.ndarray]:
    for place in blocks(array.shape, array.dtype.itemsize):
        yield cast(name, array[place])


def _codes_first(array: LazyArray, form: WeightFormat, made: list[np.ndarray]) -> Iterator[np.ndarray]:
    """The codes, which are written first; what is left in `made` are the scales."""
    codes, scales = quantize_array(array, form)
    made.append(scales)
    yield codes


def _scales_next(made: list[np.ndarray]) -> Iterator[np.ndarray]:
    yield made.pop()


def read_quantization(weights: Path) -> Quantization | None:
    """The description beside weights; None if there is none.

    Raises:
        DamagedError: it cannot be read.
    """
    path = weights.parent / DESCRIPTION_FILE
    if not path.is_file():
        return None
    return read_model(path, Quantization, "The description of quantized weights", most=SMALL_BYTES, fix="export them again")


def from_quantized(
    config: PaliGemmaConfig, tensors: Mapping[str, LazyArray], quantization: Quantization, where: object
) -> dict[str, LazyArray]:
    """The parameters by name.

    Raises:
        DamagedError: a tensor is missing, or not as the description and the architecture say.
    """
    arrays: dict[str, LazyArray] = {}
    left = dict(tensors)
    for name, shape in parameter_shapes(config).items():
        form = weight_format(name, shape, quantization.kind, quantization.quantize)
        if form is None:
            if name in left:
                arrays[name] = left.pop(name)
            continue
        codes, scales = left.pop(f"{name}{_CODES}", None), left.pop(f"{name}{_SCALES}", None)
        expected = [(form.shapes(shape)[0], form.codes_dtype), (form.shapes(shape)[1], np.dtype(np.float32))]
        found = [(tuple(part.shape), part.dtype) for part in (codes, scales) if part is not None]
        if codes is None or scales is None or found != expected:
            raise DamagedError(
                f"A quantized parameter is not as {DESCRIPTION_FILE} says: {name}.",
                where=where,
                expected=f"codes and scales of {expected}, found {found}",
                fix="export the checkpoint again",
            )
        arrays[name] = QuantizedArray(codes, scales, form, shape)
    return arrays | left  # what is too much is named by the check of the architecture
