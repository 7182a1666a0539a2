"""Several JSONL files in one data set: their rows, names, rejects and shares in records, and the order of training."""

from __future__ import annotations

import gzip
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from prepare_runs import Weeks, files_of

from components.prepare_data.__main__ import run
from components.prepare_data.distributed import join_groups, list_groups, prepare_group
from conftest import SmallData
from paligemma.artifacts.record import read_record
from paligemma.data.batch_order import Plan
from paligemma.data.convert.croissant_files import Distribution
from paligemma.data.convert.croissant_records import Description, read_records
from paligemma.data.convert.outcomes import Tally
from paligemma.data.loader import training_batches
from paligemma.data.preview import make_preview
from paligemma.data.records import open_records, read_lengths
from paligemma.data.source_list import parse_sources
from paligemma.data.split import SplitFile, split_files
from paligemma.data.tfrecord import RowReader
from paligemma.errors import DamagedError, InputError
from paligemma.lineage.impact import impact
from paligemma.lineage.index import Index
from paligemma.storage import gcs
from paligemma.storage.location import GcsLocation
from pipelines.check_run import check_run, split_data
from pipelines.finetune import finetune_pipeline
from servers.gcs import GcsServer


def json_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def two(tmp_path: Path) -> tuple[SmallData, SmallData]:
    """Two folders whose images have the same names and other pixels: 9 rows of digits, and 5 of captions."""
    made = []
    for number, (name, count) in enumerate((("digits", 9), ("captions", 5))):
        data = SmallData(tmp_path / name)
        data.folder.mkdir()
        rows = [{"image": data.add_image(f"{n}.png", 100 * number + n), "prefix": name, "suffix": str(n)} for n in range(count)]
        data.write(rows)
        made.append(data)
    return made[0], made[1]


@pytest.fixture
def prepare(two: tuple[SmallData, SmallData], tmp_path: Path) -> Callable[..., Path]:
    """Prepares both, with options for each flag, and returns the artifact's folder."""

    def call(*options: str, output: str = "records", **more: object) -> Path:
        data = [f"{one.jsonl}{option}" for one, option in itertools.zip_longest(two, options, fillvalue="")]
        run(data=data, **{"checkpoint": "embedded:tiny", "output": tmp_path / output, "rows_per_shard": 4, **more})
        return tmp_path / output

    return call


def test_records_know_the_source_of_each_row(prepare: Callable[..., Path], two: tuple[SmallData, SmallData]) -> None:
    records = open_records(made := prepare(",weight=1", ",weight=3"))
    assert [source.model_dump() for source in records.dataset.sources] == [
        {"name": "digits/rows.jsonl", "rows": 9, "rejected": 0, "weight": 1.0},
        {"name": "captions/rows.jsonl", "rows": 5, "rejected": 0, "weight": 3.0},
    ]
    rows = json_lines(made / "rows.jsonl")
    assert [(row["source"], row["line"], row["image_file"]) for row in rows] == [
        *(("digits/rows.jsonl", n + 1, f"digits/{n}.png") for n in range(9)),
        *(("captions/rows.jsonl", n + 1, f"captions/{n}.png") for n in range(5)),
    ]
    reader = RowReader(records)
    assert [reader.read(number).prefix for number in range(14)] == ["digits"] * 9 + ["captions"] * 5
    assert [records.dataset.source_of(number) for number in (0, 8, 9, 13)] == [row["source"] for row in rows[:9:8] + rows[9::4]]
    assert [shard.rows for shard in records.dataset.shards] == [4, 4, 1, 4, 1]  # no shard has rows of two files
    assert len({row["image_sha256"] for row in rows}) == records.dataset.images == 14
    inputs = [(one.role, one.uri, one.sha256) for one in read_record(made).inputs if one.role == "data"]
    named = read_record(made).producer.parameters["sources"]
    assert [(role, uri) for role, uri, _ in inputs] == [("data", str(one.jsonl)) for one in two]
    assert named == {
        "digits/rows.jsonl": {"number": 1, "sha256": inputs[0][2], "weight": 1.0},
        "captions/rows.jsonl": {"number": 2, "sha256": inputs[1][2], "weight": 3.0},
    }
    page = (made / "report.html").read_text()
    assert '<td dir="auto">captions/rows.jsonl</td><td class="number">5</td><td class="number">0</td>' in page
    assert '<td class="number">75.0 %</td><td class="number">2.1</td>' in page  # 0.75 x 14 / 5


