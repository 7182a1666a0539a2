"""What is asked of a service that runs jobs: Vertex AI's custom jobs, and Kubeflow Trainer's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

State = Literal["running", "done", "failed"]


@dataclass(frozen=True)
class JobState:
    """A job as its service describes it; `message` says why it failed."""

    state: State
    message: str = ""


class Jobs(Protocol):
    """A service that runs jobs. Each call raises `BackendError` or `BackendUnavailableError`; `logs` says where logs are.

    A name is ours; what `create` and `search` return is the service's own, by which it finds a job at once.
    """

    logs: str

    def search(self, name: str) -> str | None:
        """The last job of a name; a service's list may lag behind what it has made."""
        ...

    def find(self, job: str) -> JobState | None:
        """How a job is; None if it is gone."""
        ...

    def create(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> str:
        """Makes one."""
        ...

    def adopt(self, job: str) -> None:
        """Makes one that another attempt of this step had made this attempt's."""
        ...

    def remove(self, job: str) -> None:
        """Ends one, so that another may be made of its name."""
        ...
