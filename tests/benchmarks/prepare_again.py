"""Times preparing a data set again after small changes: processor time of a run that reuses, as a share of a full one's.

PYTHONPATH=shared:. .venv/bin/python tests/benchmarks/prepare_again.py --rows 5000
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from prepare import cpu_seconds, generate, generate_one

from components.prepare_data.main import prepare_data
from paligemma.artifacts.record import read_record
from paligemma.artifacts.recording import set_place
from paligemma.checkpoints.open_checkpoint import resolve_embedded

CHECKPOINT = "embedded:tiny"


def run(root: Path, folder: Path, name: str, reuse: bool, workers: int, compression: str) -> None:
    """Prepares in a process whose imports are done, and prints its processor seconds and seconds from then on, and the hash."""
    set_place(name, "prepare", str(root), reuse)
    started, before = time.perf_counter(), cpu_seconds()
    made = prepare_data(
        data=str(folder / "rows.jsonl"),
        checkpoint=str(folder.parent / "checkpoint"),
        output=f"{root}/{name}/prepare/records",
        images="",
        split="train",
        max_text_tokens=128,
        over_long="reject",
        max_reject_fraction=0.1,
        rows_per_shard=2000,
        compression=compression,
        against="",
        workers=workers,
        grey_range="",
    )
    seconds, cpu = time.perf_counter() - started, cpu_seconds() - before
    print(cpu, seconds, read_record(made).artifact.tree_sha256)


def measure(root: Path, folder: Path, name: str, options: argparse.Namespace, reuse: bool = True) -> tuple[float, float, str]:
    """Processor seconds, seconds and tree hash of a run in a process of its own."""
    command = [sys.executable, __file__, "--run", name, "--root", root, "--folder", folder, "--workers", str(options.workers)]
    command += ["--compression", options.compression, *(["--reuse"] if reuse else [])]
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True, check=True)
    cpu, seconds, sha256 = done.stdout.split()
    return float(cpu), float(seconds), sha256


def checkpoint(folder: Path) -> None:
    """The embedded checkpoint with a model's usual image size; preparation reads no weights."""
    shutil.copytree(resolve_embedded(CHECKPOINT), folder)
    config = json.loads((folder / "config.json").read_text())
    config["img"]["image_size"] = 224
    (folder / "config.json").write_text(json.dumps(config))


def main() -> None:
    """Measures each change after the one before, or (with --run) is what is measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=5000, help="Images of 640 x 480 to generate.")
    parser.add_argument("--workers", type=int, default=1, help="Processes.")
    parser.add_argument("--compression", default="none", choices=["none", "gzip"], help="Of the shards.")
    for name in ("--run", "--root", "--folder"):
        parser.add_argument(name, default="", help=argparse.SUPPRESS)
    parser.add_argument("--reuse", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        run(Path(options.root), Path(options.folder), options.run, options.reuse, options.workers, options.compression)
        return
    with tempfile.TemporaryDirectory() as temporary:
        root, folder = Path(temporary) / "root", Path(temporary) / "data"
        root.mkdir()
        folder.mkdir()
        checkpoint(Path(temporary) / "checkpoint")
        generate(folder, options.rows)
        data, more = folder / "rows.jsonl", options.rows // 100

        def append() -> None:
            with data.open("a") as file:
                file.writelines(generate_one(folder, options.rows + number) for number in range(more))

        def delete() -> None:
            data.write_text("".join(data.read_text().splitlines(keepends=True)[1:]))

        def replace() -> None:
            (folder / f"{options.rows // 2:06d}.jpg").write_bytes((folder / "000000.jpg").read_bytes())

        def change() -> None:
            data.write_text(data.read_text().replace("with the number 7 ", "with the number seven "))

        def fresh(name: str) -> tuple[float, str]:
            try:
                cpu, _, sha256 = measure(root / "fresh", folder, name, options, reuse=False)
                return cpu, sha256
            finally:
                shutil.rmtree(root / "fresh")

        changes: dict[str, Callable[[], object]] = {
            "unchanged": lambda: None,
            f"{more} rows appended": append,
            "1 row deleted at the front": delete,
            "1 image replaced": replace,
            "1 text changed": change,
        }
        first, seconds, _ = measure(root, folder, "first", options)
        print("| what | CPU s | to a full one | s | bytes |\n| --- | --- | --- | --- | --- |")
        print(f"| full, {options.rows} rows | {first:.2f} | 100 % | {seconds:.2f} | |", flush=True)
        for number, (name, edit) in enumerate(changes.items()):
            edit()
            cpu, seconds, sha256 = measure(root, folder, f"again-{number}", options)
            full, wanted = fresh(f"full-{number}")
            same = "the same" if sha256 == wanted else "DIFFER"
            print(f"| {name} | {cpu:.2f} | {cpu / full:.1%} | {seconds:.2f} | {same} |", flush=True)


if __name__ == "__main__":
    main()
