"""Runs of `prepare_data` over one data set, one after the other, as a pipeline has them."""

from __future__ import annotations

import contextvars

from components.prepare_data.main import prepare_data
from paligemma.artifacts.record import read_record
from paligemma.artifacts.recording import set_place
from paligemma.artifacts.store import localize

SETTINGS = {
    "checkpoint": "embedded:tiny",
    "images": "",
    "split": "train",
    "max_text_tokens": 24,
    "over_long": "reject",
    "max_reject_fraction": 0.9,
    "rows_per_shard": 4,
    "compression": "webp",
    "against": "",
    "workers": 1,
    "grey_range": "",
}


class Weeks:
    """Weekly runs of a pipeline over one data set, and runs that make everything from nothing."""

    def __init__(self, data: str, root: str, fresh: str) -> None:
        self.data, self.root, self.fresh, self.count = data, root, fresh, 0

    def run(self, root: str = "", reuse: bool = True, **changes: object) -> str:
        """The records of a further run."""
        self.count += 1
        return contextvars.copy_context().run(self._run, root or self.root, reuse, SETTINGS | changes)

    def _run(self, root: str, reuse: bool, values: dict) -> str:
        set_place(f"run-{self.count}", "prepare", root, reuse)
        return prepare_data(data=self.data, output=f"{root}/run-{self.count}/prepare/records", **values)

    def check(self, **changes: object) -> str:
        """Asserts that a further run's bytes are those of one that makes everything, and returns where they are."""
        made = self.run(**changes)
        again = self.run(self.fresh, reuse=False, **changes)
        assert files_of(made) == files_of(again)
        return made


def files_of(records: str) -> dict[str, str]:
    return {file.path: file.sha256 for file in read_record(localize(records)).artifact.files}
