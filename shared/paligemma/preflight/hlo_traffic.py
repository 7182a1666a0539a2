"""Bytes that an HLO instruction moves through a device's memory.

- An instruction reads its operands and writes its results. What happens inside a fusion stays on the chip.
- A slice, and a gather of rows, reads as much as it gives. So does a fusion that only slices an operand.
- An update of a slice writes as much as the slice, in place. A scatter reads that much too.
- Buffers on the chip (a TPU's memory space 1) are free. So are names for what is there: bitcasts, tuples, parameters.
- Padding of tiles is left out, and so is the workspace of NVIDIA's libraries.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from paligemma.preflight.hlo_text import ArrayShape, Computation, Instruction, Program, leaves

_FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "after-all",
    "add-dependency",
    "opt-barrier",
    "optimization-barrier",
    "partition-id",
    "replica-id",
}
_FREE_CALLS = {"AllocateBuffer", "AssumeGatherIndicesInBound", "Sharding"}
_SLICES = {"slice", "dynamic-slice", "gather"}
_UPDATES = {"dynamic-update-slice": 1, "scatter": 2}
"""By opcode: which operand is the update."""

_ELEMENTWISE = {"bitcast", "convert", "copy", "reshape", "transpose"}
"""What a fusion computes only where it is asked for."""


def traffic(program: Program, computation: Computation, instruction: Instruction) -> tuple[int, tuple[ArrayShape, ...]]:
    """Bytes that an instruction reads, and the arrays that it writes; of an array that it updates, the update."""
    if instruction.opcode in _FREE or instruction.opcode.endswith(("-done", "-update")):
        return 0, ()
    if instruction.attribute(r'custom_call_target="([^"]*)"') in _FREE_CALLS:
        return 0, ()
    if instruction.opcode == "fusion":
        return _of_fusion(program, computation, instruction)
    kind = instruction.opcode.removesuffix("-start")
    operands = [array for operand in computation.operands(instruction) for array in operand.arrays]
    results = tuple(_results(instruction))
    if kind in _SLICES:
        source, *indices = operands
        return _size(ArrayShape(source.dtype, results[0].lengths, source.space)) + sum(map(_size, indices)), _in_memory(results)
    if kind in _UPDATES:
        target, *others = operands
        update = ArrayShape(target.dtype, others[_UPDATES[kind] - 1].lengths, target.space)
        return sum(map(_size, others)) + (_size(update) if kind == "scatter" else 0), _in_memory([update])
    return sum(map(_size, operands)), _in_memory(results)


def _of_fusion(program: Program, computation: Computation, fusion: Instruction) -> tuple[int, tuple[ArrayShape, ...]]:
    inner = program.computations[fusion.called("calls")[0]]
    root = inner.root
    outputs = inner.operands(root) if root.opcode == "tuple" else [root]
    in_place: set[str] = set()
    written: list[ArrayShape] = []
    results = leaves(fusion.shape)
    for output in outputs:
        result, *others = islice(results, len(output.arrays))
        if others:  # an instruction with several results, e.g. a fusion in this one
            written += [result, *others]
            continue
        updates = _updates(inner, output)
        in_place |= {update.name for update in updates}
        parts = [inner.operands(update)[_UPDATES[update.opcode]].arrays[0] for update in updates]
        written += [ArrayShape(result.dtype, part.lengths, result.space) for part in parts] or [result]
    read = 0
    for number, parameter in inner.parameters.items():
        given = computation.instructions[fusion.operands[number]].arrays
        if len(given) == 1:
            elements = _elements_read(program, inner, parameter, in_place)
            read += _size(ArrayShape(given[0].dtype, (elements,), given[0].space))
        else:
            read += sum(map(_size, given))
    return read, _in_memory(written)


def _updates(computation: Computation, output: Instruction) -> list[Instruction]:
    """The updates that make an output of a parameter, in place; empty if the output is written as a whole."""
    found = []
    while output.opcode in ("bitcast", *_UPDATES):
        found += [output] if output.opcode in _UPDATES else []
        output = computation.instructions[output.operands[0]]
    return found if output.opcode == "parameter" else []


def _elements_read(program: Program, computation: Computation, value: Instruction, in_place: set[str]) -> int:
    """How many elements of a value in a fusion are read, at most all."""
    if value.is_root:
        return value.elements
    wanted = 0
    for user, position in computation.users[value.name]:
        if user.opcode in _SLICES and position == 0:
            wanted += user.elements
        elif user.opcode in _UPDATES and position == 0 and user.name in in_place:
            wanted += computation.operands(user)[2].elements if user.opcode == "scatter" else 0
        elif user.opcode in _ELEMENTWISE:
            wanted += _elements_read(program, computation, user, in_place)
        elif user.opcode == "fusion":
            inner = program.computations[user.called("calls")[0]]
            if _is_given_out(inner, inner.parameters[position]):  # e.g. another layout of a stack, of which a slice is taken
                wanted += _elements_read(program, computation, user, in_place)
            else:
                wanted += _elements_read(program, inner, inner.parameters[position], set())
        else:
            wanted += value.elements
    return min(value.elements, wanted)


def _is_given_out(computation: Computation, value: Instruction) -> bool:
    """Whether the result of a computation is a value, element by element."""
    while not value.is_root:
        users = computation.users[value.name]
        if len(users) != 1 or users[0][0].opcode not in _ELEMENTWISE:
            return False
        value = users[0][0]
    return True


def _results(instruction: Instruction) -> Iterator[ArrayShape]:
    """The results of an instruction, without what one that starts repeats of its operands, and without workspaces."""
    shape = instruction.shape
    if isinstance(shape, ArrayShape):
        yield shape
    elif instruction.opcode == "copy-start":  # the copy, the original, a flag
        yield from leaves(shape[0])
    elif instruction.opcode.endswith("-start") and instruction.opcode != "all-reduce-start":  # operands, results, flags
        yield from leaves(shape[1])
    else:
        arrays = instruction.arrays
        library = (instruction.attribute(r'custom_call_target="([^"]*)"') or "").startswith("__cu")
        yield from arrays[:-1] if library and arrays[-1].dtype in ("s8", "u8") else arrays


def _in_memory(arrays: Iterator[ArrayShape] | list[ArrayShape] | tuple[ArrayShape, ...]) -> tuple[ArrayShape, ...]:
    return tuple(array for array in arrays if array.space == 0 and array.bytes)


def _size(array: ArrayShape) -> int:
    return 0 if array.space else array.bytes
