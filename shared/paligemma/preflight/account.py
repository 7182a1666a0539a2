"""What one run of a compiled program does on one device: products, bytes through its memory, messages, estimated cycles.

The compilers' own analysis counts the body of a loop once, and a step's layers are a loop. Here every instruction is weighted
by how often it runs:

- A loop's body runs as often as the compiler says (`known_trip_count`), else as its condition compares a counter with a
  constant, from 0 in steps of one, as `lax.scan` makes it. Loops in loops multiply. Conditions themselves are left out.
- A loop that ends by its data, as decoding does, runs as often as the caller says.
- A conditional is its largest branch: the one that moves the most bytes, then the one with the most products.
- An instruction that starts is counted, and the one that waits for it is not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

from paligemma.preflight.hlo_products import product_flops
from paligemma.preflight.hlo_text import ArrayShape, Computation, Instruction, Program
from paligemma.preflight.hlo_traffic import traffic

_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")


@dataclass(frozen=True)
class Collective:
    """One kind of message between devices: its count, and the bytes that one device receives.

    Rounded up: of data gathered from n devices, or summed over them, 1/n was on the device already.
    """

    kind: str
    count: int
    bytes: int


@dataclass(frozen=True)
class Cost:
    """An instruction, how often it runs, and what each run of it does.

    Attributes:
        instruction: the instruction.
        computation: name of the computation that it is in.
        times: runs.
        flops: operations in products, two per multiply-add, by dtype of the operands.
        read: bytes read from memory.
        written: arrays written to memory.
        cycles: what a TPU's compiler estimates; 0 if it says nothing.
        message: the message that it sends; None if none.
    """

    instruction: Instruction
    computation: str
    times: int
    flops: Mapping[str, int]
    read: int
    written: tuple[ArrayShape, ...]
    cycles: int
    message: Collective | None

    @property
    def bytes(self) -> int:
        """Bytes read and written."""
        return self.read + sum(array.bytes for array in self.written)

    @property
    def source(self) -> str:
        """The operation in the traced program that it comes from; empty if unknown."""
        return self.instruction.attribute(r'op_name="([^"]*)"') or ""


@dataclass(frozen=True)
class Account:
    """What one run of a program, or of a part of it, does on one device."""

    costs: tuple[Cost, ...]

    @property
    def flops(self) -> dict[str, int]:
        """Operations in products by dtype of the operands; of two dtypes the wider."""
        total: Counter[str] = Counter()
        for cost in self.costs:
            for dtype, flops in cost.flops.items():
                total[dtype] += cost.times * flops
        return dict(total)

    @property
    def bytes(self) -> int:
        """Bytes through the device's memory."""
        return sum(cost.times * cost.bytes for cost in self.costs)

    @property
    def cycles(self) -> int:
        """The TPU compiler's estimate; 0 from other compilers. It is ten times too high at low effort."""
        return sum(cost.times * cost.cycles for cost in self.costs)

    @property
    def collectives(self) -> dict[str, Collective]:
        """Messages by kind."""
        counts: Counter[str] = Counter()
        sizes: Counter[str] = Counter()
        for cost in self.costs:
            if cost.message:
                counts[cost.message.kind] += cost.times * cost.message.count
                sizes[cost.message.kind] += cost.times * cost.message.bytes
        return {kind: Collective(kind, counts[kind], sizes[kind]) for kind in sorted(counts)}

    @property
    def received(self) -> int:
        """Bytes received from other devices."""
        return sum(one.bytes for one in self.collectives.values())

    def weight_copies(self, sizes: Collection[int]) -> list[Cost]:
        """Instructions without a product that write an array of as many elements as a weight, the most bytes first.

        Args:
            sizes: numbers of elements of the weights; leave out small ones, which activations have by chance.
        """
        found = (cost for cost in self.costs if not cost.flops and any(array.elements in sizes for array in cost.written))
        return sorted(found, key=lambda cost: -cost.times * sum(array.bytes for array in cost.written))

    def seconds(self, flops_per_second: Callable[[str], float], bandwidth: float, links: float) -> float:
        """Least time by the speeds of a data sheet, also called its roofline.

        Instructions run one after another, and each takes as long as its products or its bytes, whichever is longer. Transfers
        that are started and waited for later run at the same time, as do messages, but neither is faster than its own wires.

        Args:
            flops_per_second: speed of products by dtype of their operands.
            bandwidth: bytes a second of the device's memory.
            links: bytes a second from other devices; 0 if there are none.
        """
        busy = sum(
            cost.times
            * max(
                sum(flops / flops_per_second(dtype) for dtype, flops in cost.flops.items()),
                0 if cost.instruction.opcode.endswith("-start") else cost.bytes / bandwidth,
            )
            for cost in self.costs
        )
        return max(busy, self.bytes / bandwidth, self.received / links if links else 0.0)


