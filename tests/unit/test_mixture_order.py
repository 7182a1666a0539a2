"""The order of a mixture's training examples, from numbers of rows and weights alone."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paligemma.data import batch_order as planning
from paligemma.data.batch_order import Plan
from paligemma.data.mixture_order import Mixture, draws_by_source

WEIGHTS = st.one_of(st.sampled_from([1.0, 2.0, 0.1, 1e-6, 1e6]), st.floats(1e-6, 1e6))
SHARES = st.lists(st.tuples(st.integers(1, 30), WEIGHTS), min_size=1, max_size=6)


def draws(mixture: Mixture, epochs: int) -> np.ndarray:
    return np.concatenate([mixture.order(epoch) for epoch in range(epochs)])


def source_of(shares: list[tuple[int, float]], rows: np.ndarray) -> np.ndarray:
    return np.searchsorted(np.cumsum([count for count, _ in shares]), rows, side="right")


@given(SHARES, st.integers(0, 2**40))
def test_at_every_moment_each_source_has_had_its_share(shares: list, seed: int) -> None:
    drawn = source_of(shares, draws(Mixture(shares, seed), 4))
    part = np.array([weight for _, weight in shares]) / sum(weight for _, weight in shares)
    had = np.cumsum(drawn[:, None] == np.arange(len(shares)), axis=0)
    due = np.arange(1, len(drawn) + 1)[:, None] * part
    assert (np.abs(had - due) <= 0.5 + part * len(shares) / 2 + 1e-6).all()


@given(SHARES, st.integers(0, 2**40))
def test_a_row_is_drawn_again_only_when_all_others_of_its_source_were(shares: list, seed: int) -> None:
    times = np.zeros(sum(count for count, _ in shares), int)
    of_source = source_of(shares, np.arange(len(times)))
    for row in draws(Mixture(shares, seed), 4).tolist():
        assert times[row] == times[of_source == of_source[row]].min()
        times[row] += 1


@given(SHARES, st.integers(0, 2**40), st.integers(0, 50))
def test_how_often_rows_were_drawn_is_known_without_drawing_them(shares: list, seed: int, epoch: int) -> None:
    mixture = Mixture(shares, seed)
    drawn = draws(mixture, epoch) if epoch else np.zeros(0, int)
    np.testing.assert_array_equal(mixture.times_drawn(epoch), np.bincount(drawn, minlength=sum(count for count, _ in shares)))


@given(st.lists(WEIGHTS, min_size=1, max_size=5), st.integers(0, 300))
def test_draws_are_shared_out_one_by_one(weights: list[float], total: int) -> None:
    exact, counts = [Fraction(weight) for weight in weights], [0] * len(weights)
    for _ in range(total):
        _, number = min(((2 * count + 1) / weight, number) for number, (count, weight) in enumerate(zip(counts, exact)))  # noqa: B905
        counts[number] += 1
    assert draws_by_source(weights, total) == counts


def test_far_draws_take_no_longer_than_near_ones() -> None:
    assert draws_by_source([1.0, 3.0], 10**18) == [10**18 // 4, 3 * 10**18 // 4]
    assert sum(draws_by_source([1 / 3, 1e6, 1e-6, *([0.1] * 197)], 10**15 + 7)) == 10**15 + 7


def test_passes_over_a_source_are_in_orders_of_their_own() -> None:
    drawn = draws(Mixture([(10, 1.0), (10, 1.0)], 0), 6)
    passes = [tuple(drawn[drawn < 10].reshape(-1, 10)[number]) for number in range(6)]
    passes += [tuple(drawn[drawn >= 10].reshape(-1, 10)[number] - 10) for number in range(6)]
    assert len(set(passes)) == 12
    assert not np.array_equal(drawn, draws(Mixture([(10, 1.0), (10, 1.0)], 1), 6))


def test_the_order_of_a_mixture_is_the_same_on_every_machine() -> None:
    assert Mixture([(3, 3.0), (5, 1.0)], 0).order(0).tolist() == [2, 1, 6, 0, 1, 2, 5, 0]


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    shares = draw(SHARES)
    rows = sum(count for count, _ in shares)
    suffix = np.array(draw(st.lists(st.integers(2, 40), min_size=rows, max_size=rows)))
    text = suffix + np.array(draw(st.lists(st.integers(2, 60), min_size=rows, max_size=rows)))
    batch_size, seed, buckets = draw(st.integers(1, 9)), draw(st.integers(0, 2**40)), draw(st.integers(1, 4))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "BATCHES_PER_BUCKET", 1)
        plan = Plan(text, suffix, batch_size, seed, buckets, shares)
    plan.text, plan.suffix, plan.batch_size, plan.mixture = text, suffix, batch_size, Mixture(shares, seed)
    return plan


def take(plan: Plan, count: int, start: int = 0) -> list:
    return list(itertools.islice(plan.batches(start), count))


@given(plans())
def test_batches_are_the_draws_that_a_bucket_has_queued(plan: Plan) -> None:
    def in_turn():
        queues = [[] for _ in plan.buckets]
        for epoch in itertools.count():
            for row in plan.mixture.order(epoch).tolist():
                queue = queues[plan.bucket_of[row]]
                queue.append(row)
                if len(queue) == plan.batch_size:
                    yield queue[:]
                    queue.clear()

    batches = take(plan, 30)
    assert [batch.rows.tolist() for batch in batches] == list(itertools.islice(in_turn(), 30))
    for batch in batches:
        assert (plan.text[batch.rows] - 1 <= batch.bucket.text_width).all()
        assert (plan.suffix[batch.rows] <= batch.bucket.loss_width).all()


@given(plans(), st.integers(0, 200))
def test_starting_a_mixture_at_a_step_is_continuing(plan: Plan, start: int) -> None:
    for ours, theirs in zip(take(plan, 20, start), take(plan, start + 20)[start:], strict=True):
        assert (ours.step, ours.bucket) == (theirs.step, theirs.bucket)
        np.testing.assert_array_equal(ours.rows, theirs.rows)


def test_a_bucket_has_enough_draws_even_if_it_has_few_rows() -> None:
    # 90 long rows are seen ten times in an epoch, and 910 short ones once in ten: buckets are chosen by what is drawn.
    text, suffix = np.repeat([20, 100], [910, 90]), np.full(1000, 4)
    assert len(Plan(text, suffix, 8, 0).buckets) == 1
    assert len(Plan(text, suffix, 8, 0, shares=[(910, 1.0), (90, 1.0)]).buckets) == 2
