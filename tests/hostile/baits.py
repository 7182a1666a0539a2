"""Baits: what may be in a root that a stranger made, or in one that somebody used for something else since; see `forgeries`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from random import Random

from forgeries import DEEP, Forge, parsed, put_no_file, some_record
from roots import Case, signing

from paligemma.artifacts.record import (
    Artifact,
    File,
    file_sha256,
    list_files,
    record_sha256,
    render_record,
    tree_sha256,
)
from paligemma.artifacts.recording import attempt_name, seal

BAITS: list[Forge] = []


def bait(forge: Forge) -> Forge:
    BAITS.append(forge)
    return forge


def forge_values(case: Case, random: Random, change: Callable[[dict], object], beside: bool = True) -> None:
    """A record with any values at all, and a hash that fits, in both places."""
    path = some_record(case, random)
    values = json.loads(path.read_bytes())
    place = values["output"]
    change(values)
    try:
        values["sha256"] = record_sha256(values)
    except (TypeError, ValueError):
        values["sha256"] = "0" * 64
    data = (json.dumps(values, indent=2) + "\n").encode()
    path.write_bytes(data)
    if beside:
        (Path(place) / "lineage.json").write_bytes(data)


def names(case: Case) -> list[object]:
    """What a name may be that becomes a path."""
    home = str(case.home)
    return [
        "..", "../..", "../../home", f"{home}/x", "/", "", ".", "a//b", "a/../../x", "C:\\x", "a\\..\\b", "a\0b", "a\nb",
        "\x1b]0;x\x07", "x" * 5000, "a/" * 700 + "a", "~/x", "gs://bucket/x", "file:///etc/passwd", 10**30, -1, None, True, [],
        {}, ["a"], 1.5, "rows", "\u202ea", "lineage", "lineage.json",
    ]  # fmt: skip


@bait
def _(case: Case, random: Random) -> None:
    """Names of runs, tasks, attempts and versions that are paths."""
    key = random.choice(["run", "task", "attempt", "status", "started", "finished", "output", "sha256"])
    forge_values(case, random, lambda values: values.update({key: random.choice(names(case))}))


@bait
def _(case: Case, random: Random) -> None:
    """Files of an artifact that are anywhere."""
    key = random.choice(["path", "sha256", "bytes"])
    forge_values(case, random, lambda values: values["artifact"]["files"][0].update({key: random.choice(names(case))}))


@bait
def _(case: Case, random: Random) -> None:
    """Addresses, hashes and versions of an artifact that are anything."""
    key = random.choice(["uri", "version", "tree_sha256", "rows", "type", "files", "bytes"])
    forge_values(case, random, lambda values: values["artifact"].update({key: random.choice(names(case))}))


@bait
def _(case: Case, random: Random) -> None:
    """Inputs and parameters that are anything."""
    part = random.choice(["inputs", "producer", "metrics", "error", "cached_from", "signature", "artifact"])
    forge_values(case, random, lambda values: values.update({part: random.choice([*names(case), [{}], {"a": 1}])}))


@bait
def _(case: Case, random: Random) -> None:
    """Text that steers a terminal, wherever text may be."""
    steer = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202e\r\nall as recorded"

    def change(values: dict) -> None:
        values["producer"] |= {"component": steer, "image": steer, "device": steer, "packages": {steer: steer}}
        values["producer"]["parameters"] = {steer: {steer: steer}}
        values["artifact"]["type"] = steer
        values["metrics"] = {steer: 1.0}

    forge_values(case, random, change)


@bait
def _(case: Case, random: Random) -> None:
    """A forged record, whole and with a fitting hash, of a folder of the user's: for `prune` to delete."""
    targets = [case.home, case.home / "photos", case.root, case.root / "lineage", case.root / "one", case.root / "registry"]
    targets += [case.root / "../home", case.top, Path("/"), case.root / "one/publish"]
    forge_step(case, random.choice(targets), random)


@bait
def _(case: Case, random: Random) -> None:
    """The same, with its lineage.json in a place below the root that is somebody else's now, or a link to one."""
    place = case.root / "one" / random.choice(["mine", "fetch/mine"])
    if random.random() < 0.5:
        place.symlink_to(case.home)
    else:
        place.mkdir()
        (place / "thesis.txt").write_text("years of work\n")
    forge_step(case, place, random)
    beside = place / "lineage.json"
    if not place.is_symlink() and random.random() < 0.7:
        beside.write_bytes(max((case.root / "lineage/bait/bait").iterdir()).read_bytes())
        (place / "later.txt").write_text("not in the record\n")


def forge_step(case: Case, place: Path, random: Random) -> None:
    """The record, unsigned and old, of a step whose artifact is whatever is at a place."""
    real = place.is_dir() and random.random() < 0.7 and place not in (Path("/"), case.top, case.root)
    files = list_files(place) if real else [File(path="thesis.txt", bytes=1, sha256="0" * 64)]
    folder = case.root / "lineage/bait/bait"
    folder.mkdir(parents=True, exist_ok=True)
    base = parsed(case.records("one", "fetch")[0])
    made = Artifact(
        type="records", uri=str(place), tree_sha256=tree_sha256(files), bytes=sum(file.bytes for file in files), files=files
    )
    old = {"started": "2020-01-01T00:00:00+00:00", "finished": "2020-01-01T00:00:01+00:00", "attempt": attempt_name()}
    values = {"run": "bait", "task": "bait", "output": str(place), "artifact": made, "inputs": [], "sha256": ""} | old
    with signing(None):
        record = seal(base.model_copy(update=values | {"signature": None}))
    (folder / f"{record.attempt}.json").write_bytes(render_record(record))


