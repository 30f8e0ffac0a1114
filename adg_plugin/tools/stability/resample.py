"""Fresh answers to some rows of a finished run: whether the errors that `stability` predicts are those of the model."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from adg_plugin.config.schema import ADGConfig
from adg_plugin.errors import ConfigError, DataError, StoreError
from adg_plugin.scoring.geometry import combine
from adg_plugin.scoring.score import score_rows
from adg_plugin.scoring.stability import Floats, Stability
from adg_plugin.store import Geometry, RunFolder, RunReader, StagedRow, keys
from adg_plugin.store.finished import finished
from adg_plugin.store.records import Prompt

FEWEST_ROWS = 10


@dataclass(frozen=True, slots=True)
class Resampled:
    """Old and new scores of M rows, and what was expected of them.

    Attributes:
        ids: (M,) rows with as many new answers as old ones.
        old: (M,) scores of the run.
        new: (M,) scores of the fresh answers, among the other rows' old ones.
        predicted_error: root mean square of the predicted standard errors of these rows.
        predicted_correlation: of old and new scores.
        seed: of the fresh answers.
        left_out: rows that got fewer answers than before, or none.
    """

    ids: tuple[str, ...]
    old: Floats
    new: Floats
    predicted_error: float
    predicted_correlation: float
    seed: int
    left_out: int

    @property
    def correlation(self) -> tuple[float, float]:
        """Pearson's correlation of old and new scores, 0 where one is constant, and its standard error."""
        constant = self.old.std() == 0 or self.new.std() == 0
        found = 0.0 if constant else float(np.corrcoef(self.old, self.new)[0, 1])
        return found, (1 - found**2) / float(np.sqrt(max(1, len(self.ids) - 2)))

    @property
    def error(self) -> tuple[float, float]:
        """The standard error of a score, from the differences of old and new ones, and its own standard error."""
        squares = np.square(self.new - self.old) / 2
        found, own = float(np.sqrt(squares.mean())), float(squares.std() / np.sqrt(len(squares)))
        return found, own / (2 * found) if found > 0 else 0.0

    @property
    def agrees(self) -> bool:
        """Whether the found error is within two standard errors of the predicted one."""
        found, own = self.error
        return abs(found - self.predicted_error) <= 2 * own

    def summary(self) -> dict[str, Any]:
        """Return the figures, for JSON."""
        (correlation, of_correlation), (error, of_error) = self.correlation, self.error
        return {
            "rows": len(self.ids),
            "left_out": self.left_out,
            "seed": self.seed,
            "correlation": {"found": correlation, "error": of_correlation, "predicted": self.predicted_correlation},
            "standard_error": {"found": error, "error": of_error, "predicted": self.predicted_error},
            "agrees": self.agrees,
        }


def resample_rows(run_dir: str, rows: int, about: Stability, *, show_progress: bool = True) -> Resampled:
    """Return what fresh answers to a random sample of rows say, drawn with the run's model and settings, another seed.

    Args:
        run_dir: a finished run folder; nothing in it changes.
        rows: how many; all, if there are fewer.

    Raises:
        ConfigError: `rows` is below 10, or another method than ADG chose.
        StoreError: not a finished run folder, or its model is another one by now.
        DataError: fewer than 10 rows can be compared.
    """
    if rows < FEWEST_ROWS:
        raise ConfigError([f"--resample is {rows}: use {FEWEST_ROWS} or more, fewer show nothing"])
    run = RunFolder.read(run_dir)
    config = finished(run)
    config.refuse_other_methods("fresh answers are drawn only where ADG has drawn some")
    if config.answers is not None:
        raise StoreError(
            f"{run_dir} has the answers of {config.answers}: nothing here can sample others; leave --resample out"
        )
    rng = np.random.default_rng(config.seed)
    sample = np.sort(rng.choice(len(about.ids), min(rows, len(about.ids)), replace=False))
    other = config.updated(seed=(config.seed + 1) % 2**63)
    with tempfile.TemporaryDirectory(prefix="adg-stability-") as folder:
        fresh = _drawn(run, Path(folder) / "run", [str(id) for id in about.ids[sample]], config, other, show_progress)
    return _compared(run.scores(), fresh, config, about, sample, other.seed)


