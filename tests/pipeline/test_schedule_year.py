"""A weekly schedule on spot machines, over weeks that pass in moments; the whole year is in tests/benchmarks/schedule.py."""

from __future__ import annotations

import pytest

from servers.argo import STOCK_DEFAULTS
from servers.kubeflow import KubeflowServer
from servers.year import AS_IT_WAS, HOUR, PATCHED, WEEK, simulate


@pytest.mark.parametrize(("profile", "edits", "late"), [("kfp-gpu-l4", {1: 12 * HOUR}, 30), ("kfp-tpu-v5e-16", {}, 510)])
def test_weeks_of_preemptions_an_edit_and_a_cancelled_run(profile: str, edits: dict, late: float) -> None:
    with KubeflowServer() as server:
        year = simulate(profile, server, PATCHED, weeks=6, edits=edits, cancelled={3: 12 * HOUR})
        assert len(server.recurring_runs) == 1
        assert server.collected == []
    assert (len(year.runs), year.skipped) == (6, 0)
    assert (year.count("succeeded"), year.count("cancelled")) == (5, 1)
    assert sum(one.preemptions for one in year.runs) > 20
    assert year.at_once == 1
    assert year.from_nothing == 0
    assert year.outlived == late <= 600
    assert max(one.ended - one.started for one in year.runs) < WEEK


def test_it_is_the_window_the_patch_and_the_orphaning_that_do_it() -> None:
    with KubeflowServer() as server:
        for more in ({"defaults": PATCHED, "policy": AS_IT_WAS}, {"defaults": STOCK_DEFAULTS}):
            year = simulate("kfp-gpu-l4", server, weeks=3, edits={}, cancelled={}, **more)
            assert year.count("succeeded") == 0
        server.knows_orphans = False
        assert simulate("kfp-gpu-l4", server, PATCHED, weeks=2, edits={1: HOUR}, cancelled={}).count("killed") == 1
