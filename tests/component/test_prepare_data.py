"""prepare_data on plain paths."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from components.prepare_data.__main__ import run
from conftest import SmallData
from paligemma.artifacts.record import list_files, read_record
from paligemma.checkpoints.open_checkpoint import resolve_embedded
from paligemma.data.images import load_image, resize
from paligemma.data.records import open_records
from paligemma.data.stored_pictures import unpack_picture
from paligemma.data.tf_dataset import import_tensorflow
from paligemma.data.tfrecord import RowReader
from paligemma.data.tokenizer import Tokenizer
from paligemma.errors import InputError

TINY = Tokenizer(resolve_embedded("embedded:tiny") / "tokenizer.model")


def examples(folder: Path) -> list[dict]:
    """Every record, as plain values."""
    tf = import_tensorflow()
    opened = open_records(folder)
    compression = "GZIP" if opened.dataset.compression == "gzip" else None
    rows = []
    for data in tf.data.TFRecordDataset([str(path) for path in opened.shard_paths], compression).as_numpy_iterator():
        features = tf.train.Example.FromString(data).features.feature
        values = {key: list(f.bytes_list.value) or list(f.int64_list.value) for key, f in features.items()}
        rows.append({key: value if key == "tokens" else value[0] for key, value in values.items()})
    return rows


def json_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def rejects(folder: Path) -> list[tuple[int, str]]:
    return [(entry["line"], entry["code"]) for entry in json_lines(folder / "rejected.jsonl")]


@pytest.fixture
def prepare(small_data: SmallData, tmp_path: Path) -> Callable[..., Path]:
    """Prepares rows and returns the artifact's folder."""

    def call(rows: list, output: str = "records", **options) -> Path:
        options = {"checkpoint": "embedded:tiny", "max_reject_fraction": 1.0, **options}
        run(data=small_data.write(rows), output=tmp_path / output, **options)
        return tmp_path / output

    return call


def test_a_record_is_what_the_model_is_fed(small_data: SmallData, prepare) -> None:
    name = small_data.add_image("a.png", size=50)
    (row,) = examples(prepare([{"image": name, "prefix": "ocr", "suffix": "7 ♥"}]))
    assert row["tokens"] == [2, *TINY.encode("ocr"), *TINY.encode("\n"), *TINY.encode("7 ♥"), 1]
    assert row["prefix_length"] == len(TINY.prefix_ids("ocr"))
    assert row["suffix_length"] == len(TINY.suffix_ids("7 ♥"))
    stored = unpack_picture(row["image"], 32, "webp")
    assert np.abs(stored - resize(load_image(small_data.folder / name), 32)).max() <= 1
    assert (row["prefix"].decode(), row["suffix"].decode(), row["line"]) == ("ocr", "7 ♥", 1)


def test_bad_rows_are_counted_by_reason(small_data: SmallData, prepare) -> None:
    good = {"image": small_data.add_image("a.png"), "prefix": "p", "suffix": "s"}
    (small_data.folder / "text.png").write_text("not an image")
    Image.new("1", (10_000, 10_000)).save(small_data.folder / "bomb.png")
    folder = prepare(
        [
            good,
            b"{broken",
            {**good, "image": "none.png"},
            {**good, "image": "../a.png"},
            {**good, "image": "text.png"},
            {**good, "image": "bomb.png"},
            {**good, "suffix": ""},
            {**good, "suffix": "long " * 200},
            {"image": "a.png", "prefix": "p"},
            {**good, "prefix": 3},
            [],
            b"\xff",
            good,
        ]
    )
    codes = ["json_invalid", "image_missing", "image_path_unsafe", "image_unreadable", "image_too_large", "suffix_empty",
             "text_too_long", "key_missing", "type_wrong", "not_an_object", "encoding_invalid"]  # fmt: skip
    assert rejects(folder) == list(enumerate(codes, start=2))
    assert open_records(folder).dataset.rejected == dict.fromkeys(sorted(codes), 1)
    assert [row["line"] for row in examples(folder)] == [1, 13]
    page = (folder / "report.html").read_text()
    assert all(code in page for code in codes)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=400))
def test_every_line_is_a_record_or_a_reject_and_never_both(small_data: SmallData, tmp_path, data: bytes) -> None:
    good = json.dumps({"image": small_data.add_image("a.png"), "prefix": "p", "suffix": "s"}).encode()
    small_data.jsonl.write_bytes(good + b"\n" + data + b"\n" + good)
    lines = small_data.jsonl.read_bytes().split(b"\n")
    run(data=small_data.jsonl, checkpoint="embedded:tiny", output=tmp_path / "x", max_reject_fraction=1.0)
    kept = [row["line"] for row in examples(tmp_path / "x")]
    rejected = [line for line, _ in rejects(tmp_path / "x")]
    assert sorted(kept + rejected) == [number for number, line in enumerate(lines, 1) if line.strip()]


