"""`adg stability`: how much of a finished selection another run with other draws would share."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from adg_plugin.config.schema import ADGConfig
from adg_plugin.console import AsJson, RunDir, Text, print_json, result_console
from adg_plugin.errors import ConfigError, DataError, StoreError
from adg_plugin.scoring.geometry import Floats, combine, parts
from adg_plugin.scoring.stability import Stability
from adg_plugin.scoring.stability import stability as measured
from adg_plugin.store import Geometry, RunFolder, RunReader, StagedRow, keys
from adg_plugin.store.reader import finished
from adg_plugin.store.records import Prompt

FEWEST_ROWS = 10


def stability(
    run_dir: RunDir,
    resample: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=FEWEST_ROWS,
            help="Draw fresh answers for N random rows, with another seed, and compare.",
        ),
    ] = None,
    rows: Annotated[int, typer.Option(min=0, help="Doubtful rows to show.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Say how much of the choice is sampling noise, within the same bins, from the stored answers alone.

    Another `seed` also moves the bins, so the choices of two seeds share less than is shown here.
    """
    about = measured(str(run_dir))
    fresh = None if resample is None else resample_rows(str(run_dir), resample, about)
    if as_json:
        print_json(about.summary() | ({"resampled": fresh.summary()} if fresh else {}))
        return
    console = result_console()
    print_stability(about, console, rows)
    if fresh is not None:
        console.print(Text(fresh.in_words()))


def print_stability(about: Stability, console: Console, rows: int = 10) -> None:
    """Print what to expect of another run, what helps, and the `rows` most doubtful rows."""
    mean, low, high = about.overlap
    doubtful = about.doubtful()
    sentences = [
        f"another run with other draws would share about {mean:.0%} ({low:.0%} to {high:.0%}) of this choice of "
        f"{int(about.chosen.sum()):,} rows within the same bins, which another seed also moves; by chance "
        f"{about.chance:.0%}",
    ]
    if not about.tied:
        sentences.append(
            f"{about.reliability:.0%} of how scores differ within their bins is the rows, the rest is sampling noise; "
            f"the scores of two runs would correlate at about {about.correlation:.2f}"
        )
    if about.errors.any():
        sentences.append(
            f"a score has a standard error of about {about.summary()['standard_error']['p50']:.3g}; {len(doubtful):,} "
            f"of {len(about.ids):,} rows are near the cut: one standard error from changing places with another row of "
            "their bin"
        )
    if about.overlap_with and mean < 1:
        more = ", ".join(f"{value:.0%} with num_samples: {k}" for k, value in about.overlap_with.items())
        sentences.append(f"two runs of more answers would share about {more}; now it is {about.num_samples}")
    console.print(Text("\n".join([*sentences, *about.notes])))
    if doubtful and rows:
        table = Table(title="the most doubtful rows", title_justify="left", box=None, pad_edge=False)
        for name in ("id", "score", "error", "now", "chosen by another run"):
            table.add_column(name, justify="left" if name in ("id", "now") else "right", overflow="fold")
        for row in doubtful[:rows]:
            now = "chosen" if about.chosen[row] else "left out"
            numbers = (f"{about.scores[row]:.4f}", f"{about.errors[row]:.4f}", now, f"{about.again[row]:.0%}")
            table.add_row(Text(str(about.ids[row])), *numbers)
        console.print(table)


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

    def in_words(self) -> str:
        """Return the figures in words, on three lines."""
        (correlation, of_correlation), (error, of_error) = self.correlation, self.error
        left = f"; {self.left_out} more got fewer answers than before" if self.left_out else ""
        verdict = "as predicted" if self.agrees else "not as predicted: trust the found one, not the figures above"
        return (
            f"fresh answers to {len(self.ids):,} random rows (seed {self.seed}){left}:\n"
            f"  old and new scores correlate at {correlation:.2f} ± {of_correlation:.2f}; predicted "
            f"{self.predicted_correlation:.2f}\n"
            f"  standard error of a score {error:.3g} ± {of_error:.2g}; predicted {self.predicted_error:.3g}: "
            f"{verdict}"
        )


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
    fresh = _drawn(run, [str(id) for id in about.ids[sample]], config, other, show_progress)

    table = run.scores()
    num_answers = table["num_answers"].to_numpy()
    dispersion, anisotropy = (table[name].to_numpy().copy() for name in ("dispersion", "anisotropy"))
    is_compared = np.zeros(len(table), dtype=bool)
    for group in fresh.grams:
        of_group = np.searchsorted(about.ids, fresh.ids[group.rows])
        as_many = num_answers[of_group] == group.grams.shape[1]
        found, at = parts(group.grams[as_many]), of_group[as_many]
        dispersion[at], anisotropy[at], is_compared[at] = found.dispersion, found.anisotropy, True
    compared = np.flatnonzero(is_compared)
    if len(compared) < FEWEST_ROWS:
        raise DataError(
            f"{len(compared)} of {len(sample)} rows got as many answers as before, {FEWEST_ROWS} are needed: "
            "give a larger --resample"
        )
    return Resampled(
        ids=tuple(str(id) for id in about.ids[compared]),
        old=about.scores[compared],
        # Ranks and standard deviations are those of the pool, so the new values take the old ones' places in it.
        new=combine(dispersion, anisotropy, config.score, config.weight)[compared],
        predicted_error=float(np.sqrt(np.square(about.errors[compared]).mean())),
        predicted_correlation=about.correlation,
        seed=other.seed,
        left_out=len(sample) - len(compared),
    )


def _drawn(run: RunReader, ids: list[str], config: ADGConfig, other: ADGConfig, show_progress: bool) -> Geometry:
    """Return the geometry of fresh answers to some rows of a run, drawn with the settings `other`."""
    from adg_plugin.engines.models.loading import Source
    from adg_plugin.pipeline.ranks import SingleProcess
    from adg_plugin.pipeline.sample import fill

    if config.model is None:
        raise StoreError(f"{run.path} was made with a model in memory: fresh answers need a run of `adg select`")
    source = Source.configured(config)
    recipe, now = (
        keys.sampling_fingerprint(of, model=source.identity, eos_ids=source.eos_ids) for of in (other, config)
    )
    if changed := keys.changes((run.manifest() or {})["recipe"], now):
        raise StoreError(
            f"the model of {run.path} is not what it was ({', '.join(changed.values())}): fresh answers would be "
            "another model's; put that model back, or select again into another folder"
        )
    with tempfile.TemporaryDirectory(prefix="adg-stability-") as parent:
        folder = Path(parent) / "run"
        with RunFolder.open(folder) as to:
            to.write_config({"config": other.model_dump(mode="json"), "recipe": recipe})
            rows = (_rekeyed(row, keys.digest(recipe)) for row in run.staged_rows(ids))
            to.stage_prompts(rows, digest="stability")
            fill(("sample", "embed"), to, folder, other, source, SingleProcess(), show=show_progress)
            return to.geometry(vectors=False)


def _rekeyed(row: StagedRow, recipe: bytes) -> StagedRow:
    """Return the row as the prompt of other draws, and of nothing else that the run asked of it."""
    prompt = row.prompt
    key = keys.row_key(recipe, prompt.token_ids, prompt.span)
    return replace(row, prompt=Prompt(prompt.id, prompt.token_ids, prompt.span, key, prompt.instruction))
