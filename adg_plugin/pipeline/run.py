"""The order of things: pool -> prompts -> answers and vectors -> scores and bins -> chosen rows."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from adg_plugin.config.messages import NO_POOL
from adg_plugin.config.run_folder import run_folder
from adg_plugin.config.schema import ADGConfig
from adg_plugin.errors import ConfigError, DataError
from adg_plugin.pipeline.checks import other_answers, refuse_for_teams, refuse_other_answers, refuse_unfit
from adg_plugin.pipeline.ranks import SingleProcess, Team, merge_rank_results
from adg_plugin.pipeline.stage import Pool, pool_counts, stage_pool
from adg_plugin.pipeline.training_rows import write_training_rows
from adg_plugin.selectors.base import Task
from adg_plugin.selectors.registry import package_of, selector
from adg_plugin.store import RunFolder, keys
from adg_plugin.store.keys import versions
from adg_plugin.store.names import SELECTED
from adg_plugin.store.reader import Counts

if TYPE_CHECKING:
    from datasets import Dataset

    from adg_plugin.engines.models.loading import Source

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Selection:
    """A finished selection.

    Attributes:
        run_dir: the run folder, which holds everything.
        path: selected.jsonl in it: the chosen rows as they were, best score first.
        ids: the chosen ids in the same order.
        manifest: counts, settings and warnings, as in manifest.json.
    """

    run_dir: Path
    path: Path
    ids: tuple[str, ...]
    manifest: dict[str, Any]

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the chosen rows, best score first."""
        with self.path.open(encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)

    def dataset(self) -> Dataset:
        """Return the chosen rows as a `datasets.Dataset` in memory, best score first; what a row lacks is None.

        Raises:
            DataError: a column holds values of different types, such as text and numbers.
        """
        from datasets import Dataset

        rows = list(self.rows())
        names = dict.fromkeys(name for row in rows for name in row)
        try:
            return Dataset.from_dict({name: [row.get(name) for row in rows] for name in names})
        except (ValueError, TypeError) as err:  # pyarrow's
            raise DataError(f"{self.path} cannot become one table ({err}): read its lines, or use `rows()`") from err


def select(
    dataset: str | Path | Iterable[Mapping[str, Any]] | None = None,
    *,
    model: str | Path | None = None,
    config: ADGConfig | Mapping[str, Any] | None = None,
    answers: str | Path | None = None,
    output_dir: str | Path | None = None,
    show_progress: bool = True,
) -> Selection:
    """Return the selection from a pool, sampling what the run folder does not hold yet.

    Args:
        dataset: path, hub name, `datasets.Dataset` or mappings; default the config's `datasets`. Columns of rows in
            memory may be named by an entry of `datasets` with `path: memory`.
        model: folder or hub name of the backbone; default the config's `model`.
        config: settings; default those of `ADGConfig`.
        answers: file of answers, to be scored in the place of sampled ones; default the config's `answers`.
        output_dir: run folder; default the config's `output_dir`, else `runs/selection`.
        show_progress: whether to report progress on stderr.

    Raises:
        ADGError: of the kind that tells configuration, data, model, run folder and numbers apart.
    """
    settings = config if isinstance(config, ADGConfig) else ADGConfig.parse(config or {})
    changes: dict[str, Any] = {"model": model, "answers": answers}
    rows = None if isinstance(dataset, str | Path) else dataset
    if isinstance(dataset, str | Path):
        changes["datasets"] = [{"path": str(dataset)}]
    settings = settings.updated(**{name: value for name, value in changes.items() if value is not None})
    if rows is None and not settings.datasets:
        raise ConfigError([NO_POOL])
    where = run_folder(output_dir, settings.output_dir)
    if "://" in where:
        raise ConfigError([f"output_dir is {where!r}: only `adg select --out` takes URLs; give a folder"])
    return run_selection(Pool.of(settings, rows), settings, Path(where), show_progress=show_progress)


def run_selection(
    pool: Pool,
    config: ADGConfig,
    run_dir: Path,
    *,
    source: Source | None = None,
    own: bool = False,
    team: Team | None = None,
    show_progress: bool = True,
) -> Selection:
    """Return the selection from `pool`; everything goes into `run_dir`, where an interrupted run goes on.

    The backbone is loaded only if there are rows to sample.

    Args:
        source: where the model comes from; default is what the config names.
        own: refuse a run folder whose answers came of another model or other settings, instead of adding to it.
        team: the processes that share the sampling; each calls this and gets the same selection.
    """
    from adg_plugin.engines.models.loading import Source
    from adg_plugin.pipeline.sample import fill

    began = time.monotonic()
    team = team or SingleProcess()
    refuse_unfit(config, team)
    chooser = selector(config.method)
    source = source or Source.configured(config)
    recipe = keys.sampling_fingerprint(config, model=source.identity, eos_ids=source.eos_ids)
    with ExitStack() as stack:
        with team.barrier("preparing the pool"):
            run = stack.enter_context(RunFolder.open(run_dir)) if team.rank == 0 else None
            if run is not None:
                prepare(run, pool, config, source, recipe, own=own)
        stats: dict[str, Any] = {"rows": 0}
        if chooser.samples_answers:
            stats = fill(("sample", "embed"), run, run_dir, config, source, team, show=show_progress)
        with team.barrier("choosing"):
            if run is not None:
                stats |= chooser.fill(run, config, source, show=show_progress)
                about = {"stats": stats, "began": began}
                selection = choose(run, config, recipe, about, source, show_progress=show_progress)
        found = team.broadcast({"ids": selection.ids, "manifest": selection.manifest} if run is not None else None)
    return Selection(run_dir, run_dir / SELECTED, tuple(found["ids"]), found["manifest"])


