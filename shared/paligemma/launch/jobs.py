"""The interface to a service that runs jobs: Vertex AI's custom jobs, or Kubeflow Trainer's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

State = Literal["running", "done", "failed"]


@dataclass(frozen=True)
class JobState:
    """The state of a job; `message` says why it failed."""

    state: State
    message: str = ""


class Jobs(Protocol):
    """A service that runs jobs. Calls may raise `BackendError` or `BackendUnavailableError`; `logs` says where logs are.

    We choose a job's name. `create` and `search` return the service's own id, which finds a job at once.
    """

    logs: str

    def search(self, name: str) -> str | None:
        """The last job with a name; None if there is none. A service's list may lag behind."""
        ...

    def find(self, job: str) -> JobState | None:
        """The state of a job; None if it is gone."""
        ...

    def create(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> str:
        """Creates a job; returns its id."""
        ...

    def adopt(self, job: str) -> None:
        """Takes over a job that an earlier attempt of this step made."""
        ...

    def remove(self, job: str) -> None:
        """Ends a job, so that another can take its name."""
        ...
