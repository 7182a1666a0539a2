"""Signatures of releases with the library model-signing: `make signing`."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from components.evaluate.__main__ import run as evaluate
from components.finetune.__main__ import run as finetune
from components.publish.__main__ import run as publish
from paligemma.errors import DamagedError, InputError
from paligemma.registry.signature import KEY_VARIABLE, sign, signer_of, verify_signature
from pipelines.cli import app

assert importlib.util.find_spec("model_signing"), "model-signing is not installed: run `make signing`"


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return make_keys(tmp_path, "key")


def make_keys(folder: Path, name: str) -> tuple[Path, Path]:
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    make = ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", private]
    subprocess.run(make, check=True, capture_output=True)
    subprocess.run(["openssl", "ec", "-in", private, "-pubout", "-out", public], check=True, capture_output=True)
    return private, public


@pytest.fixture
def folder(tmp_path: Path, keys: tuple[Path, Path]) -> Path:
    """A signed folder, to which the lineage record has come afterwards."""
    made = tmp_path / "release"
    (made / "big_vision").mkdir(parents=True)
    (made / "big_vision/checkpoint.npz").write_bytes(b"weights")
    (made / "manifest.json").write_text("{}")
    sign(made, keys[0])
    (made / "lineage.json").write_text("{}")
    return made


def test_what_was_signed_verifies_with_its_key_alone(folder: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    verify_signature(folder, keys[1])
    with pytest.raises(DamagedError, match="signature does not fit"):
        verify_signature(folder, make_keys(tmp_path, "other")[1])
    assert len(signer_of(keys[0])) == 64


@pytest.mark.parametrize("name", ["big_vision/checkpoint.npz", "manifest.json", "new.bin"])
def test_a_file_that_is_altered_or_added_does_not_fit(folder: Path, keys: tuple[Path, Path], name: str) -> None:
    (folder / name).write_bytes(b"Weights")
    with pytest.raises(DamagedError, match="signature does not fit"):
        verify_signature(folder, keys[1])


def test_what_is_no_key_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "x.pem").write_text("no key")
    with pytest.raises(InputError, match="signing key cannot be read") as caught:
        signer_of(tmp_path / "x.pem")
    assert KEY_VARIABLE in str(caught.value)
    with pytest.raises(InputError, match="public key cannot be read"):
        verify_signature(folder, tmp_path / "x.pem")


def test_a_release_is_signed_and_verified(records: Path, keys: tuple[Path, Path], tmp_path: Path, monkeypatch) -> None:
    tuned, evaluation, registry = (str(tmp_path / name) for name in ("tuned", "evaluation", "registry"))
    finetune(checkpoint="embedded:tiny", records=str(records), output=tuned, set_=["steps=1", "remat=none"])
    evaluate("embedded:tiny", str(records), evaluation, tuned=tuned, max_new_tokens=4)
    unsigned = publish("embedded:tiny", tuned, evaluation, registry)
    monkeypatch.setenv(KEY_VARIABLE, str(keys[0]))
    signed = publish("embedded:tiny", tuned, evaluation, registry, promote=False)
    assert signed != unsigned

    def verify(version: str, key: Path) -> Result:
        return CliRunner().invoke(app, ["verify", version, "--registry", registry, "--key", str(key)])

    assert "and signed with" in verify(signed, keys[1]).output
    assert isinstance(verify(signed, make_keys(tmp_path, "other")[1]).exception, DamagedError)
    assert isinstance(verify(unsigned, keys[1]).exception, DamagedError)
    (Path(registry) / "releases" / signed / "big_vision/config.json").write_text("{}")
    assert isinstance(verify(signed, keys[1]).exception, DamagedError)
