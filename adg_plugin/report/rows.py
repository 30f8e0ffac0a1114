"""The rows that a report lists, and those of them whose texts and answers it holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from adg_plugin.report.facets import Facets
from adg_plugin.report.figures import short
from adg_plugin.scoring.quota import opposite_before
from adg_plugin.selectors.columns import numbers, part_names
from adg_plugin.store import RunReader

MOST_ROWS = 50_000
MOST_ANSWERED = 2_000  # rows with their whole texts and answers
_TEXT, _ANSWER = 2_000, 1_200  # characters

Ints = npt.NDArray[np.int64]


def listed_rows(table: pa.Table, most: int, rng: np.random.Generator) -> Ints:
    """Return which rows are listed, ascending: all, or of a large pool the chosen first and then a sample."""
    if len(table) <= most:
        return np.arange(len(table))
    chosen = np.flatnonzero(table["chosen"].to_numpy())
    left = np.flatnonzero(~table["chosen"].to_numpy())
    of_chosen = min(len(chosen), max(most // 2, most - len(left)))
    picked = [rng.permutation(chosen)[:of_chosen], rng.permutation(left)[: most - of_chosen]]
    return np.sort(np.concatenate(picked))


def answered_rows(table: pa.Table, listed: Ints, at_random: Ints, most: int) -> Ints:
    """Return which of the listed rows are shown with their answers, about `most`.

    All if they fit; else those `at_random`, and beside them the best, the worst and those that were nearest to another
    fate: within their bin, or over the pool where the method knows no bins.
    """
    if len(listed) <= most:
        return listed
    by_score = np.argsort(-table["score"].to_numpy()[listed], kind="stable")
    by_cut = np.argsort(_near_the_cut(table)[listed], kind="stable")
    ends = (listed[order[: most // 6]] for order in (by_score, by_score[::-1], by_cut))
    shown: Ints = np.unique(np.concatenate([at_random, *ends]))
    return shown


def _near_the_cut(table: pa.Table) -> Ints:
    """Return how many ranks each row is from one that got the opposite decision, of its bin if there are bins, (N,)."""
    if "bin" not in table.column_names:
        ranks, chosen = table["rank"].to_pylist(), table["chosen"].to_numpy()
        budget = int(chosen.sum())
        rank = np.array([len(table) + budget if rank is None else rank for rank in ranks], dtype=np.int64)
        return np.where(chosen, budget + 1 - rank, rank - budget)
    bins, rank, chosen = (table[name].to_numpy() for name in ("bin", "rank_in_bin", "chosen"))
    order = np.lexsort((rank, bins))
    away = np.full(len(table), len(table), dtype=np.int64)
    for ranked in (order, order[::-1]):
        before = opposite_before(bins[ranked], chosen[ranked])
        steps = np.where(before < 0, len(table), np.arange(len(table)) - before)
        away[ranked] = np.minimum(away[ranked], steps)
    return away


def columns(table: pa.Table, facets: Facets, listed: Ints) -> dict[str, Any]:
    """Return the listed rows column by column, which compresses better than row by row."""
    part = table.take(pa.array(listed))
    found: dict[str, Any] = {"id": part["id"].to_pylist(), "chosen": [int(v) for v in part["chosen"].to_pylist()]}
    if "bin" in part.column_names:
        for name, column in (("score", "score"), ("D", "dispersion"), ("I", "anisotropy")):
            found[name] = [short(value) for value in part[column].to_pylist()]
        for name, column in (("bin", "bin"), ("rank", "rank_in_bin"), ("quota", "bin_quota")):
            found[name] = part[column].to_pylist()
        per_answer = part["answer_tokens"].to_numpy() / np.maximum(1, part["num_answers"].to_numpy())
        found["tokens"] = [round(n, 1) for n in per_answer.tolist()]
    else:
        for name in ("score", "rank", *part_names(part)):
            found[name] = [short(value) if isinstance(value, float) else value for value in numbers(part, name)]
    found["why"] = _coded(part["reason"].to_pylist())
    found["instruction"] = [facets.instructions[row] for row in listed]
    for name, facet in facets.kinds.items():
        if facet.sample is None:
            found[name] = _coded([facet.values[row] for row in listed])
    return found


def _coded(values: Sequence[str | None]) -> dict[str, Any]:
    """Return values of a few kinds as numbers into a list of them."""
    kinds = sorted({value or "" for value in values})
    code = {value: number for number, value in enumerate(kinds)}
    return {"kinds": kinds, "codes": [code[value or ""] for value in values]}


def texts(run: RunReader, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return by id what a row says in full: instruction, reference, place; answers and their similarity, if drawn."""
    found: dict[str, dict[str, Any]] = {}
    for row in run.staged_rows(ids):
        found[row.prompt.id] = {
            "instruction": shortened(row.prompt.instruction, _TEXT),
            "reference": shortened(row.reference, _ANSWER),
            "where": row.where,
        }
    for result in run.results(set(ids)):
        if result.gram is None or result.id not in found:
            continue
        found[result.id] |= {
            "answers": [
                [shortened(a.text, _ANSWER), len(a.token_ids), int(a.finish_reason == "length")] for a in result.answers
            ],
            "similarity": [[round(float(value), 3) for value in row] for row in result.gram],
        }
    return found


def shortened(text: str, longest: int) -> str:
    """Return the text, of at most `longest` characters."""
    return text if len(text) <= longest else text[: longest - 1] + "…"
