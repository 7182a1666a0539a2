"""A training of which nothing is saved yet saves its first state soon, and then every ten minutes."""

from __future__ import annotations

import time

import pytest

from paligemma.training import fit
from paligemma.training.recipe import parse_recipe


def test_the_first_state_is_saved_soon_and_the_next_ones_every_ten_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    recipe, begun = parse_recipe("steps: 100"), {done: fit._begin(done) for done in (0, 7)}

    def due(done: int, after: float) -> bool:
        nonlocal now
        now = 1000.0 + after
        return fit._is_due(recipe, 1, begun[done])

    assert [due(0, after) for after in (29, 31)] == [False, True]
    assert [due(7, after) for after in (31, 599, 601)] == [False, False, True]
