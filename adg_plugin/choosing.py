"""The method that the settings name, over a filled run folder: stored facts -> a decision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from adg_plugin.config import ADGConfig
from adg_plugin.decision import Decision
from adg_plugin.engines.results import OUT_OF_MEMORY
from adg_plugin.likelihoods import measure
from adg_plugin.manifest import score_summary
from adg_plugin.scoring import choose_rows, eligible
from adg_plugin.store import RunFolder

if TYPE_CHECKING:
    from adg_plugin.engines.loading import Source


def measured(run: RunFolder, config: ADGConfig, source: Source, *, show: bool) -> dict[str, Any]:
    """Measure what a method other than ADG wants to know of each row, and return what it took.

    Raises:
        ADGError: as `adg_plugin.likelihoods.measure`; what is measured is kept.
    """
    if config.method not in ("ifd", "superfiltering"):
        return {"rows": 0}
    method: Any = config.method
    return measure(run, config, source, method=method, small_model=config.small_model, show=show)


def decide(
    run: RunFolder, config: ADGConfig, source: Source | None, pool_rows: int, left: Mapping[str, str] | None
) -> Decision:
    """Return the choice of the method that the settings name; without a row in it where none can be scored.

    Args:
        run: the run folder, with all that was sampled or measured.
        source: of the backbone; ADG does without.
        pool_rows: rows of the pool after exact duplicates.
        left: the reason of each row that could not be sampled this time, by id.

    Raises:
        DataError: a method other than ADG can choose no row.
    """
    if config.method != "adg":
        from adg_plugin.selectors.choose import choose

        assert source is not None
        return choose(run, config, source, pool_rows, left)
    geometry = eligible(run.geometry(), config)
    # Rows without a result are few by now: what they lacked may be there another time.
    rejections = (*geometry.rejections, *run.unsampled(OUT_OF_MEMORY, left))
    if not len(geometry):
        return Decision.none(rejections)
    scored = choose_rows(geometry, config, pool_rows)
    return Decision(
        table=scored.table(),
        ids=tuple(scored.chosen_ids()),
        score=score_summary(scored, config.score),
        warnings=scored.warnings,
        rejections=rejections,
        bins=int(scored.bins.max()) + 1,
        answer_tokens=int(geometry.answer_tokens.sum()),
    )
