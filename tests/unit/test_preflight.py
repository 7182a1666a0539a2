"""Preflight on CPUs: what is compiled is what runs, and what does not fit is refused with what does."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from jax import tree
from rich.console import Console
from typer.testing import CliRunner

from paligemma.checkpoints.open_checkpoint import open_checkpoint
from paligemma.errors import InputError
from paligemma.extras import how_to_install
from paligemma.models.config import VARIANTS
from paligemma.models.parameter_shapes import parameter_shapes
from paligemma.preflight import compiler, worker
from paligemma.preflight.abstract import abstract_step, lower_decoding
from paligemma.preflight.account import Account, account, open_loops
from paligemma.preflight.analyze import MEMORY_VARIABLE, DoesNotFitError, device_memory, examine, read_prices
from paligemma.preflight.compiler import Job
from paligemma.preflight.hlo_text import read_program
from paligemma.preflight.render import OF_A_SWEEP, cells, tables
from paligemma.preflight.search import cost, find_fitting
from paligemma.preflight.summary import seconds, summary, weight_sizes
from paligemma.preflight.targets import GIB, TARGETS, find_target
from paligemma.storage import cache
from paligemma.training.recipe import parse_recipe
from pipelines.cli import app

TEXT = 16


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path / "cache"))


@pytest.fixture
def compiled_once(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers of the real compiler are shared by the tests that ask for this."""
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path_factory.getbasetemp() / "compiled once"))


def pretend_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the accelerators' compilers were there; other modules are found as ever."""
    find = importlib.util.find_spec
    wheels = ("libtpu", "jax_cuda12_plugin")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: name in wheels or find(name, *rest))


def recipe(*settings: str):
    return parse_recipe("", ["batch_size=8", "steps=2", *settings], "test")


def tiny():
    return open_checkpoint("embedded:tiny").config


def real_arrays(shapes):
    return tree.map(lambda leaf: jax.device_put(np.ones(leaf.shape, leaf.dtype), leaf.sharding), shapes)


@pytest.mark.parametrize("settings", [(), ("optimizer=adamw", "trainable=llm"), ("trainable=lora", "accumulate=2")])
@pytest.mark.parametrize("devices", [1, 4])
def test_the_step_runs_as_it_was_lowered_and_arguments_take_what_was_said(settings: tuple[str, ...], devices: int) -> None:
    step, shapes = abstract_step(tiny(), recipe(*settings), jax.devices()[:devices], "float32", TEXT)
    compiled = step.lower(*shapes).compile()
    arrays = real_arrays(shapes)
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in tree.leaves(arrays))
    assert held == compiled.memory_analysis().argument_size_in_bytes
    _, metrics = compiled(*arrays)
    assert metrics.loss.shape == ()


@pytest.mark.usefixtures("compiled_once")
def test_a_job_that_fits_and_the_answer_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    first = examine(tiny(), recipe(), "cpu", TEXT, {"cpu": 0.5})
    assert first.fits
    assert 0 < first.found["arguments"] < first.peak < first.limit
    assert (first.seconds, first.dollars_per_hour) == (None, 0.5)
    monkeypatch.setattr(compiler, "_run", lambda job: pytest.fail("compiled again"))
    again = examine(tiny(), recipe("steps=99", "learning_rate=1.0"), "cpu", TEXT, {"cpu": 0.5})
    assert (again.peak, again.found) == (first.peak, first.found)
    assert again.steps == 99


def test_another_step_is_compiled_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(compiler, "_run", lambda job: asked.append(job) or {"arguments": 1, "temporaries": 1})
    for sources in ("a", "a", "b"):
        monkeypatch.setattr(compiler, "_sources_sha256", lambda sources=sources: sources)
        compiler.compile_step(Job(tiny(), "cpu", TEXT), recipe())
    assert len(asked) == 2
    compiler.compile_step(Job(tiny(), "cpu", TEXT, full_effort=True), recipe())
    compiler.compile_decoding(Job(tiny(), "cpu", TEXT), 1, "float16")
    compiler.compile_decoding(Job(tiny(), "cpu", TEXT), 2, "float16")
    assert len(asked) == 5


def test_the_step_and_its_shardings_are_among_the_sources() -> None:
    root = Path(compiler.__file__).parents[1]
    for place in compiler._SOURCES:
        assert (root / place).exists()
    assert len(compiler._sources_sha256()) == 64


