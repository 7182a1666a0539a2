"""JSON from outside: every value that Python's own reader takes and a caller does not expect is one of our errors."""

from __future__ import annotations

import json
import os
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from paligemma.errors import DamagedError, InputError
from paligemma.foreign_json import MOST_DEPTH, parse_json, parse_model, read_json, read_json_lines


def parse(data: bytes | str, **options):
    return parse_json(data, "here", "The file", **options)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"[" * 100_000, "nested deeper"),
        (b'{"a":' * 100_000, "nested deeper"),
        (b'{"a": "]]]]]]", "b": ' + b"[" * 70 + b"]" * 70 + b"}", "nested deeper"),
        (b'{"a": "\\"[", "b": ' + b"[" * 65 + b"]" * 65 + b"}", "nested deeper"),
        (b'{"a": 1' + b"0" * 30 + b"}", "64 bits"),
        (b'{"a": -9223372036854775809}', "64 bits"),
        (b'{"a": 1' + b"0" * 400 + b"}", "64 bits"),
        (b'{"a": 1' + b"0" * 10_000 + b"}", "64 bits"),
        (b'{"a": NaN}', "not finite"),
        (b'{"a": -Infinity}', "not finite"),
        (b'{"a": 1e999}', "not finite"),
        (b'{"a": 1, "a": 2}', "twice"),
        (b'{"a": {"b": 1, "\\u0062": 2}}', "twice"),
        (b'{"a": "\\ud800"}', "surrogate"),
        (b'{"\\udfff": 1}', "surrogate"),
        (b'{"a": "\xff"}', "not UTF-8"),
        ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
        (b"", "not JSON"),
        (b"\0", "not JSON"),
        (b"{} {}", "not JSON"),
        (b'"' + b'\\"' * 100_000, "not JSON"),
        (b'"\\', "not JSON"),
        (b"[1]", "it is a list"),
        (b"null", "it is null"),
        (b"true", "it is true or false"),
        (b"1", "it is a number"),
        (b'"a"', "it is a text"),
    ],
)
def test_what_a_caller_does_not_expect_is_damage(data, why):
    with pytest.raises(DamagedError, match=why) as caught:
        parse(data)
    assert "where:    here" in str(caught.value)
    assert len(str(caught.value)) < 400


def test_the_caller_says_whose_fault_it_is_and_what_to_do():
    with pytest.raises(InputError, match="to do:    fetch it again"):
        parse(b"[", error=InputError, fix="fetch it again")


def test_values_within_the_limits_are_taken_as_they_are():
    deep: object = 1
    for _ in range(MOST_DEPTH):
        deep = [deep]
    value = {"deep": deep, "brackets": "[{" * 1000, "most": 2**63 - 1, "least": -(2**63), "smile": "\U0001f600", "small": 1e-9}
    value["deep"] = deep[0]  # the object around it is a level too
    assert parse(json.dumps(value)) == value
    assert parse("\ufeff" + json.dumps(value, ensure_ascii=False)) == value
    assert parse(b"[1]", kind=list) == [1]
    assert parse(b"null", kind=object) is None


def test_our_own_figures_may_be_infinite_where_the_caller_says_so():
    assert parse(b'{"loss": Infinity}', nonfinite=True) == {"loss": float("inf")}


def test_a_text_larger_than_asked_for_is_refused():
    with pytest.raises(DamagedError, match="larger than 10 bytes"):
        parse(b'{"a": "bcdefgh"}', most=10)


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.binary(max_size=60), st.text('[]{}",:\\u0d8e1-.NaInfity', max_size=60)))
def test_any_bytes_are_a_value_that_can_be_written_again_or_damage(data):
    try:
        value = parse(data, kind=object)
    except DamagedError:
        return
    json.dumps(value, allow_nan=False, ensure_ascii=False).encode()


@settings(max_examples=100, deadline=None)
@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**63), 2**63 - 1)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
        max_leaves=30,
    )
)
def test_what_we_write_is_read_again(value):
    assert parse(json.dumps(value), kind=object) == value
    assert parse(json.dumps(value, ensure_ascii=False), kind=object) == value


def _fifo(path):
    os.mkfifo(path)


def _device(path):
    path.symlink_to("/dev/zero")


def _dangling(path):
    path.symlink_to("nowhere")


def _loop(path):
    path.symlink_to(path.name)


def _folder(path):
    path.mkdir()


def _socket(path):
    server = socket.socket(socket.AF_UNIX)
    server.bind(os.path.relpath(path))  # the whole path may be longer than an address can be
    server.close()


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (_fifo, "it is a FIFO, not a file"),
        (_device, "it is a device, not a file"),
        (_folder, "it is a folder, not a file"),
        (_socket, "it is a socket, not a file"),
        (_dangling, "it is not there"),
        (_loop, "symbolic links"),
        (lambda path: None, "it is not there"),
    ],
)
def test_what_is_no_file_neither_hangs_nor_is_read(make, why, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "value.json"
    make(path)
    for read in (read_json, lambda *args: list(read_json_lines(*args))):
        with pytest.raises(DamagedError, match=why):
            read(path, "The file")


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "x" * 300, "a/" * 3000 + "b"])
def test_a_name_that_no_file_can_have_is_damage(name):
    with pytest.raises(DamagedError, match="cannot be read"):
        read_json(name, "The file")


def test_a_file_is_never_read_beyond_its_limit(tmp_path):
    path = tmp_path / "value.json"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # a hole, which would not fit into memory
    with pytest.raises(DamagedError, match="larger than 100 bytes"):
        read_json(path, "The file", most=100)
    with pytest.raises(DamagedError, match="line 1: it is larger than 100 bytes"):
        list(read_json_lines(path, "The file", most=100))


def test_lines_are_read_up_to_the_first_that_is_wrong(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n\n  \r\n{"a": 2}\r\n{"a": NaN}\n{"a": 3}')
    lines = read_json_lines(path, "The list of rows")
    assert [next(lines), next(lines)] == [{"a": 1}, {"a": 2}]
    with pytest.raises(DamagedError, match="The list of rows cannot be read: line 5: a number in it is not finite"):
        next(lines)


def test_an_object_of_other_fields_is_damage_in_one_line():
    class Pair(BaseModel):
        left: int
        right: int

    assert parse_model(b'{"left": 1, "right": 2}', "here", Pair, "The pair") == Pair(left=1, right=2)
    with pytest.raises(DamagedError, match=r"The pair is wrong: right: Field required\.\n  where:    here$"):
        parse_model(b'{"left": 1}', "here", Pair, "The pair")
