"""Exported events against the JSON schemas that OpenLineage publishes: `make openlineage`.

The schemas are fetched from the addresses that events and facets name themselves by, as a catalogue would; or, without network,
read from the folder that $OPENLINEAGE_SPEC names: `website/static/spec` of a checkout of github.com/OpenLineage/OpenLineage.
"""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from lineage_runs import at_place, make_run, make_step
from referencing import Registry, Resource

from paligemma.artifacts.recording import attempt
from paligemma.errors import InputError, StoppedError
from paligemma.lineage.cache_hits import record_cached
from paligemma.lineage.index import Index
from paligemma.lineage.openlineage import events, to_line

SITE = "https://openlineage.io/spec/"
FOLDER = os.environ.get("OPENLINEAGE_SPEC")
ROWS = [("1.png", "one"), ("2.png", "two")]
FORMATS = ("date-time", "uri", "uuid")


@cache
def schema(address: str) -> dict:
    """What is published at an address, without its fragment."""
    assert address.startswith(SITE), address
    if FOLDER:
        return json.loads((Path(FOLDER) / address.removeprefix(SITE)).read_text())
    with urllib.request.urlopen(address, timeout=30) as answer:
        return json.load(answer)


def faults(value: object, address: str) -> list[str]:
    """What is wrong with a value, by the schema at an address with a fragment."""
    registry = Registry(retrieve=lambda uri: Resource.from_contents(schema(uri)))
    checker = Draft202012Validator.FORMAT_CHECKER
    assert set(FORMATS) <= checker.checkers.keys(), "a format would not be looked at"
    validator = Draft202012Validator({"$ref": address}, registry=registry, format_checker=checker)
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(value)]


def facets(value: object) -> Iterator[tuple[str, dict]]:
    """Every facet in an event, with its name."""
    if isinstance(value, list):
        for below in value:
            yield from facets(below)
    elif isinstance(value, dict):
        for name, below in value.items():
            if isinstance(below, dict) and "_schemaURL" in below:
                yield name, below
            yield from facets(below)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """Events of attempts that succeeded, were released, failed, were taken down, are under way, and were taken over."""
    folder = tmp_path_factory.mktemp("openlineage")
    (folder / "rows.jsonl").write_text("rows\n")
    root = folder / "root"
    made = make_run(root, "weekly-2026-11-24", ROWS, folder / "rows.jsonl", release=True)
    make_step(root, "reuse", "finetune", "finetune", "tuned-model", [("checkpoint", made["fetch"])])
    with Index(root) as index:
        record_cached(index, "reuse")
    for error in (InputError("The loss is not finite."), StoppedError("Stop.")):
        parameters = {"recipe": {"steps": 3, "none": None, "list": [1, 2]}}
        with (
            pytest.raises(type(error)),
            at_place("failed", type(error).__name__, str(root)),
            attempt("finetune", root / "x", parameters),
        ):
            raise error
    with at_place("under-way", "finetune", str(root)), attempt("finetune", root / "y", {}), Index(root) as index:
        runs = ["weekly-2026-11-24", "reuse", "failed", "under-way"]
        plain = [json.loads(to_line(event)) for event in events(index, runs)]
        linked = [json.loads(to_line(event)) for event in events(index, runs, repository="https://example.com/x")]
    return plain + linked


def test_every_event_is_of_the_published_schema(exported: list[dict]) -> None:
    assert {event["eventType"] for event in exported} == {"START", "COMPLETE", "FAIL", "ABORT"}
    assert {event["schemaURL"] for event in exported} == {SITE + "2-0-2/OpenLineage.json#/$defs/RunEvent"}
    for event in exported:
        assert faults(event, event["schemaURL"]) == [], event


def test_every_facet_is_of_the_schema_that_it_names(exported: list[dict]) -> None:
    seen = set()
    for event in exported:
        for name, facet in facets(event):
            seen.add(name)
            assert faults(facet, facet["_schemaURL"]) == [], facet
    assert seen == {
        "parent", "executionParameters", "tags", "errorMessage", "jobType", "sourceCodeLocation", "version", "inputStatistics",
        "outputStatistics",
    }  # fmt: skip


def test_what_is_wrong_is_seen(exported: list[dict]) -> None:
    event = exported[0]
    for broken in (
        event | {"eventTime": "yesterday"},
        event | {"eventType": "DONE"},
        event | {"producer": "no address"},
        event | {"run": event["run"] | {"runId": "7"}},
        {key: value for key, value in event.items() if key != "job"},
    ):
        assert faults(broken, event["schemaURL"]) != []
    _, parent = next(found for found in facets(exported) if found[0] == "parent")
    assert faults({**parent, "job": {}}, parent["_schemaURL"]) != []