def test_what_does_not_fit_gets_a_recipe_that_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "_run", worker.compile_job)  # the real compiler, with no process for each recipe
    parsed = recipe("batch_size=64", "remat=none")
    needed = examine(tiny(), parsed, "cpu", TEXT, {})
    monkeypatch.setenv(MEMORY_VARIABLE, str(int(needed.peak / 0.9 * 0.8)))
    assert not examine(tiny(), parsed, "cpu", TEXT, {}).fits
    changed, overrides, report = find_fitting(tiny(), parsed, "cpu", TEXT, {})
    assert report.fits
    assert parse_recipe("", ["batch_size=64", "steps=2", "remat=none", *overrides], "x") == changed
    monkeypatch.setenv(MEMORY_VARIABLE, "1000")
    assert find_fitting(tiny(), recipe("batch_size=1"), "cpu", TEXT, {}) is None


def accounts(received: int = 0, seconds: float | None = 0.1) -> dict:
    """An account of a step, or of decoding, as the worker writes it."""
    collectives = {"all-gather": {"count": 1, "bytes": received}} if received else {}
    one = {"flops": {"bf16": 10**12, "f32": 10**10}, "bytes": 3 * 10**9, "cycles": 0, "copied": 0, "copies": []}
    one |= {"collectives": collectives, "seconds": seconds}
    return {"accounts": {name: one for name in ("step", "prefill", "token")}}


def modelled(job: dict) -> dict:
    """A compiler whose memory follows a formula: bytes of one device."""
    recipe, devices = job["recipe"], job["devices"]
    kept = {"none": 1.2, "dots": 0.7, "attention": 0.25, "full": 0.15}[recipe["remat"]]
    rows = recipe["batch_size"] / recipe["accumulate"] / devices
    state = {"adamw": 3.0, "adafactor": 0.5, "sgd": 0.0}[recipe["optimizer"]]
    total = (5.8 + state) / (devices / recipe["data_parallel"]) + rows * kept + recipe["loss_chunk"] / 512
    return {"arguments": int(total * GIB), "temporaries": 0, "compile_seconds": 1.0} | accounts()


