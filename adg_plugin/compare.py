"""Several methods choose from one run folder, under one budget, and are compared. An earlier selection stays."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from adg_plugin import keys
from adg_plugin.bins import assign_bins
from adg_plugin.compare_costs import Cost, costs_before
from adg_plugin.compare_facts import COMPARE, Facts, add_files, facts_of
from adg_plugin.compare_methods import DEFAULT_METHODS, Plan, planned
from adg_plugin.compare_work import Compared, Work
from adg_plugin.config import ADGConfig
from adg_plugin.errors import ConfigError, StoreError, need
from adg_plugin.manifest import versions
from adg_plugin.pipeline import prepare
from adg_plugin.pool import Pool
from adg_plugin.report.facets import read_facets
from adg_plugin.store import RunFolder, StagedRow
from adg_plugin.store.files import write_json
from adg_plugin.store.reader import MANIFEST
from adg_plugin.store.staging import Rejection

if TYPE_CHECKING:
    from adg_plugin.engines.loading import Source


@dataclass(frozen=True, slots=True)
class Comparison:
    """Methods that chose from one run folder.

    Attributes:
        path: of compare.json.
        budget: rows that each was to choose.
        rows: `pool` after exact duplicates, and `candidates` that could be sampled.
        methods: in the order in which they were asked for.
        costs: of what was asked of models, by what was asked.
        facts: of those that did not fail.
        about: `created`, `pool_digest`, `recipe`, `config`, `versions`.
    """

    path: Path
    budget: int
    rows: dict[str, int]
    methods: tuple[Compared, ...]
    costs: dict[str, Cost]
    facts: Facts
    about: dict[str, Any]

    @property
    def failed(self) -> tuple[Compared, ...]:
        """The methods that did not choose."""
        return tuple(one for one in self.methods if one.error is not None)

    def cost(self, one: Compared) -> Cost | None:
        """Return what asking a model took for a method; None where it asks none."""
        return None if one.asked is None else self.costs.get(one.asked, Cost())

    def summary(self) -> dict[str, Any]:
        """Return all of it, for JSON."""
        return {
            **self.about,
            "budget": self.budget,
            "rows": self.rows,
            "methods": [asdict(one) for one in self.methods],
            "costs": {name: cost.summary(self.rows["candidates"]) for name, cost in self.costs.items()},
            **self.facts.summary(),
        }


class BesideASelection(RunFolder):
    """A run folder whose finished selection, if it has one, stays: answers may be added, another pool may not."""

    @cached_property
    def keeps(self) -> bool:
        """Whether there was a selection."""
        return (self.path / MANIFEST).exists()

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write config.json, unless it is the selection's."""
        if not self.keeps:
            super().write_config(config)

    def stage_prompts(self, rows: Iterable[StagedRow | Rejection], *, digest: str) -> int:
        """Stage a pool as `RunFolder` does.

        Raises:
            StoreError: the selection was made from another one.
        """
        if not self.keeps:
            return super().stage_prompts(rows, digest=digest)
        if self.staged_digest() != digest:
            raise StoreError(
                f"run folder {self.path} holds a selection from another pool, or under other settings of it: compare "
                "under those, or give another --out"
            )
        return self.counts().prompts  # of a pool on the hub, of which nobody can tell whether it has changed

    def _drop_manifest(self) -> None:
        if not self.keeps:
            super()._drop_manifest()


def compare(
    config: ADGConfig | Mapping[str, Any],
    methods: Sequence[str] = DEFAULT_METHODS,
    run_dir: str | Path | None = None,
    *,
    show_progress: bool = True,
) -> Comparison:
    """Return how the choices of several methods compare, and write it to compare.json in the run folder.

    What the run folder holds of answers and likelihoods is not asked for again. The files of an earlier selection in it
    do not change. A method that fails is named with its error; the others go on.

    Args:
        config: the settings that all methods share.
        methods: `METHOD`, `METHOD:KEY=VALUE,KEY=VALUE`, or `adg:FORM`, a form of `score`.
        run_dir: run folder; default the config's `output_dir`, else `runs/selection`.
        show_progress: whether to report progress on stderr.

    Raises:
        ConfigError: a method cannot be what is asked for.
        ADGError: as `adg_plugin.pipeline.run_selection`, before anything is sampled; later only a StoreError.
    """
    from adg_plugin.engines.loading import Source

    config = config if isinstance(config, ADGConfig) else ADGConfig.parse(config)
    plans = planned(config, methods)
    _refuse_unfit(config)
    folder = Path(run_dir or config.output_dir or "runs/selection")
    source = Source.configured(config)
    _refuse_what_cannot_run(plans, Source)
    recipe = keys.answer_recipe(config, model=source.identity, eos_ids=source.eos_ids)
    with BesideASelection.open(folder) as run:
        prepare(run, Pool.of(config), config, source, recipe, own=run.keeps)
        work = Work(run, config, source, costs_before(run, recipe), show_progress)
        done = tuple(work.chosen(plan) for plan in plans)
        found = _comparison(run, config, work, done)
        about = {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "pool_digest": run.staged_digest(),
            "recipe": json.loads(json.dumps(recipe)),
            "config": config.model_dump(mode="json"),
            "versions": versions(),
        }
        comparison = Comparison(run.path / COMPARE, work.budget, work.rows, done, work.costs, found, about)
        write_json(comparison.path, comparison.summary())
    return comparison


def _refuse_unfit(config: ADGConfig) -> None:
    problems = []
    if not config.datasets:
        problems.append("datasets is missing: give a pool, such as datasets: [pool.jsonl]")
    if config.budget_per_dataset is not None:
        problems.append("budget_per_dataset is set: only Axolotl selects from each data set by itself; use budget")
    if problems:
        raise ConfigError(problems)


def _refuse_what_cannot_run(plans: Sequence[Plan], source: type[Source]) -> None:
    """Raise where a method lacks what it needs, as far as that can be known before anything is sampled."""
    for plan in plans:
        if plan.method == "scar":
            need("style_ranker", extra="scar", why="method: scar")
        if plan.method == "superfiltering":
            # A revision, a type and a token of the backbone mean nothing to another model.
            changes: dict[str, Any] = {"model": plan.config.small_model, "revision": None, "eos_token": None}
            source.configured(plan.config.updated(**changes, dtype="auto", load_in_4bit=False))


def _comparison(run: RunFolder, config: ADGConfig, work: Work, done: Sequence[Compared]) -> Facts:
    staged = pa.concat_tables(run.staged_columns(["id", "where"])).sort_by("id")
    ids: list[str] = staged["id"].to_pylist()
    facets = read_facets(run, ids, [spec.path for spec in config.datasets], characters=0)
    add_files(facets, staged["where"].to_pylist())
    choices = {one.name: one.ids for one in done if one.error is None}
    return facts_of(choices, ids, work.budget, facets, _bins(run, config, ids, work.binned))


def _bins(
    run: RunFolder, config: ADGConfig, ids: Sequence[str], known: pa.Table | None
) -> npt.NDArray[np.int64] | None:
    """Return the (N,) bins of the rows under the shared settings, -1 where a row has none; None without any answers."""
    if known is None:
        geometry = run.geometry()
        if not len(geometry):
            return None
        bins = assign_bins(geometry.prompt_vectors, config.bins, config.seed)
        known = pa.table({"id": pa.array(geometry.ids, pa.string()), "bin": bins})
    of = dict(zip(known["id"].to_pylist(), known["bin"].to_pylist(), strict=True))
    return np.array([of.get(id, -1) for id in ids], dtype=np.int64)
