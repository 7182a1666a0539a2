"""What a preflight tells of an account: totals, seconds, and what writes a weight again."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal

from paligemma.preflight.account import Account, Cost, account, open_loops
from paligemma.preflight.hlo_text import read_program
from paligemma.preflight.targets import Target

LARGE = 1 << 20
"""Elements from which on a weight counts as large. Activations have the sizes of smaller ones by chance."""

_MOST_COPIES = 8


def summaries(
    what: Literal["step", "decoding"], text: str, target: Target, weights: Iterable[tuple[int, ...]], full_effort: bool
) -> dict[str, dict[str, Any]]:
    """The summaries of a compiled program: of a `step`; or of the `prefill` and of a `token`.

    The loop over tokens is the only one that ends by its data.

    Args:
        what: the program that was compiled.
        text: the program, as its compiler prints it.
        target, weights, full_effort: see `summary`.
    """
    program = read_program(text)
    if what == "step":
        accounts = {"step": account(program)}
    else:
        (token,) = open_loops(program)
        accounts = {"prefill": account(program, open_loops=0), "token": account(program, start=token)}
    weights = list(weights)
    return {name: summary(one, target, weights, full_effort) for name, one in accounts.items()}


def summary(found: Account, target: Target, weights: Iterable[tuple[int, ...]], full_effort: bool) -> dict[str, Any]:
    """An account as plain values, for one device.

    Args:
        found: the account.
        target: the hardware.
        weights: shapes of the parameters that the program only reads.
        full_effort: whether the compiler did what it does for a run; its cycles are of no use otherwise.

    Returns:
        `flops` by dtype, `bytes`, `cycles` (a TPU's at full effort, else 0), `collectives` (count and bytes received) by kind,
        `seconds` at best (None if the target's speed is unknown), `copied`: bytes of arrays as large as a weight that are
        written without a product, and `copies`: the largest of these writes, each with its shape, how often it happens in one
        run, the bytes written in all, and its source.
    """
    cycles, copies = found.cycles if full_effort else 0, [_copy(cost) for cost in found.weight_copies(weight_sizes(weights))]
    return {
        "flops": found.flops,
        "bytes": found.bytes,
        "cycles": cycles,
        "collectives": {kind: {"count": one.count, "bytes": one.bytes} for kind, one in found.collectives.items()},
        "seconds": seconds(found, target, cycles),
        "copied": sum(copy["bytes"] for copy in copies),
        "copies": copies[:_MOST_COPIES],
    }


def seconds(found: Account, target: Target, cycles: int) -> float | None:
    """Seconds of one run: by the compiler's cycles if there are any, else by the data sheet; messages may take longer."""
    if not target.tflops:
        return None
    messages = found.received / target.links if target.links else 0.0
    if cycles and target.clock:
        return max(cycles / (target.clock * 1e9), messages)
    return found.seconds(target.speed, target.bandwidth, target.links)


def weight_sizes(weights: Iterable[tuple[int, ...]]) -> set[int]:
    """Numbers of elements of the large weights: of all layers together, of one, and of the parts of one, e.g. an MLP's gate."""
    sizes = (math.prod(shape[axis:]) for shape in weights for axis in range(max(1, len(shape) - 1)))
    return {size for size in sizes if size >= LARGE}


def _copy(cost: Cost) -> dict[str, Any]:
    return {
        "shape": ", ".join(f"{array.dtype}[{','.join(map(str, array.lengths))}]" for array in cost.written),
        "times": cost.times,
        "bytes": cost.times * sum(array.bytes for array in cost.written),
        "source": cost.source,
    }
