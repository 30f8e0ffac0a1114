"""The order of things: pool -> prompts -> answers and vectors -> scores and bins -> chosen rows."""

from __future__ import annotations

import json
import logging
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adg_plugin import keys
from adg_plugin.config import ADGConfig
from adg_plugin.engines.base import Engine, Prompt
from adg_plugin.engines.results import NON_FINITE
from adg_plugin.errors import ConfigError, DataError, NumericalError
from adg_plugin.pool import Pool, stage_pool
from adg_plugin.progress import SamplingProgress
from adg_plugin.rows import Reason
from adg_plugin.scoring import Scored, choose_rows
from adg_plugin.store import RunFolder

if TYPE_CHECKING:
    from datasets import Dataset

    from adg_plugin.engines.loading import Source

logger = logging.getLogger(__name__)

_PACKAGES = ("adg-plugin", "torch", "transformers", "datasets", "numpy", "scikit-learn", "bitsandbytes")
_WATCHED_ROWS = 32  # the last results, among which non-finite ones are counted
_ENOUGH_ROWS = 8


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
        """Return the chosen rows as a `datasets.Dataset`, best score first."""
        from datasets import Dataset

        return Dataset.from_generator(self.rows)


def select(
    dataset: str | Path | Iterable[Mapping[str, Any]] | None = None,
    *,
    model: str | None = None,
    config: ADGConfig | Mapping[str, Any] | None = None,
    output_dir: str | Path | None = None,
    show_progress: bool = True,
) -> Selection:
    """Return the selection from a pool, sampling what the run folder does not hold yet.

    Args:
        dataset: path, hub name, `datasets.Dataset` or mappings; default the config's `datasets`.
        model: folder or hub name of the backbone; default the config's `model`.
        config: settings; default those of `ADGConfig`.
        output_dir: run folder; default the config's `output_dir`, else `runs/selection`.
        show_progress: whether to report progress on stderr.

    Raises:
        ADGError: of the kind that tells configuration, data, model, run folder and numbers apart.
    """
    settings = config if isinstance(config, ADGConfig) else ADGConfig.parse(config or {})
    changes: dict[str, Any] = {"model": model} if model is not None else {}
    rows: Iterable[Mapping[str, Any]] | None = None
    if isinstance(dataset, str | Path):
        changes["datasets"] = [{"path": str(dataset)}]
    elif dataset is not None:
        rows = dataset
    settings = settings.updated(**changes) if changes else settings
    if rows is None and not settings.datasets:
        raise ConfigError(["datasets is missing: give a pool, such as datasets: [pool.jsonl]"])
    run_dir = Path(output_dir or settings.output_dir or "runs/selection")
    return run_selection(Pool.of(settings, rows), settings, run_dir, show_progress=show_progress)


def run_selection(
    pool: Pool,
    config: ADGConfig,
    run_dir: Path,
    *,
    source: Source | None = None,
    show_progress: bool = True,
) -> Selection:
    """Return the selection from `pool`; everything goes into `run_dir`, where an interrupted run goes on.

    The backbone is loaded only if there are rows to sample.

    Args:
        source: where the model comes from; default is what the config names.
    """
    from adg_plugin.engines import loading

    began = time.monotonic()
    source = source or loading.Source.configured(config)
    recipe = keys.answer_recipe(config, model=source.identity, eos_ids=source.eos_ids)
    with RunFolder.open(run_dir) as run:
        run.write_config({"config": config.model_dump(mode="json"), "recipe": recipe, "versions": _versions()})
        stage_pool(run, pool, config, source.tokenizer, recipe)
        for sentence in run.damage:
            logger.warning("%s", sentence)
        counts = run.counts()
        if not counts.prompts:
            raise DataError(f"none of the {counts.rejected} rows can be sampled: see {_write_rejected(run)}")
        sampling: dict[str, Any] = {"rows": counts.pending}
        if counts.pending:
            engine = loading.make_engine(source.load(), config)
            with SamplingProgress(counts.prompts, counts.completed, show=show_progress) as progress:
                sample(run, engine, progress)
            sampling |= {"seconds": progress.seconds, "tokens": progress.tokens}
            del engine  # and the model with it, before the bins want memory
        return choose(run, config, recipe, {"sampling": sampling, "began": began})


