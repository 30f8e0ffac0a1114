"""Quotas and the choice, against slow transcriptions of their definitions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adg_plugin.scoring.quota import IN_QUOTA, NOT_CHOSEN, TOP_UP, allocate, choose, resolve_budget

SUBSETS = ["top", "middle", "bottom"]


@st.composite
def shares(draw):
    """Bin sizes, and a budget no larger than their sum."""
    sizes = draw(st.lists(st.integers(0, 60), min_size=1, max_size=25))
    return np.array(sizes), draw(st.integers(0, sum(sizes)))


@st.composite
def pools(draw):
    """Ids, scores that often tie, bins and a budget."""
    rows = draw(st.integers(1, 60))
    ids = draw(st.lists(st.text(min_size=1, max_size=4), min_size=rows, max_size=rows, unique=True))
    scores = np.array(draw(st.lists(st.integers(-3, 3), min_size=rows, max_size=rows))) / 4
    bins = np.array(draw(st.lists(st.integers(0, 6), min_size=rows, max_size=rows)))
    return ids, scores, bins, draw(st.integers(0, rows + 5))


@st.composite
def pools_with_quotas(draw):
    """A pool, and quotas that may exceed what a bin has."""
    ids, scores, bins, _ = draw(pools())
    quota = np.array(draw(st.lists(st.integers(0, 12), min_size=7, max_size=7)))
    return ids, scores, bins, int(quota.sum()) + draw(st.integers(0, 5)), quota


def largest_remainder(sizes, budget):
    """The textbook method, in exact fractions."""
    exact = [Fraction(int(size) * budget, int(sum(sizes))) for size in sizes]
    quota = [int(share) for share in exact]
    for bin_ in sorted(range(len(sizes)), key=lambda b: (quota[b] - exact[b], b))[: budget - sum(quota)]:
        quota[bin_] += 1
    return quota


def slow_choice(ids, scores, bins, budget, subset, quota):
    """The reason of each chosen id, bin by bin, with plain sorts."""
    reasons, places = {}, {}
    for bin_ in sorted(set(bins.tolist())):
        rows = sorted((-scores[i], ids[i]) for i in range(len(ids)) if bins[i] == bin_)
        n, q = len(rows), min(int(quota[bin_]), len(rows))
        start = {"top": 0, "middle": (n - q) // 2, "bottom": n - q}[subset]
        reasons.update({name: IN_QUOTA for _, name in rows[start : start + q]})
        places.update({name: (abs((position + 1) - (n + 1) / 2), s) for position, (s, name) in enumerate(rows)})
    key = {
        "top": lambda i: (places[i][1], i),
        "middle": lambda i: (*places[i], i),
        "bottom": lambda i: (-places[i][1], i),
    }
    left = sorted((name for name in ids if name not in reasons), key=key[subset])
    reasons.update(dict.fromkeys(left[: max(0, budget - len(reasons))], TOP_UP))
    return reasons


def reasons_of(ids, choice):
    return {name: why for name, why, is_chosen in zip(ids, choice.reason, choice.chosen, strict=True) if is_chosen}


@given(shares())
def test_the_budget_is_spent_exactly_and_no_bin_is_overdrawn(share):
    sizes, budget = share
    quota = allocate(sizes, budget)
    assert quota.sum() == budget
    assert ((quota >= 0) & (quota <= sizes)).all()


@given(shares())
def test_quotas_are_proportional_by_largest_remainder(share):
    sizes, budget = share
    if not sizes.sum():
        return
    quota = allocate(sizes, budget)
    assert all(abs(q * int(sizes.sum()) - int(s) * budget) < sizes.sum() for q, s in zip(quota, sizes, strict=True))
    assert quota.tolist() == largest_remainder(sizes, budget)


@pytest.mark.parametrize(
    ("sizes", "budget", "expected"),
    [
        ([5, 5, 5], 4, [2, 1, 1]),  # equal remainders: the earlier bin
        ([1, 2, 7], 5, [1, 1, 3]),
        ([3, 4], 100, [3, 4]),
        ([0, 10], 3, [0, 3]),
        ([26_001, 26_001], 25_000, [12_500, 12_500]),
        ([], 5, []),
    ],
)
def test_quotas_by_hand(sizes, budget, expected):
    assert allocate(sizes, budget).tolist() == expected


def test_quotas_of_a_large_pool_do_not_overflow():
    sizes = np.full(1000, 10**6, dtype=np.int32)
    assert allocate(sizes, 5 * 10**8).tolist() == [5 * 10**5] * 1000


def test_allocate_leaves_its_input_alone():
    sizes = np.array([3, 4])
    allocate(sizes, 100)[0] = 0
    assert sizes.tolist() == [3, 4]


@given(pools(), st.sampled_from(SUBSETS))
def test_the_choice_agrees_with_a_slow_one(pool, subset):
    ids, scores, bins, budget = pool
    choice = choose(ids, scores, bins, budget, subset)
    assert choice.chosen.sum() == min(budget, len(ids))
    quota = allocate(np.bincount(bins), budget)
    np.testing.assert_array_equal(choice.quota, quota[bins])
    assert reasons_of(ids, choice) == slow_choice(ids, scores, bins, budget, subset, quota)
    assert TOP_UP not in choice.reason


@given(pools_with_quotas(), st.sampled_from(SUBSETS))
def test_what_a_bin_cannot_fill_goes_to_the_best_remaining_rows(pool, subset):
    ids, scores, bins, budget, quota = pool
    choice = choose(ids, scores, bins, budget, subset, quota)
    assert choice.chosen.sum() == min(budget, len(ids))
    assert reasons_of(ids, choice) == slow_choice(ids, scores, bins, budget, subset, quota)
    assert set(choice.reason[~choice.chosen]) <= {NOT_CHOSEN[subset]}


@given(pools_with_quotas(), st.sampled_from(SUBSETS), st.randoms(use_true_random=False))
def test_the_order_of_the_rows_plays_no_part(pool, subset, random):
    ids, scores, bins, budget, quota = pool
    order = random.sample(range(len(ids)), len(ids))
    one = choose(ids, scores, bins, budget, subset, quota)
    other = choose(np.array(ids, dtype=object)[order], scores[order], bins[order], budget, subset, quota)
    for field in ("chosen", "rank", "quota", "reason"):
        np.testing.assert_array_equal(getattr(one, field)[order], getattr(other, field))


@given(pools())
def test_ranks_count_from_the_best_of_each_bin(pool):
    ids, scores, bins, budget = pool
    rank = choose(ids, scores, bins, budget).rank
    for bin_ in set(bins.tolist()):
        rows = sorted(np.flatnonzero(bins == bin_), key=lambda i: (-scores[i], ids[i]))
        assert rank[rows].tolist() == list(range(1, len(rows) + 1))


@given(pools())
def test_no_row_left_out_of_a_bin_beats_a_chosen_one(pool):
    ids, scores, bins, budget = pool
    chosen = choose(ids, scores, bins, budget).chosen
    for bin_ in set(bins.tolist()):
        inside, outside = scores[(bins == bin_) & chosen], scores[(bins == bin_) & ~chosen]
        assert not len(inside) or not len(outside) or inside.min() >= outside.max()


def test_ties_go_to_the_first_id():
    choice = choose(["b", "c", "a", "d"], np.full(4, 0.5), np.zeros(4, int), 2)
    assert choice.rank.tolist() == [2, 3, 1, 4]
    assert choice.chosen.tolist() == [True, False, True, False]


def test_the_three_subsets_of_one_bin():
    ids, scores = list("abcdefg"), np.array([7, 6, 5, 4, 3, 2, 1.0])
    chosen = {s: "".join(np.array(ids)[choose(ids, scores, np.zeros(7, int), 3, s).chosen]) for s in SUBSETS}
    assert chosen == {"top": "abc", "middle": "cde", "bottom": "efg"}


def test_each_row_has_its_reason():
    scores = np.array([0.9, 0.8, 0.1, 0.7])
    choice = choose(["a", "b", "c", "d"], scores, np.array([0, 0, 0, 1]), 3, quota=np.array([1, 2]))
    assert choice.reason.tolist() == ["in quota", "top-up", "below the cut of its bin", "in quota"]
    assert choice.quota.tolist() == [1, 1, 1, 2]


def test_one_long_id_does_not_widen_the_others():
    ids = [f"{i:05d}" for i in range(2000)] + ["x" * 10**6]
    assert choose(ids, np.arange(2001.0), np.zeros(2001, int), 1).chosen.tolist() == [False] * 2000 + [True]


def test_a_row_without_a_score_is_refused():
    with pytest.raises(ValueError, match=r"^row 'b' has score nan: reject it before choosing$"):
        choose(np.array(["a", "b"]), np.array([0.1, np.nan]), np.zeros(2, int), 1)


def test_quotas_above_the_budget_are_refused():
    with pytest.raises(ValueError, match=r"^quota sums to 5, above the budget of 4: share out the budget$"):
        choose(["a"], np.zeros(1), np.zeros(1, int), 4, quota=np.array([5]))


@pytest.mark.parametrize(
    ("budget", "pool_rows", "eligible", "rows"),
    [
        (10_000, 52_002, 52_002, 10_000),
        (0.2, 52_002, 52_000, 10_400),
        (0.5, 5, 5, 3),  # half up, not to even
        (0.145, 100, 100, 15),  # as written: the binary number is a little less
        (0.001, 10, 10, 1),
        (1.0, 7, 7, 7),
        (7, 7, 7, 7),
    ],
)
def test_budgets_that_can_be_met(budget, pool_rows, eligible, rows):
    assert resolve_budget(budget, pool_rows, eligible) == (rows, None)


def test_budgets_above_the_pool_take_all_with_a_warning():
    assert resolve_budget(500, 400, 390) == (390, "budget is 500, but only 390 rows can be chosen: all of them are")
    assert resolve_budget(1.0, 400, 390) == (
        390,
        "budget is 1.0, which is 400 of 400 rows, but only 390 rows can be chosen: all of them are",
    )
