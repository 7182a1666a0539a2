"""What implementations are run in: the peers' virtual environments, kept for the next run, and environment variables."""

import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

from paligemma.runtime.host_memory import use_huge_pages


def environment(folder: Path, requirements: Path) -> Path:
    """The Python of a virtual environment with these requirements, made if it is not there yet."""
    place = folder / f"{requirements.stem}-{hashlib.sha256(requirements.read_bytes()).hexdigest()[:12]}"
    python, done = place / "bin/python", place / ".installed"
    if not done.exists():
        print(f"making {place}", file=sys.stderr)
        venv.create(place, clear=True, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", requirements], check=True, stdout=sys.stderr)
        done.touch()
    return python


def variables(huge_pages: bool) -> dict[str, str]:
    """Environment variables; with large pages, as the cpu image and local runs have them."""
    found = {key: value for key, value in os.environ.items() if key not in ("XLA_FLAGS", "GLIBC_TUNABLES")}
    if huge_pages:
        use_huge_pages(found)
    return found | {"JAX_PLATFORMS": "cpu"}