@pytest.mark.parametrize(
    ("target", "settings"),
    [
        ("v5e-1", ["batch_size=8", "remat=none"]),
        ("v5e-1", ["batch_size=64"]),
        ("v5e-8", ["batch_size=1024"]),
        ("v5e-8", ["batch_size=64", "remat=none", "data_parallel=8"]),
    ],
)
def test_what_is_found_is_the_cheapest_that_fits(target: str, settings: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    monkeypatch.setattr(compiler, "_run", lambda job: compiled.append(job) or modelled(job))
    pretend_installed(monkeypatch)
    parsed, place, config = parse_recipe("", settings), find_target(target), VARIANTS["paligemma-3b-pt-224"]
    assert not examine(config, parsed, target, 128, {}).fits
    changed, _, report = find_fitting(config, parsed, target, 128, {})
    assert report.fits
    assert (changed.optimizer, changed.batch_size) == (parsed.optimizer, parsed.batch_size)
    assert len(compiled) <= 16
    everything = itertools.product(("none", "dots", "attention", "full"), (1, 2, 4, 8, 16, 32), (128, 512), (1, 2, 4, 8))
    for remat, parts, chunk, copies in everything:
        if (parsed.batch_size // place.devices) % parts or place.devices % copies:
            continue
        changes = {"remat": remat, "accumulate": parts, "loss_chunk": chunk, "data_parallel": copies}
        other = parsed.model_copy(update=changes)
        needed = modelled({"recipe": other.model_dump(mode="json"), "devices": place.devices})["arguments"]
        if needed < report.limit:
            assert cost(config, changed, place, 128) <= cost(config, other, place, 128)


def test_an_optimizer_with_less_state_comes_before_a_smaller_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "_run", modelled)
    pretend_installed(monkeypatch)
    monkeypatch.setitem(TARGETS, "v5e-1", dataclasses.replace(TARGETS["v5e-1"], memory=9 * GIB))
    found = find_fitting(VARIANTS["paligemma-3b-pt-224"], recipe("optimizer=adamw"), "v5e-1", 128, {})
    assert found[0].batch_size == 8
    assert "optimizer=adafactor" in found[1]


@pytest.mark.parametrize(("gib", "kind"), [(4.5, "int8"), (2.9, "nf4"), (2.0, None)])
def test_frozen_weights_are_quantized_when_nothing_else_fits(
    gib: float, kind: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = {"float16": 5.8, "int8": 3.0, "nf4": 2.2}

    def quantizing(job: dict) -> dict:
        found = modelled(job)
        return found | {"arguments": found["arguments"] + int((held[job["recipe"]["frozen_dtype"]] - 5.8) * GIB)}

    monkeypatch.setattr(compiler, "_run", quantizing)
    pretend_installed(monkeypatch)
    monkeypatch.setitem(TARGETS, "v5e-1", dataclasses.replace(TARGETS["v5e-1"], memory=int(gib * GIB)))
    found = find_fitting(VARIANTS["paligemma-3b-pt-224"], recipe("batch_size=2", "trainable=lora"), "v5e-1", 128, {})
    if kind is None:
        assert found is None
        return
    assert found is not None
    assert (found[0].frozen_dtype, found[0].batch_size) == (kind, 2)
    assert f"frozen_dtype={kind}" in found[1]


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "_run", worker.compile_job)
    command = ["preflight", "--checkpoint", "embedded:tiny", "--set", "steps=5", "--max-text-tokens", "16"]
    monkeypatch.setenv("COLUMNS", "40")  # no figure is cut off where lines are short
    result = CliRunner().invoke(app, [*command, "--batch-size", "1,2", "--target", "cpu", "--output", str(tmp_path / "out")])
    assert result.exception is None, result.output
    assert [line.split()[1:] for line in result.output.splitlines() if "fits" in line] == [
        ["fits", "│", "yes", "│", "yes", "│"]
    ]
    assert "s/step at best" in result.output
    found = json.loads((tmp_path / "out/preflight.json").read_text())
    assert [report["batch_size"] for report in found["reports"]] == [1, 2]
    assert found["reports"][0]["steps"] == 5
    assert "cpu, batch 2" in (tmp_path / "out/preflight.html").read_text()
    monkeypatch.setenv(MEMORY_VARIABLE, "1000")
    result = CliRunner().invoke(app, [*command, "--batch-size", "2"])
    assert isinstance(result.exception, DoesNotFitError)
    assert result.exception.exit_code == 2
    assert CliRunner().invoke(app, [*command, "--batch-size", "2", "--warn-only"]).exception is None


def test_what_a_terminal_has_no_room_for_goes_into_a_second_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "_run", modelled)
    pretend_installed(monkeypatch)
    config = VARIANTS["paligemma-3b-pt-224"]
    reports = [examine(config, recipe(), target, 128, {}) for target in ("v5e-1", "l4")]
    assert [len(table.columns) for table in tables(reports, 80)] == [3]
    narrow = tables(reports, 30)
    assert [len(table.columns) for table in narrow] == [2, 2]
    console = Console(width=30)
    with console.capture() as printed:
        for table in narrow:
            console.print(table)
    assert "…" not in printed.get()
    assert max(map(len, printed.get().splitlines())) <= 30


def test_memory_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MEMORY_VARIABLE, "16G")
    with pytest.raises(InputError, match=r"16G is not a number of bytes"):
        device_memory(find_target("cpu"))


def test_a_sweep_tabulates_batch_by_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "_run", modelled)
    pretend_installed(monkeypatch)
    command = ["preflight", "--variant", "paligemma-3b-pt-224", "--sweep", "--batch-size", "8,64", "--target", "v5e-1,l4"]
    result = CliRunner().invoke(app, [*command, "--markdown", "--output", str(tmp_path / "out")])
    assert result.exception is None, result.output
    header, _, *rows = [line.strip("| ").split(" | ") for line in result.stdout.splitlines()]
    assert header == list(OF_A_SWEEP)
    name = "paligemma-3b-pt-224"
    assert [row[:7] for row in rows] == [
        ["v5e-1", name, "8", "float16", "8.00", "15.43", "yes"],
        ["l4", name, "8", "float16", "8.00", "20.69", "yes"],
        ["v5e-1", name, "64", "float16", "16.40", "15.43", "no"],
        ["l4", name, "64", "float16", "16.40", "20.69", "yes"],
    ]
    assert rows[0][7:11] == ["1.0", "3.0", "0.0", "0.100"]
    assert (tmp_path / "out/table.md").read_text() == result.stdout
    assert len(json.loads((tmp_path / "out/preflight.json").read_text())["reports"]) == 4