def run_stage(
    stage: Literal["sample", "embed"],
    config: ADGConfig,
    run_dir: Path,
    *,
    team: Team | None = None,
    show_progress: bool = True,
) -> Counts:
    """Sample answers, or embed those that are there, in a run folder where `run_selection` or the other stage goes on.

    `sample` leaves the vectors to `embed`, but for `engine: hf`, which makes them in the same pass. `embed` samples
    nothing, and needs neither the pool nor what sampled the answers.

    Returns:
        How far the run folder is.

    Raises:
        StoreError: `embed` finds no run folder, or one of other settings.
    """
    from adg_plugin.engines.models.loading import Source
    from adg_plugin.pipeline.sample import fill

    team = team or SingleProcess()
    config.refuse_other_methods(f"`adg {stage}` is about the answers that ADG draws")
    config.refuse_given_answers(f"`adg {stage}` is about sampled answers, and `adg select` scores those of a file")
    refuse_for_teams(config, team)
    source = Source.configured(config)
    recipe = keys.sampling_fingerprint(config, model=source.identity, eos_ids=source.eos_ids)
    with ExitStack() as stack:
        with team.barrier("preparing the pool"):
            run = stack.enter_context(RunFolder.open(run_dir, create=stage == "sample")) if team.rank == 0 else None
            if run is not None and stage == "sample":
                prepare(run, Pool.of(config), config, source, recipe, own=False)
            elif run is not None:
                refuse_other_answers(run, config, recipe)
                drop_impossible_answers(run, config, source)
        fill((stage,), run, run_dir, config, source, team, show=show_progress)
        counts = team.broadcast(asdict(run.counts()) if run is not None else None)
    return Counts(**counts)


def prepare(
    run: RunFolder, pool: Pool, config: ADGConfig, source: Source, recipe: Mapping[str, Any], *, own: bool
) -> None:
    """Stage the pool into a run folder held here, unless it is there; a DataError if no row can be sampled."""
    if own:
        refuse_other_answers(run, config, recipe)
    elif other := other_answers(run, config, recipe):
        differing = ", ".join(other.values())
        logger.warning("run folder %s was made with %s: its answers are kept, and not used now", run.path, differing)
    run.write_config({"config": config.model_dump(mode="json"), "recipe": recipe, "versions": versions()})
    merge_rank_results(run)
    stage_pool(run, pool, config, source.tokenizer, recipe, positions=source.positions, vocabulary=source.vocabulary)
    drop_impossible_answers(run, config, source)
    for sentence in [*run.damage, *run.staged_notes()]:
        logger.warning("%s", sentence)
    counts = run.counts()
    if not counts.prompts:
        reasons = run.write_rejected(run.staged_rejections())
        listed = ", ".join(f"{reason} {count}" for reason, count in reasons.items())
        where = run.path / "rejected.jsonl"
        if config.answers is not None:
            raise DataError(
                f"none of the {counts.rejected} rows can be scored with the answers in {config.answers} ({listed}): "
                f"see {where}"
            )
        raise DataError(f"none of the {counts.rejected} rows can be sampled ({listed}): see {where}")


def drop_impossible_answers(run: RunFolder, config: ADGConfig, source: Source) -> None:
    """Have rows sampled again whose stored answers came from elsewhere, and are none that the model can give."""
    if config.engine == "hf" or source.vocabulary is None:
        return
    if count := run.drop_impossible_answers(source.vocabulary, source.eos_ids):
        logger.warning(
            "run folder %s: %d rows had answers that the model cannot have given (a token beyond its vocabulary, or an "
            "end-of-answer token inside), and are sampled again",
            run.path,
            count,
        )


def choose(
    run: RunFolder,
    config: ADGConfig,
    recipe: Mapping[str, Any],
    about: Mapping[str, Any],
    source: Source | None = None,
    *,
    show_progress: bool = False,
) -> Selection:
    """Choose from what the run folder holds, and write the result, the manifest last.

    Args:
        about: `stats`, what sampling stats, and `began`, when the run did.
        source: of the backbone; with it, the chosen rows are also written as a table that TRL trains on.

    Raises:
        DataError: no row can be chosen.
    """
    pool = pool_counts(run)
    chooser = selector(config.method)
    skipped = about["stats"].pop("skipped", {})
    decision = chooser.decide(Task(run, config, source, pool.unique, skipped, show=show_progress))
    reasons = run.write_rejected(chain(run.staged_rejections(), decision.rejections))
    if not decision.ids:
        listed = ", ".join(f"{reason} {count}" for reason, count in reasons.items())
        where = run.path / "rejected.jsonl"
        if chooser.samples_answers:
            raise DataError(f"none of the {pool.candidates} sampled rows can be scored ({listed}): see {where}")
        raise DataError(f"none of the {pool.candidates} rows can be chosen by {chooser.name} ({listed}): see {where}")
    run.write_scores(decision.table)
    path = run.write_selected(decision.ids)
    if source is not None:
        write_training_rows(run, decision.ids, source.tokenizer, config)
    rows = {
        "pool": pool.unique + pool.duplicates,
        "duplicates": pool.duplicates,
        "rejected": reasons,
        "scored": len(decision.table),
        "bins": decision.bins,
        "selected": len(decision.ids),
    }
    manifest = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "rows": rows,
        "sampling": about["stats"],
        "answer_tokens": decision.answer_tokens,
        "seconds": time.monotonic() - about["began"],
        "score": decision.score,
        "warnings": [*run.staged_notes(), *decision.warnings],
        "config": config.model_dump(mode="json"),
        "recipe": dict(recipe),
        "versions": {**versions(), **package_of(config.method)},
    }
    for sentence in decision.warnings:
        logger.warning("%s", sentence)
    run.write_manifest(manifest)
    return Selection(run.path, path, decision.ids, manifest)
