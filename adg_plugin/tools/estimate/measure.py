"""What a selection will take: a few batches of it are done and timed, the rest is extrapolated from them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from adg_plugin.config.schema import ADGConfig
from adg_plugin.console import SamplingProgress
from adg_plugin.engines import factory
from adg_plugin.engines.base import Encoder, Engine, Sampler
from adg_plugin.engines.forward.results import TRANSIENT
from adg_plugin.engines.models.loading import Source
from adg_plugin.errors import DataError, StoreError
from adg_plugin.pipeline.run import prepare
from adg_plugin.pipeline.sample import draws_first
from adg_plugin.pipeline.stage import Pool
from adg_plugin.scoring.bins import assign_bins, default_bins
from adg_plugin.store import RunFolder, keys
from adg_plugin.store.names import ANSWERS, PROMPTS, SAMPLES
from adg_plugin.store.records import Prompt, RowResult, Sampled
from adg_plugin.store.staging import groups
from adg_plugin.tools.estimate.estimate import Chunk, Estimate, extrapolate

# Answers that an engine holds at once: a chunk of fewer would say nothing of a full batch.
_FULL_BATCH = {False: 160, True: 1024}  # by whether there is an accelerator
_WARM_UP_ROWS = 4
_FEWEST_ROWS = 4
_BLOCKS = 4  # of rows of neighbouring lengths, as a run has them side by side
_BIN_ROWS = 4_000
_CHOOSING_ROW_S = 2e-5  # of a row, beside its bin (benchmarks/bench_selection.py)
_ROW_BYTES = 200  # of an id and its places while choosing


def measure(config: ADGConfig, run_dir: Path, *, rows: int | None = None, show_progress: bool = True) -> Estimate:
    """Return what the selection of a pool will take, measured on a few batches of it.

    The rows that are measured are stored in the run folder: the run itself does not sample them again. With
    `executor: ray`, it is one worker that is measured, here.

    Args:
        rows: how many to measure; default three full batches, or half of a small pool.

    Raises:
        ConfigError: another method than ADG is to choose.
        StoreError: the run folder holds a finished selection, which another pool or other settings would undo.
        DataError: nearly every row has its answers, or none of those that were measured got any.
    """
    config.refuse_other_methods("`adg estimate` times the drawing of answers, and only ADG draws them")
    config.refuse_given_answers("`adg estimate` times the sampling of answers")
    config = config.updated(executor="inline") if config.executor != "inline" else config
    began = time.monotonic()
    source = Source.configured(config)
    recipe = keys.sampling_fingerprint(config, model=source.identity, eos_ids=source.eos_ids)
    with RunFolder.open(run_dir) as run:
        if run.manifest() is not None:
            raise StoreError(
                f"{run.path} holds a finished selection: choosing again takes seconds; for another pool or other "
                "settings give another --out"
            )
        prepare(run, Pool.of(config), config, source, recipe, own=False)
        staging_s = time.monotonic() - began
        pending = run.counts().unsampled
        chunks = _chunks(run, _sizes(pending, config, rows), config.seed)
        with SamplingProgress(sum(map(len, chunks)), verb="measuring", show=show_progress) as progress:
            measured, loading_s, width = _measure(run, source, config, chunks, progress)
        run.flush()
        counts = run.counts()
        prompt_tokens = sum(int(np.sum(table["num_tokens"])) for table in groups(run_dir / PROMPTS, ["num_tokens"]))
        stored = sum(path.stat().st_size for name in (ANSWERS, SAMPLES) for path in (run_dir / name).glob("*.parquet"))
        answer_bytes = stored / max(1, counts.completed + counts.sampled) * counts.prompts
    if not any(len(chunk.answers) for chunk in measured):
        raise DataError(f"none of the {sum(map(len, chunks))} measured rows got answers: adg select says why of each")
    return extrapolate(
        measured,
        rows=counts.prompts,
        pending=pending,
        prompt_tokens=prompt_tokens,
        num_samples=config.num_samples,
        max_new_tokens=config.max_new_tokens,
        loading_s=loading_s,
        staging_s=staging_s,
        choosing_s=_choosing_seconds(counts.prompts, width, config),
        memory_bytes=max(_peak_bytes(), counts.prompts * (2 * width + 4 * config.num_samples**2 + _ROW_BYTES)),
        disk_bytes=answer_bytes + (run_dir / PROMPTS).stat().st_size,
        # vLLM's own processes and servers hold what nobody here can see.
        device_bytes=torch.cuda.max_memory_reserved() if config.engine == "hf" and torch.cuda.is_available() else 0,
        devices=config.devices() or 1,
    )


def _sizes(pending: int, config: ADGConfig, rows: int | None) -> tuple[int, int, int]:
    """Return how many rows the chunks have: a few to warm up, a full batch, and two of them.

    Raises:
        DataError: there are too few.
    """
    if pending < _FEWEST_ROWS:
        raise DataError(f"{pending} rows are left to sample: there is nothing to measure, run adg select")
    has_device = config.device != "cpu" and torch.accelerator.is_available()
    full = max(1, _FULL_BATCH[has_device] // config.num_samples)
    if config.engine == "vllm-server":
        full = config.server_concurrency * len(config.server_urls)
    total = min(3 * full + _WARM_UP_ROWS, pending // 2) if rows is None else max(2, min(rows, pending))
    warm_up = min(_WARM_UP_ROWS, (total - 2) // 4)
    first = max(1, (total - warm_up) // 3)
    return warm_up, first, total - warm_up - first


def _chunks(run: RunFolder, sizes: Sequence[int], seed: int) -> list[list[Prompt]]:
    """Return chunks of rows without answers, each from all over the order of lengths, no row twice."""
    lengths: dict[str, int] = {}
    for window in run.iter_windows(unsampled_only=True):
        lengths |= {prompt.id: len(prompt) for prompt in window}
    rng = np.random.default_rng(seed)
    left = sorted(lengths, key=lambda id: lengths[id])
    picked: list[list[str]] = []
    wanted: set[str] = set()
    for size in sizes:
        picked.append(_blocks(left, size, rng))
        wanted |= set(picked[-1])
        left = [id for id in left if id not in wanted]
    prompts = {p.id: p for window in run.iter_windows(unsampled_only=True) for p in window if p.id in wanted}
    return [[prompts[id] for id in chunk] for chunk in picked]


def _blocks(by_length: Sequence[str], size: int, rng: np.random.Generator) -> list[str]:
    """Return `size` ids, in blocks of neighbours, one from each part of the order."""
    picked: dict[int, None] = {}
    for block in range(_BLOCKS):
        first, last = (len(by_length) * end // _BLOCKS for end in (block, block + 1))
        wanted = min(size * (block + 1) // _BLOCKS - size * block // _BLOCKS, last - first)
        start = first + int(rng.integers(0, last - first - wanted + 1))
        picked |= dict.fromkeys(range(start, start + wanted))
    # What a part was too short for comes from the others.
    picked |= dict.fromkeys([place for place in range(len(by_length)) if place not in picked][: size - len(picked)])
    return [by_length[place] for place in picked]


def _measure(
    run: RunFolder,
    source: Source,
    config: ADGConfig,
    chunks: Sequence[Sequence[Prompt]],
    progress: SamplingProgress,
) -> tuple[list[Chunk], float, int]:
    """Sample and embed the chunks; return them timed, the seconds that loading took, and the width of the vectors."""
    began = time.monotonic()
    if not draws_first(config):
        with factory.engine_for(source, config) as engine:
            loading_s = time.monotonic() - began
            timed = [_timed(engine, rows, run.append, progress) for rows in chunks]
        measured = [chunk for chunk, _ in timed]
    else:
        with factory.sampler_for(source, config) as sampler:
            loading_s = time.monotonic() - began
            drawn = [_timed(sampler, rows, run.append_sample, progress) for rows in chunks]
        began = time.monotonic()
        encoder = factory.make_encoder(source.load(), config)
        loading_s += time.monotonic() - began
        measured, timed = [], []
        for prompts, (chunk, found) in zip(chunks, drawn, strict=True):
            rows = [Sampled(prompt, found[prompt.id].answers) for prompt in prompts if found[prompt.id].reason is None]
            timed.append(_timed(encoder, rows, run.append))
            measured.append(replace(chunk, seconds=chunk.seconds + timed[-1][0].seconds))
        run.drop_embedded_samples()  # else their bytes would count beside those of the answers
    vectors = (result.prompt_vector for _, found in timed for result in found.values())
    return measured, loading_s, next((len(vector) for vector in vectors if vector is not None), 0)


def _timed(
    engine: Engine | Sampler | Encoder,
    rows: Sequence[Any],
    store: Callable[[RowResult], None],
    progress: SamplingProgress | None = None,
) -> tuple[Chunk, dict[str, RowResult]]:
    """Run and store a chunk; return how long it ran, and its results by id."""
    began, found = time.monotonic(), {}
    for result in engine.run(sorted(rows, key=len)):
        found[result.id] = result
        if progress is not None:
            progress.add(result.num_tokens, rejected=result.reason is not None)
    seconds = time.monotonic() - began
    for result in found.values():
        if result.reason not in TRANSIENT:
            store(result)
    lengths = [len(answer.token_ids) for result in found.values() for answer in result.answers]
    return Chunk(len(rows), seconds, np.array(lengths, dtype=np.int64)), found


def _choosing_seconds(rows: int, width: int, config: ADGConfig) -> float:
    """Return what binning and choosing take, from a small clustering of random vectors."""
    some = min(rows, _BIN_ROWS)
    bins = config.bins or default_bins(rows)
    few = min(bins, default_bins(some))
    vectors = np.random.default_rng(0).standard_normal((some, max(1, width))).astype(np.float16)
    began = time.monotonic()
    assign_bins(vectors, few, config.seed)
    return (time.monotonic() - began) * (rows / some) * (bins / few) + _CHOOSING_ROW_S * rows


def _peak_bytes() -> int:
    """Return the most memory that this process has held."""
    if sys.platform == "linux":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return int(psutil.Process().memory_info().rss)
