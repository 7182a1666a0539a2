"""The README's commands exist as they are written."""

from __future__ import annotations

import re
import shlex

import typer

from conftest import REPOSITORY
from pipelines.cli import app

PAGES = [
    REPOSITORY / "README.md",
    REPOSITORY / "pipelines" / "presets" / "README.md",
    REPOSITORY / "shared" / "paligemma" / "data" / "convert" / "README.md",
    *sorted((REPOSITORY / "components").glob("*/README.md")),
]


def shell_lines() -> list[str]:
    blocks = [
        found for page in PAGES for found in re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    ]
    lines = [line for language, block in blocks if language in ("sh", "") for line in block.splitlines()]
    return [line for line in lines if line.startswith((".venv/", "make "))]


def test_flags_and_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    lines = shell_lines()
    assert len(lines) > 14
    for line in lines:
        program, *words = shlex.split(re.sub(r"\$\([^)]*\)", "x", line), comments=True)
        if program == "make":
            assert words[0] in targets
            continue
        if words[:3] == ["-m", "pip", "install"]:  # see test_extras.py
            continue
        if program == ".venv/bin/paligemma":
            command = typer.main.get_command(app)
            while words and words[0] in getattr(command, "commands", {}):
                command = command.commands[words.pop(0)]
        else:
            assert words.pop(0) == "-m"
            module = __import__(words.pop(0), fromlist=["run"])
            alone = typer.Typer(add_completion=False)
            alone.command()(module.run)
            command = typer.main.get_command(alone)
        flags = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        assert {word for word in words if word.startswith("--")} <= flags, line


def test_linked_files_exist() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert target.startswith("https://") or (page.parent / target).exists(), target


def test_on_gke_nodes_may_pull_images_and_kfps_page_may_read_reports() -> None:
    text = (REPOSITORY / "README.md").read_text()
    guide = text[text.index("## Schedule it on GKE") : text.index("## Schedule it on Vertex")]
    lines = guide.splitlines()
    made = next(number for number, line in enumerate(lines) if line.startswith("gcloud container clusters create"))
    for role in ("roles/container.defaultNodeServiceAccount", "roles/artifactregistry.reader"):
        # Before there are nodes. https://cloud.google.com/kubernetes-engine/docs/how-to/service-accounts#default-gke-service-agent
        (number,) = [number for number, line in enumerate(lines) if f"--role={role}" in line]
        assert number < made
        assert "-compute@developer.gserviceaccount.com" in lines[number]
    for account in ("pipeline-runner", "ml-pipeline-ui"):
        assert f"svc.id.goog[kubeflow/{account}]" in guide
        assert f"kubectl annotate serviceaccount {account} --namespace=kubeflow iam.gke.io/gcp-service-account=" in guide


def test_what_we_rely_on_elsewhere_is_held_to_by_tests_that_exist() -> None:
    page = (REPOSITORY / "pipelines/README.md").read_text()
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| ")][2:]
    assert len(rows) > 25
    for what, where, tests in rows:
        assert where.strip(), what
        named = re.findall(r"`(tests/\S+?\.py)?(?:::(\w+))?`", tests)
        assert named, what
        file = ""
        for path, test in named:
            file = path or file
            assert (REPOSITORY / file).is_file(), file
            assert not test or f"def {test}(" in (REPOSITORY / file).read_text(), test
