"""evaluate on plain paths."""

from __future__ import annotations

import dataclasses
import html
import importlib
import json
import logging
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from converting import run_convert
from mask_weights import square_weights, write_weights

from components.evaluate import contenders as others_module
from components.evaluate import decoding as decoding_module
from components.evaluate import report as report_module
from components.evaluate.__main__ import run
from components.evaluate.contenders import judge_against, read_evaluation
from components.evaluate.main import evaluate
from components.finetune.__main__ import run as finetune
from components.prepare_data.__main__ import run as prepare
from conftest import SmallData
from paligemma.artifacts.record import parse_record, read_record
from paligemma.artifacts.recording import MARK_ENDING
from paligemma.data.tfrecord import RowReader
from paligemma.decoding.settings import DecodeSettings
from paligemma.errors import InputError, StoppedError
from paligemma.evaluation import predict as predict_module
from paligemma.evaluation.gate import compare, decide
from paligemma.evaluation.metrics import METRICS
from paligemma.evaluation.predict import Prediction
from paligemma.evaluation.vqa_accuracy import vqa_accuracy


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


@pytest.mark.parametrize("weights", ["int8", "nf4"])
def test_a_model_can_be_judged_as_it_decodes_with_quantized_weights(
    weights: str, records: Path, tuned: Path, tmp_path: Path
) -> None:
    losses = {}
    for name in ("stored", weights):
        arguments = {"checkpoint": "embedded:tiny", "records": records, "tuned": tuned, "max_new_tokens": 4}
        run(**arguments, output=tmp_path / name, weights=name)
        losses[name] = read(tmp_path / name)[0]["loss"]
        assert read_record(tmp_path / name).producer.parameters["weights"] == name
    assert losses[weights] != losses["stored"]
    np.testing.assert_allclose(losses[weights], losses["stored"], rtol=0.05 if weights == "int8" else 0.3)


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
    assert all(row["images"][0].startswith("data:image/png;base64,") and row["baseline"] is not None for row in rows)
    assert not re.findall(r'src="([^"]*)"', page)
    pages = ["train/report.html", "tuned/training.html", "base/report.html"]
    assert ["/".join(address.split("/")[-2:]) for address in re.findall(r'href="(\.\./[^":]*)"', page)] == pages
    assert len(re.findall('href="', page)) == len(pages)
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


def test_an_evaluation_that_fails_in_the_pipeline_records_how_it_was_to_decode(records: Path, tmp_path: Path) -> None:
    names = ("tuned", "baseline", "champion", "registry", "task", "metrics", "mask_decoder", "state_root")
    rest = dict.fromkeys(names, "") | {"margin": 0.0, "batch_size": 8, "settings": DecodeSettings(8, beams=2)}
    with pytest.raises(InputError, match="no checkpoint file"):
        evaluate(checkpoint="nowhere", records=str(records), output=str(tmp_path / "x"), **rest)
    (path,) = (path for path in (tmp_path / "lineage").rglob("*.json") if not path.name.endswith(MARK_ENDING))
    settings = parse_record(path.read_bytes(), path).producer.parameters["settings"]
    assert settings == dataclasses.asdict(DecodeSettings(8, beams=2))


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


def test_masks_are_judged_against_the_true_ones_that_their_rows_keep(small_data: SmallData, tmp_path: Path) -> None:
    """From polygons to the metrics. Of a model that answers with the rows' suffixes, the IoU is what `convert` says of them."""
    codes = write_weights(tmp_path / "vae-oid.npz", square_weights())
    names = [small_data.add_image(f"{n}.png", n, 32) for n in range(2)]
    polygon = [[2, 3, 25, 5, 20, 28, 4, 20]]
    data = {
        "images": [{"id": n, "file_name": name, "width": 32, "height": 32} for n, name in enumerate(names)],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"image_id": n, "category_id": 1, "segmentation": polygon} for n in range(2)],
    }
    (tmp_path / "instances.json").write_text(json.dumps(data))
    flags = ("--annotations", tmp_path / "instances.json", "--images", small_data.folder, "--mask-codes", codes)
    done = run_convert(tmp_path / "rows.jsonl", "coco-instances", *flags)
    ceiling = done.rows[0]["round_trip_iou"]
    assert 0.5 < ceiling < 1
    with (tmp_path / "rows.jsonl").open("a") as file:  # a row without true masks
        file.write(json.dumps({key: done.rows[0][key] for key in ("image", "prefix", "suffix")} | {"prefix": "segment it"}))
    prepare(
        data=tmp_path / "rows.jsonl", images=str(small_data.folder), checkpoint="embedded:tiny", output=tmp_path / "records"
    )
    run(checkpoint="embedded:tiny", records=tmp_path / "records", output=tmp_path / "x", task="segment",
        mask_decoder=str(codes), max_new_tokens=4)  # fmt: skip
    metrics, predictions = read(tmp_path / "x")
    assert list(metrics["metrics"]) == ["mask_iou", "mask_ciou", "box_f1"]
    assert len(predictions) == 3
    assert metrics["metrics"]["mask_iou"]["first_reference"] == pytest.approx((2 * ceiling + 1) / 3, abs=1e-4)
    page = (tmp_path / "x/report.html").read_text()
    shown = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])
    assert len({row["masks"]["true"] for row in shown}) == 2  # the row without true masks has those of its symbols
    (note,) = [note for note in metrics["notes"] if note.startswith("mask_iou: ")]
    assert "Sixteen <seg> symbols do not hold every mask" in note


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


