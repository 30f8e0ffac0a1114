"""MIG as a selector: what it asks a tagger and a quality scorer, what that costs, and the choice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from adg_plugin.config.methods import MethodSettings
from adg_plugin.config.schema import ADGConfig
from adg_plugin.selectors.base import ANSWERS, Ask, Selector, Task
from adg_plugin.selectors.candidates import Candidates, Pick
from adg_plugin.selectors.mig.columns import lacks_quality, listed_labels
from adg_plugin.selectors.mig.grader import Rater, rate
from adg_plugin.selectors.mig.select import check_labels, labelled
from adg_plugin.selectors.mig.tagger import Tagger, tag
from adg_plugin.selectors.mig.vectors import read_label_vectors
from adg_plugin.store import Rejection, RunFolder, RunReader

if TYPE_CHECKING:
    from adg_plugin.engines.models.loading import Source


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
        known: dict[str, Callable[[], object]] = {
            "tagger": partial(Tagger.configured, config),
            "quality_scorer": partial(Rater.configured, config),
        }
        return {key: configured for key, configured in known.items() if getattr(config, key)}

    def check(self, config: ADGConfig) -> None:
        """Raise where the label vectors are of no use; which models are asked is up to the rows."""
        if config.label_vectors:
            read_label_vectors(config.label_vectors)

    def check_rows(self, run: RunReader, config: ADGConfig) -> None:
        """Raise where rows lack labels or a quality, and the model that would give them cannot be asked."""
        if config.tagger and listed_labels(run, config.field_labels)[1]:
            Tagger.configured(config)
        if config.quality_scorer and lacks_quality(run, config.field_quality):
            Rater.configured(config)

    def shares_work(self, config: ADGConfig) -> bool:
        """Return whether no model is asked."""
        return not self.models(config)

    def asks(self, run: RunReader, config: ADGConfig) -> tuple[Ask, ...]:
        """Return what the tagger, the quality scorer, or, where nothing gives labels, the backbone is asked."""
        some, lacking = listed_labels(run, config.field_labels)
        found = []
        if config.tagger and lacking:
            found.append(Ask(_tagger_cost(config), lambda run, config, _, show: tag(run, config, show=show)))
        if not config.tagger and not some:
            found.append(Ask(ANSWERS))  # whose bins serve as labels
        if config.quality_scorer and lacks_quality(run, config.field_quality):
            found.append(Ask(_scorer_cost(config), lambda run, config, _, show: rate(run, config, show=show)))
        return tuple(found)

    def costs(self, config: ADGConfig, stats: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield the costs of labels and of quality."""
        yield _tagger_cost(config) if config.tagger else ANSWERS, {**stats, "rating": {}}
        if config.quality_scorer:
            yield _scorer_cost(config), stats.get("rating", {})

    def fill(self, run: RunFolder, config: ADGConfig, source: Source, *, show: bool) -> dict[str, Any]:
        """Ask tagger and quality scorer; what the latter took is `rating`, and `skipped` is of both."""
        check_labels(run, config)
        if config.tagger and config.quality_scorer and lacks_quality(run, config.field_quality):
            Rater.configured(config)  # a wrong one is named before the tagger's hours
        stats = tag(run, config, show=show) if config.tagger else {"rows": 0}
        if config.quality_scorer:
            rating = rate(run, config, show=show)
            skipped = stats.pop("skipped", {}) | rating.pop("skipped", {})
            stats |= {"rating": rating} | ({"skipped": skipped} if skipped else {})
        return stats

    def usable(self, rows: Candidates, task: Task) -> tuple[Candidates, Sequence[Rejection], Pick]:
        """Return the rows whose labels and quality can be read, the others with their reasons, and how it chooses."""
        return labelled(task.run, task.config, rows, task.skipped)


def _tagger_cost(config: MethodSettings) -> str:
    return f"tagger {config.tagger} for {config.field_labels}"


def _scorer_cost(config: MethodSettings) -> str:
    return f"quality scorer {config.quality_scorer} for {config.field_quality}"
