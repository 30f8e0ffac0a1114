"""Parts in any order -> Gram matrices and prompt vectors of the current pool, ordered by row id."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from adg_plugin.store.parts import Part, row_groups
from adg_plugin.store.staging import Rejection, digests, groups

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class GramGroup:
    """The rows that have K answers."""

    rows: Ints  # (M,), ascending positions in `Geometry.ids`
    grams: npt.NDArray[np.float32]  # (M, K, K), inner products of unit answer vectors


@dataclass(frozen=True, slots=True)
class Geometry:
    """All that scoring and binning need of the N answered rows; the pool's order and the parts' leave no trace."""

    ids: npt.NDArray[np.object_]  # (N,) str, ascending by code point
    prompt_vectors: npt.NDArray[np.float16]  # (N, H), unit length; (N, 0) where they were not asked for
    grams: tuple[GramGroup, ...]  # by ascending K; every row is in exactly one
    answer_tokens: npt.NDArray[np.int32]  # (N,), sampled tokens, all answers together
    agreement: npt.NDArray[np.float32]  # (N,), of the reference response with these; NaN where nobody asked
    rejections: tuple[Rejection, ...]  # by the engine, ascending by id

    def __len__(self) -> int:
        return len(self.ids)

    def without(self, rejected: npt.NDArray[np.bool_], rejections: Sequence[Rejection]) -> Geometry:
        """Return the geometry without the rows (N,) that `rejections` name."""
        kept = ~rejected
        place = np.cumsum(kept) - 1
        groups = []
        for group in self.grams:
            stays = kept[group.rows]
            if stays.any():
                groups.append(GramGroup(place[group.rows[stays]], group.grams[stays]))
        return Geometry(
            ids=self.ids[kept],
            prompt_vectors=self.prompt_vectors[kept],
            grams=tuple(groups),
            answer_tokens=self.answer_tokens[kept],
            agreement=self.agreement[kept],
            rejections=tuple(sorted([*self.rejections, *rejections], key=lambda rejection: rejection.id)),
        )


@dataclass(frozen=True, slots=True)
class _Pool:
    """The P prompts, searchable by digest. A position is a prompt's place in the pool."""

    ids: pa.Array  # (P,)
    sorted_digests: npt.NDArray[np.bytes_]  # (P,)
    positions: Ints  # (P,), of the sorted digests

    def find(self, wanted: list[bytes]) -> Ints:
        """Return the position of each digest, -1 where the pool has no such row."""
        if not len(self.sorted_digests):
            return np.full(len(wanted), -1)
        query = np.array(wanted, "S16")
        slots = np.searchsorted(self.sorted_digests, query).clip(max=len(self.sorted_digests) - 1)
        return np.where(self.sorted_digests[slots] == query, self.positions[slots], -1)


def assemble(prompts: Path, parts: Sequence[Part], *, vectors: bool = True) -> Geometry:
    """Return the geometry of the current prompts that have a result.

    Two passes over the parts: the first finds each row's place, the second writes straight into it. So memory is
    ids, one matrix of prompt vectors and the Gram matrices, plus one row group.

    Args:
        parts: by sequence; of two results for one row the first counts.
        vectors: whether to read the prompt vectors, which are most of the memory.

    Raises:
        StoreError: a file is missing or damaged.
    """
    pool = read_pool(prompts)
    positions, answers_at, reasons = _find_results(pool, parts)
    by_id = pc.sort_indices(pool.ids).to_numpy()
    chosen = by_id[answers_at[by_id] > 0].astype(np.int64)  # (N,), positions in the order of their ids
    places = np.full(len(pool.ids), -1)
    places[chosen] = np.arange(len(chosen))
    num_answers = answers_at[chosen]

    grams: dict[int, GramGroup] = {}  # by K
    for k in np.unique(num_answers).tolist():
        rows = np.flatnonzero(num_answers == k)
        grams[k] = GramGroup(rows, np.empty((len(rows), k, k), np.float32))
    prompt_vectors = np.empty((len(chosen), 0), np.float16)
    answer_tokens = np.empty(len(chosen), np.int32)
    agreement = np.full(len(chosen), np.nan, np.float32)
    columns = ["gram", "num_tokens", "agreement", *(["prompt_vector"] if vectors else [])]
    for here, table in zip(positions, _tables(parts, columns), strict=True):
        counts = here >= 0
        if not counts.any():
            continue
        table = table.filter(pa.array(counts))
        to = places[here[counts]]
        if vectors:
            block = _flat(table["prompt_vector"]).reshape(len(to), -1)
            if not prompt_vectors.size:
                prompt_vectors = np.empty((len(chosen), block.shape[1]), np.float16)
            prompt_vectors[to] = block
        answer_tokens[to] = table["num_tokens"].to_numpy()
        agreement[to] = table["agreement"].to_numpy()  # a null becomes NaN
        for k in np.unique(num_answers[to]).tolist():
            is_k = num_answers[to] == k
            flat = _flat(table["gram"].filter(pa.array(is_k)))
            grams[k].grams[np.searchsorted(grams[k].rows, to[is_k])] = flat.reshape(-1, k, k)
    return Geometry(
        ids=pool.ids.take(pa.array(chosen)).to_numpy(zero_copy_only=False),
        prompt_vectors=prompt_vectors,
        grams=tuple(grams.values()),
        answer_tokens=answer_tokens,
        agreement=agreement,
        rejections=_rejections(prompts, pool, reasons),
    )


