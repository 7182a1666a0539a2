"""What a preflight tells of an account: totals, seconds, and what writes a weight again."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from paligemma.preflight.account import Account, Cost
from paligemma.preflight.targets import Target

LARGE = 1 << 20
"""Elements from which on a weight counts as large. Activations have the sizes of smaller ones by chance."""

_MOST_COPIES = 8


def summary(found: Account, target: Target, weights: Iterable[tuple[int, ...]], full_effort: bool) -> dict[str, Any]:
    """An account as plain values, for one device.

    Args:
        found: the account.
        target: the hardware.
        weights: shapes of the parameters that the program only reads.
        full_effort: whether the compiler did what it does for a run; its cycles are of no use otherwise.

    Returns:
        `flops` by dtype, `bytes`, `cycles` (a TPU's at full effort, else 0), `collectives` (count and bytes received) by kind,
        `seconds` at best (None if the target's speed is unknown), and `copies`: the writes of arrays as large as a weight, the
        most bytes first, each with its shape, how often it happens in one run, the bytes written in all, and its source.
    """
    cycles = found.cycles if full_effort else 0
    return {
        "flops": found.flops,
        "bytes": found.bytes,
        "cycles": cycles,
        "collectives": {kind: {"count": one.count, "bytes": one.bytes} for kind, one in found.collectives.items()},
        "seconds": seconds(found, target, cycles),
        "copies": [_copy(cost) for cost in found.weight_copies(weight_sizes(weights))[:_MOST_COPIES]],
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