def sample(run: RunFolder, engine: Engine, progress: SamplingProgress) -> None:
    """Draw and embed answers for every row that has none yet; each result is stored as it comes.

    Raises:
        NumericalError: most rows give NaN or infinity.
    """
    recent: deque[bool] = deque(maxlen=_WATCHED_ROWS)
    for result in engine.run(_by_length(run)):
        run.append(result)
        progress.add(result.num_tokens, rejected=result.reason is not None)
        recent.append(result.reason == NON_FINITE)
        if len(recent) >= _ENOUGH_ROWS and sum(recent) > len(recent) / 2:
            raise NumericalError(
                f"{sum(recent)} of the last {len(recent)} rows gave NaN or infinity: set dtype to bfloat16 or float32 "
                "(float16 overflows in many models), or check the model's weights"
            )


def _by_length(run: RunFolder) -> Iterator[Prompt]:
    """Yield the pending prompts, those of a window by length, up and down in turn: neighbours are of similar length."""
    for number, window in enumerate(run.iter_windows()):
        yield from sorted(window, key=len, reverse=number % 2 == 1)


def choose(run: RunFolder, config: ADGConfig, recipe: Mapping[str, Any], about: Mapping[str, Any]) -> Selection:
    """Score, bin and choose from what the run folder holds, and write the result, the manifest last.

    Raises:
        DataError: no row can be scored.
    """
    geometry = run.geometry()
    counts = run.counts()
    duplicates = sum(r.reason == Reason.DUPLICATE for r in run.staged_rejections())
    reasons = run.write_rejected(chain(run.staged_rejections(), geometry.rejections))
    if not len(geometry):
        raise DataError(f"none of {counts.prompts} sampled rows can be scored: {reasons}")
    pool_rows = counts.prompts + counts.rejected - duplicates
    scored = choose_rows(geometry, config, pool_rows)
    run.write_scores(scored.table())
    ids = scored.chosen_ids()
    path = run.write_selected(ids)
    rows = {
        "pool": pool_rows + duplicates,
        "duplicates": duplicates,
        "rejected": reasons,
        "scored": len(geometry),
        "bins": int(scored.bins.max()) + 1,
        "selected": len(ids),
    }
    manifest = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "rows": rows,
        "sampling": about["sampling"],
        "answer_tokens": int(geometry.answer_tokens.sum()),
        "seconds": time.monotonic() - about["began"],
        "score": _score_summary(scored, config),
        "warnings": list(scored.warnings),
        "config": config.model_dump(mode="json"),
        "recipe": dict(recipe),
        "versions": _versions(),
    }
    for sentence in scored.warnings:
        logger.warning("%s", sentence)
    run.write_manifest(manifest)
    return Selection(run.path, path, tuple(ids), manifest)


def _write_rejected(run: RunFolder) -> str:
    run.write_rejected(run.staged_rejections())
    return str(run.path / "rejected.jsonl")


def _score_summary(scored: Scored, config: ADGConfig) -> dict[str, Any]:
    def percentiles(values: np.ndarray[Any, np.dtype[np.float64]]) -> dict[str, float]:
        return {f"p{p}": float(np.percentile(values, p)) for p in (5, 50, 95)}

    about = scored.balance
    return {
        "form": config.score,
        "dispersion": percentiles(scored.dispersion),
        "anisotropy": percentiles(scored.anisotropy),
        "score": percentiles(scored.scores),
        "pearson": {"dispersion": about.pearson_dispersion, "anisotropy": about.pearson_anisotropy},
        "spearman": {"dispersion": about.spearman_dispersion, "anisotropy": about.spearman_anisotropy},
        "share_of_variance": {"dispersion": about.share_dispersion, "anisotropy": about.share_anisotropy},
    }


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
