"""The card names what a release was made from by its sources, and has a snippet that is true."""

from __future__ import annotations

from pathlib import Path

from lineage_runs import at_place, make_step

from components.publish.card import about_frozen
from components.publish.release import sources_of
from paligemma.artifacts.record import Input, file_sha256
from paligemma.artifacts.store import input_of, produce


def test_the_sources_are_data_files_and_the_address_that_a_checkpoint_came_from(tmp_path: Path) -> None:
    data, weights = tmp_path / "train.jsonl", tmp_path / "cache/weights.npz"
    weights.parent.mkdir()
    data.write_text("rows\n")
    weights.write_bytes(b"weights")
    address = "kaggle://google/paligemma/jax/paligemma-3b-pt-224/1"
    root = tmp_path / "root"
    fetched = Input(role="weights", uri=address, sha256=file_sha256(weights))
    base = str(root / "one/fetch/checkpoint")
    with at_place("one", "fetch", str(root)), produce(base, "checkpoint", "fetch_checkpoint", {}, [fetched]) as draft:
        (draft.folder / "file").write_text("weights")
    records = make_step(root, "one", "train", "prepare_data", "records", [("data", data), ("checkpoint", base)])
    inputs = [input_of("checkpoint", base), input_of("train records", records), input_of("data", data)]
    assert sources_of(inputs) == [
        ("checkpoint: weights", address, file_sha256(weights)),
        ("train records: data", str(data), file_sha256(data)),
    ]
    (Path(records) / "lineage.json").unlink()  # what is gone is left out
    assert [source.role for source in sources_of(inputs)] == ["checkpoint: weights"]


def test_a_model_that_was_tuned_over_quantized_weights_says_that_it_has_them_no_more() -> None:
    (line,) = about_frozen("nf4")
    assert "held as nf4" in line
    assert "floats, as the base has them" in line
    assert about_frozen("float16") == about_frozen(None) == []
