"""Several methods choose from one run folder, under one budget, and are compared. An earlier selection stays."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from adg_plugin.config.messages import NO_POOL
from adg_plugin.config.run_folder import run_folder
from adg_plugin.config.schema import ADGConfig
from adg_plugin.errors import ConfigError, redacted
from adg_plugin.pipeline.checks import refuse_unfit
from adg_plugin.pipeline.ranks import SingleProcess
from adg_plugin.pipeline.run import prepare
from adg_plugin.pipeline.stage import Pool
from adg_plugin.report.compared import COMPARE
from adg_plugin.report.facets import read_facets
from adg_plugin.selectors.registry import package_of
from adg_plugin.store import RunFolder, keys
from adg_plugin.store.files import write_json
from adg_plugin.store.keys import versions
from adg_plugin.tools.compare.facts import Facts, add_files, facts_of
from adg_plugin.tools.compare.folder import ComparisonRunFolder
from adg_plugin.tools.compare.plans import DEFAULT_METHODS, planned
from adg_plugin.tools.compare.runner import Compared, Cost, Runner, costs_before


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

    def costs_of(self, one: Compared) -> list[Cost]:
        """Return what asking took for a method, of each model; none where it asks none."""
        return [self.costs.get(name, Cost()) for name in one.asked]

    def summary(self) -> dict[str, Any]:
        """Return all of it, for JSON."""
        return {
            **self.about,
            "budget": self.budget,
            "rows": self.rows,
            "methods": [asdict(one) for one in self.methods],
            "costs": {name: cost.summary(self.rows["candidates"]) for name, cost in self.costs.items()},
            **asdict(self.facts),
        }


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
        methods: `METHOD`, `METHOD:KEY=VALUE,KEY=VALUE`, or `adg:FORM`, a form of `score`.
        run_dir: run folder; default the config's `output_dir`, else `runs/selection`.

    Raises:
        ConfigError: a method cannot be what is asked for.
        ADGError: as `adg_plugin.pipeline.run.run_selection`, before anything is sampled; later only a StoreError.
    """
    from adg_plugin.engines.models.loading import Source

    config = config if isinstance(config, ADGConfig) else ADGConfig.parse(config)
    config.refuse_given_answers("`adg compare` samples, so that every method has the same pool")
    plans = planned(config, methods)
    refuse_unfit(config, SingleProcess())
    if not config.datasets:
        raise ConfigError([NO_POOL])
    folder = Path(run_folder(run_dir, config.output_dir))
    source = Source.configured(config)
    for plan in plans:
        plan.selector.check(plan.config)
    recipe = keys.sampling_fingerprint(config, model=source.identity, eos_ids=source.eos_ids)
    with ComparisonRunFolder.open(folder) as run:
        prepare(run, Pool.of(config), config, source, recipe, own=run.keeps)
        for plan in plans:
            plan.selector.check_rows(run, plan.config)
        staged = pa.concat_tables(run.staged_columns(["id", "where"])).sort_by("id")
        ids: list[str] = staged["id"].to_pylist()
        facets = read_facets(run, ids, [redacted(spec.path) for spec in config.datasets], characters=0)
        add_files(facets, staged["where"].to_pylist())
        silent = {id for id, words in zip(ids, facets.reference_words.tolist(), strict=True) if not words}
        runner = Runner(run, config, source, costs_before(run, recipe), silent, show_progress)
        done = tuple(runner.chosen(plan) for plan in plans)
        choices = {one.name: one.ids for one in done if one.error is None}
        eligible = {name: runner.eligible[name].to_pylist() for name in choices}
        facts = facts_of(choices, eligible, ids, facets, _bins(run, config, ids, runner))
        about = {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "pool_digest": run.staged_digest(),
            "recipe": json.loads(json.dumps(recipe)),
            "config": config.model_dump(mode="json"),
            "versions": versions() | dict(item for plan in plans for item in package_of(plan.config.method).items()),
        }
        comparison = Comparison(run.path / COMPARE, runner.budget, runner.rows, done, runner.costs, facts, about)
        write_json(comparison.path, comparison.summary())
    return comparison


def _bins(run: RunFolder, config: ADGConfig, ids: Sequence[str], runner: Runner) -> npt.NDArray[np.int64] | None:
    """Return the (N,) bins of the rows under the shared settings, -1 where a row has none; None without any answers."""
    known = runner.binned
    if known is None:
        geometry = run.geometry()
        if not len(geometry):
            return None
        bins = runner.assign(geometry.prompt_vectors, config.bins, config.seed)
        known = pa.table({"id": pa.array(geometry.ids, pa.string()), "bin": bins})
    of = dict(zip(known["id"].to_pylist(), known["bin"].to_pylist(), strict=True))
    return np.array([of.get(id, -1) for id in ids], dtype=np.int64)