def fake_predictions(monkeypatch: pytest.MonkeyPatch, stop_after: int | None = None) -> list[int]:
    """Has rows answered with their targets, in batches, without a model; returns the numbers of the rows that were decoded."""
    decoded: list[int] = []

    def answer(model, data, batch_size, settings, done):
        reader = RowReader(data)
        left = [number for number in range(len(reader)) if number not in done]
        for start in range(0, len(left), batch_size):
            if stop_after is not None and len(decoded) >= stop_after:
                raise StoppedError("The step was told to stop (SIGTERM).")
            batch = left[start : start + batch_size]
            decoded.extend(batch)
            rows = [reader.read(number) for number in batch]
            yield [
                (number, Prediction(row.row_id, row.prefix, row.suffix, (row.suffix,), row.suffix, -1.0, -1.0, 2))
                for number, row in zip(batch, rows, strict=True)
            ]

    monkeypatch.setattr(predict_module, "predict", answer)
    monkeypatch.setattr(decoding_module, "build_model", lambda *_, **__: SimpleNamespace())
    return decoded


@pytest.mark.parametrize("state", ["beside the output", "state root"])
def test_a_judgement_that_failed_starts_from_what_was_decoded(
    state: str, records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user mends the metric, and gives the same command."""
    monkeypatch.delitem(sys.modules, "own_metric", raising=False)
    own = tmp_path / "own_metric.py"
    own.write_text("def length(answer, references):\n    return len(missing)\n")
    monkeypatch.syspath_prepend(tmp_path)
    root = tmp_path / ("state" if state == "state root" else "x.predictions")
    arguments = {"checkpoint": "embedded:tiny", "records": str(records), "output": str(tmp_path / "x")}
    arguments |= {"metrics": "own_metric:length", "batch_size": 8, "state_root": str(root) if state == "state root" else ""}
    decoded = fake_predictions(monkeypatch)
    with pytest.raises(
        InputError, match=r"(?s)own_metric:length' failed: NameError.*own_metric.py:2.*what was decoded is kept"
    ):
        run(**arguments)
    assert sorted(decoded) == list(range(21))
    assert not (tmp_path / "x").exists()
    assert len(list(root.rglob("part-*.jsonl"))) == 3
    own.write_text("def length(answer, references):\n    return len(answer)\n")
    del sys.modules["own_metric"]
    importlib.invalidate_caches()
    monkeypatch.setattr(decoding_module, "build_model", lambda *_, **__: pytest.fail("the model was loaded again"))
    decoded.clear()
    run(**arguments)
    assert decoded == []
    metrics, predictions = read(tmp_path / "x")
    assert metrics["examples"] == len(predictions) == 21
    assert [row["metrics"]["own_metric:length"] for row in predictions] == [len(row["target"]) for row in predictions]
    assert not list(root.rglob("*.jsonl"))


def test_rows_that_were_decoded_before_a_stop_are_not_decoded_again(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = {"checkpoint": "embedded:tiny", "records": str(records), "output": str(tmp_path / "x")}
    before = fake_predictions(monkeypatch, stop_after=10)
    with pytest.raises(StoppedError):
        run(**arguments, batch_size=5)
    assert len(before) == 10
    after = fake_predictions(monkeypatch)
    run(**arguments, batch_size=4)
    assert sorted(before + after) == list(range(21))
    assert read(tmp_path / "x")[0]["exact_match"] == 1
    assert [path.name for path in tmp_path.glob("x*")] == ["x"]
    again = fake_predictions(monkeypatch)  # the evaluation is there, and nothing is kept
    run(**arguments)
    assert len(again) == 21


def test_another_way_of_decoding_does_not_go_on_from_what_is_kept(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = {"checkpoint": "embedded:tiny", "records": str(records), "output": str(tmp_path / "x")}
    fake_predictions(monkeypatch, stop_after=10)
    with pytest.raises(StoppedError):
        run(**arguments, batch_size=5)
    decoded = fake_predictions(monkeypatch)
    run(**arguments, max_new_tokens=31)
    assert len(decoded) == 21
    assert [path.name for path in tmp_path.glob("x*")] == ["x"]


def test_the_rest_of_a_real_decoding_is_as_if_it_had_been_one(
    records: Path, base_evaluation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = predict_module.predict

    def stops(*arguments):
        yield next(real(*arguments))
        raise StoppedError("The step was told to stop (SIGTERM).")

    arguments = {"checkpoint": "embedded:tiny", "records": str(records), "output": str(tmp_path / "x"), "max_new_tokens": 12}
    monkeypatch.setattr(predict_module, "predict", stops)
    with pytest.raises(StoppedError):
        run(**arguments)
    monkeypatch.setattr(predict_module, "predict", real)
    run(**arguments)
    texts = [[row["prediction"] for row in read(folder)[1]] for folder in (tmp_path / "x", base_evaluation)]
    assert texts[0] == texts[1]


def test_a_page_that_cannot_be_rendered_costs_no_evaluation(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake_predictions(monkeypatch)
    monkeypatch.setattr(report_module, "render", lambda *_, **__: {}["confusion"])
    run(checkpoint="embedded:tiny", records=str(records), output=str(tmp_path / "x"))
    assert "report.html cannot be rendered" in caplog.text
    assert "KeyError: 'confusion'" in caplog.text
    assert read_record(tmp_path / "x").metrics["exact_match"] == 1
    assert "cannot be rendered" in (tmp_path / "x/report.html").read_text()


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("def own(answer, references): return None", r"returned None"),
        ("def own(answer, references): return 'good'", r"returned 'good'"),
        ("def own(answer, references): return float('nan')", r"returned nan"),
        ("def own(answer, references): return [1.0]", r"returned \[1\.0\]"),
        ("def own(answer): return 1", r"failed: TypeError"),
        ("def own(answer, references): return 1 / 0", r"failed: ZeroDivisionError.*odd_metric\.py:1"),
        ("own = 3", r"is not a function, but 3"),
        ("def other(): pass", r"cannot be imported: AttributeError"),
        ("def own(:", r"cannot be imported: SyntaxError"),
        ("raise RuntimeError('no licence')", r"cannot be imported: RuntimeError: no licence"),
    ],
)
def test_a_metric_of_the_users_that_is_odd_is_named(
    code: str, said: str, records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "odd_metric.py").write_text(f"{code}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "odd_metric", raising=False)
    fake_predictions(monkeypatch)
    with pytest.raises(InputError, match=f"(?s)The metric 'odd_metric:own' {said}"):
        run(checkpoint="embedded:tiny", records=str(records), output=str(tmp_path / "x"), metrics="odd_metric:own")


@pytest.mark.parametrize("name", [":own", "a b:c", "..:x", "json:", "json:nothing", "nowhere_at_all:f"])
def test_a_metric_that_is_nowhere_is_refused_before_anything_is_decoded(name: str, records: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be imported"):
        run(checkpoint="embedded:tiny", records=str(records), output=str(tmp_path / "x"), metrics=name)


def test_targets_longer_than_answers_can_be_are_noted(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake_predictions(monkeypatch)
    with caplog.at_level(logging.WARNING):
        run(checkpoint="embedded:tiny", records=str(records), output=str(tmp_path / "x"), max_new_tokens=1)
    note = "21 of 21 targets have more tokens than an answer can have: up to 2, with eos; max_new_tokens is 1."
    assert read(tmp_path / "x")[0]["notes"][0].startswith(note)
    assert note in caplog.text
    assert note in (tmp_path / "x/report.html").read_text()


@pytest.mark.parametrize("value", ["NaN", "null", "Infinity"])
def test_an_evaluation_whose_scores_are_no_numbers_is_nothing_to_be_better_than(
    value: str, records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_predictions(monkeypatch)
    run(checkpoint="embedded:tiny", records=str(records), output=str(tmp_path / "x"))
    inputs = read_record(tmp_path / "x").inputs
    rows = tmp_path / "x/predictions.jsonl"
    assert read_evaluation(tmp_path / "x", "exact_match", inputs).scores.tolist() == [1.0] * 21
    rows.write_text(rows.read_text().replace('"exact_match": 1.0', f'"exact_match": {value}', 1))
    monkeypatch.setattr(others_module, "read_record", lambda *_: SimpleNamespace(inputs=inputs))  # which would see the change
    with pytest.raises(InputError, match="not judged by exact_match"):
        read_evaluation(tmp_path / "x", "exact_match", inputs)
