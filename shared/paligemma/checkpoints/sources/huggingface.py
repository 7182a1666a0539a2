"""Hugging Face models: finds and downloads snapshots, and tells which files of a folder make up a checkpoint.

Only `fetch` uses the network, and only for missing files. Nothing here reads weights.

The cache's layout is that of https://huggingface.co/docs/hub/local-cache.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

from paligemma.checkpoints.identify import refuse_folder
from paligemma.checkpoints.quantized_files import DESCRIPTION_FILE
from paligemma.checkpoints.safetensors_files import INDEX_FILE, SINGLE_FILE, weight_files
from paligemma.checkpoints.sources.remote import unavailable
from paligemma.errors import DamagedError, InputError
from paligemma.extras import how_to_install
from paligemma.storage.disk_space import explain_full_disk

log = logging.getLogger("paligemma.sources")

_SMALL_FILES = (
    DESCRIPTION_FILE,
    "config.json",
    "generation_config.json",
    INDEX_FILE,
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "preprocessor_config.json",
    "processor_config.json",
)
_SOURCE = re.compile(r"hf://(?P<owner>[\w.-]+)/(?P<name>[\w.-]+)(?:@(?P<revision>\w[\w./-]*))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


class NotDownloadedError(InputError):
    """A snapshot is not, or not completely, on this machine."""


def fetch(source: str) -> Path:
    """The folder of a snapshot. Downloads what is missing, and resumes an interrupted download.

    `huggingface_hub` itself takes a token from `$HF_TOKEN` or from the file that `hf auth login` writes.

    Args:
        source: see `snapshot_folder`.

    Raises:
        InputError: there is no such model, its licence is not accepted, or `huggingface_hub` is not installed.
        DamagedError: see `snapshot_folder`.
        StorageUnavailableError: Hugging Face did not answer.
    """
    try:
        return snapshot_folder(source)
    except NotDownloadedError as error:
        try:
            from huggingface_hub import errors, snapshot_download  # pyright: ignore[reportMissingImports]  # an extra
        except ImportError:
            raise NotDownloadedError(f"{error}\n           or let this download it: {how_to_install('huggingface')}") from None
    owner, name, revision = parse_source(source)
    log.info("fetching %s from Hugging Face", source)
    wanted = [*_SMALL_FILES, "*.safetensors"]
    with explain_full_disk(cache_folder()):
        try:
            snapshot_download(f"{owner}/{name}", revision=revision, cache_dir=cache_folder(), allow_patterns=wanted)
        except errors.HfHubHTTPError as error:
            if refusal := _refusal(error, f"https://huggingface.co/{owner}/{name}", source):
                raise refusal from None
            raise unavailable(source, error) from None
        except OSError as error:
            if error.errno is not None:  # an error of the disk, not the network
                raise
            raise unavailable(source, error) from None
    return snapshot_folder(source)


def _refusal(error: Exception, page: str, source: str) -> InputError | None:
    """The error that tells a user what to do about an answer; None if a retry may help."""
    from huggingface_hub import errors  # pyright: ignore[reportMissingImports]  # an extra

    token = f"the token is in {place}" if (place := token_place()) else "set HF_TOKEN to a token of that account"
    if isinstance(error, errors.RevisionNotFoundError):
        return InputError(f"There is no such revision of {source}.", where=page, fix="leave it out, or see the page's branches")
    if isinstance(error, errors.GatedRepoError):
        return InputError(
            f"Hugging Face does not give {source} to this account.",
            where=page,
            expected="a licence that was accepted, and a token of who accepted it",
            fix=f"accept the licence on the page; {token}; make one at https://huggingface.co/settings/tokens",
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return InputError(f"There is no {source}, or it is private.", where=page, fix=f"check the name; {token}")
    return None


def parse_source(source: str) -> tuple[str, str, str]:
    """Owner, name and revision of a model.

    Raises:
        InputError: the source is not such an address.
    """
    match = _SOURCE.fullmatch(source)
    if match is None or ".." in source:
        raise InputError(f"{source!r} is not a model on Hugging Face.", expected="hf://owner/name or hf://owner/name@revision")
    return match["owner"], match["name"], match["revision"] or "main"


def snapshot_folder(source: str) -> Path:
    """The folder of a downloaded snapshot that has all the files of a checkpoint.

    Args:
        source: `hf://owner/name[@revision]`; a revision is a branch, a tag or a full commit hash, by default `main`.

    Raises:
        InputError: it was not downloaded, or only in part.
        DamagedError: a file leads out of the cache, or the index of the weights cannot be read.
    """
    owner, name, revision = parse_source(source)
    page = f"https://huggingface.co/{owner}/{name}"
    fix = f"accept the licence at {page}, then: hf auth login && hf download {owner}/{name} --revision {revision}"
    repository = cache_folder() / f"models--{owner}--{name}"
    commit, reference = revision, repository / "refs" / revision
    if not _COMMIT.fullmatch(revision) and reference.is_file():
        commit = reference.read_text().strip()
    folder = repository / "snapshots" / commit
    if not (_COMMIT.fullmatch(commit) and folder.is_dir()):
        raise NotDownloadedError(f"{source} has not been downloaded.", where=repository, expected="a snapshot of it", fix=fix)
    files = checkpoint_files(folder)
    if not any(name.endswith(".safetensors") and file.is_file() for name, file in files.items()):
        refuse_folder(folder)
    if missing := sorted(name for name, file in files.items() if not file.is_file()):
        raise NotDownloadedError(
            f"The download of {source} is not complete.", where=folder, expected=", ".join(missing), fix=fix
        )
    return folder


def pinned(source: str, folder: Path) -> str:
    """A source with its branch or tag replaced by its snapshot's commit; any other source unchanged."""
    return f"{source.partition('@')[0]}@{folder.name}" if source.startswith("hf://") else source


