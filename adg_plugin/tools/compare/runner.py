"""Methods choose from one run folder, one after the other; what they ask of models is asked once."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from adg_plugin.config.schema import ADGConfig
from adg_plugin.errors import ADGError, DataError, StoreError
from adg_plugin.pipeline.ranks import SingleProcess
from adg_plugin.pipeline.stage import pool_counts
from adg_plugin.scoring.bins import assign_bins, default_bins
from adg_plugin.scoring.quota import resolve_budget
from adg_plugin.selectors.base import Ask, Task
from adg_plugin.selectors.decision import Decision
from adg_plugin.selectors.registry import selector
from adg_plugin.store import RunFolder
from adg_plugin.tools.compare.costs import Cost
from adg_plugin.tools.compare.plans import Plan

if TYPE_CHECKING:
    from adg_plugin.engines.models.loading import Source

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Compared:
    """What became of one method.

    Attributes:
        name: of the method, with its own settings.
        method: the selector.
        changes: its own settings.
        ids: of the chosen rows, the best first; none where it failed.
        scored: rows it could choose from.
        rejected: rows it could not choose, by reason.
        seconds: that choosing stats, with stored answers or likelihoods.
        asked: the costs that it shares with others who ask for the same; none: it asks no model beforehand.
        warnings: sentences.
        error: why it did not choose; None: it did.
    """

    name: str
    method: str
    changes: dict[str, Any]
    ids: tuple[str, ...] = ()
    scored: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    asked: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    error: str | None = None


class Runner:
    """Lets methods choose, one by one, and remembers what was asked of models for it."""

    def __init__(
        self, run: RunFolder, config: ADGConfig, source: Source, costs: Mapping[str, Cost], show: bool
    ) -> None:
        self._run, self._config, self._source, self._show = run, config, source, show
        self._before = costs
        self._skipped: dict[str, Mapping[str, str]] = {}  # by cost
        self._errors: dict[str, ADGError] = {}
        self.costs: dict[str, Cost] = {}
        pool = pool_counts(run)
        self.rows = {"pool": pool.unique, "candidates": pool.candidates}
        self.budget, _ = resolve_budget(config.budget, pool.unique, pool.candidates)
        self._bins: dict[tuple[int, int, int], npt.NDArray[np.int32]] = {}
        self.eligible: dict[str, pa.Array] = {}  # ids of the rows that each method could choose
        self.binned: pa.Table | None = None  # `id` and `bin` of the first choice of ADG in the shared bins

    def assign(self, vectors: npt.NDArray[np.floating], bins: int | None, seed: int) -> npt.NDArray[np.int32]:
        """Return what `assign_bins` does, once for all methods: the rows with answers are the same for each."""
        key = len(vectors), default_bins(len(vectors)) if bins is None else bins, seed
        if key not in self._bins:
            self._bins[key] = assign_bins(vectors, bins, seed)
        return self._bins[key]

    def chosen(self, plan: Plan) -> Compared:
        """Return what the method chose, or its error."""
        chooser = selector(plan.method)
        asks = chooser.asks(self._run, plan.config)
        one = Compared(plan.name, plan.method, plan.changes, asked=tuple(ask.cost for ask in asks))
        try:
            skipped: dict[str, str] = {}
            for ask in asks:
                skipped |= self._ask(ask, plan.config)
            began = time.monotonic()
            pool_rows = self.rows["pool"]
            decision = chooser.decide(
                Task(self._run, plan.config, self._source, pool_rows, skipped, self.assign, self._show)
            )
            seconds = time.monotonic() - began
            if not decision.ids:
                raise DataError(_no_row(decision, self.rows["candidates"]))
        except StoreError:
            raise
        except ADGError as err:
            logger.warning("%s failed: %s", plan.name, err)
            return replace(one, error=str(err))
        self.eligible[plan.name] = decision.table["id"]
        for sentence in decision.warnings:
            logger.warning("%s: %s", plan.name, sentence)
        if self.binned is None and chooser.by_divergence and plan.config.bins == self._config.bins:
            self.binned = decision.table.select(["id", "bin"])
        return replace(
            one,
            ids=decision.ids,
            scored=len(decision.table),
            rejected=_reasons(decision),
            seconds=seconds,
            warnings=decision.warnings,
        )

    def _ask(self, ask: Ask, config: ADGConfig) -> Mapping[str, str]:
        """Ask what is not there, once, and return the reason of each row that got nothing this time, by id.

        Raises:
            ADGError: it cannot be asked; whoever wants the same later meets the same error.
        """
        name = ask.cost
        if name in self._errors:
            raise self._errors[name]
        if name not in self.costs:
            try:
                stats = self._stats(ask, config)
            except ADGError as err:
                self._errors[name] = err
                raise
            self._skipped[name] = stats.pop("skipped", {})
            self.costs[name] = self._before.get(name, Cost()).with_now(stats)
        return self._skipped[name]

    def _stats(self, ask: Ask, config: ADGConfig) -> dict[str, Any]:
        from adg_plugin.pipeline.sample import fill

        if ask.fill is not None:
            return ask.fill(self._run, config, self._source, self._show)
        return fill(
            ("sample", "embed"), self._run, self._run.path, config, self._source, SingleProcess(), show=self._show
        )


def _reasons(decision: Decision) -> dict[str, int]:
    return dict(Counter(rejection.reason for rejection in decision.rejections).most_common())


def _no_row(decision: Decision, candidates: int) -> str:
    listed = ", ".join(f"{reason} {count}" for reason, count in _reasons(decision).items())
    return f"none of the {candidates} rows can be chosen ({listed})"
