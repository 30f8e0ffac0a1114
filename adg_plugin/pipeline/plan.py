"""What a selection would do, found by its own steps up to the first one that loads a model: `--dry-run`."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adg_plugin.config.schema import ADGConfig
from adg_plugin.errors import DataError
from adg_plugin.pipeline.checks import other_answers, refuse_other_answers, refuse_unfit
from adg_plugin.pipeline.ranks import SingleProcess, Team
from adg_plugin.pipeline.run import prepare
from adg_plugin.pipeline.stage import Pool
from adg_plugin.selectors.registry import selector
from adg_plugin.store import RunFolder, RunReader, keys
from adg_plugin.store.folder import check_folder
from adg_plugin.store.json_files import is_run_folder
from adg_plugin.store.mirror import check_url
from adg_plugin.store.staging import digests


@dataclass(frozen=True, slots=True)
class SelectionPlan:
    """What a selection would do.

    Attributes:
        run_dir: the run folder, which may be a URL.
        prompts: rows that can be chosen, as far as can be known before a model has seen them.
        answered: of these, rows that have answers in the run folder.
        rejected: the other rows of the pool, by reason.
        notes: sentences on the run folder.
    """

    config: ADGConfig
    run_dir: str
    prompts: int
    answered: int
    rejected: Mapping[str, int]
    notes: tuple[str, ...]

    def lines(self) -> list[str]:
        """Return the plan for people, a line each."""
        return [
            f"pool       {', '.join(spec.path for spec in self.config.datasets)}",
            f"selection  {self.config.budget} rows, {how_chosen(self.config)}",
            f"rows       {self.rows()}",
            f"run folder {self.run_dir}",
            *self.notes,
        ]

    def rows(self) -> str:
        """Return how many rows there are to choose from."""
        reasons = ", ".join(f"{reason} {count}" for reason, count in self.rejected.items())
        rejected = f", {sum(self.rejected.values())} rejected ({reasons})" if reasons else ""
        answered = f"; {self.answered} have answers already" if self.answered else ""
        return f"{self.prompts} to choose from{rejected}{answered}"


def plan_selection(
    config: ADGConfig, run_dir: str, *, for_training: bool = False, own: bool = False, team: Team | None = None
) -> SelectionPlan:
    """Return what `run_selection` would do, after the checks that it makes before a model loads.

    Nothing is written into the run folder: the pool is rendered into a temporary one. Of a model on the hub, tokenizer
    and config are fetched where they are not here, and the files of `scar_model`.

    Args:
        run_dir: the run folder; of a URL only the form and the driver are checked.
    """
    from adg_plugin.engines.factory import check_requirements
    from adg_plugin.engines.models.loading import Source
    from adg_plugin.engines.ray import need_ray

    pool = Pool.of(config, for_training=for_training)
    refuse_unfit(config, team or SingleProcess())
    source = Source.configured(config)
    chooser = selector(config.method)
    chooser.check(config)
    recipe = keys.sampling_fingerprint(config, model=source.identity, eos_ids=source.eos_ids)
    before, notes = _found(config, run_dir, recipe, own=own)
    with tempfile.TemporaryDirectory(prefix="adg-dry-run-") as folder, RunFolder.open(folder) as run:
        try:
            prepare(run, pool, config, source, recipe, own=False)
        except DataError as err:  # none of the rows can be sampled
            raise type(err)(str(err).replace(str(run.path), run_dir)) from err
        counts = run.counts()
        rejected = Counter(rejection.reason for rejection in run.staged_rejections())
        there = set() if before is None else before.stock.completed | before.samples_stock.completed
        answered = sum(digest in there for table in run.staged_columns(["id", "key"]) for digest in digests(table))
        chooser.check_rows(run, config)
    is_asked = answered < counts.prompts if chooser.samples_answers else chooser.asks_backbone
    if is_asked and config.executor == "ray" and chooser.samples_answers:
        need_ray()  # the rest is up to its workers
    elif is_asked:
        check_requirements(config)
    return SelectionPlan(config, run_dir, counts.prompts, answered, rejected, notes)


def _found(
    config: ADGConfig, run_dir: str, recipe: Mapping[str, Any], *, own: bool
) -> tuple[RunReader | None, tuple[str, ...]]:
    """Return the run folder, None where there is none yet, and sentences on it; a StoreError if no run can go there."""
    if "://" in run_dir:
        check_url(run_dir)
        return None, ()
    check_folder(run_dir)
    if not is_run_folder(Path(run_dir)):
        return None, ()
    before = RunFolder.read(run_dir)
    if own:
        refuse_other_answers(before, config, recipe)
    other = other_answers(before, config, recipe)
    made_with = f"was made with {', '.join(other.values())}: its answers are kept, and not used"
    return before, (f"           {made_with}",) if other else ()


def how_chosen(config: ADGConfig) -> str:
    """Return what decides over the rows, and which models are asked."""
    backbone = f"{config.model}{' in 4-bit' if config.load_in_4bit else ''}"
    if config.answers is not None:
        return f"by the answers in {config.answers}, embedded by {backbone}"
    chooser = selector(config.method)
    if chooser.samples_answers:
        answers = f"{config.num_samples} answers per row, at most {config.max_new_tokens} tokens each"
        return f"sampled from {backbone}: {answers}"
    judges = [str(getattr(config, key)) for key in chooser.models(config)]
    if chooser.asks_backbone:
        judges.append(backbone)
    return f"chosen by {config.method}" + (f", judged by {' and '.join(judges)}" if judges else "")
