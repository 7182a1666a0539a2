"""Every place that reads JSON somebody else may have written: what Python's own reader takes is one of our errors there too."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from components.summarize.__main__ import run as summarize
from conftest import REPOSITORY
from paligemma.data.convert.class_labels import named_labels
from paligemma.data.duplicates import read_listing
from paligemma.errors import PaliGemmaError
from paligemma.google import secret_manager
from paligemma.google.rest import BackendError, Service
from paligemma.launch.trainjob import account_of
from paligemma.launch.watch import LAUNCH_VARIABLE, launched
from paligemma.retry import BadBytesError
from paligemma.runtime.processes import CLUSTER, described
from pipelines.backends.kubeflow import refusal_of
from pipelines.commands.generate import answered_before, find_questions

BAD = {
    "deep": b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "twice": b'{"a": 1, "a": 2}',
    "large number": b'{"a": 1' + b"0" * 400 + b"}",
    "not finite": b'{"a": 1e999}',
    "half a pair": b'{"a": "\\ud800"}',
    "not UTF-8": b'{"a": "\xff"}',
    "no object": b"[1]",
    "no JSON": b"<html>",
}

# Everything else that calls Python's own reader, and why it may.
OWN = {
    "shared/paligemma/foreign_json.py": "it is the reader",
    "shared/paligemma/training/resume_check.py": "a value that this process has just written",
    "shared/paligemma/training/state.py": "a value that this process has just written",
    "shared/paligemma/preflight/compiler.py": "what our own process writes to its standard output",
    "shared/paligemma/preflight/worker.py": "what our own process writes to its standard input",
    "shared/paligemma/data/duplicates.py": "the list of rows that this process has just written",
    "shared/paligemma/data/rows.py": "a user's row: each fault is a reason code of its own",
    "shared/paligemma/data/convert/files.py": "a user's annotations, up to 2 GiB: each fault is a reason code of its entry",
    "shared/paligemma/data/convert/table_files.py": "a user's row: each fault is a reason code of its own",
    "shared/paligemma/lineage/index.py": "a record that was parsed when this machine put it into its index",
    "docker/build.py": "what the container engine prints, on the machine of who builds the images",
}


def test_nothing_else_reads_json_by_itself() -> None:
    found = {
        path.relative_to(REPOSITORY).as_posix()
        for folder in ("shared", "components", "pipelines", "docker")
        for path in (REPOSITORY / folder).rglob("*.py")
        if re.search(r"json\.loads?\(|JSONDecoder\(|\.json\(\)|model_validate_json\(", path.read_text())
    }
    assert found == OWN.keys()


def _questions(data: bytes, folder: Path) -> object:
    (folder / "rows.jsonl").write_bytes(b'{"image": "a", "prefix": "b"}\n' + data + b"\n")
    return find_questions([], folder / "rows.jsonl", "", str)


def _answers(data: bytes, folder: Path) -> object:
    (folder / "answers.jsonl").write_bytes(data + b"\n")
    return answered_before(folder / "answers.jsonl")


def _rows(data: bytes, folder: Path) -> object:
    (folder / "rows.jsonl").write_bytes(data + b"\n")
    return read_listing(folder / "rows.jsonl")


def _status(data: bytes, folder: Path) -> object:
    return summarize(output=str(folder / "out"), root=str(folder), run="x", status=data.decode(errors="surrogateescape"))


def _token(data: bytes, folder: Path) -> object:
    return account_of(f"head.{base64.urlsafe_b64encode(data).decode().rstrip('=')}.signature")


def _answer(data: bytes, folder: Path) -> object:
    answer = SimpleNamespace(status_code=200, content=data, reason="OK")
    service = Service("The service", "https://x/", lambda *_, **__: answer, "ask for access", lambda said: said["error"])
    return service.call("GET", "things", again=False)


READERS = [_questions, _answers, _rows, _status, _token, _answer]


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)
def test_what_nobody_expects_is_one_of_our_errors(read: Callable[[bytes, Path], object], kind: str, tmp_path: Path) -> None:
    with pytest.raises(PaliGemmaError) as caught:
        read(BAD[kind], tmp_path)
    assert caught.value.exit_code in (2, 3)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize(("variable", "read"), [(CLUSTER, described), (LAUNCH_VARIABLE, launched)])
def test_so_it_is_in_the_environment(
    variable: str, read: Callable[[], object], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, BAD[kind].decode(errors="surrogateescape"))
    with pytest.raises(PaliGemmaError, match=re.escape(f"${variable}")) as caught:
        read()
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("kind", BAD)
def test_a_refusal_that_cannot_be_read_is_shown_by_its_status(kind: str) -> None:
    answer = SimpleNamespace(status_code=403, content=BAD[kind], reason="Forbidden")
    service = Service("The service", "https://x/", lambda *_, **__: answer, "ask for access", lambda said: said["error"])
    with pytest.raises(BackendError, match=r"refused \(403\): Forbidden"):
        service.call("GET", "things", again=False)
    assert refusal_of(BAD[kind], "Forbidden") == "Forbidden"
    with pytest.raises(BadBytesError):
        secret_manager._payload(answer)
    assert secret_manager._message(answer) == "no reason given"


@pytest.mark.parametrize("kind", BAD)
def test_the_names_of_classes_are_left_out_if_their_list_cannot_be_read(kind: str) -> None:
    assert named_labels({b"huggingface": BAD[kind]})({"label": 0}) == {"label": 0}


def test_answers_and_questions_of_a_gigabyte_are_read_a_line_at_a_time(tmp_path: Path) -> None:
    for name, read in (("rows.jsonl", lambda path: find_questions([], path, "", str)), ("answers.jsonl", answered_before)):
        with (tmp_path / name).open("wb") as file:
            file.truncate(1 << 40)  # a hole, which would not fit into memory
            if name == "answers.jsonl":
                file.seek(0, 2)
                file.write(b"\n")
        with pytest.raises(PaliGemmaError, match=r"line 1: it is larger than 16,777,216 bytes"):
            read(tmp_path / name)
