"""What `cloud-setup.sh` shows, does and takes away, with stand-ins for `gcloud` and `kubectl` that note what they are asked."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import REPOSITORY

SCRIPT = REPOSITORY / "pipelines/guides/cloud-setup.sh"
EVERYTHING = {"POOLS": "l4 v5e-4 v5e-16", "HOSTS": "several", "SECRETS": "kaggle webhook"}
OWN = {"CONTEXT": "gke_p_z_c", "NAMESPACE": "vision-team", "HOSTS": "several"}
VARIANTS: dict[str, tuple[list[str], dict[str, str]]] = {
    "gke": (["gke"], {}),
    "gke with everything": (["gke"], EVERYTHING),
    "gke without what is inside the cluster": (["gke", "--cloud-only"], EVERYTHING),
    "a cluster for several users": (["gke", "--multi-user"], {"NAMESPACE": "vision-team"}),
    "a cluster of one's own, for several users": (["gke", "--own-cluster", "--multi-user"], OWN),
    "vertex": (["vertex"], {"SECRETS": "kaggle webhook"}),
}
STAND_IN = """#!/usr/bin/env bash
echo "$(basename "$0") $*" >>"$ASKED"
[[ "$*" == *" describe "* || "$*" == *"kubectl get "* || "$*" == "get "* ]] && exit "${THERE:-1}"
[[ -n "${REFUSES:-}" && "$*" == *"$REFUSES"* ]] && exit 1
exit 0
"""


class Cloud:
    """The script, and what it has asked the cloud."""

    def __init__(self, folder: Path) -> None:
        self._asked = folder / "asked"
        self._programs = folder / "bin"
        self._programs.mkdir()
        for name in ("gcloud", "kubectl"):
            (self._programs / name).write_text(STAND_IN)
            (self._programs / name).chmod(0o755)

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
        """Runs it as somebody does who has a project and a bucket."""
        self._asked.write_text("")
        path = f"{self._programs}:{os.environ['PATH']}"
        environment = {"PATH": path, "ASKED": str(self._asked), "PROJECT": "my-project", "BUCKET": "my-bucket", **variables}
        command = ["bash", str(SCRIPT), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    def shown(self, *arguments: str, **variables: str) -> list[str]:
        """The commands that it shows, without reasons."""
        done = self.run(*arguments, **variables)
        assert done.returncode == 0, done.stderr
        lines = [line for line in done.stdout.splitlines() if line.startswith(("gcloud ", "kubectl "))]
        return [" ".join(shlex.split(line)) for line in lines]

    @property
    def asked(self) -> list[str]:
        """What the stand-ins were asked, but for what only looks."""
        lines = self._asked.read_text().splitlines()
        return [line for line in lines if not re.search(r" describe |^kubectl get ", line)]


@pytest.fixture
def cloud(tmp_path: Path) -> Cloud:
    return Cloud(tmp_path)


def opposite(command: str) -> str | None:
    """What takes away what a command makes, as far as names go; none of one that makes nothing."""
    rules: list[tuple[str, Callable[[re.Match], str]]] = [
        (r"gcloud storage buckets create (\S+)", lambda m: f"gcloud storage rm --recursive {m[1]}"),
        (r"gcloud iam service-accounts create (\S+)", lambda m: f"gcloud iam service-accounts delete {m[1]}@my-project.iam"),
        (r"gcloud (.*) create (\S+) (--cluster=\S+ )?.*", lambda m: f"gcloud {m[1]} delete {m[2]} {m[3] or ''}"),
        (r"(gcloud .*)add-iam-policy-binding (.*)", lambda m: f"{m[1]}remove-iam-policy-binding {m[2]}"),
        (r"kubectl apply (?:--server-side )?(-[kf] \S+)", lambda m: f"kubectl delete {m[1]} "),
        (r"kubectl create (\S+ \S+ --namespace=\S+)", lambda m: f"kubectl delete {m[1]} "),
        (r"kubectl annotate (.*) --overwrite (\S+)=\S+", lambda m: f"kubectl annotate {m[1]} {m[2]}-"),
    ]
    return next((make(found) for pattern, make in rules if (found := re.match(pattern, command))), None)


MAKES_NOTHING = ("gcloud services enable", "gcloud container clusters get-credentials", "kubectl wait", "kubectl patch")
MAKES_NOTHING += ("kubectl rollout restart", "kubectl config use-context")


@pytest.mark.parametrize("variant", VARIANTS)
def test_without_apply_nothing_is_asked_of_the_cloud(cloud: Cloud, variant: str) -> None:
    flags, variables = VARIANTS[variant]
    for way in ([], ["--undo"], ["--undo", "--with-bucket"]):
        assert "Nothing was done" in cloud.run(*flags, *way, **variables).stdout
        assert cloud.asked == []


@pytest.mark.parametrize("variant", VARIANTS)
def test_all_that_is_made_is_taken_away_in_the_opposite_order(cloud: Cloud, variant: str) -> None:
    flags, variables = VARIANTS[variant]
    made = cloud.shown(*flags, **variables)
    taken = cloud.shown(*flags, "--undo", "--with-bucket", **variables)
    places = []
    for command in made:
        wanted = opposite(command)
        assert (wanted is None) == command.startswith(MAKES_NOTHING), command
        if wanted:
            (place,) = [number for number, undo in enumerate(taken) if f"{undo} ".startswith(wanted.strip())]
            places.append(place)
    assert places == sorted(places, reverse=True)
    assert len(places) == len([undo for undo in taken if not undo.startswith(MAKES_NOTHING)])


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_shown_is_what_is_done(cloud: Cloud, variant: str) -> None:
    flags, variables = VARIANTS[variant]
    for way, there in (([], "1"), (["--undo", "--with-bucket"], "0")):
        shown = cloud.shown(*flags, *way, **variables)
        done = cloud.run(*flags, *way, "--apply", THERE=there, **variables)
        assert done.returncode == 0, done.stderr
        assert cloud.asked == shown


def test_what_is_there_is_left_as_it_is(cloud: Cloud) -> None:
    assert cloud.run("gke", "--apply", THERE="0", **EVERYTHING).returncode == 0
    assert [line for line in cloud.asked if re.search(r" create ", line)] == []


def test_the_bucket_stays_unless_its_end_is_asked_for(cloud: Cloud) -> None:
    for backend in ("gke", "vertex"):
        assert not [line for line in cloud.shown(backend, "--undo") if "storage rm" in line]
        assert cloud.shown(backend, "--undo", "--with-bucket")[-1] == "gcloud storage rm --recursive gs://my-bucket"


def test_a_command_that_fails_ends_the_making(cloud: Cloud) -> None:
    done = cloud.run("vertex", "--apply", REFUSES="repositories create")
    assert done.returncode != 0
    assert "repositories create" in cloud.asked[-1]


def test_taking_away_goes_on_after_a_failure_and_says_so(cloud: Cloud) -> None:
    done = cloud.run("vertex", "--undo", "--apply", THERE="0", REFUSES="repositories delete")
    assert done.returncode == 1
    assert "1 commands failed" in done.stdout
    assert cloud.asked[-1].startswith("gcloud artifacts repositories delete")


def test_when_the_cluster_cannot_be_reached_no_other_one_is_touched(cloud: Cloud) -> None:
    cloud.run("gke", "--undo", "--apply", THERE="0", REFUSES="get-credentials", **EVERYTHING)
    assert [line for line in cloud.asked if line.startswith("kubectl")] == []
    cloud.run("gke", "--apply", REFUSES="get-credentials", **EVERYTHING)
    assert [line for line in cloud.asked if line.startswith("kubectl")] == []


@pytest.mark.parametrize(
    ("arguments", "variables", "said"),
    [
        ([], {}, "say where: gke or vertex"),
        (["gke", "--aply"], {}, "'--aply'"),
        (["gke"], {"PROJECT": ""}, "set PROJECT"),
        (["gke"], {"BUCKET": "b; rm -r ~"}, "set BUCKET"),
        (["gke"], {"NAMESPACE": "mine"}, "not in mine"),
        (["gke", "--multi-user"], {}, "set NAMESPACE"),
        (["gke", "--own-cluster"], {}, "set CONTEXT"),
        (["gke"], {"POOLS": "h100"}, "there is no pool 'h100'"),
        (["gke"], {"HOSTS": "2"}, "one or several"),
        (["gke", "--with-bucket"], {}, "for --undo"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_done(
    cloud: Cloud, arguments: list[str], variables: dict[str, str], said: str
) -> None:
    done = cloud.run(*arguments, "--apply", **variables)
    assert done.returncode == 2
    assert said in done.stderr
    assert cloud.asked == []


@pytest.mark.parametrize("guide", ["gke", "vertex"])
def test_a_guide_says_of_every_role_to_whom_and_why(cloud: Cloud, guide: str) -> None:
    text = (REPOSITORY / f"pipelines/guides/{guide}.md").read_text()
    given = {
        (found[1], found[2])
        for line in cloud.shown(guide, **EVERYTHING)
        if (found := re.search(r"--member=serviceAccount:(\S+) --role=(\S+)", line))
    }
    table = text[text.index("| account | role | on | why |") :].split("\n\n", 1)[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    assert all(len(row) == 4 and all(row) for row in rows)
    in_kubernetes = {"SERVICE_ACCOUNT": "kubeflow/pipeline-runner", "ml-pipeline-ui": "kubeflow/ml-pipeline-ui"}
    told = set()
    for account, role, *_ in rows:
        if account == "you":
            continue
        name = account.split("`")[1]
        if name in in_kubernetes:
            name = f"PROJECT.svc.id.goog[{in_kubernetes[name]}]"
        told |= {(name.replace("PROJECT", "my-project"), found) for found in re.findall(r"roles/[\w.]+", role)}
    assert told == given


def test_on_gke_nodes_may_pull_images_and_kfps_page_may_read_reports(cloud: Cloud) -> None:
    shown = cloud.shown("gke")
    made = next(number for number, line in enumerate(shown) if line.startswith("gcloud container clusters create"))
    nodes = "paligemma-nodes@my-project.iam.gserviceaccount.com"
    assert f"--service-account={nodes}" in shown[made]
    for role in ("roles/container.defaultNodeServiceAccount", "roles/artifactregistry.reader"):
        # Before there are nodes. https://cloud.google.com/kubernetes-engine/docs/how-to/service-accounts#default-gke-service-agent
        (number,) = [number for number, line in enumerate(shown) if f"--role={role}" in line]
        assert number < made
        assert f"--member=serviceAccount:{nodes}" in shown[number]
    for account in ("pipeline-runner", "ml-pipeline-ui"):
        assert any(f"svc.id.goog[kubeflow/{account}]" in line for line in shown)
        assert any(line.startswith(f"kubectl annotate serviceaccount {account} --namespace=kubeflow ") for line in shown)


def test_the_guides_commands_for_kubeflow_pipelines_are_the_scripts(cloud: Cloud) -> None:
    text = (REPOSITORY / "pipelines/guides/gke.md").read_text()
    for line in cloud.shown("gke"):
        if "manifests/kustomize" in line or "kubectl wait" in line or "--patch-file" in line:
            assert line.replace("2.17.0", "$KFP_VERSION") in text.replace('"', "")


def test_the_guides_commands_are_ones_that_the_script_takes(cloud: Cloud) -> None:
    found = [
        line
        for page in sorted((REPOSITORY / "pipelines/guides").glob("*.md"))
        for line in page.read_text().splitlines()
        if re.match(r"(\w+=\S+ |\w+=\"[^\"]*\" |\w+=\$\([^)]*\) )*pipelines/guides/cloud-setup\.sh", line)
    ]
    assert len(found) > 8
    for line in found:
        before, _, flags = line.partition("pipelines/guides/cloud-setup.sh ")
        variables = dict(word.split("=", 1) for word in shlex.split(re.sub(r"\$\([^)]*\)", "context", before)))
        if "--multi-user" in flags:
            variables["NAMESPACE"] = "vision-team"
        assert cloud.run(*flags.replace("--apply", "").split(), **variables).returncode == 0, line