def test_too_many_rejects_fail_the_step_and_name_the_lines(small_data: SmallData, prepare, tmp_path: Path) -> None:
    good = {"image": small_data.add_image("a.png"), "prefix": "p", "suffix": "s"}
    with pytest.raises(InputError) as caught:
        prepare([good, b"{", good, b"["], max_reject_fraction=0.49)
    message = str(caught.value)
    assert "2 of 4 rows were rejected (2 json_invalid)" in message
    assert "line 2: json_invalid" in message
    assert "line 4: json_invalid" in message
    assert not (tmp_path / "records").exists()
    kept = (tmp_path / "records.rejected.jsonl").read_text().splitlines()
    assert [json.loads(line)["line"] for line in kept] == [2, 4]
    assert open_records(prepare([good, b"{", good, b"["], max_reject_fraction=0.5)).dataset.rows == 2


@pytest.mark.parametrize("rows", [[], [b"{"]])
def test_no_usable_row_fails_whatever_is_allowed(prepare, rows: list) -> None:
    with pytest.raises(InputError, match="at least one usable row"):
        prepare(rows)


def test_suffix_eos_survives_truncation(small_data: SmallData, prepare) -> None:
    row = {"image": small_data.add_image("a.png"), "prefix": "ocr", "suffix": "one two three four five six seven"}
    folder = prepare([row], over_long="truncate", max_text_tokens=10)
    (example,) = examples(folder)
    prefix = TINY.prefix_ids("ocr")
    assert len(example["tokens"]) == 10
    assert example["tokens"][: len(prefix)] == prefix
    assert example["tokens"][len(prefix) : -1] == TINY.encode(row["suffix"])[: 9 - len(prefix)]
    assert example["tokens"][-1] == TINY.eos_id
    assert open_records(folder).dataset.truncated == 1


def test_a_cut_suffix_is_warned_of_counted_and_logged(small_data: SmallData, prepare, caplog) -> None:
    name = small_data.add_image("a.png")
    rows = [{"image": name, "prefix": "ocr", "suffix": suffix} for suffix in ("7", "one two three four five six seven")]
    folder = prepare(rows, over_long="truncate", max_text_tokens=10)
    assert open_records(folder).dataset.warnings["text_truncated"] == 1
    (remark,) = [one for one in json_lines(folder / "warnings.jsonl") if one["code"] == "text_truncated"]
    suffix = len(TINY.suffix_ids(rows[1]["suffix"]))
    prefix = len(TINY.prefix_ids("ocr"))
    assert remark["line"] == 2
    assert remark["message"] == (
        f"the suffix has {suffix} tokens, {10 - prefix} were kept: prefix and suffix have {prefix + suffix}, "
        "--max-text-tokens is 10"
    )
    assert "text_truncated: 1 of 2 rows had their suffix cut to fit --max-text-tokens 10" in caplog.text


def test_a_text_that_is_too_long_is_told_what_it_needs(small_data: SmallData, prepare) -> None:
    name = small_data.add_image("a.png")
    texts = [("ocr", "one two three four five six seven"), ("ocr", "7"), ("p " * 50, "7")]
    rows = [{"image": name, "prefix": prefix, "suffix": suffix} for prefix, suffix in texts]
    folder = prepare(rows, max_text_tokens=10, max_reject_fraction=0.9)
    first, second = (one["message"] for one in json_lines(folder / "rejected.jsonl"))
    needed = [len(TINY.prefix_ids(prefix)) + len(TINY.suffix_ids(suffix)) for prefix, suffix in texts]
    assert f"10 tokens at most: pass --max-text-tokens {needed[0]} or more, or let prepare_data cut the suffix" in first
    assert f"pass --max-text-tokens {needed[2]} or more; cutting the suffix leaves none of it" in second


def test_a_prefix_that_leaves_no_room_is_rejected_even_then(small_data: SmallData, prepare) -> None:
    name = small_data.add_image("a.png")
    rows = [{"image": name, "prefix": "p " * 50, "suffix": "s"}, {"image": name, "prefix": "p", "suffix": "s"}]
    assert rejects(prepare(rows, over_long="truncate", max_text_tokens=20)) == [(1, "text_too_long")]


