"""The selectors other than ADG over a run folder: candidates -> the choice, in the form in which it is kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from adg_plugin.config.schema import ADGConfig
from adg_plugin.scoring.quota import resolve_budget
from adg_plugin.selectors.candidates import Candidates, Pick, decided, read_candidates
from adg_plugin.selectors.decision import Decision
from adg_plugin.selectors.measured import by_likelihood, by_style
from adg_plugin.selectors.mig.select import labelled
from adg_plugin.selectors.simple import pick_longest, pick_random, pick_zip
from adg_plugin.store import Rejection, RunReader
from adg_plugin.store.reader import MEASURES

if TYPE_CHECKING:
    from adg_plugin.engines.models.loading import Source

# What each method reads of a row; the others read nothing of it, or read it themselves.
_TEXTS: Mapping[str, tuple[str, ...]] = {
    "random": (),
    "longest": ("reference",),
    "zip": ("instruction", "reference"),
    "scar": ("instruction", "reference"),
    "mig": ("instruction", "reference", "data"),
    "ifd": (),
    "superfiltering": (),
}
_READ_NO_ANSWER = ("random", "mig")  # an answer without text, such as a call of a tool, will do for them


def choose(
    run: RunReader,
    config: ADGConfig,
    source: Source,
    pool_rows: int,
    unmeasured: Mapping[str, str] | None = None,
    *,
    show: bool = False,
) -> Decision:
    """Return the choice of the selector that the settings name.

    Args:
        run: the run folder, with a staged pool and what `adg_plugin.selectors.dispatch.fill_measures` finds of it.
        config: `method` is any but `adg`.
        source: of the backbone.
        pool_rows: rows of the pool after exact duplicates, for a budget that is a fraction.
        unmeasured: the reason of each row that could not be measured this time, by id.
        show: report progress on stderr, where choosing takes long.

    Raises:
        DataError: `mig` finds neither labels nor bins.
        MissingExtraError, ModelError: what a selector needs cannot be used.
    """
    columns = _TEXTS[config.method]
    candidates, unanswered = read_candidates(run, columns, text=config.method not in _READ_NO_ANSWER)
    usable, rejections, pick = _prepared(run, config, source, candidates, unmeasured or {}, show)
    rejections = [*unanswered, *rejections]
    if not len(usable):
        return Decision.none(rejections)
    budget, warning = resolve_budget(config.budget, pool_rows, len(usable))
    return decided(usable, pick(usable, budget), config.method, [warning] if warning else [], rejections)


def _prepared(
    run: RunReader,
    config: ADGConfig,
    source: Source,
    candidates: Candidates,
    unmeasured: Mapping[str, str],
    show: bool,
) -> tuple[Candidates, list[Rejection], Pick]:
    """Return the candidates that the method takes, the others with their reasons, and how it chooses."""
    match config.method:
        case "random":
            return candidates, [], lambda rows, budget: pick_random(rows, budget, config.seed)
        case "longest":
            return candidates, [], lambda rows, budget: pick_longest(rows, budget, source.tokenizer)
        case "zip":
            return candidates, [], lambda rows, budget: pick_zip(rows, budget, run.path / MEASURES / "zip", show=show)
        case "scar":
            return by_style(run, config, candidates, unmeasured)
        case "mig":
            return labelled(run, config, candidates, unmeasured)
        case _:
            return by_likelihood(run, config, source, candidates, unmeasured)
