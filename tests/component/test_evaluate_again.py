"""A later run decodes only what the same model has not answered before: new rows, and those of another model."""

from __future__ import annotations

import contextvars
import json
from pathlib import Path

import pytest

from components.evaluate.__main__ import run as evaluate
from components.finetune.__main__ import run as finetune
from components.prepare_data.__main__ import run as prepare
from components.publish.__main__ import run as publish
from conftest import SmallData
from paligemma.artifacts.record import read_record
from paligemma.artifacts.recording import set_place
from paligemma.evaluation import predict as predict_module

BASE = "embedded:tiny"
REAL = predict_module.predict


class Weeks:
    """Weekly evaluations below one root. `decoded` has the number of rows that each model of the last one decoded."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.count, self.decoded = folder, 0, []
        self.root = folder / "root"
        self.source = SmallData(folder / "source")
        self.source.folder.mkdir()

        def counted(model, records, batch_size, settings, done):
            self.decoded.append(records.dataset.rows - len(done))
            return REAL(model, records, batch_size, settings, done)

        monkeypatch.setattr(predict_module, "predict", counted)

    def prepare(self, rows: range, **more: object) -> str:
        """Records of some numbers."""
        output = self.folder / f"records-{rows.start}-{rows.stop}-{len(more)}"
        given = [{"image": self.source.add_image(f"{n}.png", n), "prefix": "ocr", "suffix": str(n)} | more for n in rows]
        prepare(data=self.source.write(given), checkpoint=BASE, output=output, max_reject_fraction=0.5)
        return str(output)

    def evaluate(self, records: str, fresh: bool = False, **changes: object) -> Path:
        """The evaluation of a further week."""
        self.count += 1
        self.decoded.clear()
        output = f"{self.root}/week-{self.count}/evaluate/evaluation"

        def in_a_run() -> None:
            set_place(f"week-{self.count}", "evaluate", str(self.root), reuse=not fresh)
            evaluate(**{"checkpoint": BASE, "records": records, "output": output, "max_new_tokens": 6} | changes)

        contextvars.copy_context().run(in_a_run)
        return Path(output)


@pytest.fixture
def weeks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Weeks:
    return Weeks(tmp_path, monkeypatch)


def answers(evaluation: Path) -> list[str]:
    return (evaluation / "predictions.jsonl").read_text().splitlines()


def test_only_new_rows_are_decoded_and_the_answers_are_those_of_decoding_all(weeks: Weeks) -> None:
    weeks.evaluate(weeks.prepare(range(12)))
    assert weeks.decoded == [12]
    later = weeks.prepare(range(1, 14))  # one row is gone, two are new
    grown = weeks.evaluate(later)
    assert weeks.decoded == [2]
    anew = weeks.evaluate(later, fresh=True)
    assert weeks.decoded == [13]
    assert answers(grown) == answers(anew)
    assert [read_record(one).metrics.get("rows_taken_over") for one in (grown, anew)] == [11, None]
    shown = [json.loads((evaluation / "metrics.json").read_text()) for evaluation in (grown, anew)]
    assert all(one.pop("examples_per_second") > 0 for one in shown)
    assert shown[0] == shown[1]
    gone = weeks.evaluate(weeks.prepare(range(3, 9)))
    assert weeks.decoded == []
    assert answers(gone) == answers(anew)[2:8]
    assert "examples/s" not in (gone / "report.html").read_text()


def test_another_model_another_way_to_ask_and_other_pixels_are_decoded(weeks: Weeks, tmp_path: Path) -> None:
    first, second = weeks.prepare(range(5)), weeks.prepare(range(6))
    weeks.evaluate(first)
    finetune(checkpoint=BASE, records=first, output=str(tmp_path / "tuned"), set_=["steps=1", "remat=none"])
    for changes in ({"seed": 1}, {"tuned": str(tmp_path / "tuned")}):
        weeks.evaluate(second, **changes)
        assert weeks.decoded == [6]
    data = weeks.source.jsonl
    prepare(data=data, checkpoint=BASE, output=tmp_path / "grey", grey_range="0,200")
    weeks.evaluate(str(tmp_path / "grey"))
    assert weeks.decoded == [6]
    weeks.evaluate(second)
    assert weeks.decoded == [1]


def test_references_are_those_of_today(weeks: Weeks) -> None:
    weeks.evaluate(weeks.prepare(range(4)))
    evaluation = weeks.evaluate(weeks.prepare(range(4), answers=["another", "more"]))
    assert weeks.decoded == []
    assert all(json.loads(line)["answers"] == ["another", "more"] for line in answers(evaluation))


def test_answers_that_are_damaged_or_gone_are_decoded_anew(weeks: Weeks, caplog: pytest.LogCaptureFixture) -> None:
    first, second, third = (weeks.prepare(range(rows)) for rows in (4, 5, 6))
    before = weeks.evaluate(first)
    (before / "predictions.jsonl").write_text("{}\n")
    weeks.evaluate(second)
    assert weeks.decoded == [5]
    assert "is not whole, or was changed" in caplog.text
    (weeks.root / "week-2/evaluate/evaluation/lineage.json").unlink()
    weeks.evaluate(third)
    assert weeks.decoded == [6]


def test_a_step_that_is_run_by_hand_decodes_everything(weeks: Weeks, tmp_path: Path) -> None:
    records = weeks.prepare(range(4))
    weeks.evaluate(records)
    weeks.decoded.clear()
    evaluate(checkpoint=BASE, records=records, output=str(tmp_path / "own"), max_new_tokens=6)
    assert weeks.decoded == [4]


def test_a_champion_answers_only_new_rows_from_its_days_as_a_candidate_on(weeks: Weeks, tmp_path: Path) -> None:
    registry = str(tmp_path / "registry")
    first, second, third = (weeks.prepare(range(rows)) for rows in (6, 8, 9))
    better, settings = str(tmp_path / "better"), ["steps=40", "learning_rate=0.2", "remat=none", "batch_size=8"]
    finetune(checkpoint=BASE, records=first, output=better, set_=settings)
    judged = weeks.evaluate(first, tuned=better, registry=registry)
    assert weeks.decoded == [6]
    publish(BASE, better, str(judged), registry)

    second_week = weeks.evaluate(second, registry=registry)
    assert weeks.decoded == [8, 2]  # the candidate is new, the champion answered six rows when it was one
    third_week = weeks.evaluate(third, registry=registry)
    assert weeks.decoded == [1, 1]
    anew = weeks.evaluate(third, registry=registry, fresh=True)
    assert weeks.decoded == [9, 9]
    assert (third_week / "gate.json").read_bytes() == (anew / "gate.json").read_bytes()
    kept, made = ((evaluation / "champion.jsonl").read_text().splitlines() for evaluation in (third_week, anew))
    for mine, theirs in zip(map(json.loads, kept), map(json.loads, made), strict=True):
        assert (mine["row_id"], mine["prediction"]) == (theirs["row_id"], theirs["prediction"])
        assert mine["target_logprob"] == pytest.approx(theirs["target_logprob"], abs=1e-3)
    assert len((second_week / "champion.jsonl").read_text().splitlines()) == 8
