"""The peers' virtual environments, which are kept for the next run."""

import hashlib
import subprocess
import sys
import venv
from pathlib import Path


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
