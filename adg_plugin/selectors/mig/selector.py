"""MIG over a run folder: labels and quality of the rows, or of models, or bins -> the choice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from adg_plugin.config.methods import MethodSettings
from adg_plugin.config.schema import ADGConfig
from adg_plugin.data.cells import Reason
from adg_plugin.errors import DataError
from adg_plugin.scoring.bins import assign_bins
from adg_plugin.selectors.base import ANSWERS, Ask, Selector, Task
from adg_plugin.selectors.candidates import Candidates, Pick, Picked, Why, without
from adg_plugin.selectors.measure import NOT_MEASURED, not_measured, stored_measure
from adg_plugin.selectors.mig.columns import (
    any_labels,
    has_labels,
    normalised,
    read_label_vectors,
    read_labels,
    read_quality,
)
from adg_plugin.selectors.mig.grader import Rater, ratings_of
from adg_plugin.selectors.mig.greedy import label_graph, mig_order
from adg_plugin.selectors.mig.prompted import PromptedJudge, question_row
from adg_plugin.selectors.mig.tagger import Tagger, read_tags
from adg_plugin.store import Rejection, RunFolder, RunReader

if TYPE_CHECKING:
    from adg_plugin.engines.models.loading import Source

BAD_LABELS = "bad_labels"

_JUDGES: tuple[type[PromptedJudge], ...] = (Tagger, Rater)
_LEAST_SHARE = 0.1  # of what a quality scorer expects next: below, it was asked for what it does not give

Labels = list[tuple[str, ...]]


class MIG(Selector):
    """The set with the most information over labels; see `mig_order`. Source: arXiv 2504.13835."""

    reads = ("instruction", "reference", "data")
    needs_reference = "turn"
    stepwise = True
    settings = ("field_labels", "field_quality", "tagger", "quality_scorer", "label_vectors", "bins")
    score_meaning = "place in the choice, counted from its end"
    part_meanings: ClassVar[Mapping[str, str]] = {
        "information_gain": "information that the row brought to the choice, by the derivative",
        "quality": "quality of the row",
    }

    def models(self, config: ADGConfig) -> Mapping[str, Callable[[], object]]:
        """Return how the tagger and the quality scorer are configured, those that the settings name."""
        return {judge.setting: partial(judge, config) for judge in _JUDGES if getattr(config, judge.setting)}

    def check(self, config: ADGConfig) -> None:
        """Raise where the label vectors are of no use; which models are asked is up to the rows."""
        if config.label_vectors:
            read_label_vectors(config.label_vectors)

    def check_rows(self, run: RunReader, config: ADGConfig) -> None:
        """Raise where rows lack labels or a quality, and the model that would give them cannot be asked."""
        for judge in _JUDGES:
            if judge.is_needed(run, config):
                judge(config)

    def shares_work(self, config: ADGConfig) -> bool:
        """Return whether no model is asked."""
        return not self.models(config)

    def asks(self, run: RunReader, config: ADGConfig) -> tuple[Ask, ...]:
        """Return what the tagger, the quality scorer, or, where nothing gives labels, the backbone is asked."""
        found = [judge.asking(config) for judge in _JUDGES if judge.is_needed(run, config)]
        if config.tagger or any_labels(run, config.field_labels):
            return tuple(found)
        return (Ask(ANSWERS), *found)  # whose bins serve as labels

    def costs(self, config: ADGConfig, stats: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield the costs of labels and of quality."""
        yield Tagger.cost(config) if config.tagger else ANSWERS, {**stats, "rating": {}}
        if config.quality_scorer:
            yield Rater.cost(config), stats.get("rating", {})

    def fill(self, run: RunFolder, config: ADGConfig, source: Source, *, show: bool) -> dict[str, Any]:
        """Ask tagger and quality scorer; what the latter took is `rating`, and `skipped` is of both.

        Raises:
            DataError: nothing can serve as labels, or label vectors are of no use; no model is asked then.
        """
        self.check(config)
        nothing_asked = not config.tagger and not any_labels(run, config.field_labels)
        if nothing_asked and not len(run.geometry(vectors=False)):
            raise _no_labels(config)
        if config.tagger and Rater.is_needed(run, config):
            Rater(config)  # a wrong one is named before the tagger's hours
        stats = Tagger.ask(run, config, show=show)
        if config.quality_scorer:
            rating = Rater.ask(run, config, show=show)
            skipped = stats.pop("skipped", {}) | rating.pop("skipped", {})
            stats |= {"rating": rating} | ({"skipped": skipped} if skipped else {})
        return stats

    def usable(self, rows: Candidates, task: Task) -> tuple[Candidates, Sequence[Rejection], Pick]:
        """Return the rows whose labels and quality can be read, the others with their reasons, and how it chooses.

        With a quality scorer, a row without a quality of its own is left out where that could not grade it.

        Raises:
            DataError: there are neither labels nor bins, or the tagger gave no tags, or label vectors are of no use.
            ModelError: the tagger or the quality scorer cannot be found.
        """
        run, config = task.run, task.config
        labels: Labels = []
        quality: list[float | None] = []
        reasons: list[Why | None] = []
        any_listed = False
        for of, worth in rows.columns(config.field_labels, config.field_quality):
            any_listed = any_listed or has_labels(of)
            own: tuple[str, ...] = ()
            value, reason = None, None
            try:
                own, value = read_labels(of, config.field_labels), read_quality(worth, config.field_quality)
            except ValueError as err:
                reason = BAD_LABELS, str(err)
            labels.append(own)
            quality.append(value)
            reasons.append(reason)
        notes = _grade(task, rows, quality, reasons) if config.quality_scorer else []
        left, rejections = without(rows, reasons)
        kept = [row for row, reason in enumerate(reasons) if reason is None]
        labels, quality = [labels[row] for row in kept], [quality[row] for row in kept]
        are_bins = not any_listed and not config.tagger and len(left) > 0
        if are_bins:
            labels = _bins_as_labels(run, config, left, notes)
        else:
            if config.tagger and not all(labels):
                labels = _tagged(run, config, left, labels, notes)
            notes += _describe_labels(config, labels)
        notes += _describe_quality(config, quality)
        vectors = read_label_vectors(config.label_vectors) if config.label_vectors else None
        worths = np.array([1.0 if value is None else value for value in quality])

        def pick(rows: Candidates, budget: int) -> Picked:
            graph, note = label_graph(labels, vectors)
            order, gains = mig_order(graph, labels, worths, budget)
            warnings = [*notes, *([note] if note and not are_bins else [])]
            return Picked.stepwise(order, len(rows), {"information_gain": gains}, {"quality": worths}, warnings)

        return left, rejections, pick


