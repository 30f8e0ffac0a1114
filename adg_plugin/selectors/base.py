"""What a selector is: what it reads and asks of models, how it chooses, and what its numbers mean."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from adg_plugin.config.schema import IN_MEMORY, ADGConfig
from adg_plugin.errors import ConfigError
from adg_plugin.scoring.quota import resolve_budget
from adg_plugin.selectors.candidates import (
    Candidates,
    Decision,
    NeedsReference,
    Pick,
    Picked,
    as_picked,
    decided,
    read_candidates,
)
from adg_plugin.selectors.columns import plain, shown
from adg_plugin.store import Rejection, RunFolder, RunReader

if TYPE_CHECKING:
    from adg_plugin.engines.models.loading import Source
    from adg_plugin.scoring.score import Assign

ANSWERS = "answers"  # the cost of sampling and embedding them


@dataclass(frozen=True, slots=True)
class Task:
    """What a selector chooses from."""

    run: RunReader  # the run folder, with a staged pool and all that was sampled or measured
    config: ADGConfig
    source: Source | None  # of the backbone, with its tokenizer; None where nothing but ADG can choose
    pool_rows: int  # of the pool after exact duplicates, for a budget that is a fraction
    skipped: Mapping[str, str] = field(default_factory=dict)  # by id, why a row was not sampled or measured this time
    assign: Assign | None = None  # gives ADG its bins; None: `adg_plugin.scoring.bins.assign_bins`
    show: bool = False  # report progress on stderr, where choosing takes long


@dataclass(frozen=True, slots=True)
class Ask:
    """Something that models are asked before a choice; selectors that ask for the same share it, and its cost."""

    cost: str  # its name in compare.json
    # Stores what is missing in the run folder, as `Selector.fill`; None: answers are to be sampled.
    fill: Callable[[RunFolder, ADGConfig, Source, bool], dict[str, Any]] | None = None


@dataclass(frozen=True)
class Selector:
    """Who chooses. A subclass has to have `pick`, or `decide`; all else has a default."""

    name: str  # as `method` names it

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.measures = cls.fill is not Selector.fill

    # Texts of each row that `pick` needs: `instruction`, `reference` (its response), `data` (it as found, as JSON).
    reads: ClassVar[tuple[str, ...]] = ()
    # What a row's reference response must have: text, a turn (which may only call tools), nothing.
    needs_reference: ClassVar[NeedsReference] = "text"
    samples_answers: ClassVar[bool] = False  # sampled answers, with their vectors, have to be in the run folder
    asks_backbone: ClassVar[bool] = False  # the model that is trained is asked something
    measures: ClassVar[bool] = False  # it has a `fill` of its own, which asks a model about each row, in one process
    stepwise: ClassVar[bool] = False  # it chooses one row after another and scores only those that it chooses
    random_scores: ClassVar[bool] = False  # its scores say nothing about the rows
    # It scores the sampled answers by dispersion and anisotropy and chooses within bins, as ADG does: these are then in
    # its table, and what shows a choice shows them.
    by_divergence: ClassVar[bool] = False
    # That it looks at when everything is there: no other changes its choice, or only its choice.
    settings: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str | None] = None  # of this package, that it needs
    score_meaning: ClassVar[str] = "higher is better"
    part_meanings: ClassVar[Mapping[str, str]] = {}  # by column of its own, what it holds

    def title(self, run: str) -> str:
        """Return the title of a report on its choice in the run folder of this name."""
        return f"Selection by {self.name}: {run}"

    # -- models ------------------------------------------------------------------------------------------------------

    def models(self, config: ADGConfig) -> Mapping[str, Callable[[], object]]:
        """Return, by its setting, how each model other than the backbone is configured; none is loaded."""
        return {}

    def check(self, config: ADGConfig) -> None:
        """Raise an ADGError of its kind where a model or a file is missing, before anything is written."""
        for configured in self.models(config).values():
            configured()

    def check_rows(self, run: RunReader, config: ADGConfig) -> None:
        """Raise where the staged rows need a model that cannot be asked, before it or another one is."""

    def shares_work(self, config: ADGConfig) -> bool:
        """Return whether several processes may choose together: what only one can do takes no model."""
        return not self.measures

    def asks(self, run: RunReader, config: ADGConfig) -> tuple[Ask, ...]:
        """Return what models are asked before the choice."""
        if self.samples_answers:
            return (Ask(ANSWERS),)
        return (Ask(self._cost(config), self._fill),) if self.measures else ()

    def costs(self, config: ADGConfig, stats: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield name and record of each cost, from the settings and the `sampling` stats of a finished selection."""
        yield ANSWERS if self.samples_answers else self._cost(config), stats

    def fill(self, run: RunFolder, config: ADGConfig, source: Source, *, show: bool) -> dict[str, Any]:
        """Measure what is not stored of each row, and return the stats.

        Args:
            run: the run folder, with a staged pool.
            source: of the backbone.

        Returns:
            As `adg_plugin.selectors.measure.fill_measure`.

        Raises:
            ADGError: a model cannot be used, or a file cannot be written; what is measured is kept.
        """
        return {}

    def _cost(self, config: ADGConfig) -> str:
        return " ".join([self.name, *(str(getattr(config, key)) for key in self.models(config))])

    def _fill(self, run: RunFolder, config: ADGConfig, source: Source, show: bool) -> dict[str, Any]:
        return self.fill(run, config, source, show=show)

    # -- the choice --------------------------------------------------------------------------------------------------

    def decide(self, task: Task) -> Decision:
        """Return the choice, empty if none can be made; a ConfigError without a model or a valid `pick`."""
        if task.source is None:
            raise ConfigError([f"method is {self.name!r}, and there is no model to ask: use method: adg"])
        candidates, unanswered = read_candidates(
            task.run, self.reads, needs_reference=self.needs_reference, specs=task.config.datasets or (IN_MEMORY,)
        )
        rows, rejections, pick = self.usable(candidates, task)
        rejections = [*unanswered, *rejections]
        if not len(rows):
            return Decision.none(rejections)
        budget, warning = resolve_budget(task.config.budget, task.pool_rows, len(rows))
        try:
            picked = as_picked(pick(rows, budget), len(rows), budget)
        except ValueError as err:
            raise ConfigError([f"method is {self.name!r}: {err}"]) from err
        return decided(rows, picked, self.name, [warning] if warning else [], rejections)

    def usable(self, rows: Candidates, task: Task) -> tuple[Candidates, Sequence[Rejection], Pick]:
        """Return the rows that may be chosen, the others with their reasons, and how it chooses."""
        return rows, [], lambda rows, budget: self.pick(rows, budget, task)

    def pick(self, rows: Candidates, budget: int, task: Task) -> Picked:
        """Return the choice among the rows.

        Args:
            rows: those that may be chosen, by id, with the texts that `reads` names; at least one.
            budget: rows to choose, no more than there are.
            task: the run folder, the settings, the model.
        """
        raise NotImplementedError(f"{type(self).__name__} has neither pick nor decide")

    # -- why ---------------------------------------------------------------------------------------------------------

    def changes(self, table: pa.Table, at: int, config: ADGConfig) -> Iterator[str]:
        """Yield sentences on what would have changed the choice of row `at` of a table of scores."""
        chosen, rank = table["chosen"][at].as_py(), table["rank"][at].as_py()
        budget = pc.sum(table["chosen"]).as_py()
        if budget == len(table):
            yield "every row that could be chosen was"
        else:
            yield from self.cut(table, at, budget)
        if rank is None and self.stepwise:
            yield (
                f"{self.name} chooses one row after another and looks at each only beside those before it: after "
                f"{budget:,} it had not come to this one; a larger budget adds rows and takes none away"
            )
        elif rank is None:
            yield f"{self.name} gave it no score"
        elif not chosen:
            yield f"a budget of {rank:,} would have reached it"
        elif rank > 1:
            yield f"a budget below {rank:,} would have left it out"

    def cut(self, table: pa.Table, at: int, budget: int) -> Iterator[str]:
        """Yield what score would have decided otherwise: that of the first row left out, or of the last one chosen."""
        chosen, own = table["chosen"][at].as_py(), table["score"][at].as_py()
        ranks = table["rank"].to_pylist()
        wanted = budget + 1 if chosen else budget
        if self.stepwise or own is None or wanted not in ranks:
            return
        other = table["score"][ranks.index(wanted)].as_py()
        away, other = shown(plain(other - own), "+"), plain(other)
        if chosen:
            yield f"a score below {shown(other)} ({away}) would have left it out"
        else:
            yield f"a score above {shown(other)} ({away}) would have chosen it"
