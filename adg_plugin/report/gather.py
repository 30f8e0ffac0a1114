"""What a finished run folder has to say, gathered once for the page, the figures and the JSON."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from adg_plugin.config import ADGConfig
from adg_plugin.errors import StoreError
from adg_plugin.explain import finished
from adg_plugin.report import figures, rows
from adg_plugin.report.facets import Facets, add_languages, count_kinds, read_facets
from adg_plugin.report.figures import Figure
from adg_plugin.scoring import eligible
from adg_plugin.store import RunFolder, RunReader

_POINTS = 6_000  # of the plane
_CHARACTERS = 160  # of an instruction in the list
_REJECTED_EXAMPLES = 50  # of each reason
_CUT_ANSWERS = 0.3  # share of answers cut at the limit that is worth a warning
_HIGH = {True: "high", False: "low"}


@dataclass(frozen=True, slots=True)
class Gathered:
    """The contents of a report.

    Attributes:
        about: figures and facts, as JSON.
        figures: with their data.
        table: the listed rows, column by column.
        answered: positions of the listed rows that come with texts, best first to last to go.
        texts: of these, by id.
        rejected: examples of rejected rows.
    """

    about: dict[str, Any]
    figures: tuple[Figure, ...]
    table: dict[str, Any]
    texts: dict[str, dict[str, Any]]
    rejected: list[dict[str, str]]


def gather(run_dir: Path, *, gpu_hour_price: float | None = None) -> Gathered:
    """Return what the report of a run folder shows.

    Args:
        run_dir: of a finished selection.
        gpu_hour_price: of one device, for the cost of the sampling.

    Raises:
        StoreError: not a run folder, without a result, or damaged since.
    """
    run = RunFolder.read(run_dir)
    config = finished(run)
    manifest = run.manifest()
    assert manifest is not None
    table, geometry = run.scores(), eligible(run.geometry(), config)
    if table["id"].to_pylist() != list(geometry.ids):
        raise StoreError(f"{run.path} lost answers since it was finished: run adg select on it again")
    rng = np.random.default_rng(config.seed)
    ids = table["id"].to_pylist()
    facets = read_facets(run, ids, [spec.path for spec in config.datasets], _CHARACTERS)
    add_languages(facets, facets.instructions, rng)
    listed = rows.listed_rows(table, rows.MOST_ROWS, rng)
    texts = rows.texts(run, [ids[row] for row in rows.answered_rows(table, listed, rows.MOST_ANSWERED, rng)])
    quadrants, medians = _quadrants(table)
    cut_share = _cut_share(texts)
    about = {
        "summary": _summary(run, manifest, config, gpu_hour_price),
        "score": manifest["score"],
        "quadrants": quadrants,
        "composition": {name: count_kinds(values, table["chosen"].to_numpy()) for name, values in facets.kinds.items()},
        "rejected": manifest["rows"]["rejected"],
        "answers_cut_at_the_limit": cut_share,
        "warnings": [*manifest["warnings"], *_warnings(config, cut_share), *run.damage],
    }
    return Gathered(
        about,
        tuple(_figures(table, geometry.prompt_vectors, facets, manifest, medians, about["composition"], rng)),
        rows.columns(table, facets, listed),
        texts,
        _rejected(run),
    )


def _summary(run: RunReader, manifest: dict[str, Any], config: ADGConfig, price: float | None) -> dict[str, Any]:
    sampling, counts = manifest["sampling"], manifest["rows"]
    seconds = sampling.get("seconds", 0.0) + sampling.get("embedding", {}).get("seconds", 0.0)
    found: dict[str, Any] = {
        "run": run.path.resolve().name,
        "created": manifest["created"],
        "model": config.model,
        "rows": counts,
        "settings": config.model_dump(mode="json", exclude_defaults=True),
        "recipe": manifest["recipe"],
        "versions": manifest["versions"],
        "answer_tokens": manifest["answer_tokens"],
        # Of the last run only: one that was interrupted left no record of its time.
        "sampled_rows": sampling.get("rows", 0),
        "sampling_seconds": seconds,
        "sampled_tokens": sampling.get("tokens", 0),
        "devices": sampling.get("ranks", 1),
        "seconds": manifest["seconds"],
    }
    if price is not None:
        found["cost"] = seconds / 3600 * price * found["devices"]
    return found


def _quadrants(table: pa.Table) -> tuple[list[dict[str, Any]], tuple[float, float]]:
    """Return rows and chosen rows of each quadrant around the medians, and these."""
    dispersion, anisotropy = table["dispersion"].to_numpy(), table["anisotropy"].to_numpy()
    chosen = table["chosen"].to_numpy()
    medians = float(np.median(dispersion)), float(np.median(anisotropy))
    found = []
    for far in (True, False):
        for wide in (True, False):
            inside = ((dispersion > medians[0]) == far) & ((anisotropy > medians[1]) == wide)
            name = {"dispersion": _HIGH[far], "anisotropy": _HIGH[wide]}
            found.append({**name, "rows": int(inside.sum()), "chosen": int((inside & chosen).sum())})
    return found, medians


def _cut_share(texts: dict[str, dict[str, Any]]) -> float:
    cut = [answer[2] for about in texts.values() for answer in about["answers"]]
    return float(np.mean(cut)) if cut else 0.0


def _warnings(config: ADGConfig, cut_share: float) -> list[str]:
    if cut_share <= _CUT_ANSWERS:
        return []
    return [
        f"{cut_share:.0%} of the answers here were cut at max_new_tokens ({config.max_new_tokens}): the score compares "
        "their beginnings; raise it if the model's own answers are longer"
    ]


def _figures(
    table: pa.Table,
    vectors: npt.NDArray[np.float16],
    facets: Facets,
    manifest: dict[str, Any],
    medians: tuple[float, float],
    composition: dict[str, Any],
    rng: np.random.Generator,
) -> list[Figure]:
    ids = table["id"].to_pylist()
    names = ("dispersion", "anisotropy", "score", "chosen", "bin", "rank_in_bin", "bin_quota")
    dispersion, anisotropy, score, chosen, bins, rank, quota = (table[name].to_numpy() for name in names)
    shown = np.sort(rng.permutation(len(table))[:_POINTS])
    cuts = score[chosen & (rank == quota)]
    found = [
        figures.plane(
            [ids[row] for row in shown], dispersion[shown], anisotropy[shown], score[shown], chosen[shown], medians
        ),
        figures.scores(score, chosen, cuts),
        figures.shares(manifest["score"]["share_of_variance"], manifest["score"]["spearman"]),
        _map(vectors, bins, score, chosen, facets.instructions),
        figures.lengths("prompt_tokens", "prompt tokens", facets.prompt_tokens, chosen),
        figures.lengths(
            "answer_tokens",
            "tokens per answer",
            table["answer_tokens"].to_numpy() // np.maximum(1, table["num_answers"].to_numpy()),
            chosen,
        ),
    ]
    if facets.reference_words.any():
        found.append(figures.lengths("reference_words", "words of the reference", facets.reference_words, chosen))
    return [*found, *(figures.composition(name, values) for name, values in composition.items())]


def _map(
    vectors: npt.NDArray[np.float16],
    bins: npt.NDArray[np.integer],
    score: npt.NDArray[np.float64],
    chosen: npt.NDArray[np.bool_],
    instructions: list[str],
) -> Figure:
    """Return the bins' mean prompt vectors on their two main directions."""
    count = int(bins.max()) + 1
    sizes = np.bincount(bins, minlength=count)
    order = np.argsort(bins, kind="stable")
    starts = np.cumsum(sizes) - sizes
    means = np.zeros((count, vectors.shape[1]))
    best = [0] * count
    for bin_ in np.flatnonzero(sizes):
        rows_of = order[starts[bin_] : starts[bin_] + sizes[bin_]]
        means[bin_] = vectors[rows_of].astype(np.float64).mean(0)
        best[bin_] = int(rows_of[score[rows_of].argmax()])
    weights = np.sqrt(sizes)[:, None]
    centred = (means - np.average(means, axis=0, weights=sizes)) * weights
    axes = np.linalg.svd(centred, full_matrices=False)[2][:2]
    places = np.zeros((count, 2))
    places[:, : len(axes)] = (centred / np.maximum(weights, 1)) @ axes.T
    texts = [instructions[row][:100] for row in best]
    return figures.bins_map(places, sizes, np.bincount(bins[chosen], minlength=count), texts)


def _rejected(run: RunReader) -> list[dict[str, str]]:
    seen: Counter[str] = Counter()
    found = []
    for rejection in run.rejections():
        seen[rejection.reason] += 1
        if seen[rejection.reason] <= _REJECTED_EXAMPLES:
            found.append(
                {
                    "reason": rejection.reason,
                    "id": rejection.id,
                    "where": rejection.where,
                    "detail": rejection.detail[:300],
                }
            )
    return found
