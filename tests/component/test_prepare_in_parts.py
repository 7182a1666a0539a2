"""prepare_data over many ranges of lines: by any number of processes, killed and gone on with, the same bytes."""

from __future__ import annotations

import gzip
import json
import multiprocessing
import random
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from step_processes import run_step, start_step

from components.prepare_data.__main__ import run
from conftest import SmallData
from paligemma.artifacts.record import read_record
from paligemma.artifacts.store import point_to
from paligemma.checkpoints.open_checkpoint import resolve_embedded
from paligemma.data.jsonl_files import LineRange, split_lines
from paligemma.data.prepare import Job, Preparer
from paligemma.data.records import open_records
from paligemma.data.row_sources import RowSource
from paligemma.data.tfrecord import RowReader
from paligemma.data.tokenizer import Tokenizer
from paligemma.data.workers import WorkerDiedError, prepare_parts
from paligemma.progress import WorkProgress

ROWS = 60


@pytest.fixture
def many_rows(small_data: SmallData) -> Path:
    """A JSONL file of rows that are kept, rejected and warned of, with a BOM, CRLF and blank lines."""
    names = [small_data.add_image(f"{number}.png", number) for number in range(5)]
    lines = []
    for number in range(ROWS):
        row = {"image": names[number % 5], "prefix": "p\u200b" if number % 7 == 0 else "p", "suffix": str(number % 11)}
        lines.append(json.dumps(row).encode() if number % 6 else b'{"image": "' + str(number).encode())
    small_data.jsonl.write_bytes(b"\xef\xbb\xbf" + b"\r\n\r\n".join(lines))
    return small_data.jsonl


def prepare(data: Path, output: Path, **options) -> str:
    """Prepares, and returns the hash of everything that the records hold."""
    run(data=data, checkpoint="embedded:tiny", output=output, max_reject_fraction=1.0, rows_per_shard=16, **options)
    return read_record(output).artifact.tree_sha256


def test_any_number_of_processes_gives_the_same_bytes(many_rows: Path, tmp_path: Path) -> None:
    alone = prepare(many_rows, tmp_path / "one", workers=1)
    assert prepare(many_rows, tmp_path / "three", workers=3) == alone
    opened = open_records(tmp_path / "one").dataset
    assert (opened.rows, opened.rejected, len(opened.shards)) == (50, {"json_invalid": 10}, 8)
    warnings = [json.loads(line) for line in (tmp_path / "one" / "warnings.jsonl").read_text().splitlines()]
    assert opened.warnings["text_invisible"] == len([n for n in range(ROWS) if n % 7 == 0 and n % 6])
    assert sum(opened.warnings.values()) == len(warnings)
    assert opened.images == 5


TEXT = st.text(st.one_of(st.characters(), st.sampled_from("▁\0\r\n<>loc09 é́")), max_size=30)


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=40))
def test_every_accepted_row_decodes_to_its_texts(small_data: SmallData, tmp_path: Path, texts: list[tuple[str, str]]) -> None:
    name = small_data.add_image("a.png")
    data = small_data.write([{"image": name, "prefix": "p", "suffix": "s"}]
                            + [{"image": name, "prefix": prefix, "suffix": suffix} for prefix, suffix in texts])  # fmt: skip
    prepare(data, tmp_path / "out", workers=1)
    tokenizer = Tokenizer(resolve_embedded("embedded:tiny") / "tokenizer.model")
    reader = RowReader(open_records(tmp_path / "out"))
    rows = [reader.read(number) for number in range(len(reader))]
    for row in rows:
        assert row.tokens[-1] == tokenizer.eos_id
        assert tokenizer.decode(row.tokens[: row.prefix_length]) == row.prefix + "\n"
        assert tokenizer.decode(row.tokens[row.prefix_length :]) == row.suffix
        assert row.line == 1 or (row.prefix, row.suffix) == texts[row.line - 2]
    rejected = [json.loads(line)["line"] for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert sorted(rejected + [row.line for row in rows]) == list(range(1, len(texts) + 2))


def test_gzip_input_gives_the_same_records(many_rows: Path, tmp_path: Path) -> None:
    packed = tmp_path / "data" / "packed.jsonl.gz"
    packed.write_bytes(gzip.compress(many_rows.read_bytes()))
    prepare(many_rows, tmp_path / "plain", workers=1)
    prepare(packed, tmp_path / "packed", workers=1)
    for name in ("rows.jsonl", "rejected.jsonl", "warnings.jsonl", "dataset.json"):
        assert (tmp_path / "packed" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()


def test_rows_that_repeat_or_leak_are_warned_of(small_data: SmallData, tmp_path: Path) -> None:
    first = small_data.add_image("0.png", 0, size=40)
    with Image.open(small_data.folder / first) as image:
        image.save(small_data.folder / "copy.jpg", quality=95)
    (small_data.folder / "again.png").write_bytes((small_data.folder / first).read_bytes())
    Image.new("RGB", (300, 2), "white").save(small_data.folder / "flat.png")
    row = {"image": first, "prefix": "p", "suffix": "s"}
    train = small_data.write([row, row, {**row, "image": "again.png", "suffix": "t"}, {**row, "image": "copy.jpg"},
                              {**row, "image": "flat.png", "suffix": "<loc0009><loc0000><loc0001><loc0001> a"}])  # fmt: skip
    run(data=train, checkpoint="embedded:tiny", output=tmp_path / "train")
    assert [(w["line"], w["code"]) for w in warnings_of(tmp_path / "train")] == [
        (5, "image_tiny"), (5, "image_aspect_extreme"), (5, "image_flat"), (5, "loc_order"),
        (2, "row_duplicate"), (3, "image_duplicate"), (4, "image_near_duplicate"),
    ]  # fmt: skip
    page = (tmp_path / "train" / "report.html").read_text()
    assert '<tr data-code="image_near_duplicate">' in page

    (small_data.folder / "validation.jsonl").write_text(json.dumps({**row, "suffix": "new"}) + "\n" + json.dumps(row))
    packed = train.with_name("packed.jsonl.gz")
    packed.write_bytes(gzip.compress(train.read_bytes()))
    leaked = [(1, "image_leaked"), (2, "row_leaked")]
    taken_over = tmp_path / "run/prepare-data/records"  # of a task that took over the records of an earlier run
    point_to(taken_over, str(tmp_path / "train"), read_record(tmp_path / "train"))
    for kind, against in (("records", tmp_path / "train"), ("task", taken_over), ("jsonl", train), ("gzip", packed)):
        run(
            data=small_data.folder / "validation.jsonl",
            checkpoint="embedded:tiny",
            output=tmp_path / kind,
            against=str(against),
        )
        assert [(w["line"], w["code"]) for w in warnings_of(tmp_path / kind)] == leaked


def warnings_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "warnings.jsonl").read_text().splitlines()]


