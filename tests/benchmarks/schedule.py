"""A year of a weekly schedule on spot machines, simulated: 52 runs, a preemption every three hours, two edits, one cancelled.

    PYTHONPATH=shared:.:tests .venv/bin/python tests/benchmarks/schedule.py

As it is, and as it was before the sources of Argo and Kubeflow Pipelines were read; tests/servers/year.py says what is real.
"""

from __future__ import annotations

import contextlib
import io
import time
from collections import Counter

from servers.argo import STOCK_DEFAULTS
from servers.kubeflow import KubeflowServer
from servers.year import AS_IT_WAS, HOUR, PATCHED, Year, simulate

YEARS = {
    "as it was": {"profile": "kfp-gpu-l4", "defaults": STOCK_DEFAULTS, "policy": AS_IT_WAS},
    "as it was, the server patched": {"profile": "kfp-gpu-l4", "defaults": PATCHED, "policy": AS_IT_WAS},
    "as it is, the server not patched": {"profile": "kfp-gpu-l4", "defaults": STOCK_DEFAULTS},
    "as it is": {"profile": "kfp-gpu-l4", "defaults": PATCHED},
    "as it is, on a slice of four hosts": {"profile": "kfp-tpu-v5e-16", "defaults": PATCHED},
}


def main() -> None:
    """Prints the table."""
    head = ("year", "succeeded", "cancelled", "killed", "failed", "preemptions", "longest run, h", "at once",
            "again from step 0", "outlived, s", "simulated in s")  # fmt: skip
    print("| " + " | ".join(head) + " |")
    print("| " + " | ".join(["---"] * len(head)) + " |")
    for name, settings in YEARS.items():
        started = time.monotonic()
        with KubeflowServer() as server, contextlib.redirect_stderr(io.StringIO()):
            server.knows_orphans = name.startswith("as it is")
            year = simulate(server=server, **settings)
        print("| " + " | ".join((name, *_figures(year), f"{time.monotonic() - started:.1f}")) + " |", flush=True)


def _figures(year: Year) -> tuple[str, ...]:
    ended = Counter(one.how.split()[0] for one in year.runs)
    longest = max(one.ended - one.started for one in year.runs) / HOUR
    return (
        *(str(ended[how]) for how in ("succeeded", "cancelled", "killed", "failed")),
        str(sum(one.preemptions for one in year.runs)),
        f"{longest:.0f}",
        str(year.at_once),
        str(year.from_nothing),
        f"{year.outlived:.0f}",
    )


if __name__ == "__main__":
    main()
