"""The order of training, from lengths alone."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paligemma.data import batch_order as planning
from paligemma.data.batch_order import Bucket, Plan, bucket_widths, permutation, process_share
from paligemma.errors import InputError


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Plans of few rows, of many lengths; buckets of one batch are allowed, so that there are several."""
    suffix = np.array(draw(st.lists(st.integers(2, 40), min_size=1, max_size=60)))
    text = suffix + np.array(draw(st.lists(st.integers(2, 60), min_size=len(suffix), max_size=len(suffix))))
    batch_size, seed, buckets = draw(st.integers(1, 9)), draw(st.integers(0, 2**40)), draw(st.integers(1, 5))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "BATCHES_PER_BUCKET", 1)
        plan = Plan(text, suffix, batch_size, seed, buckets)
    plan.text, plan.suffix, plan.batch_size, plan.seed, plan.most = text, suffix, batch_size, seed, buckets
    return plan


def take(plan: Plan, count: int, start: int = 0) -> list:
    return list(itertools.islice(plan.batches(start), count))


@given(plans())
def test_after_enough_epochs_every_row_was_seen_equally_often(plan: Plan) -> None:
    # After batch_size epochs nothing is left in any queue.
    rows = len(plan.text)
    seen = np.concatenate([batch.rows for batch in take(plan, rows)])
    np.testing.assert_array_equal(np.bincount(seen, minlength=rows), plan.batch_size)


@given(plans(), st.integers(1, 80))
def test_rows_of_a_bucket_are_never_more_than_one_epoch_apart(plan: Plan, steps: int) -> None:
    times = np.bincount(np.concatenate([batch.rows for batch in take(plan, steps)]), minlength=len(plan.text))
    for number in range(len(plan.buckets)):
        assert np.ptp(times[plan.bucket_of == number]) <= 1


@given(plans())
def test_a_batch_is_full_and_of_one_bucket_that_its_rows_fit(plan: Plan) -> None:
    for number, batch in enumerate(take(plan, 30)):
        assert batch.step == number
        assert len(batch.rows) == plan.batch_size
        (bucket,) = set(plan.bucket_of[batch.rows])
        assert plan.buckets[bucket] == batch.bucket
        assert (plan.text[batch.rows] - 1 <= batch.bucket.text_width).all()
        assert (plan.suffix[batch.rows] <= batch.bucket.loss_width).all()


@given(plans())
def test_batches_come_when_their_bucket_s_queue_is_full(plan: Plan) -> None:
    def in_turn():
        queues = [[] for _ in plan.buckets]
        for epoch in itertools.count():
            for row in permutation(len(plan.text), plan.seed, epoch).tolist():
                queue = queues[plan.bucket_of[row]]
                queue.append(row)
                if len(queue) == plan.batch_size:
                    yield queue[:]
                    queue.clear()

    assert [batch.rows.tolist() for batch in take(plan, 40)] == list(itertools.islice(in_turn(), 40))


@given(plans(), st.integers(0, 200))
def test_starting_at_a_step_is_continuing(plan: Plan, start: int) -> None:
    continued = take(plan, start + 20)[start:]
    for ours, theirs in zip(take(plan, 20, start), continued, strict=True):
        assert (ours.step, ours.bucket) == (theirs.step, theirs.bucket)
        np.testing.assert_array_equal(ours.rows, theirs.rows)


@given(plans())
def test_buckets_are_few_and_none_starves(plan: Plan) -> None:
    assert 1 <= len(plan.buckets) <= plan.most
    widths = [bucket.text_width for bucket in plan.buckets]
    assert widths == sorted(set(widths))
    assert all(width % 16 == 0 for width in widths)
    assert all(bucket.loss_width % 8 == 0 and bucket.loss_width <= bucket.text_width for bucket in plan.buckets)
    if len(plan.buckets) > 1:
        assert np.bincount(plan.bucket_of).min() >= plan.batch_size


@given(lengths=st.lists(st.integers(1, 130), min_size=1, max_size=40), buckets=st.integers(1, 4), smallest=st.integers(1, 12))
def test_no_other_choice_of_widths_pads_less(lengths: list[int], buckets: int, smallest: int) -> None:
    def padded(chosen: tuple[int, ...]) -> float:
        which = np.searchsorted(chosen, lengths)
        if len(chosen) > 1 and np.bincount(which, minlength=len(chosen)).min() < smallest:
            return np.inf
        return np.array(chosen)[which].sum()

    widths = sorted({-(-length // 16) * 16 for length in lengths})
    below = [choice for count in range(buckets) for choice in itertools.combinations(widths[:-1], count)]
    best = min(padded((*choice, widths[-1])) for choice in below)
    assert padded(tuple(bucket_widths(np.array(lengths), buckets, smallest))) == best


def test_an_epoch_is_a_permutation_unlike_that_of_another_epoch_or_seed() -> None:
    orders = [tuple(permutation(50, seed, epoch)) for seed in (0, 1, 2**40) for epoch in range(3)]
    assert len(set(orders)) == 9
    assert all(sorted(order) == list(range(50)) for order in orders)
    # Every row is as likely in every place: the mean place of row 0 over many epochs is in the middle.
    places = [int(np.argmin(permutation(50, 3, epoch))) for epoch in range(500)]
    assert abs(np.mean(places) - 24.5) < 3  # 4.6 standard errors


def test_the_order_is_the_same_on_every_machine() -> None:
    assert permutation(8, 0, 0).tolist() == [7, 6, 3, 2, 4, 1, 5, 0]


def test_one_width_is_possible_and_small_data_has_one() -> None:
    text, suffix = np.arange(200) % 100 + 5, np.arange(200) % 3 + 2
    assert Plan(text, suffix, 2, 0, buckets=1).buckets == [Bucket(112, 8)]
    assert len(Plan(text, suffix, 2, 0).buckets) == 4
    assert Plan(text, suffix, 16, 0).buckets == [Bucket(112, 8)]  # 200 rows are fewer than 2 x 16 batches of 16


def test_losses_are_as_wide_as_the_bucket_needs() -> None:
    text, suffix = np.repeat([17, 49, 65], 400), np.repeat([5, 20, 63], 400)
    assert Plan(text, suffix, 8, 0).buckets == [Bucket(16, 8), Bucket(48, 24), Bucket(64, 64)]


@given(share=st.integers(1, 5), processes=st.integers(1, 8))
def test_processes_share_every_batch(share: int, processes: int) -> None:
    batch = np.arange(share * processes)
    shares = [batch[process_share(len(batch), index, processes)] for index in range(processes)]
    assert {len(rows) for rows in shares} == {share}
    np.testing.assert_array_equal(np.concatenate(shares), batch)


def test_a_batch_that_does_not_split_over_processes_is_refused() -> None:
    with pytest.raises(InputError, match=r"does not split over 4 processes(?s:.)*batch_size=12"):
        process_share(10, 0, 4)