@bait
def _(case: Case, random: Random) -> None:
    """Hundreds of records that cannot be read."""
    folder = case.root / "lineage/bad/bad"
    folder.mkdir(parents=True)
    for number in range(60):
        (folder / f"{number}.json").write_bytes(random.choice([b"{}", b"[", b"\xff", b"1" * 500]))


@bait
def _(case: Case, random: Random) -> None:
    """The folder of records, or a run's, is a link."""
    place = case.root / random.choice(["lineage", "lineage/one", "lineage/rows", "lineage/one/fetch"])
    place.rename(case.home / "moved")
    place.symlink_to(random.choice([case.home / "moved", case.home, case.home / "nothing"]))


@bait
def _(case: Case, random: Random) -> None:
    """An index that earlier versions kept here leads elsewhere, or is a trap."""
    place = case.root / "lineage" / random.choice([".index.sqlite", "..index.sqlite.lock", ".index.sqlite-wal"])
    place.symlink_to(random.choice([case.home / "thesis.txt", case.home / "new", case.home]))


@bait
def _(case: Case, random: Random) -> None:
    """What says which release is in use says something else."""
    path = case.root / "registry/champion.json"
    path.unlink()
    if random.random() < 0.2:
        return put_no_file(path, random, [case.home / "thesis.txt", case.home / "new"])
    value = {
        "release": random.choice(names(case)),
        "tree_sha256": random.choice(names(case)),
        "history": [random.choice(names(case))],
    }
    text = json.dumps({"value": random.choice([value, *names(case)]), "move": "0" * 32})
    return path.write_bytes(random.choice([text.encode(), DEEP, b"", b"\xff", b"{}"])) and None


@bait
def _(case: Case, random: Random) -> None:
    """A release's manifest names folders and files that are elsewhere; its record fits."""
    (release,) = (case.root / "registry/releases").iterdir()
    manifest = json.loads((release / "release/manifest.json").read_bytes())
    if random.random() < 0.5:
        manifest["formats"][0][random.choice(["folder", "tree_sha256", "files"])] = random.choice(names(case))
    else:
        manifest["version"] = random.choice(names(case))
    refit(release / "release", "manifest.json", json.dumps(manifest).encode())
    if random.random() < 0.3:
        release.rename(release.with_name("another"))


@bait
def _(case: Case, random: Random) -> None:
    """A tuned model names a base that is anywhere; its record fits."""
    place = case.root / "real/finetune/tuned"
    values = json.loads((place / "tuned.json").read_bytes())
    if random.random() < 0.6:
        fifo = case.home / "fifo"
        os.mkfifo(fifo)
        values["base"]["uri"] = random.choice(
            [*names(case), str(fifo), str(case.home), "embedded:../../x", "http://host/x", "/dev/zero"]
        )
    else:
        values[random.choice(["base", "config", "lora", "steps", "recipe", "schema_version"])] = random.choice(names(case))
    refit(place, "tuned.json", json.dumps(values).encode())


@bait
def _(case: Case, random: Random) -> None:
    """JSON of an artifact that is none; its record fits."""
    tuned, judged = "real/finetune/tuned", "real/evaluate/evaluation"
    read = [(tuned, "tuned.json"), (tuned, "summary.json"), (judged, "gate.json"), (judged, "metrics.json")]
    place, name = random.choice([*read, ("real/fetch/checkpoint", "config.json")])
    data = [b"", b"null", b"[]", b"{}", DEEP, b'{"a": 1' + b"0" * 401 + b"}", b"\xff", b'{"config": NaN}', b'{"promote": 1}']
    refit(case.root / place, name, random.choice(data))


@bait
def _(case: Case, random: Random) -> None:
    """A file that a model is read from is a FIFO, or a link out of the folder."""
    read = ["finetune/tuned/trained.safetensors", "fetch/checkpoint/tokenizer.model", "fetch/checkpoint/checkpoint.npz"]
    place = case.root / "real" / random.choice([*read, "evaluate/evaluation/metrics.json"])
    place.rename(case.home / "moved")
    put_no_file(place, random, [case.home / "moved", case.home / "nothing", Path("/dev/zero")])


def refit(place: Path, name: str, data: bytes) -> None:
    """Other contents of an artifact's file, with a record beside it that fits, unsigned."""
    (place / name).unlink()
    (place / name).write_bytes(data)
    record = parsed(place / "lineage.json")
    files = [
        file if file.path != name else File(path=name, bytes=len(data), sha256=file_sha256(place / name))
        for file in record.artifact.files
    ]
    made = record.artifact.model_copy(
        update={"files": files, "tree_sha256": tree_sha256(files), "bytes": sum(file.bytes for file in files)}
    )
    with signing(None):
        forged = seal(record.model_copy(update={"artifact": made, "sha256": "", "signature": None}))
    (place / "lineage.json").write_bytes(render_record(forged))
