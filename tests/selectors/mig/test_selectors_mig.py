"""MIG against a dense transcription that computes every gain anew for every choice."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adg_plugin.selectors.mig import greedy as module
from adg_plugin.selectors.mig.greedy import label_graph, mig_order

NO_VECTORS = "mig has no label vectors: labels with similar meaning are treated as unrelated"
LABELS = ["algebra", "geometry", "poem", "python", "rust", "travel"]


def directions(labels, *, seed=0, groups=2):
    """Vectors that fall into a few tight groups, so that some cosines are above 0.9 and some are not."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(groups, 8))
    return {label: centres[i % groups] + 0.25 * rng.normal(size=8) for i, label in enumerate(labels)}


def dense_spread(labels, vectors, threshold=0.9):
    unit = np.array([vectors[label] / np.linalg.norm(vectors[label]) for label in labels])
    cosine = unit @ unit.T
    weight = np.where(cosine > threshold, cosine, 0)
    np.fill_diagonal(weight, 1)
    return weight / weight.sum(axis=0)


def dense_mig(labels, spread, row_labels, quality, budget):
    """The released sampler's rule: the greatest x . phi'(z) with phi'(z) = 0.8 (z + 1e-6)^-0.2, then z += x."""
    brings = np.array([[q * (label in mine) for label in labels] for mine, q in zip(row_labels, quality, strict=True)])
    brings = brings.reshape(len(row_labels), len(labels)) @ spread
    z, order, gains = np.zeros(len(labels)), [], []
    for _ in range(min(budget, sum(map(bool, row_labels)))):
        left = [row for row, mine in enumerate(row_labels) if mine and row not in order]
        gain = {row: float(brings[row] @ (0.8 * (z + 1e-6) ** -0.2)) for row in left}
        order.append(max(left, key=lambda row: (gain[row], -row)))
        gains.append(gain[order[-1]])
        z += brings[order[-1]]
    bare = sorted((row for row, mine in enumerate(row_labels) if not mine), key=lambda row: (-quality[row], row))
    bare = bare[: budget - len(order)]
    return order + bare, gains + [0.0] * len(bare)


def pool(rows, *, seed=0, labels=LABELS):
    """Random label sets, a tenth of them empty, with qualities that do not tie."""
    rng = np.random.default_rng(seed)
    row_labels = [rng.choice(labels, size=rng.integers(0, 4), replace=False).tolist() for _ in range(rows)]
    return row_labels, rng.uniform(0.1, 6, rows)


@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_the_choice_agrees_with_a_dense_transcription_of_the_released_rule(linked, seed):
    row_labels, quality = pool(80, seed=seed)
    vectors = directions(LABELS, seed=seed) if linked else None
    graph, _ = label_graph(row_labels, vectors)
    assert graph.labels == tuple(LABELS)
    spread = dense_spread(LABELS, vectors) if linked else np.eye(len(LABELS))
    np.testing.assert_allclose(graph.spread.toarray(), spread, rtol=1e-12)
    assert (np.count_nonzero(spread) > len(LABELS)) == linked
    order, gains = mig_order(graph, row_labels, quality, 70)
    expected, expected_gains = dense_mig(LABELS, spread, row_labels, quality, 70)
    assert order.tolist() == expected
    np.testing.assert_allclose(gains, expected_gains, rtol=1e-9)
    assert order.dtype == np.int64
    assert gains.dtype == np.float64


def test_the_choice_of_many_equal_rows_agrees_with_a_dense_one():
    # Rows without a quality of their own, and few label sets: nearly every choice is a tie. One label each, so that
    # both ways of adding up give the same bits.
    rng = np.random.default_rng(3)
    row_labels = [[LABELS[i]] for i in rng.integers(0, len(LABELS), 60)]
    graph, _ = label_graph(row_labels)
    order, _ = mig_order(graph, row_labels, np.ones(60), 60)
    assert order.tolist() == dense_mig(LABELS, np.eye(len(LABELS)), row_labels, np.ones(60), 60)[0]


@st.composite
def pools(draw):
    rows = draw(st.integers(0, 25))
    row_labels = draw(st.lists(st.lists(st.sampled_from(LABELS), max_size=4), min_size=rows, max_size=rows))
    quality = draw(st.lists(st.integers(0, 3).map(float), min_size=rows, max_size=rows))
    return row_labels, quality, draw(st.integers(0, 30)), draw(st.booleans())


@settings(max_examples=50)
@given(pools())
def test_each_choice_gains_the_most_and_gains_never_grow(drawn):
    row_labels, quality, budget, linked = drawn
    graph, _ = label_graph(row_labels, directions(LABELS) if linked else None)
    order, gains = mig_order(graph, row_labels, quality, budget)
    assert len(order) == len(gains) == min(budget, len(row_labels))
    assert len(set(order.tolist())) == len(order)
    brings = graph.information(row_labels, quality).toarray()
    z = np.zeros(len(graph.labels))
    for place, row in enumerate(order.tolist()):
        gain = brings @ (0.8 * (z + 1e-6) ** -0.2)
        left = [other for other in range(len(row_labels)) if other not in order[:place].tolist()]
        assert gain[row] == pytest.approx(max(gain[left]), abs=1e-9)
        assert gains[place] == pytest.approx(gain[row], abs=1e-9)
        z += brings[row]
    assert (np.diff(gains) <= 1e-9).all()


def test_the_first_choices_by_hand():
    row_labels = [["a"], ["a"], ["b"], ["a", "b"], []]
    graph, _ = label_graph(row_labels)
    order, gains = mig_order(graph, row_labels, [1, 1, 1, 1, 9], 5)
    assert order.tolist() == [3, 0, 2, 1, 4]
    slope = [0.8 * (z + 1e-6) ** -0.2 for z in range(3)]
    assert gains.tolist() == pytest.approx([2 * slope[0], slope[1], slope[1], slope[2], 0])