def account(program: Program, start: str | None = None, open_loops: int = 1) -> Account:
    """The account of one run.

    Args:
        program: from `read_program`.
        start: the computation to run, e.g. the body of a loop; by default the whole program.
        open_loops: runs of loops that end by their data.
    """
    return Account(tuple(_costs(program, program.computations[start or program.entry], 1, open_loops)))


def open_loops(program: Program) -> list[str]:
    """The bodies of the outermost loops that end by their data, in the program's order."""
    return list(_open_loops(program, program.computations[program.entry]))


def trip_count(program: Program, loop: Instruction) -> int | None:
    """Runs of a loop's body; None if that depends on its data."""
    if told := loop.attribute(r'"known_trip_count":\{"n":"(\d+)"'):
        return int(told)
    (name,) = loop.called("condition")
    within, root = program.computations[name], program.computations[name].root
    given: Mapping[str, Instruction] = within.instructions
    if root.opcode == "fusion":  # its parameters are what it is given
        inner = program.computations[root.called("calls")[0]]
        given = dict(inner.instructions) | {
            parameter.name: within.instructions[root.operands[number]] for number, parameter in inner.parameters.items()
        }
        root = inner.root
    if root.opcode != "compare" or root.attribute(r"direction=(\w+)") != "LT":
        return None
    limit = given[root.operands[1]]
    return int(limit.literal) if limit.opcode == "constant" else None


def _costs(program: Program, computation: Computation, times: int, open_loops: int) -> Iterator[Cost]:
    for instruction in computation.instructions.values():
        if instruction.opcode == "while":
            trips = trip_count(program, instruction)
            runs = times * (open_loops if trips is None else trips)
            if runs:
                yield from _costs(program, _only(program, instruction, "body"), runs, open_loops)
        elif instruction.opcode == "conditional":
            names = instruction.called("true_computation", "false_computation", "branch_computations")
            branches = [Account(tuple(_costs(program, program.computations[name], times, open_loops))) for name in names]
            yield from max(branches, key=lambda branch: (branch.bytes, sum(branch.flops.values()))).costs
        elif instruction.opcode == "call":
            yield from _costs(program, _only(program, instruction, "to_apply"), times, open_loops)
        elif instruction.opcode == "async-start":
            yield from _costs(program, _only(program, instruction, "calls"), times, open_loops)
        else:
            read, written = traffic(program, computation, instruction)
            flops, cycles = product_flops(program, computation, instruction), _cycles(instruction)
            message = _message(program, computation, instruction)
            if read or written or flops or cycles or message:
                yield Cost(instruction, computation.name, times, flops, read, written, cycles, message)


def _open_loops(program: Program, computation: Computation) -> Iterator[str]:
    for instruction in computation.instructions.values():
        if instruction.opcode == "while":
            body = _only(program, instruction, "body")
            if trip_count(program, instruction) is None:
                yield body.name
            else:
                yield from _open_loops(program, body)
        elif instruction.opcode in ("call", "conditional"):
            for name in instruction.called("to_apply", "true_computation", "false_computation", "branch_computations"):
                yield from _open_loops(program, program.computations[name])


def _cycles(instruction: Instruction) -> int:
    return int(instruction.attribute(r'"estimated_cycles":"(\d+)"') or 0)


def _message(program: Program, computation: Computation, instruction: Instruction) -> Collective | None:
    """The message of an instruction, or of the fusion that it is."""
    if instruction.opcode == "fusion":
        inner = _only(program, instruction, "calls")
        for one in inner.instructions.values():
            if found := _message(program, inner, one):
                if found.kind == "all-reduce" and inner.name.startswith("all-reduce-scatter"):  # a TPU's way to fuse the two
                    return Collective("reduce-scatter", 1, found.bytes // 2)
                return found
        return None
    kind = instruction.opcode.removesuffix("-start")
    if kind not in _COLLECTIVES:
        return None
    given = sum(array.bytes for operand in computation.operands(instruction) for array in operand.arrays)
    if kind == "all-gather":  # the result of one that starts holds the operands too
        result = sum(array.bytes for array in instruction.arrays)
        return Collective(kind, 1, result - (given if instruction.opcode != kind else 0))
    return Collective(kind, 1, 2 * given if kind == "all-reduce" else given)


def _only(program: Program, instruction: Instruction, key: str) -> Computation:
    (name,) = instruction.called(key)
    return program.computations[name]
