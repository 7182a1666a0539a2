"""What the compilers of TPUs and GPUs make of the training step and of decoding: the tables of README.md beside this file.

make accelerators
.venv-preflight/bin/python tests/benchmarks/accelerators.py [CASE ...]

Nothing runs on hardware: see `components/preflight/README.md`. A case is a target with a batch, settings of the recipe, and the
compiler's effort; `--list` names them. Those at full effort take minutes each, and are left out unless they are named. Fails if
a case got worse than what was measured when its limits were set.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass

os.environ["JAX_PLATFORMS"] = "cpu"

from paligemma.models.config import VARIANTS
from paligemma.preflight.analyze import Decoding, Report, examine, in_gib
from paligemma.training.recipe import parse_recipe

TEXT = 128
ALLOWED = 1.02
"""How far above its limits a figure may be: other versions of a compiler differ by as much."""


@dataclass(frozen=True)
class Case:
    """A step to compile, and decoding.

    Attributes:
        target: a name of `TARGETS`.
        batch: examples in a step.
        limits: GiB of a device at most, and GB through its memory in a step.
        settings: of the recipe.
        full_effort: whether a TPU's compiler does what it does for a run.
        decoding: rows to decode at once; 0: decoding is not compiled.
        token_limit: GB through memory for a token of all rows, at most.
        pixels: height and width of images.
    """

    target: str
    batch: int
    limits: tuple[float, float]
    settings: tuple[str, ...] = ()
    full_effort: bool = False
    decoding: int = 0
    token_limit: float = 0.0
    pixels: int = 224

    @property
    def name(self) -> str:
        """E.g. `v5e-1, 8, 448 px, remat=dots, full effort`."""
        parts = [self.target, str(self.batch), f"{self.pixels} px" if self.pixels != 224 else "", *self.settings]
        return ", ".join([part for part in parts if part] + (["full effort"] if self.full_effort else []))


CASES = [
    Case("v5e-1", 8, (8.78, 79.2), decoding=1, token_limit=5.04),
    Case("v5e-1", 8, (13.37, 77.2), ("remat=dots",), decoding=8, token_limit=5.17),
    Case("v5e-8", 64, (2.11, 103.7)),
    Case("a100-40", 8, (8.93, 120.3), decoding=1, token_limit=5.04),
    Case("a100-40", 8, (12.55, 123.7), ("remat=dots",), decoding=8, token_limit=5.22),
    Case("t4", 8, (8.61, 180.6), decoding=8, token_limit=5.32),
    Case("a100-40", 2, (11.64, 765.3), pixels=896),
    Case("v5e-4", 32, (10.14, 2778.7), pixels=896),
    Case("v5e-1", 1, (8.31, 58.5), full_effort=True, pixels=896),
    Case("v5e-1", 8, (8.17, 52.1), full_effort=True, decoding=1, token_limit=5.03),
    Case("v5e-1", 8, (13.17, 49.1), ("remat=dots",), full_effort=True, decoding=8, token_limit=5.08),
]
QUICK = [case for case in CASES if not case.full_effort]


def examined(case: Case) -> Report:
    """What preflight finds, from its cache if it was asked before."""
    recipe = parse_recipe("", [f"batch_size={case.batch}", *case.settings], "accelerators")
    how = {"full_effort": case.full_effort, "decoding": case.decoding}
    return examine(VARIANTS[f"paligemma-3b-pt-{case.pixels}"], recipe, case.target, TEXT, {}, **how)


def worse(case: Case, report: Report) -> list[str]:
    """What is above the case's limits."""
    if "out_of_memory" in report.found:
        return [f"{case.name}: out of memory"]
    figures = [("GiB", report.peak / 2**30, case.limits[0]), ("GB", (report.bytes_moved or 0) / 1e9, case.limits[1])]
    if report.decoding is not None:
        figures.append(("GB a token", (report.decoding.token_bytes or 0) / 1e9, case.token_limit))
    return [f"{case.name}: {found:.2f} {what}, not {most:.2f}" for what, found, most in figures if found > ALLOWED * most]


def step_row(case: Case, report: Report) -> str:
    """A line of the table of steps."""
    if report.flops_done is None or report.bytes_moved is None:
        return f"| {case.name} | out of memory |" + " |" * 7
    account = report.found["accounts"]["step"]
    cells = (
        case.name,
        in_gib(report.peak),
        f"{sum(report.flops_done.values()) / 1e12:.2f}",
        f"{report.flops_done.get('f32', 0) / 1e12:.2f}",
        f"{report.bytes_moved / 1e9:.1f}",
        f"{(report.bytes_received or 0) / 1e9:.1f}",
        f"{account['cycles'] / 1e6:.1f}" if account["cycles"] else "",
        f"{1000 * (report.seconds or 0):.0f}",
        f"{report.share_of_peak:.0%}",
    )
    return f"| {' | '.join(cells)} |"


def decoding_row(case: Case, decoding: Decoding) -> str:
    """A line of the table of decoding."""
    moved, accounts = decoding.token_bytes or 0, decoding.found["accounts"]
    name = case.target + (", full effort" if case.full_effort else "")
    cells = (
        name,
        str(decoding.rows),
        f"{moved / 1e9:.2f}",
        f"{moved / decoding.parameter_bytes:.2f}",
        f"{accounts['token']['copied'] / 1e9:.2f}",
        f"{1000 * (decoding.token_seconds or 0):.1f}",
        f"{accounts['prefill']['bytes'] / 1e9:.1f}",
        f"{1000 * (decoding.prefill_seconds or 0):.0f}",
    )
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Prints a line as soon as it is known, first of steps, then of decoding."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("cases", nargs="*", help="names of cases; all that are quick by default")
    parser.add_argument("--list", action="store_true", help="name the cases")
    told = parser.parse_args()
    by_name = {case.name: case for case in CASES}
    if told.list:
        print("\n".join(by_name))
        return
    cases = [by_name[name] for name in told.cases] or QUICK
    reports = []
    print("| target, batch | GiB | TFLOP | in float32 | GB | received, GB | Mcycles | ms at best | MFU |")
    print("| --- |" + " --- |" * 8)
    for case in cases:
        reports.append((case, examined(case)))
        print(step_row(*reports[-1]), flush=True)
    print("\n| target | rows | GB a token | to 16-bit weights | weights written, GB | ms/token at best | GB of prefill | ms |")
    print("| --- |" + " --- |" * 7)
    for case, report in reports:
        if report.decoding is not None:
            print(decoding_row(case, report.decoding))
    if found := [text for case, report in reports for text in worse(case, report)]:
        sys.exit("\n".join(["Worse than measured before:", *found]))


if __name__ == "__main__":
    main()