def test_a_folder_in_place_of_the_data_is_called_that(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a file"):
        run(data=str(tmp_path), checkpoint="embedded:tiny", output=str(tmp_path / "out"))


def test_a_text_that_tokens_do_not_spell_is_told_where(small_data: SmallData, prepare) -> None:
    name = small_data.add_image("a.png")
    rows = [{"image": name, "prefix": "p", "suffix": suffix} for suffix in ("a\u2581b", "s")]
    (reject,) = json_lines(prepare(rows, max_reject_fraction=0.9) / "rejected.jsonl")
    assert reject["code"] == "text_unspellable"
    assert reject["message"] == "character 2 of the suffix is '\u2581', its tokens give ' '"


def test_equal_input_gives_equal_bytes(small_data: SmallData, prepare) -> None:
    rows = [{"image": small_data.add_image(f"{n}.png", n), "prefix": "p", "suffix": str(n)} for n in range(5)]
    one, two = (read_record(prepare([*rows, b"{"], output)).artifact for output in ("one", "two"))
    assert one.tree_sha256 == two.tree_sha256


@pytest.mark.parametrize("compression", ["webp", "none", "gzip"])
def test_the_recorded_hashes_are_those_of_the_files(compression: str, small_data: SmallData, prepare) -> None:
    folder = prepare([{"image": small_data.add_image("a.png"), "prefix": "p", "suffix": "s"}], compression=compression)
    assert read_record(folder).artifact.files == list_files(folder)


@pytest.mark.parametrize("compression", ["webp", "none", "gzip"])
def test_shards_are_named_counted_and_read_in_order(small_data: SmallData, prepare, compression: str) -> None:
    rows = [{"image": small_data.add_image(f"{n}.png", n), "prefix": "p", "suffix": str(n)} for n in range(7)]
    folder = prepare(rows, rows_per_shard=3, compression=compression, split="val")
    ending = ".tfrecord.gz" if compression == "gzip" else ".tfrecord"
    shards = open_records(folder).dataset.shards
    assert [(shard.file, shard.rows) for shard in shards] == [
        (f"val-0000{n}-of-00003{ending}", rows) for n, rows in enumerate((3, 3, 1))
    ]
    reader = RowReader(open_records(folder))
    assert [reader.read(n).suffix for n in range(len(reader))] == [str(n) for n in range(7)]
    index = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    assert [(entry["shard"], entry["position"]) for entry in index] == [(n // 3, n % 3) for n in range(7)]


def test_the_report_opens_offline_and_escapes_what_it_shows(small_data: SmallData, prepare) -> None:
    row = {"image": small_data.add_image("a.png"), "prefix": "<script>alert(1)</script>", "suffix": "שלום"}
    page = (prepare([row]) / "report.html").read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "שלום" in page
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert sources
    assert all(source.startswith("data:") for source in sources)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": "/nonexistent"}, r"no image folder(.|\n)*check --images"),
        ({"images": __file__}, "is a file, not a folder of images"),
        ({"split": "../x"}, "split's name"),
        ({"checkpoint": "embedded:none"}, "no embedded checkpoint"),
    ],
)
def test_wrong_options_are_explained(small_data: SmallData, prepare, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        prepare([{"image": small_data.add_image("a.png"), "prefix": "p", "suffix": "s"}], **options)


def test_a_disk_that_is_too_small_is_said_before_any_work(small_data: SmallData, prepare, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=(64 << 20) + 3 * 32 * 32 * 10))
    row = {"image": small_data.add_image("a.png"), "prefix": "p", "suffix": "s"}
    with pytest.raises(InputError, match=r"not enough room(.|\n)*free, found") as caught:
        prepare([row] * 100, compression="none")
    assert caught.value.exit_code == 2
    assert not (tmp_path / "records").exists()


def test_the_grey_range_is_what_the_records_and_their_description_have(small_data: SmallData, prepare) -> None:
    samples = np.linspace(0, 4095, 32 * 32, dtype=np.uint16).reshape(32, 32)
    Image.fromarray(samples).save(small_data.folder / "grey.png")
    rows = [{"image": "grey.png", "prefix": "p", "suffix": "s"}]
    dark, right = prepare(rows, "dark"), prepare(rows, "right", grey_range="0,4095.0")
    stored = [unpack_picture(examples(folder)[0]["image"], 32, "webp") for folder in (dark, right)]
    assert (stored[0].max(), stored[1].min(), stored[1].max()) == (16, 0, 255)
    assert [open_records(folder).dataset.grey_range for folder in (dark, right)] == ["", "0,4095"]
    assert [open_records(folder).dataset.warnings for folder in (dark, right)] == [{"image_levels_few": 1}, {}]
    assert read_record(right, "records").producer.parameters["grey_range"] == "0,4095"
    with pytest.raises(InputError, match="LOW,HIGH"):
        prepare(rows, "wrong", grey_range="4095")
