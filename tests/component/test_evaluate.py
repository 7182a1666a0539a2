"""evaluate on plain paths."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from components.evaluate.main import run
from components.evaluate.others import judge_against
from components.finetune.main import run as finetune
from components.prepare_data.main import run as prepare
from conftest import SmallData
from paligemma.errors import InputError
from paligemma.evaluation.gate import compare, decide
from paligemma.evaluation.metrics import METRICS
from paligemma.evaluation.predict import Prediction
from paligemma.evaluation.vqa import vqa_accuracy


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
    for batch_size in (1, 3, 8):
        output = tmp_path / str(batch_size)
        run(checkpoint="embedded:tiny", records=records, output=output, tuned=str(tuned), batch_size=batch_size,
            max_new_tokens=12)  # fmt: skip
        results.append(read(output))
    metrics, predictions = results[0]
    for other_metrics, other_predictions in results[1:]:
        # The tower is in float16, whose products round differently in batches of another size.
        assert other_metrics.pop("loss") == pytest.approx(metrics["loss"], abs=2e-3)
        assert other_metrics.pop("perplexity") == pytest.approx(metrics["perplexity"], rel=2e-3)
        assert other_metrics.items() <= metrics.items()
        for row, other in zip(predictions, other_predictions, strict=True):
            for key in ("logprob", "target_logprob"):
                assert other.pop(key) == pytest.approx(row[key], abs=0.02)
            assert other.items() <= row.items()
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
    rows = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])
    assert len(rows) == 21
    assert all(row["image"].startswith("data:image/png;base64,") and row["baseline"] is not None for row in rows)
    assert not re.findall(r'(?:src|href)="([^"]*)"', page)
    gate = json.loads((tmp_path / "x/gate.json").read_text())
    assert gate["why"] in html.unescape(page)
    assert gate["comparisons"][0]["candidate"] == metrics["exact_match"]
    assert gate["promote"] == (gate["comparisons"][0]["low"] > 0 and gate["comparisons"][0]["p_value"] < 0.05)


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


def test_tasks_select_metrics_over_several_answers(small_data: SmallData, tmp_path: Path, monkeypatch) -> None:
    rows = [
        {"image": small_data.add_image(f"{n}.png", n), "prefix": "answer en is it odd?", "suffix": "odd", "answers": answers}
        for n, answers in enumerate((["odd", "Odd.", "even"], ["x", "y"]))
    ]
    prepare(data=small_data.write(rows), checkpoint="embedded:tiny", output=tmp_path / "records")
    (tmp_path / "own.py").write_text("def length(answer, references):\n    return len(references)\n")
    (tmp_path / "own-1.dist-info").mkdir()  # a package that is installed
    (tmp_path / "own-1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: own\nVersion: 1\n")
    (tmp_path / "own-1.dist-info/entry_points.txt").write_text("[paligemma.metrics]\nlength = own:length\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name, choice in (("vqa", {"task": "vqa"}), ("own", {"metrics": "own:length, length, anls"})):
        run(checkpoint="embedded:tiny", records=tmp_path / "records", output=tmp_path / name, max_new_tokens=4, **choice)
    metrics, predictions = read(tmp_path / "vqa")
    assert list(metrics["metrics"]) == ["vqa_accuracy", "exact_match"]
    assert metrics["primary"] == "vqa_accuracy"
    assert predictions[0]["answers"] == ["odd", "Odd.", "even"]
    assert predictions[0]["metrics"]["vqa_accuracy"] == vqa_accuracy(predictions[0]["prediction"], ["odd", "Odd.", "even"])
    assert [group["prefix"] for group in metrics["by_type"]] == ["is it"]
    metrics, _ = read(tmp_path / "own")
    assert metrics["metrics"]["own:length"]["value"] == metrics["metrics"]["length"]["value"] == 2.5
    with pytest.raises(InputError, match="not judged by exact_match"):
        run(checkpoint="embedded:tiny", records=tmp_path / "records", output=tmp_path / "x", baseline=str(tmp_path / "own"))
    with pytest.raises(InputError, match="no metric 'anlss'"):
        run(checkpoint="embedded:tiny", records=tmp_path / "records", output=tmp_path / "x", metrics="anlss")


def test_the_gate_wants_a_margin_and_confidence() -> None:
    generator = np.random.default_rng(0)
    base = (generator.random(300) < 0.4).astype(float)
    better = np.maximum(base, generator.random(300) < 0.2)
    for candidate, other, margin, promote in (
        (better, base, 0.0, True),
        (better, base, 0.2, False),
        (base, better, 0.0, False),
        (base, base, 0.0, False),
        (np.ones(3), np.zeros(3), 0.0, False),  # three rows prove nothing
    ):
        decision = decide([compare("base", "exact_match", candidate, other, margin)], margin)
        assert decision.promote is promote
        assert decision.why.startswith("Promote" if promote else "Keep")
    both = decide([compare("base", "m", better, base, 0.0), compare("champion", "m", better, better, 0.0)], 0.0)
    assert not both.promote
    assert "champion" in both.why


def test_the_gate_names_the_rows_that_it_compares() -> None:
    """Average precision is of all rows at once."""
    box = "<loc0000><loc0000><loc0100><loc0100> cat"
    predictions = [Prediction(str(n), "detect cat", box, (box,), box if n % 4 else "", 0.0, 0.0, 1) for n in range(40)]
    scores = METRICS["mean_average_precision"](predictions)
    assert scores.low < scores.value < scores.high
    nothing = SimpleNamespace(scores=np.zeros(40))
    decision = judge_against({"baseline": nothing}, scores, "mean_average_precision", 0.1)
    assert decision.promote
    assert "box_f1 is 0.7500, base's 0.0000" in decision.why
