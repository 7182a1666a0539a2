"""How Vertex AI serves a model: the container of an endpoint, as a YAML mapping.

https://cloud.google.com/vertex-ai/docs/predictions/custom-container-requirements
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from paligemma.errors import InputError, did_you_mean
from paligemma.yaml_text import parse_yaml

FILES = "{files}"
"""Placeholder in arguments and environment for the address of the release's files."""

Route = Annotated[str, StringConstraints(pattern=r"^/\S*$")]
Port = Annotated[int, Field(ge=1, le=65535)]


class Serving(BaseModel):
    """The container that serves a model. Unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    image: Annotated[str, StringConstraints(min_length=1)]
    ports: list[Port] = Field(min_length=1)
    predict_route: Route
    health_route: Route
    command: list[str] = []
    args: list[str] = []
    env: dict[str, str | int] = {}
    shared_memory_mb: Annotated[int, Field(ge=0)] = 0

    def container(self, files: str) -> dict:
        """A ModelContainerSpec of Vertex AI's API, for a release with files at this address."""
        spec = {
            "imageUri": self.image,
            "command": self.command,
            "args": [word.replace(FILES, files) for word in self.args],
            "env": [{"name": name, "value": str(value).replace(FILES, files)} for name, value in self.env.items()],
            "ports": [{"containerPort": port} for port in self.ports],
            "predictRoute": self.predict_route,
            "healthRoute": self.health_route,
            "sharedMemorySizeMb": str(self.shared_memory_mb or ""),
        }
        return {name: value for name, value in spec.items() if value}


def parse_serving(text: str, where: object) -> Serving:
    """Parses a serving specification.

    Raises:
        InputError: a key is unknown, missing, or has a wrong type; names the key.
    """
    values = parse_yaml(text, where, "The serving settings")
    if not isinstance(values, dict):
        raise InputError("The serving settings are missing.", where=where, expected="image, ports, predict_route, health_route")
    for name in values:
        if name not in Serving.model_fields:
            raise InputError(f"There is no key {name!r}.", where=where, fix=did_you_mean(str(name), Serving.model_fields))
    try:
        return Serving.model_validate(values)
    except ValidationError as error:
        fault = error.errors()[0]
        key = ".".join(map(str, fault["loc"]))
        raise InputError(
            f"{key}: {fault['msg']}.",
            where=where,
            expected="what the image's own page says: Vertex AI sends it requests there, and asks there whether it lives",
        ) from None
