"""A row's labels and quality -> the information that it brings to each label of a graph. Source: arXiv 2504.13835."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

Floats = npt.NDArray[np.float64]

LINK_ABOVE = 0.9
_BLOCK_LABELS = 1024  # compared with all others at a time


@dataclass(frozen=True, slots=True)
class LabelGraph:
    """Labels, and how information spreads between those that mean nearly the same.

    Attributes:
        labels: (L,) distinct, sorted, each as `normalised` gives it.
        spread: (L, L) sparse; entry i, j is the share of label j's information that comes from label i:
            w_ij / sum_k w_kj, with w the cosine of two linked labels and 1 of a label with itself.
    """

    labels: tuple[str, ...]
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
    row_labels: Sequence[Sequence[str]],
    vectors: Mapping[str, npt.ArrayLike] | None = None,
    *,
    link_above: float = LINK_ABOVE,
) -> tuple[LabelGraph, str | None]:
    """Return the graph of all labels of the rows, and a sentence where labels go without links for want of a vector.

    Args:
        row_labels: (N,) labels of each row.
        vectors: a vector of any one width for each label, such as a sentence embedding of its name; names are
            normalised as labels are. Nothing is downloaded to make up for them.
        link_above: cosine above which two labels are linked.

    Raises:
        ValueError: a vector is zero, not finite, or of another width.

    Source: arXiv 2504.13835 (threshold 0.9); the normalisation of `spread` is that of its authors' released code.
    """
    labels = tuple(sorted({normalised(label) for labels in row_labels for label in labels}))
    if vectors is None:
        return _graph(labels, [], [], []), (
            "mig has no label vectors: labels with similar meaning are treated as unrelated"
        )
    known = {normalised(name): vector for name, vector in vectors.items()}
    present = [i for i, label in enumerate(labels) if label in known]
    units = _unit_vectors([labels[i] for i in present], known)
    links = [(present[i], present[j], cosine) for i, j, cosine in zip(*_pairs_above(units, link_above), strict=True)]
    graph = _graph(labels, [i for i, _, _ in links], [j for _, j, _ in links], [cosine for _, _, cosine in links])
    absent = len(labels) - len(present)
    note = f"{absent} of {len(labels)} labels have no vector: they are linked to no other" if absent else None
    return graph, note


def normalised(label: str) -> str:
    """Return the label in lower case, without white space around it."""
    return label.strip().lower()


def _graph(labels: tuple[str, ...], first: list[int], second: list[int], cosines: list[float]) -> LabelGraph:
    each = list(range(len(labels)))
    weights = sparse.csr_array(
        ([1.0] * len(labels) + cosines + cosines, (each + first + second, each + second + first)),
        shape=(len(labels), len(labels)),
        dtype=np.float64,
    )
    reaching = np.asarray(weights.sum(axis=0)).ravel()
    return LabelGraph(labels, sparse.csr_array(weights @ sparse.diags_array(1 / reaching)))


def _unit_vectors(labels: Sequence[str], vectors: Mapping[str, npt.ArrayLike]) -> Floats:
    """Return (L, width) vectors of unit length, or raise naming the label whose vector cannot be scaled."""
    width, units = None, []
    for label in labels:
        vector = np.asarray(vectors[label], dtype=np.float64)
        width = vector.shape if width is None else width
        if vector.ndim != 1 or vector.shape != width:
            raise ValueError(f"the vector of label {label!r} has shape {vector.shape}: give all of them one width")
        length = float(np.linalg.norm(vector))
        if not math.isfinite(length) or length == 0:
            raise ValueError(f"the vector of label {label!r} has length {length}: give one that is finite and not zero")
        units.append(vector / length)
    return np.array(units) if units else np.empty((0, 1))


def _pairs_above(units: Floats, threshold: float) -> tuple[list[int], list[int], list[float]]:
    """Return i, j and the cosine of each pair i < j above the threshold, without holding all cosines at once."""
    first: list[int] = []
    second: list[int] = []
    cosines: list[float] = []
    for start in range(0, len(units), _BLOCK_LABELS):
        block = units[start : start + _BLOCK_LABELS] @ units[start:].T
        i, j = np.nonzero(np.triu(block > threshold, k=1))
        first += (i + start).tolist()
        second += (j + start).tolist()
        cosines += block[i, j].tolist()
    return first, second, cosines
