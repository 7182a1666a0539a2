"""Whatever text comes from outside, a name that is taken stays below the folder that it is joined to."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from paligemma import safe_names
from paligemma.errors import DamagedError, InputError

BAD_PATHS = [
    "", "/", "/home/x", "..", "../x", "a/../b", "a/..", ".", "./a", "a/./b", "a//b", "a/", "//host/x", "C:", "c:/x", "C:\\x",
    "a\\b", "a\0b", "a\nb", "a\x1b[2Jb", "a\x7f", "a\x9b", "a\u2028b", "a\u202eb", "\ud800", "x" * 256, "a/" * 600 + "a",
    "gs://bucket/x", "file:///etc/passwd",
]  # fmt: skip
GOOD_PATHS = ["a", "a/b", "a b.txt", ".hidden", "...", "..a", "a..", "train-00000-of-00001.tfrecord", "ä/漢字", "x" * 255]
TYPES = [
    (safe_names.RelativePath, safe_names.parse_relative_path),
    (safe_names.Sha256, safe_names.parse_sha256),
    (safe_names.RunName, safe_names.parse_run_name),
    (safe_names.VersionId, safe_names.parse_version_id),
    (safe_names.ReleaseVersion, safe_names.parse_release_version),
]
PIECES = st.sampled_from(["..", ".", "/", "\\", "a", "0", "C:", "\0", "\n", "~", "lineage", "gs:", "-", "_", "é", "\ud800"])
TEXTS = st.one_of(st.text(), st.lists(PIECES, max_size=8).map("".join), st.lists(PIECES, max_size=8).map("/".join))


@pytest.mark.parametrize("path", BAD_PATHS)
def test_what_could_leave_its_folder_is_no_path(path: str) -> None:
    with pytest.raises(DamagedError, match="A file's path cannot be used"):
        safe_names.parse_relative_path(path, "A file's path", error=DamagedError)


@pytest.mark.parametrize("path", GOOD_PATHS)
def test_paths_below_a_folder_are_taken_as_they_are(path: str) -> None:
    assert safe_names.parse_relative_path(path, "A file's path") == path


@pytest.mark.parametrize("value", [None, 1, 1.5, True, [], ["a"], {}, b"a"])
def test_what_is_no_text_is_no_name(value: object) -> None:
    for _, parse in TYPES:
        with pytest.raises(InputError, match="not a text"):
            parse(value, "A name")


@given(TEXTS)
def test_a_name_that_is_taken_stays_below_its_folder(text: str) -> None:
    for kind, parse in TYPES:
        model = type("Model", (BaseModel,), {"__annotations__": {"name": kind}})
        try:
            name = parse(text, "A name")
        except InputError:
            with pytest.raises(ValidationError):
                model(name=text)
            continue
        assert model(name=text).name == name == text
        folder = Path("/top/folder")
        joined = folder / name
        assert folder in joined.parents
        assert Path(*joined.parts[:3]) == folder
        assert ".." not in joined.parts
        assert joined.relative_to(folder).as_posix() == name  # and no two names are one file


def test_a_hash_is_64_digits_in_lower_case() -> None:
    assert safe_names.parse_sha256("0" * 63 + "f", "A hash") == "0" * 63 + "f"
    for bad in ("F" * 64, "0" * 63, "0" * 65, "0" * 64 + "\n", "../" + "0" * 61):
        with pytest.raises(InputError, match="A hash cannot be used"):
            safe_names.parse_sha256(bad, "A hash")


def test_a_message_about_a_name_has_no_control_characters() -> None:
    with pytest.raises(InputError) as caught:
        safe_names.parse_run_name("a\x1b]0;title\x07\u202e", "A run's name")
    assert all(letter.isprintable() or letter == "\n" for letter in str(caught.value))
    assert "\\x1b" in str(caught.value)
