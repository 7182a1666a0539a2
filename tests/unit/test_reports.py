"""Every template, filled in with what the steps really write: of no row, of one, of thousands, of every odd kind."""

from __future__ import annotations

import json
import logging
import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lineage_runs import make_run

from components.evaluate.contenders import Evaluation, judge_against
from components.evaluate.report import REPORT_ROWS, render_report
from components.evaluate.results import Judgement, judge, write_results
from components.finetune import results as training_module
from components.finetune.results import REPORT_FILE
from components.finetune.results import write_results as write_training
from components.prepare_data import report as dataset_module
from components.prepare_data.__main__ import run as prepare
from components.prepare_data.report import render_report as render_dataset
from components.summarize.__main__ import run as summarize
from conftest import REPOSITORY, SmallData
from paligemma.checkpoints.open_checkpoint import open_checkpoint
from paligemma.data.balance import balance_findings
from paligemma.data.prepare import Facts, Job, Remark, Sampled
from paligemma.data.preview import preview_page
from paligemma.data.records import Dataset, Shard, open_records
from paligemma.data.row_sources import RowSource
from paligemma.data.row_warnings import WARNINGS
from paligemma.data.rows import REASONS
from paligemma.errors import StoppedError
from paligemma.evaluation import significance
from paligemma.evaluation.metrics import find_metric
from paligemma.evaluation.predict import Prediction
from paligemma.evaluation.tasks import TASKS
from paligemma.lineage import page as page_module
from paligemma.lineage.index import Index
from paligemma.lineage.page import page_data, render_page
from paligemma.preflight import analyze, render
from paligemma.preflight.render import write as write_preflight
from paligemma.reports.page import write_page
from paligemma.training.fit import Progress
from paligemma.training.recipe import parse_recipe

quick = settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
BLACK = np.zeros((8, 8, 3), np.uint8)
WITHOUT_FILES = [name for name in TASKS if name != "segment"]  # which needs the weights of a decoder
TEXTS = st.one_of(
    st.sampled_from(
        ["", "yes", "No.", "a cat", "<loc0001><loc0002><loc0500><loc0600> cat", "3,5 %", "日本", "</script>", "🙂"]
    ),
    st.text(max_size=12),
)
NUMBERS = st.floats(allow_nan=True, allow_infinity=True)


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(significance, "RESAMPLES", 20)


def predicted(prefix: str, references: Sequence[str], answer: str, logprob: float = -1.0, target_logprob: float = -2.0):
    return Prediction("0" * 64, prefix, references[0], tuple(references), answer, logprob, target_logprob, 3)


def judged(predictions: list[Prediction], task: str = "", speed: float = 1.0) -> Judgement:
    metrics = {name: find_metric(name) for name in TASKS[task].metrics}
    return judge("tuned", predictions, task, metrics, speed, max_new_tokens=32)


def strictly(text: str) -> object:
    """JSON as a browser reads it, which knows no NaN."""
    return json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


