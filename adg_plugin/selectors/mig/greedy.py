"""MIG: labels and quality -> the rows that bring the most information over a label graph. Source: arXiv 2504.13835."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heapreplace

import numpy as np
import numpy.typing as npt
from scipy import sparse

from adg_plugin.selectors.mig.columns import normalised

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_LINK_ABOVE = 0.9  # the cosine of two labels
_BLOCK_LABELS = 1024  # compared with all others at a time
_POWER = 0.8  # phi(z) = z^0.8
_OFFSET = 1e-6  # of z in the derivative, which is infinite at 0; as in the authors' released code

Entry = tuple[float, int, int, int]  # -gain, next row of the group, rows chosen when the gain was computed, group


@dataclass(frozen=True, slots=True)
class LabelGraph:
    """Labels, and how information spreads between those that mean nearly the same."""

    labels: tuple[str, ...]  # (L,) distinct, sorted, each as `normalised` gives it
    # (L, L) sparse; entry i, j is the share of label j's information that comes from label i: w_ij / sum_k w_kj, with w
    # the cosine of two linked labels and 1 of a label with itself.
    spread: sparse.csr_array

    def information(self, row_labels: Sequence[Sequence[str]], quality: npt.ArrayLike) -> sparse.csr_array:
        """Return what each row brings to each label: its quality on each label of its own, spread along the links.

        Args:
            row_labels: (N,) labels of each row; a repeated one counts once.
            quality: (N,), finite and >= 0.

        Returns:
            (N, L) sparse, with indices in order; a row without a label, or of quality 0, has no entry.

        Raises:
            ValueError: a label is not in the graph, a quality is negative or not finite, or they differ in number.
        """
        worth = np.asarray(quality, dtype=np.float64)
        if worth.shape != (len(row_labels),):
            raise ValueError(f"quality has shape {worth.shape}: give one number for each of {len(row_labels)} rows")
        wrong = ~(np.isfinite(worth) & (worth >= 0))
        if wrong.any():
            row = int(wrong.argmax())
            raise ValueError(f"row {row} has quality {worth[row]}: use a number of 0 or more, or reject it")
        number = {label: i for i, label in enumerate(self.labels)}
        rows: list[int] = []
        columns: list[int] = []
        for row, labels in enumerate(row_labels):
            for label in {normalised(label) for label in labels}:
                if label not in number:
                    raise ValueError(
                        f"row {row} has label {label!r}, which is not in the graph: build it from all rows"
                    )
                rows.append(row)
                columns.append(number[label])
        shape = (len(row_labels), len(self.labels))
        own = sparse.csr_array((worth[rows], (rows, columns)), shape=shape, dtype=np.float64)
        spread = sparse.csr_array(own @ self.spread)
        spread.sort_indices()
        return spread


def label_graph(
    row_labels: Sequence[Sequence[str]], vectors: Mapping[str, npt.ArrayLike] | None = None
) -> tuple[LabelGraph, str | None]:
    """Return the graph of all labels of the rows, and a sentence where labels go without links for want of a vector.

    Args:
        row_labels: (N,) labels of each row.
        vectors: as `read_label_vectors` gives them, such as sentence embeddings of the names. Nothing is downloaded to
            make up for them.

    Source: arXiv 2504.13835 (links above 0.9); the normalisation of `spread` is that of its authors' released code.
    """
    labels = tuple(sorted({normalised(label) for labels in row_labels for label in labels}))
    weights = sparse.csr_array(sparse.eye_array(len(labels)))
    note: str | None = "mig has no label vectors: labels with similar meaning are treated as unrelated"
    if vectors is not None:
        known = {normalised(name): vector for name, vector in vectors.items()}
        present = np.array([i for i, label in enumerate(labels) if label in known], dtype=np.int64)
        lacking = len(labels) - len(present)
        note = f"{lacking} of {len(labels)} labels have no vector: they are linked to no other" if lacking else None
        if len(present):
            first, second, cosines = _linked([np.asarray(known[labels[i]], np.float64) for i in present])
            links = sparse.coo_array((cosines, (present[first], present[second])), shape=weights.shape)
            weights = sparse.csr_array(weights + links + links.T)
    reaching = np.asarray(weights.sum(axis=0)).ravel()
    return LabelGraph(labels, sparse.csr_array(weights @ sparse.diags_array(1 / reaching))), note


def _linked(vectors: Sequence[Floats]) -> tuple[Ints, Ints, Floats]:
    """Return i, j and the cosine of each linked pair i < j, without holding all cosines at once."""
    units = np.array([vector / np.linalg.norm(vector) for vector in vectors])
    found = []
    for start in range(0, len(units), _BLOCK_LABELS):
        block = units[start : start + _BLOCK_LABELS] @ units[start:].T
        i, j = np.nonzero(np.triu(block > _LINK_ABOVE, k=1))
        found.append((i + start, j + start, block[i, j]))
    first, second, cosines = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return first, second, cosines


def mig_order(
    graph: LabelGraph, row_labels: Sequence[Sequence[str]], quality: npt.ArrayLike, budget: int
) -> tuple[Ints, Floats]:
    """Return the rows in the order in which they are chosen, and what each of them gained when it was.

    The information of a set is sum over labels j of phi(z_j), phi(z) = z^0.8, with z_j what its rows bring to label j
    (`LabelGraph.information`). Each choice is the row with the greatest gain, of equal gains the lower index. The gain
    is taken by the derivative, as the authors' released sampler does: sum over j of x_j phi'(z_j), phi'(z) =
    0.8 (z + 1e-6)^-0.2, with x_j what the row brings. Rows without a label gain nothing and come last, the highest
    quality first.

    Gains are computed again only for rows that may be next, and the choice is still the greedy one: the derivative
    falls as z grows and what a row brings (x >= 0) does not change. Each gain on the heap is hence a bound on the
    present one. Where the top of the heap is fresh, it is at least every bound, and so at least every gain; at equality
    its index is the lowest. True up to rounding, about 1e-12 of a gain.

    Args:
        graph: holds all labels of the rows.
        row_labels: (N,) labels of each row; rows sorted by id.
        quality: (N,), finite and >= 0.
        budget: rows to choose, >= 0; min(budget, N) are.

    Returns:
        (n,) indices in order of choice, and (n,) gains, >= 0 and falling; n = min(budget, N).

    Raises:
        ValueError: `budget` is negative, or as `LabelGraph.information`.

    Source: arXiv 2504.13835 and its authors' released code, github.com/yichengchen24/MIG, mig/sampler.py.
    """
    if budget < 0:
        raise ValueError(f"budget is {budget}: use 0 or more")
    information = graph.information(row_labels, quality)
    labelled = np.array([bool(labels) for labels in row_labels], dtype=np.bool_)
    order, gains = _greedy(information, np.flatnonzero(labelled), budget)
    worth = np.asarray(quality, dtype=np.float64)
    bare = np.flatnonzero(~labelled)
    last = bare[np.argsort(-worth[bare], kind="stable")][: budget - len(order)].tolist()
    return np.array(order + last, dtype=np.int64), np.array(gains + [0.0] * len(last))


def _greedy(information: sparse.csr_array, rows: Ints, budget: int) -> tuple[list[int], list[float]]:
    """Return up to `budget` of the rows that have labels, each the one with the greatest gain then; and the gains."""
    members, starts = _equal_rows(information, rows)
    pointers, columns, values = information.indptr, information.indices, information.data
    totals = np.zeros(information.shape[1])
    slopes = _POWER * (totals + _OFFSET) ** (_POWER - 1)

    def brings(row: int) -> tuple[Ints, Floats]:
        entries = slice(pointers[row], pointers[row + 1])
        return columns[entries], values[entries]

    def gain(row: int) -> float:
        labels, x = brings(row)
        return float(x @ slopes[labels])

    following = starts[:-1].copy()  # place of each group's next row
    heap: list[Entry] = [(-gain(row), row, 0, group) for group, row in enumerate(members[following].tolist())]
    heapify(heap)
    order: list[int] = []
    gains: list[float] = []
    while heap and len(order) < budget:
        bound, row, computed_at, group = heap[0]
        if computed_at < len(order):
            heapreplace(heap, (-gain(row), row, len(order), group))
            continue
        order.append(row)
        gains.append(-bound)
        labels, x = brings(row)
        totals[labels] += x
        slopes[labels] = _POWER * (totals[labels] + _OFFSET) ** (_POWER - 1)
        following[group] += 1
        if following[group] < starts[group + 1]:
            heapreplace(heap, (bound, int(members[following[group]]), computed_at, group))
        else:
            heappop(heap)
    return order, gains


def _equal_rows(information: sparse.csr_array, rows: Ints) -> tuple[Ints, Ints]:
    """Return the rows, those that bring the same to the same labels together and in order, and where groups start.

    All but the first of a group need no place on the heap.

    Returns:
        (n,) rows, and (groups + 1,) places in them.
    """
    numbers: dict[tuple[bytes, bytes], int] = {}
    group = np.empty(len(rows), dtype=np.int64)
    starts = information.indptr.tolist()
    for place, row in enumerate(rows.tolist()):
        entries = slice(starts[row], starts[row + 1])
        key = information.indices[entries].tobytes(), information.data[entries].tobytes()
        group[place] = numbers.setdefault(key, len(numbers))
    together = np.argsort(group, kind="stable")
    return rows[together], np.searchsorted(group[together], np.arange(len(numbers) + 1))
