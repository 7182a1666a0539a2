"""The demo, a first answer, and what each step takes to start, of this checkout against an earlier commit, in one run.

    .venv/bin/python tests/benchmarks/first_contact.py COMMIT

The earlier commit is checked out beside, and runs in this checkout's environment, with empty caches of its own. The two take
turns. Needs Linux.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def measure(checkout: Path, cache: Path, *arguments: str) -> tuple[float, float, float]:
    """Wall seconds, processor seconds and peak MiB of `python -m ARGUMENTS`, children included."""
    environment = {
        **os.environ,
        "PYTHONPATH": f"{checkout / 'shared'}:{checkout}",
        "PALIGEMMA_CACHE": str(cache),
        "JAX_PLATFORMS": "cpu",
    }
    code = (
        "import resource, subprocess, sys; done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL); "
        "u = resource.getrusage(resource.RUSAGE_CHILDREN); print(u.ru_utime + u.ru_stime, u.ru_maxrss / 1024); "
        "sys.exit(done.returncode)"
    )
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code, sys.executable, "-m", *arguments],
        cwd=checkout,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}\n{done.stderr[-3000:]}")
    cpu, peak = map(float, done.stdout.split())
    return time.monotonic() - started, cpu, peak


def module(checkout: Path, step: str) -> str:
    """How a checkout starts a step."""
    return f"components.{step}" if (checkout / "components" / step / "__main__.py").exists() else f"components.{step}.main"


def commands(checkout: Path, folder: Path) -> dict[str, list[str]]:
    """What is measured, in this order: each needs those before it."""
    tiny, records, tuned = ["--checkpoint", "embedded:tiny"], str(folder / "records"), str(folder / "tuned")
    demo = folder / "demo"
    data = ["--data", str(demo / "data/validation.jsonl"), "--max-reject-fraction", "0.1"]
    image = str(demo / "data/images/1530.png")
    answer = ["pipelines.cli", "generate", "--model", "embedded:tiny", "--image", image, "--prompt", "which digit is this?"]
    evaluation = str(folder / "evaluation")
    fetch = [module(checkout, "fetch_checkpoint"), "--source", "embedded:tiny", "--output", str(folder / "base")]
    prepare = [module(checkout, "prepare_data"), *tiny, *data, "--output", records]
    train = [module(checkout, "finetune"), *tiny, "--records", records, "--set", "steps=1", "--output", tuned]
    judge = [module(checkout, "evaluate"), *tiny, "--records", records, "--tuned", tuned, "--max-new-tokens", "8"]
    publish = [module(checkout, "publish"), *tiny, "--tuned", tuned, "--evaluation", evaluation, "--no-promote"]
    return {
        "demo": ["pipelines.cli", "demo", "--output", str(demo)],
        "first answer": answer,
        "second answer": answer,
        "fetch_checkpoint": fetch,
        "prepare_data": prepare,
        "finetune": train,
        "evaluate": [*judge, "--output", evaluation],
        "publish": [*publish, "--registry", str(folder / "registry")],
    }


def git(*arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=REPOSITORY, check=True, capture_output=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("commit", help="the earlier commit")
    commit = parser.parse_args().commit
    with tempfile.TemporaryDirectory() as scratch:
        before = Path(scratch, "before")
        git("worktree", "add", "--detach", str(before), commit)
        try:
            checkouts = {"before": before, "now": REPOSITORY}
            asked = {name: commands(checkout, Path(scratch, f"of-{name}")) for name, checkout in checkouts.items()}
            print(f"| what | {commit}: s, CPU s, MiB | now: s, CPU s, MiB | CPU ratio |\n| --- | --- | --- | --- |")
            for what in asked["now"]:
                found = {}
                for name, checkout in checkouts.items():
                    cache = Path(scratch, f"cache-{name}" if what == "demo" else f"cache-answers-{name}")
                    found[name] = measure(checkout, cache, *asked[name][what])
                shown = (f"{wall:.1f}, {cpu:.1f}, {peak:.0f}" for wall, cpu, peak in found.values())
                print(f"| {what} | {' | '.join(shown)} | {found['before'][1] / found['now'][1]:.2f} |", flush=True)
        finally:
            git("worktree", "remove", "--force", str(before))


if __name__ == "__main__":
    main()
