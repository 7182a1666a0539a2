"""The flags of commands that compile for a cluster or talk to one, in groups that the commands share."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from pipelines.backends.job import Backend, Job

Experiment = Annotated[str, typer.Option(help="Experiment in Kubeflow Pipelines that runs belong to.")]
ProfileName = Annotated[str, typer.Option(help="Machines that the steps run on: kfp-gpu-l4, vertex-cpu, ...")]
Project = Annotated[str, typer.Option(help="Google Cloud project.", show_default="none; needed for vertex")]
Region = Annotated[str, typer.Option(help="Region of Vertex AI.", show_default="none; needed for vertex")]


@dataclass(frozen=True)
class Server:
    """What runs pipelines, and where it is."""

    backend: Annotated[Literal["kfp", "vertex"], typer.Option(help="What runs it: Kubeflow Pipelines or Vertex AI.")]
    host: Annotated[str, typer.Option(help="Address of Kubeflow Pipelines.", show_default="none; needed for kfp")] = ""
    namespace: Annotated[str, typer.Option(help="Namespace in Kubeflow Pipelines.", show_default="none")] = ""
    project: Project = ""
    location: Region = ""

    def connect(self, experiment: str = "") -> Backend:
        """The server, ready to be asked.

        Args:
            experiment: experiment in Kubeflow Pipelines that runs belong to.

        Raises:
            InputError: its address is missing.
        """
        from pipelines.backends.connect import connect

        return connect(self.backend, self.host, self.namespace, experiment, self.project, self.location)


@dataclass(frozen=True)
class Tasks:
    """What a run's tasks may do, and at which price."""

    spot: Annotated[bool, typer.Option(help="Spot accelerators: cheaper, but they may be preempted at any time.")] = False
    kaggle_secret: Annotated[
        str,
        typer.Option(help="Name of the Secret Manager secret with kaggle.json, for kaggle:// sources.", show_default="none"),
    ] = ""
    webhook_secret: Annotated[
        str,
        typer.Option(
            help="Full name of the Secret Manager secret with the address for a message at the end.", show_default="none"
        ),
    ] = ""
    signing_secret: Annotated[
        str, typer.Option(help="Kubernetes secret whose key.pem signs releases; only for kfp.", show_default="none")
    ] = ""
    private_hosts: Annotated[
        str,
        typer.Option(
            help="Hosts of your network from which steps may fetch images and checkpoints, as images.corp,10.1.2.3.",
            show_default="none: only the internet",
        ),
    ] = ""
    service_account: Annotated[str, typer.Option(help="Service account of the steps.", show_default="the backend's")] = ""


@dataclass(frozen=True)
class Run:
    """What a server is to run: the DAG on a profile's machines, in these images, with these parameters."""

    profile: ProfileName
    images: Annotated[Path, typer.Option(help="digests.json of make images.")]
    parameters: Annotated[Path, typer.Option(help="YAML file of the pipeline's parameters.")]
    root: Annotated[
        str, typer.Option(help="gs:// prefix for the backend's own files.", show_default="runner, below artifact_root")
    ] = ""

    def job(self, name: str, server: Server, tasks: Tasks) -> Job:
        """The job of this name, compiled and checked; nothing is sent.

        Raises:
            InputError: a flag, an image or a parameter is wrong.
        """
        from pipelines.backends.connect import place_on
        from pipelines.backends.job import make_job

        place_task = place_on(
            server.backend, self.profile, self.images, project=server.project, location=server.location, **asdict(tasks)
        )
        return make_job(name, self.parameters, self.profile, place_task, tasks.service_account, self.root)
