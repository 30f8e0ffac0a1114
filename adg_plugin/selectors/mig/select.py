"""MIG over a run folder: labels and quality of the rows, or of models, or bins -> the choice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from adg_plugin.config.methods import MethodSettings
from adg_plugin.config.schema import ADGConfig
from adg_plugin.data.layouts import Reason
from adg_plugin.errors import DataError
from adg_plugin.scoring.bins import assign_bins
from adg_plugin.selectors.candidates import Candidates, Pick, Picked, without
from adg_plugin.selectors.measure import NOT_MEASURED
from adg_plugin.selectors.measured import not_measured
from adg_plugin.selectors.mig.columns import has_labels, listed_labels, read_labels, read_quality
from adg_plugin.selectors.mig.grader import ADVICE, Answered, ratings_of
from adg_plugin.selectors.mig.graph import label_graph, normalised
from adg_plugin.selectors.mig.greedy import mig_order
from adg_plugin.selectors.mig.tagger import Words, tags_of
from adg_plugin.selectors.mig.vectors import read_label_vectors
from adg_plugin.store import Rejection, RunReader

BAD_LABELS = "bad_labels"

_LEAST_SHARE = 0.1  # of what a quality scorer expects next: below, it was asked for what it does not give

Labels = list[tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class _Known:
    """What the columns of N rows hold.

    Attributes:
        labels: of each row; none where it has none, or where they cannot be read.
        quality: None where the row has none.
        reasons: why a row cannot be used, with a detail; None where it can.
        absent: whether no row's column holds labels, not even such that cannot be read.
    """

    labels: Labels
    quality: list[float | None]
    reasons: list[tuple[str, str] | None]
    absent: bool


def labelled(
    run: RunReader, config: ADGConfig, candidates: Candidates, unmeasured: Mapping[str, str]
) -> tuple[Candidates, list[Rejection], Pick]:
    """Return the candidates with labels and quality that can be read, the others with reasons, and how MIG chooses.

    With a quality scorer, a row without a quality of its own is left out where that could not grade it.

    Args:
        run: the run folder; with a tagger or a quality scorer, what they answered is there.
        config: names columns, tagger, quality scorer and label vectors.
        unmeasured: the reason of each row that could not be graded this time, by id.

    Raises:
        DataError: there are neither labels nor bins, or the tagger gave no tags, or the label vectors are of no use.
        ModelError: the tagger or the quality scorer cannot be found.
    """
    known = _read(config, candidates)
    notes: list[str] = []
    if config.quality_scorer:
        known = _graded(run, config, candidates, known, unmeasured, notes)
    left, rejections = without(candidates, known.reasons)
    usable = [row for row, reason in enumerate(known.reasons) if reason is None]
    labels, quality = [known.labels[row] for row in usable], [known.quality[row] for row in usable]
    are_bins = known.absent and not config.tagger and len(left) > 0
    if config.tagger and not all(labels):
        labels = _tagged(run, config, left, labels, notes)
    if are_bins:
        labels = _bins_as_labels(run, config, left, notes)
    else:
        notes += _describe_labels(config, labels)
    notes += _describe_quality(config, quality)
    worth = np.array([1.0 if value is None else value for value in quality])
    vectors = read_label_vectors(config.label_vectors) if config.label_vectors else None

    def pick(rows: Candidates, budget: int) -> Picked:
        graph, note = label_graph(labels, vectors)
        order, gains = mig_order(graph, labels, worth, budget)
        warnings = [*notes, *([note] if note and not are_bins else [])]
        return Picked.stepwise(order, len(rows), {"information_gain": gains}, {"quality": worth}, warnings)

    return left, rejections, pick


def check_labels(run: RunReader, config: MethodSettings) -> None:
    """Raise a DataError, before any model is asked, if nothing can serve as labels, or label vectors are unusable."""
    if config.label_vectors:
        read_label_vectors(config.label_vectors)
    if not config.tagger and not listed_labels(run, config.field_labels)[0] and not len(run.geometry(vectors=False)):
        raise _no_labels(config)


def _no_labels(config: MethodSettings) -> DataError:
    return DataError(
        f"method is 'mig', and no row has labels in column {config.field_labels!r}: name the column "
        "(field_labels) or a tagger (tagger), or run `adg sample` and `adg embed`, or `adg select` with method: "
        "adg, in this run folder first: its bins then serve as labels"
    )


def _read(config: MethodSettings, candidates: Candidates) -> _Known:
    rows: list[tuple[tuple[str, ...], float | None, tuple[str, str] | None]] = []
    absent = True
    for of, worth in candidates.columns(config.field_labels, config.field_quality):
        absent = absent and not has_labels(of)
        try:
            rows.append((read_labels(of, config.field_labels), read_quality(worth, config.field_quality), None))
        except ValueError as err:
            rows.append(((), None, (BAD_LABELS, str(err))))
    return _Known(
        [labels for labels, _, _ in rows], [worth for _, worth, _ in rows], [why for _, _, why in rows], absent
    )


def _graded(
    run: RunReader,
    config: ADGConfig,
    candidates: Candidates,
    known: _Known,
    unmeasured: Mapping[str, str],
    notes: list[str],
) -> _Known:
    """Return what is known with the grades of rows without a quality, and with a reason where there is no grade."""
    bare = [row for row, worth in enumerate(known.quality) if worth is None and known.reasons[row] is None]
    if not bare:
        return known
    asked = [Answered(str(candidates.ids[r]), candidates.instructions[r], candidates.references[r]) for r in bare]
    quality, reasons = list(known.quality), list(known.reasons)
    own = sum(worth is not None for worth in known.quality)
    found = ratings_of(run, config, asked)
    for row, one in zip(bare, found, strict=True):
        quality[row] = one.score
        if one.reason is not None:
            left = one.reason == NOT_MEASURED
            reason = unmeasured.get(str(candidates.ids[row]), one.reason) if left else one.reason
            reasons[row] = reason, _no_grade(reason, config)
    notes += _describe_grades(config, own, [one.share for one in found if one.share is not None])
    return replace(known, quality=quality, reasons=reasons)


def _describe_grades(config: MethodSettings, own: int, shares: Sequence[float]) -> Iterator[str]:
    """Yield sentences where grades stand next to qualities of another scale, or the scorer would not give grades."""
    if own and shares:
        yield (
            f"{own:,} of {own + len(shares):,} rows have a quality in column {config.field_quality!r}, the others one "
            f"of {config.quality_scorer!r}, from 1 to 6: if the scales differ, name another column (field_quality)"
        )
    if shares and (share := float(np.median(shares))) < _LEAST_SHARE:
        yield (
            f"quality_scorer {config.quality_scorer!r} expects a grade next with a probability of {share:.1%} (median "
            f"of {len(shares):,} rows), so its grades say little: name a scorer, or a chat model that answers with one"
        )


def _no_grade(reason: str, config: MethodSettings) -> str:
    who = f"quality_scorer {config.quality_scorer!r}"
    if reason == Reason.NO_ANSWER:
        return f"{who} grades answers in words, and it has none; give it a quality ({config.field_quality!r})"
    if reason in set(Reason):  # of the rendered question, not of the model
        return f"{who} cannot be shown it: give it a quality ({config.field_quality!r}), or shorten its instruction"
    return not_measured(reason, who, ADVICE)


def _describe_labels(config: MethodSettings, labels: Labels) -> list[str]:
    count = sum(map(bool, labels))
    if count == len(labels):
        return []
    of = f"column {config.field_labels!r}" + (" or from the tagger" if config.tagger else "")
    return [f"{count:,} of {len(labels):,} rows have labels in {of}: the rest come last by quality"]


def _describe_quality(config: MethodSettings, quality: list[float | None]) -> list[str]:
    """Return a sentence where rows are without quality: with a misspelt column, all of them."""
    lacking = sum(value is None for value in quality)
    if not lacking:
        return []
    if lacking == len(quality):
        return [f"no row has column {config.field_quality!r} (field_quality): all qualities are 1"]
    return [
        f"{lacking:,} of {len(quality):,} rows have no quality in column {config.field_quality!r} (field_quality): "
        "theirs is 1"
    ]


def _tagged(run: RunReader, config: ADGConfig, candidates: Candidates, labels: Labels, notes: list[str]) -> Labels:
    """Return the labels, those of the tagger where a row has none; a DataError where no row has any then."""
    bare = [row for row, known in enumerate(labels) if not known]
    found = tags_of(run, config, [Words(str(candidates.ids[row]), candidates.instructions[row]) for row in bare])
    whole = list(labels)
    for row, tags in zip(bare, found.of, strict=True):
        whole[row] = tuple(dict.fromkeys(map(normalised, tags)))
    detail = f"{found.unread:,} of its answers hold no list of tags, and {found.unasked:,} rows got no answer"
    if not any(whole):
        raise DataError(
            f"tagger is {config.tagger!r}: none of {len(bare):,} rows got tags ({detail}); name a larger chat model, "
            "or give the rows labels (field_labels)"
        )
    if found.unread or found.unasked:
        notes.append(f"tagger {config.tagger!r} was asked about {len(bare):,} rows: {detail}")
    return whole


def _bins_as_labels(run: RunReader, config: ADGConfig, candidates: Candidates, notes: list[str]) -> Labels:
    """Return the bin of each row with answers in this run folder, none for the others; a DataError where none has."""
    geometry = run.geometry()
    if not len(geometry):
        raise _no_labels(config)
    notes.append(
        f"no row has labels in column {config.field_labels!r}, so bins of the prompts serve as labels: give each "
        "row labels (field_labels, or tagger) for what MIG is"
    )
    bins = dict(zip(geometry.ids, assign_bins(geometry.prompt_vectors, config.bins, config.seed), strict=True))
    labels: Labels = [(f"bin {bins[id]}",) if id in bins else () for id in candidates.ids]
    if lacking := sum(not known for known in labels):
        notes.append(
            f"{lacking:,} of {len(labels):,} rows have no bin, for want of answers in this run folder: they come last "
            "by quality"
        )
    return labels
