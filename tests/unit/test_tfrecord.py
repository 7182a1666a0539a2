"""Random access to TFRecord shards, and what is said of damaged ones."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import SmallData
from paligemma.data.images import load_image
from paligemma.data.records import open_records
from paligemma.data.tf_dataset import import_tensorflow
from paligemma.data.tfrecord import RowReader, TFRecordFile, masked_crc32c
from paligemma.errors import DamagedError
from paligemma.storage.cache import cache_folder


def write(path: Path, payloads: list[bytes]) -> Path:
    with import_tensorflow().io.TFRecordWriter(str(path)) as writer:
        for payload in payloads:
            writer.write(payload)
    return path


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """Three records of 5, 0 and 300 bytes; they begin at byte 0, 21 and 37, and the file ends at 353."""
    return write(tmp_path / "a.tfrecord", [b"first", b"", bytes(range(250)) + b"x" * 50])


def change(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


@given(payloads=st.lists(st.binary(max_size=40), max_size=8), data=st.data())
def test_what_tensorflow_writes_is_read_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, payloads: list[bytes], data: st.DataObject
) -> None:
    file = TFRecordFile(write(tmp_path_factory.mktemp("shard") / "a", payloads), len(payloads), "")
    for row in data.draw(st.permutations(range(len(payloads)))):
        assert file.read(row) == payloads[row]


def test_the_checksum_is_that_of_the_format() -> None:
    # 0xE3069283 is the published check value of crc32c; masked: rotated right by 15 bits, plus 0xA282EAD8.
    rotated = (0xE3069283 >> 15) | (0xE3069283 << 17) & 0xFFFFFFFF
    assert masked_crc32c(b"123456789") == (rotated + 0xA282EAD8) % 2**32


@pytest.mark.parametrize(("byte", "row"), [(0, 0), (9, 0), (21, 1), (44, 2)])
def test_a_damaged_length_is_found_before_it_is_believed(shard: Path, byte: int, row: int) -> None:
    change(shard, byte)
    with pytest.raises(DamagedError, match=rf"length does not match(?s:.)*a\.tfrecord, row {row}, byte {(0, 21, 37)[row]}\n"):
        TFRecordFile(shard, 3, "run prepare_data again").read(0)


@pytest.mark.parametrize("byte", [12, 16, 17, 20])
def test_a_damaged_payload_or_checksum_is_found_when_its_row_is_read(shard: Path, byte: int) -> None:
    change(shard, byte)
    file = TFRecordFile(shard, 3, "run prepare_data again")
    assert file.read(1) == b""
    with pytest.raises(
        DamagedError, match=r"payload does not match(?s:.)*a\.tfrecord, row 0, byte 0\n.*run prepare_data again"
    ):
        file.read(0)


@pytest.mark.parametrize(
    ("size", "message"),
    [(0, "before it.*row 0"), (25, "before it.*row 1, byte 21"), (37, "before it.*row 2"), (352, "within it.*row 2, byte 37")],
)
def test_a_short_file_is_found_at_the_first_read(shard: Path, size: int, message: str) -> None:
    os.truncate(shard, size)
    with pytest.raises(DamagedError, match=f"(?s){message}"):
        TFRecordFile(shard, 3, "").read(0)


def test_a_file_that_is_cut_short_while_it_is_used_is_an_error(shard: Path) -> None:
    file = TFRecordFile(shard, 3, "")
    assert file.read(0) == b"first"
    os.truncate(shard, 100)
    with pytest.raises(DamagedError, match=r"(?s)ends within it.*row 2, byte 37"):
        file.read(2)
    shard.unlink()
    with pytest.raises(DamagedError, match="cannot be opened"):
        file.read(0)


def test_more_rows_than_were_written_are_an_error(shard: Path) -> None:
    with pytest.raises(DamagedError, match="316 bytes after the last row"):
        TFRecordFile(shard, 2, "").read(0)


def test_rows_are_what_evaluation_reads(records: Path) -> None:
    reader = RowReader(open_records(records))
    assert len(reader) == 21
    entries = [json.loads(line) for line in (records / "rows.jsonl").read_text().splitlines()]
    with ThreadPoolExecutor(4) as pool:  # the same file from many threads
        rows = list(pool.map(reader.read, range(21)))
    assert [row.row_id for row in rows] == [entry["row_id"] for entry in entries]
    assert [row.line for row in rows] == [entry["line"] for entry in entries]
    alone = RowReader(open_records(records))
    for number, row in enumerate(rows):
        np.testing.assert_array_equal(row.tokens, alone.read(number).tokens)
        np.testing.assert_array_equal(row.image, alone.read(number).image)
    with pytest.raises(IndexError):
        reader.read(21)


@pytest.fixture
def packed(small_data: SmallData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nine rows in gzip shards of 4, 4 and 1, each with a picture and its number as suffix, and an empty cache."""
    from components.prepare_data.__main__ import run

    monkeypatch.setenv("PALIGEMMA_CACHE", str(tmp_path / "cache"))
    rows = [{"image": small_data.add_image(f"{n}.png", n, 32), "prefix": "p", "suffix": str(n)} for n in range(9)]
    output = tmp_path / "packed"
    run(data=small_data.write(rows), checkpoint="embedded:tiny", output=output, compression="gzip", rows_per_shard=4)
    return output


def copies() -> list[Path]:
    return sorted((cache_folder() / "shards").glob("*.tfrecord"))


def test_gzip_shards_are_unpacked_once(packed: Path) -> None:
    reader = RowReader(open_records(packed))
    for row in (8, 0, 3, 4, 7):
        assert reader.read(row).suffix == str(row)
        np.testing.assert_array_equal(reader.read(row).image, load_image(packed.parent / "data" / f"{row}.png"))
    before = [path.stat().st_mtime_ns for path in copies()]
    assert len(before) == 3
    assert RowReader(open_records(packed)).read(5).suffix == "5"
    assert [path.stat().st_mtime_ns for path in copies()] == before


def test_a_damaged_gzip_shard_is_not_unpacked(packed: Path) -> None:
    change(sorted(packed.glob("*.gz"))[1], 200)
    with pytest.raises(DamagedError, match=r"not what was written(?s:.)*train-00001-of-00003"):
        RowReader(open_records(packed))
    assert len(copies()) == 1


def test_a_damaged_copy_is_named_with_what_to_do(packed: Path) -> None:
    reader = RowReader(open_records(packed))
    for copy in copies():
        change(copy, 100)
    with pytest.raises(DamagedError, match=r"row 0(?s:.)*remove this file: it is unpacked again"):
        reader.read(0)