@pytest.mark.parametrize(
    "text", ["", "HloModule of another kind", "ENTRY %m () -> f32[] {\n  ROOT %a = f32[] dot(%b, %c)\n}\n"]
)
def test_a_program_that_cannot_be_read_is_judged_by_its_memory(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler may print another form any day, and the pipeline waits for what preflight says of memory."""
    monkeypatch.setattr(jax.stages.Compiled, "as_text", lambda compiled: text)
    job = {"program": "step", "config": tiny().model_dump(mode="json"), "recipe": recipe("steps=1").model_dump(mode="json")}
    found = worker.compile_job(job | {"target": "cpu", "text_tokens": TEXT, "full_effort": False})
    assert "accounts" not in found
    assert found["unread"].split(":")[0] in ("ValueError", "KeyError")
    assert found["arguments"] > 10**6
    monkeypatch.setattr(compiler, "_run", lambda job: found)
    report = examine(tiny(), recipe("steps=1"), "cpu", TEXT, {}, fresh=True)
    assert (report.fits, report.flops_done, report.bytes_moved, report.seconds) == (True, None, None, None)
    assert cells(report)[:2] == ("cpu", str(report.batch_size))


def test_a_step_costs_what_its_account_says(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_installed(monkeypatch)
    told = {"arguments": 10**9, "temporaries": 10**9, "compile_seconds": 1.0} | accounts(received=10**8, seconds=0.5)
    monkeypatch.setattr(compiler, "_run", lambda job: told)
    report = examine(VARIANTS["paligemma-3b-pt-224"], recipe("steps=3600"), "v5e-8", 128, {"v5e": 2.0}, decoding=4)
    assert (report.seconds, report.bytes_moved, report.bytes_received) == (0.5, 3 * 10**9, 10**8)
    assert report.flops_done == {"bf16": 8 * 10**12, "f32": 8 * 10**10}
    assert report.share_of_peak == pytest.approx(report.flops / (0.5 * 197e12 * 8))
    assert report.hours == pytest.approx(0.5)
    assert report.dollars == pytest.approx(0.5 * 2.0 * 8)
    assert (report.decoding.rows, report.decoding.token_bytes, report.decoding.token_seconds) == (4, 3 * 10**9, 0.5)
    assert report.decoding.parameter_bytes == pytest.approx(5.02e9 / 8, rel=0.01)


def test_seconds_are_the_data_sheets_or_the_compilers_cycles_and_messages_may_take_longer() -> None:
    product = "dot(%a, %a), lhs_contracting_dims={1}, rhs_contracting_dims={0}"
    cycles = ', backend_config={"window_config":{"estimated_cycles":"3000000"}}'

    def entry(root: str) -> Account:
        lines = ("ENTRY %m () -> bf16[1] {", "  %a = bf16[8192,8192]{1,0} parameter(0)", f"  ROOT %b = {root}", "}")
        return account(read_program("\n".join(lines)))

    found = entry(f"bf16[8192,8192]{{1,0}} {product}{cycles}")
    v5e, t4, gathered = find_target("v5e-1"), find_target("t4"), "bf16[65536,8192]{1,0} all-gather(%a)"
    assert seconds(found, v5e, cycles=0) == pytest.approx(2 * 8192**3 / 197e12)
    assert seconds(found, v5e, cycles=3_000_000) == pytest.approx(3e6 / 1.503e9, rel=1e-3)
    assert seconds(found, t4, cycles=0) == pytest.approx(2 * 8192**3 / 8.1e12)  # a T4 has no bfloat16
    assert seconds(found, find_target("cpu"), cycles=0) is None
    sent = entry(gathered)
    assert seconds(sent, find_target("v5e-8"), cycles=1) == pytest.approx(65536 * 8192 * 2 / 200e9)
    assert summary(found, v5e, [], full_effort=False)["cycles"] == 0
    assert summary(found, v5e, [], full_effort=True)["cycles"] == 3_000_000


def test_weights_are_large_whole_by_layer_and_in_parts() -> None:
    sizes = weight_sizes([(18, 2, 2048, 16384), (18, 2048), (1024, 1024)])
    assert sizes == {18 * 2 * 2048 * 16384, 2 * 2048 * 16384, 2048 * 16384, 1024**2}


def test_decoding_is_what_the_generator_runs() -> None:
    """Two simulated devices: a token reads the decoder's parameters, and does their products, while a row is running."""
    devices, rows = jax.devices()[:2], 2
    program = read_program(lower_decoding(tiny(), devices, "float32", 1, TEXT, "float32").compile().as_text())
    (body,) = open_loops(program)
    token = account(program, start=body)
    shapes = parameter_shapes(tiny())
    read = [shape for name, shape in shapes.items() if name.startswith("llm/") and not name.endswith("scale")]
    needed = 2 * sum(map(np.prod, read)) * rows / len(devices)
    assert needed <= token.flops["f32"] <= 1.2 * needed  # and attention
    assert account(program, open_loops=0).flops["f32"] > 10 * token.flops["f32"]
    assert summary(token, find_target("cpu-2"), shapes.values(), full_effort=False)["copies"] == []


def test_decoding_on_one_cpu_has_no_program_without_weights() -> None:
    with pytest.raises(InputError, match="Decoding on one CPU has no program without weights"):
        examine(tiny(), recipe(), "cpu", TEXT, {}, decoding=1)


@pytest.mark.usefixtures("compiled_once")
def test_steps_of_epochs_are_planned_by_the_rows() -> None:
    by_epochs = parse_recipe("", ["epochs=2", "batch_size=8"])
    assert examine(tiny(), by_epochs, "cpu", TEXT, {}).steps is None
    assert examine(tiny(), by_epochs, "cpu", TEXT, {}, rows=100).steps == 25


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--variant", "paligemma-3b-pt-225"], "did you mean"),
        ([], "Give one of the two"),
        (["--checkpoint", "embedded:tiny", "--target", "v5e-2"], "There is no target"),
        (["--checkpoint", "embedded:tiny", "--target", "cpu-8", "--batch-size", "4"], "does not split over 8 devices"),
    ],
)
def test_wrong_input(arguments: list[str], said: str) -> None:
    found = CliRunner().invoke(app, ["preflight", *arguments]).exception
    assert isinstance(found, InputError)
    assert said in str(found)


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler.importlib.util, "find_spec", lambda name: None)
    for target, wheel in (("v5e-1", "libtpu"), ("l4", "jax_cuda12_plugin")):
        with pytest.raises(InputError, match=wheel) as caught:
            examine(tiny(), recipe(), target, TEXT, {})
        assert how_to_install("preflight") in str(caught.value)


