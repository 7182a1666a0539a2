"""What Vertex AI is told of the server of a model: enough that an endpoint can be made of it."""

from __future__ import annotations

import re

import pytest

from components.publish.serving import parse_serving
from conftest import REPOSITORY
from paligemma.errors import InputError
from servers.vertex import MODEL_CONTAINER_SPEC, check_fields

WHOLE = """
image: pkg.dev/p/server
ports: [8080, 9090]
predict_route: /generate
health_route: /ping
command: [python, -m, server]
args: ["--model={files}"]
env: {A: "1", B: 2}
shared_memory_mb: 16384
"""


def test_all_of_a_container_is_said() -> None:
    container = parse_serving(WHOLE, "x").container("gs://b/release")
    assert container == {
        "imageUri": "pkg.dev/p/server",
        "command": ["python", "-m", "server"],
        "args": ["--model=gs://b/release"],
        "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}],
        "ports": [{"containerPort": 8080}, {"containerPort": 9090}],
        "predictRoute": "/generate",
        "healthRoute": "/ping",
        "sharedMemorySizeMb": "16384",
    }
    check_fields(container, MODEL_CONTAINER_SPEC, "containerSpec")


def test_the_pages_example_is_one() -> None:
    page = (REPOSITORY / "components/publish/README.md").read_text()
    (example,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    container = parse_serving(example, "page").container("gs://b/release")
    assert {"name": "CKPT_PATH", "value": "gs://b/release/checkpoint.npz"} in container["env"]
    assert (container["ports"], container["predictRoute"], container["healthRoute"]) == (
        [{"containerPort": 8080}],
        "/predict",
        "/health",
    )
    check_fields(container, MODEL_CONTAINER_SPEC, "containerSpec")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("image: pkg.dev/p/server", "", "image: Field required"),
        ("ports: [8080, 9090]", "ports: []", "ports: "),
        ("ports: [8080, 9090]", "ports: [0]", "ports.0: "),
        ("ports: [8080, 9090]", "port: 8080", "did you mean 'ports'"),
        ("predict_route: /generate", "predict_route: generate", "predict_route: "),
        ("health_route: /ping", "", "health_route: Field required"),
        (WHOLE, "", "serving settings are missing"),
    ],
)
def test_what_no_endpoint_can_be_made_of_is_refused(old: str, new: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_serving(WHOLE.replace(old, new), "x")
    assert said in str(caught.value)
