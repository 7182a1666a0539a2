"""The catalogue of alterations that `verify` is to find. What else a root may hold to hurt whoever opens it: `baits`.

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
    Record,
    parse_record,
    render_record,
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


def alteration(title: str, found: bool = True) -> Callable[[Forge], Forge]:
    def add(forge: Forge) -> Forge:
        CATALOGUE.append(Alteration(title, forge, found))
        return forge

    return add


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