def test_croissant_lists_the_files_and_the_rows(prepare: Callable[..., Path], tmp_path: Path) -> None:
    made = prepare()
    described = json.loads((made / "croissant.json").read_text())
    files = {one["contentUrl"]: (one["contentSize"], one["sha256"]) for one in described["distribution"]}
    recorded = {file.path: (f"{file.bytes} B", file.sha256) for file in read_record(made).artifact.files}
    assert files == {path: facts for path, facts in recorded.items() if path != "croissant.json"}
    assert "croissant.json" in recorded
    names = [field["name"] for field in described["recordSet"][0]["field"]]
    rows = [values for _, values in read_records(*of_description(made / "croissant.json", names, tmp_path))]
    assert rows == json_lines(made / "rows.jsonl")
    assert [list(row) for row in rows] == [names] * 14


def of_description(path: Path, fields: list[str], scratch: Path) -> tuple:
    described = Description(path)
    files = Distribution(described.nodes, path.parent, {}, scratch)
    return described.sets["rows"], fields, files, scratch, path, Tally("rows")


def test_one_file_gives_what_it_always_gave(two: tuple[SmallData, SmallData], tmp_path: Path) -> None:
    run(data=[str(two[0].jsonl)], checkpoint="embedded:tiny", output=tmp_path / "records")
    assert "sources" not in json.loads((tmp_path / "records/dataset.json").read_text())
    assert all(b"source" not in line or b"source_sha256" in line for name in ("rows.jsonl", "images.jsonl", "parts.jsonl")
               for line in (tmp_path / "records" / name).read_bytes().splitlines())  # fmt: skip
    assert "sources" not in read_record(tmp_path / "records").producer.parameters
    assert json_lines(tmp_path / "records/rows.jsonl")[0]["image_file"] == "0.png"


def test_two_files_over_one_folder_name_images_as_rows_do(two: tuple[SmallData, SmallData], tmp_path: Path) -> None:
    packed = two[0].folder / "more.jsonl.gz"
    packed.write_bytes(gzip.compress(two[0].jsonl.read_bytes().replace(b"digits", b"ocr")))
    run(data=[str(two[0].jsonl), str(packed)], checkpoint="embedded:tiny", output=tmp_path / "records")
    rows = json_lines(tmp_path / "records/rows.jsonl")
    assert [(row["source"], row["image_file"]) for row in (rows[0], rows[9])] == [
        ("rows.jsonl", "0.png"),
        ("more.jsonl.gz", "0.png"),
    ]
    assert open_records(tmp_path / "records").dataset.images == 9
    assert open_records(tmp_path / "records").dataset.shares == []


