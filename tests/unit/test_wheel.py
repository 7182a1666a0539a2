"""The wheel: what it installs where, and that it runs from there as from a clone."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from conftest import REPOSITORY

PACKAGES = sysconfig.get_path("purelib")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as pip fills it, with our wheel alone."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def run(site: Path, code: str, *before: Path) -> subprocess.CompletedProcess:
    """Runs code where the folder is a place for packages, and no path leads to this clone; some folders come before it."""
    start = [
        "import site, sys",
        f"sys.path[:] = {[*map(str, before)]} + [place for place in sys.path if place.startswith(sys.base_prefix)]",
        f"site.addsitedir({str(site)!r})",
        f"sys.path.append({PACKAGES!r})",  # without the .pth file of the clone
        code,
    ]
    return subprocess.run([sys.executable, "-S", "-c", "\n".join(start)], cwd=site, capture_output=True, text=True, check=False)


def test_it_installs_no_package_under_a_name_that_others_use(site: Path) -> None:
    names = {path.name for path in site.iterdir() if not path.name.endswith(".dist-info")}
    assert names == {"paligemma", "paligemma_pipelines", "paligemma_pipelines.pth"}


def test_its_packages_are_found_as_in_a_clone(site: Path) -> None:
    done = run(
        site, "import components, pipelines, paligemma\nfor one in (components, pipelines, paligemma): print(one.__file__)"
    )
    expected = ["paligemma_pipelines/components", "paligemma_pipelines/pipelines", "paligemma"]
    assert done.stdout.splitlines() == [str(site / folder / "__init__.py") for folder in expected], done.stderr


@pytest.mark.parametrize("module", ["pipelines.cli", "components.finetune"])
def test_its_command_and_its_steps_start(site: Path, module: str) -> None:
    code = f"import runpy\nsys.argv[1:] = ['--help']\nrunpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
    done = run(site, code)
    assert done.returncode == 0, done.stderr
    assert "Usage: " in done.stdout


def test_its_presets_are_in_it(site: Path) -> None:
    done = run(site, "from components.presets import read_recipe\nprint(read_recipe('demo').recipe.optimizer)")
    assert done.stdout == "sgd\n", done.stderr


def test_a_strangers_package_that_hides_ours_is_named(site: Path, tmp_path: Path) -> None:
    (tmp_path / "components").mkdir()
    (tmp_path / "components/__init__.py").touch()
    done = run(site, "import pipelines.cli", tmp_path)
    assert done.returncode == 1
    assert f"another package called 'components' before ours, {site}/paligemma_pipelines/components/__init__.py" in done.stderr
    assert f": {tmp_path}/components/__init__.py. Install paligemma into an environment of its own" in done.stderr
