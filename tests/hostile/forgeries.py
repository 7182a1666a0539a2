"""The catalogue of alterations that `verify` is to find, and baits: what a root may hold to hurt whoever opens it.

Each is a function of a case and a random generator, so that one seed gives one root.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from roots import Case, replace, rewrite, signing

from paligemma.artifacts.record import (
    Artifact,
    File,
    Record,
    file_sha256,
    list_files,
    parse_record,
    record_sha256,
    render_record,
    tree_sha256,
)
from paligemma.artifacts.recording import attempt_name, seal
from paligemma.lineage.prune import prune_mark

Forge = Callable[[Case, Random], None]
DEEP = b"[" * 100_000


@dataclass(frozen=True)
class Alteration:
    """Something that is done to a root, and whether `verify` finds it without and with the key."""

    title: str
    apply: Forge
    found: bool = True
    found_with_key: bool = True


CATALOGUE: list[Alteration] = []
BAITS: list[Forge] = []


def alteration(title: str, found: bool = True) -> Callable[[Forge], Forge]:
    def add(forge: Forge) -> Forge:
        CATALOGUE.append(Alteration(title, forge, found))
        return forge

    return add


def bait(forge: Forge) -> Forge:
    BAITS.append(forge)
    return forge


def some_record(case: Case, random: Random, run: str = "one") -> Path:
    return random.choice(case.records(run))


def some_artifact(case: Case, random: Random) -> Path:
    """The place of an artifact that is current."""
    task = random.choice(
        ["fetch/checkpoint", "train/records", "finetune/tuned-model", "evaluate/evaluation", "publish/release"]
    )
    return case.root / "one" / task


def parsed(path: Path) -> Record:
    return parse_record(path.read_bytes(), path)


def altered(data: bytes, random: Random) -> bytes:
    place = random.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << random.randrange(8)]) + data[place + 1 :]


# Records


@alteration("a byte of a record is changed")
def _(case: Case, random: Random) -> None:
    path = some_record(case, random)
    path.write_bytes(altered(path.read_bytes(), random))


@alteration("a record says something else, and has the hash of that, in both places", found=False)
def _(case: Case, random: Random) -> None:
    (path,) = case.records("one", "publish")
    rewrite(case, path, lambda record: record.model_copy(update={"metrics": {"exact_match": random.random()}}))


@alteration("a record is signed with another key", found=False)
def _(case: Case, random: Random) -> None:
    (path,) = case.records("one", "publish")
    rewrite(case, path, lambda record: record, case.other_key)


@alteration("a record's signature is taken off, in both places", found=False)
def _(case: Case, random: Random) -> None:
    path = some_record(case, random)
    record = parsed(path).model_copy(update={"signature": None})
    for file in (path, Path(record.output) / "lineage.json"):
        file.write_bytes(render_record(record))


@alteration("the signature is taken off the record beside an artifact")
def _(case: Case, random: Random) -> None:
    path = some_artifact(case, random) / "lineage.json"
    path.write_bytes(render_record(parsed(path).model_copy(update={"signature": None})))


@alteration("a record has another one's signature", found=False)
def _(case: Case, random: Random) -> None:
    one, other = random.sample(case.records(), 2)
    record = parsed(one).model_copy(update={"signature": parsed(other).signature})
    for file in (one, Path(record.output) / "lineage.json"):
        file.write_bytes(render_record(record))


@alteration("a record is deleted")
def _(case: Case, random: Random) -> None:
    some_record(case, random).unlink()


@alteration("all records of a run are deleted")
def _(case: Case, random: Random) -> None:
    shutil.rmtree(case.root / "lineage/one")


@alteration("a record is copied to another attempt's name")
def _(case: Case, random: Random) -> None:
    path = some_record(case, random)
    name = random.choice([f"{attempt_name()}.json", f"{path.stem}0.json", f"{path.stem}_.json", f"{path.stem}.copy.json"])
    shutil.copy(path, path.with_name(name))


@alteration("a record is copied to a second one of its attempt")
def _(case: Case, random: Random) -> None:
    path = some_record(case, random)
    shutil.copy(path, path.with_name(f"{path.stem}_{random.choice([2, 3, 22])}.json"))


@alteration("a record is moved to another task or run")
def _(case: Case, random: Random) -> None:
    path = some_record(case, random)
    folder = case.root / "lineage" / random.choice(["two/fetch", "one/another", "another/fetch"])
    folder.mkdir(parents=True, exist_ok=True)
    path.rename(folder / path.name)


@alteration("another record is put in a record's place")
def _(case: Case, random: Random) -> None:
    one, other = random.sample(case.records(), 2)
    one.write_bytes(other.read_bytes())


@alteration("a record is no JSON, or too deep, or has a number that is too large")
def _(case: Case, random: Random) -> None:
    path = some_record(case, random)
    data = path.read_bytes()
    number = data.replace(b'"seconds": ', b'"seconds": 1' + b"0" * 400)
    attempt = data.replace(f'"{parsed(path).attempt}"'.encode(), b"1" + b"0" * 30)
    path.write_bytes(random.choice([b"", b"null", DEEP, b"\xff\xfe", number, attempt, data[:-3], b"[]", b'{"run": "one"}']))


@alteration("a record is a link, a FIFO, a socket or a folder")
def _(case: Case, random: Random) -> None:
    path = some_record(case, random)
    moved = case.home / "record.json"
    path.rename(moved)
    put_no_file(path, random, [moved, path, case.home / "nothing"])


@alteration("a record is added that nobody signed, of an attempt that failed or is under way", found=False)
def _(case: Case, random: Random) -> None:
    failed = random.random() < 0.5
    path = some_record(case, random)
    name = attempt_name()
    update = {"attempt": name, "artifact": None, "signature": None, "sha256": "", "cached_from": None, "error": None}
    update |= {"status": "failed"} if failed else {"status": "running", "finished": None}
    with signing(None):
        record = seal(parsed(path).model_copy(update=update))
    path.with_name(f"{name}.json" if failed else f"{name}.started.json").write_bytes(render_record(record))


@alteration("a whole step is added that nobody signed", found=False)
def _(case: Case, random: Random) -> None:
    from lineage_runs import make_step

    with signing(None):
        make_step(case.root, random.choice(["one", "new"]), "forged", "finetune", "tuned-model", metrics={"final_loss": 0.0})


@alteration("a step of somebody else's takes an artifact's place", found=False)
def _(case: Case, random: Random) -> None:
    from lineage_runs import make_step

    with signing(random.choice([None, case.other_key])):
        make_step(case.root, "one", "publish", "publish", "release", text="forged")


# Artifacts


def some_file(case: Case, random: Random) -> Path:
    return some_artifact(case, random) / "file"


@alteration("a byte of a file is changed")
def _(case: Case, random: Random) -> None:
    path = some_file(case, random)
    replace(path, altered(path.read_bytes(), random))


@alteration("a file is cut, emptied or longer")
def _(case: Case, random: Random) -> None:
    path = some_file(case, random)
    data = path.read_bytes()
    replace(path, random.choice([b"", data[:-1], data + b"\n"]))


@alteration("a file is deleted")
def _(case: Case, random: Random) -> None:
    some_file(case, random).unlink()


@alteration("a file is added")
def _(case: Case, random: Random) -> None:
    path = some_artifact(case, random) / random.choice(
        ["more", ".hidden", "sub/more", ".sub/.more", "lineage.json.bak", "a\nb"]
    )
    path.parent.mkdir(exist_ok=True)
    path.write_text("more")


@alteration("an empty folder is added")
def _(case: Case, random: Random) -> None:
    (some_artifact(case, random) / random.choice(["empty", ".empty", "a/b"])).mkdir(parents=True)


@alteration("a link, a FIFO or a socket is added")
def _(case: Case, random: Random) -> None:
    place = some_artifact(case, random)
    put_no_file(place / random.choice(["more", ".more"]), random, [case.home, place / "file", case.home / "nothing", place])


@alteration("a file is replaced by a link to a copy of it, or by a FIFO or a socket")
def _(case: Case, random: Random) -> None:
    path = some_file(case, random)
    copy = case.home / "copy"
    path.rename(copy)
    put_no_file(path, random, [copy])


@alteration("an artifact, or a folder that it is in, is replaced by a link to a copy of it")
def _(case: Case, random: Random) -> None:
    place = some_artifact(case, random)
    place = random.choice([place, place.parent, case.root / "one"])
    place.rename(case.home / "copy")
    place.symlink_to(case.home / "copy")


@alteration("an artifact is deleted, or a file is in its place")
def _(case: Case, random: Random) -> None:
    place = some_artifact(case, random)
    shutil.rmtree(place)
    if random.random() < 0.5:
        place.write_text("x")


@alteration("the record beside an artifact is deleted, altered, or another one's")
def _(case: Case, random: Random) -> None:
    path = some_artifact(case, random) / "lineage.json"
    data = path.read_bytes()
    path.unlink()
    others = [one.read_bytes() for one in case.records("two")]
    if wanted := random.choice([b"", DEEP, altered(data, random), data + b" ", *others]):
        path.write_bytes(wanted)


@alteration("an artifact is put back as it was before it was replaced")
def _(case: Case, random: Random) -> None:
    place = case.root / "two/train/records"
    for path in case.records("two", "train"):
        if parsed(path).sha256 != parsed(place / "lineage.json").sha256:
            (place / "lineage.json").write_bytes(path.read_bytes())
            (place / "file").write_text("two train")
            return


# Lists of rows


def some_rows(case: Case, random: Random) -> Path:
    return random.choice(sorted((case.root / "lineage/rows").iterdir()))


@alteration("a list of rows is altered or deleted")
def _(case: Case, random: Random) -> None:
    path = some_rows(case, random)
    data = path.read_bytes()
    path.unlink()
    if random.random() < 0.7:
        path.write_bytes(random.choice([altered(data, random), b"", DEEP, data[: len(data) // 2]]))


@alteration("a list of rows is a link, a FIFO, a socket or a folder")
def _(case: Case, random: Random) -> None:
    path = some_rows(case, random)
    path.rename(case.home / "rows")
    put_no_file(path, random, [case.home / "rows"])


@alteration("a file is added to the lists of rows")
def _(case: Case, random: Random) -> None:
    data = b'{"row_id": "00"}\n'
    import hashlib

    named = f"{hashlib.sha256(data).hexdigest()}.jsonl"
    (case.root / "lineage/rows" / random.choice([named, "more", ".hidden", f"{'0' * 64}.jsonl", "x.json"])).write_bytes(data)


# What was pruned


def prune_mark_of(case: Case) -> Path:
    (path,) = (case.root / "lineage").glob("*/*/*.pruned.json")
    return path


def add_mark(case: Case, copy: Path, key: Path | None, values: bytes | None = None) -> None:
    with signing(key):
        data = values or prune_mark(parsed(copy).sha256, "2026-11-26T12:00:00+00:00").render()
    copy.with_name(f"{attempt_name()}.pruned.json").write_bytes(data)


@alteration("an artifact is altered, and an unsigned mark says that it was pruned")
def _(case: Case, random: Random) -> None:
    copy = some_record(case, random)
    add_mark(case, copy, random.choice([None, case.other_key]))
    replace(Path(parsed(copy).output) / "file", b"other")


@alteration("an artifact is deleted, and an unsigned mark says that it was pruned", found=False)
def _(case: Case, random: Random) -> None:
    copy = some_record(case, random)
    add_mark(case, copy, random.choice([None, case.other_key]))
    shutil.rmtree(parsed(copy).output)


@alteration("something is put where an artifact was pruned")
def _(case: Case, random: Random) -> None:
    place = case.root / "two/validation/records"
    kind = random.randrange(4)
    if kind == 0:
        place.mkdir()
    elif kind == 1:
        place.write_text("x")
    elif kind == 2:
        put_no_file(place, random, [case.home, case.home / "nothing"])
    else:
        shutil.copytree(case.root / "one/validation/records", place)


@alteration("the mark of what was pruned is deleted, moved or copied")
def _(case: Case, random: Random) -> None:
    mark = prune_mark_of(case)
    data = mark.read_bytes()
    if random.random() < 0.7:
        mark.unlink()
    if not mark.exists() and random.random() < 0.5:
        (case.root / "lineage/one/fetch" / mark.name).write_bytes(data)
    elif mark.exists():
        mark.with_name(f"{attempt_name()}.pruned.json").write_bytes(data)


@alteration("a mark of what was pruned is no such mark")
def _(case: Case, random: Random) -> None:
    unknown = json.dumps({"pruned": "0" * 64, "at": "2026-11-26T12:00:00+00:00", "signature": None}, indent=2).encode() + b"\n"
    bad = [b'{"pruned": 1' + b"0" * 30 + b"}", b'{"pruned": "../../x"}', b"{}", DEEP, unknown, b"\xff"]
    add_mark(case, some_record(case, random), None, random.choice(bad))


# What no record knows


@alteration("an artifact is added without its record, hidden or not")
def _(case: Case, random: Random) -> None:
    name = random.choice(["one/copy", ".hidden", "one/.hidden/copy", "lineage2", "two/train/.records.partial"])
    shutil.copytree(some_artifact(case, random), case.root / name)


@alteration("a link to an artifact is added")
def _(case: Case, random: Random) -> None:
    shutil.copytree(some_artifact(case, random), case.home / "copy")
    (case.root / random.choice(["link", "one/link", ".link"])).symlink_to(case.home / "copy")


@alteration("a file, a folder or a link is added to the records")
def _(case: Case, random: Random) -> None:
    place = case.root / "lineage" / random.choice(["", "one", "one/fetch"])
    name = random.choice(["more", ".more", "more.txt", ".more.json", "x\x1b[2Jy"])
    kind = random.randrange(3)
    if kind == 0:
        (place / name).write_text("{}")
    elif kind == 1:
        (place / ".folder/deeper").mkdir(parents=True)
        (place / ".folder" / name).write_text("{}")
    else:
        put_no_file(place / name, random, [case.home, case.home / "nothing", place])


@alteration("an artifact is altered, and an index in the root says that it was pruned")
def _(case: Case, random: Random) -> None:
    copy = some_record(case, random)
    database = sqlite3.connect(case.root / "lineage/.index.sqlite")
    database.execute("CREATE TABLE pruned (path TEXT PRIMARY KEY, sha256 TEXT NOT NULL)")
    database.execute("INSERT INTO pruned VALUES ('one/x/y.pruned.json', ?)", (parsed(copy).sha256,))
    database.execute(f"PRAGMA user_version = {random.choice([3, 4])}")
    database.commit()
    database.close()
    replace(Path(parsed(copy).output) / "file", b"other")


def put_no_file(path: Path, random: Random, targets: list[Path]) -> None:
    """A link to one of these, a FIFO, a socket or a folder."""
    kind = random.randrange(6)
    if kind == 0:
        os.mkfifo(path)
    elif kind == 1:
        before = Path.cwd()
        os.chdir(path.parent)  # an address is at most 108 bytes long
        try:
            with socket.socket(socket.AF_UNIX) as made:
                made.bind(path.name)
        finally:
            os.chdir(before)
    elif kind == 2 and not path.name.startswith("."):
        (path / "in").mkdir(parents=True)
    else:
        path.symlink_to(random.choice(targets))


# Baits: what may be in a root that a stranger made, or in one that somebody used for something else since.


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
