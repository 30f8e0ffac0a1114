"""ZIP: texts -> the rows that together compress worst, chosen greedily in three stages. Source: arXiv 2407.06645."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_LEVEL = 9
_SEPARATOR = b"\n"
_ROWS_AT_A_TIME = 64  # that a thread compresses before it takes more


@dataclass(frozen=True, slots=True)
class Stages:
    """The sizes of a step; the defaults are the paper's."""

    pool: int = 10_000  # rows scored again
    short_list: int = 200  # of these, rows that the step chooses among
    per_step: int = 100  # of these, rows that it takes


@dataclass(frozen=True, slots=True)
class Steps:
    """Whole steps of a choice among N rows; no budget plays a part in them."""

    order: Ints  # (n,) rows in the order of choice
    scores: Floats  # (N,) as the last step left them; infinite where a row is chosen


_PAPER = Stages()


def zip_order(
    texts: Sequence[bytes],
    budget: int,
    *,
    stages: Stages = _PAPER,
    begun: Steps | None = None,
    advance: Callable[[Steps], None] | None = None,
) -> tuple[Ints, Floats]:
    """Return the rows in the order in which they are chosen, and the compression ratio of the set they grow into.

    The ratio of a set is the bytes of its texts, joined by line breaks in the order of choice, over their bytes after
    zlib at level 9: the lower, the less the texts repeat each other. Each step takes

    1. the 10,000 rows left with the lowest scores; a row's score is its own ratio at first, and is now computed again
       as the ratio of all chosen rows and this one,
    2. the 200 of them whose new scores are the lowest,
    3. of these 100, one after another the row with the lowest ratio of this step's choices and this row.

    Rows of the short list that were not taken stay in, and scores that were not computed again keep their value. The
    third stage does not see earlier steps: only the second keeps a copy of an earlier row out. The budget cuts the last
    step short and changes nothing else. Equal ratios go to the lower index.

    Each candidate is compressed after what is already there by a copy of the compressor that has just read that, in
    place of reading it anew: a step costs the candidates' bytes, not those of the whole choice for each of them. The
    number of bytes is the same: unless it is flushed, deflate looks for a match only with 262 bytes ahead of it,
    or at the very end of its input, so how the input is cut into pieces changes neither matches nor blocks.

    Args:
        texts: (N,) UTF-8 of each row, none empty; sorted by row id, so that the result depends on their contents alone.
        budget: rows to choose, >= 0; min(budget, N) are.
        stages: of each step, in place of the numbers above.
        begun: whole steps over the same texts that were done before; they are not done again.
        advance: called with all that is done, after each whole step.

    Returns:
        (n,) indices in order of choice, and (n,) ratios, each of the whole choice at the end of the step that took the
        row; n = min(budget, N). Another version of zlib may choose other rows.

    Raises:
        ValueError: a text is empty, or the budget is negative.

    Source: arXiv 2407.06645 and the code that its authors released; that one joins the rows as a printed Python list,
    drops the rest of each short list for good, and may choose more rows than the budget.
    """
    if budget < 0:
        raise ValueError(f"budget is {budget}: use 0 or more")
    if not all(texts):
        raise ValueError(f"row {texts.index(b'')} has no text: reject it before choosing")
    chosen = _Joined()
    order: list[int] = [] if begun is None else begun.order[:budget].tolist()
    ratios: list[float] = []
    for first in range(0, len(order), stages.per_step):
        ratios += _add(chosen, texts, order[first : first + stages.per_step])
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as threads:
        if begun is None:
            scores = _ratios_with(_Joined(), texts, np.arange(len(texts)), threads)
        else:
            scores = begun.scores.copy()
        while len(order) < min(budget, len(texts)):
            candidates = _lowest(scores, stages.pool, left=len(texts) - len(order))
            scores[candidates] = _ratios_with(chosen, texts, candidates, threads)
            short = np.sort(candidates[_lowest(scores[candidates], stages.short_list, left=len(candidates))])
            taken = _least_redundant(texts, short, min(stages.per_step, budget - len(order)), threads)
            scores[taken] = np.inf
            order += taken
            ratios += _add(chosen, texts, taken)
            if advance and len(taken) == stages.per_step:
                advance(Steps(np.array(order, dtype=np.int64), scores.copy()))
    return np.array(order, dtype=np.int64), np.array(ratios)


def _add(chosen: _Joined, texts: Sequence[bytes], rows: Sequence[int]) -> list[float]:
    """Add the rows of a step to the choice, and return its ratio then, for each of them."""
    for row in rows:
        chosen.add(texts[row])
    return [chosen.ratio()] * len(rows)


@dataclass(slots=True)
class _Joined:
    """Texts joined by line breaks, as a compressor that has read them so far."""

    _compressor: zlib._Compress = field(default_factory=lambda: zlib.compressobj(_LEVEL))
    _raw: int = 0  # bytes read
    _written: int = 0  # bytes that have come out already; the rest comes with the flush

    def add(self, text: bytes) -> None:
        piece = self._piece(text)
        self._raw += len(piece)
        self._written += len(self._compressor.compress(piece))

    def ratio(self) -> float:
        return self._raw / (self._written + len(self._compressor.copy().flush()))

    def ratio_with(self, text: bytes) -> float:
        piece = self._piece(text)
        compressor = self._compressor.copy()
        written = self._written + len(compressor.compress(piece)) + len(compressor.flush())
        return (self._raw + len(piece)) / written

    def _piece(self, text: bytes) -> bytes:
        return _SEPARATOR + text if self._raw else text


def _ratios_with(joined: _Joined, texts: Sequence[bytes], rows: Ints, threads: ThreadPoolExecutor) -> Floats:
    """Return the ratio of the joined texts and each of these rows by itself."""

    def some(first: int) -> list[float]:
        return [joined.ratio_with(texts[row]) for row in rows[first : first + _ROWS_AT_A_TIME]]

    # zlib lets other threads run; the order of the results is that of the rows.
    parts = threads.map(some, range(0, len(rows), _ROWS_AT_A_TIME))
    return np.array([ratio for part in parts for ratio in part], dtype=np.float64)


def _lowest(scores: Floats, count: int, *, left: int) -> Ints:
    """Return the positions of the `count` lowest scores, but no more than `left`: the others are infinite."""
    positions: Ints = np.argsort(scores, kind="stable")[: min(count, left)].astype(np.int64)
    return np.sort(positions)


def _least_redundant(texts: Sequence[bytes], rows: Ints, count: int, threads: ThreadPoolExecutor) -> list[int]:
    """Return up to `count` of the rows, each in its turn the one with the lowest ratio after those before it."""
    joined, left = _Joined(), rows
    taken: list[int] = []
    while len(taken) < min(count, len(rows)):
        best = int(_ratios_with(joined, texts, left, threads).argmin())
        taken.append(int(left[best]))
        joined.add(texts[taken[-1]])
        left = np.delete(left, best)
    return taken
