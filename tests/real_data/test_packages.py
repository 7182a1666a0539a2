"""When a package cannot be had, the run says so in words, and does not pass."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from real_data.packages import EMOJI, GEOGRAPHY, PackageError, fetch


def test_a_client_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        PackageError, match=r"need the package kgeography-data.*apt-get.*There is no program apt-get: install it"
    ):
        fetch(GEOGRAPHY, tmp_path / "packages")


def test_a_client_that_fails_is_quoted(tmp_path: Path) -> None:
    refused = replace(EMOJI, fetch=("sh", "-c", "echo registry is down >&2; exit 7"))
    with pytest.raises(PackageError, match=r"(?s)emoji-datasource-twitter.*exit 7.*ended with 7:\nregistry is down"):
        fetch(refused, tmp_path)
    silent = replace(EMOJI, fetch=("true",))
    with pytest.raises(PackageError, match="left no file"):
        fetch(silent, tmp_path)


def test_another_file_is_an_error_where_the_version_is_pinned(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    command = ("sh", "-c", "echo else > emoji-datasource-twitter-16.0.0.tgz; echo else > kgeography-data_9.deb")
    with pytest.raises(PackageError, match="has the sha256"):
        fetch(replace(EMOJI, fetch=command), tmp_path)
    assert fetch(replace(GEOGRAPHY, fetch=command, refresh=()), tmp_path).name == "kgeography-data_9.deb"
    assert "Figures may differ" in caplog.text
