"""Methods choose from one run folder, one after the other; what they ask of models is asked once."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from adg_plugin.config.schema import ADGConfig
from adg_plugin.errors import ADGError, ConfigError, DataError, StoreError
from adg_plugin.pipeline.ranks import SingleProcess
from adg_plugin.pipeline.stage import pool_counts
from adg_plugin.report.compared import COMPARE, read_comparison
from adg_plugin.scoring.bins import assign_bins, default_bins
from adg_plugin.scoring.quota import resolve_budget
from adg_plugin.selectors.base import Ask, Task
from adg_plugin.selectors.registry import selector
from adg_plugin.store import RunFolder, RunReader
from adg_plugin.store.reader import seconds_of
from adg_plugin.tools.compare.plans import Plan

if TYPE_CHECKING:
    from adg_plugin.engines.models.loading import Source

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Cost:
    """Rows that a model was asked about, and what that took.

    Attributes:
        rows: of earlier runs, as far as they left a record, and of this one.
        seconds: for these.
        tokens: drawn or predicted.
        seconds_now: those of this run.
        of: rows that there are to ask about; None: all that could be sampled.
    """

    rows: int = 0
    seconds: float = 0.0
    tokens: int = 0
    seconds_now: float = 0.0
    of: int | None = None

    def with_now(self, stats: Mapping[str, Any]) -> Cost:
        """Return it with what this run took, as sampling or measuring says."""
        seconds = seconds_of(stats)
        return Cost(
            self.rows + int(stats.get("rows", 0)),
            self.seconds + seconds,
            self.tokens + int(stats.get("tokens", 0)),
            seconds,
            stats.get("total", self.of),
        )

    def is_whole(self, rows: int) -> bool:
        """Return whether a record is there of all rows to ask about, of so many: an interrupted run leaves none."""
        return self.rows >= (rows if self.of is None else self.of)

    def summary(self, rows: int) -> dict[str, Any]:
        """Return the figures, for JSON."""
        return {**asdict(self), "of": rows if self.of is None else self.of, "is_whole": self.is_whole(rows)}


def costs_before(run: RunReader, recipe: Mapping[str, Any]) -> dict[str, Cost]:
    """Return what earlier runs say of the cost of what the run folder holds.

    Args:
        recipe: of its answers; records of others do not count.

    Raises:
        StoreError: compare.json or manifest.json cannot be read, or is not as it is written.
    """
    found: dict[str, Cost] = {}
    manifest = run.manifest()
    if manifest is not None and manifest.get("recipe") == dict(recipe):
        with suppress(ConfigError):  # what chose is not installed any more
            config = ADGConfig.of_run(manifest["config"])
            for name, stats in selector(config.method).costs(config, manifest["sampling"]):
                found[name] = Cost().with_now(stats)
    before = read_comparison(run)
    if before is not None and before.get("recipe") == dict(recipe):
        try:
            for name, cost in before["costs"].items():
                found[name] = Cost(int(cost["rows"]), float(cost["seconds"]), int(cost["tokens"]), of=cost.get("of"))
        except (KeyError, TypeError, ValueError, AttributeError) as err:
            raise StoreError(f"{run.path / COMPARE} has no costs that can be read ({err!r}): delete it") from err
    return {name: replace(cost, seconds_now=0.0) for name, cost in found.items() if cost.rows}


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
    """Lets methods choose, one by one, and remembers what was asked of models for it.

    Args:
        costs: of earlier runs, by what was asked.
        silent: ids of the rows whose reference response has no word.
    """

    def __init__(
        self,
        run: RunFolder,
        config: ADGConfig,
        source: Source,
        costs: Mapping[str, Cost],
        silent: Set[str],
        show: bool,
    ) -> None:
        self._run, self._config, self._source, self._show = run, config, source, show
        self._before, self._silent = costs, silent
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
        asks = plan.selector.asks(self._run, plan.config)
        one = Compared(plan.name, plan.config.method, plan.changes, asked=tuple(ask.cost for ask in asks))
        try:
            skipped: dict[str, str] = {}
            for ask in asks:
                skipped |= self._ask(ask, plan.config)
            began = time.monotonic()
            task = Task(self._run, plan.config, self._source, self.rows["pool"], skipped, self.assign, self._show)
            decision = plan.selector.decide(task)
            seconds = time.monotonic() - began
            rejected = dict(Counter(rejection.reason for rejection in decision.rejections).most_common())
            if not decision.ids:
                listed = ", ".join(f"{reason} {count}" for reason, count in rejected.items())
                raise DataError(f"none of the {self.rows['candidates']} rows can be chosen ({listed})")
        except StoreError:
            raise
        except ADGError as err:
            logger.warning("%s failed: %s", plan.name, err)
            return replace(one, error=str(err))
        self.eligible[plan.name] = decision.table["id"]
        warnings = (*decision.warnings, *self._without_reference(plan, decision.ids))
        for sentence in warnings:
            logger.warning("%s: %s", plan.name, sentence)
        if self.binned is None and plan.selector.by_divergence and plan.config.bins == self._config.bins:
            self.binned = decision.table.select(["id", "bin"])
        return replace(
            one,
            ids=decision.ids,
            scored=len(decision.table),
            rejected=rejected,
            seconds=seconds,
            warnings=warnings,
        )

    def _without_reference(self, plan: Plan, ids: Sequence[str]) -> Iterator[str]:
        """Yield a warning where a method that needs no answers of the rows' own chose rows without one."""
        rows = len(self._silent & set(ids)) if plan.selector.needs_reference == "none" else 0
        if rows:
            yield (
                f"{rows:,} of its {len(ids):,} rows {'has' if rows == 1 else 'have'} no answer of their own in words, "
                "which other methods leave out: name the answers' column (field_output, field_completion), or take "
                "these rows out of the pool"
            )

    def _ask(self, ask: Ask, config: ADGConfig) -> Mapping[str, str]:
        """Ask what is not there, once, and return the reason of each row that got nothing this time, by id.

        Raises:
            ADGError: it cannot be asked; whoever wants the same later meets the same error.
        """
        from adg_plugin.pipeline.sample import fill

        name, run, source, show = ask.cost, self._run, self._source, self._show
        if name in self._errors:
            raise self._errors[name]
        if name not in self.costs:
            try:
                if ask.fill is not None:
                    stats = ask.fill(run, config, source, show)
                else:
                    stats = fill(("sample", "embed"), run, run.path, config, source, SingleProcess(), show=show)
            except ADGError as err:
                self._errors[name] = err
                raise
            self._skipped[name] = stats.pop("skipped", {})
            self.costs[name] = self._before.get(name, Cost()).with_now(stats)
        return self._skipped[name]