def test_every_device_that_is_rented_has_a_price_and_a_target_is_found(tmp_path: Path) -> None:
    _, prices = read_prices()
    bought = {device for device in (target.device for target in TARGETS.values()) if device.startswith("rtx")}
    assert {target.device for target in TARGETS.values()} - {"cpu"} - bought == prices.keys()
    assert find_target("v5e-4").devices == 4
    (tmp_path / "x.yaml").write_text("- 1")
    with pytest.raises(InputError, match="The prices cannot be read"):
        read_prices(tmp_path / "x.yaml")
    assert "paligemma2-10b-pt-224" in VARIANTS


def test_a_compiler_that_is_not_the_images_is_named(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    pretend_installed(monkeypatch)
    monkeypatch.setattr(compiler, "_run", lambda job: {"out_of_memory": "x"})
    monkeypatch.setattr(compiler.importlib.metadata, "requires", lambda name: ["jax", 'libtpu==0.0.42.1; extra == "preflight"'])
    for version, said in (("0.0.42.1", False), ("0.0.52", True)):
        monkeypatch.setattr(compiler.importlib.metadata, "version", lambda name, version=version: version)
        for _ in range(2):  # what was kept from before is no better
            caplog.clear()
            compiler.compile_step(Job(tiny(), "v5e-1", TEXT), recipe())
            assert ("libtpu 0.0.52, is not the image's (0.0.42.1)" in caplog.text) == said
    caplog.clear()
    compiler.compile_step(Job(tiny(), "l4", TEXT), recipe())  # the extra pins none for GPUs
    assert "the image's" not in caplog.text
