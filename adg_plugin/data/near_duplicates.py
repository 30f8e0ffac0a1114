"""Rows that nearly repeat an earlier row of the pool."""

from __future__ import annotations

import hashlib
import json
from functools import partial
from math import ceil, log
from typing import Any

import numpy as np
import numpy.typing as npt

from adg_plugin.data.cells import Reason
from adg_plugin.data.rows import Row
from adg_plugin.data.text import tokens
from adg_plugin.errors import need

Shingles = npt.NDArray[np.uint64]  # (S,) hashes of word triples, ascending, each once

_SHINGLE_WORDS = 3
_SEED = 1
_MISSED = 0.02  # of pairs exactly at the threshold; of closer ones, far fewer
_MOST_BANDS = 14
_MOST_ROWS = 16


class NearDuplicates:
    """Rejects rows that are close to one that stayed, so of near-duplicates the first stays.

    MinHash finds the candidates, and the Jaccard similarity of their shingles, counted exactly, decides: no row is lost
    to the error of an estimate, and what is close does not depend on the hash functions. Counting costs no more than
    estimating, as the shingles of a usual instruction take less memory than its MinHash would.

    Memory grows by up to 5 kB per row that stays (the index), and 8 bytes per word of it. Time grows faster than the
    pool where most rows follow one template, because then many are compared.
    """

    def __init__(self, threshold: float) -> None:
        """Make an empty index; a MissingExtraError where `datasketch` is not installed."""
        sketch = need("datasketch", extra="filters", why="filters.near_duplicates")
        bands, rows = bands_and_rows(threshold)
        self._threshold = threshold
        self._index = sketch.MinHashLSH(num_perm=bands * rows, params=(bands, rows))
        self._empty = sketch.MinHash(num_perm=bands * rows, seed=_SEED, hashfunc=lambda shingle: shingle & 0xFFFFFFFF)
        self._ids: list[str] = []
        self._shingles: list[Shingles] = []

    def __call__(self, row: Row) -> tuple[Reason, str] | None:
        """Return the first row that stayed and is as close as the threshold, or None, and remember the row."""
        near = self.near(row.id, shingles(row))
        if near is None:
            return None
        return Reason.NEAR_DUPLICATE, f"{near[1]:.3g} like {near[0]!r}, filters.near_duplicates is {self._threshold:g}"

    def near(self, id: str, found: Shingles) -> tuple[str, float] | None:
        """Return id and similarity of the first row that stayed and is close, or None, and remember this one."""
        sketch = self._empty.copy()
        sketch.update_batch(found.tolist())
        for number in sorted(self._index.query(sketch)):
            closeness = jaccard(found, self._shingles[number])
            if closeness >= self._threshold:
                return self._ids[number], closeness
        self._index.insert(len(self._ids), sketch)
        self._ids.append(id)
        self._shingles.append(found)
        return None


def bands_and_rows(threshold: float) -> tuple[int, int]:
    """Return how many bands of how many hashes find a pair exactly at the threshold, but for one in fifty.

    A pair of similarity s shares a band of r hashes with probability s**r, and any of b bands with 1 - (1 - s**r)**b.
    The longer the bands, the fewer pairs are compared in vain, and the more bands it takes: 14 at most, which every
    threshold of 0.5 or more can do with.
    """

    def bands(rows: int) -> int:
        return max(2, ceil(log(_MISSED) / log(1 - threshold**rows))) if threshold < 1 else 2

    return next((bands(rows), rows) for rows in range(_MOST_ROWS, 0, -1) if bands(rows) <= _MOST_BANDS)


def shingles(row: Row) -> Shingles:
    """Return the hashed word triples of a row's turns; a text of fewer words is a shingle itself.

    The system prompt and the tools are part of every hash: where they differ, rows have nothing in common, and where
    they are the same, however long, they bring rows no closer.
    """
    turns = [turn for turn in row.messages or () if turn["role"] != "system"]
    text = row.text if row.text is not None else "\n\n".join(str(turn.get("content") or "") for turn in turns)
    system: list[Any] = [turn.get("content") for turn in row.messages or () if turn["role"] == "system"]
    frame = json.dumps([system, row.tools], sort_keys=True).encode() if system or row.tools else b""
    return text_shingles(text, hashlib.blake2b(frame, digest_size=16).digest() if frame else b"")


def text_shingles(text: str, frame: bytes = b"") -> Shingles:
    """Return the hashed word triples of a text; those of two frames have nothing in common."""
    words = tokens(text) or [text]
    starts = range(max(1, len(words) - _SHINGLE_WORDS + 1))
    hashed = partial(hashlib.blake2b, digest_size=8, key=frame)
    digests = {hashed("\n".join(words[n : n + _SHINGLE_WORDS]).encode()).digest() for n in starts}
    return np.sort(np.frombuffer(b"".join(digests), "<u8"))


def jaccard(one: Shingles, other: Shingles) -> float:
    """Return the part of all their shingles that two texts share, from 0 to 1."""
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / (len(one) + len(other) - shared)
