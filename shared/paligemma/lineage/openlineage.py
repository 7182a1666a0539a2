"""Lineage as OpenLineage RunEvents (https://openlineage.io/spec/2-0-2/OpenLineage.json), for catalogues that speak it.

Every attempt becomes an OpenLineage run with a START and an end event, whose parent is the pipeline's run. Events are built
with OpenLineage's own client, so they follow the published schema.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import uuid
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

from paligemma.errors import InputError, PaliGemmaError
from paligemma.extras import how_to_install
from paligemma.lineage.diff import changes
from paligemma.lineage.index import Index
from paligemma.lineage.queries import by_hash, run_tasks, worst
from paligemma.storage.location import SCHEME

if TYPE_CHECKING:
    from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, Run, RunEvent
    from openlineage.client.generated.base import JobFacet, RunFacet

Facet = TypeVar("Facet")

_ENDS = {"succeeded": "COMPLETE", "failed": "FAIL", "preempted": "ABORT"}
_SENDING_SECONDS = 30.0


class NotAcceptedError(PaliGemmaError):
    """The receiver did not accept an event. The same command sends all events again, which is safe to repeat."""

    exit_code = 4


def events(index: Index, runs: list[str], namespace: str = "paligemma", repository: str = "") -> Iterator[RunEvent]:
    """The events of some runs, in order of time within each run.

    Args:
        index: the index.
        runs: names of the runs.
        namespace: namespace of the jobs.
        repository: web address of the source code; empty: events name only the commit.

    Raises:
        InputError: a run does not exist, or the client is not installed.
    """
    _client()
    for run in runs:
        tasks = run_tasks(index, run)
        numbers = index.ask("SELECT id FROM records WHERE run = ? ORDER BY started, path", run)
        records = [index.body(number) for (number,) in numbers]
        writer = _Writer(index, run, namespace, repository)
        found = [writer.of_pipeline("START", min(record["started"] for record in records))]
        by_attempt: dict[tuple[str, str], list[dict]] = {}
        for record in records:
            by_attempt.setdefault((record["task"], record["attempt"]), []).append(record)
        for of_attempt in by_attempt.values():
            ended = [record for record in of_attempt if record["status"] != "running"]
            found.append(writer.of_attempt("START", ended or of_attempt))
            if ended:
                found.append(writer.of_attempt(_ENDS[worst(record["status"] for record in ended)], ended))
        status = worst(task["status"] for task in tasks)
        if status in _ENDS:
            last = max(record["finished"] or record["started"] for record in records)
            found.append(writer.of_pipeline(_ENDS[status], last))
        yield from sorted(found, key=lambda event: event.eventTime)


def to_line(event: RunEvent) -> str:
    """An event as a line of JSON."""
    from openlineage.client.serde import Serde

    return json.dumps(Serde.to_dict(event), sort_keys=True)


def send(url: str, sent: Iterator[RunEvent]) -> int:
    """Posts events to the receiver at `url`, with or without its usual path `/api/v1/lineage`; returns how many.

    Takes the receiver's key from `OPENLINEAGE_API_KEY`.

    Raises:
        NotAcceptedError: the receiver did not accept an event.
    """
    _client()
    import requests
    from openlineage.client import OpenLineageClient
    from openlineage.client.transport.http import ApiKeyTokenProvider, HttpConfig, HttpTransport, TokenProvider

    url = url.rstrip("/").removesuffix("/api/v1/lineage")
    key = os.environ.get("OPENLINEAGE_API_KEY")
    auth = ApiKeyTokenProvider({"api_key": key}) if key else TokenProvider({})
    client = OpenLineageClient(transport=HttpTransport(HttpConfig(url=url, timeout=_SENDING_SECONDS, auth=auth)))
    count = 0
    for event in sent:
        try:
            client.emit(event)
        except requests.RequestException as error:
            raise NotAcceptedError(
                f"The receiver took {count} events, and then refused.", where=url, expected="status 2xx", fix=str(error)
            ) from None
        count += 1
    return count


def _client() -> None:
    try:
        import openlineage.client  # noqa: F401
    except ImportError:
        raise InputError("OpenLineage's client is not installed.", fix=how_to_install("lineage")) from None


class _Writer:
    """Makes the events of one run."""

    def __init__(self, index: Index, run: str, namespace: str, repository: str) -> None:
        self._index, self._run, self._namespace, self._repository = index, run, namespace, repository.rstrip("/")
        self._pipeline = re.sub(r"(-\d+)+$", "", run) or run  # KFP appends the run's time to the pipeline's name
        version = importlib.metadata.version("paligemma")
        self._producer = self._repository or f"urn:paligemma:{version}"

    def of_pipeline(self, kind: str, time: str) -> RunEvent:
        from openlineage.client.event_v2 import Job, Run, RunEvent, RunState
        from openlineage.client.generated.job_type_job import JobTypeJobFacet

        kind_of_job = self._facet(JobTypeJobFacet, processingType="BATCH", integration="PALIGEMMA", jobType="DAG")
        return RunEvent(
            eventType=RunState[kind],
            eventTime=time,
            run=Run(runId=_identity(self._run)),
            job=Job(namespace=self._namespace, name=self._pipeline, facets={"jobType": kind_of_job}),
            producer=self._producer,
        )

    def of_attempt(self, kind: str, records: list[dict]) -> RunEvent:
        """The event of an attempt, from its records: one for each artifact; the last is the step's own."""
        from openlineage.client.event_v2 import RunEvent, RunState

        ended, last = kind != "START", records[-1]
        own = {record["sha256"] for record in records}
        inputs = {
            (one["uri"], one["sha256"]): one for record in records for one in record["inputs"] if one["record"] not in own
        }
        return RunEvent(
            eventType=RunState[kind],
            eventTime=(last["finished"] if ended else None) or last["started"],
            run=self._run_of(last, ended),
            job=self._job_of(last),
            inputs=[self._input(one) for one in inputs.values()],
            outputs=[self._output(record) for record in records if record["artifact"]] if ended else [],
            producer=self._producer,
        )

    def _run_of(self, record: dict, ended: bool) -> Run:
        from openlineage.client.event_v2 import Run
        from openlineage.client.generated import error_message_run, execution_parameters_run, parent_run, tags_run

        named = {"record": record["sha256"], "image": record["producer"]["image"], "device": record["producer"]["device"]}
        named["cached from"] = record["cached_from"] and record["cached_from"]["run"]
        named |= record["metrics"]
        tag = tags_run.TagsRunFacetFields
        facets: dict[str, RunFacet] = {
            "parent": self._facet(
                parent_run.ParentRunFacet,
                run=parent_run.Run(runId=_identity(self._run)),
                job=parent_run.Job(namespace=self._namespace, name=self._pipeline),
            ),
            "executionParameters": self._facet(
                execution_parameters_run.ExecutionParametersRunFacet,
                parameters=[
                    execution_parameters_run.ExecutionParameter(key=change["key"], value=_text(change["after"]))
                    for change in changes({}, record["producer"]["parameters"])
                ],
            ),
        }
        if ended:
            facets["tags"] = self._facet(
                tags_run.TagsRunFacet,
                tags=[
                    tag(key=key, value=_text(value), source="PALIGEMMA") for key, value in named.items() if value is not None
                ],
            )
        if record["error"]:
            facets["errorMessage"] = self._facet(
                error_message_run.ErrorMessageRunFacet,
                message=f"{record['error']['kind']}: {record['error']['message']}",
                programmingLanguage="python",
            )
        return Run(runId=_identity(f"{self._run}/{record['task']}/{record['attempt']}"), facets=facets)

    def _job_of(self, record: dict) -> Job:
        from openlineage.client.event_v2 import Job
        from openlineage.client.generated.job_type_job import JobTypeJobFacet
        from openlineage.client.generated.source_code_location_job import SourceCodeLocationJobFacet

        producer = record["producer"]
        facets: dict[str, JobFacet] = {
            "jobType": self._facet(JobTypeJobFacet, processingType="BATCH", integration="PALIGEMMA", jobType="TASK")
        }
        if producer["git_sha"]:
            path = f"components/{producer['component']}"
            at = (
                f"{self._repository}/tree/{producer['git_sha']}/{path}"
                if self._repository
                else f"urn:git:{producer['git_sha']}"
            )
            facets["sourceCodeLocation"] = self._facet(
                SourceCodeLocationJobFacet,
                type="git", url=at, repoUrl=self._repository or None, path=path, version=producer["git_sha"],
            )  # fmt: skip
        return Job(namespace=self._namespace, name=f"{self._pipeline}.{record['task']}", facets=facets)

    def _input(self, one: dict) -> InputDataset:
        from openlineage.client.event_v2 import InputDataset
        from openlineage.client.generated.input_statistics_input_dataset import InputStatisticsInputDatasetFacet

        maker = by_hash(self._index, one["record"]) if one["record"] else None
        made = maker["artifact"] if maker else None
        namespace, name = _dataset(one["uri"])
        of_input = {}
        if made:
            of_input["inputStatistics"] = self._facet(
                InputStatisticsInputDatasetFacet,
                rowCount=made["rows"], size=made["bytes"], fileCount=len(made["files"]),
            )  # fmt: skip
        return InputDataset(namespace=namespace, name=name, facets=self._version(one["sha256"]), inputFacets=of_input)

    def _output(self, record: dict) -> OutputDataset:
        from openlineage.client.event_v2 import OutputDataset
        from openlineage.client.generated.output_statistics_output_dataset import OutputStatisticsOutputDatasetFacet

        made = record["artifact"]
        namespace, name = _dataset(made["uri"])
        statistics = self._facet(
            OutputStatisticsOutputDatasetFacet,
            rowCount=made["rows"], size=made["bytes"], fileCount=len(made["files"]),
        )  # fmt: skip
        return OutputDataset(
            namespace=namespace,
            name=name,
            facets=self._version(made["tree_sha256"]),
            outputFacets={"outputStatistics": statistics},
        )

    def _version(self, sha256: str) -> dict:
        from openlineage.client.generated.dataset_version_dataset import DatasetVersionDatasetFacet

        return {"version": self._facet(DatasetVersionDatasetFacet, datasetVersion=sha256)}

    def _facet(self, kind: Callable[..., Facet], **fields: object) -> Facet:
        """A facet of ours. Their field `_producer` is an argument `producer`, as attrs has it and type checkers do not know."""
        return kind(producer=self._producer, **fields)


def _identity(name: str) -> str:
    """A UUID that is the same for every export of the same thing."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"paligemma:{name}"))


def _dataset(uri: str) -> tuple[str, str]:
    """Namespace and name of a dataset, by https://openlineage.io/docs/spec/naming."""
    if uri.startswith(SCHEME):
        bucket, _, name = uri.removeprefix(SCHEME).partition("/")
        return f"{SCHEME}{bucket}", name or "/"
    if "://" in uri:
        scheme, _, rest = uri.partition("://")
        host, _, name = rest.partition("/")
        return f"{scheme}://{host}", name or "/"
    return "file", uri


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
