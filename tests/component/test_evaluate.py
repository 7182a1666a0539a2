"""evaluate on plain paths."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from components.evaluate.main import run
from components.finetune.main import run as finetune
from components.prepare_data.main import run as prepare
from conftest import SmallData
from paligemma.errors import InputError


def read(folder: Path) -> tuple[dict, list[dict]]:
    metrics = json.loads((folder / "metrics.json").read_text())
    del metrics["examples_per_second"]
    return metrics, [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def tuned(records: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learnt some of the rows."""
    output = tmp_path_factory.mktemp("tuned") / "tuned"
    settings = ["steps=12", "learning_rate=0.2", "remat=none", "batch_size=24"]
    finetune(checkpoint="embedded:tiny", records=records, output=output, set_=settings)
    return output


@pytest.fixture(scope="module")
def base_evaluation(records: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("evaluations") / "base"
    run(checkpoint="embedded:tiny", records=records, output=output, max_new_tokens=12)
    return output


def test_results_are_the_same_for_every_batch_size(records: Path, tuned: Path, tmp_path: Path) -> None:
    results = []
    for batch_size in (1, 7, 64):
        output = tmp_path / str(batch_size)
        run(checkpoint="embedded:tiny", records=records, output=output, tuned=str(tuned), batch_size=batch_size,
            max_new_tokens=12)  # fmt: skip
        results.append(read(output))
    assert results[0] == results[1] == results[2]
    metrics, predictions = results[0]
    assert metrics["examples"] == len(predictions) == 21
    assert 0 < metrics["exact_match"] < 1


def test_metrics_are_what_the_predictions_say(base_evaluation: Path, records: Path) -> None:
    metrics, predictions = read(base_evaluation)
    assert [row["exact_match"] for row in predictions] == [row["prediction"] == row["target"] for row in predictions]
    assert metrics["exact_match"] == sum(row["exact_match"] for row in predictions) / 21
    assert {q["prefix"]: q["examples"] for q in metrics["by_question"]} == {
        "ocr": 7,
        "caption en": 7,
        "answer en is it odd or even?": 7,
    }
    index = [json.loads(line)["row_id"] for line in (records / "rows.jsonl").read_text().splitlines()]
    assert [row["row_id"] for row in predictions] == index


def test_base_and_tuned_stand_side_by_side(records: Path, tuned: Path, base_evaluation: Path, tmp_path: Path) -> None:
    run(checkpoint="embedded:tiny", records=records, output=tmp_path / "x", tuned=str(tuned), baseline=str(base_evaluation),
        max_new_tokens=12)  # fmt: skip
    metrics, _ = read(tmp_path / "x")
    assert metrics["model"] == "tuned"
    page = (tmp_path / "x/report.html").read_text()
    for text in ("exact match, base", "<th>tuned</th><th>base</th>"):
        assert text in page
    assert page.count("data:image/png") == 21
    assert all(source.startswith("data:") for source in re.findall(r'(?:src|href)="([^"]*)"', page))


def test_a_baseline_on_other_rows_is_refused(base_evaluation: Path, small_data: SmallData, tmp_path: Path) -> None:
    row = {"image": small_data.add_image("a.png"), "prefix": "ocr", "suffix": "1"}
    prepare(data=small_data.write([row]), checkpoint="embedded:tiny", output=tmp_path / "other")
    with pytest.raises(InputError, match="evaluated on other records"):
        run(checkpoint="embedded:tiny", records=tmp_path / "other", output=tmp_path / "x", baseline=str(base_evaluation))
    assert not (tmp_path / "x").exists()


def test_a_folder_of_another_kind_is_refused(records: Path, base_evaluation: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds evaluation"):
        run(checkpoint="embedded:tiny", records=base_evaluation, output=tmp_path / "x")
    with pytest.raises(InputError, match="not a tuned model"):
        run(checkpoint="embedded:tiny", records=records, output=tmp_path / "x", tuned=str(records))
