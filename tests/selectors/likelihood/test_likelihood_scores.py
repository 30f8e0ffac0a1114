"""The two scores that are made of likelihoods."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adg_plugin.selectors.likelihood.selectors import ifd, superfiltering
from adg_plugin.selectors.registry import selector

means = st.lists(st.tuples(st.floats(1e-3, 12), st.floats(1e-3, 12)), min_size=1, max_size=30)


def kept(method, scores):
    """Return which of the scores may be chosen by."""
    return [selector(method).refused(float(score)) is None for score in scores]


@given(means)
def test_both_scores_are_their_formulas_and_rows_above_1_may_not_be_chosen(pairs):
    with_prompt, alone = np.array(pairs).T
    scores = ifd(with_prompt, alone)
    np.testing.assert_allclose(scores, [p / q for p, q in pairs])
    assert kept("ifd", scores) == (scores <= 1).tolist()
    scores = superfiltering(with_prompt, alone)
    np.testing.assert_allclose(scores, [np.exp(p) / np.exp(q) for p, q in pairs])
    assert kept("superfiltering", scores) == (scores < 1).tolist()


def test_the_two_scores_do_not_rank_alike():
    with_prompt, alone = np.array([0.2, 3.5]), np.array([0.3, 4.0])
    assert ifd(with_prompt, alone) == pytest.approx([0.6667, 0.875], abs=1e-4)
    assert superfiltering(with_prompt, alone) == pytest.approx([0.9048, 0.6065], abs=1e-4)


def test_rows_without_means_or_without_surprise_are_not_chosen():
    with_prompt, alone = np.array([np.nan, 0.0, 1.0, 2.0, 2.0]), np.array([np.nan, 0.0, 0.0, 2.0, 1.0])
    scores = ifd(with_prompt, alone)
    np.testing.assert_array_equal(scores, [np.nan, np.nan, np.inf, 1, 2])
    assert kept("ifd", scores) == [False, False, False, True, False]
    scores = superfiltering(with_prompt, alone)
    assert np.isnan(scores[0])
    assert not any(kept("superfiltering", scores))
    assert superfiltering(np.array([1e4]), np.array([1.0]))[0] == np.inf


def test_a_dropped_row_is_told_with_its_value():
    assert selector("ifd").refused(1.25) == (
        "ifd_above_1",
        "IFD is 1.2500, above 1: the prompt makes the answer harder to predict",
    )
    assert selector("ifd").refused(float("nan")) == (
        "ifd_above_1",
        "IFD cannot be computed: the answer is certain with the prompt and without it",
    )
    assert selector("superfiltering").refused(1.5) == (
        "superfiltering_not_below_1",
        "the ratio of perplexities is 1.5000, not below 1: the prompt does not help to predict the answer",
    )


def test_importing_them_loads_no_torch():
    code = "import sys, adg_plugin.selectors.likelihood.selectors; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