def test_what_was_finished_is_not_done_again(many_rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = prepare(many_rows, tmp_path / "undisturbed", workers=1)
    prepare_part, seen = Preparer.prepare, []

    def interrupted(self, part, folder, report):
        seen.append(part.number)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return prepare_part(self, part, folder, report)

    monkeypatch.setattr(Preparer, "prepare", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(many_rows, tmp_path / "out", workers=1)
    assert not (tmp_path / "out").exists()
    assert prepare(many_rows, tmp_path / "out", workers=1) == undisturbed
    assert seen == [0, 1, 2, 3, 3, 4, 5, 6, 7]
    assert not list(tmp_path.glob(".out*"))


def test_other_input_does_not_go_on_with_what_was_finished(many_rows: Path, tmp_path: Path) -> None:
    (tmp_path / ".out.work").mkdir()
    (tmp_path / ".out.work" / "fingerprint").write_text("another")
    (tmp_path / ".out.work" / "00000.facts").write_text("{}")
    assert prepare(many_rows, tmp_path / "out", workers=1) == prepare(many_rows, tmp_path / "fresh", workers=1)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_bug_is_reported_with_its_line(many_rows: Path, tmp_path: Path, workers: int) -> None:
    with pytest.raises(TypeError) as caught:
        prepare_some(many_rows, tmp_path, workers, max_text_tokens=None)
    (note,) = caught.value.__notes__
    assert re.fullmatch(rf"This happened at line \d+ of {re.escape(str(many_rows))}\.", note)


def test_a_killed_process_is_reported_with_its_line(many_rows: Path, tmp_path: Path) -> None:
    def kill() -> None:
        while not list(tmp_path.glob("*.rows")):
            time.sleep(0.001)
        multiprocessing.active_children()[0].kill()

    threading.Thread(target=kill, daemon=True).start()
    with pytest.raises(WorkerDiedError, match=r"line (\d+|unknown)") as caught:
        prepare_some(many_rows, tmp_path, 2, max_text_tokens=128)
    assert caught.value.exit_code == 4


def test_a_process_that_is_killed_before_the_last_range_is_handed_out_is_reported_too(
    many_rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit = ProcessPoolExecutor.submit

    def submit_to_the_dead(pool: ProcessPoolExecutor, function: Callable, part: LineRange, place: int) -> Future:
        if place == 0:
            return submit(pool, function, part, place)
        multiprocessing.active_children()[0].kill()
        while True:  # until the pool has seen it, and refuses
            submit(pool, function, part, place)
            time.sleep(0.01)

    monkeypatch.setattr(ProcessPoolExecutor, "submit", submit_to_the_dead)
    with pytest.raises(WorkerDiedError, match=r"line (\d+|unknown)") as caught:
        prepare_some(many_rows, tmp_path, 2, max_text_tokens=128)
    assert caught.value.exit_code == 4


def prepare_some(data: Path, folder: Path, workers: int, max_text_tokens: int | None) -> None:
    model = resolve_embedded("embedded:tiny") / "tokenizer.model"
    job = Job([RowSource(data, str(data.parent))], model, 32, max_text_tokens, "reject", "none")
    with WorkProgress("preparing", "rows") as progress:
        prepare_parts(job, split_lines(data, 2), folder, workers, progress)


def test_killed_at_any_moment_and_run_again_gives_the_same_bytes(many_rows: Path, tmp_path: Path) -> None:
    undisturbed = prepare(many_rows, tmp_path / "undisturbed", workers=1)
    output = tmp_path / "out"
    flags = ["--data", str(many_rows), "--checkpoint", "embedded:tiny", "--output", str(output),
             "--max-reject-fraction", "1", "--rows-per-shard", "16", "--workers", "2"]  # fmt: skip
    chance = random.Random(0)
    for _ in range(2):
        process = start_step("prepare_data", flags)
        while not list((tmp_path / ".out.work").glob("*.facts")) and process.is_alive():
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.02))
        children = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
        process.kill()
        process.join()
        started = time.monotonic()
        while any(map(is_running, children)):
            assert time.monotonic() - started < 120  # only a process that never ends reaches it
            time.sleep(0.01)
    run_step("prepare_data", flags)
    assert read_record(output).artifact.tree_sha256 == undisturbed
    assert not list(tmp_path.glob(".out*"))


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
