"""The demo's data. That the demo keeps its promises is asserted where it is run: `tests/walk/test_demo.py`."""

from __future__ import annotations

import json
from pathlib import Path

from pipelines.demo.digits import write_digits


def test_no_image_is_in_both_splits(tmp_path: Path) -> None:
    write_digits(tmp_path / "digits")
    images = {}
    for split in ("train", "validation"):
        lines = (tmp_path / "digits" / f"{split}.jsonl").read_text().splitlines()
        images[split] = {json.loads(line)["image"] for line in lines}
    assert images["train"].isdisjoint(images["validation"])
    assert len(images["train"] | images["validation"]) == 1797
