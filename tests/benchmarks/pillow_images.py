"""Prepares Pillow's own test images, many of them broken on purpose: how many decode, why the others do not, time and memory.

PYTHONPATH=shared:. .venv/bin/python tests/benchmarks/pillow_images.py
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from pathlib import Path

from paligemma.artifacts.record import REJECTED_FILE


def fetch(folder: Path) -> Path:
    """Pillow's sdist of the installed version, from the package index."""
    version = importlib.metadata.version("pillow")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "pillow", f"pillow=={version}"]
    subprocess.run(command, cwd=folder, check=True)
    (sdist,) = folder.glob("*.tar.gz")
    return sdist


def unpack_images(sdist: Path, folder: Path) -> list[str]:
    """Unpacks `Tests/images`; the files' names."""
    with tarfile.open(sdist) as tar:
        for member in tar:
            _, _, name = member.name.partition("/Tests/images/")
            if name and member.isreg():
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(tar.extractfile(member).read())
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def main() -> None:
    """Prints a table of reasons."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sdist", type=Path, help="Pillow's sdist; fetched when not given.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        folder, output = Path(root) / "images", Path(root) / "records"
        folder.mkdir()
        names = unpack_images(options.sdist or fetch(Path(root)), folder)
        data = Path(root) / "rows.jsonl"
        data.write_text("".join(json.dumps({"image": name, "prefix": "p", "suffix": name}) + "\n" for name in names))
        command = [sys.executable, "-m", "components.prepare_data", "--data", str(data), "--images", str(folder),
                   "--checkpoint", "embedded:tiny", "--output", str(output), "--max-reject-fraction", "1",
                   "--rows-per-shard", "100", "--workers", "2"]  # fmt: skip
        started = time.perf_counter()
        subprocess.run(command, check=True)
        seconds = time.perf_counter() - started
        rejects = [json.loads(line) for line in (output / REJECTED_FILE).read_text().splitlines()]
        dataset = json.loads((output / "dataset.json").read_text())
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"{len(names)} files, {dataset['rows']} decode; {seconds:.0f} s, the largest process {peak:.0f} MiB")
    reasons = Counter((entry["code"], why(entry["message"])) for entry in rejects)
    for (code, reason), count in reasons.most_common():
        print(f"| {count} | `{code}` | {reason} |")


def why(message: str) -> str:
    """What a message has in common with others: whether the file is another kind of file, unknown, broken or too large."""
    words = message.partition("': ")[2]
    kinds = ("The file is not an image of a known format", "The file is text", "The file is", "The image cannot be decoded")
    return next((kind for kind in kinds if words.startswith(kind)), "too large")


if __name__ == "__main__":
    main()
