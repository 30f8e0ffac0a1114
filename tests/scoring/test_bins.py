"""Bins: k-means that scikit-learn agrees with, the same on any number of threads, in little memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score
from threadpoolctl import threadpool_limits

from adg_plugin.scoring import bins
from adg_plugin.scoring.bins import assign_bins, default_bins

FOUND = 0.9  # adjusted Rand score; k-means, scikit-learn's too, may join one pair of twenty groups and split another


def mixture(rows, width, topics, *, apart, seed=0):
    """Unit float16 vectors around a common direction, and the topic of each."""
    rng = np.random.default_rng(seed)
    centres = apart * rng.standard_normal((topics, width))
    topic = rng.permutation(np.arange(rows) % topics)
    vectors = 3.0 + centres[topic] + rng.standard_normal((rows, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16), topic


def spread_within(vectors, labels):
    """Sum of squared distances of the rows from the mean of their bin."""
    wide = vectors.astype(np.float64)
    return sum(((wide[labels == b] - wide[labels == b].mean(axis=0)) ** 2).sum() for b in np.unique(labels))


@pytest.mark.parametrize(
    ("rows", "expected"), [(0, 1), (1, 1), (19, 1), (20, 2), (205, 20), (9_999, 999), (10_010, 1000), (10**6, 1000)]
)
def test_default_is_a_bin_for_ten_rows_and_a_thousand_at_most(rows, expected):
    assert default_bins(rows) == expected


@settings(deadline=None)
@given(
    hnp.arrays(np.int64, st.tuples(st.integers(0, 40), st.integers(1, 5)), elements=st.integers(-2, 2)),
    st.integers(1, 60),
    st.integers(0, 2**63 - 1),
)
def test_bins_are_numbered_without_gaps_by_first_appearance(grid, wanted, seed):
    vectors = grid.astype(np.float16)
    labels = assign_bins(vectors, wanted, seed)
    assert labels.dtype == np.int32
    assert labels.shape == (len(vectors),)
    assert list(dict.fromkeys(labels.tolist())) == list(range(len(set(labels.tolist()))))
    assert len(set(labels.tolist())) <= min(wanted, max(1, len(vectors)))
    np.testing.assert_array_equal(labels, assign_bins(vectors, wanted, seed))
    bin_of = dict(zip(map(tuple, grid.tolist()), labels.tolist(), strict=True))
    assert [bin_of[tuple(row)] for row in grid.tolist()] == labels.tolist(), "equal vectors share a bin"


def test_groups_that_are_far_apart_are_found():
    vectors, topic = mixture(2000, 400, 20, apart=3)
    assert adjusted_rand_score(topic, assign_bins(vectors, 20, 0)) > FOUND


def test_from_the_same_centres_lloyd_ends_where_scikit_learn_does(monkeypatch):
    monkeypatch.setattr(bins, "_SETTLED", 0)
    monkeypatch.setattr(bins, "_MAX_ITERATIONS", 300)
    vectors, _ = mixture(3000, 24, 40, apart=0.7)
    wide = vectors.astype(np.float32)
    with bins._single_threaded_products() as pool:
        centres, labels = bins._lloyd(vectors, wide[:30], pool)
    reference = KMeans(30, init=wide[:30], n_init=1, tol=0, max_iter=300).fit(wide)
    np.testing.assert_array_equal(labels, reference.labels_)
    np.testing.assert_allclose(centres, reference.cluster_centers_, atol=1e-5)


def test_bins_are_about_as_tight_as_those_of_scikit_learn():
    vectors, _ = mixture(3000, 400, 150, apart=0.6)
    reference = KMeans(100, n_init=1, random_state=0).fit(vectors.astype(np.float32))
    assert spread_within(vectors, assign_bins(vectors, 100, 0)) < 1.05 * reference.inertia_


def test_the_number_of_threads_plays_no_part():
    vectors, _ = mixture(6000, 96, 1, apart=0)  # no structure: every rounding would show
    labels = []
    for threads in (1, 2, 5):
        with threadpool_limits(limits=threads):
            labels.append(assign_bins(vectors, 120, 0))
    np.testing.assert_array_equal(labels[0], labels[1])
    np.testing.assert_array_equal(labels[0], labels[2])


def test_the_limits_on_threads_are_lifted_afterwards():
    with threadpool_limits(limits=2, user_api="blas"):
        assign_bins(mixture(100, 8, 3, apart=1)[0], 3, 0)
        with bins._single_threaded_products() as pool:
            assert pool._max_workers == 2


def test_the_seed_decides():
    vectors, _ = mixture(1000, 32, 1, apart=0)
    assert (assign_bins(vectors, 50, 0) != assign_bins(vectors, 50, 1)).any()


def test_rows_outside_the_sample_go_to_the_nearest_centre(monkeypatch):
    vectors, topic = mixture(5000, 400, 20, apart=3)
    monkeypatch.setattr(bins, "_MIN_TRAINING_ROWS", 0)
    monkeypatch.setattr(bins, "_TRAINING_ROWS_PER_BIN", 25)
    trained_on = []
    lloyd = bins._lloyd
    monkeypatch.setattr(bins, "_lloyd", lambda rows, *rest: trained_on.append(len(rows)) or lloyd(rows, *rest))
    assert adjusted_rand_score(topic, assign_bins(vectors, 20, 0)) > FOUND
    assert trained_on == [500]


def test_identical_vectors_share_one_bin():
    assert assign_bins(np.tile(mixture(1, 64, 1, apart=0)[0], (500, 1)), None, 0).tolist() == [0] * 500


def test_more_bins_than_rows_leave_each_row_its_own():
    vectors, _ = mixture(12, 64, 12, apart=3)
    assert assign_bins(vectors, 1000, 0).tolist() == list(range(12))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("row", [0, 1500])
def test_a_failed_vector_is_named(row, value):
    vectors = np.ones((2000, 4), np.float16)
    vectors[row, 2] = value
    with pytest.raises(ValueError, match=f"^prompt vector {row} holds NaN or infinity: reject the row$"):
        assign_bins(vectors, None, 0)


def test_no_wide_copy_of_the_vectors_is_made():
    vectors = np.random.default_rng(0).standard_normal((60_000, 400), dtype=np.float32).astype(np.float16)
    tracemalloc.start()
    assign_bins(vectors, 20, 0)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < vectors.nbytes  # float32 would take twice as much