def read_pool(prompts: Path) -> _Pool:
    """Return the ids of the prompts, searchable by digest."""
    ids: list[pa.Array] = []
    joined = bytearray()
    for table in groups(prompts, ["id", "key"]):
        ids.extend(table["id"].chunks)
        joined += b"".join(digests(table))
    unsorted = np.frombuffer(joined, "S16")
    positions = np.argsort(unsorted)
    return _Pool(pa.chunked_array(ids, pa.string()).combine_chunks(), unsorted[positions], positions)


def _find_results(pool: _Pool, parts: Sequence[Part]) -> tuple[list[Ints], npt.NDArray[np.int16], dict[int, str]]:
    """Return which of the P prompts the parts have a result of.

    Returns:
        For each row group its rows' positions, -1 where a row is not in the pool, not the first, or rejected; (P,)
        numbers of answers, 0 where there is nothing to score; and by position why the engine rejected a row.
    """
    is_seen = np.zeros(len(pool.ids), bool)
    num_answers = np.zeros(len(pool.ids), np.int16)
    reasons: dict[int, str] = {}
    positions: list[Ints] = []
    for table in _tables(parts, ["id", "key", "reason", "gram"]):
        here = pool.find(digests(table))
        counts = here >= 0
        counts[counts] = ~is_seen[here[counts]]
        is_seen[here[counts]] = True
        is_rejected = pc.is_valid(table["reason"]).to_numpy()
        for row in np.flatnonzero(counts & is_rejected):
            reasons[int(here[row])] = table["reason"][int(row)].as_py()
        counts &= ~is_rejected
        entries = pc.fill_null(pc.list_value_length(table["gram"]), 0).to_numpy()
        num_answers[here[counts]] = np.sqrt(entries[counts])
        positions.append(np.where(counts, here, -1))
    return positions, num_answers, reasons


def _tables(parts: Sequence[Part], columns: list[str]) -> Iterator[pa.Table]:
    return chain.from_iterable(row_groups(part, columns) for part in parts)


def _flat(lists: pa.ChunkedArray) -> npt.NDArray[np.floating]:
    values: npt.NDArray[np.floating] = lists.combine_chunks().flatten().to_numpy()
    return values


def _rejections(prompts: Path, pool: _Pool, reasons: dict[int, str]) -> tuple[Rejection, ...]:
    if not reasons:
        return ()
    reason_of = {pool.ids[position].as_py(): reason for position, reason in reasons.items()}
    wanted = pa.array(list(reason_of), pa.string())
    rejected = []
    for table in groups(prompts, ["id", "where"]):
        for row in table.filter(pc.is_in(table["id"], value_set=wanted)).to_pylist():
            rejected.append(Rejection(row["id"], reason_of[row["id"]], where=row["where"]))
    return tuple(sorted(rejected, key=lambda rejection: rejection.id))