def _no_labels(config: MethodSettings) -> DataError:
    return DataError(
        f"method is 'mig', and no row has labels in column {config.field_labels!r}: name the column "
        "(field_labels) or a tagger (tagger), or run `adg sample` and `adg embed`, or `adg select` with method: "
        "adg, in this run folder first: its bins then serve as labels"
    )


def _grade(task: Task, rows: Candidates, quality: list[float | None], reasons: list[Why | None]) -> list[str]:
    """Put in the grades of rows without a quality, or why there is none, and return what a user is to know of them."""
    config = task.config
    own = sum(worth is not None for worth in quality)
    bare = [row for row, worth in enumerate(quality) if worth is None and reasons[row] is None]
    asked = [question_row(str(rows.ids[row]), rows.instructions[row], rows.references[row]) for row in bare]
    found = ratings_of(task.run, config, asked)
    for row, one in zip(bare, found, strict=True):
        quality[row] = one.score
        if one.reason is not None:
            left = one.reason == NOT_MEASURED
            reason = task.skipped.get(str(rows.ids[row]), one.reason) if left else one.reason
            reasons[row] = reason, _no_grade(reason, config)
    notes = []
    shares = [one.share for one in found if one.share is not None]
    if own and shares:
        notes.append(
            f"{own:,} of {own + len(shares):,} rows have a quality in column {config.field_quality!r}, the others one "
            f"of {config.quality_scorer!r}, from 1 to 6: if the scales differ, name another column (field_quality)"
        )
    if shares and (share := float(np.median(shares))) < _LEAST_SHARE:
        notes.append(
            f"quality_scorer {config.quality_scorer!r} expects a grade next with a probability of {share:.1%} (median "
            f"of {len(shares):,} rows), so its grades say little: name a scorer, or a chat model that answers with one"
        )
    return notes


def _no_grade(reason: str, config: MethodSettings) -> str:
    who = f"quality_scorer {config.quality_scorer!r}"
    if reason == Reason.NO_ANSWER:
        return f"{who} grades answers in words, and it has none; give it a quality ({config.field_quality!r})"
    if reason in set(Reason):  # of the rendered question, not of the model
        return f"{who} cannot be shown it: give it a quality ({config.field_quality!r}), or shorten its instruction"
    return not_measured(reason, who, Rater.measure)


def _describe_labels(config: MethodSettings, labels: Labels) -> Iterator[str]:
    count = sum(map(bool, labels))
    if count < len(labels):
        of = f"column {config.field_labels!r}" + (" or from the tagger" if config.tagger else "")
        yield f"{count:,} of {len(labels):,} rows have labels in {of}: the rest come last by quality"


def _describe_quality(config: MethodSettings, quality: list[float | None]) -> Iterator[str]:
    """Yield a sentence where rows are without quality: with a misspelt column, all of them."""
    lacking = sum(value is None for value in quality)
    if lacking and lacking == len(quality):
        yield f"no row has column {config.field_quality!r} (field_quality): all qualities are 1"
    elif lacking:
        yield (
            f"{lacking:,} of {len(quality):,} rows have no quality in column {config.field_quality!r} (field_quality): "
            "theirs is 1"
        )


def _tagged(run: RunReader, config: ADGConfig, rows: Candidates, labels: Labels, notes: list[str]) -> Labels:
    """Return the labels, those of the tagger where a row has none; a DataError where no row has any then."""
    bare = [row for row, known in enumerate(labels) if not known]
    asked = [question_row(str(rows.ids[row]), rows.instructions[row]) for row in bare]
    answers = stored_measure(run, Tagger.measure, Tagger(config), asked)["answer"].to_pylist()
    tags = [() if answer is None else read_tags(answer) for answer in answers]
    whole = list(labels)
    for row, of_row in zip(bare, tags, strict=True):
        whole[row] = tuple(dict.fromkeys(map(normalised, of_row)))
    unasked = answers.count(None)  # for want of memory, or of a place in the model's template
    unread = tags.count(()) - unasked
    detail = f"{unread:,} of its answers hold no list of tags, and {unasked:,} rows got no answer"
    if not any(whole):
        raise DataError(
            f"tagger is {config.tagger!r}: none of {len(bare):,} rows got tags ({detail}); name a larger chat model, "
            "or give the rows labels (field_labels)"
        )
    if unread or unasked:
        notes.append(f"tagger {config.tagger!r} was given {len(bare):,} rows: {detail}")
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
