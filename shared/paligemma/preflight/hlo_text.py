"""Reads an optimized HLO program from its text, as `compiled.as_text()` prints it.

Only the syntax: computations, instructions, shapes. What a program costs is in `account`. Printed by
https://github.com/openxla/xla/blob/main/xla/hlo/ir/hlo_instruction.cc (`HloInstruction::ToString`).
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

_BITS = re.compile(r"[a-z]+(\d+)")
_SPACE = re.compile(r"S\((\d+)\)")
_ARRAY = re.compile(r"([a-z]\w*)\[([^\]]*)\](\{[^}]*\})?")
_COMPUTATION = re.compile(r"(ENTRY )?%?(\S+) \(.*\) -> .*\{$")
_RESULT = re.compile(r"\s+(ROOT )?%?(\S+) = ")
_OPCODE = re.compile(r"\s*([\w-]+)\(")
_COMMENT = re.compile(r"/\*.*?\*/")
_CALLED = re.compile(r"[\w.\-]+")


@dataclass(frozen=True, slots=True)
class ArrayShape:
    """An array as HLO writes it, e.g. `bf16[8,256]{1,0:T(8,128)S(1)}`.

    Attributes:
        dtype: XLA's name of the element type.
        lengths: lengths of the axes.
        space: the memory it is in: 0 is the device's own (HBM); on a TPU, 1 is the chip's (VMEM), others hold scalars, flags.
    """

    dtype: str
    lengths: tuple[int, ...]
    space: int = 0

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.lengths)

    @property
    def itemsize(self) -> float:
        """Bytes of an element; 0 of what holds no data, e.g. `token[]`."""
        if self.dtype == "pred":
            return 1
        bits = _BITS.match(self.dtype)
        return int(bits[1]) / 8 if bits else 0

    @property
    def bytes(self) -> int:
        """Size without the padding of tiles."""
        return int(self.elements * self.itemsize)


Shape: TypeAlias = "ArrayShape | tuple[Shape, ...]"


@dataclass(frozen=True, slots=True, eq=False)
class Instruction:
    """One line of a program.

    Attributes:
        name: unique in its computation, without `%`.
        opcode: e.g. `dot`, `fusion`, `all-gather-start`.
        shape: of the result.
        operands: names of the operands.
        literal: what is written in place of operands, e.g. a parameter's number or a constant's value.
        attributes: what follows the operands, as text.
        is_root: whether it is the computation's result.
    """

    name: str
    opcode: str
    shape: Shape
    operands: tuple[str, ...]
    literal: str
    attributes: str
    is_root: bool

    @property
    def arrays(self) -> tuple[ArrayShape, ...]:
        """The arrays of the result, in order."""
        return tuple(leaves(self.shape))

    @property
    def elements(self) -> int:
        """Number of elements of all arrays of the result."""
        return sum(array.elements for array in self.arrays)

    def attribute(self, pattern: str) -> str | None:
        """The first group of a pattern in the attributes; None if it is not found."""
        found = re.search(pattern, self.attributes)
        return found[1] if found else None

    def called(self, *keys: str) -> list[str]:
        """Names of computations in the attributes with these keys, e.g. `calls=%a` or `branch_computations={%a, %b}`."""
        found = (self.attribute(rf"(?:^|, ){key}=(\{{[^}}]*\}}|%?[\w.\-]+)") for key in keys)
        return [name for text in found if text for name in _CALLED.findall(text)]


@dataclass(frozen=True, eq=False)
class Computation:
    """A function of a program: the entry, a loop's body, a fusion."""

    name: str
    instructions: Mapping[str, Instruction]

    @cached_property
    def root(self) -> Instruction:
        """The result."""
        return next(one for one in self.instructions.values() if one.is_root)

    @cached_property
    def parameters(self) -> Mapping[int, Instruction]:
        """Parameters by number."""
        return {int(one.literal): one for one in self.instructions.values() if one.opcode == "parameter"}

    @cached_property
    def users(self) -> Mapping[str, list[tuple[Instruction, int]]]:
        """By name: the instructions that use it, and as which of their operands."""
        found: dict[str, list[tuple[Instruction, int]]] = defaultdict(list)
        for instruction in self.instructions.values():
            for position, operand in enumerate(instruction.operands):
                found[operand].append((instruction, position))
        return found

    def operands(self, instruction: Instruction) -> list[Instruction]:
        """The instructions that one takes as operands."""
        return [self.instructions[name] for name in instruction.operands]


@dataclass(frozen=True, eq=False)
class Program:
    """All computations by name, and the name of the one that runs."""

    computations: Mapping[str, Computation]
    entry: str


def leaves(shape: Shape) -> Iterator[ArrayShape]:
    """The arrays of a shape, in order."""
    if isinstance(shape, ArrayShape):
        yield shape
    else:
        for part in shape:
            yield from leaves(part)


def read_program(text: str) -> Program:
    """A program from its text.

    Raises:
        ValueError: it is not HLO text, or not of a form known here.
    """
    computations: dict[str, Computation] = {}
    entry, name, instructions = "", "", {}
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            name, instructions = head[2], {}
            entry = name if head[1] else entry
        elif line == "}":
            computations[name] = Computation(name, instructions)
            name = ""
        elif name and (instruction := _read_instruction(line)):
            instructions[instruction.name] = instruction
    if not entry:
        raise ValueError("no HLO program: there is no line that begins with ENTRY")
    return Program(computations, entry)


def _read_instruction(line: str) -> Instruction | None:
    head = _RESULT.match(line)
    if not head:
        return None
    line = _COMMENT.sub("", line) if "/*" in line else line
    shape, end = _read_shape(line, head.end())
    opcode = _OPCODE.match(line, end)
    if not opcode:
        raise ValueError(f"no HLO instruction: {line[:200]}")
    close = _closing(line, opcode.end() - 1)
    inside = line[opcode.end() : close]
    operands = ()
    if opcode[1] not in ("parameter", "constant"):
        operands = tuple(part.split()[-1].lstrip("%") for part in inside.split(",") if part.strip())
    return Instruction(head[2], opcode[1], shape, operands, inside.strip(), line[close + 1 :].lstrip(", "), bool(head[1]))


def _read_shape(line: str, start: int) -> tuple[Shape, int]:
    """The shape that begins there, and where it ends."""
    if line[start] != "(":
        found = _ARRAY.match(line, start)
        if not found:
            raise ValueError(f"no HLO shape: {line[start : start + 200]}")
        dtype, lengths, layout = found.groups()
        space = _SPACE.search(layout) if layout else None
        sizes = tuple(int(length.strip().removeprefix("<=")) for length in lengths.split(",") if length)
        return ArrayShape(dtype, sizes, int(space[1]) if space else 0), found.end()
    parts, at = [], start + 1
    while line[at] != ")":
        if line[at] in ", ":
            at += 1
            continue
        part, at = _read_shape(line, at)
        parts.append(part)
    return tuple(parts), at + 1


def _closing(line: str, start: int) -> int:
    """Where the parenthesis closes that opens at `start`."""
    depth = 0
    for found in re.compile(r"[()]").finditer(line, start):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return found.start()
    raise ValueError(f"no HLO instruction: {line[:200]}")
