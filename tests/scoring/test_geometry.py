"""Dispersion, anisotropy and the score: closed forms, invariances, and a second way to compute each."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import pytest
import scipy.stats
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from adg_plugin.scoring import geometry
from adg_plugin.scoring.geometry import anisotropy, balance, centre, centred_spectrum, combine, dispersion, parts

FORMS = ["raw", "rank", "zscore", "residual"]


def unit(vectors):
    vectors = np.asarray(vectors, dtype=np.float64)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def gram_of(vectors):
    return vectors @ np.swapaxes(vectors, -1, -2)


def transcription(vectors):
    """Straight from the definition, on the vectors of one row instead of their Gram matrix."""
    mean = vectors.mean(axis=0)
    spread = np.linalg.svd(vectors - mean, compute_uv=False) ** 2
    return 1 - mean @ mean, 1 - spread[0] / spread.sum() if spread.sum() >= 1e-12 else 0.0


@st.composite
def answers(draw, fewest=3):
    """(N, K, H) unit vectors on a coarse grid, so that equal, opposite and dependent ones are common."""
    shape = (draw(st.integers(1, 4)), draw(st.integers(fewest, 8)), draw(st.integers(1, 6)))
    vectors = draw(hnp.arrays(np.int64, shape, elements=st.integers(-3, 3)))
    assume((vectors != 0).any(axis=2).all())
    return unit(vectors)


@st.composite
def columns(draw, fewest=1):
    """Two parts of the score for N rows; values repeat."""
    rows = draw(st.integers(fewest, 40))
    values = st.integers(0, 12).map(lambda n: n / 16)
    return draw(hnp.arrays(np.float64, rows, elements=values)), draw(hnp.arrays(np.float64, rows, elements=values))


@given(answers())
def test_parts_agree_with_the_definition_on_vectors(vectors):
    found = parts(gram_of(vectors))
    expected = np.array([transcription(row) for row in vectors])
    np.testing.assert_allclose(found.dispersion, expected[:, 0], atol=1e-12)
    np.testing.assert_allclose(found.anisotropy, expected[:, 1], atol=1e-9)


@given(answers())
def test_parts_stay_in_their_ranges(vectors):
    found = parts(gram_of(vectors).astype(np.float32))
    assert ((found.dispersion >= 0) & (found.dispersion <= 1)).all()
    assert ((found.anisotropy >= 0) & (found.anisotropy <= 1 - 1 / (vectors.shape[1] - 1))).all()


@given(answers(), st.randoms(use_true_random=False))
def test_the_order_of_the_answers_plays_no_part(vectors, random):
    order = random.sample(range(vectors.shape[1]), vectors.shape[1])
    one, other = parts(gram_of(vectors)), parts(gram_of(vectors[:, order]))
    np.testing.assert_allclose(one.dispersion, other.dispersion, atol=1e-12)
    np.testing.assert_allclose(one.anisotropy, other.anisotropy, atol=1e-9)


@given(answers(), st.integers(0, 2**32 - 1))
def test_a_rotation_of_all_vectors_plays_no_part(vectors, seed):
    width = vectors.shape[2]
    rotation = np.linalg.qr(np.random.default_rng(seed).standard_normal((width, width)))[0]
    one, other = parts(gram_of(vectors)), parts(gram_of(vectors @ rotation))
    np.testing.assert_allclose(one.dispersion, other.dispersion, atol=1e-12)
    np.testing.assert_allclose(one.anisotropy, other.anisotropy, atol=1e-9)


@pytest.mark.parametrize("k", [3, 5, 10])
def test_orthogonal_answers(k):
    found = parts(np.eye(k)[None])
    assert found.dispersion[0] == pytest.approx(1 - 1 / k, abs=1e-15)
    assert found.anisotropy[0] == pytest.approx(1 - 1 / (k - 1), abs=1e-15)


@pytest.mark.parametrize("k", [3, 5, 10])
def test_identical_answers(k):
    found = parts(np.ones((1, k, k)))
    assert found.dispersion[0] == 0
    assert found.anisotropy[0] == 0


@pytest.mark.parametrize(("a", "b"), [(1, 2), (1, 4), (2, 3), (5, 5)])
def test_two_clusters_lie_on_a_line(a, b):
    vectors = np.repeat(np.eye(2), [a, b], axis=0)
    found = parts(gram_of(vectors)[None])
    assert found.dispersion[0] == pytest.approx(1 - (a * a + b * b) / (a + b) ** 2, abs=1e-15)
    assert found.anisotropy[0] == pytest.approx(0, abs=1e-15)


def test_anisotropy_is_zero_below_the_smallest_trace_and_not_above():
    directions = np.linalg.qr(np.random.default_rng(0).standard_normal((6, 6)))[0]
    grams = np.stack([gram_of(unit(directions[0] + eps * directions[1:4])) for eps in (5e-7, 1e-5)])
    traces = centred_spectrum(grams).sum(axis=1)
    assert traces[0] < 1e-12 < traces[1]
    assert anisotropy(grams)[0] == 0
    assert anisotropy(grams)[1] == pytest.approx(0.5, abs=1e-3)


@given(answers(fewest=2))
def test_centre_is_j_g_j(vectors):
    k = vectors.shape[1]
    projector = np.eye(k) - np.ones((k, k)) / k
    np.testing.assert_allclose(centre(gram_of(vectors)), projector @ gram_of(vectors) @ projector, atol=1e-12)


@given(answers(fewest=2))
def test_spectrum_falls_and_sums_to_k_times_dispersion(vectors):
    spectrum = centred_spectrum(gram_of(vectors))
    assert (spectrum >= 0).all()
    assert (np.diff(spectrum, axis=1) <= 0).all()
    np.testing.assert_allclose(spectrum.sum(axis=1), vectors.shape[1] * dispersion(gram_of(vectors)), atol=1e-12)


@given(answers())
def test_residual_is_the_spread_outside_the_main_direction(vectors):
    gram = gram_of(vectors)
    spectrum = centred_spectrum(gram)
    score = combine(dispersion(gram), anisotropy(gram), "residual", 0.4)
    np.testing.assert_allclose(score, spectrum[:, 1:].sum(axis=1) / vectors.shape[1], atol=1e-9)


def test_blocks_leave_no_trace(monkeypatch):
    grams = gram_of(unit(np.random.default_rng(1).standard_normal((11, 5, 8)))).astype(np.float32)
    whole = parts(grams)
    monkeypatch.setattr(geometry, "_BLOCK_ROWS", 4)
    in_blocks = parts(grams)
    np.testing.assert_array_equal(whole.dispersion, in_blocks.dispersion)
    np.testing.assert_array_equal(whole.anisotropy, in_blocks.anisotropy)
    np.testing.assert_array_equal(whole.dispersion, dispersion(grams))
    np.testing.assert_array_equal(whole.anisotropy, anisotropy(grams))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda g: g[9].fill(0), "Gram matrix 9 has 0 at diagonal entry 0, not 1: scale the answer vectors"),
        (lambda g: g[9, 2].__setitem__(2, 1.01), "Gram matrix 9 has 1.01 at diagonal entry 2, not 1: scale"),
        (lambda g: g[9, 0].__setitem__(3, np.nan), "Gram matrix 9 holds NaN or infinity: reject the row"),
        (lambda g: g[9, 0].__setitem__(3, -np.inf), "Gram matrix 9 holds NaN or infinity: reject the row"),
    ],
)
def test_a_failed_row_is_named(spoil, message, monkeypatch):
    monkeypatch.setattr(geometry, "_BLOCK_ROWS", 4)
    grams = np.tile(np.eye(5), (11, 1, 1))
    spoil(grams)
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        parts(grams)


@pytest.mark.parametrize("shape", [(3, 3), (2, 3, 4), (2, 1, 1)])
def test_other_shapes_are_refused(shape):
    message = f"Gram matrices have shape {shape}: use (N, K, K) with K of 2 or more"
    with pytest.raises(ValueError, match=re.escape(message)):
        centred_spectrum(np.ones(shape))


def test_two_answers_have_a_spectrum_but_no_anisotropy():
    assert centred_spectrum(np.eye(2)[None]).tolist() == [[1.0, 0.0]]
    for function in (anisotropy, parts):
        with pytest.raises(ValueError, match=re.escape("shape (1, 2, 2): use (N, K, K) with K of 3 or more")):
            function(np.eye(2)[None])


def test_half_precision_vectors_count_as_unit_length():
    vectors = unit(np.random.default_rng(2).standard_normal((200, 5, 576))).astype(np.float16).astype(np.float32)
    rounded, exact = parts(gram_of(vectors)), parts(gram_of(unit(vectors)))
    np.testing.assert_allclose(rounded.dispersion, exact.dispersion, atol=1e-3)


def test_no_rows_give_no_scores():
    found = parts(np.empty((0, 5, 5), np.float32))
    for form in FORMS:
        assert combine(found.dispersion, found.anisotropy, form, 0.4).shape == (0,)
    assert balance(found.dispersion, found.anisotropy, found.dispersion, "raw", 0.4).warnings == ()


@given(columns(), st.floats(0, 1))
def test_raw_and_residual_are_the_plain_formulas(pair, weight):
    spread, directions = pair
    np.testing.assert_allclose(
        combine(spread, directions, "raw", weight), spread + weight * (directions - spread), atol=1e-12
    )
    np.testing.assert_array_equal(combine(spread, directions, "residual", weight), spread * directions)


@given(columns(fewest=2), st.floats(0, 1))
def test_rank_form_agrees_with_scipy(pair, weight):
    ranks = [(scipy.stats.rankdata(part) - 1) / (len(part) - 1) for part in pair]
    expected = (1 - weight) * ranks[0] + weight * ranks[1]
    np.testing.assert_allclose(combine(*pair, "rank", weight), expected, atol=1e-12)


@given(columns(fewest=2), st.floats(0, 1))
def test_zscore_form_agrees_with_scipy(pair, weight):
    assume(all(len(set(part)) > 1 for part in pair))
    expected = (1 - weight) * scipy.stats.zscore(pair[0]) + weight * scipy.stats.zscore(pair[1])
    np.testing.assert_allclose(combine(*pair, "zscore", weight), expected, atol=1e-9)


@pytest.mark.parametrize("noise", [0.0, 1e-16])
def test_a_constant_part_adds_nothing_to_the_zscore(noise):
    constant = 0.8 + noise * np.arange(6)
    varying = np.array([0.1, 0.5, 0.2, 0.4, 0.3, 0.6])
    np.testing.assert_allclose(combine(constant, varying, "zscore", 0.4), 0.4 * scipy.stats.zscore(varying))
    np.testing.assert_array_equal(combine(constant, constant, "zscore", 0.4), np.zeros(6))


def test_a_lone_row_has_a_score_in_every_form():
    assert [combine([0.5], [0.25], form, 0.4)[0] for form in FORMS] == pytest.approx([0.4, 0.5, 0.0, 0.125])


@given(columns(fewest=3), st.sampled_from(FORMS), st.floats(0.05, 0.95))
def test_balance_agrees_with_scipy_and_its_shares_sum_to_one(pair, form, weight):
    assume(all(len(set(part)) > 1 for part in pair))
    scores = combine(*pair, form, weight)
    assume(np.ptp(scores) > 1e-6)
    found = balance(*pair, scores, form, weight)
    for part, pearson, spearman in (
        (pair[0], found.pearson_dispersion, found.spearman_dispersion),
        (pair[1], found.pearson_anisotropy, found.spearman_anisotropy),
    ):
        assert pearson == pytest.approx(scipy.stats.pearsonr(part, scores).statistic, abs=1e-9)
        assert spearman == pytest.approx(scipy.stats.spearmanr(part, scores).statistic, abs=1e-9)
    assert found.share_dispersion + found.share_anisotropy == pytest.approx(1, abs=1e-9)


def test_shares_are_covariances_of_the_terms():
    rng = np.random.default_rng(3)
    spread, directions = rng.uniform(0, 0.1, 500), rng.uniform(0, 0.7, 500)
    scores = combine(spread, directions, "raw", 0.4)
    expected = np.cov(0.6 * spread, scores)[0, 1] / np.var(scores, ddof=1)
    assert balance(spread, directions, scores, "raw", 0.4).share_dispersion == pytest.approx(expected, abs=1e-12)


def test_a_part_that_hardly_varies_has_hardly_a_share_of_the_residual():
    rng = np.random.default_rng(4)
    spread, directions = 0.5 + 0.001 * rng.standard_normal(500), rng.uniform(0.1, 0.7, 500)
    found = balance(spread, directions, combine(spread, directions, "residual", 0.4), "residual", 0.4)
    assert abs(found.share_dispersion) < 0.01
    swapped = balance(directions, spread, combine(directions, spread, "residual", 0.4), "residual", 0.4)
    assert swapped.share_dispersion == pytest.approx(found.share_anisotropy)


def test_a_score_that_is_one_part_and_runs_against_the_other_is_reported():
    # As measured with a small model: D falls where I rises, and varies much less.
    rng = np.random.default_rng(5)
    directions = rng.normal(0.55, 0.07, 400)
    spread = 0.045 - 0.08 * (directions - 0.55) + rng.normal(0, 0.01, 400)
    scores = combine(spread, directions, "raw", 0.4)
    found = balance(spread, directions, scores, "raw", 0.4)
    of_spread, of_directions = (scipy.stats.spearmanr(part, scores).statistic for part in (spread, directions))
    assert of_spread < -0.1
    assert of_directions > 0.95
    assert found.warnings == (
        f"the score (`score: raw`) is nearly anisotropy alone: its rank correlation is {of_directions:.2f} with "
        f"anisotropy and {of_spread:.2f} with dispersion; compare `score: residual`",
        f"the score (`score: raw`) runs against dispersion: their rank correlation is {of_spread:.2f}, so the rows it "
        "prefers tend to have less of it; compare `score: residual`",
    )


def test_a_balanced_score_and_too_few_rows_give_no_warning():
    rng = np.random.default_rng(6)
    spread, directions = rng.uniform(0, 1, 300), rng.uniform(0, 1, 300)
    assert balance(spread, directions, combine(spread, directions, "raw", 0.5), "raw", 0.5).warnings == ()
    few = slice(0, 5)
    assert balance(spread[few], directions[few], -spread[few], "raw", 0.5).warnings == ()


def test_equal_scores_have_no_correlation_and_no_shares():
    found = balance(np.linspace(0, 1, 50), np.full(50, 0.5), np.full(50, 0.5), "raw", 1.0)
    assert (found.pearson_dispersion, found.spearman_anisotropy, found.share_dispersion) == (0, 0, 0)


def test_scoring_binning_and_selecting_load_no_torch():
    code = (
        "import sys, adg_plugin.scoring.geometry, adg_plugin.scoring.bins, adg_plugin.scoring.quota\n"
        "print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
