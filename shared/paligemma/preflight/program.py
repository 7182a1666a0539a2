"""Finds the messages between devices in a compiled program's text, and counts those in loops once per iteration.

The compilers' own analysis counts the body of a loop once, and a step's layers are a loop.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

SIZES = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "s16": 2,
    "u16": 2,
    "f16": 2,
    "bf16": 2,
    "s32": 4,
    "u32": 4,
    "f32": 4,
    "s64": 8,
    "u64": 8,
    "f64": 8,
}
"""Bytes of an element by XLA's name of its type."""

_COMPUTATION = re.compile(r"(?:ENTRY )?%(\S+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"\s*(?:ROOT )?%(\S+) = (\(.*?\)|\S+) ([\w-]+)\(([^)]*)\)")
_KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")
_WHILE = re.compile(r" while\(.*?condition=%([^\s,]+), body=%([^\s,]+)")
_CALLED = re.compile(r"(?:calls|to_apply|true_computation|false_computation)=%([^\s,]+)|branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CONSTANT = re.compile(r"%(\S+) = [su]\d+\[\]\S* constant\((\d+)\)")
_COMPARED = re.compile(r"ROOT .* compare\(.*%([^\s,)]+)\), direction=LT")
_ARRAY = re.compile(r"\b(\w+)\[([\d,]*)\]")


@dataclass(frozen=True)
class Collective:
    """One kind of message between devices: its count per step, and the bytes that one device receives.

    Rounded up: of data gathered from n devices, or summed over them, 1/n was on the device already.
    """

    kind: str
    count: int
    bytes: int


def collectives(program: str) -> list[Collective]:
    """The messages of one run of an optimized HLO program, by kind."""
    computations = _computations(program)
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for name, times in _times(computations).items():
        shapes = {}
        for line in computations[name]:
            if not (found := _INSTRUCTION.match(line)):
                continue
            result, shape, operation, operands = found.groups()
            shapes[result] = shape
            kind = operation.removesuffix("-start")
            if kind not in _KINDS:
                continue
            size = _received(kind, operands, shapes, shape, started=kind != operation)
            if kind == "all-reduce" and name.startswith("all-reduce-scatter"):  # how the TPU compiler fuses the two
                kind, size = "reduce-scatter", size // 2
            counts[kind] += times
            sizes[kind] += times * size
    return [Collective(kind, counts[kind], sizes[kind]) for kind in sorted(counts)]


def array_bytes(dtype: str, lengths: str) -> int:
    """Size in bytes of an array written like `bf16[8,256]`."""
    size = SIZES.get(dtype, 0)
    for length in lengths.split(","):
        size *= int(length or 1)
    return size


def _received(kind: str, operands: str, shapes: Mapping[str, str], result: str, started: bool) -> int:
    given = sum(_shape_bytes(shapes.get(name, "")) for name in re.findall(r"%([^\s,]+)", operands))
    if kind == "all-gather":  # the result of a start op is a tuple of tuples that holds the operands too
        return _shape_bytes(result) - (given if started else 0)
    return 2 * given if kind == "all-reduce" else given


def _shape_bytes(shape: str) -> int:
    return sum(array_bytes(*array) for array in _ARRAY.findall(shape))


def _computations(program: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in program.splitlines():
        if not line.startswith(" ") and (head := _COMPUTATION.match(line)):
            lines = found.setdefault("ENTRY" if line.startswith("ENTRY") else head.group(1), [])
        elif line.startswith(" "):
            lines.append(line)
    return found


def _times(computations: dict[str, list[str]]) -> Counter[str]:
    """How often each computation runs."""
    times: Counter[str] = Counter()

    def visit(name: str, factor: int) -> None:
        times[name] += factor
        for line in computations[name]:
            for below, trips in _below(line, computations):
                visit(below, factor * trips)

    visit("ENTRY", 1)
    return times


def _below(line: str, computations: dict[str, list[str]]) -> Iterator[tuple[str, int]]:
    if loop := _WHILE.search(line):
        yield loop.group(2), _trips(line, computations[loop.group(1)])
        return
    for one, several in _CALLED.findall(line):
        for name in re.findall(r"[^\s,%]+", one or several):
            if name in computations:
                yield name, 1


def _trips(line: str, condition: list[str]) -> int:
    """Iterations of a loop from 0 in steps of one, as `lax.scan` makes it."""
    if told := _TRIPS.search(line):
        return int(told.group(1))
    text = "\n".join(condition)
    constants = dict(_CONSTANT.findall(text))
    compared = _COMPARED.search(text)
    return int(constants.get(compared.group(1), 1)) if compared else 1