def test_a_folder_of_images_may_be_another(two: tuple[SmallData, SmallData], tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "pictures"
    shutil.copytree(two[1].folder, moved)
    data = [str(two[0].jsonl), f"{two[1].folder / 'rows.jsonl'},images={moved}"]
    run(data=data, checkpoint="embedded:tiny", output=tmp_path / "records")
    assert json_lines(tmp_path / "records/rows.jsonl")[-1]["image_file"] == "pictures/4.png"
    shutil.copytree(two[0].folder, tmp_path / "both")
    run(data=[str(one.jsonl) for one in two], images=str(tmp_path / "both"), checkpoint="embedded:tiny",
        output=tmp_path / "shared")  # fmt: skip
    assert {row["image_file"] for row in json_lines(tmp_path / "shared/rows.jsonl")} == {f"{n}.png" for n in range(9)}


def test_lines_are_named_with_their_file(prepare: Callable[..., Path], two: tuple[SmallData, SmallData]) -> None:
    digits, captions = two
    rows = json_lines(captions.jsonl)
    shutil.copy(digits.folder / "2.png", captions.folder / "copy.png")
    outside = {"image": "../digits/1.png", "prefix": "p", "suffix": "s"}
    copies = [{"image": "copy.png", "prefix": "p", "suffix": "s"}, {"image": "copy.png", "prefix": "digits", "suffix": "2"}]
    captions.write([*rows, b"{", outside, *copies])
    made = prepare(max_reject_fraction=0.5)
    rejected = [(one["source"], one["line"], one["code"], one["image"]) for one in json_lines(made / "rejected.jsonl")]
    assert rejected == [
        ("captions/rows.jsonl", 6, "json_invalid", None),
        ("captions/rows.jsonl", 7, "image_path_unsafe", "captions/../digits/1.png"),
    ]
    found = [(one["source"], one["line"], one["code"], one["message"]) for one in json_lines(made / "warnings.jsonl")]
    assert sorted(found) == [
        ("captions/rows.jsonl", 8, "image_duplicate", "the same bytes as the image of line 3 of digits/rows.jsonl"),
        ("captions/rows.jsonl", 9, "row_duplicate", "as line 3 of digits/rows.jsonl"),
    ]
    assert '<td data-label="file"><span dir="auto">captions/rows.jsonl</span></td>' in (made / "report.html").read_text()


def test_no_source_is_lost_among_the_rows_of_others(prepare: Callable[..., Path], two: tuple[SmallData, SmallData]) -> None:
    captions = two[1]
    captions.write([*json_lines(captions.jsonl)[:4], b"{"])  # 1 of 14 rows in all, but 1 of 5 of this file
    with pytest.raises(InputError, match=r"(?s)1 of 5 rows were rejected.*line 5: json_invalid.*captions/rows\.jsonl"):
        prepare(max_reject_fraction=0.1)
    captions.write([])
    with pytest.raises(InputError, match=r"(?s)0 of 0 rows were rejected \(the file is empty\).*captions/rows\.jsonl"):
        prepare(max_reject_fraction=1.0)
    captions.jsonl.unlink()
    with pytest.raises(InputError, match=r"There is no data file .*captions/rows\.jsonl"):
        prepare()


def test_any_number_of_processes_and_pods_gives_the_same_bytes(
    prepare: Callable[..., Path], two: tuple[SmallData, SmallData], tmp_path: Path
) -> None:
    alone = read_record(prepare(workers=1)).artifact.tree_sha256
    assert read_record(prepare(workers=3, output="three")).artifact.tree_sha256 == alone
    data = yaml.safe_dump([str(one.jsonl) for one in two])
    settings = {"max_text_tokens": 128, "over_long": "reject", "rows_per_shard": 4, "compression": "webp"}
    assert list_groups(data, 4, 3) == ["0:1", "1:3", "3:5"]
    groups = [tmp_path / f"group-{place}" for place in range(3)]
    for group, place in zip(list_groups(data, 4, 3), groups, strict=True):
        prepare_group(group, data, "embedded:tiny", "", place, settings, 1)
    join_groups(groups, data, "embedded:tiny", "", str(tmp_path / "joined"), settings, "train", 0.1, "")
    assert read_record(tmp_path / "joined").artifact.tree_sha256 == alone


def test_two_hundred_sources_are_one_data_set(tmp_path: Path) -> None:
    data = []
    for number in range(200):
        one = SmallData(tmp_path / f"{number:03d}")
        one.folder.mkdir()
        one.write([{"image": one.add_image("a.png", number), "prefix": "p", "suffix": str(number)}])
        data.append(f"{one.jsonl},weight={number + 1}")
    run(data=data, checkpoint="embedded:tiny", output=tmp_path / "records", workers=1)
    records = open_records(tmp_path / "records")
    assert len(records.dataset.shards) == records.dataset.images == 200
    rows = np.concatenate([rows for rows, _ in itertools.islice(training_batches(records, 201, 0), 100)])
    np.testing.assert_array_equal(np.bincount(rows), np.arange(1, 201))  # 20,100 draws, and the weights' sum is that


def test_training_follows_the_weights_on_any_number_of_hosts(prepare: Callable[..., Path]) -> None:
    records = open_records(prepare(",weight=1", ",weight=3"))
    prefix, suffix = read_lengths(records)
    plan = Plan(prefix + suffix, suffix, 8, 5, shares=[(9, 1.0), (5, 3.0)])
    planned = list(itertools.islice(plan.batches(), 12))
    whole = list(itertools.islice(training_batches(records, 8, 5), 12))
    resumed = list(itertools.islice(training_batches(records, 8, 5, start_step=7), 5))
    shares = [list(itertools.islice(training_batches(records, 8, 5, process_index=n, process_count=4), 12)) for n in range(4)]
    for step, (rows, batch) in enumerate(whole):
        np.testing.assert_array_equal(rows, planned[step].rows)
        np.testing.assert_array_equal(rows, np.concatenate([share[step][0] for share in shares]))
        np.testing.assert_array_equal(batch.tokens, np.concatenate([share[step][1].tokens for share in shares]))
        assert abs((rows >= 9).sum() - 6) <= 1  # 3 of 4 in each batch of 8
    for (rows, batch), (again, other) in zip(whole[7:], resumed, strict=True):
        np.testing.assert_array_equal(rows, again)
        np.testing.assert_array_equal(batch.images, other.images)


def test_records_whose_sources_do_not_add_up_are_damaged(prepare: Callable[..., Path]) -> None:
    made = prepare(",weight=1", ",weight=3")
    dataset = json.loads((made / "dataset.json").read_text())
    for change in ({"rows": 8}, {"weight": None}, {"weight": 0}, {"weight": 1e400}, {"rows": -1}):
        sources = [dataset["sources"][0] | change, dataset["sources"][1]]
        (made / "dataset.json").write_text(json.dumps(dataset | {"sources": sources}))
        with pytest.raises(DamagedError, match=r"dataset\.json"):
            open_records(made)


@pytest.fixture
def weeks(two: tuple[SmallData, SmallData], tmp_path: Path) -> Weeks:
    data = yaml.safe_dump([{"data": str(one.jsonl), "weight": weight} for one, weight in zip(two, (1, 3), strict=True)])
    return Weeks(data, str(tmp_path / "root"), str(tmp_path / "fresh"))


def test_what_grew_before_a_source_costs_its_shards_nothing(two: tuple[SmallData, SmallData], weeks: Weeks) -> None:
    first = weeks.check()
    assert weeks.run() == first
    digits, captions = two
    rows = json_lines(digits.jsonl)
    digits.write(
        [*rows, *({"image": digits.add_image(f"new-{n}.png", 50 + n), "prefix": "p", "suffix": "s"} for n in range(5))]
    )
    second = weeks.check()
    shards = [sorted(Path(made).glob("*.tfrecord")) for made in (first, second)]
    assert [len(list_) for list_ in shards] == [5, 6]
    same = {(a, b) for a, one in enumerate(shards[0]) for b, other in enumerate(shards[1]) if one.samefile(other)}
    assert same == {(0, 0), (1, 1), (3, 4), (4, 5)}  # both shards of captions, under the next numbers
    captions.write(json_lines(captions.jsonl)[1:])
    weeks.check()


def test_other_weights_are_other_records_of_the_same_shards(two: tuple[SmallData, SmallData], weeks: Weeks) -> None:
    first = weeks.check()
    weeks.data = weeks.data.replace("weight: 3", "weight: 2")
    second = weeks.check()
    assert open_records(second).dataset.shares == [(9, 1.0), (5, 2.0)]
    of_both = [{name: sha256 for name, sha256 in files_of(made).items() if name != "dataset.json"} for made in (first, second)]
    assert {name for name in of_both[0] if of_both[0][name] != of_both[1].get(name)} == {"report.html", "croissant.json"}
    swapped = yaml.safe_dump(list(reversed(yaml.safe_load(weeks.data))))
    weeks.data = swapped
    assert [source.rows for source in open_records(weeks.check()).dataset.sources] == [5, 9]


def test_lineage_finds_a_line_in_its_file(two: tuple[SmallData, SmallData], weeks: Weeks) -> None:
    digits, captions = two
    captions.write([*json_lines(captions.jsonl)[:4], b"{"])
    weeks.run()
    with Index(weeks.root) as index:
        (row,) = impact(index, f"{captions.jsonl}:3")["rows"]
        assert (row["image"], row["line"], row["source"]) == ("captions/2.png", 3, "captions/rows.jsonl")
        (row,) = impact(index, f"{digits.jsonl}:3")["rows"]
        assert row["image"] == "digits/2.png"
        assert [one["code"] for one in impact(index, f"{captions.jsonl}:5")["rejected"]] == ["json_invalid"]
        assert impact(index, f"{digits.jsonl}:5")["rejected"] == []
        (row,) = impact(index, str(captions.folder / "0.png"))["rows"]
        assert row["source"] == "captions/rows.jsonl"
        assert {one["task"] for one in impact(index, str(captions.jsonl))["others"]} == {"prepare"}


def test_a_preview_shows_rows_of_each_source(two: tuple[SmallData, SmallData], prepare: Callable[..., Path]) -> None:
    two[1].write([*json_lines(two[1].jsonl), b"{"])
    made = make_preview(yaml.safe_dump([str(one.jsonl) for one in two]), "embedded:tiny", rows=6)
    assert made.counts[0] == "of all 15 rows: 14 are fit, 1 would be rejected"
    assert "first in line 6 of captions/rows.jsonl" in made.counts[1]
    for page in (made.page, make_preview(str(prepare(max_reject_fraction=0.5)), "embedded:tiny").page):
        assert "line 3 of digits/rows.jsonl" in page
        assert "line 3 of captions/rows.jsonl" in page
    with pytest.raises(InputError, match="There is no data /none"):
        make_preview(yaml.safe_dump([str(two[0].jsonl), "/none"]), "embedded:tiny")


def test_a_picture_of_two_sources_is_on_one_side_of_a_split(two: tuple[SmallData, SmallData], tmp_path: Path) -> None:
    digits, captions = two
    for number in range(5):
        shutil.copy(digits.folder / f"{number}.png", captions.folder / f"{number}.png")
    files = [SplitFile(one.jsonl, one.folder, tmp_path / f"{n}-train", tmp_path / f"{n}-held") for n, one in enumerate(two)]
    (kept, held), (kept_too, held_too) = split_files(files, 0.4)
    assert (kept + held, kept_too + held_too) == (9, 5)
    assert held == 4
    images = [{row["image"] for row in json_lines(tmp_path / name)} for name in ("0-train", "0-held", "1-train", "1-held")]
    assert not (images[0] | images[2]) & (images[1] | images[3])


def test_a_split_leaves_each_source_something_to_train_on(tmp_path: Path) -> None:
    files = []
    for number in range(6):
        one = SmallData(tmp_path / str(number))
        one.folder.mkdir()
        one.write([{"image": one.add_image(f"{n}.png", 10 * number + n), "prefix": "p", "suffix": "s"} for n in range(2)])
        files.append(SplitFile(one.jsonl, one.folder, tmp_path / f"{number}-train", tmp_path / f"{number}-held"))
    counts = split_files(files, 0.9)
    assert all(kept >= 1 for kept, _ in counts)
    assert sum(held for _, held in counts) >= 4
    for file in files[:2]:
        file.data.write_bytes(file.data.read_bytes().splitlines(keepends=True)[0])
    with pytest.raises(InputError, match=r"(?s)2 different images cannot be split.*more images than files"):
        split_files(files[:2], 0.5)


def given(data: str, **more: object) -> dict[str, object]:
    inputs = finetune_pipeline.component_spec.inputs
    rest = {name: one.default for name, one in inputs.items() if one.optional}
    return {**rest, "source": "embedded:tiny", "train_data": data, "validation_data": data, "recipe": "batch_size: 4", **more}


def test_a_run_looks_at_every_source_before_it_starts(two: tuple[SmallData, SmallData]) -> None:
    names = [str(one.jsonl) for one in two]
    both = yaml.safe_dump(names)
    assert check_run(given(both)) == []
    assert check_run(given(both, recipe="batch_size: 14")) == []
    assert "the training data has 14 rows" in check_run(given(both, recipe="batch_size: 15"))[0]
    with pytest.raises(InputError, match=r"has a weight, but each of these rows is looked at once"):
        check_run(given(yaml.safe_dump([f"{name},weight=1" for name in names])))
    (two[1].folder / "3.png").unlink()
    assert check_run(given(both))[0] == (
        f"--train-data: 1 of the first 5 rows of {names[1]} cannot be used, e.g. line 4: image_missing, there is no '3.png'"
    )
    two[1].jsonl.write_text("{")
    with pytest.raises(InputError, match=r"(?s)None of the first 1 rows can be used.*--train-data .*captions/rows\.jsonl"):
        check_run(given(both))
    two[1].jsonl.unlink()
    with pytest.raises(InputError, match=r"There is no .*captions/rows\.jsonl"):
        check_run(given(both))


def test_a_run_without_validation_data_splits_every_source(two: tuple[SmallData, SmallData], tmp_path: Path) -> None:
    data = yaml.safe_dump([f"{one.jsonl},weight={weight}" for one, weight in zip(two, (1, 3), strict=True)])
    changed = split_data({"train_data": data, "images": "", "images_per_example": 1}, tmp_path / "root", 0.3)
    assert split_data({"train_data": data, "images": "", "images_per_example": 1}, tmp_path / "root", 0.3) == changed
    train, held = (parse_sources(changed[name], "") for name in ("train_data", "validation_data"))
    assert [(source.weight, source.images) for source in train] == [(1.0, str(two[0].folder)), (3.0, str(two[1].folder))]
    assert {source.weight for source in held} == {None}
    assert sum(len(json_lines(Path(source.data))) for source in held) == 4
    assert sum(len(json_lines(Path(source.data))) for source in (*train, *held)) == 14
    assert check_run({**given(""), **changed}) == []


def test_sources_in_a_bucket_give_the_bytes_that_folders_give(
    prepare: Callable[..., Path], two: tuple[SmallData, SmallData], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = prepare(",weight=1", ",weight=3")
    with GcsServer() as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("PALIGEMMA_CACHE", str(tmp_path / "cache"))
        server.create_bucket("mixtures")
        for one in two:
            for path in one.folder.iterdir():
                gcs.upload(path, GcsLocation("mixtures", f"{one.folder.name}/{path.name}"))
        data = yaml.safe_dump(["gs://mixtures/digits/rows.jsonl,weight=1", "gs://mixtures/captions/rows.jsonl,weight=3"])
        weeks = Weeks(data, "gs://mixtures/root", str(tmp_path / "fresh"))
        first = weeks.run(max_text_tokens=128)
        assert first.startswith("gs://mixtures/root/run-1/")
        assert weeks.run(max_text_tokens=128) == first
        there = files_of(first)
    known = files_of(str(here))
    assert {name for name in known if known[name] != there[name]} == set()
