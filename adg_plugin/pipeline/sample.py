"""Fills a run folder: rows without answers are sampled, and answers without vectors embedded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from adg_plugin.config.schema import ADGConfig
from adg_plugin.console import SamplingProgress
from adg_plugin.engines import factory
from adg_plugin.engines.base import Engine
from adg_plugin.engines.failures import FailureGuard
from adg_plugin.engines.models.loading import Source
from adg_plugin.engines.ray import RayEngine
from adg_plugin.engines.split import SplitEngine
from adg_plugin.errors import ConfigError, StoreError
from adg_plugin.pipeline.ranks import Team, is_mine, merge_rank_results, my_windows, open_share
from adg_plugin.store import RunFolder, RunReader, keys
from adg_plugin.store.records import Prompt, Sampled

Stage = Literal["sample", "embed"]


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
        with team.barrier("sampling"), _share(run, run_dir, team) as (pool, to):
            stats = _fill_answers(pool, to, config, source, team, embed="embed" in stages, show=show)
        stats = _together(stats, team)
        _gather(run, team)
    if "embed" in stages and config.engine != "hf":
        with team.barrier("embedding"), _share(run, run_dir, team) as (pool, to):
            vectors = _fill_vectors(pool, to, config, source, team, show=show)
        vectors = _together(vectors, team)
        _gather(run, team)
        if run is not None:
            run.drop_embedded_samples()
        if skipped := {**stats.pop("skipped", {}), **vectors.pop("skipped", {})}:
            stats["skipped"] = skipped
        stats["embedding"] = vectors
    return stats


@contextmanager
def _share(run: RunFolder | None, run_dir: Path, team: Team) -> Iterator[tuple[RunReader, RunFolder]]:
    """Yield what to read the pool from and where results go: the run folder, or this process's own part of it."""
    if run is not None:
        run.flush()  # answers still in memory can be neither read nor embedded
        yield run, run
        return
    shared, mine = open_share(run_dir, team)
    with mine:
        yield shared, mine


def _together(stats: dict[str, Any], team: Team) -> dict[str, Any]:
    """Return what a stage took the whole team: seconds of the slowest, tokens and rows left out of all."""
    each = team.gather(stats)
    whole = dict(each[0])
    if any("tokens" in one for one in each):
        whole["seconds"] = max(one.get("seconds", 0.0) for one in each)
        tokens = [one.get("tokens", 0) for one in each]
        whole |= {"tokens": sum(tokens), **({"tokens_per_rank": tokens} if team.size > 1 else {})}
    if skipped := {id: reason for one in each for id, reason in one.get("skipped", {}).items()}:
        whole["skipped"] = skipped
    return whole


def _gather(run: RunFolder | None, team: Team) -> None:
    with team.barrier("gathering results"):
        if run is not None:
            merge_rank_results(run)


def _fill_answers(
    pool: RunReader,
    to: RunFolder,
    config: ADGConfig,
    source: Source,
    team: Team,
    *,
    embed: bool,
    show: bool,
) -> dict[str, Any]:
    """Sample this process's share of the rows of `pool` that have no answers into `to`, and return what it took.

    Args:
        embed: False leaves the vectors to `_fill_vectors`, where the engine can do without them.
    """
    counts = pool.counts()
    pending = counts.unsampled if team.size == 1 else sum(map(len, my_windows(pool, team)))
    stats: dict[str, Any] = {"rows": counts.unsampled, **({"ranks": team.size} if team.size > 1 else {})}
    if not pending:
        return stats
    known = counts.completed + counts.sampled
    total = counts.prompts if team.size == 1 else known + pending
    windows = my_windows(pool, team)
    if draws_first(config) or (config.engine != "hf" and not embed):
        guard = _guard()
        with _sampler(source, config) as sampler, SamplingProgress(total, known, show=show) as progress:
            found = sampler.run(guard.taking(chain.from_iterable(windows)))
            for result in guard.watched(found, progress, stats):
                to.append_sample(result)
    else:
        verb = "sampling" if config.answers is None else "embedding"
        with _engine(source, config) as engine, SamplingProgress(total, known, verb=verb, show=show) as progress:
            sample(to, engine, progress, windows, stats)
    stats |= {"seconds": progress.seconds, "tokens": progress.tokens}
    # The engine, and the model with it, goes with this frame: the bins want the memory.
    return stats


def _engine(source: Source, config: ADGConfig) -> AbstractContextManager[Engine]:
    if config.executor == "ray":
        return nullcontext(RayEngine(config, source.identity))
    return factory.engine_for(source, config)


def _sampler(source: Source, config: ADGConfig) -> AbstractContextManager[Engine]:
    if config.executor == "ray":
        return nullcontext(RayEngine(config, source.identity, embed=False))
    return factory.sampler_for(source, config)


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
    guard = _guard(in_turn=not isinstance(engine, SplitEngine | RayEngine))
    found = engine.run(guard.taking(_by_length(windows)))
    for result in guard.watched(found, progress, {} if stats is None else stats):
        run.append(result)


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
    mine = (_checked(row, recipe, pool) for row in rows if team.size == 1 or is_mine(row.prompt, team))
    guard = _guard()
    with SamplingProgress(counts.completed + counts.sampled, counts.completed, verb="embedding", show=show) as progress:
        for result in guard.watched(encoder.run(guard.taking(mine)), progress, stats):
            to.append(result)
    return stats | {"seconds": progress.seconds, "tokens": progress.tokens}


def _checked(row: Sampled, recipe: bytes, pool: RunReader) -> Sampled:
    """Return the row, if its answers came of these settings.

    Raises:
        StoreError: they did not: a run with other settings was stopped before it had staged the pool.
    """
    if keys.row_key(recipe, row.prompt.token_ids, row.prompt.span, row.prompt.reference_ids) != row.prompt.key:
        raise StoreError(
            f"run folder {pool.path}: row {row.id!r} was drawn under other settings: run `adg select` or `adg sample` "
            "with the settings that are to be used"
        )
    return row


def _guard(*, in_turn: bool = False) -> FailureGuard:
    return FailureGuard(
        memory="free the device, lower max_new_tokens or max_prompt_tokens, or use load_in_4bit",
        numbers="set dtype to bfloat16 or float32 (float16 overflows in many models), or check the model's weights",
        kept="What is sampled is kept",
        in_turn=in_turn,
    )


def _by_length(windows: Iterable[list[Prompt]]) -> Iterator[Prompt]:
    """Yield the prompts of each window by length, up and down in turn: neighbours are of similar length."""
    for number, window in enumerate(windows):
        yield from sorted(window, key=len, reverse=number % 2 == 1)


def refuse_elsewhere(config: ADGConfig, *, why: str) -> None:
    """Raise a ConfigError where the settings name another engine or executor than the model in memory."""
    problems = []
    if config.engine != "hf":
        problems.append(f"engine is {config.engine!r}: {why}; leave it out, or select first with `adg run`")
    if config.answers is not None:
        problems.append(f"answers is {config.answers!r}: {why}; leave it out, or select first with `adg run`")
    if config.executor != "inline":
        problems.append(f"executor is {config.executor!r}: {why}; leave it out, or select first with `adg run`")
    if problems:
        raise ConfigError(problems)