def checkpoint_files(folder: Path) -> dict[str, Path]:
    """The files of a folder that a checkpoint needs: safetensors weights, configuration, tokenizer, processor; no pickles.

    Args:
        folder: a snapshot in the cache, or any other folder.

    Returns:
        Paths by name, with links followed. Files that every checkpoint has are included even if they are missing.

    Raises:
        DamagedError: a link leads out of the cache, or the index of the weights cannot be read.
    """
    weights = {path.name for path in weight_files(folder / INDEX_FILE)} if (folder / INDEX_FILE).is_file() else set()
    weights = weights or {path.name for path in folder.glob("*.safetensors")} or {SINGLE_FILE}
    small = {name for name in _SMALL_FILES if os.path.lexists(folder / name)}
    root = cache_folder().resolve()
    files = {name: (folder / name).resolve() for name in sorted({"config.json", *small, *weights})}
    for name, path in files.items():
        if folder.resolve().is_relative_to(root) and not path.is_relative_to(root):
            raise DamagedError(
                f"{folder / name} leads out of the Hugging Face cache.", where=path, expected=f"a file in {root}"
            )
    return files


def expected_sha256(path: Path) -> str | None:
    """The hash of a large file in the cache, which is its name among the blobs; None for any other file."""
    return path.name if path.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", path.name) else None


def token_place() -> str:
    """Where a Hugging Face token is: a variable's name or a file; empty if there is none. Does not read the token."""
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if os.environ.get(variable):
            return f"${variable}"
    home = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface")
    file = Path(os.environ.get("HF_TOKEN_PATH") or home / "token").expanduser()
    return str(file) if file.is_file() else ""


def cache_folder() -> Path:
    """`$HF_HUB_CACHE`, else `$HF_HOME/hub`, else `huggingface/hub` in the user's cache folder."""
    chosen, home = os.environ.get("HF_HUB_CACHE"), os.environ.get("HF_HOME")
    home = home or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    return Path(chosen or Path(home) / "hub").expanduser()
