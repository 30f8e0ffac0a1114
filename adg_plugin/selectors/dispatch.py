"""The method that the settings name, over a filled run folder: stored facts -> a decision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from adg_plugin.config.schema import ADGConfig
from adg_plugin.engines.forward.results import OUT_OF_MEMORY
from adg_plugin.errors import ConfigError
from adg_plugin.scoring.bins import assign_bins
from adg_plugin.scoring.score import Assign, choose_rows, eligible
from adg_plugin.scoring.summary import score_summary
from adg_plugin.selectors.decision import Decision
from adg_plugin.selectors.likelihood.measure import measure
from adg_plugin.selectors.mig.columns import lacks_quality
from adg_plugin.selectors.mig.grader import Rater, rate
from adg_plugin.selectors.mig.select import check_labels
from adg_plugin.selectors.mig.tagger import tag
from adg_plugin.store import RunFolder

if TYPE_CHECKING:
    from adg_plugin.engines.models.loading import Source


def fill_measures(run: RunFolder, config: ADGConfig, source: Source, *, show: bool) -> dict[str, Any]:
    """Measure what a method other than ADG wants to know of each row and is not stored, and return what it took.

    Where `mig` asks a quality scorer, what that took is `rating` beside what the tagger took; `skipped` is of both.

    Raises:
        ADGError: as `adg_plugin.selectors.likelihood.measure.measure`, `adg_plugin.selectors.scar.fill_styles`,
            `adg_plugin.selectors.mig.tagger.tag` and `adg_plugin.selectors.mig.grader.rate`; what is measured is kept.
    """
    if config.method == "mig":
        check_labels(run, config)
        if config.tagger and config.quality_scorer and lacks_quality(run, config.field_quality):
            Rater.configured(config)  # a wrong one is told before the tagger's hours
        stats = tag(run, config, show=show) if config.tagger else {"rows": 0}
        if config.quality_scorer:
            rating = rate(run, config, show=show)
            skipped = stats.pop("skipped", {}) | rating.pop("skipped", {})
            stats |= {"rating": rating} | ({"skipped": skipped} if skipped else {})
        return stats
    if config.method == "scar":
        from adg_plugin.selectors.scar import fill_styles

        return fill_styles(run, config, show=show)
    if config.method == "ifd" or config.method == "superfiltering":
        return measure(run, config, source, method=config.method, show=show)
    return {"rows": 0}


def decide(
    run: RunFolder,
    config: ADGConfig,
    source: Source | None,
    pool_rows: int,
    skipped: Mapping[str, str] | None,
    assign: Assign = assign_bins,
    *,
    show: bool = False,
) -> Decision:
    """Return the choice of the method that the settings name; without a row in it where none can be scored.

    Args:
        run: the run folder, with all that was sampled or measured.
        source: of the backbone; ADG does without.
        pool_rows: rows of the pool after exact duplicates.
        left: the reason of each row that could not be sampled this time, by id.
        assign: gives ADG its bins.
        show: report progress on stderr, where choosing takes long.

    Raises:
        ConfigError: a method other than ADG, and no source.
        DataError: a method other than ADG can choose no row.
    """
    if config.method != "adg":
        from adg_plugin.selectors.choose import choose

        if source is None:
            raise ConfigError([f"method is {config.method!r}, and there is no model to ask: use method: adg"])
        return choose(run, config, source, pool_rows, skipped, show=show)
    geometry = eligible(run.geometry(), config)
    # Rows without a result are few by now: what they lacked may be there another time.
    rejections = (*geometry.rejections, *run.unsampled(OUT_OF_MEMORY, skipped))
    if not len(geometry):
        return Decision.none(rejections)
    scored = choose_rows(geometry, config, pool_rows, assign)
    return Decision(
        table=scored.table(),
        ids=tuple(scored.chosen_ids()),
        score=score_summary(scored, config.score),
        warnings=scored.warnings,
        rejections=rejections,
        bins=int(scored.bins.max()) + 1,
        answer_tokens=int(geometry.answer_tokens.sum()),
    )
