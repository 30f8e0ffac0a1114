"""Fills a run folder: rows without answers are sampled, and answers without vectors embedded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from pathlib import Path
from typing import Any, Literal, TypeVar

from adg_plugin.config.schema import ADGConfig
from adg_plugin.console import SamplingProgress
from adg_plugin.engines import factory
from adg_plugin.engines.base import Engine
from adg_plugin.engines.failures import FailureGuard
from adg_plugin.engines.models.loading import Source
from adg_plugin.engines.ray import RayEngine
from adg_plugin.engines.split import SplitEngine
from adg_plugin.errors import StoreError
from adg_plugin.pipeline.ranks import Team, is_mine, merge_rank_results, my_windows, shared
from adg_plugin.store import RunFolder, RunReader, keys
from adg_plugin.store.records import Prompt, RowResult, Sampled

Stage = Literal["sample", "embed"]
Row = TypeVar("Row", Prompt, Sampled)


def fill(
    stages: Sequence[Stage],
    run: RunFolder | None,
    run_dir: Path,
    config: ADGConfig,
    source: Source,
    team: Team,
    *,
    show: bool,
) -> dict[str, Any]:
    """Give the rows of a run folder answers, vectors or both, shared by a team, and return what it took.

    Args:
        stages: what to do; all processes of the team give the same.
        run: the run folder, of process 0; the others give None.
        source: where the model comes from; loaded only if there is something to do.

    Raises:
        ADGError: the engine cannot be used, or rows fail one after the other; what is done is kept.
    """
    stats: dict[str, Any] = {}
    show = show and team.rank == 0
    if "sample" in stages:
        with team.barrier("sampling"), shared(run, run_dir, team) as (pool, to):
            stats = _fill_answers(pool, to, config, source, team, embed="embed" in stages, show=show)
        stats = _together(stats, run, team)
    if "embed" in stages and config.engine != "hf":
        with team.barrier("embedding"), shared(run, run_dir, team) as (pool, to):
            vectors = _fill_vectors(pool, to, config, source, team, show=show)
        vectors = _together(vectors, run, team)
        if run is not None:
            run.drop_embedded_samples()
        if skipped := {**stats.pop("skipped", {}), **vectors.pop("skipped", {})}:
            stats["skipped"] = skipped
        stats["embedding"] = vectors
    return stats


def _together(stats: dict[str, Any], run: RunFolder | None, team: Team) -> dict[str, Any]:
    """Merge what the ranks found, and return what it took: seconds of the slowest, tokens and rows left out of all."""
    each = team.gather(stats)
    with team.barrier("gathering results"):
        if run is not None:
            merge_rank_results(run)
    whole = dict(each[0])
    if any("tokens" in one for one in each):
        whole["seconds"] = max(one.get("seconds", 0.0) for one in each)
        tokens = [one.get("tokens", 0) for one in each]
        whole |= {"tokens": sum(tokens), **({"tokens_per_rank": tokens} if team.size > 1 else {})}
    if skipped := {id: reason for one in each for id, reason in one.get("skipped", {}).items()}:
        whole["skipped"] = skipped
    return whole


def _fill_answers(
    pool: RunReader, to: RunFolder, config: ADGConfig, source: Source, team: Team, *, embed: bool, show: bool
) -> dict[str, Any]:
    """Sample this process's share of the rows of `pool` without answers into `to`, and return what it took.

    Without `embed`, the vectors are left to `_fill_vectors`, where the engine can do without them.
    """
    counts = pool.counts()
    pending = counts.unsampled if team.size == 1 else sum(map(len, my_windows(pool, team)))
    stats: dict[str, Any] = {"rows": counts.unsampled, **({"ranks": team.size} if team.size > 1 else {})}
    if not pending:
        return stats
    known = counts.completed + counts.sampled
    total = counts.prompts if team.size == 1 else known + pending
    windows = my_windows(pool, team)
    embed = not draws_first(config) and (config.engine == "hf" or embed)
    verb = "sampling" if config.answers is None else "embedding"
    with (
        _engine(source, config, embed=embed) as engine,
        SamplingProgress(total, known, verb=verb, show=show) as progress,
    ):
        if embed:
            sample(to, engine, progress, windows, stats)
        else:
            _store(engine.run, chain.from_iterable(windows), to.append_sample, progress, stats)
    stats |= {"seconds": progress.seconds, "tokens": progress.tokens}
    # The engine, and the model with it, goes with this frame: the bins want the memory.
    return stats


def _engine(source: Source, config: ADGConfig, *, embed: bool) -> AbstractContextManager[Engine]:
    if config.executor == "ray":
        return nullcontext(RayEngine(config, source.identity, embed=embed))
    return factory.engine_for(source, config) if embed else factory.sampler_for(source, config)


def draws_first(config: ADGConfig) -> bool:
    """Return whether sampling ends before embedding begins: vLLM in this process leaves no room for the encoder."""
    return config.engine == "vllm" and config.executor == "inline"


def sample(
    run: RunFolder,
    engine: Engine,
    progress: SamplingProgress,
    windows: Iterable[list[Prompt]],
    stats: dict[str, Any] | None = None,
) -> None:
    """Sample and embed every prompt, storing each result in `run` as it comes; `stats` gets `skipped`, by id."""
    in_turn = not isinstance(engine, SplitEngine | RayEngine)
    _store(engine.run, _by_length(windows), run.append, progress, {} if stats is None else stats, in_turn=in_turn)


def _store(
    engine: Callable[[Iterable[Row]], Iterable[RowResult]],
    rows: Iterable[Row],
    store: Callable[[RowResult], None],
    progress: SamplingProgress,
    stats: dict[str, Any],
    *,
    in_turn: bool = False,
) -> None:
    guard = FailureGuard(
        memory="free the device, lower max_new_tokens or max_prompt_tokens, or use load_in_4bit",
        numbers="set dtype to bfloat16 or float32 (float16 overflows in many models), or check the model's weights",
        kept="What is sampled is kept",
        in_turn=in_turn,
    )
    for result in guard.watched(engine(guard.taking(rows)), progress, stats):
        store(result)


def _fill_vectors(
    pool: RunReader, to: RunFolder, config: ADGConfig, source: Source, team: Team, *, show: bool
) -> dict[str, Any]:
    """Embed this process's share of the stored answers of `pool` that have no vectors into `to`."""
    counts = pool.counts()
    stats: dict[str, Any] = {"rows": counts.sampled}
    if not counts.sampled:
        return stats
    encoder = factory.make_encoder(source.load(), config)
    recipe = keys.digest(keys.sampling_fingerprint(config, model=source.identity, eos_ids=source.eos_ids))
    rows = chain.from_iterable(pool.sampled_windows())
    mine = (_checked(row, recipe, pool) for row in rows if is_mine(row.prompt, team))
    with SamplingProgress(counts.completed + counts.sampled, counts.completed, verb="embedding", show=show) as progress:
        _store(encoder.run, mine, to.append, progress, stats)
    return stats | {"seconds": progress.seconds, "tokens": progress.tokens}


def _checked(row: Sampled, recipe: bytes, pool: RunReader) -> Sampled:
    """Return the row; a StoreError where a run with other settings was stopped before it had staged the pool."""
    if keys.row_key(recipe, row.prompt.token_ids, row.prompt.span, row.prompt.reference_ids) != row.prompt.key:
        raise StoreError(
            f"run folder {pool.path}: row {row.id!r} was drawn under other settings: run `adg select` or `adg sample` "
            "with the settings that are to be used"
        )
    return row


def _by_length(windows: Iterable[list[Prompt]]) -> Iterator[Prompt]:
    """Yield the prompts of each window by length, up and down in turn: neighbours are of similar length."""
    for number, window in enumerate(windows):
        yield from sorted(window, key=len, reverse=number % 2 == 1)
