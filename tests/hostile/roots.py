"""A genuine, signed root with everything in it, made once; copies of it to alter; and what there is on a disk."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from lineage_runs import at_place, make_run, make_step

from components.fetch_checkpoint.__main__ import run as fetch
from components.publish.__main__ import run as publish
from paligemma.artifacts.record import Record, parse_record, render_record
from paligemma.artifacts.recording import attempt_name, keep_file, seal
from paligemma.artifacts.signing import KEY_VARIABLE
from paligemma.artifacts.store import input_of, produce
from paligemma.checkpoints.open_checkpoint import open_checkpoint
from paligemma.checkpoints.tuned import Base, TunedDescription, write_tuned
from paligemma.lineage.index import Index
from paligemma.lineage.prune import prune_mark
from paligemma.lineage.record_folder import PRUNED_ENDING

ROWS = [("1.png", "one"), ("2.png", "two")]
LARGE = 65536
"""Bytes from which a copy of a root shares a file with it. Nothing writes into a file that is there."""


class Case:
    """A place for one root: what may change is in `root`, `cache` and `output`; the user's own files are in `home`."""

    def __init__(self, top: Path) -> None:
        self.top, self.root, self.home = top, top / "root", top / "home"
        self.cache, self.output = top / "cache", top / "output"
        self.key, self.public = top / "keys/key.pem", top / "keys/key.pub"
        self.other_key = top / "keys/other.pem"

    @property
    def genuine(self) -> Path:
        """The root as it was made."""
        return self.top / "genuine"

    def records(self, run: str = "one", task: str = "") -> list[Path]:
        """The kept records of a run, or of one of its tasks, by time."""
        paths = (self.root / "lineage" / run).glob(f"{task or '*'}/*.json")
        return sorted((path for path in paths if not path.name.endswith(PRUNED_ENDING)), key=lambda path: path.name)

    def make_keys(self) -> None:
        """Our key, and a stranger's."""
        self.key.parent.mkdir(parents=True)
        for file in (self.key, self.other_key):
            private = Ed25519PrivateKey.generate()
            file.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
            if file == self.key:
                public = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
                self.public.write_bytes(public)

    def make(self) -> None:
        """Makes the genuine root, at the place where its copies will be."""
        self.make_keys()
        self.home.mkdir()
        (self.home / "rows.jsonl").write_text("rows\n")
        (self.home / "thesis.txt").write_text("years of work\n")
        (self.home / "photos").mkdir()
        (self.home / "photos/1.png").write_bytes(b"a picture")
        with signing(self.key):
            make_run(self.root, "one", ROWS, self.home / "rows.jsonl", release=True)
            make_run(self.root, "two", [("3.png", "three")], self.home / "rows.jsonl", steps=2)
            make_step(self.root, "two", "train", "prepare_data", "records", [], [("4.png", "four")])  # replaces the first
            self._make_model()
            self._prune("two/validation/records")
        shutil.move(self.root, self.genuine)

    def _make_model(self) -> None:
        """A real checkpoint, a tuned model of one parameter, its evaluation and its release."""
        with at_place("real", "fetch", str(self.root)):
            fetch(output=f"{self.root}/real/fetch/checkpoint")
        base = open_checkpoint(f"{self.root}/real/fetch/checkpoint")
        tuned, judged = (f"{self.root}/real/{name}" for name in ("finetune/tuned", "evaluate/evaluation"))
        with at_place("real", "finetune", str(self.root)):
            inputs = [input_of("checkpoint", base.location)]
            with produce(tuned, "tuned-model", "finetune", {"steps": 1}, inputs) as draft:
                description = TunedDescription(
                    base=Base(uri=base.location, weights_file=base.weights.name, weights_sha256=base.weights_sha256),
                    config=base.config,
                    recipe={},
                    steps=1,
                )
                name = "llm/final_norm/scale"
                write_tuned(draft.folder, {name: np.asarray(base.arrays[name][...], np.float32)}, description)
                summary = {"trained_parameters": 128, "frozen_parameters": 1, "device": "cpu"}
                (draft.folder / "summary.json").write_text(json.dumps(summary))
        with at_place("real", "evaluate", str(self.root)):
            inputs = [input_of("checkpoint", base.location), input_of("tuned model", tuned)]
            with produce(judged, "evaluation", "evaluate", {}, inputs) as draft:
                score = {"value": 0.5, "low": 0.4, "high": 0.6}
                metrics = {"primary": "exact_match", "task": "", "examples": 2, "perplexity": 1.5}
                metrics["metrics"] = {"exact_match": score}
                (draft.folder / "metrics.json").write_text(json.dumps(metrics))
                (draft.folder / "gate.json").write_text(json.dumps({"promote": True, "why": "it is the first"}))
        with at_place("real", "publish", str(self.root)):
            publish(base.location, tuned, judged, f"{self.root}/registry")

    def _prune(self, place: str) -> None:
        """As `prune --delete` does, of one artifact."""
        with Index(self.root) as index:
            (found,) = index.ask("SELECT sha256 FROM records WHERE output = ?", f"{self.root}/{place}")
        record = parse_record((self.root / place / "lineage.json").read_bytes(), place)
        mark = prune_mark(found["sha256"], "2026-11-26T12:00:00+00:00")
        keep_file(self.root, f"{record.run}/{record.task}/{attempt_name()}{PRUNED_ENDING}", mark.render())
        shutil.rmtree(self.root / place)

    def renew(self, models: bool = True) -> None:
        """Puts a fresh copy of the genuine root in place, and nothing else; without the real models, if so wished."""
        for folder in (self.root, self.cache, self.output):
            if os.path.lexists(folder):
                folder.unlink() if folder.is_symlink() else shutil.rmtree(folder)
        without = None if models else shutil.ignore_patterns("real", "registry")
        shutil.copytree(self.genuine, self.root, copy_function=_copy, ignore=without)
        self.output.mkdir()


def _copy(source: str, target: str) -> None:
    os.link(source, target) if os.path.getsize(source) >= LARGE else shutil.copyfile(source, target)


@contextmanager
def signing(key: Path | None) -> Iterator[None]:
    """Records made meanwhile are signed with a key, or with none."""
    before = os.environ.pop(KEY_VARIABLE, None)
    if key is not None:
        os.environ[KEY_VARIABLE] = str(key)
    try:
        yield
    finally:
        os.environ.pop(KEY_VARIABLE, None)
        if before is not None:
            os.environ[KEY_VARIABLE] = before


def replace(path: Path, data: bytes) -> None:
    """Another file in a file's place: a copy shares large ones with the genuine root."""
    path.unlink()
    path.write_bytes(data)


def rewrite(case: Case, copy: Path, change: Callable[[Record], Record], key: Path | None = None, both: bool = True) -> None:
    """Forges a record with a hash that fits, signed with `key` or not at all; beside its artifact too, if `both`."""
    record = parse_record(copy.read_bytes(), copy)
    beside = Path(record.output) / "lineage.json"
    with signing(key):
        data = render_record(seal(change(record).model_copy(update={"sha256": "", "signature": None})))
    copy.write_bytes(data)
    if both and record.artifact is not None:
        beside.write_bytes(data)


def snapshot(folder: Path) -> dict[str, tuple]:
    """All that is in a folder: kind, target of a link, contents, time of change."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            what: object = os.readlink(path)
        elif stat.S_ISREG(status.st_mode):
            what = (status.st_size, hashlib.sha256(path.read_bytes()).hexdigest())
        else:
            what = None
        found[str(path.relative_to(folder))] = (stat.S_IFMT(status.st_mode), status.st_mtime_ns if what else 0, what)
    return found
