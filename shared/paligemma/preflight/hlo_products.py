"""Operations in the products of an HLO instruction: two per multiply-add, by dtype of the operands."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from paligemma.preflight.hlo_text import Computation, Instruction, Program

_NUMBER = re.compile(r"\d+")


def product_flops(program: Program, computation: Computation, instruction: Instruction) -> Mapping[str, int]:
    """Operations by dtype of the operands, of two dtypes the wider; empty if there is no product.

    Products are `dot`, `convolution`, and calls of NVIDIA's libraries. A fusion has those inside it, at any depth.
    """
    if instruction.opcode == "fusion":
        inner = program.computations[instruction.called("calls")[0]]
        total: Counter[str] = Counter()
        for one in inner.instructions.values():
            total.update(product_flops(program, inner, one))
        return total
    flops = _flops(computation, instruction)
    if not flops:
        return {}
    left, right = (operand.arrays[0] for operand in computation.operands(instruction)[:2])
    return {max((left, right), key=lambda array: array.itemsize).dtype: flops}


def _flops(computation: Computation, instruction: Instruction) -> int:
    if instruction.opcode == "dot":
        return _dot(computation, instruction, r"lhs_contracting_dims=\{([\d,]*)\}")
    if instruction.opcode == "convolution":
        return _convolution(computation, instruction)
    if instruction.opcode == "custom-call":
        if instruction.attribute(r"(dim_labels=)"):
            return _convolution(computation, instruction)
        return _dot(computation, instruction, r'"lhs_contracting_dimensions":\[([^\]]*)\]')
    return 0


def _dot(computation: Computation, instruction: Instruction, contracted: str) -> int:
    """Every element of the result is a sum over the contracted axes."""
    axes = instruction.attribute(contracted)
    if axes is None:
        return 0
    left = computation.operands(instruction)[0].arrays[0]
    return 2 * instruction.arrays[0].elements * math.prod(left.lengths[int(axis)] for axis in _NUMBER.findall(axes))


def _convolution(computation: Computation, instruction: Instruction) -> int:
    """Counts where the window lies on data and not on padding, as XLA's `HloCostAnalysis::GetConvolutionFlops` does.

    So a product of matrices that a TPU's compiler writes as a convolution with dilation and padding counts as that product.
    """
    left, right = (operand.arrays[0] for operand in computation.operands(instruction)[:2])
    result = instruction.arrays[0]
    labels = instruction.attribute(r"dim_labels=(\w+->\w+)") or ""
    of_left, of_right, of_result = re.split(r"_|->", labels)
    places = 1
    for axis in filter(str.isdigit, of_left):
        lengths = (
            left.lengths[of_left.index(axis)],
            right.lengths[of_right.index(axis)],
            result.lengths[of_result.index(axis)],
        )
        places *= _places(*lengths, *_window(instruction, int(axis)))
    groups = int(instruction.attribute(r"batch_group_count=(\d+)") or 1)
    rows = left.lengths[of_left.index("b")] // groups
    channels = right.lengths[of_right.index("i")] * result.lengths[of_result.index("f")]
    return 2 * rows * channels * places


def _window(instruction: Instruction, number: int) -> tuple[int, int, int, int]:
    """Stride, padding in front, dilation of the input and of the kernel, along one spatial axis."""
    told = instruction.attribute(r"window=\{([^}]*)\}") or ""
    window = {key: value.split("x") for key, value in (part.split("=") for part in told.split())}

    def one(key: str, otherwise: str) -> int:
        return int(window[key][number].split("_")[0] if key in window else otherwise)

    return one("stride", "1"), one("pad", "0"), one("lhs_dilate", "1"), one("rhs_dilate", "1")


@lru_cache
def _places(length: int, kernel: int, result: int, stride: int, pad: int, dilate: int, dilate_kernel: int) -> int:
    """Pairs of a position in the result and one in the kernel that meet an element of the input, along one axis."""
    starts = np.arange(result, dtype=np.int64) * stride - pad
    reach = (length - 1) * dilate
    count = 0
    for offset in range(kernel):
        at = starts + offset * dilate_kernel
        count += int(np.count_nonzero((at >= 0) & (at <= reach) & (at % dilate == 0)))
    return count