def shown(page: str) -> list[dict]:
    """The rows of an evaluation's page."""
    return strictly(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


def evaluation_page(judgement: Judgement, baseline: Judgement | None, folder: Path) -> str:
    """The page, after everything else that the step writes."""
    other = None
    if baseline is not None:
        rows = baseline.scores[baseline.primary].rows
        other = Evaluation(baseline.summary, [p.prediction for p in baseline.predictions], rows)
    compared = {"baseline": other} if other else {}
    decision = judge_against(compared, judgement.scores[judgement.primary], judgement.primary, 0.0)
    write_results(folder, judgement, decision)
    assert strictly((folder / "metrics.json").read_text()) == judgement.summary
    for line in (folder / "predictions.jsonl").read_text().splitlines():
        strictly(line)
    return render_report(judgement, other, decision, lambda row: BLACK, "validation")


ROWS = st.lists(st.tuples(TEXTS, st.lists(TEXTS, min_size=1, max_size=3), TEXTS, TEXTS, NUMBERS, NUMBERS), max_size=24)


@pytest.mark.parametrize("task", WITHOUT_FILES)
@quick
@given(ROWS, st.booleans())
def test_any_evaluation_has_a_page(task: str, tmp_path: Path, rows: list[tuple], beside: bool) -> None:
    predictions = [predicted(prefix, wanted, answer, *numbers) for prefix, wanted, answer, _, *numbers in rows]
    others = [predicted(prefix, wanted, answer) for prefix, wanted, _, answer, *_ in rows]
    judgement = judged(predictions, task)
    page = evaluation_page(judgement, judged(others, task) if beside else None, tmp_path)
    assert Counter(row["prediction"] for row in shown(page)) == Counter(p.prediction for p in predictions)
    texts = {p.target.strip() for p in TASKS[task].cleaned(predictions) if "<loc0001>" not in p.target}
    assert page.count("<h2>Confusion</h2>") == (0 < len(texts) <= 20)


@pytest.mark.parametrize(
    ("kind", "rows"),
    [
        *((kind, rows) for kind in ("all right", "all wrong", "one class", "empty answers") for rows in (0, 1, 20, 21, 5000)),
        ("all wrong", 5001),
    ],
)
def test_an_evaluation_of_any_size_has_a_page(kind: str, rows: int, tmp_path: Path) -> None:
    target = {"one class": "yes"}.get(kind)
    answer = {"all wrong": "nothing", "empty answers": ""}.get(kind)
    targets = [target or f"name {number}" for number in range(rows)]
    predictions = [
        predicted(f"what is {number}?", [text], text if answer is None else answer) for number, text in enumerate(targets)
    ]
    judgement = judged(predictions)
    page = evaluation_page(judgement, None, tmp_path)
    right = kind in ("all right", "one class") and rows > 0
    assert judgement.summary["exact_match"] == right
    assert ("<h2>Confusion</h2>" in page) == (0 < len(set(targets)) <= 20)
    assert len(shown(page)) == min(rows, REPORT_ROWS)
    assert len(judgement.summary["by_question"]) == min(rows, 50)
    assert (f"The 50 most frequent of {rows}." in page) == (rows > 50)
    assert len(page) < 100_000 + 700 * rows


def test_figures_that_are_no_numbers_are_dashes(tmp_path: Path) -> None:
    """A model that diverged says something, but not with what probability."""
    page = evaluation_page(judged([predicted("ocr", ["1"], "1", math.nan, -math.inf)]), None, tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text())["loss"] is None
    assert shown(page)[0]["logprob"] is None
    assert 'loss of the reference, nats a token</td><td class="number" data-label="value">–</td>' in page


COUNTS = st.dictionaries(st.integers(1, 600), st.integers(1, 10**6), max_size=5)
IMAGES = st.one_of(st.none(), st.sampled_from(["a.png", "gone.png", "../x.png"]))


@quick
@given(
    st.integers(0, 3),
    st.lists(st.tuples(st.sampled_from([*REASONS, "of_another_version"]), st.text(max_size=20), IMAGES), max_size=8),
    st.lists(st.tuples(st.sampled_from([*WARNINGS, "of_another_version"]), st.text(max_size=20), IMAGES), max_size=8),
    st.lists(TEXTS, max_size=30),
    st.lists(COUNTS, min_size=3, max_size=3),
)
def test_any_data_set_has_a_page(tmp_path: Path, shards: int, rejects, warned, suffixes: list[str], lengths) -> None:
    if not (tmp_path / "a.png").exists():
        SmallData(tmp_path).add_image("a.png")
    facts = Facts(rows=len(suffixes), suffixes=Counter(suffixes))
    facts.rejects = [Remark(line=1, row_id=None, code=code, message=said, image=image) for code, said, image in rejects]
    facts.warned = [Remark(line=2, row_id="x", code=code, message=said, image=image) for code, said, image in warned]
    facts.rejected, facts.warnings = (Counter(one.code for one in many) for many in (facts.rejects, facts.warned))
    facts.sample = [
        Sampled(row_id=str(line), line=line, image="a.png", prefix="ocr", suffix=suffix, tokens=3)
        for line, suffix in enumerate(suffixes[:9])
    ]
    prefix_tokens, suffix_tokens, text_tokens = lengths
    dataset = Dataset(
        split="train",
        rows=facts.rows,
        rejected=dict(facts.rejected),
        truncated=0,
        image_size=8,
        max_text_tokens=128,
        tokenizer_sha256="0" * 64,
        compression="none",
        prefix_tokens=prefix_tokens,
        suffix_tokens=suffix_tokens,
        text_tokens=text_tokens,
        shards=[Shard(file=str(number), rows=1, bytes=1, sha256="0" * 64) for number in range(shards)],
        warnings=dict(facts.warnings),
        frequent_suffixes=dict(facts.suffixes.most_common(20)),
        findings=balance_findings(facts.rows, facts.suffixes),
    )
    job = Job(
        [RowSource(tmp_path / "rows.jsonl", str(tmp_path), data="/data/rows.jsonl")], tmp_path / "t", 8, 128, "reject", "none"
    )
    page = render_dataset(dataset, facts, job)
    assert page.count('<div class="card">') == len(facts.sample)
    assert page.count('<tr data-code="') == len(facts.rejects) + len(facts.warned)


@quick
@given(
    st.lists(st.tuples(NUMBERS, st.floats(0, 1e9)), min_size=1, max_size=12),
    st.lists(NUMBERS, max_size=3),
    st.lists(st.integers(1, 9), max_size=2),
    st.booleans(),
)
def test_any_training_has_a_page(tmp_path: Path, losses, validations: list[float], skipped: list[int], same: bool) -> None:
    entries = [
        {"step": step, "loss": loss, "learning_rate": 0.1, "gradient_norm": loss, "examples_per_second": rate}
        | ({"seconds_step": 0.5, "tflops": 0.1, "share_of_peak": 0.2} if step % 2 else {})
        for step, (loss, rate) in enumerate(losses, start=1)
    ]
    entries += [{"step": step, "validation_loss": loss} for step, loss in enumerate(validations, start=1)]
    progress = Progress(skipped=skipped, validations=list(enumerate(validations, start=1)))
    base, trained = open_checkpoint("embedded:tiny"), {"llm/x": np.zeros((2, 3), np.float32)}
    write_training(tmp_path, base, parse_recipe("", [], "test"), trained, entries, progress, 1.0, "1 x cpu", same)
    page = (tmp_path / REPORT_FILE).read_text()
    assert "<h1>Training</h1>" in page
    assert ("validation loss, by step" in page) == bool(validations)


@pytest.mark.parametrize("target", ["cpu-2", "t4", "v5e-4"])
@pytest.mark.parametrize("length", ["steps=2", "epochs=1"])
@pytest.mark.parametrize("kind", ["fits", "does not fit", "out of memory", "messages", "copies", "unread"])
def test_any_preflight_has_a_page(kind: str, length: str, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"arguments": 2**20, "temporaries": 2**20, "outputs": 0, "code": 0, "compile_seconds": 1.0}
    found["temporaries"] *= 2**20 if kind == "does not fit" else 1
    messages = {"all-gather": {"count": 2, "bytes": 3.0}} if kind == "messages" else {}
    copies = [{"shape": "f16[2,2048,16384]", "times": 18, "bytes": 2e9, "source": "jit(<lambda>)"}] if kind == "copies" else []
    step = {"flops": {"bf16": 5}, "bytes": 7, "cycles": 0, "collectives": messages, "copied": 2e9, "copies": copies}
    step["seconds"] = None if target == "cpu-2" else 0.1
    found["accounts"] = {name: step for name in ("step", "prefill", "token")}
    if kind == "unread":
        del found["accounts"]
        found["unread"] = "ValueError: no HLO instruction: <x>"
    found = {"out_of_memory": "Ran out of <memory>"} if kind == "out of memory" else found
    monkeypatch.setattr(analyze, "compile_step", lambda *_: found)
    monkeypatch.setattr(analyze, "compile_decoding", lambda *_: found)
    prices = {} if target == "cpu-2" else analyze.read_prices()[1]
    recipe = parse_recipe("", ["batch_size=8", length], "test")
    config, decoding = open_checkpoint("embedded:tiny").config, 3 if kind in ("copies", "unread") else 0
    report = analyze.examine(config, recipe, target, 16, prices, decoding=decoding)
    assert report.fits == (kind in ("fits", "messages", "copies", "unread"))
    write_preflight(tmp_path, [report], "Preflight", "2026-01", "" if report.fits else "--set batch_size=1")
    page = (tmp_path / "preflight.html").read_text()
    assert f"<h2>{target}, batch 8</h2>" in page
    assert ("Ran out of &lt;memory&gt;" in page) == (kind == "out of memory")
    assert ("messages between devices" in page) == (kind == "messages")
    assert page.count("f16[2,2048,16384]") == (3 if kind == "copies" else 0)  # in a step, the prefill, and a token
    assert ("Decoding of 3 at once" in page) == (kind in ("copies", "unread"))
    assert page.count("ValueError: no HLO instruction: &lt;x&gt;") == (2 if kind == "unread" else 0)
    assert ("depends on the data" in page) == (length == "epochs=1")


def test_any_run_has_a_page(tmp_path: Path) -> None:
    """Whole, without a step, and one whose data rows are no longer to be had."""
    (tmp_path / "rows.jsonl").write_text("rows\n")
    make_run(tmp_path / "root", "one", [("1.png", "</script>"), ("2.png", "日本")], tmp_path / "rows.jsonl", release=True)
    for name in ("one", "none"):
        summarize(output=str(tmp_path / name), root=str(tmp_path / "root"), run=name, status='{"state": "FAILED"}')
        assert "<h1>Lineage</h1>" in (tmp_path / name / "report.html").read_text()
    with Index(tmp_path / "root") as index:
        for most_rows in (0, 1, 100):
            assert "<h1>Lineage</h1>" in render_page(page_data(index, limit=5, most_rows=most_rows))


def test_any_rows_have_a_preview(small_data: SmallData) -> None:
    good = {"image": small_data.add_image("a.png"), "prefix": "ocr", "suffix": "</script>"}
    for rows in ([], [good], [good, {**good, "image": "gone.png"}, b"{", {**good, "suffix": ""}, {**good, "prefix": "日本\n"}]):
        page = preview_page(str(small_data.write(rows)), "embedded:tiny")
        assert page.count('class="card row"') == len(rows)


def test_a_data_sets_page_draws_the_boxes_of_its_rows(small_data: SmallData, tmp_path: Path) -> None:
    suffix = f"<loc0100><loc0200><loc0300><loc0400>{'<seg001>' * 16} cat ; <loc0000><loc0000><loc1023><loc1023> a"
    row = {"image": small_data.add_image("a.png"), "prefix": "detect", "suffix": suffix}
    prepare(data=str(small_data.write([row])), checkpoint="embedded:tiny", output=str(tmp_path / "made"))
    page = (tmp_path / "made/report.html").read_text()
    assert '<rect class="box" x="200" y="100" width="200" height="200"/><text x="200" y="88">cat</text>' in page
    assert '<rect class="box" x="0" y="0" width="1023" height="1023"/><text x="0" y="56">a</text>' in page


def test_no_template_is_left_out() -> None:
    """A new one is to be filled in here, too."""
    templates = {path.name for path in (REPOSITORY / "shared/paligemma/reports/templates").iterdir()}
    here = {"dataset", "evaluation", "lineage", "preflight", "preview", "training"}
    assert templates == {f"{name}.html" for name in here} | {"page.html", "macros.html"}


def test_a_page_that_cannot_be_rendered_is_an_error_line_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def breaks() -> str:
        raise KeyError("<confusion>")

    with caplog.at_level(logging.ERROR):
        write_page(tmp_path / "report.html", breaks)
    (line,) = caplog.records
    assert line.levelno == logging.ERROR
    assert "report.html cannot be rendered" in line.getMessage()
    assert "KeyError: '<confusion>'" in line.getMessage()
    assert "cannot be rendered: KeyError: &#39;&lt;confusion&gt;&#39;" in (tmp_path / "report.html").read_text()


def test_who_is_told_to_stop_while_rendering_stops(tmp_path: Path) -> None:
    def stops() -> str:
        raise StoppedError("The step was told to stop (SIGTERM).")

    with pytest.raises(StoppedError):
        write_page(tmp_path / "report.html", stops)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("step", ["prepare_data", "finetune", "preflight", "summarize"])
def test_a_step_whose_page_cannot_be_rendered_has_its_artifact(
    step: str, small_data: SmallData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    module = {"prepare_data": dataset_module, "finetune": training_module, "preflight": render, "summarize": page_module}[step]
    monkeypatch.setattr(module, "render", lambda *_, **__: {}["confusion"])
    made = tmp_path / "made"
    if step == "prepare_data":
        row = {"image": small_data.add_image("a.png"), "prefix": "ocr", "suffix": "1"}
        prepare(data=str(small_data.write([row])), checkpoint="embedded:tiny", output=str(made))
        assert open_records(made).dataset.rows == 1
    elif step == "finetune":
        made.mkdir()
        base, entries = open_checkpoint("embedded:tiny"), [{"step": 1, "loss": 1.0, "examples_per_second": 1.0}]
        write_training(made, base, parse_recipe("", [], "test"), {"llm/x": BLACK}, entries, Progress(), 1.0, "1 x cpu", True)
        assert json.loads((made / "summary.json").read_text())["steps"] == 1
    elif step == "preflight":
        made.mkdir()
        write_preflight(made, [], "Preflight", "2026-01", "")
        assert json.loads((made / "preflight.json").read_text())["reports"] == []
    else:
        summarize(output=str(made), root=str(tmp_path), run="one")
        assert json.loads((made / "summary.json").read_text())["status"] == "unknown"
    name = {"finetune": "training.html", "preflight": "preflight.html"}.get(step, "report.html")
    assert f"{name} cannot be rendered, and says so; the files beside it are whole: KeyError: 'confusion'" in caplog.text
    assert "cannot be rendered: KeyError" in (made / name).read_text()
