"""The exit step: it says what became of a run whatever that was, and nothing that happens to a notification fails it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from kfp import dsl
from lineage_runs import at_place, make_run, make_step
from typer.testing import CliRunner

from components.summarize import webhook
from components.summarize.__main__ import run
from components.summarize.component import summarize
from conftest import REPOSITORY
from paligemma import web_client
from paligemma.artifacts.record import read_record
from paligemma.artifacts.recording import attempt
from paligemma.errors import InputError
from paligemma.lineage.impact import impact
from paligemma.lineage.index import Index
from paligemma.lineage.queries import list_runs
from paligemma.lineage.verify import verify
from pipelines.cli import app
from servers.local_http import Exchange, LocalServer

ROWS = [("1.png", "one"), ("2.png", "two")]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "rows.jsonl").write_text("rows\n")
    make_run(tmp_path / "root", "one", ROWS, tmp_path / "rows.jsonl")
    return tmp_path / "root"


@pytest.fixture(autouse=True)
def _nobody_to_notify(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (webhook.URL_VARIABLE, webhook.FILE_VARIABLE, webhook.SECRET_VARIABLE):
        monkeypatch.delenv(name, raising=False)


def summary_of(root: Path, name: str = "one", status: str = "", expected: str = "") -> dict:
    output = root.parent / "summary"
    run(output=str(output), root=str(root), run=name, status=status, expected=expected)
    read_record(output, "summary")
    assert "<h1>Lineage</h1>" in (output / "report.html").read_text()
    return json.loads((output / "summary.json").read_text())


def fail(root: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), at_place("one", "finetune", str(root)), attempt("finetune", root / "one/finetune/x", {}):
        raise error


def test_a_run_that_succeeded(root: Path) -> None:
    found = summary_of(root)
    assert (found["status"], found["tasks"], found["metrics"]["exact_match"]) == ("succeeded", 5, 0.1)
    assert found["text"].startswith("one: succeeded, 5 steps in ")


def test_a_run_that_failed_says_where_and_why(root: Path) -> None:
    fail(root, InputError("The loss is not finite."))
    found = summary_of(root, status=json.dumps({"state": "FAILED", "error": "a long text of the runner's"}))
    assert (found["status"], found["failed"]) == ("failed", ["finetune"])
    assert "finetune: The loss is not finite." in found["text"]


def test_a_run_that_its_runner_calls_failed_is(root: Path) -> None:
    assert summary_of(root, status='{"state": "FAILED"}')["status"] == "failed"


ON_KUBEFLOW = json.dumps({"state": "RUNNING", "error": None})
"""What KFP's driver says of a run that has ended: the state that MLMD has of the DAG, and never an error's text
(backend/src/v2/driver/resolve.go:471-477, 2.17.0)."""


def test_what_failed_is_said_from_our_own_records_where_the_runner_says_nothing(root: Path) -> None:
    fail(root, InputError("The loss is not finite."))
    found = summary_of(root, status=ON_KUBEFLOW, expected="fetch,train,validation,finetune,evaluate,evaluate-2")
    assert (found["status"], found["error"]) == ("failed", "finetune: The loss is not finite.")
    assert found["without_record"] == ["evaluate-2"]
    assert found["text"].splitlines()[1:3] == ["finetune: The loss is not finite.", "no record of: evaluate-2"]


def test_a_run_whose_step_never_began_has_not_succeeded(root: Path) -> None:
    """Its image could not be pulled, say: no process of ours was there to leave a record."""
    assert summary_of(root, status=ON_KUBEFLOW, expected="fetch,train,validation,finetune,evaluate")["status"] == "succeeded"
    found = summary_of(root, status=ON_KUBEFLOW, expected="fetch,train,validation,finetune,evaluate,evaluate-2")
    assert (found["status"], found["error"]) == ("failed", "no record of: evaluate-2")


def test_lineage_lists_a_run_with_what_its_runner_calls_it(root: Path) -> None:
    name = "projects/1/locations/us-central1/pipelineJobs/paligemma-finetune-20260101-abc"
    with at_place("one", "summarize", str(root)):
        summary_of(root, status=json.dumps({"state": "SUCCEEDED", "error": None, "job": name}))
    with Index(root) as index:
        assert [(run["run"], run["job"]) for run in list_runs(index)] == [("one", "paligemma-finetune-20260101-abc")]
    shown = CliRunner().invoke(app, ["lineage", "list", "--root", str(root)]).stdout.splitlines()
    assert shown[1].split()[:2] == ["one", "paligemma-finetune-20260101-abc"]


def test_a_step_that_was_killed_is_named(root: Path) -> None:
    with at_place("one", "finetune", str(root)), attempt("finetune", root / "x", {}) as current:
        mark = next((root / "lineage/one/finetune").glob("*.started.json"))
        left = mark.read_bytes()
        current.records = 1
    mark.write_bytes(left)
    os.utime(mark.parents[1], (time.time() + 9, time.time() + 9))
    assert "finetune: killed" in summary_of(root)["text"]


def test_a_run_that_left_nothing_at_all(root: Path) -> None:
    found = summary_of(root, "another", '{"state": "CANCELLED", "error": null}')
    assert found["text"] == "another: CANCELLED, and no step left a record"


def test_its_record_vouches_for_all_of_the_run(root: Path) -> None:
    fail(root, InputError("No."))
    summary_of(root)
    inputs = {one.record for one in read_record(root.parent / "summary").inputs}
    with Index(root) as index:
        assert inputs == {sha for (sha,) in index.ask("SELECT sha256 FROM records WHERE run = 'one'")}
        assert impact(index, "one/train")["others"][0]["task"] == "validation"  # the summary is made of nothing in it


def test_steps_served_from_a_cache_are_recorded(root: Path) -> None:
    make_step(root, "two", "finetune", "finetune", "tuned-model", [("checkpoint", root / "one/fetch/checkpoint")])
    found = summary_of(root, "two")
    assert found["cached"] == ["fetch"]
    with Index(root) as index:
        assert verify(index).problems == []


def received(
    answer: Callable[[Exchange], None], root: Path, monkeypatch: pytest.MonkeyPatch, path: str = "/hook"
) -> list[dict]:
    taken: list[dict] = []

    def serve(exchange: Exchange) -> None:
        taken.append(json.loads(exchange.read_body()))
        answer(exchange)

    with LocalServer(serve) as server:
        monkeypatch.setenv(webhook.URL_VARIABLE, server.url + path)
        assert summary_of(root)["status"] == "succeeded"
    return taken


def test_a_notification_has_words_and_facts(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (message,) = received(lambda exchange: exchange.answer(200, [], b"ok"), root, monkeypatch)
    assert message["text"].startswith("one: succeeded")
    assert message["summary"] == str(root.parent / "summary")
    assert {step["task"] for step in message["steps"]} == {"fetch", "train", "validation", "finetune", "evaluate"}


@pytest.mark.parametrize(
    "answer",
    [
        lambda exchange: exchange.answer(500, [], b"no"),
        lambda exchange: exchange.answer(302, [("Location", "http://example.com/")], b""),
        lambda exchange: exchange.reset(),
        lambda exchange: (time.sleep(1.5), exchange.answer(200, [], b"late")),
    ],
    ids=["refused", "redirected", "broken off", "late"],
)
def test_a_notification_that_is_not_taken_fails_nothing(
    answer: Callable, root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(webhook, "_SECONDS", (1.0, 0.5))
    assert len(received(answer, root, monkeypatch, "/secret-path")) == 1
    assert "notification" in caplog.text
    assert "secret-path" not in caplog.text


@pytest.mark.parametrize(
    "url", ["http://example.com/x", "ftp://127.0.0.1/x", "file:///etc/passwd", "nonsense", "https://", "https://u:p@h/"]
)
def test_an_address_that_is_not_safe_is_not_posted_to(
    url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(webhook.URL_VARIABLE, url)
    assert not webhook.notify({})
    assert "no notification was sent" in caplog.text
    assert "Error" not in caplog.text


def test_a_notification_that_found_no_connection_is_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    taken, refusals = [], [ConnectionRefusedError(), ConnectionRefusedError()]

    def request(*arguments, **options):
        if refusals:
            raise refusals.pop()
        return web_client.request(*arguments, **options)

    monkeypatch.setattr(webhook, "request", request)
    with LocalServer(lambda exchange: (taken.append(exchange.read_body()), exchange.answer(204, [], b""))) as server:
        monkeypatch.setenv(webhook.URL_VARIABLE, server.url)
        assert webhook.notify({"text": "x"})
    assert taken == [b'{"text": "x"}']


def test_the_address_may_be_in_a_mounted_file(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    with LocalServer(lambda exchange: (taken.append(exchange.read_body()), exchange.answer(204, [], b""))) as server:
        (tmp_path / "address").write_text(f"{server.url}/hook\n")
        monkeypatch.setenv(webhook.FILE_VARIABLE, str(tmp_path / "address"))
        assert webhook.notify({"text": "x"})
    assert taken == [b'{"text": "x"}']


@dsl.component(base_image="unused", install_kfp_package=False)
def end(root: str, run: str, fail: bool, made: dsl.Output[dsl.Artifact]):
    """A step that makes something, or fails."""
    from components.artifacts import output_location
    from paligemma.artifacts.store import produce
    from paligemma.errors import InputError

    output_location(made, root, run, "end")
    with produce(f"{root}/x", "thing", "end", {}, []) as draft:
        (draft.folder / "file").write_text("x")
        if fail:
            raise InputError("Told to fail.")


@dsl.pipeline
def small(root: str, fail: bool):
    """A step, and the exit step."""
    run, task = dsl.PIPELINE_JOB_ID_PLACEHOLDER, dsl.PIPELINE_TASK_NAME_PLACEHOLDER
    with dsl.ExitHandler(summarize(artifact_root=root, run=run, run_task=task)):
        end(root=root, run=run, fail=fail)


@pytest.mark.parametrize("fails", [False, True])
def test_it_is_an_exit_handler_of_kfp(fails: bool, tmp_path: Path) -> None:
    code = f"""
from kfp import local
from tests.component import test_summarize as module
local.init(local.SubprocessRunner(use_venv=False), pipeline_root={str(tmp_path / "kfp")!r})
module.small(root={str(tmp_path / "root")!r}, fail={fails})
"""
    taken: list[dict] = []
    with LocalServer(
        lambda exchange: (taken.append(json.loads(exchange.read_body())), exchange.answer(200, [], b""))
    ) as server:
        path = os.pathsep.join([str(REPOSITORY / "tests"), str(REPOSITORY), *sys.path])
        environment = {**os.environ, webhook.URL_VARIABLE: server.url, "PYTHONPATH": path}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, env=environment)
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    (summary,) = (tmp_path / "root").glob("small-*/summarize/summary/summary.json")
    found = json.loads(summary.read_text())
    assert (found["status"], [step["task"] for step in found["steps"]]) == ("failed" if fails else "succeeded", ["end"])
    assert taken[0]["text"] == found["text"]
    if fails:
        assert "end: Told to fail." in found["text"]