def test_information_spreads_only_along_links():
    cosine = 0.95
    vectors = {"car": [1, 0, 0], "Auto ": [cosine, math.sqrt(1 - cosine**2), 0], "poem": [0.5, 0, 2]}
    graph, note = label_graph([["car"], ["auto"], ["poem"]], vectors)
    assert note is None
    assert graph.labels == ("auto", "car", "poem")
    # Each of the two gets 1 of its own and 0.95 of the other, as shares of 1.95.
    share = 1 / 1.95
    expected = [[2 * 0.95 * share, 2 * share, 0], [4 * share, 4 * 0.95 * share, 0], [0, 0, 1]]
    information = graph.information([["car"], ["AUTO", " auto"], ["poem"]], [2, 4, 1])
    np.testing.assert_allclose(information.toarray(), expected)


def test_a_linked_label_is_worth_less_once_its_neighbour_is_covered():
    vectors = {"car": [1, 0.01, 0], "auto": [1, 0, 0], "poem": [0, 0, 1]}
    rows = [["car"], ["auto"], ["poem"]]
    linked, _ = label_graph(rows, vectors)
    alone, _ = label_graph(rows)
    assert mig_order(linked, rows, [1.2, 1.1, 1.0], 2)[0].tolist() == [0, 2]
    assert mig_order(alone, rows, [1.2, 1.1, 1.0], 2)[0].tolist() == [0, 1]


def test_all_labels_are_covered_before_quality_counts():
    """The exact gain would take three rows of label a: 10^0.8 - 5^0.8 = 2.7 against 0.5^0.8 = 0.57."""
    rows, quality = [["a"]] * 5 + [["b"]], [5.0] * 5 + [0.5]
    graph, _ = label_graph(rows)
    assert mig_order(graph, rows, quality, 3)[0].tolist() == [0, 5, 1]


def test_memory_per_distinct_row_is_small():
    """Every row brings something of its own; a container for each would take 0.7 kB."""
    count = 20_000
    row_labels = [[f"label {row}"] for row in range(count)]
    graph, _ = label_graph(row_labels)
    graph.information(row_labels[:0], [])
    tracemalloc.start()
    mig_order(graph, row_labels, np.ones(count), 1)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes / count < 600


def test_rows_without_a_label_come_last_by_quality():
    rows = [[], ["a"], [], ["a"], []]
    graph, _ = label_graph(rows)
    order, gains = mig_order(graph, rows, [2, 0, 3, 1, 3], 5)
    assert order.tolist() == [3, 1, 2, 4, 0]
    assert gains.tolist() == pytest.approx([0.8 * 1e-6**-0.2, 0, 0, 0, 0])
    assert mig_order(graph, rows, [2, 0, 3, 1, 3], 3)[0].tolist() == [3, 1, 2]


def test_no_row_has_a_label():
    graph, note = label_graph([[], []])
    assert graph.labels == ()
    assert note == NO_VECTORS
    assert mig_order(graph, [[], []], [1, 2], 5)[0].tolist() == [1, 0]
    assert label_graph([[], []], {})[1] is None


def test_without_vectors_nothing_is_linked_and_a_sentence_says_so():
    graph, note = label_graph([["b"], ["A "]])
    assert note == NO_VECTORS
    assert graph.labels == ("a", "b")
    np.testing.assert_array_equal(graph.spread.toarray(), np.eye(2))


def test_labels_without_a_vector_are_counted():
    graph, note = label_graph([["a", "b", "c"]], {"a": [1, 0], "B": [1, 0]})
    assert note == "1 of 3 labels have no vector: they are linked to no other"
    np.testing.assert_array_equal(graph.spread.toarray(), [[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 1]])


def test_links_do_not_depend_on_the_blocks(monkeypatch):
    labels = [f"label {i:03d}" for i in range(90)]
    vectors = directions(labels, groups=7)
    whole, _ = label_graph([labels], vectors)
    monkeypatch.setattr(module, "_BLOCK_LABELS", 13)
    blocks, _ = label_graph([labels], vectors)
    np.testing.assert_allclose(blocks.spread.toarray(), whole.spread.toarray(), rtol=1e-12)
    np.testing.assert_allclose(whole.spread.toarray(), dense_spread(labels, vectors), rtol=1e-12)
    np.testing.assert_allclose(whole.spread.sum(axis=0), 1)


@pytest.mark.parametrize(
    ("quality", "message"),
    [
        ([1.0, -2.0], r"row 1 has quality -2\.0: use a number of 0 or more, or reject it"),
        ([math.nan, 1.0], "row 0 has quality nan: use a number of 0 or more, or reject it"),
        ([1.0], r"quality has shape \(1,\): give one number for each of 2 rows"),
    ],
)
def test_a_quality_that_cannot_be_is_refused(quality, message):
    graph, _ = label_graph([["a"], ["b"]])
    with pytest.raises(ValueError, match=f"^{message}$"):
        mig_order(graph, [["a"], ["b"]], quality, 1)


def test_a_label_outside_the_graph_is_refused():
    graph, _ = label_graph([["a"]])
    with pytest.raises(ValueError, match=r"^row 1 has label 'z', which is not in the graph: build it from all rows$"):
        mig_order(graph, [["a"], ["Z"]], [1, 1], 1)


def test_a_negative_budget_is_refused():
    graph, _ = label_graph([["a"]])
    with pytest.raises(ValueError, match=r"^budget is -1: use 0 or more$"):
        mig_order(graph, [["a"]], [1], -1)
