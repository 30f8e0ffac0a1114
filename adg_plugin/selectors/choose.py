"""The selectors other than ADG over a run folder: candidates -> the choice, in the form in which it is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from adg_plugin.bins import assign_bins
from adg_plugin.config import ADGConfig
from adg_plugin.decision import Decision
from adg_plugin.engines.results import NON_FINITE
from adg_plugin.errors import DataError
from adg_plugin.layouts import Reason
from adg_plugin.likelihoods import LikelihoodTable, likelihoods_of
from adg_plugin.selection import resolve_budget
from adg_plugin.selectors import ifd, superfiltering
from adg_plugin.selectors.candidates import Candidates, Picked, decided, highest, read_candidates
from adg_plugin.selectors.label_graph import LabelGraph, label_graph, read_labels, read_quality
from adg_plugin.selectors.label_vectors import read_label_vectors
from adg_plugin.selectors.mig import mig_order
from adg_plugin.selectors.scar import scar_scores
from adg_plugin.selectors.simple import pick_longest, pick_random
from adg_plugin.selectors.zip_ratio import zip_order
from adg_plugin.store import Rejection, RunReader

if TYPE_CHECKING:
    from adg_plugin.engines.loading import Source

BAD_LABELS = "bad_labels"

Pick = Callable[[Candidates, int], Picked]


def choose(
    run: RunReader, config: ADGConfig, source: Source, pool_rows: int, unmeasured: Mapping[str, str] | None = None
) -> Decision:
    """Return the choice of the selector that the settings name.

    Args:
        run: the run folder, with a staged pool and, for `ifd` and `superfiltering`, with its likelihoods.
        config: `method` is any but `adg`.
        source: of the backbone.
        pool_rows: rows of the pool after exact duplicates, for a budget that is a fraction.
        unmeasured: the reason of each row that could not be measured this time, by id.

    Raises:
        DataError: `mig` finds neither labels nor bins.
        MissingExtraError, ModelError: what a selector needs cannot be used.
    """
    candidates = read_candidates(run, data=config.method == "mig")
    left, rejections, pick = _prepared(run, config, source, candidates, unmeasured or {})
    if not len(left):
        return Decision.none(rejections)
    budget, warning = resolve_budget(config.budget, pool_rows, len(left))
    return decided(left, pick(left, budget), config.method, [warning] if warning else [], rejections)


def _prepared(
    run: RunReader, config: ADGConfig, source: Source, candidates: Candidates, unmeasured: Mapping[str, str]
) -> tuple[Candidates, list[Rejection], Pick]:
    """Return the candidates that the method takes, the others with their reasons, and how it chooses."""
    match config.method:
        case "random":
            return candidates, [], lambda rows, budget: pick_random(rows, budget, config.seed)
        case "longest":
            return *_answered(candidates), lambda rows, budget: pick_longest(rows, budget, source.tokenizer)
        case "zip":
            return candidates, [], _pick_zip
        case "scar":
            return _ranked_by_style(config, candidates)
        case "mig":
            return _labelled(run, config, candidates)
        case _:
            return _measured(run, config, source, candidates, unmeasured)


def _without(candidates: Candidates, reasons: Sequence[tuple[str, str] | None]) -> tuple[Candidates, list[Rejection]]:
    """Return the candidates without those that have a reason and a detail, and these as rejections."""
    rejected = np.array([reason is not None for reason in reasons], dtype=bool)
    found = [
        Rejection(str(candidates.ids[row]), *reason, where=candidates.where[row])
        for row, reason in enumerate(reasons)
        if reason is not None
    ]
    return candidates.keep(~rejected), found


def _answered(candidates: Candidates) -> tuple[Candidates, list[Rejection]]:
    told = (Reason.NO_ANSWER.value, "the method looks at the row's own answer, and there is none")
    return _without(candidates, [None if text.strip() else told for text in candidates.references])


def _pick_zip(rows: Candidates, budget: int) -> Picked:
    texts = (f"{asked}\n{answer}" for asked, answer in zip(rows.instructions, rows.references, strict=True))
    order, ratios = zip_order([text.encode(errors="backslashreplace") for text in texts], budget)
    return Picked(order, _of_chosen(len(rows), order, np.arange(len(order), 0, -1)), {
        "set_compression_ratio": _of_chosen(len(rows), order, ratios)
    })  # fmt: skip


def _of_chosen(total: int, order: npt.NDArray[np.integer], values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return (N,) values of the rows that were chosen, NaN of the others: the method never came to them."""
    found = np.full(total, np.nan)
    found[order] = values
    return found


def _ranked_by_style(config: ADGConfig, candidates: Candidates) -> tuple[Candidates, list[Rejection], Pick]:
    answered, unanswered = _answered(candidates)
    pairs = list(zip(answered.instructions, answered.references, strict=True))
    scores = scar_scores(pairs, config.scar_model, device=config.device, trust_remote_code=config.trust_remote_code)
    told = (NON_FINITE, "the ranker gave no number")
    left, failed = _without(answered, [None if np.isfinite(score) else told for score in scores])
    scores = scores[np.isfinite(scores)]
    return left, [*unanswered, *failed], lambda _, budget: Picked(highest(scores, budget), scores)


