"""`paligemma releases` of what is no registry, or an empty one."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from paligemma.errors import InputError
from pipelines.cli import app


def test_a_folder_that_is_no_registry_is_refused_and_an_empty_one_says_so(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["releases", "--registry", str(tmp_path / "nowhere")])
    assert isinstance(done.exception, InputError)
    assert "There is no registry" in str(done.exception)
    (tmp_path / "registry/releases").mkdir(parents=True)
    done = CliRunner().invoke(app, ["releases", "--registry", str(tmp_path / "registry")])
    assert (done.exit_code, done.output) == (0, f"no release is finished in {tmp_path / 'registry'}\n")
