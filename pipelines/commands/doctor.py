"""`paligemma doctor`: reports what this machine has, and what each command lacks. Uses no network, and reads no secrets."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, get_args

import jax

from paligemma.checkpoints.sources.huggingface import token_place
from paligemma.extras import Extra, how_to_install
from paligemma.runtime.accelerator import idle_gpu
from paligemma.storage.cache import cache_folder

_EXTRAS: dict[Extra, tuple[str, str]] = {
    "heif": ("pillow_heif", "HEIC photos (prepare_data, preview, generate)"),
    "huggingface": ("huggingface_hub", "downloads of hf:// sources (pipeline run, fetch_checkpoint)"),
    "lineage": ("openlineage", "paligemma lineage export --openlineage"),
    "preflight": ("libtpu", "paligemma preflight for TPUs and GPUs that are not there"),
    "signing": ("model_signing", "signed releases (publish, paligemma verify --key)"),
}
"""For each extra: the module that must be importable, and its purpose."""

_SMALLEST_3B = 16 << 30
"""Bytes of memory, and of disk, needed to tune a 3B model: its weights alone take 6 GB in float16."""


@dataclass(frozen=True)
class Finding:
    """One line: `wrong` stops every command, `missing` some, `fine` none. `fix` says what to do, and for which command."""

    state: Literal["fine", "missing", "wrong"]
    what: str
    found: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.state:<8}{self.what:<19}{self.found}" + (f"\n{'':<27}{self.fix}" if self.fix else "")


def examine() -> Iterator[Finding]:
    """The findings, most basic first."""
    yield _python()
    yield _jax()
    yield _memory()
    for what, folder in (("disk, here", Path.cwd()), ("disk, cache", cache_folder())):
        yield _disk(what, folder)
    yield from _credentials()
    yield _clock(datetime.now(UTC))
    for extra in get_args(Extra):
        module, use = _EXTRAS[extra]
        if importlib.util.find_spec(module):
            yield Finding("fine", f"extra {extra}", use)
        else:
            yield Finding("missing", f"extra {extra}", f"only for {use}", how_to_install(extra))


def _python() -> Finding:
    found = f"{platform.python_version()}, {sys.executable}; paligemma {importlib.metadata.version('paligemma')}"
    if (3, 11) <= sys.version_info[:2] <= (3, 13):
        return Finding("fine", "Python", found)
    return Finding("wrong", "Python", found, "make clean setup PYTHON=python3.12 (3.11 to 3.13 is needed)")


def _jax() -> Finding:
    version = importlib.metadata.version("jax")
    try:
        devices = jax.devices()
    except RuntimeError as error:
        return Finding("wrong", "JAX", f"{version}, without a device: {error}", "make setup, or JAX_PLATFORMS=cpu")
    kinds = ", ".join(sorted({f"{device.platform} ({device.device_kind})" for device in devices}))
    idle = idle_gpu()
    return Finding("missing" if idle else "fine", "JAX", f"{version}, {len(devices)} x {kinds}", idle)


def _memory() -> Finding:
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return Finding("missing", "memory", "this system does not say how much there is")
    return _room("memory", size, "of memory")


def _disk(what: str, folder: Path) -> Finding:
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.is_dir())
    return _room(what, shutil.disk_usage(there).free, f"free in {there}")


def _room(what: str, size: int, words: str) -> Finding:
    found = f"{size / 2**30:.1f} GiB {words}"
    if size >= _SMALLEST_3B:
        return Finding("fine", what, found)
    return Finding("missing", what, found, f"only for models of 3 billion parameters and more: {_SMALLEST_3B >> 30} GiB")


def _credentials() -> Iterator[Finding]:
    kaggle = Path(os.environ.get("KAGGLE_CONFIG_DIR") or Path.home() / ".kaggle") / "kaggle.json"
    google = Path(os.environ.get("CLOUDSDK_CONFIG") or Path.home() / ".config/gcloud") / "application_default_credentials.json"
    places = {
        "Kaggle": (
            _set("KAGGLE_API_TOKEN") or (_set("KAGGLE_USERNAME") and _set("KAGGLE_KEY")) or _file(kaggle),
            "only for kaggle:// sources: create a token at https://www.kaggle.com/settings",
        ),
        "Hugging Face": (token_place(), "only for hf:// sources with a licence: set HF_TOKEN"),
        "Google": (
            _set("GOOGLE_APPLICATION_CREDENTIALS") or _file(google),
            "only for gs://, GKE and Vertex: gcloud auth application-default login",
        ),
    }
    for what, (found, fix) in places.items():
        yield Finding("fine", what, f"credentials in {found}") if found else Finding("missing", what, "no credentials", fix)


def _set(variable: str) -> str:
    return f"${variable}" if os.environ.get(variable) else ""


def _file(path: Path) -> str:
    return str(path) if path.is_file() else ""


def _clock(now: datetime) -> Finding:
    """A clock behind our own files is wrong: servers refuse signatures from another time, and lineage is out of order."""
    newest = max(path.stat().st_mtime for path in Path(__file__).parent.glob("*.py"))
    found = f"{now:%Y-%m-%d %H:%M:%S} UTC"
    if now.timestamp() >= newest:
        return Finding("fine", "clock", found)
    return Finding("wrong", "clock", f"{found}, before these files were written", "set the clock: servers refuse another time")