def _drawn(
    run: RunReader, folder: Path, ids: list[str], config: ADGConfig, other: ADGConfig, show_progress: bool
) -> Geometry:
    """Return the geometry of fresh answers to some rows of a run, drawn with the settings `other` into `folder`."""
    from adg_plugin.engines.models.loading import Source
    from adg_plugin.pipeline.ranks import SingleProcess
    from adg_plugin.pipeline.sample import fill

    if config.model is None:
        raise StoreError(f"{run.path} was made with a model in memory: fresh answers need a run of `adg select`")
    source = Source.configured(config)
    manifest = run.manifest()
    assert manifest is not None
    now = keys.sampling_fingerprint(config, model=source.identity, eos_ids=source.eos_ids)
    if changed := keys.changes(manifest["recipe"], now):
        raise StoreError(
            f"the model of {run.path} is not what it was ({', '.join(changed.values())}): fresh answers would be "
            "another model's; put that model back, or select again into another folder"
        )
    recipe = keys.sampling_fingerprint(other, model=source.identity, eos_ids=source.eos_ids)
    digest = keys.digest(recipe)
    with RunFolder.open(folder) as to:
        to.write_config({"config": other.model_dump(mode="json"), "recipe": recipe})
        rows = (_rekeyed(row, digest) for row in run.staged_rows(ids))
        to.stage_prompts(rows, digest="stability")
        fill(("sample", "embed"), to, folder, other, source, SingleProcess(), show=show_progress)
        return to.geometry(vectors=False)


def _rekeyed(row: StagedRow, recipe: bytes) -> StagedRow:
    """Return the row as the prompt of other draws, and of nothing else that the run asked of it."""
    prompt = row.prompt
    key = keys.row_key(recipe, prompt.token_ids, prompt.span)
    return replace(row, prompt=Prompt(prompt.id, prompt.token_ids, prompt.span, key, prompt.instruction))


def _compared(
    table: pa.Table, fresh: Geometry, config: ADGConfig, about: Stability, sample: npt.NDArray[np.int64], seed: int
) -> Resampled:
    """Return old scores, of `table`, and new ones of the rows of `sample` that have as many answers as before."""
    place = {str(about.ids[row]): int(row) for row in sample}
    rows = np.array([place[str(id)] for id in fresh.ids], dtype=np.int64)
    num_answers = np.empty(len(fresh), dtype=np.int64)
    for group in fresh.grams:
        num_answers[group.rows] = group.grams.shape[1]
    whole = table["num_answers"].to_numpy()[rows] == num_answers
    rows = rows[whole]
    if len(rows) < FEWEST_ROWS:
        raise DataError(
            f"{len(rows)} of {len(sample)} rows got as many answers as before, {FEWEST_ROWS} are needed: "
            "give a larger --resample"
        )
    new_d, new_i, _ = score_rows(fresh, config)
    dispersion, anisotropy = (table[name].to_numpy().copy() for name in ("dispersion", "anisotropy"))
    dispersion[rows], anisotropy[rows] = new_d[whole], new_i[whole]
    # Ranks and standard deviations are those of the pool, so the new values take the old ones' places in it.
    new = combine(dispersion, anisotropy, config.score, config.weight)[rows]
    return Resampled(
        ids=tuple(str(about.ids[row]) for row in rows),
        old=about.scores[rows],
        new=new,
        predicted_error=float(np.sqrt(np.square(about.errors[rows]).mean())),
        predicted_correlation=about.correlation,
        seed=seed,
        left_out=len(sample) - len(rows),
    )
