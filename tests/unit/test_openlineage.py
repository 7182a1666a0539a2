"""Lineage as OpenLineage events: of the published classes, and taken by a receiver over HTTP."""

from __future__ import annotations

import json
import re
import uuid
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from lineage_runs import at_place, make_run

from paligemma.artifacts.recording import attempt
from paligemma.artifacts.store import input_of, produce
from paligemma.errors import InputError
from paligemma.lineage.index import Index
from paligemma.lineage.openlineage import NotAcceptedError, events, send, to_line
from servers.local_http import Exchange, LocalServer

ROWS = [("1.png", "one"), ("2.png", "two")]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "rows.jsonl").write_text("rows\n")
    make_run(tmp_path / "root", "weekly-2026-11-24", ROWS, tmp_path / "rows.jsonl", release=True)
    return tmp_path / "root"


def exported(root: Path, **options: str) -> list[dict]:
    with Index(root) as index:
        return [json.loads(to_line(event)) for event in events(index, ["weekly-2026-11-24"], **options)]


def test_each_attempt_begins_and_ends_within_its_run(root: Path) -> None:
    found = exported(root)
    by_job: dict[str, list[dict]] = {}
    for event in found:
        by_job.setdefault(event["job"]["name"], []).append(event)
    steps = {"fetch", "train", "validation", "finetune", "evaluate", "publish"}
    assert by_job.keys() == {"weekly"} | {f"weekly.{step}" for step in steps}
    for job in by_job.values():
        assert [event["eventType"] for event in job] == ["START", "COMPLETE"]
        assert len({event["run"]["runId"] for event in job}) == 1
    (parent,) = {event["run"]["runId"] for event in by_job["weekly"]}
    assert uuid.UUID(parent)
    for name, job in by_job.items():
        if name != "weekly":
            assert {event["run"]["facets"]["parent"]["run"]["runId"] for event in job} == {parent}
    assert [event["eventTime"] for event in found] == sorted(event["eventTime"] for event in found)
    assert found == exported(root)  # again, it is the same events


def test_an_attempt_with_two_artifacts_begins_and_ends_once(root: Path) -> None:
    with at_place("weekly-2026-11-24", "again", str(root)), attempt("publish", root / "registry", {}):
        for component, inputs in (("export", []), ("publish", [("model", root / "registry/export")])):
            found = [input_of(*one) for one in inputs]
            with produce(root / "registry" / component, "x", component, {"by": component}, found) as draft:
                (draft.folder / "file").write_text(component)
    began, ended = (event for event in exported(root) if event["job"]["name"] == "weekly.again")
    assert (began["eventType"], ended["eventType"]) == ("START", "COMPLETE")
    assert [one["name"] for one in ended["outputs"]] == [str(root / "registry/export"), str(root / "registry/publish")]
    assert ended["inputs"] == []
    assert ended["run"]["facets"]["executionParameters"]["parameters"][0]["value"] == "publish"


def test_data_sets_have_versions_and_statistics(root: Path, tmp_path: Path) -> None:
    ended = {event["job"]["name"]: event for event in exported(root) if event["eventType"] == "COMPLETE"}
    (made,) = ended["weekly.train"]["outputs"]
    assert (made["namespace"], made["name"]) == ("file", str(root / "weekly-2026-11-24/train/records"))
    assert made["outputFacets"]["outputStatistics"]["rowCount"] == 2
    assert made["outputFacets"]["outputStatistics"]["fileCount"] == 2
    used = {one["name"]: one for one in ended["weekly.finetune"]["inputs"]}
    assert used[made["name"]]["facets"]["version"]["datasetVersion"] == made["facets"]["version"]["datasetVersion"]
    assert used[made["name"]]["inputFacets"]["inputStatistics"]["rowCount"] == 2
    assert str(tmp_path / "rows.jsonl") in {one["name"] for one in ended["weekly.train"]["inputs"]}


def test_code_and_parameters_are_in_facets(root: Path) -> None:
    ended = {event["job"]["name"]: event for event in exported(root, repository="https://example.com/x") if "inputs" in event}
    facets = ended["weekly.finetune"]["job"]["facets"] | ended["weekly.finetune"]["run"]["facets"]
    parameters = {one["key"]: one["value"] for one in facets["executionParameters"]["parameters"]}
    assert parameters == {"steps": "1", "optimizer.name": "sgd"}
    place = facets["sourceCodeLocation"]
    assert place["url"] == f"https://example.com/x/tree/{place['version']}/components/finetune"
    assert facets["jobType"]["jobType"] == "TASK"


def test_every_event_and_facet_names_its_schema_and_producer(root: Path) -> None:
    """What the published schema asks of all of them; `make openlineage` checks the rest with the schemas themselves."""
    facet_count = 0
    for event in exported(root):
        assert event["schemaURL"] == "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent"
        assert datetime.fromisoformat(event["eventTime"]).utcoffset() == timedelta(0)
        assert uuid.UUID(event["run"]["runId"])
        assert event["producer"].startswith("urn:paligemma:")
        holders = [event["run"], event["job"], *event.get("inputs", ()), *event.get("outputs", ())]
        for holder in holders:
            for facets in ("facets", "inputFacets", "outputFacets"):
                for facet in holder.get(facets, {}).values():
                    facet_count += 1
                    assert re.fullmatch(
                        r"https://openlineage\.io/spec/facets/\d+-\d+-\d+/(\w+)\.json#/\$defs/\1", facet["_schemaURL"]
                    )
                    assert facet["_producer"] == event["producer"]
    assert facet_count > 50


def test_a_failed_attempt_ends_with_its_error(root: Path) -> None:
    def fail() -> None:
        with at_place("weekly-2026-11-24", "again", str(root)), attempt("finetune", root / "x", {}):
            raise InputError("The loss is not finite.")

    with pytest.raises(InputError):
        fail()
    found = [event for event in exported(root) if event["job"]["name"] == "weekly.again"]
    assert [event["eventType"] for event in found] == ["START", "FAIL"]
    assert found[1]["run"]["facets"]["errorMessage"]["message"] == "InputError: The loss is not finite."
    assert exported(root)[-1]["eventType"] == "FAIL"


def test_a_receiver_takes_every_event(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[dict] = []

    def serve(exchange: Exchange) -> None:
        body = exchange.read_body()
        right = (exchange.command, exchange.target) == ("POST", "/api/v1/lineage")
        if right and exchange.headers["Authorization"] == "Bearer a-key":
            taken.append(json.loads(body))
            exchange.answer(201, [], b"")
        else:
            exchange.answer(401, [], b"")

    with LocalServer(serve) as server, Index(root) as index:
        monkeypatch.setenv("OPENLINEAGE_API_KEY", "a-key")
        assert send(server.url, events(index, ["weekly-2026-11-24"])) == len(taken) == 14
        assert send(f"{server.url}/api/v1/lineage", events(index, ["weekly-2026-11-24"])) == 14
        monkeypatch.setenv("OPENLINEAGE_API_KEY", "another")
        with pytest.raises(NotAcceptedError, match="took 0 events"):
            send(server.url, events(index, ["weekly-2026-11-24"]))
    identities = [(event["run"]["runId"], event["eventType"], event["job"]["name"]) for event in taken]
    assert identities == 2 * [(event["run"]["runId"], event["eventType"], event["job"]["name"]) for event in exported(root)]