def _labelled(run: RunReader, config: ADGConfig, candidates: Candidates) -> tuple[Candidates, list[Rejection], Pick]:
    labels, quality, reasons = _read_labels(config, candidates)
    notes: list[str] = []
    if not any(labels):
        labels = _bins_as_labels(run, config, candidates)
        notes.append(
            f"no row has labels in column {config.field_labels!r}, so bins of the prompts serve as labels: give each "
            "row labels (field_labels) for what MIG is"
        )
    kept = [row for row, reason in enumerate(reasons) if reason is None]
    labels, worth = [labels[row] for row in kept], np.array([quality[row] for row in kept])

    vectors = read_label_vectors(config.label_vectors) if config.label_vectors else None

    def pick(rows: Candidates, budget: int) -> Picked:
        graph, note = _graph(labels, vectors)
        order, gains = mig_order(graph, labels, worth, budget)
        scores = _of_chosen(len(rows), order, np.arange(len(order), 0, -1))
        columns = {"information_gain": _of_chosen(len(rows), order, gains), "quality": worth}
        return Picked(order, scores, columns, (*notes, *([note] if note and not notes else [])))

    return *_without(candidates, reasons), pick


def _graph(
    labels: list[tuple[str, ...]], vectors: dict[str, npt.NDArray[np.float64]] | None
) -> tuple[LabelGraph, str | None]:
    try:
        return label_graph(labels, vectors)
    except ValueError as err:  # a vector of zeros, or of another width
        raise DataError(f"label_vectors: {err}") from err


def _read_labels(
    config: ADGConfig, candidates: Candidates
) -> tuple[list[tuple[str, ...]], list[float], list[tuple[str, str] | None]]:
    labels: list[tuple[str, ...]] = []
    quality: list[float] = []
    reasons: list[tuple[str, str] | None] = []
    for of, worth in zip(candidates.column(config.field_labels), candidates.column(config.field_quality), strict=True):
        try:
            labels.append(read_labels(of))
            quality.append(read_quality(worth))
            reasons.append(None)
        except ValueError as err:
            labels[len(reasons) :], quality[len(reasons) :] = [()], [0.0]
            reasons.append((BAD_LABELS, str(err)))
    return labels, quality, reasons


def _bins_as_labels(run: RunReader, config: ADGConfig, candidates: Candidates) -> list[tuple[str, ...]]:
    """Return the bin of each row that has answers in this run folder; nothing for the others.

    Raises:
        DataError: none has.
    """
    geometry = run.geometry()
    if not len(geometry):
        raise DataError(
            f"method is 'mig', and no row has labels in column {config.field_labels!r}: name the column "
            "(field_labels), or run `adg sample` and `adg embed`, or `adg select` with method: adg, in this run folder "
            "first: its bins then serve as labels"
        )
    bins = dict(zip(geometry.ids, assign_bins(geometry.prompt_vectors, config.bins, config.seed), strict=True))
    return [(f"bin {bins[id]}",) if id in bins else () for id in candidates.ids]


def _measured(
    run: RunReader, config: ADGConfig, source: Source, candidates: Candidates, unmeasured: Mapping[str, str]
) -> tuple[Candidates, list[Rejection], Pick]:
    method: Any = config.method
    found = likelihoods_of(run, config, source, method=method, small_model=config.small_model)
    ratio, reason, detail = (
        (ifd.ifd, ifd.ABOVE_1, ifd.detail)
        if method == "ifd"
        else (superfiltering.superfiltering, superfiltering.NOT_BELOW_1, superfiltering.detail)
    )
    scores, usable = ratio(found.with_prompt, found.alone)
    reasons = list(_reasons(found, usable, unmeasured, lambda row: (reason, detail(float(scores[row])))))
    kept = np.array([told is None for told in reasons], dtype=bool)
    columns = {
        "answer_nll": found.with_prompt[kept],
        "answer_nll_alone": found.alone[kept],
        "reference_tokens": found.tokens[kept],
    }
    left, rejections = _without(candidates, reasons)
    return left, rejections, lambda _, budget: Picked(highest(scores[kept], budget), scores[kept], columns)


def _reasons(
    found: LikelihoodTable,
    usable: npt.NDArray[np.bool_],
    unmeasured: Mapping[str, str],
    dropped: Callable[[int], tuple[str, str]],
) -> Iterator[tuple[str, str] | None]:
    for row, reason in enumerate(found.reasons):
        if reason is not None:
            yield unmeasured.get(str(found.ids[row]), reason), "no likelihood of the row's own answer"
        else:
            yield None if usable[row] else dropped(row)
